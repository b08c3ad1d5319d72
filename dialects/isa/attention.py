"""Instructions of the H-Units that pass over the cached tokens."""

from __future__ import annotations

from intaglio.dialects import semantics
from intaglio.dialects.fixed_point import Real
from intaglio.dialects.formulas import elementwise
from intaglio.dialects.isa.instruction import Instruction, V
from intaglio.dialects.isa.matrix import SHIFT_BITS
from intaglio.dialects.isa.parts import Store, integer, number, read, use, write
from intaglio.dialects.isa.queues import ATTENTION
from intaglio.dialects.isa.values import Fixed, Probabilities, Quantized, Scores

WINDOW_BITS = 31
"""Width of the number of tokens that attention sees; 0 stands for all."""


class OverTokens(Instruction[V]):
    """Base of what passes over the cached tokens: all of them, or those in a window before one."""

    window: int = integer(WINDOW_BITS)

    def first(self, position: int) -> int:
        """The first token that the one at a position sees."""
        return max(0, position - self.window + 1) if self.window else 0


class QueryKey(
    OverTokens[V],
    opcode="query_key",
    queue=ATTENTION,
    meaning=(
        semantics.query_key,
        semantics.score_scale,
        elementwise.softcap,
        elementwise.scale,
        semantics.sloped,
    ),
    together=("cap", "cap_inverse", "log2e"),
):
    """Scores of the cached tokens, in units of log2; with a soft cap where there is one.

    `slopes` has a number for each query head: what a score then loses for each token that its key
    lies before the query (ALiBi). With the scores comes the largest one of each query head.
    """

    query: V = read(Quantized)
    output: V = write(Scores)
    keys: str = use(Store.CACHE)
    slopes: str | None = use(Store.VECTOR, default=None)
    score_scale: Real = number()
    pre_shift: int = integer(SHIFT_BITS)
    cap: Real | None = number(default=None)
    cap_inverse: Real | None = number(default=None)
    log2e: Real | None = number(default=None)

    @property
    def softcap(self) -> tuple[Real, Real, Real] | None:
        """The soft cap: one over it, itself, log2(e); None: there is none."""
        if self.cap_inverse is None or self.cap is None or self.log2e is None:
            return None
        return self.cap_inverse, self.cap, self.log2e


class WeightedSum(
    OverTokens[V],
    opcode="weighted_sum",
    queue=ATTENTION,
    meaning=(semantics.weighted_sum, semantics.reciprocal_scale, semantics.requantize),
):
    """Values of the cached tokens summed by probability, over the probabilities' sum."""

    probabilities: V = read(Probabilities)
    output: V = write(Fixed)
    values: str = use(Store.CACHE)
    pre_shift: int = integer(SHIFT_BITS)
