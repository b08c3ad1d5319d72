"""Compiles as a whole: determinism, stages that parse back, no trace of the machine."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from intaglio.backend.compile import _replaced, compile_model
from intaglio.backend.output.output import MANIFEST, TIMINGS, sha256_of
from intaglio.backend.stages import IR_STAGES, Options
from intaglio.backend.target.file import TARGET, read_target
from intaglio.backend.target.report import target_json
from intaglio.backend.target.target import load_target
from intaglio.dialects.errors import UserError
from intaglio.runtime.chip import load
from intaglio.runtime.expected_tokens import expected_tokens
from intaglio.runtime.judge.reference import CannotJudge

Named = Callable[[str], Path]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file by name, but the timings."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != TIMINGS)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.mark.parametrize("name", ["llama", "phi"])
def test_same_input_same_bytes(model: Named, tmp_path: Path, name: str) -> None:
    """In another folder, from a copy of the model, in another process with other hash seeds."""
    options = Options("roma-mini", emit=None)
    here = compile_model(model(name), tmp_path / "here", options, expected=expected_tokens).folder
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


def test_manifest_records_what_was_asked_for(model: Named, compiled: Named, tmp_path: Path) -> None:
    def manifest(out: Path) -> dict[str, Any]:
        return json.loads((out / MANIFEST).read_text())

    plain = manifest(compiled("llama"))
    assert plain["adapter_slots"] is plain["mapping"] is None
    mapping = compiled("llama") / "mapping.json"
    options = Options(
        "roma-mini",
        context=32,
        emit="integer",
        adapter_rank=4,
        adapter_modules=("q_proj", "v_proj"),
        mapping=str(mapping),
    )
    found = manifest(compile_model(model("llama"), tmp_path / "out", options).folder)
    assert found["adapter_slots"] == {"rank": 4, "modules": ["q_proj", "v_proj"]}
    several = replace(options, emit="rom", mapping=None, resident_adapters=3)
    slots = manifest(compile_model(model("llama"), tmp_path / "several", several).folder)
    assert slots["adapter_slots"]["residents"] == 3
    assert found["mapping"] == sha256_of(mapping)
    assert found["target"] == "roma-mini" and TARGET in found["outputs"]


@pytest.mark.parametrize(
    ("name", "slots", "left"),
    [
        ("experts", 4, "moe_router, moe_experts_gate_up, moe_experts_down"),
        ("experts8", 8, "moe_router, moe_experts_gate_up, moe_experts_down"),
        ("experts", 0, None),
        ("llama", 4, None),
    ],
)
def test_matrices_without_adapter_slots_are_said(
    model: Named, tmp_path: Path, name: str, slots: int, left: str | None
) -> None:
    options = Options("roma-mini", context=32, emit="integer", adapter_rank=slots)
    warnings = compile_model(model(name), tmp_path / "out", options).warnings
    found = [one for one in warnings if "no adapter slots" in one]
    assert [one.partition(": ")[0] for one in found] == (
        [] if left is None else [f"no adapter slots beside {left}"]
    )


def test_a_users_target_is_kept_whole(model: Named, tmp_path: Path) -> None:
    """The file may go away; the output folder has every figure, with options applied."""
    text = (Path(load_target.__code__.co_filename).parents[1] / "targets" / "tom.toml").read_text()
    path = tmp_path / "mine.toml"
    path.write_text(text.replace('name = "tom"', 'name = "my-chip"'))
    settings = ("latency.power_wake=99", "policy.adapter_sites=q_proj,v_proj")
    options = Options(str(path), settings, context=32, emit="rom")
    out = compile_model(model("llama"), tmp_path / "out", options).folder
    want = load_target(path).with_options(settings)
    path.unlink()
    found = read_target(out)
    # Sources are said by what is public of them.
    assert target_json(found) == target_json(want)
    assert found.name == "my-chip" and found.options == settings
    assert found.machine() == want.machine() and found.machine().power_wake == 99
    assert str(tmp_path) not in (out / TARGET).read_text()
    assert json.loads((out / MANIFEST).read_text())["target"] == "my-chip"


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ('"schema": 1', '"schema": 9', "schema 9, this version reads 1"),
        (
            '"l_unit.lanes"',
            '"l_unit.lines"',
            "parameters.l_unit.lines is no figure",
        ),
        ('"name"', '"nome"', "the key 'name' is missing"),
        ("{", "", "is no JSON"),
    ],
)
def test_damaged_targets(
    compiled: Named, tmp_path: Path, old: str, new: str, expected: str
) -> None:
    text = (compiled("llama") / TARGET).read_text()
    (tmp_path / TARGET).write_text(text.replace(old, new, 1))
    with pytest.raises(UserError, match="compile the model again") as caught:
        read_target(tmp_path)
    assert expected in str(caught.value)


def test_a_failed_compile_leaves_nothing(model: Named, tmp_path: Path) -> None:
    """Neither a new folder nor a change to an old one."""
    out = tmp_path / "out"
    compile_model(model("llama"), out, Options("roma-mini"))
    before = contents(out)
    with pytest.raises(Exception, match="SRAM"):
        compile_model(model("llama"), out, Options("roma-mini", ("h_unit.sram_bytes=1024",)))
    assert contents(out) == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("name", ["tied", "llama"])
def test_without_the_model(model: Named, tmp_path: Path, name: str) -> None:
    """It is not copied, the tokenizer's files are; all but the judge works; and again."""
    folder = tmp_path / "model"
    shutil.copytree(model(name).parent, folder)
    (folder / "special_tokens_map.json").write_text("{}")
    file = folder / model(name).name
    options = Options("roma-mini")
    said: list[str] = []
    whole = compile_model(file, tmp_path / "out", options, said.append).folder
    assert any(line.startswith("copying the model for onnxruntime (") for line in said)
    kept = contents(whole)
    stages = [one["stage"] for one in json.loads((whole / TIMINGS).read_text())["stages"]]
    assert stages.index("reference") == stages.index("hash") - 1
    said.clear()
    out = compile_model(file, tmp_path / "out", replace(options, reference=False), said.append)
    assert not any("copying" in line for line in said)
    left = contents(out.folder)
    assert not any(path.endswith((".onnx", ".data")) for path in left)
    assert "reference/special_tokens_map.json" in left
    for path in ("rom/matrices.bin", "program.json"):
        assert left[path] == kept[path]
    manifest = json.loads(left[MANIFEST])
    assert manifest["reference"] is False
    assert manifest["inputs"]["reference/model.onnx"] == sha256_of(file)
    chip = load(out.folder)
    assert len(chip.generate([1, 2], 2)) == 2 and chip.adapters.list() == []
    for judge in (lambda: chip.check(tokens=4), lambda: chip.generate([1], 1, "onnxruntime")):
        with pytest.raises(CannotJudge, match="compile without --no-reference"):
            judge()


def test_a_setting_that_a_later_one_replaces_is_named() -> None:
    settings = ("activations.o_proj=int16", "kv=int8", "activations.o_proj=int8", "kv=int8")
    (said,) = _replaced(settings)
    assert said == (
        "--set activations.o_proj=int16 is replaced by --set activations.o_proj=int8, which comes "
        "later"
    )
