"""Chrome trace events of a token: equal to the timeline."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from intaglio.backend.compile import compile_model
from intaglio.backend.program.program import load_program
from intaglio.backend.stages import Options
from intaglio.dialects.errors import UserError
from intaglio.dialects.isa.queues import COUNTERS, QUEUES, reductions_of
from intaglio.dialects.timeline import awaited
from intaglio.runtime.reports.inspect import inspect_json
from intaglio.runtime.reports.perfetto import BEATS, BLOCKS, PATH, POWER, UNITS, perfetto_text
from intaglio.runtime.reports.power import on_times
from intaglio.runtime.reports.timing import critical_path, extents, spans, steps, token_cycles

Named = Callable[[str], Path]


@pytest.fixture(scope="module")
def gated(model: Named, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("gated") / "out"
    options = Options("tom-mini", context=32, emit="program")
    return compile_model(model("ternary"), out, options).folder


def slices(events: list[dict[str, Any]], group: int) -> list[dict[str, Any]]:
    """Instructions or beats, in the order of the trace."""
    return [
        event
        for event in events
        if event["pid"] == group and event["ph"] == "X" and event["tid"] != BLOCKS
    ]


def tracks(events: list[dict[str, Any]], group: int) -> dict[int, str]:
    """Names of tracks by their numbers."""
    return {
        event["tid"]: event["args"]["name"]
        for event in events
        if event["pid"] == group and event["name"] == "thread_name" and event["tid"] != BLOCKS
    }


@pytest.mark.parametrize("position", [None, 3])
def test_instructions_are_the_timelines(gated: Path, position: int | None):
    """From the start of the first beat to the finish of the last."""
    program = load_program(gated)
    where = program.positions[-1] if position is None else position
    trace = json.loads(perfetto_text(gated, position))
    assert trace["otherData"] == {"target": "tom-mini", "clock_hz": 500_000_000, "position": where}
    events = trace["traceEvents"]
    threads, shown = tracks(events, UNITS), slices(events, UNITS)
    wanted: dict[tuple[int, int, int], list[tuple[int, int, int]]] = {}
    for span, number in spans(program, [where]):
        block = program.blocks[number]
        one = block.instructions[span.instruction]
        if not one.beat.ends:
            of = one.beat.of_instruction
            one = next(o for o in block.whole if o.beat.words and o.beat.of_instruction == of)
        times = int(span.start[0]), int(span.finish[0]), int(span.free[0])
        at = number, span.instance, next(n for n, o in enumerate(block.whole) if o is one)
        wanted.setdefault(at, []).append(times)
    number_of = {block.name: number for number, block in enumerate(program.blocks)}
    found = {
        (number_of[e["args"]["block"]], e["args"]["instance"], e["args"]["instruction"]): e
        for e in shown
    }
    assert set(found) == set(wanted) and len(shown) == len(wanted)
    assert max(len(beats) for beats in wanted.values()) > 8
    for at, event in found.items():
        one, beats = program.blocks[at[0]].whole[at[2]], wanted[at]
        assert re.fullmatch(rf"{one.queue} queue(, \d at once)?", threads[event["tid"]])
        assert event["cat"] == one.opcode
        args = event["args"]
        start, finish = min(b[0] for b in beats), max(b[1] for b in beats)
        assert (args["start"], args["finish"]) == (start, finish)
        assert args["beats"] == len(beats)
        assert args["busy_cycles"] == sum(free - begins for begins, _, free in beats)
        # Two nanoseconds a cycle.
        assert event["ts"] == pytest.approx(start / 500)
        assert event["dur"] == pytest.approx((finish - start) / 500)
        assert args["onnx"] == one.onnx[min(at[1], len(one.onnx) - 1)]
        assert args["onnx"][0] in event["name"]
        assert set(args["uses"].values()) <= {
            *program.parameters,
            *program.caches,
            *program.domains,
            "none",
        }
    # Instructions at once have tracks of their own, no more than needed.
    for queue in {name.partition(" ")[0] for name in threads.values()}:
        own = [
            (e["args"]["start"], e["args"]["finish"]) for e in shown if e["args"]["queue"] == queue
        ]
        at_once = max(sum(a <= start < b for a, b in own) for start, _ in own)
        assert at_once <= sum(name.startswith(f"{queue} queue") for name in threads.values())
    assert len(set(threads.values())) == len(threads)
    for thread in threads:
        ends = sorted(
            (e["args"]["start"], e["args"]["finish"]) for e in shown if e["tid"] == thread
        )
        assert ends and all(one[1] <= two[0] for one, two in pairwise(ends))
    path = [e for e in events if e["pid"] == PATH and e["ph"] == "X" and e["cat"] != "block"]
    on_path = {(e["args"]["block"], e["args"]["instance"], e["args"]["instruction"]) for e in path}
    critical = [event["args"] for event in shown if event["args"]["critical"]]
    assert on_path == {(a["block"], a["instance"], a["instruction"]) for a in critical}
    steps_on_path = critical_path(program, where)
    assert sum(event["args"]["beats"] for event in path) == len(steps_on_path)
    lengths = [event["args"]["finish"] - event["args"]["start"] for event in path]
    assert sum(one.cycles for one in steps_on_path) <= sum(lengths) <= path[-1]["args"]["finish"]
    assert path[-1]["args"]["finish"] == token_cycles(program, [where]).period[0]
    on = [event for event in events if event["pid"] == POWER and event["ph"] == "X"]
    intervals = {
        name: [
            (event["args"]["start"], event["args"]["finish"])
            for event in on
            if event["name"] == f"{name} on"
        ]
        for name in program.domains
    }
    assert intervals == on_times(program, where).domains
    counts = [event["args"]["domains"] for event in events if event["name"] == "domains on"]
    assert counts[0] in (0, 1) and counts[-1] == 0 and max(counts) == 2


def test_deterministic_and_without_paths(compiled: Named):
    text = perfetto_text(compiled("llama"))
    assert text == perfetto_text(compiled("llama"))
    assert str(compiled("llama").parent) not in text
    assert '"pid": 3' not in text


def test_positions_beyond_the_context(compiled: Named):
    with pytest.raises(UserError, match="position 128 is out of range"):
        perfetto_text(compiled("llama"), 128)


def events_of(out: Path, *, beats: bool = False) -> list[dict[str, Any]]:
    return json.loads(perfetto_text(out, beats=beats))["traceEvents"]


@pytest.mark.parametrize("name", ["llama", "phi", "gated"])
def test_beats_are_the_timelines(name: str, gated: Path, compiled: Named):
    """On demand: what each queue takes, for as long as it has the queue, and never two at once."""
    out = gated if name == "gated" else compiled(name)
    program, events = load_program(out), events_of(out, beats=True)
    assert events[: len(events_of(out))] == events_of(out)
    threads, shown = tracks(events, BEATS), slices(events, BEATS)
    wanted = list(spans(program, [program.positions[-1]]))
    assert len(shown) == len(wanted) > len(slices(events, UNITS))
    for event, (span, number) in zip(shown, wanted, strict=True):
        one, args = program.blocks[number].instructions[span.instruction], event["args"]
        assert threads[event["tid"]] == f"beats of the {one.queue} queue"
        assert (args["start"], args["finish"]) == (span.start[0], span.free[0])
        assert args["readable"] == span.finish[0]
        assert args.get("reduction") == (None if span.left is None else span.left[0])
        assert args["beat"] == one.beat.words
        assert args["duration"] == str(one.issue.duration)
        pace = one.issue.pace
        assert args.get("pace") == (None if pace is None else str(pace))
        assert event["dur"] == pytest.approx((span.free[0] - span.start[0]) / 500)
    path = {step.span.at for step in critical_path(program, program.positions[-1])}
    assert sum(event["args"]["critical"] for event in shown) == len(path)
    for thread in threads:
        ends = [(e["args"]["start"], e["args"]["finish"]) for e in shown if e["tid"] == thread]
        assert ends and all(one[1] <= two[0] for one, two in pairwise(ends))


@pytest.mark.parametrize("beats", [False, True])
@pytest.mark.parametrize("name", ["llama", "phi", "gated"])
def test_an_arrow_for_each_wait(name: str, beats: bool, gated: Path, compiled: Named):
    """Of beats each; of instructions the first of those that one has for another."""
    out = gated if name == "gated" else compiled(name)
    program, events = load_program(out), events_of(out, beats=beats)
    group = BEATS if beats else UNITS
    number_of = {block.name: number for number, block in enumerate(program.blocks)}
    found = steps(program, program.positions[-1])
    keys = [step.whole(program) for step in found]
    shown: dict[Any, dict[str, Any]] = {}
    for number, event in enumerate(slices(events, group)):
        args = event["args"]
        whole = number_of[args["block"]], args["instance"], args["instruction"]
        shown[number if beats else whole] = event
    wanted: dict[tuple[Any, Any, Any], tuple[int, int]] = {}
    """By what waits, what is waited for and a number: when that is there, and when this starts."""
    for number, step in enumerate(found):
        for count, wait in enumerate(step.waits):
            if beats:
                key = number, wait.number, count
            elif keys[number] == keys[wait.number]:
                continue
            else:
                key = keys[number], keys[wait.number], 0
            wanted.setdefault(key, (wait.cycle, int(step.span.start[0])))
    own = [event for event in events if event["pid"] == group]
    starts = {e["id"]: e for e in own if e["ph"] == "s"}
    ends = {e["id"]: e for e in own if e["ph"] == "f"}
    assert set(starts) == set(ends) and wanted and len(starts) == len(wanted)
    every = [e["id"] for e in events if e["ph"] == "s"]
    assert len(set(every)) == len(every)
    seen = {(starts[n]["tid"], starts[n]["ts"], ends[n]["tid"], ends[n]["ts"]) for n in starts}
    cycle = 1e6 / program.machine.clock_hz
    for (later, earlier, _), (there, start) in wanted.items():
        one, other = shown[earlier], shown[later]
        last = max(one["args"]["start"], min(there, one["args"]["finish"]) - 1)
        arrow = one["tid"], round(last * cycle, 9), other["tid"], round(start * cycle, 9)
        assert arrow in seen
        # Both ends lie within the slices, and what is waited for is there.
        assert one["ts"] <= arrow[1] < one["ts"] + max(one["dur"], 1e-9)
        assert other["ts"] <= arrow[3] < other["ts"] + other["dur"] and there <= start
    assert all(event["bp"] == "e" for event in ends.values())


def test_waits_are_those_that_the_program_states(compiled: Named):
    program = load_program(compiled("llama"))
    found = steps(program, 0)
    counted = dict.fromkeys(COUNTERS, 0)
    base: dict[str, int] = {}
    numbers: dict[tuple[str, int], int] = {}
    for number, one in enumerate(found):
        if one.span.instruction == 0:
            base = dict(counted)
        issue = one.taken(program).issue
        instance = one.span.instance
        last = {n: awaited(base[n], count, instance) for n, count in issue.waits.items()}
        wanted = [numbers[name, count] for name, count in last.items() if count > 0]
        assert [wait.number for wait in one.waits] == wanted
        awaited_ones = (name for name, count in last.items() if count > 0)
        for name, wait in zip(awaited_ones, one.waits, strict=True):
            span = found[wait.number].span
            there = span.finish if name in QUEUES else span.left
            assert there is not None and wait.cycle == int(there[0])
        waits = (*one.waits, *([] if one.before is None else [one.before]))
        # All of it flows, so what is known ahead costs no issue but from the token.
        assert issue.pace is not None
        ready = max([program.machine.issue, *(wait.cycle for wait in waits)])
        assert int(one.span.start[0]) == ready
        leaves = [] if issue.reduces is None else [reductions_of(issue.queue)]
        for name in (issue.queue, *leaves):
            counted[name] += 1
            numbers[name, counted[name]] = number


@pytest.mark.parametrize("name", ["llama", "phi", "gated"])
def test_slices_nest(name: str, gated: Path, compiled: Named):
    out = gated if name == "gated" else compiled(name)
    program, events = load_program(out), events_of(out, beats=True)
    tracks: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for event in events:
        if event["ph"] == "X":
            tracks.setdefault((event["pid"], event["tid"]), []).append(event)
    for track in tracks.values():
        open_until: list[int] = []
        order = sorted(track, key=lambda e: (e["args"]["start"], -e["args"]["finish"]))
        for event in order:
            start, finish = event["args"]["start"], event["args"]["finish"]
            while open_until and open_until[-1] <= start:
                open_until.pop()
            assert not open_until or finish <= open_until[-1]
            open_until.append(finish)
    token, *blocks = tracks[UNITS, BLOCKS]
    where = program.positions[-1]
    assert [token["args"]["start"], token["args"]["finish"]] == [
        0,
        extents(program, where)[-1].last,
    ]
    assert len(blocks) == sum(len(block.instances) for block in program.blocks)
    assert all(a["args"]["finish"] == b["args"]["start"] for a, b in pairwise(blocks))
    assert {"layer 0", "layer 1", "head"} <= {event["name"] for event in blocks}
    layers = [e for e in tracks[PATH, 1] if e["cat"] == "block"]
    assert {"layer 0", "layer 1", "head"} <= {event["name"] for event in layers}


@pytest.mark.parametrize("name", ["llama", "tied", "phi", "gated"])
def test_busy_lanes_add_up(name: str, gated: Path, compiled: Named):
    """Their average over the token is the part of lanes that `inspect` calls busy."""
    out = gated if name == "gated" else compiled(name)
    program, events = load_program(out), events_of(out)
    entry = inspect_json(out)["positions"][-1]
    lanes = program.machine.tiles * program.machine.l_units * program.machine.lanes
    counts = [(e["ts"], e["args"]["lanes"]) for e in events if e["name"] == "lanes busy"]
    cycle = 1e6 / program.machine.clock_hz
    area = sum((b[0] - a[0]) / cycle * a[1] for a, b in pairwise(counts))
    assert (
        counts[-1][1] == 0 and 0 <= min(v for _, v in counts) <= max(v for _, v in counts) <= lanes
    )
    assert area / lanes / entry["cycles"] == pytest.approx(entry["lane_utilisation"], rel=1e-4)
    queues = [e["args"]["queues"] for e in events if e["name"] == "queues busy"]
    assert queues[-1] == 0 and min(queues) == 0 and 1 <= max(queues) <= 5
