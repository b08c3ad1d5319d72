"""Compiles every model of a folder and compares it with onnxruntime; prints a table.

    python bench/conformance.py FOLDER [--target roma-mini]... [--tokens 256] [--match genai_]
                                [--weights int4:32] [--set key=value]... [--markdown]

FOLDER holds one folder a model with .onnx files in it. model.onnx is taken where there is one, then
decode.onnx, else every file. A graph that is one matrix product is run inside a small decoder
(single_product.py).

Each model is compiled for the first of the targets that takes it, in the order given; none that
does not have cells for a model's weights does. A model that is refused because its weights are
floats is quantised on request, with --weights, and onnxruntime judges the quantised graph. Models
that all targets refuse are listed with their first reason, and those that onnxruntime cannot run
are compiled only. A `*` stands before figures beyond --error (of the logits' range) and --top1.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from single_product import decoder_around, is_single_product

from intaglio.backend.compile import compile_model
from intaglio.backend.stages import Options
from intaglio.dialects.errors import UserError, UserErrors
from intaglio.runtime.chip import load

TARGETS = ("roma-mini", "tom-mini", "bitrom-mini", "hc1-mini")
FIRST = ("model.onnx", "decode.onnx")
"""Files that are taken alone, in this order."""
WIDTHS = (41, 12, 9, 12, 8, 9, 9, 4)
HEADINGS = ("model", "target", "weights", "error/range", "top-1", "counted", "KL", "sat")


def graphs(folder: Path, match: str) -> Iterator[tuple[str, Path]]:
    """Names and files of the models of a folder."""
    for one in sorted(path for path in folder.iterdir() if path.is_dir()):
        files = sorted(one.glob("*.onnx"))
        chosen = next((one / name for name in FIRST if one / name in files), None)
        for path in files if chosen is None else [chosen]:
            name = one.name if len(files) == 1 or chosen is not None else f"{one.name}/{path.stem}"
            if name.startswith(match):
                yield name, path


def reasons(error: UserError) -> list[UserError]:
    """The single errors that one stands for."""
    return list(error.errors) if isinstance(error, UserErrors) else [error]


def said(error: UserError) -> str:
    """The first reason in a line, and how many more there are."""
    first, *more = reasons(error)
    node = f"{first.op_type or 'node'} '{first.node}': " if first.node else ""
    others = f" (and {len(more)} more)" if more else ""
    return f"{node}{first.what.splitlines()[0][:150]}{others}"


def wants_weights(error: UserError) -> bool:
    """Whether --weights would help."""
    return any("--weights" in (one.hint or "") for one in (error, *reasons(error)))


def compiled(
    path: Path, work: Path, targets: Sequence[str], weights: str, settings: tuple[str, ...]
) -> tuple[Path, str, str]:
    """The folder of the first compile that succeeds, its target, and the weights requested.

    Raises:
        UserError: all targets refuse the model; the error is the first one's.
    """
    first: UserError | None = None
    for requested in (None, weights):
        for target in targets:
            out = work / f"{target}-{requested}".replace(":", "-")
            options = Options(target, settings, weights=requested, emit="program")
            try:
                return compile_model(path, out, options).folder, target, requested or ""
            except UserError as error:
                first = first or error
                if requested is None and wants_weights(error):
                    break
        else:
            break
    assert first is not None
    raise first


def figures(out: Path, tokens: int, error: float, top1: float) -> tuple[str, ...]:
    """The columns of a comparison, with a star where a tolerance is missed."""
    result = load(out).check(tokens=tokens)
    of_range, counted = result["max_error_of_range"], result["top1_agreement_counted"]
    return (
        f"{'*' * (of_range > error)}{of_range:.2%}",
        f"{result['top1_agreement']:.2%}",
        f"{'*' * (counted < top1)}{counted:.2%}",
        f"{result['mean_kl']:.1e}",
        f"{result['saturations']}",
    )


def row(cells: Sequence[str], markdown: bool) -> str:
    """A line of the table; a last cell may be longer than its column."""
    if markdown:
        return "| " + " | ".join([*cells, *[""] * (len(WIDTHS) - len(cells))]) + " |"
    return "  ".join(f"{cell:<{width}}" for cell, width in zip(cells, WIDTHS, strict=False))


def main() -> None:
    """Runs what the arguments ask for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--target", action="append", help=f"default: {', '.join(TARGETS)}")
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--match", default="")
    parser.add_argument("--weights", default="int4:32", help="for models in floating point")
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--error", type=float, default=0.05)
    parser.add_argument("--top1", type=float, default=0.95)
    parser.add_argument("--markdown", action="store_true")
    arguments = parser.parse_args()
    print(row(HEADINGS, arguments.markdown))
    if arguments.markdown:
        print("|" + "---|" * len(HEADINGS))
    targets = tuple(arguments.target or TARGETS)
    for name, path in graphs(arguments.folder, arguments.match):
        with tempfile.TemporaryDirectory() as work:
            line = [name]
            try:
                model = path
                if is_single_product(path):
                    model = decoder_around(path, Path(work) / "model")
                out, target, weights = compiled(
                    model, Path(work), targets, arguments.weights, tuple(arguments.set)
                )
                line += [target, weights]
                line += figures(out, arguments.tokens, arguments.error, arguments.top1)
            except UserError as error:
                line.append(f"{'no judge' if len(line) > 1 else 'refused'}: {said(error)}")
            print(row(line, arguments.markdown), flush=True)


if __name__ == "__main__":
    main()
