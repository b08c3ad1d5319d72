"""Whether the results of a queue come in the order in which it took its instructions.

Waits count results (`dialects/timeline.py`): the n-th of a counter must be that of the n-th
instruction, or a wait would be over before the result that it means. One instruction that flows is
overtaken by the next if that one's result is there sooner, and two that come in one cycle count as
one: so of two in a row, the first one's duration must be less than its pace and the second one's
duration together; likewise what they reduce. That must hold at every position and rank, whatever
the waits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from intaglio.dialects.formula import Formula, constant
from intaglio.dialects.isa.queues import QUEUES
from intaglio.dialects.timeline import At, Block, Issue

_NOTHING = constant(0)


@dataclass(frozen=True)
class Overtaking:
    """Two instruction instances of a queue whose results may come in the wrong order.

    Attributes:
        earlier, later: in the order of the queue.
        what: `result` or `reduction`.
    """

    earlier: At
    later: At
    what: str


def first_overtaking(
    blocks: Sequence[Block], capacity: int, rank: int, sampled: Sequence[bool] = ()
) -> Overtaking | None:
    """The first instruction whose result may come before that of the one before; None: none may.

    Args:
        blocks: of the program, in order.
        capacity: tokens of the longest context.
        rank: the largest of an adapter.
        sampled: of each block, whether only some tokens run it.
    """
    good: set[tuple[Formula, ...]] = set()
    kept = [n for n in range(len(blocks)) if not (n < len(sampled) and sampled[n])]
    for chosen in dict.fromkeys((tuple(range(len(blocks))), tuple(kept))):
        for queue in QUEUES:
            of_queue = list(_neighbours(blocks, chosen, queue))
            for what, pairs in (
                ("result", of_queue),
                ("reduction", _reducing(of_queue)),
            ):
                for (at, one), (then, other) in pairs:
                    formulas = _formulas(one, other, what)
                    if formulas is None or formulas in good:
                        continue
                    if not _ordered(formulas, capacity, rank):
                        return Overtaking(at, then, what)
                    good.add(formulas)
    return None


Taken = tuple[At, Issue]


def _neighbours(
    blocks: Sequence[Block], chosen: Sequence[int], queue: str
) -> Iterator[tuple[Taken, Taken]]:
    """Instructions of a queue that follow each other."""
    taken: list[Taken] = []
    for number in chosen:
        block = blocks[number]
        own = [(place, one) for place, one in enumerate(block.issues) if one.queue == queue]
        # From the second instance on the neighbours are the same ones.
        for instance in range(min(block.instances, 2)):
            taken += [((number, instance, place), one) for place, one in own]
    return pairwise(taken)


def _reducing(pairs: Sequence[tuple[Taken, Taken]]) -> Iterator[tuple[Taken, Taken]]:
    """Of what follows each other, those with reductions."""
    found = [one for one, _ in pairs[:1]] + [other for _, other in pairs]
    return pairwise(one for one in found if one[1].reduces is not None)


def _formulas(one: Issue, other: Issue, what: str) -> tuple[Formula, ...] | None:
    """Of the first one the pace and when it is there, and of the second one when that is there."""
    if one.pace is None:
        return None
    if what == "result":
        return one.pace, one.duration, other.duration
    return one.pace, one.reduces or _NOTHING, other.reduces or _NOTHING


def _ordered(formulas: tuple[Formula, ...], capacity: int, rank: int) -> bool:
    names = frozenset[str]().union(*(one.variables for one in formulas))
    tokens: Any = np.arange(1, capacity + 1) if "tokens" in names else 1
    ranks: Any = np.arange(rank + 1)[:, None] if "rank" in names else 0
    pace, first, second = (one(tokens=tokens, rank=ranks) for one in formulas)
    return bool(np.all(first < pace + second))
