"""Cycles of whole tokens and of a generation, without running the arithmetic.

One running clock counts the cycles in which the chip is not kept waiting. Cycle 0 accepts the
first prompt token. The next token is accepted in the cycle in which all queues are idle, so a token
takes a *period*: the latest finish of its instructions. Prompt tokens before the last run without
the blocks that only a wanted token needs. A token is *out* when its `sample` instruction finishes;
it may be accepted as the next input from the end of the period on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from intaglio.backend.program.program import Program
from intaglio.dialects import timeline
from intaglio.dialects.isa.adapter import AdapterMatvec
from intaglio.dialects.isa.queues import QUEUES
from intaglio.dialects.isa.vector import Sample
from intaglio.dialects.timeline import Span

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
    for span in timeline.simulate(blocks, program.machine.issue, positions, active):
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
    period = np.zeros_like(where)
    out: Cycles | None = None
    for span, block in spans(program, where, sampled, ranks):
        period = np.maximum(period, span.finish)
        if isinstance(program.blocks[block].instructions[span.instruction].does, Sample):
            out = span.finish
    return TokenCycles(period, period if out is None else out)


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
    before = token_cycles(program, np.arange(prompt - 1), sampled=False, ranks=ranks).period
    wanted = token_cycles(program, np.arange(prompt - 1, prompt - 1 + tokens), ranks=ranks)
    return generation_from(int(before.sum()), wanted)


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
class Step:
    """An instruction instance of a token, and what it waits for.

    Attributes:
        span: with the number of its block in the program.
        before: index of its predecessor in its queue, or None.
        waits: indices of the last instruction of each other queue that it waits for.
    """

    span: Span
    before: int | None
    waits: tuple[int, ...]


def steps(
    program: Program, position: int, sampled: bool = True, ranks: Ranks | None = None
) -> list[Step]:
    """Every instruction instance of a token, in program order, with what it waits for."""
    found: list[Step] = []
    done: dict[str, list[int]] = {queue: [] for queue in QUEUES}
    base: dict[str, int] = {}
    for number, (span, block) in enumerate(spans(program, [position], sampled, ranks)):
        if span.instruction == 0:
            base = {queue: len(numbers) for queue, numbers in done.items()}
        issue = program.blocks[block].instructions[span.instruction].issue
        waits = tuple(
            done[queue][last - 1]
            for queue, count in issue.waits.items()
            if (last := base[queue] + count)
        )
        own = done[issue.queue]
        found.append(Step(replace(span, block=block), own[-1] if own else None, waits))
        own.append(number)
    return found


def critical_path(
    program: Program, position: int, sampled: bool = True, ranks: Ranks | None = None
) -> list[Span]:
    """The instruction instances that the token's period consists of, first to last.

    Each starts `issue` cycles after its predecessor in the list finishes; so the durations and one
    `issue` for each add up to the period.
    """
    found = steps(program, position, sampled, ranks)

    def finish(number: int) -> int:
        return int(found[number].span.finish[0])

    path: list[Span] = []
    at = max(range(len(found)), key=finish, default=None)
    while at is not None:
        one = found[at]
        path.append(one.span)
        waited = (*(() if one.before is None else (one.before,)), *one.waits)
        at = max(waited, key=finish, default=None)
    return path[::-1]


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
        period = max(period, int(span.finish[0]))
    order = sorted(starts.items(), key=lambda item: item[1])
    ends = [*(start for _, start in order[1:]), period]
    return [
        Extent(*at, start if number else 0, end)
        for number, ((at, start), end) in enumerate(zip(order, ends, strict=True))
    ]
