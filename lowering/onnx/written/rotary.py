"""Rotary embeddings written out: x * cos + rotate_half(x) * sin and its many spellings.

Each node of one is followed as what it does to the elements of a head: every element (lane) of the
value is a sum of coefficients times elements of one activation. Slices, splits, negations, joins
and products with cosines and sines only change these sums. Where the sums turn pairs of elements by
an angle, the value is a `rom.rotary`, however it was spelled. `lanes` has the sums, `rotary_tables`
the coefficients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from intaglio.dialects import rom
from intaglio.lowering.onnx.graph.model import FLOATS, Node, cast_type
from intaglio.lowering.onnx.known.expressions import expression
from intaglio.lowering.onnx.known.shapes import axis_of, slices_of
from intaglio.lowering.onnx.known.terms import Number
from intaglio.lowering.onnx.operators.rearrangement import reshape, transpose
from intaglio.lowering.onnx.step import ANGLES, Step, names_of, real
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
    numbers,
)
from intaglio.lowering.onnx.written import lanes
from intaglio.lowering.onnx.written.rotary_tables import engrave, table

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
    if rotary < width and (factor := _passed(entries[rotary:], rotary)) not in (None, 0.0, 1.0):
        # All of it is scaled: what is not turned says by how much.
        terms = tuple(replace(t, factor=t.factor / factor) for t in value.terms)
        found = _recognised(step, replace(value, terms=terms), node)
        if not isinstance(found, Vector):
            return value
        op = rom.ScaleOp(found.ssa, real(factor), rom.nodes(*value.names))
        return Vector(step.emit(op).output, found.dims)
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
    symbols = [step.dense_value(node, t, t.dims, ANGLES) for t in tables]
    return rotated(
        step,
        x,
        (symbols[0], symbols[1], rotary),
        heads=x.size // width,
        interleaved=interleaved,
        names=value.names,
    )


def _scaled_by_position(step: Step, value: Turned, node: Node) -> Vector | None:
    """A whole activation times one number that depends on the position, or None.

    Where the number is the same at all positions of the caches it is a constant. Else it is a
    rotation that makes longer or shorter: the tables of the one before are multiplied, or those of
    an angle of 0.
    """
    x = value.input
    if value.dims != x.dims or len(value.terms) != 1 or len(value.lanes) != 1:
        return None
    (term,) = value.terms
    (width,) = value.lanes
    whole = term.factor[0] != 0.0 and (term.factor == term.factor[0]).all()
    if term.table is None or np.prod(term.table.shape) != 1 or not whole or width < 2:
        return None
    if not np.array_equal(term.source, np.arange(width)):
        return None
    by = table(step, term.table)[:, 0].astype(np.float64) * term.factor[0]
    names = rom.nodes(*value.names)
    if (by == by[0]).all():
        # Beyond the last position that was computed it may be another.
        step.positions = min(step.positions or by.size, by.size)
        if by[0] == 1.0:
            return x
        return Vector(step.emit(rom.ScaleOp(x.ssa, real(float(by[0])), names)).output, x.dims)
    before, interleaved = x.ssa.owner, False
    merged: list[str] = []
    source, cos, sin = x, np.ones((by.size, width // 2)), np.zeros((by.size, width // 2))
    if isinstance(before, rom.RotaryOp) and before.rotary_dim.value.data == width:
        source, interleaved = Vector(before.input, x.dims), before.interleaved is not None
        merged += names_of(before)
        tables = [step.table_values(one.root_reference.data) for one in (before.cos, before.sin)]
        rows = min(by.size, *(len(one) for one in tables))
        by, (cos, sin) = by[:rows], (one[:rows] for one in tables)
    elif width % 2:
        return None
    stored = [
        engrave(step, name, (one * by[:, None]).astype(np.float32))
        for name, one in (("cos", cos), ("sin", sin))
    ]
    symbols = [step.dense_value(node, one, one.dims, ANGLES) for one in stored]
    step.positions = min(step.positions or by.size, by.size)
    return rotated(
        step,
        source,
        (symbols[0], symbols[1], 2 * stored[0].dims[1]),
        heads=x.size // width,
        interleaved=interleaved,
        names=(*merged, *value.names),
    )


def _passed(entries: Sequence[dict[int, Entry]], first: int) -> float | None:
    """The one factor of lanes that keep their place, from `first` on; None for anything else."""
    factors = {one.get(i, (None, 0, 0.0))[2] for i, one in enumerate(entries, first)}
    return factors.pop() if len(factors) == 1 else None


def whole(step: Step, value: Turned, node: Node) -> Vector | None:
    """Lanes of a packed matrix product as a value of their own, and what was done with them.

    The elements of each head that the lanes are made of become a product with their rows of the
    matrix; None where they are no product, or what was done is no rotation.
    """
    used = np.unique(np.concatenate([term.source[term.factor != 0.0] for term in value.terms]))
    if len(value.terms) == 1 and value.terms[0].table is None:
        return step.chosen_rows(value)
    if len(value.lanes) != 1 or used.size != value.lanes[0]:
        return None
    plain = Lanes(None, np.zeros(used.size, np.int64), np.ones(used.size), used)
    dims = (*value.dims[: value.lead], expression(used.size))
    own = step.chosen_rows(Turned(value.input, value.lead, dims, (plain,), value.names))
    if own is None:
        return None
    terms = tuple(
        # What a factor of 0 selects is nothing.
        replace(t, source=np.searchsorted(used, np.where(t.factor != 0.0, t.source, used[0])))
        for t in value.terms
    )
    found = _recognised(step, Turned(own, value.lead, dims, terms, value.names), node)
    return found if isinstance(found, Vector) else None


def _angles(step: Step, key: Sequence[tuple[Entry, ...]]) -> tuple[Stored, Stored] | None:
    """Tables of cosines and sines, where [[a, b], [c, d]] of each pair is a rotation."""
    a, b, c, d = (_column(step, [entries[i] for entries in key]) for i in range(4))
    if not np.array_equal(a, d) or not np.array_equal(b, -c):
        return None
    return engrave(step, "cos", a), engrave(step, "sin", c)


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
    if op in ("Add", "Sub", "Mul") and _are_activations(step, given):
        return False
    first = lanes.as_turned(given[0])
    match op:
        case "Mul" | "Div":
            product = _product(step, node, given)
            own = _scaled_by_position(step, product, node)
            step.bind(node, _recognised(step, product, node) if own is None else own)
        case "Neg" if first is not None:
            step.bind(node, lanes.scaled(first, node, -1.0))
        case "Add" | "Sub" if len(given) == 2:
            a, b = (lanes.as_turned(v) for v in given)
            if a is None or b is None:
                raise Refusal("something else is added to a part of a rotary embedding")
            sign = 1.0 if op == "Add" else -1.0
            step.bind(node, _recognised(step, lanes.added(a, b, node, sign), node))
        case "Concat":
            turned = [lanes.as_turned(v) for v in given]
            found = [t for t in turned if t is not None]
            if len(found) != len(given):
                raise Refusal("something else is joined with a part of a rotary embedding")
            step.bind(node, _recognised(step, lanes.joined(found, node), node))
        case "Slice" if first is not None:
            step.bind(node, lanes.sliced(step, first, node))
        case "Gather" if first is not None:
            step.bind(node, lanes.gathered(step, first, node))
        case "Split" if first is not None:
            for i, part in enumerate(lanes.split(step, first, node)):
                step.bind(node, part, i)
        case "Reshape" | "Unsqueeze" | "Squeeze" | "Flatten" | "Transpose" if first is not None:
            _rearranged(step, node, first)
        case "Cast" if first is not None:
            if cast_type(node) not in FLOATS:
                raise Refusal("a part of a rotary embedding is cast to integers")
            step.bind(node, first)
        case "Identity" if first is not None:
            step.bind(node, first)
        case _:
            return False
    return True


def _rearranged(step: Step, node: Node, value: Turned) -> None:
    """Lanes in another shape; where tokens or heads move too, the lanes become a value first."""
    turns = node.op_type == "Transpose"
    try:
        found = lanes.transposed(value, node) if turns else lanes.reshaped(step, value, node)
    except Refusal:
        own = step.part(value) or whole(step, value, node)
        if own is None:
            raise
        step.values[node.input(0)] = own
        (transpose if turns else reshape)(step, node)
        return
    step.bind(node, _recognised(step, found, node))


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


def _are_activations(step: Step, given: list[Value]) -> bool:
    """Whether two values are whole activations, and not of one: elementwise operators join them."""
    inputs = [
        value.ssa if isinstance(value, Vector) else value.input.ssa
        for value in given
        if isinstance(value, Vector) or (isinstance(value, Turned) and step.part(value))
    ]
    return len(inputs) == 2 and inputs[0] is not inputs[1]


def _is_number(value: Field) -> bool:
    return isinstance(value.term, Number)


def _cuts_lanes(step: Step, node: Node, x: Vector) -> bool:
    lead = min(3, len(x.dims) - 1)
    if node.op_type == "Slice":
        cut = slices_of(node, step.inputs(node), x.dims)
        return any(axis >= lead and size != x.dims[axis] for axis, _, size, _ in cut) and all(
            axis >= lead or size == x.dims[axis] for axis, _, size, _ in cut
        )
    return axis_of(node, len(x.dims)) >= lead


def _product(step: Step, node: Node, given: list[Value]) -> Turned:
    a, b = given
    turned = lanes.as_turned(a)
    other = b
    if turned is None:
        turned, other = lanes.as_turned(b), a
        if node.op_type == "Div":
            raise Refusal("something is divided by a part of a rotary embedding")
    assert turned is not None
    if isinstance(other, Field) and not _is_number(other) and node.op_type == "Mul":
        return lanes.times(step, turned, other, node)
    constant = None
    if isinstance(other, Stored | Known):
        constant = numbers(other)
    elif isinstance(other, Field) and isinstance(other.term, Number):
        constant = np.asarray(other.term.value)
    if constant is None or isinstance(other, Quantised):
        raise Refusal(f"a part of a rotary embedding is multiplied with {other.kind}")
    own = constant.astype(np.float64)
    while own.ndim > len(turned.lanes) and own.shape[0] == 1:
        own = own[0]
    try:
        factor = np.broadcast_to(own, turned.lanes)
    except ValueError as error:
        raise Refusal("a constant does not fit the elements of a head") from error
    return lanes.scaled(turned, node, 1.0 / factor if node.op_type == "Div" else factor)
