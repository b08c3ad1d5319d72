"""The H-Unit: SRAM of the KV cache, byte multipliers, exact accumulators.

A word of the SRAM holds one byte of each of `attention_lanes` elements; a 16-bit element lies in
two words, low byte first. In each step the unit multiplies a word with bytes of `query_parallel`
query heads (query times key) or with one byte of each of their probabilities (weighted sum).
Products of bytes are summed exactly; bytes of higher weight are shifted on the way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

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
)
from intaglio.backend.hw.wires.widths import index_bits
from intaglio.dialects.formats import PLACES
from intaglio.dialects.machine import Machine

PLACE_BITS = (len(PLACES) - 1).bit_length()
BYTE = 8
"""Bits of an element in a word of the SRAM, and of each operand of a multiplier."""


@dataclass(frozen=True)
class SumShape:
    """In which beats weighted sums leave.

    Attributes:
        width: elements of a head.
        shared: query heads that share a KV head.
        heads: whole heads of a beat, or 1.
        elements: of each head in a beat; more than it has count as those.
    """

    width: int
    shared: int
    heads: int
    elements: int

    @property
    def size(self) -> int:
        """Elements of a beat."""
        return self.heads * min(self.elements, self.width)

    @property
    def parts(self) -> int:
        """Beats of a head, or of some."""
        return -(-self.width // self.elements)

    @property
    def beats(self) -> int:
        """Beats of a KV head."""
        return -(-self.shared // self.heads) * self.parts

    @property
    def last_size(self) -> int:
        """Elements of the last one."""
        return self.size - (-self.shared % self.heads) * self.width

    def at(self, beat: int, place: int) -> tuple[int, int] | None:
        """Head and element at a place of a beat; None: nothing that counts."""
        if place >= self.size:
            return None
        if self.heads > 1:
            head, element = beat * self.heads + place // self.width, place % self.width
        else:
            head, part = divmod(beat, self.parts)
            element = part * self.elements + place
        return (head, element) if head < self.shared else None


@dataclass(frozen=True)
class HShape:
    """What all H-Units of a chip have in common.

    Attributes:
        depth: words of the KV SRAM.
        groups: most groups of `query_parallel` query heads that share a KV head.
        reads: most words a plane of a cached vector has.
        dot_bits: width of a query's product with a key.
        sum_bits: width of a weighted sum.
        query_fp8: whether queries may be E4M3.
        query_integer: whether queries may be integers.
        kv_fp8: whether cached elements may be E4M3.
        kv_integer: whether cached elements may be integers.
        places: highest byte weight of a product of two bytes, 0 to 2.
        together: query heads whose dots leave in a cycle.
        output: elements of weighted sums that leave in a cycle.
        sums: in which beats they do, a shape behind the other.
        buffer: words of the buffer for vectors from external memory; 0 without.
        buffer_parts: parts of its words that are written one by one.
        placed: whether probabilities are bytes at places (`formats.PLACES`).
    """

    depth: int
    groups: int
    reads: int
    dot_bits: int
    sum_bits: int
    query_fp8: bool
    query_integer: bool
    kv_fp8: bool
    kv_integer: bool
    places: int
    together: int
    output: int
    sums: tuple[SumShape, ...]
    buffer: int = 0
    buffer_parts: int = 1
    placed: bool = False


@dataclass(frozen=True, eq=False)
class Element:
    """A factor: ``mantissa << exponent``."""

    mantissa: Signal
    exponent: Signal


def h_unit(design: Design, machine: Machine, shape: HShape) -> ModuleBuilder:
    """The module `h_unit`.

    Ports (a *step* is named by the cycle t of its inputs; L lanes, P heads in parallel):

    - `write_enable`, `write_address`, `write_data` (8 L), `write_mask` (a bit for each
      `kv_port_bytes` bytes): the KV write port.
    - `step`: the other step inputs hold. `address` of the word; `weighted` 0 query times key, 1
      weighted sum; `first`: the accumulators' old content does not count; `group` and `read`: which
      accumulators; `place`: weight of the product in bytes; `query` (8 P L bits) or `probability`
      (8 P) bytes, the latter with a `probability_place` (3 P) where they have one; `query_sign`,
      `kv_sign`: the bytes are two's complement; `query_fp8`, `kv_fp8`: they are E4M3; `lanes`:
      which lanes hold elements; `present`: the unit's token counts.
      Accumulators show the step `attention_pipeline` cycles later.
    - `fetch_enable`, `fetch_address`, `fetch_data`, `fetch_mask` write the buffer for vectors from
      external memory; in a step with `outside` the word at `buffer_address` of it counts. Only
      where there is such a buffer.
    - `load`: copies the dots to where they wait to leave; `dot_beat` chooses which of them show as
      `dot` (`HShape.together` heads, first lowest), in the same cycle; where not all of them do.
    - `sum_beat` chooses which `sums` show (`HShape.output` elements, first lowest), in the same
      cycle; where there are several beats.
    """

    def build(m: ModuleBuilder) -> None:
        _HUnit(m, machine, shape).build()

    return design.shared("h_unit", build)


_FLAGS = ("weighted", "first", "query_sign", "kv_sign", "query_fp8", "kv_fp8", "present")


class _HUnit:
    """The module under construction."""

    def __init__(self, m: ModuleBuilder, machine: Machine, shape: HShape) -> None:
        self.m, self.machine, self.shape = m, machine, shape
        self.lanes, self.heads = machine.attention_lanes, machine.query_parallel

    def build(self) -> None:
        m, machine, shape = self.m, self.machine, self.shape
        lanes, heads = self.lanes, self.heads
        parts = lanes // machine.kv_port_bytes
        write = Write(
            m.input("write_address", index_bits(shape.depth)),
            m.input("write_data", BYTE * lanes),
            m.input("write_enable", 1),
            m.input("write_mask", parts) if parts > 1 else None,
        )
        step = m.input("step", 1)
        address = m.input("address", index_bits(shape.depth))
        flags = {name: m.input(name, 1) for name in _FLAGS}
        group = m.input("group", index_bits(shape.groups))
        read = m.input("read", index_bits(shape.reads))
        place = m.input("place", 2).assume(0, shape.places)
        mask = m.input("lanes", lanes)
        query = m.input("query", BYTE * heads * lanes)
        probability = m.input("probability", BYTE * heads)

        places = m.input("probability_place", PLACE_BITS * heads) if shape.placed else None

        weighted = flags["weighted"]
        left = [
            mux(weighted, probability[BYTE * p : BYTE * (p + 1)], query[low : low + BYTE])
            for p in range(heads)
            for low in range(BYTE * lanes * p, BYTE * lanes * (p + 1), BYTE)
        ]
        (word,) = m.ram(
            "kv", shape.depth, BYTE * lanes, [address], [write], max(0, parts * (parts > 1))
        )
        if shape.buffer:
            word = _from_buffer(m, lanes, shape, word)
        late = {name: signal.delay(name=f"{name}_q") for name, signal in flags.items()}
        counts = repeat_bits(flags["weighted"], flags["present"], mask).delay(name="counts")
        step_q = step.delay(reset=0, name="step_q")
        late_left = cat(*reversed(left)).delay(name="left")
        more = machine.attention_pipeline - 2
        staged = pipelined(
            self.products,
            [
                word,
                late_left,
                counts,
                late["query_sign"],
                late["kv_sign"],
                late["query_fp8"],
                late["kv_fp8"],
                place.delay(name="place_q"),
                *([] if places is None else [places.delay(name="probability_place_q")]),
            ],
            more,
        ).outputs
        step = _Accumulating(
            step_q.delay(more, reset=0, name="now"),
            late["weighted"].delay(more, name="now_weighted"),
            late["first"].delay(more, name="now_first"),
            group.delay(1 + more, name="now_group"),
            read.delay(1 + more, name="now_read"),
        )
        self.dots(step, staged[:heads])
        self.sums(step, staged[heads:])

    def products(
        self,
        word: Signal,
        left: Signal,
        counts: Signal,
        query_sign: Signal,
        kv_sign: Signal,
        query_fp8: Signal,
        kv_fp8: Signal,
        place: Signal,
        *places: Signal,
    ) -> list[Signal]:
        """The sums of a step's products over the lanes, a head each, and all of them singly."""
        shape, lanes = self.shape, self.lanes
        cached = [
            element(
                word[BYTE * i : BYTE * (i + 1)], kv_sign, kv_fp8, shape.kv_fp8, shape.kv_integer
            )
            for i in range(lanes)
        ]
        sums: list[Signal] = []
        singles: list[Signal] = []
        for p in range(self.heads):
            row: list[Signal] = []
            for i in range(lanes):
                low = BYTE * (p * lanes + i)
                a = element(
                    left[low : low + BYTE],
                    query_sign,
                    query_fp8,
                    shape.query_fp8,
                    shape.query_integer,
                )
                b = cached[i]
                both = mux(counts[i], a.mantissa * b.mantissa, 0)
                row.append(both << (a.exponent + b.exponent))
            row = [one.cut() for one in row]
            sums.append((add_all(row) << (place << 3)).cut())
            if not places:
                singles += [one << (place << 3) for one in row]
                continue
            (both,) = places
            own = both[PLACE_BITS * p : PLACE_BITS * (p + 1)].assume(0, len(PLACES) - 1)
            # Of elements of two bytes the high one is further up.
            singles += [one << ((place << 3) + (own << 2)) for one in row]
        return [*sums, *singles]

    def dots(self, step: _Accumulating, sums: Sequence[Signal]) -> None:
        """The accumulators of queries times keys, and the copies that wait to leave."""
        m, shape = self.m, self.shape
        dots: list[Signal] = []
        for g in range(shape.groups):
            enable = step.now & ~step.weighted & (step.group == g)
            dots += [_accumulator(m, "dot", shape.dot_bits, s, step.first, enable) for s in sums]
        load = m.input("load", 1)
        waiting = [dot.delay(enable=load, name="waiting") for dot in dots]
        beats = -(-len(dots) // shape.together)
        beat = m.input("dot_beat", index_bits(beats)) if beats > 1 else m.constant(0)
        # Heads beyond the last show what the last shows.
        waiting += waiting[-1:] * (beats * shape.together - len(dots))
        shown = [choose(beat, waiting[i :: shape.together]) for i in range(shape.together)]
        m.output("dot", cat(*reversed([one.extend(shape.dot_bits, True) for one in shown])))

    def sums(self, step: _Accumulating, singles: Sequence[Signal]) -> None:
        """The accumulators of weighted sums."""
        m, shape, lanes, heads = self.m, self.shape, self.lanes, self.heads
        enables = [
            [
                step.now & step.weighted & (step.group == g) & (step.read == r)
                for r in range(shape.reads)
            ]
            for g in range(shape.groups)
        ]
        sums = {
            (g * heads + p, r * lanes + i): _accumulator(
                m, "sum", shape.sum_bits, singles[p * lanes + i], step.first, enables[g][r]
            )
            for g, p, r, i in product(*map(range, (shape.groups, heads, shape.reads, lanes)))
        }
        beats = sum(one.beats for one in shape.sums)
        beat = m.input("sum_beat", index_bits(beats)) if beats > 1 else m.constant(0)
        out: list[Signal] = []
        for place in range(shape.output):
            # Where nothing counts, what showed before.
            shown: list[Signal] = []
            for one in shape.sums:
                for number in range(one.beats):
                    at = one.at(number, place)
                    shown.append(shown[-1] if at is None and shown else sums[at or (0, 0)])
            out.append(choose(beat, shown))
        m.output("sums", cat(*reversed([one.extend(shape.sum_bits, True) for one in out])))


class _Accumulating(NamedTuple):
    """A step as the accumulators see it."""

    now: Signal
    weighted: Signal
    first: Signal
    group: Signal
    read: Signal


def _from_buffer(m: ModuleBuilder, lanes: int, shape: HShape, word: Signal) -> Signal:
    """The word of a step: that of the SRAM, or of the buffer."""
    parts = shape.buffer_parts
    data = m.input("fetch_data", BYTE * lanes // parts)
    fetch = Write(
        m.input("fetch_address", index_bits(shape.buffer)),
        cat(*([data] * parts)),
        m.input("fetch_enable", 1),
        m.input("fetch_mask", parts) if parts > 1 else None,
    )
    outside = m.input("outside", 1).delay(name="outside_q")
    (buffered,) = m.ram(
        "buffer",
        shape.buffer,
        BYTE * lanes,
        [m.input("buffer_address", index_bits(shape.buffer))],
        [fetch],
        parts if parts > 1 else 0,
    )
    return mux(outside, buffered, word)


def repeat_bits(weighted: Signal, present: Signal, mask: Signal) -> Signal:
    """Which lanes' products count: all lanes of a present token, or the query's elements."""
    lanes = mask.width
    everything = cat(*([present] * lanes))
    return mux(weighted, everything, mask)


def element(byte: Signal, sign: Signal, is_fp8: Signal, fp8: bool, integer: bool) -> Element:
    """A byte as a factor: an integer byte with or without a sign, or an E4M3 code."""
    zero = byte.module.constant(0)
    whole = cat(sign & byte[7], byte).as_signed().assume(-128, 255)
    if not fp8:
        return Element(whole, zero)
    power = byte[3:7]
    size = cat(power.any(), byte[0:3])
    number = mux(byte[7], -size, size)
    exponent = larger(power, 1) - 1
    if not integer:
        return Element(number, exponent)
    return Element(mux(is_fp8, number, whole), mux(is_fp8, exponent, 0))


def _accumulator(
    m: ModuleBuilder, name: str, width: int, part: Signal, first: Signal, enable: Signal
) -> Signal:
    register = m.register(name, width, True, None)
    register.drive((mux(first, 0, register) + part).truncate(width, True), enable)
    return register
