"""Sets of numbers as texts: `3,17-20`."""

from __future__ import annotations

import re
from collections.abc import Iterable

RANGES = r"[0-9]+(?:-[0-9]+)?(?:,[0-9]+(?:-[0-9]+)?)*"
"""The form of such a text."""
MOST = 1 << 20
"""No number is as large."""


def read_ranges(text: str) -> frozenset[int]:
    """The numbers that a text names; none where it is empty.

    >>> sorted(read_ranges("3,17-19"))
    [3, 17, 18, 19]

    Raises:
        ValueError: it is of another form, a range ends before it begins, or a number is 2^20 or
            more.
    """
    if not text:
        return frozenset()
    if not re.fullmatch(RANGES, text):
        raise ValueError(f"'{text}' is no list of numbers and ranges such as 3,17-20")
    found: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        last = last or first
        if max(len(first), len(last)) > len(str(MOST)) or int(last) >= MOST:
            raise ValueError(f"'{part}' is beyond {MOST - 1}")
        if int(last) < int(first):
            raise ValueError(f"'{part}' ends before it begins")
        found.update(range(int(first), int(last) + 1))
    return frozenset(found)


def ranges_text(numbers: Iterable[int]) -> str:
    """The shortest text that names some numbers, in order.

    >>> ranges_text([19, 3, 18, 17])
    '3,17-19'
    """
    parts: list[list[int]] = []
    for number in sorted(set(numbers)):
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)
