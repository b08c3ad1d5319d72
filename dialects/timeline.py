"""When instructions start and finish: the cycle contract, in one place.

There is one in-order queue for each class of unit. An instruction starts `issue` cycles after the
last of: the finish of its predecessor in its queue, and the finishes it waits for. It finishes
`duration` cycles later; that is the first cycle in which its result can be read. Cycle 0 accepts
the token.

A *wait* names a queue and how many instructions of it, counted from the beginning of the block
instance, must have finished; 0 means all that were issued before the instance.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from intaglio.dialects.formula import Formula
from intaglio.dialects.isa.queues import QUEUES


@dataclass(frozen=True)
class Issue:
    """What the timeline needs to know of an instruction."""

    queue: str
    waits: Mapping[str, int]
    duration: Formula


@dataclass(frozen=True)
class Block:
    """Instructions that run once for each of `instances`, one instance after the other."""

    name: str
    issues: Sequence[Issue]
    instances: int


@dataclass(frozen=True)
class Span:
    """Start and finish of an instruction instance, one element a position."""

    block: int
    instance: int
    instruction: int
    start: npt.NDArray[np.int64]
    finish: npt.NDArray[np.int64]


Ranks = Mapping[tuple[int, int, int], int]
"""The active rank at the site of an instruction instance (block, instance, instruction), not 0."""


def simulate(
    blocks: Sequence[Block],
    issue: int,
    positions: npt.ArrayLike,
    ranks: Ranks | None = None,
) -> Iterator[Span]:
    """Yields every instruction instance in program order with its start and finish cycles.

    Args:
        blocks: the program, in order.
        issue: cycles between the last condition of an instruction and its start.
        positions: the positions to evaluate at, at once.
        ranks: the active adapter's; others are 0. None without adapter.
    """
    where = np.atleast_1d(np.asarray(positions, dtype=np.int64))
    given = {"rank": 0, "tokens": where + 1}
    zero = np.zeros_like(where)
    finishes: dict[str, list[npt.NDArray[np.int64]]] = {queue: [] for queue in QUEUES}
    for block_number, block in enumerate(blocks):
        durations = [issued.duration(**given) for issued in block.issues]
        for instance in range(block.instances):
            base = {queue: len(done) for queue, done in finishes.items()}
            for number, issued in enumerate(block.issues):
                rank = ranks.get((block_number, instance, number), 0) if ranks else 0
                duration = issued.duration(**{**given, "rank": rank}) if rank else durations[number]
                own = finishes[issued.queue]
                ready = own[-1] if own else zero
                for queue, count in issued.waits.items():
                    if last := base[queue] + count:
                        ready = np.maximum(ready, finishes[queue][last - 1])
                start = ready + issue
                finish = start + duration
                own.append(finish)
                yield Span(block_number, instance, number, start, finish)
