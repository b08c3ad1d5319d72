"""What the declaration of an instruction is, and what it gives.

An instruction is a frozen dataclass. Its fields are all that an instance says: the values that it
reads and writes, the buffers that it uses by role, its arguments:

    class Matvec(Instruction[V], opcode="matvec", queue=MATRIX, meaning=(dot, requantize)):
        input: V = read(Quantized)
        residual: V | None = read(Fixed, elementwise=True, default=None)
        output: V = write(Fixed)
        weights: str = use(Store.MATRIX)
        bias: str | None = use(Store.VECTOR, default=None)
        pre_shift: int = integer(6)

`V` is what stands for a value: the name of a buffer in a program, an SSA value before values have
places. Roles hold slots of the block. Everything else reads the declaration: the verifier of
`program.instruction` and the reader of program.json (`check`), the
selection, the simulator, the encoders, hazards, power and the reference page.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import Field, dataclass, fields, replace
from typing import Any, ClassVar, Generic, Self, TypeVar, dataclass_transform

from intaglio.dialects.isa.arguments import Plain
from intaglio.dialects.isa.parts import (
    PART,
    Access,
    Form,
    Operand,
    Store,
    argument,
    choice,
    flag,
    integer,
    number,
    read,
    use,
    write,
)

V = TypeVar("V")
W = TypeVar("W")


@dataclass_transform(
    kw_only_default=True,
    frozen_default=True,
    field_specifiers=(read, write, use, integer, number, choice, flag, argument),
)
@dataclass(frozen=True, kw_only=True)
class Instruction(Generic[V]):
    """An instruction of a queue: base of all declarations.

    A subclass with an opcode is a declaration and becomes a frozen dataclass; one without is a base
    of others.

    Attributes:
        opcode: its name.
        queue: where it stands.
        form: its parts.
        meaning: the functions of `dialects/semantics.py` and formulas that it computes.
        together: arguments that are all given, or none.
    """

    opcode: ClassVar[str]
    queue: ClassVar[str]
    form: ClassVar[Form]
    meaning: ClassVar[tuple[Callable[..., object], ...]] = ()
    together: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(
        cls,
        opcode: str | None = None,
        queue: str | None = None,
        meaning: Iterable[Callable[..., object]] = (),
        together: Iterable[str] = (),
    ) -> None:
        dataclass(frozen=True, kw_only=True)(cls)
        if opcode is None or queue is None:
            return
        cls.opcode, cls.queue = opcode, queue
        cls.meaning, cls.together = tuple(meaning), tuple(together)
        cls.form = _form(cls)

    # What an instance says, without its names

    @property
    def reads(self) -> tuple[V, ...]:
        """The values that it reads, in order."""
        return self._given(self.form.reads)

    @property
    def writes(self) -> tuple[V, ...]:
        """The values that it writes, in order."""
        return self._given(self.form.writes)

    @property
    def overwritten(self) -> tuple[V, ...]:
        """The values in whose place the result may be written."""
        return self._given([one for one in self.form.reads if one.elementwise])

    @property
    def uses(self) -> dict[str, str]:
        """Slots by role."""
        return {
            one.name: slot
            for one in self.form.roles
            if (slot := getattr(self, one.name)) is not None
        }

    @property
    def arguments(self) -> dict[str, Plain]:
        """Arguments as in program.json."""
        return {
            one.name: one.kind.plain(value)
            for one in self.form.arguments
            if (value := getattr(self, one.name)) is not None and value is not False
        }

    @property
    def read_caches(self) -> tuple[str, ...]:
        """Slots of caches of which it reads codes or scales, and of states that it reads."""
        return (
            *self.slots(Store.CACHE, Access.READ, Access.SCALES),
            *self.slots(Store.STATE, Access.EXCHANGE),
            *self.slots(Store.MATRICES, Access.EXCHANGE),
        )

    @property
    def written_caches(self) -> tuple[str, ...]:
        """Slots of caches and states that it writes."""
        return (
            *self.slots(Store.CACHE, Access.WRITE),
            *self.slots(Store.STATE, Access.EXCHANGE),
            *self.slots(Store.MATRICES, Access.EXCHANGE),
        )

    def bound(self, instance: Mapping[str, str]) -> Self:
        """The instruction of an instance: its roles are what the instance binds the slots to."""
        return replace(self, **{role: instance.get(slot, slot) for role, slot in self.uses.items()})

    def with_values(self, of: Callable[[V], W]) -> Instruction[W]:
        """The same instruction, with other things that stand for its values."""
        every = _declaration(self)
        operands = {one.name for one in (*self.form.reads, *self.form.writes)}
        content = {one.name: getattr(self, one.name) for one in _fields(every)}
        return every(
            **{
                name: of(value) if name in operands and value is not None else value
                for name, value in content.items()
            }
        )

    def slots(self, store: Store, *access: Access) -> tuple[str, ...]:
        """Slots of roles that take a kind of buffer, and do one of some things with it."""
        uses = self.uses
        return tuple(
            uses[one.name]
            for one in self.form.roles
            if one.access in access and store in one.stores and one.name in uses
        )

    def _given(self, operands: Sequence[Operand]) -> tuple[V, ...]:
        values = [getattr(self, one.name) for one in operands]
        return tuple(value for value in values if value is not None)


def _declaration(one: Instruction[Any]) -> type[Instruction[Any]]:
    return type(one)


def _fields(cls: Any) -> tuple[Field[Any], ...]:
    return fields(cls)


def _form(cls: type[Instruction[Any]]) -> Form:
    parts: dict[str, list[Any]] = {"reads": [], "writes": [], "roles": [], "arguments": []}
    for one in _fields(cls):
        kind, part = one.metadata[PART]
        parts[kind].append(part(one.name, one.default is None or one.default is False))
    return Form(**{kind: tuple(found) for kind, found in parts.items()})
