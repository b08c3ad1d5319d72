"""Instructions of the power controller."""

from __future__ import annotations

from intaglio.dialects.isa.instruction import Instruction, V
from intaglio.dialects.isa.parts import Access, Store, read, use
from intaglio.dialects.isa.queues import POWER
from intaglio.dialects.isa.values import Routing


class Switch(Instruction[V]):
    """Base of what switches a power domain."""

    domain: str = use(Store.DOMAIN, access=Access.WRITE)


class Wake(Switch[V], opcode="wake", queue=POWER):
    """ROM banks from off to their first word."""


class WakeChosen(Switch[V], opcode="wake_chosen", queue=POWER):
    """As `wake`, of the banks that the chosen experts' addresses reach; others stay off.

    It reads the experts' numbers one a cycle as it begins.
    """

    routing: V = read(Routing)


class Sleep(Switch[V], opcode="sleep", queue=POWER):
    """ROM banks from on to off."""
