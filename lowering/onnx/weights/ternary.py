"""Recognises matrices whose weights are -1, 0 and 1 times a scale, whatever carries them.

One pass over the weights in blocks of rows; the first block that disproves it ends it. What is
found becomes the code `ternary` (codes 0, 1 and 2 for -1, 0 and 1), with one scale for the whole
matrix where all scales are equal, and with the share of zeros.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from intaglio.dialects.codes import container_bits, pack, unpack
from intaglio.lowering.onnx.known.constants import Constant, Permuted, Region, Table
from intaglio.lowering.onnx.weights.sources import Matrix
from intaglio.lowering.parameters import Float32Array, UInt8Array, row_chunks

BLOCK = 1 << 19
"""About how many weights are looked at together."""

_LOW = np.uint8(0x55)
"""The low bit of each of the four codes of a byte."""
_GROUPS = (256, 128, 64, 32, 16)
"""Sizes of groups that values are looked at for, the largest first."""
_NEW = 2
"""Of a byte: not seen yet; 0 and 1: a weight of 0, a weight that is not."""


@dataclass(frozen=True, eq=False)
class Ternary(Matrix):
    """What ternary matrices have: code `ternary`, 2 bits, zero point 1.

    `scale` is that of all weights where `group` is 0; `share` that of zeros.
    """

    scale: float
    share: float

    @property
    def zero_fraction(self) -> float:
        """The share of weights that are 0."""
        return self.share

    def zeros(self, r0: int, r1: int) -> UInt8Array | None:
        """One zero point for all."""
        return None

    def scales(self, r0: int, r1: int) -> Float32Array:
        """Scales, never negative."""
        if not self.group:
            return np.full((r1 - r0, 1), self.scale, np.float32)
        return self._scales(r0, r1)

    def _scales(self, r0: int, r1: int) -> Float32Array:
        raise NotImplementedError

    def _codes(self, r0: int, r1: int) -> UInt8Array:
        """Codes 0, 1 and 2, unpacked."""
        raise NotImplementedError

    def packed_rows(self, r0: int, r1: int) -> UInt8Array:
        """Codes of the rows, worked out now."""
        out = np.empty((r1 - r0, self.row_bytes), np.uint8)
        for a, b in row_chunks(r1 - r0, self.dims[1], BLOCK):
            out[a:b] = _pack(self._codes(r0 + a, r0 + b))
        return out

    def peak(self) -> float:
        """The largest scale."""
        if not self.group:
            return self.scale
        chunks = row_chunks(self.dims[0], self.dims[1], BLOCK)
        return float(max(self._scales(r0, r1).max() for r0, r1 in chunks))


def _pack(codes: UInt8Array) -> UInt8Array:
    """`codes.pack` with 2 bits for codes that are known to fit."""
    if codes.shape[1] % 4:
        return pack(codes, 2)
    words = np.ascontiguousarray(codes).view("<u4")
    # Each step brings neighbours together: 4 codes stand in 4 bytes, then in 2, then in 1.
    words = (words | words >> np.uint32(6)) & np.uint32(0x000F000F)
    return (words | words >> np.uint32(12)).astype(np.uint8)


# --- matrices of integer codes -------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Packed(Ternary):
    """2-bit codes around the same zero point with positive scales: bytes need no unpacking."""

    base: Matrix
    shift: int
    """The zero point less 1."""

    @property
    def may_have_unused(self) -> bool:
        """As in the matrix."""
        return self.base.may_have_unused

    def packed_rows(self, r0: int, r1: int) -> UInt8Array:
        """The rows as they are, or every code less one."""
        rows = self.base.packed_rows(r0, r1)
        return rows - _LOW if self.shift else rows

    def _scales(self, r0: int, r1: int) -> Float32Array:
        return self.base.scales(r0, r1)


@dataclass(frozen=True, eq=False)
class _Coded(Ternary):
    """Codes of any width whose distance to the zero point is 0 or the same within a group."""

    base: Matrix

    def _codes(self, r0: int, r1: int) -> UInt8Array:
        distance, scales = _distances(self.base, r0, r1)
        signs = np.sign(distance) * np.sign(scales)[:, :, None].astype(np.int16)
        codes = (signs + 1).astype(np.uint8).reshape(r1 - r0, -1)
        return codes[:, : self.dims[1]]

    def _scales(self, r0: int, r1: int) -> Float32Array:
        distance, scales = _distances(self.base, r0, r1)
        return np.abs(scales) * np.abs(distance).max(axis=2).astype(np.float32)


def _distances(base: Matrix, r0: int, r1: int) -> tuple[npt.NDArray[np.int16], Float32Array]:
    """Codes less zero points [rows, groups, group], filled up with 0, and scales."""
    n, k = r1 - r0, base.dims[1]
    group = base.group or k
    packed = np.asarray(base.packed_rows(r0, r1))
    zeros = base.zeros(r0, r1)
    full = np.zeros((n, base.groups * group), np.int16)
    full[:, :k] = unpack(packed, container_bits(base.bits), k)
    points = np.int16(base.zero or 0) if zeros is None else zeros.astype(np.int16)[:, :, None]
    distance = full.reshape(n, base.groups, group) - points
    distance.reshape(n, -1)[:, k:] = 0
    return distance, base.scales(r0, r1)


def of_codes(base: Matrix) -> Ternary | None:
    """A matrix of codes as a ternary one, or None.

    Args:
        base: any matrix; its scales may be negative.
    """
    found = _of_packed(base)
    if found is None:
        found = _of_distances(base) if base.group or base.zero is None else _of_single(base)
    return found


class _Codes(Constant):
    """Unpacked codes of a matrix, by rows."""

    def __init__(self, base: Matrix) -> None:
        self.base = base
        self.dims = base.dims
        self.dtype = np.dtype(np.uint8)

    def read(self, region: Region) -> UInt8Array:
        (r0, r1), (c0, c1) = region
        packed = np.asarray(self.base.packed_rows(r0, r1))
        return unpack(packed, container_bits(self.base.bits), self.dims[1])[:, c0:c1]


def _of_single(base: Matrix) -> Ternary | None:
    """One scale and one zero point for all: what a code stands for is looked up."""
    scale = base.scales(0, 1)[0, 0]
    values = (np.arange(256) - np.float32(base.zero or 0)) * scale
    return _of_table(Table(_Codes(base), values.astype(np.float32)), base.dims)


def _of_packed(base: Matrix) -> Ternary | None:
    n, k = base.dims
    if container_bits(base.bits) != 2:
        return None
    zero = base.zero
    if zero is None:
        first = base.zeros(0, 1)
        zero = 1 if first is None else int(first[0, 0])
    if zero not in (1, 2) or (zero == 2 and k % 4):
        return None
    none = 0
    uniform, first_scale = True, np.float32(base.scales(0, 1)[0, 0])
    for r0, r1 in row_chunks(n, base.row_bytes, BLOCK):
        rows = base.packed_rows(r0, r1)
        high = rows >> np.uint8(1)
        wrong = rows & high & _LOW if zero == 1 else ~(rows | high) & _LOW
        if wrong.any():
            return None
        points, scales = base.zeros(r0, r1), base.scales(r0, r1)
        if (points is not None and (points != zero).any()) or not _positive(scales):
            return None
        uniform = uniform and bool((scales == first_scale).all())
        nothing = rows & ~high & _LOW if zero == 1 else ~rows & high & _LOW
        none += int(np.bitwise_count(nothing).sum(dtype=np.int64))
    group = 0 if uniform else base.group or k
    return _Packed(
        (n, k), "ternary", 2, group, 1, float(first_scale), none / (n * k), base, zero - 1
    )


def _positive(scales: Float32Array) -> bool:
    return bool((scales > 0).all() and np.isfinite(scales).all())


def _of_distances(base: Matrix) -> Ternary | None:
    n, k = base.dims
    uniform, scale = True, np.float32(0)
    none = 0
    for r0, r1 in row_chunks(n, k, BLOCK):
        distance, scales = _distances(base, r0, r1)
        size = np.abs(distance)
        largest = size.max(axis=2)
        if not (((size == 0) | (size == largest[:, :, None])).all() and np.isfinite(scales).all()):
            return None
        none += int(np.count_nonzero(size == 0)) - size.size + (r1 - r0) * k
        used = (np.abs(scales) * largest.astype(np.float32))[largest > 0]
        if used.size:
            scale = scale or np.float32(used.flat[0])
            uniform = uniform and bool((used == scale).all())
    group = 0 if uniform else base.group or k
    return _Coded((n, k), "ternary", 2, group, 1, _any(scale), none / (n * k), base)


def _any(scale: float | np.float32) -> float:
    """The scale of a matrix; one whose weights are all 0 may have any."""
    return float(scale) or 1.0


# --- matrices of values --------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Valued(Ternary):
    """Values -s, 0 and s, with one s for all or one for each row."""

    constant: Constant
    row_scales: Float32Array

    def _codes(self, r0: int, r1: int) -> UInt8Array:
        constant = self.constant
        if isinstance(constant, Table):
            entries = constant.entries
            codes = (entries > 0).view(np.uint8) + (entries >= 0).view(np.uint8)
            return Table(constant.base, codes).rows(r0, r1)
        values = constant.rows(r0, r1)
        return (values > 0).view(np.uint8) + (values >= 0).view(np.uint8)

    def _scales(self, r0: int, r1: int) -> Float32Array:
        return self.row_scales[r0:r1, None]


def of_values(constant: Constant) -> Ternary | None:
    """Values [N, K] as a ternary matrix, or None."""
    n, k = constant.dims
    if isinstance(constant, Table):
        return _of_table(constant, (n, k))
    single = _of_uniform(constant)
    if single is not None:
        return single
    found = np.zeros(n, np.float32)
    none = 0
    for r0, r1 in row_chunks(n, k, BLOCK):
        size = np.abs(constant.rows(r0, r1))
        largest = size.max(axis=1)
        is_zero = size == 0
        if not ((is_zero | (size == largest[:, None])).all() and np.isfinite(largest).all()):
            return _of_groups(constant, size)
        none += int(np.count_nonzero(is_zero))
        found[r0:r1] = largest
    used = found[found > 0]
    uniform = bool((used == used[0]).all())
    scale = float(used[0])
    share = none / (n * k)
    return _Valued((n, k), "ternary", 2, 0 if uniform else k, 1, scale, share, constant, found)


@dataclass(frozen=True, eq=False)
class _Grouped(Ternary):
    """Values -s, 0 and s, with one s for each group of a row."""

    constant: Constant

    def _codes(self, r0: int, r1: int) -> UInt8Array:
        values = self.constant.rows(r0, r1)
        return (values > 0).view(np.uint8) + (values >= 0).view(np.uint8)

    def _scales(self, r0: int, r1: int) -> Float32Array:
        values = self.constant.rows(r0, r1).reshape(r1 - r0, -1, self.group)
        return np.abs(values).max(axis=2).astype(np.float32)


def _of_groups(constant: Constant, seen: npt.NDArray[np.floating]) -> Ternary | None:
    """With several scales in a row; `seen` are the magnitudes of some rows."""
    n, k = constant.dims
    for group in _GROUPS:
        if k % group or group >= k or _zeros_of_groups(seen, group) is None:
            continue
        none = 0
        for r0, r1 in row_chunks(n, k, BLOCK):
            zeros = _zeros_of_groups(np.abs(constant.rows(r0, r1)), group)
            if zeros is None:
                break
            none += zeros
        else:
            return _Grouped((n, k), "ternary", 2, group, 1, 0.0, none / (n * k), constant)
    return None


def _zeros_of_groups(size: npt.NDArray[np.floating], group: int) -> int | None:
    """How many magnitudes are 0, or None where those of a group are several."""
    parts = size.reshape(len(size), -1, group)
    largest = parts.max(axis=2, keepdims=True)
    is_zero = parts == 0
    if not ((is_zero | (parts == largest)).all() and np.isfinite(largest).all()):
        return None
    return int(np.count_nonzero(is_zero))


def _of_uniform(constant: Constant) -> Ternary | None:
    """With one scale for all, the order does not matter: a transposed matrix is read as stored."""
    n, k = constant.dims
    stored = constant.base if isinstance(constant, Permuted) else constant
    scale, none = 0.0, 0
    rows, columns = stored.dims
    for r0, r1 in row_chunks(rows, columns, BLOCK):
        size = np.abs(stored.rows(r0, r1))
        zeros = int(np.count_nonzero(size == 0))
        scale = scale or float(size.max())
        if zeros + (int(np.count_nonzero(size == scale)) if scale else 0) != size.size:
            return None
        none += zeros
    if not np.isfinite(scale):
        return None
    return _Valued(
        (n, k), "ternary", 2, 0, 1, _any(scale), none / (n * k), constant, np.empty(0, np.float32)
    )


def _of_table(constant: Table, dims: tuple[int, int]) -> Ternary | None:
    """Looks at bytes only; a byte that was not seen before is judged by what it stands for."""
    n, k = dims
    size = np.abs(constant.entries.astype(np.float64))
    kind = np.full(256, _NEW, np.uint8)
    scale, none = 0.0, 0
    for r0, r1 in row_chunks(n, k, BLOCK):
        part = constant.base.rows(r0, r1)
        part = part if part.dtype == np.uint8 else part.view(np.uint8)
        found = kind.take(part)
        if found.max() == _NEW:
            for byte in np.unique(part[found == _NEW]):
                value = float(size[byte])
                if not np.isfinite(value) or (value and scale and value != scale):
                    return None
                scale = scale or value
                kind[byte] = 1 if value else 0
            found = kind.take(part)
        none += found.size - int(np.count_nonzero(found))
    return _Valued(
        dims, "ternary", 2, 0, 1, _any(scale), none / (n * k), constant, np.empty(0, np.float32)
    )
