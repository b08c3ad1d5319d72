"""Which values may lie in the same rows of a memory, and rows for them.

Two values may share rows when neither is written while the other is still to be read, in the order
of the program, and when the waits that the program has order what both do, as they would have to if
it stated the same bytes for both (`dialects/hazards.py`). So values that share change no wait and
no cycle.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set

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
    apart: dict[str, set[str]] = {name: set() for name in names}
    touches = [
        [
            (
                [n for n in one.reads if n in names],
                [n for n in one.writes if n in names],
                # The first part of a value is written first.
                {n for n in one.writes if n in names and not one.parts.get(n, (0, 0))[0]},
            )
            for one in block
        ]
        for block in accesses
    ]
    queues = [[QUEUES.index(i.queue) for i in block.issues] for block in blocks]
    nothing = [0] * len(QUEUES)
    issued = list(nothing)
    read = {name: list(nothing) for name in names}
    written = {name: list(nothing) for name in names}
    lost: dict[str, set[str]] = {name: set(names) for name in names}
    """Buffers that were written since this one was; before a token none of its values is there."""
    for (block, _, instruction), clock in clocks(blocks):
        own = queues[block][instruction]
        issued[own] += 1
        reads, writes, begun = touches[block][instruction]
        if not (reads or writes):
            continue
        for name in reads:
            for other in names - {name}:
                if other in lost[name] or not _finished(written[other], clock, own):
                    _part(apart, name, other)
        for name in writes:
            for other in names - {name}:
                if (
                    other in reads
                    or other in writes
                    or not _finished(written[other], clock, own)
                    or not _finished(read[other], clock, own)
                ):
                    _part(apart, name, other)
                lost[other].add(name)
            if name in begun:
                lost[name].clear()
        for name in reads:
            read[name][own] = issued[own]
        for name in writes:
            written[name][own] = issued[own]
    return apart


def _finished(last: Sequence[int], clock: Sequence[int], own: int) -> bool:
    """Whether the last accesses of all queues have finished for certain."""
    return all(number <= clock[queue] or queue == own for queue, number in enumerate(last))


def _part(apart: dict[str, set[str]], one: str, other: str) -> None:
    apart[one].add(other)
    apart[other].add(one)


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
