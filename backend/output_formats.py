"""What `xdsl-opt -t` can print besides the module itself: `Target`s in xDSL's sense of the word."""

from __future__ import annotations

from dataclasses import dataclass
from typing import IO

from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp
from xdsl.utils.exceptions import PassFailedException
from xdsl.utils.target import Target

from intaglio.backend.output.output import json_text


@dataclass(frozen=True)
class MappingJSON(Target):
    """The placement of a module as a mapping file (`lowering/place/mapping.py`)."""

    name = "mapping-json"

    def emit(self, ctx: Context, module: ModuleOp, output: IO[str]) -> None:
        from intaglio.dialects.fabric import machine_of, places
        from intaglio.lowering.place.mapping import mapping_of

        if next(places(module), None) is None:
            raise PassFailedException("the module places nothing; run fabric-place first")
        output.write(json_text(mapping_of(module, machine_of(module))))


@dataclass(frozen=True)
class ProgramJSON(Target):
    """The program of a scheduled module, as whatever runs the chip reads it."""

    name = "program-json"

    def emit(self, ctx: Context, module: ModuleOp, output: IO[str]) -> None:
        from intaglio.backend.program.file import program_content

        output.write(json_text(program_content(module)))


@dataclass(frozen=True)
class DescriptorListing(Target):
    """The words of an encoded program's descriptors, each taken apart again into its fields."""

    name = "descriptor-listing"

    def emit(self, ctx: Context, module: ModuleOp, output: IO[str]) -> None:
        from intaglio.dialects.encoded import QueueOp, listing

        queues = [one for one in module.ops if isinstance(one, QueueOp)]
        if not queues:
            raise PassFailedException("the program is not encoded; run program-encode first")
        output.writelines(f"{line}\n" for line in listing(queues))


@dataclass(frozen=True)
class SystemVerilog(Target):
    """The SystemVerilog of a module of hw, comb and seq; memories are without content."""

    name = "system-verilog"

    def emit(self, ctx: Context, module: ModuleOp, output: IO[str]) -> None:
        from xdsl.dialects import hw

        from intaglio.backend.circt import to_verilog

        if not any(isinstance(op, hw.HWModuleOp) for op in module.ops):
            raise PassFailedException("the module holds no hardware; run program-to-hw first")
        output.write(to_verilog(str(module)))
