"""The page: whole in itself, well formed, and with the figures of the other forms."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from html import escape
from html.parser import HTMLParser
from pathlib import Path

import pytest

from intaglio.backend.compile import compile_model
from intaglio.backend.program.program import load_program
from intaglio.backend.stages import Options
from intaglio.runtime.reports.colours import Fill, tensor_fills
from intaglio.runtime.reports.html import inspect_html
from intaglio.runtime.reports.inspect import inspect_json
from intaglio.runtime.reports.svg import (
    BREAK,
    LABEL,
    WIDTH,
    Bar,
    Box,
    Lane,
    Window,
    lanes,
    legend,
    stacked,
)
from intaglio.runtime.reports.tables import all_tables
from intaglio.runtime.reports.timing import critical_path, spans

Named = Callable[[str], Path]
VOID = {"meta", "br", "wbr", "hr", "img", "link", "input"}


class _Page(HTMLParser):
    """Checks that tags are closed in order, and notes what a page would load or run."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.foreign: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("script", "link", "img", "iframe", "object", "embed"):
            self.foreign.append(tag)
        self.foreign += [
            f"{k}={v}"
            for k, v in attrs
            if (k in ("src", "href") and not (v or "").startswith("#")) or k[:2] == "on"
        ]
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
    found = [ET.fromstring(f"<svg{part}") for part in parts]
    return [one for one in found if "aria-label" in one.attrib]


def test_page_is_whole_and_well_formed(gated: Path):
    content = inspect_json(gated)
    page = inspect_html(gated, content)
    assert page == inspect_html(gated, inspect_json(gated))
    parser = _Page()
    parser.feed(page)
    assert not parser.open and not parser.foreign
    assert "http" not in page and str(gated.parent) not in page
    assert page.count("url(") == page.count("url(#f-") == page.count("<pattern ")
    for title, _, rows, _ in all_tables(content):
        assert re.search(f'<h2 id="([a-z0-9-]+)"><a href="#\\1">{escape(title)}</a></h2>', page)
        for row in rows:
            assert all(escape(cell.lstrip()) in page.replace("<wbr>", "") for cell in row)


def test_pictures_show_the_token(gated: Path):
    content, program = inspect_json(gated), load_program(gated)
    found = {one.attrib["aria-label"]: one for one in pictures(inspect_html(gated, content))}
    assert len(found) == 9
    (whole,) = (one for title, one in found.items() if title.startswith("One token at position 31"))
    boxes = [box.findtext("title") or "" for box in whole.iter("rect")]
    taken: dict[tuple[str, str, int], set[int]] = {}
    """Cycles in which a queue is taken, by opcode, block and instance; a box has no gap in it."""
    drawn: dict[tuple[str, str, int], list[int]] = {}
    heading = re.compile(r"(\w+), (\w+) (\d+): ([\d,]+) to ([\d,]+) \(")
    on_path: dict[tuple[str, str, int], set[int]] = {}
    for title in boxes:
        match = heading.match(title)
        assert match is not None
        start, free = (int(match[n].replace(",", "")) for n in (4, 5))
        key = match[1], match[2], int(match[3])
        drawn.setdefault(key, []).extend(range(start, free))
        if "on the critical path" in title:
            on_path.setdefault(key, set()).update(range(start, free))
    critical = {step.span.at for step in critical_path(program, 31)}
    wanted_on_path: dict[tuple[str, str, int], set[int]] = {}
    for span, number in spans(program, [31]):
        one = program.blocks[number].instructions[span.instruction]
        key = one.opcode, program.blocks[number].name, span.instance
        cycles = range(int(span.start[0]), int(span.free[0]))
        assert taken.setdefault(key, set()).isdisjoint(cycles)
        taken[key].update(cycles)
        if (number, span.instance, span.instruction) in critical:
            wanted_on_path.setdefault(key, set()).update(cycles)
        nodes = one.onnx[span.instance if len(one.onnx) > 1 else 0]
        assert any(all(node in title for node in nodes) for title in boxes)
    assert {key: sorted(cycles) for key, cycles in drawn.items()} == {
        key: sorted(cycles) for key, cycles in taken.items() if cycles
    }
    assert {k: v for k, v in on_path.items() if v} == {k: v for k, v in wanted_on_path.items() if v}
    # Beats one behind the other are a box.
    beats = len(list(spans(program, [31])))
    assert len(boxes) < beats / 2
    heights = [float(box.attrib["height"]) for box in whole.iter("rect")]
    tall = sum("on the critical path" in title for title in boxes)
    assert tall == sum(height == max(heights) for height in heights) < len(heights)
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


@pytest.mark.parametrize("name", ["recurrent", "qwen35"])
def test_states_have_a_part_of_the_sram(compiled: Named, name: str):
    folder = compiled(name)
    page = inspect_html(folder, inspect_json(folder))
    parts = [part for one in pictures(page) for part in one.iter() if part.tag.endswith("title")]
    assert any("states" in (part.text or "") for part in parts)


def test_cells_that_do_not_fit_are_marked(gated: Path):
    page = inspect_html(gated, inspect_json(gated))
    assert '<td class="own">' in page


def test_bars_keep_their_scale():
    colour = tensor_fills(["a", "b", "<c>"])
    bars = [Bar("x", [("a", 30), ("b", 30)], "60"), Bar("y", [("<c>", 120)], "120")]
    (picture,) = pictures(stacked("two & three", bars, 100, colour).html)
    widths = [float(one.attrib["width"]) for one in picture.iter("rect")]
    # 700 units for 120; the frame is 100 of them.
    assert widths == pytest.approx([175, 175, 583.33, 700, 583.33], abs=0.01)
    assert "&lt;c&gt;" in legend(colour)


def test_zeros_of_ternary_weights_are_told(gated: Path):
    assert ">Zeros in ROM</a></h2>" in inspect_html(gated, inspect_json(gated))


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
    fill = Fill("kv")
    rows = [
        Lane(
            "q",
            [Box(0, 10, fill, "t"), Box(50, 200, fill, "u", low=True), Box(300, 400, fill, "v")],
        )
    ]
    (picture,) = pictures(lanes("title", rows, [Window(5, 105)]).html)
    boxes = [float(r.attrib[key]) for r in picture.iter("rect") for key in ("x", "width")]
    scale = (WIDTH - LABEL - 20) / 100
    assert boxes == pytest.approx([LABEL, 5 * scale, LABEL + 45 * scale, 55 * scale])
    tall, low = (float(r.attrib["height"]) for r in picture.iter("rect"))
    assert tall == 2 * low
    ticks = [text.text for text in picture.iter("text")]
    assert ticks == ["20", "40", "60", "80", "100", "q"]


def test_windows_stand_side_by_side_to_one_scale():
    fill = Fill("matrix")
    row = Lane("q", [Box(0, 100, fill, "a\nnode"), Box(500, 600, fill, "b" * 300)])
    windows = [Window(0, 100, "one"), Window(400, 600, "two")]
    (picture,) = pictures(lanes("title", [row], windows, reachable=True).html)
    scale = (WIDTH - LABEL - 20 - BREAK) / 300
    boxes = [float(r.attrib[key]) for r in picture.iter("rect") for key in ("x", "width")]
    second = LABEL + 100 * scale + BREAK
    wanted = [LABEL, 100 * scale, second + 100 * scale, 100 * scale]
    assert boxes == pytest.approx(wanted, abs=0.01)
    tips = [text.text or "" for text in picture.iter("text") if text.get("class") == "tip"]
    assert tips[0] == "a | node" and tips[1].endswith("...") and len(tips[1]) < 150
    reached = [one for one in picture.iter("g") if one.get("tabindex") == "0"]
    assert [one.get("aria-label") for one in reached] == ["a | node", "b" * 300]


def test_of_many_layers_one_stands_for_all(compiled: Named, monkeypatch: pytest.MonkeyPatch):
    """The tiny models have two; what counts as many is set to one."""
    from intaglio.runtime.reports import pictures as inspect_pictures

    monkeypatch.setattr(inspect_pictures, "MANY", 1)
    out, program = compiled("llama"), load_program(compiled("llama"))
    found = {
        one.attrib["aria-label"]: one for one in pictures(inspect_html(out, inspect_json(out)))
    }
    assert not any(title.startswith("One token at") for title in found)
    (strip,) = (one for title, one in found.items() if title.startswith("One layer of 2,"))
    above = [text.text for text in strip.iter("text")]
    assert "layer x 2 (this is 1)" in above and "head" in above
    shown = [box.findtext("title") or "" for box in strip.iter("rect")]
    once = [block for block in program.blocks if len(block.instances) == 1]
    for block in (*once, *(block for block in program.blocks if len(block.instances) > 1)):
        number = min(1, len(block.instances) - 1)
        inside = [title for title in shown if f", {block.name} {number}: " in title]
        assert len(inside) >= len(block.whole)
    (overview,) = (one for title, one in found.items() if title.startswith("Blocks of one token"))
    assert len(list(overview.iter("rect"))) == sum(len(b.instances) for b in program.blocks)


def test_pictures_stand_below_their_own_headings(gated: Path):
    page = inspect_html(gated, inspect_json(gated))
    below = {
        re.sub("<.*?>", "", part.partition("</h2>")[0]): pictures(part)
        for part in page.replace("<h2 ", "<h2><").split("<h2>")[1:]
    }
    with_pictures = {name: len(found) for name, found in below.items() if found}
    assert with_pictures == {
        "ROM of the matrix units": 1,
        "SRAM and vector units": 2,
        "Cycles of a token": 1,
        "One token in time": 3,
        "Power": 1,
        "Area": 1,
    }
    assert "Blocks, on the critical path" in below


@pytest.mark.parametrize("count", [1, 4, 5, 17])
def test_long_lists_of_nodes_are_folded(gated: Path, count: int):
    content = inspect_json(gated)
    nodes = [f"node_{i}<&>" for i in range(count)]
    content["slowest"] = [{**content["slowest"][0], "onnx": nodes}]
    page = inspect_html(gated, content)
    assert escape("\n".join(nodes)) in page.replace("<wbr>", "")
    assert page.count("<details>") == (count > 4)
    assert (f"and {count - 1} more</summary>" in page) == (count > 4)
    parser = _Page()
    parser.feed(page)
    assert not parser.open


def test_names_in_the_first_column_break_between_their_parts(gated: Path):
    """And what stands below another name is set in, whatever lines it takes."""
    content = inspect_json(gated)
    content["slowest"] = [{**content["slowest"][0], "onnx": ["/model/layers.0/qkv_proj"]}]
    page = inspect_html(gated, content)
    assert ">/model<wbr>/layers<wbr>.0<wbr>/qkv<wbr>_proj<" in page
    assert '<th scope="row" style="padding-left:calc(.7rem + 1ch)">' in page
    assert not re.search(r'<th scope="row"[^>]*> ', page)


def test_colours_mean_the_same_in_every_picture(gated: Path):
    """A queue's bar and its instructions; wake and sleep are no other queue's."""
    page = inspect_html(gated, inspect_json(gated))
    found = {one.attrib["aria-label"]: one for one in pictures(page)}
    (bars,) = (one for title, one in found.items() if title.startswith("Cycles of a token"))
    tones = {
        (box.findtext("title") or "").partition(":")[0]: box.attrib["class"].split("-")[1]
        for box in bars.iter("rect")
        if box.find("title") is not None
    }
    assert all(name == tone for name, tone in tones.items()) and "matrix" in tones
    program = load_program(gated)
    queues = {o.opcode: set[str]() for block in program.blocks for o in block.instructions}
    for block in program.blocks:
        for one in block.instructions:
            queues[one.opcode].add(one.queue)
    for title, picture in found.items():
        if "token at position" in title and not title.startswith(("Blocks", "Power")):
            for box in picture.iter("rect"):
                opcode = (box.findtext("title") or "").partition(",")[0]
                assert box.attrib["class"].split("-")[1] in queues[opcode]


@pytest.mark.parametrize("target", ["roma-mini", "tom-mini"])
def test_nothing_of_a_mini_is_called_published(target: str, gated: Path, compiled: Named):
    out = compiled("llama") if target == "roma-mini" else gated
    captions = re.findall('<p class="note">(.*?)</p>', inspect_html(out, inspect_json(out)))
    pictures_ = [one for one in captions if "frame" in one or "bank" in one.lower()]
    assert pictures_ and not any("published capacity" in one for one in pictures_)
    assert not any("deeper than published" in one for one in captions)
