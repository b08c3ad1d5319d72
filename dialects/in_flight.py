"""When instructions start where several tokens are worked on at once: the contract of contexts.

A chip with several *contexts* holds so many tokens, each with its position, its counters and rows
of its own in the memories of values. Tokens take the contexts in turn; one is accepted, at most one
a cycle, as soon as all of the token before it in its context is there. Every queue has the next
instruction of each context at hand and takes, in the first cycle in which any may start, that of
the earliest *stage*; of several the oldest token's. Stages are parts of the program in its order, a
layer's attention and what is between it and the next one: so tokens keep together, and while one
waits for its attention another one's feed-forward layer has the lanes. Within a token nothing
changes (`dialects/timeline.py`): waits count what the
token itself has done. Two things are added:

- An instruction that waits for keys and values of its own token waits for as many of every older
  token of the same sequence, which is attended to.
- Results of a queue come in its order, whoever's they are. What follows an instruction of another
  token starts only when its result, and its reduction, will come after that one's. Both are told by
  four numbers that no position changes (`Guard`).

So cycles depend on program, positions and the number in flight, never on data; and values are those
of one token after the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from intaglio.dialects.formula import Formula
from intaglio.dialects.isa.queues import COUNTERS, KV, QUEUES, reductions_of
from intaglio.dialects.timeline import At, Block, Issue, awaited


class Guard(NamedTuple):
    """What keeps the results of a queue in order between tokens, in cycles.

    After an instruction with `tail` one of another token may start when the queue has been free for
    more than `tail` - `head` cycles; likewise for what they reduce.

    Attributes:
        tail: from when the queue is free again to the result, at most.
        head: from the start to the result, at least.
        tail_left, head_left: likewise to the reduction; 0 and 1 where there is none.
    """

    tail: int
    head: int
    tail_left: int = 0
    head_left: int = 1


def guard_of(issue: Issue, capacity: int, alone: int | None = None) -> Guard:
    """The numbers of an instruction that flows, over all positions.

    Args:
        issue: what the timeline knows of it.
        capacity: tokens of the longest context.
        alone: of an instruction that finds its unit empty but for the last so many cycles of
            others, these.
    """
    assert issue.pace is not None
    pace, result = (_over(one, capacity) for one in (issue.pace, issue.duration))
    least = int(np.min(result))
    numbers = int(np.max(result - pace)), least if alone is None else min(alone, least)
    if issue.reduces is None:
        return Guard(*numbers)
    left = _over(issue.reduces, capacity)
    return Guard(*numbers, int(np.max(left - pace)), int(np.min(left)))


def _over(formula: Formula, capacity: int) -> Any:
    """A formula at all positions, without an adapter."""
    tokens: Any = np.arange(1, capacity + 1) if "tokens" in formula.variables else 1
    return np.asarray(formula(tokens=tokens, rank=0))


@dataclass(frozen=True)
class Token:
    """A token to be worked on.

    Attributes:
        position: of its sequence.
        wanted: whether its successor is; if not, blocks for that are left out.
        sequence: tokens of one attend to each other.
        after: the number of the token whose successor it is, which is accepted when that is out;
            None: it is known before, as those of a prompt are.
        alone: it goes back in its sequence, and is accepted when nothing is in flight.
    """

    position: int
    wanted: bool = False
    sequence: int = 0
    after: int | None = None
    alone: bool = False


class Started(NamedTuple):
    """An instruction instance of a token, in cycles from the first token's acceptance."""

    token: int
    at: At
    number: int
    """Of the token's instructions of the queue, from 0."""
    queue: str
    start: int
    finish: int
    left: int | None
    accepted: int
    """When its token was."""


@dataclass
class Entry:
    """An instruction of a queue, with what it must wait for counted from the token's first.

    Attributes:
        at: which instruction instance it is.
        issue: what the timeline knows of it.
        guard: what keeps results in order.
        stage: instances of blocks before its own, and one more behind the product that follows
            attention.
        waits: counters, and how many of each must be there.
    """

    at: At
    issue: Issue
    guard: Guard
    stage: int
    waits: Sequence[tuple[str, int]]


@dataclass(frozen=True)
class Flight:
    """A program whose tokens are in flight together.

    Attributes:
        blocks: the program, in order, each with whether it runs only where a successor is wanted.
        issue: cycles from a token's acceptance to its first instructions.
        guards: of each block's instructions.
        halves: of each block's instructions 0, or 1 of those that belong to the next instance's
            stage.
        outs: of instructions that choose a token (block, number in it) the cycles from their finish
            to the token at the port.
    """

    blocks: Sequence[tuple[Block, bool]]
    issue: int
    guards: Sequence[Sequence[Guard]]
    halves: Sequence[Sequence[int]]
    outs: Mapping[tuple[int, int], int] = field(default_factory=dict[tuple[int, int], int])
    _times: dict[int, dict[str, list[tuple[int, int, int | None]]]] = field(
        default_factory=dict[int, dict[str, list[tuple[int, int, "int | None"]]]]
    )

    @cached_property
    def entries(self) -> Mapping[str, Sequence[Entry]]:
        """All instruction instances of each queue, in order.

        Raises:
            ValueError: an instruction does not flow.
        """
        found: dict[str, list[Entry]] = {queue: [] for queue in QUEUES}
        done = dict.fromkeys(COUNTERS, 0)
        instances = 0
        for number, (block, _) in enumerate(self.blocks):
            for instance in range(block.instances):
                base = dict(done)
                for place, issue in enumerate(block.issues):
                    if issue.pace is None:
                        raise ValueError(f"instructions of queue {issue.queue} do not flow")
                    counts = [
                        (one, awaited(base[one], count, instance))
                        for one, count in issue.waits.items()
                    ]
                    waits = [(one, count) for one, count in counts if count > 0]
                    stage = instances + self.halves[number][place]
                    guard = self.guards[number][place]
                    found[issue.queue].append(
                        Entry((number, instance, place), issue, guard, stage, waits)
                    )
                    done[issue.queue] += 1
                    if issue.reduces is not None:
                        done[reductions_of(issue.queue)] += 1
                instances += 1
        return {queue: entries for queue, entries in found.items() if entries}

    @cached_property
    def short(self) -> Mapping[str, int]:
        """How many of them run for a token whose successor is not wanted."""
        wanted = {number for number, (_, sampled) in enumerate(self.blocks) if sampled}
        return {
            queue: sum(one.at[0] not in wanted for one in entries)
            for queue, entries in self.entries.items()
        }

    def length(self, queue: str, *, wanted: bool) -> int:
        """Instructions of a token in a queue."""
        return len(self.entries[queue]) if wanted else self.short[queue]

    def times(self, position: int) -> dict[str, list[tuple[int, int, int | None]]]:
        """Of each entry duration, pace and reduction at a position."""
        if position not in self._times:
            given = {"rank": 0, "tokens": position + 1}
            known: dict[int, tuple[int, int, int | None]] = {}
            found: dict[str, list[tuple[int, int, int | None]]] = {}
            for queue, entries in self.entries.items():
                row: list[tuple[int, int, int | None]] = []
                for one in entries:
                    issue = one.issue
                    if id(issue) not in known:
                        assert issue.pace is not None
                        left = issue.reduces
                        known[id(issue)] = (
                            int(issue.duration(**given)),
                            int(issue.pace(**given)),
                            None if left is None else int(left(**given)),
                        )
                    row.append(known[id(issue)])
                found[queue] = row
            if len(self._times) > 64:
                self._times.clear()
            self._times[position] = found
        return self._times[position]

    def run(self, tokens: Sequence[Token], contexts: int, turn: int = 0) -> Iterator[Started]:
        """Yields the instruction instances of tokens, by their start.

        Args:
            tokens: in the order in which they are handed in.
            contexts: that are in use.
            turn: the context that takes the first token.

        Raises:
            ValueError: an instruction does not flow.
        """
        return _Run(self, tokens, contexts, turn).run()


@dataclass(eq=False)
class _Live:
    """A token in flight.

    Attributes:
        number: among the tokens.
        sequence: of it.
        context: that it is in.
        born: the cycle of its acceptance.
        next: of each queue the next instruction.
        results: of each counter when its results are there.
        starts: of each queue when the next instruction may start for all but its queue; None: not
            known yet.
        end: when all of it is there.
    """

    number: int
    sequence: int
    context: int
    born: int
    times: Mapping[str, Sequence[tuple[int, int, int | None]]]
    length: Mapping[str, int]
    next: dict[str, int]
    results: dict[str, list[int]]
    starts: dict[str, int | None]
    end: int
    out: int = 0
    """When its successor is."""

    @property
    def over(self) -> bool:
        """Whether nothing of it is left to start."""
        return all(self.next[queue] >= length for queue, length in self.length.items())


class _Run:
    """The queues, with the tokens in flight by age."""

    def __init__(self, flight: Flight, tokens: Sequence[Token], contexts: int, turn: int) -> None:
        self.flight, self.tokens, self.contexts = flight, tokens, contexts
        self.turn = turn
        self.entries = flight.entries
        self.live: list[_Live] = []
        self.recent: dict[int, _Live] = {}
        """Of each context the last token; what it gave may be under way when all of it started."""
        self.free = dict.fromkeys(self.entries, 0)
        self.last: dict[str, tuple[_Live, Guard] | None] = dict.fromkeys(self.entries)
        self.taken = 0
        """Tokens accepted so far."""
        self.freed = [0] * contexts
        """When each context can take a token; meaningful once its token is over."""
        self.outs: dict[int, int] = {}
        """When successors were out, by their tokens."""
        self.accepted = -1

    def run(self) -> Iterator[Started]:
        self._accept()
        while self.live:
            found = self._first()
            if found is None:
                raise ValueError("instructions wait for each other")
            start, one, queue = found
            yield self._start(one, queue, start)
            if one.over:
                self.live.remove(one)
                self.freed[one.context] = one.end
                self.outs[one.number] = one.out
                self._accept()

    def _accept(self) -> None:
        """Takes tokens in whose turn a context is free."""
        while self.taken < len(self.tokens):
            context = (self.turn + self.taken) % self.contexts
            if any(one.context == context for one in self.live):
                return
            token = self.tokens[self.taken]
            born = max(self.freed[context], self.accepted + 1)
            if token.after is not None:
                if token.after not in self.outs:
                    return
                born = max(born, self.outs[token.after])
            if token.alone:
                if self.live:
                    return
                born = max(born, *self.freed)
            if not self.live and born > max(self.freed):
                # Nothing was in flight for a cycle.
                self.last = dict.fromkeys(self.entries)
            flight = self.flight
            one = _Live(
                self.taken,
                token.sequence,
                context,
                born,
                flight.times(token.position),
                {queue: flight.length(queue, wanted=token.wanted) for queue in self.entries},
                dict.fromkeys(self.entries, 0),
                {counter: [] for counter in COUNTERS},
                dict.fromkeys(self.entries),
                born,
            )
            self.accepted = born
            self.taken += 1
            self.live.append(one)
            self.recent[context] = one

    def _first(self) -> tuple[int, _Live, str] | None:
        """The instruction that starts next; of one queue and cycle that of the earliest stage, then
        that of the oldest token."""
        best: tuple[int, _Live, str] | None = None
        stage = 0
        for one in self.live:
            for queue, length in one.length.items():
                if one.next[queue] >= length:
                    continue
                if (known := one.starts[queue]) is None:
                    known = one.starts[queue] = self._awaited(one, queue)
                    if known is None:
                        continue
                start = max(known, self.free[queue], self._ordered(one, queue))
                mine = self.entries[queue][one.next[queue]].stage
                if best is None or (start, mine) < (best[0], stage):
                    best, stage = (start, one, queue), mine
        return best

    def _awaited(self, one: _Live, queue: str) -> int | None:
        """When all that an instruction waits for is there; None: some has not started."""
        start = one.born + self.flight.issue
        for counter, count in self.entries[queue][one.next[queue]].waits:
            older = [o for o in self.recent.values() if o.number < one.number]
            others = [o for o in older if counter == KV and o.sequence == one.sequence]
            for whose in (one, *others):
                if len(done := whose.results[counter]) < count:
                    return None
                start = max(start, done[count - 1])
        return start

    def _ordered(self, one: _Live, queue: str) -> int:
        """When an instruction may follow that of another token."""
        last = self.last[queue]
        if last is None or last[0].context == one.context:
            return 0
        before, mine = last[1], self.entries[queue][one.next[queue]].guard
        apart = max(before.tail - mine.head, before.tail_left - mine.head_left) + 1
        return self.free[queue] + max(0, apart)

    def _start(self, one: _Live, queue: str, start: int) -> Started:
        number = one.next[queue]
        entry, (duration, pace, reduces) = self.entries[queue][number], one.times[queue][number]
        finish = start + duration
        left = None if reduces is None else start + reduces
        one.results[queue].append(finish)
        block, _, place = entry.at
        one.end = max(one.end, finish)
        if (after := self.flight.outs.get((block, place))) is not None:
            one.end = one.out = max(one.end, finish + after)
        if left is not None:
            one.results[reductions_of(queue)].append(left)
            one.end = max(one.end, left)
        one.next[queue], one.starts[queue] = number + 1, None
        self.free[queue], self.last[queue] = start + pace, (one, entry.guard)
        return Started(one.number, entry.at, number, queue, start, finish, left, one.born)
