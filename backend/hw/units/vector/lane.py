"""One lane of the vector unit: every elementwise datapath, folded onto two multipliers and a table.

    element -> normalise -> multiply -> shift -> table -> multiply -> shift -> add -> code

Which of the stages an operation uses, and with what operands, is said by `LaneControl`, which goes
with the row: all lanes share its registers, which are outside (`ControlPorts`). The arithmetic is
that of `dialects.semantics`, in the pieces of `backend/hw/wires/datapaths.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import NamedTuple

from intaglio.backend.hw.units.vector.encode import GATE_TABLES, PLAIN, OfBlocks
from intaglio.backend.hw.units.vector.operations import (
    LANE_SETTINGS,
    LAYER_NORM,
    NORMS,
    QUANTIZE,
    QUANTIZE_BLOCKS,
    QUANTIZE_STATIC,
    RMS_SCALE,
    ROTARY,
    SAMPLE,
    SOFTMAX,
    SOFTMAX_PLACES,
    TAP,
    WEIGH,
    WEIGH_ONTO,
)
from intaglio.backend.hw.units.vector.tables import SharedTable
from intaglio.backend.hw.wires.datapaths import (
    Fixed,
    bit_length,
    e4m3_encode,
    round_shift,
    saturate,
    shift_normal,
)
from intaglio.backend.hw.wires.reader import Wires
from intaglio.backend.hw.wires.signal import (
    Design,
    Follow,
    ModuleBuilder,
    Operand,
    Signal,
    cat,
    larger,
    mux,
    pipelined,
    smaller,
)
from intaglio.dialects.fixed_point import FIXED_BITS, SCALE_BITS
from intaglio.dialects.formats import PLACES
from intaglio.dialects.formulas.blocks import (
    LARGEST_EXPONENT,
    REACH,
    THIRDS,
    THIRDS_PLACES,
    WIDE_PLACES,
)
from intaglio.dialects.formulas.products import ROTARY_FRAC
from intaglio.dialects.formulas.softmax import BYTE, WEIGHT_BITS, byte_at, place_of
from intaglio.dialects.memories import CODE_BITS, EXPONENT_BITS
from intaglio.dialects.tables import ARGUMENT_FRAC, GATE_FRAC, WHOLE, table

_QUANTIZE = frozenset({QUANTIZE, QUANTIZE_STATIC})
_SCALED = frozenset({QUANTIZE, SOFTMAX})


@dataclass(frozen=True)
class Features:
    """What of the unit is built."""

    operations: frozenset[str]
    gate_tables: frozenset[str]
    formats: tuple[str, ...]
    rotary_fraction: int = ROTARY_FRAC
    """Fraction bits of cosines and sines."""
    blocks: OfBlocks = PLAIN
    """The codes with an exponent a block."""

    def has(self, *operations: str) -> bool:
        """Whether one of the operations is there."""
        return not self.operations.isdisjoint(operations)

    def sets(self, flag: str) -> bool:
        """Whether an elementwise operation needs what the flag of `LaneControl` switches."""
        return self.has(*(name for name, flags in LANE_SETTINGS.items() if flag in flags))

    @property
    def top_bits(self) -> int:
        """Width of what maxima are taken of, signed; its least value is no element's."""
        return 48 if self.has(LAYER_NORM) else 33

    @property
    def second_bits(self) -> int:
        """Width of the second constant, signed; a share is a little more than 2**24 at most."""
        return 26 if self.has(WEIGH, WEIGH_ONTO) else 25

    @property
    def lane_tables(self) -> tuple[str, ...]:
        """Tables of a lane: of the gates in the order of `GATE_TABLES`, then that of softmax."""
        gates = tuple(name for name in GATE_TABLES if name in self.gate_tables)
        return (*gates, "exp2") if self.has(SOFTMAX) else gates


@dataclass(frozen=True)
class LaneControl:
    """What a lane does with a row.

    Attributes:
        squared: the sum of squares: a normalised element by itself.
        rooted: a norm's factor alone: each element is normalised by itself.
        normed: a norm's result: normalised element, factor, weight.
        scaled: a quantisation's code: normalised element, factor.
        turned: rotary.
        capped: softcap.
        weighted: softmax's numerators and their products with the values' scales.
        placed: these products are bytes at places.
        gated: element times table.
        bare: table times constant.
        odd: the table's other side is ``-G(x)`` instead of ``1 - G(x)``.
        even: the table's other side is ``G(x)`` itself.
        whole: the table is of both signs, or of the negative one (mish, elu).
        joined: the first product, of the element where it is positive, is added (softplus, elu).
        rectified: negative elements count as 0.
        doubled: element by itself (relu2).
        bounded: the element alone, between two bounds (clip).
        paired: element by the second operand (mul).
        tapped: element by the first constant (tap).
        added: the second operand is added.
        offset: the second constant is added.
        coded: saturation is that of a code.
        blocked: the code's step is that of the element's block.
        floating: the code is E4M3.
        counted: saturations count.
        ranged: the maximum is of magnitudes.
        leaving: the maximum is of the magnitudes of the results.
        first, first_shift, second, second_shift: constants and shifts of the two products.
        gate_shift: fraction bits of an element that the table's argument lacks (negative) or has
            too many.
        lane_table: number of the table.
        elements: what an element is multiplied with before the mean is taken off.
        low, high: range of the code.
    """

    squared: Signal
    rooted: Signal
    normed: Signal
    scaled: Signal
    turned: Signal
    capped: Signal
    weighted: Signal
    placed: Signal
    gated: Signal
    bare: Signal
    odd: Signal
    even: Signal
    whole: Signal
    joined: Signal
    rectified: Signal
    doubled: Signal
    bounded: Signal
    paired: Signal
    tapped: Signal
    added: Signal
    offset: Signal
    coded: Signal
    blocked: Signal
    floating: Signal
    counted: Signal
    ranged: Signal
    leaving: Signal
    first: Signal
    first_shift: Signal
    second: Signal
    second_shift: Signal
    gate_shift: Signal
    lane_table: Signal
    elements: Signal
    low: Signal
    high: Signal


class LaneInputs(NamedTuple):
    """What changes from beat to beat.

    Attributes:
        x: the element (rotary: its partner); a score.
        y: the second operand (rotary: the element).
        cos: first constant: cosine, weight of a norm.
        sin: second constant: sine, offset of a norm.
        valid: the lane holds an element.
        value_mantissa, value_exponent: scale of the score's value.
        turning: the element turns.
        negative: its partner's product is subtracted.
        z: normalising shift of the group.
        factor, half: what the scalar unit gave.
        top: largest score.
        least: least exponent.
        centre: sum of the elements of which the mean is taken off.
        places, three_quarters: exponent and step of the element's block.
        most, to_even: its largest code, and whether its codes are rounded to even; exist where this
            is told of blocks.
    """

    x: Signal
    y: Signal
    cos: Signal
    sin: Signal
    valid: Signal
    value_mantissa: Signal
    value_exponent: Signal
    turning: Signal
    negative: Signal
    z: Signal
    factor: Signal
    half: Signal
    top: Signal
    least: Signal
    centre: Signal
    places: Signal
    three_quarters: Signal
    most: Signal
    to_even: Signal


_INPUTS: Mapping[str, tuple[int, bool]] = {
    "x": (FIXED_BITS, True),
    "y": (FIXED_BITS, True),
    "cos": (FIXED_BITS, True),
    "sin": (FIXED_BITS, True),
    "valid": (1, False),
    "value_mantissa": (24, False),
    "value_exponent": (EXPONENT_BITS, True),
    "turning": (1, False),
    "negative": (1, False),
    "z": (7, True),
    "factor": (24, False),
    "half": (6, True),
    "top": (FIXED_BITS, True),
    "least": (EXPONENT_BITS, True),
    "centre": (46, True),
    "places": (6, False),
    "three_quarters": (1, False),
    "most": (WIDE_PLACES, False),
    "to_even": (1, False),
}
_CONTROL: Mapping[str, tuple[int, bool]] = {
    "first": (25, True),
    "first_shift": (10, True),
    "second_shift": (10, True),
    "gate_shift": (7, True),
    "lane_table": (len(GATE_TABLES).bit_length(), False),
    "elements": (15, False),
    "low": (17, True),
    "high": (17, True),
}


def build_lane(design: Design, features: Features, depth: int) -> ModuleBuilder:
    """The module `vector_lane`.

    Inputs are those of `LaneInputs` and `LaneControl`, and of the latter again, as `<name>_at<k>`,
    what they were k cycles before, as far as the lane needs it. `depth` cycles later come `word`
    (Fixed), `code`, `saturated` (how many places), and what is reduced over the lanes: `top`,
    `part` (of sums), and `used`, the exponent of a value that has a say in the least one.
    """

    def build(m: ModuleBuilder) -> None:
        given = [m.input(name, *_INPUTS[name]) for name in inputs_of(features)]
        kinds = {one.name: _CONTROL.get(one.name, (1, False)) for one in fields(LaneControl)}
        kinds["second"] = features.second_bits, True
        control = [m.input(name, *kind) for name, kind in kinds.items()]

        def datapath(*inputs: Signal) -> tuple[Signal, ...]:
            beat, rest = inputs[: len(given)], inputs[len(given) :]
            named = dict.fromkeys(_INPUTS, beat[0].module.constant(0))
            named |= dict(zip(inputs_of(features), beat, strict=True))
            return _datapath(LaneInputs(**named), LaneControl(*rest), features)

        def before(name: str) -> Follow:
            return lambda cycles: m.input(f"{name}_at{cycles}", *kinds[name])

        follow = {len(given) + i: before(name) for i, name in enumerate(kinds)}
        outputs = pipelined(datapath, [*given, *control], depth, follow=follow).outputs
        names = ("word", "code", "saturated", "top_part", "sum_part", "used")
        for name, signal in zip(names, outputs, strict=True):
            m.output(name, signal)

    return design.shared("vector_lane", build)


class ControlPorts:
    """The registers of `LaneControl`, which all lanes share."""

    def __init__(self, lane: ModuleBuilder, control: Mapping[str, Signal]) -> None:
        """Registers as many as the lanes take.

        Args:
            lane: the module.
            control: in the cycle of the beat; what is not given is 0.
        """
        self.connections: dict[str, Operand] = {}
        names = {one.name for one in fields(LaneControl)}
        late: dict[str, list[int]] = {}
        ports = {port.name for port in lane.ports if not port.output}
        for name in ports:
            root, _, cycles = name.rpartition("_at")
            if name in names:
                self.connections[name] = control.get(name, 0)
            elif root in names and cycles.isdigit():
                late.setdefault(root, []).append(int(cycles))
        for name in sorted(late):
            signal = control.get(name)
            for cycles in range(1, max(late[name]) + 1):
                if signal is not None:
                    signal = signal.delay(name=f"{name}_at{cycles}")
                if cycles in late[name]:
                    self.connections[f"{name}_at{cycles}"] = 0 if signal is None else signal


def inputs_of(features: Features) -> list[str]:
    """The `LaneInputs` that a lane has."""
    absent = {"most": not features.blocks.wide, "to_even": not features.blocks.both}
    return [name for name in _INPUTS if not absent.get(name)]


def lane_inputs(inputs: Mapping[str, Operand], features: Features) -> dict[str, Operand]:
    """The connections of a lane's `LaneInputs`; what is not given is 0."""
    return {name: inputs.get(name, 0) for name in inputs_of(features)}


def _datapath(given: LaneInputs, control: LaneControl, features: Features) -> tuple[Signal, ...]:
    zero = given.x.module.constant(0)
    x = given.x

    # Normalise
    v = x
    if features.has(LAYER_NORM):
        most = 1 << (FIXED_BITS + 14)
        v = ((x * control.elements).cut() - given.centre).assume(-most, most)
    xs, z = x, given.z.assume(-40, 24)
    shorter = zero
    if features.has(RMS_SCALE):
        shorter = bit_length(abs(x) >> SCALE_BITS)
        z = mux(control.rooted, -shorter, z)
    if features.has(*NORMS, *_SCALED, RMS_SCALE):
        xs = shift_normal(v, z).cut()

    # First product
    first = zero
    capped = features.sets("capped")
    joined = features.sets("joined")
    if capped or joined or features.has(*NORMS, ROTARY):
        left, right = x, control.first
        if joined:
            left = mux(control.joined, larger(x, 0), left)
        if features.has(ROTARY):
            sine = given.sin.assume(-(1 << 16), 1 << 16)
            sine = mux(given.negative, -sine, sine)
            right = mux(control.turned, mux(given.turning, sine, 0), right)
        if features.has(*NORMS):
            left, right = mux(control.normed, xs, left), mux(control.normed, given.factor, right)
        first = (left * right).cut()
    shifted = zero
    if capped or features.has(*NORMS):
        shift = control.first_shift
        if features.has(*NORMS):
            shift = mux(control.normed, given.half + 15, shift)
        shifted = _shift_saturate(first, shift).value.cut()

    # Table
    g = zero
    if features.lane_tables:
        g = _table(given, control, features, shifted)

    # Second product
    a, b = _second_operands(given, control, features, xs=xs, shifted=shifted, gate=g)
    second = (a * b).cut()
    q = second
    if joined or features.has(ROTARY):
        other = mux(control.turned | control.joined, first, 0)
        q = (second + other).assume(-(1 << 63), (1 << 63) - 1)

    # Shift, add
    shift = control.second_shift
    if features.has(SOFTMAX):
        places = smaller(larger(given.value_exponent - given.least, 0), 32) + 17
        if features.has(SOFTMAX_PLACES):
            places = places + mux(control.placed, WEIGHT_BITS - 17, 0)
        shift = mux(control.weighted, places, shift)
    if features.sets("bounded"):
        shift = mux(control.bounded, control.gate_shift, shift)
    if features.has(QUANTIZE_BLOCKS):
        shift = mux(control.blocked, given.places + THIRDS_PLACES, shift)
    y = _shift_saturate(q, shift)
    word, count = y.value, y.saturated
    if features.sets("bounded"):
        low = control.first << smaller(larger(control.first_shift, 0), 8)
        high = control.second << smaller(larger(control.second_shift, 0), 8)
        inside = larger(smaller(word, high), low).assume(-(1 << 31), (1 << 31) - 1)
        word = mux(control.bounded, inside, word)
    if features.sets("added") or features.has(LAYER_NORM, TAP):
        term = mux(control.added, given.y, mux(control.offset, given.sin, 0))
        total = saturate(word.cut() + term)
        word, count = total.value, count + total.saturated

    code, count = _code(given, control, features, y.value, count)
    square = second.assume(0, (1 << 48) - 1) if features.has(*NORMS, RMS_SCALE) else zero
    if features.has(RMS_SCALE):
        square = mux(control.rooted, square << (shorter << 1), square)
    reduced = _reduced(given, control, features, v=v, word=word, square=square, gate=g)
    return word, code, count, *reduced


def _second_operands(
    given: LaneInputs,
    control: LaneControl,
    features: Features,
    *,
    xs: Signal,
    shifted: Signal,
    gate: Signal,
) -> tuple[Signal, Signal]:
    """What the second product multiplies.

    Args:
        given: inputs of the lane.
        control: what steers it.
        features: what the program uses.
        xs: the element, normalised.
        shifted: the first product.
        gate: the table's value.
    """
    x = given.x
    a, b = x, control.second
    if features.has(QUANTIZE, SOFTMAX):
        a, b = mux(control.scaled, xs, a), mux(control.scaled, given.factor, b)
    if features.has(*NORMS):
        a, b = mux(control.normed, shifted, a), mux(control.normed, given.cos, b)
    if features.has(*NORMS, RMS_SCALE):
        a, b = mux(control.squared, xs, a), mux(control.squared, xs, b)
    if features.has(ROTARY):
        cosine = mux(given.turning, given.cos, 1 << features.rotary_fraction)
        a, b = mux(control.turned, given.y, a), mux(control.turned, cosine, b)
    if features.sets("rectified"):
        rectified = larger(x, 0)
        a = mux(control.rectified, rectified, a)
        b = mux(control.doubled, rectified, b)
    if features.sets("bounded"):
        b = mux(control.bounded, 1, b)
    if features.sets("tapped"):
        b = mux(control.tapped, given.cos, b)
    if features.sets("paired"):
        b = mux(control.paired, given.y, b)
    if features.sets("bare"):
        a = mux(control.bare, gate, a)
    if features.sets("gated"):
        b = mux(control.gated, gate, b)
    if features.has(SOFTMAX):
        a, b = mux(control.weighted, gate, a), mux(control.weighted, given.value_mantissa, b)
    if features.has(QUANTIZE_BLOCKS):
        step = mux(given.three_quarters, THIRDS, 1 << THIRDS_PLACES)
        b = mux(control.blocked, step, b)
    return a, b


def _code(
    given: LaneInputs, control: LaneControl, features: Features, value: Signal, count: Signal
) -> tuple[Signal, Signal]:
    """The code of a scaled element, and how many places saturated; `count` did before it."""
    code = given.x.module.constant(0)
    if features.has(*_QUANTIZE, SOFTMAX, QUANTIZE_BLOCKS):
        t = value.cut()
        if features.has(QUANTIZE_BLOCKS) and (features.blocks.steps == 1 or features.blocks.both):
            # What lay in the middle of two codes has been rounded up.
            step = given.x.module.constant(1) << given.places.assume(0, LARGEST_EXPONENT)
            middle = (given.x.as_unsigned() & (step - 1)) == (step >> 1)
            odd = control.blocked & given.places.any() & middle & t[0]
            t = t - (odd & given.to_even if features.blocks.both else odd)
        low, high = control.low, control.high
        if features.blocks.wide:
            low, high = (
                mux(control.blocked, -given.most, low),
                mux(control.blocked, given.most, high),
            )
        over, under = t > high, t < low
        code = mux(over, high, mux(under, low, t.truncate(17, True)))
        code = code.truncate(CODE_BITS)
        clipped = over | under
        if "fp8" in features.formats:
            code = mux(control.floating, e4m3_encode(t, 8), code)
            clipped = mux(control.floating, abs(t) > 464 << 17, clipped)
        if features.has(SOFTMAX_PLACES):
            r = Wires(given.x.module)
            most = (1 << WEIGHT_BITS) - 1
            weight = larger(smaller(t, most), 0).assume(0, most)
            place = place_of(r, weight).assume(0, PLACES[-1])
            byte = byte_at(r, weight, place).assume(0, BYTE)
            placed = cat((place >> 2).extend(3), byte.as_unsigned().truncate(8))
            code = mux(control.placed, placed.extend(CODE_BITS), code)
        code = mux(given.valid, code, 0)
        if features.has(QUANTIZE_BLOCKS):
            beyond = (abs(given.x) >> (control.gate_shift + REACH).assume(0, 63)).any()
            count = mux(control.blocked, beyond, count)
        if features.has(QUANTIZE_STATIC):
            count = mux(control.coded, clipped, count)
    return code, mux(given.valid & control.counted, count, 0)


def _reduced(
    given: LaneInputs,
    control: LaneControl,
    features: Features,
    *,
    v: Signal,
    word: Signal,
    square: Signal,
    gate: Signal,
) -> tuple[Signal, Signal, Signal]:
    """What is reduced over the lanes: for the maximum, for the sum, and the exponent in use.

    Args:
        given: inputs of the lane.
        control: what steers it.
        features: what the program uses.
        v: the element, less the mean where the norm is one of layers.
        word: the result.
        square: of the element, as sums of squares take it.
        gate: the table's value.
    """
    x = given.x
    least = -(1 << FIXED_BITS)
    top = part = used = zero = x.module.constant(0)
    if features.has(*NORMS, *_SCALED, SAMPLE):
        top = mux(control.ranged, abs(v), x)
        if features.has(*NORMS, QUANTIZE):
            top = mux(control.leaving, abs(word), top)
        if features.has(SOFTMAX):
            top = mux(control.weighted, word, top)
        top = mux(given.valid, top, least)
    if features.has(*NORMS, SOFTMAX, RMS_SCALE):
        part = x if features.has(LAYER_NORM) else zero
        if features.has(*NORMS, RMS_SCALE):
            part = mux(control.squared, square, part)
        if features.has(SOFTMAX):
            part = mux(control.weighted, gate.assume(0, (1 << 24) - 1), part)
        part = mux(given.valid, part, 0)
    if features.has(SOFTMAX):
        far = (1 << (EXPONENT_BITS - 1)) - 1
        used = mux(given.valid & given.value_mantissa.any(), given.value_exponent, far)
    return top, part, used


def _table(given: LaneInputs, control: LaneControl, features: Features, shifted: Signal) -> Signal:
    """The table's value, with the sign's part: of a magnitude, or of a distance from the top."""
    x = given.x
    zero = x.module.constant(0)
    names = features.lane_tables
    negative, argument, distance = zero, zero, zero
    if features.gate_tables:
        source = x
        if features.sets("capped"):
            source = mux(control.capped, shifted, x)
        negative = source < 0
        size = abs(source)
        if features.sets("whole"):
            size = mux(control.whole, source, size)
        size = size.cut()
        # The argument has 16 fraction bits; an element 12 to 20, as a rule.
        right = smaller(larger(control.gate_shift, 0), 16)
        left = smaller(larger(-control.gate_shift, 0), 16)
        argument = mux(control.gate_shift < 0, size << left, round_shift(size, right))
        if features.sets("whole"):
            argument = argument + mux(control.whole, WHOLE << ARGUMENT_FRAC, 0)
            argument = larger(argument, 0)
    if features.has(SOFTMAX):
        distance = (given.top - x).truncate(33)
        argument = mux(control.weighted, distance[:16], argument)
    tables = SharedTable("lane", tuple(table(name) for name in names))
    value = tables.lookup(control.lane_table, argument.cut()).cut()
    g = zero
    if features.gate_tables:
        one = 1 << GATE_FRAC
        part = value.assume(0, one)
        other = mux(control.odd, -part, one - part)
        if features.sets("even"):
            other = mux(control.even, part, other)
        g = mux(negative, other, part)
    if features.has(SOFTMAX):
        # Beyond 25 places nothing of 24 bits is left.
        p = round_shift(value, smaller(distance[16:], 25))
        g = mux(control.weighted, mux(given.valid, p, 0), g)
    return g.cut()


def _shift_saturate(x: Signal, places: Signal) -> Fixed:
    """`datapaths.shift_saturate` on no more wires than `x` has."""
    right = smaller(larger(places, 0), 64)
    left = smaller(larger(-places, 0), FIXED_BITS)
    down = x >> larger(right - 1, 0)
    down = mux(right == 0, down, (down + 1) >> 1)
    first = saturate(down.cut())
    second = saturate(first.value << left)
    return Fixed(second.value, first.saturated | second.saturated)
