"""Which matrices take their rows in rounds (`tiling.Piece.run`), and in runs of how many words.

A product that takes a row at once waits for all of its input; one that takes it in rounds begins
with the first part, and is done soon after the last one has come. But its results come together at
the end, so that the next product has nothing to begin with. So rounds pay where an input comes part
by part and needs no figure of all of it: behind attention, whose heads come one after the other,
and behind a product that takes its rows at once. That is every other one: O and down.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from xdsl.dialects.builtin import ModuleOp
from xdsl.ir import SSAValue

from intaglio.dialects import rom
from intaglio.dialects.machine import Machine
from intaglio.dialects.tiling import MatrixShape, Piece, Reads, activation_passes, misdealt
from intaglio.lowering.place.users import uses

_BY_ELEMENTS = (
    rom.QuantizeBlocksOp,
    rom.ActivateOp,
    rom.AddOp,
    rom.MulOp,
    rom.ScaleOp,
    rom.SoftcapOp,
    rom.ClipOp,
    rom.SliceOp,
)
"""Operators whose results come as their inputs do."""


def in_rounds(module: ModuleOp) -> set[str]:
    """Names of the matrices whose every product has an input that comes part by part."""
    products: dict[str, list[rom.DotOp]] = {}
    others: set[str] = set()
    for name, op, _ in uses(module):
        if isinstance(op, rom.DotOp):
            products.setdefault(name, []).append(op)
        elif not isinstance(op, rom.RequantizeOp | rom.SiteOp):
            others.add(name)
    found = {dot for body in _bodies(module) for dot in _by_parts(body)}
    return {
        name for name, dots in products.items() if name not in others and found.issuperset(dots)
    }


def _bodies(module: ModuleOp) -> Iterable[rom.StepOp | rom.LayerOp]:
    return (op for op in module.ops if isinstance(op, rom.StepOp | rom.LayerOp))


def _by_parts(body: rom.StepOp | rom.LayerOp) -> set[rom.DotOp]:
    """The products of a body that take their rows in rounds."""
    gradual: set[SSAValue] = set()
    """What comes part by part."""
    found: set[rom.DotOp] = set()
    for op in body.body.block.ops:
        match op:
            case rom.DotOp():
                # Formats with one scale a vector wait for all of it; adapters are not in ROM.
                blocks = isinstance(op.input.type, rom.BlocksType)
                if op.input in gradual and blocks and _in_rom(op):
                    found.add(op)
            case rom.RequantizeOp():
                if op.input.owner not in found if _in_rom(op) else op.residual in gradual:
                    gradual.add(op.output)
            case rom.WeightedSumOp():
                gradual.add(op.output)
            case _ if isinstance(op, _BY_ELEMENTS):
                if any(operand in gradual for operand in op.operands):
                    gradual.update(op.results)
            case _:
                pass
    return found


def _in_rom(op: rom.DotOp | rom.RequantizeOp) -> bool:
    return isinstance(rom.resolve(op, op.weights).type, rom.ROMTensorType)


def dealt(piece: Piece, shape: MatrixShape, machine: Machine, floor: int) -> Piece:
    """A piece in the runs that store the fewest scales, of those the shortest; as it is where no
    run does.

    Args:
        piece: consecutive words in each slice.
        shape: of the matrix.
        machine: the chip.
        floor: what a step takes at least (`tiling.step_floor`).
    """
    reads = Reads(activation_passes(machine.activations, machine))
    words = piece.words(shape, machine)

    def cost(one: Piece) -> tuple[int, int]:
        return one.scale_words(shape, machine), one.run

    ways = (
        one
        for run in range(1, words // 2 + 1)
        if words % run == 0
        for one in (replace(piece, run=run),)
        if misdealt(one, shape, machine) is None
        # What leaves the array in the last round does not hold up what is read.
        and one.read_cycles(shape, machine, reads) >= max(floor, one.drain_cycles(machine))
    )
    return min(ways, key=cost, default=piece)
