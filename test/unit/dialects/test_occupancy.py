"""Claims on the units of a chip: overlaps are those that an enumeration of every address finds."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from intaglio.dialects.occupancy import Claim, first_overlap

UNITS = 5
claims = st.lists(
    st.builds(
        Claim,
        name=st.sampled_from("abc"),
        first_unit=st.integers(0, UNITS - 1),
        units=st.integers(1, UNITS),
        first=st.integers(-2, 12),
        size=st.integers(0, 4),
    ),
    max_size=6,
)


def addresses(one: Claim) -> set[tuple[int, int]]:
    """Every unit of the chip with every address that a claim takes there."""
    return {
        (unit, address)
        for unit in range(one.first_unit, min(one.first_unit + one.units, UNITS))
        for address in range(one.first, one.first + one.size)
    }


@given(claims)
def test_an_overlap_is_found_where_there_is_one(found: list[Claim]) -> None:
    taken = [addresses(one) for one in found]
    shared = sum(map(len, taken)) > len(set[tuple[int, int]]().union(*taken))
    pair = first_overlap(found, UNITS)
    assert (pair is not None) == shared
    if pair is not None:
        assert addresses(pair[0]) & addresses(pair[1])
        assert pair[0].first <= pair[1].first


def test_many_claims_take_time_in_proportion() -> None:
    """So many pairs could not be compared one by one in a test."""
    many = [Claim(str(n), 0, 256, 3 * n, 3) for n in range(20_000)]
    assert first_overlap(many, 256) is None
    last = Claim("last", 255, 1, 3 * 20_000 - 1, 1)
    assert first_overlap([*many, last], 256) == (many[-1], last)
