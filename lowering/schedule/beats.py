"""Cuts instructions into beats, and orders the beats of a block.

A queue takes beats, so what another queue waits for is there as soon as the beat that makes it has
finished, and not when the whole instruction has. What is cut:

- products by their steps, and those that take a row in rounds by these, up to the last one;
- vectors by their rows, attention by the heads of the cache;
- an instruction of several passes into its passes.

What comes first of a block's beats is said by `beat_order.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import gcd

from xdsl.ir import SSAValue

from intaglio.dialects.isa.attention import QueryKey, WeightedSum
from intaglio.dialects.isa.beat import Beat
from intaglio.dialects.isa.cache import Append
from intaglio.dialects.isa.matrix import ExpertMatvec, Matvec, Product
from intaglio.dialects.isa.queues import VECTOR
from intaglio.dialects.isa.touched import Memories, groups_of, passes_of, size_of, touched
from intaglio.dialects.isa.vector import (
    Delay,
    OverScores,
    QuantizeHeads,
    RMSScale,
    Rotary,
    Route,
    VectorInstruction,
)
from intaglio.dialects.machine import Machine
from intaglio.lowering.place.vector_memory import VectorMemory
from intaglio.lowering.schedule.beat_order import ordered
from intaglio.lowering.schedule.draft import Draft, DraftBlock
from intaglio.lowering.schedule.peaks import Peaks, in_a_row

MOST = 64
"""Beats of a pass or product at most: their descriptors are memory."""


@dataclass(frozen=True)
class _Makers:
    """Who makes values: here, and in the instance before."""

    here: Mapping[SSAValue, Draft]
    before: Mapping[SSAValue, Draft]

    def of(self, value: SSAValue) -> Draft | None:
        """Who makes a value that is read here; None: it is left by other blocks."""
        return self.here.get(value) or self.before.get(value)


@dataclass
class Beats:
    """Cuts the instructions of a program.

    Attributes:
        machine: the chip.
        memory: of the program's values.
        rows_at_once: rows of a matrix that leave the array together, by its slot's buffers.
        heads: of caches and states of matrices.
        peaks: the largest magnitudes that are taken while values are written.
        states: elements of states.
    """

    machine: Machine
    memory: VectorMemory
    rows_at_once: Callable[[str], int]
    heads: Mapping[str, int]
    peaks: Peaks
    states: Mapping[str, int]

    def cut(self, block: DraftBlock, number: int) -> None:
        """Replaces the instructions of a block by their beats, in order; in place.

        Args:
            block: the block.
            number: its own in the program.
        """
        bound = block.instances[0]
        chip = Memories(
            self.machine.vector_lanes,
            self.memory.capacity,
            lambda slot: {**self.heads, **self.states}[bound.get(slot, slot)],
        )
        made_by = {value: one for one in block.drafts for value in one.does.writes}
        makers = _Makers(made_by, self._left_before(block, made_by))
        entries = self._entries(block, number)
        beats = [
            beat
            for place, one in enumerate(block.drafts)
            for beat in self._beats((number, place), one, chip, bound, makers, entries[place])
        ]
        block.drafts[:] = ordered(beats, block.instances, self.memory, self.machine)

    def _left_before(
        self, block: DraftBlock, made_by: Mapping[SSAValue, Draft]
    ) -> dict[SSAValue, Draft]:
        """Who makes the values that an instance takes over from the one before."""
        if len(block.instances) == 1:
            return {}
        roots = self.memory.persistent
        left = {roots[value]: one for value, one in made_by.items() if value in roots}
        read = {value for one in block.drafts for value in one.does.reads if value not in made_by}
        return {value: left[roots[value]] for value in read if roots.get(value) in left}

    def _entries(self, block: DraftBlock, number: int) -> list[int]:
        """For each instruction the entry of its first group's reductions; those of peaks are the
        first ones."""
        entries, taken = list[int](), self.peaks.entries
        factors = self.peaks.factors
        for place, one in enumerate(block.drafts):
            does = one.does
            if isinstance(does, RMSScale):
                entries.append(factors[does.output])
                continue
            if isinstance(does, Product | ExpertMatvec) and does.norm is not None:
                entries.append(factors[does.norm])
                continue
            if (number, place) in self.peaks.read:
                entries.append(self.peaks.read[number, place])
                continue
            # Rounds of a product leave sums in the L-Units.
            passes = 1 if isinstance(does, Product) else passes_of(does)
            entries.append(taken if passes > 1 else 0)
            taken += groups_of(does, self.memory.kind) if passes > 1 else 0
        return entries

    def _beats(
        self,
        at: tuple[int, int],
        one: Draft,
        chip: Memories,
        bound: Mapping[str, str],
        makers: _Makers,
        entry: int,
    ) -> Iterator[Draft]:
        does, kind = one.does, self.memory.kind
        size = size_of(does, kind, chip.heads)
        passes = passes_of(does)
        for number in range(int(at in self.peaks.read), passes):
            peak, after = 0, None
            if number == passes - 1 and at in self.peaks.left:
                left, after = self.peaks.left[at]
                peak = left + 1
            unit = self._unit(one, number, size, chip, bound, makers)
            if unit * MOST < size:
                unit *= -(-size // (unit * MOST))
            for first in range(0, size, unit):
                count = min(unit, size - first)
                ends = number == passes - 1 and first + count == size
                beat = Beat(number, first, count, entry, ends, at[1], peak)
                yield replace(
                    one,
                    beat=beat,
                    size=count,
                    touched=touched(does, beat, kind, chip, after),
                    also_waits=dict(one.also_waits),
                )

    def _unit(
        self,
        one: Draft,
        number: int,
        size: int,
        chip: Memories,
        bound: Mapping[str, str],
        makers: _Makers,
    ) -> int:
        """How much of what is counted a beat has."""
        does, kind, lanes = one.does, self.memory.kind, self.machine.vector_lanes
        match does:
            case Matvec() if number < passes_of(does) - 1:
                return size
            case Matvec() | ExpertMatvec():
                return self.rows_at_once(bound.get(does.weights, does.weights))
            case QueryKey() | WeightedSum() | Append():
                return 1
            case OverScores():
                return size // chip.heads(does.values)
            case Rotary() if size // does.heads >= lanes:
                return size // does.heads
            case Route():
                return size
            case QuantizeHeads() if groups_of(does, kind) == 1:
                return size
            case VectorInstruction():
                groups = groups_of(does, kind)
                if groups > 1:
                    # Heads of queries that share a head of the cache go together.
                    together = groups // gcd(groups, max(self.heads.values(), default=1))
                    return size // groups * together
                if not self._streams(one, number, makers):
                    return size
                return lanes * self._rows_together(one, size, makers)
            case _:
                return size

    def _rows_together(self, one: Draft, size: int, makers: _Makers) -> int:
        """Rows of a beat of a pass over rows that come one after the other, so that the last is
        done first: a beat may keep its queue longer than its rows take."""
        lanes = self.machine.vector_lanes
        rows = -(-size // lanes)

        def pace(count: int) -> int:
            times = one.takes(min(size, count * lanes), passes_of(one.does) - 1)
            return int((times.pace or times.duration)(tokens=1, rank=0))

        if pace(1) == 1:
            return 1
        apart = self._apart([makers.of(value) for value in one.does.reads], makers)
        if apart is None:
            return 1

        def done(together: int) -> int:
            free = 0
            for first in range(0, rows, together):
                last = min(first + together, rows) - 1
                free = max(free, last * apart) + pace(last - first + 1)
            return free

        return min(range(1, rows + 1), key=lambda together: (done(together), together))

    def _apart(self, made: Sequence[Draft | None], makers: _Makers) -> int | None:
        """Cycles between two rows of what some instructions make: those of the products that it is
        made of; None: it is made of none."""
        found: list[int] = []
        for maker in made:
            if maker is None:
                continue
            if isinstance(maker.does, Matvec):
                times = maker.takes(self.machine.vector_lanes, passes_of(maker.does) - 1)
                found.append(int((times.pace or times.duration)(tokens=1, rank=0)))
            elif maker.queue == VECTOR:
                apart = self._apart([makers.here.get(value) for value in maker.does.reads], makers)
                found += [] if apart is None else [apart]
        return max(found, default=None)

    def _streams(self, one: Draft, number: int, makers: _Makers) -> bool:
        """Whether a pass over the only group goes row by row.

        A pass that reduces keeps all others that reduce waiting from its first row to its last, so
        it does only where its rows come one behind the other.
        """
        reduced = number < passes_of(one.does) - 1 or isinstance(one.does, RMSScale)
        if reduced and not isinstance(one.does, Delay):
            if number:
                return False
            maker = makers.of(one.does.reads[0])
            return maker is not None and in_a_row(maker, makers.here)
        return True
