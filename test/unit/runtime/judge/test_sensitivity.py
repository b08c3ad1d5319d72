"""What formats cost: the figures are those of compiles with the settings that they stand for."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from intaglio.backend.compile import compile_model
from intaglio.backend.stages import Options
from intaglio.runtime.chip import load
from intaglio.runtime.cli import main
from intaglio.runtime.judge.check import check
from intaglio.runtime.judge.outliers import STANDS_OUT, _times
from intaglio.runtime.judge.sensitivity import APART, _recommended, sensitivity, sensitivity_lines

TEXT = "In the beginning was the word. " * 9


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(TEXT)
    return path


def divergence(model: Path, out: Path, text: Path, *settings: str) -> float:
    """Against float activations, of a compile."""
    compile_model(model, out, Options("roma-mini", settings, emit="program"))
    result = check(load(out), text=text, windows=2)
    return result["against"]["float_activations"]["mean_kl"]


@pytest.mark.parametrize("fmt", ["int8", "half8"])
def test_figures_are_those_of_compiles(compiled, tmp_path: Path, text: Path, fmt: str) -> None:
    model = load(compiled("llama")).model
    own = (f"activations={fmt}", "kv=int8")
    as_compiled = divergence(model, tmp_path / "chip", text, *own)
    result = sensitivity(load(tmp_path / "chip"), text, windows=2)
    assert result["chip"]["mean_kl"] == pytest.approx(as_compiled)
    rows = {row["role"]: row for row in result["roles"]}
    assert set(rows) == {
        *(f"input of {name}" for name in ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")),
        *("input of lm_head", "keys and values", "queries", "probabilities"),
    }
    assert {row["format"] for name, row in rows.items() if name.startswith("input")} == {fmt}
    assert sum(row["share"] for row in rows.values()) == pytest.approx(1)
    costs = [row["mean_kl"] for row in result["roles"]]
    assert costs == sorted(costs, reverse=True)
    assert 0 <= result["wide"]["mean_kl"] < min(as_compiled, 1e-5)
    wide = ("activations=int16", "kv=int16")
    alone = divergence(model, tmp_path / "alone", text, *wide, f"activations.down_proj={fmt}")
    assert rows["input of down_proj"]["mean_kl"] == pytest.approx(alone)
    kv = divergence(model, tmp_path / "kv", text, "activations=int16", "kv=int8")
    assert rows["keys and values"]["mean_kl"] == pytest.approx(kv)
    settings = result["recommended"]["settings"]
    assert settings
    assert result["references_apart"] < APART
    given = divergence(model, tmp_path / "set", text, *own, *settings)
    assert result["recommended"]["mean_kl"] == pytest.approx(given)
    assert given < as_compiled
    lines = list(sensitivity_lines(result))
    assert any(" ".join(f"--set {one}" for one in settings) in line for line in lines)


@pytest.mark.parametrize("places", [False, True])
def test_formats_that_a_chip_has_together_are_one_role(
    compiled, tmp_path: Path, text: Path, places: bool
) -> None:
    model = load(compiled("llama")).model
    numerators = "places8" if places else "uint8"
    settings = ("activations=int8", "kv=half8", f"probabilities={numerators}")
    as_compiled = divergence(model, tmp_path / "chip", text, *settings)
    result = sensitivity(load(tmp_path / "chip"), text, windows=2)
    assert result["chip"]["mean_kl"] == pytest.approx(as_compiled)
    name = "queries, keys, values, probabilities" if places else "queries, keys and values"
    (one,) = [row for row in result["roles"] if row["role"].startswith("queries")]
    setting = "kv=int16 probabilities=uint8" if places else "kv=int16"
    assert (one["role"], one["setting"]) == (name, setting)
    assert 0 < one["mean_kl"] < as_compiled


@pytest.fixture
def outlying(compiled, tmp_path: Path) -> Path:
    """A model whose second norms have a channel that is twelve times as large."""
    graph = onnx.load(load(compiled("llama")).model)
    (*norms,) = [
        one for one in graph.graph.initializer if "post_attention_layernorm.weight" in one.name
    ]
    assert norms
    for one in norms:
        gamma = numpy_helper.to_array(one).copy()
        gamma[20] = 12 * np.abs(gamma).max()
        one.CopyFrom(numpy_helper.from_array(gamma, one.name))
    path = tmp_path / "outlying.onnx"
    onnx.save_model(graph, path)
    return path


def test_blocks_that_stand_out(outlying: Path, tmp_path: Path, text: Path) -> None:
    """The block of the channel is found, alone, and its figures are those of a compile with it."""
    own = ("activations=half8", "formats.block=16")
    as_compiled = divergence(outlying, tmp_path / "chip", text, *own)
    result = sensitivity(load(tmp_path / "chip"), text, windows=2)
    one, *others = [one for one in result["outliers"] if one["role"] == "input of gate_up_proj"]
    assert not others
    assert (one["blocks"], one["setting"]) == ([1], "wide.gate_up_proj=1")
    assert one["times"] > STANDS_OUT
    given = divergence(outlying, tmp_path / "set", text, *own, one["setting"])
    assert one["mean_kl"] == pytest.approx(given)
    assert given < as_compiled
    lines = list(sensitivity_lines(result))
    assert any("input of gate_up_proj: block 1 of " in line for line in lines)
    # What is wide already is not found again.
    again = sensitivity(load(tmp_path / "set"), text, windows=1)
    assert all(one["role"] != "input of gate_up_proj" for one in again["outliers"])
    int8 = ("activations=int8", "kv=int8")
    _ = divergence(outlying, tmp_path / "int8", text, *int8)
    assert sensitivity(load(tmp_path / "int8"), text, windows=1)["outliers"] == []


def test_channels_over_the_median_of_their_block() -> None:
    channels = np.array([1.0, 2, 3, 24, 0, 0, 0, 0, 0, 0, 0, 5, 7])
    times = _times(channels, 4)
    assert times.tolist() == [24 / 2.5, 0, 0, 1]


def row(setting: str | None, share: float) -> dict[str, object]:
    return {"setting": setting, "share": share}


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([("a", 0.7), ("b", 0.3)], ["a"]),
        ([("a", 0.4), ("b", 0.3), ("c", 0.3)], ["a", "b"]),
        ([(None, 0.6), ("b", 0.3), ("c", 0.1)], ["b", "c"]),
        ([("a b", 0.4), ("c", 0.3), ("d", 0.3)], ["a", "b", "c"]),
        ([(None, 1.0)], []),
        ([], []),
    ],
)
def test_settings_until_half_is_gone(rows, expected) -> None:
    assert _recommended([row(*one) for one in rows]) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "--sensitivity: only with --text"),
        (("--text", "x", "--per-op"), "--sensitivity: not with --per-op"),
        (("--text", "x", "--engine", "rtl"), "--sensitivity: not with --engine rtl"),
        (("--text", "x", "--tokens", "9"), "not with --tokens"),
        (("--text", "missing", "--windows", "1"), "cannot be read"),
    ],
)
def test_what_cannot_be_asked(compiled, capsys, options, message) -> None:
    assert main(["check", str(compiled("llama")), "--sensitivity", *options]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("fmt", ["int8", "half8"])
def test_slots_change_nothing(compiled, tmp_path: Path, text: Path, fmt: str) -> None:
    model, settings = load(compiled("llama")).model, (f"activations={fmt}",)
    options = Options("roma-mini", settings, emit="program", adapter_rank=4)
    compile_model(model, tmp_path / "o", options)
    chip = load(tmp_path / "o")
    as_compiled = check(chip, text=text, windows=1)["against"]["float_activations"]["mean_kl"]
    found = sensitivity(chip, text, windows=1)
    assert found["chip"]["mean_kl"] == pytest.approx(as_compiled)


def test_the_command(compiled, text: Path, capsys) -> None:
    arguments = ["check", str(compiled("llama")), "--text", str(text), "--windows", "1"]
    assert main([*arguments, "--sensitivity", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["windows"] == 1
    assert content["recommended"]["settings"]


def test_what_gains_nothing_is_not_recommended() -> None:
    figures = {"mean_kl": 1e-4, "max_error_of_range": 0.01, "perplexity_change": 0.0}
    one = {"role": "input of head", "format": "int8", "mean_kl": 1e-4, "share": 1.0}
    result = {
        "tokens_compared": 9,
        "windows": 1,
        "references_apart": 0.2,
        "chip": figures,
        "wide": figures,
        "outliers": [],
        "roles": [{**one, "perplexity_change": 0.0, "setting": "activations.head=int16"}],
        "recommended": {"settings": [], "tried": ["activations.head=int16"], **figures},
    }
    *_, last = sensitivity_lines(result)
    assert last == "  recommended  nothing: --set activations.head=int16 gains nothing"
    result["recommended"] = {"settings": [], "tried": [], **figures}
    lines = list(sensitivity_lines(result))
    assert lines[-1] == "  recommended  nothing"
    few = "too few to rank formats by"
    assert any(line.startswith(f"  9 tokens are {few}: a text of 256") for line in lines)
    assert not any(few in line for line in sensitivity_lines({**result, "tokens_compared": 256}))
