"""Proofs with Yosys that a fault of hardware text changes nothing that its module does.

The module with the fault and the one without get the same inputs and any state, the same in both:
are outputs and next states the same? Memories and tables stand outside, their outputs are inputs;
so what is written and where is compared as well. What is known of the chip is used: bits of a
descriptor that are the same in all words of its program are constants. A module inside a unit is
compared alone first, then with all of its unit around it. No proof says nothing: states that never
come up may differ, and large units take longer than Yosys is given.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from intaglio.backend import circt
from intaglio.backend.hw.chip.chip import TOP
from intaglio.backend.hw.chip.contents import descriptor_wires
from intaglio.backend.hw.chip.layout import layout_of
from intaglio.backend.images.read import Images
from intaglio.backend.program.program import Program

Constants = Mapping[str, tuple[int, int]]
"""For some inputs, which bits never change, and their values."""

_HEADER = re.compile(r"^  hw\.module @((?:rom|sram|table)_\w+)\((.*)\) (?:attributes .*)?\{$")
_MODULE = re.compile(r"^  hw\.module @(\w+)\(.*?^  \}$", re.MULTILINE | re.DOTALL)
_INSTANCE = re.compile(
    r"^ *(?:(%.*?) = )?hw\.instance \"\w+\" @(\w+)\((.*?)\) -> \((.*?)\)", re.MULTILINE
)
_GIVEN = re.compile(r"(\w+): (%[\w.]+):")
_PORT = re.compile(r"(in|out) %?(\w+): (!seq\.clock|i(\d+))")
# In a process of its own: pyosys loads with RTLD_GLOBAL, which other native libraries do not like.
_RUN = (
    "import sys; from pyosys import libyosys; libyosys.Design().run_pass('script ' + sys.argv[1])"
)
_SCRIPT = """\
read_verilog -sv {name}.sv
read_verilog stubs.v
hierarchy -top {top}
proc -norom
flatten
opt -full
opt_dff -simple-dffe
opt -full
expose -evert -dff
opt_dff
dffunmap
splitnets
expose -evert-dff -dff
opt_clean
rename {top} {name}
design -stash {name}
"""
_COMPARE = """\
design -copy-from gold -as gold gold
design -copy-from gate -as gate gate
miter -equiv -flatten gold gate miter
hierarchy -top miter
opt -full
opt_merge -share_all
opt -full
sat -prove trigger 0 -set-def-inputs -timeout {timeout} miter
"""
_PROVED = "SAT proof finished - no model found: SUCCESS!"


def only(text: str, module: str) -> str:
    """The text with nothing but a module and those in it."""
    parts = {m[1]: m[0] for m in _MODULE.finditer(text)}
    wanted, found = [module], dict[str, str]()
    while wanted:
        name = wanted.pop()
        if name not in found:
            found[name] = parts[name]
            wanted += re.findall(r"hw\.instance \"\w+\" @(\w+)\(", parts[name])
    kept = [part for name, part in parts.items() if name in found]
    return "\n".join(["builtin.module {", *kept, "}", ""])


def outside(text: str) -> tuple[str, str]:
    """Hardware text whose memories are external modules, and their Verilog stubs."""
    lines: list[str] = []
    stubs: list[str] = []
    inside = False
    for line in text.split("\n"):
        if match := _HEADER.match(line):
            inside = True
            name, ports = match.groups()
            lines.append(f"  hw.module.extern @{name}({ports})")
            stubs.append(_stub(name, ports))
        if not inside:
            lines.append(line)
        inside = inside and line != "  }"
    return "\n".join(lines), "".join(stubs)


def _signed(value: int, width: int) -> int:
    word = value & ((1 << width) - 1)
    return word - (1 << width) if word >> (width - 1) else word


def _stub(name: str, ports: str) -> str:
    declared = ", ".join(
        f"{'input' if m[1] == 'in' else 'output'} [{int(m[4] or 1) - 1}:0] {m[2]}"
        for m in _PORT.finditer(ports)
    )
    return f"(* blackbox *) module {name}({declared}); endmodule\n"


def constant_inputs(program: Program, folder: Path, text: str) -> Mapping[str, Constants]:
    """For modules of the chip the bits of their inputs that no descriptor changes.

    Args:
        program: that the chip runs.
        folder: with its images.
        text: of the chip.

    Returns:
        By module, for some of its inputs which bits, and their values.
    """
    layout, images = layout_of(program), Images(program, folder)
    fields: dict[tuple[str, str], tuple[int, int]] = {}
    for queue in layout.queues:
        every = descriptor_wires(layout, queue, images)
        for name, width in layout.fields[queue].items():
            numbers = [one.get(name, 0) for one in every]
            moving = 0
            for number in numbers:
                moving |= number ^ numbers[0]
            if numbers:
                fields[queue, name] = ((1 << width) - 1) & ~moving, numbers[0]
    start = text.index(f"hw.module @{TOP}(")
    chip = text[start : text.index("\n  }", start)]
    wires: dict[str, tuple[str, str]] = {}
    found: dict[str, dict[str, tuple[int, int]]] = {}
    instances = [m.groups() for m in _INSTANCE.finditer(chip)]
    for results, module, _, outputs in instances:
        if module.startswith("sequencer_") and results:
            names = [one.split(":")[0].strip() for one in outputs.split(", ")]
            for wire, name in zip(results.split(", "), names, strict=True):
                if name.startswith("field_"):
                    key = module.removeprefix("sequencer_"), name.removeprefix("field_")
                    wires[wire] = key
    for _, module, inputs, _ in instances:
        for port, wire in _GIVEN.findall(inputs):
            if wire in wires and wires[wire] in fields:
                found.setdefault(module, {})[port] = fields[wires[wire]]
    return found


def tied(text: str, module: str, constant: Constants) -> str:
    """The text with constants in place of some bits of a module's inputs."""
    lines = text.split("\n")
    at = next(i for i, line in enumerate(lines) if f"hw.module @{module}(" in line)
    new: list[str] = []
    for port, (which, value) in constant.items():
        if not which or f"in %{port}: " not in lines[at]:
            continue
        match = re.search(rf"in %{port}: i(\d+)", lines[at])
        assert match is not None
        width = int(match[1])
        lines[at] = lines[at].replace(f"in %{port}: ", f"in %{port}.given: ")
        kind = f"i{width}"
        new += [
            f"    %{port}.kept = hw.constant {_signed(~which, width)} : {kind}",
            f"    %{port}.value = hw.constant {_signed(which & value, width)} : {kind}",
            f"    %{port}.free = comb.and %{port}.given, %{port}.kept : {kind}",
            f"    %{port} = comb.or %{port}.free, %{port}.value : {kind}",
        ]
    return "\n".join([*lines[: at + 1], *new, *lines[at + 1 :]])


def unproven(
    text: str,
    other: str,
    module: str,
    constant: Constants,
    folder: Path,
    timeout: float = 120,
) -> str | None:
    """Whether a module is the same in two chips of the same memories.

    Args:
        text: hardware text of one.
        other: of the other.
        module: what is compared, with all modules in it.
        constant: bits of its inputs that never change.
        folder: for scripts and logs.
        timeout: seconds, after which nothing is proved.

    Returns:
        None: they are; else what could not be proved.
    """
    folder.mkdir(parents=True, exist_ok=True)
    script = ""
    for name, one in (("gold", text), ("gate", other)):
        modules, stubs = outside(only(tied(one, module, constant), module))
        (folder / f"{name}.sv").write_text(circt.to_verilog(modules))
        (folder / "stubs.v").write_text(stubs)
        script += _SCRIPT.format(name=name, stubs="stubs.v", top=module)
    if (folder / "gold.sv").read_text() == (folder / "gate.sv").read_text():
        return None
    seconds = round(timeout)
    (folder / "run.ys").write_text(script + _COMPARE.format(timeout=seconds))
    command = [sys.executable, "-c", _RUN, "run.ys"]
    log = folder / "log"
    with log.open("w") as file:
        try:
            done = subprocess.run(
                command, stdout=file, stderr=subprocess.STDOUT, cwd=folder, timeout=3 * timeout
            )
        except subprocess.TimeoutExpired:
            return f"nothing is known after {3 * seconds} s"
    said = log.read_text()
    if _PROVED in said:
        return None
    if done.returncode:
        return f"Yosys failed: {said[-200:]}"
    return "no proof"
