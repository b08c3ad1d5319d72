"""Every weight encoding against a plain dequantised matrix."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto
from xdsl.dialects.builtin import ModuleOp

from intaglio.dialects import rom
from intaglio.dialects.codes import pack, unpack
from intaglio.dialects.errors import UserError, UserErrors
from intaglio.lowering.onnx.importer import ImportedModel, import_model
from intaglio.lowering.onnx.weights.quantised_graph import write_quantised
from intaglio.lowering.onnx.weights.rounding import Request, Rounding, parse_request, parse_rounding
from intaglio.lowering.parameters import ParameterSource

SIGNED = {TensorProto.INT2: 2, TensorProto.INT4: 4, TensorProto.INT8: 8}
UNSIGNED = {TensorProto.UINT2: 2, TensorProto.UINT4: 4, TensorProto.UINT8: 8}


def matrices(module: ModuleOp) -> list[rom.ParameterOp]:
    return [
        op
        for op in module.body.block.ops
        if isinstance(op, rom.ParameterOp) and op.type.is_matrix  # pyright: ignore
    ]


def check(
    model: ImportedModel, expected: np.ndarray, plain, code: str, group: int
) -> rom.ParameterOp:
    """The only matrix of the model is `expected` [N, K], with its peak."""
    model.module.verify()
    (parameter,) = matrices(model.module)
    type_ = parameter.type
    assert isinstance(type_, rom.ROMTensorType)
    assert (type_.dims, type_.code.data, type_.group.data) == (expected.shape, code, group)
    assert (parameter.zero_fraction is not None) == (code == "ternary")
    source = model.parameters[parameter.key.data]
    assert isinstance(source, ParameterSource)
    zero = None if parameter.zero is None else parameter.zero.value.data
    found = plain(source, type_.bits, group, zero)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9)
    scales = source.scales(0, expected.shape[0])
    assert parameter.peak is not None
    assert parameter.peak.value.data == pytest.approx(float(np.abs(scales).max()))
    return parameter


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("k", [16, 32, 40, 45])
@pytest.mark.parametrize("zeros", ["none", "packed", "flat", "float", "float16"])
@pytest.mark.parametrize("flat", [False, True])
def test_matmul_nbits(decoder, plain, bits, k, zeros, flat):
    n, block = 9, 16
    blocks = -(-k // block)
    rng = decoder.rng
    codes = rng.integers(0, 1 << bits, (n, blocks * block)).astype(np.uint8)
    scales = rng.normal(size=(n, blocks)).astype(np.float32)
    points = rng.integers(0, 1 << bits, (n, blocks)).astype(np.uint8)
    decoder.constant("w_Q4", pack(codes, bits).reshape(n, blocks, -1))
    decoder.constant("w_scales", scales.reshape(-1) if flat else scales)
    inputs = ["x", "w_Q4", "w_scales"]
    if zeros == "none":
        points = np.full_like(points, 1 << (bits - 1))
    else:
        stored = pack(points, bits) if zeros in ("packed", "flat") else points
        stored = stored.astype({"float": np.float32, "float16": np.float16}.get(zeros, np.uint8))
        inputs.append(decoder.constant("w_zp", stored.reshape(-1) if zeros == "flat" else stored))
    index = np.arange(k) // block
    expected = (codes[:, :k] - points[:, index].astype(float)) * scales[:, index]
    _linear(decoder, k)
    decoder.ms("MatMulNBits", inputs, ["y"], K=k, N=n, bits=bits, block_size=block)
    parameter = check(import_model(decoder.save()), expected, plain, f"int{bits}", block)
    assert (parameter.zero is None) == (zeros != "none")
    assert parameter.key.data == "onnx::" + ",".join(inputs[1:])
    assert parameter.sym_name.data == "w"


def _linear(decoder, k: int) -> None:
    """Makes "x" k elements wide."""
    decoder.constants.pop(0)
    decoder.floats("table", 11, k)


@pytest.mark.parametrize("dtype", [np.float16, "bfloat16"])
def test_scales_of_16_bits(decoder, plain, dtype):
    rng = decoder.rng
    codes = rng.integers(0, 256, (4, 1, 8)).astype(np.uint8)
    scales = rng.normal(size=(4, 1)).astype(np.float32)
    decoder.constant("w", codes)
    if dtype == "bfloat16":
        high = (scales.view(np.uint32) >> 16).astype(np.uint16)
        scales = (high.astype(np.uint32) << 16).view(np.float32)
        decoder.packed("s", TensorProto.BFLOAT16, [4, 1], high.tobytes())
    else:
        scales = scales.astype(np.float16)
        decoder.constant("s", scales)
    short = TensorProto.BFLOAT16 if dtype == "bfloat16" else TensorProto.FLOAT16
    decoder.node("Cast", ["x"], ["h"], to=short)
    decoder.ms("MatMulNBits", ["h", "w", "s"], ["z"], K=16, N=4, bits=4, block_size=16)
    decoder.node("Cast", ["z"], ["y"], to=TensorProto.FLOAT)
    expected = (unpack(codes.reshape(4, -1), 4, 16) - 8.0) * scales.astype(float)
    check(import_model(decoder.save()), expected, plain, "int4", 16)


def test_whole_rows_are_views_of_the_file(decoder):
    codes = decoder.rng.integers(0, 256, (4, 1, 8)).astype(np.uint8)
    decoder.constant("w", codes)
    decoder.floats("s", 4, 1)
    decoder.ms("MatMulNBits", ["x", "w", "s"], ["y"], K=16, N=4, bits=4, block_size=16)
    path = decoder.save(save_as_external_data=True, location="weights.bin", size_threshold=0)
    model = import_model(path)
    (parameter,) = matrices(model.module)
    rows = model.parameters[parameter.key.data].packed_rows(1, 3)
    base = rows
    while isinstance(base.base, np.ndarray):
        base = base.base
    assert isinstance(base, np.memmap) and not rows.flags.writeable
    assert np.array_equal(rows, codes.reshape(4, 8)[1:3])
    assert [file.name for file in model.external_files] == ["weights.bin"]


@pytest.mark.parametrize("dtype", [*SIGNED, *UNSIGNED])
@pytest.mark.parametrize("form", ["blocks", "rows", "tensor"])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize(("n", "k"), [(12, 32), (7, 40), (5, 13)])
def test_dequantized_matmul(decoder, plain, dtype, form, transposed, zeros, n, k):
    """Storage [K, N], or [N, K] with a Transpose; 2, 4, 8 bits, signed or not, odd sizes too."""
    bits = (SIGNED | UNSIGNED)[dtype]
    signed = dtype in SIGNED
    group = {"blocks": 16, "rows": k, "tensor": 0}[form]
    blocks = -(-k // (group or k))
    rng = decoder.rng
    half = 1 << (bits - 1) if signed else 0
    codes = rng.integers(0, 1 << bits, (n, k))
    shape = {"blocks": (n, blocks), "rows": (n,), "tensor": ()}[form]
    scales = rng.normal(size=shape).astype(np.float32)
    points = rng.integers(0, 1 << bits, shape)

    def stored(values: np.ndarray) -> bytes:
        flat = ((np.asarray(values).reshape(1, -1) - half) & ((1 << bits) - 1)).astype(np.uint8)
        return pack(flat, bits).tobytes()

    def turn(values: np.ndarray) -> np.ndarray:
        return values.T if values.ndim == 2 and not transposed else values

    decoder.opset = 25
    _linear(decoder, k)
    decoder.packed("w", dtype, list(turn(codes).shape), stored(turn(codes)))
    decoder.constant("s", turn(scales))
    inputs = ["w", "s"]
    if zeros:
        inputs.append(decoder.packed("z", dtype, list(turn(points).shape), stored(turn(points))))
    attributes = {"axis": 0 if not transposed else -1, "block_size": 16}
    if form != "blocks":
        attributes = {"axis": 0 if transposed else 1}
    decoder.node("DequantizeLinear", inputs, ["d"], **attributes)
    if transposed:
        decoder.node("Transpose", ["d"], ["t"], perm=[1, 0])
    decoder.node("MatMul", ["x", "t" if transposed else "d"], ["y"])
    full = np.broadcast_to(scales.reshape(n if form != "tensor" else 1, -1), (n, blocks))
    offset = np.broadcast_to(points.reshape(n if form != "tensor" else 1, -1), (n, blocks))
    offset = offset if zeros else np.full((n, blocks), half)
    index = np.arange(k) // (group or k)
    expected = (codes - offset[:, index].astype(float)) * full[:, index]
    parameter = check(import_model(decoder.save()), expected, plain, f"int{bits}", group)
    assert (parameter.zero is None) == (zeros and form != "tensor")


def test_one_block_a_channel(decoder, plain):
    """onnxruntime's channel-wise form: [N, K], scales [N, 1], axis 1, block_size = K."""
    codes = decoder.rng.integers(0, 16, (6, 16)).astype(np.uint8)
    decoder.packed("w", TensorProto.UINT4, [6, 16], pack(codes, 4).tobytes())
    scales = decoder.rng.normal(size=(6, 1)).astype(np.float32)
    decoder.constant("s", scales)
    decoder.node("DequantizeLinear", ["w", "s"], ["d"], axis=1, block_size=16)
    decoder.node("Transpose", ["d"], ["t"], perm=[1, 0])
    decoder.node("MatMul", ["x", "t"], ["y"])
    check(import_model(decoder.save()), codes * scales.astype(float), plain, "int4", 16)


def test_large_transposed_storage_is_read_in_slabs(decoder, plain):
    n, k = 700, 24
    codes = decoder.rng.integers(0, 16, (n, k)).astype(np.uint8)
    _linear(decoder, k)
    decoder.packed("w", TensorProto.UINT4, [k, n], pack(codes.T.reshape(1, -1), 4).tobytes())
    decoder.constant("s", np.array(0.5, np.float32))
    decoder.node("DequantizeLinear", ["w", "s"], ["d"])
    decoder.node("MatMul", ["x", "d"], ["y"])
    model = import_model(decoder.save())
    source = model.parameters["onnx::w,s"]
    assert np.array_equal(unpack(source.packed_rows(0, n), 4, k), codes)
    assert np.array_equal(unpack(source.packed_rows(301, 640), 4, k), codes[301:640])


@pytest.mark.parametrize("storage", ["uint8", "int4", "uint4"])
@pytest.mark.parametrize("zeros", [False, True])
def test_gather_block_quantized(decoder, plain, storage, zeros):
    v, k, block = 11, 32, 16
    rng = decoder.rng
    decoder.nodes.clear()
    codes = rng.integers(0, 16, (v, k)).astype(np.uint8)
    points = rng.integers(0, 16, (v, 2)).astype(np.uint8)
    scales = rng.normal(size=(v, 2)).astype(np.float32)
    flip = 8 if storage == "int4" else 0
    packed, packed_points = pack(codes ^ flip, 4), pack(points ^ flip, 4)
    inputs = ["w", "input_ids", "s"] + (["z"] if zeros else [])
    if storage == "uint8":
        decoder.constant("w", packed)
        decoder.constant("z", packed_points)
    else:
        dtype = TensorProto.INT4 if storage == "int4" else TensorProto.UINT4
        decoder.packed("w", dtype, [v, k], packed.tobytes())
        decoder.packed("z", dtype, [v, 2], packed_points.tobytes())
    decoder.constant("s", scales)
    extra = {"bits": 4} if storage == "uint8" else {}
    decoder.ms("GatherBlockQuantized", inputs, ["y"], block_size=block, quantize_axis=1, **extra)
    default = {"uint8": 8, "int4": 8, "uint4": 0}[storage]
    points = points if zeros else np.full_like(points, default)
    index = np.arange(k) // block
    expected = (codes - points[:, index].astype(float)) * scales[:, index]
    check(import_model(decoder.save()), expected, plain, "int4", block)


@pytest.mark.parametrize(
    "text", ["int4:16", "int2:16", "int3:8", "int6:16", "int8:7", "ternary", "ternary:8"]
)
@pytest.mark.parametrize("transposed", [False, True])
def test_rounding_on_request(decoder, plain, text, transposed):
    weights = decoder.rng.normal(size=(9, 16)).astype(np.float32)
    weights[3] = 0
    decoder.constant("m.weight", weights if transposed else weights.T)
    if transposed:
        decoder.node("Transpose", ["m.weight"], ["t"])
    decoder.node("MatMul", ["x", "t" if transposed else "m.weight"], ["y"])
    model = import_model(decoder.save(), weights=text)
    code, _, size = text.partition(":")
    group = int(size or 16)
    expected = np.zeros((9, 16))
    for g in range(0, 16, group):
        part = weights[:, g : g + group].astype(float)
        if code == "ternary":
            # BitNet's rule has one scale for all weights.
            limit, scale = 1, np.abs(part).mean(axis=1 if size else None, keepdims=True)
        else:
            limit = {"int2": 1, "int3": 3, "int4": 7, "int6": 31, "int8": 127}[code]
            scale = np.abs(part).max(axis=1, keepdims=True) / limit
        safe = np.where(scale > 0, scale, 1)
        expected[:, g : g + group] = np.clip(np.rint(part / safe), -limit, limit) * scale
    parameter = check(model, expected, plain, code, int(size or 0))
    if code == "ternary":
        assert parameter.zero_fraction is not None
        assert parameter.zero_fraction.value.data == pytest.approx(np.mean(expected == 0))


def test_codes_by_name(decoder, plain):
    """The first part that occurs in a name decides; the others take what stands for all."""
    names = ["up_proj", "down_proj", "lm_head"]
    for name in names:
        decoder.constant(f"m.{name}.weight", decoder.rng.normal(size=(16, 16)).astype(np.float32))
    values = ["x", "a", "b", "y"]
    for i, name in enumerate(names):
        inputs = [values[i], f"m.{name}.weight"]
        decoder.node("MatMul", inputs, [values[i + 1]], name=f"/m/{name}/MatMul")
    path = decoder.save()
    model = import_model(path, weights="int3:16,down_proj=int6:8,down=int8:8,head/=int4:16")
    found = {op.sym_name.data: str(op.type) for op in matrices(model.module)}
    assert found == {
        "m_up_proj": "!rom.tensor<[16, 16], int3, group 16>",
        "m_down_proj": "!rom.tensor<[16, 16], int6, group 8>",
        "m_lm_head": "!rom.tensor<[16, 16], int4, group 16>",
    }
    assert [op.zero.value.data for op in matrices(model.module) if op.zero] == [4, 32, 8]
    (warning,) = model.warnings
    assert "'down' is in no name" in warning
    with pytest.raises(UserErrors, match="floating point") as caught:
        import_model(path, weights="down_proj=int6:8,lm_head=int8:8")
    assert [error.node for error in caught.value.errors] == ["/m/up_proj/MatMul"]


def test_names_of_torch_modules(decoder):
    """Torch's weights are anonymous; the module stands in the node's metadata."""
    decoder.floats("val_84", 16, 16)
    decoder.node("MatMul", ["x", "val_84"], ["y"], name="node_linear_5")
    scopes = "['', 'model', 'model.layers.0.mlp', 'model.layers.0.mlp.down_proj', 'linear_5']"
    decoder.nodes[-1].metadata_props.add(key="pkg.torch.onnx.name_scopes", value=scopes)
    model = import_model(decoder.save(), weights="int4:16,down_proj=int6:16")
    (parameter,) = matrices(model.module)
    assert parameter.sym_name.data == "model_layers_0_mlp_down_proj"
    assert str(parameter.type) == "!rom.tensor<[16, 16], int6, group 16>"
    assert not model.warnings


@pytest.mark.parametrize(
    ("text", "group"), [("int3:16", 16), ("int6:32", 32), ("ternary", 0), ("int4:16,y=int3:32", 32)]
)
def test_the_judge_runs_the_same_numbers(decoder, plain, tmp_path, text, group):
    """onnxruntime has no 3 and 6 bits, and no scale for a whole matrix; it gets wider ones."""
    decoder.constants.pop(0)
    decoder.floats("table", 11, 48)
    decoder.floats("w", 48, 24)
    decoder.node("MatMul", ["x", "w"], ["y"], name="y_proj")
    path = decoder.save()
    model = import_model(path, weights=text)
    judge = tmp_path / "judge" / "model.onnx"
    write_quantised(path, model.rounded, judge, judge.with_name("weights.bin"))
    (parameter,) = matrices(model.module)
    type_ = parameter.type
    assert isinstance(type_, rom.ROMTensorType) and type_.group.data == group
    assert parameter.zero is not None
    source = model.parameters[parameter.key.data]
    weights = plain(source, type_.bits, group, parameter.zero.value.data)
    table = model.parameters["onnx::table"].values(0, 11).astype(float)
    import onnx

    graph = onnx.load(judge)
    for node in graph.graph.node:
        for attribute in node.attribute:
            if attribute.name == "accuracy_level":
                attribute.i = 0
    onnx.save(graph, judge)
    tokens = [3, 1, 4]
    found = decoder.reference(judge, tokens)
    np.testing.assert_allclose(found, table[tokens] @ weights.T, rtol=1e-4, atol=1e-4)


def test_dense_constants(decoder):
    decoder.constant("g", decoder.rng.normal(size=16).astype(np.float16))
    decoder.node("SimplifiedLayerNormalization", ["x", "g"], ["y"])
    model = import_model(decoder.save())
    table = model.parameters["onnx::table"]
    assert table.dims == (11, 16) and table.code == "float32"
    assert table.values(2, 5).shape == (3, 16) and table.values(2, 5).dtype == np.float32
    assert model.parameters["onnx::g"].values(0, 16).dtype == np.float32
    (parameter,) = (
        op
        for op in model.module.walk()
        if isinstance(op, rom.ParameterOp) and op.sym_name.data == "table"
    )
    assert parameter.peak is not None
    assert parameter.peak.value.data == float(np.abs(table.values(0, 11)).max())


def test_parse_rounding():
    assert parse_rounding("int4:32") == Rounding("int4", 32)
    assert parse_rounding("ternary") == Rounding("ternary", 0)
    for text in ("int4", "int5:8", "int4:0", "int4:-1", "ternary:x", "", "int4:8:8"):
        with pytest.raises(UserError, match="--weights"):
            parse_rounding(text)


def test_parse_request():
    assert parse_request("int4:32") == Request(Rounding("int4", 32))
    parts = (("down_proj", Rounding("int6", 32)), ("lm_head", Rounding("ternary", 0)))
    assert parse_request("int3:32,down_proj=int6:32, lm_head = ternary") == Request(
        Rounding("int3", 32), parts
    )
    assert parse_request("lm_head=int6:64") == Request(None, (("lm_head", Rounding("int6", 64)),))
    for text in ("int4:32,int3:32", "=int4:32", "a=,int4:32", "int4:32,", "lm_head=", "a:int4:8"):
        with pytest.raises(UserError, match="--weights"):
            parse_request(text)


def refused(decoder, match: str) -> None:
    with pytest.raises(UserErrors, match=match) as caught:
        import_model(decoder.save())
    assert all(error.node for error in caught.value.errors)


def nbits(decoder, inputs=(), **attributes) -> None:
    attributes = {"K": 16, "N": 4, "bits": 4, "block_size": 16} | attributes
    decoder.ms("MatMulNBits", ["x", "w", "s", *inputs], ["y"], **attributes)


@pytest.mark.parametrize(
    ("attributes", "shape", "match"),
    [
        ({"bits": 3}, (4, 1, 8), "bits = 3"),
        ({"block_size": 24}, (4, 1, 12), "power of two"),
        ({}, (4, 1, 9), "weight matrix has shape"),
        ({"K": 40}, (4, 3, 8), "scales have shape"),
        ({"K": 12}, (4, 1, 8), "has 16 elements a token, the matrix needs 12"),
    ],
)
def test_refused_matmul_nbits(decoder, attributes, shape, match):
    decoder.constant("w", np.zeros(shape, np.uint8))
    decoder.floats("s", 4, 1)
    nbits(decoder, **attributes)
    refused(decoder, match)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_zero_points_that_are_not_finite(decoder, value):
    decoder.constant("w", np.zeros((4, 1, 8), np.uint8))
    decoder.floats("s", 4, 1)
    decoder.constant("z", np.array([1, 2, value, 3], np.float32))
    nbits(decoder, ["z"])
    refused(decoder, f"not finite .'z' has {value}")


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("k", [32, 45])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, "bfloat16"])
@pytest.mark.parametrize("flat", [False, True])
def test_real_zero_points(decoder, plain, bits, k, dtype, flat):
    """Zero points of any value: fractions, negative ones, integers beyond the codes."""
    n, block = 9, 16
    blocks = -(-k // block)
    rng = decoder.rng
    codes = rng.integers(0, 1 << bits, (n, blocks * block)).astype(np.uint8)
    scales = rng.normal(size=(n, blocks)).astype(np.float32)
    points = rng.uniform(-2, 1 << bits, (n, blocks)).astype(np.float32)
    points[0], points[1], points[2, 0] = -37.25, 1 << bits, 600.5
    decoder.constant("w", pack(codes, bits).reshape(n, blocks, -1))
    decoder.constant("s", scales)
    if dtype == "bfloat16":
        high = (points.view(np.uint32) >> 16).astype(np.uint16)
        points = (high.astype(np.uint32) << 16).view(np.float32)
        decoder.packed("z", TensorProto.BFLOAT16, [n, blocks], high.tobytes())
    else:
        points = points.astype(dtype)
        decoder.constant("z", points.reshape(-1) if flat else points)
    index = np.arange(k) // block
    expected = (codes[:, :k] - points.astype(float)[:, index]) * scales[:, index].astype(float)
    _linear(decoder, k)
    nbits(decoder, ["z"], K=k, N=n, bits=bits, block_size=block)
    model = import_model(decoder.save())
    parameter = check(model, expected, plain, f"int{bits}", block)
    type_ = parameter.type
    assert isinstance(type_, rom.ROMTensorType)
    assert bits + 15 < type_.offsets.data <= 32
    # The widths of targets' codes are no narrower ones of these.
    again = import_model(decoder.save(), codes=("int3", "int2", "ternary"))
    assert matrices(again.module)[0].type == type_


def test_offsets_of_all_layers_are_alike(decoder):
    """One matrix whose zero points lie outside makes those of its code wider, no others."""
    for name, bits, point in (("a", 4, 7.5), ("b", 4, 40.5), ("c", 2, 1.5), ("d", 4, 7)):
        decoder.constant(f"{name}.w", np.full((16, 1, 2 * bits), 0x5A, np.uint8))
        decoder.constant(f"{name}.s", np.ones((16, 1), np.float32))
        decoder.constant(f"{name}.z", np.full((16, 1), point, np.float32))
    x = "x"
    for name, bits in (("a", 4), ("b", 4), ("c", 2), ("d", 4)):
        y = "y" if name == "d" else f"{name}.y"
        inputs = [x, *(f"{name}.{part}" for part in "wsz")]
        decoder.ms("MatMulNBits", inputs, [y], K=16, N=16, bits=bits, block_size=16)
        x = y
    found = [op.type for op in matrices(import_model(decoder.save()).module)]
    assert [type_.offsets.data for type_ in found] == [22, 22, 17, 0]  # pyright: ignore
    assert [type_.zeros.data for type_ in found] == [0, 0, 0, 1]  # pyright: ignore


def test_a_table_has_no_zero_points_in_floating_point(decoder):
    """onnxruntime does not load such a graph, whatever the values."""
    decoder.nodes.clear()
    decoder.constant("w", np.zeros((11, 16), np.uint8))
    decoder.floats("s", 11, 2)
    decoder.constant("z", np.full((11, 2), 8, np.float32))
    inputs = ["w", "input_ids", "s", "z"]
    decoder.ms("GatherBlockQuantized", inputs, ["y"], block_size=16, quantize_axis=1, bits=4)
    refused(decoder, "element type FLOAT")


@pytest.mark.parametrize(("index", "good"), [(np.zeros(16), True), (np.arange(16) % 2, False)])
def test_group_index(decoder, index, good):
    decoder.constant("w", np.zeros((4, 1, 8), np.uint8))
    decoder.floats("s", 4, 1)
    decoder.constant("g", index.astype(np.int32))
    nbits(decoder, ["", "g"])
    if good:
        import_model(decoder.save())
    else:
        refused(decoder, "g_idx reorders")


def test_scales_along_the_wrong_axis(decoder):
    decoder.constant("w", np.zeros((16, 16), np.int8))
    decoder.floats("s", 16)
    decoder.node("DequantizeLinear", ["w", "s"], ["d"], axis=0)
    decoder.node("MatMul", ["x", "d"], ["y"])
    refused(decoder, "one scale for each input")


def test_blocks_along_the_wrong_axis(decoder):
    decoder.constant("w", np.zeros((16, 32), np.int8))
    decoder.floats("s", 16, 2)
    decoder.node("DequantizeLinear", ["w", "s"], ["d"], axis=1, block_size=16)
    decoder.node("MatMul", ["x", "d"], ["y"])
    refused(decoder, "blocks lie along the outputs")


def test_scales_that_are_no_numbers(decoder):
    decoder.constant("w", np.zeros((4, 1, 8), np.uint8))
    decoder.constant("s", np.array([1, np.nan, 1, 1], np.float32))
    nbits(decoder)
    refused(decoder, "not finite")


@pytest.mark.parametrize("text", ["int4:8", "int8:16", "int2:4", "ternary:8"])
@pytest.mark.parametrize("size", [1e-37, 1e-39, 1e-42])
@pytest.mark.filterwarnings("error")
def test_rounded_weights_may_be_subnormal(decoder, text, size):
    """One over their scale is no float32; the codes are those of larger weights."""
    weights = decoder.rng.integers(-3, 4, (16, 6)).astype(np.float64)
    weights[0] = 7
    found = []
    for factor in (1.0, size):
        decoder.constants = [one for one in decoder.constants if one.name != "w"]
        decoder.nodes = decoder.nodes[:1]
        decoder.constant("w", (weights * factor).astype(np.float32))
        decoder.node("MatMul", ["x", "w"], ["y"])
        source = import_model(decoder.save(), weights=text).parameters["onnx::w"]
        found.append(unpack(np.asarray(source.packed_rows(0, 6)), 8 if "8:" in text else 4, 16))
        assert np.isfinite(source.scales(0, 6)).all()
    if size > 1e-40:
        assert np.array_equal(*found)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("text", ["int4:8", "int8:16", "ternary"])
@pytest.mark.filterwarnings("error")
def test_float_weights_that_are_no_numbers(decoder, value, text):
    """The file has weights, not scales."""
    weights = decoder.rng.normal(size=(16, 6)).astype(np.float32)
    weights[3, 2] = value
    decoder.constant("w", weights)
    decoder.node("MatMul", ["x", "w"], ["y"])
    with pytest.raises(UserErrors, match="tensor 'w' has weights that are not finite"):
        import_model(decoder.save(), weights=text)
