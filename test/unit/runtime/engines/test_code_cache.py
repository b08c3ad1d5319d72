"""The cache of compiled code: private, each entry as it was written, bounded."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from intaglio.runtime.engines import code_cache
from intaglio.runtime.engines.code_cache import SUMS, kept


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    code_cache._is_private.cache_clear()
    yield tmp_path / "intaglio"
    code_cache._is_private.cache_clear()


class Maker:
    """Counts how often an entry is made."""

    def __init__(self, text: str = "code") -> None:
        self.made = 0
        self.text = text

    def __call__(self, folder: Path) -> None:
        self.made += 1
        (folder / "a.o").write_text(self.text)


def test_an_entry_is_made_once_and_private(root: Path) -> None:
    make = Maker()
    for _ in range(3):
        assert (kept("arc", "k", make) / "a.o").read_text() == "code"
    assert make.made == 1
    for folder in (root, root / "arc"):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


@pytest.mark.parametrize("how", ["bytes", "missing", "more", "sums", "json", "link", "file", "key"])
def test_damaged_entries_are_built_again(
    root: Path, how: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make = Maker()
    place = kept("hw", "k", make)
    match how:
        case "bytes":
            (place / "a.o").write_text("evil")
        case "missing":
            (place / "a.o").unlink()
        case "more":
            (place / "b.o").write_text("evil")
        case "sums":
            (place / SUMS).unlink()
        case "json":
            (place / SUMS).write_text("[" * 100_000)
        case "link":
            (place / "a.o").rename(tmp_path / "a.o")
            (place / "a.o").symlink_to(tmp_path / "a.o")
        case "file":
            place.rename(tmp_path / "moved")
            place.write_text("evil")
        case _:
            # Whole, but of something else.
            place.rename(place.with_name("other"))
            place = place.with_name("other")
    capsys.readouterr()
    place = kept("hw", place.name, make)
    assert make.made == 2 and (place / "a.o").read_text() == "code"
    assert not (place / "a.o").is_symlink() and not (place / "b.o").exists()
    assert f"{place} is damaged, or was not written by this user" in capsys.readouterr().err
    kept("hw", place.name, make)
    assert make.made == 2


def test_entries_of_others_are_built_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make = Maker()
    kept("arc", "k", make)
    real = os.geteuid()
    # The folder above is known to be the user's.
    monkeypatch.setattr(code_cache.os, "geteuid", lambda: real + 1)
    kept("arc", "k", make)
    assert make.made == 2 and "not written by this user" in capsys.readouterr().err


@pytest.mark.parametrize("how", ["open", "link"])
def test_a_cache_that_others_can_write_is_not_used(
    root: Path, how: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if how == "open":
        root.mkdir()
        root.chmod(0o777)
    else:
        (tmp_path / "theirs").mkdir()
        root.symlink_to(tmp_path / "theirs")
    make = Maker()
    for _ in range(2):
        assert (kept("arc", "k", make) / "a.o").read_text() == "code"
    assert make.made == 2 and not list(root.iterdir())
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"note: {root} ") and line.endswith("compiled code is not kept")


def test_the_oldest_go(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code_cache, "LIMIT", 3500)
    make = Maker("x" * 1000)
    for number in range(3):
        place = kept("arc", f"k{number}", make)
        os.utime(place, ns=(number, number))
    (root / "arc" / "old.so").write_text("of an earlier version")
    kept("hw", "k3", make)
    assert {path.name for path in (root / "arc").iterdir()} == {"k1", "k2"}


def test_without_the_cache_nothing_is_kept(root: Path) -> None:
    make = Maker()
    assert (kept("arc", "k", make, cache=False) / "a.o").exists()
    assert not root.exists()
