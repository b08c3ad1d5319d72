"""What the declarations say of the instructions, for people: docs/reference/instructions.md, `ops`.

`python -m intaglio.reference docs/reference` writes the page, `intaglio ops --instructions` prints
the same.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from intaglio.dialects.isa.instruction import Instruction
from intaglio.dialects.isa.parts import Operand
from intaglio.dialects.isa.registry import INSTRUCTIONS


@dataclass(frozen=True)
class Part:
    """A value, role or argument: its name, what it is, whether it may be left out."""

    name: str
    of: str
    optional: bool


@dataclass(frozen=True)
class Entry:
    """What is said of an instruction; parts under the keys of program.json."""

    opcode: str
    queue: str
    does: str
    reads: list[Part]
    writes: list[Part]
    uses: list[Part]
    arguments: list[Part]
    together: list[str]
    meaning: list[str]

    @property
    def parts(self) -> Iterator[tuple[str, Part]]:
        """All parts, each with its key."""
        for key, parts in (
            ("reads", self.reads),
            ("writes", self.writes),
            ("uses", self.uses),
            ("arguments", self.arguments),
        ):
            for one in parts:
                yield key, one


def entries() -> list[Entry]:
    """All instructions."""
    return [_entry(one) for one in INSTRUCTIONS]


def _entry(one: type[Instruction[Any]]) -> Entry:
    form = one.form
    return Entry(
        opcode=one.opcode,
        queue=one.queue,
        does=inspect.cleandoc(one.__doc__ or ""),
        reads=[_operand(part) for part in form.reads],
        writes=[_operand(part) for part in form.writes],
        uses=[
            Part(part.name, f"{part.told}; {part.access.value}", part.optional)
            for part in form.roles
        ],
        arguments=[Part(part.name, part.kind.told, part.optional) for part in form.arguments],
        together=list(one.together),
        meaning=[f"{f.__module__.rpartition('.')[2]}.{f.__qualname__}" for f in one.meaning],
    )


def _operand(one: Operand) -> Part:
    place = "; the result may lie there" if one.elementwise else ""
    return Part(one.name, f"{one.kind.told}{place}", one.optional)


def lines(entry: Entry) -> Iterator[str]:
    """An instruction as lines of text."""
    yield f"{entry.opcode} (queue {entry.queue})"
    yield from (f"  {line}".rstrip() for line in entry.does.splitlines())
    for key, part in entry.parts:
        given = " (optional)" if part.optional else ""
        yield f"    {key:<10} {part.name:<14} {part.of}{given}"
    if entry.together:
        yield f"    {', '.join(entry.together)}: all, or none"
    if entry.meaning:
        yield f"    computes   {', '.join(entry.meaning)}"
