"""Rows of constant tables that token ids choose, stored as floats or quantised."""

from __future__ import annotations

from dataclasses import replace

from intaglio.dialects import rom
from intaglio.lowering.onnx.graph.model import Node
from intaglio.lowering.onnx.known import folding
from intaglio.lowering.onnx.known.expressions import expression
from intaglio.lowering.onnx.operators.rearrangement import chosen_token
from intaglio.lowering.onnx.step import Step
from intaglio.lowering.onnx.values import (
    Blocked,
    Computed,
    Ids,
    Quantised,
    Refusal,
    Stored,
    TableRows,
    Unknown,
    Vector,
    kind_of,
)
from intaglio.lowering.onnx.weights import weights
from intaglio.lowering.onnx.weights.rounding import Rounding


def gather(step: Step, node: Node) -> None:
    """Gather: rows of a table by token id, or the last token of an activation."""
    inputs = step.inputs(node)
    data, index = inputs[0], inputs[1]
    if isinstance(data, Unknown) or isinstance(index, Unknown):
        raise Blocked
    if isinstance(data, Vector):
        chosen_token(step, node, data, index)
        return
    if not isinstance(index, Ids):
        raise Refusal(f"the index is {kind_of(index)}; only token ids select rows of a table")
    if (
        node.integer("axis") != 0
        or not isinstance(data, Stored | Quantised | Computed)
        or len(data.dims) != 2
    ):
        raise Refusal("token ids select along the first axis of a constant matrix only")
    if isinstance(data, Stored) and not data.is_float:
        step.bind(node, TableRows(data, index))
        return
    if isinstance(data, Quantised):
        parameter = weights.matrix(data, row_axis=0)
    elif (requested := _requested_table(step, node, data)) is not None:
        parameter = weights.rounded(data, 0, requested)
        step.quantised(node, parameter)
    elif step.embedding_rounding is not None:
        parameter = weights.rounded(data, 0, step.embedding_rounding)
    else:
        parameter = weights.dense(data, "the table")
    _embed(step, node, parameter, index)


def dequantize(step: Step, node: Node) -> None:
    """Rows of a table of integers; constants are folded before."""
    inputs = step.inputs(node)
    rows = inputs[0]
    if not isinstance(rows, TableRows):
        if any(isinstance(value, Unknown) for value in inputs):
            raise Blocked
        raise Refusal(
            f"it reads {kind_of(rows)}; only constants and rows of a table are dequantised"
        )
    axis = node.integer("axis", 1)
    if axis % 3 != 2 and isinstance(inputs[1], Stored) and inputs[1].tensor.size != 1:
        raise Refusal("rows of a table are dequantised with a scale for each token of a call")
    whole = folding.dequantize(node, [rows.table, *inputs[1:]])
    assert whole is not None
    (value,) = whole
    assert isinstance(value, Quantised)
    value = replace(value, axis=1)
    _embed(step, node, weights.matrix(value, row_axis=0), rows.index)


def gather_block_quantized(step: Step, node: Node) -> None:
    """com.microsoft.GatherBlockQuantized: data, indices, scales, zero_points."""
    inputs = step.inputs(node)
    parameter = weights.gather_block_quantized(node, inputs)
    index = inputs[1]
    if isinstance(index, Unknown):
        raise Blocked
    if not isinstance(index, Ids):
        raise Refusal(f"the index is {kind_of(index)}; only token ids select rows of a table")
    _embed(step, node, parameter, index)


def _requested_table(step: Step, node: Node, data: Stored | Computed) -> Rounding | None:
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
    # onnxruntime writes a node for each reader of dequantised rows: they are one embedding.
    for op in step.block.ops:
        if isinstance(op, rom.EmbedOp) and op.table.root_reference.data == table:
            break
    else:
        op = rom.EmbedOp(step.token, table, rom.nodes(node.name), rom.float_vector(width))
        step.emit(op)
    step.result(node, op.output, (*index.dims, expression(width)))
