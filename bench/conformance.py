"""Compiles every model of a folder and compares it with onnxruntime; prints a table.

    python bench/conformance.py FOLDER [--target roma-mini] [--tokens 256] [--match genai_]

FOLDER holds one folder a model with a model.onnx in it. Models that are refused are listed with
their first reason; those that onnxruntime cannot run are compiled only.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from intaglio.backend.compile import compile_model
from intaglio.backend.stages import Options
from intaglio.dialects.errors import UserError
from intaglio.runtime.chip import load

COLUMNS = (
    "max_error_of_range",
    "top1_agreement",
    "top1_agreement_counted",
    "mean_kl",
    "saturations",
)


def line(error: UserError) -> str:
    """The first line of an error, without the path."""
    return str(error).splitlines()[0].split(": ", 1)[-1][:110]


def main() -> None:
    """Runs what the arguments ask for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--target", default="roma-mini")
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--match", default="")
    parser.add_argument("--set", action="append", default=[])
    arguments = parser.parse_args()
    print(
        f"{'model':32s} {'error/range':>12s} {'top-1':>7s} {'counted':>7s} {'KL':>9s} {'sat':>4s}"
    )
    options = Options(arguments.target, tuple(arguments.set))
    with tempfile.TemporaryDirectory() as work:
        for path in sorted(arguments.folder.glob(f"{arguments.match}*/model.onnx")):
            name = path.parent.name
            try:
                out = compile_model(path, Path(work) / name, options).folder
            except UserError as error:
                print(f"{name:32s} refused: {line(error)}")
                continue
            try:
                result = load(out).check(tokens=arguments.tokens)
            except UserError as error:
                print(f"{name:32s} compiled; no judge: {line(error)}")
                continue
            error, top1, counted, kl, saturations = (result[column] for column in COLUMNS)
            print(
                f"{name:32s} {100 * error:11.2f}% {100 * top1:6.2f}% {100 * counted:6.2f}% "
                f"{kl:9.2e} {saturations:4d}"
            )


if __name__ == "__main__":
    main()
