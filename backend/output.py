"""The output folder: written beside its place and moved there whole, or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from intaglio.dialects.errors import UserError

MANIFEST = "manifest.json"
TIMINGS = "timings.json"
REFERENCE = "reference"


@contextmanager
def whole_or_nothing(out: Path) -> Iterator[Path]:
    """A folder to write into, which becomes `out` when nothing is raised.

    Raises:
        UserError: `out` exists and is no output of Intaglio.
    """
    if out.exists() and not is_output(out) and (not out.is_dir() or any(out.iterdir())):
        raise UserError(
            "this exists and is no output of intaglio",
            file=str(out),
            hint="choose another folder for -o, or remove it",
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.parent / f".{out.name}.{os.getpid()}.partial"
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir()
    try:
        yield partial
        if out.exists():
            shutil.rmtree(out)
        partial.rename(out)
    finally:
        if partial.exists():
            shutil.rmtree(partial)


def is_output(folder: Path) -> bool:
    """Whether a folder holds a compiled model."""
    return (folder / MANIFEST).is_file()


def write_json(path: Path, content: Any) -> None:
    """Writes JSON in one fixed form."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")


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
