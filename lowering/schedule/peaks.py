"""Which values' largest magnitudes are taken while they are written, so that whoever begins with
finding them needs no pass for it.

All that write a value must be able to, in whatever block: a value that lives across blocks has
several. Of those that read it, one in each block takes what is left; norms in any block, a
quantisation where it is the only one, since its scale leaves with the peak. Each such value has an
entry of its own in the files of reductions, the same in all blocks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

from xdsl.ir import SSAValue

from intaglio.dialects.formulas.norms import norm_constants
from intaglio.dialects.isa.adapter import AdapterMatvec
from intaglio.dialects.isa.attention import QueryKey
from intaglio.dialects.isa.queues import ATTENTION, MATRIX, PEAKS, VECTOR
from intaglio.dialects.isa.touched import may_leave_peak, may_read_peak, passes_of
from intaglio.dialects.isa.values import Fixed
from intaglio.dialects.isa.vector import Quantize, RMSNorm, RMSScale
from intaglio.dialects.machine import Machine
from intaglio.dialects.timeline import Times
from intaglio.lowering.place.vector_memory import VectorMemory
from intaglio.lowering.schedule import durations
from intaglio.lowering.schedule.draft import Draft, DraftBlock, Takes

Place = tuple[int, int]
"""An instruction: the number of its block, its own there."""


@dataclass
class Peaks:
    """The largest magnitudes that are taken while values are written.

    Attributes:
        entries: of them, the first ones of the files; and of factors of norms.
        left: by who leaves it, its entry, and the quantisation that reads it there, if one does.
        read: by who reads it, its entry.
        factors: by factor of a norm the entry of its sum, which products in any block read.
    """

    entries: int = 0
    left: dict[Place, tuple[int, Quantize[SSAValue] | None]] = field(default_factory=dict)
    read: dict[Place, int] = field(default_factory=dict)
    factors: dict[SSAValue, int] = field(default_factory=dict)


@dataclass
class _Value:
    """Who writes a value, and who could read its peak."""

    makers: list[Place] = field(default_factory=list)
    readers: list[Place] = field(default_factory=list)


def peaks_of(blocks: Sequence[DraftBlock], memory: VectorMemory, machine: Machine) -> Peaks:
    """The peaks of a program, before its instructions are cut into beats.

    What the queues of `isa.queues.PEAKS` take then has a time at which its peak is there.
    """
    drafts = {
        (number, place): one
        for number, block in enumerate(blocks)
        for place, one in enumerate(block.drafts)
    }
    values: dict[SSAValue, _Value] = {}
    for at, one in drafts.items():
        does = one.does
        if does.writes and not memory.is_view(does.writes[0]):
            values.setdefault(_root(does.writes[0], memory), _Value()).makers.append(at)
        if may_read_peak(does, memory.kind) and not memory.is_view(does.reads[0]):
            values.setdefault(_root(does.reads[0], memory), _Value()).readers.append(at)
    found, quantized = Peaks(), dict[str, bool]()
    for value in values.values():
        readers = _readers(value, drafts, memory)
        if not (readers and value.makers) or not all(
            _may_leave(at, blocks, memory) for at in value.makers
        ):
            continue
        first = drafts[readers[0]].does
        quantize = first if isinstance(first, Quantize) else None
        for at in value.makers:
            found.left[at] = found.entries, quantize
            queue = drafts[at].queue
            quantized[queue] = quantized.get(queue, False) or quantize is not None
        found.read |= dict.fromkeys(readers, found.entries)
        found.entries += 1
    for one in drafts.values():
        if isinstance(one.does, RMSScale):
            found.factors[one.does.output] = found.entries
            found.entries += 1
    scores = [one for one in drafts.values() if isinstance(one.does, QueryKey)]
    after = {
        queue: durations.peak(machine, quantized=looks_up) for queue, looks_up in quantized.items()
    }
    after_scores = 0
    if scores:
        # The largest scores of heads are left in the same way.
        after.setdefault(ATTENTION, durations.peak(machine, quantized=False))
        after_scores = durations.scores_peak(
            machine,
            [one.takes(1, 0) for one in scores],
            quantized=quantized.get(ATTENTION, False),
            beside=any(isinstance(one.does, AdapterMatvec) for one in drafts.values()),
        )
    for one in drafts.values():
        if one.queue in PEAKS and one.queue in after:
            is_scores = isinstance(one.does, QueryKey)
            one.takes = _with_peak(one.takes, after_scores if is_scores else after[one.queue])
    return found


def _root(value: SSAValue, memory: VectorMemory) -> SSAValue:
    return memory.persistent.get(value, value)


def _readers(value: _Value, drafts: Mapping[Place, Draft], memory: VectorMemory) -> list[Place]:
    """Who takes the peak: the first one of each block that wants the same of it as the others."""
    norms: dict[int, list[Place]] = {}
    for at in value.readers:
        does = drafts[at].does
        if isinstance(does, RMSNorm):
            kind = memory.kind(does.input)
            assert isinstance(kind, Fixed)
            shift = norm_constants(does.eps, kind.size, kind.fraction).largest_shift
            norms.setdefault(shift, []).append(at)
    if norms:
        alike = next(iter(norms.values()))
        return list({block: (block, place) for block, place in reversed(alike)}.values())
    # The scale of a quantisation is written with the peak: in the block of the only one who leaves
    # it.
    if len(value.makers) == 1 and value.readers[:1] and value.readers[0][0] == value.makers[0][0]:
        return value.readers[:1]
    return []


def _may_leave(at: Place, blocks: Sequence[DraftBlock], memory: VectorMemory) -> bool:
    """Whether a maker can leave the peak: nothing else that is reduced comes between its rows."""
    drafts = blocks[at[0]].drafts
    one = drafts[at[1]]
    if not may_leave_peak(one.does, memory.kind) or not one.flows:
        return False
    if one.queue in PEAKS:
        return True
    return in_a_row(one, {value: other for other in drafts for value in other.does.writes})


def in_a_row(one: Draft, made_by: Mapping[SSAValue, Draft]) -> bool:
    """Whether rows of what an instruction writes come without any reduction between them."""
    if one.queue == MATRIX or passes_of(one.does) > 1:
        return True
    makers = (made_by.get(value) for value in one.does.reads)
    return one.queue == VECTOR and all(
        maker is None or in_a_row(maker, made_by) for maker in makers
    )


def _with_peak(takes: Takes, after: int) -> Takes:
    @cache
    def both(size: int, number: int) -> Times:
        times = takes(size, number)
        return times._replace(reduces=times.duration + after)

    return both
