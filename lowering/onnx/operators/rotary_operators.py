"""Rotary embeddings as single operators, and inside of GroupQueryAttention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from intaglio.lowering.onnx.graph.model import Node
from intaglio.lowering.onnx.known import fields
from intaglio.lowering.onnx.known.expressions import PAST, expression
from intaglio.lowering.onnx.known.simplification import substitute
from intaglio.lowering.onnx.known.terms import Count
from intaglio.lowering.onnx.step import ANGLES, Role, Step
from intaglio.lowering.onnx.values import (
    Blocked,
    Columns,
    Field,
    Known,
    Refusal,
    Stored,
    Turned,
    Unknown,
    Value,
    array_of,
    kind_of,
)
from intaglio.lowering.onnx.written import lanes, rotary, rotary_tables


def rotary_embedding(step: Step, node: Node) -> None:
    """com.microsoft.RotaryEmbedding: X, position_ids, cos_cache, sin_cache."""
    if node.real("scale", 1.0) != 1.0:
        raise Refusal("scale must be 1")
    if node.attributes.get("is_packed_batching"):
        raise Refusal("is_packed_batching is not supported")
    if not node.input(1):
        raise Refusal("input 1 must be the position ids of the graph; here it is missing")
    _rotary(step, node, Places(cos=2, sin=3, ids=1))


def multi_axis_rotary(step: Step, node: Node) -> None:
    """com.microsoft.MRotaryEmbedding: X, position_ids [3, batch, sequence], cos_cache, sin_cache.

    Each pair turns by the position along one axis of an image. Of text all are equal, and the
    layout of the axes makes no difference.
    """
    if node.real("scale", 1.0) != 1.0:
        raise Refusal("scale must be 1")
    if node.attributes.get("is_packed_batching"):
        raise Refusal("is_packed_batching is not supported")
    sections = node.integers("mrope_section") or []
    table = step.values.get(node.input(2))
    pairs = table.dims[1] if isinstance(table, Stored) and len(table.dims) == 2 else None
    if len(sections) != 3 or (pairs is not None and sum(sections) != pairs):
        raise Refusal(f"mrope_section = {sections} must be three numbers, together {pairs} pairs")
    if node.integer("num_heads") < 1:
        raise Refusal("num_heads is missing")
    _rotary(step, node, Places(cos=2, sin=3, ids=1))


def standard_rotary(step: Step, node: Node) -> None:
    """RotaryEmbedding of ai.onnx 23: X, cos_cache, sin_cache, position_ids.

    Without position_ids, cos and sin are those of the tokens: [batch, sequence, rotary_dim / 2].
    """
    _rotary(step, node, Places(cos=1, sin=2, ids=3, computed=True))


def _rotary(step: Step, node: Node, places: Places) -> None:
    part = step.values.get(node.input(0))
    if isinstance(part, Turned) and step.part(part) is None:
        # A part of each head: what is joined with it later makes the head whole.
        found = _cos_sin(step, node, places)
        if found is None:
            found = _coefficients(step, _constant_tables(step, node, places), token_index(step))
        interleaved = bool(node.attributes.get("interleaved", 0))
        step.bind(node, lanes.turned(part, node, *found, interleaved=interleaved))
        return
    tables = tables_of(step, node, places)
    x = step.vector(node, 0)
    width = node.integer("rotary_embedding_dim")
    if width and width != tables[2]:
        raise Refusal(f"rotary_embedding_dim = {width}, the tables are for {tables[2]}")
    heads = node.integer("num_heads")
    if len(x.dims) == 4:
        head = x.dims[3].constant or 0
    elif heads:
        head = x.size // heads
    elif width:
        raise Refusal("num_heads is missing for a partial rotation")
    else:
        head = tables[2]
    if head < 1 or x.size % head:
        raise Refusal(f"{x.size} elements do not divide into heads of {head}")
    step.bind(
        node,
        rotary.rotated(
            step,
            x,
            tables,
            heads=x.size // head,
            interleaved=bool(node.attributes.get("interleaved", 0)),
            names=(node.name,),
        ),
    )


@dataclass(frozen=True)
class Places:
    """Inputs with cosines, sines and position ids; without ids, `computed` ones are per token."""

    cos: int
    sin: int
    ids: int
    computed: bool = False


def tables_of(step: Step, node: Node, places: Places) -> tuple[str, str, int]:
    """Symbols of the cos and sin tables, and rotary_dim."""
    computed = _cos_sin(step, node, places)
    if computed is not None:
        return rotary_tables.engraved(step, node, *computed)
    if node.input(places.ids):
        _position(step, step.values[node.input(places.ids)], places.ids)
    first, second = _constant_tables(step, node, places)
    rows = first.dims[0]
    symbols = [
        step.dense_value(node, table, table.dims, Role(what, ANGLES.form))
        for table, what in ((first, "cos_cache"), (second, "sin_cache"))
    ]
    step.positions = min(step.positions or rows, rows)
    return symbols[0], symbols[1], 2 * first.dims[1]


def _cos_sin(step: Step, node: Node, places: Places) -> tuple[Columns, Columns] | None:
    """Cosines and sines that are computed in the graph, None when they are constant tables."""
    values = [
        step.values.get(node.input(i)) if node.input(i) else None
        for i in (places.cos, places.sin, places.ids)
    ]
    if any(isinstance(v, Unknown) for v in values):
        raise Blocked
    if not any(isinstance(v, Field) for v in values[:2]):
        if places.computed and values[2] is None:
            raise Refusal("cos and sin must be computed from the position ids")
        return None
    if values[2] is None and places.computed:
        return _coefficients(step, values[:2], None)
    index = token_index(step) if values[2] is None else fields.as_field(values[2])
    if index is None:
        raise Refusal("the position ids are computed in a way that is not understood")
    return _coefficients(step, values[:2], index)


def _coefficients(
    step: Step, values: Sequence[Value | None], index: Field | None
) -> tuple[Columns, Columns]:
    """Cosines and sines of the tokens; with `index`, rows of tables that it selects."""
    found: list[Columns] = []
    for value in values:
        one = fields.as_field(value)
        if one is None:
            raise Refusal("cos and sin must both be computed from the position ids, or neither")
        if index is not None:
            one = fields.selected(one, index)
        dims = (step.batch, step.sequence, one.dims[-1])
        found.append(rotary_tables.columns(step, one, dims, 2))
    return found[0], found[1]


def _constant_tables(step: Step, node: Node, places: Places) -> tuple[Stored, Stored]:
    first = _table(step.values.get(node.input(places.cos)), "cos_cache")
    second = _table(step.values.get(node.input(places.sin)), "sin_cache")
    if first.dims != second.dims:
        raise Refusal(f"cos and sin have shapes {list(first.dims)} and {list(second.dims)}")
    return first, second


def _table(value: Value | None, what: str) -> Stored:
    if isinstance(value, Unknown):
        raise Blocked
    if not isinstance(value, Stored) or len(value.dims) != 2:
        kind = kind_of(value)
        shape = f" of shape {list(value.dims)}" if isinstance(value, Stored) else ""
        raise Refusal(
            f"{what} must be a constant table [positions, rotary_dim / 2], or computed from the "
            f"position ids; here it is {kind}{shape}"
        )
    return value


def token_index(step: Step) -> Field:
    """The positions of the tokens, [batch, sequence]."""
    index = fields.axis_index(1) if step.sequence != 1 else expression(0)
    return Field((step.batch, step.sequence), Count(PAST + index), "INT64")


def _position(step: Step, value: Value, i: int) -> None:
    """Input i must be the position ids, or the number of past tokens as an offset."""
    if isinstance(value, Unknown):
        raise Blocked
    if isinstance(value, Field):
        own = token_index(step)
        lead = len(value.dims) - 2
        if lead >= 0 and value.dims[lead:] == own.dims:
            names = {f"@{lead + 1}": fields.axis_index(1)}
            if substitute(value.term, names) == own.term:
                return
        if value.dims == (step.sequence,) and value.term == Count(PAST + fields.axis_index(0)):
            return
    array = array_of(value) if isinstance(value, Known) else None
    if array is not None and array.size == 1 and array.reshape(-1)[0] == step.total - step.sequence:
        return
    raise Refusal(f"input {i} must be the position ids of the graph; here it is {value.kind}")
