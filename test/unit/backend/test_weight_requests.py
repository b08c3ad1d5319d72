"""What a compile asks of the import: rounding in the target's mix, codes that the chip has."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from intaglio.backend.compile import (
    cells,
    compile_model,
    float_weights_hint,
    head_rounding,
    requested_weights,
)
from intaglio.backend.stages import Options
from intaglio.backend.target.target import load_target, target_names
from intaglio.dialects.errors import UserError, UserErrors
from intaglio.lowering.onnx.weights.rounding import HEAD_ROUNDING, parse_rounding
from intaglio.lowering.onnx.weights.weights import FLOAT_WEIGHTS_HINT

Named = Callable[[str], Path]


def in_floats(path: Path, part: str, folder: Path) -> Path:
    """A model whose products with `part` in their names have float weights of the same shape."""
    model = onnx.load(path)
    for node in model.graph.node:
        if node.op_type == "MatMulNBits" and part in node.name:
            sizes = {one.name: one.i for one in node.attribute}
            values = np.random.default_rng(1).normal(0, 0.1, (sizes["K"], sizes["N"]))
            name = f"{node.name}/weight"
            model.graph.initializer.append(numpy_helper.from_array(values.astype("f4"), name))
            product = helper.make_node("MatMul", [node.input[0], name], node.output, node.name)
            node.CopyFrom(product)
    onnx.save(model, folder / "model.onnx")
    return folder / "model.onnx"


def test_the_mix_of_a_target() -> None:
    assert requested_weights(Options("hc1", weights="target")) == load_target("hc1").mixed_weights
    assert requested_weights(Options("hc1", weights="int4:32")) == "int4:32"
    assert requested_weights(Options("hc1")) is None


def test_a_target_without_a_mix() -> None:
    with pytest.raises(UserError, match="roma does not say") as caught:
        requested_weights(Options("roma", weights="target"))
    assert "int4" in (caught.value.hint or "")


def test_codes_are_those_of_layers_and_head() -> None:
    assert cells(Options("hc1")) == ("ternary", "int2", "int3", "int4", "int6")
    assert cells(Options("tom")) == ("ternary",)
    assert cells(Options("roma", emit="rom")) == ()


@pytest.mark.parametrize("name", target_names())
def test_every_target_says_how_a_head_is_rounded(name: str) -> None:
    target = load_target(name)
    (limits,) = [
        one.range for key, one in target.parameters.items() if key == "policy.head_weights"
    ]
    assert limits is not None
    for text in (head_rounding(Options(name)), *map(str, limits)):
        assert parse_rounding(text).code in target.machine().head_weights
    asked = Options(name, settings=("policy.head_weights=int4:64",))
    assert head_rounding(asked) == "int4:64"
    assert head_rounding(Options(name, emit="rom")) == HEAD_ROUNDING


@pytest.mark.parametrize(
    ("asked", "words", "code", "group"),
    [
        (None, "int8 in groups of 128", "int8", 128),
        ("int4:32", "int4 in groups of 32", "int4", 32),
        ("ternary", "ternary with one scale", "ternary", 0),
    ],
)
def test_a_head_is_rounded_as_the_target_says(
    model: Named, tmp_path: Path, asked: str | None, words: str, code: str, group: int
) -> None:
    settings = () if asked is None else (f"policy.head_weights={asked}",)
    path = in_floats(model("ternary"), "lm_head", tmp_path)
    options = Options("tom-mini", settings=settings, emit="program")
    found = compile_model(path, tmp_path / "out", options)
    assert any(f"are engraved as {words}" in one for one in found.warnings)
    parameters = json.loads((found.folder / "program.json").read_text())["parameters"]
    (head,) = [one for name, one in parameters.items() if "lm_head" in name]
    assert (head["code"], head["group"]) == (code, group)


@pytest.mark.parametrize("name", target_names())
def test_hints_name_what_the_layers_hold(name: str) -> None:
    hint = float_weights_hint(Options(name))
    found = re.search(r"--weights ([a-z0-9:]+)", hint)
    assert found is not None
    asked = requested_weights(Options(name, weights=found[1]))
    assert asked is not None and asked in hint
    first = parse_rounding(asked.partition(",")[0])
    assert first.code in load_target(name).machine().weights
    assert float_weights_hint(Options(name, emit="rom")) == FLOAT_WEIGHTS_HINT


def test_hints_follow_settings() -> None:
    assert "--weights int2:128," in float_weights_hint(Options("roma", settings=("weights=int2",)))


@pytest.mark.parametrize(
    ("columns", "group"),
    [([], 128), ([2048, 8192], 128), ([64, 256], 64), ([64, 96], 32), ([48], 16), ([128, 40], 128)],
)
def test_groups_of_hints_divide_every_row(columns: list[int], group: int) -> None:
    """Where one that onnxruntime knows does; of rows of 40 none does."""
    assert f"--weights int4:{group}," in float_weights_hint(Options("roma"), columns)


def tied_in_floats(path: Path, folder: Path) -> Path:
    """All products in floats, the head's on the table of the embedding."""
    model = onnx.load(in_floats(path, "", folder))
    (head,) = (node for node in model.graph.node if node.name == "/lm_head/MatMul")
    (table,) = (node for node in model.graph.node if node.name == "/model/embed_tokens/Gather")
    turned = helper.make_node("Transpose", [table.input[0]], ["turned"], "turned", perm=[1, 0])
    model.graph.node.insert(0, turned)
    head.input[1] = "turned"
    onnx.save(model, folder / "model.onnx")
    return folder / "model.onnx"


def test_a_tied_table_in_groups(model: Named, tmp_path: Path) -> None:
    """Rows of 64: the groups of the hint, groups of the row or longer, and one that is none."""
    path = tied_in_floats(model("llama"), tmp_path)
    with pytest.raises(UserErrors) as caught:
        compile_model(path, tmp_path / "out", Options("roma"))
    hints = {error.hint for error in caught.value.errors}
    assert any("--weights int4:32," in (hint or "") for hint in hints)
    for group in (16, 32, 64, 128):
        options = Options("roma-mini", weights=f"int4:{group}", emit="integer")
        written = compile_model(path, tmp_path / "out", options).folder / "reference"
        (quantised,) = written.glob("*.onnx")
        kinds = {
            node.op_type: node for node in onnx.load(quantised, load_external_data=False).graph.node
        }
        sizes = {one.name: one.i for one in kinds["GatherBlockQuantized"].attribute}
        assert sizes["block_size"] == min(group, 64)
    options = Options("roma-mini", weights="int4:256,lm_head=int4:48", emit="integer")
    with pytest.raises(UserError, match="groups of 48 cannot be written") as raised:
        compile_model(path, tmp_path / "out", options)
    assert raised.value.file == str(path)


@pytest.mark.parametrize("name", ["roma-mini", "tom-mini", "bitrom-mini", "hc1-mini"])
def test_what_a_hint_says_helps(model: Named, tmp_path: Path, name: str) -> None:
    path = in_floats(model("llama"), "", tmp_path)
    with pytest.raises(UserErrors) as caught:
        compile_model(path, tmp_path / "out", Options(name))
    (hint,) = {error.hint for error in caught.value.errors if error.hint is not None}
    assert hint == float_weights_hint(Options(name), (64, 96))
    found = re.search(r"--weights ([a-z0-9:]+)", hint)
    assert found is not None
    compile_model(path, tmp_path / "out", Options(name, weights=found[1], emit="program"))
