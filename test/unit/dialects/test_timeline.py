"""The cycle contract against a restatement that steps cycle by cycle."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from intaglio.dialects.formula import RANK, TOKENS, constant
from intaglio.dialects.isa.queues import QUEUES
from intaglio.dialects.timeline import Block, Issue, simulate


@dataclass
class Waiting:
    """An instruction instance in its queue; `waits` name instances by (queue, number)."""

    key: tuple[int, int, int]
    duration: int
    waits: list[tuple[str, int]]
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
    for b, block in enumerate(blocks):
        for i in range(block.instances):
            base = {queue: len(unit.instances) for queue, unit in units.items()}
            for n, issued in enumerate(block.issues):
                waits = [
                    (queue, base[queue] + count - 1)
                    for queue, count in issued.waits.items()
                    if base[queue] + count > 0
                ]
                duration = int(issued.duration(tokens=position + 1, rank=ranks.get((b, i, n), 0)))
                units[issued.queue].instances.append(Waiting((b, i, n), duration, waits))

    def is_done(queue: str, number: int, cycle: int) -> bool:
        one = units[queue].instances[number]
        return 0 <= one.finish <= cycle

    cycle = 0
    while any(unit.next < len(unit.instances) for unit in units.values()):
        for queue, unit in units.items():
            if unit.next == len(unit.instances):
                continue
            one = unit.instances[unit.next]
            own = unit.next == 0 or is_done(queue, unit.next - 1, cycle)
            if own and all(is_done(q, number, cycle) for q, number in one.waits):
                one.start = cycle + issue
                one.finish = one.start + one.duration
                unit.next += 1
        cycle += 1
        assert cycle < 10_000
    return {one.key: (one.start, one.finish) for unit in units.values() for one in unit.instances}


@st.composite
def programs(draw: st.DrawFn) -> list[Block]:
    """Blocks whose instructions wait only for what is issued before them."""
    blocks = []
    for number in range(draw(st.integers(1, 3))):
        issued = dict.fromkeys(QUEUES, 0)
        issues = []
        for _ in range(draw(st.integers(1, 5))):
            queue = draw(st.sampled_from(QUEUES[:4]))
            others = draw(st.sets(st.sampled_from(QUEUES), max_size=3))
            waits = {other: draw(st.integers(0, issued[other])) for other in others}
            base = constant(draw(st.integers(1, 6)))
            slope = draw(st.integers(0, 2))
            issues.append(Issue(queue, waits, base + slope * TOKENS + RANK))
            issued[queue] += 1
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


def test_instances_come_in_program_order() -> None:
    block = Block("b", [Issue("vector", {}, constant(2)), Issue("matrix", {}, constant(1))], 2)
    order = [(s.block, s.instance, s.instruction) for s in simulate([block, block], 1, 0)]
    assert order == [(b, i, n) for b in (0, 1) for i in (0, 1) for n in (0, 1)]


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
