"""The matrix array as a unit of the chip."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from intaglio.backend.hw.units import peaks
from intaglio.backend.hw.units.matrix.array import build_matrix
from intaglio.backend.hw.units.matrix.plan import (
    MatrixConfig,
    Use,
    encode,
    is_single,
    refusals,
    tensor,
)
from intaglio.backend.hw.units.memories import (
    BLOCK_STEPS,
    CODE_SCALES,
    CODES,
    CONSTANTS,
    NORM_SCALES,
    ROUTINGS,
    VECTORS,
)
from intaglio.backend.hw.units.ports import (
    POWER_BITS,
    TOKEN,
    Bundle,
    Command,
    Read,
    Saturations,
    Take,
    entry,
    position_of,
    row,
    written_row,
)
from intaglio.backend.hw.units.unit import Unit
from intaglio.dialects.isa.matrix import Embed, EmbedPosition, ExpertMatvec, Matvec
from intaglio.dialects.isa.queues import MATRIX

if TYPE_CHECKING:
    from collections.abc import Mapping

    from intaglio.backend.hw.units.matrix.rom_bank import LogicROM
    from intaglio.backend.hw.wires.signal import Design, ModuleBuilder
    from intaglio.backend.program.types import Instruction, Program
    from intaglio.dialects.encoded import Value
    from intaglio.dialects.errors import UserError


@dataclass(frozen=True)
class MatrixUnit(Unit):
    """The matrix array, of the sizes that a program needs.

    Attributes:
        config: its sizes.
        biases: first row of each bias in the constant ROM.
    """

    config: MatrixConfig
    biases: Mapping[str, int]

    name = "matrix"

    @cached_property
    def ports(self) -> tuple[Bundle, ...]:
        """See `Unit`."""
        config = self.config
        added = {"bias": CONSTANTS, "residual": VECTORS}
        return (
            Command((Matvec, ExpertMatvec, Embed, EmbedPosition), config.fields, flows=True),
            *((Take("token", TOKEN),) if config.table_planes else ()),
            *((Take("position", position_of(MATRIX)),) if config.places else ()),
            *((Take("power", POWER_BITS),) if config.domains else ()),
            *(row(CODES, f"input{i}", "address") for i in range(config.input_ports)),
            *(row(BLOCK_STEPS, f"steps{i}", "address") for i in range(config.step_ports)),
            entry(CODE_SCALES, "scale", "address"),
            *((entry(NORM_SCALES, "norm", "address"),) if "normed" in config.fields else ()),
            *(
                (Read(ROUTINGS, "routing_address", {"number": "routing_number"}),)
                if config.experts > 1
                else ()
            ),
            *(
                row(memory, name, "address")
                for name, memory in added.items()
                if name in config.fields
            ),
            written_row(VECTORS, "write", "address", "mask"),
            Saturations("saturations"),
            *(
                peaks.given(MATRIX, quantized="peak_quantized" in config.fields)
                if "peak" in config.fields
                else ()
            ),
        )

    @staticmethod
    def refusals(program: Program) -> list[UserError]:
        """See `Unit`."""
        return refusals(program)

    def encode(
        self, program: Program, instruction: Instruction, instance: Mapping[str, str]
    ) -> dict[str, Value]:
        """See `Unit`."""
        matrix = tensor(Use(instruction, instance))
        single = is_single(program.parameters[matrix])
        scales = {matrix: 0} if single else {}
        values: dict[str, Value] = {
            **encode(program, instruction, instance, self.config, self.biases, scales)
        }
        if single:
            # The scale is in the images, which say it where the content is written.
            values["mantissa"] = matrix
        return values

    def build(self, design: Design, logic: LogicROM | None = None) -> ModuleBuilder:
        """See `Unit`."""
        return build_matrix(design, self.config, logic=logic)
