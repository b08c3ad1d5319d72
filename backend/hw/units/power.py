"""The power controller: executes `wake`, `wake_chosen`, `sleep`, has a bit for each power domain.

A bit is 1 from the finish of a `wake` to the finish of a `sleep`; all are 0 after reset. A domain
that only wanted tokens need stays off in others (`dialects/gating.py`). What the bits switch (ROM
banks of the matrix array) gives zeros while they are 0. The instructions wait for one another in
their queue, so one counter serves all domains.

A domain of which only chosen experts' banks are woken has a bit for the banks at each number
instead (`backend/program/power_bits.py`). `wake_chosen` reads the experts' numbers, one a cycle
from its start on, and compares each with the experts that lie there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from intaglio.backend.hw.units.memories import ROUTINGS
from intaglio.backend.hw.units.ports import POWER_BITS, WANTED, Bundle, Command, Give, Read, Take
from intaglio.backend.hw.units.refusals import refuse, short_latencies
from intaglio.backend.hw.units.unit import Unit
from intaglio.backend.hw.wires.signal import Design, ModuleBuilder, Signal, cat, mux, tree
from intaglio.backend.hw.wires.widths import fit, index_bits
from intaglio.backend.program.power_bits import PowerBit, by_choice, power_bits
from intaglio.dialects.descriptor import Field, Fields
from intaglio.dialects.errors import CompilerBug, UserError
from intaglio.dialects.gating import NO_DOMAIN, wanted_only
from intaglio.dialects.isa.power import Sleep, Switch, Wake, WakeChosen
from intaglio.dialects.isa.queues import POWER
from intaglio.dialects.isa.values import Routing
from intaglio.dialects.machine import Machine
from intaglio.dialects.memories import EXPERT_BITS

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
        bits: what each bit switches, in order.
        choice: how the experts that are chosen are read.
    """

    machine: Machine
    domains: tuple[str, ...]
    late: frozenset[str]
    bits: tuple[PowerBit, ...]
    choice: Choice

    name = "power_controller"

    @staticmethod
    def of(program: Program) -> PowerUnit | None:
        """That of a program; None where it switches nothing."""
        blocks = program.blocks
        if not any(one.queue == POWER for block in blocks for one in block.instructions):
            return None
        late = wanted_only(program.power_roles, [block.sampled for block in blocks])
        routings = program.memories.get(ROUTINGS.name)
        choice = Choice(
            max(by_choice(program).values(), default=0), 0 if routings is None else routings.rows
        )
        return PowerUnit(
            program.machine, tuple(program.domains), frozenset(late), power_bits(program), choice
        )

    @cached_property
    def ports(self) -> tuple[Bundle, ...]:
        """See `Unit`."""
        return (
            Command((Wake, WakeChosen, Sleep), power_fields(self.domains, self.choice)),
            *((Take("wanted", WANTED),) if self.late else ()),
            *(
                (Read(ROUTINGS, "routing_address", {"number": "routing_number"}),)
                if self.choice.most
                else ()
            ),
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
        values = encode(self.domains, instruction, instance, self.choice)
        does = instruction.does
        if isinstance(does, WakeChosen):
            values["chosen"] = program.value(does.routing, Routing).chosen
            values["routing"] = program.buffers[does.routing].row
        return power_fields(self.domains, self.choice).checked(values, does.opcode)

    def build(self, design: Design, logic: LogicROM | None = None) -> ModuleBuilder:
        """See `Unit`."""
        return build_power(design, self.machine, self.domains, self.late, self.bits, self.choice)


class Choice(NamedTuple):
    """How chosen experts are read.

    Attributes:
        most: that any router chooses; 0: no domain hangs on a choice.
        rows: of the memory of routings.
    """

    most: int = 0
    rows: int = 0


NO_CHOICE = Choice()
"""Of a program that chooses no experts, or switches all of them."""


def power_fields(domains: Sequence[str], choice: Choice = NO_CHOICE) -> Fields:
    """The descriptor of an instruction."""
    bits = max(1, len(domains).bit_length())
    own = (
        Field("chosen", choice.most.bit_length(), "experts whose banks are meant; 0: all banks"),
        Field("routing", index_bits(max(1, choice.rows)), "entry of the first expert's number"),
    )
    return Fields(
        (
            Field("wake", 1, "1: switch on, 0: switch off"),
            Field("domain", bits, "number of the domain; the one behind the last: none"),
            *(own if choice.most else ()),
        )
    )


def encode(
    domains: Sequence[str],
    instruction: Instruction,
    instance: Mapping[str, str],
    choice: Choice = NO_CHOICE,
) -> dict[str, int]:
    """The fields of an instruction instance, as of all banks of its domain.

    Args:
        domains: names of all power domains, in order.
        instruction: `wake` or `sleep`.
        instance: what the block's instance binds its slots to.
        choice: how chosen experts are read.
    """
    one = instruction.does.bound(instance)
    if not isinstance(one, Switch):
        raise CompilerBug(f"the power queue cannot execute {one.opcode}")
    number = len(domains) if one.domain == NO_DOMAIN else list(domains).index(one.domain)
    values = {"wake": int(not isinstance(one, Sleep)), "domain": number}
    values |= dict.fromkeys(("chosen", "routing"), 0) if choice.most else {}
    return power_fields(domains, choice).checked(values, one.opcode)


def machine_refusals(machine: Machine) -> list[UserError]:
    """Why a machine's power controller cannot be built."""
    return short_latencies(machine, "power controller", {"power_wake": 1, "power_sleep": 1})


def build_power(
    design: Design,
    machine: Machine,
    domains: Sequence[str],
    wanted_only: Set[str],
    bits: Sequence[PowerBit] | None = None,
    choice: Choice = NO_CHOICE,
) -> ModuleBuilder:
    """The module `power_controller`.

    Ports: `start` with the fields of `power_fields`, which hold until `done` (the last cycle of the
    instruction); `wanted`, whether the token's successor is, where a domain depends on it; out
    `power`, the bits, the first in the lowest; out `routing_address`, and `routing_number` a cycle
    later, where a domain hangs on a choice.

    Args:
        design: gets the module.
        machine: the chip.
        domains: names of all power domains, in order.
        wanted_only: those that a token needs only if its successor is wanted.
        bits: what each bit switches; None: a domain each.
        choice: how chosen experts are read.

    Raises:
        UserError: a latency of 0.
    """
    refuse(machine_refusals(machine))
    longest = max(machine.power_wake + choice.most, machine.power_sleep)
    every = [PowerBit(name) for name in domains] if bits is None else bits

    def build(m: ModuleBuilder) -> None:
        start = m.input("start", 1)
        fields = {
            name: m.input(name, width) for name, width in power_fields(domains, choice).items()
        }
        wake, domain = fields["wake"], fields["domain"]
        wake_wanted = wake & m.input("wanted", 1) if wanted_only else wake
        left = m.register("left", longest.bit_length())
        awake = m.constant(machine.power_wake) + fields.get("chosen", 0)
        now = mux(start, mux(wake, awake, machine.power_sleep), left)
        left.drive(mux(now == 0, 0, now - 1).truncate(left.width))
        done = (now == 1).named("last_cycle")
        arrived = expert = m.constant(0)
        if choice.most:
            step = m.register("step", left.width)
            here = mux(start, 0, step)
            step.drive((here + 1).truncate(step.width))
            m.output("routing_address", fit(fields["routing"] + here, index_bits(choice.rows)))
            expert = m.input("routing_number", EXPERT_BITS)
            arrived = ((now != 0) & (here < fields["chosen"])).delay(1, reset=0, name="arrived")
        found: list[Signal] = []
        for number, one in enumerate(every):
            bit = m.register(f"on{number}", 1)
            on = wake_wanted if one.domain in wanted_only else wake
            if one.row is not None:
                inside = [(expert >= low) & (expert <= high) for low, high in one.experts]
                seen = m.register(f"chosen{number}", 1)
                chosen = (arrived & tree(inside, lambda a, b: a | b)) | (~start & seen)
                seen.drive(chosen)
                on = on & mux(fields["chosen"] == 0, 1, chosen)
            bit.drive(on, done & (domain == list(domains).index(one.domain)))
            found.append(bit)
        m.output("done", done)
        m.output("power", cat(*reversed(found)) if found else m.constant(0))

    return design.shared("power_controller", build)
