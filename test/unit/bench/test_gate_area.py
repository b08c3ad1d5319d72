"""Networks in cells of a library: bench/gate_area.py."""

from __future__ import annotations

import pytest

from intaglio.backend.images.logic_rom import Gate, Network

LIBERTY = """
library (least) {
  cell (INV)   { area : 2; pin (A) { direction : input; } }
  cell ("NAND2") {
    area : 4.0; pin (A) { direction : input; }
  }
  cell (NOR2)  { area : 4.0; }
  cell (NAND3) { area : 5.0; }
}
"""


def test_gate_equivalents(script) -> None:
    """Of a library whose NAND2 is 4: AND of 3 as NAND3 and inverter would be 7, of 2 it is 6."""
    area = script("gate_area")
    areas = area.cell_areas(LIBERTY)
    assert areas == {"INV": 2, "NAND2": 4, "NOR2": 4, "NAND3": 5}

    def size(*gates: Gate, output: int = 0) -> float:
        return area.gate_equivalents(Network(6, gates, (output,)), areas)

    # NOR2 of a NAND2 and an inverter.
    assert size(Gate("and", (2, 4, 6))) == (4 + 4 + 2) / 4
    # NOR2 of two inverters.
    assert size(Gate("and", (2, 4))) == (4 + 2 + 2) / 4
    # NAND2 of NOR2 and NOR2; NAND3 of inverters would need more.
    assert size(Gate("or", (2, 4, 6, 8))) == (4 + 4 + 4) / 4
    assert size(Gate("or", (2, 4, 6, 8)), output=15) == (4 + 4 + 4 + 2) / 4
    with pytest.raises(KeyError, match="NOR2"):
        area.gate_equivalents(Network(1, (), ()), {"INV": 1, "NAND2": 1})
