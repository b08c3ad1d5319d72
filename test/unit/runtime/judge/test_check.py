"""The comparison with onnxruntime: its figures, tolerances and operators."""

import math
from pathlib import Path

import numpy as np
import pytest

from intaglio.backend.compile import compile_model
from intaglio.backend.stages import Options
from intaglio.dialects.errors import UserError
from intaglio.runtime.chip import load
from intaglio.runtime.judge import check as module
from intaglio.runtime.judge.check import check
from intaglio.runtime.judge.report import (
    TOLERANCES,
    check_tolerances,
    missed,
    parse_tolerance,
    text_lines,
)
from intaglio.runtime.remaining import Remaining


def test_figures_of_logits_by_hand():
    theirs = np.log(np.array([[0.5, 0.25, 0.25], [0.2, 0.5, 0.3]]))
    ours = np.log(np.array([[0.25, 0.5, 0.25], [0.2, 0.5, 0.3]]))
    against = module.Against()
    against.add(ours, theirs, np.array([2]))
    assert (against.tokens, against.misses, against.scored) == (2, 1, 1)
    assert against.error == pytest.approx(math.log(2))
    assert against.range == pytest.approx(math.log(0.5 / 0.2))
    assert against.log_loss == pytest.approx(-math.log(0.25))
    # KL(theirs, ours) of the first row: 0.5 log 2 - 0.25 log 2.
    assert against.divergence == pytest.approx(0.25 * math.log(2))


# The first token differs, by log 2 = 0.69 of the reference's own logits; the second agrees.
@pytest.mark.parametrize(
    ("undecided", "counted"),
    [([0.0, 0.0], 1), ([0.6, 9.0], 1), ([0.7, 0.0], 0), ([0.6, 0.7], 1)],
)
def test_a_miss_is_forgiven_by_its_own_token_alone(undecided: list[float], counted: int):
    theirs = np.log(np.array([[0.5, 0.25, 0.25], [0.2, 0.5, 0.3]]))
    ours = np.log(np.array([[0.25, 0.5, 0.25], [0.2, 0.5, 0.3]]))
    against = module.Against()
    against.add(ours, theirs, np.array([2]), np.array(undecided))
    figures = against.summary()
    assert (figures["top1_misses"], figures["top1_misses_counted"]) == (1, counted)
    assert figures["top1_agreement"] == 0.5
    assert figures["top1_agreement_counted"] == 1 - counted / 2


@pytest.mark.parametrize("name", ["llama", "int8", "qwen"])
def test_a_longer_comparison_forgives_no_more(compiled, name: str):
    """Misses that count stay so, whatever follows them."""
    chip = load(compiled(name))
    found = [check(chip, tokens=tokens)["against"] for tokens in (64, 128, 200)]
    for reference in found[0]:
        counted = [one[reference]["top1_misses_counted"] for one in found]
        assert counted == sorted(counted)


@pytest.mark.parametrize("name", ["llama", "tied", "qwen", "phi", "int8", "prune", "hqq4", "hqq2"])
def test_models_agree_with_onnxruntime(compiled, name: str):
    result = check(load(compiled(name)))
    assert result["tokens_compared"] == 256 and result["windows"] == 2
    assert result["max_error_of_range"] < 0.05
    assert result["top1_agreement_counted"] >= 0.95
    assert 0 <= result["mean_kl"] < 1e-3
    assert result["judge"] in result["against"]
    for figures in result["against"].values():
        assert result["max_abs_logit_error"] <= figures["max_abs_logit_error"]
    divergence = result["first_divergence"]
    if divergence is not None:
        assert divergence["gap"] > 0 and divergence["reference_gap"] >= 0
        assert divergence["reference_gap"] <= result["first_divergence_allowed_gap"]
    assert any("greedy" in line for line in text_lines(result))


def test_first_divergence_is_that_of_generation(compiled):
    chip = load(compiled("tied"))
    result = check(chip, prompt_ids=[5, 6, 7], tokens=32)
    count = result["greedy_tokens"]
    one = chip.reference(float_activations=result["judge"] == "float_activations")
    theirs = [token for token, _ in one.generate([5, 6, 7], count)]
    ours = chip.generate([5, 6, 7], count)
    differ = [i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b]
    divergence = result["first_divergence"]
    assert (divergence and divergence["index"]) == (differ[0] if differ else None)
    if divergence:
        assert divergence["token"] == ours[differ[0]]
        assert divergence["reference_token"] == theirs[differ[0]]
    assert result["tokens_compared"] == 32


def test_text_adds_perplexities(compiled, tmp_path: Path):
    path = tmp_path / "text.txt"
    path.write_text("In the beginning was the word. " * 10)
    chip = load(compiled("llama"))
    result = check(chip, text=path)
    assert result["tokens_compared"] == 310 and result["windows"] == 3
    assert result["tokens_scored"] == 310 - 3
    one = chip.reference(float_activations=True)
    loss, ids = 0.0, list(path.read_bytes())
    for first in range(0, 310, 128):
        part = ids[first : first + 128]
        one.reset()
        logits = one.feed(part).astype(np.float64)
        logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
        loss -= logits[np.arange(len(part) - 1), part[1:]].sum()
    assert result["float_reference_perplexity"] == pytest.approx(math.exp(loss / 307), rel=1e-6)
    change = result["perplexity"] / result["reference_perplexity"] - 1
    assert abs(change) < 0.05
    # One reference is named, of logits and of perplexities.
    assert result["perplexity_judge"] == result["judge"]
    floats = result["perplexity"] / result["float_reference_perplexity"] - 1
    changes = result["perplexity_changes"]
    assert changes == pytest.approx({"as_it_comes": change, "float_activations": floats})
    assert changes[result["perplexity_judge"]] == result["perplexity_change"]
    (line,) = [one for one in text_lines(result) if "  perplexity " in one]
    for value, one in (
        (result["reference_perplexity"], change),
        (result["float_reference_perplexity"], floats),
    ):
        assert f"{value:.5f} ({one:+.4%})" in line
    misses, counts = result["top1_misses"], result["top1_misses_counted"]
    assert misses == round((1 - result["top1_agreement"]) * 310) >= counts
    assert f"({counts} of {misses} that differ count)" in "".join(text_lines(result))
    assert check(chip, text=path, tokens=130)["tokens_compared"] == 130
    assert check(chip, text=path, windows=2)["tokens_compared"] == 256


def test_every_operator_is_compared(compiled):
    for name in ("llama", "qwen", "phi"):
        result = check(load(compiled(name)), per_op=True, tokens=32)
        assert not result["operators_without_counterpart"]
        assert result["first_operator_above_threshold"] is None
        opcodes = {entry["opcode"] for entry in result["operators"]}
        assert {"embed", "matvec", "weighted_sum", "activate"} <= opcodes
        nodes = [entry["onnx"] for entry in result["operators"]]
        assert any("layers.1" in node for node in nodes) and "/lm_head/" in nodes[-1]
        assert result["operators"][0]["relative_error"] < 1e-3
        assert result["operator_error"] == result["worst_operator"]["relative_error"]


@pytest.mark.parametrize("name", ["llama", "tied"])
def test_folded_norms_are_compared(model, tmp_path, name):
    """What has the weights of a norm is no value of the graph; with the factor it is the norm."""
    options = Options("roma-mini", ("activations=half8",), context=64, emit="program")
    compile_model(model(name), tmp_path / "out", options)
    chip = load(tmp_path / "out")
    result = check(chip, per_op=True, tokens=16)
    assert not result["operators_without_counterpart"]
    assert result["first_operator_above_threshold"] is None
    norms = [entry for entry in result["operators"] if entry["opcode"] == "tap"]
    assert len(norms) == sum(
        len(block.instances) * sum(one.opcode == "rms_scale" for one in block.whole)
        for block in chip.program.blocks
    )
    assert len(norms) > 3 and norms[0]["relative_error"] < 0.01
    # A wrong factor is named, as a wrong norm would be.
    number, index = next(
        (number, index)
        for number, block in enumerate(chip.program.blocks)
        for index, one in enumerate(block.whole)
        if one.opcode == "rms_scale"
    )
    actions = chip.simulator._steps[number][1][0]
    right = actions[index]

    def wrong(c):
        scale = right(c)
        return scale._replace(exponent=scale.exponent + 1)

    actions[index] = wrong
    first = check(chip, per_op=True, tokens=16)["first_operator_above_threshold"]
    assert first["opcode"] == "tap" and "norm" in first["onnx"]


def test_the_first_wrong_operator_is_named(compiled):
    chip = load(compiled("llama"))
    block = next(b for b in chip.program.blocks if len(b.instances) == 2)
    index = next(i for i, one in enumerate(block.whole) if one.opcode == "activate")
    number = list(chip.program.blocks).index(block)
    actions = chip.simulator._steps[number][1][1]
    right = actions[index]
    actions[index] = lambda c: right(c) * 9 // 10
    result = check(chip, per_op=True, tokens=16)
    first = result["first_operator_above_threshold"]
    assert first["onnx"] == "/model/layers.1/mlp/act_fn/Mul" and first["instance"] == 1


def test_tolerances():
    result = {"top1_agreement": 0.9, "mean_kl": 0.1, "first_divergence": {"index": 5}}
    assert missed(result, [("top1_agreement", 0.9), ("mean_kl", 0.1)]) == []
    assert missed(result, [("top1_agreement", 0.95)]) == [
        "top1_agreement is 0.9, at least 0.95 was wanted"
    ]
    assert missed(result, [("mean_kl", 0.01)]) == ["mean_kl is 0.1, at most 0.01 was wanted"]
    assert missed(result, [("first_divergence", 5)]) == []
    assert len(missed(result, [("first_divergence", 6)])) == 1
    assert missed({"first_divergence": None}, [("first_divergence", 64)]) == []
    assert len(missed({"perplexity_change": -0.1}, [("perplexity_change", 0.01)])) == 1
    with pytest.raises(UserError, match="only with --text"):
        check_tolerances([("perplexity", 3)], text=False, per_op=True)
    with pytest.raises(UserError, match="only with --per-op"):
        check_tolerances([("operator_error", 3)], text=True, per_op=False)
    check_tolerances([("operator_error", 3), ("perplexity", 3)], text=True, per_op=True)


@pytest.mark.parametrize(("key", "value"), [("differing", 5), ("counted", 3)])
def test_tolerances_of_experts(key: str, value: int):
    name, bound = parse_tolerance(f"expert_choices.{key}={value}")
    result = {"expert_choices": {"differing": 5, "counted": 3}}
    assert missed(result, [(name, bound)]) == []
    assert missed(result, [(name, bound - 1)]) == [
        f"{name} is {value}, at most {value - 1} was wanted"
    ]
    without = {"expert_choices": None}
    assert missed(without, [(name, bound)]) == [f"{name} is not known: the model has no experts"]
    (line,) = missed(without | {"judge_error": "why"}, [(name, bound)])
    assert "onnxruntime could not judge; why" in line


def test_tolerances_are_parsed():
    assert parse_tolerance("mean_kl=1e-3") == ("mean_kl", 1e-3)
    for text in ("mean_kl", "mean_kl=", "mean_kl=x"):
        with pytest.raises(UserError, match="not of the form KEY=NUMBER"):
            parse_tolerance(text)
    with pytest.raises(UserError, match="'kl' cannot be bounded") as caught:
        parse_tolerance("kl=1")
    assert all(key in str(caught.value) for key in TOLERANCES)


@pytest.mark.parametrize(
    "options,message",
    [
        ({"tokens": 0}, "cannot compare 0 tokens"),
        ({"text": "text", "windows": 0}, "cannot compare 0 windows"),
        ({"prompt_ids": [999]}, "token id 999 is out of range"),
        ({"prompt_ids": []}, "the prompt is empty"),
        ({"prompt_ids": [1] * 200}, "the prompt has 200 tokens, the KV caches hold 128"),
        ({"text": "/nowhere/text"}, "/nowhere/text: cannot be read"),
        ({"text": __file__, "tokens": 1}, "a perplexity needs two tokens at least"),
    ],
)
def test_wrong_input_is_the_users_error(compiled, options, message: str):
    with pytest.raises(UserError, match=message):
        check(load(compiled("llama")), **options)


def test_bytes_need_a_token_each(compiled, tmp_path: Path):
    path = tmp_path / "text.txt"
    path.write_text("some text")
    with pytest.raises(UserError, match="and its 64 tokens are not the 256 bytes"):
        check(load(compiled("tied")), text=path)
    path.write_text("x")
    with pytest.raises(UserError, match="holds too little text"):
        check(load(compiled("llama")), text=path)


@pytest.mark.parametrize(("windows", "said"), [(None, 1), (4, 0)])
def test_a_long_text_is_said_to_be_long(
    compiled, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, windows: int | None, said: int
):
    """Once, with what shortens it, and not to who shortened it."""

    class Slow(Remaining):
        def __init__(self, steps: int) -> None:
            times = iter(range(0, 40 * (steps + 1), 40))
            super().__init__(steps, lambda: float(next(times)))

    monkeypatch.setattr(module, "Remaining", Slow)
    text = tmp_path / "text"
    text.write_text("x" * (128 * 5))
    lines: list[str] = []
    steps: list[str] = []
    options = {"text": text, "windows": windows, "announce": lines.append}
    result = check(load(compiled("llama")), **options, progress=steps.append)
    assert result["windows"] == (windows or 5)
    line = "5 windows of the text take about 2 minutes more; --windows N compares the first N"
    assert lines == [line] * said
    third = f"window 3 of {windows or 5}, about {'2 minutes' if windows is None else '80 s'} left"
    assert "window 1 of " + str(windows or 5) in steps and third in steps
