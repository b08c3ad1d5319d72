"""Guided search of a grid: Optuna proposes points, by what was found of those before.

The same seed proposes the same points, whoever evaluates them and whether or not a sweep was
stopped in between: the sampler is seeded anew for each trial, batches have a fixed size and are
told in the order of their trials. So a sweep that goes on proposes all from the beginning again,
and finds what was evaluated in the record.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module

from intaglio.dialects.errors import UserError
from intaglio.runtime.sweep.evaluate import figure_of
from intaglio.runtime.sweep.points import Point, grid_size
from intaglio.runtime.sweep.rows import Module, Row

BATCH = 4
NEEDS = "pip install 'intaglio[search]'"
_REPEATS = 20
"""Proposals for each point that is wanted, after which what is left of the grid is not found."""

Evaluate = Callable[[Sequence[Point]], Sequence[Row]]
"""Gives the rows of points, in their order."""


def check_installed() -> None:
    """Whether there is a sampler.

    Raises:
        UserError: there is none.
    """
    if importlib.util.find_spec("optuna") is None:
        raise UserError("--search needs Optuna, which is not installed", hint=NEEDS)


def search(
    vary: Mapping[str, Sequence[str]],
    objectives: Sequence[str],
    wanted: int,
    seed: int,
    evaluate: Evaluate,
) -> list[Point]:
    """The points of a grid that a sampler chose.

    Args:
        vary: what is varied, with its values in the order in which neighbours are alike.
        objectives: names of figures, with positions.
        wanted: distinct points, at most.
        seed: of the sampler.
        evaluate: asked for a batch at a time.
    """
    optuna: Module = import_module("optuna")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    wanted = min(wanted, grid_size(vary))
    kinds = [figure_of(name) for name in objectives]
    directions = ["maximize" if one and one.best > 0 else "minimize" for one in kinds]
    study = optuna.create_study(directions=directions)
    # Places in the list of values, which keep their order.
    space = {
        key: optuna.distributions.IntDistribution(0, len(values) - 1)
        for key, values in vary.items()
    }
    found: dict[Point, None] = {}
    for _ in range(_REPEATS * -(-wanted // BATCH)):
        if len(found) >= wanted:
            break
        batch: list[tuple[Module, Point]] = []
        for _ in range(BATCH):
            with warnings.catch_warnings():
                # Of options that are stable enough to be repeated, which the tests watch.
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                study.sampler = optuna.samplers.TPESampler(
                    seed=seed + len(study.trials),
                    multivariate=True,
                    constant_liar=True,
                )
            trial = study.ask(space)
            point = tuple((key, values[int(trial.params[key])]) for key, values in vary.items())
            batch.append((trial, point))
        fresh = [point for _, point in batch]
        rows = evaluate(fresh)
        found |= dict.fromkeys(fresh)
        for (trial, _), row in zip(batch, rows, strict=True):
            values = [row.get("figures", {}).get(name) for name in objectives]
            fits = row.get("fits", False) and None not in values
            trial.set_constraint("fits", 0.0 if fits else 1.0)
            # Of what does not fit only that it does not is looked at.
            study.tell(trial, [float(one) if fits else 0.0 for one in values])
    return list(found)[:wanted]
