"""The attention unit: H-Units with the KV cache, their controller, and the KV write port.

`attention_unit` executes `query_key` and `weighted_sum` (queue attention) and `append` (queue kv),
a range of an instruction's KV heads at a time (`Beat.of`).
KV SRAM (`h_unit<t>/kv`) and the scales of the cached vectors (`scales`) are inside; the memories of
quantised vectors, scores, probabilities and results are outside and have a latency of one cycle.

**Steps and beats.** An instruction that starts in cycle s has its first *step* in cycle s + 1: the
controller gives the row of the operands, the rest follows in a pipeline without stalls. A word of
the KV SRAM meets `query_parallel` query heads in a step. Loops, from the inside: bytes of the
query (or probability), bytes of the cached element, words of the vector, groups of query heads,
blocks of `h_units` tokens, KV heads. What is complete leaves in *beats* that go through the same
pipeline, then the reduction network and the requantiser:

- `query_key`: after each block the scores of its tokens, while the next block is multiplied: in a
  beat those of one query head (more beats where there are more H-Units than results a cycle), or
  of several that share the KV head where all their results fit in a cycle
  (`AttentionModel.together`). Heads lie in rows of their own, so each of them has a write port.
  Only tokens that the query sees (up to the position, within the window) are written. The largest
  of a head's follows its last ones (`durations.peak`): it is taken over the lanes of a beat in
  `vector_reduce` cycles, like any maximum of the vector unit, and kept from block to block.
- `weighted_sum`: after each KV head the sums of its query heads, some heads or a part of one in a
  beat (`durations.sum_beat`), while the array pauses. Heads lie one behind the other, so a beat may
  end in the next row, which has a write port of its own where that happens
  (`AttentionModel.crosses`). The scales of the heads (probability scale over sum) are computed
  beside the first steps, one a cycle, or later where the sums of the weights may come after the
  start (`durations.looked_up`). They are kept where those of the instruction before were, so none
  comes before the last of these has been read; the first ones are wanted `broadcast` and
  `attention_pipeline` after the first head's last step, or behind the reduction network, for which
  that step waits if it must (`durations.least_before_sums`).

**Flow.** The next instruction may start in the cycle of the last step, or of the last beat of sums
(`attention_ready`): its first step is the next one while results of this one still leave. What the
steps need is held from the start on, what the beats need is taken with the last step of their
block, and what the requantiser needs goes with the beat. Scores that leave never meet what follows:
a block of `query_key` takes at least as long as the longest drain of scores of the program
(`AttentionModel.floor`), and so does the first head of a `weighted_sum`. So instructions finish in
the order in which they start.

**External memory.** With `kv_on_die` the keys and values of later tokens come from external memory,
a block of `h_units` tokens of a KV head at a time, into buffers in the H-Units, from the start of
the instruction on and as long as buffers are free. The first step waits for the first block; after
that, blocks from outside take as long as their fetch, if that is longer, and nothing stalls. All
instructions use the buffers in turn.

`lowering.schedule.durations` states when it is `done`: in the cycle of the last write.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from intaglio.backend.hw.units import peaks
from intaglio.backend.hw.units.attention.h_unit import BYTE, PLACE_BITS, h_unit
from intaglio.backend.hw.units.attention.kv import EXPONENT_BITS, SCALE_WORD
from intaglio.backend.hw.units.attention.sizes import (
    AttentionModel,
    Cap,
    encode,
    machine_refusals,
    number_bits,
)
from intaglio.backend.hw.units.refusals import refuse
from intaglio.backend.hw.wires import datapaths
from intaglio.backend.hw.wires.datapaths import Scale
from intaglio.backend.hw.wires.follow import connections, followed
from intaglio.backend.hw.wires.reader import Wires
from intaglio.backend.hw.wires.signal import (
    Design,
    ModuleBuilder,
    Register,
    Signal,
    Write,
    add_all,
    cat,
    choose,
    larger,
    mux,
    pipelined,
    tree,
)
from intaglio.backend.hw.wires.widths import fit, index_bits, log2, up
from intaglio.dialects import memories
from intaglio.dialects.fixed_point import FIXED_BITS, SCALE_BITS
from intaglio.dialects.formulas import heads as head_formulas
from intaglio.dialects.formulas.elementwise import Constants, scale, softcap
from intaglio.dialects.formulas.products import requantize
from intaglio.dialects.formulas.reader import ScaleOf
from intaglio.dialects.formulas.softmax import (
    PROBABILITY_FRAC,
    SCORE_FRAC,
    SLOPE_FRAC,
    distance_loss,
    reciprocal_scale,
    sloped,
)
from intaglio.dialects.isa.queues import ATTENTION
from intaglio.dialects.machine import Machine
from intaglio.dialects.memories import CODE_BITS, SUM_BITS
from intaglio.dialects.tables import GATE_FRAC
from intaglio.lowering.schedule import durations

__all__ = ["AttentionModel", "attention_unit", "encode"]

_LEAVING = (
    "weighted",
    "entry",
    "head",
    "target",
    "target_stride",
    "shared",
    "beats_last",
    "beat_heads",
    "beat_size",
    "last_size",
    "sum_shape",
    "static",
    "scale_mantissa",
    "scale_exponent",
    "scale_row",
    "scale_stride",
    "factor_mantissa",
    "factor_exponent",
    "pre_shift",
    "frac",
    "cap",
    "sloped",
    "slope",
    *(one.name for one in peaks.FIELDS),
)
"""Fields that count when results leave the array."""


def attention_unit(design: Design, model: AttentionModel) -> ModuleBuilder:
    """The module `attention_unit`.

    Ports, with W = `vector_lanes`, P = `query_parallel`; a row given in a cycle is answered by its
    data in the next one:

    - `attention_position`, `append_position`: of the token whose instruction starts.
    - `attention_start`, `attention_<field>` (`AttentionModel.fields`, in the cycle of the start
      only), `attention_ready` (an instruction may start in this cycle), `attention_done` (in the
      cycle of the last write); the same for `append`.
    - `query<i>_row`, `query<i>_data`: codes for query_key, W of 16 bits. For each of the P heads
      there are max(1, attention_lanes / W) ports.
    - `query_scale<i>_group` (first entry of the buffer plus number of the group),
      `query_scale<i>_mantissa`, `query_scale<i>_exponent` (10 bits, signed): scales of query heads,
      as many ports as heads' scores leave together.
    - `slope<i>_address`, `slope<i>_data`: rows of the constant ROM, where scores fall with the
      distance; as many ports.
    - `append<i>_row`, `append<i>_data`: codes for append, max(1, kv_port_bytes / W) ports;
      `append_group`, `append_mantissa`, `append_exponent` as for queries.
    - `probability<i>_row`, `probability<i>_data`: codes of softmax, W of 16 bits; for each of the P
      heads max(1, h_units / W) ports. `head_row` (first entry of the buffer plus number of the
      head), `head_mantissa`, `head_exponent`, `head_total`: scale and sum of a head.
    - `score<i>_enable`, `score<i>_row`, `score<i>_data` (W of 32 bits), `score<i>_lanes` (which of
      them): write ports of scores, one for each of the heads that leave together; they never meet
      in a row. `largest<i>_enable`, `largest<i>_row` (first entry plus number of the head),
      `largest<i>_data`: the largest of a head's scores. `result_...` as for scores: write port of
      the vector memory; `spill_...`, if any, of the next row.
    - `value_scale_row`, `value_scale_data`: W scales of cached vectors, for softmax (see `kv`).
    - `external_read_address`, `external_read_data`, `external_write_...`: `kv.external_kv`, where
      tokens are in external memory; data come `external_latency` cycles after the address.
    - `saturations`: how many values saturated among those written in this cycle.
    - `peak_of_attention_...`: the largest magnitudes of sums (`peaks.given`), where they are taken.

    Raises:
        UserError: the machine cannot be built.
    """
    refuse(machine_refusals(model.machine))
    unit = h_unit(design, model.machine, model.shape)
    score = _score_lane(design, model)
    total = _sum_lane(design, model)

    def build(m: ModuleBuilder) -> None:
        _Unit(m, model).build(unit, score, total)

    return design.shared("attention_unit", build)


def _score_lane(design: Design, model: AttentionModel) -> ModuleBuilder:
    """A dot product to a score: `semantics.score_scale`, soft cap and log2(e), what the distance
    takes.

    The scales come before the dot product, by the second number of `_scale_depths`; `loss` comes
    with it.
    """
    machine = model.machine
    _, key_depth = _scale_depths(machine)

    def build(m: ModuleBuilder) -> None:
        query = Scale(
            m.input("query_mantissa", SCALE_BITS),
            m.input("query_exponent", memories.EXPONENT_BITS + 2, True),
        )
        key = Scale(
            m.input("key_mantissa", SCALE_BITS),
            m.input("key_exponent", memories.EXPONENT_BITS, True),
        )
        dot = m.input("dot", model.shape.dot_bits, True)
        shift, follow_shift = followed(m, "pre_shift", model.fields["pre_shift"])
        cap, follow_cap = followed(m, "cap", model.fields["cap"])
        c = pipelined(
            lambda *s: datapaths.multiply(Scale(s[0], s[1]), Scale(s[2], s[3])),
            [*query, *key],
            key_depth,
        ).outputs

        loss = [m.input("loss", _loss_bits(model), True)] if model.sloped else []

        def score(
            dot: Signal,
            mantissa: Signal,
            exponent: Signal,
            shift: Signal,
            cap: Signal,
            *loss: Signal,
        ) -> tuple[Signal, Signal]:
            r = Wires(m)
            scale, shift = Scale(mantissa, exponent), shift.assume(0, model.shift)
            found = requantize(r, dot, scale, shift, -shift - SCORE_FRAC)
            flags = r.saturated
            if model.caps:
                cap = cap.assume(0, len(model.caps))
                capped, saturated = _capped(m, found.cut(), cap, model.caps)
                on = cap != 0
                found, flags = mux(on, capped, found), flags + mux(on, saturated, 0)
            for one in loss:
                after = Wires(m)
                found = sloped(after, found.cut(), one)
                flags = flags + after.saturated
            return found, flags

        value, saturated = pipelined(
            score,
            [dot, *c, shift, cap, *loss],
            machine.reduce + machine.requantise,
            follow={3: follow_shift, 4: follow_cap},
        ).outputs
        m.output("score", value.extend(FIXED_BITS, True))
        m.output("saturated", saturated)

    return design.shared("score_lane", build)


def _loss_bits(model: AttentionModel) -> int:
    """Width of what a distance takes of a score, signed."""
    return FIXED_BITS + index_bits(model.capacity) - (SLOPE_FRAC - SCORE_FRAC) + 1


def _capped(
    m: ModuleBuilder, x: Signal, index: Signal, caps: tuple[Cap, ...]
) -> tuple[Signal, Signal]:
    """`softcap`, then `scale` by log2(e), and saturations; `index` counts the caps from 1."""
    which = (index - 1).truncate(index.width)

    def constant(number: int) -> Scale:
        return Scale(
            choose(which, [c[number].mantissa for c in caps]),
            choose(which, [c[number].exponent for c in caps]),
        )

    inverse, cap, log2e = (constant(number) for number in range(3))
    r = Wires(m)
    places = cap.exponent + (GATE_FRAC - SCORE_FRAC)
    y = softcap(r, Constants(*inverse, cap.mantissa, places), x, x)
    z = scale(r, Constants(second=log2e.mantissa, second_shift=log2e.exponent), y.cut(), y)
    return z, r.saturated


def _sum_lane(design: Design, model: AttentionModel) -> ModuleBuilder:
    """An element of a weighted sum: the H-Units' sums added up and requantised.

    What the requantiser takes beside them comes `reduce` cycles later.
    """
    machine, bits = model.machine, model.shape.sum_bits

    def build(m: ModuleBuilder) -> None:
        parts = [m.input(f"part{t}", bits, True) for t in range(machine.h_units)]
        control = [
            followed(m, "mantissa", SCALE_BITS),
            followed(m, "exponent", memories.EXPONENT_BITS + 2, True),
            followed(m, "pre_shift", model.fields["pre_shift"]),
            followed(m, "frac", model.fields["frac"]),
        ]

        def element(
            mantissa: Signal, exponent: Signal, shift: Signal, frac: Signal, y: Signal
        ) -> tuple[Signal, Signal]:
            shift = shift.assume(0, model.shift)
            r = Wires(m)
            scale = Scale(mantissa, exponent)
            return requantize(r, y, scale, shift, -shift - frac), r.saturated

        def total(*parts: Signal) -> Signal:
            return tree(parts, lambda a, b: (a + b).cut()).truncate(bits, True)

        value, saturated = pipelined(
            element,
            [*(signal for signal, _ in control), *pipelined(total, parts, machine.reduce).outputs],
            machine.requantise,
            follow={i: follow for i, (_, follow) in enumerate(control)},
        ).outputs
        m.output("element", value.extend(FIXED_BITS, True))
        m.output("saturated", saturated)

    return design.shared("sum_lane", build)


def _early(machine: Machine) -> int:
    """Cycles from a beat in the controller to its dot products and sums."""
    return machine.broadcast - 1 + machine.attention_pipeline


def _scale_depths(machine: Machine) -> tuple[int, int]:
    """Cycles for query scale times factor, and for that times key scale."""
    depth = _early(machine) - 1
    return depth // 2, depth - depth // 2


@dataclass(frozen=True, eq=False)
class _Beats:
    """The beats of a cycle in the controller."""

    on: Signal
    number: Signal
    member: Signal
    last: Signal
    head: Signal
    part: Signal
    kv: Signal
    block: Signal
    first: Signal
    position: Signal
    weighted: Signal


class _Unit:
    """Builds the module."""

    def __init__(self, m: ModuleBuilder, model: AttentionModel) -> None:
        self.m = m
        self.model = model
        self.machine = machine = model.machine
        self.units = machine.h_units
        self.lanes = machine.attention_lanes
        self.width = machine.vector_lanes
        self.unit_log = machine.h_units.bit_length() - 1
        self.count = min(machine.h_units, machine.results_per_cycle)
        """Scores of a head in a beat."""
        self.together = model.together
        """Heads whose scores leave in a beat."""
        self.parts = machine.h_units // self.count
        """Beats in which a query head's scores of a block leave."""
        self.early = _early(machine)
        self.late = machine.reduce + machine.requantise
        self.given_position = m.input("attention_position", index_bits(model.capacity)).assume(
            0, model.capacity - 1
        )

    def build(self, unit: ModuleBuilder, score: ModuleBuilder, total: ModuleBuilder) -> None:
        m = self.m
        write, scale_write = self.append()
        self.control()
        beats = self.beats
        stored = m.ram(
            "scales",
            self.model.kv.scale_depth,
            self.model.kv.scale_bits * self.width,
            [self.key_scale_row(), m.input("value_scale_row", self.model.fields["scale_row"])],
            [scale_write],
            parts=self.width,
        )
        scales = [self.whole_scales(one) for one in stored]
        m.output("value_scale_data", scales[1])
        outputs = self.array(unit, write, beats)
        written = self.scores(score, beats, scales[0], [one["dot"] for one in outputs])
        count, result = self.sums(total, beats, [one["sums"] for one in outputs])
        m.output("saturations", mux(result, count, written))

    def whole_scales(self, row: Signal) -> Signal:
        """A row of the memory of scales, each with mantissa and exponent; of a byte they are just
        wires."""
        if (bits := self.model.kv.scale_bits) == SCALE_WORD:
            return row
        whole: list[Signal] = []
        for i in range(self.width):
            scale = head_formulas.scale_of(Wires(self.m), row[bits * i : bits * (i + 1)])
            whole += [fit(scale.mantissa, SCALE_BITS), fit(scale.exponent, EXPONENT_BITS)]
        return cat(*reversed(whole))

    # The KV write port

    def append(self) -> tuple[list[Write], Write]:
        """The write ports of every H-Unit's SRAM and of the scales."""
        m, model, machine = self.m, self.model, self.machine
        start = m.input("append_start", 1)
        f: dict[str, Signal] = {}
        for name, bits in model.append_fields.items():
            given = m.input(f"append_{name}", bits)
            f[name] = mux(start, given, given.delay(enable=start, name=f"append_{name}_held"))
        position = m.input("append_position", index_bits(model.capacity)).assume(
            0, model.capacity - 1
        )
        if machine.contexts > 1:
            held = position.delay(enable=start, name="append_position_held")
            position = mux(start, position, held).assume(0, model.capacity - 1)
        self.append_position = position
        running = m.register("append_running", 1)
        active = start | running
        slot = m.register("append_slot", model.append_fields["slots_last"])
        head = m.register("append_head", index_bits(model.kv_heads))
        turn, turn_end, outside = self.append_turn(active)
        slot_end = (slot == f["slots_last"]) & turn_end
        head_end = (head + 1) == f["count"]
        last = active & slot_end & head_end
        running.drive(active & ~last)
        following = mux(turn_end, up(slot), slot) if model.external else up(slot)
        slot.drive(mux(active & ~slot_end, following, 0))
        head.drive(mux(active & slot_end, mux(head_end, 0, up(head)), head))

        two = f["planes_last"]
        plane = two & slot[0]
        chunk = mux(two, slot >> 1, slot)
        code = active & (chunk < f["chunks"])
        port = machine.kv_port_bytes
        data = self.codes("append", port, f["source"] + head * f["source_stride"], chunk)
        high = plane.delay(name="append_high")
        taken = cat(*[mux(high, one[BYTE:], one[:BYTE]) for one in reversed(data)])

        parts = self.lanes // port
        read = chunk >> (parts.bit_length() - 1)
        vector = (position >> self.unit_log) * f["heads"] + head
        word = f["word"] + vector * f["vector_words"] + mux(two, read << 1, read) + plane
        address = fit(word, index_bits(model.kv.depth))
        depth = machine.kv_write
        mask = None
        if parts > 1:
            sub = chunk.truncate(parts.bit_length() - 1)
            mask = cat(*[sub == i for i in reversed(range(parts))])
            mask = mask.delay(depth, name="append_mask")
        late = cat(*([taken] * parts)).delay(depth - 1, name="append_word")
        where = address.delay(depth, name="append_address")
        unit = position.truncate(max(1, self.unit_log)) if self.unit_log else 0
        if model.external:
            self.append_outside(
                f,
                vector=(position >> self.unit_log, head),
                word=mux(two, read << 1, read) + plane,
                chunk=chunk,
                turn=turn,
                taken=taken,
                enable=code & outside,
            )
            code = code & ~outside
        writes = [
            Write(
                where, late, (code & (unit == t)).delay(depth, reset=0, name="append_enable"), mask
            )
            for t in range(self.units)
        ]

        m.output("append_ready", ~running)
        m.output("append_group", fit(f["entry"] + head, model.row_bits))
        mantissa = m.input("append_mantissa", SCALE_BITS)
        exponent = m.input("append_exponent", memories.EXPONENT_BITS, True)
        scale = cat(exponent.truncate(EXPONENT_BITS), mantissa)
        if model.kv.scale_bits < SCALE_WORD:
            byte = head_formulas.byte_of(Wires(m), ScaleOf(mantissa, exponent))
            scale = byte.as_unsigned().truncate(model.kv.scale_bits)
        lane_bits = self.width.bit_length() - 1
        row = f["scale_row"] + head * f["scale_stride"] + (position >> lane_bits)
        lane = position.truncate(max(1, lane_bits)) if lane_bits else m.constant(0)
        chosen = cat(*[m.constant(0) + (lane == i) for i in reversed(range(self.width))])
        m.output("append_done", last.delay(depth, reset=0, name="append_done"))
        return writes, Write(
            fit(row, index_bits(model.kv.scale_depth)).delay(depth, name="scale_address"),
            cat(*([scale] * self.width)).delay(depth - 1, name="scale_word"),
            (active & slot_end & f["dynamic"]).delay(depth, reset=0, name="scale_enable"),
            chosen.delay(depth, name="scale_lane"),
        )

    def append_turn(self, active: Signal) -> tuple[Signal, Signal, Signal]:
        """For a port that gives more than external memory takes in a cycle: which part of a chunk
        it is, whether it is the last one; and whether the token goes there."""
        m, model, machine = self.m, self.model, self.machine
        if not model.external:
            return m.constant(0), m.constant(1), m.constant(0)
        outside = (self.append_position >= machine.kv_on_die).named("append_outside")
        turns = machine.kv_port_bytes // machine.external_bytes
        if turns < 2:
            return m.constant(0), m.constant(1), outside
        turn = m.register("append_turn", (turns - 1).bit_length())
        end = ~outside | (turn == turns - 1)
        turn.drive(mux(active & ~end, up(turn), 0))
        return turn, end, outside

    def append_outside(
        self,
        f: dict[str, Signal],
        *,
        vector: tuple[Signal, Signal],
        word: Signal,
        chunk: Signal,
        turn: Signal,
        taken: Signal,
        enable: Signal,
    ) -> None:
        """The write port of external memory.

        Args:
            f: fields of the append.
            vector: block of the token, and head.
            word: of the vector.
            chunk: of the plane.
            turn: part of the chunk.
            taken: the chunk, a cycle later.
            enable: a chunk of codes goes there.
        """
        m, model, machine = self.m, self.model, self.machine
        block, head = vector
        lanes, port, size = machine.attention_lanes, machine.kv_port_bytes, machine.external_bytes
        depth = machine.kv_write
        first = ((block - model.inside_blocks) * f["heads"] + head) * f["block_beats"]
        position = self.append_position
        unit = position.truncate(self.unit_log) if self.unit_log else m.constant(0)
        # Bytes from the beginning of the block: wires of the parts of a word, H-Unit, word.
        place = (word << self.unit_log) + unit
        parts = lanes // port
        if parts > 1:
            place = (place << log2(parts)) + chunk.truncate(log2(parts))
        if port > size:
            row = (place << log2(port // size)) + turn
            late_turn = turn.delay(name="external_turn")
            taken = choose(
                late_turn, [taken[low : low + 8 * size] for low in range(0, 8 * port, 8 * size)]
            )
            mask = None
        else:
            per_row = log2(size // port)
            row = place >> per_row
            mask = None
            if per_row:
                index = place.truncate(per_row)
                mask = cat(*[index == i for i in reversed(range(1 << per_row))])
            taken = cat(*([taken] * (1 << per_row)))
        address = fit(f["external"] + first + row, index_bits(model.kv.external_depth))
        m.output("external_write_enable", enable.delay(depth, reset=0, name="external_enable"))
        m.output("external_write_address", address.delay(depth, name="external_address"))
        m.output("external_write_data", taken.delay(depth - 1, name="external_data"))
        if mask is not None:
            m.output("external_write_mask", mask.delay(depth, name="external_mask"))

    # Fetches from external memory

    def fetch(self, start: Signal, consumed: Signal) -> dict[str, Signal]:
        """Requests blocks from external memory, as early as buffers are free; the buffers' writes.

        Args:
            start: an instruction starts.
            consumed: the last step with a block from external memory.

        Returns:
            What every H-Unit's fetch ports get: `request`, `word` (of the buffer), `group` (of
            units), `part` (of a word), in the cycle of the data.
        """
        m, model, machine, f = self.m, self.model, self.machine, self.f
        buffers, inside = model.buffers, model.inside_blocks
        any_ = self.position >= machine.kv_on_die
        loading = m.register("fetching", 1)
        beat = m.register("fetch_beat", model.fields["block_beats"])
        block = m.register("fetch_block", self.block.width)
        kv = m.register("fetch_head", index_bits(model.kv_heads))
        buffer = m.register("fetch_buffer", log2(buffers))
        held = m.register("buffers_held", number_bits(buffers))
        begin = beat == 0
        request = (loading & (~begin | (held != buffers))).named("request")
        beat_end = (beat + 1) == f["block_beats"]
        # The first block is known in the cycle after the start.
        fresh = start.delay(reset=0, name="fetch_fresh")
        first = larger(self.first_block, inside).assume(0, (1 << block.width) - 1)
        here = mux(fresh, first, block)
        block_end = here == self.last_block
        kv_end = (kv + 1) == f["count"]
        done = request & beat_end
        loading.drive(mux(start, any_, loading & ~(done & block_end & kv_end)))
        beat.drive(mux(start | done, 0, mux(request, up(beat), beat)))
        following = mux(block_end, first, up(here))
        block.drive(mux(done, following, here).assume(0, (1 << block.width) - 1))
        kv.drive(mux(start, 0, mux(done & block_end, up(kv), kv)))
        buffer.drive(mux(done, up(buffer), buffer))
        freed = consumed.delay(machine.broadcast - 1, reset=0, name="buffer_freed")
        more = (held + (request & begin)).truncate(held.width)
        held.drive((more - freed).truncate(held.width))
        vector = (here - inside) * f["kv_heads"] + kv
        row = f["external"] + vector * f["block_beats"] + beat
        m.output("external_read_address", fit(row, index_bits(model.kv.external_depth)))
        late = machine.external_latency
        units, lanes, size = self.units, machine.attention_lanes, machine.external_bytes
        parts, per_row = max(1, lanes // size), max(1, size // lanes)
        place, bits = beat, log2(parts)
        part = place.truncate(bits) if bits else m.constant(0)
        place, bits = place >> bits, log2(units // per_row)
        group = place.truncate(bits) if bits else m.constant(0)
        word_bits = log2(model.buffer_words)
        word = (place >> bits).truncate(max(1, word_bits))
        word = cat(buffer, word) if word_bits else buffer
        signals = {"word": word, "group": group, "part": part}
        found = {name: one.delay(late, name=f"fetched_{name}") for name, one in signals.items()}
        found["request"] = request.delay(late, reset=0, name="fetched")
        return found

    def fetch_ports(self, unit: int, fetched: dict[str, Signal], data: Signal) -> dict[str, Signal]:
        """The fetch ports of an H-Unit."""
        lanes, size = self.machine.attention_lanes, self.machine.external_bytes
        per_row = max(1, size // lanes)
        bits = 8 * min(lanes, size)
        low = bits * (unit % per_row)
        ports = {
            "fetch_enable": fetched["request"] & (fetched["group"] == unit // per_row),
            "fetch_address": fetched["word"],
            "fetch_data": data[low : low + bits],
        }
        if (parts := max(1, lanes // size)) > 1:
            ports["fetch_mask"] = cat(*[fetched["part"] == i for i in reversed(range(parts))])
        return ports

    # The controller

    def control(self) -> None:
        """Counters of steps and beats."""
        m, model, machine = self.m, self.model, self.machine
        self.start = start = m.input("attention_start", 1)
        given = {name: m.input(f"attention_{name}", bits) for name, bits in model.fields.items()}
        self.f = f = {
            name: signal.delay(enable=start, name=f"attention_{name}_held")
            for name, signal in given.items()
        }
        weighted = f["weighted"]
        self.position = self.own(self.given_position, start, "attention_position_held")
        first = larger(self.given_position - given["reach"], 0)
        self.first = first.delay(enable=start, name="first_token")
        self.first_block = self.first >> self.unit_log
        self.last_block = self.position >> self.unit_log

        # Before the first block from external memory: the wait for it.
        begin = start
        if model.external:
            far = self.given_position >= machine.kv_on_die
            pause = m.register("pause", 1)
            waited = m.register("pause_count", model.fields["pause_last"])
            pause_end = pause & (waited == f["pause_last"])
            pause.drive(mux(start, far, pause & ~pause_end))
            waited.drive(mux(pause & ~pause_end, up(waited), 0))
            begin = ((start & ~far) | pause_end).named("started")

        # Beside a weighted sum's first steps: the heads' scales.
        prelude = m.register("prelude", 1)
        count = m.register("prelude_count", f["heads_last"].width)
        prelude_end = count == f["heads_last"]
        prelude.drive(mux(start, given["weighted"], prelude & ~prelude_end))
        count.drive(mux(prelude & ~prelude_end, up(count), 0))
        self.prelude = prelude
        self.prelude_head = count

        # Until the first sums may leave.
        waiting: Signal = m.constant(0)
        if model.most_hold:
            hold = m.register("hold", model.fields["hold_last"])
            waiting = (hold != 0).named("waiting")
            rest = mux(waiting, (hold - 1).truncate(hold.width), 0)
            hold.drive(mux(start & given["weighted"], given["hold_last"], rest))

        steps = self.steps(start, first, waiting)
        beat_end, final = self.beat_counters(steps)

        # A weighted sum pauses while its sums leave.
        summed = (beat_end & self.beats.weighted).named("summed")
        advance = (summed | (steps.head_end & ~weighted)).named("advance")
        over = (mux(weighted, summed & final, steps.head_end & steps.kv_end)).named("over")
        stop = steps.head_end & (weighted | steps.kv_end)
        steps.stepping.drive(begin | (summed & ~final) | (steps.stepping & ~stop))
        kv, base = self.kv, self.base
        kv.drive(mux(start | over, 0, mux(advance, up(kv), kv)))
        next_base = fit(base + f["shared"], base.width)
        base.drive(mux(start | over, 0, mux(advance, next_base, base)))
        busy = m.register("busy", 1)
        busy.drive(start | (busy & ~over))
        m.output("attention_ready", ~busy | over)
        last, delay = beat_end & final, self.early + self.late
        self.summed = (last & self.beats.weighted).delay(delay, reset=0, name="summed_done")
        scored = (last & ~self.beats.weighted).delay(delay, reset=0, name="scored_done")
        m.output("attention_done", self.summed | scored)
        if model.counts_scores_apart:
            apart = scored.delay(model.scores_peak, reset=0, name="scores_counted")
            after = self.summed.delay(model.sums_peak, reset=0, name="sums_counted")
            m.output("attention_reduced", apart | after)

    def steps(self, start: Signal, first: Signal, waiting: Signal) -> _Steps:
        """Counters of steps from the inside to the outside; `kv` and `base` are driven later.

        Args:
            start: an instruction starts.
            first: the first token that it reads.
            waiting: sums may not leave yet.
        """
        m, model, f = self.m, self.model, self.f
        stepping = m.register("stepping", 1)
        inner_done = m.register("inner_done", 1)
        step = (stepping & ~inner_done).named("step")
        ends: list[Signal] = []
        carry = step
        self.counters: list[Register] = []
        for name in ("passes", "planes", "reads", "groups"):
            counter = m.register(f"step_{name}", model.fields[f"{name}_last"])
            end = counter == f[f"{name}_last"]
            counter.drive(mux(carry, mux(end, 0, up(counter)), counter))
            carry = carry & end
            ends.append(end)
            self.counters.append(counter)
        self.step, self.ends = step, ends
        block_bits = number_bits(max(1, (model.capacity - 1) >> self.unit_log))
        block = m.register("block", block_bits)
        self.block = block
        most = max(model.fields["interval_last"], model.fields.get("slow_last", 0))
        interval = m.register("interval", most)
        interval_last = f["interval_last"]
        if model.external:
            self.outside = (block >= model.inside_blocks).named("outside")
            interval_last = mux(self.outside, f["slow_last"], interval_last)
        slot_over = interval == interval_last
        slot_end = (stepping & slot_over & ~(waiting & (block == self.last_block))).named(
            "slot_end"
        )
        interval.drive(mux(stepping & ~slot_end, mux(slot_over, interval, up(interval)), 0))
        inner_done.drive((inner_done | carry) & ~slot_end & ~start)
        self.kv = kv = m.register("kv_head", index_bits(model.kv_heads))
        self.base = m.register("head_base", index_bits(model.heads))
        block_end = (block == self.last_block).named("block_end")
        kv_end = ((kv + 1) == f["count"]).named("kv_end")
        head_end = slot_end & block_end
        next_block = mux(block_end, self.first_block, up(block))
        block.drive(
            mux(start, first >> self.unit_log, mux(slot_end, next_block, block)).assume(
                0, (1 << block_bits) - 1
            )
        )
        if model.external:
            self.fetched = self.fetch(start, slot_end & self.outside)
            buffer = m.register("step_buffer", log2(model.buffers))
            used = slot_end & self.outside
            buffer.drive(mux(used, up(buffer), buffer))
            self.step_buffer = buffer
        return _Steps(stepping, slot_end, block_end, kv_end, head_end)

    def beat_counters(self, steps: _Steps) -> tuple[Signal, Signal]:
        """The end of a head's beats, and whether they are the last of the instruction."""
        m, model = self.m, self.model
        self.trigger = trigger = (steps.slot_end & (~self.f["weighted"] | steps.block_end)).named(
            "trigger"
        )
        # What leaves is of an instruction that may have left the steps to the next one.
        self.b = b = {
            name: self.f[name].delay(enable=trigger, name=f"beat_{name}")
            for name in _LEAVING
            if name in self.f
        }
        self.lines: dict[str, list[Signal]] = {name: [signal] for name, signal in b.items()}
        weighted = b["weighted"]
        on = m.register("beat", 1)
        part = m.register("beat_part", self.part_bits)
        member = m.register("beat_member", index_bits(model.shared))
        beats = [one.beats for one in model.sum_shapes]
        scored = -(-model.shared // self.together)
        number = m.register("beat_number", index_bits(max(scored, *beats)))
        parts_last = self.parts - 1
        part_end = part == mux(weighted, b["beats_last"], parts_last)
        next_member = member + b["beat_heads"]
        member_end = next_member >= b["shared"]
        head_done = on & part_end
        beat_end = (head_done & member_end).named("beat_end")
        on.drive(trigger | (on & ~beat_end))
        part.drive(mux(on & ~part_end, up(part), 0))
        again = trigger | beat_end
        next_member = fit(next_member, member.width)
        member.drive(mux(again, 0, mux(head_done, next_member, member)))
        counts = head_done | (on & weighted)
        number.drive(mux(again, 0, mux(counts, up(number), number)))
        final = (steps.kv_end & steps.block_end).delay(enable=trigger, name="beat_final")
        beat_kv = self.kv.delay(enable=trigger, name="beat_kv")
        beat_base = self.base.delay(enable=trigger, name="beat_base")
        beat_block = self.block.delay(enable=trigger, name="beat_block")
        beat_first = self.first.delay(enable=trigger, name="beat_first")
        beat_position = self.own(self.position, trigger, "beat_position")
        self.beats = _Beats(
            on, number, member, member_end & part_end,
            fit(beat_base + member, index_bits(model.heads)), part, beat_kv,
            beat_block, beat_first, beat_position, weighted,
        )  # fmt: skip
        return beat_end, final

    def own(self, position: Signal, enable: Signal, name: str) -> Signal:
        """A position for as long as an instruction, or what leaves of it, needs it: with contexts
        the next instruction may be another token's."""
        if self.machine.contexts == 1:
            return position
        return position.delay(enable=enable, name=name)

    def late_field(self, name: str, cycles: int) -> Signal:
        """A field of the instruction whose beat went so many cycles ago."""
        line = self.lines[name]
        while len(line) <= cycles:
            line.append(line[-1].delay(name=f"{name}_at{len(line)}"))
        return line[cycles]

    @property
    def part_bits(self) -> int:
        """Wires of a beat's number within its head."""
        return max(self.model.fields["beats_last"], index_bits(self.parts))

    # Operands and the array

    def array(
        self, unit: ModuleBuilder, write: list[Write], beats: _Beats
    ) -> list[dict[str, Signal]]:
        """All H-Units, with their operands."""
        m, model, machine, f = self.m, self.model, self.machine, self.f
        passes, planes, reads, groups = self.counters
        parallel, deep = machine.query_parallel, machine.broadcast - 1

        # Codes of `query_parallel` heads: rows now, data in the next cycle, at the units `deep`
        # cycles from now. Heads beyond the last read what the first reads.
        query: list[Signal] = []
        probability: list[list[Signal]] = []
        place: list[list[Signal]] = []
        high = passes.delay(name="high")
        for p in range(parallel):
            member = groups * parallel + p
            head = self.base + mux(member < f["shared"], member, 0)
            row = f["source"] + head * f["source_stride"]
            elements = self.codes("query", self.lanes, row, reads, p)
            query += [mux(high, one[BYTE:], one[:BYTE]) for one in elements]
            tokens = self.codes("probability", self.units, row, self.block, p)
            probability.append([mux(high, one[BYTE:], one[:BYTE]) for one in tokens])
            place.append([one[BYTE : BYTE + PLACE_BITS] for one in tokens])
        query_bytes = cat(*reversed(query)).delay(deep - 1, name="query")

        element = reads * self.lanes
        mask = cat(*[element + i < f["width"] for i in reversed(range(self.lanes))])
        integer = ~f["weighted"] & ~f["query_fp8"]
        first = ~passes.any() & ~planes.any()
        first = first & mux(f["weighted"], self.block == self.first_block, ~reads.any())
        vector = self.block * f["kv_heads"] + self.kv
        word = f["word"] + vector * f["vector_words"] + mux(f["planes_last"], reads << 1, reads)
        shared: dict[str, Signal] = {
            "address": fit(word + planes, index_bits(model.kv.depth)),
            "first": first,
            "group": groups,
            "read": reads,
            "place": passes + planes,
            "query_sign": integer & self.ends[0],
            "kv_sign": self.ends[1],
            "lanes": mask,
        }
        shared |= {name: f[name] for name in ("weighted", "query_fp8", "kv_fp8")}
        if model.external:
            index = mux(f["planes_last"], reads << 1, reads) + planes
            word_bits = log2(model.buffer_words)
            where = self.step_buffer
            if word_bits:
                where = cat(where, fit(index, word_bits))
            shared |= {"outside": self.outside, "buffer_address": where}
        shared = {name: s.delay(deep, name=f"unit_{name}") for name, s in shared.items()}
        shared["step"] = self.step.delay(deep, reset=0, name="unit_step")
        shared["query"] = query_bytes
        sum_beat: Signal = beats.number
        if len(model.sum_shapes) > 1:
            counts = [one.beats for one in model.sum_shapes]
            firsts = [sum(counts[:number]) for number in range(len(counts))]
            sum_beat = choose(self.b["sum_shape"], firsts) + sum_beat
        late = {"dot_beat": beats.number, "sum_beat": sum_beat}
        ports = {port.name: port for port in unit.ports}
        for name, signal in late.items():
            if name not in ports:
                continue
            shared[name] = fit(signal, ports[name].width).delay(self.early, name=f"unit_{name}")
        # The cycle after the last step of a block is that of its first beat.
        load = self.trigger & ~f["weighted"]
        shared["load"] = load.delay(self.early, reset=0, name="unit_load")
        present = _delayed(self.seen(self.block, self.first, self.position), deep, "unit_present")
        bytes_ = [cat(*reversed(each)) for each in zip(*probability, strict=True)]
        bytes_ = _delayed(bytes_, deep - 1, "probability")
        places: list[Signal] = []
        if model.shape.placed:
            places = [cat(*reversed(each)) for each in zip(*place, strict=True)]
            places = _delayed(places, deep - 1, "probability_place")
        found: list[dict[str, Signal]] = []
        external = m.constant(0)
        if model.external:
            external = m.input("external_read_data", 8 * machine.external_bytes)
        for t in range(self.units):
            inputs = {
                **shared,
                "present": present[t],
                "probability": bytes_[t],
                **({"probability_place": places[t]} if places else {}),
                "write_enable": write[t].enable,
                "write_address": write[t].address,
                "write_data": write[t].data,
            }
            if (mask := write[t].mask) is not None:
                inputs["write_mask"] = mask
            if model.external:
                inputs |= self.fetch_ports(t, self.fetched, external)
            found.append(m.instance(f"h_unit{t}", unit, inputs))
        return found

    # Results

    def scores(
        self, lane: ModuleBuilder, beats: _Beats, scales: Signal, dots: list[Signal]
    ) -> Signal:
        """Beats of query_key, from the dot products to the scores' memory; saturations."""
        m, model, b = self.m, self.model, self.b
        together, bits = self.together, model.shape.dot_bits
        on = beats.on & ~b["weighted"]
        heads = [on] + [on & (beats.member + i < b["shared"]) for i in range(1, together)]
        query_depth, _ = _scale_depths(self.machine)

        def scaled(*scales: Signal) -> Scale:
            query, factor = Scale(*scales[:2]), Scale(*scales[2:])
            return datapaths.multiply(query, factor)

        queries: list[tuple[Signal, ...]] = []
        for head in range(together):
            name = f"query_scale{head}"
            m.output(f"{name}_group", fit(b["entry"] + beats.head + head, model.row_bits))
            queries.append(
                pipelined(
                    scaled,
                    [
                        m.input(f"{name}_mantissa", SCALE_BITS),
                        m.input(f"{name}_exponent", memories.EXPONENT_BITS, True),
                        self.late_field("factor_mantissa", 1),
                        self.late_field("factor_exponent", 1).as_signed(),
                    ],
                    query_depth,
                ).outputs
            )
        seen = self.seen(beats.block, beats.first, beats.position)
        count = self.count
        if self.parts > 1:
            seen = [choose(beats.part, seen[i::count]) for i in range(count)]
            late_part = beats.part.delay(self.early, name="dot_part")
            dots = [choose(late_part, dots[i::count]) for i in range(count)]
        lanes = seen
        if count < self.width:
            sub = self.token_group(beats).truncate(self.sub_bits)
            size = SCALE_WORD * count
            blocks = [scales[low : low + size] for low in range(0, SCALE_WORD * self.width, size)]
            scales = choose(sub.delay(name="key_scale_sub"), blocks)
            lanes = [(sub == i // count) & lanes[i % count] for i in range(self.width)]
        static = self.late_field("static", 1)
        constant = cat(
            fit(self.late_field("scale_exponent", 1), memories.EXPONENT_BITS),
            self.late_field("scale_mantissa", 1),
        )
        words: list[Signal] = []
        for i in range(count):
            word = scales[SCALE_WORD * i : SCALE_WORD * (i + 1)]
            stored = word[SCALE_BITS:].as_signed().extend(memories.EXPONENT_BITS, True)
            words.append(mux(static, constant, cat(stored, word[:SCALE_BITS])))
        words = _delayed(words, query_depth, "key")
        control = connections(
            lane, ("pre_shift", "cap"), lambda name, late: self.late_field(name, self.early + late)
        )
        losses = self.losses(beats) if model.sloped else []
        row = b["target"] + beats.head * b["target_stride"] + self.token_row(beats)
        delay = self.early + self.late
        saturated: list[Signal] = []
        for head, query in enumerate(queries):
            values: list[Signal] = []
            flags: list[Signal] = []
            for i, word in enumerate(words):
                out = m.instance(
                    f"score{head * count + i}",
                    lane,
                    {
                        "query_mantissa": query[0],
                        "query_exponent": query[1],
                        "key_mantissa": word[:SCALE_BITS],
                        "key_exponent": word[SCALE_BITS:].as_signed(),
                        "dot": dots[i][bits * head : bits * (head + 1)].as_signed(),
                        **({"loss": losses[head][i]} if losses else {}),
                        **control,
                    },
                )
                values.append(out["score"])
                flags.append(out["saturated"])
            name = f"score{head}"
            where = fit(row + b["target_stride"] * head, model.row_bits)
            enables = _delayed([heads[head] & one for one in lanes], delay, f"{name}_lane", reset=0)
            m.output(f"{name}_enable", cat(*enables).any())
            m.output(f"{name}_row", where.delay(delay, name=f"{name}_row"))
            m.output(f"{name}_data", cat(*[values[i % count] for i in reversed(range(self.width))]))
            m.output(f"{name}_lanes", cat(*reversed(enables)))
            saturated += [mux(e, flags[i % count], 0) for i, e in enumerate(enables)]
            there = [cat(*enables[i::count]).any() for i in range(count)]
            self.largest(beats, head, heads[head], values, there)
        return add_all(saturated)

    def losses(self, beats: _Beats) -> list[list[Signal]]:
        """What the distance takes of each score of a beat, by head, with the dot products."""
        m, model, b = self.m, self.model, self.b
        lane_bits = self.width.bit_length() - 1
        bits = index_bits(model.capacity)
        count_bits = self.count.bit_length() - 1
        first = fit(self.token_group(beats) << count_bits, bits)
        distances = [
            fit(beats.position - first - i, bits).delay(name=f"distance{i}")
            for i in range(self.count)
        ]
        found: list[list[Signal]] = []
        for head in range(self.together):
            name = f"slope{head}"
            place = mux(b["sloped"], b["slope"] + beats.head + head, 0)
            address = index_bits(model.constant_rows)
            m.output(f"{name}_address", fit(place >> lane_bits, address))
            data = m.input(f"{name}_data", FIXED_BITS * self.width)
            words = [data[FIXED_BITS * i : FIXED_BITS * (i + 1)] for i in range(self.width)]
            lane = place.truncate(lane_bits).delay(name=f"{name}_lane") if lane_bits else None
            word = words[0] if lane is None else choose(lane, words)
            slope = mux(self.late_field("sloped", 1), word, 0).as_signed()

            def taken(slope: Signal, distance: Signal) -> Signal:
                return distance_loss(Wires(m), slope, distance).extend(_loss_bits(model), True)

            found.append(
                [
                    pipelined(taken, [slope, distance], self.early - 1).outputs[0]
                    for distance in distances
                ]
            )
        return found

    def largest(
        self,
        beats: _Beats,
        number: int,
        on: Signal,
        scores: Sequence[Signal],
        there: Sequence[Signal],
    ) -> None:
        """The largest score of each head that leaves at one of the places of a beat.

        Args:
            beats: in the controller.
            number: of the place.
            on: a head of theirs leaves there.
            scores: of a beat, when they are written.
            there: which of them count.
        """
        m, model, b = self.m, self.model, self.b
        name, delay = f"largest{number}", self.early + self.late
        lowest = -(1 << (FIXED_BITS - 1))

        def maximum(*given: Signal) -> Signal:
            return tree(given, lambda x, y: larger(x, y).cut())

        given = [
            mux(one, score.as_signed(), lowest) for one, score in zip(there, scores, strict=True)
        ]
        depth = self.machine.vector_reduce - 1
        (value,) = pipelined(maximum, given, depth).outputs
        delay += depth
        opens = (beats.block == (beats.first >> self.unit_log)) & (beats.part == 0)
        closes = (beats.block == (beats.position >> self.unit_log)) & (beats.part == self.parts - 1)
        opens = opens.delay(delay, name=f"{name}_opens")
        kept: list[Signal] = []
        for group in range(-(-model.shared // self.together)):
            here = (on & (beats.number == group)).delay(delay, reset=0, name=f"{name}_here")
            register = m.register(f"{name}_of{group}", FIXED_BITS, True)
            register.drive(mux(opens, value, larger(register, value)), here)
            kept.append(register)
        entry = fit(b["head"] + beats.head + number, model.head_bits)
        written = delay + 1
        which = beats.number.delay(written, name=f"{name}_which")
        m.output(f"{name}_enable", (on & closes).delay(written, reset=0, name=f"{name}_over"))
        m.output(f"{name}_row", entry.delay(written, name=f"{name}_row"))
        m.output(f"{name}_data", choose(which, kept))

    def sums(self, lane: ModuleBuilder, beats: _Beats, sums: list[Signal]) -> tuple[Signal, Signal]:
        """Beats of weighted_sum, from the units' sums to the vector memory; saturations, enable."""
        m, model, b = self.m, self.model, self.b
        output, bits = model.output, model.shape.sum_bits
        _, read = durations.looked_up(self.machine)
        scales = self.head_scales(beats)
        controls: dict[tuple[int, ...], dict[str, Signal]] = {}

        def control(of: tuple[int, ...]) -> dict[str, Signal]:
            """What lanes get whose element is of that head of a beat, in each shape."""
            if of not in controls:
                mantissa, exponent = (
                    [scale[part] for scale in (scales[head] for head in of)] for part in (0, 1)
                )
                lines = {"mantissa": mantissa[:1], "exponent": exponent[:1]}
                if len(set(of)) > 1:
                    which = self.late_field("sum_shape", self.early + read)
                    lines = {
                        "mantissa": [choose(which, mantissa)],
                        "exponent": [choose(which, exponent)],
                    }

                def late(name: str, cycles: int) -> Signal:
                    cycles += self.machine.reduce
                    if name not in lines:
                        return self.late_field(name, self.early + cycles)
                    line, cycles = lines[name], cycles - read
                    while len(line) <= cycles:
                        line.append(line[-1].delay(name=f"head_{name}_at{len(line)}"))
                    return line[cycles]

                names = "mantissa", "exponent", "pre_shift", "frac"
                controls[of] = connections(lane, names, late)
            return controls[of]

        values: list[Signal] = []
        flags: list[Signal] = []
        for i in range(output):
            inputs: dict[str, Signal] = {
                f"part{t}": one[bits * i : bits * (i + 1)].as_signed() for t, one in enumerate(sums)
            }
            of = tuple(i // one.width if i < one.size and one.heads > 1 else 0
                       for one in model.sum_shapes)  # fmt: skip
            out = m.instance(f"sum{i}", lane, inputs | control(of))
            values.append(out["element"])
            flags.append(out["saturated"])

        # Heads follow one another without gaps, so the next element's number just counts on.
        on = beats.on & b["weighted"]
        lane_bits = self.width.bit_length() - 1
        linear = m.register("result_element", model.row_bits + lane_bits)
        size = mux(beats.last, b["last_size"], b["beat_size"])
        following = fit(linear + size, linear.width)
        opening = self.trigger & (self.kv == 0)
        linear.drive(mux(opening, self.f["lane"], mux(on, following, linear)))
        offset = linear.truncate(lane_bits) if lane_bits else m.constant(0)
        lanes = [on & (offset <= i) & (offset + size > i) for i in range(self.width)]
        spilled = [on & (offset + size > self.width + i) for i in range(self.width)]
        delay = self.early + self.late
        enables = _delayed(lanes, delay, "result_lane", reset=0)
        step = model.turn
        turn = m.constant(0)
        if step < output:
            first = step.bit_length() - 1
            turn = offset.extend(max(offset.width, output.bit_length()))
            turn = turn[first : output.bit_length() - 1]
        turn = turn.delay(delay, name="result_turn")
        data = [
            choose(turn, [values[(i - k) % output] for k in range(0, output, step)])
            for i in range(self.width)
        ]
        row = fit(b["target"] + (linear >> lane_bits), model.row_bits)
        enable = on.delay(delay, reset=0, name="result_enable")
        m.output("result_enable", enable)
        m.output("result_row", row.delay(delay, name="result_row"))
        m.output("result_data", cat(*reversed(data)))
        m.output("result_lanes", cat(*reversed(enables)))
        if model.crosses:
            spills = _delayed(spilled, delay, "spill_lane", reset=0)
            following = fit(row + 1, model.row_bits).delay(delay, name="spill_row")
            m.output("spill_enable", cat(*spills).any())
            m.output("spill_row", following)
            m.output("spill_data", cat(*reversed(data)))
            m.output("spill_lanes", cat(*reversed(spills)))
        inside = _delayed([size > i for i in range(output)], delay, "result_size")
        if model.leaves_peaks:
            self.leave_peak(values, inside, enable)
        counted = [flag & here for flag, here in zip(flags, inside, strict=True)]
        return add_all(counted), enable

    def leave_peak(
        self, values: Sequence[Signal], inside: Sequence[Signal], enable: Signal
    ) -> None:
        """The largest magnitude of the sums.

        Args:
            values: those of a beat, when they are written.
            inside: whether they are.
            enable: there is a beat.
        """
        delay = self.early + self.late
        quantized = self.model.looks_up_peaks
        fields = {
            one.name: self.late_field(one.name, delay)
            for one in peaks.fields_of(quantized=quantized)
        }
        peaks.give(
            self.m,
            ATTENTION,
            [mux(here, one.as_signed(), 0) for here, one in zip(inside, values, strict=True)],
            on=enable & fields["peak"],
            last=self.summed & fields["peak"] & fields["peak_last"],
            fields=fields,
            quantized=quantized,
            cycles=self.machine.vector_reduce,
        )

    def head_scales(self, beats: _Beats) -> list[Scale]:
        """Probability scale over sum, of the heads of the beat that leaves the array."""
        m, model, f = self.m, self.model, self.f
        number = self.prelude_head
        there, read = durations.looked_up(self.machine)
        wait = self.machine.early.sums
        row = fit(f["head"] + number, model.head_bits)
        m.output("head_row", row.delay(wait, name="head_row_late") if wait else row)

        def over(mantissa: Signal, exponent: Signal, total: Signal) -> Scale:
            inverse = reciprocal_scale(Wires(m), total, PROBABILITY_FRAC)
            return datapaths.multiply(Scale(mantissa, exponent), inverse)

        depth = self.machine.table_lookup
        mantissa, exponent = pipelined(
            over,
            [
                m.input("head_mantissa", SCALE_BITS),
                m.input("head_exponent", memories.EXPONENT_BITS, True),
                m.input("head_total", SUM_BITS),
            ],
            depth - 1,
        ).outputs
        bits = index_bits(model.heads)
        # No earlier than the last of the instruction before have been read.
        used = self.early - 1 + read
        written = max(there, used)
        mantissa, exponent = (s.delay(written - there) for s in (mantissa, exponent))
        heads = [beats.head]
        for i in range(1, max(one.heads for one in model.sum_shapes)):
            leaves = (beats.member + i) < self.b["shared"]
            heads.append(fit(beats.head + mux(leaves, m.constant(i), 0), bits))
        words = m.ram(
            "head_scales",
            max(2, model.heads),
            SCALE_BITS + exponent.width,
            [head.delay(used, name="head_scale") for head in heads],
            [
                Write(
                    fit(number, bits).delay(written, name="head_scale_address"),
                    cat(exponent, mantissa),
                    self.prelude.delay(written, reset=0, name="head_scale_enable"),
                )
            ],
        )
        return [Scale(word[:SCALE_BITS], word[SCALE_BITS:].as_signed()) for word in words]

    # Parts

    def key_scale_row(self) -> Signal:
        """The row of the key scales of a beat's tokens."""
        beats, b = self.beats, self.b
        row = b["scale_row"] + beats.kv * b["scale_stride"] + self.token_row(beats)
        return fit(row, self.model.fields["scale_row"])

    def token_row(self, beats: _Beats) -> Signal:
        """The row, within those of a head, of a beat's tokens."""
        return self.token_group(beats) >> self.sub_bits

    @property
    def sub_bits(self) -> int:
        """Wires of a beat's number within a row."""
        return (self.width // self.count).bit_length() - 1

    def token_group(self, beats: _Beats) -> Signal:
        """The number of a beat's tokens, counted in beats from token 0."""
        if self.parts == 1:
            return beats.block
        return (beats.block << (self.parts.bit_length() - 1)) + mux(beats.weighted, 0, beats.part)

    def seen(self, block: Signal, first: Signal, position: Signal) -> list[Signal]:
        """For each H-Unit whether the query sees its token of a block.

        Args:
            block: of tokens.
            first: the first token that it sees.
            position: the last one.
        """
        bits = self.unit_log
        low = first.truncate(bits) if bits else self.m.constant(0)
        high = position.truncate(bits) if bits else self.m.constant(0)
        at_first, at_last = block == (first >> bits), block == (position >> bits)
        return [(~at_first | (low <= t)) & (~at_last | (high >= t)) for t in range(self.units)]

    def codes(
        self, name: str, count: int, row: Signal, index: Signal, number: int = 0
    ) -> list[Signal]:
        """The `index`-th `count` codes of a vector that begins at `row`, in the next cycle.

        Makes the read ports ``name<i>``; `number` says how many users of so many ports there were.
        """
        m, ports = self.m, max(1, count // self.width)
        rows: list[Signal] = []
        sub = index
        if count < self.width:
            sub_bits = (self.width // count).bit_length() - 1
            sub = index.truncate(sub_bits).delay(name=f"{name}_sub")
            row = row + (index >> sub_bits)
        else:
            row = row + index * ports
        for port in range(ports):
            label = f"{name}{number * ports + port}"
            m.output(f"{label}_row", fit(row + port, self.model.row_bits))
            rows.append(m.input(f"{label}_data", CODE_BITS * self.width))
        if count < self.width:
            size = CODE_BITS * count
            word = choose(
                sub,
                [rows[0][low : low + size] for low in range(0, CODE_BITS * self.width, size)],
            )
        else:
            word = cat(*reversed(rows))
        return [word[CODE_BITS * i : CODE_BITS * (i + 1)] for i in range(count)]


def _delayed(
    signals: Sequence[Signal], cycles: int, name: str, reset: int | None = None
) -> list[Signal]:
    """Unsigned signals of one width some cycles later: one register a cycle for all of them."""
    (width,) = {signal.width for signal in signals}
    word = cat(*reversed(signals)).delay(cycles, reset=reset, name=name)
    return [word[width * i : width * (i + 1)] for i in range(len(signals))]


class _Steps(NamedTuple):
    """Where the steps of an instruction are."""

    stepping: Register
    slot_end: Signal
    block_end: Signal
    kv_end: Signal
    head_end: Signal
