"""Durations follow the figures of a chip."""

from __future__ import annotations

from dataclasses import replace

import pytest

from intaglio.backend.target.target import load_target
from intaglio.dialects.machine import Machine
from intaglio.dialects.tiling import MatrixShape
from intaglio.lowering.schedule import durations

SLOW = ("network.results_per_cycle=1024", "h_unit.query_parallel=1")
"""Nothing but the multipliers limits attention and adapters."""


@pytest.fixture
def machine() -> Machine:
    return load_target("roma-mini").with_options(SLOW).machine()


def scores(machine: Machine, bits: int, activations: str, kv: str) -> int:
    """Cycles for 800 cached tokens, beyond those for none, of a head as wide as the lanes."""
    chip = replace(machine, multiplier_bits=bits, activations=activations)
    cycles = durations.query_key(chip, 1, 1, chip.attention_lanes, 0, kv)
    return int(cycles(tokens=800) - cycles(tokens=0))


@pytest.mark.parametrize(
    ("bits", "activations", "kv", "passes"),
    [
        (8, "int8", "int8", 1),
        (8, "int4", "fp8", 1),
        (8, "int16", "int8", 2),
        (8, "int16", "int16", 4),
        (16, "int16", "int16", 1),
        (16, "int8", "int8", 1),
        (4, "int8", "int8", 4),
        (4, "int16", "int8", 8),
    ],
)
def test_passes_of_attention(
    machine: Machine, bits: int, activations: str, kv: str, passes: int
) -> None:
    assert scores(machine, bits, activations, kv) == passes * 800 // machine.h_units


def test_passes_of_weighted_sums(machine: Machine) -> None:
    def cycles(bits: int) -> int:
        chip = replace(machine, multiplier_bits=bits, probabilities="uint16")
        found = durations.weighted_sum(chip, 1, 1, chip.attention_lanes, 0, "int8")
        return int(found(tokens=800))

    assert cycles(8) - cycles(16) == 800 // machine.h_units


def test_passes_of_adapters(machine: Machine) -> None:
    shape = MatrixShape(800, machine.attention_lanes, machine.attention_lanes, 8, 16)
    one, four, two = (
        durations.adapter_product(replace(machine, multiplier_bits=bits, activations=name), shape)
        for bits, name in ((8, "int8"), (4, "int8"), (8, "int16"))
    )
    blocks = 800 // machine.h_units
    assert four() - one() == 3 * blocks
    assert two() - one() == blocks
