"""Models with states of constant size at full shape on roma: cycles of a token, SRAM, memory.

    python bench/states.py FOLDER      writes the models there, one layer's bytes for all layers

Weights are random; no images are written. What a compile itself takes is measured from outside.
"""

from __future__ import annotations

import sys
from pathlib import Path

from decoder_model import LFM2_1_2B, QWEN3_5_2B, write_decoder
from measured import compile_command, measured

from intaglio.backend.program.program import load_program
from intaglio.dialects.h_units import IN_H_UNITS, KV, STATES
from intaglio.dialects.isa.recurrence import LinearAttention
from intaglio.runtime.reports.timing import spans, token_cycles

CONTEXT = 4096


def main(folder: Path) -> None:
    """Prints some lines for each model."""
    for name, shape in (("LFM2-1.2B", LFM2_1_2B), ("Qwen3.5-2B-like", QWEN3_5_2B)):
        path = folder / name / "model.onnx"
        if not path.exists():
            write_decoder(path.parent, shape)
        out = folder / f"{name}.out"
        command = [*compile_command(path, out, "roma", CONTEXT), "--emit", "program"]
        print(f"{name}: compile {measured(command, quiet=True)}")
        program = load_program(out)
        clock, machine = program.machine.clock_hz, program.machine
        periods = token_cycles(program, [0, CONTEXT - 1]).period
        rates = ", ".join(f"{int(c):,} cycles = {clock / int(c):,.0f} tokens/s" for c in periods)
        print(f"{name}: {rates} (positions 0 and {CONTEXT - 1})")
        sizes = {n: program.memories[n].size / 2**20 for n in IN_H_UNITS if n in program.memories}
        whole = machine.sram_bytes * machine.h_units / 2**20
        kept = {KV: "keys and values", STATES: "states of linear attention"}
        told = ", ".join(f"{kept.get(n, n)} {size:.1f} MiB" for n, size in sizes.items())
        print(f"{name}: {told}, of {whole:.0f} MiB")
        taken: dict[int, int] = {}
        for span, block in spans(program, [0]):
            one = program.blocks[block].instructions[span.instruction]
            if isinstance(one.does, LinearAttention):
                number = one.beat.number
                taken[number] = taken.get(number, 0) + int(span.finish[0] - span.start[0])
        if taken:
            print(f"{name}: passes over states take {taken[0]} and {taken[1]} cycles in all")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
