"""Tensors of positions and lengths: from constants and back, joint shapes, selected elements."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from intaglio.lowering.onnx.graph.model import FLOATS, Array, Node, Tensor
from intaglio.lowering.onnx.known import folding
from intaglio.lowering.onnx.known.evaluation import evaluate
from intaglio.lowering.onnx.known.expressions import (
    Dims,
    Expression,
    dims_text,
    expression,
    is_nonnegative,
    variable,
)
from intaglio.lowering.onnx.known.shapes import expanded_dims
from intaglio.lowering.onnx.known.simplification import substitute
from intaglio.lowering.onnx.known.terms import (
    Count,
    Either,
    Lookup,
    Number,
    Term,
    count,
    truth,
    variables,
)
from intaglio.lowering.onnx.values import SMALL, Field, Known, Refusal, Stored, Value, array_of

_LENGTHS = frozenset({"batch", "sequence", "past"})


def axis_index(axis: int) -> Expression:
    """The index along an axis."""
    return variable(f"@{axis}")


def ranges_of(dims: Dims) -> dict[str, Expression]:
    """The last index along each axis."""
    return {f"@{axis}": dim - 1 for axis, dim in enumerate(dims)}


# --- from constants and back ---------------------------------------------------------------------


def same_for_all_tokens(value: Field, name: str) -> Stored | None:
    """A field of floats that every token reads alike, as a constant; lengths become 1.

    Exporters expand a bias to the shape of what it is added to. None where an element depends on
    its place in the sequence, or on a length.
    """
    wanted = {f"@{axis}" for axis, dim in enumerate(value.dims) if dim.constant is not None}
    dims = tuple(dim.constant or 1 for dim in value.dims)
    if value.dtype not in FLOATS or not variables(value.term) <= wanted:
        return None
    if int(np.prod(dims, dtype=np.int64)) > SMALL:
        return None
    index = {
        f"@{axis}": np.arange(n).reshape((n,) + (1,) * (len(dims) - axis - 1))
        for axis, n in enumerate(dims)
    }
    array = np.broadcast_to(evaluate(value.term, index), dims)
    data = np.ascontiguousarray(array, np.float32)
    tensor = Tensor(name, "FLOAT", dims, lambda: data.reshape(-1).view(np.uint8))
    return Stored(tensor, dims)


def as_field(value: Value | None) -> Field | None:
    """A field, or a constant seen as one; None for anything else."""
    match value:
        case Field():
            return value
        case Known():
            return _known_field(value.array)
        case Stored():
            dims = tuple(expression(d) for d in value.dims)
            array = array_of(value)
            if array is not None and array.size and (array == array.reshape(-1)[0]).all():
                return Field(dims, scalar(array.reshape(-1)[0], value.tensor.dtype), _type(value))
            return Field(dims, _lookup(value), _type(value))
        case _:
            return None


def _type(value: Stored) -> str:
    if value.is_float or value.tensor.dtype == "BOOL":
        return value.tensor.dtype
    return "INT64"


def scalar(item: Expression | float, dtype: str) -> Term:
    """A number, truth value or length as a formula."""
    if isinstance(item, Expression):
        return Count(item)
    if dtype == "BOOL":
        return truth(bool(item))
    if dtype in FLOATS:
        return Number(float(item), dtype)
    return count(int(item))


def _lookup(value: Stored) -> Term:
    order = value.dims[::-1] if value.transposed else value.dims
    indices = [count(0) if d == 1 else Count(axis_index(i)) for i, d in enumerate(value.dims)]
    return Lookup(value.tensor, order, tuple(indices[::-1] if value.transposed else indices))


def _known_field(array: Array) -> Field | None:
    dims = tuple(expression(d) for d in array.shape)
    dtype = "BOOL" if array.dtype == np.bool_ else "INT64"
    flat = array.reshape(-1)
    if array.size and all(item == flat[0] for item in flat):
        return Field(dims, scalar(flat[0], dtype), dtype)
    if array.dtype == object:
        if any(isinstance(e, Expression) and e.constant is None for e in flat):
            return None
        constants = [e.constant if isinstance(e, Expression) else int(e) for e in flat]
        array = np.array([c or 0 for c in constants], np.int64).reshape(array.shape)
    stored = np.ascontiguousarray(array.astype(np.bool_ if dtype == "BOOL" else np.int64))
    tensor = Tensor("constant", dtype, stored.shape, lambda: stored.reshape(-1).view(np.uint8))
    return Field(dims, _lookup(Stored(tensor, stored.shape)), dtype)


def field(node: Node, dims: Dims, term: Term, dtype: str, i: int = 0) -> Value:
    """A field, or a constant when it is one of a small known shape."""
    ones = {f"@{a}": expression(0) for a, d in enumerate(dims) if d == 1}
    term = substitute(term, ones, ranges_of(dims))
    shape = [d.constant for d in dims]
    if any(n is None for n in shape):
        return Field(dims, term, dtype)
    found = tuple(int(n) for n in shape if n is not None)
    size = int(np.prod(found, dtype=np.int64))
    if size == 1 and isinstance(term, Count):
        array = np.empty(found, object)
        array.fill(term.value)
        return Known(array)
    if size > SMALL or isinstance(term, Either) or variables(term) & _LENGTHS:
        return Field(dims, term, dtype)
    index = {
        f"@{a}": np.arange(n).reshape((1,) * a + (n,) + (1,) * (len(found) - a - 1))
        for a, n in enumerate(found)
    }
    return folding.known(np.broadcast_to(evaluate(term, index), found), node, i)


def _aligned(value: Field, rank: int) -> tuple[Dims, Term]:
    """The field with axes of length 1 in front; its indices renamed."""
    shift = rank - len(value.dims)
    if not shift:
        return value.dims, value.term
    names = {f"@{a}": axis_index(a + shift) for a in range(len(value.dims))}
    ones = tuple(expression(1) for _ in range(shift))
    return (*ones, *value.dims), substitute(value.term, names, _renamed(value.dims, names))


def _renamed(dims: Dims, names: dict[str, Expression]) -> dict[str, Expression]:
    found: dict[str, Expression] = {}
    for a, dim in enumerate(dims):
        new = names.get(f"@{a}", axis_index(a))
        if len(new.variables) == 1:
            found[next(iter(new.variables))] = dim - 1
    return found


def broadcast(fields: Sequence[Field]) -> tuple[Dims, list[Term]]:
    """The joint shape of fields and their elements there.

    Raises:
        Refusal: the shapes do not fit.
    """
    rank = max(len(f.dims) for f in fields)
    aligned = [_aligned(f, rank) for f in fields]
    dims: list[Expression] = []
    for axis in range(rank):
        found = {d[axis] for d, _ in aligned} - {expression(1)}
        if len(found) > 1:
            shapes = " and ".join(dims_text(f.dims) for f in fields)
            raise Refusal(f"the shapes {shapes} do not fit each other")
        dims.append(found.pop() if found else expression(1))
    return tuple(dims), [term for _, term in aligned]


def expand(node: Node, value: Field, wanted: Dims) -> Value:
    """Expand: axes of length 1 are repeated."""
    dims = expanded_dims(value.dims, wanted)
    _, term = _aligned(value, len(dims))
    shift = len(dims) - len(wanted)
    for axis, dim in enumerate(dims):
        target = wanted[axis - shift] if axis >= shift else dim
        if target == dim or target == 1:
            continue
        # S entries where past + S are needed fit when there is no past, or one entry.
        if dim != variable("sequence") or target != variable("past") + dim:
            raise Refusal(f"{dims_text(value.dims)} does not expand to {dims_text(wanted)}")
        limits = ranges_of((*dims[:axis], target, *dims[axis + 1 :]))
        first = substitute(term, {"past": expression(0)}, limits)
        last = substitute(term, {"sequence": expression(1), f"@{axis}": expression(0)}, limits)
        term = Either((("past", 0, first), ("sequence", 1, last)))
        dims = (*dims[:axis], target, *dims[axis + 1 :])
    return field(node, dims, term, value.dtype)


def selected(data: Field, index: Field, axis: int = 0) -> Field:
    """Gather.

    Raises:
        Refusal: an index is not understood.
    """
    extra = len(index.dims)
    dims = (*data.dims[:axis], *index.dims, *data.dims[axis + 1 :])
    moved = {f"@{a}": axis_index(a + axis) for a in range(extra)}
    limits = ranges_of(dims)
    chosen = substitute(index.term, moved, limits)
    names = {f"@{a}": axis_index(a + extra - 1) for a in range(axis + 1, len(data.dims))}
    if f"@{axis}" in variables(data.term):
        names[f"@{axis}"] = position(chosen, data.dims[axis], limits)
    return Field(dims, substitute(data.term, names, limits), data.dtype)


def position(term: Term, length: Expression, limits: dict[str, Expression]) -> Expression:
    """An index as a polynomial, from the start of its axis."""
    if not isinstance(term, Count):
        raise Refusal("an index is computed in a way that is not understood")
    if is_nonnegative(-term.value - 1, limits):
        return term.value + length
    if not is_nonnegative(term.value, limits):
        raise Refusal(f"an index ({term.value}) may be negative")
    return term.value
