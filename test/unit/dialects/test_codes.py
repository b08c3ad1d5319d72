"""Codes: formats, packing, matrices, and the integers made from floats."""

from __future__ import annotations

import bisect
import itertools
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from intaglio.dialects.codes import (
    Matrix,
    decode,
    e4m3_decode,
    e4m3_encode,
    fixed,
    mantissa_exponent,
    offset_form,
    offset_mantissas,
    offset_spill,
    pack,
    unpack,
)
from intaglio.dialects.fixed_point import Saturations
from intaglio.dialects.formats import FORMATS

settings.register_profile("unit", max_examples=60, deadline=None)
settings.load_profile("unit")

BITS = st.sampled_from([2, 4, 8])


def e4m3_value(code: int) -> int:
    """The OCP definition, in units of 2**-9."""
    power, fraction = (code & 127) >> 3, code & 7
    value = Fraction(fraction, 8) * Fraction(2) ** -6
    if power:
        value = (1 + Fraction(fraction, 8)) * Fraction(2) ** (power - 7)
    assert (value * 512).denominator == 1
    return int(value * 512) * (-1 if code & 128 else 1)


E4M3 = [e4m3_value(code) for code in range(127)]


def slow_e4m3(t: Fraction) -> int:
    """Nearest code; ties go to the even one; the sign bit is kept."""
    size = abs(t)
    above = min(bisect.bisect_left(E4M3, size), 126)
    below = max(above - 1, 0)
    to_above, to_below = abs(E4M3[above] - size), abs(size - E4M3[below])
    nearest = above if to_above < to_below or (to_above == to_below and above % 2 == 0) else below
    return nearest + (128 if t < 0 else 0)


def test_e4m3_decode() -> None:
    codes = [code for code in range(256) if code & 127 != 127]
    assert e4m3_decode(np.array(codes)).tolist() == [e4m3_value(code) for code in codes]
    assert E4M3[-1] == 448 << 9 == FORMATS["fp8"].limit


@given(st.lists(st.integers(-(2**27), 2**27), min_size=1), st.integers(1, 12))
def test_e4m3_encode(ts: list[int], fraction_bits: int) -> None:
    expected = [slow_e4m3(Fraction(t, 1 << fraction_bits)) for t in ts]
    assert e4m3_encode(np.array(ts), fraction_bits).tolist() == expected


def test_e4m3_encode_is_exact_on_its_numbers_and_at_ties() -> None:
    values = np.array(E4M3)
    assert e4m3_encode(values << 8, 8).tolist() == list(range(127))
    ties = [(a + b) << 7 for a, b in itertools.pairwise(E4M3)]
    assert e4m3_encode(np.array(ties), 8).tolist() == [i + i % 2 for i in range(126)]
    assert e4m3_encode(np.array([2**60, -(2**60)]), 8).tolist() == [126, 254]


def test_formats() -> None:
    assert {n: (f.limit, f.low, f.high) for n, f in FORMATS.items() if n != "fp8"} == {
        "int4": (7, -8, 7),
        "int6": (31, -32, 31),
        "int8": (127, -128, 127),
        "int16": (32767, -32768, 32767),
        "uint8": (255, 0, 255),
        "uint16": (65535, 0, 65535),
        "half8": (127, -127, 127),
        "mxint8": (127, -127, 127),
        # A byte, up to 16 places further up.
        "places8": (255, 0, 255 << 16),
    }
    widths = {n: f.decoded_bits for n, f in FORMATS.items()}
    assert widths == {
        "int4": 4, "int6": 6, "int8": 8, "int16": 16, "uint8": 8, "uint16": 16, "fp8": 19,
        "half8": 8, "mxint8": 8, "places8": 24,
    }  # fmt: skip
    # Of a block: 127 times three or four quarters, up to 15 places further up.
    assert FORMATS["half8"].magnitude == 127 * 4 << 15
    assert FORMATS["mxint8"].magnitude == 127 << 15
    codes = np.array([3, -4])
    assert decode(codes, "int8") is codes
    assert decode(np.array([0x38], np.uint8), "fp8").tolist() == [512]


@given(st.data(), BITS, st.integers(1, 3), st.integers(1, 19))
def test_pack_and_unpack(data: st.DataObject, bits: int, rows: int, columns: int) -> None:
    flat = data.draw(
        st.lists(st.integers(0, (1 << bits) - 1), min_size=rows * columns, max_size=rows * columns)
    )
    codes = np.array(flat).reshape(rows, columns)
    packed = pack(codes, bits)
    assert packed.shape == (rows, -(-columns * bits // 8))
    for row, data_row in zip(codes.tolist(), packed.tolist(), strict=True):
        number = sum(code << (bits * i) for i, code in enumerate(row))
        assert number == int.from_bytes(bytes(data_row), "little")
    assert unpack(packed, bits, columns).tolist() == codes.tolist()


def test_pack_refuses() -> None:
    with pytest.raises(ValueError, match="2, 4 or 8"):
        pack(np.zeros((1, 4), int), 3)
    with pytest.raises(ValueError, match="outside"):
        pack(np.array([[4]]), 2)


@given(st.integers(0, 2**32 - 1), BITS, st.integers(1, 5), st.integers(1, 21), st.integers(1, 8))
def test_matrix(seed: int, bits: int, rows: int, columns: int, group: int) -> None:
    rng = np.random.default_rng(seed)
    groups = -(-columns // group)
    q = rng.integers(0, 1 << bits, (rows, columns))
    zeros = rng.integers(0, 1 << bits, (rows, groups)).astype(np.uint8)
    scales = rng.integers(-32768, 32768, (rows, groups)).astype(np.int16)
    for zero in (zeros, 1):
        matrix = Matrix(pack(q, bits), bits, columns, group, zero, scales, 5)
        assert (matrix.rows, matrix.groups) == (rows, groups)
        assert matrix.unpack().tolist() == q.tolist()
        picked = np.array([rows - 1, 0])
        values = [
            [
                (int(q[n, k]) - int(matrix.zeros()[n, k // group])) * int(scales[n, k // group])
                for k in range(columns)
            ]
            for n in range(rows)
        ]
        assert matrix.values().tolist() == values
        assert matrix.values(picked).tolist() == [values[-1], values[0]]
        assert matrix.zeros(picked).shape == (2, groups)


def test_matrix_refuses() -> None:
    codes, scales = np.zeros((2, 4), np.uint8), np.zeros((2, 2), np.int16)
    good = (codes, 4, 8, 4, 8, scales, 0)
    Matrix(*good)
    for place, wrong, message in [
        (0, codes[:, :3], "codes"),
        (1, 3, "2, 4 or 8"),
        (4, 16, "zero point"),
        (4, np.zeros((2, 1), np.uint8), "zeros"),
        (5, scales.astype(np.int32), "scales"),
    ]:
        arguments = [*good]
        arguments[place] = wrong
        with pytest.raises(ValueError, match=message):
            Matrix(*arguments)


def test_matrix_with_offsets() -> None:
    codes, scales = np.array([[0x21, 0x43]], np.uint8), np.array([[3, -5]], np.int16)
    offsets = np.array([[-7, 1 << 30]], np.int32)
    matrix = Matrix(codes, 4, 4, 2, 8, scales, 0, offsets, 32)
    assert matrix.values().tolist() == [
        [3 * (1 - 8) + 7, 3 * (2 - 8) + 7, -5 * (3 - 8) - (1 << 30), -5 * (4 - 8) - (1 << 30)]
    ]
    good = {"zero": 8, "offsets": offsets, "offset_bits": 32}
    for change, message in [
        ({"zero": 7}, "middle"),
        ({"zero": np.zeros((1, 2), np.uint8)}, "middle"),
        ({"offsets": offsets[:, :1]}, "offsets are"),
        ({"offsets": offsets.astype(np.int64)}, "offsets are"),
        ({"offset_bits": 33}, "1 to 32 bits"),
        ({"offset_bits": 0}, "1 to 32 bits"),
    ]:
        with pytest.raises(ValueError, match=message):
            Matrix(codes, 4, 4, 2, scales=scales, exponent=0, **(good | change))  # type: ignore


POINTS = st.one_of(
    st.integers(-3, 300).map(float),
    st.floats(-3, 19, width=32),
    st.floats(-(2.0**40), 2.0**40, width=32),
)


@given(
    BITS,
    st.lists(st.tuples(st.floats(-1, 1, width=32), POINTS), min_size=1, max_size=8),
    st.integers(-20, 20),
)
def test_offsets(bits: int, groups: list[tuple[float, float]], power: int) -> None:
    """Any zero points, at any scales: they fit the width that is stated, and each weight is off by
    what its scale is, wherever the zero point lies, and half a unit."""
    scales = np.ldexp(np.array([[s for s, _ in groups]], np.float32), power)
    zeros = np.array([[z for _, z in groups]], np.float32)
    spill = offset_spill(scales, zeros, bits)
    form = offset_form(bits, float(np.abs(scales).max()), spill)
    assert bits + 15 <= form.bits <= 32
    assert form.peak >= np.abs(scales).max()
    exponent = mantissa_exponent(form.peak, 16)
    rounded = np.rint(np.ldexp(scales.astype(np.float64), exponent)).astype(np.int16)
    offsets = offset_mantissas(scales, zeros, rounded, exponent, bits, form.bits)
    top, middle = (1 << bits) - 1, 1 << (bits - 1)
    unit = Fraction(2) ** exponent
    for s, z, m, o in zip(scales[0], zeros[0], rounded[0], offsets[0], strict=True):
        loss = abs(int(m) - Fraction(float(s)) * unit)
        for q in (0, 1, top):
            exact = Fraction(float(s)) * (q - Fraction(float(z))) * unit
            # Beyond 2**53 units float64 rounds; nothing that fits 32 bits is near it.
            slack = Fraction(1, 2) + Fraction(1, 1 << 20)
            assert abs((q - middle) * int(m) - int(o) - exact) <= loss * top + slack
        if 0 <= z <= top and z == int(z):
            assert int(o) == int(m) * (int(z) - middle)


def test_width_of_offsets() -> None:
    """Zero points in the range of codes give one width, whatever they are; others as they need."""
    assert offset_form(4, 0.25, 0.0) == (19, 0.25)
    assert offset_form(2, 0.25, 0.0) == (17, 0.25)
    assert offset_form(8, 0.25, 0.0) == (23, 0.25)
    assert offset_form(4, 1.0, 1000.0) == (26, 1.0)
    assert offset_form(4, 1.0, 60000.0) == (32, 1.0)
    # Scales lose bits where else offsets would need more than 32.
    assert offset_form(4, 1.0, 1e6) == (32, pytest.approx(15.26, abs=0.01))
    assert offset_form(4, 0.0, 0.0) == (19, 0.0)
    scales, zeros = np.array([2.0, -1.0]), np.array([17.5, -3.0])
    assert offset_spill(scales, zeros, 4) == 5.0
    with pytest.raises(ValueError, match="more than 18 bits"):
        offset_mantissas(
            np.ones((1, 1)), np.zeros((1, 1)), np.full((1, 1), 32767, np.int16), 14, 4, 18
        )


@given(st.floats(0, 2.0**40, allow_subnormal=False), st.sampled_from([8, 12, 16, 24, 32]))
def test_mantissa_exponent(largest: float, bits: int) -> None:
    """The largest at which it fits: at the next it would not."""
    exponent = mantissa_exponent(largest, bits)
    exact = Fraction(largest) * Fraction(2) ** exponent
    limit = (1 << (bits - 1)) - 1
    assert round(exact) <= limit < round(2 * exact) if largest else exponent == 0


def test_mantissa_exponents_of_notable_values() -> None:
    assert mantissa_exponent(0.5, 16) == 15
    # 32767.5 rounds to the even 32768, which is one too many.
    assert [mantissa_exponent(v, 16) for v in (32767.0, 32767.49, 32767.5)] == [0, 0, -1]
    assert mantissa_exponent(1.0, 8) == 6
    assert mantissa_exponent(2.0**-1022, 16) == 1036
    for wrong in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="infinities"):
            mantissa_exponent(wrong, 16)


def test_fixed() -> None:
    counter = Saturations()
    x = fixed([0.5, -1.5 / 65536, 2.5 / 65536, 40000, -40000], 16, saturations=counter)
    assert x.tolist() == [32768, -2, 2, 2**31 - 1, -(2**31)]
    assert counter.count == 2
    assert fixed(np.float32(1), 14, 16) == 16384
    with pytest.raises(ValueError, match="infinities"):
        fixed([float("inf")], 16)
