"""Groups and rows of zeros whose stored scale is large: it decides nothing, in every encoding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto

from intaglio.dialects import rom
from intaglio.dialects.codes import pack
from intaglio.lowering.onnx.importer import import_model

DEAD = [0.003, 1.0, 1000.0, 1e30]
K, GROUP = 64, 32


def peaks(path: Path, **options: Any) -> dict[str, float]:
    """The peak of each matrix, by name."""
    model = import_model(path, **options)
    found: dict[str, float] = {}
    for op in model.module.ops:
        if isinstance(op, rom.ParameterOp) and op.type.is_matrix:  # pyright: ignore
            assert op.peak is not None
            found[op.sym_name.data] = op.peak.value.data
    return found


def widened(decoder: Any) -> None:
    decoder.constants.pop(0)
    decoder.floats("table", 11, K)


def groups(decoder: Any, bits: int, n: int, dead: float, places: Any) -> tuple[Any, Any, Any]:
    """Codes [n, K] all 0 around their zero points at some places, scales and zero points [n, G]."""
    codes = decoder.rng.integers(0, 1 << bits, (n, K)).astype(np.uint8)
    codes[:, ::GROUP] = 0
    points = decoder.rng.integers(1, 1 << bits, (n, K // GROUP)).astype(np.uint8)
    scales = decoder.rng.uniform(0.004, 0.005, (n, K // GROUP)).astype(np.float32)
    for row, group in places:
        codes[row, group * GROUP : (group + 1) * GROUP] = points[row, group]
        scales[row, group] = dead
    return codes, scales, points


def largest(scales: np.ndarray, places: Any) -> float:
    """The largest scale elsewhere."""
    left = np.abs(scales.astype(np.float64))
    for place in places:
        left[place] = 0
    return float(left.max())


@pytest.mark.parametrize("dead", DEAD)
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize(
    "places", [[(3, 1)], [(0, 0), (0, 1)], [(i, i % 2) for i in range(20)]], ids=len
)
@pytest.mark.parametrize("zeros", [False, True, "real"])
def test_matmul_nbits(decoder, dead, bits, places, zeros):
    widened(decoder)
    codes, scales, points = groups(decoder, bits, 24, dead, places)
    if not zeros:
        # Around the default zero point.
        codes = codes - np.repeat(points, GROUP, axis=1) + np.uint8(1 << (bits - 1))
        codes = np.clip(codes, 0, (1 << bits) - 1)
    decoder.constant("w", pack(codes, bits).reshape(24, 2, -1))
    decoder.constant("s", scales)
    stored = pack(points, bits)
    if zeros == "real":
        # Around fractions, but for the dead groups: a group of one code and a fraction is used.
        stored = points + np.float32(0.5)
        for place in places:
            stored[place] -= np.float32(0.5)
        codes[22], stored[22] = 1, 0.75
    decoder.constant("z", stored)
    inputs = ["x", "w", "s"] + ["z"] * bool(zeros)
    decoder.ms("MatMulNBits", inputs, ["y"], K=K, N=24, bits=bits, block_size=GROUP)
    assert peaks(decoder.save()) == {"w": largest(scales, places)}


@pytest.mark.parametrize("dead", DEAD)
@pytest.mark.parametrize("dtype", [TensorProto.INT4, TensorProto.UINT4, TensorProto.INT8])
@pytest.mark.parametrize("form", ["blocks", "rows"])
@pytest.mark.parametrize("axis", [0, 1])
def test_dequantised(decoder, dead, dtype, form, axis):
    """Storage [K, N] with blocks or columns, and [N, K] behind a Transpose."""
    widened(decoder)
    bits = 8 if dtype == TensorProto.INT8 else 4
    flip = 0 if dtype == TensorProto.UINT4 else 1 << (bits - 1)
    places = [(5, 0), (5, 1)]
    codes, scales, points = groups(decoder, bits, 24, dead, places)
    if form == "rows":
        scales = scales[:, :1]
        codes[5], points[5] = 7, 7
        points = points[:, :1]
        places = places[:1]

    def turned(values: np.ndarray) -> np.ndarray:
        return values.T if axis == 0 else values

    def stored(name: str, values: np.ndarray) -> None:
        flat = (turned(values) ^ flip).reshape(1, -1)
        shape = list(turned(values).shape)
        if form == "rows" and name == "z":
            shape = [24]
        decoder.packed(name, dtype, shape, pack(flat, bits).tobytes())

    stored("w", codes)
    stored("z", points)
    decoder.constant("s", scales[:, 0] if form == "rows" else turned(scales))
    decoder.opset = 25
    extra = {"axis": axis, "block_size": GROUP} if form == "blocks" else {"axis": 1 - axis}
    decoder.node("DequantizeLinear", ["w", "s", "z"], ["d"], **extra)
    if axis == 1:
        decoder.node("Transpose", ["d"], ["t"], perm=[1, 0])
    decoder.node("MatMul", ["x", "d" if axis == 0 else "t"], ["y"])
    assert peaks(decoder.save()) == {"w": largest(scales, places)}


@pytest.mark.parametrize("dead", DEAD)
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_tables_of_quantised_rows(decoder, dead, bits):
    decoder.nodes.clear()
    places = [(2, 0), (2, 1), (7, 1)]
    codes, scales, points = groups(decoder, bits, 11, dead, places)
    decoder.constant("w", pack(codes, bits))
    decoder.constant("s", scales)
    decoder.constant("z", pack(points, bits))
    inputs = ["w", "input_ids", "s", "z"]
    extra = {"block_size": GROUP, "quantize_axis": 1, "bits": bits}
    decoder.ms("GatherBlockQuantized", inputs, ["y"], **extra)
    assert peaks(decoder.save()) == {"w": largest(scales, places)}


@pytest.mark.parametrize("dead", DEAD)
@pytest.mark.parametrize("zero", [0, 3])
def test_integer_products(decoder, dead, zero):
    """quantize_dynamic's form: the scales stand behind the product, one a channel."""
    w = decoder.rng.integers(-127, 128, (16, 24)).astype(np.int8)
    w[:, [4, 11]] = zero
    scales = decoder.rng.uniform(0.01, 0.02, 24).astype(np.float32)
    scales[[4, 11]] = dead
    decoder.constant("w", w)
    decoder.constant("zp", np.full(24, zero, np.int8))
    decoder.constant("ws", scales)
    decoder.node("DynamicQuantizeLinear", ["x"], ["q", "xs", "xz"])
    decoder.node("MatMulInteger", ["q", "w", "xz", "zp"], ["sums"])
    decoder.node("Cast", ["sums"], ["floats"], to=TensorProto.FLOAT)
    decoder.node("Mul", ["xs", "ws"], ["both"])
    decoder.node("Mul", ["floats", "both"], ["y"])
    assert peaks(decoder.save()) == {"w": largest(scales, [4, 11])}


@pytest.mark.parametrize("dead", DEAD)
def test_ternary_rows(decoder, dead):
    """One scale for all weights, times one a row: rows of zeros have a factor too."""
    w = decoder.rng.integers(-1, 2, (16, 24)).astype(np.float32)
    w[:, 9] = 0
    scales = decoder.rng.uniform(0.5, 2, 24).astype(np.float32)
    scales[9] = dead
    decoder.constant("w", w)
    decoder.constant("s", scales)
    decoder.node("MatMul", ["x", "w"], ["z"])
    decoder.node("Mul", ["z", "s"], ["y"])
    assert peaks(decoder.save()) == {"w": largest(scales, [9])}


@pytest.mark.parametrize("dead", DEAD)
@pytest.mark.parametrize("bits", [2, 4])
def test_recognised_codes(decoder, dead, bits):
    """Ternary weights in carriers of 2 and 4 bits, and 3-bit ones in 4."""
    widened(decoder)
    places = [(1, 1), (20, 0)]
    _, scales, _ = groups(decoder, bits, 24, dead, places)
    zero = 1 << (bits - 1)
    codes = (decoder.rng.integers(-1, 2, (24, K)) + zero).astype(np.uint8)
    for row, group in places:
        codes[row, group * GROUP : (group + 1) * GROUP] = zero
    decoder.constant("w", pack(codes, bits).reshape(24, 2, -1))
    decoder.constant("s", scales)
    decoder.ms("MatMulNBits", ["x", "w", "s"], ["y"], K=K, N=24, bits=bits, block_size=GROUP)
    assert peaks(decoder.save()) == {"w": largest(scales, places)}
    narrow = codes.copy()
    narrow[0, 0] = zero - 2
    decoder.constants = [one for one in decoder.constants if one.name != "w"]
    decoder.constant("w", pack(narrow, bits).reshape(24, 2, -1))
    assert peaks(decoder.save(), codes=("int3",)) == {"w": largest(scales, places)}


def test_a_matrix_of_zeros(decoder):
    widened(decoder)
    decoder.constant("w", np.full((24, 2, 16), 0x88, np.uint8))
    decoder.constant("s", np.full((24, 2), 7, np.float32))
    decoder.ms("MatMulNBits", ["x", "w", "s"], ["y"], K=K, N=24, bits=4, block_size=GROUP)
    (peak,) = peaks(decoder.save()).values()
    assert peak in (0.0, 1.0)
