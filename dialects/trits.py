"""Balanced ternary: numbers as digits -1, 0 and +1, digit p counting 3**p.

What a chip with ternary cells engraves codes wider than a trit in: n digits hold every number from
-(3**n - 1) / 2 to (3**n - 1) / 2, so 8 bits take 6 cells, 6 take 4, 4 take 3, 3 and 2 take 2.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

WIDTHS = (2, 3, 4, 6, 8, 16)
"""Bits of the codes that are engraved in cells; 16 of a dense table's values."""


def largest(digits: int) -> int:
    """The largest number of so many digits.

    >>> [largest(n) for n in range(4)]
    [0, 1, 4, 13]
    """
    return (3**digits - 1) // 2


def digits_of(bits: int) -> int:
    """The fewest digits that hold every signed number of so many bits.

    >>> [digits_of(bits) for bits in WIDTHS]
    [2, 2, 3, 4, 6, 11]
    """
    digits = 1
    while largest(digits) < 1 << bits - 1:
        digits += 1
    return digits


def widest(digits: int) -> int:
    """Bits of the widest code that so many digits are for; 2 for a single trit.

    >>> [widest(n) for n in (1, 2, 3, 4, 6, 11)]
    [2, 3, 4, 6, 8, 16]
    """
    return max((bits for bits in WIDTHS if digits_of(bits) <= digits), default=2)


def balanced(values: npt.NDArray[np.signedinteger], digits: int) -> npt.NDArray[np.int8]:
    """The digits of numbers: int8 [digits, ...], the lowest first.

    Raises:
        ValueError: a number has more digits.

    >>> balanced(np.array([5, -8]), 3).tolist()
    [[-1, 1], [-1, 0], [1, -1]]
    """
    rest = values.astype(np.int64)
    found = np.empty((digits, *values.shape), np.int8)
    for place in range(digits):
        digit = (rest + 1) % 3 - 1
        found[place] = digit
        rest = (rest - digit) // 3
    if rest.any():
        raise ValueError(f"a number has more than {digits} balanced ternary digits")
    return found
