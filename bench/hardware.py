"""Runs compiled models on both hardware engines and compares every value and cycle; prints a table.

    python bench/hardware.py MODEL.onnx... [--tokens 8] [--engine rtl] [--engine verilator]
                             [--shapes 3] [--seed 1] [--set key=value]

Each model is compiled for roma-mini, and for as many random shapes of it as `--shapes` says. The
seed is printed. Tokens are the model's own greedy choice from token 1 on. `s/token` is a token on
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
from intaglio.runtime.engines.names import HARDWARE_ENGINES
from intaglio.runtime.engines.rtl import RTLChip, compare_token
from intaglio.runtime.engines.simulator import Simulator


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
        # Wires so slow that a register in each unit is the faster network.
        "network.wire_ps_per_mm=10000",
        f"network.hop_cycles={rng.integers(1, 4)}",
        *(f"latency.{name}={rng.integers(*ends)}" for name, ends in latencies.items()),
    )


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
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--set", action="append", default=[])
    arguments = parser.parse_args()
    settings = [tuple(arguments.set)]
    for seed in range(arguments.seed, arguments.seed + arguments.shapes):
        settings.append((*arguments.set, *random_shape(np.random.default_rng(seed))))
        print(f"shape {len(settings) - 1}, seed {seed}: {' '.join(settings[-1])}")
    with tempfile.TemporaryDirectory() as work:
        for model in arguments.models:
            for number, one in enumerate(settings):
                name = f"{model.parent.name} shape {number}"
                out = Path(work) / f"{model.parent.name}{number}"
                try:
                    options = Options("roma-mini", one, context=max(64, arguments.tokens))
                    compile_model(model, out, options)
                    for engine in arguments.engine or HARDWARE_ENGINES:
                        print(f"{name}, {engine}: {compare(out, engine, arguments.tokens)}")
                except UserError as error:
                    print(f"{name}: refused: {error}")


if __name__ == "__main__":
    main()
