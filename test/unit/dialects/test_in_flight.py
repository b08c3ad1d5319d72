"""Tokens in flight, against the contract stepped cycle by cycle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import pytest

from intaglio.dialects.formula import TOKENS, constant
from intaglio.dialects.in_flight import Flight, Guard, Started, Token, guard_of
from intaglio.dialects.isa.queues import COUNTERS, KV, LEAVES, QUEUES, VECTOR, reductions_of
from intaglio.dialects.timeline import Block, Issue, simulate

CAPACITY = 9
FLOWING = QUEUES[:-1]
ISSUE = 2
LONGEST = 8
"""Cycles from when an instruction's queue is free again to its result, at most."""


def random_flight(rng: np.random.Generator) -> Flight:
    """A program whose instructions flow; no keys and values in its last block, which is for wanted
    tokens only."""
    blocks: list[tuple[Block, bool]] = []
    halves: list[list[int]] = []
    count = int(rng.integers(1, 3))
    for number in range(count + 1):
        issued = dict.fromkeys(COUNTERS, 0)
        # Within a token results are in order: in a block latencies grow, and of all but the first
        # the first beats are long.
        latency: dict[str, int] = {}
        issues: list[Issue] = []
        for _ in range(rng.integers(1, 13)):
            choice = FLOWING if number < count else [one for one in FLOWING if one != KV]
            queue = str(rng.choice(choice))
            waits = {
                one: int(rng.integers(0, done + 1))
                for one, done in issued.items()
                if done and rng.random() < (0.6 if one == KV else 0.2)
            }
            pace = constant(int(rng.integers(1, 4)))
            if rng.random() < 0.3:
                pace = pace + TOKENS
            if number and queue not in latency:
                pace = pace + LONGEST
            more = int(rng.integers(0, 4))
            latency[queue] = min(latency.get(queue, 1) + more, LONGEST)
            finish = pace + latency[queue]
            reduces = finish + 2 if queue in LEAVES else None
            issues.append(Issue(queue, waits, finish, pace, reduces))
            issued[queue] += 1
            if reduces is not None:
                issued[reductions_of(queue)] += 1
        if number == count:
            # Behind all others, as what chooses a token is.
            pace = constant(LONGEST)
            issues.append(Issue(VECTOR, issued, 2 * pace, pace, 2 * pace + 2))
        instances = 1 if number in (0, count) else int(rng.integers(1, 4))
        blocks.append((Block(f"block{number}", issues, instances), number == count))
        half = int(rng.integers(0, len(issues) + 1))
        halves.append([int(place >= half) for place in range(len(issues))])
    guards = [[guard_of(one, CAPACITY) for one in block.issues] for block, _ in blocks]
    at = len(blocks) - 1, len(blocks[-1][0].issues) - 1
    return Flight(blocks, ISSUE, guards, halves, {at: int(rng.integers(1, 40))})


def random_tokens(rng: np.random.Generator) -> list[Token]:
    """Some follow those whose successors they are, some go back."""
    tokens: list[Token] = []
    for number in range(rng.integers(1, 9)):
        last = number - 1 if tokens and tokens[-1].wanted and rng.random() < 0.5 else None
        position, wanted = int(rng.integers(0, CAPACITY)), bool(rng.integers(0, 2))
        alone = bool(rng.random() < 0.2)
        tokens.append(Token(position, wanted, int(rng.random() < 0.2), last, alone))
    return tokens


@dataclass
class _InContext:
    number: int
    token: Token
    born: int
    next: dict[str, int] = field(default_factory=lambda: dict.fromkeys(QUEUES, 0))
    there: dict[str, list[int]] = field(default_factory=lambda: {one: [] for one in COUNTERS})

    def count(self, counter: str, cycle: int) -> int:
        return sum(one <= cycle for one in self.there[counter])


def accepts(
    token: Token,
    held: Sequence[_InContext | None],
    context: int,
    outs: Mapping[int, int],
    cycle: int,
) -> bool:
    if held[context] is not None or (token.alone and any(held)):
        return False
    return token.after is None or outs.get(token.after, cycle + 1) <= cycle


def stepped(flight: Flight, tokens: Sequence[Token], contexts: int) -> list[Started]:
    """What the contract says, one cycle after the other."""
    found: list[Started] = []
    held: list[_InContext | None] = [None] * contexts
    free = dict.fromkeys(QUEUES, 0)
    last: dict[str, tuple[int, Guard] | None] = dict.fromkeys(QUEUES)
    outs: dict[int, int] = {}
    taken = 0
    for cycle in range(5000):
        present = [one for one in held if one is not None]
        if not present:
            last = dict.fromkeys(QUEUES)
        for context, one in enumerate(held):
            if one is None:
                continue
            lengths = {q: flight.length(q, wanted=one.token.wanted) for q in flight.entries}
            ended = all(one.next[q] >= n for q, n in lengths.items())
            there = all(t <= cycle for times in one.there.values() for t in times)
            if ended and there and outs.get(one.number, 0) <= cycle:
                held[context] = None
        if taken < len(tokens) and accepts(tokens[taken], held, taken % contexts, outs, cycle):
            held[taken % contexts] = _InContext(taken, tokens[taken], cycle)
            taken += 1
        elif taken == len(tokens) and not any(held):
            return found
        for queue, entries in flight.entries.items():
            if cycle < free[queue]:
                continue
            may: list[tuple[int, int, int]] = []
            for context, one in enumerate(held):
                if one is None or cycle < one.born + flight.issue:
                    continue
                if one.next[queue] >= flight.length(queue, wanted=one.token.wanted):
                    continue
                entry = entries[one.next[queue]]
                older = [
                    other
                    for other in held
                    if other is not None
                    and other.number < one.number
                    and other.token.sequence == one.token.sequence
                ]
                waiting = any(
                    each.count(counter, cycle) < count
                    for counter, count in entry.waits
                    for each in (one, *(older if counter == KV else ()))
                )
                before = last[queue]
                if before is not None and before[0] != context:
                    guard, since = before[1], cycle - free[queue]
                    waiting |= since <= guard.tail - entry.guard.head
                    waiting |= since <= guard.tail_left - entry.guard.head_left
                if not waiting:
                    may.append((entry.stage, one.number, context))
            if may:
                _, number, context = min(may)
                one = held[context]
                assert one is not None
                entry = entries[one.next[queue]]
                given = {"rank": 0, "tokens": one.token.position + 1}
                assert entry.issue.pace is not None
                free[queue] = cycle + int(entry.issue.pace(**given))
                finish = cycle + int(entry.issue.duration(**given))
                one.there[queue].append(finish)
                if (after := flight.outs.get((entry.at[0], entry.at[2]))) is not None:
                    outs[number] = finish + after
                left = None
                if entry.issue.reduces is not None:
                    left = cycle + int(entry.issue.reduces(**given))
                    one.there[reductions_of(queue)].append(left)
                found.append(
                    Started(number, entry.at, one.next[queue], queue, cycle, finish, left, one.born)
                )
                one.next[queue] += 1
                last[queue] = context, entry.guard
    raise AssertionError("it does not end")


def by_start(started: Sequence[Started]) -> list[Started]:
    return sorted(started, key=lambda one: (one.start, one.queue))


@pytest.mark.parametrize("seed", range(100))
def test_every_start(seed: int) -> None:
    rng = np.random.default_rng(seed)
    flight, contexts = random_flight(rng), 1 + seed % 4
    tokens = random_tokens(rng)
    assert by_start(list(flight.run(tokens, contexts))) == by_start(
        stepped(flight, tokens, contexts)
    )


@pytest.mark.parametrize("seed", range(20))
def test_one_after_the_other(seed: int) -> None:
    """With one context a token is that of the timeline, and the next begins where it ends."""
    rng = np.random.default_rng(seed)
    flight = random_flight(rng)
    tokens = [Token(position, wanted=bool(position % 2)) for position in range(4)]
    started, born = list(flight.run(tokens, 1)), 0
    for number, token in enumerate(tokens):
        kept = [block for block, sampled in flight.blocks if token.wanted or not sampled]
        spans = list(simulate(kept, ISSUE, token.position))
        assert {(one.at, one.start, one.finish) for one in started if one.token == number} == {
            (span.at, born + int(span.start[0]), born + int(span.finish[0])) for span in spans
        }
        ends = [span.end for span in spans]
        for span in spans:
            at = span.block, span.instruction
            ends.append(span.finish + flight.outs[at] if at in flight.outs else span.finish)
        born += max(int(end[0]) for end in ends)


@pytest.mark.parametrize("seed", range(40))
def test_results_come_in_order(seed: int) -> None:
    """Of each queue, whoever's they are; and no two at once."""
    rng = np.random.default_rng(seed)
    flight, contexts = random_flight(rng), 2 + seed % 3
    tokens = [Token(int(rng.integers(0, CAPACITY)), bool(i % 2)) for i in range(7)]
    started = list(flight.run(tokens, contexts))
    for queue in flight.entries:
        mine = sorted((one for one in started if one.queue == queue), key=lambda one: one.start)
        for times in ([one.finish for one in mine], [one.left for one in mine if one.left]):
            assert all(a < b for a, b in pairwise(times))


def test_some_are_kept_in_order() -> None:
    """Without guards results would overtake each other."""
    rng = np.random.default_rng(3)
    changed = 0
    for _ in range(20):
        flight = random_flight(rng)
        never = [[Guard(0, 1) for _ in block.issues] for block, _ in flight.blocks]
        tokens = [Token(i) for i in range(6)]
        free = Flight(flight.blocks, ISSUE, never, flight.halves)
        changed += list(free.run(tokens, 3)) != list(flight.run(tokens, 3))
    assert changed > 5


def test_order_is_kept_until_nothing_was_in_flight() -> None:
    """A token accepted in the cycle in which the one before is over finds the guard as it is."""
    one = constant(1)
    issues = [Issue("matrix", {}, constant(2), one), Issue("matrix", {}, TOKENS + 10, one)]
    guards = [guard_of(issue, CAPACITY) for issue in issues]
    flight = Flight([(Block("one", issues, 1), False)], ISSUE, [guards], [[0, 0]])
    tokens = [Token(0), Token(0, alone=True)]
    started = list(flight.run(tokens, 2))
    assert started == stepped(flight, tokens, 2)
    # Over at 3 + 11; the queue has been free since 4, and the guard says 18 - 2 cycles more.
    assert [(one.accepted, one.start) for one in started] == [(0, 2), (0, 3), (14, 21), (14, 22)]


def test_guard() -> None:
    tokens = TOKENS
    one = Issue("vector", {}, tokens + 7, tokens, tokens + 12)
    assert guard_of(one, 5) == Guard(7, 8, 12, 13)
    assert guard_of(one, 5, alone=3) == Guard(7, 3, 12, 13)
    assert guard_of(Issue("kv", {}, constant(4), constant(1)), 5) == Guard(3, 4)


def test_what_is_alone_in_its_unit_is_not_in_flight() -> None:
    block = Block("one", [Issue("matrix", {}, constant(3))], 1)
    flight = Flight([(block, False)], ISSUE, [[Guard(0, 1)]], [[0]])
    with pytest.raises(ValueError, match="queue matrix do not flow"):
        list(flight.run([Token(0)], 2))
