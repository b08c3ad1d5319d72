"""Cuts the step of a token into blocks of instructions.

There are blocks for the operators before, between and after the repeated layers, one with an
instance for each layer, and one at the end, which runs only when a token is wanted, for what
nothing but the logits needs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache

from xdsl.dialects.builtin import ArrayAttr, ModuleOp, SymbolRefAttr
from xdsl.ir import BlockArgument, Operation, SSAValue
from xdsl.utils.exceptions import PassFailedException

from intaglio.dialects import rom
from intaglio.dialects.fabric import EngraveOp
from intaglio.dialects.isa.vector import Copy
from intaglio.dialects.machine import Machine
from intaglio.lowering.place.vector_memory import VectorMemory
from intaglio.lowering.schedule.draft import Draft, DraftBlock
from intaglio.lowering.schedule.selection import Selector


class BlockCutter:
    """Makes blocks of drafts, and tells the memory which values share a place.

    Args:
        module: with placed matrices.
        machine: the chip.
        memory: learns which values are views, and which live across blocks.
    """

    def __init__(self, module: ModuleOp, machine: Machine, memory: VectorMemory) -> None:
        self.module = module
        self.machine = machine
        self.memory = memory
        self.pieces = {
            op.buffer.root_reference.data: [attr.piece for attr in op.pieces]
            for op in module.ops
            if isinstance(op, EngraveOp)
        }

    def rows_at_once(self, buffer: str) -> int:
        """Rows of a matrix that leave the array together."""
        return self.pieces[buffer][0].rows_per_step(self.machine)

    def blocks(self, step: rom.StepOp) -> Iterator[DraftBlock]:
        """The blocks of a step, in their order."""
        ops = [op for op in step.body.block.ops if not isinstance(op, rom.EmitOp)]
        needed = _needed_for_effects(ops)
        segment: list[Operation] = []
        number = 0
        for op in ops:
            if isinstance(op, rom.RepeatOp):
                copies = self._bind_carried(op)
                if segment or copies:
                    block = self._flat_block(f"part{number}", segment)
                    block.drafts.extend(copies)
                    yield block
                    segment, number = [], number + 1
                yield self._layer_block(op)
            elif op in needed:
                segment.append(op)
        if segment:
            yield self._flat_block(f"part{number}", segment)
        head = [op for op in ops if op not in needed]
        if head:
            yield self._flat_block("head", head, sampled=True)

    def _flat_block(self, name: str, ops: Sequence[Operation], sampled: bool = False) -> DraftBlock:
        selector = Selector(self.module, self.machine, self.pieces)
        drafts = self._drafts(selector, ops)
        symbols = {slot: slot for draft in drafts for slot in draft.does.uses.values()}
        return DraftBlock(name, drafts, [symbols], sampled)

    def _layer_block(self, op: rom.RepeatOp) -> DraftBlock:
        layer = op.body()
        instances = [
            {
                slot: b.root_reference.data
                for slot, b in one.data.items()
                if isinstance(b, SymbolRefAttr)
            }
            for one in op.instances
        ]
        selector = Selector(self.module, self.machine, self.pieces, instances)
        body = layer.body.block
        end = body.last_op
        assert isinstance(end, rom.YieldOp)
        drafts = self._drafts(selector, [o for o in body.ops if o is not end])
        carried = body.args[1:]
        overwritten: set[SSAValue] = set()
        for argument, value in zip(carried, end.values, strict=True):
            if value is argument:
                continue
            overwritten.add(argument)
            if value in overwritten or list(end.values).count(value) > 1:
                raise PassFailedException(
                    f"@{layer.sym_name.data} yields a value in another's place; "
                    "each carried value needs one of its own"
                )
            if self._can_overwrite(drafts, argument, value):
                self.memory.persistent[value] = self.memory.persistent[argument]
            else:
                drafts.append(self._write_back(argument, value, drafts))
        # Buffers that all layers share (rotary tables) are no slots; they are bound to themselves.
        used = {slot: slot for draft in drafts for slot in draft.does.uses.values()}
        return DraftBlock(layer.sym_name.data, drafts, [{**used, **one} for one in instances])

    def _bind_carried(self, op: rom.RepeatOp) -> list[Draft]:
        """Gives carried values one buffer each, shared by all instances.

        A value that is needed after the layers too, or is part of another, is copied first.
        """
        copies: list[Draft] = []
        taken: set[SSAValue] = set()
        arguments = op.body().body.block.args[1:]
        for argument, initial, result in zip(arguments, op.inputs, op.outputs, strict=True):
            root = self.memory.persistent.get(initial, initial)
            if root in taken or self.memory.is_view(initial) or not _only_use(initial, op):
                root = argument
                copies.append(self._copy(initial, argument, op.body()))
            taken.add(root)
            for value in (root, argument, result):
                self.memory.persistent[value] = root
        return copies

    def _copy(self, source: SSAValue, target: SSAValue, layer: rom.LayerOp) -> Draft:
        onnx = next(found for o in layer.body.block.ops if (found := _onnx(o)) is not None)
        return self._copied(source, target, onnx)

    def _write_back(self, argument: SSAValue, value: SSAValue, drafts: list[Draft]) -> Draft:
        onnx = next((d.onnx for d in reversed(drafts) if value in d.writes), drafts[-1].onnx)
        return self._copied(value, argument, onnx)

    def _copied(self, source: SSAValue, target: SSAValue, onnx: rom.Nodes) -> Draft:
        selector = Selector(self.module, self.machine, self.pieces)
        return selector.vector_draft(Copy(input=source, output=target), onnx)

    def _can_overwrite(self, drafts: list[Draft], argument: SSAValue, value: SSAValue) -> bool:
        """Whether a layer's result may be written where its carried value lies."""
        if self.memory.is_view(value) or isinstance(value, BlockArgument):
            return False
        writer = next(i for i, draft in enumerate(drafts) if value in draft.writes)
        for index, draft in enumerate(drafts):
            if argument not in {self.memory.source(v) for v in draft.reads}:
                continue
            if index > writer or (index == writer and argument not in draft.does.overwritten):
                return False
        return True

    def _drafts(self, selector: Selector, ops: Sequence[Operation]) -> list[Draft]:
        drafts: list[Draft] = []
        for op in ops:
            if isinstance(op, rom.SliceOp):
                self.memory.add_view(op.output, op.input, op.offset.value.data)
            if (draft := selector.select(op)) is not None:
                # Beats of one size are asked for again and again.
                draft.takes = cache(draft.takes)
                drafts.append(draft)
        return drafts


def _onnx(op: Operation) -> rom.Nodes | None:
    """Names of the first instance's ONNX nodes."""
    return ArrayAttr([op.onnx.data[0]]) if isinstance(op, rom.OperatorOp) else None


def _only_use(value: SSAValue, op: Operation) -> bool:
    return all(use.operation is op for use in value.uses)


_KEEPS = (rom.AppendOp, rom.RepeatOp, rom.DelayOp, rom.LinearAttentionOp)
"""Operators that leave something for the tokens that follow."""


def _needed_for_effects(ops: Sequence[Operation]) -> set[Operation]:
    """Operators that write caches and states or repeat layers, and all that they depend on."""
    needed: set[Operation] = set()
    for op in reversed(ops):
        if isinstance(op, _KEEPS) or any(
            use.operation in needed for result in op.results for use in result.uses
        ):
            needed.add(op)
    return needed
