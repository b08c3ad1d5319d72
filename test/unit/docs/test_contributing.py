"""CONTRIBUTING.md's pass, as it stands on the page."""

from __future__ import annotations

from pathlib import Path

from xdsl.context import Context
from xdsl.parser import Parser

from intaglio.reference import pass_entry
from intaglio.universe import INTAGLIO

PAGE = Path(__file__).parents[3] / "CONTRIBUTING.md"

MODULE = """
rom.step @decode context 8 {
^bb0(%token: i32, %position: index):
  %x = rom.embed %token of @table {onnx = [["a"]]} : tensor<4xf32>
  %y = rom.scale %x {factor = FACTOR : f64, onnx = [["b"]]} : tensor<4xf32> -> tensor<4xf32>
  %next = rom.sample %y {onnx = [["c"]]} : tensor<4xf32>
  rom.emit %y, %next : tensor<4xf32>
}
rom.parameter @table : !rom.tensor<[4, 4], float32> {key = "onnx::t"}
"""


def test_the_pass_of_the_page(tmp_path, monkeypatch):
    code = PAGE.read_text().partition("```python\n")[2].partition("```")[0]
    (tmp_path / "drop_unit_scales.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    from drop_unit_scales import RomDropUnitScales

    context = Context()
    for load in INTAGLIO.all_dialects.values():
        context.load_dialect(load())
    for factor, left in (("1.0", 0), ("2.0", 1)):
        module = Parser(context, MODULE.replace("FACTOR", factor)).parse_module()
        RomDropUnitScales().apply(context, module)
        module.verify()
        assert str(module).count("rom.scale") == left
    assert "Removes multiplications by 1." in pass_entry("drop", RomDropUnitScales)
    assert len(code.strip().splitlines()) < 30
