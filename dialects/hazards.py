"""Whether a program's waits order its reads and writes: the rule that every program follows.

The meaning of a program is that of its instructions one after the other. So of two that touch the
same elements of a memory or the same heads of a cache, and of which one writes, the later one must
start after the earlier one has finished: a read after the write, a write after the read, a write
after the write. In one queue only the first needs a wait, where instructions flow: a unit reads
and writes in the order in which it takes them. What is written late, with an instruction's
reductions, is there when these are, and needs a wait always. Of what follows the results by a
number of cycles that is always the same, an instruction that reads it so much later than at its
start needs the results alone. Units that share the adders of the
matrix tiles take turns in the same way. As with power (`dialects/gating.py`) this must follow from
the program's order, not from its timing: durations change with the position and with the ranks of
adapters.

Between tokens there is nothing to prove: a token is accepted when all of the last one has finished.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, pairwise
from typing import NamedTuple

from intaglio.dialects import timeline
from intaglio.dialects.clocks import Clock, clocks
from intaglio.dialects.formula import Binary, Constant, Formula
from intaglio.dialects.isa.beat import Beat
from intaglio.dialects.isa.instruction import Instruction
from intaglio.dialects.isa.matrix import ExpertMatvec, Product
from intaglio.dialects.isa.queues import ATTENTION, COUNTERS, MATRIX, PEAKS, QUEUES, reductions_of
from intaglio.dialects.isa.touched import (
    Memories,
    Touched,
    early_of,
    may_read_peak,
    passes_of,
    touched,
)
from intaglio.dialects.isa.values import Value
from intaglio.dialects.isa.vector import Quantize, RMSScale
from intaglio.dialects.machine import Early
from intaglio.dialects.timeline import At

ADDERS = (MATRIX, ATTENTION)
"""Queues whose units take turns where they share the adders of the matrix tiles."""

_NEVER = Early()

_REDUCTIONS = "reductions"
"""What races are about that are about no buffer."""

Bytes = tuple[int, int]
"""First element, and the one after the last; memories one after the other (`memories.numbered`)."""


@dataclass(frozen=True)
class Access:
    """What an instruction touches: buffers, and slots of caches.

    Attributes:
        parts: of those of which it touches only a part, the first element and the one after the
            last; of caches, heads.
        uses, leaves: entries of reductions that it reads and leaves: the first, and the one after
            the last.
        owner: whose reductions they are.
        uses_peak: the buffer whose largest magnitude, or the factor of a norm, it reads there; "":
            its owner's reductions.
        leaves_peak: likewise of what it leaves.
        largest: whether it takes the largest of what it reads, which comes after the elements.
        late: whether what it writes comes with its reductions.
        sums: whether only sums of it do.
        early: cycles that it may start before what is reduced for it is there.
    """

    reads: Sequence[str]
    writes: Sequence[str]
    read_caches: Sequence[str] = ()
    written_caches: Sequence[str] = ()
    parts: Mapping[str, Bytes] = field(default_factory=dict[str, Bytes])
    uses: Bytes = (0, 0)
    leaves: Bytes = (0, 0)
    owner: str = ""
    uses_peak: str = ""
    leaves_peak: str = ""
    largest: bool = False
    late: bool = False
    sums: bool = False
    early: int = 0

    def places(self, buffer: str, whole: Bytes) -> Bytes:
        """Where in a memory it touches a buffer, which lies at `whole`."""
        if buffer not in self.parts:
            return whole
        first, last = self.parts[buffer]
        return whole[0] + first, whole[0] + last

    @staticmethod
    def of(
        one: Instruction[str],
        found: Touched[str] | None = None,
        *,
        uses_peak: str = "",
        leaves_peak: str = "",
        early: int = 0,
    ) -> Access:
        """The accesses of an instruction, or of a beat of it that touches only parts.

        Args:
            one: the instruction.
            found: what the beat touches.
            uses_peak: of what it reads, that whose largest magnitude, or sum, others have left.
            leaves_peak: of what it writes, that of which it leaves it.
            early: cycles that it may start before what is reduced for it is there.
        """
        if found is None:
            return Access(one.reads, one.writes, one.read_caches, one.written_caches)
        return Access(
            tuple(found.reads),
            tuple(found.writes),
            tuple(found.read_caches),
            tuple(found.written_caches),
            {**found.reads, **found.writes, **found.read_caches, **found.written_caches},
            found.uses,
            found.leaves,
            f"{one.opcode} {' '.join((*one.reads, *one.writes))}",
            uses_peak,
            leaves_peak,
            found.largest,
            found.late,
            found.sums,
            early,
        )


Taken = tuple[Instruction[str], Beat, timeline.Issue]
"""An instruction of a block: what it does, which part of it, what the timeline knows of it."""


def accesses(
    taken: Sequence[Taken],
    instances: Sequence[Mapping[str, str]],
    kinds: Mapping[str, Value],
    heads: Mapping[str, int],
    lanes: int,
    capacity: int,
    early: Early = _NEVER,
) -> list[Access]:
    """What the instructions of a block touch; of those that flow just their part.

    Args:
        taken: the instructions.
        instances: what the block's instances bind slots to.
        kinds: of values.
        heads: of caches.
        lanes: elements of a row of the memories.
        capacity: tokens of the longest context.
        early: cycles that instructions may start before what is reduced for them is there.

    Raises:
        ValueError: an instruction has no such beat.
    """
    bound: Mapping[str, str] = instances[0] if instances else {}
    chip = Memories(lanes, capacity, lambda slot: heads[bound.get(slot, slot)])
    readers = {number: taken[number][:2] for number in peak_readers(taken, kinds)}
    quantized = {
        (beat.entry, one.input): one for one, beat in readers.values() if isinstance(one, Quantize)
    }
    found: list[Access] = []
    for number, (one, beat, issue) in enumerate(taken):
        after = quantized.get((beat.peak - 1, one.writes[0])) if beat.peak else None
        part = None
        if issue.pace is not None:
            part = touched(one, beat, kinds.__getitem__, chip, after)
        uses, leaves = one.reads[0] if number in readers else "", ""
        if beat.peak or (isinstance(one, RMSScale) and part is not None and part.leaves != (0, 0)):
            leaves = one.writes[0]
        if isinstance(one, Product | ExpertMatvec) and one.norm is not None:
            # Not of the rounds before the last one.
            uses = one.norm if part is None or part.uses != (0, 0) else ""
        found.append(
            Access.of(one, part, uses_peak=uses, leaves_peak=leaves, early=early_of(one, early))
        )
    return found


def peak_readers(taken: Sequence[Taken], kinds: Mapping[str, Value]) -> list[int]:
    """The numbers of a block's beats that read the largest magnitude that others have left of what
    they read: beats of the second pass of instructions without beats of the first.

    Args:
        taken: the block's beats.
        kinds: of values.
    """
    # What has its unit alone has no part in this: its beats are all number 0.
    own = {
        beat.of_instruction
        for _, beat, issue in taken
        if issue.pace is not None and not beat.number
    }
    return [
        number
        for number, (one, beat, issue) in enumerate(taken)
        if beat.number == 1
        and issue.pace is not None
        and beat.of_instruction not in own
        and passes_of(one) > 1
        and may_read_peak(one, kinds.__getitem__)
    ]


@dataclass(frozen=True)
class Race:
    """Two instruction instances whose accesses no wait orders.

    Attributes:
        earlier, later: in program order.
        has: what the earlier one does, `read` or `write`.
        may: what the later one does.
        what: the buffer or cache that the later one touches; "" for the adders that they share.
        had: what the earlier one touches there.
    """

    earlier: At
    later: At
    has: str
    may: str
    what: str
    had: str

    def told(self, name: Callable[[At], str], mark: str = "") -> str:
        """The race in words.

        Args:
            name: of an instruction instance, as the reader of the message finds it.
            mark: stands before the names of buffers and caches.
        """
        later, earlier = name(self.later), name(self.earlier)
        if self.what == _REDUCTIONS:
            if self.earlier == self.later and self.had:
                return f"{later} uses the largest magnitude of {mark}{self.had}, which nobody left"
            if self.earlier == self.later:
                return f"{later} uses reductions that it has not left"
            if self.may == "write":
                done = "used" if self.has == "read" else "left"
                what = f"leave reductions where {earlier} has not {done} its own"
                return f"{later} may {what}: no wait orders them"
            return f"{later} may use reductions before {earlier} has left them: no wait orders them"
        if not self.what:
            reason = f"take the adders of the tiles before {earlier} has left them"
        elif self.what == self.had:
            done = "written it" if self.has == "write" else "read it"
            reason = f"{self.may} {mark}{self.what} before {earlier} has {done}"
        else:
            done = "written" if self.has == "write" else "read"
            reason = (
                f"{self.may} {mark}{self.what} before {earlier} has {done} {mark}{self.had}, "
                "which shares places with it"
            )
        return f"{later} may {reason}: no wait orders them ({self.may} after {self.has})"


@dataclass(frozen=True)
class _Touched:
    """Parts of memory by number that an instruction reads and writes, each with its name."""

    reads: Sequence[tuple[int, str]]
    writes: Sequence[tuple[int, str]]


def first_race(
    blocks: Sequence[timeline.Block],
    accesses: Sequence[Sequence[Access]],
    instances: Sequence[Sequence[Mapping[str, str]]],
    buffers: Mapping[str, Bytes],
    *,
    sampled: Sequence[bool] = (),
    shared_adders: bool = False,
) -> Race | None:
    """The first instruction instance, in program order, that may come too early; None: none may.

    Args:
        blocks: the program, in order.
        accesses: of each block's instructions.
        instances: for each block what its instances bind slots to.
        buffers: where each buffer lies.
        sampled: of each block, whether only tokens run it whose successor is wanted; all do when
            left out.
        shared_adders: whether matrix tiles and H-Units take turns (`Machine.shared_arrays`).
    """
    peaks = frozenset(
        entry for one in chain(*accesses) if one.leaves_peak for entry in range(*one.leaves)
    )
    parts = _cuts(accesses, instances, buffers), buffers, peaks
    found = _first_race(blocks, accesses, instances, parts, shared_adders)
    kept = [n for n in range(len(blocks)) if not (n < len(sampled) and sampled[n])]
    if found is not None or kept == list(range(len(kept))):
        # A token that leaves out the last blocks runs a beginning of the same program.
        return found
    found = _first_race(
        [blocks[n] for n in kept],
        [accesses[n] for n in kept],
        [instances[n] for n in kept],
        parts,
        shared_adders,
    )
    if found is None:
        return None
    return replace(
        found,
        earlier=(kept[found.earlier[0]], *found.earlier[1:]),
        later=(kept[found.later[0]], *found.later[1:]),
    )


@dataclass(frozen=True)
class _Cuts:
    """The memories, and the heads of each cache, cut where something that is touched begins or
    ends: the parts by number."""

    spans: Sequence[Bytes]
    heads: Mapping[str, Sequence[int]]

    def of(self, bytes_: Bytes) -> list[int]:
        """The parts of a memory that a range has."""
        first, last = bytes_
        low = bisect_left(self.spans, (first, first))
        return [
            n for n in range(low, bisect_left(self.spans, (last, last))) if self.spans[n][1] <= last
        ]

    def of_cache(self, name: str, heads: Bytes | None) -> list[tuple[str, int]]:
        """The parts of a cache that some heads have; None: all."""
        cuts = self.heads.get(name, [0])
        return [(name, one) for one in cuts if heads is None or heads[0] <= one < heads[1]]


def _cuts(
    accesses: Sequence[Sequence[Access]],
    instances: Sequence[Sequence[Mapping[str, str]]],
    buffers: Mapping[str, Bytes],
) -> _Cuts:
    used = {
        one.places(name, buffers[name])
        for block in accesses
        for one in block
        for name in (*one.reads, *one.writes)
    }
    ends = sorted({end for bytes_ in used for end in bytes_})
    heads: dict[str, set[int]] = {}
    for block, bound in zip(accesses, instances, strict=True):
        for one in block:
            for slot in (*one.read_caches, *one.written_caches):
                if slot in one.parts:
                    for name in {instance.get(slot, slot) for instance in bound}:
                        heads.setdefault(name, {0}).update(one.parts[slot])
    return _Cuts(list(pairwise(ends)), {name: sorted(own) for name, own in heads.items()})


def _touched(
    one: Access,
    queue: str,
    bound: Mapping[str, str],
    parts: _Parts,
    numbers: dict[Hashable, int],
    shared_adders: bool,
) -> _Touched:
    """What an instruction of a block's instance touches; `numbers` are those of caches."""

    cuts, buffers, peaks = parts

    def memory(names: Sequence[str]) -> list[tuple[int, str]]:
        return [(n, name) for name in names for n in cuts.of(one.places(name, buffers[name]))]

    def cache(slots: Sequence[str]) -> list[tuple[int, str]]:
        return [
            (numbers.setdefault(part, len(numbers)), name)
            for slot in slots
            for name in (bound.get(slot, slot),)
            for part in cuts.of_cache(name, one.parts.get(slot))
        ]

    reads = [*memory(one.reads), *cache(one.read_caches)]
    writes = [*memory(one.writes), *cache(one.written_caches)]
    if shared_adders and queue in ADDERS:
        writes.append((numbers.setdefault("", len(numbers)), ""))
    for entries, places in ((one.uses, reads), (one.leaves, writes)):
        # Units of several queues leave something there.
        for entry in peaks.intersection(range(*entries)):
            places.append((numbers.setdefault(entry, len(numbers)), _REDUCTIONS))
    return _Touched(reads, writes)


class _Result(NamedTuple):
    """Results that something which is reduced follows: their number of a queue, and after how many
    cycles; None: that is not always the same."""

    queue: int
    number: int
    behind: int | None

    def serves(self, clock: Clock, early: int) -> bool:
        """Whether an instruction may start by these results that reads what follows so many cycles
        later."""
        there = self.number <= clock[self.queue]
        return there and self.behind is not None and self.behind <= early


def _behind(issue: timeline.Issue) -> int | None:
    """Cycles from an instruction's result to its reduction; None: not always the same."""
    assert issue.reduces is not None
    (left, of_left), (there, of_there) = map(_offset, (issue.reduces, issue.duration))
    return left - there if of_left == of_there else None


def _offset(formula: Formula) -> tuple[int, Formula | None]:
    """The number that a formula adds, and to what."""
    match formula:
        case Constant(value):
            return value, None
        case Binary("+", Constant(value), rest):
            return value, rest
        case _:
            return 0, formula


class _Left(NamedTuple):
    """Who left the reduction of an entry: its number of a counter, the instance, whose it is; the
    results that it follows; of a largest magnitude where the buffer lies."""

    counter: int
    number: int
    at: At
    owner: _Owner
    result: _Result
    place: Bytes = (0, 0)


_Owner = tuple[int, int, str]
"""Block, instance, instruction; of a largest magnitude -1, -1, and the buffer."""

_Parts = tuple[_Cuts, Mapping[str, Bytes], frozenset[int]]
"""The parts, where each buffer lies, and the entries with largest magnitudes that others leave."""


def _overlap(one: Bytes, other: Bytes) -> bool:
    return one[0] < other[1] and other[0] < one[1]


class _Last:
    """What counted the last touches of a part: of each counter the number, how whoever touched it
    calls the part, and of sums the results that they follow."""

    def __init__(self) -> None:
        self.number = [0] * len(COUNTERS)
        self.name = [""] * len(COUNTERS)
        self.result: list[_Result | None] = [None] * len(COUNTERS)


def _first_race(
    blocks: Sequence[timeline.Block],
    accesses: Sequence[Sequence[Access]],
    instances: Sequence[Sequence[Mapping[str, str]]],
    parts: _Parts,
    shared_adders: bool,
) -> Race | None:
    # Parts of the memories have the first numbers, caches those after them.
    numbers: dict[Hashable, int] = {(n, ""): n for n in range(len(parts[0].spans))}
    queues = [[QUEUES.index(i.queue) for i in block.issues] for block in blocks]
    issued: list[list[At]] = [[] for _ in COUNTERS]
    left: dict[int, _Left] = {}
    peaks: set[int] = set()
    read: dict[int, _Last] = {}
    written: dict[int, _Last] = {}
    touched: list[_Touched] = []
    for at, clock in clocks(blocks):
        block, instance, instruction = at
        if not instruction:
            bound = instances[block][instance]
            touched = [
                # Of a block's instances only the caches differ.
                touched[number]
                if instance and not (one.read_caches or one.written_caches)
                else _touched(one, issue.queue, bound, parts, numbers, shared_adders)
                for number, (one, issue) in enumerate(
                    zip(accesses[block], blocks[block].issues, strict=True)
                )
            ]
        own, mine = queues[block][instruction], touched[instruction]
        one = accesses[block][instruction]
        largest = one.largest
        # What is read must have been written; what is written, read and written.
        for may, here, has, last in (
            ("read", mine.reads, "write", written),
            ("write", mine.writes, "write", written),
            ("write", mine.writes, "read", read),
        ):
            for part, name in here:
                before = last.get(part)
                if before is None:
                    continue
                flows = blocks[block].issues[instruction].pace is not None
                for counter, number in enumerate(before.number):
                    ordered = counter == own and not (flows and may == "read")
                    late = number > clock[counter]
                    if may == "read" and largest and COUNTERS[counter] in PEAKS:
                        # All of the queue leave something, in order.
                        late = number > clock[COUNTERS.index(PEAKS[COUNTERS[counter]])]
                    result = before.result[counter] if late and may == "read" else None
                    if result is not None and result.serves(clock, one.early):
                        late = False
                    if late and not ordered:
                        earlier = issued[counter][number - 1]
                        return Race(earlier, at, has, may, name, before.name[counter])
        for entry in range(*one.uses):
            before = left.get(entry)
            owner = (-1, -1, one.uses_peak) if one.uses_peak else (block, instance, one.owner)
            if before is None or before.owner != owner:
                return Race(at, at, "write", "read", _REDUCTIONS, one.uses_peak)
            known = before.result.serves(clock, one.early)
            if before.number > clock[before.counter] and not known:
                return Race(before.at, at, "write", "read", _REDUCTIONS, "")
        issue = blocks[block].issues[instruction]
        counter = COUNTERS.index(reductions_of(issue.queue))
        result = _Result(own, len(issued[own]) + 1, None)
        if issue.reduces is not None:
            issued[counter].append(at)
            result = result._replace(behind=_behind(issue))
        if peaks:
            # What is written over has another largest magnitude.
            for name in one.writes:
                first, last = one.places(name, parts[1][name])
                for entry in [n for n in peaks if _overlap(left[n].place, (first, last))]:
                    peaks.remove(entry)
                    del left[entry]
        peaks.difference_update(range(*one.leaves))
        for entry in range(*one.leaves):
            if one.leaves_peak:
                place = parts[1][one.leaves_peak]
                owner = -1, -1, one.leaves_peak
                peaks.add(entry)
            else:
                place, owner = (0, 0), (block, instance, one.owner)
            left[entry] = _Left(counter, len(issued[counter]), at, owner, result, place)
        issued[own].append(at)
        for here, last, by in (
            (mine.reads, read, own),
            (mine.writes, written, counter if one.late else own),
        ):
            for part, name in here:
                entry = last.setdefault(part, _Last())
                entry.number[by] = len(issued[by])
                entry.name[by] = name
                entry.result[by] = result if one.sums else None
    return None
