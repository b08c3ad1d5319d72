"""Balanced ternary digits against the numbers that they stand for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from intaglio.backend.target.target import load_target
from intaglio.dialects.tiling import MatrixShape
from intaglio.dialects.trits import WIDTHS, balanced, digits_of, largest, widest


@pytest.mark.parametrize("bits", WIDTHS)
def test_every_code_has_its_digits(bits: int):
    values = np.arange(-(1 << bits - 1), 1 << bits - 1)
    digits = balanced(values, digits_of(bits))
    assert set(np.unique(digits)) == {-1, 0, 1}
    powers = 3 ** np.arange(len(digits), dtype=np.int64)[:, None]
    assert ((digits * powers).sum(axis=0) == values).all()
    with pytest.raises(ValueError, match="more than"):
        balanced(values, digits_of(bits) - 1)


def test_fewest_cells():
    assert {bits: digits_of(bits) for bits in WIDTHS} == {2: 2, 3: 2, 4: 3, 6: 4, 8: 6, 16: 11}
    assert [widest(digits_of(bits)) for bits in WIDTHS] == [3, 3, 4, 6, 8, 16]
    assert widest(1) == 2


@given(st.integers(1, 20), st.data())
def test_numbers_of_any_length(digits: int, data: st.DataObject):
    value = data.draw(st.integers(-largest(digits), largest(digits)))
    found = balanced(np.array(value), digits)
    assert sum(int(d) * 3**p for p, d in enumerate(found)) == value
    assert (balanced(np.array(-value), digits) == -found).all()


def test_cells_of_a_matrix():
    """A code takes as many planes as it has digits on ternary cells, else by bits."""
    for bits, cells, planes in ((2, 2, 1), (4, 3, 2), (6, 4, 3), (8, 6, 4)):
        shape = MatrixShape(5, 7, 7, bits, 16)
        assert shape.planes(load_target("tom").machine()) == cells
        assert shape.planes(load_target("roma").machine()) == planes
    assert MatrixShape(5, 7, 7, 2, 0, ternary=True).planes(load_target("bitrom").machine()) == 1
