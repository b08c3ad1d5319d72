"""The Python interface."""

import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models

import intaglio


def test_compile_into_a_temporary_folder(model):
    chip = intaglio.compile(model("llama"), target="roma-mini", context=32)
    folder = chip.folder
    assert folder.is_dir() and chip.program.capacity == 32
    tokens = chip.generate([1, 2, 3], 4)
    assert len(tokens) == 4 and tokens == chip.generate("\1\2\3", 4)
    assert {one["name"] for one in chip.mapping["matrices"]} >= {"lm_head"}
    assert 0 < chip.cycles(0) < chip.cycles(31)
    assert chip.check(tokens=16)["tokens_compared"] == 16
    assert chip.inspect()["context"] == 32
    del chip
    assert not folder.exists()


def test_compile_into_a_folder_and_load(model, tmp_path: Path):
    chip = intaglio.compile(
        model("tied"), "roma-mini", tmp_path / "out", settings={"activations": "int16"}
    )
    again = intaglio.load(tmp_path / "out")
    assert again.program.machine.activations == "int16"
    assert again.generate([5], 3) == chip.generate([5], 3)
    assert repr(again) == f"Chip({str(tmp_path / 'out')!r})"


def test_generation_does_not_depend_on_prefill_chunks(compiled, monkeypatch: pytest.MonkeyPatch):
    from intaglio.runtime import decoding as module

    prompt = list(range(40))
    chip = intaglio.load(compiled("llama"))
    expected = chip.generate(prompt, 5)
    monkeypatch.setattr(module, "PREFILL_CHUNK", 7)
    assert chip.generate(prompt, 5) == expected


def test_the_tokenizer_beside_the_model_is_used(model, tmp_path: Path):
    import shutil

    shutil.copytree(model("tied").parent, tmp_path / "model")
    words = {f"w{i}": i for i in range(64)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.save(str(tmp_path / "model" / "tokenizer.json"))
    chip = intaglio.compile(tmp_path / "model" / "model.onnx", "roma-mini")
    assert chip.encode("w7") == [7]


def test_wrong_input_is_the_users_error(compiled, tmp_path: Path):
    chip = intaglio.load(compiled("tied"))
    with pytest.raises(intaglio.UserError, match="position 128 is out of range"):
        chip.cycles(128)
    with pytest.raises(intaglio.UserError, match="its 64 tokens are not the 256 bytes"):
        chip.generate("text")
    with pytest.raises(intaglio.UserError, match="holds no compiled program"):
        intaglio.load(tmp_path)
    with pytest.raises(AttributeError, match="has no attribute 'engrave'"):
        intaglio.engrave  # noqa: B018


def test_the_package_itself_imports_nothing():
    code = (
        "import sys, intaglio; sys.exit(bool({'numpy', 'xdsl', 'onnx', 'onnxruntime'} & "
        "set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
