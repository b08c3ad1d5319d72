"""Formulas read by LLVM: values are int64, or registers full of them.

`Kernel` builds one function; a `Value` has Python's operators. `Lanes` is the reader: its methods
emit what their namesakes in `dialects/fixed_point.py` compute. Nothing is explained twice.

Every kernel takes the address of a block of int64: place 0 receives the number of saturations, the
others are the arguments in the order in which the kernel names them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import TypeAlias

from intaglio.dialects.fixed_point import FIXED_BITS, SCALE_BITS, Ints
from intaglio.dialects.formulas.reader import Groups, Reduction, ScaleOf
from intaglio.dialects.tables import table
from intaglio.runtime.engines import llvm_ir
from intaglio.runtime.engines.kernel_code import Emitter, Path

Operand: TypeAlias = "Value | int"


class Value:
    """An int64, a vector of them, or (from a comparison) truth values."""

    __slots__ = ("kernel", "value")

    def __init__(self, kernel: Kernel, value: llvm_ir.Value) -> None:
        self.kernel = kernel
        self.value = value

    @property
    def lanes(self) -> int:
        """Elements."""
        return getattr(self.value.type, "count", 1)

    def _do(self, operation: str, other: Operand, *first: str) -> Value:
        a, b = self.kernel.alike(self, other)
        return Value(self.kernel, getattr(self.kernel.b, operation)(*first, a, b))

    def __add__(self, other: Operand) -> Value:
        return self._do("add", other)

    def __sub__(self, other: Operand) -> Value:
        return self._do("sub", other)

    def __mul__(self, other: Operand) -> Value:
        return self._do("mul", other)

    def __and__(self, other: Operand) -> Value:
        return self._do("and_", other)

    def __or__(self, other: Operand) -> Value:
        return self._do("or_", other)

    def __xor__(self, other: Operand) -> Value:
        return self._do("xor", other)

    def __lshift__(self, other: Operand) -> Value:
        return self._do("shl", other)

    def __rshift__(self, other: Operand) -> Value:
        return self._do("ashr", other)

    def __neg__(self) -> Value:
        return self.kernel.number(0) - self

    def __abs__(self) -> Value:
        return larger(self, -self)

    def __lt__(self, other: Operand) -> Value:
        return self._do("icmp_signed", other, "<")

    def __gt__(self, other: Operand) -> Value:
        return self._do("icmp_signed", other, ">")

    def differs(self, other: Operand) -> Value:
        """Where the two are not equal."""
        return self._do("icmp_signed", other, "!=")


@dataclass(frozen=True)
class Cursor:
    """Where a loop over elements is: `lanes` of them from `index` on."""

    index: Value
    lanes: int


def _place(where: Cursor | Operand) -> tuple[Operand, int]:
    """An index and the number of elements from it on."""
    return (where.index, where.lanes) if isinstance(where, Cursor) else (where, 1)


@dataclass(frozen=True)
class Array:
    """Integers of 8, 16 or 64 bits in memory, read as int64."""

    kernel: Kernel
    address: Value
    bits: int = 64

    def at(self, offset: Operand) -> Array:
        """The same array from another element on."""
        return Array(self.kernel, self.address + self._bytes(offset), self.bits)

    def _bytes(self, offset: Operand) -> Operand:
        return offset * (self.bits // 8)

    def pointer(self, offset: Operand) -> llvm_ir.Value:
        """The address of an element."""
        k = self.kernel
        base = k.b.inttoptr(self.address.value, k.ptr)
        return k.at(base, k.alike(self._bytes(offset), k.number(0))[0])

    def load(self, where: Cursor | Operand) -> Value:
        """The elements at a cursor, or one; narrow ones are extended by their sign."""
        k = self.kernel
        index, lanes = _place(where)
        raw = k.load(self.pointer(index), k.integers(self.bits, lanes))
        return Value(k, raw if self.bits == 64 else k.b.sext(raw, k.integers(64, lanes)))

    def store(self, where: Cursor | Operand, value: Operand) -> None:
        """Writes the elements at a cursor, or one; narrow ones keep the low bits."""
        k = self.kernel
        index, lanes = _place(where)
        wide = k.splat(value, lanes)
        raw = wide if self.bits == 64 else k.b.trunc(wide, k.integers(self.bits, lanes))
        k.store(raw, self.pointer(index))


class Total:
    """A reduction of what a loop over elements gives it."""

    def __init__(self, kernel: Kernel, reduction: Reduction) -> None:
        self.kernel = kernel
        self.reduction: Reduction = reduction
        start = _START[reduction]
        self.slots = {n: kernel.variable(kernel.splat(start, n)) for n in (1, kernel.width)}

    def take(self, value: Value) -> None:
        """Takes in an element, or a vector of them."""
        k = self.kernel
        slot = self.slots[value.lanes]
        old = Value(k, k.b.load(slot, typ=value.value.type))
        k.b.store(_COMBINE[self.reduction](old, value).value, slot)

    @property
    def value(self) -> Value:
        """The result so far."""
        k = self.kernel
        one = Value(k, k.b.load(self.slots[1], typ=k.i64))
        many = k.b.load(self.slots[k.width], typ=k.integers(64, k.width))
        name = f"llvm.vector.reduce.{_OPERATION[self.reduction]}.v{k.width}i64"
        return _COMBINE[self.reduction](one, Value(k, k.intrinsic(name, k.i64, [many])))


class Kernel(Emitter):
    """A function under construction, with the loops and arrays that the kernels are made of."""

    def __init__(self, path: Path, name: str) -> None:
        super().__init__(path, name)
        # Keeps LLVM from unrolling the loops, which takes half of the time of compiling them.
        self.function.attributes.add("optsize")
        self.width = path.width // 8
        """Int64 lanes of a vector."""
        self._taken = 0
        self.saturations = Total(self, "sum")

    def number(self, value: int) -> Value:
        return Value(self, self.const(value))

    def integers(self, bits: int, lanes: int) -> llvm_ir.Type:
        """The type of `lanes` integers."""
        element = self.ir.IntType(bits)
        return element if lanes == 1 else self.vec(element, lanes)

    def numbers(self, count: int) -> list[Value]:
        """The next `count` arguments."""
        first = self._taken + 1
        self._taken += count
        places = [self.at(self.parameters, self.const(first + i), self.i64) for i in range(count)]
        return [Value(self, self.b.load(place, typ=self.i64)) for place in places]

    def arrays(self, count: int, bits: int = 64) -> list[Array]:
        """The next `count` arguments as addresses of arrays."""
        return [Array(self, address, bits) for address in self.numbers(count)]

    def splat(self, value: Operand, lanes: int) -> llvm_ir.Value:
        """A value in every lane of a vector."""
        if isinstance(value, int):
            return self.const(value, self.integers(64, lanes))
        if value.lanes == lanes:
            return value.value
        first = self.ir.Constant(self.vec(value.value.type, lanes), self.ir.Undefined)
        return self.shuffle(
            self.b.insert_element(first, value.value, self.const(0, self.i32)), [0] * lanes
        )

    def alike(self, a: Operand, b: Operand) -> tuple[llvm_ir.Value, llvm_ir.Value]:
        """Both with as many lanes as the wider one."""
        lanes = max(v.lanes for v in (a, b) if isinstance(v, Value))
        return self.splat(a, lanes), self.splat(b, lanes)

    @contextmanager
    def range(self, count: Operand) -> Iterator[Value]:
        """`for i in range(count)`."""
        stop = self.alike(count, self.number(0))[0]
        with self.loop(self.const(0), stop) as i:
            yield Value(self, i)

    @contextmanager
    def range_of(self, first: Value, stop: Value) -> Iterator[Value]:
        """`for i in range(first, stop)`."""
        with self.loop(first.value, stop.value) as i:
            yield Value(self, i)

    def each(self, count: Operand, body: Callable[[Cursor], None]) -> None:
        """Runs `body` over `count` elements: vectors first, then what is left one by one."""
        count = self.number(count) if isinstance(count, int) else count
        vectors = count >> (self.width.bit_length() - 1)
        with self.range(vectors) as i:
            body(Cursor(i * self.width, self.width))
        done = vectors * self.width
        with self.range(count - done) as i:
            body(Cursor(done + i, 1))

    def each_one(self, count: Operand, body: Callable[[Cursor], None]) -> None:
        """`each` without vectors."""
        with self.range(count) as i:
            body(Cursor(i, 1))

    def gather(self, base: Array, index: Value) -> Value:
        """An element of an array for each lane of the index."""
        if index.lanes == 1:
            return base.load(index)
        result = self.splat(0, index.lanes)
        for lane in range(index.lanes):
            place = self.const(lane, self.i32)
            one = base.load(Value(self, self.b.extract_element(index.value, place)))
            result = self.b.insert_element(result, one.value, place)
        return Value(self, result)

    def end(self) -> llvm_ir.Module:
        """Writes the saturations and ends the function."""
        self.store(self.saturations.value.value, self.parameters)
        return self.finish()


def where(condition: Value, a: Operand, b: Operand) -> Value:
    """`a` where the condition is true, else `b`."""
    k = condition.kernel
    lanes = max(v.lanes for v in (condition, a, b) if isinstance(v, Value))
    chosen = k.b.select(k.splat(condition, lanes), k.splat(a, lanes), k.splat(b, lanes))
    return Value(k, chosen)


def smaller(a: Value, b: Operand) -> Value:
    """The smaller one."""
    return where(a < b, a, b)


def larger(a: Value, b: Operand) -> Value:
    """The larger one."""
    return where(a > b, a, b)


_START: dict[Reduction, int] = {"sum": 0, "largest": -(1 << 63), "least": (1 << 63) - 1}
_OPERATION: dict[Reduction, str] = {"sum": "add", "largest": "smax", "least": "smin"}
_COMBINE: dict[Reduction, Callable[[Value, Value], Value]] = {
    "sum": lambda a, b: a + b,
    "largest": larger,
    "least": smaller,
}


def product(a: Value, b: Operand) -> Value:
    """``a * b`` of two operands that fit int32, which is much cheaper than of two int64."""
    both = [(v << 32) >> 32 if isinstance(v, Value) else v for v in (a, b)]
    assert isinstance(both[0], Value)
    return both[0] * both[1]


def _limited(x: Value, low: Operand, high: Operand) -> Value:
    return larger(smaller(x, high), low)


@cache
def _content(name: str) -> Ints:
    """A table in memory for good; an element is ``entry << 32 | (difference & 0xffffffff)``."""
    entries, differences = table(name).arrays
    return entries << 32 | differences & 0xFFFFFFFF


class Lanes(Groups[Value, Cursor]):
    """The reader.

    Args:
        kernel: what is under construction.
        n: elements of a group.
        kept: where sweeps keep elements.
    """

    def __init__(self, kernel: Kernel, n: Operand = 0, kept: Array | None = None) -> None:
        self.kernel, self._n, self._kept = kernel, n, kept

    def lift(self, x: Operand) -> Value:
        return self.kernel.number(x) if isinstance(x, int) else x

    def product(self, a: Value, b: Operand) -> Value:
        return product(a, b)

    def select(self, sign: Value, a: Operand, b: Operand) -> Value:
        return where(sign < 0, a, b)

    def smaller(self, a: Value, b: Operand) -> Value:
        return smaller(a, b)

    def larger(self, a: Value, b: Operand) -> Value:
        return larger(a, b)

    def count(self, sign: Value) -> None:
        self._count(sign < 0)

    def _count(self, changed: Value) -> None:
        self.kernel.saturations.take(where(changed, self.kernel.number(1), 0))

    def clip(self, x: Value, low: Operand, high: Operand) -> Value:
        y = _limited(x, low, high)
        self._count(y.differs(x))
        return y

    def round_shift(self, x: Value, places: Operand) -> Value:
        if isinstance(places, int):
            if places <= 0:
                return x << -places
            return ((x >> min(places - 1, 63)) + 1) >> 1
        right = _limited(places, 0, 64)
        last = smaller(right, 1)
        return (((x << larger(-places, 0)) >> (right - last)) + last) >> last

    def saturate(self, x: Value) -> Value:
        return self.clip(x, _LOW, _HIGH)

    def shift_saturate(self, x: Value, places: Operand, *, counted: bool = True) -> Value:
        places = self.lift(places)
        left = _limited(-places, 0, FIXED_BITS)
        inside = _limited(x, _LOW, _HIGH)
        first = where(left > 0, inside, self.round_shift(x, larger(places, 0)))
        shifted = first << left
        return self.saturate(shifted) if counted else _limited(shifted, _LOW, _HIGH)

    def bit_length(self, x: Value) -> Value:
        k = x.kernel
        suffix = "i64" if x.lanes == 1 else f"v{x.lanes}i64"
        arguments = [x.value, k.const(0, k.i1)]
        zeros = k.intrinsic(f"llvm.ctlz.{suffix}", x.value.type, arguments)
        return k.number(64) - Value(k, zeros)

    def normalise(self, m: Value) -> Value:
        return -self.bit_length(m) + SCALE_BITS

    def shift_normal(self, x: Value, z: Value) -> Value:
        limit = (1 << SCALE_BITS) - 1
        return _limited(self.round_shift(x, -z), -limit, limit)

    def multiply(self, a: ScaleOf[Value], b: ScaleOf[Value]) -> ScaleOf[Value]:
        p = product(a.mantissa, b.mantissa)
        k = (p >> 47) + 23
        mantissa = ((p >> 22) + (k - 22)) >> (k - 22)
        return ScaleOf(smaller(mantissa, (1 << SCALE_BITS) - 1), a.exponent + b.exponent - k)

    def lookup(self, name: str, argument: Value) -> Value:
        of, k = table(name), self.kernel
        content = Array(k, k.number(_content(name).ctypes.data))
        clipped = smaller(argument, of.end)
        both = k.gather(content, (clipped >> of.step_bits) - of.lo_index)
        fraction = clipped & ((1 << of.step_bits) - 1)
        return self.round_shift(product(both, fraction), of.step_bits) + (both >> 32)

    def e4m3_encode(self, t: Value) -> Value:
        a = abs(t)
        drop = larger(self.bit_length(a) - 4, 8)
        q = (((a >> drop) & 1) + a + ((self.lift(1) << (drop - 1)) - 1)) >> drop
        return smaller(q + ((drop - 8) << 3), 126) + ((t >> 63) & 128)

    def sweep(self, body: Callable[[Cursor], Sequence[Value]], *how: Reduction) -> list[Value]:
        totals = [Total(self.kernel, one) for one in how]

        def step(at: Cursor) -> None:
            for total, value in zip(totals, body(at), strict=True):
                total.take(value)

        self.kernel.each(self._n, step)
        return [total.value for total in totals]

    def keep(
        self, body: Callable[[Cursor], Sequence[Value]], *how: Reduction
    ) -> tuple[Callable[[Cursor], Value], list[Value]]:
        assert self._kept is not None
        kept = self._kept

        def step(at: Cursor) -> Sequence[Value]:
            first, *rest = body(at)
            kept.store(at, first)
            return rest

        return kept.load, self.sweep(step, *how)


_LOW, _HIGH = -(1 << (FIXED_BITS - 1)), (1 << (FIXED_BITS - 1)) - 1
