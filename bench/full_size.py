"""Full-shape models on full-size targets: memory, seconds, what fits, predicted speed.

    python bench/full_size.py                 compile a Llama-3.2-3B shape for roma, blocks of 128
    python bench/full_size.py --block 32 --decode
                                              also decode 4 tokens beside onnxruntime, same run

Weights are random. Peak memory is sampled over the whole process tree from outside; file-backed
pages are counted apart.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import time
from pathlib import Path

from decoder_model import LLAMA_3_2_3B, LLAMA_3_8B, Shape, write_decoder

from intaglio.backend.target import load_target

SHAPES = {"llama-3.2-3b": LLAMA_3_2_3B, "llama-3-8b": LLAMA_3_8B}
PAPER = {"no KV": 31_800.0, "1K KV": 24_600.0}
"""ROMA, tokens/s at decode (facts/papers.md 1.4)."""
CONTEXT = 1024
LEVERS = (
    "latency.broadcast=4",
    "latency.reduce=4",
    "latency.vector_reduce=4",
    "latency.vector_pipeline=2",
    "latency.table_lookup=2",
    "vector.lanes=128",
    "network.results_per_cycle=2048",
    "h_unit.attention_lanes=128",
)
"""Assumed parameters at the fast end of their plausible ranges."""


def tree_memory(root: int) -> tuple[int, int]:
    """Anonymous and shared bytes, and file-backed bytes, of a process and its descendants."""
    total = file_backed = 0
    pids = [root]
    for pid in pids:
        try:
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            status = Path(f"/proc/{pid}/status").read_text()
        except OSError:
            continue
        pids += [int(child) for child in children]
        fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)

        def size(name: str, fields: dict[str, str] = fields) -> int:
            return int(fields.get(name, "0 kB").split()[0]) * 1024

        total += size("RssAnon") + size("RssShmem")
        file_backed += size("RssFile")
    return total, file_backed


def measured(command: list[str]) -> tuple[float, int, int]:
    """Runs a command; seconds, peak anonymous and shared bytes, peak file-backed bytes."""
    start = time.perf_counter()
    process = subprocess.Popen(command)
    peak = [0, 0]
    while process.poll() is None:
        for i, value in enumerate(tree_memory(process.pid)):
            peak[i] = max(peak[i], value)
        time.sleep(0.02)
    if process.returncode:
        sys.exit(process.returncode)
    return time.perf_counter() - start, peak[0], peak[1]


def read_once(folder: Path) -> float:
    """Seconds to read the model's files once, in order."""
    start = time.perf_counter()
    for path in sorted(folder.iterdir()):
        with path.open("rb", buffering=0) as file:
            while file.read(1 << 22):
                pass
    return time.perf_counter() - start


def cycles_at(out: Path, position: int) -> int:
    """Cycles of one token at a position."""
    from intaglio.backend.program import load_program
    from intaglio.runtime.timing import token_cycles

    return int(token_cycles(load_program(out), [position], sampled=True).period[0])


def predict(out: Path) -> None:
    """Predicted tokens/s beside the paper and the lower bound."""
    from intaglio.backend.program import load_program
    from intaglio.dialects.tiling import MatrixShape, activation_passes, lower_bound_cycles

    program = load_program(out)
    machine = program.machine
    passes = activation_passes(machine.activations, machine)
    used = {
        instance[slot]
        for block in program.blocks
        for instruction in block.instructions
        for slot in [instruction.uses.get("weights")]
        if slot is not None
        for instance in block.instances
    }
    bound = sum(
        lower_bound_cycles(MatrixShape(*p.dims, p.group, p.bits, 16), machine, passes)
        for name, p in program.parameters.items()
        if name in used
    )
    print(
        f"lower bound (weights / lanes): {bound:.0f} cycles, {machine.clock_hz / bound:.0f} tok/s"
    )
    for label, position in (("no KV", 0), ("1K KV", CONTEXT - 1)):
        cycles = cycles_at(out, position)
        print(
            f"{label}: {cycles} cycles, {machine.clock_hz / cycles:.0f} tok/s; "
            f"paper {PAPER[label]:.0f}; bound {machine.clock_hz / bound:.0f}"
        )


def sweep(model: Path, changes: list[tuple[str, ...]]) -> None:
    """Predicted speed with assumed parameters changed, without writing anything."""
    from xdsl.context import Context

    from intaglio.backend.stages import Options, passes
    from intaglio.dialects import timeline
    from intaglio.dialects.program import ProgramOp
    from intaglio.lowering.onnx.importer import import_model

    for settings in changes:
        module = import_model(model, context=CONTEXT).module
        for _, stage_passes in passes(Options("roma", settings)):
            for one in stage_passes:
                one.apply(Context(), module)
        (program,) = (op for op in module.ops if isinstance(op, ProgramOp))
        machine = load_target("roma").with_options(list(settings)).machine()
        blocks = [block.timing for block in program.blocks]
        spans = list(timeline.simulate(blocks, machine.issue, [0, CONTEXT - 1]))
        first, last = (max(int(span.finish[i]) for span in spans) for i in range(2))
        speeds = [machine.clock_hz / cycles for cycles in (first, last)]
        label = " ".join(settings) or "as the target says"
        print(f"no KV {speeds[0]:8.0f} tok/s   1K KV {speeds[1]:8.0f} tok/s   {label}")


def compile_command(model: Path, out: Path, settings: list[str]) -> list[str]:
    """The command line of a compile for roma."""
    command = [sys.executable, "-m", "intaglio.runtime.cli", "compile", str(model)]
    command += ["--target", "roma", "--context", str(CONTEXT), "-o", str(out)]
    for setting in settings:
        command += ["--set", setting]
    return command


def decode_ratio(out: Path, tokens: int) -> None:
    """Tokens/s of the functional simulator beside onnxruntime, alternating in one run."""
    speed: dict[str, list[float]] = {"simulator": [], "onnxruntime": []}
    for engine in ("onnxruntime", "simulator") * 2:
        command = [sys.executable, "-m", "intaglio.runtime.cli", "run", str(out)]
        command += ["--prompt-ids", "1,2,3", "--tokens", str(tokens), "--engine", engine]
        command += ["--json"]
        result = subprocess.run(command, check=True, capture_output=True, text=True)
        speed[engine].append(json.loads(result.stdout)["host_tokens_per_second"])
    best = {engine: max(values) for engine, values in speed.items()}
    print(f"simulator {best['simulator']:.2f} tok/s, onnxruntime {best['onnxruntime']:.2f} tok/s: ")
    print(f"ratio {best['simulator'] / best['onnxruntime']:.2f} (best of {speed})")


def main() -> None:
    """Runs what the arguments ask for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="llama-3.2-3b")
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--block", type=int, default=128)
    parser.add_argument("--layers", type=int)
    parser.add_argument("--work", type=Path, default=Path("build/full_size"))
    parser.add_argument("--decode", action="store_true", help="decode beside onnxruntime")
    parser.add_argument("--sweep", action="store_true", help="vary assumed parameters")
    arguments = parser.parse_args()
    shape: Shape = dataclasses.replace(
        SHAPES[arguments.shape], bits=arguments.bits, block=arguments.block
    )
    if arguments.layers:
        shape = dataclasses.replace(shape, layers=arguments.layers)
    folder = arguments.work / f"{arguments.shape}-{shape.layers}-int{shape.bits}-{shape.block}"
    model = folder / "model.onnx"
    if not model.is_file():
        print(f"writing {model}")
        write_decoder(folder, shape)
    out = arguments.work / f"{folder.name}.out"
    print(f"reading the files once: {read_once(folder):.1f} s")
    seconds, anonymous, file_backed = measured(compile_command(model, out, []))
    print(
        f"compile: {seconds:.1f} s, peak {anonymous / 1e6:.0f} MB anonymous and shared, "
        f"{file_backed / 1e6:.0f} MB file-backed"
    )
    predict(out)
    if arguments.sweep:
        lanes: list[tuple[str, ...]] = [(f"l_unit.lanes={n}",) for n in (16, 32, 64)]
        sweep(model, [(), *lanes, *((one,) for one in LEVERS), LEVERS])
    if arguments.decode:
        decode_ratio(out, 4)


if __name__ == "__main__":
    main()
