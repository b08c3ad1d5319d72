"""Search for the largest number that fits."""

from __future__ import annotations

from collections.abc import Callable


def largest(fits: Callable[[int], bool], high: int) -> int:
    """The largest number from 1 to `high` that fits, where all below one that fits do too.

    0: none does.
    """
    low, beyond = 0, high + 1
    while beyond - low > 1:
        middle = (low + beyond) // 2
        low, beyond = (middle, beyond) if fits(middle) else (low, middle)
    return low
