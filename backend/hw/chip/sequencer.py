"""When instructions start: a sequencer for each queue, and the token port that all of them obey.

A sequencer holds the descriptors of its queue in a ROM: one for each instruction instance, in
program order, unrolled over the blocks' instances. It counts its finished instructions and sees the
counts of the other queues; that is all that queues know of each other. The cycles are those of
`dialects/timeline.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from intaglio.backend.hw.units.refusals import refuse
from intaglio.backend.hw.wires.signal import Design, ModuleBuilder, Signal, mux
from intaglio.dialects.descriptor import Fields, wait_fields
from intaglio.dialects.errors import UserError
from intaglio.dialects.timeline import Block

SEQUENCE_BITS = 16
"""Width of the sequence numbers at the event port."""
TOKEN_BITS = 32
"""Width of the token ports."""


@dataclass(frozen=True)
class Entry:
    """An instruction instance of a queue.

    Attributes:
        block: number of its block in the program.
        instance: of the block.
        instruction: number within the block.
        waits: for other queues, how many of their instructions since the token's acceptance must
            have finished; none of them 0.
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
    """

    entries: tuple[Entry, ...]
    short: int

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
    sampled_before = False
    for number, (block, sampled) in enumerate(blocks):
        if sampled_before and not sampled:
            raise UserError(
                f"the hardware runs blocks for wanted tokens last, {block.name} comes after one"
            )
        sampled_before = sampled
        for instance in range(block.instances):
            base = {queue: len(done) for queue, done in entries.items()}
            for i, issue in enumerate(block.issues):
                for queue in (issue.queue, *issue.waits):
                    if queue not in entries:
                        raise UserError(f"the hardware has no {queue} queue")
                counts = {queue: base[queue] + count for queue, count in issue.waits.items()}
                waits = {q: count for q, count in counts.items() if count and q != issue.queue}
                entries[issue.queue].append(Entry(number, instance, i, waits))
        if not sampled:
            short = {queue: len(done) for queue, done in entries.items()}
    for queue, done in entries.items():
        if len(done) >= 1 << SEQUENCE_BITS:
            raise UserError(
                f"the {queue} queue has {len(done)} instructions a token, the hardware counts to "
                f"{(1 << SEQUENCE_BITS) - 1}"
            )
    return {queue: QueueProgram(tuple(done), short[queue]) for queue, done in entries.items()}


def count_bits(programs: Mapping[str, QueueProgram]) -> int:
    """Width of the counters of finished instructions, one for all queues."""
    return max(1, max(len(program.entries).bit_length() for program in programs.values()))


def _parts(fields: Fields, word: Signal) -> dict[str, Signal]:
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
    - `running`: a token is being worked on.
    - `finished_<other>`: the other queues' counts.
    - `done`: the unit is in the last cycle of its instruction, so the result can be read in the
      next one.
    - out `start`: the first cycle in which the unit holds an instruction, and `field_<name>`, the
      unit's fields, which stay until the next instruction is chosen, at least until this one has
      finished.
    - out `finish`: the first cycle in which the result can be read.
    - out `number`: of the instruction that starts or finishes, counted from 0 in the token.
    - out `finished`: count of finished instructions of the token.
    - out `idle`: the token's last instruction has finished.

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
    accept, sampled, running = (m.input(name, 1) for name in ("accept", "sampled", "running"))
    others = {other: m.input(f"finished_{other}", bits) for other in programs if other != queue}
    done = m.input("done", 1)

    issued = m.register("issued", bits)
    finished = m.register("finished_count", bits)
    short = m.register("wanted", 1)
    short.drive(sampled, accept)
    length = mux(mux(accept, sampled, short), program.length(True), program.length(False))
    # At acceptance the counters still show the token before.
    before = mux(accept, 0, issued)
    address = m.register("address", max(1, (len(program.entries) - 1).bit_length()))
    form = descriptor(queue, programs, fields)
    word = m.rom("descriptors", max(2, len(program.entries)), form.width, address)
    parts = _parts(form, word)

    ready = (accept | running) & (before < length) & (accept | (issued == finished))
    for other, count in others.items():
        wait = parts.get(f"wait_{other}")
        if wait is not None:
            ready = ready & (mux(accept, 0, count) >= wait)
    fire = ready.named("fire")
    after = (before + 1).truncate(bits)
    issued.drive(mux(fire, after, before).truncate(bits))
    finished.drive(mux(accept, 0, (finished + done).truncate(bits)).truncate(bits))
    # Behind the last one stands the first one of the next token.
    following = mux(after == length, 0, after)
    address.drive(following.truncate(address.width), fire)

    m.output("start", fire.delay(issue, reset=0, name="start_q"))
    for name in fields:
        m.output(f"field_{name}", parts[name].delay(enable=fire, name=f"{name}_q"))
    m.output("finish", done.delay(reset=0, name="finish_q"))
    sequence = (issued - 1).truncate(bits)
    m.output("number", sequence.extend(SEQUENCE_BITS) if bits < SEQUENCE_BITS else sequence)
    m.output("finished", finished)
    m.output("idle", finished == mux(short, program.length(True), program.length(False)))
    return m


def descriptor(queue: str, programs: Mapping[str, QueueProgram], fields: Fields) -> Fields:
    """The form of a queue's descriptors: the waits, then the unit's fields."""
    waits = wait_fields((entry.waits for entry in programs[queue].entries), programs)
    return Fields((*waits, *fields.fields))


def build_token_port(design: Design, position_bits: int) -> ModuleBuilder:
    """The module `token_port`: takes tokens, gives the next ones, knows the position.

    A token is accepted, and its cycle 0 is, when `token_valid` and `token_ready` are 1. The chip is
    ready in the cycle in which the last instruction of the token before has finished, unless a
    result waits to be taken; cycles in which it waits for the outside world belong to no token.

    Ports:

    - `token_valid`, `token`, `sample` (the token's successor is wanted), `restart` (the token is
      the first of a sequence); out `token_ready`.
    - `next_ready`; out `next_valid`, `next_token`: held until `next_ready`.
    - `idle`: no instruction of the token is left.
    - `result_valid`: the first cycle in which `result`, the next token, can be read.
    - out `accept`, `sampled`: for the sequencers; `running`, `held_token`, `position`: of the
      token at hand, from the cycle after its acceptance on; `busy`.
    """
    m = design.module("token_port", "Accepts tokens, hands out their successors.")
    valid, token = m.input("token_valid", 1), m.input("token", TOKEN_BITS)
    sample, restart = m.input("sample", 1), m.input("restart", 1)
    next_ready, idle = m.input("next_ready", 1), m.input("idle", 1)
    result_valid, result = m.input("result_valid", 1), m.input("result", TOKEN_BITS)

    # The descriptor ROMs need a cycle after reset to show their first word.
    primed = m.register("primed", 1)
    primed.drive(m.constant(1))
    running = m.register("running_q", 1)
    pending = m.register("pending", 1)
    next_valid = (result_valid | pending).named("result_there")
    pending.drive(next_valid & ~next_ready)
    free = ~running | idle
    ready = (primed & free & (~next_valid | next_ready)).named("ready")
    accept = (valid & ready).named("accepted")
    running.drive(accept | ~free)

    position = m.register("position_q", position_bits)
    following = m.register("next_position", position_bits)
    here = mux(restart, 0, following)
    position.drive(here, accept)
    following.drive((here + 1).truncate(position_bits), accept)

    m.output("token_ready", ready)
    m.output("next_valid", next_valid)
    held = result.delay(enable=result_valid, name="next_token_q")
    m.output("next_token", mux(result_valid, result, held))
    m.output("accept", accept)
    m.output("sampled", sample)
    m.output("running", running)
    m.output("held_token", token.delay(enable=accept, name="token_q"))
    m.output("position", position)
    m.output("busy", ~free)
    return m
