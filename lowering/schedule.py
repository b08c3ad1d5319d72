"""`program-schedule`: from placed operators to instructions with buffers, waits and cycles.

The step becomes blocks: operators before, between and after the repeated layers, the layers with
their instances, and at the end, in a block of its own that runs only when a token is wanted, what
nothing but the logits needs. Values get places in the vector units' memory; what an instruction
must wait for follows from the places that it shares with instructions of other queues.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from xdsl.context import Context
from xdsl.dialects.builtin import (
    ArrayAttr,
    DenseArrayBase,
    IntegerAttr,
    ModuleOp,
    SymbolRefAttr,
    UnitAttr,
    i64,
)
from xdsl.ir import Attribute, BlockArgument, Operation, SSAValue
from xdsl.passes import ModulePass
from xdsl.rewriter import Rewriter
from xdsl.utils.exceptions import PassFailedException

from intaglio.dialects import rom, timeline
from intaglio.dialects.errors import DoesNotFit, UserError
from intaglio.dialects.fabric import EngraveOp, kv_vector_bytes, machine_of, matrix_shape
from intaglio.dialects.formula import Formula
from intaglio.dialects.machine import Machine
from intaglio.dialects.program import BlockOp, BufferOp, InstructionOp, ProgramOp
from intaglio.dialects.semantics import pre_shift, query_key_bits, weighted_sum_bits
from intaglio.dialects.tiling import Piece
from intaglio.lowering import durations, power
from intaglio.lowering.draft import Draft, DraftBlock

WORD_BYTES = 4
"""Bytes of a fixed-point value."""
SCALE_BYTES = 4
"""Bytes of a quantised vector's scale."""
SUM_BYTES = 8
"""Bytes of a head's sum of probabilities."""


@dataclass(frozen=True)
class ProgramSchedule(ModulePass):
    """Replaces the step and its layers by a program."""

    name = "program-schedule"

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        machine = machine_of(op)
        steps = [found for found in op.ops if isinstance(found, rom.StepOp)]
        if len(steps) != 1:
            raise PassFailedException(f"expected one rom.step, found {len(steps)}")
        program = _Scheduler(op, machine).schedule(steps[0])
        layers = [found for found in op.ops if isinstance(found, rom.LayerOp)]
        Rewriter.replace_op(steps[0], program, [])
        for layer in layers:
            Rewriter.erase_op(layer)
        annotate(program, machine)
        _check_retention(program, machine)


def annotate(program: ProgramOp, machine: Machine) -> None:
    """States start and finish of every instruction instance at the program's positions."""
    blocks = list(program.blocks)
    instructions = [list(block.instructions) for block in blocks]
    positions = list(program.positions.get_values())
    starts: dict[InstructionOp, list[int]] = {}
    finishes: dict[InstructionOp, list[int]] = {}
    for span in timeline.simulate([b.timing for b in blocks], machine.issue, positions):
        instruction = instructions[span.block][span.instruction]
        starts.setdefault(instruction, []).extend(int(c) for c in span.start)
        finishes.setdefault(instruction, []).extend(int(c) for c in span.finish)
    for instruction, cycles in starts.items():
        instruction.start = DenseArrayBase.from_list(i64, cycles)
        instruction.finish = DenseArrayBase.from_list(i64, finishes[instruction])


def _int(value: int) -> IntegerAttr:
    return IntegerAttr(value, i64)


def _name(symbol: SymbolRefAttr) -> str:
    return symbol.root_reference.data


def _check_retention(program: ProgramOp, machine: Machine) -> None:
    """Every on-die key and value is read, and so refreshed, before it is lost.

    Each token reads all of them, so the time of the slowest token is what counts; the last position
    has the most to read, and the largest adapter the most to multiply.

    Raises:
        UserError: a token takes longer than a cell holds its value.
    """
    if not machine.retention_cycles:
        return
    last = program.positions.get_values()[-1]
    timing = [block.timing for block in program.blocks]
    ranks = _largest_ranks(program)
    spans = timeline.simulate(timing, machine.issue, last, ranks)
    cycles = max(int(span.finish[0]) for span in spans)
    if cycles <= machine.retention_cycles:
        return
    held, taken = (1e3 * n / machine.clock_hz for n in (machine.retention_cycles, cycles))
    raise UserError(
        f"a token takes {taken:.3g} ms at position {last}, the "
        f"on-die cells of {machine.name} hold keys and values for {held:.3g} ms without being read",
        hint="a shorter --context, a faster clock (--set clock.frequency_hz=...), or longer "
        "retention (--set external.retention_us=...)",
    )


def _largest_ranks(program: ProgramOp) -> timeline.Ranks:
    """The ranks that the slots are made for, at every instruction instance that has one."""
    module = program.parent_op()
    assert isinstance(module, ModuleOp)
    ranks: dict[str, int] = {}
    for site in module.ops:
        if isinstance(site, rom.SiteOp):
            type_ = rom.resolve(site, site.a).type
            assert isinstance(type_, rom.AdapterType)
            ranks |= dict.fromkeys((_name(site.a), _name(site.b)), type_.dims[0])
    found: dict[tuple[int, int, int], int] = {}
    for number, block in enumerate(program.blocks):
        for index, one in enumerate(block.instructions):
            weights = one.uses.data.get("weights")
            if not isinstance(weights, SymbolRefAttr):
                continue
            for instance, bound in enumerate(block.instances):
                buffer = bound.data.get(_name(weights))
                if isinstance(buffer, SymbolRefAttr) and (rank := ranks.get(_name(buffer))):
                    found[number, instance, index] = rank
    return found


# --- selecting instructions ---------------------------------------------------------------------


@dataclass
class _Selector:
    """Chooses the instruction of each operator of a block."""

    module: ModuleOp
    machine: Machine
    pieces: dict[str, list[Piece]]
    instances: list[dict[str, str]] = field(default_factory=list)
    """What each instance binds the layer's slots to; other names are buffers of the module."""

    def pieces_of(self, slot: str) -> list[Piece]:
        """Pieces of all buffers that a slot may be bound to."""
        names = [one.get(slot, slot) for one in self.instances] or [slot]
        if missing := [name for name in names if name not in self.pieces]:
            raise PassFailedException(f"@{missing[0]} has no place; run fabric-place first")
        return [piece for name in dict.fromkeys(names) for piece in self.pieces[name]]

    def select(self, op: Operation) -> Draft | None:
        """The instruction of an operator; None for those that need none."""
        selector = _SELECTORS.get(type(op))
        if selector is None:
            raise PassFailedException(f"{op.name} has no instruction; run rom-legalize first")
        return selector(self, op)

    def embed(self, op: rom.EmbedOp) -> Draft:
        type_ = rom.resolve(op, op.table).type
        assert isinstance(type_, rom.ROMTensorType)
        duration = durations.embed(self.machine, matrix_shape(type_))
        return Draft(
            "embed",
            "matrix",
            [op.token],
            [op.output],
            {"table": _name(op.table)},
            duration,
            op.onnx,
        )

    def requantize(self, op: rom.RequantizeOp) -> Draft:
        dot = op.input.owner
        assert isinstance(dot, rom.DotOp)
        type_ = rom.resolve(op, op.weights).type
        assert isinstance(type_, rom.ROMTensorType | rom.AdapterType)
        shape = matrix_shape(type_)
        if isinstance(type_, rom.AdapterType):
            queue, duration = "attention", self.adapter_product(op, type_)
        else:
            pieces = self.pieces_of(_name(op.weights))
            queue, duration = "matrix", durations.product(self.machine, shape, pieces)
        uses = {"weights": _name(op.weights)}
        if op.bias is not None:
            uses["bias"] = _name(op.bias)
        residual = [] if op.residual is None else [op.residual]
        arguments: dict[str, Attribute] = {"pre_shift": op.pre_shift}
        return Draft(
            "matvec",
            queue,
            [dot.input, *residual],
            [op.output],
            uses,
            duration,
            op.onnx,
            arguments,
            tuple(residual),
        )

    def adapter_product(self, op: rom.RequantizeOp, type_: rom.AdapterType) -> Formula:
        """Duration of a product with a constant adapter, or with one of the slots of a site."""
        shape = matrix_shape(type_)
        if not type_.is_slot:
            return durations.adapter_product(self.machine, shape)
        slot = _name(op.weights)
        names = {one.get(slot, slot) for one in self.instances} or {slot}
        first = {_name(s.a) for s in self.module.ops if isinstance(s, rom.SiteOp)}
        return durations.slot_product(self.machine, shape, first=names <= first)

    def norm(self, op: rom.RMSNormOp | rom.LayerNormOp) -> Draft:
        size = rom.vector_size(op.input.type)
        uses = {"gamma": _name(op.gamma)}
        arguments: dict[str, Attribute] = {"eps": op.eps}
        if isinstance(op, rom.RMSNormOp):
            groups, opcode = op.groups.value.data, "rms_norm"
            arguments["groups"] = op.groups
        else:
            groups, opcode = 1, "layer_norm"
            if op.beta is not None:
                uses["beta"] = _name(op.beta)
        duration = durations.norm(self.machine, size, groups, centred=opcode == "layer_norm")
        return Draft(opcode, "vector", [op.input], [op.output], uses, duration, op.onnx, arguments)

    def quantize(self, op: rom.QuantizeOp) -> Draft:
        type_ = op.output.type
        assert isinstance(type_, rom.QuantizedType)
        uses = {} if op.cache is None else {"scale_of": _name(op.cache)}
        duration = durations.quantize(
            self.machine, type_.size, type_.groups.data, static=op.cache is not None
        )
        return Draft("quantize", "vector", [op.input], [op.output], uses, duration, op.onnx)

    def rotary(self, op: rom.RotaryOp) -> Draft:
        arguments: dict[str, Attribute] = {"heads": op.heads, "rotary_dim": op.rotary_dim}
        if op.interleaved is not None:
            arguments["interleaved"] = UnitAttr()
        return Draft(
            "rotary",
            "vector",
            [op.input],
            [op.output],
            {"cos": _name(op.cos), "sin": _name(op.sin)},
            durations.vector(self.machine, rom.vector_size(op.input.type)),
            op.onnx,
            arguments,
        )

    def elementwise(
        self, op: rom.AddOp | rom.MulOp | rom.ScaleOp | rom.ActivateOp | rom.SoftcapOp
    ) -> Draft:
        arguments: dict[str, Attribute] = {}
        match op:
            case rom.ActivateOp():
                arguments["kind"] = op.kind
            case rom.ScaleOp():
                arguments["factor"] = op.factor
            case rom.SoftcapOp():
                assert op.inverse is not None
                arguments |= {"cap": op.cap, "inverse": op.inverse}
            case _:
                pass
        operands = list(op.operands)
        return Draft(
            op.name.removeprefix("rom."),
            "vector",
            operands,
            [op.output],
            {},
            durations.vector(self.machine, rom.vector_size(op.output.type)),
            op.onnx,
            arguments,
            tuple(operands),
        )

    def append(self, op: rom.AppendOp) -> Draft:
        cache = rom.resolve(op, op.cache)
        assert isinstance(cache.type, rom.KVType)
        size = self.vector_bytes(_name(op.cache))
        return Draft(
            "append",
            "kv",
            [op.input],
            [],
            {"cache": _name(op.cache)},
            durations.append(self.machine, cache.type.heads.data, size),
            op.onnx,
        )

    def vector_bytes(self, slot: str) -> int:
        """Bytes of a token's vector of one head in the caches that a slot may be bound to."""
        names = [one.get(slot, slot) for one in self.instances] or [slot]
        caches = [c for c in self.module.ops if isinstance(c, rom.CacheOp)]
        return max(kv_vector_bytes(c) for c in caches if c.sym_name.data in names)

    def query_key(self, op: rom.QueryKeyOp) -> Draft:
        query = op.query.type
        assert isinstance(query, rom.QuantizedType)
        cache = self.cache(op, op.keys)
        window = _window(op.window)
        kv = cache.format.data
        bits = query_key_bits(query.width.data, query.format.data, kv)
        arguments: dict[str, Attribute] = {
            "score_scale": op.score_scale,
            "pre_shift": _int(pre_shift(bits)),
            "window": _int(window),
        }
        if op.cap is not None and op.cap_inverse is not None and op.log2e is not None:
            arguments |= {"cap": op.cap, "cap_inverse": op.cap_inverse, "log2e": op.log2e}
        duration = durations.query_key(
            self.machine,
            query.groups.data,
            cache.heads.data,
            cache.width.data,
            window,
            kv,
        )
        return Draft(
            "query_key",
            "attention",
            [op.query],
            [op.output],
            {"keys": _name(op.keys)},
            duration,
            op.onnx,
            arguments,
        )

    def softmax(self, op: rom.SoftmaxOp) -> Draft:
        scores = op.scores.type
        assert isinstance(scores, rom.ScoresType)
        window = _window(op.window)
        return Draft(
            "softmax",
            "vector",
            [op.scores],
            [op.output],
            {"values": _name(op.values)},
            durations.softmax(self.machine, scores.heads.data, window),
            op.onnx,
            {"window": _int(window)},
        )

    def weighted_sum(self, op: rom.WeightedSumOp) -> Draft:
        source = op.probabilities.type
        assert isinstance(source, rom.ProbabilitiesType)
        cache = self.cache(op, op.values)
        window = _window(op.window)
        kv = cache.format.data
        bits = weighted_sum_bits(cache.capacity.data, source.format.data, kv)
        duration = durations.weighted_sum(
            self.machine,
            source.heads.data,
            cache.heads.data,
            cache.width.data,
            window,
            kv,
        )
        return Draft(
            "weighted_sum",
            "attention",
            [op.probabilities],
            [op.output],
            {"values": _name(op.values)},
            duration,
            op.onnx,
            {"pre_shift": _int(pre_shift(bits)), "window": _int(window)},
        )

    def sample(self, op: rom.SampleOp) -> Draft:
        return Draft(
            "sample",
            "vector",
            [op.input],
            [op.token],
            {},
            durations.sample(self.machine, rom.vector_size(op.input.type)),
            op.onnx,
        )

    def nothing(self, op: Operation) -> None:
        """Slots and views, and dots, which the requantisation includes."""

    def cache(self, op: Operation, symbol: SymbolRefAttr) -> rom.KVType:
        type_ = rom.resolve(op, symbol).type
        assert isinstance(type_, rom.KVType)
        return type_


def _window(attr: IntegerAttr | None) -> int:
    return 0 if attr is None else attr.value.data


_SELECTORS: dict[type[Operation], Callable[..., Draft | None]] = {
    rom.EmbedOp: _Selector.embed,
    rom.RequantizeOp: _Selector.requantize,
    rom.RMSNormOp: _Selector.norm,
    rom.LayerNormOp: _Selector.norm,
    rom.QuantizeOp: _Selector.quantize,
    rom.RotaryOp: _Selector.rotary,
    rom.AddOp: _Selector.elementwise,
    rom.MulOp: _Selector.elementwise,
    rom.ScaleOp: _Selector.elementwise,
    rom.ActivateOp: _Selector.elementwise,
    rom.SoftcapOp: _Selector.elementwise,
    rom.AppendOp: _Selector.append,
    rom.QueryKeyOp: _Selector.query_key,
    rom.SoftmaxOp: _Selector.softmax,
    rom.WeightedSumOp: _Selector.weighted_sum,
    rom.SampleOp: _Selector.sample,
    rom.DotOp: _Selector.nothing,
    rom.SliceOp: _Selector.nothing,
    rom.SlotOp: _Selector.nothing,
}


# --- blocks -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Place:
    """A range of bytes of the vector memory."""

    first: int
    last: int

    def overlaps(self, other: _Place) -> bool:
        return self.first < other.last and other.first < self.last


class _Scheduler:
    def __init__(self, module: ModuleOp, machine: Machine) -> None:
        self.module = module
        self.machine = machine
        self.pieces = {
            _name(op.buffer): [attr.piece for attr in op.pieces]
            for op in module.ops
            if isinstance(op, EngraveOp)
        }
        self.capacity = max(
            (
                op.type.capacity.data
                for op in module.ops
                if isinstance(op, rom.CacheOp) and isinstance(op.type, rom.KVType)
            ),
            default=1,
        )
        self.persistent: dict[SSAValue, SSAValue] = {}
        """Values that live across blocks, each with the value whose buffer it shares."""
        self.views: dict[SSAValue, tuple[SSAValue, int]] = {}
        """Values that are part of another: source and first byte."""
        self.places: dict[SSAValue, _Place] = {}
        self.names: dict[SSAValue, str] = {}

    def schedule(self, step: rom.StepOp) -> ProgramOp:
        blocks = list(self.blocks(step))
        self.allocate(blocks, step)
        if domains := power.domains_of(self.module):
            power.switch(blocks, domains, self.machine, self.timing)
        emit = step.body.block.last_op
        assert isinstance(emit, rom.EmitOp)
        buffers = [
            BufferOp(self.names[value], place.first, place.last - place.first, value.type)
            for value, place in self.places.items()
            if value not in self.persistent or self.persistent[value] is value
        ]
        for value in self.views:
            place = self.place(value)
            buffers.append(
                BufferOp(self.names[value], place.first, place.last - place.first, value.type)
            )
        waits = self.waits(blocks)
        ops: list[BufferOp | BlockOp] = [*buffers]
        for block, block_waits in zip(blocks, waits, strict=True):
            instructions = [
                InstructionOp(
                    draft.opcode,
                    draft.queue,
                    [self.buffer(value) for value in draft.reads],
                    [self.buffer(value) for value in draft.writes],
                    draft.uses,
                    wait,
                    draft.duration,
                    draft.onnx,
                    draft.arguments,
                )
                for draft, wait in zip(block.drafts, block_waits, strict=True)
            ]
            ops.append(BlockOp(block.name, block.instances, instructions, block.sampled))
        positions = sorted({0, self.capacity - 1})
        return ProgramOp(
            step.sym_name.data,
            positions,
            self.buffer(emit.logits),
            self.buffer(emit.token),
            ops,
        )

    def timing(self, blocks: Sequence[DraftBlock]) -> list[timeline.Block]:
        """What the timeline needs of the blocks."""
        return [
            timeline.Block(
                block.name,
                [
                    timeline.Issue(draft.queue, waits, draft.duration)
                    for draft, waits in zip(block.drafts, block_waits, strict=True)
                ],
                len(block.instances),
            )
            for block, block_waits in zip(blocks, self.waits(blocks), strict=True)
        ]

    # Cutting the step into blocks

    def blocks(self, step: rom.StepOp) -> Iterator[DraftBlock]:
        ops = [op for op in step.body.block.ops if not isinstance(op, rom.EmitOp)]
        needed = _needed_for_effects(ops)
        segment: list[Operation] = []
        number = 0
        for op in ops:
            if isinstance(op, rom.RepeatOp):
                copies = self.bind_carried(op)
                if segment or copies:
                    block = self.flat_block(f"part{number}", segment)
                    block.drafts.extend(copies)
                    yield block
                    segment, number = [], number + 1
                yield self.layer_block(op)
            elif op in needed:
                segment.append(op)
        if segment:
            yield self.flat_block(f"part{number}", segment)
        head = [op for op in ops if op not in needed]
        if head:
            yield self.flat_block("head", head, sampled=True)

    def flat_block(self, name: str, ops: Sequence[Operation], sampled: bool = False) -> DraftBlock:
        selector = _Selector(self.module, self.machine, self.pieces)
        drafts = self.drafts(selector, ops)
        symbols = {slot: slot for draft in drafts for slot in draft.uses.values()}
        return DraftBlock(name, drafts, [symbols], sampled)

    def layer_block(self, op: rom.RepeatOp) -> DraftBlock:
        layer = op.body()
        instances = [
            {slot: _name(b) for slot, b in one.data.items() if isinstance(b, SymbolRefAttr)}
            for one in op.instances
        ]
        selector = _Selector(self.module, self.machine, self.pieces, instances)
        body = layer.body.block
        end = body.last_op
        assert isinstance(end, rom.YieldOp)
        drafts = self.drafts(selector, [o for o in body.ops if o is not end])
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
            if self.can_overwrite(drafts, argument, value):
                self.persistent[value] = self.persistent[argument]
            else:
                drafts.append(self.write_back(argument, value, drafts))
        # Buffers that all layers share (rotary tables) are no slots; they are bound to themselves.
        used = {slot: slot for draft in drafts for slot in draft.uses.values()}
        return DraftBlock(layer.sym_name.data, drafts, [{**used, **one} for one in instances])

    def bind_carried(self, op: rom.RepeatOp) -> list[Draft]:
        """Gives carried values one buffer each, shared by all instances.

        A value that is needed after the layers too, or is part of another, is copied first.
        """
        copies: list[Draft] = []
        taken: set[SSAValue] = set()
        arguments = op.body().body.block.args[1:]
        for argument, initial, result in zip(arguments, op.inputs, op.outputs, strict=True):
            root = self.persistent.get(initial, initial)
            if root in taken or initial in self.views or not _only_use(initial, op):
                root = argument
                copies.append(self.copy(initial, argument, op.body()))
            taken.add(root)
            for value in (root, argument, result):
                self.persistent[value] = root
        return copies

    def copy(self, source: SSAValue, target: SSAValue, layer: rom.LayerOp) -> Draft:
        onnx = next(found for o in layer.body.block.ops if (found := _onnx(o)) is not None)
        duration = durations.vector(self.machine, rom.vector_size(source.type))
        return Draft("copy", "vector", [source], [target], {}, duration, onnx)

    def write_back(self, argument: SSAValue, value: SSAValue, drafts: list[Draft]) -> Draft:
        onnx = next((d.onnx for d in reversed(drafts) if value in d.writes), drafts[-1].onnx)
        duration = durations.vector(self.machine, rom.vector_size(value.type))
        return Draft("copy", "vector", [value], [argument], {}, duration, onnx)

    def can_overwrite(self, drafts: list[Draft], argument: SSAValue, value: SSAValue) -> bool:
        """Whether a layer's result may be written where its carried value lies."""
        if value in self.views or isinstance(value, BlockArgument):
            return False
        writer = next(i for i, draft in enumerate(drafts) if value in draft.writes)
        for index, draft in enumerate(drafts):
            if argument not in {self.source(v) for v in draft.reads}:
                continue
            if index > writer or (index == writer and argument not in draft.in_place):
                return False
        return True

    def drafts(self, selector: _Selector, ops: Sequence[Operation]) -> list[Draft]:
        drafts: list[Draft] = []
        for op in ops:
            if isinstance(op, rom.SliceOp):
                self.views[op.output] = (op.input, op.offset.value.data * WORD_BYTES)
            if (draft := selector.select(op)) is not None:
                drafts.append(draft)
        return drafts

    # Places in the vector memory

    def source(self, value: SSAValue) -> SSAValue:
        while value in self.views:
            value = self.views[value][0]
        return value

    def place(self, value: SSAValue) -> _Place:
        if value in self.views:
            source, offset = self.views[value]
            first = self.place(source).first + offset
            return _Place(first, first + self.size(value))
        return self.places[self.persistent.get(value, value)]

    def buffer(self, value: SSAValue) -> str:
        if value in self.views:
            return self.names[value]
        return self.names[self.persistent.get(value, value)]

    @property
    def row_bytes(self) -> int:
        """Bytes of a row of the vector memory: one word a lane."""
        return self.machine.vector_lanes * WORD_BYTES

    def size(self, value: SSAValue) -> int:
        match value.type:
            case rom.FixedType() as fixed:
                return fixed.size.data * WORD_BYTES
            case rom.QuantizedType() as quantized:
                # Codes have a memory of their own with the rows of the vector memory; every group
                # begins in a row.
                rows = -(-quantized.width.data // self.machine.vector_lanes)
                return quantized.groups.data * rows * self.row_bytes
            case rom.ScoresType() as scores:
                return scores.heads.data * self.capacity * WORD_BYTES
            case rom.ProbabilitiesType() as probabilities:
                width = 2 if probabilities.format.data == "uint16" else 1
                head = self.capacity * width + SCALE_BYTES + SUM_BYTES
                return probabilities.heads.data * head
            case _:
                return WORD_BYTES

    def allocate(self, blocks: Sequence[DraftBlock], step: rom.StepOp) -> None:
        token = step.body.block.args[0]
        emit = step.body.block.last_op
        assert isinstance(emit, rom.EmitOp)
        for value in (token, emit.logits, emit.token):
            self.persistent.setdefault(self.source(value), self.source(value))
        home: dict[SSAValue, int] = {}
        for number, block in enumerate(blocks):
            for draft in block.drafts:
                for value in (*draft.reads, *draft.writes):
                    source = self.source(value)
                    if home.setdefault(source, number) != number:
                        self.persistent.setdefault(source, source)
        row = self.row_bytes
        floor = 0
        for root in dict.fromkeys(self.persistent.values()):
            self.places[root] = _Place(floor, floor + self.size(root))
            self.names[root] = f"persistent{len(self.names)}"
            floor += -(-self.size(root) // row) * row
        self.names[self.persistent[token]] = "token"
        self.names[self.persistent[emit.token]] = "next"
        self.names.setdefault(self.persistent[self.source(emit.logits)], "logits")
        top = floor
        for block in blocks:
            top = max(top, self.allocate_block(block, floor, row))
        for number, value in enumerate(self.views):
            self.names[value] = f"part{number}_of_{self.names[self.root(value)]}"
        if top > self.machine.vector_sram_bytes:
            self.overflow(top)

    def root(self, value: SSAValue) -> SSAValue:
        source = self.source(value)
        return self.persistent.get(source, source)

    def allocate_block(self, block: DraftBlock, floor: int, row: int) -> int:
        """First fit over the block's live ranges; returns the highest byte used."""
        first: dict[SSAValue, int] = {}
        last: dict[SSAValue, int] = {}
        for index, draft in enumerate(block.drafts):
            for value in (*draft.reads, *draft.writes):
                source = self.source(value)
                if source not in self.persistent:
                    first.setdefault(source, index)
                    last[source] = index
        top = floor
        placed: list[SSAValue] = []
        for number, value in enumerate(first):
            size = -(-self.size(value) // row) * row
            taken = sorted(
                (self.places[other].first, -(-self.places[other].last // row) * row)
                for other in placed
                if last[other] >= first[value] and last[value] >= first[other]
            )
            address = floor
            for begin, end in taken:
                if address + size <= begin:
                    break
                address = max(address, end)
            self.places[value] = _Place(address, address + self.size(value))
            self.names[value] = f"{block.name}_v{number}"
            placed.append(value)
            top = max(top, address + size)
        return top

    def overflow(self, top: int) -> None:
        largest = sorted(self.places, key=lambda v: -self.size(v))[:5]
        first = (
            f"the vector units of {self.machine.name} hold {self.machine.vector_sram_bytes} bytes, "
            f"the program needs {top}"
        )
        lines = [first]
        lines += [f"    {self.size(v):10d} bytes  {v.type}" for v in largest]
        raise DoesNotFit(
            "\n".join(lines),
            hint="a shorter --context makes attention scores smaller; or a larger target",
        )

    # Waits

    def waits(self, blocks: Sequence[DraftBlock]) -> list[list[dict[str, int]]]:
        """For each instruction, how many of which queue must have finished."""
        result: list[list[dict[str, int]]] = []
        for number, block in enumerate(blocks):
            earlier = [d for other in blocks[:number] for d in other.drafts]
            if len(block.instances) > 1:
                earlier += block.drafts
            counts = dict.fromkeys(timeline.QUEUES, 0)
            seen: list[tuple[Draft, int]] = []
            waits: list[dict[str, int]] = []
            for draft in block.drafts:
                need: dict[str, int] = {}
                for other in earlier:
                    if other.queue != draft.queue and self.conflict(other, draft, False):
                        need[other.queue] = 0
                for other, count in seen:
                    if other.queue != draft.queue and self.conflict(other, draft, True):
                        need[other.queue] = count
                counts[draft.queue] += 1
                seen.append((draft, counts[draft.queue]))
                need |= draft.also_waits
                waits.append({queue: need[queue] for queue in timeline.QUEUES if queue in need})
            result.append(waits)
        return result

    def conflict(self, earlier: Draft, later: Draft, same_instance: bool) -> bool:
        """Whether one writes what the other reads or writes.

        Caches of different instances are different buffers.
        """
        if same_instance and (
            earlier.written_caches & later.read_caches or earlier.read_caches & later.written_caches
        ):
            return True
        if self.machine.shared_arrays and {earlier.queue, later.queue} == _ARRAY_QUEUES:
            return True
        pairs = (
            (earlier.writes, later.reads),
            (earlier.reads, later.writes),
            (earlier.writes, later.writes),
        )
        return any(
            self.place(a).overlaps(self.place(b)) for one, two in pairs for a in one for b in two
        )


_ARRAY_QUEUES = {"matrix", "attention"}
"""Queues whose units may share the adders of the matrix tiles."""


def _onnx(op: Operation) -> rom.Nodes | None:
    """Names of the first instance's ONNX nodes."""
    names = op.properties.get("onnx")
    if names is None:
        return None
    assert isinstance(names, ArrayAttr)
    return ArrayAttr([names.data[0]])


def _only_use(value: SSAValue, op: Operation) -> bool:
    return all(use.operation is op for use in value.uses)


def _needed_for_effects(ops: Sequence[Operation]) -> set[Operation]:
    """Operators that write caches or repeat layers, and all that they depend on."""
    needed: set[Operation] = set()
    for op in reversed(ops):
        if isinstance(op, rom.AppendOp | rom.RepeatOp) or any(
            use.operation in needed for result in op.results for use in result.uses
        ):
            needed.add(op)
    return needed
