"""Models whose numbers are small or large: formats follow them, or a warning names the tensor."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from intaglio.backend.compile import Compiled, compile_model
from intaglio.backend.stages import Options
from intaglio.runtime.chip import load
from intaglio.runtime.judge.check import check

Change = Callable[[np.ndarray], np.ndarray]
WIDE = ("activations=int16", "kv=int16")


@pytest.fixture
def changed(model: Callable[[str], Path], tmp_path: Path) -> Callable[..., Path]:
    """A model of test/models with the tensors changed whose names have a part."""

    def make(name: str, part: str, change: Change) -> Path:
        graph = onnx.load(model(name))
        found = [one for one in graph.graph.initializer if part in one.name]
        assert found, part
        for one in found:
            value = numpy_helper.to_array(one)
            one.CopyFrom(
                numpy_helper.from_array(change(value.copy()).astype(value.dtype), one.name)
            )
        path = tmp_path / "changed.onnx"
        onnx.save_model(graph, path)
        return path

    return make


def compiled(path: Path, *settings: str) -> Compiled:
    return compile_model(path, path.parent / "out", Options("roma-mini", settings, context=48))


def error(path: Path) -> float:
    """Largest error of logits over their range, with 16-bit activations; nothing may saturate."""
    done = compiled(path, *WIDE)
    assert not done.warnings
    result = check(load(done.folder), tokens=32)
    assert result["saturations"] == 0
    return result["max_error_of_range"]


@pytest.mark.parametrize(
    ("name", "part", "factor"),
    [
        ("llama", "embed_tokens", 1e-3),
        ("llama", "embed_tokens", 1e-6),
        ("tied", "lm_head.MatMul.weight_scales", 1e-3),
        ("qwen", "embed_tokens", 1e-3),
        ("phi", "embed_tokens", 1e-4),
        ("llama", "input_layernorm.weight", 1e-5),
        ("phi", "norm", 1e-4),
        ("qwen", "qkv_proj.MatMul.weight_scales", 1e-4),
    ],
)
def test_small_numbers(changed: Callable[..., Path], name: str, part: str, factor: float) -> None:
    assert error(changed(name, part, lambda a: a * factor)) < 0.01


@pytest.mark.parametrize("factor", [1.0, 1.9, 2.5, 3.3, 4.5])
def test_rotary_tables_of_two_and_more(changed: Callable[..., Path], factor: float) -> None:
    assert error(changed("llama", "_cache", lambda a: a * factor)) < 0.002


@pytest.mark.parametrize(
    ("name", "part", "factor"),
    [
        ("llama", "post_attention_layernorm.weight", 1e2),
        ("qwen", "o_proj.Add.bias", 1e7),
        ("phi", "layernorm.bias", 1e2),
    ],
)
def test_large_constants(changed: Callable[..., Path], name: str, part: str, factor: float) -> None:
    path = changed(name, part, lambda a: a * factor)
    done = compiled(path, *WIDE)
    rounding = json.loads((done.folder / "manifest.json").read_text())["rounding"]
    assert rounding["clipped"] == {}
    assert check(load(done.folder), tokens=32)["saturations"] == 0


@pytest.mark.parametrize(
    ("name", "factor"), [("llama", 150.0), ("tied", 60.0), ("qwen", 150.0), ("llama", 1000.0)]
)
def test_products_that_outgrow_the_usual_range(
    changed: Callable[..., Path], name: str, factor: float
) -> None:
    """silu(gate) * up of some 10,000: fewer fraction bits there, none less in the stream."""
    graph = onnx.load(changed(name, "gate_proj.MatMul.weight_scales", lambda a: a * factor))
    for one in graph.graph.initializer:
        if "up_proj.MatMul.weight_scales" in one.name:
            value = numpy_helper.to_array(one) * np.float32(factor)
            one.CopyFrom(numpy_helper.from_array(value, one.name))
        if "down_proj.MatMul.weight_scales" in one.name:
            value = numpy_helper.to_array(one) / np.float32(factor**2)
            one.CopyFrom(numpy_helper.from_array(value, one.name))
    path = changed(name, "norm", lambda a: a).with_name("products.onnx")
    onnx.save_model(graph, path)
    assert error(path) < 0.002


def test_constants_beyond_a_set_format_are_named(changed: Callable[..., Path]) -> None:
    path = changed("qwen", "qkv_proj.Add.bias", lambda a: a * 1000)
    warnings = compiled(path, "fraction_bits=28").warnings
    (warning,) = [one for one in warnings if "clipped" in one]
    assert "_bias' (" in warning and "--set fraction_bits=N" in warning


def test_one_element_that_hides_all_others(changed: Callable[..., Path]) -> None:
    """What 32 bits cannot hold together is said."""

    def outlier(table: np.ndarray) -> np.ndarray:
        table *= 1e-4
        table[3, 5] = 1e7
        return table

    warnings = compiled(changed("llama", "embed_tokens", outlier)).warnings
    assert any("embed_tokens" in one and "holds less than" in one for one in warnings)


def test_the_choice_is_stated(changed: Callable[..., Path]) -> None:
    from intaglio.runtime.reports.inspect import inspect_json
    from intaglio.runtime.reports.tables import fraction_line

    path = changed("llama", "embed_tokens", lambda a: a * 0.01)
    content = inspect_json(compiled(path).folder)
    assert content["formats"]["fraction_bits"]["embedding"] == 12 + 7
    assert fraction_line(content) == (
        "numbers 32 bits, 19 of them fraction in the residual stream, 16 elsewhere"
    )
    (stream,) = json.loads((path.parent / "out" / "manifest.json").read_text())["rounding"][
        "embeddings"
    ]
    assert stream["fraction"] == 19 and stream["rms"] == pytest.approx(0.01, rel=0.05)
    set_ = inspect_json(compiled(path, "fraction_bits=14", "activations=int8").folder)
    assert fraction_line(set_) == "numbers 32 bits, 14 of them fraction"
    # A folded norm's weights have the root of the vector's length, 64, in them.
    set_ = inspect_json(compiled(path, "fraction_bits=14").folder)
    assert fraction_line(set_) == (
        "numbers 32 bits, 14 of them fraction in the residual stream, 11 elsewhere"
    )
