"""Activations that the graph rounds to 8 bits itself: what is taken, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, numpy_helper
from xdsl.dialects.builtin import ModuleOp

from intaglio.dialects import rom
from intaglio.dialects.errors import UserErrors
from intaglio.lowering.onnx.importer import ImportedModel, import_model

SCALE = 0.037


def linears(module: ModuleOp) -> list[rom.LinearOp]:
    return [op for op in module.walk() if isinstance(op, rom.LinearOp)]


def parameter(model: ImportedModel, op: rom.LinearOp) -> rom.ParameterOp:
    found = rom.resolve(op, op.weights)
    assert isinstance(found, rom.ParameterOp)
    return found


def ternary(d: Any, name: str = "w", n: int = 24) -> str:
    """[K, N] of -1, 0 and 1."""
    w = d.rng.integers(-1, 2, (d.width, n)).astype(np.float32)
    w[:3, 0] = [-1, 0, 1]
    return d.constant(name, w)


def scalar(d: Any, name: str, value: float) -> str:
    return d.constant(name, np.array(value, np.float32))


def chain(d: Any, x: str = "x", **changes: Any) -> tuple[str, str]:
    """BitNet's rounding as torch writes it; gives the names of levels and scale."""
    p = changes.get("prefix", "")
    axes = d.constant(f"{p}axes", np.array(changes.get("axes", [-1]), np.int64))
    scalar(d, f"{p}eps", changes.get("eps", 1e-5))
    scalar(d, f"{p}limit", changes.get("limit", 127.0))
    scalar(d, f"{p}low", changes.get("low", -128.0))
    scalar(d, f"{p}high", changes.get("high", 127.0))
    d.node("Abs", [x], [f"{p}abs"])
    d.node("ReduceMax", [f"{p}abs", axes], [f"{p}max"], keepdims=changes.get("keepdims", 1))
    d.node(changes.get("bound", "Clip"), [f"{p}max", f"{p}eps"], [f"{p}bound"])
    d.node("Reciprocal", [f"{p}bound"], [f"{p}inverse"])
    d.node("Mul", [f"{p}inverse", f"{p}limit"], [f"{p}scale"])
    d.node("Mul", [x, f"{p}scale"], [f"{p}scaled"])
    last = f"{p}scaled"
    if changes.get("rounds", True):
        d.node(changes.get("round", "Round"), [last], [f"{p}rounded"])
        last = f"{p}rounded"
    d.node("Clip", [last, f"{p}low", f"{p}high"], [f"{p}levels"])
    return f"{p}levels", f"{p}scale"


def check(agrees: Any, decoder: Any) -> ImportedModel:
    """The one product takes int8 and has the scale of `SCALE` in its matrix; no scale is left."""
    model = agrees(decoder)
    (op,) = linears(model.module)
    assert op.activation is not None and op.activation.data == "int8"
    assert not any(isinstance(o, rom.ScaleOp) for o in model.module.walk())
    found = parameter(model, op)
    assert str(found.type) == f"!rom.tensor<[24, {decoder.width}], ternary>"
    assert found.peak is not None and found.peak.value.data == pytest.approx(SCALE)
    return model


def test_torch_scales_back_before_the_product(decoder, agrees):
    levels, scale = chain(decoder)
    decoder.node("Div", [levels, scale], ["rounded_x"])
    decoder.constant("s", np.array([SCALE], np.float32))
    decoder.node("MatMul", ["rounded_x", ternary(decoder)], ["z"], name="product")
    decoder.node("Mul", ["z", "s"], ["y"], name="scaling")
    model = check(agrees, decoder)
    names = [n.data for n in linears(model.module)[0].onnx.data[0]]  # pyright: ignore
    assert names[-2:] == ["product", "scaling"] and len(names) > 8


def test_packed_models_scale_back_after_the_product(decoder, agrees):
    levels, scale = chain(decoder)
    decoder.node("Cast", [levels], ["bytes"], to=TensorProto.INT8)
    decoder.node("Cast", ["bytes"], ["floats"], to=TensorProto.FLOAT)
    decoder.constant("s", np.array([1 / SCALE], np.float32))
    decoder.node("MatMul", ["floats", ternary(decoder)], ["z"])
    decoder.node("Mul", ["s", scale], ["both"])
    decoder.node("Div", ["z", "both"], ["y"])
    check(agrees, decoder)


@pytest.mark.parametrize("inverse", [False, True])
def test_integer_products(decoder, agrees, inverse):
    """Max, Div, and MatMulInteger; the step max / 127 instead of its inverse."""
    d = decoder
    d.constant("axes", np.array([-1], np.int64))
    d.node("Abs", ["x"], ["abs"])
    d.node("ReduceMax", ["abs", "axes"], ["max"], keepdims=1)
    d.node("Max", [scalar(d, "eps", 1e-5), "max"], ["bound"])
    scalar(d, "limit", 127.0)
    if inverse:
        d.node("Div", ["bound", "limit"], ["step"])
        d.node("Div", ["x", "step"], ["scaled"])
    else:
        d.node("Div", ["limit", "bound"], ["scale"])
        d.node("Mul", ["x", "scale"], ["scaled"])
    d.node("Round", ["scaled"], ["rounded"])
    d.node("Clip", ["rounded", scalar(d, "low", -128), scalar(d, "high", 127)], ["levels"])
    d.node("Cast", ["levels"], ["bytes"], to=TensorProto.INT8)
    w = d.rng.integers(-1, 2, (d.width, 24)).astype(np.int8)
    w[:3, 0] = [-1, 0, 1]
    d.constant("w", w)
    d.node("MatMulInteger", ["bytes", "w"], ["sums"])
    d.node("Cast", ["sums"], ["floats"], to=TensorProto.FLOAT)
    d.node("Mul" if inverse else "Div", ["floats", "step" if inverse else "scale"], ["z"])
    d.node("Mul", ["z", scalar(d, "s", SCALE)], ["y"])
    check(agrees, decoder)


@pytest.mark.parametrize("form", ["fused", "bias", "before"])
def test_scales_and_biases_of_the_product_itself(decoder, agrees, form):
    d = decoder
    levels, scale = chain(d)
    d.node("Div", [levels, scale], ["rounded_x"])
    w = ternary(d)
    if form == "fused":
        d.ms("FusedMatMul", ["rounded_x", w], ["y"], alpha=SCALE)
    elif form == "bias":
        d.node("MatMul", ["rounded_x", w], ["z"])
        d.node("Mul", ["z", scalar(d, "s", SCALE)], ["u"])
        d.node("Add", ["u", d.floats("b", 24)], ["y"])
    else:
        d.node("Mul", ["rounded_x", scalar(d, "s", SCALE)], ["u"])
        d.node("MatMul", ["u", w], ["y"])
    model = check(agrees, d)
    assert (linears(model.module)[0].bias is not None) == (form == "bias")


def test_products_share_one_rounding(decoder, agrees):
    levels, scale = chain(decoder)
    decoder.node("Div", [levels, scale], ["rounded_x"])
    for i in range(3):
        decoder.constant(f"s{i}", np.array([SCALE * (i + 1)], np.float32))
        decoder.node("MatMul", ["rounded_x", ternary(decoder, f"w{i}")], [f"z{i}"])
        decoder.node("Mul", [f"z{i}", f"s{i}"], [f"y{i}"])
    decoder.node("Mul", ["y0", "y1"], ["m"])
    decoder.node("Add", ["m", "y2"], ["y"])
    model = agrees(decoder, tolerance=1e-4)
    ops = linears(model.module)
    assert len({op.input for op in ops}) == 1 and {op.activation.data for op in ops} == {"int8"}


def test_an_adapter_reads_what_is_not_rounded(decoder, agrees):
    """peft around BitNet: base product on the rounded activation, A on the activation itself."""
    d = decoder
    levels, scale = chain(d)
    d.node("Div", [levels, scale], ["rounded_x"])
    d.constant("s", np.array([SCALE], np.float32))
    d.node("MatMul", ["rounded_x", ternary(d)], ["z"])
    d.node("Mul", ["z", "s"], ["base"])
    for name, dims in (("a", (d.width, 4)), ("b", (4, 24))):
        # Numbers that int8 with a scale for each output holds exactly.
        matrix = d.rng.integers(-127, 128, dims)
        matrix[0] = 127
        d.constant(name, matrix.astype(np.float32) / 64)
    d.node("MatMul", ["x", "a"], ["inner"])
    d.node("MatMul", ["inner", "b"], ["outer"])
    d.node("Mul", ["outer", scalar(d, "scaling", 2.0)], ["lora"])
    d.node("Add", ["base", "lora"], ["y"])
    model = agrees(d, tolerance=1e-4)
    base, down, up = linears(model.module)
    assert base.activation is not None and down.activation is None and up.activation is None
    assert down.input is base.input
    for op, dims in ((down, "[4, 16], int8, group 16"), (up, "[24, 4], int8, group 4")):
        assert str(parameter(model, op).type) == f"!rom.adapter<{dims}>"


def test_squared_relu(decoder, agrees):
    for kind in ("Pow", "Mul"):
        decoder.node("Relu", ["x"], [f"r{kind}"])
        scalar(decoder, "two", 2.0) if kind == "Pow" else None
        decoder.node(kind, [f"r{kind}", "two" if kind == "Pow" else "rMul"], [f"y{kind}"])
    decoder.node("Add", ["yPow", "yMul"], ["y"])
    model = agrees(decoder)
    kinds = [op.kind.data for op in model.module.walk() if isinstance(op, rom.ActivateOp)]
    assert kinds == ["relu2", "relu2"]


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"limit": 7.0}, "rounded to 7 levels"),
        ({"limit": 128.0}, "rounded to 128 levels"),
        ({"axes": [1]}, "largest magnitude over axis"),
        ({"axes": [0, 1, 2]}, "largest magnitude over"),
        ({"keepdims": 0, "axes": [-1]}, "loses its axis"),
        ({"eps": 0.5}, "limited to 0.5 and more"),
        ({"low": -8.0, "high": 7.0}, "clipped to -8..7"),
        ({"rounds": False}, "before they are rounded"),
        ({"round": "Floor"}, "Floor reads an activation rounded to 8 bits"),
    ],
)
def test_other_chains_are_refused(decoder, changes, match):
    levels, scale = chain(decoder, **changes)
    decoder.node("Div", [levels, scale], ["rounded_x"])
    decoder.node("MatMul", ["rounded_x", ternary(decoder)], ["y"])
    with pytest.raises(UserErrors, match=match) as caught:
        import_model(decoder.save())
    assert all(error.node for error in caught.value.errors)


def test_rounded_activations_are_for_products_only(decoder):
    levels, scale = chain(decoder)
    decoder.node("Div", [levels, scale], ["rounded_x"])
    decoder.node("Sigmoid", ["rounded_x"], ["y"])
    with pytest.raises(UserErrors, match="only matrix products"):
        import_model(decoder.save())


def test_scales_of_different_activations_do_not_meet(decoder):
    decoder.node("Relu", ["x"], ["r"])
    levels, _ = chain(decoder)
    _, scale = chain(decoder, "r", prefix="other_")
    decoder.node("Div", [levels, scale], ["rounded_x"])
    decoder.node("MatMul", ["rounded_x", ternary(decoder)], ["y"])
    with pytest.raises(UserErrors, match="scales of different activations"):
        import_model(decoder.save())


# --- dynamic quantisation ------------------------------------------------------------------------


def dynamic(d: Any, *, per_channel: bool, zero: bool, unsigned: bool = False) -> np.ndarray:
    """onnxruntime's quantize_dynamic around one product; gives the weights [K, N] it stands for."""
    dtype, low, high = (np.uint8, 0, 256) if unsigned else (np.int8, -127, 128)
    w = d.rng.integers(low, high, (d.width, 24)).astype(dtype)
    size = (24,) if per_channel else ()
    points = d.rng.integers(3, 9, size) if zero else np.zeros(size)
    scales = d.rng.uniform(0.01, 0.02, size).astype(np.float32)
    d.constant("w", w)
    d.constant("zp", points.astype(dtype))
    d.constant("ws", scales)
    d.node("DynamicQuantizeLinear", ["x"], ["q", "xs", "xz"], name="dynamic")
    d.node("MatMulInteger", ["q", "w", "xz", "zp"], ["sums"])
    d.node("Cast", ["sums"], ["floats"], to=TensorProto.FLOAT)
    d.node("Mul", ["xs", "ws"], ["both"])
    d.node("Mul", ["floats", "both"], ["y"])
    return (w.astype(float) - points) * scales


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("unsigned", [False, True])
def test_dynamic_quantisation(decoder, plain, per_channel, zero, unsigned):
    expected = dynamic(decoder, per_channel=per_channel, zero=zero, unsigned=unsigned)
    path = decoder.save()
    model = import_model(path)
    (op,) = linears(model.module)
    assert op.activation is None
    (warning,) = model.warnings
    assert "one asymmetric uint8 scale for all tokens" in warning and "'dynamic'" in warning
    found = parameter(model, op)
    type_ = found.type
    assert isinstance(type_, rom.ROMTensorType) and type_.code.data == "int8"
    assert type_.group.data == (decoder.width if per_channel else 0)
    assert type_.zeros.data == (per_channel and zero)
    point = None if found.zero is None else found.zero.value.data
    got = plain(model.parameters[found.key.data], 8, type_.group.data, point)
    np.testing.assert_allclose(got, expected.T, rtol=1e-5, atol=1e-8)
    # The rounding of activations apart, the graph is the same.
    reference = decoder.reference(path, [3, 1, 4, 1, 5])
    from numpy.testing import assert_allclose

    table = model.parameters["onnx::table"].values(0, 11).astype(float)
    assert_allclose(table[[3, 1, 4, 1, 5]] @ got.T, reference, atol=0.02 * np.abs(reference).max())


def test_tables_of_quantised_rows(decoder, agrees):
    d = decoder
    d.nodes.clear()
    d.constants.clear()
    d.constant("codes", d.rng.integers(0, 256, (11, 16)).astype(np.uint8))
    d.constant("s", np.array(0.02, np.float32))
    d.constant("z", np.array(128, np.uint8))
    d.node("Gather", ["codes", "input_ids"], ["rows"])
    d.node("DequantizeLinear", ["rows", "s", "z"], ["y"])
    model = agrees(d)
    (op,) = (op for op in model.module.walk() if isinstance(op, rom.EmbedOp))
    table = rom.resolve(op, op.table)
    assert str(table.type) == "!rom.tensor<[11, 16], int8>"


def test_two_rounded_activations_are_not_multiplied(decoder):
    d = decoder
    d.node("DynamicQuantizeLinear", ["x"], ["q", "xs", "xz"])
    d.node("Relu", ["x"], ["r"])
    d.node("DynamicQuantizeLinear", ["r"], ["p", "rs", "rz"])
    d.node("MatMulInteger", ["q", "p", "xz", "rz"], ["y"], name="attention")
    with pytest.raises(UserErrors, match="both factors are activations") as caught:
        import_model(d.save())
    assert "MatMulConstBOnly" in str(caught.value)


def test_integer_products_need_rounded_activations(decoder):
    decoder.constant("w", np.ones((16, 4), np.int8))
    decoder.node("Cast", ["input_ids"], ["short"], to=TensorProto.INT8)
    decoder.node("MatMulInteger", ["short", "w"], ["y"])
    with pytest.raises(UserErrors, match="its first factor is the token ids"):
        import_model(decoder.save())


# --- scales beside products ----------------------------------------------------------------------


def test_a_scale_for_each_output(decoder, agrees):
    w = decoder.rng.integers(-1, 2, (16, 24)).astype(np.float32)
    decoder.constant("w", w)
    decoder.constant("s", decoder.rng.uniform(0.5, 2, 24).astype(np.float32))
    decoder.node("MatMul", ["x", "w"], ["z"])
    decoder.node("Mul", ["z", "s"], ["y"])
    model = agrees(decoder)
    (op,) = linears(model.module)
    assert str(parameter(model, op).type) == "!rom.tensor<[24, 16], ternary, group 16>"


def test_a_scale_before_a_product(decoder, agrees):
    """Products of a scaled vector read the vector itself, with scaled weights."""
    d = decoder
    d.node("Mul", ["x", scalar(d, "s", 0.25)], ["u"])
    d.node("MatMul", ["u", ternary(d, "v")], ["a"])
    d.node("MatMul", ["x", ternary(d, "w")], ["b"])
    d.node("Add", ["a", "b"], ["y"])
    model = agrees(d)
    first, second = linears(model.module)
    assert first.input is second.input
    assert not any(isinstance(op, rom.ScaleOp) for op in model.module.walk())
    peak = parameter(model, first).peak
    assert peak is not None and peak.value.data == 0.25


def test_a_shared_matrix_keeps_its_scale(decoder, agrees):
    """One of two products with the same weights is scaled: the scale stays beside it."""
    decoder.node("MatMul", ["x", ternary(decoder, n=16)], ["a"])
    decoder.node("MatMul", ["a", "w"], ["b"])
    decoder.node("Mul", ["b", scalar(decoder, "s", 3.0)], ["y"])
    model = agrees(decoder)
    assert sum(isinstance(op, rom.ScaleOp) for op in model.module.walk()) == 1
    assert len([o for o in model.module.ops if isinstance(o, rom.ParameterOp)]) == 2


def test_products_that_share_a_matrix_and_its_scale(decoder, agrees):
    d = decoder
    w = ternary(d, n=16)
    scalar(d, "s", SCALE)
    before = "x"
    for name in ("y0", "y1"):
        d.node("MatMul", [before, w], [f"{name}_product"])
        d.node("Mul", [f"{name}_product", "s"], [name])
        before = name
    d.node("Relu", ["y1"], ["y"])
    model = agrees(d)
    assert len({op.weights.root_reference.data for op in linears(model.module)}) == 1
    assert not any(isinstance(o, rom.ScaleOp) for o in model.module.walk())


def test_a_product_that_is_used_twice_keeps_its_scale(decoder, agrees):
    decoder.node("MatMul", ["x", ternary(decoder)], ["a"])
    decoder.node("Mul", ["a", scalar(decoder, "s", 3.0)], ["b"])
    decoder.node("Add", ["a", "b"], ["y"])
    model = agrees(decoder)
    assert sum(isinstance(op, rom.ScaleOp) for op in model.module.walk()) == 1


def test_a_gate_may_have_a_scale_for_each_output(decoder, agrees):
    d = decoder
    d.node("MatMul", ["x", ternary(d)], ["z"])
    d.node("Mul", [d.constant("s", d.rng.uniform(0.1, 1, 24).astype(np.float32)), "z"], ["u"])
    d.node("Sigmoid", ["u"], ["gate"])
    d.node("Mul", ["u", "gate"], ["y"])
    model = agrees(d)
    (op,) = linears(model.module)
    assert str(parameter(model, op).type) == "!rom.tensor<[24, 16], ternary, group 16>"


@pytest.mark.parametrize("rounds", [False, True])
def test_parts_of_a_packed_product_have_scales_and_biases_of_their_own(decoder, agrees, rounds):
    """transformers' fusions for onnxruntime pack q, k and v, whose scales stay behind the Split."""
    d = decoder
    x, scale = chain(d) if rounds else ("x", "")
    d.node("MatMul", [x, ternary(d, n=20)], ["z"], name="packed")
    d.node("Split", ["z", d.constant("sizes", np.array([8, 12], np.int64))], ["p", "q"], axis=-1)
    for name, n, factor in (("p", 8, 3.0), ("q", 12, 5.0)):
        inverse = d.constant(f"s{name}", np.array([factor], np.float32))
        if rounds:
            d.node("Mul", [inverse, scale], [f"both{name}"])
            inverse = f"both{name}"
        d.node("Div", [name, inverse], [f"u{name}"], name=f"scaling_{name}")
        d.node("Add", [f"u{name}", d.floats(f"b{name}", n)], [f"v{name}"])
    for name, value in (("start", 0), ("end", 8), ("axis", -1)):
        d.constant(name, np.array([value], np.int64))
    d.node("Slice", ["vq", "start", "end", "axis"], ["part"])
    d.node("Add", ["vp", "part"], ["y"])
    model = agrees(d)
    first, second = linears(model.module)
    for op, rows, factor in ((first, 8, 3.0), (second, 12, 5.0)):
        found = parameter(model, op)
        assert op.bias is not None and (op.activation is not None) == rounds
        assert str(found.type) == f"!rom.tensor<[{rows}, 16], ternary>"
        assert found.peak is not None and found.peak.value.data == pytest.approx(1 / factor)
    both = [parameter(model, op).zero_fraction.value.data for op in (first, second)]  # pyright: ignore
    codes = numpy_helper.to_array(next(t for t in d.constants if t.name == "w"))
    assert both == pytest.approx([(codes[:, :8] == 0).mean(), (codes[:, 8:] == 0).mean()])


def test_parts_without_constants_stay_packed(decoder, agrees):
    d = decoder
    d.node("MatMul", ["x", ternary(d, n=16)], ["z"])
    d.node("Split", ["z"], ["p", "q"], axis=-1, num_outputs=2)
    d.node("Add", ["p", "q"], ["y"])
    assert len(linears(agrees(d).module)) == 1


def test_magnitudes_may_be_cast(decoder, agrees):
    """torch casts them where a half-precision model rounds in single precision."""
    d = decoder
    levels, scale = chain(d)
    largest = next(node for node in d.nodes if node.op_type == "ReduceMax")
    place = d.nodes.index(largest)
    d.node("Cast", ["abs"], ["wide"], to=TensorProto.FLOAT)
    d.nodes.insert(place, d.nodes.pop())
    largest.input[0] = "wide"
    d.node("Div", [levels, scale], ["rounded_x"])
    d.node("MatMul", ["rounded_x", ternary(d)], ["z"])
    d.node("Mul", ["z", scalar(d, "s", SCALE)], ["y"])
    check(agrees, d)


def test_soft_caps_keep_theirs(decoder, agrees):
    decoder.node("MatMul", ["x", ternary(decoder)], ["a"])
    decoder.node("Div", ["a", scalar(decoder, "cap", 30.0)], ["b"])
    decoder.node("Tanh", ["b"], ["c"])
    decoder.node("Mul", ["c", "cap"], ["y"])
    model = agrees(decoder)
    assert any(isinstance(op, rom.SoftcapOp) for op in model.module.walk())
