"""Attention between its two products: scores, softmax's numerators, the sum's reciprocal."""

from __future__ import annotations

from collections.abc import Callable

from intaglio.dialects.fixed_point import FIXED_BITS
from intaglio.dialects.formats import PLACES
from intaglio.dialects.formulas.products import requantize
from intaglio.dialects.formulas.quantise import FormatValues, quantize, reciprocal
from intaglio.dialects.formulas.reader import Groups, P, Reader, ScaleOf, V

SCORE_FRAC = 16
"""Fraction bits of attention scores."""
SLOPE_FRAC = 24
"""Fraction bits of what a score loses for each token between the query and the key."""
PROBABILITY_FRAC = 24
"""Fraction bits of softmax's numerators and of their sum."""

WEIGHT_BITS = 24
"""Of a numerator times its value's scale, before it becomes a byte at a place."""
BYTE = 255
"""The largest code there."""
UNIT = 1 << 23
"""Mantissa of a power of two, as a scale."""

_LOWEST = -(1 << (FIXED_BITS - 1))
_FAR = 1 << 20


def score_scale(r: Reader[V], dot: V, query: ScaleOf[V], key: ScaleOf[V], shift: V | int) -> V:
    """Products of queries and keys as attention scores, Fixed with 16 fraction bits.

    ::

        qs = multiply(q_scale, factor)                               one a head
        c  = multiply(qs, k_scale)                                   one a score
        t  = round_shift(dots, shift)                                39 bits
        s  = shift_saturate(t * c.mantissa, c.exponent - shift - 16) 63 -> 32 bits

    `softmax` takes scores to the base 2, so `factor` is the softmax scale times log2(e). With a
    soft cap it is the softmax scale alone, and `softcap` follows, which brings log2(e) in. `query`
    is ``qs``.
    """
    more = -r.lift(shift) - SCORE_FRAC
    return requantize(r, dot, r.multiply(query, key), shift, more)


def distance_loss(r: Reader[V], slope: V, distance: V) -> V:
    """``round_shift(slope * distance, 8)``: 24 and 16 fraction bits, 50 -> 42 bits."""
    return r.round_shift(r.product(slope, distance), SLOPE_FRAC - SCORE_FRAC)


def sloped(r: Reader[V], score: V, loss: V) -> V:
    """``saturate(score - loss)``: a score to the base 2 after what its distance takes (ALiBi).

    `loss` is `distance_loss` of the head's slope and of how many tokens the key lies before the
    query. Saturations count.
    """
    return r.saturate(score - loss)


def exp2(r: Reader[V], d: V) -> V:
    """``2**24 * 2**(-d / 2**16)`` for d >= 0, as `softmax` states it."""
    d = r.assume(d, 0, (1 << 33) - 1)
    p = r.cut(r.lookup("exp2", d & 0xFFFF))
    # Beyond 25 places nothing of 24 bits is left.
    places = r.smaller(d >> 16, 25)
    return (p + p + (r.lift(1) << places)) >> (places + 1)


def softmax(
    r: Groups[V, P],
    score: Callable[[P], V],
    value: Callable[[P], ScaleOf[V]],
    form: FormatValues[V | int],
    seen: Callable[[P], V] | None = None,
    sink: V | None = None,
) -> tuple[Callable[[P], V], ScaleOf[V], V]:
    """Softmax's numerators times the values' scales, quantised, and the sum of the numerators.

    Over the tokens j that the mask lets through (the others have ``p = w = 0``)::

        m = max(s[j], sink)
        p = round_shift(exp2((m - s[j]) & 0xffff), (m - s[j]) >> 16)      24 bits, 1.0 is 2**24 - 1
        total = sum(p) (+ the same of the sink)                           24 bits + log2(T + 1)
        e0 = min exponent of v_scale (of scales that are not 0)
        w = round_shift(p * v_scale.mantissa, 17 + v_scale.exponent - e0) 31 bits (product 48)
        codes, scale = quantize(w, frac = 7 + e0), unsigned

    The real numerator times the value's scale is ``w * 2**-(7 + e0)``; dividing by the sum is left
    to the scale of the result (`reciprocal_scale`). The relative error of `p` is below 2**-21 plus
    2**-25 of the largest. When nothing is let through all codes, the scale and the total are 0.

    `seen` is -1 for tokens that the mask lets through, else 0. Stands for Softmax inside
    GroupQueryAttention and its kin.
    """

    def visible(at: P) -> V:
        return score(at) if seen is None else r.select(seen(at), score(at), _LOWEST)

    def power(at: P) -> V:
        # A scale of 0 and a token that is not seen have no say in the common exponent.
        mantissa, exponent = value(at)
        used = -mantissa if seen is None else -(mantissa & seen(at))
        return r.select(used, exponent, _FAR)

    m, e0 = r.sweep(lambda at: (visible(at), power(at)), "largest", "least")
    if sink is not None:
        m = r.larger(m, sink)

    def numerator(at: P) -> tuple[V, V, V]:
        p = exp2(r, m - visible(at))
        if seen is not None:
            p = r.assume(p & seen(at), 0, (1 << 24) - 1)
        # A round_shift by a positive number.
        places = r.assume(r.smaller(power(at) - e0, 32), 0, 32) + 16
        w = ((r.product(p, value(at).mantissa) >> places) + 1) >> 1
        w = r.assume(w, 0, (1 << 31) - 1)
        return w, p, w

    w, (total, largest) = r.keep(numerator, "sum", "largest")
    if sink is not None:
        total = total + exp2(r, m - sink)
    codes, scale = quantize(r, w, largest, e0 + 7, form, False)
    return codes, scale, total


def place_of(r: Reader[V], w: V) -> V:
    """Where the byte of a weight of 24 bits stands: ``clip(4 * floor((bit_length(w) - 5) / 4), 0,
    16)``, so that at least 5 significant bits are left of all that are 16 or more."""
    return r.larger(((r.bit_length(w) - 5) >> 2) << 2, PLACES[0])


def byte_at(r: Reader[V], w: V, place: V) -> V:
    """``min(255, round_shift(w, place))``."""
    return r.smaller(r.round_shift(w, place), BYTE)


def weight(r: Reader[V], p: V, value: ScaleOf[V], e0: V) -> V:
    """A numerator times its value's scale, in units that all such scales are below 2**24 of::

    w = min(round_shift(p * v_scale.mantissa, 24 + v_scale.exponent - e0), 2**24 - 1)
    """
    places = r.assume(r.smaller(value.exponent - e0, 32), 0, 32) + WEIGHT_BITS - 1
    w = ((r.product(p, value.mantissa) >> places) + 1) >> 1
    return r.assume(r.smaller(w, (1 << WEIGHT_BITS) - 1), 0, (1 << WEIGHT_BITS) - 1)


def softmax_places(
    r: Groups[V, P],
    score: Callable[[P], V],
    value: Callable[[P], ScaleOf[V]],
    seen: Callable[[P], V] | None = None,
    sink: V | None = None,
) -> tuple[Callable[[P], V], ScaleOf[V], V]:
    """`softmax`, of which each weight becomes a byte at one of five places, with no largest one.

    ::

        m, p, total, e0      as in `softmax`
        w = weight(p, v_scale, e0)                              24 bits (product 48)
        place = place_of(w)                                     0, 4, 8, 12 or 16
        code = byte_at(w, place)                                8 bits
        scale = 2**-e0                                          of code << place

    So weights of less than 1/510 of the largest keep 5 to 8 significant bits too, down to 2**-20 of
    what the largest scale of a value would give; a code is off by at most 1/32 of itself, or half
    a unit of 2**-24. The scales of values are not 0.

    Returns:
        ``code << place`` of each place, the scale, the total.
    """

    def visible(at: P) -> V:
        return score(at) if seen is None else r.select(seen(at), score(at), _LOWEST)

    def power(at: P) -> V:
        exponent = value(at).exponent
        return exponent if seen is None else r.select(seen(at), exponent, _FAR)

    m, e0 = r.sweep(lambda at: (visible(at), power(at)), "largest", "least")
    if sink is not None:
        m = r.larger(m, sink)

    def numerator(at: P) -> tuple[V, V]:
        p = exp2(r, m - visible(at))
        if seen is not None:
            p = r.assume(p & seen(at), 0, (1 << 24) - 1)
        w = weight(r, p, value(at), e0)
        place = place_of(r, w)
        return byte_at(r, w, place) << place, p

    integer, (total,) = r.keep(numerator, "sum")
    if sink is not None:
        total = total + exp2(r, m - sink)
    return integer, ScaleOf(r.lift(UNIT), e0 + 23), total


def reciprocal_scale(r: Reader[V], total: V, frac: V | int) -> ScaleOf[V]:
    """One over a positive number of `frac` fraction bits, as a scale; relative error below 2**-21.

    ``z = 24 - bit_length(total)``, ``mn = shift_normal(total, z)``, mantissa
    ``reciprocal(max(mn, 2**23))``, exponent ``47 - frac - z``. The attention's result is
    ``requantize(weighted_sum(...), multiply(scale, reciprocal_scale(total)), 0, ...)``.
    """
    z = r.cut(r.normalise(total))
    mantissa = reciprocal(r, r.cut(r.shift_normal(total, z)))
    return ScaleOf(mantissa, -(z + frac) + 47)
