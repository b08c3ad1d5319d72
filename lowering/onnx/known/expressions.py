"""Shapes and counts as polynomials in the batch, sequence and past lengths."""

from __future__ import annotations

from collections.abc import Mapping
from functools import total_ordering
from operator import index


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

    @property
    def variables(self) -> frozenset[str]:
        """The lengths and indices in it."""
        return frozenset(name for key in self.terms for name in key)

    def substitute(self, values: Mapping[str, Expression]) -> Expression:
        """The same with some lengths or indices replaced."""
        if not self.variables & values.keys():
            return self
        total = Expression(0)
        for key, factor in self.terms.items():
            product = Expression(factor)
            for name in key:
                product = product * values.get(name, Expression({(name,): 1}))
            total = total + product
        return total

    def coefficient(self, name: str) -> Expression | None:
        """What a variable is multiplied with, or None when it stands in a power."""
        terms: dict[tuple[str, ...], int] = {}
        for key, value in self.terms.items():
            if key.count(name) > 1:
                return None
            if name in key:
                rest = list(key)
                rest.remove(name)
                terms[tuple(rest)] = value
        return Expression(terms)

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
        """Exact division.

        Raises:
            ValueError: it does not divide.
        """
        divisor = expression(other).monomial
        if divisor is None:
            return self._divided(expression(other))
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

    def _divided(self, divisor: Expression) -> Expression:
        """Exact division by several terms: leading terms are removed one by one."""
        if not divisor.terms:
            raise ValueError(f"{self} is divided by 0")
        lead = Expression(dict([_leading(divisor)]))
        quotient, rest = Expression(0), self
        while rest.terms:
            part = Expression(dict([_leading(rest)])) // lead
            quotient, rest = quotient + part, rest - part * divisor
        return quotient

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
        parts: list[str] = []
        for key, value in sorted(self.terms.items(), reverse=True):
            factors = [*key] if value == 1 and key else [*key, str(value)]
            parts.append("*".join(factors))
        return " + ".join(parts)


def _leading(value: Expression) -> tuple[tuple[str, ...], int]:
    """The first term: of the most factors, then by name (an order that products keep)."""
    return max(value.terms.items(), key=lambda item: (len(item[0]), item[0]))


def expression(value: Expression | int) -> Expression:
    """An expression from an integer of any kind, or itself.

    Raises:
        TypeError: it is no integer.
    """
    return value if isinstance(value, Expression) else Expression(index(value))


BATCH = Expression({("batch",): 1})
SEQUENCE = Expression({("sequence",): 1})
PAST = Expression({("past",): 1})
TOTAL = PAST + SEQUENCE
"""Length of the attention mask: what is cached and what is new."""

Dims = tuple[Expression, ...]

Ranges = Mapping[str, Expression]
"""The last value of each index; the first is 0."""

_AT_LEAST_ONE = ("batch", "sequence", "head width")


def variable(name: str) -> Expression:
    """A length or index by name."""
    return Expression({(name,): 1})


def is_nonnegative(value: Expression, ranges: Ranges) -> bool:
    """Whether a polynomial is proven to be at least 0 for all lengths and all indices in range.

    Lengths are at least 1, the past at least 0. False says that there is no proof.
    """
    for name in sorted(value.variables & ranges.keys()):
        slope = value.coefficient(name)
        if slope is None:
            return False
        if is_nonnegative(slope, {}):
            value = value.substitute({name: Expression(0)})
        elif is_nonnegative(-slope, {}):
            value = value.substitute({name: ranges[name]})
        else:
            return False
    if any(name.startswith(("@", "#")) for name in value.variables):
        return False
    # A length that is at least 1 is 1 + something that is at least 0.
    value = value.substitute({name: variable(name) + 1 for name in _AT_LEAST_ONE})
    return all(factor >= 0 for factor in value.terms.values())


def dims_text(dims: Dims) -> str:
    """Dimensions as a person writes them: `[batch, sequence, 64]`."""
    return "[" + ", ".join(str(d) for d in dims) + "]"
