"""Results of a queue in its order: refused exactly where a simulation finds them in another one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from intaglio.dialects.formula import TOKENS, Formula, constant, maximum, parse
from intaglio.dialects.isa.queues import KV, MATRIX, VECTOR
from intaglio.dialects.overtaking import first_overtaking
from intaglio.dialects.timeline import Block, Issue, simulate


def beat(pace: int, duration: Formula | int, reduces: int | None = None) -> Issue:
    """A beat of the vector queue that waits for nothing."""
    made = constant(duration) if isinstance(duration, int) else duration
    left = None if reduces is None else constant(reduces)
    return Issue(VECTOR, {}, made, constant(pace), left)


def test_a_shorter_one_behind_a_longer_one() -> None:
    block = Block("layer", [beat(2, 9), beat(2, 6)], 1)
    found = first_overtaking([block], 16, 0)
    assert found is not None
    assert (found.earlier, found.later, found.what) == ((0, 0, 0), (0, 0, 1), "result")
    # Two in one cycle would count as one.
    assert first_overtaking([Block("layer", [beat(2, 9), beat(2, 7)], 1)], 16, 0) is not None
    assert first_overtaking([Block("layer", [beat(2, 9), beat(2, 8)], 1)], 16, 0) is None


def test_from_the_last_of_an_instance_to_the_first_of_the_next() -> None:
    issues = [beat(2, 4), beat(2, 9)]
    assert first_overtaking([Block("layer", issues, 1)], 16, 0) is None
    found = first_overtaking([Block("layer", issues, 2)], 16, 0)
    assert found is not None and (found.earlier, found.later) == ((0, 0, 1), (0, 1, 0))


def test_from_block_to_block_also_without_what_only_some_tokens_run() -> None:
    slow, head, quick = (
        Block(name, [one], 1)
        for name, one in (("a", beat(1, 9)), ("b", beat(9, 9)), ("c", beat(1, 2)))
    )
    assert first_overtaking([slow, head, quick], 16, 0) is None
    found = first_overtaking([slow, head, quick], 16, 0, [False, True, False])
    assert found is not None and (found.earlier, found.later) == ((0, 0, 0), (2, 0, 0))


def test_at_one_position_alone() -> None:
    longer = maximum(constant(0), TOKENS + -15) + 5
    block = Block("layer", [beat(2, longer), beat(2, 4)], 1)
    assert first_overtaking([block], 15, 0) is None
    assert first_overtaking([block], 16, 0) is not None


def test_reductions() -> None:
    block = Block("layer", [beat(2, 4, reduces=12), beat(2, 4), beat(2, 4, reduces=9)], 1)
    found = first_overtaking([block], 16, 0)
    assert found is not None and found.what == "reduction"
    assert (found.earlier[2], found.later[2]) == (0, 2)


def test_what_does_not_flow_ends_before_the_next() -> None:
    alone = Issue(KV, {}, constant(30))
    assert first_overtaking([Block("layer", [alone, Issue(KV, {}, constant(1))], 3)], 16, 0) is None


@given(
    st.lists(st.tuples(st.integers(1, 6), st.integers(1, 12), st.integers(0, 2)), max_size=8),
    st.integers(1, 3),
)
@settings(max_examples=200, deadline=None)
def test_what_is_accepted_comes_in_order(taken: list[tuple[int, int, int]], instances: int) -> None:
    """Whatever other queues do: the queue is fed as fast as it takes."""
    issues = [
        Issue((MATRIX, VECTOR)[kind > 0], {}, constant(duration), constant(pace))
        for pace, duration, kind in taken
    ]
    block = Block("layer", issues, instances)
    ordered = True
    for queue in (MATRIX, VECTOR):
        ends = [
            span.finish[0]
            for span in simulate([block], 2, [0])
            if issues[span.instruction].queue == queue
        ]
        ordered &= bool(np.all(np.diff(ends) > 0))
    assert (first_overtaking([block], 1, 0) is None) == ordered


@pytest.mark.parametrize("rank", [0, 3, 8])
def test_at_every_rank(rank: int) -> None:
    block = Block("layer", [beat(2, parse("5 + rank")), beat(2, 6)], 1)
    assert (first_overtaking([block], 4, rank) is None) == (5 + rank < 8)
