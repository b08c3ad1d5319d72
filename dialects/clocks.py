"""What has finished for certain when an instruction starts, whatever the durations.

Queues are in order and waits count, so what is known of a queue is a number: so many of its
instructions have finished. What an instruction knows is what its predecessor in its queue and those
it waits for knew, and that these have finished. That is what queues and waits guarantee, through
any number of steps; it holds at all positions and ranks, since it knows no duration.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from intaglio.dialects import timeline
from intaglio.dialects.isa.queues import QUEUES

At = tuple[int, int, int]
"""An instruction instance: block, instance, instruction."""
Clock = tuple[int, ...]
"""How many instructions of each queue have finished for certain, in the order of the queues."""


def clocks(blocks: Sequence[timeline.Block]) -> Iterator[tuple[At, Clock]]:
    """Every instruction instance, in program order, with what has finished when it starts.

    Of its own queue that is all that was issued before it.
    """
    finished: list[list[Clock]] = [[] for _ in QUEUES]
    nothing: Clock = (0,) * len(QUEUES)
    for block_number, block in enumerate(blocks):
        needs = [
            (
                QUEUES.index(issue.queue),
                [(QUEUES.index(queue), count) for queue, count in issue.waits.items()],
            )
            for issue in block.issues
        ]
        for instance in range(block.instances):
            base = [len(done) for done in finished]
            for number, (own, waits) in enumerate(needs):
                known = [finished[own][-1] if finished[own] else nothing]
                for queue, count in waits:
                    if last := base[queue] + count:
                        known.append(finished[queue][last - 1])
                clock = known[0] if len(known) == 1 else tuple(map(max, *known))
                yield (block_number, instance, number), clock
                after = list(clock)
                after[own] = len(finished[own]) + 1
                finished[own].append(tuple(after))
