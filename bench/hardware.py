"""Runs compiled models on both hardware engines and compares every value and cycle; prints a table.

    python bench/hardware.py MODEL.onnx... [--tokens 8] [--engine rtl] [--engine verilator]
                             [--shapes 3] [--slow] [--seed 1] [--set key=value]
                             [--weights int4:32]

Each model is compiled for roma-mini, and for as many random shapes of it as `--shapes` says. The
seed is printed. With `--slow` every third shape has one unit that is much slower than the others.
Tokens are the model's own greedy choice from token 1 on. `s/token` is a token on
the hardware alone, `build` from the compiled program to a running chip (nothing kept from before).
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

from intaglio.backend.compile import compile_model
from intaglio.backend.program.program import load_program
from intaglio.backend.stages import Options
from intaglio.dialects.errors import UserError
from intaglio.runtime.engines.compare import compare_token
from intaglio.runtime.engines.names import HARDWARE_ENGINES
from intaglio.runtime.engines.rtl import RTLChip
from intaglio.runtime.engines.simulator import Simulator

SLOW = {
    "matrix": ("array.l_units=2", "l_unit.lanes=4", "stage.rom_access_cycles=40"),
    "requantise": ("latency.requantise=50",),
    "vector": ("latency.vector_pipeline=50",),
    "tables": ("latency.table_lookup=50",),
    "attention": ("h_unit.kv_port_bytes=8", "latency.attention_pipeline=50"),
    "appends": ("latency.kv_write=50",),
    "reduction": ("latency.vector_reduce=50",),
    "network": ("latency.broadcast=50", "latency.reduce=50"),
    "sampler": ("latency.sample=50",),
}
"""Settings that make one unit, or one part of it, some ten times slower than the others."""


def random_shape(rng: np.random.Generator) -> tuple[str, ...]:
    """Settings of another mini chip that can be built: geometry, lanes and latencies."""
    columns, lanes = int(rng.choice([2, 4])), int(rng.choice([4, 8]))
    attention = int(rng.choice([8, 16, 32]))
    latencies = {
        "issue": (1, 4),
        "requantise": (3, 8),
        "vector_pipeline": (3, 9),
        "table_lookup": (3, 8),
    }
    return (
        f"array.rows={rng.choice([3, 5])}",
        f"array.columns={columns}",
        f"array.l_units={rng.choice([2, 4, 8])}",
        f"vector.lanes={lanes}",
        f"network.results_per_cycle={lanes * columns}",
        f"l_unit.lanes={rng.choice([4, 8])}",
        f"h_unit.attention_lanes={attention}",
        f"h_unit.kv_port_bytes={rng.choice([8, attention])}",
        f"h_unit.query_parallel={rng.choice([1, 2])}",
        f"stage.rom_access_cycles={rng.integers(1, 4)}",
        # With wires so slow that a register in each unit is the faster network, or without.
        f"network.wire_ps_per_mm={rng.choice([100, 10000])}",
        f"network.hop_cycles={rng.integers(1, 4)}",
        *(f"latency.{name}={rng.integers(*ends)}" for name, ends in latencies.items()),
    )


def replaced(shape: tuple[str, ...], settings: tuple[str, ...]) -> tuple[str, ...]:
    """The settings of a shape, those of the same key replaced by others."""
    both = dict(setting.split("=") for setting in (*shape, *settings))
    return tuple(f"{key}={value}" for key, value in both.items())


def compare(out: Path, engine: str, tokens: int) -> str:
    """The figures of a compiled model on an engine."""
    program = load_program(out)
    simulator = Simulator(program, out)
    start = time.perf_counter()
    chip = RTLChip(program, out, engine, cache=False)
    build = time.perf_counter() - start
    instructions = values = 0
    token = 1
    fed: list[int] = []
    for position in range(tokens):
        fed.append(token)
        result = compare_token(simulator, chip, token, position)
        instructions += result.instructions
        values += result.values
        if result.difference is not None:
            return f"DIFFERENT at token {position}: {result.difference}"
        assert result.token is not None
        token = result.token
    chip.reset()
    start, began = time.perf_counter(), chip.model.cycle
    for position, token in enumerate(fed):
        chip.step(token, position)
    seconds = time.perf_counter() - start
    cycles = chip.model.cycle - began
    chip.close()
    return (
        f"equal: {tokens} tokens, {instructions} instructions, {values} values; "
        f"build {build:.1f} s, {seconds / tokens:.3f} s/token, "
        f"{cycles / seconds / 1e3:.0f} kcycles/s"
    )


def main() -> None:
    """Runs what the arguments ask for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--tokens", type=int, default=8)
    parser.add_argument("--engine", action="append", choices=HARDWARE_ENGINES)
    parser.add_argument("--shapes", type=int, default=0)
    parser.add_argument("--slow", action="store_true")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--weights", help="for models in floating point")
    arguments = parser.parse_args()
    settings = [tuple(arguments.set)]
    for seed in range(arguments.seed, arguments.seed + arguments.shapes):
        rng = np.random.default_rng(seed)
        shape = random_shape(rng)
        if arguments.slow and seed % 3 == 0:
            shape = replaced(shape, SLOW[sorted(SLOW)[seed // 3 % len(SLOW)]])
        settings.append((*arguments.set, *shape))
        print(f"shape {len(settings) - 1}, seed {seed}: {' '.join(settings[-1])}")
    with tempfile.TemporaryDirectory() as work:
        for model in arguments.models:
            for number, one in enumerate(settings):
                name = f"{model.parent.name} shape {number}"
                out = Path(work) / f"{model.parent.name}{number}"
                try:
                    options = Options(
                        "roma-mini",
                        one,
                        context=max(64, arguments.tokens),
                        weights=arguments.weights,
                    )
                    compile_model(model, out, options)
                    for engine in arguments.engine or HARDWARE_ENGINES:
                        print(f"{name}, {engine}: {compare(out, engine, arguments.tokens)}")
                except UserError as error:
                    print(f"{name}: refused: {error}")


if __name__ == "__main__":
    main()
