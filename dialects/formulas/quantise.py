"""Quantisation: codes with a scale for each group, or with one that a compile knows."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from functools import cache
from typing import Generic, NamedTuple

from intaglio.dialects.fixed_point import Real
from intaglio.dialects.formats import FORMATS
from intaglio.dialects.formulas.reader import Groups, K_co, P, Reader, ScaleOf, V


class FormatValues(NamedTuple, Generic[K_co]):
    """The constants of a format that `quantize` needs, as a reader has them."""

    limit: K_co | int
    limit_bits: K_co | int
    inverse: K_co | int
    """Mantissa of one over the limit."""
    inverse_exponent: K_co | int


@cache
def format_values(fmt: str) -> FormatValues[int]:
    """A format's, as integers."""
    limit = FORMATS[fmt].limit
    inverse = Real.of(Fraction(1, limit))
    return FormatValues(limit, limit.bit_length(), inverse.mantissa, inverse.exponent)


def reciprocal(r: Reader[V], normal: V) -> V:
    """``reciprocal(max(normal, 2**23))``, of a mantissa that is normalised or 0."""
    return r.lookup("reciprocal", r.larger(r.assume(normal, 0, (1 << 24) - 1), 1 << 23))


def quantize(
    r: Groups[V, P],
    x: Callable[[P], V],
    m: V,
    frac: V | int,
    form: FormatValues[V | int],
    fp8: bool,
) -> tuple[Callable[[P], V], ScaleOf[V]]:
    """Scale each group so that its largest magnitude gets the format's largest code.

    For a group with ``m = max|x|`` and the format's limit L of l bits (int8: 127, int16: 32767,
    uint8: 255, uint16: 65535, fp8: 448 * 2**9)::

        z    = 24 - bit_length(m)                          signed 6 bits
        xs   = shift_normal(x, z)                          24 bits and sign
        mn   = shift_normal(m, z)                          24 bits
        r    = reciprocal(max(mn, 2**23))                  24 bits
        rl   = round_shift(r * L, l)                       24 bits (product 24 + l)
        code = round_shift(xs * rl, 47 - l)                product 48 bits and sign
        fp8:   code = e4m3_encode(round_shift(xs * rl, 39 - l), 8)    argument 26 bits and sign
        scale = multiply((mn, z + frac), 1 / L)            24 bits

    No code exceeds L: ``r`` is never so large that the group's maximum rounds beyond it. A group
    of zeros has codes 0 and scale (0, 0). The scale's error is at most 2**-22 of it; a code is off
    by at most 1/2 + L * 2**-20 steps (fp8: half a step of E4M3 at the value).

    Stands for DynamicQuantizeLinear (symmetric, a scale per token and group), for the activation
    side of MatMulNBits with accuracy_level 4, and for the absmax chain of BitNet graphs.
    """
    z = r.cut(r.normalise(m))
    mn = r.cut(r.shift_normal(m, z))
    rl = r.round_shift(r.product(r.cut(reciprocal(r, mn)), form.limit), form.limit_bits)
    rl = r.cut(r.assume(rl, 0, (1 << 24) - 1))
    places = r.lift(form.limit_bits)

    def code(at: P) -> V:
        p = r.product(r.cut(r.shift_normal(x(at), z)), rl)
        if not fp8:
            return r.round_shift(p, -places + 47)
        # At most 448 in units of 2**-17: the reciprocal never rounds further up.
        return r.e4m3_encode(r.cut(r.assume(r.round_shift(p, -places + 39), -448 << 17, 448 << 17)))

    inverse = ScaleOf(r.lift(form.inverse), r.lift(form.inverse_exponent))
    scale = r.multiply(ScaleOf(mn, z + frac), inverse)
    return code, ScaleOf(scale.mantissa, r.select(-m, scale.exponent, 0))


def quantize_static(
    r: Reader[V], x: V, inverse: V | int, places: V | int, low: V | int, high: V | int, fp8: bool
) -> V:
    """Codes with a scale known at compile time: ``clip(round(x / scale))``.

    ``code = clip(round_shift(x * inverse.mantissa, inverse.exponent + frac), low, high)`` with the
    format's whole range (int8: -128 to 127), product 56 bits; fp8:
    ``t = shift_saturate(x * inverse.mantissa, inverse.exponent + frac - 8, 32)``,
    ``code = e4m3_encode(t, 8)``, which clips to 448. One product of an element by a constant: no
    maximum, no table. `places` is what the product is shifted by. Counts clipped elements.

    Stands for QuantizeLinear and for a GroupQueryAttention cache with scales in the graph.
    """
    t = r.cut(r.shift_saturate(r.cut(x * inverse), places, counted=False))
    if not fp8:
        return r.clip(t, low, high)
    # Up to half a step beyond 448 is rounding, not saturation.
    r.count(-abs(t) + (464 << 17))
    return r.e4m3_encode(t)
