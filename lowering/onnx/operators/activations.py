"""Activation functions as single operators, and products that are one."""

from __future__ import annotations

import math
from collections.abc import Sequence

from xdsl.dialects.builtin import FloatAttr
from xdsl.ir import Operation

from intaglio.dialects import rom
from intaglio.lowering.onnx.graph.model import Node, text_of
from intaglio.lowering.onnx.operators.linear import with_bias
from intaglio.lowering.onnx.step import BIAS, Convert, Step, merged, real
from intaglio.lowering.onnx.values import Refusal, Vector


def activation(kind: str) -> Convert:
    """An operator that is a kind of `rom.activate`."""

    def convert(step: Step, node: Node) -> None:
        _activate(step, node, step.vector(node, 0), kind)

    return convert


def elu(step: Step, node: Node) -> None:
    """Elu: alpha * (exp(x) - 1) where x is negative."""
    x, alpha = step.vector(node, 0), node.real("alpha", 1.0)
    if alpha == 1.0:
        _activate(step, node, x, "elu")
        return
    # alpha * elu(x) + (1 - alpha) * relu(x)
    onnx = rom.nodes(node.name)
    parts = [
        step.emit(
            rom.ScaleOp(step.emit(rom.ActivateOp(x.ssa, kind, onnx)).output, real(factor), onnx)
        )
        for kind, factor in (("elu", alpha), ("relu", 1.0 - alpha))
    ]
    op = step.emit(rom.AddOp(parts[0].output, parts[1].output, onnx))
    step.result(node, op.output, x.dims)


def gelu(step: Step, node: Node) -> None:
    """Gelu of ai.onnx: by Erf, or approximated by Tanh."""
    approximate = text_of(node.attributes.get("approximate", "none"))
    if approximate not in ("none", "tanh"):
        raise Refusal(f"approximate = {approximate} is not supported")
    kind = "gelu_tanh" if approximate == "tanh" else "gelu_erf"
    _activate(step, node, step.vector(node, 0), kind)


def quick_gelu(step: Step, node: Node) -> None:
    """QuickGelu and Swish: x * sigmoid(alpha * x)."""
    default = 1.0 if node.op_type == "Swish" else 1.702
    alpha = node.real("alpha", default)
    if alpha == 1.0:
        kind = "silu"
    elif math.isclose(alpha, 1.702, rel_tol=1e-3):
        kind = "quick_gelu"
    else:
        raise Refusal(f"alpha = {alpha} is not supported; 1.702 and 1 are")
    _activate(step, node, step.vector(node, 0), kind)


def biased_gelu(kind: str) -> Convert:
    """BiasGelu and FastGelu: input 1 is a bias, added first."""

    def convert(step: Step, node: Node) -> None:
        x = step.vector(node, 0)
        if node.input(1):
            step.whole_row(x)
            symbol = step.dense(node, 1, (x.size,), BIAS)
            owner = x.ssa.owner
            biased = with_bias(step, node, x, symbol) if step.single_use(node.input(0)) else None
            if biased is None:
                name = owner.name if isinstance(owner, Operation) else "an argument"
                raise Refusal(f"its bias follows {name}, not a linear operator")
            x = biased
        _activate(step, node, x, kind)

    return convert


def _activate(step: Step, node: Node, x: Vector, kind: str) -> None:
    op = step.emit(rom.ActivateOp(x.ssa, kind, rom.nodes(node.name)))
    step.result(node, op.output, x.dims)


def gated(x: Vector, gate: object) -> tuple[str, Sequence[Operation]] | None:
    """x * sigmoid(x) or x * sigmoid(1.702 x): its kind and the operations of the gate, or None."""
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


def squared_relu(step: Step, node: Node, x: Vector) -> Vector | None:
    """The square of x as one activation function, where x is a Relu; else None."""
    owner = x.ssa.owner
    if isinstance(owner, rom.ActivateOp) and owner.kind.data == "relu":
        op = rom.ActivateOp(owner.input, "relu2", merged(owner, node.name))
        return Vector(step.emit(op).output, x.dims)
    return None
