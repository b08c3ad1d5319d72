"""Who touches the same elements as whom: an index of the instructions of a block by place."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from intaglio.dialects.hazards import ADDERS
from intaglio.dialects.isa.queues import COUNTERS, PEAKS, reductions_of
from intaglio.dialects.isa.recurrence import LinearAttention
from intaglio.dialects.isa.touched import early_of
from intaglio.dialects.machine import Machine
from intaglio.lowering.place.vector_memory import VectorMemory
from intaglio.lowering.schedule.draft import Draft

_KEPT = ("what is to be added to a state",)
_ALL = 1 << 62
"""More heads than any cache has."""


class Touch(NamedTuple):
    """Elements that an instruction reads or writes: `first` to `last` (not included) of a space,
    which is a value, a memory that values share, or the slot of a cache, of which heads count."""

    space: Hashable
    first: int
    last: int
    writes: bool
    late: bool = False
    """Whether what is written is there with the reductions of the instruction."""
    sums: bool = False
    """Whether only sums of what is written are; or may be, where it is read."""


class Conflict(NamedTuple):
    """An earlier instruction that must come before.

    Attributes:
        queue: where it stands.
        number: as it was added.
        read: whether the later one reads what it writes.
        late: whether it writes that with its reductions.
    """

    queue: str
    number: int
    read: bool
    late: bool = False

    @property
    def counter(self) -> str:
        """What counts that it is there."""
        return reductions_of(self.queue) if self.late else self.queue


Slots = Mapping[str, Iterable[str]]
"""For each slot of a later instruction those of an earlier one that may be the same cache."""


def touches(one: Draft, memory: VectorMemory) -> list[Touch]:
    """All that an instruction touches."""
    does, part = one.does, one.touched
    found: list[Touch] = []
    for values, writes in ((one.reads, False), (one.writes, True)):
        for value in values:
            elements = None
            if part is not None:
                elements = (part.writes if writes else part.reads)[value]
            late = writes and part is not None and part.late
            sums = part is not None and part.sums if writes else may_precede(one, memory.machine)
            found.append(Touch(*memory.where(value, elements), writes, late, sums))
    for slots, writes in ((does.read_caches, False), (does.written_caches, True)):
        for slot in slots:
            heads = (0, _ALL)
            if part is not None:
                heads = (part.written_caches if writes else part.read_caches).get(slot, heads)
            found.append(Touch(slot, *heads, writes))
    if isinstance(does, LinearAttention):
        # What the first pass keeps for the second one has one place in the H-Units.
        found.append(Touch(_KEPT, 0, 1, True))
    return found


def may_precede(one: Draft, machine: Machine) -> bool:
    """Whether an instruction may start before what is reduced for it is there."""
    return early_of(one.does, machine.early) >= machine.behind


class Accesses:
    """What instructions touch, in the order in which they are added.

    Args:
        machine: whose queues may share adders.
    """

    def __init__(self, machine: Machine) -> None:
        self._shares_adders = machine.shared_arrays
        self._by_space: dict[Hashable, list[tuple[str, int, Touch]]] = {}
        self._adders: dict[str, list[int]] = {}

    def add(self, queue: str, number: int, touched: Iterable[Touch]) -> None:
        """Adds an instruction of a queue."""
        for touch in touched:
            self._by_space.setdefault(touch.space, []).append((queue, number, touch))
        if self._shares_adders and queue in ADDERS:
            self._adders.setdefault(queue, []).append(number)

    def conflicts(
        self, queue: str, touched: Iterable[Touch], slots: Slots | None = None
    ) -> Iterator[Conflict]:
        """Those that must come before an instruction of a queue; the same one more than once
        where it touches several things.

        Args:
            queue: where the later one stands.
            touched: by it.
            slots: which slots of the earlier ones are its own; None: those of the same name.
        """
        for touch in touched:
            spaces: Iterable[Hashable] = (touch.space,)
            if slots is not None and isinstance(touch.space, str):
                spaces = slots.get(touch.space, ())
            for space in spaces:
                for other, number, earlier in self._by_space.get(space, ()):
                    if (
                        (touch.writes or earlier.writes)
                        and earlier.first < touch.last
                        and touch.first < earlier.last
                    ):
                        read = earlier.writes and not touch.writes
                        late = earlier.late and not (read and earlier.sums and touch.sums)
                        yield Conflict(other, number, read, late)
        if queue in ADDERS:
            for other, numbers in self._adders.items():
                if other != queue:
                    yield from (Conflict(other, number, False) for number in numbers)

    def queues(
        self, queue: str, touched: Sequence[Touch], slots: Slots | None, *, flows: bool
    ) -> set[str]:
        """The counters of any that an instruction must wait for."""
        found: set[str] = set()
        for one in self.conflicts(queue, touched, slots):
            if must_wait(one, queue, flows=flows):
                found.add(one.counter)
                if len(found) == len(COUNTERS):
                    break
        return found


def must_wait(one: Conflict, queue: str, *, flows: bool) -> bool:
    """Whether an instruction of a queue needs that the earlier one has finished.

    A queue that flows takes and leaves things in order: only what is read must be waited for, and
    what comes later than the results of what follows.
    """
    return one.late or one.queue != queue or (flows and one.read)


def takes_largest(one: Draft, conflict: Conflict) -> bool:
    """Whether an instruction takes the largest of what it reads as the earlier one leaves it."""
    largest = one.touched is not None and one.touched.largest
    return largest and conflict.read and conflict.queue in PEAKS


def named_slots(
    drafts: Iterable[Draft], instances: Iterable[Mapping[str, str]]
) -> list[dict[str, str]]:
    """What each instance binds slots of caches to; what is no slot stands for itself."""
    used = {
        slot: slot for one in drafts for slot in (*one.does.read_caches, *one.does.written_caches)
    }
    return [{slot: bound.get(slot, slot) for slot in used} for bound in instances]


def same_slots(before: Mapping[str, str], after: Mapping[str, str]) -> dict[str, set[str]]:
    """For each slot of a later instance those of an earlier one that are bound to the same."""
    bound: dict[str, set[str]] = {}
    for slot, name in before.items():
        bound.setdefault(name, set()).add(slot)
    return {slot: bound[name] for slot, name in after.items() if name in bound}


def merged(found: Iterable[Mapping[str, set[str]]]) -> dict[str, set[str]]:
    """All of some `same_slots` together."""
    together: dict[str, set[str]] = {}
    for one in found:
        for slot, others in one.items():
            together.setdefault(slot, set()).update(others)
    return together
