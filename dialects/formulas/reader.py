"""Who reads a formula: the primitives that the arithmetic of a compiled model is made of.

A formula is a function of a `Reader` and of values that only the reader knows. Three readers give
the same integers and the same number of saturations, always:

* `arrays.Arrays`: int64 arrays of numpy; this is the meaning.
* `runtime/engines/vector_code.py`: LLVM IR of the simulator's kernels.
* `backend/hw/wires/reader.py`: signals of the hardware.

Formulas use Python's ``+ - * & << >>``, negation and `abs` on values, and a reader's methods for
the rest. A condition is a number: it holds where the number is negative. What a compile knows is an
integer for numpy and wires, and a value for kernels, so that one kernel serves all constants.

`fixed_point`, `tables` and `codes` define what the primitives compute.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Generic, Literal, NamedTuple, Protocol, Self, TypeVar


class Number(Protocol):
    """What values can do with each other and with integers: exact, in 64 bits."""

    def __add__(self, other: Self | int, /) -> Self: ...
    def __sub__(self, other: Self | int, /) -> Self: ...
    def __mul__(self, other: Self | int, /) -> Self: ...
    def __and__(self, other: Self | int, /) -> Self: ...
    def __lshift__(self, other: Self | int, /) -> Self: ...
    def __rshift__(self, other: Self | int, /) -> Self: ...
    def __neg__(self) -> Self: ...
    def __abs__(self) -> Self: ...


V = TypeVar("V", bound=Number)
"""A reader's values."""
K_co = TypeVar("K_co", covariant=True)
"""What a compile knows, as a reader has it: ``V | int``."""
P = TypeVar("P")
"""A reader's places in a group of elements."""

Reduction = Literal["sum", "largest", "least"]
"""What a sweep makes of the elements of a group; the width of a sum is the formula's to state."""


class ScaleOf(NamedTuple, Generic[V]):
    """`fixed_point.Scale` of a reader's values."""

    mantissa: V
    exponent: V


class Reader(ABC, Generic[V]):
    """The primitives."""

    @abstractmethod
    def lift(self, x: V | int) -> V:
        """A constant as a value; a value as it is."""

    def cut(self, x: V) -> V:
        """The value itself; in hardware a register may stand here."""
        return x

    def assume(self, x: V, low: int, high: int) -> V:
        """The value itself, which the formula promises to be within bounds."""
        return x

    @abstractmethod
    def product(self, a: V, b: V | int) -> V:
        """``a * b`` of two numbers that fit int32."""

    @abstractmethod
    def select(self, sign: V, a: V | int, b: V | int) -> V:
        """`a` where `sign` is negative, else `b`."""

    @abstractmethod
    def smaller(self, a: V, b: V | int) -> V:
        """The smaller one."""

    @abstractmethod
    def larger(self, a: V, b: V | int) -> V:
        """The larger one."""

    @abstractmethod
    def count(self, sign: V) -> None:
        """Counts elements that are negative as saturations."""

    @abstractmethod
    def clip(self, x: V, low: V | int, high: V | int) -> V:
        """`x` within bounds; counts what was not."""

    @abstractmethod
    def round_shift(self, x: V, places: V | int) -> V:
        """`fixed_point.round_shift`."""

    @abstractmethod
    def saturate(self, x: V) -> V:
        """`fixed_point.saturate` to 32 bits; counts."""

    @abstractmethod
    def shift_saturate(self, x: V, places: V | int, *, counted: bool = True) -> V:
        """`fixed_point.shift_saturate` to 32 bits; counts, unless told otherwise."""

    @abstractmethod
    def bit_length(self, x: V) -> V:
        """`fixed_point.bit_length`."""

    @abstractmethod
    def normalise(self, m: V) -> V:
        """`fixed_point.normalise` to 24 bits."""

    @abstractmethod
    def shift_normal(self, x: V, z: V) -> V:
        """`fixed_point.shift_normal` to 24 bits."""

    @abstractmethod
    def multiply(self, a: ScaleOf[V], b: ScaleOf[V]) -> ScaleOf[V]:
        """`fixed_point.multiply`."""

    @abstractmethod
    def lookup(self, name: str, argument: V) -> V:
        """`tables.lookup` in the table of that name."""

    @abstractmethod
    def e4m3_encode(self, t: V) -> V:
        """`codes.e4m3_encode` with 8 fraction bits."""


class Groups(Reader[V], Generic[V, P]):
    """The primitives, and sweeps over the elements of a group.

    Elements are functions of a place. What a sweep keeps is a function of a place too.
    """

    @abstractmethod
    def sweep(self, body: Callable[[P], Sequence[V]], *how: Reduction) -> list[V]:
        """The reductions of what `body` says of each place: a value for each of `how`."""

    @abstractmethod
    def keep(
        self, body: Callable[[P], Sequence[V]], *how: Reduction
    ) -> tuple[Callable[[P], V], list[V]]:
        """The first of what `body` says of each place, as elements, and reductions of the rest."""
