"""`attach-target`: writes the chip that a module is compiled for into the module."""

from __future__ import annotations

from dataclasses import dataclass

from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp
from xdsl.passes import ModulePass
from xdsl.rewriter import InsertPoint, Rewriter

from intaglio.backend.target.target import load_target
from intaglio.dialects.fabric import MachineOp
from intaglio.lowering.order import check_before


@dataclass(frozen=True)
class AttachTarget(ModulePass):
    """Adds `fabric.machine` for a target, or replaces the one that is there.

    Options: `target`, a name or a path to a TOML file; `set`, settings such as
    "activations=int16".
    """

    name = "attach-target"

    target: str
    set: tuple[str, ...] = ()

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        machine = load_target(self.target).with_options(list(self.set)).machine()
        for old in [found for found in op.ops if isinstance(found, MachineOp)]:
            if old.machine != machine:
                # Formats and places are those of the machine before.
                check_before("rom-legalize", op, self.name)
            Rewriter.erase_op(old)
        Rewriter.insert_op(MachineOp(machine), InsertPoint.at_start(op.body.block))
