"""The elementwise operators: `ELEMENTWISE` says of each its formula, constants and tables.

Whoever computes, compiles or encodes elementwise operators asks here, so that a new one is a
formula and an entry. Elements are Fixed with fraction bits of their own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import Generic, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from intaglio.dialects.fixed_point import Real
from intaglio.dialects.formulas.reader import K_co, Reader, V
from intaglio.dialects.tables import ARGUMENT_FRAC, GATE_FRAC, WHOLE

Samples = npt.NDArray[np.float64]


class Constants(NamedTuple, Generic[K_co]):
    """What a formula needs beside its elements; the same fields for all of them, as in hardware.

    Attributes:
        first, first_shift: of the first product, a mantissa, and what the product is shifted by.
        second, second_shift: of the second or only one.
        places: fraction bits of an element beyond those of a table's argument.
    """

    first: K_co | int = 0
    first_shift: K_co | int = 0
    second: K_co | int = 1
    second_shift: K_co | int = 0
    places: K_co | int = 0


class Body(Protocol):
    """A formula: of one element (`y` is `x` again), or of two."""

    def __call__(self, r: Reader[V], c: Constants[V | int], x: V, y: V, /) -> V: ...


Derive = Callable[[Sequence[int], int, Sequence[Real]], Constants[int]]
"""Constants from the operands' fraction bits, the result's, and the reals of the instruction."""


@dataclass(frozen=True)
class Elementwise:
    """An elementwise operator.

    Attributes:
        name: of the formula; of an activation function, the kind of `rom.activate`.
        body: its formula.
        constants: how its constants follow from what an instruction says.
        operands: 1 or 2.
        reals: how many real numbers an instruction gives.
        table: what the formula looks up.
        real: what an activation function is of real numbers, for whoever recognises it.
        family: formulas that differ in tables and constants only have one.
    """

    name: str
    body: Body
    constants: Derive
    operands: int = 1
    reals: int = 0
    table: str | None = None
    family: str = ""
    real: Callable[[Samples], Samples] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "family", self.family or self.name)


# Activation functions


def gate(r: Reader[V], c: Constants[V | int], x: V, _: V, /, table: str) -> V:
    """An activation function: silu, gelu_tanh, gelu_erf or quick_gelu.

    With the kind's table G of 20 fraction bits::

        a = round_shift(|x|, frac - 16)                       32 bits
        g = G(a); for x < 0: 2**20 - g                        21 bits
        y = shift_saturate(x * g, 20 + frac - out_frac)       53 -> 32

    The error of a gate is at most ``|x| * 2**-18`` plus half a unit.

    Stands for Sigmoid + Mul, Gelu (both forms and their decompositions), QuickGelu.
    """
    g = _both_sides(r, c, x, table)
    return r.shift_saturate(r.product(x, g), c.second_shift)


def relu(r: Reader[V], c: Constants[V | int], x: V, _: V, /) -> V:
    """``shift_saturate(max(x, 0), frac - out_frac)``; ONNX Relu."""
    return r.shift_saturate(r.larger(x, 0), c.second_shift)


def relu2(r: Reader[V], c: Constants[V | int], x: V, _: V, /) -> V:
    """``shift_saturate(max(x, 0)**2, 2 * frac - out_frac)``, product 62 bits; Relu + Pow 2."""
    y = r.larger(x, 0)
    return r.shift_saturate(r.product(y, y), c.second_shift)


def sigmoid(r: Reader[V], c: Constants[V | int], x: V, _: V, /) -> V:
    """``1 / (1 + exp(-x))``: the gate g of `gate`'s silu, shifted to `out_frac`; ONNX Sigmoid.

    Error at most 2**-18 plus half a unit. Cannot saturate up to 30 fraction bits.
    """
    return r.shift_saturate(_both_sides(r, c, x, "sigmoid"), c.second_shift, counted=False)


def tanh(r: Reader[V], c: Constants[V | int], x: V, _: V, /) -> V:
    """``tanh(x)``: table of |x|, negated for negative x, shifted to `out_frac`; ONNX Tanh.

    Error at most 2**-18 plus half a unit. Cannot saturate up to 30 fraction bits.
    """
    return r.shift_saturate(_odd(r, c.places, x), c.second_shift, counted=False)


def softplus(r: Reader[V], c: Constants[V | int], x: V, _: V, /) -> V:
    """``log(1 + exp(x))`` as ``max(x, 0) + log(1 + exp(-|x|))``; ONNX Softplus.

    With the table T of 20 fraction bits, and powers of two that give both terms the fraction bits
    of the finer one::

        t = T(round_shift(|x|, frac - 16))                         20 bits
        y = shift_saturate(max(x, 0) * first + t * second,         52 -> 32
                           max(frac, 20) - out_frac)

    Error at most 2**-18 plus half a unit.
    """
    t = _of_magnitude(r, c.places, x, "softplus")
    return r.shift_saturate(
        r.product(r.larger(x, 0), c.first) + r.product(t, c.second), c.second_shift
    )


def mish(r: Reader[V], c: Constants[V | int], x: V, _: V, /) -> V:
    """``x * tanh(log(1 + exp(x)))``; ONNX Mish.

    G, tanh of the softplus, has no symmetry: its table of 20 fraction bits is of both signs::

        a = max(round_shift(x, frac - 16) + 16 * 2**16, 0)
        y = shift_saturate(x * G(a), 20 + frac - out_frac)    53 -> 32 bits

    Error at most ``|x| * 2**-18`` plus half a unit.
    """
    return r.shift_saturate(r.product(x, _of_both_signs(r, c, x, "mish")), c.second_shift)


def elu(r: Reader[V], c: Constants[V | int], x: V, _: V, /) -> V:
    """``x`` where it is positive, else ``exp(x) - 1``; ONNX Elu, and a part of xIELU.

    With the table T of 20 fraction bits, of the negative side alone, a power of two and a negative
    one, which give both terms the fraction bits of the finer one::

        t = T(max(round_shift(x, frac - 16) + 16 * 2**16, 0))      21 bits
        y = shift_saturate(max(x, 0) * first + t * second,         52 -> 32
                           max(frac, 20) - out_frac)

    Error at most 2**-18 plus half a unit.
    """
    t = _of_both_signs(r, c, x, "elu")
    return r.shift_saturate(
        r.product(r.larger(x, 0), c.first) + r.product(t, c.second), c.second_shift
    )


def _of_magnitude(r: Reader[V], places: V | int, x: V, table: str) -> V:
    return r.lookup(table, r.round_shift(r.cut(abs(x)), places))


def _of_both_signs(r: Reader[V], c: Constants[V | int], x: V, table: str) -> V:
    a = r.larger(r.round_shift(r.cut(x), c.places) + (WHOLE << ARGUMENT_FRAC), 0)
    return r.lookup(table, a)


def _both_sides(r: Reader[V], c: Constants[V | int], x: V, table: str) -> V:
    """A table of |x| with the other side from ``G(-x) = 1 - G(x)``, 20 fraction bits."""
    g = _of_magnitude(r, c.places, x, table)
    return r.cut(r.select(x, -g + (1 << GATE_FRAC), g))


def _odd(r: Reader[V], places: V | int, x: V) -> V:
    g = _of_magnitude(r, places, x, "tanh")
    return r.cut(r.select(x, -g, g))


# Products and sums


def softcap(r: Reader[V], c: Constants[V | int], x: V, _: V, /) -> V:
    """``cap * tanh(x * inverse)``: bounds scores or logits smoothly.

    ::

        a = shift_saturate(x * inverse.mantissa, inverse.exponent + frac - 16)     57 -> 32
        g = tanh(a)                                                        21 bits and sign
        y = shift_saturate(g * cap.mantissa, 20 + cap.exponent - out_frac) 46 -> 32 bits

    `inverse` is one over the cap; `cap` is the cap (for attention scores times log2(e), as
    `softmax` wants them). Error at most ``cap * 2**-16`` plus half a unit. Saturations are those of
    the result. Stands for Div, Tanh, Mul (final logits) and for the softcap attribute of the
    attention operators.
    """
    a = r.cut(r.shift_saturate(r.product(x, c.first), c.first_shift, counted=False))
    return r.shift_saturate(r.product(_odd(r, 0, a), c.second), c.second_shift)


def mul(r: Reader[V], c: Constants[V | int], x: V, y: V, /) -> V:
    """``shift_saturate(a * b, shift)``: product 63 -> 32 bits; ONNX Mul of two vectors.

    `shift` is the sum of the operands' fraction bits minus the result's.
    """
    return r.shift_saturate(r.product(x, y), c.second_shift)


def add(r: Reader[V], c: Constants[V | int], x: V, y: V, /) -> V:
    """``saturate(a + b)``, 33 -> 32 bits; ONNX Add (bias, residual). Fraction bits are equal."""
    return r.saturate(x + y)


def scale(r: Reader[V], c: Constants[V | int], x: V, _: V, /) -> V:
    """A product with a constant; ONNX Mul by a scalar.

    ``shift_saturate(x * factor.mantissa, factor.exponent + shift)``, product 57 -> 32 bits;
    `shift` is the fraction bits of `x` minus the result's.
    """
    return r.shift_saturate(r.product(x, c.second), c.second_shift)


def clip(r: Reader[V], c: Constants[V | int], x: V, _: V, /) -> V:
    """``max(min(shift_saturate(x, frac - out_frac), high), low)``; the limits of SwiGLU.

    Bounds are mantissas of 24 bits and a sign, shifted left by up to 8, with the fraction bits of
    the result: ``low = first << first_shift``, ``high = second << second_shift``. Saturations are
    those of the shift.
    """
    low, high = r.lift(c.first) << c.first_shift, r.lift(c.second) << c.second_shift
    return r.larger(r.smaller(r.shift_saturate(x, c.places), high), low)


def _bounds(fractions: Sequence[int], into: int, given: Sequence[Real]) -> Constants[int]:
    """The nearest bounds; those beyond 32 bits are the largest ones."""
    low, high = (_bound(one, into) for one in given)
    return Constants(*low, *high, fractions[0] - into)


def _bound(real: Real, fraction: int) -> tuple[int, int]:
    exact = Fraction(real.mantissa) * Fraction(2) ** (fraction - real.exponent)
    limit = (1 << 31) - (1 << 8)
    value = min(max(round(exact), -limit), limit)
    shift = max(0, abs(value).bit_length() - 24)
    return round(Fraction(value, 1 << shift)), shift


def _shifted(own: int, fractions: Sequence[int], into: int, _: Sequence[Real]) -> Constants[int]:
    """Of a product of elements, and of a table's value with `own` fraction bits."""
    return Constants(second_shift=own + sum(fractions) - into, places=fractions[0] - ARGUMENT_FRAC)


def _by_factor(fractions: Sequence[int], into: int, given: Sequence[Real]) -> Constants[int]:
    (factor,) = given
    return Constants(second=factor.mantissa, second_shift=factor.exponent + fractions[0] - into)


def _by_cap(fractions: Sequence[int], into: int, given: Sequence[Real]) -> Constants[int]:
    inverse, cap = given
    return Constants(
        inverse.mantissa,
        inverse.exponent + fractions[0] - ARGUMENT_FRAC,
        cap.mantissa,
        GATE_FRAC + cap.exponent - into,
    )


def _of_table(fractions: Sequence[int], into: int, _: Sequence[Real]) -> Constants[int]:
    return Constants(second_shift=GATE_FRAC - into, places=fractions[0] - ARGUMENT_FRAC)


def _aligned(sign: int, fractions: Sequence[int], into: int, _: Sequence[Real]) -> Constants[int]:
    """Of a sum of the element and a table's value, or of a difference."""
    finer = max(fractions[0], GATE_FRAC)
    return Constants(
        first=1 << (finer - fractions[0]),
        second=sign << (finer - GATE_FRAC),
        second_shift=finer - into,
        places=fractions[0] - ARGUMENT_FRAC,
    )


def _square(fractions: Sequence[int], into: int, _: Sequence[Real]) -> Constants[int]:
    return Constants(second_shift=2 * fractions[0] - into)


_erf = np.vectorize(math.erf, otypes=[np.float64])


def _gate(kind: str, table: str, real: Callable[[Samples], Samples]) -> Elementwise:
    """``x * G(x)`` with ``G(-x) = 1 - G(x)``, and the table of its G."""
    body, derive = partial(gate, table=table), partial(_shifted, GATE_FRAC)
    return Elementwise(kind, body, derive, table=table, family="gate", real=lambda x: x * real(x))


def _sigmoid(x: Samples) -> Samples:
    return 1 / (1 + np.exp(-x))


_ACTIVATIONS = (
    _gate("silu", "sigmoid", _sigmoid),
    _gate(
        "gelu_tanh",
        "gelu_tanh",
        lambda x: 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    ),
    _gate("gelu_erf", "gelu_erf", lambda x: 0.5 * (1 + _erf(x / math.sqrt(2)))),
    _gate("quick_gelu", "quick_gelu", lambda x: _sigmoid(1.702 * x)),
    Elementwise("relu", relu, partial(_shifted, 0), real=lambda x: np.maximum(x, 0)),
    Elementwise("relu2", relu2, _square, real=lambda x: np.maximum(x, 0) ** 2),
    Elementwise("sigmoid", sigmoid, _of_table, table="sigmoid", real=_sigmoid),
    Elementwise("tanh", tanh, _of_table, table="tanh", real=np.tanh),
    Elementwise(
        "softplus",
        softplus,
        partial(_aligned, 1),
        table="softplus",
        real=lambda x: np.logaddexp(x, 0.0),
    ),
    Elementwise(
        "elu",
        elu,
        partial(_aligned, -1),
        table="elu",
        real=lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
    ),
    Elementwise(
        "mish",
        mish,
        partial(_shifted, GATE_FRAC),
        table="mish",
        real=lambda x: x * np.tanh(np.logaddexp(x, 0.0)),
    ),
)
ACTIVATIONS = {one.name: one for one in _ACTIVATIONS}
"""The kinds of `rom.activate`."""

ADD = Elementwise("add", add, lambda fractions, into, given: Constants(), 2)
MUL = Elementwise("mul", mul, partial(_shifted, 0), 2)
SCALE = Elementwise("scale", scale, _by_factor, reals=1)
SOFTCAP = Elementwise("softcap", softcap, _by_cap, reals=2, table="tanh")
CLIP = Elementwise("clip", clip, _bounds, reals=2)

ELEMENTWISE = ACTIVATIONS | {one.name: one for one in (ADD, MUL, SCALE, SOFTCAP, CLIP)}
"""The elementwise operators by name."""
