"""Computes what is known before any token: constants, shapes, lengths, the attention mask's counts.

Each function takes a node and the values of its inputs and gives the values of its outputs, or None
when an input is no constant, shape or mask (then the node works on activations).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from intaglio.lowering.onnx.expressions import Dims, Expression, expression
from intaglio.lowering.onnx.model import FLOATS, Node, Tensor
from intaglio.lowering.onnx.values import (
    SMALL,
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
    numbers,
)

Inputs = list[Value | None]
Fold = Callable[[Node, Inputs], list[Value] | None]

_INT64_MAX = (1 << 63) - 1


def known(array: npt.NDArray[Any], node: Node, i: int = 0) -> Value:
    """A computed constant: floats become a tensor that parameters can be made of."""
    if array.dtype == object or array.dtype.kind in "iub":
        return Known(array)
    data = np.ascontiguousarray(array.astype(np.float32))
    tensor = Tensor(
        node.output(i), "FLOAT", tuple(data.shape), lambda: data.reshape(-1).view(np.uint8)
    )
    return Stored(tensor, tuple(data.shape))


def _arrays(inputs: Inputs) -> list[npt.NDArray[Any]] | None:
    arrays = [array_of(v) for v in inputs if v is not None]
    return None if any(a is None for a in arrays) else [a for a in arrays if a is not None]


def constant(node: Node, inputs: Inputs) -> list[Value] | None:
    """Constant: any of its value attributes."""
    for name, value in node.attributes.items():
        match name:
            case "value" if isinstance(value, Tensor):
                return [Stored(value, value.dims)]
            case "value_float" | "value_floats":
                return [known(np.asarray(value, np.float32), node)]
            case "value_int" | "value_ints":
                return [Known(np.asarray(value, np.int64))]
            case _:
                pass
    raise Refusal("a constant of text or a sparse tensor is not supported")


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


def shape(node: Node, inputs: Inputs) -> list[Value] | None:
    """Shape, with `start` and `end`."""
    assert inputs[0] is not None
    dims = dims_of(inputs[0])
    if dims is None:
        return None
    start = int(node.attributes.get("start", 0))
    end = node.attributes.get("end")
    dims = dims[start : None if end is None else int(end)]
    array = np.empty(len(dims), object)
    array[:] = dims
    return [Known(array)]


def size(node: Node, inputs: Inputs) -> list[Value] | None:
    """Size: the number of elements."""
    assert inputs[0] is not None
    dims = dims_of(inputs[0])
    if dims is None:
        return None
    count = expression(1)
    for dim in dims:
        count = count * dim
    array = np.empty((), object)
    array[()] = count
    return [Known(array)]


def gather(node: Node, inputs: Inputs) -> list[Value] | None:
    """Gather from a known array."""
    assert inputs[0] is not None and inputs[1] is not None
    data, index = array_of(inputs[0]), numbers(inputs[1])
    if data is None or index is None:
        return None
    axis = int(node.attributes.get("axis", 0))
    try:
        taken = np.take(data, index.astype(np.int64), axis=axis)
    except IndexError as error:
        raise Refusal(f"an index is out of range: {error}") from error
    return [known(_object_like(data, taken), node)]


def _object_like(like: npt.NDArray[Any], value: Any) -> npt.NDArray[Any]:
    if like.dtype != object or (isinstance(value, np.ndarray) and value.dtype == object):
        return np.asarray(value)
    out = np.empty((), object)
    out[()] = value
    return out


def cast(node: Node, inputs: Inputs) -> list[Value] | None:
    """Cast of constants and lengths."""
    value = inputs[0]
    target = type_name(node.attributes.get("to"))
    integer = target.startswith(("INT", "UINT"))
    match value:
        case Ids() if integer:
            return [value]
        case Ids():
            raise Refusal(f"{value.kind} cast to {target} is not supported")
        case Stored() if value.is_float and target in FLOATS:
            return [value]
        case Known() | Stored():
            array = array_of(value)
            if array is None:
                raise Refusal(
                    f"a constant of {value.dims if isinstance(value, Stored) else '?'} is cast "
                    f"to {target}; only small constants can be computed"
                )
            if array.dtype == object:
                if not integer:
                    raise Refusal(f"a length cast to {target} is not supported")
                return [value]
            if target in FLOATS:
                return [known(array.astype(np.float32), node)]
            if integer or target == "BOOL":
                return [Known(array.astype(bool if target == "BOOL" else np.int64))]
            raise Refusal(f"a cast to {target} is not supported")
        case _:
            return None


def type_name(number: Any) -> str:
    """The name of an ONNX element type."""
    import onnx_ir

    try:
        return onnx_ir.DataType(int(number)).name
    except (TypeError, ValueError):
        return f"type {number}"


def elementwise(function: Callable[[Any, Any], Any]) -> Fold:
    """Add, Sub, Mul, Div on constants and lengths."""

    def fold(node: Node, inputs: Inputs) -> list[Value] | None:
        a, b = inputs[0], inputs[1]
        assert a is not None and b is not None
        arrays = _arrays([a, b])
        if arrays is None:
            return None
        x, y = arrays
        if node.op_type == "Div" and x.dtype.kind in "iub" and y.dtype.kind in "iub":
            with np.errstate(all="ignore"):
                quotient = np.trunc(x / y)
            if not np.isfinite(quotient).all():
                raise Refusal("a division by zero")
            return [Known(quotient.astype(np.int64))]
        try:
            with np.errstate(all="ignore"):
                result = function(x, y)
        except (ValueError, TypeError) as error:
            raise Refusal(f"the constants do not combine: {error}") from error
        if x.dtype == object or y.dtype == object:
            result = _object_like(np.empty(0, object), result)
        return [known(np.asarray(result), node)]

    return fold


def exact_divide(x: Any, y: Any) -> Any:
    """Division of arrays or lengths."""
    if (
        isinstance(x, np.ndarray)
        and x.dtype != object
        and not (isinstance(y, np.ndarray) and y.dtype == object)
    ):
        return x / y
    return x // y


def unary(function: Callable[[Any], Any]) -> Fold:
    """A function of a small constant."""

    def fold(node: Node, inputs: Inputs) -> list[Value] | None:
        assert inputs[0] is not None
        array = numbers(inputs[0])
        if array is None:
            return None
        with np.errstate(all="ignore"):
            return [known(np.asarray(function(array)), node)]

    return fold


def reduce_sum(node: Node, inputs: Inputs) -> list[Value] | None:
    """ReduceSum of a constant."""
    value, axes_value = inputs[0], inputs[1]
    assert value is not None
    axes = node.attributes.get("axes") if axes_value is None else integers(axes_value)
    keep = int(node.attributes.get("keepdims", 1))
    array = numbers(value)
    if array is None:
        return None
    chosen_axes = tuple(int(a) for a in axes) if axes else None
    return [known(np.asarray(array.sum(axis=chosen_axes, keepdims=bool(keep))), node)]


def concat(node: Node, inputs: Inputs) -> list[Value] | None:
    """Concat of small constants or shapes."""
    arrays = _arrays(inputs)
    if arrays is None:
        return None
    axis = int(node.attributes.get("axis", 0))
    if any(a.dtype == object for a in arrays):
        arrays = [a.astype(object) for a in arrays]
    return [known(np.concatenate(arrays, axis=axis), node)]


def slice_(node: Node, inputs: Inputs) -> list[Value] | None:
    """Slice of a small constant or shape."""
    assert inputs[0] is not None
    array = array_of(inputs[0])
    if array is None:
        return None
    index = [slice(None)] * array.ndim
    for axis, start, end, step in slices(node, inputs, array.ndim):
        index[axis] = slice(start, None if end >= _INT64_MAX else end, step)
    return [known(array[tuple(index)], node)]


def slices(node: Node, inputs: Inputs, rank: int) -> list[tuple[int, int, int, int]]:
    """The (axis, start, end, step) of a Slice node.

    Raises:
        Refusal: they are not constant.
    """
    lists: list[list[int] | None] = []
    for i, name in enumerate(("starts", "ends", "axes", "steps"), 1):
        value = inputs[i]
        found = node.attributes.get(name) if value is None else integers(value)
        if value is not None and found is None:
            raise Refusal(f"'{name}' depends on lengths")
        lists.append(None if found is None else [int(v) for v in found])
    starts, ends, axes, steps = lists
    if starts is None or ends is None:
        raise Refusal("starts or ends are missing")
    axes = axes if axes is not None else list(range(len(starts)))
    steps = steps if steps is not None else [1] * len(starts)
    if any(not -rank <= a < rank for a in axes):
        raise Refusal("an axis is out of range")
    return [(a % rank, s, e, t) for a, s, e, t in zip(axes, starts, ends, steps, strict=True)]


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
    axes = node.attributes.get("axes")
    return None if axes is None else [int(a) for a in axes]


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
                else {a % rank for a in axes}
            )
            for axis in chosen:
                if dims[axis] != 1:
                    raise Refusal(f"axis {axis} has the length {dims[axis]}, which may not be 1")
            return tuple(d for i, d in enumerate(dims) if i not in chosen)
        case "Unsqueeze":
            axes = axes_of(node, inputs) or []
            rank = len(dims) + len(axes)
            chosen = {a % rank for a in axes}
            rest = iter(dims)
            return tuple(expression(1) if i in chosen else next(rest) for i in range(rank))
        case "Flatten":
            axis = int(node.attributes.get("axis", 1)) % (len(dims) + 1)
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


def reshape(node: Node, inputs: Inputs) -> list[Value] | None:
    """Reshape, Squeeze, Unsqueeze, Flatten and Identity of what is known."""
    value = inputs[0]
    assert value is not None
    if node.op_type == "Identity" and not isinstance(value, Vector):
        return [value]
    match value:
        case Known():
            dims = tuple(expression(d) for d in value.array.shape)
            wanted = _constant_dims(new_dims(node, inputs, dims))
            return [Known(value.array.reshape(wanted))]
        case Stored():
            dims = tuple(expression(d) for d in value.dims)
            wanted = _constant_dims(new_dims(node, inputs, dims))
            if value.transposed and wanted != value.dims:
                raise Refusal("a transposed constant is reshaped")
            return [Stored(value.tensor, wanted, value.transposed)]
        case Ids():
            return [Ids(value.role, new_dims(node, inputs, value.dims))]
        case Quantised():
            raise Refusal("dequantised weights are reshaped")
        case _:
            return None


def _constant_dims(dims: Dims) -> tuple[int, ...]:
    constants = [d.constant for d in dims]
    if any(c is None for c in constants):
        raise Refusal("a constant is given a shape that depends on lengths")
    return tuple(c for c in constants if c is not None)


def transpose(node: Node, inputs: Inputs) -> list[Value] | None:
    """Transpose of constants and dequantised weights."""
    value = inputs[0]
    if not isinstance(value, Stored | Quantised | Known):
        return None
    rank = len(value.dims) if not isinstance(value, Known) else value.array.ndim
    perm = [int(p) for p in node.attributes.get("perm") or range(rank)[::-1]]
    if perm == list(range(rank)):
        return [value]
    if isinstance(value, Known):
        return [Known(value.array.transpose(perm))]
    if perm == [1, 0]:
        dims = value.dims[::-1]
        if isinstance(value, Stored):
            return [Stored(value.tensor, dims, not value.transposed)]
        return [
            Quantised(
                value.codes,
                value.scales,
                value.zeros,
                value.axis,
                value.block,
                dims,
                not value.transposed,
            )
        ]
    array = array_of(value) if isinstance(value, Stored) and value.is_float else None
    if array is None:
        raise Refusal(f"a constant of shape {list(value.dims)} is transposed with perm = {perm}")
    return [known(array.transpose(perm), node)]


def dequantize(node: Node, inputs: Inputs) -> list[Value] | None:
    """DequantizeLinear on constants: kept as codes and scales."""
    codes, scales, zeros = inputs[0], inputs[1], inputs[2]
    if not isinstance(codes, Stored):
        return None
    if not isinstance(scales, Stored) or not (zeros is None or isinstance(zeros, Stored)):
        raise Refusal("scales and zero points must be constants of the model")
    if codes.transposed:
        raise Refusal("a transposed constant is dequantised")
    return [
        Quantised(
            codes=codes,
            scales=scales,
            zeros=zeros,
            axis=int(node.attributes.get("axis", 1)),
            block=int(node.attributes.get("block_size", 0)),
            dims=codes.dims,
        )
    ]


def constant_of_shape(node: Node, inputs: Inputs) -> list[Value] | None:
    """ConstantOfShape of a small known shape."""
    assert inputs[0] is not None
    dims = integers(inputs[0])
    if dims is None:
        raise Refusal("its shape depends on lengths")
    if int(np.prod(dims, dtype=np.int64)) > SMALL:
        raise Refusal(f"a constant of shape {dims} is too large to compute with")
    tensor = node.attributes.get("value")
    value = tensor.array().reshape(-1)[0] if isinstance(tensor, Tensor) else np.float32(0)
    return [known(np.full(dims, value), node)]
