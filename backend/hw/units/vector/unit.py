"""The vector unit: norms, quantisation, rotary embedding, activations, softmax, arg-max.

`Machine.vector_lanes` lanes (`lane.py`), trees for maxima and sums, one scalar table unit
(`tables.py`). What the unit takes is a pass over groups of a vector: it comes as the fields of its
descriptor (`encode.py`), with a pulse on `start`. The next one may start as soon as the last row
of this one is on its way (`ready`): what a pass does goes with its rows.

A pass takes a row a cycle: the addresses in cycle a, the operands from the memories in a + 1, the
result to a memory in cycle a + vector_pipeline - 1. A reducing pass leaves one value a group in a
file, `vector_reduce` cycles later, and where the scalar tables are wanted, what they make of it
`table_lookup` cycles after that. `lowering/schedule/durations.py` counts the same cycles.

| operation        | passes                                                                     |
|------------------|----------------------------------------------------------------------------|
| elementwise      | result                                                                     |
| tap            | result; weights and bias are the constants                                 |
| delay            | the state, or zeros at position 0; the input to the state                  |
| rotary           | result; the partners come through the first port and the lane exchange     |
| quantize         | largest magnitude (scalars); codes                                         |
| quantize, static | codes                                                                      |
| quantize_blocks  | codes; rows wait `block_exponent` cycles for the exponents of their blocks |
| quantize_heads   | codes and scales, as late as reductions, by ports of their own (`heads.py`)|
| rms_scale        | sum of squares, each of 24 significant bits (scalars)                      |
| rms_norm         | largest magnitude; sum of squares (scalars); result                        |
| layer_norm       | sum; then as rms_norm                                                      |
| softmax          | least exponent of each key-value head; numerators, their sum and the       |
|                  | largest product with a value's scale, products back into the score memory  |
|                  | (scalars); codes                                                           |
| softmax_places   | least exponents as softmax; numerators, their sum, bytes at places         |
| sample           | largest element and its index                                              |
| weigh            | result; the share of the chosen expert is read beside the rows             |

`route` is no pass: `router.py` does it, and has the unit to itself.

Restrictions: the lanes are a power of two; several groups in a pass are a multiple of the lanes
wide, or divide them. Rows of one group that reduce follow each other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from intaglio.backend.hw.units import peaks
from intaglio.backend.hw.units.refusals import refuse
from intaglio.backend.hw.units.vector import heads
from intaglio.backend.hw.units.vector.encode import GATE_TABLES, fields_of
from intaglio.backend.hw.units.vector.lane import (
    ControlPorts,
    Features,
    build_lane,
    inputs_of,
    lane_inputs,
)
from intaglio.backend.hw.units.vector.operations import (
    DELAY,
    FORMAT_CODES,
    LANE_SETTINGS,
    LAYER_NORM,
    NORMS,
    OPERATIONS,
    PASS_COUNTS,
    PASSES,
    QUANTIZE,
    QUANTIZE_BLOCKS,
    QUANTIZE_HEADS,
    QUANTIZE_STATIC,
    RMS_SCALE,
    ROTARY,
    ROUTE,
    SAMPLE,
    SOFTMAX,
    SOFTMAX_PLACES,
    TAP,
    TAP_ONTO,
    WEIGH,
    WEIGH_ONTO,
)
from intaglio.backend.hw.units.vector.router import RouterShape, build_router
from intaglio.backend.hw.units.vector.shape import VectorShape, machine_refusals
from intaglio.backend.hw.units.vector.tables import (
    ScalarInputs,
    SharedTable,
    normalising_shift,
    scalars,
)
from intaglio.backend.hw.wires.datapaths import Scale
from intaglio.backend.hw.wires.reader import Wires
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
    choose,
    larger,
    mux,
    pipelined,
    repeat,
    smaller,
    tree,
)
from intaglio.dialects import memories
from intaglio.dialects.fixed_point import FIXED_BITS
from intaglio.dialects.formats import FORMATS
from intaglio.dialects.formulas.blocks import (
    EXPONENT_BITS,
    LARGEST,
    LEAST_AT_MOST,
    block_of,
    wide_largest,
)
from intaglio.dialects.formulas.softmax import UNIT, exp2
from intaglio.dialects.machine import Machine
from intaglio.dialects.tables import table

_WITH_CONSTANTS = (ROTARY, *NORMS, TAP, TAP_ONTO)
"""Operations that read the constant ROM."""

SUM_BITS = 63
"""Width of a sum, signed."""
FACTOR_SUM_BITS = 79
"""Of one of squares that nothing has normalised."""

_FAR = (1 << (memories.EXPONENT_BITS - 1)) - 1


def build_vector(design: Design, machine: Machine, shape: VectorShape) -> ModuleBuilder:
    """The module `vector`.

    Inputs: `start` with all `fields_of` the shape and `position` in the same cycle, in which
    `ready` must be 1; the data of the memories, one cycle after their addresses (`vector0_data`,
    `vector1_data`, `constant0_data`, `constant1_data`, `score_data`, `value_scale_data`: mantissa
    in bits 0 to 23, exponent above, 32 bits a lane; lane 0 lowest; `largest_data`: the largest
    score of a head; `sink_data`: the row of constants with a head's sink; `routing_share`: an
    expert's share).

    Outputs: the addresses; the write ports `vector_write` and `score_write` (32 bits a lane),
    `code_write`, `head_code_write` (quantised vectors) and `probability_write` (16 bits a lane),
    each with `_address`, `_data`, `_enable`, and `vector_write_mask` (a bit a lane); `scale_enable`
    and `probability_scale_enable` with `scale_address`, `scale_mantissa`, `scale_exponent` and
    `scale_total`; `head_scale_enable` with such of its own; `routing_write_enable` with `_address`,
    `_number` and `_share`; `saturated`, how many places saturated in this cycle; `ready`; `done` in
    the last cycle in which the results of a pass cannot be read yet; `reduced` likewise for what it
    reduces; `token` from the finish of a `sample` on, with `token_valid` in its first cycle.

    Raises:
        UserError: `machine_refusals`.
    """
    refuse(machine_refusals(machine))

    def build(m: ModuleBuilder) -> None:
        _Vector(design, m, machine, shape).build()

    return design.shared("vector", build)


@dataclass(eq=False)
class _Beat:
    """What goes with a row, in the cycle of its addresses."""

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
            shape.operations,
            shape.gate_tables,
            shape.formats,
            shape.rotary_fraction,
            shape.blocks,
        )

    def build(self) -> None:
        m = self.m
        self.start = m.input("start", 1)
        position_bits = max(1, self.shape.positions.bit_length())
        self.position_now = position = m.input("position", position_bits)
        fields = fields_of(self.shape.blocks).fields
        self.raw = {one.name: m.input(one.name, one.width, one.signed) for one in fields}
        self.fields = {
            name: signal.delay(enable=self.start, name=f"of_{name}")
            for name, signal in self.raw.items()
        }
        self.position = position.delay(enable=self.start, name="at_position")
        self.contexts = self.machine.contexts
        self.registers: dict[str, list[Register]] = {}
        if self.contexts > 1:
            context = m.input("of_context", (self.contexts - 1).bit_length())
            self.context = context.delay(enable=self.start, name="context_held")
        self.decode()
        self.route()
        self.sequence()
        beat = self.beat()
        self.files()
        self.memories(beat)
        self.reduce()
        self.results(beat)

    # Passes

    def operation(self, *names: str, number: int | None = None, last: int | None = None) -> Signal:
        """1 while a pass of one of the operations runs; constant when the unit has none of them.

        Args:
            names: the operations.
            number: only this pass, counted from the first one.
            last: only this pass, counted from the last one.
        """
        code = self.fields["operation"]
        found = self.m.constant(0)
        for place, (name, pass_) in enumerate(PASSES):
            if name not in names or name not in self.shape.operations:
                continue
            if number not in (None, pass_) or last not in (None, PASS_COUNTS[name] - 1 - pass_):
                continue
            found = found | (code == place)
        return found

    def decode(self) -> None:
        """What the pass at hand is, and the attended rows of a softmax."""
        m, op = self.m, self.operation
        norms = NORMS
        self.placed = op(SOFTMAX_PLACES)
        self.softmax = op(SOFTMAX) | self.placed
        self.weighing = op(SOFTMAX, number=1) | self.placed
        self.peaking = op(SOFTMAX, number=0)
        self.norm, self.layer = op(*norms), op(LAYER_NORM)
        self.rotary, self.sample, self.quantize = op(ROTARY), op(SAMPLE), op(QUANTIZE)
        self.blocked, self.rooted = op(QUANTIZE_BLOCKS), op(RMS_SCALE)
        self.by_head = op(QUANTIZE_HEADS)
        self.squaring = op(*norms, last=1) | self.rooted
        self.centred = self.layer & ~op(LAYER_NORM, number=0)
        self.tap = op(TAP, TAP_ONTO)
        # Both passes of a delay write.
        self.final = op(*OPERATIONS, last=0) | op(DELAY)
        self.ranging = op(*norms, last=2) | op(QUANTIZE, number=0)
        self.leaving = self.leaving_scale = m.constant(0)
        if self.features.has(*NORMS, QUANTIZE):
            self.leaving = self.fields["peak"]
            self.leaving_scale = self.leaving & self.fields["peak_quantized"]
        self.looks = self.squaring | self.weighing | op(QUANTIZE, number=0) | self.leaving_scale
        # From the inputs themselves: the first row comes in the next cycle.
        softmax = m.constant(0)
        if self.features.has(SOFTMAX):
            for place, (name, _) in enumerate(PASSES):
                if name in (SOFTMAX, SOFTMAX_PLACES):
                    softmax = softmax | (self.raw["operation"] == place)
        position, window = self.position_now, self.raw["window"]
        seen = position + 1 - window
        first = mux(softmax & (window != 0) & (seen > 0), seen.truncate(position.width), 0)
        first_row, last_row = first >> self.lane_bits, position >> self.lane_bits
        attended = (last_row - first_row).truncate(16) + 1
        rows = mux(softmax, attended.truncate(16), self.raw["rows"])
        self.new_row = mux(softmax, first_row, 0).extend(20)
        self.first = first.delay(enable=self.start, name="first_token")
        self.first_row = self.new_row.delay(enable=self.start, name="first_row")
        self.rows = rows.delay(enable=self.start, name="rows_of_group")
        base = self.raw["position_rows"] * position
        self.position_row = (
            base.truncate(20).delay(enable=self.start, name="position_row")
            if self.features.has(ROTARY)
            else m.constant(0)
        )

    def route(self) -> None:
        """The router, which has the first port to the vector memory while it works."""
        m, shape = self.m, self.shape
        self.passes: Signal = self.start
        self.routing: dict[str, Signal] = {}
        if not self.features.has(ROUTE):
            return
        (code,) = [place for place, (name, _) in enumerate(PASSES) if name == ROUTE]
        routes = self.raw["operation"] == code
        self.passes = self.start & ~routes
        router = build_router(
            self.design,
            self.machine,
            RouterShape(shape.experts, shape.chosen, shape.rows, shape.routing_rows),
        )
        self.row_to_route = m.wire("row_to_route", FIXED_BITS * self.lanes)
        ports = {port.name: port.width for port in router.ports}
        names = {
            "read": "read0",
            "write": "write",
            "experts": "rows",
            "chosen": "groups",
            "first_leads": "constant_restart",
            "every": "offset",
            "fraction": "fraction",
        }
        given: dict[str, Operand] = {
            port: self.raw[name].truncate(ports[port], name == "fraction")
            for port, name in names.items()
        }
        self.routing = dict(
            m.instance(
                "router",
                router,
                {"start": self.start & routes, "data": self.row_to_route, **given},
            )
        )
        for name in ("address", "number", "share", "enable"):
            m.output(f"routing_write_{name}", self.routing[f"write_{name}"])

    def sequence(self) -> None:
        """The row within the group, the group, its first word in a buffer without gaps."""
        m, fields = self.m, self.fields
        issuing = m.register("issuing", 1)
        j, g = m.register("row_of_group", 16), m.register("group", 12)
        word = m.register("group_word", 20 + self.lane_bits)
        linear = m.register("linear_row", 20)
        last_row = (j + 1) == self.rows
        last_group = (g + 1) == fields["groups"]
        over = (issuing & last_row & last_group).named("last")
        issuing.drive(mux(self.passes, 1, mux(over, 0, issuing)))
        step = issuing & last_row
        fresh = self.start
        j.drive(mux(fresh | last_row, 0, (j + 1).truncate(16)))
        g.drive(mux(fresh, 0, mux(step, (g + 1).truncate(12), g)))
        origin = self.raw["first_word"] + (self.new_row << self.lane_bits)
        further = (word + fields["group_words"]).truncate(word.width)
        word.drive(mux(fresh, origin.truncate(word.width), mux(step, further, word)))
        linear.drive(mux(fresh, 0, (linear + 1).truncate(20)))
        self.issuing, self.over = issuing, over
        self.j, self.word, self.linear = j, word, linear
        self.entry = (fields["entry"] + g).truncate(self.entry_bits)
        self.group = g
        self.first_beat, self.last_beat, self.last_group = j == 0, last_row, last_group
        ready = ~issuing | over
        self.working, self.worked, self.worked_row = issuing, over, linear
        if self.features.has(QUANTIZE_BLOCKS):
            ready = self.wait(ready)
        if self.shape.head_rows > 1:
            ready = self.wait_for_heads(ready)
        m.output("ready", ready & ~self.routing["busy"] if self.routing else ready)

        # Query heads that share a key-value head read the same scales, and their least exponent at
        # the entry of the first of them.
        self.scale_row: Signal = m.constant(0)
        self.least_entry: Signal = m.constant(0)
        if self.features.has(SOFTMAX):
            count, row = m.register("sharing", 8), m.register("scale_row", 20)
            entry = m.register("sharing_entry", self.entry_bits)
            turn = step & (self.peaking | ((count + 1) == fields["shared"]))
            count.drive(mux(fresh | turn, 0, mux(step, (count + 1).truncate(8), count)))
            lower = (row + fields["scale_stride"]).truncate(20)
            row.drive(mux(fresh, 0, mux(turn, lower, row)))
            following = mux(turn, (entry + fields["shared"]).truncate(self.entry_bits), entry)
            opening = (self.raw["entry"] + 0).truncate(self.entry_bits)
            entry.drive(mux(fresh, opening, following))
            self.scale_row, self.least_entry = row, entry
            self.entry = mux(self.peaking, entry, self.entry)

    def wait(self, ready: Signal) -> Signal:
        """Rows of blocks work when their exponents are there; the next pass begins as much later.

        Until then the fields are those of this pass.
        """
        cycles = self.machine.block_exponent
        late = self.over & self.blocked
        ready = ready & ~late
        for number in range(1, cycles):
            ready = ready & ~late.delay(number, reset=0, name=f"over{number}")

        def of_rows(now: Signal, name: str) -> Signal:
            # Of rows of the pass before nothing is late.
            own = now & repeat(self.blocked, now.width)
            return mux(self.blocked, own.delay(cycles, reset=0, name=f"{name}_late"), now)

        self.working = of_rows(self.issuing, "issuing")
        self.worked = of_rows(self.over, "last")
        self.worked_row = of_rows(self.linear, "linear_row")
        return ready

    def wait_for_heads(self, ready: Signal) -> Signal:
        """Rows of a head work when its last one has come; the next pass begins as much later."""
        late = self.over & self.by_head
        for number in range(1, self.shape.head_rows):
            # A head of so many rows, or more.
            ready = ready & ~(late & (self.rows > number))
            late = late.delay(reset=0, name=f"head_over{number}")
        worked = self.working, self.worked, self.worked_row
        chosen: list[Signal] = []
        for now, name in zip(worked, ("working", "worked", "worked_row"), strict=True):
            taps = self.taps(now & repeat(self.by_head, now.width), f"head_{name}")
            chosen.append(mux(self.by_head, choose(self.rows_before, taps), now))
        self.working, self.worked, self.worked_row = chosen
        return ready

    @property
    def rows_before(self) -> Signal:
        """Of the groups at hand the rows before the last."""
        bits = max(1, (self.shape.head_rows - 1).bit_length())
        return (self.rows - 1).truncate(bits)

    def taps(self, signal: Signal, name: str) -> list[Signal]:
        """A signal as it was up to `head_rows` - 1 cycles ago, 0 from before the pass."""
        found = [signal]
        for number in range(1, self.shape.head_rows):
            register = self.m.register(f"{name}{number}", signal.width)
            register.drive(mux(self.start, 0, found[-1]))
            found.append(register)
        return found

    # Addresses

    def beat(self) -> _Beat:
        """The row of this cycle."""
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
            where = mux(self.softmax, 0, fields[field] + row + more)
            if self.routing and name == "vector0":
                where = mux(self.routing["busy"], self.routing["address"], where)
            self.address(name, rows, where)
        if self.features.has(WEIGH, WEIGH_ONTO):
            self.address("routing", self.shape.routing_rows, fields["scale"])
        if self.features.has(*_WITH_CONSTANTS):
            within = mux(fields["constant_restart"], self.j, row)
            if self.features.has(ROTARY):
                folded = self.j - mux(first_half, 0, halves)
                folded = mux(turning, folded.truncate(16), 0) + self.position_row
                within = mux(self.rotary, folded, within)
            reads = self.rotary | self.norm | self.tap
            # layer_norm without an offset has no second row.
            second = self.rotary | fields["offset"]
            for name, on in (("constant0", reads), ("constant1", reads & second)):
                where = mux(on, fields[name] + within, 0)
                self.address(name, self.shape.constant_rows, where)
        if self.has_softmax:
            here = mux(self.softmax, fields["read0"] + row, 0)
            self.address("score", self.shape.score_rows, here)
            head = mux(self.weighing, fields["read1"] + self.group, 0)
            self.address("largest", self.shape.score_heads, head)
            scales = fields["constant0"] + self.scale_row + self.first_row + self.j
            if self.shape.sinks:
                sink = (fields["sink"] + self.group).truncate(24)
                wanted = self.weighing & fields["sunk"]
                self.address("sink", self.shape.constant_rows, mux(wanted, sink >> bits, 0))
                self.sink_lane = sink.truncate(bits).delay(name="sink_lane")
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
        """The lanes, one cycle after the addresses."""
        m, features = self.m, self.features
        mask = [one.delay(name=f"lane{i}_valid") for i, one in enumerate(beat.mask)]
        exchange = beat.exchange.delay(name="exchange_now")
        row = self.lanes_of("vector0")
        x = _exchanged(row, exchange)
        if self.routing:
            self.row_to_route.assign(cat(*row[::-1]))
        y = self.lanes_of("vector1")
        empty: list[Signal] = [m.constant(0)] * self.lanes
        constants = features.has(*_WITH_CONSTANTS)
        cos = self.lanes_of("constant0") if constants else empty
        sin = self.lanes_of("constant1") if constants else empty
        mantissa, exponent, top = empty, empty, m.constant(0)
        if features.has(SOFTMAX):
            top = m.input("largest_data", FIXED_BITS).as_signed()
            if self.shape.sinks:
                top = self.sunk(top)
            scores, scales = self.lanes_of("score"), self.lanes_of("value_scale")
            softmax = self.softmax.delay(name="softmax_now")
            x = [mux(softmax, score, one) for score, one in zip(scores, x, strict=True)]
            static, first, shift = (
                self.fields[name].delay(name=f"{name}_now")
                for name in ("static_scale", "first_mantissa", "first_shift")
            )
            mantissa = [mux(static, first.truncate(24), one[:24]) for one in scales]
            exponent = [mux(static, shift, one[24:].as_signed()) for one in scales]
        shared: dict[str, Operand] = {
            "turning": beat.turning.delay(name="turning_now"),
            "negative": beat.negative.delay(name="negative_now"),
            "z": self.z,
            "factor": self.factor,
            "half": self.half,
            "top": top,
            "least": self.least,
            "centre": self.centre,
        }
        lane = build_lane(self.design, features, self.machine.vector_pipeline - 2)
        control = {name: one.delay(name=f"lane_{name}") for name, one in self.control().items()}
        if features.has(WEIGH, WEIGH_ONTO):
            share = m.input("routing_share", memories.SHARE_BITS)
            weighs = self.operation(WEIGH, WEIGH_ONTO).delay(name="weighs_now")
            control["second"] = mux(weighs, share, control["second"])
        ports = ControlPorts(lane, control)
        if features.has(QUANTIZE_HEADS):
            self.heads(x, mask)
        of_blocks: dict[str, list[Signal]] = {}
        if features.has(QUANTIZE_BLOCKS):
            x, mask, of_blocks = self.blocks(x, mask)
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
                **{name: lanes[i] for name, lanes in of_blocks.items()},
            }
            connected = {**lane_inputs({**own, **shared}, features), **ports.connections}
            self.results_of_lanes.append(m.instance(f"lane{i}", lane, connected))

    def heads(self, x: Sequence[Signal], mask: Sequence[Signal]) -> None:
        """The ports with codes and scales of heads, from the rows in the cycle of their operands.

        They are there in the cycle in which what the pass would have reduced is.
        """
        m, machine, f = self.m, self.machine, self.fields
        # The rows come a cycle behind their addresses.
        row = heads.Row(
            tuple(mux(valid, one.as_signed(), 0) for one, valid in zip(x, mask, strict=True)),
            (self.issuing & self.by_head).delay(reset=0, name="head_row"),
            self.first_beat.delay(name="head_first"),
            self.last_beat.delay(name="head_last"),
            f["fraction"].delay(name="head_fraction"),
        )
        before = self.rows_before.delay(name="head_rows_before")
        depth = machine.vector_pipeline - 2 + machine.vector_reduce + machine.table_lookup
        found = heads.build(m, row, before, self.shape.head_rows, machine.vector_reduce, depth)
        behind = depth + 1
        linear = (f["write"] + self.worked_row).truncate(20)
        self.address(
            "head_code_write", self.shape.rows, self.later(linear, behind, "head_code_row")
        )
        codes = cat(*[one.extend(memories.CODE_BITS, True) for one in reversed(found.codes)])
        m.output("head_code_write_data", codes)
        enable = self.later(self.working & self.by_head, behind, "head_code_enable", 0)
        m.output("head_code_write_enable", enable)
        entry = self.later((f["scale"] + self.group).truncate(20), behind, "head_scale_place")
        self.address("head_scale", self.shape.scales, entry)
        m.output("head_scale_mantissa", found.mantissa, 24)
        m.output("head_scale_exponent", found.exponent.extend(memories.EXPONENT_BITS, True))
        over = self.issuing & self.by_head & self.last_beat
        m.output("head_scale_enable", self.later(over, behind, "head_scale_over", 0))

    def blocks(
        self, x: Sequence[Signal], mask: Sequence[Signal]
    ) -> tuple[list[Signal], list[Signal], dict[str, list[Signal]]]:
        """Exponent and step of each block of a row, and the row when they are there.

        Returns:
            of each lane the element, whether it is one, and by their names as `LaneInputs` its
            block's exponent, step and what is told of some.
        """
        m, machine = self.m, self.machine
        size, cycles = machine.block, machine.block_exponent
        kinds, low = self.shape.blocks, self.fields["fraction"]
        low = low.truncate(LEAST_AT_MOST.bit_length()).assume(0, LEAST_AT_MOST)

        wide = self.wide_blocks()
        even = [self.fields["to_even"]] if kinds.both else []

        def step(*given: Signal) -> list[Signal]:
            elements, low, told = given[:size], given[size], list(given[size + 1 :])
            sizes = [abs(one).cut() for one in elements]
            most = tree(sizes, lambda a, b: larger(a, b).cut())
            r, of_16 = Wires(m), told.pop(0) if wide else None
            block = block_of(r, most, low, kinds.steps, wide=of_16)
            half, more = block.half, list[Signal]()
            if of_16 is not None:
                more.append(mux(of_16, wide_largest(r, block.exponent), LARGEST))
            if told:
                half = mux(told[0], 0, half)
                more.append(told[0])
            return [block.exponent, half, block.exponent + low, *more]

        names = ["three_quarters", "places"]
        names += [name for name in ("most", "to_even") if name in inputs_of(self.features)]
        found: dict[str, list[Signal]] = {name: [] for name in names}
        words: list[Signal] = []
        for number, first in enumerate(range(0, self.lanes, size)):
            lanes = range(first, first + size)
            elements = [mux(mask[i], x[i].as_signed(), 0) for i in lanes]
            given = [*elements, low, *wide[number : number + 1], *even]
            exponent, *rest = pipelined(step, given, cycles).outputs
            for name, one in zip(names, rest, strict=True):
                found[name] += [one] * size
            words.append(cat(rest[0].truncate(1), exponent.truncate(EXPONENT_BITS)))
        self.steps_of_row = cat(*reversed(words))
        now = self.blocked.delay(name="blocked_now")
        x = [mux(now, one.delay(cycles), one) for one in x]
        mask = [mux(now, one.delay(cycles), one) for one in mask]
        return x, mask, found

    def wide_blocks(self) -> list[Signal]:
        """Whether each block of the row is wide, in the cycle of its operands; empty where none of
        the program is."""
        blocks = self.lanes // self.machine.block
        if not self.shape.blocks.wide:
            return []
        given = self.fields["wide"]
        if self.shape.blocks.wide == 1:
            return [given] * blocks
        rows = -(-given.width // blocks)
        bits = [*(given[i] for i in range(given.width)), *[self.m.constant(0)] * blocks]
        found: list[Signal] = []
        for number in range(blocks):
            own = choose(self.j, [bits[row * blocks + number] for row in range(rows)])
            found.append(own.delay(name=f"wide{number}"))
        return found

    def sunk(self, top: Signal) -> Signal:
        """The largest score with a head's sink, whose own numerator is left for the sum."""
        m = self.m
        sunk = (self.fields["sunk"] & self.weighing).delay(name="sunk_now")
        sink = choose(self.sink_lane, self.lanes_of("sink")).as_signed()
        largest = mux(sunk, larger(top, sink), top)

        def numerator(top: Signal, sink: Signal, sunk: Signal) -> Signal:
            return mux(sunk, exp2(Wires(m), top - mux(sunk, sink, top)), 0)

        front = self.machine.vector_pipeline - 1 + self.machine.vector_reduce - 1
        (self.of_sink,) = pipelined(numerator, [largest, sink, sunk], front - 1).outputs
        return largest

    def control(self) -> dict[str, Signal]:
        """`LaneControl` from the operation and the pass."""
        fields, final, op, features = self.fields, self.final, self.operation, self.features
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
        if features.has(QUANTIZE_BLOCKS):
            low, high = mux(self.blocked, -LARGEST, low), mux(self.blocked, LARGEST, high)
        second = fields["second_mantissa"]
        if self.features.has(DELAY):
            second = mux(op(DELAY, number=0) & (self.position == 0), 0, second)
        return {
            **elementwise,
            "squared": self.squaring,
            "rooted": self.rooted,
            "normed": self.norm & final,
            "scaled": (op(SOFTMAX) | self.quantize) & final,
            "placed": self.placed,
            "turned": self.rotary,
            "weighted": self.weighing,
            "offset": ((self.layer & final) | op(TAP)) & fields["offset"],
            "coded": op(QUANTIZE_STATIC),
            "blocked": self.blocked,
            "floating": floating & ~self.leaving,
            "counted": elementwise["counted"]
            | op(ROTARY, QUANTIZE_STATIC, QUANTIZE_BLOCKS)
            | (self.norm & final),
            "ranged": self.ranging,
            "leaving": self.leaving,
            "first": fields["first_mantissa"],
            "first_shift": fields["first_shift"],
            "second": second,
            "second_shift": fields["second_shift"],
            "gate_shift": fields["fraction"],
            "lane_table": chosen,
            "elements": mux(self.centred, fields["elements"], 1),
            "low": low,
            "high": high,
        }

    # Groups

    def files(self) -> None:
        """What is kept of each group: largest value and shift, sum, least exponent, scalars.

        Rows read it, and what a reducing pass leaves is looked up from it.
        """
        m, features = self.m, self.features
        constant = m.constant(0)
        self.writes: dict[str, Wire] = {}
        self.new: dict[str, Wire] = {}
        self.z, self.factor, self.half = constant, constant, constant
        self.least, self.centre = constant, constant
        self.found: dict[str, Signal] = {}
        """What lookups read."""
        norms = features.has(*NORMS, RMS_SCALE)
        tops, looked = self.peaks()
        if features.has(*NORMS, RMS_SCALE, QUANTIZE, SOFTMAX):
            self.write_entry = m.wire("write_entry", self.entry_bits)
            self.looked_entry = m.wire("looked_entry", self.entry_bits)
            parts = {"z": (7, True), "top": (features.top_bits, True)}
            word = self.file("tops", parts, tops)
            self.z = word["z"]
            parts = {"factor": (24, False), "half": (6, True)}
            word = self.file("scalars", parts, looked, written=True)
            self.factor, self.half = word["factor"], word["half"]
        if norms or features.has(SOFTMAX):
            _ = self.file("sums", {"sum": (self.sum_bits, True)}, by_rows=False)
        if features.has(SOFTMAX):
            parts = {"least": (memories.EXPONENT_BITS, True)}
            self.least_read = m.wire("least_read", self.entry_bits)
            entries = self.least_entry, self.least_read
            self.least = self.file("leasts", parts, entries=entries)["least"]
        if features.has(LAYER_NORM):
            # Where the mean is not taken off there is none.
            centre = self.file("centres", {"centre": (46, True)})["centre"]
            self.centre = mux(self.centred.delay(name="centred_now"), centre, 0)

    def peaks(self) -> tuple[list[Write], list[Write]]:
        """What other units leave of what they write: writes to the files of largest values and of
        scalars, and the ports that write the scales of quantisations."""
        m, features = self.m, self.features
        tops: list[Write] = []
        looked: list[Write] = []
        for queue, quantized in self.shape.peaks.items():
            fields = peaks.given_fields(quantized=quantized)
            widths = {"top": peaks.TOP_BITS, **{one.name: one.width for one in fields}}
            given: dict[str, Signal] = {}
            for name, width in widths.items():
                port = peaks.port(queue, name)
                given[name] = m.input(port, width).delay(name=f"{port}_taken")
            for one in fields:
                if one.signed:
                    given[one.name] = given[one.name].as_signed()
            port = peaks.port(queue, "valid")
            valid = m.input(port, 1).delay(reset=0, name=f"{port}_taken")
            entry = given["peak_entry"].truncate(self.entry_bits)
            top = given["top"].as_unsigned()
            z = normalising_shift(top, given["peak_shift"]).truncate(7, True)
            tops.append(Write(entry, cat(top.extend(features.top_bits), z), valid))
            if not quantized:
                continue
            cycles = self.machine.table_lookup + 1
            found = self._looked(queue, top, z, given)
            valid = (valid & given["peak_quantized"]).delay(
                cycles, reset=0, name=f"{queue}_peak_looked"
            )
            entry = entry.delay(cycles, name=f"{queue}_peak_looked_entry")
            half = found["half"].truncate(6, True)
            looked.append(Write(entry, cat(half, found["factor"].as_unsigned()), valid))
            place = given["peak_scale"].delay(cycles, name=f"{queue}_peak_scale_place")
            self.address(f"{queue}_peak_scale", self.shape.scales, place)
            m.output(f"{queue}_peak_scale_mantissa", found["mantissa"], 24)
            exponent = found["exponent"].truncate(memories.EXPONENT_BITS, True)
            m.output(f"{queue}_peak_scale_exponent", exponent)
            m.output(f"{queue}_peak_scale_enable", valid)
        return tops, looked

    def _looked(
        self, queue: str, top: Signal, z: Signal, given: Mapping[str, Signal]
    ) -> dict[str, Signal]:
        """What a quantisation wants of a largest magnitude, `table_lookup` + 1 cycles later."""
        zero, written = self.m.constant(0), self.shape.formats
        of = SharedTable(f"{queue}_peak_scalar", (table("reciprocal"),))

        def unit(*inputs: Signal) -> list[Signal]:
            top, z, fraction, number_format = inputs
            result = scalars(
                ScalarInputs(
                    top=top.assume(0, 1 << (FIXED_BITS - 1)),
                    z=z.assume(-40, 24),
                    total=zero,
                    least=zero,
                    norm=zero,
                    rooted=zero,
                    softmax=zero,
                    epsilon=zero,
                    epsilon_exponent=zero,
                    fraction=fraction,
                    number_format=number_format,
                ),
                of,
                written,
                norms=False,
            )
            return [result.factor, result.half, *result.scale]

        inputs = [top, z, given["peak_fraction"], given["peak_format"]]
        outputs = pipelined(unit, inputs, self.machine.table_lookup + 1).outputs
        return dict(zip(("factor", "half", "mantissa", "exponent"), outputs, strict=True))

    @property
    def sum_bits(self) -> int:
        return FACTOR_SUM_BITS if self.features.has(RMS_SCALE) else SUM_BITS

    @property
    def entry_bits(self) -> int:
        return max(1, (self.shape.entries - 1).bit_length())

    def file(
        self,
        name: str,
        parts: Mapping[str, tuple[int, bool]],
        more: Sequence[Write] = (),
        *,
        written: bool = False,
        by_rows: bool = True,
        entries: tuple[Signal, Signal] | None = None,
    ) -> dict[str, Signal]:
        """A memory of a word a group; what it has of the group of this cycle's row.

        Args:
            name: of the memory.
            parts: of a word: width, and whether it is signed.
            more: what else writes it.
            written: by the lookups, which then do not read it.
            by_rows: rows read it; else the lookups alone.
            entries: that rows and lookups read, if not those of the row's group.
        """
        self.writes[name] = self.m.wire(f"write_{name}", 1)
        for part, (width, signed) in parts.items():
            self.new[part] = self.m.wire(f"new_{part}", width, signed)
        word = cat(*reversed([self.new[part] for part in parts]))
        where = self.looked_entry if written else self.write_entry
        of_rows, of_lookups = (self.entry, self.write_entry) if entries is None else entries
        reads = [*([of_rows] if by_rows else []), *([] if written else [of_lookups])]
        depth = 1 << self.entry_bits
        writes = [Write(where, word, self.writes[name]), *more]
        found = self.m.ram(name, depth, word.width, reads, writes)
        split: list[dict[str, Signal]] = []
        for one in found:
            place, values = 0, dict[str, Signal]()
            for part, (width, signed) in parts.items():
                value = one[place : place + width]
                values[part] = value.as_signed() if signed else value
                place += width
            split.append(values)
        if not written:
            self.found |= split[-1]
        return split[0]

    def later(self, signal: Signal, cycles: int, name: str, reset: int | None = None) -> Signal:
        return signal.delay(cycles, reset=reset, name=name)

    def kept(
        self, name: str, width: int, front: int, *, signed: bool = False
    ) -> tuple[Signal, Signal, Callable[[Signal, Signal], None]]:
        """What is reduced of a group so far: a register, with contexts one for each of them, since
        rows of other tokens may come between those of a group.

        Args:
            name: of the register.
            width: in bits.
            front: cycles from a row's addresses to its reduction.
            signed: whether it is.

        Returns:
            It at `front`, before the row of that cycle; it a cycle later, with that row; what gives
            it a new value at `front`, with an enable.
        """
        registers = [
            self.m.register(f"{name}{c}" if c else name, width, signed)
            for c in range(self.contexts)
        ]
        self.registers[name] = registers

        def keep(value: Signal, enable: Signal) -> None:
            if self.contexts == 1:
                registers[0].drive(value, enable)
                return
            whose = self.later(self.context, front, f"{name}_context")
            for c, one in enumerate(registers):
                one.drive(value, enable & (whose == c))

        return self.of_context(registers, front), self.of_context(registers, front + 1), keep

    def of_context(self, registers: Sequence[Signal], cycles: int) -> Signal:
        """Of registers that of the context whose row had its addresses so many cycles ago."""
        if self.contexts == 1:
            return registers[0]
        return choose(self.later(self.context, cycles, f"context{cycles}"), registers)

    def reduce(self) -> None:
        """Trees over the lanes, accumulators over the rows of a group."""
        m, machine, features = self.m, self.machine, self.features
        depth = machine.vector_reduce - 1
        front = machine.vector_pipeline - 1 + depth
        opens, closes = self.fields["opens"], self.fields["closes"]
        valid = self.later(self.issuing, front, "reduce_valid", 0)
        first = self.later(self.first_beat & opens, front, "reduce_first")
        last = self.issuing & self.last_beat & closes
        over = self.later(last, front + 1, "group_over", 0)
        left = mux(self.leaving, self.fields["peak_entry"].truncate(self.entry_bits), self.entry)
        self.entry_left = left.extend(self.entry_bits, False)
        if self.new:
            self.write_entry.assign(self.later(self.entry_left, front + 1, "reduce_entry"))
        if features.has(SOFTMAX):
            self.least_read.assign(self.later(self.least_entry, front + 1, "least_entry"))
        results = self.results_of_lanes
        zero = m.constant(0)

        def behind(signal: Signal, name: str) -> Signal:
            """A flag of the pass, where its group is over."""
            return over & self.later(signal, front + 1, f"{name}_over")

        def reducing(signal: Signal, name: str) -> Signal:
            """A flag of the pass, where its rows are reduced."""
            return valid & self.later(signal, front, f"{name}_reduced")

        topping = self.ranging | self.weighing | self.leaving
        if features.has(*NORMS, RMS_SCALE, QUANTIZE, SOFTMAX, SAMPLE):
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
            best, closed, keep = self.kept("top", width, front, signed=True)
            better = first | (value > best)
            keep(mux(better, value, best), reducing(topping | self.sample, "top"))
            if indexed:
                row = self.later((self.linear + self.fields["write"]).truncate(20), front, "at_row")
                where, _, keep = self.kept("top_index", 32, front)
                token = ((row << self.lane_bits) + index).truncate(32)
                keep(mux(better, token, where), reducing(self.sample, "sample"))
            if "top" in self.new:
                self.new["top"].assign(closed)
                size = closed.assume(0, (1 << (features.top_bits - 1)) - 1)
                most = self.later(self.fields["largest_shift"], front + 1, "largest_shift_over")
                shift = normalising_shift(size, most)
                self.new["z"].assign(shift.truncate(7, True))
                self.writes["tops"].assign(behind(topping, "top"))

        if "sum" in self.new:
            parts = [one["sum_part"] for one in results]

            def total_of(*given: Signal) -> Signal:
                return tree(given, lambda a, b: (a + b).cut())

            (part,) = pipelined(total_of, parts, depth).outputs
            total, closed, keep = self.kept("total", self.sum_bits, front, signed=True)
            summing = self.squaring | self.weighing
            centring = self.operation(LAYER_NORM, number=0)
            begin = self.of_sink if self.shape.sinks else 0
            following = (mux(first, begin, total) + part).truncate(self.sum_bits, True)
            keep(following, reducing(summing | centring, "sum"))
            self.new["sum"].assign(closed)
            self.writes["sums"].assign(behind(summing, "sum"))
            if "centre" in self.new:
                self.new["centre"].assign(closed.truncate(46, True))
                self.writes["centres"].assign(behind(centring, "centre"))

        if "least" in self.new:
            used = [one["used"] for one in results]

            def minimum(*given: Signal) -> Signal:
                return tree(given, lambda a, b: smaller(a, b).cut())

            (part,) = pipelined(minimum, used, depth).outputs
            least, closed, keep = self.kept(
                "least_exponent", memories.EXPONENT_BITS, front, signed=True
            )
            keep(smaller(mux(first, _FAR, least), part), reducing(self.peaking, "least"))
            self.new["least"].assign(closed)
            self.writes["leasts"].assign(behind(self.peaking, "peak"))
        self.look_up(zero, last, front + 1)

    def look_up(self, zero: Signal, last: Signal, over: int) -> None:
        """The scalar unit, a group a cycle.

        Args:
            zero: a constant.
            last: the last row of a group goes.
            over: cycles from there to the group's entry in the files.
        """
        m, features = self.m, self.features
        latency = self.machine.table_lookup
        if "factor" not in self.new:
            return
        norms, factors = features.has(*NORMS, RMS_SCALE), features.has(RMS_SCALE)
        written = self.shape.formats if features.has(QUANTIZE, SOFTMAX) else ()
        names = [*(["reciprocal"] if written else []), *(["rsqrt"] if norms else [])]
        of = SharedTable("scalar", tuple(table(name) for name in names))
        # The files are read at the entry that was just written: the word is there a cycle later.
        there = over + 1
        with_group = {
            "norm": (self.norm | self.rooted) & ~self.leaving,
            "rooted": self.rooted,
            "softmax": self.softmax,
            "placed": self.placed,
            "epsilon": self.fields["first_mantissa"],
            "epsilon_exponent": self.fields["first_shift"],
            "fraction": mux(self.leaving, self.fields["peak_fraction"], self.fields["fraction"]),
            "number_format": self.fields["number_format"],
        }
        late = [self.later(one, there, f"{name}_there") for name, one in with_group.items()]

        def unit(*given: Signal) -> list[Signal]:
            top, z, total, least, *rest = given
            named = dict(zip(with_group, rest, strict=True))
            placed = named.pop("placed")
            result = scalars(
                ScalarInputs(
                    top.assume(0, (1 << (features.top_bits - 1)) - 1),
                    z.assume(-40, 24),
                    total.assume(0, (1 << self.sum_bits - 1) - 1),
                    least,
                    **named,
                ),
                of,
                written,
                norms=norms,
                factors=factors,
            )
            scale = result.scale
            if features.has(SOFTMAX_PLACES):
                # A power of two.
                mantissa = mux(placed, UNIT, scale.mantissa)
                scale = Scale(mantissa, mux(placed, least + 23, scale.exponent))
            return [result.factor, result.half, *scale, result.total]

        # The next pass may start `latency` cycles after the word is there, and reads a cycle later.
        inputs = [self.found.get(name, zero) for name in ("top", "z", "sum", "least")]
        outputs = pipelined(unit, [*inputs, *late], latency + 1).outputs
        factor, half, mantissa, exponent, total = outputs
        valid = self.later(last & self.looks, there + latency + 1, "lookup_valid", 0)
        self.looked_entry.assign(self.later(self.entry_left, there + latency + 1, "lookup_entry"))
        self.new["factor"].assign(factor)
        self.new["half"].assign(half)
        self.writes["scalars"].assign(valid)
        if written or factors:
            base = mux(self.softmax, self.fields["constant1"], self.fields["scale"]) + self.group
            place = self.later(base, there + latency + 1, "scale_place")
            self.address("scale", self.shape.scales, place)
            m.output("scale_mantissa", mantissa, 24)
            m.output("scale_exponent", exponent.truncate(memories.EXPONENT_BITS, True))
            quantize = self.later(
                self.quantize | self.leaving_scale, there + latency + 1, "quantize_looked"
            )
            if written:
                m.output("scale_enable", valid & quantize)
            if factors:
                rooted = self.later(self.rooted, there + latency + 1, "rooted_looked")
                m.output("norm_scale_enable", valid & rooted)
        if features.has(SOFTMAX):
            m.output("scale_total", total.as_unsigned().truncate(memories.SUM_BITS))
            softmax = self.later(self.softmax, there + latency + 1, "softmax_looked")
            m.output("probability_scale_enable", valid & softmax)

    # Results

    def results(self, beat: _Beat) -> None:
        """Write ports, saturations, token, end."""
        m, machine, features = self.m, self.machine, self.features
        front = machine.vector_pipeline - 1
        valid = self.later(self.working & self.final, front, "write_valid", 0)
        lanes = self.results_of_lanes
        words = cat(*[one["word"].extend(FIXED_BITS, True) for one in reversed(lanes)])
        codes = cat(*[one["code"].extend(memories.CODE_BITS) for one in reversed(lanes)])
        into = self.later((self.fields["write"] + beat.row).truncate(20), front, "write_row")
        coded = self.operation(QUANTIZE, QUANTIZE_STATIC, QUANTIZE_BLOCKS)
        rows = self.shape.rows
        self.address("vector_write", rows, into)
        m.output("vector_write_data", words)
        others = coded | self.softmax | self.sample | self.rooted | self.by_head
        writes = self.later(~others, front, "writes_vector")
        m.output("vector_write_enable", valid & writes)
        mask = cat(*reversed(beat.mask)).delay(front, name="write_mask")
        m.output("vector_write_mask", mask)
        if features.has(QUANTIZE, QUANTIZE_STATIC, QUANTIZE_BLOCKS):
            linear = (self.fields["write"] + self.worked_row).truncate(20)
            row = self.later(linear, front, "code_row")
            self.address("code_write", rows, row)
            m.output("code_write_data", codes)
            m.output("code_write_enable", valid & self.later(coded, front, "writes_codes"))
            if features.has(QUANTIZE_BLOCKS):
                self.address("step_write", rows, row)
                # They were there when the row began to work, a cycle behind its addresses.
                steps = self.later(self.steps_of_row, front - 1, "steps_written")
                m.output("step_write_data", steps)
                blocked = self.later(self.blocked, front, "writes_steps")
                m.output("step_write_enable", valid & blocked)
        if features.has(SOFTMAX):
            weighing = self.issuing & self.weighing & ~self.placed
            back = self.later(weighing, front, "weight_valid", 0)
            score = (self.fields["read0"] + beat.row).truncate(20)
            self.address(
                "score_write", self.shape.score_rows, self.later(score, front, "score_row")
            )
            m.output("score_write_data", words)
            m.output("score_write_enable", back)
            self.address("probability_write", self.shape.probability_rows, into)
            m.output("probability_write_data", codes)
            softmax = self.later(self.softmax, front, "writes_probabilities")
            m.output("probability_write_enable", valid & softmax)
        count = add_all([one["saturated"] for one in lanes])
        m.output("saturated", mux(valid, count, 0))
        done = self.later(self.worked, front, "done", 0)
        m.output("done", done | self.routing["done"] if self.routing else done)
        left = front + machine.vector_reduce + machine.table_lookup
        reduced = self.later(self.worked, left, "reduced", 0)
        m.output("reduced", reduced | self.routing["done"] if self.routing else reduced)
        if features.has(SAMPLE):
            closing = self.over & self.sample & self.fields["closes"]
            sampled = front + machine.vector_reduce + machine.sample + 1
            m.output("token", self.of_context(self.registers["top_index"], sampled))
            m.output("token_valid", self.later(closing, sampled, "sampled", 0))
            if self.contexts > 1:
                m.output("token_context", self.later(self.context, sampled, "sampled_context"))


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
