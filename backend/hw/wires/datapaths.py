"""The compiled model's arithmetic as hardware: the formulas of `dialects.semantics`, in signals.

Every function takes and gives `Signal`s and equals its namesake in `dialects.semantics`,
`fixed_point`, `tables` or `codes` bit for bit; formulas, widths and ranges are stated there. Most
operators work in phases (a maximum, a scalar from a table, the elements); each phase is a function
here, and who keeps the values between them is up to the unit that uses it.

All functions are combinational. Inside `signal.pipelined` their cuts (`Signal.cut`) become
registers: before and after products, around table reads, after barrel shifters.

Where a result saturates it comes as `Fixed`: the value, and how many of its places saturated.
"""

from __future__ import annotations

from fractions import Fraction
from typing import NamedTuple

from intaglio.backend.hw.wires.signal import Operand, Signal, cat, larger, mux, smaller
from intaglio.dialects.codes import FORMATS, Format
from intaglio.dialects.fixed_point import FIXED_BITS, SCALE_BITS, Real
from intaglio.dialects.fixed_point import Scale as ConstantScale
from intaglio.dialects.semantics import (
    GATES,
    PROBABILITY_FRAC,
    ROTARY_FRAC,
    SCORE_FRAC,
    UNIT_FRAC,
    NormConstants,
)
from intaglio.dialects.tables import ARGUMENT_FRAC, GATE_FRAC, Table, table

_MANTISSA = (1 << SCALE_BITS) - 1
_HALF = 1 << (SCALE_BITS - 1)


class Fixed(NamedTuple):
    """A saturated result."""

    value: Signal
    saturated: Signal
    """How many of the places where it may saturate did: what `Saturations` counts."""


class Scale(NamedTuple):
    """``mantissa * 2**-exponent``; the mantissa has 24 bits, the exponent a sign."""

    mantissa: Signal
    exponent: Signal


# Fixed point


def saturate(x: Signal, bits: int = FIXED_BITS) -> Fixed:
    """Clips to a signed range."""
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    over, under = x > high, x < low
    value = mux(over, high, mux(under, low, x.truncate(bits, True)))
    return Fixed(value.extend(bits, True), over | under)


def round_shift(x: Signal, places: int | Signal) -> Signal:
    """``floor(x / 2**places + 1/2)``; one barrel shifter when `places` is a signal."""
    if isinstance(places, int) or places.constant is not None:
        number = places if isinstance(places, int) else places.low
        if number <= 0:
            return x << -number
        # The last bit shifted out is the carry; beyond the top all bits are the sign.
        if number <= x.width:
            carry: Operand = x[number - 1]
        else:
            carry = x[-1] if x.signed else 0
        half = 1 << (number - 1)
        return ((x >> number) + carry).assume((x.low + half) >> number, (x.high + half) >> number)
    if places.high <= 0:
        return x << -places
    if places.low < 0:
        x, places = x << -places.low, places - places.low
    if places.low > 0:
        return ((x >> (places - 1)) + 1) >> 1
    return (((x << 1) >> places) + 1) >> 1


def shift_saturate(x: Signal, places: int | Signal, bits: int = FIXED_BITS) -> Fixed:
    """`round_shift` as if it had unlimited width, then `saturate`; never wider than its input or
    ``2 * bits``."""
    if isinstance(places, int):
        if places >= 0:
            return saturate(round_shift(x, places), bits)
        left: int | Signal = min(-places, bits)
        first = saturate(x, bits)
    else:
        # Beyond its own width nothing of x is left.
        right = smaller(larger(places, 0), x.width)
        left = smaller(larger(-places, 0), bits)
        first = saturate(round_shift(x, right).cut(), bits)
        if left.high == 0:
            return first
    second = saturate(first.value << left, bits)
    return Fixed(second.value, first.saturated | second.saturated)


def bit_length(x: Signal) -> Signal:
    """Bits needed for a number that is not negative, 0 for 0: halves that are tested in turn."""
    high = x.high
    if x.low < 0:
        raise ValueError(f"bit_length of {x}, which may be negative")
    if x.constant is not None:
        return x.module.constant(high.bit_length())
    size = 1 << (high.bit_length() - 1).bit_length()
    found: list[Signal] = []
    part = x.extend(max(size, x.width)).truncate(size)
    while size > 1:
        size //= 2
        upper = part[size:]
        found.append(upper.any())
        part = mux(found[-1], upper, part[:size])
    place = cat(*found) if found else x.module.constant(0)
    length = mux(part == 0, 0, place + 1)
    return length.assume(x.low.bit_length(), high.bit_length())


def normalise(m: Signal, bits: int = SCALE_BITS) -> Signal:
    """The shift that brings `m` to exactly `bits` bits."""
    return bits - bit_length(m)


def shift_normal(x: Signal, z: Signal, bits: int = SCALE_BITS) -> Signal:
    """``x * 2**z`` for ``|x| * 2**z < 2**bits``: left on few wires, or right with rounding."""
    limit = (1 << bits) - 1
    least = -limit if x.low < 0 else 0
    # What is shifted left was small: its upper wires say nothing.
    wires = x.truncate(bits + 1, True) if x.low < 0 else x.truncate(bits)
    left = (wires << smaller(larger(z, 0), bits)).truncate(wires.width, wires.signed)
    left = left.assume(least, limit)
    if z.low >= 0:
        return left
    # Rounding reaches 2**bits at most.
    right = round_shift(x, larger(-z, 0)).assume(-limit - 1, limit + 1)
    right = larger(smaller(right, limit), -limit)
    return mux(z < 0, right, left)


def multiply(a: Scale, b: Scale) -> Scale:
    """The product of two scales, normalised again."""
    product = (a.mantissa * b.mantissa).assume(0, _MANTISSA**2).named("product").cut()
    top = product.extend(48)[47]
    half = product >> 22
    mantissa = mux(top, (half + 2) >> 2, (half + 1) >> 1)
    return Scale(smaller(mantissa, _MANTISSA), a.exponent + b.exponent - 23 - top)


def constant_scale(like: Signal, value: Real | ConstantScale) -> Scale:
    """A scale known at compile time."""
    constant = like.module.constant
    return Scale(constant(int(value.mantissa), SCALE_BITS), constant(int(value.exponent)))


def lookup(of: Table, argument: Signal) -> Signal:
    """The table's value with interpolation.

    The table is a module: a ROM whose words hold an entry and the difference to the next one. Its
    address is the argument's upper bits as they are.
    """
    step, first = of.step_bits, of.lo_index
    last = first + len(of.entries) - 2
    bits = next(b for b in range(1, 64) if first >> b == last >> b)
    entries, deltas = (part.tolist() for part in of.arrays)
    width, down = of.value_bits, of.delta_bits
    words = [0] * (1 << bits)
    for i in range(first, last + 1):
        delta = deltas[i - first] & ((1 << down) - 1)
        words[i % (1 << bits)] = delta << width | entries[i - first]
    beyond = argument >= of.end
    wires = argument.as_unsigned()
    wires = wires.extend(max(wires.width, step + bits))
    address = wires[step : step + bits].cut()
    word = argument.module.lookup(of.name, f"table_{of.name}", words, address).cut()
    word = word.extend(width + down)
    entry = word[:width].assume(0, max(entries))
    delta = word[width:].as_signed().assume(min(deltas), max(deltas))
    product = (delta * wires[:step]).named(f"{of.name}_product").cut()
    value = entry + round_shift(product, step)
    value = mux(beyond, entries[-1], value)
    return value.assume(min(entries), max(entries)).named(of.name)


def reciprocal(mantissa: Signal) -> Signal:
    """``2**47 / m`` of a normalised mantissa, 24 bits."""
    return lookup(table("reciprocal"), larger(mantissa.assume(0, _MANTISSA), _HALF))


# Formats


def e4m3_encode(t: Signal, fraction_bits: int) -> Signal:
    """`codes.e4m3_encode`: round half to even to the four significant bits of E4M3."""
    a = abs(t)
    drop = larger(bit_length(a) - 4, fraction_bits)
    odd = (a >> drop)[0]
    one = a.module.constant(1)
    half = (one << (drop - 1)) - 1
    q = ((a + half + odd) >> drop).assume(0, 16)
    code = smaller(q + ((drop - fraction_bits) << 3), 126)
    return cat(t < 0, code.extend(7))


def e4m3_decode(code: Signal) -> Signal:
    """`codes.e4m3_decode`: an integer in units of 2**-9, 19 bits."""
    power, fraction = code[3:7], code[:3]
    normal = (fraction + 8) << larger(power - 1, 0)
    size = mux(power == 0, fraction, normal).assume(0, (1 << 18) - 1)
    return mux(code[7], -size, size)


def decode(code: Signal, fmt: str) -> Signal:
    """A stored code, as wires of the format's width, as the integer it stands for."""
    form = FORMATS[fmt]
    if fmt == "fp8":
        return e4m3_decode(code)
    wires = code.truncate(form.bits)
    return wires if form.low == 0 else wires.as_signed()


# Quantisation


def magnitude(x: Signal, fmt: Format | str = "int8") -> Signal:
    """What a quantisation takes the maximum of."""
    form = FORMATS[fmt] if isinstance(fmt, str) else fmt
    return x.assume(0, max(0, x.high)) if form.low == 0 else abs(x)


class QuantizeScalars(NamedTuple):
    """What `quantize_element` needs of the group: see `semantics.quantize`."""

    z: Signal
    rl: Signal
    scale: Scale


def quantize_scalars(m: Signal, frac: Operand, fmt: str) -> QuantizeScalars:
    """From the group's largest magnitude: the shift, the scaled reciprocal, and the scale."""
    limit = FORMATS[fmt].limit
    m = m.cut()
    z = normalise(m).named("z").cut()
    mn = shift_normal(m, z).named("mn").cut()
    r = reciprocal(mn).cut()
    rl = round_shift((r * limit).named("product").cut(), limit.bit_length()).named("rl")
    scale = multiply(Scale(mn, z + frac), constant_scale(m, ConstantScale.of(Fraction(1, limit))))
    return QuantizeScalars(z, rl, Scale(scale.mantissa, mux(m == 0, 0, scale.exponent)))


def quantize_element(x: Signal, z: Signal, rl: Signal, fmt: str) -> Signal:
    """The code of an element: decoded for integer formats, E4M3 bits for fp8."""
    form = FORMATS[fmt]
    bits = form.limit.bit_length()
    xs = shift_normal(x if form.low else magnitude(x, form), z).named("xs").cut()
    product = (xs * rl).named("product").cut()
    if fmt == "fp8":
        # At most 448 in units of 2**-17: the reciprocal never rounds further up.
        limit = form.limit << 8
        return e4m3_encode(round_shift(product, 39 - bits).assume(-limit, limit).cut(), 8)
    code = round_shift(product, 47 - bits)
    return code.assume(-form.limit if form.low else 0, form.limit)


def quantize_static(x: Signal, fmt: str, inverse: Real, frac: int = 16) -> Fixed:
    """The code with a scale known at compile time."""
    form = FORMATS[fmt]
    product = (x * inverse.mantissa).named("product").cut()
    if fmt == "fp8":
        t = shift_saturate(product, inverse.exponent + frac - 8).value.cut()
        return Fixed(e4m3_encode(t, 8), abs(t) > 464 << 17)
    wide = shift_saturate(product, inverse.exponent + frac).value.cut()
    over, under = wide > form.high, wide < form.low
    code = mux(over, form.high, mux(under, form.low, wide)).assume(form.low, form.high)
    return Fixed(code, over | under)


# After matrix products


def requantize(
    y: Signal,
    scale: Scale,
    exponent: int,
    shift: int,
    out_frac: int = 16,
    bias: Signal | None = None,
    residual: Signal | None = None,
) -> Fixed:
    """An accumulator times its scale; then bias and residual are added."""
    t = round_shift(y, shift).named("t").cut()
    product = (t * scale.mantissa).named("product").cut()
    value, count = shift_saturate(product, scale.exponent + (exponent - shift - out_frac))
    for more in (bias, residual):
        if more is not None:
            added = add(value.cut(), more)
            value, count = added.value, count + added.saturated
    return Fixed(value, count)


def embed(row: Signal, exponent: int, frac: int = 16, factor: Real | None = None) -> Fixed:
    """An element of an embedding row, times an optional constant."""
    if factor is not None:
        row, exponent = (row * factor.mantissa).cut(), exponent + factor.exponent
    return shift_saturate(row, exponent - frac)


# Norms


def centre(x: Signal, total: Signal, width: int) -> Signal:
    """`layer_norm`'s ``n * x - sum(x)``; both terms are exact."""
    most = width * (1 << FIXED_BITS)
    return ((x * width).cut() - total).assume(-most, most)


def norm_shift(m: Signal, constants: NormConstants) -> Signal:
    """`z`, from the largest magnitude."""
    return smaller(normalise(m), constants.largest_shift)


def norm_square(x: Signal, z: Signal) -> Signal:
    """An element's part of the sum of squares, 48 bits."""
    xs = shift_normal(x, z).named("xs").cut()
    return (xs * xs).assume(0, _MANTISSA**2)


class NormScalars(NamedTuple):
    """What `norm_element` needs of the group: `r` and `h` in `semantics.rms_norm`."""

    r: Signal
    half: Signal


def norm_scalars(total: Signal, z: Signal, constants: NormConstants) -> NormScalars:
    """From the sum of squares of at most 62 bits."""
    epsilon = total.module.constant(constants.epsilon.mantissa, SCALE_BITS)
    more = round_shift(epsilon, constants.epsilon.exponent - (z << 1))
    t = (total + more).assume(0, (1 << 63) - 1).named("t").cut()
    half = ((bit_length(t) - 31) >> 1).named("half").cut()
    left = (t.truncate(32) << (larger(-half, 0) << 1)).truncate(32)
    right = (t >> (larger(half, 0) << 1)).truncate(32)
    v = mux(half < 0, left, right).named("v")
    r = lookup(table("rsqrt"), larger(v, 1 << 30))
    return NormScalars(r, half)


def norm_element(
    x: Signal,
    z: Signal,
    scalars: NormScalars,
    gamma: Signal,
    gamma_exponent: int,
    out_frac: int = 16,
    beta: Signal | None = None,
) -> Fixed:
    """An element of `rms_norm`, or of `layer_norm` with `centre`'s result and an offset."""
    xs = shift_normal(x, z).named("xs").cut()
    product = (xs * scalars.r).named("product").cut()
    u = round_shift(product, scalars.half + (39 - UNIT_FRAC))
    u = u.assume(-(1 << 25) + 1, (1 << 25) - 1).named("u").cut()
    y = shift_saturate((u * gamma).named("weighted").cut(), UNIT_FRAC + gamma_exponent - out_frac)
    if beta is None:
        return y
    added = add(y.value.cut(), beta)
    return Fixed(added.value, y.saturated + added.saturated)


# Attention


def rotary_pair(
    a: Signal, b: Signal, cos: Signal, sin: Signal, table_frac: int = ROTARY_FRAC
) -> tuple[Fixed, Fixed]:
    """A pair of elements, rotated."""
    products = {"ac": a * cos, "bs": b * sin, "bc": b * cos, "as": a * sin}
    ac, bs, bc, as_ = (p.named(f"product_{name}").cut() for name, p in products.items())
    return shift_saturate(ac - bs, table_frac), shift_saturate(bc + as_, table_frac)


def score_factor(q_scale: Scale, k_scale: Scale, factor: Real) -> Scale:
    """`score_scale`'s `c`: query scale, softmax scale, key scale."""
    return multiply(multiply(q_scale, constant_scale(q_scale.mantissa, factor)), k_scale)


def score_scale(dot: Signal, c: Scale, shift: int) -> Fixed:
    """A product of a query and a key as a score with 16 fraction bits."""
    t = round_shift(dot, shift).named("t").cut()
    return shift_saturate(
        (t * c.mantissa).named("product").cut(), c.exponent - (shift + SCORE_FRAC)
    )


def exp2(d: Signal) -> Signal:
    """``2**24 * 2**(-d / 2**16)`` for d >= 0, 24 bits: a softmax numerator of ``d = m - s``."""
    wires = d.assume(0, (1 << 33) - 1).extend(33)
    # Beyond 25 places nothing of 24 bits is left.
    places = smaller(wires[16:], 25)
    p = lookup(table("exp2"), wires[:16])
    return round_shift(p.cut(), places)


def softmax_weight(p: Signal, v_scale: Scale, e0: Signal) -> Signal:
    """A numerator times its value's scale, aligned to the scales' least exponent: 31 bits.

    `quantize_scalars` with ``frac = 7 + e0`` and `quantize_element` follow.
    """
    product = (p * v_scale.mantissa).named("product").cut()
    places = smaller(larger(v_scale.exponent - e0, 0), 32) + 17
    return round_shift(product, places).assume(0, (1 << 31) - 1)


def reciprocal_scale(total: Signal, frac: int = PROBABILITY_FRAC) -> Scale:
    """One over a positive number, as a scale."""
    z = normalise(total).named("z").cut()
    mantissa = reciprocal(shift_normal(total, z).cut())
    return Scale(mantissa, 47 - frac - z)


# Elementwise


def _of_magnitude(x: Signal, name: str, frac: int) -> Signal:
    return lookup(table(name), round_shift(abs(x).cut(), frac - ARGUMENT_FRAC))


def _both_sides(x: Signal, name: str, frac: int) -> Signal:
    g = _of_magnitude(x, name, frac)
    return mux(x < 0, (1 << GATE_FRAC) - g, g)


def _tanh(x: Signal, frac: int) -> Signal:
    g = _of_magnitude(x, "tanh", frac)
    return mux(x < 0, -g, g)


def gate(x: Signal, kind: str, frac: int = 16, out_frac: int | None = None) -> Fixed:
    """An activation function: a table of the magnitude, and a product."""
    out_frac = frac if out_frac is None else out_frac
    if kind in ("relu", "relu2"):
        y = larger(x, 0)
        if kind == "relu":
            return shift_saturate(y, frac - out_frac)
        return shift_saturate((y * y).named("product").cut(), 2 * frac - out_frac)
    g = _both_sides(x, GATES[kind], frac).cut()
    return shift_saturate((x * g).named("product").cut(), GATE_FRAC + frac - out_frac)


def sigmoid(x: Signal, frac: int = 16, out_frac: int = 16) -> Signal:
    """ONNX Sigmoid; cannot saturate up to 30 fraction bits."""
    return shift_saturate(_both_sides(x, "sigmoid", frac), GATE_FRAC - out_frac).value


def tanh(x: Signal, frac: int = 16, out_frac: int = 16) -> Signal:
    """ONNX Tanh; cannot saturate up to 30 fraction bits."""
    return shift_saturate(_tanh(x, frac), GATE_FRAC - out_frac).value


def softcap(x: Signal, inverse: Real, cap: Real, frac: int = 16, out_frac: int = 16) -> Fixed:
    """``cap * tanh(x / cap)``."""
    product = (x * inverse.mantissa).named("product").cut()
    a = shift_saturate(product, inverse.exponent + frac - ARGUMENT_FRAC).value.cut()
    g = _tanh(a, ARGUMENT_FRAC).cut()
    return shift_saturate(
        (g * cap.mantissa).named("capped").cut(), GATE_FRAC + cap.exponent - out_frac
    )


def mul(a: Signal, b: Signal, shift: int = 16) -> Fixed:
    """ONNX Mul of two vectors."""
    return shift_saturate((a * b).named("product").cut(), shift)


def add(a: Signal, b: Signal) -> Fixed:
    """ONNX Add; fraction bits are equal."""
    return saturate(a + b)


def scale(x: Signal, factor: Real, shift: int = 0) -> Fixed:
    """ONNX Mul by a constant."""
    return shift_saturate((x * factor.mantissa).named("product").cut(), factor.exponent + shift)


def first_maximum(
    best: tuple[Signal, Signal], other: tuple[Signal, Signal]
) -> tuple[Signal, Signal]:
    """The larger of two (value, index) pairs; the first one when they are equal. A tree of it over
    lanes and cycles in order is `semantics.argmax`."""
    better = other[0] > best[0]
    return mux(better, other[0], best[0]), mux(better, other[1], best[1])
