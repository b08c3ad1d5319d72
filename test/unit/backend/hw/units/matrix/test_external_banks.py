"""A large chip whose ROM is logic leaves the banks out, says which, and how they are written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from intaglio.backend import emit_hardware
from intaglio.backend.compile import compile_model
from intaglio.backend.output.hardware_files import EXTERNAL_BANKS, IR
from intaglio.backend.output.output import check_replaceable
from intaglio.backend.stages import Options
from intaglio.runtime.engines.rtl import write_hardware


def rows(folder: Path) -> dict[str, tuple[int, int]]:
    """Widths of `address` and `word` by module."""
    head, *lines = (folder / EXTERNAL_BANKS).read_text().splitlines()
    assert head == "module,address_bits,word_bits"
    cells = (line.split(",") for line in lines)
    return {name: (int(address), int(word)) for name, address, word in cells}


def test_banks_that_are_left_out_are_listed(
    model: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = Options("tom-mini", context=16, emit="hw")
    small = compile_model(model("ternary"), tmp_path / "small", options)
    assert not any("external" in line for line in small.warnings)
    assert not (small.folder / EXTERNAL_BANKS).exists()

    monkeypatch.setattr(emit_hardware, "LOGIC_LIMIT", 0)
    large = compile_model(model("ternary"), tmp_path / "out", options)
    found = rows(large.folder)
    (warning,) = [line for line in large.warnings if "external" in line]
    assert f"{len(found):,} external modules" in warning
    assert EXTERNAL_BANKS in warning and "docs/synthesis.md" in warning
    text = (large.folder / IR).read_text()
    assert f"// {len(found):,} modules of ROM banks" in text
    for name, (address, word) in found.items():
        assert f"hw.module.extern @{name}(in %port0 address: i{address}, out word: i{word})" in text

    name = next(one for one in found if one.startswith("tile0_l_unit0_bank"))
    bank = int(name.removeprefix("tile0_l_unit0_bank"))
    written = write_hardware(large.folder, "hw", banks=[(0, 0, bank)])
    assert EXTERNAL_BANKS in written
    assert name not in rows(large.folder) and set(rows(large.folder)) < set(found)
    text = (large.folder / IR).read_text()
    assert f"hw.module.extern @{name}(" not in text and f"hw.module @{name}(in %address" in text
    check_replaceable(large.folder)
