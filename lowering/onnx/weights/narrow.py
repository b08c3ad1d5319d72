"""Integer weights in fewer bits, where they fit: what a carrier wider than its codes holds.

ONNX stores 2, 4 and 8 bits only, so weights of 3 or 6 bits arrive in carriers of 4 or 8. On a chip
that has cells for the narrower code they take fewer of them: the codes are the same integers around
the same zero, only their bias changes. One pass over the weights in blocks of rows; the first block
that disproves it ends it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from intaglio.dialects.codes import container_bits, pack, unpack
from intaglio.dialects.rom import WEIGHT_CODES
from intaglio.lowering.onnx.weights.sources import Matrix, RoundedSource
from intaglio.lowering.onnx.weights.weights import Parameter
from intaglio.lowering.parameters import Float32Array, UInt8Array, row_chunks

TERNARY = "ternary"
"""Has a recogniser of its own (`ternary.py`), which also finds its scale."""


@dataclass(frozen=True, eq=False)
class Narrowed(Matrix):
    """A matrix whose codes keep their distance from the zero point, in fewer bits."""

    base: Matrix
    shift: int
    """What codes are less than those of the matrix."""

    @property
    def may_have_unused(self) -> bool:
        """As in the matrix."""
        return self.base.may_have_unused

    def packed_rows(self, r0: int, r1: int) -> UInt8Array:
        """Codes of the rows, less the difference of the zero points."""
        size, stored = container_bits(self.bits), container_bits(self.base.bits)
        rows = self.base.packed_rows(r0, r1)
        if size == stored and self.dims[1] * size % 8 == 0:
            # Codes fit before and after, so none takes from its neighbour.
            each = np.uint8(sum(abs(self.shift) << at for at in range(0, 8, size)))
            return rows - each if self.shift > 0 else rows + each
        codes = unpack(rows, stored, self.dims[1]).astype(np.int16) - self.shift
        return pack(codes.astype(np.uint8), size)

    def scales(self, r0: int, r1: int) -> Float32Array:
        """Scales of the matrix."""
        return self.base.scales(r0, r1)

    def zeros(self, r0: int, r1: int) -> UInt8Array | None:
        """One zero point for all."""
        return None

    def peak(self) -> float:
        """The largest magnitude of a scale; not finite when one of them is not."""
        return self.base.peak()


def narrowed(parameter: Parameter, codes: Iterable[str]) -> Parameter:
    """The same matrix in the code of fewest bits, of those given, that holds all its weights.

    Ternary matrices, those that are rounded on request, families (whose matrix was narrowed
    before), and those with different zero points, or with such as are no codes, stay as they are.
    """
    source = parameter.source
    if (
        not isinstance(source, Matrix)
        or isinstance(source, RoundedSource)
        or source.code == TERNARY
        or source.experts != 1
        or source.has_real_zeros
    ):
        return parameter
    widths = {WEIGHT_CODES[code]: code for code in codes if code != TERNARY}
    narrower = sorted(one for one in widths if one < source.bits)
    zero = _zero(source) if narrower else None
    bits = None if zero is None else _least(source, zero, narrower)
    if zero is None or bits is None:
        return parameter
    middle = 1 << (bits - 1)
    found = Narrowed(source.dims, widths[bits], bits, source.group, middle, source, zero - middle)
    return Parameter(found, parameter.names, ("narrowed", bits, *parameter.identity))


def widened(parameter: Parameter) -> Parameter:
    """The matrix as the model has it, where it was narrowed."""
    source = parameter.source
    if not isinstance(source, Narrowed):
        return parameter
    return Parameter(source.base, parameter.names, parameter.identity[2:])


def _zero(source: Matrix) -> int | None:
    """The zero point of all weights, or None where there are several."""
    if source.zero is not None:
        return source.zero
    zero: int | None = None
    for r0, r1 in row_chunks(source.dims[0], source.groups):
        points = source.zeros(r0, r1)
        assert points is not None
        zero = int(points[0, 0]) if zero is None else zero
        if (points != zero).any():
            return None
    return zero


def _least(source: Matrix, zero: int, widths: list[int]) -> int | None:
    """The first of some widths, least first, that holds every weight; None: none does."""
    left = iter(widths)
    bits = next(left, None)
    if bits is None:
        return None
    holds = _holds(source.bits, zero, bits)
    for rows in _bytes(source):
        while not holds.take(rows).all():
            # Every wider code holds what was seen before.
            bits = next(left, None)
            if bits is None:
                return None
            holds = _holds(source.bits, zero, bits)
    return bits


def _bytes(source: Matrix) -> Iterator[UInt8Array]:
    """Blocks of rows in which every bit of every byte belongs to a code."""
    rows, columns = source.dims
    size = container_bits(source.bits)
    for r0, r1 in row_chunks(rows, source.row_bytes):
        packed = source.packed_rows(r0, r1)
        used = columns * size % 8
        if not used:
            yield packed
            continue
        yield packed[:, :-1]
        last = unpack(packed[:, -1:], size, used // size)
        yield pack(np.repeat(last.reshape(-1, 1), 8 // size, axis=1), size)


def _holds(stored: int, zero: int, bits: int) -> npt.NDArray[np.bool_]:
    """For each byte of stored codes, whether all fit so many bits around zero: bool [256]."""
    size = container_bits(stored)
    codes = unpack(np.arange(256, dtype=np.uint8).reshape(-1, 1), size, 8 // size)
    distance = codes.astype(np.int16) - zero
    half = 1 << (bits - 1)
    return np.logical_and.reduce((distance >= -half) & (distance < half), axis=1)
