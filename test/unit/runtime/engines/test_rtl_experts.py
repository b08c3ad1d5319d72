"""Mixtures of experts on the hardware: all values, starts and finishes, for any routing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_chip import SMALL

from intaglio.backend.compile import compile_model
from intaglio.backend.program.power_bits import power_bits
from intaglio.backend.program.program import Instruction, load_program
from intaglio.backend.stages import Options
from intaglio.dialects import semantics
from intaglio.dialects.isa.matrix import ExpertMatvec
from intaglio.dialects.isa.vector import Route
from intaglio.runtime.engines.compare import compare_token
from intaglio.runtime.engines.rtl import RTLChip
from intaglio.runtime.engines.simulator import Simulator


@pytest.mark.parametrize(
    ("target", "name", "settings"),
    [
        # Two of eight, 4 bits, biases, SwiGLU with a limit.
        ("roma-mini", "experts", SMALL),
        # A norm's factor that comes as late as a small product can take it.
        ("roma-mini", "experts", ("latency.table_lookup=8",)),
        # Three of five, 8 bits; activations in two passes.
        ("roma-mini", "experts8", (*SMALL, "activations=int16")),
        # Ternary, behind power gates.
        ("tom-mini", "experts_ternary", ()),
    ],
)
def test_equal_in_every_value_and_cycle(
    model: Callable[[str], Path],
    tmp_path: Path,
    target: str,
    name: str,
    settings: tuple[str, ...],
) -> None:
    options = Options(target, settings, context=8, emit="hw")
    out = compile_model(model(name), tmp_path / "out", options).folder
    program = load_program(out)
    assert (target == "tom-mini") == bool(program.domains)
    chip, simulator = RTLChip(program, out, cache=False, opt=0), Simulator(program, out)
    tokens = np.random.default_rng(1).integers(0, program.vocabulary, 4).tolist()
    for position, token in enumerate(tokens):
        result = compare_token(simulator, chip, token, position)
        assert result.equal, str(result.difference)
    used = {one.does.expert for block in program.blocks for one in block.whole
            if isinstance(one.does, ExpertMatvec)}  # fmt: skip
    assert used == set(range(3 if name == "experts8" else 2))
    chip.close()


@pytest.mark.parametrize("words", [32, 64])
def test_only_the_chosen_experts_banks_are_on(
    model: Callable[[str], Path], tmp_path: Path, words: int
) -> None:
    """Equal although the others' banks give zeros; which are on is what the routing says."""
    settings = ("policy.expert_power=chosen", f"l_unit.bank_words={words}")
    options = Options("tom-mini", settings, context=8, emit="hw")
    out = compile_model(model("experts_ternary"), tmp_path / "out", options).folder
    program = load_program(out)
    chip, simulator = RTLChip(program, out, cache=False, opt=0), Simulator(program, out)
    bits = power_bits(program)
    assert len({one.experts for one in bits if one.row is not None}) > 3
    tokens = np.random.default_rng(1).integers(0, program.vocabulary, 3).tolist()
    for position, token in enumerate(tokens):
        result = compare_token(simulator, chip, token, position)
        assert result.equal, str(result.difference)

    chosen: list[list[int]] = []

    def observe(one: Instruction, instance: int, written: list[Any]) -> None:
        if isinstance(one.does, Route):
            chosen.append(written[0][0, :2].astype(int).tolist())

    simulator.reset()
    simulator.forward([5], 0, observe=observe)
    chip.reset()
    chip.accept(5, 0, True)
    seen: set[int] = set()
    for cycle in range(1, chip.period(0, True)):
        chip.advance(cycle)
        seen.add(chip.model.get("power"))
    for layer, experts in enumerate(chosen):
        own = [n for n, one in enumerate(bits) if one.domain == f"power{layer}_experts"]
        wanted = tuple(int(any(map(bits[n].wakes, experts))) for n in own)
        assert 0 in wanted
        off = (0,) * len(own)
        assert {tuple(value >> n & 1 for n in own) for value in seen} == {off, wanted}
    chip.close()


def test_any_routing_takes_the_same_time(model: Callable[[str], Path], tmp_path: Path) -> None:
    """Fifty routings: logits of the routers replaced on both sides before anybody reads them.

    All start and finish in the cycles of one timeline, which knows nothing of logits, and give what
    `semantics` does. Ties are among them, and each expert is taken at each rank.
    """
    options = Options("roma-mini", SMALL, context=8, emit="hw")
    out = compile_model(model("experts"), tmp_path / "out", options).folder
    program = load_program(out)
    chip, simulator = RTLChip(program, out, cache=False, opt=0), Simulator(program, out)
    routers = {
        one.does.input for block in program.blocks for one in block.whole
        if isinstance(one.does, Route)
    }  # fmt: skip
    rng, taken = np.random.default_rng(7), set[tuple[int, int]]()
    ends = set[int]()

    def change(one: Instruction, result: Any) -> Any:
        if one.writes and one.writes[0] in routers:
            logits = rng.integers(-4, 4, result.shape) << rng.integers(14, 20)
            frac = program.fraction(one.writes[0])
            experts = semantics.route(logits, 2, frac).experts[0].tolist()
            taken.update(enumerate(experts))
            return logits
        return None

    for _ in range(50):
        # Two layers each: a hundred choices.
        simulator.reset()
        result = compare_token(simulator, chip, 5, 0, caches=False, change=change)
        assert result.equal, str(result.difference)
        ends.add(max(event.finish for event in chip.events))
    assert len(ends) == 1
    assert taken == {(rank, expert) for rank in range(2) for expert in range(8)}
    chip.close()
