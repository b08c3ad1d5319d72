"""Pictures as inline SVG: stacked bars and lanes of time. The same input gives the same text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from intaglio.runtime.reports.colours import Fill

WIDTH = 960
"""Units of a picture's width; a page scales it."""
LABEL, VALUE = 150, 110
"""Columns left and right of the drawing."""
ROW = 26
AXIS = 22
BREAK = 16
"""Between windows."""
KEY = 20
"""Height of a line of a legend."""
LETTER = 6.8
"""Width of a letter, about."""


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
    """An interval of a lane; `title` is shown by a pointer that rests. A `low` one has half of the
    height. `label` is written into it where there is room."""

    start: float
    finish: float
    fill: Fill
    title: str
    low: bool = False
    label: str = ""


@dataclass(frozen=True)
class Lane:
    """Intervals side by side; `value` is written at the right."""

    label: str
    boxes: Sequence[Box]
    value: str = ""


@dataclass(frozen=True)
class Window:
    """Cycles that are drawn, and what stands above them."""

    first: float
    last: float
    label: str = ""


@dataclass(frozen=True)
class Picture:
    """A drawing of `WIDTH` units: what it shows, for readers that do not see it, and its parts."""

    title: str
    height: float
    lines: Sequence[str]

    @property
    def html(self) -> str:
        """For a page, where it scrolls on its own."""
        return (
            f'<div class="wide" tabindex="0"><svg viewBox="0 0 {WIDTH} {_number(self.height)}" '
            f'role="group" aria-label="{escape(self.title)}">\n{self._body}\n</svg></div>'
        )

    def at(self, y: float) -> str:
        """For a larger drawing, so far below its top."""
        return f'<g transform="translate(0 {_number(y)})">\n{self._body}\n</g>'

    @property
    def _body(self) -> str:
        return "\n".join(self.lines)


def stacked(title: str, bars: Sequence[Bar], whole: float, fill: Mapping[str, Fill]) -> Picture:
    """Bars of parts, all to one scale, on a frame of the size of the whole.

    Args:
        title: for readers that do not see the picture.
        bars: from top to bottom.
        whole: what the frame stands for; parts beyond it make the scale smaller.
        fill: of each part's name.
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
            told = f"{name}: {value / (whole or 1):.1%}"
            lines.append(_rect(x, y + 4, value * scale, ROW - 8, fill[name], told))
            lines += _inside(x, y + 17, value * scale, name, fill[name])
            x += value * scale
        if bar.framed:
            lines.append(
                f'<rect x="{LABEL}" y="{y + 4}" width="{_number(whole * scale)}" '
                f'height="{ROW - 8}" class="frame"/>'
            )
        lines.append(_text(WIDTH - VALUE + 8, y + 17, bar.value))
    return Picture(title, len(bars) * ROW, lines)


def lanes(
    title: str,
    rows: Sequence[Lane],
    windows: Sequence[Window],
    height: int = ROW,
    *,
    reachable: bool = False,
) -> Picture:
    """Intervals of cycles, a lane above the other, with an axis below.

    Args:
        title: for readers that do not see the picture.
        rows: the lanes.
        windows: what is drawn, side by side and to one scale; intervals are cut at their ends.
        height: of a lane; low lanes have no label but the first and the last.
        reachable: whether the keyboard reaches the boxes; the title of the one in focus, or under
            the pointer, is then written below the axis.
    """
    right = VALUE if any(row.value for row in rows) else 20
    room = WIDTH - LABEL - right - BREAK * (len(windows) - 1)
    scale = room / (sum(one.last - one.first for one in windows) or 1)
    top = AXIS - 4 if any(one.label for one in windows) else 0
    bottom = top + len(rows) * height
    lines: list[str] = []
    x = float(LABEL)
    places: list[tuple[Window, float]] = []
    for window in windows:
        places.append((window, x))
        x += (window.last - window.first) * scale + BREAK
    written = 0.0
    for window, left in places:
        wide = (window.last - window.first) * scale
        if window.label and written < left:
            lines.append(_text(left, top - 6, window.label))
            written = left + _wide(window.label)
        lines += _axis(window, left, scale, (top, bottom), sum(w.last - w.first for w in windows))
        for number in range(len(rows)):
            edge = top + (number + 1) * height - 0.5
            lines.append(
                f'<path d="M{_number(left)} {_number(edge)}H{_number(left + wide)}" class="grid"/>'
            )
    below = bottom + AXIS + 12
    for number, row in enumerate(rows):
        y = top + number * height
        if height >= ROW / 2 or number in (0, len(rows) - 1):
            lines.append(_text(LABEL - 8, y + height / 2 + 4, row.label, "end"))
        if row.value:
            lines.append(_text(WIDTH - right + 8, y + height / 2 + 4, row.value))
        gap = 3 if height >= ROW / 2 else 0.5
        for window, left in places:
            for box in row.boxes:
                start, finish = max(box.start, window.first), min(box.finish, window.last)
                if start >= finish:
                    continue
                at, wide = left + (start - window.first) * scale, (finish - start) * scale
                tall = height - 2 * gap
                part = _rect(
                    at,
                    y + gap + (tall / 2 if box.low else 0),
                    wide,
                    tall / 2 if box.low else tall,
                    box.fill,
                    box.title,
                )
                if reachable:
                    part = _reachable(part, box.title, below)
                lines.append(part)
                lines += _inside(at, y + height / 2 + 4, wide, box.label, box.fill)
    return Picture(title, bottom + AXIS + (18 if reachable else 0), lines)


def _axis(
    window: Window, left: float, scale: float, ends: tuple[float, float], whole: float
) -> Iterator[str]:
    """Ticks of a window, the same step in all of them, each with its number where there is room."""
    free = left - BREAK
    for tick in _ticks(window.first, window.last, whole):
        x = left + (tick - window.first) * scale
        yield f'<path d="M{_number(x)} {_number(ends[0])}V{_number(ends[1] + 4)}" class="grid"/>'
        half = _wide(f"{tick:,}") / 2
        if x - half >= free and x + half <= WIDTH:
            yield _text(x, ends[1] + 17, f"{tick:,}", "middle")
            free = x + half + 6


def _reachable(part: str, title: str, y: float) -> str:
    """A box that the keyboard reaches, and its title in one line."""
    told = " | ".join(title.splitlines())
    most = int((WIDTH - 16) / LETTER)
    short = told if len(told) <= most else f"{told[: most - 3]}..."
    return (
        f'<g tabindex="0" class="box" role="img" aria-label="{escape(told)}">{part}'
        f'<text x="8" y="{_number(y)}" class="tip" aria-hidden="true">{escape(short)}</text></g>'
    )


def _inside(x: float, y: float, width: float, label: str, fill: Fill) -> Iterator[str]:
    """A name within its part, where it has room."""
    if label and _wide(label) + 8 <= width:
        yield (
            f'<text x="{_number(x + width / 2)}" y="{_number(y)}" text-anchor="middle" '
            f'class="in" style="stroke:var(--{fill.tone})">{escape(label)}</text>'
        )


def _wide(text: str) -> float:
    """About how wide a text is, rather too much."""
    return len(text) * LETTER


def legend(fill: Mapping[str, Fill]) -> str:
    """What each colour and pattern stands for, as HTML."""
    items = "".join(
        '<li><svg class="key" width="16" height="12" aria-hidden="true">'
        f'<rect width="16" height="12" class="{value.name}"/></svg>{escape(name)}</li>'
        for name, value in fill.items()
    )
    return f'<ul class="legend">{items}</ul>'


def drawn_legend(fill: Mapping[str, Fill], *, left: float = LABEL) -> Picture:
    """The same as part of a drawing, in as many lines as it takes."""
    lines: list[str] = []
    x, y = left, 0.0
    for name, value in fill.items():
        wide = 22 + 1.05 * _wide(name) + 16
        if x > left and x + wide > WIDTH:
            x, y = left, y + KEY
        lines.append(_rect(x, y + 3, 16, 12, value, name))
        lines.append(_text(x + 22, y + 13, name))
        x += wide
    return Picture("legend", y + KEY, lines)


def _ticks(first: float, last: float, whole: float) -> list[int]:
    """Round numbers, at most about eight in all windows."""
    step = 1
    while whole / step > 8:
        # 1, 2, 5, 10, 20, ...
        step = step * 5 // 2 if str(step).startswith("2") else step * 2
    start = -(-int(first) // step) * step
    return list(range(start, int(last) + 1, step))


def _rect(x: float, y: float, width: float, height: float, fill: Fill, title: str) -> str:
    return (
        f'<rect x="{_number(x)}" y="{_number(y)}" width="{_number(max(width, 0.3))}" '
        f'height="{_number(height)}" class="{fill.name}"><title>{escape(title)}</title></rect>'
    )


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{_number(x)}" y="{_number(y)}" text-anchor="{anchor}">{escape(text)}</text>'


def _number(value: float) -> str:
    """At most two digits after the point."""
    return f"{value:.2f}".rstrip("0").rstrip(".")
