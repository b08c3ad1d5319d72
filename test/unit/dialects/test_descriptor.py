"""Descriptors: words of fields and back, and what does not fit."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from intaglio.dialects.descriptor import Field, Fields
from intaglio.dialects.errors import CompilerBug, UserError

FIELDS = Fields(
    (
        Field("wake", 1, "1: switch on"),
        Field("domain", 3),
        Field("places", 12, "places to shift by", signed=True),
        Field("row", 20),
    )
)
VALUES = {"wake": 1, "domain": 5, "places": -7, "row": 1 << 19}


@st.composite
def filled(draw: st.DrawFn) -> tuple[Fields, dict[str, int]]:
    widths = draw(st.lists(st.tuples(st.integers(1, 70), st.booleans()), max_size=12))
    fields = Fields(Field(f"f{i}", width, signed=s) for i, (width, s) in enumerate(widths))
    values = {
        one.name: draw(st.sampled_from([one.range[0], one.range[-1]]))
        if draw(st.booleans())
        else draw(st.integers(one.range[0], one.range[-1]))
        for one in fields.fields
    }
    return fields, values


@given(filled())
def test_a_word_gives_its_values_back(one: tuple[Fields, dict[str, int]]) -> None:
    fields, values = one
    word = fields.pack(values)
    assert 0 <= word < 1 << fields.width
    assert fields.unpack(word) == values
    # Slowly: field after field, bit after bit.
    bits = [value >> i & 1 for name, value in values.items() for i in range(fields[name])]
    assert word == sum(bit << i for i, bit in enumerate(bits))


def test_widths_by_name() -> None:
    assert dict(FIELDS) == {"wake": 1, "domain": 3, "places": 12, "row": 20}
    assert FIELDS.width == 36
    assert Fields(()).width == 1
    assert FIELDS.pack(VALUES) == 1 | 5 << 1 | (4096 - 7) << 4 | 1 << 35
    with pytest.raises(CompilerBug, match="one name"):
        Fields((Field("a", 1), Field("b", 1), Field("a", 2)))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"wake": 2}, "2 does not fit the 1 bits of 'wake' (1: switch on)"),
        ({"domain": -1}, "-1 does not fit the 3 bits of 'domain'"),
        ({"places": 2048}, "2048 does not fit the 12 signed bits of 'places'"),
        ({"places": -2049, "row": 1 << 20}, "'places' (places to shift by); 1048576 does not fit"),
    ],
)
def test_numbers_that_do_not_fit(change: dict[str, int], said: str) -> None:
    """One kind of error for all units; it names the node where that is known."""
    with pytest.raises(UserError) as error:
        FIELDS.checked({**VALUES, **change}, "wake", "the_node")
    assert str(error.value).startswith("node 'the_node' (wake): the hardware cannot encode wake")
    assert said in str(error.value)
    with pytest.raises(CompilerBug):
        FIELDS.pack({**VALUES, **change})


def test_fields_that_are_missing_or_unknown() -> None:
    assert FIELDS.checked(dict(reversed(VALUES.items())), "wake") == VALUES
    less = {name: value for name, value in VALUES.items() if name != "row"}
    with pytest.raises(CompilerBug, match="field 'row' is missing"):
        FIELDS.checked(less, "wake")
    with pytest.raises(CompilerBug, match="there is no field 'rows'"):
        FIELDS.checked({**less, "rows": 3}, "wake")
    assert FIELDS.pack(less) == FIELDS.pack({**VALUES, "row": 0})
