"""Generation: where it ends and why, what of a text is shown, sampling on the host."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

import intaglio
from intaglio.dialects.errors import UserError
from intaglio.runtime import cli
from intaglio.runtime.chip import Chip, load
from intaglio.runtime.text.generation import Generation, Stops, stops_of
from intaglio.runtime.text.sampling import Sampler

PROMPT = [5, 6, 7]
COUNT = 12


@pytest.fixture
def chip(compiled: Callable[[str], Path], tmp_path: Path) -> Chip:
    """A model of bytes; files may be put beside it."""
    return load(shutil.copytree(compiled("llama"), tmp_path / "out"))


@pytest.fixture
def words(compiled: Callable[[str], Path], tmp_path: Path) -> Chip:
    """A model of 64 words, w0 to w63, of which w9 is special."""
    out = Path(shutil.copytree(compiled("tied"), tmp_path / "out"))
    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(64)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([AddedToken("w9", special=True)])
    tokenizer.save(str(out / "reference" / "tokenizer.json"))
    return load(out, trust_edited=True)


def beside(chip: Chip, name: str, content: Any) -> Chip:
    (chip.folder / "reference" / name).write_text(json.dumps(content))
    return load(chip.folder, trust_edited=True)


def finished(chip: Chip, tokens: int | None, stops: Stops, as_text: bool = False) -> Any:
    generation = Generation(chip, PROMPT, tokens, stops=stops, as_text=as_text)
    ids, parts = [], []
    for generated, part in generation:
        ids.append(generated.token)
        parts.append(part)
    return generation, ids, "".join([*parts, generation.end()])


@pytest.fixture
def free(chip: Chip) -> list[int]:
    """What comes without any end."""
    return [one.token for one in chip.stream(PROMPT, COUNT)]


def fresh(free: list[int], after: int) -> int:
    """The index of a token, not before `after`, that did not occur earlier."""
    return next(i for i in range(after, COUNT) if free[i] not in free[:i])


@pytest.mark.parametrize("name", ["genai_config.json", "generation_config.json", "config.json"])
def test_the_models_end_tokens(chip: Chip, free: list[int], name: str):
    end = fresh(free, 2)
    ids = {"eos_token_id": [free[end], 255]}
    chip = beside(chip, name, {"model": ids} if name.startswith("genai") else ids)
    generation, tokens, _ = finished(chip, COUNT, stops_of(chip))
    assert tokens == free[: end + 1]
    assert (generation.stopped, generation.stopped_by) == ("end_token", free[end])
    assert chip.generate(PROMPT, COUNT) == tokens
    assert chip.generate(PROMPT, COUNT, end_tokens=False) == free
    for engine in ("onnxruntime",):
        assert len(chip.generate(PROMPT, COUNT, engine)) <= COUNT


def test_the_tokenizers_end_token(words: Chip):
    free = [one.token for one in words.stream(PROMPT, COUNT)]
    end = free[fresh(free, 1)]
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        chip = beside(words, name, {"eos_token": f"w{end}"})
        assert chip.generate(PROMPT, COUNT) == free[: free.index(end) + 1]
        (chip.folder / "reference" / name).unlink()


def test_stops_that_are_given(chip: Chip, free: list[int]):
    end = fresh(free, 3)
    for given in (free[end], str(free[end]), [free[end]], ("250", free[end])):
        assert chip.generate(PROMPT, COUNT, stop=given) == free[: end + 1]
    generation, tokens, _ = finished(chip, COUNT, Stops())
    assert tokens == free and (generation.stopped, generation.stopped_by) == ("tokens", None)


def test_the_context_ends_it(chip: Chip):
    prompt = [1] * (chip.program.capacity - 4)
    generation = Generation(chip, prompt)
    assert len(list(generation)) == 5 and generation.stopped == "context"
    with pytest.raises(UserError, match="at most 5 tokens"):
        Generation(chip, prompt, 6)


class Fixed:
    """A chip that says what it is told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, chip: Chip, text: str) -> None:
        from intaglio.runtime.text import decoding
        from intaglio.runtime.text.decoding import Generated

        tokens = [Generated(byte, np.zeros(256, np.float32), 0.0) for byte in text.encode()]
        monkeypatch.setattr(decoding, "decode", lambda *options: (one for one in tokens))
        self.chip = chip


@pytest.mark.parametrize(
    ("text", "stops", "shown", "by"),
    [
        ("one two three", ["two"], "one ", "two"),
        ("one two three", ["ee", "three"], "one two ", "three"),
        ("one two", ["three"], "one two", None),
        ("one tw", ["two"], "one tw", None),
        ("ababac", ["abac"], "ab", "abac"),
        ("a\n\nb", ["\n\n"], "a", "\n\n"),
        ("zwölf", ["ö"], "zw", "ö"),
        ("x", ["x"], "", "x"),
        ("aab", ["ab"], "a", "ab"),
    ],
)
def test_texts_end_it(
    chip: Chip,
    monkeypatch: pytest.MonkeyPatch,
    text: str,
    stops: list[str],
    shown: str,
    by: str | None,
):
    stop = stops_of(chip, stops)
    # One letter is one byte, whose token ends it as well.
    stop = Stops(frozenset(), stop.texts)
    fixed = Fixed(monkeypatch, chip, text)
    generation, tokens, given = finished(fixed.chip, len(text.encode()), stop, as_text=True)
    assert given == shown and generation.stopped_by == by
    if by is not None:
        assert bytes(tokens).decode().endswith(by)


def test_special_tokens_end_it(words: Chip):
    """They have no text, so they are found by their id."""
    assert stops_of(words, ["w9"]).ids == {9}
    assert stops_of(words, ["w9 w10"]) == Stops(frozenset(), ("w9 w10",))


def test_wrong_stops(chip: Chip, compiled: Callable[[str], Path]):
    for given in ("256", 256, "99999", "-1", -1, "-0256", "-" + "9" * 5000):
        with pytest.raises(UserError, match=f"--stop {str(given)[:20]}.*: no token id"):
            stops_of(chip, [given])
    with pytest.raises(UserError, match="empty text"):
        stops_of(chip, [""])
    for text in ("--", "-1.", "1-", "- 1", "-x"):
        assert stops_of(chip, [text]).texts == (text,)
    with pytest.raises(UserError, match=r"no tokenizer\.json"):
        stops_of(load(compiled("tied")), ["text"])


# --- sampling -----------------------------------------------------------------------------------


def test_sampling(chip: Chip, free: list[int]):
    drawn = [chip.generate(PROMPT, COUNT, temperature=2.0, seed=seed) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert chip.generate(PROMPT, COUNT, temperature=2.0, top_k=1) == free
    assert chip.generate(PROMPT, COUNT, temperature=0) == free
    # The token that was drawn is what the chip takes next.
    sampler = Sampler(2.0, 5, 3)
    steps = list(chip.stream(PROMPT, 6, sampler=sampler))
    again = Sampler(2.0, 5, 3)
    ids = [*PROMPT, *(one.token for one in steps)]
    exact = chip.simulator.forward(ids[:-1], 0)
    assert exact is not None
    for number, one in enumerate(steps):
        scaled = np.ldexp(exact[2 + number].astype(float), -chip.simulator.fraction_bits)
        np.testing.assert_array_equal(one.logits, scaled.astype(np.float32))
        assert again.choose(one.logits) == one.token


def test_onnxruntime_samples_too(chip: Chip):
    one, again = (chip.generate(PROMPT, 6, "onnxruntime", temperature=3.0) for _ in range(2))
    assert one == again != chip.generate(PROMPT, 6, "onnxruntime")
    assert chip.generate(PROMPT, 6, "onnxruntime", temperature=1.0, top_k=1) == chip.generate(
        PROMPT, 6, "onnxruntime"
    )


# --- texts without a tokenizer ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("vocabulary", "files", "is_bytes"),
    [
        (256, {}, True),
        (64, {}, False),
        (255, {}, False),
        (257, {}, False),
        (2000, {}, False),
        (257, {"config.json": {"eos_token_id": 256}}, True),
        (259, {"generation_config.json": {"eos_token_id": [256, 258], "pad_token_id": 257}}, True),
        (259, {"generation_config.json": {"eos_token_id": 256}}, False),
        (320, {"genai_config.json": {"model": {"eos_token_id": 256}}}, False),
    ],
)
def test_which_vocabularies_are_bytes(chip: Chip, vocabulary: int, files: Any, is_bytes: bool):
    for name, content in files.items():
        chip = beside(chip, name, content)
    object.__setattr__(chip.program, "vocabulary", vocabulary)
    assert chip.has_texts == is_bytes
    if is_bytes:
        assert chip.encode("ä") == [0xC3, 0xA4]
        return
    with pytest.raises(UserError, match=r"no tokenizer\.json, and its") as caught:
        chip.encode("ä")
    assert "or give token ids" in str(caught.value)


def test_a_tokenizer_of_another_model(words: Chip):
    object.__setattr__(words.program, "vocabulary", 32)
    assert words.encode("w31") == [31]
    with pytest.raises(UserError, match=r"tokenizer\.json: the tokenizer gives token 40"):
        words.encode("w40")


# --- command line -------------------------------------------------------------------------------


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def run(*arguments: object) -> tuple[int, str, str]:
        code = cli.main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_run_says_why_it_ended(run, chip: Chip, free: list[int]):
    ids = ("--prompt-ids", "5,6,7", "--trust-edited")
    end = fresh(free, 2)
    beside(chip, "generation_config.json", {"eos_token_id": free[end]})
    code, text, _ = run("run", chip.folder, *ids, "--json")
    result = json.loads(text)
    assert code == 0 and result["tokens"] == free[: end + 1]
    assert (result["stopped"], result["stopped_by"]) == ("end_token", free[end])
    cycles = chip.generation_cycles(3, end + 1)
    assert result["cycles"] == list(cycles.tokens) and result["prefill_cycles"] == cycles.prefill
    code, text, _ = run("run", chip.folder, *ids)
    assert f"at end token {free[end]}, which generation_config.json names" in text
    code, text, _ = run("run", chip.folder, *ids, "--no-stop", "--json")
    result = json.loads(text)
    # Unless told, 128 tokens or what fits.
    assert (result["stopped"], len(result["tokens"])) == ("context", chip.program.capacity - 2)
    code, text, _ = run("run", chip.folder, *ids, "--no-stop", "--tokens", 4)
    assert "when all tokens were there" in text
    code, text, _ = run("run", chip.folder, *ids, "--no-stop", "--stop", free[1], "--json")
    assert json.loads(text)["tokens"] == free[:2]


def test_run_says_who_named_the_end(run, chip: Chip, free: list[int]):
    end = fresh(free, 2)
    beside(chip, "generation_config.json", {"eos_token_id": free[end]})
    first = fresh(free, 1)
    arguments = ("run", chip.folder, "--trust-edited", "--prompt-ids", "5,6,7")
    for options, by, source in (
        ((), free[end], "generation_config.json"),
        (("--stop", free[end]), free[end], "generation_config.json"),
        (("--no-stop", "--stop", free[end]), free[end], "--stop"),
        (("--stop", free[first]), free[first], "--stop"),
    ):
        code, text, error = run(*arguments, *options)
        assert code == 0, error
        assert f"at end token {by}, which {source} names" in text


def test_run_draws(run, chip: Chip):
    arguments = ("run", chip.folder, "--prompt-ids", "5,6,7", "--tokens", 6)
    options = ("--temperature", "1.5", "--top-k", "8", "--seed", "4")
    code, text, _ = run(*arguments, *options, "--json")
    result = json.loads(text)
    assert result["sampling"] == {"temperature": 1.5, "top_k": 8, "seed": 4}
    assert result["tokens"] == chip.generate(PROMPT, 6, temperature=1.5, top_k=8, seed=4)
    code, text, _ = run(*arguments, *options)
    assert "at temperature 1.5 among 8 tokens, seed 4" in text
    assert "sampling" not in json.loads(run(*arguments, "--json")[1])
    for wrong, message in (
        (("--top-k", "3"), "--top-k: only with --temperature"),
        (("--seed", "3"), "--seed: only with --temperature"),
        (("--temperature", "-1"), "temperature -1.0"),
        (("--temperature", "nan"), "temperature nan"),
    ):
        code, text, error = run(*arguments, *wrong)
        assert (code, text) == (1, "") and message in error


@pytest.mark.parametrize(
    ("data", "text"),
    [(b"Once", "Once"), (b"Once\n", "Once"), (b"a\r\n", "a"), (b"a\n\n", "a\n"), (b" a ", " a ")],
)
def test_prompts_from_files(
    run, chip: Chip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes, text: str
):
    path = tmp_path / "prompt"
    path.write_bytes(data)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))
    for arguments in (("--prompt-file", path), ("--prompt", "-"), ("--prompt", text)):
        code, printed, error = run("run", chip.folder, *arguments, "--tokens", 1, "--json")
        assert code == 0, error
        assert json.loads(printed)["prompt_ids"] == list(text.encode())


def test_prompts_that_cannot_be_read(run, chip: Chip, tmp_path: Path):
    for arguments, message in (
        (("--prompt-file", tmp_path), f"{tmp_path}: the prompt cannot be read"),
        (("--prompt-file", tmp_path / "none"), "the prompt cannot be read: No such file"),
        ((), "no prompt is given"),
        (("--prompt", "a", "--prompt-file", "b"), "not allowed with argument"),
    ):
        code, text, error = run("run", chip.folder, *arguments)
        assert (code, text) == (1, "") and message in error


@pytest.mark.parametrize(
    "data", [b"\xff", b"w1 w2\xe4", "w1 \xfc".encode("latin-1"), b"w1 \xed\xa0\x80"]
)
def test_prompts_that_are_no_text(
    run, words: Chip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes
):
    """A tokenizer is of texts; what is no text is said of the prompt."""
    path = tmp_path / "prompt"
    path.write_bytes(data)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))
    argument = data.decode(errors="surrogateescape")
    for name, arguments in (
        (path, ("--prompt-file", path)),
        ("standard input", ("--prompt", "-")),
        ("--prompt", ("--prompt", argument)),
    ):
        code, text, error = run("run", words.folder, "--trust-edited", *arguments)
        assert (code, text) == (1, "") and "tokenizer.json" not in error
        assert f"{name}: the prompt is not UTF-8 text" in error
    assert stops_of(words, [argument]) == Stops(frozenset(), (argument,))


def test_bytes_that_are_no_text(run, chip: Chip):
    code, text, _ = run("run", chip.folder, "--prompt", "\udcff", "--tokens", 1)
    assert code == 0 and "1 token by simulator" in text


def test_end_tokens_that_cannot_be_used_are_said(run, chip: Chip):
    beside(chip, "config.json", {"eos_token_id": 999})
    code, _, error = run("run", chip.folder, "--prompt-ids", "1", "--tokens", 1, "--trust-edited")
    assert code == 0 and error.startswith("warning: ") and "eos_token_id is 999" in error


def test_files_reach_the_output_folder(model: Callable[[str], Path], tmp_path: Path):
    folder = Path(shutil.copytree(model("llama").parent, tmp_path / "model"))
    (folder / "generation_config.json").write_text('{"eos_token_id": [3, 4]}')
    (folder / "config.json").write_text('{"eos_token_id": 5}')
    chip = intaglio.compile(folder / "model.onnx", "roma-mini", tmp_path / "out")
    assert sorted(chip.end_tokens.ids) == [3, 4, 5]
