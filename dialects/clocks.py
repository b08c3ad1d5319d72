"""What has finished for certain when an instruction starts, whatever the durations.

Queues are in order and waits count, so what is known of a queue is a number: so many of its
instructions have finished, or left their reductions. What an instruction knows is what its
predecessor in its queue and those it waits for knew, and that those it waits for have finished; of
a predecessor that does not flow it knows that too. That is what queues and waits guarantee, through
any number of steps; it holds at all positions and ranks, since it knows no duration.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from intaglio.dialects import timeline
from intaglio.dialects.isa.queues import COUNTERS, QUEUES, reductions_of
from intaglio.dialects.timeline import At

Clock = tuple[int, ...]
"""How many results of each of `COUNTERS` are there for certain, in that order."""


def clocks(blocks: Sequence[timeline.Block]) -> Iterator[tuple[At, Clock]]:
    """Every instruction instance, in program order, with what has finished when it starts.

    Of its own queue that is all that was issued before it, but where instructions flow.
    """
    nothing: Clock = tuple([0] * len(COUNTERS))
    started = [nothing] * len(QUEUES)
    """What the next instruction of a queue knows from the one before."""
    issued = [0] * len(COUNTERS)
    results: list[list[Clock]] = [[] for _ in COUNTERS]
    """The last ones of earlier instances, and those of the current one: nobody waits for others."""
    for block_number, block in enumerate(blocks):
        back = timeline.reach(block.issues)
        needs = [
            (
                QUEUES.index(issue.queue),
                [(COUNTERS.index(counter), count) for counter, count in issue.waits.items()],
                issue.pace is not None,
                None if issue.reduces is None else COUNTERS.index(reductions_of(issue.queue)),
            )
            for issue in block.issues
        ]
        for instance in range(block.instances):
            results = [
                done[-1 - back[counter] :] for counter, done in zip(COUNTERS, results, strict=True)
            ]
            base = [len(done) for done in results]
            for number, (own, waits, flows, reductions) in enumerate(needs):
                known = [started[own]]
                for counter, count in waits:
                    if (last := timeline.awaited(base[counter], count, instance)) > 0:
                        known.append(results[counter][last - 1])
                clock = known[0] if len(known) == 1 else tuple(map(max, *known))
                yield (block_number, instance, number), clock
                after = list(clock)
                issued[own] += 1
                after[own] = issued[own]
                results[own].append(tuple(after))
                if reductions is not None:
                    # They leave after the elements.
                    issued[reductions] += 1
                    after[reductions] = issued[reductions]
                    results[reductions].append(tuple(after))
                started[own] = clock if flows else results[own][-1]
