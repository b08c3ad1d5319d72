"""The power controller: executes `wake` and `sleep`, holds a bit for each power domain.

A bit is 1 from the finish of a `wake` to the finish of a `sleep`; all are 0 after reset. A domain
that only wanted tokens need stays off in others (`dialects/gating.py`). What the bits switch (ROM
banks of the matrix array) gives zeros while they are 0. The instructions wait for one another in
their queue, so one counter serves all domains.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from intaglio.backend.hw.units.ports import POWER_BITS, WANTED, Bundle, Command, Give, Take
from intaglio.backend.hw.units.refusals import refuse, short_latencies
from intaglio.backend.hw.units.unit import Unit
from intaglio.backend.hw.wires.signal import Design, ModuleBuilder, Signal, cat, mux
from intaglio.dialects.descriptor import Field, Fields
from intaglio.dialects.errors import CompilerBug, UserError
from intaglio.dialects.gating import NO_DOMAIN, wanted_only
from intaglio.dialects.isa.power import Sleep, Switch, Wake
from intaglio.dialects.isa.queues import POWER
from intaglio.dialects.machine import Machine

if TYPE_CHECKING:
    from intaglio.backend.hw.units.matrix.rom_bank import LogicROM
    from intaglio.backend.program.program import Instruction, Program


@dataclass(frozen=True)
class PowerUnit(Unit):
    """The power controller, for the domains of a program.

    Attributes:
        machine: the chip.
        domains: names of all power domains, in order.
        late: those that a token needs only if its successor is wanted.
    """

    machine: Machine
    domains: tuple[str, ...]
    late: frozenset[str]

    name = "power_controller"

    @staticmethod
    def of(program: Program) -> PowerUnit | None:
        """That of a program; None where it switches nothing."""
        blocks = program.blocks
        if not any(one.queue == POWER for block in blocks for one in block.instructions):
            return None
        late = wanted_only(program.power_roles, [block.sampled for block in blocks])
        return PowerUnit(program.machine, tuple(program.domains), frozenset(late))

    @cached_property
    def ports(self) -> tuple[Bundle, ...]:
        """See `Unit`."""
        return (
            Command((Wake, Sleep), power_fields(self.domains)),
            *((Take("wanted", WANTED),) if self.late else ()),
            Give("power", POWER_BITS),
        )

    @staticmethod
    def refusals(program: Program) -> list[UserError]:
        """See `Unit`."""
        return machine_refusals(program.machine)

    def encode(
        self, program: Program, instruction: Instruction, instance: Mapping[str, str]
    ) -> dict[str, int]:
        """See `Unit`."""
        return encode(self.domains, instruction, instance)

    def build(self, design: Design, logic: LogicROM | None = None) -> ModuleBuilder:
        """See `Unit`."""
        return build_power(design, self.machine, self.domains, self.late)


def power_fields(domains: Sequence[str]) -> Fields:
    """The descriptor of an instruction."""
    bits = max(1, len(domains).bit_length())
    return Fields(
        (
            Field("wake", 1, "1: switch on, 0: switch off"),
            Field("domain", bits, "number of the domain; the one behind the last: none"),
        )
    )


def encode(
    domains: Sequence[str], instruction: Instruction, instance: Mapping[str, str]
) -> dict[str, int]:
    """The fields of an instruction instance.

    Args:
        domains: names of all power domains, in order.
        instruction: `wake` or `sleep`.
        instance: what the block's instance binds its slots to.
    """
    one = instruction.does.bound(instance)
    if not isinstance(one, Switch):
        raise CompilerBug(f"the power queue cannot execute {one.opcode}")
    number = len(domains) if one.domain == NO_DOMAIN else list(domains).index(one.domain)
    values = {"wake": int(isinstance(one, Wake)), "domain": number}
    return power_fields(domains).checked(values, one.opcode)


def machine_refusals(machine: Machine) -> list[UserError]:
    """Why a machine's power controller cannot be built."""
    return short_latencies(machine, "power controller", {"power_wake": 1, "power_sleep": 1})


def build_power(
    design: Design, machine: Machine, domains: Sequence[str], wanted_only: Set[str]
) -> ModuleBuilder:
    """The module `power_controller`.

    Ports: `start` with the fields of `power_fields`, which hold until `done` (the last cycle of the
    instruction); `wanted`, whether the token's successor is, where a domain depends on it; out
    `power`, a bit for each domain, the first in the lowest.

    Args:
        design: gets the module.
        machine: the chip.
        domains: names of all power domains, in order.
        wanted_only: those that a token needs only if its successor is wanted.

    Raises:
        UserError: a latency of 0.
    """
    refuse(machine_refusals(machine))
    longest = max(machine.power_wake, machine.power_sleep)

    def build(m: ModuleBuilder) -> None:
        start = m.input("start", 1)
        fields = {name: m.input(name, width) for name, width in power_fields(domains).items()}
        wake, domain = fields["wake"], fields["domain"]
        wake_wanted = wake & m.input("wanted", 1) if wanted_only else wake
        left = m.register("left", longest.bit_length())
        now = mux(start, mux(wake, machine.power_wake, machine.power_sleep), left)
        left.drive(mux(now == 0, 0, now - 1).truncate(left.width))
        done = (now == 1).named("last_cycle")
        bits: list[Signal] = []
        for number, name in enumerate(domains):
            bit = m.register(f"on{number}", 1)
            on = wake_wanted if name in wanted_only else wake
            bit.drive(on, done & (domain == number))
            bits.append(bit)
        m.output("done", done)
        m.output("power", cat(*reversed(bits)) if bits else m.constant(0))

    return design.shared("power_controller", build)
