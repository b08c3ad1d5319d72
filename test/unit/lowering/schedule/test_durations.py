"""Durations follow the figures of a chip."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from intaglio.backend.target.target import load_target
from intaglio.dialects.formula import Formula
from intaglio.dialects.machine import Machine
from intaglio.dialects.tiling import MatrixShape
from intaglio.dialects.timeline import Times
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


def beats_of(machine: Machine, shared: int, window: int, floor: int) -> list[Beats]:
    """What an attention and an adapter of it may have in the queue, with their count."""
    sizes = 4 * shared, 4, 2 * machine.attention_lanes, window, "int8"
    shape = MatrixShape(machine.h_units, machine.attention_lanes, machine.attention_lanes, 8, 16)
    over = (durations.query_key_beat, durations.weighted_sum_beat)
    found = [one(machine, *sizes, count=n, floor=floor) for one in over for n in (1, 3)]
    return [
        *found,
        durations.adapter_beat(machine, shape, floor=floor),
        durations.slot_beat(machine, shape, first=True, floor=floor),
        durations.slot_beat(machine, shape, first=False, floor=floor),
    ]


Beats = tuple[Formula, Formula]


@pytest.mark.parametrize("name", ["roma", "roma-mini", "tom", "tom-mini", "hc1", "bitrom"])
@pytest.mark.parametrize("results", [None, 1])
def test_attention_and_adapters_finish_in_order(name: str, results: int | None) -> None:
    """Whatever follows whatever in the attention queue finishes later, by a cycle at least."""
    machine = load_target(name).machine()
    if results is not None:
        machine = replace(machine, results_per_cycle=results)
    floor = max(durations.score_drain(machine, shared) for shared in (1, 4))
    beats = [one for shared in (1, 4) for one in beats_of(machine, shared, 100 * shared, floor)]
    for tokens in (1, 99, 101, 1000):
        for rank in (0, 1, 8):
            taken = [[int(f(tokens=tokens, rank=rank)) for f in pair] for pair in beats]
            # The first one of the queue that may follow starts after the pace.
            for pace, duration in taken:
                assert 0 < pace <= duration
                assert all(pace + later > duration for _, later in taken)


@pytest.mark.parametrize("name", ["roma", "roma-mini", "tom", "hc1"])
@pytest.mark.parametrize("lookup", [1, 5, 30])
@pytest.mark.parametrize("beside", [False, True])
def test_largest_scores_count_in_order(name: str, lookup: int, beside: bool) -> None:
    """They wait for no look-up, but for the peaks of what has just left their queue free."""
    machine = replace(load_target(name).machine(), table_lookup=lookup)
    sizes = 4, 1, 2 * machine.attention_lanes, 0, "int8"
    floor = durations.score_drain(machine, 4)

    def scores(tokens: int) -> int:
        return int(
            durations.query_key_beat(machine, *sizes, count=1, floor=floor)[1](tokens=tokens)
        )

    pace, duration = durations.query_key_beat(machine, *sizes, count=1, floor=floor)
    beats = [Times(duration, pace)]
    bare = durations.peak(machine, quantized=False)
    looked_up = durations.peak(machine, quantized=True)
    assert durations.scores_peak(machine, beats, quantized=False, beside=beside) == bare
    after = durations.scores_peak(machine, beats, quantized=True, beside=beside)
    shape = MatrixShape(machine.h_units, machine.attention_lanes, machine.attention_lanes, 8, 16)
    others = [durations.weighted_sum_beat(machine, *sizes, count=1, floor=floor)]
    if beside:
        others.append(durations.adapter_beat(machine, shape, floor=floor))
    slack: list[int] = []
    for tokens in (1, 99, 1000):
        for pace, duration in others:
            left = int(duration(tokens=tokens)) + looked_up
            slack.append(int(pace(tokens=tokens)) + scores(tokens) + after - left)
    # Never with another one, and no later than that needs.
    assert min(slack) >= 1 and (after == bare or min(slack) == 1)


@pytest.mark.parametrize("lookup", [1, 9, 40])
@pytest.mark.parametrize("outside", [0, 64])
def test_heads_one_by_one_take_as_long_as_together(
    machine: Machine, lookup: int, outside: int
) -> None:
    """But for what is waited for once a beat; never less with more tokens."""
    chip = replace(machine, table_lookup=lookup)
    if outside:
        chip = replace(chip, kv_on_die=outside, external_bytes=16, external_latency=30)
    for function in (durations.query_key_beat, durations.weighted_sum_beat):

        def paces(count: int, tokens: int, function: Any = function) -> int:
            pace, _ = function(chip, 8, 4, 32, 0, "int8", count=count, floor=1)
            return int(pace(tokens=tokens))

        before = 0
        for tokens in range(1, 200):
            one, four = paces(1, tokens), paces(4, tokens)
            assert before <= four <= 4 * one
            late = tokens > outside > 0
            if not late and lookup == 1:
                assert four == 4 * one
            before = four
