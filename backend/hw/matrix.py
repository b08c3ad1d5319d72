"""The matrix array: tiles, what feeds them, and what takes their results.

`build_matrix` makes the module `matrix`, the unit of the matrix queue: it executes `matvec` and
`embed` as `dialects.semantics.dot`, `requantize` and `embed` say, in the cycles that
`lowering.durations.product` and `embed` state. Its sizes and descriptors are in `matrix_plan`, the
tiles in `matrix_tile`.

A `matvec` goes through the array like this; all numbers are cycles after `start` (cycle 0), T is
`Piece.step_cycles`, and the latencies are those of the machine::

    slot i = 0, 1, ... of all steps         1 + i
    its activations and address at the L-Units        broadcast + i  (activations rom_read later)
    the sum has them                        broadcast + mac_pipeline + i
    beat k of step s leaves the tiles       broadcast + mac_pipeline + (s + 1) T + k
    requantisers                            ... + reduce
    write to the vector memory              ... + reduce + requantise

so the last write, the last beat of the last step, is in cycle ``product - 1``, and so is `done`.
In a step, the words of a slice come in order; of each word its planes, of each plane the parts of
the activations (`MatrixConfig.pass_bits`). An `embed` uses the same way: the L-Units that hold the
row give their words one after the other, and when all planes of a word are there, its elements go
through the requantisers, with `(q - zero) * scale` in place of an accumulator and 1 in place of the
activations' scale.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from intaglio.backend.hw import datapaths
from intaglio.backend.hw.matrix_plan import MatrixConfig, log2
from intaglio.backend.hw.matrix_tile import build_matrix_unit, index_bits, only
from intaglio.backend.hw.signal import (
    Design,
    ModuleBuilder,
    Register,
    Signal,
    add_all,
    cat,
    choose,
    mux,
    pipelined,
    tree,
)
from intaglio.dialects.fabric import SCALE_BITS
from intaglio.dialects.fixed_point import FIXED_BITS
from intaglio.dialects.fixed_point import SCALE_BITS as MANTISSA_BITS
from intaglio.dialects.semantics import PRODUCT_BITS

EXPONENT_BITS = 10
"""Bits of a scale's exponent there, with its sign."""


def build_matrix(
    design: Design,
    config: MatrixConfig,
    name: str = "matrix",
    tiles: Collection[int] | None = None,
) -> ModuleBuilder:
    """The module of the matrix array, with its tiles (or `tiles`: the others deliver 0).

    W is `vector_lanes`; a row of a memory has W elements, lane 0 at the low bits. Memories give
    what lies at an address one cycle later.

    Inputs:

    - `start`: the instruction begins; in this cycle the descriptor (`MatrixConfig.fields`, a port
      each) and `token` are valid, and only then. Not before the cycle after `done`.
    - `input<p>_data`: W codes of `MatrixConfig.code_bits`, for each of `MatrixConfig.ports` read
      ports of the memory of quantised vectors; `scale_mantissa`, `scale_exponent`: from its scale
      file.
    - `bias_data`, `residual_data`: W numbers of 32 bits from constant ROM and vector memory; the
      ports exist when a program uses them.

    Outputs:

    - `input<p>_address`, `scale_address`, `bias_address`, `residual_address`: the addresses.
    - `write_enable`, `write_address`, `write_data`, `write_mask`: W numbers to the vector memory,
      with a bit for each lane.
    - `saturations`: how many places saturated, of the numbers written in this cycle.
    - `done`: in the last cycle of the instruction.
    """
    chosen = range(config.machine.tiles) if tiles is None else sorted(tiles)
    return _Array(design, config, name, chosen).build()


class _Array:
    """The module under construction."""

    def __init__(
        self, design: Design, config: MatrixConfig, name: str, tiles: Sequence[int]
    ) -> None:
        self.config = config
        self.tiles = tiles
        self.machine = config.machine
        self.tile = build_matrix_unit(design, config)
        self.m = m = design.module(name, "The matrix array and its control.")
        self.start = m.input("start", 1)
        self.given: dict[str, Signal] = {}
        self.held: dict[str, Signal] = {}
        for field, bits in config.fields:
            self.given[field] = m.input(field, bits)
            held = self.given[field].delay(enable=self.start, name=f"{field}_held")
            self.held[field] = held
        self.lane_bits = log2(self.machine.vector_lanes)

    def field(self, name: str) -> Signal:
        """A field of the instruction at hand, from the cycle after its start on."""
        return self.held.get(name, self.m.constant(0))

    def new_field(self, name: str) -> Signal:
        """A field of the instruction that starts in this cycle."""
        return self.given.get(name, self.m.constant(0))

    def by_split(self, of: Callable[[int], Signal | int], split: Signal | None = None) -> Signal:
        """A function of the split of the matrix."""
        index = self.field("split") if split is None else split
        return choose(index, [of(split) for split in self.config.splits])

    def build(self) -> ModuleBuilder:
        self._sequence()
        self._feed()
        self._drain()
        self._collect()
        self._requantise()
        return self.m

    # Steps and slots

    def _counter(self, name: str, bits: int) -> Register:
        return self.m.register(name, max(1, bits))

    def _count(self, counter: Register, advance: Signal, last: Signal) -> None:
        """From 0 at the start, on with `advance`, back to 0 after `last`."""
        following = mux(last, 0, counter + 1).truncate(counter.width)
        counter.drive(mux(self.start, 0, mux(advance, following, counter)))

    def _sequence(self) -> None:
        """The counters: which word, plane and part each cycle takes."""
        m, start, config = self.m, self.start, self.config
        embed = self.field("embed")
        widths = dict(config.fields)
        begin = start
        if slack := widths.get("slack"):
            waiting = self._counter("waiting", slack)
            rest = mux(waiting != 0, (waiting - 1).truncate(slack), 0)
            waiting.drive(mux(start, self.new_field("slack"), rest))
            begin = mux(start, self.new_field("slack") == 0, waiting == 1)
        busy = self._counter("busy", 1)
        slots = self._counter("slots_left", widths.get("slots", 1))
        final = busy & (slots == 0)
        slots.drive(
            mux(start, self.new_field("slots"), mux(busy, slots - 1, slots).truncate(slots.width))
        )
        busy.drive(mux(begin, 1, mux(final, 0, busy)))
        slot = self._counter("slot", widths.get("step_slots", 1))
        step_end = busy & (slot == self.field("step_slots"))
        self._count(slot, busy, step_end)

        # Words, planes and parts are read at the beginning of a step; the rest of it is idle.
        reading = self._counter("reading", 1)
        active = busy & reading
        part = self._counter("part", index_bits(config.passes))
        last_part = (part == config.passes - 1) | embed
        self._count(part, active, last_part)
        plane = self._counter("plane", max(1, widths.get("planes", 1)))
        last_plane = last_part & (plane == self.field("planes"))
        self._count(plane, active & last_part, last_plane)
        word = self._counter("word", widths["words"])
        last_word = last_plane & (word + 1 == self.field("words"))
        self._count(word, active & last_plane, last_word | step_end)
        reading.drive(mux(start | step_end, 1, mux(active & last_word, 0, reading)))
        slice_ = self._counter("slice", index_bits(config.ports))
        self._count(slice_, step_end, m.constant(0))

        # The row of a table decides where its words lie.
        new_embed = self.new_field("embed")
        row_step: Signal = m.constant(0)
        if config.table_planes:
            self.token = m.input("token", config.token_bits)
            row_step = self.by_split(
                lambda s: self.token >> log2(config.rows_per_step(s)), self.new_field("split")
            )
            row_step = mux(new_embed, row_step, 0)
        code_bits, scale_bits = index_bits(config.code_words), index_bits(config.scale_words)
        code_bits, scale_bits = max(1, code_bits), max(1, scale_bits)
        first_code = self.new_field("code_base") + row_step * self.new_field("stride")
        first_code = first_code.truncate(code_bits)
        code = self._counter("code_address", code_bits)
        next_code = (code + 1).truncate(code_bits)
        following = mux(active & last_part, next_code, code)
        if config.table_planes:
            row_code = first_code.delay(enable=start, name="row_code")
            following = mux(step_end & embed, row_code, following)
        code.drive(mux(start, first_code, following))
        first_scale = self.new_field("scale_base") + row_step * self.new_field("slice_groups")
        scale = self._counter("scale_address", scale_bits)
        next_scale = (scale + self.field("slice_groups")).truncate(scale_bits)
        scale.drive(
            mux(start, first_scale.truncate(scale_bits), mux(step_end & ~embed, next_scale, scale))
        )

        self.busy, self.active, self.final, self.step_end = busy, active, final, step_end
        self.part, self.plane, self.word, self.slice = part, plane, word, slice_
        self.last_plane, self.code, self.scale, self.embed = last_plane, code, scale, embed

    # To the tiles

    def _feed(self) -> None:
        """Activations, addresses and control for the L-Units."""
        m, machine, config = self.m, self.machine, self.config
        before = machine.broadcast - 1
        product = self.active & ~self.embed
        first_word = (self.word == 0) & (self.plane == 0) & (self.part == 0)
        late = before + machine.mac_pipeline - 1
        inputs: dict[str, Signal] = {
            "code_address": self.code.delay(before),
            "first": (self.plane == 0).delay(before + machine.rom_read),
            "zero": self.field("zero"),
            "plane": self.plane.truncate(max(1, index_bits(config.planes))).delay(late),
            "part": self.part.delay(late),
            "accumulate": product.delay(late, reset=0, name="accumulate"),
            "clear": first_word.delay(late),
            "capture": (self.step_end & ~self.embed).delay(late + 1, reset=0, name="capture"),
        }
        self.capture = inputs["capture"]
        for number in range(config.ports):
            word = self.by_split(lambda s, n=number: self.field("words") * (n & (s - 1)))
            x, xsum, scale = self._stream(number, word)
            inputs |= {f"x{number}": x, f"xsum{number}": xsum, f"scale_address{number}": scale}
        m.output("scale_address", self._row("input_row", 0, config.vector_rows))
        self.inputs = inputs

    def _row(self, base: str, row: Signal | int, rows: int) -> Signal:
        """A row of a memory; rows beyond its end are read in vain and wrap."""
        return (self.field(base) + row).truncate(max(1, index_bits(rows)))

    def _stream(self, number: int, first: Signal) -> tuple[Signal, Signal, Signal]:
        """Activations, their sum and the scale address for the slices that begin with a word."""
        m, machine, config = self.m, self.machine, self.config
        lanes = machine.lanes
        word = first + self.word
        per_row = machine.vector_lanes // lanes
        row = self._row("input_row", word >> log2(per_row), config.vector_rows)
        m.output(f"input{number}_address", row)
        data = m.input(f"input{number}_data", machine.vector_lanes * config.code_bits)
        # Elements beyond the row are no part of the vector.
        columns = self.field("columns")
        tail = columns & (lanes - 1)
        whole = (word < (columns >> log2(lanes))).delay()
        ragged = (word == (columns >> log2(lanes))).delay()
        place = word[: log2(per_row)].delay() if per_row > 1 else m.constant(0)
        part = self.part.delay()

        def activations(
            data: Signal, place: Signal, whole: Signal, ragged: Signal, part: Signal
        ) -> list[Signal]:
            size = lanes * config.code_bits
            codes = choose(place, [data[i * size : (i + 1) * size] for i in range(per_row)])
            parts: list[Signal] = []
            for i in range(lanes):
                code = codes[i * config.code_bits : (i + 1) * config.code_bits]
                code = only(whole | (ragged & (tail > i).static()), code)
                x = datapaths.decode(code, machine.activations)
                parts.append(self._part(x, part))
            taken = [one.cut() for one in parts]
            return [cat(*taken[::-1]), add_all(taken).cut()]

        depth = machine.broadcast + machine.rom_read - 2
        x, xsum = pipelined(activations, [data, place, whole, ragged, part], depth).outputs
        shift = self.field("group_shift")
        group = (word >> shift) - (first >> shift)
        scale = (self.scale + group).truncate(self.scale.width)
        return x, xsum, scale.delay(machine.broadcast - 1)

    def _part(self, x: Signal, part: Signal) -> Signal:
        """The part of a decoded activation that a pass multiplies; see `MatrixConfig.pass_bits`."""
        config = self.config
        bits, passes = config.pass_bits, config.passes
        if passes == 1:
            return x.extend(config.part_bits, True)
        options = [x.as_unsigned()[a * bits : (a + 1) * bits] for a in range(passes - 1)]
        options.append(x >> (passes - 1) * bits)
        return choose(part, options).extend(config.part_bits, True)

    # From the tiles

    def _drain(self) -> None:
        """Which results leave the tiles, and which element of the result vector is first."""
        m, machine, config = self.m, self.machine, self.config
        before = machine.broadcast - 1
        widths = dict(config.fields)
        last_step = self.final.delay(before + machine.mac_pipeline).delay(
            enable=self.capture, name="last_step"
        )
        draining = self._counter("draining", 1)
        beat = self._counter("beat", widths.get("beats", 1))
        last_beat = draining & (beat == self.field("beats"))
        draining.drive(mux(self.capture, 1, mux(last_beat, 0, draining)))
        beat.drive(mux(self.capture, 0, mux(draining, (beat + 1).truncate(beat.width), beat)))
        event, done = draining, last_beat & last_step
        self.beat, self.draining = beat, draining

        size = self.by_split(config.chunk)
        if config.table_planes:
            ready = (self.busy & self.embed & self.last_plane).delay(
                before + machine.rom_read, reset=0, name="word_ready"
            )
            last_word = (self.final & self.embed).delay(
                before + machine.rom_read, reset=0, name="last_word_ready"
            )
            event, done = event | ready, done | last_word
            size = mux(self.embed, machine.lanes, size)
        element = self._counter("element", widths["last"] + 2)
        following = (element + size).truncate(element.width)
        element.drive(mux(self.start, 0, mux(event, following, element)))
        on_the_way = machine.reduce + machine.requantise
        # Bias and residual are read so that they meet the result in its last stage.
        ahead = element.delay(on_the_way - 2, name="element_ahead")
        self.ahead = ahead >> self.lane_bits
        self.written = ahead.delay(2, name="element_written")
        self.write = event.delay(on_the_way, reset=0, name="write")
        m.output("done", done.delay(on_the_way, reset=0, name="done"))

    def _collect(self) -> None:
        """The tiles, and the network that brings their results together."""
        m, machine, config = self.m, self.machine, self.config
        lanes, width = machine.results_per_cycle, config.accumulator_bits
        before = machine.broadcast - 1 + machine.rom_read
        arriving: list[list[Signal]] = [[] for _ in range(lanes)]
        words: list[Signal] = []
        scales: list[Signal] = []
        ports = {p.name: p.width for p in self.tile.ports if not p.output and not p.clock}
        slice_ = self.slice.delay(before)
        for t in self.tiles:
            inputs = dict(self.inputs)
            inputs["split"] = self.field("split")
            inputs["deliver"] = self.draining & self.by_split(lambda s, t=t: self._delivers(s, t))
            inputs["beat"] = self.beat
            if config.table_planes:
                here, unit = self._fetched(t)
                inputs["fetch"] = here
                inputs["unit"] = (unit + slice_).truncate(max(1, index_bits(machine.l_units)))
            # Counters may be wider than what a tile has to tell apart.
            inputs |= {
                name: inputs[name].truncate(ports[name])
                for name in ("plane", "beat", "part")
                if name in ports
            }
            chosen = {name: inputs[name] for name in ports}
            outputs = m.instance(f"tile{t}", self.tile, chosen)
            for g in range(lanes):
                options = [self._placed(s, t, g) for s in config.splits]
                signals = [m.constant(0) if i is None else outputs[f"result{i}"] for i in options]
                arriving[g].append(choose(self.field("split"), signals).extend(width, True))
            if config.table_planes:
                words.append(outputs["word"])
                scales.append(outputs["scale"])

        def either(parts: Sequence[Signal]) -> Signal:
            # All but one are 0.
            return tree([part.as_unsigned() for part in parts], lambda a, b: a | b)

        self.results = [
            either(parts).truncate(width, True).delay(machine.reduce - 1) for parts in arriving
        ]
        if config.table_planes:
            self.fetched_word = either(words).delay(machine.reduce - 1)
            self.fetched_scale = either(scales).delay(machine.reduce - 1)

    def _delivers(self, split: int, tile: int) -> Signal:
        """Whether a beat's results are a tile's."""
        machine, config = self.machine, self.config
        slots = machine.l_units // split
        if slots >= machine.results_per_cycle:
            return (self.beat >> log2(slots // machine.results_per_cycle)) == tile
        return self.beat == tile // min(config.chunk(split) // slots, machine.tiles)

    def _placed(self, split: int, tile: int, lane: int) -> int | None:
        """Which of a tile's results a lane takes, if any; few results are repeated over lanes."""
        slots = self.machine.l_units // split
        chunk = self.config.chunk(split)
        if slots >= self.machine.results_per_cycle:
            return lane
        place = lane % chunk - tile * slots % chunk
        return place if 0 <= place < slots else None

    def _fetched(self, tile: int) -> tuple[Signal, Signal]:
        """Whether the table's row is on a tile, and on which L-Unit it begins."""
        machine = self.machine
        token = self.token.delay(enable=self.start, name="token_held")

        def bits(low: int, count: int) -> Signal:
            return (token >> low).truncate(count) if count else self.m.constant(0)

        def slots(split: int) -> int:
            return log2(machine.l_units // split)

        tiles = log2(machine.tiles)
        here = self.by_split(lambda s: bits(slots(s), tiles)) == tile
        unit = self.by_split(lambda s: bits(0, slots(s)) << log2(s))
        return here & self.embed, unit

    # To the vector memory

    def _requantise(self) -> None:
        """Results scaled, with bias and residual, into the vector memory."""
        m, machine, config = self.m, self.machine, self.config
        lanes = machine.results_per_cycle
        mantissa = m.input("scale_mantissa", MANTISSA_BITS)
        exponent = m.input("scale_exponent", EXPONENT_BITS, signed=True)
        places = self.field("places").as_signed() if "places" in self.held else m.constant(0)
        codes: list[Signal] = []
        scale = zero = m.constant(0)
        if config.table_planes:
            codes, scale, zero = self._table_word()
            mantissa = mux(self.embed, 1, mantissa)
            exponent = mux(self.embed, 0, exponent)
        places = places + exponent
        pre_shift = self.field("pre_shift")
        # Each matrix has the shift after which its widest accumulator has so many bits.
        widest = 1 << (PRODUCT_BITS - 1)

        def scaled(*inputs: Signal) -> list[Signal]:
            results, codes, (scale, zero) = inputs[:lanes], inputs[lanes:-2], inputs[-2:]
            values = [((code - zero) * scale).cut() for code in codes]
            out: list[Signal] = []
            for g, result in enumerate(results):
                t = datapaths.round_shift(result, pre_shift.static())
                t = t.assume(-widest, widest).cut()
                if values:
                    t = mux(self.embed.static(), values[g % len(values)], t)
                product = (t * mantissa.static()).cut()
                out += datapaths.shift_saturate(product, places.static())
            return out

        depth = machine.requantise - 1
        fixed = pipelined(scaled, [*self.results, *codes, scale, zero], depth).outputs
        added = {name: self._added(name) for name in ("bias", "residual") if name in self.held}
        masks = self._mask()
        data: list[Signal] = []
        counts: list[Signal] = []
        for g in range(lanes):
            value, count = fixed[2 * g : 2 * g + 2]
            for more in added.values():
                total = datapaths.add(value, more[g])
                value, count = total.value, count + total.saturated
            data.append(value.extend(FIXED_BITS, True).delay(name=f"data{g}"))
            counts.append(only(masks[g], count.delay(name=f"saturated{g}")))
        m.output("write_enable", self.write)
        m.output(
            "write_address",
            self._row("output_row", self.written >> self.lane_bits, config.vector_rows),
        )
        m.output("write_data", cat(*data[::-1]))
        m.output("write_mask", cat(*masks[::-1]))
        m.output("saturations", add_all(counts))

    def _added(self, name: str) -> list[Signal]:
        """Bias or residual of the row at hand, lane by lane, in the last stage but one."""
        m, lanes = self.m, self.machine.vector_lanes
        rows = self.config.constant_rows if name == "bias" else self.config.vector_rows
        m.output(f"{name}_address", self._row(f"{name}_row", self.ahead, rows))
        data = m.input(f"{name}_data", lanes * FIXED_BITS)
        return [
            only(self.field(name), data[g * FIXED_BITS : (g + 1) * FIXED_BITS]).as_signed()
            for g in range(lanes)
        ]

    def _mask(self) -> list[Signal]:
        """Which lanes of the row at hand are elements of these results."""
        machine, config = self.machine, self.config
        last = self.field("last")
        row, last_row = self.written >> self.lane_bits, last >> self.lane_bits
        low = self.written[: self.lane_bits] if self.lane_bits else self.m.constant(0)
        tail = last[: self.lane_bits] if self.lane_bits else self.m.constant(0)
        before, same = row < last_row, row == last_row
        masks: list[Signal] = []
        for g in range(machine.vector_lanes):
            inside = before | (same & (tail >= g))

            def begins(size: int, g: int = g) -> Signal:
                if size == machine.vector_lanes:
                    return self.m.constant(1)
                return low == g - g % size

            mine = self.by_split(lambda s, begins=begins: begins(config.chunk(s)))
            if config.table_planes:
                mine = mux(self.embed, begins(machine.lanes), mine)
            masks.append(self.write & inside & mine)
        return masks

    def _table_word(self) -> tuple[list[Signal], Signal, Signal]:
        """The codes of a table's word when its last plane is there, its scale and zero point."""
        machine, config = self.machine, self.config
        late = machine.broadcast - 1 + machine.rom_read + machine.reduce
        plane, planes = self.plane.delay(late), self.field("planes")
        bits, word = machine.plane_bits, self.fetched_word
        layers: list[Signal] = []
        for p in range(config.table_planes):
            held = word.delay(enable=plane == p, name=f"plane{p}")
            layers.append(mux(planes == p, word, only(planes > p, held)))
        codes: list[Signal] = []
        dense = self.field("dense")
        for i in range(machine.lanes):
            code = cat(*[layer[i * bits : (i + 1) * bits] for layer in layers[::-1]])
            if dense.constant is None:
                # Numbers of a dense table are signed, codes are not: they have upper planes 0.
                code = mux(dense, code.as_signed(), code.truncate(8))
            codes.append(code)
        scale = self.fetched_scale[:SCALE_BITS].as_signed()
        zero = self.field("zero")
        if config.zero_bits:
            zero = zero | self.fetched_scale[SCALE_BITS:]
        return codes, mux(dense, 1, scale), mux(dense, 0, zero)
