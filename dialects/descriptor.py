"""The descriptor of an instruction: numbers in fields of stated widths, one word for hardware.

Each unit states the fields of its instructions once, with what they mean; encoders give values, and
whether these fit is asked here only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from intaglio.dialects.errors import CompilerBug, UserError


@dataclass(frozen=True)
class Field:
    """A field of a descriptor.

    Attributes:
        name: of the field.
        width: in bits.
        meaning: what its number says.
        signed: whether it is a number in two's complement.
    """

    name: str
    width: int
    meaning: str = ""
    signed: bool = False

    @property
    def range(self) -> range:
        """The numbers that fit."""
        low = 1 << self.width - 1 if self.signed and self.width else 0
        return range(-low, (1 << self.width) - low)


class Fields(Mapping[str, int]):
    """The fields of a descriptor in order, the first in the lowest bits: width by name.

    Raises:
        CompilerBug: two fields have one name.
    """

    def __init__(self, fields: Iterable[Field]) -> None:
        self.fields = tuple(fields)
        self._named = {one.name: one for one in self.fields}
        if len(self._named) != len(self.fields):
            raise CompilerBug(f"fields of one name among {', '.join(f.name for f in self.fields)}")

    def __getitem__(self, name: str) -> int:
        return self._named[name].width

    def __iter__(self) -> Iterator[str]:
        return iter(self._named)

    def __len__(self) -> int:
        return len(self.fields)

    def __repr__(self) -> str:
        return f"Fields({list(self.fields)!r})"

    @property
    def width(self) -> int:
        """Bits of the word, one at least."""
        return max(1, sum(one.width for one in self.fields))

    def refusals(self, values: Mapping[str, int]) -> list[str]:
        """Why values are no descriptor: a field that is missing or unknown, or is too narrow."""
        found = [f"there is no field '{name}'" for name in values if name not in self._named]
        for one in self.fields:
            if one.name not in values:
                found.append(f"field '{one.name}' is missing")
            elif (value := values[one.name]) not in one.range:
                means = f" ({one.meaning})" if one.meaning else ""
                sign = "signed " if one.signed else ""
                found.append(
                    f"{value} does not fit the {one.width} {sign}bits of '{one.name}'{means}"
                )
        return found

    def checked(
        self, values: Mapping[str, int], opcode: str, node: str | None = None
    ) -> dict[str, int]:
        """The values in the fields' order.

        Args:
            values: a number for each field.
            opcode: of the instruction.
            node: the ONNX node that it stands for.

        Raises:
            UserError: a number does not fit its field.
            CompilerBug: a field has no number, or there is none of that name.
        """
        if values.keys() != self._named.keys():
            raise CompilerBug(f"descriptor of {opcode}: {'; '.join(self.refusals(values))}")
        if found := self.refusals(values):
            raise UserError(
                f"the hardware cannot encode {opcode}: {'; '.join(found)}",
                node=node,
                op_type=None if node is None else opcode,
            )
        return {name: values[name] for name in self._named}

    def pack(self, values: Mapping[str, int]) -> int:
        """The word; a field that is not given is 0.

        Raises:
            CompilerBug: a value does not fit its field, or has none.
        """
        every = {**dict.fromkeys(self._named, 0), **values}
        if found := self.refusals(every):
            raise CompilerBug(f"no word for a descriptor: {'; '.join(found)}")
        word = place = 0
        for one in self.fields:
            word |= (every[one.name] & (1 << one.width) - 1) << place
            place += one.width
        return word

    def unpack(self, word: int) -> dict[str, int]:
        """The values that a word holds."""
        values: dict[str, int] = {}
        for one in self.fields:
            value = word & (1 << one.width) - 1
            values[one.name] = value if value in one.range else value - (1 << one.width)
            word >>= one.width
        return values


def wait_fields(waits: Iterable[Mapping[str, int]], queues: Iterable[str]) -> tuple[Field, ...]:
    """The fields of a queue's descriptors that say what an instruction waits for.

    A queue that no instruction of this one waits for has no field.

    Args:
        waits: of each descriptor, how many instructions of other queues must have finished.
        queues: all of them, in order.
    """
    most: dict[str, int] = {}
    for one in waits:
        for queue, count in one.items():
            most[queue] = max(most.get(queue, 0), count)
    return tuple(
        Field(f"wait_{q}", most[q].bit_length(), f"instructions of {q} that must have finished")
        for q in queues
        if most.get(q)
    )
