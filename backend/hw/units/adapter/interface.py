"""The adapter unit as a unit of the chip."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from intaglio.backend.hw.units.adapter.sizes import AdapterModel, encode, refusals
from intaglio.backend.hw.units.adapter.unit import adapter_unit
from intaglio.backend.hw.units.memories import BLOCK_STEPS, CODE_SCALES, CODES, NORM_SCALES, VECTORS
from intaglio.backend.hw.units.ports import (
    Bundle,
    Command,
    Load,
    Saturations,
    entry,
    row,
    written_row,
)
from intaglio.backend.hw.units.unit import Unit
from intaglio.dialects.isa.adapter import AdapterMatvec

if TYPE_CHECKING:
    from collections.abc import Mapping

    from intaglio.backend.hw.units.matrix.rom_bank import LogicROM
    from intaglio.backend.hw.wires.signal import Design, ModuleBuilder
    from intaglio.backend.program.types import Instruction, Program
    from intaglio.dialects.errors import UserError


@dataclass(frozen=True)
class AdapterUnit(Unit):
    """The adapter part of the H-Units, of the sizes that a program needs."""

    model: AdapterModel

    name = "adapter"

    @cached_property
    def ports(self) -> tuple[Bundle, ...]:
        """See `Unit`."""
        model, machine = self.model, self.model.machine
        inputs = max(1, machine.attention_lanes // machine.vector_lanes)
        load = (Load("load_enable", "load_address", "load_data"),) if model.places.sites else ()
        return (
            Command((AdapterMatvec,), model.fields, flows=True),
            *(row(CODES, f"input{i}") for i in range(inputs)),
            *(row(BLOCK_STEPS, f"steps{i}") for i in range(inputs if model.steps else 0)),
            entry(CODE_SCALES, "input", "group"),
            *((entry(NORM_SCALES, "norm", "row"),) if "adapter_normed" in model.fields else ()),
            row(VECTORS, "residual"),
            written_row(VECTORS, "result", mask="lanes"),
            *load,
            Saturations("saturations"),
        )

    @staticmethod
    def refusals(program: Program) -> list[UserError]:
        """See `Unit`."""
        return refusals(program)

    def encode(
        self, program: Program, instruction: Instruction, instance: Mapping[str, str]
    ) -> dict[str, int]:
        """See `Unit`."""
        return encode(self.model, instruction, instance)

    def build(self, design: Design, logic: LogicROM | None = None) -> ModuleBuilder:
        """See `Unit`."""
        return adapter_unit(design, self.model)
