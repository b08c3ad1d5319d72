"""The comparison of the hardware where onnxruntime cannot judge the model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from small_chip import SMALL

from intaglio.backend.compile import compile_model
from intaglio.backend.stages import Options
from intaglio.runtime import cli
from intaglio.runtime.chip import Chip, load
from intaglio.runtime.engines.compare import Difference
from intaglio.runtime.engines.hardware_work import work_lines
from intaglio.runtime.engines.rtl import RTLChip
from intaglio.runtime.judge.check import JUDGED, JUDGED_TEXT, check
from intaglio.runtime.judge.operators import OPERATOR_KEYS
from intaglio.runtime.judge.reference import CannotJudge
from intaglio.runtime.judge.report import missed, text_lines

NORM_WEIGHTS = (14, 15)
"""Inputs of GroupQueryAttention that onnxruntime has on GPUs only."""
HEAD = 16
REASON = "onnxruntime cannot run the model"


@pytest.fixture(scope="module")
def chip(model, tmp_path_factory: pytest.TempPathFactory) -> Chip:
    """A model as it is exported for CUDA: queries and keys are normalised inside the attention."""
    folder = tmp_path_factory.mktemp("cuda")
    proto = onnx.load(model("tied"))
    for node in [node for node in proto.graph.node if node.op_type == "GroupQueryAttention"]:
        node.input.extend([""] * (NORM_WEIGHTS[0] - len(node.input)))
        for letter in "qk":
            name = f"{node.name}/{letter}_norm"
            weight = np.linspace(0.9, 1.1, HEAD, dtype=np.float32)
            proto.graph.initializer.append(numpy_helper.from_array(weight, name))
            node.input.append(name)
    onnx.save(proto, folder / "model.onnx")
    options = Options("roma-mini", SMALL, context=16, emit="program")
    chip = load(compile_model(folder / "model.onnx", folder / "out", options).folder)
    chip._hardware["rtl"] = RTLChip(chip.program, chip.folder, cache=False, opt=0)
    return chip


def test_without_hardware_it_is_an_error(chip: Chip):
    with pytest.raises(CannotJudge, match=f"model.onnx: {REASON}: .*q_norm_weight"):
        check(chip, tokens=4)


def test_hardware_is_compared_alone(chip: Chip):
    result = check(chip, engine="rtl", tokens=3, per_op=True)
    assert result["bit_exact"] and result["cycle_exact"]
    assert result["hardware_tokens"] == 3 and result["saturations"] == 0
    instructions = sum(len(b.instructions) * len(b.instances) for b in chip.program.blocks)
    assert result["instructions_compared"] == 3 * instructions
    assert all(result[key] is None for key in (*JUDGED, *OPERATOR_KEYS))
    assert result["judge_error"].startswith(f"{REASON}: ") and "\n" not in result["judge_error"]
    lines = list(text_lines(result))
    assert lines[0].startswith("onnxruntime could not judge")
    assert result["judge_error"] in lines[1] and any("hardware" in line for line in lines[2:])


def test_the_keys_are_those_of_a_judged_result(compiled, chip: Chip, tmp_path: Path):
    path = tmp_path / "text.txt"
    path.write_text("abc")
    judged = check(load(compiled("llama")), text=path, per_op=True)
    assert judged["judge_error"] is None
    alone = {*JUDGED, *JUDGED_TEXT, *OPERATOR_KEYS}
    assert alone < judged.keys()
    own = {"engine", "judge_error", "saturation", "saturations", "perplexity", "tokens_scored"}
    assert judged.keys() - alone == own


def test_a_prompt_is_continued_by_the_simulator(chip: Chip, monkeypatch: pytest.MonkeyPatch):
    seen: list[list[int]] = []

    def compare(chip, engine, ids, progress, stress):
        seen.append(list(ids))
        return {}

    monkeypatch.setattr("intaglio.runtime.judge.hardware.check_hardware", compare)
    check(chip, engine="rtl", prompt_ids=[5, 6, 7])
    check(chip, engine="rtl", prompt_ids=[5, 6, 7], tokens=2)
    assert seen == [[5, 6, 7, *chip.generate([5, 6, 7], 5)], [5, 6]]


def test_a_text_has_the_chips_own_perplexity(
    chip: Chip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "text.txt"
    path.write_text("text")
    monkeypatch.setattr(
        "intaglio.runtime.judge.hardware.check_hardware",
        lambda *arguments, **options: {"bit_exact": True},
    )
    monkeypatch.setattr(Chip, "encode", lambda *arguments, **options: list(range(50)))
    result = check(chip, engine="rtl", text=path)
    assert result["perplexity"] > 1 and result["tokens_scored"] == 50 - 4
    assert all(result[key] is None for key in JUDGED_TEXT)


def test_figures_of_the_judge_are_missed():
    result = {"mean_kl": None, "first_divergence": None, "saturations": 0, "judge_error": REASON}
    assert missed(result, [("saturations", 0)]) == []
    for key, wanted in (("mean_kl", "at most 0.5"), ("first_divergence", "at least 0.5")):
        (line,) = missed(result, [(key, 0.5)])
        assert line == (
            f"{key} is not known, {wanted} was wanted: onnxruntime could not judge; {REASON}"
        )


def test_exit_codes(
    chip: Chip, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("intaglio.runtime.chip.load", lambda out, **options: chip)
    command = ["check", str(chip.folder), "--engine", "rtl", "--tokens", "1", "--json"]
    assert cli.main([*command, "--tolerance", "saturations=0"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["bit_exact"]
    assert captured.err.splitlines() == list(work_lines(chip, "rtl", 1))
    assert cli.main([*command, "--tolerance", "mean_kl=1"]) == 1
    captured = capsys.readouterr()
    assert json.loads(captured.out)["cycle_exact"] and "mean_kl is not known" in captured.err
    difference = Difference("here", "code", "1", "2")
    monkeypatch.setattr(
        "intaglio.runtime.judge.hardware.compare_token",
        lambda *arguments: type("", (), {"instructions": 1, "values": 1, "difference": difference}),
    )
    assert cli.main(command) == 1
    assert "hardware and simulator differ: here: code is 2" in capsys.readouterr().err
