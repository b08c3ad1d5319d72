"""Tokens that go through the simulator together are those that go one after the other: logits,
caches, states and counts of saturations."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from intaglio.backend.compile import Options, compile_model
from intaglio.backend.program.program import load_program
from intaglio.runtime.engines.simulator import Simulator

CONTEXT = 64
MODELS = {
    "llama": (),
    "qwen": ("activations=int16", "kv=int16"),
    "phi": ("activations=mxint8",),
    "int8": ("activations=int8", "kv=int8"),
    "hqq4": (),
    "ternary": (),
    "sinks": ("activations=fp8", "kv=fp8"),
    "alibi": (),
    "experts": (),
    "lfm2": (),
    "qwen35": (),
    "shared": (),
}
"""Exporters' models, with settings."""


@pytest.fixture(scope="module", params=MODELS)
def out(
    request: pytest.FixtureRequest,
    model: Callable[[str], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    folder = tmp_path_factory.mktemp(request.param) / "out"
    options = Options("roma-mini", context=CONTEXT, emit="program", settings=MODELS[request.param])
    compile_model(model(request.param), folder, options)
    return folder


def _run(simulator: Simulator, tokens: np.ndarray, cuts: list[int]) -> tuple[np.ndarray, int]:
    """Logits of all tokens, and saturations."""
    simulator.reset()
    parts: list[np.ndarray] = []
    first = 0
    for count in cuts:
        logits = simulator.forward(tokens[first : first + count], first)
        assert logits is not None
        parts.append(logits)
        first += count
    return np.concatenate(parts), simulator.saturations


def test_parts_of_any_size(out: Path) -> None:
    program = load_program(out)
    rng = np.random.default_rng(len(out.parent.name))
    tokens = rng.integers(0, program.vocabulary, CONTEXT)
    plain = Simulator(program, out)
    # With all bits behind the point values do not fit, and are counted.
    for simulator in (plain, plain.with_fraction_bits(30)):
        alone, counted = _run(simulator, tokens, [1] * CONTEXT)
        assert counted or simulator is plain
        left = {name: one.codes.copy() for name, one in simulator.stores.items()}
        one, other = (int(n) for n in rng.integers(1, CONTEXT // 2, 2))
        for cuts in ([CONTEXT], [one, CONTEXT - one], [other, 1, CONTEXT - other - 1], [17, 47]):
            together, count = _run(simulator, tokens, cuts)
            np.testing.assert_array_equal(together, alone)
            assert count == counted
            for name, store in simulator.stores.items():
                np.testing.assert_array_equal(store.codes, left[name])
