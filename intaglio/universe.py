"""The `xdsl.universe` entry point: what stock `xdsl-opt` learns when Intaglio is installed.

This is the one list of our dialects, passes and output formats (`-t`). Everything is imported when
it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

from xdsl.ir import Dialect
from xdsl.passes import ModulePass
from xdsl.universe import Universe
from xdsl.utils.target import Target


def _dialect(module: str, name: str) -> Callable[[], Dialect]:
    return lambda: getattr(import_module(f"intaglio.dialects.{module}"), name)


def _pass(module: str, name: str) -> Callable[[], type[ModulePass]]:
    return lambda: getattr(import_module(f"intaglio.{module}"), name)


def _format(name: str) -> Callable[[], type[Target]]:
    return lambda: getattr(import_module("intaglio.backend.output_formats"), name)


INTAGLIO = Universe(
    all_dialects={
        "rom": _dialect("rom", "ROM"),
        "fabric": _dialect("fabric", "FABRIC"),
        "program": _dialect("program", "PROGRAM"),
    },
    all_passes={
        "rom-outline-layers": _pass("lowering.step.outline_layers", "RomOutlineLayers"),
        "attach-target": _pass("backend.target.attach", "AttachTarget"),
        "rom-adapter-slots": _pass("lowering.step.adapter_slots", "RomAdapterSlots"),
        "rom-legalize": _pass("lowering.step.legalize", "RomLegalize"),
        "rom-fuse-residual": _pass("lowering.step.fuse_residual", "RomFuseResidual"),
        "fabric-place": _pass("lowering.place.place", "FabricPlace"),
        "program-schedule": _pass("lowering.schedule.schedule", "ProgramSchedule"),
        "program-encode": _pass("backend.program_encode", "ProgramEncode"),
        "program-to-hw": _pass("backend.program_to_hw", "ProgramToHW"),
    },
    all_targets={
        "mapping-json": _format("MappingJSON"),
        "program-json": _format("ProgramJSON"),
        "descriptor-listing": _format("DescriptorListing"),
        "system-verilog": _format("SystemVerilog"),
    },
)
