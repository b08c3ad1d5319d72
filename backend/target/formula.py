"""Arithmetic in target files: how a derived figure follows from the others.

A formula is one expression: numbers, strings, parameters as `section.key`, `+ - * / // % **`,
`a if b == c else d`, and the functions floor, ceil, round, log2, min and max. It is parsed with
Python's grammar and walked here; nothing of Python is reachable from it.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable
from typing import TypeAlias

Value: TypeAlias = int | float | str | tuple[str, ...]
"""Of a parameter: a number, a text, or a list of choices."""
Lookup = Callable[[str], Value]

_BINARY: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.Div: lambda a, b: a / b,
    ast.FloorDiv: lambda a, b: a // b,
    ast.Mod: lambda a, b: a % b,
}
_LARGEST_EXPONENT = 64


def _round(value: float, digits: float | None = None) -> float:
    if digits is None:
        return round(value)
    if abs(digits) > _LARGEST_EXPONENT:
        raise FormulaError(f"rounds to more than {_LARGEST_EXPONENT} digits")
    if not isinstance(digits, int):
        raise FormulaError("rounds to a number of digits that is no integer")
    return round(value, digits)


_FUNCTIONS: dict[str, Callable[..., float]] = {
    "floor": math.floor,
    "ceil": math.ceil,
    "round": _round,
    "log2": math.log2,
    "min": min,
    "max": max,
}
_LONGEST = 1000
_MOST_BITS = 256
"""Of an integer on the way to a figure."""


class FormulaError(ValueError):
    """The formula is not in the grammar, or has no value."""


def evaluate(text: str, lookup: Lookup) -> Value:
    """Value of a formula.

    Args:
        text: the formula.
        lookup: value of a parameter by its full name `section.key`; may raise `KeyError`.

    Raises:
        FormulaError: outside the grammar, an unknown parameter, or no value (division by zero).
    """
    tree = _parse(text)
    try:
        return _value(tree.body, lookup)
    except (ArithmeticError, TypeError, ValueError, RecursionError) as error:
        if isinstance(error, FormulaError):
            raise
        raise FormulaError(f"has no value: {error}") from error


def names(text: str) -> tuple[str, ...]:
    """The parameters that a formula names, each once, in the order of their names.

    Raises:
        FormulaError: not an expression.
    """
    tree = _parse(text)
    found = {
        f"{node.value.id}.{node.attr}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    }
    return tuple(sorted(found))


def _parse(text: str) -> ast.Expression:
    if len(text) > _LONGEST:
        raise FormulaError(f"is longer than {_LONGEST} characters")
    try:
        return ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise FormulaError("is not an arithmetic expression") from error


def _value(node: ast.expr, lookup: Lookup) -> Value:
    match node:
        case ast.Constant(value=str() as value):
            return value
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            return _number(lambda: value)
        case ast.Attribute(value=ast.Name(id=section), attr=key):
            name = f"{section}.{key}"
            try:
                return lookup(name)
            except KeyError:
                raise FormulaError(f"names '{name}', which is not a parameter") from None
        case ast.BinOp(left=left, op=ast.Pow(), right=right):
            base, exponent = _value(left, lookup), _value(right, lookup)
            return _number(_power, base, exponent)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            return _number(_BINARY[type(op)], _value(left, lookup), _value(right, lookup))
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return _number(_BINARY[ast.Sub], 0, _value(operand, lookup))
        case ast.IfExp(
            test=ast.Compare(left=left, ops=[ast.Eq() | ast.NotEq() as op], comparators=[right]),
            body=body,
            orelse=otherwise,
        ):
            equal = _value(left, lookup) == _value(right, lookup)
            return _value(body if equal == isinstance(op, ast.Eq) else otherwise, lookup)
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in _FUNCTIONS:
            return _number(_FUNCTIONS[name], *(_value(arg, lookup) for arg in args))
        case _:
            raise FormulaError(f"may not contain '{ast.unparse(node)}'")


def _number(function: Callable[..., float], *operands: Value) -> float:
    # Python repeats and joins strings with the same operators.
    numbers = [operand for operand in operands if isinstance(operand, int | float)]
    if len(numbers) < len(operands):
        raise FormulaError("computes with something that is not a number")
    # No operation makes more than twice the bits of what it takes, so each is quick.
    value = function(*numbers)
    if isinstance(value, complex):
        raise FormulaError("has no value: it is the root of a negative number")
    if isinstance(value, float) and not math.isfinite(value):
        raise FormulaError("has no value: a number beyond the largest")
    if isinstance(value, int) and value.bit_length() > _MOST_BITS:
        raise FormulaError(f"has a value beyond 2**{_MOST_BITS}")
    return value


def _power(base: float, exponent: float) -> float:
    if abs(exponent) > _LARGEST_EXPONENT:
        raise FormulaError(f"has an exponent beyond {_LARGEST_EXPONENT}")
    if isinstance(base, int) and base.bit_length() * abs(exponent) > 2 * _MOST_BITS:
        raise FormulaError(f"has a value beyond 2**{_MOST_BITS}")
    return base**exponent
