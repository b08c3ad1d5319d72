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
    build_token_port,
    descriptor,
    unroll,
)
from intaglio.backend.hw.wires.signal import Design, ModuleBuilder, Wire, mux
from intaglio.dialects.descriptor import Field, Fields
from intaglio.dialects.errors import UserError
from intaglio.dialects.formula import constant
from intaglio.dialects.isa.queues import QUEUES
from intaglio.dialects.timeline import Block, Issue, simulate
from intaglio.runtime.engines.arc import ArcModel
from intaglio.runtime.engines.running import Model
from intaglio.runtime.engines.verilator import VerilatorModel, compiler, verilator_root

LONGEST = 20
FIELDS = Fields((Field("cycles", 5),))
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
    count = int(rng.integers(1, 4))
    for number in range(count + 1):
        issued = dict.fromkeys(queues, 0)
        issues: list[Issue] = []
        for _ in range(rng.integers(1, 9)):
            queue = str(rng.choice(queues))
            waits = {
                other: int(rng.integers(0, issued[other] + 1))
                for other in queues
                if rng.random() < 0.5
            }
            longest = 2 if rng.random() < 0.4 else LONGEST
            issues.append(Issue(queue, waits, constant(int(rng.integers(1, longest + 1)))))
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
        queue = kept[span.block].issues[span.instruction].queue
        events.append(Event(queue, counts[queue], int(span.start[0]), int(span.finish[0])))
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


def words(blocks: Blocks, queue: str, programs: dict[str, QueueProgram]) -> list[int]:
    """The content of a sequencer's memory."""
    form = descriptor(queue, programs, FIELDS)
    entries = programs[queue].entries
    return [
        form.pack({**{f"wait_{q}": n for q, n in entry.waits.items()}, **own})
        for entry, own in zip(entries, values(blocks, programs[queue]), strict=True)
    ]


def build(blocks: Blocks, issue: int) -> tuple[str, dict[str, list[int]]]:
    """A chip of dummies, and the contents of its sequencers' memories."""
    design = Design()
    gated = any(one.queue == QUEUES[-1] for block, _ in blocks for one in block.issues)
    queues = QUEUES if gated else QUEUES[:-1]
    programs = unroll(blocks, queues)
    contents = {q: words(blocks, q, programs) for q in programs}
    unit = dummy(design)
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
    counts: dict[str, Wire] = {q: m.wire(f"count_{q}", bits) for q in programs}
    token = m.instance(
        "port", port, {**given, "idle": idle, "result_valid": m.constant(0), "result": 0}
    )
    every = m.constant(1)
    event = m.constant(0)
    for queue, sequencer in sequencers.items():
        done = m.wire(f"done_{queue}", 1)
        inputs = {name: token[name] for name in ("accept", "sampled", "running")}
        others = {f"finished_{other}": counts[other] for other in programs if other != queue}
        out = m.instance(f"seq_{queue}", sequencer, {**inputs, **others, "done": done})
        result = m.instance(
            f"unit_{queue}", unit, {"start": out["start"], "cycles": out["field_cycles"]}
        )
        done.assign(result["done"])
        counts[queue].assign(out["finished"])
        every = every & out["idle"]
        event = event | out["start"] | out["finish"]
        for name in ("start", "finish", "number"):
            m.output(f"{queue}_{name}", out[name])
    idle.assign(every)
    m.output("any_event", event | token["accept"])
    for name in ("token_ready", "accept", "position", "busy"):
        m.output(name, token[name])
    return design.text(), contents


def values(blocks: Blocks, program: QueueProgram) -> list[dict[str, int]]:
    durations = [
        blocks[e.block][0].issues[e.instruction].duration(tokens=1) for e in program.entries
    ]
    return [{"cycles": int(d)} for d in durations]


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
    trace = model.run(
        len(valid), {"token_valid": valid, "sample": sample, "restart": np.zeros_like(valid)}
    )
    out = trace.outputs
    tokens: list[tuple[int, int, list[Event]]] = []
    began: dict[str, int] = {}
    queues = [queue for queue in QUEUES if f"{queue}_start" in out]
    for t in range(len(valid)):
        for queue in queues:
            # What finishes in the cycle of an acceptance belongs to the token before.
            if out[f"{queue}_finish"][t]:
                cycle, _, events = tokens[-1]
                number = int(out[f"{queue}_number"][t])
                events.append(Event(queue, number, began.pop(queue), t - cycle))
        if out["accept"][t]:
            assert not began
            position = int(out["position"][t + 1]) if t + 1 < len(valid) else -1
            tokens.append((t, position, []))
        for queue in queues:
            if out[f"{queue}_start"][t]:
                assert queue not in began
                began[queue] = t - tokens[-1][0]
    return tokens


def check(model: Model, blocks: Blocks, issue: int, rng: np.random.Generator) -> int:
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


@pytest.mark.parametrize("seed", range(12))
def test_every_start_and_finish(seed: int) -> None:
    rng = np.random.default_rng(seed)
    queues = QUEUES if seed % 2 else QUEUES[:-1]
    blocks, issue = random_blocks(rng, queues), int(rng.integers(1, 4))
    text, contents = build(blocks, issue)
    model = ArcModel(text, "top")
    fill(model, contents)
    assert check(model, blocks, issue, rng) > 50


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
