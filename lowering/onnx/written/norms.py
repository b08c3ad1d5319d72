"""RMS and layer norms written out: Pow, ReduceMean, Add, Sqrt, Div or Reciprocal, Mul, Mul.

The parts have no meaning for a chip on their own, so they are values of their own kind: only the
nodes of such a norm take them, and any other reader is refused.
"""

from __future__ import annotations

import numpy as np

from intaglio.dialects import rom
from intaglio.lowering.onnx.graph.model import FLOATS, Node, cast_type
from intaglio.lowering.onnx.known import folding
from intaglio.lowering.onnx.known.shapes import reduced_axes
from intaglio.lowering.onnx.step import GAMMA, Step, names_of
from intaglio.lowering.onnx.values import NormPart, Refusal, Value, Vector, numbers


def reduce_mean(step: Step, node: Node) -> None:
    """ReduceMean over the last axis: of squares, or of an activation that is to be centred."""
    value = step.inputs(node)[0]
    part = value if isinstance(value, NormPart) else None
    x = step.vector(node, 0) if part is None else part.input
    rank = len(x.dims)
    if reduced_axes(node, step.inputs(node), rank) != {rank - 1} or not node.attributes.get(
        "keepdims", 1
    ):
        raise Refusal("a mean is supported over the last axis only, which is kept")
    if part is not None:
        if part.stage != "squares":
            raise Refusal(f"a norm is written out in a way that is not understood ({part.stage})")
        step.bind(node, part.to("mean", node))
        return
    owner = x.ssa.owner
    if isinstance(owner, rom.MulOp) and owner.lhs is owner.rhs:
        names = (*names_of(owner), node.name)
        step.bind(node, NormPart("mean", Vector(owner.lhs, x.dims), 0.0, names))
        return
    step.bind(node, NormPart("average", x, 0.0, (node.name,), centred=True))


def convert(step: Step, node: Node, inputs: list[Value | None]) -> bool:
    """Converts a node that reads a part of a norm; says whether it does.

    Raises:
        Refusal: it reads one and is no node of a norm.
    """
    places = [i for i, value in enumerate(inputs) if isinstance(value, NormPart)]
    if not places:
        return False
    if len(places) == 2:
        _convert_two(step, node, inputs)
        return True
    part = inputs[places[0]]
    assert isinstance(part, NormPart)
    other = inputs[1 - places[0]] if places == [0] or places == [1] else None
    constant = None if other is None else numbers(other)
    scalar = float(constant.reshape(-1)[0]) if constant is not None and constant.size == 1 else None
    match node.op_type, part.stage:
        case ("Cast", _) if cast_type(node) in FLOATS:
            step.bind(node, part.to(part.stage, node))
        case ("Identity", _):
            step.bind(node, part.to(part.stage, node))
        case ("Sub", "average") if places == [1] and _is_input(other, part):
            step.bind(node, part.to("centred", node))
        case ("Pow", "centred") if places == [0] and scalar == 2.0:
            step.bind(node, part.to("squares", node))
        case ("Add", "mean") if scalar is not None and part.eps == 0.0:
            step.bind(node, part.to("mean", node, eps=scalar))
        case ("Sqrt", "mean"):
            step.bind(node, part.to("root", node))
        case ("Pow", "mean") if places == [0] and scalar in (0.5, -0.5):
            step.bind(node, part.to("root" if scalar == 0.5 else "inverse", node))
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
        case ("ReduceMean", _) | (_, "normalised"):
            # The operator's own converter takes the mean, or the norm without its factor.
            return False
        case _:
            raise Refusal(
                f"a norm is written out in a way that is not understood (after its {part.stage})"
            )
    return True


def _convert_two(step: Step, node: Node, inputs: list[Value | None]) -> None:
    """Nodes that read two parts: what is centred, and what it is scaled with."""
    a, b = inputs[:2]
    assert isinstance(a, NormPart) and isinstance(b, NormPart)
    if a.input.ssa is not b.input.ssa:
        raise Refusal("parts of two norms are combined")
    match node.op_type, a.stage, b.stage:
        case ("Mul", "centred", "centred"):
            step.bind(node, a.to("squares", node))
        case ("Mul", "centred", "inverse") if b.centred:
            step.bind(node, b.to("normalised", node))
        case ("Mul", "inverse", "centred") if a.centred:
            step.bind(node, a.to("normalised", node))
        case ("Div", "centred", "root") if b.centred:
            step.bind(node, b.to("normalised", node))
        case _:
            raise Refusal(
                f"a norm is written out in a way that is not understood (its {a.stage} and "
                f"{b.stage})"
            )


def _is_input(other: object, part: NormPart) -> bool:
    if part.centred and part.stage != "average":
        return False
    return isinstance(other, Vector) and other.ssa is part.input.ssa


def _finish(step: Step, node: Node, part: NormPart, place: int) -> None:
    x = part.input
    width = x.dims[-1].constant
    if width is None:
        raise Refusal("the last axis varies in length")
    value = step.inputs(node)[place]
    constant = None if value is None else numbers(value)
    if constant is not None and constant.size == 1 and width != 1:
        whole = np.full(width, constant.reshape(-1)[0], np.float32)
        value = folding.known(whole, node)
    gamma = step.dense_value(node, value, (width,), GAMMA)
    step.bind(node, step.norm(part, gamma, width, (*part.names, node.name)))
