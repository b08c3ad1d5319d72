"""Shapes without hardware are said by a compile that emits none."""

from __future__ import annotations

from dataclasses import replace

import pytest

from intaglio.backend.hw.units.vector.constants import misfits
from intaglio.backend.program.types import Block, Buffer, Instruction, Parameter, Program
from intaglio.backend.target.target import load_target
from intaglio.dialects import formula, timeline
from intaglio.dialects.isa.queues import VECTOR
from intaglio.dialects.isa.values import Fixed
from intaglio.dialects.isa.vector import Rotary


def program(width: int, turning: int, lanes: int) -> Program:
    machine = replace(load_target("roma-mini").machine(), vector_lanes=lanes)
    issue = timeline.Issue(VECTOR, {}, formula.constant(1))
    does = Rotary(input="q", output="q", cos="cos", sin="sin", heads=2, rotary_dim=turning)
    instructions = [Instruction(does, [[node]], issue, [], []) for node in ("q_rotary", "k_rotary")]
    return Program(
        machine=machine,
        name="rotary",
        vocabulary=1,
        parameters={
            name: Parameter(name, name, "rom.tensor", (8, turning // 2), "fixed16", 16, 0, 14)
            for name in ("cos", "sin")
        },
        caches={},
        buffers={"q": Buffer("q", Fixed(2 * width, 16), "vectors")},
        blocks=[Block("layer", False, [{"cos": "cos", "sin": "sin"}], instructions)],
        positions=[],
        logits="q",
        token="q",
    )


@pytest.mark.parametrize(
    ("width", "turning", "lanes"), [(128, 96, 512), (64, 48, 16), (80, 32, 64)]
)
def test_widths_that_do_not_fit(width, turning, lanes):
    (found,) = misfits(program(width, turning, lanes))
    assert "node 'q_rotary' and 1 more" in found
    assert f"heads of {width} elements, of which {turning} turn, do not fit {lanes}" in found


@pytest.mark.parametrize(
    ("width", "turning", "lanes"), [(128, 128, 512), (128, 96, 16), (64, 64, 16)]
)
def test_widths_that_fit(width, turning, lanes):
    assert not misfits(program(width, turning, lanes))
