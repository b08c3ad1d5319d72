"""Computes what is known before any token: constants, shapes, lengths, the attention mask's counts.

Each function takes a node and the values of its inputs and gives the values of its outputs, or None
when an input is no constant, shape or mask (then the node works on activations).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from intaglio.lowering.onnx.graph.model import FLOATS, NUMPY, Array, Node, Tensor, cast_type
from intaglio.lowering.onnx.known.evaluation import as_type
from intaglio.lowering.onnx.known.expressions import Dims, expression
from intaglio.lowering.onnx.known.functions import Elementwise, divide
from intaglio.lowering.onnx.known.shapes import axis_of, dims_of, new_dims, permutation, slices
from intaglio.lowering.onnx.values import (
    SMALL,
    Ids,
    Known,
    Quantised,
    Refusal,
    Stored,
    Value,
    Vector,
    array_of,
    integers,
    numbers,
)

Inputs = list[Value | None]
Fold = Callable[[Node, Inputs], list[Value] | None]

_INT64_MAX = (1 << 63) - 1


def known(array: Array, node: Node, i: int = 0) -> Value:
    """A computed constant: floats become a tensor that parameters can be made of."""
    if array.dtype == object or array.dtype.kind in "iub":
        return Known(array)
    data = np.ascontiguousarray(array.astype(np.float32))
    tensor = Tensor(
        node.output(i), "FLOAT", tuple(data.shape), lambda: data.reshape(-1).view(np.uint8)
    )
    return Stored(tensor, tuple(data.shape))


def _arrays(inputs: Inputs) -> list[Array] | None:
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


def shape(node: Node, inputs: Inputs) -> list[Value] | None:
    """Shape, with `start` and `end`."""
    assert inputs[0] is not None
    dims = dims_of(inputs[0])
    if dims is None:
        return None
    start = node.integer("start")
    dims = dims[start : node.integer("end", len(dims))]
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
    axis = axis_of(node, data.ndim)
    try:
        taken = np.take(data, index.astype(np.int64), axis=axis)
    except IndexError as error:
        raise Refusal(f"an index is out of range: {error}") from error
    return [known(_object_like(data, taken), node)]


def _object_like(like: Array, value: object) -> Array:
    if like.dtype != object or (isinstance(value, np.ndarray) and value.dtype == object):
        return np.asarray(value)
    out = np.empty((), object)
    out[()] = value
    return out


def cast(node: Node, inputs: Inputs) -> list[Value] | None:
    """Cast of constants and lengths."""
    value = inputs[0]
    target = cast_type(node)
    integer = target.startswith(("INT", "UINT"))
    match value:
        case Ids() if integer:
            return [value]
        case Ids():
            raise Refusal(f"{value.kind} cast to {target} is not supported")
        case Stored() if value.is_float and target in FLOATS:
            return [value]
        case Known() | Stored():
            if array_of(value) is None:
                raise Refusal(f"a large constant is cast to {target}")
            array = numbers(value)
            if array is None:
                if not integer:
                    raise Refusal(f"a length cast to {target} is not supported")
                return [value]
            if target not in NUMPY:
                raise Refusal(f"a cast to {target} is not supported")
            if target in FLOATS:
                return [known(as_type(array, target), node)]
            with np.errstate(invalid="ignore"):
                return [
                    Known(
                        array.astype(NUMPY[target]).astype(bool if target == "BOOL" else np.int64)
                    )
                ]
        case _:
            return None


def elementwise(function: Elementwise) -> Fold:
    """Add, Sub, Mul, Div on constants and lengths."""

    def fold(node: Node, inputs: Inputs) -> list[Value] | None:
        a, b = inputs[0], inputs[1]
        assert a is not None and b is not None
        arrays = _arrays([a, b])
        if arrays is None:
            return None
        x, y = arrays
        if node.op_type == "Div" and x.dtype.kind in "iub" and y.dtype.kind in "iub":
            if not np.all(y):
                raise Refusal("a division by zero")
            return [Known(np.asarray(divide(x, y)).astype(np.int64))]
        try:
            with np.errstate(all="ignore"):
                result = function(x, y)
        except TypeError as error:
            raise Refusal(f"the constants do not combine: {error}") from error
        if x.dtype == object or y.dtype == object:
            result = _object_like(np.empty(0, object), result)
        return [known(np.asarray(result), node)]

    return fold


def exact_divide(x: Array, y: Array) -> Array:
    """Division of arrays or lengths."""
    return x // y if object in (x.dtype, y.dtype) else x / y


def concat(node: Node, inputs: Inputs) -> list[Value] | None:
    """Concat of small constants or shapes."""
    arrays = _arrays(inputs)
    if arrays is None:
        return None
    axis = axis_of(node, arrays[0].ndim)
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
            return [Ids(new_dims(node, inputs, value.dims))]
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
    perm = permutation(node, rank)
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
    if len(scales.dims) > 1 and not node.attributes.get("block_size"):
        raise Refusal(f"scales of shape {list(scales.dims)} need a block_size")
    return [
        Quantised(
            codes=codes,
            scales=scales,
            zeros=zeros,
            axis=node.integer("axis", 1),
            block=node.integer("block_size"),
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
