"""Forms of tensors in the constant ROM."""

from __future__ import annotations

import numpy as np
import pytest

from intaglio.dialects.constant_rom import ADJACENT, APART, REPEATED, Form


@pytest.mark.parametrize("fraction", [-3, 0, 14])
def test_what_is_no_table_may_have_any_exponent(fraction: int) -> None:
    values = np.arange(1, 7)
    plain = Form().rows(values, 4, 16, fraction)
    np.testing.assert_array_equal(plain, [[1, 2, 3, 4], [5, 6, 0, 0]])
    repeated = Form(REPEATED, period=2).rows(values[:2], 4, 16, fraction)
    np.testing.assert_array_equal(repeated, [[1, 2, 1, 2]])


def test_lanes_of_a_table_that_do_not_turn_hold_one() -> None:
    values = np.array([[3], [5]])
    found = Form(ADJACENT, period=4).rows(values, 4, 16, 14)
    np.testing.assert_array_equal(found, [[3, 3, 1 << 14, 1 << 14], [5, 5, 1 << 14, 1 << 14]])


@pytest.mark.parametrize(("columns", "rows"), [(3, 1), (4, 1), (5, 2)])
def test_biases_of_each_expert_begin_in_a_row(columns: int, rows: int) -> None:
    values = np.arange(1, 2 * columns + 1).reshape(2, columns)
    form = Form(APART)
    found = form.rows(values, 4, 16, 14)
    assert form.depth(values.shape, 4, 1) == len(found) == 2 * rows
    assert form.position_rows(columns, 4) == rows
    for expert, biases in enumerate(values):
        mine = found[expert * rows : (expert + 1) * rows].reshape(-1)
        assert mine[:columns].tolist() == biases.tolist() and not mine[columns:].any()
