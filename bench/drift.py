"""Whether states of linear attention drift: 2,000 tokens beside onnxruntime, 250 at a time.

    python bench/drift.py FOLDER [--tokens 2000]

The model is `recurrent` of test/models: two layers by the gated delta rule, heads that forget in
one token to some hundred, no attention. Errors are of the logits' range, the largest and the mean,
against onnxruntime with float activations.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "test" / "models"))

from make_models import make_model

from intaglio.backend.compile import compile_model
from intaglio.backend.stages import Options
from intaglio.runtime.chip import load

STEP = 250
FORMATS = {"int8": (), "int16": ("activations=int16",)}


def main() -> None:
    """Prints a line for each part of the text."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tokens", type=int, default=2000)
    arguments = parser.parse_args()
    path = make_model("recurrent", arguments.folder / "model")
    ids = np.random.default_rng(0).integers(0, 64, arguments.tokens)
    for name, settings in FORMATS.items():
        options = Options("roma-mini", settings, context=arguments.tokens, emit="program")
        chip = load(compile_model(path, arguments.folder / name, options).folder)
        reference = chip.reference(float_activations=True)
        fraction = chip.simulator.fraction_bits
        for first in range(0, arguments.tokens, STEP):
            part = ids[first : first + STEP]
            expected = reference.feed(list(part))
            logits = chip.simulator.forward(part, first)
            assert logits is not None
            error = np.abs(np.ldexp(logits.astype(np.float64), -fraction) - expected)
            size = float(expected.max() - expected.min())
            print(
                f"{name}: tokens {first:,} to {first + len(part):,}: largest error "
                f"{error.max() / size:.3%} of range, mean {error.mean() / size:.4%}"
            )


if __name__ == "__main__":
    main()
