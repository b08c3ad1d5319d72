"""program.json as Python objects: what the simulator, the timing and the reports read."""

from __future__ import annotations

from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

from intaglio.backend.program.reader import PROGRAM, read_program
from intaglio.backend.program.types import (
    PARTS,
    SCHEMA,
    Block,
    Buffer,
    Cache,
    Instruction,
    Parameter,
    Part,
    Program,
    Site,
)
from intaglio.backend.stages import IR_STAGES
from intaglio.dialects import gating, hazards, stated_cycles
from intaglio.dialects.errors import UserError
from intaglio.dialects.isa.power import Switch
from intaglio.dialects.json_file import JSONFile, as_json, shown
from intaglio.dialects.memories import numbered
from intaglio.dialects.timeline import At

__all__ = [
    "PARTS",
    "PROGRAM",
    "SCHEMA",
    "Block",
    "Buffer",
    "Cache",
    "Instruction",
    "Parameter",
    "Part",
    "Program",
    "Site",
    "load_program",
    "program_of",
]


def program_of(content: Mapping[str, Any]) -> Program:
    """The program from the content of a program.json that is in memory."""
    return read_program(JSONFile(as_json(content), PROGRAM), Path())


def _no_program(out: Path) -> UserError:
    """What is there instead of a compiled program, and what makes one."""
    hint = "intaglio compile MODEL.onnx --target T -o OUT writes one"
    if out.is_file():
        return UserError("is a file, not the output folder of a compile", file=str(out), hint=hint)
    stages = [stage for stage in IR_STAGES if (out / "ir" / f"{stage}.mlir").is_file()]
    if stages:
        said = f"the compile of this folder stopped at {stages[-1]}, before there was a program"
        return UserError(said, file=str(out), hint="compile without --emit, or with a later stage")
    return UserError("this folder holds no compiled program", file=str(out), hint=hint)


def load_program(out: str | Path) -> Program:
    """Reads the program of an output folder.

    Raises:
        UserError: the folder holds no compiled program, one of another version, or one that reads
            ROM that is switched off.
    """
    path = Path(out) / PROGRAM
    if not path.exists():
        raise _no_program(Path(out))
    content = JSONFile.read(path, "compile the model again")
    if (schema := content["schema"].value) != SCHEMA:
        raise content.error(f"has schema {shown(schema)}, this version reads {SCHEMA}")
    program = read_program(content, Path(out))
    _check_beats(program, path)
    _check_sources(program, path)
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


def _check_beats(program: Program, path: Path) -> None:
    """Refuses a program whose beats are not those of whole instructions.

    The compiler's own passes cannot write one, but program.json can be edited.
    """
    names, hint = _Names(program), "compile the model again"
    for number, fault in enumerate(program.faults):
        if fault is not None:
            at = number, 0, fault.beat
            raise UserError(
                f"{names(at)}: {fault.reason}", file=str(path), node=names.node(at), hint=hint
            )
    try:
        _ = program.accesses
    except ValueError as error:
        raise UserError(str(error), file=str(path), hint=hint) from error


def _check_sources(program: Program, path: Path) -> None:
    """Refuses a program that reads a value before there is one."""
    names, there = _Names(program), set(program.accepted)

    def check(number: int, one: Instruction, known: Set[str]) -> None:
        missing = next((name for name in one.reads if program.whole(name) not in known), None)
        if missing is not None:
            block = program.blocks[number]
            at = number, 0, next(n for n, o in enumerate(block.instructions) if o is one)
            raise UserError(
                f"{names(at)} reads '{missing}', which nothing has written before",
                file=str(path),
                node=names.node(at),
                hint="a part of another buffer says which ('of'); or compile the model again",
            )

    for number, block in enumerate(program.blocks):
        # Switches compute nothing: they read what is written by their place among the beats.
        by_place = set(there)
        for one in block.instructions:
            if isinstance(one.does, Switch):
                check(number, one, by_place)
            by_place.update(one.writes)
        for one in block.whole:
            if not isinstance(one.does, Switch):
                check(number, one, there)
                there.update(one.writes)


def _check_order(program: Program, path: Path) -> None:
    """Refuses a program whose waits do not order its reads and writes.

    The compiler's own passes cannot write one, but program.json can be edited.
    """
    race = hazards.first_race(
        [block.timing for block in program.blocks],
        program.accesses,
        [block.instances for block in program.blocks],
        numbered({name: program.span(name) for name in program.buffers}),
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
