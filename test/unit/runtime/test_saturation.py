"""Remedies for saturation: tried on the same tokens before they are named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from intaglio.backend.compile import compile_model
from intaglio.backend.stages import Options
from intaglio.runtime.check import check
from intaglio.runtime.check_report import text_lines
from intaglio.runtime.chip import load
from intaglio.runtime.saturation import saturation, saturation_lines
from intaglio.runtime.simulator import Simulator

FINE = ("activations=int16", "kv=int16", "fraction_bits=20")
"""A range of 2,048, chosen by the user."""


@pytest.fixture
def loud(model: Callable[[str], Path], tmp_path: Path) -> Callable[..., Path]:
    """A compiled model whose named matrices have larger scales."""

    def make(name: str, factor: float, *parts: str, settings: tuple[str, ...] = FINE) -> Path:
        graph = onnx.load(model(name))
        for one in graph.graph.initializer:
            if one.name.endswith("weight_scales") and any(part in one.name for part in parts):
                value = numpy_helper.to_array(one) * np.float32(factor)
                one.CopyFrom(numpy_helper.from_array(value, one.name))
        path = tmp_path / "loud.onnx"
        onnx.save_model(graph, path)
        options = Options("roma-mini", settings, context=48)
        return compile_model(path, tmp_path / "out", options).folder

    return make


@pytest.mark.parametrize(
    ("name", "factor", "parts"),
    [
        ("llama", 150.0, ("gate_proj", "up_proj")),
        ("tied", 300.0, ("gate_proj", "up_proj")),
        ("qwen", 20000.0, ("down_proj",)),
    ],
)
def test_a_remedy_is_tried_and_named(
    loud: Callable[..., Path], name: str, factor: float, parts: tuple[str, ...]
) -> None:
    out = loud(name, factor, *parts)
    result = check(load(out), tokens=24)
    found = result["saturation"]
    assert result["saturations"] and found["count"] == sum(n["count"] for n in found["nodes"])
    remedy = found["remedy"]
    assert remedy["saturations"] < found["count"] and remedy["error"] < found["error"]
    assert remedy in found["tried"]
    bits = remedy["fraction_bits"]
    lines = "\n".join(text_lines(result))
    assert f"--set fraction_bits={bits} helps" in lines and found["nodes"][0]["onnx"] in lines
    # It is what a compile with that setting gives, but for biases, which are rounded twice here.
    again = check(
        load(loud(name, factor, *parts, settings=(*FINE, f"fraction_bits={bits}"))), tokens=24
    )
    assert again["saturations"] == remedy["saturations"]
    assert again["max_abs_logit_error"] == pytest.approx(remedy["error"], rel=0.5)
    assert again["max_abs_logit_error"] < result["max_abs_logit_error"]


def test_what_does_not_help_is_not_named(loud: Callable[..., Path]) -> None:
    out = loud("llama", 1e9, "down_proj")
    simulator = load(out).simulator
    found = saturation(simulator, range(24))
    assert found["count"] and [one["fraction_bits"] for one in found["tried"]][-1] == 8
    if found["remedy"] is None:
        assert "do not help" in saturation_lines(found)[-1]
    else:
        assert found["remedy"]["saturations"] < found["count"]


def test_nothing_saturates(compiled: Callable[[str], Path]) -> None:
    out = compiled("qwen")
    assert check(load(out), tokens=24)["saturation"] is None
    found = saturation(load(out).simulator, range(8))
    assert (found["count"], found["tried"], found["remedy"]) == (0, [], None)
    assert saturation_lines(found) == ["none among the first 8 tokens, where remedies are tried"]


@pytest.mark.parametrize("name", ["qwen", "phi"])
def test_other_fraction_bits_are_those_of_a_compile(
    model: Callable[[str], Path], compiled: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    """Biases and offsets follow: within what rounding them twice can change."""
    ids = np.arange(12)
    tried = load(compiled(name)).simulator.with_fraction_bits(11)
    got = tried.forward(ids)
    folder = compile_model(
        model(name), tmp_path / "out", Options("roma-mini", ("fraction_bits=11",))
    ).folder
    real: Simulator = load(folder).simulator
    want = real.forward(ids)
    assert got is not None and want is not None
    assert tried.fraction_bits == real.fraction_bits == 11
    spread = np.abs(want).max()
    assert np.abs(got - want).max() <= 0.02 * spread
