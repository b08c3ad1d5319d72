"""One token as Chrome trace events: instructions by queue, with the ONNX nodes they stand for.

The format is the JSON one that Perfetto's viewer (ui.perfetto.dev) and chrome://tracing open.
Times are those of the chip's clock: microseconds with a cycle as fraction, cycle 0 accepts the
token. Nothing is executed; the timeline gives all.

An arrow goes from the last cycle of what an instruction waits for in another queue to its start.
The slices of a layer enclose those of its blocks and instructions, on tracks of their own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from intaglio.backend.program.program import Program, load_program
from intaglio.dialects import timeline
from intaglio.dialects.isa.matrix import Product
from intaglio.dialects.isa.queues import QUEUES
from intaglio.dialects.json_file import JSONFile
from intaglio.dialects.tiling import activation_passes, lower_bound_cycles
from intaglio.runtime.reports.inspect import check_positions
from intaglio.runtime.reports.power import on_times
from intaglio.runtime.reports.rom_use import placed_matrices, read_placement
from intaglio.runtime.reports.timing import Step, critical_path, extents, steps

Event = dict[str, Any]

UNITS, PATH, POWER = 1, 2, 3
"""Groups of tracks ("processes" of the format)."""

BLOCKS = 100
"""The track of the block instances; those of the queues count from 1."""


def perfetto_text(out: str | Path, position: int | None = None) -> str:
    """The trace of the token at a position; the last that the program states by default.

    Raises:
        UserError: the folder holds no compiled program, or the position is beyond its context.
    """
    program = load_program(out)
    where = program.positions[-1] if position is None else position
    check_positions(program, [where])
    mapping = read_placement(Path(out), program)
    events = ",\n".join(json.dumps(event) for event in _events(program, mapping, where))
    other = {
        "target": program.machine.name,
        "clock_hz": program.machine.clock_hz,
        "position": where,
    }
    return (
        f'{{"displayTimeUnit": "ns", "otherData": {json.dumps(other)}, "traceEvents": [\n'
        f"{events}\n]}}\n"
    )


def _events(program: Program, mapping: JSONFile, position: int) -> Iterator[Event]:
    path = critical_path(program, position)
    critical = {(span.block, span.instance, span.instruction) for span in path}
    yield _name("process_name", UNITS, 0, f"{program.machine.name}, position {position}")
    used = {one.queue for block in program.blocks for one in block.instructions}
    threads = {queue: i for i, queue in enumerate(QUEUES, 1) if queue in used}
    yield from _blocks(program, position)
    for queue, thread in threads.items():
        yield _name("thread_name", UNITS, thread, f"{queue} queue")
        yield _name("thread_sort_index", UNITS, thread, thread)
    found = steps(program, position)
    for step in found:
        span = step.span
        one = program.blocks[span.block].instructions[span.instruction]
        event = _instruction(program, span.block, span, UNITS, threads[one.queue])
        event["args"]["critical"] = (span.block, span.instance, span.instruction) in critical
        yield event
    yield from _arrows(program, found, threads)
    yield from _counters(program, mapping, found)
    yield _name("process_name", PATH, 0, "critical path")
    yield _name("thread_name", PATH, 1, "instructions that add up to the token, by layer")
    for _, group in groupby(path, key=lambda span: (span.block, span.instance)):
        inside = list(group)
        first, last = int(inside[0].start[0]), int(inside[-1].finish[0])
        name = _instance(program, inside[0].block, inside[0].instance)
        yield _slice(program, name, "block", (PATH, 1), (first, last), {})
        for span in inside:
            yield _instruction(program, span.block, span, PATH, 1)
    if program.domains:
        yield from _power(program, position)


def _instance(program: Program, block: int, instance: int) -> str:
    """Name of a block instance: with its number where there are several."""
    one = program.blocks[block]
    return f"{one.name} {instance}" if len(one.instances) > 1 else one.name


def _blocks(program: Program, position: int) -> Iterator[Event]:
    """The token, and in it its block instances, on the first track."""
    found = extents(program, position)
    yield _name("thread_name", UNITS, BLOCKS, "token and its blocks")
    yield _name("thread_sort_index", UNITS, BLOCKS, 0)
    track = (UNITS, BLOCKS)
    if found:
        yield _slice(program, f"token {position}", "token", track, (0, found[-1].last), {})
    for one in found:
        name = _instance(program, one.block, one.instance)
        cycles = (one.first, one.last)
        arguments = {"block": program.blocks[one.block].name, "instance": one.instance}
        yield _slice(program, name, "block", track, cycles, arguments)


def _arrows(program: Program, found: Sequence[Step], threads: Mapping[str, int]) -> Iterator[Event]:
    """An arrow for each wait: `s` lies within the slice that ends, `f` starts the other."""

    def track(step: Step) -> int:
        return threads[program.blocks[step.span.block].instructions[step.span.instruction].queue]

    number = 0
    for step in found:
        for waited in step.waits:
            number += 1
            one = found[waited]
            start, finish = int(one.span.start[0]), int(one.span.finish[0])
            ends = (("s", one, max(start, finish - 1)), ("f", step, int(step.span.start[0])))
            for phase, at, cycle in ends:
                yield {
                    "ph": phase,
                    **({"bp": "e"} if phase == "f" else {}),
                    "id": number,
                    "name": "wait",
                    "cat": "wait",
                    "pid": UNITS,
                    "tid": track(at),
                    "ts": _microseconds(program, cycle),
                }


def _counters(program: Program, mapping: JSONFile, found: Sequence[Step]) -> Iterator[Event]:
    """Lanes of the L-Units that multiply, and queues that work.

    Within a product lanes are stated by their average: its multiplications over its cycles.
    """
    machine = program.machine
    placed = placed_matrices(program, mapping)
    passes = activation_passes(machine.activations, machine)
    lanes = machine.tiles * machine.l_units * machine.lanes
    busy: dict[int, float] = {0: 0.0}
    queues: dict[int, int] = {0: 0}
    for step in found:
        span = step.span
        block = program.blocks[span.block]
        one = block.instructions[span.instruction]
        start, finish = int(span.start[0]), int(span.finish[0])
        queues[start] = queues.get(start, 0) + 1
        queues[finish] = queues.get(finish, 0) - 1
        does = one.does.bound(block.instances[span.instance])
        matrix = placed.get(does.weights) if isinstance(does, Product) else None
        if matrix is not None and finish > start:
            # One queue: a product starts after the last one's finish.
            bound = lower_bound_cycles(matrix.shape, machine, passes)
            busy[start] = lanes * bound / (finish - start)
            busy[finish] = 0.0
    for cycle, value in sorted(busy.items()):
        yield _count(program, UNITS, "lanes busy", cycle, "lanes", round(value, 3))
    working = 0
    for cycle, change in sorted(queues.items()):
        working += change
        yield _count(program, UNITS, "queues busy", cycle, "queues", working)


def _count(program: Program, process: int, name: str, cycle: int, key: str, value: float) -> Event:
    return {
        "ph": "C",
        "name": name,
        "pid": process,
        "ts": _microseconds(program, cycle),
        "args": {key: value},
    }


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
            "uses": one.does.bound(bound).uses,
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
        yield _count(program, POWER, "domains on", cycle, "domains", number)


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
