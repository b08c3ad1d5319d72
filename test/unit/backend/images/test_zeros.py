"""Zeros of engraved tensors, against counting weight by weight."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from intaglio.backend.images.zeros import CELL_BITS, Counter, Zeros
from intaglio.dialects.codes import container_bits, pack
from intaglio.dialects.trits import balanced, digits_of


@given(
    code=st.sampled_from([("ternary", 2), ("int2", 2), ("int3", 3), ("int4", 4), ("int8", 8)]),
    rows=st.integers(1, 9),
    columns=st.integers(1, 13),
    has_cells=st.booleans(),
    seed=st.integers(0, 99),
)
def test_matrices(
    code: tuple[str, int], rows: int, columns: int, has_cells: bool, seed: int
) -> None:
    name, bits = code
    is_ternary = name == "ternary"
    zero = 1 if is_ternary else 1 << bits - 1
    highest = 3 if is_ternary else 1 << bits
    q = np.random.default_rng(seed).integers(0, highest, (rows, columns)).astype(np.uint8)
    counter = Counter(columns, bits, zero, is_ternary, has_cells)
    packed = pack(q, container_bits(bits))
    for first in range(0, rows, 4):
        counter.add(packed[first : first + 4])
    weights = [int(value) - zero for value in q.reshape(-1)]
    cells = 1 if is_ternary else digits_of(bits)
    ones = sum(np.count_nonzero(balanced(np.array(value), cells)) for value in weights)
    stored = rows * columns * cells * CELL_BITS if has_cells else 0
    zero_bits = stored - ones if has_cells else 0
    assert counter.zeros == Zeros(rows * columns, weights.count(0), stored, zero_bits)


@pytest.mark.parametrize("has_cells", [False, True])
@pytest.mark.parametrize(("bits", "cells"), [(16, 11), (32, 21)])
def test_dense_tables(has_cells: bool, bits: int, cells: int) -> None:
    counter = Counter(3, bits, None, False, has_cells)
    counter.add(np.array([[0, 1, -1], [0, 3, 256]], np.int16 if bits == 16 else np.int32))
    # 256 is 243 + 9 + 3 + 1.
    ones = 0 + 1 + 1 + 0 + 1 + 4
    expected = Zeros(6, 2, 6 * cells * 2, 6 * cells * 2 - ones) if has_cells else Zeros(6, 2)
    assert counter.zeros == expected
