"""`intaglio inspect` as one picture: what is engraved, what is kept, and a token in time.

A file of its own, for a README or a slide. It has its own paper, so it can be read on any page;
where the viewer says which colour scheme is wanted, it follows.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any

from intaglio.backend.program.program import Program, load_program
from intaglio.runtime.reports.colours import definitions, rules, variables
from intaglio.runtime.reports.pictures import Fills, rom_picture, sram_pictures, token_picture
from intaglio.runtime.reports.svg import LABEL, WIDTH, Picture, drawn_legend
from intaglio.runtime.reports.tables import headline

_STYLE = f"""
svg {{ {variables(0)} }}
@media (prefers-color-scheme: dark) {{
svg {{ {variables(1)} }}
}}
text {{ font: 12px system-ui, sans-serif; fill: var(--ink); }}
.title {{ font-size: 17px; font-weight: bold; }} .head {{ font-size: 13px; font-weight: bold; }}
.paper {{ fill: var(--paper); }} .frame {{ fill: none; stroke: var(--ink); }}
.grid {{ stroke: var(--line); fill: none; }} .mark {{ stroke: var(--paper); fill: none; }}
text.in {{ fill: var(--paper); paint-order: stroke; stroke-width: 4px; }}
"""
_GAP = 26
"""Above each part, for its heading."""


def inspect_svg(out: str | Path, content: Mapping[str, Any]) -> str:
    """What `inspect_json` gives as one SVG, with the token at the last stated position drawn.

    Args:
        out: the output folder.
        content: what `inspect_json` gives for it.

    Raises:
        UserError: the folder holds no compiled program.
    """
    program = load_program(out)
    name, shape, formats = headline(content)
    body: list[str] = []
    y = 58.0
    for title, pictures, fills in _parts(program, content):
        body.append(f'<text x="{LABEL}" y="{y + 14:g}" class="head">{escape(title)}</text>')
        y += _GAP
        for picture in [*pictures, drawn_legend(fills)]:
            body.append(picture.at(y))
            y += picture.height + 4
        y += 10
    used = sorted(set(re.findall(r'class="(f-[^"]*)"', "\n".join(body))))
    patterns = re.sub(r"^<svg[^>]*>|</svg>$", "", definitions(used))
    size = f'viewBox="0 0 {WIDTH} {y:g}" width="{WIDTH}" height="{y:g}"'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-labelledby="name">',
            f'<title id="name">{escape(name)}</title>',
            f"<style>{_STYLE}{rules(used)}</style>",
            patterns,
            f'<rect width="{WIDTH}" height="{y:g}" class="paper"/>',
            f'<text x="20" y="26" class="title">{escape(name)}</text>',
            f'<text x="20" y="46">{escape(f"{shape}; {formats}")}</text>',
            *body,
            "</svg>\n",
        ]
    )


def _parts(
    program: Program, content: Mapping[str, Any]
) -> Iterator[tuple[str, list[Picture], Fills]]:
    """Headings, drawings and what their fills stand for."""
    rom, fills = rom_picture(content["rom"])
    yield "Engraved in ROM: the weights", [rom], fills
    sram, fills = sram_pictures(content)
    yield "Kept in SRAM: what changes", sram, fills
    if content["positions"]:
        position = content["positions"][-1]["position"]
        token, fills = token_picture(program, position)
        about = "; full height is on the critical path, half height is not"
        yield token.title + about, [token], fills
