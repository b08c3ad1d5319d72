"""Families: the matrices of a mixture's experts as one tensor, expert after expert."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from intaglio.lowering.onnx.values import Refusal
from intaglio.lowering.onnx.weights.sources import Matrix
from intaglio.lowering.onnx.weights.weights import Parameter
from intaglio.lowering.parameters import Float32Array, UInt8Array

_A = TypeVar("_A", bound=np.generic)


@dataclass(frozen=True, eq=False)
class StackedSource(Matrix):
    """Matrices of one form, the rows of one behind those of the other."""

    parts: tuple[Matrix, ...]

    @property
    def may_have_unused(self) -> bool:
        """As of any part."""
        return any(one.may_have_unused for one in self.parts)

    @property
    def read_from(self) -> str:
        """As of the first part."""
        return self.parts[0].read_from

    @property
    def zero_fraction(self) -> float | None:
        """The mean of the parts, which are of one size."""
        known = [one.zero_fraction for one in self.parts]
        found = [one for one in known if one is not None]
        return sum(found) / len(found) if len(found) == len(known) else None

    def packed_rows(self, r0: int, r1: int) -> UInt8Array:
        """Codes of the parts."""
        return np.concatenate([one.packed_rows(a, b) for one, a, b in self._within(r0, r1)])

    def scales(self, r0: int, r1: int) -> Float32Array:
        """Scales of the parts."""
        return np.concatenate([one.scales(a, b) for one, a, b in self._within(r0, r1)])

    def zeros(self, r0: int, r1: int) -> UInt8Array | None:
        """Zero points of the parts."""
        return _joined([one.zeros(a, b) for one, a, b in self._within(r0, r1)])

    @property
    def has_real_zeros(self) -> bool:
        """As the parts, which are alike."""
        return self.parts[0].has_real_zeros

    def real_zeros(self, r0: int, r1: int) -> Float32Array | None:
        """Zero points of the parts."""
        return _joined([one.real_zeros(a, b) for one, a, b in self._within(r0, r1)])

    def peak(self) -> float:
        """The largest of the parts; not finite where one of them is not."""
        return float(np.max([one.peak() for one in self.parts]))

    def _within(self, r0: int, r1: int) -> Iterator[tuple[Matrix, int, int]]:
        """Parts with the rows of each that lie between two rows of all."""
        first = 0
        for one in self.parts:
            rows = one.dims[0]
            a, b = max(r0 - first, 0), min(r1 - first, rows)
            if a < b:
                yield one, a, b
            first += rows


def _joined(parts: Sequence[npt.NDArray[_A] | None]) -> npt.NDArray[_A] | None:
    found = [one for one in parts if one is not None]
    return np.concatenate(found) if found else None


@dataclass(frozen=True, eq=False)
class FamilySource(Matrix):
    """A matrix whose rows are those of several experts, one behind the other.

    With `order` the rows of each expert come in another order: row n is its row `order[n]`.
    """

    base: Matrix
    count: int
    order: npt.NDArray[np.int64] | None = None

    @property
    def experts(self) -> int:
        """Matrices of the family."""
        return self.count

    @property
    def may_have_unused(self) -> bool:
        """As in the matrix."""
        return self.base.may_have_unused

    @property
    def read_from(self) -> str:
        """As of the matrix."""
        return self.base.read_from

    @property
    def zero_fraction(self) -> float | None:
        """As of the matrix."""
        return self.base.zero_fraction

    @property
    def has_real_zeros(self) -> bool:
        """As the matrix."""
        return self.base.has_real_zeros

    def packed_rows(self, r0: int, r1: int) -> UInt8Array:
        """Codes of the matrix."""
        return self._taken(self.base.packed_rows, r0, r1)

    def scales(self, r0: int, r1: int) -> Float32Array:
        """Scales of the matrix."""
        return self._taken(self.base.scales, r0, r1)

    def zeros(self, r0: int, r1: int) -> UInt8Array | None:
        """Zero points of the matrix."""
        if self.zero is not None:
            return None
        return self._taken(lambda a, b: _there(self.base.zeros(a, b)), r0, r1)

    def real_zeros(self, r0: int, r1: int) -> Float32Array | None:
        """Zero points of the matrix."""
        if not self.has_real_zeros:
            return None
        return self._taken(lambda a, b: _there(self.base.real_zeros(a, b)), r0, r1)

    def peak(self) -> float:
        """That of the matrix."""
        return self.base.peak()

    @cached_property
    def _rows(self) -> int:
        """Of an expert."""
        return self.dims[0] // self.count

    def _taken(
        self, read: Callable[[int, int], npt.NDArray[_A]], r0: int, r1: int
    ) -> npt.NDArray[_A]:
        if self.order is None:
            return read(r0, r1)
        parts: list[npt.NDArray[_A]] = []
        while r0 < r1:
            expert, first = divmod(r0, self._rows)
            last = min(first + r1 - r0, self._rows)
            index = self.order[first:last]
            low, high = int(index.min()), int(index.max()) + 1
            begin = expert * self._rows
            parts.append(read(begin + low, begin + high)[index - low])
            r0 += last - first
        return np.concatenate(parts)


def _there(values: npt.NDArray[_A] | None) -> npt.NDArray[_A]:
    assert values is not None
    return values


def family(
    parameter: Parameter, experts: int, order: npt.NDArray[np.int64] | None = None
) -> Parameter:
    """A matrix [experts * rows, columns] as a family; with `order` rows in another order."""
    base = parameter.source
    assert isinstance(base, Matrix)
    zero = base.zero
    source = FamilySource(base.dims, base.code, base.bits, base.group, zero, base, experts, order)
    shown = None if order is None else order.tobytes()
    identity = ("family", experts, shown, *parameter.identity)
    return Parameter(source, parameter.names, identity)


def stacked(parameters: Sequence[Parameter]) -> Parameter:
    """Matrices of one shape as a family.

    Raises:
        Refusal: they are not alike.
    """
    sources = [one.source for one in parameters]
    first = sources[0]
    assert isinstance(first, Matrix)
    found: list[Matrix] = []
    for one, parameter in zip(sources, parameters, strict=True):
        assert isinstance(one, Matrix)
        form = (one.dims, one.code, one.group, one.zero, one.has_real_zeros)
        if form != (first.dims, first.code, first.group, first.zero, first.has_real_zeros):
            raise Refusal(
                f"the experts' matrices differ: '{parameters[0].names[0]}' is {first.code} "
                f"{list(first.dims)}, '{parameter.names[0]}' {one.code} {list(one.dims)}, or their "
                "groups or zero points do"
            )
        found.append(one)
    rows, columns = first.dims
    dims = (rows * len(found), columns)
    source = StackedSource(dims, first.code, first.bits, first.group, first.zero, tuple(found))
    names = tuple(dict.fromkeys(name for one in parameters for name in one.names))
    identity = ("stacked", *(one.identity for one in parameters))
    return family(Parameter(source, names, identity), len(found))
