"""Attention written out: Concat with the past, repeated heads, MatMul, mask, Softmax, MatMul.

Keys and values of all tokens keep track of which factor of their shape lies where, so that any
chain of Unsqueeze, Expand, Reshape and Transpose is understood; products of queries with keys keep
the scale and the masks until the product with the values, where the whole becomes `rom.attention`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from xdsl.dialects.builtin import FloatAttr

from intaglio.dialects import rom
from intaglio.lowering.onnx import fields, folding, masks
from intaglio.lowering.onnx.expressions import Dims, Expression, dims_text, expression, variable
from intaglio.lowering.onnx.model import FLOATS, Node
from intaglio.lowering.onnx.step import Step, names_of, real
from intaglio.lowering.onnx.terms import FALSE, AtLeastZero, Number, apply
from intaglio.lowering.onnx.values import (
    Axis,
    Cached,
    Field,
    Known,
    Past,
    Refusal,
    Scores,
    Stored,
    Turned,
    Value,
    Vector,
    numbers,
)

Labels = list[tuple[str, Expression]]


# --- keys and values of all tokens ---------------------------------------------------------------


def _axis(name: str, size: Expression) -> Axis:
    return () if size == 1 else ((name, size),)


def appended(step: Step, node: Node, past: Past, new: Vector, axis: int) -> Cached:
    """Writes new keys or values into the cache behind a past input.

    Raises:
        Refusal: their shapes differ, or tokens do not lie along `axis`.
    """
    rank = len(new.dims)
    axis %= rank
    if rank != 4 or len(past.dims) != 4 or axis not in (1, 2):
        raise Refusal(
            f"{dims_text(past.dims)} and {dims_text(new.dims)} are joined along axis {axis}; keys "
            "and values must be [batch, heads, tokens, width]"
        )
    if new.dims[axis] != step.sequence or new.dims[0] != step.batch:
        raise Refusal(f"{dims_text(new.dims)} are not the keys or values of new tokens")
    heads, width = new.dims[3 - axis].constant, new.dims[3].constant
    if heads is None or width is None:
        raise Refusal(f"the heads of {dims_text(new.dims)} vary in number or width")
    port = step.pasts[past.name]
    for place, wanted in ((3 - axis, heads), (3, width)):
        dim = port.dims[place]
        if isinstance(dim, int) and dim != wanted:
            raise Refusal(f"'{past.name}' has {dim} in axis {place}, the new part {wanted}")
    if port.dtype not in FLOATS:
        raise Refusal(f"'{past.name}' is {port.dtype.lower()}; a float cache is needed here")
    symbol = step.cache(past.name, heads, width, "float32", None)
    step.emit(rom.AppendOp(new.ssa, symbol, step.position, rom.nodes(node.name)))
    axes = [_axis("batch", step.batch), (), (), _axis("width", expression(width))]
    axes[axis] = _axis("tokens", step.total)
    axes[3 - axis] = _axis("heads", expression(heads))
    return Cached(past.name, symbol, heads, width, tuple(axes), 1.0, (node.name,))


def is_whole(value: Cached) -> bool:
    """Whether it is what the cache holds, in the layout of a past input."""
    names = [name for axis in value.axes for name, _ in axis if name not in ("batch", "heads")]
    return (
        value.factor == 1.0
        and len(value.axes) == 4
        and sorted(names) == ["tokens", "width"]
        and dict(value.axes[3]).keys() == {"width"}
    )


def _regrouped(value: Cached, node: Node, dims: Dims) -> Cached:
    """The same in another shape, as long as no factor is split."""
    rest: Labels = [factor for axis in value.axes for factor in axis]
    axes: list[Axis] = []
    for dim in dims:
        taken: Labels = []
        size = expression(1)
        while size != dim:
            if not rest:
                raise Refusal(f"{dims_text(value.dims)} is turned into {dims_text(dims)}")
            taken.append(rest.pop(0))
            size = size * taken[-1][1]
        axes.append(tuple(taken))
    if rest:
        raise Refusal(f"{dims_text(value.dims)} is turned into {dims_text(dims)}")
    return replace(value, axes=tuple(axes), names=(*value.names, node.name))


def _expanded(step: Step, node: Node, value: Cached, wanted: Dims | None) -> Cached:
    if wanted is None:
        raise Refusal("the new shape is not known before the token")
    dims = fields.expanded_dims(value.dims, wanted)
    shift = len(dims) - len(value.axes)
    axes: list[Axis] = [(), *value.axes] if shift == 1 else list(value.axes)
    if shift > 1:
        raise Refusal(f"{dims_text(value.dims)} is expanded to {dims_text(dims)}")
    for i, (axis, dim) in enumerate(zip(axes, dims, strict=True)):
        if not axis and dim != 1:
            if dim.constant is None:
                raise Refusal(f"{dims_text(value.dims)} is expanded to {dims_text(dims)}")
            axes[i] = (("repeat", dim),)
    found = replace(value, axes=tuple(axes), names=(*value.names, node.name))
    if found.dims != dims:
        raise Refusal(f"{dims_text(value.dims)} is expanded to {dims_text(dims)}")
    return found


def _repeated(node: Node, value: Cached, index: Value | None) -> Cached:
    """Gather along the heads, each of them several times in turn."""
    place = int(node.attributes.get("axis", 0)) % len(value.axes)
    array = None if index is None else numbers(index)
    axis = value.axes[place]
    if array is None or array.ndim != 1 or axis != (("heads", expression(value.heads)),):
        raise Refusal(f"it selects from axis {place} of {dims_text(value.dims)}")
    copies = array.size // value.heads
    if copies < 1 or not np.array_equal(array, np.repeat(np.arange(value.heads), copies)):
        raise Refusal("it selects heads in an order that is no repetition of each in turn")
    more = (*axis, *_axis("repeat", expression(copies)))
    axes = (*value.axes[:place], more, *value.axes[place + 1 :])
    return replace(value, axes=axes, names=(*value.names, node.name))


def _convert_cached(step: Step, node: Node, value: Cached, inputs: list[Value | None]) -> None:
    op = node.op_type
    names = (*value.names, node.name)
    match op:
        case "Reshape" | "Unsqueeze" | "Squeeze" | "Flatten":
            dims = folding.new_dims(node, inputs, value.dims)
            step.bind(node, _regrouped(value, node, dims))
        case "Transpose":
            rank = len(value.axes)
            perm = [int(p) for p in node.attributes.get("perm") or range(rank)[::-1]]
            axes = tuple(value.axes[p] for p in perm)
            step.bind(node, replace(value, axes=axes, names=names))
        case "Expand":
            shape = fields.shape_of(inputs[1])
            step.bind(node, _expanded(step, node, value, shape))
        case "Tile":
            repeats = fields.shape_of(inputs[1])
            wanted = None
            if repeats is not None and len(repeats) == len(value.axes):
                pairs = list(zip(repeats, value.dims, strict=True))
                if all(r == 1 or d == 1 for r, d in pairs):
                    wanted = tuple(r * d for r, d in pairs)
            step.bind(node, _expanded(step, node, value, wanted))
        case "Gather":
            step.bind(node, _repeated(node, value, inputs[1]))
        case "Mul" | "Div":
            factor = _scalar(inputs[1] if inputs[0] is value else inputs[0])
            if factor is None or (op == "Div" and (inputs[0] is not value or factor == 0.0)):
                raise Refusal("keys or values of all tokens are scaled by more than a number")
            by = 1.0 / factor if op == "Div" else factor
            step.bind(node, replace(value, factor=value.factor * by, names=names))
        case "Cast" if folding.type_name(node.attributes.get("to")) in FLOATS:
            step.bind(node, value)
        case "Identity":
            step.bind(node, value)
        case "Slice":
            for axis, _, size, _ in fields.symbolic_slices(node, inputs, value.dims):
                if size != value.dims[axis]:
                    raise Refusal(
                        f"it cuts axis {axis} of {dims_text(value.dims)}; a cache that forgets "
                        "tokens is not supported"
                    )
            step.bind(node, value)
        case _:
            raise Refusal(f"{op} of keys or values of all tokens is not supported")


def _scalar(value: Value | None) -> float | None:
    if isinstance(value, Field):
        return value.term.value if isinstance(value.term, Number) else None
    array = None if value is None else numbers(value)
    if array is None or array.size == 0 or array.dtype.kind not in "fiu":
        return None
    first = float(array.reshape(-1)[0])
    return first if bool((array == array.reshape(-1)[0]).all()) else None


# --- scores --------------------------------------------------------------------------------------


def _heads(lead: Dims, axes: Sequence[Axis], kv_heads: int, what: str) -> int:
    """Checks that the axes before the last two are those of heads; gives how many there are.

    Query head h must read key and value head h // copies.
    """
    if len(axes) > len(lead):
        raise Refusal(f"{what} have more axes than the queries")
    padded = [()] * (len(lead) - len(axes)) + list(axes)
    labels: Labels = []
    for dim, axis in zip(lead, padded, strict=True):
        size = expression(1)
        for _, length in axis:
            size = size * length
        if not axis and dim != 1:
            labels.append(("repeat", dim))
        elif size != dim:
            raise Refusal(f"{what} have {size} heads where the queries have {dim}")
        else:
            labels += axis
    if labels and labels[0][0] == "batch":
        labels = labels[1:]
    names = [name for name, _ in labels]
    if kv_heads > 1 and names[:1] == ["heads"]:
        names = names[1:]
    elif kv_heads > 1:
        raise Refusal(f"the heads of {what} are not repeated each in turn")
    if any(name != "repeat" for name in names):
        raise Refusal(f"the heads of {what} are not repeated each in turn")
    total = 1
    for _, length in labels:
        if length.constant is None:
            raise Refusal(f"the heads of {what} vary in number")
        total *= length.constant
    return total


def _products(
    step: Step, node: Node, query: Vector, keys: Cached, *, transposed: bool, scale: float
) -> Scores:
    axes = (*keys.axes[:-2], keys.axes[-1], keys.axes[-2]) if transposed else keys.axes
    if [n for n, _ in axes[-2]] != ["width"] or [n for n, _ in axes[-1]] != ["tokens"]:
        raise Refusal("the second factor must be keys [.., width, tokens]")
    if len(query.dims) < 3 or query.dims[-1] != keys.width or query.dims[-2] != step.sequence:
        raise Refusal(f"queries {dims_text(query.dims)} do not fit keys of {keys.width} elements")
    heads = _heads(query.dims[:-2], axes[:-2], keys.heads, "the keys")
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
        case "Mul" | "Div" if value.stage != "probabilities" and not value.masks:
            factor = _scalar(other)
            if factor is None or factor == 0.0 or (op == "Div" and places != [0]):
                raise Refusal("scores are scaled by more than a number")
            by = 1.0 / factor if op == "Div" else factor
            if value.stage == "tanh":
                cap = value.cap * by
                step.bind(node, replace(value, cap=cap, names=names))
            else:
                step.bind(node, replace(value, scale=value.scale * by, names=names))
        case "Tanh" if value.stage == "scores" and not value.masks:
            step.bind(node, replace(value, stage="tanh", cap=1.0, names=names))
        case "Add" if value.stage != "probabilities" and places in ([0], [1]):
            mask = fields.as_field(other)
            if mask is None:
                kind = "missing" if other is None else other.kind
                raise Refusal(f"{kind} is added to attention scores; only masks are")
            step.bind(
                node,
                replace(
                    value,
                    masks=(*value.masks, (mask, f"the mask that '{node.name}' adds")),
                    names=names,
                ),
            )
        case "Where":
            step.bind(node, _selected(node, value, inputs, names))
        case "Softmax" if value.stage != "probabilities":
            axis = int(node.attributes.get("axis", -1))
            if axis not in (-1, len(value.dims) - 1):
                raise Refusal(f"the softmax is over axis {axis}, not over the tokens")
            step.bind(node, replace(value, stage="probabilities", names=names))
        case "IsNaN":
            # Each token sees itself (the masks are proven to be causal), so no sum is 0.
            step.bind(node, Field(value.dims, FALSE, "BOOL"))
        case "Cast" if folding.type_name(node.attributes.get("to")) in FLOATS:
            step.bind(node, value)
        case "Identity":
            step.bind(node, value)
        case "Reshape" | "Unsqueeze" | "Squeeze":
            dims = folding.new_dims(node, inputs, value.dims)
            if len(dims) < 3 or dims[-2:] != value.dims[-2:]:
                raise Refusal(f"scores {dims_text(value.dims)} are turned into {dims_text(dims)}")
            if value.masks:
                # Axes of earlier masks would be others.
                raise Refusal("scores are given another shape after their mask")
            step.bind(node, replace(value, dims=dims, names=names))
        case "MatMul" if value.stage == "probabilities" and places == [0]:
            values = inputs[1]
            if not isinstance(values, Cached):
                kind = "missing" if values is None else values.kind
                raise Refusal(f"probabilities are multiplied with {kind}, not with cached values")
            _attend(step, node, value, values)
        case _:
            raise Refusal(f"{op} of attention {value.stage} is not supported")


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
    other = _scalar(inputs[3 - places[0]]) if places in ([1], [2]) else None
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
    heads = _heads(value.dims[:-2], axes[:-2], values.heads, "the values")
    if heads != value.heads:
        raise Refusal(f"there are {value.heads} heads of queries and {heads} of values")
    window = masks.window(value.masks, value.dims, step.sequence)
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
    )
    dims = (*value.dims[:-1], expression(values.width))
    step.bind(node, Vector(result.ssa, dims))


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
    for cache in (keys, values):
        if cache.symbol in step.attended:
            raise Refusal(
                f"'{cache.past}' is read by another attention too; shared caches are not supported"
            )
        step.attended.add(cache.symbol)
    used: dict[str, None] = {}
    ssa = query.ssa
    while isinstance(ssa.owner, rom.ScaleOp) and isinstance(ssa.owner.factor, FloatAttr):
        scale *= ssa.owner.factor.value.data
        used |= dict.fromkeys(names_of(ssa.owner))
        ssa = ssa.owner.input
    scale *= keys.factor
    if not scale > 0.0:
        raise Refusal(f"scores are multiplied with {scale:g}, which is not positive")
    used |= dict.fromkeys(names)
    last = names[-1]
    used.pop(last, None)
    onnx = rom.nodes(*used, last)
    op = step.emit(
        rom.AttentionOp(
            ssa,
            keys.symbol,
            values.symbol,
            step.position,
            onnx,
            heads=heads,
            scale=scale,
            softcap=softcap,
            window=window,
        )
    )
    result = op.output
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
    if node.op_type in ("Attention", "MultiHeadAttention"):
        return False
    given = [v for v in inputs if v is not None]
    scores = next((v for v in given if isinstance(v, Scores)), None)
    if scores is not None:
        _convert_scores(step, node, scores, inputs)
        return True
    cached = next((v for v in given if isinstance(v, Cached)), None)
    if cached is not None:
        if node.op_type in ("MatMul", "FusedMatMul") and inputs[1] is cached:
            _convert_products(step, node, cached)
        else:
            _convert_cached(step, node, cached, inputs)
        return True
    past = next((v for v in given if isinstance(v, Past)), None)
    if past is not None and node.op_type == "Cast":
        if folding.type_name(node.attributes.get("to")) not in FLOATS:
            raise Refusal("past keys or values are cast to integers")
        step.bind(node, past)
        return True
    if past is not None and node.op_type == "Concat":
        if len(given) != 2 or given[0] is not past:
            raise Refusal("past keys or values must be joined with the new ones, past first")
        new = step.vector(node, 1)
        step.bind(node, appended(step, node, past, new, int(node.attributes.get("axis", 0))))
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
        scale=float(attributes.get("alpha", 1.0)),
    )
    step.bind(node, scores)


def _chosen(step: Step, node: Node, inputs: list[Value | None]) -> bool:
    """Where on an activation with a condition that is always the same."""
    if not any(isinstance(v, Vector | Turned) for v in inputs):
        return False
    chosen = truth_of(inputs[0])
    if chosen is None:
        kind = "missing" if inputs[0] is None else inputs[0].kind
        raise Refusal(f"an activation is replaced where {kind} says so")
    place = 1 if chosen else 2
    x = step.vector(node, place)
    dims = x.dims
    for i in (0, 1, 2):
        found = folding.dims_of(inputs[i]) if inputs[i] is not None else None  # pyright: ignore
        if found is None or len(found) > len(dims):
            raise Refusal("it enlarges an activation")
        for a, b in zip(found[::-1], dims[::-1], strict=False):
            if a not in (1, b):
                raise Refusal(f"{dims_text(found)} enlarges {dims_text(dims)}")
    step.result(node, x.ssa, dims)
    return True
