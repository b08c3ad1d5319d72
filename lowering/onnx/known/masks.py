"""Proves what an attention mask allows: causal, or causal within a window.

A mask is a formula of the query's index and the key's. Only their distance may matter: how many
tokens the key lies before the query, d = past + query - key. A formula that compares it with
constants is the same between two of these constants, so a value for each side of each of them says
all: the tokens that a query sees are those at distances from 0 to window - 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from intaglio.lowering.onnx.known import fields
from intaglio.lowering.onnx.known.evaluation import evaluate
from intaglio.lowering.onnx.known.expressions import Dims, Expression, expression, variable
from intaglio.lowering.onnx.known.simplification import substitute
from intaglio.lowering.onnx.known.terms import (
    Either,
    NoProof,
    Number,
    Term,
    atoms,
    is_truth,
    variables,
)
from intaglio.lowering.onnx.values import Field, Refusal

BLOCKED = -9999.0
"""What is added to a score to block it is at most this: its softmax is then 0 in float32."""

_DISTANCE = "#distance"

Mask = tuple[Field, str]
"""What is seen, and what says so, for messages; empty for what an operator hides of itself."""

Case = tuple[str, int]


def window(masks: Sequence[Mask], dims: Dims, sequence: Expression) -> int:
    """The window of masks over scores [..., queries, tokens], or 0 when they are just causal.

    Args:
        masks: truth values (true: may be seen) or numbers added to scores.
        dims: the shape of the scores.
        sequence: the number of queries.

    Raises:
        Refusal: it is not proven that all that is seen are the last tokens.
    """
    source = " and ".join(what for _, what in masks if what) or "attention"
    terms = [_aligned(field, dims, source) for field, _ in masks]
    cases: list[Case] = [("sequence", 1)] if sequence == 1 else [("", 0)]
    for term in terms:
        if isinstance(term, Either):
            cases = [(name, n) for name, n, _ in term.cases]
    found: dict[Case, int] = {}
    try:
        for case in cases:
            found[case] = _window([_under(t, case) for t in terms], case, dims)
    except NoProof as reason:
        raise Refusal(
            f"it is not proven that {source} is causal: {reason}",
            "export the decoder with plain causal or sliding-window attention, without padding",
        ) from reason
    if len(set(found.values())) > 1:
        raise Refusal(f"{source} hides other tokens in a prompt than it does token by token")
    return next(iter(found.values()))


def _aligned(mask: Field, dims: Dims, source: str) -> Term:
    whole = Field(dims, Number(0.0, "FLOAT"), "FLOAT")
    try:
        joint, terms = fields.broadcast([mask, whole])
    except Refusal as refusal:
        raise Refusal(f"{source} does not fit the scores: {refusal.reason}") from refusal
    if joint != dims:
        raise Refusal(f"{source} enlarges the scores")
    return terms[0]


def _under(term: Term, case: Case) -> Term:
    if isinstance(term, Either):
        return next(t for name, n, t in term.cases if (name, n) == case)
    return substitute(term, {case[0]: expression(case[1])}) if case[0] else term


def _window(terms: Sequence[Term], case: Case, dims: Dims) -> int:
    distance = variable(_DISTANCE)
    row, column = (f"@{len(dims) - back}" for back in (2, 1))
    match case:
        case ("past", 0):
            moved = {row: distance + variable(column)}
        case ("sequence", 1):
            moved = {"past": distance + variable(column), row: expression(0)}
        case _:
            moved = {"past": distance + variable(column) - variable(row)}
    terms = [substitute(term, moved) for term in terms]
    edges = {0, 1}
    for term in terms:
        others = variables(term) - {_DISTANCE}
        if others:
            named = ", ".join(sorted(_named(n) for n in others))
            raise NoProof(f"what it hides depends on {named}, not only on how far tokens are apart")
        for atom in atoms(term):
            edges |= _edges(atom)
    # Later tokens exist only where several queries are computed together.
    first = 0 if case == ("sequence", 1) else min(edges) - 1
    distances = [d for d in sorted({d for e in edges for d in (e - 1, e)}) if d >= first]
    seen = [all(_is_open(term, d) for term in terms) for d in distances]
    allowed = [d for d, is_seen in zip(distances, seen, strict=True) if is_seen]
    if 0 not in allowed:
        raise NoProof("a token does not see itself")
    if allowed[0] < 0:
        raise NoProof("tokens see later tokens")
    hidden = [d for d in distances if d > 0 and d not in allowed]
    if hidden and allowed[-1] > hidden[0]:
        raise NoProof("it hides a token but not all of those before it")
    return hidden[0] if hidden else 0


def _edges(atom: Expression) -> set[int]:
    """The distances at which the sign of an integer changes, and those next to it."""
    slope = atom.coefficient(_DISTANCE)
    factor = None if slope is None else slope.constant
    offset = atom.substitute({_DISTANCE: expression(0)}).constant
    if factor is None or offset is None:
        raise NoProof(f"it is decided by {atom}")
    if factor == 0:
        return set()
    edge = -(offset // factor)
    return {edge - 1, edge, edge + 1}


def _is_open(term: Term, distance: int) -> bool:
    """Whether a token at a distance is seen."""
    value = evaluate(term, {_DISTANCE: np.asarray(distance, np.int64)})
    if is_truth(term) or value.dtype == np.bool_:
        return bool(value)
    added = float(value)
    if added == 0.0:
        return True
    if added <= BLOCKED:
        return False
    raise NoProof(f"it adds {added:g} to scores")


def _named(name: str) -> str:
    if name in ("batch", "sequence", "past"):
        return f"the length '{name}'"
    return f"the index of axis {name[1:]}" if name.startswith("@") else name
