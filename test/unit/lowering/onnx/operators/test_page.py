from __future__ import annotations

from pathlib import Path

from intaglio.lowering.onnx.operators.page import page

PAGE = Path(__file__).parents[5] / "docs" / "operators.md"


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text() == page(), "run python -m intaglio.lowering.onnx.operators.page"
