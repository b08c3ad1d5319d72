"""Constant scales after (or before) a linear operator, moved into the scales of its matrix.

Where the parts of a packed product have scales or biases each, its matrix is cut into theirs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from xdsl.dialects.builtin import SymbolRefAttr
from xdsl.ir import Operation

from intaglio.dialects import rom
from intaglio.lowering.onnx.graph.model import Node
from intaglio.lowering.onnx.known.expressions import expression
from intaglio.lowering.onnx.step import Step, merged
from intaglio.lowering.onnx.values import Product, Vector
from intaglio.lowering.onnx.weights import weights


def scaled(step: Step, node: Node, y: Vector, factor: npt.NDArray[np.float64]) -> Vector | None:
    """y times a number, or times one number for each output [N], as one linear operator.

    Gives None where `y` is no product of a matrix of its own, or has its bias already, or is used
    elsewhere too.
    """
    owner = _own_product(step, y)
    if owner is None or factor.size not in (1, y.size):
        return None
    if factor.size == 1:
        factor = factor.reshape(())
    if not np.isfinite(factor).all() or not factor.all():
        return None
    symbol = step.replace_parameter(
        owner.weights.root_reference.data,
        lambda parameter: weights.scaled(parameter, factor),
        _module_of(step, node),
    )
    op = step.emit(
        rom.LinearOp(
            owner.input,
            symbol,
            merged(owner, node.name),
            owner.output.type,
            activation=None if owner.activation is None else owner.activation.data,
        )
    )
    step.superseded.add(id(owner))
    return Vector(op.output, y.dims)


def split(step: Step, node: Node, y: Vector, sizes: Sequence[int]) -> list[Vector] | None:
    """Parts of a product as linear operators of their own, so that each may have its scale.

    Gives None where `scaled` would for the whole.
    """
    owner = _own_product(step, y)
    if owner is None:
        return None
    activation = None if owner.activation is None else owner.activation.data
    step.superseded.add(id(owner))
    parts: list[Vector] = []
    for symbol, size in zip(
        step.split_parameter(owner.weights.root_reference.data, sizes), sizes, strict=True
    ):
        op = rom.LinearOp(
            owner.input,
            symbol,
            merged(owner, node.name),
            rom.float_vector(size),
            activation=activation,
        )
        parts.append(Vector(step.emit(op).output, (*y.dims[:-1], expression(size))))
    return parts


def _own_product(step: Step, y: Vector) -> rom.LinearOp | None:
    """The product that a value is, where its matrix and its result are used once; no bias yet."""
    owner = y.ssa.owner
    if not isinstance(owner, rom.LinearOp) or owner.bias is not None:
        return None
    if not y.dims or y.dims[-1] != y.size:
        return None
    if any(step.graph.uses(name) != 1 for name in _names_of(step, y)):
        return None
    symbol = owner.weights.root_reference.data
    users = [op for op in step.block.ops if _reads(op, symbol) and id(op) not in step.superseded]
    return owner if users == [owner] else None


def _module_of(step: Step, node: Node) -> str:
    """The name of the module that a scale belongs to: torch names scales, not folded weights."""
    for name in node.inputs:
        inner = step.graph.producers.get(name)
        for one in (name, *(inner.inputs if inner is not None and inner.op_type == "Mul" else ())):
            if one in step.graph.initializers and one.endswith(".weight_scale"):
                return one.removesuffix("_scale")
    return ""


def _names_of(step: Step, y: Vector) -> list[str]:
    """Names of the graph that stand for a value."""
    return [
        name
        for name, value in step.values.items()
        if (isinstance(value, Vector) and value.ssa is y.ssa)
        or (isinstance(value, Product) and value.output.ssa is y.ssa)
    ]


def _reads(op: Operation, symbol: str) -> bool:
    return isinstance(op, rom.LinearOp | rom.RowOp) and any(
        isinstance(attribute, SymbolRefAttr) and attribute.root_reference.data == symbol
        for attribute in op.properties.values()
    )
