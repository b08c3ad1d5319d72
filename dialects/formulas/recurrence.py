"""Linear attention: what a token makes of a head's state, and what the state becomes.

The state of a head is a matrix S of `STATE_BITS` mantissas with one exponent e: a real element is
``S * 2**-e``. Nothing is added to it before it is read, so one pass over it serves the key and the
query; a second one writes it.
"""

from __future__ import annotations

import math
from typing import Generic, NamedTuple

from intaglio.dialects.fixed_point import Real
from intaglio.dialects.formulas.products import requantize
from intaglio.dialects.formulas.reader import Reader, ScaleOf, V

STATE_BITS = 16
"""Width of a mantissa of a state, signed; the most negative one is not used."""
STATE_LIMIT = (1 << (STATE_BITS - 1)) - 1
DECAY_FRAC = 24
"""Fraction bits of a decay's factor, and those at which its logarithm loses nothing."""
MATCH_FRAC = 20
"""Fraction bits of the product of a key and a query."""
GUARD = 8
"""Places that the two terms of a new element keep until they are added."""
FINEST = 60
"""The largest exponent of a state: what is smaller than its steps is nothing."""

_LOG2E = Real.of(math.log2(math.e))
_SMALL = 1 << (DECAY_FRAC - 6)
_FAR = (1 << 31) - 1


def decay_factor(r: Reader[V], logarithm: V, frac: V | int) -> V:
    """``2**24 * exp(logarithm)`` of a logarithm that is not positive; of others 2**24.

    ::

        x = min(round_shift(max(-logarithm, 0), frac - 24), 2**31 - 1)            31 bits
        t = round_shift(x * log2e.mantissa, log2e.exponent)                       32 bits
        p = exp2 of t's upper 16 fraction bits                                    24 bits
        g = p - ((p * (t & 255) * 177) >> 32), shifted by the whole part of t     half up
        x < 2**18:  h = (x * x) >> 25;  g = 2**24 - x + h - ((h * x * 21845) >> 40)

    A state forgets slowly where the logarithm is near 0, and an error of the factor counts over its
    difference to 1: there it is a polynomial, with an error below one unit of 2**-24; else below
    2**-20 of it.
    """
    x = r.larger(r.round_shift(-logarithm, r.lift(frac) - DECAY_FRAC), 0)
    x = r.cut(r.assume(r.smaller(x, _FAR), 0, _FAR))
    t = r.round_shift(r.product(x, _LOG2E.mantissa), _LOG2E.exponent)
    t = r.cut(r.assume(t, 0, (1 << 33) - 1))
    p = r.cut(r.lookup("exp2", (t >> 8) & 0xFFFF))
    low = r.product(t & 0xFF, 177)
    p = r.cut(r.assume(p - (r.product(p, low) >> 32), 0, (1 << 24) - 1))
    places = r.smaller(t >> DECAY_FRAC, 25)
    fast = (p + p + (r.lift(1) << places)) >> (places + 1)
    small = r.assume(r.smaller(x, _SMALL), 0, _SMALL)
    h = r.product(small, small) >> 25
    slow = -small + h - (r.product(r.product(h, small), 21845) >> 40) + (1 << DECAY_FRAC)
    return r.cut(r.assume(r.select(x - _SMALL, slow, fast), 0, 1 << DECAY_FRAC))


class Recalled(NamedTuple, Generic[V]):
    """What a token reads of a head: an element of the result, and one of what it will add."""

    output: V
    news: V


def recalled(
    r: Reader[V],
    by_key: V,
    by_query: V,
    key: ScaleOf[V],
    query: ScaleOf[V],
    match: V,
    value: V,
    factor: V,
    beta: V | None,
    shift: V | int,
    more: V | int,
    beta_frac: V | int,
) -> Recalled[V]:
    """An element j of a head, from the exact sums ``by_key = sum_i k_i S_ij`` and `by_query`.

    ::

        a = requantize(by_key, key, shift, more)                    Fixed of the result's fraction
        u = saturate(value - round_shift(a * factor, 24))           delta rules; else value
        w = shift_saturate(u * beta, beta_frac)                     delta rules; else value
        b = requantize(by_query, query, shift, more)
        o = saturate(round_shift(b * factor, 24) + shift_saturate(match * w, 20))

    The result is that of the state after the token, ``factor * S'q + (k'q) w``: it does not wait
    for it. `value` has the result's fraction, `match` is `matched`; without `beta` there is no
    delta rule.
    """
    news = value
    if beta is not None:
        a = r.cut(requantize(r, by_key, key, shift, more))
        u = r.cut(r.saturate(value - r.round_shift(a * factor, DECAY_FRAC)))
        news = r.cut(r.shift_saturate(r.product(u, beta), beta_frac))
    b = r.cut(requantize(r, by_query, query, shift, more))
    own = r.cut(r.shift_saturate(r.product(match, news), MATCH_FRAC))
    return Recalled(r.saturate(r.round_shift(b * factor, DECAY_FRAC) + own), news)


def matched(r: Reader[V], dot: V, key: ScaleOf[V], query: ScaleOf[V], shift: V | int) -> V:
    """A head's key times its query, with 20 fraction bits, of the exact sum of their codes."""
    return requantize(r, dot, r.multiply(key, query), shift, -r.lift(shift) - MATCH_FRAC)


class News(NamedTuple, Generic[V]):
    """What is added to a head's state, and the exponent that it gets.

    Attributes:
        places: that ``w * key.mantissa`` is shifted by, to `STATE_BITS`.
        exponent: of the state, from now on.
        old_shift, new_shift: of both terms of an element, with `GUARD` places more.
    """

    places: V
    exponent: V
    old_shift: V
    new_shift: V


def news(
    r: Reader[V],
    largest: V,
    key: ScaleOf[V],
    limit: V | int,
    frac: V | int,
    top: V,
    exponent: V,
    factor: V,
) -> News[V]:
    """The exponent that holds a head's new state for certain, before it is known.

    ::

        p = largest * key.mantissa;  places = max(bit_length(p) - 15, 0)
        e1 = exponent + 24;                        t1 = top * factor               39 bits
        e2 = frac + key.exponent - places;         t2 = added(largest) * limit     30 bits
        c  = min(e1, e2), of the terms that are not 0
        s  = (t1 >> (e1 - c)) + (t2 >> (e2 - c)) + 1
        exponent = min(15 + c - bit_length(s), e1, e2, FINEST)

    No element of the state is larger than ``s * 2**-c``, so none leaves its width. Of a state that
    is and stays 0 the exponent does not change.

    Args:
        r: the reader.
        largest: magnitude of the head's `Recalled.news`.
        key: the scale of the key's codes.
        limit: the largest of the key's codes.
        frac: fraction bits of the news.
        top: the largest magnitude of the state's mantissas.
        exponent: of the state.
        factor: of the decay.
    """
    p = r.product(largest, key.mantissa)
    places = r.cut(r.larger(r.bit_length(p) - (STATE_BITS - 1), 0))
    size = added(r, largest, key.mantissa, places)
    t1, t2 = r.cut(r.product(top, factor)), r.cut(r.product(size, limit))
    far = r.lift(1 << 11)
    e1 = r.select(-t1, exponent + DECAY_FRAC, far)
    e2 = r.select(-t2, r.lift(frac) + key.exponent - places, far)
    c = r.cut(r.smaller(e1, e2))
    first = t1 >> r.smaller(r.assume(e1 - c, 0, 1 << 12), 63)
    second = t2 >> r.smaller(r.assume(e2 - c, 0, 1 << 12), 63)
    s = r.cut(r.assume(first + second + 1, 0, (1 << 41) - 1))
    new = r.smaller(r.smaller(c, c + (STATE_BITS - 1) - r.bit_length(s)), FINEST)
    new = r.cut(r.select(-(t1 + t2), new, exponent))
    old_shift = r.select(-t1, r.smaller(e1 - new, 63), 0)
    new_shift = r.select(-t2, r.smaller(e2 - new, 63), 0)
    return News(places, new, r.cut(old_shift), r.cut(new_shift))


def added(r: Reader[V], w: V, mantissa: V, places: V) -> V:
    """``min(max(round_shift(w * mantissa, places), -limit), limit)``: a factor of `STATE_BITS`."""
    return _limited(r, r.round_shift(r.product(w, mantissa), places))


def remembered(r: Reader[V], state: V, key: V, factor: V, added: V, one: News[V]) -> V:
    """An element of the new state.

    ::

        t = round_shift((S * factor) << 8, old_shift) + round_shift((k_i * added_j) << 8, new_shift)
        S = min(max(round_shift(t, 8), -limit), limit)            products 40 and 31 bits
    """
    old = r.round_shift(r.product(state, factor) << GUARD, one.old_shift)
    new = r.round_shift(r.product(key, added) << GUARD, one.new_shift)
    return _limited(r, r.round_shift(old + new, GUARD))


def _limited(r: Reader[V], x: V) -> V:
    return r.larger(r.smaller(x, STATE_LIMIT), -STATE_LIMIT)
