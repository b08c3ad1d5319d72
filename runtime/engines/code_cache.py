"""Compiled code that is kept between runs: hardware as texts, objects and libraries.

An entry is a folder with the files that were made and their SHA-256. It is used only if the folder
is the user's alone and every file is as it was written; another one is built again, and that is
said. Where the cache cannot be used, code is made for this process alone. The entries together have
a bound; those whose use is longest ago go.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path

from intaglio.backend.output.output import sha256_of
from intaglio.backend.output.private_folder import CACHE, NotPrivate, private_folder, user_folder
from intaglio.backend.output.whole import tidy_inside, whole_folder
from intaglio.dialects.errors import printable

LIMIT = 4 << 30
"""Bytes of all entries together."""
SUMS = "sums.json"
_FOLDERS = ("arc", "hw", "verilator")

Make = Callable[[Path], None]


def kept(kind: str, key: str, make: Make, cache: bool = True) -> Path:
    """The folder of an entry, found or made.

    Args:
        kind: one of `arc`, `hw` and `verilator`.
        key: says all that the entry was made of.
        make: writes its files into an empty folder.
        cache: look for it on disk, and leave it there.
    """
    folder = _usable(kind) if cache else None
    if folder is None:
        place = Path(tempfile.mkdtemp(dir=_scratch().name))
        make(place)
        return place
    place = folder / key
    if os.path.lexists(place):
        if _is_sound(place, key):
            with suppress(OSError):
                os.utime(place)
            return place
        _say(f"{place} is damaged, or was not written by this user; it is built again")
        _remove(place)
    tidy_inside(folder)
    with whole_folder(place, place) as partial:
        make(partial)
        sums = {path.name: sha256_of(path) for path in sorted(partial.iterdir())}
        (partial / SUMS).write_text(json.dumps({"key": key, "files": sums}))
    _forget_oldest(folder.parent, place)
    return place


def _usable(kind: str) -> Path | None:
    """The folder of a kind of entries, if it is the user's alone."""
    try:
        root = user_folder(CACHE)
    except NotPrivate as error:
        _say(f"the cache of compiled code {error}; nothing is kept")
        return None
    return root / kind if _is_private(root) and _is_private(root / kind) else None


@cache
def _is_private(path: Path) -> bool:
    """Whether a folder is the user's alone; says why not, once."""
    try:
        private_folder(path)
    except NotPrivate as error:
        _say(f"{path} {error}; compiled code is not kept")
        return False
    return True


@cache
def _scratch() -> tempfile.TemporaryDirectory[str]:
    """A folder that goes with this process."""
    return tempfile.TemporaryDirectory(prefix="intaglio-")


def _is_sound(place: Path, key: str) -> bool:
    """Whether an entry is the user's, whole and as it was written."""
    try:
        if not _is_own(place, stat.S_ISDIR):
            return False
        files = {path.name: path for path in place.iterdir()}
        if not all(_is_own(path, stat.S_ISREG) for path in files.values()):
            return False
        content = json.loads(files.pop(SUMS).read_text())
        return content == {
            "key": key,
            "files": {name: sha256_of(path) for name, path in sorted(files.items())},
        }
    except (OSError, ValueError, KeyError, RecursionError):
        return False


def _is_own(path: Path, is_kind: Callable[[int], bool]) -> bool:
    found = path.lstat()
    return is_kind(found.st_mode) and found.st_uid == os.geteuid()


def _forget_oldest(root: Path, newest: Path) -> None:
    """Removes entries, the one used longest ago first, until all are within the bound."""
    found: list[tuple[int, int, Path]] = []
    with suppress(OSError):
        for kind in _FOLDERS:
            for path in (root / kind).iterdir() if (root / kind).is_dir() else ():
                if path.name.startswith("."):
                    continue
                if not path.is_dir() or not (path / SUMS).exists():
                    # Of an earlier version, which kept files without sums.
                    _remove(path)
                    continue
                size = sum(one.stat().st_size for one in path.iterdir())
                found.append((path.stat().st_mtime_ns, size, path))
    total = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if total <= LIMIT:
            break
        if path != newest:
            _remove(path)
            total -= size


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _say(text: str) -> None:
    with suppress(OSError, AttributeError):
        sys.stderr.write(f"note: {printable(text)}\n")
