"""Codes with an exponent a block, and factors of norms, against unbounded integers."""

from __future__ import annotations

from decimal import Decimal, localcontext
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from intaglio.dialects import semantics as sem
from intaglio.dialects.codes import Matrix, pack
from intaglio.dialects.fixed_point import Real, Saturations, Scale
from intaglio.dialects.formats import FORMATS
from intaglio.dialects.formulas.blocks import LEAST_AT_MOST, integer_fraction, least_exponent

settings.register_profile("unit", max_examples=60, deadline=None)
settings.load_profile("unit")

INT32 = 1 << 31
EDGES = [s * ((1 << b) + d) for b in range(3, 32) for d in (-1, 0, 1) for s in (1, -1)]
FIXED = st.one_of(
    st.integers(-INT32, INT32 - 1),
    st.integers(-(2**20), 2**20),
    st.integers(-300, 300),
    st.sampled_from([x for x in EDGES if -INT32 <= x < INT32]),
    # Ties of every exponent, and the largest magnitudes that a step of three quarters reaches.
    st.integers(0, 23).flatmap(
        lambda e: st.integers(-128, 127).map(lambda c: (2 * c + 1) << e >> 1)
    ),
    st.integers(0, 23).flatmap(
        lambda e: st.integers(-2, 2).map(lambda d: min((765 << e) // 8 + d, INT32 - 1))
    ),
)
VECTOR = st.lists(FIXED, min_size=1, max_size=12)
BY_BLOCK = sorted(name for name, one in FORMATS.items() if one.by_block)


def rounded(value: Fraction) -> int:
    """Half up."""
    return (value + Fraction(1, 2)).__floor__()


def slow_blocks(x: list[int], low: int) -> tuple[list[Fraction], int]:
    """Real values of half8's codes, in units of those of x, and how many are beyond the window.

    A step of three quarters is taken where 127.5 of it reach the largest magnitude, and above it
    ends in whole units.
    """
    m = max(map(abs, x))
    e = min(max(m.bit_length() - 7, low), low + 15)
    half = m <= Fraction(3, 4) * Fraction(255, 2) * 2**e and e > 0
    step = Fraction(3 if half else 4, 4) * 2**e
    values: list[Fraction] = []
    for v in x:
        if half:
            # 4/3 has 16 places behind the point.
            code = rounded(Fraction(v * 87381, 1 << (e + 16)))
            assert abs(code - v / step) <= Fraction(1, 2) + abs(v / step) * Fraction(1, 1 << 17)
        else:
            code = rounded(v / step)
        values.append(max(-127, min(127, code)) * step)
    return values, sum(abs(v) > (1 << (low + 22)) - 1 for v in x)


def slow_wide(x: list[int], low: int, fmt: str) -> list[int]:
    """What a wide block's codes stand for in units of those of x: 16 bits, powers of two, and no
    more than 127 steps of the largest exponent of 8 bits."""
    m = max(map(abs, x))
    e = min(max(m.bit_length() - 15, low), low + 7)
    most = min(32767 << e, 127 << (low + 15))
    to_step = rounded if fmt == "half8" else round
    return [max(-most, min(most, to_step(Fraction(v, 1 << e)) << e)) for v in x]


def ocp_mxint8(x: list[Fraction], least: int) -> list[Fraction]:
    """MXINT8 of the OCP Microscaling formats 1.0: elements are multiples of 2**-6 up to 127 / 64,
    the scale is the power of two of the largest magnitude, which is at least 2**least here. Ties go
    to the even element."""
    m = max(map(abs, x))
    scale = least
    while m >= Fraction(2) ** (scale + 1):
        scale += 1
    unit = Fraction(2) ** (scale - 6)
    return [max(-127, min(127, round(v / unit))) * unit for v in x]


@given(st.lists(VECTOR, min_size=1, max_size=3), st.integers(0, LEAST_AT_MOST))
@example([[-INT32, INT32 - 1, 0]], 0)
@example([[-INT32, INT32 - 1, 1]], LEAST_AT_MOST)
@example([[0, 0]], 0)
@example([[95, 96, -95]], 0)
@example([[191, 3, -3]], 0)
def test_half_steps(rows: list[list[int]], low: int) -> None:
    width = min(map(len, rows))
    blocks = [row[:width] for row in rows]
    fraction = integer_fraction(16, low, 4)
    assert least_exponent(16, fraction, 4) == low
    counter = Saturations()
    x = np.array(blocks).ravel()
    q = sem.quantize_blocks(x, "half8", width, 16, fraction, counter)
    expected = [slow_blocks(block, low) for block in blocks]
    unit = Fraction(1 << low, 4)
    assert [v * unit for v in q.codes.tolist()] == [v for values, _ in expected for v in values]
    assert counter.count == sum(beyond for _, beyond in expected)
    assert max(map(abs, q.codes.tolist())) <= FORMATS["half8"].magnitude
    assert Fraction(int(q.scale.mantissa[0])) / Fraction(2) ** int(q.scale.exponent[0]) == (
        Fraction(1) / Fraction(2) ** fraction
    )
    together = sem.quantize_blocks(np.array(blocks), "half8", width, 16, fraction)
    assert together.codes.ravel().tolist() == q.codes.tolist()


@pytest.mark.parametrize("fmt", BY_BLOCK)
@given(st.lists(st.integers(-INT32, INT32 - 1), min_size=1, max_size=80), st.integers(0, 4))
@example([1, -2, 3, INT32 - 1], 4)
@example([5] * 75, 4)
@example([INT32 - 1, -INT32, *range(70)], 3)
def test_the_last_block_is_shorter(fmt: str, x: list[int], size: int) -> None:
    """It has a step of its own elements, and no element of its own counts twice or not at all."""
    size, given_counter, counter = 1 << size, Saturations(), Saturations()
    q = sem.quantize_blocks(np.array([x, x[::-1]]), fmt, size, 16, 16, given_counter)
    for vector, integers in zip((x, x[::-1]), q.codes.tolist(), strict=True):
        parts = [vector[first : first + size] for first in range(0, len(x), size)]
        each = [
            sem.quantize_blocks(np.array(part), fmt, len(part), 16, 16, counter).codes
            for part in parts
        ]
        assert integers == np.concatenate(each).tolist()
    assert given_counter.count == counter.count
    assert q.scale.mantissa.shape == (2, 1)


@given(VECTOR, st.integers(0, LEAST_AT_MOST))
@example([-INT32, INT32 - 1], 9)
@example([254, 255, 253, 1, 3, 5], 0)
@example([0, 0], 3)
def test_mxint8_is_that_of_ocp(x: list[int], low: int) -> None:
    fraction = integer_fraction(16, low, 1)
    counter = Saturations()
    q = sem.quantize_blocks(np.array(x), "mxint8", len(x), 16, fraction, counter)
    found = [Fraction(v << low) for v in q.codes.tolist()]
    reach = (1 << (low + 22)) - 1
    if max(map(abs, x)) <= reach:
        assert found == ocp_mxint8([Fraction(v) for v in x], low + 6)
    assert counter.count == sum(abs(v) > reach for v in x)
    assert all(abs(v) <= 127 << (low + 15) for v in found)


@pytest.mark.parametrize("fmt", BY_BLOCK)
@given(
    st.lists(st.tuples(VECTOR, st.booleans()), min_size=1, max_size=4),
    st.integers(0, LEAST_AT_MOST),
)
@example([([-INT32, INT32 - 1, 0], True)], 0)
@example([([INT32 - 1, 1 << 30, (1 << 30) - 1], True)], LEAST_AT_MOST)
@example([([(32512 << 7) - 1, 32512 << 7, (32513 << 7), 63], True), ([5, 5, 5, 5], False)], 0)
@example([([32767, -32768, 1, 0], True), ([32639, 32640, 1, 0], True)], 0)
def test_wide_blocks(fmt: str, given_blocks: list[tuple[list[int], bool]], low: int) -> None:
    """Each as in unbounded integers; the others are what they are without wide ones beside them."""
    width, steps = min(len(block) for block, _ in given_blocks), FORMATS[fmt].steps
    parts = [block[:width] for block, _ in given_blocks]
    wide = {n for n, (_, is_wide) in enumerate(given_blocks) if is_wide}
    fraction = integer_fraction(16, low, steps)
    counter = Saturations()
    x = np.array(parts).ravel()
    q = sem.quantize_blocks(x, fmt, width, 16, fraction, counter, wide)
    narrow = sem.quantize_blocks(x, fmt, width, 16, fraction)
    for n, part in enumerate(parts):
        mine = q.codes[n * width : (n + 1) * width].tolist()
        if n in wide:
            assert [(v << low) // steps for v in mine] == slow_wide(part, low, fmt)
        else:
            assert mine == narrow.codes[n * width : (n + 1) * width].tolist()
    # Sums are no wider for them.
    assert max(map(abs, q.codes.tolist())) <= FORMATS[fmt].magnitude
    assert counter.count == sum(abs(v) > (1 << (low + 22)) - 1 for part in parts for v in part)
    assert q.blocks is not None
    assert (q.blocks.integers == q.codes).all()
    twice = sem.quantize_blocks(np.array([x, x]), fmt, width, 16, fraction, None, wide)
    assert twice.codes.tolist() == [q.codes.tolist()] * 2


def test_a_wide_block_keeps_small_elements() -> None:
    """Beside an outlier a narrow block's small elements have few bits, a wide one's have eight
    more."""
    x = np.array([1 << 20, 77, -1234, 40000])
    for wide, most in (((), 1 << 13), ((0,), 1 << 5)):
        q = sem.quantize_blocks(x, "mxint8", 4, 16, integer_fraction(16, 2, 1), None, wide)
        assert np.abs((q.codes << 2) - x).max() <= most


def test_no_block_of_that_number() -> None:
    with pytest.raises(ValueError, match="2 is no block of 2"):
        sem.quantize_blocks(np.arange(8), "half8", 4, wide={2})


@pytest.mark.parametrize("fmt", BY_BLOCK)
def test_the_window_ends(fmt: str) -> None:
    """The largest magnitude that the window reaches is no saturation, one more is one."""
    steps, low = FORMATS[fmt].steps, 4
    fraction = integer_fraction(16, low, steps)
    for more, count in ((0, 0), (1, 1)):
        counter = Saturations()
        x = np.array([(1 << 26) - 1 + more, 7, -5, 0])
        q = sem.quantize_blocks(x, fmt, 4, 16, fraction, counter)
        assert q.codes[0] == FORMATS[fmt].magnitude
        assert counter.count == count


@pytest.mark.parametrize(("steps", "most"), [("half8", 1 / 2 * 4 / 3), ("mxint8", 1)])
def test_error_of_a_code(steps: str, most: float) -> None:
    """An element is at most half a step away, or a whole one where the largest is cut to 127; a
    step is at most 1/64 (powers of two) or 1/85 (three quarters too) of the largest magnitude."""
    rng = np.random.default_rng(5)
    x = rng.integers(-(1 << 20), 1 << 20, (4000, 8)) >> rng.integers(0, 12, (4000, 1))
    q = sem.quantize_blocks(x, steps, 8, 16, integer_fraction(16, 0, FORMATS[steps].steps))
    error = np.abs(q.codes / FORMATS[steps].steps - x).max(-1)
    largest = np.abs(x).max(-1)
    assert (error <= np.maximum(largest / 64 * most, 0.5) * (1 + 2**-10)).all()


@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([2, 4, 8]),
    st.sampled_from(BY_BLOCK),
    st.integers(1, 6),
    st.sampled_from([1, 2, 4, 8]),
)
def test_products_of_blocks_are_exact(
    seed: int, bits: int, fmt: str, count: int, block: int
) -> None:
    rng = np.random.default_rng(seed)
    columns, rows = count * block, 3
    x = rng.choice([-INT32, INT32 - 1, 1, -7, 95, 12345, 1 << 22], columns)
    q = sem.quantize_blocks(x, fmt, block, 16, integer_fraction(16, 3, FORMATS[fmt].steps))
    scales = rng.choice([-32768, -5, 0, 1, 32767], (rows, count)).astype(np.int16)
    codes = rng.choice([0, 1, (1 << bits) - 1], (rows, columns))
    zero = int(rng.integers(0, 1 << bits))
    matrix = Matrix(pack(codes, bits), bits, columns, block, zero, scales, 14)
    expected = [
        sum(
            int(scales[n, k // block]) * (int(codes[n, k]) - zero) * int(q.codes[k])
            for k in range(columns)
        )
        for n in range(rows)
    ]
    assert sem.dot(q.codes, matrix, fmt).tolist() == expected
    width = sem.accumulator_bits(bits, columns, fmt)
    assert all(abs(y) < 1 << (width - 1) for y in expected)


@pytest.mark.parametrize(
    ("bits", "zero", "columns", "half8", "mxint8"),
    [
        (4, 8, 4096, 55, 53),
        (4, 8, 16384, 57, 55),
        (4, 8, 53248, 59, 57),
        (4, None, 4096, 56, 54),
        (4, None, 53248, 60, 58),
        (6, None, 53248, 62, 60),
        (8, None, 4096, 60, 58),
        (8, None, 16384, 62, 60),
        (2, 1, 4096, 53, 51),
    ],
)
def test_widths(bits: int, zero: int | None, columns: int, half8: int, mxint8: int) -> None:
    """A word of 7 bits more than a weight, 15 places, three or four quarters as 2 bits."""
    assert sem.accumulator_bits(bits, columns, "half8", zero=zero) == half8
    assert sem.accumulator_bits(bits, columns, "mxint8", zero=zero) == mxint8


@pytest.mark.parametrize(("columns", "bits"), [(28672, 63), (53248, 64)])
def test_sums_too_wide_are_refused(columns: int, bits: int) -> None:
    with pytest.raises(ValueError, match=f"needs {bits} bits, more than 62"):
        sem.accumulator_bits(8, columns, "half8")
    assert sem.accumulator_bits(8, columns, "mxint8") == bits - 2


# Factors of norms

EPS = st.sampled_from(
    [Real(0, 0), Real.of(1e-12), Real.of(1e-6), Real.of(1e-5), Real.of(0.5), Real.of(3e3)]
)


def close(found: Scale, x: list[int], eps: Real, frac: int) -> None:
    """A factor within 2**-21 of its definition, whose square is a fraction."""
    total = sum(v * v for v in x) + eps.fraction * len(x) * 4**frac
    mantissa, exponent = int(found.mantissa[0]), int(found.exponent[0])
    assert 1 << 23 <= mantissa < 1 << 24
    if total < 1:
        # What is added is rounded to the unit of squares: nothing is left, and nothing to scale.
        return
    with localcontext() as context:
        context.prec = 50
        # In units of x: 2**-frac of a real number.
        exact = Decimal(2) ** frac / (Decimal(total.numerator) / total.denominator).sqrt()
        got = Decimal(mantissa) / Decimal(2) ** exponent
        # An epsilon below a thousand units of squares is rounded to whole ones.
        rounding = Decimal("0.5") / (Decimal(total.numerator) / total.denominator)
        assert abs(got / exact - 1) <= Decimal(2) ** -21 + rounding


@given(VECTOR, st.integers(8, 22), EPS)
@example([-INT32] * 12, 16, Real(0, 0))
@example([0] * 4, 16, Real.of(1e-5))
@example([1], 16, Real(0, 0))
@example([0], 8, Real(0, 0))
@example([INT32 - 1, 1, 0], 22, Real.of(1e-12))
def test_rms_scale(x: list[int], frac: int, eps: Real) -> None:
    close(sem.rms_scale(np.array(x), eps, frac), x, eps, frac)
    both = sem.rms_scale(np.array([x, x[::-1]]), eps, frac)
    assert both.mantissa.shape == (2, 1)
    # Squares are added exactly, so in any order.
    assert both.mantissa[0] == both.mantissa[1]
    assert both.exponent[0] == both.exponent[1]


@pytest.mark.parametrize("n", [1, 3, 64, 4096, 16384])
@pytest.mark.parametrize("size", [1, 300, 1 << 16, (1 << 24) - 1, 1 << 24, (1 << 25) + 1, INT32])
def test_rms_scale_of_any_size(n: int, size: int) -> None:
    rng = np.random.default_rng(n)
    some = rng.integers(-size, size, n).tolist()
    some[0] = size - 1 or 1
    for x in (some, [-size] * n, [size - 1 or 1] * n):
        close(sem.rms_scale(np.array(x), Real.of(1e-5)), x, Real.of(1e-5), 16)


def test_rms_scale_refuses_wide_vectors() -> None:
    with pytest.raises(ValueError, match="16384"):
        sem.rms_scale(np.zeros(16385, int), Real.of(1e-5))


def test_a_folded_norm_is_the_norm() -> None:
    """The product of x times weights, times the factor, beside the product of the norm."""
    rng = np.random.default_rng(8)
    n, frac = 256, 16
    x = (rng.normal(size=n) * (3 << frac)).astype(np.int64)
    gamma = (rng.uniform(0.5, 2, n) * 1024).astype(np.int64)
    weights = rng.normal(size=n)
    factor = sem.rms_scale(x, Real.of(1e-5), frac)
    weighted = (x * gamma) >> 10
    folded = float((weighted / (1 << frac) * weights).sum() * factor.values[0] * np.sqrt(n))
    norm = sem.norm(x, gamma * 16, 10, Real.of(1e-5), frac) / (1 << frac)
    assert folded == pytest.approx(float((norm * weights).sum()), rel=1e-3)
    unit = Scale.of(Fraction(1, 1 << 18))
    one = sem.Quantized(x, Scale(unit.mantissa[None], unit.exponent[None]), "half8")
    scaled = sem.with_norm(one, factor).scale
    assert scaled.values[0] == factor.values[0] * 2.0**-18
