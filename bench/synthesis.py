"""The emitted chip in Yosys: is it sound, and how large is it, module by module.

    pip install pyosys
    python bench/synthesis.py                    the demo model on roma-mini
    python bench/synthesis.py --checks           only the checks
    python bench/synthesis.py MODEL --target T --set NAME=VALUE --jobs 2 --keep FOLDER

Checks, of the whole chip flattened: nothing is driven twice or not at all, no combinational loop,
no latch, no asynchronous reset, one clock for all registers and memories. Then each module is
mapped to the gates of bench/cells.lib, whose unit is a NAND2; ROMs and SRAMs are left out and
listed with their bits, except for SRAMs too small for a macro, which become flip-flops. Prints
Markdown.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from intaglio.backend.compile import compile_model
from intaglio.backend.emit_hardware import VERILOG, emit_hardware
from intaglio.backend.hw.chip.chip import TOP
from intaglio.backend.images.read import Images
from intaglio.backend.program.program import load_program
from intaglio.backend.stages import Options

HERE = Path(__file__).parent
CELLS = HERE / "cells.lib"
DEMO = HERE.parent / "examples" / "demo" / "model" / "model.onnx"
SMALL_SRAM = 4096
"""Bits below which an SRAM is built of flip-flops: a macro would be mostly decoders."""
ABC = "+strash;dc2;dc2;dch,-f;amap,-m"
"""Yosys' own script begins with `&fraig -x`, which takes minutes on tables and gains nothing."""
FLIP_FLOP = "DFF"

# In a process of its own: pyosys loads with RTLD_GLOBAL, which other native libraries do not like.
_RUN = (
    "import sys; from pyosys import libyosys; libyosys.Design().run_pass('script ' + sys.argv[1])"
)

_READ = """\
read_verilog -sv {files}
hierarchy -check -top {top}
proc
opt_clean
check -assert
write_rtlil {folder}/chip.il
tee -q -o {folder}/structure.json stat -json
"""
_CHECK = """\
select -assert-none t:$*latch* t:$sr
select -assert-none t:$adff* t:$aldff* t:$dffsr*
flatten
opt_clean
check -assert
select -assert-count 1 {top}/i:clk
select -assert-any t:$dff
select -assert-none t:$dff t:$memwr* %u w:clk %co1:+[CLK] %d
select -assert-none t:$dff t:$memwr* %u r:CLK_POLARITY=1'1 %d
"""
_MAP = """\
read_rtlil {folder}/chip.il
blackbox {others}
hierarchy -top {module}
synth -top {module} {flatten} -noabc
dfflibmap -liberty {cells}
abc -liberty {cells} -script {abc}
opt_clean
tee -q -o {folder}/{module}.json stat -liberty {cells} -json
"""

Modules = dict[str, dict[str, Any]]


class YosysError(Exception):
    """Yosys refused; the message is what it said."""


@dataclass(frozen=True)
class Size:
    """Of one instance of a module, without the modules in it."""

    cells: int
    flip_flops: int
    area: float


def yosys(script: str, folder: Path, name: str) -> None:
    """Runs a script in another process.

    Raises:
        YosysError: a command failed.
    """
    path = folder / f"{name}.ys"
    path.write_text(script)
    command = [sys.executable, "-c", _RUN, str(path)]
    with (folder / f"{name}.log").open("w") as log:
        done = subprocess.run(command, stdout=log, stderr=subprocess.PIPE, text=True, cwd=folder)
    if done.returncode:
        lines = (folder / f"{name}.log").read_text().splitlines()
        first = next(
            (i for i, line in enumerate(lines) if line.startswith("Warning: ")), len(lines)
        )
        said = lines[first : first + 8]
        said += done.stderr.strip().splitlines()[:8] or [f"Yosys died of {done.returncode}"]
        raise YosysError("\n".join([f"{name}:", *said]))


def read(files: Sequence[Path], folder: Path, top: str = TOP, check: bool = True) -> Modules:
    """Reads a design and checks it; the structure as Yosys' `stat` says it.

    Raises:
        YosysError: a check failed.
    """
    script = _READ + (_CHECK if check else "")
    listed = " ".join(map(str, files))
    yosys(script.format(files=listed, folder=folder, top=top), folder, "check")
    modules = json.loads((folder / "structure.json").read_text())["modules"]
    return {name.removeprefix("\\"): content for name, content in modules.items()}


def instances(modules: Modules, top: str = TOP) -> Counter[str]:
    """How often each module is in the chip."""
    counts: Counter[str] = Counter({top: 1})
    pending = [top]
    while pending:
        name = pending.pop()
        for kind, number in modules[name]["num_cells_by_type"].items():
            if kind in modules:
                pending += [kind] * number
                counts[kind] += number
    return counts


_MEMORY = re.compile(r"(rom|sram)_(\d+)x(\d+)(?:_(\w+))?")


def bits(memory: re.Match[str]) -> int:
    """Of a memory module."""
    return int(memory[2]) * int(memory[3])


def mapped(module: str, modules: Modules, folder: Path) -> Size:
    """Maps one module to gates, the modules in it left out, a small memory whole."""
    memory = _MEMORY.fullmatch(module) is not None
    inner = set(modules[module]["num_cells_by_type"]) if memory else set()
    others = [name for name in modules if name != module and name not in inner]
    script = _MAP.format(
        folder=folder,
        others=" ".join(others),
        module=module,
        cells=CELLS,
        abc=ABC,
        flatten="-flatten" if memory else "",
    )
    start = time.perf_counter()
    yosys(script, folder, module)
    content = json.loads((folder / f"{module}.json").read_text())["modules"][f"\\{module}"]
    found = content["num_cells_by_type"]
    gates = {k: n for k, n in found.items() if k not in modules and k != "$scopeinfo"}
    left = [kind for kind in gates if kind.startswith("$")]
    if left:
        raise YosysError(f"{module}: not mapped: {', '.join(left)}")
    seconds = time.perf_counter() - start
    print(f"{module}: {content['area']:,.0f} in {seconds:.0f} s", file=sys.stderr, flush=True)
    return Size(sum(gates.values()), gates.get(FLIP_FLOP, 0), content["area"])


def logic(modules: Modules) -> list[str]:
    """The modules that become gates, those with most in them first."""
    names = []
    for name in modules:
        memory = _MEMORY.fullmatch(name)
        small = memory is not None and memory[1] == "sram" and bits(memory) < SMALL_SRAM
        if small or (memory is None and not name.startswith("mem_")):
            names.append(name)
    return sorted(names, key=lambda name: -modules[name]["num_cells"])


def table(modules: Modules, sizes: dict[str, Size]) -> str:
    """Markdown: gates by module, then memories."""
    counts = instances(modules)
    total = sum(size.area * counts[name] for name, size in sizes.items())
    lines = [
        "| module | instances | cells | flip-flops | NAND2 each | NAND2 in all | share |",
        "| --- | --: | --: | --: | --: | --: | --: |",
    ]
    ordered = sorted(sizes.items(), key=lambda item: -item[1].area * counts[item[0]])
    for name, size in ordered:
        whole = size.area * counts[name]
        lines.append(
            f"| {name} | {counts[name]} | {size.cells:,} | {size.flip_flops:,} "
            f"| {size.area:,.0f} | {whole:,.0f} | {whole / total:.1%} |"
        )
    cells, flip_flops = (
        sum(getattr(size, key) * counts[name] for name, size in sizes.items())
        for key in ("cells", "flip_flops")
    )
    lines.append(f"| **chip** | | {cells:,} | {flip_flops:,} | | **{total:,.0f}** | |")
    lines += ["", "| memory | instances | words | bits a word | ports | Kibit in all |"]
    lines.append("| --- | --: | --: | --: | --- | --: |")
    sums: Counter[str] = Counter()
    found = [m for name in modules if (m := _MEMORY.fullmatch(name)) and name not in sizes]
    for memory in sorted(found, key=lambda m: (m[1], -bits(m) * counts[m[0]])):
        count = counts[memory[0]]
        sums[memory[1]] += bits(memory) * count
        lines.append(
            f"| {memory[1].upper()} | {count} | {int(memory[2]):,} | {memory[3]} "
            f"| {(memory[4] or '1r').replace('_', ' ')} | {bits(memory) * count / 1024:,.1f} |"
        )
    whole = ", ".join(f"{kind.upper()} {number / 1024:,.0f} Kibit" for kind, number in sums.items())
    return "\n".join([*lines, "", f"Together: {whole}."])


def main() -> None:
    """See the top of the file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", nargs="?", type=Path, default=DEMO)
    parser.add_argument("--target", default="roma-mini")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--jobs", type=int, default=2, help="processes (2)")
    parser.add_argument("--checks", action="store_true", help="only the checks")
    parser.add_argument("--keep", type=Path, help="folder for scripts, logs and netlists")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (given.keep or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        out = folder / "out"
        compile_model(given.model, out, Options(given.target, tuple(given.set)))
        program = load_program(out)
        emit_hardware(program, Images(program, out), out)
        try:
            modules = read([out / name for name in VERILOG], folder)
            print("The checks found nothing.\n", flush=True)
            if given.checks:
                return
            names = logic(modules)
            with ThreadPoolExecutor(given.jobs) as pool:
                sizes = list(pool.map(lambda name: mapped(name, modules, folder), names))
        except YosysError as error:
            sys.exit(str(error))
        print(table(modules, dict(zip(names, sizes, strict=True))))


if __name__ == "__main__":
    main()
