"""The rest of many equal steps."""

from __future__ import annotations

import pytest

from intaglio.runtime.remaining import Remaining, duration


def test_the_first_step_is_not_counted():
    times = iter([0.0, 50.0, 60.0, 70.0, 90.0])
    remaining = Remaining(10, lambda: next(times))
    # Steps of 50, 10, 10 and 20 s; the mean of all but the first, times those to come.
    found = [remaining.begin() for _ in range(5)]
    assert found == [None, None, 80.0, 70.0, pytest.approx(40 / 3 * 6)]


@pytest.mark.parametrize("steps", [1, 2])
def test_few_steps_are_not_known(steps: int):
    remaining = Remaining(steps)
    assert [remaining.begin() for _ in range(steps)] == [None] * steps


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "0 s"),
        (61, "61 s"),
        (89.4, "89 s"),
        (120, "2 minutes"),
        (5_000, "83 minutes"),
        (9_000, "2.5 hours"),
    ],
)
def test_durations(seconds: float, text: str):
    assert duration(seconds) == text
