"""How caches and adapters lie in the H-Units' memories: words, scales and units that they take.

**Caches.** Token t of a cache is on H-Unit t mod h_units; there head h of its n-th token
(n = t div h_units) is vector ``n * heads + h`` from the cache's first row of the memory `kv` on. A
vector is ``reads * planes`` words of `attention_lanes` bytes. With `Machine.kv_on_die` so many
tokens lie there, the first ones; the others are in external memory, in blocks of the vectors of one
head and `h_units` tokens. Dynamic scales, of all tokens, are no part of the H-Units: softmax and
the scores take those of `vector_lanes` tokens of a head at once, so that they are one memory
beside the vector units, `kv_scales`, with a row for as many. Static caches have none.

**Adapters.** Row n of a matrix is on H-Unit ``unit + n mod h_units``, as its ``n div h_units``-th
row: words of the memory `adapters`, of `attention_lanes` elements, and scales of `adapter_scales`,
one for each group. A matrix of fewer rows than there are H-Units takes as many of them only, and
its rows of scales in all H-Units that are loaded at once with them.

**States.** `StateShape` says how those of linear attention lie in the memory `states`. Exponents,
one a head, are no part of the H-Units: they lie in `state_scales`, an entry a head.
"""

from __future__ import annotations

from dataclasses import dataclass

from intaglio.dialects.codes import SLOT_BITS
from intaglio.dialects.fixed_point import SCALE_BYTES
from intaglio.dialects.formats import FORMATS, HEAD_FORMATS
from intaglio.dialects.formulas.recurrence import STATE_BITS
from intaglio.dialects.machine import Machine
from intaglio.dialects.memories import EXPONENT_BITS
from intaglio.dialects.tiling import SCALE_BITS, floor_power

KV, KV_SCALES, EXTERNAL = "kv", "kv_scales", "external"
ADAPTERS, ADAPTER_SCALES = "adapters", "adapter_scales"
STATES, STATE_SCALES = "states", "state_scales"
IN_H_UNITS = (KV, ADAPTERS, ADAPTER_SCALES, STATES)
"""What takes an H-Unit's SRAM."""
BYTE = 8
STATE_BYTES = STATE_BITS // BYTE
"""Of an element of a state."""
STATE_SCALE_BITS = EXPONENT_BITS + STATE_BITS - 1
"""Of a head of a state: its exponent, and the largest magnitude of its mantissas."""


def kv_scale_bits(fmt: str) -> int:
    """Bits of a dynamic scale of a cache: an exponent and a step need no mantissa."""
    return BYTE if fmt in HEAD_FORMATS else BYTE * SCALE_BYTES


@dataclass(frozen=True)
class CacheShape:
    """A cache as the H-Units see it."""

    machine: Machine
    capacity: int
    heads: int
    width: int
    format: str
    static: bool

    @property
    def planes(self) -> int:
        """Bytes of an element."""
        return -(-FORMATS[self.format].bits // BYTE)

    @property
    def reads(self) -> int:
        """Words of a plane of a vector."""
        return -(-self.width // self.machine.attention_lanes)

    @property
    def words(self) -> int:
        """Words of a vector."""
        return self.planes * self.reads

    @property
    def inside(self) -> int:
        """Tokens on the die; a multiple of the H-Units, or all."""
        return tokens_on_die(self.capacity, self.machine)

    @property
    def beats(self) -> int:
        """Rows of a block in external memory; 0 when all tokens are on the die."""
        machine = self.machine
        if self.inside == self.capacity:
            return 0
        size = self.words * machine.h_units * machine.attention_lanes
        return size // max(1, machine.external_bytes)

    @property
    def rows(self) -> int:
        """Rows of `kv` in every H-Unit."""
        return -(-self.inside // self.machine.h_units) * self.heads * self.words

    @property
    def scale_rows(self) -> int:
        """Rows of `kv_scales` of a head, where the cache is dynamic."""
        return -(-self.capacity // self.machine.vector_lanes)

    @property
    def scale_bits(self) -> int:
        """Bits of a token's scale of a head; 0: the cache is static."""
        return 0 if self.static else kv_scale_bits(self.format)

    @property
    def scales(self) -> int:
        """Rows of `kv_scales`."""
        return 0 if self.static else self.heads * self.scale_rows

    @property
    def outside(self) -> int:
        """Rows of external memory."""
        blocks = -(-(self.capacity - self.inside) // self.machine.h_units)
        return blocks * self.heads * self.beats


@dataclass(frozen=True)
class StateShape:
    """The state of linear attention as the H-Units see it.

    Element i of a key has a vector of values. Vectors of a head go round the H-Units, each in as
    many of them as it has words, so that a row of the memory holds several; a head begins in a row
    of its own.
    """

    machine: Machine
    heads: int
    key_width: int
    value_width: int

    @property
    def words(self) -> int:
        """Words of a vector."""
        return -(-self.value_width * STATE_BYTES // self.machine.attention_lanes)

    @property
    def together(self) -> int:
        """Vectors of a row; 0: a vector has several rows."""
        return self.machine.h_units // self.words

    @property
    def head_rows(self) -> int:
        """Rows of a head."""
        if self.together:
            return -(-self.key_width // self.together)
        return self.key_width * -(-self.words // self.machine.h_units)

    @property
    def rows(self) -> int:
        """Rows of `states` in every H-Unit."""
        return self.heads * self.head_rows


@dataclass(frozen=True)
class AdapterShape:
    """A matrix of an adapter as the H-Units see it: slots have one scale a row."""

    machine: Machine
    rows: int
    columns: int
    bits: int
    """Of an element: an integer less its zero point, or E4M3."""
    group: int
    """Columns under one scale; 0: all."""
    is_slot: bool

    @property
    def words(self) -> int:
        """Words of a row."""
        return -(-self.columns // self.machine.attention_lanes)

    @property
    def group_words(self) -> int:
        """Words under one scale."""
        if not 0 < self.group < self.columns:
            return self.words
        return -(-self.group // self.machine.attention_lanes)

    @property
    def groups(self) -> int:
        """Scales of a row."""
        return -(-self.words // self.group_words)

    @property
    def blocks(self) -> int:
        """Rows that an H-Unit has at most."""
        return -(-self.rows // self.machine.h_units)

    @property
    def units(self) -> int:
        """H-Units that it lies on."""
        return min(self.rows, self.machine.h_units)


def element_bits(code: str, bits: int, zero: int | None, *, is_slot: bool) -> int:
    """Bits of a weight of an adapter in the H-Units, less its zero point.

    Args:
        code: of the matrix.
        bits: of a code.
        zero: the zero point of all its codes; None: each group has one.
        is_slot: whether the matrix is a slot.
    """
    if is_slot:
        return SLOT_BITS[code]
    top = 2 if code == "ternary" else (1 << bits) - 1
    if zero is None:
        return bits + 1
    low, high = -zero, top - zero
    return max((-low - 1).bit_length(), high.bit_length()) + 1


def load_units(machine: Machine, word_bits: int) -> int:
    """H-Units that a word of the load port has SRAM words for; a power of two."""
    return min(machine.h_units, floor_power(BYTE * machine.load_bytes // word_bits))


def scale_units(machine: Machine) -> int:
    """H-Units that a word of the load port has scales for; a power of two."""
    return min(machine.h_units, floor_power(BYTE * machine.load_bytes // SCALE_BITS))


def unit_step(machine: Machine, rows: int, word_bits: int) -> int:
    """At multiples of how many H-Units a matrix may begin.

    A beat of results is turned as a whole, and a word of codes at the load port is for a whole
    group of H-Units, which are not two matrices'.
    """
    return 1 << (max(rows, load_units(machine, word_bits)) - 1).bit_length()


def scale_group(machine: Machine, first: int, units: int) -> tuple[int, int]:
    """The H-Units, as the first and their number, whose scales are loaded with those of a matrix
    from H-Unit `first` on: in a row of scales no two matrices share them."""
    size = scale_units(machine)
    begin = first - first % size
    return begin, -(-(first + units - begin) // size) * size


def tokens_on_die(tokens: int, machine: Machine) -> int:
    """Of the tokens of a cache those whose codes are on the die; the others' are in external
    memory."""
    return min(tokens, machine.kv_on_die or tokens)
