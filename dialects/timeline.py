"""When instructions start and finish: the cycle contract, in one place.

There is one in-order queue for each class of unit. Its instructions are *beats*: what the unit
takes at once. Cycle 0 accepts the token.

- A beat with a `pace` starts in the first cycle in which its queue is free for it, `pace` cycles
  after its predecessor started, and all that it waits for can be read. Its result can be read
  `duration` cycles later, when others may have started behind it. That is known ahead, so the
  sequencer's latency `issue` only counts from the token, and from what is not known ahead.
- An instruction without is alone in its unit: it starts `issue` cycles after the last of: the
  finish of its predecessor, and the finishes it waits for.

The start of each is a maximum of sums, so a longer duration, latency or context never makes
anything earlier.

A *wait* names a counter and a number, counted from the beginning of the block instance: so many
instructions of a queue must have finished, or left what they reduce (`isa.queues.reductions_of`);
0 means all that were issued before the instance, -n all but the last n of these. That reaches back
into the instance before; the first instance of a block, behind which others lie, takes it as 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from intaglio.dialects.formula import Formula
from intaglio.dialects.isa.queues import COUNTERS, QUEUES, reductions_of


class Times(NamedTuple):
    """What an instruction takes, in cycles from its start."""

    duration: Formula
    pace: Formula | None = None
    reduces: Formula | None = None


@dataclass(frozen=True)
class Issue:
    """What the timeline needs to know of an instruction."""

    queue: str
    waits: Mapping[str, int]
    duration: Formula
    pace: Formula | None = None
    """Cycles until the queue is free for the next one; None: when this one has finished."""
    reduces: Formula | None = None
    """Cycles from the start to its reduction; None: it counts for none."""


@dataclass(frozen=True)
class Block:
    """Instructions that run once for each of `instances`, one instance after the other."""

    name: str
    issues: Sequence[Issue]
    instances: int


At = tuple[int, int, int]
"""An instruction instance: block, instance, instruction."""


class Span(NamedTuple):
    """Start and finish of an instruction instance, one element a position.

    `free` is when its queue is free for the next one, `left` when its reduction is there (None: it
    leaves none), `out` when a token that it chooses is at the port (None: it chooses none).
    """

    block: int
    instance: int
    instruction: int
    start: npt.NDArray[np.int64]
    finish: npt.NDArray[np.int64]
    free: npt.NDArray[np.int64]
    left: npt.NDArray[np.int64] | None = None
    out: npt.NDArray[np.int64] | None = None

    @property
    def at(self) -> At:
        """Which instruction instance it is."""
        return self.block, self.instance, self.instruction

    @property
    def end(self) -> npt.NDArray[np.int64]:
        """When all of it is there."""
        end = self.finish
        for one in (self.left, self.out):
            if one is not None:
                end = np.maximum(end, one)
        return end


Cycles = npt.NDArray[np.int64]


class _There(NamedTuple):
    """A result: when it can be read, and when a beat that is told ahead may start for it."""

    at: Cycles
    ahead: Cycles


@dataclass(frozen=True)
class _Taken:
    """The formulas of an `Issue`, evaluated."""

    duration: Cycles | int
    pace: Cycles | int | None
    reduces: Cycles | int | None

    @staticmethod
    def of(issued: Issue, given: Mapping[str, Cycles | int]) -> _Taken:
        return _Taken(
            issued.duration(**given),
            None if issued.pace is None else issued.pace(**given),
            None if issued.reduces is None else issued.reduces(**given),
        )


def awaited(base: int, count: int, instance: int) -> int:
    """How many results of a counter a wait needs.

    Args:
        base: those of before the block instance.
        count: of the wait.
        instance: the number of the instance.
    """
    return base + (count if instance else max(count, 0))


def reach(issues: Sequence[Issue]) -> dict[str, int]:
    """Of each counter how many of its last results before an instance its waits leave out."""
    found = dict.fromkeys(COUNTERS, 0)
    for one in issues:
        for counter, count in one.waits.items():
            found[counter] = max(found[counter], -count)
    return found


Ranks = Mapping[At, int]
"""The active rank at the site of an instruction instance, not 0."""


def simulate(
    blocks: Sequence[Block],
    issue: int,
    positions: npt.ArrayLike,
    ranks: Ranks | None = None,
) -> Iterator[Span]:
    """Yields every instruction instance in program order with its start and finish cycles.

    Args:
        blocks: the program, in order.
        issue: cycles between the last condition of an instruction and its start.
        positions: the positions to evaluate at, at once.
        ranks: the active adapter's; others are 0. None without adapter.
    """
    where = np.atleast_1d(np.asarray(positions, dtype=np.int64))
    given = {"rank": 0, "tokens": where + 1}
    zero = np.zeros_like(where)
    free = dict.fromkeys(QUEUES, zero)
    there: dict[str, list[_There]] = {counter: [] for counter in COUNTERS}
    """The last ones of earlier instances, and those of the current one: nobody waits for others."""
    for block_number, block in enumerate(blocks):
        fixed = [_Taken.of(issued, given) for issued in block.issues]
        back = reach(block.issues)
        for instance in range(block.instances):
            there = {counter: done[-1 - back[counter] :] for counter, done in there.items()}
            base = {counter: len(done) for counter, done in there.items()}
            for number, issued in enumerate(block.issues):
                rank = ranks.get((block_number, instance, number), 0) if ranks else 0
                taken = _Taken.of(issued, {**given, "rank": rank}) if rank else fixed[number]
                start = free[issued.queue]
                flows = taken.pace is not None
                if flows and start is zero:
                    # The first of its queue. The others come after it.
                    start = zero + issue
                for counter, count in issued.waits.items():
                    if (last := awaited(base[counter], count, instance)) > 0:
                        done = there[counter][last - 1]
                        start = np.maximum(start, done.ahead if flows else done.at)
                if not flows:
                    start = start + issue
                finish = start + taken.duration
                ahead = finish if flows else finish + issue
                there[issued.queue].append(_There(finish, ahead))
                left = None if taken.reduces is None else start + taken.reduces
                if left is not None:
                    there[reductions_of(issued.queue)].append(_There(left, left))
                free[issued.queue] = finish if taken.pace is None else start + taken.pace
                yield Span(block_number, instance, number, start, finish, free[issued.queue], left)


def tables(
    blocks: Sequence[Block], issue: int, positions: npt.ArrayLike
) -> list[tuple[Cycles, Cycles]]:
    """Of each block the starts and finishes, int64 [instructions, instances, positions].

    Args:
        blocks: the program, in order.
        issue: as in `simulate`.
        positions: the positions to evaluate at.
    """
    count = np.size(positions)
    found = [
        (np.zeros(shape, np.int64), np.zeros(shape, np.int64))
        for shape in ((len(one.issues), one.instances, count) for one in blocks)
    ]
    for span in simulate(blocks, issue, positions):
        starts, finishes = found[span.block]
        starts[span.instruction, span.instance] = span.start
        finishes[span.instruction, span.instance] = span.finish
    return found
