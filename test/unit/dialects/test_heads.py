"""Codes with an exponent and a step a head, against unbounded integers."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st

from intaglio.dialects import semantics as sem
from intaglio.dialects.fixed_point import SCALE_BITS, Scale
from intaglio.dialects.formulas import heads
from intaglio.dialects.formulas.arrays import Arrays
from intaglio.dialects.formulas.reader import ScaleOf

settings.register_profile("unit", max_examples=60, deadline=None)
settings.load_profile("unit")

INT32 = 1 << 31
FIXED = st.one_of(
    st.integers(-INT32, INT32 - 1),
    st.integers(-300, 300),
    # Where a step changes, and ties.
    st.integers(0, 24).flatmap(
        lambda e: st.integers(-2, 2).map(lambda d: min((765 << e) // 8 + d, INT32 - 1))
    ),
    st.integers(0, 23).flatmap(
        lambda e: st.integers(-128, 127).map(lambda c: (2 * c + 1) << e >> 1)
    ),
)
HEAD = st.lists(FIXED, min_size=1, max_size=9)


def real(scale: Scale, head: int) -> Fraction:
    """What codes are times."""
    return Fraction(int(scale.mantissa[head])) / Fraction(2) ** int(scale.exponent[head])


@given(st.lists(HEAD, min_size=1, max_size=3), st.integers(8, 30))
@example([[-INT32, INT32 - 1, 0]], 8)
@example([[0, 0]], 30)
@example([[1, -1], [191, 3], [192, 3]], 16)
@example([[127, -127], [128, 2], [95, 96]], 16)
def test_codes_are_the_nearest_of_the_finest_step(rows: list[list[int]], frac: int) -> None:
    width = min(map(len, rows))
    rows = [row[:width] for row in rows]
    q = sem.quantize_heads(np.array(rows).ravel(), "half8", frac, len(rows))
    codes = q.codes.reshape(len(rows), width).tolist()
    for head, (row, found) in enumerate(zip(rows, codes, strict=True)):
        m = max(map(abs, row))
        step = real(q.scale, head) * 2**frac
        exponent = 0
        while m >= 1 << (exponent + 7) and exponent < 24:
            exponent += 1
        powers = [Fraction(2) ** exponent]
        if exponent:
            powers.append(powers[0] * 3 / 4)
        # The finest one whose 127 and a half reach all of the head.
        assert step == min([s for s in powers if 2 * m <= 255 * s] or powers[:1])
        for x, code in zip(row, found, strict=True):
            assert -127 <= code <= 127
            bound = Fraction(1, 2) if 2 * abs(x) <= 255 * step else 1
            # Four thirds have 16 places behind the point.
            assert abs(x / step - code) <= bound + abs(x / step) / (1 << 17)


@given(HEAD, st.integers(8, 30))
@example([-INT32], 8)
@example([0], 30)
def test_a_scale_is_a_byte(row: list[int], frac: int) -> None:
    scale = sem.quantize_heads(np.array(row), "half8", frac).scale
    assert 1 << (SCALE_BITS - 1) <= int(scale.mantissa[0]) < 1 << SCALE_BITS
    r = Arrays()
    byte = heads.byte_of(r, ScaleOf(scale.mantissa, scale.exponent))
    # A byte of 0 is no head's.
    assert 0 < int(byte[0]) < 256
    back = heads.scale_of(r, byte)
    assert (back.mantissa.tolist(), back.exponent.tolist()) == (
        scale.mantissa.tolist(),
        scale.exponent.tolist(),
    )


def test_sums_are_those_of_the_codes() -> None:
    assert sem.query_key_bits(128, "half8", "half8") == 22
    assert sem.query_key_bits(128, "int16", "half8") == 30
    assert sem.weighted_sum_bits(4096, "uint8", "half8") == 28
    q, k = np.full((2, 3), 127), np.full((1, 4, 3), -127)
    assert sem.query_key(q, k, "half8", "half8").tolist() == [[-3 * 127 * 127] * 4] * 2


def test_scores_are_those_of_real_numbers() -> None:
    rng = np.random.default_rng(3)
    x = rng.integers(-(1 << 20), 1 << 20, (5, 2 * 16))
    q = sem.quantize_heads(x, "half8", 16, 2)
    k = sem.quantize_heads(x[::-1], "half8", 16, 2)
    keys = k.codes.reshape(5, 2, 16).swapaxes(0, 1)
    scale = Scale(k.scale.mantissa.T, k.scale.exponent.T)
    dots = sem.query_key(q.codes.reshape(5, 2, 16), keys, "half8", "half8")
    scores = sem.score_scale(dots, q.scale, scale, sem.Real.of(2.0**-12), 0)
    wanted = np.einsum("shd,thd->sht", q.values.reshape(5, 2, 16), k.values.reshape(5, 2, 16))
    assert (
        np.abs(scores / 2**16 - wanted * 2.0**-12).max()
        <= 2.0**-17 + 2**-22 * np.abs(wanted * 2.0**-12).max()
    )
