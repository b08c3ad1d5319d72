"""Scales that weights use, against an enumeration of all groups."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from intaglio.dialects.codes import container_bits, pack
from intaglio.dialects.rom import WEIGHT_CODES
from intaglio.lowering.step.used_scales import Uses, largest_used_scale


@dataclass(eq=False)
class Whole:
    """A matrix in memory; counts the rows of codes that are read."""

    codes: np.ndarray
    stored_scales: np.ndarray
    points: np.ndarray | None
    code: str
    read: int = field(default=0)

    @property
    def dims(self) -> tuple[int, ...]:
        return self.codes.shape

    def packed_rows(self, r0: int, r1: int) -> np.ndarray:
        self.read += r1 - r0
        return pack(self.codes[r0:r1], container_bits(WEIGHT_CODES[self.code]))

    def scales(self, r0: int, r1: int) -> np.ndarray:
        return self.stored_scales[r0:r1].copy()

    def zeros(self, r0: int, r1: int) -> np.ndarray | None:
        return None if self.points is None else self.points[r0:r1]

    def real_zeros(self, r0: int, r1: int) -> np.ndarray | None:
        return None

    def values(self, r0: int, r1: int) -> Any:
        raise AssertionError


def matrix(
    rng: np.random.Generator, n: int, k: int, group: int, code: str, dead: float, points: bool
) -> tuple[Whole, np.ndarray]:
    """Random codes, a share of whose groups is all zero points; and which are used, [N, G]."""
    limit = 3 if code == "ternary" else 1 << WEIGHT_CODES[code]
    groups = -(-k // group)
    codes = rng.integers(0, limit, (n, k)).astype(np.uint8)
    zeros = rng.integers(0, limit, (n, groups)) if points else np.full((n, groups), limit // 2)
    index = np.arange(k) // group
    zero = zeros.astype(np.uint8)[:, index]
    off = (rng.random((n, groups)) < dead)[:, index]
    codes[off] = zero[off]
    used = np.zeros((n, groups), bool)
    for row in range(n):
        for column in range(k):
            used[row, column // group] |= codes[row, column] != zero[row, column]
    scales = rng.lognormal(size=(n, groups)).astype(np.float32) * rng.choice([-1, 1], (n, groups))
    found = Whole(
        codes, scales.astype(np.float32), zeros.astype(np.uint8) if points else None, code
    )
    return found, used


@pytest.mark.parametrize("code", ["ternary", "int2", "int3", "int4", "int6", "int8"])
@pytest.mark.parametrize("dead", [0.0, 0.1, 0.95, 1.0])
@pytest.mark.parametrize("points", [False, True])
@pytest.mark.parametrize(("n", "k", "group"), [(9, 45, 16), (150, 32, 32), (7, 5, 2)])
def test_the_largest_is_of_a_used_group(
    code: str, dead: float, points: bool, n: int, k: int, group: int
) -> None:
    source, used = matrix(np.random.default_rng(n), n, k, group, code, dead, points)
    source.stored_scales[~used] *= np.float32(1e3)
    zero = None if points else (3 if code == "ternary" else 1 << WEIGHT_CODES[code]) // 2
    uses = Uses(source, group, zero)
    assert np.array_equal(uses.of_rows(0, n), used)
    size = np.abs(source.stored_scales)
    expected = float(size[used].max(initial=0.0))
    assert largest_used_scale(uses, float(size.max())) == expected

    kept = uses.clear_unused(size.copy(), 0, 0.5)
    assert np.array_equal(kept, np.where(~used & (size > 0.5), 0, size))
    for above in (0.0, expected / 2, expected):
        found = uses.largest(size[2:].copy(), 2, above)
        rest = np.where(used, size, 0)[2:]
        if rest.max(initial=0.0) <= above:
            assert found is None
        else:
            value, row, place = found  # pyright: ignore[reportGeneralTypeIssues]
            assert value == rest.max() == size[row, place] and used[row, place]


def test_codes_are_read_where_something_hangs_on_them() -> None:
    """One row where the largest scale is used; a block where a loss is noteworthy."""
    source, used = matrix(np.random.default_rng(1), 640, 64, 16, "int4", 0.0, points=False)
    uses = Uses(source, 16, 8)
    peak = float(np.abs(source.stored_scales).max())
    assert used.all() and largest_used_scale(uses, peak) == peak and source.read == 1
    uses.clear_unused(np.zeros((640, 4)), 0, 0.01)
    assert source.read == 1
    losses = np.zeros((640, 4))
    losses[[3, 60, 300]] = 0.5
    uses.clear_unused(losses, 0, 0.01)
    assert source.read == 1 + 2 * 64
