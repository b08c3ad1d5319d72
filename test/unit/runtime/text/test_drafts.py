"""Drafts: the tokens are those without, whatever is guessed and wherever a guess is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from intaglio.backend.compile import Options, compile_model
from intaglio.dialects.errors import UserError
from intaglio.runtime import cli
from intaglio.runtime.chip import Chip, load
from intaglio.runtime.text.decoding import decode
from intaglio.runtime.text.drafts import Draft, ModelDraft, NgramDraft, draft_of
from intaglio.runtime.text.generation import Generation, stops_of
from intaglio.runtime.text.sampling import Sampler

ROOT = Path(__file__).parents[4]
DEMO = ROOT / "examples" / "demo"
PROMPT = [5, 6, 7]
COUNT = 12


class Scripted(Draft):
    """Knows what comes, and is wrong at some places of each draft."""

    def __init__(self, coming: Sequence[int], wrong: Sequence[int], most: int) -> None:
        super().__init__("scripted", most)
        self.coming, self.wrong = list(coming), wrong

    def _guess(self, known: Sequence[int], most: int) -> list[int]:
        found = self.coming[len(known) : len(known) + most]
        return [one ^ (i in self.wrong) for i, one in enumerate(found)]


@pytest.fixture(scope="module", params=["llama", "lfm2", "qwen35"])
def out(request: pytest.FixtureRequest, program_of: Callable[[str], Path]) -> Path:
    """Models with caches, convolutions, and linear attention."""
    return program_of(request.param)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Chip:
    folder = tmp_path_factory.mktemp("demo") / "out"
    model = DEMO / "model" / "model.onnx"
    return load(compile_model(model, folder, Options("roma-mini", emit="program")).folder)


def same(chip: Chip, draft: Draft, prompt: Sequence[int], count: int, **options: Any) -> None:
    """Tokens and logits with and without drafts."""
    alone = list(decode(chip, prompt, count, **options))
    drafted = list(decode(chip, prompt, count, draft=draft, **options))
    assert [one.token for one in drafted] == [one.token for one in alone]
    for one, other in zip(drafted, alone, strict=True):
        np.testing.assert_array_equal(one.logits, other.logits)


@pytest.mark.parametrize("wrong", [(), (0,), (1,), (2,), (3,), (1, 2), (0, 3)])
def test_rejections_at_each_place(out: Path, wrong: tuple[int, ...]):
    chip = load(out)
    coming = [*PROMPT, *chip.generate(PROMPT, COUNT)]
    draft = Scripted(coming, wrong, 4)
    same(chip, draft, PROMPT, COUNT)
    accepted = wrong[0] if wrong else 4
    assert [one.accepted for one in draft.rounds[:-1]] == [accepted] * (len(draft.rounds) - 1)
    assert sum(one.accepted for one in draft.rounds) + len(draft.rounds) == COUNT
    assert draft.rounds[0].position == len(PROMPT) - 1


@pytest.mark.parametrize("seed", range(4))
def test_any_guesses(out: Path, seed: int):
    """Right and wrong ones, and none, to the end of the context."""
    random = np.random.default_rng(seed)

    class Mixed(Scripted):
        def _guess(self, known: Sequence[int], most: int) -> list[int]:
            found = super()._guess(known, random.integers(most + 1))
            return [one if random.random() < 0.7 else int(random.integers(64)) for one in found]

    chip = load(out)
    count = chip.program.capacity - len(PROMPT) + 1
    draft = Mixed([*PROMPT, *chip.generate(PROMPT, count)], (), 5)
    same(chip, draft, PROMPT, count)
    assert any(one.accepted for one in draft.rounds)
    assert any(one.accepted < one.drafted for one in draft.rounds)


def test_drawn_tokens_are_the_same_too(out: Path):
    chip = load(out)
    drawn = [one.token for one in decode(chip, PROMPT, COUNT, sampler=Sampler(1.0, seed=3))]
    draft = Scripted([*PROMPT, *drawn], (2,), 4)
    found = [
        one.token for one in decode(chip, PROMPT, COUNT, sampler=Sampler(1.0, seed=3), draft=draft)
    ]
    assert found == drawn and draft.rounds[0].accepted == 2


def test_a_stop_within_a_draft(out: Path):
    chip = load(out)
    free = chip.generate(PROMPT, COUNT)
    end = next(i for i in range(2, COUNT) if free[i] not in free[:i])
    draft = Scripted([*PROMPT, *free], (), 4)
    stops = stops_of(chip, [free[end]])
    generation = Generation(chip, PROMPT, COUNT, stops=stops, draft=draft)
    assert [one.token for one, _ in generation] == free[: end + 1]
    assert generation.stopped == "end_token"
    assert sum(one.accepted for one in draft.rounds) + len(draft.rounds) == end + 1


def test_hardware_takes_no_wrong_token(compiled: Callable[[str], Path]):
    chip = load(compiled("llama"))
    coming = [*PROMPT, *chip.generate(PROMPT, 6)]
    same(chip, Scripted(coming, (1,), 3), PROMPT, 6, engine="rtl")


# --- looking up ---------------------------------------------------------------------------------


def looked_up(known: Sequence[int], length: int, most: int) -> list[int]:
    """The definition, slowly."""
    for size in range(min(length, len(known)), 0, -1):
        for end in range(len(known) - 1, size - 1, -1):
            if list(known[end - size : end]) == list(known[-size:]):
                made = list(known)
                while len(made) < len(known) + most:
                    made.append(made[end + len(made) - len(known)])
                return made[len(known) :]
    return []


@pytest.mark.parametrize("length", [1, 2, 3, 5])
def test_ngrams_are_the_latest_and_longest(length: int):
    random = np.random.default_rng(length)
    for _ in range(30):
        draft = NgramDraft(length, 4)
        known = random.integers(3, size=random.integers(1, 6)).tolist()
        for _ in range(12):
            assert draft.draft(known, 4) == looked_up(known, length, 4)
            known += random.integers(3, size=random.integers(1, 4)).tolist()
        assert draft.draft(known, 0) == []


def test_two_hundred_prompts(demo: Chip):
    """Of the demo's text: the tokens of plain greedy decoding."""
    text = (DEMO / "held_out.txt").read_bytes()
    random = np.random.default_rng(0)
    accepted = 0
    for _ in range(200):
        begin = random.integers(len(text) - 100)
        prompt = list(text[begin : begin + random.integers(8, 60)])
        draft = NgramDraft()
        found = [one.token for one in decode(demo, prompt, 10, draft=draft)]
        assert found == demo.generate(prompt, 10)
        accepted += sum(one.accepted for one in draft.rounds)
    assert accepted > 200


# --- models -------------------------------------------------------------------------------------


def test_a_model_drafts_for_itself(model: Callable[[str], Path], out: Path):
    """Nearly all of its own tokens are accepted; caches and states are set back."""
    chip = load(out)
    draft = draft_of(str(chip.model), chip)
    assert isinstance(draft, ModelDraft)
    same(chip, draft, PROMPT, COUNT)
    first = [one.accepted for one in draft.rounds]
    assert sum(first) > COUNT // 2
    draft.reset()
    same(chip, draft, PROMPT, COUNT)
    assert [one.accepted for one in draft.rounds] == first


def test_guesses_of_a_model_are_its_greedy_tokens(model: Callable[[str], Path]):
    """Whatever became of the last ones."""
    path = model("qwen35")
    reference = ModelDraft(path, 64, 32)
    random = np.random.default_rng(1)
    known = [3, 1, 4]
    while len(known) < 24:
        expected = [t for t, _ in ModelDraft(path, 64, 32)._reference.generate(known, 4)]
        assert reference.draft(known, 4) == expected
        known += [*expected[: random.integers(4)], int(random.integers(64))]


def test_a_model_of_other_tokens(model: Callable[[str], Path], compiled: Callable[[str], Path]):
    """It drafts until a token comes that it does not know."""
    chip = load(compiled("llama"))
    draft = draft_of(str(model("tied")), chip)
    same(chip, draft, [5, 200, 7], 4)
    assert all(one.drafted == 0 for one in draft.rounds)
    same(chip, draft_of(str(model("tied")), chip), [5, 6], 6)


# --- the command --------------------------------------------------------------------------------


def run(capsys: Any, *arguments: str) -> Any:
    assert cli.main(["run", *arguments]) == 0
    return capsys.readouterr().out


def test_the_command(demo: Chip, capsys: Any):
    options = [str(demo.folder), "--prompt", "and he said, and he said, ", "--tokens", "30"]
    alone = json.loads(run(capsys, *options, "--json"))
    found = json.loads(run(capsys, *options, "--draft", "ngram:4", "--draft-tokens", "3", "--json"))
    draft = found.pop("draft")
    for one in (alone, found):
        del one["host_tokens_per_second"]
    assert found == alone
    assert (draft["by"], draft["most"]) == ("ngram:4", 3)
    counts = draft["accepted_counts"]
    assert sum(counts) == draft["rounds"] and len(counts) == 4
    assert sum(i * n for i, n in enumerate(counts)) == draft["accepted"]
    assert draft["rounds"] + draft["accepted"] == 30 and draft["accepted"] <= draft["drafted"]
    text = run(capsys, *options, "--draft", "ngram:4", "--draft-tokens", "3")
    assert (
        f"drafts     {draft['accepted']} of {draft['drafted']} tokens of ngram:4 came, in" in text
    )
    model = str(DEMO / "model" / "model.onnx")
    found = json.loads(run(capsys, *options, "--draft", model, "--json"))
    assert found["tokens"] == alone["tokens"] and found["draft"]["accepted"] > 15


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--draft", "ngram:0"], "a sequence has at least one token"),
        (["--draft", "engram"], "--draft engram: neither ngram:N nor a file"),
        (["--draft", "ngram", "--draft-tokens", "0"], "drafts of 0 tokens"),
        (["--draft-tokens", "2"], "--draft-tokens: only with --draft"),
        (["--draft", "ngram", "--engine", "onnxruntime"], "--draft: not with --engine onnxruntime"),
        (["--draft", __file__], "the model cannot be read"),
    ],
)
def test_wrong_options(out: Path, capsys: Any, options: list[str], message: str):
    assert cli.main(["run", str(out), "--prompt-ids", "1", *options]) == 1
    assert message in capsys.readouterr().err


def test_from_python(demo: Chip):
    alone = demo.generate("And it came", 12)
    assert demo.generate("And it came", 12, draft="ngram") == alone
    found = demo.run("And it came", 12, draft="ngram:2")
    assert found["tokens"] == alone and found["draft"]["by"] == "ngram:2"
    with pytest.raises(UserError, match="neither ngram:N nor a file"):
        demo.generate("And", 1, draft="x")
