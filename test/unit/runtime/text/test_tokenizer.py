"""Text to ids and back, one token at a time."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from intaglio.dialects.errors import UserError
from intaglio.runtime.text.tokenizer import ByteTokenizer, FileTokenizer, tokenizer_beside

TEXTS = ["plain", "zwölf Äpfel", "日本語", "🙂", ""]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A byte-level tokenizer.json: every byte is a token, `ab` is one more."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: i for i, letter in enumerate(alphabet)}
    vocabulary["ab"] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[("a", "b")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


@pytest.mark.parametrize("text", TEXTS)
def test_bytes_come_back(text: str):
    ids = ByteTokenizer().encode(text)
    assert ids == list(text.encode())
    stream = ByteTokenizer().stream()
    assert "".join(map(stream.push, ids)) + stream.end() == text


def test_bytes_wait_for_the_rest_of_a_character():
    stream = ByteTokenizer().stream()
    assert [stream.push(byte) for byte in "é".encode()] == ["", "é"]
    stream.push(0xE2)
    assert stream.end() == "\ufffd"
    stream = ByteTokenizer().stream()
    assert stream.push(0xE2) + stream.push(ord("x")) == "\ufffdx"


def test_tokens_beyond_bytes_are_shown_as_numbers():
    stream = ByteTokenizer().stream()
    assert stream.push(300) == "<300>"


@pytest.mark.parametrize("text", [*TEXTS, "abab"])
def test_file_comes_back(file: Path, text: str):
    tokenizer = FileTokenizer(file)
    stream = tokenizer.stream()
    assert "".join(map(stream.push, tokenizer.encode(text))) + stream.end() == text


def test_file_is_found_beside_the_model(file: Path):
    found = tokenizer_beside(file.with_name("model.onnx"))
    assert found is not None and len(found.encode("ab")) == 1
    assert tokenizer_beside(file.parent / "elsewhere" / "model.onnx") is None


def test_broken_file_is_the_users_error(tmp_path: Path):
    path = tmp_path / "tokenizer.json"
    path.write_text("{}")
    with pytest.raises(UserError, match=r"tokenizer\.json: this is no tokenizer"):
        FileTokenizer(path)


# --- what training leaves in the file -------------------------------------------------------------


@pytest.fixture
def trained(file: Path):
    """Saves the tokenizer with settings of a training; gives the file."""

    def save(**settings: dict) -> FileTokenizer:
        tokenizer = Tokenizer.from_file(str(file))
        if "truncation" in settings:
            tokenizer.enable_truncation(**settings["truncation"])
        if "padding" in settings:
            tokenizer.enable_padding(**settings["padding"])
        content = json.loads(tokenizer.to_str())
        content["model"] |= settings.get("model", {})
        file.write_text(json.dumps(content))
        return FileTokenizer(file)

    return save


@pytest.mark.parametrize(
    "settings",
    [
        {"truncation": {"max_length": 4}, "padding": {"length": 16}},
        {"truncation": {"max_length": 8, "direction": "left"}},
        {"truncation": {"max_length": 4, "stride": 2, "strategy": "only_first"}},
        {"padding": {"length": 30, "direction": "left", "pad_id": 7}},
        {"padding": {"pad_to_multiple_of": 8}},
        {"model": {"dropout": 0.9}},
    ],
)
def test_settings_of_a_training_are_not_applied(trained, settings: dict):
    tokenizer = trained(**settings)
    text = "ab Hello <|end|>  ab"
    plain = sorted(pre_tokenizers.ByteLevel.alphabet())
    wanted = [256, *(plain.index("Ġ" if c == " " else c) for c in text[2:-2]), 256]
    for _ in range(5):
        assert tokenizer.encode(text) == wanted


def broken_unigram() -> Tokenizer:
    return Tokenizer(models.Unigram([("a", -1.0)]))


@pytest.mark.parametrize(
    ("tokenizer", "text"),
    [
        (Tokenizer(models.WordLevel({"a": 0})), "unknown"),
        (Tokenizer(models.WordPiece({"a": 0})), "b"),
        (broken_unigram(), "b"),
        (Tokenizer(models.WordLevel({"a": 0}, unk_token="?")), "b"),
        (Tokenizer(models.WordLevel({"a": 0})), "\udcff"),
    ],
)
def test_exceptions_of_the_library_are_the_users(tmp_path: Path, tokenizer: Tokenizer, text: str):
    path = tmp_path / "tokenizer.json"
    tokenizer.save(str(path))
    with pytest.raises(UserError) as caught:
        FileTokenizer(path).encode(text)
    assert str(caught.value).startswith(f"{path}: the tokenizer cannot encode {text!a}: ")


def test_panics_of_the_library_are_the_users(file: Path, monkeypatch: pytest.MonkeyPatch):
    """What pyo3 raises where Rust code fails is no Exception; an interrupt is let through."""
    panic = type("PanicException", (BaseException,), {})("index out of bounds\nmore")
    tokenizer = FileTokenizer(file)

    class Failing:
        error: BaseException = panic

        def encode(self, *arguments: object, **options: object) -> None:
            raise self.error

    monkeypatch.setattr(tokenizer, "_tokenizer", Failing())
    with pytest.raises(UserError, match=r"cannot encode 'x{60}'\.\.\.: index out of bounds\n"):
        tokenizer.encode("x" * 100)
    Failing.error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        tokenizer.encode("x")


def test_ids_of_tokens(file: Path):
    assert FileTokenizer(file).id_of("ab") == 256
    assert FileTokenizer(file).id_of("abc") is None
    assert ByteTokenizer().id_of("a") == 97 and ByteTokenizer().id_of("ä") is None
