"""A mixture of experts, end to end: the simulator's two ways, the judge, times."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from intaglio.backend.compile import compile_model
from intaglio.backend.program.program import load_program
from intaglio.backend.stages import Options
from intaglio.backend.target.target import load_target
from intaglio.dialects import semantics
from intaglio.dialects.tiling import Reads
from intaglio.runtime.chip import load
from intaglio.runtime.engines.simulator import Simulator
from intaglio.runtime.judge.check import check
from intaglio.runtime.judge.routing import routing_lines
from intaglio.runtime.reports.power import power
from intaglio.runtime.reports.rom_use import (
    Placed,
    placed_matrices,
    products,
    read_bits,
    read_placement,
)
from intaglio.runtime.reports.timing import TokenTimeline

TOKENS = [int(one) for one in np.random.default_rng(3).integers(0, 64, 24)]


@pytest.fixture(scope="module")
def compiled(model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("experts") / "out"
    return compile_model(model("experts"), out, Options("roma-mini", context=64)).folder


def test_kernels_and_semantics_agree_in_batches_and_token_by_token(compiled: Path) -> None:
    program = load_program(compiled)
    fast, slow = Simulator(program, compiled), Simulator(program, compiled, reference=True)
    together = fast.forward(TOKENS)
    assert together is not None
    assert np.array_equal(together, slow.forward(TOKENS))
    assert fast.saturations == slow.saturations
    fast.reset()
    for position, token in enumerate(TOKENS):
        step = fast.step(token, position)
        assert step is not None and np.array_equal(step[0], together[position])


def test_experts_that_are_forced_are_taken(compiled: Path) -> None:
    """What a comparison asks for changes the values of the token, and of none before it."""
    simulator = Simulator(load_program(compiled), compiled)
    free = simulator.forward(TOKENS)
    assert free is not None
    simulator.reset()
    simulator.forced[0, 5] = [7, 0]
    other = simulator.forward(TOKENS)
    assert other is not None
    assert np.array_equal(free[:5], other[:5]) and not np.array_equal(free[5], other[5])


@pytest.mark.parametrize(
    ("formats", "bound", "most"), [((), 0.05, 3), (("int16", "int16"), 0.003, 0)]
)
def test_the_judge(
    formats: tuple[str, ...],
    bound: float,
    most: int,
    compiled: Path,
    model: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    if formats:
        settings = tuple(f"{n}={f}" for n, f in zip(("activations", "kv"), formats, strict=True))
        options = Options("roma-mini", context=64, settings=settings, emit="program")
        compiled = compile_model(model("experts"), tmp_path / "out", options).folder
    result = check(load(compiled), tokens=64)
    choices = result["expert_choices"]
    assert choices["choices"] == 2 * 64
    # Of int8, one scale a token is coarser than onnxruntime's one a block.
    assert choices["counted"] <= most
    assert choices["max_error_of_range"] < bound
    assert result["top1_agreement_counted"] >= (0.95 if most else 1.0)
    assert choices["judge"] == result["judge"] and choices["tokens"] == 64
    more = choices["differing"] > len(choices["listed"])
    assert len(list(routing_lines(choices))) == 2 + len(choices["listed"]) + more


def test_near_ties_are_told_apart(compiled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A router that takes the other one of two nearly equal logits is no error; any other is."""
    chip = load(compiled)
    whole = semantics.route

    def worst(logits: np.ndarray, chosen: int, *more: int, **rest: bool) -> semantics.Routing:
        found = whole(logits, chosen, *more, **rest)
        experts = found.experts.copy()
        # The last chosen one gives way to the one with the smallest logit, for the first token.
        experts[0, -1] = logits[0].argmin()
        return semantics.route_to(logits, experts, *more)

    monkeypatch.setattr(semantics, "route", worst)
    # The context is a window: three of them.
    choices = check(chip, tokens=64 + 64 + 16)["expert_choices"]
    assert choices["tokens"] == 144 and choices["choices"] == 2 * 144
    assert choices["counted"] >= 6
    # Of the first token of each window both layers', and they are left out of the errors.
    wrong = [one["token"] for one in choices["listed"] if not one["near_tie"]]
    assert all(wrong.count(token) == 2 for token in (0, 64, 128))
    assert choices["same_tokens"] == 144 - len(set(wrong))


def test_energy_is_that_of_the_chosen_experts(compiled: Path) -> None:
    """Two of eight: each family counts twice, with the cycles of one expert."""
    program = load_program(compiled)
    families = [p for p in program.parameters.values() if p.experts > 1]
    assert len(families) == 4
    for one in families:
        assert one.experts == 8 and products(program).count(one.name) == 2
        placed = Placed(one, one.rom_shape, one.pieces, False)
        alone = replace(one, dims=(one.dims[0] // 8, one.dims[1]), experts=1)
        single = Placed(alone, alone.rom_shape, one.pieces, False)
        assert placed.busy_l_units(program.machine, Reads(1)) == single.busy_l_units(
            program.machine, Reads(1)
        )
        bits = placed.bits(program.machine), single.bits(program.machine)
        assert sum(bits[0].values()) == 8 * sum(bits[1].values())


def test_energy_is_proportional_to_the_chosen(model: Callable[[str], Path], tmp_path: Path) -> None:
    """The L-Units' busy cycles: a part for all else, and k times that of one expert."""
    busy = dict[int, int]()
    for chosen in (1, 2, 3, 5, 8):
        graph = onnx.load(model("experts"))
        for node in graph.graph.node:
            for attribute in node.attribute:
                if node.op_type == "QMoE" and attribute.name == "k":
                    attribute.i = chosen
        path = tmp_path / f"{chosen}.onnx"
        onnx.save(graph, path)
        out = tmp_path / f"out{chosen}"
        compile_model(path, out, Options("roma-mini", context=8, emit="program"))
        program = load_program(out)
        placed = placed_matrices(program, read_placement(out, program))
        found = power(TokenTimeline(program, [0]), load_target("roma-mini"), placed)
        busy[chosen] = found["l_units"]["busy_cycles"]
        families = [p for p in program.parameters.values() if p.experts > 1]
        whole = sum(sum(placed[p.name].bits(program.machine).values()) for p in families)
        rest = [p.name for p in program.parameters.values() if p.name in placed and p.experts == 1]
        others = sum(
            sum(placed[name].bits(program.machine).values())
            for name in products(program)
            if name in rest
        )
        assert (read_bits(program, placed) - others) * 8 == whole * chosen
    each = busy[2] - busy[1]
    assert each > 0
    assert busy == {chosen: busy[1] + (chosen - 1) * each for chosen in busy}


def test_the_trained_mixture(tmp_path: Path) -> None:
    """examples/experts: small, and its perplexity on held-out text is the judge's within 0.3 %."""
    folder = Path(__file__).parents[4] / "examples"
    model = folder / "experts" / "model" / "model.onnx"
    assert sum(path.stat().st_size for path in model.parent.iterdir()) < 3 << 20
    options = Options("roma-mini", context=256, emit="program")
    out = compile_model(model, tmp_path / "out", options).folder
    result = check(load(out), text=folder / "demo" / "held_out.txt", windows=2)
    assert abs(result["perplexity"] / result["reference_perplexity"] - 1) < 0.003
