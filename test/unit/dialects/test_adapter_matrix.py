"""Matrices of adapters: codes, and the exact product."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from intaglio.dialects.codes import SLOT_BITS, SLOT_LIMITS, AdapterMatrix, e4m3_decode
from intaglio.dialects.formats import BLOCK_FORMATS, FORMATS
from intaglio.dialects.semantics import dot, pre_shift, slot_bits, slot_floor

ACTIVATIONS = ("int8", "int16", "fp8")


def weight(code: str, q: int) -> int:
    """What a code stands for, without its scale."""
    if code == "fp8":
        sign, power, fraction = q >> 7, q >> 3 & 15, q & 7
        size = fraction if power == 0 else (8 + fraction) * 2 ** (power - 1)
        return -size if sign else size
    return q - {"int8": 128, "int6": 32, "ternary": 1}[code]


@st.composite
def matrices(draw: st.DrawFn) -> AdapterMatrix:
    """Adapters of every code."""
    code = draw(st.sampled_from(sorted(SLOT_BITS)))
    shape = draw(st.integers(1, 6)), draw(st.integers(1, 9))
    top = 2 if code == "ternary" else (1 << SLOT_BITS[code]) - 1
    codes = draw(hnp.arrays(np.uint8, shape, elements=st.integers(0, top)))
    if code == "fp8":
        codes[codes & 127 == 127] -= 1
    scales = draw(hnp.arrays(np.int16, shape[:1]))
    return AdapterMatrix(code, codes, scales, draw(st.integers(-5, 40)))


@settings(max_examples=150, deadline=None)
@given(data=st.data(), matrix=matrices(), fmt=st.sampled_from(ACTIVATIONS))
def test_the_product_is_the_sum_of_products(data: Any, matrix: AdapterMatrix, fmt: str) -> None:
    form = FORMATS[fmt]
    if fmt == "fp8":
        elements = st.integers(0, 255).filter(lambda c: c & 127 != 127)
    else:
        elements = st.integers(form.low, form.high)
    x = data.draw(hnp.arrays(np.int64, (3, matrix.columns), elements=elements))
    y = dot(x, matrix, fmt)
    numbers = x if fmt != "fp8" else e4m3_decode(x)
    for token in range(3):
        for n in range(matrix.rows):
            exact = int(matrix.scales[n]) * sum(
                weight(matrix.code, int(q)) * int(v)
                for q, v in zip(matrix.codes[n], numbers[token], strict=True)
            )
            assert int(y[token, n]) == exact
    limit = 1 << (slot_bits(matrix.code, matrix.columns, fmt) - 1)
    assert np.all(np.abs(y) < limit)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), matrix=matrices(), fmt=st.sampled_from([*ACTIVATIONS, *BLOCK_FORMATS]))
def test_wide_products_are_rounded_as_if_they_were_whole(
    data: Any, matrix: AdapterMatrix, fmt: str
) -> None:
    """For any shift that a slot of more columns asks for, as with arbitrary precision."""
    most = FORMATS[fmt].magnitude if fmt != "fp8" else 255
    elements = st.integers(0 if fmt == "fp8" else -most, most).filter(
        lambda c: fmt != "fp8" or c & 127 != 127
    )
    x = data.draw(hnp.arrays(np.int64, (2, matrix.columns), elements=elements))
    bits = slot_bits(matrix.code, data.draw(st.integers(matrix.columns, 60000)), fmt)
    shift = pre_shift(bits)
    floor = slot_floor(shift)
    assert 0 <= floor < max(1, shift) and floor <= 15
    y = dot(x, matrix, fmt, floor)
    numbers = x if fmt != "fp8" else e4m3_decode(x)
    for token in range(2):
        for n in range(matrix.rows):
            exact = int(matrix.scales[n]) * sum(
                weight(matrix.code, int(q)) * int(v)
                for q, v in zip(matrix.codes[n], numbers[token], strict=True)
            )
            assert int(y[token, n]) == exact >> floor
            if shift:
                rounded = (exact + (1 << shift >> 1)) >> shift
                rest = shift - floor
                assert (int(y[token, n]) + (1 << rest >> 1)) >> rest == rounded


@given(matrices())
def test_values_are_weights_times_scales(matrix: AdapterMatrix) -> None:
    values = matrix.values()
    for n in range(matrix.rows):
        for k in range(matrix.columns):
            expected = weight(matrix.code, int(matrix.codes[n, k])) * int(matrix.scales[n])
            assert int(values[n, k]) == expected
    assert np.array_equal(matrix.values(slice(0, 1)), values[:1])
    assert np.abs(matrix.weights).max() <= SLOT_LIMITS[matrix.code]


@pytest.mark.parametrize("fmt", ACTIVATIONS)
@pytest.mark.parametrize("code", sorted(SLOT_BITS))
def test_the_stated_width_is_reached_and_no_wider(code: str, fmt: str) -> None:
    """The largest sum needs exactly the bits stated, or the product is refused."""
    columns = 12
    q = {"fp8": 126, "int8": 0, "int6": 0, "ternary": 2}[code]
    codes = np.full((1, columns), q, np.uint8)
    matrix = AdapterMatrix(code, codes, np.array([-(1 << 15)], np.int16), 0)
    x = np.full((1, columns), {"int8": -128, "int16": -(1 << 15), "fp8": 126}[fmt])
    bits = slot_bits(code, columns, fmt)
    (largest,) = np.abs(dot(x, matrix, fmt)).ravel().tolist()
    assert largest.bit_length() + 1 == bits


def test_products_too_wide_to_be_exact() -> None:
    """A row has one scale, so its sum may have 62 bits; what the product has more is left out."""
    assert slot_bits("fp8", 8192, "int16") == 62
    assert slot_bits("fp8", 14336, "int16") == 63
    assert slot_bits("fp8", 53248, "half8") == 74
    with pytest.raises(ValueError, match="needs 63 bits, more than 62"):
        slot_bits("fp8", 1 << 20, "half8")
    matrix = AdapterMatrix("fp8", np.zeros((1, 8192), np.uint8), np.ones(1, np.int16), 0)
    assert slot_floor(pre_shift(65)) == 3
    with pytest.raises(ValueError, match="65 bits less 2 is more than 62"):
        dot(np.zeros((1, 8192), np.int64), matrix, "fp8", 2)
    with pytest.raises(ValueError, match="7 activations for 8192 columns"):
        dot(np.zeros((1, 7), np.int64), matrix, "int8")


@pytest.mark.parametrize(
    ("code", "codes", "scales", "message"),
    [
        ("int4", np.zeros((2, 3), np.uint8), np.ones(2, np.int16), "unknown code 'int4'"),
        ("int8", np.zeros((2, 3), np.int8), np.ones(2, np.int16), "codes are int8"),
        ("int8", np.zeros(3, np.uint8), np.ones(3, np.int16), "not uint8 \\[N, K\\]"),
        ("int8", np.zeros((2, 3), np.uint8), np.ones(3, np.int16), "not int16 \\[2\\]"),
        ("int8", np.zeros((2, 3), np.uint8), np.ones(2, np.int32), "scales are int32"),
        ("int6", np.full((2, 3), 64, np.uint8), np.ones(2, np.int16), "int6 has no code 64"),
        ("ternary", np.full((2, 3), 3, np.uint8), np.ones(2, np.int16), "ternary has no code 3"),
        ("fp8", np.full((2, 3), 255, np.uint8), np.ones(2, np.int16), "contain not-a-number"),
    ],
)
def test_what_is_no_adapter(code: str, codes: Any, scales: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AdapterMatrix(code, codes, scales, 0)
