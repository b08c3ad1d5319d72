"""The one table of supported ONNX operators: what each becomes, its limits, and its converters.

An operator may be *folded* (what it computes is known before the token: constants, shapes, counts
of the attention mask) and *converted* (it works on activations). `intaglio ops` and the
documentation are generated from the same table that drives the import.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from xdsl.dialects.builtin import FloatAttr
from xdsl.ir import Operation

from intaglio.dialects import rom
from intaglio.lowering.onnx import attention, fields, folding, lazy, levels, norms, weights
from intaglio.lowering.onnx.expressions import dims_text, expression
from intaglio.lowering.onnx.folding import Fold
from intaglio.lowering.onnx.model import FLOATS, Node, Tensor
from intaglio.lowering.onnx.scales import scaled
from intaglio.lowering.onnx.step import Step, merged, names_of, real
from intaglio.lowering.onnx.values import (
    Blocked,
    Computed,
    Ids,
    Known,
    Levels,
    Quantised,
    Refusal,
    Stored,
    TableRows,
    Unknown,
    Value,
    Vector,
    integers,
    is_token_major,
    numbers,
    token_size,
)

Convert = Callable[[Step, Node], None]

_FLOATS = {
    "epsilon", "scale", "softcap", "alpha", "beta", "qk_norm_epsilon", "value_float", "min", "max",
    "mask_filter_value",
}  # fmt: skip
_TEXTS = {"approximate", "k_quant_type", "v_quant_type", "round_mode", "direction", "reduction"}
_LISTS = {"axes", "perm", "split", "starts", "ends", "value_ints", "value_floats"}
_TENSORS = {"value"}


def is_attribute_of_its_type(name: str, value: object) -> bool:
    """Whether an attribute holds a value of the type its name asks for; most are integers."""
    if name in _FLOATS:
        return isinstance(value, int | float)
    if name in _TEXTS:
        return isinstance(value, str | bytes)
    if name in _LISTS:
        return isinstance(value, Sequence) and all(isinstance(v, int | float) for v in value)
    return isinstance(value, Tensor if name in _TENSORS else int)


@dataclass(frozen=True)
class OperatorSupport:
    """One supported operator.

    Attributes:
        domain: "" is ai.onnx.
        op_type: the operator's name.
        since: the first version of the domain whose form is understood.
        becomes: the rom operations it is converted to, or "nothing" when it only folds.
        limits: what is not supported, in words.
        attributes: the attributes that are understood; any other is refused.
        outputs: how many outputs may be used.
        fold: computes it before the token.
        convert: emits rom operations for one token.
    """

    domain: str
    op_type: str
    since: int
    becomes: str
    limits: str
    attributes: tuple[str, ...] = ()
    outputs: int = 1
    fold: Fold | None = None
    convert: Convert | None = None


# --- linear operators ----------------------------------------------------------------------------


def _matmul_nbits(step: Step, node: Node) -> None:
    inputs = step.inputs(node)
    parameter = weights.matmul_nbits(node, inputs)
    step.has_integers = True
    if isinstance(inputs[0], Levels):
        if inputs[5] is not None:
            raise Refusal("a bias is added to a product of 8-bit activations")
        step.bind(node, levels.product(step, node, inputs[0], parameter))
        return
    n, k = parameter.source.dims
    bias = None if inputs[5] is None else step.dense(node, 5, (n,), "the bias")
    x = step.row(node, 0, k, "the matrix")
    step.bind(node, step.linear(node, x, parameter, bias))


def _weights_of(step: Step, node: Node, value: Value | None, row_axis: int) -> weights.Parameter:
    if isinstance(value, Unknown):
        raise Blocked
    match value:
        case Quantised():
            step.has_integers = True
            return weights.matrix(value, row_axis)
        case Stored() | Computed():
            if node.index in step.adapters:
                return weights.rounded(value, row_axis, weights.Rounding("int8", 0))
            found = weights.ternary_values(value, row_axis)
            if found is not None:
                step.has_integers = True
                return found
            rounding = _requested(step, node, value)
            if rounding is not None:
                parameter = weights.rounded(value, row_axis, rounding)
                step.rounded[node.outputs[0]] = parameter
                return parameter
            if value.is_float and node.index in step.heads and step.has_integers:
                rounding = weights.HEAD_ROUNDING
                step.warnings.append(
                    f"node '{node.name}' ({node.op_type}): the head's floating-point weights are "
                    f"engraved as {rounding.code} in groups of {rounding.group}"
                )
                return weights.rounded(value, row_axis, rounding)
            dtype = weights.type_of(value)
            if not value.is_float:
                raise Refusal(f"weights of the element type {dtype} without scales")
            raise Refusal(
                f"its weights are floating point ({dtype}); the chip engraves small integers",
                weights.FLOAT_WEIGHTS_HINT,
            )
        case Vector():
            raise Refusal("both factors are activations; a matrix must be a constant")
        case _:
            raise Refusal(f"the matrix must be a constant; here it is {_kind(value)}")


def _requested(step: Step, node: Node, value: Stored | Computed) -> weights.Rounding | None:
    """How a matrix of floats is to be quantised, by the names it is known under."""
    if step.rounding is None:
        return None
    return step.rounding.of(node.name, weights.name_of(value), *node.scopes)


def _kind(value: Value | None) -> str:
    return "missing" if value is None else value.kind


def _matmul(step: Step, node: Node) -> None:
    _product(step, node, row_axis=1, factor=1.0)


def _fused_matmul(step: Step, node: Node) -> None:
    attributes = node.attributes
    if attributes.get("transA") or attributes.get("transBatchA") or attributes.get("transBatchB"):
        raise Refusal("transA, transBatchA and transBatchB are not supported")
    row_axis = 0 if attributes.get("transB") else 1
    _product(step, node, row_axis=row_axis, factor=float(attributes.get("alpha", 1.0)))


def _gemm(step: Step, node: Node) -> None:
    attributes = node.attributes
    if attributes.get("transA"):
        raise Refusal("transA is not supported")
    if node.input(2) and float(attributes.get("beta", 1.0)) != 1.0:
        raise Refusal("beta must be 1")
    row_axis = 0 if attributes.get("transB") else 1
    _product(step, node, row_axis=row_axis, factor=float(attributes.get("alpha", 1.0)), bias=2)


def _product(
    step: Step, node: Node, *, row_axis: int, factor: float, bias: int | None = None
) -> None:
    inputs = step.inputs(node)
    if isinstance(inputs[0], Stored | Quantised) and isinstance(inputs[1], Vector | Unknown):
        raise Refusal("the constant must be the second factor")
    parameter = _weights_of(step, node, inputs[1], row_axis)
    n, k = parameter.source.dims
    has_bias = bias is not None and inputs[bias] is not None
    if has_bias and factor != 1.0:
        raise Refusal("alpha must be 1 with a bias")
    symbol = None
    if has_bias:
        assert bias is not None
        symbol = step.dense(node, bias, (n,), "the bias")
    if isinstance(inputs[0], Levels):
        result = levels.product(step, node, inputs[0], parameter, factor)
        if symbol is not None:
            biased = _with_bias(step, node, result, symbol) if isinstance(result, Vector) else None
            if biased is None:
                raise Refusal("a bias is added to the sums of a product with 8-bit activations")
            result = biased
        step.bind(node, result)
        return
    x = step.row(node, 0, k, "the matrix")
    before = x.ssa.owner
    if symbol is None and isinstance(before, rom.ScaleOp) and isinstance(before.factor, FloatAttr):
        # W (c x) = (c W) x: one operation less, and products of x share its rounding.
        y = step.linear(node, Vector(before.input, x.dims), parameter, before=names_of(before))
        factor *= before.factor.value.data
    else:
        y = step.linear(node, x, parameter, symbol)
    if factor != 1.0:
        inside = scaled(step, node, y, np.asarray(factor, np.float64))
        if inside is None:
            op = step.emit(rom.ScaleOp(y.ssa, real(factor), rom.nodes(node.name)))
            inside = Vector(op.output, y.dims)
        y = inside
    step.bind(node, y)


# --- embeddings, gathers, slices -----------------------------------------------------------------


def _gather(step: Step, node: Node) -> None:
    inputs = step.inputs(node)
    data, index = inputs[0], inputs[1]
    axis = int(node.attributes.get("axis", 0))
    if isinstance(data, Unknown) or isinstance(index, Unknown):
        raise Blocked
    if isinstance(data, Vector):
        _gather_token(step, node, data, index, axis)
        return
    if not isinstance(index, Ids):
        raise Refusal(f"the index is {_kind(index)}; only token ids select rows of a table")
    if index.role != "token":
        raise Refusal(f"rows are selected by {index.kind}", "export rotary embedding fused")
    if axis != 0 or not isinstance(data, Stored | Quantised | Computed) or len(data.dims) != 2:
        raise Refusal("token ids select along the first axis of a constant matrix only")
    if isinstance(data, Stored) and not data.is_float:
        step.bind(node, TableRows(data, index))
        return
    if isinstance(data, Quantised):
        parameter = weights.matrix(data, row_axis=0)
    elif (requested := _requested_table(step, node, data)) is not None:
        parameter = weights.rounded(data, 0, requested)
        step.rounded[node.outputs[0]] = parameter
    elif step.embedding_rounding is not None:
        parameter = weights.rounded(data, 0, step.embedding_rounding)
    else:
        parameter = weights.dense(data, "the table")
    _embed(step, node, parameter, index)


def _dequantize(step: Step, node: Node) -> None:
    """Rows of a table of integers; constants are folded before."""
    inputs = step.inputs(node)
    rows = inputs[0]
    if not isinstance(rows, TableRows):
        if any(isinstance(value, Unknown) for value in inputs):
            raise Blocked
        raise Refusal(f"it reads {_kind(rows)}; only constants and rows of a table are dequantised")
    axis = int(node.attributes.get("axis", 1))
    if axis % 3 != 2 and isinstance(inputs[1], Stored) and inputs[1].tensor.size != 1:
        raise Refusal("rows of a table are dequantised with a scale for each token of a call")
    whole = folding.dequantize(node, [rows.table, *inputs[1:]])
    assert whole is not None
    (value,) = whole
    assert isinstance(value, Quantised)
    value = replace(value, axis=1)
    _embed(step, node, weights.matrix(value, row_axis=0), rows.index)


def _requested_table(step: Step, node: Node, data: Stored | Computed) -> weights.Rounding | None:
    """How a table is quantised on request: as the head whose matrix it is, or by its name."""
    if step.rounding is None:
        return None
    name = weights.name_of(data)
    if name in step.rounded_tables:
        # One tensor in ROM serves both.
        head = step.rounded_tables[name]
        return step.rounding.of(head.name, name, *head.scopes)
    return step.rounding.named(node.name, name, *node.scopes)


def _embed(step: Step, node: Node, parameter: weights.Parameter, index: Ids) -> None:
    width = parameter.source.dims[1]
    table = step.declare(node, parameter)
    op = rom.EmbedOp(step.token, table, rom.nodes(node.name), rom.float_vector(width))
    step.result(node, step.emit(op).output, (*index.dims, expression(width)))


def _gather_block_quantized(step: Step, node: Node) -> None:
    inputs = step.inputs(node)
    parameter = weights.gather_block_quantized(node, inputs)
    index = inputs[1]
    if isinstance(index, Unknown):
        raise Blocked
    if not isinstance(index, Ids) or index.role != "token":
        raise Refusal(f"the index is {_kind(index)}; only token ids select rows of a table")
    _embed(step, node, parameter, index)


def _gather_token(step: Step, node: Node, x: Vector, index: Value | None, axis: int) -> None:
    chosen = None if index is None else numbers(index)
    axis %= len(x.dims)
    if chosen is None or chosen.size != 1 or x.dims[axis] not in (step.sequence, expression(1)):
        raise Refusal(
            f"it selects from axis {axis} of {dims_text(x.dims)}; of activations only the last "
            "token is selected"
        )
    if int(chosen.reshape(-1)[0]) != -1 and x.dims[axis] != 1:
        raise Refusal("of a sequence only the last token (index -1) is selected")
    shape = tuple(expression(d) for d in chosen.shape)
    step.result(node, x.ssa, (*x.dims[:axis], *shape, *x.dims[axis + 1 :]))


def _slice(step: Step, node: Node) -> None:
    if any(isinstance(value, Unknown) for value in step.inputs(node)):
        raise Blocked
    x = step.vector(node, 0)
    dims = list(x.dims)
    ssa = x.ssa
    for axis, start, end, stride in folding.slices(node, step.inputs(node), len(dims)):
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
        ssa, dims = part.ssa, list(part.dims)
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


def _split(step: Step, node: Node) -> None:
    inputs = step.inputs(node)
    sizes = node.attributes.get("split")
    if inputs[1] is not None:
        if isinstance(inputs[1], Unknown):
            raise Blocked
        sizes = integers(inputs[1])
        if sizes is None:
            raise Refusal("the sizes of the parts are not constant")
    x = step.vector(node, 0)
    axis = int(node.attributes.get("axis", 0)) % len(x.dims)
    length = x.dims[axis].constant
    if length is None:
        raise Refusal(f"it cuts axis {axis} of {dims_text(x.dims)}, whose length varies")
    if sizes is None:
        count = int(node.attributes.get("num_outputs", len(node.outputs)))
        part = -(-length // count)
        sizes = [min(part, length - i * part) for i in range(count)]
    sizes = [int(s) for s in sizes]
    if sum(sizes) != length or min(sizes) < 1 or len(sizes) < len(node.outputs):
        raise Refusal(f"parts of {sizes} do not make {length}")
    first = 0
    for i, count in enumerate(sizes[: len(node.outputs)]):
        if node.output(i) and step.graph.uses(node.output(i)):
            step.bind(node, _part(step, node, x, axis, first, count), i)
        first += count


# --- shapes --------------------------------------------------------------------------------------


def _reshape(step: Step, node: Node) -> None:
    if norms.convert(step, node):
        return
    x = step.vector(node, 0)
    if node.op_type == "Identity":
        step.result(node, x.ssa, x.dims)
        return
    if any(isinstance(v, Unknown) for v in step.inputs(node)):
        raise Blocked
    dims = folding.new_dims(node, step.inputs(node), x.dims)
    pairs = list(zip(dims, x.dims, strict=False))
    same = next((i for i, (a, b) in enumerate(pairs) if a != b), len(pairs))
    inner = (*dims[same:], *x.dims[same:])
    if node.op_type in ("Reshape", "Flatten") and any(d.constant is None for d in inner):
        for shape in (x.dims, dims):
            if not is_token_major(shape):
                raise Refusal(
                    f"it turns {dims_text(x.dims)} into {dims_text(dims)}, which mixes tokens"
                )
    if token_size(dims) != x.size:
        raise Refusal(f"it turns {dims_text(x.dims)} into {dims_text(dims)}, which mixes tokens")
    step.result(node, x.ssa, dims)


def _transpose(step: Step, node: Node) -> None:
    x = step.vector(node, 0)
    rank = len(x.dims)
    perm = [int(p) for p in node.attributes.get("perm") or range(rank)[::-1]]
    if sorted(perm) != list(range(rank)):
        raise Refusal(f"perm = {perm} is not a permutation of {rank} axes")
    inner = [axis for axis in perm if token_size((x.dims[axis],)) > 1]
    if inner != sorted(inner):
        raise Refusal(f"perm = {perm} of {dims_text(x.dims)} reorders the elements of a token")
    step.result(node, x.ssa, tuple(x.dims[axis] for axis in perm))


def _cast(step: Step, node: Node) -> None:
    if norms.convert(step, node):
        return
    x = step.vector(node, 0)
    target = folding.type_name(node.attributes.get("to"))
    if target not in FLOATS:
        raise Refusal(f"an activation is cast to {target}")
    step.result(node, x.ssa, x.dims)


# --- norms ---------------------------------------------------------------------------------------


def _rms(step: Step, node: Node) -> None:
    attention.check_last_axis(step, node)
    x = step.vector(node, 0)
    width = x.dims[-1].constant if x.dims else None
    if width is None:
        raise Refusal(f"the last axis of {dims_text(x.dims)} varies in length")
    gamma = step.dense(node, 1, (width,), "gamma")
    eps = float(node.attributes.get("epsilon", 1e-5))
    op = rom.RMSNormOp(x.ssa, gamma, real(eps), rom.nodes(node.name), groups=x.size // width)
    step.result(node, step.emit(op).output, x.dims)


def _layer_norm(step: Step, node: Node) -> None:
    attention.check_last_axis(step, node)
    x = step.vector(node, 0)
    step.whole_row(x)
    _emit_layer_norm(step, node, x, 1, 2)


def _emit_layer_norm(step: Step, node: Node, x: Vector, gamma: int, beta: int) -> None:
    dims = (x.size,)
    scale = step.dense(node, gamma, dims, "gamma")
    shift = step.dense(node, beta, dims, "beta") if node.input(beta) else None
    eps = float(node.attributes.get("epsilon", 1e-5))
    op = rom.LayerNormOp(x.ssa, scale, shift, real(eps), rom.nodes(node.name))
    step.result(node, step.emit(op).output, x.dims)


def _skip_sum(step: Step, node: Node, bias: int) -> Vector:
    """input + skip (+ bias), also output 3 of the Skip operators."""
    a, b = step.vector(node, 0), step.vector(node, 1)
    step.same_dims(a, b)
    step.whole_row(a)
    if node.input(bias):
        symbol = step.dense(node, bias, (a.size,), "the bias")
        for i, x in ((1, b), (0, a)):
            moved = _with_bias(step, node, x, symbol) if step.single_use(node.input(i)) else None
            if moved is not None:
                a, b = (a, moved) if i == 1 else (moved, b)
                break
        else:
            raise Refusal("its bias has no linear operator before it to be folded into")
    op = step.emit(rom.AddOp(a.ssa, b.ssa, rom.nodes(node.name)))
    total = Vector(op.output, a.dims)
    step.bind(node, total, 3)
    return total


def _skip_rms(step: Step, node: Node) -> None:
    total = _skip_sum(step, node, 3)
    gamma = step.dense(node, 2, (total.size,), "gamma")
    eps = float(node.attributes.get("epsilon", 1e-12))
    op = rom.RMSNormOp(total.ssa, gamma, real(eps), rom.nodes(node.name))
    step.result(node, step.emit(op).output, total.dims)


def _skip_layer_norm(step: Step, node: Node) -> None:
    total = _skip_sum(step, node, 4)
    node_eps = node.attributes.get("epsilon", 1e-12)
    scale = step.dense(node, 2, (total.size,), "gamma")
    shift = step.dense(node, 3, (total.size,), "beta") if node.input(3) else None
    op = rom.LayerNormOp(total.ssa, scale, shift, real(float(node_eps)), rom.nodes(node.name))
    step.result(node, step.emit(op).output, total.dims)


# --- elementwise operators -----------------------------------------------------------------------


def _scalar(value: Value | None) -> float | None:
    """The value of a constant whose elements are all equal, or None."""
    array = None if value is None else numbers(value)
    if array is None or array.size == 0 or array.dtype.kind not in "fiub":
        return None
    first = float(array.reshape(-1)[0])
    return first if bool((array == array.reshape(-1)[0]).all()) else None


def _operands(step: Step, node: Node) -> tuple[Vector | None, Vector | None]:
    """Both operands, None for a constant; at least one is an activation."""
    found: list[Vector | None] = []
    for i in (0, 1):
        value = step.inputs(node)[i]
        if isinstance(value, Unknown):
            raise Blocked
        if isinstance(value, Vector):
            found.append(value)
        elif isinstance(value, Stored | Known | Quantised | Computed):
            found.append(None)
        else:
            raise Refusal(f"input {i} is {_kind(value)}")
    return found[0], found[1]


def _check_broadcast(value: Value | None, x: Vector) -> None:
    """A constant may not enlarge the activation."""
    dims = None if value is None else folding.dims_of(value)
    if dims is None:
        return
    if len(dims) > len(x.dims) or any(
        c not in (1, d) for c, d in zip(dims[::-1], x.dims[::-1], strict=False)
    ):
        raise Refusal(f"a constant of shape {dims_text(dims)} enlarges {dims_text(x.dims)}")


def _with_bias(step: Step, node: Node, x: Vector, bias: str) -> Vector | None:
    """The same value plus a constant vector, folded into the linear operator it comes from."""
    owner = x.ssa.owner
    if isinstance(owner, rom.LinearOp) and owner.bias is None:
        op = rom.LinearOp(
            owner.input,
            owner.weights.root_reference.data,
            merged(owner, node.name),
            owner.output.type,
            bias,
            None if owner.activation is None else owner.activation.data,
        )
        return Vector(step.emit(op).output, x.dims)
    if isinstance(owner, rom.LayerNormOp) and owner.beta is None:
        gamma = owner.gamma.root_reference.data
        op = rom.LayerNormOp(owner.input, gamma, bias, owner.eps, merged(owner, node.name))
        return Vector(step.emit(op).output, x.dims)
    if isinstance(owner, rom.AddOp):
        # Base and adapter added first: the bias goes to the base.
        for i, operand in enumerate(owner.operands):
            inner = _with_bias(step, node, Vector(operand, x.dims), bias)
            if inner is not None and isinstance(operand.owner, rom.LinearOp):
                pair = [*owner.operands]
                pair[i] = inner.ssa
                op = rom.AddOp(pair[0], pair[1], merged(owner, node.name))
                return Vector(step.emit(op).output, x.dims)
    return None


def _add(step: Step, node: Node) -> None:
    if norms.convert(step, node):
        return
    a, b = _operands(step, node)
    if a is not None and b is not None:
        step.same_dims(a, b)
        op = step.emit(rom.AddOp(a.ssa, b.ssa, rom.nodes(node.name)))
        step.result(node, op.output, a.dims)
        return
    x, place = (a, 1) if a is not None else (b, 0)
    assert x is not None
    value = step.inputs(node)[place]
    _check_broadcast(value, x)
    if _scalar(value) == 0.0:
        step.result(node, x.ssa, x.dims)
        return
    dims = folding.dims_of(value) if value is not None else None
    if dims is None or not dims or dims[-1] != x.size or token_size(dims) != x.size:
        raise Refusal(
            "adding a constant is supported for a vector of biases after a linear operator or norm"
        )
    if not step.single_use(node.input(1 - place)):
        raise Refusal("the value without the bias is used elsewhere too")
    step.whole_row(x)
    symbol = step.dense(node, place, (x.size,), "the bias")
    biased = _with_bias(step, node, x, symbol)
    if biased is None:
        raise Refusal("a constant vector is added, but not directly to a linear operator's result")
    step.bind(node, biased)


def _sub(step: Step, node: Node) -> None:
    if norms.convert(step, node):
        return
    a, b = _operands(step, node)
    if a is not None and b is not None:
        step.same_dims(a, b)
        minus = step.emit(rom.ScaleOp(b.ssa, real(-1.0), rom.nodes(node.name)))
        op = step.emit(rom.AddOp(a.ssa, minus.output, rom.nodes(node.name)))
        step.result(node, op.output, a.dims)
        return
    x, place = (a, 1) if a is not None else (b, 0)
    assert x is not None
    _check_broadcast(step.inputs(node)[place], x)
    if _scalar(step.inputs(node)[place]) != 0.0:
        raise Refusal("subtracting a constant is not supported")
    if place == 1:
        step.result(node, x.ssa, x.dims)
        return
    op = step.emit(rom.ScaleOp(x.ssa, real(-1.0), rom.nodes(node.name)))
    step.result(node, op.output, x.dims)


def _mul(step: Step, node: Node) -> None:
    if norms.convert(step, node):
        return
    a, b = _operands(step, node)
    if a is not None and b is not None:
        _mul_vectors(step, node, a, b)
        return
    x, place = (a, 1) if a is not None else (b, 0)
    assert x is not None
    value = step.inputs(node)[place]
    _check_broadcast(value, x)
    if _rescaled(step, node, x, value, divides=False):
        return
    factor = _scalar(value)
    if factor is None:
        raise Refusal(
            "multiplying by a constant vector is supported directly after a matrix product only, "
            "else by one number"
        )
    _scaled(step, node, x, factor)


def _div(step: Step, node: Node) -> None:
    if norms.convert(step, node):
        return
    a, b = _operands(step, node)
    if a is None or b is not None:
        raise Refusal("dividing by an activation is not supported; only by one number")
    value = step.inputs(node)[1]
    _check_broadcast(value, a)
    if _rescaled(step, node, a, value, divides=True):
        return
    divisor = _scalar(value)
    if divisor is None or divisor == 0.0:
        raise Refusal(
            "dividing by a constant vector is supported directly after a matrix product only, "
            "else by one number, not 0"
        )
    _scaled(step, node, a, 1.0 / divisor)


def _rescaled(step: Step, node: Node, x: Vector, value: Value | None, *, divides: bool) -> bool:
    """Moves a constant factor after a matrix product into the scales of the matrix."""
    array = None if value is None else numbers(value)
    users = step.graph.consumers.get(node.output(0), ())
    if array is None or array.dtype.kind not in "fiu" or not array.size:
        return False
    if any(user.op_type in ("Tanh", "Sigmoid") for user in users):
        return False  # A soft cap, or QuickGelu's 1.702: the factor belongs to them.
    factor = array.astype(np.float64).reshape(-1)
    if divides:
        with np.errstate(divide="ignore"):
            factor = 1.0 / factor
    result = scaled(step, node, x, factor)
    if result is not None:
        step.bind(node, result)
    return result is not None


def _scaled(step: Step, node: Node, x: Vector, factor: float) -> None:
    owner = x.ssa.owner
    if isinstance(owner, rom.ActivateOp) and owner.kind.data == "tanh":
        inner = owner.input.owner
        if (
            isinstance(inner, rom.ScaleOp)
            and isinstance(inner.factor, FloatAttr)
            and math.isclose(inner.factor.value.data * factor, 1.0, rel_tol=1e-3)
            and factor > 0
        ):
            op = rom.SoftcapOp(inner.input, real(factor), merged(inner, owner, node.name))
            step.result(node, step.emit(op).output, x.dims)
            return
    if factor == 1.0:
        step.result(node, x.ssa, x.dims)
        return
    op = step.emit(rom.ScaleOp(x.ssa, real(factor), rom.nodes(node.name)))
    step.result(node, op.output, x.dims)


def _mul_vectors(step: Step, node: Node, a: Vector, b: Vector) -> None:
    step.same_dims(a, b)
    for x, gate in ((a, b), (b, a)):
        found = _gated(x, gate.ssa.owner)
        if found is not None:
            kind, parts = found
            op = rom.ActivateOp(x.ssa, kind, merged(*parts, node.name))
            step.result(node, step.emit(op).output, a.dims)
            return
    if a.ssa is b.ssa:
        squared = _squared(step, node, a)
        if squared is not None:
            step.bind(node, squared)
            return
    op = step.emit(rom.MulOp(a.ssa, b.ssa, rom.nodes(node.name)))
    step.result(node, op.output, a.dims)


def _gated(x: Vector, gate: object) -> tuple[str, Sequence[Operation]] | None:
    """x * sigmoid(x) and x * sigmoid(1.702 x)."""
    if not isinstance(gate, rom.ActivateOp) or gate.kind.data != "sigmoid":
        return None
    if gate.input is x.ssa:
        return "silu", (gate,)
    inner = gate.input.owner
    if (
        isinstance(inner, rom.ScaleOp)
        and inner.input is x.ssa
        and isinstance(inner.factor, FloatAttr)
        and math.isclose(inner.factor.value.data, 1.702, rel_tol=1e-3)
    ):
        return "quick_gelu", (inner, gate)
    return None


def _norm_part(step: Step, node: Node) -> None:
    """A node that is supported on constants and inside a norm that is written out."""
    if not norms.convert(step, node):
        step.vector(node, 0)
        raise Refusal(f"{node.op_type} of an activation is supported in an RMS norm only")


def _squared(step: Step, node: Node, x: Vector) -> Vector | None:
    owner = x.ssa.owner
    if isinstance(owner, rom.ActivateOp) and owner.kind.data == "relu":
        op = rom.ActivateOp(owner.input, "relu2", merged(owner, node.name))
        return Vector(step.emit(op).output, x.dims)
    return None


def _pow(step: Step, node: Node) -> None:
    if norms.convert(step, node):
        return
    exponent = _scalar(step.inputs(node)[1])
    x = step.vector(node, 0)
    _check_broadcast(step.inputs(node)[1], x)
    if exponent != 2.0:
        raise Refusal("only the square (exponent 2) is supported")
    squared = _squared(step, node, x)
    if squared is None:
        op = step.emit(rom.MulOp(x.ssa, x.ssa, rom.nodes(node.name)))
        squared = Vector(op.output, x.dims)
    step.bind(node, squared)


def _activation(kind: str) -> Convert:
    def convert(step: Step, node: Node) -> None:
        _activate(step, node, step.vector(node, 0), kind)

    return convert


def _activate(step: Step, node: Node, x: Vector, kind: str) -> None:
    op = step.emit(rom.ActivateOp(x.ssa, kind, rom.nodes(node.name)))
    step.result(node, op.output, x.dims)


def _gelu(step: Step, node: Node) -> None:
    approximate = node.attributes.get("approximate", "none")
    text = (
        approximate.decode(errors="replace") if isinstance(approximate, bytes) else str(approximate)
    )
    if text not in ("none", "tanh"):
        raise Refusal(f"approximate = {text} is not supported")
    _activate(step, node, step.vector(node, 0), "gelu_tanh" if text == "tanh" else "gelu_erf")


def _quick_gelu(step: Step, node: Node) -> None:
    alpha = float(node.attributes.get("alpha", 1.702))
    if alpha == 1.0:
        kind = "silu"
    elif math.isclose(alpha, 1.702, rel_tol=1e-3):
        kind = "quick_gelu"
    else:
        raise Refusal(f"alpha = {alpha} is not supported; 1.702 and 1 are")
    _activate(step, node, step.vector(node, 0), kind)


def _biased_gelu(kind: str) -> Convert:
    def convert(step: Step, node: Node) -> None:
        x = step.vector(node, 0)
        if node.input(1):
            step.whole_row(x)
            symbol = step.dense(node, 1, (x.size,), "the bias")
            owner = x.ssa.owner
            biased = _with_bias(step, node, x, symbol) if step.single_use(node.input(0)) else None
            if biased is None:
                name = owner.name if isinstance(owner, Operation) else "an argument"
                raise Refusal(f"its bias follows {name}, not a linear operator")
            x = biased
        _activate(step, node, x, kind)

    return convert


# --- the table -----------------------------------------------------------------------------------

_MS = "com.microsoft"
_NONE = "nothing"
_ROUNDED = "of constants, and where the graph rounds activations to 8 bits (BitNet)"
_TOKEN_SHAPES = "an activation's tokens must not mix and a token's elements keep their order"


@cache
def supported_operators() -> list[OperatorSupport]:
    """Every operator the import understands, sorted by domain and name."""
    table = [
        OperatorSupport(
            "", "Abs", 6, "the activation of rom.linear", _ROUNDED, fold=folding.unary(np.abs),
        ),
        OperatorSupport(
            "", "Add", 7, "rom.add, or the bias of rom.linear",
            "equal shapes, or a constant vector directly after a linear operator or norm; masks of "
            "attention scores",
            fold=folding.elementwise(np.add), convert=_add,
        ),
        OperatorSupport(
            "", "And", 7, _NONE,
            "of masks and conditions",
            fold=fields.fold,
        ),
        OperatorSupport(
            "", "Attention", 23, "rom.append, rom.attention",
            "of all tokens or with the past; a mask proven to be causal or a window",
            (
                "is_causal", "kv_num_heads", "q_num_heads", "qk_matmul_output_mode", "scale",
                "softcap", "softmax_precision",
            ),
            outputs=3, convert=attention.standard_attention,
        ),
        OperatorSupport(
            "", "BitShift", 11, _NONE, "of constants only", ("direction",), fold=lazy.small,
        ),
        OperatorSupport(
            "", "BitwiseAnd", 18, _NONE, "of constants only", fold=lazy.small,
        ),
        OperatorSupport(
            "", "BitwiseNot", 18, _NONE, "of constants only", fold=lazy.small,
        ),
        OperatorSupport(
            "", "BitwiseOr", 18, _NONE, "of constants only", fold=lazy.small,
        ),
        OperatorSupport(
            "", "BitwiseXor", 18, _NONE, "of constants only", fold=lazy.small,
        ),
        OperatorSupport(
            "", "Cast", 6, _NONE, "between floating-point types; integers of shapes and masks",
            ("to", "saturate", "round_mode"), fold=folding.cast, convert=_cast,
        ),
        OperatorSupport(
            "", "CastLike", 15, _NONE, "as Cast", ("saturate", "round_mode"), fold=lazy.small,
        ),
        OperatorSupport(
            "", "Ceil", 6, _NONE, "of constants, lengths, positions and masks",
            fold=folding.unary(np.ceil),
        ),
        OperatorSupport(
            "", "Clip", 6, "the activation of rom.linear", _ROUNDED,
            ("min", "max"), fold=lazy.small,
        ),
        OperatorSupport(
            "", "Concat", 4, "rom.append, rom.rotary",
            "of constants, shapes and positions; past and new keys or values; in a rotary "
            "embedding "
            "written out",
            ("axis",), fold=folding.concat,
        ),
        OperatorSupport(
            "", "Constant", 1, _NONE, "numbers only",
            ("value", "value_float", "value_floats", "value_int", "value_ints"),
            fold=folding.constant,
        ),
        OperatorSupport(
            "", "ConstantOfShape", 9, _NONE, "of a small constant shape, or one of lengths",
            ("value",),
            fold=folding.constant_of_shape,
        ),
        OperatorSupport(
            "", "Cos", 7, "rom.rotary",
            "of angles that depend on positions",
            fold=fields.fold,
        ),
        OperatorSupport(
            "", "CumSum", 11, _NONE,
            "of the attention mask",
            ("exclusive", "reverse"),
            fold=fields.fold,
        ),
        OperatorSupport(
            "", "DequantizeLinear", 10, "rom.embed, or the code of a rom.parameter",
            "constants of 2, 4 or 8 bits as weights or table; scales per tensor, per output or in "
            "blocks along the inputs",
            ("axis", "block_size", "output_dtype"), fold=folding.dequantize, convert=_dequantize,
        ),
        OperatorSupport(
            "", "Div", 7, "rom.scale", "by one constant number",
            fold=folding.elementwise(folding.exact_divide), convert=_div,
        ),
        OperatorSupport(
            "", "DynamicQuantizeLinear", 11, "rom.linear",
            "becomes the chip's own rounding of each token; read by MatMulInteger only", outputs=3,
            convert=levels.dynamic,
        ),
        OperatorSupport(
            "", "Equal", 7, _NONE, "of constants, lengths, positions and masks", fold=lazy.small,
        ),
        OperatorSupport(
            "", "Erf", 9, "rom.activate",
            "in an activation function written out",
        ),
        OperatorSupport(
            "", "Exp", 6, "rom.activate",
            "of constants, and in an activation function written out",
            fold=fields.fold,
        ),
        OperatorSupport(
            "", "Expand", 8, _NONE,
            "of constants, lengths and masks; repeats heads of keys and values", fold=lazy.small,
        ),
        OperatorSupport(
            "", "Flatten", 1, _NONE, _TOKEN_SHAPES, ("axis",), fold=folding.reshape,
            convert=_reshape,
        ),
        OperatorSupport(
            "", "Floor", 6, _NONE, "of constants, lengths, positions and masks",
            fold=folding.unary(np.floor),
        ),
        OperatorSupport(
            "", "Gather", 1, "rom.embed",
            "rows of a constant table by token id; the last token of a sequence; shapes and "
            "positions; repeats heads of keys and values",
            ("axis",), fold=folding.gather, convert=_gather,
        ),
        OperatorSupport(
            "", "GatherND", 11, _NONE,
            "of masks and positions",
            ("batch_dims",),
            fold=fields.fold,
        ),
        OperatorSupport(
            "", "Gelu", 20, "rom.activate", "", ("approximate",), convert=_gelu,
        ),
        OperatorSupport(
            "", "Gemm", 7, "rom.linear",
            "constant second factor (as MatMul) and bias; transA = 0, beta = 1",
            ("alpha", "beta", "transA", "transB"), convert=_gemm,
        ),
        OperatorSupport(
            "", "Greater", 7, _NONE, "of constants, lengths, positions and masks", fold=lazy.small,
        ),
        OperatorSupport(
            "", "GreaterOrEqual", 12, _NONE,
            "of constants, lengths, positions and masks",
            fold=fields.fold,
        ),
        OperatorSupport(
            "", "Identity", 1, _NONE, "", fold=folding.reshape, convert=_reshape,
        ),
        OperatorSupport(
            "", "IsNaN", 9, _NONE,
            "of attention probabilities, which are never NaN, and of constants",
            fold=fields.fold,
        ),
        OperatorSupport(
            "", "LayerNormalization", 17, "rom.layer_norm", "over the whole last axis",
            ("axis", "epsilon", "stash_type"), convert=_layer_norm,
        ),
        OperatorSupport(
            "", "Less", 7, _NONE, "of constants, lengths, positions and masks", fold=lazy.small,
        ),
        OperatorSupport(
            "", "LessOrEqual", 12, _NONE,
            "of constants, lengths, positions and masks",
            fold=fields.fold,
        ),
        OperatorSupport(
            "", "Log", 6, "rom.activate",
            "of constants, and in an activation function written out",
            fold=fields.fold,
        ),
        OperatorSupport(
            "", "MatMul", 1, "rom.linear, rom.attention",
            "constant second factor: dequantised (DequantizeLinear), or floating point with "
            "--weights or as a LoRA adapter; in attention written out",
            convert=_matmul,
        ),
        OperatorSupport(
            "", "MatMulInteger", 10, "rom.linear",
            "constant second factor; the first one rounded to 8 bits by the graph",
            convert=levels.integer_product,
        ),
        OperatorSupport(
            "", "Max", 8, "the activation of rom.linear", _ROUNDED,
            fold=lazy.small,
        ),
        OperatorSupport(
            "", "Min", 8, "the activation of rom.linear", _ROUNDED,
            fold=lazy.small,
        ),
        OperatorSupport(
            "", "Mod", 10, _NONE, "of constants, lengths, positions and masks", ("fmod",),
            fold=lazy.small,
        ),
        OperatorSupport(
            "", "Mul", 7, "rom.mul, rom.scale, rom.activate, rom.softcap, rom.rms_norm",
            "equal shapes, or one constant number",
            fold=folding.elementwise(np.multiply), convert=_mul,
        ),
        OperatorSupport(
            "", "Neg", 6, "rom.scale, rom.rotary", "in a rotary embedding written out, else by -1",
            fold=folding.unary(np.negative),
        ),
        OperatorSupport(
            "", "Not", 1, _NONE,
            "of masks and conditions",
            fold=fields.fold,
        ),
        OperatorSupport(
            "", "Or", 7, _NONE,
            "of masks and conditions",
            fold=fields.fold,
        ),
        OperatorSupport(
            "", "Pow", 7, "rom.activate, rom.mul",
            "exponent 2; others in norms and activation functions written out",
            fold=folding.elementwise(np.power), convert=_pow,
        ),
        OperatorSupport(
            "", "RMSNormalization", 23, "rom.rms_norm", "over the last axis",
            ("axis", "epsilon", "stash_type"), convert=_rms,
        ),
        OperatorSupport(
            "", "Range", 11, _NONE,
            "of constants and lengths",
            fold=fields.fold,
        ),
        OperatorSupport(
            "", "Reciprocal", 6, "rom.rms_norm", "of constants, and in a norm written out",
            fold=folding.unary(np.reciprocal), convert=_norm_part,
        ),
        OperatorSupport(
            "", "ReduceMax", 1, "the activation of rom.linear",
            _ROUNDED,
            ("axes", "keepdims", "noop_with_empty_axes"), fold=lazy.small,
        ),
        OperatorSupport(
            "", "ReduceMean", 1, "rom.rms_norm, rom.layer_norm", "in a norm written out",
            ("axes", "keepdims", "noop_with_empty_axes"), fold=lazy.small,
            convert=norms.reduce_mean,
        ),
        OperatorSupport(
            "", "ReduceMin", 1, _NONE, "of constants, lengths, positions and masks",
            ("axes", "keepdims", "noop_with_empty_axes"), fold=lazy.small,
        ),
        OperatorSupport(
            "", "ReduceSum", 1, _NONE, "of masks and of constants",
            ("axes", "keepdims", "noop_with_empty_axes"), fold=folding.reduce_sum,
        ),
        OperatorSupport(
            "", "Relu", 6, "rom.activate", "", convert=_activation("relu"),
        ),
        OperatorSupport(
            "", "Reshape", 5, _NONE, _TOKEN_SHAPES, ("allowzero",), fold=folding.reshape,
            convert=_reshape,
        ),
        OperatorSupport(
            "", "RotaryEmbedding", 23, "rom.rotary",
            "constant tables [positions, rotary_dim / 2] with the graph's position ids",
            ("interleaved", "num_heads", "rotary_embedding_dim"),
            convert=attention.standard_rotary,
        ),
        OperatorSupport(
            "", "Round", 11, "the activation of rom.linear", _ROUNDED,
            fold=folding.unary(np.rint),
        ),
        OperatorSupport(
            "", "ScatterND", 11, _NONE, "rows of constants only", ("reduction",), fold=lazy.small,
        ),
        OperatorSupport(
            "", "Shape", 1, _NONE, "", ("start", "end"), fold=folding.shape,
        ),
        OperatorSupport(
            "", "Sigmoid", 6, "rom.activate", "", convert=_activation("sigmoid"),
        ),
        OperatorSupport(
            "", "Sign", 9, _NONE, "of constants only", fold=folding.unary(np.sign),
        ),
        OperatorSupport(
            "", "SimplifiedLayerNormalization", 1, "rom.rms_norm",
            "over the last axis (an onnxruntime operator in the default domain)",
            ("axis", "epsilon", "stash_type"), convert=_rms,
        ),
        OperatorSupport(
            "", "Sin", 7, "rom.rotary",
            "of angles that depend on positions",
            fold=fields.fold,
        ),
        OperatorSupport("", "Size", 1, _NONE, "", fold=folding.size),
        OperatorSupport(
            "", "Slice", 1, "rom.slice",
            "contiguous parts of a token's elements; the last token of a sequence; shapes and "
            "masks; parts of heads in a rotary embedding written out",
            ("starts", "ends", "axes"), fold=folding.slice_, convert=_slice,
        ),
        OperatorSupport(
            "", "Softmax", 13, "rom.attention",
            "of attention scores over the tokens, in attention written out",
            ("axis",),
        ),
        OperatorSupport(
            "", "Softplus", 1, "rom.activate",
            "in an activation function written out",
        ),
        OperatorSupport(
            "", "Split", 2, "rom.slice",
            "contiguous parts of a token's elements; parts of heads in a rotary embedding "
            "written out",
            ("axis", "split", "num_outputs"), outputs=1 << 16, convert=_split,
        ),
        OperatorSupport(
            "", "Sqrt", 6, "rom.rms_norm", "of constants, and in a norm written out",
            fold=folding.unary(np.sqrt), convert=_norm_part,
        ),
        OperatorSupport(
            "", "Squeeze", 1, _NONE, _TOKEN_SHAPES, ("axes",), fold=folding.reshape,
            convert=_reshape,
        ),
        OperatorSupport(
            "", "Sub", 7, "rom.scale, rom.add",
            "equal shapes; no constants but 0; in norms and activation functions written out",
            fold=folding.elementwise(np.subtract), convert=_sub,
        ),
        OperatorSupport(
            "", "Tanh", 6, "rom.activate, rom.softcap", "", convert=_activation("tanh"),
        ),
        OperatorSupport(
            "", "Tile", 6, _NONE,
            "as Expand",
            fold=fields.fold,
        ),
        OperatorSupport(
            "", "Transpose", 1, _NONE, _TOKEN_SHAPES, ("perm",), fold=folding.transpose,
            convert=_transpose,
        ),
        OperatorSupport(
            "", "Trilu", 14, _NONE,
            "of constants and masks",
            ("upper",),
            fold=fields.fold,
        ),
        OperatorSupport(
            "", "Unsqueeze", 1, _NONE, _TOKEN_SHAPES, ("axes",), fold=folding.reshape,
            convert=_reshape,
        ),
        OperatorSupport(
            "", "Where", 9, _NONE,
            "of constants, lengths and masks; of attention scores by a mask", fold=lazy.small,
        ),
        OperatorSupport(
            "", "Xor", 7, _NONE,
            "of masks and conditions",
            fold=fields.fold,
        ),
        OperatorSupport(
            _MS, "BiasGelu", 1, "rom.activate", "the bias follows a linear operator",
            convert=_biased_gelu("gelu_erf"),
        ),
        OperatorSupport(
            _MS, "FastGelu", 1, "rom.activate", "a bias follows a linear operator",
            convert=_biased_gelu("gelu_tanh"),
        ),
        OperatorSupport(
            _MS, "FusedMatMul", 1, "rom.linear, rom.scale", "as MatMul; transA = 0",
            ("alpha", "transA", "transB", "transBatchA", "transBatchB"), convert=_fused_matmul,
        ),
        OperatorSupport(
            _MS, "GatherBlockQuantized", 1, "rom.embed",
            "rows by token id; 2, 4 or 8 bits; integral zero points",
            ("bits", "block_size", "gather_axis", "quantize_axis"),
            convert=_gather_block_quantized,
        ),
        OperatorSupport(
            _MS, "Gelu", 1, "rom.activate", "", convert=_activation("gelu_erf"),
        ),
        OperatorSupport(
            _MS, "GroupQueryAttention", 1,
            "rom.slice, rom.rms_norm, rom.rotary, rom.append, rom.attention",
            "an attention bias proven to be causal or a window; no head sink, no smooth softmax; a "
            "quantised cache needs one scale for keys and one for values",
            attention.GQA_ATTRIBUTES, outputs=3, convert=attention.group_query_attention,
        ),
        OperatorSupport(
            _MS, "MatMulNBits", 1, "rom.linear",
            "2, 4 or 8 bits; zero points absent, integers, or floats that are integers; no "
            "reordering g_idx",
            ("K", "N", "bits", "block_size", "accuracy_level", "weight_prepacked"),
            convert=_matmul_nbits,
        ),
        OperatorSupport(
            _MS, "MultiHeadAttention", 1, "rom.append, rom.attention",
            "of all tokens or with the past; no bias; an attention bias proven to be causal or a "
            "window",
            ("mask_filter_value", "num_heads", "scale", "unidirectional"), outputs=3,
            convert=attention.multi_head_attention,
        ),
        OperatorSupport(
            _MS, "QuickGelu", 1, "rom.activate", "alpha 1.702 or 1", ("alpha",),
            convert=_quick_gelu,
        ),
        OperatorSupport(
            _MS, "RotaryEmbedding", 1, "rom.rotary",
            "constant tables with the graph's position ids; scale = 1",
            ("interleaved", "num_heads", "rotary_embedding_dim", "scale", "is_packed_batching"),
            convert=attention.rotary_embedding,
        ),
        OperatorSupport(
            _MS, "SkipLayerNormalization", 1, "rom.add, rom.layer_norm",
            "outputs 0 and 3; a bias input follows a linear operator", ("epsilon",), outputs=4,
            convert=_skip_layer_norm,
        ),
        OperatorSupport(
            _MS, "SkipSimplifiedLayerNormalization", 1, "rom.add, rom.rms_norm",
            "outputs 0 and 3; a bias input follows a linear operator", ("epsilon",), outputs=4,
            convert=_skip_rms,
        ),
    ]  # fmt: skip
    return sorted(table, key=lambda entry: (entry.domain, entry.op_type))


@cache
def table() -> dict[tuple[str, str], OperatorSupport]:
    """The table by domain and name."""
    return {(entry.domain, entry.op_type): entry for entry in supported_operators()}
