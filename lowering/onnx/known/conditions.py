"""Conditions on lengths that the capacity of the caches decides.

Some graphs compute otherwise beyond some number of tokens: LongRoPE models switch their rotary
tables there, by an If, a Where, or an offset that a comparison is multiplied into. A chip never
holds more tokens than its caches, so where one side holds for all of them, it is the only one.

Lengths are bounded by a triangle: past at least 0, sequence at least 1, their sum at most the
capacity. A condition that is affine in them is decided by the triangle's three corners.
"""

from __future__ import annotations

from collections.abc import Iterator

from intaglio.lowering.onnx.known.expressions import Expression, expression
from intaglio.lowering.onnx.known.simplification import apply, pieces
from intaglio.lowering.onnx.known.terms import (
    FALSE,
    TRUE,
    Apply,
    AtLeastZero,
    Count,
    Either,
    Lookup,
    Number,
    Pieces,
    Reduced,
    Term,
)

_LENGTHS = frozenset({"past", "sequence"})


def decided(term: Term, capacity: int) -> Term:
    """The formula where no more than `capacity` tokens are ever in the caches."""
    match term:
        case AtLeastZero():
            sign = _sign(term.value, capacity)
            return term if sign is None else TRUE if sign else FALSE
        case Apply():
            args = [decided(arg, capacity) for arg in term.args]
            if term.op in ("Max", "Min") and len(args) == 2:
                chosen = _extreme(term.op, args, capacity)
                if chosen is not None:
                    return chosen
            return term if args == list(term.args) else apply(term.op, args, {})
        case Lookup():
            indices = tuple(decided(index, capacity) for index in term.indices)
            return Lookup(term.tensor, term.shape, indices)
        case Pieces():
            parts = [(size, decided(part, capacity)) for size, part in term.parts]
            return term if tuple(parts) == term.parts else pieces(term.index, parts, {})
        case Reduced():
            return Reduced(term.kind, term.index, term.size, decided(term.body, capacity))
        case Either():
            cases = ((name, n, decided(one, capacity)) for name, n, one in term.cases)
            return Either(tuple(cases))
        case Count() | Number():
            return term


def switches(term: Term, *, one_by_one: bool) -> Iterator[int]:
    """Numbers of tokens beyond which a formula of lengths computes otherwise.

    Only conditions on the number of all tokens count: one that tells a prompt from what follows it
    is no matter of capacity.

    Args:
        term: the formula.
        one_by_one: the graph takes one token at a time, so that the past alone says how many.
    """
    match term:
        case AtLeastZero():
            yield from _switch(term.value, one_by_one)
        case Apply():
            for arg in term.args:
                yield from switches(arg, one_by_one=one_by_one)
            if term.op in ("Max", "Min"):
                difference = _difference(term.args)
                if difference is not None:
                    both = (difference, -difference)
                    found = [n for d in both for n in _switch(d, one_by_one)]
                    yield from [max(found)] if found else []
        case Lookup():
            for index in term.indices:
                yield from switches(index, one_by_one=one_by_one)
        case Pieces():
            for _, part in term.parts:
                yield from switches(part, one_by_one=one_by_one)
        case Reduced():
            yield from switches(term.body, one_by_one=one_by_one)
        case Either():
            for _, _, one in term.cases:
                yield from switches(one, one_by_one=one_by_one)
        case Count() | Number():
            pass


def _sign(value: Expression, capacity: int) -> bool | None:
    """Whether an integer is at least 0 for all lengths within the capacity; None for both."""
    if not value.variables <= _LENGTHS or any(len(key) > 1 for key in value.terms):
        return None
    corners: list[int] = []
    for past, sequence in ((0, 1), (capacity - 1, 1), (0, capacity)):
        lengths = {"past": expression(past), "sequence": expression(sequence)}
        corners.append(value.substitute(lengths).constant or 0)
    if min(corners) >= 0:
        return True
    return False if max(corners) < 0 else None


def _difference(args: tuple[Term, ...] | list[Term]) -> Expression | None:
    match args:
        case (Count() as a, Count() as b) | [Count() as a, Count() as b]:
            return a.value - b.value
        case _:
            return None


def _extreme(op: str, args: list[Term], capacity: int) -> Term | None:
    difference = _difference(args)
    if difference is None:
        return None
    # Where both are equal either will do, so each order is tried.
    if _sign(difference, capacity):
        return args[0] if op == "Max" else args[1]
    if _sign(-difference, capacity):
        return args[1] if op == "Max" else args[0]
    return None


def _switch(value: Expression, one_by_one: bool) -> Iterator[int]:
    """The largest number of tokens up to which an integer keeps the sign that it has for one."""
    if not value.variables <= _LENGTHS or any(len(key) > 1 for key in value.terms):
        return
    rise = value.terms.get(("past",), 0)
    start = value.terms.get((), 0)
    if one_by_one and ("sequence",) not in value.terms:
        start -= rise
    elif rise != value.terms.get(("sequence",), 0):
        return
    # For t tokens it is start + rise * t.
    if rise < 0 <= start + rise:
        last = start // -rise
    elif rise > 0 > start + rise:
        last = (-start - 1) // rise
    else:
        return
    if last > 1:
        yield last
