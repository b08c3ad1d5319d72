"""One thread that runs a chip for several users.

Users take turns: in each round every one has one, in which it gets up to `PROMPT_TURN` tokens of
its prompt taken or one token generated. Within a round users of the same adapter follow each other,
those of the active one first, so that the chip switches once less a round than there are adapters;
among them, who came first. Who comes while all places are taken waits in a queue, first come first
served.

Values do not depend on who else is there (`runtime/text/session.py`). What does is the chip's
clock: the modelled cycles of all turns, one after another, with those in which adapters are
switched.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from intaglio.dialects.errors import UserError
from intaglio.runtime.engines.names import HARDWARE_ENGINES
from intaglio.runtime.reports.timing import PositionCycles, generation_from
from intaglio.runtime.serve.errors import RequestError
from intaglio.runtime.serve.metrics import Metrics
from intaglio.runtime.terminal import say
from intaglio.runtime.text.generation import Generation, Stops
from intaglio.runtime.text.sampling import Sampler
from intaglio.runtime.text.session import Session, open_session

if TYPE_CHECKING:
    from intaglio.backend.images.adapter import AdapterImage
    from intaglio.runtime.loaded_model import LoadedModel
    from intaglio.runtime.text.decoding import Generated, Logits

PROMPT_TURN = 32
"""Prompt tokens that a user gets taken in one turn."""
_ADAPTERS_TIMED = 64
"""Adapters whose times are kept."""


@dataclass(frozen=True)
class Task:
    """A generation that is asked for.

    Attributes:
        model: the name that it is asked for by.
        prompt: token ids, which fit with the tokens.
        tokens: how many at most.
        adapter: that it goes through.
        stops: what ends it earlier.
        sampler: what draws its tokens; None: the first maximum.
        logprobs: of how many likeliest tokens; None: of none, not the one taken either.
    """

    model: str
    prompt: Sequence[int]
    tokens: int
    adapter: AdapterImage | None
    stops: Stops
    sampler: Sampler | None
    logprobs: int | None = None


@dataclass(frozen=True)
class LogProb:
    """Natural logarithms of the model's probabilities: of a token, and of the likeliest."""

    token: int
    value: float
    top: Sequence[tuple[int, float]]


@dataclass(frozen=True)
class Piece:
    """A token, and the text that it completes."""

    token: int
    text: str
    logprob: LogProb | None


@dataclass(frozen=True)
class Finish:
    """The end of a generation.

    Attributes:
        text: that was held back.
        reason: `stop` or `length`, as OpenAI's API has it.
        prompt: number of its tokens.
        tokens: that were generated, an end token included.
        prefill_cycles: of the chip, had it nothing else to do: until the first token is out.
        decode_cycles: and from then until the last one is.
        chip_cycles: on its clock from the first turn until the last token was out, with the turns
            of others and all switches of adapters.
        adapter_cycles: in which the load port took adapters for this generation's turns.
        saturations: values that did not fit.
        host_seconds: that this machine computed for it.
    """

    text: str
    reason: Literal["stop", "length"]
    prompt: int
    tokens: Sequence[int]
    prefill_cycles: int
    decode_cycles: int
    chip_cycles: int
    adapter_cycles: int
    saturations: int
    host_seconds: float


Event = Piece | Finish | RequestError


class Job:
    """A task, and whom to tell of it.

    Args:
        task: what is asked for.
        tell: called in the engine's thread with each piece, and at last with a finish or an error.
    """

    def __init__(self, task: Task, tell: Callable[[Event], None]) -> None:
        self.task = task
        self.tell = tell
        self.gone = threading.Event()
        """Set by whoever does not want the answer any more."""


class _User:
    """A job that has a place."""

    def __init__(self, engine: Engine, job: Job) -> None:
        self.job = job
        self._engine = engine
        self._times = engine.times(job.task)
        self._session: Session = open_session(engine.chip, engine.name, job.task.adapter)
        self._generation = Generation(
            engine.chip,
            job.task.prompt,
            job.task.tokens,
            engine.name,
            stops=job.task.stops,
            sampler=job.task.sampler,
            as_text=True,
            session=self._session,
        )
        self._steps = iter(self._generation)
        self._began: int | None = None
        self._out = 0
        self.tokens: list[int] = []
        self.seconds = 0.0

    def turn(self) -> bool:
        """Some tokens of the prompt, or the next one; whether there are more to come."""
        start = time.perf_counter()
        task, session = self.job.task, self._session
        switched, first = session.adapter_cycles, session.position
        before = task.prompt[first:-1][:PROMPT_TURN]
        found = None
        if before:
            session.feed(before)
        else:
            found = next(self._steps)
        took = time.perf_counter() - start
        self.seconds += took
        self._engine.ran("adapter", session.adapter_cycles - switched, took)
        if self._began is None:
            self._began = self._engine.clock - session.adapter_cycles
        if before:
            periods = self._times.of(first, len(before), sampled=False).period
            self._engine.ran("prefill", int(periods.sum()))
            return True
        assert found is not None
        generated, text = found
        self.tokens.append(generated.token)
        cycles = self._times.of(first, 1)
        self._out = self._engine.clock + int(cycles.out[0])
        self._engine.ran("decode", int(cycles.period[0]))
        self.job.tell(Piece(generated.token, text, self._logprob(generated)))
        if self._generation.stopped is None and len(self.tokens) < task.tokens:
            return True
        end = self._finish()
        self._engine.ended(end)
        self.job.tell(end)
        return False

    def _finish(self) -> Finish:
        assert self._began is not None
        task = self.job.task
        last = len(task.prompt) - 1
        before = int(self._times.of(0, last, sampled=False).period.sum()) if last else 0
        alone = generation_from(before, self._times.of(last, len(self.tokens)))
        return Finish(
            text=self._generation.end(),
            reason="stop" if self._generation.stopped == "end_token" else "length",
            prompt=len(task.prompt),
            tokens=self.tokens,
            prefill_cycles=alone.prefill,
            decode_cycles=sum(alone.tokens[1:]),
            chip_cycles=self._out - self._began,
            adapter_cycles=self._session.adapter_cycles,
            saturations=self._session.saturations,
            host_seconds=self.seconds,
        )

    def _logprob(self, generated: Generated) -> LogProb | None:
        most = self.job.task.logprobs
        return None if most is None else logprob(generated.logits, generated.token, most)


def logprob(logits: Logits, token: int, most: int) -> LogProb:
    """Logarithms of probabilities for logits [V]: of a token, and of the `most` likeliest."""
    import numpy as np

    exact = logits.astype(np.float64)
    values = exact - exact.max()
    values -= np.log(np.exp(values).sum())
    order = np.argsort(-values, kind="stable")[:most].tolist()
    return LogProb(token, float(values[token]), [(one, float(values[one])) for one in order])


class Engine:
    """Runs tasks on a chip in a thread of its own, in which alone the chip is used.

    Args:
        chip: the compiled model.
        name: one of `CHECKED_ENGINES`.
        users: how many take turns.
        queue: how many may wait for that.
        metrics: counts what is done.

    Raises:
        UserError: the engine cannot run the program, or keeps fewer sequences than users.
    """

    def __init__(
        self, chip: LoadedModel, name: str, users: int, queue: int, metrics: Metrics
    ) -> None:
        if name in HARDWARE_ENGINES and users > 1:
            raise UserError(
                f"--users {users}: {name} keeps one sequence at a time",
                hint="--users 1, or the simulator",
            )
        chip.machine(name)
        self.chip = chip
        self.name = name
        self.users, self.queue = users, queue
        self.clock = 0
        """Modelled cycles of the chip so far, while it was not idle."""
        self.failed: BaseException | None = None
        """What ended the thread, if anything did."""
        self._metrics = metrics
        self._waiting: deque[Job] = deque()
        self._there: list[_User] = []
        self._change = threading.Condition()
        self._closing = False
        self._times: dict[int, tuple[AdapterImage | None, PositionCycles]] = {}
        self._thread = threading.Thread(target=self._main, name="intaglio-engine", daemon=True)
        metrics.set("users_limit", users)
        metrics.set("queue_limit", queue)
        self._count()

    def start(self) -> None:
        """Begins to work."""
        self._thread.start()

    def stop(self, seconds: float = 10) -> None:
        """Ends all jobs before their next token, and the thread."""
        with self._change:
            self._closing = True
            self._change.notify()
        if self._thread.is_alive():
            self._thread.join(seconds)

    def submit(self, job: Job) -> None:
        """Takes a job in.

        Raises:
            RequestError: there is no place, or the engine ends.
        """
        with self._change:
            if self._closing or self.failed is not None:
                raise RequestError(503, "the server is stopping", code="stopping")
            self._forget()
            if len(self._waiting) + len(self._there) >= self.users + self.queue:
                raise RequestError(
                    429,
                    f"{self.users} requests are being answered and {self.queue} wait, which is all "
                    "that the server takes; try again later",
                    code="rate_limit_exceeded",
                )
            self._waiting.append(job)
            self._change.notify()
        self._count()

    def times(self, task: Task) -> PositionCycles:
        """Cycles of tokens through a task's adapter."""
        from intaglio.runtime.adapters.slots import ranks_of

        key = id(task.adapter)
        if key not in self._times:
            if len(self._times) > _ADAPTERS_TIMED:
                self._times.clear()
            made = PositionCycles(self.chip.program, ranks_of(task.adapter))
            # The image is kept so that its identity stays its own.
            self._times[key] = task.adapter, made
        return self._times[key][1]

    def ran(self, kind: str, cycles: int, seconds: float = 0.0) -> None:
        """Moves the clock on."""
        self.clock += cycles
        self._metrics.add("chip_cycles_total", cycles, kind=kind)
        self._metrics.add("chip_seconds_total", cycles / self.chip.program.machine.clock_hz)
        self._metrics.add("host_seconds_total", seconds)

    def ended(self, finish: Finish) -> None:
        """Counts an answer that is complete."""
        self._metrics.add("answers_total", ended=finish.reason)
        self._metrics.add("saturations_total", finish.saturations)

    def _main(self) -> None:
        try:
            while self._admit():
                self._round()
        except BaseException as error:
            self.failed = error
            say(f"the engine failed: {type(error).__name__}: {error}\n")
        finally:
            self._empty()

    def _admit(self) -> bool:
        """Gives places to those who wait, and waits where nobody is there; whether to go on."""
        with self._change:
            while not self._closing and not self._waiting and not self._there:
                self._change.wait()
            if self._closing:
                return False
            self._forget()
            new: list[Job] = []
            while self._waiting and len(self._there) + len(new) < self.users:
                new.append(self._waiting.popleft())
        for job in new:
            self._guarded(job, lambda job=job: self._enter(job))
        self._count()
        return True

    def _forget(self) -> None:
        """Those who went away while they waited leave their places in the queue."""
        left = [job for job in self._waiting if not job.gone.is_set()]
        if cancelled := len(self._waiting) - len(left):
            self._waiting = deque(left)
            self._metrics.add("answers_total", cancelled, ended="cancelled")

    def _enter(self, job: Job) -> bool:
        self._there.append(_User(self, job))
        return True

    def _round(self) -> None:
        names = {id(self.chip.adapter): 0}
        for user in self._there:
            names.setdefault(id(user.job.task.adapter), len(names))
        for user in sorted(self._there, key=lambda one: names[id(one.job.task.adapter)]):
            if self._closing:
                return
            if user.job.gone.is_set():
                self._metrics.add("answers_total", ended="cancelled")
                self._leave(user)
            elif not self._guarded(user.job, user.turn):
                self._leave(user)

    def _leave(self, user: _User) -> None:
        self._there.remove(user)
        model = user.job.task.model
        self._metrics.add("tokens_total", len(user.tokens), model=model, kind="generated")
        if user.tokens:
            self._metrics.add("tokens_total", len(user.job.task.prompt), model=model, kind="prompt")
        self._count()

    def _guarded(self, job: Job, work: Callable[[], bool]) -> bool:
        """What a piece of work says; an error is the job's, and ends it."""
        try:
            more = work()
        except UserError as error:
            self._metrics.add("answers_total", ended="refused")
            job.tell(RequestError.of(error))
            return False
        except Exception as error:
            self._metrics.add("answers_total", ended="failed")
            say(f"an answer failed: {type(error).__name__}: {error}\n")
            job.tell(RequestError(500, "the engine failed; the server's log says more"))
            return False
        return more

    def _empty(self) -> None:
        """Tells all that are still there that nothing more will come."""
        with self._change:
            jobs = [*(user.job for user in self._there), *self._waiting]
            self._there.clear()
            self._waiting.clear()
        for job in jobs:
            self._metrics.add("answers_total", ended="stopped")
            job.tell(RequestError(503, "the server is stopping", code="stopping"))
        self._count()

    def _count(self) -> None:
        self._metrics.set("users", len(self._there))
        self._metrics.set("queue", len(self._waiting))
