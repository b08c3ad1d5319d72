"""The fabric dialect says *where*: the chip, and the place of every buffer on it.

Operators stay those of the rom dialect's integer stage; this dialect adds the machine and, for
every parameter and cache, its place. A matrix is a few pieces, each a range over tiles: never one
operation a tile. See docs/dialects/fabric.md for the rationale.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache

from xdsl.dialects.builtin import (
    I64,
    ArrayAttr,
    DictionaryAttr,
    IntAttr,
    IntegerAttr,
    ModuleOp,
    StringAttr,
    SymbolNameConstraint,
    SymbolRefAttr,
    UnitAttr,
    i64,
)
from xdsl.ir import Attribute, Dialect, Operation, ParametrizedAttribute
from xdsl.irdl import (
    BaseAttr,
    irdl_attr_definition,
    irdl_op_definition,
    opt_prop_def,
    prop_def,
    traits_def,
)
from xdsl.parser import AttrParser
from xdsl.printer import Printer
from xdsl.traits import SymbolOpInterface, SymbolUserOpInterface
from xdsl.utils.exceptions import PassFailedException, VerifyException

from intaglio.dialects.by_name import ByName
from intaglio.dialects.constant_rom import APART, CONSTANTS, FORMS, HALVES, PLAIN, Form
from intaglio.dialects.formats import FORMATS
from intaglio.dialects.h_units import (
    ADAPTER_SCALES,
    ADAPTERS,
    EXTERNAL,
    IN_H_UNITS,
    KV,
    KV_SCALES,
    STATE_SCALES,
    STATES,
    AdapterShape,
    CacheShape,
    StateShape,
    element_bits,
    kv_scale_bits,
    scale_group,
)
from intaglio.dialects.machine import Machine
from intaglio.dialects.memories import OF_VALUES, VECTORS, Memory
from intaglio.dialects.occupancy import Claim, first_overlap
from intaglio.dialects.plain import PlainOp
from intaglio.dialects.rom import (
    AdapterType,
    CacheOp,
    KVType,
    MatricesType,
    ParameterOp,
    ROMTensorType,
    SiteOp,
    StateType,
    resolve,
)
from intaglio.dialects.tiling import MatrixShape, Piece, misdealt


def matrix_shape(type_: ROMTensorType | AdapterType) -> MatrixShape:
    """A tensor type as tiling sees it; a dense table is a matrix without scales.

    A slot's row is one group: unlike the one scale of a whole matrix in ROM, its scales are stored.
    """
    is_slot = isinstance(type_, AdapterType) and type_.is_slot
    group = type_.dims[1] if is_slot else type_.group.data
    return MatrixShape.of(
        type_.dims,
        type_.code.data,
        type_.bits,
        group,
        zeros=bool(type_.zeros.data),
        offsets=type_.offsets.data,
        experts=type_.experts.data,
    )


@irdl_attr_definition
class PieceAttr(ParametrizedAttribute):
    """A piece of a matrix: `#fabric.piece<rows 0 to 64, tiles 0 to 8, split 4, at 128, 32>`.

    The two numbers after `at` are the first address of its code words and of its group scales in
    every L-Unit's bank. `run 2` after the split says that slices are dealt runs of two words.
    """

    name = "fabric.piece"
    first_row: IntAttr
    last_row: IntAttr
    first_tile: IntAttr
    last_tile: IntAttr
    split: IntAttr
    base: IntAttr
    scale_base: IntAttr
    run: IntAttr

    @staticmethod
    def of(piece: Piece) -> PieceAttr:
        """The attribute of a piece."""
        return PieceAttr(
            IntAttr(piece.first_row),
            IntAttr(piece.first_row + piece.rows),
            IntAttr(piece.first_tile),
            IntAttr(piece.first_tile + piece.tiles),
            IntAttr(piece.split),
            IntAttr(piece.base),
            IntAttr(piece.scale_base),
            IntAttr(piece.run),
        )

    @property
    def piece(self) -> Piece:
        """The piece in plain Python."""
        return Piece(
            first_row=self.first_row.data,
            rows=self.last_row.data - self.first_row.data,
            first_tile=self.first_tile.data,
            tiles=self.last_tile.data - self.first_tile.data,
            split=self.split.data,
            base=self.base.data,
            scale_base=self.scale_base.data,
            run=self.run.data,
        )

    @classmethod
    def parse_parameters(cls, parser: AttrParser) -> Sequence[Attribute]:
        """Parses `<rows a to b, tiles c to d, split s, run r, at x, y>`; the run may be missing."""

        def integer() -> IntAttr:
            return IntAttr(parser.parse_integer(allow_boolean=False, allow_negative=False))

        values: list[Attribute] = []
        with parser.in_angle_brackets():
            for keyword in ("rows", "tiles"):
                parser.parse_keyword(keyword)
                values.append(integer())
                parser.parse_keyword("to")
                values.append(integer())
                parser.parse_punctuation(",")
            parser.parse_keyword("split")
            values.append(integer())
            parser.parse_punctuation(",")
            run = IntAttr(0)
            if parser.parse_optional_keyword("run") is not None:
                run = integer()
                parser.parse_punctuation(",")
            parser.parse_keyword("at")
            values.append(integer())
            parser.parse_punctuation(",")
            values.append(integer())
        return [*values, run]

    def print_parameters(self, printer: Printer) -> None:
        """Prints `<rows a to b, tiles c to d, split s, run r, at x, y>`, no run of 0."""
        run = f"run {self.run.data}, " if self.run.data else ""
        printer.print_string(
            f"<rows {self.first_row.data} to {self.last_row.data}, "
            f"tiles {self.first_tile.data} to {self.last_tile.data}, "
            f"split {self.split.data}, {run}at {self.base.data}, {self.scale_base.data}>"
        )

    def verify(self) -> None:
        """Ranges are not empty."""
        if self.last_row.data <= self.first_row.data or self.last_tile.data <= self.first_tile.data:
            raise VerifyException("a piece has at least one row and one tile")
        if self.split.data < 1:
            raise VerifyException("a row is split over at least one L-Unit")


@irdl_op_definition
class MachineOp(PlainOp):
    """The chip: geometry, formats and latencies by name (see `Machine`).

    Example:
    ```
    fabric.machine {tiles = 8 : i64, l_units = 4 : i64, lanes = 16 : i64, ...}
    ```
    """

    name = "fabric.machine"
    parameters = prop_def(DictionaryAttr)
    assembly_format = "$parameters attr-dict"

    def __init__(self, machine: Machine) -> None:
        values: dict[str, Attribute] = {}
        for name, value in machine.to_dict().items():
            match value:
                case int():
                    values[name] = IntegerAttr(value, i64)
                case str():
                    values[name] = StringAttr(value)
                case _:
                    values[name] = ArrayAttr([StringAttr(v) for v in value])
        self._build(parameters=DictionaryAttr(values))

    @property
    def machine(self) -> Machine:
        """The machine in plain Python.

        Raises:
            VerifyException: a parameter is unknown or missing, or has a value that cannot be.
        """
        return _machine(self.parameters)

    def verify_(self) -> None:
        """The parameters are those of a machine, no two buffers of the module share a place, and no
        tensor has two power domains.

        Whether each place exists is for its own operation to verify.
        """
        machine = self.machine
        if isinstance(module := self.parent_op(), ModuleOp):
            _verify_sizes(memories(module), machine)
            _verify_apart(module, machine)
            _verify_domains(module)


@lru_cache(maxsize=8)
def _machine(parameters: DictionaryAttr) -> Machine:
    """What a `fabric.machine` says; every placement asks for it when it is verified."""
    values: dict[str, object] = {}
    for name, value in parameters.data.items():
        match value:
            case IntegerAttr():
                values[name] = value.value.data
            case StringAttr():
                values[name] = value.data
            case ArrayAttr() if all(isinstance(one, StringAttr) for one in value):
                values[name] = tuple(v.data for v in value if isinstance(v, StringAttr))
            case _:
                raise VerifyException(f"parameter {name} has an unexpected value {value}")
    try:
        machine = Machine.from_dict(values)
        machine.check()
    except ValueError as error:
        raise VerifyException(str(error)) from error
    return machine


def machine_of(module: ModuleOp) -> Machine:
    """The chip a module is compiled for.

    Raises:
        VerifyException: the module names no chip; `attach-target` adds it.
    """
    for op in module.ops:
        if isinstance(op, MachineOp):
            return op.machine
    raise VerifyException("the module has no fabric.machine; run attach-target first")


@irdl_op_definition
class MemoryOp(PlainOp):
    """A memory that the chip has: rows of equal elements, in each of so many units.

    Memories have names of their own: a parameter may have the same. `dialects/memories.py` says
    what lies in which.

    Example:
    ```
    fabric.memory @vectors rows 640 of 16 x 32
    fabric.memory @kv rows 4096 of 16 x 8 in 8
    ```
    """

    name = "fabric.memory"
    memory = prop_def(SymbolNameConstraint())
    rows = prop_def(IntegerAttr[I64])
    lanes = prop_def(IntegerAttr[I64])
    """Elements of a row."""
    bits = prop_def(IntegerAttr[I64])
    """Of an element."""
    units = opt_prop_def(IntegerAttr[I64])
    """That have one each (1 where it is not said)."""
    resident = opt_prop_def(IntegerAttr[I64])
    """Rows, of the last ones, that a resident adapter takes (0 where it is not said)."""
    assembly_format = "$memory `rows` $rows `of` $lanes `x` $bits (`in` $units^)? attr-dict"

    def __init__(self, name: str, memory: Memory) -> None:
        self._build(
            memory=name,
            rows=memory.rows,
            lanes=memory.lanes,
            bits=memory.bits,
            units=None if memory.units == 1 else memory.units,
            resident=memory.resident or None,
        )

    @property
    def content(self) -> Memory:
        """The memory in plain Python."""
        numbers = (self.rows, self.lanes, self.bits)
        rows, lanes, bits = (one.value.data for one in numbers)
        units, resident = (
            None if one is None else one.value.data for one in (self.units, self.resident)
        )
        return Memory(rows, lanes, bits, 1 if units is None else units, resident or 0)

    def verify_(self) -> None:
        """There is something of it."""
        one = self.content
        for what, number in (
            ("rows", one.rows),
            ("elements of a row", one.lanes),
            ("bits of an element", one.bits),
            ("units", one.units),
        ):
            if number < 1:
                raise VerifyException(f"memory @{self.memory.data} has {number} {what}")


def memories(module: ModuleOp) -> dict[str, Memory]:
    """The memories that a module states, by name.

    Raises:
        VerifyException: one is stated twice.
    """
    found: dict[str, Memory] = {}
    for op in module.ops:
        if isinstance(op, MemoryOp):
            if op.memory.data in found:
                raise VerifyException(f"memory @{op.memory.data} is stated twice")
            found[op.memory.data] = op.content
    return found


_MEMORIES = ByName[MemoryOp](lambda op: (op.memory.data, op) if isinstance(op, MemoryOp) else None)


def stated_memory(module: ModuleOp, name: str) -> Memory | None:
    """The memory of a name, if a module states one."""
    found = _MEMORIES.find(module.body.block, name)
    return None if found is None else found.content


def capacity(module: ModuleOp) -> int:
    """Tokens that all caches of a module hold; 0 where it has none."""
    caches = (op.type for op in module.ops if isinstance(op, CacheOp))
    return min((one.capacity.data for one in caches if isinstance(one, KVType)), default=0)


class _PlacesBuffer(SymbolUserOpInterface):
    def verify(self, op: Operation) -> None:
        buffer = op.properties["buffer"]
        assert isinstance(buffer, SymbolRefAttr)
        _ = resolve(op, buffer)


_symbol = BaseAttr(SymbolRefAttr)


@irdl_op_definition
class EngraveOp(PlainOp):
    """Puts a tensor into the ROM of matrix tiles.

    The pieces cover every row once, lie on the chip, and fit its L-Units. With `extra` the tensor
    lies in ROM that the published chip does not have (see the policy of the target).

    Example:
    ```
    fabric.engrave @q_proj in [#fabric.piece<rows 0 to 64, tiles 0 to 8, split 4, at 0, 0>]
    ```
    """

    name = "fabric.engrave"
    buffer = prop_def(_symbol)
    pieces = prop_def(ArrayAttr[PieceAttr])
    extra = opt_prop_def(UnitAttr)
    assembly_format = "$buffer `in` $pieces (`extra` $extra^)? attr-dict"
    traits = traits_def(_PlacesBuffer())

    def __init__(self, buffer: str, pieces: Sequence[Piece], extra: bool = False) -> None:
        attributes = ArrayAttr([PieceAttr.of(piece) for piece in pieces])
        self._build(buffer=buffer, pieces=attributes, extra=extra)

    def verify_(self) -> None:
        """The pieces cover the rows once and lie on the chip.

        That they keep apart from each other and from other tensors is verified at the machine.
        """
        parameter = resolve(self, self.buffer)
        name = self.buffer.root_reference.data
        if not isinstance(parameter, ParameterOp) or not isinstance(parameter.type, ROMTensorType):
            raise VerifyException(f"@{name} is no ROM tensor")
        shape = matrix_shape(parameter.type)
        row = 0
        for attr in self.pieces:
            if attr.first_row.data != row:
                raise VerifyException(
                    f"pieces of @{name} leave out or repeat rows: a piece begins at row "
                    f"{attr.first_row.data}, expected {row}"
                )
            row = attr.last_row.data
        if row != shape.rows:
            raise VerifyException(f"pieces of @{name} end at row {row} of {shape.rows}")
        module = self.parent_op()
        if not isinstance(module, ModuleOp):
            return
        machine = machine_of(module)
        for attr in self.pieces:
            _verify_piece(name, attr.piece, shape, machine, extra=self.extra is not None)


def _verify_piece(
    name: str, piece: Piece, shape: MatrixShape, machine: Machine, *, extra: bool
) -> None:
    if piece.first_tile + piece.tiles > machine.tiles:
        raise VerifyException(
            f"a piece of @{name} ends at tile {piece.first_tile + piece.tiles}, "
            f"the chip has {machine.tiles}"
        )
    if piece.split > machine.l_units:
        raise VerifyException(
            f"a piece of @{name} splits rows over {piece.split} L-Units, "
            f"a tile has {machine.l_units}"
        )
    if (reason := misdealt(piece, shape, machine)) is not None:
        raise VerifyException(f"a piece of @{name} {reason}")
    word_bits = machine.lanes * machine.plane_bits
    words = piece.base + piece.code_words(shape, machine)
    if words * word_bits > machine.rom_bits and machine.rom == "array" and not extra:
        raise VerifyException(
            f"a piece of @{name} needs {words} words of {word_bits} bits in a bank of "
            f"{machine.rom_bits} bits"
        )


@irdl_op_definition
class ConstantOp(PlainOp):
    """Puts a vector or table (norm weights, biases, rotary tables) into the vector units' ROM.

    It takes rows of `constants` from `row` on, in the form that an instruction takes it in
    (`dialects/constant_rom.py`; plain where it is not said). What is read in several forms is there
    in each.

    Example:
    ```
    fabric.constant @gamma in @constants at 4
    fabric.constant @cos in @constants at 8 {form = "pairs", period = 16 : i64}
    fabric.constant @sin in @constants at 136 {form = "pairs", period = 16 : i64, negated}
    ```
    """

    name = "fabric.constant"
    buffer = prop_def(_symbol)
    memory = prop_def(_symbol)
    row = prop_def(IntegerAttr[I64])
    """First row."""
    form = opt_prop_def(StringAttr)
    """Of `constant_rom.FORMS`."""
    period = opt_prop_def(IntegerAttr[I64])
    negated = opt_prop_def(UnitAttr)
    assembly_format = "$buffer `in` $memory `at` $row attr-dict"
    traits = traits_def(_PlacesBuffer())

    def __init__(self, buffer: str, row: int, form: Form) -> None:
        self._build(
            buffer=buffer,
            memory=CONSTANTS,
            row=row,
            form=form.kind if form.kind != PLAIN else None,
            period=form.period or None,
            negated=form.negated,
        )

    @property
    def first_row(self) -> int:
        """First row."""
        return self.row.value.data

    @property
    def content(self) -> Form:
        """The form in plain Python."""
        kind = PLAIN if self.form is None else self.form.data
        period = 0 if self.period is None else self.period.value.data
        return Form(kind, period, self.negated is not None)

    def claim(self, module: ModuleOp, machine: Machine) -> Claim:
        """The rows that it takes.

        Raises:
            VerifyException: the buffer is no vector or table in ROM.
        """
        parameter = resolve(self, self.buffer)
        name = self.buffer.root_reference.data
        if not isinstance(type_ := parameter.type, ROMTensorType) or type_.is_matrix:
            raise VerifyException(f"@{name} is no vector or table in ROM")
        # Tables alone end with the caches.
        positions = (self.content.turns and capacity(module)) or type_.dims[0]
        depth = self.content.depth(type_.dims, machine.vector_lanes, positions)
        return Claim(name, 0, 1, self.first_row, depth)

    def verify_(self) -> None:
        """The rows are those of the ROM that the module states, and the form is one of the buffer.

        That buffers keep apart is verified at the machine.
        """
        parameter = resolve(self, self.buffer)
        name, form = self.buffer.root_reference.data, self.content
        if not isinstance(type_ := parameter.type, ROMTensorType) or type_.is_matrix:
            raise VerifyException(f"@{name} is no vector or table in ROM")
        if self.memory.root_reference.data != CONSTANTS:
            raise VerifyException(f"@{name} lies in memory @{CONSTANTS}")
        if self.first_row < 0:
            raise VerifyException(f"@{name} has a negative row")
        if form.kind not in FORMS:
            raise VerifyException(f"@{name} has form {form.kind}, known are {', '.join(FORMS)}")
        expanded = form.kind not in (PLAIN, HALVES, APART)
        if expanded != (form.period > 0) or (form.negated and not expanded):
            raise VerifyException(f"@{name} has no form {form.kind} of period {form.period}")
        if form.turns and len(type_.dims) != 2:
            raise VerifyException(f"@{name} is no table of positions, as form {form.kind} needs")
        if form.kind == APART and len(type_.dims) != 2:
            raise VerifyException(f"@{name} is no table of rows, as form {form.kind} needs")
        module = self.parent_op()
        if not isinstance(module, ModuleOp):
            return
        machine = machine_of(module)
        if (one := stated_memory(module, CONSTANTS)) is None:
            raise VerifyException(
                f"@{name} lies in memory @{CONSTANTS}, which the module does not state"
            )
        if expanded and (machine.vector_lanes % form.period or (form.period % 2 and form.turns)):
            raise VerifyException(
                f"@{name} has period {form.period} in rows of {machine.vector_lanes}"
            )
        claim = self.claim(module, machine)
        if (end := claim.first + claim.size) > one.rows:
            raise VerifyException(f"@{name} ends at row {end}, memory @{CONSTANTS} has {one.rows}")


@irdl_op_definition
class ReserveOp(PlainOp):
    """Reserves rows of a memory for a cache or an adapter (`dialects/h_units.py`), or a state.

    A cache has rows of `kv`, from `scale` on rows of `kv_scales`, where its scales are dynamic, and
    from `external` on rows of external memory, where tokens are outside. A matrix of an adapter has
    rows of `adapters`, and from `scale` on of `adapter_scales`; one of fewer rows than there are
    H-Units may begin at another `unit`, and takes the memories of these units only. A slot of a
    site with `residents` is there as often. A state has rows of `vectors`, which values leave free;
    one of linear attention has rows of `states`, and from `scale` on entries of `state_scales`.

    Example:
    ```
    fabric.reserve @k0 in @kv at 0 {scale = 32 : i64}
    fabric.reserve @layers_0_q_proj_A in @adapters at 4 {scale = 1 : i64, unit = 16 : i64}
    ```
    """

    name = "fabric.reserve"
    buffer = prop_def(_symbol)
    memory = prop_def(SymbolRefAttr)
    row = prop_def(IntegerAttr[I64])
    """First row in every H-Unit."""
    scale = opt_prop_def(IntegerAttr[I64])
    """First row in the memory of scales (0 where it is not said)."""
    unit = opt_prop_def(IntegerAttr[I64])
    """The H-Unit of row 0 (0 where it is not said)."""
    external = opt_prop_def(IntegerAttr[I64])
    """First row in external memory (0 where it is not said)."""
    assembly_format = "$buffer `in` $memory `at` $row attr-dict"
    traits = traits_def(_PlacesBuffer())

    def __init__(
        self, buffer: str, memory: str, row: int, scale: int = 0, unit: int = 0, external: int = 0
    ) -> None:
        self._build(
            buffer=buffer,
            memory=memory,
            row=row,
            scale=scale or None,
            unit=unit or None,
            external=external or None,
        )

    @property
    def first_row(self) -> int:
        """First row in every H-Unit."""
        return self.row.value.data

    @property
    def first_scale(self) -> int:
        """First row in the memory of scales."""
        return 0 if self.scale is None else self.scale.value.data

    @property
    def first_unit(self) -> int:
        """The H-Unit of row 0."""
        return 0 if self.unit is None else self.unit.value.data

    @property
    def first_external(self) -> int:
        """First row in external memory."""
        return 0 if self.external is None else self.external.value.data

    def claims(self, machine: Machine) -> dict[str, Claim]:
        """The rows that it takes of each memory; of a slot those of the first resident.

        Raises:
            VerifyException: the buffer is neither a cache nor an adapter nor a state.
        """
        buffer = resolve(self, self.buffer)
        name, type_ = self.buffer.root_reference.data, buffer.type
        if isinstance(type_, StateType):
            rows = -(-type_.size.data // machine.vector_lanes)
            return {VECTORS: Claim(name, 0, 1, self.first_row, rows)}
        if isinstance(type_, MatricesType):
            state = StateShape(machine, *type_.dims)
            return {
                STATES: Claim(name, 0, machine.h_units, self.first_row, state.rows),
                STATE_SCALES: Claim(name, 0, 1, self.first_scale, state.heads),
            }
        if isinstance(type_, KVType):
            cache = cache_shape(type_, machine)
            units = machine.h_units
            found = {KV: Claim(name, 0, units, self.first_row, cache.rows)}
            if cache.scales:
                found[KV_SCALES] = Claim(name, 0, 1, self.first_scale, cache.scales)
            if cache.outside:
                found[EXTERNAL] = Claim(name, 0, 1, self.first_external, cache.outside)
            return found
        if isinstance(buffer, ParameterOp) and isinstance(type_, AdapterType):
            matrix = adapter_shape(buffer, machine)
            unit, units = self.first_unit, matrix.units
            words, scales = matrix.blocks * matrix.words, matrix.blocks * matrix.groups
            return {
                ADAPTERS: Claim(name, unit, units, self.first_row, words),
                ADAPTER_SCALES: Claim(
                    name, *scale_group(machine, unit, units), self.first_scale, scales
                ),
            }
        raise VerifyException(f"@{name} is neither a cache nor an adapter nor a state")

    def verify_(self) -> None:
        """The rows are those of memories that the module states."""
        buffer = resolve(self, self.buffer)
        name, type_ = self.buffer.root_reference.data, buffer.type
        if not isinstance(type_, KVType | AdapterType | StateType | MatricesType):
            raise VerifyException(f"@{name} is neither a cache nor an adapter nor a state")
        wanted = ADAPTERS if isinstance(type_, AdapterType) else KV
        if isinstance(type_, StateType):
            wanted = VECTORS
        if isinstance(type_, MatricesType):
            wanted = STATES
        if self.memory.root_reference.data != wanted:
            raise VerifyException(f"@{name} lies in memory @{wanted}")
        if min(self.first_row, self.first_scale, self.first_unit, self.first_external) < 0:
            raise VerifyException(f"@{name} has a negative row or unit")
        module = self.parent_op()
        if not isinstance(module, ModuleOp):
            return
        machine = machine_of(module)
        rows = type_.dims[0] if isinstance(type_, AdapterType) else machine.h_units
        if (first := self.first_unit) and first > machine.h_units - rows:
            raise VerifyException(
                f"@{name} needs {rows} H-Units from unit {first} on, the chip has {machine.h_units}"
            )
        slot, copies = isinstance(type_, AdapterType) and type_.is_slot, 1
        if slot:
            copies = max((op.copies for op in module.ops if isinstance(op, SiteOp)), default=1)
        for memory, claim in self.claims(machine).items():
            if (one := stated_memory(module, memory)) is None:
                if memory == VECTORS:
                    # It gets its size with the places of values.
                    continue
                raise VerifyException(
                    f"@{name} lies in memory @{memory}, which the module does not state"
                )
            end = claim.first + claim.size + (copies - 1) * one.resident
            if end > one.rows:
                raise VerifyException(f"@{name} ends at row {end}, memory @{memory} has {one.rows}")


def cache_shape(type_: KVType, machine: Machine) -> CacheShape:
    """A cache as the H-Units see it.

    Raises:
        PassFailedException: the cache is not legalised, so its format is not the chip's.
    """
    if (format_ := type_.format.data) not in FORMATS:
        raise PassFailedException(f"a cache holds {format_}; run rom-legalize first")
    numbers = (type_.capacity.data, type_.heads.data, type_.width.data)
    return CacheShape(machine, *numbers, format_, bool(type_.static.data))


def adapter_shape(op: ParameterOp, machine: Machine) -> AdapterShape:
    """A matrix of an adapter as the H-Units see it."""
    assert isinstance(op.type, AdapterType)
    return shape_of_adapter(op.type, machine, None if op.zero is None else op.zero.value.data)


def shape_of_adapter(type_: AdapterType, machine: Machine, zero: int | None) -> AdapterShape:
    """The same of a type; `zero` is the zero point of all its codes, if they have one."""
    code, (rows, columns) = type_.code.data, type_.dims
    # A table of fixed-point numbers has none; the hardware refuses it.
    whole = code.startswith("fixed")
    bits = type_.bits if whole else element_bits(code, type_.bits, zero, is_slot=type_.is_slot)
    return AdapterShape(machine, rows, columns, bits, type_.group.data, type_.is_slot)


@irdl_op_definition
class DomainOp(PlainOp):
    """Tensors whose ROM banks are switched on and off together.

    At reset a domain is off; ROM of tensors in no domain is always on.

    Example:
    ```
    fabric.domain @power0 [@l0_q_proj, @l0_k_proj]
    ```
    """

    name = "fabric.domain"
    sym_name = prop_def(SymbolNameConstraint())
    tensors = prop_def(ArrayAttr[SymbolRefAttr])
    assembly_format = "$sym_name $tensors attr-dict"
    traits = traits_def(SymbolOpInterface())

    def __init__(self, name: str, tensors: Sequence[str]) -> None:
        self._build(sym_name=name, tensors=ArrayAttr([SymbolRefAttr(one) for one in tensors]))

    @property
    def names(self) -> tuple[str, ...]:
        """The tensors' names."""
        return tuple(tensor.root_reference.data for tensor in self.tensors)

    def verify_(self) -> None:
        """The tensors are parameters of the module; that each is in one domain, the machine."""
        for tensor in self.tensors:
            if not isinstance(resolve(self, tensor), ParameterOp):
                raise VerifyException(f"@{tensor.root_reference.data} is no parameter")


def kv_code_bytes(width: int, kv_format: str) -> int:
    """Bytes of the codes of one KV head of one token, without a scale."""
    return -(-width * FORMATS[kv_format].bits // 8)


def kv_vector_bytes(cache: CacheOp) -> int:
    """Bytes that one KV head of one token takes.

    Raises:
        PassFailedException: the cache is not legalised, so its format is not the chip's.
    """
    assert isinstance(cache.type, KVType)
    format_ = cache.type.format.data
    if format_ not in FORMATS:
        raise PassFailedException(f"@{cache.sym_name.data} holds {format_}; run rom-legalize first")
    scale = 0 if cache.type.static.data else kv_scale_bits(format_) // 8
    return kv_code_bytes(cache.type.width.data, format_) + scale


PlaceOp = EngraveOp | ConstantOp | ReserveOp


def places(module: ModuleOp) -> Iterator[PlaceOp]:
    """All placements of a module."""
    return (op for op in module.ops if isinstance(op, PlaceOp))


def _verify_sizes(chip: Mapping[str, Memory], machine: Machine) -> None:
    """An H-Unit and the vector units have SRAM for their memories.

    Raises:
        VerifyException: they have not.
    """
    for what, names, available in (
        ("an H-Unit", IN_H_UNITS, machine.sram_bytes),
        ("the vector units", (*OF_VALUES, KV_SCALES, STATE_SCALES), machine.vector_sram_bytes),
    ):
        size = sum(chip[name].unit_size for name in names if name in chip)
        if size > available:
            raise VerifyException(f"the memories of {what} take {size} bytes of {available}")


def _verify_apart(module: ModuleOp, machine: Machine) -> None:
    """Each buffer has one place, and no two share addresses of a unit.

    Raises:
        VerifyException: names the two buffers and what they share.
    """
    claims: dict[str, list[Claim]] = {"code words": [], "group scales": []}
    placed: set[tuple[str, Form | None]] = set()
    for op in places(module):
        name = op.buffer.root_reference.data
        key = name, op.content if isinstance(op, ConstantOp) else None
        if key in placed:
            raise VerifyException(f"@{name} has two places")
        placed.add(key)
        type_ = resolve(op, op.buffer).type
        match op:
            case EngraveOp() if isinstance(type_, ROMTensorType):
                shape = matrix_shape(type_)
                for piece in (attr.piece for attr in op.pieces):
                    if piece.split > machine.l_units:
                        continue
                    units = (name, piece.first_tile, piece.tiles)
                    words = piece.code_words(shape, machine), piece.scale_words(shape, machine)
                    claims["code words"].append(Claim(*units, piece.base, words[0]))
                    claims["group scales"].append(Claim(*units, piece.scale_base, words[1]))
            case ReserveOp():
                for memory, claim in op.claims(machine).items():
                    claims.setdefault(memory, []).append(claim)
            case ConstantOp():
                claims.setdefault(CONSTANTS, []).append(op.claim(module, machine))
            case _:
                pass
    for what, found_claims in claims.items():
        in_tiles = what in ("code words", "group scales")
        unit, number = ("tile", machine.tiles) if in_tiles else ("H-Unit", machine.h_units)
        if (found := first_overlap(found_claims, number)) is None:
            continue
        if what in (KV_SCALES, EXTERNAL, CONSTANTS, VECTORS):
            raise VerifyException(f"{_both(*found)} share rows of memory @{what}")
        part = what if in_tiles else f"rows of memory @{what}"
        raise VerifyException(f"{_both(*found)} share {part} of {unit} {_common(*found)}")


def _verify_domains(module: ModuleOp) -> None:
    """Each tensor is in one power domain at most.

    Raises:
        VerifyException: names the tensor and its domains.
    """
    domain_of: dict[str, str] = {}
    for op in module.ops:
        if isinstance(op, DomainOp):
            domain = op.sym_name.data
            for name in op.names:
                if name in domain_of:
                    raise VerifyException(
                        f"@{name} is in two domains, @{domain_of[name]} and @{domain}"
                    )
                domain_of[name] = domain


def _both(one: Claim, other: Claim) -> str:
    if one.name == other.name:
        return f"two pieces of @{one.name}"
    return f"@{one.name} and @{other.name}"


def _common(one: Claim, other: Claim) -> int:
    """The first unit of both."""
    return max(one.first_unit, other.first_unit)


FABRIC = Dialect(
    "fabric",
    [MachineOp, MemoryOp, EngraveOp, ConstantOp, ReserveOp, DomainOp],
    [PieceAttr],
)
