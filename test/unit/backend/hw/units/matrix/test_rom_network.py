"""Banks as the compiler's own gates: the emitted modules against their truth tables."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from intaglio.backend.circt import to_verilog
from intaglio.backend.compile import compile_model
from intaglio.backend.hw.chip.chip import chip_design
from intaglio.backend.hw.chip.contents import logic_rom
from intaglio.backend.hw.chip.layout import layout_of
from intaglio.backend.hw.units.matrix.rom_bank import BankBody, bank_name, table_body
from intaglio.backend.hw.units.matrix.rom_network import shared_body
from intaglio.backend.hw.wires.signal import Design
from intaglio.backend.images.read import Images
from intaglio.backend.program.program import load_program
from intaglio.backend.stages import Options
from intaglio.dialects.errors import UserError
from intaglio.runtime.engines.arc import ArcModel
from intaglio.runtime.engines.compare import compare_token
from intaglio.runtime.engines.rtl import RTLChip
from intaglio.runtime.engines.simulator import Simulator

PROOF = """\
read_verilog -sv {file}
proc
miter -equiv -flatten -make_outputs bank_table bank_shared miter
hierarchy -top miter
memory
opt_clean
techmap
sat -verify -prove trigger 0 miter
"""
# In a process of its own: pyosys loads with RTLD_GLOBAL, which other native libraries do not like.
YOSYS = (
    "import sys; from pyosys import libyosys; libyosys.Design().run_pass('script ' + sys.argv[1])"
)


def table(rows: int, bits: int, ones: float, seed: int) -> list[int]:
    """Random words."""
    rng = np.random.default_rng(seed)
    return [
        sum(1 << bit for bit in np.flatnonzero(row).tolist())
        for row in rng.random((rows, bits)) < ones
    ]


def bank(design: Design, name: str, body: BankBody, words: list[int], bits: int, size: int) -> None:
    """A module of a bank."""
    m = design.module(name)
    m.output("word", body(m, m.input("address", size), words, bits), bits)


@pytest.mark.parametrize(
    ("words", "bits", "size"),
    [
        (table(100, 24, 0.3, 1), 24, 7),
        (table(64, 9, 0.7, 2), 9, 8),
        ([1], 1, 1),
        ([0, 0, 6], 3, 2),
        ([255] * 4, 8, 2),
        ([0] * 5, 3, 3),
    ],
    ids=["100x24", "64x9", "one bit", "one word", "ones", "zeros"],
)
def test_emitted_gates(words: list[int], bits: int, size: int) -> None:
    """At every address, beyond the words too."""
    design = Design()
    bank(design, "bank", shared_body, words, bits, size)
    text = design.text()
    assert "aggregate_constant" not in text
    model = ArcModel(text, "bank", opt=0)
    addresses = np.arange(1 << size)
    found = model.run(len(addresses), {"address": addresses}).outputs["word"]
    assert found.tolist() == [*words, *[0] * (len(addresses) - len(words))]


@pytest.mark.parametrize("wrong", [False, True], ids=["equal", "one bit differs"])
def test_yosys_proves_the_verilog_equal(wrong: bool, tmp_path: Path) -> None:
    """The two forms of a bank in SystemVerilog; a wrong bit is found."""
    pytest.importorskip("pyosys")
    words = table(50, 12, 0.3, 4)
    design = Design()
    bank(design, "bank_shared", shared_body, words, 12, 6)
    bank(design, "bank_table", table_body, [words[0] ^ (16 * wrong), *words[1:]], 12, 6)
    file, script = tmp_path / "banks.sv", tmp_path / "proof.ys"
    file.write_text(to_verilog(design.text()))
    script.write_text(PROOF.format(file=file))
    command = [sys.executable, "-c", YOSYS, str(script)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode != 0) == wrong, done.stdout[-2000:] + done.stderr[-2000:]
    assert ("model found: FAIL" if wrong else "SUCCESS") in done.stdout


def test_chosen_banks(model: Callable[[str], Path], tmp_path: Path) -> None:
    """All banks by the target's policy, some by the call; with these the chip computes the same."""
    options = Options("tom-mini", ("policy.rom_logic=shared",), context=16, emit="program")
    out = compile_model(model("ternary"), tmp_path / "out", options).folder
    program = load_program(out)
    images, layout = Images(program, out), layout_of(program)
    whole = logic_rom(layout, images)
    assert whole is not None and whole.body_of(3, 3, 3) is shared_body
    chosen = {(tile, unit, unit) for tile in (0, 2) for unit in range(4)}
    few = logic_rom(layout, images, shared=chosen)
    assert few is not None
    text = chip_design(layout, few).text()
    banks = re.split(r"hw\.module @(?=tile\d+_l_unit\d+_bank\d+\()", text)[1:]
    forms = {
        bank.split("(")[0]: "aggregate_constant" not in bank.split("hw.output")[0] for bank in banks
    }
    names = {bank_name(*place) for place in chosen}
    assert len(forms) > 50
    assert {name for name, gates in forms.items() if gates} == names & set(forms)
    assert len(names & set(forms)) > 5
    chip = RTLChip(program, out, cache=False, opt=0, text=text)
    result = compare_token(Simulator(program, out), chip, 3, 0)
    assert result.equal, str(result.difference)
    assert result.values > 1000
    chip.close()


def test_where_rom_is_no_logic(model: Callable[[str], Path], tmp_path: Path) -> None:
    options = Options("roma-mini", ("policy.rom_logic=shared",), context=16)
    with pytest.raises(UserError, match=r"policy\.rom_logic"):
        compile_model(model("llama"), tmp_path / "out", options)
