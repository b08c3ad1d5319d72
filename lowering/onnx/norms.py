"""RMS norms written out: Pow, ReduceMean, Add, Sqrt, Div or Reciprocal, Mul, Mul.

The parts have no meaning for a chip on their own, so they are values of their own kind: only the
nodes of such a norm take them, and any other reader is refused.
"""

from __future__ import annotations

from intaglio.dialects import rom
from intaglio.lowering.onnx import folding
from intaglio.lowering.onnx.model import FLOATS, Node
from intaglio.lowering.onnx.step import Step, names_of, real
from intaglio.lowering.onnx.values import NormPart, Refusal, Vector, integers, numbers


def reduce_mean(step: Step, node: Node) -> None:
    """ReduceMean of squares over the last axis."""
    x = step.vector(node, 0)
    axes_value = step.inputs(node)[1]
    axes = node.attributes.get("axes") if axes_value is None else integers(axes_value)
    owner = x.ssa.owner
    if not isinstance(owner, rom.MulOp) or owner.lhs is not owner.rhs:
        raise Refusal("a mean is supported in an RMS norm only, of squares")
    if list(axes or ()) not in ([-1], [len(x.dims) - 1]) or not node.attributes.get("keepdims", 1):
        raise Refusal("a mean is supported over the last axis only, which is kept")
    names = (*names_of(owner), node.name)
    step.bind(node, NormPart("mean", Vector(owner.lhs, x.dims), 0.0, names))


def convert(step: Step, node: Node) -> bool:
    """Converts a node that reads a part of a norm; says whether it does.

    Raises:
        Refusal: it reads one and is no node of a norm.
    """
    inputs = step.inputs(node)
    places = [i for i, value in enumerate(inputs) if isinstance(value, NormPart)]
    if not places:
        return False
    part = inputs[places[0]]
    assert isinstance(part, NormPart)
    other = inputs[1 - places[0]] if places == [0] or places == [1] else None
    constant = None if other is None else numbers(other)
    scalar = float(constant.reshape(-1)[0]) if constant is not None and constant.size == 1 else None
    match node.op_type, part.stage:
        case ("Cast", _) if folding.type_name(node.attributes.get("to")) in FLOATS:
            step.bind(node, part.to(part.stage, node))
        case ("Identity", _):
            step.bind(node, part.to(part.stage, node))
        case ("Add", "mean") if scalar is not None and part.eps == 0.0:
            step.bind(node, part.to("mean", node, eps=scalar))
        case ("Sqrt", "mean"):
            step.bind(node, part.to("root", node))
        case ("Reciprocal", "root"):
            step.bind(node, part.to("inverse", node))
        case ("Div", "root") if places == [1] and scalar == 1.0:
            step.bind(node, part.to("inverse", node))
        case ("Div", "root") if places == [1] and _is_input(other, part):
            step.bind(node, part.to("normalised", node))
        case ("Mul", "inverse") if _is_input(other, part):
            step.bind(node, part.to("normalised", node))
        case ("Mul", "normalised") if constant is not None:
            _finish(step, node, part, 1 - places[0])
        case _:
            raise Refusal(
                f"a norm is written out in a way that is not understood (after its {part.stage})"
            )
    return True


def _is_input(other: object, part: NormPart) -> bool:
    return isinstance(other, Vector) and other.ssa is part.input.ssa


def _finish(step: Step, node: Node, part: NormPart, place: int) -> None:
    x = part.input
    width = x.dims[-1].constant
    if width is None:
        raise Refusal("the last axis varies in length")
    gamma = step.dense(node, place, (width,), "gamma")
    names = rom.nodes(*part.names, node.name)
    op = rom.RMSNormOp(x.ssa, gamma, real(part.eps), names, groups=x.size // width)
    step.result(node, step.emit(op).output, x.dims)
