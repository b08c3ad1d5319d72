"""How far an assumed parameter would have to move for a predicted figure to equal a published one.

One parameter at a time; the figure is taken to be monotone between the parameter's value and either
end of its range, which is where the answer is sought by bisection.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

Figure = Callable[[float], float | None]
"""A figure for a value of a parameter; None where there is no such chip."""

STEPS = 40
"""Halvings of a range, at most."""
FEW = 6
"""Halvings of a range in search of the last chip in it."""
RELATIVE = 1e-4
"""Part of a value that is near enough."""


@dataclass(frozen=True)
class Knob:
    """A number that is assumed: its full name, value and range."""

    name: str
    value: float
    low: float
    high: float
    integer: bool

    def ends(self) -> list[float]:
        """The ends of the range that are not the value itself."""
        return [end for end in (self.low, self.high) if end != self.value]

    def setting(self, value: float) -> str:
        """The option that sets it."""
        return f"{self.name}={int(value) if self.integer else value!r}"


@dataclass(frozen=True)
class Reach:
    """What a parameter can do to a figure.

    Attributes:
        knob: the parameter.
        own: the figure as the parameter is.
        at_ends: the figure at the ends of the range, by value; for an end without a chip that of
            the value nearest to it that has one, if any was found.
        needed: the value nearest to the parameter's own at which the figure reaches the goal; None
            if it does not, whatever the value.
        at_needed: the figure there: beyond the goal where the parameter moves in steps.
    """

    knob: Knob
    own: float
    at_ends: Mapping[float, float]
    needed: float | None
    at_needed: float | None

    @property
    def matters(self) -> bool:
        """Whether the figure hangs on the parameter at all."""
        return any(value != self.own for value in self.at_ends.values())

    def best(self, goal: float) -> tuple[float, float] | None:
        """The end at which the figure comes nearer to the goal, and the figure; None: neither."""
        near = [
            (end, value)
            for end, value in self.at_ends.items()
            if abs(value - goal) < abs(self.own - goal)
        ]
        return min(near, key=lambda one: abs(one[1] - goal), default=None)


def reach(knob: Knob, figure: Figure, goal: float) -> Reach:
    """What moving one parameter through its range does to a figure."""
    own = figure(knob.value)
    assert own is not None
    at_ends: dict[float, float] = {}
    for end in knob.ends():
        value = figure(end)
        if value is None:
            end, value = _farthest(knob, figure, end)
        if value is not None:
            at_ends[end] = value
    found: list[tuple[float, float]] = []
    for end, value in at_ends.items():
        if (own - goal) * (value - goal) <= 0 and value != own:
            found.append(_first(knob, figure, goal, end, value))
    nearest = min(found, key=lambda one: abs(one[0] - knob.value), default=None)
    needed, at_needed = (None, None) if nearest is None else nearest
    return Reach(knob, own, at_ends, needed, at_needed)


def _farthest(knob: Knob, figure: Figure, end: float) -> tuple[float, float | None]:
    """The value nearest to an end without a chip that has one; None: none was found."""
    good, bad, found = knob.value, end, None
    for _ in range(FEW):
        middle = (good + bad) / 2
        middle = middle // 1 if knob.integer else middle
        if middle in (good, bad):
            break
        value = figure(middle)
        if value is None:
            bad = middle
        else:
            good, found = middle, value
    return good, found


def _first(
    knob: Knob, figure: Figure, goal: float, end: float, at_end: float
) -> tuple[float, float]:
    """The value nearest to the parameter's own that reaches the goal, and the figure there.

    Values for which there is no chip are taken not to reach it.
    """
    near, far, at_far = knob.value, end, at_end
    for _ in range(STEPS):
        enough = RELATIVE * abs(knob.value)
        if abs(far - near) <= (max(1.0, enough) if knob.integer else enough):
            break
        middle = (near + far) / 2
        middle = middle // 1 if knob.integer else middle
        value = figure(middle)
        if value is not None and (at_end - goal) * (value - goal) >= 0:
            far, at_far = middle, value
        else:
            near = middle
    return far, at_far


def together(reaches: Iterable[Reach], goal: float) -> dict[str, float]:
    """Each parameter at the end of its range that brings the figure nearest to the goal.

    Those that only lead away from it stay where they are.
    """
    best = ((one.knob.name, one.best(goal)) for one in reaches)
    return {name: end[0] for name, end in best if end is not None}
