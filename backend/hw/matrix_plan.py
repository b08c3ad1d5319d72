"""What the matrix array has to know of a program: its sizes, descriptors and ROM contents.

`configure` finds the sizes of a program's matrix array, `encode` makes the descriptor of an
instruction instance, `l_unit_images` the contents of the ROMs. The hardware that these are for is
in `backend/hw/matrix.py` and `backend/hw/matrix_tile.py`. Layouts follow `dialects/tiling.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from intaglio.dialects.codes import FORMATS, Matrix, pack
from intaglio.dialects.errors import CompilerBug, UserError
from intaglio.dialects.fabric import SCALE_BITS
from intaglio.dialects.formula import Formula
from intaglio.dialects.machine import Machine
from intaglio.dialects.semantics import accumulator_bits
from intaglio.dialects.tiling import MatrixShape, Piece, activation_passes
from intaglio.lowering import durations

PLACES_BITS = 12
"""Width of the signed number of places that a requantiser shifts by."""

FIELDS: dict[str, str] = {
    "embed": "1: `embed`, 0: `matvec`",
    "dense": "1: the table is of 16-bit numbers, without scales (`embed`)",
    "split": "number of the piece's split in `MatrixConfig.splits`",
    "code_base": "address of the piece's first code word",
    "scale_base": "address of the piece's first group scale",
    "slice_groups": "group scales of a slice",
    "words": "words of a slice",
    "planes": "bit planes of a code, less one",
    "stride": "code words of a slice: words times planes (`embed`)",
    "step_slots": "cycles of a step, less one; for `embed` those of a slice",
    "slots": "cycles of all steps, less one; for `embed` the code words of a row, less one",
    "beats": "cycles in which a step's results leave the array, less one",
    "group_shift": "places to shift a word's number by to get its group's",
    "columns": "elements of a row",
    "last": "number of the result's last element",
    "input_row": "first row of the input in the memory of quantised vectors; also its scale's",
    "zero": "zero point of the whole matrix; 0 when each group has its own",
    "pre_shift": "places that an accumulator loses before it is scaled",
    "places": "places to shift the scaled accumulator by, without the activation's exponent",
    "bias": "1: add a bias",
    "bias_row": "first row of the bias in the constant ROM",
    "residual": "1: add a vector",
    "residual_row": "first row of that vector in the vector memory",
    "output_row": "first row of the result in the vector memory",
    "slack": "cycles to wait, where another instance of the instruction takes longer",
}
"""Fields of a descriptor: all unsigned, but for `places` (two's complement). A field that is 0 in
every instruction of a program does not exist in its hardware."""


class ParameterLike(Protocol):
    """A tensor as `backend.program.Parameter` describes it."""

    @property
    def name(self) -> str: ...
    @property
    def dims(self) -> tuple[int, ...]: ...
    @property
    def code(self) -> str: ...
    @property
    def bits(self) -> int: ...
    @property
    def group(self) -> int: ...
    @property
    def exponent(self) -> int: ...
    @property
    def zero(self) -> int | None: ...
    @property
    def pieces(self) -> Sequence[Piece]: ...


class BufferLike(Protocol):
    """A buffer as `backend.program.Buffer` describes it."""

    @property
    def address(self) -> int: ...
    @property
    def size(self) -> int: ...
    @property
    def type(self) -> Mapping[str, Any]: ...


class IssueLike(Protocol):
    """The timing of an instruction (`timeline.Issue`)."""

    @property
    def duration(self) -> Formula: ...


class InstructionLike(Protocol):
    """An instruction as `backend.program.Instruction` describes it."""

    @property
    def opcode(self) -> str: ...
    @property
    def queue(self) -> str: ...
    @property
    def reads(self) -> Sequence[str]: ...
    @property
    def writes(self) -> Sequence[str]: ...
    @property
    def uses(self) -> Mapping[str, str]: ...
    @property
    def arguments(self) -> Mapping[str, Any]: ...
    @property
    def issue(self) -> IssueLike: ...


class BlockLike(Protocol):
    """A block as `backend.program.Block` describes it."""

    @property
    def instances(self) -> Sequence[Mapping[str, str]]: ...
    @property
    def instructions(self) -> Sequence[InstructionLike]: ...


class ProgramLike(Protocol):
    """A program as `backend.program.Program` describes it."""

    @property
    def machine(self) -> Machine: ...
    @property
    def parameters(self) -> Mapping[str, ParameterLike]: ...
    @property
    def buffers(self) -> Mapping[str, BufferLike]: ...
    @property
    def blocks(self) -> Sequence[BlockLike]: ...


class ImagesLike(Protocol):
    """Where the tensors' integers come from: `backend.image_files.Images`."""

    def matrix(self, name: str) -> Matrix:
        """A matrix of small codes."""
        ...

    def dense(self, name: str) -> npt.NDArray[np.signedinteger[Any]]:
        """A dense table [rows, columns]."""
        ...


def log2(number: int) -> int:
    """The logarithm of a power of two."""
    return number.bit_length() - 1


def shape_of(parameter: ParameterLike) -> MatrixShape:
    """A parameter as tiling sees it; see `fabric.matrix_shape`."""
    rows, columns = parameter.dims
    if parameter.code.startswith("fixed"):
        return MatrixShape(rows, columns, columns, parameter.bits, 0)
    zero_bits = parameter.bits if parameter.zero is None else 0
    return MatrixShape(rows, columns, parameter.group, parameter.bits, SCALE_BITS + zero_bits)


@dataclass(frozen=True)
class MatrixConfig:
    """The sizes of a matrix array: what `build_matrix` needs.

    Attributes:
        machine: geometry, formats and latencies.
        fields: name and width of the descriptor's fields, in the order of `FIELDS`.
        splits: over how many L-Units a row is split, ascending powers of two.
        accumulator_bits: of the widest accumulator.
        planes: bit planes of the widest code of a product.
        table_planes: bit planes of the widest code of an embedding table; 0 without tables.
        zero_bits: of the zero points stored with the scales.
        code_words: depth of an L-Unit's code ROM.
        scale_words: depth of an L-Unit's scale ROM.
        token_bits: of a row's number in the largest table.
        vector_rows: rows of the vector memory, and of the memory of quantised vectors.
        constant_rows: rows of the constant ROM.
    """

    machine: Machine
    fields: tuple[tuple[str, int], ...]
    splits: tuple[int, ...]
    accumulator_bits: int
    planes: int
    table_planes: int
    zero_bits: int
    code_words: int
    scale_words: int
    token_bits: int
    vector_rows: int
    constant_rows: int

    @property
    def ports(self) -> int:
        """Read ports of the memory of quantised vectors: L-Unit u of a tile gets what port
        ``u % ports`` reads."""
        return max(self.splits)

    @property
    def passes(self) -> int:
        """How often a code word is used: once for each part of an activation."""
        return activation_passes(self.machine.activations, self.machine)

    @property
    def pass_bits(self) -> int:
        """Bits of one part of an activation.

        A decoded activation ``x`` of n bits (8, 16, or 19 for fp8) is
        ``sum(part[a] << (a * pass_bits))``: the last part is signed, all others are unsigned. For
        int16 with 8-bit passes: an unsigned low and a signed high byte.
        """
        return -(-FORMATS[self.machine.activations].decoded_bits // self.passes)

    @property
    def part_bits(self) -> int:
        """Wires of one signed part: a bit more than `pass_bits` when there are unsigned parts."""
        return self.pass_bits + (self.passes > 1)

    @property
    def code_bits(self) -> int:
        """Bits of an activation's code."""
        return FORMATS[self.machine.activations].bits

    @property
    def word_bits(self) -> int:
        """Bits of a code word."""
        return self.machine.lanes * self.machine.plane_bits

    @property
    def scale_bits(self) -> int:
        """Bits of a scale word: the mantissa below, the zero point above."""
        return SCALE_BITS + self.zero_bits

    @property
    def tile_lanes(self) -> int:
        """Results that a tile delivers at a time."""
        return min(self.machine.results_per_cycle, self.machine.l_units)

    @property
    def tile_beats(self) -> int:
        """Groups of results that a tile delivers one after the other, at most."""
        return max(1, self.machine.l_units // min(self.splits) // self.tile_lanes)

    def rows_per_step(self, split: int) -> int:
        """Rows that the array works on at a time."""
        return self.machine.tiles * self.machine.l_units // split

    def chunk(self, split: int) -> int:
        """Results that the array delivers at a time."""
        return min(self.machine.results_per_cycle, self.rows_per_step(split))


class Use(NamedTuple):
    """An instance of a matrix instruction."""

    instruction: InstructionLike
    instance: Mapping[str, str]


def matrix_uses(program: ProgramLike) -> Iterator[Use]:
    """The instruction instances of the matrix queue in program order."""
    for block in program.blocks:
        for instance in block.instances:
            for instruction in block.instructions:
                if instruction.queue == "matrix":
                    yield Use(instruction, instance)


def configure(
    program: ProgramLike,
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
    machine = program.machine
    check_machine(machine)
    uses = list(matrix_uses(program))
    if not uses:
        raise UserError("the program has no matrices")
    named = {
        opcode: {_tensor(u): None for u in uses if u.instruction.opcode == opcode}
        for opcode in ("matvec", "embed")
    }
    products, tables = ([program.parameters[n] for n in names] for names in named.values())
    shapes = {p.name: shape_of(p) for p in (*products, *tables)}
    pieces = {p.name: piece_of(p, machine) for p in (*products, *tables)}
    widths: dict[str, int] = {}
    for use in uses:
        for field, value in _descriptor(program, use, constant_rows or {}, pieces).items():
            bits = PLACES_BITS if field == "places" else value.bit_length()
            widths[field] = max(widths.get(field, 0), bits)
    splits = tuple(sorted({piece.split for piece in pieces.values()}))
    fields = {field: widths[field] for field in FIELDS if widths.get(field)}
    fields["split"] = (len(splits) - 1).bit_length()
    rows = max(rows_of(buffer, machine).stop for buffer in program.buffers.values())
    return MatrixConfig(
        machine=machine,
        fields=tuple((field, fields[field]) for field in FIELDS if fields.get(field)),
        splits=splits,
        accumulator_bits=max(
            (accumulator_bits(p.bits, p.dims[1], machine.activations) for p in products), default=2
        ),
        planes=max((shape_of(p).planes(machine) for p in products), default=1),
        table_planes=max((shape_of(p).planes(machine) for p in tables), default=0),
        zero_bits=max(
            (s.scale_bits - SCALE_BITS for s in shapes.values() if s.scale_bits), default=0
        ),
        code_words=max(p.base + p.code_words(shapes[n], machine) for n, p in pieces.items()),
        scale_words=max(
            1, *(p.scale_base + p.scale_words(shapes[n], machine) for n, p in pieces.items())
        ),
        token_bits=max([(p.dims[0] - 1).bit_length() for p in tables] or [1]),
        vector_rows=vector_depth or rows,
        constant_rows=constant_depth,
    )


def rows_of(buffer: BufferLike, machine: Machine) -> range:
    """Rows that a buffer takes in the vector memory, or in that of quantised vectors.

    Both number their rows alike, but a row of the latter has as many codes as one of the former has
    numbers, so quantised vectors take more rows than their bytes do; each group begins a row.
    """
    lanes = machine.vector_lanes
    first, kind = buffer.address // (4 * lanes), buffer.type
    if kind["kind"] == "quantized":
        return range(first, first + kind["groups"] * -(-kind["width"] // lanes))
    return range(first, -(-(buffer.address + buffer.size) // (4 * lanes)))


def _tensor(use: Use) -> str:
    role = "table" if use.instruction.opcode == "embed" else "weights"
    return use.instance[use.instruction.uses[role]]


def check_machine(machine: Machine) -> None:
    """Whether the array's hardware exists for this machine.

    Raises:
        UserError: it does not; the message names the parameter.
    """
    for name in ("tiles", "l_units", "lanes", "vector_lanes", "plane_bits"):
        value = getattr(machine, name)
        if value & (value - 1):
            raise UserError(
                f"the hardware of {machine.name} needs a power of two for {name}, not {value}"
            )
    if machine.results_per_cycle != machine.vector_lanes:
        raise UserError(
            f"the hardware of {machine.name} needs as many results a cycle as vector lanes, not "
            f"{machine.results_per_cycle} and {machine.vector_lanes}"
        )
    if machine.lanes > machine.vector_lanes:
        raise UserError(
            f"the hardware of {machine.name} needs as many vector lanes as lanes of an L-Unit at "
            f"least, not {machine.vector_lanes} and {machine.lanes}"
        )
    least = {"broadcast": 1, "rom_read": 1, "reduce": 1, "requantise": 2}
    least["mac_pipeline"] = machine.rom_read + 1
    for name, value in least.items():
        if getattr(machine, name) < value:
            raise UserError(
                f"latency {name} of {machine.name} is {getattr(machine, name)}, the hardware needs "
                f"{value} at least"
            )


def piece_of(parameter: ParameterLike, machine: Machine) -> Piece:
    """The one piece of a matrix.

    Raises:
        UserError: the hardware cannot work on a matrix that is cut this way.
    """

    def refuse(what: str) -> UserError:
        return UserError(f"the hardware of {machine.name} cannot use {parameter.name}: {what}")

    shape = shape_of(parameter)
    if len(parameter.pieces) != 1:
        raise refuse(f"it is cut into {len(parameter.pieces)} pieces, not one")
    (piece,) = parameter.pieces
    if piece.first_tile or piece.tiles != machine.tiles:
        raise refuse("its piece does not lie on all tiles")
    if piece.split & (piece.split - 1) or piece.split > machine.l_units:
        raise refuse(f"a row is split over {piece.split} L-Units, not a power of two")
    if shape.group < shape.columns:
        words = shape.group // machine.lanes
        if shape.group % machine.lanes or words & (words - 1):
            raise refuse(
                f"its groups of {shape.group} are no power of two of words of {machine.lanes}"
            )
    return piece


def duration(machine: Machine, parameter: ParameterLike, opcode: str) -> int:
    """Cycles from start to finish that the array takes by itself."""
    shape = shape_of(parameter)
    if opcode == "embed":
        return int(durations.embed(machine, shape)(tokens=1, rank=0))
    pieces = [piece_of(parameter, machine)]
    return int(durations.product(machine, shape, pieces)(tokens=1, rank=0))


def encode(
    program: ProgramLike,
    instruction: InstructionLike,
    instance: Mapping[str, str],
    config: MatrixConfig,
    constant_rows: Mapping[str, int] | None = None,
) -> dict[str, int]:
    """The descriptor of an instruction instance: a number for each of `config.fields`.

    Args:
        program: the program.
        instruction: a `matvec` or `embed` of the matrix queue.
        instance: what the block's instance binds slots to.
        config: of the array.
        constant_rows: first row of each bias in the constant ROM.

    Raises:
        UserError: the hardware cannot execute the instruction, with the reason.
    """
    use = Use(instruction, instance)
    name = _tensor(use)
    pieces = {name: piece_of(program.parameters[name], program.machine)}
    values = _descriptor(program, use, constant_rows or {}, pieces)
    values["split"] = config.splits.index(pieces[name].split)
    return {field: values[field] & ((1 << bits) - 1) for field, bits in config.fields}


def _descriptor(
    program: ProgramLike, use: Use, constant_rows: Mapping[str, int], pieces: Mapping[str, Piece]
) -> dict[str, int]:
    """All fields but `split`; `places` signed."""
    machine, instruction = program.machine, use.instruction
    name = _tensor(use)
    parameter, piece = program.parameters[name], pieces[name]
    shape = shape_of(parameter)
    row_bytes = 4 * machine.vector_lanes

    def row_of(buffer: str) -> int:
        row, rest = divmod(program.buffers[buffer].address, row_bytes)
        if rest:
            raise UserError(
                f"the hardware of {machine.name} needs buffer {buffer} at a multiple of "
                f"{row_bytes} bytes"
            )
        return row

    planes, words = shape.planes(machine), piece.words(shape, machine)
    single = shape.group >= shape.columns
    # Shifted so far, every word's number is 0.
    group_shift = (
        (words * piece.split).bit_length() if single else log2(shape.words_per_group(machine))
    )
    embed = instruction.opcode == "embed"
    fraction = program.buffers[instruction.writes[0]].type["fraction"]
    values = dict.fromkeys(FIELDS, 0)
    values |= {
        "embed": int(embed),
        "code_base": piece.base,
        "scale_base": piece.scale_base,
        "slice_groups": piece.slice_groups(shape, machine),
        "words": words,
        "planes": planes - 1,
        "group_shift": group_shift,
        "columns": shape.columns,
        "zero": parameter.zero or 0,
        "output_row": row_of(instruction.writes[0]),
    }
    if embed:
        values |= {
            "dense": int(shape.scale_bits == 0),
            "stride": words * planes,
            "step_slots": words * planes - 1,
            "slots": shape.words_per_row(machine) * planes - 1,
            "last": shape.columns - 1,
            "places": parameter.exponent - fraction,
        }
    else:
        kind = program.buffers[instruction.reads[0]].type
        if kind["groups"] != 1 or kind["format"] != machine.activations:
            raise UserError(
                f"the hardware of {machine.name} multiplies vectors with one scale and of "
                f"{machine.activations}, not {kind['groups']} scales and {kind['format']}"
            )
        shift = instruction.arguments["pre_shift"]
        cycles = piece.step_cycles(shape, machine, activation_passes(machine.activations, machine))
        values |= {
            "step_slots": cycles - 1,
            "slots": cycles * piece.steps(machine) - 1,
            "beats": piece.drain_cycles(machine) - 1,
            "last": shape.rows - 1,
            "input_row": row_of(instruction.reads[0]),
            "pre_shift": shift,
            "places": parameter.exponent - shift - fraction,
        }
        if "bias" in instruction.uses:
            bias = use.instance[instruction.uses["bias"]]
            if bias not in constant_rows:
                raise CompilerBug(f"bias {bias} has no row in the constant ROM")
            values |= {"bias": 1, "bias_row": constant_rows[bias]}
        if len(instruction.reads) > 1:
            values |= {"residual": 1, "residual_row": row_of(instruction.reads[1])}
    if abs(values["places"]) >= 1 << (PLACES_BITS - 2):
        raise UserError(
            f"the hardware of {machine.name} cannot shift {name} by {values['places']} places"
        )
    stated = int(instruction.issue.duration(tokens=1, rank=0))
    values["slack"] = stated - duration(machine, parameter, instruction.opcode)
    if values["slack"] < 0:
        raise CompilerBug(
            f"{instruction.opcode} of {name} is to take {stated} cycles, {-values['slack']} more "
            f"are needed"
        )
    return values


class LUnitImage(NamedTuple):
    """The ROM contents of one L-Unit.

    Words of up to 64 bits are unsigned integers [depth], longer ones bytes [depth, bytes] (low
    byte first): the form of `runtime.model.Model.memory`.
    """

    tile: int
    l_unit: int
    codes: npt.NDArray[np.unsignedinteger[Any]]
    """Lane i at bits ``i * plane_bits``."""
    scales: npt.NDArray[np.unsignedinteger[Any]]
    """The mantissa in the low 16 bits, the zero point above."""


def l_unit_images(
    program: ProgramLike, images: ImagesLike, config: MatrixConfig
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
    program: ProgramLike, images: ImagesLike, config: MatrixConfig, tile: int
) -> Iterator[LUnitImage]:
    """The contents of the ROMs of one tile; see `l_unit_images`."""
    machine = config.machine
    names = dict.fromkeys(_tensor(use) for use in matrix_uses(program))
    word_bytes = _element_bytes(config.word_bits)
    codes = np.zeros((machine.l_units, config.code_words, word_bytes), np.uint8)
    scales = np.zeros((machine.l_units, config.scale_words), np.uint32)
    for name in names:
        parameter = program.parameters[name]
        piece = piece_of(parameter, machine)
        _engrave(parameter, piece, images, machine, tile, codes, scales)
    for unit in range(machine.l_units):
        yield LUnitImage(
            tile,
            unit,
            _elements(codes[unit]),
            scales[unit].astype(f"u{_element_bytes(config.scale_bits)}"),
        )


def _element_bytes(bits: int) -> int:
    return next((size for size in (1, 2, 4, 8) if bits <= 8 * size), -(-bits // 8))


def _elements(words: npt.NDArray[np.uint8]) -> npt.NDArray[np.unsignedinteger[Any]]:
    size = words.shape[-1]
    return words.view(f"<u{size}")[..., 0] if size in (1, 2, 4, 8) else words


def _engrave(
    parameter: ParameterLike,
    piece: Piece,
    images: ImagesLike,
    machine: Machine,
    tile: int,
    codes: npt.NDArray[np.uint8],
    scales: npt.NDArray[np.uint32],
) -> None:
    """Adds one tile's part of a matrix to the images of its L-Units [l_units, depth(, bytes)]."""
    shape = shape_of(parameter)
    words, planes = piece.words(shape, machine), shape.planes(machine)
    slots = piece.rows_per_tile(machine)
    groups = piece.slice_groups(shape, machine)
    mask = (1 << machine.plane_bits) - 1
    matrix = None if shape.scale_bits == 0 else images.matrix(parameter.name)
    table = images.dense(parameter.name) if matrix is None else None
    width = piece.split * words * machine.lanes
    places = machine.plane_bits * np.arange(planes)[:, None]
    block = max(1, (1 << 20) // (width * planes))
    for slot in range(slots):
        every = np.arange(tile * slots + slot, shape.rows, piece.rows_per_step(machine))
        units = slice(slot * piece.split, (slot + 1) * piece.split)
        for step in range(0, len(every), block):
            rows = every[step : step + block]
            padded = np.zeros((len(rows), width), np.uint16)
            if matrix is not None:
                padded[:, : shape.columns] = matrix.unpack(rows)
            elif table is not None:
                padded[:, : shape.columns] = table[rows].astype(np.uint16)
            by_word = padded.reshape(len(rows), piece.split, words, 1, machine.lanes)
            packed = pack((by_word >> places) & mask, machine.plane_bits)
            by_unit = packed.swapaxes(0, 1).reshape(piece.split, -1, packed.shape[-1])
            at = piece.base + step * words * planes
            codes[units, at : at + by_unit.shape[1], : packed.shape[-1]] = by_unit
            if matrix is None:
                continue
            content = matrix.scales[rows].astype(np.uint16).astype(np.uint32)
            if parameter.zero is None:
                content |= matrix.zeros(rows).astype(np.uint32) << SCALE_BITS
            for s in range(piece.split):
                group = s * words // shape.words_per_group(machine)
                part = np.zeros((len(rows), groups), np.uint32)
                seen = content[:, group : group + groups]
                part[:, : seen.shape[1]] = seen
                at = piece.scale_base + step * groups
                scales[slot * piece.split + s, at : at + part.size] = part.reshape(-1)
