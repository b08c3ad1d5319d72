"""What tensors lose where their floats become mantissas with one exponent a tensor.

A loss is relative to the part that suffers it, not to the largest value of the tensor: a scale, an
element of a vector (a norm's weight), a row of a table (an embedding), all elements of a bias.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from intaglio.dialects.codes import scaled
from intaglio.lowering.step.loss_warning import NOTEWORTHY, Loss
from intaglio.lowering.step.used_scales import Uses

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def _tensor(key: str) -> str:
    """The initializer that a parameter's key begins with."""
    return key.partition("::")[2].partition(",")[0] or key


def _shares(exact: Floats, rounded: Ints, exponent: int) -> Floats:
    """Each value's error over its magnitude; 0 for zeros."""
    error = scaled(rounded, -exponent)
    error -= exact
    return np.abs(np.divide(error, exact, out=np.zeros_like(error), where=exact != 0))


class ScaleLosses:
    """Of the scales of a matrix, in blocks of rows.

    Args:
        key: of the parameter.
        exponent: of the mantissas.
        uses: its groups; None for a matrix with one scale.
    """

    def __init__(self, key: str, exponent: int, uses: Uses | None) -> None:
        self.worst = Loss(_tensor(key), 0.0)
        self._exponent, self._uses = exponent, uses

    def add(self, exact: Floats, rounded: Ints, first: int) -> None:
        """Takes some rows.

        Args:
            exact: scales [rows, groups].
            rounded: their mantissas.
            first: the row of the matrix that they begin with.
        """
        shares = np.zeros_like(exact)
        # A mantissa is at most half a unit off: large ones cannot lose more than is known.
        bound = min(self.worst.share, NOTEWORTHY)
        low = np.abs(rounded) * bound < 0.5 + bound
        shares[low] = _shares(exact[low], rounded[low], self._exponent)
        if self._uses is None:
            self.worst = replace(self.worst, share=float(shares.max()))
            return
        parts = self.worst.parts
        if shares.max(initial=0.0) > NOTEWORTHY:
            self._uses.clear_unused(shares, first, NOTEWORTHY)
            parts += int(np.count_nonzero(shares > NOTEWORTHY))
        self.worst = replace(self.worst, parts=parts)
        found = self._uses.largest(shares, first, self.worst.share)
        if found is not None:
            share, row, group = found
            place = f"row {row}" + (f", group {group}" if shares.shape[1] > 1 else "")
            self.worst = replace(self.worst, share=share, place=place)


class ValueLosses:
    """Of a vector, a table or a bias, in blocks along the first axis.

    Rows of tables and biases are measured by their Euclidean norms.

    Args:
        key: of the parameter.
        exponent: of the mantissas.
        rank: axes of the tensor.
        bits: of a mantissa; 32 for a bias, whose exponent is that of the sums it is added to.
    """

    def __init__(self, key: str, exponent: int, rank: int, bits: int) -> None:
        self.worst = Loss(_tensor(key), 0.0)
        self._exponent, self._rank, self._is_bias = exponent, rank, bits == 32
        self._squares = np.zeros(2)

    def add(self, exact: Floats, rounded: Ints, first: int) -> None:
        """Takes some rows.

        Args:
            exact: values [rows, ...].
            rounded: their mantissas.
            first: the element along the first axis that they begin with.
        """
        if self._rank == 1 and not self._is_bias:
            self._keep(_shares(exact, rounded, self._exponent), "element", first)
            return
        exact = exact.reshape(1 if self._is_bias else len(exact), -1)
        error = scaled(rounded.reshape(exact.shape), -self._exponent)
        error -= exact
        lost, whole = (np.einsum("ij,ij->i", one, one) for one in (error, exact))
        if self._is_bias:
            self._squares += lost[0], whole[0]
            lost, whole = self._squares[:1], self._squares[1:]
        shares = np.sqrt(np.divide(lost, whole, out=np.zeros_like(lost), where=whole > 0))
        if self._is_bias:
            self.worst = replace(self.worst, share=float(shares[0]))
        else:
            self._keep(shares, "row", first)

    def _keep(self, shares: Floats, what: str, first: int) -> None:
        parts = self.worst.parts + int(np.count_nonzero(shares > NOTEWORTHY))
        self.worst = replace(self.worst, parts=parts)
        at = int(shares.argmax())
        if shares[at] > self.worst.share:
            self.worst = replace(self.worst, share=float(shares[at]), place=f"{what} {first + at}")
