"""What the attributes and inputs of a node say about axes, parts and shapes.

Shapes are those of whole tensors [batch, sequence, ...], with lengths as expressions. A node that
says something impossible or unknown is refused here, for constants and activations alike.
"""

from __future__ import annotations

from collections.abc import Sequence

from intaglio.lowering.onnx.graph.model import Node
from intaglio.lowering.onnx.known.expressions import (
    Dims,
    Expression,
    dims_text,
    expression,
    is_nonnegative,
)
from intaglio.lowering.onnx.values import (
    Cached,
    Computed,
    Curve,
    Field,
    Ids,
    Known,
    Past,
    Quantised,
    Refusal,
    Scores,
    Stored,
    Turned,
    Value,
    Vector,
    array_of,
    integers,
)

Inputs = list[Value | None]


def dims_of(value: Value) -> Dims | None:
    """The shape of a value, as far as it is known."""
    match value:
        case Known():
            return tuple(expression(d) for d in value.array.shape)
        case Stored() | Quantised() | Computed():
            return tuple(expression(d) for d in value.dims)
        case Vector() | Field() | Ids() | Past() | Turned() | Cached() | Scores() | Curve():
            return value.dims
        case _:
            return None


def check_broadcast(constant: Value | None, dims: Dims) -> None:
    """A constant may not enlarge what it is joined with elementwise.

    Raises:
        Refusal: it does.
    """
    own = None if constant is None else dims_of(constant)
    if own is None:
        return
    if len(own) > len(dims) or any(
        c not in (1, d) for c, d in zip(own[::-1], dims[::-1], strict=False)
    ):
        raise Refusal(f"a constant of shape {dims_text(own)} enlarges {dims_text(dims)}")


# --- axes ----------------------------------------------------------------------------------------


def axis_of(node: Node, rank: int, default: int = 0) -> int:
    """The attribute `axis`, counted from the front.

    Raises:
        Refusal: there is no such axis.
    """
    axis = node.integer("axis", default)
    return _axis(axis, rank)


def _axis(axis: int, rank: int) -> int:
    if not -rank <= axis < rank:
        raise Refusal(f"axis {axis} does not exist in a tensor of {rank} axes")
    return axis % rank


def permutation(node: Node, rank: int) -> list[int]:
    """The attribute `perm` of Transpose; without it the axes are reversed.

    Raises:
        Refusal: it is no permutation.
    """
    perm = node.integers("perm") or list(range(rank)[::-1])
    if sorted(perm) != list(range(rank)):
        raise Refusal(f"perm = {perm} is not a permutation of {rank} axes")
    return perm


def axes_of(node: Node, inputs: Inputs) -> list[int] | None:
    """Axes of Squeeze and Unsqueeze: an input, an attribute before opset 13, or none.

    Raises:
        Refusal: they are not constant.
    """
    if inputs[1] is not None:
        axes = integers(inputs[1])
        if axes is None:
            raise Refusal("the axes are not constant")
        return axes
    return node.integers("axes")


def reduced_axes(node: Node, inputs: Inputs, rank: int) -> set[int]:
    """The axes of a reduction: an input, an attribute before opset 18, or all.

    Raises:
        Refusal: they are not constant, or do not exist.
    """
    axes = axes_of(node, inputs)
    if axes:
        return {_axis(axis, rank) for axis in axes}
    return set() if node.integer("noop_with_empty_axes") else set(range(rank))


# --- parts ---------------------------------------------------------------------------------------


def slices(node: Node, inputs: Inputs, rank: int) -> list[tuple[int, int, int, int]]:
    """The (axis, start, end, step) of a Slice node.

    Raises:
        Refusal: they are not constant.
    """
    lists: list[list[int] | None] = []
    for i, name in enumerate(("starts", "ends", "axes", "steps"), 1):
        value = inputs[i]
        found = node.integers(name) if value is None else integers(value)
        if value is not None and found is None:
            raise Refusal(f"'{name}' depends on lengths")
        lists.append(None if found is None else [int(v) for v in found])
    starts, ends, axes, steps = lists
    if starts is None or ends is None:
        raise Refusal("starts or ends are missing")
    axes = axes if axes is not None else list(range(len(starts)))
    steps = steps if steps is not None else [1] * len(starts)
    _check_lengths(starts, ends, axes, steps)
    if any(not -rank <= a < rank for a in axes):
        raise Refusal("an axis is out of range")
    return [(a % rank, s, e, t) for a, s, e, t in zip(axes, starts, ends, steps, strict=True)]


def _check_lengths(*lists: Sequence[object]) -> None:
    if len({len(one) for one in lists}) > 1:
        raise Refusal("starts, ends, axes and steps are not equally many")


def slices_of(
    node: Node, inputs: Inputs, dims: Dims
) -> list[tuple[int, Expression, Expression, int]]:
    """(axis, first, length, step) of a Slice whose bounds may be lengths.

    Raises:
        Refusal: they cannot be told.
    """
    lists: list[list[Expression] | None] = []
    for i, name in enumerate(("starts", "ends", "axes", "steps"), 1):
        if inputs[i] is not None:
            found = shape_of(inputs[i])
            if found is None:
                raise Refusal(f"'{name}' is not known before the token")
            lists.append(list(found))
        else:
            given = node.integers(name)
            lists.append(None if given is None else [expression(v) for v in given])
    starts, ends, axes, steps = lists
    if starts is None or ends is None:
        raise Refusal("starts or ends are missing")
    places = [d.constant for d in axes] if axes else list(range(len(starts)))
    strides = [d.constant for d in steps] if steps else [1] * len(starts)
    _check_lengths(starts, ends, places, strides)
    result: list[tuple[int, Expression, Expression, int]] = []
    for place, start, end, stride in zip(places, starts, ends, strides, strict=True):
        if place is None or stride is None or stride < 1 or not -len(dims) <= place < len(dims):
            raise Refusal("axes or steps are out of range or not constant")
        axis = place % len(dims)
        length = dims[axis]
        first, last = _clipped(start, length), _clipped(end, length)
        size = last - first
        if stride != 1:
            if size.constant is None:
                raise Refusal(f"steps of {stride} along an axis that varies in length")
            size = expression(-(-size.constant // stride))
        if not is_nonnegative(size, {}):
            raise Refusal(f"it may give nothing along axis {axis}")
        result.append((axis, first, size, stride))
    return result


def _clipped(bound: Expression, length: Expression) -> Expression:
    constant = bound.constant
    if constant is not None and abs(constant) >= 1 << 31:
        return length if constant > 0 else expression(0)
    if is_nonnegative(-bound - 1, {}):
        bound = bound + length
        if not is_nonnegative(bound, {}):
            if is_nonnegative(-bound, {}):
                return expression(0)
            raise Refusal(f"a bound of {bound} may lie before the start")
        return bound
    if not is_nonnegative(bound, {}):
        raise Refusal(f"it is not known whether the bound {bound} is negative")
    if is_nonnegative(bound - length, {}):
        return length
    if is_nonnegative(length - bound, {}):
        return bound
    raise Refusal(f"it is not known whether the bound {bound} is inside of {length}")


def split_sizes(node: Node, inputs: Inputs, dims: Dims, axis: int) -> list[int]:
    """The lengths of the parts of a Split: an input, an attribute, or about equal ones.

    Raises:
        Refusal: they are not constant, or do not make the whole.
    """
    length = dims[axis].constant
    if length is None:
        raise Refusal(f"it cuts axis {axis} of {dims_text(dims)}, whose length varies")
    sizes = node.integers("split") if inputs[1] is None else integers(inputs[1])
    if inputs[1] is not None and sizes is None:
        raise Refusal("the sizes of the parts are not constant")
    if sizes is None:
        count = max(1, node.integer("num_outputs", len(node.outputs)))
        part = -(-length // count)
        sizes = [min(part, length - i * part) for i in range(count)]
    sizes = [int(size) for size in sizes]
    if sum(sizes) != length or min(sizes) < 1 or len(sizes) < len(node.outputs):
        raise Refusal(f"parts of {sizes} do not make {length}")
    return sizes


# --- shapes --------------------------------------------------------------------------------------


def shape_of(value: Value | None) -> Dims | None:
    """A shape given as a constant with lengths."""
    array = None if value is None else array_of(value)
    if array is None or array.ndim != 1 or array.dtype.kind not in "iuO":
        return None
    return tuple(e if isinstance(e, Expression) else expression(int(e)) for e in array)


def new_dims(node: Node, inputs: Inputs, dims: Dims) -> Dims:
    """The shape after Reshape, Squeeze, Unsqueeze, Flatten or Identity.

    Raises:
        Refusal: it cannot be told.
    """
    match node.op_type:
        case "Reshape":
            return _reshaped(node, inputs, dims)
        case "Squeeze":
            axes = axes_of(node, inputs)
            rank = len(dims)
            chosen = (
                {i for i, d in enumerate(dims) if d == 1}
                if axes is None
                else {_axis(a, rank) for a in axes}
            )
            for axis in chosen:
                if dims[axis] != 1:
                    raise Refusal(f"axis {axis} has the length {dims[axis]}, which may not be 1")
            return tuple(d for i, d in enumerate(dims) if i not in chosen)
        case "Unsqueeze":
            axes = axes_of(node, inputs) or []
            rank = len(dims) + len(axes)
            chosen = {_axis(a, rank) for a in axes}
            if len(chosen) != len(axes):
                raise Refusal(f"axes {axes} name one axis twice")
            rest = iter(dims)
            return tuple(expression(1) if i in chosen else next(rest) for i in range(rank))
        case "Flatten":
            axis = node.integer("axis", 1)
            axis = axis if axis == len(dims) else _axis(axis, len(dims))
            halves = [expression(1), expression(1)]
            for i, dim in enumerate(dims):
                halves[i >= axis] = halves[i >= axis] * dim
            return tuple(halves)
        case _:
            return dims


def _reshaped(node: Node, inputs: Inputs, dims: Dims) -> Dims:
    target = None if inputs[1] is None else array_of(inputs[1])
    if target is None or target.ndim != 1:
        raise Refusal("the new shape is not known before the token")
    if target.dtype.kind not in "iuO":
        raise Refusal("the new shape is no list of integers")
    keep_zero = bool(node.attributes.get("allowzero", 0))
    total = expression(1)
    for dim in dims:
        total = total * dim
    result: list[Expression | None] = []
    rest = total
    try:
        for i, item in enumerate(target):
            if item == 0 and not keep_zero:
                if i >= len(dims):
                    raise Refusal("the new shape copies an axis that does not exist")
                dim: Expression | None = dims[i]
            elif item == -1:
                dim = None
            else:
                dim = item if isinstance(item, Expression) else expression(int(item))
            if dim is not None:
                rest = rest // dim
            result.append(dim)
    except ValueError as error:
        raise Refusal(f"the new shape does not fit: {error}") from error
    if result.count(None) > 1 or (None not in result and rest != 1):
        raise Refusal("the new shape does not hold the same number of elements")
    return tuple(rest if d is None else d for d in result)


def expanded_dims(dims: Dims, wanted: Dims) -> Dims:
    """The shape after Expand: both shapes broadcast."""
    rank = max(len(dims), len(wanted))
    one = expression(1)
    a = (one,) * (rank - len(dims)) + dims
    b = (one,) * (rank - len(wanted)) + wanted
    return tuple(y if x == 1 else x for x, y in zip(a, b, strict=True))
