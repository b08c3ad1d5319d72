"""What one element of a position-dependent tensor is, as a formula of its indices and the lengths.

Angles of rotary embeddings, attention masks and all that they are computed from depend on lengths
and positions only. Each such tensor is one formula for all its elements. Indices are variables
`@0`, `@1`, ... (one an axis, from 0), lengths are `batch`, `sequence` and `past`. Formulas are
built simplified, compare by structure, and can be computed with numpy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from intaglio.lowering.onnx.expressions import Expression, Ranges, expression, is_nonnegative
from intaglio.lowering.onnx.model import Tensor, widen

NUMPY: dict[str, Any] = {
    "FLOAT": np.float32,
    "FLOAT16": np.float16,
    "BFLOAT16": np.float32,
    "DOUBLE": np.float64,
    "INT64": np.int64,
    "INT32": np.int64,
    "BOOL": np.bool_,
}
"""How elements of a type are computed; bfloat16 is rounded after each cast."""


class NoProof(Exception):
    """A formula cannot be simplified as far as it has to be."""


@dataclass(frozen=True)
class Count:
    """An integer: a polynomial of lengths and indices."""

    value: Expression


@dataclass(frozen=True)
class Number:
    """A floating-point number or a truth value of an element type."""

    value: float
    dtype: str


@dataclass(frozen=True)
class Lookup:
    """An element of a constant tensor, seen through `shape`."""

    tensor: Tensor
    shape: tuple[int, ...]
    indices: tuple[Term, ...]


@dataclass(frozen=True)
class AtLeastZero:
    """Whether an integer is 0 or more: every comparison of integers."""

    value: Expression


@dataclass(frozen=True)
class Apply:
    """A function of other elements; `op` is a key of FUNCTIONS or `cast:TYPE`."""

    op: str
    args: tuple[Term, ...]


@dataclass(frozen=True)
class Pieces:
    """Elements of tensors that were put together: of part i where `index` lies in it."""

    index: Expression
    parts: tuple[tuple[Expression, Term], ...]


@dataclass(frozen=True)
class Reduced:
    """The sum or maximum (`kind`) of `body` over `index` from 0 to `size` - 1."""

    kind: str
    index: str
    size: Expression
    body: Term


@dataclass(frozen=True)
class Either:
    """A formula for each of several lengths; the graph itself is invalid for all others."""

    cases: tuple[tuple[str, int, Term], ...]


Term = Count | Number | Lookup | AtLeastZero | Apply | Pieces | Reduced | Either

TRUE, FALSE = Number(1.0, "BOOL"), Number(0.0, "BOOL")


def truth(value: bool) -> Number:
    """A constant truth value."""
    return TRUE if value else FALSE


def count(value: Expression | int) -> Count:
    """A constant integer or a length."""
    return Count(expression(value))


def _round_bfloat16(x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    return (rounded & np.uint32(0xFFFF0000)).view(np.float32)


def as_type(x: npt.NDArray[Any], dtype: str) -> npt.NDArray[Any]:
    """Numbers cast as ONNX Cast does."""
    if dtype == "BOOL":
        return x != 0
    if dtype == "BFLOAT16":
        return _round_bfloat16(np.asarray(x, np.float32))
    with np.errstate(all="ignore"):
        if NUMPY[dtype] is np.int64 and x.dtype.kind == "f":
            x = np.trunc(x)
        return x.astype(NUMPY[dtype])


def _trunc_divide(a: Any, b: Any) -> Any:
    if np.asarray(a).dtype.kind in "iu":
        return (np.sign(a) * np.sign(b)) * (np.abs(a) // np.abs(b))
    return np.asarray(a) / b


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Div": _trunc_divide,
    "Mod": np.mod,
    "Pow": np.power,
    "Neg": np.negative,
    "Abs": np.abs,
    "Sqrt": np.sqrt,
    "Reciprocal": np.reciprocal,
    "Exp": np.exp,
    "Log": np.log,
    "Floor": np.floor,
    "Ceil": np.ceil,
    "Cos": np.cos,
    "Sin": np.sin,
    "Max": np.maximum,
    "Min": np.minimum,
    "Less": np.less,
    "LessOrEqual": np.less_equal,
    "Greater": np.greater,
    "GreaterOrEqual": np.greater_equal,
    "Equal": np.equal,
    "And": np.logical_and,
    "Or": np.logical_or,
    "Xor": np.logical_xor,
    "Not": np.logical_not,
    "Where": np.where,
    "IsNaN": np.isnan,
    "IsInf": np.isinf,
}
"""Elementwise ONNX operators."""

COMPARISONS = frozenset({"Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Equal"})
LOGICAL = frozenset({"And", "Or", "Xor", "Not", "IsNaN", "IsInf"})


# --- variables -----------------------------------------------------------------------------------


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


def variables(term: Term) -> frozenset[str]:
    """The indices and lengths a formula depends on."""
    match term:
        case Number():
            return frozenset()
        case Count() | AtLeastZero():
            return term.value.variables
        case Lookup():
            return frozenset().union(*(variables(i) for i in term.indices))
        case Apply():
            return frozenset().union(*(variables(a) for a in term.args))
        case Pieces():
            parts = (s.variables | variables(t) for s, t in term.parts)
            return term.index.variables.union(*parts)
        case Reduced():
            return (term.size.variables | variables(term.body)) - {term.index}
        case Either():
            return frozenset().union(*(variables(t) for _, _, t in term.cases))


# --- simplification ------------------------------------------------------------------------------


def at_least_zero(value: Expression, ranges: Ranges) -> Term:
    """Whether an integer is at least 0, decided where it can be."""
    if is_nonnegative(value, ranges):
        return TRUE
    if is_nonnegative(-value - 1, ranges):
        return FALSE
    return AtLeastZero(value)


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


def _number(value: npt.NDArray[Any], like: str) -> Term:
    if value.dtype == np.bool_:
        return truth(bool(value))
    if value.dtype.kind in "iu":
        return count(int(value))
    for dtype in (like, "FLOAT", "FLOAT16", "DOUBLE"):
        if NUMPY.get(dtype) == value.dtype.type:
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


def is_truth(term: Term) -> bool:
    """Whether a formula gives a truth value."""
    match term:
        case AtLeastZero():
            return True
        case Number():
            return term.dtype == "BOOL"
        case Apply():
            return (
                term.op in COMPARISONS
                or term.op in LOGICAL
                or term.op == "cast:BOOL"
                or (term.op == "Where" and is_truth(term.args[1]))
            )
        case Pieces():
            return all(is_truth(t) for _, t in term.parts)
        case _:
            return False


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


# --- computing -----------------------------------------------------------------------------------

Environment = Mapping[str, npt.NDArray[np.int64]]


def _polynomial(value: Expression, environment: Environment) -> npt.NDArray[np.int64]:
    total = np.zeros((), np.int64)
    for key, factor in value.terms.items():
        product = np.asarray(factor, np.int64)
        for name in key:
            if name not in environment:
                raise NoProof(f"it depends on {_named(name)}")
            product = product * environment[name]
        total = total + product
    return np.asarray(total)


def _named(name: str) -> str:
    if name in ("batch", "sequence", "past"):
        return f"the length '{name}'"
    return f"the index along axis {name[1:]}" if name.startswith("@") else f"'{name}'"


def evaluate(term: Term, environment: Environment, *, clip: bool = False) -> npt.NDArray[Any]:
    """The elements for arrays of values of the variables (broadcast against each other).

    With `clip`, indices outside of a constant read its edge: such elements are not chosen later.

    Raises:
        NoProof: a variable has no value.
    """
    match term:
        case Number():
            return np.asarray(term.value, NUMPY[term.dtype])
        case Count():
            return _polynomial(term.value, environment)
        case AtLeastZero():
            return _polynomial(term.value, environment) >= 0
        case Lookup():
            array = term.tensor.stored()
            array = widen(array) if term.tensor.dtype == "BFLOAT16" else array
            indices = [evaluate(i, environment, clip=clip) for i in term.indices]
            if clip:
                pairs = zip(indices, term.shape, strict=True)
                indices = [np.clip(i, 0, n - 1) for i, n in pairs]
            try:
                return np.asarray(array.reshape(term.shape)[tuple(indices)])
            except IndexError as error:
                raise NoProof(f"it reads outside of '{term.tensor.name}'") from error
        case Apply():
            args = [evaluate(a, environment, clip=clip) for a in term.args]
            if term.op.startswith("cast:"):
                return as_type(args[0], term.op.removeprefix("cast:"))
            with np.errstate(all="ignore"):
                return np.asarray(FUNCTIONS[term.op](*args))
        case Pieces():
            return _joined(term, environment)
        case Reduced():
            raise NoProof("it is a sum or maximum over tokens")
        case Either():
            raise NoProof("it depends on the lengths")


def _joined(term: Pieces, environment: Environment) -> npt.NDArray[Any]:
    index = _polynomial(term.index, environment)
    conditions: list[npt.NDArray[Any]] = []
    values: list[npt.NDArray[Any]] = []
    end = expression(0)
    for size, part in term.parts:
        end = end + size
        conditions.append(index < _polynomial(end, environment))
        values.append(evaluate(part, environment, clip=True))
    shape = np.broadcast_shapes(*(v.shape for v in (*conditions, *values)))
    chosen = np.select(
        [np.broadcast_to(c, shape) for c in conditions],
        [np.broadcast_to(v, shape) for v in values],
    )
    return chosen.astype(values[0].dtype)


def atoms(term: Term) -> frozenset[Expression]:
    """The integers whose sign decides a formula.

    Raises:
        NoProof: it depends on its variables in another way too.
    """
    match term:
        case AtLeastZero():
            return frozenset({term.value})
        case Number():
            return frozenset()
        case Count() if term.value.constant is not None:
            return frozenset()
        case Apply():
            return frozenset().union(*(atoms(a) for a in term.args))
        case Count():
            raise NoProof(f"its value depends on positions or lengths ({term.value})")
        case Lookup():
            raise NoProof(f"it is read from '{term.tensor.name}'")
        case Reduced():
            raise NoProof("it is a sum or maximum over tokens")
        case Pieces() | Either():
            raise NoProof("it is put together of several tensors")
