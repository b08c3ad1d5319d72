"""How far a parameter has to move: bench/sensitivity.py."""

from __future__ import annotations

from types import ModuleType

import pytest


@pytest.fixture
def s(script) -> ModuleType:
    return script("sensitivity")


def _knob(s, value: float = 32, low: float = 16, high: float = 64, *, integer: bool = True):
    return s.Knob("unit.lanes", value, low, high, integer)


def test_an_integer_that_reaches_the_goal(s):
    found = s.reach(_knob(s), lambda lanes: 10.0 * lanes, 405)
    assert (found.needed, found.at_needed) == (41, 410)
    assert (found.own, found.at_ends) == (320, {16: 160, 64: 640})
    assert found.matters


def test_a_fraction_that_reaches_the_goal(s):
    found = s.reach(_knob(s, 2.0, 1.0, 4.0, integer=False), lambda x: 1 / x, 0.3)
    assert found.needed == pytest.approx(1 / 0.3, rel=1e-3)
    assert found.at_needed <= 0.3


def test_the_value_nearest_to_the_own_one(s):
    # A valley: both ways lead up to the goal, the way up to 36 is shorter than that down to 24.
    found = s.reach(_knob(s), lambda x: max(32 - x, 2 * (x - 32)), 8)
    assert found.needed == 36


def test_a_goal_out_of_reach(s):
    found = s.reach(_knob(s), float, 100)
    assert found.needed is None
    assert found.at_needed is None
    assert found.best(100) == (64, 64)


def test_a_parameter_that_only_leads_away(s):
    found = s.reach(_knob(s, 32, 32, 64), float, 16)
    assert found.needed is None
    assert found.best(16) is None
    assert found.matters


def test_a_parameter_without_effect(s):
    found = s.reach(_knob(s), lambda _: 7.0, 100)
    assert not found.matters
    assert found.needed is None
    assert found.best(100) is None


def test_ends_without_a_chip(s):
    found = s.reach(_knob(s), lambda x: float(x) if x <= 50 else None, 45)
    assert found.at_ends == {16: 16, 50: 50}
    assert found.needed == 45
    alone = s.reach(_knob(s), lambda x: float(x) if x == 32 else None, 45)
    assert alone.at_ends == {}
    assert not alone.matters


def test_values_without_a_chip_between(s):
    powers = (16, 32, 64)
    found = s.reach(_knob(s), lambda x: float(x) if x in powers else None, 45)
    assert (found.needed, found.at_needed) == (64, 64)


def test_all_at_their_better_ends(s):
    up = s.reach(_knob(s), float, 100)
    down = s.reach(_knob(s), lambda x: 96.0 - x, 100)
    idle = s.reach(_knob(s), lambda _: 7.0, 100)
    knobs = [s.Knob(name, 32, 16, 64, True) for name in ("up", "down", "idle")]
    reaches = [
        s.Reach(knob, one.own, one.at_ends, one.needed, one.at_needed)
        for knob, one in zip(knobs, (up, down, idle), strict=True)
    ]
    assert s.together(reaches, 100) == {"up": 64, "down": 16}


def test_settings(s):
    assert _knob(s).setting(48.0) == "unit.lanes=48"
    assert _knob(s, 0.5, 0.1, 1.0, integer=False).setting(0.25) == "unit.lanes=0.25"
