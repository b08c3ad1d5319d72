"""The memories of a chip, and how many of their rows a value takes.

A memory is rows of equal elements. Values of a token lie in six of them, by their kind:

| memory          | an element                  | a value begins at a row, and so does           |
|-----------------|-----------------------------|------------------------------------------------|
| `vectors`       | a fixed-point number        |                                                |
| `codes`         | a code of a quantised value | each of its groups                             |
| `scores`        | a score                     | each head                                      |
| `probabilities` | a code of a probability     | each head                                      |
| `routings`      | an expert and its share     | each of the chosen, one a row                  |
| `norm_scales`   | the factor of a norm        |                                                |

Beside `codes` lies `block_steps`, with exponent and step of each block of the same row. Beside
these lie three with one element a row: `code_scales` has the scale of the group that begins
at the same row of `codes`; `heads` has scale and sum of a head of probabilities, which begins at
row ``rows of a head * entry``; `largest` likewise the largest score of a head of scores. A token's
number is in a register of the token port, in no memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from intaglio.dialects.fixed_point import FIXED_BITS, SCALE_BITS
from intaglio.dialects.formulas.routing import SHARE_FRAC
from intaglio.dialects.isa.values import (
    Blocks,
    Fixed,
    Probabilities,
    Quantized,
    Routing,
    Scale,
    Scores,
    Value,
)

VECTORS, CODES, SCORES, PROBABILITIES = "vectors", "codes", "scores", "probabilities"
CODE_SCALES, HEADS, LARGEST = "code_scales", "heads", "largest"
BLOCK_STEPS, NORM_SCALES = "block_steps", "norm_scales"
ROUTINGS = "routings"

OF_VALUES = (
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
)
"""All of them, in the order of their declarations."""

CODE_BITS = 16
"""Of a lane of `codes` and `probabilities`, whatever the format."""
EXPONENT_BITS = 10
"""Of a scale beside its mantissa of `SCALE_BITS`."""
SUM_BITS = 40
"""Of a head's sum of probabilities."""
STEP_BITS = 5
"""Of a block's exponent above the least one, and whether its step is three quarters."""
EXPERT_BITS = 12
"""Of an expert's number."""
SHARE_BITS = SHARE_FRAC + 1
"""Of its share."""
LEAST_ROWS = 2
"""Of a memory in hardware: its address has a wire at least."""

OF_KIND: Mapping[type[Value], str] = {
    Fixed: VECTORS,
    Quantized: CODES,
    Blocks: CODES,
    Scale: NORM_SCALES,
    Scores: SCORES,
    Probabilities: PROBABILITIES,
    Routing: ROUTINGS,
}
"""The memory of each kind of value; tokens have none."""
_LANE_BITS: Mapping[str, int] = {
    VECTORS: FIXED_BITS,
    CODES: CODE_BITS,
    SCORES: FIXED_BITS,
    PROBABILITIES: CODE_BITS,
}


@dataclass(frozen=True)
class Memory:
    """A memory: `rows` rows of `lanes` elements of `bits` bits, in each of `units` equal units."""

    rows: int
    lanes: int
    bits: int
    units: int = 1
    resident: int = 0
    """Of the last rows, those that each adapter takes that is resident beside others; 0: there are
    no slots."""

    @property
    def unit_size(self) -> int:
        """Bytes, in one unit."""
        return -(-self.rows * self.lanes * self.bits // 8)

    @property
    def size(self) -> int:
        """Bytes, of all units together."""
        return -(-self.units * self.rows * self.lanes * self.bits // 8)

    def row_after(self, where: Span) -> int:
        """The first row that a value leaves free behind it."""
        return -(-where.last // self.lanes)


class Span(NamedTuple):
    """Where a value lies: elements `first` to `last` (not included), counted from row 0."""

    memory: str
    first: int
    last: int

    def overlaps(self, other: Span) -> bool:
        """Whether they share an element."""
        return self.memory == other.memory and self.first < other.last and other.first < self.last


def memory_of(value: Value) -> str | None:
    """The memory that a value lies in; None: in none."""
    return OF_KIND.get(type(value))


def rows_of(value: Value, lanes: int, capacity: int) -> int:
    """Rows that a value takes.

    Args:
        value: its kind and its numbers.
        lanes: elements of a row.
        capacity: tokens of the longest context, which scores are stored for.
    """
    match value:
        case Fixed() | Blocks():
            return -(-value.size // lanes)
        case Quantized():
            return value.groups * -(-value.width // lanes)
        case Scores() | Probabilities():
            return value.heads * -(-capacity // lanes)
        case Routing():
            return value.chosen
        case Scale():
            return 1
        case _:
            return 0


def span_of(value: Value, row: int, element: int, lanes: int, capacity: int) -> Span | None:
    """Where a value lies whose first element is the `element`-th of a row; None: in no memory."""
    if (memory := memory_of(value)) is None:
        return None
    first = row * lanes + element
    size = value.size if isinstance(value, Fixed) else rows_of(value, lanes, capacity) * lanes
    return Span(memory, first, first + size)


def numbered(spans: Mapping[str, Span | None]) -> dict[str, tuple[int, int]]:
    """All values on one line: ranges that overlap exactly where the values share elements."""
    ends: dict[str, int] = {}
    for one in spans.values():
        if one is not None:
            ends[one.memory] = max(ends.get(one.memory, 0), one.last)
    base: dict[str, int] = {}
    top = 0
    for memory, end in ends.items():
        base[memory], top = top, top + end
    found: dict[str, tuple[int, int]] = {}
    for name, one in spans.items():
        if one is None:
            found[name], top = (top, top + 1), top + 1
        else:
            found[name] = base[one.memory] + one.first, base[one.memory] + one.last
    return found


def of_values(
    rows: Mapping[str, int], lanes: int, capacity: int, block: int = 0
) -> dict[str, Memory]:
    """The memories for values, those beside them too.

    Args:
        rows: that values take, of the memories that there are.
        lanes: elements of a row.
        capacity: tokens of the longest context.
        block: elements of the shortest block; 0: no value has blocks.
    """
    found: dict[str, Memory] = {}
    for name in OF_VALUES:
        if (lane := _LANE_BITS.get(name)) is not None and name in rows:
            found[name] = Memory(max(LEAST_ROWS, rows[name]), lanes, lane)
        elif name == BLOCK_STEPS and CODES in rows and block:
            found[name] = Memory(found[CODES].rows, max(1, lanes // block), STEP_BITS)
        elif name == CODE_SCALES and CODES in rows:
            found[name] = Memory(found[CODES].rows, 1, SCALE_BITS + EXPONENT_BITS)
        elif name == NORM_SCALES and name in rows:
            found[name] = Memory(max(LEAST_ROWS, rows[name]), 1, SCALE_BITS + EXPONENT_BITS)
        elif name == LARGEST and SCORES in rows:
            heads = rows[SCORES] // -(-capacity // lanes)
            found[name] = Memory(max(LEAST_ROWS, heads), 1, FIXED_BITS)
        elif name == HEADS and PROBABILITIES in rows:
            heads = rows[PROBABILITIES] // -(-capacity // lanes)
            bits = SCALE_BITS + EXPONENT_BITS + SUM_BITS
            found[name] = Memory(max(LEAST_ROWS, heads), 1, bits)
        elif name == ROUTINGS and name in rows:
            found[name] = Memory(max(LEAST_ROWS, rows[name]), 1, EXPERT_BITS + SHARE_BITS)
    return found


def size_of(memories: Iterable[Memory]) -> int:
    """Bytes of memories together."""
    return sum(memory.size for memory in memories)
