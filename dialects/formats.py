"""The formats of activations, keys, values and probabilities: how wide their codes are, how large
the integers that they stand for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Format:
    """How one activation element is written.

    Attributes:
        name: int4, int6, int8, int16, uint8, uint16, places8, fp8, half8 or mxint8.
        bits: of an element's code.
        limit: the decoded integer that dynamic scaling maps a group's largest magnitude to.
        low: least decoded integer (static scaling clips there).
        high: greatest decoded integer.
        steps: of codes with an exponent a block (`formulas.blocks`), how fine their steps are: 1,
            powers of two, or 4, three quarters of them too; 0: of all others.
    """

    name: str
    bits: int
    limit: int
    low: int
    high: int
    steps: int = 0

    @property
    def by_block(self) -> bool:
        """Whether a block of elements shares an exponent."""
        return self.steps > 0

    @property
    def magnitude(self) -> int:
        """The largest magnitude of the integers that are multiplied: what accumulator widths are
        derived from."""
        largest = self.code_magnitude
        return (largest * self.steps) << (EXPONENTS - 1) if self.by_block else largest

    @property
    def code_magnitude(self) -> int:
        """The same of the decoded codes alone: of heads, whose scales follow their products."""
        return max(-self.low, self.high)

    @property
    def memory_bits(self) -> int:
        """Bits of a code in the chip's memories and at its multipliers: whole bytes."""
        return -(-self.bits // 8) * 8

    @property
    def decoded_bits(self) -> int:
        """Width of a decoded integer, with a sign where the format has one."""
        if self.low == 0:
            return self.high.bit_length()
        return max(self.high.bit_length(), (-self.low - 1).bit_length()) + 1


EXPONENTS = 16
"""How many exponents blocks may have, one after the other: a window of 4 bits."""

ACCUMULATOR_BITS = 62
"""Widest exact sum of products."""
SLOT_SCALE_BITS = 15
"""Bits that the one scale of a row of an adapter in a slot adds to it."""

PLACES = (0, 4, 8, 12, 16)
"""Where a byte of a softmax's numerators may stand: the bits below it."""

E4M3_LIMIT = 448 << 9
"""448, the largest E4M3 number, in units of 2**-9, the smallest."""


def _integer(bits: int) -> Format:
    half = 1 << (bits - 1)
    return Format(f"int{bits}", bits, half - 1, -half, half - 1)


FORMATS: dict[str, Format] = {
    f.name: f
    for f in (
        *(_integer(bits) for bits in (4, 6, 8, 16)),
        Format("uint8", 8, 255, 0, 255),
        Format("uint16", 16, 65535, 0, 65535),
        Format("places8", 8, 255, 0, 255 << PLACES[-1]),
        Format("fp8", 8, E4M3_LIMIT, -E4M3_LIMIT, E4M3_LIMIT),
        Format("half8", 8, 127, -127, 127, steps=4),
        Format("mxint8", 8, 127, -127, 127, steps=1),
    )
}
"""All formats by name."""

BLOCK_FORMATS = tuple(name for name, one in FORMATS.items() if one.by_block)
"""Those with an exponent a block."""

HEAD_FORMATS = ("half8",)
"""Those of queries, keys and values with an exponent and a step a head (`formulas.heads`)."""
