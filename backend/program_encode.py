"""`program-encode`: from instructions to the descriptors that the hardware's sequencers hold.

The program stays: the chip's units are sized for it. What follows it are its queues
(`program.queue`), with an instruction instance after the other (`program.descriptor`). All that the
hardware does not have is said at once.
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
class ProgramEncode(ModulePass):
    """Adds the descriptors of a scheduled module's instructions."""

    name = "program-encode"

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        """Changes the module in place."""
        from intaglio.backend.hw.chip.layout import layout_of

        if any(isinstance(one, QueueOp) for one in op.ops):
            raise PassFailedException("the program is encoded already")
        for queue in layout_of(program_of(program_content(op))).encoded.values():
            op.body.block.add_op(queue)
