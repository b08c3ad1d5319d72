"""Whether the start and finish cycles that a program states follow from its durations and waits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from intaglio.dialects import timeline
from intaglio.dialects.timeline import At, Cycles

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
    wrong: list[Contradiction] = []
    tables = timeline.tables(blocks, issue or 0, positions)
    for block, (own, table) in enumerate(zip(stated, tables, strict=True)):
        for number, one in enumerate(own):
            for what, cycles, follows in _pairs(one, (table[0][number], table[1][number]), issue):
                instances, places = np.nonzero(cycles != follows)
                if instances.size:
                    instance, at = int(instances[0]), int(places[0])
                    found = int(cycles[instance, at]), int(follows[instance, at])
                    where = (block, instance, number), what, int(positions[at])
                    wrong.append(Contradiction(*where, *found))
    # Of one instance the start comes first, as it was found.
    return min(wrong, key=lambda one: one.at, default=None)


def _pairs(
    stated: Stated, table: tuple[Cycles, Cycles], issue: int | None
) -> Iterator[tuple[str, Cycles, Cycles]]:
    """Stated cycles of an instruction beside those that follow, a row for each instance."""
    start, finish = (
        None if cycles is None else np.asarray(cycles, np.int64).reshape(follows.shape)
        for cycles, follows in zip(stated, table, strict=True)
    )
    if issue is not None:
        if start is not None:
            yield "start", start, table[0]
        if finish is not None:
            yield "finish", finish, table[1]
    elif start is not None and finish is not None:
        yield "finish", finish, start + (table[1] - table[0])
