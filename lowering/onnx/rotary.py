"""Rotary embeddings written out: x * cos + rotate_half(x) * sin and its many spellings.

Each node of one is followed as what it does to the elements of a head: every element (lane) of the
value is a sum of coefficients times elements of one activation. Slices, splits, negations, joins
and products with cosines and sines only change these sums. Where the sums turn pairs of elements by
an angle, the value is a `rom.rotary`, however it was spelled.

Coefficients are formulas of the position; they are computed for every position of the chip, in the
graph's own arithmetic, and become the tables of cosines and sines.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from intaglio.dialects import rom
from intaglio.lowering.onnx import fields, folding
from intaglio.lowering.onnx.expressions import Dims, Expression, dims_text, expression, variable
from intaglio.lowering.onnx.model import FLOATS, Node, Tensor
from intaglio.lowering.onnx.step import Step
from intaglio.lowering.onnx.terms import (
    Apply,
    AtLeastZero,
    Count,
    Either,
    Lookup,
    NoProof,
    Number,
    Pieces,
    Reduced,
    Term,
    evaluate,
    substitute,
    variables,
)
from intaglio.lowering.onnx.values import (
    Columns,
    Field,
    Known,
    Lanes,
    Quantised,
    Refusal,
    Stored,
    Turned,
    Value,
    Vector,
    integers,
)

POSITION = "@p"


# --- coefficients --------------------------------------------------------------------------------


def columns(step: Step, value: Field, dims: Dims, lead: int) -> Columns:
    """A field as coefficients of the lanes of a tensor `dims`: a formula of position and lane.

    Raises:
        Refusal: it depends on anything else.
    """
    shift = len(dims) - len(value.dims)
    if shift < 0:
        raise Refusal(f"{dims_text(value.dims)} enlarges {dims_text(dims)}")
    names: dict[str, Expression] = {}
    shape = [1] * (len(dims) - lead)
    for axis, dim in enumerate(value.dims):
        place = axis + shift
        if dim != 1 and dim != dims[place]:
            raise Refusal(f"{dims_text(value.dims)} does not fit {dims_text(dims)}")
        if place >= lead:
            shape[place - lead] = dim.constant or 1
            names[f"@{axis}"] = variable(f"@{place - lead}")
        elif dim == step.sequence:
            names[f"@{axis}"] = variable("@s")
        elif dim != 1:
            names[f"@{axis}"] = variable("@other")
    term = substitute(value.term, names)
    return Columns(at_position(step, term), tuple(shape))


def at_position(step: Step, term: Term) -> Term:
    """A formula of `past` and the index `@s` of the sequence as one of the position alone.

    Raises:
        Refusal: it does not depend on their sum alone.
    """
    place = variable(POSITION)
    if step.sequence == 1:
        term = substitute(term, {"past": place, "@s": expression(0)})
    else:
        term = substitute(term, {"past": place - variable("@s")})
    others = {n for n in variables(term) if n in ("batch", "sequence", "past", "@s", "@other")}
    if others:
        raise Refusal(
            "it is multiplied with a tensor that does not depend on the token's position alone"
        )
    return term


def table(step: Step, found: Columns) -> npt.NDArray[np.float32]:
    """The coefficients [positions, lanes], for every position of the caches.

    Raises:
        Refusal: they cannot be computed.
    """
    if found not in step.tables:
        rows = step.capacity
        limit = _rows(found.term)
        if limit:
            step.positions = min(step.positions or limit, limit)
            rows = min(rows, limit)
        width = len(found.shape)
        environment = {
            f"@{i}": np.arange(n, dtype=np.int64).reshape(
                (1,) * (i + 1) + (n,) + (1,) * (width - i - 1)
            )
            for i, n in enumerate(found.shape)
        }
        environment[POSITION] = np.arange(rows, dtype=np.int64).reshape((rows,) + (1,) * width)
        try:
            values = evaluate(found.term, environment)
        except NoProof as reason:
            raise Refusal(f"the coefficients are not known: {reason}") from reason
        whole = np.broadcast_to(values, (rows, *found.shape)).reshape(rows, -1)
        step.tables[found] = np.ascontiguousarray(whole.astype(np.float32))
    return step.tables[found]


def _rows(term: Term) -> int:
    """The rows of constant tables that are selected by position; 0 for none."""
    match term:
        case Lookup():
            inner = [_rows(i) for i in term.indices]
            inner += [
                n for n, i in zip(term.shape, term.indices, strict=True) if POSITION in variables(i)
            ]
        case Apply():
            inner = [_rows(a) for a in term.args]
        case Pieces():
            inner = [_rows(t) for _, t in term.parts]
        case Number() | Count() | AtLeastZero() | Reduced() | Either():
            inner = []
    return min((n for n in inner if n), default=0)


# --- lanes ---------------------------------------------------------------------------------------


def plain(x: Vector, names: tuple[str, ...] = ()) -> Turned:
    """An activation as its own elements."""
    lead = max(0, min(3, len(x.dims) - 1))
    shape = tuple(d.constant or 0 for d in x.dims[lead:])
    count = int(np.prod(shape, dtype=np.int64))
    if any(d.constant is None for d in x.dims[lead:]):
        raise Refusal(f"the last axes of {dims_text(x.dims)} vary in length")
    source = np.arange(count, dtype=np.int64).reshape(shape)
    lanes = Lanes(None, np.zeros(shape, np.int64), np.ones(shape), source)
    return Turned(x, lead, x.dims, (lanes,), names)


def _as_turned(value: Value | None) -> Turned | None:
    if isinstance(value, Vector):
        return plain(value)
    return value if isinstance(value, Turned) else None


def _mapped(
    value: Turned,
    node: Node,
    dims: Dims,
    function: Callable[[npt.NDArray[Any]], npt.NDArray[Any]],
) -> Turned:
    """The same after a rearrangement of the lanes, given for one array of them."""
    terms = tuple(
        Lanes(t.table, function(t.column), function(t.factor), function(t.source))
        for t in value.terms
    )
    return Turned(value.input, value.lead, dims, terms, (*value.names, node.name))


def _scaled(value: Turned, node: Node, factor: float | npt.NDArray[np.float64]) -> Turned:
    terms = tuple(replace(t, factor=t.factor * factor) for t in value.terms)
    return Turned(value.input, value.lead, value.dims, terms, (*value.names, node.name))


def _times(step: Step, value: Turned, by: Field, node: Node) -> Turned:
    """Times coefficients that depend on the position."""
    if any(t.table is not None for t in value.terms):
        raise Refusal("it is multiplied twice with tensors that depend on the position")
    found = columns(step, by, value.dims, value.lead)
    index = np.arange(int(np.prod(found.shape, dtype=np.int64)), dtype=np.int64)
    column = np.broadcast_to(index.reshape(found.shape), value.lanes)
    terms = tuple(replace(t, table=found, column=np.array(column)) for t in value.terms)
    return Turned(value.input, value.lead, value.dims, terms, (*value.names, node.name))


def _sum(a: Turned, b: Turned, node: Node, sign: float) -> Turned:
    if a.input.ssa is not b.input.ssa or a.lead != b.lead:
        raise Refusal("parts of rotary embeddings of different activations are added")
    if a.dims != b.dims:
        raise Refusal(f"shapes {dims_text(a.dims)} and {dims_text(b.dims)} differ")
    other = tuple(replace(t, factor=t.factor * sign) for t in b.terms)
    return Turned(
        a.input, a.lead, a.dims, (*a.terms, *other), _joined_names(a.names, b.names, (node.name,))
    )


def _joined_names(*parts: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for part in parts for name in part))


def _concat(parts: Sequence[Turned], node: Node) -> Turned:
    first = parts[0]
    axis = int(node.attributes.get("axis", 0)) % len(first.dims)
    if axis < first.lead:
        raise Refusal("parts of heads are joined along another axis")
    if any(p.input.ssa is not first.input.ssa or p.lead != first.lead for p in parts):
        raise Refusal("parts of different activations are joined")
    place = axis - first.lead
    size = sum((p.dims[axis] for p in parts), expression(0))
    dims = (*first.dims[:axis], size, *first.dims[axis + 1 :])
    for part in parts:
        if (*part.dims[:axis], size, *part.dims[axis + 1 :]) != dims:
            raise Refusal(f"{dims_text(part.dims)} is joined with {dims_text(first.dims)}")
    # Terms with the same coefficients lie in one row of terms; what is missing is 0.
    rows: list[tuple[Columns | None, list[list[Lanes]]]] = []
    for i, part in enumerate(parts):
        for term in part.terms:
            for known, places in rows:
                if known == term.table and not places[i]:
                    places[i].append(term)
                    break
            else:
                places: list[list[Lanes]] = [[] for _ in parts]
                places[i].append(term)
                rows.append((term.table, places))
    terms: list[Lanes] = []
    for known, places in rows:
        filled = [
            p[0] if p else _nothing(part.lanes) for p, part in zip(places, parts, strict=True)
        ]
        terms.append(
            Lanes(
                known,
                np.concatenate([t.column for t in filled], place),
                np.concatenate([t.factor for t in filled], place),
                np.concatenate([t.source for t in filled], place),
            )
        )
    names = _joined_names(*(p.names for p in parts), (node.name,))
    return Turned(first.input, first.lead, dims, tuple(terms), names)


def _nothing(shape: tuple[int, ...]) -> Lanes:
    return Lanes(None, np.zeros(shape, np.int64), np.zeros(shape), np.zeros(shape, np.int64))


def _reshaped(step: Step, value: Turned, node: Node) -> Turned:
    dims = folding.new_dims(node, step.inputs(node), value.dims)
    if dims[: value.lead] != value.dims[: value.lead]:
        raise Refusal(f"{dims_text(value.dims)} is turned into {dims_text(dims)} amid a rotation")
    shape = tuple(d.constant or 0 for d in dims[value.lead :])
    return _mapped(value, node, dims, lambda a: a.reshape(shape))


def _transposed(value: Turned, node: Node) -> Turned:
    rank = len(value.dims)
    perm = [int(p) for p in node.attributes.get("perm") or range(rank)[::-1]]
    if perm[: value.lead] != list(range(value.lead)):
        raise Refusal(f"perm = {perm} moves tokens amid a rotation")
    inner = [p - value.lead for p in perm[value.lead :]]
    dims = tuple(value.dims[p] for p in perm)
    return _mapped(value, node, dims, lambda a: a.transpose(inner))


def _cut(value: Turned, node: Node, axis: int, first: int, count: int, stride: int = 1) -> Turned:
    if axis < value.lead:
        raise Refusal(f"it cuts axis {axis} of {dims_text(value.dims)}")
    place = (slice(None),) * (axis - value.lead) + (
        slice(first, first + (count - 1) * stride + 1, stride),
    )
    dims = (*value.dims[:axis], expression(count), *value.dims[axis + 1 :])
    return _mapped(value, node, dims, lambda a: a[place])


def _sliced(step: Step, value: Turned, node: Node) -> Turned:
    for axis, first, size, stride in fields.symbolic_slices(node, step.inputs(node), value.dims):
        if size == value.dims[axis]:
            continue
        start, count = first.constant, size.constant
        if start is None or not count:
            raise Refusal(f"it cuts axis {axis} of {dims_text(value.dims)}")
        value = _cut(value, node, axis, start, count, stride)
    return value


def _split(step: Step, value: Turned, node: Node) -> list[Turned]:
    axis = int(node.attributes.get("axis", 0)) % len(value.dims)
    length = value.dims[axis].constant
    given = step.inputs(node)[1]
    sizes = node.attributes.get("split") if given is None else integers(given)
    if length is None:
        raise Refusal(f"it cuts axis {axis} of {dims_text(value.dims)}, whose length varies")
    if sizes is None:
        number = int(node.attributes.get("num_outputs", len(node.outputs)))
        part = -(-length // number)
        sizes = [min(part, length - i * part) for i in range(number)]
    if sum(sizes) != length or min(sizes) < 1:
        raise Refusal(f"parts of {sizes} do not make {length}")
    first = 0
    parts: list[Turned] = []
    for size in sizes:
        parts.append(_cut(value, node, axis, first, int(size)))
        first += int(size)
    return parts


def _gathered(step: Step, value: Turned, node: Node) -> Turned:
    axis = int(node.attributes.get("axis", 0)) % len(value.dims)
    given = step.inputs(node)[1]
    index = None if given is None else folding.numbers(given)
    if axis < value.lead or index is None or index.ndim > 1:
        raise Refusal(f"it selects from axis {axis} of {dims_text(value.dims)}")
    shape = tuple(expression(n) for n in index.shape)
    dims = (*value.dims[:axis], *shape, *value.dims[axis + 1 :])
    place = axis - value.lead
    return _mapped(value, node, dims, lambda a: np.take(a, index.astype(np.int64), axis=place))


def turned(value: Turned, node: Node, cos: Columns, sin: Columns, *, interleaved: bool) -> Turned:
    """What a RotaryEmbedding node makes of a part of each head.

    Raises:
        Refusal: the part has another width, or depends on the position already.
    """
    half = int(np.prod(cos.shape, dtype=np.int64))
    if cos.shape != sin.shape or value.lanes[-1:] != (2 * half,) or len(value.lanes) != 1:
        raise Refusal(f"cos and sin for {2 * half} elements do not fit {dims_text(value.dims)}")
    if len(value.terms) != 1 or value.terms[0].table is not None:
        raise Refusal("a part of a head is rotated twice")
    (term,) = value.terms
    index = np.arange(2 * half)
    pair = index // 2 if interleaved else index % half
    is_first = index % 2 == 0 if interleaved else index < half
    other = np.where(is_first, index + (1 if interleaved else half), index)
    other = np.where(is_first, other, index - (1 if interleaved else half))
    sign = np.where(is_first, -1.0, 1.0)
    terms = (
        Lanes(cos, pair, term.factor, term.source),
        Lanes(sin, pair, term.factor[other] * sign, term.source[other]),
    )
    return Turned(value.input, value.lead, value.dims, terms, (*value.names, node.name))


# --- recognition ---------------------------------------------------------------------------------


def _recognised(step: Step, value: Turned, node: Node) -> Value:
    """The rotary embedding that the sums are, or the value itself while they are none."""
    x = value.input
    if value.dims != x.dims or len(value.lanes) != 1 or value.lanes[0] < 2:
        return value
    (width,) = value.lanes
    entries = _entries(value, width)
    turned = [i for i, entry in enumerate(entries) if len(entry) == 2]
    if not turned or any(len(entry) not in (1, 2) for entry in entries):
        return value
    rotary = len(turned)
    if turned != list(range(rotary)) or rotary % 2:
        return value
    for i in range(rotary, width):
        if entries[i].get(i) != (None, 0, 1.0):
            return value
    half = rotary // 2
    pairings = {
        False: [(i, i + half) for i in range(half)],
        True: [(2 * i, 2 * i + 1) for i in range(half)],
    }
    found = [
        (is_interleaved, made)
        for is_interleaved, made in pairings.items()
        if all(set(entries[a]) == {a, b} == set(entries[b]) for a, b in made)
    ]
    if not found:
        return value
    interleaved, pairs = found[0]
    key = tuple((entries[a][a], entries[a][b], entries[b][a], entries[b][b]) for a, b in pairs)
    if key not in step.rotations:
        step.rotations[key] = _angles(step, key)
    tables = step.rotations[key]
    if tables is None:
        return value
    symbols = [step.dense_value(node, t, t.dims, "the table of a rotation") for t in tables]
    return rotated(
        step,
        x,
        (symbols[0], symbols[1], rotary),
        heads=x.size // width,
        interleaved=interleaved,
        names=value.names,
    )


def _angles(step: Step, key: Sequence[tuple[Entry, ...]]) -> tuple[Stored, Stored] | None:
    """Tables of cosines and sines, where [[a, b], [c, d]] of each pair is a rotation."""
    a, b, c, d = (_column(step, [entries[i] for entries in key]) for i in range(4))
    if not np.array_equal(a, d) or not np.array_equal(b, -c):
        return None
    return _engraved(step, "cos", a), _engraved(step, "sin", c)


Entry = tuple[Columns | None, int, float]


def _entries(value: Turned, width: int) -> list[dict[int, Entry]]:
    """For each lane, the coefficient of each element in it."""
    entries: list[dict[int, Entry]] = [{} for _ in range(width)]
    for term in value.terms:
        flat = (term.column.reshape(-1), term.factor.reshape(-1), term.source.reshape(-1))
        for lane, (column, factor, source) in enumerate(zip(*flat, strict=True)):
            if factor == 0.0:
                continue
            if int(source) in entries[lane]:
                return [{} for _ in range(width)]
            entries[lane][int(source)] = (term.table, int(column), float(factor))
    return entries


def _column(step: Step, entries: Sequence[Entry]) -> npt.NDArray[np.float32]:
    """Coefficients of lanes at all positions."""
    known = dict.fromkeys(e[0] for e in entries)
    rows = min((len(table(step, c)) for c in known if c is not None), default=step.capacity)
    found = np.empty((rows, len(entries)), np.float32)
    for one in known:
        places = [i for i, e in enumerate(entries) if e[0] == one]
        factors = np.array([entries[i][2] for i in places], np.float32)
        if one is None:
            found[:, places] = factors
        else:
            chosen = [entries[i][1] for i in places]
            found[:, places] = table(step, one)[:rows, chosen] * factors
    return found


def _engraved(step: Step, name: str, values: npt.NDArray[np.float32]) -> Stored:
    """A table as a constant of the model; equal tables are one."""
    values = np.ascontiguousarray(values)
    if not np.isfinite(values).all():
        raise Refusal(f"the {name} of the rotary embedding is not finite at some position")
    key = hashlib.sha256(values.tobytes()).digest()
    if key not in step.engraved:
        number = len([k for k, s in step.engraved.items() if s.tensor.name.startswith(name)])
        title = f"{name}_cache" + (f"_{number + 1}" if number else "")
        tensor = Tensor(title, "FLOAT", values.shape, lambda: values.reshape(-1).view(np.uint8))
        step.engraved[key] = Stored(tensor, values.shape)
    return step.engraved[key]


def engraved(step: Step, node: Node, cos: Columns, sin: Columns) -> tuple[str, str, int]:
    """Symbols of the tables of computed cos and sin [.., rotary_dim / 2], and rotary_dim."""
    key = ("tables", cos, sin)
    if key not in step.rotations:
        tables = [table(step, cos), table(step, sin)]
        if tables[0].shape[1] != tables[1].shape[1]:
            raise Refusal("cos and sin have different shapes")
        rows = min(len(t) for t in tables)
        step.rotations[key] = (
            _engraved(step, "cos", tables[0][:rows]),
            _engraved(step, "sin", tables[1][:rows]),
        )
    stored = step.rotations[key]
    assert stored is not None
    symbols = [step.dense_value(node, t, t.dims, "the table of a rotation") for t in stored]
    return symbols[0], symbols[1], 2 * stored[0].dims[1]


def rotated(
    step: Step,
    x: Vector,
    tables: tuple[str, str, int],
    *,
    heads: int,
    interleaved: bool,
    names: tuple[str, ...],
) -> Vector:
    """Emits a rotation.

    Raises:
        Refusal: sizes do not fit.
    """
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
        rom.nodes(*names),
        heads=heads,
        rotary_dim=rotary,
        interleaved=interleaved,
    )
    return Vector(step.emit(op).output, x.dims)


# --- nodes ---------------------------------------------------------------------------------------


def convert(step: Step, node: Node, inputs: list[Value | None]) -> bool:
    """Converts a node of a rotary embedding; says whether it is one.

    Raises:
        Refusal: it reads a part of one and is no node of one.
    """
    given = [v for v in inputs if v is not None]
    op = node.op_type
    parts = [v for v in given if isinstance(v, Turned)]
    if not parts and not _begins(step, node, given):
        return False
    first = _as_turned(given[0])
    match op:
        case "Mul" | "Div":
            step.bind(node, _recognised(step, _product(step, node, given), node))
        case "Neg" if first is not None:
            step.bind(node, _scaled(first, node, -1.0))
        case "Add" | "Sub" if len(given) == 2:
            a, b = (_as_turned(v) for v in given)
            if a is None or b is None:
                raise Refusal("something else is added to a part of a rotary embedding")
            sign = 1.0 if op == "Add" else -1.0
            step.bind(node, _recognised(step, _sum(a, b, node, sign), node))
        case "Concat":
            turned = [_as_turned(v) for v in given]
            found = [t for t in turned if t is not None]
            if len(found) != len(given):
                raise Refusal("something else is joined with a part of a rotary embedding")
            step.bind(node, _recognised(step, _concat(found, node), node))
        case "Slice" if first is not None:
            step.bind(node, _sliced(step, first, node))
        case "Gather" if first is not None:
            step.bind(node, _gathered(step, first, node))
        case "Split" if first is not None:
            for i, part in enumerate(_split(step, first, node)):
                step.bind(node, part, i)
        case "Reshape" | "Unsqueeze" | "Squeeze" | "Flatten" if first is not None:
            step.bind(node, _recognised(step, _reshaped(step, first, node), node))
        case "Transpose" if first is not None:
            step.bind(node, _recognised(step, _transposed(first, node), node))
        case "Cast" if first is not None:
            if folding.type_name(node.attributes.get("to")) not in FLOATS:
                raise Refusal("a part of a rotary embedding is cast to integers")
            step.bind(node, first)
        case "Identity" if first is not None:
            step.bind(node, first)
        case _:
            return False
    return True


def _begins(step: Step, node: Node, given: list[Value]) -> bool:
    """Whether a node on whole activations is where a rotary embedding may begin."""
    if not any(isinstance(v, Vector) for v in given):
        return False
    match node.op_type:
        case "Mul":
            return any(isinstance(v, Field) and not _is_number(v) for v in given)
        case "Neg":
            return isinstance(given[0], Vector)
        case "Slice" | "Split" | "Gather":
            x = given[0]
            if not isinstance(x, Vector) or len(x.dims) < 4:
                return False
            return _cuts_lanes(step, node, x)
        case "Concat":
            return all(isinstance(v, Vector) for v in given)
        case _:
            return False


def _is_number(value: Field) -> bool:
    return isinstance(value.term, Number)


def _cuts_lanes(step: Step, node: Node, x: Vector) -> bool:
    lead = min(3, len(x.dims) - 1)
    if node.op_type == "Slice":
        cut = fields.symbolic_slices(node, step.inputs(node), x.dims)
        return any(axis >= lead and size != x.dims[axis] for axis, _, size, _ in cut) and all(
            axis >= lead or size == x.dims[axis] for axis, _, size, _ in cut
        )
    return int(node.attributes.get("axis", 0)) % len(x.dims) >= lead


def _product(step: Step, node: Node, given: list[Value]) -> Turned:
    a, b = given
    turned = _as_turned(a)
    other = b
    if turned is None:
        turned, other = _as_turned(b), a
        if node.op_type == "Div":
            raise Refusal("something is divided by a part of a rotary embedding")
    assert turned is not None
    if isinstance(other, Field) and not _is_number(other) and node.op_type == "Mul":
        return _times(step, turned, other, node)
    constant = None
    if isinstance(other, Stored | Known):
        constant = folding.numbers(other)
    elif isinstance(other, Field) and isinstance(other.term, Number):
        constant = np.asarray(other.term.value)
    if constant is None or isinstance(other, Quantised):
        raise Refusal(f"a part of a rotary embedding is multiplied with {other.kind}")
    lanes = constant.astype(np.float64)
    while lanes.ndim > len(turned.lanes) and lanes.shape[0] == 1:
        lanes = lanes[0]
    try:
        factor = np.broadcast_to(lanes, turned.lanes)
    except ValueError as error:
        raise Refusal("a constant does not fit the elements of a head") from error
    return _scaled(turned, node, 1.0 / factor if node.op_type == "Div" else factor)
