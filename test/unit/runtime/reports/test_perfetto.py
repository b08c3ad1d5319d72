"""Chrome trace events of a token: equal to the timeline."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from intaglio.backend.compile import compile_model
from intaglio.backend.program.program import load_program
from intaglio.backend.stages import Options
from intaglio.dialects.errors import UserError
from intaglio.runtime.reports.inspect import inspect_json
from intaglio.runtime.reports.perfetto import BLOCKS, PATH, POWER, UNITS, perfetto_text
from intaglio.runtime.reports.power import on_times
from intaglio.runtime.reports.timing import critical_path, extents, spans, steps

Named = Callable[[str], Path]


@pytest.fixture(scope="module")
def gated(model: Named, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("gated") / "out"
    options = Options("tom-mini", context=32, emit="program")
    return compile_model(model("ternary"), out, options).folder


@pytest.mark.parametrize("position", [None, 3])
def test_instructions_are_the_timelines(gated: Path, position: int | None):
    program = load_program(gated)
    where = program.positions[-1] if position is None else position
    trace = json.loads(perfetto_text(gated, position))
    assert trace["otherData"] == {"target": "tom-mini", "clock_hz": 500_000_000, "position": where}
    events = trace["traceEvents"]
    threads = {
        event["tid"]: event["args"]["name"]
        for event in events
        if event["pid"] == UNITS and event["name"] == "thread_name" and event["tid"] != BLOCKS
    }
    shown = [e for e in events if e["pid"] == UNITS and e["ph"] == "X" and e["tid"] != BLOCKS]
    wanted = list(spans(program, [where]))
    assert len(shown) == len(wanted)
    for event, (span, number) in zip(shown, wanted, strict=True):
        block = program.blocks[number]
        one = block.instructions[span.instruction]
        assert threads[event["tid"]] == f"{one.queue} queue" and event["cat"] == one.opcode
        args = event["args"]
        assert (args["start"], args["finish"]) == (span.start[0], span.finish[0])
        # Two nanoseconds a cycle.
        assert event["ts"] == pytest.approx(span.start[0] / 500)
        assert event["dur"] == pytest.approx((span.finish[0] - span.start[0]) / 500)
        assert args["onnx"] == one.onnx[min(span.instance, len(one.onnx) - 1)]
        assert args["onnx"][0] in event["name"]
        assert set(args["uses"].values()) <= {
            *program.parameters,
            *program.caches,
            *program.domains,
            "none",
        }
    for thread in threads:
        ends = [(e["args"]["start"], e["args"]["finish"]) for e in shown if e["tid"] == thread]
        assert all(one[1] <= two[0] for one, two in pairwise(ends))
    path = [e for e in events if e["pid"] == PATH and e["ph"] == "X" and e["cat"] != "block"]
    assert (
        len(path)
        == len(critical_path(program, where))
        == sum(event["args"]["critical"] for event in shown)
    )
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


def events_of(out: Path) -> list[dict[str, Any]]:
    return json.loads(perfetto_text(out))["traceEvents"]


@pytest.mark.parametrize("name", ["llama", "phi", "gated"])
def test_an_arrow_for_each_wait(name: str, gated: Path, compiled: Named):
    out = gated if name == "gated" else compiled(name)
    program, events = load_program(out), events_of(out)
    slices = [e for e in events if e["ph"] == "X" and e["pid"] == UNITS and e["tid"] != BLOCKS]
    found = steps(program, program.positions[-1])
    wanted = [(found.index(one), waited) for one in found for waited in one.waits]
    starts = {e["id"]: e for e in events if e["ph"] == "s"}
    ends = {e["id"]: e for e in events if e["ph"] == "f"}
    assert set(starts) == set(ends) == set(range(1, len(wanted) + 1)) and wanted
    for number, (later, earlier) in enumerate(wanted, 1):
        for event, index in ((starts[number], earlier), (ends[number], later)):
            one = slices[index]
            assert event["tid"] == one["tid"] and event["pid"] == UNITS
            assert one["ts"] <= event["ts"] < one["ts"] + one["dur"]
        assert ends[number]["bp"] == "e" and ends[number]["ts"] == slices[later]["ts"]
        # What is waited for has finished.
        assert slices[earlier]["args"]["finish"] < slices[later]["args"]["start"]
        assert starts[number]["tid"] != ends[number]["tid"]


def test_waits_are_those_that_the_program_states(compiled: Named):
    program = load_program(compiled("llama"))
    found = steps(program, 0)
    for one in found:
        issue = program.blocks[one.span.block].instructions[one.span.instruction].issue
        queues = [
            program.blocks[found[w].span.block].instructions[found[w].span.instruction].queue
            for w in one.waits
        ]
        assert set(queues) <= set(issue.waits) and len(set(queues)) == len(queues)
        waited = [found[w] for w in (*one.waits, *([] if one.before is None else [one.before]))]
        ready = max((int(w.span.finish[0]) for w in waited), default=0)
        assert int(one.span.start[0]) == ready + program.machine.issue


@pytest.mark.parametrize("name", ["llama", "phi", "gated"])
def test_slices_nest(name: str, gated: Path, compiled: Named):
    out = gated if name == "gated" else compiled(name)
    program, events = load_program(out), events_of(out)
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
