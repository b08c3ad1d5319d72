"""Instructions of the KV ports."""

from __future__ import annotations

from intaglio.dialects.isa.instruction import Instruction, V
from intaglio.dialects.isa.parts import Access, Store, read, use
from intaglio.dialects.isa.queues import KV
from intaglio.dialects.isa.values import Quantized


class Append(Instruction[V], opcode="append", queue=KV):
    """The token's keys or values, one vector a KV head, to the end of a cache."""

    input: V = read(Quantized)
    cache: str = use(Store.CACHE, access=Access.WRITE)
