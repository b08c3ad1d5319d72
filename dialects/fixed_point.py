"""Fixed point in 64-bit integers: rounding shifts, saturation, normalised scales, constants.

The whole arithmetic of a compiled model rests on the handful of functions in this file. All of
them work on numpy int64 arrays of any shape, elementwise, without floating point; all of them are
small datapaths in hardware (an adder, a barrel shifter, a leading-one detector).

Conventions:

* *Fixed*: an int32 payload (held in int64 arrays) with a static number of fraction bits `frac`;
  the real value is ``x * 2**-frac``.
* *Scale*: a non-negative real as ``mantissa * 2**-exponent``, where the mantissa is 0 or has
  exactly 24 bits (``2**23 <= mantissa < 2**24``: "normalised").
* *Real*: the same for one compile-time constant, with a sign.
* Rounding is half up (towards plus infinity): one adder, no look at the sign or the last bit. The
  only exceptions are E4M3 encoding (half to even, as IEEE 754 does) and compile-time constants
  (half to even).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

Ints: TypeAlias = npt.NDArray[np.int64]

SCALE_BITS = 24
"""Width of a normalised scale mantissa, and of the values a table takes and gives."""

SCALE_BYTES = 4
"""Bytes of a scale in memory: its mantissa, and 8 bits of exponent."""

FIXED_BITS = 32
"""Width of a Fixed payload."""


@dataclass
class Saturations:
    """Counts the elements that saturation changed; one object serves as many calls as wanted."""

    count: int = 0


def round_shift(x: Ints, shift: int | Ints) -> Ints:
    """Divide by a power of two, rounding half up: ``floor(x / 2**shift + 1/2)``.

    Args:
        x: any shape, any int64 value.
        shift: a number, or an array that broadcasts with `x`. Negative shifts multiply and must
            not leave int64 (`shift_saturate` is for results that may). Every right shift is exact,
            also those beyond 64.

    Returns:
        An int64 array; `x` itself when the shift is the number 0.
    """
    if not isinstance(shift, int) and np.size(shift) == 1 and np.ndim(shift) <= x.ndim:
        shift = int(np.asarray(shift).item())
    if isinstance(shift, int):
        if shift <= 0:
            return x << -shift if shift else x
        return _rounded(x >> min(shift - 1, 63))
    shift = np.asarray(shift)
    if (shift <= 0).all():
        return x << -shift
    # Beyond 64 every value rounds to 0, as it does at 64.
    right = np.clip(shift, 0, 64)
    if (right > 0).all():
        return _rounded(x >> (right - 1))
    last = np.minimum(right, 1)
    y = (x << np.maximum(-shift, 0)) >> (right - last)
    carry = y & last
    y >>= last
    y += carry
    return y


def _rounded(y: Ints) -> Ints:
    """Half of `y`, rounded up; the carry is added last, so that nothing can overflow."""
    carry = y & 1
    y >>= 1
    y += carry
    return y


def saturate(x: Ints, bits: int, saturations: Saturations | None = None) -> Ints:
    """Clip to the signed range ``[-2**(bits-1), 2**(bits-1) - 1]``, counting what was clipped."""
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    y = np.minimum(x, high)
    np.maximum(y, low, out=y)
    if saturations is not None:
        saturations.count += int(np.count_nonzero(y != x))
    return y


def shift_saturate(
    x: Ints,
    shift: int | Ints,
    bits: int = FIXED_BITS,
    saturations: Saturations | None = None,
) -> Ints:
    """`round_shift`, then `saturate`, as if the intermediate had unlimited width.

    A left shift clips before and after: a value outside the range stays outside when shifted left,
    and a non-zero one shifted by `bits` or more leaves it. So no intermediate is wider than
    ``2 * bits``.

    Args:
        x: any shape, any int64 value.
        shift: as in `round_shift`, any number in either direction.
        bits: width of the result, at most 32.
        saturations: counts the elements that did not fit.
    """
    if not isinstance(shift, int) and np.size(shift) == 1 and np.ndim(shift) <= x.ndim:
        shift = int(np.asarray(shift).item())
    if isinstance(shift, int):
        if shift >= 0:
            return saturate(round_shift(x, shift), bits, saturations)
        return saturate(saturate(x, bits) << min(-shift, bits), bits, saturations)
    shift = np.asarray(shift)
    left = np.clip(-shift, 0, bits)
    if not left.any():
        return saturate(round_shift(x, shift), bits, saturations)
    first = np.where(left > 0, saturate(x, bits), round_shift(x, np.maximum(shift, 0)))
    return saturate(first << left, bits, saturations)


def bit_length(x: Ints) -> Ints:
    """Bits needed for each element, 0 for 0: a leading-one detector. Elements must be >= 0."""
    # Clearing the bit under each set bit keeps the leading one and keeps the conversion to float64,
    # which is only used to read the exponent, from rounding up to the next power of two.
    return np.frexp((x & ~(x >> 1)).astype(np.float64))[1].astype(np.int64)


def normalise(m: Ints, bits: int = SCALE_BITS) -> Ints:
    """The shift ``z`` with ``2**(bits-1) <= m * 2**z < 2**bits``; negative for wide `m`.

    Elements of `m` must be >= 0; for 0 the result is `bits` (and ``0 * 2**z`` stays 0).
    """
    return bits - bit_length(m)


def shift_normal(x: Ints, z: Ints, bits: int = SCALE_BITS) -> Ints:
    """Multiply by ``2**z``, where `z` is the `normalise` of the largest magnitude in the group.

    Exact for ``z >= 0``; otherwise rounds half up and clips what rounded up to ``2**bits`` in
    magnitude to ``2**bits - 1``.

    Args:
        x: any shape, ``|x| * 2**z < 2**bits``.
        z: broadcasts with `x`.

    Returns:
        ``|y| < 2**bits``: `bits` bits and a sign.
    """
    y = round_shift(x, -z)
    if np.any(z < 0):
        limit = (1 << bits) - 1
        y = np.minimum(y, limit)
        np.maximum(y, -limit, out=y)
    return y


@dataclass(frozen=True)
class Real:
    """A compile-time constant: ``mantissa * 2**-exponent``, the mantissa signed."""

    mantissa: int
    exponent: int

    @staticmethod
    def of(value: float | Decimal | Fraction, bits: int = SCALE_BITS) -> Real:
        """The nearest constant whose mantissa has exactly `bits` bits and a sign; 0 is (0, 0).

        The rounding is exact (rational arithmetic) and half to even, so the result is the same on
        every machine.

        Raises:
            ValueError: infinity or not a number.
        """
        if not isinstance(value, Fraction) and not math.isfinite(value):
            raise ValueError(f"no fixed-point constant stands for {value}")
        exact = Fraction(value if isinstance(value, int | Fraction | Decimal) else float(value))
        if not exact:
            return Real(0, 0)
        size = abs(exact)
        # 2**(power-1) <= size < 2**power
        power = size.numerator.bit_length() - size.denominator.bit_length()
        if size >= Fraction(2) ** power:
            power += 1
        exponent = bits - power
        mantissa = round(size * Fraction(2) ** exponent)
        if mantissa == 1 << bits:
            mantissa, exponent = mantissa >> 1, exponent - 1
        return Real(mantissa if exact > 0 else -mantissa, exponent)

    @property
    def fraction(self) -> Fraction:
        """The exact value."""
        return self.mantissa / Fraction(2) ** self.exponent

    @property
    def value(self) -> float:
        """The value as a float (exact for mantissas up to 53 bits)."""
        return float(self.fraction)


class Scale(NamedTuple):
    """Non-negative reals ``mantissa * 2**-exponent``; two int64 arrays of one shape.

    Each mantissa is 0 or normalised to 24 bits. The exponent of a zero has no meaning.
    """

    mantissa: Ints
    exponent: Ints

    @staticmethod
    def of(value: Real | float | Decimal | Fraction) -> Scale:
        """One scale (arrays without axes), from a constant.

        Raises:
            ValueError: a negative constant.
        """
        real = Real.of(value.fraction if isinstance(value, Real) else value)
        if real.mantissa < 0:
            raise ValueError(f"a scale is not negative: {real.value}")
        return Scale(np.array(real.mantissa, np.int64), np.array(real.exponent, np.int64))

    @property
    def values(self) -> npt.NDArray[np.float64]:
        """The values as float64, exact: for reports and tests, never for arithmetic."""
        return np.ldexp(self.mantissa.astype(np.float64), -self.exponent)


def multiply(a: Scale, b: Scale) -> Scale:
    """The product of two scales (broadcast), normalised again.

    ``p = a.mantissa * b.mantissa`` has 47 or 48 bits; ``k = 23 + (p >> 47)``; the mantissa is
    ``min(round_shift(p, k), 2**24 - 1)`` and the exponent ``a.exponent + b.exponent - k``. The
    relative error is at most 2**-24.
    """
    product = a.mantissa * b.mantissa
    k = 23 + (product >> 47)
    # round_shift(p, 23 + top): the product is positive and far from the end of int64.
    mantissa = ((product >> 22) + (k - 22)) >> (k - 22)
    return Scale(np.minimum(mantissa, (1 << 24) - 1), a.exponent + b.exponent - k)
