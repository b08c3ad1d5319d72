"""How many of the engraved weights, and of the bits that store them, are zero.

A ternary cell holds -1, 0 or +1 as 10, 00 or 01, so a zero costs no gate where ROM is logic, and
any other weight has one bit of two. A wider code takes a cell for each bit of its two's complement
(see `dialects/machine.py`), and each of those that is 1 has one bit of two as well.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from intaglio.dialects.codes import container_bits

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
        self._cells = (1 if is_ternary else bits) * CELL_BITS if has_cells else 0
        if zero is None:
            self._ones = np.array([byte.bit_count() for byte in range(256)], np.uint8)
            return
        width = container_bits(bits)
        self._each = 8 // width
        shifted = np.arange(256)[:, None] >> width * np.arange(self._each)
        codes = shifted & (1 << width) - 1
        self._zero = (codes == zero).sum(axis=1).astype(np.uint8)
        # Of a ternary weight one bit is 1 unless it is 0; of others, those of q - 2^(bits - 1).
        signed = (codes ^ 1 << bits - 1) & (1 << bits) - 1
        set_bits = (codes != zero) if is_ternary else np.bitwise_count(signed)
        self._ones = set_bits.sum(axis=1).astype(np.uint8)
        # Rows end in whole bytes, filled up with codes 0.
        self._filling = (int(zero == 0), int(set_bits[0, 0]))

    def add(self, rows: npt.NDArray[np.generic]) -> None:
        """Counts rows: packed codes uint8 [n, bytes], or values [n, columns]."""
        found, count = self.zeros, len(rows)
        data = np.ascontiguousarray(rows).reshape(-1).view(np.uint8)
        ones = int(self._ones[data].sum(dtype=np.int64)) if self._cells else 0
        if self._is_dense:
            found.zero += int(np.count_nonzero(rows == 0))
        else:
            filled = data.size * self._each - count * self._columns
            found.zero += int(self._zero[data].sum(dtype=np.int64)) - filled * self._filling[0]
            ones -= filled * self._filling[1]
        found.weights += count * self._columns
        found.bits += count * self._columns * self._cells
        found.zero_bits += count * self._columns * self._cells - (ones if self._cells else 0)
