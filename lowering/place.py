"""`fabric-place`: gives every buffer its place on the chip.

Matrices are cut so that a product takes the fewest cycles; among equals the placement that wastes
the least ROM wins. Every matrix lies on all tiles, so banks are filled alike. Vectors and tables go
to the vector units' constant ROM, caches and adapters to the SRAM of the H-Units. A mapping file
replaces the choice for the matrices that it names.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp, SymbolRefAttr
from xdsl.ir import Operation
from xdsl.passes import ModulePass
from xdsl.rewriter import InsertPoint, Rewriter

from intaglio.dialects import rom
from intaglio.dialects.errors import DoesNotFit, UserError
from intaglio.dialects.fabric import (
    AdapterSlotOp,
    ConstantOp,
    EngraveOp,
    PlaceOp,
    ReserveOp,
    kv_vector_bytes,
    machine_of,
    matrix_shape,
)
from intaglio.dialects.machine import Machine
from intaglio.dialects.tiling import MatrixShape, Piece, activation_passes
from intaglio.lowering.mapping import Mapping, read_mapping

CONSTANT_ALIGNMENT = 64
"""Bytes; constants begin at a row of the vector units' ROM."""


@dataclass(frozen=True)
class FabricPlace(ModulePass):
    """Places tensors, caches and adapter slots.

    Options: `mapping`, a mapping file to follow; `adapter_rank` and `adapter_modules`, the largest
    rank and the names of the matrices (parts of their keys; none: all) to reserve adapters for.
    """

    name = "fabric-place"

    mapping: str | None = None
    adapter_rank: int = 0
    adapter_modules: tuple[str, ...] = ()

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        machine = machine_of(op)
        given = read_mapping(self.mapping) if self.mapping else None
        placements = list(_place_rom(op, machine, given))
        placements += _place_constants(op)
        placements += _place_sram(op, machine, self.adapter_rank, self.adapter_modules)
        last = [s for s in op.ops if isinstance(s, rom.ParameterOp | rom.CacheOp)][-1]
        Rewriter.insert_op(placements, InsertPoint.after(last))


def users(module: ModuleOp) -> dict[str, set[type[Operation]]]:
    """The kinds of operator that use each buffer of the module."""
    found: dict[str, set[type[Operation]]] = {}

    def note(buffer: Operation, kind: type[Operation]) -> None:
        assert isinstance(buffer, rom.ParameterOp | rom.CacheOp | rom.SlotOp)
        found.setdefault(buffer.sym_name.data, set()).add(kind)

    in_slots: dict[tuple[str, str], set[type[Operation]]] = {}
    for op in module.walk():
        if isinstance(op, rom.RepeatOp):
            continue
        for symbol in op.properties.values():
            if not isinstance(symbol, SymbolRefAttr) or isinstance(op, PlaceOp):
                continue
            buffer = rom.resolve(op, symbol)
            layer = op.parent_op()
            if isinstance(buffer, rom.SlotOp) and isinstance(layer, rom.LayerOp):
                key = (layer.sym_name.data, buffer.sym_name.data)
                in_slots.setdefault(key, set()).add(type(op))
            else:
                note(buffer, type(op))
    for op in module.walk():
        if isinstance(op, rom.RepeatOp):
            layer = op.body().sym_name.data
            for instance in op.instances:
                for slot, symbol in instance.data.items():
                    assert isinstance(symbol, SymbolRefAttr)
                    for kind in in_slots.get((layer, slot), ()):
                        note(rom.resolve(op, symbol), kind)
    return found


def _parameters(module: ModuleOp) -> Iterator[rom.ParameterOp]:
    return (op for op in module.ops if isinstance(op, rom.ParameterOp))


# --- ROM of the matrix tiles --------------------------------------------------------------------


@dataclass
class _Banks:
    """How full the L-Units of each tile are; all L-Units of a tile are filled alike.

    Code words count up to the highest address reached, so gaps that a mapping leaves count too.
    """

    machine: Machine
    words: list[int] = field(default_factory=list)
    scales: list[int] = field(default_factory=list)
    published_words: list[int] = field(default_factory=list)
    scale_bits: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        for column in (self.words, self.scales, self.published_words, self.scale_bits):
            column.extend([0] * self.machine.tiles)

    @property
    def bits(self) -> list[int]:
        """Bits used in each L-Unit of a tile, without what lies beyond the published ROM."""
        word = self.machine.lanes * self.machine.plane_bits
        columns = zip(self.published_words, self.scale_bits, strict=True)
        return [words * word + scales for words, scales in columns]

    def fill(self, first: int, tiles: int) -> tuple[int, int]:
        """First free addresses of a range of tiles: code words, scale words."""
        part = slice(first, first + tiles)
        return max(self.words[part]), max(self.scales[part])

    def add(self, piece: Piece, shape: MatrixShape, extra: bool) -> None:
        words = piece.base + piece.code_words(shape, self.machine)
        scales = piece.scale_base + piece.scale_words(shape, self.machine)
        bits = piece.scale_words(shape, self.machine) * shape.scale_bits
        for tile in range(piece.first_tile, piece.first_tile + piece.tiles):
            self.words[tile] = max(self.words[tile], words)
            self.scales[tile] = max(self.scales[tile], scales)
            if not extra:
                self.published_words[tile] = max(self.published_words[tile], words)
                self.scale_bits[tile] += bits


def _candidates(shape: MatrixShape, machine: Machine) -> Iterator[Piece]:
    """Ways to cut a matrix over all tiles: each split that uses every L-Unit of a tile."""
    for split in range(1, machine.l_units + 1):
        if machine.l_units % split == 0:
            yield Piece(0, shape.rows, 0, machine.tiles, split, 0, 0)


def choose_piece(shape: MatrixShape, machine: Machine, is_table: bool) -> Piece:
    """The best cut of a matrix, at address 0 from tile 0.

    A table is read one row at a time, so its storage decides before the cycles of a product.
    """
    passes = activation_passes(machine.activations, machine)

    def cost(piece: Piece) -> tuple[int, int, int]:
        cycles = piece.product_cycles(shape, machine, passes)
        storage = piece.bank_bits(shape, machine) * piece.tiles
        row = piece.words(shape, machine)
        return (storage, row, piece.split) if is_table else (cycles, storage, piece.split)

    return min(_candidates(shape, machine), key=cost)


def _place_rom(module: ModuleOp, machine: Machine, given: Mapping | None) -> Iterator[EngraveOp]:
    banks = _Banks(machine)
    kinds = users(module)
    engraved: dict[str, list[Piece]] = {}
    extras = _extras(module, machine, kinds)
    # What lies in ROM beyond the published comes last, so that it pushes nothing else there.
    for parameter in sorted(_parameters(module), key=lambda p: p.sym_name.data in extras):
        name, type_ = parameter.sym_name.data, parameter.type
        used = kinds.get(name, set())
        if not isinstance(type_, rom.ROMTensorType) or not used & {rom.DotOp, rom.EmbedOp}:
            continue
        shape = matrix_shape(type_)
        _check_format(parameter, type_, machine)
        if given is not None and name in given.pieces:
            pieces: list[Piece] = []
            for piece in given.place(name, shape, machine, banks.fill):
                banks.add(piece, shape, name in extras)
                pieces.append(piece)
        else:
            cut = choose_piece(shape, machine, is_table=rom.DotOp not in used)
            base, scale_base = banks.fill(0, cut.tiles)
            pieces = [Piece(0, shape.rows, 0, cut.tiles, cut.split, base, scale_base)]
            banks.add(pieces[0], shape, name in extras)
        engraved[name] = pieces
    if given is not None and (unknown := sorted(set(given.pieces) - set(engraved))):
        raise UserError(
            f"the mapping places {', '.join(unknown)}, which the model does not have",
            file=given.file,
            hint="names are those of mapping.json in the output folder",
        )
    if max(banks.bits) > machine.rom_bits:
        published = {name: p for name, p in engraved.items() if name not in extras}
        raise _rom_overflow(module, machine, published, banks)
    for name, pieces in engraved.items():
        yield EngraveOp(name, pieces, name in extras)


def _extras(module: ModuleOp, machine: Machine, kinds: dict[str, set[type[Operation]]]) -> set[str]:
    """Tensors that the target's policy puts into ROM beyond the published."""
    repeated = _repeated(module)
    extras: set[str] = set()
    for name, used in kinds.items():
        if name in repeated:
            continue
        is_head, is_embedding = rom.DotOp in used, rom.EmbedOp in used
        store = machine.head_store if is_head else machine.embedding_store
        if (is_head or is_embedding) and store == "extra-rom":
            extras.add(name)
    return extras


def _repeated(module: ModuleOp) -> set[str]:
    """Buffers bound to slots of repeated layers."""
    return {
        symbol.root_reference.data
        for op in module.walk()
        if isinstance(op, rom.RepeatOp)
        for instance in op.instances
        for symbol in instance.data.values()
        if isinstance(symbol, SymbolRefAttr)
    }


def _check_format(parameter: rom.ParameterOp, type_: rom.ROMTensorType, machine: Machine) -> None:
    if type_.is_matrix and type_.code.data not in machine.weights:
        raise UserError(
            f"weights {parameter.key.data} are {type_.code.data}, which {machine.name} has no "
            f"cells for",
            hint=f"its ROM stores {', '.join(machine.weights)}; quantise otherwise, or choose "
            "another target",
        )


def _rom_overflow(
    module: ModuleOp, machine: Machine, engraved: dict[str, list[Piece]], banks: _Banks
) -> DoesNotFit:
    """Who uses the ROM, by how much it is over, what would make it fit."""
    use: dict[str, float] = {}
    for parameter in _parameters(module):
        if (pieces := engraved.get(parameter.sym_name.data)) is None:
            continue
        assert isinstance(parameter.type, rom.ROMTensorType)
        shape = matrix_shape(parameter.type)
        bits = sum(p.bank_bits(shape, machine) * p.tiles for p in pieces) * machine.l_units
        label = f"{parameter.type.code.data} {list(parameter.type.dims)}"
        use[label] = use.get(label, 0) + bits / 8
    capacity = machine.rom_bits * machine.tiles * machine.l_units / 8
    total = sum(use.values())
    worst = max(range(machine.tiles), key=lambda tile: banks.bits[tile])
    over = (banks.bits[worst] - machine.rom_bits) / 8
    first = (
        f"the ROM of {machine.name} holds {capacity / 1e6:.2f} MB, the model needs "
        f"{total / 1e6:.2f} MB with padding; the {machine.l_units} L-Units of tile {worst} are "
        f"over by {over * machine.l_units / 1e3:.1f} kB together"
    )
    lines = [first]
    lines += [
        f"    {size / 1e6:10.2f} MB  {label}"
        for label, size in sorted(use.items(), key=lambda item: -item[1])
    ]
    return DoesNotFit(
        "\n".join(lines),
        hint=(
            f"needs {total / capacity:.2f} times the ROM: fewer bits a weight, "
            f"--set policy.head_store=extra-rom or policy.embedding_store=extra-rom (deeper banks "
            f"for these, reported apart), or --set l_unit.rom_bits={max(banks.bits)}"
        ),
    )


# --- constant ROM of the vector units -----------------------------------------------------------


def _place_constants(module: ModuleOp) -> list[Operation]:
    kinds = users(module)
    placed: list[Operation] = []
    address = 0
    for parameter in _parameters(module):
        used = kinds.get(parameter.sym_name.data, set())
        type_ = parameter.type
        if not isinstance(type_, rom.ROMTensorType) or type_.is_matrix or rom.EmbedOp in used:
            continue
        placed.append(ConstantOp(parameter.sym_name.data, address))
        address += constant_bytes(type_)
    return placed


def constant_bytes(type_: rom.ROMTensorType) -> int:
    """Bytes of a vector or table, up to the next aligned address."""
    size = type_.bits // 8
    for extent in type_.dims:
        size *= extent
    return -(-size // CONSTANT_ALIGNMENT) * CONSTANT_ALIGNMENT


# --- SRAM of the H-Units ------------------------------------------------------------------------


def _place_sram(
    module: ModuleOp, machine: Machine, rank: int, modules: Sequence[str]
) -> list[Operation]:
    placed: list[Operation] = []
    use: dict[str, int] = {}
    address = 0
    for op in module.ops:
        match op:
            case rom.CacheOp(type=rom.KVType() as kv):
                tokens = -(-kv.capacity.data // machine.tiles)
                size = tokens * kv.heads.data * kv_vector_bytes(op)
                placed.append(ReserveOp(op.sym_name.data, address, size))
                label = "KV cache"
            case rom.ParameterOp(type=rom.AdapterType() as adapter):
                shape = matrix_shape(adapter)
                groups = -(-shape.columns // shape.group)
                bits = shape.columns * shape.bits + groups * shape.scale_bits
                size = -(-shape.rows // machine.tiles) * -(-bits // 8)
                placed.append(ReserveOp(op.sym_name.data, address, size))
                label = "adapters of the graph"
            case _:
                continue
        use[label] = use.get(label, 0) + size
        address += size
    if rank:
        for parameter in _adapter_sites(module, modules):
            assert isinstance(parameter.type, rom.ROMTensorType)
            rows, columns = parameter.type.dims
            size = -(-rank * (rows + columns) // machine.tiles)
            placed.append(AdapterSlotOp(parameter.sym_name.data, rank, address, size))
            label = f"adapter slots of rank {rank}"
            use[label] = use.get(label, 0) + size
            address += size
    if address > machine.sram_bytes:
        raise _sram_overflow(machine, use, module, rank)
    return placed


def _adapter_sites(module: ModuleOp, modules: Sequence[str]) -> Iterator[rom.ParameterOp]:
    """Matrices inside repeated layers whose keys contain one of the names."""
    found = False
    kinds = users(module)
    repeated = _repeated(module)
    for parameter in _parameters(module):
        name = parameter.sym_name.data
        if name not in repeated or rom.DotOp not in kinds.get(name, set()):
            continue
        if not isinstance(parameter.type, rom.ROMTensorType):
            continue
        if not modules or any(part in parameter.key.data for part in modules):
            found = True
            yield parameter
    if not found:
        raise UserError(
            f"no matrix matches the adapter modules {', '.join(modules) or '(all)'}",
            hint="names are parts of the weights' names, such as q_proj or qkv_proj",
        )


def _sram_overflow(
    machine: Machine, use: dict[str, int], module: ModuleOp, rank: int
) -> DoesNotFit:
    total = sum(use.values())
    caches = [op for op in module.ops if isinstance(op, rom.CacheOp)]
    first = (
        f"the SRAM of {machine.name} holds {machine.sram_bytes * machine.tiles / 2**20:.2f} MiB, "
        f"the model needs {total * machine.tiles / 2**20:.2f} MiB"
    )
    lines = [first]
    lines += [
        f"    {size * machine.tiles / 2**20:10.2f} MiB  {label}"
        for label, size in sorted(use.items(), key=lambda item: -item[1])
    ]
    hint = "a shorter --context, a narrower --set kv=..., or a larger target"
    if caches and isinstance(caches[0].type, rom.KVType):
        capacity = caches[0].type.capacity.data
        kv = use.get("KV cache", 0)
        free = machine.sram_bytes - (total - kv)
        if kv and free > 0:
            hint = f"--context {free * capacity // kv} would fit; or " + hint
    if rank:
        hint += "; or a smaller adapter rank"
    return DoesNotFit("\n".join(lines), hint=hint)
