"""The host's choice of tokens: its probabilities, its limits, the same draws each time."""

from __future__ import annotations

import numpy as np
import pytest

from intaglio.dialects.errors import UserError
from intaglio.runtime.text.sampling import Sampler

LOGITS = np.array([1.0, 3.0, 2.0, 3.0, -50.0], np.float32)


def draws(sampler: Sampler, count: int = 4000) -> np.ndarray:
    return np.bincount([sampler.choose(LOGITS) for _ in range(count)], minlength=5) / count


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_probabilities(temperature: float):
    weights = np.exp(LOGITS / temperature)
    np.testing.assert_allclose(draws(Sampler(temperature)), weights / weights.sum(), atol=0.03)


def test_top_k():
    # Of two equal logits the lower id counts as larger.
    assert set(np.flatnonzero(draws(Sampler(1.0, 1), 50))) == {1}
    assert set(np.flatnonzero(draws(Sampler(1.0, 2)))) == {1, 3}
    assert set(np.flatnonzero(draws(Sampler(5.0, 3)))) == {1, 2, 3}
    assert set(np.flatnonzero(draws(Sampler(1.0, 99)))) == {0, 1, 2, 3}


def test_top_p():
    """The likeliest of 1/2, 1/4, 1/4 that reach the share, at least one."""
    weights = np.log(np.array([0.25, 0.5, 0.25], np.float32))
    for top_p, expected in ((0, {1}), (0.5, {1}), (0.51, {0, 1}), (0.75, {0, 1}), (0.8, {0, 1, 2})):
        sampler = Sampler(1.0, top_p=top_p)
        assert {sampler.choose(weights) for _ in range(200)} == expected
    assert {Sampler(1.0, 1, seed, top_p=0.9).choose(LOGITS) for seed in range(9)} == {1}


@pytest.mark.parametrize("temperature", [0.0, 1e-300, 1e-3])
def test_cold_is_greedy(temperature: float):
    assert Sampler(temperature, 1).choose(LOGITS) == 1
    assert Sampler(temperature).choose(np.array([0, 5, 4], np.float32)) == 1


def test_seeds():
    first, again, other = (
        [s.choose(LOGITS) for _ in range(40)]
        for s in (Sampler(1.0, seed=5), Sampler(1.0, seed=5), Sampler(1.0, seed=6))
    )
    assert first == again != other


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((-0.1,), "temperature -0.1: not a number from 0 on"),
        ((float("nan"),), "temperature nan"),
        ((float("inf"),), "temperature inf"),
        ((1.0, 0), "top-k 0"),
        ((1.0, None, -1), "seed -1"),
    ],
)
def test_wrong_numbers(options: tuple, message: str):
    with pytest.raises(UserError, match=message):
        Sampler(*options)
