"""The output folder: what a compile may replace, and what stays when it fails."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from intaglio.backend.compile import compile_model
from intaglio.backend.output.hardware_files import HEX, IR, ROMS, VERILOG
from intaglio.backend.output.output import (
    ADAPTER_BYTES,
    ADAPTER_DESCRIPTION,
    ADAPTER_FLOATS,
    ADAPTERS,
    MANIFEST,
    copy,
    whole_or_nothing,
)
from intaglio.backend.output.whole import whole_file
from intaglio.backend.stages import Options
from intaglio.dialects.errors import UserError

Named = Callable[[str], Path]


@pytest.fixture
def out(compiled: Named, tmp_path: Path) -> Path:
    """A compiled model that may be changed."""
    return Path(shutil.copytree(compiled("llama"), tmp_path / "out"))


def put(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)


def replace(out: Path) -> None:
    with whole_or_nothing(out) as folder:
        put(folder, "new")


def test_an_earlier_compile_is_replaced(out: Path) -> None:
    put(out, *(f"{ADAPTERS}/devil/{name}" for name in (ADAPTER_BYTES, ADAPTER_FLOATS)))
    put(out, f"{ADAPTERS}/.devil.12.partial/{ADAPTER_DESCRIPTION}")
    put(out, IR, *VERILOG, ROMS, f"{HEX}/tile_0.rom.hex")
    replace(out)
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert [path.name for path in out.iterdir()] == ["new"]


def test_every_stage_is_replaced(model: Named, tmp_path: Path) -> None:
    """The reference's files too, and the graph that judges adapters."""
    out = tmp_path / "out"
    for stage, rank in (("program", 2), ("rom", 0)):
        options = Options("roma-mini", context=32, adapter_rank=rank, emit=stage)
        assert compile_model(model("phi"), out, options).folder == out
    replace(out)


@pytest.mark.parametrize(
    "names",
    [
        ("notes.txt",),
        ("rom/backup/matrices.bin", "hw/sim.log"),
        (f"{ADAPTERS}/devil/adapter_config.json",),
        (f"{ADAPTERS}/devil/checkpoint/{ADAPTER_BYTES}",),
        tuple(f"file{number}" for number in range(9)),
    ],
)
def test_what_intaglio_did_not_write_stays(out: Path, names: tuple[str, ...]) -> None:
    put(out, *names)
    with pytest.raises(UserError) as caught:
        replace(out)
    assert caught.value.file == str(out) and names[0] in caught.value.what
    assert ("and 5 more" in caught.value.what) == (len(names) == 9)
    assert all((out / name).read_text() == name for name in names)
    assert (out / MANIFEST).is_file() and [path.name for path in out.parent.iterdir()] == ["out"]


def test_links_are_the_users(out: Path, tmp_path: Path) -> None:
    (out / "cache").symlink_to(tmp_path, target_is_directory=True)
    with pytest.raises(UserError, match="did not write: cache"):
        replace(out)


def test_what_comes_while_a_model_is_compiled_stays(out: Path) -> None:
    with pytest.raises(UserError, match=r"notes\.txt"), whole_or_nothing(out):
        put(out, "notes.txt")
    assert (out / MANIFEST).is_file() and [path.name for path in out.parent.iterdir()] == ["out"]


@pytest.mark.parametrize("manifest", [None, "{", "[]", '{"name": "a web page"}', '{"inputs": 1}'])
def test_other_folders_are_no_output(tmp_path: Path, manifest: str | None) -> None:
    put(tmp_path, "index.html")
    if manifest is not None:
        (tmp_path / MANIFEST).write_text(manifest)
    with pytest.raises(UserError, match=r"no output of intaglio: it holds index\.html"):
        replace(tmp_path)
    assert (tmp_path / "index.html").is_file()


def test_empty_folders_and_links_to_folders(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    replace(tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real" / "new").is_file()


def test_a_failure_changes_nothing(out: Path) -> None:
    before = sorted(path.name for path in out.iterdir())
    with pytest.raises(ValueError), whole_or_nothing(out) as folder:
        put(folder, "new")
        raise ValueError
    assert sorted(path.name for path in out.iterdir()) == before
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_refused_before_the_model_is_read(out: Path) -> None:
    put(out, "notes.txt")
    with pytest.raises(UserError, match=r"notes\.txt"):
        compile_model(out / "nothing.onnx", out, Options("roma-mini"))


def test_lost_adapters_are_said(model: Named, out: Path) -> None:
    put(out, f"{ADAPTERS}/devil/{ADAPTER_DESCRIPTION}", f"{ADAPTERS}/python/{ADAPTER_DESCRIPTION}")
    found = compile_model(model("llama"), out, Options("roma-mini", context=32, emit="rom"))
    assert any("devil, python; add them again" in warning for warning in found.warnings)
    assert not (out / ADAPTERS).exists()


@pytest.mark.parametrize("name", ["file", "file/sub", "file/sub/deeper"])
def test_files_are_no_folders(tmp_path: Path, name: str) -> None:
    put(tmp_path, "file")
    with pytest.raises(UserError) as caught:
        replace(tmp_path / name)
    assert caught.value.file == str(tmp_path / name) and "partial" not in str(caught.value)
    if name != "file":
        assert f"{tmp_path / 'file'} is no folder" in caught.value.what
    assert (tmp_path / "file").read_text() == "file"


def test_errors_of_writing_name_the_place(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(UserError) as caught, whole_or_nothing(out) as folder:
        (folder / "rom").write_text("")
        (folder / "rom" / "matrices.bin").write_text("")
    assert caught.value.file == str(out / "rom" / "matrices.bin")
    with pytest.raises(UserError) as caught, whole_file(tmp_path / "report") as partial:
        raise OSError(28, "No space left on device")
    assert str(caught.value) == f"{tmp_path / 'report'}: cannot be written: No space left on device"
    assert not partial.exists() and not out.exists()
    with pytest.raises(FileNotFoundError), whole_file(tmp_path / "report"):
        (tmp_path / "another").read_text()


def test_files_that_cannot_be_written(tmp_path: Path) -> None:
    put(tmp_path, "file")
    for path in (tmp_path, tmp_path / "no" / "report", tmp_path / "file" / "report"):
        with pytest.raises(UserError) as caught, whole_file(path):
            raise AssertionError("is not reached")
        assert caught.value.file == str(path) and "partial" not in str(caught.value)


def test_devices_are_written_as_they_are() -> None:
    with whole_file(Path("/dev/null")) as file:
        assert file == Path("/dev/null")
    assert Path("/dev/null").is_char_device()


@pytest.mark.parametrize("shares", [True, False])
def test_copies_share_bytes_where_that_is_possible(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, shares: bool
) -> None:
    """A reflink where the file system has it, else a copy; never a hard link."""
    asked: list[int] = []

    def ioctl(new: int, what: int, old: int) -> int:
        asked.append(what)
        if not shares:
            raise OSError(errno.EOPNOTSUPP, "not supported")
        os.write(new, os.read(old, 100))
        return 0

    def copyfile(source: Path, target: Path) -> None:
        assert not shares
        target.write_bytes(source.read_bytes())

    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    monkeypatch.setattr(shutil, "copyfile", copyfile)
    source, target = tmp_path / "a", tmp_path / "folder" / "b"
    source.write_bytes(b"bytes")
    copy(source, target)
    assert target.read_bytes() == b"bytes" and asked == [0x40049409]
    assert source.stat().st_nlink == target.stat().st_nlink == 1


def test_a_copy_of_nothing_names_it(tmp_path: Path) -> None:
    with pytest.raises(OSError) as caught:
        copy(tmp_path / "nothing", tmp_path / "b")
    assert caught.value.filename == str(tmp_path / "nothing")
