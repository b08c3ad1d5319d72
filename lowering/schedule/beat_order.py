"""The order of a block's beats: that of a list schedule (`list_schedule.py`).

One order serves all positions of the context. Of list schedules for some of them the one is chosen
that takes the fewest cycles at all of these together. It decides only the order within the queues;
when anything starts follows from the waits (`waits.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

from intaglio.dialects.isa.matrix import Matvec
from intaglio.dialects.isa.touched import passes_of
from intaglio.dialects.isa.touched import reduces as is_reducing
from intaglio.dialects.machine import Machine
from intaglio.lowering.place.vector_memory import VectorMemory
from intaglio.lowering.schedule import list_schedule
from intaglio.lowering.schedule.accesses import (
    Accesses,
    Touch,
    may_precede,
    merged,
    named_slots,
    same_slots,
    takes_largest,
    touches,
)
from intaglio.lowering.schedule.draft import Draft

POSITIONS = (Fraction(0), Fraction(1, 4), Fraction(1, 2), Fraction(1))
"""Those that count, as parts of the context."""


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
    items = [_Item(one, reducing=is_reducing(one.does, one.beat)) for one in beats]
    _depend(items, instances, memory, machine)
    behind = _behind(items) if len(instances) > 1 else {}
    needs = [[*item.before, *(item.reductions - item.before.keys())] for item in items]
    needed: list[list[int]] = [[] for _ in items]
    for number, own in enumerate(needs):
        for other in own:
            needed[other].append(number)
    given = list_schedule.Beats(
        [item.draft.queue for item in items],
        [item.of_pass for item in items],
        [item.reducing for item in items],
        [item.closes for item in items],
        needs,
        needed,
        [item.fills for item in items],
    )
    last = memory.capacity - 1
    tokens = sorted({1 + int(part * last) for part in POSITIONS})
    if not any("tokens" in one.variables for item in items for one in item.draft.times if one):
        tokens = tokens[-1:]
    positions = [_cycles(items, needs, behind, count) for count in tokens]
    return [beats[number] for number in list_schedule.best(given, positions)]


def _cycles(
    items: Sequence[_Item],
    needs: Sequence[Sequence[int]],
    behind: Mapping[int, Sequence[int]],
    tokens: int,
) -> list_schedule.Cycles:
    """What beats take with so many tokens."""
    given = {"tokens": tokens, "rank": 0}
    paces, durations, reduces = list[int](), list[int](), list[int]()
    for item in items:
        duration, pace, left = (
            0 if formula is None else int(formula(**given)) for formula in item.draft.times
        )
        paces.append(pace or duration)
        durations.append(duration)
        reduces.append(left)
    delays: list[list[int]] = []
    for item, own in zip(items, needs, strict=True):
        found: list[int] = []
        for other in own:
            delay = paces[other] if items[other].draft.queue == item.draft.queue else 0
            if item.before.get(other, False):
                delay = max(delay, durations[other])
            if other in item.reductions:
                delay = max(delay, reduces[other])
            found.append(delay)
        delays.append(found)
    # The instance before ends with the last of those that give something to this one.
    ahead = {number: sum(paces[one] for one in later) for number, later in behind.items()}
    whole = max(ahead.values(), default=0)
    released = [whole - ahead.get(number, whole) for number in range(len(items))]
    return list_schedule.Cycles(paces, durations, delays, released)


@dataclass
class _Item:
    """A beat on its way into the order."""

    draft: Draft
    previous: int | None = None
    """The last beat of the instance before that gives it something."""
    before: dict[int, bool] = field(default_factory=dict)
    """Beats that come before it; whether their results must be there."""
    reductions: set[int] = field(default_factory=set)
    """Beats whose reductions must be there."""
    reducing: bool = False

    @property
    def of_pass(self) -> tuple[int, int]:
        """Instruction and pass."""
        return self.draft.beat.of_instruction, self.draft.beat.number

    @property
    def fills(self) -> bool:
        """Whether it is a round whose sums stay in the L-Units."""
        does = self.draft.does
        return isinstance(does, Matvec) and self.draft.beat.number < passes_of(does) - 1

    @property
    def closes(self) -> bool:
        """Whether it has the last rows of a group that is reduced."""
        touched = self.draft.touched
        return touched is None or touched.leaves != (0, 0) or self.draft.beat.ends


def _behind(items: Sequence[_Item]) -> dict[int, list[int]]:
    """For each beat that takes something of the instance before, the beats of the pass that gives
    it which follow the one that does."""
    passes: dict[tuple[int, int], list[int]] = {}
    for number, item in enumerate(items):
        passes.setdefault(item.of_pass, []).append(number)
    return {
        number: [one for one in passes[items[item.previous].of_pass] if one > item.previous]
        for number, item in enumerate(items)
        if item.previous is not None
    }


def _depend(
    items: Sequence[_Item],
    instances: Sequence[Mapping[str, str]],
    memory: VectorMemory,
    machine: Machine,
) -> None:
    """What of each beat comes before it."""
    slots = merged(same_slots(one, one) for one in named_slots([i.draft for i in items], instances))
    left: dict[int, int] = {}
    kept: int | None = None
    read: list[list[Touch]] = []
    rows: dict[tuple[int, int], int] = {}
    seen = Accesses(machine)
    for number, item in enumerate(items):
        one = item.draft
        places = touches(one, memory)
        read.append([one for one in places if not one.writes])
        for conflict in seen.conflicts(one.queue, places, slots):
            there = (conflict.queue != one.queue or conflict.read) and not conflict.late
            item.before[conflict.number] = item.before.get(conflict.number, False) or there
            if conflict.late or takes_largest(one, conflict):
                item.reductions.add(conflict.number)
        seen.add(one.queue, number, places)
        if item.reducing:
            # Rows of a group are reduced in their order.
            if item.of_pass in rows:
                item.before.setdefault(rows[item.of_pass], False)
            rows[item.of_pass] = number
        if isinstance(one.does, Matvec) and one.does.row_rounds is not None:
            # L-Units keep the sums of one product at a time, from its first round to its last step.
            if kept is not None:
                item.before.setdefault(kept, False)
            kept = number
        if one.touched is not None:
            for entry in range(*one.touched.uses):
                # Peaks may be of an instance or block before.
                if entry in left:
                    if may_precede(one, machine):
                        item.before[left[entry]] = True
                    else:
                        item.reductions.add(left[entry])
            for entry in range(*one.touched.leaves):
                left[entry] = number
    if len(instances) == 1:
        return
    for number, item in enumerate(items):
        # What is read and not written before has been left by the instance before.
        last = -1
        for conflict in seen.conflicts(item.draft.queue, read[number], slots):
            if conflict.read and conflict.number > max(number, last):
                last = conflict.number
        item.previous = last if last >= 0 else None
