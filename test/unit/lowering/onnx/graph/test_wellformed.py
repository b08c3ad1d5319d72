"""Names that are given twice: refused where two readers could differ, kept where they cannot."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from intaglio.dialects.errors import UserErrors
from intaglio.lowering.onnx.importer import import_model


def refusal(path, change) -> str:
    model = onnx.load(path)
    change(model)
    path.write_bytes(model.SerializeToString())
    with pytest.raises(UserErrors) as caught:
        import_model(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def add(decoder, value) -> None:
    decoder.constant("twice", value)


ONES, TWOS = np.ones(16, np.float32), np.full(16, 2, np.float32)


@pytest.mark.parametrize(
    "other", [TWOS, np.ones(8, np.float32), np.ones(16, np.float16), -ONES, ONES[:0]]
)
def test_two_tensors_of_one_name(decoder, other):
    add(decoder, ONES)
    add(decoder, other)
    decoder.node("RMSNormalization", ["x", "twice"], ["y"])
    decoder.opset = 23
    assert "two tensors 'twice' with different contents" in refusal(decoder.save(), lambda m: None)


def test_equal_tensors_of_one_name(decoder, agrees):
    add(decoder, ONES)
    add(decoder, ONES)
    # The same numbers in another field of the record.
    decoder.constants.append(helper.make_tensor("twice", TensorProto.FLOAT, [16], ONES))
    decoder.node("SimplifiedLayerNormalization", ["x", "twice"], ["y"], epsilon=1e-5)
    agrees(decoder)


def test_equal_tensors_outside_of_the_file(decoder):
    add(decoder, ONES)
    decoder.node("SimplifiedLayerNormalization", ["x", "twice"], ["y"])
    path = decoder.save(save_as_external_data=True, location="w.bin", size_threshold=0)
    model = onnx.load(path, load_external_data=False)
    model.graph.initializer.append(model.graph.initializer[-1])
    path.write_bytes(model.SerializeToString())
    import_model(path)
    entry = next(e for e in model.graph.initializer[-1].external_data if e.key == "offset")
    entry.value = "0"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(UserErrors, match="two tensors 'twice'"):
        import_model(path)


@pytest.mark.parametrize("dims", [["batch", "sequence"], [1, 1], ["a", "b", "c"]])
def test_two_inputs_of_one_name(decoder, dims):
    decoder.inputs.append(("input_ids", TensorProto.INT64, dims))
    decoder.node("Relu", ["x"], ["y"])
    assert "two inputs 'input_ids'" in refusal(decoder.save(), lambda m: None)


def test_an_input_with_a_default_twice(decoder, agrees):
    # As Olive lists the matrices of adapters; onnxruntime takes it.
    add(decoder, ONES)
    decoder.inputs += [("twice", TensorProto.FLOAT, [16])] * 2
    decoder.node("SimplifiedLayerNormalization", ["x", "twice"], ["y"], epsilon=1e-5)
    agrees(decoder)


def test_an_output_listed_twice(decoder):
    decoder.node("Relu", ["x"], ["y"])
    path = decoder.save()
    model = onnx.load(path)
    model.graph.output.append(model.graph.output[0])
    path.write_bytes(model.SerializeToString())
    assert import_model(path).vocabulary == 16


@pytest.mark.parametrize(
    ("output", "words"),
    [("twice", "a tensor of the file"), ("input_ids", "an input of the graph"), ("x", "another")],
)
def test_outputs_of_nodes(decoder, output, words):
    add(decoder, ONES)
    decoder.node("Relu", ["x"], [output], name="second")
    decoder.node("Relu", [output], ["y"])
    found = refusal(decoder.save(), lambda m: None)
    assert f"'{output}' is the name of {words}" in found
    assert "node 'second' (Relu)" in found or "node 'embed' (Gather)" in found


@pytest.mark.parametrize("others", [["Relu"], ["Tanh"], ["Neg", "Neg"]])
def test_nodes_of_one_name(decoder, others):
    decoder.node("Relu", ["x"], ["v0"], name="same")
    for i, op_type in enumerate(others):
        decoder.node(op_type, [f"v{i}"], [f"v{i + 1}"], name="same")
    decoder.node("Relu", [f"v{len(others)}"], ["y"])
    assert "nodes share the name 'same' (Relu, " in refusal(decoder.save(), lambda m: None)


@pytest.mark.parametrize("value", [8, 4])
def test_attributes_twice(decoder, value):
    decoder.constant("w", np.zeros((4, 1, 8), np.uint8))
    decoder.floats("s", 4, 1)
    decoder.ms(
        "MatMulNBits", ["x", "w", "s"], ["y"], K=16, N=4, bits=4, block_size=16, name="product"
    )
    decoder.nodes[-1].attribute.append(helper.make_attribute("bits", value))
    found = refusal(decoder.save(), lambda m: None)
    assert "node 'product' (MatMulNBits): its attribute 'bits' is given twice" in found


@pytest.mark.parametrize(("domain", "version"), [("", 13), ("ai.onnx", 13), ("com.microsoft", 2)])
def test_operator_sets_twice(decoder, domain, version):
    decoder.node("Relu", ["x"], ["y"])

    def change(model):
        model.opset_import.append(helper.make_opsetid(domain, version))

    assert f"and {version}" in refusal(decoder.save(), change)


@pytest.mark.parametrize("version", [onnx.defs.onnx_opset_version() + 1, 99, 2**40])
def test_operator_sets_that_are_not_released(decoder, version: int):
    decoder.node("Relu", ["x"], ["y"])

    def change(model):
        model.opset_import[0].version = version

    said = refusal(decoder.save(), change)
    assert f"'ai.onnx' has version {version}; onnx" in said
    assert f"opset_version={onnx.defs.onnx_opset_version()} or older" in said


def test_functions_twice(decoder):
    for _ in range(2):
        decoder.function("F", ["a"], ["b"], [helper.make_node("Relu", ["a"], ["b"])])
    decoder.node("F", ["x"], ["y"], domain="own")
    assert "two functions 'own::F'" in refusal(decoder.save(), lambda m: None)


@pytest.mark.parametrize("dtype", [58, -1, 1000])
def test_element_types_that_onnx_does_not_know(decoder, dtype):
    constant = numpy_helper.from_array(np.array(2.0, np.float32), "")
    constant.data_type = dtype
    decoder.nodes.append(helper.make_node("Constant", [], ["c"], name="two"))
    decoder.nodes[-1].attribute.add(name="value", type=onnx.AttributeProto.TENSOR).t.CopyFrom(
        constant
    )
    decoder.node("Mul", ["x", "c"], ["y"])
    found = refusal(decoder.save(), lambda m: None)
    assert f"tensor 'c' has an element type that ONNX does not know ({dtype})" in found


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("offset", "-4096"),
        ("offset", "abc"),
        ("length", "-1"),
        ("length", ""),
        ("offset", "9" * 40),
    ],
)
def test_places_in_other_files(decoder, key, value):
    decoder.node("Relu", ["x"], ["y"])
    path = decoder.save(save_as_external_data=True, location="w.bin", size_threshold=0)
    model = onnx.load(path, load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        if entry.key == key:
            entry.value = value
    path.write_bytes(model.SerializeToString())
    with pytest.raises(UserErrors, match=f"tensor 'table' has the {key} '{value}'"):
        import_model(path)


@pytest.mark.parametrize(
    "calls", [{"A": "A"}, {"A": "B", "B": "A"}, {"A": "B", "B": "C", "C": "B"}]
)
def test_functions_that_call_themselves_though_nobody_calls_them(decoder, calls):
    for name, called in calls.items():
        body = [helper.make_node(called, ["a"], ["b"], domain="own")]
        decoder.function(name, ["a"], ["b"], body)
    decoder.node("Relu", ["x"], ["y"])
    assert "calls itself" in refusal(decoder.save(), lambda m: None)
