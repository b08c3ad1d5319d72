"""The pass driver: input formats, round trips and errors."""

import re
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


@pytest.mark.parametrize(
    ("stage", "old", "new", "begins", "told"),
    [
        ("rom", "int4, group 32>", "int5, group 32>", "  rom.parameter", "unknown code 'int5'"),
        ("rom", r"tensor<\[64, ", "tensor<[0, ", "  rom.parameter", "every dimension must be"),
        ("fabric", "rows 0 to ", "rows 9999 to ", "  fabric.engrave", "one row and one tile"),
        (
            "program",
            'takes "',
            'takes "foo + ',
            "      program.instruction",
            "not a formula: 'foo'",
        ),
        ("program", 'takes "', 'takes "1 // ', "      program.instruction", "not a formula: '1 //"),
        ("program", "matrix = 0", "matrix = 70", "    program.block", "waits for 70 instructions"),
        ("program", "matrix = 0", "tile = 0", "      program.instruction", "unknown queue 'tile'"),
        ("program", r"reads \[@", "reads [@q", "      program.instruction", "no buffer @q"),
        ("program", r"writes \[@", "writes [@q", "      program.instruction", "no buffer @q"),
        (
            "program",
            '"rms_scale"',
            '"rms_scael"',
            "      program.instruction",
            "opcode 'rms_scael'",
        ),
        ("program", r"(in @vectors at) 0", r"\1 -4", "    program.buffer", "begins at row -4"),
        ("program", r"(in @vectors at) 0", r"\1 99999", "    program.buffer", "@vectors has"),
        ("integer", "tiles = 8 : i64", 'tiles = "8"', "  fabric.machine", "is '8', not an integer"),
        ("integer", 'kv = "half8"', "kv = 8 : i64", "  fabric.machine", "kv is 8, not a text"),
        (
            "integer",
            r'weights = \["',
            'weights = [8, "',
            "  fabric.machine",
            "has an unexpected value",
        ),
    ],
)
def test_edited_stages(
    tmp_path: Path, compiled, capsys, stage: str, old: str, new: str, begins: str, told: str
):
    text = (compiled("llama") / "ir" / f"{stage}.mlir").read_text()
    path = tmp_path / "edited.mlir"
    edited = re.sub(old, new, text, count=1)
    assert edited != text
    path.write_text(edited)
    code, out, err = read(capsys, path)
    assert code == 1 and out == "" and told in err and "Traceback" not in err
    name, line, column = err.split(": ")[0].rsplit(":", 2)
    assert name == str(path)
    at = edited.splitlines()[int(line) - 1]
    assert at.startswith(begins) and int(column) == len(begins) - len(begins.lstrip()) + 1
    # What was edited stands there, or in what the operation at the place contains.
    assert edited.splitlines()[: int(line) - 1] == text.splitlines()[: int(line) - 1]


@pytest.mark.parametrize(
    ("passes", "message", "help_"),
    [
        ("rom-legalise", "no pass is called 'rom-legalise'", "did you mean 'rom-legalize'? "),
        ("fabric-plase", "no pass is called 'fabric-plase'", "did you mean 'fabric-place'? "),
        (
            "attach-target{traget=roma-mini}",
            "attach-target has no option 'traget'",
            "did you mean 'target'? options: target (str), set (",
        ),
        ("rom-legalize{rank=16}", "rom-legalize has no option 'rank'", "it has no options"),
        ("attach-target", 'attach-target: requires argument "target"', "options: target (str)"),
        ("rom-adapter-slots{rank=x}", "rom-adapter-slots: ", "options: rank (int), modules ("),
        ("rom-adapter-slots{rank=1.5}", "rom-adapter-slots: ", "options: rank (int), modules ("),
        ("rom-adapter-slots{rank=1,2}", "rom-adapter-slots: ", "options: rank (int), modules ("),
    ],
)
def test_wrong_passes_and_options(compiled, capsys, passes: str, message: str, help_: str):
    code, out, err = read(capsys, compiled("llama") / "ir" / "rom.mlir", "-p", passes)
    assert code == 1 and out == "" and "Traceback" not in err
    assert err.startswith(message) and f"\n  help: {help_}" in err


@pytest.mark.parametrize(
    "option", [["--context", "9"], ["--weights", "int4:32"], ["--allow-links"]]
)
def test_options_of_onnx_input_are_refused_for_text(compiled, capsys, option: list[str]):
    code, out, err = read(capsys, *option, compiled("llama") / "ir" / "rom.mlir")
    assert code == 1 and out == "" and err.startswith(f"{option[0]} is for ONNX input")


def test_help_has_a_line_on_each_pass(capsys):
    with pytest.raises(SystemExit):
        opt.main(["--help"])
    said = capsys.readouterr().out.partition("Intaglio's passes")[2]
    for name, load in INTAGLIO.all_passes.items():
        assert f"  {name} " in said and (load().__doc__ or "").partition("\n")[0] in said
