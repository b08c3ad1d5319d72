"""Nodes that compute on large constants, or on bits: they become expressions, not results.

`fold` takes nodes all of whose inputs are constants. Small results are computed at once; the others
stay expressions (`constants`) that whoever engraves the weights evaluates in blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from intaglio.lowering.onnx.graph.model import (
    FLOATS,
    NUMPY,
    Array,
    Node,
    Tensor,
    cast_type,
    text_of,
)
from intaglio.lowering.onnx.known import folding
from intaglio.lowering.onnx.known.constants import (
    Constant,
    Given,
    Leaf,
    Reduced,
    Repeated,
    Scattered,
    Selected,
    Spread,
    Taken,
    elementwise,
    joined,
    permuted,
    reshaped,
)
from intaglio.lowering.onnx.known.expressions import expression
from intaglio.lowering.onnx.known.functions import (
    ARITHMETIC,
    COMPARISONS,
    FUNCTIONS,
    LOGICAL,
    Elementwise,
)
from intaglio.lowering.onnx.known.shapes import axis_of, new_dims, permutation, reduced_axes, slices
from intaglio.lowering.onnx.values import (
    SMALL,
    Computed,
    Known,
    Quantised,
    Refusal,
    Stored,
    Value,
    integers,
    numbers,
)

Inputs = list[Value | None]


def constant_of(value: Value | None) -> Constant | None:
    """A constant as an expression, or None."""
    match value:
        case Stored():
            dims = value.dims[::-1] if value.transposed else value.dims
            leaf = Leaf(value.tensor, dims)
            return permuted(leaf, (1, 0)) if value.transposed else leaf
        case Known():
            found = numbers(value)
            return None if found is None else Given(np.asarray(found))
        case Quantised():
            return _dequantised(value)
        case Computed():
            return value.constant
        case _:
            return None


def _dequantised(value: Quantised) -> Constant | None:
    codes = constant_of(value.codes)
    scales, zeros = constant_of(value.scales), constant_of(value.zeros)
    if codes is None or scales is None:
        return None
    axis = value.axis % max(1, len(codes.dims))

    def along(part: Constant) -> Constant:
        if part.size == 1:
            return reshaped(part, ())
        if len(part.dims) == 1:
            shape = [1] * len(codes.dims)
            shape[axis] = part.size
            return reshaped(part, tuple(shape))
        block = value.block or -(-codes.dims[axis] // part.dims[axis])
        return Repeated(part, axis, block, codes.dims[axis])

    arguments = [codes, along(scales)]
    if zeros is None:
        result = elementwise(_scaled, arguments, scales.dtype)
    else:
        result = elementwise(_shifted, [*arguments, along(zeros)], scales.dtype)
    return permuted(result, (1, 0)) if value.transposed else result


def _scaled(codes: Array, scales: Array) -> Array:
    return np.multiply(codes.astype(scales.dtype), scales)


def _shifted(codes: Array, scales: Array, zeros: Array) -> Array:
    return _scaled(codes.astype(np.int32) - zeros.astype(np.int32), scales)


# --- elementwise operators -----------------------------------------------------------------------


def _as_type(x: Constant, dtype: np.dtype) -> Constant:
    def cast(values: Array) -> Array:
        return values.astype(dtype)

    return elementwise(cast, [x], dtype)


def _modulo(node: Node) -> Elementwise:
    return np.fmod if node.attributes.get("fmod", 0) else np.mod


def _shift(node: Node) -> Elementwise:
    direction = text_of(node.attributes.get("direction", ""))
    if direction not in ("LEFT", "RIGHT"):
        raise Refusal(f"direction = {direction} is not LEFT or RIGHT")
    return np.left_shift if direction == "LEFT" else np.right_shift


_REDUCTIONS = {"ReduceMax": "max", "ReduceMean": "mean", "ReduceMin": "min", "ReduceSum": "sum"}

_VIEWS = ("Flatten", "Reshape", "Squeeze", "Unsqueeze")

_FROM_BITS = ("BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor", "ScatterND")
"""Operators that are computed here whatever the size, in the true type of their elements."""


def fold(node: Node, inputs: Inputs) -> list[Value] | None:
    """The result of a node on constants, or None where it is left to others.

    Raises:
        Refusal: the node cannot be computed, and nobody else can.
        ValueError: the shapes do not fit.
    """
    given = [value for value in inputs if value is not None]
    if not given or not all(isinstance(v, Stored | Known | Quantised | Computed) for v in given):
        return None
    if any(isinstance(v, Known) and numbers(v) is None for v in given[:1]):
        return None
    large = any(
        isinstance(v, Computed | Quantised) or (isinstance(v, Stored) and v.tensor.size > SMALL)
        for v in given
    )
    if not large and node.op_type not in _FROM_BITS and not _grows(node, inputs):
        return None
    if node.op_type in ("MatMul", "Gemm", "DequantizeLinear", "Shape", "Size", "Constant"):
        return None
    if not any(isinstance(v, Computed) for v in given) and _is_view(node, inputs):
        return None
    build = _build(node, inputs)
    return None if build is None else [finished(build(), node)]


def small(node: Node, inputs: Inputs) -> list[Value] | None:
    """The result of a node on small constants, or None where an input is no number."""
    given = [value for value in inputs if value is not None]
    if not given or not all(isinstance(v, Stored | Known) for v in given):
        return None
    build = _build(node, inputs)
    return None if build is None else [finished(build(), node)]


def finished(constant: Constant, node: Node, i: int = 0) -> Value:
    """An expression as a value; a small one is computed."""
    if constant.size <= SMALL:
        return folding.known(np.array(constant.array()), node, i)
    return Computed(constant, node.output(i))


def _is_view(node: Node, inputs: Inputs) -> bool:
    """Whether the file's own tensor still serves, seen otherwise."""
    value = inputs[0]
    match node.op_type:
        case "Identity":
            return True
        case "Transpose":
            return len(getattr(value, "dims", ())) == 2
        case "Cast":
            return isinstance(value, Stored) and value.is_float and cast_type(node) in FLOATS
        case op if op in _VIEWS:
            return isinstance(value, Stored) and not value.transposed
        case _:
            return False


def _grows(node: Node, inputs: Inputs) -> bool:
    """Whether a node makes a large constant of small ones."""
    place = {"Expand": 1, "ConstantOfShape": 0}.get(node.op_type)
    value = None if place is None else inputs[place]
    shape = None if value is None else integers(value)
    return shape is not None and int(np.prod(shape, dtype=np.int64)) > SMALL


def _build(node: Node, inputs: Inputs) -> Callable[[], Constant] | None:
    op = node.op_type
    if op == "ConstantOfShape":
        return lambda: _filled(node, inputs)
    constants = [constant_of(value) for value in inputs if value is not None]
    if any(one is None for one in constants):
        return None  # Shapes and indices that depend on lengths.
    arguments = [one for one in constants if one is not None]
    x = arguments[0]

    def of_type(function: Elementwise) -> Constant:
        # All inputs of these operators have one type, that of the tensor in the file.
        dtype = max(arguments, key=lambda one: one.size).dtype
        return elementwise(function, arguments, dtype)

    def folded(function: Elementwise) -> Constant:
        result = x
        for other in arguments[1:]:
            result = elementwise(function, [result, other], x.dtype)
        return result

    match op:
        case "Max" | "Min":
            return lambda: folded(ARITHMETIC[op])
        case "Mod":
            return lambda: of_type(_modulo(node))
        case "BitShift":
            return lambda: of_type(_shift(node))
        case _ if op in ARITHMETIC:
            return lambda: of_type(ARITHMETIC[op])
        case _ if op in COMPARISONS or op in LOGICAL:
            return lambda: elementwise(FUNCTIONS[op], arguments, np.dtype(np.bool_))
        case "Clip":
            return lambda: _clipped(node, inputs, x)
        case "Cast":
            return lambda: _cast(node, x)
        case "CastLike":
            dtype = arguments[1].dtype
            return lambda: _as_type(x, dtype)
        case "Where":
            dtype = arguments[1].dtype
            return lambda: elementwise(np.where, arguments, dtype)
        case "Identity":
            return lambda: x
        case "Transpose":
            return lambda: permuted(x, permutation(node, len(x.dims)))
        case _ if op in _VIEWS:
            return lambda: reshaped(x, _new_dims(node, inputs, x))
        case "Concat":
            return lambda: joined(arguments, axis_of(node, len(x.dims)))
        case "Slice":
            return lambda: _sliced(node, inputs, x)
        case "Gather":
            return lambda: _gathered(node, inputs, x)
        case "ScatterND":
            return lambda: _scattered(node, inputs, arguments)
        case "Expand":
            return lambda: _expanded(inputs, x)
        case _ if op in _REDUCTIONS:
            return lambda: _reduced(node, inputs, x)
        case _:
            return None


def _new_dims(node: Node, inputs: Inputs, x: Constant) -> tuple[int, ...]:
    dims = new_dims(node, inputs, tuple(expression(d) for d in x.dims))
    constants = [dim.constant for dim in dims]
    if any(dim is None for dim in constants):
        raise Refusal("a constant is given a shape that depends on lengths")
    return tuple(dim for dim in constants if dim is not None)


def _cast(node: Node, x: Constant) -> Constant:
    name = cast_type(node)
    if name not in NUMPY:
        raise Refusal(f"a constant is cast to {name}")
    dtype = np.dtype(NUMPY[name])
    if dtype == x.dtype:
        return x
    return _as_type(x, dtype)


def _clipped(node: Node, inputs: Inputs, x: Constant) -> Constant:
    result = x
    for i, name, function in ((1, "min", np.maximum), (2, "max", np.minimum)):
        value = inputs[i]
        limit: Constant | None = constant_of(value)
        if value is None and name in node.attributes:
            limit = Given(np.asarray(node.attributes[name], x.dtype))
        if limit is not None:
            result = elementwise(function, [result, limit], x.dtype)
    return result


def _sliced(node: Node, inputs: Inputs, x: Constant) -> Constant:
    result = x
    for axis, start, end, stride in slices(node, inputs, len(x.dims)):
        chosen = range(result.dims[axis])[start : None if end <= -(1 << 62) else end : stride]
        if chosen == range(result.dims[axis]):
            continue
        first = chosen[0] if chosen else 0
        result = Taken(result, axis, first, chosen.step, len(chosen))
    return result


def _gathered(node: Node, inputs: Inputs, x: Constant) -> Constant:
    index = None if inputs[1] is None else numbers(inputs[1])
    if index is None or index.dtype.kind not in "iu" or not x.dims:
        raise Refusal("a constant is gathered by an index that is no small constant")
    axis = axis_of(node, len(x.dims))
    flat = index.reshape(-1).astype(np.int64)
    flat = np.where(flat < 0, flat + x.dims[axis], flat)
    if flat.size and not (flat.min() >= 0 and flat.max() < x.dims[axis]):
        raise Refusal("an index is out of range")
    selected = Selected(x, flat, axis)
    return reshaped(selected, (*x.dims[:axis], *index.shape, *x.dims[axis + 1 :]))


def _scattered(node: Node, inputs: Inputs, arguments: Sequence[Constant]) -> Constant:
    base, index, updates = arguments
    if text_of(node.attributes.get("reduction", "none")) != "none":
        raise Refusal("ScatterND with a reduction of constants is not supported")
    if not base.dims or not index.dims or index.dims[-1] != 1 or index.size > base.dims[0]:
        raise Refusal("of a constant only whole rows along the first axis can be replaced")
    rows = index.array().reshape(-1).astype(np.int64)
    rows = np.where(rows < 0, rows + base.dims[0], rows)
    if rows.size and not (rows.min() >= 0 and rows.max() < base.dims[0]):
        raise Refusal("an index is out of range")
    return Scattered(base, rows, reshaped(updates, (rows.size, *base.dims[1:])))


def _filled(node: Node, inputs: Inputs) -> Constant:
    shape = None if inputs[0] is None else integers(inputs[0])
    value = node.attributes.get("value")
    one = value.array() if isinstance(value, Tensor) else np.zeros(1, np.float32)
    assert shape is not None
    return Spread(Given(np.asarray(one).reshape((1,) * len(shape))), tuple(shape))


def _expanded(inputs: Inputs, x: Constant) -> Constant:
    shape = None if inputs[1] is None else integers(inputs[1])
    if shape is None:
        raise Refusal("a constant is expanded to a shape that depends on lengths")
    dims = np.broadcast_shapes(x.dims, tuple(shape))
    if x.size == 1:
        x = reshaped(x, ())
    return Spread(x, dims)


def _reduced(node: Node, inputs: Inputs, x: Constant) -> Constant:
    chosen = reduced_axes(node, inputs, len(x.dims))
    if not chosen:
        return x
    result = Reduced(x, _REDUCTIONS[node.op_type], sorted(chosen))
    if node.attributes.get("keepdims", 1):
        return result
    return reshaped(result, tuple(d for i, d in enumerate(x.dims) if i not in chosen))
