"""Strict reading of JSON files: what is wrong is said with the file and the key.

Files of an output folder are written by the compiler, but they can be damaged or edited by hand.
What is read from them is asked for by type here, so that a wrong value is an error where it stands
and not somewhere later.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias, TypeGuard, TypeVar

from intaglio.dialects.errors import UserError

JSON: TypeAlias = "bool | int | float | str | Sequence[JSON] | Mapping[str, JSON] | None"
"""What a JSON file can hold; tuples become lists."""

LARGEST = 1 << 63
"""Integers are smaller than this in magnitude."""
_DIGITS = 4300
"""Digits of an integer that Python reads."""
_SHOWN = 40

T = TypeVar("T")
_Keys = tuple["str | int", "_Keys | None"]


class JSONFile:
    """A value in a JSON file, which knows where it stands.

    Args:
        value: as Python reads it.
        file: for messages.
        hint: what helps where it is wrong.
        keys: that lead to it, the last one first and the others nested behind it; None for the
            whole. The path is put together when it is asked for, which is hardly ever.
    """

    __slots__ = ("_keys", "file", "hint", "value")

    def __init__(
        self, value: JSON, file: str, hint: str | None = None, keys: _Keys | None = None
    ) -> None:
        self.value = value
        self.file = file
        self.hint = hint
        self._keys = keys

    @classmethod
    def read(cls, path: Path, hint: str | None = None) -> JSONFile:
        """The content of a file.

        Raises:
            UserError: it cannot be read, is no JSON, or nested too deeply.
        """
        try:
            return cls(parse_json(path.read_bytes(), str(path), hint), str(path), hint)
        except OSError as error:
            what = f"cannot be read: {error.strerror}"
            raise UserError(what, file=str(path), hint=hint) from error

    @property
    def place(self) -> str:
        """The keys that lead to the value, as `blocks[1].name`; nothing for the whole."""
        keys: list[str | int] = []
        rest = self._keys
        while rest is not None:
            key, rest = rest
            keys.append(key)
        text = ""
        for key in reversed(keys):
            if isinstance(key, str) and re.fullmatch(r"[\w.-]+", key):
                text += f".{key}" if text else key
            else:
                text += f"[{json.dumps(key)}]"
        return text

    def error(self, what: str) -> UserError:
        """An error of this value; `what` is said of it."""
        place = f"{self.place} " if self.place else ""
        return UserError(f"{place}{what}", file=self.file, hint=self.hint)

    def __getitem__(self, key: str) -> JSONFile:
        content = self._object()
        if key not in content:
            raise self.error(f"has no key '{key}'" if self.place else f"the key '{key}' is missing")
        return self._at(key, content[key])

    def get(self, key: str) -> JSONFile | None:
        """The value of a key that may be missing; null is as missing."""
        value = self._object().get(key)
        return None if value is None else self._at(key, value)

    def items(self) -> Iterator[tuple[str, JSONFile]]:
        """Keys and values of an object."""
        for key, value in self._object().items():
            yield key, self._at(key, value)

    def names(self) -> list[str]:
        """Keys of an object."""
        return list(self._object())

    def values(self) -> Iterator[JSONFile]:
        """Values of an object."""
        for key, value in self._object().items():
            yield self._at(key, value)

    def only(self, *keys: str) -> JSONFile:
        """The object itself, which has no other keys than these."""
        for key in self._object():
            if key not in keys:
                raise self.error(f"has the unknown key '{key}'; keys are {', '.join(keys)}")
        return self

    def list(self, length: int | None = None) -> list[JSONFile]:
        """The values of a list, of a length where one is given."""
        value = self.value
        if not isinstance(value, list):
            raise self.error(f"is {shown(value)}, not a list")
        if length is not None and len(value) != length:
            raise self.error(f"has {len(value)} entries, not {length}")
        return [self._at(i, one) for i, one in enumerate(value)]

    def text(self, *choices: str) -> str:
        """A text; one of some, where they are given."""
        if not isinstance(self.value, str):
            raise self.error(f"is {shown(self.value)}, not a text")
        if choices and self.value not in choices:
            raise self.error(f"is {shown(self.value)}, not one of {', '.join(choices)}")
        return self.value

    def texts(self) -> list[str]:
        """A list of texts."""
        if isinstance(self.value, list):
            found = [one for one in self.value if isinstance(one, str)]
            if len(found) == len(self.value):
                return found
        return [one.text() for one in self.list()]

    def integer(self, low: int = -LARGEST, high: int = LARGEST - 1) -> int:
        """An integer within bounds, both included."""
        value = self.value
        if not isinstance(value, int) or isinstance(value, bool):
            raise self.error(f"is {shown(value)}, not an integer")
        if not low <= value <= high:
            bounds = f"from {low}" if high >= LARGEST - 1 else f"from {low} to {high}"
            raise self.error(f"is {shown(value)}, not {bounds}")
        return value

    def count(self, low: int = 0) -> int:
        """An integer that is not negative, or at least `low`."""
        return self.integer(low)

    def pair(self) -> tuple[int, int]:
        """Two integers."""
        first, second = self.list(2)
        return first.integer(), second.integer()

    def counts(self) -> list[int]:
        """A list of integers that are not negative."""
        value = self.value
        if isinstance(value, list):
            # Long lists: one look at each.
            found = [one for one in value if type(one) is int and 0 <= one < LARGEST]
            if len(found) == len(value):
                return found
        return [one.count() for one in self.list()]

    def number(self) -> float:
        """A number that is finite."""
        value = self.value
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise self.error(f"is {shown(value)}, not a number")
        if not math.isfinite(value):
            raise self.error(f"is {value}, not a finite number")
        return value

    def boolean(self) -> bool:
        """True or false."""
        if not isinstance(self.value, bool):
            raise self.error(f"is {shown(self.value)}, neither true nor false")
        return self.value

    def digest(self) -> str:
        """A SHA-256 in hexadecimal digits."""
        text = self.text()
        if not re.fullmatch("[0-9a-f]{64}", text):
            raise self.error(f"is {shown(text)}, no SHA-256")
        return text

    def read_as(self, read: Callable[[JSONFile], T], what: str) -> T:
        """What a function makes of the value.

        Raises:
            UserError: the function raises a `ValueError`; says that the value is no `what`.
        """
        try:
            return read(self)
        except UserError:
            raise
        except (ValueError, KeyError, TypeError, ArithmeticError, RecursionError) as error:
            raise self.error(f"is {shown(self.value)}, no {what}: {error}") from error

    def _object(self) -> Mapping[str, JSON]:
        if not isinstance(self.value, dict):
            raise self.error(f"is {shown(self.value)}, not an object")
        return self.value

    def _at(self, key: str | int, value: JSON) -> JSONFile:
        return JSONFile(value, self.file, self.hint, (key, self._keys))


def parse_json(data: bytes | str, file: str, hint: str | None = None) -> JSON:
    """The content of a JSON file.

    Raises:
        UserError: it is no JSON, or has levels or numbers beyond the limits.
    """
    try:
        return json.loads(data)
    except RecursionError as error:
        raise UserError(too_deep(), file=file, hint=hint) from error
    except ValueError as error:
        what = long_number(error) or f"is no JSON: {error}"
        raise UserError(what, file=file, hint=hint) from error


def as_json(content: JSON) -> JSON:
    """A value as it comes back from a JSON file: tuples are lists."""
    match content:
        case dict():
            return {key: as_json(one) for key, one in content.items()}
        case list() | tuple():
            return [as_json(one) for one in content]
        case _:
            return content


def too_deep() -> str:
    """What is wrong where Python cannot follow the levels of a file."""
    return f"is nested too deeply: up to about {sys.getrecursionlimit()} levels can be read"


def long_number(error: ValueError) -> str | None:
    """What is wrong where Python refuses to read a long integer."""
    if "integer string conversion" not in str(error):
        return None
    return f"has an integer of more than {_DIGITS} digits"


def is_list(value: object) -> TypeGuard[Sequence[object]]:
    """Whether a value is a list in JSON; what it holds is to be asked."""
    return isinstance(value, list | tuple)


def shown(value: object) -> str:
    """A value for messages, short."""
    match value:
        case dict():
            return "an object"
        case list():
            return "a list"
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case int() if abs(value) >= LARGEST:
            return f"an integer of {value.bit_length()} bits"
        case str() if len(value) > _SHOWN:
            return f"'{value[:_SHOWN]}...'"
        case str():
            return f"'{value}'"
        case _:
            return str(value)
