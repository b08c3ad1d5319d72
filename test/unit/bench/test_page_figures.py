"""Figures of cycles in pages: bench/page_figures.py."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[3]


def test_groups_are_replaced_where_they_stand(script):
    figure = script("page_figures").Figure("a.md", r"takes (\d+) of ([\d,]+)\.", ("7", "1,234"))
    assert figure.written("It takes 99 of 5. It takes all.") == "It takes 7 of 1,234. It takes all."
    for text in ("It takes all.", "takes 1 of 2. takes 3 of 4."):
        with pytest.raises(ValueError, match=r"a\.md has [02] places like takes"):
            figure.written(text)


def test_more_in_percent(script):
    assert script("page_figures").more(11_000, 10_000) == "11,000 (+10.0 %)"


def test_pages_have_the_places(script, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Each once, with numbers of its own kind; without a compile."""
    module = script("page_figures")
    sites = {"": 0, "16": 35, "32": 35, "64": 35, **dict(module.SOME)}

    class Program:
        def __init__(self, slots: str) -> None:
            self.sites = dict.fromkeys(range(sites[slots]))

    class Tokens:
        period = np.array([8_111, 12_222, 17_333])

    monkeypatch.setattr(module.Compiled, "folder", lambda self, model, target, slots="": tmp_path)
    monkeypatch.setattr(
        module.Compiled, "program", lambda self, model, target, slots="": Program(slots)
    )
    monkeypatch.setattr(module, "load_program", lambda folder: Program(""))
    monkeypatch.setattr(module, "token_cycles", lambda *args, **more: Tokens)
    answer = type("Expected", (), {"token": 65, "cycles": 8_111})
    monkeypatch.setattr(module, "expected_tokens", lambda program, folder: [answer])
    pages: dict[str, str] = {}
    count = 0
    for one in module.figures(module.Compiled(tmp_path)):
        text = pages.setdefault(one.page, (ROOT / one.page).read_text())
        pages[one.page] = one.written(text)
        count += 1
        assert re.search(one.pattern, pages[one.page])
        assert one.written(pages[one.page]) == pages[one.page]
    assert count == 9 and set(pages) == {
        "docs/output.md",
        "docs/adapters.md",
        "examples/bitnet/README.md",
    }
    assert "token 65 cycle 8111 saturations 0" in pages["docs/output.md"]
