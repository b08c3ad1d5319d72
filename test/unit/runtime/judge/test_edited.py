"""Files of an output folder that were edited: refused by name, or gone on with knowingly."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from intaglio.backend.output.hardware_files import IR, VERILOG
from intaglio.backend.output.output import MANIFEST, MAPPING
from intaglio.backend.program.program import PROGRAM
from intaglio.dialects.errors import UserError
from intaglio.runtime import cli
from intaglio.runtime.chip import load
from intaglio.runtime.engines.rtl import write_hardware

Run = Callable[..., tuple[int, str, str]]
RUN = ("run", "--prompt-ids", "1,2", "--tokens", "1")
CHECK = ("check", "--tokens", "2")
MODEL = "reference/model.onnx"


@pytest.fixture
def out(compiled: Callable[[str], Path], tmp_path: Path) -> Path:
    return shutil.copytree(compiled("llama"), tmp_path / "out")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    def command(out: Path, name: str, *rest: str) -> tuple[int, str, str]:
        code = cli.main([name, str(out), *rest])
        text = capsys.readouterr()
        return code, text.out, text.err

    yield command


def image_of(out: Path) -> str:
    return load(out).files.below("rom")[0]


def flip(path: Path) -> None:
    """Changes one bit; size and time of modification stay."""
    before = path.stat()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def change_program(out: Path) -> None:
    """A program that is read, and names another layer's node."""
    path = out / PROGRAM
    content = json.loads(path.read_text())
    content["blocks"][0]["instructions"][0]["onnx"][0][0] += "_edited"
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("command", [RUN, CHECK])
@pytest.mark.parametrize("kind", ["program", "image"])
def test_what_is_run_is_verified(run: Run, out: Path, kind: str, command: tuple[str, ...]) -> None:
    name = PROGRAM if kind == "program" else image_of(out)
    if kind == "program":
        change_program(out)
    else:
        flip(out / name)
    code, text, error = run(out, *command)
    assert code == 1 and not text
    assert f"{out / name}: has other bytes than the compile wrote" in error
    assert "--trust-edited" in error
    code, text, _ = run(out, *command, "--trust-edited", "--json")
    assert code == 0 and json.loads(text)["edited"] == [name]
    code, text, _ = run(out, *command, "--trust-edited")
    assert code == 0 and f"edited       {name}: not what the compiler wrote" in text


def test_the_judges_files_are_verified(run: Run, out: Path) -> None:
    (out / MODEL).write_bytes((out / MODEL).read_bytes() + b"\x00")
    code, _, error = run(out, *CHECK)
    assert code == 1 and f"{out / MODEL}: has other bytes" in error
    (out / "reference" / "tokenizer.json").write_text("{}")
    code, _, error = run(out, *RUN)
    assert code == 1 and f"{out / MODEL}: " in error


def test_a_file_that_no_compile_wrote_is_refused(run: Run, out: Path) -> None:
    (out / "reference" / "generation_config.json").write_text('{"eos_token_id": 5}')
    code, _, error = run(out, *RUN)
    assert code == 1
    assert f"generation_config.json: is not of this compile: {MANIFEST} does not name it" in error


def test_hardware_is_verified_and_written_later(run: Run, out: Path) -> None:
    (out / "hw").mkdir(exist_ok=True)
    (out / IR).write_text("module {}")
    hardware = ("--engine", "rtl")
    code, _, error = run(out, *RUN, *hardware)
    assert code == 1 and f"{out / IR}: " in error
    write_hardware(out, "hw")
    assert IR in json.loads((out / MANIFEST).read_text())["outputs"]
    load(out, verify=True)
    (out / IR).write_text((out / IR).read_text() + "// by hand\n")
    code, _, error = run(out, *RUN, *hardware)
    assert code == 1 and f"{out / IR}: has other bytes than the compile wrote" in error


def test_the_verilog_is_verified(run: Run, out: Path) -> None:
    """Before a C++ compiler is looked for."""
    files = load(out).files
    for name in (IR, *VERILOG):
        (out / name).parent.mkdir(exist_ok=True)
        if not (out / name).exists():
            (out / name).write_text("// as written\n")
    files.add([IR, *VERILOG])
    for name in VERILOG:
        before = (out / name).read_text()
        (out / name).write_text(before + "// by hand\n")
        code, _, error = run(out, *RUN, "--engine", "verilator")
        assert code == 1 and f"{out / name}: has other bytes than the compile wrote" in error
        code, _, error = run(out, "check", "--engine", "verilator", "--tokens", "1")
        assert code == 1 and f"{out / name}: has other bytes" in error
        (out / name).write_text(before)


def test_verify_hashes_again(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that keeps no times of inodes would not show this change."""
    hashed: list[str] = []
    from intaglio.backend.output import verified

    real = verified.sha256_of

    def counted(path: Path) -> str:
        hashed.append(path.name)
        return real(path)

    load(out, verify=True)
    monkeypatch.setattr(verified, "sha256_of", counted)
    load(out).verify_images()
    assert set(hashed) <= {MANIFEST}
    load(out, verify=True)
    assert PROGRAM in hashed and "model.onnx" in hashed


def test_mapping_of_an_edited_folder(out: Path) -> None:
    path = out / MAPPING
    path.write_text(path.read_text() + " ")
    with pytest.raises(UserError, match=r"mapping\.json: has other bytes"):
        _ = load(out).mapping
    chip = load(out, trust_edited=True)
    assert chip.mapping["matrices"] and chip.edited == (MAPPING,)


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "rom/../../x", "rom//x", "."])
def test_names_that_lead_out_of_the_folder(run: Run, out: Path, name: str) -> None:
    def edit(file: str, change: Callable[[Any], None]) -> None:
        content = json.loads((out / file).read_text())
        change(content)
        (out / file).write_text(json.dumps(content))

    manifest = (out / MANIFEST).read_text()
    edit(MANIFEST, lambda one: one.update(model=name))
    code, _, error = run(out, *RUN)
    assert code == 1 and f"names the file '{name}', which is not inside" in error
    (out / MANIFEST).write_text(manifest)

    def parameter(content: Any) -> None:
        found = next(one for one in content["parameters"].values() if "codes" in one)
        found["codes"]["file"] = name

    edit(PROGRAM, parameter)
    code, _, error = run(out, *RUN, "--trust-edited")
    assert code == 1 and f"'{name}'" in error and PROGRAM in error


def test_links_out_of_the_folder(run: Run, out: Path, tmp_path: Path) -> None:
    name = image_of(out)
    (out / name).rename(tmp_path / "elsewhere")
    (out / name).symlink_to(tmp_path / "elsewhere")
    code, _, error = run(out, *RUN)
    assert code == 1 and "which is a link out of the output folder" in error
