"""Chrome trace events of a token: equal to the timeline."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from intaglio.backend.compile import compile_model
from intaglio.backend.program import load_program
from intaglio.backend.stages import Options
from intaglio.dialects.errors import UserError
from intaglio.runtime.perfetto import PATH, POWER, UNITS, perfetto_text
from intaglio.runtime.power import on_times
from intaglio.runtime.timing import critical_path, spans

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
        if event["pid"] == UNITS and event["name"] == "thread_name"
    }
    shown = [event for event in events if event["pid"] == UNITS and event["ph"] == "X"]
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
    path = [event for event in events if event["pid"] == PATH and event["ph"] == "X"]
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
    counts = [event["args"]["domains"] for event in events if event["ph"] == "C"]
    assert counts[0] in (0, 1) and counts[-1] == 0 and max(counts) == 2


def test_deterministic_and_without_paths(compiled: Named):
    text = perfetto_text(compiled("llama"))
    assert text == perfetto_text(compiled("llama"))
    assert str(compiled("llama").parent) not in text
    assert '"pid": 3' not in text


def test_positions_beyond_the_context(compiled: Named):
    with pytest.raises(UserError, match="position 128 is out of range"):
        perfetto_text(compiled("llama"), 128)
