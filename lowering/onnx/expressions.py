"""Shapes and counts as polynomials in the batch, sequence and past lengths."""

from __future__ import annotations

from collections.abc import Mapping
from functools import total_ordering


@total_ordering
class Expression:
    """An integer polynomial in named lengths; immutable.

    Shapes of a decoder graph are products of its dimensions, so a polynomial says all of them:
    `SEQUENCE * 4` is the second axis of queries [B, S * 4, D].
    """

    __slots__ = ("terms",)

    def __init__(self, terms: Mapping[tuple[str, ...], int] | int) -> None:
        if isinstance(terms, int):
            terms = {(): terms}
        self.terms: dict[tuple[str, ...], int] = {k: int(v) for k, v in terms.items() if v}

    @property
    def constant(self) -> int | None:
        """The value where no length matters."""
        if not self.terms:
            return 0
        return self.terms[()] if set(self.terms) == {()} else None

    @property
    def monomial(self) -> tuple[tuple[str, ...], int] | None:
        """(lengths, factor) of a single term."""
        return next(iter(self.terms.items())) if len(self.terms) == 1 else None

    def __add__(self, other: Expression | int) -> Expression:
        terms = dict(self.terms)
        for key, value in expression(other).terms.items():
            terms[key] = terms.get(key, 0) + value
        return Expression(terms)

    __radd__ = __add__

    def __neg__(self) -> Expression:
        return Expression({k: -v for k, v in self.terms.items()})

    def __sub__(self, other: Expression | int) -> Expression:
        return self + -expression(other)

    def __rsub__(self, other: Expression | int) -> Expression:
        return expression(other) - self

    def __mul__(self, other: Expression | int) -> Expression:
        terms: dict[tuple[str, ...], int] = {}
        for k1, v1 in self.terms.items():
            for k2, v2 in expression(other).terms.items():
                key = tuple(sorted((*k1, *k2)))
                terms[key] = terms.get(key, 0) + v1 * v2
        return Expression(terms)

    __rmul__ = __mul__

    def __floordiv__(self, other: Expression | int) -> Expression:
        """Exact division by a single term.

        Raises:
            ValueError: it does not divide.
        """
        divisor = expression(other).monomial
        if divisor is None:
            raise ValueError(f"{self} is not divided by {other}")
        lengths, factor = divisor
        terms: dict[tuple[str, ...], int] = {}
        for key, value in self.terms.items():
            rest = list(key)
            for length in lengths:
                if length not in rest:
                    raise ValueError(f"{other} does not divide {self}")
                rest.remove(length)
            if value % factor:
                raise ValueError(f"{other} does not divide {self}")
            terms[tuple(rest)] = value // factor
        return Expression(terms)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, int):
            other = Expression(other)
        return isinstance(other, Expression) and self.terms == other.terms

    def __lt__(self, other: Expression | int) -> bool:
        left, right = self.constant, expression(other).constant
        if left is None or right is None:
            raise ValueError(f"{self} and {other} are not ordered")
        return left < right

    def __hash__(self) -> int:
        return hash(frozenset(self.terms.items()))

    def __repr__(self) -> str:
        if not self.terms:
            return "0"
        parts = []
        for key, value in sorted(self.terms.items(), reverse=True):
            factors = [*key] if value == 1 and key else [*key, str(value)]
            parts.append("*".join(factors))
        return " + ".join(parts)


def expression(value: Expression | int) -> Expression:
    """An expression from an integer of any kind, or itself."""
    return value if isinstance(value, Expression) else Expression(int(value))


BATCH = Expression({("batch",): 1})
SEQUENCE = Expression({("sequence",): 1})
PAST = Expression({("past",): 1})
TOTAL = PAST + SEQUENCE
"""Length of the attention mask: what is cached and what is new."""

Dims = tuple[Expression, ...]


def dims_text(dims: Dims) -> str:
    """Dimensions as a person writes them: `[batch, sequence, 64]`."""
    return "[" + ", ".join(str(d) for d in dims) + "]"
