"""The parts of an instruction's declaration, and the fields that declare them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from intaglio.dialects.codes import DENSE_BITS
from intaglio.dialects.isa.arguments import Choice, Flag, Integer, Kind, Number
from intaglio.dialects.isa.values import Value


class Store(Enum):
    """Kinds of buffers that a role may name."""

    MATRIX = "a matrix of codes in ROM"
    TABLE = "a table of numbers"
    VECTOR = "a vector of numbers"
    ADAPTER = "a matrix of an adapter"
    CACHE = "a cache"
    STATIC_CACHE = "a cache with a static scale"
    STATE = "a state"
    MATRICES = "a state of matrices"
    DOMAIN = "a power domain"

    @staticmethod
    def of_tensor(in_rom: bool, code: str, dims: Sequence[int]) -> Store:
        """That of a tensor: engraved or in SRAM, with elements of a code."""
        if code in DENSE_BITS:
            return Store.VECTOR if len(dims) == 1 else Store.TABLE
        return Store.MATRIX if in_rom else Store.ADAPTER

    def fits(self, wanted: Sequence[Store]) -> bool:
        """Whether a role that takes some kinds takes this one."""
        return self in wanted or (self is Store.STATIC_CACHE and Store.CACHE in wanted)


class Access(Enum):
    """What an instruction does with the content of what a role names."""

    READ = "read"
    WRITE = "written"
    SCALES = "the scales of its tokens are read"
    EXCHANGE = "read, then written"
    NONE = "only what the program says of it"


@dataclass(frozen=True)
class Operand:
    """A value that is read or written.

    Attributes:
        name: of the field.
        kind: of the value.
        optional: whether it may be left out; then all behind it are, too.
        elementwise: of what is read: each element is read before the result's is written, so the
            result may take its place.
        when: the flag among the arguments with which it is there; "": none says it.
    """

    name: str
    kind: type[Value]
    optional: bool
    elementwise: bool = False
    when: str = ""


@dataclass(frozen=True)
class Role:
    """What a buffer of the module is to the instruction."""

    name: str
    stores: tuple[Store, ...]
    access: Access
    optional: bool

    @property
    def told(self) -> str:
        """What it may name."""
        return " or ".join(one.value for one in self.stores)


@dataclass(frozen=True)
class Argument:
    """A constant of the instruction."""

    name: str
    kind: Kind
    optional: bool


@dataclass(frozen=True)
class Form:
    """The parts of a declaration by their kind, in the order of the fields."""

    reads: tuple[Operand, ...]
    writes: tuple[Operand, ...]
    roles: tuple[Role, ...]
    arguments: tuple[Argument, ...]


PART = "isa"
_REQUIRED: Any = object()


def _declared(part: Callable[[str, bool], object], kind: str, default: Any) -> Any:
    about = {PART: (kind, part)}
    if default is _REQUIRED:
        return field(metadata=about)
    return field(metadata=about, default=default)


def read(
    kind: type[Value], *, elementwise: bool = False, default: Any = _REQUIRED, when: str = ""
) -> Any:
    """A field for a value that is read; optional with `default=None`, or there with a flag."""
    if when:
        return _declared(lambda n, _: Operand(n, kind, True, elementwise, when), "reads", None)
    return _declared(lambda n, o: Operand(n, kind, o, elementwise), "reads", default)


def write(kind: type[Value]) -> Any:
    """A field for a value that is written."""
    return _declared(lambda n, o: Operand(n, kind, o), "writes", _REQUIRED)


def use(*stores: Store, access: Access = Access.READ, default: Any = _REQUIRED) -> Any:
    """A field for the slot of a buffer of one of some kinds; optional with `default=None`."""
    return _declared(lambda n, o: Role(n, stores, access, o), "roles", default)


def integer(bits: int, *, signed: bool = False, default: Any = _REQUIRED) -> Any:
    """A field for an integer of some bits; optional with `default=None`."""
    return argument(Integer(bits, signed), default=default)


def number(*, default: Any = _REQUIRED) -> Any:
    """A field for a constant, a `Real`; optional with `default=None`."""
    return argument(Number(), default=default)


def choice(*words: str) -> Any:
    """A field for one of some words."""
    return argument(Choice(words))


def flag(*, default: Any = False) -> Any:
    """A field that is true or false."""
    return argument(Flag(), default=default)


def argument(kind: Kind, *, default: Any = _REQUIRED) -> Any:
    """A field for an argument of a type."""
    return _declared(lambda n, o: Argument(n, kind, o), "arguments", default)
