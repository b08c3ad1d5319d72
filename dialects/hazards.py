"""Whether a program's waits order its reads and writes: the rule that every program follows.

The meaning of a program is that of its instructions one after the other. So of two that touch the
same elements of a memory or the same cache, and of which one writes, the later one must start
after the earlier one has finished: a read after the write, a write after the read, a write after
the write. Units that share the adders of the matrix tiles take turns in the same way. As with power
(`dialects/gating.py`) this must follow from the program's order, not from its timing: durations
change with the position and with the ranks of adapters.

Between tokens there is nothing to prove: a token is accepted when all of the last one has finished.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from intaglio.dialects import timeline
from intaglio.dialects.clocks import At, clocks
from intaglio.dialects.isa.instruction import Instruction
from intaglio.dialects.isa.queues import ATTENTION, MATRIX, QUEUES

ADDERS = (MATRIX, ATTENTION)
"""Queues whose units take turns where they share the adders of the matrix tiles."""

Bytes = tuple[int, int]
"""First element, and the one after the last; memories one after the other (`memories.numbered`)."""


@dataclass(frozen=True)
class Access:
    """What an instruction touches: buffers, and slots of caches."""

    reads: Sequence[str]
    writes: Sequence[str]
    read_caches: Sequence[str] = ()
    written_caches: Sequence[str] = ()

    @staticmethod
    def of(one: Instruction[str]) -> Access:
        """The accesses of an instruction."""
        return Access(one.reads, one.writes, one.read_caches, one.written_caches)


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
    parts = _parts(accesses, buffers)
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


def _parts(
    accesses: Sequence[Sequence[Access]], buffers: Mapping[str, Bytes]
) -> dict[str, list[int]]:
    """The memories cut where a buffer begins or ends: the parts that each buffer has."""
    used = {
        name: buffers[name]
        for block in accesses
        for one in block
        for name in (*one.reads, *one.writes)
    }
    cuts = sorted({end for bytes_ in used.values() for end in bytes_})
    spans = list(pairwise(cuts))
    return {
        name: [n for n, (begin, end) in enumerate(spans) if first <= begin and end <= last]
        for name, (first, last) in used.items()
    }


def _touched(
    accesses: Sequence[Access],
    queues: Sequence[str],
    bound: Mapping[str, str],
    parts: Mapping[str, list[int]],
    numbers: dict[str, int],
    shared_adders: bool,
) -> list[_Touched]:
    """What the instructions of a block's instance touch; `numbers` are those of caches."""

    def cache(slot: str) -> tuple[int, str]:
        name = bound.get(slot, slot)
        return numbers.setdefault(name, len(numbers)), name

    result: list[_Touched] = []
    for one, queue in zip(accesses, queues, strict=True):
        reads = [(part, name) for name in one.reads for part in parts[name]]
        writes = [(part, name) for name in one.writes for part in parts[name]]
        reads += map(cache, one.read_caches)
        writes += map(cache, one.written_caches)
        if shared_adders and queue in ADDERS:
            writes.append((numbers.setdefault("", len(numbers)), ""))
        result.append(_Touched(reads, writes))
    return result


class _Last:
    """The last instruction of each queue that touched a part, and how it calls the part."""

    def __init__(self) -> None:
        self.number = [0] * len(QUEUES)
        self.name = [""] * len(QUEUES)


def _first_race(
    blocks: Sequence[timeline.Block],
    accesses: Sequence[Sequence[Access]],
    instances: Sequence[Sequence[Mapping[str, str]]],
    parts: Mapping[str, list[int]],
    shared_adders: bool,
) -> Race | None:
    # Parts of the memories have the first numbers, caches those after them.
    count = 1 + max((n for own in parts.values() for n in own), default=-1)
    numbers: dict[str, int] = {f"\0{n}": n for n in range(count)}
    queues = [[QUEUES.index(i.queue) for i in block.issues] for block in blocks]
    issued: list[list[At]] = [[] for _ in QUEUES]
    read: dict[int, _Last] = {}
    written: dict[int, _Last] = {}
    touched: list[_Touched] = []
    for at, clock in clocks(blocks):
        block, instance, instruction = at
        if not instruction:
            touched = _touched(
                accesses[block],
                [issue.queue for issue in blocks[block].issues],
                instances[block][instance],
                parts,
                numbers,
                shared_adders,
            )
        own, mine = queues[block][instruction], touched[instruction]
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
                for queue, number in enumerate(before.number):
                    if number > clock[queue] and queue != own:
                        earlier = issued[queue][number - 1]
                        return Race(earlier, at, has, may, name, before.name[queue])
        issued[own].append(at)
        for here, last in ((mine.reads, read), (mine.writes, written)):
            for part, name in here:
                entry = last.setdefault(part, _Last())
                entry.number[own] = len(issued[own])
                entry.name[own] = name
    return None
