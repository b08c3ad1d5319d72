"""Sums, products and powers of activations, with each other and with constants."""

from __future__ import annotations

import math

import numpy as np
from xdsl.dialects.builtin import FloatAttr

from intaglio.dialects import rom
from intaglio.lowering.onnx.graph.model import Node
from intaglio.lowering.onnx.known.shapes import check_broadcast, dims_of
from intaglio.lowering.onnx.operators.activations import gated, squared_relu
from intaglio.lowering.onnx.operators.linear import with_bias
from intaglio.lowering.onnx.step import BIAS, Step, merged, real
from intaglio.lowering.onnx.values import (
    Computed,
    Known,
    Quantised,
    Refusal,
    Stored,
    Value,
    Vector,
    number,
    numbers,
    token_size,
)
from intaglio.lowering.onnx.weights.scales import scaled


def add(step: Step, node: Node) -> None:
    """Add: of two activations, or a bias."""
    a, b = _operands(step, node)
    if a is not None and b is not None:
        step.same_dims(a, b)
        op = step.emit(rom.AddOp(a.ssa, b.ssa, rom.nodes(node.name)))
        step.result(node, op.output, a.dims)
        return
    x, place = (a, 1) if a is not None else (b, 0)
    assert x is not None
    value = step.inputs(node)[place]
    check_broadcast(value, x.dims)
    if number(value) == 0.0:
        step.result(node, x.ssa, x.dims)
        return
    dims = dims_of(value) if value is not None else None
    if dims is None or not dims or dims[-1] != x.size or token_size(dims) != x.size:
        raise Refusal(
            "adding a constant is supported for a vector of biases after a linear operator or norm"
        )
    if not step.single_use(node.input(1 - place)):
        raise Refusal("the value without the bias is used elsewhere too")
    step.whole_row(x)
    symbol = step.dense(node, place, (x.size,), BIAS)
    biased = with_bias(step, node, x, symbol)
    if biased is None:
        raise Refusal("a constant vector is added, but not directly to a linear operator's result")
    step.bind(node, biased)


def sub(step: Step, node: Node) -> None:
    """Sub: of two activations."""
    a, b = _operands(step, node)
    if a is not None and b is not None:
        step.same_dims(a, b)
        minus = step.emit(rom.ScaleOp(b.ssa, real(-1.0), rom.nodes(node.name)))
        op = step.emit(rom.AddOp(a.ssa, minus.output, rom.nodes(node.name)))
        step.result(node, op.output, a.dims)
        return
    x, place = (a, 1) if a is not None else (b, 0)
    assert x is not None
    check_broadcast(step.inputs(node)[place], x.dims)
    if number(step.inputs(node)[place]) != 0.0:
        raise Refusal("subtracting a constant is not supported")
    if place == 1:
        step.result(node, x.ssa, x.dims)
        return
    op = step.emit(rom.ScaleOp(x.ssa, real(-1.0), rom.nodes(node.name)))
    step.result(node, op.output, x.dims)


def mul(step: Step, node: Node) -> None:
    """Mul: of two activations, or by constants."""
    a, b = _operands(step, node)
    if a is not None and b is not None:
        _mul_vectors(step, node, a, b)
        return
    x, place = (a, 1) if a is not None else (b, 0)
    assert x is not None
    value = step.inputs(node)[place]
    check_broadcast(value, x.dims)
    if _rescaled(step, node, x, value, divides=False):
        return
    factor = number(value)
    if factor is None:
        raise Refusal(
            "multiplying by a constant vector is supported directly after a matrix product only, "
            "else by one number"
        )
    _scaled(step, node, x, factor)


def div(step: Step, node: Node) -> None:
    """Div: by constants."""
    a, b = _operands(step, node)
    if a is None or b is not None:
        raise Refusal("dividing by an activation is not supported; only by one number")
    value = step.inputs(node)[1]
    check_broadcast(value, a.dims)
    if _rescaled(step, node, a, value, divides=True):
        return
    divisor = number(value)
    if divisor is None or divisor == 0.0:
        raise Refusal(
            "dividing by a constant vector is supported directly after a matrix product only, "
            "else by one number, not 0"
        )
    _scaled(step, node, a, 1.0 / divisor)


def pow_(step: Step, node: Node) -> None:
    """Pow: the square."""
    exponent = number(step.inputs(node)[1])
    x = step.vector(node, 0)
    check_broadcast(step.inputs(node)[1], x.dims)
    if exponent != 2.0:
        raise Refusal("only the square (exponent 2) is supported")
    _square(step, node, x)


def _operands(step: Step, node: Node) -> tuple[Vector | None, Vector | None]:
    """Both operands, None for a constant; at least one is an activation."""
    found = [
        None if isinstance(value, Stored | Known | Quantised | Computed) else step.vector(node, i)
        for i, value in enumerate(step.inputs(node)[:2])
    ]
    return found[0], found[1]


def _rescaled(step: Step, node: Node, x: Vector, value: Value | None, *, divides: bool) -> bool:
    """Moves a constant factor after a matrix product into the scales of the matrix."""
    array = None if value is None else numbers(value)
    users = step.graph.consumers.get(node.output(0), ())
    if array is None or array.dtype.kind not in "fiu" or not array.size:
        return False
    factor = array.astype(np.float64).reshape(-1)
    if factor.size == 1 and any(user.op_type in ("Tanh", "Sigmoid") for user in users):
        return False  # A soft cap, or QuickGelu's 1.702: the factor belongs to them.
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
        found = gated(x, gate.ssa.owner)
        if found is not None:
            kind, parts = found
            op = rom.ActivateOp(x.ssa, kind, merged(*parts, node.name))
            step.result(node, step.emit(op).output, a.dims)
            return
    if a.ssa is b.ssa:
        _square(step, node, a)
        return
    op = step.emit(rom.MulOp(a.ssa, b.ssa, rom.nodes(node.name)))
    step.result(node, op.output, a.dims)


def _square(step: Step, node: Node, x: Vector) -> None:
    found = squared_relu(step, node, x)
    if found is None:
        op = step.emit(rom.MulOp(x.ssa, x.ssa, rom.nodes(node.name)))
        found = Vector(op.output, x.dims)
    step.bind(node, found)
