"""One ROM and one interpolation for several function tables, and the vector unit's scalar unit.

The scalar unit turns what a reducing pass leaves of a group into what the next pass needs: from a
largest magnitude the reciprocal and the scale of a quantisation, from a sum of squares the
reciprocal square root of a norm. It takes a group a cycle.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

from intaglio.backend.hw.units.vector.operations import FORMAT_CODES
from intaglio.backend.hw.wires.datapaths import (
    Scale,
    bit_length,
    multiply,
    round_shift,
    shift_normal,
)
from intaglio.backend.hw.wires.signal import Signal, choose, larger, mux, smaller
from intaglio.dialects.fixed_point import SCALE_BITS
from intaglio.dialects.fixed_point import Scale as ConstantScale
from intaglio.dialects.formats import FORMATS
from intaglio.dialects.tables import Table

_MANTISSA = (1 << SCALE_BITS) - 1
ROOT_PLACES = 39
"""Of a norm's factor beside the half of its sum's places (`formulas.norms.rms_scale`)."""
_HALF = 1 << (SCALE_BITS - 1)


@dataclass(frozen=True)
class SharedTable:
    """Several tables in one ROM; a word holds an entry and the difference to the next one."""

    name: str
    tables: tuple[Table, ...]

    def lookup(self, which: Signal, argument: Signal) -> Signal:
        """`tables.lookup` of the table number `which`.

        Args:
            which: static.
            argument: not negative; not below the table's first.
        """
        entry_bits = max(one.value_bits for one in self.tables)
        delta_bits = max(one.delta_bits for one in self.tables)
        spans = [_span(one) for one in self.tables]
        words: list[int] = []
        bases: list[int] = []
        # A table whose length is a power of two begins at a multiple of it, so that its base and
        # its address share no bit: the longest come first.
        for one, span in sorted(
            zip(self.tables, spans, strict=True), key=lambda pair: -pair[1].size
        ):
            bases.append(len(words))
            part = [0] * span.size
            entries, deltas = (array.tolist() for array in one.arrays)
            for i in range(len(entries) - 1):
                delta = deltas[i] & ((1 << delta_bits) - 1)
                part[(one.lo_index + i) % span.size] = delta << entry_bits | entries[i]
            words += part
        order = sorted(range(len(spans)), key=lambda i: -spans[i].size)
        base_of = {number: bases[place] for place, number in enumerate(order)}
        address, fraction = argument.module.constant(0), argument.module.constant(0)
        beyond, last = argument.module.constant(0), argument.module.constant(0)
        for number, (one, span) in enumerate(zip(self.tables, spans, strict=True)):
            wires = argument.as_unsigned()
            wires = wires.extend(max(wires.width, one.step_bits + span.bits))
            index = wires[one.step_bits : one.step_bits + span.bits]
            mine = which == number
            address = mux(mine, index + base_of[number], address)
            fraction = mux(mine, wires[: one.step_bits], fraction)
            beyond = mux(mine, argument >= one.end, beyond)
            last = mux(mine, one.entries[-1], last)
        address = address.assume(0, len(words) - 1)
        word = argument.module.lookup(self.name, f"table_{self.name}", words, address.cut()).cut()
        word = word.extend(entry_bits + delta_bits)
        product = (word[entry_bits:].as_signed() * fraction).cut()
        steps = [one.step_bits for one in self.tables]
        rounded = choose(which, [round_shift(product, step) for step in steps])
        value = mux(beyond, last, word[:entry_bits] + rounded)
        return value.assume(0, max(max(one.entries) for one in self.tables))


class _Span(NamedTuple):
    bits: int
    """Low bits of an index that tell the table's intervals apart."""

    @property
    def size(self) -> int:
        return 1 << self.bits


def _span(table: Table) -> _Span:
    first, last = table.lo_index, table.lo_index + len(table.entries) - 2
    return _Span(next(b for b in range(1, 64) if first >> b == last >> b))


class ScalarInputs(NamedTuple):
    """Of a group: its largest magnitude, normalising shift, sum, and least scale exponent; and
    what does not change during an instruction."""

    top: Signal
    z: Signal
    total: Signal
    least: Signal
    norm: Signal
    rooted: Signal
    softmax: Signal
    epsilon: Signal
    epsilon_exponent: Signal
    fraction: Signal
    number_format: Signal


class ScalarOutputs(NamedTuple):
    """`factor` and `half` for the elements; the scale for whoever reads the codes."""

    factor: Signal
    half: Signal
    scale: Scale
    total: Signal


def scalars(
    given: ScalarInputs,
    table: SharedTable,
    formats: Sequence[str],
    *,
    norms: bool,
    factors: bool = False,
) -> ScalarOutputs:
    """What a quantisation or a norm computes once a group, with constants that are signals.

    Args:
        given: the inputs, in a pipeline.
        table: reciprocal, and with `norms` rsqrt.
        formats: what quantisations write; empty when there are none.
        norms: whether there are norms.
        factors: whether there are those that leave their factor alone, a scale.
    """
    constant = given.top.module.constant
    zero = constant(0)
    arguments: list[tuple[Signal, Signal]] = []
    half = mantissa = zero
    if formats:
        mantissa = shift_normal(given.top, given.z).assume(0, _MANTISSA).cut()
        arguments.append((~given.norm, larger(mantissa, _HALF)))
    if norms:
        z = mux(given.rooted, 0, given.z) if factors else given.z
        places = given.epsilon_exponent - (z << 1)
        epsilon = given.epsilon.assume(0, _MANTISSA)
        # Below 2**61 by the choice of the largest shift; beyond 26 places nothing is left.
        more = mux(
            places < 0,
            epsilon << smaller(larger(-places, 0), 61 - SCALE_BITS),
            round_shift(epsilon, smaller(larger(places, 0), SCALE_BITS + 2)),
        )
        most = given.total.high + (1 << 61) if factors else (1 << 63) - 1
        t = (given.total + more).assume(0, most).cut()
        half = ((bit_length(t) - 31) >> 1).cut()
        left = (t.truncate(32) << (larger(-half, 0) << 1)).truncate(32)
        right = (t >> (larger(half, 0) << 1)).truncate(32)
        v = mux(half < 0, left, right)
        arguments.append((given.norm, larger(v, 1 << 30)))
    argument = arguments[0][1]
    if len(arguments) == 2:
        argument = mux(given.norm, arguments[1][1], argument)
    which = given.norm if len(table.tables) == 2 else zero
    root = table.lookup(which, argument.cut()).assume(0, _MANTISSA).cut()
    factor = Scale(root, half - given.fraction + ROOT_PLACES) if factors else Scale(zero, zero)
    if not formats:
        return ScalarOutputs(root, half, factor, given.total)

    def of_format(values: Sequence[int]) -> Signal:
        found = constant(values[0])
        for name, value in zip(formats[1:], values[1:], strict=True):
            found = mux(given.number_format == FORMAT_CODES[name], value, found)
        return found

    limits = [FORMATS[name].limit for name in formats]
    inverses = [ConstantScale.of(Fraction(1, limit)) for limit in limits]
    product = (root * of_format(limits)).cut()
    scaled = round_shift(product, of_format([limit.bit_length() for limit in limits]))
    scaled = scaled.assume(0, _MANTISSA)
    # Of a softmax the values have 7 fraction bits more than the least exponent.
    frac = mux(given.softmax, given.least + 7, given.fraction)
    scale = multiply(
        Scale(mantissa, given.z + frac),
        Scale(
            of_format([int(one.mantissa) for one in inverses]),
            of_format([int(one.exponent) for one in inverses]),
        ),
    )
    exponent = mux(given.top == 0, 0, scale.exponent)
    scale = Scale(scale.mantissa, exponent)
    if factors:
        parts = zip(factor, scale, strict=True)
        scale = Scale(*(mux(given.rooted, one, other) for one, other in parts))
    by = mux(given.norm, root, scaled) if norms else scaled
    return ScalarOutputs(by, half, scale, given.total)


def normalising_shift(top: Signal, largest: Signal) -> Signal:
    """``min(24 - bit_length(top), largest)``."""
    return smaller(SCALE_BITS - bit_length(top), largest)
