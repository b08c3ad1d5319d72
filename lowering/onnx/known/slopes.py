"""What is added to attention scores and falls with the distance: a slope of each head (ALiBi).

Softmax does not change when all scores of a query do alike, so exporters may add slope * key,
slope * (key - query), or either with lengths in it. All of these are the same slopes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from intaglio.lowering.onnx.known import fields
from intaglio.lowering.onnx.known.evaluation import evaluate
from intaglio.lowering.onnx.known.expressions import Dims
from intaglio.lowering.onnx.known.simplification import apply
from intaglio.lowering.onnx.known.terms import (
    Apply,
    Count,
    Lookup,
    NoProof,
    Number,
    Term,
    is_truth,
    variables,
)
from intaglio.lowering.onnx.values import Field, Refusal

Slopes = npt.NDArray[np.float64]

_POLYNOMIAL = frozenset({"Add", "Sub", "Mul", "Neg"})
_CASTS = frozenset({"cast:FLOAT", "cast:DOUBLE", "cast:INT64", "cast:INT32"})

_TOKENS = 6
"""Lengths that are tried, of the past and of the new tokens: more than the degree of any product
of two lengths or indices, so what holds for these holds for all."""


@dataclass(frozen=True)
class Split:
    """What is added to scores, apart.

    Attributes:
        slopes: for each head what a score loses for each token that its key lies before the query;
            None where nothing is linear.
        mask: the rest; None where nothing is left.
        moves: whether the query's own key gets something too: softmax does not see that, but a sink
            would.
    """

    slopes: Slopes | None
    mask: Field | None
    moves: bool = False


def split(mask: Field, dims: Dims, heads: int) -> Split:
    """What a field adds to scores, as slopes of the heads and a mask.

    Args:
        mask: what is added to scores, or says which are seen.
        dims: the shape of the scores, [..., queries, keys]; the axes before are batch and heads.
        heads: how many there are.
    """
    if is_truth(mask.term):
        return Split(None, mask)
    whole = Field(dims, Number(0.0, "FLOAT"), "FLOAT")
    try:
        joint, terms = fields.broadcast([mask, whole])
    except Refusal:
        # Whoever looks at the mask says what is wrong with it.
        return Split(None, mask)
    if joint != dims:
        return Split(None, mask)
    total: Slopes = np.zeros(heads)
    found, moves, rest = False, False, list[Term]()
    for term in _addends(terms[0]):
        line = _line(term, dims, heads)
        if line is None:
            rest.append(term)
        else:
            total, found, moves = total + line[0], True, moves or line[1]
    if not found:
        return Split(None, mask)
    left: Term | None = None
    for term in rest:
        left = term if left is None else apply("Add", [left, term], fields.ranges_of(dims))
    return Split(total, None if left is None else Field(dims, left, mask.dtype), moves)


def _addends(term: Term) -> Sequence[Term]:
    if isinstance(term, Apply) and term.op == "Add":
        return [part for one in term.args for part in _addends(one)]
    return [term]


def _is_polynomial(term: Term) -> bool:
    """Whether it is a polynomial of lengths and indices, with coefficients by head."""
    match term:
        case Count() | Number():
            return True
        case Lookup():
            return all(isinstance(index, Count) for index in term.indices)
        case Apply() if term.op in _POLYNOMIAL or term.op in _CASTS:
            return all(_is_polynomial(part) for part in term.args)
        case _:
            return False


def _lookups(term: Term) -> Sequence[Lookup]:
    if isinstance(term, Lookup):
        return [term]
    return [one for part in term.args for one in _lookups(part)] if isinstance(term, Apply) else []


def _line(term: Term, dims: Dims, heads: int) -> tuple[Slopes, bool] | None:
    """The slopes of what is added, where it is linear in the key and the same for all lengths, and
    whether the query's own key gets something."""
    if not _is_polynomial(term):
        return None
    lead = dims[:-2]
    if any(dim.constant is None for dim in lead):
        return None
    shape = tuple(dim.constant or 0 for dim in lead)
    if int(np.prod(shape)) != heads:
        return None
    of_heads = {f"@{axis}" for axis in range(len(shape))}
    if any(not variables(one) <= of_heads for one in _lookups(term)):
        return None
    found, moves = np.zeros(heads), False
    for past in range(_TOKENS):
        for sequence in range(1, _TOKENS):
            try:
                added = _values(term, shape, past, sequence)
            except NoProof:
                return None
            own = np.diagonal(added, past, -2, -1)
            moves = moves or bool(own.any())
            steps = np.diff(added, axis=-1).reshape(heads, -1)
            if not steps.size:
                continue
            if not found.any():
                found = steps[:, 0]
            # The products are of float32, by at most some tokens.
            scale = max(float(np.abs(found).max()), 1e-30)
            if not np.allclose(steps, found[:, None], rtol=0, atol=1e-5 * scale):
                return None
    return found, moves


def _values(term: Term, shape: Sequence[int], past: int, sequence: int) -> Slopes:
    """What is added, [*shape, queries, keys]."""
    sizes = (*shape, sequence, past + sequence)
    axes = np.meshgrid(*(np.arange(n) for n in sizes), indexing="ij", sparse=True)
    environment = {f"@{axis}": index.astype(np.int64) for axis, index in enumerate(axes)}
    for name, value in (("batch", 1), ("past", past), ("sequence", sequence)):
        environment[name] = np.asarray(value, np.int64)
    return np.broadcast_to(evaluate(term, environment), sizes).astype(np.float64)
