"""Fixed point: every function against the rule written with unbounded Python integers."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from math import floor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from intaglio.dialects.fixed_point import (
    Real,
    Saturations,
    Scale,
    bit_length,
    multiply,
    normalise,
    round_shift,
    saturate,
    shift_normal,
    shift_saturate,
)

settings.register_profile("unit", max_examples=60, deadline=None)
settings.load_profile("unit")

WORD = st.integers(-(2**63), 2**63 - 1)
NEAR = st.integers(-9, 9).flatmap(
    lambda d: st.integers(0, 62).flatmap(lambda b: st.sampled_from([(1 << b) + d, -(1 << b) + d]))
)
WORDS = st.lists(st.one_of(WORD, NEAR), min_size=1, max_size=20)
MANTISSA = st.one_of(
    st.integers(2**23, 2**24 - 1), st.sampled_from([2**23, 2**23 + 1, 2**24 - 1]), st.just(0)
)


def rounded(x: int, shift: int) -> int:
    return floor(Fraction(x) / Fraction(2) ** shift + Fraction(1, 2))


def clipped(x: int, bits: int) -> int:
    return max(-(1 << (bits - 1)), min((1 << (bits - 1)) - 1, x))


@given(WORDS, st.integers(0, 90))
def test_round_shift_by_a_number(xs: list[int], shift: int) -> None:
    assert round_shift(np.array(xs), shift).tolist() == [rounded(x, shift) for x in xs]


@given(st.lists(st.tuples(st.one_of(WORD, NEAR), st.integers(0, 90)), min_size=2, max_size=20))
def test_round_shift_by_an_array(pairs: list[tuple[int, int]]) -> None:
    xs, shifts = (np.array(column) for column in zip(*pairs, strict=True))
    assert round_shift(xs, shifts).tolist() == [rounded(x, s) for x, s in pairs]


@given(
    st.lists(st.tuples(st.integers(-(2**31), 2**31), st.integers(-31, 70)), min_size=1, max_size=20)
)
def test_round_shift_in_both_directions(pairs: list[tuple[int, int]]) -> None:
    xs, shifts = (np.array(column) for column in zip(*pairs, strict=True))
    expected = [rounded(x, s) for x, s in pairs]
    assert round_shift(xs, shifts).tolist() == expected
    assert [int(round_shift(np.array([x]), s)[0]) for x, s in pairs] == expected


def test_round_shift_leaves_its_argument_alone() -> None:
    x = np.arange(-5, 5)
    for shift in (0, 1, -1, np.arange(10)):
        round_shift(x, shift)
        shift_saturate(x, shift)
    assert x.tolist() == list(range(-5, 5))


@given(WORDS, st.integers(2, 32))
def test_saturate_counts_what_it_clips(xs: list[int], bits: int) -> None:
    counter = Saturations()
    expected = [clipped(x, bits) for x in xs]
    assert saturate(np.array(xs), bits, counter).tolist() == expected
    assert counter.count == sum(a != b for a, b in zip(xs, expected, strict=True))


@given(
    st.lists(st.tuples(st.one_of(WORD, NEAR), st.integers(-90, 90)), min_size=1, max_size=20),
    st.sampled_from([8, 16, 32]),
)
def test_shift_saturate_has_unbounded_intermediates(
    pairs: list[tuple[int, int]], bits: int
) -> None:
    xs, shifts = (np.array(column) for column in zip(*pairs, strict=True))
    wide = [rounded(x, s) for x, s in pairs]
    expected = [clipped(x, bits) for x in wide]
    count = sum(a != b for a, b in zip(wide, expected, strict=True))
    counter = Saturations()
    assert shift_saturate(xs, shifts, bits, counter).tolist() == expected
    assert counter.count == count
    counter = Saturations()
    singles = [shift_saturate(np.array([x]), s, bits, counter).item() for x, s in pairs]
    assert singles == expected
    assert counter.count == count


@given(st.lists(st.one_of(st.integers(0, 2**63 - 1), NEAR.map(abs)), min_size=1))
def test_bit_length_and_normalise(xs: list[int]) -> None:
    lengths = [x.bit_length() for x in xs]
    assert bit_length(np.array(xs)).tolist() == lengths
    for bits in (16, 24):
        z = normalise(np.array(xs), bits).tolist()
        assert z == [bits - length for length in lengths]
        for x, shift in zip(xs, z, strict=True):
            assert x == 0 or 2 ** (bits - 1) <= x * Fraction(2) ** shift < 2**bits


@given(st.lists(st.integers(-(2**47), 2**47), min_size=1, max_size=9))
def test_shift_normal(xs: list[int]) -> None:
    z = 24 - max(abs(x) for x in xs).bit_length()
    expected = [max(1 - 2**24, min(2**24 - 1, rounded(x, -z))) for x in xs]
    assert shift_normal(np.array(xs), np.array([z])).tolist() == expected


def test_shift_normal_clips_what_rounds_up() -> None:
    x = np.array([2**25 - 1, 1 - 2**25, -(2**25) + 2])
    assert shift_normal(x, np.array([-1])).tolist() == [2**24 - 1, 1 - 2**24, 1 - 2**24]


@given(
    st.one_of(
        st.floats(allow_nan=False, allow_infinity=False),
        st.fractions(),
        st.decimals(allow_nan=False, allow_infinity=False, places=12),
    ),
    st.integers(2, 40),
)
def test_real_is_the_nearest_constant(value: float | Fraction | Decimal, bits: int) -> None:
    exact = Fraction(value)
    real = Real.of(value, bits)
    if not exact:
        assert real == Real(0, 0)
        return
    assert 1 << (bits - 1) <= abs(real.mantissa) < 1 << bits
    assert abs(real.fraction - exact) <= Fraction(2) ** -real.exponent / 2
    assert real.fraction * exact > 0


def test_real_of_notable_values() -> None:
    assert Real.of(1.0) == Real(2**23, 23)
    assert Real.of(Fraction(2**25 - 1)) == Real(2**23, -2)  # rounds up to a power of two
    assert Real.of(Fraction(2**24 + 1)) == Real(2**23, -1)  # a tie goes to the even mantissa
    assert Real.of(-0.75, 2) == Real(-3, 2)
    assert Real.of(np.float32(0.5)).value == 0.5
    for value in (float("nan"), float("inf"), Decimal("-Infinity")):
        with pytest.raises(ValueError, match="no fixed-point constant"):
            Real.of(value)


@given(st.lists(st.tuples(MANTISSA, st.integers(-99, 99)), min_size=1), MANTISSA)
def test_multiply_normalises(pairs: list[tuple[int, int]], other: int) -> None:
    mantissas, exponents = (np.array(column) for column in zip(*pairs, strict=True))
    product = multiply(Scale(mantissas, exponents), Scale(np.array([other]), np.array([7])))
    for (m, e), pm, pe in zip(pairs, *map(np.ndarray.tolist, product), strict=True):
        k = 24 if m * other >= 2**47 else 23
        assert pm == min(rounded(m * other, k), 2**24 - 1)
        assert pe == e + 7 - k
        if m and other:
            assert 2**23 <= pm < 2**24
            exact = Fraction(m * other) / Fraction(2) ** (e + 7)
            assert abs(pm / Fraction(2) ** pe / exact - 1) <= Fraction(1, 2**24)
        else:
            assert pm == 0


def test_scale_of_constants() -> None:
    scale = Scale.of(0.1)
    assert scale.values == pytest.approx(0.1, rel=2**-24)
    assert Scale.of(Real(3, 1)) == Scale.of(1.5)
    assert Scale.of(0).mantissa == 0
    with pytest.raises(ValueError, match="not negative"):
        Scale.of(-1.0)
