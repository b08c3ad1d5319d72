"""The norms: a sweep for the mean, one for the largest magnitude, one for the squares, the result.

`norm_constants` turns epsilon into what hardware knows of it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Generic, NamedTuple

from intaglio.dialects.fixed_point import FIXED_BITS, SCALE_BITS, Real
from intaglio.dialects.formulas.reader import Groups, K_co, P, Reader, ScaleOf, V

UNIT_FRAC = 24
"""Fraction bits of a normalised vector before its weight is applied."""
NORM_WIDTH = 1 << 14
"""Longest vector that the norms take."""


class NormConstants(NamedTuple):
    """What a norm's hardware knows of epsilon: see `norm_constants`."""

    epsilon: Real
    largest_shift: int


@functools.cache
def norm_constants(eps: Real, width: int, frac: int = 16, centred: bool = False) -> NormConstants:
    """Epsilon in the units of the sum of squares, and the largest normalising shift it allows.

    ``epsilon = eps * width * 4**frac`` (`layer_norm`, centred: ``eps * width**3 * 4**frac``),
    rounded to 24 bits; ``largest_shift`` is such that ``epsilon * 4**largest_shift < 2**61``, and
    at most 24. Vectors so small that the limit matters are shifted left by less: nothing is lost,
    as left shifts are exact.
    """
    fraction = eps.fraction * width ** (3 if centred else 1) * 4**frac
    epsilon = Real.of(fraction)
    limit = SCALE_BITS if not epsilon.mantissa else (37 + epsilon.exponent) // 2
    return NormConstants(epsilon, min(SCALE_BITS, limit))


class NormValues(NamedTuple, Generic[K_co]):
    """`NormConstants` and the last shift, as a reader has them."""

    epsilon: K_co | int
    epsilon_exponent: K_co | int
    largest_shift: K_co | int
    shift: K_co | int
    """``24 + gamma_exponent - out_frac``."""


@functools.cache
def norm_values(eps: Real, width: int, frac: int, centred: bool, more: int) -> NormValues[int]:
    """As integers; `more` is ``gamma_exponent - out_frac``.

    Raises:
        ValueError: vectors of this width are too long.
    """
    if width > NORM_WIDTH:
        raise ValueError(f"norms take up to {NORM_WIDTH} elements, not {width}")
    epsilon, largest_shift = norm_constants(eps, width, frac, centred)
    return NormValues(epsilon.mantissa, epsilon.exponent, largest_shift, UNIT_FRAC + more)


WORD = 32
"""Bits of the lower part of a sum of squares that is wider than 64."""
EPSILON_BITS = 61
"""Of what a norm's epsilon adds to that part."""


def square(r: Reader[V], x: V) -> tuple[V, V]:
    """``x * x`` of 24 significant bits, as ``high * 2**32 + low``.

    ::

        e  = max(0, bit_length(x) - 24);  xs = shift_normal(x, -e)      24 bits and sign
        xs * xs << 2 * e                                                64 bits

    The error is at most 2**-23 of it. Sums over n <= 2**14 elements have 78 bits: the high part 46,
    the low part 46.
    """
    e = r.larger(r.bit_length(abs(x)) - SCALE_BITS, 0)
    xs = r.shift_normal(x, -e)
    squared, twice = r.product(xs, xs), e << 1
    return squared >> (-twice + WORD), (squared << twice) & ((1 << WORD) - 1)


def rms_scale(r: Reader[V], high: V, low: V, epsilon: V, frac: V | int) -> ScaleOf[V]:
    """``1 / sqrt(sum(x**2) + n * eps)`` of a sum of `square`, without a largest magnitude.

    ::

        t = high * 2**32 + low + epsilon                     79 bits
        h = floor((bit_length(t) - 31) / 2)                  -16 to 24
        v = floor(t / 4**h)                                  32 bits, in [2**30, 2**32)
        r = rsqrt(max(v, 2**30))                             24 bits
        scale = (r, 39 + h - frac)

    `epsilon` is ``round_shift`` of that of `norm_constants`, below 2**61. The relative error is at
    most 2**-21.

    Stands for the factor of SimplifiedLayerNormalization and RMSNormalization, whose weight is
    applied before.
    """
    low = low + epsilon
    high, low = high + (low >> WORD), low & ((1 << WORD) - 1)
    bits = r.select(-high, r.bit_length(high) + WORD, r.bit_length(low))
    h = (bits - 31) >> 1
    twice = h << 1
    above = r.smaller(r.larger(-twice + WORD, 0), WORD)
    upper = (high << above) >> r.larger(twice - WORD, 0)
    lower = (low << r.larger(-twice, 0)) >> r.larger(twice, 0)
    v = r.assume(upper + lower, 0, (1 << WORD) - 1)
    root = r.lookup("rsqrt", r.larger(v, 1 << 30))
    return ScaleOf(root, h - frac + 39)


def norm_epsilon(eps: Real, width: int, frac: int) -> int:
    """What `rms_scale` adds to the squares of vectors.

    Raises:
        ValueError: vectors of this width are too long, or this is too much for its adder.
    """
    values = norm_values(eps, width, frac, False, 0)
    mantissa, places = int(values.epsilon), int(values.epsilon_exponent)
    added = mantissa << -places if places <= 0 else (mantissa + (1 << (places - 1))) >> places
    if added.bit_length() > EPSILON_BITS:
        raise ValueError(f"an epsilon of {float(eps.fraction):g} is beyond the sum of squares")
    return added


def weight_fraction(frac: int, width: int) -> int:
    """Fraction bits of ``x * weight * sqrt(n)`` that are as large as those of x: about half of the
    bits of n less."""
    return frac - (width.bit_length() - 1) // 2


def centred(r: Groups[V, P], x: Callable[[P], V], n: V | int) -> Callable[[P], V]:
    """`layer_norm`'s ``d = n * x - sum(x)``: sum 46 bits, d 47 bits, n <= 2**14; exact."""
    (total,) = r.sweep(lambda at: (x(at),), "sum")
    most = NORM_WIDTH << FIXED_BITS
    return lambda at: r.assume(r.product(x(at), n) - total, -most, most)


def norm(
    r: Groups[V, P], x: Callable[[P], V], gamma: Callable[[P], V], c: NormValues[V | int]
) -> Callable[[P], V]:
    """``x / sqrt(mean(x**2) + eps) * weight``, per group of n elements.

    ::

        m  = max|x|;  z = min(24 - bit_length(m), largest_shift)     largest_shift: norm_constants
        xs = shift_normal(x, z)                                      24 bits and sign
        ss = sum(xs * xs)                                            62 bits, n <= 2**14
        t  = ss + round_shift(epsilon, epsilon.exponent - 2 * z)     63 bits
        h  = floor((bit_length(t) - 31) / 2)                         -15 to 16
        v  = floor(t / 4**h)                                         32 bits, in [2**30, 2**32)
        r  = rsqrt(max(v, 2**30))                                    24 bits
        u  = round_shift(xs * r, 15 + h)       Q24: 25 bits and sign (product 48 and sign)
        y  = shift_saturate(u * gamma, 24 + gamma_exponent - out_frac)   50 -> 32 bits

    A vector of zeros gives zeros. The error of `u` is at most 2**-21 of its value plus 2**-23;
    relative to the root mean square the latter is sqrt(n) * 2**-23.

    Stands for SimplifiedLayerNormalization, RMSNormalization, its decomposition in exported
    graphs, and the per-head norms of queries and keys (``groups=heads``). Of `centred` elements,
    with ``norm_constants(..., centred=True)``, whose epsilon has the factor n**3 that makes the n
    in `d` cancel, it is LayerNormalization (``z`` is -23 to 24) but for the bias, and
    SkipLayerNormalization's norm; at last ``y = saturate(y + beta)``.

    `gamma` holds signed mantissas of the weight **times sqrt(n)**, at most 24 bits and a sign.
    """
    (m,) = r.sweep(lambda at: (abs(x(at)),), "largest")
    z = r.cut(r.smaller(r.normalise(m), c.largest_shift))

    def scaled(at: P) -> V:
        return r.cut(r.shift_normal(x(at), z))

    def square(at: P) -> tuple[V]:
        xs = scaled(at)
        return (r.assume(r.product(xs, xs), 0, 1 << 48),)

    (total,) = r.sweep(square, "sum")
    epsilon = r.lift(c.epsilon)
    t = total + r.round_shift(epsilon, -(z << 1) + c.epsilon_exponent)
    t = r.cut(r.assume(t, 0, (1 << 63) - 1))
    h = r.cut((r.bit_length(t) - 31) >> 1)
    twice = h << 1
    v = (t << r.larger(-twice, 0)) >> r.larger(twice, 0)
    root = r.cut(r.lookup("rsqrt", r.larger(r.assume(v, 0, (1 << 32) - 1), 1 << 30)))

    def element(at: P) -> V:
        u = r.round_shift(r.product(scaled(at), root), h + (39 - UNIT_FRAC))
        u = r.cut(r.assume(u, 1 - (1 << 25), (1 << 25) - 1))
        return r.shift_saturate(r.product(u, gamma(at)), c.shift)

    return element
