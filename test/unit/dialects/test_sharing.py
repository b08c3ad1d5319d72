"""Values that share rows: the program keeps its meaning and gains no race."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from intaglio.dialects.formula import constant
from intaglio.dialects.hazards import Access, first_race
from intaglio.dialects.isa.queues import QUEUES
from intaglio.dialects.sharing import kept_apart, rows_for
from intaglio.dialects.timeline import Block, Issue

NAMES = ("a", "b", "c", "d")
APART = {name: (100 * n, 100 * n + 10) for n, name in enumerate(NAMES)}


@st.composite
def programs(draw: st.DrawFn) -> list[tuple[Block, list[Access]]]:
    """Blocks whose waits order all that they must: every instruction waits for what it shares."""
    blocks: list[tuple[Block, list[Access]]] = []
    some = st.lists(st.sampled_from(NAMES), max_size=2, unique=True)
    for number in range(draw(st.integers(1, 2))):
        issues: list[Issue] = []
        accesses: list[Access] = []
        issued = dict.fromkeys(QUEUES, 0)
        for _ in range(draw(st.integers(1, 6))):
            queue = draw(st.sampled_from(QUEUES[:3]))
            waits = {q: draw(st.integers(0, n)) for q, n in issued.items() if draw(st.booleans())}
            issued[queue] += 1
            issues.append(Issue(queue, waits, constant(1)))
            accesses.append(Access(draw(some), draw(some)))
        blocks.append((Block(f"b{number}", issues, draw(st.integers(1, 3))), accesses))
    return blocks


def lost(blocks: list[tuple[Block, list[Access]]], one: str, other: str) -> bool:
    """Whether a read of one of two finds what was written to the other, in the order given."""
    holds = ""
    for block, accesses in blocks:
        for access in accesses * block.instances:
            if any(name != holds for name in access.reads if name in (one, other)):
                return True
            if one in access.writes and other in access.writes:
                return True
            if {one, other} <= {*access.reads, *access.writes}:
                return True
            holds = next((name for name in access.writes if name in (one, other)), holds)
    return False


@settings(deadline=None, max_examples=200)
@given(programs())
def test_values_share_exactly_where_nothing_is_lost_and_nothing_races(
    blocks: list[tuple[Block, list[Access]]],
) -> None:
    found = kept_apart([b for b, _ in blocks], [a for _, a in blocks], set(NAMES))
    instances = [[{}] * block.instances for block, _ in blocks]
    for one in NAMES:
        for other in NAMES:
            if one == other:
                continue
            two = {one, other}
            only = [
                [
                    Access([n for n in a.reads if n in two], [n for n in a.writes if n in two])
                    for a in own
                ]
                for _, own in blocks
            ]
            timing = [b for b, _ in blocks]
            if first_race(timing, only, instances, APART) is not None:
                continue  # A program that races already: nothing to say.
            shared = dict.fromkeys(NAMES, (0, 10))
            races = first_race(timing, only, instances, shared) is not None
            assert (other in found[one]) == (races or lost(blocks, one, other))


def test_a_chain_of_values_takes_two_places() -> None:
    """Each is read once, right after: every other one may lie where it lay."""
    block = Block("b", [Issue("vector", {}, constant(1)) for _ in range(4)], 1)
    accesses = [
        Access([], ["a"]),
        Access(["a"], ["b"]),
        Access(["b"], ["c"]),
        Access(["c"], ["d"]),
    ]
    apart = kept_apart([block], [accesses], set(NAMES))
    assert apart == {"a": {"b"}, "b": {"a", "c"}, "c": {"b", "d"}, "d": {"c"}}
    assert rows_for({"a": 3, "b": 2, "c": 1, "d": 2}, apart) == (
        {"a": 0, "b": 3, "c": 0, "d": 1},
        5,
    )


def test_without_the_wait_they_keep_apart() -> None:
    """The second value may be written while the first is still read."""
    issues = [
        Issue("vector", {}, constant(1)),
        Issue("matrix", {"vector": 1}, constant(1)),
        Issue("vector", {}, constant(1)),
    ]
    accesses = [Access([], ["a"]), Access(["a"], []), Access([], ["b"])]
    both = {"a", "b"}
    assert kept_apart([Block("b", issues, 1)], [accesses], both) == {"a": {"b"}, "b": {"a"}}
    issues[2] = Issue("vector", {"matrix": 1}, constant(1))
    assert kept_apart([Block("b", issues, 1)], [accesses], both) == {"a": set(), "b": set()}
    # In a loop what comes first comes after the last, too.
    assert kept_apart([Block("b", issues, 2)], [accesses], both) == {"a": set(), "b": set()}


def test_a_value_of_the_token_before_keeps_its_rows() -> None:
    issues = [Issue("vector", {}, constant(1))] * 2
    accesses = [Access(["a"], []), Access([], ["b"])]
    assert kept_apart([Block("b", issues, 1)], [accesses], {"a", "b"})["b"] == {"a"}
