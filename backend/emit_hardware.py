"""The hardware of a compiled program as files: IR, SystemVerilog, memory images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from intaglio.backend import circt
from intaglio.backend.hw.chip import chip_design
from intaglio.backend.hw.layout import layout_of

if TYPE_CHECKING:
    from intaglio.runtime.program import Program


def hardware_text(program: Program, folder: Path) -> str:
    """The IR of a program's chip."""
    return chip_design(layout_of(program)).text()


def hardware_verilog(text: str, folder: Path) -> str:
    """The SystemVerilog of a chip."""
    return circt.to_verilog(text)
