"""Folds nodes on position-dependent tensors: ranges, masks, angles, cosines.

Each function takes a node and the values of its inputs, constants and `Field`s only, and gives the
values of its outputs. What a formula cannot say is refused.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from intaglio.lowering.onnx.graph.model import FLOATS, Array, Node, Tensor, cast_type
from intaglio.lowering.onnx.known import folding
from intaglio.lowering.onnx.known.evaluation import FIELD_TYPES, evaluate
from intaglio.lowering.onnx.known.expressions import (
    Dims,
    Expression,
    dims_text,
    expression,
    is_nonnegative,
    variable,
)
from intaglio.lowering.onnx.known.fields import (
    as_field,
    axis_index,
    broadcast,
    expand,
    field,
    position,
    ranges_of,
    scalar,
    selected,
)
from intaglio.lowering.onnx.known.functions import COMPARISONS, LOGICAL
from intaglio.lowering.onnx.known.functions import FUNCTIONS as ELEMENTWISE
from intaglio.lowering.onnx.known.shapes import (
    axis_of,
    new_dims,
    permutation,
    reduced_axes,
    shape_of,
    slices_of,
    split_sizes,
)
from intaglio.lowering.onnx.known.simplification import apply, pieces, replace_index, substitute
from intaglio.lowering.onnx.known.terms import (
    Count,
    NoProof,
    Number,
    Reduced,
    Term,
    count,
    truth,
    variables,
)
from intaglio.lowering.onnx.values import Field, Known, Refusal, Stored, Value, array_of, integers

# --- elementwise ----------------------------------------------------------------------------------


def _elementwise(node: Node, fields: list[Field]) -> Value:
    dims, terms = broadcast(fields)
    ranges = ranges_of(dims)
    op = node.op_type
    if op in ("Max", "Min") and len(terms) != 2:
        term = terms[0]
        for other in terms[1:]:
            term = apply(op, [term, other], ranges)
    elif op == "Mod" and node.integer("fmod"):
        raise Refusal("fmod is not supported")
    else:
        term = apply(op, terms, ranges)
    dtype = (
        "BOOL" if op in COMPARISONS or op in LOGICAL else fields[1 if op == "Where" else 0].dtype
    )
    return field(node, dims, term, dtype)


def _constants(node: Node, inputs: Inputs) -> list[Value] | None:
    """An elementwise operator on small constants and lengths."""
    arrays = [array_of(v) for v in inputs if v is not None]
    if any(a is None for a in arrays):
        return None
    known = [a for a in arrays if a is not None]
    op = node.op_type
    if any(a.dtype == object for a in known):
        found = np.broadcast_arrays(*known)
        out = np.empty(found[0].shape, object)
        for place in np.ndindex(out.shape):
            items = [scalar(f.item(place), _dtype(f)) for f in found]
            term = apply(op, items, {})
            if isinstance(term, Count):
                out[place] = term.value
            elif isinstance(term, Number):
                out[place] = bool(term.value) if term.dtype == "BOOL" else term.value
            elif out.size == 1:
                # Lengths decide it: the capacity of the caches may tell (`conditions`).
                dims = tuple(expression(n) for n in out.shape)
                dtype = "BOOL" if op in COMPARISONS or op in LOGICAL else "INT64"
                return [Field(dims, term, dtype)]
            else:
                raise Refusal(f"{op} of {', '.join(str(f[place]) for f in found)} is not known")
        if out.size and all(isinstance(v, bool) for v in out.flat):
            out = out.astype(np.bool_)
        return [Known(out)]
    function = ELEMENTWISE[op]
    with np.errstate(all="ignore"):
        result = known[0] if op in ("Max", "Min") else np.asarray(function(*known))
        for other in known[1:] if op in ("Max", "Min") else ():
            result = np.asarray(function(result, other))
    return [folding.known(np.asarray(result), node)]


def _dtype(array: Array) -> str:
    return {"b": "BOOL", "f": "FLOAT"}.get(array.dtype.kind, "INT64")


def _cast(node: Node, fields: list[Field]) -> Value:
    value = fields[0]
    target = cast_type(node)
    if target not in FIELD_TYPES:
        raise Refusal(f"{value.kind} cast to {target} is not supported")
    term = apply(f"cast:{target}", [value.term], ranges_of(value.dims))
    return field(node, value.dims, term, target)


# --- shapes ---------------------------------------------------------------------------------------


def _reshape(node: Node, inputs: Inputs, value: Field) -> Value:
    dims = new_dims(node, inputs, value.dims)
    return field(node, dims, _regrouped(value, dims), value.dtype)


def _regrouped(value: Field, dims: Dims) -> Term:
    """The element in a new shape: axes are kept, split, or merged where they have known lengths."""
    old = [(a, d) for a, d in enumerate(value.dims) if d != 1]
    new = [(a, d) for a, d in enumerate(dims) if d != 1]
    names: dict[str, Expression] = {}
    merged: list[tuple[str, Expression, int, int]] = []
    used = variables(value.term)
    while old or new:
        left, right = [old.pop(0)] if old else [], [new.pop(0)] if new else []
        while (total := _product(left)) != (wanted := _product(right)):
            if old and (not new or _divides(wanted, total)):
                left.append(old.pop(0))
            elif new:
                right.append(new.pop(0))
            else:
                raise Refusal(f"{dims_text(value.dims)} is turned into {dims_text(dims)}")
        index = expression(0)
        for axis, dim in right:
            index = index * dim + axis_index(axis)
        if len(left) == 1:
            names[f"@{left[0][0]}"] = index
            continue
        inner = 1
        for axis, dim in reversed(left):
            if f"@{axis}" in used and (dim.constant is None or not inner):
                raise Refusal(
                    f"{dims_text(value.dims)} is turned into {dims_text(dims)}, which mixes "
                    "positions"
                )
            merged.append((f"@{axis}", index, inner, dim.constant or 0))
            names[f"@{axis}"] = variable(f"@old{axis}")
            inner *= dim.constant or 0
    limits = ranges_of(dims)
    term = substitute(value.term, names, limits)
    for name, index, inner, size in merged:
        if f"@old{name[1:]}" not in variables(term):
            continue
        part = apply("Div", [Count(index), count(inner)], limits)
        place = apply("Mod", [part, count(size)], limits)
        try:
            term = replace_index(term, f"@old{name[1:]}", place, limits)
        except NoProof as reason:
            raise Refusal(
                f"{dims_text(value.dims)} is turned into {dims_text(dims)}: {reason}"
            ) from reason
    return term


def _product(axes: list[tuple[int, Expression]]) -> Expression:
    total = expression(1)
    for _, dim in axes:
        total = total * dim
    return total


def _divides(whole: Expression, part: Expression) -> bool:
    try:
        return bool((whole // part).terms)
    except ValueError:
        return False


def _transpose(node: Node, value: Field) -> Value:
    perm = permutation(node, len(value.dims))
    dims = tuple(value.dims[p] for p in perm)
    names = {f"@{p}": axis_index(i) for i, p in enumerate(perm)}
    return field(node, dims, substitute(value.term, names, ranges_of(dims)), value.dtype)


def _expand(node: Node, inputs: Inputs, value: Field) -> Value:
    wanted = shape_of(inputs[1])
    if wanted is None:
        raise Refusal("the new shape is not known before the token")
    return expand(node, value, wanted)


def _tile(node: Node, inputs: Inputs, value: Field) -> Value:
    repeats = shape_of(inputs[1])
    if repeats is None or len(repeats) != len(value.dims):
        raise Refusal("the repeats are not known before the token")
    wanted = tuple(d * r for d, r in zip(value.dims, repeats, strict=True))
    used = variables(value.term)
    for axis, repeat in enumerate(repeats):
        if repeat != 1 and value.dims[axis] != 1 and f"@{axis}" in used:
            raise Refusal(f"it repeats axis {axis} of {dims_text(value.dims)}")
    return field(node, wanted, value.term, value.dtype)


def _concat(node: Node, fields: list[Field]) -> Value:
    axis = axis_of(node, len(fields[0].dims))
    total, index = expression(0), axis_index(axis)
    sizes = [f.dims[axis] for f in fields]
    for size in sizes:
        total = total + size
    dims = (*fields[0].dims[:axis], total, *fields[0].dims[axis + 1 :])
    limits = ranges_of(dims)
    offset = expression(0)
    parts: list[tuple[Expression, Term]] = []
    for value in fields:
        if value.dims[:axis] != dims[:axis] or value.dims[axis + 1 :] != dims[axis + 1 :]:
            raise Refusal(f"shapes {dims_text(value.dims)} and {dims_text(dims)} do not join")
        # Inside its part the index runs from 0.
        moved = substitute(value.term, {f"@{axis}": index - offset}, _unlimited(limits, axis))
        parts.append((value.dims[axis], moved))
        offset = offset + value.dims[axis]
    return field(node, dims, pieces(index, parts, limits), fields[0].dtype)


def _unlimited(limits: dict[str, Expression], axis: int) -> dict[str, Expression]:
    return {name: last for name, last in limits.items() if name != f"@{axis}"}


def _slice(node: Node, inputs: Inputs, value: Field) -> Value:
    dims, term = list(value.dims), value.term
    for axis, first, size, stride in slices_of(node, inputs, value.dims):
        dims[axis] = size
        index = first + axis_index(axis) * stride
        term = substitute(term, {f"@{axis}": index}, ranges_of(tuple(dims)))
    return field(node, tuple(dims), term, value.dtype)


def _split(node: Node, inputs: Inputs, value: Field) -> list[Value]:
    axis = axis_of(node, len(value.dims))
    sizes = split_sizes(node, inputs, value.dims, axis)
    results: list[Value] = []
    first = 0
    for i, size in enumerate(sizes):
        dims = (*value.dims[:axis], expression(size), *value.dims[axis + 1 :])
        index = axis_index(axis) + first
        term = substitute(value.term, {f"@{axis}": index}, ranges_of(dims))
        results.append(field(node, dims, term, value.dtype, i))
        first += size
    return results


# --- gathers --------------------------------------------------------------------------------------


def _gather(node: Node, fields: list[Field]) -> Value:
    data, index = fields
    found = selected(data, index, axis_of(node, len(data.dims)))
    return field(node, found.dims, found.term, found.dtype)


def _gather_nd(node: Node, fields: list[Field]) -> Value:
    data, indices = fields
    if node.integer("batch_dims") != 0:
        raise Refusal("batch_dims must be 0")
    last = len(indices.dims) - 1
    depth = indices.dims[last].constant
    if depth is None or depth > len(data.dims):
        raise Refusal("the last axis of the indices varies in length")
    dims = (*indices.dims[:last], *data.dims[depth:])
    limits = ranges_of(dims)
    names = {f"@{a}": axis_index(a - depth + last) for a in range(depth, len(data.dims))}
    for a in range(depth):
        if f"@{a}" in variables(data.term):
            part = substitute(indices.term, {f"@{last}": expression(a)}, limits)
            names[f"@{a}"] = position(part, data.dims[a], limits)
    return field(node, dims, substitute(data.term, names, limits), data.dtype)


# --- ranges and reductions ------------------------------------------------------------------------


def _range(node: Node, fields: list[Field]) -> Value:
    start, limit, delta = (f.term for f in fields)
    if all(isinstance(t, Number) for t in (start, limit, delta)):
        first, last, stride = (float(evaluate(t, {})) for t in (start, limit, delta))
        return folding.known(np.arange(first, last, stride), node)
    if not (isinstance(start, Count) and isinstance(limit, Count) and isinstance(delta, Count)):
        raise Refusal("the ends of the range are not known before the token")
    step = delta.value.constant
    size = limit.value - start.value
    if step is None or step == 0:
        raise Refusal("the step of the range is not known before the token")
    if size.constant is not None:
        size = expression(max(0, -(-size.constant // step)))
    elif step != 1:
        raise Refusal(f"a range in steps of {step} over lengths")
    if not is_nonnegative(size, {}):
        raise Refusal(f"the range has {size} elements, which may be negative")
    return field(node, (size,), Count(start.value + axis_index(0) * step), "INT64")


def _constant_of_shape(node: Node, dims: Dims) -> Value:
    tensor = node.attributes.get("value")
    if not isinstance(tensor, Tensor):
        return field(node, dims, Number(0.0, "FLOAT"), "FLOAT")
    value = as_field(Stored(tensor, tensor.dims))
    assert value is not None
    return field(node, dims, value.term, value.dtype)


def _reduce(node: Node, inputs: Inputs, value: Field) -> Value:
    rank = len(value.dims)
    chosen = reduced_axes(node, inputs, rank)
    keep = node.integer("keepdims", 1)
    term = value.term
    for axis in sorted(chosen):
        term = _reduced(node.op_type, term, axis, value.dims[axis])
    kept = [a for a in range(rank) if keep or a not in chosen]
    dims = tuple(expression(1) if a in chosen else value.dims[a] for a in kept)
    names = {f"@{a}": axis_index(i) for i, a in enumerate(kept) if a not in chosen}
    return field(node, dims, substitute(term, names, {}), value.dtype)


def _reduced(op: str, term: Term, axis: int, size: Expression) -> Term:
    name = f"@{axis}"
    if name not in variables(term):
        if op != "ReduceSum":
            return term
        if isinstance(term, Count):
            return Count(term.value * size)
        if size.constant is not None:
            return apply("Mul", [term, Number(float(size.constant), "FLOAT")], {})
    if isinstance(term, Count) and op in ("ReduceMax", "ReduceMin"):
        slope = term.value.coefficient(name)
        rising = slope is not None and is_nonnegative(slope, {})
        if rising or (slope is not None and is_nonnegative(-slope, {})):
            end = size - 1 if rising == (op == "ReduceMax") else expression(0)
            return Count(term.value.substitute({name: end}))
    if op not in ("ReduceSum", "ReduceMax"):
        raise Refusal(f"{op} over an axis of positions")
    inner = f"#{axis}"
    body = substitute(term, {name: variable(inner)}, {})
    return Reduced(op, inner, size, body)


def _cumulative(node: Node, inputs: Inputs, value: Field) -> Value:
    places = None if inputs[1] is None else integers(inputs[1])
    if not places or len(places) != 1:
        raise Refusal("the axis is not constant")
    axis = places[0] % len(value.dims)
    if f"@{axis}" in variables(value.term) or not isinstance(value.term, Count):
        raise Refusal("a running sum of anything but equal integers")
    number = axis_index(axis) + (0 if node.integer("exclusive") else 1)
    if node.integer("reverse"):
        number = value.dims[axis] - axis_index(axis)
        number = number - (1 if node.integer("exclusive") else 0)
    return field(node, value.dims, Count(value.term.value * number), value.dtype)


def _trilu(node: Node, inputs: Inputs, value: Field) -> Value:
    shift = shape_of(_flat(inputs[1])) if inputs[1] is not None else (expression(0),)
    rank = len(value.dims)
    if shift is None or len(shift) != 1 or rank < 2:
        raise Refusal("the diagonal is not known before the token")
    ahead = axis_index(rank - 1) - axis_index(rank - 2) - shift[0]
    upper = bool(node.integer("upper", 1))
    limits = ranges_of(value.dims)
    kept = apply("GreaterOrEqual" if upper else "LessOrEqual", [Count(ahead), count(0)], limits)
    nought: Term = count(0)
    if value.dtype == "BOOL":
        nought = truth(False)
    elif value.dtype in FLOATS:
        nought = Number(0.0, value.dtype)
    return field(node, value.dims, apply("Where", [kept, value.term, nought], limits), value.dtype)


def _flat(value: Value | None) -> Value | None:
    array = None if value is None else array_of(value)
    return value if array is None else Known(array.reshape(-1))


def _outer(node: Node, fields: list[Field]) -> Value | None:
    """MatMul over an axis of length 1, an outer product."""
    a, b = fields
    if len(a.dims) < 2 or len(b.dims) < 2 or a.dims[-1] != 1 or b.dims[-2] != 1:
        raise Refusal("a product of tensors that depend on positions, over more than one element")
    dims, terms = broadcast(fields)
    return field(node, dims, apply("Mul", terms, ranges_of(dims)), a.dtype)


# --- dispatch -------------------------------------------------------------------------------------


Inputs = list[Value | None]


_SINGLE: dict[str, Callable[[Node, Inputs, Field], Value]] = {
    "Expand": _expand,
    "Flatten": _reshape,
    "Reshape": _reshape,
    "Squeeze": _reshape,
    "Unsqueeze": _reshape,
    "Slice": _slice,
    "Tile": _tile,
    "ReduceMax": _reduce,
    "ReduceMin": _reduce,
    "ReduceSum": _reduce,
    "CumSum": _cumulative,
    "Trilu": _trilu,
}


_JOINT: dict[str, Callable[[Node, list[Field]], Value | None]] = {
    **dict.fromkeys(ELEMENTWISE, _elementwise),
    "Cast": _cast,
    "Concat": _concat,
    "Gather": _gather,
    "GatherND": _gather_nd,
    "MatMul": _outer,
    "Range": _range,
}


_LENGTHS_TOO = frozenset(
    {*ELEMENTWISE, "Range", "Expand", "ConstantOfShape", "Tile", "CumSum", "Trilu"}
) - {"Add", "Sub", "Mul", "Div"}
"""Operators that are folded here on lengths too."""


def concerns(node: Node, inputs: Inputs) -> bool:
    """Whether a node is folded here rather than as a constant: positions or lengths matter."""
    if any(isinstance(v, Field) for v in inputs):
        return True
    if not any(_has_lengths(v) for v in inputs):
        return False
    if node.op_type == "Cast":
        return cast_type(node) in FLOATS
    return node.op_type in _LENGTHS_TOO


def _has_lengths(value: Value | None) -> bool:
    return isinstance(value, Known) and any(
        isinstance(e, Expression) and e.constant is None
        for e in (value.array.flat if value.array.dtype == object else ())
    )


def fold(node: Node, inputs: Inputs) -> list[Value] | None:
    """The values of the node's outputs, or None when an input is no constant and no field.

    Raises:
        Refusal: it cannot be told what they are.
    """
    given = [v for v in inputs if v is not None]
    if any(not isinstance(v, Field | Known | Stored) for v in given):
        return None
    op = node.op_type
    if op in ("Identity", "Dropout"):
        return given[:1]
    if op == "ConstantOfShape":
        dims = shape_of(given[0])
        if dims is None:
            raise Refusal("its shape is not known before the token")
        return [_constant_of_shape(node, dims)]
    if not any(isinstance(v, Field) for v in given) and op in ELEMENTWISE:
        found = _constants(node, inputs)
        if found is not None:
            return found
    fields = [as_field(v) for v in given]
    if op in _SINGLE or op in ("Transpose", "Split"):
        first = fields[0]
        if first is None:
            raise Refusal(f"{op} of lengths")
        if op == "Transpose":
            return [_transpose(node, first)]
        if op == "Split":
            return _split(node, inputs, first)
        return [_SINGLE[op](node, inputs, first)]
    known = [f for f in fields if f is not None]
    if op not in _JOINT or len(known) != len(fields):
        return None
    value = _JOINT[op](node, known)
    return None if value is None else [value]
