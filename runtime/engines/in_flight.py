"""Several tokens at once on the hardware of a chip with contexts, compared with the simulator.

Tokens lie at the port until the chip takes them, so it works on as many as it has contexts for.
What each of them finds and leaves must be what it would alone, in the cycles of
`dialects/in_flight.py`.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from intaglio.backend.hw.chip.sequencer import counters
from intaglio.dialects.errors import CompilerBug
from intaglio.dialects.in_flight import Token
from intaglio.dialects.isa.queues import LEAVES, reductions_of
from intaglio.dialects.isa.vector import Sample
from intaglio.runtime.engines.compare import (
    Comparison,
    ValueCheck,
    Whole,
    compare_caches,
    compare_cycles,
    compare_step,
    moments,
    values_of,
    whole_of,
)
from intaglio.runtime.engines.rtl import Event, RTLChip, Step
from intaglio.runtime.engines.running import Trace
from intaglio.runtime.engines.simulator import Simulator

Ints = npt.NDArray[np.int64]

_SLACK = 1000
"""Cycles after which a chip that does nothing hangs."""


@dataclass
class Flown:
    """A token that the hardware has taken.

    Attributes:
        position: of it.
        wanted: whether its successor is.
        accepted: the cycle of its acceptance, from that of the first one.
        events: its instructions, in the same cycles.
        out: its successor, and the cycle in which it was there.
    """

    position: int
    wanted: bool
    accepted: int
    events: dict[tuple[str, int], Event] = field(default_factory=dict[tuple[str, int], Event])
    out: tuple[int, int] | None = None


class TokensInFlight:
    """Feeds a chip with contexts.

    Args:
        chip: nothing is in flight on it.
        contexts: to use, of those that it has.
    """

    def __init__(self, chip: RTLChip, contexts: int) -> None:
        if not 1 <= contexts <= chip.contexts:
            raise CompilerBug(f"{contexts} contexts are to be used of {chip.contexts}")
        self.chip, self.contexts = chip, contexts
        self.flown: list[Flown] = []
        """Tokens taken so far."""
        self._waiting: list[tuple[int, int, bool]] = []
        self._mine: list[list[int]] = [[] for _ in range(contexts)]
        """Of each context the tokens that it had, by their numbers."""
        self._open: dict[tuple[int, str, int], tuple[int, int]] = {}
        """Of a context's instruction its start, and whose it is."""
        chip.model.set("token_valid", 0)
        chip.model.set("in_flight", contexts)
        # Turns begin at the first context.
        chip.model.step(1)
        self._began: int | None = None

    @property
    def cycle(self) -> int:
        """The next one, counted from the first acceptance; 0 before it."""
        return 0 if self._began is None else self.chip.model.cycle - self._began

    def feed(self, token: int, position: int, *, wanted: bool) -> None:
        """Puts a token behind those that wait at the port."""
        self._waiting.append((token, position, wanted))

    def advance(self, cycle: int) -> None:
        """Runs until a cycle is next, and hands in what waits as the chip takes it."""
        model = self.chip.model
        while self._began is None or self.cycle < cycle:
            left = cycle - self.cycle if self._began is not None else _SLACK
            if not self._waiting:
                model.set("token_valid", 0)
                self._collect(model.run(left, None, "event_any", None, left))
                continue
            token, position, wanted = self._waiting[0]
            following = self.flown and position == self.flown[-1].position + 1
            for name, value in (
                ("token", token),
                ("sample", int(wanted)),
                ("restart", int(not following)),
                ("restart_position", position),
                ("token_valid", 1),
            ):
                model.set(name, value)
            trace = model.run(left, None, "event_any", "accepted", left)
            if not trace.outputs["accepted"].any():
                if self._began is None:
                    raise CompilerBug("the hardware takes no token")
                self._collect(trace)
                continue
            if self._began is None:
                self._began = model.cycle - 1
            del self._waiting[0]
            self._mine[len(self.flown) % self.contexts].append(len(self.flown))
            self.flown.append(Flown(position, wanted, self.cycle - 1))
            self._collect(trace)
            model.set("token_valid", 0)

    def successor(self, number: int) -> int:
        """Of a token, when it is there; its logits stay until its context has another token.

        Raises:
            CompilerBug: it does not come.
        """
        idle = 0
        while number >= len(self.flown) or self.flown[number].out is None:
            idle = 0 if self._turned(self.cycle + _SLACK // 4) else idle + 1
            if idle > 20:
                raise CompilerBug(f"the successor of token {number} does not come")
        found = self.flown[number].out
        assert found is not None
        return found[0]

    def _turned(self, cycle: int) -> bool:
        """Runs until a cycle is next; whether anything ended until then."""
        before = sum(len(one.events) for one in self.flown)
        self.advance(cycle)
        return before != sum(len(one.events) for one in self.flown)

    def drain(self) -> None:
        """Runs until nothing waits and nothing is in flight."""
        idle = 0
        while self._waiting or self.chip.model.get("busy"):
            idle = 0 if self._turned(self.cycle + _SLACK) else idle + 1
            if idle > 20:
                raise CompilerBug("the hardware does nothing, and has not finished")
        self.chip.model.set("token_valid", 0)

    def end(self) -> None:
        """Leaves the chip as one that takes a token at a time."""
        self.chip.model.set("in_flight", 1)
        self.chip.model.step(1)
        if self.flown:
            self.chip.position = self.flown[-1].position + 1

    def _collect(self, trace: Trace) -> None:
        assert self._began is not None
        out, cycles = trace.outputs, trace.at - self._began
        found: list[tuple[int, int, str, int, int]] = []
        for name in counters(self.chip.layout.queues):
            for order, kind, number in ((0, "finish", "ended"), (1, "start", "started")):
                if f"event_{name}_{kind}" not in out:
                    continue
                for i in np.flatnonzero(out[f"event_{name}_{kind}"]).tolist():
                    whose = int(out[f"event_{name}_{number}_context"][i])
                    found.append(
                        (int(cycles[i]), order, name, whose, int(out[f"event_{name}_{number}"][i]))
                    )
        for cycle, order, name, whose, number in sorted(found):
            if order:
                token = self._token_of(whose, cycle)
                for counter in (name, LEAVES.get(name)):
                    if counter is not None:
                        self._open[whose, counter, number] = cycle, token
            elif (opened := self._open.pop((whose, name, number), None)) is not None:
                start, token = opened
                self.flown[token].events[name, number] = Event(name, number, start, cycle)
        for i in np.flatnonzero(out["next_valid"]).tolist():
            cycle = int(cycles[i])
            token = self._token_of(int(out["next_context"][i]), cycle)
            if self.flown[token].out is None:
                self.flown[token].out = int(out["next_token"][i]), cycle

    def _token_of(self, whose: int, cycle: int) -> int:
        """The token that a context has in a cycle: the last one accepted before it."""
        return max(n for n in self._mine[whose] if self.flown[n].accepted < cycle)


def results(
    chip: RTLChip, tokens: Sequence[int], position: int, wanted: int, contexts: int
) -> Generator[tuple[Ints, int], None, None]:
    """Tokens of a sequence in flight, and what follows the last ones.

    Whoever closes the iterator early still has all of them in the caches.

    Args:
        chip: nothing is in flight on it.
        tokens: ids.
        position: of the first one.
        wanted: how many of the last ones successors are wanted of, at least 1.
        contexts: to use.

    Yields:
        Logits [V] and the next token.
    """
    flight = TokensInFlight(chip, contexts)
    first = len(tokens) - wanted
    for number, token in enumerate(tokens):
        flight.feed(token, position + number, wanted=number >= first)
    try:
        for number in range(first, len(tokens)):
            token = flight.successor(number)
            logits = chip.in_context(number % contexts).read(chip.program.logits)
            assert isinstance(logits, np.ndarray)
            yield logits[: chip.vocabulary], token
    finally:
        flight.drain()
        flight.end()


def compare_in_flight(
    simulator: Simulator,
    chip: RTLChip,
    tokens: Sequence[int],
    contexts: int,
    *,
    wanted: Sequence[bool] | None = None,
    caches: bool = True,
) -> Comparison:
    """Runs the first tokens of a sequence in flight, and compares everything that is said of them.

    Compared are acceptance, start, finish and reduction of every beat, what it wrote in the cycle
    in which it can first be read, successors and the cycles in which they are there, the logits of
    the last one, saturations and caches.

    Args:
        simulator: gets the same tokens, one after another.
        chip: has the contexts; nothing is in flight.
        tokens: ids, from position 0 on.
        contexts: to use.
        wanted: of each token whether its successor is; None: of the last one.
        caches: compare the whole content of the caches afterwards.
    """
    if wanted is None:
        wanted = [False] * (len(tokens) - 1) + [True]
    check = ValueCheck()
    before = simulator.saturations, chip.saturations
    simulator.reset()
    chip.reset()
    expected = [
        values_of(simulator, token, position, want, None)
        for position, (token, want) in enumerate(zip(tokens, wanted, strict=True))
    ]
    flight = TokensInFlight(chip, contexts)
    for position, (token, want) in enumerate(zip(tokens, wanted, strict=True)):
        flight.feed(token, position, wanted=want)
    steps, accepted = _steps(chip, wanted, contexts)
    views = [chip.in_context(number) for number in range(contexts)]
    due = [(*one, token) for token, of in enumerate(steps) for one in moments(of)]
    for cycle, step, late, token in sorted(due, key=lambda one: one[0]):
        flight.advance(cycle)
        value = expected[token][whole_of(step)][0]
        compare_step(check, views[token % contexts], step, value, token, late=late)
        if check.result.difference is not None:
            break
    flight.drain()
    flight.end()
    for number, (token, of) in enumerate(zip(flight.flown, steps, strict=True)):
        where = f"token {number}"
        check.value(where, "the cycle of its acceptance", accepted[number], token.accepted, None)
        compare_cycles(check, of, token.events)
    if check.result.difference is None:
        last = views[(len(tokens) - 1) % contexts]
        _compare_results(check, simulator, chip, last, flight, expected, steps, before)
        if caches:
            compare_caches(check, simulator, chip, len(tokens))
    return check.result


def _steps(
    chip: RTLChip, wanted: Sequence[bool], contexts: int
) -> tuple[list[list[Step]], list[int]]:
    """Of each token its instruction instances by the timeline, and the cycle of its acceptance."""
    program, flight = chip.program, chip.program.flight
    found: list[list[Step]] = [[] for _ in wanted]
    accepted: dict[int, int] = {}
    tokens = [Token(position, want) for position, want in enumerate(wanted)]
    for one in flight.run(tokens, contexts):
        block, instance, place = one.at
        instruction = program.blocks[block].instructions[place]
        event = Event(one.queue, one.number, one.start, one.finish)
        left, end, out = None, one.finish, None
        if one.left is not None:
            left = Event(reductions_of(one.queue), one.number, one.start, one.left)
            end = max(end, one.left)
        if isinstance(instruction.does, Sample):
            out = one.finish + flight.outs[block, place]
            end = max(end, out)
        touches = program.accesses[block][place]
        found[one.token].append(Step(event, block, instance, instruction, touches, end, out, left))
        accepted[one.token] = one.accepted
    return found, [accepted[number] for number in range(len(wanted))]


def _compare_results(
    check: ValueCheck,
    simulator: Simulator,
    chip: RTLChip,
    last: RTLChip,
    flight: TokensInFlight,
    expected: Sequence[dict[Whole, tuple[object, object]]],
    steps: Sequence[Sequence[Step]],
    before: tuple[int, int],
) -> None:
    """Compares successors, the logits of the last token, and saturations.

    Args:
        check: gets what is found.
        simulator: has run the tokens.
        chip: likewise.
        last: as the last token's context sees it.
        flight: what the hardware said.
        expected: values of each token.
        steps: of each token.
        before: saturations of both sides before the tokens.
    """
    for number, (token, of) in enumerate(zip(flight.flown, steps, strict=True)):
        if not token.wanted:
            continue
        chosen = next(one for one in reversed(of) if one.out is not None)
        result = expected[number][whole_of(chosen)][0]
        seen = token.out or (-1, -1)
        where = f"the successor of token {number}"
        check.value(where, "next_token", np.asarray(result).reshape(-1)[0], seen[0], None)
        check.value(where, "its cycle", chosen.out, seen[1], None)
        check.result.token = int(np.asarray(result).reshape(-1)[0])
    if flight.flown[-1].wanted:
        name = chip.program.logits
        logits = last.read(name)
        assert isinstance(logits, np.ndarray)
        of_logits = next(one for one in reversed(steps[-1]) if name in one.instruction.writes)
        want = np.asarray(expected[-1][whole_of(of_logits)][0])[0]
        check.value("the last token", "logit", want, logits[: want.size], None)
    counts = simulator.saturations - before[0], chip.saturations - before[1]
    check.value("after the tokens", "the number of saturations", *counts, None)
