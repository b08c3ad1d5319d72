"""The matrix array: tiles, what feeds them, and what takes their results.

`build_matrix` makes the module `matrix`, the unit of the matrix queue: it executes `matvec`,
`expert_matvec` and `embed` as `dialects.semantics.dot`, `requantize` and `embed` say, in the cycles
that `lowering.schedule.durations.steps` and `embed` state. Its sizes and descriptors are in
`plan.py`, the tiles in `tile.py`.

A `matvec` goes through the array like this; all numbers are cycles after `start` (cycle 0), T is
`Piece.step_cycles`, and the latencies are those of the machine::

    slot i = 0, 1, ... of all steps         1 + i
    its activations and address at the L-Units        broadcast + i  (activations rom_read later)
    the sum has them                        broadcast + mac_pipeline + i
    beat k of step s leaves the tiles       broadcast + mac_pipeline + (s + 1) T + k
    requantisers                            ... + reduce
    write to the vector memory              ... + reduce + requantise

so the last write, the last beat of the last step, is in cycle ``product - 1``, and so is `done`.
The next instruction may start when the last slot goes (`ready`): the slots have their fields, what
leaves the tiles those of its step, taken with it, and the requantisers those of their results. No
step is shorter than the drain of another one, so what leaves never meets (`durations.step_floor`).
A round that is not the last (`tiling.Piece.run`) leaves the sums of its steps in the L-Units, an
accumulator each; it ends as if its last step had results of one cycle.
In a step, the words of a slice come in order; of each word its planes, of each plane the parts of
the activations (`MatrixConfig.pass_bits`). An `embed` uses the same way, and nothing starts before
it has finished: the L-Units that hold the row give their words one after the other, and when all
planes of a word are there, its elements go through the requantisers, with `(q - zero) * scale` in
place of an accumulator and 1 in place of the activations' scale. A word that is wider than the
requantisers are many takes several cycles there (`durations.table_beats`), in which the planes of
the next one are read.

The expert of an `expert_matvec` is read from the memory of routings as the instruction starts, in
the row that the descriptor names. Its number times the words, scales and bias rows of an expert is
added to the addresses on their way: whichever it is, every cycle is the same.

The one scale of a matrix without groups is a field of the descriptor. It takes the place of the
groups' in the L-Units, or, in an array without group scales, the requantisers apply it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from intaglio.backend.hw.units import peaks
from intaglio.backend.hw.units.matrix.plan import Form, MatrixConfig, Way
from intaglio.backend.hw.units.matrix.rom_bank import LogicROM, build_unit_rom, powered
from intaglio.backend.hw.units.matrix.tile import aligned, build_matrix_unit, has_sums, only
from intaglio.backend.hw.wires import datapaths
from intaglio.backend.hw.wires.signal import (
    RESET,
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
from intaglio.backend.hw.wires.widths import choice_bits, index_bits, log2
from intaglio.dialects.fixed_point import FIXED_BITS
from intaglio.dialects.fixed_point import SCALE_BITS as MANTISSA_BITS
from intaglio.dialects.formulas.products import PRODUCT_BITS
from intaglio.dialects.isa.queues import MATRIX
from intaglio.dialects.memories import EXPERT_BITS, EXPONENT_BITS, STEP_BITS
from intaglio.dialects.tiling import SCALE_BITS
from intaglio.dialects.trits import widest


def build_matrix(
    design: Design,
    config: MatrixConfig,
    name: str = "matrix",
    tiles: Collection[int] | None = None,
    logic: LogicROM | None = None,
) -> ModuleBuilder:
    """The module of the matrix array, with its tiles (or `tiles`: the others deliver 0).

    W is `vector_lanes`; a row of a memory has W elements, lane 0 at the low bits. Memories give
    what lies at an address one cycle later. Where the ROM is logic, `logic` says what is in it;
    without, its banks are external modules.

    Inputs:

    - `start`: the instruction begins; in this cycle the descriptor (`MatrixConfig.fields`, a port
      each), `token` and, where a position chooses rows, `position` are valid, and only then.
      `ready` must be 1; for an `embed` all others must have finished.
    - `input<p>_data`: W codes of `MatrixConfig.code_bits`, for each of `MatrixConfig.input_ports`
      read ports of the memory of quantised vectors; `steps<p>_data`: exponent and step of each
      block of the row, where a program has codes with an exponent a block; `scale_mantissa`,
      `scale_exponent`: from its scale file; `norm_mantissa`, `norm_exponent`: from that of norms'
      factors, where there are any.
    - `power`: a bit for each of `MatrixConfig.domains`; the port exists if there are any. A word
      whose address comes while its domain's bit is 0 reads as 0.
    - `routing_number`: from the memory of routings; the port exists when a program has families of
      experts.
    - `bias_data`, `residual_data`: W numbers of 32 bits from constant ROM and vector memory; the
      ports exist when a program uses them.

    Outputs:

    - `input<p>_address`, `steps<p>_address`, `scale_address`, `routing_address`, `bias_address`,
      `residual_address`: the addresses.
    - `write_enable`, `write_address`, `write_data`, `write_mask`: W numbers to the vector memory,
      with a bit for each lane.
    - `saturations`: how many places saturated, of the numbers written in this cycle.
    - `ready`: an instruction may start in this cycle.
    - `done`: in the last cycle of an instruction; they end in the order in which they started.
    - `peak_of_matrix_...`: the largest magnitudes of what is written (`peaks.given`); the ports
      exist when a program uses them.
    """
    chosen = range(config.machine.tiles) if tiles is None else sorted(tiles)
    return _Array(design, config, name, chosen, logic).build()


class _Array:
    """The module under construction."""

    def __init__(
        self,
        design: Design,
        config: MatrixConfig,
        name: str,
        tiles: Sequence[int],
        logic: LogicROM | None,
    ) -> None:
        self.config = config
        self.logic = logic
        self.tiles = tiles
        self.machine = config.machine
        self.tile = build_matrix_unit(design, config)
        self.m = m = design.module(name, "The matrix array and its control.")
        self.start = m.input("start", 1)
        self.given: dict[str, Signal] = {}
        self.held: dict[str, Signal] = {}
        for field, bits in config.fields.items():
            self.given[field] = m.input(field, bits)
            held = self.given[field].delay(enable=self.start, name=f"{field}_held")
            self.held[field] = held
        self.lane_bits = log2(self.machine.vector_lanes)
        self.taken: dict[str, list[Signal]] = {}

    def field(self, name: str) -> Signal:
        """A field of the instruction at hand, from the cycle after its start on."""
        return self.held.get(name, self.m.constant(0))

    def new_field(self, name: str) -> Signal:
        """A field of the instruction that starts in this cycle."""
        return self.given.get(name, self.m.constant(0))

    def by_way(self, of: Callable[[Way], Signal | int], way: Signal | None = None) -> Signal:
        """A function of how the results of a matrix leave the tiles.

        Args:
            of: the function.
            way: of which matrix; of that whose slots go when left out.
        """
        way = self.field("way") if way is None else way
        return choose(way, [of(one) for one in self.config.ways])

    def leaving(self, name: str, cycles: int = 0) -> Signal:
        """A field of the instruction whose results leave the tiles, or did some cycles before."""
        if name not in self.held:
            return self.m.constant(0)
        if name not in self.taken:
            # With the step's results; a table's words leave by themselves.
            late = self.held[name].delay(self.to_capture, name=f"{name}_of_step")
            new = mux(self.capture, late, self.held[name])
            own = new.delay(enable=self.capture | self.fetching, name=f"{name}_leaving")
            self.taken[name] = [own]
        line = self.taken[name]
        while len(line) <= cycles:
            line.append(line[-1].delay(name=f"{name}_left{len(line)}"))
        return line[cycles]

    def by_form(self, of: Callable[[Form], Signal | int], form: Signal) -> Signal:
        """A function of how the rows of the table lie on the tiles."""
        return choose(form, [of(form) for form in self.config.forms])

    def build(self) -> ModuleBuilder:
        self._choose()
        self._sequence()
        self._feed()
        self._drain()
        self._collect()
        self._requantise()
        return self.m

    # Experts

    def _choose(self) -> None:
        """The expert of the instruction at hand, from the cycle after its start on."""
        self.expert: Signal = self.m.constant(0)
        if self.config.experts == 1:
            return
        chosen = mux(self.start, self.new_field("chosen"), self.field("chosen"))
        self.m.output("routing_address", chosen)
        expert = self.m.input("routing_number", EXPERT_BITS)
        self.expert = expert.truncate(choice_bits(self.config.experts))
        if "expert_biases" in self.held:
            rows = self.expert * self.field("expert_biases")
            row = (self.held["bias_row"] + rows).truncate(index_bits(self.config.constant_rows))
            self.held["bias_row"] = row.named("bias_row_of_expert")

    def _of_expert(self, address: Signal, stride: str, depth: int, cycles: int) -> Signal:
        """An address, some cycles later, of the expert at hand."""
        if stride not in self.held:
            return address.delay(cycles)

        def moved(address: Signal, expert: Signal, stride: Signal) -> Signal:
            return (address + (expert * stride).cut()).truncate(index_bits(depth))

        inputs = [address, self.expert, self.field(stride)]
        return pipelined(moved, inputs, cycles).outputs[0]

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
        widths = config.fields
        begin = start
        slack = widths.get("slack", 0)
        waiting: Signal = m.constant(0)
        if slack:
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
        self.fetching = (start & self.new_field("embed")).delay(reset=0, name="fetching")
        free = ~busy | final
        if slack:
            free = free & (waiting == 0)
        self.free = free
        slot = self._counter("slot", widths.get("step_slots", 1))
        step_end = busy & (slot == self.field("step_slots"))
        self._count(slot, busy, step_end)

        # Words, planes and parts are read at the beginning of a step; the rest of it is idle.
        reading = self._counter("reading", 1)
        active = busy & reading
        part = self._counter("part", choice_bits(config.passes))
        last, word = self._last_part(part)
        last_part = last | embed
        self._count(part, active, last_part)
        planes: Signal = self.field("planes") + self.field("idle")
        plane = self._counter("plane", planes.width)
        last_plane = last_part & (plane == planes)
        self._count(plane, active & last_part, last_plane)
        stored = last_part & (plane <= self.field("planes"))
        word = self._counter("word", widths["words"]) if word is None else word
        last_word = last_plane & (word + 1 == self.field("words"))
        self._count(word, active & last_plane, last_word | step_end)
        reading.drive(mux(start | step_end, 1, mux(active & last_word, 0, reading)))
        slice_ = self._counter("slice", choice_bits(config.ports))
        self._count(slice_, step_end, m.constant(0))

        # The row of a table decides where its words lie.
        new_embed = self.new_field("embed")
        row_step: Signal = m.constant(0)
        if config.table_planes:
            self.token = m.input("token", config.token_bits)
            if config.places:
                position = m.input("position", max(1, config.places.bit_length()))
                row = position.truncate(config.token_bits)
                self.token = mux(self.new_field("placed"), row, self.token)
            form = self.new_field("form")
            places = {
                one: datapaths.divide(self.token >> log2(one.slots(self.machine)), one.tiles)
                for one in config.forms
            }
            row_step = mux(new_embed, self.by_form(lambda one: places[one][0], form), 0)
            tile = self.by_form(lambda one: places[one][1], form)
            self.row_tile = tile.delay(enable=start, name="row_tile")
        code_bits, scale_bits = choice_bits(config.code_words), choice_bits(config.scale_words)
        code_bits, scale_bits = max(1, code_bits), max(1, scale_bits)
        first_code = self.new_field("code_base") + row_step * self.new_field("stride")
        first_code = first_code.truncate(code_bits)
        code = self._counter("code_address", code_bits)
        next_code = (code + 1).truncate(code_bits)
        following = mux(active & (stored if "idle" in self.held else last_part), next_code, code)
        if config.table_planes:
            row_code = first_code.delay(enable=start, name="row_code")
            following = mux(step_end & embed, row_code, following)
        code.drive(mux(start, first_code, following))
        scale: Signal = m.constant(0)
        if config.grouped:
            first = self.new_field("scale_base") + row_step * self.new_field("slice_groups")
            scale = counter = self._counter("scale_address", scale_bits)
            following = (counter + self.field("slice_groups")).truncate(scale_bits)
            following = mux(step_end & ~embed, following, counter)
            counter.drive(mux(start, first.truncate(scale_bits), following))

        self.sum: Signal = m.constant(0)
        if config.sums:
            # Where sums stay in the L-Units, each step has its own.
            self.sum = counter = self._counter("sum", choice_bits(config.sums + 1))
            following = mux(counter == 0, 0, counter + 1).truncate(counter.width)
            following = mux(step_end, following, counter)
            counter.drive(mux(start, self.new_field("sum"), following))

        self.busy, self.active, self.final, self.step_end = busy, active, final, step_end
        self.part, self.plane, self.word, self.slice = part, plane, word, slice_
        self.code, self.scale, self.embed = code, scale, embed

    def _last_part(self, part: Register) -> tuple[Signal, Register | None]:
        """Whether a part of an activation is the word's last one; the counter of words, where these
        are not all read as often."""
        inputs = self.config.inputs
        if len(inputs.reads) == 1:
            self.taken_part = part
            return part == inputs.most - 1, None
        word = self._counter("word", self.config.fields["words"])
        longer = self.field("wide")
        if longer.width > 1:
            # Words beyond are not read for longer codes; a choice counts no more bits than needed.
            beyond = [0] * ((1 << word.width) - longer.width)
            longer = choose(word, [*(longer[i] for i in range(longer.width)), *beyond])
            longer = longer.named("longer")
        last = part == mux(longer, inputs.most - 1, inputs.least - 1)
        self.taken_part = cat(last, part)
        return last, word

    # To the tiles

    def _feed(self) -> None:
        """Activations, addresses and control for the L-Units."""
        m, machine, config = self.m, self.machine, self.config
        before = machine.broadcast - 1
        product = self.active & ~self.embed
        first_word = (self.word == 0) & (self.plane == 0) & (self.part == 0)
        late = before + machine.mac_pipeline - 1
        at_rom = before + machine.rom_read
        # Blocks of a word are told apart at its products, a whole word's behind their sum.
        stepped = at_rom if config.word_blocks > 1 else late - 1
        inputs: dict[str, Signal] = {
            "code_address": self._of_expert(self.code, "expert_words", config.code_words, before),
            "first": (self.plane == 0).delay(at_rom),
            "zero": self.field("zero").delay(at_rom),
            "single": self.field("single").delay(at_rom),
            "mantissa": self.field("mantissa").delay(at_rom).as_signed(),
            "plane": self.plane.truncate(index_bits(config.planes)).delay(late),
            "part": self.part.delay(late),
            "valid": product.delay(at_rom, reset=0, name="valid"),
            "clear": (first_word & ~self.field("added")).delay(late),
            # Of a round whose sums stay, only the end counts.
            "capture": (self.step_end & ~self.embed & (~self.field("kept") | self.final)).delay(
                late + 1, reset=0, name="capture"
            ),
        }
        if config.sums:
            inputs["sum"] = self.sum.delay(late)
        self.capture, self.to_capture = inputs["capture"], late + 1
        if config.domains:
            self.power = m.input("power", len(config.domains))
        for number in range(config.ports):
            word = self.by_way(lambda way, n=number: self.field("words") * (n & (way.split - 1)))
            word = word + self.field("first_word")
            steps = self._steps(number, word) if config.steps else None
            x, xsum, scale = self._stream(number, word, steps)
            inputs |= {f"x{number}": x, f"xsum{number}": xsum, f"scale_address{number}": scale}
            if steps is not None:
                inputs[f"steps{number}"] = steps.delay(stepped - 1)
        if config.unblocked:
            inputs["blocked"] = self.field("blocked").delay(stepped)
        self.inputs = inputs

    def _row(self, base: Signal, row: Signal | int, rows: int) -> Signal:
        """A row of a memory; rows beyond its end are read in vain and wrap."""
        return (base + row).truncate(index_bits(rows))

    def _read(self, port: str, number: int, first: Signal, bits: int) -> Signal:
        """The rows that a slice's word lies in, a cycle later: several words, or one word.

        Args:
            port: of a memory whose rows are those of quantised vectors.
            number: of the slice.
            first: the slice's first word.
            bits: of a row.
        """
        m, machine, config = self.m, self.machine, self.config
        per_row, rows = max(1, machine.vector_lanes // machine.lanes), config.word_rows
        parts: list[Signal] = []
        for i in range(rows):
            name = f"{port}{number * rows + i}"
            row = ((first + self.word) >> log2(per_row)) * rows + i
            m.output(f"{name}_address", self._row(self.field("input_row"), row, config.vector_rows))
            parts.append(m.input(f"{name}_data", bits))
        return cat(*parts[::-1])

    def _stream(
        self, number: int, first: Signal, steps: Signal | None
    ) -> tuple[Signal, Signal, Signal]:
        """Activations, their sum and the scale address for the slices that begin with a word."""
        m, machine, config = self.m, self.machine, self.config
        lanes = machine.lanes
        word = first + self.word
        per_row = max(1, machine.vector_lanes // lanes)
        data = self._read("input", number, first, machine.vector_lanes * config.code_bits)
        # Elements beyond the row are no part of the vector.
        columns = self.field("columns")
        tail = (columns & (lanes - 1)).delay()
        whole = (word < (columns >> log2(lanes))).delay()
        ragged = (word == (columns >> log2(lanes))).delay()
        place = word[: log2(per_row)].delay() if per_row > 1 else m.constant(0)
        part = self.taken_part.delay()
        # Several blocks of a word are brought to one unit before they are added.
        blocks = config.word_blocks
        several = [] if steps is None or blocks == 1 else [steps, self.field("blocked").delay()]

        def activations(
            data: Signal,
            place: Signal,
            whole: Signal,
            ragged: Signal,
            part: Signal,
            tail: Signal,
            *several: Signal,
        ) -> list[Signal]:
            size = lanes * config.code_bits
            codes = choose(place, [data[i * size : (i + 1) * size] for i in range(per_row)])
            parts: list[Signal] = []
            for i in range(lanes):
                code = codes[i * config.code_bits : (i + 1) * config.code_bits]
                code = only(whole | (ragged & (tail > i)), code)
                x = datapaths.decode(code, config.code_format)
                parts.append(self._part(x, part))
            taken = [one.cut() for one in parts]
            together = [cat(*taken[::-1])]
            if not has_sums(config):
                return together
            size = lanes // blocks
            sums = [add_all(taken[i : i + size]) for i in range(0, lanes, size)]
            if several:
                sums = [one.cut() for one in aligned(m, sums, several, config)]
            return [*together, add_all(sums).cut()]

        depth = machine.broadcast + machine.rom_read - 2
        given = [data, place, whole, ragged, part, tail, *several]
        x, *sums = pipelined(activations, given, depth).outputs
        xsum = sums[0] if sums else m.constant(0)
        if not config.grouped:
            return x, xsum, m.constant(0)
        shift = self.field("group_shift")
        group = (word >> shift) - (first >> shift)
        scale = (self.scale + group).truncate(self.scale.width)
        depth, before = config.scale_words, machine.broadcast - 1
        return x, xsum, self._of_expert(scale, "expert_scales", depth, before)

    def _steps(self, number: int, first: Signal) -> Signal:
        """Exponent and step of each block that a slice's word lies in, a cycle later."""
        machine, word = self.machine, first + self.word
        blocks, words = self.config.word_blocks, max(1, machine.block // machine.lanes)
        data = self._read("steps", number, first, machine.vector_lanes // machine.block * STEP_BITS)
        size = blocks * STEP_BITS
        parts = [data[low : low + size] for low in range(0, data.width, size)]
        per_row = len(parts) * words
        place = word[log2(words) : log2(per_row)].delay() if len(parts) > 1 else self.m.constant(0)
        return choose(place, parts)

    def _part(self, x: Signal, part: Signal) -> Signal:
        """The part of a decoded activation that a pass multiplies; see `MatrixConfig.pass_bits`."""
        config = self.config
        bits, passes = config.pass_bits, config.passes
        if len(config.inputs.reads) > 1:
            wires, part, last = x.extend(bits * passes, True), part[:-1], part[part.width - 1]
            size = choose(part, [wires[a * bits : (a + 1) * bits] for a in range(passes)])
            return cat(last & size[bits - 1], size).as_signed()
        if passes == 1:
            return x.extend(config.part_bits, True)
        options = [x.as_unsigned()[a * bits : (a + 1) * bits] for a in range(passes - 1)]
        options.append(x >> (passes - 1) * bits)
        return choose(part, options).extend(config.part_bits, True)

    # From the tiles

    def _drain(self) -> None:
        """Which results leave the tiles, and which element of the result vector is first."""
        m, machine, config = self.m, self.machine, self.config
        widths = config.fields
        last_step = self.final.delay(self.to_capture).delay(enable=self.capture, name="last_step")
        opening = m.register("opening", 1)
        opening.drive(mux(self.start, 1, mux(self.step_end, 0, opening)))
        first_step = opening.delay(self.to_capture)
        draining = self._counter("draining", 1)
        beat = self._counter("beat", widths.get("beats", 1))
        last_beat = draining & (beat == self.leaving("beats"))
        draining.drive(mux(self.capture, 1, mux(last_beat, 0, draining)))
        beat.drive(mux(self.capture, 0, mux(draining, (beat + 1).truncate(beat.width), beat)))
        event, done = draining & ~self.leaving("kept"), last_beat & last_step
        self.beat, self.draining = beat, event

        size = self.by_way(lambda way: way.chunk, self.leaving("way"))
        last_leaves: Signal = m.constant(0)
        if config.table_planes:
            leaves, last_leaves = self._leave()
            event, done = event | leaves, done | last_leaves
            size = mux(self.leaving("embed"), min(machine.lanes, machine.results_per_cycle), size)
        element = self._counter("element", max(widths["last"], log2(machine.lanes)) + 2)
        following = (element + size).truncate(element.width)
        first = self.field("first").delay(self.to_capture)
        new = mux(self.capture & first_step, first, mux(event, following, element))
        element.drive(mux(self.fetching, 0, new).truncate(element.width))
        self.on_the_way = on_the_way = machine.reduce + machine.requantise
        # Bias and residual are read so that they meet the result in its last stage.
        ahead = element.delay(on_the_way - 2, name="element_ahead")
        self.ahead = ahead
        self.added = ahead.delay(name="element_added")
        self.written = self.added.delay(name="element_written")
        self.write = event.delay(on_the_way, reset=0, name="write")
        ended = done.delay(on_the_way, reset=0, name="done")
        self.ended = ended
        m.output("done", ended)
        free = self.free
        if config.table_planes:
            fetching = m.register("fetches", 1)
            embed = self.start & self.new_field("embed")
            # Of a product before it, which may be another token's, the end says nothing.
            over = last_leaves.delay(on_the_way, reset=0, name="row_done")
            fetching.drive(mux(embed, 1, mux(over, 0, fetching)))
            free = free & ~fetching
        m.output("ready", free)

    def _leave(self) -> tuple[Signal, Signal]:
        """For `embed`: whether elements of a word leave the tiles, and the last ones."""
        config = self.config
        late = self.machine.broadcast - 1 + self.machine.rom_read
        complete = self.active & self.embed & (self.plane == self.field("planes"))
        self.ready = complete.delay(late, reset=0, name="word_ready")
        last = (self.final & self.embed).delay(late, reset=0, name="last_word_ready")
        beats = config.word_beats
        if beats == 1:
            return self.ready, last
        left = self._counter("beats_left", (beats - 1).bit_length())
        rest = mux(left != 0, (left - 1).truncate(left.width), 0)
        left.drive(mux(self.ready, beats - 1, rest))
        of_last = last.delay(enable=self.ready, name="of_last_word")
        return self.ready | (left != 0), (left == 1) & of_last

    def _collect(self) -> None:
        """The tiles, and the network that brings their results together."""
        m, machine, config = self.m, self.machine, self.config
        lanes, width = machine.results_per_cycle, config.accumulator_bits
        before = machine.broadcast - 1 + machine.rom_read
        arriving: list[list[Signal]] = [[] for _ in range(lanes)]
        words: list[Signal] = []
        scales: list[Signal] = []
        taken = [p for p in self.tile.ports if not (p.output or p.clock or p.name == RESET)]
        ports = {p.name: p.width for p in taken}
        slice_ = self.slice.delay(before)
        base = self._first_delivering()
        split = self.by_way(lambda way: config.splits.index(way.split), self.leaving("way"))
        for t in self.tiles:
            inputs = dict(self.inputs)
            inputs["split"] = split
            inputs["valid"] = inputs["valid"] & self._works(t, before)
            inputs["deliver"] = self.draining & self.by_way(
                lambda way, t=t: (base >> (shift := log2(self._at_a_time(way)))) == t >> shift,
                self.leaving("way"),
            )
            inputs["beat"] = self.beat
            if config.table_planes:
                here, unit = self._fetched(t)
                inputs["fetch"] = here
                inputs["unit"] = (unit + slice_).truncate(index_bits(machine.l_units))
            inputs |= self._rom(t)
            # Counters may be wider than what a tile has to tell apart.
            inputs |= {
                name: inputs[name].truncate(ports[name])
                for name in ("plane", "beat", "part")
                if name in ports
            }
            chosen = {name: inputs[name] for name in ports}
            outputs = m.instance(f"tile{t}", self.tile, chosen)
            for g in range(lanes):
                options = [self._placed(way, t, g) for way in config.ways]
                signals = [m.constant(0) if i is None else outputs[f"result{i}"] for i in options]
                arriving[g].append(choose(self.leaving("way", 1), signals).extend(width, True))
            if config.table_planes:
                words.append(outputs["word"])
                scales.append(outputs["scale"] if config.grouped else m.constant(0))

        def either(parts: Sequence[Signal]) -> Signal:
            # All but one are 0.
            return tree([part.as_unsigned() for part in parts], lambda a, b: a | b)

        self.results = [
            either(parts).truncate(width, True).delay(machine.reduce - 1) for parts in arriving
        ]
        if config.table_planes:
            self.fetched_word = either(words).delay(machine.reduce - 1)
            self.fetched_scale = either(scales).delay(machine.reduce - 1)

    def _works(self, tile: int, cycles: int) -> Signal:
        """Whether a tile was one of the piece's some cycles ago."""
        if "last_tile" not in self.held:
            return self.m.constant(1)
        key = f"tiles{cycles}"
        if key not in self.taken:
            ends = (self.field("first_tile"), self.field("last_tile"))
            self.taken[key] = [end.delay(cycles) for end in ends]
        first, last = self.taken[key]
        return (first <= tile) & (last >= tile)

    def _rom(self, tile: int) -> dict[str, Signal]:
        """The inputs of a tile that have to do with its ROM: words, or whether banks are on."""
        m, machine, config = self.m, self.machine, self.config
        banks = config.banks[tile]
        address = self.inputs["code_address"]
        if not config.logic:
            if not config.domains:
                return {}
            on = powered(address, banks, self.power, machine.bank_words)
            return {"powered": on.delay(machine.rom_read)}
        words: dict[str, Signal] = {}
        images = self.logic.units(tile) if self.logic is not None else None
        read = self.active.delay(machine.broadcast - 1, reset=0, name="read")
        read = read & self._works(tile, machine.broadcast - 1)
        for unit in range(machine.l_units):
            words[f"rom_word{unit}"] = words[f"rom_scale{unit}"] = m.constant(0)
            image = None if images is None else images.get(unit)
            rom = build_unit_rom(m.design, config, tile, unit, self.logic, image)
            if rom is None:
                continue
            inputs = {
                "word_address": address,
                "scale_address": self.inputs[f"scale_address{unit % config.ports}"],
                "read": read,
            }
            if config.domains:
                inputs["power"] = self.power
            ports = {port.name for port in rom.ports}
            out = m.instance(
                f"tile{tile}_rom{unit}", rom, {n: one for n, one in inputs.items() if n in ports}
            )
            words |= {f"rom_{name}{unit}": word for name, word in out.items()}
        return words

    def _at_a_time(self, way: Way) -> int:
        """Tiles that deliver results at a time."""
        return max(1, way.chunk // (self.machine.l_units // way.split))

    def _first_delivering(self) -> Signal:
        """The first of the tiles that a beat's results are from; beats go from tile to tile."""

        def tiles(way: Way) -> Signal:
            slots = self.machine.l_units // way.split
            if slots > way.chunk:
                return self.beat >> log2(slots // way.chunk)
            return self.beat << log2(self._at_a_time(way))

        return self.leaving("first_tile") + self.by_way(tiles, self.leaving("way"))

    def _placed(self, way: Way, tile: int, lane: int) -> int | None:
        """Which of a tile's results a lane takes, if any; few results are repeated over lanes."""
        slots = self.machine.l_units // way.split
        if slots >= self.machine.results_per_cycle:
            return lane
        # A range of tiles begins where it makes no difference.
        place = lane % way.chunk - tile * slots % way.chunk
        return place if 0 <= place < slots else None

    def _fetched(self, tile: int) -> tuple[Signal, Signal]:
        """Whether the table's row is on a tile, and on which L-Unit it begins."""
        token = self.token.delay(enable=self.start, name="token_held")

        def first(form: Form) -> Signal:
            return datapaths.divide(token, form.slots(self.machine))[1] << log2(form.split)

        unit = self.by_form(first, self.field("form"))
        return (self.row_tile + self.field("first_tile") == tile) & self.embed, unit

    # To the vector memory

    def _requantise(self) -> None:
        """Results scaled, with bias and residual, into the vector memory."""
        m, machine, config = self.m, self.machine, self.config
        lanes = machine.results_per_cycle
        # Of the vector that was multiplied: read when the results leave the tiles.
        m.output("scale_address", self._row(self.leaving("input_row"), 0, config.vector_rows))
        at = machine.reduce
        mantissa = m.input("scale_mantissa", MANTISSA_BITS).delay(at - 1)
        exponent = m.input("scale_exponent", EXPONENT_BITS, signed=True).delay(at - 1)
        if "normed" in self.held:
            row = self._row(self.leaving("norm_row"), 0, config.norm_rows)
            m.output("norm_address", row)
            factor = m.input("norm_mantissa", MANTISSA_BITS).delay(at - 1)
            places = m.input("norm_exponent", EXPONENT_BITS, signed=True).delay(at - 1)
            normed = self.leaving("normed", at)
            mantissa, exponent = mux(normed, factor, mantissa), mux(normed, places, exponent)
        if "unscaled" in self.held:
            unscaled = self.leaving("unscaled", at)
            # A scale of 1, normalised.
            mantissa = mux(unscaled, 1 << MANTISSA_BITS - 1, mantissa)
            exponent = mux(unscaled, MANTISSA_BITS - 1, exponent)
        places = self.leaving("places", at).as_signed() if "places" in self.held else m.constant(0)
        codes: list[Signal] = []
        scale = zero = m.constant(0)
        # In L-Units with group scales it is applied already.
        one_scale = m.constant(1)
        if not config.grouped and "mantissa" in self.held:
            one_scale = self.leaving("mantissa", at).as_signed()
        embed = self.leaving("embed", at)
        if config.table_planes:
            codes, scale, zero = self._table_word()
            mantissa = mux(embed, 1, mantissa)
            exponent = mux(embed, 0, exponent)
        places = places + exponent
        pre_shift = self.leaving("pre_shift", at)
        # Each matrix has the shift after which its widest accumulator has so many bits.
        widest = 1 << (PRODUCT_BITS - 1)

        def scaled(*inputs: Signal) -> list[Signal]:
            results, codes, rest = inputs[:lanes], inputs[lanes:-7], inputs[-7:]
            scale, zero, one_scale, pre_shift, mantissa, places, embed = rest
            values = [((code - zero) * scale).cut() for code in codes]
            out: list[Signal] = []
            for g, result in enumerate(results):
                y = (result * one_scale).cut()
                t = datapaths.round_shift(y, pre_shift)
                t = t.assume(-widest, widest).cut()
                if values:
                    t = mux(embed, values[g % len(values)], t)
                product = (t * mantissa).cut()
                out += datapaths.shift_saturate(product, places)
            return out

        depth = machine.requantise - 1
        fields = [scale, zero, one_scale, pre_shift, mantissa, places, embed]
        fixed = pipelined(scaled, [*self.results, *codes, *fields], depth).outputs
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
            # One of the lanes that get the number is written, or none.
            mine = tree(masks[g::lanes], lambda a, b: a | b)
            counts.append(only(mine, count.delay(name=f"saturated{g}")))
        if "peak" in self.held:
            self._leave_peak(data, masks)
        data *= machine.vector_lanes // lanes
        m.output("write_enable", self.write)
        m.output(
            "write_address",
            self._row(
                self.leaving("output_row", self.on_the_way),
                self.written >> self.lane_bits,
                config.vector_rows,
            ),
        )
        m.output("write_data", cat(*data[::-1]))
        m.output("write_mask", cat(*masks[::-1]))
        m.output("saturations", add_all(counts))

    def _leave_peak(self, data: Sequence[Signal], masks: Sequence[Signal]) -> None:
        """The largest magnitude of what is written."""
        on = self.write & self.leaving("peak", self.on_the_way)
        quantized = "peak_quantized" in self.held
        names = ("peak_last", *(one.name for one in peaks.given_fields(quantized=quantized)))
        late = {name: self.leaving(name, self.on_the_way) for name in names}
        lanes = len(data)
        written = [
            only(tree(masks[g::lanes], lambda a, b: a | b), one) for g, one in enumerate(data)
        ]
        last = self.ended & self.leaving("peak", self.on_the_way) & late["peak_last"]
        peaks.give(
            self.m,
            MATRIX,
            written,
            on=on,
            last=last,
            fields=late,
            quantized=quantized,
            cycles=self.machine.vector_reduce,
        )

    def _added(self, name: str) -> list[Signal]:
        """Bias or residual of the row at hand, lane by lane, in the last stage but one."""
        m, lanes, width = self.m, self.machine.vector_lanes, self.machine.results_per_cycle
        rows = self.config.constant_rows if name == "bias" else self.config.vector_rows
        row = self.ahead >> self.lane_bits
        base = self.leaving(f"{name}_row", self.on_the_way - 2)
        m.output(f"{name}_address", self._row(base, row, rows))
        data = m.input(f"{name}_data", lanes * FIXED_BITS)
        if width < lanes:
            size = width * FIXED_BITS
            parts = [data[i * size : (i + 1) * size] for i in range(lanes // width)]
            data = choose(self.added[log2(width) : self.lane_bits], parts)
        added = self.leaving(name, self.on_the_way - 1)
        return [
            only(added, data[g * FIXED_BITS : (g + 1) * FIXED_BITS]).as_signed()
            for g in range(width)
        ]

    def _mask(self) -> list[Signal]:
        """Which lanes of the row at hand are elements of these results."""
        machine, config = self.machine, self.config
        last = self.leaving("last", self.on_the_way)
        way, embed = (self.leaving(name, self.on_the_way) for name in ("way", "embed"))
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

            mine = self.by_way(lambda one, begins=begins: begins(one.chunk), way)
            if config.table_planes:
                size = min(machine.lanes, machine.results_per_cycle)
                mine = mux(embed, begins(size), mine)
            masks.append(self.write & inside & mine)
        return masks

    def _table_word(self) -> tuple[list[Signal], Signal, Signal]:
        """Elements of a table's word when its last plane is there, their scale and zero point."""
        m, machine, config = self.m, self.machine, self.config
        late = machine.broadcast - 1 + machine.rom_read + machine.reduce
        plane, planes = self.plane.delay(late), self.field("planes")
        word = self.fetched_word
        layers: list[Signal] = []
        for p in range(config.table_planes):
            held = word.delay(enable=plane == p, name=f"plane{p}")
            layers.append(mux(planes == p, word, only(planes > p, held)))
        codes = [self._element(layers, i) for i in range(machine.lanes)]
        scale = m.constant(1)
        if config.grouped:
            scale = self.fetched_scale[:SCALE_BITS].as_signed()
            if "single" in self.held:
                scale = mux(self.field("single"), self.field("mantissa").as_signed(), scale)
        elif "mantissa" in self.held:
            scale = self.field("mantissa").as_signed()
        zero = self.field("zero")
        if config.zero_bits:
            stored = self.fetched_scale[SCALE_BITS : config.offset_place]
            zero = zero | mux(self.field("single"), 0, stored)
        dense, width = self.field("dense"), machine.results_per_cycle
        scale, zero = mux(dense, 1, scale), mux(dense, 0, zero)
        if config.word_beats == 1:
            return codes, scale, zero
        # What does not leave at once moves up.
        ready = self.ready.delay(machine.reduce, reset=0, name="word_arrives")
        waiting = [
            m.register(f"waiting{i}", one.width, one.signed, None)
            for i, one in enumerate(codes[width:])
        ]
        following = [*waiting[width:], *codes[:width]]
        for register, code, later in zip(waiting, codes[width:], following, strict=True):
            register.drive(mux(ready, code, later))
        leaving = [
            mux(ready, code, one) for code, one in zip(codes[:width], waiting[:width], strict=True)
        ]
        scale, zero = (mux(ready, one, one.delay(enable=ready)) for one in (scale, zero))
        return leaving, scale, zero

    def _element(self, layers: Sequence[Signal], lane: int) -> Signal:
        """An element of a table's word, from all its planes."""
        config, bits = self.config, self.machine.plane_bits
        cells = [layer[lane * bits : (lane + 1) * bits] for layer in layers[::-1]]
        if config.ternary:
            limit = 1 << widest(config.table_planes) - 1
            value = self.m.constant(0)
            for cell in cells:
                # Horner's rule, the highest digit first.
                value = (value << 1) + value + cell[0].as_unsigned() - cell[1].as_unsigned()
            return value.assume(-limit, limit - 1)
        code, dense = cat(*cells), self.field("dense")
        if dense.constant is None:
            # Numbers of a dense table are signed, codes are not: they have upper planes 0.
            code = mux(dense, code.as_signed(), code.truncate(8))
        return code
