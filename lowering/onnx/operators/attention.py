"""Attention as single operators: GroupQueryAttention, MultiHeadAttention, Attention."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from intaglio.dialects import rom
from intaglio.lowering.onnx.graph.model import Node, text_of
from intaglio.lowering.onnx.known import fields, masks
from intaglio.lowering.onnx.known.expressions import expression
from intaglio.lowering.onnx.known.shapes import dims_of
from intaglio.lowering.onnx.known.terms import Count
from intaglio.lowering.onnx.operators.rotary_operators import Places, tables_of
from intaglio.lowering.onnx.step import GAMMA, Role, Step, real
from intaglio.lowering.onnx.values import (
    Blocked,
    Cached,
    Field,
    Past,
    Present,
    Refusal,
    Unknown,
    Value,
    Vector,
    kind_of,
    numbers,
)
from intaglio.lowering.onnx.written import cached, rotary, scores

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
    "q_norm_epsilon",
    "k_norm_epsilon",
    "sliding_window_cache",
    "causal",
)


def group_query_attention(step: Step, node: Node) -> None:
    """com.microsoft.GroupQueryAttention of one token.

    Its inputs: query (or packed QKV), key, value, past_key, past_value, seqlens_k,
    total_sequence_length, cos_cache, sin_cache, position_ids, attention_bias, head_sink, k_scale,
    v_scale, q_norm_weight, k_norm_weight.
    """
    attributes = node.attributes
    heads, kv_heads = node.integer("num_heads"), node.integer("kv_num_heads")
    if heads < 1 or kv_heads < 1 or heads % kv_heads:
        raise Refusal(f"num_heads = {heads} is not a multiple of kv_num_heads = {kv_heads}")
    inputs = step.inputs(node)
    if node.input(16):
        raise Refusal(
            "query_seqlens (input 16) says that sequences have different numbers of new tokens; a "
            "chip runs one sequence",
            "export without it: as long as the caches grow, all new tokens count",
        )
    if node.integer("qk_output") != 0:
        raise Refusal("qk_output is not supported")
    if node.integer("causal", 1) != 1:
        raise Refusal("tokens attend to later ones (causal = 0); a chip takes them one by one")
    if any(isinstance(v, Unknown) for v in inputs[5:]):
        raise Blocked
    _check_lengths(step, inputs)
    formats = [_cache_format(node, inputs[12 + i], name) for i, name in enumerate(("k", "v"))]
    borrowed = _borrowed(step, node, inputs, kv_heads)
    if borrowed is not None:
        q = step.vector(node, 0)
        step.whole_row(q)
        if inputs[14] is not None or inputs[15] is not None:
            raise Refusal("norms inside of attention over another layer's cache are not supported")
        k, v, width = q, q, borrowed[0].width
        if q.size != heads * width:
            raise Refusal(f"queries of {q.size} elements do not make {heads} heads of {width}")
    else:
        q, k, v, width = _query_key_value(step, node, heads, kv_heads)
    for i, x, count in ((14, q, heads), (15, k, kv_heads)):
        if inputs[i] is not None:
            gamma = step.dense(node, i, (width,), Role("the norm's weight", GAMMA.form))
            both = node.real("qk_norm_epsilon", 1e-6)
            eps = real(node.real("q_norm_epsilon" if i == 14 else "k_norm_epsilon", both))
            op = step.emit(rom.RMSNormOp(x.ssa, gamma, eps, rom.nodes(node.name), groups=count))
            normed = Vector(op.output, x.dims)
            q, k = (normed, k) if i == 14 else (q, normed)
    if node.integer("do_rotary"):
        tables = tables_of(step, node, Places(cos=7, sin=8, ids=9))
        interleaved = bool(attributes.get("rotary_interleaved", 0))
        given = ((q, heads),) if borrowed is not None else ((q, heads), (k, kv_heads))
        turned = [
            rotary.rotated(step, x, tables, heads=n, interleaved=interleaved, names=(node.name,))
            for x, n in given
        ]
        q, k = turned[0], turned[-1]

    if borrowed is not None:
        symbols = [one.symbol for one in borrowed]
        for i, one in enumerate(borrowed, 1):
            step.bind(node, one, i)
    else:
        symbols = _append(step, node, formats, (k, v), kv_heads, width)
    window = node.integer("local_window_size", -1)
    if window == 0:
        raise Refusal("local_window_size = 0 sees no token")
    slope = None
    if inputs[10] is not None:
        sunk = inputs[11] is not None or node.integer("smooth_softmax") == 1
        slope, seen = scores.bias_of(step, node, inputs[10], "the attention bias", heads, sunk=sunk)
        seen += scores.causal(step, window)
        dims = (step.batch, expression(heads), step.sequence, step.total)
        window = masks.window(seen, dims, step.sequence)
    scale = node.real("scale") or 1.0 / math.sqrt(width)
    attended = scores.emit_attention(
        step,
        q.ssa,
        symbols[0],
        symbols[1],
        rom.nodes(node.name),
        heads=heads,
        scale=scale,
        softcap=node.real("softcap"),
        window=max(0, window),
        sink=_sink(step, node, inputs[11], heads),
        slope=slope,
    )
    step.result(node, attended, q.dims)


def _append(
    step: Step,
    node: Node,
    formats: Sequence[tuple[str, float | None]],
    new: Sequence[Vector],
    heads: int,
    width: int,
) -> list[str]:
    """Writes keys and values to the caches behind inputs 3 and 4; gives their symbols."""
    symbols: list[str] = []
    for i, (x, (fmt, scale)) in enumerate(zip(new, formats, strict=True)):
        past = _past(step, node, 3 + i, heads, width, fmt)
        symbol = step.cache(past.name, heads, width, fmt, scale)
        step.emit(rom.AppendOp(x.ssa, symbol, step.position, rom.nodes(node.name)))
        symbols.append(symbol)
        if fmt == "float32":
            step.bind(node, cached.of_cache(step, past, symbol, heads, width, node), 1 + i)
        else:
            step.bind(node, Present(past.name, past.dims), 1 + i)
    return symbols


def _borrowed(
    step: Step, node: Node, inputs: list[Value | None], kv_heads: int
) -> tuple[Cached, Cached] | None:
    """The caches of another layer where that gives them in the place of a past, else None.

    The node's own keys and values are then those of no token.
    """
    keys, values = inputs[3], inputs[4]
    if isinstance(keys, Present) or isinstance(values, Present):
        raise Refusal("another layer's cache is quantised, and only floats are read by two")
    if not isinstance(keys, Cached) or not isinstance(values, Cached):
        return None
    for what, one in (("keys", inputs[1]), ("values", inputs[2])):
        dims = dims_of(one) if one is not None and not isinstance(one, Vector) else None
        if dims is None or not any(dim == 0 for dim in dims):
            raise Refusal(
                f"another layer's cache is its past, and its own {what} are to be added to it",
                "export with one cache for each attention that has keys and values of its own",
            )
    if not (cached.is_whole(keys) and cached.is_whole(values)):
        raise Refusal("its past is another layer's cache in another shape")
    for one in (keys, values):
        if one.heads != kv_heads or one.axes != cached.layout(step, one.heads, one.width):
            raise Refusal(f"'{one.past}' has {one.heads} heads, not {kv_heads} before the tokens")
    return keys, values


def multi_head_attention(step: Step, node: Node) -> None:
    """com.microsoft.MultiHeadAttention of one token.

    Its inputs: query, key, value, bias, key_padding_mask, attention_bias, past_key, past_value.
    Keys and values are those of all tokens [batch, tokens, heads * width], or those of the new
    tokens beside the past.
    """
    inputs = step.inputs(node)
    heads = node.integer("num_heads")
    if heads < 1:
        raise Refusal(f"num_heads = {heads} must be positive")
    for i, what in ((3, "a bias"), (8, "an indirection of caches")):
        if inputs[i] is not None:
            raise Refusal(f"{what} is not supported")
    if any(isinstance(v, Unknown) for v in inputs):
        raise Blocked
    query = step.vector(node, 0)
    step.whole_row(query)
    if query.size % heads:
        raise Refusal(f"queries of {query.size} elements do not divide into {heads} heads")
    width = query.size // heads
    keys, values = _all_tokens(step, node, (1, 2), (6, 7), heads, width)
    slope, seen = scores.bias_of(step, node, inputs[5], "the attention bias", heads)
    seen += _padding(step, inputs[4])
    if node.integer("unidirectional"):
        seen += scores.causal(step)
    dims = (step.batch, expression(heads), step.sequence, step.total)
    result = scores.attend(
        step,
        query,
        keys,
        values,
        heads=heads,
        scale=node.real("scale") or 1.0 / math.sqrt(width),
        softcap=0.0,
        window=masks.window(seen, dims, step.sequence),
        names=(node.name,),
        slope=slope,
    )
    step.bind(node, result)


def _padding(step: Step, value: Value | None) -> list[masks.Mask]:
    """A key padding mask: it must hide nothing."""
    if value is None:
        return []
    found = fields.as_field(value)
    if (
        found is None
        or found.dims != (step.batch, step.total)
        or found.term != Count(expression(1))
    ):
        raise Refusal("the key padding mask is not the attention mask of the graph")
    return []


def standard_attention(step: Step, node: Node) -> None:
    """Attention of ai.onnx 23 and 24, of one token.

    Its inputs: Q, K, V, attn_mask, past_key, past_value, nonpad_kv_seqlen. K and V are those of all
    tokens, or those of the new tokens beside the past.
    """
    inputs = step.inputs(node)
    if any(isinstance(v, Unknown) for v in inputs):
        raise Blocked
    counted = inputs[6] is not None
    if counted and not (isinstance(inputs[6], Field) and inputs[6].term == Count(step.total)):
        raise Refusal(
            "nonpad_kv_seqlen (input 6) is not known to be the number of all tokens (an input that "
            "nothing else reads)"
        )
    query = step.vector(node, 0)
    heads = node.integer("q_num_heads")
    if len(query.dims) == 4:
        heads = query.dims[1].constant or 0
        if query.dims[2] != step.sequence:
            raise Refusal("the queries must be [batch, heads, tokens, width]")
    if heads < 1 or query.size % heads:
        raise Refusal(f"queries of {query.size} elements do not divide into {heads} heads")
    width = query.size // heads
    inner = inputs[4] is not None
    keys, values = _all_tokens(step, node, (1, 2), (4, 5), heads, width)
    if keys.buffered != counted or values.buffered != counted:
        raise Refusal(
            "keys and values lie in buffers, and nothing says how many tokens of them count"
            if not counted
            else "nonpad_kv_seqlen is given, and keys and values are those of all tokens"
        )
    slope, seen = scores.bias_of(step, node, inputs[3], "the attention mask", heads)
    if node.integer("is_causal"):
        seen += scores.causal(step, cached=inner or counted)
    dims = (step.batch, expression(heads), step.sequence, step.total)
    result = scores.attend(
        step,
        query,
        keys,
        values,
        heads=heads,
        scale=node.real("scale", 1.0 / math.sqrt(width)),
        softcap=node.real("softcap"),
        window=masks.window(seen, dims, step.sequence),
        names=(node.name,),
        slope=slope,
    )
    step.bind(node, result)


def tensor_scatter(step: Step, node: Node) -> None:
    """TensorScatter of new keys or values into a buffer for all tokens."""
    inputs = step.inputs(node)
    if any(isinstance(v, Unknown) for v in inputs):
        raise Blocked
    past = inputs[0]
    if not isinstance(past, Past):
        kind = kind_of(past)
        raise Refusal(f"input 0 must be a past key or value of the graph; here it is {kind}")
    step.bind(node, cached.scattered(step, node, inputs[2], past))


def _all_tokens(
    step: Step,
    node: Node,
    places: tuple[int, int],
    pasts: tuple[int, int],
    heads: int,
    width: int,
) -> tuple[Cached, Cached]:
    """Keys and values of all tokens, from inputs `places`, or new ones beside inputs `pasts`."""
    found: list[Cached] = []
    for what, place, past in zip(("keys", "values"), places, pasts, strict=True):
        value = step.values.get(node.input(place)) if node.input(place) else None
        if isinstance(value, Cached):
            if node.input(past):
                raise Refusal(f"the {what} hold the past already, and it is given too")
            found.append(value)
        else:
            found.append(_new_tokens(step, node, place, past, what))
        _check_heads(found[-1], heads, width, what)
    return found[0], found[1]


def _new_tokens(step: Step, node: Node, place: int, past_place: int, what: str) -> Cached:
    """New keys or values, written to the cache behind the past input."""
    x = step.vector(node, place)
    past = step.values.get(node.input(past_place)) if node.input(past_place) else None
    if not isinstance(past, Past):
        kind = kind_of(past)
        raise Refusal(f"the {what} of earlier tokens are {kind}; an encoder is not supported")
    if len(x.dims) == 3:
        count = past.dims[1].constant
        if count is None:
            count = node.integer("kv_num_heads", node.integer("num_heads"))
        if count < 1 or x.size % count:
            raise Refusal(f"{what} of {x.size} elements do not divide into {count} heads")
        shape = (x.dims[0], expression(count), x.dims[1], expression(x.size // count))
        x = Vector(x.ssa, shape)
    written = cached.appended(step, node, past, x, 2)
    if node.output(place) not in step.graph.outputs:
        raise Refusal(f"output {place} (present) must be an output of the graph")
    step.bind(node, written, place)
    return written


def _check_heads(value: Cached, heads: int, width: int, what: str) -> None:
    """Keys or values must be [batch, heads, tokens, width] or [batch, tokens, heads * width]."""
    labels = [[name for name, _ in axis if name != "batch"] for axis in value.axes]
    inner = [name for names in labels for name in names if name != "tokens"]
    wide = inner[:-1] if inner[-1:] == ["width"] else ["?"]
    wide = wide[1:] if wide[:1] == ["heads"] else wide
    if (value.heads > 1 and inner[:1] != ["heads"]) or any(name != "repeat" for name in wide):
        raise Refusal(f"the heads of the {what} are not repeated each in turn")
    last = ["width"] if len(labels) == 4 else inner
    place = 2 if len(labels) == 4 else 1
    if len(labels) not in (3, 4) or labels[place] != ["tokens"] or labels[-1] != last:
        raise Refusal(f"the {what} are not [batch, heads, tokens, width]")
    if value.width != width or heads % value.heads:
        raise Refusal(
            f"{heads} heads of {width} elements do not fit {value.heads} of {value.width}"
        )


def _sink(step: Step, node: Node, value: Value | None, heads: int) -> str | None:
    """The symbol of the heads' sinks; smooth_softmax is a sink of 0 for each of them."""
    if value is not None:
        given = numbers(value)
        if given is None or given.dtype.kind != "f":
            raise Refusal(f"head_sink (input 11) must be a constant; here it is {value.kind}")
        return scores.sinks(step, node, given, heads)
    if node.integer("smooth_softmax") == 1:
        return scores.sinks(step, node, np.zeros(heads, np.float32), heads)
    return None


def _check_lengths(step: Step, inputs: list[Value | None]) -> None:
    """seqlens_k must be total - 1 and total_sequence_length the total, counted from the mask."""
    lengths, total = (fields.as_field(value) for value in inputs[5:7])
    if lengths is None or lengths.term != Count(step.total - 1):
        raise Refusal("seqlens_k (input 5) is not the length of the attention mask less one")
    if total is None or total.term != Count(step.total):
        raise Refusal("total_sequence_length (input 6) is not the length of the attention mask")


def _cache_format(node: Node, scale: Value | None, name: str) -> tuple[str, float | None]:
    """(format, static scale) of a cache."""
    kind = text_of(node.attributes.get(f"{name}_quant_type", "NONE"))
    if kind == "NONE":
        if scale is not None:
            raise Refusal(f"{name}_scale is given, but {name}_quant_type is NONE")
        return "float32", None
    bits = node.integer("kv_cache_bit_width")
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
    """Past input i, whose present is an output of the graph."""
    value = step.values.get(node.input(i)) if node.input(i) else None
    if isinstance(value, Unknown):
        raise Blocked
    if not isinstance(value, Past):
        kind = kind_of(value)
        raise Refusal(f"input {i} must be a past key or value of the graph; here it is {kind}")
    port = step.pasts[value.name]
    stored = width // 2 if fmt == "int4" else width
    for axis, wanted in ((1, kv_heads), (3, stored)):
        dim = port.dims[axis] if len(port.dims) == 4 else None
        if isinstance(dim, int) and dim != wanted:
            raise Refusal(f"'{value.name}' has {dim} in axis {axis}, expected {wanted}")
    present = node.output(i - 2)
    while present not in step.graph.outputs and step.graph.uses(present) == 1:
        (reader,) = step.graph.readers(present)
        if reader.op_type != "Identity":
            break
        present = reader.output(0)
    if present not in step.graph.outputs:
        raise Refusal(f"output {i - 2} (present) must be an output of the graph")
    return value
