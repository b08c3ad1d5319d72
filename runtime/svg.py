"""Pictures as inline SVG: stacked bars and lanes of time. The same input gives the same text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

WIDTH = 960
"""Units of a picture's width; a page scales it."""
LABEL, VALUE = 150, 110
"""Columns left and right of the drawing."""
ROW = 26
AXIS = 22

PALETTE = (
    "#4e79a7",
    "#f28e2b",
    "#59a14f",
    "#e15759",
    "#76b7b2",
    "#b07aa1",
    "#edc948",
    "#9c755f",
    "#ff9da7",
    "#6b8e23",
    "#5f6caf",
    "#a0a0a0",
)
"""Colours, told apart by most people; after the last they begin again."""


def colours(names: Iterable[str]) -> dict[str, str]:
    """A colour for each name, by the order in which they appear first."""
    return {
        name: PALETTE[number % len(PALETTE)] for number, name in enumerate(dict.fromkeys(names))
    }


@dataclass(frozen=True)
class Bar:
    """A row of parts side by side; `value` is written beside it.

    Without `framed` it is no part of the whole, so that it has no frame of its size.
    """

    label: str
    parts: Sequence[tuple[str, float]]
    value: str
    framed: bool = True


@dataclass(frozen=True)
class Box:
    """An interval of a lane; `kind` gives the colour, `title` is shown by a pointer that rests."""

    start: float
    finish: float
    kind: str
    title: str
    faint: bool = False


def stacked(title: str, bars: Sequence[Bar], whole: float, colour: Mapping[str, str]) -> str:
    """Bars of parts, all to one scale, on a frame of the size of the whole.

    Args:
        title: for readers that do not see the picture.
        bars: from top to bottom.
        whole: what the frame stands for; parts beyond it make the scale smaller.
        colour: of each part's name.
    """
    room = WIDTH - LABEL - VALUE
    longest = max([whole, *(sum(value for _, value in bar.parts) for bar in bars)], default=1)
    scale = room / (longest or 1)
    lines: list[str] = []
    for number, bar in enumerate(bars):
        y = number * ROW
        lines.append(_text(LABEL - 8, y + 17, bar.label, "end"))
        x = float(LABEL)
        for name, value in bar.parts:
            lines.append(_rect(x, y + 4, value * scale, ROW - 8, colour[name], name))
            x += value * scale
        if bar.framed:
            lines.append(
                f'<rect x="{LABEL}" y="{y + 4}" width="{_number(whole * scale)}" '
                f'height="{ROW - 8}" class="frame"/>'
            )
        lines.append(_text(WIDTH - VALUE + 8, y + 17, bar.value))
    return _picture(title, len(bars) * ROW, lines)


def lanes(
    title: str,
    rows: Sequence[tuple[str, Sequence[Box]]],
    window: tuple[float, float],
    colour: Mapping[str, str],
    height: int = ROW,
) -> str:
    """Intervals of cycles, a lane above the other, with an axis below.

    Args:
        title: for readers that do not see the picture.
        rows: label and intervals of each lane.
        window: first and last cycle drawn; intervals are cut at them.
        colour: of each kind.
        height: of a lane; low lanes have no label but the first and the last.
    """
    first, last = window
    scale = (WIDTH - LABEL - 20) / ((last - first) or 1)
    bottom = len(rows) * height
    lines: list[str] = []
    for tick in _ticks(first, last):
        x = LABEL + (tick - first) * scale
        lines.append(f'<path d="M{_number(x)} 0V{bottom + 4}" class="grid"/>')
        lines.append(_text(x, bottom + 17, f"{tick:,}", "middle"))
    for number, (label, boxes) in enumerate(rows):
        y = number * height
        if height >= ROW / 2 or number in (0, len(rows) - 1):
            lines.append(_text(LABEL - 8, y + height / 2 + 4, label, "end"))
        edge = y + height - 0.5
        lines.append(f'<path d="M{LABEL} {_number(edge)}H{WIDTH - 20}" class="grid"/>')
        gap = 3 if height >= ROW / 2 else 0.5
        for box in boxes:
            start, finish = max(box.start, first), min(box.finish, last)
            if start < finish:
                lines.append(
                    _rect(
                        LABEL + (start - first) * scale,
                        y + gap,
                        (finish - start) * scale,
                        height - 2 * gap,
                        colour[box.kind],
                        box.title,
                        faint=box.faint,
                    )
                )
    return _picture(title, bottom + AXIS, lines)


def legend(colour: Mapping[str, str]) -> str:
    """What each colour stands for, as HTML."""
    items = "".join(
        f'<li><span style="background:{value}"></span>{escape(name)}</li>'
        for name, value in colour.items()
    )
    return f'<ul class="legend">{items}</ul>'


def _ticks(first: float, last: float) -> list[int]:
    """Round numbers, at most about eight."""
    step = 1
    while (last - first) / step > 8:
        # 1, 2, 5, 10, 20, ...
        step = step * 5 // 2 if str(step).startswith("2") else step * 2
    start = -(-int(first) // step) * step
    return list(range(start, int(last) + 1, step))


def _picture(title: str, height: float, lines: Sequence[str]) -> str:
    body = "\n".join(lines)
    return (
        f'<svg viewBox="0 0 {WIDTH} {_number(height)}" role="img" '
        f'aria-label="{escape(title)}">\n{body}\n</svg>'
    )


def _rect(
    x: float,
    y: float,
    width: float,
    height: float,
    fill: str,
    title: str,
    *,
    faint: bool = False,
) -> str:
    look = ' opacity="0.4"' if faint else ""
    return (
        f'<rect x="{_number(x)}" y="{_number(y)}" width="{_number(max(width, 0.3))}" '
        f'height="{_number(height)}" fill="{fill}"{look}><title>{escape(title)}</title></rect>'
    )


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{_number(x)}" y="{_number(y)}" text-anchor="{anchor}">{escape(text)}</text>'


def _number(value: float) -> str:
    """At most two digits after the point."""
    return f"{value:.2f}".rstrip("0").rstrip(".")
