"""Full-shape models on the published accelerators: each published figure beside ours.

    python bench/papers.py                    all four; writes docs/papers.md
    python bench/papers.py --only tom         one of them, printed only

Writes models of full shape with random weights (kept in the work folder: 16 GB, and 5 GB while the
largest is compiled), compiles them, measures that, and asks what each assumed parameter of a target
can do to a predicted figure. Published figures come from the target files; nothing here is fitted
to them.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import papers_bitrom
import papers_hc1
import papers_roma
import papers_tom
from papers_page import LEGEND, Section, conflicts
from papers_work import Work

from intaglio.backend.target.target import load_target

PAGE = Path(__file__).parents[1] / "docs" / "papers.md"

STUDIES: dict[str, Callable[[Work], Section]] = {
    "roma": papers_roma.study,
    "tom": papers_tom.study,
    "bitrom": papers_bitrom.study,
    "hc1": papers_hc1.study,
}

TITLE = """\
# Published figures beside ours

`python bench/papers.py` writes this page: it compiles models of full shape with random weights and
puts every figure that is published of an accelerator beside what the compiler predicts or counts.
Published figures and their sources are those of the target files (`intaglio targets NAME`). None of
ours is fitted to them here; where an assumed parameter was chosen by a published figure,
docs/targets.md says so. What the compiles take is in docs/performance.md.
"""

LAST = """\
C2 (B-ROM's read transistors fall to a quarter, or by a quarter) is read as *to a quarter* and
enters no figure. docs/targets.md has the conflicts in full."""


def page(sections: Iterable[Section]) -> str:
    """The page, which is the same for the same tree."""
    lines = [TITLE, LEGEND, ""]
    for section in sections:
        lines += [*section.lines(), ""]
    lines += ["## Where sources conflict", "", *conflicts([load_target(name) for name in STUDIES])]
    return "\n".join([*lines, "", LAST]) + "\n"


def main() -> None:
    """Runs what the arguments ask for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=STUDIES)
    parser.add_argument("--work", type=Path, default=Path("build/papers"))
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    work = Work(arguments.work)
    names = [arguments.only] if arguments.only else list(STUDIES)
    sections = [STUDIES[name](work) for name in names]
    text = page(sections)
    print(text)
    print("Compiles, measured now (not on the page):")
    for section in sections:
        for cost, _ in section.costs:
            print(f"  {section.title}: {cost}")
    print(f"  load of the machine: {', '.join(f'{one:.1f}' for one in os.getloadavg())}")
    if not arguments.only:
        PAGE.write_text(text)
    if not all(good for section in sections for _, good in (*section.checks, *section.costs)):
        sys.exit("a figure or a limit that must hold does not")


if __name__ == "__main__":
    main()
