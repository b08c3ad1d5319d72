"""Nodes against schemas: what onnxruntime refuses to load is refused, with node and reason."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto

from intaglio.dialects.errors import UserErrors
from intaglio.lowering.onnx.graph import contrib, schema
from intaglio.lowering.onnx.importer import import_model
from intaglio.lowering.onnx.operators.table import supported_operators

MS = "com.microsoft"


def refusal(path) -> str:
    with pytest.raises(UserErrors) as caught:
        import_model(path)
    return "\n".join(str(error) for error in caught.value.errors)


def loads(path) -> bool:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception:
        return False
    return True


CASES = [
    ("Relu", ["x", "x"], {}, "it has 2 inputs; Relu has 1"),
    ("Relu", ["x", ""], {}, "it has 2 inputs; Relu has 1"),
    ("Add", ["x"], {}, "its input 1 (B) is missing"),
    ("Add", ["", "x"], {}, "its input 0 (A) is missing"),
    ("MatMul", ["x", "w", "w"], {}, "it has 3 inputs; MatMul has 2"),
    ("Relu", ["x"], {"slope": 1}, "its attribute 'slope' is none of Relu's"),
    ("LayerNormalization", ["x", "g"], {"epsilon": -1}, "'epsilon' has a value of the wrong type"),
    ("LayerNormalization", ["x", "g"], {"axis": -1.0}, "'axis' has a value of the wrong type"),
    ("Gelu", ["x"], {"approximate": 1}, "'approximate' has a value of the wrong type"),
    ("Transpose", ["x"], {"perm": [0.5]}, "'perm' has a value of the wrong type"),
    ("Cast", ["x"], {}, "its attribute 'to' is missing"),
    ("Add", ["x", "i"], {}, "'i' has the element type INT64, another input FLOAT"),
    ("Sqrt", ["i"], {}, "'i' has the element type INT64, which Sqrt does not take"),
    ("Reshape", ["x", "g"], {}, "'g' has the element type FLOAT, which Reshape does not take"),
]
CONTRIB = [
    ("Gelu", ["x"], {"alpha": 1.0}, "its attribute 'alpha' is none of Gelu's"),
    ("QuickGelu", ["x"], {"alpha": 1}, "'alpha' has a value of the wrong type"),
    ("MatMulNBits", ["x", "q", "s"], {"N": 4, "block_size": 16}, "attribute 'K' is missing"),
    (
        "MatMulNBits",
        ["x", "q", "h"],
        {"K": 16, "N": 4, "block_size": 16},
        "'h' has the element type FLOAT16, another input FLOAT",
    ),
    ("SkipSimplifiedLayerNormalization", ["x", "x"], {}, "its input 2 (gamma) is missing"),
    ("SkipSimplifiedLayerNormalization", ["x"] * 5, {}, "it has 5 inputs"),
    ("BiasGelu", ["x", "g", "g"], {}, "it has 3 inputs; BiasGelu has 2"),
]


@pytest.mark.parametrize(
    ("domain", "op_type", "inputs", "attributes", "words"),
    [("", *case) for case in CASES] + [(MS, *case) for case in CONTRIB],
)
def test_what_onnxruntime_does_not_load(decoder, domain, op_type, inputs, attributes, words):
    decoder.floats("w", 16, 16)
    decoder.floats("g", 16)
    decoder.constant("i", np.arange(16))
    decoder.constant("q", np.zeros((4, 1, 8), np.uint8))
    decoder.floats("s", 4, 1)
    decoder.constant("h", np.ones((4, 1), np.float16))
    decoder.node(op_type, inputs, ["y"], domain=domain, name="it", **attributes)
    path = decoder.save()
    assert f"node 'it' ({op_type}): " in refusal(path) and words in refusal(path)
    assert not loads(path)


@pytest.mark.parametrize(
    ("op_type", "inputs", "attributes"),
    [
        ("Relu", ["x"], {"__note": 1}),
        ("Clip", ["g", "", "g0"], {}),
        ("Max", ["g", "g", "g"], {}),
        ("Split", ["x"], {"num_outputs": 1, "axis": -1}),
        ("Gelu", ["x"], {}),
    ],
)
def test_what_onnxruntime_loads(decoder, op_type, inputs, attributes):
    decoder.floats("g", 16)
    decoder.constant("g0", np.array(0.5, np.float32))
    decoder.node(op_type, inputs, ["y"], name="it", **attributes)
    path = decoder.save()
    assert loads(path)
    try:
        import_model(path)
    except UserErrors as error:
        assert "not logits" in str(error)


def test_a_node_without_effect_is_checked_too(decoder):
    decoder.node("Relu", ["x"], ["y"])
    decoder.node("Add", ["x"], ["dead"], name="dead")
    assert "node 'dead' (Add): its input 1 (B) is missing" in refusal(decoder.save())


def test_a_version_that_com_microsoft_has_not(decoder):
    decoder.ms("Gelu", ["x"], ["y"])
    path = decoder.save()
    model = onnx.load(path)
    model.opset_import[1].version = 2
    path.write_bytes(model.SerializeToString())
    assert "com.microsoft has no version 2" in refusal(path) and not loads(path)


# --- values ---------------------------------------------------------------------------------------


def attention(decoder, **attributes) -> None:
    decoder.lengths()
    decoder.past(0, 1, 16)
    decoder.floats("cos", 32, 8)
    decoder.floats("sin", 32, 8)
    pasts = ["past_key_values.0.key", "past_key_values.0.value", "seqlens_k", "total"]
    attributes = {"num_heads": 2, "kv_num_heads": 1, "do_rotary": 1} | attributes
    outputs = ["y", "present.0.key", "present.0.value"]
    inputs = ["x", "", "", *pasts, "cos", "sin"]
    decoder.ms("GroupQueryAttention", inputs, outputs, name="it", **attributes)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("do_rotary", 2, "do_rotary = 2 is neither 0 nor 1"),
        ("do_rotary", -1, "neither 0 nor 1"),
        ("rotary_interleaved", 2, "neither 0 nor 1"),
        ("sliding_window_cache", 3, "neither 0 nor 1"),
        ("local_window_size", 1 << 62, "does not fit 32 bits"),
        ("local_window_size", (1 << 32) + 4, "does not fit 32 bits"),
        ("num_heads", (1 << 32) + 2, "does not fit 32 bits"),
        ("scale", np.nan, "scale = nan is not a finite number"),
        ("scale", np.inf, "not a finite number"),
        ("softcap", -1.0, "softcap = -1.0 is negative"),
    ],
)
def test_values_of_attention(wide, name, value, words):
    attention(wide, **{name: value})
    assert words in refusal(wide.save())


@pytest.mark.parametrize(
    ("op_type", "inputs", "attributes"),
    [
        ("ReduceSum", ["g", "a"], {"keepdims": 2}),
        ("Reshape", ["x", "a"], {"allowzero": -1}),
        ("Gemm", ["x", "w"], {"transB": 2}),
        ("CumSum", ["g", "a"], {"reverse": 3}),
    ],
)
def test_integers_that_mean_yes_or_no(decoder, op_type, inputs, attributes):
    decoder.floats("w", 16, 16)
    decoder.floats("g", 16)
    decoder.constant("a", np.array([0]))
    decoder.node(op_type, inputs, ["y"], **attributes)
    ((name, value),) = attributes.items()
    assert f"{name} = {value} is neither 0 nor 1" in refusal(decoder.save())


def test_the_ordinary_values_of_attention(wide):
    attention(wide, rotary_interleaved=0, local_window_size=-1, scale=0.0, softcap=0.0)
    import_model(wide.save())


@pytest.mark.parametrize("value", [-1.0, np.nan, -np.inf])
def test_an_epsilon_that_is_none(decoder, value):
    decoder.floats("g", 16)
    decoder.node("SimplifiedLayerNormalization", ["x", "g"], ["y"], epsilon=value)
    assert "epsilon = " in refusal(decoder.save())


@pytest.mark.parametrize("block", [0, -16])
def test_blocks_of_scales(decoder, block):
    decoder.constant("codes", np.zeros((16, 8), np.int8))
    decoder.floats("scales", 2, 8)
    attributes = {"axis": 0} | ({"block_size": block} if block else {})
    decoder.node("DequantizeLinear", ["codes", "scales"], ["w"], name="it", **attributes)
    decoder.node("MatMul", ["x", "w"], ["y"])
    words = "block_size = -16 is negative" if block else "scales of shape [2, 8] need a block_size"
    assert words in refusal(decoder.save())


@pytest.mark.parametrize("dtype", [TensorProto.BFLOAT16, TensorProto.FLOAT16, TensorProto.DOUBLE])
@pytest.mark.parametrize("op_type", ["Shape", "ReduceSum", "Not"])
def test_masks_cast_to_other_types(decoder, dtype, op_type):
    decoder.lengths()
    decoder.node("Cast", ["attention_mask"], ["m"], to=dtype)
    decoder.node(op_type, ["m"], ["s"], name="it")
    decoder.node("Relu", ["x"], ["y"])
    if op_type == "Not":
        assert "which Not does not take there" in refusal(decoder.save())
    else:
        import_model(decoder.save())


@pytest.mark.parametrize("dtype", [TensorProto.UINT4, TensorProto.INT4, TensorProto.UINT2])
def test_angles_of_packed_integers(decoder, dtype):
    decoder.opset = 25
    bits = 2 if dtype == TensorProto.UINT2 else 4
    decoder.packed("f", dtype, [8], bytes(8 * bits // 8))
    decoder.node("Cos", ["f"], ["c"], name="it")
    decoder.node("Mul", ["x", "c"], ["y"])
    assert "node 'it' (Cos): its input 0 'f' has the element type" in refusal(decoder.save())


# --- the schemas ----------------------------------------------------------------------------------


def registered() -> dict[tuple[str, str], object]:
    from onnxruntime.capi import _pybind_state as state

    newest: dict[tuple[str, str], object] = {}
    for one in state.get_all_operator_schema():
        known = newest.get((one.domain, one.name))
        if known is None or known.since_version < one.since_version:  # pyright: ignore
            newest[one.domain, one.name] = one
    return newest


@pytest.mark.parametrize("key", sorted(contrib.schemas()))
def test_schemas_are_those_that_onnxruntime_registers(key):
    ours, theirs = contrib.schemas()[key], registered()[key]
    option = {"Single": (False, False), "Optional": (True, False), "Variadic": (False, True)}
    for mine, other in ((ours.inputs, theirs.inputs), (ours.outputs, theirs.outputs)):  # pyright: ignore
        assert [(f.name, f"{f.type}", f.optional, f.variadic) for f in mine] == [
            (
                f.name,
                f.typeStr.removeprefix("tensor(").removesuffix(")"),
                *option[str(f.option).rpartition(".")[2].split(":")[0]],
            )
            for f in other
        ][: len(mine)]
    assert {(a.name, a.required) for a in ours.attributes.values()} == {
        (name, a.required)
        for name, a in theirs.attributes.items()  # pyright: ignore
    }
    for one in theirs.type_constraints:  # pyright: ignore
        theirs_allowed = {t.removeprefix("tensor(")[:-1] for t in one.allowed_type_strs}
        assert ours.types[one.type_param_str] == theirs_allowed


def test_attributes_that_compile_are_in_the_schemas():
    for entry in supported_operators():
        versions = range(entry.since, 29) if not entry.domain else [1]
        found = [
            contrib.schemas().get((entry.domain, entry.op_type))
            or schema.standard(entry.op_type, version)
            for version in versions
        ]
        names = {name for one in found if one is not None for name in one.attributes}
        assert set(entry.attributes) <= names | {"round_mode"}, entry.op_type


def test_types_are_followed_through_nodes(decoder):
    decoder.node("Shape", ["x"], ["s"])
    decoder.node("Cast", ["s"], ["c"], to=TensorProto.FLOAT16)
    decoder.node("Mul", ["x", "c"], ["y"], name="it")
    assert "'c' has the element type FLOAT16, another input FLOAT" in refusal(decoder.save())
