"""When instructions start: a sequencer for each queue.

A sequencer holds the descriptors of its queue in a ROM: one for each instruction instance, in
program order, unrolled over the blocks' instances. It counts its finished instructions and sees the
counts of the other queues; that is all that queues know of each other. The cycles are those of
`dialects/timeline.py`.

Where a queue flows, the next descriptor lies ready behind the one that was taken, and is taken in
the cycle in which the unit takes it and the counts are reached. Its latency `issue` is spent while
results are still on their way: a unit knows each finish ahead. What does not flow is told when it
has finished, and seen `issue` cycles later.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from intaglio.backend.hw.units.refusals import refuse
from intaglio.backend.hw.wires.signal import Design, ModuleBuilder, Register, Signal, mux
from intaglio.dialects.descriptor import Fields, wait_fields
from intaglio.dialects.errors import UserError
from intaglio.dialects.isa.queues import COUNTERS, LEAVES, reductions_of
from intaglio.dialects.timeline import Block, awaited

SEQUENCE_BITS = 16
"""Width of the sequence numbers at the event port."""


@dataclass(frozen=True)
class Entry:
    """An instruction instance of a queue.

    Attributes:
        block: number of its block in the program.
        instance: of the block.
        instruction: number within the block.
        waits: for counters (`isa.queues.COUNTERS`), how many since the token's acceptance must be
            there; none of them 0.
    """

    block: int
    instance: int
    instruction: int
    waits: Mapping[str, int]


@dataclass(frozen=True)
class QueueProgram:
    """What a queue executes for a token.

    Attributes:
        entries: all instruction instances, in order.
        short: how many of them run for a token whose successor is not wanted.
        flows: its instructions have a pace.
        reduces: they leave reductions.
    """

    entries: tuple[Entry, ...]
    short: int
    flows: bool = False
    reduces: bool = False

    def length(self, sampled: bool) -> int:
        """Instruction instances of a token."""
        return len(self.entries) if sampled else self.short


def unroll(blocks: Sequence[tuple[Block, bool]], queues: Sequence[str]) -> dict[str, QueueProgram]:
    """The programs of all queues.

    Args:
        blocks: the program's blocks, each with whether it only runs when a token is wanted.
        queues: those of the chip's units, in order.

    Raises:
        UserError: the program needs what the hardware does not have.
    """
    entries: dict[str, list[Entry]] = {queue: [] for queue in queues}
    short = dict.fromkeys(queues, 0)
    kinds: dict[str, set[tuple[bool, bool]]] = {queue: set() for queue in queues}
    sampled_before = False
    for number, (block, sampled) in enumerate(blocks):
        if sampled_before and not sampled:
            raise UserError(
                f"the hardware runs blocks for wanted tokens last, {block.name} comes after one"
            )
        sampled_before = sampled
        for instance in range(block.instances):
            base = {queue: len(done) for queue, done in entries.items()}
            # All instructions of a queue that reduces count there too.
            base |= {counter: base.get(queue, 0) for queue, counter in LEAVES.items()}
            for i, issue in enumerate(block.issues):
                for counter in (issue.queue, *issue.waits):
                    if counter not in base:
                        raise UserError(f"the hardware has no {counter} queue")
                counts = {
                    one: awaited(base[one], count, instance) for one, count in issue.waits.items()
                }
                flows = issue.pace is not None
                waits = {
                    one: count
                    for one, count in counts.items()
                    if count > 0 and (flows or one != issue.queue)
                }
                entries[issue.queue].append(Entry(number, instance, i, waits))
                kinds[issue.queue].add((flows, issue.reduces is not None))
        if not sampled:
            short = {queue: len(done) for queue, done in entries.items()}
    found: dict[str, QueueProgram] = {}
    for queue, done in entries.items():
        if len(done) >= 1 << SEQUENCE_BITS:
            raise UserError(
                f"the {queue} queue has {len(done)} instructions a token, the hardware counts to "
                f"{(1 << SEQUENCE_BITS) - 1}"
            )
        if len(kinds[queue]) > 1:
            raise UserError(f"some instructions of the {queue} queue flow, or reduce, others not")
        flows, reduces = next(iter(kinds[queue]), (False, False))
        if reduces and queue not in LEAVES:
            raise UserError(f"the {queue} queue leaves no reductions")
        found[queue] = QueueProgram(tuple(done), short[queue], flows, reduces)
    return found


def counters(programs: Mapping[str, QueueProgram]) -> tuple[str, ...]:
    """What instructions can wait for: queues, reductions and peaks where there are any."""
    found = {*programs, *(reductions_of(one) for one in programs if programs[one].reduces)}
    return tuple(one for one in COUNTERS if one in found)


def count_bits(programs: Mapping[str, QueueProgram]) -> int:
    """Width of the counters of finished instructions, one for all queues."""
    return max(1, max(len(program.entries).bit_length() for program in programs.values()))


def parts_of(fields: Fields, word: Signal) -> dict[str, Signal]:
    """The fields of a word."""
    signals: dict[str, Signal] = {}
    place = 0
    for name, bits in fields.items():
        signals[name] = word[place : place + bits]
        place += bits
    return signals


def refusals(issue: int) -> list[UserError]:
    """Why there is no sequencer with such an issue latency."""
    if issue >= 1:
        return []
    return [
        UserError(
            f"latency issue is {issue}, the hardware needs 1 at least",
            hint="the descriptor is registered on its way to the unit",
        )
    ]


def build_sequencer(
    design: Design,
    queue: str,
    programs: Mapping[str, QueueProgram],
    fields: Fields,
    issue: int,
) -> ModuleBuilder:
    """The module `sequencer_<queue>`.

    Ports (in all of them a token's cycle 0 is that of `accept`):

    - `accept`: a token is accepted; `sampled` goes with it and says that its successor is wanted.
    - `running`, where the queue does not flow: a token is being worked on.
    - `finished_<other>`: the other queues' counts, and those of what they leave (`reductions`,
      `<queue>_peaks`).
    - `ready`, where the queue flows: the unit takes an instruction in this cycle.
    - `done`: the last cycle in which the result of an instruction cannot be read; they come in
      order. `reduced` likewise for reductions.
    - out `start`: the first cycle in which the unit holds an instruction, and `field_<name>`, the
      unit's fields: in that cycle, and where the queue does not flow at least until the instruction
      has finished.
    - out `finish`: the first cycle in which a result can be read; `reduction` that of a reduction.
    - out `started`, `ended`, `left`: numbers of the instructions that start, finish and leave a
      reduction in this cycle, counted from 0 in the token.
    - out `finished`: count of finished instructions of the token; `reductions` of reductions.
    - out `idle`: nothing of the token is left.

    The memory `descriptors` holds words of `descriptor(queue, programs, fields)`.

    Args:
        design: gets the module.
        queue: whose sequencer it is.
        programs: of all queues.
        fields: those that the unit wants.
        issue: cycles from an instruction's last condition to its start.

    Raises:
        UserError: an issue latency of 0.
    """
    refuse(refusals(issue))
    program = programs[queue]
    bits = count_bits(programs)
    m = design.module(f"sequencer_{queue}", f"Starts the instructions of the {queue} queue.")
    accept, sampled = m.input("accept", 1), m.input("sampled", 1)
    form = descriptor(queue, programs, fields)
    leaves = reductions_of(queue)
    own = {queue, *((leaves,) if program.reduces else ())}
    counts: dict[str, Signal] = {
        other: m.input(f"finished_{other}", bits)
        for other in counters(programs)
        if other not in own
    }
    done = m.input("done", 1)
    short = m.register("wanted", 1)
    short.drive(sampled, accept)
    length = mux(mux(accept, sampled, short), program.length(True), program.length(False))

    def counted(name: str, event: Signal) -> Register:
        count = m.register(name, bits)
        count.drive(mux(accept, 0, (count + event).truncate(bits)).truncate(bits))
        return count

    finished = counted("finished_count", done)
    counts[queue] = finished
    idle = finished == mux(short, program.length(True), program.length(False))
    if program.reduces:
        reduced = m.input("reduced", 1)
        counts[leaves] = reductions = counted("reductions_count", reduced)
        idle = idle & (reductions == mux(short, program.length(True), program.length(False)))
        m.output("reduction", reduced.delay(reset=0, name="reduction_q"))
        m.output("reductions", reductions)
        m.output("left", event_number((reductions - 1).truncate(bits)))
    issued = m.register("issued", bits)
    if program.flows:
        parts, start = _flow(m, program, form, programs, counts, issued, accept, length, issue)
        m.output("start", start)
        for name in fields:
            m.output(f"field_{name}", parts[name])
        m.output("started", event_number(issued))
    else:
        parts, fire = _alone(m, program, form, counts, issued, finished, accept, length)
        m.output("start", fire.delay(issue, reset=0, name="start_q"))
        for name in fields:
            m.output(f"field_{name}", parts[name].delay(enable=fire, name=f"{name}_q"))
        m.output("started", event_number((issued - 1).truncate(bits)))
    m.output("finish", done.delay(reset=0, name="finish_q"))
    m.output("ended", event_number((finished - 1).truncate(bits)))
    m.output("finished", finished)
    m.output("idle", idle)
    return m


def event_number(count: Signal) -> Signal:
    """A sequence number for the event port."""
    return count.extend(SEQUENCE_BITS) if count.width < SEQUENCE_BITS else count


def _alone(
    m: ModuleBuilder,
    program: QueueProgram,
    form: Fields,
    counts: Mapping[str, Signal],
    issued: Register,
    finished: Signal,
    accept: Signal,
    length: Signal,
) -> tuple[dict[str, Signal], Signal]:
    """Of a queue whose instructions have their unit for themselves: the descriptor's parts, and
    whether all conditions are there."""
    bits, running = issued.width, m.input("running", 1)
    # At acceptance the counters still show the token before.
    before = mux(accept, 0, issued)
    address = m.register("address", max(1, (len(program.entries) - 1).bit_length()))
    word = m.rom("descriptors", max(2, len(program.entries)), form.width, address)
    parts = parts_of(form, word)
    ready = (accept | running) & (before < length) & (accept | (issued == finished))
    for other, count in counts.items():
        wait = parts.get(f"wait_{other}")
        if wait is not None:
            ready = ready & (mux(accept, 0, count) >= wait)
    fire = ready.named("fire")
    after = (before + 1).truncate(bits)
    issued.drive(mux(fire, after, before).truncate(bits))
    # Behind the last one stands the first one of the next token.
    following = mux(after == length, 0, after)
    address.drive(following.truncate(address.width), fire)
    return parts, fire


def _flow(
    m: ModuleBuilder,
    program: QueueProgram,
    form: Fields,
    programs: Mapping[str, QueueProgram],
    counts: Mapping[str, Signal],
    issued: Register,
    accept: Signal,
    length: Signal,
    issue: int,
) -> tuple[dict[str, Signal], Signal]:
    """Of a queue that flows: the parts of the next descriptor, and whether it starts."""
    bits = issued.width
    ready = m.input("ready", 1)
    opened = accept.delay(issue - 1, reset=0, name="open_soon")
    open_ = m.register("open", 1)
    open_.drive(mux(opened, 1, mux(accept, 0, open_)))
    start = m.wire("starts", 1)
    following = mux(accept, 0, mux(start, (issued + 1).truncate(bits), issued)).truncate(bits)
    issued.drive(following)
    # The word behind the one that starts is read while that starts.
    depth = max(2, len(program.entries))
    address = following.extend(max(bits, (depth - 1).bit_length()))
    word = m.rom(
        "descriptors", depth, form.width, address.truncate(max(1, (depth - 1).bit_length()))
    )
    parts = parts_of(form, word)
    go = open_ & (issued < length) & ready & ~accept
    for other, count in counts.items():
        wait = parts.get(f"wait_{other}")
        if wait is None:
            continue
        # What is not known ahead is seen late; at acceptance it is of the token before.
        if other in programs and not programs[other].flows:
            count = mux(accept, 0, count).truncate(bits).delay(issue, name=f"{other}_seen")
        go = go & (count >= wait)
    start.assign(go)
    return parts, start


def descriptor(queue: str, programs: Mapping[str, QueueProgram], fields: Fields) -> Fields:
    """The form of a queue's descriptors: the waits, then the unit's fields."""
    waits = wait_fields((entry.waits for entry in programs[queue].entries), counters(programs))
    return Fields((*waits, *fields.fields))
