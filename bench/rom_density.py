"""ROM banks as gates: how many, before and after the compiler shares them, from real synthesis.

    pip install pyosys
    python bench/rom_density.py --part reference     256 x 256 weights, 1024 x 128 bits; proofs
    python bench/rom_density.py --part height        banks of 128 bits, 128 to 2,048 words
    python bench/rom_density.py --part small         all banks of the trained BitNet on tom-mini
    python bench/rom_density.py --part full          a sample of the banks of a BitNet-2B on tom
    python bench/rom_density.py                      all of it

Three figures for a bank, in gate equivalents (area over that of a NAND2) of bench/cells.lib:

- before sharing: a zero bit is free, each one bit is an input of its own of its output's OR. The
  address decoder is common to all outputs, as word lines are in a memory. Each OR is a tree of the
  library's NANDs and NORs. Counted, not synthesised, since synthesis would share.
- table: Yosys and ABC from the truth table as the compiler writes it (`rom_logic=table`).
- shared: Yosys and ABC from the compiler's own gates (`rom_logic=shared`).

Both texts are the emitted SystemVerilog of the bank's module, and go through the same script. The
network is compared with the table at every address; `--prove` also has Yosys prove the two emitted
modules equal (`miter`, `sat`). Density is that of the cells alone: bits over gate equivalents times
the area of a NAND2, which `--nand2` gives; no placement, no wires. Prints Markdown.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from bank_sample import all_banks, banks_by_kind, drawn
from gate_area import cell_areas, gate_equivalents
from synthesis import ABC, CELLS, yosys

from intaglio.backend.circt import to_verilog
from intaglio.backend.hw.chip.layout import layout_of
from intaglio.backend.hw.units.matrix.plan import tile_images
from intaglio.backend.hw.units.matrix.rom_bank import bank_name, bank_width, bank_words, table_body
from intaglio.backend.hw.units.matrix.rom_network import network_body
from intaglio.backend.hw.wires.signal import Design
from intaglio.backend.hw.wires.widths import log2
from intaglio.backend.images.logic_rom import Network, plain_network, shared_network
from intaglio.backend.images.read import Images
from intaglio.backend.program.program import load_program

HERE = Path(__file__).parent
MODEL = HERE.parent / "examples" / "bitnet" / "model" / "model.onnx"
NAND2 = 0.0583
"""Area of a NAND2 in um2: NAND2x1 of ASAP7, a predictive 7 nm library (OpenSTA's copy, BSD-3)."""
TO_BEAT = 0.242
"""Gate equivalents a weight of a 256 x 256 bank with half its weights zero that Yosys alone reached
with another library of ours, in which an inverter is dearer and three-input gates are cheaper."""
BATCH = 48
"""Banks that one Yosys process takes."""

_SYNTH = """\
read_verilog -sv {folder}/{name}.sv
synth -noabc
abc -liberty {cells} -script {abc}
opt_clean
tee -q -o {folder}/{name}.json stat -liberty {cells} -json
"""
_PROVE = """\
read_verilog -sv {folder}/{name}.sv
proc
miter -equiv -flatten -make_outputs {one} {other} miter
hierarchy -top miter
memory
opt_clean
techmap
opt -fast
sat -verify -prove trigger 0 miter
"""


class Bank(NamedTuple):
    """A bank: its module's name, its words, bits of a word, address bits."""

    name: str
    words: Sequence[int]
    bits: int
    inputs: int

    @property
    def ones(self) -> int:
        """One bits."""
        return sum(word.bit_count() for word in self.words)

    @property
    def size(self) -> int:
        """Bits of the words that are used."""
        return len(self.words) * self.bits


@dataclass
class Figures:
    """Of banks together, in gate equivalents and gates.

    Attributes:
        size: bits.
        ones: of them one.
        before: without sharing.
        table: from the truth table.
        shared: from the compiler's gates.
        gates: cells of the last.
        banks: how many.
    """

    size: int = 0
    ones: int = 0
    before: float = 0
    table: float = 0
    shared: float = 0
    gates: int = 0
    banks: int = 0

    def __add__(self, other: Figures) -> Figures:
        mine, others = vars(self), vars(other)
        return Figures(**{name: mine[name] + others[name] for name in mine})

    def row(self, name: str, nand2: float) -> str:
        """A row of the table."""
        weights = self.size / 2

        def density(area: float) -> str:
            return f"{self.size / 2**23 / (area * nand2 / 1e6):.1f}"

        cells = [
            name,
            f"{self.banks}",
            f"{self.size:,}",
            f"{1 - self.ones / self.size:.1%}",
            *(f"{one:,.0f}" for one in (self.before, self.table, self.shared)),
            f"{self.gates:,}",
            *(f"{one / weights:.3f}" for one in (self.before, self.table, self.shared)),
            f"{self.shared / self.size:.4f}",
            f"{self.shared / self.table - 1:+.1%}",
            *(density(one) for one in (self.before, self.table, self.shared)),
        ]
        return f"| {' | '.join(cells)} |"


HEAD = (
    "| bank | banks | bits | zero bits | GE before | GE table | GE shared | gates shared "
    "| GE/weight before | table | shared | GE/bit shared | shared to table "
    "| MiB/mm2 before | table | shared |\n| --- |" + " --: |" * 15
)


def verilog(banks: Iterable[tuple[Bank, Network]]) -> str:
    """The modules of banks in both forms, as the compiler emits them."""
    design = Design()
    for bank, network in banks:
        for form in ("table", "shared"):
            m = design.module(f"{bank.name}_{form}")
            address = m.input("address", bank.inputs)
            if form == "table":
                word = table_body(m, address, bank.words, bank.bits)
            else:
                word = network_body(m, address, network)
            m.output("word", word, bank.bits)
    return to_verilog(design.text())


def measure(banks: Sequence[Bank], folder: Path, prove: bool = False) -> dict[str, Figures]:
    """Synthesises banks, by their names.

    Raises:
        SystemExit: a network differs from its table.
    """
    areas = cell_areas(CELLS.read_text())
    found: dict[str, Figures] = {}
    for first in range(0, len(banks), BATCH):
        batch = banks[first : first + BATCH]
        begun = time.perf_counter()
        networks = [shared_network(bank.words, bank.bits, bank.inputs) for bank in batch]
        for bank, network in zip(batch, networks, strict=True):
            missing = (1 << bank.inputs) - len(bank.words)
            if network.table() != [*bank.words, *[0] * missing]:
                sys.exit(f"{bank.name}: the network differs from the table")
        built = time.perf_counter()
        name = f"batch{first}"
        (folder / f"{name}.sv").write_text(verilog(zip(batch, networks, strict=True)))
        yosys(_SYNTH.format(folder=folder, name=name, cells=CELLS, abc=ABC), folder, name)
        stat = json.loads((folder / f"{name}.json").read_text())["modules"]
        for bank in batch:
            table, shared = (stat[f"\\{bank.name}_{form}"] for form in ("table", "shared"))
            plain = plain_network(bank.words, bank.bits, bank.inputs)
            found[bank.name] = Figures(
                bank.size,
                bank.ones,
                gate_equivalents(plain, areas),
                table["area"] / areas["NAND2"],
                shared["area"] / areas["NAND2"],
                shared["num_cells"],
                1,
            )
        done = time.perf_counter()
        if prove:
            for bank in batch:
                names = {"one": f"{bank.name}_table", "other": f"{bank.name}_shared"}
                script = _PROVE.format(folder=folder, name=name, **names)
                yosys(script, folder, f"{bank.name}_proof")
        print(
            f"{first + len(batch)} of {len(banks)}: networks {built - begun:.1f} s, synthesis "
            f"{done - built:.1f} s, proofs {time.perf_counter() - done:.1f} s",
            file=sys.stderr,
            flush=True,
        )
    return found


def ternary(rows: int, columns: int, zeros: float, seed: int) -> Bank:
    """A bank of random weights with about a share of zeros, in the code 00, 01, 10."""
    rng = np.random.default_rng(seed)
    codes = rng.choice(3, (rows, columns), p=[zeros, (1 - zeros) / 2, (1 - zeros) / 2])
    shifts = [2 * column for column in range(columns)]
    words = [
        sum(code << shift for code, shift in zip(row, shifts, strict=True))
        for row in codes.tolist()
    ]
    name = f"random_{rows}x{columns}_{round(100 * zeros)}"
    return Bank(name, words, 2 * columns, max(1, (rows - 1).bit_length()))


def report(title: str, rows: Iterable[str]) -> None:
    """Prints a table."""
    print(f"\n{title}\n\n{HEAD}\n" + "\n".join(rows), flush=True)


def reference(folder: Path, seed: int, nand2: float, prove: bool) -> None:
    """The cases that other figures exist for."""
    banks = [
        ternary(256, 256, 0.5, seed),
        ternary(1024, 64, 0.4, seed),
        ternary(1024, 64, 0.3, seed),
    ]
    found = measure(banks, folder, prove)
    names = (
        "256 words x 256 weights, half of them zero",
        "1,024 words x 128 bits, 70 % zero bits",
        "1,024 words x 128 bits, 65 % zero bits",
    )
    rows = [found[b.name].row(name, nand2) for b, name in zip(banks, names, strict=True)]
    report(f"Random banks, seed {seed}.", rows)
    first = found[banks[0].name]
    shared, table = (2 * area / first.size for area in (first.shared, first.table))
    verdict = "beaten" if shared < TO_BEAT else "NOT beaten"
    print(
        f"\nThe first against {TO_BEAT} GE a weight: {shared:.3f}, {verdict}. (The table alone: "
        f"{table:.3f} with this library.)"
    )
    if prove:
        print(f"Yosys proved {len(banks)} of {len(banks)} shared forms equal to their tables.")


def heights(folder: Path, seed: int, nand2: float, zeros: float, most: int) -> None:
    """Density against the height of a bank of 128 bits."""
    sizes = [128 << step for step in range(6) if 128 << step <= most]
    rows = []
    for words in sizes:
        bank = ternary(words, 64, zeros, seed)
        rows.append(measure([bank], folder)[bank.name].row(f"{words:,} words", nand2))
    report(f"Banks of 128 bits, {zeros:.0%} of the weights zero, seed {seed}.", rows)


def banks_of(
    out: Path, pick: Sequence[tuple[int, int, int]] | None = None
) -> Iterator[tuple[tuple[int, int, int], Bank]]:
    """The banks of a compiled folder that hold anything but zeros, by (tile, L-Unit, bank)."""
    program = load_program(out)
    images, config = Images(program, out), layout_of(program).matrix
    tiles = range(program.machine.tiles) if pick is None else sorted({tile for tile, _, _ in pick})
    for tile in tiles:
        for image in tile_images(program, images, config, tile):
            for number in all_banks(config, tile):
                place = tile, image.l_unit, number
                if pick is not None and place not in pick:
                    continue
                words = bank_words(config, tile, number, image.codes)
                if any(words):
                    inputs = max(1, log2(config.machine.bank_words))
                    width = bank_width(config, number)
                    yield place, Bank(bank_name(*place), words, width, inputs)


def compiled(model: Path, target: str, out: Path) -> Path:
    """A model compiled to a program, if it is not there."""
    if not (out / "program.json").is_file():
        command = [sys.executable, "-m", "intaglio.runtime.cli", "compile", str(model)]
        command += ["--target", target, "--emit", "program", "-o", str(out)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return out


def small(folder: Path, model: Path, target: str, nand2: float, every: int) -> None:
    """All banks of a small model."""
    out = compiled(model, target, folder / "small")
    banks = [bank for _, bank in banks_of(out)][::every]
    found = measure(banks, folder)
    total = sum(found.values(), Figures())
    ordered = sorted(found, key=lambda name: found[name].shared / found[name].size)
    which = [ordered[0], ordered[len(ordered) // 2], ordered[-1]]
    labels = ("least", "median", "most")
    rows = [
        found[name].row(f"{label} GE/bit: {name}", nand2)
        for label, name in zip(labels, which, strict=True)
    ]
    of = "all" if every == 1 else f"one in {every} of the"
    report(
        f"{model.parent.parent.name} on {target}, {of} banks.", [*rows, total.row("**all**", nand2)]
    )
    (folder / "small.json").write_text(
        json.dumps({name: vars(one) for name, one in found.items()}, indent=1)
    )


def full(
    folder: Path, given: Path | None, nand2: float, seed: int, sample: int, prove: bool
) -> None:
    """A random sample of the banks of BitNet-2B."""
    from decoder_model import BITNET_2B, write_decoder

    out = given
    if out is None:
        model = folder / "bitnet_2b" / "model.onnx"
        if not model.is_file():
            write_decoder(model.parent, BITNET_2B)
        out = compiled(model, "tom", folder / "full")
    program = load_program(out)
    kinds = banks_by_kind(program)
    chosen = drawn(kinds, sample, seed)
    picked = [place for places in chosen.values() for place in places]
    banks = dict(banks_of(out, picked))
    found = measure([bank for _, bank in sorted(banks.items())], folder, prove)
    rows = []
    for kind, places in chosen.items():
        figures = {place: found[banks[place].name] for place in places if place in banks}
        rows += [one.row(bank_name(*place), nand2) for place, one in figures.items()]
        total = sum(figures.values(), Figures())
        rows.append(total.row(f"**{kind}: {len(figures)} of {len(kinds[kind]):,}**", nand2))
    report(f"Banks of a BitNet-2B shape on {program.machine.name}, drawn with seed {seed}.", rows)
    if prove:
        print(f"Yosys proved {len(banks)} of {len(banks)} shared forms equal to their tables.")


def main() -> None:
    """See the top of the file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--part", choices=("reference", "height", "small", "full", "all"))
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--nand2", type=float, default=NAND2, help="um2 of a NAND2 (ASAP7's)")
    parser.add_argument(
        "--prove", action="store_true", help="prove the reference banks and the sample of `full`"
    )
    parser.add_argument("--zeros", type=float, default=0.4, help="zero weights of the heights")
    parser.add_argument("--most", type=int, default=2048, help="greatest height")
    parser.add_argument("--model", type=Path, default=MODEL, help="of the part `small`")
    parser.add_argument("--target", default="tom-mini", help="of the part `small`")
    parser.add_argument("--every", type=int, default=1, help="one in so many banks of `small`")
    parser.add_argument("--out", type=Path, help="BitNet-2B on tom, compiled")
    parser.add_argument(
        "--sample", type=int, default=2, help="banks of the part `full`, of each kind"
    )
    parser.add_argument("--keep", type=Path, help="folder for scripts, logs and netlists")
    given = parser.parse_args()
    part = given.part or "all"
    with tempfile.TemporaryDirectory() as temporary:
        folder = (given.keep or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        if part in ("reference", "all"):
            reference(folder, given.seed, given.nand2, given.prove)
        if part in ("height", "all"):
            heights(folder, given.seed, given.nand2, given.zeros, given.most)
        if part in ("small", "all"):
            small(folder, given.model, given.target, given.nand2, given.every)
        if part in ("full", "all"):
            full(folder, given.out, given.nand2, given.seed, given.sample, given.prove)


if __name__ == "__main__":
    main()
