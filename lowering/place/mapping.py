"""The mapping file: the placement of matrices as JSON, written by a compile and read by another.

A person edits `pieces`: which rows lie on which tiles, over how many L-Units a row is split, and in
runs of how many words these are dealt it (`run`; left out where each has consecutive words).
Addresses (`at`) may be left out; they are then assigned in the file's order.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from collections.abc import Mapping as PyMapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from xdsl.dialects.builtin import ModuleOp, SymbolRefAttr

from intaglio.dialects import rom
from intaglio.dialects.constant_rom import PLAIN, Form
from intaglio.dialects.errors import UserError, meant
from intaglio.dialects.fabric import (
    ConstantOp,
    EngraveOp,
    ReserveOp,
    matrix_shape,
    memories,
    places,
)
from intaglio.dialects.h_units import KV
from intaglio.dialects.json_file import JSON, JSONFile, shown
from intaglio.dialects.machine import Machine
from intaglio.dialects.tiling import MatrixShape, Piece, misdealt

SCHEMA = 1
_KEYS = ("schema", "target", "tiles", "l_units", "memories", "matrices", "constants", "sram")
_MATRIX_KEYS = ("name", "key", "extra", "pieces")
_PIECE_KEYS = ("rows", "tiles", "split", "run", "at")
Fill = Callable[[int, int], tuple[int, int]]
"""First free addresses of a range of tiles: code words, scale words."""


@dataclass(frozen=True)
class Mapping:
    """What a mapping file says of matrices, by parameter name."""

    file: str
    pieces: dict[str, list[JSONFile]] = field(default_factory=dict[str, list[JSONFile]])

    def place(self, name: str, shape: MatrixShape, machine: Machine, fill: Fill) -> Iterator[Piece]:
        """The pieces of a matrix, checked against its shape and the chip.

        Raises:
            UserError: rows are left out or repeated, or tiles or L-Units do not exist.
        """
        row = 0
        for entry in self.pieces[name]:
            (first_row, last_row), (first, last) = entry["rows"].pair(), entry["tiles"].pair()
            split, stated = entry["split"].integer(), entry.get("at")
            if first_row != row or last_row <= first_row:
                raise self._wrong(name, f"has rows {first_row} to {last_row}, expected from {row}")
            if not 0 <= first < last <= machine.tiles:
                raise self._wrong(name, f"has tiles {first} to {last} of {machine.tiles}")
            if not 1 <= split <= machine.l_units:
                raise self._wrong(name, f"has split {split}, a tile has {machine.l_units} L-Units")
            base, scale_base = fill(first, last - first)
            if stated is not None:
                at = stated.pair()
                if at[0] < base or at[1] < scale_base:
                    raise self._wrong(
                        name,
                        f"lies at {at[0]}, {at[1]}, where other matrices reach to {base}, "
                        f"{scale_base}",
                    )
                base, scale_base = at
            run = _run_of(entry)
            piece = Piece(row, last_row - row, first, last - first, split, base, scale_base, run)
            if (reason := misdealt(piece, shape, machine)) is not None:
                raise self._wrong(name, reason)
            yield piece
            row = last_row
        if row != shape.rows:
            raise self._wrong(name, f"ends at row {row} of {shape.rows}")

    def check_names(self, known: Collection[str]) -> None:
        """Whether every matrix that is placed exists.

        Raises:
            UserError: names those that do not, and what the first is like.
        """
        if unknown := sorted(set(self.pieces) - set(known)):
            raise UserError(
                f"the mapping places {', '.join(unknown)}, which the model does not have",
                file=self.file,
                hint=f"{meant(unknown[0], known)}names are those of mapping.json in the output "
                "folder",
            )

    def check_rounds(
        self, module: ModuleOp, machine: Machine, placed: PyMapping[str, Sequence[Piece]]
    ) -> None:
        """Whether matrices that one instruction of a layer multiplies with take rows alike.

        Args:
            module: with the layers.
            machine: the chip.
            placed: the pieces of all matrices.

        Raises:
            UserError: names the first that does not, and one that is dealt otherwise.
        """
        shapes = {
            op.sym_name.data: matrix_shape(op.type)
            for op in module.ops
            if isinstance(op, rom.ParameterOp) and isinstance(op.type, rom.ROMTensorType)
        }
        for names in _bound(module):
            dealt: dict[tuple[int, int], str] = {}
            for name in (one for one in names if one in placed):
                for piece in placed[name]:
                    rounds = piece.rounds(shapes[name], machine), piece.round_columns(machine)
                    dealt.setdefault(rounds, name)
            if len(dealt) < 2:
                continue
            (one, _), (other, columns), *_ = ((n, c) for (_, c), n in dealt.items())
            taken = f"{columns} columns at a time" if columns else "rows at once"
            raise self._wrong(
                other,
                f"takes {taken}, unlike those of {one}; a layer has one instruction for both",
                "give all of them the same 'run' and 'split'",
            )

    def _wrong(self, name: str, what: str, hint: str | None = None) -> UserError:
        return UserError(
            f"a piece of {name} {what}",
            file=self.file,
            hint=hint
            or "docs/output.md says what a piece states; without the matrix here the "
            "compiler places it",
        )


def _bound(module: ModuleOp) -> Iterator[Sequence[str]]:
    """For each slot of a layer the buffers that it is bound to, in order."""
    for op in module.walk():
        if not isinstance(op, rom.RepeatOp):
            continue
        instances = [one.data for one in op.instances]
        for slot in instances[0] if instances else ():
            bound = [one[slot] for one in instances]
            yield [one.root_reference.data for one in bound if isinstance(one, SymbolRefAttr)]


def read_mapping(path: str, machine: Machine) -> Mapping:
    """Reads a mapping file.

    Raises:
        UserError: the file is missing, no JSON, of another schema, made for another chip, or says
            something that no mapping file says.
    """
    content = JSONFile.read(Path(path))
    check_mapping(content)
    _check_machine(content, machine)
    pieces: dict[str, list[JSONFile]] = {}
    for one in content["matrices"].list():
        if (name := one["name"].text()) in pieces:
            raise UserError(f"the mapping places {name} twice", file=path)
        pieces[name] = one["pieces"].list()
    return Mapping(path, pieces)


def check_mapping(content: JSONFile, *, whole: bool = False) -> None:
    """Whether a file is a mapping.

    Args:
        content: of the file.
        whole: nothing may be left out, as in what a compile writes.

    Raises:
        UserError: names the key that is missing, unknown or of another type.
    """
    if (schema := content["schema"].value) != SCHEMA:
        raise content.error(f"schema {shown(schema)}, expected {SCHEMA}")
    _check_keys(content)
    for one in content["matrices"].list():
        one["name"].text()
        if (extra := one.get("extra")) is not None:
            extra.boolean()
        for piece in one["pieces"].list():
            for key in ("rows", "tiles", *(("at",) if whole else ())):
                piece[key].pair()
            piece["split"].integer()
            _ = _run_of(piece)
            if (at := piece.get("at")) is not None:
                at.pair()
    for one in content["constants"].list() if whole else ():
        one["name"].text()
        one["row"].count()
    for name in content["memories"].names() if whole else ():
        for key in ("rows", "lanes", "bits", "units"):
            content["memories"][name][key].count(1)
    for one in content["sram"].list() if whole else ():
        for key in ("name", "memory"):
            one[key].text()
        for key in ("row", "scale"):
            one[key].count()


def _check_keys(content: JSONFile) -> None:
    """Refuses keys that mean nothing: what was written there would be ignored.

    Raises:
        UserError: names the key, where it stands and the key that it is like.
    """
    levels: list[tuple[str, JSONFile, tuple[str, ...]]] = [("the mapping", content, _KEYS)]
    for one in content["matrices"].list():
        name = one["name"].text()
        levels.append((f"matrix {name}", one, _MATRIX_KEYS))
        levels += [(f"a piece of {name}", piece, _PIECE_KEYS) for piece in one["pieces"].list()]
    for where, level, known in levels:
        for key in level.names():
            if key not in known:
                raise UserError(
                    f"{where} has an unknown key '{key}'",
                    file=content.file,
                    hint=f"{meant(key, known)}keys: {', '.join(known)}",
                )


def _check_machine(content: JSONFile, machine: Machine) -> None:
    """Refuses a mapping for another chip.

    Raises:
        UserError: says which chip it was made for.
    """
    for key, value in (
        ("target", machine.name),
        ("tiles", machine.tiles),
        ("l_units", machine.l_units),
    ):
        if key in content.names() and (stated := content[key].value) != value:
            raise UserError(
                f"the mapping is for another chip: {key} is {stated}, here it is {value}",
                file=content.file,
                hint="take mapping.json of a compile for this target with these settings, or "
                f"leave out '{key}' where the pieces are meant for both",
            )


def engraved(module: ModuleOp) -> list[str]:
    """Names of the matrices that were placed."""
    places_ = (place for place in places(module) if isinstance(place, EngraveOp))
    return [place.buffer.root_reference.data for place in places_]


def mapping_of(module: ModuleOp, machine: Machine) -> dict[str, JSON]:
    """The placement of a module as the content of a mapping file."""
    keys = {op.sym_name.data: op.source for op in module.ops if isinstance(op, rom.ParameterOp)}
    matrices: list[JSON] = []
    constants: list[JSON] = []
    sram: list[JSON] = []
    for place in places(module):
        name = place.buffer.root_reference.data
        match place:
            case EngraveOp():
                pieces = [piece_content(attr.piece) for attr in place.pieces]
                extra: dict[str, JSON] = {} if place.extra is None else {"extra": True}
                matrices.append({"name": name, "key": keys[name], **extra, "pieces": pieces})
            case ConstantOp():
                form = form_content(place.content)
                constants.append({"name": name, "row": place.first_row, **form})
            case ReserveOp():
                rows = {"row": place.first_row, "scale": place.first_scale}
                if KV in place.claims(machine):
                    rows |= {"external": place.first_external} if place.external else {}
                else:
                    rows["unit"] = place.first_unit
                memory = place.memory.root_reference.data
                sram.append({"name": name, "memory": memory, **rows})
    return {
        "schema": SCHEMA,
        "target": machine.name,
        "tiles": machine.tiles,
        "l_units": machine.l_units,
        "memories": {name: asdict(one) for name, one in memories(module).items()},
        "matrices": matrices,
        "constants": constants,
        "sram": sram,
    }


_NAMED = 4
"""How many matrices that a mapping leaves out are named."""


def left_out_warnings(path: str, names: Sequence[str], machine: Machine) -> list[str]:
    """Says which matrices a mapping file leaves to the compiler, if any.

    Args:
        path: the file that was followed.
        names: of the matrices that were placed.
        machine: the chip.
    """
    given = read_mapping(path, machine).pieces
    if not (left := [name for name in names if name not in given]):
        return []
    more = f" and {len(left) - _NAMED} more" if len(left) > _NAMED else ""
    what = f"{path} leaves out {', '.join(left[:_NAMED])}{more} of {len(names)} matrices"
    return [f"{what}: the compiler places what a mapping leaves out"]


def piece_of(content: JSONFile) -> Piece:
    """The inverse of `piece_content`."""
    (first_row, last_row), (first_tile, last_tile) = content["rows"].pair(), content["tiles"].pair()
    rows, tiles = last_row - first_row, last_tile - first_tile
    run = _run_of(content)
    split, at = content["split"].integer(), content["at"].pair()
    return Piece(first_row, rows, first_tile, tiles, split, *at, run)


def _run_of(piece: JSONFile) -> int:
    """The run that a piece states; 0: none."""
    return piece["run"].count(1) if "run" in piece.names() else 0


def form_content(form: Form) -> dict[str, JSON]:
    """The form of a constant as JSON; nothing of it where it is plain."""
    found: dict[str, JSON] = {} if form.kind == PLAIN else {"form": form.kind}
    found |= {"period": form.period} if form.period else {}
    return found | ({"negated": True} if form.negated else {})


def piece_content(piece: Piece) -> dict[str, JSON]:
    """A piece as JSON."""
    return {
        "rows": [piece.first_row, piece.first_row + piece.rows],
        "tiles": [piece.first_tile, piece.first_tile + piece.tiles],
        "split": piece.split,
        **({"run": piece.run} if piece.run else {}),
        "at": [piece.base, piece.scale_base],
    }
