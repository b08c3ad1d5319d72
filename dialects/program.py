"""The program dialect says *when*: instructions on queues, what they wait for, how long they take.

A `program.program` is a list of blocks. A block runs once for each of its instances; its
instructions name buffers of the vector memory and, through slots, engraved tensors and caches.
`waits`, durations, start and finish follow `dialects/timeline.py`. See docs/dialects/program.md for
the rationale.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

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
    IRDLOperation,
    ParsePropInAttrDict,
    irdl_op_definition,
    lazy_traits_def,
    opt_prop_def,
    prop_def,
    region_def,
    traits_def,
)
from xdsl.traits import HasParent, IsolatedFromAbove, NoTerminator, SymbolOpInterface, SymbolTable
from xdsl.utils.exceptions import VerifyException

from intaglio.dialects import formula, gating, hazards, rom, stated_cycles, timeline
from intaglio.dialects.clocks import At
from intaglio.dialects.encoded import DescriptorOp, FieldAttr, QueueOp
from intaglio.dialects.fabric import DomainOp, MachineOp
from intaglio.dialects.formula import Formula
from intaglio.dialects.gating import NO_DOMAIN
from intaglio.dialects.isa import values
from intaglio.dialects.isa.arguments import Plain
from intaglio.dialects.isa.check import Misfit, check_kinds
from intaglio.dialects.isa.instruction import Instruction
from intaglio.dialects.isa.parts import Store
from intaglio.dialects.isa.queues import QUEUES
from intaglio.dialects.isa.registry import instruction_of
from intaglio.dialects.rom import Nodes


@irdl_op_definition
class BufferOp(IRDLOperation):
    """A place in the vector units' memory for a value: first byte, bytes, type.

    Buffers may overlap when their values do not live at the same time, or when one is a part of
    the other.

    Example:
    ```
    program.buffer @x at 0 size 256 : !rom.fixed<64, 16>
    ```
    """

    name = "program.buffer"
    sym_name = prop_def(SymbolNameConstraint())
    address = prop_def(IntegerAttr[I64])
    size = prop_def(IntegerAttr[I64])
    type = prop_def(AnyAttr())
    assembly_format = "$sym_name `at` $address `size` $size `:` $type attr-dict"
    irdl_options = (ParsePropInAttrDict(),)
    traits = lazy_traits_def(lambda: (SymbolOpInterface(), HasParent(ProgramOp)))

    def __init__(self, name: str, address: int, size: int, type_: Attribute) -> None:
        super().__init__(
            properties={
                "sym_name": StringAttr(name),
                "address": IntegerAttr(address, i64),
                "size": IntegerAttr(size, i64),
                "type": type_,
            }
        )

    def verify_(self) -> None:
        """The buffer has bytes, and they are in the vector units' memory."""
        name, first, size = self.sym_name.data, self.address.value.data, self.size.value.data
        if first < 0 or size < 1:
            raise VerifyException(f"buffer @{name} needs an address from 0 on and a size from 1 on")
        program = self.parent_op()
        module = None if program is None else program.parent_op()
        around = module.ops if isinstance(module, ModuleOp) else ()
        for machine in (op.machine for op in around if isinstance(op, MachineOp)):
            if first + size > machine.vector_sram_bytes:
                raise VerifyException(
                    f"buffer @{name} ends at byte {first + size} of {machine.vector_sram_bytes} "
                    "in the vector units' memory"
                )


@irdl_op_definition
class InstructionOp(IRDLOperation):
    """One instruction of a queue, as `dialects/isa` declares it.

    `reads` and `writes` name buffers, `uses` slots of the block (engraved tensors and caches by
    role), `arguments` are constants. `start` and `finish` hold, instance after instance, the cycles
    at the program's stated positions.

    Example:
    ```
    program.instruction "matvec" on "matrix" reads [@xq] writes [@y] uses {weights = @q_proj}
        waits {vector = 2 : i64} takes "57" {arguments = {pre_shift = 3 : i64}, onnx = [["MatMul"]]}
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
    arguments = opt_prop_def(DictionaryAttr)
    start = opt_prop_def(DenseArrayBase.constr(i64))
    finish = opt_prop_def(DenseArrayBase.constr(i64))
    onnx = prop_def(Nodes)
    assembly_format = (
        "$opcode `on` $queue `reads` $reads `writes` $writes `uses` $uses"
        " `waits` $waits `takes` $duration attr-dict"
    )
    irdl_options = (ParsePropInAttrDict(),)
    traits = lazy_traits_def(lambda: (HasParent(BlockOp),))

    def __init__(
        self,
        opcode: str,
        queue: str,
        reads: Sequence[str],
        writes: Sequence[str],
        uses: dict[str, str],
        waits: dict[str, int],
        duration: Formula,
        onnx: Nodes,
        arguments: dict[str, Attribute] | None = None,
    ) -> None:
        super().__init__(
            properties={
                "opcode": StringAttr(opcode),
                "queue": StringAttr(queue),
                "reads": ArrayAttr([SymbolRefAttr(b) for b in reads]),
                "writes": ArrayAttr([SymbolRefAttr(b) for b in writes]),
                "uses": DictionaryAttr({r: SymbolRefAttr(s) for r, s in uses.items()}),
                "waits": DictionaryAttr({q: IntegerAttr(n, i64) for q, n in waits.items()}),
                "duration": StringAttr(str(duration)),
                "arguments": DictionaryAttr(arguments) if arguments else None,
                "onnx": onnx,
            }
        )

    @property
    def issue(self) -> timeline.Issue:
        """What the timeline needs of this instruction."""
        waits = {
            queue: count.value.data
            for queue, count in self.waits.data.items()
            if isinstance(count, IntegerAttr)
        }
        return timeline.Issue(self.queue.data, waits, formula.parse(self.duration.data))

    @property
    def does(self) -> Instruction[str]:
        """The instruction, by the names of buffers and slots.

        Raises:
            Misfit: it is not as it is declared.
        """
        arguments = {} if self.arguments is None else self.arguments.data
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
            formula.parse(self.duration.data)
        except ValueError as error:
            raise VerifyException(str(error)) from error
        for name in self.waits.data:
            if name not in QUEUES:
                raise VerifyException(f"unknown queue '{name}', known are {', '.join(QUEUES)}")
        program = block.parent_op() if block is not None else None
        if isinstance(block, BlockOp) and isinstance(program, ProgramOp):
            buffers = {b.sym_name.data for b in program.buffers}
            for used in (*self.reads, *self.writes):
                if used.root_reference.data not in buffers:
                    raise VerifyException(f"no buffer @{used.root_reference.data} is declared")
            slots = {slot for instance in block.instances for slot in instance.data}
            for slot in _symbols(self.uses).values():
                if slot not in slots:
                    raise VerifyException(
                        f"no instance of @{block.sym_name.data} binds slot @{slot}"
                    )


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
class BlockOp(IRDLOperation):
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
    irdl_options = (ParsePropInAttrDict(),)
    traits = lazy_traits_def(lambda: (SymbolOpInterface(), NoTerminator(), HasParent(ProgramOp)))

    def __init__(
        self,
        name: str,
        instances: Sequence[dict[str, str]],
        instructions: Iterable[InstructionOp],
        sampled: bool = False,
    ) -> None:
        super().__init__(
            properties={
                "sym_name": StringAttr(name),
                "instances": ArrayAttr(
                    [
                        DictionaryAttr({s: SymbolRefAttr(b) for s, b in one.items()})
                        for one in instances
                    ]
                ),
                "sampled": UnitAttr() if sampled else None,
            },
            regions=[Region(Block(list(instructions)))],
        )

    @property
    def instructions(self) -> Iterator[InstructionOp]:
        """The instructions in order."""
        return (op for op in self.body.block.ops if isinstance(op, InstructionOp))

    @property
    def timing(self) -> timeline.Block:
        """What the timeline needs of this block."""
        return timeline.Block(
            self.sym_name.data,
            [instruction.issue for instruction in self.instructions],
            len(self.instances.data),
        )

    def verify_(self) -> None:
        """Instances bind the same slots; no instruction waits for what is issued after it."""
        if not self.instances.data:
            raise VerifyException("a block has at least one instance")
        slots = set(self.instances.data[0].data)
        for instance in self.instances:
            if set(instance.data) != slots:
                raise VerifyException(f"instances of @{self.sym_name.data} bind different slots")
        issued = dict.fromkeys(QUEUES, 0)
        for instruction in self.instructions:
            for queue, count in instruction.waits.data.items():
                if not isinstance(count, IntegerAttr) or count.value.data < 0:
                    raise VerifyException(f"a wait for queue '{queue}' is a count, not {count}")
                if count.value.data > issued[queue]:
                    raise VerifyException(
                        f"'{instruction.opcode.data}' waits for {count.value.data} instructions "
                        f"of queue '{queue}', {issued[queue]} are issued before it"
                    )
            issued[instruction.queue.data] += 1


@irdl_op_definition
class ProgramOp(IRDLOperation):
    """The program of one token: buffers of the vector memory, then blocks.

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
    irdl_options = (ParsePropInAttrDict(),)
    traits = traits_def(SymbolOpInterface(), SymbolTable(), NoTerminator(), IsolatedFromAbove())

    def __init__(
        self,
        name: str,
        positions: Sequence[int],
        logits: str,
        token: str,
        ops: Iterable[BufferOp | BlockOp],
    ) -> None:
        super().__init__(
            properties={
                "sym_name": StringAttr(name),
                "positions": DenseArrayBase.from_list(i64, list(positions)),
                "logits": SymbolRefAttr(logits),
                "token": SymbolRefAttr(token),
            },
            regions=[Region(Block(list(ops)))],
        )

    @property
    def buffers(self) -> Iterator[BufferOp]:
        """The buffers of the vector memory."""
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
        whole.check_kinds(self.buffers, around)
        machine = next((op.machine for op in around if isinstance(op, MachineOp)), None)
        whole.check_order(self.buffers, shared=machine is not None and bool(machine.shared_arrays))
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


class _Whole:
    """What is checked of all blocks of a program together."""

    def __init__(self, blocks: Sequence[BlockOp]) -> None:
        self.blocks = blocks
        self.instructions = [list(block.instructions) for block in blocks]
        self.timing = [block.timing for block in blocks]
        self.slots = [[_symbols(one) for one in block.instances] for block in blocks]
        self.uses = [[_symbols(one.uses) for one in own] for own in self.instructions]

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
        kinds = {one.sym_name.data: _KINDS.get(type(one.type)) for one in buffers}
        stores = _stores(around)
        for block, own, instances in zip(self.blocks, self.instructions, self.slots, strict=True):
            for one in own:
                try:
                    check_kinds(one.does, kinds, instances, stores)
                except Misfit as error:
                    raise VerifyException(f"{_place(one, block)}: {error}") from error

    def check_order(self, buffers: Iterable[BufferOp], shared: bool) -> None:
        """Waits order reads and writes; `shared` says that tiles and H-Units share adders."""
        race = hazards.first_race(
            self.timing,
            [
                [
                    hazards.Access.of(one.opcode.data, _roots(one.reads), _roots(one.writes), uses)
                    for one, uses in zip(own, used, strict=True)
                ]
                for own, used in zip(self.instructions, self.uses, strict=True)
            ],
            self.slots,
            {
                one.sym_name.data: (
                    one.address.value.data,
                    one.address.value.data + one.size.value.data,
                )
                for one in buffers
            },
            sampled=[block.sampled is not None for block in self.blocks],
            shared_adders=shared,
        )
        if race is not None:
            raise VerifyException(race.told(self.name, "@"))

    def check_power(self, domains: dict[str, str]) -> None:
        """Every product finds its domain on; `domains` has that of each tensor."""
        if not domains:
            return
        uses = [
            [(one.opcode.data, one.queue.data, use) for one, use in zip(own, used, strict=True)]
            for own, used in zip(self.instructions, self.uses, strict=True)
        ]
        found = gating.first_unpowered(self.timing, gating.roles_of(uses, self.slots, domains))
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


_KINDS: dict[type[Attribute], type[values.Value]] = {
    rom.FixedType: values.Fixed,
    rom.QuantizedType: values.Quantized,
    rom.ScoresType: values.Scores,
    rom.ProbabilitiesType: values.Probabilities,
    IntegerType: values.Token,
}
"""What the types of buffers stand for."""


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
