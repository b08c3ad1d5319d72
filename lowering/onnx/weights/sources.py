"""Readers of every weight encoding: from the model file to the canonical ROM layout.

Each implements `lowering.parameters.ParameterSource`. Nothing is read before it is asked for, and
only the rows asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

from intaglio.dialects.codes import container_bits, pack, unpack
from intaglio.dialects.errors import CompilerBug
from intaglio.lowering.onnx.graph.model import FLOATS, Array, Tensor, widen
from intaglio.lowering.onnx.known.constants import Constant, Leaf, Permuted
from intaglio.lowering.parameters import Float32Array, UInt8Array, row_chunks

SLAB = 1024
"""Rows of a transposed matrix that are gathered from the file together."""

SLAB_BYTES = 1 << 18
"""About how many codes of them are unpacked at a time, so that they stay in the cache."""


def floats(tensor: Tensor, stored: Array) -> Float32Array:
    """A part of a tensor's stored elements as float32."""
    if tensor.dtype == "BFLOAT16":
        return widen(stored)
    return stored.astype(np.float32, copy=False)


@dataclass(frozen=True, eq=False)
class _Matrix:
    """What all matrices have; `zero` is the zero point of all weights where there are none.

    Where zero points are real numbers (`has_real_zeros`) `zero` is the middle of the codes' range,
    what codes count from in ROM.

    Columns `group` and up share a scale; 0 stands for one scale for the whole matrix.
    """

    dims: tuple[int, int]
    code: str
    bits: int
    group: int
    zero: int | None

    @property
    def groups(self) -> int:
        """Scale groups in a row."""
        return -(-self.dims[1] // (self.group or self.dims[1]))

    @property
    def row_bytes(self) -> int:
        """Bytes of a row of codes."""
        return -(-self.dims[1] * container_bits(self.bits) // 8)

    @property
    def experts(self) -> int:
        """Matrices of a family, whose rows follow each other; 1: it is none."""
        return 1

    @property
    def zero_fraction(self) -> float | None:
        """The share of weights that are 0, where it is known."""
        return None

    @property
    def may_have_unused(self) -> bool:
        """Whether groups whose weights are all 0 may have another scale than 0."""
        return False

    @property
    def read_from(self) -> str:
        """What the file has that `peak` is about."""
        return "scales"

    def values(self, r0: int, r1: int) -> Float32Array:
        """A matrix has codes, not values."""
        raise CompilerBug(f"values of a matrix of {self.code} were asked for")

    def packed_rows(self, r0: int, r1: int) -> UInt8Array:
        """See ParameterSource."""
        raise NotImplementedError

    def scales(self, r0: int, r1: int) -> Float32Array:
        """See ParameterSource."""
        raise NotImplementedError

    def zeros(self, r0: int, r1: int) -> UInt8Array | None:
        """See ParameterSource."""
        raise NotImplementedError

    @property
    def has_real_zeros(self) -> bool:
        """Whether zero points are real numbers, not codes."""
        return False

    def real_zeros(self, r0: int, r1: int) -> Float32Array | None:
        """See ParameterSource."""
        return None

    def peak(self) -> float:
        """The largest magnitude of a scale; not finite when one of them is not."""
        raise NotImplementedError


_MAGNITUDE = {"FLOAT": "<u4", "FLOAT16": "<u2", "BFLOAT16": "<u2", "DOUBLE": "<u8"}


def peak_of(tensor: Tensor) -> float:
    """The largest magnitude in a tensor of floats; not finite when one of them is not.

    Without the sign bit, bit patterns of floating-point numbers are in the order of magnitudes.
    """
    dtype = np.dtype(_MAGNITUDE[tensor.dtype])
    bits = tensor.read().view(dtype)
    mask = dtype.type((1 << (8 * dtype.itemsize - 1)) - 1)
    largest = dtype.type(0)
    for r0, r1 in row_chunks(bits.size, dtype.itemsize):
        largest = max(largest, (bits[r0:r1] & mask).max())
    found = np.array([largest], dtype)
    if tensor.dtype == "BFLOAT16":
        return float(widen(found)[0])
    return float(found.view(f"<f{dtype.itemsize}")[0])


@dataclass(frozen=True, eq=False)
class RowBlockSource(_Matrix):
    """MatMulNBits and GatherBlockQuantized: unsigned codes in whole blocks along each row.

    Layouts: codes uint8 [N, blocks * block * bits / 8]; scales [N, blocks]; zero points packed
    [N, ceil(blocks * bits / 8)] or floating point [N, blocks]; each may be stored flat.
    """

    codes: Tensor
    scale_tensor: Tensor
    zero_tensor: Tensor | None

    @property
    def may_have_unused(self) -> bool:
        """The file may state any."""
        return True

    def peak(self) -> float:
        """The largest magnitude of a scale; not finite when one of them is not."""
        return peak_of(self.scale_tensor)

    def packed_rows(self, r0: int, r1: int) -> UInt8Array:
        """A view of the file, unless a row ends inside a byte."""
        n, k = self.dims
        rows = self.codes.read().reshape(n, -1)[r0:r1, : self.row_bytes]
        used = k * self.bits % 8
        if used:
            rows = rows.copy()
            rows[:, -1] &= np.uint8((1 << used) - 1)
        return rows

    def scales(self, r0: int, r1: int) -> Float32Array:
        """Scales as stored."""
        table = self.scale_tensor.stored().reshape(self.dims[0], -1)
        return floats(self.scale_tensor, table[r0:r1])

    def zeros(self, r0: int, r1: int) -> UInt8Array | None:
        """Zero points, unpacked; floating point ones where all are codes."""
        if self.zero_tensor is None or self.has_real_zeros:
            return None
        table = self._zero_rows(self.zero_tensor, r0, r1)
        if self.zero_tensor.dtype != "UINT8":
            return floats(self.zero_tensor, table).astype(np.uint8)
        return unpack(np.ascontiguousarray(table), self.bits, self.groups)

    @property
    def has_real_zeros(self) -> bool:
        """Whether the model's zero points are floating point and not all codes."""
        return self.zero_tensor is not None and self.zero is not None

    def real_zeros(self, r0: int, r1: int) -> Float32Array | None:
        """Floating point zero points as stored, where not all are codes."""
        if self.zero_tensor is None or not self.has_real_zeros:
            return None
        return floats(self.zero_tensor, self._zero_rows(self.zero_tensor, r0, r1))

    def _zero_rows(self, tensor: Tensor, r0: int, r1: int) -> Array:
        return tensor.stored().reshape(self.dims[0], -1)[r0:r1]


@dataclass(frozen=True, eq=False)
class RowScaleSource(RowBlockSource):
    """QMoE without a block size: one scale a row, the rows' zero points packed in one stream."""

    def zeros(self, r0: int, r1: int) -> UInt8Array | None:
        """Zero points, unpacked."""
        if self.zero_tensor is None:
            return None
        flat = np.ascontiguousarray(self.zero_tensor.stored().reshape(-1))
        return unpack(flat, self.bits, self.dims[0])[r0:r1, None]


@dataclass(frozen=True, eq=False)
class _Elements:
    """A stored 2-D tensor of 2, 4 or 8-bit integers, read as unsigned codes.

    Signed elements are biased by half the range: two's complement with its top bit flipped.
    """

    tensor: Tensor
    dims: tuple[int, int]
    flip: int = field(init=False)

    def __post_init__(self) -> None:
        signed = not self.tensor.dtype.startswith("U")
        object.__setattr__(self, "flip", 1 << (self.tensor.bits - 1) if signed else 0)

    @property
    def _flip_byte(self) -> np.uint8:
        bits = self.tensor.bits
        return np.uint8(sum(self.flip << shift for shift in range(0, 8, bits)))

    def packed(self, r0: int, r1: int) -> UInt8Array | None:
        """Rows r0 to r1 packed as stored, when rows fill whole bytes."""
        rows, columns = self.dims
        if columns * self.tensor.bits % 8:
            return None
        data = self.tensor.read().reshape(rows, -1)[r0:r1]
        return data ^ self._flip_byte if self.flip else data

    def block(self, r0: int, r1: int, c0: int, c1: int) -> UInt8Array:
        """Unsigned codes of rows r0 to r1, columns c0 to c1."""
        rows, columns = self.dims
        bits = self.tensor.bits
        data = self.tensor.read()
        if columns * bits % 8 == 0:
            b0, b1 = c0 * bits // 8, -(-c1 * bits // 8)
            part = np.ascontiguousarray(data.reshape(rows, -1)[r0:r1, b0:b1])
            skip = c0 - b0 * 8 // bits
            codes = unpack(part, bits, skip + c1 - c0)[:, skip:]
        else:
            index = np.arange(r0, r1)[:, None] * columns + np.arange(c0, c1)[None, :]
            shift = (index * bits % 8).astype(np.uint8)
            codes = (data[index * bits // 8] >> shift) & np.uint8((1 << bits) - 1)
        return codes ^ np.uint8(self.flip) if self.flip else codes


def _pack_down(codes: UInt8Array, bits: int) -> UInt8Array:
    """Packs along the first axis: uint8 [K, rows] -> uint8 [ceil(K * bits / 8), rows]."""
    per_byte = 8 // bits
    if codes.shape[0] % per_byte:
        codes = np.pad(codes, [(0, -codes.shape[0] % per_byte), (0, 0)])
    packed = codes[0::per_byte].copy()
    for i in range(1, per_byte):
        packed |= codes[i::per_byte] << np.uint8(i * bits)
    return packed


@dataclass(frozen=True, eq=False)
class DequantizedSource(_Matrix):
    """DequantizeLinear: codes [K, N] or [N, K] of any small integer type.

    `transposed` says that storage is [K, N]. Scales and zero points are stored as
    - blocked along K, in the codes' orientation: [blocks, N] or [N, blocks];
    - one a row: [N]; or one for all: a single element.
    """

    codes: Tensor
    transposed: bool
    scale_tensor: Tensor
    zero_tensor: Tensor | None

    @property
    def may_have_unused(self) -> bool:
        """The file may state any."""
        return True

    def peak(self) -> float:
        """The largest magnitude of a scale; not finite when one of them is not."""
        return peak_of(self.scale_tensor)

    @property
    def _elements(self) -> _Elements:
        n, k = self.dims
        return _Elements(self.codes, (k, n) if self.transposed else (n, k))

    def packed_rows(self, r0: int, r1: int) -> UInt8Array:
        """Rows packed along K; transposed storage is gathered in slabs of rows."""
        elements = self._elements
        k = self.dims[1]
        if not self.transposed:
            packed = elements.packed(r0, r1)
            return packed if packed is not None else pack(elements.block(r0, r1, 0, k), self.bits)
        out = np.empty((r1 - r0, self.row_bytes), np.uint8)
        for start in range(r0, r1, SLAB):
            end = min(r1, start + SLAB)
            # Whole bytes of K at a time, so that parts can be packed on their own.
            step = max(8, SLAB_BYTES // (end - start) // 8 * 8)
            for k0 in range(0, k, step):
                k1 = min(k, k0 + step)
                part = _pack_down(elements.block(k0, k1, start, end), self.bits)
                b0 = k0 * self.bits // 8
                out[start - r0 : end - r0, b0 : b0 + part.shape[0]] = part.T
        return out

    def _grouped(self, size: int) -> str:
        n = self.dims[0]
        if size == 1:
            return "tensor"
        return "row" if size == n and self.groups == 1 else "block"

    def scales(self, r0: int, r1: int) -> Float32Array:
        """Scales, one for each group; equal ones where the model has one for all."""
        tensor = self.scale_tensor
        stored = tensor.stored()
        match self._grouped(tensor.size):
            case "tensor":
                part = np.broadcast_to(stored.reshape(1, 1), (r1 - r0, self.groups))
            case "row":
                part = stored.reshape(-1, 1)[r0:r1]
            case _:
                part = stored[:, r0:r1].T if self.transposed else stored[r0:r1]
        return np.ascontiguousarray(floats(tensor, part))

    def zeros(self, r0: int, r1: int) -> UInt8Array | None:
        """Zero points with the same bias as the codes."""
        tensor = self.zero_tensor
        if tensor is None:
            return None
        n = self.dims[0]
        match self._grouped(tensor.size):
            case "tensor":
                one = _Elements(tensor, (1, 1)).block(0, 1, 0, 1)
                return np.repeat(np.repeat(one, r1 - r0, 0), self.groups, 1)
            case "row":
                return _Elements(tensor, (1, n)).block(0, 1, r0, r1).reshape(-1, 1)
            case _:
                if self.transposed:
                    part = _Elements(tensor, (self.groups, n)).block(0, self.groups, r0, r1)
                    return np.ascontiguousarray(part.T)
                return _Elements(tensor, (n, self.groups)).block(r0, r1, 0, self.groups)


def peak_of_constant(constant: Constant) -> float:
    """The largest magnitude of a constant of floats; not finite when one of them is not."""
    base = constant.base if isinstance(constant, Permuted) else constant
    if isinstance(base, Leaf) and base.tensor.dtype in FLOATS:
        return peak_of(base.tensor)
    largest = 0.0
    rows = constant.dims[0] if constant.dims else 1
    for r0, r1 in row_chunks(rows, 4 * constant.size // max(1, rows)):
        found = float(np.abs(constant.rows(r0, r1)).max(initial=0))
        if not np.isfinite(found):
            return found
        largest = max(largest, found)
    return largest


LEAST_MEAN = 1e-5
"""BitNet's lower bound of the mean magnitude of a tensor."""


@dataclass(frozen=True, eq=False)
class RoundedSource(_Matrix):
    """Floating-point weights [N, K] quantised as they are read.

    Symmetric round to nearest in each group: scale = max|w| / (2**(bits-1) - 1). `ternary`
    (BitNet b1.58, absmean): scale = mean|w|, of a group or of the whole matrix, codes -1, 0, 1.
    """

    name: str
    constant: Constant

    @property
    def _chunk(self) -> int:
        return 16 * self.dims[1]

    @cached_property
    def _mean(self) -> float:
        """Of all magnitudes (float64)."""
        total = 0.0
        for r0, r1 in row_chunks(self.dims[0], self._chunk):
            total += float(np.abs(self.constant.rows(r0, r1)).sum(dtype=np.float64))
        return float(np.float32(max(LEAST_MEAN, total / self.constant.size)))

    @property
    def zero_fraction(self) -> float | None:
        """The share of zeros among ternary weights."""
        return self._zero_fraction if self.code == "ternary" else None

    @cached_property
    def _zero_fraction(self) -> float:
        zeros = 0
        for r0, r1 in row_chunks(self.dims[0], self._chunk):
            zeros += int(np.count_nonzero(self._rounded(r0, r1)[0] == 1))
        return zeros / self.constant.size

    @property
    def read_from(self) -> str:
        """The file has no scales."""
        return "weights"

    def peak(self) -> float:
        """The largest scale; not finite when a weight is not."""
        largest = peak_of_constant(self.constant)
        if not np.isfinite(largest):
            return largest
        if not self.group:
            return self._mean
        if self.code != "ternary":
            return float(np.float32(largest) / np.float32((1 << (self.bits - 1)) - 1))
        chunks = row_chunks(self.dims[0], self._chunk)
        return max(float(self.scales(r0, r1).max()) for r0, r1 in chunks)

    def _rounded(self, r0: int, r1: int) -> tuple[UInt8Array, Float32Array]:
        k = self.dims[1]
        group = self.group or k
        weights = np.zeros((r1 - r0, self.groups * group), np.float32)
        weights[:, :k] = self.constant.rows(r0, r1)
        weights = weights.reshape(r1 - r0, self.groups, group)
        limit = 1 if self.code == "ternary" else (1 << (self.bits - 1)) - 1
        if not self.group:
            scales = np.full((r1 - r0, 1), self._mean, np.float32)
        elif self.code == "ternary":
            sizes = np.full(self.groups, group, np.float32)
            sizes[-1] = k - (self.groups - 1) * group
            scales = np.abs(weights).sum(axis=2, dtype=np.float64) / sizes
            scales = scales.astype(np.float32)
        else:
            scales = np.abs(weights).max(axis=2) / np.float32(limit)
        # In float64: one over a subnormal float32 is no float32.
        wide = scales.astype(np.float64)
        inverse = np.divide(1.0, wide, out=np.zeros(wide.shape), where=wide > 0)
        rounded = np.clip(np.rint(weights * inverse[:, :, None]), -limit, limit)
        codes = (rounded + (self.zero or 0)).astype(np.uint8).reshape(r1 - r0, -1)[:, :k]
        return codes, scales

    def packed_rows(self, r0: int, r1: int) -> UInt8Array:
        """Codes, rounded now."""
        out = np.empty((r1 - r0, self.row_bytes), np.uint8)
        for start, end in row_chunks(r1 - r0, self._chunk):
            codes, _ = self._rounded(r0 + start, r0 + end)
            out[start:end] = pack(codes, container_bits(self.bits))
        return out

    def scales(self, r0: int, r1: int) -> Float32Array:
        """Scales, computed now."""
        if not self.group:
            return np.full((r1 - r0, 1), self._mean, np.float32)
        out = np.empty((r1 - r0, self.groups), np.float32)
        for start, end in row_chunks(r1 - r0, self._chunk):
            out[start:end] = self._rounded(r0 + start, r0 + end)[1]
        return out

    def zeros(self, r0: int, r1: int) -> UInt8Array | None:
        """One zero point for all."""
        return None


@dataclass(frozen=True, eq=False)
class ScaledSource(_Matrix):
    """A matrix times a number, or times one number for each row: its scales are multiplied."""

    base: Matrix
    factor: npt.NDArray[np.float64]

    @property
    def zero_fraction(self) -> float | None:
        """As that of the matrix."""
        return self.base.zero_fraction

    @property
    def may_have_unused(self) -> bool:
        """Where one scale of the matrix becomes one a row, rows of zeros have it too."""
        return self.base.may_have_unused or self.factor.ndim > 0

    @property
    def read_from(self) -> str:
        """As of the matrix."""
        return self.base.read_from

    def packed_rows(self, r0: int, r1: int) -> UInt8Array:
        """Codes of the matrix."""
        return self.base.packed_rows(r0, r1)

    def scales(self, r0: int, r1: int) -> Float32Array:
        """Scales of the matrix times the factor."""
        factor = self.factor[r0:r1, None] if self.factor.ndim else self.factor
        return (self.base.scales(r0, r1) * factor).astype(np.float32)

    def zeros(self, r0: int, r1: int) -> UInt8Array | None:
        """Zero points of the matrix."""
        return self.base.zeros(r0, r1)

    @property
    def has_real_zeros(self) -> bool:
        """As the matrix."""
        return self.base.has_real_zeros

    def real_zeros(self, r0: int, r1: int) -> Float32Array | None:
        """Zero points of the matrix."""
        return self.base.real_zeros(r0, r1)

    def peak(self) -> float:
        """The largest magnitude of a scale; not finite when one of them is not."""
        if not self.factor.ndim:
            return float(np.float32(self.base.peak() * abs(float(self.factor))))
        chunks = row_chunks(self.dims[0], 4 * self.groups)
        return float(max(np.abs(self.scales(r0, r1)).max() for r0, r1 in chunks))


@dataclass(frozen=True, eq=False)
class RowsSource(_Matrix):
    """Some rows of a matrix, from `first` on."""

    base: Matrix
    first: int

    @property
    def zero_fraction(self) -> float | None:
        """The share of zeros among ternary weights."""
        return None if self.base.zero_fraction is None else self._zero_fraction

    @property
    def may_have_unused(self) -> bool:
        """As in the matrix."""
        return self.base.may_have_unused

    @property
    def read_from(self) -> str:
        """As of the matrix."""
        return self.base.read_from

    @cached_property
    def _zero_fraction(self) -> float:
        zeros = 0
        for r0, r1 in row_chunks(self.dims[0], self.dims[1]):
            codes = unpack(self.packed_rows(r0, r1), container_bits(self.bits), self.dims[1])
            zeros += int(np.count_nonzero(codes == self.zero))
        return zeros / (self.dims[0] * self.dims[1])

    def packed_rows(self, r0: int, r1: int) -> UInt8Array:
        """Codes of the matrix."""
        return self.base.packed_rows(self.first + r0, self.first + r1)

    def scales(self, r0: int, r1: int) -> Float32Array:
        """Scales of the matrix."""
        return self.base.scales(self.first + r0, self.first + r1)

    def zeros(self, r0: int, r1: int) -> UInt8Array | None:
        """Zero points of the matrix."""
        return self.base.zeros(self.first + r0, self.first + r1)

    @property
    def has_real_zeros(self) -> bool:
        """As the matrix."""
        return self.base.has_real_zeros

    def real_zeros(self, r0: int, r1: int) -> Float32Array | None:
        """Zero points of the matrix."""
        return self.base.real_zeros(self.first + r0, self.first + r1)

    def peak(self) -> float:
        """The largest magnitude of a scale; not finite when one of them is not."""
        chunks = row_chunks(self.dims[0], 4 * self.groups)
        return float(max(np.abs(self.scales(r0, r1)).max() for r0, r1 in chunks))


@dataclass(frozen=True, eq=False)
class ChosenRowsSource(_Matrix):
    """Some rows of a matrix in another order: `parts` are runs of rows, each from a row to an end.

    Matrices packed by head hold the rows of queries, keys and values in turn.
    """

    base: Matrix
    parts: tuple[tuple[int, int], ...]

    @property
    def zero_fraction(self) -> float | None:
        """As in the matrix: a sample of its rows is taken for all of them."""
        return self.base.zero_fraction

    @property
    def may_have_unused(self) -> bool:
        """As in the matrix."""
        return self.base.may_have_unused

    @property
    def read_from(self) -> str:
        """As of the matrix."""
        return self.base.read_from

    def _runs(self, r0: int, r1: int) -> Iterator[tuple[int, int]]:
        """The rows of the matrix that rows r0 to r1 are."""
        place = 0
        for first, end in self.parts:
            a, b = max(r0, place), min(r1, place + end - first)
            if a < b:
                yield first + a - place, first + b - place
            place += end - first

    def packed_rows(self, r0: int, r1: int) -> UInt8Array:
        """Codes of the matrix."""
        return np.concatenate([self.base.packed_rows(*run) for run in self._runs(r0, r1)])

    def scales(self, r0: int, r1: int) -> Float32Array:
        """Scales of the matrix."""
        return np.concatenate([self.base.scales(*run) for run in self._runs(r0, r1)])

    def zeros(self, r0: int, r1: int) -> UInt8Array | None:
        """Zero points of the matrix."""
        found = [self.base.zeros(*run) for run in self._runs(r0, r1)]
        known = [one for one in found if one is not None]
        return np.concatenate(known) if known else None

    @property
    def has_real_zeros(self) -> bool:
        """As the matrix."""
        return self.base.has_real_zeros

    def real_zeros(self, r0: int, r1: int) -> Float32Array | None:
        """Zero points of the matrix."""
        found = [self.base.real_zeros(*run) for run in self._runs(r0, r1)]
        known = [one for one in found if one is not None]
        return np.concatenate(known) if known else None

    def peak(self) -> float:
        """The largest magnitude of a scale; not finite when one of them is not."""
        chunks = row_chunks(self.dims[0], 4 * self.groups)
        return float(max(np.abs(self.scales(r0, r1)).max() for r0, r1 in chunks))


@dataclass(frozen=True, eq=False)
class DenseSource:
    """A vector or table of floating-point values."""

    constant: Constant
    code: str = "float32"
    zero: int | None = None

    @property
    def dims(self) -> tuple[int, ...]:
        """The shape."""
        return self.constant.dims

    def values(self, r0: int, r1: int) -> Float32Array:
        """Elements r0 to r1 along the first axis, as float32."""
        return self.constant.rows(r0, r1).astype(np.float32, copy=False)

    def packed_rows(self, r0: int, r1: int) -> UInt8Array:
        """A dense tensor has values, not codes."""
        raise CompilerBug("codes of a dense tensor were asked for")

    def scales(self, r0: int, r1: int) -> Float32Array:
        """A dense tensor has no scales."""
        raise CompilerBug("scales of a dense tensor were asked for")

    def zeros(self, r0: int, r1: int) -> UInt8Array | None:
        """A dense tensor has no zero points."""
        return None

    def real_zeros(self, r0: int, r1: int) -> Float32Array | None:
        """A dense tensor has no zero points."""
        return None

    def peak(self) -> float:
        """The largest magnitude; not finite when a value is not."""
        return peak_of_constant(self.constant)


Matrix = _Matrix
"""Any matrix of small integers."""
Source = Matrix | DenseSource
