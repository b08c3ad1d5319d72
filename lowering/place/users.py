"""Which operators use each buffer of a module, through the slots of outlined layers too."""

from __future__ import annotations

from collections.abc import Iterator

from xdsl.dialects.builtin import ModuleOp, SymbolRefAttr
from xdsl.ir import Operation

from intaglio.dialects import rom
from intaglio.dialects.fabric import PlaceOp

Use = tuple[str, Operation, str]
"""A buffer, an operator that uses it, and as what: the name of the operator's property."""


def uses(module: ModuleOp) -> Iterator[Use]:
    """Each use of each buffer once; an operator of a layer uses one for each instance."""
    in_slots: dict[rom.SlotOp, list[tuple[Operation, str]]] = {}
    for op in module.walk():
        if isinstance(op, rom.RepeatOp | PlaceOp):
            continue
        for role, symbol in op.properties.items():
            if not isinstance(symbol, SymbolRefAttr):
                continue
            buffer = rom.resolve(op, symbol)
            if isinstance(buffer, rom.SlotOp):
                in_slots.setdefault(buffer, []).append((op, role))
            else:
                yield buffer.sym_name.data, op, role
    for op in module.walk():
        if isinstance(op, rom.RepeatOp):
            for slot, buffer in op.bound():
                for user, role in in_slots.get(slot, ()):
                    yield buffer.sym_name.data, user, role


def users(module: ModuleOp) -> dict[str, set[type[Operation]]]:
    """The kinds of operator that use each buffer of the module."""
    found: dict[str, set[type[Operation]]] = {}
    for name, op, _ in uses(module):
        found.setdefault(name, set()).add(type(op))
    return found
