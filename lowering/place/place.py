"""`fabric-place`: gives every buffer its place on the chip.

Matrices are cut so that a product takes the fewest cycles; among equals the placement that wastes
the least ROM wins. Where the chip's policy is `spread`, every matrix lies on all tiles, so banks
are filled alike; where it is `packed`, each lies on as few tiles as hold it. Vectors and tables go
to the vector units' constant ROM, caches and adapters to the SRAM of the H-Units. A mapping file
replaces the choice for the matrices that it names. Where banks can be switched off, the matrices of
each layer form a power domain with banks of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import cache

from xdsl.context import Context
from xdsl.dialects.builtin import DictionaryAttr, ModuleOp, SymbolRefAttr
from xdsl.ir import Operation
from xdsl.passes import ModulePass
from xdsl.rewriter import InsertPoint, Rewriter

from intaglio.dialects import rom
from intaglio.dialects.errors import DoesNotFit, UserError, Way
from intaglio.dialects.fabric import DomainOp, EngraveOp, PlaceOp, machine_of, matrix_shape
from intaglio.dialects.machine import Machine
from intaglio.dialects.tiling import (
    MatrixShape,
    Piece,
    Reads,
    activation_passes,
    floor_power,
    step_floor,
)
from intaglio.lowering import roles
from intaglio.lowering.order import check_before, check_legalised
from intaglio.lowering.place.constants import place_constants
from intaglio.lowering.place.mapping import Mapping as MappingFile
from intaglio.lowering.place.mapping import read_mapping
from intaglio.lowering.place.rounds import dealt, in_rounds
from intaglio.lowering.place.sram import place_sram
from intaglio.lowering.place.users import users

_ROWS: set[type[Operation]] = {rom.EmbedOp, rom.EmbedPositionOp}
"""What reads rows of tables."""

_PRODUCTS: Set[type[Operation]] = {rom.DotOp, rom.ExpertProductOp}


@dataclass(frozen=True)
class FabricPlace(ModulePass):
    """Places tensors, caches and adapters.

    Options: `mapping`, a mapping file to follow.
    """

    name = "fabric-place"

    mapping: str | None = None

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        machine = machine_of(op)
        check_before(self.name, op, self.name)
        check_legalised(op)
        given = read_mapping(self.mapping, machine) if self.mapping else None
        placements: list[Operation] = [*_place_rom(op, machine, given)]
        placements += place_constants(op, machine)
        placements += place_sram(op, machine)
        buffers = [s for s in op.ops if isinstance(s, rom.ParameterOp | rom.CacheOp | rom.StateOp)]
        if buffers:
            Rewriter.insert_op(placements, InsertPoint.after(buffers[-1]))


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

    def new_bank(self) -> None:
        """What comes next begins with a bank of its own, on every tile."""
        size = self.machine.bank_words
        self.words = [-(-max(self.words) // size) * size] * len(self.words)

    def holds(self, piece: Piece, shape: MatrixShape) -> bool:
        """Whether the published ROM of the piece's tiles holds it too."""
        word = self.machine.lanes * self.machine.plane_bits
        part = slice(piece.first_tile, piece.first_tile + piece.tiles)
        codes = (piece.base + piece.code_words(shape, self.machine)) * word
        scales = piece.scale_words(shape, self.machine) * shape.scale_bits
        return codes + max(self.scale_bits[part]) + scales <= self.machine.rom_bits

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


def _is_regular(piece: Piece, machine: Machine) -> bool:
    """Whether the results of a step leave the array in whole beats.

    Either a step has whole beats, or its rows divide a beat.
    """
    rows = piece.rows_per_step(machine)
    return rows % machine.results_per_cycle == 0 or rows & (rows - 1) == 0


def _candidates(shape: MatrixShape, machine: Machine, tiles: int, *, is_read: bool) -> list[Piece]:
    """Ways to cut a matrix over so many tiles: each split that uses every L-Unit of a tile.

    Cuts whose results leave in whole beats are preferred: the hardware knows no others. Where no
    cut over all tiles has them, a matrix whose rows are read lies on a power of two of tiles.
    """
    splits = [s for s in range(1, machine.l_units + 1) if machine.l_units % s == 0]
    pieces = [Piece(0, shape.rows, 0, tiles, split, 0, 0) for split in splits]
    regular = [piece for piece in pieces if _is_regular(piece, machine)]
    if is_read and not regular and floor_power(tiles) < tiles:
        return _candidates(shape, machine, floor_power(tiles), is_read=True)
    return regular or pieces


def choose_piece(
    shape: MatrixShape,
    machine: Machine,
    is_table: bool,
    tiles: int | None = None,
    *,
    is_read: bool = False,
    compact: bool = False,
) -> Piece:
    """The best cut of a matrix over so many tiles (all), at address 0 from tile 0.

    A table is read one row at a time, so its storage decides before the cycles of a product; of a
    `compact` matrix too.
    """
    reads = Reads(activation_passes(machine.activations, machine))

    def cost(piece: Piece) -> tuple[int, int, int]:
        cycles = piece.product_cycles(shape, machine, reads)
        storage = piece.bank_bits(shape, machine) * piece.tiles
        if is_table:
            return storage, piece.words(shape, machine), piece.split
        return (storage, cycles, piece.split) if compact else (cycles, storage, piece.split)

    count = machine.tiles if tiles is None else tiles
    return min(_candidates(shape, machine, count, is_read=is_read or is_table), key=cost)


def _at(piece: Piece, first_tile: int, fill: tuple[int, int]) -> Piece:
    return replace(piece, first_tile=first_tile, base=fill[0], scale_base=fill[1])


def _pack(shape: MatrixShape, machine: Machine, banks: _Banks, compact: bool) -> Piece | None:
    """The first place on as few tiles as hold a matrix: an aligned power of two; None: nowhere."""
    tiles = 1
    while tiles <= machine.tiles:
        piece = choose_piece(shape, machine, is_table=False, tiles=tiles, compact=compact)
        for first in range(0, machine.tiles - tiles + 1, tiles):
            placed = _at(piece, first, banks.fill(first, tiles))
            if banks.holds(placed, shape):
                return placed
        tiles *= 2
    return None


@dataclass(frozen=True)
class _Engraved:
    """A tensor that goes into the ROM of the tiles."""

    parameter: rom.ParameterOp
    type: rom.ROMTensorType
    is_table: bool
    """Nothing multiplies with it."""
    is_read: bool
    """Rows of it are read, by number."""
    extra: bool
    domain: str | None

    @property
    def name(self) -> str:
        return self.parameter.sym_name.data

    @property
    def shape(self) -> MatrixShape:
        return matrix_shape(self.type)


def _engraved(module: ModuleOp, machine: Machine) -> list[_Engraved]:
    """The tensors of the tiles' ROM, in the order in which they are placed.

    What lies in ROM beyond the published comes last, so that it pushes nothing else there. Those of
    a power domain follow each other. Packed tiles take the largest first: what is left of one
    holds what comes later.
    """
    kinds = users(module)
    of = roles.matrices(module)
    heads = {name for name, numbers in of.items() if numbers == {roles.HEAD}}
    layers = of.keys() - heads
    extras = _extras(machine, kinds, heads, layers)
    domains = _domains(machine, kinds, of)
    found: list[_Engraved] = []
    for parameter in _parameters(module):
        name, type_ = parameter.sym_name.data, parameter.type
        used = kinds.get(name, set())
        # What is no matrix is a bias of experts, or a table.
        if isinstance(type_, rom.ROMTensorType) and (
            used & _ROWS or (type_.is_matrix and used & _PRODUCTS)
        ):
            found.append(
                _Engraved(
                    parameter,
                    type_,
                    not used & _PRODUCTS,
                    bool(used & _ROWS),
                    name in extras,
                    domains.get(name),
                )
            )
    _check_formats(module, machine, found, layers)
    order = {name: number for number, name in enumerate(dict.fromkeys(domains.values()))}

    def key(one: _Engraved) -> tuple[bool, int, int]:
        size = one.shape.stored_bits if machine.placement == "packed" else 0
        return (one.extra, order.get(one.domain or "", -1), -size)

    return sorted(found, key=key)


def _domains(
    machine: Machine,
    kinds: Mapping[str, set[type[Operation]]],
    of: Mapping[str, set[int]],
) -> dict[str, str]:
    """The power domain of each tensor: one a layer, one for the head (`lowering/roles.py`).

    An embedding table, of which a token reads one row, is always on; so is a matrix that more than
    one layer multiplies with. Families of experts have a domain of their own where only the banks
    of chosen ones are switched on.
    """
    if not machine.power_wake:
        return {}
    domains: dict[str, str] = {}
    for name, numbers in of.items():
        if len(numbers) == 1 and not kinds.get(name, set()) & _ROWS:
            (number,) = numbers
            domains[name] = "power_head" if number == roles.HEAD else f"power{number}"
            if machine.expert_power == "chosen" and rom.ExpertProductOp in kinds.get(name, set()):
                domains[name] += "_experts"
    return {name: domains[name] for name in kinds if name in domains}


def _place_rom(
    module: ModuleOp, machine: Machine, given: MappingFile | None
) -> list[PlaceOp | DomainOp]:
    """Places the matrices for the fewest cycles; if they do not fit, for the least padding."""
    try:
        return [*_engrave(module, machine, given, compact=False)]
    except DoesNotFit:
        return [*_engrave(module, machine, given, compact=True)]


def _engrave(
    module: ModuleOp, machine: Machine, given: MappingFile | None, *, compact: bool
) -> Iterator[EngraveOp | DomainOp]:
    banks = _Banks(machine)
    tensors = _engraved(module, machine)
    rounds = in_rounds(module) if machine.accumulators else set[str]()

    @cache
    def cut_of(one: _Engraved) -> Piece:
        return choose_piece(one.shape, machine, one.is_table, is_read=one.is_read, compact=compact)

    floor = step_floor(map(cut_of, tensors), machine) if rounds else 1
    engraved: dict[str, list[Piece]] = {}
    members: dict[str, list[str]] = {}
    domain: str | None = None
    for one in tensors:
        shape = one.shape
        if one.domain != domain:
            banks.new_bank()
            domain = one.domain
        if given is not None and one.name in given.pieces:
            pieces: list[Piece] = []
            for piece in given.place(one.name, shape, machine, banks.fill):
                banks.add(piece, shape, one.extra)
                pieces.append(piece)
        else:
            place: Piece | None = None
            if machine.placement == "packed" and not one.extra:
                place = _pack(shape, machine, banks, compact)
            if place is None:
                cut = cut_of(one)
                if one.name in rounds and not compact:
                    cut = dealt(cut, shape, machine, floor)
                place = _at(cut, 0, banks.fill(0, cut.tiles))
            pieces = [place]
            banks.add(place, shape, one.extra)
        engraved[one.name] = pieces
        if one.domain is not None:
            members.setdefault(one.domain, []).append(one.name)
    if given is not None:
        given.check_names(engraved)
        given.check_rounds(module, machine, engraved)
    _check_capacity(machine, tensors, engraved, banks)
    extras = {one.name for one in tensors if one.extra}
    for name, pieces in engraved.items():
        yield EngraveOp(name, pieces, name in extras)
    for name, names in members.items():
        yield DomainOp(name, names)


def _check_capacity(
    machine: Machine,
    tensors: Sequence[_Engraved],
    engraved: dict[str, list[Piece]],
    banks: _Banks,
) -> None:
    """The published ROM holds what counts against it.

    Raises:
        DoesNotFit: it does not.
    """
    counted = [one for one in tensors if not one.extra]
    if machine.rom == "logic":
        total = sum(one.shape.stored_bits for one in counted)
        if total > machine.rom_bits * machine.tiles * machine.l_units:
            use = {one.name: float(one.shape.stored_bits) / 8 for one in counted}
            raise _rom_overflow(machine, counted, use, max(banks.bits))
    elif max(banks.bits) > machine.rom_bits:
        use = {
            one.name: sum(p.bank_bits(one.shape, machine) * p.tiles for p in engraved[one.name])
            * machine.l_units
            / 8
            for one in counted
        }
        raise _rom_overflow(machine, counted, use, max(banks.bits))


def _extras(
    machine: Machine,
    kinds: Mapping[str, set[type[Operation]]],
    heads: Set[str],
    layers: Set[str],
) -> set[str]:
    """Tensors that the target's policy puts into ROM beyond the published."""
    extras: set[str] = set()
    for name, used in kinds.items():
        if name in layers:
            continue
        is_head, is_embedding = name in heads, bool(used & _ROWS)
        store = machine.head_store if is_head else machine.embedding_store
        if (is_head or is_embedding) and store == "extra-rom":
            extras.add(name)
    return extras


def _check_formats(
    module: ModuleOp, machine: Machine, tensors: Sequence[_Engraved], layers: Set[str]
) -> None:
    """The chip has cells for all weights, in the layers and outside of them.

    Raises:
        UserError: it has none for the first, and so many more.
    """

    def cells(one: _Engraved) -> tuple[str, ...]:
        return machine.weights if one.name in layers else machine.head_weights

    faulty = [t for t in tensors if t.type.is_matrix and t.type.code.data not in cells(t)]
    if not faulty:
        return
    first, *others = faulty
    part = "in the layers" if first.name in layers else "outside the layers"
    more = f", and {len(others)} more matrices are of such formats" if others else ""
    raise UserError(
        f"weights {first.parameter.source} are {first.type.code.data}, which {machine.name} has "
        f"no cells for{more}",
        node=_node_of(module, first.name),
        hint=f"its ROM {part} stores {', '.join(cells(first))}; quantise otherwise, or choose "
        "another target",
    )


def _node_of(module: ModuleOp, name: str) -> str | None:
    """The first ONNX node that multiplies with a tensor or reads its rows."""
    for op in module.walk():
        if not isinstance(op, rom.DotOp | rom.ExpertProductOp | rom.RowOp):
            continue
        symbol = op.table if isinstance(op, rom.RowOp) else op.weights
        layer = op.parent_op()
        bound = [symbol]
        if isinstance(layer, rom.LayerOp):
            slot = symbol.root_reference.data
            bound = [one.data[slot] for one in _instances(module, layer) if slot in one.data]
        for number, one in enumerate(bound):
            assert isinstance(one, SymbolRefAttr)
            if one.root_reference.data == name:
                return rom.node_names(op.onnx)[number][0]
    return None


def _instances(module: ModuleOp, layer: rom.LayerOp) -> Iterator[DictionaryAttr]:
    """What a layer's slots are bound to, one after the other."""
    for op in module.walk():
        if isinstance(op, rom.RepeatOp) and op.body() is layer:
            yield from op.instances


def _rom_overflow(
    machine: Machine, counted: Sequence[_Engraved], use: dict[str, float], fullest: int
) -> DoesNotFit:
    """Who uses the ROM, by how much it is over, what would make it fit.

    `use` is in bytes by tensor, `fullest` the bits of the fullest L-Unit.
    """
    labels: dict[str, float] = {}
    for one in counted:
        label = f"{one.type.code.data} {list(one.type.dims)}"
        labels[label] = labels.get(label, 0) + use[one.name]
    capacity = machine.rom_bits * machine.tiles * machine.l_units / 8
    total = sum(use.values())
    padding = "" if machine.rom == "logic" else " with padding"
    where = ""
    if machine.rom == "array":
        over = (fullest - machine.rom_bits) / 8 * machine.l_units
        where = (
            f"; the {machine.l_units} L-Units of the fullest tile are over by "
            f"{over / 1e3:.1f} kB together"
        )
    first = (
        f"the ROM of {machine.name} holds {capacity / 1e6:.2f} MB, the model needs "
        f"{total / 1e6:.2f} MB{padding}{where}"
    )
    lines = [first]
    lines += [
        f"    {size / 1e6:10.2f} MB  {label}"
        for label, size in sorted(labels.items(), key=lambda item: -item[1])
    ]
    stores = [
        f"policy.{name}=extra-rom"
        for name, store in (
            ("head_store", machine.head_store),
            ("embedding_store", machine.embedding_store),
        )
        if store != "extra-rom"
    ]
    ways = [Way(settings=(one,)) for one in stores]
    if len(stores) > 1:
        ways.append(Way(settings=tuple(stores)))
    if machine.placement == "packed":
        # A tile is a macro.
        ways.append(Way(settings=(f"array.matrix_units={-(-int(total * 8) // machine.rom_bits)}",)))
    else:
        ways.append(Way(settings=(f"l_unit.rom_bits={fullest}",)))
    return DoesNotFit(
        "\n".join(lines),
        of="the ROM",
        ways=ways,
        lead=f"needs {total / capacity:.2f} times the ROM: ",
        others=["fewer bits a weight"],
    )
