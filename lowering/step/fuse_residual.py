"""`rom-fuse-residual`: an addition that follows a requantisation becomes part of it.

The hardware adds the residual while results leave the array, so the addition costs no pass of the
vector unit. Both forms saturate twice and are equal bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass

from xdsl.context import Context
from xdsl.dialects.builtin import ArrayAttr, ModuleOp
from xdsl.ir import Block, Operation, SSAValue
from xdsl.passes import ModulePass
from xdsl.rewriter import InsertPoint, Rewriter

from intaglio.dialects import rom
from intaglio.lowering.order import check_legalised


@dataclass(frozen=True)
class RomFuseResidual(ModulePass):
    """Moves additions into the requantisation before them."""

    name = "rom-fuse-residual"

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        check_legalised(op)
        for add in [found for found in op.walk() if isinstance(found, rom.AddOp)]:
            for value, other in ((add.rhs, add.lhs), (add.lhs, add.rhs)):
                if _fuse(add, value, other):
                    break


def _fuse(add: rom.AddOp, value: SSAValue, other: SSAValue) -> bool:
    requantize = value.owner
    if (
        not isinstance(requantize, rom.RequantizeOp)
        or requantize.residual is not None
        or len(list(value.uses)) != 1
        or not _is_before(other, requantize)
    ):
        return False
    names = ArrayAttr(
        [
            ArrayAttr([*one, *(name for name in two if name not in one)])
            for one, two in zip(requantize.onnx, add.onnx, strict=True)
        ]
    )
    bias = None if requantize.bias is None else requantize.bias.root_reference.data
    fused = rom.RequantizeOp(
        requantize.input,
        requantize.scale,
        requantize.weights.root_reference.data,
        requantize.pre_shift.value.data,
        names,
        add.output.type,
        bias=bias,
        residual=other,
        norm=requantize.norm,
    )
    Rewriter.insert_op(fused, InsertPoint.before(requantize))
    Rewriter.replace_op(add, [], [fused.output])
    Rewriter.erase_op(requantize)
    return True


def _is_before(value: SSAValue, op: Operation) -> bool:
    owner = value.owner
    if isinstance(owner, Block):
        return owner is op.parent_block()
    block = op.parent_block()
    if block is None or owner.parent_block() is not block:
        return False
    return block.get_operation_index(owner) < block.get_operation_index(op)
