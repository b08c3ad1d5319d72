"""JSON from elsewhere: what is wrong is said with file and key, and quickly."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from intaglio.dialects.errors import UserError
from intaglio.dialects.json_file import JSONFile, as_json, parse_json

CONTENT = {
    "name": "x",
    "rows": [1, 2],
    "items": [{"first row": 3}, {"share": 0.5, "on": True, "gone": None}],
}


def whole() -> JSONFile:
    return JSONFile(CONTENT, "file.json", "compile the model again")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "is nested too deeply"),
        ('{"a":' * 100_000, "is nested too deeply"),
        ("[" * 100_000 + "]" * 100_000, "is nested too deeply"),
        (f'{{"rows": {"9" * 100_000}}}', "has an integer of more than"),
        (f"[-{'1' * 5000}]", "has an integer of more than"),
        ("", "is no JSON"),
        ("{", "is no JSON"),
        ("{'a': 1}", "is no JSON"),
        (b"\xff\xfe\x00{", "is no JSON"),
    ],
)
def test_what_is_no_json(tmp_path: Path, text: str | bytes, message: str) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=message) as caught:
        JSONFile.read(path, "help")
    assert caught.value.file == str(path) and caught.value.hint == "help"
    assert len(str(caught.value)) < 500


def test_the_limit_of_levels_is_pythons() -> None:
    deep = sys.getrecursionlimit() // 4
    assert parse_json("[" * deep + "]" * deep, "x") is not None


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot be read: No such file"):
        JSONFile.read(tmp_path / "none.json")
    with pytest.raises(UserError, match=r"cannot be read: Is a directory"):
        JSONFile.read(tmp_path)


@pytest.mark.parametrize(
    ("read", "message"),
    [
        (lambda one: one["none"], "the key 'none' is missing"),
        (lambda one: one["items"].list()[1]["none"], r"items[1] has no key 'none'"),
        (lambda one: one["name"]["x"], "name is 'x', not an object"),
        (lambda one: one["name"].list(), "name is 'x', not a list"),
        (lambda one: one["name"].count(), "name is 'x', not an integer"),
        (lambda one: one["rows"].text(), "rows is a list, not a text"),
        (lambda one: one["rows"].texts(), "rows[0] is 1, not a text"),
        (lambda one: one["rows"].list(3), "rows has 2 entries, not 3"),
        (lambda one: one["rows"].list()[1].integer(0, 1), "rows[1] is 2, not from 0 to 1"),
        (lambda one: one["rows"].list()[0].count(2), "rows[0] is 1, not from 2"),
        (lambda one: one["name"].text("y", "z"), "name is 'x', not one of y, z"),
        (lambda one: one["name"].number(), "name is 'x', not a number"),
        (lambda one: one["name"].boolean(), "name is 'x', neither true nor false"),
        (lambda one: one["name"].digest(), "name is 'x', no SHA-256"),
        (lambda one: one.only("name", "rows"), "has the unknown key 'items'"),
        (
            lambda one: one["items"].list()[0]["first row"].text(),
            'items[0]["first row"] is 3, not a text',
        ),
        (lambda one: one["items"].list()[1]["on"].count(), "items[1].on is true, not an integer"),
        (lambda one: one["items"].list()[1]["on"].number(), "items[1].on is true, not a number"),
        (lambda one: one["items"].list()[1]["share"].count(), "items[1].share is 0.5, not an"),
        (lambda one: one["items"].list()[1]["gone"].text(), "items[1].gone is null, not a text"),
    ],
)
def test_values_of_another_kind(read: Callable[[JSONFile], object], message: str) -> None:
    with pytest.raises(UserError) as caught:
        read(whole())
    assert caught.value.what.startswith(message)
    assert caught.value.file == "file.json" and caught.value.hint == "compile the model again"


def test_values() -> None:
    one = whole()
    assert one["rows"].counts() == [1, 2] and one.get("none") is None
    second = one["items"].list()[1]
    assert second.get("gone") is None and second["share"].number() == 0.5
    assert second["on"].boolean() and one.names() == ["name", "rows", "items"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_none(value: float) -> None:
    with pytest.raises(UserError, match="not a finite number"):
        JSONFile({"x": value}, "f")["x"].number()


def test_large_integers_are_not_printed() -> None:
    with pytest.raises(UserError, match=r"x is an integer of 10001 bits, not from"):
        JSONFile({"x": 1 << 10_000}, "f")["x"].integer()


def test_tuples_are_lists() -> None:
    assert as_json({"a": (1, (2,)), "b": [(3,)]}) == {"a": [1, [2]], "b": [[3]]}
