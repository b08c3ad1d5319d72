"""Shapes without hardware are said by a compile that emits none."""

from __future__ import annotations

import pytest

from intaglio.backend.hw.units.vector.encode import misfits


def program(
    width: int, turning: int, lanes: int, *, interleaved: bool = False
) -> dict[str, object]:
    instruction = {
        "queue": "vector",
        "opcode": "rotary",
        "onnx": [["q_rotary"]],
        "reads": ["q"],
        "uses": {"cos": "cos", "sin": "sin"},
        "arguments": {"heads": 2, "rotary_dim": turning, "interleaved": False},
    }
    return {
        "machine": {"vector_lanes": lanes},
        "buffers": {"q": {"type": {"size": 2 * width}}},
        "parameters": {"cos": {"exponent": 14}, "sin": {"exponent": 14}},
        "blocks": [
            {
                "instructions": [instruction, {**instruction, "onnx": [["k_rotary"]]}],
                "instances": [{"cos": "cos", "sin": "sin"}],
            }
        ],
    }


@pytest.mark.parametrize(
    ("width", "turning", "lanes"), [(128, 96, 512), (64, 48, 16), (80, 32, 64)]
)
def test_widths_that_do_not_fit(width, turning, lanes):
    (found,) = misfits(program(width, turning, lanes))
    assert "node 'q_rotary' and 1 more" in found
    assert f"heads of {width} elements, of which {turning} turn, do not fit {lanes}" in found


@pytest.mark.parametrize(
    ("width", "turning", "lanes"), [(128, 128, 512), (128, 96, 16), (64, 64, 16)]
)
def test_widths_that_fit(width, turning, lanes):
    assert not misfits(program(width, turning, lanes))
