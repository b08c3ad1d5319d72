"""Computes formulas of elements with numpy, in the arithmetic of their ONNX types."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from intaglio.lowering.onnx.graph.model import Array, widen
from intaglio.lowering.onnx.known.expressions import Expression, expression
from intaglio.lowering.onnx.known.functions import FUNCTIONS
from intaglio.lowering.onnx.known.terms import (
    Apply,
    AtLeastZero,
    Count,
    Either,
    Lookup,
    NoProof,
    Number,
    Pieces,
    Reduced,
    Term,
)

FIELD_TYPES: dict[str, type[np.generic]] = {
    "FLOAT": np.float32,
    "FLOAT16": np.float16,
    "BFLOAT16": np.float32,
    "DOUBLE": np.float64,
    "INT64": np.int64,
    "INT32": np.int64,
    "BOOL": np.bool_,
}
"""How elements of a type are computed; bfloat16 is rounded after each cast."""


def _round_bfloat16(x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    # A single number is an array of one element by now.
    return (rounded & np.uint32(0xFFFF0000)).view(np.float32).reshape(np.shape(x))


def as_type(x: Array, dtype: str) -> Array:
    """Numbers cast as ONNX Cast does."""
    if dtype == "BOOL":
        return x != 0
    if dtype == "BFLOAT16":
        return _round_bfloat16(np.asarray(x, np.float32))
    with np.errstate(all="ignore"):
        if FIELD_TYPES[dtype] is np.int64 and x.dtype.kind == "f":
            x = np.trunc(x)
        return x.astype(FIELD_TYPES[dtype])


Environment = Mapping[str, npt.NDArray[np.int64]]


def evaluate(term: Term, environment: Environment, *, clip: bool = False) -> Array:
    """The elements for arrays of values of the variables (broadcast against each other).

    With `clip`, indices outside of a constant read its edge: such elements are not chosen later.

    Raises:
        NoProof: a variable has no value.
    """
    match term:
        case Number():
            return np.asarray(term.value, FIELD_TYPES[term.dtype])
        case Count():
            return _polynomial(term.value, environment)
        case AtLeastZero():
            return _polynomial(term.value, environment) >= 0
        case Lookup():
            array = term.tensor.stored()
            array = widen(array) if term.tensor.dtype == "BFLOAT16" else array
            indices = [evaluate(i, environment, clip=clip) for i in term.indices]
            if clip:
                pairs = zip(indices, term.shape, strict=True)
                indices = [np.clip(i, 0, n - 1) for i, n in pairs]
            try:
                return np.asarray(array.reshape(term.shape)[tuple(indices)])
            except IndexError as error:
                raise NoProof(f"it reads outside of '{term.tensor.name}'") from error
        case Apply():
            args = [evaluate(a, environment, clip=clip) for a in term.args]
            if term.op.startswith("cast:"):
                return as_type(args[0], term.op.removeprefix("cast:"))
            with np.errstate(all="ignore"):
                return np.asarray(FUNCTIONS[term.op](*args))
        case Pieces():
            return _joined(term, environment)
        case Reduced():
            raise NoProof("it is a sum or maximum over tokens")
        case Either():
            raise NoProof("it depends on the lengths")


def _polynomial(value: Expression, environment: Environment) -> npt.NDArray[np.int64]:
    total = np.zeros((), np.int64)
    for key, factor in value.terms.items():
        product = np.asarray(factor, np.int64)
        for name in key:
            if name not in environment:
                raise NoProof(f"it depends on {_named(name)}")
            product = product * environment[name]
        total = total + product
    return np.asarray(total)


def _named(name: str) -> str:
    if name in ("batch", "sequence", "past"):
        return f"the length '{name}'"
    return f"the index along axis {name[1:]}" if name.startswith("@") else f"'{name}'"


def _joined(term: Pieces, environment: Environment) -> Array:
    index = _polynomial(term.index, environment)
    conditions: list[Array] = []
    values: list[Array] = []
    end = expression(0)
    for size, part in term.parts:
        end = end + size
        conditions.append(index < _polynomial(end, environment))
        values.append(evaluate(part, environment, clip=True))
    shape = np.broadcast_shapes(*(v.shape for v in (*conditions, *values)))
    chosen = np.select(
        [np.broadcast_to(c, shape) for c in conditions],
        [np.broadcast_to(v, shape) for v in values],
    )
    return chosen.astype(values[0].dtype)
