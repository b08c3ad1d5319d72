"""Attention written out: Concat with the past, repeated heads, MatMul, mask, Softmax, MatMul.

Products of queries with keys (`cached`) keep the scale and the masks until the product with the
values, where the whole becomes `rom.attention`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
from xdsl.dialects.builtin import FloatAttr
from xdsl.ir import SSAValue

from intaglio.dialects import rom
from intaglio.lowering.onnx.graph.model import FLOATS, Node, Tensor, cast_type
from intaglio.lowering.onnx.known import fields, masks, slopes
from intaglio.lowering.onnx.known.expressions import dims_text, expression, variable
from intaglio.lowering.onnx.known.fields import same_for_all_tokens
from intaglio.lowering.onnx.known.shapes import axis_of, dims_of, new_dims, reduced_axes, slices_of
from intaglio.lowering.onnx.known.simplification import apply, substitute
from intaglio.lowering.onnx.known.terms import FALSE, AtLeastZero, Number
from intaglio.lowering.onnx.step import SINKS, SLOPES, Role, Step, names_of, real
from intaglio.lowering.onnx.values import (
    Cached,
    Curve,
    Field,
    Known,
    Past,
    Refusal,
    Scores,
    Stored,
    Turned,
    Value,
    Vector,
    kind_of,
    numbers,
)
from intaglio.lowering.onnx.written import cached

LARGEST_SINK = 20000.0
"""Beyond it a sink is cut: scores to the base 2 of 32 bits, 16 of them fraction, hold it."""
LARGEST_SLOPE = 80.0
"""What 32 bits hold to the base 2, 24 of them fraction."""

# --- scores --------------------------------------------------------------------------------------


def _products(
    step: Step, node: Node, query: Vector, keys: Cached, *, transposed: bool, scale: float
) -> Scores:
    axes = (*keys.axes[:-2], keys.axes[-1], keys.axes[-2]) if transposed else keys.axes
    if [n for n, _ in axes[-2]] != ["width"] or [n for n, _ in axes[-1]] != ["tokens"]:
        raise Refusal("the second factor must be keys [.., width, tokens]")
    if len(query.dims) < 3 or query.dims[-1] != keys.width or query.dims[-2] != step.sequence:
        raise Refusal(f"queries {dims_text(query.dims)} do not fit keys of {keys.width} elements")
    heads = cached.heads_of(query.dims[:-2], axes[:-2], keys.heads, "the keys")
    if query.size != heads * keys.width:
        raise Refusal(f"queries {dims_text(query.dims)} do not make {heads} heads")
    dims = (*query.dims[:-1], step.total)
    return Scores(query, keys, heads, scale, dims, (*keys.names, node.name))


def _convert_scores(step: Step, node: Node, value: Scores, inputs: list[Value | None]) -> None:
    op = node.op_type
    names = (*value.names, node.name)
    places = [i for i, v in enumerate(inputs) if v is value]
    other = inputs[1 - places[0]] if places in ([0], [1]) else None
    match op:
        case "Mul" | "Div" if value.stage in _UNMASKED and not (value.masks or value.sinks):
            factor = cached.factor_of(other, value.dims)
            if factor is None or factor == 0.0 or (op == "Div" and places != [0]):
                raise Refusal("scores are scaled by more than a number")
            by = 1.0 / factor if op == "Div" else factor
            lost = tuple(one * by for one in value.slopes)
            if value.stage == "tanh":
                cap = value.cap * by
                step.bind(node, replace(value, cap=cap, slopes=lost, names=names))
            else:
                scale = value.scale * by
                step.bind(node, replace(value, scale=scale, slopes=lost, names=names))
        case "Tanh" if value.stage == "scores" and not (value.masks or value.slopes):
            step.bind(node, replace(value, stage="tanh", cap=1.0, names=names))
        case "Concat" if value.stage in _UNMASKED and places == [0] and not value.sinks:
            step.bind(node, _with_sinks(node, value, other, names))
        case "ReduceMax" if value.stage in _UNMASKED:
            axes = reduced_axes(node, inputs, len(value.dims))
            if set(axes) != {len(value.dims) - 1} or not node.integer("keepdims", 1):
                raise Refusal("the largest score is not taken over the tokens")
            step.bind(node, replace(value, stage="largest", names=names))
        case "Max" if value.stage in _UNMASKED and (
            (least := cached.factor_of(other, value.dims)) is not None and least <= masks.BLOCKED
        ):
            # Scores that a mask blocks are not to be below the least number (XGLM).
            step.bind(node, replace(value, names=names))
        case "Sub" if inputs[0] is value and value.stage in _UNMASKED and _is_largest(value, other):
            # Softmax does not change when all scores do alike.
            step.bind(node, replace(value, names=names))
        case "Slice" if value.stage == "probabilities" and value.sinks:
            step.bind(node, _without_sinks(node, value, inputs, names))
        case "Add" if value.stage in _UNMASKED and not value.sinks and places in ([0], [1]):
            mask = fields.as_field(other)
            if mask is None:
                kind = kind_of(other)
                raise Refusal(f"{kind} is added to attention scores; only masks are")
            step.bind(node, _added(node, value, mask, names))
        case "Where":
            step.bind(node, _selected(node, value, inputs, names))
        case "Softmax" if value.stage in _UNMASKED:
            axis = axis_of(node, len(value.dims), -1)
            if axis != len(value.dims) - 1:
                raise Refusal(f"the softmax is over axis {axis}, not over the tokens")
            step.bind(node, replace(value, stage="probabilities", names=names))
        case "IsNaN":
            # Each token sees itself (the masks are proven to be causal), so no sum is 0.
            step.bind(node, Field(value.dims, FALSE, "BOOL"))
        case "Cast" if cast_type(node) in FLOATS:
            step.bind(node, value)
        case "Identity":
            step.bind(node, value)
        case "Reshape" | "Unsqueeze" | "Squeeze":
            dims = new_dims(node, inputs, value.dims)
            if len(dims) < 3 or dims[-2:] != value.dims[-2:]:
                raise Refusal(f"scores {dims_text(value.dims)} are turned into {dims_text(dims)}")
            kept = tuple((_of_all_heads(mask), what) for mask, what in value.masks)
            step.bind(node, replace(value, dims=dims, masks=kept, names=names))
        case "MatMul" if (
            value.stage == "probabilities" and places == [0] and _of_tokens(step, value)
        ):
            values = inputs[1]
            if not isinstance(values, Cached):
                kind = kind_of(values)
                raise Refusal(f"probabilities are multiplied with {kind}, not with cached values")
            _attend(step, node, value, values)
        case _:
            raise Refusal(f"{op} of attention {value.stage} is not supported")


_UNMASKED = ("scores", "tanh")
"""Stages before the softmax."""


def _of_all_heads(mask: Field) -> Field:
    """The mask as one of [queries, keys]: scores are given other axes before these.

    Raises:
        Refusal: it has other axes itself.
    """
    lead = len(mask.dims) - 2
    if lead < 1:
        return mask
    if any(dim != 1 for dim in mask.dims[:-2]):
        raise Refusal("scores are given another shape after a mask that has heads")
    moved = {f"@{lead + axis}": variable(f"@{axis}") for axis in range(2)}
    return Field(mask.dims[-2:], substitute(mask.term, moved), mask.dtype)


def _added(node: Node, value: Scores, mask: Field, names: tuple[str, ...]) -> Scores:
    """Scores to which a mask is added, or what falls with the distance, or both."""
    found = slopes.split(mask, value.dims, value.heads)
    lost, seen = value.slopes, value.masks
    if found.slopes is not None:
        before = np.asarray(value.slopes or (0.0,) * value.heads)
        lost = tuple((before + found.slopes).tolist())
    if found.mask is not None:
        seen = (*seen, (found.mask, f"the mask that '{node.name}' adds"))
    moves = value.moves or found.moves
    return replace(value, masks=seen, slopes=lost, moves=moves, names=names)


def _with_sinks(node: Node, value: Scores, other: Value | None, names: tuple[str, ...]) -> Scores:
    """Concat of scores and a constant of each head: what stands for no token."""
    if axis_of(node, len(value.dims)) != len(value.dims) - 1 or len(node.inputs) != 2:
        raise Refusal("scores are joined along another axis than that of the tokens")
    constant = same_for_all_tokens(other, "sinks") if isinstance(other, Field) else other
    given = None if constant is None else numbers(constant)
    if given is None or given.dtype.kind != "f" or given.size not in (1, value.heads):
        raise Refusal(f"{kind_of(other)} stands behind attention scores; only a sink a head does")
    shape = dims_of(other) if other is not None else None
    if shape is None or len(shape) != len(value.dims) or shape[-1] != 1:
        raise Refusal("more than one score is put behind those of the tokens")
    found = np.broadcast_to(given.reshape(-1), (value.heads,)).astype(np.float64)
    dims = (*value.dims[:-1], value.dims[-1] + 1)
    return replace(value, sinks=tuple(found.tolist()), dims=dims, names=names)


def _is_largest(value: Scores, other: Value | None) -> bool:
    """Whether `other` is the largest of the scores."""
    return (
        isinstance(other, Scores)
        and other.stage == "largest"
        and (other.query, other.keys, other.masks) == (value.query, value.keys, value.masks)
        and (other.sinks, other.scale, other.cap) == (value.sinks, value.scale, value.cap)
        and other.slopes == value.slopes
    )


def _without_sinks(
    node: Node, value: Scores, inputs: list[Value | None], names: tuple[str, ...]
) -> Scores:
    """Slice of probabilities: those of the tokens, without the sink's behind them."""
    last = len(value.dims) - 1
    tokens = value.dims[last] - 1
    for axis, first, size, stride in slices_of(node, inputs, value.dims):
        whole = size == value.dims[axis]
        if whole and axis != last:
            continue
        if axis != last or first != 0 or size != tokens or stride != 1:
            raise Refusal(f"it cuts axis {axis} of attention probabilities")
        return replace(value, dims=(*value.dims[:-1], tokens), names=names)
    return value


def _of_tokens(step: Step, value: Scores) -> bool:
    """Whether probabilities are those of the tokens alone.

    Raises:
        Refusal: the sinks' are among them.
    """
    if value.dims[-1] != step.total:
        raise Refusal("the probability of a sink has no value to be multiplied with")
    return True


def truth_of(value: Value | None) -> bool | None:
    """A condition that is the same everywhere, or None."""
    match value:
        case Field(term=Number(dtype="BOOL") as term):
            return bool(term.value)
        case Known() | Stored():
            array = numbers(value)
            if array is not None and array.size and array.dtype == np.bool_:
                first = bool(array.reshape(-1)[0])
                return first if bool((array == first).all()) else None
            return None
        case _:
            return None


def _selected(
    node: Node, value: Scores, inputs: list[Value | None], names: tuple[str, ...]
) -> Scores:
    """Where: scores that a mask blocks, or a guard against rows without any token."""
    condition, places = inputs[0], [i for i, v in enumerate(inputs) if v is value]
    chosen = truth_of(condition)
    if chosen is not None and places == [1 if chosen else 2]:
        return value
    mask = fields.as_field(condition)
    other = cached.factor_of(inputs[3 - places[0]], value.dims) if places in ([1], [2]) else None
    if mask is None or value.stage == "probabilities" or other is None or other > masks.BLOCKED:
        raise Refusal("scores are replaced in a way that is no mask")
    term = mask.term
    if places == [2]:
        term = apply("Not", [term], fields.ranges_of(mask.dims))
    found = Field(mask.dims, term, "BOOL")
    return replace(value, masks=(*value.masks, (found, f"the mask of '{node.name}'")), names=names)


def _attend(step: Step, node: Node, value: Scores, values: Cached) -> None:
    axes = values.axes
    if [n for n, _ in axes[-2]] != ["tokens"] or [n for n, _ in axes[-1]] != ["width"]:
        raise Refusal("the second factor must be values [.., tokens, width]")
    heads = cached.heads_of(value.dims[:-2], axes[:-2], values.heads, "the values")
    if heads != value.heads:
        raise Refusal(f"there are {value.heads} heads of queries and {heads} of values")
    window = masks.window(value.masks, value.dims, step.sequence)
    sunk = np.asarray(value.sinks)
    check_sunk(value.moves and bool(value.sinks))
    result = attend(
        step,
        value.query,
        value.keys,
        values,
        heads=heads,
        scale=value.scale * (value.cap or 1.0),
        softcap=value.cap,
        window=window,
        names=(*value.names, *values.names, node.name),
        sink=sinks(step, node, sunk, heads) if value.sinks else None,
        slope=slopes_of(step, node, np.asarray(value.slopes), heads) if value.slopes else None,
    )
    dims = (*value.dims[:-1], expression(values.width))
    step.bind(node, Vector(result.ssa, dims))


def emit_attention(
    step: Step,
    query: SSAValue,
    keys: str,
    values: str,
    onnx: rom.Nodes,
    *,
    heads: int,
    scale: float,
    softcap: float,
    window: int,
    sink: str | None = None,
    slope: str | None = None,
) -> SSAValue:
    """Emits attention over two caches, by their symbols; its result is as wide as the queries.

    Raises:
        Refusal: scores are not multiplied with a positive number, or capped at a negative one.
    """
    if not 0.0 < scale < math.inf:
        raise Refusal(f"scores are multiplied with {scale:g}, which is not positive and finite")
    if not 0.0 <= softcap < math.inf:
        raise Refusal(f"scores are capped at {softcap:g}, which is not positive and finite")
    return step.emit(
        rom.AttentionOp(
            query,
            keys,
            values,
            step.position,
            onnx,
            heads=heads,
            scale=scale,
            softcap=softcap,
            window=window,
            sink=sink,
            slopes=slope,
        )
    ).output


def sinks(step: Step, node: Node, given: npt.NDArray[np.floating[Any]], heads: int) -> str | None:
    """Declares a sink for each head; gives its symbol, or None where no head has one.

    A sink is a score of a token without a value. Whether it is as large as `LARGEST_SINK` or
    larger makes no difference: the rest is 0 beside it, or it beside the rest.

    Raises:
        Refusal: there are not as many as heads, or one is no number.
    """
    values = given.astype(np.float32).reshape(-1)
    if values.size == 1:
        values = np.repeat(values, heads)
    if values.size != heads:
        raise Refusal(f"there are {values.size} sinks for {heads} heads")
    if np.isnan(values).any():
        raise Refusal("a sink is no number")
    if (values <= -LARGEST_SINK).all():
        return None
    clipped = np.clip(values, -LARGEST_SINK, LARGEST_SINK)
    return _of_heads(step, node, "sinks", clipped, SINKS)


def slopes_of(
    step: Step, node: Node, given: npt.NDArray[np.floating[Any]], heads: int
) -> str | None:
    """Declares what each head's scores lose for a token of distance; None where none loses.

    Raises:
        Refusal: one is more than 32 bits hold, of which 24 are fraction.
    """
    values = given.astype(np.float32)
    if not values.any():
        return None
    if not (np.abs(values) < LARGEST_SLOPE).all():
        raise Refusal(f"a score loses {np.abs(values).max():g} for each token of distance")
    return _of_heads(step, node, "slopes", values, SLOPES)


def _of_heads(
    step: Step, node: Node, what: str, values: npt.NDArray[np.float32], role: Role
) -> str:
    key = hashlib.sha256(what.encode() + values.tobytes()).digest()
    if key not in step.engraved:
        count = sum(one.tensor.name.startswith(what) for one in step.engraved.values())
        tensor = Tensor(f"{what}_{count}", "FLOAT", values.shape, lambda: values.view(np.uint8))
        step.engraved[key] = Stored(tensor, values.shape)
    return step.dense_value(node, step.engraved[key], values.shape, role)


def attend(
    step: Step,
    query: Vector,
    keys: Cached,
    values: Cached,
    *,
    heads: int,
    scale: float,
    softcap: float,
    window: int,
    names: Sequence[str],
    sink: str | None = None,
    slope: str | None = None,
) -> Vector:
    """Emits attention; numbers that queries, keys and values are multiplied with go elsewhere.

    Raises:
        Refusal: the caches do not fit each other.
    """
    if keys.symbol == values.symbol:
        raise Refusal("keys and values are the same cache")
    if keys.width != values.width or keys.heads != values.heads:
        raise Refusal(
            f"keys have {keys.heads} heads of {keys.width}, values {values.heads} of {values.width}"
        )
    used: dict[str, None] = {}
    ssa = query.ssa
    while isinstance(ssa.owner, rom.ScaleOp) and isinstance(ssa.owner.factor, FloatAttr):
        scale *= ssa.owner.factor.value.data
        used |= dict.fromkeys(names_of(ssa.owner))
        ssa = ssa.owner.input
    scale *= keys.factor
    used |= dict.fromkeys(names)
    last = names[-1]
    used.pop(last, None)
    onnx = rom.nodes(*used, last)
    result = emit_attention(
        step,
        ssa,
        keys.symbol,
        values.symbol,
        onnx,
        heads=heads,
        scale=scale,
        softcap=softcap,
        window=window,
        sink=sink,
        slope=slope,
    )
    if values.factor != 1.0:
        result = step.emit(rom.ScaleOp(result, real(values.factor), onnx)).output
    return Vector(result, query.dims)


# --- masks of operators --------------------------------------------------------------------------


def causal(step: Step, window: int = 0, *, cached: bool = True) -> list[masks.Mask]:
    """The masks of an operator that is causal, and within a window if that is positive.

    Without `cached` the first query is aligned with the first key.
    """
    dims = (step.sequence, step.total)
    distance = variable("@0") - variable("@1")
    if cached:
        distance = distance + step.total - step.sequence
    bounds = [distance] + ([window - 1 - distance] if window > 0 else [])
    found: list[masks.Mask] = []
    for bound in bounds:
        if step.sequence == 1:
            bound = bound.substitute({"@0": expression(0)})
        found.append((Field(dims, AtLeastZero(bound), "BOOL"), ""))
    return found


def bias_of(
    step: Step, node: Node, value: Value | None, what: str, heads: int, *, sunk: bool = False
) -> tuple[str | None, list[masks.Mask]]:
    """What an operator adds to scores: slopes of the heads by their symbol, and masks.

    Args:
        step, node: where it stands.
        value: the operator's input.
        what: it is, for messages.
        heads: of the queries.
        sunk: whether they have sinks.

    Raises:
        Refusal: it is something else.
    """
    dims = (step.batch, expression(heads), step.sequence, step.total)
    found = mask_of(value, what)
    if not found:
        return None, []
    apart = slopes.split(found[0][0], dims, heads)
    check_sunk(apart.moves and sunk)
    lost, rest = apart.slopes, apart.mask
    symbol = None if lost is None else slopes_of(step, node, lost, heads)
    return symbol, [] if rest is None else [(rest, what)]


def check_sunk(moved: bool) -> None:
    """Refuses what moves the scores of all tokens of a head beside a sink."""
    if moved:
        raise Refusal(
            "what is added to scores is not 0 for the query itself, and its sink does not get it"
        )


def mask_of(value: Value | None, what: str) -> list[masks.Mask]:
    """An operator's mask input; none when absent.

    Raises:
        Refusal: it is something else.
    """
    if value is None:
        return []
    found = fields.as_field(value)
    if found is None:
        raise Refusal(
            f"{what} is {value.kind}", "export with input_ids and a 2-D attention_mask only"
        )
    return [(found, what)]


# --- dispatch ------------------------------------------------------------------------------------


def convert(step: Step, node: Node, inputs: list[Value | None]) -> bool:
    """Converts a node of attention written out; says whether it is one.

    Raises:
        Refusal: it reads keys, values or scores and is no node of attention.
    """
    if node.op_type in ("Attention", "GroupQueryAttention", "MultiHeadAttention"):
        return False
    given = [v for v in inputs if v is not None]
    scores = next((v for v in given if isinstance(v, Scores)), None)
    if scores is not None:
        _convert_scores(step, node, scores, inputs)
        return True
    value = next((v for v in given if isinstance(v, Cached)), None)
    if value is not None:
        if node.op_type in ("MatMul", "FusedMatMul") and inputs[1] is value:
            if value.buffered:
                raise Refusal("attention over a buffer that is not filled is written out")
            _convert_products(step, node, value)
        else:
            cached.convert(step, node, value, inputs)
        return True
    past = next((v for v in given if isinstance(v, Past)), None)
    if past is not None and node.op_type == "Cast":
        if cast_type(node) not in FLOATS:
            raise Refusal("past keys or values are cast to integers")
        step.bind(node, past)
        return True
    if past is not None and node.op_type == "Concat":
        if len(given) != 2 or given[0] is not past:
            raise Refusal("past keys or values must be joined with the new ones, past first")
        new = step.vector(node, 1)
        step.bind(node, cached.appended(step, node, past, new, axis_of(node, len(new.dims))))
        return True
    return node.op_type == "Where" and _chosen(step, node, inputs)


def _convert_products(step: Step, node: Node, keys: Cached) -> None:
    attributes = node.attributes
    for name in ("transA", "transBatchA", "transBatchB"):
        if attributes.get(name):
            raise Refusal(f"{name} is not supported")
    query = step.vector(node, 0)
    scores = _products(
        step,
        node,
        query,
        keys,
        transposed=bool(attributes.get("transB")),
        scale=node.real("alpha", 1.0),
    )
    step.bind(node, scores)


def _chosen(step: Step, node: Node, inputs: list[Value | None]) -> bool:
    """Where on an activation with a condition that is always the same."""
    if not any(isinstance(v, Vector | Turned) for v in inputs):
        return False
    if any(isinstance(v, Curve) for v in inputs):
        return False
    chosen = truth_of(inputs[0])
    if chosen is None:
        kind = kind_of(inputs[0])
        raise Refusal(f"an activation is replaced where {kind} says so")
    place = 1 if chosen else 2
    x = step.vector(node, place)
    dims = x.dims
    for i in (0, 1, 2):
        found = dims_of(inputs[i]) if inputs[i] is not None else None  # pyright: ignore
        if found is None or len(found) > len(dims):
            raise Refusal("it enlarges an activation")
        for a, b in zip(found[::-1], dims[::-1], strict=False):
            if a not in (1, b):
                raise Refusal(f"{dims_text(found)} enlarges {dims_text(dims)}")
    step.result(node, x.ssa, dims)
    return True
