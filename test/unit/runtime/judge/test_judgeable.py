"""What a compile can say of a judge that `check` will not have, without reading weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from intaglio.runtime import cli
from intaglio.runtime.judge.judgeable import why_not
from intaglio.runtime.judge.reference import CannotJudge, Reference

BRAIN, FLOAT = TensorProto.BFLOAT16, TensorProto.FLOAT
Named = Callable[[str], Path]


def with_norms(source: Path, path: Path, which: str = "qk") -> Path:
    """A model that normalises queries and keys inside the attention, as exported for CUDA."""
    proto = onnx.load(source)
    for node in [node for node in proto.graph.node if node.op_type == "GroupQueryAttention"]:
        node.input.extend([""] * (14 - len(node.input)))
        for letter in "qk":
            name = f"{node.name}/{letter}_norm" if letter in which else ""
            if name:
                weight = np.linspace(0.9, 1.1, 16, dtype=np.float32)
                proto.graph.initializer.append(numpy_helper.from_array(weight, name))
            node.input.append(name)
    onnx.save(proto, path)
    return path


def small(path: Path, nodes: list[onnx.NodeProto], kind: int = FLOAT, table: int = FLOAT) -> Path:
    """A graph from token ids to logits whose table and whose output are of some types."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "tokens"])],
        [helper.make_tensor_value_info("logits", kind, ["batch", "tokens", 4])],
        [helper.make_tensor("table", table, [4, 4], np.arange(16.0))],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


def node(op: str, inputs: list[str], output: str, **attributes: int) -> onnx.NodeProto:
    return helper.make_node(op, inputs, [output], name=f"the_{op}", **attributes)


GATHER = node("Gather", ["table", "input_ids"], "rows")


def agrees(path: Path) -> str | None:
    """What is said without running, which onnxruntime must confirm."""
    said = why_not(path)
    if said is None:
        Reference(path).feed([1, 2])
    else:
        with pytest.raises(CannotJudge):
            Reference(path).feed([1, 2])
    return said


def test_models_that_can_be_judged(model: Named):
    for name in ("llama", "tied", "qwen", "phi", "int8", "ternary"):
        assert why_not(model(name)) is None


@pytest.mark.parametrize("which", ["qk", "q", "k"])
def test_norms_inside_the_attention(which: str, model: Named, tmp_path: Path):
    path = with_norms(model("tied"), tmp_path / "model.onnx", which)
    (tmp_path / "genai_config.json").write_bytes(
        model("tied").with_name("genai_config.json").read_bytes()
    )
    said = agrees(path)
    assert said is not None and "on GPUs only" in said and "GroupQueryAttention '/model" in said


def test_arithmetic_of_bfloat16(tmp_path: Path):
    product = node("MatMul", ["rows", "table"], "product")
    wide = node("Cast", ["product"], "logits", to=FLOAT)
    said = agrees(small(tmp_path / "a.onnx", [GATHER, product, wide], table=BRAIN))
    assert said == (
        "MatMul 'the_MatMul' takes bfloat16, for which onnxruntime has no kernel on CPUs"
    )
    narrow = node("Cast", ["rows"], "narrow", to=BRAIN)
    product = node("Mul", ["narrow", "narrow"], "product")
    said = agrees(small(tmp_path / "b.onnx", [GATHER, narrow, product, wide]))
    assert said is not None and said.startswith("Mul 'the_Mul' takes bfloat16")
    moved = node("Transpose", ["narrow"], "moved", perm=[0, 1, 2])
    product = node("Softmax", ["moved"], "product")
    said = agrees(small(tmp_path / "c.onnx", [GATHER, narrow, moved, product, wide]))
    assert said is not None and said.startswith("Softmax 'the_Softmax'")


def test_bfloat16_that_is_only_stored_or_moved(tmp_path: Path):
    wide = node("Cast", ["rows"], "logits", to=FLOAT)
    assert agrees(small(tmp_path / "a.onnx", [GATHER, wide], table=BRAIN)) is None
    moved = node("Identity", ["rows"], "moved")
    wide = node("Cast", ["moved"], "logits", to=FLOAT)
    assert agrees(small(tmp_path / "b.onnx", [GATHER, moved, wide], table=BRAIN)) is None


def test_ports_that_numpy_cannot_hold(tmp_path: Path):
    for number, kind in enumerate((BRAIN, TensorProto.FLOAT8E4M3FN)):
        cast = node("Cast", ["rows"], "logits", to=kind)
        said = agrees(small(tmp_path / f"{number}.onnx", [GATHER, cast], kind=kind))
        assert said == f"'logits' is of {TensorProto.DataType.Name(kind)}"


def test_compile_says_it(model: Named, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = with_norms(model("tied"), tmp_path / "model.onnx")
    command = ["--target", "roma-mini", "--context", "16", "-o", str(tmp_path / "out")]
    assert cli.main(["compile", str(path), *command]) == 0
    (line,) = [one for one in capsys.readouterr().err.splitlines() if "judge" in one]
    assert line.startswith("warning: onnxruntime cannot judge this model on a CPU: ")
    assert cli.main(["compile", str(model("tied")), *command]) == 0
    assert "judge" not in capsys.readouterr().err
