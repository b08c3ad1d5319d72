"""Semantics: each function against its definition in unbounded Python integers, and accuracy.

The `slow_*` functions take one token and lists of integers and use no numpy. Where an intermediate
has a stated width they check it, so running them at the extremes proves that 64 bits suffice.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from intaglio.dialects import semantics as sem
from intaglio.dialects.codes import Matrix, e4m3_decode, e4m3_encode, pack
from intaglio.dialects.fixed_point import Real, Saturations, Scale, multiply
from intaglio.dialects.formats import FORMATS
from intaglio.dialects.formulas.elementwise import ACTIVATIONS, ELEMENTWISE
from intaglio.dialects.tables import lookup, table

GATE_KINDS = [kind for kind in ACTIVATIONS if kind not in ("sigmoid", "tanh")]

settings.register_profile("unit", max_examples=40, deadline=None)
settings.load_profile("unit")

INT32 = 1 << 31
FIXED = st.one_of(
    st.integers(-INT32, INT32 - 1),
    st.integers(-(2**20), 2**20),
    st.integers(-9, 9),
    st.sampled_from([-INT32, INT32 - 1, 0, 1, -1]),
)
SEEDS = st.integers(0, 2**32 - 1)
VECTOR = st.lists(FIXED, min_size=1, max_size=24)


# The definitions, one token at a time


def wires(x: int, bits: int) -> int:
    """Checks that `x` fits a signed number of `bits` bits."""
    assert -(1 << (bits - 1)) <= x < 1 << (bits - 1), (x, bits)
    return x


def rshift(x: int, s: int) -> int:
    return (x + (1 << (s - 1))) >> s if s > 0 else x << -s


def clip32(x: int) -> int:
    return max(-INT32, min(INT32 - 1, x))


def slow_lookup(name: str, a: int) -> int:
    t = table(name)
    i, f = a >> t.step_bits, a & ((1 << t.step_bits) - 1)
    i -= t.lo_index
    assert i >= 0
    if i >= len(t.entries) - 1:
        return t.entries[-1]
    return t.entries[i] + rshift((t.entries[i + 1] - t.entries[i]) * f, t.step_bits)


def slow_normal(x: int, z: int) -> int:
    return max(1 - 2**24, min(2**24 - 1, rshift(x, -z)))


def slow_multiply(a: tuple[int, int], b: tuple[int, int]) -> tuple[int, int]:
    product = a[0] * b[0]
    k = 24 if product >= 2**47 else 23
    return min(rshift(product, k), 2**24 - 1), a[1] + b[1] - k


def slow_quantize(x: list[int], fmt: str, frac: int) -> tuple[list[int], tuple[int, int]]:
    limit = FORMATS[fmt].limit
    bits = limit.bit_length()
    m = max(abs(v) for v in x)
    z = 24 - m.bit_length()
    mn = slow_normal(m, z)
    r = slow_lookup("reciprocal", max(mn, 2**23))
    rl = rshift(r * limit, bits)
    assert 0 <= rl < 2**24
    products = [wires(slow_normal(v, z) * rl, 49) for v in x]
    if fmt == "fp8":
        ts = [wires(rshift(p, 39 - bits), 27) for p in products]
        codes = e4m3_encode(np.array(ts), 8).tolist()
    else:
        codes = [rshift(p, 47 - bits) for p in products]
        assert all(abs(code) <= limit for code in codes)
    if not m:
        return codes, (0, 0)
    inverse = Real.of(Fraction(1, limit))
    return codes, slow_multiply((mn, z + frac), (inverse.mantissa, inverse.exponent))


def slow_unit(
    x: list[int], eps: Fraction, gamma: list[int], gamma_exponent: int, out_frac: int
) -> list[int]:
    """Both norms after centring; `eps` is in units of the sum of squares of `x`."""
    e = Real.of(eps)
    largest = min(24, (37 + e.exponent) // 2) if e.mantissa else 24
    m = max(abs(v) for v in x)
    z = min(24 - m.bit_length(), largest)
    xs = [wires(slow_normal(v, z), 25) for v in x]
    total = sum(v * v for v in xs)
    assert total < 2**62
    total = wires(total + rshift(e.mantissa, e.exponent - 2 * z), 64)
    half = (total.bit_length() - 31) // 2
    assert -16 <= half <= 16
    v = total >> (2 * half) if half >= 0 else total << (-2 * half)
    assert v < 2**32
    r = slow_lookup("rsqrt", max(v, 2**30))
    u = [wires(rshift(wires(v * r, 49), 15 + half), 26) for v in xs]
    return [
        clip32(rshift(wires(a * g, 51), 24 + gamma_exponent - out_frac))
        for a, g in zip(u, gamma, strict=True)
    ]


def slow_rms_norm(
    x: list[int], gamma: list[int], gamma_exponent: int, eps: Real, frac: int, out_frac: int
) -> list[int]:
    units = eps.fraction * len(x) * 4**frac
    return slow_unit(x, units, gamma, gamma_exponent, out_frac)


def slow_layer_norm(
    x: list[int],
    gamma: list[int],
    gamma_exponent: int,
    beta: list[int],
    eps: Real,
    frac: int,
    out_frac: int,
) -> list[int]:
    n, total = len(x), sum(x)
    d = [wires(n * v - total, 48) for v in x]
    y = slow_unit(d, eps.fraction * n**3 * 4**frac, gamma, gamma_exponent, out_frac)
    return [clip32(a + b) for a, b in zip(y, beta, strict=True)]


def slow_exp2(d: int) -> int:
    return rshift(slow_lookup("exp2", d & 0xFFFF), d >> 16)


def slow_softmax(
    scores: list[int],
    scales: list[tuple[int, int]],
    fmt: str,
    seen: list[bool],
    sink: int | None,
) -> tuple[list[int], tuple[int, int], int]:
    """One head of one token."""
    candidates = [s for s, ok in zip(scores, seen, strict=True) if ok]
    m = max(candidates + ([] if sink is None else [sink]), default=0)
    p = [slow_exp2(m - s) if ok else 0 for s, ok in zip(scores, seen, strict=True)]
    total = sum(p) + (0 if sink is None else slow_exp2(m - sink))
    exponents = [e for (v, e), ok in zip(scales, seen, strict=True) if ok and v]
    e0 = min(exponents, default=0)
    w = [
        rshift(a * v, 17 + e - e0) if ok and v else 0
        for a, (v, e), ok in zip(p, scales, seen, strict=True)
    ]
    assert all(0 <= a < 2**31 for a in w)
    codes, scale = slow_quantize(w, fmt, 7 + e0)
    return codes, scale, total


def slow_places(
    scores: list[int], scales: list[tuple[int, int]], seen: list[bool], sink: int | None
) -> tuple[list[int], int, int]:
    """One head of one token: integers, exponent of their unit, sum."""
    _, _, total = slow_softmax(scores, scales, "uint8", seen, sink)
    candidates = [s for s, ok in zip(scores, seen, strict=True) if ok]
    m = max(candidates + ([] if sink is None else [sink]))
    e0 = min(e for (_, e), ok in zip(scales, seen, strict=True) if ok)
    integers: list[int] = []
    for s, (v, e), ok in zip(scores, scales, seen, strict=True):
        w = min(rshift(slow_exp2(m - s) * v, 24 + e - e0), 2**24 - 1) if ok else 0
        # The lowest place at which a byte of at least 5 bits, or all of it, holds the weight.
        place = next(p for p in (0, 4, 8, 12, 16) if w < 1 << (p + 8) and (w < 1 << (p + 9)))
        while place and w < 1 << (place + 4):
            place -= 4
        byte = min(255, rshift(w, place))
        assert abs((byte << place) - w) <= max(1 << place >> 1, w >> 8)
        integers.append(byte << place)
    return integers, e0, total


def slow_gate(x: int, kind: str, frac: int, out_frac: int) -> int:
    if kind == "relu":
        return clip32(rshift(max(x, 0), frac - out_frac))
    if kind == "relu2":
        return clip32(rshift(wires(max(x, 0) ** 2, 64), 2 * frac - out_frac))
    if kind == "mish":
        g = slow_lookup("mish", max(rshift(x, frac - 16) + (16 << 16), 0))
        return clip32(rshift(wires(x * g, 53), 20 + frac - out_frac))
    if kind == "elu":
        t, finer = slow_lookup("elu", max(rshift(x, frac - 16) + (16 << 16), 0)), max(frac, 20)
        below = (t << (finer - 20)) if x < 0 else 0
        assert t == 0 or x < 0
        return clip32(rshift(wires((max(x, 0) << (finer - frac)) - below, 64), finer - out_frac))
    g = slow_lookup(ACTIVATIONS[kind].table, rshift(abs(x), frac - 16))
    if kind == "softplus":
        finer = max(frac, 20)
        terms = max(x, 0) << (finer - frac), g << (finer - 20)
        return clip32(rshift(wires(sum(terms), 64), finer - out_frac))
    g = 2**20 - g if x < 0 else g
    return clip32(rshift(wires(x * g, 53), 20 + frac - out_frac))


def decoded(code: int, fmt: str) -> int:
    return int(e4m3_decode(np.array(code))) if fmt == "fp8" else int(code)


# Quantisation


def scales_of(scale: Scale) -> list[tuple[int, int]]:
    pairs = zip(scale.mantissa.ravel().tolist(), scale.exponent.ravel().tolist(), strict=True)
    return [(m, e) for m, e in pairs]


@given(st.lists(VECTOR, min_size=1, max_size=4), st.sampled_from(sorted(FORMATS)))
@example([[-INT32, INT32 - 1, 0]], "int16")
@example([[-INT32]], "fp8")
@example([[0, 0]], "uint8")
def test_quantize(rows: list[list[int]], fmt: str) -> None:
    width = min(map(len, rows))
    x = np.array([row[:width] for row in rows])
    if FORMATS[fmt].low == 0:
        x = np.abs(x)
    expected = [slow_quantize(row, fmt, 16) for row in x.tolist()]
    batch = sem.quantize(x, fmt)
    assert batch.codes.tolist() == [codes for codes, _ in expected]
    assert scales_of(batch.scale) == [scale for _, scale in expected]
    grouped = sem.quantize(x.ravel(), fmt, groups=len(rows))
    assert grouped.codes.tolist() == batch.codes.ravel().tolist()
    assert scales_of(grouped.scale) == scales_of(batch.scale)
    assert grouped.scale.mantissa.shape == (len(rows),)


@pytest.mark.parametrize("fmt", sorted(FORMATS))
def test_quantize_gives_the_maximum_the_largest_code(fmt: str) -> None:
    # All 2**23 normalised maxima, as groups of one.
    limit = FORMATS[fmt].limit
    bits = limit.bit_length()
    for start in range(1 << 23, 1 << 24, 1 << 21):
        mn = np.arange(start, start + (1 << 21))
        r = lookup(table("reciprocal"), mn)
        rl = (r * limit + (1 << (bits - 1))) >> bits
        product = mn * rl
        if fmt == "fp8":
            t = (product + (1 << (38 - bits))) >> (39 - bits)
            assert (np.abs(t - (limit << 8)) < limit >> 5 << 8).all()
        else:
            assert ((product + (1 << (46 - bits))) >> (47 - bits) == limit).all()
            assert ((-product + (1 << (46 - bits))) >> (47 - bits) == -limit).all()


@pytest.mark.parametrize("fmt", ["int4", "int6", "int8", "int16", "fp8"])
@pytest.mark.parametrize("size", [1 / 4096, 1, 30000])
def test_quantize_accuracy(fmt: str, size: float) -> None:
    x = (np.random.default_rng(2).normal(size=(20, 512)) * size * 65536 / 5).astype(np.int64)
    q = sem.quantize(x, fmt)
    exact = x / 65536
    scale = np.abs(exact).max(-1) / FORMATS[fmt].limit
    assert np.abs(q.scale.values[:, 0] / scale - 1).max() < 2**-22
    steps = np.abs(q.values - exact) / scale[:, None]
    if fmt == "fp8":
        assert (steps <= np.maximum(np.abs(exact / scale[:, None]) * 2**-4, 0.5) + 0.3).all()
    else:
        assert steps.max() <= 0.5 + FORMATS[fmt].limit * 2**-20


@given(VECTOR, st.sampled_from(sorted(FORMATS)), st.floats(1e-4, 1e4), st.integers(8, 20))
def test_quantize_static(x: list[int], fmt: str, inverse: float, frac: int) -> None:
    real = Real.of(inverse)
    form = FORMATS[fmt]
    counter = Saturations()
    found = sem.quantize_static(np.array(x), fmt, real, frac, counter).tolist()
    if fmt == "fp8":
        ts = [clip32(rshift(wires(v * real.mantissa, 56), real.exponent + frac - 8)) for v in x]
        assert found == e4m3_encode(np.array(ts), 8).tolist()
        assert counter.count == sum(abs(t) > 464 << 17 for t in ts)
        return
    wide = [rshift(v * real.mantissa, real.exponent + frac) for v in x]
    assert found == [max(form.low, min(form.high, v)) for v in wide]
    assert counter.count == sum(not form.low <= v <= form.high for v in wide)


# Matrix products


def random_matrix(
    rng: np.random.Generator, rows: int, columns: int, bits: int, group: int
) -> Matrix:
    groups = -(-columns // group)
    zero: Any = int(rng.integers(0, 1 << bits))
    if rng.random() < 0.5:
        zero = rng.integers(0, 1 << bits, (rows, groups)).astype(np.uint8)
    scales = rng.choice([-32768, -5, 0, 1, 32767], (rows, groups)).astype(np.int16)
    q = rng.choice([0, 1, (1 << bits) - 1], (rows, columns))
    if rng.random() < 0.7:
        return Matrix(pack(q, bits), bits, columns, group, zero, scales, 14)
    offset_bits = int(rng.integers(1, 33))
    half = 1 << (offset_bits - 1)
    offsets = rng.choice([-half, 0, half - 1], (rows, groups)).astype(np.int32)
    middle = 1 << (bits - 1)
    return Matrix(pack(q, bits), bits, columns, group, middle, scales, 14, offsets, offset_bits)


def random_codes(rng: np.random.Generator, shape: tuple[int, ...], fmt: str) -> Any:
    if fmt == "fp8":
        return rng.choice([0, 1, 126, 254, 129, 77], shape)
    return rng.choice([FORMATS[fmt].low, FORMATS[fmt].high, 0, 1], shape)


@given(
    SEEDS,
    st.sampled_from([2, 4, 8]),
    st.sampled_from(sorted(FORMATS)),
    st.integers(1, 40),
    st.integers(1, 12),
)
def test_dot(seed: int, bits: int, fmt: str, columns: int, group: int) -> None:
    rng = np.random.default_rng(seed)
    matrix = random_matrix(rng, 3, columns, bits, group)
    codes = random_codes(rng, (2, columns), fmt)
    q, zeros = matrix.unpack().tolist(), matrix.zeros().tolist()
    width = sem.accumulator_bits(bits, columns, fmt, offset_bits=matrix.offset_bits)
    offsets = np.zeros(matrix.scales.shape) if matrix.offsets is None else matrix.offsets
    expected = [
        [
            wires(
                sum(
                    (
                        int(matrix.scales[n, k // group]) * (q[n][k] - zeros[n][k // group])
                        - int(offsets[n, k // group])
                    )
                    * decoded(token[k], fmt)
                    for k in range(columns)
                ),
                width,
            )
            for n in range(3)
        ]
        for token in codes
    ]
    assert sem.dot(codes, matrix, fmt).tolist() == expected
    assert sem.dot(codes[0], matrix, fmt).tolist() == expected[0]


@pytest.mark.parametrize(
    ("fmt", "bits"), [("int4", 2), ("int8", 2), ("int16", 4), ("int16", 8), ("fp8", 8)]
)
def test_dot_at_the_extremes(fmt: str, bits: int) -> None:
    # One group, all elements extreme, more rows than one block: the widest sums there are.
    columns, rows = 8192, 130
    top = (1 << bits) - 1
    scales = np.full((rows, 1), -32768, np.int16)
    matrix = Matrix(pack(np.full((rows, columns), top), bits), bits, columns, columns, 0, scales, 0)
    code = 254 if fmt == "fp8" else FORMATS[fmt].low
    expected = columns * top * 32768 * FORMATS[fmt].magnitude
    y = sem.dot(np.full(columns, code), matrix, fmt)
    assert y.tolist() == [expected] * rows
    assert expected.bit_length() + 1 == sem.accumulator_bits(bits, columns, fmt)
    partial = columns * top * FORMATS[fmt].magnitude
    assert partial.bit_length() + 1 == sem.group_bits(bits, columns, fmt)


def test_dot_refuses() -> None:
    matrix = random_matrix(np.random.default_rng(0), 3, 8, 4, 4)
    with pytest.raises(ValueError, match="7 activations for 8 columns"):
        sem.dot(np.zeros(7, int), matrix, "int8")
    with pytest.raises(ValueError, match="more than 62"):
        sem.accumulator_bits(8, 1 << 22, "fp8")
    with pytest.raises(ValueError, match="more than 62"):
        sem.accumulator_bits(4, 1 << 13, "fp8", offset_bits=32)


def test_widths() -> None:
    assert sem.accumulator_bits(4, 4096, "int8", zero=8) == 3 + 12 + 7 + 15 + 2
    assert sem.accumulator_bits(2, 4096, "int8", scale_bits=1, zero=1) == 1 + 12 + 7 + 2
    # A weight of 8 * 2**15 and an offset of 2**18 at most.
    assert sem.accumulator_bits(4, 4096, "int8", offset_bits=19) == 19 + 12 + 7 + 2
    assert sem.accumulator_bits(2, 4096, "int8", offset_bits=32) == 31 + 12 + 7 + 2
    assert sem.query_key_bits(128, "int8", "int8") == 7 + 14 + 2
    assert sem.weighted_sum_bits(4096, "uint8", "int8") == 12 + 8 + 7 + 1
    assert sem.pre_shift(39) == 0
    assert sem.pre_shift(47) == 8


def test_dot_accuracy_of_the_whole_product() -> None:
    rng = np.random.default_rng(5)
    matrix = Matrix(
        pack(rng.integers(0, 16, (64, 512)), 4), 4, 512, 32, 8,
        rng.integers(8000, 32767, (64, 16)).astype(np.int16), 22,
    )  # fmt: skip
    x = (rng.normal(size=(4, 512)) * 65536).astype(np.int64)
    for fmt, tolerance in [("int8", 4e-2), ("int16", 1.5e-4)]:
        q = sem.quantize(x, fmt)
        shift = sem.pre_shift(sem.accumulator_bits(4, 512, fmt))
        y = sem.requantize(sem.dot(q.codes, matrix, fmt), q.scale, 22, shift, 20) / 2**20
        exact = (x / 65536) @ (matrix.values() * 2.0**-22).T
        assert np.abs(y - exact).max() < tolerance * exact.std()


SCALE = st.tuples(
    st.one_of(st.integers(2**23, 2**24 - 1), st.just(0), st.sampled_from([2**23, 2**24 - 1])),
    st.integers(-20, 80),
)


@given(
    st.lists(st.integers(-(2**61), 2**61 - 1), min_size=6, max_size=6),
    st.lists(SCALE, min_size=3, max_size=3),
    st.integers(0, 30),
    st.integers(23, 30),
    st.integers(0, 24),
    st.lists(FIXED, min_size=12, max_size=12),
)
def test_requantize(
    ys: list[int],
    scales: list[tuple[int, int]],
    exponent: int,
    shift: int,
    out_frac: int,
    others: list[int],
) -> None:
    bias, residual = others[:6], others[6:]
    mantissas, exponents = (np.array(column) for column in zip(*scales, strict=True))
    for groups in (1, 3):
        expected, count = [], 0
        for i, y in enumerate(ys):
            m, e = scales[i * groups // 6]
            t = wires(rshift(y, shift), 40)
            wide = rshift(wires(t * m, 64), e + exponent - shift - out_frac)
            steps = [clip32(wide)]
            count += steps[-1] != wide
            for other in (bias[i], residual[i]):
                steps.append(clip32(wires(steps[-1] + other, 33)))
                count += steps[-1] != steps[-2] + other
            expected.append(steps[-1])
        counter = Saturations()
        found = sem.requantize(
            np.array(ys),
            Scale(mantissas[:groups], exponents[:groups]),
            exponent,
            shift,
            out_frac,
            np.array(bias),
            np.array(residual),
            counter,
        )
        assert found.tolist() == expected
        assert counter.count == count
    batch = Scale(mantissas[:2, None], exponents[:2, None])
    both = sem.requantize(np.array([ys, ys]), batch, exponent, shift, out_frac)
    for i in range(2):
        one = Scale(batch.mantissa[i], batch.exponent[i])
        single = sem.requantize(np.array(ys), one, exponent, shift, out_frac)
        assert both[i].tolist() == single.tolist()


@given(st.lists(st.integers(1 - 2**24, 2**24 - 1), min_size=1), st.integers(-5, 40))
def test_embed(rows: list[int], exponent: int) -> None:
    factor = Real.of(math.sqrt(3072))
    x = np.array(rows)
    assert sem.embed(x, exponent).tolist() == [clip32(rshift(v, exponent - 16)) for v in rows]
    places = exponent + factor.exponent - 16
    expected = [clip32(rshift(wires(v * factor.mantissa, 50), places)) for v in rows]
    assert sem.embed(x, exponent, 16, factor).tolist() == expected


# Norms

EPS = st.sampled_from([Real(0, 0), Real.of(1e-6), Real.of(1e-5), Real.of(0.5), Real.of(3e5)])


@given(VECTOR, SEEDS, st.integers(8, 22), st.integers(-4, 20), EPS, st.integers(1, 3))
@example([-INT32] * 24, 0, 16, 8, Real.of(1e-5), 1)
@example([1] + [0] * 23, 0, 16, 8, Real.of(1e-5), 2)
@example([0] * 4, 0, 16, 8, Real(0, 0), 1)
@example([1], 0, 8, 8, Real.of(3e5), 1)
def test_norms(
    x: list[int], seed: int, frac: int, gamma_exponent: int, eps: Real, groups: int
) -> None:
    rng = np.random.default_rng(seed)
    n = len(x)
    gamma = rng.choice([-32768, 32767, 0, 7, 12345], n)
    beta = rng.choice([-INT32, INT32 - 1, 0, 65536], n)
    other = rng.permutation(x).tolist()
    batch = np.array([x, other])
    rms = [slow_rms_norm(r, gamma.tolist(), gamma_exponent, eps, frac, 16) for r in (x, other)]
    assert sem.norm(batch, gamma, gamma_exponent, eps, frac).tolist() == rms
    assert sem.norm(batch[0], gamma, gamma_exponent, eps, frac).tolist() == rms[0]
    layer = [
        slow_layer_norm(r, gamma.tolist(), gamma_exponent, beta.tolist(), eps, frac, 12)
        for r in (x, other)
    ]
    assert (
        sem.norm(batch, gamma, gamma_exponent, eps, frac, 12, centred=True, beta=beta).tolist()
        == layer
    )
    heads = np.array([x] * groups).ravel()
    shared = sem.norm(heads, gamma, gamma_exponent, eps, frac, groups=groups)
    assert shared.tolist() == rms[0] * groups
    apart = sem.norm(heads, np.tile(gamma, groups), gamma_exponent, eps, frac, groups=groups)
    assert apart.tolist() == shared.tolist()


@pytest.mark.parametrize("n", [1, 64, 4096, 16384])
def test_norms_at_the_extremes(n: int) -> None:
    # The widest sums: every element extreme, the largest weights, epsilon small and huge.
    gamma = [-(2**24) + 1] * n
    for x in ([-INT32] * n, [-INT32] * (n // 2) + [INT32 - 1] * (n - n // 2), [1] * n):
        for eps in (Real.of(1e-5), Real.of(1e9)):
            expected = slow_rms_norm(x, gamma, 10, eps, 16, 16)
            assert sem.norm(np.array(x), np.array(gamma), 10, eps).tolist() == expected
            expected = slow_layer_norm(x, gamma, 10, [0] * n, eps, 16, 16)
            found = sem.norm(np.array(x), np.array(gamma), 10, eps, centred=True)
            assert found.tolist() == expected


def test_norms_refuse_wide_vectors() -> None:
    with pytest.raises(ValueError, match="16384"):
        sem.norm(np.zeros(16385, int), np.zeros(16385, int), 0, Real.of(1e-5))


@pytest.mark.parametrize("size", [2**-9, 1, 3000])
@pytest.mark.parametrize("n", [64, 3072])
def test_norm_accuracy(n: int, size: float) -> None:
    rng = np.random.default_rng(3)
    x = (rng.normal(size=(8, n)) * size * 65536 + size * 20000).astype(np.int64)
    gamma = rng.integers(10000, 32767, n)
    exact = x / 65536
    weight = gamma * 2.0**-16 / math.sqrt(n)
    eps = Real.of(1e-5)
    rms = exact / np.sqrt((exact**2).mean(-1, keepdims=True) + 1e-5) * weight
    y = sem.norm(x, gamma, 16, eps, out_frac=24) / 2**24
    # Against the root mean square of the result: what the next product sees.
    root = np.sqrt((rms**2).mean())
    assert np.abs(y - rms).max() < 2**-16 * root
    large = np.abs(rms) > root
    assert (np.abs(y - rms) / np.maximum(np.abs(rms), root))[large].max() < 2**-16
    mean = exact.mean(-1, keepdims=True)
    layer = (exact - mean) / np.sqrt(exact.var(-1, keepdims=True) + 1e-5) * weight
    z = sem.norm(x, gamma, 16, eps, out_frac=24, centred=True) / 2**24
    assert np.abs(z - layer).max() < 2**-16 * np.sqrt((layer**2).mean())


def test_norm_of_tiny_vectors_keeps_epsilon() -> None:
    n = 2048
    x = np.zeros(n, np.int64)
    x[5] = 1
    y = sem.norm(x, np.full(n, 32767), 0, Real.of(1e-5), out_frac=20)
    exact = (1 / 65536) / math.sqrt(65536.0**-2 / n + 1e-5) / math.sqrt(n) * 32767
    assert y[5] / 2**20 == pytest.approx(exact, rel=1e-4)


# Attention


@given(
    SEEDS,
    st.integers(1, 3),
    st.integers(0, 3),
    st.integers(0, 2),
    st.booleans(),
    st.sampled_from([14, 13, 5]),
)
def test_rotary(seed: int, heads: int, half: int, rest: int, interleaved: bool, frac: int) -> None:
    rng = np.random.default_rng(seed)
    dim = 2 * half + rest
    if not dim:
        return
    x = rng.choice([-INT32, INT32 - 1, 0, 5, -70000, 123456789], (2, heads * dim))
    cos, sin = rng.choice([-32768, 32767, 16384, 0, 11585], (2, 2, half))
    counter, count = Saturations(), 0
    expected = x.tolist()
    for token in range(2):
        for head in range(heads):
            for i in range(half):
                a = head * dim + (2 * i if interleaved else i)
                b = a + 1 if interleaved else a + half
                c, s = int(cos[token, i]), int(sin[token, i])
                u, v = int(x[token, a]), int(x[token, b])
                for place, wide in ((a, u * c - v * s), (b, v * c + u * s)):
                    expected[token][place] = clip32(rshift(wires(wide, 49), frac))
                    count += expected[token][place] != rshift(wide, frac)
    assert sem.rotary(x, cos, sin, heads, interleaved, counter, frac).tolist() == expected
    assert counter.count == count
    alone = sem.rotary(x[1], cos[1], sin[1], heads, interleaved, table_frac=frac)
    assert alone.tolist() == expected[1]


def test_rotary_accuracy() -> None:
    rng = np.random.default_rng(4)
    x = (rng.normal(size=(6, 4 * 64)) * 65536).astype(np.int64)
    angles = rng.uniform(-9, 9, (6, 32))
    cos, sin = (np.rint(f(angles) * 2**14).astype(np.int16) for f in (np.cos, np.sin))
    y = sem.rotary(x, cos, sin, 4).reshape(6, 4, 64) / 65536
    z = (x / 65536).reshape(6, 4, 64)
    pairs = (z[..., :32] + 1j * z[..., 32:]) * np.exp(1j * angles)[:, None]
    error = np.abs((y[..., :32] + 1j * y[..., 32:]) - pairs)
    assert (error <= 2**-14.5 * np.abs(pairs) * 2 + 2**-16).all()


def test_attention_mask() -> None:
    assert sem.attention_mask(2, 4).tolist() == [True, True, True, False]
    assert sem.attention_mask(np.array([0, 3]), 4, 2).tolist() == [
        [True, False, False, False],
        [False, False, True, True],
    ]


@given(
    SEEDS,
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 5),
    st.integers(1, 5),
    st.sampled_from(["int8", "int16", "fp8"]),
)
def test_attention_products(
    seed: int, kv_heads: int, shared: int, tokens: int, dim: int, fmt: str
) -> None:
    rng = np.random.default_rng(seed)
    heads = kv_heads * shared
    q = random_codes(rng, (2, heads, dim), fmt)
    p = random_codes(rng, (2, heads, tokens), "uint16")
    kv = random_codes(rng, (kv_heads, tokens, dim), fmt)
    dots = [
        [
            [
                wires(
                    sum(
                        decoded(a, fmt) * decoded(b, fmt)
                        for a, b in zip(q[n, h], kv[h // shared, t], strict=True)
                    ),
                    sem.query_key_bits(dim, fmt, fmt),
                )
                for t in range(tokens)
            ]
            for h in range(heads)
        ]
        for n in range(2)
    ]
    sums = [
        [
            [
                wires(
                    sum(
                        int(p[n, h, t]) * decoded(kv[h // shared, t, d], fmt) for t in range(tokens)
                    ),
                    sem.weighted_sum_bits(tokens, "uint16", fmt),
                )
                for d in range(dim)
            ]
            for h in range(heads)
        ]
        for n in range(2)
    ]
    narrow = kv.astype({"int8": np.int8, "int16": np.int16, "fp8": np.uint8}[fmt])
    assert sem.query_key(q, narrow, fmt, fmt).tolist() == dots
    assert sem.query_key(q[0], kv, fmt, fmt).tolist() == dots[0]
    assert sem.weighted_sum(p, narrow, "uint16", fmt).tolist() == sums
    assert sem.weighted_sum(p[1], kv, "uint16", fmt).tolist() == sums[1]


def test_attention_products_at_the_extremes() -> None:
    q = np.full((1, 256), -32768)
    k = np.full((1, 3, 256), -32768, np.int16)
    assert sem.query_key(q, k, "int16", "int16").tolist() == [[256 * 2**30] * 3]
    v = np.full((1, 1 << 15, 1), 126, np.uint8)
    p = np.full((1, 1 << 15), 65535)
    assert sem.weighted_sum(p, v, "uint16", "fp8").tolist() == [[65535 * (448 << 9) << 15]]


def random_scales(rng: np.random.Generator, shape: tuple[int, ...], spread: int = 40) -> Scale:
    mantissa = rng.choice([2**23, 2**24 - 1, 12345678, 0], shape)
    exponent = rng.integers(10, 10 + spread, shape)
    return Scale(mantissa, np.where(mantissa > 0, exponent, 0))


def at(scale: Scale, *index: int) -> tuple[int, int]:
    return int(scale.mantissa[index]), int(scale.exponent[index])


@given(SEEDS, st.integers(1, 2), st.integers(1, 3), st.integers(1, 5), st.integers(0, 6))
def test_score_scale(seed: int, kv_heads: int, shared: int, tokens: int, shift: int) -> None:
    rng = np.random.default_rng(seed)
    heads = kv_heads * shared
    dots = rng.integers(-(2 ** (38 + shift)), 2 ** (38 + shift), (2, heads, tokens))
    dots.flat[0] = -(2 ** (38 + shift))
    q_scale = random_scales(rng, (2, heads))
    factor = Real.of(math.log2(math.e) / math.sqrt(80))
    static = Scale.of(0.03)
    for k_scale in (random_scales(rng, (kv_heads, tokens)), static):
        expected, count = np.zeros(dots.shape, object), 0
        for n, h, t in np.ndindex(dots.shape):
            key = at(k_scale, h // shared, t) if k_scale is not static else at(k_scale)
            m, e = slow_multiply(
                slow_multiply(at(q_scale, n, h), (factor.mantissa, factor.exponent)), key
            )
            wide = rshift(wires(rshift(int(dots[n, h, t]), shift) * m, 64), e - shift - 16)
            expected[n, h, t] = clip32(wide)
            count += wide != clip32(wide)
        counter = Saturations()
        found = sem.score_scale(dots, q_scale, k_scale, factor, shift, counter)
        assert found.tolist() == expected.tolist()
        assert counter.count == count
        one = Scale(q_scale.mantissa[1], q_scale.exponent[1])
        single = sem.score_scale(dots[1], one, k_scale, factor, shift)
        assert single.tolist() == expected[1].tolist()


@given(SEEDS, st.integers(1, 5), st.integers(1, 40), st.booleans())
def test_sloped(seed: int, heads: int, tokens: int, large: bool) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.integers(-(2**31), 2**31, (3, heads, tokens)) >> (0 if large else 8)
    slopes = rng.integers(-(2**31), 2**31, heads) >> (0 if large else 6)
    distance = rng.integers(0, 2**17, (3, tokens))
    expected, count = np.zeros(scores.shape, object), 0
    for n, h, t in np.ndindex(scores.shape):
        loss = rshift(wires(int(slopes[h]) * int(distance[n, t]), 50), 8)
        wide = int(scores[n, h, t]) - wires(loss, 42)
        expected[n, h, t] = clip32(wide)
        count += wide != clip32(wide)
    counter = Saturations()
    assert sem.sloped(scores, slopes, distance, counter).tolist() == expected.tolist()
    assert counter.count == count
    # A key that is not seen is as near as the query itself.
    unseen = sem.sloped(scores, slopes, -1 - distance)
    assert unseen.tolist() == scores.tolist()


@given(SEEDS, st.integers(1, 2), st.integers(1, 3), st.integers(1, 9), st.booleans(), st.booleans())
def test_softmax_places(
    seed: int, kv_heads: int, shared: int, tokens: int, masked: bool, sunk: bool
) -> None:
    rng = np.random.default_rng(seed)
    heads = kv_heads * shared
    size = int(rng.choice([10, 2**17, 2**21, 2**31]))
    scores = rng.integers(-size, size, (3, heads, tokens))
    mask = rng.random((3, tokens)) < 0.6 if masked else None
    if mask is not None:
        mask[:, -1] = True
    sink = rng.integers(-size, size, heads) if sunk else None
    spread = int(rng.choice([1, 4, 24]))
    v_scale = Scale(
        rng.choice([1 << 23, 3 << 22], (kv_heads, tokens)),
        int(rng.integers(7, 30)) + rng.integers(0, spread, (kv_heads, tokens)),
    )
    found, sums = sem.softmax_places(scores, v_scale, "places8", mask, sink)
    for n in range(3):
        for h in range(heads):
            pairs = zip(*(part[h // shared].tolist() for part in v_scale), strict=True)
            seen = [True] * tokens if mask is None else mask[n].tolist()
            own = None if sink is None else int(sink[h])
            integers, e0, total = slow_places(scores[n, h].tolist(), list(pairs), seen, own)
            assert found.codes[n, h].tolist() == integers
            assert (found.scale.mantissa[n, h], found.scale.exponent[n, h]) == (1 << 23, 23 + e0)
            assert sums[n, h] == total


@given(
    SEEDS,
    st.integers(1, 2),
    st.integers(1, 3),
    st.integers(1, 7),
    st.sampled_from(["uint8", "uint16"]),
    st.booleans(),
    st.booleans(),
)
def test_softmax(
    seed: int, kv_heads: int, shared: int, tokens: int, fmt: str, masked: bool, sunk: bool
) -> None:
    rng = np.random.default_rng(seed)
    heads = kv_heads * shared
    size = int(rng.choice([10, 2**17, 2**21, 2**31]))
    scores = rng.integers(-size, size, (3, heads, tokens))
    mask = rng.random((3, tokens)) < 0.6 if masked else None
    sink = rng.integers(-size, size, heads) if sunk else None
    for v_scale in (
        random_scales(rng, (kv_heads, tokens)),
        random_scales(rng, (kv_heads, tokens), 1),
        random_scales(rng, (kv_heads, 1)),
        Scale.of(0.03),
    ):
        full = (
            np.broadcast_to(v_scale.mantissa, (kv_heads, tokens)),
            np.broadcast_to(v_scale.exponent, (kv_heads, tokens)),
        )
        codes, scale, total = [], [], []
        for n in range(3):
            for h in range(heads):
                row = slow_softmax(
                    scores[n, h].tolist(),
                    [
                        (int(m), int(e))
                        for m, e in zip(*(a[h // shared] for a in full), strict=True)
                    ],
                    fmt,
                    [True] * tokens if mask is None else mask[n].tolist(),
                    None if sink is None else int(sink[h]),
                )
                codes.append(row[0])
                scale.append(row[1])
                total.append(row[2])
        found, sums = sem.softmax(scores, v_scale, fmt, mask, sink)
        assert found.codes.reshape(-1, tokens).tolist() == codes
        assert scales_of(found.scale) == scale
        assert sums.ravel().tolist() == total
        one, one_sum = sem.softmax(scores[2], v_scale, fmt, None if mask is None else mask[2], sink)
        assert one.codes.tolist() == codes[2 * heads :]
        assert scales_of(one.scale) == scale[2 * heads :]
        assert one_sum.tolist() == total[2 * heads :]


def test_masked_tokens_contribute_nothing() -> None:
    rng = np.random.default_rng(6)
    scores = rng.integers(-(2**18), 2**18, (4, 6))
    v_scale = random_scales(rng, (2, 6))
    v_scale.mantissa[:, 3:] = 2**24 - 1
    v_scale.exponent[:, 3:] = -50
    short, short_sum = sem.softmax(
        scores[:, :3], Scale(v_scale.mantissa[:, :3], v_scale.exponent[:, :3])
    )
    long, long_sum = sem.softmax(scores, v_scale, mask=np.arange(6) < 3)
    assert long.codes[:, :3].tolist() == short.codes.tolist()
    assert not long.codes[:, 3:].any()
    assert scales_of(long.scale) == scales_of(short.scale)
    assert long_sum.tolist() == short_sum.tolist()
    nothing, nothing_sum = sem.softmax(scores, v_scale, mask=np.zeros(6, bool))
    assert not nothing.codes.any()
    assert not nothing.scale.mantissa.any()
    assert not nothing_sum.any()


@given(st.lists(st.integers(1, 2**45), min_size=1))
def test_reciprocal_scale(totals: list[int]) -> None:
    found = sem.reciprocal_scale(np.array(totals))
    for total, (m, e) in zip(totals, scales_of(found), strict=True):
        z = 24 - total.bit_length()
        assert m == slow_lookup("reciprocal", max(slow_normal(total, z), 2**23))
        assert e == 23 - z
        assert m / 2.0**e * total / 2**24 == pytest.approx(1, rel=2**-20.9)


@pytest.mark.parametrize(
    ("q_fmt", "p_fmt", "kv", "tolerance"),
    [
        ("int8", "uint8", "int8", 3e-2),
        ("int16", "uint16", "int16", 2e-4),
        ("int8", "uint8", "fp8", 0.15),
    ],
)
def test_attention_accuracy(q_fmt: str, p_fmt: str, kv: str, tolerance: float) -> None:
    rng = np.random.default_rng(7)
    heads, kv_heads, dim, tokens = 8, 2, 64, 40
    q, k, v = (
        (rng.normal(size=(tokens, h * dim)) * 65536).astype(np.int64)
        for h in (heads, kv_heads, kv_heads)
    )
    mask = sem.attention_mask(np.arange(tokens), tokens, 17)
    qq = sem.quantize(q, q_fmt, groups=heads)
    cached = [sem.quantize(x, kv, groups=kv_heads) for x in (k, v)]
    codes = [c.codes.reshape(tokens, kv_heads, dim).swapaxes(0, 1) for c in cached]
    ks, vs = (Scale(c.scale.mantissa.T, c.scale.exponent.T) for c in cached)
    bits = sem.query_key_bits(dim, q_fmt, kv)
    factor = Real.of(math.log2(math.e) / 8)
    dots = sem.query_key(qq.codes.reshape(tokens, heads, dim), codes[0], q_fmt, kv)
    scores = sem.score_scale(dots, qq.scale, ks, factor, sem.pre_shift(bits))
    p, total = sem.softmax(scores, vs, p_fmt, mask)
    y = sem.weighted_sum(p.codes, codes[1], p_fmt, kv).reshape(tokens, -1)
    shift = sem.pre_shift(sem.weighted_sum_bits(tokens, p_fmt, kv))
    out = sem.requantize(y, multiply(p.scale, sem.reciprocal_scale(total)), 0, shift) / 65536

    def by_head(x: np.ndarray, repeat: int) -> np.ndarray:
        return np.repeat((x / 65536).reshape(tokens, -1, dim), repeat, axis=1)

    s = np.einsum("shd,thd->sht", by_head(q, 1), by_head(k, 4)) / 8
    s = np.where(mask[:, None], s, -np.inf)
    e = np.exp(s - s.max(-1, keepdims=True))
    exact = np.einsum("sht,thd->shd", e / e.sum(-1, keepdims=True), by_head(v, 4))
    assert np.abs(out - exact.reshape(tokens, -1)).max() < tolerance


# Elementwise


@given(
    VECTOR,
    st.sampled_from(GATE_KINDS),
    st.integers(8, 24),
    st.one_of(st.none(), st.integers(4, 24)),
)
def test_gate(x: list[int], kind: str, frac: int, out_frac: int | None) -> None:
    counter = Saturations()
    places = frac if out_frac is None else out_frac
    y = sem.operator(kind, np.array(x), fractions=(frac,), into=places, saturations=counter)
    found = y.tolist()
    assert found == [slow_gate(v, kind, frac, places) for v in x]
    if places == frac and kind != "relu2":
        assert counter.count == 0


@pytest.mark.parametrize(
    ("kind", "function"),
    [
        ("silu", lambda x: x / (1 + math.exp(-x))),
        ("gelu_erf", lambda x: x * (1 + math.erf(x / math.sqrt(2))) / 2),
        ("quick_gelu", lambda x: x / (1 + math.exp(-1.702 * x))),
        ("relu2", lambda x: max(x, 0) ** 2),
        (
            "gelu_tanh",
            lambda x: x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
        ),
    ],
)
def test_gate_accuracy(kind: str, function: Any) -> None:
    x = np.arange(-20 * 65536, 20 * 65536, 331)
    exact = np.array([function(v / 65536) for v in x.tolist()])
    error = np.abs(sem.operator(kind, x) / 65536 - exact)
    assert (error <= np.abs(x / 65536) * 2**-18 + 2**-17).all()


@given(VECTOR, st.integers(8, 22), st.integers(8, 24))
def test_sigmoid_and_tanh(x: list[int], frac: int, out_frac: int) -> None:
    array = np.array(x)
    sigmoid, tanh = [], []
    for v in x:
        a = rshift(abs(v), frac - 16)
        g = slow_lookup("sigmoid", a)
        sigmoid.append(rshift(2**20 - g if v < 0 else g, 20 - out_frac))
        h = slow_lookup("tanh", a)
        tanh.append(rshift(-h if v < 0 else h, 20 - out_frac))
    assert sem.operator("sigmoid", array, fractions=(frac,), into=out_frac).tolist() == sigmoid
    assert sem.operator("tanh", array, fractions=(frac,), into=out_frac).tolist() == tanh


@given(VECTOR, st.floats(0.1, 3000), st.integers(10, 20), st.integers(10, 24))
def test_softcap(x: list[int], cap: float, frac: int, out_frac: int) -> None:
    inverse, bound = Real.of(1 / cap), Real.of(cap)
    expected, count = [], 0
    for v in x:
        a = clip32(rshift(wires(v * inverse.mantissa, 57), inverse.exponent + frac - 16))
        g = slow_lookup("tanh", abs(a))
        g = -g if a < 0 else g
        wide = rshift(wires(g * bound.mantissa, 46), 20 + bound.exponent - out_frac)
        expected.append(clip32(wide))
        count += wide != clip32(wide)
    counter = Saturations()
    places = {"fractions": (frac,), "into": out_frac, "saturations": counter}
    found = sem.operator("softcap", np.array(x), given=(inverse, bound), **places)
    assert found.tolist() == expected
    assert counter.count == count


def test_softcap_accuracy() -> None:
    x = np.arange(-200 * 65536, 200 * 65536, 1009)
    y = sem.operator("softcap", x, given=(Real.of(1 / 30), Real.of(30.0))) / 65536
    assert np.abs(y - 30 * np.tanh(x / 65536 / 30)).max() < 30 * 2**-16


@given(st.lists(st.tuples(FIXED, FIXED), min_size=1), st.integers(-8, 40), st.floats(-1e6, 1e6))
def test_products_and_sums(pairs: list[tuple[int, int]], shift: int, value: float) -> None:
    a, b = (np.array(column) for column in zip(*pairs, strict=True))
    factor = Real.of(value)
    wide = {
        "mul": [rshift(wires(x * y, 64), shift) for x, y in pairs],
        "add": [wires(x + y, 33) for x, y in pairs],
        "scale": [
            rshift(wires(x * factor.mantissa, 57), factor.exponent + shift) for x, _ in pairs
        ],
    }
    counter = Saturations()
    places = {"fractions": (shift, 0), "into": 0, "saturations": counter}
    for name, values in wide.items():
        one = ELEMENTWISE[name]
        operands, given = (a, b)[: one.operands], (factor,)[: one.reals]
        found = sem.operator(name, *operands, given=given, **places)
        assert found.tolist() == [clip32(x) for x in values]
    assert counter.count == sum(x != clip32(x) for values in wide.values() for x in values)


@given(
    st.lists(FIXED, min_size=1),
    st.integers(12, 20),
    st.integers(12, 20),
    st.floats(-3e4, 3e4),
    st.floats(0, 3e9),
)
def test_clip(x: list[int], frac: int, into: int, low: float, width: float) -> None:
    bounds = Real.of(low), Real.of(low + width)
    counter = Saturations()
    places = {"fractions": (frac,), "into": into, "saturations": counter}
    found = sem.operator("clip", np.array(x), given=bounds, **places)
    most = (1 << 31) - (1 << 8)
    exact = [
        min(max(Fraction(one.mantissa) * Fraction(2) ** (into - one.exponent), -most), most)
        for one in bounds
    ]
    shifted = [clip32(rshift(one, frac - into)) for one in x]
    for value, y in zip(shifted, found.tolist(), strict=True):
        # Bounds keep 24 bits.
        assert y == value or any(abs(y - one) <= max(1, abs(one) / (1 << 23)) for one in exact)
        assert min(value, exact[1]) - 256 <= max(y, exact[0])
        assert exact[0] - 256 <= y <= exact[1] + 256
    assert counter.count == sum(
        clip32(rshift(one, frac - into)) != rshift(one, frac - into) for one in x
    )


def slow_route(
    logits: list[int], chosen: int, frac: int, lowest: bool, every: bool
) -> list[tuple[int, float]]:
    """Experts with their shares, in real numbers."""
    sign = 1 if lowest else -1
    order = sorted(range(len(logits)), key=lambda i: (-logits[i], sign * i))[:chosen]
    p = [math.exp((one - max(logits)) / 2.0**frac) for one in logits]
    total = sum(p) if every else sum(p[i] for i in order)
    return [(i, p[i] / total) for i in order]


@given(
    # Few values, so that logits are often equal.
    st.lists(st.one_of(st.integers(-3, 3), FIXED), min_size=1, max_size=40),
    st.data(),
    st.integers(12, 24),
    st.booleans(),
    st.booleans(),
)
def test_route(
    logits: list[int], data: st.DataObject, frac: int, lowest: bool, every: bool
) -> None:
    chosen = data.draw(st.integers(1, len(logits)))
    found = sem.route(np.array(logits), chosen, frac, lowest=lowest, every=every)
    wanted = slow_route(logits, chosen, frac, lowest, every)
    assert found.experts.tolist() == [i for i, _ in wanted]
    for share, (_, real) in zip(found.shares.tolist(), wanted, strict=True):
        assert abs(share / 2**24 - real) <= 2e-5 * real + 2.0**-22
    assert min(found.shares) >= 0 and max(found.shares) <= (1 << 24) + 8


@given(SEEDS, st.integers(1, 9))
def test_a_batch_is_routed_token_by_token(seed: int, chosen: int) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.integers(-4, 4, (5, 9)) << int(rng.integers(0, 16))
    lowest, every = bool(rng.integers(2)), bool(rng.integers(2))
    together = sem.route(logits, chosen, lowest=lowest, every=every)
    for row, experts, shares in zip(logits, *together, strict=True):
        alone = sem.route(row, chosen, lowest=lowest, every=every)
        assert (alone.experts == experts).all() and (alone.shares == shares).all()
    given_ = sem.route_to(logits, together.experts, every=every)
    assert (given_.shares == together.shares).all()


@given(VECTOR, st.integers(0, 1 << 24), st.integers(12, 20), st.integers(12, 20), SEEDS)
def test_weigh(x: list[int], share: int, frac: int, out_frac: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    residual = rng.integers(-INT32, INT32, len(x))
    counter = Saturations()
    found = sem.weigh(np.array(x), np.array(share), frac, out_frac, residual, counter)
    exact = [rshift(wires(one * share, 57), 24 + frac - out_frac) for one in x]
    summed = [clip32(one) + r for one, r in zip(exact, residual.tolist(), strict=True)]
    assert found.tolist() == [clip32(one) for one in summed]
    over = sum(one != clip32(one) for one in (*exact, *summed))
    assert counter.count == over
    alone = sem.weigh(np.array(x), np.array(share), frac, out_frac)
    assert alone.tolist() == [clip32(one) for one in exact]


def test_argmax_takes_the_first() -> None:
    x = np.array([[1, 5, 5], [-3, -3, -9]])
    assert sem.argmax(x).tolist() == [1, 0]
    assert sem.argmax(x[0]) == 1


@given(SEEDS)
def test_functions_leave_their_arguments_alone(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.integers(-(2**20), 2**20, 8)
    before = x.copy()
    eps = Real.of(1e-5)
    sem.quantize(x, "int8", groups=2)
    sem.quantize(np.abs(x), "uint8")
    sem.quantize_static(x, "int8", Real.of(3.0))
    sem.requantize(x, Scale.of(0.5), 0, 0, bias=x, residual=x)
    sem.norm(x, x, 3, eps)
    sem.norm(x, x, 3, eps, centred=True, beta=x)
    sem.rotary(x, x[:2], x[2:4], 2)
    for kind in ACTIVATIONS:
        sem.operator(kind, x)
    sem.operator("softcap", x, given=(Real.of(0.1), Real.of(10.0)))
    sem.softmax(x.reshape(2, 4), Scale.of(0.1), mask=np.array([True, True, False, True]))
    assert x.tolist() == before.tolist()
