"""Which values may lie in the same rows of a memory, and rows for them.

Two values may share rows when neither is written while the other is still to be read, in the order
of the program, and when the waits that the program has order what both do, as they would have to if
it stated the same bytes for both (`dialects/hazards.py`). So values that share change no wait and
no cycle.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

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
    # Of each buffer and queue the last instruction that read and wrote it: arrays, since a token
    # has thousands of beats, and each is asked of all buffers.
    read, written = (np.zeros((len(order), len(QUEUES)), np.int64) for _ in range(2))
    apart = np.zeros((len(order), len(order)), np.bool_)
    lost: npt.NDArray[np.bool_] = np.ones_like(apart)
    """Buffers that were written since this one was; before a token none of its values is there."""
    for (block, _, instruction), clock in clocks(blocks):
        own = queues[block][instruction]
        issued[own] += 1
        touch = touches[block][instruction]
        if not (touch.reads or touch.writes):
            continue
        finished = np.array(clock[: len(QUEUES)])
        finished[own] = issued[own]
        in_writing: npt.NDArray[np.bool_] = np.any(written > finished, axis=1)
        for index in touch.reads:
            apart[index] |= lost[index] | in_writing
        if touch.writes:
            in_use = np.logical_or(in_writing, np.any(read > finished, axis=1))
            in_use[touch.reads] = in_use[touch.writes] = True
            for index in touch.writes:
                apart[index] |= in_use
                lost[:, index] = True
            lost[touch.begun] = False
        read[touch.reads, own] = issued[own]
        written[touch.writes, own] = issued[own]
    apart |= apart.T
    np.fill_diagonal(apart, False)
    return {name: {order[other] for other in np.flatnonzero(apart[of[name]])} for name in order}


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
