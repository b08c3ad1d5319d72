"""A sweep as one page: linked plots and a table, in one file that loads nothing.

Plots and table stand in the page as they are, and are read without a script. A short one links
them: what is chosen in a plot, by dragging over it, is shown in the others.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from html import escape
from math import floor, log10

from intaglio.backend.stages import Options
from intaglio.runtime.reports.colours import variables
from intaglio.runtime.reports.tables import amount_text
from intaglio.runtime.sweep.evaluate import title_of
from intaglio.runtime.sweep.front import front, values_of
from intaglio.runtime.sweep.rows import Row
from intaglio.runtime.sweep.sweep import fitting
from intaglio.runtime.sweep.tables import caveats, columns_of, misfits, summary, value_text

WIDTH, HEIGHT = 640, 400
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 12, 44
MOST_LINES = 1000
"""Points that have lines; of more those of the front and every so manieth other one."""
MOST_ROWS = 200
"""Rows of the table: the front first."""

_STYLE = f"""
:root {{ color-scheme: light dark; --soft: #f3f5f8; --link: #034a99; {variables(0)} }}
@media (prefers-color-scheme: dark) {{
:root {{ --soft: #20252b; --link: #8ab8ff; {variables(1)} }}
}}
* {{ box-sizing: border-box; }}
body {{ font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
max-width: 84rem; margin: 2rem auto; padding: 0 1rem; overflow-wrap: break-word; }}
h1 {{ font-size: 1.4rem; }} h2 {{ font-size: 1.1rem; margin: 1.6rem 0 .4rem; }}
.plots {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr));
gap: 1rem; }}
figure {{ margin: 0; }} figcaption {{ font-weight: bold; }}
svg {{ width: 100%; height: auto; display: block; touch-action: none; user-select: none; }}
svg text {{ font: 13px system-ui, sans-serif; fill: currentColor; }}
svg .axis {{ stroke: var(--line); fill: none; }}
circle {{ fill: var(--issue); fill-opacity: .55; stroke: none; }}
circle.best {{ fill: var(--matrix); fill-opacity: 1; }}
path.p {{ fill: none; stroke: var(--issue); stroke-opacity: .25; }}
path.p.best {{ stroke: var(--matrix); stroke-opacity: .9; stroke-width: 1.6px; }}
polyline {{ fill: none; stroke: var(--matrix); }}
.off {{ opacity: .06; }}
rect.brush {{ fill: var(--link); fill-opacity: .12; stroke: var(--link); pointer-events: none; }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .15rem .7rem; text-align: right; white-space: nowrap; font-weight: normal; }}
thead th {{ border-bottom: 1px solid var(--line); font-weight: bold; }}
tbody tr:nth-child(even) {{ background: var(--soft); }}
tr.best td {{ font-weight: bold; }}
button {{ font: inherit; }}
.note {{ max-width: 60rem; }}
[hidden] {{ display: none; }}
"""

_SCRIPT = """
const points = JSON.parse(document.querySelector("#points").textContent);
const rows = [...document.querySelectorAll("tbody tr[data-n]")];
const marks = [...document.querySelectorAll("circle, path.p")];
const said = document.querySelector("#said"), all = document.querySelector("#all");
function show(ok) {
  const shown = one => ok === null || ok[one.dataset.n];
  for (const one of marks) one.classList.toggle("off", !shown(one));
  for (const one of rows) one.hidden = !shown(one);
  const count = ok === null ? points.length : ok.filter(Boolean).length;
  said.textContent = ok === null ? "" : `${count} of ${points.length} points chosen. `;
  all.hidden = ok === null;
}
all.onclick = () => {
  for (const one of document.querySelectorAll("rect.brush")) one.remove();
  show(null);
};
for (const plot of document.querySelectorAll("svg[data-x]")) {
  let from = null, brush = null;
  const at = event => new DOMPoint(event.clientX, event.clientY)
    .matrixTransform(plot.getScreenCTM().inverse());
  plot.onpointerdown = event => {
    all.onclick();
    from = at(event);
    plot.setPointerCapture(event.pointerId);
    brush = document.createElementNS("http://www.w3.org/2000/svg", "rect");
    brush.setAttribute("class", "brush");
    plot.append(brush);
  };
  plot.onpointermove = event => {
    if (from === null) return;
    const to = at(event), [x, X] = [from.x, to.x].sort((a, b) => a - b),
      [y, Y] = [from.y, to.y].sort((a, b) => a - b);
    for (const [name, value] of Object.entries({ x, y, width: X - x, height: Y - y }))
      brush.setAttribute(name, value);
    const ok = new Array(points.length).fill(false);
    for (const one of plot.querySelectorAll("circle")) {
      const cx = +one.getAttribute("cx"), cy = +one.getAttribute("cy");
      ok[one.dataset.n] = cx >= x && cx <= X && cy >= y && cy <= Y;
    }
    show(ok);
  };
  plot.onpointerup = event => {
    const to = at(event);
    if (Math.hypot(to.x - from.x, to.y - from.y) < 4) all.onclick();
    from = null;
  };
}
"""


def page_html(
    title: str,
    options: Options,
    rows: Sequence[Row],
    objectives: Sequence[str],
) -> str:
    """The page of a sweep.

    Args:
        title: what was compiled for what.
        options: what holds at all points.
        rows: of the record.
        objectives: what the front is best in.
    """
    fit = fitting(rows)
    best = front(fit, objectives)
    settings = "".join(f" --set {one}" for one in options.settings)
    body = [
        f"<h1>{escape(title + settings)}</h1>",
        (
            f"<p>{escape(summary(rows))}; {len(best):,} of them on the front: no other point is "
            f"better in all of {escape(', '.join(map(title_of, objectives))) or 'nothing'}.</p>"
        ),
        *(f'<p class="note">{escape(line)}</p>' for line in caveats(rows)),
    ]
    if fit:
        body += [
            '<p><span id="said"></span><button id="all" hidden>Show all</button></p>',
            '<div class="plots">',
            *_scatters(fit, best, objectives),
            *_parallel(fit, best, objectives),
            "</div>",
            "<h2>Points</h2>",
            *_table(fit, best, objectives),
        ]
    reasons = list(misfits(rows))
    if reasons:
        body.append("<h2>What does not fit</h2><ul>")
        body += [f"<li>{count:,}: {escape(reason)}</li>" for reason, count in reasons]
        body.append("</ul>")
    data = json.dumps([row["key"] for row in fit]).replace("<", "\\u003c")
    script = (
        f'<script type="application/json" id="points">{data}</script>\n<script>{_SCRIPT}</script>'
        if fit
        else ""
    )
    return (
        "\n".join(
            [
                "<!DOCTYPE html>",
                '<html lang="en"><head><meta charset="utf-8">',
                '<meta name="viewport" content="width=device-width, initial-scale=1">',
                f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>",
                *body,
                script,
                "</body></html>",
            ]
        )
        + "\n"
    )


def _told(row: Row, names: Sequence[str]) -> str:
    """A point in words, for a pointer that rests."""
    point = ", ".join(f"{key}={value}" for key, value in row["point"].items())
    figures = ", ".join(
        f"{title_of(name)} {value_text(name, row['figures'].get(name))}" for name in names
    )
    return f"{point}: {figures}"


class _Scale:
    """From figures to places on an axis."""

    def __init__(self, values: Sequence[float], first: float, last: float) -> None:
        low, high = min(values), max(values)
        # One value alone stands in the middle.
        room = (high - low) * 0.04 or abs(high) * 0.1 or 1.0
        self.low, self.high = low - room, high + room
        self.first, self.last = first, last

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return round(self.first + share * (self.last - self.first), 1)

    def ticks(self) -> list[float]:
        """Some round numbers of the axis."""
        span = self.high - self.low
        size = 10.0 ** floor(log10(span))
        step = next(size * part for part in (0.2, 0.5, 1, 2, 5) if span / (size * part) <= 6)
        first = -(-self.low // step)
        return [
            number * step
            for number in range(int(first), int(first) + 8)
            if number * step <= self.high
        ]


def _scatters(fit: Sequence[Row], best: Sequence[int], objectives: Sequence[str]) -> Iterator[str]:
    """The first objective over each of the others."""
    if len(objectives) < 2:
        return
    for other in objectives[1:]:
        yield _scatter(fit, best, other, objectives[0], objectives)


def _scatter(fit: Sequence[Row], best: Sequence[int], x: str, y: str, names: Sequence[str]) -> str:
    shown = [
        (number, row["figures"][x], row["figures"][y])
        for number, row in enumerate(fit)
        if row["figures"].get(x) is not None and row["figures"].get(y) is not None
    ]
    across = _Scale([one for _, one, _ in shown], LEFT, WIDTH - RIGHT)
    up = _Scale([one for _, _, one in shown], HEIGHT - BOTTOM, TOP)
    chosen = set(best)
    lines = [
        (
            f"<figure><figcaption>{escape(title_of(y))} over {escape(title_of(x))}</figcaption>"
            f'<svg data-x viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
            f'aria-label="{escape(title_of(y))} over {escape(title_of(x))} of {len(shown)} points">'
        ),
        f'<path class="axis" d="M{LEFT} {TOP}V{HEIGHT - BOTTOM}H{WIDTH - RIGHT}"/>',
    ]
    lines += [
        _label(across(tick), HEIGHT - BOTTOM + 18, amount_text(tick), "middle")
        for tick in across.ticks()
    ]
    lines += [_label(LEFT - 6, up(tick) + 4, amount_text(tick), "end") for tick in up.ticks()]
    lines.append(_label((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, title_of(x), "middle"))
    # Those of the front on top of the others.
    for number, right, high in sorted(shown, key=lambda one: one[0] in chosen):
        mark = ' class="best"' if number in chosen else ""
        lines.append(
            f'<circle{mark} data-n="{number}" cx="{across(right)}" cy="{up(high)}" r="4">'
            f"<title>{escape(_told(fit[number], names))}</title></circle>"
        )
    return "\n".join([*lines, "</svg></figure>"])


def _label(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}">{escape(text)}</text>'


def _parallel(fit: Sequence[Row], best: Sequence[int], objectives: Sequence[str]) -> Iterator[str]:
    """A line for each point, over what is varied and the objectives."""
    varied, _ = columns_of(fit)
    # What has one value says nothing.
    varied = [key for key in varied if len({row["point"].get(key) for row in fit}) > 1]
    names = [*varied, *objectives]
    if len(names) < 2:
        return
    chosen = set(best)
    others = [number for number in range(len(fit)) if number not in chosen]
    step = -(-len(others) // max(1, MOST_LINES - len(best)))
    drawn = [*others[:: max(1, step)], *best]
    between = (WIDTH - LEFT - 56) / (len(names) - 1)
    low, high = HEIGHT - 30, 34
    places: list[dict[int, float]] = []
    marks: list[str] = []
    for place, name in enumerate(names):
        x = round(LEFT + place * between, 1)
        title = title_of(name) if name in objectives else name.partition(".")[2] or name
        marks.append(f'<path class="axis" d="M{x} {high}V{low}"/>')
        marks.append(_label(x, 14 if place % 2 == 0 else 28, title, "middle"))
        if name in varied:
            values = list(dict.fromkeys(row["point"].get(name, "") for row in fit))
            values.sort(key=_sorted_as)
            room = (low - high) / max(1, len(values) - 1)
            at = {value: round(low - number * room, 1) for number, value in enumerate(values)}
            marks += [_label(x - 5, at[value] + 4, value, "end") for value in values]
            places.append({number: at[fit[number]["point"].get(name, "")] for number in drawn})
            continue
        given = {
            number: value
            for number in drawn
            if (value := fit[number]["figures"].get(name)) is not None
        }
        scale = _Scale(list(given.values()), low, high)
        marks += [
            _label(x - 5, scale(tick) + 4, amount_text(tick), "end") for tick in scale.ticks()
        ]
        places.append({number: scale(value) for number, value in given.items()})
    lines: list[str] = []
    for number in drawn:
        path = "L".join(
            f"{round(LEFT + place * between, 1)} {at[number]}"
            for place, at in enumerate(places)
            if number in at
        )
        mark = " best" if number in chosen else ""
        lines.append(
            f'<path class="p{mark}" data-n="{number}" d="M{path}">'
            f"<title>{escape(_told(fit[number], objectives))}</title></path>"
        )
    left_out = len(fit) - len(drawn)
    note = f" ({left_out:,} points are left out of it)" if left_out else ""
    yield (
        f"<figure><figcaption>What each point has{note}</figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="A line for each point over '
        f'{escape(", ".join(names))}">'
    )
    yield from lines
    yield from marks
    yield "</svg></figure>"


def _sorted_as(value: str) -> tuple[int, float, str]:
    """Numbers by size, before words."""
    try:
        return 0, float(value), value
    except ValueError:
        return 1, 0.0, value


def _table(fit: Sequence[Row], best: Sequence[int], objectives: Sequence[str]) -> Iterator[str]:
    """The front, then the others by the first objective."""
    varied, figures = columns_of(fit)
    figures = [*objectives, *(one for one in figures if one not in objectives)]
    chosen, order = set(best), list(best)
    if objectives:
        values = values_of(fit, objectives[:1])[:, 0]
        order += sorted(
            (number for number in range(len(fit)) if number not in chosen),
            key=lambda number: values[number],
        )
    else:
        order = list(range(len(fit)))
    heads = "".join(
        f'<th scope="col">{escape(one)}</th>' for one in (*varied, *map(title_of, figures))
    )
    yield f'<div class="wide" tabindex="0"><table><thead><tr>{heads}</tr></thead><tbody>'
    for number in order[:MOST_ROWS]:
        row = fit[number]
        cells = [
            *(row["point"].get(key, "") for key in varied),
            *(value_text(name, row["figures"].get(name)) for name in figures),
        ]
        mark = ' class="best"' if number in chosen else ""
        told = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        yield f'<tr data-n="{number}"{mark}>{told}</tr>'
    yield "</tbody></table></div>"
    if (more := len(order) - MOST_ROWS) > 0:
        yield f'<p class="note">{more:,} more are in the record and in --csv.</p>'
