"""Figures of cycles that stand in pages, as the compiler has them now.

    python bench/page_figures.py              prints what differs
    python bench/page_figures.py --write      writes it into the pages

They are those of the demo and of the BitNet example, in docs/output.md, docs/adapters.md and
examples/bitnet/README.md: a minute of compiles. What commands print on the pages, and the picture
in README, `pytest test/unit/docs --renew` brings up to date; figures of full-size chips stand in
docs/papers.md (bench/papers.py).
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

from intaglio.backend.compile import compile_model
from intaglio.backend.program.program import Program, load_program
from intaglio.backend.stages import Options
from intaglio.runtime.expected_tokens import expected_tokens
from intaglio.runtime.reports.timing import token_cycles

ROOT = Path(__file__).parents[1]
DEMO, BITNET = (ROOT / "examples" / name / "model" / "model.onnx" for name in ("demo", "bitnet"))
POSITIONS = (0, 255, 511)
RANKS = (16, 32, 64)
SOME = (("16:q_proj,v_proj", 10), ("16:v_proj,o_proj,down_proj", 15))
"""Slots at some modules, and the sites of the demo that they are."""


@dataclass(frozen=True)
class Figure:
    """A place in a page.

    Attributes:
        page: relative to the repository.
        pattern: a regular expression that fits once; what its groups match is replaced.
        now: what stands there now, a text for each group.
    """

    page: str
    pattern: str
    now: Sequence[str]

    def written(self, text: str) -> str:
        """The page's text with it.

        Raises:
            ValueError: the page has no such place, or several.
        """
        found = list(re.finditer(self.pattern, text))
        if len(found) != 1:
            raise ValueError(f"{self.page} has {len(found)} places like {self.pattern}")
        (match,) = found
        for number in range(len(self.now), 0, -1):
            first, last = match.span(number)
            text = text[:first] + self.now[number - 1] + text[last:]
        return text


class Compiled:
    """Programs of the examples, each compiled once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._made: dict[tuple[Path, str, str], Path] = {}

    def folder(self, model: Path, target: str, slots: str = "") -> Path:
        """The output folder of a model for a target, with slots of a rank at some modules."""
        key = model, target, slots
        if key not in self._made:
            rank, _, modules = slots.partition(":")
            options = Options(
                target,
                adapter_rank=int(rank or 0),
                adapter_modules=tuple(modules.split(",")) if modules else (),
                emit="program",
            )
            out = self._folder / str(len(self._made))
            self._made[key] = compile_model(model, out, options).folder
        return self._made[key]

    def program(self, model: Path, target: str, slots: str = "") -> Program:
        """Its program."""
        return load_program(self.folder(model, target, slots))

    @cached_property
    def without(self) -> list[int]:
        """Cycles of the demo without slots at `POSITIONS`."""
        return cycles(self.program(DEMO, "roma-mini"), 0)


def cycles(program: Program, rank: int) -> list[int]:
    """Of a token at `POSITIONS`, with an adapter of a rank at all sites."""
    ranks = dict.fromkeys(program.sites, rank)
    return token_cycles(program, POSITIONS, ranks=ranks).period.tolist()


def more(count: int, before: int) -> str:
    """A number of cycles, and by how many percent it is more."""
    return f"{count:,} (+{count / before - 1:.1%})".replace("%)", " %)")


def bench_line(made: Compiled) -> Iterator[Figure]:
    """What the test bench prints for the demo."""
    folder = made.folder(DEMO, "roma-mini")
    (first, *_) = expected_tokens(load_program(folder), folder)
    pattern = r"\n    token (\d+) cycle (\d+) saturations 0\n"
    yield Figure("docs/output.md", pattern, (str(first.token), str(first.cycles)))


def slots(made: Compiled) -> Iterator[Figure]:
    """What slots cost on the demo."""
    page, base = "docs/adapters.md", made.without
    cells = r" \| ".join([r"([\d,]+)"] * 3)
    pattern = rf"\| compiled without slots \| {cells} \|"
    yield Figure(page, pattern, [f"{one:,}" for one in base])
    cells = r" \| ".join([r"([\d,]+ \(\+[\d.]+ %\))"] * 3)
    for rank in RANKS:
        taken = cycles(made.program(DEMO, "roma-mini", str(rank)), rank)
        pattern = rf"\| slots of rank {rank}: [^|]*\| {cells} \|"
        yield Figure(page, pattern, [more(a, b) for a, b in zip(taken, base, strict=True)])
        if rank == RANKS[0]:
            program = made.program(DEMO, "roma-mini", str(rank))
            lower = [cycles(program, one) for one in (0, rank // 2)]
            if lower != [taken, taken]:
                raise ValueError(
                    f"{page} says that ranks of 0, {rank // 2} and {rank} cost the same"
                )
            each = (taken[0] - base[0]) / len(program.sites)
            yield Figure(page, r"At rank 16 that is ([\d.]+) cycles a site", (f"{each:.0f}",))
    for what, sites in SOME:
        program = made.program(DEMO, "roma-mini", what)
        if len(program.sites) != sites:
            raise ValueError(f"{page} says that {what} is {sites} sites, not {len(program.sites)}")
        (taken, *_) = cycles(program, 16)
        place = rf"`{what}`\s\({sites} sites\)(?: takes)?\s([\d,]+)(?: cycles at position 0)? "
        yield Figure(
            page, place + r"\((\+[\d.]+) %\)", (f"{taken:,}", f"+{100 * (taken / base[0] - 1):.1f}")
        )


def bitnet(made: Compiled) -> Iterator[Figure]:
    """Cycles of the BitNet example at position 0."""
    found = [
        int(token_cycles(made.program(BITNET, target), 0).period[0])
        for target in ("tom-mini", "bitrom-mini")
    ]
    pattern = r"\| cycles a token at position 0 \| ([\d,]+) at 500 MHz \| ([\d,]+) at 200 MHz \|"
    yield Figure("examples/bitnet/README.md", pattern, [f"{one:,}" for one in found])


def figures(made: Compiled) -> Iterator[Figure]:
    """All of them."""
    for each in (bench_line, slots, bitnet):
        yield from each(made)


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints what differs; 1 if anything does and is not written."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--write", action="store_true", help="write into the pages")
    write: bool = parser.parse_args(arguments).write
    differs = False
    with TemporaryDirectory() as folder:
        for one in figures(Compiled(Path(folder))):
            path = ROOT / one.page
            text = path.read_text()
            now = one.written(text)
            if now == text:
                continue
            differs = True
            print(f"{one.page}: {', '.join(one.now)}")
            if write:
                path.write_text(now)
    return int(differs and not write)


if __name__ == "__main__":
    sys.exit(main())
