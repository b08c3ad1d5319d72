"""Constants computed from the model's tensors: expressions that are evaluated a part at a time.

Exporters leave work on weights in the graph (unpacking of 2-bit codes, ternarisation, scales).
Nothing of it is computed when the graph is read: a constant knows its shape and type and gives any
rectangle of its elements on request, from the file. So weights of any size take little memory.

An elementwise function of one tensor of bytes is kept as a table of 256 results, whatever the
number of nodes it was written in.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from intaglio.dialects.codes import unpack
from intaglio.lowering.onnx.graph.model import Array, Tensor, widen
from intaglio.lowering.onnx.known import functions
from intaglio.lowering.parameters import row_chunks

Dims = tuple[int, ...]
Region = tuple[tuple[int, int], ...]
"""First element and end along each axis."""

KEPT = 1 << 16
"""Results of reductions of at most this many elements are kept."""


def whole(dims: Dims) -> Region:
    """The region of all elements."""
    return tuple((0, d) for d in dims)


class Constant(ABC):
    """A tensor that is known before the first token.

    Attributes:
        dims: the shape.
        dtype: of what `read` gives; bfloat16 is read as float32, 2 and 4-bit integers as bytes.
    """

    dims: Dims
    dtype: np.dtype

    @property
    def size(self) -> int:
        """Number of elements."""
        return int(np.prod(self.dims, dtype=np.int64))

    @property
    def is_float(self) -> bool:
        """Whether its elements are floating point."""
        return self.dtype.kind == "f"

    @abstractmethod
    def read(self, region: Region) -> Array:
        """The elements of a region, in its shape; the result may be a read-only view."""

    def array(self) -> Array:
        """All elements; for small tensors."""
        return self.read(whole(self.dims))

    def rows(self, r0: int, r1: int) -> Array:
        """Elements r0 to r1 along the first axis."""
        return self.read(((r0, r1), *whole(self.dims[1:])))


@dataclass(frozen=True, eq=False)
class Given(Constant):
    """Numbers at hand."""

    values: Array

    @property
    def dims(self) -> Dims:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The shape."""
        return self.values.shape

    @property
    def dtype(self) -> np.dtype:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The type."""
        return self.values.dtype

    def read(self, region: Region) -> Array:
        """A view."""
        return self.values[_slices(region)]


class Leaf(Constant):
    """A tensor of the file in the shape `dims`, which has as many elements."""

    def __init__(self, tensor: Tensor, dims: Dims | None = None) -> None:
        self.tensor = tensor
        self.dims = tensor.dims if dims is None else dims
        if tensor.bits < 8:
            self.dtype = np.dtype(np.uint8 if tensor.dtype.startswith("U") else np.int8)
        elif tensor.dtype == "BFLOAT16":
            self.dtype = np.dtype(np.float32)
        else:
            self.dtype = tensor.stored().dtype

    def read(self, region: Region) -> Array:
        """A view of the file, where its elements are whole bytes."""
        if self.tensor.bits < 8:
            return self._small(region)
        part = self.tensor.stored().reshape(self.dims)[_slices(region)]
        if self.tensor.dtype == "BFLOAT16":
            return widen(np.ascontiguousarray(part))
        return part

    def _small(self, region: Region) -> Array:
        """Elements of 2 or 4 bits: the rows along the first axis that are needed, unpacked."""
        bits = self.tensor.bits
        (r0, r1), rest = region[0] if region else (0, 1), region[1:]
        row = int(np.prod(self.dims[1:], dtype=np.int64))
        first, end = r0 * row, r1 * row
        b0, b1 = first * bits // 8, -(-end * bits // 8)
        skip = first - b0 * 8 // bits
        codes = unpack(self.tensor.read()[b0:b1], bits, skip + end - first)[skip:]
        codes = codes.reshape(r1 - r0, *self.dims[1:])[(slice(None), *_slices(rest))]
        if not self.dims:
            codes = codes.reshape(())
        if self.dtype == np.uint8:
            return codes
        half = np.int8(1 << (bits - 1))
        return (codes.view(np.int8) ^ half) - half


def _slices(region: Region) -> tuple[slice, ...]:
    return tuple(slice(a, b) for a, b in region)


class Table(Constant):
    """A function of the bytes of another constant: `entries[byte]`."""

    def __init__(self, base: Constant, entries: Array) -> None:
        self.base = base
        self.entries = entries
        self.dims = base.dims
        self.dtype = entries.dtype

    def read(self, region: Region) -> Array:
        """Looks every element up."""
        return self.entries.take(_bytes(self.base.read(region)))


def _bytes(values: Array) -> npt.NDArray[np.uint8]:
    return values if values.dtype == np.uint8 else values.view(np.uint8)


class Elementwise(Constant):
    """A function of constants of shapes that broadcast."""

    def __init__(
        self,
        function: Callable[..., Array],
        arguments: Sequence[Constant],
        dims: Dims,
        dtype: np.dtype,
    ) -> None:
        self.function = function
        self.arguments = tuple(arguments)
        self.dims = dims
        self.dtype = dtype

    def read(self, region: Region) -> Array:
        """Applies the function to the parts of the arguments."""
        parts = [one.read(_under(region, one.dims)) for one in self.arguments]
        with np.errstate(all="ignore"):
            result = self.function(*parts)
        result = np.asarray(result).astype(self.dtype, copy=False)
        shape = tuple(b - a for a, b in region)
        return result if result.shape == shape else np.broadcast_to(result, shape)


def _under(region: Region, dims: Dims) -> Region:
    """The part of an argument of shape `dims` that a region of the broadcast shape needs."""
    if not dims:
        return ()
    return tuple((0, 1) if d == 1 else r for d, r in zip(dims, region[-len(dims) :], strict=True))


def elementwise(
    function: functions.Elementwise, arguments: Sequence[Constant], dtype: np.dtype
) -> Constant:
    """A function of constants, as a table where it is one of the bytes of a single tensor.

    Raises:
        ValueError: the shapes do not broadcast.
    """
    dims = np.broadcast_shapes(*(one.dims for one in arguments))
    given = {
        i for i, one in enumerate(arguments) if isinstance(one, Given | Leaf) and one.size == 1
    }
    others = [i for i in range(len(arguments)) if i not in given]
    scalars = [one.array() if i in given else None for i, one in enumerate(arguments)]
    if len(others) == 1 and arguments[others[0]].dims == dims:
        (place,) = others
        varying = arguments[place]
        entries: Array | None = None
        base = varying
        if isinstance(varying, Table):
            entries, base = varying.entries, varying.base
        elif varying.dtype.itemsize == 1 and varying.dtype.kind in "iu":
            entries = np.arange(256, dtype=np.uint8).view(varying.dtype)
        if entries is not None:
            parts: list[Array] = [
                entries if one is None else one.reshape(()).astype(one.dtype) for one in scalars
            ]
            with np.errstate(all="ignore"):
                result = np.asarray(function(*parts)).astype(dtype, copy=False)
            return Table(base, np.broadcast_to(result, (256,)))
    return Elementwise(function, arguments, dims, dtype)


class Permuted(Constant):
    """Axes in another order."""

    def __init__(self, base: Constant, perm: tuple[int, ...]) -> None:
        self.base = base
        self.perm = perm
        self.dims = tuple(base.dims[p] for p in perm)
        self.dtype = base.dtype

    def read(self, region: Region) -> Array:
        """A view of the base's part."""
        inner: list[tuple[int, int]] = [(0, 0)] * len(self.perm)
        for axis, p in enumerate(self.perm):
            inner[p] = region[axis]
        return self.base.read(tuple(inner)).transpose(self.perm)


def permuted(base: Constant, perm: Sequence[int]) -> Constant:
    """Axes in another order; the base itself where they stay or come back."""
    perm = tuple(perm)
    if isinstance(base, Permuted):
        perm, base = tuple(base.perm[p] for p in perm), base.base
    if perm == tuple(range(len(perm))):
        return base
    if isinstance(base, Table):
        return Table(permuted(base.base, perm), base.entries)
    return Permuted(base, perm)


class Reshaped(Constant):
    """The same elements in another shape."""

    def __init__(self, base: Constant, dims: Dims) -> None:
        self.base = base
        self.dims = dims
        self.dtype = base.dtype

    def read(self, region: Region) -> Array:
        """Reads the rows of the base that hold the rows of the region."""
        shape = tuple(b - a for a, b in region)
        if self.size == 0 or 0 in shape:
            return np.empty(shape, self.dtype)
        # A run of rows along the first axis that is longer than 1 is a run of elements.
        lead = next((i for i, d in enumerate(self.dims) if d > 1), len(self.dims))
        if lead == len(self.dims):
            return self.base.array().reshape(self.dims)
        r0, r1 = region[lead]
        inner = int(np.prod(self.dims[lead + 1 :], dtype=np.int64))
        first, end = r0 * inner, r1 * inner
        flat = self._flat(first, end).reshape(r1 - r0, *self.dims[lead + 1 :])
        part = flat[(slice(None), *_slices(region[lead + 1 :]))]
        return part.reshape(shape)

    def _flat(self, first: int, end: int) -> Array:
        dims = self.base.dims
        lead = next((i for i, d in enumerate(dims) if d > 1), len(dims))
        if lead == len(dims):
            return self.base.array().reshape(-1)[first:end]
        inner = int(np.prod(dims[lead + 1 :], dtype=np.int64))
        q0, q1 = first // inner, -(-end // inner)
        region = (*whole(dims[:lead]), (q0, q1), *whole(dims[lead + 1 :]))
        flat = np.ascontiguousarray(self.base.read(region)).reshape(-1)
        return flat[first - q0 * inner : end - q0 * inner]


def reshaped(base: Constant, dims: Dims) -> Constant:
    """The same elements in another shape."""
    if dims == base.dims:
        return base
    if isinstance(base, Leaf):
        return Leaf(base.tensor, dims)
    if isinstance(base, Table):
        return Table(reshaped(base.base, dims), base.entries)
    if isinstance(base, Reshaped):
        return reshaped(base.base, dims)
    return Reshaped(base, dims)


class Joined(Constant):
    """Parts one after another along an axis."""

    def __init__(self, parts: Sequence[Constant], axis: int) -> None:
        self.parts = tuple(parts)
        self.axis = axis
        total = sum(part.dims[axis] for part in parts)
        first = parts[0].dims
        self.dims = (*first[:axis], total, *first[axis + 1 :])
        self.dtype = parts[0].dtype

    def read(self, region: Region) -> Array:
        """Reads what is needed of each part."""
        a, b = region[self.axis]
        found: list[Array] = []
        start = 0
        for part in self.parts:
            end = start + part.dims[self.axis]
            low, high = max(a, start), min(b, end)
            if low < high:
                inner = (low - start, high - start)
                found.append(part.read((*region[: self.axis], inner, *region[self.axis + 1 :])))
            start = end
        if not found:
            return np.empty(tuple(y - x for x, y in region), self.dtype)
        return found[0] if len(found) == 1 else np.concatenate(found, axis=self.axis)


def joined(parts: Sequence[Constant], axis: int) -> Constant:
    """Parts one after another; tables with the same entries are one."""
    tables = [part for part in parts if isinstance(part, Table)]
    if len(tables) == len(parts) and all(
        np.array_equal(t.entries, tables[0].entries) and t.base.dtype == tables[0].base.dtype
        for t in tables
    ):
        return Table(Joined([t.base for t in tables], axis), tables[0].entries)
    return Joined(parts, axis)


class Taken(Constant):
    """Every `stride`-th element from `start` on along an axis; a negative stride goes back."""

    def __init__(self, base: Constant, axis: int, start: int, stride: int, count: int) -> None:
        self.base = base
        self.axis = axis
        self.start = start
        self.stride = stride
        self.dims = (*base.dims[:axis], count, *base.dims[axis + 1 :])
        self.dtype = base.dtype

    def read(self, region: Region) -> Array:
        """Reads the span of elements and leaves out those between."""
        a, b = region[self.axis]
        if a >= b:
            return np.empty(tuple(y - x for x, y in region), self.dtype)
        ends = self.start + a * self.stride, self.start + (b - 1) * self.stride
        low, high = min(ends), max(ends) + 1
        part = self.base.read((*region[: self.axis], (low, high), *region[self.axis + 1 :]))
        step = (*[slice(None)] * self.axis, slice(None, None, self.stride))
        return part[step]


class Selected(Constant):
    """Elements along an axis chosen by a list of indices (Gather)."""

    def __init__(self, base: Constant, index: npt.NDArray[np.int64], axis: int) -> None:
        self.base = base
        self.index = index
        self.axis = axis
        self.dims = (*base.dims[:axis], index.size, *base.dims[axis + 1 :])
        self.dtype = base.dtype

    def read(self, region: Region) -> Array:
        """Reads the span of the chosen elements."""
        a, b = region[self.axis]
        chosen = self.index[a:b]
        if not chosen.size:
            return np.empty(tuple(y - x for x, y in region), self.dtype)
        low, high = int(chosen.min()), int(chosen.max()) + 1
        part = self.base.read((*region[: self.axis], (low, high), *region[self.axis + 1 :]))
        return part.take(chosen - low, axis=self.axis)


class Scattered(Constant):
    """Rows of `base` replaced by rows of `updates` (ScatterND along the first axis)."""

    def __init__(self, base: Constant, rows: npt.NDArray[np.int64], updates: Constant) -> None:
        self.base = base
        self.updates = updates
        self.dims = base.dims
        self.dtype = base.dtype
        self.place = np.full(base.dims[0], -1, np.int64)
        self.place[rows] = np.arange(rows.size)

    def read(self, region: Region) -> Array:
        """Reads the rows of the updates and, where some are missing, those of the base."""
        (r0, r1), rest = region[0], region[1:]
        place = self.place[r0:r1]
        new = place >= 0
        if not new.any():
            return self.base.read(region)
        chosen = place[new]
        low, high = int(chosen.min()), int(chosen.max()) + 1
        part = self.updates.read(((low, high), *rest))
        if not np.array_equal(chosen, np.arange(low, high)):
            part = part[chosen - low]
        if new.all():
            return part
        result = np.array(self.base.read(region))
        result[new] = part
        return result


class Spread(Constant):
    """Axes of length 1 repeated (Expand)."""

    def __init__(self, base: Constant, dims: Dims) -> None:
        self.base = base
        self.dims = dims
        self.dtype = base.dtype

    def read(self, region: Region) -> Array:
        """A view."""
        part = self.base.read(_under(region, self.base.dims))
        return np.broadcast_to(part, tuple(b - a for a, b in region))


class Repeated(Constant):
    """Every element `count` times along an axis, cut to `length`: scales of blocks."""

    def __init__(self, base: Constant, axis: int, count: int, length: int) -> None:
        self.base = base
        self.axis = axis
        self.count = count
        self.dims = (*base.dims[:axis], length, *base.dims[axis + 1 :])
        self.dtype = base.dtype

    def read(self, region: Region) -> Array:
        """Reads the blocks that the region touches."""
        a, b = region[self.axis]
        low, high = a // self.count, -(-b // self.count)
        part = self.base.read((*region[: self.axis], (low, high), *region[self.axis + 1 :]))
        part = np.repeat(part, self.count, axis=self.axis)
        skip = a - low * self.count
        return part[(*[slice(None)] * self.axis, slice(skip, skip + b - a))]


class Reduced(Constant):
    """A sum, mean, largest or least value over axes, which are kept with length 1."""

    def __init__(self, base: Constant, kind: str, axes: Sequence[int]) -> None:
        self.base = base
        self.kind = kind
        self.axes = tuple(axes)
        self.dims = tuple(1 if i in self.axes else d for i, d in enumerate(base.dims))
        self.dtype = base.dtype

    def read(self, region: Region) -> Array:
        """Computes a small result once, a part of a large one each time."""
        if self.size <= KEPT:
            return self._all[_slices(region)]
        return self._compute(region)

    @cached_property
    def _all(self) -> Array:
        return self._compute(whole(self.dims))

    def _compute(self, region: Region) -> Array:
        dims = self.base.dims
        inner = [(0, dims[i]) if i in self.axes else (a, b) for i, (a, b) in enumerate(region)]
        wide = np.float64 if self.dtype.kind == "f" else np.int64
        totals: list[Array] = []
        if not inner:
            return self.base.read(())
        (r0, r1), rest = inner[0], inner[1:]
        row = int(np.prod([b - a for a, b in rest], dtype=np.int64)) * 8
        for s, e in row_chunks(r1 - r0, row):
            part = self.base.read(((r0 + s, r0 + e), *rest))
            if self.kind in ("sum", "mean"):
                totals.append(part.sum(axis=self.axes, keepdims=True, dtype=wide))
            else:
                totals.append(getattr(part, self.kind)(axis=self.axes, keepdims=True))
        if 0 not in self.axes:
            result = np.concatenate(totals)
        elif self.kind in ("sum", "mean"):
            result = np.sum(totals, axis=0, dtype=wide)
        else:
            result = getattr(np.array(totals), self.kind)(axis=0)
        if self.kind == "mean":
            result = result / np.prod([dims[axis] for axis in self.axes])
        return result.astype(self.dtype)
