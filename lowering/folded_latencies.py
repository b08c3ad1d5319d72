"""How long operators take in the folded arithmetic of the latency bound, from a chip's figures.

Folded as far as it can be without other values than rounding allows: a norm's root and a scale of
codes wait for nothing but their own block, since they are factors that can follow the product;
products, exponents and table values of one run of operators are one pass over a vector; a key or
value can be multiplied as it is appended; a cached vector that lies outside of the die was fetched
before. So a schedule of today's operators is never below.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, log2

from intaglio.dialects.formats import FORMATS
from intaglio.dialects.formula import TOKENS, Formula, ceildiv, constant, minimum
from intaglio.dialects.machine import Machine

EXPONENT_BLOCK = 32
"""Elements of a product's input that share an exponent in the folded arithmetic."""
FURTHER_PRODUCT = 3
"""Cycles of a second product in a pass: the product in two, a rounding shift."""
FIRST_PRODUCT = 2
"""Cycles of a pass of the vector unit that a product takes."""
SHIFT_AND_WRITE = 2


@dataclass(frozen=True)
class Pipelines:
    """Figures of a chip that its `Machine` does not have.

    Attributes:
        adder_levels: levels of an adder tree in a cycle.
        unit_lanes: lanes of one vector unit.
    """

    adder_levels: int
    unit_lanes: int


def pipelines_of(figure: Callable[[str], int]) -> Pipelines:
    """Those of a target.

    Args:
        figure: an integer figure of the target by its full name.
    """
    return Pipelines(figure("stage.adder_levels_per_cycle"), figure("vector.lanes"))


@dataclass(frozen=True)
class Latencies:
    """Of each kind of operator, on a chip."""

    machine: Machine
    pipelines: Pipelines

    @property
    def product(self) -> int:
        """From the last word of a product to its last result."""
        m = self.machine
        return m.broadcast + m.mac_pipeline + m.reduce + m.requantise + 1

    def embedding(self, elements: int) -> int:
        """A row that all L-Units that hold a part of it read at once."""
        m = self.machine
        leave = -(-elements // m.results_per_cycle)
        return m.broadcast + m.rom_read + leave + m.reduce + m.requantise + 1

    def codes(self, products: int) -> int:
        """A pass of so many products that ends in codes, an exponent for each block of them."""
        return self._exponents(products, EXPONENT_BLOCK, 1)

    def head_codes(self, products: int, width: int) -> int:
        """The same for a head, whose exponent passes the vector units that hold it."""
        return self._exponents(products, width, -(-width // self.pipelines.unit_lanes))

    def scaled_codes(self, products: int) -> int:
        """The same with a scale that is known before: nothing is to be found."""
        return self._pass(max(1, products)) + 1

    def _exponents(self, products: int, block: int, units: int) -> int:
        # What the operators before the codes multiply; their own shift takes a product's place.
        given = self._pass(products) if products else self.machine.vector_pipeline - FIRST_PRODUCT
        levels = ceil(log2(block) / self.pipelines.adder_levels) if block > 1 else 0
        # A tree over all lanes would do as well.
        largest = min(levels + units - 1, self.machine.vector_reduce)
        return max(1, given) + largest + SHIFT_AND_WRITE + 1

    def _pass(self, products: int) -> int:
        further = min(FURTHER_PRODUCT, self.machine.vector_pipeline)
        return self.machine.vector_pipeline + further * max(0, products - 1)

    def sample(self, products: int) -> int:
        """Arg-max of the last logits, to the token port."""
        return self._pass(products) + self.machine.vector_reduce + self.machine.sample


@dataclass(frozen=True)
class Attention:
    """Of one KV head, the last one: those before it are done beside it.

    Attributes:
        shared: query heads of a KV head.
        kv_heads: KV heads.
        width: elements of a head.
        window: cached tokens that are read; 0: all.
        kv: format of the cache.
    """

    latencies: Latencies
    shared: int
    kv_heads: int
    width: int
    window: int
    kv: str

    @property
    def tokens(self) -> Formula:
        """Cached tokens that are read."""
        return minimum(TOKENS, self.window) if self.window else TOKENS

    def work(self, operand: str) -> int:
        """Cycles in which the H-Units multiply a cached vector with the heads that share it."""
        m = self.latencies.machine
        passes = 1
        for name in (operand, self.kv):
            passes *= -(-FORMATS[name].memory_bits // m.multiplier_bits)
        words = -(-self.width // m.attention_lanes)
        return words * -(-self.shared // m.query_parallel) * passes

    @property
    def blocks(self) -> Formula:
        """Cached tokens by as many as there are H-Units."""
        return ceildiv(self.tokens, self.latencies.machine.h_units)

    @property
    def drain(self) -> int:
        """Cycles in which the scores of a block leave the array."""
        m = self.latencies.machine
        return -(-self.shared * m.h_units // m.results_per_cycle)

    @property
    def way(self) -> int:
        """From an operand to the result that follows from it."""
        m = self.latencies.machine
        return m.broadcast + m.attention_pipeline + m.reduce + m.requantise

    def scores(self) -> Formula:
        """From the query to the last score."""
        block = max(self.work(self.latencies.machine.queries), self.drain)
        return self.way + self.drain + block * self.blocks

    def softmax(self) -> Formula:
        """From the last score to the last probability: the largest, then one pass."""
        m = self.latencies.machine
        beats = self.shared * ceildiv(self.tokens, m.vector_lanes)
        return m.vector_reduce + m.vector_pipeline + beats

    def sums(self) -> Formula:
        """From the last probability to the last sum over the values."""
        m = self.latencies.machine
        beat = min(m.attention_lanes * min(self.shared, m.query_parallel), m.results_per_cycle)
        leave = -(-self.shared * self.width // beat)
        return self.way + leave + self.work(m.probabilities) * self.blocks

    def beside(self) -> Formula:
        """What the other KV heads keep adders from, where products use the same."""
        m = self.latencies.machine
        if not m.shared_arrays:
            return constant(0)
        block = max(self.work(m.queries), self.drain) + self.work(m.probabilities)
        return (self.kv_heads - 1) * block * self.blocks
