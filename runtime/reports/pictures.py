"""The pictures of `intaglio inspect`'s page: memory, cycles, one token in time, power domains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import Any

from intaglio.backend.program.program import Program
from intaglio.dialects.isa.queues import QUEUES
from intaglio.dialects.timeline import At
from intaglio.runtime.reports.colours import (
    ISSUE,
    Fill,
    fewer,
    opcode_fill,
    queue_fill,
    tensor_fills,
)
from intaglio.runtime.reports.power import on_times
from intaglio.runtime.reports.rom_use import USES
from intaglio.runtime.reports.svg import (
    ROW,
    Bar,
    Box,
    Lane,
    Picture,
    Window,
    lanes,
    legend,
    stacked,
)
from intaglio.runtime.reports.tables import size_text
from intaglio.runtime.reports.timing import (
    Extent,
    Step,
    critical_path,
    extents,
    steps,
    token_cycles,
)
from intaglio.runtime.reports.wording import counted

MANY = 8
"""Instances of a block beyond which one stands for all."""

Fills = dict[str, Fill]
Drawn = tuple[Picture, Fills]

_MEMORY = {
    "KV cache": Fill("kv"),
    "states": Fill("kv", "lines"),
    "adapter slots": Fill("tensor2"),
    "adapters of the graph": Fill("tensor3"),
    "values": Fill("vector"),
    "scales of the KV cache": Fill("kv", "dots"),
}


def rom_pictures(rom: Mapping[str, Any]) -> list[str]:
    """ROM by class of tensor, on a frame of the target's capacity; what is beyond it below."""
    picture, fills = rom_picture(rom)
    return [picture.html, legend(fills), caption(picture.title)]


def rom_picture(rom: Mapping[str, Any]) -> Drawn:
    """The drawing of `rom_pictures`, and what its fills stand for."""
    extra = {name: entry["extra_bits"] for name, entry in rom["by_class"].items()}
    sizes = {
        name: sum(entry[f"{use}_bits"] for use in USES) - extra[name]
        for name, entry in rom["by_class"].items()
    }
    capacity = rom["capacity_bits"]
    sizes, extra = (fewer({n: size for n, size in one.items() if size}) for one in (sizes, extra))
    fills = tensor_fills(dict.fromkeys([*sizes, *extra]))
    bars = [Bar("ROM", list(sizes.items()), f"of {size_text(capacity / 8)}")]
    if extra:
        beyond = f"{size_text(rom['extra_bits'] / 8)} more"
        bars.append(Bar("deeper banks", list(extra.items()), beyond, framed=False))
    title = "ROM by class of tensor; the frame is the capacity of the target's ROM"
    return stacked(title, bars, capacity, fills), fills


def memory_pictures(content: Mapping[str, Any]) -> list[str]:
    """SRAM of the H-Units and of the vector units."""
    pictures, shown = sram_pictures(content)
    return [
        *(one.html for one in pictures),
        legend(shown),
        caption("SRAM by use; each frame is a capacity"),
    ]


def sram_pictures(content: Mapping[str, Any]) -> tuple[list[Picture], Fills]:
    """The drawings of `memory_pictures`, and what their fills stand for."""
    sram, vector = content["sram"], content["vector_memory"]
    parts = [
        ("KV cache", sram["kv_bytes"]),
        ("states", sram["state_bytes"]),
        ("adapter slots", sram["adapter_slot_bytes"]),
        ("adapters of the graph", sram["graph_adapter_bytes"]),
    ]
    scales = vector["kv_scale_bytes"]
    values = [("values", vector["used_bytes"] - scales), ("scales of the KV cache", scales)]
    used = {name for name, size in [*parts, *values] if size}
    # Each of the two to its own scale: the one is hundreds of times the other.
    pictures = [
        stacked(
            f"{label}, use of its capacity",
            [Bar(label, [one for one in use if one[1]], f"of {size_text(capacity)}")],
            capacity,
            _MEMORY,
        )
        for label, use, capacity in (
            ("H-Units", parts, sram["capacity_bytes"]),
            ("vector units", values, vector["capacity_bytes"]),
        )
    ]
    return pictures, {name: fill for name, fill in _MEMORY.items() if name in used}


_AREA = {
    "L-Units": Fill("matrix"),
    "H-Units": Fill("attention"),
    "vector units": Fill("vector"),
    "ROM": Fill("matrix"),
    "SRAM": Fill("kv"),
    "logic": Fill("vector"),
}


def area_pictures(area: Mapping[str, Any]) -> list[str]:
    """The die by component; nothing where the target does not divide it."""
    parts = [(one["name"], one["mm2"]) for one in area["components"]]
    if len(parts) < 2:
        return []
    die = sum(size for _, size in parts)
    fills = {name: _AREA.get(name, ISSUE) for name, _ in parts}
    title = "Area of the die by component"
    picture = stacked(title, [Bar("die", parts, f"{die:,.4g} mm2")], die, fills)
    return [picture.html, legend(fills), caption(title)]


def cycle_pictures(positions: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the critical path consists of, at each position."""
    rows: list[tuple[Mapping[str, Any], dict[str, int]]] = []
    for one in positions:
        path = one["critical_path"]
        rows.append((one, {**path["by_queue"], "issue": path["issue_cycles"]}))
    order = [queue for queue in (*QUEUES, "issue") if any(queue in r for _, r in rows)]
    fills = {name: ISSUE if name == "issue" else queue_fill(name) for name in order}
    bars = [
        Bar(
            f"position {one['position']}",
            [(queue, row[queue]) for queue in order if row.get(queue)],
            f"{one['cycles']:,} cycles",
        )
        for one, row in rows
    ]
    title = "Cycles of a token by unit, on the critical path"
    whole = max(one["cycles"] for one in positions)
    return [stacked(title, bars, whole, fills).html, legend(fills), caption(title)]


def token_pictures(program: Program, position: int) -> list[str]:
    """Blocks of the whole token, then its instructions; of many layers one stands for all."""
    boxes, period = _boxes(program, position)
    blocks = extents(program, position)
    used = [queue for queue in QUEUES if boxes[queue]]
    busy = {q: sum(box.finish - box.start for box in boxes[q]) / period for q in used}
    rows = [Lane(queue, boxes[queue], f"{busy[queue]:.1%} busy") for queue in used]
    overview = f"Blocks of one token at position {position}, in cycles"
    # With a value at the right, as the lanes below: their axes stand above each other.
    whole = Lane("blocks", _block_boxes(program, blocks), counted(period, "cycle"))
    pictures = [
        lanes(overview, [whole], [Window(0, period)]).html,
        caption(overview),
    ]
    low = "full height is on the critical path, half height is not"
    repeated = [number for number, block in enumerate(program.blocks) if len(block.instances) > 1]
    if any(len(program.blocks[number].instances) > MANY for number in repeated):
        names = " and ".join(
            f"one {program.blocks[number].name} of {len(program.blocks[number].instances)}"
            for number in repeated
        )
        title = f"{_capital(names)}, and what runs once, at position {position}, in cycles; {low}"
        lanes_ = [Lane(row.label, row.boxes) for row in rows]
        pictures += [
            lanes(title, lanes_, _windows(program, blocks), reachable=True).html,
            caption(title),
        ]
    else:
        title = f"One token at position {position}, by queue, in cycles; {low}"
        pictures += [lanes(title, rows, [Window(0, period)]).html, caption(title)]
        if repeated:
            (window,) = [
                Window(one.first, one.last)
                for one in blocks
                if (one.block, one.instance) == (repeated[0], 1)
            ]
            title = f"Instance 1 of {program.blocks[repeated[0]].name} in the same token"
            inside = [
                Lane(row.label, [one for one in row.boxes if _within(one, window)]) for row in rows
            ]
            pictures += [lanes(title, inside, [window], reachable=True).html, caption(title)]
    return [*pictures, legend(_kinds(program, used))]


def token_picture(program: Program, position: int) -> Drawn:
    """One token by queue, and what its fills stand for: all of it, or one layer of many."""
    boxes, period = _boxes(program, position)
    used = [queue for queue in QUEUES if boxes[queue]]
    rows = [Lane(queue, boxes[queue]) for queue in used]
    windows = [Window(0, period)]
    if any(len(block.instances) > MANY for block in program.blocks):
        windows = _windows(program, extents(program, position))
    title = f"One token at position {position}: {counted(period, 'cycle')}"
    return lanes(title, rows, windows), _kinds(program, used)


def _kinds(program: Program, used: Sequence[str]) -> Fills:
    """The fill of each opcode of these queues."""
    return {
        f"{queue}: {opcode}": opcode_fill(queue, opcode)
        for queue in used
        for opcode in dict.fromkeys(
            one.opcode
            for block in program.blocks
            for one in block.instructions
            if one.queue == queue
        )
    }


@dataclass(frozen=True)
class _Stretch:
    """Beats of an instruction that have their queue one behind the other.

    Attributes:
        first: the first of them.
        whole: the instruction instance (`timing.Step.whole`).
        on_path: whether they are on the critical path.
        start: in which cycle the queue takes the first.
        free: in which cycle it could take another behind the last.
        readable: when the last result can be read.
        beats: how many.
    """

    first: Step
    whole: At
    on_path: bool
    start: int
    free: int
    readable: int
    beats: int = 1


def _stretches(program: Program, position: int) -> dict[str, list[_Stretch]]:
    """What each queue does, in order."""
    critical = {step.span.at for step in critical_path(program, position)}
    found: dict[str, list[_Stretch]] = {queue: [] for queue in QUEUES}
    for step in steps(program, position):
        span, own = step.span, found[step.taken(program).queue]
        whole, on_path = step.whole(program), span.at in critical
        start, free, readable = int(span.start[0]), int(span.free[0]), int(span.finish[0])
        if own and (own[-1].whole, own[-1].on_path, own[-1].free) == (whole, on_path, start):
            last = own[-1]
            own[-1] = replace(last, free=free, readable=readable, beats=last.beats + 1)
        else:
            own.append(_Stretch(step, whole, on_path, start, free, readable))
    return found


def _boxes(program: Program, position: int) -> tuple[dict[str, list[Box]], int]:
    """Instructions by queue, for as long as they have it, and the period."""
    boxes = {
        queue: [_box(program, one) for one in own]
        for queue, own in _stretches(program, position).items()
    }
    return boxes, int(token_cycles(program, position).period[0])


def _box(program: Program, stretch: _Stretch) -> Box:
    one = stretch.first.taken(program)
    number, instance, _ = stretch.whole
    block = program.blocks[number]
    start, free = stretch.start, stretch.free
    told = [counted(free - start, "cycle")]
    if stretch.readable > free:
        told.append(f"results until {stretch.readable:,}")
    if stretch.beats > 1:
        told.append(f"{stretch.beats} beats")
    if stretch.on_path:
        told.append("on the critical path")
    title = f"{one.opcode}, {block.name} {instance}: {start:,} to {free:,} ({', '.join(told)})"
    nodes = one.onnx[instance if len(one.onnx) > 1 else 0]
    bound = block.instances[instance]
    tensors = [f"{role} {bound.get(slot, slot)}" for role, slot in one.does.uses.items()]
    return Box(
        start,
        free,
        opcode_fill(one.queue, one.opcode),
        "\n".join([title, *nodes, *tensors]),
        low=not stretch.on_path,
        label=one.opcode,
    )


def _block_boxes(program: Program, blocks: Sequence[Extent]) -> list[Box]:
    """Block instances, in two tones by turns where they are layers."""
    found: list[Box] = []
    for one in blocks:
        block = program.blocks[one.block]
        many = len(block.instances) > 1
        tone = ("tensor2", "tensor3")[one.instance % 2] if many else "tensor1"
        name = f"{block.name} {one.instance}" if many else block.name
        title = f"{name}: {one.first:,} to {one.last:,}"
        label = str(one.instance) if many else block.name
        found.append(Box(one.first, one.last, Fill(tone), title, label=label))
    return found


def _windows(program: Program, blocks: Sequence[Extent]) -> list[Window]:
    """What runs once, and the second instance of what runs often: the first may wait for what
    comes before it."""
    found: list[Window] = []
    for one in blocks:
        block = program.blocks[one.block]
        count = len(block.instances)
        if count == 1:
            found.append(Window(one.first, one.last, block.name))
        elif one.instance == 1:
            found.append(Window(one.first, one.last, f"{block.name} x {count} (this is 1)"))
    return found


def _within(box: Box, window: Window) -> bool:
    return box.start < window.last and box.finish > window.first


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def domain_pictures(program: Program, position: int) -> list[str]:
    """When each power domain is on."""
    if not program.domains:
        return []
    times, fill = on_times(program, position), queue_fill("power")
    rows = [
        Lane(
            name,
            [Box(start, finish, fill, f"{name}: {start:,} to {finish:,}") for start, finish in on],
        )
        for name, on in times.domains.items()
    ]
    title = f"Power domains that are on, token at position {position}, in cycles"
    height = ROW if len(rows) <= 12 else 8
    return [lanes(title, rows, [Window(0, times.period)], height).html, caption(title)]


def caption(text: str) -> str:
    """What stands below a picture."""
    return f'<p class="note">{escape(text)}</p>'
