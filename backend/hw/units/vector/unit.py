"""The vector unit: norms, quantisation, rotary embedding, activations, softmax, arg-max.

`Machine.vector_lanes` lanes (`lane.py`), trees for maxima and sums, one scalar table unit
(`tables.py`), and a sequencer of passes. One instruction runs at a time; what it is comes as
the fields of its descriptor (`encode.py`), with a pulse on `start`.

A pass takes a beat a cycle: the addresses in cycle a, the operands from the memories in a + 1, the
result to a memory in cycle a + vector_pipeline - 1. A reducing pass leaves one value a group,
`vector_reduce` cycles later. Before the last pass the scalar unit takes a group a cycle, with
`table_lookup` cycles of delay. `lowering/schedule/durations.py` counts the same cycles.

| operation        | passes                                                                     |
|------------------|----------------------------------------------------------------------------|
| elementwise      | result                                                                     |
| rotary           | result; the partners come through the first port and the lane exchange     |
| quantize         | largest magnitude; (scalars) codes                                         |
| quantize, static | codes                                                                      |
| rms_norm         | largest magnitude; sum of squares; (scalars) result                        |
| layer_norm       | sum; then as rms_norm                                                      |
| softmax          | largest score and least exponent; numerators, their sum and the largest    |
|                  | product with a value's scale, products back into the score memory;         |
|                  | (scalars) codes                                                            |
| sample           | largest element and its index                                              |

Restrictions: the lanes are a power of two; several groups in an instruction are a multiple of the
lanes wide, or divide them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from intaglio.backend.hw.units.refusals import refuse
from intaglio.backend.hw.units.vector.encode import FIELDS, FORMAT_CODES, GATE_TABLES
from intaglio.backend.hw.units.vector.lane import Features, build_lane, lane_inputs
from intaglio.backend.hw.units.vector.operations import (
    LANE_SETTINGS,
    LAYER_NORM,
    NORMS,
    OPERATIONS,
    QUANTIZE,
    QUANTIZE_STATIC,
    ROTARY,
    SAMPLE,
    SOFTMAX,
)
from intaglio.backend.hw.units.vector.shape import VectorShape, machine_refusals
from intaglio.backend.hw.units.vector.tables import (
    ScalarInputs,
    SharedTable,
    normalising_shift,
    scalars,
)
from intaglio.backend.hw.wires.signal import (
    Design,
    ModuleBuilder,
    Operand,
    Register,
    Signal,
    Wire,
    Write,
    add_all,
    cat,
    mux,
    pipelined,
    smaller,
    tree,
)
from intaglio.dialects import memories
from intaglio.dialects.codes import FORMATS
from intaglio.dialects.fixed_point import FIXED_BITS
from intaglio.dialects.machine import Machine
from intaglio.dialects.tables import table

SUM_BITS = 63
"""Width of a sum, signed."""

_FAR = (1 << (memories.EXPONENT_BITS - 1)) - 1


def build_vector(design: Design, machine: Machine, shape: VectorShape) -> ModuleBuilder:
    """The module `vector`.

    Inputs: `start` with all `FIELDS` and `position` in the same cycle; the data of the memories,
    one cycle after their addresses (`vector0_data`, `vector1_data`, `constant0_data`,
    `constant1_data`, `score_data`, `value_scale_data`: mantissa in bits 0 to 23, exponent above,
    32 bits a lane; lane 0 lowest).

    Outputs: the addresses; the write ports `vector_write` and `score_write` (32 bits a lane),
    `code_write` (quantised vectors) and `probability_write` (16 bits a lane), each with
    `_address`, `_data`, `_enable`, and `vector_write_mask` (a bit a lane); `scale_enable` and
    `probability_scale_enable` with `scale_address`, `scale_mantissa`, `scale_exponent` and
    `scale_total`; `saturated`, how many places saturated in this cycle; `done` in the last cycle
    of the instruction; `token` from the finish of a `sample` on, with `token_valid` in its first
    cycle.

    Raises:
        UserError: `machine_refusals`.
    """
    refuse(machine_refusals(machine))

    def build(m: ModuleBuilder) -> None:
        _Vector(design, m, machine, shape).build()

    return design.shared("vector", build)


@dataclass(eq=False)
class _Beat:
    """What goes with a beat, in the cycle of its addresses."""

    row: Signal
    mask: list[Signal]
    exchange: Signal
    turning: Signal
    negative: Signal


class _Vector:
    def __init__(
        self, design: Design, m: ModuleBuilder, machine: Machine, shape: VectorShape
    ) -> None:
        self.design, self.m, self.machine, self.shape = design, m, machine, shape
        self.lanes = machine.vector_lanes
        self.lane_bits = self.lanes.bit_length() - 1
        self.features = Features(
            shape.operations, shape.gate_tables, shape.formats, shape.rotary_fraction
        )

    def build(self) -> None:
        m = self.m
        self.start = m.input("start", 1)
        position_bits = max(1, self.shape.positions.bit_length())
        self.position_now = position = m.input("position", position_bits)
        self.raw = {one.name: m.input(one.name, one.width, one.signed) for one in FIELDS.fields}
        self.fields = {
            name: signal.delay(enable=self.start, name=f"of_{name}")
            for name, signal in self.raw.items()
        }
        self.position = position.delay(enable=self.start, name="at_position")
        self.decode()
        self.sequence()
        beat = self.beat()
        self.memories(beat)
        self.reduce()
        self.results(beat)

    # Instruction

    def operation(self, *operations: str) -> Signal:
        """1 while one of the operations runs; constant when the unit has none of them."""
        code = self.fields["operation"]
        found = self.m.constant(0)
        for name in operations:
            if name in self.shape.operations:
                found = found | (code == OPERATIONS.index(name))
        return found

    def decode(self) -> None:
        """Number of the last pass, and the attended rows of a softmax."""
        m = self.m
        self.softmax = self.operation(SOFTMAX)
        self.norm = self.operation(*NORMS)
        self.layer = self.operation(LAYER_NORM)
        self.rotary = self.operation(ROTARY)
        self.sample = self.operation(SAMPLE)
        self.quantize = self.operation(QUANTIZE)
        last = mux(self.layer, 3, mux(self.norm | self.softmax, 2, mux(self.quantize, 1, 0)))
        self.last_pass = last.extend(2)
        # From the inputs themselves: the first beat comes in the next cycle.
        softmax = self.raw["operation"] == OPERATIONS.index(SOFTMAX)
        if not self.features.has(SOFTMAX):
            softmax = m.constant(0)
        position, window = self.position_now, self.raw["window"]
        seen = position + 1 - window
        first = mux(softmax & (window != 0) & (seen > 0), seen.truncate(position.width), 0)
        first_row, last_row = first >> self.lane_bits, position >> self.lane_bits
        attended = (last_row - first_row).truncate(16) + 1
        beats = mux(softmax, attended.truncate(16), self.raw["beats"])
        self.new_row = mux(softmax, first_row, 0).extend(20)
        self.first = first.delay(enable=self.start, name="first_token")
        self.first_row = self.new_row.delay(enable=self.start, name="first_row")
        self.beats = beats.delay(enable=self.start, name="beats_of_group")
        base = self.raw["position_rows"] * position
        self.position_row = (
            base.truncate(20).delay(enable=self.start, name="position_row")
            if self.features.has(ROTARY)
            else m.constant(0)
        )

    # Passes

    def flag(self, name: str, set_: Signal, clear: Signal) -> Register:
        register = self.m.register(name, 1)
        register.drive(mux(set_, 1, mux(clear, 0, register)))
        return register

    def sequence(self) -> None:
        """The state: issuing beats, waiting, looking up; the place within the pass."""
        m, machine = self.m, self.machine
        reduced = machine.vector_pipeline + machine.vector_reduce
        last = machine.vector_pipeline - 1
        sampled = last + machine.vector_reduce + machine.sample
        left_bits = max(reduced, sampled, machine.table_lookup).bit_length()

        begin, end = m.wire("begin_pass", 1), m.wire("end_of_pass", 1)
        look_begin, look_end = m.wire("begin_lookups", 1), m.wire("end_of_lookups", 1)
        waited = m.wire("waited", 1)
        issuing = self.flag("issuing", begin, end)
        looking = self.flag("looking", look_begin, look_end)
        looked = self.flag("looked", look_end, begin)
        number = m.register("pass_number", 2)
        number.drive(mux(self.start, 0, mux(begin, (number + 1).truncate(2), number)))
        final = number == self.last_pass
        pausing = look_end if machine.table_lookup > 1 else m.constant(0)
        waiting = self.flag("waiting", end | pausing, waited)
        finishing = self.flag("finishing", end & final, waited)
        left = m.register("left", left_bits)
        length = mux(final, mux(self.sample, sampled, last), reduced)
        wait = mux(pausing, machine.table_lookup - 1, mux(end, length, left - 1))
        left.drive(wait.truncate(left_bits))
        waited.assign(waiting & (left == 1))
        before_last = (number + 1) == self.last_pass
        again = waited & ~finishing
        look_begin.assign(again & before_last & ~looked)
        resumed = again & (looked | ~before_last)
        if machine.table_lookup == 1:
            resumed = resumed | look_end
        begin.assign(self.start | resumed)
        self.issuing, self.looking, self.number, self.final = issuing, looking, number, final
        self.done = (waited & finishing).named("done")

        # Beat within the group, group, first word of the group in a buffer without gaps.
        fields = self.fields
        j, g = m.register("beat", 16), m.register("group", 12)
        word = m.register("group_word", 20 + self.lane_bits)
        linear = m.register("linear_beat", 20)
        last_beat = (j + 1) == self.beats
        last_group = (g + 1) == fields["groups"]
        end.assign(issuing & last_beat & last_group)
        look_end.assign(looking & last_group)
        over = end | look_end
        step = (issuing & last_beat) | looking
        j.drive(mux(issuing & ~last_beat, (j + 1).truncate(16), 0))
        g.drive(mux(self.start | over, 0, mux(step, (g + 1).truncate(12), g)))
        origin = mux(self.start, self.new_row, self.first_row) << self.lane_bits
        further = (word + fields["group_words"]).truncate(word.width)
        fresh = self.start | over
        word.drive(mux(fresh, origin.truncate(word.width), mux(step, further, word)))
        linear.drive(mux(fresh, 0, mux(issuing, (linear + 1).truncate(20), linear)))
        self.j, self.word, self.linear = j, word, linear
        self.group = g.truncate(self.group_bits)
        self.first_beat, self.last_beat, self.last_group = j == 0, last_beat, last_group

        # Query heads that share a key-value head read the same scales.
        self.scale_row: Signal = m.constant(0)
        if self.features.has(SOFTMAX):
            count, row = m.register("sharing", 8), m.register("scale_row", 20)
            turn = step & ((count + 1) == fields["shared"])
            count.drive(mux(fresh | turn, 0, mux(step, (count + 1).truncate(8), count)))
            lower = (row + fields["scale_stride"]).truncate(20)
            row.drive(mux(fresh, 0, mux(turn, lower, row)))
            self.scale_row = row

    # Addresses

    def beat(self) -> _Beat:
        """The beat of this cycle."""
        fields, bits = self.fields, self.lane_bits
        row = ((self.word >> bits) + self.j).truncate(20).named("row")
        offset = self.word[:bits]
        turning = self.j < fields["turning_rows"]
        halves = fields["half_rows"]
        first_half = self.j < halves
        exchange = mux(self.rotary, fields["exchange"].truncate(bits), offset)
        exchange = mux(self.norm, 0, exchange).extend(bits)

        ends = self.last_beat & (~self.rotary | self.last_group)
        count = mux(ends, fields["lanes"], self.lanes)
        shift = mux(self.norm, offset, 0).extend(bits)
        token = ((self.first_row + self.j).truncate(20) << bits) if self.has_softmax else None
        mask: list[Signal] = []
        for lane in range(self.lanes):
            valid = (shift ^ lane).extend(bits).as_unsigned() < count
            if token is not None:
                here = token + lane
                seen = (here >= self.first) & (here <= self.position)
                valid = mux(self.softmax, seen, valid)
            mask.append(valid & self.issuing)

        partner = self.m.constant(0)
        if self.features.has(ROTARY):
            moved = self.rotary & turning
            partner = mux(moved, mux(first_half, halves, -halves), 0)
        rows = self.shape.rows
        for name, field, more in (("vector0", "read0", partner), ("vector1", "read1", 0)):
            # The rows of a softmax are those of the score memory.
            self.address(name, rows, mux(self.softmax, 0, fields[field] + row + more))
        if self.features.has(ROTARY, *NORMS):
            within = mux(fields["constant_restart"], self.j, row)
            if self.features.has(ROTARY):
                folded = self.j - mux(first_half, 0, halves)
                folded = mux(turning, folded.truncate(16), 0) + self.position_row
                within = mux(self.rotary, folded, within)
            reads = self.rotary | self.norm
            # layer_norm without an offset has no second row.
            second = self.rotary | fields["offset"]
            for name, on in (("constant0", reads), ("constant1", reads & second)):
                where = mux(on, fields[name] + within, 0)
                self.address(name, self.shape.constant_rows, where)
        if self.has_softmax:
            here = mux(self.softmax, fields["read0"] + row, 0)
            self.address("score", self.shape.score_rows, here)
            scales = fields["constant0"] + self.scale_row + self.first_row + self.j
            wanted = self.softmax & ~fields["static_scale"]
            self.address("value_scale", self.shape.scale_rows, mux(wanted, scales, 0))
        negative = self.rotary & first_half & (halves != 0)
        return _Beat(row, mask, exchange, turning, negative)

    @property
    def has_softmax(self) -> bool:
        return self.features.has(SOFTMAX)

    def address(self, name: str, depth: int, value: Signal) -> None:
        bits = max(1, (depth - 1).bit_length())
        self.m.output(f"{name}_address", value.extend(max(value.width, bits)).truncate(bits))

    # Operands

    def lanes_of(self, name: str) -> list[Signal]:
        data = self.m.input(f"{name}_data", FIXED_BITS * self.lanes)
        return [data[FIXED_BITS * i : FIXED_BITS * (i + 1)] for i in range(self.lanes)]

    def memories(self, beat: _Beat) -> None:
        """The lanes, one cycle after the addresses, and the files of the groups."""
        m, features = self.m, self.features
        mask = [one.delay(name=f"lane{i}_valid") for i, one in enumerate(beat.mask)]
        exchange = beat.exchange.delay(name="exchange_now")
        x = _exchanged(self.lanes_of("vector0"), exchange)
        y = self.lanes_of("vector1")
        empty: list[Signal] = [m.constant(0)] * self.lanes
        constants = features.has(ROTARY, *NORMS)
        cos = self.lanes_of("constant0") if constants else empty
        sin = self.lanes_of("constant1") if constants else empty
        mantissa, exponent = empty, empty
        if features.has(SOFTMAX):
            scores, scales = self.lanes_of("score"), self.lanes_of("value_scale")
            x = [mux(self.softmax, score, one) for score, one in zip(scores, x, strict=True)]
            static = self.fields["static_scale"]
            first, shift = self.fields["first_mantissa"], self.fields["first_shift"]
            mantissa = [mux(static, first.truncate(24), one[:24]) for one in scales]
            exponent = [mux(static, shift, one[24:].as_signed()) for one in scales]
        self.files()
        shared: dict[str, Operand] = {
            "turning": beat.turning.delay(name="turning_now"),
            "negative": beat.negative.delay(name="negative_now"),
            "z": self.z,
            "factor": self.factor,
            "half": self.half,
            "top": self.top.truncate(FIXED_BITS, True),
            "least": self.least,
        }
        control = self.control()
        lane = build_lane(self.design, features, self.machine.vector_pipeline - 2)
        self.results_of_lanes: list[Mapping[str, Signal]] = []
        for i in range(self.lanes):
            own: dict[str, Operand] = {
                "x": x[i].as_signed(),
                "y": y[i].as_signed(),
                "cos": cos[i].as_signed(),
                "sin": sin[i].as_signed(),
                "valid": mask[i],
                "value_mantissa": mantissa[i],
                "value_exponent": exponent[i],
            }
            connected = lane_inputs({**own, **shared}, control)
            self.results_of_lanes.append(m.instance(f"lane{i}", lane, connected))

    def control(self) -> dict[str, Operand]:
        """`LaneControl` from the operation and the pass."""
        fields, final, op = self.fields, self.final, self.operation
        summing = self.number == (self.last_pass - 1).truncate(2)
        squared = self.norm & summing
        weighted = self.softmax & (self.number == 1)
        fmt = fields["number_format"]
        # E4M3 clips by itself.
        clipped = [name for name in self.shape.formats if name != "fp8"]
        low, high = (
            _selected(fmt, {FORMAT_CODES[n]: getattr(FORMATS[n], end) for n in clipped})
            for end in ("low", "high")
        )
        floating = self.m.constant(0)
        if "fp8" in self.shape.formats:
            floating = fmt == FORMAT_CODES["fp8"]
        # Tables of the lanes are those that the program needs, in the order of GATE_TABLES.
        names = self.features.lane_tables
        numbers = {
            code: names.index(name) for code, name in enumerate(GATE_TABLES) if name in names
        }
        chosen = _selected(fields["gate_table"], numbers) if numbers else self.m.constant(0)
        if self.has_softmax:
            chosen = mux(self.softmax, names.index("exp2"), chosen)
        elementwise = {
            flag: op(*(name for name, flags in LANE_SETTINGS.items() if flag in flags))
            for flag in sorted(frozenset[str]().union(*LANE_SETTINGS.values()))
        }
        return {
            **elementwise,
            "squared": squared,
            "normed": self.norm & final,
            "scaled": (self.softmax | self.quantize) & final,
            "turned": self.rotary,
            "weighted": weighted,
            "offset": self.layer & fields["offset"] & final,
            "coded": op(QUANTIZE_STATIC),
            "floating": floating,
            "counted": elementwise["counted"] | op(ROTARY, QUANTIZE_STATIC) | (self.norm & final),
            "ranged": self.norm | self.quantize,
            "first": fields["first_mantissa"],
            "first_shift": fields["first_shift"],
            "second": fields["second_mantissa"],
            "second_shift": fields["second_shift"],
            "gate_shift": fields["fraction"],
            "lane_table": chosen,
            "elements": mux(self.layer & (self.number != 0), fields["elements"], 1),
            "centre": self.centre_value,
            "low": low,
            "high": high,
        }

    # Groups

    def files(self) -> None:
        """What is kept of each group: largest value and shift, sum, least exponent, scalars."""
        m, features = self.m, self.features
        constant = m.constant(0)
        self.writes = {name: m.wire(f"write_{name}", 1) for name in ("tops", "sums", "scalars")}
        self.write_group = m.wire("write_group", self.group_bits)
        scaled = features.has(*NORMS, QUANTIZE, SOFTMAX)
        self.z, self.top, self.total = constant, constant, constant
        self.factor, self.half, self.least = constant, constant, constant
        self.new: dict[str, Wire] = {}
        self.centre_value: Signal = constant
        if scaled:
            self.new["z"], self.new["top"] = (
                m.wire("new_z", 7, True),
                m.wire("new_top", features.top_bits, True),
            )
            word = self.file("tops", [self.new["z"], self.new["top"]], self.write_group)
            self.z, self.top = word[0].as_signed(), word[1].as_signed()
            self.new["factor"], self.new["half"] = (
                m.wire("new_factor", 24),
                m.wire("new_half", 6, True),
            )
            self.looked_up = m.wire("looked_up_group", self.group_bits)
            word = self.file("scalars", [self.new["factor"], self.new["half"]], self.looked_up)
            self.factor, self.half = word[0], word[1].as_signed()
        if features.has(*NORMS, SOFTMAX):
            self.new["sum"] = m.wire("new_sum", SUM_BITS, True)
            word = self.file("sums", [self.new["sum"]], self.write_group)
            self.total = word[0].as_signed()
        if features.has(SOFTMAX):
            self.new["least"] = m.wire("new_least", memories.EXPONENT_BITS, True)
            self.writes["least"] = m.wire("write_least", 1)
            word = self.file("least", [self.new["least"]], self.write_group)
            self.least = word[0].as_signed()
        if features.has(LAYER_NORM):
            centre = m.register("centre", 46, True)
            self.centre_register = centre
            self.centre_value = mux(self.layer & (self.number != 0), centre, 0)

    @property
    def group_bits(self) -> int:
        return max(1, (self.shape.groups - 1).bit_length())

    def file(self, name: str, parts: Sequence[Signal], group: Signal) -> list[Signal]:
        """A memory of a word a group, read at the group of this cycle; the parts of the word."""
        write = Write(group, cat(*reversed(parts)), self.writes[name])
        width = sum(part.width for part in parts)
        (word,) = self.m.ram(name, 1 << self.group_bits, width, [self.group], [write])
        split: list[Signal] = []
        place = 0
        for part in parts:
            split.append(word[place : place + part.width])
            place += part.width
        return split

    def later(self, signal: Signal, cycles: int, name: str, reset: int | None = None) -> Signal:
        return signal.delay(cycles, reset=reset, name=name)

    def reduce(self) -> None:
        """Trees over the lanes, accumulators over the beats of a group, the scalar unit."""
        m, machine, features = self.m, self.machine, self.features
        depth = machine.vector_reduce - 1
        front = machine.vector_pipeline - 1 + depth
        valid = self.later(self.issuing, front, "reduce_valid", 0)
        first = self.later(self.first_beat, front, "reduce_first")
        last = self.later(self.issuing & self.last_beat, front, "reduce_last", 0)
        group = self.later(self.group, front + 1, "reduce_group")
        over = last.delay(reset=0, name="group_over")
        self.write_group.assign(group)
        results = self.results_of_lanes
        final, softmax, number = self.final, self.softmax, self.number
        summing = number == (self.last_pass - 1).truncate(2)
        squared = self.norm & summing
        zero = m.constant(0)

        top_value: Signal = zero
        if features.has(*NORMS, QUANTIZE, SOFTMAX, SAMPLE):
            width = features.top_bits
            tops = [one["top_part"] for one in results]
            indexed = features.has(SAMPLE)

            def maximum(*parts: Signal) -> tuple[Signal, ...]:
                pairs = [
                    (part, part.module.constant(i if indexed else 0))
                    for i, part in enumerate(parts)
                ]
                while len(pairs) > 1:
                    pairs = [
                        _later_if_larger(a, b) for a, b in zip(pairs[::2], pairs[1::2], strict=True)
                    ]
                return pairs[0]

            value, index = pipelined(maximum, tops, depth).outputs
            best = m.register("top", width, True)
            better = first | (value > best)
            best.drive(mux(better, value, best), valid)
            top_value = best
            if indexed:
                beat = self.later(self.linear, front, "reduce_beat")
                where = m.register("top_index", 32)
                token = ((beat << self.lane_bits) + index).truncate(32)
                where.drive(mux(better, token, where), valid)
                self.token = where
        if features.has(*NORMS, QUANTIZE, SOFTMAX):
            self.new["top"].assign(top_value)
            size = top_value.assume(0, (1 << (features.top_bits - 1)) - 1)
            shift = normalising_shift(size, self.fields["largest_shift"])
            self.new["z"].assign(shift.truncate(7, True))
            ranged = (self.norm & (number == (self.last_pass - 2).truncate(2))) | (
                self.quantize & ~final
            )
            self.writes["tops"].assign(over & (ranged | (softmax & ~final)))
        else:
            self.writes["tops"].assign(0)

        if "sum" in self.new:
            parts = [one["sum_part"] for one in results]

            def total_of(*given: Signal) -> Signal:
                return tree(given, lambda a, b: (a + b).cut())

            (part,) = pipelined(total_of, parts, depth).outputs
            total = m.register("total", SUM_BITS, True)
            total.drive((mux(first, 0, total) + part).truncate(SUM_BITS, True), valid)
            self.new["sum"].assign(total)
            self.writes["sums"].assign(over & (squared | (softmax & (number == 1))))
            if features.has(LAYER_NORM):
                self.centre_register.drive(
                    total.truncate(46, True), over & self.layer & (number == 0)
                )
        else:
            self.writes["sums"].assign(0)

        if "least" in self.new:
            used = [one["used"] for one in results]

            def minimum(*given: Signal) -> Signal:
                return tree(given, lambda a, b: smaller(a, b).cut())

            (part,) = pipelined(minimum, used, depth).outputs
            least = m.register("least_exponent", memories.EXPONENT_BITS, True)
            least.drive(smaller(mux(first, _FAR, least), part), valid)
            self.new["least"].assign(least)
            self.writes["least"].assign(over & softmax & (number == 0))
        self.look_up()

    def look_up(self) -> None:
        """The scalar unit, a group a cycle."""
        m, fields, features = self.m, self.fields, self.features
        latency = self.machine.table_lookup
        if "factor" not in self.new:
            self.writes["scalars"].assign(0)
            return
        norms = features.has(*NORMS)
        written = self.shape.formats if features.has(QUANTIZE, SOFTMAX) else ()
        names = [*(["reciprocal"] if written else []), *(["rsqrt"] if norms else [])]
        of = SharedTable("scalar", tuple(table(name) for name in names))
        static = {
            "norm": self.norm,
            "softmax": self.softmax,
            "epsilon": fields["first_mantissa"],
            "epsilon_exponent": fields["first_shift"],
            "fraction": fields["fraction"],
            "number_format": fields["number_format"],
        }

        def unit(*given: Signal) -> list[Signal]:
            top, z, total, least = given
            result = scalars(
                ScalarInputs(
                    top.assume(0, (1 << (features.top_bits - 1)) - 1),
                    z.assume(-40, 24),
                    total.assume(0, (1 << 62) - 1),
                    least,
                    **{name: signal.static() for name, signal in static.items()},
                ),
                of,
                written,
                norms=norms,
            )
            return [result.factor, result.half, *result.scale, result.total]

        inputs = [self.top, self.z, self.total, self.least]
        factor, half, mantissa, exponent, total = pipelined(unit, inputs, latency - 1).outputs
        valid = self.later(self.looking, latency, "lookup_valid", 0)
        group = self.later(self.group, latency, "lookup_group")
        self.looked_up.assign(group)
        self.new["factor"].assign(factor)
        self.new["half"].assign(half)
        self.writes["scalars"].assign(valid)
        if written:
            base = mux(self.softmax, fields["constant1"], fields["write"])
            self.address("scale", self.shape.scales, base + group)
            m.output("scale_mantissa", mantissa, 24)
            m.output("scale_exponent", exponent.truncate(memories.EXPONENT_BITS, True))
            m.output("scale_enable", valid & self.quantize)
        if features.has(SOFTMAX):
            m.output("scale_total", total.as_unsigned().truncate(memories.SUM_BITS))
            m.output("probability_scale_enable", valid & self.softmax)

    # Results

    def results(self, beat: _Beat) -> None:
        """Write ports, saturations, token, end."""
        m, final, features = self.m, self.final, self.features
        front = self.machine.vector_pipeline - 1
        valid = self.later(self.issuing & final, front, "write_valid", 0)
        row = self.later(beat.row, front, "write_row")
        lanes = self.results_of_lanes
        words = cat(*[one["word"].extend(FIXED_BITS, True) for one in reversed(lanes)])
        codes = cat(*[one["code"].extend(memories.CODE_BITS) for one in reversed(lanes)])
        into = self.fields["write"]
        coded = self.operation(QUANTIZE, QUANTIZE_STATIC)
        rows = self.shape.rows
        self.address("vector_write", rows, into + row)
        m.output("vector_write_data", words)
        writes = ~(coded | self.softmax | self.sample)
        m.output("vector_write_enable", valid & writes)
        mask = cat(*reversed(beat.mask)).delay(front, name="write_mask")
        m.output("vector_write_mask", mask)
        if features.has(QUANTIZE, QUANTIZE_STATIC):
            beats = self.later(self.linear, front, "write_beat")
            self.address("code_write", rows, into + beats)
            m.output("code_write_data", codes)
            m.output("code_write_enable", valid & coded)
        if features.has(SOFTMAX):
            weighing = self.softmax & (self.number == 1)
            back = self.later(self.issuing & weighing, front, "weight_valid", 0)
            self.address("score_write", self.shape.score_rows, self.fields["read0"] + row)
            m.output("score_write_data", words)
            m.output("score_write_enable", back)
            self.address("probability_write", self.shape.probability_rows, into + row)
            m.output("probability_write_data", codes)
            m.output("probability_write_enable", valid & self.softmax)
        count = add_all([one["saturated"] for one in lanes])
        m.output("saturated", mux(valid, count, 0))
        m.output("done", self.done)
        if features.has(SAMPLE):
            m.output("token", self.token)
            m.output("token_valid", (self.done & self.sample).delay(reset=0, name="sampled"))


def _later_if_larger(a: tuple[Signal, Signal], b: tuple[Signal, Signal]) -> tuple[Signal, Signal]:
    """The larger of two (value, index) pairs; the first one when they are equal."""
    better = b[0] > a[0]
    return mux(better, b[0], a[0]).cut(), mux(better, b[1], a[1]).cut()


def _exchanged(lanes: Sequence[Signal], distance: Signal) -> list[Signal]:
    """Lane i gets what lane ``i ^ distance`` has."""
    level = list(lanes)
    for bit in range(distance.width):
        level = [mux(distance[bit], level[i ^ (1 << bit)], one) for i, one in enumerate(level)]
    return level


def _selected(key: Signal, values: Mapping[int, int]) -> Signal:
    """``values[key]``; any of them for other keys."""
    found: Signal | None = None
    for code, value in values.items():
        constant = key.module.constant(value)
        found = constant if found is None else mux(key == code, constant, found)
    return key.module.constant(0) if found is None else found
