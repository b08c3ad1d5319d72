"""Several tokens at once on the hardware: each gets what it gets alone, in the stated cycles."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from small_chip import SMALL

from intaglio.backend.compile import compile_model
from intaglio.backend.program.program import load_program
from intaglio.backend.stages import Options
from intaglio.dialects.errors import CompilerBug
from intaglio.runtime.chip import load
from intaglio.runtime.engines.in_flight import TokensInFlight, compare_in_flight
from intaglio.runtime.engines.rtl import RTLChip
from intaglio.runtime.engines.simulator import Simulator
from intaglio.runtime.reports.timing import prefill_cycles
from intaglio.runtime.text.session import open_session

CONTEXTS = 3


@pytest.fixture(scope="module", params=["llama", "own_heads", "experts", "learned", "odd"])
def flying(
    request: pytest.FixtureRequest,
    model: Callable[[str], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Grouped queries, keys of each query head, experts, rows of positions, odd sizes."""
    settings = (*SMALL, f"policy.in_flight={CONTEXTS}")
    folder = tmp_path_factory.mktemp(request.param) / "out"
    options = Options("roma-mini", settings, context=16, emit="program")
    return compile_model(model(request.param), folder, options).folder


def test_tokens_in_flight(flying: Path) -> None:
    """Prompts on 1 to 3 contexts, then tokens all of whose successors are wanted."""
    program = load_program(flying)
    chip, simulator = RTLChip(program, flying, cache=False, opt=0), Simulator(program, flying)
    tokens = [3, 5, 4, 9, 2, 7, 3]
    for contexts in range(1, CONTEXTS + 1):
        result = compare_in_flight(simulator, chip, tokens, contexts)
        assert result.equal, f"{contexts}: {result.difference}"
        flight = TokensInFlight(chip, contexts)
        for position, token in enumerate(tokens):
            flight.feed(token, position, wanted=position == len(tokens) - 1)
        flight.drain()
        flight.end()
        out = flight.flown[-1].out
        assert out is not None
        assert out == (result.token, prefill_cycles(program, len(tokens), contexts))
    wanted = [False, True, True, False, True, True, True]
    result = compare_in_flight(simulator, chip, tokens, CONTEXTS, wanted=wanted)
    assert result.equal, str(result.difference)
    with pytest.raises(CompilerBug, match="4 contexts are to be used of 3"):
        TokensInFlight(chip, CONTEXTS + 1)
    chip.close()


def test_more_in_flight_take_less(flying: Path) -> None:
    program = load_program(flying)
    one, two = (prefill_cycles(program, 12, contexts) for contexts in (1, 2))
    assert two < one


@pytest.mark.parametrize("wrong", range(4))
def test_drafts_are_taken_back(wrong: int, flying: Path) -> None:
    """Of three guesses the one at a place is wrong (3: none is); what follows is as without."""
    chip = load(flying)
    prompt = [3, 5, 4]
    alone = open_session(chip, "simulator")
    alone.feed(prompt[:-1])
    expected: list[int] = []
    token = prompt[-1]
    for _ in range(6):
        ((_, token),) = alone.steps([token])
        expected.append(token)
    session = open_session(chip, "rtl")
    session.feed(prompt[:-1])
    guesses = [*expected[:3]]
    if wrong < 3:
        guesses[wrong] = (guesses[wrong] + 1) % chip.program.vocabulary
    found: list[int] = []
    steps = session.steps([prompt[-1], *guesses])
    for place, (logits, token) in enumerate(steps):
        assert int(np.argmax(logits)) == token
        found.append(token)
        if place < 3 and token != guesses[place]:
            break
    steps.close()
    assert found == expected[: wrong + 1]
    for _ in range(2):
        ((_, token),) = session.steps([token])
        found.append(token)
    assert found == expected[: len(found)]
