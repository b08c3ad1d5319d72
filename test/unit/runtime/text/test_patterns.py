"""Patterns: what `re` says, in linear time; what has no machine is refused."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from intaglio.runtime.text.patterns import Pattern, UnsupportedPattern

ATOMS = st.sampled_from(["a", "b", ".", r"\.", "[ab]", "[^a]", r"\d", r"\W", "[b-d0]", "^", "$"])


def grown(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    some = st.lists(inner, min_size=1, max_size=3)
    ends = st.sampled_from(["*", "+", "?", "{0,2}", "{2}", "{1,}", "*?"])
    return st.one_of(
        some.map("".join),
        some.map(lambda parts: f"({'|'.join(parts)})"),
        st.tuples(inner, ends).map(lambda both: f"(?:{both[0]}){both[1]}"),
    )


@settings(max_examples=150, deadline=None)
@given(st.recursive(ATOMS, grown, max_leaves=6), st.text("ab.0", max_size=6))
def test_as_python_matches(text: str, name: str):
    pattern = Pattern(text)
    assert pattern.matches(name) == (re.fullmatch(text, name) is not None)
    assert pattern.matches_start(name) == (re.match(text, name) is not None)


@pytest.mark.parametrize(
    "text", ["(a+)+$", "(a|a)*b", "(a*)*b", "(.*.*.*)*x", "a{0,40}" * 20 + "b"]
)
def test_nothing_blows_up(text: str):
    start = time.process_time()
    assert not Pattern(text).matches("a" * 400 + "!")
    assert time.process_time() - start < 10


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("(a", "no regular expression"),
        ("*", "no regular expression"),
        (r"(a)\1", "references to groups"),
        ("(?=a)b", "looking ahead or back"),
        ("(?<!a)b", "looking ahead or back"),
        (r"\ba", "word boundaries"),
        ("(?i)a", "flags are not supported"),
        ("a" * 1001, "1001 characters, at most 1000"),
        ("((a{1000}){1000}){1000}", "more than 10000 states"),
        ("(" * 499 + ")" * 499, "nested too deeply"),
    ],
)
def test_refused(text: str, message: str):
    with pytest.raises(UnsupportedPattern, match=message):
        Pattern(text)
