"""ROM as logic: the truth table of a bank as a network of gates that share what is equal.

A bank is a function from its address to a word of bits. `shared_network` writes it as

1. lines, one for each address of a block: decoders of halves of the address, shared by all;
2. sums (OR) of lines, each made once for all bits in which those addresses are one together. The
   pair of lines that most columns have in common becomes a line of its own, again and again, until
   no pair is left in two columns (Paar's greedy algorithm for matrices over the Boolean semiring;
   Lupanov and Nechiporuk give the order of size that such networks reach);
3. a column for each bit and block: the sum of the lines that remain;
4. for each bit the columns of its blocks, each under the decoded upper address bits.

A zero bit costs nothing. Blocks trade lines against columns: 1,024 words of 128 bits are better as
256 lines for 512 columns, since then more columns share a pair.

Two things are used of the code. A column with more ones than zeros is made inverted. And of two
neighbouring bits that are never one together, the planes of ternary weights (+1 is 01, -1 is 10),
the one with more ones is made from the other and their common zeros, if those are fewer.

Plain Python and numpy, no IR. Everything is deterministic.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

Bits = npt.NDArray[np.bool_]
Kind = Literal["and", "or"]

_GATE_IN_ONES = 8
"""Ones by which common zeros must be fewer, so that the gate that derives a column pays: a one
costs about 0.17 gate equivalents in a bank of 1,024 words (bench/rom_density.py)."""


class Gate(NamedTuple):
    """AND or OR of two or more literals."""

    kind: Kind
    inputs: tuple[int, ...]


@dataclass(frozen=True)
class Network:
    """Gates over input bits, in topological order.

    Node 0 is the constant 0, nodes 1 to `inputs` are the input bits from bit 0 on, then come the
    gates. A literal is twice a node, plus 1 if it is inverted.

    Attributes:
        inputs: how many input bits there are.
        gates: node ``inputs + 1 + i`` is ``gates[i]``.
        outputs: a literal for each output bit, bit 0 first.
    """

    inputs: int
    gates: tuple[Gate, ...]
    outputs: tuple[int, ...]

    def evaluate(self, values: Sequence[int], mask: int) -> list[int]:
        """The outputs for many inputs at once.

        Args:
            values: for each input bit an integer; its bit k belongs to case k.
            mask: a one for each case.

        Returns:
            For each output such an integer.
        """
        nodes = [0, *values]

        def literal(one: int) -> int:
            return nodes[one >> 1] ^ (mask if one & 1 else 0)

        for kind, inputs in self.gates:
            value = literal(inputs[0])
            for one in inputs[1:]:
                value = value & literal(one) if kind == "and" else value | literal(one)
            nodes.append(value)
        return [literal(one) for one in self.outputs]

    def table(self) -> list[int]:
        """The word at every address, from 0 on: the whole truth table."""
        size = 1 << self.inputs
        values = [_column(range(size), bit) for bit in range(self.inputs)]
        columns = self.evaluate(values, (1 << size) - 1)
        data = [column.to_bytes(-(-size // 8), "little") for column in columns]
        planes = np.array([np.frombuffer(one, np.uint8) for one in data], np.uint8)
        if not columns:
            return [0] * size
        rows = np.unpackbits(planes, axis=1, count=size, bitorder="little").T
        packed = np.packbits(rows, axis=1, bitorder="little")
        return [int.from_bytes(row.tobytes(), "little") for row in packed]

    @property
    def connections(self) -> int:
        """Inputs of all gates: in static CMOS a pair of transistors each."""
        return sum(len(gate.inputs) for gate in self.gates)

    @property
    def inverted(self) -> int:
        """Nodes of which the inverse is used."""
        used = {one for gate in self.gates for one in gate.inputs} | set(self.outputs)
        return sum(one & 1 and one > 1 for one in used)


def _column(words: Iterable[int], bit: int) -> int:
    """A bit of all words, word 0 in bit 0."""
    return sum((word >> bit & 1) << at for at, word in enumerate(words))


class _Builder:
    """Gates, each once."""

    def __init__(self, inputs: int) -> None:
        self.inputs = inputs
        self.gates: list[Gate] = []
        self.known: dict[Gate, int] = {}

    def gate(self, kind: Kind, literals: Iterable[int]) -> int:
        """The literal of an AND or OR, folded where constants or equal inputs allow."""
        neutral, other = (1, 0) if kind == "and" else (0, 1)
        inputs = sorted(set(literals) - {neutral})
        if other in inputs or any(a ^ b == 1 and not a & 1 for a, b in pairwise(inputs)):
            return other
        if len(inputs) < 2:
            return inputs[0] if inputs else neutral
        gate = Gate(kind, tuple(inputs))
        if gate not in self.known:
            self.gates.append(gate)
            self.known[gate] = 2 * (self.inputs + len(self.gates))
        return self.known[gate]

    def equal(self, low: int, high: int, value: int) -> int:
        """Whether the input bits from `low` up to `high` are a number; halves are shared."""
        if high == low:
            return 1
        if high - low == 1:
            return 2 * (low + 1) + (not value & 1)
        middle = (low + high) // 2
        upper = self.equal(middle, high, value >> (middle - low))
        lower = self.equal(low, middle, value & ((1 << (middle - low)) - 1))
        return self.gate("and", (upper, lower))


class _Recipe(NamedTuple):
    """An output as the sum of planes, or the inverse of it."""

    planes: tuple[int, ...]
    inverted: bool


def shared_network(
    words: Sequence[int], bits: int, inputs: int | None = None, block_bits: int | None = None
) -> Network:
    """The network of a truth table.

    Args:
        words: from address 0 on; what lies beyond is 0.
        bits: of a word.
        inputs: address bits; None: as many as the words need.
        block_bits: upper address bits that choose a block; None: as many as it takes to have a
            column for each line.

    Raises:
        ValueError: the words need more address bits, or more bits.
    """
    needed = max(0, len(words) - 1).bit_length()
    inputs = needed if inputs is None else inputs
    if needed > inputs:
        raise ValueError(f"{len(words)} words need {needed} address bits, not {inputs}")
    if any(word >> bits for word in words):
        raise ValueError(f"a word has more than {bits} bits")
    if not 0 <= (block_bits or 0) <= inputs:
        raise ValueError(f"{block_bits} of {inputs} address bits cannot choose a block")
    if not bits:
        return Network(inputs, (), ())
    if block_bits is None:
        block_bits = 0
        while block_bits < inputs and bits << (2 * block_bits) < 1 << inputs:
            block_bits += 1
    return _network(_table(words, bits, 1 << inputs), block_bits)


def plain_network(words: Sequence[int], bits: int, inputs: int) -> Network:
    """The network before anything is shared: each one bit is a term of its column's sum.

    Only the address decoders are common, as word lines are in a memory. A zero bit costs nothing.

    Args:
        words: from address 0 on.
        bits: of a word.
        inputs: address bits.
    """
    builder = _Builder(inputs)
    lines = {at: builder.equal(0, inputs, at) for at, word in enumerate(words) if word}
    outputs = [
        builder.gate("or", (line for at, line in lines.items() if words[at] >> bit & 1))
        for bit in range(bits)
    ]
    return Network(inputs, tuple(builder.gates), tuple(outputs))


def _table(words: Sequence[int], bits: int, size: int) -> Bits:
    """A truth table of `size` rows and `bits` columns."""
    width = -(-bits // 8)
    data = b"".join(word.to_bytes(width, "little") for word in words)
    rows = np.zeros((size, width), np.uint8)
    rows[: len(words)] = np.frombuffer(data, np.uint8).reshape(len(words), width)
    return np.unpackbits(rows, axis=1, count=bits, bitorder="little").astype(bool)


def _network(table: Bits, block_bits: int) -> Network:
    """The network with ``2**block_bits`` blocks of addresses.

    Args:
        table: an element for each address and output.
        block_bits: upper address bits that choose a block.
    """
    inputs = len(table).bit_length() - 1
    builder = _Builder(inputs)
    line_bits = inputs - block_bits
    lines, blocks = 1 << line_bits, 1 << block_bits
    planes, recipes = _planes(table)
    # The columns of a block beside those of the block before; equal ones are made once.
    beside = planes.reshape(blocks, lines, -1).transpose(1, 0, 2).reshape(lines, -1)
    packed, places = np.unique(np.packbits(beside, axis=0), axis=1, return_inverse=True)
    columns = np.unpackbits(packed, axis=0, count=lines).astype(bool)
    literals = np.array(_sums(builder, line_bits, *share(columns)), np.int64)
    upper = [builder.equal(line_bits, inputs, block) for block in range(blocks)]
    sums: list[int] = []
    for column in literals[places.reshape(-1)].reshape(blocks, -1).T.tolist():
        parts = [builder.gate("and", pair) for pair in zip(upper, column, strict=True)]
        sums.append(builder.gate("or", parts))
    results = [
        builder.gate("or", [sums[plane] for plane in recipe.planes]) ^ recipe.inverted
        for recipe in recipes
    ]
    return Network(inputs, tuple(builder.gates), tuple(results))


def _planes(table: Bits) -> tuple[Bits, list[_Recipe]]:
    """The columns to make, an element for each address and plane, and the outputs from them."""
    size, outputs = table.shape
    planes: list[Bits] = []
    recipes: list[_Recipe] = []

    def plain(column: Bits) -> _Recipe:
        dense = 2 * int(column.sum()) > size
        planes.append(~column if dense else column)
        return _Recipe((len(planes) - 1,), dense)

    for bit in range(0, outputs, 2):
        one, *rest = (table[:, at] for at in range(bit, min(bit + 2, outputs)))
        if rest and not (one & rest[0]).any():
            few, many = sorted((one, rest[0]), key=lambda column: int(column.sum()))
            zeros = ~(few | many)
            if int(zeros.sum()) + _GATE_IN_ONES <= int(many.sum()):
                sparse = plain(few)
                planes.append(zeros)
                derived = _Recipe((*sparse.planes, len(planes) - 1), True)
                recipes += (sparse, derived) if few is one else (derived, sparse)
                continue
        recipes += [plain(column) for column in (one, *rest)]
    return np.stack(planes, axis=1), recipes


def _sums(
    builder: _Builder,
    bits: int,
    pairs: Sequence[tuple[int, int]],
    terms: Sequence[Sequence[int]],
) -> list[int]:
    """The literal of each column.

    Args:
        builder: gets the gates.
        bits: the low address bits; they choose among the lines.
        pairs: lines that are the sum of two others, as `share` gives them.
        terms: lines of each column.
    """
    lines = 1 << bits
    uses = [0] * (lines + len(pairs))
    for column in terms:
        for term in column:
            uses[term] += 1
    for index in reversed(range(len(pairs))):
        if uses[lines + index]:
            for term in pairs[index]:
                uses[term] += 1
    literals: dict[int, int] = {}

    def total(column: Iterable[int]) -> int:
        pending = list(column)
        found: list[int] = []
        while pending:
            term = pending.pop()
            if term in literals:
                found.append(literals[term])
            elif term < lines:
                literals[term] = builder.equal(0, bits, term)
                found.append(literals[term])
            else:
                # A sum that stands in one place alone is a part of what stands there.
                pending += pairs[term - lines]
        return builder.gate("or", found)

    for index, pair in enumerate(pairs):
        if uses[lines + index] > 1:
            literals[lines + index] = total(pair)
    return [total(column) for column in terms]


def share(matrix: Bits) -> tuple[list[tuple[int, int]], list[list[int]]]:
    """Pairs of lines that columns have in common.

    The two lines with most columns in common become a third, which takes their place there; until
    no two are together in two columns. The number of common columns of a line only falls as lines
    are replaced, so a heap of upper bounds finds the best pair without looking at all.

    Args:
        matrix: an element for each line and column: the line is a term of the column's sum.

    Returns:
        Pairs, the first numbered as the first line beyond those of the matrix; and the terms that
        each column is left with.
    """
    lines, columns = matrix.shape
    width = -(-columns // 64)
    padded = np.zeros((lines, width * 64), bool)
    padded[:, :columns] = matrix
    rows = [*np.packbits(padded, axis=1, bitorder="little").view(np.uint64)]
    pairs: list[tuple[int, int]] = []
    # Lines that are still in two columns; most fall out soon.
    live = _Live(rows, width)
    heap = [bound for line in range(lines) if (bound := live.best(line)[:2])[0] < -1]
    heapq.heapify(heap)
    while heap:
        bound, line = heapq.heappop(heap)
        common, _, other = live.best(line)
        if common > -2:
            continue
        if common > bound:
            heapq.heappush(heap, (common, line))
            continue
        third = live.join(line, other)
        pairs.append((line, other))
        heapq.heappush(heap, (common, line))
        heapq.heappush(heap, (common, third))
    left = np.stack(live.rows) if live.rows else np.zeros((0, width), np.uint64)
    bits = np.unpackbits(left.view(np.uint8), axis=1, bitorder="little")[:, :columns]
    return pairs, [np.flatnonzero(column).tolist() for column in bits.T]


class _Live:
    """Lines as bit sets of their columns, those that can be in a pair in one array.

    Attributes:
        rows: of all lines.
    """

    _ROOM = 256
    """Lines added before those that fell out are cleared away."""

    def __init__(self, rows: list[npt.NDArray[np.uint64]], width: int) -> None:
        self.rows = rows
        self.width = width
        self._pack()

    def _pack(self) -> None:
        keep = [n for n, row in enumerate(self.rows) if int(np.bitwise_count(row).sum()) > 1]
        self.count = len(keep)
        self.array = np.zeros((self.count + self._ROOM, self.width), np.uint64)
        self.numbers = [*keep, *[0] * self._ROOM]
        self.places = {number: place for place, number in enumerate(keep)}
        for place, number in enumerate(keep):
            self.array[place] = self.rows[number]

    def best(self, line: int) -> tuple[int, int, int]:
        """Of the line with most columns in common with one: minus their number, the one, it."""
        place = self.places.get(line)
        if place is None:
            return 0, line, line
        common = np.bitwise_count(self.array[: self.count] & self.array[place])
        counts = common.sum(axis=1, dtype=np.int64)
        counts[place] = 0
        other = int(counts.argmax())
        return -int(counts[other]), line, self.numbers[other]

    def join(self, one: int, other: int) -> int:
        """A new line takes the place of two where both are; its number."""
        a, b = self.places[one], self.places[other]
        both = self.array[a] & self.array[b]
        for number, place in ((one, a), (other, b)):
            self.array[place] &= ~both
            self.rows[number] = self.array[place].copy()
        number, place = len(self.rows), self.count
        self.rows.append(both)
        self.array[place] = both
        self.numbers[place] = number
        self.places[number] = place
        self.count += 1
        if self.count == len(self.array):
            self._pack()
        return number
