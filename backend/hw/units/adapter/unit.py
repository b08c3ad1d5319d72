"""The adapter unit: products with low-rank adapters in the H-Units' SRAM, and the load port.

`adapter_unit` executes the `matvec` instructions of the attention queue. It holds adapter SRAM and
scales of every H-Unit (`h_unit<t>/codes`, `h_unit<t>/scales`), and the registers of the sites.

**Steps and beats** are those of the attention unit: an instruction that starts in cycle s has its
first step in cycle s + 1. In a step every H-Unit multiplies a word of its row with the same word of
the vector, a byte of each element of the vector at a time, and adds the product times the scale of
the group to its sum. Loops, from the inside: bytes, words of a row, blocks of `h_units` rows. After
a block its results leave in *beats* of `results_per_cycle` rows, are requantised, and get the
residual added, while the next block is multiplied; after the last one that may be the first block
of the next instruction (`ready`). Fields go with the steps, then with the beats. Results of a
matrix that begins at another H-Unit than the first are turned, so that row 0 leaves first.

**Rank.** Of a site's first matrix the rows below its rank are multiplied; the others are 0, and
blocks without any row below it take only their beats. Of the second matrix the words with columns
below the rank are read; at rank 0 the result is the residual.

**Residents.** Of several resident adapters the register `active` selects one: its offset is added
to the first places of a slot's words and scales, and its ranks and exponents are those that count.

Attention takes turns with it: its scores may still leave when a product starts, and are out of the
array by the last step of that (`AdapterModel.hold`), so all finish in the order of their starts.

`lowering.schedule.durations` (`adapter_beat`, `slot_beat`) states when it is `done`: in the cycle
of the last write.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from intaglio.backend.hw.units.adapter.layout import (
    ACTIVE,
    CODES,
    EXPONENT_BITS,
    SCALE_BITS,
    SCALES,
    SITES,
    AdapterPlaces,
)
from intaglio.backend.hw.units.adapter.sizes import PLACES_BITS, AdapterModel
from intaglio.backend.hw.units.attention.h_unit import BYTE, Element, element
from intaglio.backend.hw.units.attention.sizes import machine_refusals, number_bits
from intaglio.backend.hw.units.refusals import refuse
from intaglio.backend.hw.wires.follow import connections, followed
from intaglio.backend.hw.wires.reader import Wires
from intaglio.backend.hw.wires.signal import (
    Design,
    ModuleBuilder,
    Operand,
    Signal,
    Write,
    add_all,
    cat,
    choose,
    larger,
    mux,
    pipelined,
)
from intaglio.backend.hw.wires.widths import fit, index_bits, log2, up
from intaglio.dialects import memories
from intaglio.dialects.fixed_point import FIXED_BITS
from intaglio.dialects.fixed_point import SCALE_BITS as MANTISSA_BITS
from intaglio.dialects.formats import EXPONENTS
from intaglio.dialects.formulas import blocks
from intaglio.dialects.formulas.products import requantize
from intaglio.dialects.formulas.reader import ScaleOf
from intaglio.lowering.schedule import durations

_LEAVING = ("source", "target", "residual", "residual_row", "rows", "pre_shift")
"""Fields that count when results leave the array."""


def adapter_unit(design: Design, model: AdapterModel) -> ModuleBuilder:
    """The module `adapter_unit`.

    Ports, with W = `vector_lanes`; a row given in a cycle is answered by its data in the next one:

    - `start`, the fields (`AdapterModel.fields`, in the cycle of the start only), `done` (in the
      cycle of the last write), `ready` (an instruction may start).
    - `input<i>_row`, `input<i>_data`: codes of the vector, W of 16 bits; max(1, attention_lanes /
      W) ports. `input_group`, `input_mantissa`, `input_exponent`: its scale.
    - `steps<i>_row`, `steps<i>_data`: exponent and step of each block of the same rows, and
      `norm_row`, `norm_mantissa`, `norm_exponent`: the factor of a norm. Where there are such.
    - `residual_row`, `residual_data`: W numbers of 32 bits.
    - `result_enable`, `result_row`, `result_data`, `result_lanes`: write port of the vector memory.
    - `load_enable`, `load_address`, `load_data`: the load port (`adapter/layout.py`), never while
    an
      instruction runs.
    - `saturations`: how many values saturated among those written in this cycle.

    Raises:
        UserError: the machine cannot be built.
    """
    refuse(machine_refusals(model.machine))
    unit = _h_unit(design, model)
    lane = _lane(design, model)

    def build(m: ModuleBuilder) -> None:
        _Unit(m, model).build(unit, lane)

    return design.shared("adapter_unit", build)


def _h_unit(design: Design, model: AdapterModel) -> ModuleBuilder:
    """The adapter part of an H-Unit: SRAM, scales, multipliers, the sum of a row.

    Ports (a step is named by the cycle of its inputs): `code_...`, `scale_...`: write ports.
    `step`: the other step inputs hold; `address`, `scale_address`; `first`: the sum's old content
    does not count; `place`: weight of the vector's bytes; `vector` (a byte for each lane), `sign`
    (they are two's complement), `source_fp8`, `weight_fp8` (E4M3), `steps` (exponent and step of
    the vector's blocks, the first at the low bits), `source_blocks` (it has some). The sum shows
    the step `attention_pipeline` cycles later, one more where there are blocks. `keep`: copies the
    sum to where it waits to leave, `result`.
    """
    machine, places = model.machine, model.places
    lanes, bits = machine.attention_lanes, places.element_bits

    def build(m: ModuleBuilder) -> None:
        code = Write(
            m.input("code_address", index_bits(places.depth)),
            m.input("code_data", places.word_bits),
            m.input("code_enable", 1),
            m.input("code_mask", places.parts) if places.parts > 1 else None,
        )
        scale_write = Write(
            m.input("scale_write_address", index_bits(places.scale_depth)),
            m.input("scale_data", SCALE_BITS),
            m.input("scale_enable", 1),
        )
        step = m.input("step", 1)
        (word,) = m.ram(
            "codes",
            places.depth,
            places.word_bits,
            [m.input("address", index_bits(places.depth))],
            [code],
            places.parts if places.parts > 1 else 0,
        )
        (scale,) = m.ram(
            "scales",
            places.scale_depth,
            SCALE_BITS,
            [m.input("scale_address", index_bits(places.scale_depth))],
            [scale_write],
        )
        vector = m.input("vector", BYTE * lanes).delay(name="vector_q")
        place = m.input("place", 1).assume(0, model.passes - 1)
        flags = {name: m.input(name, 1) for name in ("sign", *model.mixed)}
        late = {name: flag.delay(name=f"{name}_q") for name, flag in flags.items()}
        if model.steps:
            steps = m.input("steps", model.word_blocks * memories.STEP_BITS)
            late["steps"] = steps.delay(name="steps_q")
        fp8, integer = "fp8" in model.formats, model.formats != frozenset({"fp8"})

        def products(
            word: Signal,
            scale: Signal,
            vector: Signal,
            place: Signal,
            *more: Signal,
        ) -> Signal:
            given = dict(zip(late, more, strict=True))
            zero = m.constant(0)
            source_fp8, weight_fp8 = (
                given.get(name, zero) for name in ("source_fp8", "weight_fp8")
            )
            sign = given["sign"]
            row: list[Signal] = []
            for i in range(lanes):
                a = element(vector[BYTE * i : BYTE * (i + 1)], sign, source_fp8, fp8, integer)
                b = _weight(word[bits * i : bits * (i + 1)], weight_fp8, model)
                product = (a.mantissa * b.mantissa).cut()
                row.append(product << (a.exponent + b.exponent))
            row = [one.cut() for one in row]
            size = lanes // model.word_blocks
            sums = [add_all(row[low : low + size]) for low in range(0, lanes, size)]
            if model.steps and len(sums) > 1:
                # Blocks of a word are brought to one unit before they are added.
                sums = [one.cut() for one in _aligned(sums, given, model)]
            total = (add_all(sums) << (place << 3)).cut()
            scaled = (total * scale.as_signed()).named("scaled").cut()
            if model.steps and len(sums) == 1:
                (scaled,) = _aligned([scaled], given, model)
            return scaled.cut()

        (part,) = pipelined(
            products,
            [word, scale, vector, place.delay(name="place_q"), *late.values()],
            machine.attention_pipeline - 2 + durations.adapter_stage(machine),
        ).outputs
        more = machine.attention_pipeline - 1 + durations.adapter_stage(machine)
        now = step.delay(more, reset=0, name="now")
        first = m.input("first", 1).delay(more, name="now_first")
        total = m.register("sum", model.accumulator_bits, True, None)
        total.drive((mux(first, 0, total) + part).truncate(total.width, True), now)
        m.output("result", total.delay(enable=m.input("keep", 1), name="waiting"))

    return design.shared("adapter_h_unit", build)


def _aligned(
    sums: Sequence[Signal], given: Mapping[str, Signal], model: AdapterModel
) -> list[Signal]:
    """Sums of blocks' codes in the unit of all blocks: `formulas.blocks.integer`."""
    found: list[Signal] = []
    for number, one in enumerate(sums):
        low = number * memories.STEP_BITS
        exponent = given["steps"][low : low + blocks.EXPONENT_BITS].as_unsigned()
        half = given["steps"][low + blocks.EXPONENT_BITS : low + memories.STEP_BITS].as_unsigned()
        block = blocks.Block(exponent, half)
        moved = blocks.integer(Wires(one.module), one, block, model.steps)
        most = model.steps << EXPONENTS - 1
        moved = moved.assume(min(0, one.low) * most, max(0, one.high) * most)
        found.append(mux(given["source_blocks"], moved, one) if "source_blocks" in given else moved)
    return found


def _weight(wires: Signal, is_fp8: Signal, model: AdapterModel) -> Element:
    """A stored weight as a factor."""
    zero = wires.module.constant(0)
    whole = Element(wires.as_signed(), zero)
    if True not in model.codes:
        return whole
    small = element(wires[:BYTE], zero, is_fp8, True, False)
    if False not in model.codes:
        return small
    return Element(
        mux(is_fp8, small.mantissa, whole.mantissa), mux(is_fp8, small.exponent, whole.exponent)
    )


def _lane(design: Design, model: AdapterModel) -> ModuleBuilder:
    """A result: requantised, with the residual added (`semantics.requantize`)."""
    machine = model.machine

    def build(m: ModuleBuilder) -> None:
        dot = m.input("dot", model.accumulator_bits, True)
        residual = m.input("residual", FIXED_BITS, True)
        control = [
            followed(m, "mantissa", MANTISSA_BITS),
            followed(m, "places", PLACES_BITS + 1, True),
            followed(m, "pre_shift", number_bits(model.shift)),
        ]

        def result(
            dot: Signal, residual: Signal, mantissa: Signal, places: Signal, shift: Signal
        ) -> tuple[Signal, Signal]:
            r = Wires(m)
            scale, shift = ScaleOf(mantissa, places), shift.assume(0, model.shift)
            value = requantize(r, dot, scale, shift, 0, residual)
            return value, r.saturated

        value, saturated = pipelined(
            result,
            [dot, residual, *(signal for signal, _ in control)],
            machine.reduce + machine.requantise,
            follow={2 + i: follow for i, (_, follow) in enumerate(control)},
        ).outputs
        m.output("value", value.extend(FIXED_BITS, True))
        m.output("saturated", saturated)

    return design.shared("adapter_lane", build)


class _Unit:
    """Builds the module."""

    def __init__(self, m: ModuleBuilder, model: AdapterModel) -> None:
        self.m, self.model = m, model
        self.machine = machine = model.machine
        self.places: AdapterPlaces = model.places
        self.units, self.lanes = machine.h_units, machine.attention_lanes
        self.width = machine.vector_lanes
        self.count = min(machine.h_units, machine.results_per_cycle)
        """Results of a beat."""
        self.parts = machine.h_units // self.count
        """Beats of a block."""
        self.stage = durations.adapter_stage(machine)
        self.early = machine.broadcast - 1 + machine.attention_pipeline + self.stage
        self.late = machine.reduce + machine.requantise

    def build(self, unit: ModuleBuilder, lane: ModuleBuilder) -> None:
        writes = self.load()
        self.control()
        results = self.array(unit, writes)
        self.results(lane, results)

    # The load port

    def load(self) -> list[dict[str, Signal]]:
        """The registers of the sites; the write ports of every H-Unit's memories."""
        m, places = self.m, self.places
        size = 8 * self.machine.load_bytes
        if not places.sites:
            zero = m.constant(0)
            idle = {"code_address": zero, "code_data": zero, "code_enable": zero}
            idle |= {"scale_write_address": zero, "scale_data": zero, "scale_enable": zero}
            if places.parts > 1:
                idle["code_mask"] = zero
            return [idle] * self.units
        enable = m.input("load_enable", 1).delay(reset=0, name="load")
        address = m.input("load_address", places.address_bits).delay(name="load_to")
        data = m.input("load_data", size).delay(name="load_word")
        kind, index = address[-2:], address[:-2]

        # Sites: ranks in registers, since the first step depends on them, exponents in a memory.
        on = (enable & (kind == SITES)).named("load_site")
        rank_bits, several = places.rank_bits, places.residents > 1
        self.ranks: list[Signal] = []
        for number in range(places.registers):
            # Of several residents reset leaves the ranks as they are, and none is active.
            rank = m.register(f"rank{number}", rank_bits, reset=None if several else 0)
            rank.drive(data[:rank_bits], on & (index == number))
            self.ranks.append(rank)
        if several:
            width = index_bits(places.residents + 1)
            active = m.register("active", width, reset=places.residents)
            active.drive(data[:width], enable & (kind == ACTIVE))
            self.active: Signal = active
        self.exponent_write = Write(
            fit(index, index_bits(max(2, places.registers))),
            data[rank_bits : rank_bits + 2 * EXPONENT_BITS],
            on,
        )

        code_shift, scale_shift = places.shifts
        part_bits = (places.parts - 1).bit_length()
        group = index[part_bits:code_shift] if code_shift > part_bits else m.constant(0)
        scale_group = index[:scale_shift] if scale_shift else m.constant(0)
        found: list[dict[str, Signal]] = []
        for unit in range(self.units):
            per_word, place = places.word_bits, unit % places.load_units
            word = data[per_word * place : per_word * (place + 1)] if places.parts == 1 else None
            if word is None:
                word = cat(*([data[: per_word // places.parts]] * places.parts))
            low = SCALE_BITS * (unit % places.scale_units)
            ports: dict[str, Signal] = {
                "code_address": fit(index[code_shift:], index_bits(places.depth)),
                "code_data": word,
                "code_enable": enable & (kind == CODES) & (group == unit // places.load_units),
                "scale_write_address": fit(index[scale_shift:], index_bits(places.scale_depth)),
                "scale_data": data[low : low + SCALE_BITS],
                "scale_enable": enable
                & (kind == SCALES)
                & (scale_group == unit // places.scale_units),
            }
            if part_bits:
                part = index[:part_bits]
                ports["code_mask"] = cat(*[part == i for i in reversed(range(places.parts))])
            found.append(ports)
        return found

    # The controller

    def of_active(self, options: Iterable[Operand]) -> Signal:
        """Of what every resident has that of the active one; 0 where none is active."""
        return choose(self.active, [*options, 0])

    def of_resident(self, field: str, step: int, given: Mapping[str, Signal]) -> Signal:
        """The field's place; of slots that of the active resident, each `step` behind the last."""
        residents = self.places.residents
        if residents == 1:
            return given[field]
        in_slot = given["adapter_first"] | given["adapter_second"]
        offset = self.of_active(step * number for number in range(residents))
        return fit(given[field] + mux(in_slot, offset, 0), self.model.fields[field])

    def control(self) -> None:
        """Counters of steps and beats."""
        m, model, places = self.m, self.model, self.places
        self.start = start = m.input("start", 1)
        given = {name: m.input(name, bits) for name, bits in model.fields.items()}
        self.f = f = {
            name: signal.delay(enable=start, name=f"{name}_held") for name, signal in given.items()
        }
        first, second = f["adapter_first"], f["adapter_second"]
        rank, exponent = self.of_site(given)
        lane_log, unit_log = log2(self.lanes), log2(self.units)
        by_rank = (rank + (self.lanes - 1)) >> lane_log
        words = mux(second, by_rank, f["adapter_words"]).named("words")
        blocks = (rank + (self.units - 1)) >> unit_log
        # Rows that are not 0.
        rows = mux(second & (rank == 0), 0, f["adapter_rows"])
        rows = mux(first, rank, rows).named("rows")

        running = m.register("running", 1)
        inner_done = m.register("inner_done", 1)
        block = m.register("block", model.fields["adapter_blocks_last"])
        active = ~(first & (block >= blocks)) & (words != 0)
        step = (running & ~inner_done & active).named("step")
        place = m.register("step_place", 1)
        place_end = place == f["adapter_passes_last"]
        place.drive(mux(step, mux(place_end, 0, ~place), place))
        word = m.register("step_word", words.width)
        word_end = (word + 1) == words
        word_done = step & place_end
        word.drive(mux(word_done, mux(word_end, 0, up(word)), word))
        group_word = m.register("step_group_word", model.fields["adapter_group_last"])
        group = m.register("step_group", model.fields["adapter_groups"])
        group_end = group_word == f["adapter_group_last"]
        row_end = word_done & word_end
        ends = mux(word_end, 0, mux(group_end, 0, up(group_word)))
        group_word.drive(mux(word_done, ends, group_word))
        following = mux(word_end, 0, mux(group_end, up(group), group))
        group.drive(mux(word_done, following, group))

        work = words << f["adapter_passes_last"]
        length = mux(active, larger(work, self.parts), self.parts)
        interval = m.register("interval", max(work.width, length.width))
        block_end = block == f["adapter_blocks_last"]
        slot_over = (interval + 1) == length
        slot_end = running & slot_over
        if model.hold:
            # Until scores have left.
            hold = m.register("hold", number_bits(model.hold - 1))
            waiting = hold != 0
            rest = mux(waiting, (hold - 1).truncate(hold.width), 0)
            hold.drive(mux(start, model.hold - 1, rest))
            slot_end = slot_end & ~(waiting & block_end)
        slot_end = slot_end.named("slot_end")
        interval.drive(mux(running & ~slot_end, mux(slot_over, interval, up(interval)), 0))
        inner_done.drive((inner_done | row_end) & ~slot_end & ~start)
        block.drive(mux(start, 0, mux(slot_end, up(block), block)))
        last = slot_end & block_end
        running.drive(start | (running & ~last))
        m.output("ready", ~running if self.stage else ~running | last)

        address = m.register("row_word", model.fields["adapter_word"])
        next_row = fit(address + f["adapter_words"], address.width)
        first_row = self.of_resident("adapter_word", places.slot_words, given)
        address.drive(mux(start, first_row, mux(slot_end, next_row, address)))
        scale = m.register("row_scale", model.fields["adapter_scale"])
        next_scale = fit(scale + f["adapter_groups"], scale.width)
        first_scale = self.of_resident("adapter_scale", places.slot_scales, given)
        scale.drive(mux(start, first_scale, mux(slot_end, next_scale, scale)))

        self.step, self.place, self.word, self.slot_end = step, place, word, slot_end
        self.place_end = place_end
        self.address = fit(address + word, address.width)
        self.scale_address = fit(scale + group, scale.width)

        # Beats: of an instruction that may have left the steps to the next one.
        names = [*_LEAVING, *(one.name.removeprefix("adapter_") for one in model.scale_fields)]
        leaving = {name: f[f"adapter_{name}"] for name in names}
        for name in ("turn", "part"):
            if f"adapter_{name}" in f:
                leaving[f"first_{name}"] = f[f"adapter_{name}"]
        places_ = f["adapter_places"].as_signed() + exponent
        leaving |= {"alive": rows, "places": fit(places_, PLACES_BITS + 1)}
        self.lines = {
            name: [signal.delay(enable=slot_end, name=f"beat_{name}")]
            for name, signal in leaving.items()
        }
        self.on = on = m.register("beat", 1)
        part = m.register("beat_part", index_bits(self.parts))
        part_end = part == self.parts - 1
        on.drive(slot_end | (on & ~part_end))
        part.drive(mux(slot_end, 0, mux(on & ~part_end, up(part), 0)))
        final = block_end.delay(enable=slot_end, name="beat_final")
        self.part = part
        beat_block = block.delay(enable=slot_end, name="beat_block")
        parts_log = log2(self.parts)
        self.group = (beat_block << parts_log) + part if parts_log else beat_block
        done = (on & part_end & final).delay(self.early + self.late, reset=0, name="done_q")
        m.output("done", done)

    def of_site(self, given: Mapping[str, Signal]) -> tuple[Signal, Signal]:
        """The active rank at the instruction's site, and the exponent of its product there."""
        m, f, places, start = self.m, self.f, self.places, self.start
        if not places.sites:
            return m.constant(0), m.constant(0)
        site = given["adapter_site"]
        count = len(places.sites)
        firsts = range(0, places.registers, count)
        ranks = [choose(site, self.ranks[first : first + count]) for first in firsts]
        where = mux(start, site, f["adapter_site"])
        if places.residents > 1:
            ranks = [self.of_active(ranks)]
            where = where + self.of_active(firsts)
        rank = ranks[0].delay(enable=start, name="rank")
        (registers,) = m.ram(
            "exponents",
            max(2, places.registers),
            2 * EXPONENT_BITS,
            [fit(where, index_bits(max(2, places.registers)))],
            [self.exponent_write],
        )
        a, b = registers[:EXPONENT_BITS], registers[EXPONENT_BITS:]
        # Of the graph's own adapters it is in `adapter_places`.
        first, second = f["adapter_first"], f["adapter_second"]
        return rank, mux(first, a.as_signed(), mux(second, b.as_signed(), 0))

    # Operands and the array

    def array(self, unit: ModuleBuilder, writes: list[dict[str, Signal]]) -> list[Signal]:
        """All H-Units, with their operands; their results."""
        m, f = self.m, self.f
        deep = self.machine.broadcast - 1
        high = self.place.delay(name="high")
        codes = self.codes(f["adapter_source"], self.word)
        steps = self.steps(f["adapter_source"], self.word) if self.model.steps else None
        vector = cat(*[mux(high, one[BYTE:], one[:BYTE]) for one in reversed(codes)])
        shared: dict[str, Signal] = {
            "address": self.address,
            "scale_address": self.scale_address,
            "first": ~self.place & (self.word == 0),
            "place": self.place,
            # E4M3 has its sign elsewhere; a flag tells where there are integers too.
            "sign": self.place_end,
        }
        ports = {port.name: port for port in unit.ports}
        shared = {
            name: fit(one, ports[name].width).delay(deep, name=f"unit_{name}")
            for name, one in shared.items()
        }
        for name in self.model.mixed:
            shared[name] = f[f"adapter_{name}"].delay(deep, name=f"unit_{name}")
        shared["step"] = self.step.delay(deep, reset=0, name="unit_step")
        shared["vector"] = vector.delay(deep - 1, name="unit_vector")
        if steps is not None:
            shared["steps"] = steps.delay(deep - 1, name="unit_steps")
        shared["keep"] = self.slot_end.delay(self.early, reset=0, name="unit_keep")
        return [
            m.instance(f"h_unit{t}", unit, {**shared, **writes[t]})["result"]
            for t in range(self.units)
        ]

    def codes(self, row: Signal, index: Signal) -> list[Signal]:
        """The `index`-th `attention_lanes` codes of the vector at a row, in the next cycle."""
        size = memories.CODE_BITS * self.width
        word = self.read("input", row, index, size, self.width // self.lanes)
        return [
            word[low : low + memories.CODE_BITS] for low in range(0, word.width, memories.CODE_BITS)
        ]

    def steps(self, row: Signal, index: Signal) -> Signal:
        """Exponent and step of each block that these codes lie in, in the next cycle."""
        block = self.machine.block
        bits = log2(max(1, block // self.lanes))
        # Several words are of one block.
        size = self.width // block * memories.STEP_BITS
        return self.read("steps", row, index, size, self.width // max(block, self.lanes), bits)

    def read(
        self, port: str, row: Signal, index: Signal, size: int, parts: int, of_part: int = 0
    ) -> Signal:
        """The rows that the `index`-th word of a vector lies in, or the part of one that has it.

        Args:
            port: of a memory whose rows are those of the codes.
            row: the vector's first.
            index: of the word.
            size: bits of a row.
            parts: of a row that are told apart.
            of_part: words of a part, as a power of two.
        """
        m, lanes, width = self.m, self.lanes, self.width
        ports = max(1, lanes // width)
        first = row + (index >> log2(width // lanes) if lanes < width else index * ports)
        data: list[Signal] = []
        for number in range(ports):
            m.output(f"{port}{number}_row", fit(first + number, self.model.row_bits))
            data.append(m.input(f"{port}{number}_data", size))
        word = cat(*reversed(data))
        if parts < 2:
            return word
        sub = (index >> of_part).truncate(log2(parts)).delay(name=f"{port}_sub")
        part = word.width // parts
        return choose(sub, [word[low : low + part] for low in range(0, word.width, part)])

    # Results

    def results(self, lane: ModuleBuilder, results: list[Signal]) -> None:
        """Beats, from the sums to the vector memory."""
        m, count, width = self.m, self.count, self.width
        row_bits = self.model.row_bits
        m.output("input_group", self.late_field("source", self.early - 1))
        mantissa = m.input("input_mantissa", MANTISSA_BITS)
        exponent = m.input("input_exponent", memories.EXPONENT_BITS, True)
        fields = self.model.fields
        if "adapter_normed" in fields:
            row = self.late_field("norm_row", self.early - 1)
            m.output("norm_row", fit(row, row_bits))
            normed = self.late_field("normed", self.early)
            mantissa = mux(normed, m.input("norm_mantissa", MANTISSA_BITS), mantissa)
            factor = m.input("norm_exponent", memories.EXPONENT_BITS, True)
            exponent = mux(normed, factor, exponent)
        if "adapter_unscaled" in fields:
            # A scale of 1, normalised.
            unscaled = self.late_field("unscaled", self.early)
            mantissa = mux(unscaled, 1 << MANTISSA_BITS - 1, mantissa)
            exponent = mux(unscaled, MANTISSA_BITS - 1, exponent)
        own = self.late_field("places", self.early).as_signed()
        places = fit(own + exponent, PLACES_BITS + 1).named("places")
        scale = {"mantissa": [mantissa], "places": [places]}

        def late(name: str, cycles: int) -> Signal:
            if name not in scale:
                return self.late_field(name, self.early + cycles)
            line = scale[name]
            while len(line) <= cycles:
                line.append(line[-1].delay(name=f"scale_{name}_at{len(line)}"))
            return line[cycles]

        control = connections(lane, ("mantissa", "places", "pre_shift"), late)

        part = self.part.delay(self.early, name="result_part")
        if "first_part" in self.lines:
            part = (part + self.late_field("first_part", self.early)).truncate(part.width)
        dots = [choose(part, results[i::count]) for i in range(count)]
        if "first_turn" in self.lines:
            # Row 0 of the matrix is not the first result of a beat.
            turn = self.late_field("first_turn", self.early)
            turned = [[dots[(i + turn) % count] for turn in self.model.turns] for i in range(count)]
            dots = [choose(turn, options) for options in turned]
        first = self.group << log2(count)
        rows = self.late_field("alive", 0)
        alive = cat(*[first + i < rows for i in reversed(range(count))])
        alive = alive.delay(self.early, name="result_alive")
        written = [first + i < self.late_field("rows", 0) for i in range(count)]

        # Where the results of a beat lie.
        bits = log2(width // count)
        sub = self.group.truncate(bits) if bits else m.constant(0)
        offset = self.group >> bits
        m.output(
            "residual_row",
            fit(self.late_field("residual_row", 0) + offset, row_bits).delay(
                self.early - 1, name="residual_at"
            ),
        )
        data = m.input("residual_data", FIXED_BITS * width)
        if bits:
            size = FIXED_BITS * count
            late_sub = sub.delay(self.early, name="residual_sub")
            data = choose(late_sub, [data[low : low + size] for low in range(0, data.width, size)])
        added = self.late_field("residual", self.early)
        values: list[Signal] = []
        flags: list[Signal] = []
        for i in range(count):
            base = data[FIXED_BITS * i : FIXED_BITS * (i + 1)].as_signed()
            out = m.instance(
                f"lane{i}",
                lane,
                {
                    "dot": mux(alive[i], dots[i], 0),
                    "residual": mux(added, base, 0),
                    **control,
                },
            )
            values.append(out["value"])
            flags.append(out["saturated"])
        delay = self.early + self.late
        lanes = [self.on & (sub == i // count) & written[i % count] for i in range(width)]
        mask = cat(*reversed(lanes)).delay(delay, reset=0, name="result_lane")
        m.output("result_enable", self.on.delay(delay, reset=0, name="result_on"))
        row = fit(self.late_field("target", 0) + offset, row_bits)
        m.output("result_row", row.delay(delay, name="result_to"))
        m.output("result_data", cat(*[values[i % count] for i in reversed(range(width))]))
        m.output("result_lanes", mask)
        counted = [mux(mask[i], flags[i % count], 0) for i in range(width)]
        m.output("saturations", add_all(counted))

    def late_field(self, name: str, cycles: int) -> Signal:
        """What `_LEAVING` names, of the instruction whose beat went so many cycles ago."""
        line = self.lines[name]
        while len(line) <= cycles:
            line.append(line[-1].delay(name=f"{name}_at{len(line)}"))
        return line[cycles]
