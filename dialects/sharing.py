"""Which values may lie in the same rows of a memory, and rows for them.

Two values may share rows when neither is written while the other is still to be read, in the order
of the program, and when the waits that the program has order what both do, as they would have to if
it stated the same bytes for both (`dialects/hazards.py`). So values that share change no wait and
no cycle.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass

from intaglio.dialects import timeline
from intaglio.dialects.clocks import clocks
from intaglio.dialects.hazards import Access
from intaglio.dialects.isa.queues import QUEUES


def kept_apart(
    blocks: Sequence[timeline.Block], accesses: Sequence[Sequence[Access]], names: Set[str]
) -> dict[str, set[str]]:
    """For each of some buffers those of the others that may not share rows with it.

    Args:
        blocks: the program, in order; blocks that are left out for some tokens stand at its end.
        accesses: of each block's instructions.
        names: the buffers; each is written and read by its name alone, whole or part after part.
    """
    order = sorted(names)
    of = {name: index for index, name in enumerate(order)}
    touches = [[_Touch.of(one, of) for one in block] for block in accesses]
    queues = [[QUEUES.index(i.queue) for i in block.issues] for block in blocks]
    issued = [0] * len(QUEUES)
    read, written = ([_Last() for _ in QUEUES] for _ in range(2))
    # Sets of buffers are bits of a number, since a token has thousands of beats.
    apart = [0] * len(order)
    lost = [(1 << len(order)) - 1] * len(order)
    """Buffers that were written since this one was; before a token none of its values is there."""
    for (block, _, instruction), clock in clocks(blocks):
        own = queues[block][instruction]
        issued[own] += 1
        touch = touches[block][instruction]
        if not (touch.reads or touch.writes):
            continue
        finished = list(clock[: len(QUEUES)])
        finished[own] = issued[own]
        in_writing = _later(written, finished)
        for index in touch.reads:
            apart[index] |= lost[index] | in_writing
        if touch.writes:
            in_use = in_writing | _later(read, finished) | _bits((*touch.reads, *touch.writes))
            for index in touch.writes:
                apart[index] |= in_use
            newer = _bits(touch.writes)
            lost = [others | newer for others in lost]
            for index in touch.begun:
                lost[index] = 0
        read[own].take(touch.reads, issued[own])
        written[own].take(touch.writes, issued[own])
    found: dict[str, set[str]] = {name: set() for name in order}
    for one, others in enumerate(apart):
        for other in range(len(order)):
            if others >> other & 1 and other != one:
                found[order[one]].add(order[other])
                found[order[other]].add(order[one])
    return found


class _Last:
    """Of a queue the last instruction that touched each buffer."""

    def __init__(self) -> None:
        self._numbers: dict[int, int] = {}
        """By buffer, in the order of the instructions."""

    def take(self, buffers: Iterable[int], number: int) -> None:
        """Takes an instruction, which comes after all before."""
        for one in buffers:
            self._numbers.pop(one, None)
            self._numbers[one] = number

    def after(self, number: int) -> int:
        """The buffers that an instruction behind this one touched, as bits."""
        found = 0
        for one, last in reversed(self._numbers.items()):
            if last <= number:
                break
            found |= 1 << one
        return found


def _bits(buffers: Iterable[int]) -> int:
    found = 0
    for one in buffers:
        found |= 1 << one
    return found


def _later(last: Sequence[_Last], finished: Sequence[int]) -> int:
    """What instructions touched of which it is not certain that they have finished, as bits."""
    found = 0
    for of, number in zip(last, finished, strict=True):
        found |= of.after(number)
    return found


@dataclass(frozen=True)
class _Touch:
    """Numbers of the buffers that an instruction reads, writes, and writes the first part of."""

    reads: list[int]
    writes: list[int]
    begun: list[int]

    @classmethod
    def of(cls, access: Access, numbers: Mapping[str, int]) -> _Touch:
        writes = [name for name in access.writes if name in numbers]
        return cls(
            [numbers[name] for name in access.reads if name in numbers],
            [numbers[name] for name in writes],
            # The first part of a value is written first.
            [numbers[name] for name in writes if not access.parts.get(name, (0, 0))[0]],
        )


def rows_for(sizes: Mapping[str, int], apart: Mapping[str, Set[str]]) -> tuple[dict[str, int], int]:
    """The first row of each value, and how many rows there are: first fit in the given order.

    Args:
        sizes: rows of each value.
        apart: for each value those that may not share rows with it.
    """
    first: dict[str, int] = {}
    for name, size in sizes.items():
        row = 0
        for begin, end in sorted(_taken(first, sizes, apart[name])):
            if row + size <= begin:
                break
            row = max(row, end)
        first[name] = row
    return first, max((row + sizes[name] for name, row in first.items()), default=0)


def _taken(
    first: Mapping[str, int], sizes: Mapping[str, int], others: Set[str]
) -> Iterator[tuple[int, int]]:
    for name, row in first.items():
        if name in others:
            yield row, row + sizes[name]
