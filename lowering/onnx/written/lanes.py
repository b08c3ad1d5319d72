"""What nodes do to the elements (lanes) of heads: sums of coefficients times elements.

Slices, splits, negations, joins and products with cosines and sines only change these sums.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from intaglio.lowering.onnx.graph.model import Array, Node
from intaglio.lowering.onnx.known.expressions import Dims, dims_text, expression
from intaglio.lowering.onnx.known.shapes import (
    axis_of,
    new_dims,
    permutation,
    slices_of,
    split_sizes,
)
from intaglio.lowering.onnx.step import Step
from intaglio.lowering.onnx.values import (
    Columns,
    Field,
    Lanes,
    Refusal,
    Turned,
    Value,
    Vector,
    numbers,
)
from intaglio.lowering.onnx.written.rotary_tables import columns


def plain(x: Vector, names: tuple[str, ...] = ()) -> Turned:
    """An activation as its own elements."""
    lead = max(0, min(3, len(x.dims) - 1))
    shape = tuple(d.constant or 0 for d in x.dims[lead:])
    count = int(np.prod(shape, dtype=np.int64))
    if any(d.constant is None for d in x.dims[lead:]):
        raise Refusal(f"the last axes of {dims_text(x.dims)} vary in length")
    source = np.arange(count, dtype=np.int64).reshape(shape)
    lanes = Lanes(None, np.zeros(shape, np.int64), np.ones(shape), source)
    return Turned(x, lead, x.dims, (lanes,), names)


def as_turned(value: Value | None) -> Turned | None:
    """An activation or a part of one as lanes; None for anything else."""
    if isinstance(value, Vector):
        return plain(value)
    return value if isinstance(value, Turned) else None


def _mapped(
    value: Turned,
    node: Node,
    dims: Dims,
    function: Callable[[Array], Array],
) -> Turned:
    """The same after a rearrangement of the lanes, given for one array of them."""
    terms = tuple(
        Lanes(t.table, function(t.column), function(t.factor), function(t.source))
        for t in value.terms
    )
    return Turned(value.input, value.lead, dims, terms, (*value.names, node.name))


def scaled(value: Turned, node: Node, factor: float | npt.NDArray[np.float64]) -> Turned:
    """All elements times a number, or each times its own (of the shape of the lanes)."""
    terms = tuple(replace(t, factor=t.factor * factor) for t in value.terms)
    return Turned(value.input, value.lead, value.dims, terms, (*value.names, node.name))


def times(step: Step, value: Turned, by: Field, node: Node) -> Turned:
    """Times coefficients that depend on the position."""
    if any(t.table is not None for t in value.terms):
        raise Refusal("it is multiplied twice with tensors that depend on the position")
    found = columns(step, by, value.dims, value.lead)
    index = np.arange(int(np.prod(found.shape, dtype=np.int64)), dtype=np.int64)
    column = np.broadcast_to(index.reshape(found.shape), value.lanes)
    terms = tuple(replace(t, table=found, column=np.array(column)) for t in value.terms)
    return Turned(value.input, value.lead, value.dims, terms, (*value.names, node.name))


def added(a: Turned, b: Turned, node: Node, sign: float) -> Turned:
    """The sum of two, or their difference where `sign` is -1."""
    if a.input.ssa is not b.input.ssa or a.lead != b.lead:
        raise Refusal("parts of rotary embeddings of different activations are added")
    if a.dims != b.dims:
        raise Refusal(f"shapes {dims_text(a.dims)} and {dims_text(b.dims)} differ")
    other = tuple(replace(t, factor=t.factor * sign) for t in b.terms)
    return Turned(
        a.input, a.lead, a.dims, (*a.terms, *other), _joined_names(a.names, b.names, (node.name,))
    )


def _joined_names(*parts: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for part in parts for name in part))


def joined(parts: Sequence[Turned], node: Node) -> Turned:
    """Concat along an axis of the lanes."""
    first = parts[0]
    axis = axis_of(node, len(first.dims))
    if axis < first.lead:
        raise Refusal("parts of heads are joined along another axis")
    if any(p.input.ssa is not first.input.ssa or p.lead != first.lead for p in parts):
        raise Refusal("parts of different activations are joined")
    place = axis - first.lead
    size = sum((p.dims[axis] for p in parts), expression(0))
    dims = (*first.dims[:axis], size, *first.dims[axis + 1 :])
    for part in parts:
        if (*part.dims[:axis], size, *part.dims[axis + 1 :]) != dims:
            raise Refusal(f"{dims_text(part.dims)} is joined with {dims_text(first.dims)}")
    # Terms with the same coefficients lie in one row of terms; what is missing is 0.
    rows: list[tuple[Columns | None, list[list[Lanes]]]] = []
    for i, part in enumerate(parts):
        for term in part.terms:
            for known, places in rows:
                if known == term.table and not places[i]:
                    places[i].append(term)
                    break
            else:
                places: list[list[Lanes]] = [[] for _ in parts]
                places[i].append(term)
                rows.append((term.table, places))
    terms: list[Lanes] = []
    for known, places in rows:
        filled = [
            p[0] if p else _nothing(part.lanes) for p, part in zip(places, parts, strict=True)
        ]
        terms.append(
            Lanes(
                known,
                np.concatenate([t.column for t in filled], place),
                np.concatenate([t.factor for t in filled], place),
                np.concatenate([t.source for t in filled], place),
            )
        )
    names = _joined_names(*(p.names for p in parts), (node.name,))
    return Turned(first.input, first.lead, dims, tuple(terms), names)


def _nothing(shape: tuple[int, ...]) -> Lanes:
    return Lanes(None, np.zeros(shape, np.int64), np.zeros(shape), np.zeros(shape, np.int64))


def reshaped(step: Step, value: Turned, node: Node) -> Turned:
    """Reshape, Squeeze, Unsqueeze and Flatten of the lanes."""
    dims = new_dims(node, step.inputs(node), value.dims)
    if dims[: value.lead] != value.dims[: value.lead]:
        raise Refusal(
            f"{dims_text(value.dims)} is turned into {dims_text(dims)} while some elements of each "
            "head are selected"
        )
    shape = tuple(d.constant or 0 for d in dims[value.lead :])
    return _mapped(value, node, dims, lambda a: a.reshape(shape))


def transposed(value: Turned, node: Node) -> Turned:
    """Transpose of the lanes."""
    perm = permutation(node, len(value.dims))
    if perm[: value.lead] != list(range(value.lead)):
        raise Refusal(
            f"perm = {perm} moves tokens while some elements of each head are selected, as in a "
            "rotary embedding or in a projection packed by head"
        )
    inner = [p - value.lead for p in perm[value.lead :]]
    dims = tuple(value.dims[p] for p in perm)
    return _mapped(value, node, dims, lambda a: a.transpose(inner))


def _cut(value: Turned, node: Node, axis: int, first: int, count: int, stride: int = 1) -> Turned:
    if axis < value.lead:
        raise Refusal(f"it cuts axis {axis} of {dims_text(value.dims)}")
    place = (slice(None),) * (axis - value.lead) + (
        slice(first, first + (count - 1) * stride + 1, stride),
    )
    dims = (*value.dims[:axis], expression(count), *value.dims[axis + 1 :])
    return _mapped(value, node, dims, lambda a: a[place])


def sliced(step: Step, value: Turned, node: Node) -> Turned:
    """Slice of the lanes."""
    for axis, first, size, stride in slices_of(node, step.inputs(node), value.dims):
        if size == value.dims[axis]:
            continue
        start, count = first.constant, size.constant
        if start is None or not count:
            raise Refusal(f"it cuts axis {axis} of {dims_text(value.dims)}")
        value = _cut(value, node, axis, start, count, stride)
    return value


def split(step: Step, value: Turned, node: Node) -> list[Turned]:
    """The parts of Split along an axis of the lanes."""
    axis = axis_of(node, len(value.dims))
    sizes = split_sizes(node, step.inputs(node), value.dims, axis)
    first = 0
    parts: list[Turned] = []
    for size in sizes:
        parts.append(_cut(value, node, axis, first, size))
        first += size
    return parts


def gathered(step: Step, value: Turned, node: Node) -> Turned:
    """Gather along an axis of the lanes, by constant indices."""
    axis = axis_of(node, len(value.dims))
    given = step.inputs(node)[1]
    index = None if given is None else numbers(given)
    if axis < value.lead or index is None or index.ndim > 1:
        raise Refusal(f"it selects from axis {axis} of {dims_text(value.dims)}")
    shape = tuple(expression(n) for n in index.shape)
    dims = (*value.dims[:axis], *shape, *value.dims[axis + 1 :])
    place = axis - value.lead
    return _mapped(value, node, dims, lambda a: np.take(a, index.astype(np.int64), axis=place))


def turned(value: Turned, node: Node, cos: Columns, sin: Columns, *, interleaved: bool) -> Turned:
    """What a RotaryEmbedding node makes of a part of each head.

    Raises:
        Refusal: the part has another width, or depends on the position already.
    """
    half = int(np.prod(cos.shape, dtype=np.int64))
    if cos.shape != sin.shape or value.lanes[-1:] != (2 * half,) or len(value.lanes) != 1:
        raise Refusal(f"cos and sin for {2 * half} elements do not fit {dims_text(value.dims)}")
    if len(value.terms) != 1 or value.terms[0].table is not None:
        raise Refusal("a part of a head is rotated twice")
    (term,) = value.terms
    index = np.arange(2 * half)
    pair = index // 2 if interleaved else index % half
    is_first = index % 2 == 0 if interleaved else index < half
    other = np.where(is_first, index + (1 if interleaved else half), index)
    other = np.where(is_first, other, index - (1 if interleaved else half))
    sign = np.where(is_first, -1.0, 1.0)
    terms = (
        Lanes(cos, pair, term.factor, term.source),
        Lanes(sin, pair, term.factor[other] * sign, term.source[other]),
    )
    return Turned(value.input, value.lead, value.dims, terms, (*value.names, node.name))
