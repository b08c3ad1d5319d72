"""Formulas of positions: what is simplified, and that what is computed stays the same."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from intaglio.lowering.onnx.known.evaluation import evaluate
from intaglio.lowering.onnx.known.expressions import (
    BATCH,
    PAST,
    SEQUENCE,
    TOTAL,
    Expression,
    expression,
    is_nonnegative,
    variable,
)
from intaglio.lowering.onnx.known.simplification import apply, pieces, replace_index, substitute
from intaglio.lowering.onnx.known.terms import (
    FALSE,
    TRUE,
    Apply,
    AtLeastZero,
    Count,
    NoProof,
    Number,
    Pieces,
    Reduced,
    atoms,
    count,
    variables,
)

ROW, COLUMN = variable("@0"), variable("@1")
RANGES = {"@0": SEQUENCE - 1, "@1": TOTAL - 1}


@pytest.mark.parametrize(
    ("value", "proven"),
    [
        (PAST, True),
        (SEQUENCE - 1, True),
        (SEQUENCE - 2, False),
        (PAST * BATCH + 3, True),
        (TOTAL - 1 - COLUMN, True),
        (PAST + ROW, True),
        (PAST - COLUMN, False),
        (TOTAL - PAST - 1 - ROW, True),
        (ROW * ROW, False),
        (-expression(1), False),
        (variable("@9"), False),
    ],
)
def test_what_is_proven_to_be_nonnegative(value, proven):
    assert is_nonnegative(value, RANGES) == proven


@given(st.integers(0, 3), st.integers(1, 3), st.integers(-4, 4), st.integers(-4, 4))
def test_no_proof_is_wrong(past, sequence, a, b):
    value = PAST * a + SEQUENCE * b + ROW - COLUMN + 2
    if is_nonnegative(value, RANGES):
        for row in range(sequence):
            for column in range(past + sequence):
                at = {"past": past, "sequence": sequence, "@0": row, "@1": column}
                found = value.substitute({k: expression(v) for k, v in at.items()})
                assert found.constant is not None and found.constant >= 0


def test_division_by_sums():
    whole = BATCH * TOTAL * 12
    assert whole // TOTAL == BATCH * 12
    assert whole // (TOTAL * 4) == BATCH * 3
    with pytest.raises(ValueError, match="divide"):
        whole // (PAST + 2)
    with pytest.raises(ValueError, match="divided by 0"):
        whole // Expression(0)


def test_comparisons_are_decided():
    row, column = Count(ROW), Count(COLUMN)
    assert apply("Less", [column, Count(TOTAL)], RANGES) == TRUE
    assert apply("GreaterOrEqual", [row, Count(SEQUENCE)], RANGES) == FALSE
    assert apply("Equal", [row, count(-1)], RANGES) == FALSE
    causal = apply("LessOrEqual", [column, Count(PAST + ROW)], RANGES)
    assert causal == AtLeastZero(PAST + ROW - COLUMN)
    assert apply("Not", [apply("Not", [causal], RANGES)], RANGES) == causal
    assert apply("And", [TRUE, causal], RANGES) == causal
    assert apply("Or", [TRUE, causal], RANGES) == TRUE
    cast = apply("cast:FLOAT", [causal], RANGES)
    assert apply("cast:BOOL", [cast], RANGES) == causal
    assert apply("Where", [FALSE, cast, Number(2.0, "FLOAT")], RANGES) == Number(2.0, "FLOAT")


def test_a_row_with_a_visible_token_has_a_sum_of_at_least_one():
    causal = AtLeastZero(PAST + ROW - variable("#1"))
    total = Reduced("ReduceSum", "#1", TOTAL, Apply("cast:FLOAT", (causal,)))
    assert apply("Less", [total, Number(1.0, "FLOAT")], RANGES) == FALSE
    assert apply("Greater", [total, Number(0.0, "FLOAT")], RANGES) == TRUE
    future = AtLeastZero(variable("#1") - PAST - SEQUENCE - 3)
    none = Reduced("ReduceSum", "#1", TOTAL, Apply("cast:FLOAT", (future,)))
    assert isinstance(apply("Less", [none, Number(1.0, "FLOAT")], RANGES), Apply)


def test_pieces_are_chosen_where_the_index_is_known():
    parts = [(SEQUENCE, Count(ROW)), (PAST, count(0))]
    assert pieces(ROW, parts, RANGES) == Count(ROW)
    assert pieces(ROW + SEQUENCE, parts, RANGES) == count(0)
    assert isinstance(pieces(COLUMN, parts, RANGES), Pieces)


def test_computed_in_the_types_of_the_graph():
    angle = apply("Mul", [apply("cast:FLOAT", [Count(PAST)], {}), Number(0.1, "FLOAT")], {})
    found = evaluate(apply("Cos", [angle], {}), {"past": np.arange(1000)})
    wanted = np.cos(np.arange(1000).astype(np.float32) * np.float32(0.1))
    assert found.dtype == np.float32 and np.array_equal(found, wanted)
    with pytest.raises(NoProof, match="the length 'batch'"):
        evaluate(Count(BATCH), {})


def test_replaced_indices_compute_the_same():
    term = Apply("Mul", (Count(ROW * 2 + COLUMN + 1), Count(ROW)))
    half = apply("Div", [Count(variable("@5")), count(2)], {})
    found = replace_index(term, "@0", half, {})
    assert variables(found) == {"@5", "@1"}
    at = np.arange(10)
    wanted = (at // 2 * 2 + 3 + 1) * (at // 2)
    assert np.array_equal(evaluate(found, {"@5": at, "@1": np.array(3)}), wanted)
    moved = substitute(found, {"@1": expression(3)})
    assert np.array_equal(evaluate(moved, {"@5": at}), wanted)


def test_only_comparisons_decide_a_mask():
    causal = AtLeastZero(PAST + ROW - COLUMN)
    mask = apply("Where", [causal, Number(0.0, "FLOAT"), Number(-1e30, "FLOAT")], RANGES)
    assert atoms(mask) == {PAST + ROW - COLUMN}
    slope = Apply("Mul", (Apply("cast:FLOAT", (Count(COLUMN),)), Number(0.5, "FLOAT")))
    with pytest.raises(NoProof, match="its value depends on positions"):
        atoms(slope)
