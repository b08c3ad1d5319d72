"""Matrix products: MatMul, Gemm, FusedMatMul and MatMulNBits with constant weights."""

from __future__ import annotations

import numpy as np
from xdsl.dialects.builtin import FloatAttr

from intaglio.dialects import rom
from intaglio.lowering.onnx.graph.model import Node
from intaglio.lowering.onnx.step import BIAS, Step, merged, names_of, real
from intaglio.lowering.onnx.values import (
    Blocked,
    Computed,
    Known,
    Levels,
    Quantised,
    Refusal,
    Stored,
    Unknown,
    Value,
    Vector,
    kind_of,
)
from intaglio.lowering.onnx.weights import weights
from intaglio.lowering.onnx.weights.rounding import Rounding
from intaglio.lowering.onnx.weights.scales import scaled
from intaglio.lowering.onnx.written import levels


def matmul_nbits(step: Step, node: Node) -> None:
    """com.microsoft.MatMulNBits: A, B, scales, zero_points, g_idx, bias."""
    inputs = step.inputs(node)
    parameter = weights.matmul_nbits(node, inputs)
    step.has_integers = True
    if isinstance(inputs[0], Levels):
        if inputs[5] is not None:
            raise Refusal("a bias is added to a product of 8-bit activations")
        step.bind(node, levels.product(step, node, inputs[0], parameter))
        return
    n, k = parameter.source.dims
    bias = None if inputs[5] is None else step.dense(node, 5, (n,), BIAS)
    x = step.row(node, 0, k, "the matrix")
    step.bind(node, step.linear(node, x, parameter, bias))


def matmul(step: Step, node: Node) -> None:
    """MatMul: A [.., K], a constant B [K, N]."""
    _product(step, node, row_axis=1, factor=1.0)


def fused_matmul(step: Step, node: Node) -> None:
    """com.microsoft.FusedMatMul: MatMul times alpha, either factor transposed."""
    attributes = node.attributes
    if attributes.get("transA") or attributes.get("transBatchA") or attributes.get("transBatchB"):
        raise Refusal("transA, transBatchA and transBatchB are not supported")
    row_axis = 0 if attributes.get("transB") else 1
    _product(step, node, row_axis=row_axis, factor=node.real("alpha", 1.0))


def gemm(step: Step, node: Node) -> None:
    """Gemm: A, B and a bias C."""
    attributes = node.attributes
    if attributes.get("transA"):
        raise Refusal("transA is not supported")
    if node.input(2) and node.real("beta", 1.0) != 1.0:
        raise Refusal("beta must be 1")
    row_axis = 0 if attributes.get("transB") else 1
    _product(step, node, row_axis=row_axis, factor=node.real("alpha", 1.0), bias=2)


def matmul_integer_to_float(step: Step, node: Node) -> None:
    """com.microsoft.MatMulIntegerToFloat: MatMulInteger, both scales, and a bias."""
    _with_bias_of(step, node, levels.scaled_integer_product(step, node), 6)


def dynamic_quantize_matmul(step: Step, node: Node) -> None:
    """com.microsoft.DynamicQuantizeMatMul: the same, and the rounding of its activations."""
    _with_bias_of(step, node, levels.dynamic_product(step, node), 4)


def _with_bias_of(step: Step, node: Node, y: Vector, place: int) -> None:
    """Binds a product plus the bias that is an optional input of its node."""
    if step.inputs(node)[place] is not None:
        biased = with_bias(step, node, y, step.dense(node, place, (y.size,), BIAS))
        if biased is None:
            raise Refusal("a bias is added to the sums of a product with 8-bit activations")
        y = biased
    step.bind(node, y)


def _product(
    step: Step, node: Node, *, row_axis: int, factor: float, bias: int | None = None
) -> None:
    inputs = step.inputs(node)
    if isinstance(inputs[0], Stored | Quantised | Computed | Known) and isinstance(
        inputs[1], Vector | Unknown
    ):
        raise Refusal("the constant must be the second factor")
    parameter = _weights_of(step, node, inputs[1], row_axis)
    n, k = parameter.source.dims
    has_bias = bias is not None and inputs[bias] is not None
    if has_bias and factor != 1.0:
        raise Refusal("alpha must be 1 with a bias")
    symbol = None
    if has_bias:
        assert bias is not None
        symbol = step.dense(node, bias, (n,), BIAS)
    if isinstance(inputs[0], Levels):
        result = levels.product(step, node, inputs[0], parameter, factor)
        if symbol is not None:
            biased = with_bias(step, node, result, symbol) if isinstance(result, Vector) else None
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


def _weights_of(step: Step, node: Node, value: Value | None, row_axis: int) -> weights.Parameter:
    if isinstance(value, Unknown):
        raise Blocked
    match value:
        case Quantised():
            step.has_integers = True
            return weights.matrix(value, row_axis)
        case Stored() | Computed():
            if node.index in step.adapters:
                return weights.rounded(value, row_axis, Rounding("int8", 0))
            found = weights.ternary_values(value, row_axis)
            if found is not None:
                step.has_integers = True
                return found
            rounding = _requested(step, node, value)
            if rounding is not None:
                parameter = weights.rounded(value, row_axis, rounding)
                step.quantised(node, parameter)
                return parameter
            if value.is_float and node.index in step.heads and step.has_integers:
                rounding = step.head_rounding
                step.warnings.append(
                    f"node '{node.name}' ({node.op_type}): the head's floating-point weights are "
                    f"engraved as {rounding.in_words()}"
                )
                return weights.rounded(value, row_axis, rounding)
            dtype = weights.type_of(value)
            if not value.is_float:
                raise Refusal(f"weights of the element type {dtype} without scales")
            raise step.float_weights(dtype, value.dims[1 - row_axis])
        case Vector():
            raise Refusal("both factors are activations; a matrix must be a constant")
        case _:
            raise Refusal(f"the matrix must be a constant; here it is {kind_of(value)}")


def _requested(step: Step, node: Node, value: Stored | Computed) -> Rounding | None:
    """How a matrix of floats is to be quantised, by the names it is known under."""
    if step.rounding is None:
        return None
    return step.rounding.of(node.name, weights.name_of(value), *node.scopes)


def with_bias(step: Step, node: Node, x: Vector, bias: str) -> Vector | None:
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
            inner = with_bias(step, node, Vector(operand, x.dims), bias)
            if inner is not None and isinstance(operand.owner, rom.LinearOp):
                pair = [*owner.operands]
                pair[i] = inner.ssa
                op = rom.AddOp(pair[0], pair[1], merged(owner, node.name))
                return Vector(step.emit(op).output, x.dims)
    return None
