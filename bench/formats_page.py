"""The tables of docs/accuracy.md that say what each format costs, by `check --sensitivity`.

    python bench/formats_page.py             prints the lines that differ
    python bench/formats_page.py --write     writes them into the page

The demo is compiled for `roma-mini` with each of `ACTIVATIONS` and measured on 8 windows of its
held-out text: about a minute of CPU.
"""

from __future__ import annotations

import argparse
import difflib
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from intaglio.backend.compile import compile_model
from intaglio.backend.stages import Options
from intaglio.runtime.chip import load
from intaglio.runtime.judge.sensitivity import sensitivity

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "accuracy.md"
MODEL = ROOT / "examples" / "demo" / "model" / "model.onnx"
TEXT = ROOT / "examples" / "demo" / "held_out.txt"
CHIPS: Mapping[str, tuple[str, ...]] = {
    "the default": (),
    "`activations=int8`, `kv=int8`": ("activations=int8", "kv=int8"),
}
"""What is compared: its name in the page, and its settings."""
BEGIN, END = "<!-- formats: bench/formats_page.py -->", "<!-- formats: end -->"


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    before = PAGE.read_text("utf-8")
    head, _, rest = before.partition(BEGIN)
    _, _, tail = rest.partition(END)
    after = head + "\n".join((BEGIN, *lines(), END)) + tail
    if arguments.write:
        _ = PAGE.write_text(after, "utf-8")
        return 0
    both = before.splitlines(keepends=True), after.splitlines(keepends=True)
    sys.stdout.writelines(difflib.unified_diff(*both, "page", "measured", n=0))
    return int(before != after)


def lines() -> Iterator[str]:
    """What stands between the marks."""
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, settings) in enumerate(CHIPS.items()):
            out = Path(folder) / str(number)
            _ = compile_model(MODEL, out, Options("roma-mini", settings, emit="program"))
            yield from table(name, sensitivity(load(out), TEXT))


def table(chip: str, found: Mapping[str, Any]) -> Iterator[str]:
    """The table of a chip, and what is recommended."""
    yield ""
    yield f"| {chip}: format | | mean KL alone | share | perplexity |"
    yield "|---|---|---|---|---|"
    for row in found["roles"]:
        yield (
            f"| {row['role']} | {row['format']} | {row['mean_kl']:.1e} | {row['share']:.0%} | "
            f"{row['perplexity_change']:+.3%} |"
        )
    rows = [("16 bits everywhere", "wide"), ("as compiled", "chip")]
    settings = " ".join(f"`--set {one}`" for one in found["recommended"]["settings"])
    if settings:
        rows.append((f"with {settings}", "recommended"))
    for name, key in rows:
        one = found[key]
        yield f"| *{name}* | | {one['mean_kl']:.1e} | | {one['perplexity_change']:+.3%} |"


if __name__ == "__main__":
    raise SystemExit(main())
