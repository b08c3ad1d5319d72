"""The primitives of the compiled model's arithmetic as hardware: what units are built of.

Every function takes and gives `Signal`s and equals its namesake in `dialects.semantics`,
`fixed_point`, `tables` or `codes` bit for bit; formulas, widths and ranges are stated there.

All functions are combinational. Inside `signal.pipelined` their cuts (`Signal.cut`) become
registers: before and after products, around table reads, after barrel shifters.

Where a result saturates it comes as `Fixed`: the value, and how many of its places saturated.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

from intaglio.backend.hw.wires.signal import Operand, Signal, cat, larger, mux, smaller
from intaglio.dialects.fixed_point import FIXED_BITS, SCALE_BITS
from intaglio.dialects.formats import FORMATS
from intaglio.dialects.formulas.reader import ScaleOf
from intaglio.dialects.tables import Table

_MANTISSA = (1 << SCALE_BITS) - 1
_HALF = 1 << (SCALE_BITS - 1)


class Fixed(NamedTuple):
    """A saturated result."""

    value: Signal
    saturated: Signal
    """How many of the places where it may saturate did: what `Saturations` counts."""


Scale: TypeAlias = ScaleOf[Signal]
"""``mantissa * 2**-exponent``; the mantissa has 24 bits, the exponent a sign."""


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


def divide(x: Signal, by: int) -> tuple[Signal, Signal]:
    """Quotient and remainder of a number of no sign and a constant.

    By other constants than powers of two: a product with ``ceil(2**s / by)``, shifted by s. With as
    many places more than x has as `by` does, what rounding up adds is less than a remainder can be.
    """
    bits = (by - 1).bit_length()
    if by == 1 << bits:
        return x >> bits, x[:bits] if bits else x.module.constant(0)
    shift = x.high.bit_length() + bits
    quotient = (x * -(-(1 << shift) // by) >> shift).assume(0, x.high // by)
    return quotient, (x - quotient * by).assume(0, by - 1)


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


def add(a: Signal, b: Signal) -> Fixed:
    """ONNX Add; fraction bits are equal."""
    return saturate(a + b)
