"""Cosines and sines of rotary embeddings at all positions, from formulas of the position.

Coefficients are formulas of the position; they are computed for every position of the chip, in the
graph's own arithmetic, and become the tables of cosines and sines.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from intaglio.lowering.onnx.graph.model import Node, Tensor
from intaglio.lowering.onnx.known.evaluation import evaluate
from intaglio.lowering.onnx.known.expressions import (
    Dims,
    Expression,
    dims_text,
    expression,
    variable,
)
from intaglio.lowering.onnx.known.simplification import substitute
from intaglio.lowering.onnx.known.terms import (
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
    variables,
)
from intaglio.lowering.onnx.step import ANGLES, Step
from intaglio.lowering.onnx.values import Columns, Field, Refusal, Stored

POSITION = "@p"


# --- coefficients ---------------------------------------------------------------------------------


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


def at_position(step: Step, term: Term, axes: Mapping[str, Expression] | None = None) -> Term:
    """A formula of `past` and the index `@s` of the sequence as one of the position alone.

    With `axes`, indices of axes are replaced first.

    Raises:
        Refusal: it does not depend on their sum alone.
    """
    place = variable(POSITION)
    term = substitute(term, axes) if axes else term
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
                n - _ahead(i)
                for n, i in zip(term.shape, term.indices, strict=True)
                if POSITION in variables(i)
            ]
        case Apply():
            inner = [_rows(a) for a in term.args]
        case Pieces():
            inner = [_rows(t) for _, t in term.parts]
        case Number() | Count() | AtLeastZero() | Reduced() | Either():
            inner = []
    return min((n for n in inner if n), default=0)


def _ahead(index: Term) -> int:
    """How many rows stand before that of position 0, as far as an index says it."""
    if not isinstance(index, Count):
        return 0
    return max(0, (index.value - variable(POSITION)).constant or 0)


# --- constants ------------------------------------------------------------------------------------


def engrave(step: Step, name: str, values: npt.NDArray[np.float32]) -> Stored:
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
            engrave(step, "cos", tables[0][:rows]),
            engrave(step, "sin", tables[1][:rows]),
        )
    stored = step.rotations[key]
    assert stored is not None
    symbols = [step.dense_value(node, t, t.dims, ANGLES) for t in stored]
    return symbols[0], symbols[1], 2 * stored[0].dims[1]
