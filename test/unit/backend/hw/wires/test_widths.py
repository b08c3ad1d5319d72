"""How many wires a number takes."""

from __future__ import annotations

import pytest

from intaglio.backend.hw.wires.widths import choice_bits, index_bits, log2
from intaglio.dialects.errors import CompilerBug


def test_every_number_below_a_count_fits() -> None:
    for count in range(1, 70):
        fewest = next(bits for bits in range(8) if 2**bits >= count)
        assert choice_bits(count) == fewest
        assert index_bits(count) == max(1, fewest)


def test_logarithms_are_of_powers_of_two() -> None:
    assert [log2(1 << n) for n in range(40)] == list(range(40))
    for wrong in (0, 3, 6, -2):
        with pytest.raises(CompilerBug, match="no power of two"):
            log2(wrong)
