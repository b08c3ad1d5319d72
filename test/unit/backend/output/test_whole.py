"""Files and folders that appear whole or not at all, and what killed processes leave."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from intaglio.backend.output import whole
from intaglio.backend.output.output import whole_or_nothing
from intaglio.backend.output.whole import (
    check_writable,
    naming,
    remove_folder,
    tidy,
    tidy_inside,
    whole_file,
    whole_folder,
)
from intaglio.dialects.errors import UserError

KINDS = ("exchange", "renames", "inside")


def put(folder: Path, **files: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    return folder


def content(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted(folder.iterdir())}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param != "exchange":
        monkeypatch.setattr(whole, "_exchange", lambda one, other: False)
    return request.param


@pytest.fixture
def place(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An earlier folder; in one case the process works in it."""
    found = put(tmp_path / "out", a="1", b="2")
    if kind == "inside":
        monkeypatch.chdir(found)
    return found


def test_a_folder_takes_the_place_of_another(place: Path, kind: str) -> None:
    before = place.stat().st_ino
    with whole_folder(place, place) as folder:
        put(folder, b="3", c="4")
        assert content(place) == {"a": "1", "b": "2"}
    assert content(place) == {"b": "3", "c": "4"} and names(place.parent) == ["out"]
    # Who stands in a folder stays in it.
    assert (place.stat().st_ino == before) == (kind == "inside")


class Killed(BaseException):
    """Stands for a signal that nothing is done about."""


def interrupted(place: Path, at: int, monkeypatch: pytest.MonkeyPatch, how: str) -> bool:
    """Replaces a folder and is stopped after so many renames; whether it came to that.

    Where it is killed, nothing is done afterwards: each further call raises as well.
    """
    done, rename = 0, os.rename
    gone = False

    def counted(*arguments: object, **options: object) -> None:
        nonlocal done, gone
        if gone and how == "killed":
            raise Killed
        rename(*arguments, **options)  # pyright: ignore[reportCallIssue, reportArgumentType]
        done += 1
        if done == at and not gone:
            gone = True
            raise Killed

    def nothing(*arguments: object, **options: object) -> None:
        pass

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", counted)
        if how == "killed":
            patch.setattr(shutil, "rmtree", nothing)
            patch.setattr(Path, "rmdir", nothing)
        try:
            with whole_folder(place, place) as folder:
                put(folder, b="3", c="4")
        except Killed:
            return True
    return False


@pytest.mark.parametrize("how", ["stopped", "killed"])
def test_a_stop_at_each_rename(
    place: Path, kind: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = {"a": "1", "b": "2"}, {"b": "3", "c": "4"}
    at = 0
    for at in range(1, 20):
        came = interrupted(place, at, monkeypatch, how)
        said = tidy(place)
        assert content(place) in (old, new), (at, said)
        assert names(place.parent) == ["out"], at
        if not came:
            break
        with whole_folder(place, place) as folder:
            put(folder, **old)
    assert at == {"exchange": 1, "renames": 3, "inside": 6}[kind]


def test_what_is_alive_stays(tmp_path: Path) -> None:
    with whole_folder(tmp_path / "out", tmp_path / "out") as folder:
        assert tidy(tmp_path / "out") == [] and folder.is_dir()
        put(folder, a="1")
    with whole_file(tmp_path / "report") as file:
        assert tidy(tmp_path / "report") == [] and file.exists()
    assert names(tmp_path) == ["out", "report"]


def test_of_others(tmp_path: Path) -> None:
    """What only looks like it, belongs to another name, or is a link."""
    mine = (".out.12.partial", ".out.12-3.partial", ".out.13.old", ".out.vcd.14.partial.hier")
    others = (".out.x.partial", "out.12.partial", ".out.12.partials", ".outer.12.partial")
    for name in (*mine, *others):
        put(tmp_path / name, a="1")
    (tmp_path / ".out.15.partial").symlink_to(tmp_path)
    put(tmp_path / "out")
    said = [*tidy(tmp_path / "out"), *tidy(tmp_path / "out.vcd")]
    assert names(tmp_path) == sorted([*others, ".out.15.partial", "out"])
    assert [".out.12.partial" in line for line in said].count(True) == 1
    assert tidy_inside(tmp_path) == [
        f"{tmp_path / '.outer.12.partial'}: left by a command that was killed, and removed"
    ]
    assert tidy(tmp_path / "nowhere" / "out") == []


def test_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some file systems have none; then it is asked whether the process lives."""

    def none(descriptor: int, what: int) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", none)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    for process in (os.getpid(), gone.pid, 1 << 40):
        put(tmp_path / f".out.{process}.partial")
    tidy(tmp_path / "out")
    assert names(tmp_path) == sorted([f".out.{os.getpid()}.partial", f".out.{1 << 40}.partial"])
    with whole_file(tmp_path / "report") as file:
        file.write_text("whole")
    assert (tmp_path / "report").read_text() == "whole"


def test_removal(tmp_path: Path) -> None:
    remove_folder(put(tmp_path / "one", a="1"))
    assert names(tmp_path) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_signals_clean_up(tmp_path: Path, number: signal.Signals) -> None:
    default = "default_int_handler" if number is signal.SIGINT else "SIG_DFL"
    code = (
        "import os, signal, sys; from pathlib import Path\n"
        "from intaglio.backend.output.whole import whole_folder\n"
        "from intaglio.runtime.interrupts import stopping\n"
        # Whoever runs the tests in the background may ignore signals.
        f"signal.signal({int(number)}, signal.{default})\n"
        "place = Path(sys.argv[1])\n"
        "with stopping(), whole_folder(place, place) as folder:\n"
        f"    os.kill(os.getpid(), {int(number)})\n"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "out"], capture_output=True)
    assert done.returncode != 0 and names(tmp_path) == []


def test_a_file_takes_the_place_of_another(tmp_path: Path) -> None:
    path = tmp_path / "t.vcd"
    path.write_text("earlier")
    put(tmp_path / ".t.vcd.99999.partial.hier")
    with pytest.raises(ValueError), whole_file(path) as file:
        file.write_text("half")
        raise ValueError
    assert content(tmp_path) == {"t.vcd": "earlier"}
    check_writable(path)
    assert content(tmp_path) == {"t.vcd": "earlier"}
    with whole_file(path) as file:
        file.write_text("whole")
    assert content(tmp_path) == {"t.vcd": "whole"}


def full(path: Path) -> Iterator[Callable[[], object]]:
    """Ways to find out that a disk is full."""
    yield lambda: path.write_text("1" * 10)
    yield lambda: path.open("wb").write(bytes(1 << 20))

    def late() -> None:
        with path.open("w") as file:
            file.write("1")

    yield late


@pytest.mark.parametrize("way", range(3))
def test_a_full_disk_names_the_file(tmp_path: Path, way: int) -> None:
    out = tmp_path / "out"
    with pytest.raises(UserError) as caught, whole_or_nothing(out) as folder:
        put(folder / "rom")
        path = folder / "rom" / "matrices.bin"
        path.symlink_to("/dev/full")
        with naming(path):
            list(full(path))[way]()
    assert caught.value.file == str(out / "rom" / "matrices.bin")
    assert "No space left" in caught.value.what and names(tmp_path) == []


@pytest.mark.parametrize("name", ["a", "b", "c/out"])
def test_loops_of_links(tmp_path: Path, name: str) -> None:
    for one, other in (("a", "b"), ("b", "a"), ("c", "a")):
        (tmp_path / one).symlink_to(tmp_path / other)
    with pytest.raises(UserError), whole_or_nothing(tmp_path / name):
        raise AssertionError("is not reached")
