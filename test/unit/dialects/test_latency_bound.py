"""The latency bound against words issued one by one, and its rule against enumeration."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from intaglio.dialects.errors import UserError
from intaglio.dialects.formula import TOKENS, ceildiv, constant
from intaglio.dialects.json_file import JSONFile, as_json
from intaglio.dialects.latency_bound import Chain, Product, largest_overlaps, read_chain

SHORT = settings(max_examples=60, deadline=None)


def chain(work: list[float], latencies: list[int], *, own_lanes: bool = False) -> Chain:
    start, *after = map(constant, latencies)
    segments = tuple(((Product(w, one),),) for w, one in zip(work, after, strict=True))
    return Chain(start, segments, constant(3), own_lanes)


def test_by_hand():
    # A layer of ROMA at position 0: Q, K, V; O; gate and up; down.
    work, latencies = [60.0, 36.0, 192.0, 96.0], [246, 74, 77, 74]
    found = chain(work * 28, [75, *latencies * 28]).at(1)
    # The first Q, K, V cannot begin early.
    assert list(largest_overlaps(work * 2, [75, *latencies * 2]))[:5] == [0, 36, 0, 77, 19]
    assert found.overlap == 36 + 77 + 27 * (19 + 36 + 77)
    assert found.cycles == 75 + 28 * (384 + 471) - found.overlap
    assert found.work == 28 * 384 and found.latencies == 75 + 28 * 471


@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 5)), min_size=1, max_size=5),
    st.booleans(),
)
@SHORT
def test_overlaps_are_the_largest(pairs: list[tuple[int, int]], own_lanes: bool):
    work, latencies = [w for w, _ in pairs], [0, *(one for _, one in pairs)]

    def allowed(early: tuple[int, ...]) -> bool:
        return early[0] == 0 and all(
            p <= work[i] and p <= work[i - 1] - early[i - 1] and (own_lanes or p <= latencies[i])
            for i, p in enumerate(early)
            if i
        )

    every = itertools.product(*(range(w + 1) for w in work))
    best = max(sum(early) for early in every if allowed(early))
    assert sum(largest_overlaps(work, latencies, own_lanes=own_lanes)) == best


@given(
    st.lists(st.integers(1, 4), min_size=2, max_size=6),
    st.lists(st.integers(0, 9), min_size=6, max_size=6),
    st.booleans(),
    st.integers(0, 2**32),
)
@SHORT
def test_no_order_of_words_is_faster(
    sizes: list[int], latencies: list[int], own_lanes: bool, seed: int
):
    """Dense products of one word a weight, a word a cycle, in random orders."""
    rng = random.Random(seed)
    products = list(itertools.pairwise(sizes))
    latencies = latencies[: len(products) + 1]
    bound = chain([float(k * n) for k, n in products], latencies, own_lanes=own_lanes).at(1)
    for policy in ("any", "oldest", "columns"):
        there = [[latencies[0]] * products[0][0], *([None] * n for _, n in products)]
        left = [{(r, k) for r in range(n) for k in range(c)} for c, n in products]
        cycle = 0
        while any(left):
            busy = False
            for i, words in enumerate(left):
                ready = [w for w in words if (at := there[i][w[1]]) is not None and at <= cycle]
                if not ready or (busy and not own_lanes):
                    continue
                if policy == "any" and rng.random() < 0.3:
                    continue
                order = (lambda w: (w[1], w[0])) if policy == "columns" else (lambda w: w)
                row, column = rng.choice(ready) if policy == "any" else min(ready, key=order)
                words.discard((row, column))
                busy = True
                if not any(r == row for r, _ in words):
                    there[i + 1][row] = cycle + 1 + latencies[i + 1]
            cycle += 1
        end = max(at for at in there[-1] if at is not None)
        assert end >= bound.cycles, policy


@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), min_size=1, max_size=6),
    st.integers(0, 6),
    st.integers(0, 9),
    st.booleans(),
)
@SHORT
def test_longer_latencies_are_never_faster(
    pairs: list[tuple[int, int]], which: int, more: int, own_lanes: bool
):
    work, latencies = [float(w) for w, _ in pairs], [4, *(one for _, one in pairs)]
    slower = list(latencies)
    slower[which % len(slower)] += more
    fast = chain(work, latencies, own_lanes=own_lanes).at(1)
    slow = chain(work, slower, own_lanes=own_lanes).at(1)
    assert fast.exact <= slow.exact <= fast.exact + more


def test_ways_and_parts():
    one = Product(10.5, constant(4))
    beside = (Product(30.0, constant(2)),)
    longest = (Product(8.0, 20 + ceildiv(TOKENS, 4)), Product(6.0, constant(2)))
    head = Product(5.0, constant(9), constant(3))
    whole = Chain(constant(7), (((one,),), (beside, longest), ((head,),)), constant(2))
    # Ten cycles and a half, four to the next, of which its work takes all.
    assert whole.at(1).exact == 7 + (10.5 + 4) + (8 + 21) + (6 + 2) + (5 + 9 + 3) - 4 - 4 - 2
    assert whole.at(1).cycles == 66
    assert whole.at(1, head=False).exact == 7 + (10.5 + 4) + (8 + 21) + (6 + 2) - 4 - 4
    # Without the attention in between all products are what takes longest.
    short = Chain(constant(7), (((one,),), (beside, longest[1:])), constant(2))
    assert short.at(1).exact == 7 + 14.5 + 32 - 4
    assert Chain(constant(12), (), constant(0)).at(1).cycles == 12


def test_content():
    layer = (((Product(1.5, 3 + ceildiv(TOKENS, 8), constant(1)),), (Product(2.0, constant(4)),)),)
    head = ((Product(5.0, constant(9)),),)
    whole = Chain(constant(7), (*layer * 5, head), constant(2), own_lanes=True)
    content = whole.content()
    assert len(content["segments"]) == 2 and content["order"] == [0, 0, 0, 0, 0, 1]
    assert read_chain(JSONFile(as_json(content), "manifest.json")) == whole


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("order", [0, 3], "names segment 3 of 1"),
        ("start", "3 +", "not a formula"),
        ("own_lanes", 1, "own_lanes"),
        ("segments", [[[{"work": "x"}]]], "work"),
    ],
)
def test_damaged_content(key: str, value: object, expected: str):
    content = {**chain([1.0], [0, 0]).content(), key: value}
    with pytest.raises(UserError, match=expected):
        read_chain(JSONFile(as_json(content), "manifest.json"))
