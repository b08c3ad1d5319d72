"""What each instruction must wait for: instructions of other queues that share its buffers."""

from __future__ import annotations

from collections.abc import Sequence

from intaglio.dialects import timeline
from intaglio.dialects.machine import Machine
from intaglio.lowering.draft import Draft, DraftBlock
from intaglio.lowering.vector_memory import VectorMemory

_ARRAY_QUEUES = {"matrix", "attention"}
"""Queues whose units may share the adders of the matrix tiles."""


def waits(
    blocks: Sequence[DraftBlock], memory: VectorMemory, machine: Machine
) -> list[list[dict[str, int]]]:
    """For each instruction of each block, how many of which queue must have finished before.

    The numbers count instructions of the same instance of the block; 0 stands for all of earlier
    instances and blocks.
    """
    result: list[list[dict[str, int]]] = []
    for number, block in enumerate(blocks):
        earlier = [d for other in blocks[:number] for d in other.drafts]
        if len(block.instances) > 1:
            earlier += block.drafts
        counts = dict.fromkeys(timeline.QUEUES, 0)
        seen: list[tuple[Draft, int]] = []
        needs: list[dict[str, int]] = []
        for draft in block.drafts:
            need: dict[str, int] = {}
            for other in earlier:
                if other.queue != draft.queue and _conflict(other, draft, memory, machine):
                    need[other.queue] = 0
            for other, count in seen:
                if other.queue != draft.queue and _conflict(
                    other, draft, memory, machine, same_instance=True
                ):
                    need[other.queue] = count
            counts[draft.queue] += 1
            seen.append((draft, counts[draft.queue]))
            need |= draft.also_waits
            needs.append({queue: need[queue] for queue in timeline.QUEUES if queue in need})
        result.append(needs)
    return result


def _conflict(
    earlier: Draft,
    later: Draft,
    memory: VectorMemory,
    machine: Machine,
    *,
    same_instance: bool = False,
) -> bool:
    """Whether one writes what the other reads or writes.

    Caches of different instances are different buffers.
    """
    if same_instance and (
        earlier.written_caches & later.read_caches or earlier.read_caches & later.written_caches
    ):
        return True
    if machine.shared_arrays and {earlier.queue, later.queue} == _ARRAY_QUEUES:
        return True
    pairs = (
        (earlier.writes, later.reads),
        (earlier.reads, later.writes),
        (earlier.writes, later.writes),
    )
    return any(
        memory.place(a).overlaps(memory.place(b)) for one, two in pairs for a in one for b in two
    )
