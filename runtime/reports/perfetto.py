"""One token as Chrome trace events: instructions by queue, with the ONNX nodes they stand for.

The format is the JSON one that Perfetto's viewer (ui.perfetto.dev) and chrome://tracing open.
Times are those of the chip's clock: microseconds with a cycle as fraction, cycle 0 accepts the
token. Nothing is executed; the timeline gives all.

A slice is an instruction, from the start of its first beat to the finish of its last one. Those of
a queue overlap, since it takes beats of the next ones before that: each lies on the first track of
its queue that is free. Beats have tracks of their own on demand: a slice is the cycles for which
a beat has its queue, so there they never overlap.

An arrow goes from the last cycle of what is waited for to the start of what waits. The slices of a
layer enclose those of its blocks and instructions, on tracks of their own.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from intaglio.backend.program.program import Program, load_program
from intaglio.dialects import timeline
from intaglio.dialects.isa.matrix import Product
from intaglio.dialects.isa.queues import QUEUES
from intaglio.dialects.isa.values import Coded
from intaglio.dialects.json_file import JSONFile
from intaglio.dialects.tiling import Reads, lower_bound_cycles
from intaglio.runtime.reports.inspect import check_positions
from intaglio.runtime.reports.power import on_times
from intaglio.runtime.reports.rom_use import placed_matrices, read_placement
from intaglio.runtime.reports.timing import OnPath, Step, critical_path, extents, steps

Event = dict[str, Any]

UNITS, PATH, POWER, BEATS = 1, 2, 3, 4
"""Groups of tracks ("processes" of the format)."""

BLOCKS = 1000
"""The track of the block instances."""
LANES = 100
"""Queue i of `QUEUES` has the tracks from LANES * (i + 1) on, and among beats the track i + 1."""


@dataclass(frozen=True)
class Whole:
    """An instruction instance of a token: all of its beats together.

    Attributes:
        beats: its beats, in order.
        start: of the first beat.
        finish: when the last result can be read.
        queue: whose it is.
        track: on which of the queue's tracks it lies, from 0.
    """

    beats: Sequence[Step]
    start: int
    finish: int
    queue: str
    track: int

    @property
    def thread(self) -> tuple[int, int]:
        """Group and number of its track in the trace."""
        return UNITS, LANES * (1 + QUEUES.index(self.queue)) + self.track


def perfetto_text(out: str | Path, position: int | None = None, *, beats: bool = False) -> str:
    """The trace of the token at a position; the last that the program states by default.

    Args:
        out: the output folder.
        position: of the token.
        beats: whether to show the beats of each queue too.

    Raises:
        UserError: the folder holds no compiled program, or the position is beyond its context.
    """
    program = load_program(out)
    where = program.positions[-1] if position is None else position
    check_positions(program, [where])
    mapping = read_placement(Path(out), program)
    events = ",\n".join(json.dumps(event) for event in _events(program, mapping, where, beats))
    other = {
        "target": program.machine.name,
        "clock_hz": program.machine.clock_hz,
        "position": where,
    }
    return (
        f'{{"displayTimeUnit": "ns", "otherData": {json.dumps(other)}, "traceEvents": [\n'
        f"{events}\n]}}\n"
    )


def wholes(program: Program, found: Sequence[Step]) -> list[Whole]:
    """The instruction instances that a token's steps are beats of, by their start.

    An instruction lies on the first track of its queue on which all before it have finished.
    """
    parts: dict[tuple[int, int, int], list[Step]] = {}
    for step in found:
        parts.setdefault(step.whole(program), []).append(step)
    tracks: dict[str, list[int]] = {}
    result: list[Whole] = []
    for own in sorted(parts.values(), key=lambda own: int(own[0].span.start[0])):
        start = int(own[0].span.start[0])
        finish = max(int(step.span.finish[0]) for step in own)
        queue = own[0].taken(program).queue
        ends = tracks.setdefault(queue, [])
        track = next((i for i, end in enumerate(ends) if end <= start), len(ends))
        ends[track : track + 1] = [finish]
        result.append(Whole(own, start, finish, queue, track))
    return result


def _events(program: Program, mapping: JSONFile, position: int, beats: bool) -> Iterator[Event]:
    path = critical_path(program, position)
    critical = {step.span.at for step in path}
    yield _name("process_name", UNITS, 0, f"{program.machine.name}, position {position}")
    yield from _blocks(program, position)
    found = steps(program, position)
    every = wholes(program, found)
    yield from _queues(every)
    for one in every:
        event = _instruction(program, one.beats, (one.start, one.finish), one.thread)
        event["args"]["critical"] = any(step.span.at in critical for step in one.beats)
        yield event
    yield from _arrows(program, _between(program, found, every))
    yield from _counters(program, mapping, found)
    yield _name("process_name", PATH, 0, "critical path")
    yield _name("thread_name", PATH, 1, "instructions that add up to the token, by layer")
    yield from _path(program, found, path)
    if program.domains:
        yield from _power(program, position)
    if beats:
        yield from _beats(program, found, critical)


def _queues(every: Sequence[Whole]) -> Iterator[Event]:
    """Names of the tracks of the queues."""
    for (process, thread), one in sorted({one.thread: one for one in every}.items()):
        # The viewer makes one track of two that have the same name.
        name = f"{one.queue} queue" + (f", {one.track + 1} at once" if one.track else "")
        yield _name("thread_name", process, thread, name)
        yield _name("thread_sort_index", process, thread, thread)


def _path(program: Program, found: Sequence[Step], path: Sequence[OnPath]) -> Iterator[Event]:
    """The critical path; beats of an instruction one behind the other are a slice."""
    step_at = {step.span.at: step for step in found}
    for (block, instance), group in groupby(path, key=lambda s: (s.span.block, s.span.instance)):
        inside = [
            (step_at[one.span.at], int(one.span.start[0]), int(one.span.start[0]) + one.cycles)
            for one in group
        ]
        name, cycles = _instance(program, block, instance), (inside[0][1], inside[-1][2])
        yield _slice(program, name, "block", (PATH, 1), cycles, {})
        for _, same in groupby(inside, lambda one: one[0].whole(program)):
            own = list(same)
            beats, cycles = [one[0] for one in own], (own[0][1], own[-1][2])
            yield _instruction(program, beats, cycles, (PATH, 1))


def _beats(
    program: Program, found: Sequence[Step], critical: Collection[timeline.At]
) -> Iterator[Event]:
    """Each queue's beats on a track of their own, with an arrow for each wait."""

    def thread(step: Step) -> tuple[int, int]:
        return BEATS, 1 + QUEUES.index(step.taken(program).queue)

    yield _name("process_name", BEATS, 0, "beats")
    for process, number in sorted({thread(step) for step in found}):
        yield _name("thread_name", process, number, f"beats of the {QUEUES[number - 1]} queue")
        yield _name("thread_sort_index", process, number, number)
    arrows: list[_Arrow] = []
    for step in found:
        event = _beat(program, step, thread(step))
        event["args"]["critical"] = step.span.at in critical
        yield event
        for wait in step.waits:
            # An arrow leaves the slice, whose unit may be free before the result is there.
            earlier = found[wait.number]
            start, free = int(earlier.span.start[0]), int(earlier.span.free[0])
            cycle = max(start, min(free, wait.cycle) - 1)
            arrows.append(_Arrow(thread(earlier), cycle, thread(step), int(step.span.start[0])))
    yield from _arrows(program, arrows, first=sum(len(step.waits) for step in found))


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


class _Arrow(NamedTuple):
    """From a cycle of a track's slice to the start of one."""

    leaves: tuple[int, int]
    cycle: int
    reaches: tuple[int, int]
    start: int


def _between(program: Program, found: Sequence[Step], every: Sequence[Whole]) -> Iterator[_Arrow]:
    """For each two instructions an arrow for the first beat of one that waits for the other."""
    of = {step.whole(program): one for one in every for step in one.beats[:1]}
    for later in every:
        told: set[timeline.At] = set()
        for step in later.beats:
            for wait in step.waits:
                which = found[wait.number].whole(program)
                earlier = of[which]
                if earlier is later or which in told:
                    continue
                told.add(which)
                # A reduction may be there after the elements, and after the slice.
                cycle = max(earlier.start, min(wait.cycle, earlier.finish) - 1)
                yield _Arrow(earlier.thread, cycle, later.thread, int(step.span.start[0]))


def _arrows(program: Program, arrows: Iterable[_Arrow], first: int = 0) -> Iterator[Event]:
    """`s` lies within the slice that is waited for, `f` in the other one. Numbers begin after
    `first`."""
    for number, arrow in enumerate(arrows, first + 1):
        ends = (("s", arrow.leaves, arrow.cycle), ("f", arrow.reaches, arrow.start))
        for phase, track, cycle in ends:
            yield {
                "ph": phase,
                **({"bp": "e"} if phase == "f" else {}),
                "id": number,
                "name": "wait",
                "cat": "wait",
                "pid": track[0],
                "tid": track[1],
                "ts": _microseconds(program, cycle),
            }


def _counters(program: Program, mapping: JSONFile, found: Sequence[Step]) -> Iterator[Event]:
    """Lanes of the L-Units that multiply, and queues that work.

    In the beats of a product lanes are stated by their average: its multiplications by the cycles
    of its beats, since the first beat of rounds may multiply what another one gives.
    """
    machine = program.machine
    placed = placed_matrices(program, mapping)
    lanes = machine.tiles * machine.l_units * machine.lanes
    busy: dict[int, float] = {0: 0.0}
    queues: dict[int, int] = {0: 0}

    def product(span: timeline.Span) -> tuple[int, int, int]:
        return span.block, span.instance, program.blocks[span.block].whole_of[span.instruction]

    worked: Counter[tuple[int, int, int]] = Counter()
    for step in found:
        worked[product(step.span)] += int(step.span.free[0] - step.span.start[0])
    for step in found:
        span = step.span
        block = program.blocks[span.block]
        one = block.instructions[span.instruction]
        start, finish = int(span.start[0]), int(span.free[0])
        queues[start] = queues.get(start, 0) + 1
        queues[finish] = queues.get(finish, 0) - 1
        does = one.does.bound(block.instances[span.instance])
        if not isinstance(does, Product):
            continue
        matrix = placed.get(does.weights)
        if matrix is not None and finish > start:
            # One queue: a product starts when the last one leaves it.
            coded = program.value(does.input, Coded)
            bound = lower_bound_cycles(matrix.shape, machine, Reads.of(coded, machine))
            busy[start] = lanes * bound / worked[product(span)]
            busy[finish] = 0.0
    last = -1.0
    for cycle, value in sorted(busy.items()):
        if value != last:
            yield _count(program, UNITS, "lanes busy", cycle, "lanes", round(value, 3))
        last = value
    working = 0
    for cycle, change in sorted(queues.items()):
        working += change
        if change or not cycle:
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
    program: Program, own: Sequence[Step], cycles: tuple[int, int], track: tuple[int, int]
) -> Event:
    """The slice of some beats of an instruction instance."""
    span, one = own[0].span, own[0].taken(program)
    block = program.blocks[span.block]
    bound = block.instances[span.instance]
    nodes = one.onnx[span.instance if len(one.onnx) > 1 else 0]
    return _slice(
        program,
        f"{one.opcode} {nodes[0]}" if nodes else one.opcode,
        one.opcode,
        track,
        cycles,
        {
            "onnx": list(nodes),
            "block": block.name,
            "instance": span.instance,
            "instruction": block.whole_of[span.instruction],
            "queue": one.queue,
            "reads": list(one.reads),
            "writes": list(one.writes),
            "uses": one.does.bound(bound).uses,
            "beats": len(own),
            "busy_cycles": sum(int(step.span.free[0] - step.span.start[0]) for step in own),
        },
    )


def _beat(program: Program, step: Step, track: tuple[int, int]) -> Event:
    """The slice of a beat: the cycles for which it has its queue."""
    span, one = step.span, step.taken(program)
    event = _instruction(program, [step], (int(span.start[0]), int(span.free[0])), track)
    del event["args"]["beats"], event["args"]["busy_cycles"]
    times = {"pace": one.issue.pace, "duration": one.issue.duration, "reduces": one.issue.reduces}
    event["args"] |= {
        "readable": int(span.finish[0]),
        **({} if span.left is None else {"reduction": int(span.left[0])}),
        "beat": one.beat.words,
        **{name: str(formula) for name, formula in times.items() if formula is not None},
    }
    return event


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
