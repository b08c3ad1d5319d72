"""Nodes that choose tokens, cut or regroup a token's elements, and compute nothing."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from intaglio.dialects import rom
from intaglio.lowering.onnx.graph.model import FLOATS, Node, cast_type
from intaglio.lowering.onnx.known.expressions import dims_text, expression
from intaglio.lowering.onnx.known.shapes import axis_of, new_dims, permutation, slices, split_sizes
from intaglio.lowering.onnx.step import Step
from intaglio.lowering.onnx.values import (
    Blocked,
    Field,
    Known,
    Lanes,
    Refusal,
    Stored,
    Turned,
    Unknown,
    Value,
    Vector,
    is_token_major,
    numbers,
    token_size,
)
from intaglio.lowering.onnx.weights import scales


def chosen_token(step: Step, node: Node, x: Vector, index: Value | None) -> None:
    """Gather from an activation: the last token of the sequence, or some elements of a token."""
    axis = axis_of(node, len(x.dims))
    chosen = None if index is None else numbers(index)
    if chosen is not None and chosen.size and (x.dims[axis].constant or 1) > 1:
        step.bind(node, _selected(step, node, x, axis, chosen))
        return
    if chosen is None or chosen.size != 1 or x.dims[axis] not in (step.sequence, expression(1)):
        raise Refusal(
            f"it selects from axis {axis} of {dims_text(x.dims)}; of activations only the last "
            "token is selected"
        )
    if int(chosen.reshape(-1)[0]) != -1 and x.dims[axis] != 1:
        raise Refusal("of a sequence only the last token (index -1) is selected")
    shape = tuple(expression(d) for d in chosen.shape)
    step.result(node, x.ssa, (*x.dims[:axis], *shape, *x.dims[axis + 1 :]))


def _selected(
    step: Step, node: Node, x: Vector, axis: int, chosen: npt.NDArray[np.generic]
) -> Vector:
    """Elements along an axis of a token's elements: one after the other, or rows of a product."""
    length = x.dims[axis].constant or 1
    index = chosen.astype(np.int64).reshape(-1)
    index = np.where(index < 0, index + length, index)
    if index.min() < 0 or index.max() >= length:
        raise Refusal(f"it selects beyond axis {axis} of {dims_text(x.dims)}")
    shape = tuple(expression(n) for n in chosen.shape)
    dims = (*x.dims[:axis], *shape, *x.dims[axis + 1 :])
    first = int(index[0])
    in_order = np.array_equal(index, np.arange(first, first + index.size))
    if in_order and token_size(x.dims[:axis]) == 1:
        return Vector(_part(step, node, x, axis, first, index.size).ssa, dims)
    inner = tuple(d.constant or 0 for d in x.dims[axis:])
    source = np.arange(int(np.prod(inner)), dtype=np.int64).reshape(inner)[index]
    lanes = Lanes(None, np.zeros(source.shape, np.int64), np.ones(source.shape), source)
    along = (*x.dims[:axis], expression(index.size), *x.dims[axis + 1 :])
    found = None
    if 0 not in inner:
        found = step.chosen_rows(Turned(x, axis, along, (lanes,), (node.name,)))
    if found is None:
        raise Refusal(
            f"it selects from axis {axis} of {dims_text(x.dims)}, not contiguous in a token and no "
            "product with a matrix"
        )
    return Vector(found.ssa, dims)


def gather_nd(step: Step, node: Node) -> None:
    """GatherND of an activation by constant indices of one axis, the first: a Gather."""
    x, index = step.vector(node, 0), step.inputs(node)[1]
    chosen = None if index is None else numbers(index)
    if chosen is None or chosen.ndim < 1 or chosen.shape[-1] != 1 or node.integer("batch_dims"):
        raise Refusal("of an activation only elements along the first axis are selected")
    if (x.dims[0].constant or 1) < 2:
        raise Refusal(f"it selects from axis 0 of {dims_text(x.dims)}")
    step.bind(node, _selected(step, node, x, 0, chosen[..., 0]))


def slice_(step: Step, node: Node) -> None:
    """Slice: a contiguous part of a token's elements, or the last token."""
    if any(isinstance(value, Unknown) for value in step.inputs(node)):
        raise Blocked
    x = step.vector(node, 0)
    dims = list(x.dims)
    ssa = x.ssa
    for axis, start, end, stride in slices(node, step.inputs(node), len(dims)):
        length = dims[axis]
        if length.constant is None:
            if length == step.sequence and start == -1 and stride == 1 and (end >= 1 << 31):
                dims[axis] = expression(1)
                continue
            if start == 0 and end >= 1 << 31 and stride == 1:
                continue
            raise Refusal(f"it cuts axis {axis} of {dims_text(x.dims)}, whose length varies")
        if stride != 1:
            raise Refusal(f"steps of {stride} are not supported")
        first, last, _ = slice(start, end).indices(length.constant)
        if last <= first:
            raise Refusal("it gives nothing")
        part = _part(step, node, Vector(ssa, tuple(dims)), axis, first, last - first)
        ssa, dims[:] = part.ssa, part.dims
    step.result(node, ssa, tuple(dims))


def _part(step: Step, node: Node, x: Vector, axis: int, first: int, count: int) -> Vector:
    """Elements `first` and up along an axis that is the outermost of a token's elements."""
    if x.dims[axis].constant is None or token_size(x.dims[:axis]) != 1:
        raise Refusal(f"it cuts axis {axis} of {dims_text(x.dims)}, not contiguous in a token")
    dims = (*x.dims[:axis], expression(count), *x.dims[axis + 1 :])
    if dims == x.dims:
        return x
    inner = token_size(x.dims[axis + 1 :])
    size = rom.float_vector(count * inner)
    op = rom.SliceOp(x.ssa, first * inner, rom.nodes(node.name), size)
    return Vector(step.emit(op).output, dims)


def split(step: Step, node: Node) -> None:
    """Split: contiguous parts of a token's elements."""
    inputs = step.inputs(node)
    if any(isinstance(value, Unknown) for value in inputs):
        raise Blocked
    x = step.vector(node, 0)
    axis = axis_of(node, len(x.dims))
    sizes = split_sizes(node, inputs, x.dims, axis)
    parts = None
    if axis == len(x.dims) - 1 and (_has_own_constants(step, node) or _packs_adapters(step, node)):
        parts = scales.split(step, node, x, sizes)
    if parts is not None:
        for i, part in enumerate(parts[: len(node.outputs)]):
            step.bind(node, part, i)
        return
    first = 0
    for i, count in enumerate(sizes):
        if node.output(i):
            step.bind(node, _part(step, node, x, axis, first, count), i)
        first += count


def _has_own_constants(step: Step, node: Node) -> bool:
    """Whether each part is scaled or biased on its own: a packed product of several modules."""

    def is_own(name: str) -> bool:
        users = step.graph.readers(name)
        return len(users) == 1 and (
            users[0].op_type in ("Add", "Div", "Mul")
            and any(isinstance(step.values.get(i), Stored | Known | Field) for i in users[0].inputs)
        )

    return all(is_own(name) for name in node.outputs)


def _packs_adapters(step: Step, node: Node) -> bool:
    """Whether the parts are those of several A, packed by an exporter."""
    producer = step.graph.producers.get(node.input(0))
    return producer is not None and producer.index in step.adapters


def reshape(step: Step, node: Node) -> None:
    """Reshape, Squeeze, Unsqueeze, Flatten and Identity: tokens do not mix."""
    x = step.vector(node, 0)
    if node.op_type == "Identity":
        step.result(node, x.ssa, x.dims)
        return
    if any(isinstance(v, Unknown) for v in step.inputs(node)):
        raise Blocked
    dims = new_dims(node, step.inputs(node), x.dims)
    pairs = list(zip(dims, x.dims, strict=False))
    same = next((i for i, (a, b) in enumerate(pairs) if a != b), len(pairs))
    inner = (*dims[same:], *x.dims[same:])
    # Axes of length 1 come and go: a batch of one that is merged with the heads, too.
    regroups = [d for d in dims if d != 1] != [d for d in x.dims if d != 1]
    if (
        node.op_type in ("Reshape", "Flatten")
        and regroups
        and any(d.constant is None for d in inner)
    ):
        for shape in (x.dims, dims):
            if not is_token_major(shape):
                raise Refusal(
                    f"it turns {dims_text(x.dims)} into {dims_text(dims)}, which mixes tokens"
                )
    if token_size(dims) != x.size:
        raise Refusal(f"it turns {dims_text(x.dims)} into {dims_text(dims)}, which mixes tokens")
    step.result(node, x.ssa, dims)


def transpose(step: Step, node: Node) -> None:
    """Transpose: the elements of a token keep their order."""
    x = step.vector(node, 0)
    perm = permutation(node, len(x.dims))
    inner = [axis for axis in perm if token_size((x.dims[axis],)) > 1]
    if inner != sorted(inner):
        raise Refusal(f"perm = {perm} of {dims_text(x.dims)} reorders the elements of a token")
    step.result(node, x.ssa, tuple(x.dims[axis] for axis in perm))


def cast(step: Step, node: Node) -> None:
    """Cast and CastLike between floating-point types."""
    x = step.vector(node, 0)
    target = cast_type(node)
    if target not in FLOATS:
        raise Refusal(f"an activation is cast to {target}")
    step.result(node, x.ssa, x.dims)
