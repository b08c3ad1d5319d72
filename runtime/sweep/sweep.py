"""A sweep: points, those that the record has not yet, who evaluates them, and what comes out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from intaglio.backend.stages import Options
from intaglio.dialects.errors import UserError
from intaglio.runtime.remaining import duration
from intaglio.runtime.sweep.engines import Engine, Task
from intaglio.runtime.sweep.evaluate import unfit
from intaglio.runtime.sweep.models import Models
from intaglio.runtime.sweep.points import Asked, Point, key_of, options_of
from intaglio.runtime.sweep.record import Record
from intaglio.runtime.sweep.rows import Found, Row
from intaglio.runtime.sweep.version import code_digest

PLAIN_SECONDS = 10.0
"""How often it is said how far a sweep is where that is no line of a terminal."""

Say = Callable[[str], None]


@dataclass
class Progress:
    """Says how many points there are, and how long the others will take.

    Attributes:
        total: points; None: not known, as a sampler chooses them.
        show: shows a line of a terminal; None: there is none.
        plain: says a line elsewhere.
    """

    total: int | None
    show: Say | None
    plain: Say
    clock: Callable[[], float] = time.monotonic
    done: int = 0
    known: int = 0
    _began: float = field(init=False)
    _said: float = field(init=False)

    def __post_init__(self) -> None:
        self._began = self._said = self.clock()

    def stored(self) -> None:
        """A point was in the record."""
        self.known += 1

    def finished(self) -> None:
        """A point was evaluated."""
        self.done += 1
        now = self.clock()
        if self.show is not None:
            self.show(self.text(now))
        elif now - self._said >= PLAIN_SECONDS:
            self._said = now
            self.plain(self.text(now))

    def text(self, now: float) -> str:
        """How far it is."""
        done = self.done + self.known
        if self.total is None or not self.done:
            return f"{done:,} points"
        left = (now - self._began) / self.done * (self.total - done)
        return f"{done:,} of {self.total:,} points, {duration(left)} left"


@dataclass
class Sweep:
    """Evaluates points, and keeps them.

    Attributes:
        models: the model.
        options: what holds at all points.
        asked: what is wanted of each.
        record: where rows are kept.
        engine: who evaluates.
        progress: told of each point.
    """

    models: Models
    options: Options
    asked: Asked
    record: Record
    engine: Engine
    progress: Progress

    def rows(self, points: Iterable[Point]) -> list[Found]:
        """The rows of points, in their order; those that are not in the record are evaluated.

        A row that could not be evaluated before is tried again.
        """
        keys: dict[str, Point] = {}
        order: list[str] = []
        self.engine.run(
            self._missing(points, keys, order), lambda task, row: self._done(task, row, keys)
        )
        return [self.record.rows[key] for key in order]

    def _missing(
        self, points: Iterable[Point], keys: dict[str, Point], order: list[str]
    ) -> Iterator[Task]:
        """What is to be evaluated; fills keys and order of all points as it goes."""
        for point in points:
            try:
                options = options_of(point, self.options)
                digest = self.models.digest(options)
                key = key_of(options, self.asked, digest, code_digest())
            except UserError as error:
                # No target, or no rank: it is known by its words.
                key = key_of(self.options, self.asked, repr(point), code_digest())
                order.append(key)
                if key not in self.record.rows:
                    self.record.add({"key": key, "point": dict(point), **unfit(error)})
                continue
            order.append(key)
            if key in keys:
                continue
            keys[key] = point
            if key in self.record.rows and "error" not in self.record.rows[key]:
                self.progress.stored()
                continue
            yield Task(key, options)

    def _done(self, task: Task, found: Row, keys: Mapping[str, Point]) -> None:
        self.record.add({"key": task.key, "point": dict(keys[task.key]), **found})
        self.progress.finished()


def fitting(rows: Sequence[Row]) -> list[Row]:
    """The rows of points that fit."""
    return [row for row in rows if row.get("fits")]
