"""A damaged program.json: the file and the key are said, whatever is wrong."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from intaglio.backend.compile import compile_model
from intaglio.backend.program.program import PROGRAM, load_program
from intaglio.backend.program.reader import read_program
from intaglio.backend.stages import Options
from intaglio.dialects.errors import UserError
from intaglio.dialects.gating import NO_DOMAIN
from intaglio.dialects.json_file import JSONFile

Content = dict[str, Any]


@pytest.fixture(scope="module")
def content(compiled: Callable[[str], Path]) -> Content:
    return json.loads((compiled("llama") / PROGRAM).read_text())


@pytest.fixture
def read(compiled: Callable[[str], Path], tmp_path: Path) -> Callable[[Content], None]:
    def write(changed: Content) -> None:
        (tmp_path / PROGRAM).write_text(json.dumps(changed))
        load_program(tmp_path)

    return write


def places(content: Content) -> Iterator[tuple[str, tuple[str | int, ...]]]:
    """One of each kind of value, with the keys that lead to it."""
    name = next(iter(content["parameters"]))
    cache, buffer = next(iter(content["caches"])), next(iter(content["buffers"]))
    for key in ("machine", "parameters", "caches", "buffers", "blocks", "positions", "logits"):
        yield key, (key,)
    yield "vocabulary", ("vocabulary",)
    for key in ("store", "dims", "code", "bits", "key"):
        yield f"parameters.{name}.{key}", ("parameters", name, key)
    for path in ((cache, "width"), (cache, "capacity")):
        if path[1] in content["caches"][cache]:
            yield f"caches.{path[0]}.{path[1]}", ("caches", *path)
    for key in ("memory", "row", "type"):
        yield f"buffers.{buffer}.{key}", ("buffers", buffer, key)
    for key in ("name", "sampled", "instances", "instructions"):
        yield f"blocks[0].{key}", ("blocks", 0, key)
    for key in ("opcode", "queue", "reads", "writes", "uses", "waits", "duration", "start"):
        yield f"blocks[0].instructions[0].{key}", ("blocks", 0, "instructions", 0, key)
    yield "machine.tiles", ("machine", "tiles")


def within(content: Content, keys: tuple[str | int, ...]) -> Any:
    found: Any = content
    for key in keys[:-1]:
        found = found[key]
    return found


def test_missing_keys(content: Content, read: Callable[[Content], None]) -> None:
    for place, keys in places(content):
        changed = copy.deepcopy(content)
        del within(changed, keys)[keys[-1]]
        with pytest.raises(UserError) as caught:
            read(changed)
        assert str(keys[-1]) in caught.value.what, place
        assert caught.value.file is not None and caught.value.file.endswith(PROGRAM), place


@pytest.mark.parametrize("value", [None, -1.5, {"x": 1}, [["x"]], "\u0000", True])
def test_values_of_another_kind(
    content: Content, read: Callable[[Content], None], value: object
) -> None:
    for place, keys in places(content):
        here = within(content, keys)[keys[-1]]
        if type(here) is type(value) and (isinstance(here, bool) or keys[-1] in ("name", "key")):
            continue
        changed = copy.deepcopy(content)
        within(changed, keys)[keys[-1]] = value
        with pytest.raises(UserError) as caught:
            read(changed)
        assert str(keys[-1]) in caught.value.what or "instances" in place, place
        assert caught.value.file is not None and caught.value.file.endswith(PROGRAM), place


def test_names_of_nothing(content: Content, read: Callable[[Content], None]) -> None:
    changed = copy.deepcopy(content)
    changed["blocks"][0]["instructions"][0]["writes"] = ["nothing"]
    with pytest.raises(UserError, match=r"writes\[0\] is 'nothing', and there is no buffer"):
        read(changed)
    changed = copy.deepcopy(content)
    instance = changed["blocks"][0]["instances"][0]
    slot = next(iter(instance))
    instance[slot] = "nothing"
    with pytest.raises(UserError, match=r"instances\[0\].* is 'nothing', and there is no tensor"):
        read(changed)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (
            {"opcode": "matvec", "queue": "matrix", "reads": [], "writes": [], "uses": {}},
            "'matvec' reads 1 or 2 values (input, residual), not 0",
        ),
        (
            {"opcode": "softcap", "queue": "vector", "reads": ["token"] * 3, "uses": {}},
            "'softcap' reads 1 value (input), not 3",
        ),
        (
            {"opcode": "softcap", "queue": "vector", "arguments": {"pear": 3}, "uses": {}},
            "'softcap' has the unknown argument 'pear'; arguments are inverse, cap",
        ),
        ({"uses": {"banana": "x"}}, "blocks[0].instructions[0].uses.banana is 'x', which not"),
        ({"uses": {}}, "'embed' has no role 'table'"),
    ],
)
def test_instructions_that_are_not_as_declared(
    content: Content, read: Callable[[Content], None], change: Content, what: str
) -> None:
    changed = copy.deepcopy(content)
    changed["blocks"][0]["instructions"][0].update(change)
    with pytest.raises(UserError) as caught:
        read(changed)
    assert caught.value.what.startswith("blocks[0].instructions[0]")
    assert what in caught.value.what


def test_a_missing_argument_is_a_user_error(
    content: Content, read: Callable[[Content], None]
) -> None:
    changed = copy.deepcopy(content)
    block, number = next(
        (b, i)
        for b, block in enumerate(changed["blocks"])
        for i, one in enumerate(block["instructions"])
        if "pre_shift" in one["arguments"]
    )
    del changed["blocks"][block]["instructions"][number]["arguments"]["pre_shift"]
    with pytest.raises(UserError, match="'matvec' has no argument 'pre_shift'") as caught:
        read(changed)
    assert f"blocks[{block}].instructions[{number}]" in caught.value.what
    assert caught.value.node


@pytest.fixture(scope="module")
def gated(model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """On a chip that switches its layers off; the head shares the embedding, which is always on."""
    out = tmp_path_factory.mktemp("gated") / "out"
    options = Options("tom-mini", context=32, emit="program")
    return compile_model(model("ternary_tied"), out, options).folder


def test_switches_of_nothing(gated: Path, content: Content, tmp_path: Path) -> None:
    """The last layer wakes no domain; nor does any other, if so written. It is no tensor's name."""
    names = ["power0", "power1"]
    program = load_program(gated)
    assert list(program.domains) == names
    assert [one["next_power"] for one in program.blocks[1].instances] == ["power1", NO_DOMAIN]
    written = json.loads((gated / PROGRAM).read_text())
    for block, instance, slot in ((0, 0, "next_power1"), (1, 0, "next_power"), (1, 1, "power")):
        changed = copy.deepcopy(written)
        changed["blocks"][block]["instances"][instance][slot] = NO_DOMAIN
        assert not misread(changed, tmp_path)
    changed = copy.deepcopy(written)
    weights = [one["uses"].get("weights") for one in changed["blocks"][1]["instructions"]]
    changed["blocks"][1]["instances"][0][next(filter(None, weights))] = NO_DOMAIN
    assert "as weights; 'none' is a power domain" in misread(changed, tmp_path)
    changed = copy.deepcopy(content)
    instance = changed["blocks"][0]["instances"][0]
    instance[next(iter(instance))] = NO_DOMAIN
    assert "there is no tensor or power domain of this name" in misread(changed, tmp_path)


def misread(content: Content, folder: Path) -> str:
    """What the reader finds wrong with a file's values; orders of instructions are another's."""
    (folder / PROGRAM).write_text(json.dumps(content))
    try:
        read_program(JSONFile.read(folder / PROGRAM), folder)
    except UserError as error:
        return error.what
    return ""


def test_what_is_no_compiled_program(tmp_path):
    (tmp_path / "ir").mkdir()
    for stage, said in (
        (None, "this folder holds no compiled program"),
        ("rom", "stopped at rom"),
        ("fabric", "stopped at fabric"),
    ):
        if stage:
            (tmp_path / "ir" / f"{stage}.mlir").touch()
        with pytest.raises(UserError, match=said):
            load_program(tmp_path)
    (tmp_path / "model.onnx").touch()
    with pytest.raises(UserError, match="is a file, not the output folder"):
        load_program(tmp_path / "model.onnx")
