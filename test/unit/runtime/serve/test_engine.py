"""The engine's thread: whose turn it is, what is counted, and what an error ends."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from intaglio.runtime.chip import load
from intaglio.runtime.reports.timing import PositionCycles, token_cycles
from intaglio.runtime.serve.engine import PROMPT_TURN, Engine, Event, Finish, Job, Piece, Task
from intaglio.runtime.serve.errors import RequestError
from intaglio.runtime.serve.metrics import Metrics
from intaglio.runtime.text.generation import Stops

TASK = Task("base", [1, 2, 3], 4, None, Stops(), None)


class Desk:
    """An engine with places, and what it told whom, in order."""

    def __init__(self, out: Path, users: int, queue: int = 8) -> None:
        self.chip = load(out)
        self.metrics = Metrics()
        self.engine = Engine(self.chip, "simulator", users, queue, self.metrics)
        self.told: list[tuple[str, Event]] = []
        self.more = threading.Condition()

    def job(self, name: str, task: Task) -> Job:
        def tell(event: Event) -> None:
            with self.more:
                self.told.append((name, event))
                self.more.notify_all()

        return Job(task, tell)

    def submit(self, name: str, task: Task) -> Job:
        job = self.job(name, task)
        self.engine.submit(job)
        return job

    def end(self, name: str) -> Finish | RequestError:
        def found() -> list[Any]:
            return [e for who, e in self.told if who == name and not isinstance(e, Piece)]

        with self.more:
            assert self.more.wait_for(found, 30)
        return found()[0]

    def order(self) -> str:
        return "".join(who for who, event in self.told if isinstance(event, Piece))


@pytest.fixture
def desk(chatting: Path) -> Iterator[Desk]:
    made = Desk(chatting, users=3)
    yield made
    made.engine.stop()


def test_turns_go_round(desk: Desk):
    """Token by token, from the first on; prompts a part at a time."""
    long = [1] * (2 * PROMPT_TURN + 2)
    for name, task in (("a", TASK), ("b", replace(TASK, prompt=long)), ("c", TASK)):
        desk.submit(name, task)
    desk.submit("d", TASK)
    desk.engine.start()
    for name in "abcd":
        assert isinstance(desk.end(name), Finish)
    # b's prompt takes three turns; d comes when a or c is done.
    assert desk.order() == "acacabcabcbbdddd"
    assert desk.metrics.get("answers_total", ended="length") == 4
    assert desk.metrics.get("tokens_total", model="base", kind="generated") == 16
    assert desk.metrics.get("users") == desk.metrics.get("queue") == 0


def test_users_of_an_adapter_follow_each_other(desk: Desk):
    """The active one first: two adapters, one switch a round."""
    devil, python = (desk.chip.adapters.load(name) for name in ("devil", "python"))
    for name, image in (("a", devil), ("b", python), ("c", devil)):
        desk.submit(name, replace(TASK, prompt=[1], adapter=image))
    desk.engine.start()
    ends = [desk.end(name) for name in "abc"]
    assert desk.order() == "acbbacacbbac"
    load_port = sum(one.adapter_cycles for one in ends if isinstance(one, Finish))
    cycles = {one.name: one.load_cycles for one in desk.chip.adapters.list()}
    # Both stay in the chip: each is loaded once, and switched to in the three rounds that follow.
    assert load_port == sum(cycles.values()) + 3
    assert desk.metrics.get("chip_cycles_total", kind="adapter") == load_port


def test_the_clock(desk: Desk):
    """Each answer's own cycles are those of `run`; the chip's are all of them."""
    desk.submit("a", TASK)
    desk.submit("b", replace(TASK, prompt=[5] * 40))
    desk.engine.start()
    ends = {name: desk.end(name) for name in "ab"}
    for name, count in (("a", 3), ("b", 40)):
        alone, end = desk.chip.generation_cycles(count, 4), ends[name]
        assert isinstance(end, Finish)
        assert (end.prefill_cycles, end.decode_cycles) == (alone.prefill, sum(alone.tokens[1:]))
        assert end.chip_cycles > end.prefill_cycles + end.decode_cycles
    program = desk.chip.program
    period = sum(
        int(token_cycles(program, range(count - 1), sampled=False).period.sum())
        + int(token_cycles(program, range(count - 1, count + 3)).period.sum())
        for count in (3, 40)
    )
    assert desk.engine.clock == period
    kinds = (desk.metrics.get("chip_cycles_total", kind=one) for one in ("prefill", "decode"))
    assert sum(kinds) == period


def test_an_error_ends_one_answer(desk: Desk):
    class Broken:
        def choose(self, logits: Any) -> int:
            raise ValueError("broken")

    desk.submit("a", replace(TASK, sampler=Broken()))
    desk.submit("b", replace(TASK, prompt=[999]))
    desk.submit("c", TASK)
    desk.engine.start()
    found = [desk.end(name) for name in "abc"]
    assert [getattr(one, "status", 200) for one in found] == [500, 400, 200]
    assert desk.engine.failed is None


def test_who_goes_away(desk: Desk):
    gone, waiting = desk.submit("a", TASK), desk.submit("b", TASK)
    gone.gone.set()
    waiting.gone.set()
    desk.submit("c", TASK)
    desk.engine.start()
    assert isinstance(desk.end("c"), Finish) and desk.order() == "cccc"
    assert desk.metrics.get("answers_total", ended="cancelled") == 2


def test_places(chatting: Path):
    desk = Desk(chatting, users=1, queue=1)
    first = desk.submit("a", TASK)
    desk.submit("b", TASK)
    with pytest.raises(RequestError) as error:
        desk.submit("c", TASK)
    assert error.value.status == 429
    first.gone.set()
    desk.submit("c", TASK)
    desk.engine.start()
    assert isinstance(desk.end("c"), Finish)
    desk.engine.stop()
    with pytest.raises(RequestError) as error:
        desk.submit("d", TASK)
    assert error.value.status == 503


def test_its_end_tells_all(chatting: Path):
    desk = Desk(chatting, users=1)
    for name in "ab":
        desk.submit(name, replace(TASK, tokens=150))
    desk.engine.start()
    with desk.more:
        assert desk.more.wait_for(lambda: desk.told, 30)
    desk.engine.stop()
    for name in "ab":
        end = desk.end(name)
        assert isinstance(end, RequestError) and end.status == 503


def test_cycles_by_position(chatting: Path):
    """In parts, across their borders and at the end, as all at once."""
    chip = load(chatting)
    times = PositionCycles(chip.program)
    for sampled in (False, True):
        every = token_cycles(chip.program, range(chip.program.capacity), sampled)
        for first, count in ((0, 1), (60, 8), (64, 64), (3, 150), (159, 1)):
            found = times.of(first, count, sampled)
            where = slice(first, first + count)
            assert found.period.tolist() == every.period[where].tolist()
            assert found.out.tolist() == every.out[where].tolist()


def test_metrics_as_text():
    metrics = Metrics()
    metrics.add("tokens_total", 3, model='a"b\\', kind="prompt")
    metrics.add("host_seconds_total", 0.25)
    metrics.set("users", 2)
    lines = metrics.text().splitlines()
    assert lines[:3] == [
        "# HELP intaglio_tokens_total Tokens by model and kind: of prompts, or generated.",
        "# TYPE intaglio_tokens_total counter",
        'intaglio_tokens_total{kind="prompt",model="a\\"b\\\\"} 3',
    ]
    assert "intaglio_host_seconds_total 0.25" in lines and lines[-1] == "intaglio_users 2"
