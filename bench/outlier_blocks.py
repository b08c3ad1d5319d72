"""What a channel that stands out costs with each format of activations, and with its block wide.

    python bench/outlier_blocks.py [--windows 32] [--times 16 128] [--channel 5]

The demo for `roma-mini`, whose inputs of products have one channel that is so many times as large:
it is multiplied by a power of two before it is rounded, and its products are divided by it after
they are summed, exactly. So what is computed is the same; what differs is the rounding of the
elements beside it. The window of exponents lies as many places higher, first in the table, as it
must for nothing to saturate in the first window of text. What is run are the simulator's kernels,
which hardware equals bit for bit. Figures are against onnxruntime with float activations:
perplexity, and mean KL in nats.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from intaglio.backend.compile import compile_model
from intaglio.backend.stages import Options
from intaglio.dialects import semantics
from intaglio.dialects.isa import values
from intaglio.dialects.isa.matrix import Matvec
from intaglio.runtime.chip import load
from intaglio.runtime.engines.simulator import Simulator
from intaglio.runtime.judge.check import Against, rows_of, text_ids, windows_of
from intaglio.runtime.judge.defaults import WINDOW
from intaglio.runtime.loaded_model import LoadedModel

ROOT = Path(__file__).parents[1]
MODEL = ROOT / "examples" / "demo" / "model" / "model.onnx"
TEXT = ROOT / "examples" / "demo" / "held_out.txt"
INPUTS = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj", "lm_head")
INT32 = (1 << 31) - 1


class _Outlying(Simulator):
    """A simulator in which one channel of every product's input is larger.

    Args:
        chip: the compiled model.
        channel: its number.
        places: by so many places.
        higher: places by which windows of exponents lie higher.
    """

    def __init__(self, chip: LoadedModel, channel: int, places: int, higher: int) -> None:
        self.channel, self.places, self.clipped = channel, places, 0
        super().__init__(_raised(chip.program, higher), chip.folder)

    def _larger(self, x: Any) -> Any:
        far = x.copy()
        far[:, self.channel] <<= self.places
        np.clip(far, -INT32 - 1, INT32, out=far)
        self.clipped += int((far[:, self.channel] >> self.places != x[:, self.channel]).sum())
        return far

    def _is_input(self, name: str) -> bool:
        return any(
            isinstance(one.does, Matvec) and one.does.input == name
            for block in self.program.blocks
            for one in block.whole
        )

    def _quantize(self, one: Any, reads: Any) -> Any:
        own = self._is_input(one.output)
        return super()._quantize(one, [lambda c: self._larger(reads[0](c))] if own else reads)

    def _quantize_blocks(self, one: Any, reads: Any) -> Any:
        return super()._quantize_blocks(one, [lambda c: self._larger(reads[0](c))])

    def _product(self, matrix: Any, fmt: str) -> Any:
        product, at = super()._product(matrix, fmt), self.channel

        def exact(x: semantics.Quantized) -> Any:
            alone, others = np.zeros_like(x.codes), x.codes.copy()
            alone[:, at], others[:, at] = x.codes[:, at], 0
            more = [None, None]
            if (blocks := x.blocks) is not None:
                codes = np.zeros_like(blocks.codes), blocks.codes.copy()
                codes[0][:, at], codes[1][:, at] = blocks.codes[:, at], 0
                more = [replace(blocks, codes=one) for one in codes]
            # The channel's products count as many places less.
            sums = [
                product(x._replace(codes=one, blocks=of))
                for one, of in zip((alone, others), more, strict=True)
            ]
            return sums[0] + (sums[1] << self.places)

        return exact

    def _matvec(self, one: Any, reads: Any) -> Any:
        # Sums are in units so much smaller.
        ops, places = self._ops, self.places

        class Shifted:
            def __getattr__(self, name: str) -> Any:
                if name != "requantize":
                    return getattr(ops, name)
                return lambda y, scale, exponent, shift, *rest: ops.requantize(
                    y, scale, exponent + places, shift + places, *rest
                )

        self._ops = Shifted()
        run = super()._matvec(one, reads)

        def shifted(c: Any) -> Any:
            kept, self._ops = self._ops, Shifted()
            try:
                return run(c)
            finally:
                self._ops = kept

        self._ops = ops
        return shifted


def _raised(program: Any, places: int) -> Any:
    """The program with windows of exponents that lie higher: their integers have as many fraction
    bits less."""
    return replace(
        program,
        buffers={
            name: replace(one, type=replace(one.type, fraction=one.type.fraction - places))
            if isinstance(one.type, values.Blocks)
            else one
            for name, one in program.buffers.items()
        },
    )


def figures(chip: LoadedModel, channel: int, places: int, windows: int) -> str:
    """Places of the window, change of perplexity and mean KL."""
    ids = text_ids(chip, TEXT)[: windows * WINDOW]
    for higher in range(places + 1):
        simulator = _Outlying(chip, channel, places, higher)
        _ = simulator.forward(ids[:WINDOW], 0)
        if not (simulator.saturations + simulator.clipped):
            break
    judge, mine, one = chip.reference(float_activations=True), Against(), Against()
    for part in windows_of(ids, WINDOW):
        judge.reset()
        theirs = judge.feed(part)
        simulator.reset()
        exact = simulator.forward(part, 0)
        assert exact is not None
        for rows, logits, following in rows_of(simulator, part, exact):
            one.add(logits, theirs[rows].astype(np.float64), following)
            mine.add(logits, logits, following)
    change, kl = mine.perplexity / one.perplexity - 1, one.summary()["mean_kl"]
    lost = simulator.saturations + simulator.clipped
    return f"{higher}: {change:+.3%}, {kl:.1e}" + (f", {lost} saturated" if lost else "")


def formats(channel: int, block: int) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Their names and settings."""
    wide = tuple(f"wide.{name}={channel // block}" for name in INPUTS)
    yield "int8 a token", ("activations=int8",)
    for fmt in ("mxint8", "half8"):
        yield fmt, (f"activations={fmt}",)
        yield f"{fmt}, the block wide", (f"activations={fmt}", *wide)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--windows", type=int, default=32)
    parser.add_argument("--times", type=int, nargs="+", default=[1, 16, 128])
    parser.add_argument("--channel", type=int, default=5)
    arguments = parser.parse_args()
    times: Sequence[int] = arguments.times
    print("| format | " + " | ".join(f"x {one}" for one in times) + " |")
    print("|---|" + "---|" * len(times), flush=True)
    for name, settings in formats(arguments.channel, 16):
        with tempfile.TemporaryDirectory() as folder:
            options = Options("roma-mini", (*settings, "formats.block=16"), emit="program")
            chip = load(compile_model(MODEL, Path(folder) / "out", options).folder)
            cells = [
                figures(chip, arguments.channel, one.bit_length() - 1, arguments.windows)
                for one in times
            ]
            print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
