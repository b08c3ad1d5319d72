"""How many tokens a model's formats take far from onnxruntime with float activations; a table.

    python bench/far_tokens.py MODEL [--target roma-mini] [--seeds 8] [--set "wide=attention"]...

Random tokens, 256 from each of some seeds (the first one is that of `check`), in windows as long as
the model holds, 256 at most. Of each token the largest error of a logit counts, over the range of
all logits of the reference. `--set` takes several settings, with blanks between; each is a row.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt

from intaglio.backend.compile import compile_model
from intaglio.backend.stages import Options
from intaglio.runtime.chip import load
from intaglio.runtime.judge.check import Against, windows_of
from intaglio.runtime.judge.defaults import DEFAULT_TOKENS, SEED, WINDOW

FAR = 0.05
Floats = npt.NDArray[np.float64]


def row(model: Path, target: str, settings: tuple[str, ...], seeds: int) -> str:
    """Largest error, tokens beyond `FAR`, 99th percentile, mean KL."""
    with tempfile.TemporaryDirectory() as folder:
        options = Options(target, settings, emit="program")
        chip = load(compile_model(model, Path(folder) / "out", options).folder)
        ids = [
            token
            for seed in range(SEED, SEED + seeds)
            for token in np.random.Generator(np.random.PCG64(seed))
            .integers(0, chip.program.vocabulary, DEFAULT_TOKENS)
            .tolist()
        ]
        judge, ours, theirs = chip.reference(float_activations=True), list[Floats](), list[Floats]()
        for part in windows_of(ids, min(WINDOW, chip.program.capacity)):
            judge.reset()
            theirs.append(judge.feed(part).astype(np.float64))
            chip.simulator.reset()
            exact = chip.simulator.forward(part, 0)
            assert exact is not None
            ours.append(exact * 2.0**-chip.simulator.fraction_bits)
    mine, wanted = np.concatenate(ours), np.concatenate(theirs)
    against = Against()
    against.add(mine, wanted, following=np.zeros(0, np.int64))
    errors, kl = np.abs(mine - wanted).max(-1) / against.range, against.summary()["mean_kl"]
    far = int((errors > FAR).sum())
    return f"{errors.max():.2%} | {far} | {np.quantile(errors, 0.99):.2%} | {kl:.1e}"


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--target", default="roma-mini")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--set", action="append", default=[""])
    arguments = parser.parse_args()
    print(f"| settings | largest | beyond {FAR:.0%} | 99th percentile | mean KL |")
    print("|---|---|---|---|---|", flush=True)
    for text in arguments.set:
        settings = tuple(text.split())
        said = " ".join(f"`{one}`" for one in settings) or "the default"
        print(f"| {said} | {row(arguments.model, arguments.target, settings, arguments.seeds)} |")


if __name__ == "__main__":
    main()
