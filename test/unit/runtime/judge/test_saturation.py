"""Remedies for saturation: tried on the same tokens before they are named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from intaglio.backend.compile import compile_model
from intaglio.backend.stages import Options
from intaglio.dialects.isa.values import Fixed
from intaglio.runtime.chip import load
from intaglio.runtime.engines.simulator import Simulator
from intaglio.runtime.judge.check import check
from intaglio.runtime.judge.report import text_lines
from intaglio.runtime.judge.saturation import saturation, saturation_lines

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
    assert found["remedy"] is None and found["tried"][-1]["saturations"] > 0.9 * found["count"]
    lines = saturation_lines(found)
    assert lines[1] == "no setting tried helps; on the same 24 tokens:"
    assert len(lines) == 2 + len(found["tried"]) and "fraction_bits=8: " in lines[-1]


class Chosen:
    """A simulator whose saturations and errors by fraction bits are given."""

    capacity = 8

    def __init__(self, outcomes: dict[int, tuple[int, float]], bits: int = 20) -> None:
        self.outcomes, self.fraction_bits = outcomes, bits
        self.program = SimpleNamespace(buffers={"x": SimpleNamespace(type=Fixed(1, bits))})
        self.reset()

    def reset(self) -> None:
        self.saturations = 0

    def with_fraction_bits(self, bits: int) -> Chosen:
        return Chosen(self.outcomes, bits)

    def forward(self, ids: Any, observe: Any = None) -> np.ndarray:
        self.saturations, error = self.outcomes[self.fraction_bits]
        if observe is not None:
            observe(SimpleNamespace(onnx=("node",), opcode="add"), 0, None)
        return np.full((len(ids), 1), np.ldexp(error, self.fraction_bits)).astype(np.int64)


@pytest.mark.parametrize(
    ("last", "judged", "helps"),
    [
        # What a fresh reader met: one saturation in seven gone, the error as before.
        ((5513, 4.75), True, False),
        ((5513, 0.0), False, False),
        ((64, 1.0), True, True),
        ((64, 0.0), False, True),
        ((65, 1.0), True, False),
        ((0, 1.5), True, False),
        ((0, 1.0), True, True),
        ((0, 0.0), False, True),
    ],
)
def test_a_setting_helps_where_the_model_can_be_used_with_it(
    last: tuple[int, float], judged: bool, helps: bool
) -> None:
    outcomes = {20: (6465, 5.0), 16: (6465, 5.0), 14: (6000, 4.0), 12: (6000, 4.0), 10: (900, 4.0)}
    chosen: Any = Chosen(outcomes | {8: last})
    found = saturation(chosen, [1, 2], np.zeros((2, 1)) if judged else None)
    lines = saturation_lines(found)
    left = f"{last[0]:,} of 6,465" if last[0] else "none of 6,465"
    if helps:
        assert found["remedy"] == found["tried"][-1]
        assert f"--set fraction_bits=8 helps: on the same 2 tokens {left}" in lines[1]
    else:
        assert found["remedy"] is None and "helps: " not in "\n".join(lines)
        assert lines[1] == "no setting tried helps; on the same 2 tokens:" and len(lines) == 7
        assert lines[-1].startswith(f"  --set fraction_bits=8: {left}")


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
