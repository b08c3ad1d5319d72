"""List schedules: orders that may be taken, and the one of them that takes the fewest cycles."""

from __future__ import annotations

from itertools import pairwise, permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from intaglio.lowering.schedule import list_schedule
from intaglio.lowering.schedule.list_schedule import Beats, Cycles

QUEUES = ("a", "b", "c")


def made(
    queues: list[str],
    needs: list[list[int]],
    *,
    passes: list[tuple[int, int]] | None = None,
    reduces: list[bool] | None = None,
) -> Beats:
    needed: list[list[int]] = [[] for _ in queues]
    for number, own in enumerate(needs):
        for other in own:
            needed[other].append(number)
    passes = passes or [(number, 0) for number in range(len(queues))]
    reduces = reduces or [False] * len(queues)
    closes = [one not in passes[number + 1 :] for number, one in enumerate(passes)]
    return Beats(queues, passes, reduces, closes, needs, needed)


def cycles_of(
    beats: Beats, paces: list[int], durations: list[int], released: list[int] | None = None
) -> Cycles:
    """All results are waited for."""
    delays = [[durations[other] for other in own] for own in beats.needs]
    return Cycles(paces, durations, delays, released or [0] * len(paces))


def length(beats: Beats, cycles: Cycles, order: list[int]) -> int:
    starts = list_schedule.starts_of(beats, cycles, order)
    return max(start + one for start, one in zip(starts, cycles.durations, strict=True))


@st.composite
def blocks(draw: st.DrawFn) -> tuple[Beats, list[Cycles]]:
    """Beats of some instructions, a pass each, of which those that reduce do row by row."""
    queues: list[str] = []
    needs: list[list[int]] = []
    passes: list[tuple[int, int]] = []
    reduces: list[bool] = []
    for number in range(draw(st.integers(1, 6))):
        queue, reducing = draw(st.sampled_from(QUEUES)), draw(st.booleans())
        before = range(len(queues))
        rows = draw(st.integers(1, 3))
        for row in range(rows):
            own = draw(st.sets(st.sampled_from(before), max_size=3)) if before else set[int]()
            if row and reducing:
                # Whoever opened a group need not wait for others to close theirs.
                own = {len(queues) - 1}
            needs.append(sorted(own))
            queues.append(queue)
            passes.append((number, 0))
            reduces.append(reducing)
    beats = made(queues, needs, passes=passes, reduces=reduces)
    numbers = st.integers(1, 9)
    positions: list[Cycles] = []
    for _ in range(draw(st.integers(1, 3))):
        paces = [draw(numbers) for _ in queues]
        durations = [pace + draw(numbers) for pace in paces]
        released = [draw(st.sampled_from((0, 0, 5, 20))) for _ in queues]
        positions.append(cycles_of(beats, paces, durations, released))
    return beats, positions


@given(blocks())
def test_orders_may_be_taken(given_: tuple[Beats, list[Cycles]]) -> None:
    """What is needed comes before, and rows that are reduced together are not mixed with others."""
    beats, positions = given_
    order = list_schedule.best(beats, positions)
    assert sorted(order) == list(range(len(beats.queues)))
    place = {number: at for at, number in enumerate(order)}
    for number, own in enumerate(beats.needs):
        assert all(place[other] < place[number] for other in own)
    for queue in QUEUES:
        reducing = [n for n in order if beats.queues[n] == queue and beats.reduces[n]]
        seen = [beats.passes[n] for n in reducing]
        changes = sum(one != other for one, other in pairwise(seen))
        assert len(set(seen)) == (changes + 1 if seen else 0)


@given(blocks())
def test_the_best_is_no_longer_than_the_first_ones(given_: tuple[Beats, list[Cycles]]) -> None:
    beats, positions = given_

    def total(order: list[int]) -> int:
        return sum(length(beats, one, order) for one in positions)

    chosen = total(list_schedule.best(beats, positions))
    for one in positions:
        tails = list_schedule.tails(beats, one)
        assert chosen <= total(list_schedule.from_the_start(beats, one, tails))
        # A schedule from the end has room for all of a queue, one behind the other.
        ends = list_schedule.from_the_end(beats, one, [0] * len(beats.queues))
        for queue in set(beats.queues):
            own = [n for n, other in enumerate(beats.queues) if other == queue]
            later = sorted(own, key=ends.__getitem__)
            for near, far in pairwise(later):
                assert ends[far] >= ends[near] + one.paces[far]
        for number, needs in enumerate(beats.needs):
            assert ends[number] >= one.durations[number]
            assert all(ends[other] >= ends[number] + one.durations[other] for other in needs)


def test_a_beat_that_is_alone_takes_its_time() -> None:
    beats = made(["a"], [[]])
    cycles = cycles_of(beats, [2], [7])
    assert list_schedule.best(beats, [cycles]) == [0]
    assert list_schedule.tails(beats, cycles) == [7]
    assert list_schedule.from_the_end(beats, cycles, [0]) == [7]
    assert length(beats, cycles, [0]) == 7


def test_the_longest_way_goes_first() -> None:
    """Of two beats of a queue that can start, the one that more depends on."""
    beats = made(["a", "a", "b"], [[], [], [1]])
    cycles = cycles_of(beats, [3, 3, 5], [3, 3, 5])
    assert list_schedule.tails(beats, cycles) == [3, 8, 5]
    assert list_schedule.from_the_start(beats, cycles, [3, 8, 5]) == [1, 2, 0]


def test_busy_queues_count_from_the_end() -> None:
    """Three results are worked on one after the other: whoever makes them has to begin early,
    though each of them alone is no longer a way than the other beat's."""
    beats = made(["a", "a", "b", "b", "b", "c"], [[], [], [0], [0], [0], [1]])
    cycles = cycles_of(beats, [4, 4, 3, 3, 3, 4], [4, 4, 3, 3, 3, 4])
    tails = list_schedule.tails(beats, cycles)
    assert tails[:2] == [7, 8]
    distances = list_schedule.from_the_end(beats, cycles, [0] * 6)
    assert distances[0] == 13 and distances[1] == 8
    with_tails = list_schedule.from_the_start(beats, cycles, tails)
    with_distances = list_schedule.from_the_start(beats, cycles, distances)
    assert length(beats, cycles, with_tails) == 17
    assert length(beats, cycles, with_distances) == 13
    # A block that takes the same at all positions is not looked at twice.
    assert list_schedule.best(beats, [cycles]) == with_tails
    assert length(beats, cycles, list_schedule.best(beats, [cycles, cycles])) == 13


@pytest.mark.parametrize("late", [2, 20])
def test_positions_count_together(late: int) -> None:
    """An order that is a little slower at one position, and much faster at the other."""
    beats = made(["a", "a", "b", "c"], [[], [], [0], [1]])
    early = cycles_of(beats, [4, 4, 6, 5], [4, 4, 6, 5])
    other = cycles_of(beats, [4, 4, 6, late], [4, 4, 6, late])
    order = list_schedule.best(beats, [early, other])
    totals = {
        orders: sum(length(beats, one, list(orders)) for one in (early, other))
        for orders in permutations(range(4))
        if orders.index(0) < orders.index(2) and orders.index(1) < orders.index(3)
    }
    assert totals[tuple(order)] == min(totals.values())


def test_what_comes_from_before_the_block_is_taken_as_it_comes() -> None:
    """Two rows, each for a pass of its own: the second row comes late, so the first one's second
    pass goes before it."""
    beats = made(["v", "v", "v", "v"], [[], [0], [], [2]])
    cycles = cycles_of(beats, [1] * 4, [3] * 4, [0, 0, 10, 0])
    order = list_schedule.best(beats, [cycles])
    assert order == [0, 1, 2, 3]
    assert list_schedule.starts_of(beats, cycles, order) == [0, 3, 10, 13]


def test_a_queue_waits_for_what_is_wanted_more() -> None:
    """The second beat of "a" comes a cycle later than the first could start, which takes four."""
    beats = made(["a", "b", "a", "c"], [[], [], [1], [2]])
    cycles = cycles_of(beats, [4, 1, 1, 9], [4, 1, 1, 9])
    tails = list_schedule.tails(beats, cycles)
    greedy = list_schedule.from_the_start(beats, cycles, tails)
    waiting = list_schedule.from_the_start(beats, cycles, tails, patient=True)
    assert (length(beats, cycles, greedy), length(beats, cycles, waiting)) == (14, 11)
