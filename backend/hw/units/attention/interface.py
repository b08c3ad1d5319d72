"""The attention unit as a unit of the chip."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from intaglio.backend.hw.units import peaks
from intaglio.backend.hw.units.attention.kv import external_parts
from intaglio.backend.hw.units.attention.sizes import AttentionModel, encode, refusals
from intaglio.backend.hw.units.attention.unit import attention_unit
from intaglio.backend.hw.units.memories import (
    CODE_SCALES,
    CODES,
    CONSTANTS,
    HEADS,
    LARGEST,
    PROBABILITIES,
    SCORES,
    VALUE_SCALES,
    VECTORS,
)
from intaglio.backend.hw.units.ports import (
    Bundle,
    Command,
    Give,
    Read,
    Saturations,
    Serve,
    Take,
    entry,
    position_of,
    row,
    written_row,
)
from intaglio.backend.hw.units.unit import Unit
from intaglio.dialects.isa.attention import QueryKey, WeightedSum
from intaglio.dialects.isa.cache import Append
from intaglio.dialects.isa.queues import ATTENTION, KV

if TYPE_CHECKING:
    from collections.abc import Mapping

    from intaglio.backend.hw.units.matrix.rom_bank import LogicROM
    from intaglio.backend.hw.wires.signal import Design, ModuleBuilder
    from intaglio.backend.program.types import Instruction, Program
    from intaglio.dialects.errors import UserError


@dataclass(frozen=True)
class AttentionUnit(Unit):
    """H-Units with the KV cache and its write port, of the sizes that a program needs."""

    model: AttentionModel

    name = "attention"

    @cached_property
    def ports(self) -> tuple[Bundle, ...]:
        """See `Unit`."""
        model, machine = self.model, self.model.machine
        heads = machine.query_parallel
        return (
            Command(
                (QueryKey, WeightedSum),
                model.fields,
                "attention_",
                flows=True,
                reduces=model.counts_scores_apart,
            ),
            Command((Append,), model.append_fields, "append_", flows=True),
            Take("attention_position", position_of(ATTENTION)),
            Take("append_position", position_of(KV)),
            *self._rows("append", machine.kv_port_bytes),
            entry(CODE_SCALES, "append", "group"),
            *self._rows("query", machine.attention_lanes, heads),
            *(entry(CODE_SCALES, f"query_scale{i}", "group") for i in range(model.together)),
            *(
                row(CONSTANTS, f"slope{i}", "address")
                for i in range(model.together if model.sloped else 0)
            ),
            *self._rows("probability", machine.h_units, heads),
            entry(HEADS, "head", "row"),
            *(written_row(SCORES, f"score{i}", mask="lanes") for i in range(model.together)),
            *(written_row(LARGEST, f"largest{i}") for i in range(model.together)),
            *(written_row(VECTORS, name, mask="lanes") for name in model.results),
            Serve(VALUE_SCALES, "value_scale_row", "value_scale_data"),
            *self._external,
            Saturations("saturations"),
            *(peaks.given(ATTENTION, quantized=model.looks_up_peaks) if model.leaves_peaks else ()),
        )

    def _rows(self, name: str, codes: int, users: int = 1) -> tuple[Read, ...]:
        """The ports through which each of some users gets so many codes a cycle."""
        memory = PROBABILITIES if name == "probability" else CODES
        ports = max(1, codes // self.model.machine.vector_lanes)
        return tuple(row(memory, f"{name}{i}") for i in range(users * ports))

    @property
    def _external(self) -> tuple[Bundle, ...]:
        """The other ends are the ports of `kv.external_kv`."""
        if not self.model.external:
            return ()
        mask = ("write_mask",) if external_parts(self.model.machine) > 1 else ()
        given = ("read_address", "write_enable", "write_address", "write_data", *mask)
        return (
            *(Give(f"external_{name}", f"external_{name}") for name in given),
            Take("external_read_data", "external_read_data"),
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
        return attention_unit(design, self.model)
