"""States that the simulator keeps from token to token."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from intaglio.backend.compile import Options, compile_model
from intaglio.backend.program.program import load_program
from intaglio.dialects import semantics
from intaglio.runtime.chip import load
from intaglio.runtime.engines.simulator import Simulator
from intaglio.runtime.judge.check import check

TOKENS = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3]


@pytest.fixture(scope="module", params=["lfm2", "conv4", "qwen35", "recurrent"])
def out(request: pytest.FixtureRequest, program_of: Callable[[str], Path]) -> Path:
    return program_of(request.param)


def test_tokens_together_and_one_by_one(out: Path) -> None:
    """In parts of any length, by the kernels and by the semantics."""
    program = load_program(out)
    whole = Simulator(program, out).forward(TOKENS)
    for cuts in ([1] * 10, [3, 7], [2, 1, 6, 1]):
        for reference in (False, True):
            simulator = Simulator(program, out, reference=reference)
            parts, first = [], 0
            for count in cuts:
                parts.append(simulator.forward(TOKENS[first : first + count], first))
                first += count
            np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_position_0_begins_anew(out: Path) -> None:
    """Without a reset, whatever the last sequence left."""
    program = load_program(out)
    simulator = Simulator(program, out)
    first = simulator.forward(TOKENS[:5])
    _ = simulator.forward(TOKENS[5:], 5)
    assert any(state.any() for state in simulator.states.values())
    for one in simulator.matrices.values():
        assert one.mantissas.any()
    np.testing.assert_array_equal(simulator.forward(TOKENS[:5]), first)


def test_delay_is_a_shift() -> None:
    x, last = np.arange(12).reshape(4, 3), np.array([7, 8, 9])
    expected = [[7, 8, 9], [0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert semantics.delay(x, last).tolist() == expected
    assert semantics.delay(x[:1], last).tolist() == [[7, 8, 9]]


def test_tap_by_hand() -> None:
    """In Python integers: product, half up, saturation; then the sum, saturated again."""
    top = 2**31 - 1
    x = np.array([5, -5, top, -(2**31), top])
    w = np.array([3, 3, 2**15 - 1, -(2**15), 4])
    a = np.array([1, 1, 0, 0, top])

    def clip(n: int) -> int:
        return max(-(2**31), min(top, n))

    for shift in (1, 2, 15):
        expected = [
            clip(clip((int(p) * int(q) + (1 << shift - 1)) >> shift) + int(r))
            for p, q, r in zip(x, w, a, strict=True)
        ]
        assert semantics.tap(x, w, shift, addend=a).tolist() == expected
        assert semantics.tap(x, w, shift, bias=a).tolist() == expected


def test_agrees_with_onnxruntime(out: Path) -> None:
    result = check(load(out), prompt_ids=TOKENS[:4], tokens=12)
    assert result["max_error_of_range"] < 0.05 and result["saturations"] == 0


def test_the_trained_states(tmp_path: Path) -> None:
    """examples/states: small, three of four layers of states in the exporter's own operators, and
    its perplexity on held-out text is the judge's within 0.3 %."""
    folder = Path(__file__).parents[4] / "examples"
    model = folder / "states" / "model" / "model.onnx"
    assert sum(path.stat().st_size for path in model.parent.iterdir()) < 3 << 20
    nodes = Counter(node.op_type for node in onnx.load(model, load_external_data=False).graph.node)
    written = ("CausalConvWithState", "LinearAttentionGate", "LinearAttention", "GatedRMSNorm")
    assert [nodes[name] for name in (*written, "GroupQueryAttention")] == [3, 3, 3, 3, 1]
    # The two small products of each linear attention are floats in the file.
    options = Options("roma-mini", context=256, weights="int8:32")
    out = compile_model(model, tmp_path / "out", options).folder
    result = check(load(out), text=folder / "demo" / "held_out.txt", windows=2)
    assert abs(result["perplexity"] / result["reference_perplexity"] - 1) < 0.003
