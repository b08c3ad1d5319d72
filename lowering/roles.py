"""What the matrices of a step are for: the head, or a layer, and which one.

A layer is what stands around an attention, whether its body is repeated or stands in the step
itself, as that of a model of one layer does, or a first or last layer unlike the others. The head
is what gives the logits.
"""

from __future__ import annotations

from collections.abc import Iterator

from xdsl.dialects.builtin import ModuleOp, SymbolRefAttr
from xdsl.ir import Operation, SSAValue

from intaglio.dialects import rom
from intaglio.lowering.buffers import name_of

HEAD = -1
"""The number of the head, where layers have theirs."""


def matrices(module: ModuleOp) -> dict[str, set[int]]:
    """For each engraved tensor that a product multiplies with, the layers it serves, or `HEAD`.

    Layers count from 0 in the order of the step. A product belongs to the layer whose attention it
    feeds; else to that of what it reads.
    """
    found: dict[str, set[int]] = {}
    for step in module.ops:
        if isinstance(step, rom.StepOp):
            for name, number in _Step(step).products():
                found.setdefault(name, set()).add(number)
    return found


class _Step:
    """The layers of a step's values, in its order.

    Attributes:
        layers: layers that have begun.
        of: the layer that each value of the step itself is of; those before all layers have none.
    """

    def __init__(self, step: rom.StepOp) -> None:
        self.ops = list(step.body.block.ops)
        self.layers = 0
        self.of: dict[SSAValue, int] = {}
        self.heads = _heads(step)
        self.attentions: dict[str, int] = {}
        """The layer of each cache."""
        self.caches = _caches(self.ops)

    def products(self) -> Iterator[tuple[str, int]]:
        """The tensor of each product, with its layer or `HEAD`."""
        for op in self.ops:
            if isinstance(op, rom.RepeatOp):
                for number, instance in enumerate(op.instances, self.layers):
                    for dot in op.body().walk():
                        if isinstance(dot, rom.DotOp | rom.ExpertProductOp):
                            slot = name_of(dot.weights)
                            bound = instance.data.get(slot, dot.weights)
                            assert isinstance(bound, SymbolRefAttr)
                            yield name_of(bound), number
                self.layers += len(op.instances)
                self.of.update((value, self.layers - 1) for value in op.results)
                continue
            number = max((self.of[v] for v in op.operands if v in self.of), default=None)
            if isinstance(op, rom.DotOp) and op in self.heads:
                yield name_of(op.weights), HEAD
            elif isinstance(op, rom.DotOp | rom.ExpertProductOp):
                number = self._layer(op, number)
                yield name_of(op.weights), number
            if number is not None:
                self.of.update((value, number) for value in op.results)

    def _layer(self, dot: rom.DotOp | rom.ExpertProductOp, before: int | None) -> int:
        """The layer of a product; `before` is that of what it reads."""
        cache = next((name for name in _fed(dot) if name in self.caches), None)
        if cache is not None:
            group = self.caches[cache]
            if group not in self.attentions:
                self.attentions[group] = self.layers
                self.layers += 1
            return self.attentions[group]
        if before is None:
            # Before any attention: the first layer's.
            return max(0, self.layers - 1)
        return before


def _heads(step: rom.StepOp) -> set[Operation]:
    """The products that give the logits: no other product or layer comes after them."""
    emit = step.body.block.last_op
    assert isinstance(emit, rom.EmitOp)
    heads: set[Operation] = set()
    seen: set[SSAValue] = set()
    waiting: list[SSAValue] = [emit.logits]
    while waiting:
        value = waiting.pop()
        if value in seen or not isinstance(value.owner, Operation):
            continue
        seen.add(value)
        if isinstance(value.owner, rom.ExpertProductOp):
            continue
        if isinstance(value.owner, rom.DotOp):
            heads.add(value.owner)
        elif not isinstance(value.owner, rom.RepeatOp):
            waiting += _values(value.owner)
    return heads


def _values(op: Operation) -> list[SSAValue]:
    """What an operator computes with; not the vector whose product it rescales."""
    if isinstance(op, rom.RequantizeOp):
        return [op.input, *([] if op.residual is None else [op.residual])]
    return list(op.operands)


def _caches(ops: list[Operation]) -> dict[str, str]:
    """For each cache that the step's own operators use the first one of its attention's."""
    group: dict[str, str] = {}
    for op in ops:
        if isinstance(op, rom.QueryKeyOp):
            keys = group.setdefault(name_of(op.keys), name_of(op.keys))
            for name in _fed(op):
                group.setdefault(name, keys)
    return group


def _fed(op: Operation) -> Iterator[str]:
    """The caches of the attention that an operator's results come to before any product."""
    seen: set[Operation] = set()
    waiting = [op]
    while waiting:
        for result in waiting.pop(0).results:
            for use in result.uses:
                user = use.operation
                if user in seen or isinstance(user, rom.DotOp | rom.ExpertProductOp | rom.RepeatOp):
                    continue
                if result not in _values(user):
                    continue
                seen.add(user)
                match user:
                    case rom.AppendOp():
                        yield name_of(user.cache)
                    case rom.QueryKeyOp():
                        yield name_of(user.keys)
                    case rom.WeightedSumOp():
                        yield name_of(user.values)
                    case _:
                        waiting.append(user)
