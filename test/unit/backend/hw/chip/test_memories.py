"""What a chip has is what reports say: the memories of the emitted text, added up."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from intaglio.backend.hw.chip.chip import chip_design
from intaglio.backend.hw.chip.layout import layout_of
from intaglio.backend.program.program import Program
from intaglio.runtime.reports.inspect import inspect_json
from intaglio.runtime.reports.tables import size_text, summary_lines

PATHS = {
    "vectors": r"vectors",
    "codes": r"codes",
    "code_scales": r"code_scales",
    "block_steps": r"block_steps",
    "norm_scales": r"norm_scales",
    "scores": r"scores",
    "largest": r"largest",
    "probabilities": r"probabilities",
    "heads": r"heads",
    "constants": r"constants",
    "kv": r"attention/h_unit\d+/kv",
    "kv_scales": r"attention/scales",
    "adapters": r"adapter/h_unit\d+/codes",
    "adapter_scales": r"adapter/h_unit\d+/scales",
    "states": r"recurrence/states\d+",
    "state_scales": r"recurrence/state_scales",
    "external": r"external_kv/memory",
}
"""Where in the hardware the memories of a module are."""
INSIDE = (
    r"matrix/tile\d+/l_unit\d+/(codes|scales)",
    r"sequencer_\w+/descriptors",
    r"attention/(head_scales|h_unit\d+/buffer)",
    r"adapter/exponents",
    r"recurrence/(news|largest)",
    r"vector/\w+",
)
"""What the module does not state: ROM of matrices (`fabric.engrave`), descriptors, and what units
have between two steps (docs/hardware.md)."""


def emitted(text: str, top: str = "chip") -> dict[str, tuple[int, int]]:
    """The memories of a chip: rows and bits of a row, by the path of instances."""
    modules: dict[str, list[tuple[str, str]]] = {}
    memories: dict[str, tuple[int, int]] = {}
    name = ""
    for line in text.splitlines():
        if found := re.match(r"\s*hw\.module (?:private )?@(\w+)", line):
            name = found[1]
            modules[name] = []
        elif found := re.search(r'hw\.instance "(\w+)" @(\w+)', line):
            modules[name].append((found[1], found[2]))
        elif found := re.search(r"= seq\.firmem .*<(\d+) x (\d+)(?:, mask \d+)?>", line):
            assert name not in memories, "a wrapper has one memory"
            memories[name] = int(found[1]), int(found[2])

    def walk(module: str, path: tuple[str, ...]) -> Iterator[tuple[str, tuple[int, int]]]:
        if module in memories:
            yield "/".join(path), memories[module]
        for instance, of in modules.get(module, ()):
            yield from walk(of, (*path, instance))

    return dict(walk(top, ()))


@pytest.fixture(scope="module")
def built(compiled_chip: tuple[Program, Path]) -> tuple[Program, Path, dict[str, tuple[int, int]]]:
    """A program, its folder, and the memories of its hardware."""
    program, out = compiled_chip
    return program, out, emitted(chip_design(layout_of(program)).text())


Built = tuple[Program, Path, dict[str, tuple[int, int]]]


def bits(found: dict[str, tuple[int, int]], *names: str) -> int:
    """Bits of all instances of some memories."""
    paths = [PATHS[name] for name in names]
    return sum(
        rows * width
        for path, (rows, width) in found.items()
        if any(re.fullmatch(one, path) for one in paths)
    )


def test_the_chip_has_the_memories_that_the_module_states(built: Built) -> None:
    program, _, found = built
    for name, memory in program.memories.items():
        own = [size for path, size in found.items() if re.fullmatch(PATHS[name], path)]
        assert own == [(memory.rows, memory.lanes * memory.bits)] * memory.units, name
    others = {path for path in found if not any(re.fullmatch(p, path) for p in PATHS.values())}
    unknown = {path for path in others if not any(re.fullmatch(p, path) for p in INSIDE)}
    assert not unknown


def test_reports_count_the_bytes_that_are_there(built: Built) -> None:
    program, out, found = built
    content: dict[str, Any] = inspect_json(out)
    sram, vector = content["sram"], content["vector_memory"]
    kv = -(-bits(found, "kv") // 8)
    adapters = sum(-(-bits(found, name) // 8) for name in ("adapters", "adapter_scales"))
    assert sram["kv_bytes"] == kv
    assert sram["adapter_slot_bytes"] + sram["graph_adapter_bytes"] == adapters
    states = -(-bits(found, "states") // 8)
    assert sram["state_bytes"] == states
    assert sram["used_bytes"] == kv + states + adapters <= sram["capacity_bytes"]
    values = ("vectors", "codes", "code_scales", "scores", "largest", "probabilities", "heads")
    beside = ("block_steps", "norm_scales", "kv_scales", "state_scales")
    used = sum(-(-bits(found, name) // 8) for name in (*values, *beside))
    assert vector["used_bytes"] == used <= vector["capacity_bytes"]
    assert vector["kv_scale_bytes"] == bits(found, "kv_scales") // 8
    assert content["constants"]["used_bytes"] == bits(found, "constants") // 8
    # The same in words, and in the other files.
    text = "\n".join(summary_lines(content))
    assert f"SRAM    {size_text(kv + states + adapters)} of " in text
    assert f"vectors {size_text(used)} of " in text
    mapping = json.loads((out / "mapping.json").read_text())["memories"]
    stated = {one.pop("name"): one for one in content["memories"]}
    for name, one in stated.items():
        assert one.pop("bytes") == -(-bits(found, name) // 8)
    assert mapping == stated == json.loads((out / "program.json").read_text())["memories"]
    assert program.memories.keys() == stated.keys()
