"""The types of instructions' arguments: what a value must be, and its form in program.json."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from intaglio.dialects.fixed_point import Real
from intaglio.dialects.json_file import is_list, shown

Plain = int | str | bool | list[int]
"""An argument as in program.json."""


class Kind(ABC):
    """The type of an argument."""

    @property
    @abstractmethod
    def told(self) -> str:
        """What it is, for the reference."""

    @abstractmethod
    def read(self, value: object) -> object:
        """The argument from what program.json holds.

        Raises:
            ValueError: it is of another type, or does not fit the width.
        """

    def plain(self, value: Any) -> Plain:
        """The argument as in program.json."""
        return value


@dataclass(frozen=True)
class Integer(Kind):
    """An integer of some bits."""

    bits: int
    signed: bool = False

    @property
    def told(self) -> str:
        return f"{'signed' if self.signed else 'unsigned'}, {self.bits} bits"

    def read(self, value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool):
            raise ValueError(f"is {shown(value)}, not an integer")
        low = -(1 << (self.bits - 1)) if self.signed else 0
        if not low <= value < (1 << self.bits) + low:
            raise ValueError(f"is {shown(value)}, which {self.bits} bits do not hold")
        return value


@dataclass(frozen=True)
class Number(Kind):
    """A constant of the integer stage, ``mantissa * 2**-exponent``."""

    mantissa: Integer = Integer(25, signed=True)
    exponent: Integer = Integer(11, signed=True)

    @property
    def told(self) -> str:
        return f"[mantissa ({self.mantissa.told}), exponent ({self.exponent.told})]"

    def read(self, value: object) -> Real:
        if not is_list(value) or len(value) != 2:
            raise ValueError(f"is {shown(value)}, not [mantissa, exponent]")
        parts: list[int] = []
        for name, kind, part in zip(
            ("mantissa", "exponent"), (self.mantissa, self.exponent), value, strict=True
        ):
            try:
                parts.append(kind.read(part))
            except ValueError as error:
                raise ValueError(f"has a wrong {name}: it {error}") from error
        return Real(*parts)

    def plain(self, value: Real) -> Plain:
        return [value.mantissa, value.exponent]


@dataclass(frozen=True)
class Choice(Kind):
    """One of some words."""

    words: tuple[str, ...]

    @property
    def told(self) -> str:
        return f"one of {', '.join(self.words)}"

    def read(self, value: object) -> str:
        if not isinstance(value, str) or value not in self.words:
            raise ValueError(f"is {shown(value)}, not {self.told}")
        return value


@dataclass(frozen=True)
class Flag(Kind):
    """True, or left out."""

    @property
    def told(self) -> str:
        return "true, or left out"

    def read(self, value: object) -> bool:
        if not isinstance(value, bool):
            raise ValueError(f"is {shown(value)}, neither true nor false")
        return value
