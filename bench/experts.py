"""Mixtures of experts at full shape: cycles of a token, ROM that it reads, with and without gating.

    python bench/experts.py FOLDER      writes the models there, one layer's bytes for all layers

Nothing is engraved and no images are written; target examples/experts/roma-experts.toml.
"""

from __future__ import annotations

import sys
from pathlib import Path

from decoder_model import GPT_OSS_20B, QWEN3_30B_A3B, write_decoder
from measured import measured

from intaglio.backend.stages import Options
from intaglio.runtime.reports.rom_use import Placed, read_bits
from intaglio.runtime.reports.timing import token_cycles
from intaglio.runtime.what_if import WhatIf

TARGET = Path(__file__).parents[1] / "examples" / "experts" / "roma-experts.toml"
CONTEXT = 4096
SHAPES = {"gpt-oss-20b": GPT_OSS_20B, "Qwen3-30B-A3B": QWEN3_30B_A3B}


def main(folder: Path) -> None:
    """Prints some lines for each model, which is compiled in a process of its own."""
    for name, shape in SHAPES.items():
        path = folder / name / "model.onnx"
        if not path.exists():
            write_decoder(path.parent, shape)
        print(f"{name}: {measured([sys.executable, __file__, str(folder), name])}", flush=True)


def told(name: str, model: Path) -> None:
    """Compiles a model and prints what a token of it takes."""
    program = WhatIf(model, Options(str(TARGET), context=CONTEXT)).program()
    assert program is not None
    periods = token_cycles(program, [0, CONTEXT - 1]).period
    clock = program.machine.clock_hz
    rates = ", ".join(f"{int(c):,} cycles = {clock / int(c):,.0f} tokens/s" for c in periods)
    placed = {
        n: Placed(p, p.rom_shape, p.pieces, False)
        for n, p in program.parameters.items()
        if p.pieces
    }
    whole = sum(sum(p.bits(program.machine).values()) for p in placed.values())
    read = read_bits(program, placed)
    print(f"{name}: a token reads {read / 8e9:.2f} GB of {whole / 8e9:.2f} GB, {read / whole:.1%}")
    print(f"{name}: {rates} (positions 0 and {CONTEXT - 1})", flush=True)


if __name__ == "__main__":
    if len(sys.argv) > 2:
        told(sys.argv[2], Path(sys.argv[1]) / sys.argv[2] / "model.onnx")
    else:
        main(Path(sys.argv[1]))
