"""What single rows and columns of an adapter's product lose on the chip.

One large row or element hides in a norm what all others lose, so each row of B A is measured by
itself, and each column with the rows brought to one size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

LIMITS = {"fp8": 0.25, "int8": 0.25, "int6": 0.25, "ternary": 0.9}
"""Loss of a row or column from which it is worth a warning, by code. Where the elements of a matrix
are of one size (random ones, those of examples/) the worst lose less than half of it."""


@dataclass(frozen=True)
class Lines:
    """The row and the column of B A that lose most, relative to themselves.

    Attributes:
        row_loss: Euclidean error over the Euclidean norm, 1 where nothing is left.
        row: an output of the site.
        column_loss: the same, rows of B A brought to norm 1 before; relative to the median column
            where that is larger.
        column: an input of the site.
    """

    row_loss: float = 0.0
    row: int = 0
    column_loss: float = 0.0
    column: int = 0

    def noteworthy(self, code: str) -> list[tuple[str, float]]:
        """Names and losses of those that lose more than a format does by itself."""
        found = [(f"output {self.row}", self.row_loss), (f"input {self.column}", self.column_loss)]
        return [one for one in found if one[1] > LIMITS[code]]


def worst_lines(a: Floats, b: Floats, stored_a: Floats, stored_b: Floats) -> Lines:
    """The row and the column of `b a` that `stored_b stored_a` is furthest from.

    The products are not formed: with the error as one product [B', -B] [A'; A] of inner width 2r,
    the norms of its rows and columns come from triangular matrices [2r, 2r].

    Args:
        a: float [r, K].
        b: float [N, r].
        stored_a: float [r', K].
        stored_b: float [N, r'].
    """
    left, right = np.hstack([stored_b, -b]), np.vstack([stored_a, a])
    size = _row_norms(b, a)
    rows = _ratio(_row_norms(left, right), size)
    weight = np.divide(1.0, size, out=np.zeros_like(size), where=size > 0)[:, None]
    whole = _row_norms(a.T, (b * weight).T)
    # An input that the adapter hardly uses may be lost: at least the usual one is the measure.
    usual = float(np.median(whole[whole > 0])) if whole.any() else 0.0
    columns = _ratio(_row_norms(right.T, (left * weight).T), np.maximum(whole, usual))
    row, column = int(rows.argmax()), int(columns.argmax())
    return Lines(float(rows[row]), row, float(columns[column]), column)


def _row_norms(left: Floats, right: Floats) -> Floats:
    """Norms of the rows of ``left right``: [N, r] and [r, K] give [N]."""
    # QR keeps what a Gram matrix would lose where sizes differ by more than half the digits.
    triangle = np.asarray(np.linalg.qr(right.T, mode="r"))
    return np.linalg.norm(left @ triangle.T, axis=1)


def _ratio(error: Floats, whole: Floats) -> Floats:
    return np.divide(error, whole, out=np.zeros_like(error), where=whole > 0)
