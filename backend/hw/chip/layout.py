"""What the chip's modules and images are made of: the program in the forms that units take.

Where values lie, and how large the memories are, the program says (`dialects/memories.py`). Scales
of quantised vectors lie in a file of their own at the value's first row plus the group's number;
those of probabilities, with their sums, have a file with an entry for each head. What the memories
hold is in `contents.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product
from typing import TYPE_CHECKING

from intaglio.backend.hw.chip import sequencer
from intaglio.backend.hw.chip.in_flight import Order
from intaglio.backend.hw.chip.sequencer import Entry, QueueProgram
from intaglio.backend.hw.units.adapter.interface import AdapterUnit
from intaglio.backend.hw.units.adapter.layout import places_of
from intaglio.backend.hw.units.adapter.layout import products as adapter_products
from intaglio.backend.hw.units.adapter.sizes import AdapterModel
from intaglio.backend.hw.units.attention.interface import AttentionUnit
from intaglio.backend.hw.units.attention.unit import AttentionModel
from intaglio.backend.hw.units.matrix import plan as matrix_plan
from intaglio.backend.hw.units.matrix.interface import MatrixUnit
from intaglio.backend.hw.units.matrix.plan import MatrixConfig
from intaglio.backend.hw.units.power import PowerUnit
from intaglio.backend.hw.units.recurrence.interface import RecurrenceUnit
from intaglio.backend.hw.units.recurrence.sizes import RecurrenceModel
from intaglio.backend.hw.units.refusals import attempted, refuse
from intaglio.backend.hw.units.unit import Unit
from intaglio.backend.hw.units.vector.encode import Places
from intaglio.backend.hw.units.vector.interface import VectorUnit
from intaglio.backend.hw.units.vector.shape import VectorShape
from intaglio.dialects import memories
from intaglio.dialects.constant_rom import APART, CONSTANTS, Form
from intaglio.dialects.descriptor import Field, Fields
from intaglio.dialects.encoded import DescriptorOp, QueueOp, Value
from intaglio.dialects.errors import UserError
from intaglio.dialects.formats import FORMATS
from intaglio.dialects.h_units import KV, KV_SCALES
from intaglio.dialects.isa.queues import QUEUES

if TYPE_CHECKING:
    from intaglio.backend.program.program import Instruction, Program

_OF_ATTENTION = (memories.SCORES, memories.LARGEST, memories.PROBABILITIES, memories.HEADS)
"""Memories of values that only attention over caches has."""


@dataclass(frozen=True)
class Context:
    """A context of a chip that has several.

    Attributes:
        program: as its tokens have it (`Program.in_context`).
        units: that say to the chip's own units where its values lie.
    """

    program: Program
    units: tuple[Unit, ...]


@dataclass(frozen=True)
class Layout:
    """All that the chip's modules and images are made of.

    Attributes:
        program: the program.
        units: all units.
        queues: what each queue executes.
        fields: of the descriptors of each queue's units.
        matrix: sizes of the matrix array.
        attention: sizes of the attention unit; None without one, as of states alone.
        adapters: sizes of the adapter unit; None without one.
        vector: sizes of the vector unit.
        places: what the vector unit's encoder has to know.
        others: the contexts but the first one, which is that of `program` and `units`.
        orders: of each queue what keeps its results in order between tokens, where there are
            several contexts.
    """

    program: Program
    units: tuple[Unit, ...]
    queues: Mapping[str, QueueProgram]
    fields: Mapping[str, Fields]
    matrix: MatrixConfig
    attention: AttentionModel | None
    adapters: AdapterModel | None
    vector: VectorShape
    places: Places
    others: tuple[Context, ...] = ()
    orders: Mapping[str, Order] = field(default_factory=dict[str, Order])

    @property
    def contexts(self) -> tuple[Context, ...]:
        """All of them."""
        return Context(self.program, self.units), *self.others

    @property
    def rows(self) -> dict[str, int]:
        """Words of each memory beside the units, by its name."""
        return {name: one.rows for name, one in self.program.memories.items()}

    @property
    def constant_rows(self) -> int:
        """Rows of the constant ROM."""
        return self.program.memories[CONSTANTS].rows

    @cached_property
    def encoded(self) -> dict[tuple[int, str], QueueOp]:
        """The descriptors of each context and queue."""
        return encode(self)

    @property
    def lanes(self) -> int:
        """Elements of a row."""
        return self.program.machine.vector_lanes

    def row_of(self, buffer: str) -> int:
        """The first row of a buffer in its memory."""
        return self.program.row_of(buffer)

    def entry(self, queue: str, number: int) -> tuple[Instruction, Mapping[str, str]]:
        """The instruction that a queue executes as its `number`-th, and what its slots bind."""
        entry = self.queues[queue].entries[number]
        block = self.program.blocks[entry.block]
        return block.instructions[entry.instruction], block.instances[entry.instance]


def layout_of(program: Program) -> Layout:
    """Lays a program out for the hardware.

    Raises:
        UserError: the program needs what the hardware does not have.
    """
    refuse(refusals(program))
    needed = [memories.VECTORS, memories.CODES, memories.CODE_SCALES, CONSTANTS]
    if program.caches:
        needed += [*_OF_ATTENTION, KV, KV_SCALES]
    if missing := [name for name in needed if name not in program.memories]:
        raise UserError(f"the hardware needs a program with memories {', '.join(missing)}")
    rows: dict[str, int] = dict.fromkeys(memories.OF_VALUES, 0)
    rows |= {name: one.rows for name, one in program.memories.items() if name in rows}
    constant_rows = program.memories[CONSTANTS].rows
    vector_depth = max(rows[memories.VECTORS], rows[memories.CODES])

    biases = bias_rows(program)
    matrix = matrix_plan.configure(
        program,
        biases,
        vector_depth=vector_depth,
        constant_depth=constant_rows,
    )
    heads = heads_of(program)
    row_bits = max(2, max(rows[name] for name in memories.OF_KIND.values()).bit_length())
    attention = AttentionModel(program, row_bits, heads) if program.caches else None
    adapter_places = places_of(program)
    adapters = None
    if adapter_places is not None:
        adapters = AdapterModel(program, adapter_places, row_bits)
    shape = VectorShape.of(
        program,
        constant_rows=constant_rows,
        score_rows=rows[memories.SCORES],
        score_heads=rows[memories.LARGEST],
        probability_rows=rows[memories.PROBABILITIES],
        scale_rows=0 if attention is None else attention.kv.scale_depth,
        routing_rows=rows[memories.ROUTINGS],
    )
    scales = max(
        rows[name] for name in (memories.CODE_SCALES, memories.NORM_SCALES, memories.HEADS)
    )
    shape = replace(shape, rows=vector_depth, scales=scales)
    places = Places(
        heads=heads,
        value_scales={}
        if attention is None
        else {name: place.scale_row for name, place in attention.kv.places.items()},
        score_rows=program.rows_of_head,
        blocks=shape.blocks,
    )
    units = tuple(
        unit
        for unit in (
            PowerUnit.of(program),
            MatrixUnit(matrix, biases),
            None if attention is None else AttentionUnit(attention),
            None if adapters is None else AdapterUnit(adapters),
            RecurrenceUnit(RecurrenceModel(program, row_bits)) if program.matrices else None,
            VectorUnit(program.machine, shape, places),
        )
        if unit is not None
    )
    fields = queue_fields(units)
    queues = sequencer.unroll([(one.timing, one.sampled) for one in program.blocks], list(fields))
    orders: dict[str, Order] = {}
    if program.machine.contexts > 1:
        orders = {
            queue: Order([one.guard for one in entries], [one.stage for one in entries])
            for queue, entries in program.flight.entries.items()
        }
        fields |= {
            queue: Fields((*fields[queue].fields, *one.fields)) for queue, one in orders.items()
        }

    def placed(unit: Unit, one: Program) -> Unit:
        """A unit that says where the values of a context's tokens lie."""
        match unit:
            case VectorUnit():
                return replace(unit, places=replace(places, heads=heads_of(one)))
            case AttentionUnit(model=model):
                return replace(unit, model=replace(model, program=one, heads_of=heads_of(one)))
            case _:
                return unit

    others = [program.in_context(number) for number in range(1, program.machine.contexts)]
    return Layout(
        program=program,
        units=units,
        queues=queues,
        fields=fields,
        matrix=matrix,
        attention=attention,
        adapters=adapters,
        vector=shape,
        places=places,
        others=tuple(Context(one, tuple(placed(u, one) for u in units)) for one in others),
        orders=orders,
    )


def heads_of(program: Program) -> dict[str, int]:
    """Of each buffer of scores or probabilities its first entry in the files of heads."""
    return {
        name: one.row // program.rows_of_head
        for name, one in program.buffers.items()
        if one.memory in (memories.SCORES, memories.PROBABILITIES)
    }


def refusals(program: Program) -> list[UserError]:
    """All that the hardware does not have of what a program needs, over all units."""
    machine = program.machine
    found = [
        UserError(f"the hardware knows no {name} of {fmt}")
        for name, fmt in (("activations", machine.activations), ("kv", machine.kv))
        if fmt not in FORMATS
    ]
    found += sequencer.refusals(machine.issue)
    units: list[type[Unit]] = [MatrixUnit, VectorUnit]
    if program.caches:
        units.insert(1, AttentionUnit)
    if adapter_products(program):
        units.append(AdapterUnit)
    if program.matrices:
        units.append(RecurrenceUnit)
    if PowerUnit.of(program) is not None:
        units.append(PowerUnit)
    for unit in units:
        found += unit.refusals(program)
    return found


def queue_fields(units: Sequence[Unit]) -> dict[str, Fields]:
    """The queues of all units, in the order of `isa.queues.QUEUES`, with their descriptors' fields.

    Where units share a queue, a field with the name of each but the first says that the
    instruction is its.
    """
    found: dict[str, tuple[Field, ...]] = {}
    for unit in units:
        for command in unit.commands:
            before = found.get(command.queue)
            own = command.fields.fields
            if before is not None:
                choice = Field(unit.name, 1, f"1: an instruction of the {unit.name} unit")
                own = (*before, choice, *own)
            found[command.queue] = own
    return {queue: Fields(found[queue]) for queue in QUEUES if queue in found}


def layout_with(layout: Layout, program: Program) -> Layout:
    """The layout of the same hardware with the descriptors of another program.

    Args:
        layout: of the hardware.
        program: that of the layout with other exponents and constants of instructions.
    """
    others = tuple(
        replace(one, program=program.in_context(one.program.context)) for one in layout.others
    )
    return replace(layout, program=program, others=others)


def bias_rows(program: Program) -> dict[str, int]:
    """First rows in the constant ROM of what the matrix array may read there."""
    read = (Form(), Form(APART))
    return {
        one.name: row
        for one in program.parameters.values()
        for form, row in one.constants
        if form in read
    }


def encode(layout: Layout) -> dict[tuple[int, str], QueueOp]:
    """The descriptors of all queues.

    Raises:
        UserError: units cannot execute instructions; all of them, and why.
    """
    found: list[UserError] = []
    encoded: dict[tuple[int, str], QueueOp] = {}
    for context, (queue, executed) in product(range(len(layout.contexts)), layout.queues.items()):
        descriptors: list[DescriptorOp] = []
        for number in range(len(executed.entries)):
            found += attempted(
                lambda at=(context, queue, number), into=descriptors: into.append(
                    _descriptor(layout, *at)
                )
            )
        encoded[context, queue] = QueueOp(
            queue,
            executed.short,
            layout.fields[queue],
            descriptors,
            flows=executed.flows,
            reduces=executed.reduces,
            context=context,
        )
    refuse(found)
    return encoded


def with_queues(layout: Layout, queues: Sequence[QueueOp]) -> Layout:
    """The layout of hardware whose sequencers hold other descriptors.

    Args:
        layout: of the hardware.
        queues: what its queues execute.

    Raises:
        ValueError: they are not the queues of its units, or have other fields.
    """
    given = {one.number: one for one in queues}
    wanted = set(product(range(len(layout.contexts)), layout.queues))
    if len(given) != len(queues) or given.keys() != wanted:
        each = " for each of its contexts" if len(layout.contexts) > 1 else ""
        raise ValueError(f"the chip has a queue each of {', '.join(layout.queues)}{each}")
    numbers = {block.name: number for number, block in enumerate(layout.program.blocks)}
    programs: dict[str, QueueProgram] = {}
    for (context, queue), one in sorted(given.items()):
        fields, stated = layout.fields[queue], one.unit_fields
        if list(stated.items()) != list(fields.items()):
            other = [f"'{n}'" for n in {**fields, **stated} if fields.get(n) != stated.get(n)]
            what = f"field {other[0]} is another" if other else "fields stand in another order"
            raise ValueError(f"the units of queue '{queue}' have other fields: {what}")
        entries: list[Entry] = []
        for descriptor in one.descriptors:
            block, instance, number = descriptor.at
            if block not in numbers:
                raise ValueError(f"a descriptor of queue '{queue}' is of no block @{block}")
            entries.append(Entry(numbers[block], instance, number, descriptor.counts))
        stated = QueueProgram(
            tuple(entries),
            one.short.value.data,
            one.flows is not None,
            one.reduces is not None,
        )
        if programs.setdefault(queue, stated) != stated:
            raise ValueError(f"context {context} has another program of queue '{queue}'")
    changed = replace(layout, queues={queue: programs[queue] for queue in layout.queues})
    changed.__dict__["encoded"] = given
    return changed


def _descriptor(layout: Layout, context: int, queue: str, number: int) -> DescriptorOp:
    entry, whose = layout.queues[queue].entries[number], layout.contexts[context]
    block = whose.program.blocks[entry.block]
    instruction, instance = block.instructions[entry.instruction], block.instances[entry.instance]
    first, *others = [
        unit for unit in whose.units if any(one.queue == queue for one in unit.commands)
    ]
    unit = next((one for one in others if one.executes(instruction.does)), first)
    values: dict[str, Value] = dict.fromkeys(layout.fields[queue], 0)
    values |= unit.encode(whose.program, instruction, instance)
    if queue in layout.orders:
        values |= layout.orders[queue].values(number)
    if unit is not first:
        # Of units that share a queue all but the first are chosen by a field.
        values[unit.name] = 1
    names = instruction.onnx
    return DescriptorOp(
        instruction.opcode,
        (block.name, entry.instance, entry.instruction),
        entry.waits,
        values,
        names[min(entry.instance, len(names) - 1)] if names else (),
    )
