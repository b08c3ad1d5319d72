"""Power domains: what is accepted is on in every timing, what is refused is named."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from intaglio.dialects.clocks import At
from intaglio.dialects.formula import constant
from intaglio.dialects.gating import NO_DOMAIN, Kind, Role, first_unpowered, roles_of, wanted_only
from intaglio.dialects.isa.adapter import AdapterMatvec
from intaglio.dialects.isa.matrix import Embed, ExpertMatvec, Matvec
from intaglio.dialects.isa.power import Wake, WakeChosen
from intaglio.dialects.isa.vector import Route
from intaglio.dialects.timeline import Block, Issue, simulate

Step = tuple[str, dict[str, int]]
"""What an instruction does (`wake`, `sleep`, `product` or a queue), and its waits."""

STEPS = ("wake", "sleep", "product", "vector", "attention")
KINDS = {"wake": Kind.ON, "sleep": Kind.OFF, "product": Kind.PRODUCT}
QUEUE = {"wake": "power", "sleep": "power", "product": "matrix"}


def program(
    steps: list[Step], durations: list[int] | None = None, instances: int = 1
) -> tuple[Block, dict[At, Role]]:
    """A block on the domain `d`."""
    issues = [
        Issue(QUEUE.get(kind, kind), waits, constant((durations or [1] * len(steps))[n]))
        for n, (kind, waits) in enumerate(steps)
    ]
    roles = {
        (0, i, n): Role(KINDS[kind], "d")
        for n, (kind, _) in enumerate(steps)
        for i in range(instances)
        if kind in KINDS
    }
    return Block("b", issues, instances), roles


@st.composite
def programs(draw: st.DrawFn) -> list[Step]:
    steps: list[Step] = []
    for _ in range(draw(st.integers(1, 9))):
        issued: dict[str, int] = {}
        for kind, _ in steps:
            queue = QUEUE.get(kind, kind)
            issued[queue] = issued.get(queue, 0) + 1
        waits = {
            queue: draw(st.integers(1, count))
            for queue, count in issued.items()
            if draw(st.booleans())
        }
        steps.append((draw(st.sampled_from(STEPS)), waits))
    return steps


def is_always_on(steps: list[Step], durations: list[int], instances: int) -> bool:
    """Whether the timeline of these durations shows the domain on during each product."""
    block, roles = program(steps, durations, instances)
    spans = [
        (roles[at].kind, int(span.start[0]), int(span.finish[0]))
        for span in simulate([block], 1, 0)
        if (at := (span.block, span.instance, span.instruction)) in roles
    ]
    # From the finish of a wake to the start of a sleep; switches are in order.
    switches = [one for one in spans if one[0] != "product"]
    for kind, start, finish in spans:
        if kind != "product":
            continue
        done = [one for one in switches if one[2] <= start]
        later = [one for one in switches if one[2] > start]
        if not done or done[-1][0] == "sleep":
            return False
        if any(one[0] == "sleep" and one[1] < finish for one in later):
            return False
    return True


@settings(deadline=None)
@given(
    steps=programs(),
    instances=st.integers(1, 2),
    durations=st.lists(
        st.lists(st.integers(0, 20), min_size=9, max_size=9), min_size=8, max_size=8
    ),
)
def test_what_is_accepted_is_on_whatever_the_durations(
    steps: list[Step], instances: int, durations: list[list[int]]
) -> None:
    if first_unpowered(*_list(program(steps, None, instances))) is None:
        assert all(is_always_on(steps, one, instances) for one in durations)


def _list(made: tuple[Block, dict[At, Role]]) -> tuple[list[Block], dict[At, Role]]:
    return [made[0]], made[1]


GOOD: list[Step] = [("wake", {}), ("product", {"power": 1}), ("sleep", {"matrix": 1})]


@pytest.mark.parametrize(
    ("steps", "reason"),
    [
        (GOOD, None),
        # Through another queue.
        ([("wake", {}), ("vector", {"power": 1}), ("product", {"vector": 1})], None),
        ([("product", {})], "it does not wait for a wake of it"),
        ([("wake", {}), ("product", {})], "it does not wait for a wake of it"),
        ([*GOOD, ("product", {"power": 2})], "it is put to sleep before"),
        (
            [("wake", {}), ("product", {"power": 1}), ("product", {}), ("sleep", {"matrix": 1})],
            "the sleep after it does not wait for it",
        ),
        ([*GOOD, ("wake", {}), ("product", {"power": 3})], None),
    ],
)
def test_reasons(steps: list[Step], reason: str | None) -> None:
    found = first_unpowered(*_list(program(steps)))
    assert (found and found.reason) == reason
    if found is not None:
        last = max(n for n, (kind, _) in enumerate(steps) if kind == "product")
        assert found.domain == "d" and found.at == (0, 0, last)


def test_the_second_instance_is_looked_at_too() -> None:
    assert first_unpowered(*_list(program(GOOD, instances=2))) is None
    without = [("wake", {}), ("product", {"power": 1}), ("sleep", {"matrix": 1})]
    block, roles = program(without, instances=2)
    del roles[0, 1, 0]
    found = first_unpowered([block], roles)
    assert found is not None and found.at == (0, 1, 1)


def test_roles() -> None:
    block = [
        Wake(domain="next"),
        Matvec(input="x", output="y", weights="w", pre_shift=0),
        AdapterMatvec(input="x", output="y", weights="w", pre_shift=0),
        Embed(token="t", output="y", table="w"),
    ]
    bound = [{"next": "d1", "w": "a"}, {"next": NO_DOMAIN, "w": "b"}]
    assert roles_of([block], [bound], {"a": "d0"}) == {
        (0, 0, 0): Role(Kind.ON, "d1"),
        (0, 1, 0): Role(Kind.ON, NO_DOMAIN),
        (0, 0, 1): Role(Kind.PRODUCT, "d0"),
    }


R1, R2 = (0, 0, 90), (0, 0, 91)
"""Two choices of experts."""


@pytest.mark.parametrize(
    ("steps", "choices", "reason"),
    [
        # All experts, or those that the product is one of.
        (GOOD, (None, R1, None), None),
        (GOOD, (R1, R1, None), None),
        (GOOD, (R2, R1, None), "the wake before it is of other experts"),
        # A product with all of a domain is none of the chosen experts'.
        (GOOD, (R1, None, None), "the wake before it is of other experts"),
        # The second choice switches off what the first one woke.
        (
            [*GOOD[:2], ("wake", {"matrix": 1}), ("product", {"power": 2})],
            (R1, R1, R2, R2),
            None,
        ),
        (
            [*GOOD[:2], ("wake", {}), ("product", {"power": 2})],
            (R1, R1, R2, R2),
            "the sleep after it does not wait for it",
        ),
    ],
)
def test_products_are_of_the_experts_that_are_awake(
    steps: list[Step], choices: tuple[At | None, ...], reason: str | None
) -> None:
    block, roles = program(steps)
    for number, choice in enumerate(choices):
        roles[0, 0, number] = replace(roles[0, 0, number], choice=choice)
    found = first_unpowered([block], roles)
    assert (found and found.reason) == reason


def test_roles_of_chosen_experts() -> None:
    """A choice is the route that wrote the experts last, of this instance."""
    product = ExpertMatvec(
        input="x", routing="r", output="y", weights="w", bias=None, pre_shift=0, expert=0
    )
    block = [
        WakeChosen(domain="d", routing="r"),
        Route(input="l", output="r", lowest=False, over_all=False),
        WakeChosen(domain="d", routing="r"),
        product,
        Route(input="l", output="r", lowest=False, over_all=False),
        product,
    ]
    found = roles_of([block], [[{"d": "d0"}, {"d": "d1"}]], {"w": "d0"})
    assert {at: one.choice for at, one in found.items()} == {
        # Nobody has chosen yet: no product is of it.
        (0, 0, 0): (0, 0, 0),
        (0, 0, 2): (0, 0, 1),
        (0, 0, 3): (0, 0, 1),
        (0, 0, 5): (0, 0, 4),
        (0, 1, 0): (0, 0, 4),
        (0, 1, 2): (0, 1, 1),
        (0, 1, 3): (0, 1, 1),
        (0, 1, 5): (0, 1, 4),
    }
    assert found[0, 1, 2].domain == "d1"


def test_domains_that_only_wanted_tokens_need() -> None:
    """Products count, switches do not."""
    roles = {
        (0, 0, 0): Role(Kind.PRODUCT, "layer"),
        (0, 1, 0): Role(Kind.ON, "head"),
        (1, 0, 0): Role(Kind.PRODUCT, "layer"),
        (1, 0, 1): Role(Kind.PRODUCT, "head"),
    }
    assert wanted_only(roles, [False, True]) == {"head"}
    assert wanted_only(roles, [True, True]) == {"head", "layer"}
    assert wanted_only(roles, [False, False]) == set()
