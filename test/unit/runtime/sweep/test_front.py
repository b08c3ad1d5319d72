"""Objectives and the front."""

import numpy as np
import pytest

from intaglio.dialects.errors import UserError
from intaglio.runtime.sweep.front import check_objective, front, objectives_of

NAMES = ["tokens_per_second@7", "mm2"]


def row(speed, area, **more):
    return {"key": f"{speed}", "figures": {"tokens_per_second@7": speed, "mm2": area, **more}}


def test_only_what_nothing_is_better_than():
    rows = [row(10, 5), row(20, 9), row(15, 9), row(9, 5), row(20, 9), row(30, None)]
    assert front(rows, NAMES) == [1, 4, 0]
    assert front(rows, ["mm2"]) == [0, 3]
    assert front(rows, []) == []


def test_against_every_pair():
    rng = np.random.default_rng(3)
    rows = [row(*map(float, pair)) for pair in rng.integers(0, 12, (80, 2))]
    kept = set(front(rows, NAMES))
    for number, one in enumerate(rows):
        speed, area = one["figures"]["tokens_per_second@7"], one["figures"]["mm2"]
        beaten = any(
            (other := two["figures"])["tokens_per_second@7"] >= speed
            and other["mm2"] <= area
            and (other["tokens_per_second@7"], other["mm2"]) != (speed, area)
            for two in rows
        )
        assert (number in kept) != beaten


def test_objectives():
    rows = [row(1, 2, **{"tokens_per_second@0": 3.0, "millijoules@7": None})]
    # The last position; what no point states is none.
    assert objectives_of(rows, []) == ["tokens_per_second@0", "mm2"]
    assert objectives_of(rows, ["mm2", "tokens_per_second@7"]) == ["mm2", "tokens_per_second@7"]
    with pytest.raises(UserError, match="no such figure"):
        objectives_of(rows, ["perplexity"])
    with pytest.raises(UserError, match="did you mean"):
        objectives_of(rows, ["mm3"])
    with pytest.raises(UserError, match="no figure of a point"):
        check_objective("mm2@3")
