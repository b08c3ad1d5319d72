"""The pass driver: input formats, round trips and errors."""

from pathlib import Path

import pytest

from intaglio.runtime import opt
from intaglio.runtime.interrupts import Stopped
from intaglio.universe import INTAGLIO


def read(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    code = opt.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.parametrize("name", ["llama", "qwen", "phi"])
def test_onnx_input_and_every_stage_again(model, compiled, capsys, name: str):
    code, text, err = read(capsys, model(name), "-p", "rom-outline-layers")
    assert code == 0 and err == ""
    assert text.strip() == (compiled(name) / "ir" / "rom.mlir").read_text().strip()
    for stage in ("rom", "integer", "fabric", "program"):
        path = compiled(name) / "ir" / f"{stage}.mlir"
        code, text, err = read(capsys, path)
        assert code == 0 and text.strip() == path.read_text().strip(), err


def test_context_reaches_the_import(model, capsys):
    assert "128" in read(capsys, model("llama"))[1]
    code, text, _ = read(capsys, model("llama"), "--context", "17")
    assert code == 0 and "17" in text
    code, text, err = read(capsys, model("llama"), "--context", "500")
    assert code == 1 and text == "" and "500" in err and "Traceback" not in err


def test_errors_are_messages(tmp_path: Path, model, compiled, capsys):
    bad = tmp_path / "bad.mlir"
    bad.write_text("builtin.module { foo.bar }\n")
    rom = compiled("llama") / "ir" / "rom.mlir"
    wrong = tmp_path / "wrong.mlir"
    wrong.write_text(rom.read_text().replace("tensor<64xf32>", "tensor<65xf32>", 1))
    for arguments, message in (
        ([bad], "foo"),
        ([wrong], "tensor<65xf32>"),
        ([tmp_path / "nothing.mlir"], "nothing.mlir"),
        ([tmp_path / "nothing.onnx"], "nothing.onnx"),
        ([rom, "-p", "rom-legalize"], "attach-target"),
        ([rom, "-p", "attach-target{target=rome}"], "no target is called 'rome'"),
        ([rom, "-p", "no-such-pass"], "no-such-pass"),
    ):
        code, out, err = read(capsys, *arguments)
        assert code == 1 and out == "" and message in err and "Traceback" not in err


@pytest.mark.parametrize("name", ["nothing.onnx", "nothing.mlir"])
def test_missing_files(tmp_path: Path, capsys, name: str):
    code, out, err = read(capsys, tmp_path / name)
    assert (code, out, err) == (1, "", f"{tmp_path / name}: No such file or directory\n")


def test_errors_can_be_verified(compiled, capsys):
    rom = compiled("llama") / "ir" / "rom.mlir"
    arguments = ("-p", "attach-target{target=rome}", "--verify-diagnostics")
    code, out, err = read(capsys, rom, *arguments)
    assert code == 0 and "no target is called 'rome'" in out and err == ""


def test_debug_shows_tracebacks(tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        opt.main([str(tmp_path / "nothing.mlir"), "--debug"])


@pytest.mark.parametrize(
    "passes",
    [
        "attach-target{target=my.toml}",
        "fabric-place{mapping=x.json}",
        "fabric-place{mapping=a/b}",
        'attach-target{target="a}',
        "rom-legalize{",
        "rom-legalize fabric-place",
    ],
)
def test_options_that_cannot_be_read(compiled, capsys, passes: str):
    code, out, err = read(capsys, compiled("llama") / "ir" / "rom.mlir", "-p", passes)
    assert code == 1 and out == "" and passes in err and "Traceback" not in err
    assert "in quotes, as in attach-target" in err.splitlines()[-1]


@pytest.mark.parametrize(
    ("raised", "code", "message"),
    [
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (Stopped(15), 143, "stopped\n"),
    ],
)
def test_signals(monkeypatch, compiled, capsys, raised: BaseException, code: int, message: str):
    def run(self: object) -> None:
        raise raised

    monkeypatch.setattr(opt.IntaglioOpt, "run", run)
    path = compiled("llama") / "ir" / "rom.mlir"
    assert read(capsys, path) == (code, "", message)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("\n{op}\n", ":2:1: "),
        ("builtin.module {{\n\n  {op}\n}}\n", ":3:3: "),
        ('{op} loc("my.py":7:5)\n', "my.py:7:5: "),
        ("builtin.module {{}}\n// -----\n\n{op}\n", ":4:1: "),
    ],
)
def test_what_does_not_verify_has_a_place(tmp_path: Path, capsys, text: str, place: str):
    path = tmp_path / "wrong.mlir"
    path.write_text(text.format(op='%0 = "arith.addi"() : () -> i32'))
    code, _, err = read(capsys, path, "--split-input-file")
    where = place if place.startswith("my.py") else f"{path}{place}"
    assert code == 1 and err.startswith(where) and "Traceback" not in err
    code, out, err = read(capsys, path, "--split-input-file", "--verify-diagnostics")
    assert code == 0 and where in out and err == ""


def test_help_has_a_line_on_each_pass(capsys):
    with pytest.raises(SystemExit):
        opt.main(["--help"])
    said = capsys.readouterr().out.partition("Intaglio's passes")[2]
    for name, load in INTAGLIO.all_passes.items():
        assert f"  {name} " in said and (load().__doc__ or "").partition("\n")[0] in said
