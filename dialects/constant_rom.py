"""How vectors and tables lie in the constant ROM of the vector units, the memory `constants`.

It has rows of `vector_lanes` numbers of 32 bits, and a row is what the lanes take at once. So a
table lies there as the instruction that reads it takes it:

| form       | of what                       | rows                                                |
|------------|-------------------------------|-----------------------------------------------------|
| `plain`    | norm weights, biases          | its numbers, one after the other                    |
| `repeated` | norm weights shorter than a   | one, with the numbers again and again: groups of a  |
|            | row                           | vector lie side by side in one                      |
| `halves`   | cosines and sines of heads of | as `plain`, `halves` of a head that turn with one   |
|            | several rows                  | another, at each position                           |
| `pairs`    | the same, of narrower heads   | of each position, expanded to the lanes of a head:  |
|            |                               | partners half a rotation apart                      |
| `adjacent` | the same, interleaved         | the same, partners side by side                     |
| `apart`    | biases of experts             | those of each expert begin in a row of their own    |

What is expanded has `period` lanes, after which a row begins again: those of a head, or of a row
where a head has several. Lanes that do not turn are multiplied by 1; tables of sines are `negated`
where lanes subtract. Tables of positions end with the caches' capacity.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from intaglio.dialects.fixed_point import FIXED_BITS
from intaglio.dialects.memories import LEAST_ROWS, Memory

CONSTANTS = "constants"
PLAIN, REPEATED, HALVES, PAIRS, ADJACENT = "plain", "repeated", "halves", "pairs", "adjacent"
APART = "apart"
FORMS = (PLAIN, REPEATED, HALVES, PAIRS, ADJACENT, APART)


@dataclass(frozen=True)
class Form:
    """How numbers lie in rows.

    Attributes:
        kind: a member of `FORMS`.
        period: lanes after which what is expanded begins again; 0 where nothing is.
        negated: whether lanes that subtract have their numbers negated.
    """

    kind: str = PLAIN
    period: int = 0
    negated: bool = False

    @property
    def turns(self) -> bool:
        """Whether it is of a table of positions."""
        return self.kind in (HALVES, PAIRS, ADJACENT)

    def position_rows(self, columns: int, lanes: int) -> int:
        """Rows of a position of a table with so many cosines or sines a position, or of an expert's
        biases."""
        return -(-columns // lanes) if self.kind in (HALVES, APART) else -(-2 * columns // lanes)

    def depth(self, dims: Sequence[int], lanes: int, capacity: int) -> int:
        """Rows of a tensor; tables end at `capacity` positions."""
        if self.turns:
            return min(dims[0], capacity) * self.position_rows(dims[-1], lanes)
        if self.kind == APART:
            return dims[0] * self.position_rows(dims[-1], lanes)
        return 1 if self.kind == REPEATED else -(-prod(dims) // lanes)

    def rows(
        self, values: npt.NDArray[np.integer[Any]], lanes: int, capacity: int, fraction: int
    ) -> npt.NDArray[np.int64]:
        """The rows [depth, lanes] of a tensor's integers.

        Args:
            values: [n], or [positions, turning / 2].
            lanes: of a row.
            capacity: positions of a table.
            fraction: bits of a table: what does not turn is multiplied by 1.
        """
        values = np.asarray(values, np.int64)
        if self.turns:
            values = values[:capacity]
        if self.kind == APART:
            return np.pad(values, ((0, 0), (0, -values.shape[1] % lanes))).reshape(-1, lanes)
        if self.kind in (PLAIN, HALVES):
            flat = values.reshape(-1)
            return np.pad(flat, (0, -flat.size % lanes)).reshape(-1, lanes)
        if self.kind == REPEATED:
            return np.tile(values.reshape(-1), lanes // self.period)[None]
        count, half = values.shape
        still, first = (0, -values) if self.negated else (1 << fraction, values)
        width = max(self.period, self.position_rows(half, lanes) * lanes)
        head = np.full((count, width), still, np.int64)
        if self.kind == ADJACENT:
            head[:, 0 : 2 * half : 2], head[:, 1 : 2 * half : 2] = first, values
        else:
            head[:, :half], head[:, half : 2 * half] = first, values
        if self.period < lanes:
            head = np.tile(head[:, : self.period], (1, lanes // self.period))
        return head.reshape(-1, lanes)


def norm_form(size: int, groups: int, length: int, lanes: int) -> Form:
    """The form of a norm's weights.

    Args:
        size: elements of the vector.
        groups: in which each has a norm of its own.
        length: of the weights; each group has the same, or its own.
        lanes: of a row.
    """
    width = size // groups
    if width < lanes and groups > 1 and length == width:
        return Form(REPEATED, width)
    return Form()


def rotary_forms(
    width: int, turning: int, lanes: int, *, interleaved: bool
) -> tuple[Form, Form] | None:
    """The forms of the tables of cosines and sines; None: the vector unit does not take the shape.

    Args:
        width: of a head.
        turning: elements of it that turn.
        lanes: of a row.
        interleaved: whether partners lie side by side.
    """
    if width % lanes and lanes % width:
        return None
    half, period = turning // 2, min(width, lanes)
    if interleaved:
        return Form(ADJACENT, period), Form(ADJACENT, period, True)
    if half % lanes == 0:
        return Form(HALVES), Form(HALVES)
    if half & (half - 1) == 0 and turning <= lanes:
        return Form(PAIRS, period), Form(PAIRS, period, True)
    return None


def memory(rows: int, lanes: int) -> Memory:
    """The ROM with so many rows."""
    return Memory(max(LEAST_ROWS, rows), lanes, FIXED_BITS)
