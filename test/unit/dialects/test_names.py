"""Names of any characters in the texts of modules."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from intaglio.backend.compile import compile_model
from intaglio.backend.program.program import PROGRAM
from intaglio.backend.stages import Options
from intaglio.dialects.names import escaped, unescaped
from intaglio.runtime import opt


@given(st.text(st.characters(codec="utf-8")) | st.text("\\u{a}12"))
def test_names_come_back(name: str) -> None:
    text = escaped(name)
    assert text.isascii() and (text.isprintable() or not text)
    assert unescaped(text) == name


@pytest.mark.parametrize("name", ["", "onnx::a.b/c d", "model.layers.0.q_proj.weight", '"%#@<>{}'])
def test_most_names_are_as_they_are(name: str) -> None:
    assert escaped(name) == name


@pytest.mark.parametrize("name", ["gewichtä", "重み", 'a"b\\c', "\\u{e4}", "tab\tnew\n", "😀"])
def test_every_stage_parses_back(
    model, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    proto = onnx.load(model("llama"))
    old = next(one for one in proto.graph.initializer if "norm" in one.name).name
    for tensor in proto.graph.initializer:
        if tensor.name == old:
            tensor.name = name
    for node in proto.graph.node:
        node.name += name
        node.input[:] = [name if one == old else one for one in node.input]
    path = tmp_path / "model.onnx"
    onnx.save(proto, path)
    out = compile_model(path, tmp_path / "out", Options("roma-mini", emit="program")).folder
    content = json.loads((out / PROGRAM).read_text())
    assert f"onnx::{name}" in [one["key"] for one in content["parameters"].values()]
    instruction = content["blocks"][0]["instructions"][0]
    assert all(node.endswith(name) for nodes in instruction["onnx"] for node in nodes)
    for stage in ("rom", "integer", "fabric", "program"):
        capsys.readouterr()
        assert opt.main([str(out / f"ir/{stage}.mlir")]) == 0, capsys.readouterr().err
        assert capsys.readouterr().out.strip() == (out / f"ir/{stage}.mlir").read_text().strip()
