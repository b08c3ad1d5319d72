"""Everything not understood is reported, all of it at once, with reasons."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper

from intaglio.dialects.errors import UserError, UserErrors
from intaglio.lowering.onnx.importer import import_model

GQA_INPUTS = ["past_key_values.0.key", "past_key_values.0.value", "seqlens_k", "total"]
GQA_OUTPUTS = ["y", "present.0.key", "present.0.value"]


def errors(decoder, **options) -> list[str]:
    with pytest.raises(UserErrors) as caught:
        import_model(decoder.save(**options))
    return [str(error) for error in caught.value.errors]


def test_all_nodes_are_listed(decoder):
    decoder.floats("w", 16, 16)
    decoder.node("Erf", ["x"], ["a"], name="erf")
    decoder.node("Relu", ["a"], ["b"], name="relu")
    decoder.node("Hardmax", ["b"], ["c"], name="hardmax")
    decoder.node("MatMul", ["c", "w"], ["d"], name="product")
    decoder.node("Selu", ["d"], ["y"])
    found = errors(decoder)
    assert len(found) == 4
    assert "model.onnx: node 'hardmax' (Hardmax): the operator Hardmax is not" in found[0]
    assert "'product'" in found[1] and "floating point (FLOAT)" in found[1]
    assert "--weights int4:32" in found[1]
    assert "'Selu_5'" in found[2]
    assert "'erf' (Erf): Erf is supported in an activation function" in found[3]


@pytest.mark.parametrize(
    ("op_type", "attributes", "words"),
    [
        ("Gelu", {"approximate": "sigmoid"}, "approximate"),
        ("Cast", {"to": TensorProto.INT32}, "INT32"),
        ("Transpose", {"perm": [2, 1, 0]}, "last axis"),
        ("Flatten", {"axis": 1}, "mixes|does not hold"),
        ("Shape", {}, "not logits"),
        ("Erf", {}, "written out"),
        ("Softmax", {}, "attention"),
    ],
)
def test_single_input_operators(decoder, op_type, attributes, words):
    import re

    decoder.node(op_type, ["x"], ["y"], **attributes)
    assert any(re.search(words, error) for error in errors(decoder))


def test_operators_that_something_else_helps_with(decoder):
    decoder.constant("scale", np.array(0.1, np.float32))
    decoder.node("QuantizeLinear", ["x", "scale"], ["y"])
    (error,) = errors(decoder)
    assert "QuantizeLinear is not supported" in error and "quantise the weights alone" in error


def test_lists_of_a_slice_that_are_not_equally_many(decoder):
    for name, values in (("start", [0]), ("end", [8, 8]), ("axis", [-1])):
        decoder.constant(name, np.array(values, np.int64))
    decoder.node("Slice", ["x", "start", "end", "axis"], ["y"])
    assert "not equally many" in errors(decoder)[0]


@pytest.mark.parametrize(("op_type", "inputs"), [("Div", 3), ("Sqrt", 2), ("Where", 4)])
def test_too_many_inputs(decoder, op_type, inputs):
    decoder.constant("c", np.ones(1, np.float32))
    decoder.node(op_type, ["c"] * inputs, ["y"])
    assert f"it has {inputs} inputs" in errors(decoder)[0]


def test_zero_points_in_another_order_than_the_scales(decoder):
    decoder.constant("codes", np.zeros((16, 8), np.int8))
    decoder.constant("scales", np.ones((2, 8), np.float32))
    decoder.constant("points", np.arange(16, dtype=np.int8).reshape(8, 2))
    inputs = ["codes", "scales", "points"]
    decoder.node("DequantizeLinear", inputs, ["w"], axis=0, block_size=8)
    decoder.node("MatMul", ["x", "w"], ["y"])
    assert "the zero point has shape [8, 2], the scale [2, 8]" in errors(decoder)[0]


def test_caches_of_a_fixed_length(decoder):
    decoder.lengths()
    decoder.past(0, 2, 8)
    decoder.inputs[-2:] = [(n, t, ["batch", 2, 255, 8]) for n, t, _ in decoder.inputs[-2:]]
    attention(decoder)
    found = errors(decoder)
    assert len(found) == 2 and all("fixed shape" in error for error in found)
    assert "a dynamic axis" in found[-1]


def test_unknown_attribute(decoder):
    decoder.node("Relu", ["x"], ["y"], slope=2.0)
    assert "attribute 'slope'" in errors(decoder)[0]


@pytest.mark.parametrize(
    ("op_type", "value", "words"),
    [
        ("Add", np.ones(16, np.float32), "linear operator"),
        ("Add", np.float32(3.0), "vector of biases"),
        ("Mul", np.arange(16, dtype=np.float32), "constant vector"),
        ("Div", np.float32(0.0), "not 0"),
        ("Sub", np.float32(1.0), "subtracting"),
        ("Pow", np.float32(3.0), "exponent 2"),
        ("Mul", np.ones((4, 1, 1), np.float32), "enlarges"),
        ("MatMul", np.arange(256, dtype=np.float32).reshape(16, 16), "floating point"),
    ],
)
def test_constants_that_do_not_fit(decoder, op_type, value, words):
    decoder.constant("c", np.asarray(value))
    decoder.node(op_type, ["x", "c"], ["y"], name="node")
    (error,) = errors(decoder)
    assert words in error and "node 'node'" in error


def test_product_of_activations(decoder):
    decoder.node("MatMul", ["x", "x"], ["y"])
    assert "both factors are activations" in errors(decoder)[0]


def test_bias_of_a_value_used_elsewhere(decoder):
    decoder.constant("w", np.zeros((16, 1, 8), np.uint8))
    decoder.floats("s", 16, 1)
    decoder.floats("b", 16)
    decoder.ms("MatMulNBits", ["x", "w", "s"], ["m"], K=16, N=16, bits=4, block_size=16)
    decoder.node("Add", ["m", "b"], ["n"])
    decoder.node("Add", ["m", "n"], ["y"])
    assert "used elsewhere" in errors(decoder)[0]


def test_reshape_that_mixes_tokens(decoder):
    decoder.constant("shape", np.array([0, 16, -1], np.int64))
    decoder.node("Reshape", ["x", "shape"], ["y"])
    assert "mixes tokens" in errors(decoder)[0]


def attention(
    decoder, *more: str, inputs=None, outputs=None, name="attention", **attributes
) -> None:
    attributes = {"num_heads": 2, "kv_num_heads": 2} | attributes
    decoder.ms(
        "GroupQueryAttention",
        inputs or ["x", "x", "x", *GQA_INPUTS, *more],
        outputs or GQA_OUTPUTS,
        name=name,
        **attributes,
    )


@pytest.mark.parametrize(
    ("more", "attributes", "words"),
    [
        (["", "", "", "bias"], {}, "attention bias"),
        (["", "", "", "", "three"], {}, "3 sinks for 2 heads"),
        (["", "", "", "", "none"], {}, "a sink is no number"),
        ([*[""] * 9, "seqlens_k"], {}, "query_seqlens"),
        (["", "", "", "", "x"], {}, "must be a constant"),
        ([], {"num_heads": 3}, "multiple"),
        ([], {"do_rotary": 1}, "cos_cache"),
        ([], {"local_window_size": 0}, "sees no token"),
        ([], {"magic": 1}, "attribute 'magic'"),
        ([], {"causal": 0}, "later ones"),
        (
            ["", "", "", "", "", "scales", "scales"],
            {"k_quant_type": "PER_CHANNEL", "kv_cache_bit_width": 8},
            "different scales",
        ),
    ],
)
def test_attention(decoder, more, attributes, words):
    decoder.lengths()
    decoder.past(0, 2, 8)
    decoder.floats("bias", 1, 1, 1, 4)
    decoder.floats("three", 3)
    decoder.constant("none", np.full(2, np.nan, np.float32))
    decoder.constant("scales", np.linspace(0.1, 0.2, 16).astype(np.float32))
    attention(decoder, *more, **attributes)
    assert words in errors(decoder)[0]


def test_attention_without_lengths_from_the_mask(decoder):
    decoder.lengths()
    decoder.past(0, 2, 8)
    decoder.constant("seven", np.array([7], np.int32))
    decoder.constant("eight", np.array(8, np.int32))
    attention(decoder, inputs=["x", "x", "x", *GQA_INPUTS[:2], "seven", "eight"])
    assert "seqlens_k" in errors(decoder)[0]


def test_crossed_layers(decoder):
    decoder.lengths()
    decoder.past(0, 2, 8)
    decoder.past(1, 2, 8)
    attention(decoder, outputs=["a", "present.1.key", "present.1.value"])
    swapped = ["a", "a", "a", "past_key_values.1.key", "past_key_values.1.value", *GQA_INPUTS[2:]]
    attention(decoder, inputs=swapped, name="second")
    assert "different layers" in errors(decoder)[0]


def test_present_that_is_no_output(decoder):
    decoder.lengths()
    decoder.past(0, 2, 8)
    decoder.outputs.clear()
    attention(decoder)
    assert "must be an output" in errors(decoder)[0]


def test_wrong_past_width(decoder):
    decoder.lengths()
    decoder.past(0, 2, 16)
    attention(decoder)
    assert "expected 8" in errors(decoder)[0]


def test_second_output(decoder):
    decoder.outputs.append(("hidden_states", TensorProto.FLOAT, ["batch", "sequence", 16]))
    decoder.node("Relu", ["x"], ["hidden_states"])
    decoder.node("Tanh", ["hidden_states"], ["logits"])
    found = errors(decoder, output="logits")
    assert len(found) == 1 and "'hidden_states'" in found[0] and "logits only" in found[0]


def test_inputs(decoder):
    decoder.inputs[0] = ("inputs_embeds", TensorProto.FLOAT, ["batch", "sequence", 16])
    decoder.nodes.clear()
    decoder.node("Relu", ["inputs_embeds"], ["y"])
    found = "\n".join(errors(decoder))
    assert "no input of token ids" in found and "exclude_embeds" in found


def test_fixed_sequence_length(decoder):
    decoder.inputs[0] = ("input_ids", TensorProto.INT64, [1, 8])
    decoder.node("Relu", ["x"], ["y"])
    assert "fixed size 8" in errors(decoder)[0]


@pytest.mark.parametrize(
    ("name", "kind", "dims", "axis"),
    [
        ("attention_mask", TensorProto.INT64, ["batch", 0], 1),
        ("attention_mask", TensorProto.BOOL, [0, "total"], 0),
        ("position_ids", TensorProto.INT64, ["batch", 0], 1),
        ("past_key_values.0.key", TensorProto.FLOAT, ["batch", 1, "past", 0], 3),
        ("past_key_values.0.key", TensorProto.FLOAT, ["batch", 1, 0, 16], 2),
    ],
)
def test_inputs_without_elements(decoder, name: str, kind: int, dims: list[int | str], axis: int):
    decoder.inputs[1:] = [one for one in decoder.inputs[1:] if one[0] != name]
    decoder.inputs.append((name, kind, dims))
    decoder.node("Relu", ["x"], ["y"])
    assert f"input '{name}' has the fixed size 0 in axis {axis}" in "\n".join(errors(decoder))


@pytest.mark.parametrize("size", [1, 5, 64])
def test_masks_of_fixed_length(decoder, size: int):
    decoder.inputs[1:] = [("attention_mask", TensorProto.INT64, ["batch", size])]
    decoder.node("Relu", ["x"], ["y"])
    assert f"'attention_mask' has the fixed size {size} in axis 1" in "\n".join(errors(decoder))


def test_adapters_as_inputs(decoder):
    decoder.inputs.append(("A", TensorProto.FLOAT, [16, "rank"]))
    decoder.constant("A", np.zeros((16, 0), np.float32))
    decoder.node("MatMul", ["x", "A"], ["y"])
    assert "adapter matrix" in errors(decoder)[0]


def test_control_flow(decoder):
    ports = [
        helper.make_tensor_value_info(name, dtype, None)
        for name, dtype in (
            ("i", TensorProto.INT64),
            ("c", TensorProto.BOOL),
            ("a", TensorProto.FLOAT),
            ("again", TensorProto.BOOL),
            ("b", TensorProto.FLOAT),
        )
    ]
    nodes = [
        helper.make_node("Identity", ["c"], ["again"]),
        helper.make_node("Relu", ["a"], ["b"]),
    ]
    body = helper.make_graph(nodes, "body", ports[:3], ports[3:])
    decoder.constant("three", np.array(3))
    decoder.constant("yes", np.array(True))
    decoder.node("Loop", ["three", "yes", "x"], ["y"], body=body)
    assert "control flow" in errors(decoder)[0]


def test_old_opset(decoder):
    decoder.opset = 6
    decoder.node("Add", ["x", "x"], ["y"])
    assert any("too old" in error for error in errors(decoder))


def test_half_a_norm(decoder):
    decoder.constant("two", np.array(2.0, np.float32))
    decoder.constant("last", np.array([-1], np.int64))
    decoder.node("Pow", ["x", "two"], ["a"])
    decoder.node("ReduceMean", ["a", "last"], ["b"])
    decoder.node("Sqrt", ["b"], ["c"])
    decoder.node("Mul", ["x", "c"], ["y"], name="mul")
    assert "norm is written out" in errors(decoder)[0] and "'mul'" in errors(decoder)[0]


def test_a_remedy_is_said_once(decoder):
    for name in ("v", "w"):
        decoder.floats(name, 16, 16)
    decoder.node("MatMul", ["x", "v"], ["a"])
    decoder.node("MatMul", ["a", "w"], ["y"])
    with pytest.raises(UserErrors) as caught:
        import_model(decoder.save())
    first, second, remedy = str(caught.value).splitlines()
    assert "help:" not in first + second and remedy.startswith("  help: ")


def test_many_of_a_kind_are_one(decoder):
    """A float model of many layers: the first few nodes, and how many there are."""
    before = "x"
    for i in range(28):
        decoder.floats(f"w{i}", 16, 16)
        after = "y" if i == 27 else f"x{i}"
        decoder.node("MatMul", [before, f"w{i}"], [after], name=f"layer{i}")
        before = after
    with pytest.raises(UserErrors) as caught:
        import_model(decoder.save())
    error, remedy = str(caught.value).splitlines()
    assert "node 'layer0' (MatMul), 'layer1', 'layer2' and 25 more: its weights are" in error
    assert remedy.startswith("  help: ") and len(caught.value.errors) == 28


@pytest.mark.parametrize("context", [0, -1, 33])
def test_context_beyond_the_model(wide, context):
    wide.lengths()
    wide.past(0, 1, 16)
    wide.floats("cos", 32, 8)
    wide.floats("sin", 32, 8)
    inputs = ["x", "", "", *GQA_INPUTS, "cos", "sin"]
    attention(wide, inputs=inputs, num_heads=2, kv_num_heads=1, do_rotary=1)
    wide.node("Identity", ["y"], ["logits"])
    path = wide.save("logits")
    with pytest.raises(UserError, match="from 1 to 32"):
        import_model(path, context=context)
    assert "!rom.kv<8, 1, 16, float32>" in str(import_model(path, context=8).module)


def test_attribute_of_the_wrong_type(decoder):
    decoder.ms("QuickGelu", ["x"], ["y"], alpha="much")
    assert "'alpha' has a value of the wrong type" in errors(decoder)[0]


@pytest.mark.parametrize(
    ("value", "words"), [(np.inf, "not a finite number"), (np.nan, "by one number")]
)
def test_constants_that_are_not_finite(decoder, value, words):
    decoder.node("Relu", ["x"], ["r"])
    decoder.constant("c", np.array(value, np.float32))
    decoder.node("Mul", ["r", "c"], ["y"], name="node")
    (error,) = errors(decoder)
    assert words in error and "node 'node'" in error


@pytest.mark.parametrize(
    ("codes", "scales"), [((8, 1, 32), (32, 1)), ((32, 1, 8), (1, 32)), ((1, 8, 32), (32,))]
)
def test_transposed_codes_or_scales(decoder, codes, scales):
    decoder.constant("w", np.zeros(codes, np.uint8))
    decoder.floats("s", *scales)
    decoder.ms("MatMulNBits", ["x", "w", "s"], ["y"], K=16, N=32, bits=4, block_size=16)
    assert "shape" in errors(decoder)[0]


@pytest.mark.parametrize(
    ("op_type", "attributes"),
    [("Flatten", {"axis": 7}), ("Split", {"axis": -4}), ("LayerNormalization", {"axis": 3})],
)
def test_an_axis_that_does_not_exist(decoder, op_type, attributes):
    decoder.floats("g", 16)
    inputs = ["x", "g"] if op_type == "LayerNormalization" else ["x"]
    decoder.node(op_type, inputs, ["y"], **attributes)
    assert "does not exist in a tensor of 3 axes" in errors(decoder)[0]


def test_constants_that_do_not_combine(decoder):
    decoder.constant("a", np.ones((2, 3), np.int64))
    decoder.constant("b", np.ones(3, np.int64))
    decoder.node("Concat", ["a", "b"], ["c"], axis=0, name="join")
    decoder.node("Reshape", ["x", "c"], ["y"])
    assert "'join' (Concat): the constants do not combine" in errors(decoder)[0]


def test_a_shape_of_floats(decoder):
    decoder.constant("shape", np.array([np.nan, 1.0], np.float32))
    decoder.node("Reshape", ["x", "shape"], ["y"])
    assert "'shape' has the element type FLOAT, which Reshape" in errors(decoder)[0]


def test_token_ids_of_another_rank(decoder):
    decoder.inputs[0] = ("input_ids", TensorProto.INT64, ["sequence"])
    decoder.node("Relu", ["x"], ["y"])
    assert "has 1 axes, not [batch, sequence]" in errors(decoder)[0]


def test_a_table_without_rows(decoder):
    decoder.constants.clear()
    decoder.constant("table", np.zeros((0, 16), np.float32))
    decoder.node("Relu", ["x"], ["y"])
    assert "'table' has the shape [0, 16], no elements" in errors(decoder)[0]


@pytest.mark.parametrize("value", [0.5, np.inf])
def test_a_length_times_a_fraction(decoder, value):
    decoder.node("Shape", ["x"], ["s"])
    decoder.constant("c", np.array(value, np.float32))
    decoder.node("Mul", ["s", "c"], ["d"], name="mul")
    decoder.node("Reshape", ["x", "d"], ["y"])
    assert "'mul' (Mul): its input 1 'c' has the element type FLOAT" in errors(decoder)[0]


@pytest.mark.parametrize("name", ["past.0.recurrent", "past.0.conv_state", "past.0.ssm"])
def test_states_are_no_keys(decoder, name):
    decoder.inputs.append((name, TensorProto.FLOAT, ["batch", 4, 16, 16]))
    decoder.node("Relu", ["x"], ["y"])
    (error,) = errors(decoder)
    assert "fixed shape" in error and "a state of fixed size" in error


@pytest.mark.parametrize("name", ["position_ids", "attention_mask", "model.rotary_mask"])
def test_an_input_that_is_not_declared(decoder, name):
    decoder.node("Add", ["x", name], ["y"], name="it")
    (error,) = errors(decoder)
    assert f"'{name}' is neither" in error and "shared_embeddings" not in error


def test_lengths_are_not_called_constants(decoder):
    decoder.node("Shape", ["x"], ["s"])
    decoder.node("ReduceMax", ["s"], ["m"], name="it")
    decoder.node("Reshape", ["x", "m"], ["y"])
    assert "here it reads lengths or a shape" in "".join(errors(decoder))


@pytest.mark.parametrize("count", [1, 2, 30])
def test_defaults_of_inputs_are_said_once(decoder, count):
    for i in range(count):
        decoder.floats(f"g{i}", 16)
        decoder.inputs.append((f"g{i}", TensorProto.FLOAT, [16]))
        before, after = f"x{i}" if i else "x", f"x{i + 1}"
        decoder.node("SimplifiedLayerNormalization", [before, f"g{i}"], [after])
    decoder.node("Identity", [f"x{count}"], ["y"])
    said = [w for w in import_model(decoder.save()).warnings if "default value" in w]
    assert len(said) == 1 and (count == 1 or f"{count} inputs ('g0' and others)" in said[0])


@pytest.mark.parametrize("group", ["9" * 20, "9" * 10, "4294967296"])
def test_groups_that_no_matrix_has(decoder, group):
    decoder.node("Relu", ["x"], ["y"])
    with pytest.raises(UserError, match="is not understood"):
        import_model(decoder.save(), weights=f"int8:{group}")


@pytest.mark.parametrize("name", ["token_type_ids", "past_key_values.7.key", "cache_length"])
def test_an_input_that_nothing_reads_is_left_out(decoder, name):
    """Whatever it is for; where a node reads it, it is refused."""
    decoder.inputs.append((name, TensorProto.INT64, ["batch", "sequence"]))
    decoder.node("Relu", ["x"], ["y"])
    model = import_model(decoder.save("y"))
    assert any(f"'{name}' is read by nothing" in warning for warning in model.warnings)
    decoder.node("Cast", [name], ["cast"], to=TensorProto.FLOAT)
    decoder.node("Add", ["y", "cast"], ["sum"])
    with pytest.raises(UserError, match="is not understood"):
        import_model(decoder.save("sum"))
