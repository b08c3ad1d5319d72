"""What lies in the ROM of the matrix units: each engraved matrix with its pieces, bits by use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from intaglio.backend.output.output import MAPPING
from intaglio.backend.program.program import Parameter, Program
from intaglio.dialects.isa.matrix import ExpertMatvec, Matvec, Product
from intaglio.dialects.isa.values import Coded
from intaglio.dialects.json_file import JSONFile
from intaglio.dialects.machine import Machine
from intaglio.dialects.tiling import SCALE_BITS, MatrixShape, Piece, Reads

USES = ("codes", "scales", "zeros", "padding")
"""What ROM bits are for; offsets count among zero points, whose place they take."""


@dataclass(frozen=True)
class Placed:
    """A matrix and its pieces."""

    parameter: Parameter
    shape: MatrixShape
    pieces: tuple[Piece, ...]
    extra: bool
    """In banks made deeper than published (policy `extra-rom`)."""

    def bits(self, machine: Machine) -> dict[str, int]:
        """ROM bits by use."""
        shape = self.shape
        rows = shape.rows * shape.experts
        groups = rows * -(-shape.columns // shape.group) if shape.scale_bits else 0
        codes = rows * shape.columns * shape.bits
        scales, zeros = groups * SCALE_BITS, groups * max(0, shape.scale_bits - SCALE_BITS)
        padding = 0
        if machine.rom == "array":
            banks = ((p.bank_bits(shape, machine), p.tiles * machine.l_units) for p in self.pieces)
            padding = sum(bits * count for bits, count in banks) - codes - scales - zeros
        return dict(zip(USES, (codes, scales, zeros, padding), strict=True))

    def busy_l_units(self, machine: Machine, reads: Reads) -> int:
        """Cycles in which L-Units multiply, all of them added up, of one product with it: of a
        family, with one expert.

        Args:
            machine: the chip.
            reads: how often words are used for the bits of an activation.
        """
        return machine.l_units * sum(
            p.tiles
            * p.steps(machine)
            * sum(
                p.read_cycles(self.shape, machine, reads, number)
                for number in range(p.rounds(self.shape, machine))
            )
            for p in self.pieces
        )


def read_placement(out: Path, program: Program) -> JSONFile:
    """The content of an output folder's mapping.json.

    Raises:
        UserError: it is damaged, or places what the program does not have.
    """
    # Imported when used, as xDSL is that it needs.
    from intaglio.lowering.place.mapping import check_mapping

    content = JSONFile.read(out / MAPPING, "compile the model again")
    check_mapping(content, whole=True)
    for one in content["matrices"].list():
        name = one["name"].text()
        if name not in program.parameters:
            raise one["name"].error(f"is '{name}', which the program does not have")
    return content


def placed_matrices(program: Program, mapping: JSONFile) -> dict[str, Placed]:
    """Every engraved matrix by its parameter's name.

    Args:
        program: the compiled model.
        mapping: the content of mapping.json.
    """
    # Imported when used, as xDSL is that it needs.
    from intaglio.lowering.place.mapping import piece_of

    found: dict[str, Placed] = {}
    for entry in mapping["matrices"].list():
        name, extra = entry["name"].text(), entry.get("extra")
        parameter = program.parameters[name]
        pieces = tuple(map(piece_of, entry["pieces"].list()))
        found[name] = Placed(
            parameter, parameter.rom_shape, pieces, extra is not None and extra.boolean()
        )
    return found


def products(program: Program) -> list[str]:
    """The matrix of every product that one token with a wanted successor takes; a family once for
    each expert that is chosen."""
    return [name for name, _ in products_with_inputs(program)]


def products_with_inputs(program: Program) -> list[tuple[str, Coded]]:
    """`products`, with each one's input."""
    return [
        (instance[one.does.weights], program.value(one.does.input, Coded))
        for block in program.blocks
        for instance in block.instances
        for one in block.whole
        if isinstance(one.does, Matvec | ExpertMatvec)
    ]


def read_bits(program: Program, placed: Mapping[str, Placed]) -> int:
    """ROM bits, padding included, that the products of one token read; scales too."""
    machine = program.machine
    used = (placed[name] for name in products(program) if name in placed)
    return sum(sum(one.bits(machine).values()) // one.shape.experts for one in used)


def heads(program: Program) -> set[str]:
    """The matrices that give the logits: no other product comes between."""
    wanted, found = {program.whole(program.logits)}, set[str]()
    for block in reversed(program.blocks):
        if len(block.instances) > 1:
            break
        for one in reversed(block.whole):
            if wanted.isdisjoint(one.writes):
                continue
            if isinstance(one.does, ExpertMatvec):
                continue
            if isinstance(one.does, Matvec):
                found.add(block.instances[0][one.does.weights])
            # A buffer may be read where it is written; its value before is another's.
            wanted -= set(one.writes)
            read = one.reads[1:] if isinstance(one.does, Product) else one.reads
            wanted |= {program.whole(name) for name in read}
    return found
