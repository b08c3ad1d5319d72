"""What the codes of softmax's numerators cost over long contexts; prints a table.

    python bench/softmax_codes.py [--tokens 512 4096 16384]

Scores are normal with a standard deviation of so many nats; values are normal with a scale of their
own a token and a part in common, as int8 codes with half steps. With a sink the first token takes
nine tenths of the weight and has a value of 2 %. What is run are the simulator's kernels: softmax,
weighted sum, requantisation. The error is that of the attention's result against an exact softmax
of the same scores over the same codes, root mean square over that of the exact result.
"""

from __future__ import annotations

import argparse
import math

import numpy as np
import numpy.typing as npt

from intaglio.dialects.fixed_point import Scale
from intaglio.dialects.formulas.softmax import SCORE_FRAC
from intaglio.dialects.semantics import pre_shift, weighted_sum_bits
from intaglio.runtime.engines import vector_kernels as kernels

WIDTH, ROWS, FRACTION = 64, 24, 20
FORMATS = ("uint8", "uint16", "places8")
Floats = npt.NDArray[np.float64]


def errors(tokens: int, deviation: float, sink: bool) -> list[float]:
    """The error with each of `FORMATS`."""
    rng = np.random.default_rng(tokens)
    s: Floats = rng.standard_normal((ROWS, tokens)) * deviation
    v: Floats = rng.standard_normal((tokens, WIDTH)) + 0.5 * rng.standard_normal(WIDTH)
    v *= np.exp(0.3 * rng.standard_normal((tokens, 1)))
    if sink:
        s[:, 0] = np.log(9 * np.exp(s[:, 1:]).sum(-1))
        v[0] *= 0.02
    scores = np.rint(s * math.log2(math.e) * 2**SCORE_FRAC).astype(np.int64)
    values = kernels.quantize_heads(np.rint(v * 2**16).astype(np.int64), "half8", 16)
    p = np.exp2((scores - scores.max(-1, keepdims=True)) / 2**SCORE_FRAC)
    want = (p @ values.values) / p.sum(-1, keepdims=True)
    cached = values.codes.astype(np.int8)[None]
    scale = Scale(values.scale.mantissa.T, values.scale.exponent.T)
    found: list[float] = []
    for fmt in FORMATS:
        softmax = kernels.softmax_places if fmt == "places8" else kernels.softmax
        codes, total = softmax(scores[None], scale, fmt)
        sums = kernels.weighted_sum(codes.codes, cached, fmt, "half8")
        by = kernels.multiply(codes.scale, kernels.reciprocal_scale(total))
        shift = pre_shift(weighted_sum_bits(tokens, fmt, "half8"))
        y = kernels.requantize(sums.reshape(1, -1), by, 0, shift, FRACTION)
        off = y.reshape(ROWS, WIDTH) / 2**FRACTION - want
        found.append(float(np.sqrt((off**2).mean() / (want**2).mean())))
    return found


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tokens", type=int, nargs="+", default=[512, 4096, 16384])
    counts = parser.parse_args().tokens
    print("| tokens | deviation | sink | " + " | ".join(FORMATS) + " |")
    print("|---|---|---|" + "---|" * len(FORMATS))
    for tokens in counts:
        for deviation in (1.0, 2.0):
            for sink in (False, True):
                cells = " | ".join(f"{100 * one:.2f} %" for one in errors(tokens, deviation, sink))
                print(f"| {tokens:,} | {deviation:g} | {'yes' if sink else 'no'} | {cells} |")


if __name__ == "__main__":
    main()
