"""Whether an instruction is as it is declared: one checker for the IR and for program.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from intaglio.dialects.isa.instruction import Instruction, V
from intaglio.dialects.isa.parts import Argument, Role, Store
from intaglio.dialects.isa.values import Value


class Misfit(ValueError):
    """An instruction is not as it is declared; says which and what of it."""


def build(
    declared: type[Instruction[Any]],
    reads: Sequence[V],
    writes: Sequence[V],
    uses: Mapping[str, str],
    arguments: Mapping[str, object],
) -> Instruction[V]:
    """The instruction with these parts.

    Args:
        declared: what it is an instance of.
        reads: what stands for the values that it reads.
        writes: what stands for those that it writes.
        uses: slots by role.
        arguments: as in program.json.

    Raises:
        Misfit: a part is missing, unknown, of another type, or does not fit its width.
    """
    opcode, form = declared.opcode, declared.form
    content: dict[str, object] = {}
    for verb, operands, given in (
        ("reads", form.reads, reads),
        ("writes", form.writes, writes),
    ):
        # With its flag an operand is there, else it is not.
        operands = [one for one in operands if not one.when or arguments.get(one.when)]
        least = sum(not one.optional or bool(one.when) for one in operands)
        if not least <= len(given) <= len(operands):
            count = f"{least} or {len(operands)}" if least < len(operands) else str(least)
            names = f" ({', '.join(one.name for one in operands)})" if operands else ""
            raise Misfit(
                f"'{opcode}' {verb} {count} value{'s' * (count != '1')}{names}, not {len(given)}"
            )
        content |= zip((one.name for one in operands), given, strict=False)
    content |= _named("role", declared, form.roles, uses)
    given_arguments = _named("argument", declared, form.arguments, arguments)
    for one in form.arguments:
        if one.name in given_arguments:
            try:
                content[one.name] = one.kind.read(given_arguments[one.name])
            except ValueError as error:
                raise Misfit(f"argument '{one.name}' of '{opcode}' {error}") from error
    missing = [name for name in declared.together if name not in arguments]
    if missing and len(missing) < len(declared.together):
        raise Misfit(
            f"'{opcode}' has no argument '{missing[0]}'; it takes "
            f"{', '.join(declared.together)} together"
        )
    return declared(**content)


def _named(
    what: str,
    declared: type[Instruction[Any]],
    parts: Sequence[Role | Argument],
    given: Mapping[str, object],
) -> dict[str, object]:
    """What is given by name, all of it known, and nothing missing."""
    opcode, names = declared.opcode, [one.name for one in parts]
    for name in given:
        if name not in names:
            known = f"{what}s are {', '.join(names)}" if names else f"it has no {what}s"
            raise Misfit(f"'{opcode}' has the unknown {what} '{name}'; {known}")
    for one in parts:
        if one.name not in given and not one.optional:
            raise Misfit(f"'{opcode}' has no {what} '{one.name}'")
    return dict(given)


def check_kinds(
    one: Instruction[str],
    kinds: Mapping[str, type[Value] | None],
    instances: Sequence[Mapping[str, str]],
    stores: Mapping[str, Store],
) -> None:
    """Checks that values and buffers are of the kinds that the instruction takes.

    Args:
        one: the instruction.
        kinds: the kind of each value by name; None: none of a program's.
        instances: what each instance of the block binds slots to.
        stores: what there is to bind to.

    Raises:
        Misfit: one of them is not.
    """
    for verb, operands in (("reads", one.form.reads), ("writes", one.form.writes)):
        for operand in operands:
            name: str | None = getattr(one, operand.name)
            if name is None:
                continue
            kind = kinds[name]
            if kind is not None and issubclass(kind, operand.kind):
                continue
            told = "something else" if kind is None else kind.told
            raise Misfit(
                f"'{one.opcode}' {verb} {operand.kind.told} as {operand.name}; '{name}' is {told}"
            )
    for role in one.form.roles:
        slot: str | None = getattr(one, role.name)
        if slot is None:
            continue
        for instance in instances:
            bound = instance[slot]
            if bound not in stores:
                raise Misfit(
                    f"'{one.opcode}' takes {role.told} as {role.name}; there is no '{bound}'"
                )
            if not stores[bound].fits(role.stores):
                raise Misfit(
                    f"'{one.opcode}' takes {role.told} as {role.name}; '{bound}' is "
                    f"{stores[bound].value}"
                )
