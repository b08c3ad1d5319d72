"""Text to ids and back, one token at a time."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from intaglio.dialects.errors import UserError
from intaglio.runtime.tokenizer import ByteTokenizer, FileTokenizer, tokenizer_beside

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
