"""QMoE and MoE agree with onnxruntime in all forms that the CPU takes; others are refused."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto

from intaglio.dialects import rom
from intaglio.dialects.errors import UserErrors
from intaglio.lowering.onnx.importer import import_model

HIDDEN = 64
FLOAT = np.float32


def packed(codes: np.ndarray, bits: int) -> np.ndarray:
    """Along the last axis, low bits first."""
    stream = (codes[..., None] >> np.arange(bits) & 1).astype(np.uint8)
    return np.packbits(stream.reshape(*codes.shape[:-1], -1), axis=-1, bitorder="little")


def router(d, experts: int, *, integers: bool = False) -> str:
    """Logits [batch * sequence, experts]: the first elements of x."""
    if integers:
        # Few different values: many logits are equal.
        table = d.rng.integers(-1, 2, (11, d.width)).astype(FLOAT)
        d.constants[0].raw_data = table.tobytes()
    ends = [d.constant(f"s{i}", np.array([n])) for i, n in enumerate((0, experts, 2))]
    d.node("Slice", ["x", *ends], ["logits3"])
    d.constant("flat", np.array([-1, experts]))
    d.node("Reshape", ["logits3", "flat"], ["logits"])
    return "logits"


def layer(d, name, experts, rows, columns, bits, block, *, zeros, bias, scale=FLOAT):
    """Inputs of a layer: codes, scales, bias; and the zero points."""
    codes = d.rng.integers(0, 1 << bits, (experts, rows, columns))
    groups = columns // block if block else 0
    shape = (experts, rows, groups) if block else (experts, rows)
    scales = ((d.rng.random(shape) / 8 + 0.01) / (1 << bits)).astype(scale)
    given = [
        d.constant(f"{name}.codes", packed(codes, bits)),
        d.constant(f"{name}.scales", scales),
        d.floats(f"{name}.bias", experts, rows) if bias else "",
    ]
    if not zeros:
        return given, ""
    points = d.rng.integers(0, 1 << bits, shape)
    return given, d.constant(f"{name}.zeros", packed(points, bits))


def qmoe(d, *, experts=4, k=2, bits=4, block=32, inner=32, kind="swiglu", zeros=False, bias=True,
         integers=False, scale=FLOAT, **attributes):  # fmt: skip
    """A decoder whose y is a QMoE of x."""
    if bits == 8 and block:
        # Else onnxruntime rounds activations to int8.
        d.config["session.disable_prepacking"] = "1"
    rows = 2 * inner if kind == "swiglu" else inner
    logits = router(d, experts, integers=integers)
    form = {"zeros": zeros, "bias": bias, "scale": scale}
    first, first_zeros = layer(d, "up", experts, rows, HIDDEN, bits, block, **form)
    second, second_zeros = layer(d, "down", experts, HIDDEN, inner, bits, block, **form)
    if block:
        attributes["block_size"] = block
    if kind == "swiglu":
        attributes.setdefault("swiglu_fusion", 1)
    d.ms(
        "QMoE",
        ["x", logits, *first, *second, "", "", "", first_zeros, second_zeros],
        ["y"],
        name="it",
        k=k,
        expert_weight_bits=bits,
        activation_type=kind,
        **attributes,
    )


OSS = {"activation_alpha": 1.702, "activation_beta": 1.0, "swiglu_limit": 7.0}

FORMS = {
    "gpt-oss": {**OSS},
    "tight limit": {**OSS, "swiglu_limit": 0.5},
    "limit 0": {"swiglu_limit": 0.0, "activation_beta": 1.0},
    "beta alone": {"activation_beta": 1.0, "bias": False},
    "no bias": {**OSS, "bias": False},
    "other slope": {"activation_alpha": 0.7},
    "negative slope": {"activation_alpha": -1.3},
    "no slope": {"activation_alpha": 0.0},
    "8 bits": {"bits": 8},
    "2 bits": {"bits": 2, "block": 16},
    "rows": {"block": 0},
    "rows, 8 bits": {"block": 0, "bits": 8, "zeros": True},
    "rows, 2 bits, zero points": {"block": 0, "bits": 2, "zeros": True},
    "rows, 4 bits, zero points": {"block": 0, "zeros": True},
    "zero points": {"zeros": True},
    "8 bits, zero points": {"bits": 8, "zeros": True, "block": 16},
    "block 16": {"block": 16, "inner": 48},
    "one of 32": {"experts": 32, "k": 1},
    "8 of 32": {"experts": 32, "k": 8},
    "all": {"experts": 4, "k": 4},
    "relu": {"kind": "relu"},
    "silu": {"kind": "silu", "bits": 8},
    "gelu": {"kind": "gelu", "bias": False},
    "identity": {"kind": "identity"},
    "normalised": {"normalize_routing_weights": 1},
    "sparse mixer": {"use_sparse_mixer": 1},
    "ties": {"experts": 8, "k": 3, "integers": True},
    "ties, 16 experts": {"experts": 16, "k": 5, "integers": True, "bits": 8, "block": 0},
    "half scales": {"scale": np.float16},
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_qmoe(wide, agrees, form):
    qmoe(wide, **form)
    model = agrees(wide, tolerance=1e-4)
    families = [
        op.type
        for op in model.module.ops
        if isinstance(op, rom.ParameterOp)
        and isinstance(op.type, rom.ROMTensorType)
        and op.type.experts.data != 1
    ]
    assert {one.experts.data for one in families} == {form.get("experts", 4)}


def dequantised(d, name, experts, rows, columns, block):
    """Matrices [E, R, K] from codes of 8 bits."""
    values = d.rng.integers(-99, 99, (experts, rows, columns)).astype(np.int8)
    codes = d.constant(f"{name}.codes", values)
    shape = (experts, rows, columns // block) if block else ()
    scales = d.constant(f"{name}.scale", (d.rng.random(shape) / 99 + 0.001).astype(FLOAT))
    more = {"axis": 2, "block_size": block} if block else {}
    d.node("DequantizeLinear", [codes, scales], [name], **more)
    return name


@pytest.mark.parametrize("normalize", [0, 1])
@pytest.mark.parametrize(
    "form",
    [
        {"kind": "swiglu", "block": 16, **OSS},
        {"kind": "relu", "block": 0},
        {"kind": "silu", "block": 32, "integers": True},
    ],
    ids=["swiglu", "relu", "ties"],
)
def test_moe(wide, agrees, form, normalize):
    d, experts, inner = wide, 6, 32
    form = dict(form)
    kind, block = form.pop("kind"), form.pop("block")
    logits = router(d, experts, integers=form.pop("integers", False))
    rows = 2 * inner if kind == "swiglu" else inner
    up = dequantised(d, "up", experts, rows, HIDDEN, block)
    down = dequantised(d, "down", experts, HIDDEN, inner, block)
    fusion = {"swiglu_fusion": 1} if kind == "swiglu" else {}
    d.ms(
        "MoE",
        ["x", logits, up, d.floats("b1", experts, rows), down, d.floats("b2", experts, HIDDEN)],
        ["y"],
        k=3,
        normalize_routing_weights=normalize,
        activation_type=kind,
        **fusion,
        **form,
    )
    agrees(d, tolerance=1e-4)


REFUSED = {
    "swiglu_fusion = 0 is not supported": {"swiglu_fusion": 0},
    "activation_type = relu2 is not supported": {"kind": "relu2"},
    "swiglu_limit_after_activation is not supported": {
        **OSS,
        "swiglu_limit_after_activation": 1,
    },
    "k = 5 of 4 experts": {"k": 5},
    "k = 0 of 4 experts": {"k": 0},
    "use_sparse_mixer takes k = 2, not 3": {"k": 3, "use_sparse_mixer": 1},
    "weights_prepacked = 1 is a layout of one device": {"weights_prepacked": 1},
    "fc2_expert_weight_bits differs from expert_weight_bits = 4": {"fc2_expert_weight_bits": 8},
    "block_size = 24 does not divide rows of 64": {"block_size": 24},
}


@pytest.mark.parametrize(("words", "form"), REFUSED.items(), ids=REFUSED)
def test_other_forms_are_refused(wide, words, form):
    block = form.get("block_size", 32)
    given = {name: value for name, value in form.items() if name != "block_size"}
    qmoe(wide, **given)
    if block != 32:
        (it,) = [n for n in wide.nodes if n.name == "it"]
        for one in it.attribute:
            if one.name == "block_size":
                one.i = block
    with pytest.raises(UserErrors) as caught:
        import_model(wide.save())
    assert any(words in str(error) for error in caught.value.errors), caught.value.errors


@pytest.mark.parametrize(
    ("place", "words"),
    [
        (8, "a third layer (fc3) is not supported"),
        (14, "shares that are not a softmax of the logits (router_weights)"),
    ],
)
def test_inputs_that_the_chip_has_no_use_for_are_refused(wide, place, words):
    qmoe(wide)
    (it,) = [n for n in wide.nodes if n.name == "it"]
    given = [*it.input, *[""] * (15 - len(it.input))]
    given[place] = "logits" if place == 14 else "up.codes"
    del it.input[:]
    it.input.extend(given)
    with pytest.raises(UserErrors) as caught:
        import_model(wide.save())
    assert any(words in str(error) for error in caught.value.errors)


def test_floating_point_experts_want_weights(wide):
    d = wide
    logits = router(d, 4)
    d.ms("MoE", ["x", logits, d.floats("up", 4, 32, HIDDEN), "", d.floats("down", 4, HIDDEN, 32)],
         ["y"], k=2)  # fmt: skip
    with pytest.raises(UserErrors) as caught:
        import_model(d.save())
    (error,) = caught.value.errors
    assert "its weights are floating point (FLOAT)" in str(error)
    assert "--weights" in str(error)


def test_half_precision(wide, agrees):
    """Inputs of float16, as exporters for other devices write them."""
    d = wide
    qmoe(d, scale=np.float16)
    (it,) = [n for n in d.nodes if n.name == "it"]
    d.node("Cast", ["x"], ["half"], to=TensorProto.FLOAT16)
    d.node("Cast", ["logits"], ["half_logits"], to=TensorProto.FLOAT16)
    d.nodes.remove(it)
    for one in d.constants:
        if one.name.endswith("bias"):
            array = np.frombuffer(one.raw_data, FLOAT).astype(np.float16)
            one.data_type, one.raw_data = TensorProto.FLOAT16, array.tobytes()
    it.input[0], it.input[1], it.output[0] = "half", "half_logits", "half_y"
    d.nodes.append(it)
    d.node("Cast", ["half_y"], ["y"], to=TensorProto.FLOAT)
    agrees(d, tolerance=2e-2)
