"""Waits and what they order, against the timeline with one instruction that never seems to end."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from intaglio.dialects.fixed_point import Real
from intaglio.dialects.formula import TOKENS, Formula, constant
from intaglio.dialects.hazards import Access, Race, first_race
from intaglio.dialects.isa.attention import QueryKey
from intaglio.dialects.isa.cache import Append
from intaglio.dialects.isa.power import Wake
from intaglio.dialects.isa.queues import QUEUES
from intaglio.dialects.isa.vector import Copy, Quantize, Softmax
from intaglio.dialects.timeline import At, Block, Issue, simulate

BUFFERS = {"a": (0, 8), "a1": (0, 4), "a2": (4, 8), "b": (8, 12), "over": (6, 10)}
"""A value with two parts, another, and one that lies over both."""
LONG = 10_000


@dataclass(frozen=True)
class Step:
    """An instruction: its queue, waits, and what it touches."""

    queue: str
    waits: dict[str, int]
    access: Access
    flows: bool = False

    def issue(self, duration: int = 1) -> Issue:
        """What the timeline knows of it."""
        return Issue(
            self.queue, self.waits, constant(duration), constant(1) if self.flows else None
        )


Made = list[tuple[list[Step], list[dict[str, str]], bool]]
"""Blocks: instructions, what instances bind slots to, whether only wanted tokens run it."""


@st.composite
def made(draw: st.DrawFn) -> Made:
    """Programs of up to three blocks."""
    blocks: Made = []
    flowing = draw(st.sets(st.sampled_from(QUEUES)))
    names = st.lists(st.sampled_from(list(BUFFERS)), max_size=2)
    slots = st.lists(st.sampled_from(["k", "v"]), max_size=1)
    for _ in range(draw(st.integers(1, 3))):
        steps: list[Step] = []
        issued = dict.fromkeys(QUEUES, 0)
        for _ in range(draw(st.integers(1, 5))):
            waits = {q: draw(st.integers(0, n)) for q, n in issued.items() if draw(st.booleans())}
            queue = draw(st.sampled_from(QUEUES))
            issued[queue] += 1
            some = st.sampled_from([(0, 2), (1, 3), (2, 4)])
            parts = draw(st.dictionaries(st.sampled_from([*BUFFERS, "k", "v"]), some, max_size=4))
            access = Access(draw(names), draw(names), draw(slots), draw(slots), parts)
            steps.append(Step(queue, waits, access, queue in flowing))
        caches = st.sampled_from(["c0", "c1", "c2"])
        bound = [{"k": draw(caches), "v": draw(caches)} for _ in range(draw(st.integers(1, 3)))]
        blocks.append((steps, bound, draw(st.booleans())))
    return blocks


def found_in(blocks: Made, *, shared: bool = False) -> Race | None:
    return first_race(
        [Block("b", [s.issue() for s in steps], len(bound)) for steps, bound, _ in blocks],
        [[s.access for s in steps] for steps, _, _ in blocks],
        [bound for _, bound, _ in blocks],
        BUFFERS,
        sampled=[sampled for _, _, sampled in blocks],
        shared_adders=shared,
    )


def touched(step: Step, bound: dict[str, str], shared: bool) -> tuple[set[object], set[object]]:
    """Bytes and heads of caches that an instance reads, and those that it writes."""
    one = step.access

    def elements(name: str) -> set[object]:
        begin, end = BUFFERS[name]
        first, last = one.parts.get(name, (0, end - begin))
        return set(range(begin + first, begin + last))

    def heads(slot: str) -> set[object]:
        return {(bound[slot], head) for head in range(*one.parts.get(slot, (0, 4)))}

    reads = set[object]().union(*map(elements, one.reads), *map(heads, one.read_caches))
    writes = set[object]().union(*map(elements, one.writes), *map(heads, one.written_caches))
    if shared and step.queue in ("matrix", "attention"):
        writes.add("adders")
    return reads, writes


def naive(blocks: Made, shared: bool) -> Iterator[tuple[At, At]]:
    """All pairs that conflict, of which the later may start while the earlier still runs."""
    flat = [
        ((number, instance, i), step, touched(step, one, shared))
        for number, (steps, bound, _) in enumerate(blocks)
        for instance, one in enumerate(bound)
        for i, step in enumerate(steps)
    ]
    for slow, (earlier, first, (reads, writes)) in enumerate(flat):
        # Every instance is a block of its own, so that just one can take long. Where results come
        # in order, those behind it in its queue take as long.
        late = [earlier]
        if first.flows:
            late += [at for at, step, _ in flat[slow + 1 :] if step.queue == first.queue]
        alone = [
            Block(
                "b",
                [
                    s.issue(LONG if (number, instance, i) in late else 0)
                    for i, s in enumerate(steps)
                ],
                1,
            )
            for number, (steps, bound, _) in enumerate(blocks)
            for instance in range(len(bound))
        ]
        starts = [int(span.start[0]) for span in simulate(alone, 1, 0)]
        for start, (later, second, (read, written)) in list(zip(starts, flat, strict=True))[
            slow + 1 :
        ]:
            conflict = writes & read
            # A unit takes instructions, and leaves their results, in order.
            if not (first.flows and first.queue == second.queue):
                conflict |= reads & written | writes & written
            if conflict and start < LONG:
                yield earlier, later


@settings(deadline=None, max_examples=200)
@given(blocks=made(), shared=st.booleans())
def test_equals_the_timeline_with_one_that_never_ends(blocks: Made, shared: bool) -> None:
    """A race is found exactly where some durations show one."""
    always = [(steps, bound, False) for steps, bound, _ in blocks]
    race = found_in(always, shared=shared)
    wrong = set(naive(always, shared))
    assert (race is None) == (not wrong)
    if race is not None:
        assert race.later == min(later for _, later in wrong)
        assert (race.earlier, race.later) in wrong


@settings(deadline=None, max_examples=60)
@given(blocks=made())
def test_tokens_that_leave_blocks_out_are_looked_at_too(blocks: Made) -> None:
    race = found_in(blocks)
    short = [one for one in blocks if not one[2]]
    assert (race is None) == (not any(naive(blocks, False)) and not any(naive(short, False)))


READ = Access(["b"], [])
WRITE = Access([], ["b"])


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        (WRITE, READ, "later may read @b before earlier has written it"),
        (READ, WRITE, "later may write @b before earlier has read it"),
        (WRITE, WRITE, "later may write @b before earlier has written it"),
        (
            Access([], ["over"]),
            READ,
            "later may read @b before earlier has written @over, which shares places with it",
        ),
        (Access([], [], [], ["k"]), Access([], [], ["k"]), "may read @c0 before earlier has wri"),
        (READ, READ, None),
        (Access(["a1"], ["a1"]), Access(["a2"], ["a2"]), None),
    ],
)
def test_words(first: Access, second: Access, words: str | None) -> None:
    names = {(0, 0, 0): "earlier", (0, 0, 1): "later"}
    steps = [Step("matrix", {}, first), Step("vector", {}, second)]
    race = found_in([(steps, [{"k": "c0"}], False)])
    assert (race is None) == (words is None)
    if race is not None and words is not None:
        assert words in race.told(names.__getitem__, "@")
    steps[1] = Step("vector", {"matrix": 1}, second)
    assert found_in([(steps, [{"k": "c0"}], False)]) is None


@pytest.mark.parametrize(
    ("queue", "second", "waits", "races"),
    [
        ("attention", READ, {"vector": 1}, True),
        ("attention", READ, {"reductions": 0}, True),
        ("attention", READ, {"reductions": 1}, False),
        ("attention", READ, {"reductions": 2}, False),
        ("vector", WRITE, {}, True),
        ("vector", READ, {"vector": 1}, True),
        ("vector", WRITE, {"reductions": 1}, False),
        ("kv", WRITE, {"reductions": 1}, False),
    ],
)
def test_what_is_written_late_is_there_with_the_reductions(
    queue: str, second: Access, waits: dict[str, int], races: bool
) -> None:
    flows, nothing = constant(1), Access([], [])
    issues = [
        Issue("vector", {}, constant(5), flows, constant(9)),
        Issue("vector", {}, constant(5), flows, constant(9)),
        Issue(queue, waits, constant(5), flows, constant(9) if queue == "vector" else None),
    ]
    late = replace(WRITE, late=True)
    race = first_race([Block("b", issues, 1)], [[late, nothing, second]], [[{}]], BUFFERS)
    assert (race is not None) == races
    if race is not None:
        assert (race.earlier, race.later, race.has) == ((0, 0, 0), (0, 0, 2), "write")


def test_units_that_share_adders_take_turns() -> None:
    steps = [Step("matrix", {}, Access([], [])), Step("attention", {}, Access([], []))]
    assert found_in([(steps, [{}], False)]) is None
    race = found_in([(steps, [{}], False)], shared=True)
    assert race is not None and "may take the adders of the tiles before" in race.told(str)


def test_of_instructions() -> None:
    append = Append(input="b", cache="k")
    assert Access.of(append) == Access(("b",), (), (), ("k",))
    assert Access.of(Copy(input="b", output="c")) == Access(("b",), ("c",), (), ())
    softmax = Softmax(scores="s", output="p", values="v", window=0)
    assert Access.of(softmax) == Access(("s",), ("p",), ("v",), ())
    # The static scale of a cache is none of its content.
    quantize = Quantize(input="b", output="q", scale_of="k")
    assert Access.of(quantize) == Access(("b",), ("q",), (), ())
    scores = QueryKey(
        query="q", output="s", keys="k", score_scale=Real(1, 0), pre_shift=0, window=0
    )
    assert Access.of(scores) == Access(("q",), ("s",), ("k",), ())
    assert Access.of(Wake(domain="d")) == Access((), (), (), ())


@pytest.mark.parametrize(
    ("sums", "early", "reduces", "waits", "races"),
    [
        (True, 4, constant(9), {"vector": 1}, False),
        (True, 3, constant(9), {"vector": 1}, True),
        (True, 3, constant(9), {"reductions": 1}, False),
        (True, 4, constant(9), {}, True),
        # The codes themselves are late.
        (False, 4, constant(9), {"vector": 1}, True),
        # They follow after more and more cycles.
        (True, 4, 5 + 2 * TOKENS, {"vector": 1}, True),
    ],
)
def test_sums_may_follow_who_reads_them_late(
    sums: bool, early: int, reduces: Formula, waits: dict[str, int], races: bool
) -> None:
    flows = constant(1)
    issues = [
        Issue("vector", {}, constant(5), flows, reduces),
        Issue("attention", waits, constant(5), flows),
    ]
    late = replace(WRITE, late=True, sums=sums)
    taken = [late, replace(READ, early=early)]
    assert (first_race([Block("b", issues, 1)], [taken], [[{}]], BUFFERS) is not None) == races


@pytest.mark.parametrize(("early", "races"), [(4, False), (3, True)])
def test_a_factor_may_follow_what_waits_for_its_sum(early: int, races: bool) -> None:
    flows = constant(1)
    issues = [
        Issue("vector", {}, 5 + TOKENS, flows, 9 + TOKENS),
        Issue("matrix", {"vector": 1}, constant(5), flows),
    ]
    norm = Access([], ["b"], leaves=(2, 3), owner="rms_scale b", leaves_peak="b")
    product = Access(["b"], [], uses=(2, 3), uses_peak="b", early=early)
    race = first_race([Block("b", issues, 1)], [[norm, product]], [[{}]], BUFFERS)
    assert (race is not None) == races
