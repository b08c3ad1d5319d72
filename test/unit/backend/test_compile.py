"""Compiles as a whole: determinism, stages that parse back, no trace of the machine."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from intaglio.backend.compile import compile_model
from intaglio.backend.output import TIMINGS
from intaglio.backend.stages import IR_STAGES, Options

Named = Callable[[str], Path]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file by name, but the timings."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != TIMINGS)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.mark.parametrize("name", ["llama", "phi"])
def test_same_input_same_bytes(model: Named, tmp_path: Path, name: str) -> None:
    """In another folder, from a copy of the model, in another process with other hash seeds."""
    here = compile_model(model(name), tmp_path / "here", Options("roma-mini", emit=None)).folder
    shutil.copytree(model(name).parent, tmp_path / "copy")
    there = tmp_path / "elsewhere" / "there"
    command = [sys.executable, "-m", "intaglio.runtime.cli", "compile"]
    command += [
        str(tmp_path / "copy" / model(name).name),
        "--target",
        "roma-mini",
        "-o",
        str(there),
    ]
    subprocess.run(command, check=True, capture_output=True, env={"PYTHONHASHSEED": "7"})
    assert contents(here) == contents(there)


def test_no_path_of_the_machine_is_written(compiled: Named, model: Named) -> None:
    folder = compiled("llama")
    for name, content in contents(folder).items():
        for path in (folder, model("llama").parent, Path.cwd(), Path.home()):
            assert str(path).encode() not in content, name


@pytest.mark.parametrize("stage", IR_STAGES)
def test_every_stage_parses_back(compiled: Named, stage: str) -> None:
    """What a compile writes is what xdsl-opt prints of it, byte for byte."""
    path = compiled("llama") / "ir" / f"{stage}.mlir"
    result = subprocess.run(["xdsl-opt", str(path)], check=True, capture_output=True, text=True)
    assert result.stdout == path.read_text()


def test_a_failed_compile_leaves_nothing(model: Named, tmp_path: Path) -> None:
    """Neither a new folder nor a change to an old one."""
    out = tmp_path / "out"
    compile_model(model("llama"), out, Options("roma-mini"))
    before = contents(out)
    with pytest.raises(Exception, match="SRAM"):
        compile_model(model("llama"), out, Options("roma-mini", ("h_unit.sram_bytes=1024",)))
    assert contents(out) == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
