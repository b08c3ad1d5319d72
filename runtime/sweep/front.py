"""Which points are worth a choice: those that no other one is better than in everything."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from intaglio.dialects.errors import UserError, meant
from intaglio.runtime.sweep.evaluate import FIGURES, figure_of
from intaglio.runtime.sweep.rows import Row

_DEFAULT = ("tokens_per_second", "mm2", "millijoules")
"""Objectives unless told; of those at positions the one at the last."""


def objectives_of(rows: Sequence[Row], asked: Sequence[str]) -> list[str]:
    """The names of the figures that points are judged by.

    Args:
        rows: of points that fit.
        asked: names as they were given; of a figure at positions, without one, the last is meant.

    Raises:
        UserError: there is no such figure.
    """
    known = list(dict.fromkeys(name for row in rows for name in row["figures"]))
    found: list[str] = []
    for name in asked:
        check_objective(name)
    for name in asked or _DEFAULT:
        full = [one for one in known if one == name or one.partition("@")[0] == name]
        if full:
            found.append(full[-1])
        elif asked and known:
            raise UserError(
                f"--objective {name}: the points have no such figure",
                hint="--position, --prompt and --text say what is evaluated",
            )
    # What no point states says nothing.
    return [one for one in found if any(row["figures"].get(one) is not None for row in rows)]


def check_objective(name: str) -> None:
    """Whether a name could be an objective, said before anything is evaluated.

    Raises:
        UserError: no figure has the name.
    """
    base = name.partition("@")[0]
    if base not in FIGURES or (name != base and figure_of(name) is None):
        raise UserError(
            f"--objective {name}: no figure of a point",
            hint=meant(name, list(FIGURES)) + f"figures: {', '.join(FIGURES)}",
        )


def values_of(rows: Sequence[Row], names: Sequence[str]) -> npt.NDArray[np.float64]:
    """Figures such that less is better, NaN where a point states none; float64 [rows, names]."""
    signs: list[int] = []
    for name in names:
        one = figure_of(name)
        assert one is not None
        signs.append(-one.best)
    table = [
        [np.nan if (value := row["figures"].get(name)) is None else value for name in names]
        for row in rows
    ]
    return np.array(table, np.float64).reshape(len(rows), len(names)) * np.array(signs)


def front(rows: Sequence[Row], names: Sequence[str]) -> list[int]:
    """The numbers of the rows that no other one dominates, best of the first objective first.

    A row without one of the figures is on no front; of equal rows all are.

    Args:
        rows: of points that fit.
        names: of the objectives; without any nothing is on the front.
    """
    if not names:
        return []
    values = values_of(rows, names)
    whole = np.flatnonzero(~np.isnan(values).any(axis=1))
    kept = [
        int(number)
        for number in whole
        if not (
            (values[whole] <= values[number]).all(axis=1)
            & (values[whole] < values[number]).any(axis=1)
        ).any()
    ]
    return sorted(kept, key=lambda number: tuple(values[number]))
