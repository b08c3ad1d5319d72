"""Sequencers of a chip with several contexts: several tokens in flight (`dialects/in_flight.py`).

A sequencer has for each context what `sequencer.py` has for the one: descriptors (those of each
context say its own rows, so they are memories of their own), the next of them at hand, counters.
Of those that may start that of the earliest stage does, and of these the oldest token's. Units tell
of results in the order in which they took the instructions, so a ring of contexts says whose each
is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from intaglio.backend.hw.chip.sequencer import (
    QueueProgram,
    count_bits,
    counters,
    descriptor,
    event_number,
    parts_of,
)
from intaglio.backend.hw.wires.signal import (
    Design,
    ModuleBuilder,
    Register,
    Signal,
    Wire,
    choose,
    mux,
    tree,
)
from intaglio.backend.hw.wires.widths import index_bits
from intaglio.dialects.descriptor import Field, Fields
from intaglio.dialects.in_flight import Guard
from intaglio.dialects.isa.queues import KV, reductions_of

ORDER_FIELDS = {
    "order_stage": "number of its stage: the earliest starts",
    "order_tail": "cycles from when the queue is free again to the result, at most",
    "order_head": "cycles to the result, at least",
    "order_tail_left": "cycles from when the queue is free again to the reduction, at most",
    "order_head_left": "cycles to the reduction, at least",
}
"""Fields of descriptors that say which token's instruction starts, and what `Guard` does."""


@dataclass(frozen=True)
class Order:
    """Which token's instruction of a queue starts, and what keeps results in order between tokens.

    Attributes:
        guards: of each entry of the queue.
        stages: of each entry.
    """

    guards: Sequence[Guard]
    stages: Sequence[int]

    @property
    def depth(self) -> int:
        """Instructions whose results are under way at once, at most."""
        # Whose result is still to come when the queue is free has it a tail later at the latest,
        # and one starts a cycle.
        return 3 + max(max(one.tail, one.tail_left, 0) for one in self.guards)

    @cached_property
    def is_free(self) -> bool:
        """Whether any may follow any."""
        tail, head = max(one.tail for one in self.guards), min(one.head for one in self.guards)
        left = max(one.tail_left for one in self.guards)
        return tail < head and left < min(one.head_left for one in self.guards)

    @property
    def fields(self) -> tuple[Field, ...]:
        """Of a descriptor; guards where they count."""
        found: list[Field] = []
        every = [self.values(number) for number in range(len(self.guards))]
        for name, meaning in ORDER_FIELDS.items():
            if name in every[0]:
                most = max(one[name] for one in every)
                found.append(Field(name, max(1, most.bit_length()), meaning))
        return tuple(found)

    def values(self, number: int) -> dict[str, int]:
        """The fields of an entry."""
        stage = {"order_stage": self.stages[number]}
        if self.is_free:
            return stage
        one = self.guards[number]
        return stage | {f"order_{name}": max(0, getattr(one, name)) for name in Guard._fields}


class Interleaver:
    """The module `sequencer_<queue>` of a chip with contexts.

    Ports as in `sequencer.build_sequencer`, with these differences:

    - `accept<c>`: a token is accepted in context c; `sampled` goes with all of them.
    - `live<c>`: context c has a token, from the cycle after its acceptance on. `turn`: the context
      that is next to take one. Its token is the oldest, that of the context before it the youngest.
    - `finished<c>_<other>`: the counts of the other queues, by context.
    - out `whose`: the context whose instruction starts, until the next one does; `ended_context`
      and `left_context`: that whose instruction finishes or leaves its reduction in this cycle.
    - out `finished<c>`, `reductions<c>`, `idle<c>`.

    The memories `descriptors<c>` hold words of `descriptor(queue, programs, fields)`.
    """

    def __init__(
        self,
        design: Design,
        queue: str,
        programs: Mapping[str, QueueProgram],
        fields: Fields,
        issue: int,
        contexts: int,
        order: Order,
    ) -> None:
        self.queue, self.programs, self.issue = queue, programs, issue
        self.program, self.order, self.contexts = programs[queue], order, contexts
        self.bits, self.width = count_bits(programs), index_bits(contexts)
        self.fields = fields
        self.form = descriptor(queue, programs, fields)
        self.m = design.module(
            f"sequencer_{queue}", f"Starts the instructions of the {queue} queue, of all tokens."
        )

    def build(self) -> ModuleBuilder:
        """Builds it."""
        m, program, count = self.m, self.program, range(self.contexts)
        self.accepts = [m.input(f"accept{c}", 1) for c in count]
        sampled = m.input("sampled", 1)
        self.live = [m.input(f"live{c}", 1) for c in count]
        self.turn = m.input("turn", self.width)
        leaves = reductions_of(self.queue)
        own = {self.queue, *((leaves,) if program.reduces else ())}
        self.counts: list[dict[str, Signal]] = [
            {
                other: m.input(f"finished{c}_{other}", self.bits)
                for other in counters(self.programs)
                if other not in own
            }
            for c in count
        ]
        done = m.input("done", 1)
        start = m.wire("starts", 1)
        context = m.wire("starting", self.width)
        ended = self._ring("ended", start, context, done)
        lengths: list[Signal] = []
        issued: list[Register] = []
        for c in count:
            accept = self.accepts[c]
            short = m.register(f"wanted{c}", 1)
            short.drive(sampled, accept)
            lengths.append(
                mux(mux(accept, sampled, short), program.length(True), program.length(False))
            )
            issued.append(m.register(f"issued{c}", self.bits))
            self.counts[c][self.queue] = finished = self._counted("finished", c, done, ended)
            held = mux(short, program.length(True), program.length(False))
            idle = finished == held
            if program.reduces:
                if c == 0:
                    self.reduced = m.input("reduced", 1)
                    self.left = self._ring("left", start, context, self.reduced)
                self.counts[c][leaves] = left = self._counted(
                    "reductions", c, self.reduced, self.left
                )
                idle = idle & (left == held)
                m.output(f"reductions{c}", left)
            m.output(f"finished{c}", finished)
            m.output(f"idle{c}", idle)
        self._start(start, context, issued, lengths)
        self._tell("finish", "ended", done, ended, self.queue)
        if program.reduces:
            self._tell("reduction", "left", self.reduced, self.left, leaves)
        return m

    def _counted(self, name: str, c: int, event: Signal, whose: Signal) -> Register:
        """A count of a context's results."""
        count = self.m.register(f"{name}_count{c}", self.bits)
        more = (count + (event & (whose == c))).truncate(self.bits)
        count.drive(mux(self.accepts[c], 0, more).truncate(self.bits))
        return count

    def _ring(self, name: str, start: Signal, context: Signal, event: Signal) -> Signal:
        """Whose the next result is: contexts in the order of their starts."""
        m, depth = self.m, self.order.depth
        bits = max(1, (depth - 1).bit_length())
        ring = [m.register(f"{name}_ring{n}", self.width) for n in range(1 << bits)]
        into, out = m.register(f"{name}_into", bits), m.register(f"{name}_out", bits)
        into.drive((into + 1).truncate(bits), start)
        out.drive((out + 1).truncate(bits), event)
        for n, one in enumerate(ring):
            one.drive(context, start & (into == n))
        return choose(out, ring)

    def _tell(self, event: str, number: str, done: Signal, whose: Signal, counter: str) -> None:
        """At the event port: a result, whose it is, and which."""
        m = self.m
        m.output(event, done.delay(reset=0, name=f"{event}_q"))
        context = whose.delay(name=f"{number}_context_q")
        count = choose(context, [one[counter] for one in self.counts])
        m.output(f"{number}_context", context)
        m.output(number, event_number((count - 1).truncate(self.bits)))

    def _start(
        self,
        start: Wire,
        context: Wire,
        issued: Sequence[Register],
        lengths: Sequence[Signal],
    ) -> None:
        """Which descriptor starts: of those that may that of the earliest stage, then the oldest
        token's."""
        m, program, bits = self.m, self.program, self.bits
        ready = m.input("ready", 1)
        depth = max(2, len(program.entries))
        wires = max(1, (depth - 1).bit_length())
        parts: list[dict[str, Signal]] = []
        may: list[Signal] = []
        last = m.register("last_context", self.width)
        for c in range(self.contexts):
            accept = self.accepts[c]
            opened = accept.delay(self.issue - 1, reset=0, name=f"open_soon{c}")
            open_ = m.register(f"open{c}", 1)
            open_.drive(mux(opened, 1, mux(accept, 0, open_)))
            mine = start & (context == c)
            following = mux(
                accept, 0, mux(mine, (issued[c] + 1).truncate(bits), issued[c])
            ).truncate(bits)
            issued[c].drive(following)
            address = following.extend(max(bits, wires)).truncate(wires)
            word = m.rom(f"descriptors{c}", depth, self.form.width, address)
            parts.append(parts_of(self.form, word))
            go = open_ & (issued[c] < lengths[c]) & ready & ~accept
            for other, count in self.counts[c].items():
                wait = parts[c].get(f"wait_{other}")
                if wait is None:
                    continue
                go = go & (count >= wait)
                if other == KV:
                    for o in range(self.contexts):
                        if o != c:
                            there = self.counts[o][other] >= wait
                            go = go & (~self.live[o] | ~self._older(o, c) | there)
            may.append(go)
        if "order_tail" in self.fields:
            self._in_order(start, ready, context, parts, last, may)
        chosen: list[Signal] = []
        for c, go in enumerate(may):
            for o, other in enumerate(may):
                if o != c:
                    stage, mine = parts[o]["order_stage"], parts[c]["order_stage"]
                    before = (stage < mine) | ((stage == mine) & self._older(o, c))
                    go = go & ~(other & before)
            chosen.append(go)
        any_: Signal = chosen[0]
        for one in chosen[1:]:
            any_ = any_ | one
        start.assign(any_)
        number: Signal = m.constant(0, self.width)
        for c, one in enumerate(chosen):
            number = mux(one, c, number).truncate(self.width)
        context.assign(number)
        last.drive(number, any_)
        m.output("start", any_)
        m.output("whose", mux(any_, number, last))
        for name in self.fields:
            if name in ORDER_FIELDS:
                continue
            m.output(f"field_{name}", choose(number, [one[name] for one in parts]))
        m.output("started", event_number(choose(number, issued)))

    def _older(self, one: int, other: int) -> Signal:
        """Whether a context's token is older than another's, if both have one."""
        first, second = self.turn <= one, self.turn <= other
        same = first == second
        return mux(same, int(one < other), first)

    def _in_order(
        self,
        start: Signal,
        ready: Signal,
        context: Signal,
        parts: Sequence[Mapping[str, Signal]],
        last: Signal,
        may: list[Signal],
    ) -> None:
        """After another token's instruction only what has its result later."""
        m = self.m
        for tail, head in (("tail", "head"), ("tail_left", "head_left")):
            if f"order_{tail}" not in parts[0]:
                continue
            width = parts[0][f"order_{tail}"].width
            left = m.register(f"{tail}_now", width)
            loaded = choose(context, [one[f"order_{tail}"] for one in parts])
            none = ~tree(self.live, lambda a, b: a | b)
            less = mux(ready & (left != 0), (left - 1).truncate(width), left)
            less = mux(none, 0, less)
            left.drive(mux(start, loaded, less).truncate(width))
            for c, one in enumerate(parts):
                allowed = (last == c) | (left < one[f"order_{head}"])
                may[c] = may[c] & allowed
