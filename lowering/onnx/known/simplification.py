"""Formulas of elements are built simplified: as far as lengths and ranges of indices decide."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from intaglio.lowering.onnx.graph.model import Array
from intaglio.lowering.onnx.known.evaluation import FIELD_TYPES, as_type, evaluate
from intaglio.lowering.onnx.known.expressions import Expression, Ranges, expression, is_nonnegative
from intaglio.lowering.onnx.known.functions import COMPARISONS, FUNCTIONS
from intaglio.lowering.onnx.known.terms import (
    FALSE,
    TRUE,
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
    count,
    is_truth,
    truth,
    variables,
)

# --- replacing variables --------------------------------------------------------------------------


def substitute(term: Term, values: Mapping[str, Expression], ranges: Ranges | None = None) -> Term:
    """The formula with indices or lengths replaced, simplified again."""
    known: Ranges = ranges or {}
    match term:
        case Number():
            return term
        case Count():
            return Count(term.value.substitute(values))
        case AtLeastZero():
            return at_least_zero(term.value.substitute(values), known)
        case Lookup():
            indices = tuple(substitute(i, values, known) for i in term.indices)
            return Lookup(term.tensor, term.shape, indices)
        case Apply():
            return apply(term.op, [substitute(a, values, known) for a in term.args], known)
        case Pieces():
            parts = [(s.substitute(values), substitute(t, values, known)) for s, t in term.parts]
            return pieces(term.index.substitute(values), parts, known)
        case Reduced():
            size = term.size.substitute(values)
            inner = {**known, term.index: size - 1}
            return Reduced(term.kind, term.index, size, substitute(term.body, values, inner))
        case Either():
            return Either(
                tuple((name, n, substitute(t, values, known)) for name, n, t in term.cases)
            )


def replace_index(term: Term, name: str, by: Term, ranges: Ranges) -> Term:
    """The formula with an index replaced by another integer that is no polynomial.

    Raises:
        NoProof: the index says which of several tensors an element comes from.
    """
    if name not in variables(term):
        return term
    match term:
        case Count():
            return _polynomial_term(term.value, name, by, ranges)
        case AtLeastZero():
            value = _polynomial_term(term.value, name, by, ranges)
            return apply("GreaterOrEqual", [value, count(0)], ranges)
        case Lookup():
            indices = tuple(replace_index(i, name, by, ranges) for i in term.indices)
            return Lookup(term.tensor, term.shape, indices)
        case Apply():
            args = [replace_index(a, name, by, ranges) for a in term.args]
            return apply(term.op, args, ranges)
        case _:
            raise NoProof("it is put together of several tensors")


def _polynomial_term(value: Expression, name: str, by: Term, ranges: Ranges) -> Term:
    total: Term = count(0)
    for key, factor in value.terms.items():
        rest = Expression({tuple(n for n in key if n != name): factor})
        product: Term = Count(rest)
        for _ in range(key.count(name)):
            product = apply("Mul", [product, by], ranges)
        total = apply("Add", [total, product], ranges)
    return total


# --- functions ------------------------------------------------------------------------------------


def apply(op: str, args: Sequence[Term], ranges: Ranges) -> Term:
    """The elementwise function of elements, simplified."""
    either = next((a for a in args if isinstance(a, Either)), None)
    if either is not None:
        return Either(
            tuple(
                (
                    name,
                    n,
                    apply(
                        op, [_under(a, name, n, ranges) for a in args], _limited(ranges, name, n)
                    ),
                )
                for name, n, _ in either.cases
            )
        )
    if all(isinstance(a, Count) for a in args):
        found = _integers(op, [a.value for a in args if isinstance(a, Count)], ranges)
        if found is not None:
            return found
    if op.startswith("cast:"):
        return _cast(op, args[0])
    found = _logic(op, args, ranges)
    if found is not None:
        return found
    numbers = [evaluate(a, {}) for a in args if _is_constant(a)]
    if len(numbers) == len(args):
        with np.errstate(all="ignore"):
            result = np.asarray(FUNCTIONS[op](*numbers))
        return _number(result, next((a.dtype for a in args if isinstance(a, Number)), "INT64"))
    return Apply(op, tuple(args))


def _limited(ranges: Ranges, name: str, n: int) -> Ranges:
    return {k: v.substitute({name: expression(n)}) for k, v in ranges.items()}


def _under(term: Term, name: str, n: int, ranges: Ranges) -> Term:
    if isinstance(term, Either):
        return next(t for m, k, t in term.cases if (m, k) == (name, n))
    return substitute(term, {name: expression(n)}, _limited(ranges, name, n))


def _is_constant(term: Term) -> bool:
    return isinstance(term, Number) or (isinstance(term, Count) and term.value.constant is not None)


def _number(value: Array, like: str) -> Term:
    if value.dtype == np.bool_:
        return truth(bool(value))
    if value.dtype.kind in "iu":
        return count(int(value))
    for dtype in (like, "FLOAT", "FLOAT16", "DOUBLE"):
        if FIELD_TYPES.get(dtype) == value.dtype.type:
            return Number(float(value), dtype)
    return Number(float(value), "FLOAT")


def _integers(op: str, values: list[Expression], ranges: Ranges) -> Term | None:
    if op in COMPARISONS:
        return _compare(op, values[0], values[1], ranges)
    match op:
        case "Add":
            return Count(values[0] + values[1])
        case "Sub":
            return Count(values[0] - values[1])
        case "Mul":
            return Count(values[0] * values[1])
        case "Neg":
            return Count(-values[0])
        case "Max" | "Min":
            best = values[0]
            for value in values[1:]:
                above, below = (
                    is_nonnegative(value - best, ranges),
                    is_nonnegative(best - value, ranges),
                )
                if not above and not below:
                    return None
                best = value if above == (op == "Max") else best
            return Count(best)
        case "Div":
            try:
                return Count(values[0] // values[1])
            except ValueError:
                return None
        case "Abs" if is_nonnegative(values[0], ranges):
            return Count(values[0])
        case _:
            return None


def _compare(op: str, a: Expression, b: Expression, ranges: Ranges) -> Term:
    match op:
        case "Less":
            return at_least_zero(b - a - 1, ranges)
        case "LessOrEqual":
            return at_least_zero(b - a, ranges)
        case "Greater":
            return at_least_zero(a - b - 1, ranges)
        case "GreaterOrEqual":
            return at_least_zero(a - b, ranges)
        case _:
            both = [at_least_zero(a - b, ranges), at_least_zero(b - a, ranges)]
            return apply("And", both, ranges)


def at_least_zero(value: Expression, ranges: Ranges) -> Term:
    """Whether an integer is at least 0, decided where it can be."""
    if is_nonnegative(value, ranges):
        return TRUE
    if is_nonnegative(-value - 1, ranges):
        return FALSE
    return AtLeastZero(value)


def _cast(op: str, arg: Term) -> Term:
    dtype = op.removeprefix("cast:")
    integral = dtype in ("INT64", "INT32")
    if isinstance(arg, Count):
        if integral:
            return arg
        if arg.value.constant is not None:
            return Number(float(as_type(np.asarray(arg.value.constant), dtype)), dtype)
    if isinstance(arg, Number):
        value = as_type(evaluate(arg, {}), dtype)
        return count(int(value)) if integral else Number(float(value), dtype)
    if is_truth(arg) and dtype == "BOOL":
        return arg
    if isinstance(arg, Apply) and arg.op == op:
        return arg
    was_cast = isinstance(arg, Apply) and arg.op.startswith("cast:")
    if dtype == "BOOL" and isinstance(arg, Apply) and was_cast and is_truth(arg.args[0]):
        # A truth value that went through another type.
        return arg.args[0]
    return Apply(op, (arg,))


def _logic(op: str, args: Sequence[Term], ranges: Ranges) -> Term | None:
    match op, *args:
        case ("And", a, b) | ("Or", a, b):
            neutral, final = (TRUE, FALSE) if op == "And" else (FALSE, TRUE)
            if final in (a, b):
                return final
            if a in (neutral, b):
                return b
            if b == neutral:
                return a
        case ("Not", AtLeastZero() as a):
            return at_least_zero(-a.value - 1, ranges)
        case ("Not", Apply(op="Not") as a):
            return a.args[0]
        case ("Where", c, x, y):
            if c in (TRUE, FALSE):
                return x if c == TRUE else y
            if x == y:
                return x
        case ("Mul", x, Number(value=1.0)) | ("Mul", Number(value=1.0), x):
            return x
        case ("Add" | "Sub", x, Number(value=0.0)) | ("Add", Number(value=0.0), x):
            return x
        case (
            "Less" | "LessOrEqual" | "Greater" | "GreaterOrEqual" | "Equal",
            Reduced() as a,
            b,
        ) if _is_constant(b):
            return _compare_reduced(op, a, float(evaluate(b, {})), ranges)
        case _:
            pass
    return None


def _compare_reduced(op: str, a: Reduced, bound: float, ranges: Ranges) -> Term | None:
    """A sum or maximum of truth values, one of them known to be true, is at least 1."""
    if not _is_indicator(a.body):
        return None
    limits = {**ranges, a.index: a.size - 1}
    rows = [name for name in ranges if name in variables(a.body)]
    places = [expression(0), a.size - 1]
    places += [Expression({("past",): 1, (row,): 1}) for row in rows]
    for place in places:
        if not (is_nonnegative(place, ranges) and is_nonnegative(a.size - 1 - place, ranges)):
            continue
        value = substitute(a.body, {a.index: place}, limits)
        if _is_constant(value) and float(evaluate(value, {})) == 1.0:
            return _with_minimum_one(op, bound)
    return None


def _with_minimum_one(op: str, bound: float) -> Term | None:
    if (op == "Less" and bound <= 1) or (op in ("LessOrEqual", "Equal") and bound < 1):
        return FALSE
    if (op == "GreaterOrEqual" and bound <= 1) or (op == "Greater" and bound < 1):
        return TRUE
    return None


def _is_indicator(term: Term) -> bool:
    match term:
        case Apply() if term.op.startswith("cast:"):
            return _is_indicator(term.args[0])
        case Number():
            return term.value in (0.0, 1.0)
        case Count():
            return term.value.constant in (0, 1)
        case _:
            return is_truth(term)


# --- parts ----------------------------------------------------------------------------------------


def pieces(index: Expression, parts: Sequence[tuple[Expression, Term]], ranges: Ranges) -> Term:
    """The element at `index` of parts put together; each formula is in the joint index."""
    rest = list(parts)
    while len(rest) > 1:
        size = rest[0][0]
        if is_nonnegative(size - 1 - index, ranges):
            return rest[0][1]
        if not is_nonnegative(index - size, ranges):
            break
        # The first part lies before the index.
        rest[:2] = [(rest[0][0] + rest[1][0], rest[1][1])]
    if len(rest) == 1 or all(t == rest[0][1] for _, t in rest):
        return rest[0][1]
    return Pieces(index, tuple(rest))
