"""Sums of integer products against onnxruntime's own, given its own rounded activations."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from intaglio.runtime.judge import sums
from intaglio.runtime.judge.sums import compare_sums

K, N, V = 96, 40, 17


def model(folder: Path, form: str) -> Path:
    """Embedding, BitNet's rounding, a ternary product; `form` says where the scales stand."""
    rng = np.random.default_rng(7)
    tensors = {
        "table": rng.normal(size=(V, K)).astype(np.float32),
        "axes": np.array([-1]),
        "eps": np.float32(1e-5),
        "limit": np.float32(127),
        "low": np.float32(-128),
        "s": np.array([0.04], np.float32),
        "w": rng.integers(-1, 2, (K, N)).astype(np.int8 if form == "integers" else np.float32),
    }
    if form == "folded":
        tensors["w"] = tensors["w"] * tensors["s"]
    nodes = [
        ("Gather", ["table", "input_ids"], "x", {}),
        ("Abs", ["x"], "a", {}),
        ("ReduceMax", ["a", "axes"], "m", {"keepdims": 1}),
        ("Clip", ["m", "eps"], "c", {}),
        ("Reciprocal", ["c"], "r", {}),
        ("Mul", ["r", "limit"], "scale", {}),
        ("Mul", ["x", "scale"], "v", {}),
        ("Round", ["v"], "q", {}),
        ("Clip", ["q", "low", "limit"], "levels", {}),
    ]
    if form == "integers":
        nodes += [
            ("Cast", ["levels"], "bytes", {"to": TensorProto.INT8}),
            ("MatMulInteger", ["bytes", "w"], "sums", {}),
            ("Cast", ["sums"], "z", {"to": TensorProto.FLOAT}),
            ("Div", ["z", "scale"], "u", {}),
            ("Mul", ["u", "s"], "logits", {}),
        ]
    else:
        nodes += [
            ("Div", ["levels", "scale"], "rounded", {}),
            ("MatMul", ["rounded", "w"], "z", {}),
        ]
        nodes.append(("Identity" if form == "folded" else "Mul", ["z", "s"], "logits", {}))
        if form == "folded":
            nodes[-1] = ("Identity", ["z"], "logits", {})
    graph = helper.make_graph(
        [
            helper.make_node(op, inputs, [output], name=f"make_{output}", **attributes)
            for op, inputs, output, attributes in nodes
        ],
        "bitnet",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "sequence"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "sequence", N])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in tensors.items()],
    )
    path = folder / "model.onnx"
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(made, path)
    return path


@pytest.mark.parametrize("form", ["after", "folded", "integers"])
def test_sums_are_the_same_integers(tmp_path, form):
    tokens = [3, 1, 4, 1, 5, 9, 2, 6]
    (found,) = compare_sums(model(tmp_path, form), tokens)
    assert found.node == ("make_sums" if form == "integers" else "make_z")
    assert found.compared == len(tokens) * N and found.different == 0
    assert found.largest > 127 and found.distance < 1e-3
    assert form != "integers" or found.distance == 0.0


def test_sums_of_the_trained_model():
    """Every product of the BitNet demo model; the figure for more text is in its README."""
    path = Path(__file__).parents[4] / "examples" / "bitnet" / "model" / "model.onnx"
    found = compare_sums(path, list(b"In the beginning"))
    assert len(found) == 42 and {one.compared for one in found} == {16 * n for n in (64, 128, 384)}
    assert sum(one.different for one in found) == 0
    assert max(one.distance for one in found) < 0.01 and max(one.largest for one in found) > 1000


def test_a_difference_is_counted(tmp_path, monkeypatch):
    exact = sums.dot
    monkeypatch.setattr(sums, "dot", lambda *arguments: exact(*arguments) + 1)
    (found,) = compare_sums(model(tmp_path, "after"), [3, 1])
    assert found.different == found.compared


def test_graphs_that_round_nothing(tmp_path):
    path = model(tmp_path, "after")
    proto = onnx.load(path)
    (product,) = (node for node in proto.graph.node if node.op_type == "MatMul")
    product.input[0] = "x"
    onnx.save(proto, path)
    assert compare_sums(path, [3]) == []
