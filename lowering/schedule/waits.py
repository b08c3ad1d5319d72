"""What an instruction must wait for: those of other queues that share buffers or caches with it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence, Set

from intaglio.dialects.hazards import ADDERS
from intaglio.dialects.isa.queues import QUEUES
from intaglio.dialects.machine import Machine
from intaglio.lowering.place.vector_memory import VectorMemory
from intaglio.lowering.schedule.draft import Draft, DraftBlock


def waits(
    blocks: Sequence[DraftBlock], memory: VectorMemory, machine: Machine
) -> list[list[dict[str, int]]]:
    """For each instruction of each block, how many of which queue must have finished before.

    The numbers count instructions of the same instance of the block; 0 stands for all of earlier
    instances and blocks.
    """
    result: list[list[dict[str, int]]] = []
    for number, block in enumerate(blocks):
        earlier = [(d, other) for other in blocks[:number] for d in other.drafts]
        counts = dict.fromkeys(QUEUES, 0)
        seen: list[tuple[Draft, int]] = []
        needs: list[dict[str, int]] = []
        for draft in block.drafts:
            need: dict[str, int] = {}
            for other, where in earlier:
                if other.queue != draft.queue and (
                    _share_places(other, draft, memory, machine)
                    or _share_caches(other, draft, where.instances, block.instances)
                ):
                    need[other.queue] = 0
            for other in block.drafts if len(block.instances) > 1 else ():
                if other.queue != draft.queue and (
                    _share_places(other, draft, memory, machine)
                    or any(
                        _share_caches(other, draft, block.instances[:n], [one])
                        for n, one in enumerate(block.instances)
                    )
                ):
                    need[other.queue] = 0
            for other, count in seen:
                if other.queue != draft.queue and (
                    _share_places(other, draft, memory, machine)
                    or any(_share_caches(other, draft, [one], [one]) for one in block.instances)
                ):
                    need[other.queue] = count
            counts[draft.queue] += 1
            seen.append((draft, counts[draft.queue]))
            need |= draft.also_waits
            needs.append({queue: need[queue] for queue in QUEUES if queue in need})
        result.append(needs)
    return result


def _share_caches(
    earlier: Draft,
    later: Draft,
    before: Sequence[Mapping[str, str]],
    after: Sequence[Mapping[str, str]],
) -> bool:
    """Whether one writes a cache that the other reads or writes.

    Args:
        earlier: an instruction, in any instance of `before`.
        later: an instruction, in any instance of `after`.
        before: what instances of a block bind slots to.
        after: likewise.
    """

    def bound(slots: Collection[str], instances: Sequence[Mapping[str, str]]) -> Set[str]:
        return {one.get(slot, slot) for one in instances for slot in slots}

    written, read = earlier.does.written_caches, earlier.does.read_caches
    if not (written or read):
        return False
    writes = bound(later.does.written_caches, after)
    return not writes.isdisjoint(bound((*written, *read), before)) or not bound(
        later.does.read_caches, after
    ).isdisjoint(bound(written, before))


def _share_places(earlier: Draft, later: Draft, memory: VectorMemory, machine: Machine) -> bool:
    """Whether one writes elements that the other reads or writes, or both need the same adders."""
    if machine.shared_arrays and {earlier.queue, later.queue} == set(ADDERS):
        return True
    pairs = (
        (earlier.writes, later.reads),
        (earlier.reads, later.writes),
        (earlier.writes, later.writes),
    )
    return any(memory.conflicts(a, b) for one, two in pairs for a in one for b in two)
