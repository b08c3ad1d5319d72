"""Weights in carriers wider than their codes."""

from __future__ import annotations

import numpy as np
import pytest

from intaglio.dialects import rom
from intaglio.dialects.codes import pack
from intaglio.lowering.onnx.importer import import_model

CODES = ("ternary", "int2", "int3", "int4", "int6", "int8")


def _product(decoder, values: np.ndarray, bits: int, zeros: np.ndarray | None = None) -> np.ndarray:
    """A MatMulNBits of integer weights [N, K] under random scales; gives the weights."""
    n, k = values.shape
    block = 16
    blocks = -(-k // block)
    # What the file holds beyond K means nothing.
    codes = decoder.rng.integers(0, 1 << bits, (n, blocks * block)).astype(np.uint8)
    index = np.arange(k) // block
    codes[:, :k] = values + (1 << (bits - 1) if zeros is None else zeros[:, index])
    scales = decoder.rng.normal(size=(n, blocks)).astype(np.float32)
    decoder.constants.pop(0)
    decoder.floats("table", 11, k)
    decoder.constant("w", pack(codes, bits).reshape(n, blocks, -1))
    decoder.constant("s", scales)
    inputs = ["x", "w", "s"]
    if zeros is not None:
        inputs.append(decoder.constant("z", pack(zeros, bits)))
    decoder.ms("MatMulNBits", inputs, ["y"], K=k, N=n, bits=bits, block_size=block)
    return values * scales[:, index].astype(float)


def _imported(decoder, expected: np.ndarray, plain, codes=CODES) -> rom.ParameterOp:
    """The only matrix; it holds what is expected."""
    model = import_model(decoder.save(), codes=codes)
    model.module.verify()
    ops = [op for op in model.module.ops if isinstance(op, rom.ParameterOp)]
    (parameter,) = (op for op in ops if op.type.is_matrix)  # pyright: ignore
    type_ = parameter.type
    assert isinstance(type_, rom.ROMTensorType)
    source = model.parameters[parameter.key.data]
    zero = None if parameter.zero is None else parameter.zero.value.data
    found = plain(source, type_.bits, type_.group.data, zero)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9)
    assert parameter.peak is not None
    assert parameter.peak.value.data == pytest.approx(float(np.abs(source.scales(0, 9)).max()))
    return parameter


@pytest.mark.parametrize("k", [16, 40, 45, 47])
@pytest.mark.parametrize(("stored", "bits"), [(4, 2), (4, 3), (8, 2), (8, 3), (8, 4), (8, 6)])
def test_weights_take_as_few_bits_as_hold_them(decoder, plain, stored, bits, k):
    half = 1 << (bits - 1)
    values = decoder.rng.integers(-half, half, (9, k))
    values[4, k - 1], values[5, k // 2] = -half, half - 1
    expected = _product(decoder, values, stored)
    assert _imported(decoder, expected, plain).type.code.data == f"int{bits}"  # pyright: ignore


@pytest.mark.parametrize("place", [(0, 0), (8, 44), (8, 43), (3, 20)])
@pytest.mark.parametrize("value", [4, -5])
def test_one_weight_beyond_is_enough(decoder, plain, place, value):
    values = decoder.rng.integers(-4, 4, (9, 45))
    values[place] = value
    expected = _product(decoder, values, 8)
    assert _imported(decoder, expected, plain).type.code.data == "int4"  # pyright: ignore


@pytest.mark.parametrize(
    ("codes", "code"), [((), "int8"), (("int2", "int6"), "int6"), (("ternary", "int8"), "int8")]
)
def test_only_codes_of_the_chip(decoder, plain, codes, code):
    expected = _product(decoder, decoder.rng.integers(-4, 4, (9, 32)), 8)
    assert _imported(decoder, expected, plain, codes).type.code.data == code  # pyright: ignore


@pytest.mark.parametrize(("stored", "zero"), [(4, 4), (4, 7), (8, 3), (8, 5), (8, 250)])
def test_one_zero_point_for_all(decoder, plain, stored, zero):
    values = decoder.rng.integers(-3, 4, (9, 45))
    expected = _product(decoder, values, stored, np.full((9, 3), zero, np.uint8))
    parameter = _imported(decoder, expected, plain)
    assert parameter.type.code.data == "int3"  # pyright: ignore
    assert parameter.zero is not None


def test_several_zero_points_stay(decoder, plain):
    values, zeros = decoder.rng.integers(-3, 4, (9, 32)), np.full((9, 2), 7, np.uint8)
    zeros[8, 1] = 8
    expected = _product(decoder, values, 4, zeros)
    assert _imported(decoder, expected, plain).type.code.data == "int4"  # pyright: ignore
