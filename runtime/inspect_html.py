"""`intaglio inspect` as one page: tables and pictures, nothing loaded, nothing executed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from intaglio.backend.program import Program, load_program
from intaglio.dialects import timeline
from intaglio.runtime.adapter_budget import Table
from intaglio.runtime.inspect_tables import all_tables, headline, size_text, summary_lines
from intaglio.runtime.power import on_times
from intaglio.runtime.rom_use import USES
from intaglio.runtime.svg import ROW, Bar, Box, colours, lanes, legend, stacked
from intaglio.runtime.timing import critical_path, spans

_STYLE = """
:root { --ink: #1b1f24; --paper: #ffffff; --line: #c9ced6; --soft: #f3f5f8; --over: #b00020; }
@media (prefers-color-scheme: dark) {
:root { --ink: #e4e7eb; --paper: #16191d; --line: #454c56; --soft: #20252b; --over: #ff8a80; }
}
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin: 2.2rem 0 .4rem; }
pre { background: var(--soft); padding: .8rem 1rem; overflow-x: auto; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .15rem .7rem; text-align: right; vertical-align: top; white-space: pre; }
th:first-child, td:first-child { text-align: left; }
thead th { border-bottom: 1px solid var(--line); }
tbody tr:nth-child(even) { background: var(--soft); }
.over { color: var(--over); } .own { font-weight: bold; outline: 1px solid currentColor; }
.note { margin: .4rem 0; max-width: 60rem; }
svg { width: 100%; height: auto; display: block; margin: .6rem 0; }
svg text { font: 12px system-ui, sans-serif; fill: currentColor; }
svg .frame { fill: none; stroke: currentColor; } svg .grid { stroke: var(--line); fill: none; }
.legend { list-style: none; padding: 0; display: flex; flex-wrap: wrap; gap: .2rem 1rem; }
.legend span { display: inline-block; width: .8em; height: .8em; margin-right: .4em; }
"""

_ISSUE = "issue"
"""Name for the cycles between one instruction and the next."""


def inspect_html(out: str | Path, content: Mapping[str, Any]) -> str:
    """What `inspect_json` gives as a page, with the token at the last stated position drawn.

    Args:
        out: the output folder.
        content: what `inspect_json` gives for it.

    Raises:
        UserError: the folder holds no compiled program.
    """
    program = load_program(out)
    pictures = _pictures(program, content)
    title, shape, about = headline(content)
    parts = [
        "<!DOCTYPE html>",
        '<html lang="en">',
        "<head>",
        '<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}</title>",
        f"<style>{_STYLE}</style>",
        "</head>",
        "<body>",
        f"<h1>{escape(title)}</h1>",
        f"<p>{escape(shape)}; {escape(about)}</p>",
        f"<pre>{escape(chr(10).join(summary_lines(content)))}</pre>",
    ]
    for table in all_tables(content):
        parts += [f"<h2>{escape(table[0])}</h2>", *pictures.get(table[0], ()), *_table(table)]
    return "\n".join([*parts, "</body>", "</html>"]) + "\n"


def _table(table: Table) -> Iterator[str]:
    _, columns, rows, note = table
    if rows:
        head = "".join(f"<th>{escape(column)}</th>" for column in columns)
        yield f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>'
        for row in rows:
            yield f"<tr>{''.join(map(_cell, row))}</tr>"
        yield "</tbody></table></div>"
    for line in note.splitlines():
        yield f'<p class="note">{escape(line)}</p>'


def _cell(text: str) -> str:
    kinds = [
        kind
        for kind, is_so in (("over", text.startswith("over")), ("own", text.endswith("*")))
        if is_so
    ]
    attribute = f' class="{" ".join(kinds)}"' if kinds else ""
    return f"<td{attribute}>{escape(text)}</td>"


# --- pictures -----------------------------------------------------------------------------------


def _pictures(program: Program, content: Mapping[str, Any]) -> dict[str, list[str]]:
    """Pictures by the title of the table that they stand above."""
    pictures = {
        "ROM of the matrix units": _rom(content["rom"]),
        "SRAM and vector units": _memory(content),
    }
    if content["positions"]:
        position = content["positions"][-1]["position"]
        pictures["Cycles of a token"] = _cycles(content["positions"])
        pictures["Blocks, on the critical path"] = _timeline(program, position)
        pictures["Power"] = _domains(program, position)
    return pictures


def _rom(rom: Mapping[str, Any]) -> list[str]:
    """ROM by class of tensor, on a frame of the published capacity; what is beyond it below."""
    extra = {name: entry["extra_bits"] for name, entry in rom["by_class"].items()}
    sizes = {
        name: sum(entry[f"{use}_bits"] for use in USES) - extra[name]
        for name, entry in rom["by_class"].items()
    }
    colour = colours(sizes)
    capacity = rom["capacity_bits"]
    bars = [Bar("ROM", _parts(sizes), f"of {size_text(capacity / 8)}")]
    if rom["extra_bits"]:
        beyond = f"{size_text(rom['extra_bits'] / 8)} more"
        bars.append(Bar("deeper banks", _parts(extra), beyond, framed=False))
    title = "ROM by class of tensor; the frame is the published capacity"
    return [stacked(title, bars, capacity, colour), legend(colour), _caption(title)]


def _parts(sizes: Mapping[str, int]) -> list[tuple[str, float]]:
    """The parts of a bar that are not empty."""
    return [(name, size) for name, size in sizes.items() if size]


def _memory(content: Mapping[str, Any]) -> list[str]:
    sram, vector = content["sram"], content["vector_memory"]
    parts = [
        ("KV cache", sram["kv_bytes"]),
        ("adapter slots", sram["adapter_slot_bytes"]),
        ("adapters of the graph", sram["graph_adapter_bytes"]),
    ]
    values = [("values", vector["used_bytes"])]
    colour = colours(name for name, _ in [*parts, *values])
    # Each of the two to its own scale: the one is hundreds of times the other.
    pictures = [
        stacked(
            f"{label}, use of its capacity",
            [Bar(label, used, f"of {size_text(capacity)}")],
            capacity,
            colour,
        )
        for label, used, capacity in (
            ("H-Units", parts, sram["capacity_bytes"]),
            ("vector units", values, vector["capacity_bytes"]),
        )
    ]
    return [*pictures, legend(colour)]


def _cycles(positions: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the critical path consists of, at each position."""
    rows: list[tuple[Mapping[str, Any], dict[str, int]]] = []
    for one in positions:
        path = one["critical_path"]
        rows.append((one, {**path["by_queue"], _ISSUE: path["issue_cycles"]}))
    order = [queue for queue in (*timeline.QUEUES, _ISSUE) if any(queue in r for _, r in rows)]
    colour = colours(order)
    bars = [
        Bar(
            f"position {one['position']}",
            [(queue, row.get(queue, 0)) for queue in order],
            f"{one['cycles']:,} cycles",
        )
        for one, row in rows
    ]
    title = "Cycles of a token by unit, on the critical path"
    whole = max(one["cycles"] for one in positions)
    return [stacked(title, bars, whole, colour), legend(colour), _caption(title)]


def _timeline(program: Program, position: int) -> list[str]:
    """The whole token, and one layer of it."""
    critical = {
        (span.block, span.instance, span.instruction) for span in critical_path(program, position)
    }
    rows: dict[str, list[Box]] = {queue: [] for queue in timeline.QUEUES}
    layer: tuple[int, int] | None = None
    window = (0, 0)
    period = 0
    for span, number in spans(program, [position]):
        block = program.blocks[number]
        one = block.instructions[span.instruction]
        start, finish = int(span.start[0]), int(span.finish[0])
        period = max(period, finish)
        nodes = one.onnx[span.instance if len(one.onnx) > 1 else 0]
        on_path = (number, span.instance, span.instruction) in critical
        title = (
            f"{one.opcode}, {block.name} {span.instance}: {start:,} to {finish:,} "
            f"({finish - start:,} cycles{', on the critical path' if on_path else ''})\n"
            + "\n".join(nodes)
        )
        rows[one.queue].append(Box(start, finish, one.opcode, title, faint=not on_path))
        # The second of the layers: the first may wait for what comes before them.
        if len(block.instances) > 1 and span.instance == 1 and layer in (None, (number, 1)):
            window = (start if layer is None else min(window[0], start), max(window[1], finish))
            layer = (number, 1)
    used = [(queue, boxes) for queue, boxes in rows.items() if boxes]
    colour = colours(box.kind for _, boxes in used for box in boxes)
    whole = (
        f"One token at position {position}, by queue, in cycles; pale is what is not on the "
        "critical path"
    )
    pictures = [lanes(whole, used, (0, period), colour), _caption(whole)]
    if layer is not None:
        name = program.blocks[layer[0]].name
        title = f"Instance 1 of {name} in the same token"
        inside = [
            (queue, [box for box in boxes if box.start < window[1] and box.finish > window[0]])
            for queue, boxes in used
        ]
        pictures += [lanes(title, inside, window, colour), _caption(title)]
    return [*pictures, legend(colour)]


def _domains(program: Program, position: int) -> list[str]:
    """When each power domain is on."""
    if not program.domains:
        return []
    times = on_times(program, position)
    rows = [
        (
            name,
            [Box(start, finish, "on", f"{name}: {start:,} to {finish:,}") for start, finish in on],
        )
        for name, on in times.domains.items()
    ]
    title = f"Power domains that are on, token at position {position}, in cycles"
    height = ROW if len(rows) <= 12 else 8
    return [
        lanes(title, rows, (0, times.period), {"on": "#e15759"}, height),
        _caption(title),
    ]


def _caption(text: str) -> str:
    return f'<p class="note">{escape(text)}</p>'
