"""The ports of a unit as bundles: each says what of the chip it is joined to.

The chip joins bundles (`backend/hw/chip/chip.py`); `check_ports` compares them with the module that
was built, so that no port is left out and none is declared that does not exist.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from intaglio.backend.hw.units.memories import Memory
from intaglio.backend.hw.wires.signal import RESET, ModuleBuilder
from intaglio.dialects.descriptor import Fields
from intaglio.dialects.errors import CompilerBug
from intaglio.dialects.isa.instruction import Instruction


class Bundle:
    """Ports that belong together."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the ports that the unit reads."""
        return ()

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the ports that the unit drives."""
        return ()


@dataclass(frozen=True)
class Command(Bundle):
    """A unit's end of a queue: `start` with a port for each field, `done` in the last cycle.

    Attributes:
        instructions: what it executes, all of one queue.
        fields: its fields of the queue's descriptors.
        prefix: what its ports' names begin with.
        flows: there is `ready`, which tells in which cycles an instruction may start.
        reduces: there is `reduced`, which tells the last cycle in which the reduction of an
            instruction is not there yet.
    """

    instructions: tuple[type[Instruction[Any]], ...]
    fields: Fields
    prefix: str = ""
    flows: bool = False
    reduces: bool = False

    @property
    def queue(self) -> str:
        """Whose instructions it takes."""
        (queue,) = {one.queue for one in self.instructions}
        return queue

    @property
    def start(self) -> str:
        """The port that an instruction starts with."""
        return f"{self.prefix}start"

    @property
    def done(self) -> str:
        """The port that tells its last cycle."""
        return f"{self.prefix}done"

    @property
    def ready(self) -> str:
        """The port that tells in which cycles an instruction may start."""
        return f"{self.prefix}ready"

    @property
    def reduced(self) -> str:
        """The port that tells when reductions are there."""
        return f"{self.prefix}reduced"

    @property
    def inputs(self) -> tuple[str, ...]:
        return self.start, *(self.port(name) for name in self.fields)

    @property
    def outputs(self) -> tuple[str, ...]:
        ready = (self.ready,) if self.flows else ()
        return self.done, *ready, *((self.reduced,) if self.reduces else ())

    def port(self, field: str) -> str:
        """The port of a field."""
        return f"{self.prefix}{field}"


@dataclass(frozen=True)
class Read(Bundle):
    """A read port of a memory, which answers a cycle later.

    Attributes:
        memory: what is read.
        address: the port with the number of the word.
        data: the ports that take parts of the word, by the parts' names.
    """

    memory: Memory
    address: str
    data: Mapping[str, str]

    @property
    def inputs(self) -> tuple[str, ...]:
        return tuple(self.data.values())

    @property
    def outputs(self) -> tuple[str, ...]:
        return (self.address,)


@dataclass(frozen=True)
class Write(Bundle):
    """A write port of a memory.

    Attributes:
        memory: what is written.
        address: the port with the number of the word.
        data: the ports that give parts of the word, by the parts' names.
        enable: the port that says when.
        mask: the port with a bit for each lane that is written; None: all are.
    """

    memory: Memory
    address: str
    data: Mapping[str, str]
    enable: str
    mask: str | None = None

    @property
    def outputs(self) -> tuple[str, ...]:
        mask = () if self.mask is None else (self.mask,)
        return self.address, *self.data.values(), self.enable, *mask


@dataclass(frozen=True)
class Serve(Bundle):
    """The read port of a memory that is inside the unit.

    Attributes:
        memory: what is read.
        address: the port that takes the number of the word.
        data: the port that gives the word a cycle later.
    """

    memory: Memory
    address: str
    data: str

    @property
    def inputs(self) -> tuple[str, ...]:
        return (self.address,)

    @property
    def outputs(self) -> tuple[str, ...]:
        return (self.data,)


@dataclass(frozen=True)
class Take(Bundle):
    """A port that takes what the chip or another unit gives under a name."""

    port: str
    name: str

    @property
    def inputs(self) -> tuple[str, ...]:
        return (self.port,)


@dataclass(frozen=True)
class Give(Bundle):
    """A port that gives under a name what the chip or another unit takes."""

    port: str
    name: str

    @property
    def outputs(self) -> tuple[str, ...]:
        return (self.port,)


@dataclass(frozen=True)
class Saturations(Bundle):
    """A port that counts the values that did not fit among those written in this cycle."""

    port: str

    @property
    def outputs(self) -> tuple[str, ...]:
        return (self.port,)


@dataclass(frozen=True)
class Load(Bundle):
    """The ports of the chip's load port: a word comes while no token is worked on."""

    enable: str
    address: str
    data: str

    @property
    def inputs(self) -> tuple[str, ...]:
        return self.enable, self.address, self.data


TOKEN = "token"
"""Given by the chip: the token whose matrix instruction starts, or was the last to."""
WANTED = "wanted"
"""Given by the chip: whether the token's successor is wanted."""
NEXT_TOKEN = "next_token"
"""Given by a unit: the token's successor."""
NEXT_TOKEN_CONTEXT = "next_token_context"
"""Given by a unit, where the chip has contexts: that of the token whose successor can be read."""
NEXT_TOKEN_VALID = "next_token_valid"
"""Given by a unit: the first cycle in which the token's successor can be read."""
POWER_BITS = "power"
"""Given by a unit: a bit for each power domain."""


def position_of(queue: str) -> str:
    """The name under which the chip gives the position of the token whose instruction of a queue
    starts, or was the last to."""
    return f"position_of_{queue}"


def context_of(queue: str) -> str:
    """Likewise its context."""
    return f"context_of_{queue}"


def row(memory: Memory, name: str, address: str = "row") -> Read:
    """A read port with the ports ``<name>_<address>`` and ``<name>_data``."""
    return Read(memory, f"{name}_{address}", {"data": f"{name}_data"})


def entry(memory: Memory, name: str, address: str) -> Read:
    """A read port of a file: ``<name>_<address>``, and ``<name>_<part>`` for each part."""
    return Read(memory, f"{name}_{address}", {part: f"{name}_{part}" for part in memory.parts})


def written_row(memory: Memory, name: str, address: str = "row", mask: str | None = None) -> Write:
    """A write port with the ports ``<name>_<address>``, ``_data``, ``_enable`` and a mask's."""
    return Write(
        memory,
        f"{name}_{address}",
        {"data": f"{name}_data"},
        f"{name}_enable",
        None if mask is None else f"{name}_{mask}",
    )


def check_ports(module: ModuleBuilder, bundles: Iterable[Bundle]) -> None:
    """Compares the ports that a module has with those that are declared.

    Raises:
        CompilerBug: they differ in name or direction.
    """
    declared = set(_directions(bundles))
    built = {(p.name, p.output) for p in module.ports if not p.clock and p.name != RESET}
    for what, names in (("undeclared", built - declared), ("missing", declared - built)):
        if names:
            listed = ", ".join(sorted(name for name, _ in names))
            raise CompilerBug(f"{module.name}: {what} ports {listed}")


def _directions(bundles: Iterable[Bundle]) -> Iterator[tuple[str, bool]]:
    for bundle in bundles:
        yield from ((name, False) for name in bundle.inputs)
        yield from ((name, True) for name in bundle.outputs)
