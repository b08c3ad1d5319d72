"""Ternary matrices fitted to the product of a float adapter."""

from __future__ import annotations

import numpy as np
import pytest

from intaglio.backend.images.adapter import encode_site, floats, product_error
from intaglio.backend.images.ternary_adapter import absmean, fitted


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def error(a: np.ndarray, b: np.ndarray, rank: int) -> float:
    u, d, t, s = fitted(a, b, rank)
    assert u.shape == (rank, a.shape[1]) and t.shape == (len(b), rank)
    assert set(np.unique(u)) <= {-1, 0, 1} and set(np.unique(t)) <= {-1, 0, 1}
    assert (d >= 0).all() and (s >= 0).all()
    found = product_error(a, b, d[:, None] * u, s[:, None] * t)
    product = b @ a
    direct = np.linalg.norm((s[:, None] * t * d) @ u - product) / np.linalg.norm(product)
    assert found == pytest.approx(direct, rel=1e-6)
    return found


@pytest.mark.parametrize(("rank", "k", "n"), [(4, 48, 32), (8, 24, 96), (16, 64, 64)])
def test_loses_less_than_each_matrix_for_itself(rank: int, k: int, n: int):
    a, b = random(rank, k), random(n, rank, seed=1)
    (u, d), (t, s) = absmean(a), absmean(b)
    plain = product_error(a, b, d[:, None] * u, s[:, None] * t)
    assert error(a, b, rank) < plain * 0.95


def test_more_rows_lose_less():
    a, b = random(6, 64), random(80, 6, seed=1)
    losses = [error(a, b, rank) for rank in (6, 12, 24)]
    assert losses[1] < losses[0] * 0.75 and losses[2] < losses[1] * 0.75


def test_is_the_same_again():
    a, b = random(6, 40), random(30, 6, seed=1)
    for one, other in zip(fitted(a, b, 12), fitted(a, b, 12), strict=True):
        np.testing.assert_array_equal(one, other)


def test_rows_and_columns_of_zeros():
    a, b = random(4, 24), random(20, 4, seed=1)
    a[:, 3] = a[1] = 0
    b[5] = b[:, 2] = 0
    for rank in (4, 8):
        assert error(a, b, rank) < 0.6
        u, d, t, s = fitted(a, b, rank)
        np.testing.assert_array_equal(((s[:, None] * t * d) @ u)[5], 0)
    assert encode_site(a, b * 0, "ternary", 8).loss == 0


def test_sites_take_the_rows_of_their_slots():
    a, b = random(4, 48), random(40, 4, seed=1)
    losses = [encode_site(a, b, "ternary", rank).loss for rank in (None, 4, 8, 16)]
    assert losses[0] == losses[1] and losses[3] < losses[2] < losses[1]
    assert [encode_site(a, b, "ternary", rank).rank for rank in (4, 16)] == [4, 16]
    # Other formats keep the adapter's rank.
    assert encode_site(a, b, "fp8", 16).rank == encode_site(a, b, "int6", 16).rank == 4


def test_adapters_that_were_trained_ternary_stay():
    u, t = (np.random.default_rng(i).integers(-1, 2, size) for i, size in enumerate([(4, 40)] * 2))
    a, b = 0.03 * u, 0.5 * t.T
    site = encode_site(a, b, "ternary", 16)
    assert site.rank == 4 and site.loss < 1e-3
    np.testing.assert_array_equal(np.sign(floats(site.a)), u)
    np.testing.assert_array_equal(np.sign(floats(site.b)), t.T)
