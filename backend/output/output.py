"""The output folder: written beside its place and moved there whole, or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from intaglio.backend.output.hardware_files import is_hardware_file
from intaglio.backend.output.whole import naming, tidy, tidy_inside, whole_folder, write_text
from intaglio.dialects.errors import UserError
from intaglio.dialects.json_file import JSON, JSONFile

MANIFEST = "manifest.json"
TIMINGS = "timings.json"
MAPPING = "mapping.json"
REFERENCE = "reference"
ADAPTERS = "adapters"
"""Of adapters, a folder each."""
ADAPTER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""A leading dot is no name of one, so that half a folder is never taken for an adapter."""
ADAPTER_DESCRIPTION = "adapter.json"
ADAPTER_BYTES = "adapter.bin"
ADAPTER_FLOATS = "adapter.onnx_adapter"

_ADAPTER_FILES = (ADAPTER_DESCRIPTION, ADAPTER_BYTES, ADAPTER_FLOATS)
_NAMED = 4
"""How many of some names an error gives."""


@contextmanager
def whole_or_nothing(out: Path) -> Generator[Path]:
    """A folder to write into, which becomes `out` when nothing is raised.

    Raises:
        UserError: `out` holds what Intaglio did not write, or cannot be written.
    """
    check_replaceable(out)
    place = _resolved(out)
    with whole_folder(place, out, lambda: check_replaceable(out), _ELSEWHERE) as folder:
        yield folder


def tidy_output(out: Path) -> list[str]:
    """Clears away what killed commands left of an output folder, in it and beside it.

    Returns:
        What was found and what was done with it, a line each.
    """
    try:
        place = _resolved(out)
    except UserError:
        return []
    said = tidy(place)
    folder = place / ADAPTERS
    if folder.is_dir() and not folder.is_symlink():
        said += tidy_inside(folder)
        remove_if_empty(folder)
    return said


def remove_if_empty(folder: Path) -> None:
    """Removes a folder in which nothing is."""
    with suppress(OSError):
        folder.rmdir()


def _resolved(out: Path) -> Path:
    """Where a folder is, links followed."""
    try:
        return out.resolve()
    except (OSError, RuntimeError) as error:
        raise UserError("is a link that leads nowhere", file=str(out), hint=_ELSEWHERE) from error


def check_replaceable(out: Path) -> None:
    """Whether a folder can be replaced by a compile: it holds nothing but an earlier one.

    Raises:
        UserError: it holds files that Intaglio did not write.
    """
    _resolved(out)
    if not out.exists():
        return
    if not out.is_dir():
        raise UserError("this exists and is no output of intaglio", file=str(out), hint=_ELSEWHERE)
    known = _written(out)
    if known is None:
        if found := sorted(path.name for path in out.iterdir()):
            raise UserError(
                f"this exists and is no output of intaglio: it holds {some_of(found)}",
                file=str(out),
                hint=_ELSEWHERE,
            )
        return
    names = (
        path.relative_to(out).as_posix()
        for path in out.rglob("*")
        if path.is_symlink() or not path.is_dir()
    )
    if foreign := sorted(name for name in names if name not in known and not _is_later(name)):
        raise UserError(
            f"a compile replaces this folder, and it holds what intaglio did not write: "
            f"{some_of(foreign)}",
            file=str(out),
            hint=f"move that elsewhere, or {_ELSEWHERE}",
        )


_ELSEWHERE = "choose another folder for -o"


def some_of(names: Sequence[str]) -> str:
    """The first few of some names, and how many more there are."""
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def _written(folder: Path) -> set[str] | None:
    """Names of the files that a compile wrote into a folder; None when none did."""
    try:
        manifest = read_manifest(folder)
    except UserError:
        return None
    return {MANIFEST, TIMINGS, *manifest["inputs"].names(), *manifest["outputs"].names()}


def read_manifest(folder: Path) -> JSONFile:
    """The manifest of an output folder.

    Raises:
        UserError: the folder is no output of a compile, or its manifest is damaged: says at which
            key.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise UserError("this is no output of intaglio compile", file=str(folder))
    content = JSONFile.read(path, "compile the model again")
    if not {"inputs", "outputs"} <= set(content.names()):
        raise UserError("this is no output of intaglio compile", file=str(folder))
    for part in ("inputs", "outputs"):
        for name, digest in content[part].items():
            digest.text()
            inside(folder, name, MANIFEST)
    inside(folder, content["model"].text(), MANIFEST)
    for key, check in _OPTIONAL.items():
        if (one := content.get(key)) is not None:
            check(one)
    return content


_OPTIONAL: dict[str, Callable[[JSONFile], object]] = {
    "target": JSONFile.text,
    "adapter_graph": JSONFile.text,
    "settings": JSONFile.texts,
    "rounding": lambda one: [each.number() for each in one["tensors"].values()],
    "zeros": JSONFile.items,
    "adapter_sites": lambda one: [
        each[key].count() for each in one.list() for key in ("rows", "columns", "sites")
    ],
    "reference": JSONFile.boolean,
}
"""Keys of a manifest that reports read."""


def inside(folder: Path, name: str, said_by: str) -> Path:
    """The file of a name that a file of an output folder states.

    Args:
        folder: the output folder.
        name: relative to it, with slashes.
        said_by: the file that states it.

    Raises:
        UserError: the name is absolute, leads out of the folder, or its file is a link out of it.
    """
    parts = name.split("/")
    if any(part in ("", ".", "..") for part in parts) or "\0" in name or "\\" in name:
        what = f"names the file '{name}', which is not inside the output folder"
    else:
        path = folder / name
        if Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
            return path
        what = f"names the file '{name}', which is a link out of the output folder"
    raise UserError(what, file=str(folder / said_by), hint="compile the model again")


def _is_later(name: str) -> bool:
    """Whether a file is one that Intaglio writes after the compile: adapters, hardware."""
    parts = name.split("/")
    of_adapter = len(parts) == 3 and parts[0] == ADAPTERS and parts[2] in _ADAPTER_FILES
    return of_adapter or is_hardware_file(name)


def adapters_in(out: Path) -> list[str]:
    """Names of the adapters that were added to an output folder, sorted."""
    folder = out / ADAPTERS
    if not folder.is_dir():
        return []
    names = (path.name for path in folder.iterdir() if path.is_dir())
    return sorted(name for name in names if ADAPTER_NAME.fullmatch(name))


def json_text(content: JSON) -> str:
    """JSON in one fixed form."""
    return json.dumps(content, indent=1) + "\n"


def write_json(path: Path, content: JSON) -> None:
    """Writes JSON in its fixed form."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json_text(content))


def copy(source: Path, target: Path) -> None:
    """Copies a file's content; a file system that can share the bytes of two files does.

    A hard link would be as cheap, but `onnx.load` refuses external data with more than one link, so
    a compile would break the user's own model.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with naming(target):
        if not _cloned(source, target):
            shutil.copyfile(source, target)


_FICLONE = 0x40049409
"""Linux: the file at hand gets the bytes of another, shared until one of them is written."""


def _cloned(source: Path, target: Path) -> bool:
    """Makes a reflink (Btrfs, XFS and others), or says that there is none here."""
    if not sys.platform.startswith("linux"):
        return False
    import fcntl

    with source.open("rb") as old, target.open("wb") as new:
        try:
            fcntl.ioctl(new.fileno(), _FICLONE, old.fileno())
        except OSError:
            return False
    return True


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
