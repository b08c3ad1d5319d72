"""How published figures stand beside ours: bench/papers_page.py."""

from __future__ import annotations

import pytest

from intaglio.backend.target.target import load_target


def test_rows(script):
    page = script("papers_page")
    row = page.Row("rate", 1000.0, 1250.0, page.whole, "so read")
    assert row.cells() == ["rate", "1,000", "1,250", "1.25", "so read"]
    assert page.Row("rate", None, 0.125, page.percent).cells()[1:4] == ["-", "12.50 %", "-"]


@pytest.mark.parametrize(
    ("figure", "goal", "cell"),
    [
        (lambda x: 10.0 * x, 480, "**48**"),
        (lambda x: 10.0 * x, 405, "**41** (410)"),
        (lambda x: 10.0 * x, 1000, "cannot; 64: 640"),
        (lambda x: abs(x - 32) + 5.0, 3, "only away"),
        (lambda _: 7.0, 3, ""),
    ],
)
def test_what_a_parameter_can_do(script, figure, goal, cell):
    page, sensitivity = script("papers_page"), script("sensitivity")
    knob = sensitivity.Knob("unit.lanes", 32, 16, 64, True)
    reaches = {knob.name: sensitivity.reach(knob, figure, goal)}
    answer = page.Answer("rate", goal, figure(32), page.whole, reaches, {}, None)
    assert answer.cell(knob.name) == cell


def test_conflicts_come_from_the_targets(script):
    page = script("papers_page")
    targets = [load_target(name) for name in ("roma", "tom", "bitrom", "hc1")]
    lines = list(page.conflicts(targets))
    found = {line.split("|")[1].strip() for line in lines[2:]}
    # C2 enters no figure of a target.
    assert found == {f"C{number}" for number in range(1, 10)} - {"C2"}
