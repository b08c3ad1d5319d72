"""Formulas read by wires: values are `Signal`s, and a group is a list of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from intaglio.backend.hw.wires import datapaths
from intaglio.backend.hw.wires.datapaths import Fixed
from intaglio.backend.hw.wires.signal import (
    ModuleBuilder,
    Signal,
    add_all,
    larger,
    mux,
    smaller,
    tree,
)
from intaglio.dialects.formulas.reader import Groups, Reduction, ScaleOf
from intaglio.dialects.tables import table


class Wires(Groups[Signal, int]):
    """The reader.

    Args:
        module: what the signals belong to.
        n: elements of a group; places are 0 to n - 1.
    """

    def __init__(self, module: ModuleBuilder, n: int = 0) -> None:
        self._module, self._n = module, n
        self._counts: list[Signal] = []

    @property
    def saturated(self) -> Signal:
        """How many of the places where formulas may saturate did."""
        return add_all(self._counts) if self._counts else self._module.constant(0)

    def lift(self, x: Signal | int) -> Signal:
        return self._module.constant(x) if isinstance(x, int) else x

    def cut(self, x: Signal) -> Signal:
        return x.cut()

    def assume(self, x: Signal, low: int, high: int) -> Signal:
        return x.assume(low, high)

    def product(self, a: Signal, b: Signal | int) -> Signal:
        return (a * b).named("product").cut()

    def select(self, sign: Signal, a: Signal | int, b: Signal | int) -> Signal:
        return mux(sign < 0, a, b)

    def smaller(self, a: Signal, b: Signal | int) -> Signal:
        return smaller(a, b)

    def larger(self, a: Signal, b: Signal | int) -> Signal:
        return larger(a, b)

    def count(self, sign: Signal) -> None:
        self._counts.append(sign < 0)

    def clip(self, x: Signal, low: Signal | int, high: Signal | int) -> Signal:
        self._counts.append((x < low) | (x > high))
        return larger(smaller(x, high), low)

    def round_shift(self, x: Signal, places: Signal | int) -> Signal:
        return datapaths.round_shift(x, places)

    def _counted(self, fixed: Fixed, counted: bool) -> Signal:
        if counted:
            self._counts.append(fixed.saturated)
        return fixed.value

    def saturate(self, x: Signal) -> Signal:
        return self._counted(datapaths.saturate(x), True)

    def shift_saturate(self, x: Signal, places: Signal | int, *, counted: bool = True) -> Signal:
        return self._counted(datapaths.shift_saturate(x, places), counted)

    def bit_length(self, x: Signal) -> Signal:
        return datapaths.bit_length(x)

    def normalise(self, m: Signal) -> Signal:
        return datapaths.normalise(m)

    def shift_normal(self, x: Signal, z: Signal) -> Signal:
        return datapaths.shift_normal(x, z)

    def multiply(self, a: ScaleOf[Signal], b: ScaleOf[Signal]) -> ScaleOf[Signal]:
        return datapaths.multiply(a, b)

    def lookup(self, name: str, argument: Signal) -> Signal:
        return datapaths.lookup(table(name), argument)

    def e4m3_encode(self, t: Signal) -> Signal:
        return datapaths.e4m3_encode(t, 8)

    def sweep(self, body: Callable[[int], Sequence[Signal]], *how: Reduction) -> list[Signal]:
        return _reduced([body(at) for at in range(self._n)], how)

    def keep(
        self, body: Callable[[int], Sequence[Signal]], *how: Reduction
    ) -> tuple[Callable[[int], Signal], list[Signal]]:
        kept = [body(at) for at in range(self._n)]
        return lambda at: kept[at][0], _reduced([rest for _, *rest in kept], how)


def _reduced(values: Sequence[Sequence[Signal]], how: Sequence[Reduction]) -> list[Signal]:
    columns = zip(zip(*values, strict=True), how, strict=True)
    return [tree(column, _COMBINE[one]) for column, one in columns]


def _sum(a: Signal, b: Signal) -> Signal:
    return a + b


_COMBINE: dict[Reduction, Callable[[Signal, Signal], Signal]] = {
    "sum": _sum,
    "largest": larger,
    "least": smaller,
}
