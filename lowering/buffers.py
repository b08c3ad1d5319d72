"""What passes ask of the buffers that a module declares."""

from __future__ import annotations

from xdsl.dialects.builtin import ModuleOp, SymbolRefAttr

from intaglio.dialects import rom


def name_of(symbol: SymbolRefAttr) -> str:
    """The name of a buffer, or of a slot of a layer."""
    return symbol.root_reference.data


def state_sizes(module: ModuleOp) -> dict[str, int]:
    """The states of a module by name, each with its number of elements."""
    return {
        op.sym_name.data: op.type.size.data
        for op in module.ops
        if isinstance(op, rom.StateOp) and isinstance(op.type, rom.StateType)
    }


def matrices_of(module: ModuleOp) -> dict[str, rom.MatricesType]:
    """The states of linear attention of a module by name."""
    return {
        op.sym_name.data: op.type
        for op in module.ops
        if isinstance(op, rom.StateOp) and isinstance(op.type, rom.MatricesType)
    }


def context(module: ModuleOp) -> int:
    """Tokens that the largest cache of a module holds; without caches those of its step, or 1."""
    caches = (op.type for op in module.ops if isinstance(op, rom.CacheOp))
    held = [one.capacity.data for one in caches if isinstance(one, rom.KVType)]
    steps = [op.context.value.data for op in module.ops if isinstance(op, rom.StepOp)]
    return max(held or [*steps, 1])
