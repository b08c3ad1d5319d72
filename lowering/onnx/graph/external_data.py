"""Files with weights beside a model: where they may lie, each mapped into memory once."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from intaglio.dialects.errors import UserError
from intaglio.lowering.onnx.graph.records import read_proto

if TYPE_CHECKING:
    import onnx_ir


_DIGITS = 18
"""Of an offset or length that a file can have."""


class _External(Protocol):
    """What an external tensor's entry says; the location's type is open in onnx_ir."""

    @property
    def name(self) -> str | None: ...
    @property
    def location(self) -> object: ...
    @property
    def offset(self) -> int | None: ...
    @property
    def length(self) -> int | None: ...
    @property
    def shape(self) -> onnx_ir.Shape: ...


class ExternalFiles:
    """External data files: checked once, mapped once."""

    def __init__(self, model: Path, allow_links: bool) -> None:
        self.model = model
        self.allow_links = allow_links
        self.mapped: dict[str, npt.NDArray[np.uint8]] = {}
        self.paths: dict[str, Path] = {}

    def bytes_of(self, tensor: _External, bits: int) -> npt.NDArray[np.uint8]:
        """The bytes of an external tensor, as a view of its file.

        Raises:
            UserError: a bad location, a missing or short file.
        """
        location = str(tensor.location)
        size = -(-math.prod(map(int, tensor.shape.numpy())) * bits // 8)
        if size == 0:
            return np.empty(0, np.uint8)
        data = self._map(location, str(tensor.name))
        offset = tensor.offset or 0
        length = size if tensor.length is None else tensor.length
        if offset < 0 or length < size:
            raise self._error(
                f"tensor '{tensor.name}' needs {size} bytes, its entry says "
                f"{length} bytes from {offset}",
                "export the model again",
            )
        if offset + size > data.size:
            raise self._error(
                f"tensor '{tensor.name}' needs bytes {offset} to {offset + size} of '{location}', "
                f"which has only {data.size}",
                f"'{location}' is not whole or belongs to another model; copy it again",
            )
        return data[offset : offset + size]

    def _map(self, location: str, tensor: str) -> npt.NDArray[np.uint8]:
        if location not in self.mapped:
            path = self._locate(location, tensor)
            if not path.is_file():
                raise self._error(
                    f"tensor '{tensor}' lies in '{location}', which does not exist",
                    f"put '{location}' beside {self.model.name}",
                )
            if path.stat().st_size == 0:
                self.mapped[location] = np.empty(0, np.uint8)
            else:
                try:
                    data = np.memmap(path, np.uint8, mode="r")
                except OSError as error:
                    raise self._error(
                        f"cannot read '{location}' of tensor '{tensor}': {error.strerror}", None
                    ) from error
                self.mapped[location] = data.view(np.ndarray)
            self.paths[location] = path
        return self.mapped[location]

    def _locate(self, location: str, tensor: str) -> Path:
        parts = location.replace("\\", "/").split("/")
        remedy = "external data must lie in the model's own folder: save the model again there"
        if not location or "\0" in location:
            raise self._error(f"tensor '{tensor}' has external data without a location", remedy)
        if Path(location).is_absolute() or location[0] in "/\\" or ":" in parts[0]:
            raise self._error(f"tensor '{tensor}' points to the absolute path '{location}'", remedy)
        if ".." in parts:
            raise self._error(f"tensor '{tensor}' points out of the folder: '{location}'", remedy)
        what = f"tensor '{tensor}' lies in '{location}'"
        return linked(self.model, location, self.allow_links, what)

    def _error(self, what: str, hint: str | None) -> UserError:
        return UserError(what, file=str(self.model), hint=hint)


def wrong_entry(model: Path) -> str | None:
    """What is wrong with the place of an external tensor, where it is no place at all.

    The libraries' own errors name neither tensor nor entry; this is asked when one was raised.
    """

    try:
        graph = read_proto(model).graph
    except Exception:  # the model may be damaged in any way
        return None
    inside = (a.t for node in graph.node for a in node.attribute if a.HasField("t"))
    for tensor in (*graph.initializer, *inside):
        for entry in tensor.external_data:
            if entry.key not in ("offset", "length"):
                continue
            if not (entry.value.isascii() and entry.value.isdecimal()):
                what = f"'{entry.value}', no number of bytes"
            elif len(entry.value) > _DIGITS:
                what = f"a number of {len(entry.value)} digits"
            else:
                continue
            return f"tensor '{tensor.name}' has external data whose {entry.key} is {what}"
    return None


def companion_file(model: Path, name: str, allow_links: bool) -> Path | None:
    """A file beside a model that goes with it, such as its tokenizer; None when there is none.

    Raises:
        UserError: it is a link that leaves the model's folder.
    """
    if not (model.parent / name).is_file():
        return None
    return linked(model, name, allow_links, f"its '{name}' is taken with it")


def linked(model: Path, location: str, allow_links: bool, what: str) -> Path:
    """A file beside a model, which may be a link that does not leave the folder.

    Args:
        model: the .onnx file.
        location: of the other file, relative to the model's folder.
        allow_links: follow links inside a model hub's cache.
        what: the beginning of an error: whose file it is.

    Raises:
        UserError: the file is a link that leads elsewhere.
    """
    folder = model.parent
    path = folder / location
    real = Path(os.path.realpath(path))
    if real.is_relative_to(os.path.realpath(folder)):
        return path
    if _in_hub_cache(path, real):
        if allow_links:
            return path
        raise UserError(
            f"{what}, a link into a model hub's cache",
            file=str(model),
            hint="allow such links explicitly (--allow-links), or copy the model without links",
        )
    raise UserError(
        f"{what}, a link that leaves the model's folder",
        file=str(model),
        hint="replace the link by the file itself",
    )


def _in_hub_cache(path: Path, real: Path) -> bool:
    """Whether `path` is REPO/snapshots/REVISION/... and `real` a file of REPO/blobs."""
    absolute = Path(os.path.abspath(path))  # noqa: PTH100 (resolve() would follow the link)
    for parent in absolute.parents:
        if parent.name == "snapshots":
            blobs = os.path.realpath(parent.parent / "blobs")
            return real.parent == Path(blobs)
    return False
