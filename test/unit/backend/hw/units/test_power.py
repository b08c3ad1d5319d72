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


def test_refusals() -> None:
    with pytest.raises(UserError, match="power_sleep"):
        build_power(Design(), machine(3, 0), DOMAINS, set())
    with pytest.raises(CompilerBug, match="copy"):
        encode(DOMAINS, instruction(Copy(input="x", output="y"), machine(1, 1)), {"slot": "head"})
