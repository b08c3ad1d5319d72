"""The vector unit as a unit of the chip."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from intaglio.backend.hw.units import peaks
from intaglio.backend.hw.units.memories import (
    BLOCK_STEPS,
    CODE_SCALES,
    CODES,
    CONSTANTS,
    HEADS,
    LARGEST,
    NORM_SCALES,
    PROBABILITIES,
    ROUTINGS,
    SCORES,
    VALUE_SCALES,
    VECTORS,
    Memory,
)
from intaglio.backend.hw.units.ports import (
    NEXT_TOKEN,
    NEXT_TOKEN_CONTEXT,
    NEXT_TOKEN_VALID,
    Bundle,
    Command,
    Give,
    Read,
    Saturations,
    Take,
    Write,
    context_of,
    position_of,
    row,
    written_row,
)
from intaglio.backend.hw.units.unit import Unit
from intaglio.backend.hw.units.vector.constants import shape_refusals
from intaglio.backend.hw.units.vector.encode import Places, encode, fields_of
from intaglio.backend.hw.units.vector.operations import (
    NORMS,
    QUANTIZE,
    QUANTIZE_BLOCKS,
    QUANTIZE_HEADS,
    QUANTIZE_STATIC,
    RMS_SCALE,
    ROTARY,
    ROUTE,
    SAMPLE,
    SOFTMAX,
    TAP,
    TAP_ONTO,
    WEIGH,
    WEIGH_ONTO,
)
from intaglio.backend.hw.units.vector.shape import VectorShape, machine_refusals
from intaglio.backend.hw.units.vector.unit import build_vector
from intaglio.dialects.isa import vector
from intaglio.dialects.isa.queues import VECTOR
from intaglio.dialects.machine import Machine

if TYPE_CHECKING:
    from intaglio.backend.hw.units.matrix.rom_bank import LogicROM
    from intaglio.backend.hw.wires.signal import Design, ModuleBuilder
    from intaglio.backend.program.types import Instruction, Program
    from intaglio.dialects.errors import UserError


INSTRUCTIONS = (
    vector.RMSNorm,
    vector.LayerNorm,
    vector.Quantize,
    vector.QuantizeBlocks,
    vector.QuantizeHeads,
    vector.RMSScale,
    vector.Rotary,
    vector.Activate,
    vector.Add,
    vector.Mul,
    vector.ScaleBy,
    vector.Softcap,
    vector.Clip,
    vector.Tap,
    vector.Delay,
    vector.Copy,
    vector.Softmax,
    vector.SoftmaxPlaces,
    vector.Sample,
    vector.Route,
    vector.Weigh,
)


@dataclass(frozen=True)
class VectorUnit(Unit):
    """The vector unit, of the sizes that a program needs.

    Attributes:
        machine: the chip.
        shape: its sizes.
        places: where the chip keeps what is no value.
    """

    machine: Machine
    shape: VectorShape
    places: Places

    name = "vector"

    @cached_property
    def ports(self) -> tuple[Bundle, ...]:
        """See `Unit`."""
        return (
            Command(INSTRUCTIONS, fields_of(self.shape.blocks), flows=True, reduces=True),
            Take("position", position_of(VECTOR)),
            *((Take("of_context", context_of(VECTOR)),) if self.machine.contexts > 1 else ()),
            *self._reads(),
            *self._writes(),
            *self._token(),
            Saturations("saturated"),
            *(
                one
                for queue, quantized in self.shape.peaks.items()
                for one in peaks.taken(queue, quantized=quantized)
            ),
        )

    def _has(self, *operations: str) -> bool:
        return any(one in self.shape.operations for one in operations)

    def _reads(self) -> Iterator[Bundle]:
        yield row(VECTORS, "vector0", "address")
        yield row(VECTORS, "vector1", "address")
        if self._has(ROTARY, *NORMS, TAP, TAP_ONTO):
            yield row(CONSTANTS, "constant0", "address")
            yield row(CONSTANTS, "constant1", "address")
        if self._has(SOFTMAX):
            yield row(SCORES, "score", "address")
            yield row(LARGEST, "largest", "address")
            yield row(VALUE_SCALES, "value_scale", "address")
        if self.shape.sinks:
            yield row(CONSTANTS, "sink", "address")
        if self._has(WEIGH, WEIGH_ONTO):
            yield Read(ROUTINGS, "routing_address", {"share": "routing_share"})

    def _writes(self) -> Iterator[Bundle]:
        yield written_row(VECTORS, "vector_write", "address", "mask")
        if self._has(QUANTIZE, QUANTIZE_STATIC, QUANTIZE_BLOCKS):
            yield written_row(CODES, "code_write", "address")
        if self._has(QUANTIZE_BLOCKS):
            yield written_row(BLOCK_STEPS, "step_write", "address")
        if self._has(QUANTIZE_HEADS):
            yield written_row(CODES, "head_code_write", "address")
            parts = {part: f"head_scale_{part}" for part in CODE_SCALES.parts}
            yield Write(CODE_SCALES, "head_scale_address", parts, "head_scale_enable")
        if self._has(SOFTMAX):
            yield written_row(SCORES, "score_write", "address")
            yield written_row(PROBABILITIES, "probability_write", "address")
        if self._has(QUANTIZE, SOFTMAX):
            yield self._scales(CODE_SCALES, "scale_enable")
        if self._has(RMS_SCALE):
            yield self._scales(NORM_SCALES, "norm_scale_enable")
        if self._has(SOFTMAX):
            yield self._scales(HEADS, "probability_scale_enable")
        if self._has(ROUTE):
            parts = {part: f"routing_write_{part}" for part in ROUTINGS.parts}
            yield Write(ROUTINGS, "routing_write_address", parts, "routing_write_enable")
        for queue, quantized in self.shape.peaks.items():
            if quantized:
                name = f"{queue}_peak_scale"
                parts = {part: f"{name}_{part}" for part in CODE_SCALES.parts}
                yield Write(CODE_SCALES, f"{name}_address", parts, f"{name}_enable")

    def _scales(self, memory: Memory, enable: str) -> Write:
        """All files of scales take what the scalar unit gives, each at its own time."""
        parts = {part: f"scale_{part}" for part in memory.parts}
        return Write(memory, "scale_address", parts, enable)

    def _token(self) -> Iterator[Bundle]:
        if self._has(SAMPLE):
            yield Give("token", NEXT_TOKEN)
            yield Give("token_valid", NEXT_TOKEN_VALID)
            if self.machine.contexts > 1:
                yield Give("token_context", NEXT_TOKEN_CONTEXT)

    @staticmethod
    def refusals(program: Program) -> list[UserError]:
        """See `Unit`."""
        return machine_refusals(program.machine) + shape_refusals(program)

    def encode(
        self, program: Program, instruction: Instruction, instance: Mapping[str, str]
    ) -> dict[str, int]:
        """See `Unit`."""
        return encode(program, instruction, instance, self.places)

    def build(self, design: Design, logic: LogicROM | None = None) -> ModuleBuilder:
        """See `Unit`."""
        return build_vector(design, self.machine, self.shape)
