"""program.json as Python objects: what the simulator, the timing and the reports read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from intaglio.dialects import formula, gating, hazards, stated_cycles, timeline
from intaglio.dialects.clocks import At
from intaglio.dialects.codes import SLOT_BITS
from intaglio.dialects.errors import UserError
from intaglio.dialects.fixed_point import Real
from intaglio.dialects.machine import Machine
from intaglio.dialects.tiling import Piece

SCHEMA = 1
PROGRAM = "program.json"


@dataclass(frozen=True)
class Part:
    """Bytes of an image: a file of the output folder, first byte, size, SHA-256."""

    file: str
    offset: int
    size: int
    sha256: str


PARTS = ("codes", "scales", "zeros", "offsets")
"""Parts of a tensor in the images; no tensor has all of them."""


@dataclass(frozen=True)
class Parameter:
    """A tensor as the chip stores it; `pieces` say where in ROM, for those that are engraved."""

    name: str
    key: str
    store: str
    dims: tuple[int, ...]
    code: str
    bits: int
    group: int = 0
    exponent: int = 0
    zero: int | None = None
    codes: Part | None = None
    scales: Part | None = None
    zeros: Part | None = None
    offset_bits: int = 0
    """Width of a group's offset with its sign; 0: there are none."""
    offsets: Part | None = None
    pieces: tuple[Piece, ...] = ()
    unit: int = 0
    """The H-Unit of an adapter's row 0."""
    address: int | None = None
    """First byte of an adapter in the SRAM of its H-Units."""

    @property
    def parts(self) -> tuple[Part, ...]:
        """Where its bytes lie."""
        parts = (self.codes, self.scales, self.zeros, self.offsets)
        return tuple(part for part in parts if part is not None)

    @property
    def is_slot(self) -> bool:
        """Whether it is empty until an adapter is loaded: a matrix of a site."""
        return self.store == "rom.adapter" and self.code in SLOT_BITS and not self.group


@dataclass(frozen=True)
class Site:
    """A place for low-rank adapters, beside `rows` rows of a matrix from `first_row` on.

    Attributes:
        name: `layers.<i>.<role>`.
        a: the slot of A [rank, columns].
        b: the slot of B [rows, rank].
        rows: N.
        columns: K.
        rank: the largest.
        matrix: the engraved matrix.
        first_row: of the matrix.
        onnx: the nodes of the product with the matrix.
    """

    name: str
    a: str
    b: str
    rows: int
    columns: int
    rank: int
    matrix: str
    first_row: int
    onnx: Sequence[str]


@dataclass(frozen=True)
class Cache:
    """A key or value cache."""

    name: str
    capacity: int
    heads: int
    width: int
    format: str
    address: int
    """First byte in the SRAM of every H-Unit."""
    static_scale: Real | None = None
    static_inverse: Real | None = None


@dataclass(frozen=True)
class Buffer:
    """A place in the vector memory, in bytes, and the type of its value."""

    name: str
    address: int
    size: int
    type: Mapping[str, Any]


@dataclass(frozen=True)
class Instruction:
    """An instruction; `onnx`, `start` and `finish` have an entry for each instance."""

    opcode: str
    queue: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    uses: Mapping[str, str]
    arguments: Mapping[str, Any]
    onnx: Sequence[Sequence[str]]
    issue: timeline.Issue
    start: Sequence[int]
    finish: Sequence[int]


@dataclass(frozen=True)
class Block:
    """Instructions that run once for each instance; a sampled block only when a token is wanted."""

    name: str
    sampled: bool
    instances: Sequence[Mapping[str, str]]
    instructions: Sequence[Instruction]

    @property
    def timing(self) -> timeline.Block:
        """What the timeline needs of this block."""
        issues = [instruction.issue for instruction in self.instructions]
        return timeline.Block(self.name, issues, len(self.instances))


@dataclass(frozen=True)
class Program:
    """A compiled model: everything but the bytes of its images."""

    machine: Machine
    name: str
    vocabulary: int
    parameters: Mapping[str, Parameter]
    caches: Mapping[str, Cache]
    buffers: Mapping[str, Buffer]
    blocks: Sequence[Block]
    positions: Sequence[int]
    logits: str
    token: str
    domains: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Tensors of each power domain; what is in none is always on."""
    sites: Mapping[str, Site] = field(default_factory=dict)
    residents: int = 1
    """Adapters that the slots hold at once."""

    @property
    def capacity(self) -> int:
        """Tokens that the caches hold."""
        return min(cache.capacity for cache in self.caches.values())

    @cached_property
    def power_roles(self) -> Mapping[At, gating.Role]:
        """What the instruction instances do with power domains, of those that do."""
        return gating.roles_of(
            [[(one.opcode, one.queue, one.uses) for one in b.instructions] for b in self.blocks],
            [block.instances for block in self.blocks],
            {tensor: name for name, tensors in self.domains.items() for tensor in tensors},
        )

    @cached_property
    def slots(self) -> Mapping[str, tuple[Site, str]]:
        """For each slot its site, and `a` or `b`."""
        return {
            slot: (site, half)
            for site in self.sites.values()
            for half, slot in (("a", site.a), ("b", site.b))
        }


def real(value: Sequence[int]) -> Real:
    """A constant from its [mantissa, exponent]."""
    mantissa, exponent = value
    return Real(mantissa, exponent)


def load_program(out: str | Path) -> Program:
    """Reads the program of an output folder.

    Raises:
        UserError: the folder holds no compiled program, one of another version, or one that reads
            ROM that is switched off.
    """
    path = Path(out) / PROGRAM
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(
            "this folder holds no compiled program",
            file=str(out),
            hint="intaglio compile MODEL.onnx --target T -o OUT writes one",
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f"cannot be read: {error}", file=str(path)) from error
    if content.get("schema") != SCHEMA:
        raise UserError(
            f"has schema {content.get('schema')}, this version reads {SCHEMA}",
            file=str(path),
            hint="compile the model again",
        )
    try:
        program = program_of(content)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"is no program that this version understands: {error}",
            file=str(path),
            hint="compile the model again",
        ) from error
    _check_order(program, path)
    _check_power(program, path)
    _check_cycles(program, path)
    return program


class _Names:
    """How messages about program.json name an instruction instance."""

    def __init__(self, program: Program) -> None:
        self.program = program

    def __call__(self, at: At) -> str:
        block, instance, number = at
        one = self.program.blocks[block].instructions[number]
        return (
            f"'{one.opcode}' (instruction {number} of block {self.program.blocks[block].name}, "
            f"instance {instance}, queue {one.queue})"
        )

    def node(self, at: At) -> str:
        """The ONNX node that it stands for."""
        block, instance, number = at
        onnx = self.program.blocks[block].instructions[number].onnx
        return onnx[min(instance, len(onnx) - 1)][-1]


def _check_order(program: Program, path: Path) -> None:
    """Refuses a program whose waits do not order its reads and writes.

    The compiler's own passes cannot write one, but program.json can be edited.
    """
    race = hazards.first_race(
        [block.timing for block in program.blocks],
        [
            [hazards.Access.of(i.opcode, i.reads, i.writes, i.uses) for i in block.instructions]
            for block in program.blocks
        ],
        [block.instances for block in program.blocks],
        {one.name: (one.address, one.address + one.size) for one in program.buffers.values()},
        sampled=[block.sampled for block in program.blocks],
        shared_adders=bool(program.machine.shared_arrays),
    )
    if race is not None:
        names = _Names(program)
        raise UserError(
            race.told(names),
            file=str(path),
            node=names.node(race.later),
            hint="compile the model again, or give the later instruction a wait for the earlier",
        )


def _check_cycles(program: Program, path: Path) -> None:
    """Refuses stated cycles that do not follow from durations and waits."""
    try:
        found = stated_cycles.first_contradiction(
            [block.timing for block in program.blocks],
            program.machine.issue,
            program.positions,
            [[(i.start or None, i.finish or None) for i in b.instructions] for b in program.blocks],
        )
    except ValueError as error:
        raise UserError(f"an instruction {error}", file=str(path)) from error
    if found is not None:
        names = _Names(program)
        raise UserError(
            f"{names(found.at)} states {found.what} {found.stated} at position {found.position}; "
            f"its duration and waits make it {found.follows}",
            file=str(path),
            node=names.node(found.at),
            hint="start and finish may be left out",
        )


def _check_power(program: Program, path: Path) -> None:
    """Refuses a program whose products may read banks that are off.

    The compiler's own passes cannot write one, but program.json can be edited.
    """
    if not program.domains:
        return
    timing = [block.timing for block in program.blocks]
    found = gating.first_unpowered(timing, program.power_roles)
    if found is None:
        return
    names = _Names(program)
    raise UserError(
        f"the product {names(found.at)} may find power domain {found.domain} off: {found.reason}",
        file=str(path),
        node=names.node(found.at),
        hint="a product waits for the wake of its domain, and the sleep waits for the product",
    )


def program_of(content: Mapping[str, Any]) -> Program:
    """The program from the content of a program.json."""
    return Program(
        machine=Machine.from_dict(content["machine"]),
        name=content["name"],
        vocabulary=content["vocabulary"],
        parameters={name: _parameter(name, p) for name, p in content["parameters"].items()},
        caches={name: _cache(name, c) for name, c in content["caches"].items()},
        buffers={name: Buffer(name, **b) for name, b in content["buffers"].items()},
        blocks=[
            Block(
                block["name"],
                block["sampled"],
                block["instances"],
                [_instruction(one) for one in block["instructions"]],
            )
            for block in content["blocks"]
        ],
        positions=content["positions"],
        logits=content["logits"],
        token=content["token"],
        domains=content["domains"],
        sites={name: Site(name, **site) for name, site in content["sites"].items()},
        residents=content.get("residents", 1),
    )


def _parameter(name: str, content: Mapping[str, Any]) -> Parameter:
    values = dict(content)
    for part in PARTS:
        if part in values:
            values[part] = Part(**values[part])
    values["dims"] = tuple(values["dims"])
    values["pieces"] = tuple(_piece(piece) for piece in content.get("pieces", ()))
    return Parameter(name, **values)


def _piece(content: Mapping[str, Any]) -> Piece:
    (first_row, last_row), (first_tile, last_tile) = content["rows"], content["tiles"]
    base, scale_base = content["at"]
    return Piece(
        first_row,
        last_row - first_row,
        first_tile,
        last_tile - first_tile,
        content["split"],
        base,
        scale_base,
    )


def _cache(name: str, content: Mapping[str, Any]) -> Cache:
    values = dict(content)
    for part in ("static_scale", "static_inverse"):
        if part in values:
            values[part] = real(values[part])
    return Cache(name, **values)


def _instruction(content: Mapping[str, Any]) -> Instruction:
    return Instruction(
        opcode=content["opcode"],
        queue=content["queue"],
        reads=tuple(content["reads"]),
        writes=tuple(content["writes"]),
        uses=content["uses"],
        arguments=content["arguments"],
        onnx=content["onnx"],
        issue=timeline.Issue(
            content["queue"], content["waits"], formula.parse(content["duration"])
        ),
        start=content["start"],
        finish=content["finish"],
    )
