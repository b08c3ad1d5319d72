"""The table of docs/models.md: bench/models_page.py."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

PERCENT = re.compile(r"\d+\.\d\d %")


def test_the_page_has_its_rows(script):
    """Lines of known models alone, in order, each with its figures; those of tests all of them."""
    module = script("models_page")
    lines = module.lines_of(module.PAGE.read_text())
    keys = [row.key for row in module.ROWS]
    assert len(set(keys)) == len(keys)
    assert list(lines) == [key for key in keys if key in lines]
    assert all(row.key in lines for row in module.ROWS if row.exporter == module.OWN)
    for row in module.ROWS:
        if row.key not in lines:
            continue
        cells = [cell.strip() for cell in lines[row.key].strip("|").split("|")]
        assert cells[2] == row.needs
        assert cells[3] == row.told if row.told else cells[3] in ("as stored", row.weights)
        assert len(cells) == len(module.HEADINGS)
        assert all(PERCENT.fullmatch(one) for one in cells[4:]), row


def test_models_are_found_by_name(script, tmp_path: Path):
    module = script("models_page")
    first, second = (tmp_path / name for name in ("a", "b"))
    rows = {row.folder: row for row in module.ROWS}
    (second / "mobius_gemma4").mkdir(parents=True)
    assert module.model_of(rows["mobius_gemma4"], [first, second], tmp_path) is None
    for name in ("other.onnx", "decode.onnx"):
        (second / "mobius_gemma4" / name).touch()
    found = module.model_of(rows["mobius_gemma4"], [first, second], tmp_path)
    assert found == second / "mobius_gemma4" / "decode.onnx"
    own = module.model_of(rows["alibi"], [], tmp_path)
    assert own is not None and own.is_file()


def test_lines_are_renewed_and_the_others_stay(
    script, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    module = script("models_page")
    page = tmp_path / "models.md"
    page.write_text(module.PAGE.read_text())
    before = module.lines_of(page.read_text())
    settings: list[tuple[str, ...]] = []

    def compiled(model: Path, work: Path, targets: Any, weights: str, given: tuple[str, ...]):
        settings.append(given)
        return work, targets[0], ""

    class Chip:
        def check(self, *, tokens: int) -> dict[str, float]:
            return {"max_error_of_range": 0.0123 * tokens / 96, "top1_agreement_counted": 1.0}

    monkeypatch.setattr(module, "PAGE", page)
    monkeypatch.setattr(module, "compiled", compiled)
    monkeypatch.setattr(module, "load", lambda out: Chip())
    figures = ("1.23 %", "100.00 %", "1.23 %", "100.00 %")
    new = module.line(("as OPT", "test/models", "learned positions", "as stored", *figures))
    assert module.main([]) == 1
    assert new in capsys.readouterr().out.splitlines()
    assert module.lines_of(page.read_text()) == before
    assert module.main(["--write"]) == 0
    after = module.lines_of(page.read_text())
    assert after["as OPT", "test/models"] == new
    own = [row.key for row in module.ROWS if row.exporter == module.OWN]
    assert {key: one for key, one in after.items() if key not in own} == {
        key: one for key, one in before.items() if key not in own
    }
    assert settings[:2] == [(), module.INT16]
    assert module.main([]) == 0


def test_a_page_without_the_table(script):
    with pytest.raises(ValueError, match="the page has no line"):
        script("models_page").lines_of("# Models\n")
