"""What one element of a position-dependent tensor is, as a formula of its indices and the lengths.

Angles of rotary embeddings, attention masks and all that they are computed from depend on lengths
and positions only. Each such tensor is one formula for all its elements. Indices are variables
`@0`, `@1`, ... (one an axis, from 0), lengths are `batch`, `sequence` and `past`. Formulas are
built simplified, compare by structure, and can be computed with numpy.
"""

from __future__ import annotations

from dataclasses import dataclass

from intaglio.lowering.onnx.graph.model import Tensor
from intaglio.lowering.onnx.known.expressions import Expression, expression
from intaglio.lowering.onnx.known.functions import COMPARISONS, LOGICAL


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


# --- variables -----------------------------------------------------------------------------------


def variables(term: Term) -> frozenset[str]:
    """The indices and lengths a formula depends on."""
    match term:
        case Number():
            return frozenset()
        case Count() | AtLeastZero():
            return term.value.variables
        case Lookup():
            return frozenset[str]().union(*(variables(i) for i in term.indices))
        case Apply():
            return frozenset[str]().union(*(variables(a) for a in term.args))
        case Pieces():
            parts = (s.variables | variables(t) for s, t in term.parts)
            return term.index.variables.union(*parts)
        case Reduced():
            return (term.size.variables | variables(term.body)) - {term.index}
        case Either():
            return frozenset[str]().union(*(variables(t) for _, _, t in term.cases))


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
            return frozenset[Expression]().union(*(atoms(a) for a in term.args))
        case Count():
            raise NoProof(f"its value depends on positions or lengths ({term.value})")
        case Lookup():
            raise NoProof(f"it is read from '{term.tensor.name}'")
        case Reduced():
            raise NoProof("it is a sum or maximum over tokens")
        case Pieces() | Either():
            raise NoProof("it is put together of several tensors")
