"""The recurrence unit: the states of linear attention, and the two passes over them.

`recurrence_unit` executes the `linear_attention` instructions of the attention queue. It is the
part of the H-Units that changes what it holds: the memories `states<t>` have a word of every H-Unit
in a row, `state_scales` has the exponent and the largest mantissa of each head. Between the passes
of an instruction `news` keeps what is to be added, `largest` its largest magnitude by head.

**Slots.** An instruction that starts in cycle s goes through its heads in *slots* of equal length,
the first of which begins in cycle s + 1 (`durations.StateSteps`). What is done in a slot follows so
many cycles after it: `_Line` gives slot, head and cycle as they were. One instruction is finished
before the next one starts.

| cycles after the slot   | first pass                               | second pass                 |
|-------------------------|------------------------------------------|-----------------------------|
| 0                       | codes, scales, decay, exponent are read  | scales, decay, exponent     |
| fill - keys             |                                          | the key's codes are read    |
| 1, `table_lookup` later | the decay's factor                       | the factor, the exponent    |
| fill                    | rows are read                            | rows are read               |
| `attention_pipeline`    | sums over the key, and over the query    | rows are written            |
| then                    | the match; results and news              |                             |

`lowering.schedule.durations` (`recall`, `change`) states when it is `done`: in the cycle of the
last write.
"""

from __future__ import annotations

from collections.abc import Sequence

from intaglio.backend.hw.units.attention.sizes import machine_refusals
from intaglio.backend.hw.units.recurrence.sizes import RecurrenceModel
from intaglio.backend.hw.units.refusals import refuse
from intaglio.backend.hw.wires import datapaths
from intaglio.backend.hw.wires.reader import Wires
from intaglio.backend.hw.wires.signal import (
    Design,
    ModuleBuilder,
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
from intaglio.backend.hw.wires.widths import fit, index_bits, up
from intaglio.dialects.fixed_point import FIXED_BITS, SCALE_BITS
from intaglio.dialects.formats import FORMATS
from intaglio.dialects.formulas import recurrence
from intaglio.dialects.formulas.reader import ScaleOf
from intaglio.dialects.formulas.recurrence import STATE_BITS, STATE_LIMIT
from intaglio.dialects.h_units import BYTE
from intaglio.dialects.memories import CODE_BITS, EXPONENT_BITS


def recurrence_unit(design: Design, model: RecurrenceModel) -> ModuleBuilder:
    """The module `recurrence_unit`.

    Ports, with W = `vector_lanes`; a row given in a cycle is answered by its data in the next one:

    - `start`, the fields (`RecurrenceModel.fields`, in the cycle of the start only), `done` (in the
      cycle of the last write), `ready` (an instruction may start). `position` of the token.
    - `query_row`, `query_data`, `key_row`, `key_data`: codes, W of 16 bits; `query_scale_group` and
      its like: scales.
    - `value_row`, `value_data`; `decay_row`, `rate_row` and their data, where there are any: W
      numbers of 32 bits.
    - `result_enable`, `result_row`, `result_data`, `result_lanes`: write port of the vector memory.
    - `saturations`: how many values saturated among those written in this cycle.

    Raises:
        UserError: the machine cannot be built.
    """
    refuse(machine_refusals(model.machine))

    def build(m: ModuleBuilder) -> None:
        _Unit(m, model).build()

    return design.shared("recurrence_unit", build)


class _Line:
    """A slot's signals, and what they were some cycles before."""

    def __init__(self, on: Signal, head: Signal, cycle: Signal) -> None:
        self._lines = {"on": [on], "head": [head], "cycle": [cycle]}

    def at(self, name: str, cycles: int) -> Signal:
        """`on`, `head` or `cycle` so many cycles after the slot."""
        line = self._lines[name]
        while len(line) <= cycles:
            reset = 0 if name == "on" else None
            line.append(line[-1].delay(reset=reset, name=f"{name}_at{len(line)}"))
        return line[cycles]


class _Unit:
    """Builds the module."""

    def __init__(self, m: ModuleBuilder, model: RecurrenceModel) -> None:
        self.m, self.model = m, model
        self.machine, self.form = model.machine, model.form
        self.shape = shape = model.shape
        self.heads, self.width = shape.heads, model.machine.vector_lanes
        self.lanes = min(shape.value_width, self.width)
        """Values of a head at once."""
        self.together, self.columns = shape.together, shape.value_width
        self.word = shape.words * model.machine.attention_lanes * BYTE
        """Bits of a vector in a row."""
        machine = model.machine
        self.match = machine.requantise
        self.lane = machine.reduce + 3 * machine.requantise + machine.table_lookup
        self.factor_depth = machine.table_lookup
        self.news_depth = 2 * machine.requantise
        self.added_depth = machine.requantise

    def build(self) -> None:
        self.control()
        self.gates()
        self.rows()
        self.recall()
        self.change()

    # The controller

    def control(self) -> None:
        """Slots, and the end of an instruction."""
        m, model = self.m, self.model
        start = m.input("start", 1)
        given = {
            name: m.input(name, width, name.endswith("_places"))
            for name, width in model.fields.items()
        }
        self.f = f = {
            name: signal.delay(enable=start, name=f"{name}_held") for name, signal in given.items()
        }
        position = m.input("position", index_bits(model.program.capacity))
        self.first = (position == 0).named("first")
        recall, change = model.recall, model.change
        second = f["state_pass"]
        running = m.register("running", 1)
        elapsed = m.register("elapsed", max(model.cycles).bit_length())
        # In the first cycle after the start one has gone; what is written then can be read a cycle
        # later.
        length = mux(second, model.cycles[1] - 1, model.cycles[0] - 1)
        last = (running & (elapsed == length)).named("last")
        running.drive(start | (running & ~last))
        elapsed.drive(mux(start, 1, mux(running, up(elapsed), elapsed)))
        m.output("done", last)
        m.output("ready", ~running)

        active = m.register("slots", 1)
        head = m.register("head", index_bits(self.heads))
        cycle = m.register("cycle", index_bits(max(recall.interval, change.interval)))
        end = cycle == mux(second, change.interval - 1, recall.interval - 1)
        over = end & (head == self.heads - 1)
        active.drive(start | (active & ~over))
        cycle.drive(mux(start | (active & end), 0, mux(active, up(cycle), cycle)))
        head.drive(mux(start, 0, mux(active & end, up(head), head)))
        self.one = _Line(active & ~second, head, cycle)
        self.two = _Line(active & second, head, cycle)

    def head_rows(self, head: Signal, beat: Signal) -> Signal:
        """Rows of the vector memory from a vector's first one to a head's values."""
        if self.columns >= self.width:
            return head * (self.columns // self.width) + beat
        return head >> (self.width // self.columns).bit_length() - 1

    def of_head(self, row: Signal, head: Signal) -> Signal:
        """The number of a head in a row of one for each."""
        lanes = [row[FIXED_BITS * i : FIXED_BITS * (i + 1)] for i in range(self.width)]
        index = head.truncate(min(head.width, index_bits(self.width)))
        return choose(index, lanes[: max(2, min(self.heads, self.width))]).as_signed()

    # Gates and exponents

    def gates(self) -> None:
        """What is one number a head: scales, exponents, factor, rate; of both passes."""
        m, model, f = self.m, self.model, self.f
        either = self.one.at("head", 0)
        down = (self.width - 1).bit_length()
        rows = {name: f[f"state_{name}"] + (either >> down)
                for name in ("decay", "rate") if f"state_{name}" in f}  # fmt: skip
        head = self.one.at("head", 1)
        self.gate: dict[str, Signal] = {}
        for name, at in rows.items():
            m.output(f"{name}_row", fit(at, model.row_bits))
            self.gate[name] = self.of_head(m.input(f"{name}_data", FIXED_BITS * self.width), head)
        self.scales: dict[str, ScaleOf[Signal]] = {}
        for name, count in (("query", self.form.query_heads), ("key", self.form.key_heads)):
            # Scales lie behind each other, from the codes' first row on.
            at = fit(f[f"state_{name}"] + self.group(either, count), model.row_bits)
            m.output(f"{name}_scale_group", at)
            self.scales[name] = ScaleOf(
                m.input(f"{name}_scale_mantissa", SCALE_BITS),
                m.input(f"{name}_scale_exponent", EXPONENT_BITS, True),
            )

        def factor(logarithm: Signal, frac: Signal) -> Signal:
            return recurrence.decay_factor(Wires(m), logarithm, frac)

        if "decay" in self.gate:
            frac = f["state_decay_frac"].assume(0, 31)
            given = [self.gate["decay"], frac]
            (self.factor,) = pipelined(factor, given, self.factor_depth).outputs
        else:
            self.factor = m.constant(1 << recurrence.DECAY_FRAC)
        self.factor = self.factor.assume(0, 1 << recurrence.DECAY_FRAC)

    def group(self, head: Signal, count: int) -> Signal:
        """The head of queries or keys that a head has."""
        return choose(head, [n * count // self.heads for n in range(self.heads)])

    # Rows of the states

    def rows(self) -> None:
        """The memories, and the codes that rows are multiplied with."""
        m, model, f = self.m, self.model, self.f
        recall, change = model.recall, model.change
        second = f["state_pass"]
        self.on = mux(second, self.two.at("on", change.fill), self.one.at("on", recall.fill))
        head = mux(second, self.two.at("head", change.fill), self.one.at("head", recall.fill))
        cycle = mux(second, self.two.at("cycle", change.fill), self.one.at("cycle", recall.fill))
        cycles = 1 << cycle.width

        def row_of(work: int) -> list[int]:
            return [min(n // work, recall.rows - 1) for n in range(cycles)]

        def steps(work: int) -> list[int]:
            return [int(n % work == 0 and n // work < recall.rows) for n in range(cycles)]

        row = mux(second, choose(cycle, row_of(change.work)), choose(cycle, row_of(recall.work)))
        step = mux(second, choose(cycle, steps(change.work)), choose(cycle, steps(recall.work)))
        self.step = (self.on & step).named("step")
        self.row = row
        address = fit(f["state_row"] + head * recall.rows + row, index_bits(model.depth))
        self.address = address
        self.last_row = self.step & (row == recall.rows - 1)
        self.write = m.wire("write", 1)
        self.write_address = m.wire("write_address", address.width)
        self.write_data = m.wire("write_data", self.together * self.word)
        size, units = BYTE * self.machine.attention_lanes, self.machine.h_units
        data = self.write_data.extend(size * units, False)
        words = [
            m.ram(
                f"states{unit}",
                model.depth,
                size,
                [address],
                [Write(self.write_address, data[size * unit : size * (unit + 1)], self.write)],
            )[0]
            for unit in range(units)
        ]
        # At position 0 states count as zeros.
        self.content = mux(self.first, 0, cat(*reversed(words)))
        scale_bits = EXPONENT_BITS + STATE_BITS - 1
        self.scale_write = m.wire("scale_write", 1)
        self.scale_address = m.wire("scale_address", index_bits(model.scale_depth))
        self.scale_data = m.wire("scale_data", scale_bits)
        at = f["state_head"] + self.one.at("head", 0)
        (scale,) = m.ram(
            "state_scales",
            model.scale_depth,
            scale_bits,
            [fit(at, index_bits(model.scale_depth))],
            [Write(self.scale_address, self.scale_data, self.scale_write)],
        )
        self.exponent = mux(self.first, 0, scale[:EXPONENT_BITS].as_signed())
        self.top = mux(self.first, 0, scale[EXPONENT_BITS:])
        self.codes = {name: self.code(name) for name in ("query", "key")}

    def code(self, name: str) -> list[Signal]:
        """A head's codes at the row at hand, in the cycle of its data: one for each vector."""
        m, model = self.m, self.model
        keys, rows = model.recall.keys, model.recall.rows
        count = self.form.query_heads if name == "query" else self.form.key_heads
        later = model.change.fill - keys
        second = self.f["state_pass"]

        def at(what: str, cycles: int) -> Signal:
            return mux(second, self.two.at(what, later + cycles), self.one.at(what, cycles))

        row = self.group(at("head", 0), count) * keys + at("cycle", 0)
        row = fit(self.f[f"state_{name}"] + row, model.row_bits)
        m.output(f"{name}_row", row)
        data = m.input(f"{name}_data", CODE_BITS * self.width)
        cycle = at("cycle", 1)
        parts = [data.delay(enable=cycle == n, name=f"{name}_part{n}") for n in range(keys - 1)]
        whole = cat(data, *reversed(parts))
        here = at("on", 1) & (cycle == keys - 1)
        held = whole.delay(enable=here, name=f"{name}_codes")
        fmt, width = self.form.format, self.shape.key_width
        found = [
            datapaths.decode(held[CODE_BITS * i : CODE_BITS * (i + 1)], fmt) for i in range(width)
        ]
        limit = FORMATS[fmt].limit
        zero = m.constant(0)
        padded = [one.assume(-limit, limit) for one in found]
        padded += [zero] * (rows * self.together - width)
        row = self.row.delay(name=f"{name}_at")
        return [choose(row, padded[u :: self.together]) for u in range(self.together)]

    def element(self, vector: int, column: int) -> Signal:
        """A mantissa of the row at hand."""
        low = vector * self.word + STATE_BITS * column
        return self.content[low : low + STATE_BITS].as_signed().assume(-STATE_LIMIT, STATE_LIMIT)

    # The first pass

    def recall(self) -> None:
        """Sums, the match, results and news."""
        m, model, machine = self.m, self.model, self.machine
        steps, bits = model.recall, model.sum_bits
        pairs = {
            name: [
                [(self.element(u, j), codes[u]) for u in range(self.together)]
                for j in range(self.columns)
            ]
            for name, codes in self.codes.items()
        }
        pairs["match"] = [list(zip(self.codes["key"], self.codes["query"], strict=True))]
        depth = machine.broadcast + machine.attention_pipeline - 3
        now = self.step.delay(1 + depth, reset=0, name="sum_step")
        row = self.row.delay(1 + depth, name="sum_row")
        sums: dict[str, list[Signal]] = {}
        shown = steps.fill + steps.last_row + 2 + depth
        keep = self.one.at("on", shown) & (self.one.at("cycle", shown) == 0)
        for name, columns in pairs.items():
            sums[name] = []
            for column in columns:
                part = self.dot(column, depth)
                total = m.register(f"{name}_sum", bits, True, None)
                fresh = mux(row == 0, 0, total)
                total.drive((fresh + part).truncate(bits, True), now)
                sums[name].append(total.delay(enable=keep, name=f"{name}_waiting"))
        self.results(sums, shown + 1)

    def dot(self, pairs: Sequence[tuple[Signal, Signal]], depth: int) -> Signal:
        """The sum of products in so many cycles."""

        def total(*given: Signal) -> Signal:
            half = len(given) // 2
            products = [a * b for a, b in zip(given[:half], given[half:], strict=True)]
            return add_all([one.cut() for one in products])

        left, right = zip(*pairs, strict=True)
        (found,) = pipelined(total, [*left, *right], depth).outputs
        return found

    def results(self, sums: dict[str, list[Signal]], begin: int) -> None:
        """From sums, which are there `begin` cycles after the slot, to the vector memory."""
        m, model, f = self.m, self.model, self.f
        steps, line, form = model.recall, self.one, self.form
        ready = begin + self.match
        late = {
            name: ScaleOf(one.mantissa.delay(begin - 1), one.exponent.delay(begin - 1))
            for name, one in self.scales.items()
        }

        def matched(dot: Signal, *parts: Signal) -> tuple[Signal, Signal]:
            r = Wires(m)
            key, query = ScaleOf(*parts[:2]), ScaleOf(*parts[2:])
            return recurrence.matched(r, dot, key, query, form.shift), r.saturated

        match, wrong = pipelined(
            matched, [sums["match"][0], *late["key"], *late["query"]], self.match
        ).outputs
        beat = line.at("cycle", begin)
        by_key, by_query = (
            [choose(beat, sums[name][x :: self.lanes]).delay(self.match) for x in range(self.lanes)]
            for name in ("key", "query")
        )
        # Numbers of the head, with the sums.
        scales = [part.delay(self.match) for name in ("key", "query") for part in late[name]]
        factor = self.factor.delay(ready - 1 - self.factor_depth)
        rate = self.gate["rate"].delay(ready - 1) if "rate" in self.gate else None
        more = self.exponent.delay(ready - 1) - form.shift - f["state_frac"]
        values = self.value(ready)
        places = f["state_value_places"].static()
        rate_frac = f["state_rate_frac"].static() if rate is not None else m.constant(0)

        def element(*given: Signal) -> tuple[Signal, Signal, Signal]:
            r = Wires(m)
            key_sum, query_sum, value, match, factor, more, km, ke, qm, qe, *rest = given
            value = r.shift_saturate(value, places)
            found = recurrence.recalled(
                r,
                key_sum,
                query_sum,
                ScaleOf(km, ke),
                ScaleOf(qm, qe),
                match,
                value.cut(),
                factor,
                rest[0] if rest else None,
                form.shift,
                more,
                rate_frac,
            )
            return found.output, found.news, r.saturated

        head = [match, factor, more, *scales, *([rate] if rate is not None else [])]
        outputs: list[Signal] = []
        news: list[Signal] = []
        counts: list[Signal] = []
        for x in range(self.lanes):
            given = [by_key[x], by_query[x], values[x], *head]
            y, w, saturated = pipelined(element, given, self.lane).outputs
            outputs.append(y.extend(FIXED_BITS, True))
            news.append(w.extend(FIXED_BITS, True))
            counts.append(saturated)
        at = ready + self.lane
        on = line.at("on", at) & (line.at("cycle", at) < steps.values)
        counts.append(mux(line.at("cycle", at) == 0, wrong.delay(self.lane), 0))
        m.output("saturations", mux(on, add_all(counts), 0))
        self.leave(outputs, on, at)
        self.keep_news(news, on, at)

    def value(self, ready: int) -> list[Signal]:
        """A head's values, so many cycles after its slot."""
        m, line = self.m, self.one
        rows = self.head_rows(line.at("head", ready - 1), line.at("cycle", ready - 1))
        m.output("value_row", fit(self.f["state_value"] + rows, self.model.row_bits))
        data = m.input("value_data", FIXED_BITS * self.width)
        size = FIXED_BITS * self.lanes
        if self.lanes < self.width:
            sub = line.at("head", ready).truncate(index_bits(self.width // self.lanes))
            data = choose(sub, [data[low : low + size] for low in range(0, data.width, size)])
        return [data[FIXED_BITS * x : FIXED_BITS * (x + 1)].as_signed() for x in range(self.lanes)]

    def leave(self, outputs: list[Signal], on: Signal, at: int) -> None:
        """Results to the vector memory."""
        m, line = self.m, self.one
        head, beat = line.at("head", at), line.at("cycle", at)
        rows = self.head_rows(head, beat)
        m.output("result_enable", on)
        m.output("result_row", fit(self.f["state_output"] + rows, self.model.row_bits))
        copies = self.width // self.lanes
        m.output("result_data", cat(*reversed(outputs * copies)))
        lanes = [on] * self.width
        if copies > 1:
            sub = head.truncate(index_bits(copies))
            lanes = [on & (sub == x // self.lanes) for x in range(self.width)]
        m.output("result_lanes", cat(*reversed(lanes)))

    def keep_news(self, news: list[Signal], on: Signal, at: int) -> None:
        """What is to be added, and its largest magnitude, until the second pass."""
        m, line, values = self.m, self.one, self.model.recall.values
        head, beat = line.at("head", at), line.at("cycle", at)
        depth = max(2, self.heads * values)
        now = tree([abs(one) for one in news], larger)
        running = m.register("news_largest", FIXED_BITS)
        largest = larger(mux(beat == 0, 0, running), now).extend(FIXED_BITS, False)
        running.drive(largest, on)
        ahead = self.model.change.fill - values - self.added_depth
        other = self.two
        read = other.at("head", ahead) * values + other.at("cycle", ahead)
        (word,) = m.ram(
            "news",
            depth,
            FIXED_BITS * self.lanes,
            [fit(read, index_bits(depth))],
            [Write(fit(head * values + beat, index_bits(depth)), cat(*reversed(news)), on)],
        )
        self.kept = [
            word[FIXED_BITS * x : FIXED_BITS * (x + 1)].as_signed() for x in range(self.lanes)
        ]
        size = max(2, self.heads)
        (self.largest,) = m.ram(
            "largest",
            size,
            FIXED_BITS,
            [fit(other.at("head", 0), index_bits(size))],
            [Write(fit(head, index_bits(size)), largest, on & (beat == values - 1))],
        )

    # The second pass

    def change(self) -> None:
        """The exponent, what is added, and the rows."""
        m, model, machine, form = self.m, self.model, self.machine, self.form
        steps, line = model.change, self.two
        limit = FORMATS[form.format].limit
        frac = self.f["state_frac"].static()
        key, looked = self.scales["key"], self.factor_depth

        def exponents(
            largest: Signal, km: Signal, ke: Signal, top: Signal, e: Signal, factor: Signal
        ) -> list[Signal]:
            r, scale = Wires(m), ScaleOf(km, ke)
            return list(recurrence.news(r, largest, scale, limit, frac, top, e, factor))

        given = [self.largest, *key, self.top, self.exponent]
        found = pipelined(
            exponents, [*(one.delay(looked) for one in given), self.factor], self.news_depth
        ).outputs
        known = 1 + looked + self.news_depth
        late = steps.fill + 1
        begin = late - steps.values
        # What is read of the news is there `begin - added_depth` cycles after the slot.
        wait = begin - self.added_depth - known

        def added(w: Signal, mantissa: Signal, places: Signal) -> Signal:
            return recurrence.added(Wires(m), w, mantissa, places)

        mantissa = key.mantissa.delay(looked + self.news_depth + wait)
        places = found[0].delay(wait)
        parts = [
            pipelined(added, [w, mantissa, places], self.added_depth)
            .outputs[0]
            .extend(STATE_BITS, True)
            for w in self.kept
        ]
        cycle = line.at("cycle", begin)
        columns: list[Signal] = []
        for n in range(steps.values):
            enable = line.at("on", begin) & (cycle == n)
            held = [part.delay(enable=enable, name=f"part{n}") for part in parts]
            if n < steps.values - 1:
                # All of a head's are taken over together.
                last = line.at("on", begin) & (cycle == steps.values - 1)
                held = [one.delay(enable=last, name=f"added{n}") for one in held]
            columns += held
        one = recurrence.News(*(part.delay(late - known) for part in found))
        factor = self.factor.delay(late - 1 - looked)
        depth = machine.broadcast + machine.attention_pipeline + machine.kv_write - 2

        def row(*given: Signal) -> list[Signal]:
            factor, old, new, *rest = given
            r, at = Wires(m), recurrence.News(factor, factor, old, new)
            codes, rest = rest[: self.together], rest[self.together :]
            sums, states = rest[: self.columns], rest[self.columns :]
            changed = [
                recurrence.remembered(
                    r, states[u * self.columns + j], codes[u], factor, sums[j], at
                )
                for u in range(self.together)
                for j in range(self.columns)
            ]
            return [*changed, tree([abs(x) for x in changed], larger)]

        states = [self.element(u, j) for u in range(self.together) for j in range(self.columns)]
        *changed, most = pipelined(
            row,
            [factor, one.old_shift, one.new_shift, *self.codes["key"], *columns, *states],
            depth,
        ).outputs
        self.store(changed, most, one.exponent.delay(depth), 1 + depth)

    def store(self, changed: list[Signal], most: Signal, exponent: Signal, late: int) -> None:
        """Rows back to their place, so many cycles after they were read; the exponent behind the
        last one."""
        m = self.m
        second = self.f["state_pass"]
        on = (self.step & second).delay(late, reset=0, name="change")
        vectors: list[Signal] = []
        for u in range(self.together):
            own = changed[u * self.columns : (u + 1) * self.columns]
            word = cat(*[one.extend(STATE_BITS, True) for one in reversed(own)])
            vectors.append(word.as_unsigned().extend(self.word, False))
        self.write.assign(on)
        self.write_address.assign(self.address.delay(late, name="change_address"))
        self.write_data.assign(cat(*reversed(vectors)))
        running = m.register("change_largest", STATE_BITS - 1)
        first = (self.row == 0).delay(late, name="change_first")
        size = larger(mux(first, 0, running), most).extend(STATE_BITS - 1, False)
        running.drive(size, on)
        last = self.last_row.delay(late, reset=0, name="change_last")
        self.scale_write.assign(last & on)
        head = self.two.at("head", self.model.change.fill).delay(late, name="change_head")
        at = self.f["state_head"] + head
        self.scale_address.assign(fit(at, self.scale_address.width))
        short = exponent.truncate(EXPONENT_BITS, True).as_unsigned()
        self.scale_data.assign(cat(size, short.extend(EXPONENT_BITS, False)))
