"""Attention nodes of one token: rotary embedding, appending to the caches, attention."""

from __future__ import annotations

import math
import re

import numpy as np

from intaglio.dialects import rom
from intaglio.lowering.onnx.expressions import expression
from intaglio.lowering.onnx.model import Node
from intaglio.lowering.onnx.step import Step, real
from intaglio.lowering.onnx.values import (
    Blocked,
    Filled,
    Ids,
    Known,
    Past,
    Present,
    Refusal,
    Stored,
    Unknown,
    Value,
    Vector,
    array_of,
    numbers,
)

GQA_ATTRIBUTES = (
    "num_heads",
    "kv_num_heads",
    "scale",
    "softcap",
    "local_window_size",
    "do_rotary",
    "rotary_interleaved",
    "smooth_softmax",
    "qk_output",
    "k_quant_type",
    "v_quant_type",
    "kv_cache_bit_width",
    "qk_norm_epsilon",
    "sliding_window_cache",
)


def check_last_axis(step: Step, node: Node) -> None:
    """A norm must be over the last axis.

    Raises:
        Refusal: it is not.
    """
    axis = int(node.attributes.get("axis", -1))
    if axis == -1:
        return
    x = step.vector(node, 0)
    if axis != len(x.dims) - 1:
        raise Refusal(f"axis = {axis} is not the last of {len(x.dims)} axes")


def _table(step: Step, node: Node, i: int, what: str) -> Stored:
    value = step.values.get(node.input(i)) if node.input(i) else None
    if isinstance(value, Unknown):
        raise Blocked
    if not isinstance(value, Stored) or len(value.dims) != 2:
        kind = "missing" if value is None else value.kind
        shape = f" of shape {list(value.dims)}" if isinstance(value, Stored) else ""
        raise Refusal(
            f"{what} must be a constant table [positions, rotary_dim / 2]; here it is {kind}{shape}"
        )
    return value


def _tables(step: Step, node: Node, cos: int, sin: int) -> tuple[str, str, int]:
    """Symbols of the cos and sin tables, and rotary_dim."""
    first, second = _table(step, node, cos, "cos_cache"), _table(step, node, sin, "sin_cache")
    if first.dims != second.dims:
        raise Refusal(f"cos and sin have shapes {list(first.dims)} and {list(second.dims)}")
    rows = first.dims[0]
    symbols = [
        step.dense_value(node, table, table.dims, what)
        for table, what in ((first, "cos_cache"), (second, "sin_cache"))
    ]
    step.positions = min(step.positions or rows, rows)
    return symbols[0], symbols[1], 2 * first.dims[1]


def _position(step: Step, node: Node, i: int) -> None:
    """Input i must be the position ids, or the number of past tokens as an offset."""
    value = step.values.get(node.input(i)) if node.input(i) else None
    if isinstance(value, Unknown):
        raise Blocked
    if isinstance(value, Ids) and value.role == "position":
        return
    array = array_of(value) if isinstance(value, Known) else None
    if array is not None and array.size == 1 and array.reshape(-1)[0] == step.total - step.sequence:
        return
    kind = "missing" if value is None else value.kind
    raise Refusal(f"input {i} must be the position ids of the graph; here it is {kind}")


def _rotate(
    step: Step,
    node: Node,
    x: Vector,
    tables: tuple[str, str, int],
    heads: int,
    interleaved: bool,
) -> Vector:
    cos, sin, rotary = tables
    if x.size % heads:
        raise Refusal(f"{x.size} elements do not divide into {heads} heads")
    if rotary > x.size // heads:
        raise Refusal(f"tables for {rotary} elements do not fit heads of {x.size // heads}")
    op = rom.RotaryOp(
        x.ssa,
        step.position,
        cos,
        sin,
        rom.nodes(node.name),
        heads=heads,
        rotary_dim=rotary,
        interleaved=interleaved,
    )
    return Vector(step.emit(op).output, x.dims)


def rotary_embedding(step: Step, node: Node) -> None:
    """com.microsoft.RotaryEmbedding: X, position_ids, cos_cache, sin_cache."""
    if float(node.attributes.get("scale", 1.0)) != 1.0:
        raise Refusal("scale must be 1")
    if node.attributes.get("is_packed_batching"):
        raise Refusal("is_packed_batching is not supported")
    _position(step, node, 1)
    _rotary(step, node, cos=2, sin=3)


def standard_rotary(step: Step, node: Node) -> None:
    """RotaryEmbedding of ai.onnx 23: X, cos_cache, sin_cache, position_ids."""
    if not node.input(3):
        raise Refusal(
            "cos and sin are computed for each token; constant tables with position_ids are needed"
        )
    _position(step, node, 3)
    _rotary(step, node, cos=1, sin=2)


def _rotary(step: Step, node: Node, cos: int, sin: int) -> None:
    tables = _tables(step, node, cos, sin)
    x = step.vector(node, 0)
    rotary = int(node.attributes.get("rotary_embedding_dim", 0))
    if rotary and rotary != tables[2]:
        raise Refusal(f"rotary_embedding_dim = {rotary}, the tables are for {tables[2]}")
    heads = int(node.attributes.get("num_heads", 0))
    if len(x.dims) == 4:
        width = x.dims[3].constant or 0
    elif heads:
        width = x.size // heads
    elif rotary:
        raise Refusal("num_heads is missing for a partial rotation")
    else:
        width = tables[2]
    if width < 1 or x.size % width:
        raise Refusal(f"{x.size} elements do not divide into heads of {width}")
    interleaved = bool(node.attributes.get("interleaved", 0))
    step.bind(node, _rotate(step, node, x, tables, x.size // width, interleaved))


def _text(value: object) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def group_query_attention(step: Step, node: Node) -> None:
    """com.microsoft.GroupQueryAttention of one token.

    Its inputs: query (or packed QKV), key, value, past_key, past_value, seqlens_k,
    total_sequence_length, cos_cache, sin_cache, position_ids, attention_bias, head_sink, k_scale,
    v_scale, q_norm_weight, k_norm_weight.
    """
    attributes = node.attributes
    heads, kv_heads = int(attributes.get("num_heads", 0)), int(attributes.get("kv_num_heads", 0))
    if heads < 1 or kv_heads < 1 or heads % kv_heads:
        raise Refusal(f"num_heads = {heads} is not a multiple of kv_num_heads = {kv_heads}")
    inputs = step.inputs(node)
    if inputs[10] is not None:
        raise Refusal("an attention bias is not supported", "export with causal masking only")
    if inputs[11] is not None:
        raise Refusal("a head sink is not supported")
    if int(attributes.get("smooth_softmax", 0)) > 0:
        raise Refusal("smooth_softmax is not supported")
    if int(attributes.get("qk_output", 0)) != 0:
        raise Refusal("qk_output is not supported")
    if any(isinstance(v, Unknown) for v in inputs[5:]):
        raise Blocked
    _check_lengths(step, inputs)
    formats = [_cache_format(node, inputs[12 + i], name) for i, name in enumerate(("k", "v"))]

    q, k, v, width = _query_key_value(step, node, heads, kv_heads)
    for i, x, count in ((14, q, heads), (15, k, kv_heads)):
        if inputs[i] is not None:
            gamma = step.dense(node, i, (width,), "the norm's weight")
            eps = real(float(attributes.get("qk_norm_epsilon", 1e-6)))
            op = step.emit(rom.RMSNormOp(x.ssa, gamma, eps, rom.nodes(node.name), groups=count))
            normed = Vector(op.output, x.dims)
            q, k = (normed, k) if i == 14 else (q, normed)
    if int(attributes.get("do_rotary", 0)):
        if inputs[9] is not None:
            _position(step, node, 9)
        tables = _tables(step, node, 7, 8)
        interleaved = bool(attributes.get("rotary_interleaved", 0))
        q = _rotate(step, node, q, tables, heads, interleaved)
        k = _rotate(step, node, k, tables, kv_heads, interleaved)

    pasts = [_past(step, node, i, kv_heads, width, formats[i - 3][0]) for i in (3, 4)]
    symbols = [
        step.cache(past.name, kv_heads, width, fmt, scale)
        for past, (fmt, scale) in zip(pasts, formats, strict=True)
    ]
    for symbol, x in zip(symbols, (k, v), strict=True):
        step.emit(rom.AppendOp(x.ssa, symbol, step.position, rom.nodes(node.name)))
    window = int(attributes.get("local_window_size", -1))
    if window == 0:
        raise Refusal("local_window_size = 0 sees no token")
    scale = float(attributes.get("scale", 0.0)) or 1.0 / math.sqrt(width)
    attended = step.emit(
        rom.AttentionOp(
            q.ssa,
            symbols[0],
            symbols[1],
            step.position,
            rom.nodes(node.name),
            heads=heads,
            scale=scale,
            softcap=float(attributes.get("softcap", 0.0)),
            window=max(0, window),
        )
    )
    step.result(node, attended.output, q.dims)
    for i, past in ((1, pasts[0]), (2, pasts[1])):
        step.bind(node, Present(past.name, past.dims), i)


def _check_lengths(step: Step, inputs: list[Value | None]) -> None:
    """seqlens_k must be total - 1 and total_sequence_length the total, counted from the mask."""
    lengths, total = inputs[5], inputs[6]
    if isinstance(lengths, Filled):
        found = lengths.value
    else:
        array = None if lengths is None else array_of(lengths)
        found = array.reshape(-1)[0] if array is not None and array.size == 1 else None
    if found != step.total - 1:
        raise Refusal("seqlens_k (input 5) is not the length of the attention mask less one")
    if isinstance(total, Filled):
        count = total.value
    else:
        array = None if total is None else array_of(total)
        count = array.reshape(-1)[0] if array is not None and array.size == 1 else None
    if count != step.total:
        raise Refusal("total_sequence_length (input 6) is not the length of the attention mask")


def _cache_format(node: Node, scale: Value | None, name: str) -> tuple[str, float | None]:
    """(format, static scale) of a cache."""
    kind = _text(node.attributes.get(f"{name}_quant_type", "NONE"))
    if kind == "NONE":
        if scale is not None:
            raise Refusal(f"{name}_scale is given, but {name}_quant_type is NONE")
        return "float32", None
    bits = int(node.attributes.get("kv_cache_bit_width", 0))
    if kind not in ("PER_TENSOR", "PER_CHANNEL") or bits not in (4, 8):
        raise Refusal(f"a cache quantised {kind} to {bits} bits is not supported")
    array = None if scale is None else numbers(scale)
    if array is None or array.size == 0:
        raise Refusal(f"{name}_scale must be a small constant")
    flat = array.reshape(-1).astype(np.float64)
    if not (flat == flat[0]).all():
        raise Refusal(
            f"the {'keys' if name == 'k' else 'values'} are quantised with {flat.size} different "
            "scales, one a channel",
            f"export with kv_cache_quant_scheme=int{bits}_per_tensor",
        )
    if not (np.isfinite(flat[0]) and flat[0] > 0):
        raise Refusal(f"{name}_scale = {flat[0]} must be positive")
    return f"int{bits}", float(flat[0])


def _query_key_value(
    step: Step, node: Node, heads: int, kv_heads: int
) -> tuple[Vector, Vector, Vector, int]:
    query = step.vector(node, 0)
    step.whole_row(query)
    onnx = rom.nodes(node.name)
    if node.input(1) or node.input(2):
        k, v = step.vector(node, 1), step.vector(node, 2)
        width = query.size // heads
        if query.size % heads or k.size != kv_heads * width or v.size != kv_heads * width:
            raise Refusal(
                f"queries of {query.size}, keys of {k.size} and values of {v.size} elements do not "
                f"make {heads} and {kv_heads} heads of one width"
            )
        return query, k, v, width
    width = query.size // (heads + 2 * kv_heads)
    if query.size % (heads + 2 * kv_heads):
        raise Refusal(
            f"{query.size} packed elements do not divide into {heads} + 2 * {kv_heads} heads"
        )
    parts: list[Vector] = []
    offset = 0
    for count in (heads, kv_heads, kv_heads):
        size = count * width
        op = step.emit(rom.SliceOp(query.ssa, offset, onnx, rom.float_vector(size)))
        parts.append(Vector(op.output, (*query.dims[:-1], expression(size))))
        offset += size
    return parts[0], parts[1], parts[2], width


def _past(step: Step, node: Node, i: int, kv_heads: int, width: int, fmt: str) -> Past:
    """Past input i, checked against the present output that it feeds in the next step."""
    value = step.values.get(node.input(i)) if node.input(i) else None
    if isinstance(value, Unknown):
        raise Blocked
    if not isinstance(value, Past):
        kind = "missing" if value is None else value.kind
        raise Refusal(f"input {i} must be a past key or value of the graph; here it is {kind}")
    port = step.pasts[value.name]
    stored = width // 2 if fmt == "int4" else width
    for axis, wanted in ((1, kv_heads), (3, stored)):
        dim = port.dims[axis] if len(port.dims) == 4 else None
        if isinstance(dim, int) and dim != wanted:
            raise Refusal(f"'{value.name}' has {dim} in axis {axis}, expected {wanted}")
    present = node.output(i - 2)
    if present not in step.graph.outputs:
        raise Refusal(f"output {i - 2} (present) must be an output of the graph")
    if step.graph.uses(present) != 1:
        raise Refusal(f"'{present}' is used inside the graph too")
    if _layer(present) != _layer(value.name):
        raise Refusal(f"'{value.name}' and '{present}' belong to different layers")
    return value


def _layer(name: str) -> tuple[list[str], str]:
    kind = "value" if re.search(r"value|\bv\b", name.split(".")[-1]) else "key"
    return re.findall(r"\d+", name), kind
