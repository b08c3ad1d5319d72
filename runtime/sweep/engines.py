"""Who evaluates the points of a sweep: this process, or the workers of a Dask cluster.

Workers get the model as it was read, once each, and settings a point; they need no file. What they
finish is handed over at once and let go of, so that of a killed worker only the point at hand is
done again. The cluster is no record: see `record.py`.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from intaglio.backend.stages import Options
from intaglio.dialects.errors import UserError
from intaglio.runtime.sweep.evaluate import evaluate, unfit
from intaglio.runtime.sweep.models import Models
from intaglio.runtime.sweep.points import Asked
from intaglio.runtime.sweep.rows import Found, Module

NEEDS = "pip install 'intaglio[sweep]'"
AHEAD = 4
"""Points that each worker has before it, so that it never waits for the next one."""


@dataclass(frozen=True)
class Task:
    """A point to evaluate.

    Attributes:
        key: of the point.
        options: of a compile there.
    """

    key: str
    options: Options


Done = Callable[[Task, Found], None]
"""Called with each finished point, in any order. A point that a bug of Intaglio or the end of its
workers kept from being evaluated has `error` alone."""


class Engine(Protocol):
    """Evaluates points."""

    @property
    def told(self) -> str:
        """Who it is, in words."""
        ...

    def run(self, tasks: Iterable[Task], done: Done) -> None:
        """Evaluates all of some points, each once."""
        ...


@contextmanager
def engine_for(
    models: Models, asked: Asked, *, scheduler: str | None, workers: int | None
) -> Iterator[Engine]:
    """Whoever is there to evaluate points.

    Args:
        models: the model.
        asked: what is wanted of each point.
        scheduler: address of a cluster of the user's own; None: one on this machine.
        workers: of that one; 0: none, in this process; None: as many as there are cores.

    Raises:
        UserError: the cluster needs what is not installed, or does not answer.
    """
    if scheduler is None and workers == 0:
        yield InProcess(models, asked, "in this process")
        return
    if importlib.util.find_spec("distributed") is None:
        if scheduler is not None or workers:
            raise UserError("a cluster needs Dask, which is not installed", hint=NEEDS)
        yield InProcess(models, asked, f"in this process; on all cores with Dask ({NEEDS})")
        return
    from intaglio.runtime.sweep.dask_cluster import cluster

    with cluster(scheduler, workers or available_cores()) as client:
        yield OnDask(client, models, asked, scheduler)


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class InProcess:
    """One point after the other, here."""

    models: Models
    asked: Asked
    told: str

    def run(self, tasks: Iterable[Task], done: Done) -> None:
        for task in tasks:
            done(task, self._evaluated(task))

    def _evaluated(self, task: Task) -> Found:
        try:
            _, what_if = self.models.of(task.options)
        except UserError as error:
            return unfit(error)
        try:
            return evaluate(what_if, task.options, self.asked)
        except Exception as error:
            return {"error": f"{type(error).__name__}: {error}"}


class OnDask:
    """On the workers of a cluster."""

    def __init__(self, client: Module, models: Models, asked: Asked, scheduler: str | None) -> None:
        self.client, self.models, self.asked = client, models, asked
        self.scheduler = scheduler
        self._sent: set[str] = set()

    @property
    def told(self) -> str:
        """How many workers there are, and where."""
        count = len(self.client.nthreads())
        workers = f"on {count} {'worker' if count == 1 else 'workers'}"
        return (
            f"{workers} of this machine"
            if self.scheduler is None
            else f"{workers} of {self.scheduler}"
        )

    def run(self, tasks: Iterable[Task], done: Done) -> None:
        from intaglio.runtime.sweep.dask_cluster import Subject, distributed, evaluate_there

        waiting, at_hand = iter(tasks), dict[str, Task]()
        flow = distributed.as_completed(
            with_results=True, raise_errors=False, loop=self.client.loop
        )

        def submit() -> bool:
            """Hands out the next point; False: there is none."""
            for task in waiting:
                try:
                    _, what_if = self.models.of(task.options)
                except UserError as error:
                    done(task, unfit(error))
                    continue
                name = self.models.digest(task.options)
                if name not in self._sent:
                    self.client.register_plugin(Subject(name, what_if))
                    self._sent.add(name)
                future = self.client.submit(
                    evaluate_there,
                    name,
                    task.options,
                    self.asked,
                    key=f"intaglio-{task.key}",
                    pure=False,
                )
                at_hand[future.key] = task
                flow.add(future)
                return True
            return False

        for _ in range(AHEAD * max(1, len(self.client.nthreads()))):
            if not submit():
                break
        for future, result in flow:
            task = at_hand.pop(future.key)
            if future.status == "finished":
                done(task, result)
            else:
                kind, error, _ = result
                done(task, {"error": f"{kind.__name__}: {error}"})
            # What is held is computed again when its worker ends.
            future.release()
            submit()
