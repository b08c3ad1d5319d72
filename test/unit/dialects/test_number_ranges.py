"""Sets of numbers as texts, against Python's own."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from intaglio.dialects.number_ranges import MOST, ranges_text, read_ranges


@given(st.sets(st.integers(0, 40) | st.integers(0, MOST - 1), max_size=30))
def test_there_and_back(numbers: set[int]) -> None:
    text = ranges_text(numbers)
    assert read_ranges(text) == numbers
    assert "," not in text or len(text.split(",")) == sum(n - 1 not in numbers for n in numbers)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("3,", "is no list"),
        ("-3", "is no list"),
        ("3 4", "is no list"),
        ("٣", "is no list"),
        ("7-3", "'7-3' ends before it begins"),
        ("0-1048576", "is beyond 1048575"),
        ("9" * 5000, "is beyond 1048575"),
    ],
)
def test_refused(text: str, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        read_ranges(text)
