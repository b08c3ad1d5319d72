"""What is proven of masks: every proof is compared with the mask written out in numbers."""

from __future__ import annotations

import numpy as np
import pytest

from intaglio.lowering.onnx.known.evaluation import evaluate
from intaglio.lowering.onnx.known.expressions import (
    BATCH,
    PAST,
    SEQUENCE,
    TOTAL,
    expression,
    variable,
)
from intaglio.lowering.onnx.known.masks import window
from intaglio.lowering.onnx.known.simplification import apply
from intaglio.lowering.onnx.known.terms import TRUE, Apply, AtLeastZero, Count, Either, Number
from intaglio.lowering.onnx.values import Field, Refusal

ROW, COLUMN = variable("@2"), variable("@3")
DISTANCE = PAST + ROW - COLUMN
DIMS = (BATCH, expression(4), SEQUENCE, TOTAL)
MASK = (BATCH, expression(1), SEQUENCE, TOTAL)
CAUSAL = AtLeastZero(DISTANCE)


def near(width: int) -> AtLeastZero:
    return AtLeastZero(width - 1 - DISTANCE)


def both(*terms):
    found = terms[0]
    for term in terms[1:]:
        found = Apply("And", (found, term))
    return found


def added(term, low=-3.4e38, open_=0.0):
    return Apply("Where", (term, Number(open_, "FLOAT"), Number(low, "FLOAT")))


def mask(term, dims=MASK, dtype="BOOL"):
    return [(Field(dims, term, dtype), "the mask")]


def seen(terms, past, sequence):
    """Which tokens are seen, [sequence, past + sequence]."""
    total = past + sequence
    at = {
        "past": np.array(past),
        "sequence": np.array(sequence),
        "@2": np.arange(sequence)[:, None],
        "@3": np.arange(total)[None],
    }
    found = np.ones((sequence, total), bool)
    for term in terms:
        value = np.broadcast_to(evaluate(term, at), (sequence, total))
        found &= value if value.dtype == bool else value == 0
    return found


def banded(size, past, sequence):
    distance = past + np.arange(sequence)[:, None] - np.arange(past + sequence)[None]
    return (distance >= 0) & (distance < (size or 1 << 30))


@pytest.mark.parametrize(
    ("terms", "size"),
    [
        ([CAUSAL], 0),
        ([both(CAUSAL, near(3))], 3),
        ([CAUSAL, near(1)], 1),
        ([both(CAUSAL, near(5), near(4), TRUE)], 4),
        ([added(CAUSAL)], 0),
        ([added(both(CAUSAL, near(2)), low=-65504.0), CAUSAL], 2),
        ([Apply("Not", (Apply("Not", (CAUSAL,)),))], 0),
        ([Apply("Or", (both(CAUSAL, near(3)), both(CAUSAL, near(6))))], 6),
        (
            [
                Apply(
                    "Mul",
                    (
                        Apply("cast:FLOAT", (Apply("Not", (CAUSAL,)),)),
                        Number(-3.4e38, "FLOAT"),
                    ),
                )
            ],
            0,
        ),
        # Twice as far, for instance where positions are doubled.
        ([AtLeastZero(DISTANCE * 2 + 1)], 0),
    ],
)
def test_proofs(terms, size):
    masks = [one for term in terms for one in mask(term)]
    assert window(masks, DIMS, SEQUENCE) == size
    for past, sequence in ((0, 1), (0, 7), (5, 1), (4, 6)):
        assert np.array_equal(seen(terms, past, sequence), banded(size, past, sequence))


@pytest.mark.parametrize(
    ("terms", "words"),
    [
        ([TRUE], "later tokens"),
        ([near(4)], "later tokens"),
        ([AtLeastZero(DISTANCE - 1)], "does not see itself"),
        ([AtLeastZero(DISTANCE + 1)], "later tokens"),
        ([Apply("Or", (both(CAUSAL, near(2)), AtLeastZero(DISTANCE - 5)))], "not all of those"),
        ([AtLeastZero(ROW - COLUMN)], "the index of axis 2, the index of axis 3"),
        ([both(CAUSAL, AtLeastZero(COLUMN - 2))], "the index of axis 3"),
        ([both(CAUSAL, AtLeastZero(variable("@1") - 1))], "the index of axis 1"),
        ([added(CAUSAL, low=-5.0)], "adds -5"),
        ([added(CAUSAL, open_=0.5)], "adds 0.5"),
        (
            [
                Apply(
                    "Add",
                    (
                        added(CAUSAL),
                        Apply(
                            "Mul",
                            (Apply("cast:FLOAT", (Count(DISTANCE),)), Number(-0.5, "FLOAT")),
                        ),
                    ),
                )
            ],
            "its value depends on positions",
        ),
    ],
)
def test_refusals(terms, words):
    dims = (BATCH, expression(4), SEQUENCE, TOTAL)
    with pytest.raises(Refusal, match=words) as caught:
        window([one for term in terms for one in mask(term, dims)], DIMS, SEQUENCE)
    assert "the mask" in caught.value.reason


def test_without_a_mask_only_one_token_at_a_time_is_causal():
    with pytest.raises(Refusal, match="attention is causal: tokens see later tokens"):
        window([], DIMS, SEQUENCE)
    one = expression(1)
    dims = (one, expression(4), one, PAST + 1)
    assert window([], dims, one) == 0
    recent = apply("Less", [Count(PAST - COLUMN), Count(expression(6))], {})
    assert window(mask(recent, (one, one, one, PAST + 1)), dims, one) == 6


def test_a_graph_for_prompts_or_single_tokens():
    # Its mask [S, S] is right without a past, or for one token.
    local = AtLeastZero(ROW - COLUMN)
    good = Either((("past", 0, local), ("sequence", 1, TRUE)))
    assert window(mask(good), DIMS, SEQUENCE) == 0
    short = Either((("past", 0, both(local, AtLeastZero(2 - ROW + COLUMN))), ("sequence", 1, TRUE)))
    with pytest.raises(Refusal, match="than it does token by token"):
        window(mask(short), DIMS, SEQUENCE)


def test_shapes():
    with pytest.raises(Refusal, match="does not fit"):
        window(mask(CAUSAL, (BATCH, expression(3), SEQUENCE, TOTAL)), DIMS, SEQUENCE)
    with pytest.raises(Refusal, match="enlarges"):
        window(mask(CAUSAL, (expression(2), *MASK)), DIMS, SEQUENCE)
