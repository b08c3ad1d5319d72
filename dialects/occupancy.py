"""Whether things that take addresses on neighbouring units of a chip keep apart.

A claim is a range of addresses on each unit of a range: words of a bank in the L-Units of some
tiles, bytes in the SRAM of some H-Units. Sorted by their first address, claims need one comparison
each with how far its units are taken, so time grows with the claims and not with their pairs.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np


class Claim(NamedTuple):
    """`size` addresses from `first` on, on each of `units` units from `first_unit` on."""

    name: str
    first_unit: int
    units: int
    first: int
    size: int


def first_overlap(claims: Iterable[Claim], units: int) -> tuple[Claim, Claim] | None:
    """Two claims that share an address of a unit, the lower one first; None: all keep apart.

    Args:
        claims: in any order; what they claim beyond the last unit is not looked at.
        units: of the chip.
    """
    ordered = sorted((one for one in claims if one.size > 0), key=lambda one: one.first)
    end = np.full(units, np.iinfo(np.int64).min)
    holder = np.zeros(units, np.int64)
    for number, one in enumerate(ordered):
        part = slice(one.first_unit, one.first_unit + one.units)
        taken = end[part] > one.first
        if taken.any():
            return ordered[int(holder[part][taken][0])], one
        end[part] = one.first + one.size
        holder[part] = number
    return None
