"""What the chip's modules and images are made of: the program in the forms that units take.

Where values lie, and how large the memories are, the program says (`dialects/memories.py`). Scales
of quantised vectors lie in a file of their own at the value's first row plus the group's number;
those of probabilities, with their sums, have a file with an entry for each head.

`constant_words` is the constant ROM, `descriptor_words` the sequencers'.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from intaglio.backend.hw.chip import sequencer
from intaglio.backend.hw.chip.sequencer import Entry, QueueProgram
from intaglio.backend.hw.units import power
from intaglio.backend.hw.units.adapter import sizes as adapter_model
from intaglio.backend.hw.units.adapter.interface import AdapterUnit
from intaglio.backend.hw.units.adapter.layout import places_of, products
from intaglio.backend.hw.units.adapter.sizes import AdapterModel
from intaglio.backend.hw.units.attention import unit as attention
from intaglio.backend.hw.units.attention.interface import AttentionUnit
from intaglio.backend.hw.units.attention.unit import AttentionModel
from intaglio.backend.hw.units.matrix import plan as matrix_plan
from intaglio.backend.hw.units.matrix.interface import MatrixUnit
from intaglio.backend.hw.units.matrix.plan import MatrixConfig
from intaglio.backend.hw.units.matrix.rom_bank import LogicROM
from intaglio.backend.hw.units.power import PowerUnit
from intaglio.backend.hw.units.refusals import attempted, refuse
from intaglio.backend.hw.units.unit import Unit
from intaglio.backend.hw.units.vector import encode as vector_encode
from intaglio.backend.hw.units.vector.encode import Places
from intaglio.backend.hw.units.vector.interface import VectorUnit
from intaglio.backend.hw.units.vector.shape import VectorShape
from intaglio.dialects import memories
from intaglio.dialects.codes import FORMATS
from intaglio.dialects.constant_rom import CONSTANTS, Form
from intaglio.dialects.descriptor import Field, Fields
from intaglio.dialects.encoded import DescriptorOp, QueueOp, Value, word_of
from intaglio.dialects.errors import UserError
from intaglio.dialects.h_units import KV, KV_SCALES
from intaglio.dialects.isa.adapter import AdapterMatvec
from intaglio.dialects.isa.queues import MATRIX, POWER, QUEUES, VECTOR

if TYPE_CHECKING:
    from intaglio.backend.images.read import Images
    from intaglio.backend.program.program import Instruction, Program

Words = npt.NDArray[np.unsignedinteger[Any]]
"""Memory words: unsigned [depth] up to 64 bits, else bytes [depth, bytes], low byte first."""


@dataclass(frozen=True)
class Layout:
    """All that the chip's modules and images are made of.

    Attributes:
        program: the program.
        units: all units.
        queues: what each queue executes.
        fields: of the descriptors of each queue's units.
        matrix: sizes of the matrix array.
        attention: sizes of the attention unit.
        adapters: sizes of the adapter unit; None without one.
        vector: sizes of the vector unit.
        places: what the vector unit's encoder has to know.
    """

    program: Program
    units: tuple[Unit, ...]
    queues: Mapping[str, QueueProgram]
    fields: Mapping[str, Fields]
    matrix: MatrixConfig
    attention: AttentionModel
    adapters: AdapterModel | None
    vector: VectorShape
    places: Places

    @property
    def rows(self) -> dict[str, int]:
        """Words of each memory beside the units, by its name."""
        return {name: one.rows for name, one in self.program.memories.items()}

    @property
    def constant_rows(self) -> int:
        """Rows of the constant ROM."""
        return self.program.memories[CONSTANTS].rows

    @cached_property
    def biases(self) -> dict[str, int]:
        """The first row of each bias there."""
        return _biases(self.program)

    @cached_property
    def encoded(self) -> dict[str, QueueOp]:
        """The descriptors of each queue."""
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
    machine = program.machine
    needed = (*memories.OF_VALUES, KV, KV_SCALES, CONSTANTS)
    if missing := [name for name in needed if name not in program.memories]:
        raise UserError(f"the hardware needs a program with memories {', '.join(missing)}")
    rows = {name: program.memories[name].rows for name in memories.OF_VALUES}
    constant_rows = program.memories[CONSTANTS].rows
    vector_depth = max(rows[memories.VECTORS], rows[memories.CODES])

    matrix = matrix_plan.configure(
        program,
        _biases(program),
        vector_depth=vector_depth,
        constant_depth=constant_rows,
    )
    heads = {
        name: one.row // program.rows_of_head
        for name, one in program.buffers.items()
        if one.memory == memories.PROBABILITIES
    }
    row_bits = max(rows[name] for name in memories.OF_KIND.values()).bit_length()
    attention_model = AttentionModel(program, max(row_bits, 2), heads)
    adapter_places = places_of(program)
    adapters = None
    if adapter_places is not None:
        adapters = AdapterModel(program, adapter_places, attention_model.row_bits)
    shape = VectorShape.of(
        program,
        constant_rows=constant_rows,
        score_rows=rows[memories.SCORES],
        probability_rows=rows[memories.PROBABILITIES],
        scale_rows=attention_model.kv.scale_depth,
    )
    scales = max(rows[memories.CODE_SCALES], rows[memories.HEADS])
    shape = replace(shape, rows=vector_depth, scales=scales)
    places = Places(
        heads=heads,
        value_scales={name: place.scale_row for name, place in attention_model.kv.places.items()},
        score_rows=program.rows_of_head,
    )
    units = tuple(
        unit
        for unit in (
            PowerUnit.of(program),
            MatrixUnit(matrix),
            AttentionUnit(attention_model),
            None if adapters is None else AdapterUnit(adapters),
            VectorUnit(machine, shape),
        )
        if unit is not None
    )
    fields = queue_fields(units)
    return Layout(
        program=program,
        units=units,
        queues=sequencer.unroll(
            [(one.timing, one.sampled) for one in program.blocks], list(fields)
        ),
        fields=fields,
        matrix=matrix,
        attention=attention_model,
        adapters=adapters,
        vector=shape,
        places=places,
    )


def refusals(program: Program) -> list[UserError]:
    """All that the hardware does not have of what a program needs, over all units."""
    machine = program.machine
    found = [
        UserError(f"the hardware knows no {name} of {fmt}")
        for name, fmt in (("activations", machine.activations), ("kv", machine.kv))
        if fmt not in FORMATS
    ]
    found += sequencer.refusals(machine.issue)
    units: list[type[Unit]] = [MatrixUnit, AttentionUnit, VectorUnit]
    if products(program):
        units.append(AdapterUnit)
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
    return replace(layout, program=program)


def constant_words(layout: Layout, images: Images) -> Words:
    """The content of the constant ROM: rows of W numbers of 32 bits, as bytes [rows, 4 W]."""
    program, lanes = layout.program, layout.lanes
    rows = np.zeros((layout.constant_rows, lanes), np.int64)
    for parameter in program.parameters.values():
        for form, first in parameter.constants:
            values = np.asarray(images.dense(parameter.name), np.int64)
            part = form.rows(values, lanes, program.capacity, 1 << parameter.exponent)
            rows[first : first + len(part)] = part
    return as_words(rows.astype("<i4").view(np.uint8).reshape(len(rows), -1))


def _biases(program: Program) -> dict[str, int]:
    """First rows in the constant ROM of what the matrix array may read there."""
    plain = Form()
    return {
        one.name: row
        for one in program.parameters.values()
        for form, row in one.constants
        if form == plain
    }


def unit_values(
    layout: Layout, queue: str, entry: Entry, scales: Mapping[str, int]
) -> dict[str, int]:
    """The unit's fields of an instruction instance of a queue.

    Args:
        layout: of the program.
        queue: whose.
        entry: of the queue.
        scales: mantissas of the matrices with one scale.

    Raises:
        UserError: the unit cannot execute the instruction; says why.
    """
    program = layout.program
    block = program.blocks[entry.block]
    instruction, instance = block.instructions[entry.instruction], block.instances[entry.instance]
    if queue == MATRIX:
        return matrix_plan.encode(
            program, instruction, instance, layout.matrix, layout.biases, scales
        )
    if queue == VECTOR:
        return vector_encode.encode(program, instruction, instance, layout.places)
    if queue == POWER:
        return power.encode(tuple(program.domains), instruction, instance)
    if isinstance(instruction.does, AdapterMatvec):
        assert layout.adapters is not None
        own = adapter_model.encode(layout.adapters, instruction, instance)
        return {**own, adapter_model.SELECT: 1}
    return attention.encode(layout.attention, instruction, instance)


def encode(layout: Layout) -> dict[str, QueueOp]:
    """The descriptors of all queues.

    Raises:
        UserError: units cannot execute instructions; all of them, and why.
    """
    found: list[UserError] = []
    encoded: dict[str, QueueOp] = {}
    single = matrix_plan.single_scaled(layout.program)
    for queue, executed in layout.queues.items():
        descriptors: list[DescriptorOp] = []
        for entry in executed.entries:
            found += attempted(
                lambda queue=queue, entry=entry, into=descriptors: into.append(
                    _descriptor(layout, queue, entry, single)
                )
            )
        encoded[queue] = QueueOp(queue, executed.short, layout.fields[queue], descriptors)
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
    given = {one.queue.data: one for one in queues}
    if len(given) != len(queues) or given.keys() != layout.queues.keys():
        raise ValueError(f"the chip has a queue each of {', '.join(layout.queues)}")
    numbers = {block.name: number for number, block in enumerate(layout.program.blocks)}
    programs: dict[str, QueueProgram] = {}
    for queue, fields in layout.fields.items():
        stated = given[queue].unit_fields
        if list(stated.items()) != list(fields.items()):
            other = [f"'{n}'" for n in {**fields, **stated} if fields.get(n) != stated.get(n)]
            what = f"field {other[0]} is another" if other else "fields stand in another order"
            raise ValueError(f"the units of queue '{queue}' have other fields: {what}")
        entries: list[Entry] = []
        for one in given[queue].descriptors:
            block, instance, number = one.at
            if block not in numbers:
                raise ValueError(f"a descriptor of queue '{queue}' is of no block @{block}")
            entries.append(Entry(numbers[block], instance, number, one.counts))
        programs[queue] = QueueProgram(tuple(entries), given[queue].short.value.data)
    changed = replace(layout, queues=programs)
    changed.__dict__["encoded"] = given
    return changed


def _descriptor(layout: Layout, queue: str, entry: Entry, single: Collection[str]) -> DescriptorOp:
    block = layout.program.blocks[entry.block]
    instruction = block.instructions[entry.instruction]
    own = unit_values(layout, queue, entry, dict.fromkeys(single, 0))
    values: dict[str, Value] = {**dict.fromkeys(layout.fields[queue], 0), **own}
    if queue == MATRIX:
        instance = block.instances[entry.instance]
        matrix = matrix_plan.tensor(matrix_plan.Use(instruction, instance))
        if matrix in single:
            values["mantissa"] = matrix
    names = instruction.onnx
    return DescriptorOp(
        instruction.opcode,
        (block.name, entry.instance, entry.instruction),
        entry.waits,
        values,
        names[min(entry.instance, len(names) - 1)] if names else (),
    )


def descriptor_wires(layout: Layout, queue: str, images: Images) -> list[dict[str, int]]:
    """The units' fields of each descriptor of a queue, as wires carry them: unsigned."""
    scales = matrix_plan.single_scales(layout.program, images) if queue == MATRIX else {}
    return [
        {
            name: (scales[one] if isinstance(one, str) else one) & (1 << width) - 1
            for name, width in layout.fields[queue].items()
            for one in (values[name],)
        }
        for values in (descriptor.numbers for descriptor in layout.encoded[queue].descriptors)
    ]


def descriptor_words(layout: Layout, queue: str, images: Images) -> Words:
    """The content of a sequencer's ROM."""
    encoded = layout.encoded[queue]
    form = encoded.form
    scales = matrix_plan.single_scales(layout.program, images) if queue == MATRIX else {}
    words = [word_of(form, one, scales) for one in encoded.descriptors]
    words += [0] * (max(2, len(words)) - len(words))
    size = -(-form.width // 8)
    data = b"".join(word.to_bytes(size, "little") for word in words)
    return as_words(np.frombuffer(data, np.uint8).reshape(len(words), size))


def as_words(rows: npt.NDArray[np.uint8]) -> Words:
    """Bytes [depth, bytes] in the form of memories: integers where they fit 64 bits."""
    depth, size = rows.shape
    if size > 8:
        return rows
    whole = next(bits for bits in (1, 2, 4, 8) if size <= bits)
    padded = np.zeros((depth, whole), np.uint8)
    padded[:, :size] = rows
    return padded.view(f"<u{whole}")[:, 0]


def rom_words(layout: Layout, images: Images) -> Iterator[tuple[str, Words]]:
    """The contents of all ROMs of the chip, each with the memory's path; one at a time.

    L-Units whose ROM is logic have theirs in the hardware (`logic_rom`).
    """
    for queue in layout.queues:
        if layout.queues[queue].entries:
            yield f"sequencer_{queue}/descriptors", descriptor_words(layout, queue, images)
    yield "constants", constant_words(layout, images)
    yield from adapter_words(layout, images)
    if layout.matrix.logic:
        return
    for image in matrix_plan.l_unit_images(layout.program, images, layout.matrix):
        path = f"matrix/tile{image.tile}/l_unit{image.l_unit}"
        yield f"{path}/codes", image.codes
        if image.scales.size:
            yield f"{path}/scales", image.scales


def adapter_words(layout: Layout, images: Images) -> Iterator[tuple[str, Words]]:
    """The contents of the H-Units with which the graph's own adapters begin, as `rom_words`."""
    if layout.adapters is None:
        return
    places = layout.adapters.places
    if all(place.parameter.is_slot for place in places.places.values()):
        return
    for unit, codes, scales in places.contents(images):
        yield f"adapter/h_unit{unit}/codes", as_words(codes)
        yield f"adapter/h_unit{unit}/scales", scales


def logic_rom(
    layout: Layout,
    images: Images,
    written: Collection[tuple[int, int, int]] | None = None,
    shared: Collection[tuple[int, int, int]] | None = None,
) -> LogicROM | None:
    """What the ROM banks of L-Units hold, where they are logic; else None.

    Args:
        layout: of the program.
        images: its tensors.
        written: the banks to write, as (tile, L-Unit, bank); None: all.
        shared: those to write as the compiler's own gates; None: what the machine says, all or
            none.
    """
    program, config = layout.program, layout.matrix
    if not config.logic:
        return None
    if shared is None and program.machine.rom_logic != "shared":
        shared = ()
    return LogicROM(
        lambda tile: matrix_plan.tile_images(program, images, config, tile), written, shared=shared
    )
