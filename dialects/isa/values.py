"""Kinds of values that instructions read and write, each with what is said of one.

They are the types of `program.buffer` (`!rom.fixed` and its like) without the IR, and the `type` of
a buffer in program.json: an object with `kind` and the fields by name.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, fields
from functools import cached_property
from typing import ClassVar

from intaglio.dialects.formats import FORMATS
from intaglio.dialects.json_file import JSONFile
from intaglio.dialects.number_ranges import read_ranges


@dataclass(frozen=True)
class Value:
    """Base of all kinds."""

    kind: ClassVar[str]
    """The name in program.json."""
    told: ClassVar[str]
    """What it is, in messages."""

    @property
    def plain(self) -> dict[str, str | int]:
        """The value as in program.json."""
        given = {one.name: getattr(self, one.name) for one in fields(self)}
        return {"kind": self.kind, **{name: one for name, one in given.items() if one != ""}}


@dataclass(frozen=True)
class Fixed(Value):
    """`size` numbers of 32 bits, `fraction` of them fraction bits."""

    kind = "fixed"
    told = "fixed-point numbers"
    size: int
    fraction: int


class Coded(Value):
    """Base of what matrices are multiplied with.

    Attributes:
        format: of its codes, a name in `FORMATS`.
    """

    told = "a quantised vector"
    format: str

    @property
    @abstractmethod
    def size(self) -> int:
        """Elements."""

    @property
    def shown(self) -> str:
        """The format, as reports name it."""
        return self.format


@dataclass(frozen=True)
class Quantized(Coded):
    """`groups` groups of `width` codes of a format, each group with its scale."""

    kind = "quantized"
    groups: int
    width: int
    format: str

    @property
    def size(self) -> int:
        return self.groups * self.width


@dataclass(frozen=True)
class Blocks(Coded):
    """`elements` codes of a format, `block` of which share an exponent and a step; the integers
    that they stand for have `fraction` fraction bits. `wide` names the blocks whose codes have 16
    bits (`number_ranges`)."""

    kind = "blocked"
    told = "a vector quantised by blocks"
    elements: int
    format: str
    block: int
    fraction: int
    wide: str = ""

    @property
    def shown(self) -> str:
        return f"{self.format}, blocks {self.wide} wide" if self.wide else self.format

    @cached_property
    def wide_blocks(self) -> frozenset[int]:
        """The numbers of the blocks whose codes have 16 bits."""
        return read_ranges(self.wide)

    @property
    def size(self) -> int:
        return self.elements


@dataclass(frozen=True)
class Scale(Value):
    """A number that results of products are times: a mantissa with an exponent."""

    kind = "factor"
    told = "a scale"


@dataclass(frozen=True)
class Scores(Value):
    """Of each head one number of 32 bits a cached token."""

    kind = "scores"
    told = "scores"
    heads: int
    fraction: int


@dataclass(frozen=True)
class Probabilities(Value):
    """Of each head one code of a format a cached token, a scale and a sum."""

    kind = "probabilities"
    told = "probabilities"
    heads: int
    format: str


@dataclass(frozen=True)
class Routing(Value):
    """The numbers of `chosen` of so many experts, each with its share."""

    kind = "routing"
    told = "a routing to experts"
    chosen: int
    experts: int


@dataclass(frozen=True)
class Token(Value):
    """The id of a token."""

    kind = "token"
    told = "a token"


KINDS: dict[str, type[Value]] = {
    one.kind: one
    for one in (Fixed, Quantized, Blocks, Scale, Scores, Probabilities, Routing, Token)
}
"""All kinds by name."""


def read_value(content: JSONFile) -> Value:
    """A value as it is said in a JSON file.

    Raises:
        UserError: names the key that is missing or wrong.
    """
    kind = KINDS[content["kind"].text(*KINDS)]
    names = [one.name for one in fields(kind)]
    content.only("kind", *names)
    told = content.get("wide") if "wide" in names else None
    wide = {} if told is None else {"wide": _ranges(told)}
    # A fraction may be 0, sizes may not.
    return kind(
        **{
            name: content[name].text(*FORMATS)
            if name == "format"
            else content[name].count(0 if name == "fraction" else 1)
            for name in names
            if name != "wide"
        },
        **wide,
    )


def _ranges(content: JSONFile) -> str:
    text = content.text()
    try:
        _ = read_ranges(text)
    except ValueError as error:
        raise content.error(str(error)) from error
    return text
