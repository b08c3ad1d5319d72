"""Norms as single operators, with and without the sum before them."""

from __future__ import annotations

from intaglio.dialects import rom
from intaglio.lowering.onnx.graph.model import Node
from intaglio.lowering.onnx.known.expressions import dims_text
from intaglio.lowering.onnx.known.shapes import axis_of
from intaglio.lowering.onnx.operators.linear import with_bias
from intaglio.lowering.onnx.step import BETA, BIAS, GAMMA, Step, real
from intaglio.lowering.onnx.values import Refusal, Vector


def rms_norm(step: Step, node: Node) -> None:
    """RMSNormalization and SimplifiedLayerNormalization: X, scale."""
    _check_last_axis(step, node)
    x = step.vector(node, 0)
    width = x.dims[-1].constant if x.dims else None
    if width is None:
        raise Refusal(f"the last axis of {dims_text(x.dims)} varies in length")
    gamma = step.dense(node, 1, (width,), GAMMA)
    eps = node.real("epsilon", 1e-5)
    op = rom.RMSNormOp(x.ssa, gamma, real(eps), rom.nodes(node.name), groups=x.size // width)
    step.result(node, step.emit(op).output, x.dims)


def layer_norm(step: Step, node: Node) -> None:
    """LayerNormalization: X, scale, bias."""
    _check_last_axis(step, node)
    x = step.vector(node, 0)
    step.whole_row(x)
    _emit_layer_norm(step, node, x, 1, 2, 1e-5)


def _emit_layer_norm(
    step: Step, node: Node, x: Vector, gamma: int, beta: int, epsilon: float
) -> None:
    """A layer norm with constant inputs `gamma` and `beta`; `epsilon` is the default."""
    scale = step.dense(node, gamma, (x.size,), GAMMA)
    shift = step.dense(node, beta, (x.size,), BETA) if node.input(beta) else None
    eps = node.real("epsilon", epsilon)
    op = rom.LayerNormOp(x.ssa, scale, shift, real(eps), rom.nodes(node.name))
    step.result(node, step.emit(op).output, x.dims)


def skip_rms_norm(step: Step, node: Node) -> None:
    """com.microsoft.SkipSimplifiedLayerNormalization: input, skip, gamma, bias."""
    total = _skip_sum(step, node, 3)
    gamma = step.dense(node, 2, (total.size,), GAMMA)
    eps = node.real("epsilon", 1e-12)
    op = rom.RMSNormOp(total.ssa, gamma, real(eps), rom.nodes(node.name))
    step.result(node, step.emit(op).output, total.dims)


def skip_layer_norm(step: Step, node: Node) -> None:
    """com.microsoft.SkipLayerNormalization: input, skip, gamma, beta, bias."""
    total = _skip_sum(step, node, 4)
    _emit_layer_norm(step, node, total, 2, 3, 1e-12)


def _skip_sum(step: Step, node: Node, bias: int) -> Vector:
    """input + skip (+ bias), also output 3 of the Skip operators."""
    a, b = step.vector(node, 0), step.vector(node, 1)
    step.same_dims(a, b)
    step.whole_row(a)
    if node.input(bias):
        symbol = step.dense(node, bias, (a.size,), BIAS)
        for i, x in ((1, b), (0, a)):
            moved = with_bias(step, node, x, symbol) if step.single_use(node.input(i)) else None
            if moved is not None:
                a, b = (a, moved) if i == 1 else (moved, b)
                break
        else:
            raise Refusal("its bias has no linear operator before it to be folded into")
    op = step.emit(rom.AddOp(a.ssa, b.ssa, rom.nodes(node.name)))
    total = Vector(op.output, a.dims)
    step.bind(node, total, 3)
    return total


def _check_last_axis(step: Step, node: Node) -> None:
    """A norm must be over the last axis.

    Raises:
        Refusal: it is not.
    """
    rank = len(step.vector(node, 0).dims)
    axis = axis_of(node, rank, -1)
    if axis != rank - 1:
        raise Refusal(f"axis = {axis} is not the last of {rank} axes")
