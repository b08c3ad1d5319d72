"""Hardware as equations: signals with exact widths over CIRCT's hw, comb and seq operations.

A `Signal` is a value of a module with a width, a sign, and the bounds of what it can be. Operators
never lose a bit: the result of ``a * b + 1`` is as wide as the bounds of `a` and `b` demand, and
what is constant folds. Bits are lost only where a method says so (`Signal.truncate`,
`Signal.assume`, `datapaths.saturate`). Two equal expressions in a module are one operation.

>>> design = Design()
>>> m = design.module("scale")
>>> x, y = m.input("x", 8, signed=True), m.input("y", 8)
>>> m.output("z", (x * y + 1).named("product").delay())
>>> (x * y + 1).width
16

Inside a function given to `pipelined`, `Signal.cut` marks where a register may stand; signals that
took different numbers of cuts are brought in step where they meet, so a pipeline reads like the
combinational equation it is.

A name ends up in the waveform: registers, wires, instances and ports carry theirs, and `named`
gives one to an expression. Names within a module are made unique by a number at the end.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, TypeAlias

from xdsl.dialects import comb, hw, seq
from xdsl.dialects.builtin import (
    ArrayAttr,
    FixedBitwidthType,
    IntegerAttr,
    IntegerType,
    ModuleOp,
    StringAttr,
    SymbolRefAttr,
    i32,
)
from xdsl.ir import Attribute, Block, Operation, Region, SSAValue, TypeAttribute

from intaglio.backend.hw.wires.circt_ops import (
    AggregateConstantOp,
    FirMemOp,
    FirMemReadOp,
    FirMemType,
    FirMemWriteOp,
    WireOp,
)
from intaglio.backend.hw.wires.reserved import RESERVED
from intaglio.dialects.errors import CompilerBug

Operand: TypeAlias = "Signal | int"


@lru_cache(1 << 10)
def _wires(width: int) -> IntegerType:
    """A type, verified once: most operations of a design have one of a few."""
    return IntegerType(width)


@lru_cache(1 << 12)
def _integer(value: int, type_: IntegerType) -> IntegerAttr[IntegerType]:
    """A number below ``2**width``, verified once."""
    return IntegerAttr(value, type_, truncate_bits=True)


def _made(op: type[Operation], operands: Sequence[SSAValue], result: Attribute) -> Operation:
    """An operation of one result; its constructor looks for what the operands are each time."""
    return op.create(operands=operands, result_types=(result,))


def _bits(value: SSAValue) -> int:
    assert isinstance(value.type, FixedBitwidthType)
    return value.type.bitwidth


def bits_for(low: int, high: int) -> tuple[int, bool]:
    """Width and sign of the narrowest type that holds `low` to `high`."""
    if low >= 0:
        return max(1, high.bit_length()), False
    return max((-low - 1).bit_length(), high.bit_length() if high > 0 else 0) + 1, True


def bounds_of(width: int, signed: bool) -> tuple[int, int]:
    """Least and greatest number of a type."""
    return (-(1 << (width - 1)), (1 << (width - 1)) - 1) if signed else (0, (1 << width) - 1)


class Signal:
    """A value of a module.

    Attributes:
        module: the module it belongs to.
        wires: its SSA value; None for a constant.
        width: their number.
        signed: whether they are two's complement.
        low: least value it can have.
        high: greatest value it can have; equal to `low` for a constant.
        stage: where in a pipeline it is; None outside.
    """

    __slots__ = ("high", "low", "module", "signed", "stage", "width", "wires")

    def __init__(
        self,
        module: ModuleBuilder,
        value: SSAValue | None,
        width: int,
        signed: bool,
        low: int | None = None,
        high: int | None = None,
        stage: Stage | None = None,
    ) -> None:
        least, greatest = bounds_of(width, signed)
        self.stage = stage
        self.module = module
        self.wires = value
        self.width = width
        self.signed = signed
        self.low = least if low is None else low
        self.high = greatest if high is None else high
        if not least <= self.low <= self.high <= greatest:
            raise CompilerBug(f"{self.low} to {self.high} does not fit {self}")

    def __repr__(self) -> str:
        sign = "s" if self.signed else "u"
        return f"Signal({sign}{self.width}, {self.low}..{self.high})"

    __hash__ = object.__hash__

    def __bool__(self) -> bool:
        raise CompilerBug("a signal has no truth value at build time; use mux")

    @property
    def value(self) -> SSAValue:
        """The SSA value."""
        return self.bits(self.width)

    @property
    def constant(self) -> int | None:
        """The number, if there is only one it can be."""
        return self.low if self.low == self.high else None

    def bits(self, width: int) -> SSAValue:
        """The SSA value at a width: extended by its own sign, or its low bits."""
        module = self.module
        if self.wires is None:
            return module.number(self.low, width)
        if width == self.width:
            return self.wires
        if width < self.width:
            return module.extract(self.wires, 0, width)
        more = width - self.width
        if not self.signed or self.low >= 0:
            return module.concat([module.number(0, more), self.wires])
        sign = module.extract(self.wires, self.width - 1, 1)
        return module.concat([module.replicate(sign, more), self.wires])

    def like(
        self,
        value: SSAValue | None,
        width: int,
        signed: bool,
        low: int | None = None,
        high: int | None = None,
    ) -> Signal:
        """A signal of the same module and stage."""
        return Signal(self.module, value, width, signed, low, high, self.stage)

    # Names and types

    def named(self, name: str) -> Signal:
        """The same signal; its operation gets a name for waveforms, if it has none."""
        if self.wires is not None:
            self.module.name_value(self.wires, name)
        return self

    def extend(self, width: int, signed: bool | None = None) -> Signal:
        """The same number on `width` wires.

        Raises:
            CompilerBug: a number within the bounds does not fit.
        """
        signed = self.signed or self.low < 0 if signed is None else signed
        least, greatest = bounds_of(width, signed)
        if not least <= self.low <= self.high <= greatest:
            raise CompilerBug(f"{self} does not fit {width} bits, {signed=}")
        if width == self.width and signed == self.signed:
            return self
        return self.like(self.bits(width), width, signed, self.low, self.high)

    def truncate(self, width: int, signed: bool = False) -> Signal:
        """The low bits, with a sign or without: what does not fit wraps around."""
        least, greatest = bounds_of(width, signed)
        fits = least <= self.low and self.high <= greatest
        low, high = (self.low, self.high) if fits else (None, None)
        return self.like(self.bits(width), width, signed, low, high)

    def as_signed(self) -> Signal:
        """The same wires as two's complement."""
        return self.truncate(self.width, True)

    def as_unsigned(self) -> Signal:
        """The same wires as an unsigned number."""
        return self.truncate(self.width)

    def assume(self, low: int, high: int) -> Signal:
        """The designer's promise that the value is within bounds: fewer wires, no check."""
        low, high = max(low, self.low), min(high, self.high)
        if low == high:
            return self.module.constant(low)
        width, signed = bits_for(low, high)
        return self.like(self.bits(width), width, signed, low, high)

    # Arithmetic

    def lift(self, other: Operand) -> Signal:
        if not isinstance(other, Signal):
            return self.module.constant(int(other))
        if other.module is not self.module:
            raise CompilerBug(f"a signal of {self.module.name} meets one of {other.module.name}")
        return other

    def _arithmetic(
        self, other: Operand, op: type[Operation], function: Callable[[int, int], int]
    ) -> Signal:
        a, b = in_step(self, self.lift(other))
        corners = [function(x, y) for x in (a.low, a.high) for y in (b.low, b.high)]
        low, high = min(corners), max(corners)
        if low == high:
            return self.module.constant(low)
        width, signed = bits_for(low, high)
        value = self.module.binary(op, a.bits(width), b.bits(width))
        return joint(value, width, signed, low, high, a, b)

    def __add__(self, other: Operand) -> Signal:
        b = self.lift(other)
        if b.constant == 0:
            return self
        return self._arithmetic(b, comb.AddOp, lambda x, y: x + y) if self.constant != 0 else b

    def __sub__(self, other: Operand) -> Signal:
        b = self.lift(other)
        return self if b.constant == 0 else self._arithmetic(b, comb.SubOp, lambda x, y: x - y)

    def __mul__(self, other: Operand) -> Signal:
        b = self.lift(other)
        if b.constant == 1:
            return self
        return b if self.constant == 1 else self._arithmetic(b, comb.MulOp, lambda x, y: x * y)

    def __radd__(self, other: int) -> Signal:
        return self.lift(other) + self

    def __rsub__(self, other: int) -> Signal:
        return self.lift(other) - self

    def __rmul__(self, other: int) -> Signal:
        return self.lift(other) * self

    def __neg__(self) -> Signal:
        return 0 - self

    def __abs__(self) -> Signal:
        if self.low >= 0:
            return self
        size = max(-self.low, self.high)
        return mux(self < 0, (-self).truncate(size.bit_length()), self.truncate(size.bit_length()))

    def __lshift__(self, other: Operand) -> Signal:
        a, s = in_step(self, self.lift(other))
        if s.low < 0:
            raise CompilerBug(f"a shift by {s} may be negative")
        low = a.low << (s.high if a.low < 0 else s.low)
        high = a.high << (s.high if a.high > 0 else s.low)
        if low == high:
            return self.module.constant(low)
        width, signed = bits_for(low, high)
        if (places := s.constant) is not None:
            if not places:
                return self
            zeros = self.module.number(0, places)
            value = self.module.concat([a.bits(width - places), zeros])
            return a.like(value, width, signed, low, high)
        inside = max(width, s.width)
        value = self.module.binary(comb.ShlOp, a.bits(inside), s.bits(inside))
        value = self.module.extract(value, 0, width)
        return joint(value, width, signed, low, high, a, s)

    def __rshift__(self, other: Operand) -> Signal:
        """Floor division by a power of two."""
        a, s = in_step(self, self.lift(other))
        if s.low < 0:
            raise CompilerBug(f"a shift by {s} may be negative")
        low = a.low >> (s.low if a.low < 0 else s.high)
        high = a.high >> (s.high if a.high < 0 else s.low)
        if low == high:
            return self.module.constant(low)
        width, signed = bits_for(low, high)
        if (places := s.constant) is not None:
            if not places:
                return self
            places = min(places, a.width - 1)
            value = self.module.extract(a.value, places, a.width - places)
            shifted = a.like(value, a.width - places, a.signed)
            return a.like(shifted.bits(width), width, signed, low, high)
        inside = max(a.width, s.width)
        op = comb.ShrSOp if a.signed else comb.ShrUOp
        value = self.module.binary(op, a.bits(inside), s.bits(inside))
        value = self.module.extract(value, 0, width)
        return joint(value, width, signed, low, high, a, s)

    # Bits

    def _bitwise(self, other: Operand, op: type[Operation]) -> Signal:
        a, b = in_step(self, self.lift(other))
        width, signed = bits_for(min(a.low, b.low), max(a.high, b.high))
        high = None
        if op is comb.AndOp and not signed:
            high = min(a.high, b.high)
            width, _ = bits_for(0, high)
        value = self.module.binary(op, a.bits(width), b.bits(width))
        return joint(value, width, signed, None, high, a, b)

    def __and__(self, other: Operand) -> Signal:
        b = self.lift(other)
        for one, two in ((self, b), (b, self)):
            if one.constant == 0:
                return one
            if one.constant is not None and one.constant == (1 << two.width) - 1:
                return two
        return self._bitwise(b, comb.AndOp)

    def __or__(self, other: Operand) -> Signal:
        b = self.lift(other)
        for one, two in ((self, b), (b, self)):
            if one.constant == 0:
                return two
        return self._bitwise(b, comb.OrOp)

    def __xor__(self, other: Operand) -> Signal:
        return self._bitwise(other, comb.XorOp)

    def __rand__(self, other: int) -> Signal:
        return self & other

    def __ror__(self, other: int) -> Signal:
        return self | other

    def __rxor__(self, other: int) -> Signal:
        return self ^ other

    def __invert__(self) -> Signal:
        """Every wire inverted; the width stays."""
        ones = self.module.number(-1, self.width)
        value = self.module.binary(comb.XorOp, self.bits(self.width), ones)
        return self.like(value, self.width, self.signed)

    def __getitem__(self, key: int | slice) -> Signal:
        """Wires as an unsigned number: ``x[i]`` one, ``x[low:high]`` those from `low` below
        `high`; negative numbers count from the top."""
        if isinstance(key, slice):
            start, stop, step = key.indices(self.width)
            if step != 1 or stop <= start:
                raise CompilerBug(f"no wires {key} in {self}")
        else:
            start = key + self.width if key < 0 else key
            stop = start + 1
            if not 0 <= start < self.width:
                raise CompilerBug(f"no wire {key} in {self}")
        value = self.module.extract(self.bits(self.width), start, stop - start)
        return self.like(value, stop - start, False)

    # Comparisons

    def _compare(self, other: Operand, name: str) -> Signal:
        a, b = in_step(self, self.lift(other))
        known = _known(name, a, b)
        if known is not None:
            return self.module.constant(int(known))
        width, signed = bits_for(min(a.low, b.low), max(a.high, b.high))
        predicate = name if name in ("eq", "ne") else ("s" if signed else "u") + name
        value = self.module.compare(predicate, a.bits(width), b.bits(width))
        return joint(value, 1, False, None, None, a, b)

    def __lt__(self, other: Operand) -> Signal:
        return self._compare(other, "lt")

    def __le__(self, other: Operand) -> Signal:
        return self._compare(other, "le")

    def __gt__(self, other: Operand) -> Signal:
        return self._compare(other, "gt")

    def __ge__(self, other: Operand) -> Signal:
        return self._compare(other, "ge")

    def __eq__(self, other: Operand) -> Signal:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self._compare(other, "eq")

    def __ne__(self, other: Operand) -> Signal:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self._compare(other, "ne")

    def any(self) -> Signal:
        """1 when a wire is 1."""
        return self if self.width == 1 else self.as_unsigned() != 0

    def all(self) -> Signal:
        """1 when every wire is 1."""
        return self if self.width == 1 else self.as_unsigned() == (1 << self.width) - 1

    # Time

    def delay(
        self,
        cycles: int = 1,
        enable: Signal | None = None,
        reset: int | None = None,
        name: str | None = None,
    ) -> Signal:
        """The signal some cycles later, through as many registers.

        Args:
            cycles: 0 gives the signal itself.
            enable: the registers hold while it is 0.
            reset: value after reset; None leaves data unreset.
            name: of the last register; the others get a number.
        """
        if self.constant is not None and reset in (None, self.constant):
            return self
        if self.stage is not None:
            raise CompilerBug(f"{self} is in a pipeline; use cut")
        signal = self
        hint = self.wires.name_hint if self.wires is not None else None
        base = name or (_next_name(hint) if hint else "stage")
        for i in range(cycles):
            label = base if i == cycles - 1 or not name else f"{base}_stage"
            register = self.module.register(label, self.width, self.signed, reset)
            register.drive(signal, enable)
            register.low, register.high = self.low, self.high
            if reset is not None:
                register.low, register.high = min(self.low, reset), max(self.high, reset)
            signal = register
        return signal

    def cut(self) -> Signal:
        """The signal behind a place for a register, in a pipeline; else the signal itself."""
        if not isinstance(self.stage, Level) or self.constant is not None:
            return self
        return self.stage.pipeline.move(self, self.stage.number + 1)

    def static(self) -> Signal:
        """The signal as one that does not change while a pipeline uses it: never registered."""
        return Signal(
            self.module, self.wires, self.width, self.signed, self.low, self.high, _STATIC
        )


class Stage:
    """Where in a pipeline a signal is."""


_STATIC = Stage()


@dataclass(frozen=True)
class Level(Stage):
    """Behind `number` cuts of a pipeline."""

    pipeline: Pipeline
    number: int


Follow = Callable[[int], "Signal"]
"""What an input of a pipeline is behind so many registers, from outside."""


class Pipeline:
    """The registers of one call of `pipelined`: one for each signal and level that needs it."""

    def __init__(
        self,
        valid: Signal | None,
        registers: Callable[[int], bool],
        follow: Mapping[SSAValue, Follow] | None = None,
    ) -> None:
        self._valid = [valid]
        self._registers = registers
        self._moved: dict[tuple[SSAValue, int], Signal] = {}
        self._follow = dict(follow or {})
        self._followed: dict[tuple[Follow, int], Signal] = {}

    def valid(self, level: int) -> Signal | None:
        """The valid bit behind so many cuts."""
        while len(self._valid) <= level:
            last = self._valid[-1]
            if last is not None and self._registers(len(self._valid) - 1):
                last = last.delay(reset=0, name="valid")
            self._valid.append(last)
        return self._valid[level]

    def move(self, signal: Signal, level: int) -> Signal:
        """The signal as late as others at `level`."""
        if not isinstance(signal.stage, Level) or signal.constant is not None:
            return signal
        if signal.stage.pipeline is not self:
            raise CompilerBug(f"{signal} belongs to another pipeline")
        given = self._follow.get(signal.value)
        if given is not None:
            value = self._given(given, level) or signal.value
            return self._at(signal, value, level)
        for number in range(signal.stage.number, level):
            value = signal.value
            if self._registers(number):
                key = (value, number)
                if key not in self._moved:
                    plain = Signal(signal.module, value, signal.width, signal.signed)
                    self._moved[key] = plain.delay(enable=self.valid(number))
                value = self._moved[key].value
            signal = self._at(signal, value, number + 1)
        return signal

    def _at(self, signal: Signal, value: SSAValue, level: int) -> Signal:
        """What a signal is at a level."""
        width, signed, low, high = signal.width, signal.signed, signal.low, signal.high
        return Signal(signal.module, value, width, signed, low, high, Level(self, level))

    def _given(self, follow: Follow, level: int) -> SSAValue | None:
        """What comes from outside at a level; None: no register has gone by."""
        count = sum(self._registers(number) for number in range(level))
        if not count:
            return None
        if (follow, count) not in self._followed:
            found = follow(count)
            self._followed[follow, count] = found
            self._follow[found.value] = follow
        return self._followed[follow, count].value


def in_step(*signals: Signal) -> tuple[Signal, ...]:
    """The signals, the earlier ones delayed to the latest of them, in a pipeline."""
    levels = [s.stage for s in signals if isinstance(s.stage, Level)]
    if not levels:
        return signals
    latest = max(levels, key=lambda level: level.number)
    for signal in signals:
        if signal.stage is None and signal.constant is None:
            raise CompilerBug(f"{signal} comes from outside the pipeline: an input, or static?")
    return tuple(latest.pipeline.move(signal, latest.number) for signal in signals)


def joint(
    value: SSAValue, width: int, signed: bool, low: int | None, high: int | None, *of: Signal
) -> Signal:
    """A result of signals that are in step."""
    stages = [s.stage for s in of if s.constant is None]
    stage = next((one for one in stages if isinstance(one, Level)), None)
    if stage is None and all(one is _STATIC for one in stages):
        stage = _STATIC
    return Signal(of[0].module, value, width, signed, low, high, stage)


def _known(name: str, a: Signal, b: Signal) -> bool | None:
    """The result of a comparison that the bounds decide."""
    if name == "lt":
        return True if a.high < b.low else False if a.low >= b.high else None
    if name == "ge":
        known = _known("lt", a, b)
        return None if known is None else not known
    if name in ("gt", "le"):
        return _known("lt" if name == "gt" else "ge", b, a)
    if a.high < b.low or b.high < a.low:
        return name == "ne"
    if a.constant is not None and a.constant == b.constant:
        return name == "eq"
    return None


def _outside(signal: Signal) -> Signal:
    if isinstance(signal.stage, Level):
        raise CompilerBug(f"{signal} is still in its pipeline")
    return signal


class Register(Signal):
    """A register; `drive` says what it takes at the clock edge."""

    __slots__ = ("_op",)

    def __init__(self, module: ModuleBuilder, op: seq.CompRegOp, width: int, signed: bool) -> None:
        super().__init__(module, op.data, width, signed)
        self._op: seq.CompRegOp | None = op

    def drive(self, value: Operand, enable: Signal | None = None) -> None:
        """The value at every clock edge, or at those with `enable`.

        Raises:
            CompilerBug: the value may not fit, or the register is driven already.
        """
        if self._op is None:
            raise CompilerBug(f"{self} is driven twice")
        fitting = _outside(self.lift(value)).extend(self.width, self.signed)
        wires = fitting.bits(self.width)
        if enable is not None:
            wires = self.module.select(enable, wires, self.bits(self.width))
        self._op.operands[0] = wires
        self.module.undriven.pop(self._op, None)
        self._op = None


class Wire(Signal):
    """A signal that is used before it is known; `assign` says what it is."""

    __slots__ = ("_op",)

    def __init__(self, module: ModuleBuilder, op: WireOp, width: int, signed: bool) -> None:
        super().__init__(module, op.result, width, signed)
        self._op: WireOp | None = op

    def assign(self, value: Operand) -> None:
        """What the wire carries.

        Raises:
            CompilerBug: the value may not fit, or the wire is assigned already.
        """
        if self._op is None:
            raise CompilerBug(f"{self} is assigned twice")
        self._op.operands[0] = self.lift(value).extend(self.width, self.signed).bits(self.width)
        self.module.undriven.pop(self._op, None)
        self._op = None


def mux(condition: Operand, then: Operand, otherwise: Operand) -> Signal:
    """`then` where the condition is 1, else `otherwise`; wide enough for both.

    One of the three is a Signal at least.
    """
    (module,) = {s.module for s in (condition, then, otherwise) if isinstance(s, Signal)}
    c, a, b = (
        s if isinstance(s, Signal) else module.constant(int(s))
        for s in (condition, then, otherwise)
    )
    if c.constant is not None:
        return a if c.constant else b
    if a.constant is not None and a.constant == b.constant:
        return a
    c, a, b = in_step(c, a, b)
    low, high = min(a.low, b.low), max(a.high, b.high)
    width, signed = bits_for(low, high)
    if width <= a.width and a.width == b.width and a.signed == b.signed:
        width, signed = a.width, a.signed
    value = module.select(c, a.bits(width), b.bits(width))
    return joint(value, width, signed, low, high, c, a, b)


def cat(*parts: Signal) -> Signal:
    """The wires of all parts as one unsigned number, the first part on top; a number of numbers."""
    known = [part.constant for part in parts]
    if all(value is not None for value in known):
        whole = 0
        for part, value in zip(parts, known, strict=True):
            whole = whole << part.width | ((value or 0) & ((1 << part.width) - 1))
        return parts[0].module.constant(whole, sum(part.width for part in parts))
    parts = in_step(*parts)
    width = sum(part.width for part in parts)
    value = parts[0].module.concat([p.value for p in parts])
    return joint(value, width, False, None, None, *parts)


def repeat(bit: Signal, count: int) -> Signal:
    """One wire, `count` times."""
    if bit.constant is not None:
        return cat(*[bit] * count)
    return bit.like(bit.module.replicate(bit.bits(1), count), count, False)


def tree(parts: Sequence[Signal], function: Callable[[Signal, Signal], Signal]) -> Signal:
    """A balanced tree of a two-argument function over the parts."""
    level = list(parts)
    while len(level) > 1:
        pairs = [function(a, b) for a, b in zip(level[::2], level[1::2], strict=False)]
        level = pairs + level[len(pairs) * 2 :]
    return level[0]


def add_all(parts: Sequence[Signal]) -> Signal:
    """The exact sum of the parts, as a tree."""
    return tree(parts, lambda a, b: a + b)


def smaller(a: Signal, b: Operand) -> Signal:
    """The smaller of two."""
    b = a.lift(b)
    least = mux(a < b, a, b)
    return (
        least if least.high <= min(a.high, b.high) else least.assume(least.low, min(a.high, b.high))
    )


def larger(a: Signal, b: Operand) -> Signal:
    """The larger of two."""
    b = a.lift(b)
    most = mux(a > b, a, b)
    return most if most.low >= max(a.low, b.low) else most.assume(max(a.low, b.low), most.high)


def choose(index: Signal, options: Sequence[Operand]) -> Signal:
    """``options[index]``, by a tree of multiplexers.

    Of the index as many low bits count as tell the options apart; the last option is taken for
    those beyond it.
    """
    level = [index.lift(option) for option in options]
    for bit in range(index.width):
        if len(level) == 1:
            break
        pairs = [mux(index[bit], b, a) for a, b in zip(level[::2], level[1::2], strict=False)]
        level = pairs + level[len(pairs) * 2 :]
    return level[0]


@dataclass(frozen=True)
class Port:
    """A port of a module: name, direction, width, sign and bounds. A clock has width 1."""

    name: str
    output: bool
    width: int
    signed: bool = False
    low: int | None = None
    high: int | None = None
    clock: bool = False

    @property
    def type(self) -> TypeAttribute:
        """The port's type in the IR."""
        return seq.clock if self.clock else _wires(self.width)


CLOCK, RESET = "clk", "rst"
"""The ports for clock and synchronous reset; a module has them when it needs them."""


class ModuleBuilder:
    """A hardware module under construction.

    Ports keep the order in which they are made; `clk` and `rst` come first and exist when a
    register, a memory or an instance needs them.
    """

    def __init__(self, design: Design, name: str, comment: str | None = None) -> None:
        self.design = design
        self.name = name
        self.comment = comment
        self.attributes: dict[str, Attribute] = {}
        self.ports: list[Port] = []
        self._block = Block()
        self._arguments: dict[str, SSAValue] = {}
        self._outputs: dict[str, Signal] = {}
        self._shared: dict[tuple[Hashable, ...], SSAValue] = {}
        self._names: dict[str, Operation | None] = {}
        """Names in use, with the operation that may be renamed when a port wants the name."""
        self._numbers: dict[str, int] = {}
        """The last number that a name needed at its end; all lower ones are in use."""
        self.undriven: dict[Operation, str] = {}
        self.is_external = False
        self._finished: hw.HWModuleOp | hw.HWModuleExternOp | None = None

    def __repr__(self) -> str:
        return f"ModuleBuilder({self.name!r})"

    # Ports

    def input(self, name: str, width: int, signed: bool = False) -> Signal:
        """An input port."""
        port = Port(name, False, width, signed)
        self._add_port(port)
        return Signal(self, self._argument(port, len(self._block.args)), width, signed)

    def output(self, name: str, value: Operand, width: int | None = None) -> None:
        """An output port; `width` gives it more wires than the signal has."""
        signal = _outside(value) if isinstance(value, Signal) else self.constant(int(value))
        if width is not None:
            signal = signal.extend(width)
        self._add_port(Port(name, True, signal.width, signal.signed, signal.low, signal.high))
        self._outputs[name] = signal

    @property
    def clock(self) -> SSAValue:
        """The clock."""
        if CLOCK not in self._arguments:
            self._add_port(port := Port(CLOCK, False, 1, clock=True), 0)
            return self._argument(port, 0)
        return self._arguments[CLOCK]

    @property
    def reset(self) -> Signal:
        """The synchronous reset, active high."""
        if RESET not in self._arguments:
            place = int(CLOCK in self._arguments)
            self._add_port(port := Port(RESET, False, 1), place)
            self._argument(port, place)
        return Signal(self, self._arguments[RESET], 1, False)

    def _add_port(self, port: Port, place: int | None = None) -> None:
        if self._finished is not None:
            raise CompilerBug(f"module {self.name} is finished, port {port.name} comes too late")
        if any(port.name == other.name for other in self.ports):
            raise CompilerBug(f"module {self.name} has a port {port.name} already")
        if _legal(port.name) != port.name:
            raise CompilerBug(f"'{port.name}' is no name for a port")
        self.ports.insert(len(self.ports) if place is None else place, port)

    def _argument(self, port: Port, place: int) -> SSAValue:
        argument = self._block.insert_arg(port.type, place)
        argument.name_hint = self._unique(port.name)
        self._arguments[port.name] = argument
        return argument

    # Values

    def constant(self, value: int, width: int | None = None) -> Signal:
        """A number, as narrow as it can be or of a stated width."""
        least, signed = bits_for(value, value)
        return Signal(self, None, max(least, width or 0), signed, value, value)

    def register(
        self, name: str | None, width: int, signed: bool = False, reset: int | None = 0
    ) -> Register:
        """A register, to be driven later; `reset` is its value after reset (None: unreset)."""
        type_ = _wires(width)
        place = self.number(0, width)
        with_reset = None
        if reset is not None:
            with_reset = (self.reset.value, self.number(reset, width))
        op = seq.CompRegOp(place, self.clock, with_reset)
        assert op.data.type == type_
        self.insert(op)
        op.data.name_hint = self._unique(name or "register", op)
        self.undriven[op] = op.data.name_hint or ""
        return Register(self, op, width, signed)

    def wire(self, name: str, width: int, signed: bool = False) -> Wire:
        """A signal to be assigned later."""
        op = WireOp(self.number(0, width))
        self.insert(op)
        op.result.name_hint = self._unique(name, op)
        self.undriven[op] = name
        return Wire(self, op, width, signed)

    # Parts

    def instance(
        self, name: str, module: ModuleBuilder, inputs: Mapping[str, Operand] | None = None
    ) -> dict[str, Signal]:
        """An instance of a module; its outputs by name. Clock and reset connect by themselves.

        Raises:
            CompilerBug: an input is missing, unknown, or may not fit its port.
        """
        module.finish()
        signals = [s for s in (inputs or {}).values() if isinstance(s, Signal)]
        moved = dict(zip(map(id, signals), in_step(*signals), strict=True))
        given: dict[str, Operand] = dict(inputs or {})
        given |= {name: moved[id(s)] for name, s in given.items() if isinstance(s, Signal)}
        stage = next((s.stage for s in moved.values() if isinstance(s.stage, Level)), None)
        operands: list[tuple[str, SSAValue]] = []
        results: list[Port] = []
        for port in module.ports:
            if port.output:
                results.append(port)
            elif port.clock:
                operands.append((port.name, self.clock))
            elif port.name == RESET and RESET not in given:
                operands.append((port.name, self.reset.value))
            elif port.name in given:
                value = given.pop(port.name)
                signal = value if isinstance(value, Signal) else self.constant(int(value))
                fitting = signal.extend(port.width, port.signed)
                operands.append((port.name, fitting.bits(port.width)))
            else:
                raise CompilerBug(f"{self.name}: input {port.name} of {module.name} is not given")
        if given:
            raise CompilerBug(f"{self.name}: {module.name} has no inputs {', '.join(given)}")
        if name in self._outputs:
            raise CompilerBug(f"{self.name}: instance {name} has the name of an output")
        op = hw.InstanceOp(
            label := self._unique(name),
            SymbolRefAttr(module.name),
            operands,
            [(port.name, port.type) for port in results],
        )
        self.insert(op)
        self._names[label] = op
        outputs: dict[str, Signal] = {}
        for port, value in zip(results, op.outputs, strict=True):
            value.name_hint = self._unique(f"{label}_{port.name}")
            outputs[port.name] = Signal(
                self, value, port.width, port.signed, port.low, port.high, stage
            )
        return outputs

    def rom(self, name: str, depth: int, width: int, address: Signal, latency: int = 1) -> Signal:
        """A ROM of `depth` words; the word at `address`, unsigned, `latency` cycles later.

        Its content is no part of the design: a simulation writes it into the memory `name`.
        """
        module = self.design.memory(depth, width, latency=latency)
        return self.instance(name, module, {"read0_address": address})["read0_data"]

    def ram(
        self,
        name: str,
        depth: int,
        width: int,
        reads: Sequence[Signal],
        writes: Sequence[Write],
        parts: int = 0,
        latency: int = 1,
    ) -> list[Signal]:
        """A memory with read and write ports, all on the one clock.

        What is read is the word at the address `latency` cycles before. A write is seen by every
        read whose address comes in the same cycle or later; when two ports write one word, the
        last one wins.

        Args:
            name: of the instance.
            depth: words.
            width: bits of a word.
            reads: addresses.
            writes: the write ports.
            parts: equal parts of a word that the writes' masks enable; 0 for whole words.
            latency: cycles from address to data, at least 1.
        """
        module = self.design.memory(depth, width, len(reads), len(writes), parts, latency)
        inputs: dict[str, Operand] = {f"read{i}_address": a for i, a in enumerate(reads)}
        for i, write in enumerate(writes):
            inputs[f"write{i}_address"] = write.address
            inputs[f"write{i}_data"] = write.data.as_unsigned()
            inputs[f"write{i}_enable"] = write.enable
            if parts:
                ones = (1 << parts) - 1
                inputs[f"write{i}_mask"] = ones if write.mask is None else write.mask
        outputs = self.instance(name, module, inputs)
        return [outputs[f"read{i}_data"] for i in range(len(reads))]

    def lookup(self, name: str, table: str, entries: Sequence[int], index: Signal) -> Signal:
        """``entries[index]``, without delay: a constant table, in a module of its own.

        Args:
            name: of the instance.
            table: name of the module; equal names are the same table.
            entries: not negative.
            index: below the number of entries.
        """
        module = self.design.constant_table(table, entries)
        return self.instance(name, module, {"index": index})["entry"]

    # Operations, shared

    def insert(self, op: Operation) -> None:
        """Adds an operation."""
        if self._finished is not None:
            raise CompilerBug(f"module {self.name} is finished")
        self._block.add_op(op)

    def _share(self, key: tuple[Hashable, ...], make: Callable[[], Operation]) -> SSAValue:
        value = self._shared.get(key)
        if value is None:
            op = make()
            self.insert(op)
            value = self._shared[key] = op.results[0]
        return value

    def number(self, value: int, width: int) -> SSAValue:
        value &= (1 << width) - 1
        key = ("constant", value, width)
        type_ = _wires(width)
        return self._share(
            key,
            lambda: hw.ConstantOp.create(
                result_types=[type_], properties={"value": _integer(value, type_)}
            ),
        )

    def binary(self, op: type[Operation], a: SSAValue, b: SSAValue) -> SSAValue:
        if issubclass(op, comb.VariadicCombOperation):
            if (op, b, a) in self._shared:
                return self._shared[op, b, a]
            return self._share((op, a, b), lambda: _made(op, (a, b), a.type))
        assert issubclass(op, comb.BinCombOperation)
        return self._share((op, a, b), lambda: _made(op, (a, b), a.type))

    def compare(self, predicate: str, a: SSAValue, b: SSAValue) -> SSAValue:
        return self._share((predicate, a, b), lambda: comb.ICmpOp(a, b, predicate))

    def select(self, condition: Signal, a: SSAValue, b: SSAValue) -> SSAValue:
        c = condition.any().bits(1)
        return (
            a
            if a is b
            else self._share(("mux", c, a, b), lambda: _made(comb.MuxOp, (c, a, b), a.type))
        )

    def extract(self, value: SSAValue, low: int, width: int) -> SSAValue:
        if not low and width == _bits(value):
            return value
        key = ("extract", value, low, width)
        return self._share(key, lambda: comb.ExtractOp(value, _integer(low, i32), _wires(width)))

    def concat(self, values: Sequence[SSAValue]) -> SSAValue:
        if len(values) == 1:
            return values[0]
        width = sum(map(_bits, values))
        key = ("concat", *values)
        return self._share(key, lambda: _made(comb.ConcatOp, values, _wires(width)))

    def replicate(self, bit: SSAValue, count: int) -> SSAValue:
        if count == 1:
            return bit
        key = ("replicate", bit, count)
        return self._share(key, lambda: _made(comb.ReplicateOp, (bit,), _wires(count)))

    def mark(self) -> _Mark:
        return self._block.last_op, len(self._shared), dict(self._names), dict(self._numbers)

    def roll_back(self, mark: _Mark) -> None:
        """Forgets the operations made since the mark."""
        last, shared, self._names, self._numbers = mark
        while len(self._shared) > shared:
            # What was added last.
            _ = self._shared.popitem()
        while (op := self._block.last_op) is not None and op is not last:
            op.detach()
            op.erase(safe_erase=False)

    # Names

    def _unique(self, name: str, op: Operation | None = None) -> str:
        name = base = _legal(name)
        number = self._numbers.get(base, 1)
        while name in self._names:
            number += 1
            name = f"{base}{number}"
        self._numbers[base] = number
        self._names[name] = op
        return name

    def name_value(self, value: SSAValue, name: str) -> None:
        if value.name_hint is None and isinstance(value.owner, Operation):
            self._label(value.owner, self._unique(name, value.owner))

    def _label(self, op: Operation, name: str) -> None:
        op.results[0].name_hint = name
        if not isinstance(op, seq.CompRegOp | WireOp):
            op.attributes["sv.namehint"] = StringAttr(name)

    def _free(self, port: str) -> None:
        """Gives a port its name: a port and what is inside share one space in SystemVerilog."""
        op = self._names.get(port)
        if isinstance(op, hw.InstanceOp):
            raise CompilerBug(f"{self.name}: output {port} has the name of an instance")
        if op is not None:
            self._label(op, self._unique(port, op))
        self._names[port] = None

    def finish(self) -> hw.HWModuleOp | hw.HWModuleExternOp:
        """The operation; nothing can be added afterwards.

        Raises:
            CompilerBug: a register is not driven, or a wire not assigned.
        """
        if self._finished is None:
            if self.undriven:
                names = ", ".join(self.undriven.values())
                raise CompilerBug(f"module {self.name}: nothing drives {names}")
            ports = [
                hw.ModulePort(
                    StringAttr(port.name),
                    port.type,
                    hw.DirectionAttr(hw.Direction.OUTPUT if port.output else hw.Direction.INPUT),
                )
                for port in self.ports
            ]
            name, type_ = StringAttr(self.name), hw.ModuleType(ArrayAttr(ports))
            if self.is_external:
                self._finished = op = hw.HWModuleExternOp(name, type_)
                return op
            for output in self._outputs:
                self._free(output)
            self.insert(hw.OutputOp([s.bits(s.width) for s in self._outputs.values()]))
            op = hw.HWModuleOp(name, type_, Region(self._block))
            if self.comment:
                op.attributes["comment"] = StringAttr(self.comment)
            op.attributes.update(self.attributes)
            self._finished = op
        return self._finished


_Mark = tuple[
    Operation | None,
    int,
    dict[str, Operation | None],
    dict[str, int],
]


@dataclass(frozen=True, eq=False)
class Write:
    """A write port of a memory: the word, or its parts whose mask bit is 1, while enabled."""

    address: Signal
    data: Signal
    enable: Signal
    mask: Signal | None = None


def _next_name(name: str) -> str:
    """`x_q` for x, `x_q2` for `x_q`, and so on: a value some registers later."""
    base, number = re.fullmatch(r"(.*?)(?:_q(\d*))?", name).groups()  # pyright: ignore
    if number is None:
        return f"{base}_q"
    return f"{base}_q{int(number or 1) + 1}"


_VALID = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def _legal(name: str) -> str:
    """A name that neither xDSL nor CIRCT changes: xDSL drops a number after an underscore, CIRCT
    renames SystemVerilog's own words, Verilator escapes two underscores."""
    name = re.sub(r"_(?=\d+$)", "", name)
    if not _VALID.fullmatch(name) or "__" in name or name in RESERVED:
        raise CompilerBug(f"'{name}' is no name for hardware")
    return name


class Design:
    """The modules of a design by name, in the order in which they were begun.

    Memories are shared: all memories of one shape are instances of one module, which wraps a
    `seq.firmem`.
    """

    def __init__(self) -> None:
        self.modules: dict[str, ModuleBuilder] = {}

    def module(self, name: str, comment: str | None = None) -> ModuleBuilder:
        """A new module; `comment` stands above it in SystemVerilog.

        Raises:
            CompilerBug: the name is taken.
        """
        if name in self.modules:
            raise CompilerBug(f"there is a module {name} already")
        _legal(name)
        self.modules[name] = builder = ModuleBuilder(self, name, comment)
        return builder

    def external(
        self, name: str, inputs: Mapping[str, int], outputs: Mapping[str, int]
    ) -> ModuleBuilder:
        """A module that is not part of the design: names and widths of its ports."""
        m = self.module(name)
        m.is_external = True
        m.ports += [Port(port, False, width) for port, width in inputs.items()]
        m.ports += [Port(port, True, width) for port, width in outputs.items()]
        return m

    @property
    def external_modules(self) -> list[ModuleBuilder]:
        """The modules that are not part of the design."""
        return [module for module in self.modules.values() if module.is_external]

    def shared(self, name: str, build: Callable[[ModuleBuilder], None]) -> ModuleBuilder:
        """The module of that name, built when it does not exist yet."""
        if name not in self.modules:
            build(self.module(name))
        return self.modules[name]

    def memory(
        self,
        depth: int,
        width: int,
        reads: int = 1,
        writes: int = 0,
        parts: int = 0,
        latency: int = 1,
    ) -> ModuleBuilder:
        """The wrapper module of a memory's shape; see `ModuleBuilder.ram` for the behaviour."""
        if latency < 1 or depth < 1 or (reads < 1 and writes < 1):
            raise CompilerBug(f"no memory has {latency=} {depth=} {reads=} {writes=}")
        kind = f"sram_{depth}x{width}_{reads}r{writes}w" if writes else f"rom_{depth}x{width}"
        if not writes and reads > 1:
            kind += f"_{reads}r"
        name = kind + (f"_m{parts}" if parts else "") + (f"_l{latency}" if latency > 1 else "")

        def build(m: ModuleBuilder) -> None:
            type_ = FirMemType.of(depth, width, parts)
            # Without a symbol CIRCT folds a memory that nothing writes to zero.
            memory = FirMemOp(type_, inner_sym=hw.InnerSymAttr("mem"))
            m.insert(memory)
            memory.memory.name_hint = "mem"
            bits = type_.address.width.data
            for i in range(reads):
                address = m.input(f"read{i}_address", bits)
                read = FirMemReadOp(memory.memory, address.value, m.clock)
                m.insert(read)
                data = Signal(m, read.data, width, False)
                m.output(f"read{i}_data", data.delay(latency - 1, name=f"read{i}"))
            ports = [
                Write(
                    m.input(f"write{i}_address", bits),
                    m.input(f"write{i}_data", width),
                    m.input(f"write{i}_enable", 1),
                    m.input(f"write{i}_mask", parts) if parts else None,
                )
                for i in range(writes)
            ]
            # CIRCT's two ways from here order the ports differently: let them never meet.
            for i, port in enumerate(ports):
                enable, mask = port.enable, port.mask
                for later in ports[i + 1 :]:
                    meet = later.enable & (later.address == port.address)
                    if mask is None or later.mask is None:
                        enable = enable & ~meet
                    else:
                        mask = mask & ~(repeat(meet, parts) & later.mask)
                m.insert(
                    FirMemWriteOp(
                        memory.memory,
                        port.address.value,
                        m.clock,
                        port.data.value,
                        enable.value,
                        None if mask is None else mask.value,
                    )
                )

        return self.shared(name, build)

    def constant_table(self, name: str, entries: Sequence[int]) -> ModuleBuilder:
        """The module of a constant table; its address has as many bits as the entries need."""

        def build(m: ModuleBuilder) -> None:
            if len(entries) < 2 or min(entries) < 0:
                raise CompilerBug(f"table {name}: two entries or more, none negative")
            width = max(1, max(entries).bit_length())
            type_ = _wires(width)
            # A full power of two: every address has an entry.
            size = 1 << (len(entries) - 1).bit_length()
            full = [*entries, *([entries[-1]] * (size - len(entries)))]
            fields = ArrayAttr(
                [IntegerAttr(entry, type_, truncate_bits=True) for entry in reversed(full)]
            )
            op = AggregateConstantOp(fields, hw.ArrayType(type_, size))
            m.insert(op)
            index = m.input("index", (size - 1).bit_length())
            get = hw.ArrayGetOp(op.result, index.value)
            m.insert(get)
            bounds = (min(entries), max(entries))
            m.output("entry", Signal(m, get.result, width, False, *bounds))

        return self.shared(name, build)

    def op(self, only: Iterable[str] | None = None) -> ModuleOp:
        """The whole design, or some modules, as a `builtin.module` (the modules are moved into it).

        Raises:
            CompilerBug: a module is not complete.
        """
        names = self.modules if only is None else only
        ops = [self.modules[name].finish() for name in names]
        for op in ops:
            if op.parent is not None:
                op.detach()
        return ModuleOp(list(ops))

    def text(self) -> str:
        """The IR as CIRCT parses it."""
        return str(self.op())

    def __iter__(self) -> Iterator[ModuleBuilder]:
        return iter(self.modules.values())


class Pipelined(NamedTuple):
    """The results of `pipelined`."""

    outputs: tuple[Signal, ...]
    valid: Signal | None
    """The valid bit that goes with the outputs."""
    cuts: int
    """Places for registers on the longest way: the depth at which each stage is one step."""


def pipelined(
    function: Callable[..., Signal | Sequence[Signal]],
    inputs: Sequence[Signal],
    depth: int,
    valid: Signal | None = None,
    follow: Mapping[int, Follow] | None = None,
) -> Pipelined:
    """A function in exactly `depth` cycles, however many cuts it has.

    With fewer registers than cuts on the longest way they are spread evenly; with more the rest
    stands at the end. All outputs come in the same cycle.

    Args:
        function: called with the inputs; takes nothing else that changes from cycle to cycle, but
            may use `static` signals. It is called twice: its first result is thrown away.
        inputs: signals, all of one cycle.
        depth: registers between inputs and outputs.
        valid: a stage's registers load only when its data are valid. Data registers have no reset,
            valid bits have.
        follow: inputs by number whose registers are outside, for several pipelines together; gives
            an input behind so many of them.
    """
    module = inputs[0].module

    def call(pipeline: Pipeline) -> list[Signal]:
        start = Level(pipeline, 0)
        staged = [
            Signal(s.module, s.wires, s.width, s.signed, s.low, s.high, start) for s in inputs
        ]
        result = function(*staged)
        return [result] if isinstance(result, Signal) else list(result)

    mark = module.mark()
    stages = [s.stage for s in call(Pipeline(None, lambda level: False))]
    module.roll_back(mark)
    cuts = max((stage.number for stage in stages if isinstance(stage, Level)), default=0)
    chosen = {i * cuts // depth for i in range(depth)} if depth < cuts else set(range(depth))
    given = {inputs[i].value: one for i, one in (follow or {}).items()}
    pipeline = Pipeline(valid, lambda level: level in chosen, given)
    last = max(cuts, depth)
    outputs = [pipeline.move(signal, last) for signal in call(pipeline)]
    plain = [Signal(s.module, s.wires, s.width, s.signed, s.low, s.high) for s in outputs]
    return Pipelined(tuple(plain), pipeline.valid(last), cuts)
