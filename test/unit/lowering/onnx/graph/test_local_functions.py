"""Functions of a model: bodies of unknown names count, those of known operators do not."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from intaglio.dialects.errors import UserError, UserErrors
from intaglio.lowering.onnx.graph import contrib
from intaglio.lowering.onnx.graph.model_file import load
from intaglio.lowering.onnx.importer import import_model

MS = "com.microsoft"
node = helper.make_node


def doubled(inputs: list[str], outputs: list[str]) -> list[object]:
    """A body that gives twice its first input, and nothing of what its name says."""
    return [node("Add", [inputs[0], inputs[0]], outputs[:1], name="add")]


# --- known operators ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("domain", "op_type"), [("", "Relu"), ("", "Gelu"), (MS, "Gelu"), (MS, "QuickGelu")]
)
def test_the_kernel_counts_and_not_the_body(decoder, agrees, domain, op_type):
    decoder.function(op_type, ["a"], ["b"], doubled(["a"], ["b"]), domain=domain)
    decoder.node(op_type, ["x"], ["y"], domain=domain)
    agrees(decoder)


def test_the_kernel_of_a_norm_counts(decoder, agrees):
    for name in ("skip", "gamma"):
        decoder.floats(name, 16)
    names = ["input", "skip", "gamma"], ["output", "mean", "deviation", "sum"]
    body = [
        node("SimplifiedLayerNormalization", ["input", "gamma"], ["output"]),
        *(node("Identity", ["input"], [name]) for name in names[1][1:]),
    ]
    decoder.function("SkipSimplifiedLayerNormalization", *names, body, domain=MS)
    decoder.node("Relu", ["x"], ["r"])
    decoder.ms("SkipSimplifiedLayerNormalization", ["x", "r", "gamma"], ["y"], epsilon=1e-5)
    agrees(decoder)


def test_known_names_inside_a_body(decoder, agrees):
    decoder.function("Gelu", ["a"], ["b"], doubled(["a"], ["b"]), domain=MS)
    decoder.function("Outer", ["a"], ["b"], [node("Gelu", ["a"], ["b"], domain=MS)])
    decoder.node("Outer", ["x"], ["y"], domain="own")
    agrees(decoder)


@pytest.mark.parametrize("overload", ["one", "other"])
def test_an_overload_of_a_known_operator(decoder, agrees, overload):
    decoder.function("Gelu", ["a"], ["b"], doubled(["a"], ["b"]), domain=MS)
    decoder.functions[0].overload = "one"
    decoder.ms("Gelu", ["x"], ["y"])
    decoder.nodes[-1].overload = overload
    agrees(decoder)


def test_names_that_onnxruntime_has_not_in_its_closed_domain(decoder):
    decoder.function("Novel", ["a"], ["b"], doubled(["a"], ["b"]), domain="")
    decoder.node("Novel", ["x"], ["y"])
    with pytest.raises(UserErrors, match=r"the operator Novel is not supported"):
        import_model(decoder.save())


def test_an_operator_of_onnxruntime_that_does_not_compile(decoder):
    decoder.function("SwiGLU", ["a"], ["b"], doubled(["a"], ["b"]), domain=MS)
    decoder.ms("SwiGLU", ["x"], ["y"])
    with pytest.raises(UserErrors, match=r"the operator SwiGLU of domain com.microsoft is not"):
        import_model(decoder.save())


def test_names_are_those_that_onnxruntime_registers():
    from onnxruntime.capi import _pybind_state as state

    registered = {one.name for one in state.get_all_operator_schema() if one.domain == MS}
    assert not {name for name in registered if not contrib.is_operator(MS, name)}


# --- bodies ---------------------------------------------------------------------------------------


def test_a_name_unknown_in_com_microsoft(decoder, agrees):
    decoder.function("Twice", ["a"], ["b"], doubled(["a"], ["b"]), domain=MS)
    decoder.ms("Twice", ["x"], ["y"])
    agrees(decoder)


def test_calls_within_calls_can_be_found(decoder, agrees):
    decoder.function("Twice", ["a"], ["b"], [*doubled(["a"], ["c"]), node("Relu", ["c"], ["b"])])
    decoder.function(
        "Four",
        ["a"],
        ["b"],
        [
            node("Twice", ["a"], ["c"], domain="own", name="first"),
            node("Twice", ["c"], ["b"], domain="own", name="second"),
        ],
    )
    decoder.node("Four", ["x"], ["h"], domain="own", name="four")
    decoder.node("Four", ["h"], ["y"], domain="own", name="again")
    agrees(decoder)
    names = [one.name for one in load(decoder.folder / "model.onnx").nodes]
    assert names[1] == "four/first/add" and "again/second/add" in names
    assert len(set(names)) == len(names)


def test_a_refusal_names_the_call_and_the_node(decoder):
    decoder.function("Hard", ["a"], ["b"], [node("Hardmax", ["a"], ["b"], name="inner")])
    decoder.node("Hard", ["x"], ["y"], domain="own", name="layers.3/hard")
    with pytest.raises(UserErrors, match=r"node 'layers.3/hard/inner' .Hardmax."):
        import_model(decoder.save())


def test_attributes_are_handed_on(decoder, agrees):
    body = [node("QuickGelu", ["a"], ["b"], domain=MS)]
    body[0].attribute.add(name="alpha", type=onnx.AttributeProto.FLOAT, ref_attr_name="slope")
    default = helper.make_attribute("slope", 1.702)
    decoder.function("Curve", ["a"], ["b"], body)
    decoder.functions[0].attribute_proto.append(default)
    decoder.node("Curve", ["x"], ["h"], domain="own")
    decoder.node("Curve", ["h"], ["y"], domain="own", slope=1.0)
    agrees(decoder)


def test_an_input_handed_on_and_a_value_given_twice(decoder, agrees):
    body = [node("Relu", ["a"], ["r"])]
    decoder.function("Split3", ["a"], ["a", "r", "r"], body)
    decoder.functions[0].output[:] = ["b", "r", "s"]
    decoder.functions[0].node.extend(
        [node("Identity", ["a"], ["b"]), node("Identity", ["r"], ["s"])]
    )
    decoder.node("Split3", ["x"], ["p", "q", "s"], domain="own")
    decoder.node("Add", ["p", "q"], ["t"])
    decoder.node("Add", ["t", "s"], ["y"])
    agrees(decoder)


@pytest.mark.parametrize("outputs", [["y", ""], ["y"]])
def test_outputs_that_are_left_out(decoder, evaluate, outputs):
    # onnxruntime takes the first form only.
    body = [*doubled(["a"], ["b"]), node("Neg", ["a"], ["c"])]
    decoder.function("Two", ["a"], ["b", "c"], body)
    decoder.node("Two", ["x"], outputs, domain="own")
    model = import_model(decoder.save())
    table = np.frombuffer(decoder.constants[0].raw_data, np.float32).reshape(-1, 16)
    np.testing.assert_allclose(evaluate(model).run([3]), 2 * table[3:4])


def test_a_body_of_an_older_operator_set(decoder, agrees):
    decoder.function("Curve", ["a"], ["b"], [node("Sigmoid", ["a"], ["b"], name="s")], opset=13)
    decoder.node("Curve", ["x"], ["y"], domain="own", name="call")
    agrees(decoder)


@pytest.mark.parametrize("op_type", ["Softmax", "ReduceMean", "Cast"])
def test_a_body_whose_operator_differs_in_the_models_set(decoder, op_type):
    # onnxruntime would take Softmax over the last axis, ONNX over all from the second on.
    decoder.function("Old", ["a"], ["b"], [node(op_type, ["a"], ["b"], name="it")], opset=11)
    decoder.node("Old", ["x"], ["y"], domain="own", name="call")
    words = rf"'call/it' .{op_type}.: its function imports version 11 of ai.onnx, the model 22"
    with pytest.raises(UserError, match=words):
        import_model(decoder.save())


def test_a_function_that_calls_itself(decoder):
    decoder.function("Loop", ["a"], ["b"], [node("Other", ["a"], ["b"], domain="own", name="o")])
    decoder.function("Other", ["a"], ["b"], [node("Loop", ["a"], ["b"], domain="own", name="l")])
    decoder.node("Loop", ["x"], ["y"], domain="own", name="call")
    with pytest.raises(UserError, match=r"the function 'Loop' calls itself"):
        import_model(decoder.save())


@pytest.mark.parametrize(
    ("inputs", "outputs", "words"),
    [(["x", "x"], ["y"], "2 inputs"), (["x"], ["y", "z"], "2 outputs")],
)
def test_a_call_that_does_not_fit(decoder, inputs, outputs, words):
    decoder.function("Twice", ["a"], ["b"], doubled(["a"], ["b"]))
    decoder.node("Twice", inputs, outputs, domain="own")
    with pytest.raises(UserError, match=words):
        import_model(decoder.save())


def test_weights_of_a_body_are_not_quantised_on_request(decoder):
    decoder.floats("w", 16, 32)
    decoder.function("Product", ["a", "w"], ["b"], [node("MatMul", ["a", "w"], ["b"], name="m")])
    decoder.node("Product", ["x", "w"], ["y"], domain="own", name="call")
    with pytest.raises(UserErrors, match=r"'call/m' .MatMul.*inside of a function"):
        import_model(decoder.save(), weights="int4:16")


def test_a_branch_is_read_with_the_names_of_its_call(decoder):
    branch = helper.make_graph(
        [node("Relu", ["a"], ["c"], name="r")],
        "branch",
        [],
        [helper.make_tensor_value_info("c", TensorProto.FLOAT, None)],
    )
    body = [node("If", ["flag"], ["b"], name="if", then_branch=branch, else_branch=branch)]
    decoder.constant("yes", np.array(True))
    decoder.function("Choose", ["a", "flag"], ["b"], body)
    decoder.node("Choose", ["x", "yes"], ["y"], domain="own", name="call")
    (found,) = [one for one in load(decoder.save()).nodes if one.op_type == "If"]
    assert found.name == "call/if"
    inner = found.attributes["then_branch"]
    assert inner.nodes[0].inputs == ("x",) and inner.nodes[0].name.startswith("call/r")
