"""The power controller: when the domains' bits change, and what its instructions take."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from intaglio.backend.hw.units.power import NO_DOMAIN, build_power, encode
from intaglio.backend.hw.wires.signal import Design
from intaglio.backend.program.program import Instruction
from intaglio.backend.target.target import load_target
from intaglio.dialects import timeline
from intaglio.dialects.errors import CompilerBug, UserError
from intaglio.dialects.machine import Machine
from intaglio.lowering.schedule import durations
from intaglio.runtime.engines.arc import ArcModel

DOMAINS = ("power0", "power1", "head")


def machine(wake: int, sleep: int) -> Machine:
    return replace(load_target("roma-mini").machine(), power_wake=wake, power_sleep=sleep)


def instruction(opcode: str, machine: Machine) -> Instruction:
    duration = {"wake": durations.wake, "sleep": durations.sleep}.get(opcode, durations.wake)
    issue = timeline.Issue("power", {}, duration(machine))
    return Instruction(opcode, "power", (), (), {"domain": "slot"}, {}, [], issue, [], [])


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
            opcode = str(rng.choice(["wake", "sleep"]))
            name = str(rng.choice([*DOMAINS, NO_DOMAIN]))
            one = instruction(opcode, chip)
            fields = encode(DOMAINS, one, {"slot": name})
            for field, value in fields.items():
                model.set(field, value)
            wanted = int(rng.integers(0, 2))
            model.set("wanted", wanted)
            cycles = int(one.issue.duration())
            before = sum(bit << i for i, bit in enumerate(on))
            if name != NO_DOMAIN:
                stays_off = name == "head" and not wanted
                on[DOMAINS.index(name)] = int(opcode == "wake" and not stays_off)
            after = sum(bit << i for i, bit in enumerate(on))
            idle = int(rng.integers(0, 3))
            trace = model.run(cycles + idle, {"start": [1, *[0] * (cycles + idle - 1)]})
            assert trace.outputs["done"].tolist() == [0] * (cycles - 1) + [1] + [0] * idle
            # The result can be read in the cycle of the finish.
            assert trace.outputs["power"].tolist() == [before] * cycles + [after] * idle
            assert model.get("power") == after


def test_refusals() -> None:
    with pytest.raises(UserError, match="power_sleep"):
        build_power(Design(), machine(3, 0), DOMAINS, set())
    with pytest.raises(CompilerBug, match="matvec"):
        encode(DOMAINS, instruction("matvec", machine(1, 1)), {"slot": "head"})
