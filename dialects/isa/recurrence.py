"""Instructions of the H-Units that pass over a state."""

from __future__ import annotations

from typing import ClassVar

from intaglio.dialects import semantics
from intaglio.dialects.formulas import recurrence
from intaglio.dialects.isa.instruction import Instruction, V
from intaglio.dialects.isa.matrix import SHIFT_BITS
from intaglio.dialects.isa.parts import Access, Store, choice, integer, read, use, write
from intaglio.dialects.isa.queues import ATTENTION
from intaglio.dialects.isa.values import Fixed, Quantized

RULES = ("linear", "gated", "delta", "gated_delta")
"""The rules by which a state changes."""


class LinearAttention(
    Instruction[V],
    opcode="linear_attention",
    queue=ATTENTION,
    meaning=(
        semantics.linear_attention,
        recurrence.decay_factor,
        recurrence.recalled,
        recurrence.news,
        recurrence.remembered,
    ),
):
    """What the state has for a query, with the token's key and value taken in; then it takes them
    in. At position 0 it counts as zeros.

    The first pass gives the result and keeps, in the H-Units, what is to be added; the second one
    changes the state. A gate is one number a head: the decay's logarithm of the rules `gated` and
    `gated_delta`, beta of `delta`; the second one is beta.
    """

    query: V = read(Quantized)
    key: V = read(Quantized)
    value: V = read(Fixed)
    gate: V | None = read(Fixed, default=None)
    beta: V | None = read(Fixed, default=None)
    output: V = write(Fixed)
    state: str = use(Store.MATRICES, access=Access.EXCHANGE)
    rule: str = choice(*RULES)
    pre_shift: int = integer(SHIFT_BITS)

    passes: ClassVar[int] = 2

    @property
    def decay(self) -> V | None:
        """The logarithm of what the state keeps, where there is one."""
        return self.gate if "gated" in self.rule else None

    @property
    def rate(self) -> V | None:
        """How much of what differs is taken in, where there is one."""
        return self.gate if self.rule == "delta" else self.beta
