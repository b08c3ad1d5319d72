"""Cycles of whole tokens and of a generation, without running the arithmetic.

One running clock counts the cycles in which the chip is not kept waiting. Cycle 0 accepts the
first prompt token. The next token is accepted in the cycle in which all queues are idle, so a token
takes a *period*: until the latest result of its instructions is there, reductions among them.
Prompt tokens before the last run without the blocks that only a wanted token needs. A token is
*out* when its `sample` has the largest of all lanes; it may be accepted as the next input from the
end of the period on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from intaglio.backend.program.program import Instruction, Program
from intaglio.dialects import timeline
from intaglio.dialects.in_flight import Token
from intaglio.dialects.isa.adapter import AdapterMatvec
from intaglio.dialects.isa.queues import COUNTERS, LEAVES, reductions_of
from intaglio.dialects.isa.vector import Sample
from intaglio.dialects.machine import Machine
from intaglio.dialects.timeline import Span, awaited

Cycles = npt.NDArray[np.int64]


@dataclass(frozen=True)
class TokenCycles:
    """Cycles of tokens at some positions, counted from the acceptance of each; int64 [positions].

    Attributes:
        period: until the next token may be accepted.
        out: until the token that follows is out; equal to `period` where none is wanted.
    """

    period: Cycles
    out: Cycles


@dataclass(frozen=True)
class GenerationCycles:
    """Cycles of a prompt and the tokens generated after it.

    Attributes:
        prefill: from the first prompt token accepted to the first token out.
        tokens: `tokens[0]` is the last prompt token's own, from its acceptance to token 0 out;
            `tokens[i]` is from token i-1 out to token i out: what remains of the period in which
            token i-1 came out, then the time of token i-1 from its acceptance to token i out.
    """

    prefill: int
    tokens: tuple[int, ...]

    def per_second(self, clock_hz: int) -> float | None:
        """Tokens a second after the first; None with fewer than two."""
        later = self.tokens[1:]
        return clock_hz * len(later) / sum(later) if later else None


Ranks = Mapping[str, int]
"""The active adapter's rank at each of its sites, by name (`layers.0.q_proj`)."""


def spans(
    program: Program, positions: npt.ArrayLike, sampled: bool = True, ranks: Ranks | None = None
) -> Iterator[tuple[Span, int]]:
    """Start and finish of every instruction instance, with the number of its block.

    Args:
        program: the compiled model.
        positions: int [P], evaluated at once.
        sampled: whether a token is wanted, so that sampled blocks run.
        ranks: of the active adapter; None: there is none.
    """
    kept = [i for i, block in enumerate(program.blocks) if sampled or not block.sampled]
    blocks = [program.blocks[i].timing for i in kept]
    active = _instruction_ranks(program, kept, ranks) if ranks else None
    machine = program.machine
    for span in timeline.simulate(blocks, machine.issue, positions, active):
        one = program.blocks[kept[span.block]].instructions[span.instruction]
        if isinstance(one.does, Sample):
            span = span._replace(out=span.finish + _sampled_after(one, machine))
        yield span, kept[span.block]


def _instruction_ranks(program: Program, kept: Sequence[int], ranks: Ranks) -> timeline.Ranks:
    """The rank at the site of each instruction instance of some blocks."""
    found: dict[tuple[int, int, int], int] = {}
    for number, block in enumerate(program.blocks[i] for i in kept):
        for instruction, one in enumerate(block.instructions):
            if not isinstance(one.does, AdapterMatvec):
                continue
            if "rank" not in one.issue.duration.variables:
                continue
            for instance, bound in enumerate(block.instances):
                site, _ = program.slots[bound[one.does.weights]]
                if rank := ranks.get(site.name, 0):
                    found[number, instance, instruction] = rank
    return found


def _sampled_after(one: Instruction, machine: Machine) -> int:
    """Cycles from the finish of a `sample` to the token.

    Where it flows the lanes compare what its beats left after that; else it ends with the token.
    """
    return 0 if one.issue.pace is None else machine.vector_reduce + machine.sample


def token_cycles(
    program: Program, positions: npt.ArrayLike, sampled: bool = True, ranks: Ranks | None = None
) -> TokenCycles:
    """Cycles of one token at each of the given positions.

    Args:
        program: the compiled model.
        positions: int [P].
        sampled: whether its successor is wanted.
        ranks: of the active adapter.
    """
    where = np.atleast_1d(np.asarray(positions, np.int64))
    last: dict[str, Cycles] = {}
    """Of each queue when all is there: its results come in order (`dialects/overtaking.py`)."""
    out: Cycles | None = None
    for span, block in spans(program, where, sampled, ranks):
        one = program.blocks[block].instructions[span.instruction]
        last[one.queue] = span.finish
        if span.left is not None:
            last[reductions_of(one.queue)] = span.left
        if span.out is not None:
            # The last of its beats.
            out = span.out
    period = np.maximum.reduce([np.zeros_like(where), *last.values()])
    if out is None:
        return TokenCycles(period, period)
    # A token that is wanted and on its way to the port keeps the next one waiting.
    return TokenCycles(np.maximum(period, out), out)


class PositionCycles:
    """Cycles of single tokens, computed some positions at a time and kept.

    Args:
        program: the compiled model.
        ranks: of the active adapter.
    """

    _TOGETHER = 64

    def __init__(self, program: Program, ranks: Ranks | None = None) -> None:
        self._program, self._ranks = program, ranks
        self._known: dict[tuple[int, bool], TokenCycles] = {}

    def of(self, first: int, count: int, sampled: bool = True) -> TokenCycles:
        """Of tokens at positions that follow each other, at least one; as `token_cycles`."""
        blocks = range(first // self._TOGETHER, (first + count - 1) // self._TOGETHER + 1)
        found = [self._block(block, sampled) for block in blocks]
        begin = first - blocks.start * self._TOGETHER
        period, out = (
            np.concatenate(parts)[begin : begin + count]
            for parts in ([one.period for one in found], [one.out for one in found])
        )
        return TokenCycles(period, out)

    def _block(self, block: int, sampled: bool) -> TokenCycles:
        key = block, sampled
        if key not in self._known:
            begin = block * self._TOGETHER
            end = min(begin + self._TOGETHER, self._program.capacity)
            where = np.arange(begin, end)
            self._known[key] = token_cycles(self._program, where, sampled, self._ranks)
        return self._known[key]


def generation_cycles(
    program: Program, prompt: int, tokens: int, ranks: Ranks | None = None
) -> GenerationCycles:
    """Cycles of `tokens` tokens generated after a prompt.

    Args:
        program: the compiled model.
        prompt: number of prompt tokens, at least 1.
        tokens: number of generated tokens, at least 1.
        ranks: of the active adapter.
    """
    wanted = token_cycles(program, np.arange(prompt - 1, prompt - 1 + tokens), ranks=ranks)
    if program.machine.contexts > 1 and prompt > 1:
        before = prefill_cycles(program, prompt) - int(wanted.out[0])
    else:
        before = int(
            token_cycles(program, np.arange(prompt - 1), sampled=False, ranks=ranks).period.sum()
        )
    return generation_from(before, wanted)


EXACT = 600_000
"""Instruction instances of a prompt up to which all of its tokens are timed in flight."""
_WINDOWS, _WARM, _TIMED = 9, 6, 6
"""Of a longer one: places that are timed, tokens before that fill the chip, tokens that count."""


def is_timed_whole(program: Program, prompt: int) -> bool:
    """Whether `prefill_cycles` is exact: of long prompts it times tokens at some places."""
    entries = sum(len(one) for one in program.flight.entries.values())
    return prompt * entries <= EXACT or prompt <= 4 * _WINDOWS * (_WARM + _TIMED)


def _ends(program: Program, first: int, count: int, wanted: int, contexts: int) -> list[int]:
    """When tokens in flight are all there; of the last `wanted` ones, when their successors are."""
    flight = program.flight
    found = [0] * count
    tokens = [Token(first + n, wanted=n >= count - wanted) for n in range(count)]
    for one in flight.run(tokens, contexts):
        block, _, place = one.at
        end = one.finish + flight.outs.get((block, place), 0)
        found[one.token] = max(found[one.token], end)
    return found


def prefill_cycles(program: Program, prompt: int, contexts: int | None = None) -> int:
    """Cycles from the acceptance of a prompt's first token to the first token out, with prompt
    tokens in flight.

    Of a prompt whose `is_timed_whole` is false the tokens at some places are timed, and the time of
    those between follows by straight lines.

    Args:
        program: of a chip with contexts.
        prompt: its tokens.
        contexts: to use; None: all of them.
    """
    contexts = contexts or program.machine.contexts

    def ends(first: int, count: int, *, last: bool) -> list[int]:
        return _ends(program, first, count, int(last), contexts)

    if is_timed_whole(program, prompt):
        return ends(0, prompt, last=True)[-1]
    count = _WARM + _TIMED
    places = np.linspace(0, prompt - count, _WINDOWS).astype(np.int64)
    each: list[float] = []
    for place in places.tolist():
        found = ends(place, count, last=False)
        each.append((found[-1] - found[_WARM - 1]) / _TIMED)
    first, final = ends(0, count, last=False)[-1], ends(prompt - count, count, last=True)
    between = np.arange(count, prompt - _TIMED)
    middle = np.interp(between + 0.5, places + _WARM + _TIMED / 2, each).sum()
    return int(first + middle + final[-1] - final[_WARM - 1])


def drafted_cycles(
    program: Program, prompt: int, rounds: Sequence[tuple[int, int]], ranks: Ranks | None = None
) -> GenerationCycles:
    """Cycles of a generation whose tokens were drafted, by what became of each draft.

    With one token in flight the host has a token before it hands in the next one: a wrong guess is
    never handed in, and each round takes the time of the tokens that it gave. With more in flight
    a round's token and all its guesses are, and the next round begins when all of them are through.

    Args:
        program: the compiled model.
        prompt: number of prompt tokens.
        rounds: guesses of each, and how many of them came; at least one round.
        ranks: of the active adapter.
    """
    contexts = program.machine.contexts
    if contexts == 1:
        return generation_cycles(program, prompt, sum(1 + came for _, came in rounds), ranks)
    cycles: list[int] = []
    position, rest = prompt - 1, 0
    for number, (guesses, came) in enumerate(rounds):
        before = position if number == 0 else 0
        tokens = before + 1 + guesses
        if number or is_timed_whole(program, tokens):
            ends = _ends(program, position - before, tokens, 1 + guesses, contexts)[before:]
        else:
            # The guesses come behind the prompt, as they would behind its end.
            shift = prefill_cycles(program, prompt, contexts)
            own = _ends(program, position, 1 + guesses, 1 + guesses, contexts)
            ends = [shift + one - own[0] for one in own]
        outs = [0, *ends[: 1 + came]]
        cycles += [b - a for a, b in pairwise(outs)]
        cycles[len(cycles) - len(outs) + 1] += rest
        rest = max(ends) - ends[came]
        position += 1 + came
    first = cycles[0]
    return GenerationCycles(first, tuple(cycles))


def generation_from(before: int, wanted: TokenCycles) -> GenerationCycles:
    """The generation whose prompt took `before` cycles up to its last token.

    Args:
        before: cycles from the first prompt token accepted to the last one accepted.
        wanted: cycles of the last prompt token and of the generated tokens that were fed back.
    """
    rest = wanted.period[:-1] - wanted.out[:-1]
    first, *later = (int(cycles) for cycles in wanted.out)
    tokens = (first, *(int(r) + own for r, own in zip(rest, later, strict=True)))
    return GenerationCycles(before + first, tokens)


@dataclass(frozen=True)
class Wait:
    """What an instruction waits for.

    Attributes:
        number: whose result, or place in the queue.
        cycle: in which it is there.
        ahead: cycles that pass from then on until one that flows may start for it (`timeline`).
    """

    number: int
    cycle: int
    ahead: int = 0


@dataclass(frozen=True)
class Step:
    """An instruction instance of a token, and what it waits for.

    Attributes:
        span: with the number of its block in the program.
        before: its predecessor in its queue, and when that leaves the queue free; or None.
        waits: results, each of the last instruction of a counter.
    """

    span: Span
    before: Wait | None
    waits: tuple[Wait, ...]

    def taken(self, program: Program) -> Instruction:
        """What it is an instance of: a beat, where instructions have beats."""
        return program.blocks[self.span.block].instructions[self.span.instruction]

    def whole(self, program: Program) -> timeline.At:
        """Whose beat it is: block, instance, and the instruction's place in `Block.whole`."""
        number = program.blocks[self.span.block].whole_of[self.span.instruction]
        return self.span.block, self.span.instance, number


@dataclass(frozen=True)
class OnPath:
    """An instruction instance on the critical path.

    Attributes:
        span: the instance.
        cycles: from its start until what the next one on the path waits for, or the token's end.
        issue: cycles from what it waits for last to its start.
    """

    span: Span
    cycles: int
    issue: int


_LEFT = frozenset(LEAVES.values())
"""Counters of what is there some cycles after the elements."""


class TokenTimeline:
    """A token at some positions: every instruction instance in program order, simulated once.

    Attributes:
        program: the compiled model.
        positions: of the token.
        ranks: of the active adapter.
        at: which instruction instances, with the numbers of their blocks in the program.
        start, finish, free, end: cycles, int64 [instances, positions]; as in `timeline.Span`.
        left, out: likewise; -1 where there is none.
    """

    def __init__(
        self,
        program: Program,
        positions: Sequence[int],
        sampled: bool = True,
        ranks: Ranks | None = None,
    ) -> None:
        self.program, self.positions, self.ranks = program, list(positions), ranks
        instances = sum(len(one.instances) * len(one.instructions) for one in program.blocks)
        self.start, self.finish, self.free, self.end, self.left, self.out = (
            np.full((instances, len(self.positions)), -1, np.int64) for _ in range(6)
        )
        self.at: list[timeline.At] = []
        self._before: list[int | None] = []
        """The predecessor of each in its queue."""
        self._counted: dict[str, list[int]] = {counter: [] for counter in COUNTERS}
        """Who counts, in order."""
        self._bases: dict[tuple[int, int], dict[str, int]] = {}
        """How many had counted before a block's instance."""
        self._gone = self.left, self.out
        self._paths: dict[int, list[OnPath]] = {}
        for number, (span, block) in enumerate(spans(program, self.positions, sampled, ranks)):
            self._take(number, span, block)

    def _take(self, number: int, span: Span, block: int) -> None:
        if span.instruction == 0:
            counts = {counter: len(numbers) for counter, numbers in self._counted.items()}
            self._bases[block, span.instance] = counts
        self.at.append((block, span.instance, span.instruction))
        self.start[number], self.finish[number] = span.start, span.finish
        self.free[number], self.end[number] = span.free, span.end
        queue = self.program.blocks[block].instructions[span.instruction].queue
        of_queue = self._counted[queue]
        self._before.append(of_queue[-1] if of_queue else None)
        of_queue.append(number)
        if span.left is not None:
            self.left[number] = span.left
            self._counted[reductions_of(queue)].append(number)
        if span.out is not None:
            self.out[number] = span.out

    @property
    def period(self) -> Cycles:
        """Until the next token may be accepted; int64 [positions]."""
        return np.max(self.end[: len(self.at)], axis=0, initial=0)

    def taken(self, number: int) -> Instruction:
        """What an instruction instance is one of."""
        block, _, instruction = self.at[number]
        return self.program.blocks[block].instructions[instruction]

    def step(self, number: int, which: int = 0) -> Step:
        """An instruction instance at one of the positions, and what it waits for.

        Args:
            number: in program order.
            which: the position's place in `positions`.
        """
        before = self._before[number]
        return Step(
            self._span(number, which),
            None if before is None else Wait(before, int(self.free[before, which])),
            self._waits(number, which),
        )

    def _span(self, number: int, which: int) -> Span:
        at = slice(which, which + 1)
        start, finish, free = (one[number, at] for one in (self.start, self.finish, self.free))
        left, out = (None if one[number, which] < 0 else one[number, at] for one in self._gone)
        return Span(*self.at[number], start, finish, free, left, out)

    def _waits(self, number: int, which: int) -> tuple[Wait, ...]:
        base, found = self._bases[self.at[number][:2]], list[Wait]()
        for counter, count in self.taken(number).issue.waits.items():
            if (last := awaited(base[counter], count, self.at[number][1])) <= 0:
                continue
            other = self._counted[counter][last - 1]
            if counter in _LEFT:
                found.append(Wait(other, int(self.left[other, which])))
                continue
            ahead = self.program.machine.issue if self.taken(other).issue.pace is None else 0
            found.append(Wait(other, int(self.finish[other, which]), ahead))
        return tuple(found)

    def steps(self, which: int = 0) -> list[Step]:
        """Every instruction instance at one of the positions."""
        return [self.step(number, which) for number in range(len(self.at))]

    def critical_path(self, which: int = 0) -> list[OnPath]:
        """See `critical_path`; of the token at one of the positions."""
        if which in self._paths:
            return self._paths[which]
        path: list[OnPath] = []
        ends = self.end[: len(self.at), which]
        at = int(np.argmax(ends)) if ends.size else None
        end = 0 if at is None else int(ends[at])
        while at is not None:
            one = self.step(at, which)
            start = int(one.span.start[0])
            waited = (*(() if one.before is None else (one.before,)), *one.waits)
            flows = one.taken(self.program).issue.pace is not None
            latest = max(waited, key=lambda w: w.cycle + (w.ahead if flows else 0), default=None)
            ready = 0 if latest is None else latest.cycle
            path.append(OnPath(one.span, end - start, start - ready))
            at, end = (None if latest is None else latest.number), ready
        self._paths[which] = path[::-1]
        return self._paths[which]


def steps(
    program: Program, position: int, sampled: bool = True, ranks: Ranks | None = None
) -> list[Step]:
    """Every instruction instance of a token, in program order, with what it waits for."""
    return TokenTimeline(program, [position], sampled, ranks).steps()


def critical_path(
    program: Program, position: int, sampled: bool = True, ranks: Ranks | None = None
) -> list[OnPath]:
    """The instruction instances that the token's period consists of, first to last.

    What an instruction waits for last is the one before it in the list: its finish, its reduction,
    or that it leaves the queue free. Their `cycles` and `issue` add up to the period.
    """
    return TokenTimeline(program, [position], sampled, ranks).critical_path()


@dataclass(frozen=True)
class Extent:
    """The cycles of a block instance: from its first start to that of the next, the first from 0
    and the last to the end of the period."""

    block: int
    instance: int
    first: int
    last: int


def extents(program: Program, position: int) -> list[Extent]:
    """The block instances of a token, one after another without a gap."""
    starts: dict[tuple[int, int], int] = {}
    period = 0
    for span, block in spans(program, [position]):
        at = (block, span.instance)
        starts[at] = min(int(span.start[0]), starts.get(at, int(span.start[0])))
        period = max(period, int(span.end[0]))
    order = sorted(starts.items(), key=lambda item: item[1])
    ends = [*(start for _, start in order[1:]), period]
    return [
        Extent(*at, start if number else 0, end)
        for number, ((at, start), end) in enumerate(zip(order, ends, strict=True))
    ]
