"""`program-to-hw`: from the program to the chip that runs it, in CIRCT's hw, comb and seq.

The weights are no part of the result: ROM and SRAM are memories whose contents are files (see
`emit_hardware`).
"""

from __future__ import annotations

from dataclasses import dataclass

from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp
from xdsl.passes import ModulePass

from intaglio.backend.program.file import program_content
from intaglio.backend.program.program import program_of


@dataclass(frozen=True)
class ProgramToHW(ModulePass):
    """Replaces a scheduled module by the hardware of its chip."""

    name = "program-to-hw"

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        from intaglio.backend.hw.chip.chip import build_chip

        chip = build_chip(program_of(program_content(op)))
        for old in list(op.ops):
            old.detach()
            old.erase(safe_erase=False)
        for new in list(chip.ops):
            new.detach()
            op.body.block.add_op(new)
