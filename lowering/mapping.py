"""The mapping file: the placement of matrices as JSON, written by a compile and read by another.

A person edits `pieces`: which rows lie on which tiles, and over how many L-Units a row is split.
Addresses (`at`) may be left out; they are then assigned in the file's order.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xdsl.dialects.builtin import ModuleOp

from intaglio.dialects import rom
from intaglio.dialects.errors import UserError
from intaglio.dialects.fabric import ConstantOp, EngraveOp, ReserveOp, places
from intaglio.dialects.machine import Machine
from intaglio.dialects.tiling import MatrixShape, Piece

SCHEMA = 1
Fill = Callable[[int, int], tuple[int, int]]
"""First free addresses of a range of tiles: code words, scale words."""


@dataclass(frozen=True)
class Mapping:
    """What a mapping file says of matrices, by parameter name."""

    file: str
    pieces: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def place(self, name: str, shape: MatrixShape, machine: Machine, fill: Fill) -> Iterator[Piece]:
        """The pieces of a matrix, checked against its shape and the chip.

        Raises:
            UserError: rows are left out or repeated, or tiles or L-Units do not exist.
        """
        row = 0
        for entry in self.pieces[name]:
            try:
                first_row, last_row = map(int, entry["rows"])
                first, last = map(int, entry["tiles"])
                split = int(entry["split"])
                at = None if entry.get("at") is None else tuple(map(int, entry["at"]))
            except (KeyError, TypeError, ValueError) as error:
                raise self._wrong(
                    name, "needs rows [from, to], tiles [from, to] and split"
                ) from error
            if at is not None and len(at) != 2:
                raise self._wrong(name, "needs two addresses in `at`: of codes and of scales")
            if first_row != row or last_row <= first_row:
                raise self._wrong(name, f"has rows {first_row} to {last_row}, expected from {row}")
            if not 0 <= first < last <= machine.tiles:
                raise self._wrong(name, f"has tiles {first} to {last} of {machine.tiles}")
            if not 1 <= split <= machine.l_units:
                raise self._wrong(name, f"has split {split}, a tile has {machine.l_units} L-Units")
            base, scale_base = fill(first, last - first)
            if at is not None:
                if at[0] < base or at[1] < scale_base:
                    raise self._wrong(
                        name,
                        f"lies at {at[0]}, {at[1]}, where other matrices reach to {base}, "
                        f"{scale_base}",
                    )
                base, scale_base = at
            yield Piece(row, last_row - row, first, last - first, split, base, scale_base)
            row = last_row
        if row != shape.rows:
            raise self._wrong(name, f"ends at row {row} of {shape.rows}")

    def _wrong(self, name: str, what: str) -> UserError:
        return UserError(f"a piece of {name} {what}", file=self.file)


def read_mapping(path: str) -> Mapping:
    """Reads a mapping file.

    Raises:
        UserError: the file is missing, no JSON, or of another schema.
    """
    try:
        content = json.loads(Path(path).read_text())
        if content["schema"] != SCHEMA:
            raise UserError(f"schema {content['schema']}, expected {SCHEMA}", file=path)
        matrices = content["matrices"]
        return Mapping(path, {one["name"]: one["pieces"] for one in matrices})
    except OSError as error:
        raise UserError(f"cannot read the mapping: {error.strerror}", file=path) from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"this is no mapping file: {error}", file=path) from error


def mapping_of(module: ModuleOp, machine: Machine) -> dict[str, Any]:
    """The placement of a module as the content of a mapping file."""
    keys = {op.sym_name.data: op.key.data for op in module.ops if isinstance(op, rom.ParameterOp)}
    matrices: list[dict[str, Any]] = []
    constants: list[dict[str, Any]] = []
    sram: list[dict[str, Any]] = []
    for place in places(module):
        name = place.buffer.root_reference.data
        match place:
            case EngraveOp():
                pieces = [piece_content(attr.piece) for attr in place.pieces]
                extra = {} if place.extra is None else {"extra": True}
                matrices.append({"name": name, "key": keys[name], **extra, "pieces": pieces})
            case ConstantOp():
                constants.append({"name": name, "address": place.address.value.data})
            case ReserveOp():
                sram.append(
                    {
                        "name": name,
                        **({"unit": place.first_unit} if place.first_unit else {}),
                        "address": place.address.value.data,
                        "size": place.size.value.data,
                    }
                )
    return {
        "schema": SCHEMA,
        "target": machine.name,
        "tiles": machine.tiles,
        "l_units": machine.l_units,
        "matrices": matrices,
        "constants": constants,
        "sram": sram,
    }


def piece_content(piece: Piece) -> dict[str, Any]:
    """A piece as JSON."""
    return {
        "rows": [piece.first_row, piece.first_row + piece.rows],
        "tiles": [piece.first_tile, piece.first_tile + piece.tiles],
        "split": piece.split,
        "at": [piece.base, piece.scale_base],
    }
