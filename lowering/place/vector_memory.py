"""Where values lie in the vector units' memory.

Values that live across blocks keep their place for the whole program; the others of a block share
what is left, by first fit over their live ranges. A slice of a value is a view: it lies within it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from xdsl.ir import SSAValue

from intaglio.dialects import rom
from intaglio.dialects.errors import DoesNotFit, Way
from intaglio.dialects.fixed_point import SCALE_BYTES
from intaglio.dialects.machine import Machine
from intaglio.dialects.program import BufferOp
from intaglio.lowering.place.search import largest as largest_number
from intaglio.lowering.schedule.draft import DraftBlock

WORD_BYTES = 4
"""Bytes of a fixed-point value."""
SUM_BYTES = 8
"""Bytes of a head's sum of probabilities."""


@dataclass(frozen=True)
class Place:
    """A range of bytes of the vector memory."""

    first: int
    last: int

    def overlaps(self, other: Place) -> bool:
        """Whether they share a byte."""
        return self.first < other.last and other.first < self.last


class VectorMemory:
    """Places and names of a program's values.

    Args:
        machine: the chip.
        capacity: tokens of the longest context, which scores are stored for.
    """

    def __init__(self, machine: Machine, capacity: int) -> None:
        self.machine = machine
        self.capacity = capacity
        self.persistent: dict[SSAValue, SSAValue] = {}
        """Values that live across blocks, each with the value whose place it shares."""
        self._views: dict[SSAValue, tuple[SSAValue, int]] = {}
        self._places: dict[SSAValue, Place] = {}
        self._names: dict[SSAValue, str] = {}

    def add_view(self, value: SSAValue, of: SSAValue, first_element: int) -> None:
        """Makes a value a part of another, from an element on."""
        self._views[value] = (of, first_element * WORD_BYTES)

    def is_view(self, value: SSAValue) -> bool:
        """Whether a value is part of another."""
        return value in self._views

    def source(self, value: SSAValue) -> SSAValue:
        """The value that a view is part of; any other value itself."""
        while value in self._views:
            value = self._views[value][0]
        return value

    def root(self, value: SSAValue) -> SSAValue:
        """The value whose place a value's source shares."""
        source = self.source(value)
        return self.persistent.get(source, source)

    def place(self, value: SSAValue) -> Place:
        """The bytes of a value."""
        if value in self._views:
            source, offset = self._views[value]
            first = self.place(source).first + offset
            return Place(first, first + self._size(value))
        return self._places[self.persistent.get(value, value)]

    def name(self, value: SSAValue) -> str:
        """The name of a value's buffer."""
        if value in self._views:
            return self._names[value]
        return self._names[self.persistent.get(value, value)]

    def buffers(self) -> Iterator[BufferOp]:
        """The buffers of all places, then those of views."""
        roots = (v for v in self._places if self.persistent.get(v, v) is v)
        for value in (*roots, *self._views):
            place = self.place(value)
            size = place.last - place.first
            yield BufferOp(self._names[value], place.first, size, value.type)

    @property
    def _row_bytes(self) -> int:
        """Bytes of a row of the vector memory: one word a lane."""
        return self.machine.vector_lanes * WORD_BYTES

    def _size(self, value: SSAValue) -> int:
        match value.type:
            case rom.FixedType() as fixed:
                return fixed.size.data * WORD_BYTES
            case rom.QuantizedType() as quantized:
                # Codes have a memory of their own with the rows of the vector memory; every group
                # begins in a row.
                rows = -(-quantized.width.data // self.machine.vector_lanes)
                return quantized.groups.data * rows * self._row_bytes
            case rom.ScoresType() as scores:
                return scores.heads.data * self.capacity * WORD_BYTES
            case rom.ProbabilitiesType() as probabilities:
                width = 2 if probabilities.format.data == "uint16" else 1
                head = self.capacity * width + SCALE_BYTES + SUM_BYTES
                return probabilities.heads.data * head
            case _:
                return WORD_BYTES

    def allocate(self, blocks: Sequence[DraftBlock], step: rom.StepOp) -> None:
        """Gives every value of the blocks its place.

        Raises:
            DoesNotFit: the memory is too small, with the largest values.
        """
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
        top = self._place(blocks)
        self._names[self.persistent[token]] = "token"
        self._names[self.persistent[emit.token]] = "next"
        self._names.setdefault(self.persistent[self.source(emit.logits)], "logits")
        for number, value in enumerate(self._views):
            self._names[value] = f"part{number}_of_{self._names[self.root(value)]}"
        if top > self.machine.vector_sram_bytes:
            self._overflow(blocks, top)

    def _place(self, blocks: Sequence[DraftBlock]) -> int:
        """Gives every value a place; returns the end of the highest one."""
        row = self._row_bytes
        floor = 0
        for number, root in enumerate(dict.fromkeys(self.persistent.values())):
            self._places[root] = Place(floor, floor + self._size(root))
            self._names[root] = f"persistent{number}"
            floor += -(-self._size(root) // row) * row
        return max((self._allocate_block(block, floor, row) for block in blocks), default=floor)

    def _allocate_block(self, block: DraftBlock, floor: int, row: int) -> int:
        """First fit over the block's live ranges; returns the end of the highest place.

        Whoever writes where another value was must wait for that value's last reader, so a place
        stays empty for as many instructions as the memory is large enough for.
        """
        rest = len(block.drafts)
        while True:
            top = self._first_fit(block, floor, row, rest)
            if top <= self.machine.vector_sram_bytes or not rest:
                return top
            rest //= 2

    def _first_fit(self, block: DraftBlock, floor: int, row: int, rest: int) -> int:
        """Gives each value of a block the first place that is not taken.

        Args:
            block: whose values are placed.
            floor: first byte that may be used.
            row: bytes of a row; places begin with one.
            rest: for how many instructions after its last reader a place is not used again.
        """
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
            size = -(-self._size(value) // row) * row
            taken = sorted(
                (self._places[other].first, -(-self._places[other].last // row) * row)
                for other in placed
                if last[other] + rest >= first[value] and last[value] >= first[other]
            )
            address = floor
            for begin, end in taken:
                if address + size <= begin:
                    break
                address = max(address, end)
            self._places[value] = Place(address, address + self._size(value))
            self._names[value] = f"{block.name}_v{number}"
            placed.append(value)
            top = max(top, address + size)
        return top

    def _overflow(self, blocks: Sequence[DraftBlock], top: int) -> None:
        limit = self.machine.vector_sram_bytes
        largest = sorted(self._places, key=lambda v: -self._size(v))[:5]
        first = (
            f"the vector units of {self.machine.name} hold {self.machine.vector_sram_bytes} bytes, "
            f"the program needs {top}"
        )
        lines = [first]
        lines += [f"    {self._size(v):10d} bytes  {v.type}" for v in largest]
        capacity = self.capacity
        context = largest_number(lambda tokens: self._top(blocks, tokens) <= limit, capacity - 1)
        self.capacity = capacity
        raise DoesNotFit(
            "\n".join(lines),
            of="the vector memory",
            ways=[Way(context=context)] if context else [],
            others=["a larger target"],
        )

    def _top(self, blocks: Sequence[DraftBlock], tokens: int) -> int:
        """The least that the program needs with another context; moves all values."""
        self.capacity = tokens
        return self._place(blocks)
