"""Full-shape models on full-size targets: memory, seconds, what fits, predicted speed.

    python bench/full_size.py                 compile a Llama-3.2-3B shape for roma, blocks of 128
    python bench/full_size.py --block 32 --decode
                                              also decode 4 tokens beside onnxruntime, same run

Weights are random. Peak memory is sampled over the whole process tree from outside; file-backed
pages are counted apart. What the predicted speed hangs on is asked by bench/papers.py.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
from pathlib import Path

from decoder_model import LLAMA_3_2_3B, LLAMA_3_8B, Shape, write_decoder
from measured import compile_command, measured, read_once

from intaglio.backend.program.program import load_program
from intaglio.backend.target.target import load_target
from intaglio.dialects.tiling import Reads, activation_passes, lower_bound_cycles
from intaglio.runtime.reports.rom_use import placed_matrices, products, read_placement
from intaglio.runtime.reports.timing import token_cycles

SHAPES = {"llama-3.2-3b": LLAMA_3_2_3B, "llama-3-8b": LLAMA_3_8B}
CONTEXT = 1024


def predict(out: Path) -> None:
    """Predicted tokens/s beside the paper and the lower bound."""
    program = load_program(out)
    machine = program.machine
    reads = Reads(activation_passes(machine.activations, machine))
    placed = placed_matrices(program, read_placement(out, program))
    bound = sum(
        lower_bound_cycles(placed[name].shape, machine, reads) for name in products(program)
    )
    print(
        f"lower bound (weights / lanes): {bound:.0f} cycles, {machine.clock_hz / bound:.0f} tok/s"
    )
    of = load_target("roma")
    for label, position, paper in (
        ("no KV", 0, "published.decode_tokens_per_s"),
        ("1K KV", CONTEXT - 1, "published.decode_1k_tokens_per_s"),
    ):
        cycles = int(token_cycles(program, [position]).period[0])
        print(
            f"{label}: {cycles} cycles, {machine.clock_hz / cycles:.0f} tok/s; "
            f"paper {of.number(paper):.0f}; bound {machine.clock_hz / bound:.0f}"
        )


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
    print(f"compile: {measured(compile_command(model, out, 'roma', CONTEXT))}")
    predict(out)
    if arguments.decode:
        decode_ratio(out, 4)


if __name__ == "__main__":
    main()
