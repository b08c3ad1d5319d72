"""Parts of values: program.json says whose they are; names, places and order do not."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from intaglio.backend.program.program import PROGRAM, Program, load_program, program_of
from intaglio.dialects import part_of
from intaglio.dialects.errors import UserError
from intaglio.dialects.isa.values import Fixed, Quantized, Value
from intaglio.dialects.memories import Span
from intaglio.runtime.engines.simulator import Simulator
from intaglio.runtime.reports import rom_use

Content = dict[str, Any]
MODELS = ("llama", "phi", "sinks", "shared", "lfm2")
TOKENS = np.array([3, 1, 4, 1, 5, 9, 2, 6])


def content_of(out: Path) -> Content:
    return json.loads((out / PROGRAM).read_text())


def logits(program: Program, out: Path) -> npt.NDArray[np.int64]:
    return Simulator(program, out).forward(TOKENS, 0)


def renamed(content: Content) -> Content:
    """The same program, each buffer under a name that says nothing."""
    names = list(content["buffers"])
    random.Random(5).shuffle(names)
    new = {name: f"b{number}" for number, name in enumerate(names)}
    content = copy.deepcopy(content)
    content["buffers"] = {
        new[name]: one | ({"of": new[one["of"]]} if "of" in one else {})
        for name, one in content["buffers"].items()
    }
    for block in content["blocks"]:
        for one in block["instructions"]:
            for key in ("reads", "writes"):
                one[key] = [new[name] for name in one[key]]
    content["logits"], content["token"] = new[content["logits"]], new[content["token"]]
    return content


@pytest.mark.parametrize("name", MODELS)
def test_names_say_nothing(name: str, compiled: Callable[[str], Path], tmp_path: Path) -> None:
    out = compiled(name)
    content = content_of(out)
    (tmp_path / PROGRAM).write_text(json.dumps(renamed(content)))
    program = load_program(tmp_path)
    assert any(one.of is not None for one in program.buffers.values())
    np.testing.assert_array_equal(logits(program, out), logits(load_program(out), out))


@pytest.mark.parametrize("name", MODELS)
def test_places_say_nothing(name: str, compiled: Callable[[str], Path]) -> None:
    """All values begin at row 0, so that every one lies where every part does."""
    out = compiled(name)
    program = load_program(out)
    moved = dict(program.buffers)
    for one in program.buffers.values():
        base = program.buffers[one.of or one.name].row
        moved[one.name] = replace(one, row=one.row - base)
    np.testing.assert_array_equal(
        logits(replace(program, buffers=moved), out), logits(program, out)
    )
    assert rom_use.heads(replace(program, buffers=moved)) == rom_use.heads(program)


@pytest.mark.parametrize("name", MODELS)
def test_the_order_of_beats_says_nothing(name: str, compiled: Callable[[str], Path]) -> None:
    """What is computed is that of the instructions in the model's order, whoever writes first."""
    out = compiled(name)
    content = content_of(out)
    rng = random.Random(name)
    for block in content["blocks"]:
        rng.shuffle(block["instructions"])
        for one in block["instructions"]:
            one["waits"] = {}
            assert "beat" in one
    shuffled = program_of(content)
    np.testing.assert_array_equal(logits(shuffled, out), logits(load_program(out), out))
    assert rom_use.heads(shuffled) == rom_use.heads(load_program(out))


PLACES = {
    "x": Span("vectors", 32, 96),
    "y": Span("vectors", 32, 96),
    "q": Span("codes", 0, 64),
    "p": Span("vectors", 40, 56),
    "r": Span("vectors", 44, 48),
}
KINDS: dict[str, Value] = {
    "x": Fixed(64, 16),
    "y": Fixed(64, 12),
    "q": Quantized(1, 64, "int8"),
    "p": Fixed(16, 16),
    "r": Fixed(4, 16),
}


@pytest.mark.parametrize(
    ("of", "message"),
    [
        ({"p": "x"}, None),
        ({"p": "z"}, "is a part of 'z', and there is no buffer of this name"),
        ({"p": "y"}, "has 16 fraction bits, 'y', of which it is a part, 12"),
        ({"p": "q"}, "is a part of 'q', and only fixed-point numbers have parts"),
        ({"p": "r"}, "does not lie within 'r', of which it is a part"),
        ({"p": "r", "r": "x"}, "is a part of 'r', itself a part of 'x'"),
        ({"p": "p"}, "is a part of 'p', itself a part of 'p'"),
    ],
)
def test_what_a_part_may_be(of: dict[str, str], message: str | None) -> None:
    assert part_of.fault("p", of, KINDS, PLACES, {"x", "y"}) == message


def test_elements() -> None:
    assert part_of.elements(PLACES["p"], PLACES["x"]) == slice(8, 24)
    assert part_of.elements(PLACES["r"], PLACES["x"]) == slice(12, 16)
    assert part_of.fault("p", {"p": "x"}, KINDS, PLACES, {"x", "p"}) == (
        "is written by an instruction, and is a part of 'x'"
    )


def edited(content: Content, folder: Path) -> str:
    (folder / PROGRAM).write_text(json.dumps(content))
    with pytest.raises(UserError) as caught:
        load_program(folder)
    return caught.value.what


def test_files_that_say_something_else(compiled: Callable[[str], Path], tmp_path: Path) -> None:
    content = content_of(compiled("lfm2"))
    part = next(name for name, one in content["buffers"].items() if "of" in one)
    whole = content["buffers"][part]["of"]

    changed = copy.deepcopy(content)
    changed["buffers"][part]["of"] = "none"
    assert edited(changed, tmp_path) == (
        f"buffers.{part} is a part of 'none', and there is no buffer of this name"
    )
    changed = copy.deepcopy(content)
    changed["buffers"][part]["of"] = 3
    assert f"buffers.{part}.of" in edited(changed, tmp_path)
    changed = copy.deepcopy(content)
    changed["buffers"][part]["row"] = content["buffers"][whole]["row"] + 23
    assert edited(changed, tmp_path) == (
        f"buffers.{part} does not lie within '{whole}', of which it is a part"
    )
    # As files of schema 2 were: a name alone.
    changed = copy.deepcopy(content)
    del changed["buffers"][part]["of"]
    assert f"reads '{part}', which nothing has written before" in edited(changed, tmp_path)
