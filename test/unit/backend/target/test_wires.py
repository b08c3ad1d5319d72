"""Latencies of distances: a wire's delay over the die's geometry, and never more than registers."""

from __future__ import annotations

import math

import pytest

from intaglio.backend.target.report import shown_json, target_text
from intaglio.backend.target.target import Target, load_target, target_names

DISTANCES = ("broadcast", "reduce", "vector_reduce", "sample")
REGISTERS = "network.wire_ps_per_mm=10000"
"""So slow that a register in each unit is the faster network."""
BEFORE = {
    "roma": (24, 26, 18, 9),
    "roma-mini": (4, 5, 3, 2),
    "tom": (4, 5, 3, 2),
    "tom-mini": (3, 4, 2, 2),
    "bitrom": (6, 6, 3, 2),
    "bitrom-mini": (4, 4, 2, 2),
    "hc1": (9, 11, 7, 9),
    "hc1-mini": (3, 4, 4, 3),
}
"""With a register a hop, by hand from rows, columns and branchings."""


def latencies(target: Target, *settings: str) -> tuple[int, ...]:
    changed = target.with_options(settings)
    return tuple(changed.integer(f"latency.{name}") for name in DISTANCES)


@pytest.mark.parametrize("name", target_names())
def test_registers_in_each_unit_stay_selectable(name: str):
    target = load_target(name)
    assert latencies(target, REGISTERS) == BEFORE[name]
    assert all(a <= b for a, b in zip(latencies(target), BEFORE[name], strict=True))


@pytest.mark.parametrize("name", target_names())
def test_slower_wires_and_adders_are_never_faster(name: str):
    target, last = load_target(name), (0, 0, 0, 0)
    for wire in (1, 30, 60, 100, 150, 400, 1500, 10_000):
        settings = (f"network.wire_ps_per_mm={wire}", f"network.adder_ps={wire}")
        found = latencies(target, *settings)
        assert all(a <= b for a, b in zip(last, found, strict=True)), settings
        last = found


def test_wires_of_a_mesh():
    roma = load_target("roma")
    pitch = math.sqrt(roma.number("area.die_mm2") / (17 * 16))
    wire, adder = 0.1, 0.3  # ns
    assert latencies(roma) == (
        math.ceil((15 + 8) * pitch * wire / 2) + 2,
        math.ceil((23 * pitch * wire + (6 + 15 + 8) * adder) / 2) + 2,
        math.ceil((16 * pitch * wire + (5 + 8) * adder) / 2) + 2,
        math.ceil(8 * pitch * wire / 2) + 2,
    )
    assert latencies(roma) == (4, 8, 6, 3)
    # Twice the clock, nearly twice the cycles; a quarter of the L-Units, half of the distance.
    assert latencies(roma, "clock.frequency_hz=1000000000") == (6, 14, 9, 4)
    assert latencies(roma, "array.l_units=16")[0] == 3


def test_wires_without_a_mesh():
    assert latencies(load_target("tom")) == (3, 3, 3, 2)
    assert latencies(load_target("bitrom")) == (3, 3, 3, 2)
    assert latencies(load_target("hc1")) == (5, 9, 7, 4)
    # The die's side: 28.55 mm.
    assert (
        latencies(load_target("hc1"), "clock.frequency_hz=500000000")[0] == math.ceil(2.855 / 2) + 2
    )


def test_both_ends_are_shown():
    roma = load_target("roma")
    assert roma.wire_ends["latency.broadcast"] == (3, 5)
    assert roma.wire_ends["latency.reduce"] == (6, 12)
    assert roma.wire_ends["latency.vector_reduce"] == (4, 7)
    text = target_text(roma)
    assert "ends:    3 .. 5, network.wire_ps_per_mm at the ends of the range\n" in text
    both = "6 .. 12, network.wire_ps_per_mm and network.adder_ps at the ends of the ranges"
    assert f"ends:    {both}\n" in text
    parameters = shown_json(roma)["parameters"]
    assert isinstance(parameters, dict)
    assert parameters["latency.sample"]["ends"] == [3, 3]
    assert "ends" not in parameters["latency.requantise"]
    # What is set has no ends, nor does what is set hang on wires any more.
    changed = roma.with_options(["network.wire_ps_per_mm=80", "latency.reduce=10"])
    assert set(changed.wire_ends) == {"latency.vector_reduce"}
    assert changed.wire_ends["latency.vector_reduce"] == (5, 7)
