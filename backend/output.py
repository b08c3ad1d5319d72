"""The output folder: written beside its place and moved there whole, or not at all."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from intaglio.backend.hardware_files import is_hardware_file
from intaglio.dialects.errors import UserError

MANIFEST = "manifest.json"
TIMINGS = "timings.json"
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
def whole_or_nothing(out: Path) -> Iterator[Path]:
    """A folder to write into, which becomes `out` when nothing is raised.

    Raises:
        UserError: `out` holds what Intaglio did not write, or cannot be written.
    """
    check_replaceable(out)
    place = out.resolve()
    partial = _beside(place, "partial")
    # What a killed process of this number left.
    shutil.rmtree(partial, ignore_errors=True)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        partial.mkdir()
    except OSError as error:
        raise UserError(
            f"no folder can be made here: {_reason(place, error)}",
            file=str(out),
            hint="choose another folder for -o",
        ) from error
    try:
        with _speaking_of(out, partial):
            yield partial
        check_replaceable(out)
        _replace(partial, place)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A file to write, which becomes `path` when nothing is raised; a device is written as it is.

    Raises:
        UserError: `path` cannot be written.
    """
    if path.is_dir():
        raise UserError("is a folder, not a file", file=str(path))
    if path.exists() and not path.is_file():
        yield path
        return
    partial = _beside(path, "partial")
    try:
        partial.touch()
    except OSError as error:
        raise UserError(f"cannot be written: {_reason(path, error)}", file=str(path)) from error
    try:
        with _speaking_of(path, partial):
            yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _beside(path: Path, role: str) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.{role}")


def _reason(path: Path, error: OSError) -> str:
    """Why nothing can be made at a path."""
    nearest = next(parent for parent in path.parents if parent.exists())
    return f"{nearest} is no folder" if not nearest.is_dir() else str(error.strerror or error)


@contextmanager
def _speaking_of(path: Path, partial: Path) -> Iterator[None]:
    """Errors of writing `partial` name what it was to become."""
    try:
        yield
    except OSError as error:
        name = error.filename or (partial if error.errno == errno.ENOSPC else "")
        inside = Path(os.fsdecode(name))
        if not inside.is_relative_to(partial):
            raise
        file = path / inside.relative_to(partial)
        raise UserError(f"cannot be written: {error.strerror}", file=str(file)) from error


def _replace(new: Path, place: Path) -> None:
    """Moves a folder to its place; what was there goes away only then."""
    if not place.exists():
        new.rename(place)
        return
    old = _beside(place, "old")
    place.rename(old)
    try:
        new.rename(place)
    except OSError:
        old.rename(place)
        raise
    shutil.rmtree(old)


def check_replaceable(out: Path) -> None:
    """Whether a folder can be replaced by a compile: it holds nothing but an earlier one.

    Raises:
        UserError: it holds files that Intaglio did not write.
    """
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
    return {MANIFEST, TIMINGS, *manifest["inputs"], *manifest["outputs"]}


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of an output folder.

    Raises:
        UserError: the folder is no output of a compile.
    """
    try:
        content = dict(json.loads((folder / MANIFEST).read_text()))
        files = content["inputs"], content["outputs"]
        if all(isinstance(one, dict) for one in files) and isinstance(content["model"], str):
            return content
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise UserError("this is no output of intaglio compile", file=str(folder))


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


def json_text(content: Any) -> str:
    """JSON in one fixed form."""
    return json.dumps(content, indent=1) + "\n"


def write_json(path: Path, content: Any) -> None:
    """Writes JSON in its fixed form."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json_text(content))


def copy(source: Path, target: Path) -> None:
    """Copies a file's content.

    A hard link would be cheaper, but `onnx.load` refuses external data with more than one link, so
    a compile would break the user's own model.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
