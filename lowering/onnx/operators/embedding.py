"""Rows of constant tables, stored as floats or quantised, that token ids or positions choose.

Learned positions are a table with a row for each position: GPT-2's from row 0, OPT's from row 2.
A tensor that is computed of the position alone, such as the sines of the first transformer, is one
too: its rows are computed for all positions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from intaglio.dialects import rom
from intaglio.lowering.onnx.graph.model import FLOATS, Node, Tensor
from intaglio.lowering.onnx.known import folding
from intaglio.lowering.onnx.known.expressions import Dims, expression, variable
from intaglio.lowering.onnx.known.terms import Apply, Count, Lookup, Term
from intaglio.lowering.onnx.operators.rearrangement import chosen_token
from intaglio.lowering.onnx.step import Step
from intaglio.lowering.onnx.values import (
    Blocked,
    Computed,
    Field,
    Ids,
    Quantised,
    Refusal,
    Stored,
    TableRows,
    Unknown,
    Value,
    Vector,
    kind_of,
    token_size,
)
from intaglio.lowering.onnx.weights import weights
from intaglio.lowering.onnx.weights.rounding import Rounding
from intaglio.lowering.onnx.written.rotary_tables import (
    POSITION,
    at_position,
    columns,
    engrave,
    table,
)


@dataclass(frozen=True)
class Chosen:
    """What chooses rows of a table: token ids, or positions from row `first` on.

    Attributes:
        dims: shape of the index.
        first: the row of position 0; None where it is the token that chooses.
    """

    dims: Dims
    first: int | None = None


def gather(step: Step, node: Node) -> None:
    """Gather: rows of a table by token id or position, or the last token of an activation."""
    inputs = step.inputs(node)
    data, index = inputs[0], inputs[1]
    if isinstance(data, Unknown) or isinstance(index, Unknown):
        raise Blocked
    if isinstance(data, Vector):
        chosen_token(step, node, data, index)
        return
    chosen = _chosen(step, index)
    if (
        node.integer("axis") != 0
        or not isinstance(data, Stored | Quantised | Computed)
        or len(data.dims) != 2
    ):
        raise Refusal("token ids select along the first axis of a constant matrix only")
    if isinstance(data, Stored) and not data.is_float and isinstance(index, Ids):
        step.bind(node, TableRows(data, index))
        return
    if isinstance(data, Quantised):
        parameter = weights.matrix(data, row_axis=0)
    else:
        parameter = _of_floats(step, node, data)
    step.bind(node, _embed(step, node, parameter, chosen))


def dequantize(step: Step, node: Node) -> None:
    """Rows of a table of integers; constants are folded before."""
    inputs = step.inputs(node)
    rows = inputs[0]
    if isinstance(rows, Field) and (placed := _part(step, rows)) is not None:
        tensor, chosen = placed
        codes = Stored(tensor, tensor.dims)
    elif isinstance(rows, TableRows):
        codes, chosen = rows.table, Chosen(rows.index.dims)
    else:
        if any(isinstance(value, Unknown) for value in inputs):
            raise Blocked
        raise Refusal(
            f"it reads {kind_of(rows)}; only constants and rows of a table are dequantised"
        )
    axis = node.integer("axis", 1)
    if axis % 3 != 2 and isinstance(inputs[1], Stored) and inputs[1].tensor.size != 1:
        raise Refusal("rows of a table are dequantised with a scale for each token of a call")
    whole = folding.dequantize(node, [codes, *inputs[1:]])
    assert whole is not None
    (value,) = whole
    assert isinstance(value, Quantised)
    value = replace(value, axis=1)
    step.bind(node, _embed(step, node, weights.matrix(value, row_axis=0), chosen))


def gather_block_quantized(step: Step, node: Node) -> None:
    """com.microsoft.GatherBlockQuantized: data, indices, scales, zero_points."""
    inputs = step.inputs(node)
    parameter = weights.gather_block_quantized(node, inputs)
    if isinstance(inputs[1], Unknown):
        raise Blocked
    step.bind(node, _embed(step, node, parameter, _chosen(step, inputs[1])))


def placed(step: Step, node: Node, name: str, value: Field, dims: Dims) -> Vector:
    """A tensor of floats that depends on the position, as an activation of the shape `dims`.

    Args:
        step: the step.
        node: what reads it.
        name: of the tensor.
        value: the tensor; axes may be missing in front, or have the length 1.
        dims: shape of the activation that it meets: a token's elements lie along the last axis.

    Raises:
        Refusal: it depends on more than the position, or is not a row of elements for each.
    """
    width = token_size(dims)
    if not dims or dims[-1] != width or not value.dims or value.dims[-1] != width:
        raise Refusal("a tensor of positions is added that is no row of elements for each token")
    found = _part(step, value)
    if found is not None:
        tensor, chosen = found
        gathers = [n for n in step.graph.readers(tensor.name) if n.op_type == "Gather"]
        reader = gathers[0] if gathers else node
        parameter = _of_floats(step, reader, Stored(tensor, tensor.dims))
        return _embed(step, reader, parameter, replace(chosen, dims=dims[:-1]))
    lanes = columns(step, value, dims, len(dims) - 1)
    key = ("positions", lanes)
    if key not in step.rotations:
        stored = engrave(step, "positions", table(step, lanes))
        step.rotations[key] = (stored, stored)
    known = step.rotations[key]
    assert known is not None
    maker = step.graph.producers.get(name, node)
    return _embed(step, maker, weights.dense(known[0], name), Chosen(dims[:-1], 0))


def _chosen(step: Step, index: Value | None) -> Chosen:
    """What an index is: token ids or positions.

    Raises:
        Refusal: something else.
    """
    if isinstance(index, Ids):
        return Chosen(index.dims)
    if isinstance(index, Field) and (first := _first(step, index, None)) is not None:
        return Chosen(index.dims, first)
    raise Refusal(f"the index is {kind_of(index)}; only token ids select rows of a table")


def _first(step: Step, value: Field, term: Term | None) -> int | None:
    """What a formula of the indices of `value` is above the position; None: it is none of it."""
    axes = {f"@{i}": variable("@s") for i, dim in enumerate(value.dims) if dim == step.sequence}
    if len(axes) > 1:
        return None
    try:
        found = at_position(step, value.term if term is None else term, axes)
    except Refusal:
        return None
    if not isinstance(found, Count):
        return None
    first = (found.value - variable(POSITION)).constant
    return first if first is not None and first >= 0 else None


def _part(step: Step, value: Field) -> tuple[Tensor, Chosen] | None:
    """The table that a tensor holds rows of, one for each position, or None."""
    term = value.term
    while isinstance(term, Apply) and _widens(term):
        (term,) = term.args
    if not isinstance(term, Lookup) or term.shape != term.tensor.dims or len(term.shape) != 2:
        return None
    row, column = term.indices
    last = len(value.dims) - 1
    if column != Count(variable(f"@{last}")) or value.dims[last] != term.shape[1]:
        return None
    first = _first(step, replace(value, dims=value.dims[:last]), row)
    return None if first is None else (term.tensor, Chosen(value.dims[:last], first))


def _widens(term: Apply) -> bool:
    """Whether a cast loses nothing of what a table of floats holds."""
    (inner, *_) = term.args
    return term.op in ("cast:FLOAT", "cast:DOUBLE") and (
        isinstance(inner, Lookup)
        and inner.tensor.dtype in FLOATS
        and inner.tensor.dtype != "DOUBLE"
    )


def _of_floats(step: Step, node: Node, data: Stored | Computed) -> weights.Parameter:
    """A table of floats, quantised where that is asked for."""
    if (requested := _requested_table(step, node, data)) is not None:
        parameter = weights.rounded(data, 0, requested)
        step.quantised(node, parameter)
        return parameter
    if step.embedding_rounding is not None:
        return weights.rounded(data, 0, step.embedding_rounding)
    return weights.dense(data, "the table")


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


def _of_positions(step: Step, parameter: weights.Parameter, first: int) -> weights.Parameter:
    """The rows of a table that positions choose: as many as the table or the context has."""
    rows = parameter.source.dims[0] - first
    if rows < 1:
        raise Refusal(f"position 0 reads row {first} of a table of {first + rows}")
    step.positions = min(step.positions or rows, rows)
    kept = min(rows, step.bound or rows)
    if (first, kept) == (0, parameter.source.dims[0]):
        return parameter
    return weights.rows(parameter, first, kept)


def _embed(step: Step, node: Node, parameter: weights.Parameter, index: Chosen) -> Vector:
    kind: type[rom.EmbedOp | rom.EmbedPositionOp] = rom.EmbedOp
    form = ""
    if index.first is not None:
        kind, parameter = rom.EmbedPositionOp, _of_positions(step, parameter, index.first)
        # Only as many rows as there are positions are engraved of it.
        form = "positions"
    width = parameter.source.dims[1]
    table = step.declare(node, parameter, form=form)
    # onnxruntime writes a node for each reader of dequantised rows: they are one embedding.
    for op in step.block.ops:
        if isinstance(op, kind) and op.table.root_reference.data == table:
            break
    else:
        source = step.token if kind is rom.EmbedOp else step.position
        op = kind(source, table, rom.nodes(node.name), rom.float_vector(width))
        step.emit(op)
    return Vector(op.output, (*index.dims, expression(width)))
