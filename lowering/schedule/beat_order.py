"""The order of a block's beats: that of a list schedule.

Of the beats that need nothing that is still to come, the one that can start first is next, at the
last position of the context; of several, the one that most depends on: with the longest way to the
end of the block, on which beats of a pass come one behind the other. It decides only the order
within the queues; when anything starts follows from the waits (`waits.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from intaglio.dialects.isa.queues import QUEUES
from intaglio.dialects.isa.touched import reduces as is_reducing
from intaglio.dialects.machine import Machine
from intaglio.lowering.place.vector_memory import VectorMemory
from intaglio.lowering.schedule.accesses import Accesses, merged, named_slots, same_slots, touches
from intaglio.lowering.schedule.draft import Draft


def ordered(
    beats: Sequence[Draft],
    instances: Sequence[Mapping[str, str]],
    memory: VectorMemory,
    machine: Machine,
) -> list[Draft]:
    """The beats of a block in the order in which they are taken.

    Args:
        beats: of the block, in the order of the instructions and their passes.
        instances: what those of the block bind slots to.
        memory: of the program's values.
        machine: the chip.
    """
    items = [_item(one, memory.capacity) for one in beats]
    _depend(items, instances, memory, machine)
    after: list[list[int]] = [[] for _ in items]
    for number, item in enumerate(items):
        for other in item.needs:
            after[other].append(number)
    return [beats[number] for number in _order(items, after, _tails(items, after))]


def _tails(items: Sequence[_Item], after: Sequence[Sequence[int]]) -> list[int]:
    """For each beat the cycles from its start to the end of the block, if queues were free for all
    but the beats of its own pass.

    Args:
        items: the beats.
        after: those that need each.
    """
    tails = [0] * len(items)
    behind: dict[tuple[int, int], int] = {}
    for number in reversed(range(len(items))):
        # All that need it have higher numbers.
        item = items[number]
        ways = [items[later].after(number, item) + tails[later] for later in after[number]]
        if item.of_pass in behind:
            ways.append(item.pace + tails[behind[item.of_pass]])
        tails[number] = max(ways, default=item.duration)
        behind[item.of_pass] = number
    return tails


def _order(
    items: Sequence[_Item], after: Sequence[Sequence[int]], tails: Sequence[int]
) -> list[int]:
    """A list schedule: of the beats that can start first the one with the longest tail is next."""
    starts = [0] * len(items)
    missing = [len(item.needs) for item in items]
    ready = [number for number, count in enumerate(missing) if not count]
    free = dict.fromkeys(QUEUES, 0)
    open_: tuple[int, int] | None = None
    """The pass over a group of which rows are still to come."""
    order: list[int] = []
    while ready:
        start, _, chosen = min(
            (max(free[items[number].draft.queue], starts[number]), -tails[number], number)
            for number in ready
            if open_ is None or not items[number].reducing or items[number].of_pass == open_
        )
        item = items[chosen]
        starts[chosen] = start
        free[item.draft.queue] = start + item.pace
        ready.remove(chosen)
        order.append(chosen)
        for number in after[chosen]:
            later = items[number]
            starts[number] = max(starts[number], start + later.after(chosen, item))
            missing[number] -= 1
            if not missing[number]:
                ready.append(number)
        if item.reducing and item.draft.touched is not None:
            closed = item.draft.touched.leaves != (0, 0) or item.draft.beat.ends
            open_ = None if closed else item.of_pass
    return order


@dataclass
class _Item:
    """A beat on its way into the order."""

    draft: Draft
    pace: int
    duration: int
    reduces: int
    before: dict[int, bool] = field(default_factory=dict)
    """Beats that come before it; whether their results must be there."""
    reductions: set[int] = field(default_factory=set)
    """Beats whose reductions must be there."""
    reducing: bool = False

    def after(self, number: int, other: _Item) -> int:
        """Cycles from the start of a beat that comes before it until it may start."""
        passes = other.pace if other.draft.queue == self.draft.queue else 0
        there = other.duration if self.before.get(number, False) else 0
        return max(passes, there, other.reduces if number in self.reductions else 0)

    @property
    def of_pass(self) -> tuple[int, int]:
        """Instruction and pass."""
        return self.draft.beat.of_instruction, self.draft.beat.number

    @property
    def needs(self) -> set[int]:
        """Beats that come before it."""
        return {*self.before, *self.reductions}


def _item(one: Draft, capacity: int) -> _Item:
    given = {"tokens": capacity, "rank": 0}
    duration, pace, reduces = (
        0 if formula is None else int(formula(**given)) for formula in one.times
    )
    return _Item(one, pace or duration, duration, reduces, reducing=is_reducing(one.does, one.beat))


def _depend(
    items: Sequence[_Item],
    instances: Sequence[Mapping[str, str]],
    memory: VectorMemory,
    machine: Machine,
) -> None:
    """What of each beat comes before it."""
    slots = merged(same_slots(one, one) for one in named_slots([i.draft for i in items], instances))
    left: dict[int, int] = {}
    rows: dict[tuple[int, int], int] = {}
    seen = Accesses(machine)
    for number, item in enumerate(items):
        one = item.draft
        places = touches(one, memory)
        for conflict in seen.conflicts(one.queue, places, slots):
            there = conflict.queue != one.queue or conflict.read
            item.before[conflict.number] = item.before.get(conflict.number, False) or there
        seen.add(one.queue, number, places)
        if item.reducing:
            # Rows of a group are reduced in their order.
            if item.of_pass in rows:
                item.before.setdefault(rows[item.of_pass], False)
            rows[item.of_pass] = number
        if one.touched is not None:
            for entry in range(*one.touched.uses):
                item.reductions.add(left[entry])
            for entry in range(*one.touched.leaves):
                left[entry] = number
