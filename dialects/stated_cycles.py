"""Whether the start and finish cycles that a program states follow from its durations and waits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from intaglio.dialects import timeline
from intaglio.dialects.timeline import At

Stated = tuple[Sequence[int] | None, Sequence[int] | None]
"""Starts and finishes of an instruction: instance after instance, and in each the positions. None
where they are not stated."""


@dataclass(frozen=True)
class Contradiction:
    """A stated cycle that does not follow.

    Attributes:
        at: the instruction instance.
        what: `start` or `finish`.
        position: at which it is stated.
        stated: the cycle.
        follows: the cycle that follows from the program.
    """

    at: At
    what: str
    position: int
    stated: int
    follows: int


def first_contradiction(
    blocks: Sequence[timeline.Block],
    issue: int | None,
    positions: Sequence[int],
    stated: Sequence[Sequence[Stated]],
) -> Contradiction | None:
    """The first stated cycle, in program order, that does not follow; None: all do.

    Args:
        blocks: the program, in order.
        issue: cycles between the last condition of an instruction and its start; None: not known,
            then a finish is looked at where the start is stated too, and starts are not.
        positions: at which cycles are stated.
        stated: of each block's instructions.

    Raises:
        ValueError: an instruction states too few or too many cycles; says how many it should.
    """
    for block, own in zip(blocks, stated, strict=True):
        for cycles in (cycles for one in own for cycles in one):
            wanted = block.instances * len(positions)
            if cycles is not None and len(cycles) != wanted:
                raise ValueError(
                    f"states {len(cycles)} cycles for {block.instances} instances at "
                    f"{len(positions)} positions"
                )
    if not any(cycles is not None for own in stated for one in own for cycles in one):
        return None
    for at, what, cycles, follows in _pairs(blocks, issue, positions, stated):
        wrong = np.flatnonzero(cycles != follows)
        if wrong.size:
            where = int(wrong[0])
            return Contradiction(
                at, what, int(positions[where]), int(cycles[where]), int(follows[where])
            )
    return None


def _pairs(
    blocks: Sequence[timeline.Block],
    issue: int | None,
    positions: Sequence[int],
    stated: Sequence[Sequence[Stated]],
) -> Iterator[tuple[At, str, npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """Stated cycles beside those that follow, a row for each instance."""
    count = len(positions)
    rows = {
        (block, number, what): np.asarray(cycles, np.int64).reshape(-1, count)
        for block, own in enumerate(stated)
        for number, one in enumerate(own)
        for what, cycles in zip(("start", "finish"), one, strict=True)
        if cycles is not None
    }
    for span in timeline.simulate(blocks, issue or 0, positions):
        at = span.block, span.instance, span.instruction
        start = rows.get((span.block, span.instruction, "start"))
        finish = rows.get((span.block, span.instruction, "finish"))
        if start is not None and issue is not None:
            yield at, "start", start[span.instance], span.start
        if finish is not None:
            if issue is not None:
                yield at, "finish", finish[span.instance], span.finish
            elif start is not None:
                taken = span.finish - span.start
                yield at, "finish", finish[span.instance], start[span.instance] + taken
