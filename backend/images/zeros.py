"""How many of the engraved weights, and of the bits that store them, are zero.

A ternary cell holds -1, 0 or +1 as 10, 00 or 01, so a zero costs no gate where ROM is logic, and
any other digit has one bit of two. A wider code takes a cell for each digit in balanced ternary
(`dialects/trits.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from intaglio.dialects.codes import container_bits
from intaglio.dialects.trits import balanced, digits_of

CELL_BITS = 2
"""Stored bits of a ternary cell."""


@dataclass
class Zeros:
    """Of one engraved tensor.

    Attributes:
        weights: how many there are.
        zero: how many of them are 0.
        bits: bits of their ternary cells; 0 on a chip that has other cells.
        zero_bits: how many of those are 0.
    """

    weights: int = 0
    zero: int = 0
    bits: int = 0
    zero_bits: int = 0


class Counter:
    """Counts a tensor's zeros while its rows pass by.

    Args:
        columns: of the tensor.
        bits: of a code, 16 or 32 for the values of a dense table.
        zero: the code of a zero weight; None for a dense table.
        is_ternary: whether codes are those of ternary weights.
        has_cells: whether the chip has ternary cells.
    """

    def __init__(
        self, columns: int, bits: int, zero: int | None, is_ternary: bool, has_cells: bool
    ) -> None:
        self.zeros = Zeros()
        self._columns, self._bits, self._is_dense = columns, bits, zero is None
        digits = 1 if is_ternary else digits_of(bits)
        self._cells = digits * CELL_BITS if has_cells else 0
        if zero is None:
            # By the 16 bits of a value; wider ones are few.
            every = np.arange(1 << 16 if bits == 16 else 0).astype(np.uint16).view(np.int16)
            self._ones = _nonzero(every, digits)
            return
        width = container_bits(bits)
        self._each = 8 // width
        shifted = np.arange(256)[:, None] >> width * np.arange(self._each)
        codes = shifted & (1 << width) - 1
        self._zero = (codes == zero).sum(axis=1).astype(np.uint8)
        # Of a ternary weight one bit is 1 unless it is 0; of others, one for each digit of
        # q - 2^(bits - 1) that is not 0.
        signed = (codes & (1 << bits) - 1) - (1 << bits - 1)
        set_bits = (codes != zero) if is_ternary else _nonzero(signed, digits)
        self._ones = set_bits.sum(axis=1).astype(np.uint8)
        # Rows end in whole bytes, filled up with codes 0.
        self._filling = (int(zero == 0), int(set_bits[0, 0]))

    def add(self, rows: npt.NDArray[np.generic]) -> None:
        """Counts rows: packed codes uint8 [n, bytes], or values [n, columns]."""
        found, count = self.zeros, len(rows)
        ones = 0
        if self._is_dense:
            found.zero += int(np.count_nonzero(rows == 0))
            ones = self._dense_ones(rows) if self._cells else 0
        else:
            data = np.ascontiguousarray(rows).reshape(-1).view(np.uint8)
            ones = int(self._ones[data].sum(dtype=np.int64)) if self._cells else 0
            filled = data.size * self._each - count * self._columns
            found.zero += int(self._zero[data].sum(dtype=np.int64)) - filled * self._filling[0]
            ones -= filled * self._filling[1]
        found.weights += count * self._columns
        found.bits += count * self._columns * self._cells
        found.zero_bits += count * self._columns * self._cells - (ones if self._cells else 0)

    def _dense_ones(self, rows: npt.NDArray[np.generic]) -> int:
        """Digits other than 0 of the values of a dense table."""
        if self._ones.size:
            counts = self._ones[np.ascontiguousarray(rows, np.int16).view(np.uint16)]
        else:
            counts = _nonzero(np.asarray(rows, np.int64), digits_of(self._bits))
        return int(counts.sum(dtype=np.int64))


def _nonzero(values: npt.NDArray[np.signedinteger], digits: int) -> npt.NDArray[np.uint8]:
    """How many digits of each number are not 0."""
    return np.count_nonzero(balanced(values, digits), axis=0).astype(np.uint8)
