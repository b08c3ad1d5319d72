"""The power controller: when the domains' bits change, and what its instructions take."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from intaglio.backend.hw.units.power import NO_DOMAIN, Choice, build_power, encode
from intaglio.backend.hw.wires.signal import Design
from intaglio.backend.program.power_bits import PowerBit
from intaglio.backend.program.program import Instruction
from intaglio.backend.target.target import load_target
from intaglio.dialects import timeline
from intaglio.dialects.errors import CompilerBug, UserError
from intaglio.dialects.isa.power import Sleep, Switch, Wake
from intaglio.dialects.isa.vector import Copy
from intaglio.dialects.machine import Machine
from intaglio.lowering.schedule import durations
from intaglio.runtime.engines.arc import ArcModel

DOMAINS = ("power0", "power1", "head")


def machine(wake: int, sleep: int) -> Machine:
    return replace(load_target("roma-mini").machine(), power_wake=wake, power_sleep=sleep)


def instruction(does: Switch[str] | Copy[str], machine: Machine) -> Instruction:
    duration = durations.sleep if isinstance(does, Sleep) else durations.wake
    return Instruction(does, [], timeline.Issue(does.queue, {}, duration(machine)), [], [])


@pytest.mark.parametrize(("wake", "sleep"), [(5, 2), (1, 1), (2, 9)])
def test_bits_follow_the_instructions(wake: int, sleep: int) -> None:
    chip = machine(wake, sleep)
    design = Design()
    build_power(design, chip, DOMAINS, {"head"})
    model = ArcModel(design.text(), "power_controller", opt=0)
    rng = np.random.default_rng(wake)
    for _ in range(2):
        model.set("rst", 1)
        model.step()
        model.set("rst", 0)
        assert model.get("power") == 0
        on = [0] * len(DOMAINS)
        for _ in range(40):
            kind = Wake if rng.integers(2) else Sleep
            name = str(rng.choice([*DOMAINS, NO_DOMAIN]))
            one = instruction(kind(domain="slot"), chip)
            fields = encode(DOMAINS, one, {"slot": name})
            for field, value in fields.items():
                model.set(field, value)
            wanted = int(rng.integers(0, 2))
            model.set("wanted", wanted)
            cycles = int(one.issue.duration())
            before = sum(bit << i for i, bit in enumerate(on))
            if name != NO_DOMAIN:
                stays_off = name == "head" and not wanted
                on[DOMAINS.index(name)] = int(kind is Wake and not stays_off)
            after = sum(bit << i for i, bit in enumerate(on))
            idle = int(rng.integers(0, 3))
            trace = model.run(cycles + idle, {"start": [1, *[0] * (cycles + idle - 1)]})
            assert trace.outputs["done"].tolist() == [0] * (cycles - 1) + [1] + [0] * idle
            # The result can be read in the cycle of the finish.
            assert trace.outputs["power"].tolist() == [before] * cycles + [after] * idle
            assert model.get("power") == after


@pytest.mark.parametrize(("wake", "chosen"), [(1, 1), (1, 4), (6, 3)])
def test_banks_of_chosen_experts(wake: int, chosen: int) -> None:
    """The bits of a domain's banks are those of the experts that the memory of routings names."""
    chip, design, rows = machine(wake, 2), Design(), 16
    choice = Choice(chosen, rows)
    bits = [
        PowerBit("power0"),
        PowerBit("power0_experts", 1, ((0, 2),)),
        PowerBit("power0_experts", 2, ((2, 2), (5, 7))),
        PowerBit("power0_experts", 3, ((3, 4),)),
        PowerBit("power0_experts", 4, ((7, 7), (0, 0))),
    ]
    domains = ("power0", "power0_experts")
    build_power(design, chip, domains, set(), bits, choice)
    model = ArcModel(design.text(), "power_controller", opt=0)
    rng = np.random.default_rng(chosen)
    model.set("rst", 1)
    model.step()
    model.set("rst", 0)
    on = [0] * len(bits)
    for _ in range(40):
        memory = rng.integers(0, 8, rows)
        name = domains[int(rng.integers(2))]
        count = int(rng.integers(1, chosen + 1)) if name == domains[1] and rng.integers(2) else 0
        kind = Wake if rng.integers(3) else Sleep
        one = instruction(kind(domain="slot"), chip)
        fields = encode(domains, one, {"slot": name}, choice)
        fields |= {"wake": 1, "chosen": count} if count else {}
        fields["routing"] = int(rng.integers(rows - count))
        for field, value in fields.items():
            model.set(field, value)
        experts = memory[fields["routing"] : fields["routing"] + count].tolist()
        for number, bit in enumerate(bits):
            if bit.domain == name:
                awake = any(map(bit.wakes, experts)) if count else True
                on[number] = int(bool(fields["wake"]) and awake)
        cycles = (wake + count) if fields["wake"] else 2
        done: list[int] = []
        for cycle in range(cycles):
            model.set("start", int(cycle == 0))
            done.append(model.get("done"))
            address = model.get("routing_address")
            model.step()
            model.set("routing_number", int(memory[address % rows]))
        model.set("start", 0)
        assert done == [0] * (cycles - 1) + [1]
        assert model.get("power") == sum(bit << i for i, bit in enumerate(on))


def test_refusals() -> None:
    with pytest.raises(UserError, match="power_sleep"):
        build_power(Design(), machine(3, 0), DOMAINS, set())
    with pytest.raises(CompilerBug, match="copy"):
        encode(DOMAINS, instruction(Copy(input="x", output="y"), machine(1, 1)), {"slot": "head"})
