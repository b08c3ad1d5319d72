"""Sequencers with dummy units against `dialects.timeline`: every start and every finish."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest

from intaglio.backend import circt
from intaglio.backend.hw.chip.sequencer import (
    SEQUENCE_BITS,
    QueueProgram,
    build_sequencer,
    counters,
    descriptor,
    unroll,
)
from intaglio.backend.hw.chip.token_port import build_token_port
from intaglio.backend.hw.wires.signal import Design, ModuleBuilder, Wire, mux
from intaglio.dialects.descriptor import Field, Fields
from intaglio.dialects.errors import UserError
from intaglio.dialects.formula import constant
from intaglio.dialects.isa.queues import COUNTERS, LEAVES, QUEUES, reductions_of
from intaglio.dialects.timeline import Block, Issue, simulate
from intaglio.runtime.engines.arc import ArcModel
from intaglio.runtime.engines.running import Model
from intaglio.runtime.engines.verilator import VerilatorModel, compiler, verilator_root

LONGEST = 20
LEFT = 7
"""Cycles from the finish of an instruction to its reduction."""
FIELDS = Fields((Field("cycles", 5), Field("pace", 5)))
Blocks = list[tuple[Block, bool]]


@dataclass(frozen=True)
class Event:
    """Start and finish of an instruction, counted from the token's acceptance."""

    queue: str
    sequence: int
    start: int
    finish: int


def random_blocks(rng: np.random.Generator, queues: Sequence[str] = QUEUES) -> Blocks:
    """Blocks of random instructions; the last one runs for wanted tokens only."""
    blocks: Blocks = []
    # Latencies of those that flow; what they take at once is behind that.
    flowing = {q: int(rng.integers(0, 8)) for q in queues[:4] if rng.random() < 0.5}
    counted = (*queues, *(LEAVES[queue] for queue in flowing if queue in LEAVES))
    count = int(rng.integers(1, 4))
    for number in range(count + 1):
        issued = dict.fromkeys(counted, 0)
        issues: list[Issue] = []
        for _ in range(rng.integers(1, 9)):
            queue = str(rng.choice(queues))
            waits = {
                other: int(rng.integers(0, issued[other] + 1))
                for other in counted
                if rng.random() < 0.4
            }
            longest = 2 if rng.random() < 0.4 else LONGEST
            taken = constant(int(rng.integers(1, longest + 1)))
            if queue in flowing:
                finish = taken + flowing[queue]
                reduces = finish + LEFT if queue in LEAVES else None
                issues.append(Issue(queue, waits, finish, taken, reduces))
                if reduces is not None:
                    leaves = reductions_of(queue)
                    issued[leaves] = issued.get(leaves, 0) + 1
            else:
                issues.append(Issue(queue, waits, taken))
            issued[queue] += 1
        instances = 1 if number == count else int(rng.integers(1, 4))
        blocks.append((Block(f"block{number}", issues, instances), number == count))
    return blocks


def expected(blocks: Blocks, issue: int, sampled: bool) -> tuple[list[Event], int]:
    """The events of a token, and its period."""
    kept = [block for block, only in blocks if sampled or not only]
    counts = dict.fromkeys(QUEUES, 0)
    events: list[Event] = []
    for span in simulate(kept, issue, 0):
        one = kept[span.block].issues[span.instruction]
        queue, start = one.queue, int(span.start[0])
        events.append(Event(queue, counts[queue], start, int(span.finish[0])))
        if one.reduces is not None:
            left = start + int(one.reduces())
            events.append(Event(reductions_of(queue), counts[queue], start, left))
        counts[queue] += 1
    return events, max(event.finish for event in events)


def dummy(design: Design) -> ModuleBuilder:
    """A unit that does nothing for as many cycles as its field says."""
    m = design.module("dummy")
    start, cycles = m.input("start", 1), m.input("cycles", 5)
    left = m.register("left", 5)
    now = mux(start, cycles, left)
    left.drive(mux(now == 0, 0, (now - 1).truncate(5)))
    m.output("done", now == 1)
    return m


def flowing_dummy(design: Design) -> ModuleBuilder:
    """A unit that takes an instruction after `pace` cycles, and finishes each after `cycles`."""
    m = design.module("flowing_dummy")
    start, cycles, pace = m.input("start", 1), m.input("cycles", 5), m.input("pace", 5)
    left = m.register("left", 5)
    left.drive(mux(start, (pace - 1).truncate(5), mux(left == 0, 0, (left - 1).truncate(5))))
    line = m.register("line", 32)
    new = mux(start, m.constant(1) << (cycles - 1).truncate(5), 0).truncate(32)
    now = (line | new).named("now")
    line.drive((now >> 1).extend(32))
    done = now[0]
    m.output("ready", left == 0)
    m.output("done", done)
    m.output("reduced", done.delay(LEFT, reset=0))
    return m


def words(blocks: Blocks, queue: str, programs: dict[str, QueueProgram]) -> list[int]:
    """The content of a sequencer's memory."""
    form = descriptor(queue, programs, FIELDS)
    entries = programs[queue].entries
    return [
        form.pack({**{f"wait_{q}": n for q, n in entry.waits.items()}, **own})
        for entry, own in zip(entries, values(blocks, programs[queue]), strict=True)
    ]


def build(blocks: Blocks, issue: int, late: int = 1) -> tuple[str, dict[str, list[int]]]:
    """A chip of dummies, and the contents of its sequencers' memories.

    A successor that is wanted is there `late` cycles, 1 or more, after the last finish.
    """
    design = Design()
    gated = any(
        QUEUES[-1] in (one.queue, *one.waits) for block, _ in blocks for one in block.issues
    )
    queues = QUEUES if gated else QUEUES[:-1]
    programs = unroll(blocks, queues)
    contents = {q: words(blocks, q, programs) for q in programs}
    sequencers = {q: build_sequencer(design, q, programs, FIELDS, issue) for q in programs}
    port = build_token_port(design, 4)
    m = design.module("top")
    given = {
        name: m.input(name, width)
        for name, width in (
            ("token_valid", 1),
            ("token", 32),
            ("sample", 1),
            ("restart", 1),
            ("next_ready", 1),
        )
    }
    idle = m.wire("idle", 1)
    bits = next(p.width for p in sequencers["kv"].ports if p.name == "finished")
    counts: dict[str, Wire] = {q: m.wire(f"count_{q}", bits) for q in counters(programs)}
    result_valid = m.wire("result_valid", 1)
    token = m.instance(
        "port", port, {**given, "idle": idle, "result_valid": result_valid, "result": 0}
    )
    wanted = m.register("wanted", 1)
    over = (idle & token["running"] & wanted).named("over")
    wanted.drive(mux(token["accept"], given["sample"], wanted & ~over))
    result_valid.assign(over.delay(late, reset=0, name="late_result"))
    every = m.constant(1)
    event = m.constant(0)
    for queue, sequencer in sequencers.items():
        ports = {port.name for port in sequencer.ports if not port.output}
        from_unit = {
            name: m.wire(f"{name}_{queue}", 1)
            for name in ("done", "ready", "reduced")
            if name in ports
        }
        inputs = {name: token[name] for name in ("accept", "sampled", "running") if name in ports}
        others = {f"finished_{other}": count for other, count in counts.items()}
        others = {name: count for name, count in others.items() if name in ports}
        out = m.instance(f"seq_{queue}", sequencer, {**inputs, **others, **from_unit})
        name, make = ("flowing_dummy", flowing_dummy) if "ready" in from_unit else ("dummy", dummy)
        unit = design.modules[name] if name in design.modules else make(design)
        given_ = {"start": out["start"], "cycles": out["field_cycles"], "pace": out["field_pace"]}
        taken = {port.name for port in unit.ports}
        result = m.instance(
            f"unit_{queue}", unit, {name: one for name, one in given_.items() if name in taken}
        )
        for name, wire in from_unit.items():
            wire.assign(result[name])
        counts[queue].assign(out["finished"])
        if "reductions" in out:
            leaves = reductions_of(queue)
            counts[leaves].assign(out["reductions"])
            m.output(f"{leaves}_finish", out["reduction"])
            m.output(f"{leaves}_ended", out["left"])
            event = event | out["reduction"]
        every = every & out["idle"]
        event = event | out["start"] | out["finish"]
        for name in ("start", "finish", "started", "ended"):
            m.output(f"{queue}_{name}", out[name])
    idle.assign(every)
    m.output("any_event", event | token["accept"])
    for name in ("token_ready", "accept", "position", "busy"):
        m.output(name, token[name])
    return design.text(), contents


def values(blocks: Blocks, program: QueueProgram) -> list[dict[str, int]]:
    issues = [blocks[e.block][0].issues[e.instruction] for e in program.entries]
    return [
        {"cycles": int(one.duration(tokens=1)), "pace": int((one.pace or one.duration)(tokens=1))}
        for one in issues
    ]


def fill(model: Model, contents: dict[str, list[int]]) -> None:
    for queue, words in contents.items():
        path = f"seq_{queue}/descriptors"
        if path not in model.memories:
            assert not words
            continue
        memory = model.memory(path)
        assert memory.ndim == 1
        memory[: len(words)] = words


def tokens_of(
    model: Model, valid: np.ndarray, sample: np.ndarray
) -> list[tuple[int, int, list[Event]]]:
    """Runs; for every accepted token its cycle, position and events."""
    given = {"restart": np.zeros_like(valid), "next_ready": np.ones_like(valid)}
    trace = model.run(len(valid), {"token_valid": valid, "sample": sample, **given})
    out = trace.outputs
    tokens: list[tuple[int, int, list[Event]]] = []
    began: dict[tuple[str, int], int] = {}
    ends = [counter for counter in COUNTERS if f"{counter}_finish" in out]
    queues = [queue for queue in QUEUES if f"{queue}_start" in out]
    for t in range(len(valid)):
        for counter in ends:
            # What finishes in the cycle of an acceptance belongs to the token before.
            if out[f"{counter}_finish"][t]:
                cycle, _, events = tokens[-1]
                number = int(out[f"{counter}_ended"][t])
                events.append(Event(counter, number, began.pop((counter, number)), t - cycle))
        if out["accept"][t]:
            assert not began
            position = int(out["position"][t + 1]) if t + 1 < len(valid) else -1
            tokens.append((t, position, []))
        for queue in queues:
            if out[f"{queue}_start"][t]:
                number = int(out[f"{queue}_started"][t])
                began[queue, number] = t - tokens[-1][0]
                if LEAVES.get(queue) in ends:
                    began[LEAVES[queue], number] = t - tokens[-1][0]
    return tokens


def check(model: Model, blocks: Blocks, issue: int, rng: np.random.Generator, late: int = 1) -> int:
    """Runs tokens with random gaps, a reset in the middle of one; the number of events."""
    checked = 0
    for phase in range(2):
        model.set("rst", 1)
        model.step(1)
        model.set("rst", 0)
        length = 1200
        valid = (rng.random(length) < rng.choice([0.02, 0.3, 1.0])).astype(np.int64)
        sample = rng.integers(0, 2, length)
        if phase == 0:
            # Begins a token and stops in its middle.
            length = int(rng.integers(3, 60))
            valid, sample = np.ones(length, np.int64), sample[:length]
        seen = tokens_of(model, valid, sample)
        for number, (cycle, position, events) in enumerate(seen):
            want, period = expected(blocks, issue, bool(sample[cycle]))
            # The successor that is wanted keeps the next token waiting.
            period += late * int(sample[cycle])
            key = lambda e: (e.queue, e.sequence)  # noqa: E731
            whole = [e for e in want if cycle + e.finish < length]
            assert sorted(events, key=key) == sorted(whole, key=key), (number, cycle)
            checked += len(events)
            if position >= 0:
                assert position == number % 16
            if number + 1 < len(seen):
                following = cycle + period + int(np.flatnonzero(valid[cycle + period :])[0])
                assert seen[number + 1][0] == following
        if phase:
            assert len(seen) > 1
    return checked


@pytest.mark.parametrize("seed", range(24))
def test_every_start_and_finish(seed: int) -> None:
    rng = np.random.default_rng(seed)
    queues = QUEUES if seed % 2 else QUEUES[:-1]
    blocks, issue = random_blocks(rng, queues), int(rng.integers(1, 4))
    late = 1 + seed % 4
    text, contents = build(blocks, issue, late)
    model = ArcModel(text, "top")
    fill(model, contents)
    assert check(model, blocks, issue, rng, late) > 50


def test_verilator() -> None:
    try:
        compiler()
        verilator_root()
    except UserError as error:
        pytest.skip(str(error))
    rng = np.random.default_rng(99)
    blocks, issue = random_blocks(rng), 2
    text, contents = build(blocks, issue)
    model = VerilatorModel(circt.to_verilog(text), "top")
    fill(model, contents)
    check(model, blocks, issue, rng)
    model.close()


def test_refusals() -> None:
    one = Block("one", [Issue("matrix", {}, constant(3))], 1)
    with pytest.raises(UserError, match="wanted tokens last"):
        unroll([(one, True), (one, False)], QUEUES)
    with pytest.raises(UserError, match="no load queue"):
        unroll([(Block("off", [Issue("load", {}, constant(1))], 1), False)], QUEUES)
    assert tuple(unroll([(one, False)], QUEUES[:2])) == QUEUES[:2]
    many = Block("many", [Issue("kv", {}, constant(1))], 1 << SEQUENCE_BITS)
    with pytest.raises(UserError, match="65535"):
        unroll([(many, False)], QUEUES)
    with pytest.raises(UserError, match="issue"):
        build_sequencer(Design(), "matrix", unroll([(one, False)], QUEUES), FIELDS, 0)
