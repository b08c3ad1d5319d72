"""Shares of chosen experts, and what they make of their results."""

from __future__ import annotations

import math

from intaglio.dialects.fixed_point import Real
from intaglio.dialects.formulas.reader import Reader, ScaleOf, V
from intaglio.dialects.formulas.softmax import SCORE_FRAC, exp2

SHARE_FRAC = 24
"""Fraction bits of an expert's share."""
LOG2E = Real.of(math.log2(math.e))

_FAR = (1 << 31) - 1


def numerator(r: Reader[V], largest: V, logit: V, frac: V | int) -> V:
    """``2**24 * exp(logit - largest)`` of a logit that is no larger.

    ::

        d = min(round_shift(largest - logit, frac - 16), 2**31 - 1)           31 bits
        p = exp2(round_shift(d * log2e.mantissa, log2e.exponent))             24 bits

    The relative error of `p` is below 2**-15, from the rounding of `d`, and plus 2**-25 of 1.
    """
    d = r.smaller(r.round_shift(largest - logit, r.lift(frac) - SCORE_FRAC), _FAR)
    return exp2(r, r.round_shift(r.product(d, LOG2E.mantissa), LOG2E.exponent))


def share(r: Reader[V], p: V, reciprocal: ScaleOf[V]) -> V:
    """A numerator over their sum, with 24 fraction bits: ``round_shift(p * mantissa, exponent)``.

    `reciprocal` is `softmax.reciprocal_scale` of the sum. 1 is 2**24, give or take 8.
    """
    return r.round_shift(r.product(p, reciprocal.mantissa), reciprocal.exponent)


def weigh(r: Reader[V], y: V, share: V, places: V | int, residual: V | None) -> V:
    """An expert's result times its share, plus what others gave.

    ``saturate(shift_saturate(y * share, places) + residual)``, product 57 -> 32 bits; `places` are
    `SHARE_FRAC` and the fraction bits of `y`, less the result's.
    """
    weighed = r.shift_saturate(r.product(y, share), places)
    return weighed if residual is None else r.saturate(weighed + residual)
