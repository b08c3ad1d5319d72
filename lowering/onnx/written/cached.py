"""Keys and values of all tokens, in any arrangement of their axes.

They keep track of which factor of their shape lies where, so that any chain of Unsqueeze, Expand,
Reshape and Transpose is understood.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from intaglio.dialects import rom
from intaglio.lowering.onnx.graph.model import FLOATS, Node, cast_type, text_of
from intaglio.lowering.onnx.known.expressions import PAST, Dims, Expression, dims_text, expression
from intaglio.lowering.onnx.known.shapes import (
    axis_of,
    check_broadcast,
    expanded_dims,
    new_dims,
    permutation,
    shape_of,
    slices_of,
)
from intaglio.lowering.onnx.known.terms import Count, Number
from intaglio.lowering.onnx.step import Step
from intaglio.lowering.onnx.values import (
    Axis,
    Cached,
    Field,
    Past,
    Refusal,
    Value,
    Vector,
    number,
    numbers,
)

Labels = list[tuple[str, Expression]]


def _axis(name: str, size: Expression) -> Axis:
    return () if size == 1 else ((name, size),)


def appended(step: Step, node: Node, past: Past, new: Vector, axis: int) -> Cached:
    """Writes new keys or values into the cache behind a past input.

    Raises:
        Refusal: their shapes differ, or tokens do not lie along `axis`.
    """
    rank = len(new.dims)
    if rank != 4 or len(past.dims) != 4 or axis not in (1, 2):
        raise Refusal(
            f"{dims_text(past.dims)} and {dims_text(new.dims)} are joined along axis {axis}; keys "
            "and values must be [batch, heads, tokens, width]"
        )
    if new.dims[axis] != step.sequence or new.dims[0] != step.batch:
        raise Refusal(f"{dims_text(new.dims)} are not the keys or values of new tokens")
    heads, width = new.dims[3 - axis].constant, new.dims[3].constant
    if heads is None or width is None:
        raise Refusal(f"the heads of {dims_text(new.dims)} vary in number or width")
    port = step.pasts[past.name]
    for place, wanted in ((3 - axis, heads), (3, width)):
        dim = port.dims[place]
        if isinstance(dim, int) and dim != wanted:
            raise Refusal(f"'{past.name}' has {dim} in axis {place}, the new part {wanted}")
    if port.dtype not in FLOATS:
        raise Refusal(f"'{past.name}' is {port.dtype.lower()}; a float cache is needed here")
    symbol = step.cache(past.name, heads, width, "float32", None)
    step.emit(rom.AppendOp(new.ssa, symbol, step.position, rom.nodes(node.name)))
    axes = [_axis("batch", step.batch), (), (), _axis("width", expression(width))]
    axes[axis] = _axis("tokens", step.total)
    axes[3 - axis] = _axis("heads", expression(heads))
    return Cached(past.name, symbol, heads, width, tuple(axes), 1.0, (node.name,))


def scattered(step: Step, node: Node, where: Value | None, past: Past) -> Cached:
    """TensorScatter: new keys or values are written into a buffer that has room for all tokens.

    The chip's cache is that buffer, as long as they are written behind those of the past, and
    attention is told how many count (`standard_attention`).

    Raises:
        Refusal: they are written elsewhere, or by another shape.
    """
    new = step.vector(node, 1)
    if text_of(node.attributes.get("mode", "linear")) != "linear":
        raise Refusal("it wraps around at the end of the buffer: a cache that forgets tokens")
    if not isinstance(where, Field) or where.term != Count(PAST):
        raise Refusal(
            "where it writes is not known to be behind the past tokens (an input that nothing else "
            "reads)"
        )
    rank, axis = len(past.dims), axis_of(node, len(past.dims), -2)
    heads = width = None
    if rank == 4 and axis == 2:
        heads, width = past.dims[1].constant, past.dims[3].constant
        wanted = (step.batch, past.dims[1], step.sequence, past.dims[3])
    else:
        wanted = (step.batch, step.sequence, past.dims[2])
        readers = [n for n in step.graph.readers(node.output(0)) if n.op_type == "Attention"]
        count = readers[0].integer("kv_num_heads") if readers else 0
        size = past.dims[2].constant or 0
        if rank == 3 and axis == 1 and count > 0 and not size % count:
            heads, width = count, size // count
    if heads is None or width is None:
        raise Refusal(
            f"the buffer {dims_text(past.dims)}, written along axis {axis}, is none of keys or "
            "values, [batch, heads, tokens, width] or [batch, tokens, heads * width]"
        )
    if new.dims != wanted:
        raise Refusal(f"{dims_text(new.dims)} are not the keys or values of new tokens")
    symbol = step.cache(past.name, heads, width, "float32", None)
    step.emit(rom.AppendOp(new.ssa, symbol, step.position, rom.nodes(node.name)))
    length = past.dims[axis].constant or 0
    step.positions = min(step.positions or length, length)
    found = of_cache(step, past, symbol, heads, width, node)
    if rank == 3:
        batch, of_heads, tokens, of_width = found.axes
        found = replace(found, axes=(batch, tokens, (*of_heads, *of_width)))
    return replace(found, buffered=True)


def layout(step: Step, heads: int, width: int) -> tuple[Axis, ...]:
    """The axes of a past or present input or output: [batch, heads, tokens, width]."""
    return (
        _axis("batch", step.batch),
        _axis("heads", expression(heads)),
        _axis("tokens", step.total),
        _axis("width", expression(width)),
    )


def of_cache(step: Step, past: Past, symbol: str, heads: int, width: int, node: Node) -> Cached:
    """What a cache holds with the new tokens, as an attention gives it back."""
    axes = layout(step, heads, width)
    return Cached(past.name, symbol, heads, width, axes, 1.0, (node.name,))


def is_whole(value: Cached) -> bool:
    """Whether it is what the cache holds, in the layout of a past input."""
    names = [name for axis in value.axes for name, _ in axis if name not in ("batch", "heads")]
    return (
        value.factor == 1.0
        and len(value.axes) == 4
        and sorted(names) == ["tokens", "width"]
        and dict(value.axes[3]).keys() == {"width"}
    )


def _regrouped(value: Cached, node: Node, dims: Dims) -> Cached:
    """The same in another shape, as long as no factor is split."""
    rest: Labels = [factor for axis in value.axes for factor in axis]
    axes: list[Axis] = []
    for dim in dims:
        taken: Labels = []
        size = expression(1)
        while size != dim:
            if not rest:
                raise Refusal(f"{dims_text(value.dims)} is turned into {dims_text(dims)}")
            taken.append(rest.pop(0))
            size = size * taken[-1][1]
        axes.append(tuple(taken))
    if rest:
        raise Refusal(f"{dims_text(value.dims)} is turned into {dims_text(dims)}")
    return replace(value, axes=tuple(axes), names=(*value.names, node.name))


def _expanded(step: Step, node: Node, value: Cached, wanted: Dims | None) -> Cached:
    if wanted is None:
        raise Refusal("the new shape is not known before the token")
    dims = expanded_dims(value.dims, wanted)
    shift = len(dims) - len(value.axes)
    axes: list[Axis] = [(), *value.axes] if shift == 1 else list(value.axes)
    if shift > 1:
        raise Refusal(f"{dims_text(value.dims)} is expanded to {dims_text(dims)}")
    for i, (axis, dim) in enumerate(zip(axes, dims, strict=True)):
        if not axis and dim != 1:
            if dim.constant is None:
                raise Refusal(f"{dims_text(value.dims)} is expanded to {dims_text(dims)}")
            axes[i] = (("repeat", dim),)
    found = replace(value, axes=tuple(axes), names=(*value.names, node.name))
    if found.dims != dims:
        raise Refusal(f"{dims_text(value.dims)} is expanded to {dims_text(dims)}")
    return found


def _repeated(node: Node, value: Cached, index: Value | None) -> Cached:
    """Gather along the heads, each of them several times in turn."""
    place = axis_of(node, len(value.axes))
    array = None if index is None else numbers(index)
    axis = value.axes[place]
    if array is None or array.ndim != 1 or axis != (("heads", expression(value.heads)),):
        raise Refusal(f"it selects from axis {place} of {dims_text(value.dims)}")
    copies = array.size // value.heads
    if copies < 1 or not np.array_equal(array, np.repeat(np.arange(value.heads), copies)):
        raise Refusal("it selects heads in an order that is no repetition of each in turn")
    more = (*axis, *_axis("repeat", expression(copies)))
    axes = (*value.axes[:place], more, *value.axes[place + 1 :])
    return replace(value, axes=axes, names=(*value.names, node.name))


def convert(step: Step, node: Node, value: Cached, inputs: list[Value | None]) -> None:
    """Converts a node that rearranges or scales keys or values of all tokens.

    Raises:
        Refusal: it does something else with them.
    """
    op = node.op_type
    names = (*value.names, node.name)
    match op:
        case "Reshape" | "Unsqueeze" | "Squeeze" | "Flatten":
            dims = new_dims(node, inputs, value.dims)
            step.bind(node, _regrouped(value, node, dims))
        case "Transpose":
            perm = permutation(node, len(value.axes))
            axes = tuple(value.axes[p] for p in perm)
            step.bind(node, replace(value, axes=axes, names=names))
        case "Expand":
            shape = shape_of(inputs[1])
            step.bind(node, _expanded(step, node, value, shape))
        case "Tile":
            repeats = shape_of(inputs[1])
            wanted = None
            if repeats is not None and len(repeats) == len(value.axes):
                pairs = list(zip(repeats, value.dims, strict=True))
                if all(r == 1 or d == 1 for r, d in pairs):
                    wanted = tuple(r * d for r, d in pairs)
            step.bind(node, _expanded(step, node, value, wanted))
        case "Gather":
            step.bind(node, _repeated(node, value, inputs[1]))
        case "Mul" | "Div":
            factor = factor_of(inputs[1] if inputs[0] is value else inputs[0], value.dims)
            if factor is None or (op == "Div" and (inputs[0] is not value or factor == 0.0)):
                raise Refusal("keys or values of all tokens are scaled by more than a number")
            by = 1.0 / factor if op == "Div" else factor
            step.bind(node, replace(value, factor=value.factor * by, names=names))
        case "Cast" if cast_type(node) in FLOATS:
            step.bind(node, value)
        case "Identity":
            step.bind(node, value)
        case "Slice":
            for axis, _, size, _ in slices_of(node, inputs, value.dims):
                if size != value.dims[axis]:
                    raise Refusal(
                        f"it cuts axis {axis} of {dims_text(value.dims)}; a cache that forgets "
                        "tokens is not supported"
                    )
            step.bind(node, value)
        case _:
            raise Refusal(f"{op} of keys or values of all tokens is not supported")


def heads_of(lead: Dims, axes: Sequence[Axis], kv_heads: int, what: str) -> int:
    """Checks that the axes before the last two are those of heads; gives how many there are.

    Query head h must read key and value head h // copies.
    """
    if len(axes) > len(lead):
        raise Refusal(f"{what} have more axes than the queries")
    padded = [()] * (len(lead) - len(axes)) + list(axes)
    labels: Labels = []
    for dim, axis in zip(lead, padded, strict=True):
        size = expression(1)
        for _, length in axis:
            size = size * length
        if not axis and dim != 1:
            labels.append(("repeat", dim))
        elif size != dim:
            raise Refusal(f"{what} have {size} heads where the queries have {dim}")
        else:
            labels += axis
    if labels and labels[0][0] == "batch":
        labels = labels[1:]
    names = [name for name, _ in labels]
    if kv_heads > 1 and names[:1] == ["heads"]:
        names = names[1:]
    elif kv_heads > 1:
        raise Refusal(f"the heads of {what} are not repeated each in turn")
    if any(name != "repeat" for name in names):
        raise Refusal(f"the heads of {what} are not repeated each in turn")
    total = 1
    for _, length in labels:
        if length.constant is None:
            raise Refusal(f"the heads of {what} vary in number")
        total *= length.constant
    return total


def factor_of(value: Value | None, dims: Dims) -> float | None:
    """The one number of a constant that is joined with a tensor of shape `dims`."""
    check_broadcast(value, dims)
    if isinstance(value, Field):
        return value.term.value if isinstance(value.term, Number) else None
    return number(value)
