"""The recurrence unit as a unit of the chip."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from intaglio.backend.hw.units.memories import CODE_SCALES, CODES, VECTORS
from intaglio.backend.hw.units.ports import (
    Bundle,
    Command,
    Saturations,
    Take,
    entry,
    position_of,
    row,
    written_row,
)
from intaglio.backend.hw.units.recurrence.sizes import RecurrenceModel, encode, refusals
from intaglio.backend.hw.units.recurrence.unit import recurrence_unit
from intaglio.backend.hw.units.unit import Unit
from intaglio.dialects.isa.queues import ATTENTION
from intaglio.dialects.isa.recurrence import LinearAttention

if TYPE_CHECKING:
    from collections.abc import Mapping

    from intaglio.backend.hw.units.matrix.rom_bank import LogicROM
    from intaglio.backend.hw.wires.signal import Design, ModuleBuilder
    from intaglio.backend.program.types import Instruction, Program
    from intaglio.dialects.errors import UserError


@dataclass(frozen=True)
class RecurrenceUnit(Unit):
    """The part of the H-Units that changes what it holds, of the sizes that a program needs."""

    model: RecurrenceModel

    name = "recurrence"

    @cached_property
    def ports(self) -> tuple[Bundle, ...]:
        """See `Unit`."""
        form = self.model.form
        gates = [*(["decay"] * form.gated), *(["rate"] * form.delta)]
        return (
            Command((LinearAttention,), self.model.fields, flows=True),
            Take("position", position_of(ATTENTION)),
            *(row(CODES, name) for name in ("query", "key")),
            *(entry(CODE_SCALES, f"{name}_scale", "group") for name in ("query", "key")),
            *(row(VECTORS, name) for name in ("value", *gates)),
            written_row(VECTORS, "result", mask="lanes"),
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
        return recurrence_unit(design, self.model)
