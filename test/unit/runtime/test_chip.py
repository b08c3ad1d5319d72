"""The Python interface."""

import inspect
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from tokenizers import Tokenizer, models

import intaglio
from intaglio.runtime.judge.check import check
from intaglio.runtime.notebook import summary_html


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


@pytest.mark.parametrize(
    "settings",
    ["activations=int16", ["activations=int16"], ("activations=int16",), {"activations": "int16"}],
)
def test_settings_in_every_form(model, settings):
    chip = intaglio.compile(model("tied"), "roma-mini", settings=settings)
    assert chip.program.machine.activations == "int16"


def test_run_reports_as_the_command_does(compiled, capsys: pytest.CaptureFixture[str]):
    """The same figures and lines for a text, for ids, with draws and stops."""
    from intaglio.runtime import cli

    folder = compiled("llama")
    chip = intaglio.load(folder)
    likeliest = chip.generate([1, 2, 3], 4)
    stop, drawn = likeliest[0], {"temperature": 0.8, "top_k": 5, "seed": 3}
    cases = [
        ({"prompt": "\1\2\3"}, "--prompt", "\1\2\3"),
        ({"prompt": [1, 2, 3]}, "--prompt-ids", "1,2,3"),
        ({"prompt": [1], "stop": stop}, "--prompt-ids", "1", "--stop", str(stop)),
        ({"prompt": [7], "end_tokens": False}, "--prompt-ids", "7", "--no-stop"),
        (
            {"prompt": [7], **drawn},
            *("--prompt-ids", "7", "--temperature", "0.8", "--top-k", "5", "--seed", "3"),
        ),
        ({"prompt": [4], "engine": "onnxruntime"}, "--prompt-ids", "4", "--engine", "onnxruntime"),
    ]
    for options, *given in cases:
        found = chip.run(tokens=4, **options)
        assert found["tokens"] == chip.generate(tokens=4, **options)
        command = ["run", str(folder), "--tokens", "4", *given]
        assert cli.main([*command, "--json"]) == 0
        said = json.loads(capsys.readouterr().out)
        by_host = ("host_tokens_per_second", *(["tokens_per_second"] * (found["cycles"] is None)))
        for name in by_host:
            assert (said.pop(name) is None) == (found[name] is None)
        assert said == {name: one for name, one in found.items() if name not in by_host}
        assert cli.main(command) == 0
        lines = [line for line in capsys.readouterr().out.splitlines() if "this host" not in line]
        mine = [line for line in str(found).splitlines() if "this host" not in line]
        assert lines[-len(mine) :] == mine
        assert repr(found).startswith(f"RunResult({found['engine']}, {len(found['tokens'])} token")
        ElementTree.fromstring(found._repr_html_())
    assert "text" in chip.run("\1", 2) and "text" not in chip.run([1], 2)


def test_generation_does_not_depend_on_prefill_chunks(compiled, monkeypatch: pytest.MonkeyPatch):
    from intaglio.runtime.text import session as module

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


def test_the_package_shows_its_names():
    assert {"Chip", "UserError", "compile", "load", "__version__"} <= set(dir(intaglio))
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*", intaglio.__version__)
    for name in dir(intaglio):
        assert getattr(intaglio, name) is not None


@pytest.mark.parametrize("engine", ["foo", "simulater", "", "RTL"])
def test_an_unknown_engine_is_told_all_engines(compiled, engine: str):
    chip = intaglio.load(compiled("llama"))
    known = "engines: simulator, rtl, verilator"
    with pytest.raises(intaglio.UserError, match=f"{known}, onnxruntime"):
        chip.generate([1], 1, engine)
    for ask in (lambda: chip.check(engine=engine), lambda: chip.machine(engine)):
        with pytest.raises(intaglio.UserError, match=f"{known}$"):
            ask()
    with pytest.raises(intaglio.UserError, match="'onnxruntime' cannot do that"):
        chip.check(engine="onnxruntime")


def test_what_is_shown_is_short(slotted, write_peft, tensors):
    """No arrays: whatever the model's size, a line each."""
    chip = intaglio.load(slotted)
    chip.adapters.add("mine", write_peft(tensors()))
    try:
        chip.use_adapter("mine")
        (token,) = chip.stream([1, 2], 1)
        checked = chip.check(tokens=8)
        assert repr(chip.adapters) == "Adapters('mine')"
        assert repr(token).startswith(f"Generated(token={token.token}, logits=float32[256]")
        image = chip.adapter
        assert image is not None
        assert repr(image).startswith("AdapterImage('mine', 6 sites, rank 4, fp8, ")
        matrix = next(iter(image.sites.values())).a
        assert repr(matrix).startswith("AdapterMatrix(fp8[4, 64], exponent=")
        assert repr(checked).startswith("CheckResult(simulator, 8 tokens, top-1 ")
        for one in (chip, chip.adapters, token, image, matrix, checked):
            assert len(repr(one)) < 200 and "\n" not in repr(one)
        for one in (chip, chip.adapters, image, checked):
            page = one._repr_html_()
            assert page.startswith("<table>") and page.endswith("</table>") and len(page) < 5000
            ElementTree.fromstring(page)
        assert "<th" in chip._repr_html_() and ">ROM</th>" in chip._repr_html_()
        assert ">saturations</th>" in checked._repr_html_()
        assert "<th>mine</th>" not in chip.adapters._repr_html_()
        assert "<td>mine</td><td>4</td><td>6 of 14</td>" in chip.adapters._repr_html_()
        assert str(checked).startswith("8 tokens in 1 window, judged by onnxruntime")
        assert json.loads(json.dumps(checked)) == checked
    finally:
        chip.adapters.remove("mine")


@pytest.mark.parametrize(
    ("line", "cells"),
    [
        ("ROM     1 MB", ["ROM", "1 MB"]),
        ("vectors 5 kB", ["vectors", "5 kB"]),
        ("        and more", ["", "and more"]),
        ("  two <words> here", ["two <words> here"]),
        ("sentence", ["sentence"]),
        ("saturations 0", ["saturations 0"]),
    ],
)
def test_a_reports_lines_as_cells(line: str, cells: list[str]):
    row = ElementTree.fromstring(summary_html("title", [line], 8)).find("tr")
    assert row is not None and [cell.text or "" for cell in row] == cells


def test_names_in_tables_are_escaped(compiled, tmp_path: Path):
    shutil.copytree(compiled("tied"), tmp_path / "a<b>&c")
    page = intaglio.load(tmp_path / "a<b>&c")._repr_html_()
    assert "a&lt;b&gt;&amp;c" in page and "<b>" not in page


def test_generate_with_an_adapter_for_once(slotted, write_peft, tensors):
    chip = intaglio.load(slotted)
    chip.adapters.add("mine", write_peft(tensors()))
    try:
        plain = chip.generate([1, 2, 3], 6)
        adapted = chip.generate([1, 2, 3], 6, adapter="mine")
        assert chip.adapter is None and chip.generate([1, 2, 3], 6) == plain != adapted
        chip.use_adapter("mine")
        assert chip.generate([1, 2, 3], 6) == adapted
        with pytest.raises(intaglio.UserError, match="other"):
            chip.generate([1], 1, adapter="other")
        assert chip.adapter is not None and chip.adapter.name == "mine"
    finally:
        chip.adapters.remove("mine")


def test_tokens_become_text_again(compiled):
    chip = intaglio.load(compiled("llama"))
    for text in ("Once", "", "ä€", "a\nb"):
        assert chip.decode(chip.encode(text)) == text
    with pytest.raises(intaglio.UserError, match="token id 256 is out of range"):
        chip.decode([1, 256])


def test_compile_up_to_a_stage(model, tmp_path: Path):
    chip = intaglio.compile(model("llama"), "roma-mini", tmp_path / "rom", emit="rom")
    assert [path.name for path in (chip.folder / "ir").iterdir()] == ["rom.mlir"]
    assert chip._repr_html_().startswith("<table>")
    with pytest.raises(intaglio.UserError, match="did you mean 'program'"):
        intaglio.compile(model("llama"), "roma-mini", tmp_path / "x", emit="programm")


def test_options_of_check_are_named():
    options = inspect.signature(intaglio.Chip.check).parameters
    theirs = inspect.signature(check).parameters
    for name, one in theirs.items():
        if name not in ("chip", "progress", "announce"):
            assert options[name].default == one.default
            assert options[name].annotation == one.annotation
