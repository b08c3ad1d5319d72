"""What a vector unit is built for: the program's operations, the sizes of its memories."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from intaglio.backend.hw.units.refusals import short_latencies
from intaglio.backend.hw.units.vector.encode import (
    PLAIN,
    OfBlocks,
    formats,
    gate_tables,
    head_rows,
    operations,
    rotary_fraction,
)
from intaglio.backend.program.types import Program
from intaglio.dialects.errors import UserError
from intaglio.dialects.formats import FORMATS
from intaglio.dialects.formulas.products import ROTARY_FRAC
from intaglio.dialects.isa.queues import PEAKS
from intaglio.dialects.isa.values import Probabilities, Quantized, Routing, Scores
from intaglio.dialects.isa.vector import OverScores
from intaglio.dialects.machine import Machine
from intaglio.dialects.memories import rows_of

_LEAST_LATENCIES = {"vector_pipeline": 3, "vector_reduce": 1, "table_lookup": 1, "sample": 1}
"""Operand read, work, write; an accumulator; a file of groups; the token's register."""


@dataclass(frozen=True)
class VectorShape:
    """What the unit is built for, beside the machine.

    Attributes:
        operations, gate_tables, formats: what the program uses (`encode`).
        entries: of the files of groups.
        positions: tokens of the context.
        rows: of the vector memory (and of the memory of quantised vectors).
        constant_rows: of the constant ROM.
        score_rows: of the score memory.
        score_heads: entries of the file of their largest.
        probability_rows: of the memory of probabilities.
        scale_rows: of the memory of value scales.
        scales: entries of the files of scales.
        rotary_fraction: fraction bits of cosines and sines.
        sinks: whether heads have sinks.
        experts: to choose from, at most; 0 where none are.
        chosen: at most.
        routing_rows: of the memory of routings.
        head_rows: of the widest head with an exponent of its own; 0: there is none.
        peaks: queues whose units give largest magnitudes of what they write; whether of
            quantisations.
        blocks: the codes with an exponent a block.
    """

    operations: frozenset[str]
    gate_tables: frozenset[str]
    formats: tuple[str, ...]
    entries: int
    positions: int
    rows: int
    constant_rows: int
    score_rows: int
    score_heads: int
    probability_rows: int
    scale_rows: int
    scales: int
    rotary_fraction: int = ROTARY_FRAC
    sinks: bool = False
    experts: int = 0
    chosen: int = 0
    routing_rows: int = 0
    head_rows: int = 0
    peaks: Mapping[str, bool] = field(default_factory=dict[str, bool])
    blocks: OfBlocks = PLAIN

    @staticmethod
    def of(
        program: Program,
        *,
        constant_rows: int,
        score_rows: int,
        score_heads: int,
        probability_rows: int,
        scale_rows: int,
        routing_rows: int = 0,
    ) -> VectorShape:
        """For a program, and memories of known size."""
        lanes = program.machine.vector_lanes
        rows = groups = 1
        experts = chosen = 0
        for one in program.buffers.values():
            rows = max(rows, one.row + rows_of(one.type, lanes, program.longest))
            match one.type:
                case Quantized() as kind:
                    groups = max(groups, kind.groups)
                case Scores() | Probabilities() as kind:
                    groups = max(groups, kind.heads)
                case Routing() as kind:
                    experts, chosen = max(experts, kind.experts), max(chosen, kind.chosen)
                case _:
                    pass
        for one in program.states.values():
            rows = max(rows, one.row + -(-one.size // lanes))
        return VectorShape(
            operations(program),
            gate_tables(program),
            tuple(name for name in FORMATS if name in formats(program)),
            program.machine.contexts * program.entries,
            program.counted,
            rows,
            constant_rows,
            score_rows,
            score_heads,
            probability_rows,
            scale_rows,
            rows + groups,
            rotary_fraction(program),
            any(
                isinstance(one.does, OverScores) and one.does.sink is not None
                for block in program.blocks
                for one in block.instructions
            ),
            experts=experts,
            chosen=chosen,
            routing_rows=routing_rows,
            head_rows=head_rows(program),
            peaks={queue: wanted for queue, wanted in program.peaks.items() if queue in PEAKS},
            blocks=OfBlocks.of(program),
        )


def machine_refusals(machine: Machine) -> list[UserError]:
    """Why the unit cannot be built for a machine: latencies too short, other lanes."""
    lanes = machine.vector_lanes
    found: list[UserError] = []
    if lanes & (lanes - 1) or not 2 <= lanes <= 1024:
        found.append(
            UserError(
                f"the vector unit takes 2 to 1024 lanes, a power of two, not {lanes}",
                hint="change vector.lanes or the array of the target",
            )
        )
    return found + short_latencies(machine, "vector unit", _LEAST_LATENCIES)
