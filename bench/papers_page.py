"""Tables of bench/papers.py: published figures beside ours, and what would make them equal."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from sensitivity import Reach

from intaglio.backend.target.target import Target

Form = Callable[[float], str]


def whole(value: float) -> str:
    """`12,345`."""
    return f"{value:,.0f}"


def fixed(digits: int) -> Form:
    """A form with so many digits behind the point."""
    return lambda value: f"{value:,.{digits}f}"


def percent(value: float) -> str:
    """`12.34 %`."""
    return f"{100 * value:.2f} %"


@dataclass(frozen=True)
class Row:
    """A figure: as published (None: not published), as predicted, and how both are read."""

    name: str
    paper: float | None
    ours: float
    form: Form
    note: str = ""

    def cells(self) -> list[str]:
        """As a row of a table."""
        if self.paper is None:
            return [self.name, "-", self.form(self.ours), "-", self.note]
        ratio = f"{self.ours / self.paper:.2f}"
        return [self.name, self.form(self.paper), self.form(self.ours), ratio, self.note]


@dataclass(frozen=True)
class Answer:
    """What the assumed parameters can do to a figure."""

    name: str
    goal: float
    own: float
    form: Form
    reaches: Mapping[str, Reach]
    choices: Mapping[str, Mapping[str, float | None]]
    """For each format or policy that is assumed: the figure with the other choices; None where
    there is no such chip."""
    together: float | None
    """All numbers at their better ends at once; None where there is no such chip."""

    def cell(self, name: str) -> str:
        """What a parameter can do."""
        one = self.reaches[name]
        if not one.matters:
            return ""
        if one.needed is not None and one.at_needed is not None:
            over = (
                ""
                if self.form(one.at_needed) == self.form(self.goal)
                else (f" ({self.form(one.at_needed)})")
            )
            return f"**{number(one.needed)}**{over}"
        best = one.best(self.goal)
        if best is None:
            return "only away"
        return f"cannot; {number(best[0])}: {self.form(best[1])}"


@dataclass
class Section:
    """An accelerator."""

    title: str
    about: str
    rows: list[Row] = field(default_factory=list)
    answers: list[tuple[str, list[Answer]]] = field(default_factory=list)
    """A model and its figures."""
    checks: list[tuple[str, bool]] = field(default_factory=list)
    costs: list[tuple[str, bool]] = field(default_factory=list)
    """Measured, and whether it is within its limits: not for the page."""

    def lines(self) -> Iterator[str]:
        """As Markdown."""
        yield f"## {self.title}"
        yield ""
        yield self.about
        yield ""
        yield from table(
            ("figure", "published", "ours", "ours / published", "reading"),
            [row.cells() for row in self.rows],
        )
        for model, answers in self.answers:
            yield ""
            yield f"### {model}: what the assumed parameters can do"
            yield ""
            yield from _answers(answers)
        if self.checks:
            yield ""
            for text, good in self.checks:
                yield f"- {'holds' if good else '**does not hold**'}: {text}"


def _answers(answers: Sequence[Answer]) -> Iterator[str]:
    first = answers[0]
    names = [name for name in first.reaches if any(a.reaches[name].matters for a in answers)]
    rows = [
        ["as the target says", "", *(a.form(a.own) for a in answers)],
        ["published", "", *(a.form(a.goal) for a in answers)],
    ]
    for name in names:
        knob = first.reaches[name].knob
        limits = f"{number(knob.value)} [{number(knob.low)}, {number(knob.high)}]"
        rows.append([f"`{name}`", limits, *(a.cell(name) for a in answers)])
    rows.append(["all at their better ends", "", *(_shown(a, a.together) for a in answers)])
    for policy, choices in first.choices.items():
        for choice in choices:
            values = [a.choices[policy][choice] for a in answers]
            if values != [a.own for a in answers]:
                shown = [_shown(a, value) for a, value in zip(answers, values, strict=True)]
                rows.append([f"`{policy}={choice}`", "", *shown])
    yield from table(("parameter", "value, range", *(a.name for a in answers)), rows)
    idle = [f"`{name}`" for name in first.reaches if name not in names]
    if idle:
        yield ""
        yield f"Without effect: {', '.join(idle)}."


def _shown(answer: Answer, value: float | None) -> str:
    return "not possible" if value is None else answer.form(value)


def number(value: float) -> str:
    """A parameter's value."""
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:.4g}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """A table in Markdown."""
    yield f"| {' | '.join(head)} |"
    yield f"|{'|'.join('---' for _ in head)}|"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def conflicts(targets: Sequence[Target]) -> Iterator[str]:
    """The readings that target files take where sources conflict, by the conflict's number."""
    found: dict[str, dict[str, str]] = {}
    for target in targets:
        for name, one in target.parameters.items():
            for conflict in re.findall(r"\bC\d\b", one.reason or ""):
                reason = re.sub(r"^Conflict C\d:? *", "", one.reason or "").strip(". ")
                if reason and not reason.startswith(", see"):
                    place = f"`{name}` of {target.name}"
                    found.setdefault(conflict, {}).setdefault(reason[0].upper() + reason[1:], place)
    rows = [
        [conflict, where, reason]
        for conflict in sorted(found)
        for reason, where in found[conflict].items()
    ]
    yield from table(("conflict", "figure", "reading"), rows)


LEGEND = """\
In the tables of assumed parameters one parameter moves at a time, within the range that its target
file states. **Bold** is the value nearest to the assumed one at which our figure reaches the
published one (in brackets what it is there, where the parameter moves in steps). *Cannot* gives the
better end of the range and the figure there. *Only away*: every other value leads away from the
published figure. *Not possible*: the compiler refuses it. The timing takes any number; the hardware
that is emitted wants powers of two for lanes. With *all at their better ends* the ranges are
exhausted for all of them at once."""
