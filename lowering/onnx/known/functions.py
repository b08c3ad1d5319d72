"""Elementwise ONNX operators as numpy functions: one for constants, formulas and sampled curves."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from intaglio.lowering.onnx.graph.model import Array

Elementwise = Callable[..., Array]
"""A function of arrays, element by element."""

COMPARISONS: dict[str, Elementwise] = {
    "Equal": np.equal,
    "Greater": np.greater,
    "GreaterOrEqual": np.greater_equal,
    "Less": np.less,
    "LessOrEqual": np.less_equal,
}

LOGICAL: dict[str, Elementwise] = {
    "And": np.logical_and,
    "IsInf": np.isinf,
    "IsNaN": np.isnan,
    "Not": np.logical_not,
    "Or": np.logical_or,
    "Xor": np.logical_xor,
}
"""Other operators that give truth values."""


def divide(x: Array, y: Array) -> Array:
    """Div: integers are cut off towards 0; divided by 0 they give 0."""
    if np.asarray(x).dtype.kind in "iu":
        return (np.sign(x) * np.sign(y)) * (np.abs(x) // np.abs(y))
    return np.asarray(x) / y


_erf = np.vectorize(math.erf, otypes=[np.float64])


def _erf_of(x: Array) -> Array:
    return np.asarray(_erf(x)).astype(np.asarray(x).dtype)


def _relu(x: Array) -> Array:
    return np.maximum(x, 0)


def _sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(np.negative(x)))


def _softplus(x: Array) -> Array:
    return np.logaddexp(0, x)


ARITHMETIC: dict[str, Elementwise] = {
    "Abs": np.abs,
    "Add": np.add,
    "BitwiseAnd": np.bitwise_and,
    "BitwiseNot": np.invert,
    "BitwiseOr": np.bitwise_or,
    "BitwiseXor": np.bitwise_xor,
    "Ceil": np.ceil,
    "Cos": np.cos,
    "Div": divide,
    "Erf": _erf_of,
    "Exp": np.exp,
    "Floor": np.floor,
    "Log": np.log,
    "Max": np.maximum,
    "Min": np.minimum,
    "Mod": np.mod,
    "Mul": np.multiply,
    "Neg": np.negative,
    "Pow": np.power,
    "Reciprocal": np.reciprocal,
    "Relu": _relu,
    "Round": np.rint,
    "Sigmoid": _sigmoid,
    "Sign": np.sign,
    "Sin": np.sin,
    "Softplus": _softplus,
    "Sqrt": np.sqrt,
    "Sub": np.subtract,
    "Tanh": np.tanh,
}
"""Operators whose result has the type of their first input. Max and Min are those of two inputs."""

FUNCTIONS: dict[str, Elementwise] = {
    **ARITHMETIC,
    **COMPARISONS,
    **LOGICAL,
    "Where": np.where,
}
"""All of them; for a condition and two values, Where."""
