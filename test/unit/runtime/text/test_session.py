"""Sessions take turns on one chip, and each gets what it gets alone."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from intaglio.dialects.errors import UserError
from intaglio.runtime.chip import Chip, load
from intaglio.runtime.text.session import Session, open_session

STATEFUL = ("lfm2", "qwen35")


@pytest.fixture
def adapted(
    slotted: Path,
    tmp_path: Path,
    tensors: Callable[..., dict[str, np.ndarray]],
    write_peft: Callable[..., Path],
) -> Chip:
    """A chip with slots and the adapters `one` and `two`."""
    chip = load(shutil.copytree(slotted, tmp_path / "out"))
    for seed, name in enumerate(("one", "two")):
        chip.adapters.add(name, write_peft(tensors(seed=seed)))
    return chip


@pytest.fixture(scope="module", params=STATEFUL)
def stateful(request: pytest.FixtureRequest, program_of: Callable[[str], Path]) -> Path:
    """Models with convolutions and linear attention."""
    return program_of(request.param)


@dataclass
class User:
    """A prompt, how many tokens are wanted, and what has come so far."""

    prompt: list[int]
    wanted: int
    adapter: str | None = None
    session: Session | None = None
    logits: list[np.ndarray] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)

    @property
    def done(self) -> bool:
        return len(self.tokens) == self.wanted

    def turn(self, chip: Chip, chunk: int) -> None:
        """A few tokens of the prompt, or the next token."""
        if self.session is None:
            image = None if self.adapter is None else chip.adapters.load(self.adapter)
            self.session = open_session(chip, adapter=image)
        before = self.prompt[self.session.position : -1]
        if before:
            self.session.feed(before[:chunk])
            return
        last = self.tokens[-1] if self.tokens else self.prompt[-1]
        ((exact, token),) = self.session.steps([last])
        self.logits.append(exact)
        self.tokens.append(token)


def random_user(random: np.random.Generator, chip: Chip, adapters: list[str | None]) -> User:
    size = int(random.integers(1, 12))
    prompt = random.integers(chip.program.vocabulary, size=size).tolist()
    return User(prompt, int(random.integers(1, 9)), adapters[random.integers(len(adapters))])


def check_alone(chip: Chip, user: User) -> None:
    """What a session got while others ran is what it gets when nobody else is there."""
    chip.use_adapter(user.adapter)
    alone = list(chip.stream(user.prompt, user.wanted))[: len(user.tokens)]
    assert user.tokens == [one.token for one in alone]
    bits = chip.simulator.fraction_bits
    for exact, one in zip(user.logits, alone, strict=True):
        np.testing.assert_array_equal(np.ldexp(exact.astype(float), -bits), one.logits)


def interleave(chip: Chip, adapters: list[str | None], seed: int) -> None:
    """Users come, get turns in any order, and leave, some of them before they have all tokens."""
    random = np.random.default_rng(seed)
    waiting = [random_user(random, chip, adapters) for _ in range(10)]
    left, there = list[User](), list[User]()
    while waiting or there:
        if waiting and (not there or random.random() < 0.2):
            there.append(waiting.pop())
        user = there[random.integers(len(there))]
        user.turn(chip, int(random.integers(1, 5)))
        if user.done or random.random() < 0.02:
            there.remove(user)
            left.append(user)
    for user in left:
        check_alone(chip, user)


@pytest.mark.parametrize("seed", range(3))
def test_users_with_adapters_interleave(adapted: Chip, seed: int):
    interleave(adapted, [None, "one", "two"], seed)


@pytest.mark.parametrize("seed", range(2))
def test_users_with_states_interleave(stateful: Path, seed: int):
    interleave(load(stateful), [None], seed)


def test_streams_side_by_side(compiled: Callable[[str], Path]):
    """Two iterators over one chip do not disturb each other."""
    chip = load(compiled("llama"))
    one, other = chip.generate([1, 2, 3], 6), chip.generate([200, 4], 6)
    pairs = zip(chip.stream([1, 2, 3], 6), chip.stream([200, 4], 6), strict=True)
    assert [(a.token, b.token) for a, b in pairs] == list(zip(one, other, strict=True))


def test_a_stream_follows_the_active_adapter(adapted: Chip):
    """As on the chip: tokens that were run stay as they are."""
    tokens = adapted.stream([5, 6, 7], 4)
    first = next(tokens).token
    adapted.use_adapter("one")
    rest = [one.token for one in tokens]
    session = open_session(adapted)
    session.feed([5, 6])
    assert [token for _, token in session.steps([7])] == [first]
    session.adapter = adapted.adapters.load("one")
    for last, expected in zip([first, *rest], rest, strict=False):
        assert [token for _, token in session.steps([last])] == [expected]


def test_what_was_not_asked_for_is_taken_back(stateful: Path):
    """At each place of a draft; caches and states are those of the tokens that were asked for."""
    chip = load(stateful)
    prompt, draft = [3, 1, 4], [1, 5, 9, 2]
    alone = open_session(chip)
    alone.feed(prompt)
    expected = [exact for token in draft for exact, _ in alone.steps([token])]
    for kept in range(1, len(draft) + 1):
        session = open_session(chip)
        session.feed(prompt)
        results = session.steps(draft)
        for exact in expected[:kept]:
            np.testing.assert_array_equal(next(results)[0], exact)
            asked = len(session.tokens) - len(prompt)
            assert session.tokens == [*prompt, *draft[:asked]] and 0 < asked <= kept
        assert asked == kept
        results.close()
        assert session.tokens == [*prompt, *draft[:kept]] and session.position == 3 + kept
        for token, exact in zip(draft[kept:], expected[kept:], strict=True):
            ((found, _),) = session.steps([token])
            np.testing.assert_array_equal(found, exact)


def test_a_switch_of_adapters_is_counted(adapted: Chip):
    image = adapted.adapters.load("one")
    cycles = adapted.adapters.list()[0].load_cycles
    one, base = open_session(adapted, adapter=image), open_session(adapted)
    for session in (one, one, base, one):
        list(session.steps([1]))
    assert one.adapter_cycles == 2 * cycles > 0
    assert base.adapter_cycles == adapted.load_adapter(None) > 0


def test_hardware_keeps_one_sequence(compiled: Callable[[str], Path]):
    chip = load(compiled("llama"))
    expected = chip.generate([1, 2], 2)
    one = open_session(chip, "rtl")
    one.feed([1])
    tokens = [token for _, token in one.steps([2, expected[0]])]
    assert tokens == expected and one.position == 3
    other = open_session(chip, "rtl")
    other.feed([1])
    with pytest.raises(UserError, match="another sequence has begun on rtl"):
        one.feed([1])
    assert [token for _, token in other.steps([2])] == expected[:1]
