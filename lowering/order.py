"""The order of passes: what a module has been through, and what a pass out of order says.

Only what is there counts: a module without operators, such as a person writes to try one pass, may
be at any stage.
"""

from __future__ import annotations

from collections.abc import Callable

from xdsl.dialects.builtin import ModuleOp, TensorType
from xdsl.utils.exceptions import PassFailedException

from intaglio.dialects import rom
from intaglio.dialects.fabric import PlaceOp
from intaglio.dialects.program import ProgramOp


def _is_legalised(module: ModuleOp) -> bool:
    return any(isinstance(r.type, rom.FixedType) for op in module.walk() for r in op.results)


def _is_placed(module: ModuleOp) -> bool:
    return any(isinstance(op, PlaceOp) for op in module.ops)


def _is_scheduled(module: ModuleOp) -> bool:
    return any(isinstance(op, ProgramOp) for op in module.ops)


_STATES: dict[str, tuple[str, Callable[[ModuleOp], bool]]] = {
    "rom-legalize": ("legalised", _is_legalised),
    "fabric-place": ("placed", _is_placed),
    "program-schedule": ("scheduled", _is_scheduled),
}
"""What each pass makes of a module and how one sees it, in the order of the passes."""


def check_before(later: str, module: ModuleOp, name: str) -> None:
    """Refuses a pass that comes too late.

    Args:
        later: a pass that must not have run, nor any that follows it.
        module: that the pass is to change.
        name: the pass, which may be `later` itself: it runs once.

    Raises:
        PassFailedException: says what the module has been through.
    """
    passes = list(_STATES)
    for one in reversed(passes[passes.index(later) :]):
        state, is_so = _STATES[one]
        if is_so(module):
            order = "" if later == name else f"; {name} comes before {later}"
            raise PassFailedException(f"the module is {state} already{order}")


def check_legalised(module: ModuleOp) -> None:
    """Refuses a pass on integers where an operator still computes with floats.

    Raises:
        PassFailedException: names the operator and the pass that is missing.
    """
    for op in module.walk():
        if isinstance(op, rom.OperatorOp) and any(
            isinstance(value.type, TensorType) for value in (*op.operands, *op.results)
        ):
            raise PassFailedException(f"{op.name} computes with floats; run rom-legalize first")
