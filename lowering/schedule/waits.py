"""What an instruction must wait for: those that share buffers or caches with it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from intaglio.dialects.isa.queues import COUNTERS, PEAKS, QUEUES, reductions_of
from intaglio.dialects.isa.vector import RMSScale
from intaglio.dialects.machine import Machine
from intaglio.lowering.place.vector_memory import VectorMemory
from intaglio.lowering.schedule.accesses import (
    Accesses,
    may_precede,
    merged,
    must_wait,
    named_slots,
    same_slots,
    takes_largest,
    touches,
)
from intaglio.lowering.schedule.draft import DraftBlock


def waits(
    blocks: Sequence[DraftBlock], memory: VectorMemory, machine: Machine
) -> list[list[dict[str, int]]]:
    """For each instruction of each block, how much of which counter must be there before.

    The numbers count instructions of the same instance of the block; 0 stands for all of earlier
    instances and blocks.
    """
    result: list[list[dict[str, int]]] = []
    outside: list[tuple[Accesses, Sequence[Mapping[str, str]]]] = []
    left_before: dict[int, set[str]] = {}
    """Of entries what counts what was left there in earlier blocks or instances."""
    for block in blocks:
        instances = named_slots(block.drafts, block.instances)
        touched = [touches(one, memory) for one in block.drafts]
        own = Accesses(machine)
        whole = dict.fromkeys(COUNTERS, 0)
        for one, places in zip(block.drafts, touched, strict=True):
            whole[one.queue] += 1
            own.add(one.queue, whole[one.queue], places)
        before = [
            (index, merged(same_slots(a, b) for a in bound for b in instances))
            for index, bound in outside
        ]
        again = merged(_earlier(instances)) if len(instances) > 1 else None
        outside.append((own, instances))
        here = merged(same_slots(one, one) for one in instances)
        if len(instances) > 1:
            _leave(block, left_before)
        counts = dict.fromkeys(COUNTERS, 0)
        seen = Accesses(machine)
        left: dict[int, dict[str, int]] = {}
        """Who left something at an entry: numbers of its results, and of what it left."""
        needs: list[dict[str, int]] = []
        for one, places in zip(block.drafts, touched, strict=True):
            times, queue = one.times, one.queue
            flows = times.pace is not None
            need: dict[str, int] = {}
            for index, slots in before:
                # Of the block's own instructions none need be done for that.
                for other in index.queues(queue, places, slots, flows=flows):
                    need[other] = -whole[other] if again is not None else 0
            if again is not None:
                for conflict in own.conflicts(queue, places, again):
                    if must_wait(conflict, queue, flows=flows):
                        # Queues are in order: the last one counts.
                        other = conflict.queue
                        count = conflict.number - whole[other]
                        need[other] = max(need.get(other, count), count)
            for conflict in seen.conflicts(queue, places, here):
                # Queues are in order: the last one counts.
                if must_wait(conflict, queue, flows=flows):
                    # What is reduced comes after the elements; all of the queue leave something.
                    counter = conflict.counter
                    if takes_largest(one, conflict):
                        counter = PEAKS[counter]
                    need[counter] = max(need.get(counter, 0), conflict.number)
            leaves = reductions_of(queue)
            if one.touched is not None:
                for entry in range(*one.touched.uses):
                    # What left something in earlier blocks or instances is all done, by 0.
                    found = left.get(entry) or dict.fromkeys(left_before[entry], 0)
                    for counter, number in found.items():
                        # Results come before what is left.
                        if (counter in QUEUES) == may_precede(one, machine):
                            need[counter] = max(need.get(counter, 0), number)
            counts[queue] += 1
            if times.reduces is not None:
                counts[leaves] += 1
            if one.touched is not None:
                by = {queue: counts[queue], leaves: counts[leaves]}
                left |= dict.fromkeys(range(*one.touched.leaves), by)
            seen.add(queue, counts[queue], places)
            need |= one.also_waits
            needs.append({name: need[name] for name in COUNTERS if name in need})
        result.append(needs)
        _leave(block, left_before)
    return result


def _leave(block: DraftBlock, left: dict[int, set[str]]) -> None:
    """Adds the counters of a block's peaks and norms' factors, and of the results that these
    follow, to those of each entry."""
    for one in block.drafts:
        if one.touched is not None and (one.beat.peak or isinstance(one.does, RMSScale)):
            for entry in range(*one.touched.leaves):
                left.setdefault(entry, set()).update((one.queue, reductions_of(one.queue)))


def _earlier(instances: Sequence[Mapping[str, str]]) -> Iterator[dict[str, set[str]]]:
    """Slots that are the same cache as in an instance before, instance by instance."""
    before: dict[str, set[str]] = {}
    for bound in instances:
        yield {slot: before[name] for slot, name in bound.items() if name in before}
        for slot, name in bound.items():
            before.setdefault(name, set()).add(slot)
