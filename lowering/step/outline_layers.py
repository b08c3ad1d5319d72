"""`rom-outline-layers`: decoder layers of equal structure share one body.

A decoder is a sequence of layers that differ in their weights only. The pass finds runs of
isomorphic operation sequences in a `rom.step` and replaces each by one `rom.layer` and one
`rom.repeat`, so that every later stage works on one body whatever the number of layers.

Finding runs: each operation gets a number for what it is (name, types, attributes, kinds of its
buffers), so a run of layers is a periodic stretch of numbers. Only distances between neighbouring
equal operations can be periods; one comparison of the sequence with itself shifted gives all
stretches of a period. The operands then decide which rotation and how many instances are right.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from xdsl.context import Context
from xdsl.dialects.builtin import ArrayAttr, IndexType, ModuleOp, StringAttr, SymbolRefAttr
from xdsl.ir import Attribute, Block, Operation, OpResult, Region, SSAValue
from xdsl.passes import ModulePass
from xdsl.rewriter import InsertPoint, Rewriter

from intaglio.dialects import rom


@dataclass(frozen=True)
class RomOutlineLayers(ModulePass):
    """Replaces runs of isomorphic layers by `rom.layer` and `rom.repeat`."""

    name = "rom-outline-layers"

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        """Outlines the longest run of each step, then the longest of what is left, and so on."""
        for step in [child for child in op.body.block.ops if isinstance(child, rom.StepOp)]:
            while _outline_longest(op, step):
                pass


@dataclass(frozen=True)
class _Run:
    """`count` instances of `period` operations from operation `start` on.

    `carried` are places (operation of the instance, result) whose value the next instance reads,
    with the value that the first instance reads instead; `constant` are values all instances read.
    """

    start: int
    period: int
    count: int
    carried: tuple[tuple[tuple[int, int], SSAValue], ...]
    constant: tuple[SSAValue, ...]

    @property
    def saved(self) -> int:
        """Operations that vanish."""
        return self.period * (self.count - 1)


def _outline_longest(module: ModuleOp, step: rom.StepOp) -> bool:
    sequence = _Sequence(module, step.body.block)
    best: _Run | None = None
    for run in sequence.runs():
        if best is None or (-run.saved, len(run.carried) + len(run.constant), run.start) < (
            -best.saved,
            len(best.carried) + len(best.constant),
            best.start,
        ):
            best = run
    if best is None:
        return False
    _replace(module, step, sequence, best)
    return True


class _Sequence:
    """The operations of a step's block, numbered by what they are."""

    def __init__(self, module: ModuleOp, block: Block) -> None:
        self.block = block
        self.ops = list(block.ops)
        self.place = {op: i for i, op in enumerate(self.ops)}
        self.buffers = {
            child.sym_name.data: child
            for child in module.body.block.ops
            if isinstance(child, rom.ParameterOp | rom.CacheOp | rom.StateOp)
        }
        known: dict[object, int] = {}
        self.numbers = np.array(
            [known.setdefault(self._signature(op), len(known)) for op in self.ops], np.int64
        )

    def symbols(self, op: Operation) -> dict[str, str]:
        """Buffers an operation names, by property."""
        return {
            name: value.root_reference.data
            for name, value in op.properties.items()
            if isinstance(value, SymbolRefAttr)
        }

    def _signature(self, op: Operation) -> object:
        if not isinstance(op, rom.OperatorOp):
            return op
        kinds: list[tuple[str, object]] = []
        for name, value in op.properties.items():
            if name == "onnx":
                continue
            if isinstance(value, SymbolRefAttr):
                buffer = self.buffers.get(value.root_reference.data)
                if buffer is None:
                    return op
                # What an operation does with a buffer may hang on these, not only on its type.
                extra = None
                if isinstance(buffer, rom.ParameterOp):
                    extra = buffer.zero
                elif isinstance(buffer, rom.CacheOp):
                    extra = buffer.static_scale
                kinds.append((name, (buffer.type, extra)))
            else:
                kinds.append((name, value))
        return (
            op.name,
            tuple(sorted(kinds, key=lambda kind: kind[0])),
            tuple(op.attributes.items()),
            tuple(v.type for v in op.operands),
            tuple(r.type for r in op.results),
        )

    def runs(self) -> list[_Run]:
        """A valid run for each periodic stretch, in its best rotation."""
        found: list[_Run] = []
        for period in self._periods():
            same = self.numbers[:-period] == self.numbers[period:]
            for first, length in _stretches(same):
                if length < period:
                    continue
                covered = length + period
                count = covered // period
                spare = covered - count * period
                rotations = [
                    run
                    for start in range(first, first + spare + 1)
                    if (run := self._fit(start, period, count)) is not None
                ]
                if rotations:
                    found.append(
                        min(
                            rotations,
                            key=lambda r: (-r.saved, len(r.carried) + len(r.constant), r.start),
                        )
                    )
        return found

    def _periods(self) -> list[int]:
        last: dict[int, int] = {}
        periods: set[int] = set()
        for i, number in enumerate(self.numbers.tolist()):
            if number in last:
                periods.add(i - last[number])
            last[number] = i
        return sorted(periods)

    def _fit(self, start: int, period: int, count: int) -> _Run | None:
        """The run with as many of the instances as its operands allow, at least two."""
        body = self.ops[start : start + period]
        if not any(isinstance(op, rom.LinearOp | rom.DotOp) for op in body):
            return None
        carried: dict[tuple[int, int], SSAValue] = {}
        constant: dict[SSAValue, None] = {}
        for t in range(period):
            first, second = self.ops[start + t], self.ops[start + period + t]
            for a, b in zip(first.operands, second.operands, strict=True):
                here = self.relative(b, start + period, period)
                if here is not None:
                    if self.relative(a, start, period) != here:
                        return None
                    continue
                before = self.relative(b, start, period)
                if before is not None:
                    if self._inside(a, start, period * count):
                        return None
                    if carried.setdefault(before, a) is not a:
                        return None
                elif a is b:
                    constant[a] = None
                else:
                    return None
        position = self.block.args[1]
        constant.pop(position, None)
        if not all(isinstance(v.type, rom.VectorType) for v in (*carried.values(), *constant)):
            return None
        count = self._agreeing(start, period, count)
        while count >= 2 and not self._leaves_carried(start, period, count, set(carried)):
            count -= 1
        if count < 2:
            return None
        return _Run(start, period, count, tuple(carried.items()), tuple(constant))

    def _agreeing(self, start: int, period: int, count: int) -> int:
        """How many instances, from the second on, read the same places as the second."""
        for j in range(2, count):
            base = start + j * period
            for t in range(period):
                for a, b in zip(
                    self.ops[base - period + t].operands, self.ops[base + t].operands, strict=True
                ):
                    # The second instance decides: from within the run, or the same for all.
                    inside = self._inside(a, start, period * count)
                    if not (self._shifted(a, b, period) if inside else a is b):
                        return j
        return count

    def _shifted(self, a: SSAValue, b: SSAValue, period: int) -> bool:
        return (
            isinstance(a, OpResult)
            and isinstance(b, OpResult)
            and a.index == b.index
            and self.place[b.op] - self.place[a.op] == period
        )

    def _leaves_carried(
        self, start: int, period: int, count: int, carried: set[tuple[int, int]]
    ) -> bool:
        """Whether what is read after the run comes from the last instance and is carried."""
        end = start + period * count
        for i in range(start, end):
            t, j = (i - start) % period, (i - start) // period
            for result in self.ops[i].results:
                if all(self.place[use.operation] < end for use in result.uses):
                    continue
                if j != count - 1 or (t, result.index) not in carried:
                    return False
        return True

    def _inside(self, value: SSAValue, start: int, length: int) -> bool:
        return self.relative(value, start, length) is not None

    def relative(self, value: SSAValue, start: int, length: int) -> tuple[int, int] | None:
        """(operation, result) counted from `start`, where it lies within `length` operations."""
        if not isinstance(value, OpResult):
            return None
        place = self.place[value.op] - start
        return (place, value.index) if 0 <= place < length else None


def _stretches(same: np.ndarray) -> list[tuple[int, int]]:
    """(first, length) of each stretch of true elements."""
    edges = np.diff(np.concatenate(([0], same.astype(np.int8), [0])))
    starts, ends = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
    return [(int(s), int(e - s)) for s, e in zip(starts, ends, strict=True)]


def _replace(module: ModuleOp, step: rom.StepOp, sequence: _Sequence, run: _Run) -> None:
    instances = [
        sequence.ops[run.start + j * run.period : run.start + (j + 1) * run.period]
        for j in range(run.count)
    ]
    slots = _slots(sequence, instances)
    initial = [value for _, value in run.carried] + list(run.constant)
    block = Block(arg_types=[IndexType(), *(value.type for value in initial)])
    names: dict[tuple[str, ...], str] = {}
    for bound in slots.values():
        if bound not in names:
            names[bound] = _slot_name(bound, set(names.values()))
            block.add_op(rom.SlotOp(names[bound], sequence.buffers[bound[0]].type))

    outer = [sequence.block.args[1], *initial]
    arguments: dict[SSAValue, SSAValue] = dict(zip(outer, block.args, strict=True))
    previous = {place: block.args[1 + i] for i, (place, _) in enumerate(run.carried)}
    # The second instance shows which operands come from the instance before.
    source = instances[1]
    start = run.start + run.period
    copies: list[Operation] = []
    for t, op in enumerate(source):
        operands: list[SSAValue] = []
        for operand in op.operands:
            here = sequence.relative(operand, start, run.period)
            before = sequence.relative(operand, run.start, run.period)
            if here is not None:
                operands.append(copies[here[0]].results[here[1]])
            elif before is not None:
                operands.append(previous[before])
            else:
                operands.append(arguments[operand])
        properties: dict[str, Attribute] = dict(op.properties)
        for name in sequence.symbols(op):
            properties[name] = SymbolRefAttr(names[slots[t, name]])
        properties["onnx"] = ArrayAttr(
            [one for instance in instances for one in _onnx(instance[t])]
        )
        copy = type(op).create(
            operands=operands,
            result_types=[r.type for r in op.results],
            properties=properties,
            attributes=dict(op.attributes),
        )
        for old, new in zip(op.results, copy.results, strict=True):
            new.name_hint = old.name_hint
        block.add_op(copy)
        copies.append(copy)
    given = [copies[t].results[r] for (t, r), _ in run.carried]
    block.add_op(rom.YieldOp(*given, *block.args[1 + len(given) :]))

    layer = rom.LayerOp(_layer_name(module), Region(block))
    Rewriter.insert_op(layer, InsertPoint.before(step))
    repeat = rom.RepeatOp(
        layer.sym_name.data,
        sequence.block.args[1],
        initial,
        [
            {names[bound]: bound[j] for bound in dict.fromkeys(slots.values())}
            for j in range(run.count)
        ],
    )
    Rewriter.insert_op(repeat, InsertPoint.before(instances[0][0]))
    last = instances[-1]
    for i, ((t, r), _) in enumerate(run.carried):
        old = last[t].results[r]
        _replace_outside(old, repeat.outputs[i], instances)
    for instance in reversed(instances):
        for op in reversed(instance):
            op.detach()
            op.erase()


def _replace_outside(
    old: SSAValue, new: SSAValue, instances: Sequence[Sequence[Operation]]
) -> None:
    inside = {op for instance in instances for op in instance}
    for use in list(old.uses):
        if use.operation not in inside:
            use.operation.operands[use.index] = new


def _onnx(op: Operation) -> Sequence[ArrayAttr[StringAttr]]:
    assert isinstance(op, rom.OperatorOp)
    return op.onnx.data


def _slots(
    sequence: _Sequence, instances: Sequence[Sequence[Operation]]
) -> dict[tuple[int, str], tuple[str, ...]]:
    """For each (operation, property): the buffer of each instance. Equal tuples are one slot."""
    return {
        (t, name): tuple(sequence.symbols(instance[t])[name] for instance in instances)
        for t, op in enumerate(instances[0])
        for name in sequence.symbols(op)
    }


def _slot_name(bound: Sequence[str], taken: set[str]) -> str:
    """What the buffers' names have in common, without the number of the layer."""
    split = [name.split("_") for name in bound]
    suffix: list[str] = []
    if len(set(bound)) == 1:
        suffix = split[0]
    else:
        for parts in zip(*(reversed(s) for s in split), strict=False):
            if len(set(parts)) > 1:
                break
            suffix.insert(0, parts[0])
        if not suffix:
            prefixes = {re.sub(r"[\d_]+$", "", name) for name in bound}
            suffix = [prefixes.pop()] if len(prefixes) == 1 else []
    name = "_".join(suffix).strip("_") or "buffer"
    if name[0].isdigit():
        name = f"buffer_{name}"
    unique, number = name, 1
    while unique in taken:
        number += 1
        unique = f"{name}_{number}"
    return unique


def _layer_name(module: ModuleOp) -> str:
    taken = {
        value.data
        for op in module.body.block.ops
        if isinstance(value := op.properties.get("sym_name"), StringAttr)
    }
    name, number = "layer", 1
    while name in taken:
        number += 1
        name = f"layer_{number}"
    return name
