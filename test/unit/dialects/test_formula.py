"""Formulas: evaluation, text, folding."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from intaglio.dialects.formula import (
    RANK,
    TOKENS,
    Constant,
    Formula,
    ceildiv,
    constant,
    floordiv,
    maximum,
    minimum,
    parse,
)

VALUES = st.integers(-50, 50)
LEAVES = st.one_of(st.just(TOKENS), st.just(RANK), VALUES.map(constant))


def _grown(inner: st.SearchStrategy[Formula]) -> st.SearchStrategy[Formula]:
    divisor = st.integers(1, 9)
    return st.one_of(
        st.builds(lambda a, b: a + b, inner, inner),
        st.builds(lambda a, b: a * b, inner, inner),
        st.builds(lambda a, n: a + n, inner, VALUES),
        st.builds(lambda a, n: n * a, inner, VALUES),
        st.builds(ceildiv, inner, divisor),
        st.builds(floordiv, inner, divisor),
        st.builds(minimum, inner, inner),
        st.builds(maximum, inner, inner),
    )


FORMULAS = st.recursive(LEAVES, _grown, max_leaves=8)


def by_python(text: str, tokens: int, rank: int) -> int:
    """The text as Python reads it."""
    names = {
        "tokens": tokens,
        "rank": rank,
        "ceildiv": lambda a, b: math.ceil(a / b),
        "floordiv": lambda a, b: math.floor(a / b),
        "min": min,
        "max": max,
    }
    return eval(text, {"__builtins__": {}}, names)


@given(FORMULAS, st.integers(1, 300), st.integers(0, 64))
def test_the_text_means_the_formula(formula: Formula, tokens: int, rank: int) -> None:
    value = int(formula(tokens=tokens, rank=rank))
    assert by_python(str(formula), tokens, rank) == value
    read = parse(str(formula))
    assert int(read(tokens=tokens, rank=rank)) == value
    assert str(parse(str(read))) == str(read)


@given(FORMULAS)
def test_positions_are_evaluated_at_once(formula: Formula) -> None:
    tokens = np.arange(1, 20)
    together = np.broadcast_to(formula(tokens=tokens, rank=4), tokens.shape)
    assert together.tolist() == [int(formula(tokens=int(t), rank=4)) for t in tokens]


@given(FORMULAS)
def test_variables_are_those_that_evaluation_needs(formula: Formula) -> None:
    given_values = dict.fromkeys(formula.variables, 7)
    formula(**given_values)
    for name in formula.variables:
        with pytest.raises(KeyError):
            formula(**{n: v for n, v in given_values.items() if n != name})


def test_constants_are_folded_and_collected() -> None:
    assert constant(2) + 3 == Constant(5)
    assert str(1 + (TOKENS + 2) + 3 * constant(4)) == "15 + tokens"
    assert 1 * TOKENS == TOKENS
    assert str(TOKENS * 0) == "0"
    assert ceildiv(TOKENS, 1) == TOKENS
    assert ceildiv(9, 2) == Constant(5)
    assert floordiv(9, 2) == Constant(4)
    assert minimum(3, 4) == Constant(3)
    assert maximum(3, 4) == Constant(4)
    assert str(2 * (TOKENS + 1)) == "2 * (1 + tokens)"


def test_a_formula_keeps_its_structure_through_text() -> None:
    formula = 4 + 2 * ceildiv(8 * TOKENS, 256) + maximum(RANK, 3) + -1 * floordiv(TOKENS, 2)
    assert parse(str(formula)) == formula


@pytest.mark.parametrize(
    "text",
    [
        "",
        "tokens -",
        "tokens - 1",
        "tokens / 2",
        "-tokens",
        "position",
        "1.5",
        "'tokens'",
        "ceildiv(tokens)",
        "max(1, 2, 3)",
        "abs(tokens, 1)",
        "min(a=1, b=2)",
        "tokens if rank else 1",
        "__import__('os')",
    ],
)
def test_what_is_no_formula(text: str) -> None:
    with pytest.raises(ValueError, match="not a formula"):
        parse(text)
