"""One token as Chrome trace events: instructions by queue, with the ONNX nodes they stand for.

The format is the JSON one that Perfetto's viewer (ui.perfetto.dev) and chrome://tracing open.
Times are those of the chip's clock: microseconds with a cycle as fraction, cycle 0 accepts the
token. Nothing is executed; the timeline gives all.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from intaglio.backend.program import Program, load_program
from intaglio.dialects import timeline
from intaglio.runtime.inspect import check_positions
from intaglio.runtime.power import on_times
from intaglio.runtime.timing import critical_path, spans

Event = dict[str, Any]

UNITS, PATH, POWER = 1, 2, 3
"""Groups of tracks ("processes" of the format)."""


def perfetto_text(out: str | Path, position: int | None = None) -> str:
    """The trace of the token at a position; the last that the program states by default.

    Raises:
        UserError: the folder holds no compiled program, or the position is beyond its context.
    """
    program = load_program(out)
    where = program.positions[-1] if position is None else position
    check_positions(program, [where])
    events = ",\n".join(json.dumps(event) for event in _events(program, where))
    other = {
        "target": program.machine.name,
        "clock_hz": program.machine.clock_hz,
        "position": where,
    }
    return (
        f'{{"displayTimeUnit": "ns", "otherData": {json.dumps(other)}, "traceEvents": [\n'
        f"{events}\n]}}\n"
    )


def _events(program: Program, position: int) -> Iterator[Event]:
    path = critical_path(program, position)
    critical = {(span.block, span.instance, span.instruction) for span in path}
    yield _name("process_name", UNITS, 0, f"{program.machine.name}, position {position}")
    used = {one.queue for block in program.blocks for one in block.instructions}
    threads = {queue: i for i, queue in enumerate(timeline.QUEUES, 1) if queue in used}
    for queue, thread in threads.items():
        yield _name("thread_name", UNITS, thread, f"{queue} queue")
        yield _name("thread_sort_index", UNITS, thread, thread)
    for span, number in spans(program, [position]):
        is_critical = (number, span.instance, span.instruction) in critical
        one = program.blocks[number].instructions[span.instruction]
        event = _instruction(program, number, span, UNITS, threads[one.queue])
        event["args"]["critical"] = is_critical
        yield event
    yield _name("process_name", PATH, 0, "critical path")
    yield _name("thread_name", PATH, 1, "instructions that the period consists of")
    for span in path:
        yield _instruction(program, span.block, span, PATH, 1)
    if program.domains:
        yield from _power(program, position)


def _instruction(
    program: Program, number: int, span: timeline.Span, process: int, thread: int
) -> Event:
    block = program.blocks[number]
    one = block.instructions[span.instruction]
    bound = block.instances[span.instance]
    nodes = one.onnx[span.instance if len(one.onnx) > 1 else 0]
    return _slice(
        program,
        f"{one.opcode} {nodes[0]}" if nodes else one.opcode,
        one.opcode,
        (process, thread),
        (int(span.start[0]), int(span.finish[0])),
        {
            "onnx": list(nodes),
            "block": block.name,
            "instance": span.instance,
            "instruction": span.instruction,
            "queue": one.queue,
            "reads": list(one.reads),
            "writes": list(one.writes),
            "uses": {slot: bound.get(name, name) for slot, name in one.uses.items()},
            "duration": str(one.issue.duration),
        },
    )


def _power(program: Program, position: int) -> Iterator[Event]:
    """Each power domain on a track of its own, and how many are on."""
    times = on_times(program, position)
    yield _name("process_name", POWER, 0, "power domains")
    edges: dict[int, int] = {0: 0}
    for thread, (name, intervals) in enumerate(times.domains.items(), 1):
        yield _name("thread_name", POWER, thread, name)
        yield _name("thread_sort_index", POWER, thread, thread)
        for start, finish in intervals:
            tensors = {"tensors": list(program.domains[name])}
            yield _slice(program, f"{name} on", "power", (POWER, thread), (start, finish), tensors)
            edges[start] = edges.get(start, 0) + 1
            edges[finish] = edges.get(finish, 0) - 1
    number = 0
    for cycle, step in sorted(edges.items()):
        number += step
        yield {
            "ph": "C",
            "name": "domains on",
            "pid": POWER,
            "ts": _microseconds(program, cycle),
            "args": {"domains": number},
        }


def _slice(
    program: Program,
    name: str,
    category: str,
    track: tuple[int, int],
    cycles: tuple[int, int],
    arguments: dict[str, Any],
) -> Event:
    start, finish = cycles
    return {
        "ph": "X",
        "name": name,
        "cat": category,
        "pid": track[0],
        "tid": track[1],
        "ts": _microseconds(program, start),
        "dur": _microseconds(program, finish - start),
        "args": {"start": start, "finish": finish, **arguments},
    }


def _microseconds(program: Program, cycles: int) -> float:
    # Rounded to a femtosecond: the same text everywhere, and no cycle is lost.
    return round(cycles * 1e6 / program.machine.clock_hz, 9)


def _name(kind: str, process: int, thread: int, value: str | int) -> Event:
    key = "sort_index" if kind == "thread_sort_index" else "name"
    return {"ph": "M", "name": kind, "pid": process, "tid": thread, "args": {key: value}}
