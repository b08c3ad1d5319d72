"""A damaged program.json: the file and the key are said, whatever is wrong."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from intaglio.backend.program import PROGRAM, load_program
from intaglio.dialects.errors import UserError

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
    for key in ("address", "size", "type"):
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
