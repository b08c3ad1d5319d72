"""LLVM IR of the vector functions of `dialects/semantics.py`.

`Kernel` builds one function; a `Value` is an int64, or a register full of them, with Python's
operators. The functions after it (`round_shift`, `saturate`, `multiply`, ...) emit what their
namesakes in `dialects/fixed_point.py` compute, so that the kernels at the end read like the
formulas in the docstrings of `semantics`; nothing is explained twice.

Every kernel takes the address of a block of int64: place 0 receives the number of saturations, the
others are the arguments in the order in which the kernel names them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

from intaglio.dialects.fixed_point import FIXED_BITS, SCALE_BITS
from intaglio.dialects.semantics import GATES, SCORE_FRAC, UNIT_FRAC
from intaglio.dialects.tables import ARGUMENT_FRAC, GATE_FRAC, Table, table
from intaglio.runtime.engines.kernel_code import Emitter, Path

Operand: TypeAlias = "Value | int"


class Value:
    """An int64, a vector of them, or (from a comparison) truth values."""

    __slots__ = ("kernel", "value")

    def __init__(self, kernel: Kernel, value: Any) -> None:
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

    def pointer(self, offset: Operand) -> Any:
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
    """The sum, maximum or minimum (add, smax, smin) of what a loop over elements gives it."""

    def __init__(self, kernel: Kernel, reduction: str) -> None:
        self.kernel = kernel
        self.reduction = reduction
        start = {"add": 0, "smax": -(1 << 63), "smin": (1 << 63) - 1}[reduction]
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
        name = f"llvm.vector.reduce.{self.reduction}.v{k.width}i64"
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
        self.saturations = Total(self, "add")

    def number(self, value: int) -> Value:
        return Value(self, self.const(value))

    def integers(self, bits: int, lanes: int) -> Any:
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

    def splat(self, value: Operand, lanes: int) -> Any:
        """A value in every lane of a vector."""
        if isinstance(value, int):
            return self.const(value, self.integers(64, lanes))
        if value.lanes == lanes:
            return value.value
        first = self.ir.Constant(self.vec(value.value.type, lanes), self.ir.Undefined)
        return self.shuffle(
            self.b.insert_element(first, value.value, self.const(0, self.i32)), [0] * lanes
        )

    def alike(self, a: Operand, b: Operand) -> tuple[Any, Any]:
        """Both with as many lanes as the wider one."""
        lanes = max(v.lanes for v in (a, b) if isinstance(v, Value))
        return self.splat(a, lanes), self.splat(b, lanes)

    @contextmanager
    def range(self, count: Operand) -> Iterator[Value]:
        """`for i in range(count)`."""
        stop = self.alike(count, self.number(0))[0]
        with self.loop(self.const(0), stop) as i:
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

    def end(self) -> Any:
        """Writes the saturations and ends the function."""
        self.store(self.saturations.value.value, self.parameters)
        return self.finish()


# What fixed_point and tables define


def where(condition: Value, a: Operand, b: Operand) -> Value:
    """`a` where the condition is true, else `b`."""
    k = condition.kernel
    lanes = max(v.lanes for v in (condition, a, b) if isinstance(v, Value))
    chosen = k.b.select(k.splat(condition, lanes), k.splat(a, lanes), k.splat(b, lanes))
    return Value(k, chosen)


def minimum(a: Value, b: Operand) -> Value:
    """The smaller one."""
    return where(a < b, a, b)


def maximum(a: Value, b: Operand) -> Value:
    """The larger one."""
    return where(a > b, a, b)


_COMBINE: dict[str, Callable[[Value, Value], Value]] = {
    "add": lambda a, b: a + b,
    "smax": maximum,
    "smin": minimum,
}


def absolute(x: Value) -> Value:
    """``|x|``."""
    return maximum(x, -x)


def clip(x: Value, low: int, high: int) -> Value:
    """`x` limited to a range."""
    return maximum(minimum(x, high), low)


def product(a: Value, b: Operand) -> Value:
    """``a * b`` of two operands that fit int32, which is much cheaper than of two int64."""
    both = [(v << 32) >> 32 if isinstance(v, Value) else v for v in (a, b)]
    assert isinstance(both[0], Value)
    return both[0] * both[1]


def round_shift(x: Value, shift: Operand) -> Value:
    """`fixed_point.round_shift`."""
    if isinstance(shift, int):
        if shift <= 0:
            return x << -shift
        return ((x >> min(shift - 1, 63)) + 1) >> 1
    right = clip(shift, 0, 64)
    last = minimum(right, 1)
    return (((x << maximum(-shift, 0)) >> (right - last)) + last) >> last


def saturate(x: Value, bits: int = FIXED_BITS, counted: bool = True) -> Value:
    """`fixed_point.saturate`."""
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    y = clip(x, low, high)
    if counted:
        count(y.differs(x))
    return y


def count(changed: Value) -> None:
    """Counts the lanes as saturations."""
    changed.kernel.saturations.take(where(changed, changed.kernel.number(1), 0))


def shift_saturate(x: Value, shift: Value, counted: bool = True) -> Value:
    """`fixed_point.shift_saturate` to 32 bits."""
    left = clip(-shift, 0, FIXED_BITS)
    first = where(left > 0, saturate(x, counted=False), round_shift(x, maximum(shift, 0)))
    return saturate(first << left, counted=counted)


def bit_length(x: Value) -> Value:
    """`fixed_point.bit_length`."""
    k = x.kernel
    suffix = "i64" if x.lanes == 1 else f"v{x.lanes}i64"
    arguments = [x.value, k.const(0, k.i1)]
    zeros = k.intrinsic(f"llvm.ctlz.{suffix}", x.value.type, arguments)
    return k.number(64) - Value(k, zeros)


def normalise(m: Value) -> Value:
    """`fixed_point.normalise` to 24 bits."""
    return -bit_length(m) + SCALE_BITS


def shift_normal(x: Value, z: Value) -> Value:
    """`fixed_point.shift_normal` to 24 bits."""
    limit = (1 << SCALE_BITS) - 1
    return clip(round_shift(x, -z), -limit, limit)


class ScaleValue(NamedTuple):
    """`fixed_point.Scale`."""

    mantissa: Value
    exponent: Value


def multiply(a: ScaleValue, b: ScaleValue) -> ScaleValue:
    """`fixed_point.multiply`."""
    p = product(a.mantissa, b.mantissa)
    k = (p >> 47) + 23
    mantissa = ((p >> 22) + (k - 22)) >> (k - 22)
    return ScaleValue(minimum(mantissa, (1 << SCALE_BITS) - 1), a.exponent + b.exponent - k)


def lookup(of: Table, content: Array, argument: Value) -> Value:
    """`tables.lookup`; an element of `content` is ``entry << 32 | (difference & 0xffffffff)``."""
    clipped = minimum(argument, of.end)
    both = content.kernel.gather(content, (clipped >> of.step_bits) - of.lo_index)
    fraction = clipped & ((1 << of.step_bits) - 1)
    return round_shift(product(both, fraction), of.step_bits) + (both >> 32)


# Elementwise


def emit_gate(k: Kernel, kind: str) -> None:
    """`semantics.gate`, `sigmoid` and `tanh`."""
    x, y = k.arrays(2)
    (n,) = k.numbers(1)
    (values,) = k.arrays(1)
    drop, shift = k.numbers(2)
    name = GATES.get(kind, kind)

    def body(at: Cursor) -> None:
        v = x.load(at)
        if kind.startswith("relu"):
            positive = maximum(v, 0)
            result = product(positive, positive) if kind == "relu2" else positive
            y.store(at, shift_saturate(result, shift))
            return
        sign = v >> 63
        g = lookup(table(name), values, round_shift(absolute(v), drop))
        g = (g ^ sign) - sign
        if kind != "tanh":
            g = g + (sign & (1 << GATE_FRAC))
        y.store(at, shift_saturate(product(g, v) if kind in GATES else g, shift))

    k.each(n, body)


def emit_mul(k: Kernel) -> None:
    """`semantics.mul`."""
    a, b, y = k.arrays(3)
    n, shift = k.numbers(2)
    k.each(n, lambda at: y.store(at, shift_saturate(a.load(at) * b.load(at), shift)))


def emit_add(k: Kernel) -> None:
    """`semantics.add`."""
    a, b, y = k.arrays(3)
    (n,) = k.numbers(1)
    k.each(n, lambda at: y.store(at, saturate(a.load(at) + b.load(at))))


def emit_scale(k: Kernel) -> None:
    """`semantics.scale`."""
    x, y = k.arrays(2)
    n, mantissa, shift = k.numbers(3)
    k.each(n, lambda at: y.store(at, shift_saturate(x.load(at) * mantissa, shift)))


def emit_softcap(k: Kernel) -> None:
    """`semantics.softcap`."""
    x, y = k.arrays(2)
    (n,) = k.numbers(1)
    (values,) = k.arrays(1)
    inverse, first_shift, cap, shift = k.numbers(4)

    def body(at: Cursor) -> None:
        a = shift_saturate(x.load(at) * inverse, first_shift, counted=False)
        sign = a >> 63
        g = lookup(table("tanh"), values, absolute(a))
        y.store(at, shift_saturate(((g ^ sign) - sign) * cap, shift))

    assert ARGUMENT_FRAC == 16
    k.each(n, body)


def emit_requantize(k: Kernel, bias: bool, residual: bool) -> None:
    """`semantics.requantize`."""
    y, result, mantissa, exponent, biases, residuals = k.arrays(6)
    step, tokens, groups, n, shift, places = k.numbers(6)
    with k.range(tokens) as token, k.range(groups) as group:
        row = token * groups + group
        m = mantissa.load(row * step)
        by = exponent.load(row * step) + places
        y, result, residuals = (a.at(row * n) for a in (y, result, residuals))
        biases = biases.at(group * n)

        def body(at: Cursor) -> None:
            f = shift_saturate(round_shift(y.load(at), shift) * m, by)
            if bias:
                f = saturate(f + biases.load(at))
            if residual:
                f = saturate(f + residuals.load(at))
            result.store(at, f)

        k.each(n, body)


# Quantisation


class FormatValues(NamedTuple):
    """The constants of a format that `quantize` needs."""

    limit: Value
    limit_bits: Value
    inverse: Value
    """Mantissa of one over the limit."""
    inverse_exponent: Value
    reciprocal: Value
    """Address of the table."""


FORMAT_VALUES = len(FormatValues._fields)


def e4m3_encode(t: Value) -> Value:
    """`codes.e4m3_encode` with 8 fraction bits."""
    a = absolute(t)
    drop = maximum(bit_length(a) - 4, 8)
    one = t.kernel.number(1)
    q = (((a >> drop) & 1) + a + ((one << (drop - 1)) - 1)) >> drop
    return minimum(q + ((drop - 8) << 3), 126) + ((t >> 63) & 128)


def reciprocal(content: Array, normal: Value) -> Value:
    """``lookup(reciprocal, max(normal, 2**23))``."""
    return lookup(table("reciprocal"), content, maximum(normal, 1 << 23))


def quantized(
    k: Kernel,
    x: Array,
    codes: Array,
    n: Value,
    m: Value,
    frac: Value,
    form: FormatValues,
    fp8: bool = False,
) -> ScaleValue:
    """`semantics.quantize` of one group with the largest magnitude `m`."""
    z = normalise(m)
    mn = shift_normal(m, z)
    r = reciprocal(Array(k, form.reciprocal), mn)
    rl = round_shift(r * form.limit, form.limit_bits)

    def body(at: Cursor) -> None:
        p = product(shift_normal(x.load(at), z), rl)
        if fp8:
            codes.store(at, e4m3_encode(round_shift(p, -form.limit_bits + 39)))
        else:
            codes.store(at, round_shift(p, -form.limit_bits + 47))

    k.each(n, body)
    scale = multiply(ScaleValue(mn, z + frac), ScaleValue(form.inverse, form.inverse_exponent))
    return ScaleValue(scale.mantissa, where(m > 0, scale.exponent, 0))


def emit_quantize(k: Kernel, fp8: bool) -> None:
    """`semantics.quantize`."""
    x, codes, mantissa, exponent = k.arrays(4)
    groups, n, frac = k.numbers(3)
    form = FormatValues(*k.numbers(FORMAT_VALUES))
    with k.range(groups) as group:
        x, codes = x.at(group * n), codes.at(group * n)
        largest = Total(k, "smax")
        k.each(n, lambda at: largest.take(absolute(x.load(at))))
        scale = quantized(k, x, codes, n, largest.value, frac, form, fp8)
        mantissa.store(group, scale.mantissa)
        exponent.store(group, scale.exponent)


def emit_quantize_static(k: Kernel, fp8: bool) -> None:
    """`semantics.quantize_static`."""
    x, codes = k.arrays(2)
    n, inverse, shift, low, high = k.numbers(5)

    def body(at: Cursor) -> None:
        t = shift_saturate(x.load(at) * inverse, shift, counted=False)
        if fp8:
            count(absolute(t) > 464 << 17)
            codes.store(at, e4m3_encode(t))
            return
        code = maximum(minimum(t, high), low)
        count(code.differs(t))
        codes.store(at, code)

    k.each(n, body)


def emit_multiply(k: Kernel) -> None:
    """`fixed_point.multiply`."""
    a_mantissa, a_exponent, b_mantissa, b_exponent, mantissa, exponent = k.arrays(6)
    (n,) = k.numbers(1)

    def body(at: Cursor) -> None:
        a = ScaleValue(a_mantissa.load(at), a_exponent.load(at))
        result = multiply(a, ScaleValue(b_mantissa.load(at), b_exponent.load(at)))
        mantissa.store(at, result.mantissa)
        exponent.store(at, result.exponent)

    k.each(n, body)


def emit_reciprocal_scale(k: Kernel) -> None:
    """`semantics.reciprocal_scale`."""
    x, mantissa, exponent, values = k.arrays(4)
    n, frac = k.numbers(2)

    def body(at: Cursor) -> None:
        total = x.load(at)
        z = normalise(total)
        mantissa.store(at, reciprocal(values, shift_normal(total, z)))
        exponent.store(at, -frac - z + 47)

    k.each(n, body)


# Norms


def emit_norm(k: Kernel, centred: bool) -> None:
    """`semantics.rms_norm`, or `layer_norm` without beta."""
    x, y, gamma, values = k.arrays(4)
    step, tokens, groups, n, epsilon, epsilon_exponent, largest_shift, shift = k.numbers(8)
    with k.range(tokens) as token, k.range(groups) as group:
        offset = (token * groups + group) * n
        x, y, gamma = x.at(offset), y.at(offset), gamma.at(group * step)
        total = k.number(0)
        if centred:
            sums = Total(k, "add")
            k.each(n, lambda at: sums.take(x.load(at)))
            total = sums.value

        def element(at: Cursor) -> Value:
            return product(x.load(at), n) - total if centred else x.load(at)

        largest, squares = Total(k, "smax"), Total(k, "add")
        k.each(n, lambda at: largest.take(absolute(element(at))))
        z = minimum(normalise(largest.value), largest_shift)

        def square(at: Cursor) -> None:
            xs = shift_normal(element(at), z)
            squares.take(product(xs, xs))

        k.each(n, square)
        t = squares.value + round_shift(epsilon, epsilon_exponent - (z << 1))
        h = (bit_length(t) - 31) >> 1
        v = (t << maximum(-(h << 1), 0)) >> maximum(h << 1, 0)
        r = lookup(table("rsqrt"), values, maximum(v, 1 << 30))

        def body(at: Cursor) -> None:
            xs = shift_normal(element(at), z)
            u = round_shift(product(xs, r), h + (39 - UNIT_FRAC))
            y.store(at, shift_saturate(product(u, gamma.load(at)), shift))

        k.each(n, body)


# Attention


def emit_rotary(k: Kernel, interleaved: bool) -> None:
    """`semantics.rotary`."""
    x, y = k.arrays(2)
    cos, sin = k.arrays(2, bits=16)
    tokens, heads, width, half = k.numbers(4)
    (places,) = k.numbers(1)
    with k.range(tokens) as token, k.range(heads) as head:
        offset = (token * heads + head) * width
        x, y = x.at(offset), y.at(offset)
        cos, sin = cos.at(token * half), sin.at(token * half)

        def body(at: Cursor) -> None:
            first = Cursor(at.index << 1, 1) if interleaved else at
            second = Cursor(first.index + (1 if interleaved else half), at.lanes)
            a, b, c, s = x.load(first), x.load(second), cos.load(at), sin.load(at)
            y.store(first, shift_saturate(product(a, c) - product(b, s), places))
            y.store(second, shift_saturate(product(b, c) + product(a, s), places))

        (k.each_one if interleaved else k.each)(half, body)
        rest = half << 1
        x, y = x.at(rest), y.at(rest)
        k.each(width - rest, lambda at: y.store(at, x.load(at)))


def emit_score_scale(k: Kernel) -> None:
    """`semantics.score_scale`."""
    dots, y, q_mantissa, q_exponent, k_mantissa, k_exponent = k.arrays(6)
    stride, factor, factor_exponent, batch, kv_heads, shared, n, shift = k.numbers(8)
    constant = ScaleValue(factor, factor_exponent)
    with k.range(batch) as token, k.range(kv_heads) as kv_head, k.range(shared) as i:
        row = (token * kv_heads + kv_head) * shared + i
        query = multiply(ScaleValue(q_mantissa.load(row), q_exponent.load(row)), constant)
        dots, y = dots.at(row * n), y.at(row * n)
        offset = kv_head * stride
        k_mantissa, k_exponent = k_mantissa.at(offset), k_exponent.at(offset)

        def body(at: Cursor) -> None:
            c = multiply(query, ScaleValue(k_mantissa.load(at), k_exponent.load(at)))
            t = round_shift(dots.load(at), shift)
            y.store(at, shift_saturate(t * c.mantissa, c.exponent - (shift + SCORE_FRAC)))

        k.each(n, body)


_FAR = 1 << 20
_LOWEST = -(1 << (FIXED_BITS - 1))


def emit_softmax(k: Kernel, masked: bool, sink: bool) -> None:
    """`semantics.softmax`."""
    scores, v_mantissa, v_exponent, sinks, values = k.arrays(5)
    codes, mantissa, exponent, totals = k.arrays(4)
    (seen_bytes,) = k.arrays(1, bits=8)
    stride, batch, kv_heads, shared, n = k.numbers(5)
    form = FormatValues(*k.numbers(FORMAT_VALUES))

    def exp2(d: Value) -> Value:
        p = lookup(table("exp2"), values, d & 0xFFFF)
        places = minimum(d >> 16, 25)
        return (p + p + (k.number(1) << places)) >> (places + 1)

    with k.range(batch) as token, k.range(kv_heads) as kv_head, k.range(shared) as i:
        head = kv_head * shared + i
        row = token * kv_heads * shared + head
        scores, codes, seen_bytes = scores.at(row * n), codes.at(row * n), seen_bytes.at(token * n)
        offset = kv_head * stride
        v_mantissa, v_exponent = v_mantissa.at(offset), v_exponent.at(offset)

        def seen(at: Cursor) -> Value:
            return seen_bytes.load(at).differs(0)

        def score(at: Cursor) -> Value:
            return where(seen(at), scores.load(at), _LOWEST) if masked else scores.load(at)

        def power(at: Cursor) -> Value:
            used = where(v_mantissa.load(at) > 0, v_exponent.load(at), _FAR)
            return where(seen(at), used, _FAR) if masked else used

        largest, total = Total(k, "smax"), Total(k, "add")
        least, weight = Total(k, "smin"), Total(k, "smax")

        def first_pass(at: Cursor) -> None:
            largest.take(score(at))
            least.take(power(at))

        k.each(n, first_pass)
        m, e0 = largest.value, least.value
        if sink:
            m = maximum(m, sinks.load(head))

        def second_pass(at: Cursor) -> None:
            p = exp2(m - score(at))
            if masked:
                p = where(seen(at), p, 0)
            total.take(p)
            places = minimum(power(at) - e0, 32) + 17
            # round_shift by a positive number.
            w = ((product(p, v_mantissa.load(at)) >> (places - 1)) + 1) >> 1
            weight.take(w)
            codes.store(at, w)

        k.each(n, second_pass)
        sum_ = total.value
        if sink:
            sum_ = sum_ + exp2(m - sinks.load(head))
        scale = quantized(k, codes, codes, n, weight.value, e0 + 7, form)
        totals.store(row, sum_)
        mantissa.store(row, scale.mantissa)
        exponent.store(row, scale.exponent)


def _pieces(width: int, size: int) -> list[tuple[int, int]]:
    """(start, length) of the registers of `size` elements that `width` elements fill."""
    return [(start, min(size, width - start)) for start in range(0, width, size)]


def _widened(k: Kernel, raw: Any, size: int) -> Any:
    """A shorter vector with zeros after it."""
    have = raw.type.count
    if have == size:
        return raw
    order = [min(i, have) for i in range(size)]
    return k.shuffle(raw, order, k.zero(raw.type))


def _lane_sum(k: Kernel, lanes: Any) -> Value:
    """The sum of an accumulator's lanes."""
    kind = f"v{lanes.type.count}i{lanes.type.element.width}"
    one = k.intrinsic(f"llvm.vector.reduce.add.{kind}", lanes.type.element, [lanes])
    return Value(k, one if lanes.type.element.width == 64 else k.b.sext(one, k.i64))


def _accumulators(k: Kernel, count: int, start: Any) -> list[Any]:
    return [k.variable(start) for _ in range(count)]


def emit_query_key(k: Kernel, width: int, block: int, bits: int, narrow: bool) -> None:
    """`semantics.query_key` for keys of `bits` bits; `narrow`: all codes fit int8.

    `block` queries of one key head go over the keys together. The byte product takes unsigned
    times signed, so 128 is added to the keys, and 128 times the query's sum taken off at the
    start.
    """
    q, y = k.arrays(2)
    keys, batch, kv_heads, blocks, n, head_bytes, token_bytes = k.numbers(7)
    size = k.path.width if narrow else k.width
    pieces = _pieces(width, size)
    with k.range(kv_heads) as kv_head, k.range(batch) as token, k.range(blocks) as i:
        row = ((token * kv_heads + kv_head) * blocks + i) * block
        queries, result = q.at(row * width), y.at(row * n)
        key_head = keys + kv_head * head_bytes

        def query(r: int, piece: tuple[int, int]) -> Any:
            start, length = piece
            raw = k.load(queries.pointer(r * width + start), k.vec(k.i64, length))
            if narrow:
                raw = k.b.trunc(raw, k.vec(k.i8, length))
            return _widened(k, raw, size)

        zero = k.zero(k.vec(k.i32, k.path.lanes) if narrow else k.vec(k.i64, k.width))
        starts = [zero] * block
        loaded: list[list[Any]] = []
        if narrow:
            loaded = [[query(r, piece) for piece in pieces] for r in range(block)]
            offset = k.const(-128, k.vec(k.i8, size))
            for r, parts in enumerate(loaded):
                sums = zero
                for part in parts:
                    sums = k.dot(sums, [offset], [part], 8)
                starts[r] = k.b.sub(zero, sums)
        with k.range(n) as t:
            key = Array(k, key_head + t * token_bytes, bits)
            totals = list(starts)
            for p, (start, length) in enumerate(pieces):
                raw = k.load(key.pointer(start), k.vec(k.ir.IntType(bits), length))
                raw = _widened(k, raw, size)
                raw = k.b.xor(raw, k.const(-128, raw.type)) if narrow else k.b.sext(raw, zero.type)
                for r in range(block):
                    if narrow:
                        totals[r] = k.dot(totals[r], [raw], [loaded[r][p]], 8)
                    else:
                        a = Value(k, query(r, pieces[p]))
                        totals[r] = k.b.add(totals[r], product(a, Value(k, raw)).value)
            for r, lanes in enumerate(totals):
                result.store(t + n * r, _lane_sum(k, lanes))


def emit_weighted_sum(k: Kernel, width: int, block: int, bits: int) -> None:
    """`semantics.weighted_sum` for values of `bits` bits and any probabilities."""
    p, y = k.arrays(2)
    values, batch, kv_heads, blocks, n, head_bytes, token_bytes = k.numbers(7)
    pieces = _pieces(width, k.width)
    zero = k.zero(k.vec(k.i64, k.width))
    with k.range(kv_heads) as kv_head, k.range(batch) as token, k.range(blocks) as i:
        row = ((token * kv_heads + kv_head) * blocks + i) * block
        weights, result = p.at(row * n), y.at(row * width)
        value_head = values + kv_head * head_bytes
        # A few registers of each row at a time: with all of them the accumulators would not fit.
        for first in range(0, len(pieces), 4):
            some = pieces[first : first + 4]
            slots = [_accumulators(k, len(some), zero) for _ in range(block)]
            with k.range(n) as t:
                value = Array(k, value_head + t * token_bytes, bits)
                factors = [weights.load(t + n * r) for r in range(block)]
                for c, (start, length) in enumerate(some):
                    raw = k.load(value.pointer(start), k.vec(k.ir.IntType(bits), length))
                    wide = Value(k, k.b.sext(_widened(k, raw, k.width), zero.type))
                    for r, factor in enumerate(factors):
                        old = k.b.load(slots[r][c], typ=zero.type)
                        k.b.store(k.b.add(old, product(wide, factor).value), slots[r][c])
            for r in range(block):
                for (start, length), slot in zip(some, slots[r], strict=True):
                    _store_first(
                        k, k.b.load(slot, typ=zero.type), result, width * r + start, length
                    )


def _store_first(k: Kernel, quads: Any, result: Array, offset: int, length: int) -> None:
    """Writes the first `length` int64 of a vector."""
    if length < quads.type.count:
        quads = k.shuffle(quads, range(length))
    k.store(quads, result.pointer(offset))


def emit_weighted_sum_bytes(k: Kernel, width: int, block: int) -> None:
    """`semantics.weighted_sum` for uint8 probabilities and int8 values, T up to 2**16.

    Four tokens go into one byte product: their values are interleaved in registers, as the
    instructions for it do, within 16 bytes; `scratch` gets the probabilities as bytes, each row
    filled with zeros to `stride`, a multiple of four.
    """
    p, y = k.arrays(2)
    (scratch,) = k.arrays(1, bits=8)
    stride, values, batch, kv_heads, blocks, n, head_bytes, token_bytes = k.numbers(8)
    size = k.path.width
    lane_type, byte_type = k.vec(k.i32, k.path.lanes), k.vec(k.i8, size)
    zero = k.zero(lane_type)
    rows = batch * kv_heads * blocks * block
    with k.range(rows) as row:
        source, into = p.at(row * n), scratch.at(row * stride)
        k.each(n, lambda at: into.store(at, source.load(at)))

    def interleave(a: Any, b: Any, element: int, high: bool) -> Any:
        """Elements of `element` bytes by turns from the low or high half of every 16 bytes."""
        kind = k.vec(k.ir.IntType(8 * element), size // element)
        per = 16 // element
        order: list[int] = []
        for lane in range(size // 16):
            for i in range(per // 2):
                place = lane * per + i + (per // 2 if high else 0)
                order += [place, place + kind.count]
        return k.shuffle(k.b.bitcast(a, kind), order, k.b.bitcast(b, kind))

    with k.range(kv_heads) as kv_head, k.range(batch) as token, k.range(blocks) as i:
        row = ((token * kv_heads + kv_head) * blocks + i) * block
        weights, result = scratch.at(row * stride), y.at(row * width)
        value_head = values + kv_head * head_bytes
        for start, length in _pieces(width, size):
            slots = [_accumulators(k, 4, zero) for _ in range(block)]
            with k.range(stride >> 2) as four:
                t = four << 2
                raw: list[Any] = []
                for step in range(4):
                    # Beyond the end any row does: its probability is 0.
                    place = minimum(t + step, n - 1)
                    value = Array(k, value_head + place * token_bytes, 8)
                    part = k.load(value.pointer(start), k.vec(k.i8, length))
                    raw.append(_widened(k, part, size))
                pairs = [
                    [interleave(a, b, 1, high) for high in (False, True)]
                    for a, b in (raw[:2], raw[2:])
                ]
                quads = [
                    k.b.bitcast(interleave(a, b, 2, high), byte_type)
                    for a, b in zip(*pairs, strict=True)
                    for high in (False, True)
                ]
                for r in range(block):
                    word = k.load(weights.at(stride * r).pointer(t), k.i32)
                    first = k.b.insert_element(zero, word, k.const(0, k.i32))
                    factor = k.b.bitcast(k.shuffle(first, [0] * k.path.lanes), byte_type)
                    for slot, quad in zip(slots[r], quads, strict=True):
                        old = k.b.load(slot, typ=lane_type)
                        k.b.store(k.dot(old, [factor], [quad], 8), slot)
            for r in range(block):
                sums = [k.b.load(slot, typ=lane_type) for slot in slots[r]]
                low, high = (
                    k.shuffle(sums[j], range(2 * k.path.lanes), sums[j + 1]) for j in (0, 2)
                )
                # Lane 4 * l + i of the accumulator j is element 16 * l + 4 * j + i.
                order = [
                    j * k.path.lanes + 4 * lane + i
                    for lane in range(size // 16)
                    for j in range(4)
                    for i in range(4)
                ]
                wide = k.b.sext(k.shuffle(low, order[:length], high), k.vec(k.i64, length))
                k.store(wide, result.pointer(width * r + start))


EMITTERS: dict[str, Callable[..., None]] = {
    "gate": emit_gate,
    "mul": emit_mul,
    "add": emit_add,
    "scale": emit_scale,
    "softcap": emit_softcap,
    "requantize": emit_requantize,
    "quantize": emit_quantize,
    "quantize_static": emit_quantize_static,
    "multiply": emit_multiply,
    "reciprocal_scale": emit_reciprocal_scale,
    "norm": emit_norm,
    "rotary": emit_rotary,
    "score_scale": emit_score_scale,
    "softmax": emit_softmax,
    "query_key": emit_query_key,
    "weighted_sum": emit_weighted_sum,
    "weighted_sum_bytes": emit_weighted_sum_bytes,
}


def emit(path: Path, name: str, *variant: Any) -> Any:
    """The module of a kernel, with one function of its name."""
    kernel = Kernel(path, name)
    EMITTERS[name](kernel, *variant)
    return kernel.end()
