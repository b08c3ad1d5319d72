"""Verilator's -Wall has nothing to say of an emitted chip but what waivers.vlt answers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from small_chip import SMALL

from intaglio.backend import hw
from intaglio.backend.compile import compile_model
from intaglio.backend.emit_hardware import VERILOG, emit_hardware
from intaglio.backend.images.read import Images
from intaglio.backend.program.program import load_program
from intaglio.backend.stages import Options
from intaglio.runtime.engines.verilator import translate

WAIVERS = Path(hw.__file__).parent / "waivers.vlt"


def warnings(*files: Path) -> list[str]:
    arguments = ["--lint-only", "-Wall", "-Wno-fatal", "--top-module", "chip", str(WAIVERS)]
    said = translate([*arguments, *map(str, files)], files[0].parent)
    return [line for line in said.splitlines() if line.startswith("%")]


def test_emitted_chip(model: Callable[[str], Path], tmp_path: Path) -> None:
    """Of another family than the one in test_rtl.py."""
    compile_model(model("phi"), tmp_path, Options("roma-mini", SMALL, context=16))
    program = load_program(tmp_path)
    emit_hardware(program, Images(program, tmp_path), tmp_path)
    assert warnings(*(tmp_path / file for file in VERILOG)) == []


def test_waivers_leave_the_rest(tmp_path: Path) -> None:
    """A latch, a dead register, a port that drives nothing, widths that differ."""
    file = tmp_path / "chip.sv"
    file.write_text(
        "module chip(input clk, input [3:0] a, input steer, output [3:0] y, z);\n"
        "  reg [3:0] dead, latch;\n"
        "  always @(posedge clk) dead <= a;\n"
        "  always_comb if (a[0]) latch = a;\n"
        "  assign y = latch + 9'd3;\n"
        "endmodule\n"
    )
    text = "\n".join(warnings(file))
    for rule in ("LATCH", "WIDTHTRUNC", "'dead'", "'steer'", "'z'"):
        assert rule in text


def test_each_waiver_has_a_reason() -> None:
    blocks = WAIVERS.read_text().split("\n\n")
    for block in blocks:
        assert block.startswith("//"), block
