"""The cycle contract against a restatement that steps cycle by cycle."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from intaglio.dialects.formula import RANK, TOKENS, constant, parse
from intaglio.dialects.isa.queues import (
    ATTENTION,
    COUNTERS,
    KV,
    LEAVES,
    MATRIX,
    QUEUES,
    VECTOR,
    reductions_of,
)
from intaglio.dialects.timeline import Block, Issue, simulate


@dataclass
class Waiting:
    """An instruction instance in its queue; `waits` name instances by (queue, number)."""

    key: tuple[int, int, int]
    duration: int
    waits: list[tuple[str, int]]
    pace: int | None = None
    reduces: int | None = None
    start: int = -1
    finish: int = -1


@dataclass
class Unit:
    """A queue, and how far its unit has come."""

    instances: list[Waiting] = field(default_factory=list)
    next: int = 0


def step_by_step(
    blocks: list[Block], issue: int, position: int, ranks: dict[tuple[int, int, int], int]
) -> dict[tuple[int, int, int], tuple[int, int]]:
    """Start and finish of each instance, found by looking at every queue in every cycle."""
    units = {queue: Unit() for queue in QUEUES}
    left: dict[str, list[Waiting]] = {counter: [] for counter in LEAVES.values()}
    for b, block in enumerate(blocks):
        for i in range(block.instances):
            base = {queue: len(unit.instances) for queue, unit in units.items()}
            base |= {counter: len(done) for counter, done in left.items()}
            for n, issued in enumerate(block.issues):
                # The first instance has none of its block before it to reach back into.
                waits = [
                    (queue, base[queue] + known - 1)
                    for queue, count in issued.waits.items()
                    for known in (count if i else max(0, count),)
                    if base[queue] + known > 0
                ]
                given = {"tokens": position + 1, "rank": ranks.get((b, i, n), 0)}
                taken, pace, reduces = (
                    None if one is None else int(one(**given))
                    for one in (issued.duration, issued.pace, issued.reduces)
                )
                assert taken is not None
                one = Waiting((b, i, n), taken, waits, pace, reduces)
                units[issued.queue].instances.append(one)
                if reduces is not None:
                    left[reductions_of(issued.queue)].append(one)

    def is_done(queue: str, number: int, cycle: int, flows: bool) -> bool:
        """Whether the sequencer knows that a result is there: what flows is told ahead."""
        if queue in left:
            one = left[queue][number]
            return one.start >= 0 and one.start + (one.reduces or 0) <= cycle
        one = units[queue].instances[number]
        late = issue if flows and one.pace is None else 0
        return one.start >= 0 and one.finish + late <= cycle

    def is_free(unit: Unit, cycle: int) -> bool:
        if not unit.next:
            return True
        last = unit.instances[unit.next - 1]
        return (last.finish if last.pace is None else last.start + last.pace) <= cycle

    cycle = 0
    while any(unit.next < len(unit.instances) for unit in units.values()):
        for unit in units.values():
            if unit.next == len(unit.instances):
                continue
            one = unit.instances[unit.next]
            flows = one.pace is not None
            if flows and cycle < issue:
                continue
            ready = all(is_done(q, number, cycle, flows) for q, number in one.waits)
            if ready and is_free(unit, cycle):
                one.start = cycle if flows else cycle + issue
                one.finish = one.start + one.duration
                unit.next += 1
        cycle += 1
        assert cycle < 10_000
    return {one.key: (one.start, one.finish) for unit in units.values() for one in unit.instances}


@st.composite
def programs(draw: st.DrawFn) -> list[Block]:
    """Blocks whose instructions wait only for what is issued before them; some queues flow."""
    blocks = []
    flowing = {queue: draw(st.integers(0, 4)) for queue in draw(st.sets(st.sampled_from(QUEUES)))}
    left = draw(st.integers(0, 3))
    for number in range(draw(st.integers(1, 3))):
        issued = dict.fromkeys(COUNTERS, 0)
        issues = []
        for _ in range(draw(st.integers(1, 5))):
            queue = draw(st.sampled_from(QUEUES[:4]))
            others = draw(st.sets(st.sampled_from(COUNTERS), max_size=3))
            waits = {other: draw(st.integers(0, issued[other])) for other in others}
            base = constant(draw(st.integers(1, 6)))
            slope = draw(st.integers(0, 2))
            pace = base + slope * TOKENS + RANK
            if queue not in flowing:
                issues.append(Issue(queue, waits, pace))
            else:
                finish = pace + flowing[queue]
                reduces = finish + left if queue in LEAVES else None
                issues.append(Issue(queue, waits, finish, pace, reduces))
                issued[reductions_of(queue)] += reduces is not None
            issued[queue] += 1
        if draw(st.booleans()):
            # Some waits reach back into the instance before.
            at = draw(st.integers(0, len(issues) - 1))
            counter = draw(st.sampled_from([name for name in COUNTERS if issued[name]]))
            count = -draw(st.integers(1, issued[counter]))
            issues[at] = replace(issues[at], waits={**issues[at].waits, counter: count})
        blocks.append(Block(f"b{number}", issues, draw(st.integers(1, 3))))
    return blocks


@settings(max_examples=60, deadline=None)
@given(programs(), st.integers(1, 3), st.data())
def test_cycles_are_those_of_the_queues(
    blocks: list[Block], issue: int, data: st.DataObject
) -> None:
    positions = [0, 1, 5]
    keys = [
        (number, instance, instruction)
        for number, block in enumerate(blocks)
        for instance in range(block.instances)
        for instruction in range(len(block.issues))
    ]
    ranks = data.draw(st.dictionaries(st.sampled_from(keys), st.integers(1, 3), max_size=5))
    spans = list(simulate(blocks, issue, positions, ranks))
    for number, position in enumerate(positions):
        wanted = step_by_step(blocks, issue, position, ranks)
        found = {
            (s.block, s.instance, s.instruction): (int(s.start[number]), int(s.finish[number]))
            for s in spans
        }
        assert found == wanted


@settings(max_examples=60, deadline=None)
@given(programs(), st.integers(1, 3), st.data())
def test_nothing_that_takes_longer_makes_anything_earlier(
    blocks: list[Block], issue: int, data: st.DataObject
) -> None:
    """Neither a longer context, nor a larger rank, nor a slower instruction."""

    def finishes(of: list[Block], latency: int, ranks: dict[tuple[int, int, int], int]) -> Any:
        return np.array([s.finish for s in simulate(of, latency, [0, 1, 2, 7], ranks)])

    at = data.draw(st.integers(0, len(blocks) - 1))
    number = data.draw(st.integers(0, len(blocks[at].issues) - 1))
    more = data.draw(st.integers(1, 4))
    issues = list(blocks[at].issues)
    one = issues[number]
    issues[number] = replace(
        one,
        duration=one.duration + more,
        pace=None if one.pace is None else one.pace + more,
        reduces=None if one.reduces is None else one.reduces + more,
    )
    slower = [*blocks]
    slower[at] = replace(blocks[at], issues=issues)
    before = finishes(blocks, issue, {})
    assert (np.diff(before, axis=1) >= 0).all()
    assert (finishes(blocks, issue + 1, {}) >= before).all()
    assert (finishes(blocks, issue, {(at, 0, number): 3}) >= before).all()
    assert (finishes(slower, issue, {}) >= before).all()


def test_a_beat_starts_behind_another_whose_result_is_not_there() -> None:
    """Three beats of a pace of 2 and a latency of 10, and one that waits for the second."""
    flow = Issue("matrix", {}, constant(10), constant(2))
    waits = Issue("vector", {"matrix": 2}, constant(4), constant(1), constant(9))
    after = Issue("vector", {"reductions": 1}, constant(4), constant(1), constant(9))
    spans = list(simulate([Block("b", [flow, flow, flow, waits, after], 1)], 2, 0))
    assert [(int(s.start[0]), int(s.finish[0])) for s in spans] == [
        (2, 12),
        (4, 14),
        (6, 16),
        (14, 18),
        (23, 27),
    ]


def test_instances_come_in_program_order() -> None:
    block = Block("b", [Issue("vector", {}, constant(2)), Issue("matrix", {}, constant(1))], 2)
    order = [(s.block, s.instance, s.instruction) for s in simulate([block, block], 1, 0)]
    assert order == [(b, i, n) for b in (0, 1) for i in (0, 1) for n in (0, 1)]


def test_waits_reach_back_into_the_instance_before() -> None:
    """Of two rows of the instance before, the first is enough; the first instance knows none."""
    row = Issue("matrix", {}, constant(10), constant(2))
    block = Block("b", [Issue("vector", {"matrix": -1}, constant(3), constant(1)), row, row], 2)
    first = Block("a", [Issue("matrix", {}, constant(30), constant(30))], 1)
    starts = [(s.block, s.instance, int(s.start[0])) for s in simulate([first, block], 2, 0)]
    assert starts[1] == (1, 0, 32)
    # The rows start at 32 and 34, and their results can be read at 42 and 44.
    assert starts[4] == (1, 1, 42)


def test_wait_zero_is_all_that_was_issued_before_the_instance() -> None:
    block = Block(
        "b", [Issue("vector", {"matrix": 0}, constant(3)), Issue("matrix", {}, constant(10))], 2
    )
    spans = list(simulate([block], 1, 0))
    first_matrix, second_vector = spans[1], spans[2]
    assert int(first_matrix.finish[0]) == 11
    assert int(second_vector.start[0]) == 12


def test_a_variable_must_be_given() -> None:
    from intaglio.dialects.formula import Variable

    block = Block("b", [Issue("vector", {}, Variable("depth"))], 1)
    with pytest.raises(KeyError):
        list(simulate([block], 1, 0))


OLD_LAYER: list[tuple[str, dict[str, int], str]] = [
    (MATRIX, {}, "40"),
    (VECTOR, {MATRIX: 1}, "12 + ceildiv(tokens, 4)"),
    (VECTOR, {}, "5"),
    (MATRIX, {VECTOR: 1}, "30"),
    (ATTENTION, {VECTOR: 2, KV: 0}, "9 + 3 * ceildiv(tokens, 8)"),
    (KV, {VECTOR: 2}, "7"),
    (MATRIX, {ATTENTION: 1, VECTOR: 2}, "61"),
    (VECTOR, {MATRIX: 3, KV: 1}, "max(8, tokens)"),
]
OLD_HEAD: list[tuple[str, dict[str, int], str]] = [
    (VECTOR, {MATRIX: 0, VECTOR: 0}, "20"),
    (MATRIX, {VECTOR: 1}, "100"),
]
OLD_CYCLES = [
    ([2, 2, 2], [42, 42, 42]),
    ([44, 44, 44], [57, 59, 72]),
    ([59, 61, 74], [64, 66, 79]),
    ([59, 61, 74], [89, 91, 104]),
    ([66, 68, 81], [78, 83, 114]),
    ([66, 68, 81], [73, 75, 88]),
    ([91, 93, 116], [152, 154, 177]),
    ([154, 156, 179], [162, 166, 243]),
    ([154, 156, 179], [194, 196, 219]),
    ([196, 198, 245], [209, 213, 273]),
    ([211, 215, 275], [216, 220, 280]),
    ([211, 215, 275], [241, 245, 305]),
    ([218, 222, 282], [230, 237, 315]),
    ([218, 222, 282], [225, 229, 289]),
    ([243, 247, 317], [304, 308, 378]),
    ([306, 310, 380], [314, 320, 444]),
    ([316, 322, 446], [336, 342, 466]),
    ([338, 344, 468], [438, 444, 568]),
]
"""Starts and finishes at positions 0, 9 and 63, as they were before there were beats."""


def test_a_program_without_beats_keeps_its_cycles() -> None:
    blocks = [
        Block(name, [Issue(queue, waits, parse(takes)) for queue, waits, takes in rows], count)
        for name, rows, count in (("layer", OLD_LAYER, 2), ("head", OLD_HEAD, 1))
    ]
    found = [(s.start.tolist(), s.finish.tolist()) for s in simulate(blocks, 2, [0, 9, 63])]
    assert found == OLD_CYCLES
