"""How a matrix is cut into words for L-Units: the arithmetic of a piece, apart from any IR.

A matrix [N, K] is cut by rows over tiles, and each row by words over the L-Units of one tile:

- a *word* is up to `lanes` consecutive weights of one row inside one scale group, stored as
  `planes` planes of `plane_bits` bits a weight (of a ternary cell, digits of balanced ternary);
- a row has `words_per_row` words; `split` L-Units of a tile share a row, each with a *slice* of
  `words` consecutive words;
- so a tile holds `l_units // split` rows at a time, all tiles together `rows_per_step`; the piece
  takes `steps` such steps, and in each of them every L-Unit reads `words * planes` ROM words.

All L-Units of a piece run in lockstep, so one address serves them all.

A piece may also be *dealt*: its slices take runs of words in turn, as cards are dealt. Then the
first run of all slices together is the first part of the row, and so on: a product takes a row in
*rounds*, each of which needs a part of the input only, and keeps the sums of all steps meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from intaglio.dialects.formats import FORMATS
from intaglio.dialects.isa.values import Blocks, Coded
from intaglio.dialects.machine import Machine
from intaglio.dialects.trits import digits_of

SCALE_BITS = 16
"""Bits of a group's scale mantissa in ROM."""


WIDE = FORMATS["int16"]
"""What codes of wide blocks are as long as."""


@dataclass(frozen=True)
class Reads:
    """How often the words of a matrix are read for a vector: once for each part of an activation.

    Attributes:
        passes: of a word.
        wide: numbers of the vector's blocks that have longer codes.
        block: elements of a block.
        more: passes of a word with elements of such a block, beyond the others'.
    """

    passes: int
    wide: frozenset[int] = frozenset()
    block: int = 1
    more: int = 0

    @staticmethod
    def of(value: Coded, machine: Machine) -> Reads:
        """Those of a product with a vector."""
        passes = activation_passes(value.format, machine)
        if not isinstance(value, Blocks) or not value.wide:
            return Reads(passes)
        more = activation_passes(WIDE.name, machine) - passes
        return Reads(passes, value.wide_blocks, value.block, more)

    def of_row(self, columns: int) -> int:
        """Products of a row's weights with parts of activations."""
        wide = sum(min(self.block, columns - one * self.block) for one in self.wide)
        return columns * self.passes + wide * self.more

    def wide_words(self, shape: MatrixShape, machine: Machine) -> frozenset[int]:
        """The words of a row that are read more often."""
        if not self.wide or not self.more:
            return frozenset()
        per_group, lanes = shape.words_per_group(machine), machine.lanes

        def word(column: int) -> int:
            return column // shape.group * per_group + column % shape.group // lanes

        found: set[int] = set()
        for one in self.wide:
            first = one * self.block
            last = min(first + self.block, shape.columns) - 1
            found.update(range(word(first), word(last) + 1))
        return frozenset(found)


def floor_power(number: int) -> int:
    """The largest power of two that is no greater; 1 at least."""
    return 1 << (max(1, number).bit_length() - 1)


def _ceildiv(a: int, b: int) -> int:
    return -(-a // b)


@dataclass(frozen=True)
class MatrixShape:
    """What tiling needs to know of a matrix: [rows, columns], scale group, bits of a code."""

    rows: int
    columns: int
    group: int
    """Columns under one scale; a dense table has its row as one group."""
    bits: int
    scale_bits: int
    """Bits of a group's scale and its zero point or offset together; 0 for a dense table, and for a
    matrix with one scale for all, which is no part of the ROM."""
    ternary: bool = False
    """All weights are -1, 0 or +1."""
    experts: int = 1
    """Matrices of this shape that lie one behind the other, of which a product takes one."""

    def planes(self, machine: Machine) -> int:
        """Cells of a code, each in a plane of its own."""
        if machine.cell == "ternary":
            return 1 if self.ternary else digits_of(self.bits)
        return _ceildiv(self.bits, machine.plane_bits)

    @staticmethod
    def of(
        dims: Sequence[int],
        code: str,
        bits: int,
        group: int,
        *,
        zeros: bool,
        offsets: int = 0,
        experts: int = 1,
    ) -> MatrixShape:
        """The shape of a tensor as its type states it.

        Args:
            dims: of a matrix, or of a vector, which is a matrix of one row.
            code: of its elements, as `rom.tensor` names it.
            bits: of an element.
            group: columns under one scale; 0 for a dense table, or one scale for a whole matrix.
            zeros: whether each group has a zero point.
            offsets: bits of the offset that each group has in place of one; 0: none.
            experts: matrices that the rows are of.
        """
        rows, columns = dims if len(dims) == 2 else (1, dims[0])
        scale_bits = SCALE_BITS + (bits if zeros else offsets) if group else 0
        is_ternary = code == "ternary"
        return MatrixShape(
            rows // experts, columns, group or columns, bits, scale_bits, is_ternary, experts
        )

    @property
    def stored_bits(self) -> int:
        """Bits of the weights, scales, zero points and offsets that exist, without padding."""
        groups = _ceildiv(self.columns, self.group)
        return self.experts * self.rows * (self.columns * self.bits + groups * self.scale_bits)

    def words_per_group(self, machine: Machine) -> int:
        """Words of a full group."""
        return _ceildiv(min(self.group, self.columns), machine.lanes)

    def words_per_row(self, machine: Machine) -> int:
        """Words of a row; the last group may be ragged."""
        full, rest = divmod(self.columns, self.group)
        return full * self.words_per_group(machine) + _ceildiv(rest, machine.lanes)


@dataclass(frozen=True)
class Piece:
    """Rows of a matrix on a range of tiles.

    Row `first_row + n` lies on tile `first_tile + (n % rows_per_step) // rows_per_tile`, step
    `n // rows_per_step`. Slice s of a row is on L-Unit `(n % rows_per_tile) * split + s`. Its word
    w, plane p is at bank address `base + (step * words + w) * planes + p`; the scale of its i-th
    group at `scale_base + step * slice_groups + i`. What a family of experts has of the same rows
    follows: expert e is `expert_words` and `expert_scales` times e behind those of expert 0.

    Word w of a slice is word `s * words + w` of the row. Where the piece is dealt it is word
    `(r * split + s) * run + w % run` with the round `r = w // run`, and lies at
    `base + ((r * steps + step) * run + w % run) * planes + p`; the scale of the i-th group of a run
    is at `scale_base + (r * steps + step) * run_groups + i`.
    """

    first_row: int
    rows: int
    first_tile: int
    tiles: int
    split: int
    base: int
    """Address of the first code word in every L-Unit's bank."""
    scale_base: int
    """Address of the first group scale in every L-Unit's scale column."""
    run: int = 0
    """Words of a row that follow each other in a slice, where it is dealt; 0: all of them do."""

    def rows_per_tile(self, machine: Machine) -> int:
        """Rows a tile works on at a time."""
        return machine.l_units // self.split

    def rows_per_step(self, machine: Machine) -> int:
        """Rows all tiles of the piece work on at a time."""
        return self.tiles * self.rows_per_tile(machine)

    def steps(self, machine: Machine) -> int:
        """Steps until all rows are done."""
        return _ceildiv(self.rows, self.rows_per_step(machine))

    def words(self, shape: MatrixShape, machine: Machine) -> int:
        """Words of one slice."""
        return _ceildiv(shape.words_per_row(machine), self.split)

    def rounds(self, shape: MatrixShape, machine: Machine) -> int:
        """Parts in which a product takes a row."""
        return self.words(shape, machine) // self.run if self.run else 1

    def round_columns(self, machine: Machine) -> int:
        """Columns of such a part; 0: a row is taken at once."""
        return self.run * self.split * machine.lanes

    def run_groups(self, shape: MatrixShape, machine: Machine) -> int:
        """Group scales that lie together: of a run, or of a slice that is not dealt."""
        if shape.scale_bits == 0 or not self.run:
            return self.slice_groups(shape, machine)
        return max(1, self.run // shape.words_per_group(machine))

    def slice_groups(self, shape: MatrixShape, machine: Machine) -> int:
        """Group scales stored with one slice, at most: a slice may begin inside a group."""
        if shape.scale_bits == 0:
            return 0
        if self.run:
            return self.rounds(shape, machine) * self.run_groups(shape, machine)
        words, size = self.words(shape, machine), shape.words_per_group(machine)
        if words % size == 0:
            return words // size
        return min(_ceildiv(shape.columns, shape.group), _ceildiv(words - 1, size) + 1)

    def expert_words(self, shape: MatrixShape, machine: Machine) -> int:
        """ROM words of codes of the matrix, or of one expert, in every L-Unit's bank."""
        return self.steps(machine) * self.words(shape, machine) * shape.planes(machine)

    def expert_scales(self, shape: MatrixShape, machine: Machine) -> int:
        """Group scales of the matrix, or of one expert, in every L-Unit's bank."""
        return self.steps(machine) * self.slice_groups(shape, machine)

    def code_words(self, shape: MatrixShape, machine: Machine) -> int:
        """ROM words of codes that the piece takes in every L-Unit's bank."""
        return shape.experts * self.expert_words(shape, machine)

    def experts_in(
        self, first: int, last: int, shape: MatrixShape, machine: Machine
    ) -> tuple[int, int] | None:
        """The first and the last expert with code words from one address to another, both
        included; None: there is none."""
        words = self.expert_words(shape, machine)
        low = max(0, (first - self.base) // words)
        high = min(shape.experts - 1, (last - self.base) // words)
        return (low, high) if low <= high else None

    def scale_words(self, shape: MatrixShape, machine: Machine) -> int:
        """Group scales that the piece takes in every L-Unit's bank."""
        return shape.experts * self.expert_scales(shape, machine)

    def bank_bits(self, shape: MatrixShape, machine: Machine) -> int:
        """ROM bits that the piece takes in every L-Unit's bank, padding included."""
        word_bits = machine.lanes * machine.plane_bits
        codes = self.code_words(shape, machine) * word_bits
        return codes + self.scale_words(shape, machine) * shape.scale_bits

    def wide_words(
        self, shape: MatrixShape, machine: Machine, reads: Reads, round_: int
    ) -> list[int]:
        """Which words of a slice, counted in the round, are read more often: those that are in any
        slice, since all L-Units go together."""
        run = self.run or self.words(shape, machine)
        of_row = reads.wide_words(shape, machine)
        if not self.run:
            return sorted({word % run for word in of_row})
        return sorted({word % run for word in of_row if word // run // self.split == round_})

    def read_cycles(
        self, shape: MatrixShape, machine: Machine, reads: Reads, round_: int = 0
    ) -> int:
        """Cycles in which the words of a step are read; where the piece is dealt, of a round."""
        words = self.run or self.words(shape, machine)
        more = reads.more * len(self.wide_words(shape, machine, reads, round_))
        return (words * reads.passes + more) * shape.planes(machine)

    def round_cycles(
        self, shape: MatrixShape, machine: Machine, reads: Reads, floor: int = 1, round_: int = 0
    ) -> int:
        """Cycles of a round that is not the last: its words in all steps. Arguments as
        `step_cycles`, and the number of the round."""
        return max(self.steps(machine) * self.read_cycles(shape, machine, reads, round_), floor)

    def step_cycles(
        self, shape: MatrixShape, machine: Machine, reads: Reads, floor: int = 1
    ) -> int:
        """Cycles of one step, in the last round: the slower of reading the words and draining the
        results.

        Args:
            shape: of the matrix.
            machine: the chip.
            reads: how often words are used for the bits of an activation.
            floor: what a step takes at least (`step_floor`).
        """
        read = self.read_cycles(shape, machine, reads, self.rounds(shape, machine) - 1)
        return max(read, self.drain_cycles(machine), floor)

    def drain_cycles(self, machine: Machine) -> int:
        """Cycles in which one step's results leave the array."""
        return _ceildiv(min(self.rows, self.rows_per_step(machine)), machine.results_per_cycle)

    def product_cycles(self, shape: MatrixShape, machine: Machine, reads: Reads) -> int:
        """Cycles of all steps and the last drain, without the latencies of the way."""
        steps = self.steps(machine) * self.step_cycles(shape, machine, reads)
        before = sum(
            self.round_cycles(shape, machine, reads, round_=number)
            for number in range(self.rounds(shape, machine) - 1)
        )
        return before + steps + self.drain_cycles(machine)

    def place_of(self, row: int, machine: Machine) -> tuple[int, int, int]:
        """Tile, first L-Unit and step of a row of the matrix."""
        step, rest = divmod(row - self.first_row, self.rows_per_step(machine))
        tile, slot = divmod(rest, self.rows_per_tile(machine))
        return self.first_tile + tile, slot * self.split, step


def misdealt(piece: Piece, shape: MatrixShape, machine: Machine) -> str | None:
    """Why a piece cannot be dealt in its runs; None: it can, or is not."""
    run, words = piece.run, piece.words(shape, machine)
    if not run:
        return None
    if words % run:
        return f"has runs of {run} words, which do not divide the {words} of a slice"
    runs = _ceildiv(shape.words_per_row(machine), run)
    if _ceildiv(runs, piece.split) * run > words:
        return f"has runs of {run} words, of which some slices would get more than {words}"
    group = shape.words_per_group(machine)
    if shape.scale_bits and run % group and group % run:
        return f"has runs of {run} words, which scale groups of {group} words do not fit"
    if (steps := piece.steps(machine)) > machine.accumulators:
        return (
            f"has {steps} steps, of which an L-Unit with {machine.accumulators} more accumulators "
            "cannot keep all sums"
        )
    if shape.experts > 1:
        return "is a family of experts, which are not dealt"
    return None


def step_floor(pieces: Iterable[Piece], machine: Machine) -> int:
    """Cycles that a step takes at least, for the results of steps of others to have left."""
    return max((piece.drain_cycles(machine) for piece in pieces), default=1)


def lower_bound_cycles(shape: MatrixShape, machine: Machine, reads: Reads) -> float:
    """Cycles if every lane of the chip were busy with a weight in every one of them."""
    work = shape.rows * shape.planes(machine) * reads.of_row(shape.columns)
    return work / (machine.tiles * machine.l_units * machine.lanes)


def activation_passes(activations: str, machine: Machine) -> int:
    """How often a ROM word is used: the activation's integer bits over those of one pass."""
    return _ceildiv(FORMATS[activations].bits, machine.pass_bits)
