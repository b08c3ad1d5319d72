"""Which scales of a matrix are used: those of groups that hold a weight other than 0.

A scale is multiplied with `code - zero`, so where all codes of a group are the zero point any scale
will do, and tools write any: 1, a guard value, what was there before. Such scales must not decide
the exponent that the others share, nor count where losses are stated.

Codes are read only where an answer hangs on them: rows of the largest scale for the exponent, rows
of scales with a noteworthy loss for the figures. In the worst case that is each of them once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from intaglio.dialects.codes import container_bits, unpack
from intaglio.dialects.rom import WEIGHT_CODES
from intaglio.lowering.parameters import ParameterSource, row_chunks

_TRIES = 8
"""Rows that are looked at one by one, the largest value first, before all that may matter are."""
_BLOCK = 64
"""Rows of codes that are read together; transposed storage is read at the cost of so many."""


@dataclass(frozen=True)
class Uses:
    """The groups of a matrix.

    Attributes:
        source: reads codes and zero points.
        group: columns that share a scale, at least 1; the last group may be shorter.
        zero: the zero point of all weights; None where the source has one for each group.
    """

    source: ParameterSource
    group: int
    zero: int | None

    def of_rows(self, first: int, last: int) -> npt.NDArray[np.bool_]:
        """Whether each group of some rows holds a weight other than 0: bool [rows, groups]."""
        columns = self.source.dims[1]
        groups = -(-columns // self.group)
        bits = container_bits(WEIGHT_CODES[self.source.code])
        codes = unpack(np.asarray(self.source.packed_rows(first, last)), bits, columns)
        full = np.zeros((last - first, groups * self.group), np.bool_)
        # A zero point that is no code leaves no group unused.
        zeros = self.source.real_zeros(first, last)
        if self.zero is None:
            zeros = self.source.zeros(first, last)
            assert zeros is not None
        if zeros is None:
            full[:, :columns] = codes != self.zero
        else:
            full[:, :columns] = codes != np.repeat(zeros, self.group, axis=1)[:, :columns]
        return np.asarray(full.reshape(last - first, groups, self.group).any(axis=2))

    def clear_unused(
        self, values: npt.NDArray[np.floating], first: int, above: float
    ) -> npt.NDArray[np.floating]:
        """Sets values of unused groups to 0 where they are greater than a bound.

        Args:
            values: one a group, [rows, groups]; changed in place.
            first: the row of the matrix that they begin with.
            above: smaller values stay, used or not.

        Returns:
            `values`.
        """
        found = np.asarray((values > above).any(axis=1))
        if found.any():
            for start in range(0, len(values), _BLOCK):
                end = min(len(values), start + _BLOCK)
                if found[start:end].any():
                    part = values[start:end]
                    part[(part > above) & ~self.of_rows(first + start, first + end)] = 0
        return values

    def largest(
        self, values: npt.NDArray[np.floating], first: int, above: float
    ) -> tuple[float, int, int] | None:
        """The largest value of a used group that is greater than a bound.

        Args:
            values: one a group, [rows, groups]; changed in place.
            first: the row of the matrix that they begin with.
            above: the bound, at least 0.

        Returns:
            The value, its row in the matrix and its group; None where there is none.
        """
        for _ in range(_TRIES):
            row, group = np.unravel_index(int(values.argmax()), values.shape)
            if not values[row, group] > above:
                return None
            used = self.of_rows(first + int(row), first + int(row) + 1)[0]
            if used[group]:
                return float(values[row, group]), first + int(row), int(group)
            values[row, ~used] = 0
        self.clear_unused(values, first, above)
        row, group = np.unravel_index(int(values.argmax()), values.shape)
        if not values[row, group] > above:
            return None
        return float(values[row, group]), first + int(row), int(group)


def largest_used_scale(uses: Uses, peak: float) -> float:
    """The largest magnitude of a scale that a weight uses; 0 where there is none.

    Args:
        uses: the groups of the matrix.
        peak: the largest magnitude of all scales; finite.
    """
    rows, columns = uses.source.dims
    groups = -(-columns // uses.group)
    largest = 0.0
    for first, last in row_chunks(rows, 4 * groups):
        found = uses.largest(np.abs(uses.source.scales(first, last)), first, largest)
        if found is not None:
            largest = found[0]
        if largest >= peak:
            break
    return largest
