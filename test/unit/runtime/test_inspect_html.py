"""The page: whole in itself, well formed, and with the figures of the other forms."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Callable
from html import escape
from html.parser import HTMLParser
from pathlib import Path

import pytest

from intaglio.backend.compile import compile_model
from intaglio.backend.program import load_program
from intaglio.backend.stages import Options
from intaglio.runtime.inspect import inspect_json
from intaglio.runtime.inspect_html import inspect_html
from intaglio.runtime.inspect_tables import all_tables
from intaglio.runtime.svg import Bar, Box, colours, lanes, legend, stacked
from intaglio.runtime.timing import spans

Named = Callable[[str], Path]
VOID = {"meta", "br", "hr", "img", "link", "input"}


class _Page(HTMLParser):
    """Checks that tags are closed in order, and notes what a page would load or run."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.foreign: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("script", "link", "img", "iframe", "object", "embed"):
            self.foreign.append(tag)
        self.foreign += [f"{k}={v}" for k, v in attrs if k in ("src", "href") or k[:2] == "on"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def gated(model: Named, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("gated") / "out"
    options = Options("tom-mini", context=32, emit="program", adapter_rank=2)
    return compile_model(model("ternary"), out, options).folder


def pictures(page: str) -> list[ET.Element]:
    parts = [part.partition("</svg>")[0] + "</svg>" for part in page.split("<svg")[1:]]
    return [ET.fromstring(f"<svg{part}") for part in parts]


def test_page_is_whole_and_well_formed(gated: Path):
    content = inspect_json(gated)
    page = inspect_html(gated, content)
    assert page == inspect_html(gated, inspect_json(gated))
    parser = _Page()
    parser.feed(page)
    assert not parser.open and not parser.foreign
    assert "http" not in page and "url(" not in page and str(gated.parent) not in page
    for title, _, rows, _ in all_tables(content):
        assert f"<h2>{escape(title)}</h2>" in page
        for row in rows:
            assert all(escape(cell) in page for cell in row)


def test_pictures_show_the_token(gated: Path):
    content, program = inspect_json(gated), load_program(gated)
    found = {one.attrib["aria-label"]: one for one in pictures(inspect_html(gated, content))}
    assert len(found) == 7
    (whole,) = (one for title, one in found.items() if title.startswith("One token at position 31"))
    boxes = [box.findtext("title") or "" for box in whole.iter("rect")]
    steps = list(spans(program, [31]))
    assert len(boxes) == len(steps)
    for span, number in steps:
        one = program.blocks[number].instructions[span.instruction]
        start, finish = int(span.start[0]), int(span.finish[0])
        wanted = f"{one.opcode}, {program.blocks[number].name} {span.instance}: {start:,} to"
        assert any(title.startswith(f"{wanted} {finish:,} ") for title in boxes)
    on_path = sum("on the critical path" in title for title in boxes)
    assert on_path == sum(box.get("opacity") is None for box in whole.iter("rect"))
    (domains,) = (one for title, one in found.items() if title.startswith("Power domains"))
    assert len(list(domains.iter("rect"))) == len(program.domains)
    texts = [text.text for text in domains.iter("text")]
    assert all(name in texts for name in program.domains)


def test_a_chip_without_domains_or_layers_to_draw(compiled: Named):
    content = inspect_json(compiled("llama"), [5])
    titles = [
        one.attrib["aria-label"] for one in pictures(inspect_html(compiled("llama"), content))
    ]
    assert not any("Power" in title for title in titles)
    assert any("position 5" in title for title in titles)


def test_cells_that_do_not_fit_are_marked(gated: Path):
    page = inspect_html(gated, inspect_json(gated))
    assert '<td class="own">' in page


def test_bars_keep_their_scale():
    colour = colours(["a", "b", "<c>"])
    bars = [Bar("x", [("a", 30), ("b", 30)], "60"), Bar("y", [("<c>", 120)], "120")]
    picture = ET.fromstring(stacked("two & three", bars, 100, colour))
    widths = [float(one.attrib["width"]) for one in picture.iter("rect")]
    # 700 units for 120; the frame is 100 of them.
    assert widths == pytest.approx([175, 175, 583.33, 700, 583.33], abs=0.01)
    assert "&lt;c&gt;" in legend(colour)


def test_zeros_of_ternary_weights_are_told(gated: Path):
    assert "<h2>Zeros in ROM</h2>" in inspect_html(gated, inspect_json(gated))


def test_extra_banks_have_a_bar_of_their_own(model: Named, tmp_path: Path):
    options = Options("roma-mini", ("policy.head_store=extra-rom",), context=16, emit="program")
    out = compile_model(model("llama"), tmp_path / "out", options).folder
    content = inspect_json(out)
    rom = content["rom"]
    assert rom["by_class"]["lm_head"]["extra_bits"] == rom["extra_bits"] > 0
    picture = pictures(inspect_html(out, content))[0]
    bars = [e for e in picture.iter("rect") if e.get("class") != "frame"]
    (frame,) = [e for e in picture.iter("rect") if e.get("class") == "frame"]
    rows = {bar.get("y") for bar in bars}
    assert len(rows) == 2
    for y in rows:
        ends = [float(e.get("x", "")) + float(e.get("width", "")) for e in bars if e.get("y") == y]
        if y == frame.get("y"):
            assert max(ends) <= float(frame.get("x", "")) + float(frame.get("width", "")) + 0.1
    (head,) = [bar for bar in bars if bar.get("y") != frame.get("y")]
    assert "lm_head" in "".join(head.itertext())


def test_lanes_are_cut_at_their_window():
    rows = [
        ("q", [Box(0, 10, "k", "t"), Box(50, 200, "k", "u", faint=True), Box(300, 400, "k", "v")])
    ]
    picture = ET.fromstring(lanes("title", rows, (5, 105), {"k": "#000000"}))
    boxes = [float(r.attrib[key]) for r in picture.iter("rect") for key in ("x", "width")]
    scale = (960 - 150 - 20) / 100
    assert boxes == pytest.approx([150, 5 * scale, 150 + 45 * scale, 55 * scale])
    ticks = [text.text for text in picture.iter("text")]
    assert ticks == ["20", "40", "60", "80", "100", "q"]
