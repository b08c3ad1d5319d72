"""Ternary weights in every form they arrive in, recognised as such; and what is none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto
from xdsl.dialects.builtin import ModuleOp

from intaglio.dialects import rom
from intaglio.dialects.codes import pack, unpack
from intaglio.lowering.onnx.graph.model import Tensor
from intaglio.lowering.onnx.importer import import_model
from intaglio.lowering.onnx.known.constants import Given, elementwise
from intaglio.lowering.onnx.weights import ternary
from intaglio.lowering.onnx.weights.sources import DequantizedSource, RowBlockSource

SCALE = np.float32(0.037)
K = 64


def matrices(module: ModuleOp) -> list[rom.ParameterOp]:
    return [
        op
        for op in module.body.block.ops
        if isinstance(op, rom.ParameterOp) and op.type.is_matrix  # pyright: ignore
    ]


def weights(rng: np.random.Generator, n: int, k: int = K) -> np.ndarray:
    """[N, K] of -1, 0 and 1, all three in every row."""
    w = rng.integers(-1, 2, (n, k))
    w[:, :3] = [-1, 0, 1]
    return w.astype(np.int8)


Build = Callable[[Any, np.ndarray], None]
FORMS: dict[str, Build] = {}


def form(build: Build) -> Build:
    """A form of weights; it makes "y" of "x"."""
    FORMS[build.__name__] = build
    return build


@form
def float_scale_after(d: Any, w: np.ndarray) -> None:
    d.constant("w", w.T.astype(np.float32))
    d.constant("s", np.array([SCALE]))
    d.node("MatMul", ["x", "w"], ["z"])
    d.node("Mul", ["s", "z"], ["y"])


@form
def float_divided_after(d: Any, w: np.ndarray) -> None:
    d.constant("w", w.T.astype(np.float16).astype(np.float32))
    d.constant("s", np.array(1 / SCALE))
    d.node("MatMul", ["x", "w"], ["z"])
    d.node("Div", ["z", "s"], ["y"])


@form
def float_scale_before(d: Any, w: np.ndarray) -> None:
    d.constant("w", w.T.astype(np.float32))
    d.constant("s", np.array(SCALE))
    d.node("Mul", ["w", "s"], ["v"])
    d.node("MatMul", ["x", "v"], ["y"])


@form
def float_folded(d: Any, w: np.ndarray) -> None:
    d.constant("w", w.astype(np.float32) * SCALE)
    d.node("Transpose", ["w"], ["t"])
    d.node("MatMul", ["x", "t"], ["y"])


@form
def float_fused(d: Any, w: np.ndarray) -> None:
    d.constant("w", w.astype(np.float32) * SCALE)
    d.ms("FusedMatMul", ["x", "w"], ["y"], transB=1)


@form
def ternarised_in_graph(d: Any, w: np.ndarray) -> None:
    """absmean, as torch writes BitNet's online quantisation."""
    size = np.where(w == 0, 0.2, 1.2) * d.rng.uniform(0.9, 1.1, w.shape)
    d.constant("w", (size * np.where(w == 0, 1, w)).astype(np.float32))
    d.constant("least", np.array(1e-5, np.float32))
    d.constant("low", np.array(-1, np.float32))
    d.constant("high", np.array(1, np.float32))
    d.node("Abs", ["w"], ["a"])
    d.node("ReduceMean", ["a"], ["m"], keepdims=0)
    d.node("Clip", ["m", "least"], ["c"])
    d.node("Reciprocal", ["c"], ["s"])
    d.node("Mul", ["w", "s"], ["v"])
    d.node("Round", ["v"], ["r"])
    d.node("Clip", ["r", "low", "high"], ["q"])
    d.node("Div", ["q", "s"], ["u"])
    d.node("Transpose", ["u"], ["t"], perm=[1, 0])
    d.node("MatMul", ["x", "t"], ["y"])


def _quarters(w: np.ndarray) -> np.ndarray:
    """HF's packing: row r of quarter i stands in bits 2 i of row r."""
    q = (w + 1).astype(np.uint8).reshape(4, -1, w.shape[1])
    return q[0] | q[1] << 2 | q[2] << 4 | q[3] << 6


def _unpacked(d: Any, w: np.ndarray) -> None:
    d.constant("p", _quarters(w))
    for i in range(4):
        d.constant(f"mask{i}", np.array(3 << 2 * i, np.uint8))
        d.constant(f"by{i}", np.array(2 * i, np.uint8))
        d.node("BitwiseAnd", ["p", f"mask{i}"], [f"m{i}"])
        d.node("BitShift", [f"m{i}", f"by{i}"], [f"q{i}"], direction="RIGHT")


@form
def packed_bytes_joined(d: Any, w: np.ndarray) -> None:
    _unpacked(d, w)
    d.constant("one", np.array(1, np.float32))
    d.constant("s", np.array(SCALE))
    d.node("Concat", [f"q{i}" for i in range(4)], ["q"], axis=0)
    d.node("Cast", ["q"], ["f"], to=TensorProto.FLOAT)
    d.node("Sub", ["f", "one"], ["w"])
    d.node("Transpose", ["w"], ["t"], perm=[1, 0])
    d.node("MatMul", ["x", "t"], ["z"])
    d.node("Mul", ["z", "s"], ["y"])


@form
def packed_bytes_scattered(d: Any, w: np.ndarray) -> None:
    """As torch writes assignments to slices."""
    n, k = w.shape
    _unpacked(d, w)
    d.constant("one", np.array(1, np.float32))
    d.constant("s", np.array([1 / SCALE], np.float32))
    d.constant("shape", np.array([n, k], np.int64))
    d.constant("nothing", np.array(0, np.uint8))
    d.node("Expand", ["nothing", "shape"], ["u0"])
    for i in range(4):
        d.constant(f"rows{i}", np.arange(i * n // 4, (i + 1) * n // 4)[:, None])
        d.node("ScatterND", [f"u{i}", f"rows{i}", f"q{i}"], [f"u{i + 1}"], reduction="none")
    d.node("Cast", ["u4"], ["f"], to=TensorProto.FLOAT)
    d.node("Sub", ["f", "one"], ["w"])
    d.node("Transpose", ["w"], ["t"], perm=[1, 0])
    d.node("MatMul", ["x", "t"], ["z"])
    d.node("Div", ["z", "s"], ["y"])


@form
def nbits_zero_2(d: Any, w: np.ndarray) -> None:
    _nbits(d, w + 2, [], 32)


@form
def nbits_zero_1(d: Any, w: np.ndarray) -> None:
    zeros = np.full((w.shape[0], 1), 0b0101, np.uint8)
    _nbits(d, w + 1, [d.constant("zp", zeros)], 32)


@form
def nbits_one_block(d: Any, w: np.ndarray) -> None:
    _nbits(d, w + 2, [], 64)


@form
def nbits_negative_scales(d: Any, w: np.ndarray) -> None:
    """The model builder's symmetric 4-bit form: -8 stands for the largest magnitude."""
    signs = d.rng.choice([-1, 1], (w.shape[0], 2)).astype(np.int8)
    _nbits(d, 8 - 8 * w * np.repeat(signs, 32, 1), [], 32, -SCALE / 8 * signs, bits=4, cut=15)


def _nbits(
    d: Any,
    codes: np.ndarray,
    zeros: list[str],
    block: int,
    scales: np.ndarray | None = None,
    bits: int = 2,
    cut: int | None = None,
) -> None:
    n, k = codes.shape
    if cut is not None:
        # 8 is the zero point; +8 does not fit, so the sign of the scale decides.
        codes = np.where(codes > cut, 8, codes)
    packed = pack(codes.astype(np.uint8), bits)
    d.constant("w", packed.reshape(n, k // block, -1))
    if scales is None:
        scales = np.full((n, k // block), SCALE)
    d.constant("s", scales.astype(np.float32))
    inputs = ["x", "w", "s", *zeros]
    d.ms("MatMulNBits", inputs, ["y"], K=k, N=n, bits=bits, block_size=block)


def _linear_form(
    dtype: int, *, zero: int = 0, shape: str = "tensor", transpose: bool = False
) -> Build:
    def build(d: Any, w: np.ndarray) -> None:
        n, k = w.shape
        d.opset = 25
        stored = w if transpose else w.T
        bits = {"INT2": 2, "UINT2": 2, "INT4": 4, "INT8": 8}[TensorProto.DataType.Name(dtype)]
        codes = ((stored.astype(int) + zero) & ((1 << bits) - 1)).astype(np.uint8)
        d.packed("w", dtype, list(stored.shape), pack(codes.reshape(1, -1), bits).tobytes())
        dims = {"tensor": (), "rows": (n,), "blocks": (n, k // 32) if transpose else (k // 32, n)}
        size = dims[shape]
        d.constant("s", np.full(size, SCALE, np.float32))
        inputs = ["w", "s"]
        if zero:
            count = int(np.prod(size))
            points = pack(np.full((1, count), zero, np.uint8), bits).tobytes()
            inputs.append(d.packed("zp", dtype, list(size), points))
        axis = int(transpose) if shape == "blocks" else 1 - int(transpose)
        more = {"block_size": 32} if shape == "blocks" else {}
        d.node("DequantizeLinear", inputs, ["d"], axis=axis, **more)
        if transpose:
            d.node("Transpose", ["d"], ["t"], perm=[1, 0])
        d.node("MatMul", ["x", "t" if transpose else "d"], ["y"])

    return build


FORMS |= {
    "int2_tensor": _linear_form(TensorProto.INT2),
    "int2_rows_transposed": _linear_form(TensorProto.INT2, shape="rows", transpose=True),
    "int2_blocks": _linear_form(TensorProto.INT2, shape="blocks"),
    "int2_blocks_transposed": _linear_form(TensorProto.INT2, shape="blocks", transpose=True),
    "uint2_tensor": _linear_form(TensorProto.UINT2, zero=1),
    "uint2_blocks": _linear_form(TensorProto.UINT2, zero=1, shape="blocks"),
    "int4_blocks": _linear_form(TensorProto.INT4, shape="blocks"),
    "int8_tensor": _linear_form(TensorProto.INT8),
    "int8_rows": _linear_form(TensorProto.INT8, shape="rows"),
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form(decoder, plain, agrees, name):
    """Small constants are computed at once."""
    _check_form(decoder, plain, agrees, name, 24)


@pytest.mark.parametrize(
    "name",
    [
        name
        for name in FORMS
        if name.startswith(("float", "ternarised", "packed")) or name == "int2_tensor"
    ],
)
def test_every_large_form(decoder, plain, agrees, name):
    """Large ones stay expressions: 2**16 elements are not computed with."""
    _check_form(decoder, plain, agrees, name, 1200)


def _check_form(decoder: Any, plain: Any, agrees: Any, name: str, n: int) -> None:
    decoder.constants.pop(0)
    decoder.floats("table", 11, K)
    w = weights(decoder.rng, n)
    FORMS[name](decoder, w)
    if name == "nbits_negative_scales":
        w = w * (w * decoder_signs(decoder) >= 0)
    model = agrees(decoder)
    (parameter,) = matrices(model.module)
    type_ = parameter.type
    assert isinstance(type_, rom.ROMTensorType)
    assert (type_.dims, type_.code.data, type_.group.data) == ((n, K), "ternary", 0)
    assert parameter.zero is not None and parameter.zero.value.data == 1
    assert parameter.zero_fraction is not None
    assert parameter.zero_fraction.value.data == pytest.approx(np.mean(w == 0), abs=1e-12)
    source = model.parameters[parameter.key.data]
    codes = unpack(np.asarray(source.packed_rows(0, n)), 2, K)
    np.testing.assert_array_equal(codes.astype(int) - 1, w)
    scale = float(source.scales(0, 1)[0, 0])
    if name != "ternarised_in_graph":
        assert scale == pytest.approx(float(SCALE), rel=1e-6)
    np.testing.assert_allclose(plain(source, 2, 0, 1), w * scale, rtol=1e-6)
    assert parameter.peak is not None and parameter.peak.value.data == pytest.approx(scale)
    assert not any(isinstance(op, rom.ScaleOp) for op in model.module.walk())


def decoder_signs(decoder: Any) -> np.ndarray:
    """Signs of the groups of `nbits_negative_scales`, from its scales."""
    from onnx import numpy_helper

    (scales,) = (c for c in decoder.constants if c.name == "s")
    return np.repeat(-np.sign(numpy_helper.to_array(scales)), 32, axis=1)


def test_scales_that_differ_keep_their_groups(decoder, plain):
    w = weights(decoder.rng, 8, 16)
    scales = decoder.rng.uniform(0.5, 2, (8, 1)).astype(np.float32)
    decoder.constant("w", (w * scales).astype(np.float32).T)
    decoder.node("MatMul", ["x", "w"], ["y"])
    model = import_model(decoder.save())
    (parameter,) = matrices(model.module)
    assert str(parameter.type) == "!rom.tensor<[8, 16], ternary, group 16>"
    np.testing.assert_allclose(
        plain(model.parameters[parameter.key.data], 2, 16, 1), w * scales, rtol=1e-6
    )


@pytest.mark.parametrize("group", [16, 32])
def test_floats_keep_the_groups_of_their_scales(group):
    rng = np.random.default_rng(group)
    w = weights(rng, 40, K)
    w[3, :group] = 0
    scales = rng.uniform(0.5, 2, (40, K // group)).astype(np.float32)
    # The first row alone would do with a larger group.
    scales[0] = scales[0, 0]
    values = w * np.repeat(scales, group, axis=1)
    found = ternary.of_values(Given(values))
    assert found is not None and found.group == group
    assert found.zero_fraction == pytest.approx(np.mean(w == 0))
    codes = unpack(np.asarray(found.packed_rows(0, 40)), 2, K).astype(int) - 1
    got = codes * np.repeat(found.scales(0, 40), group, axis=1)
    np.testing.assert_array_equal(got.astype(np.float32), values)
    values[39, 63] *= 1.5
    values[39, 62] = values[39, 63] / 2
    assert ternary.of_values(Given(values)) is None


def test_a_row_of_zeros_has_any_scale(decoder):
    w = weights(decoder.rng, 8, 16)
    w[5] = 0
    decoder.constant("w", (w * SCALE).astype(np.float32).T)
    decoder.node("MatMul", ["x", "w"], ["y"])
    (parameter,) = matrices(import_model(decoder.save()).module)
    assert str(parameter.type) == "!rom.tensor<[8, 16], ternary>"


@pytest.mark.parametrize("name", sorted({*FORMS} - {"ternarised_in_graph"}))
def test_a_matrix_of_zeros_is_ternary(decoder, name):
    """Pruning writes them; any scale will do."""
    decoder.constants.pop(0)
    decoder.floats("table", 11, K)
    FORMS[name](decoder, np.zeros((24, K), np.int8))
    (parameter,) = matrices(import_model(decoder.save()).module)
    assert str(parameter.type).startswith(f"!rom.tensor<[24, {K}], ternary")
    assert parameter.zero_fraction is not None and parameter.zero_fraction.value.data == 1.0


@pytest.mark.parametrize(
    "change",
    [lambda w: w[5].__setitem__(3, 0.5), lambda w: w[7].__setitem__(15, np.nan)],
    ids=["another value", "not a number"],
)
def test_other_floats_are_not_ternary(decoder, change):
    from intaglio.dialects.errors import UserErrors

    w = weights(decoder.rng, 8, 16).astype(np.float32)
    change(w)
    decoder.constant("w", w.T)
    decoder.node("MatMul", ["x", "w"], ["y"])
    with pytest.raises(UserErrors, match="floating point"):
        import_model(decoder.save())


def _tensor(values: np.ndarray, dtype: str) -> Tensor:
    data = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
    return Tensor("t", dtype, values.shape, lambda: data)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 1 << 20),
    st.sampled_from([2, 4, 8]),
    st.integers(1, 40),
    st.integers(1, 70),
    st.sampled_from([16, 32, 128]),
)
def test_codes_are_recognised_or_not(seed, bits, n, k, group):
    """Against the definition, on matrices that are ternary, nearly so, or not."""
    rng = np.random.default_rng(seed)
    blocks = -(-k // group)
    top = (1 << bits) - 1
    zero = int(rng.integers(1, top))
    reach = int(rng.integers(1, min(zero, top - zero) + 1)) if rng.random() < 0.5 else 1
    codes = zero + reach * rng.integers(-1, 2, (n, k))
    if rng.random() < 0.4:
        codes[rng.integers(n), rng.integers(k)] = rng.integers(0, top + 1)
    full = np.zeros((n, blocks * group), np.uint8)
    full[:, :k] = codes
    scales = np.full((n, blocks), 0.5, np.float32)
    if rng.random() < 0.5:
        scales *= rng.choice([-1.0, 1.0, 2.0], (n, blocks)).astype(np.float32)
    source = RowBlockSource(
        (n, k), f"int{bits}", bits, group, zero,
        _tensor(pack(full, bits), "UINT8"), _tensor(scales, "FLOAT"), None,
    )  # fmt: skip
    found = ternary.of_codes(source)
    distance = np.zeros((n, blocks * group), int)
    distance[:, :k] = codes - zero
    distance = distance.reshape(n, blocks, group)
    peak = np.abs(distance).max(axis=2, keepdims=True)
    if not ((distance == 0) | (np.abs(distance) == peak)).all():
        assert found is None
        return
    assert found is not None
    values = (distance * scales[:, :, None]).reshape(n, -1)[:, :k]
    index = np.arange(k) // (found.group or k)
    got = unpack(np.asarray(found.packed_rows(0, n)), 2, k).astype(int) - 1
    np.testing.assert_allclose(got * found.scales(0, n)[:, index], values, rtol=1e-6)
    assert got.min() >= -1 and got.max() <= 1
    assert found.zero_fraction == pytest.approx(np.mean(values == 0))
    used = np.abs(scales * peak[:, :, 0])[peak[:, :, 0] > 0]
    if (used == used[:1]).all():
        assert found.group == 0 or not used.size


def test_the_first_block_that_disproves_ends_the_scan(monkeypatch):
    rows: list[int] = []

    class Watched(Given):
        def rows(self, r0: int, r1: int) -> np.ndarray:
            rows.append(r1)
            return super().rows(r0, r1)

    values = np.random.default_rng(0).normal(size=(4096, 1024)).astype(np.float32)
    assert ternary.of_values(Watched(values)) is None
    assert rows == [512, 512], "for one scale, then for one a row"
    codes = _tensor(np.tile(np.arange(256, dtype=np.uint8), (4096, 1)), "UINT8")
    one = _tensor(np.ones((), np.float32), "FLOAT")
    source = DequantizedSource((4096, 256), "int8", 8, 0, 128, codes, False, one, None)
    read: list[int] = []
    monkeypatch.setattr(
        DequantizedSource, "packed_rows",
        lambda self, r0, r1: read.append(r1) or codes.stored()[r0:r1],
    )  # fmt: skip
    assert ternary.of_codes(source) is None
    assert len(read) == 1


def test_tables_of_bytes():
    packed = Given(np.array([[0, 1, 2], [2, 2, 0]], np.uint8))
    values = elementwise(
        lambda q: q.astype(np.float32) * np.float32(0.5) - np.float32(0.5),
        [packed],
        np.dtype(np.float32),
    )
    found = ternary.of_values(values)
    assert found is not None and found.group == 0 and found.scale == 0.5
    assert found.zero_fraction == pytest.approx(1 / 6)
    assert unpack(np.asarray(found.packed_rows(0, 2)), 2, 3).tolist() == [[0, 1, 2], [2, 2, 0]]
    other = Given(np.array([[0, 1, 2], [2, 3, 0]], np.uint8))
    assert ternary.of_values(elementwise(lambda q: q - 1.0, [other], np.dtype(np.float64))) is None
