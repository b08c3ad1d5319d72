"""The page in a real browser: nothing is wider than the window, in both colour schemes.

Skipped where no Chromium is installed.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from html import escape
from pathlib import Path

import pytest

from intaglio.backend.compile import compile_model
from intaglio.backend.stages import Options
from intaglio.runtime.reports.colours import PAPER, TONES
from intaglio.runtime.reports.html import inspect_html
from intaglio.runtime.reports.inspect import inspect_json

Named = Callable[[str], Path]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

MEASURE = """
<script>
const root = document.documentElement, wide = [];
for (const one of document.body.querySelectorAll("*")) {
  if (one.closest("svg, .wide > *")) continue;
  const right = one.getBoundingClientRect().right;
  if (right > root.clientWidth + 1) wide.push(one.outerHTML.slice(0, 80));
}
const colour = (kind) => {
  const found = document.querySelector(kind);
  return found && getComputedStyle(found).fill;
};
const table = document.querySelector("table");
table.parentElement.scrollLeft = 1000;
const letters = [...document.querySelectorAll("svg[role] text")].map(
  (one) => 12 * one.getScreenCTM().a);
const boxes = document.querySelectorAll("svg [tabindex]");
const visible = () => getComputedStyle(boxes[0].querySelector(".tip")).visibility;
const hidden = visible();
boxes[0].focus();
const told = document.activeElement === boxes[0] ? visible() : "not in focus";
const seen = {
  width: innerWidth, client: root.clientWidth, scroll: root.scrollWidth, wide: wide,
  paper: getComputedStyle(document.body).backgroundColor,
  matrix: colour("svg[role] .f-matrix-solid"), pattern: colour("svg[role] .f-vector-diagonal"),
  letters: Math.min(...letters),
  first: table.querySelector("tbody th").getBoundingClientRect().left
    - table.parentElement.getBoundingClientRect().left,
  ids: new Set([...document.querySelectorAll("[id]")].map((one) => one.id)).size
    == document.querySelectorAll("[id]").length,
  dead: [...document.querySelectorAll("a")].filter(
    (one) => !document.getElementById(one.hash.slice(1))).length,
  stops: boxes.length, told: told, hidden: hidden,
};
const out = document.createElement("output");
out.textContent = JSON.stringify(seen).replaceAll("<", "(");
parent.document.body.append(out);
</script>
"""


@pytest.fixture(scope="module")
def page(model: Named, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("browser")
    options = replace(Options("tom-mini", context=32, emit="program"), adapter_rank=2)
    out = compile_model(model("ternary"), folder / "out", options).folder
    return inspect_html(out, inspect_json(out))


def rgb(colour: str) -> str:
    """#rrggbb as a browser states it."""
    return f"rgb({', '.join(str(int(colour[i : i + 2], 16)) for i in (1, 3, 5))})"


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed")
@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_window(page: str, tmp_path: Path, width: int, scheme: int):
    assert CHROMIUM is not None
    file = tmp_path / "page.html"
    # A window is never less than 500 wide there, a frame is; it has the scheme of the page around.
    inside = escape(page.replace("</body>", MEASURE + "</body>"))
    file.write_text(
        '<!DOCTYPE html><meta name="color-scheme" content="light dark"><body>'
        f'<iframe style="width:{width}px;height:900px;border:0" srcdoc="{inside}"></iframe>'
    )
    command = [
        CHROMIUM,
        *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars"),
        *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
        f"--user-data-dir={tmp_path / 'profile'}",
        "--window-size=1400,1000",
        f"--blink-settings=preferredColorScheme={1 - scheme}",
        "--dump-dom",
        file.as_uri(),
    ]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    found = re.search("<output>(.*?)</output>", dom)
    assert found is not None
    seen = json.loads(found[1])
    assert seen["width"] == width
    assert seen["scroll"] <= seen["client"] and seen["wide"] == []
    assert seen["paper"] == rgb(PAPER[scheme])
    assert seen["matrix"] == rgb(TONES["matrix"][scheme])
    assert "f-vector-diagonal" in seen["pattern"]
    # Letters of pictures are as large as they are on a wide screen, or nearly.
    assert seen["letters"] >= 11
    assert seen["first"] == pytest.approx(0, abs=1)
    assert seen["ids"] and seen["dead"] == 0 and seen["stops"] > 10
    # What the keyboard reaches says in writing what it is.
    assert (seen["hidden"], seen["told"]) == ("hidden", "visible")
