"""`program-to-hw`: from the encoded program to the chip that runs it, in CIRCT's hw, comb and seq.

Sequencers are made for the descriptors as they stand there (`program-encode`), units for the
program beside them. A queue whose fields are not those of its units is refused.

The weights are no part of the result: ROM and SRAM are memories whose contents are files (see
`emit_hardware`).
"""

from __future__ import annotations

from dataclasses import dataclass

from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp
from xdsl.passes import ModulePass
from xdsl.utils.exceptions import PassFailedException

from intaglio.backend.program.file import program_content
from intaglio.backend.program.program import program_of
from intaglio.dialects.encoded import QueueOp


@dataclass(frozen=True)
class ProgramToHW(ModulePass):
    """Replaces an encoded module by the hardware of its chip."""

    name = "program-to-hw"

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        from intaglio.backend.hw.chip.chip import chip_design
        from intaglio.backend.hw.chip.layout import layout_of, with_queues

        program = program_of(program_content(op))
        queues = [one for one in op.ops if isinstance(one, QueueOp)]
        if not queues:
            raise PassFailedException("the program is not encoded; run program-encode first")
        layout = layout_of(program)
        try:
            layout = with_queues(layout, queues)
        except ValueError as error:
            raise PassFailedException(str(error)) from error
        chip = chip_design(layout).op()
        for old in list(op.ops):
            old.detach()
            old.erase(safe_erase=False)
        for new in list(chip.ops):
            new.detach()
            op.body.block.add_op(new)
