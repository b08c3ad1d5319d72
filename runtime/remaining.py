"""How long the rest of many equal steps will take, by those that are done."""

from __future__ import annotations

import time
from collections.abc import Callable

LONG = 60.0
"""Seconds from which on it is said that work is long."""


class Remaining:
    """Counts steps of equal work.

    The first step is not counted where there are more: it loads and compiles what the others use.

    Args:
        steps: how many there are.
        clock: seconds from any beginning.
    """

    def __init__(self, steps: int, clock: Callable[[], float] = time.perf_counter) -> None:
        self._steps, self._clock = steps, clock
        self._began = 0
        self._second = 0.0

    def begin(self) -> float | None:
        """A step begins: seconds that it and the others will take; None in the first two."""
        now = self._clock()
        self._began += 1
        if self._began == 2:
            self._second = now
        if self._began < 3:
            return None
        return (now - self._second) / (self._began - 2) * (self._steps - self._began + 1)


def duration(seconds: float) -> str:
    """A length of time in the unit that people would say: `40 s`, `6 minutes`, `2.5 hours`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:.1f} hours"
