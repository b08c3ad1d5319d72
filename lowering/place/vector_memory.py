"""Where values lie in the memories of the vector units: of each kind of value its own.

Values share rows where the waits that the program has anyway order what is done with them
(`dialects/sharing.py`), so that a value's place costs nothing. Where that takes more than the chip
has, values lie where others were by their live ranges alone: then whoever writes there waits for
the last reader (`lowering/schedule/waits.py`). A slice of a value is a view: it lies within it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import replace

from xdsl.ir import SSAValue

from intaglio.dialects import hazards, memories, rom, sharing, timeline
from intaglio.dialects.errors import DoesNotFit, Way
from intaglio.dialects.isa.values import Blocks, Value
from intaglio.dialects.machine import Machine
from intaglio.dialects.memories import OF_KIND, Memory, Span, memory_of
from intaglio.dialects.program import BufferOp, value_of
from intaglio.lowering.place.search import largest as largest_number
from intaglio.lowering.place.sram import NO_SCALES
from intaglio.lowering.schedule.draft import Draft, DraftBlock

Timing = Callable[[Sequence[DraftBlock]], Sequence[timeline.Block]]


class VectorMemory:
    """Places and names of a program's values.

    Args:
        machine: the chip.
        capacity: tokens of the longest context, which scores are stored for.
        scales: bytes that the scales of caches take beside values, at a context.
        reserved: rows of `vectors` before those of values: states.
    """

    def __init__(
        self,
        machine: Machine,
        capacity: int,
        scales: Callable[[int], int] = lambda _: 0,
        reserved: int = 0,
    ) -> None:
        self.machine = machine
        self.scales = scales
        self.capacity = capacity
        self.reserved = reserved
        self.persistent: dict[SSAValue, SSAValue] = {}
        """Values that live across blocks, each with the value whose place it shares."""
        self._views: dict[SSAValue, tuple[SSAValue, int]] = {}
        self._names: dict[SSAValue, str] = {}
        self._kinds: dict[SSAValue, Value] = {}
        self._rows: dict[SSAValue, int] = {}
        self._heights: dict[str, int] = {}
        self._ordered = True
        """Whether places are shared only where waits order what is done there anyway."""

    def add_view(self, value: SSAValue, of: SSAValue, first_element: int) -> None:
        """Makes a value a part of another, from an element on."""
        self._views[value] = (of, first_element)

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

    def where(
        self, value: SSAValue, part: tuple[int, int] | None = None
    ) -> tuple[Hashable, int, int]:
        """Elements of a value: those that share some with it need waits that order what is done.

        Args:
            value: the value.
            part: only these of its elements: first, and the one after the last; None: all.

        Returns:
            what the elements are counted in, the first one, and the one after the last.
        """
        if memory_of(self.kind(value)) is None:
            return self.root(value), 0, 1
        whole = self.place(value)
        first, last = (0, whole.last - whole.first) if part is None else part
        # Values whose places are shared only where waits order that anyway have only themselves.
        space = self.root(value) if self._ordered else (whole.memory, None)
        return space, whole.first + first, whole.first + last

    def place(self, value: SSAValue) -> Span:
        """Where a value lies."""
        row, element = self._place(value)
        lanes = self.machine.vector_lanes
        found = memories.span_of(self.kind(value), row, element, lanes, self.capacity)
        assert found is not None
        return found

    def name(self, value: SSAValue) -> str:
        """The name of a value's buffer."""
        if value in self._views:
            return self._names[value]
        return self._names[self.persistent.get(value, value)]

    def buffers(self) -> Iterator[BufferOp]:
        """The buffers of all places, then those of views."""
        for value in (*self._roots, *self._views):
            memory = memory_of(self.kind(value))
            place = (0, 0) if memory is None else self._place(value)
            of = self._names[self.root(value)] if value in self._views else None
            yield BufferOp(self._names[value], value.type, memory, *place, of=of)

    def memories(self) -> dict[str, Memory]:
        """The memories that the chip has for values, the rows of each context behind the last."""
        blocks = [kind.block for v in self._roots if isinstance(kind := self.kind(v), Blocks)]
        lanes, block = self.machine.vector_lanes, min(blocks, default=0)
        one = memories.of_values(self._heights, lanes, self.capacity, block)
        count = self.machine.contexts
        return {name: replace(memory, rows=count * memory.rows) for name, memory in one.items()}

    @property
    def _roots(self) -> list[SSAValue]:
        return [value for value in self._names if value not in self._views]

    def kind(self, value: SSAValue) -> Value:
        """What is said of a value."""
        if value not in self._kinds:
            found = value_of(value.type)
            assert found is not None
            self._kinds[value] = found
        return self._kinds[value]

    def _place(self, value: SSAValue) -> tuple[int, int]:
        """First row and the first element there."""
        offset = 0
        while value in self._views:
            value, first = self._views[value]
            offset += first
        rows, element = divmod(offset, self.machine.vector_lanes)
        return self._rows.get(self.persistent.get(value, value), 0) + rows, element

    def _size(self, value: SSAValue) -> int:
        """Rows of a value."""
        return memories.rows_of(self.kind(value), self.machine.vector_lanes, self.capacity)

    def allocate(self, blocks: Sequence[DraftBlock], step: rom.StepOp, timing: Timing) -> None:
        """Gives every value of the blocks its place.

        Args:
            blocks: of the program, in order.
            step: that they stand for.
            timing: what the timeline needs of blocks, with their waits.

        Raises:
            DoesNotFit: the memories are too small, with the largest values.
        """
        emit = step.body.block.last_op
        assert isinstance(emit, rom.EmitOp)
        self._name(blocks, step.body.block.args[0], emit)
        limit = self._limit
        kinds = {memory_of(self.kind(value)) for value in self._roots}
        self._of = {
            memory: [v for v in self._roots if memory_of(self.kind(v)) == memory]
            for memory in OF_KIND.values()
            if memory in kinds
        }
        # Each has a place of its own while it is asked what waits for what.
        self._rows = dict.fromkeys(self._roots, 0)
        apart = self._apart(blocks, timing(blocks), self.source(emit.logits))
        self._take(*self._ordered_rows(apart))
        if self._bytes <= limit:
            return
        ordered = self._bytes
        self._ordered = False
        rest = max(len(block.drafts) for block in blocks)
        while True:
            self._take(*self._live_rows(blocks, rest))
            if self._bytes <= limit:
                return
            if not rest:
                break
            rest //= 2
        self._overflow(blocks, apart, min(ordered, self._bytes))

    @property
    def _limit(self) -> int:
        """Bytes that there are for values."""
        return self.machine.vector_sram_bytes - self.scales(self.capacity)

    @property
    def _bytes(self) -> int:
        return memories.size_of(self.memories().values())

    def _take(self, rows: dict[SSAValue, int], heights: dict[str, int]) -> None:
        self._heights = {m: n + self._before(m) for m, n in heights.items()}
        self._rows = {value: n + self._before(self._memory(value)) for value, n in rows.items()}

    def _memory(self, value: SSAValue) -> str | None:
        return memory_of(self.kind(value))

    def _before(self, memory: str | None) -> int:
        return self.reserved if memory == memories.VECTORS else 0

    def _name(self, blocks: Sequence[DraftBlock], token: SSAValue, emit: rom.EmitOp) -> None:
        """Finds what lives across blocks, and gives every value the name of its buffer."""
        for value in (token, emit.logits, emit.token):
            self.persistent.setdefault(self.source(value), self.source(value))
        home: dict[SSAValue, int] = {}
        for number, block in enumerate(blocks):
            for draft in block.drafts:
                for value in (*draft.reads, *draft.writes):
                    source = self.source(value)
                    if home.setdefault(source, number) != number:
                        self.persistent.setdefault(source, source)
        for number, root in enumerate(dict.fromkeys(self.persistent.values())):
            self._names[root] = f"persistent{number}"
        for block in blocks:
            for number, value in enumerate(self._ranges(block)):
                self._names[value] = f"{block.name}_v{number}"
        self._names[self.persistent[token]] = "token"
        self._names[self.persistent[emit.token]] = "next"
        for number, value in enumerate(self._views):
            self._names[value] = f"part{number}_of_{self._names[self.root(value)]}"

    def _ranges(self, block: DraftBlock) -> dict[SSAValue, tuple[int, int]]:
        """The first and the last instruction that touches each value of the block alone."""
        found: dict[SSAValue, tuple[int, int]] = {}
        for index, draft in enumerate(block.drafts):
            for value in (*draft.reads, *draft.writes):
                source = self.source(value)
                if source not in self.persistent:
                    found[source] = found.get(source, (index, index))[0], index
        return found

    # Rows that waits allow

    def _apart(
        self, blocks: Sequence[DraftBlock], timing: Sequence[timeline.Block], logits: SSAValue
    ) -> dict[str, dict[str, set[str]]]:
        """For each memory, and each value there by name, those that may not share rows with it."""

        def names(values: Sequence[SSAValue]) -> list[str]:
            return list(dict.fromkeys(self._names[self.root(value)] for value in values))

        def _continued(one: Draft) -> list[str]:
            """What a beat writes that is not the first of its value."""
            return names(one.writes) if one.beat.first else []

        accesses = [
            [
                hazards.Access(
                    names(d.reads), names(d.writes), parts=dict.fromkeys(_continued(d), (1, 1))
                )
                for d in block.drafts
            ]
            for block in blocks
        ]
        of = {memory: {self._names[v] for v in values} for memory, values in self._of.items()}
        # Asked once for all memories: what is known of time is the same for each.
        apart_of = sharing.kept_apart(
            timing, accesses, {name for beside in of.values() for name in beside}
        )
        found = {
            memory: {name: apart_of[name] & beside for name in beside}
            for memory, beside in of.items()
        }
        # Whoever runs the chip reads the logits after the last instruction.
        last = self._names[self.root(logits)]
        order = [one for block in accesses for one in block]
        writer = max((i for i, one in enumerate(order) if last in one.writes), default=len(order))
        for name in {name for one in order[writer + 1 :] for name in one.writes} - {last}:
            for apart in found.values():
                if name in apart and last in apart:
                    apart[name].add(last)
                    apart[last].add(name)
        return found

    def _ordered_rows(
        self, apart: Mapping[str, Mapping[str, set[str]]]
    ) -> tuple[dict[SSAValue, int], dict[str, int]]:
        """Rows of all values, and how many rows each memory has."""
        rows: dict[SSAValue, int] = {}
        heights: dict[str, int] = {}
        for memory, values in self._of.items():
            sizes = {self._names[value]: self._size(value) for value in values}
            first, heights[memory] = sharing.rows_for(sizes, apart[memory])
            rows |= {value: first[self._names[value]] for value in values}
        return rows, heights

    # Rows by live ranges

    def _live_rows(
        self, blocks: Sequence[DraftBlock], rest: int
    ) -> tuple[dict[SSAValue, int], dict[str, int]]:
        """The same by first fit over the blocks' live ranges.

        What lives across blocks keeps its place for the whole program. Whoever writes where another
        value was must wait for that value's last reader, so a place stays empty for `rest`
        instructions.
        """
        rows: dict[SSAValue, int] = {}
        floor: dict[str, int] = dict.fromkeys(self._of, 0)
        for memory, values in self._of.items():
            for value in values:
                if value in self.persistent:
                    rows[value] = floor[memory]
                    floor[memory] += self._size(value)
        heights = dict(floor)
        for block in blocks:
            ranges = self._ranges(block)
            placed: dict[str, list[SSAValue]] = {memory: [] for memory in self._of}
            for value, (first, last) in ranges.items():
                memory = memory_of(self.kind(value))
                if memory is None:
                    continue
                size, row = self._size(value), floor[memory]
                taken = sorted(
                    (rows[other], rows[other] + self._size(other))
                    for other in placed[memory]
                    if ranges[other][1] + rest >= first and last >= ranges[other][0]
                )
                for begin, end in taken:
                    if row + size <= begin:
                        break
                    row = max(row, end)
                rows[value] = row
                placed[memory].append(value)
                heights[memory] = max(heights[memory], row + size)
        return rows, heights

    def _overflow(
        self,
        blocks: Sequence[DraftBlock],
        apart: Mapping[str, Mapping[str, set[str]]],
        needed: int,
    ) -> None:
        capacity = self.capacity

        def size(value: SSAValue) -> int:
            memory = memory_of(self.kind(value))
            if memory is None:
                return 0
            own = memories.of_values(
                {memory: self._size(value)}, self.machine.vector_lanes, self.capacity
            )
            return own[memory].size

        first = (
            f"the vector units of {self.machine.name} hold {self.machine.vector_sram_bytes} bytes, "
            f"the program needs {needed + self.scales(capacity)}"
        )
        largest = sorted(self._roots, key=lambda value: -size(value))[:5]
        lines = [first, *(f"    {size(v):10d} bytes  {v.type}" for v in largest)]
        scales = self.scales(capacity)
        if scales:
            lines.append(f"    {scales:10d} bytes  scales of cached keys and values")

        def fits(tokens: int) -> bool:
            self.capacity = tokens
            for rows in (self._ordered_rows(apart), self._live_rows(blocks, 0)):
                self._take(*rows)
                if self._bytes <= self._limit:
                    return True
            return False

        context = largest_number(fits, capacity - 1)
        self.capacity = capacity
        raise DoesNotFit(
            "\n".join(lines),
            of="the vector memory",
            ways=[*([Way(context=context)] if context else []), *([NO_SCALES] if scales else [])],
            others=["a larger target"],
        )
