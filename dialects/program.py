"""The program dialect says *when*: instructions on queues, what they wait for, how long they take.

A `program.program` is a list of blocks. A block runs once for each of its instances; its
instructions name buffers of the chip's memories and, through slots, engraved tensors and caches.
`waits`, durations, start and finish follow `dialects/timeline.py`. See docs/dialects/program.md for
the rationale.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from functools import cached_property

from xdsl.dialects.builtin import (
    I64,
    ArrayAttr,
    DenseArrayBase,
    DictionaryAttr,
    IntegerAttr,
    IntegerType,
    ModuleOp,
    StringAttr,
    SymbolNameConstraint,
    SymbolRefAttr,
    UnitAttr,
    i64,
)
from xdsl.ir import Attribute, Block, Dialect, Operation, Region
from xdsl.irdl import (
    AnyAttr,
    irdl_op_definition,
    lazy_traits_def,
    opt_prop_def,
    prop_def,
    region_def,
    traits_def,
)
from xdsl.traits import HasParent, IsolatedFromAbove, NoTerminator, SymbolOpInterface, SymbolTable
from xdsl.utils.exceptions import VerifyException

from intaglio.dialects import (
    formula,
    gating,
    hazards,
    overtaking,
    part_of,
    rom,
    stated_cycles,
    timeline,
    wholeness,
)
from intaglio.dialects.by_name import ByName
from intaglio.dialects.encoded import DescriptorOp, FieldAttr, QueueOp
from intaglio.dialects.fabric import DomainOp, MachineOp, MemoryOp, memories, stated_memory
from intaglio.dialects.fixed_point import Real
from intaglio.dialects.formula import Formula
from intaglio.dialects.gating import NO_DOMAIN
from intaglio.dialects.isa import values
from intaglio.dialects.isa.arguments import Plain
from intaglio.dialects.isa.beat import WHOLE, Beat
from intaglio.dialects.isa.check import Misfit, check_kinds
from intaglio.dialects.isa.instruction import Instruction
from intaglio.dialects.isa.parts import Store
from intaglio.dialects.isa.queues import COUNTERS, reductions_of
from intaglio.dialects.isa.registry import instruction_of
from intaglio.dialects.machine import Early, Machine
from intaglio.dialects.memories import VECTORS, Span, memory_of, numbered, span_of
from intaglio.dialects.plain import PlainOp, counts
from intaglio.dialects.rom import CacheOp, KVType, Nodes
from intaglio.dialects.timeline import At


@irdl_op_definition
class BufferOp(PlainOp):
    """A place for a value: a memory of the chip, first row, type.

    Buffers may overlap when their values do not live at the same time, or when one is a part of
    the other, which its `of` names (`part_of`). A part that begins inside a row has the number of
    its first `element` there. A token's number is in a register of the token port, in no memory.

    Example:
    ```
    program.buffer @x in @vectors at 4 : !rom.fixed<64, 16>
    program.buffer @half in @vectors at 5 : !rom.fixed<8, 16> {element = 8 : i64, of = @x}
    program.buffer @token : i32
    ```
    """

    name = "program.buffer"
    sym_name = prop_def(SymbolNameConstraint())
    memory = opt_prop_def(SymbolRefAttr)
    row = opt_prop_def(IntegerAttr[I64])
    element = opt_prop_def(IntegerAttr[I64])
    of = opt_prop_def(SymbolRefAttr)
    type = prop_def(AnyAttr())
    assembly_format = "$sym_name (`in` $memory^ `at` $row)? `:` $type attr-dict"
    traits = lazy_traits_def(lambda: (SymbolOpInterface(), HasParent(ProgramOp)))

    def __init__(
        self,
        name: str,
        type_: Attribute,
        memory: str | None = None,
        row: int = 0,
        element: int = 0,
        of: str | None = None,
    ) -> None:
        self._build(
            sym_name=name,
            memory=memory,
            row=None if memory is None else row,
            element=element or None,
            of=of,
            type=type_,
        )

    @property
    def value(self) -> values.Value:
        """What is said of the value.

        Raises:
            VerifyException: no value has this type.
        """
        if (found := value_of(self.type)) is None:
            raise VerifyException(f"@{self.sym_name.data} has a type that no value has")
        return found

    @property
    def place(self) -> tuple[int, int]:
        """First row, and the first element there."""
        row, element = self.row, self.element
        return (
            0 if row is None else row.value.data,
            0 if element is None else element.value.data,
        )

    def verify_(self) -> None:
        """The value lies in the memory of its kind, which is large enough."""
        name, value = self.sym_name.data, self.value
        wanted = memory_of(value)
        memory = None if self.memory is None else self.memory.root_reference.data
        if memory != wanted:
            place = "no memory" if wanted is None else f"memory @{wanted}"
            raise VerifyException(f"@{name} lies in {place}, being of {value.kind}")
        program = self.parent_op()
        module = program.parent_op() if program is not None else None
        if memory is None or not isinstance(module, ModuleOp):
            return
        if (one := stated_memory(module, memory)) is None:
            raise VerifyException(
                f"@{name} lies in memory @{memory}, which the module does not state"
            )
        row, element = self.place
        if row < 0 or not 0 <= element < one.lanes:
            raise VerifyException(f"@{name} begins at row {row}, element {element}")
        where = span_of(value, row, element, one.lanes, longest(module))
        assert where is not None
        if (end := one.row_after(where)) > one.rows:
            raise VerifyException(f"@{name} ends at row {end}, memory @{memory} has {one.rows}")


_BUFFERS = ByName[BufferOp](lambda op: (op.sym_name.data, op) if isinstance(op, BufferOp) else None)


def longest(module: ModuleOp) -> int:
    """Tokens of the longest context, which scores are stored for."""
    kinds = (op.type for op in module.ops if isinstance(op, CacheOp))
    return max((kind.capacity.data for kind in kinds if isinstance(kind, KVType)), default=1)


def spans(module: ModuleOp | None, buffers: Iterable[BufferOp]) -> dict[str, tuple[int, int]]:
    """The buffers' places as ranges that overlap where the buffers do (`memories.numbered`)."""
    return numbered(_where(module, buffers))


def _where(module: ModuleOp | None, buffers: Iterable[BufferOp]) -> dict[str, Span | None]:
    chip = {} if module is None else memories(module)
    capacity = 1 if module is None else longest(module)

    def where(one: BufferOp) -> Span | None:
        memory = None if one.memory is None else chip.get(one.memory.root_reference.data)
        return span_of(one.value, *one.place, memory.lanes if memory else 1, capacity)

    return {one.sym_name.data: where(one) for one in buffers}


@irdl_op_definition
class InstructionOp(PlainOp):
    """One instruction of a queue, as `dialects/isa` declares it, or a beat of one.

    `reads` and `writes` name buffers, `uses` slots of the block (engraved tensors and caches by
    role), `arguments` are constants. `start` and `finish` hold, instance after instance, the cycles
    at the program's stated positions.

    It takes so many cycles to its finish; with `every` the next instruction of the queue may start
    so many cycles after it, before it has finished, and with `reduces` it leaves a reduction. A
    `beat` is a part of what is to be done: a pass, the first rows, groups, heads or steps of the
    result, and how many (0: the rest), the entry of its reductions, and whether more of the same
    follow (`isa.beat.Beat`).

    Example:
    ```
    program.instruction "matvec" on "matrix" reads [@xq] writes [@y] uses {weights = @q_proj}
        waits {vector = 2 : i64} takes "57" every "12" beat {first = 2 : i64, count = 2 : i64}
        {arguments = {pre_shift = 3 : i64}, onnx = [["MatMul"]]}
    ```
    """

    name = "program.instruction"
    opcode = prop_def(StringAttr)
    queue = prop_def(StringAttr)
    reads = prop_def(ArrayAttr[SymbolRefAttr])
    writes = prop_def(ArrayAttr[SymbolRefAttr])
    uses = prop_def(DictionaryAttr)
    waits = prop_def(DictionaryAttr)
    duration = prop_def(StringAttr)
    pace = opt_prop_def(StringAttr)
    reduces = opt_prop_def(StringAttr)
    beat = opt_prop_def(DictionaryAttr)
    arguments = opt_prop_def(DictionaryAttr)
    start = opt_prop_def(DenseArrayBase.constr(i64))
    finish = opt_prop_def(DenseArrayBase.constr(i64))
    onnx = prop_def(Nodes)
    assembly_format = (
        "$opcode `on` $queue `reads` $reads `writes` $writes `uses` $uses"
        " `waits` $waits `takes` $duration (`every` $pace^)? (`reduces` $reduces^)?"
        " (`beat` $beat^)? attr-dict"
    )
    traits = lazy_traits_def(lambda: (HasParent(BlockOp),))

    def __init__(
        self,
        does: Instruction[str],
        waits: Mapping[str, int],
        duration: Formula,
        onnx: Nodes,
        *,
        pace: Formula | None = None,
        reduces: Formula | None = None,
        beat: Beat = WHOLE,
    ) -> None:
        arguments = {
            one.name: value
            for one in does.form.arguments
            if (value := _argument(getattr(does, one.name))) is not None
        }
        self._build(
            opcode=does.opcode,
            queue=does.queue,
            reads=ArrayAttr([SymbolRefAttr(b) for b in does.reads]),
            writes=ArrayAttr([SymbolRefAttr(b) for b in does.writes]),
            uses=DictionaryAttr({r: SymbolRefAttr(s) for r, s in does.uses.items()}),
            waits=DictionaryAttr({q: IntegerAttr(n, i64) for q, n in waits.items()}),
            duration=str(duration),
            pace=None if pace is None else str(pace),
            reduces=None if reduces is None else str(reduces),
            beat=_numbers(beat.words) if beat.words else None,
            arguments=DictionaryAttr(arguments) if arguments else None,
            onnx=onnx,
        )

    @property
    def issue(self) -> timeline.Issue:
        """What the timeline needs of this instruction."""
        duration, pace, reduces = (
            None if one is None else formula.parse(one.data)
            for one in (self.duration, self.pace, self.reduces)
        )
        assert duration is not None
        return timeline.Issue(self.queue.data, counts(self.waits), duration, pace, reduces)

    @property
    def part(self) -> Beat:
        """Which part of the instruction it is.

        Raises:
            ValueError: its words make no sense.
        """
        return WHOLE if self.beat is None else Beat.read(counts(self.beat))

    @property
    def does(self) -> Instruction[str]:
        """The instruction, by the names of buffers and slots.

        Raises:
            Misfit: it is not as it is declared.
        """
        arguments: Mapping[str, Attribute] = self.arguments.data if self.arguments else {}
        return instruction_of(
            self.opcode.data,
            self.queue.data,
            _roots(self.reads),
            _roots(self.writes),
            _symbols(self.uses),
            {name: plain_argument(value) for name, value in arguments.items()},
        )

    def verify_(self) -> None:
        """It is as its instruction is declared; waits and duration make sense; names lead on."""
        opcode = self.opcode.data
        for role, slot in self.uses.data.items():
            if not isinstance(slot, SymbolRefAttr):
                raise VerifyException(f"'{role}' of '{opcode}' names no slot")
        block = self.parent_op()
        try:
            _ = self.does
        except Misfit as error:
            place = f"{_place(self, block)}: " if isinstance(block, BlockOp) else ""
            raise VerifyException(f"{place}{error}") from error
        try:
            _ = self.issue, self.part
        except ValueError as error:
            raise VerifyException(str(error)) from error
        if self.reduces is not None and self.pace is None:
            raise VerifyException(f"'{opcode}' leaves a reduction and has no pace")
        for name in self.waits.data:
            if name not in COUNTERS:
                raise VerifyException(f"unknown queue '{name}', known are {', '.join(COUNTERS)}")
        program = block.parent_op() if block is not None else None
        if isinstance(block, BlockOp) and isinstance(program, ProgramOp):
            for used in _roots((*self.reads, *self.writes)):
                if _BUFFERS.find(program.body.block, used) is None:
                    raise VerifyException(f"no buffer @{used} is declared")
            for slot in _symbols(self.uses).values():
                if not any(slot in instance.data for instance in block.instances):
                    raise VerifyException(
                        f"no instance of @{block.sym_name.data} binds slot @{slot}"
                    )


def _numbers(values: Mapping[str, int]) -> DictionaryAttr:
    return DictionaryAttr({name: IntegerAttr(value, i64) for name, value in values.items()})


def _argument(value: int | str | bool | Real | None) -> Attribute | None:
    """An argument as an attribute; None for what is left out."""
    match value:
        case bool():
            return UnitAttr() if value else None
        case int():
            return IntegerAttr(value, i64)
        case str():
            return StringAttr(value)
        case Real():
            return rom.RealAttr(value.mantissa, value.exponent)
        case None:
            return None


def plain_argument(attribute: Attribute) -> Plain | Attribute:
    """An argument as in program.json; what has no such form as it is."""
    match attribute:
        case IntegerAttr():
            return attribute.value.data
        case StringAttr():
            return attribute.data
        case UnitAttr():
            return True
        case rom.RealAttr():
            return [attribute.mantissa.data, attribute.exponent.data]
        case _:
            return attribute


@irdl_op_definition
class BlockOp(PlainOp):
    """Instructions that run once for each instance, one instance after the other.

    An instance binds each slot to a parameter, cache or power domain of the module (`none` is the
    domain without tensors). A block with `sampled` runs
    only for a token whose successor is wanted (the head).

    Example:
    ```
    program.block @decoder instances [{q_proj = @l0_q_proj}, {q_proj = @l1_q_proj}] { ... }
    ```
    """

    name = "program.block"
    sym_name = prop_def(SymbolNameConstraint())
    instances = prop_def(ArrayAttr[DictionaryAttr])
    sampled = opt_prop_def(UnitAttr)
    body = region_def("single_block")
    assembly_format = "$sym_name `instances` $instances (`sampled` $sampled^)? $body attr-dict"
    traits = lazy_traits_def(lambda: (SymbolOpInterface(), NoTerminator(), HasParent(ProgramOp)))

    def __init__(
        self,
        name: str,
        instances: Sequence[dict[str, str]],
        instructions: Iterable[InstructionOp],
        sampled: bool = False,
    ) -> None:
        bound = [{slot: SymbolRefAttr(b) for slot, b in one.items()} for one in instances]
        self._build(
            regions=[Region(Block(list(instructions)))],
            sym_name=name,
            instances=ArrayAttr([DictionaryAttr(one) for one in bound]),
            sampled=sampled,
        )

    @property
    def instructions(self) -> Iterator[InstructionOp]:
        """The instructions in order."""
        return (op for op in self.body.block.ops if isinstance(op, InstructionOp))

    @property
    def bindings(self) -> list[dict[str, str]]:
        """What each instance binds slots to."""
        return [_symbols(one) for one in self.instances]

    @property
    def timing(self) -> timeline.Block:
        """What the timeline needs of this block."""
        return timeline.Block(
            self.sym_name.data,
            [instruction.issue for instruction in self.instructions],
            len(self.instances.data),
        )

    def verify_(self) -> None:
        """Instances bind the same slots; no instruction waits for what is issued after it, nor
        reaches back behind the instance before."""
        if not self.instances.data:
            raise VerifyException("a block has at least one instance")
        slots = set(self.instances.data[0].data)
        for instance in self.instances:
            if set(instance.data) != slots:
                raise VerifyException(f"instances of @{self.sym_name.data} bind different slots")
        issued = dict.fromkeys(COUNTERS, 0)
        back = dict[str, int]()
        for instruction in self.instructions:
            for queue, count in instruction.waits.data.items():
                if not isinstance(count, IntegerAttr):
                    raise VerifyException(f"a wait for queue '{queue}' is a count, not {count}")
                back[queue] = max(back.get(queue, 0), -count.value.data)
                if count.value.data > issued[queue]:
                    raise VerifyException(
                        f"'{instruction.opcode.data}' waits for {count.value.data} instructions "
                        f"of queue '{queue}', {issued[queue]} are issued before it"
                    )
            issued[instruction.queue.data] += 1
            issued[reductions_of(instruction.queue.data)] += instruction.reduces is not None
        for queue, count in back.items():
            if count > issued[queue]:
                raise VerifyException(
                    f"a wait leaves out the last {count} instructions of queue '{queue}'; an "
                    f"instance of @{self.sym_name.data} has {issued[queue]}"
                )


@irdl_op_definition
class ProgramOp(PlainOp):
    """The program of one token: buffers of the memories, then blocks.

    `positions` are those at which start and finish are stated; `token`, `logits` name the buffers
    the result is read from.

    Example:
    ```
    program.program @decode positions [0, 127] logits @logits token @next { ... }
    ```
    """

    name = "program.program"
    sym_name = prop_def(SymbolNameConstraint())
    positions = prop_def(DenseArrayBase.constr(i64))
    logits = prop_def(SymbolRefAttr)
    token = prop_def(SymbolRefAttr)
    body = region_def("single_block")
    assembly_format = (
        "$sym_name `positions` $positions `logits` $logits `token` $token $body attr-dict"
    )
    traits = traits_def(SymbolOpInterface(), SymbolTable(), NoTerminator(), IsolatedFromAbove())

    def __init__(
        self,
        name: str,
        positions: Sequence[int],
        logits: str,
        token: str,
        ops: Iterable[BufferOp | BlockOp],
    ) -> None:
        self._build(
            regions=[Region(Block(list(ops)))],
            sym_name=name,
            positions=DenseArrayBase.from_list(i64, list(positions)),
            logits=logits,
            token=token,
        )

    @property
    def buffers(self) -> Iterator[BufferOp]:
        """The places of values."""
        return (op for op in self.body.block.ops if isinstance(op, BufferOp))

    @property
    def blocks(self) -> Iterator[BlockOp]:
        """The blocks in order."""
        return (op for op in self.body.block.ops if isinstance(op, BlockOp))

    def verify_(self) -> None:
        """Logits and token are buffers, and what the instructions say together holds.

        Instructions read, write and use what they are declared for (`isa`), waits order what
        touches the same bytes or the same cache (`hazards`), every product finds its ROM awake
        (`gating`), stated cycles follow from durations and waits.
        """
        names = {buffer.sym_name.data for buffer in self.buffers}
        for used in (self.logits, self.token):
            if used.root_reference.data not in names:
                raise VerifyException(f"no buffer @{used.root_reference.data} is declared")
        module = self.parent_op()
        around = list(module.ops) if isinstance(module, ModuleOp) else []
        whole = _Whole(list(self.blocks))
        written = {name for own in whole.does for one in own for name in one.writes}
        self._check_parts(module if isinstance(module, ModuleOp) else None, written)
        whole.check_kinds(self.buffers, around)
        machine = next((op.machine for op in around if isinstance(op, MachineOp)), None)
        places = spans(module if isinstance(module, ModuleOp) else None, self.buffers)
        kinds = {one.sym_name.data: one.value for one in self.buffers}
        whole.check_order(places, kinds, around, machine)
        whole.check_power(
            {
                tensor: op.sym_name.data
                for op in around
                if isinstance(op, DomainOp)
                for tensor in op.names
            }
        )
        whole.check_cycles(
            list(self.positions.get_values()), None if machine is None else machine.issue
        )

    def _check_parts(self, module: ModuleOp | None, written: Container[str]) -> None:
        of = {o.sym_name.data: o.of.root_reference.data for o in self.buffers if o.of is not None}
        kinds = {one.sym_name.data: one.value for one in self.buffers}
        places = _where(module, self.buffers)
        for name in of:
            if (fault := part_of.fault(name, of, kinds, places, written)) is not None:
                raise VerifyException(f"@{name} {fault}")


class _Whole:
    """What is checked of all blocks of a program together."""

    def __init__(self, blocks: Sequence[BlockOp]) -> None:
        self.blocks = blocks
        self.instructions = [list(block.instructions) for block in blocks]
        self.timing = [block.timing for block in blocks]
        self.slots = [block.bindings for block in blocks]
        self.does = [[one.does for one in own] for own in self.instructions]

    @cached_property
    def taken(self) -> list[list[hazards.Taken]]:
        """Of each block what its beats do, which part of it, what the timeline knows of them."""
        return [
            [(does, op.part, issue) for does, op, issue in zip(own, ops, block.issues, strict=True)]
            for own, ops, block in zip(self.does, self.instructions, self.timing, strict=True)
        ]

    def name(self, at: At) -> str:
        """An instruction instance, as messages name it."""
        block, instance, number = at
        one = self.instructions[block][number]
        return (
            f"'{one.opcode.data}' number {number} of instance {instance} of "
            f"@{self.blocks[block].sym_name.data} (queue {one.queue.data})"
        )

    def check_kinds(self, buffers: Iterable[BufferOp], around: Iterable[Operation]) -> None:
        """Instructions take the kinds of values and buffers that they name.

        Args:
            buffers: of the program.
            around: the operations of its module.
        """
        found = {one.sym_name.data: value_of(one.type) for one in buffers}
        kinds = {name: None if one is None else type(one) for name, one in found.items()}
        stores = _stores(around)
        for number, instances in enumerate(self.slots):
            for op, does in zip(self.instructions[number], self.does[number], strict=True):
                try:
                    check_kinds(does, kinds, instances, stores)
                except Misfit as error:
                    raise VerifyException(f"{_place(op, self.blocks[number])}: {error}") from error

    def check_order(
        self,
        buffers: Mapping[str, tuple[int, int]],
        kinds: Mapping[str, values.Value],
        around: Sequence[Operation],
        machine: Machine | None,
    ) -> None:
        """Waits order reads and writes.

        Args:
            buffers: where they lie.
            kinds: of their values.
            around: the operations of the program's module.
            machine: the chip; None: one whose units read everything at their start, and share
                nothing.
        """
        caches = {
            op.sym_name.data: op.type
            for op in around
            if isinstance(op, CacheOp) and isinstance(op.type, KVType)
        }
        heads = {name: type_.heads.data for name, type_ in caches.items()}
        heads |= {
            op.sym_name.data: op.type.size.data
            for op in around
            if isinstance(op, rom.StateOp) and isinstance(op.type, rom.StateType)
        }
        heads |= {
            op.sym_name.data: op.type.heads.data
            for op in around
            if isinstance(op, rom.StateOp) and isinstance(op.type, rom.MatricesType)
        }
        capacity = max((type_.capacity.data for type_ in caches.values()), default=1)
        rows = {op.memory.data: op.content for op in around if isinstance(op, MemoryOp)}
        lanes = rows[VECTORS].lanes if VECTORS in rows else 1
        self.check_whole(kinds, heads)
        early = Early() if machine is None else machine.early
        try:
            accesses = [
                hazards.accesses(taken, slots, kinds, heads, lanes, capacity, early)
                for taken, slots in zip(self.taken, self.slots, strict=True)
            ]
        except ValueError as error:
            raise VerifyException(str(error)) from error
        race = hazards.first_race(
            self.timing,
            accesses,
            self.slots,
            buffers,
            sampled=[block.sampled is not None for block in self.blocks],
            shared_adders=machine is not None and bool(machine.shared_arrays),
        )
        if race is not None:
            raise VerifyException(race.told(self.name, "@"))
        types = [op.type for op in around if isinstance(op, rom.ParameterOp)]
        ranks = [min(one.dims) for one in types if isinstance(one, rom.AdapterType)]
        sampled = [block.sampled is not None for block in self.blocks]
        found = overtaking.first_overtaking(self.timing, capacity, max(ranks, default=0), sampled)
        if found is not None:
            raise VerifyException(
                f"the {found.what} of {self.name(found.later)} may come before that of "
                f"{self.name(found.earlier)}, which is taken first: waits count in order"
            )

    def check_whole(self, kinds: Mapping[str, values.Value], heads: Mapping[str, int]) -> None:
        """Beats make whole instructions.

        Args:
            kinds: of values.
            heads: of caches.
        """
        for number, taken in enumerate(self.taken):
            fault = wholeness.first_fault(taken, self.slots[number], kinds, heads)
            if fault is not None:
                at = number, 0, fault.beat
                raise VerifyException(f"{self.name(at)}: {fault.reason}")

    def check_power(self, domains: dict[str, str]) -> None:
        """Every product finds its domain on; `domains` has that of each tensor."""
        if not domains:
            return
        found = gating.first_unpowered(self.timing, gating.roles_of(self.does, self.slots, domains))
        if found is not None:
            raise VerifyException(
                f"{self.name(found.at)} may find power domain @{found.domain} off: {found.reason}"
            )

    def check_cycles(self, positions: Sequence[int], issue: int | None) -> None:
        """Stated cycles follow from the program."""
        stated = [
            [
                (
                    None if one.start is None else one.start.get_values(),
                    None if one.finish is None else one.finish.get_values(),
                )
                for one in own
            ]
            for own in self.instructions
        ]
        try:
            found = stated_cycles.first_contradiction(self.timing, issue, positions, stated)
        except ValueError as error:
            raise VerifyException(f"an instruction {error}") from error
        if found is not None:
            raise VerifyException(
                f"{self.name(found.at)} states {found.what} {found.stated} at position "
                f"{found.position}; its duration and waits make it {found.follows}"
            )


def value_of(type_: Attribute) -> values.Value | None:
    """What the type of a buffer says of its value; None for one that no program has."""
    match type_:
        case rom.FixedType():
            return values.Fixed(type_.size.data, type_.fraction.data)
        case rom.QuantizedType():
            return values.Quantized(type_.groups.data, type_.width.data, type_.format.data)
        case rom.BlocksType():
            block, fraction = type_.block.data, type_.fraction.data
            fmt, wide = type_.format.data, type_.wide.data
            return values.Blocks(type_.size, fmt, block, fraction, wide)
        case rom.ScaleType():
            return values.Scale()
        case rom.ScoresType():
            return values.Scores(type_.heads.data, type_.fraction.data)
        case rom.ProbabilitiesType():
            return values.Probabilities(type_.heads.data, type_.format.data)
        case rom.RoutingType():
            return values.Routing(type_.chosen.data, type_.experts.data)
        case IntegerType():
            return values.Token()
        case _:
            return None


def _stores(around: Iterable[Operation]) -> dict[str, Store]:
    """What instructions can use, by name."""
    found: dict[str, Store] = {}
    for op in around:
        match op:
            case rom.ParameterOp(type=rom.ROMTensorType() | rom.AdapterType() as type_):
                in_rom = isinstance(type_, rom.ROMTensorType)
                found[op.sym_name.data] = Store.of_tensor(in_rom, type_.code.data, type_.dims)
            case rom.CacheOp(type=rom.KVType(static=static)):
                found[op.sym_name.data] = Store.STATIC_CACHE if static.data else Store.CACHE
            case rom.StateOp(type=rom.MatricesType()):
                found[op.sym_name.data] = Store.MATRICES
            case rom.StateOp():
                found[op.sym_name.data] = Store.STATE
            case DomainOp():
                found[op.sym_name.data] = found[NO_DOMAIN] = Store.DOMAIN
            case _:
                pass
    return found


def _place(one: InstructionOp, block: BlockOp) -> str:
    """Which instruction of a block it is, as messages name it."""
    number = next(n for n, other in enumerate(block.instructions) if other is one)
    return f"instruction {number} of @{block.sym_name.data}"


def _roots(symbols: Iterable[SymbolRefAttr]) -> list[str]:
    return [symbol.root_reference.data for symbol in symbols]


def _symbols(names: DictionaryAttr) -> dict[str, str]:
    return {
        name: symbol.root_reference.data
        for name, symbol in names.data.items()
        if isinstance(symbol, SymbolRefAttr)
    }


PROGRAM = Dialect(
    "program",
    [ProgramOp, BlockOp, InstructionOp, BufferOp, QueueOp, DescriptorOp],
    [FieldAttr],
)
