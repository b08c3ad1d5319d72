"""What README shows is so: its picture, and its table beside the papers."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from page_figures import Compiled, bench_line

from intaglio.backend.compile import compile_model
from intaglio.backend.stages import Options
from intaglio.runtime.reports.inspect import inspect_json
from intaglio.runtime.reports.picture_file import inspect_svg

ROOT = Path(__file__).parents[3]
PICTURE = "docs/demo.svg"


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The picture of the chip that scripts/demo compiles."""
    out = tmp_path_factory.mktemp("picture") / "demo"
    model = ROOT / "examples" / "demo" / "model" / "model.onnx"
    compile_model(model, out, Options("roma-mini", adapter_rank=16, emit="program"))
    return inspect_svg(out, inspect_json(out))


def test_picture_is_what_inspect_draws(drawn: str, renew: bool) -> None:
    if renew:
        (ROOT / PICTURE).write_text(drawn)
    assert f"]({PICTURE})" in (ROOT / "README.md").read_text()
    same = drawn == (ROOT / PICTURE).read_text()
    assert same, "pytest test/unit/docs --renew draws it again"


def test_the_test_bench_prints_what_the_page_says(tmp_path: Path, renew: bool) -> None:
    """docs/output.md; bench/page_figures.py has the other figures of cycles in pages."""
    (figure,) = bench_line(Compiled(tmp_path))
    path = ROOT / figure.page
    if renew:
        path.write_text(figure.written(path.read_text()))
    same = figure.written(path.read_text()) == path.read_text()
    assert same, "python bench/page_figures.py --write brings it up to date"


def test_picture_stands_alone(drawn: str) -> None:
    """It loads nothing, has its own paper in both schemes, and all fills that it names."""
    root = ET.fromstring(drawn)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert not re.search(r"(?<!xmlns=\")http|href|@import|<script", drawn)
    paper = root.find("{*}rect")
    assert paper is not None and paper.get("class") == "paper"
    assert (paper.get("width"), paper.get("height")) == (root.get("width"), root.get("height"))
    style = root.findtext("{*}style") or ""
    light, dark = style.split("prefers-color-scheme: dark")
    for name in set(re.findall(r"var\((--\w+)\)", drawn)):
        assert f"{name}:" in light and f"{name}:" in dark
    used = {one.get("class") for one in root.iter() if (one.get("class") or "").startswith("f-")}
    ruled = set(re.findall(r"\.(f-[\w-]+) {", style))
    assert used <= ruled
    ids = {one.get("id") for one in root.findall(".//{*}pattern")}
    assert set(re.findall(r"url\(#([\w-]+)\)", style)) <= ids


def rows(text: str) -> list[list[str]]:
    """Cells of the lines of tables."""
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("|")
    ]


def test_table_beside_the_papers() -> None:
    """Each row is one of docs/papers.md, which bench/papers.py writes; of each chip there is one
    that flatters least."""
    sections = (ROOT / "docs" / "papers.md").read_text().split("\n## ")
    papers = {part.splitlines()[0]: rows(part) for part in sections[1:]}
    chips = {name for name, table in papers.items() if table[0][:2] == ["figure", "published"]}
    readme = (ROOT / "README.md").read_text()
    table = [row for row in rows(readme) if len(row) == 6][2:]
    assert {row[0] for row in table} == chips
    for chip, *figure in table:
        assert figure in papers[chip], f"README of {chip}: {figure} is no row of docs/papers.md"
    for chip in chips:
        speeds = [row for row in papers[chip] if re.search("tok/s|between tokens", row[0])]
        assert any(row[0] == chip and row[1] in {one[0] for one in speeds} for row in table)
