"""Traffic with external memory, against an account of every block; and what reports say of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from intaglio.backend.compile import compile_model
from intaglio.backend.hw.units.attention.kv import SCALE_WORD, kv_places
from intaglio.backend.program.program import load_program
from intaglio.backend.stages import Options
from intaglio.dialects.isa.attention import OverTokens
from intaglio.runtime.reports.inspect import inspect_json
from intaglio.runtime.reports.text import inspect_text
from intaglio.runtime.reports.traffic import traffic

LAYERS, KV_HEADS, WIDTH = 2, 2, 16
"""Of the test models."""
VECTORS = 2 * LAYERS * KV_HEADS


@pytest.fixture(scope="module")
def outside(model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """64 tokens of context, 8 of them on the die."""
    out = tmp_path_factory.mktemp("outside") / "out"
    return compile_model(model("ternary"), out, Options("bitrom-mini", context=64)).folder


def blocks_read(units: int, on_die: int, position: int, window: int = 0) -> int:
    """Blocks outside that hold a token that attention at a position needs."""
    first = max(0, position + 1 - window) if window else 0
    return len({t // units for t in range(first, position + 1) if t // units >= on_die // units})


@pytest.mark.parametrize("on_die", [None, 4, 16, 64])
def test_whole_blocks_are_read(outside: Path, on_die: int | None):
    program = load_program(outside)
    units, own = program.machine.h_units, on_die or program.machine.kv_on_die
    found = traffic(program, range(64), on_die)
    for position in range(64):
        block = VECTORS * WIDTH * units
        assert found.read[position] == block * blocks_read(units, own, position)
        assert found.every[position] == block * blocks_read(units, 0, position)
        assert found.written[position] == (VECTORS * WIDTH if position >= own else 0)


def test_windows_and_words(outside: Path):
    """A window reads its blocks alone; a vector comes in whole words, and goes in those of the
    port."""
    program = load_program(outside)
    machine = replace(program.machine, attention_lanes=64, kv_port_bytes=32)
    blocks = [
        replace(
            block,
            instructions=[
                replace(one, does=replace(one.does, window=9))
                if isinstance(one.does, OverTokens)
                else one
                for one in block.instructions
            ],
        )
        for block in program.blocks
    ]
    found = traffic(replace(program, machine=machine, blocks=blocks), range(64))
    for position in range(64):
        read = blocks_read(machine.h_units, 8, position, 9)
        assert found.read[position] == VECTORS * 64 * machine.h_units * read
        assert found.written[position] == (VECTORS * 32 if position >= 8 else 0)


@pytest.mark.parametrize("kv", ["int8", "int16", "fp8"])
@pytest.mark.parametrize("context", [8, 64, 128])
def test_the_sram_counts_what_the_hardware_has(
    kv: str, context: int, model: Callable[[str], Path], tmp_path: Path
):
    """Codes of the tokens on the die, and whole rows of scales of all."""
    options = Options("bitrom-mini", (f"kv={kv}",), context=context, emit="program")
    out = compile_model(model("ternary"), tmp_path / "out", options).folder
    program = load_program(out)
    content, machine, places = inspect_json(out), program.machine, kv_places(program)
    codes = places.depth * machine.attention_lanes * machine.h_units
    assert codes == content["sram"]["kv_bytes"] == VECTORS * WIDTH * 8 * (2 if kv == "int16" else 1)
    scales = places.scale_depth * machine.vector_lanes * SCALE_WORD // 8
    rows = 2 if kv == "fp8" else VECTORS * -(-context // machine.vector_lanes)
    assert scales == content["vector_memory"]["kv_scale_bytes"] == rows * machine.vector_lanes * 4
    assert content["sram"]["kv_tokens"] == 8


def test_reports_say_what_is_inside_and_outside(outside: Path):
    content = inspect_json(outside, [7, 8, 63])
    program = load_program(outside)
    for one in content["positions"]:
        found = traffic(program, one["position"])
        assert one["external"] == {
            "read_bytes": found.read[0],
            "written_bytes": found.written[0],
        }
    text = inspect_text(content)
    assert "KV cache of the first 8 of 64 tokens 1.024 kB" in text
    assert "scales of the KV cache 512 B" in text
    assert "outside 0 B of keys and values read, 0 B written at position 7" in text
    assert "outside 7.168 kB of keys and values read, 128 B written at position 63" in text
    assert "Adapter rank against tokens on the die" in text
    assert "(--adapter-slots R takes v_proj, o_proj, down_proj alone)" in " ".join(text.split())
    assert "External memory, bytes of a token" in text


def test_chips_that_keep_all_have_no_traffic(compiled: Callable[[str], Path]):
    content = inspect_json(compiled("llama"))
    assert {one["external"] for one in content["positions"]} == {None}
    text = inspect_text(content)
    assert "outside" not in text and "KV cache of 128 tokens 16.38 kB" in text


def test_a_context_on_the_die_has_no_traffic(model: Callable[[str], Path], tmp_path: Path):
    options = Options("bitrom-mini", context=8, emit="program")
    out = compile_model(model("ternary"), tmp_path / "out", options).folder
    content = inspect_json(out)
    assert all(not any(one["external"].values()) for one in content["positions"])
    text = inspect_text(content)
    assert "KV cache of 8 tokens" in text and "  outside" not in text
