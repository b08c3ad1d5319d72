"""A compiled program as Python objects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TypeVar

from intaglio.dialects import gating, hazards, in_flight, timeline, wholeness
from intaglio.dialects.codes import SLOT_BITS
from intaglio.dialects.constant_rom import Form
from intaglio.dialects.errors import CompilerBug, UserError
from intaglio.dialects.fixed_point import Real
from intaglio.dialects.h_units import AdapterShape, CacheShape, StateShape, element_bits
from intaglio.dialects.isa import instruction as isa
from intaglio.dialects.isa.attention import WeightedSum
from intaglio.dialects.isa.beat import WHOLE, Beat
from intaglio.dialects.isa.matrix import Embed, Product, Row
from intaglio.dialects.isa.values import Fixed, Probabilities, Quantized, Scores, Value
from intaglio.dialects.isa.vector import Quantize, RMSNorm, Sample
from intaglio.dialects.machine import Machine
from intaglio.dialects.memories import Memory, Span, span_of
from intaglio.dialects.tiling import MatrixShape, Piece
from intaglio.dialects.timeline import At

SCHEMA = 3
"""Of program.json: another one has other keys."""

V = TypeVar("V", bound=Value)


@dataclass(frozen=True)
class Part:
    """Bytes of an image: a file of the output folder, first byte, size, SHA-256."""

    file: str
    offset: int
    size: int
    sha256: str


PARTS = ("codes", "scales", "zeros", "offsets")
"""Parts of a tensor in the images; no tensor has all of them."""


@dataclass(frozen=True)
class Parameter:
    """A tensor as the chip stores it; `pieces` say where in ROM, for those that are engraved."""

    name: str
    key: str
    store: str
    dims: tuple[int, ...]
    code: str
    bits: int
    group: int = 0
    exponent: int = 0
    zero: int | None = None
    codes: Part | None = None
    scales: Part | None = None
    zeros: Part | None = None
    offset_bits: int = 0
    """Width of a group's offset with its sign; 0: there are none."""
    offsets: Part | None = None
    experts: int = 1
    """Matrices of a family, whose rows follow each other."""
    pieces: tuple[Piece, ...] = ()
    unit: int = 0
    """The H-Unit of an adapter's row 0."""
    row: int = 0
    """First word of an adapter in the memory `adapters` of its H-Units."""
    scale: int = 0
    """First row of its scales in `adapter_scales`."""
    constants: tuple[tuple[Form, int], ...] = ()
    """Of a vector or table, the forms in which the constant ROM has it, with their first rows."""

    @property
    def parts(self) -> tuple[Part, ...]:
        """Where its bytes lie."""
        parts = (self.codes, self.scales, self.zeros, self.offsets)
        return tuple(part for part in parts if part is not None)

    @property
    def is_slot(self) -> bool:
        """Whether it is empty until an adapter is loaded: a matrix of a site."""
        return self.store == "rom.adapter" and self.code in SLOT_BITS and not self.group

    @property
    def is_dense(self) -> bool:
        """Whether it is of numbers, not of codes."""
        return self.code.startswith("fixed")

    @property
    def rom_shape(self) -> MatrixShape:
        """A matrix in ROM as tiling sees it; see `fabric.matrix_shape`."""
        return MatrixShape.of(
            self.dims,
            self.code,
            self.bits,
            self.group,
            zeros=self.zero is None and not self.is_dense,
            offsets=self.offset_bits,
            experts=self.experts,
        )

    def constant_row(self, form: Form) -> int:
        """Its first row in the constant ROM, in a form.

        Raises:
            UserError: it is not there in this form.
        """
        for stated, row in self.constants:
            if stated == form:
                return row
        raise UserError(
            f"{self.name} is not in the constant ROM in form {form.kind}, in which it is read"
        )

    def shape(self, machine: Machine) -> AdapterShape:
        """A matrix of an adapter as the H-Units see it."""
        rows, columns = self.dims
        bits = element_bits(self.code, self.bits, self.zero, is_slot=self.is_slot)
        return AdapterShape(machine, rows, columns, bits, self.group, self.is_slot)


@dataclass(frozen=True)
class Site:
    """A place for low-rank adapters, beside `rows` rows of a matrix from `first_row` on.

    Attributes:
        name: `layers.<i>.<role>`.
        a: the slot of A [rank, columns].
        b: the slot of B [rows, rank].
        rows: N.
        columns: K.
        rank: the largest.
        matrix: the engraved matrix.
        first_row: of the matrix.
        onnx: the nodes of the product with the matrix.
    """

    name: str
    a: str
    b: str
    rows: int
    columns: int
    rank: int
    matrix: str
    first_row: int
    onnx: Sequence[str]


@dataclass(frozen=True)
class Cache:
    """A key or value cache."""

    name: str
    capacity: int
    heads: int
    width: int
    format: str
    row: int
    """First word in the memory `kv` of every H-Unit."""
    scale: int = 0
    """First row in `kv_scales`, where the scales are dynamic."""
    external: int = 0
    """First row in external memory, where tokens are there."""
    static_scale: Real | None = None
    static_inverse: Real | None = None

    def shape(self, machine: Machine) -> CacheShape:
        """The cache as the H-Units see it."""
        numbers = (self.capacity, self.heads, self.width)
        return CacheShape(machine, *numbers, self.format, self.static_scale is not None)


@dataclass(frozen=True)
class State:
    """What a layer keeps of the last token: `size` fixed-point numbers from a row of `vectors`."""

    name: str
    size: int
    row: int


@dataclass(frozen=True)
class Matrices:
    """The state of linear attention of a layer: of each head a matrix with an exponent."""

    name: str
    heads: int
    key_width: int
    value_width: int
    row: int
    """First row of the memory `states` in every H-Unit."""
    scale: int
    """First entry of `state_scales`."""

    def shape(self, machine: Machine) -> StateShape:
        """The state as the H-Units see it."""
        return StateShape(machine, self.heads, self.key_width, self.value_width)


@dataclass(frozen=True)
class Buffer:
    """A place for a value, and its type.

    Attributes:
        name: of the buffer.
        type: of the value: its kind and its numbers.
        memory: where it lies; None: a token, in a register of the token port.
        row: the first one.
        element: the first one there.
        of: the buffer whose value it is a part of; None: it is whole.
    """

    name: str
    type: Value
    memory: str | None
    row: int = 0
    element: int = 0
    of: str | None = None


@dataclass(frozen=True)
class Instruction:
    """What it does; `onnx`, `start` and `finish` have an entry for each instance."""

    does: isa.Instruction[str]
    onnx: Sequence[Sequence[str]]
    issue: timeline.Issue
    start: Sequence[int]
    finish: Sequence[int]
    beat: Beat = WHOLE

    @property
    def opcode(self) -> str:
        """Its name."""
        return self.does.opcode

    @property
    def queue(self) -> str:
        """Where it stands."""
        return self.does.queue

    @property
    def node(self) -> str | None:
        """The first ONNX node that it stands for."""
        return next((name for names in self.onnx for name in names), None)

    @cached_property
    def reads(self) -> tuple[str, ...]:
        """The buffers that it reads, in order."""
        return self.does.reads

    @cached_property
    def writes(self) -> tuple[str, ...]:
        """The buffers that it writes, in order; the simulator asks for each token."""
        return self.does.writes


@dataclass(frozen=True)
class Block:
    """Instructions that run once for each instance; a sampled block only when a token is wanted."""

    name: str
    sampled: bool
    instances: Sequence[Mapping[str, str]]
    instructions: Sequence[Instruction]
    """Beats, in order."""

    @cached_property
    def whole(self) -> Sequence[Instruction]:
        """Each instruction once, by its last beat: what is computed, in order."""
        last = [one for one in self.instructions if one.beat.ends]
        return sorted(last, key=lambda one: one.beat.of_instruction)

    @cached_property
    def whole_of(self) -> Sequence[int]:
        """For each beat the place of its instruction in `whole`."""
        alone = {id(one): n for n, one in enumerate(self.whole)}
        parts = {o.beat.of_instruction: n for n, o in enumerate(self.whole) if o.beat != WHOLE}
        return [
            alone[id(one)] if one.beat == WHOLE else parts[one.beat.of_instruction]
            for one in self.instructions
        ]

    @property
    def taken(self) -> list[hazards.Taken]:
        """What each beat does, which part of it, what the timeline knows of it."""
        return [(one.does, one.beat, one.issue) for one in self.instructions]

    @property
    def timing(self) -> timeline.Block:
        """What the timeline needs of this block."""
        issues = [instruction.issue for instruction in self.instructions]
        return timeline.Block(self.name, issues, len(self.instances))


@dataclass(frozen=True)
class Program:
    """A compiled model: everything but the bytes of its images."""

    machine: Machine
    name: str
    vocabulary: int
    parameters: Mapping[str, Parameter]
    caches: Mapping[str, Cache]
    buffers: Mapping[str, Buffer]
    blocks: Sequence[Block]
    positions: Sequence[int]
    logits: str
    token: str
    domains: Mapping[str, Sequence[str]] = field(default_factory=dict[str, Sequence[str]])
    """Tensors of each power domain; what is in none is always on."""
    sites: Mapping[str, Site] = field(default_factory=dict[str, Site])
    residents: int = 1
    """Adapters that the slots hold at once."""
    memories: Mapping[str, Memory] = field(default_factory=dict[str, Memory])
    """That the chip has, by name."""
    states: Mapping[str, State] = field(default_factory=dict[str, State])
    matrices: Mapping[str, Matrices] = field(default_factory=dict[str, Matrices])
    context: int = 0
    """Of the chip's contexts the one whose rows its buffers are at (`in_context`)."""

    @property
    def capacity(self) -> int:
        """Tokens that the caches hold; without caches those of which positions are stated."""
        held = [cache.capacity for cache in self.caches.values()]
        return min(held) if held else self.positions[-1] + 1

    @cached_property
    def longest(self) -> int:
        """Tokens of the largest cache, for which scores have room; 1 without caches."""
        return max((cache.capacity for cache in self.caches.values()), default=1)

    @property
    def counted(self) -> int:
        """Positions that hardware counts up to: of the largest cache, else those stated."""
        return max(self.longest, self.capacity)

    @property
    def rows_of_head(self) -> int:
        """Rows of a head's scores, and of its probabilities."""
        return -(-self.longest // self.machine.vector_lanes)

    def row_of(self, buffer: str, one: Instruction | None = None) -> int:
        """The row at which a value begins in its memory.

        Args:
            buffer: of the value.
            one: the instruction that reads or writes it, for the message.

        Raises:
            UserError: it begins inside a row, which no unit takes.
        """
        place, lanes = self.buffers[buffer], self.machine.vector_lanes
        if place.element:
            raise UserError(
                f"a value begins inside a row of memory {place.memory} (element {place.element} "
                f"of {lanes})",
                node=None if one is None else one.node,
                op_type=None if one is None else one.opcode,
                hint=f"parts of a vector must begin at a multiple of {lanes} elements",
            )
        return place.row

    @cached_property
    def guards(self) -> Sequence[Sequence[in_flight.Guard]]:
        """Of each block's instructions, which all flow, what keeps results in order between tokens
        in flight."""
        # A table's row counts its elements from 0 while none of a product before it leaves.
        machine = self.machine
        of_row = machine.reduce + machine.requantise
        return [
            [
                in_flight.guard_of(
                    one.issue, self.longest, of_row if isinstance(one.does, Row) else None
                )
                for one in block.instructions
            ]
            for block in self.blocks
        ]

    @cached_property
    def halves(self) -> Sequence[Sequence[int]]:
        """Of each block's instructions 0, or 1 of those behind the product that follows attention:
        they are in the stage of the next layer's attention (`dialects/in_flight.py`)."""
        found: list[list[int]] = []
        for block in self.blocks:
            order = [one.beat.of_instruction for one in block.instructions]
            attends = [
                n
                for n, one in zip(order, block.instructions, strict=True)
                if isinstance(one.does, WeightedSum)
            ]
            behind = [
                n
                for n, one in zip(order, block.instructions, strict=True)
                if isinstance(one.does, Product) and attends and n > max(attends)
            ]
            last = min(behind, default=max(order, default=0))
            found.append([int(n > last) for n in order])
        return found

    @cached_property
    def flight(self) -> in_flight.Flight:
        """What the timeline of several tokens in flight needs.

        Raises:
            ValueError: an instruction does not flow (when it is run).
        """
        machine = self.machine
        return in_flight.Flight(
            [(block.timing, block.sampled) for block in self.blocks],
            machine.issue,
            self.guards,
            self.halves,
            {
                (number, place): machine.vector_reduce + machine.sample
                for number, block in enumerate(self.blocks)
                for place, one in enumerate(block.instructions)
                if isinstance(one.does, Sample)
            },
        )

    def in_context(self, number: int) -> Program:
        """The program as a token in a context has it: values in rows, and what is reduced in
        entries, of that context's own. Caches and constants are everybody's."""
        if number == self.context:
            return self
        more, entries = number - self.context, self.entries
        rows = {name: one.rows // self.machine.contexts for name, one in self.memories.items()}

        def moved(beat: Beat) -> Beat:
            peak = beat.peak + more * entries if beat.peak else 0
            return replace(beat, entry=beat.entry + more * entries, peak=peak)

        return replace(
            self,
            buffers={
                name: one
                if one.memory is None
                else replace(one, row=one.row + more * rows[one.memory])
                for name, one in self.buffers.items()
            },
            blocks=[
                replace(
                    block,
                    instructions=[replace(i, beat=moved(i.beat)) for i in block.instructions],
                )
                for block in self.blocks
            ],
            context=number,
        )

    @cached_property
    def entries(self) -> int:
        """Entries that a token needs in the files of what is reduced, one a group."""
        groups = most = 1
        for one in self.buffers.values():
            match one.type:
                case Quantized() as kind:
                    groups = max(groups, kind.groups)
                case Scores() | Probabilities() as kind:
                    groups = max(groups, kind.heads)
                case _:
                    pass
        for block in self.blocks:
            for one in block.instructions:
                if isinstance(one.does, RMSNorm):
                    groups = max(groups, one.does.groups)
                most = max(most, one.beat.entry + groups, one.beat.peak)
        return most

    def span(self, buffer: str) -> Span | None:
        """Where a value lies; None: in no memory."""
        one = self.buffers[buffer]
        return span_of(one.type, one.row, one.element, self.machine.vector_lanes, self.longest)

    def whole(self, buffer: str) -> str:
        """The buffer that holds all of a buffer's value: the one it is a part of, or itself."""
        return self.buffers[buffer].of or buffer

    @cached_property
    def written(self) -> frozenset[str]:
        """Buffers that instructions write."""
        return frozenset(
            name for block in self.blocks for one in block.instructions for name in one.writes
        )

    def value(self, buffer: str, kind: type[V]) -> V:
        """What is said of a buffer's value, of which the instruction that names it has the kind."""
        found = self.buffers[buffer].type
        if not isinstance(found, kind):
            raise CompilerBug(f"{buffer} holds {found.told}, not {kind.told}")
        return found

    def fraction(self, buffer: str) -> int:
        """Fraction bits of a buffer of fixed-point numbers."""
        return self.value(buffer, Fixed).fraction

    def peak_reader(self, one: Instruction) -> Instruction | None:
        """Who reads the largest magnitude that a beat leaves, if any: the first in the program, for
        all that do want the same of it."""
        if not one.beat.peak:
            return None
        return self._peak_readers.get((one.beat.peak - 1, one.writes[0]))

    @cached_property
    def _peak_readers(self) -> Mapping[tuple[int, str], Instruction]:
        found: dict[tuple[int, str], Instruction] = {}
        for block in self.blocks:
            for number in hazards.peak_readers(block.taken, self._kinds):
                one = block.instructions[number]
                found.setdefault((one.beat.entry, one.reads[0]), one)
        return found

    @cached_property
    def peaks(self) -> Mapping[str, bool]:
        """Queues that leave largest magnitudes of what they write; whether of quantisations."""
        found: dict[str, bool] = {}
        for block in self.blocks:
            for one in block.instructions:
                if (reader := self.peak_reader(one)) is not None:
                    quantized = isinstance(reader.does, Quantize)
                    found[one.queue] = found.get(one.queue, False) or quantized
        return found

    @cached_property
    def accepted(self) -> frozenset[str]:
        """Buffers of the token that is taken in."""
        instructions = (one.does for block in self.blocks for one in block.instructions)
        return frozenset(one.token for one in instructions if isinstance(one, Embed))

    @cached_property
    def accesses(self) -> Sequence[Sequence[hazards.Access]]:
        """What the instructions of each block touch.

        Raises:
            ValueError: a beat is none of its instruction.
        """
        return [
            hazards.accesses(
                block.taken,
                block.instances,
                self._kinds,
                self._heads,
                self.machine.vector_lanes,
                self.longest,
                self.machine.early,
            )
            for block in self.blocks
        ]

    @property
    def faults(self) -> Sequence[wholeness.Fault | None]:
        """For each block the first instruction that its beats do not make whole, if any."""
        return [
            wholeness.first_fault(block.taken, block.instances, self._kinds, self._heads)
            for block in self.blocks
        ]

    @cached_property
    def _kinds(self) -> Mapping[str, Value]:
        return {name: one.type for name, one in self.buffers.items()}

    @cached_property
    def _heads(self) -> Mapping[str, int]:
        heads = {name: one.heads for name, one in self.caches.items()}
        heads |= {name: one.size for name, one in self.states.items()}
        return heads | {name: one.heads for name, one in self.matrices.items()}

    @cached_property
    def power_roles(self) -> Mapping[At, gating.Role]:
        """What the instruction instances do with power domains, of those that do."""
        return gating.roles_of(
            [[one.does for one in block.instructions] for block in self.blocks],
            [block.instances for block in self.blocks],
            {tensor: name for name, tensors in self.domains.items() for tensor in tensors},
        )

    @cached_property
    def slots(self) -> Mapping[str, tuple[Site, str]]:
        """For each slot its site, and `a` or `b`."""
        return {
            slot: (site, half)
            for site in self.sites.values()
            for half, slot in (("a", site.a), ("b", site.b))
        }
