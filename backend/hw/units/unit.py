"""A unit of the chip: what it executes, how it is joined to the rest, what it cannot do.

Units stand beside one another: none knows another one. `backend/hw/chip/layout.py` has those of a
program.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

from intaglio.backend.hw.units.ports import Bundle, Command, check_ports
from intaglio.dialects.encoded import Value

if TYPE_CHECKING:
    from collections.abc import Mapping

    from intaglio.backend.hw.units.matrix.rom_bank import LogicROM
    from intaglio.backend.hw.wires.signal import Design, ModuleBuilder
    from intaglio.backend.program.types import Instruction, Program
    from intaglio.dialects.errors import UserError
    from intaglio.dialects.isa.instruction import Instruction as Does


class Unit(ABC):
    """A unit, sized for a program.

    Attributes:
        name: of its instance in the chip.
    """

    name: ClassVar[str]

    @cached_property
    @abstractmethod
    def ports(self) -> tuple[Bundle, ...]:
        """All ports but clock and reset; a memory's read ports in the order of their numbers."""

    @staticmethod
    @abstractmethod
    def refusals(program: Program) -> list[UserError]:
        """Why there is no such unit for a program; all reasons, before any size is known."""

    @abstractmethod
    def encode(
        self, program: Program, instruction: Instruction, instance: Mapping[str, str]
    ) -> Mapping[str, Value]:
        """What the descriptor of an instruction instance says to the unit.

        Args:
            program: that the unit is for, or one that differs from it in exponents and constants.
            instruction: one of the program's that it executes.
            instance: what the block's instance binds slots to.

        Returns:
            A number for each of its fields, or the name of a matrix whose one scale it is.

        Raises:
            UserError: the unit cannot execute it; says why, and names the ONNX node.
        """

    def executes(self, does: Does[str]) -> bool:
        """Whether an instruction is one of the unit's."""
        return any(isinstance(does, one.instructions) for one in self.commands)

    @abstractmethod
    def build(self, design: Design, logic: LogicROM | None = None) -> ModuleBuilder:
        """The unit's module.

        Args:
            design: gets the module.
            logic: what is in ROM banks that are logic; external modules without.
        """

    @property
    def commands(self) -> tuple[Command, ...]:
        """Its ends of queues."""
        return tuple(one for one in self.ports if isinstance(one, Command))

    def module(self, design: Design, logic: LogicROM | None = None) -> ModuleBuilder:
        """`build`, with the ports compared with those that are declared."""
        module = self.build(design, logic)
        check_ports(module, self.ports)
        return module
