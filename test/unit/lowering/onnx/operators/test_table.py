"""Each operator against onnxruntime, through a plain evaluator of the float stage."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto

from intaglio.dialects import rom
from intaglio.dialects.errors import UserErrors
from intaglio.lowering.onnx.importer import import_model
from intaglio.lowering.onnx.operators.table import supported_operators, table


def kinds(model) -> list[str]:
    """Names of the operations in the step."""
    (step,) = (op for op in model.module.body.block.ops if isinstance(op, rom.StepOp))
    return [op.name for op in step.body.block.ops]


def onnx_names(model) -> list[list[str]]:
    """ONNX nodes of each operation in the step."""
    (step,) = (op for op in model.module.body.block.ops if isinstance(op, rom.StepOp))
    return [
        [name.data for name in op.onnx.data[0]]
        for op in step.body.block.ops
        if isinstance(op, rom.OperatorOp)
    ]


def test_table_is_complete_and_says_what_it_does():
    entries = supported_operators()
    assert len(entries) == len(table()) > 40
    for entry in entries:
        # These have no meaning alone; test_operator_table has an example of each, as of all others.
        is_part = entry.op_type in ("Erf", "Softmax", "TopK")
        assert entry.becomes
        assert (entry.fold is None and entry.convert is None) == is_part, entry.op_type
        assert entry.convert is None or entry.becomes.startswith(("rom.", "nothing"))
        assert entry.domain in ("", "com.microsoft")


@pytest.mark.parametrize(
    ("op_type", "domain", "attributes", "kind"),
    [
        ("Relu", "", {}, "relu"),
        ("Tanh", "", {}, "tanh"),
        ("Sigmoid", "", {}, "sigmoid"),
        ("Gelu", "", {}, "gelu_erf"),
        ("Gelu", "", {"approximate": "tanh"}, "gelu_tanh"),
        ("Gelu", "com.microsoft", {}, "gelu_erf"),
        ("FastGelu", "com.microsoft", {}, "gelu_tanh"),
        ("Swish", "", {}, "silu"),
        ("Swish", "", {"alpha": 1.702}, "quick_gelu"),
        ("QuickGelu", "com.microsoft", {}, "quick_gelu"),
        ("QuickGelu", "com.microsoft", {"alpha": 1.0}, "silu"),
    ],
)
def test_activation(decoder, agrees, op_type, domain, attributes, kind):
    decoder.opset = 24 if op_type == "Swish" else decoder.opset
    decoder.node(op_type, ["x"], ["y"], domain=domain, **attributes)
    model = agrees(decoder)
    (op,) = (op for op in model.module.walk() if isinstance(op, rom.ActivateOp))
    assert op.kind.data == kind


@pytest.mark.parametrize("swap", [False, True])
def test_silu(decoder, agrees, swap):
    decoder.node("Sigmoid", ["x"], ["s"], name="sigmoid")
    decoder.node("Mul", ["s", "x"] if swap else ["x", "s"], ["y"], name="mul")
    model = agrees(decoder)
    assert kinds(model) == ["rom.embed", "rom.activate", "rom.sample", "rom.emit"]
    assert onnx_names(model)[1] == ["sigmoid", "mul"]


def test_quick_gelu_written_out(decoder, agrees):
    decoder.constant("c", np.array(1.702, np.float32))
    decoder.node("Mul", ["x", "c"], ["a"])
    decoder.node("Sigmoid", ["a"], ["s"])
    decoder.node("Mul", ["x", "s"], ["y"])
    model = agrees(decoder)
    assert kinds(model)[1:2] == ["rom.activate"]
    assert onnx_names(model)[1] == ["Mul_1", "Sigmoid_2", "Mul_3"]


@pytest.mark.parametrize("form", ["Pow", "Mul"])
def test_squared_relu(decoder, agrees, form):
    decoder.node("Relu", ["x"], ["r"])
    decoder.constant("two", np.array(2.0, np.float32))
    decoder.node(form, ["r", "two" if form == "Pow" else "r"], ["y"])
    (op,) = (op for op in agrees(decoder).module.walk() if isinstance(op, rom.ActivateOp))
    assert op.kind.data == "relu2"


def test_scalars_and_residuals(decoder, agrees):
    decoder.constant("half", np.full((1, 1, 16), 0.5, np.float32))
    decoder.constant("four", np.array(4.0, np.float32))
    decoder.constant("nought", np.array([0.0], np.float32))
    decoder.node("Mul", ["half", "x"], ["a"])
    decoder.node("Div", ["a", "four"], ["b"])
    decoder.node("Sub", ["x", "b"], ["c"])
    decoder.node("Add", ["c", "nought"], ["d"])
    decoder.node("Sub", ["nought", "d"], ["e"])
    decoder.node("Mul", ["e", "x"], ["f"])
    decoder.node("Pow", ["f", "two"], ["g"])
    decoder.constant("two", np.array(2.0, np.float32))
    decoder.node("Add", ["g", "x"], ["y"])
    agrees(decoder)


def test_logit_softcap(decoder, agrees):
    decoder.constant("cap", np.array(1.5, np.float32))
    decoder.node("Div", ["x", "cap"], ["a"], name="div")
    decoder.node("Tanh", ["a"], ["b"], name="tanh")
    decoder.node("Mul", ["b", "cap"], ["y"], name="mul")
    model = agrees(decoder)
    assert kinds(model)[1] == "rom.softcap"
    assert onnx_names(model)[1] == ["div", "tanh", "mul"]


def test_norms(decoder, agrees):
    decoder.floats("g", 16)
    decoder.floats("b", 16)
    decoder.node("SimplifiedLayerNormalization", ["x", "g"], ["n"], epsilon=1e-3, axis=-1)
    decoder.node("LayerNormalization", ["n", "g", "b"], ["m"], epsilon=1e-2, axis=2)
    decoder.node("LayerNormalization", ["m", "b"], ["l"])
    decoder.ms("SkipSimplifiedLayerNormalization", ["l", "x", "g"], ["s", "", "", "t"], epsilon=0.1)
    decoder.ms("SkipLayerNormalization", ["s", "t", "g", "b"], ["u", "", "", "v"], epsilon=0.2)
    decoder.node("Add", ["u", "v"], ["y"])
    model = agrees(decoder)
    assert kinds(model).count("rom.layer_norm") == 3
    assert kinds(model).count("rom.rms_norm") == 2


def test_rms_normalization_of_opset_23(decoder, agrees):
    decoder.opset = 23
    decoder.floats("g", 16)
    decoder.node("RMSNormalization", ["x", "g"], ["y"])
    agrees(decoder)


def test_norm_of_heads_between_reshapes(decoder, agrees):
    decoder.floats("g", 4)
    decoder.constant("heads", np.array([0, -1, 4], np.int64))
    decoder.constant("back", np.array([0, -1, 16], np.int64))
    decoder.node("Reshape", ["x", "heads"], ["h"])
    decoder.node("SimplifiedLayerNormalization", ["h", "g"], ["n"], epsilon=1e-5)
    decoder.node("Reshape", ["n", "back"], ["y"])
    model = agrees(decoder)
    (op,) = (op for op in model.module.walk() if isinstance(op, rom.RMSNormOp))
    assert op.groups.value.data == 4


def test_shapes_are_no_work(decoder, agrees):
    decoder.constant("four_axes", np.array([0, 0, 4, 4], np.int64))
    decoder.constant("two", np.array([2], np.int64))
    decoder.constant("flat", np.array([-1, 16], np.int64))
    decoder.node("Identity", ["x"], ["i"])
    decoder.node("Unsqueeze", ["i", "two"], ["u"])
    decoder.node("Squeeze", ["u", "two"], ["q"])
    decoder.node("Reshape", ["q", "four_axes"], ["r"])
    decoder.node("Transpose", ["r"], ["t"], perm=[0, 2, 1, 3])
    decoder.node("Transpose", ["t"], ["v"], perm=[0, 2, 1, 3])
    decoder.node("Shape", ["x"], ["s"])
    decoder.node("Reshape", ["v", "s"], ["w"])
    decoder.node("Cast", ["w"], ["c"], to=TensorProto.FLOAT)
    decoder.node("Reshape", ["c", "flat"], ["y"])
    assert kinds(agrees(decoder)) == ["rom.embed", "rom.sample", "rom.emit"]


def test_split_and_slice(decoder, agrees):
    decoder.constant("parts", np.array([4, 8, 4], np.int64))
    decoder.constant("two", np.array([2], np.int64))
    decoder.constant("ten", np.array([10], np.int64))
    decoder.constant("last", np.array([-1], np.int64))
    decoder.node("Split", ["x", "parts"], ["a", "b", "c"], axis=-1)
    decoder.node("Slice", ["x", "two", "ten", "last"], ["d"])
    decoder.node("Mul", ["b", "d"], ["e"])
    decoder.node("Split", ["e"], ["f", "g"], axis=2, num_outputs=2)
    decoder.node("Add", ["a", "f"], ["h"])
    decoder.node("Add", ["h", "g"], ["i"])
    decoder.node("Add", ["i", "c"], ["y"])
    model = agrees(decoder)
    assert kinds(model).count("rom.slice") == 6


def test_only_the_last_token_reaches_the_head(decoder, evaluate, tmp_path):
    from intaglio.lowering.onnx.importer import import_model

    decoder.constant("end", np.array(-1, np.int64))
    decoder.constant("axis", np.array([1], np.int64))
    decoder.node("Gather", ["x", "end"], ["l"], axis=1)
    decoder.node("Unsqueeze", ["l", "axis"], ["y"])
    model = import_model(decoder.save())
    assert kinds(model) == ["rom.embed", "rom.sample", "rom.emit"]


def cos_sin(decoder, width: int, rows: int = 32) -> None:
    angle = np.arange(rows)[:, None] * 0.3 ** np.arange(width)[None]
    decoder.constant("cos", np.cos(angle).astype(np.float32))
    decoder.constant("sin", np.sin(angle).astype(np.float32))


GQA_INPUTS = ["past_key_values.0.key", "past_key_values.0.value", "seqlens_k", "total"]
GQA_OUTPUTS = ["y", "present.0.key", "present.0.value"]


@pytest.mark.parametrize(
    ("attributes", "rotary"),
    [
        ({}, 16),
        ({"rotary_interleaved": 1}, 16),
        ({"scale": 0.7, "softcap": 2.0}, 16),
        ({"local_window_size": 3}, 16),
        ({"do_rotary": 0}, 0),
    ],
)
def test_packed_attention(wide, agrees, attributes, rotary):
    wide.lengths()
    wide.past(0, 1, 16)
    inputs = ["x", "", "", *GQA_INPUTS]
    if rotary:
        cos_sin(wide, rotary // 2)
        inputs += ["cos", "sin"]
    attributes = {"do_rotary": 1, "num_heads": 2, "kv_num_heads": 1} | attributes
    wide.ms("GroupQueryAttention", inputs, GQA_OUTPUTS, **attributes)
    model = agrees(wide)
    assert model.positions == (32 if rotary else 0)
    caches = [op for op in model.module.body.block.ops if isinstance(op, rom.CacheOp)]
    assert [op.sym_name.data for op in caches] == [
        "past_key_values_0_key",
        "past_key_values_0_value",
    ]
    assert all(op.type == rom.KVType(model.positions or 1024, 1, 16, "float32") for op in caches)


def test_names_that_torch_gives_by_default(wide, agrees):
    """Without `output_names` presents are called after the nodes, and the logits too."""
    wide.lengths()
    wide.past(0, 1, 16)
    (key, value), wide.outputs = wide.outputs, []
    for name, port in (("cat_7", key), ("cat_8", value)):
        wide.outputs.append((name, *port[1:]))
    wide.node("MatMul", ["x", wide.constant("w", np.eye(64, dtype=np.float32))], ["q"])
    # causal = 1 is what onnxruntime writes into optimised graphs.
    outputs = ["attended", "cat_7", "cat_8"]
    attributes = {"num_heads": 2, "kv_num_heads": 1, "causal": 1}
    wide.ms("GroupQueryAttention", ["q", "", "", *GQA_INPUTS], outputs, **attributes)
    wide.node("MatMul", ["attended", wide.floats("head", 32, 11)], ["linear_14"])
    model = agrees(wide, "linear_14", tolerance=0.05)
    assert any("the head's floating-point weights" in warning for warning in model.warnings)


def test_caches_that_pass_through_identities(wide, agrees):
    wide.lengths()
    wide.past(0, 1, 16)
    for kind in ("key", "value"):
        wide.node("Identity", [f"past_key_values.0.{kind}"], [f"past_{kind}"])
    inputs = ["x", "", "", "past_key", "past_value", "seqlens_k", "total"]
    outputs = ["y", "new_key", "new_value"]
    wide.ms("GroupQueryAttention", inputs, outputs, num_heads=2, kv_num_heads=1)
    for kind in ("key", "value"):
        wide.node("Identity", [f"new_{kind}"], [f"present.0.{kind}"])
    agrees(wide)


def test_expanded_biases(decoder, agrees):
    """HF's BitLinear expands its bias to the shape of the product."""
    decoder.node("MatMul", ["x", decoder.constant("w", np.eye(16, dtype=np.float32))], ["z"])
    decoder.node("Shape", ["z"], ["shape"])
    bias = decoder.constant("bias", decoder.rng.normal(size=(1, 16)).astype(np.float32))
    decoder.node("Expand", [bias, "shape"], ["expanded"])
    decoder.node("Add", ["z", "expanded"], ["y"])
    (op,) = (op for op in agrees(decoder).module.walk() if isinstance(op, rom.LinearOp))
    assert op.bias is not None


def test_rows_that_are_dequantised_for_each_reader(decoder, agrees):
    """onnxruntime duplicates DequantizeLinear when it optimises."""
    table = decoder.constant("codes", decoder.rng.integers(-99, 99, (11, 16)).astype(np.int8))
    scale = decoder.constant("scale", np.array(0.02, np.float32))
    decoder.node("Gather", [table, "input_ids"], ["rows"])
    for name in ("once", "twice"):
        decoder.node("DequantizeLinear", ["rows", scale], [name])
    decoder.node("Mul", ["once", "twice"], ["square"])
    decoder.node("ReduceMean", ["square", decoder.constant("axis", np.array([-1]))], ["mean"])
    decoder.node("Sqrt", ["mean"], ["root"])
    decoder.node("Div", ["twice", "root"], ["normed"])
    decoder.node("Mul", ["normed", decoder.floats("gamma", 16)], ["y"])
    found = [op for op in agrees(decoder).module.walk() if isinstance(op, rom.EmbedOp)]
    assert len(found) == 1


def test_lengths_that_depend_on_the_batch(decoder, agrees):
    """A chip runs one sequence: a count of tokens of all sequences is that of one."""
    decoder.node("Shape", ["input_ids"], ["shape"])
    decoder.constant("last", np.array([-1, 16], np.int64))
    decoder.node("Reshape", ["x", "last"], ["tall"])
    decoder.node("Relu", ["tall"], ["kept"])
    decoder.node("Concat", ["shape", decoder.constant("k", np.array([16]))], ["whole"], axis=0)
    decoder.node("Reshape", ["kept", "whole"], ["y"])
    agrees(decoder)


@pytest.mark.parametrize(
    ("sinks", "attributes"),
    [
        ([0.5, -2.0], {}),
        ([3.0, 3.0], {"local_window_size": 2}),
        ([1.0, 40.0], {"softcap": 1.5}),
        ([-np.inf, 0.0], {}),
        (None, {"smooth_softmax": 1}),
        ([1.0, -1.0], {"smooth_softmax": 1}),
    ],
)
def test_sinks(decoder, agrees, sinks, attributes):
    """A score without a token: not capped, not scaled, in every window; it wins over smooth."""
    decoder.lengths()
    decoder.past(0, 2, 8)
    more = []
    if sinks is not None:
        more = ["", "", "", "", decoder.constant("sinks", np.array(sinks, np.float32))]
    decoder.ms(
        "GroupQueryAttention",
        ["x", "x", "x", *GQA_INPUTS, *more],
        GQA_OUTPUTS,
        num_heads=2,
        kv_num_heads=2,
        **attributes,
    )
    (op,) = [op for op in agrees(decoder).module.walk() if isinstance(op, rom.AttentionOp)]
    assert op.sink is not None


def test_sinks_of_no_head(decoder, agrees):
    decoder.lengths()
    decoder.past(0, 2, 8)
    sinks = decoder.constant("sinks", np.full(2, -np.inf, np.float32))
    decoder.ms(
        "GroupQueryAttention",
        ["x", "x", "x", *GQA_INPUTS, "", "", "", "", sinks],
        GQA_OUTPUTS,
        num_heads=2,
        kv_num_heads=2,
    )
    (op,) = [op for op in agrees(decoder).module.walk() if isinstance(op, rom.AttentionOp)]
    assert op.sink is None


def test_separate_attention_with_partial_rotation(wide, agrees):
    wide.lengths()
    wide.past(0, 2, 32)
    cos_sin(wide, 8)
    wide.ms(
        "GroupQueryAttention",
        ["x", "x", "x", *GQA_INPUTS, "cos", "sin"],
        GQA_OUTPUTS,
        num_heads=2,
        kv_num_heads=2,
        do_rotary=1,
    )
    agrees(wide)


@pytest.mark.parametrize(
    ("bits", "kind"), [(8, "PER_TENSOR"), (8, "PER_CHANNEL"), (4, "PER_CHANNEL")]
)
def test_quantised_cache(decoder, agrees, bits, kind):
    decoder.lengths()
    dtype = TensorProto.INT8 if bits == 8 else TensorProto.UINT8
    decoder.past(0, 2, 8 * bits // 8, dtype)
    size = 1 if kind == "PER_TENSOR" else 16
    decoder.constant("k_scale", np.full(size, 0.05 if bits == 8 else 0.4, np.float32))
    decoder.constant("v_scale", np.full(size, 0.06 if bits == 8 else 0.5, np.float32))
    decoder.ms(
        "GroupQueryAttention",
        ["x", "x", "x", *GQA_INPUTS, *[""] * 5, "k_scale", "v_scale"],
        GQA_OUTPUTS,
        num_heads=2,
        kv_num_heads=2,
        k_quant_type=kind,
        v_quant_type=kind,
        kv_cache_bit_width=bits,
    )
    model = agrees(decoder)
    op = next(op for op in model.module.body.block.ops if isinstance(op, rom.CacheOp))
    assert op.type.format.data == f"int{bits}" and op.static_scale is not None


@pytest.mark.parametrize(("interleaved", "partial"), [(0, False), (1, False), (0, True)])
def test_rotary_embedding_with_position_ids(decoder, agrees, interleaved, partial):
    decoder.inputs.append(("position_ids", TensorProto.INT64, ["batch", "sequence"]))
    cos_sin(decoder, 2 if partial else 4)
    extra = {"num_heads": 2, "rotary_embedding_dim": 4} if partial else {}
    decoder.ms(
        "RotaryEmbedding",
        ["x", "position_ids", "cos", "sin"],
        ["y"],
        interleaved=interleaved,
        **extra,
    )
    agrees(decoder)


def test_rotary_embedding_of_opset_23(decoder, agrees):
    decoder.opset = 23
    decoder.inputs.append(("position_ids", TensorProto.INT64, ["batch", "sequence"]))
    cos_sin(decoder, 4)
    decoder.node("RotaryEmbedding", ["x", "cos", "sin", "position_ids"], ["y"], num_heads=2)
    agrees(decoder)


def nbits(decoder, name: str, n: int, k: int, x: str, y: str, *more: str) -> None:
    blocks = -(-k // 16)
    codes = decoder.rng.integers(0, 256, (n, blocks, 8)).astype(np.uint8)
    decoder.constant(f"{name}.weight_Q4", codes)
    decoder.constant(
        f"{name}.weight_scales", decoder.rng.normal(size=(n, blocks)).astype(np.float32) / 16
    )
    inputs = [x, f"{name}.weight_Q4", f"{name}.weight_scales", *more]
    decoder.ms("MatMulNBits", inputs, [y], name=name, K=k, N=n, bits=4, block_size=16)


def test_biases_fold_into_linear_operators(decoder, agrees):
    decoder.floats("b1", 24)
    decoder.floats("b2", 16)
    decoder.floats("b3", 16)
    decoder.floats("g", 16)
    nbits(decoder, "up", 24, 16, "x", "a", "", "", "b1")
    nbits(decoder, "down", 16, 24, "a", "b")
    decoder.node("Add", ["b2", "b"], ["c"], name="bias")
    nbits(decoder, "out", 16, 16, "c", "d")
    decoder.ms(
        "SkipSimplifiedLayerNormalization", ["x", "d", "g", "b3"], ["e", "", "", "f"], epsilon=1e-5
    )
    decoder.node("Add", ["e", "f"], ["y"])
    model = agrees(decoder)
    linears = [op for op in model.module.walk() if isinstance(op, rom.LinearOp)]
    assert all(op.bias is not None for op in linears) and len(linears) == 3
    assert [n.data for n in linears[1].onnx.data[0]] == ["down", "bias"]


@pytest.mark.parametrize("activation", ["FastGelu", "BiasGelu"])
def test_gelu_with_bias(decoder, agrees, activation):
    decoder.floats("b", 8)
    nbits(decoder, "up", 8, 16, "x", "a")
    decoder.ms(activation, ["a", "b"], ["y"])
    agrees(decoder)


def test_adapter_branch(decoder, agrees):
    """y = W x + bias + 2 B (A x), A and B in 4 bits: adapters, and the bias joins W."""
    decoder.floats("bias", 16)
    decoder.constant("two", np.array(2.0, np.float32))
    nbits(decoder, "lora_A", 4, 16, "x", "a")
    nbits(decoder, "lora_B", 16, 4, "a", "b")
    nbits(decoder, "base", 16, 16, "x", "c")
    decoder.node("Mul", ["b", "two"], ["d"])
    decoder.node("Add", ["c", "d"], ["e"])
    decoder.node("Add", ["e", "bias"], ["y"])
    model = agrees(decoder)
    types = {
        op.sym_name.data: op.type
        for op in model.module.body.block.ops
        if isinstance(op, rom.ParameterOp)
    }
    assert isinstance(types["lora_A"], rom.AdapterType)
    assert isinstance(types["lora_B"], rom.AdapterType)
    assert isinstance(types["base"], rom.ROMTensorType)
    assert types["lora_B"].dims == (16, 4)


def test_float_adapter_becomes_int8(decoder):
    from intaglio.lowering.onnx.importer import import_model

    decoder.floats("A", 16, 4)
    decoder.floats("B", 4, 16)
    nbits(decoder, "base", 16, 16, "x", "c")
    decoder.node("MatMul", ["x", "A"], ["a"])
    decoder.node("MatMul", ["a", "B"], ["b"])
    decoder.node("Add", ["b", "c"], ["y"])
    model = import_model(decoder.save())
    types = {
        op.sym_name.data: op.type
        for op in model.module.body.block.ops
        if isinstance(op, rom.ParameterOp)
    }
    assert types["A"] == rom.AdapterType([4, 16], "int8", 16)
    assert types["B"] == rom.AdapterType([16, 4], "int8", 4)


def test_tied_table_and_head_are_one_tensor(decoder, agrees):
    codes = decoder.rng.integers(0, 256, (11, 1, 8)).astype(np.uint8)
    decoder.constant("lm_head.weight_Q4", codes)
    decoder.constant("lm_head.scales", decoder.rng.normal(size=(11, 1)).astype(np.float32))
    decoder.constant("shape", np.array([11, 8], np.int64))
    decoder.nodes.clear()
    decoder.node("Reshape", ["lm_head.weight_Q4", "shape"], ["t"])
    decoder.ms(
        "GatherBlockQuantized",
        ["t", "input_ids", "lm_head.scales"],
        ["x"],
        bits=4,
        block_size=16,
        gather_axis=0,
        quantize_axis=1,
    )
    decoder.ms(
        "MatMulNBits",
        ["x", "lm_head.weight_Q4", "lm_head.scales"],
        ["y"],
        K=16,
        N=11,
        bits=4,
        block_size=16,
    )
    model = agrees(decoder)
    assert len(model.parameters) == 1 and model.vocabulary == 11


def test_float_tied_head_is_rounded_once(decoder):
    from intaglio.lowering.onnx.importer import import_model

    decoder.nodes.clear()
    decoder.floats("lm_head.weight", 16, 11)
    decoder.node("Transpose", ["lm_head.weight"], ["t"], perm=[1, 0])
    decoder.node("Gather", ["t", "input_ids"], ["x"])
    decoder.node("MatMul", ["x", "lm_head.weight"], ["y"])
    model = import_model(decoder.save(), weights="int4:16")
    (parameter,) = (op for op in model.module.walk() if isinstance(op, rom.ParameterOp))
    assert parameter.type == rom.ROMTensorType([11, 16], "int4", 16)


def test_gemm_and_fused_matmul(decoder, evaluate):
    from intaglio.lowering.onnx.importer import import_model

    decoder.floats("w", 24, 16)
    decoder.floats("v", 24, 16)
    decoder.floats("b", 24)
    decoder.constant("flat", np.array([-1, 16], np.int64))
    decoder.node("Reshape", ["x", "flat"], ["r"])
    decoder.node("Gemm", ["r", "w", "b"], ["g"], transB=1)
    decoder.ms("FusedMatMul", ["r", "v"], ["f"], transB=1, alpha=0.5)
    decoder.node("Add", ["g", "f"], ["y"])
    path = decoder.save()
    model = import_model(path, weights="int8:16")
    tokens = [1, 2, 3]
    error = np.abs(evaluate(model).run(tokens) - decoder.reference(path, tokens)).max()
    assert error < 0.2


def test_constants_are_computed(decoder, agrees):
    decoder.constant("a", np.array(6.0, np.float32))
    decoder.node("Constant", [], ["b"], value_float=2.0)
    decoder.node("Div", ["a", "b"], ["c"])
    decoder.node("Sqrt", ["c"], ["d"])
    decoder.node("Reciprocal", ["d"], ["e"])
    decoder.node("Neg", ["e"], ["f"])
    decoder.node("Mul", ["x", "f"], ["y"])
    agrees(decoder)


def test_nodes_without_names_and_without_effect(decoder, agrees):
    decoder.node("Relu", ["x"], ["unused"])
    decoder.node("Tanh", ["x"], ["y"])
    model = agrees(decoder)
    assert onnx_names(model)[1] == ["Tanh_2"]
    assert model.warnings == ("node 'Relu_1' (Relu) has no effect on any output and is left out",)


@pytest.mark.parametrize("form", ["divide", "reciprocal", "inverse"])
def test_norm_written_out(decoder, agrees, form):
    """The builder writes norms so for some execution providers, torch writes them so always."""
    decoder.floats("g", 16)
    decoder.constant("two", np.array(2.0, np.float32))
    decoder.constant("eps", np.array(1e-2, np.float32))
    decoder.constant("unit", np.array(1.0, np.float32))
    decoder.constant("last", np.array([-1], np.int64))
    decoder.node("Pow", ["x", "two"], ["a"], name="pow")
    decoder.node("ReduceMean", ["a", "last"], ["b"], keepdims=1, name="mean")
    decoder.node("Add", ["b", "eps"], ["c"], name="eps")
    decoder.node("Sqrt", ["c"], ["d"], name="root")
    if form == "divide":
        decoder.node("Div", ["x", "d"], ["f"], name="divide")
    else:
        if form == "reciprocal":
            decoder.node("Reciprocal", ["d"], ["e"], name="inverse")
        else:
            decoder.node("Div", ["unit", "d"], ["e"], name="inverse")
        decoder.node("Mul", ["e", "x"], ["f"], name="times")
    decoder.node("Cast", ["f"], ["h"], to=TensorProto.FLOAT, name="cast")
    decoder.node("Mul", ["g", "h"], ["y"], name="gamma")
    model = agrees(decoder)
    assert kinds(model) == ["rom.embed", "rom.rms_norm", "rom.sample", "rom.emit"]
    parts = ["divide"] if form == "divide" else ["inverse", "times"]
    assert onnx_names(model)[1] == ["pow", "mean", "eps", "root", *parts, "cast", "gamma"]


def test_a_matrix_of_which_only_the_shape_is_read_is_left_out(decoder, agrees):
    nbits(decoder, "side", 16, 16, "x", "s")
    decoder.node("Shape", ["s"], ["shape"])
    decoder.node("Reshape", ["x", "shape"], ["y"])
    model = agrees(decoder)
    assert not any(isinstance(op, rom.LinearOp) for op in model.module.walk())
    assert "'side.weight_Q4' has no effect" in model.warnings[0]


def test_a_sum_that_reduces_nothing(decoder, agrees):
    decoder.constant("a", np.array([2.0], np.float32))
    decoder.constant("none", np.zeros(0, np.int64))
    decoder.node("ReduceSum", ["a", "none"], ["b"], noop_with_empty_axes=1, keepdims=0)
    decoder.node("Mul", ["x", "b"], ["y"])
    agrees(decoder)


@pytest.mark.parametrize("op_type", ["Add", "Sub", "Mul"])
def test_the_negative_of_an_activation_is_one(decoder, agrees, op_type):
    """It may also be the beginning of a rotary embedding."""
    decoder.node("Relu", ["x"], ["r"])
    decoder.node("Neg", ["r"], ["n"])
    decoder.node(op_type, ["x", "n"], ["y"])
    agrees(decoder)


def test_integers_are_cast_as_onnx_casts_them(decoder, agrees):
    decoder.constant("a", np.array(300, np.int64))
    decoder.node("Cast", ["a"], ["b"], to=TensorProto.UINT8)
    decoder.node("Cast", ["b"], ["c"], to=TensorProto.FLOAT)
    decoder.node("Mul", ["x", "c"], ["y"])
    agrees(decoder)


@pytest.mark.parametrize(
    ("name", "table", "head"),
    [
        ("model.lm_head.weight", "model_lm_head_embedding", "model_lm_head"),
        ("model.embed_tokens.weight", "model_embed_tokens", "model_embed_tokens_head"),
        ("transformer.wte.weight", "transformer_wte", "transformer_wte_head"),
        ("output.weight", "output_embedding", "output"),
    ],
)
def test_a_tensor_in_two_forms_is_named_by_its_use(decoder, name: str, table: str, head: str):
    from intaglio.lowering.onnx.importer import import_model

    small = np.random.default_rng(2).integers(-7, 8, (16, 16)).astype(np.int8)
    decoder.packed("q", TensorProto.INT8, [16, 16], small.tobytes())
    decoder.constant("s", np.array(0.02, np.float32))
    decoder.node("DequantizeLinear", ["q", "s"], ["w"])
    decoder.node("MatMul", ["x", "w"], ["h"])
    (rows,) = [one for one in decoder.constants if one.name == "table"]
    rows.name = decoder.nodes[0].input[0] = name
    decoder.node("Transpose", [name], ["turned"], perm=[1, 0])
    decoder.node("MatMul", ["h", "turned"], ["y"])
    model = import_model(decoder.save())
    (step,) = [op for op in model.module.walk() if isinstance(op, rom.StepOp)]
    (embed,) = [op for op in step.walk() if isinstance(op, rom.EmbedOp)]
    *_, last = [op for op in step.walk() if isinstance(op, rom.LinearOp)]
    assert embed.table.root_reference.data == table
    assert last.weights.root_reference.data == head
    declared = {op.sym_name.data for op in model.module.walk() if isinstance(op, rom.ParameterOp)}
    assert {table, head} < declared and len(declared) == 3


def borrowing(decoder, key="present.0.key", value="present.0.value", empty=None, **attributes):
    """Two attentions, of which the second has no keys and values of its own."""
    decoder.lengths()
    decoder.past(0, 2, 8)
    inputs = ["x", "x", "x", *GQA_INPUTS]
    outputs = ["first", *GQA_OUTPUTS[1:]]
    decoder.ms("GroupQueryAttention", inputs, outputs, num_heads=2, kv_num_heads=2)
    none = empty or decoder.constant("none", np.zeros((1, 0, 16), np.float32))
    decoder.ms(
        "GroupQueryAttention",
        ["first", none, none, key, value, *GQA_INPUTS[2:]],
        ["y", "", ""],
        name="second",
        num_heads=2,
        kv_num_heads=2,
        **attributes,
    )


@pytest.mark.parametrize("attributes", [{}, {"local_window_size": 2}, {"scale": 1.0}])
def test_attention_on_another_layers_cache(decoder, agrees, attributes):
    """Gemma-4 E2B: nothing is appended for it."""
    borrowing(decoder, **attributes)
    ops = list(agrees(decoder).module.walk())
    assert len([op for op in ops if isinstance(op, rom.AttentionOp)]) == 2
    assert len([op for op in ops if isinstance(op, rom.AppendOp)]) == 2
    assert len([op for op in ops if isinstance(op, rom.CacheOp)]) == 2


def test_attention_of_others_on_another_layers_cache(decoder, agrees):
    """mobius without GroupQueryAttention: the present keys are those of Attention."""
    decoder.opset = 23
    decoder.past(0, 2, 8)
    outputs = ["first", *GQA_OUTPUTS[1:]]
    inputs = ["x", "x", "x", "", *GQA_INPUTS[:2]]
    decoder.node(
        "Attention", inputs, outputs, q_num_heads=2, kv_num_heads=2, is_causal=1, name="own"
    )
    shape = decoder.constant("heads", np.array([0, 0, 2, 8]))
    decoder.node("Reshape", ["first", shape], ["split"])
    decoder.node("Transpose", ["split"], ["queries"], perm=[0, 2, 1, 3])
    decoder.node("Transpose", ["present.0.key"], ["keys"], perm=[0, 1, 3, 2])
    decoder.node("MatMul", ["queries", "keys"], ["raw"])
    decoder.node("Shape", ["input_ids"], ["rows"], start=1, end=2)
    decoder.node("Shape", ["present.0.key"], ["columns"], start=2, end=3)
    zero, one = decoder.constant("zero", np.array(0)), decoder.constant("step", np.array(1))
    for name in ("rows", "columns"):
        decoder.node("Squeeze", [name], [f"{name}_n"])
        decoder.node("Range", [zero, f"{name}_n", one], [f"{name}_i"])
    decoder.node("Sub", ["columns_n", "rows_n"], ["before"])
    decoder.node("Add", ["rows_i", "before"], ["at"])
    decoder.node("Unsqueeze", ["at", decoder.constant("axis", np.array([1]))], ["tall"])
    decoder.node("LessOrEqual", ["columns_i", "tall"], ["seen"])
    low = decoder.constant("low", np.array(-1e30, np.float32))
    decoder.node("Where", ["seen", "raw", low], ["masked"])
    decoder.node("Softmax", ["masked"], ["shares"], axis=-1)
    decoder.node("MatMul", ["shares", "present.0.value"], ["sums"])
    decoder.node("Transpose", ["sums"], ["together"], perm=[0, 2, 1, 3])
    decoder.node("Reshape", ["together", decoder.constant("flat", np.array([0, 0, 16]))], ["y"])
    ops = list(agrees(decoder).module.walk())
    assert len([op for op in ops if isinstance(op, rom.AppendOp)]) == 2


def test_what_cannot_be_added_to_another_layers_cache(decoder):
    borrowing(decoder, empty="first")
    with pytest.raises(UserErrors, match="its own keys are to be added"):
        import_model(decoder.save())


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({}, (1e-6, 1e-6)),
        ({"qk_norm_epsilon": 0.5}, (0.5, 0.5)),
        ({"q_norm_epsilon": 0.25}, (0.25, 1e-6)),
        ({"k_norm_epsilon": 0.125, "qk_norm_epsilon": 0.5}, (0.5, 0.125)),
        ({"q_norm_epsilon": 0.25, "k_norm_epsilon": 2.0}, (0.25, 2.0)),
    ],
)
def test_epsilons_of_norms_in_attention(decoder, attributes, expected):
    """Queries and keys may have their own; onnxruntime has no such kernel for CPUs."""
    decoder.lengths()
    decoder.past(0, 2, 8)
    norms = [decoder.constant(name, np.linspace(0.5, 2, 8, dtype=np.float32)) for name in "ab"]
    decoder.ms(
        "GroupQueryAttention",
        ["x", "x", "x", *GQA_INPUTS, *[""] * 7, *norms],
        GQA_OUTPUTS,
        num_heads=2,
        kv_num_heads=2,
        **attributes,
    )
    model = import_model(decoder.save("y"))
    found = [op.eps.value.data for op in model.module.walk() if isinstance(op, rom.RMSNormOp)]
    assert found == pytest.approx(expected)
