"""Graphs that round activations themselves, and onnxruntime without that."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from intaglio.dialects.errors import UserError
from intaglio.runtime.judge.reference import Reference, own_rounding

K, V = 8, 5
TABLE = np.random.default_rng(2).normal(size=(V, K)).astype(np.float32)
WEIGHTS = np.random.default_rng(3).normal(size=(K, V)).astype(np.float32) * 3


def model(folder: Path, kind: str) -> Path:
    """Embedding and product; weights are rounded in the graph, activations as `kind` says."""
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["x"]),
        helper.make_node("Round", ["w"], ["rounded_w"]),
    ]
    match kind:
        case "Round":
            nodes.append(helper.make_node("Round", ["x"], ["y"]))
        case "DynamicQuantizeLinear":
            nodes += [
                helper.make_node(kind, ["x"], ["q", "scale", "zero"]),
                helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"]),
            ]
        case _:
            nodes.append(helper.make_node("Identity", ["x"], ["y"]))
    nodes.append(helper.make_node("MatMul", ["y", "rounded_w"], ["logits"]))
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["b", "s"])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["b", "s", V])
    tensors = [numpy_helper.from_array(TABLE, "table"), numpy_helper.from_array(WEIGHTS, "w")]
    graph = helper.make_graph(nodes, "g", [ids], [logits], tensors)
    path = folder / "model.onnx"
    opsets = [helper.make_opsetid("", 21)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


@pytest.mark.parametrize("kind", ["Round", "DynamicQuantizeLinear", None])
def test_own_rounding(tmp_path: Path, kind: str | None) -> None:
    assert own_rounding(model(tmp_path, kind or "none")) == kind


def test_only_activations_are_left_unrounded(tmp_path: Path) -> None:
    path = model(tmp_path, "Round")
    weights = np.rint(WEIGHTS)
    np.testing.assert_allclose(
        Reference(path).feed([1, 4]), np.rint(TABLE[[1, 4]]) @ weights, atol=1e-5
    )
    np.testing.assert_allclose(
        Reference(path, unrounded=True).feed([1, 4]), TABLE[[1, 4]] @ weights, rtol=1e-4, atol=1e-4
    )


def test_unreadable(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"no model")
    with pytest.raises(UserError, match="the model cannot be read"):
        own_rounding(path)
