"""Stated cycles: those of the timeline pass, any other is named with what follows."""

from __future__ import annotations

import random

import pytest

from intaglio.dialects import formula
from intaglio.dialects.stated_cycles import Stated, first_contradiction
from intaglio.dialects.timeline import Block, Issue, simulate

BLOCKS = [
    Block("a", [Issue("vector", {}, formula.constant(7))], 1),
    Block(
        "b",
        [
            Issue("matrix", {"vector": 0}, formula.parse("3 + tokens")),
            Issue("vector", {"matrix": 1}, formula.constant(2)),
        ],
        3,
    ),
]
POSITIONS = [0, 5, 9]
ISSUE = 2


def stated() -> list[list[list[list[int]]]]:
    """The cycles of the timeline, by block, instruction, and start or finish."""
    cycles: list[list[list[list[int]]]] = [[[[], []] for _ in b.issues] for b in BLOCKS]
    for span in simulate(BLOCKS, ISSUE, POSITIONS):
        start, finish = cycles[span.block][span.instruction]
        start += [int(c) for c in span.start]
        finish += [int(c) for c in span.finish]
    return cycles


def as_stated(cycles: list[list[list[list[int]]]]) -> list[list[Stated]]:
    return [[(one[0], one[1]) for one in own] for own in cycles]


def test_what_follows_passes() -> None:
    assert first_contradiction(BLOCKS, ISSUE, POSITIONS, as_stated(stated())) is None
    assert first_contradiction(BLOCKS, None, POSITIONS, as_stated(stated())) is None
    nothing: list[list[Stated]] = [[(None, None) for _ in b.issues] for b in BLOCKS]
    assert first_contradiction(BLOCKS, ISSUE, POSITIONS, nothing) is None


@pytest.mark.parametrize("seed", range(12))
def test_any_other_cycle_is_named(seed: int) -> None:
    rng = random.Random(seed)
    cycles = stated()
    block = rng.randrange(2)
    number = rng.randrange(len(BLOCKS[block].issues))
    half = rng.randrange(2)
    row = cycles[block][number][half]
    place = rng.randrange(len(row))
    right = row[place]
    row[place] += rng.choice([-3, -1, 1, 1000])
    found = first_contradiction(BLOCKS, ISSUE, POSITIONS, as_stated(cycles))
    assert found is not None
    assert found.at == (block, place // 3, number) and found.position == POSITIONS[place % 3]
    assert (found.what, found.stated, found.follows) == (
        ("start", "finish")[half],
        row[place],
        right,
    )
    # Without the latency of issues a start and its finish are still held against each other.
    assert first_contradiction(BLOCKS, None, POSITIONS, as_stated(cycles)) is not None


def test_too_few() -> None:
    cycles = stated()
    cycles[1][0][0].pop()
    with pytest.raises(ValueError, match="states 8 cycles for 3 instances at 3 positions"):
        _ = first_contradiction(BLOCKS, ISSUE, POSITIONS, as_stated(cycles))
