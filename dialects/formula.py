"""Durations as formulas: integer expressions of the position, printed, parsed and evaluated.

A formula is built of integers, variables, `+`, `*`, `ceildiv(a, b)`, `floordiv(a, b)`,
`min(a, b)` and `max(a, b)`.
`tokens` is the number of cached tokens, the current one included (position + 1); `rank` is the
active rank of the adapter at a site, 0 without one.

>>> f = 4 + 2 * ceildiv(8 * TOKENS, 256)
>>> str(f)
'4 + 2 * ceildiv(8 * tokens, 256)'
>>> parse(str(f)) == f, int(f(tokens=33))
(True, 8)
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

Value = Any
"""An integer, or an integer array to evaluate many positions at once."""


@dataclass(frozen=True)
class Formula:
    """Base of the expression nodes; nodes are compared by structure."""

    def __call__(self, **variables: Value) -> Value:
        """The value; each variable is an integer or an integer array.

        Raises:
            KeyError: a variable of the formula is not given.
        """
        raise NotImplementedError

    @property
    def variables(self) -> frozenset[str]:
        """Names the value depends on."""
        raise NotImplementedError

    def __add__(self, other: Formula | int) -> Formula:
        return _sum(self, constant(other))

    def __radd__(self, other: int) -> Formula:
        return _sum(constant(other), self)

    def __mul__(self, other: Formula | int) -> Formula:
        return _product(self, constant(other))

    def __rmul__(self, other: int) -> Formula:
        return _product(constant(other), self)


@dataclass(frozen=True)
class Constant(Formula):
    """An integer."""

    value: int

    def __call__(self, **variables: Value) -> Value:
        return self.value

    @property
    def variables(self) -> frozenset[str]:
        return frozenset()

    def __str__(self) -> str:
        return str(self.value)


@dataclass(frozen=True)
class Variable(Formula):
    """A name: `tokens` or `rank`."""

    name: str

    def __call__(self, **variables: Value) -> Value:
        return variables[self.name]

    @property
    def variables(self) -> frozenset[str]:
        return frozenset({self.name})

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Binary(Formula):
    """`lhs + rhs`, `lhs * rhs` or one of the two-argument functions."""

    operator: str
    lhs: Formula
    rhs: Formula

    def __call__(self, **variables: Value) -> Value:
        return _OPERATORS[self.operator](self.lhs(**variables), self.rhs(**variables))

    @property
    def variables(self) -> frozenset[str]:
        return self.lhs.variables | self.rhs.variables

    def __str__(self) -> str:
        if self.operator == "+":
            return f"{self.lhs} + {self.rhs}"
        if self.operator == "*":
            return f"{_factor(self.lhs)} * {_factor(self.rhs)}"
        return f"{self.operator}({self.lhs}, {self.rhs})"


def _factor(formula: Formula) -> str:
    is_sum = isinstance(formula, Binary) and formula.operator == "+"
    return f"({formula})" if is_sum else str(formula)


_OPERATORS: dict[str, Callable[[Value, Value], Value]] = {
    "+": lambda a, b: a + b,
    "*": lambda a, b: a * b,
    "ceildiv": lambda a, b: -(-a // b),
    "floordiv": lambda a, b: a // b,
    "min": lambda a, b: np.minimum(a, b),
    "max": lambda a, b: np.maximum(a, b),
}

TOKENS = Variable("tokens")
RANK = Variable("rank")


def constant(value: Formula | int) -> Formula:
    """The formula itself, or the constant formula of an integer."""
    return value if isinstance(value, Formula) else Constant(value)


def _fold(operator: str, lhs: Formula, rhs: Formula) -> Formula:
    if isinstance(lhs, Constant) and isinstance(rhs, Constant):
        return Constant(int(_OPERATORS[operator](lhs.value, rhs.value)))
    return Binary(operator, lhs, rhs)


def _sum(lhs: Formula, rhs: Formula) -> Formula:
    """A sum with its constants collected in front."""
    offset, terms = 0, list[Formula]()
    for part in (*_terms(lhs), *_terms(rhs)):
        if isinstance(part, Constant):
            offset += part.value
        else:
            terms.append(part)
    if not terms:
        return Constant(offset)
    first, *rest = terms
    total = first if offset == 0 else Binary("+", Constant(offset), first)
    for term in rest:
        total = Binary("+", total, term)
    return total


def _terms(formula: Formula) -> list[Formula]:
    if isinstance(formula, Binary) and formula.operator == "+":
        return [*_terms(formula.lhs), *_terms(formula.rhs)]
    return [formula]


def _product(lhs: Formula, rhs: Formula) -> Formula:
    for one, other in ((lhs, rhs), (rhs, lhs)):
        if one == Constant(0):
            return Constant(0)
        if one == Constant(1):
            return other
    return _fold("*", lhs, rhs)


def ceildiv(lhs: Formula | int, rhs: int) -> Formula:
    """`lhs` divided by `rhs`, rounded up."""
    return constant(lhs) if rhs == 1 else _fold("ceildiv", constant(lhs), Constant(rhs))


def floordiv(lhs: Formula | int, rhs: int) -> Formula:
    """`lhs` divided by `rhs`, rounded down."""
    return constant(lhs) if rhs == 1 else _fold("floordiv", constant(lhs), Constant(rhs))


def minimum(lhs: Formula | int, rhs: Formula | int) -> Formula:
    """The smaller of two."""
    return _fold("min", constant(lhs), constant(rhs))


def maximum(lhs: Formula | int, rhs: Formula | int) -> Formula:
    """The larger of two."""
    return _fold("max", constant(lhs), constant(rhs))


@lru_cache(maxsize=1024)
def parse(text: str) -> Formula:
    """The formula printed as `text`; beats of a program have the same few again and again.

    Raises:
        ValueError: the text is not a formula.
    """
    try:
        return _convert(ast.parse(text, mode="eval").body)
    except SyntaxError as error:
        raise ValueError(f"not a formula: {text!r}") from error


def _convert(node: ast.expr) -> Formula:
    match node:
        case ast.Constant(value=int(value)) if not isinstance(value, bool):
            return Constant(value)
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int(value))):
            return Constant(-value)
        case ast.Name(id=("tokens" | "rank") as name):
            return Variable(name)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return Binary("+", _convert(left), _convert(right))
        case ast.BinOp(left=left, op=ast.Mult(), right=right):
            return Binary("*", _convert(left), _convert(right))
        case ast.Call(
            func=ast.Name(id=("ceildiv" | "floordiv" | "min" | "max") as name), args=[left, right]
        ):
            return Binary(name, _convert(left), _convert(right))
        case _:
            raise ValueError(f"not a formula: {ast.unparse(node)!r}")
