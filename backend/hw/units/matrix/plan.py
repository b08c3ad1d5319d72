"""What the matrix array has to know of a program: its sizes, descriptors and ROM contents.

`configure` finds the sizes of a program's matrix array, `encode` makes the descriptor of an
instruction instance, `l_unit_images` the contents of the ROMs. The hardware that these are for is
in `backend/hw/units/matrix/array.py` and `backend/hw/units/matrix/tile.py`. Layouts follow
`dialects/tiling.py`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from intaglio.backend.hw.units import peaks
from intaglio.backend.hw.units.refusals import (
    attempted,
    no_powers,
    refuse,
    result_refusals,
    short_latencies,
)
from intaglio.backend.hw.wires.widths import log2
from intaglio.backend.program.power_bits import power_bits
from intaglio.backend.program.types import Instruction, Parameter, Program
from intaglio.dialects import constant_rom
from intaglio.dialects.codes import Matrix, pack
from intaglio.dialects.descriptor import Field, Fields
from intaglio.dialects.errors import CompilerBug, UserError
from intaglio.dialects.formats import EXPONENTS, FORMATS
from intaglio.dialects.isa.instruction import Instruction as Does
from intaglio.dialects.isa.matrix import EmbedPosition, ExpertMatvec, Matvec, Row
from intaglio.dialects.isa.values import Blocks, Coded, Quantized
from intaglio.dialects.machine import Machine
from intaglio.dialects.memories import LEAST_ROWS, NORM_SCALES, rows_of
from intaglio.dialects.semantics import accumulator_bits
from intaglio.dialects.tiling import (
    SCALE_BITS,
    WIDE,
    MatrixShape,
    Piece,
    Reads,
    activation_passes,
    step_floor,
)
from intaglio.dialects.trits import balanced
from intaglio.lowering.schedule import durations

PLACES_BITS = 12
"""Width of the signed number of places that a requantiser shifts by."""

FIELDS: dict[str, str] = {
    "embed": "1: a row of a table (`embed`, `embed_position`), 0: `matvec`, `expert_matvec`",
    "placed": "1: the row is that of the position (`embed_position`), 0: of the token",
    "dense": "1: the table is of 16-bit numbers, without scales (`embed`)",
    "way": "how results leave the tiles: a number in `MatrixConfig.ways`",
    "form": "how the table's rows lie on the tiles: a number in `MatrixConfig.forms` (`embed`)",
    "first_tile": "first tile of the piece",
    "last_tile": "last tile of the piece; no field where all pieces lie on all tiles",
    "code_base": "address of the piece's first code word, in a family that of expert 0",
    "scale_base": "address of the piece's first group scale",
    "chosen": "row of the chosen expert in the memory of routings (`expert_matvec`)",
    "expert_words": "code words from an expert to the next one; 0: not of a family",
    "expert_scales": "group scales from an expert to the next one",
    "expert_biases": "rows of the constant ROM from an expert's biases to the next one's",
    "slice_groups": "group scales of a slice, or of a round of it",
    "words": "words of a slice, or of a round of it",
    "first_word": "first word of the round in the row",
    "kept": "1: a round that is not the last, whose sums stay in the L-Units",
    "added": "1: a round that is not the first, added to the sums that stay there",
    "sum": "accumulator of the first step at hand: 0 without rounds, else 1 for step 0",
    "planes": "bit planes of a code, less one",
    "wide": "a bit for each word of the slice, or of the round: 1: it is read for longer codes; of "
    "one bit: all words are, or none",
    "idle": "cycles after each word's planes in which the word before still leaves (`embed`)",
    "stride": "code words of a slice: words times planes (`embed`)",
    "step_slots": "cycles of a step, less one; for `embed` those of a slice",
    "slots": "cycles of all steps, less one; for `embed` up to the row's last code word, less one",
    "beats": "cycles in which a step's results leave the array, less one",
    "group_shift": "places to shift a word's number by to get its group's",
    "columns": "elements of a row",
    "first": "number of the first element of the steps at hand",
    "last": "number of the result's last element",
    "input_row": "first row of the input in the memory of quantised vectors; also its scale's",
    "blocked": "1: the input has an exponent a block; no field where all do, or none",
    "unscaled": "1: the input has no scale of its own, its unit is in `places`",
    "normed": "1: the results are times the factor of a norm, the input's unit is in `places`",
    "norm_row": "row of the factor",
    "zero": "zero point of the whole matrix; 0 when each group has its own",
    "single": "1: the matrix has one scale, `mantissa`",
    "mantissa": "of the matrix's one scale",
    "pre_shift": "places that an accumulator loses before it is scaled",
    "places": "places to shift the scaled accumulator by, without the activation's exponent",
    "bias": "1: add a bias",
    "bias_row": "first row of the bias in the constant ROM, in a family that of expert 0",
    "residual": "1: add a vector",
    "residual_row": "first row of that vector in the vector memory",
    "output_row": "first row of the result in the vector memory",
    "slack": "cycles to wait, where another instance of the instruction takes longer",
    **{one.name: one.meaning for one in peaks.FIELDS},
}
"""Fields of a descriptor, and what they say. One that is 0 in every instruction of a program does
not exist in its hardware."""

_SIGNED = ("places", "mantissa", *(one.name for one in peaks.FIELDS if one.signed))
"""Those in two's complement; the others are unsigned."""


class ImagesLike(Protocol):
    """Where the tensors' integers come from: `backend.images.read.Images`."""

    def matrix(self, name: str) -> Matrix:
        """A matrix of small codes."""
        ...

    def dense(self, name: str) -> npt.NDArray[np.signedinteger]:
        """A dense table [rows, columns]."""
        ...


def is_single(parameter: Parameter) -> bool:
    """Whether a tensor is of codes with one scale for all."""
    return not parameter.group and not parameter.is_dense


class Way(NamedTuple):
    """How the results of a piece leave the tiles."""

    split: int
    """L-Units that share a row."""
    chunk: int
    """Results that the array delivers at a time: a power of two, or of a tile range that is none
    as many as leave in a cycle."""


class Form(NamedTuple):
    """How the rows of a table lie on the tiles."""

    split: int
    """L-Units that share a row."""
    tiles: int

    def slots(self, machine: Machine) -> int:
        """Rows of a tile at one address: a power of two."""
        return machine.l_units // self.split


class BankRow(NamedTuple):
    """Banks at the same addresses of all L-Units of a tile."""

    domain: int | None
    """What powers them: a number in `MatrixConfig.domains`; None: they are always on."""
    words: int
    """Words up to the last that is used."""


class Inputs(NamedTuple):
    """The vectors that a program's matrices are multiplied with."""

    formats: tuple[str, ...]
    """Of their codes; those of wide blocks are int16."""
    steps: int
    """Of those with an exponent a block, the finest (`formats.Format.steps`); 0: there are none."""
    unblocked: bool
    """Whether there are others beside these."""
    reads: tuple[int, ...]
    """How often a code word is used, once for each part of an activation: ascending."""

    @property
    def least(self) -> int:
        """How often words are used at least."""
        return self.reads[0]

    @property
    def most(self) -> int:
        """And at most."""
        return self.reads[-1]

    @staticmethod
    def of(program: Program, uses: Sequence[Use]) -> Inputs:
        """Those of instruction instances."""
        machine = program.machine
        formats = dict[str, None]()
        coded = dict[str, None]()
        reads = set[int]()
        for use in uses:
            if not isinstance(use.does, Matvec | ExpertMatvec):
                continue
            kind = program.value(use.does.input, Coded)
            formats[kind.format] = None
            of = Reads.of(kind, machine)
            if not of.wide:
                coded[kind.format] = None
                reads.add(of.passes)
                continue
            coded |= dict.fromkeys((kind.format, WIDE.name))
            parameter = program.parameters[tensor(use)]
            for piece in parameter.pieces:
                words = _reads_of_words(piece, parameter.rom_shape, machine, of, use)
                reads |= set(words)
        by_block = {FORMATS[fmt].by_block for fmt in formats}
        return Inputs(
            tuple(fmt for fmt in FORMATS if fmt in coded),
            max((FORMATS[fmt].steps for fmt in formats), default=0),
            len(by_block) > 1,
            tuple(sorted(reads)),
        )


def _reads_of_words(
    piece: Piece, shape: MatrixShape, machine: Machine, reads: Reads, use: Use
) -> list[int]:
    """How often each word of a slice is used, or of the round that an instance is."""
    words = [reads.passes] * (piece.run or piece.words(shape, machine))
    for word in piece.wide_words(shape, machine, reads, use.instruction.beat.number):
        words[word] += reads.more
    return words


@dataclass(frozen=True)
class MatrixConfig:
    """The sizes of a matrix array: what `build_matrix` needs.

    Attributes:
        machine: geometry, formats and latencies.
        fields: of the descriptor, in the order of `FIELDS`.
        ways: how pieces deliver results, by split.
        forms: how tables lie on the tiles.
        accumulator_bits: of the widest accumulator.
        planes: bit planes of the widest code of a product.
        table_planes: bit planes of the widest code of an embedding table; 0 without tables.
        grouped: whether a matrix has group scales. If none has, L-Units have neither ROM for
            scales nor multipliers for them: a matrix's one scale is applied to its results.
        zero_bits: of the zero points stored with the scales.
        offset_bits: of the offsets stored with the scales.
        code_words: depth of an L-Unit's code ROM.
        scale_words: depth of an L-Unit's scale ROM; 0 without group scales.
        banks: of each tile, its rows of banks by address; None where nothing is stored.
        domains: of the power, in the order of the bits of the port `power`.
        token_bits: of a row's number in the largest table.
        places: positions of the context, where a row is chosen by the position; else 0.
        vector_rows: rows of the vector memory, and of the memory of quantised vectors.
        constant_rows: rows of the constant ROM.
        floor: cycles that a step takes at least.
        inputs: what is multiplied.
        experts: of the family with the most; 1 without families.
        sums: accumulators of an L-Unit for products that take rows in rounds, besides one.
        norm_rows: rows of the memory of norms' factors.
    """

    machine: Machine
    fields: Fields
    ways: tuple[Way, ...]
    forms: tuple[Form, ...]
    accumulator_bits: int
    planes: int
    table_planes: int
    grouped: bool
    zero_bits: int
    offset_bits: int
    code_words: int
    scale_words: int
    banks: tuple[tuple[BankRow | None, ...], ...]
    domains: tuple[str, ...]
    token_bits: int
    places: int
    vector_rows: int
    constant_rows: int
    floor: int
    inputs: Inputs
    experts: int = 1
    sums: int = 0
    norm_rows: int = 0

    @property
    def steps(self) -> int:
        """Of inputs with an exponent a block (`formats.Format.steps`); 0: there are none."""
        return self.inputs.steps

    @property
    def unblocked(self) -> bool:
        """Whether there are others beside them."""
        return self.inputs.unblocked

    @property
    def splits(self) -> tuple[int, ...]:
        """Over how many L-Units a row is split, ascending powers of two."""
        return tuple(sorted({way.split for way in self.ways}))

    @property
    def ternary(self) -> bool:
        """Whether a cell holds -1, 0 or +1."""
        return self.machine.cell == "ternary"

    @property
    def logic(self) -> bool:
        """Whether the ROM is made of gates, with its content."""
        return self.machine.rom == "logic"

    @property
    def plane_weights(self) -> tuple[int, ...]:
        """What a one in each plane of a code counts, the lowest first."""
        base = 3 if self.ternary else 1 << self.machine.plane_bits
        return tuple(base**plane for plane in range(self.planes))

    @property
    def ports(self) -> int:
        """Slices of a row that are multiplied at a time: L-Unit u of a tile gets the activations
        of slice ``u % ports``."""
        return max(self.splits)

    @property
    def word_rows(self) -> int:
        """Rows of the memory of quantised vectors that the activations of a word lie in."""
        return max(1, self.machine.lanes // self.machine.vector_lanes)

    @property
    def input_ports(self) -> int:
        """Read ports of that memory: `word_rows` for each slice."""
        return self.ports * self.word_rows

    @property
    def word_blocks(self) -> int:
        """Parts of a word that have an exponent each; 1 where blocks are no shorter than words."""
        return max(1, self.machine.lanes // self.machine.block) if self.steps else 1

    @property
    def step_ports(self) -> int:
        """Read ports of the memory of blocks' steps; 0: no input has blocks."""
        return self.input_ports if self.steps else 0

    @property
    def passes(self) -> int:
        """How often a code word is used, at most: once for each part of an activation."""
        return self.inputs.most

    @property
    def pass_bits(self) -> int:
        """Bits of one part of an activation.

        A decoded activation ``x`` of n bits (8, 16, or 19 for fp8) is
        ``sum(part[a] << (a * pass_bits))``: the last part is signed, all others are unsigned. For
        int16 with 8-bit passes: an unsigned low and a signed high byte. In a word that is read
        less often than others the last of the fewer parts is signed.
        """
        machine = self.machine
        return max(
            -(-FORMATS[fmt].decoded_bits // activation_passes(fmt, machine))
            for fmt in self.inputs.formats
        )

    @property
    def part_bits(self) -> int:
        """Wires of one signed part: a bit more than `pass_bits` when there are unsigned parts."""
        return self.pass_bits + (self.passes > 1)

    @property
    def sum_bits(self) -> int:
        """Bits of the sum of a word's activations, with a sign: of their parts, or, where a word
        has several blocks, of the integers that these stand for."""
        bits = self.part_bits + log2(self.machine.lanes)
        if self.word_blocks > 1:
            bits += self.steps.bit_length() - 1 + EXPONENTS - 1
        return bits

    @property
    def code_bits(self) -> int:
        """Bits of an activation's code as it is read from the memory of quantised vectors, where
        shorter codes have signs in front."""
        return FORMATS[self.code_format].memory_bits

    @property
    def code_format(self) -> str:
        """The longest format of codes."""
        return max(self.inputs.formats, key=lambda fmt: FORMATS[fmt].memory_bits)

    @property
    def word_bits(self) -> int:
        """Bits of a code word."""
        return self.machine.lanes * self.machine.plane_bits

    @property
    def scale_bits(self) -> int:
        """Bits of a scale word: the mantissa, above it the zero point, above that the offset."""
        return self.offset_place + self.offset_bits

    @property
    def offset_place(self) -> int:
        """First bit of the offset in a scale word."""
        return SCALE_BITS + self.zero_bits

    @property
    def tile_lanes(self) -> int:
        """Results that a tile delivers at a time."""
        return min(self.machine.results_per_cycle, self.machine.l_units)

    @property
    def tile_beats(self) -> int:
        """Groups of results that a tile delivers one after the other, at most."""
        return max(1, self.machine.l_units // min(self.splits) // self.tile_lanes)

    @property
    def word_beats(self) -> int:
        """Cycles in which the elements of a table's word leave the array."""
        return durations.table_beats(self.machine)


class Use(NamedTuple):
    """An instance of a matrix instruction."""

    instruction: Instruction
    instance: Mapping[str, str]

    @property
    def does(self) -> Does[str]:
        """What it does, by the names of parameters."""
        return self.instruction.does.bound(self.instance)


def matrix_uses(program: Program) -> Iterator[Use]:
    """The instruction instances of the matrix queue in program order."""
    for block in program.blocks:
        for instance in block.instances:
            for instruction in block.instructions:
                if isinstance(instruction.does, Row | Matvec | ExpertMatvec):
                    yield Use(instruction, instance)


def configure(
    program: Program,
    constant_rows: Mapping[str, int] | None = None,
    *,
    vector_depth: int | None = None,
    constant_depth: int = 1,
) -> MatrixConfig:
    """The sizes of a program's matrix array.

    Args:
        program: the program.
        constant_rows: first row of each bias in the constant ROM.
        vector_depth: rows of the vector memory and of that of quantised vectors; as many as the
            buffers need by default.
        constant_depth: rows of the constant ROM.

    Raises:
        UserError: the hardware cannot be built for this machine or placement, with the reason.
    """
    refuse(refusals(program))
    machine = program.machine
    uses = list(matrix_uses(program))
    formats = {
        (name, program.value(u.does.input, Coded).format)
        for u in uses
        if isinstance(u.does, Matvec | ExpertMatvec)
        for name in (tensor(u),)
    }
    inputs = Inputs.of(program, uses)
    products, tables = (
        [
            program.parameters[name]
            for name in dict.fromkeys(tensor(u) for u in uses if isinstance(u.does, kind))
        ]
        for kind in ((Matvec, ExpertMatvec), (Row,))
    )
    shapes = {p.name: p.rom_shape for p in (*products, *tables)}
    pieces = {p.name: piece_of(p, machine) for p in products}
    pieces |= {p.name: piece_of(p, machine) for p in tables}
    floor = step_floor((pieces[one.name] for one in products), machine)
    grouped = any(shape.scale_bits for shape in shapes.values())
    ways = tuple(sorted({way_of(piece, machine) for piece in pieces.values()}))
    forms = tuple(sorted({form_of(pieces[table.name]) for table in tables}))
    last = program.in_context(machine.contexts - 1)
    values = [
        _descriptor(one, use, constant_rows or {}, pieces, floor, inputs)
        for one in (program, *([last] if last is not program else []))
        for use in matrix_uses(one)
    ]
    widths = _used_widths(values, inputs)
    widths["way"] = (len(ways) - 1).bit_length()
    widths["form"] = (len(forms) - 1).bit_length() if forms else 0
    widths |= _other_widths(widths, [*products, *tables])
    if all(piece.tiles == machine.tiles for piece in pieces.values()):
        widths["last_tile"] = 0
    if not grouped:
        # All have one scale then, but for dense tables, which are told apart already.
        widths |= dict.fromkeys(("single", "scale_base", "slice_groups", "group_shift"), 0)
    rows = max(
        one.row + rows_of(one.type, machine.vector_lanes, 1) for one in program.buffers.values()
    )
    code_words = max(p.base + p.code_words(shapes[n], machine) for n, p in pieces.items())
    scale_words = max(p.scale_base + p.scale_words(shapes[n], machine) for n, p in pieces.items())
    return MatrixConfig(
        machine=machine,
        fields=Fields(
            Field(name, widths[name], meaning, name in _SIGNED)
            for name, meaning in FIELDS.items()
            if widths.get(name)
        ),
        ways=ways,
        forms=forms,
        accumulator_bits=max(
            (
                accumulator_bits(
                    p.bits,
                    p.dims[1],
                    fmt,
                    SCALE_BITS if grouped else 1,
                    p.zero,
                    p.offset_bits,
                )
                + _finer(fmt, inputs)
                for name, fmt in formats
                for p in (program.parameters[name],)
            ),
            default=2,
        ),
        planes=max((shapes[p.name].planes(machine) for p in products), default=1),
        table_planes=max((shapes[p.name].planes(machine) for p in tables), default=0),
        grouped=grouped,
        zero_bits=max(
            (p.bits for p in (*products, *tables) if p.zero is None and not p.is_dense), default=0
        ),
        offset_bits=max(p.offset_bits for p in (*products, *tables)),
        code_words=code_words,
        scale_words=max(1, scale_words) if grouped else 0,
        banks=_banks(program, pieces),
        domains=tuple(one.label for one in power_bits(program)),
        token_bits=max([(p.dims[0] - 1).bit_length() for p in tables] or [1]),
        places=program.capacity if widths["placed"] else 0,
        vector_rows=vector_depth or rows,
        constant_rows=constant_depth,
        floor=floor,
        inputs=inputs,
        experts=max((p.experts for p in products), default=1),
        sums=machine.contexts * _sums(pieces, machine),
        norm_rows=max(
            (LEAST_ROWS, *(o.row + 1 for o in last.buffers.values() if o.memory == NORM_SCALES))
        ),
    )


def _finer(fmt: str, inputs: Inputs) -> int:
    """Bits by which the unit of sums lies below that of a format's own: where blocks of others have
    finer steps, all are counted in those."""
    steps = FORMATS[fmt].steps
    return inputs.steps.bit_length() - steps.bit_length() if steps else 0


def _used_widths(values: Sequence[Mapping[str, int]], inputs: Inputs) -> dict[str, int]:
    """Bits of the numbers in each field of the descriptors; of one that tells nothing, 0."""
    widths = {
        field: max((one[field].bit_length() for one in values), default=0) for field in FIELDS
    }
    if inputs.steps and not inputs.unblocked:
        widths["blocked"] = 0
    if widths["wide"]:
        every = all(one["wide"] in (0, (1 << one["words"]) - 1) for one in values)
        widths["wide"] = 1 if every else max(2, widths["wide"])
    return widths


def _other_widths(used: Mapping[str, int], tensors: Sequence[Parameter]) -> dict[str, int]:
    """Widths that do not follow from the numbers: of signed fields, and of what an image says.

    Args:
        used: bits of the numbers in each field.
        tensors: that the array multiplies with or reads rows of.
    """
    widths = {"places": PLACES_BITS}
    widths |= {"mantissa": SCALE_BITS} if any(map(is_single, tensors)) else {}
    return widths | {one.name: one.width for one in peaks.FIELDS if used[one.name]}


def way_of(piece: Piece, machine: Machine) -> Way:
    """How the results of a piece leave the tiles."""
    return Way(piece.split, min(machine.results_per_cycle, piece.rows_per_step(machine)))


def form_of(piece: Piece) -> Form:
    """How the rows of a table's piece lie on the tiles."""
    return Form(piece.split, piece.tiles)


def _banks(program: Program, pieces: Mapping[str, Piece]) -> tuple[tuple[BankRow | None, ...], ...]:
    """The rows of banks of each tile; see `MatrixConfig.banks`."""
    machine = program.machine
    size = machine.bank_words
    bits = {(one.domain, one.row): number for number, one in enumerate(power_bits(program))}
    domain_of = {tensor: name for name, tensors in program.domains.items() for tensor in tensors}
    found: list[dict[int, tuple[BankRow, str]]] = [{} for _ in range(machine.tiles)]
    for name, piece in pieces.items():
        end = piece.base + piece.code_words(program.parameters[name].rom_shape, machine)
        label = domain_of.get(name, "none")
        for tile in range(piece.first_tile, piece.first_tile + piece.tiles):
            for row in range(piece.base // size, -(-end // size)):
                used = min(end - row * size, size)
                domain = bits.get((label, None), bits.get((label, row)))
                other, other_label = found[tile].get(row, (BankRow(domain, 0), label))
                if other.domain != domain:
                    raise UserError(
                        f"the hardware of {machine.name} cannot switch ROM banks: bank {row} of "
                        f"tile {tile} holds tensors of the power domains {other_label} and {label}"
                    )
                found[tile][row] = BankRow(domain, max(other.words, used)), label
    return tuple(
        tuple(rows[row][0] if row in rows else None for row in range(max(rows, default=-1) + 1))
        for rows in found
    )


def tensor(use: Use) -> str:
    """The matrix or table of an instruction instance."""
    match use.does:
        case Row(table=name) | Matvec(weights=name) | ExpertMatvec(weights=name):
            return name
        case other:
            raise CompilerBug(f"the matrix array cannot execute {other.opcode}")


def machine_refusals(machine: Machine) -> list[UserError]:
    """Why the array's hardware does not exist for this machine; each names the parameter."""
    powers = {"array.l_units": machine.l_units, "l_unit.lanes": machine.lanes}
    if machine.rom == "logic":
        powers["l_unit.bank_words"] = machine.bank_words
    found = no_powers(powers) + result_refusals(machine) + _block_refusals(machine)
    if machine.cell == "ternary" and machine.plane_bits != 2:
        bits = machine.plane_bits
        found.append(UserError(f"a ternary cell of {machine.name} has two bits, not {bits}"))
    least = {"broadcast": 1, "rom_read": 1, "reduce": 1, "requantise": 2}
    # Exponents of blocks are a stage of their own.
    least["mac_pipeline"] = machine.rom_read + 1 + machine.has_blocks
    return found + short_latencies(machine, "matrix array", least)


def _check_input(kind: Coded, machine: Machine) -> None:
    """Whether the array can multiply with a vector.

    Raises:
        UserError: it has several scales, another format, or blocks that are not the machine's.
    """
    what = None
    if isinstance(kind, Quantized):
        if kind.groups != 1:
            what = f"vectors with one scale, not {kind.groups}"
    elif isinstance(kind, Blocks) and kind.block != machine.block:
        what = f"blocks of {machine.block}, not of {kind.block}"
    if what is not None:
        raise UserError(
            f"the hardware of {machine.name} multiplies {what}", hint="--set activations=int8"
        )


def _mixed_inputs(program: Program, uses: Sequence[Use]) -> list[UserError]:
    """Which inputs of products hardware cannot multiply beside the others of a program."""
    machine = program.machine
    named: dict[str, dict[str, None]] = {}
    for use in uses:
        if isinstance(use.does, Matvec | ExpertMatvec):
            fmt = program.value(use.does.input, Coded).format
            named.setdefault(fmt, {})[tensor(use)] = None
    apart = {fmt: _apart(fmt, named, machine) for fmt in named}
    return [
        UserError(
            f"the hardware of {machine.name} multiplies inputs of {machine.activations}; those of "
            f"{', '.join(list(named[fmt])[:4])}{' and others' if len(named[fmt]) > 4 else ''} are "
            f"{fmt}: {why}",
            hint=f"{hint}, or --emit program: schedule, reports and simulator take both",
        )
        for fmt, (why, hint) in apart.items()
        if why
    ]


def _apart(fmt: str, formats: Collection[str], machine: Machine) -> tuple[str, str]:
    """Why inputs of a format cannot be multiplied in an array for these formats, and what helps."""
    every = f"--set activations={fmt} for all products"
    if FORMATS[fmt].by_block and not machine.has_blocks:
        return (
            "its L-Units have no stage for the exponents of blocks",
            f"--set activations={fmt}, with activations.NAME={machine.activations} for the others",
        )
    if fmt != machine.activations and "fp8" in (fmt, machine.activations):
        return "E4M3 codes are decoded for all products or for none", every
    passes = sorted({activation_passes(one, machine) for one in formats})
    if len(passes) > 2 and activation_passes(fmt, machine) == passes[-1]:
        numbers = ", ".join(map(str, passes))
        return f"words of its ROM are read two numbers of times, not {numbers}", every
    return "", ""


def _block_refusals(machine: Machine) -> list[UserError]:
    """Why rows do not fit blocks."""
    if not machine.has_blocks or machine.block <= machine.vector_lanes:
        return []
    return [
        UserError(
            f"a block of {machine.block} is more than the {machine.vector_lanes} vector lanes",
            hint=f"--set formats.block={machine.vector_lanes}, or --set activations=int8",
        )
    ]


def refusals(program: Program) -> list[UserError]:
    """Why there is no matrix array for a program: machine and placement."""
    machine = program.machine
    uses = list(matrix_uses(program))
    found = machine_refusals(machine)
    if not uses:
        return [*found, UserError("the program has no matrices")]
    found += _mixed_inputs(program, uses)
    tensors = dict.fromkeys(tensor(use) for use in uses)
    pieces: dict[str, Piece] = {}

    def place(name: str) -> None:
        pieces[name] = piece_of(program.parameters[name], machine)

    found += attempted(*[partial(place, name) for name in tensors])
    if not found:
        found += attempted(lambda: _banks(program, pieces))
    return found


def piece_of(parameter: Parameter, machine: Machine) -> Piece:
    """The one piece of a matrix.

    Args:
        parameter: the matrix.
        machine: of the array.

    Raises:
        UserError: the hardware cannot work on a matrix of this kind, or that is cut this way.
    """

    def refuse(what: str) -> UserError:
        return UserError(
            f"the hardware of {machine.name} cannot use '{parameter.name}': {what}",
            hint="--emit program: schedule, reports and simulator take it",
        )

    shape = parameter.rom_shape
    if machine.cell == "ternary" and not parameter.is_dense:
        middle = 1 if shape.ternary else 1 << (parameter.bits - 1)
        if parameter.zero != middle:
            stated = "zero points of its groups" if parameter.zero is None else parameter.zero
            raise refuse(
                f"a ternary cell has no zero point, so that of {parameter.code} is {middle}, "
                f"not {stated}"
            )
    if len(parameter.pieces) != 1:
        raise refuse(f"it is cut into {len(parameter.pieces)} pieces, not one")
    (piece,) = parameter.pieces
    if piece.split & (piece.split - 1) or piece.split > machine.l_units:
        raise refuse(f"a row is split over {piece.split} L-Units, not a power of two")
    step = piece.rows_per_step(machine)
    aligned = not piece.tiles & (piece.tiles - 1) and piece.first_tile % piece.tiles == 0
    whole = piece.tiles == machine.tiles and step % machine.results_per_cycle == 0
    if piece.first_tile + piece.tiles > machine.tiles or not (aligned or whole):
        raise refuse(
            f"its {piece.tiles} tiles from tile {piece.first_tile} on are no power of two of tiles "
            f"at a multiple of their number, nor all tiles with full cycles of results"
        )
    if shape.group < shape.columns:
        words = shape.group // machine.lanes
        if shape.group % machine.lanes or words & (words - 1):
            raise refuse(
                f"its groups of {shape.group} are no power of two of words of {machine.lanes}"
            )
    return piece


def encode(
    program: Program,
    instruction: Instruction,
    instance: Mapping[str, str],
    config: MatrixConfig,
    constant_rows: Mapping[str, int] | None = None,
    scales: Mapping[str, int] | None = None,
) -> dict[str, int]:
    """The descriptor of an instruction instance: a number for each of `config.fields`.

    Args:
        program: the program.
        instruction: a `matvec`, `expert_matvec` or `embed` of the matrix queue.
        instance: what the block's instance binds slots to.
        config: of the array.
        constant_rows: first row of each bias in the constant ROM.
        scales: the mantissas of matrices with one scale (`single_scales`).

    Raises:
        UserError: the hardware cannot execute the instruction, with the reason.
    """
    use = Use(instruction, instance)
    name = tensor(use)
    parameter, table = program.parameters[name], isinstance(instruction.does, Row)
    piece = piece_of(parameter, program.machine)
    values = _descriptor(
        program, use, constant_rows or {}, {name: piece}, config.floor, config.inputs
    )
    if config.fields.get("wide") == 1:
        values["wide"] = int(values["wide"] > 0)
    values["way"] = config.ways.index(way_of(piece, program.machine))
    if table:
        values["form"] = config.forms.index(form_of(piece))
    if is_single(parameter):
        if scales is None or name not in scales:
            raise CompilerBug(f"{name} has one scale, and nobody says which")
        values["mantissa"] = scales[name]
    values = {name: values[name] for name in config.fields}
    return config.fields.checked(values, instruction.opcode)


def single_scaled(program: Program) -> list[str]:
    """The matrices with one scale that the matrix queue uses."""
    names = dict.fromkeys(tensor(use) for use in matrix_uses(program))
    return [name for name in names if is_single(program.parameters[name])]


def single_scales(program: Program, images: ImagesLike) -> dict[str, int]:
    """The mantissa of each matrix with one scale that the matrix queue uses."""
    return {name: int(images.matrix(name).scales[0, 0]) for name in single_scaled(program)}


def _descriptor(
    program: Program,
    use: Use,
    constant_rows: Mapping[str, int],
    pieces: Mapping[str, Piece],
    floor: int,
    inputs: Inputs,
) -> dict[str, int]:
    """All fields but `way`, `form` and `mantissa`; `places` signed."""
    machine, instruction = program.machine, use.instruction
    name = tensor(use)
    parameter, piece = program.parameters[name], pieces[name]
    shape = parameter.rom_shape

    planes, words = shape.planes(machine), piece.run or piece.words(shape, machine)
    single = shape.group >= shape.columns
    # Shifted so far, every word's number is 0.
    group_shift = (
        shape.words_per_row(machine).bit_length()
        if single
        else log2(shape.words_per_group(machine))
    )
    does = use.does
    fraction = program.fraction(does.writes[0])
    values = dict.fromkeys(FIELDS, 0)
    values |= {
        "embed": int(isinstance(does, Row)),
        "first_tile": piece.first_tile,
        "last_tile": piece.first_tile + piece.tiles - 1,
        "code_base": piece.base,
        "scale_base": piece.scale_base,
        "slice_groups": piece.run_groups(shape, machine),
        "words": words,
        "planes": planes - 1,
        "group_shift": group_shift,
        "columns": shape.columns,
        "zero": 0 if machine.cell == "ternary" else parameter.zero or 0,
        "single": int(is_single(parameter)),
        "output_row": program.row_of(does.writes[0], instruction),
    }
    if not isinstance(does, Matvec | ExpertMatvec):
        period = max(planes, durations.table_beats(machine))
        values |= {
            "placed": int(isinstance(does, EmbedPosition)),
            "dense": int(parameter.is_dense),
            "idle": period - planes,
            "stride": words * planes,
            "step_slots": words * period - 1,
            "slots": (shape.words_per_row(machine) - 1) * period + planes - 1,
            "last": shape.columns - 1,
            "places": parameter.exponent - fraction,
        }
    else:
        kind, unit = program.value(does.input, Coded), 0
        _check_input(kind, machine)
        if isinstance(kind, Blocks):
            values |= {"blocked": 1, "unscaled": int(does.norm is None)}
            unit = kind.fraction
        if does.norm is not None:
            values |= {"normed": 1, "norm_row": program.row_of(does.norm, instruction)}
        shift, reads = does.pre_shift, Reads.of(kind, machine)
        values |= _of_steps(program, use, shape, piece, floor)
        values["wide"] = sum(
            1 << word
            for word, number in enumerate(_reads_of_words(piece, shape, machine, reads, use))
            if number > inputs.least
        )
        if values["sum"]:
            # Each context has its own.
            values["sum"] += program.context * _sums(pieces, machine)
        values |= {
            "last": shape.rows - 1,
            "input_row": program.row_of(does.input, instruction),
            "pre_shift": shift + _finer(kind.format, inputs),
            "places": parameter.exponent + unit - shift - fraction,
        }
        if does.bias is not None:
            if does.bias not in constant_rows:
                raise CompilerBug(f"bias {does.bias} has no row in the constant ROM")
            values |= {"bias": 1, "bias_row": constant_rows[does.bias]}
        if isinstance(does, ExpertMatvec):
            values |= _of_experts(program, does, piece)
        elif does.residual is not None:
            values |= {"residual": 1, "residual_row": program.row_of(does.residual, instruction)}
    ends = instruction.beat.of(values["last"] + 1)
    values |= peaks.peak_fields(program, instruction, last=sum(ends) == values["last"] + 1)
    if abs(values["places"]) >= 1 << (PLACES_BITS - 2):
        raise UserError(
            f"the hardware of {machine.name} cannot shift {name} by {values['places']} places"
        )
    stated, own = _pace(instruction), int(durations.embed(machine, shape)(tokens=1, rank=0))
    if isinstance(does, Matvec | ExpertMatvec):
        own = values["slots"] + 1
    values["slack"] = stated - own
    if values["slack"] < 0:
        raise CompilerBug(
            f"{instruction.opcode} of {name} is to take {stated} cycles, {-values['slack']} more "
            f"are needed"
        )
    return values


def _sums(pieces: Mapping[str, Piece], machine: Machine) -> int:
    """Sums that an L-Unit keeps of a token's products that take rows in rounds."""
    return max((one.steps(machine) for one in pieces.values() if one.run), default=0)


def _of_steps(
    program: Program, use: Use, shape: MatrixShape, piece: Piece, floor: int
) -> dict[str, int]:
    """The fields of a descriptor that say which steps of a product it is about, and of which
    round."""
    machine = program.machine
    beat = use.instruction.beat
    assert isinstance(use.does, Matvec | ExpertMatvec)
    reads = Reads.of(program.value(use.does.input, Coded), machine)
    cycles = piece.step_cycles(shape, machine, reads, floor)
    kept = beat.number < piece.rounds(shape, machine) - 1
    if kept:
        cycles = piece.read_cycles(shape, machine, reads, beat.number)
    at_once, (first, elements) = piece.rows_per_step(machine), beat.of(shape.rows)
    if first % at_once or ((first + elements) % at_once and first + elements != shape.rows):
        raise CompilerBug(f"a beat of {tensor(use)} begins or ends within a step of {at_once} rows")
    step, steps = first // at_once, -(-elements // at_once)
    before = beat.number * piece.steps(machine) + step
    words = piece.run or piece.words(shape, machine)
    return {
        "code_base": piece.base + before * words * shape.planes(machine),
        "scale_base": piece.scale_base + before * piece.run_groups(shape, machine),
        "first_word": beat.number * piece.split * piece.run,
        "kept": int(kept),
        "added": int(beat.number > 0),
        "sum": step + 1 if piece.run else 0,
        "first": first,
        "step_slots": cycles - 1,
        "slots": cycles * steps - 1,
        "beats": 0 if kept else piece.drain_cycles(machine) - 1,
    }


def _of_experts(program: Program, does: ExpertMatvec[str], piece: Piece) -> dict[str, int]:
    """The fields of a descriptor that say where a family's experts lie."""
    machine, parameter = program.machine, program.parameters[does.weights]
    shape = parameter.rom_shape
    routing = program.buffers[does.routing]
    values = {
        "chosen": routing.row + does.expert,
        "expert_words": piece.expert_words(shape, machine),
        "expert_scales": piece.expert_scales(shape, machine),
    }
    if does.bias is not None:
        columns = program.parameters[does.bias].dims[1]
        biases = constant_rom.Form(constant_rom.APART)
        values["expert_biases"] = biases.position_rows(columns, machine.vector_lanes)
    return values


def _pace(instruction: Instruction) -> int:
    """Cycles until the array takes the next instruction; what does not flow has it for itself."""
    issue = instruction.issue
    return int((issue.pace or issue.duration)(tokens=1, rank=0))


class LUnitImage(NamedTuple):
    """The ROM contents of one L-Unit.

    Words of up to 64 bits are unsigned integers [depth], longer ones bytes [depth, bytes] (low
    byte first): the form of `runtime.engines.running.Model.memory`.
    """

    tile: int
    l_unit: int
    codes: npt.NDArray[np.unsignedinteger]
    """Lane i at bits ``i * plane_bits``: a digit, or of a ternary cell 01 for +1 and 10 for -1."""
    scales: npt.NDArray[np.unsignedinteger]
    """The mantissa in the low 16 bits, the zero point above, the offset above that."""


def l_unit_images(
    program: Program, images: ImagesLike, config: MatrixConfig
) -> Iterator[LUnitImage]:
    """The contents of all ROMs, tile after tile; one tile's are in memory at a time.

    Args:
        program: the program.
        images: the tensors' integers.
        config: of the array.
    """
    for tile in range(config.machine.tiles):
        yield from tile_images(program, images, config, tile)


def tile_images(
    program: Program, images: ImagesLike, config: MatrixConfig, tile: int
) -> Iterator[LUnitImage]:
    """The contents of the ROMs of one tile; see `l_unit_images`."""
    machine = config.machine
    names = dict.fromkeys(tensor(use) for use in matrix_uses(program))
    word_bytes = _element_bytes(config.word_bits)
    codes = np.zeros((machine.l_units, config.code_words, word_bytes), np.uint8)
    scales = np.zeros((machine.l_units, config.scale_words), np.uint64)
    for name in names:
        parameter = program.parameters[name]
        piece = piece_of(parameter, machine)
        if piece.first_tile <= tile < piece.first_tile + piece.tiles:
            _engrave(parameter, piece, images, config, tile, codes, scales)
    for unit in range(machine.l_units):
        yield LUnitImage(
            tile,
            unit,
            _elements(codes[unit]),
            scales[unit].astype(f"u{_element_bytes(config.scale_bits)}"),
        )


def _element_bytes(bits: int) -> int:
    return next((size for size in (1, 2, 4, 8) if bits <= 8 * size), -(-bits // 8))


def _elements(words: npt.NDArray[np.uint8]) -> npt.NDArray[np.unsignedinteger]:
    size = words.shape[-1]
    return words.view(f"<u{size}")[..., 0] if size in (1, 2, 4, 8) else words


def _engrave(
    parameter: Parameter,
    piece: Piece,
    images: ImagesLike,
    config: MatrixConfig,
    tile: int,
    codes: npt.NDArray[np.uint8],
    scales: npt.NDArray[np.uint64],
) -> None:
    """Adds one tile's part of a matrix to the images of its L-Units [l_units, depth(, bytes)]."""
    machine, shape = config.machine, parameter.rom_shape
    words, planes = piece.words(shape, machine), shape.planes(machine)
    slots = piece.rows_per_tile(machine)
    groups = piece.slice_groups(shape, machine)
    matrix = None if parameter.is_dense else images.matrix(parameter.name)
    table = images.dense(parameter.name) if matrix is None else None
    width = piece.split * words * machine.lanes
    run, rounds = piece.run or words, piece.rounds(shape, machine)
    run_groups = piece.run_groups(shape, machine)
    block = max(1, (1 << 20) // (width * planes))
    for expert, slot in product(range(shape.experts), range(slots)):
        code_base = piece.base + expert * piece.expert_words(shape, machine)
        scale_base = piece.scale_base + expert * piece.expert_scales(shape, machine)
        first = (tile - piece.first_tile) * slots + slot
        every = np.arange(first, shape.rows, piece.rows_per_step(machine))
        units = slice(slot * piece.split, (slot + 1) * piece.split)
        for step in range(0, len(every), block):
            rows = expert * shape.rows + every[step : step + block]
            padded = np.zeros((len(rows), width), np.int16)
            if matrix is not None:
                padded[:, : shape.columns] = matrix.unpack(rows)
                if machine.cell == "ternary":
                    # What fills up a row is 0.
                    padded[:, : shape.columns] -= np.int16(parameter.zero or 0)
            elif table is not None:
                padded[:, : shape.columns] = table[rows]
            by_word = padded.reshape(len(rows), rounds, piece.split, run, 1, machine.lanes)
            packed = pack_word(_digits(by_word, shape, machine), machine.plane_bits)
            for r in range(rounds):
                by_unit = packed[:, r].swapaxes(0, 1).reshape(piece.split, -1, packed.shape[-1])
                at = code_base + (r * piece.steps(machine) + step) * run * planes
                codes[units, at : at + by_unit.shape[1], : packed.shape[-1]] = by_unit
            if matrix is None or not groups:
                continue
            content = matrix.scales[rows].astype(np.uint16).astype(np.uint64)
            if parameter.zero is None:
                content |= matrix.zeros(rows).astype(np.uint64) << np.uint64(SCALE_BITS)
            if matrix.offsets is not None:
                offsets = matrix.offsets[rows].astype(np.int64)
                offsets &= (1 << config.offset_bits) - 1
                content |= offsets.astype(np.uint64) << np.uint64(config.offset_place)
            for r, s in product(range(rounds), range(piece.split)):
                group = (r * piece.split + s) * run // shape.words_per_group(machine)
                part = np.zeros((len(rows), run_groups), np.uint64)
                seen = content[:, group : group + run_groups]
                part[:, : seen.shape[1]] = seen
                at = scale_base + (r * piece.steps(machine) + step) * run_groups
                scales[slot * piece.split + s, at : at + part.size] = part.reshape(-1)


def _digits(
    values: npt.NDArray[np.int16], shape: MatrixShape, machine: Machine
) -> npt.NDArray[np.uint8]:
    """What the cells hold of numbers [..., 1, lanes]: uint8 [..., planes, lanes]."""
    planes = shape.planes(machine)
    if machine.cell != "ternary":
        places = machine.plane_bits * np.arange(planes, dtype=np.int16)[:, None]
        # Beyond 16 bits all are the sign.
        return ((values >> np.minimum(places, 15)) & ((1 << machine.plane_bits) - 1)).astype(
            np.uint8
        )
    if planes == 1:
        if values.size and int(np.abs(values).max()) > 1:
            raise CompilerBug("a ternary matrix has other weights than -1, 0 and 1")
        return np.where(values < 0, 2, values).astype(np.uint8)
    digits = np.moveaxis(balanced(values[..., 0, :], planes), 0, -2)
    return np.where(digits < 0, 2, digits).astype(np.uint8)


def pack_word(digits: npt.NDArray[np.uint8], bits: int) -> npt.NDArray[np.uint8]:
    """Digits of any width [..., lanes] as bytes [..., ceil(lanes * bits / 8)], low bits first."""
    if bits in (2, 4, 8):
        return pack(digits, bits)
    single = (digits[..., None] >> np.arange(bits, dtype=np.uint8)) & 1
    return np.packbits(single.reshape(*digits.shape[:-1], -1), axis=-1, bitorder="little")
