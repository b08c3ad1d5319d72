"""`intaglio inspect` as one page: tables and pictures, nothing loaded, nothing executed."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any

from intaglio.backend.program.program import Program, load_program
from intaglio.runtime.adapters.budget import Table
from intaglio.runtime.reports.colours import definitions, rules, variables
from intaglio.runtime.reports.pictures import (
    area_pictures,
    cycle_pictures,
    domain_pictures,
    memory_pictures,
    rom_pictures,
    token_pictures,
)
from intaglio.runtime.reports.tables import all_tables, headline, limit_sentences, summary_lines

_STYLE = f"""
:root {{ color-scheme: light dark; --soft: #f3f5f8; --over: #b00020; --link: #034a99;
{variables(0)} }}
@media (prefers-color-scheme: dark) {{
:root {{ --soft: #20252b; --over: #ff8a80; --link: #8ab8ff; {variables(1)} }}
}}
* {{ box-sizing: border-box; }}
body {{ font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
max-width: 72rem; margin: 2rem auto; padding: 0 1rem; overflow-wrap: break-word; }}
h1 {{ font-size: 1.4rem; }} h2 {{ font-size: 1.1rem; margin: 2.2rem 0 .4rem; }}
a {{ color: var(--link); }} h2 a {{ color: inherit; text-decoration: none; }}
h2 a:hover, h2 a:focus {{ text-decoration: underline; }}
nav ul {{ list-style: none; padding: 0; display: flex; flex-wrap: wrap; gap: .2rem 1rem; }}
.limits {{ border-left: 4px solid var(--link); padding-left: .8rem; max-width: 60rem; }}
pre {{ background: var(--soft); padding: .8rem 1rem; white-space: pre-wrap; }}
pre span {{ display: block; padding-left: 8ch; text-indent: -8ch; }}
summary {{ cursor: pointer; }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .15rem .7rem; text-align: right; vertical-align: top; white-space: pre;
font-weight: normal; }}
th:first-child {{ text-align: left; white-space: pre-wrap; position: sticky; left: 0;
background: inherit; overflow-wrap: anywhere; min-width: 8rem; max-width: 28rem; }}
tr {{ background: var(--paper); }}
thead th {{ border-bottom: 1px solid var(--line); font-weight: bold; }}
tbody tr:nth-child(even) {{ background: var(--soft); }}
.over {{ color: var(--over); }}
.own {{ font-weight: bold; box-shadow: inset 0 0 0 1px currentColor; }}
.note {{ margin: .4rem 0; max-width: 60rem; }}
svg {{ width: 100%; height: auto; display: block; margin: .6rem 0; }}
svg.defs {{ position: absolute; width: 0; height: 0; margin: 0; }}
svg.key {{ display: inline-block; width: 16px; height: 12px; margin: 0 .4em 0 0; }}
svg text {{ font: 12px system-ui, sans-serif; fill: currentColor; }}
svg .frame {{ fill: none; stroke: currentColor; }}
svg .grid {{ stroke: var(--line); fill: none; }}
svg .mark {{ stroke: var(--paper); fill: none; }}
svg text.in {{ fill: var(--paper); paint-order: stroke; stroke-width: 4px; pointer-events: none; }}
svg .tip {{ visibility: hidden; }}
svg .box:hover .tip, svg .box:focus .tip {{ visibility: visible; }}
svg .box:focus {{ outline: none; }}
svg .box:focus rect {{ stroke: var(--ink); stroke-width: 2px; }}
.legend {{ list-style: none; padding: 0; display: flex; flex-wrap: wrap; gap: .2rem 1rem; }}
@media (max-width: 700px) {{
svg[role] {{ min-width: 960px; }}
th:first-child {{ min-width: 42vw; max-width: 42vw; }}
}}
"""

FOLDED = 4
"""Further lines of a cell from which on they are shown on request."""


def inspect_html(out: str | Path, content: Mapping[str, Any]) -> str:
    """What `inspect_json` gives as a page, with the token at the last stated position drawn.

    Args:
        out: the output folder.
        content: what `inspect_json` gives for it.

    Raises:
        UserError: the folder holds no compiled program.
    """
    program = load_program(out)
    title, shape, about = headline(content)
    sections = list(_sections(program, content))
    body = [
        f"<h1>{escape(title)}</h1>",
        f"<p>{escape(shape)}; {escape(about)}</p>",
        *(f'<p class="limits">{escape(one)}</p>' for one in limit_sentences(content["positions"])),
        f"<pre>{''.join(_summary(content))}</pre>",
        '<nav aria-label="Contents"><ul>',
        *(f'<li><a href="#{_anchor(name)}">{escape(name)}</a></li>' for name, _ in sections),
        "</ul></nav>",
    ]
    for name, parts in sections:
        anchor = _anchor(name)
        body.append(f'<h2 id="{anchor}"><a href="#{anchor}">{escape(name)}</a></h2>')
        body += parts
    used = sorted(set(re.findall(r'class="(f-[^"]*)"', "\n".join(body))))
    parts = [
        "<!DOCTYPE html>",
        '<html lang="en">',
        "<head>",
        '<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}</title>",
        f"<style>{_STYLE}{rules(used)}</style>",
        "</head>",
        "<body>",
        definitions(used),
        *body,
    ]
    return "\n".join([*parts, "</body>", "</html>"]) + "\n"


def _summary(content: Mapping[str, Any]) -> Iterator[str]:
    """Figures, one a line; where it breaks, the rest stands below the figure, not its name."""
    for line in summary_lines(content, limits=False):
        yield f"<span>{escape(line)}</span>"


def _sections(program: Program, content: Mapping[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """Name and content of each section: a table with its pictures, or pictures alone."""
    pictures = {
        "ROM of the matrix units": rom_pictures(content["rom"]),
        "SRAM and vector units": memory_pictures(content),
        "Area": area_pictures(content["area"]),
    }
    position = content["positions"][-1]["position"] if content["positions"] else None
    if position is not None:
        pictures["Cycles of a token"] = cycle_pictures(content["positions"])
        pictures["Power"] = domain_pictures(program, position)
    for table in all_tables(content):
        name = table[0]
        yield name, [*pictures.get(name, ()), *_table(table)]
        if name == "Cycles of a token" and position is not None:
            yield "One token in time", token_pictures(program, position)


def _anchor(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _table(table: Table) -> Iterator[str]:
    name, columns, rows, note = table
    if rows:
        head = "".join(f'<th scope="col">{escape(column)}</th>' for column in columns)
        yield (
            f'<div class="wide" tabindex="0"><table aria-labelledby="{_anchor(name)}">'
            f"<thead><tr>{head}</tr></thead><tbody>"
        )
        for first, *rest in rows:
            name = first.lstrip(" ")
            cells = f'<th scope="row"{_inset(first)}{_kinds(first)}>{_folded(name)}</th>'
            cells += "".join(f"<td{_kinds(cell)}>{escape(cell)}</td>" for cell in rest)
            yield f"<tr>{cells}</tr>"
        yield "</tbody></table></div>"
    for line in note.splitlines():
        yield f'<p class="note">{escape(line)}</p>'


def _folded(text: str) -> str:
    """A name, or a long list of names, which is opened by its first."""
    first, *others = text.splitlines() or [""]
    if len(others) < FOLDED:
        return _breakable(text)
    summary = f"{_breakable(first)} and {len(others)} more"
    return f"<details><summary>{summary}</summary>{_breakable(text)}</details>"


def _breakable(name: str) -> str:
    """A name that breaks between its parts first where it has no room."""
    return re.sub(r"(?<=[^/_.])(?=[/_.])", "<wbr>", escape(name))


def _inset(text: str) -> str:
    """The style of a name below another one: all its lines begin as far to the right."""
    spaces = len(text) - len(text.lstrip(" "))
    return f' style="padding-left:calc(.7rem + {spaces / 2:g}ch)"' if spaces else ""


def _kinds(text: str) -> str:
    """The class attribute of a cell: what does not fit, and what was compiled."""
    kinds = [
        kind
        for kind, is_so in (("over", text.startswith("over")), ("own", text.endswith("*")))
        if is_so
    ]
    return f' class="{" ".join(kinds)}"' if kinds else ""
