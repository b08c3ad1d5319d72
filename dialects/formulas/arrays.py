"""Formulas read by numpy: values are int64 arrays of any shape, elementwise."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from intaglio.dialects import fixed_point, tables
from intaglio.dialects.codes import e4m3_encode
from intaglio.dialects.fixed_point import FIXED_BITS, Ints, Saturations, Scale
from intaglio.dialects.formulas.reader import Groups, Reduction, ScaleOf


class Arrays(Groups[Ints, None]):
    """Groups are the last axis; there is one place, that of all elements, and what is reduced keeps
    the axis with length 1."""

    def __init__(self, saturations: Saturations | None = None) -> None:
        self.saturations = saturations

    def lift(self, x: Ints | int) -> Ints:
        return np.asarray(x, np.int64)

    def product(self, a: Ints, b: Ints | int) -> Ints:
        return a * b

    def select(self, sign: Ints, a: Ints | int, b: Ints | int) -> Ints:
        return np.where(sign < 0, a, b)

    def smaller(self, a: Ints, b: Ints | int) -> Ints:
        return np.minimum(a, b)

    def larger(self, a: Ints, b: Ints | int) -> Ints:
        return np.maximum(a, b)

    def count(self, sign: Ints) -> None:
        if self.saturations is not None:
            self.saturations.count += int(np.count_nonzero(sign < 0))

    def clip(self, x: Ints, low: Ints | int, high: Ints | int) -> Ints:
        y = np.maximum(np.minimum(x, high), low)
        if self.saturations is not None:
            self.saturations.count += int(np.count_nonzero(y != x))
        return y

    def round_shift(self, x: Ints, places: Ints | int) -> Ints:
        return fixed_point.round_shift(x, places)

    def saturate(self, x: Ints) -> Ints:
        return fixed_point.saturate(x, FIXED_BITS, self.saturations)

    def shift_saturate(self, x: Ints, places: Ints | int, *, counted: bool = True) -> Ints:
        counter = self.saturations if counted else None
        return fixed_point.shift_saturate(x, places, FIXED_BITS, counter)

    def bit_length(self, x: Ints) -> Ints:
        return fixed_point.bit_length(x)

    def normalise(self, m: Ints) -> Ints:
        return fixed_point.normalise(m)

    def shift_normal(self, x: Ints, z: Ints) -> Ints:
        return fixed_point.shift_normal(x, z)

    def multiply(self, a: ScaleOf[Ints], b: ScaleOf[Ints]) -> ScaleOf[Ints]:
        left, right = Scale(a.mantissa, a.exponent), Scale(b.mantissa, b.exponent)
        mantissa, exponent = fixed_point.multiply(left, right)
        return ScaleOf(mantissa, exponent)

    def lookup(self, name: str, argument: Ints) -> Ints:
        return tables.lookup(tables.table(name), argument)

    def e4m3_encode(self, t: Ints) -> Ints:
        return e4m3_encode(t, 8)

    def sweep(self, body: Callable[[None], Sequence[Ints]], *how: Reduction) -> list[Ints]:
        return _reduced(body(None), how)

    def keep(
        self, body: Callable[[None], Sequence[Ints]], *how: Reduction
    ) -> tuple[Callable[[None], Ints], list[Ints]]:
        kept, *rest = body(None)
        return lambda at: kept, _reduced(rest, how)


def _reduced(values: Sequence[Ints], how: Sequence[Reduction]) -> list[Ints]:
    functions = {"sum": np.sum, "largest": np.max, "least": np.min}
    pairs = zip(values, how, strict=True)
    return [functions[one](value, axis=-1, keepdims=True) for value, one in pairs]
