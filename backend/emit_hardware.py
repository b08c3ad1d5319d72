"""The hardware of a compiled program as files, in the folder `hw` of the output.

- `chip.mlir`: hw, comb and seq IR, as CIRCT parses it; what the `rtl` engine runs.
- `chip.sv`, `memories.sv`: SystemVerilog. The second holds all modules of ROM and SRAM: `rom_*` and
  `sram_*` are the wrappers that a macro may replace, `mem_*` the register arrays inside them.
- `waivers.vlt`: the one file of lint waivers, each with its reason; with it `verilator --lint-only
  -Wall` is silent.
- `images/roms.bin`, `images/roms.json`: contents of all ROMs, and which bytes belong to which: for
  each memory's path its offset, depth, bits of a word and bytes of a word (little-endian).
- `filelist.f`: the sources, a line each, as simulators and linters take them.
- `external_banks.csv`: where ROM is logic and the chip is large, the modules of banks that are left
  out of `chip.sv`, with the widths of their ports.
- `testbench.sv`, `hex/*.hex`, and Verilator's options for them in `verilator.f`: for other
  simulators, where the contents are small (`backend.testbench`).

Generated files name what they are made from by hash.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from intaglio.backend import circt
from intaglio.backend.hw.chip import sequencer
from intaglio.backend.hw.chip.chip import TOP, chip_design
from intaglio.backend.hw.chip.contents import Words, descriptor_roms, logic_rom, rom_words
from intaglio.backend.hw.chip.layout import Layout, layout_of
from intaglio.backend.hw.units.attention.kv import word_bytes
from intaglio.backend.output.hardware_files import (
    EXTERNAL_BANKS,
    FILE_LIST,
    HEX,
    IR,
    ROM_INDEX,
    ROMS,
    TESTBENCH,
    VERILATOR_LIST,
    VERILOG,
    WAIVERS,
)
from intaglio.backend.output.output import sha256_of, write_json
from intaglio.backend.output.whole import naming, write_text
from intaglio.backend.stages import HARDWARE_STAGES
from intaglio.backend.testbench import Expected, bench_text, file_list, verilator_list
from intaglio.dialects import semantics

if TYPE_CHECKING:
    from intaglio.backend.hw.wires.signal import ModuleBuilder
    from intaglio.backend.images.read import Images
    from intaglio.backend.program.program import Program

HEX_LIMIT = 32 << 20
"""Bytes of ROM contents up to which hex files and a testbench are written."""
LOGIC_LIMIT = 8 << 20
"""Bytes of ROM that is logic up to which its truth tables are written."""


def emit_hardware(
    program: Program,
    images: Images,
    folder: Path,
    stage: str = HARDWARE_STAGES[-1],
    progress: Callable[[str], None] = lambda message: None,
    *,
    expected: Callable[[], Sequence[Expected]] = tuple,
    banks: Collection[tuple[int, int, int]] | None = None,
    shared: Collection[tuple[int, int, int]] | None = None,
) -> list[str]:
    """Writes the hardware of a compiled program into its output folder.

    Args:
        program: of the folder.
        images: its tensors.
        folder: the output folder; holds program.json.
        stage: `hw` writes the IR, `sv` all there is.
        progress: called with a line for each step.
        expected: what the chip answers to the test bench's first token; asked where a test bench
            is written.
        banks: where ROM is logic, the banks whose logic is written, as (tile, L-Unit, bank); the
            others are external modules. None: all of a small chip, none of a large one.
        shared: of these, the banks that are written as the compiler's own gates
            (`backend.images.logic_rom`), not as truth tables. None: as the machine's `rom_logic`
            says.

    Returns:
        The files, relative to the folder.

    Raises:
        UserError: the program needs what the hardware does not have; nothing is written then.
    """
    circt.check_installed()
    layout = layout_of(program)
    # Every descriptor is there before anything is written.
    _ = layout.encoded
    progress("building the hardware")
    # Of a chip of full size the banks are instances of external modules.
    if banks is None and logic_size(layout) > LOGIC_LIMIT:
        banks = ()
    design = chip_design(layout, logic_rom(layout, images, banks, shared))
    header = _header(folder)
    external = design.external_modules
    if external:
        header += _external_comment(len(external))
    text = header + design.text()
    progress("verifying the hardware")
    circt.verify(text)
    written = {IR: text}
    if stage != HARDWARE_STAGES[0]:
        progress("writing SystemVerilog")
        written |= dict(zip(VERILOG, _split(circt.to_verilog(text), header), strict=True))
        written[WAIVERS] = header + lint_waivers()
    if external:
        written[EXTERNAL_BANKS] = _external_list(external)
    for name, content in written.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, content)
    names = list(written)
    if stage != HARDWARE_STAGES[0]:
        progress("writing ROM contents")
        hexes = _write_roms(layout, images, folder)
        names += [ROMS, ROM_INDEX, *hexes.values()]
        write_text(folder / FILE_LIST, file_list())
        names.append(FILE_LIST)
        if hexes and not external:
            progress("writing the test bench")
            ports = {port.name: (port.output, port.width) for port in design.modules[TOP].ports}
            adapters = layout.adapters
            sites = range(0) if adapters is None else adapters.places.site_addresses
            bench = bench_text(ports, layout.queues, hexes, expected(), sites)
            write_text(folder / TESTBENCH, header + bench)
            write_text(folder / VERILATOR_LIST, verilator_list())
            names += [TESTBENCH, VERILATOR_LIST]
    return names


def _header(folder: Path) -> str:
    """Comment lines: what made a file, and from what."""
    sources = {name: folder / name for name in ("program.json",)}
    lines = [f"Made by intaglio {version('intaglio')} with {circt.version()} from"]
    lines += [f"  {n} sha256 {sha256_of(path)}" for n, path in sources.items() if path.exists()]
    return "".join(f"// {line}\n" for line in lines)


def _external_comment(count: int) -> str:
    lines = (
        f"{count:,} modules of ROM banks (tileT_l_unitU_bankB) and of their scales are external:",
        f"instances without a body, which {Path(EXTERNAL_BANKS).name} lists.",
        "docs/synthesis.md says how their logic is written.",
    )
    return "".join(f"// {line}\n" for line in lines)


def _external_list(modules: Sequence[ModuleBuilder]) -> str:
    """Names of external modules with the widths of their two ports, a line each."""
    lines = ["module,address_bits,word_bits"]
    for one in modules:
        widths = {port.name: port.width for port in one.ports}
        lines.append(f"{one.name},{widths['address']},{widths['word']}")
    return "\n".join(lines) + "\n"


def lint_waivers() -> str:
    """What Verilator says of the hardware, and why it may: `verilator --lint-only -Wall`."""
    return (Path(__file__).parent / "hw" / "waivers.vlt").read_text()


_MODULE = re.compile(r"^(?://[^\n]*\n)*module (\w+)\(?.*?^endmodule\n", re.MULTILINE | re.DOTALL)
_MEMORY = re.compile(r"(?:mem|rom|sram)_\d+x\d+")


def _split(verilog: str, header: str) -> tuple[str, str]:
    """Logic and memories."""
    parts: tuple[list[str], list[str]] = ([], [])
    place = 0
    for match in _MODULE.finditer(verilog):
        between = verilog[place : match.start()].strip()
        if between and not between.startswith("//"):
            parts[0].append(between + "\n")
        parts[bool(_MEMORY.match(match[1]))].append(match[0])
        place = match.end()
    rest = verilog[place:].strip()
    if rest:
        parts[0].append(rest + "\n")
    logic, memories = (header + "\n" + "\n".join(one) for one in parts)
    return logic, memories


def _write_roms(layout: Layout, images: Images, folder: Path) -> dict[str, str]:
    """The contents of all ROMs as a stream, in hex too where they are small.

    Returns:
        The hex file of each memory, relative to the folder.
    """
    index: dict[str, dict[str, int]] = {}
    path = folder / ROMS
    path.parent.mkdir(parents=True, exist_ok=True)
    widths = rom_widths(layout)
    small = _size(layout) <= HEX_LIMIT
    hexes: dict[str, str] = {}
    digest = hashlib.sha256()
    offset = 0
    with naming(path), path.open("wb") as file:
        for name, words in rom_words(layout, images):
            size = words.shape[1] if words.ndim == 2 else words.itemsize
            data = word_bytes(words, size)
            file.write(np.ascontiguousarray(data).data)
            digest.update(np.ascontiguousarray(data).data)
            kind = name if name in widths else name.rsplit("/", 1)[1]
            index[name] = {
                "offset": offset,
                "depth": len(words),
                "bits": widths[kind],
                "bytes": size,
            }
            offset += data.size
            if small:
                hexes[name] = _write_hex(words, widths[kind], folder, name)
    content = {"sha256": digest.hexdigest(), "memories": index}
    write_json(folder / ROM_INDEX, content)
    return hexes


def rom_widths(layout: Layout) -> dict[str, int]:
    """Bits of a word of every ROM; those of L-Units by their last name."""
    queues = {
        path: sequencer.descriptor(queue, layout.queues, layout.fields[queue]).width
        for queue in layout.queues
        for path in descriptor_roms(layout, queue)
    }
    matrix = layout.matrix
    return {
        **queues,
        "constants": 32 * layout.lanes,
        "codes": matrix.word_bits,
        "scales": matrix.scale_bits,
    }


def _size(layout: Layout) -> int:
    """Bytes of all ROM contents, about."""
    machine, matrix = layout.program.machine, layout.matrix
    if matrix.logic:
        return 4 * layout.constant_rows * layout.lanes
    bits = matrix.code_words * matrix.word_bits + matrix.scale_words * matrix.scale_bits
    return machine.tiles * machine.l_units * bits // 8 + 4 * layout.constant_rows * layout.lanes


def logic_size(layout: Layout) -> int:
    """Bytes of ROM that is logic; 0 where it is memory."""
    matrix = layout.matrix
    words = sum(row.words for rows in matrix.banks for row in rows if row is not None)
    return words * layout.program.machine.l_units * matrix.word_bits // 8 if matrix.logic else 0


def _hex_name(name: str) -> str:
    return f"{HEX}/{name.replace('/', '.')}.hex"


def _write_hex(words: Words, bits: int, folder: Path, name: str) -> str:
    """A `$readmemh` file."""
    file = folder / _hex_name(name)
    file.parent.mkdir(parents=True, exist_ok=True)
    digits = -(-bits // 4)
    if words.ndim == 2:
        lines = [word[::-1].tobytes().hex()[-digits:] for word in words]
    else:
        lines = [f"{word:0{digits}x}" for word in words.tolist()]
    write_text(file, "\n".join(lines) + "\n")
    return _hex_name(name)


def hardware_text(program: Program, images: Images | None = None) -> str:
    """The IR of a program's chip; `images` are needed where its ROM is logic."""
    layout = layout_of(program)
    return chip_design(layout, logic_rom(layout, images) if images is not None else None).text()


def source_files() -> Iterator[Path]:
    """The Python files that hardware is made by, for cache keys."""
    here = Path(__file__).parent
    yield from sorted((here / "hw").rglob("*.py"))
    yield from (here / "emit_hardware.py", here / "circt.py", here / "images" / "logic_rom.py")
    yield from sorted(Path(semantics.__file__).parent.rglob("*.py"))
