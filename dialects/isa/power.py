"""Instructions of the power controller."""

from __future__ import annotations

from intaglio.dialects.isa.instruction import Instruction, V
from intaglio.dialects.isa.parts import Access, Store, use
from intaglio.dialects.isa.queues import POWER


class Switch(Instruction[V]):
    """Base of what switches a power domain."""

    domain: str = use(Store.DOMAIN, access=Access.WRITE)


class Wake(Switch[V], opcode="wake", queue=POWER):
    """ROM banks from off to their first word."""


class Sleep(Switch[V], opcode="sleep", queue=POWER):
    """ROM banks from on to off."""
