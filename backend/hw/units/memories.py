"""The memories that units share: what a word of each is.

Depths are the program's (`dialects/memories.py`). A row has an element for each of the W =
`vector_lanes` lanes, lane 0 at the low bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from intaglio.dialects import constant_rom, memories
from intaglio.dialects.fixed_point import FIXED_BITS, SCALE_BITS, SCALE_BYTES
from intaglio.dialects.memories import CODE_BITS, EXPONENT_BITS, SUM_BITS

_SCALE = {"mantissa": SCALE_BITS, "exponent": EXPONENT_BITS}


@dataclass(frozen=True)
class Memory:
    """A memory of the chip.

    Attributes:
        name: of its instance.
        element: bits of an element of its rows; 0 for a file, whose words have parts.
        parts: of a file's words, by name: bits, the first in the lowest.
        masked: whether lanes of a row are written one by one.
    """

    name: str
    element: int = 0
    parts: Mapping[str, int] = field(default_factory=dict[str, int])
    masked: bool = False

    def word(self, lanes: int) -> dict[str, int]:
        """Names and bits of the parts of a word of so many elements; a row is one part, `data`."""
        return {"data": self.element * lanes} if self.element else dict(self.parts)


VECTORS = Memory(memories.VECTORS, FIXED_BITS, masked=True)
"""Numbers in fixed point."""
CODES = Memory(memories.CODES, CODE_BITS)
"""Quantised vectors."""
BLOCK_STEPS = Memory(memories.BLOCK_STEPS, memories.STEP_BITS)
"""Exponent and step of each block of a row of `CODES`."""
CODE_SCALES = Memory(memories.CODE_SCALES, parts=_SCALE)
"""A scale for each group of a quantised vector."""
NORM_SCALES = Memory(memories.NORM_SCALES, parts=_SCALE)
"""Factors of norms."""
SCORES = Memory(memories.SCORES, FIXED_BITS, masked=True)
"""Scores of cached tokens, then numerators of the softmax."""
LARGEST = Memory(memories.LARGEST, parts={"data": FIXED_BITS})
"""Largest score of each head."""
PROBABILITIES = Memory(memories.PROBABILITIES, CODE_BITS)
"""Codes that the softmax writes."""
HEADS = Memory(memories.HEADS, parts={**_SCALE, "total": SUM_BITS})
"""Scale and sum of each head's probabilities."""
ROUTINGS = Memory(
    memories.ROUTINGS, parts={"number": memories.EXPERT_BITS, "share": memories.SHARE_BITS}
)
"""Chosen experts and their shares."""
CONSTANTS = Memory(constant_rom.CONSTANTS, FIXED_BITS)
"""Constant ROM."""
VALUE_SCALES = Memory("value_scales", 8 * SCALE_BYTES)
"""Scales of cached vectors; inside the attention unit."""

SHARED = (
    VECTORS,
    CODES,
    BLOCK_STEPS,
    CODE_SCALES,
    NORM_SCALES,
    SCORES,
    LARGEST,
    PROBABILITIES,
    HEADS,
    ROUTINGS,
    CONSTANTS,
)
"""Those that the chip has beside its units, in order; routings where it chooses experts, steps of
blocks and factors of norms where it has such codes."""
