"""Placement: every buffer has a place of its own, on the chip, and the cut is the best."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from xdsl.context import Context
from xdsl.dialects.builtin import IntegerAttr, ModuleOp, i64
from xdsl.rewriter import InsertPoint, Rewriter

from intaglio.backend.target.target import load_target
from intaglio.dialects import rom
from intaglio.dialects.constant_rom import CONSTANTS
from intaglio.dialects.errors import DoesNotFit, UserError
from intaglio.dialects.fabric import (
    ConstantOp,
    EngraveOp,
    MachineOp,
    ReserveOp,
    matrix_shape,
    memories,
    places,
)
from intaglio.dialects.h_units import IN_H_UNITS
from intaglio.dialects.machine import Machine
from intaglio.dialects.tiling import MatrixShape, Piece, Reads, activation_passes
from intaglio.lowering.place.place import FabricPlace, choose_piece
from intaglio.lowering.step.legalize import RomLegalize

RELAXED = settings(
    max_examples=20,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def place(module: ModuleOp, **options: Any) -> ModuleOp:
    FabricPlace(**options).apply(Context(), module)
    module.verify()
    return module


def engraved(module: ModuleOp) -> Iterator[tuple[str, MatrixShape, list[Piece]]]:
    """Name, shape and pieces of each engraved tensor."""
    types = {op.sym_name.data: op.type for op in module.ops if isinstance(op, rom.ParameterOp)}
    for op in places(module):
        if isinstance(op, EngraveOp):
            name = op.buffer.root_reference.data
            type_ = types[name]
            assert isinstance(type_, rom.ROMTensorType)
            yield name, matrix_shape(type_), [attr.piece for attr in op.pieces]


def assert_disjoint(ranges: list[tuple[int, int]]) -> None:
    ordered = sorted(r for r in ranges if r[0] < r[1])
    for (_, last), (first, _) in pairwise(ordered):
        assert last <= first


def assert_rom_is_shared_by_none(module: ModuleOp, machine: Machine) -> None:
    codes: dict[int, list[tuple[int, int]]] = {tile: [] for tile in range(machine.tiles)}
    scales: dict[int, list[tuple[int, int]]] = {tile: [] for tile in range(machine.tiles)}
    for _, shape, pieces in engraved(module):
        assert pieces[0].first_row == 0
        assert sum(piece.rows for piece in pieces) == shape.rows
        for piece in pieces:
            assert piece.first_tile + piece.tiles <= machine.tiles
            for tile in range(piece.first_tile, piece.first_tile + piece.tiles):
                last = piece.base + piece.code_words(shape, machine)
                codes[tile].append((piece.base, last))
                last = piece.scale_base + piece.scale_words(shape, machine)
                scales[tile].append((piece.scale_base, last))
    for tile in range(machine.tiles):
        assert_disjoint(codes[tile])
        assert_disjoint(scales[tile])
        end = max((last for _, last in codes[tile]), default=0)
        assert end * machine.lanes * machine.plane_bits <= machine.rom_bits


@RELAXED
@given(data=st.data())
def test_no_two_buffers_share_a_place(
    data: st.DataObject, integers: Any, decoders: Any, machines: Any
) -> None:
    machine = data.draw(machines)
    rank = data.draw(st.sampled_from([0, 3, 16]))
    model = replace(data.draw(decoders), layers=2, outline=True)
    module = place(integers(model, machine, rank))
    assert_rom_is_shared_by_none(module, machine)

    chip = memories(module)
    rows: dict[tuple[str, int], list[tuple[int, int]]] = {}
    declared = {
        op.sym_name.data: op.type
        for op in module.ops
        if isinstance(op, rom.ParameterOp | rom.CacheOp)
    }
    for op in places(module):
        if isinstance(op, ReserveOp):
            for memory, claim in op.claims(machine).items():
                assert claim.first + claim.size <= chip[memory].rows
                for unit in range(claim.first_unit, claim.first_unit + claim.units):
                    assert unit < chip[memory].units
                    place_ = claim.first, claim.first + claim.size
                    rows.setdefault((memory, unit), []).append(place_)
        if isinstance(op, ConstantOp):
            claim = op.claim(module, machine)
            assert claim.first + claim.size <= chip[CONSTANTS].rows
            place_ = claim.first, claim.first + claim.size
            rows.setdefault((CONSTANTS, 0), []).append(place_)
    assert sum(chip[name].unit_size for name in IN_H_UNITS if name in chip) <= machine.sram_bytes
    for reserved in rows.values():
        assert_disjoint(reserved)
    forms = {
        (op.buffer.root_reference.data, op.content)
        for op in places(module)
        if isinstance(op, ConstantOp)
    }
    placed = [op.buffer.root_reference.data for op in places(module)]
    twice = len(forms) - len({name for name, _ in forms})
    assert set(declared) == set(placed) and len(placed) == len(declared) + twice
    slots = [t for t in declared.values() if isinstance(t, rom.AdapterType)]
    assert len(slots) == (2 * 7 * model.layers if rank else 0)


@RELAXED
@given(data=st.data())
def test_a_cache_has_room_for_every_token(
    data: st.DataObject, integers: Any, decoders: Any, machines: Any
) -> None:
    """Head h of token t lies in unit t mod h_units, vector (t div h_units) * heads + h."""
    machine = data.draw(machines)
    module = place(integers(data.draw(decoders), machine))
    caches = {op.sym_name.data: op for op in module.ops if isinstance(op, rom.CacheOp)}
    for op in places(module):
        if isinstance(op, ReserveOp):
            cache = caches[op.buffer.root_reference.data]
            assert isinstance(cache.type, rom.KVType)
            token, heads = cache.type.capacity.data - 1, cache.type.heads.data
            last = (token // machine.h_units) * heads + heads
            size = -(-cache.type.width.data // machine.attention_lanes)
            size *= 2 if cache.type.format.data == "int16" else 1
            claims = op.claims(machine)
            assert claims["kv"].size == last * size
            if not cache.type.static.data:
                assert claims["kv_scales"].size == heads * -(-(token + 1) // machine.vector_lanes)


@st.composite
def matrices(draw: st.DrawFn) -> MatrixShape:
    columns = draw(st.integers(1, 40))
    bits = draw(st.sampled_from([2, 4, 8]))
    return MatrixShape(draw(st.integers(1, 60)), columns, draw(st.integers(1, 40)), bits, 16)


@RELAXED
@given(data=st.data())
def test_no_other_cut_that_uses_every_l_unit_is_faster(data: st.DataObject, machines: Any) -> None:
    shape, machine = data.draw(matrices()), data.draw(machines)
    reads = Reads(activation_passes(machine.activations, machine))
    chosen = choose_piece(shape, machine, is_table=False)
    others = [
        Piece(0, shape.rows, 0, machine.tiles, split, 0, 0)
        for split in range(1, machine.l_units + 1)
        if machine.l_units % split == 0
    ]
    rows = [(piece, piece.rows_per_step(machine)) for piece in others]
    beat = machine.results_per_cycle
    regular = [piece for piece, n in rows if n % beat == 0 or n & (n - 1) == 0]
    best = min(piece.product_cycles(shape, machine, reads) for piece in regular or others)
    assert chosen.product_cycles(shape, machine, reads) == best


@RELAXED
@given(data=st.data())
def test_rom_that_is_nearly_full(data: st.DataObject, integers: Any, decoders: Any, mini: Any):
    """What is placed fits the banks; what does not fit is an error, not a module that is wrong."""
    machine = replace(mini, tiles=3, l_units=2, rom_bits=data.draw(st.integers(500, 40_000)))
    module = integers(data.draw(decoders), machine)
    try:
        FabricPlace().apply(Context(), module)
    except DoesNotFit as error:
        assert "the ROM of roma-mini holds" in str(error)
        assert "times the ROM" in (error.hint or "")
        return
    module.verify()
    assert_rom_is_shared_by_none(module, machine)


def test_who_uses_the_rom(integers: Any, decoder: Any, mini: Machine) -> None:
    module = integers(decoder, replace(mini, rom_bits=1024))
    with pytest.raises(DoesNotFit) as raised:
        place(module)
    lines = str(raised.value).splitlines()
    assert "the ROM of roma-mini holds 0.00 MB" in lines[0]
    sizes = [float(line.split()[0]) for line in lines[1:] if line.endswith("]")]
    assert sizes == sorted(sizes, reverse=True)
    assert raised.value.hint is not None and "l_unit.rom_bits=" in raised.value.hint


def test_the_rom_that_would_make_it_fit(integers: Any, decoder: Any, mini: Machine) -> None:
    with pytest.raises(DoesNotFit) as raised:
        place(integers(decoder, replace(mini, rom_bits=1024)))
    assert raised.value.hint is not None
    bits = int(raised.value.hint.rsplit("l_unit.rom_bits=", 1)[1].split(";")[0])
    place(integers(decoder, replace(mini, rom_bits=bits)))


def test_the_context_that_would_make_it_fit(integers: Any, decoder: Any, mini: Machine) -> None:
    long = replace(decoder, capacity=4000)
    machine = replace(mini, sram_bytes=4096)
    with pytest.raises(DoesNotFit, match="the SRAM of roma-mini holds") as raised:
        place(integers(long, machine))
    assert raised.value.hint is not None
    context = int(raised.value.hint.split("--context ", 1)[1].split(";")[0])
    assert 0 < context < 4000
    place(integers(replace(long, capacity=context // mini.tiles * mini.tiles), machine))


def test_weights_that_have_no_cells(integers: Any, decoder: Any, mini: Machine) -> None:
    with pytest.raises(UserError, match="are int4, which roma-mini has no cells for"):
        place(integers(decoder, replace(mini, weights=("int8",))))


@pytest.mark.parametrize("outline", [False, True])
def test_weights_that_have_no_cells_are_counted(
    integers: Any, decoder: Any, mini: Machine, outline: bool
) -> None:
    """The error names the first node of them, in an outlined layer that of its first instance."""
    module = integers(replace(decoder, layers=3, outline=outline), mini)
    tensors = {
        op.sym_name.data
        for op in module.ops
        if isinstance(op, rom.ParameterOp)
        and isinstance(op.type, rom.ROMTensorType)
        and op.type.is_matrix
    }
    first = next(op for op in module.walk() if isinstance(op, rom.DotOp))
    few = replace(mini, weights=("int8",), head_weights=("int8",))
    with pytest.raises(UserError, match=f"and {len(tensors) - 1} more matrices") as raised:
        place(integers(replace(decoder, layers=3, outline=outline), few))
    assert raised.value.node == first.onnx.data[0].data[0].data


def test_a_matrix_of_few_rows_takes_few_units(integers: Any, decoder: Any, mini: Machine) -> None:
    """A of rank 3 lies on three of eight H-Units, so pairs stand in one row: the load port has
    scales for four at once."""
    module = place(integers(decoder, replace(mini, load_bytes=8), 3, ("q_proj", "v_proj")))
    found = {
        op.buffer.root_reference.data: (op.first_unit, op.first_row, op.first_scale)
        for op in places(module)
        if isinstance(op, ReserveOp) and op.buffer.root_reference.data.endswith("_A")
    }
    words = -(-decoder.hidden // mini.attention_lanes)
    _, word, scale = found["layers_0_q_proj_A"]
    assert set(found.values()) == {
        (unit, word + turn * words, scale + turn) for unit in (0, 4) for turn in (0, 1)
    }


def test_a_load_word_is_of_one_matrix(integers: Any, decoder: Any, mini: Machine) -> None:
    """With scales for eight H-Units in a word, no two matrices share a row of scales."""
    module = place(integers(decoder, mini, 3, ("q_proj", "v_proj")))
    found = [
        (op.first_unit, op.first_scale)
        for op in places(module)
        if isinstance(op, ReserveOp) and op.buffer.root_reference.data.endswith("_A")
    ]
    assert {unit for unit, _ in found} == {0, 4}
    assert len({scale for _, scale in found}) == len(found)


def test_slots_that_do_not_fit(integers: Any, decoder: Any, mini: Machine) -> None:
    need = r"(?s)the SRAM of roma-mini holds .* MiB  adapter slots"
    with pytest.raises(DoesNotFit, match=need) as raised:
        place(integers(decoder, replace(mini, sram_bytes=2383), 16))
    assert raised.value.hint is not None and "--adapter-slots 8; or" in raised.value.hint
    assert "--resident-adapters" not in raised.value.hint


def test_residents_that_do_not_fit(integers: Any, decoder: Any, mini: Machine) -> None:
    """Each has SRAM of its own; the hint names as many as do fit."""

    def module(residents: int, machine: Machine = mini) -> ModuleOp:
        found = integers(decoder, machine, 4)
        for op in found.ops:
            if isinstance(op, rom.SiteOp):
                op.residents = IntegerAttr(residents, i64)
        return found

    def fullest(residents: int) -> int:
        chip = memories(place(module(residents)))
        return sum(chip[name].unit_size for name in IN_H_UNITS if name in chip)

    size = fullest(3)
    assert fullest(1) < fullest(2) < size
    with pytest.raises(DoesNotFit) as raised:
        place(module(5, replace(mini, sram_bytes=size)))
    assert raised.value.hint is not None and "--resident-adapters 3; or" in raised.value.hint


def test_sites_hold_the_same_number(integers: Any, decoder: Any, mini: Machine) -> None:
    found = integers(decoder, mini, 4)
    site = next(op for op in found.ops if isinstance(op, rom.SiteOp))
    site.residents = IntegerAttr(2, i64)
    with pytest.raises(UserError, match="different numbers of adapters"):
        place(found)


def test_a_shared_matrix_is_engraved_once(
    from_text: Callable[[str], ModuleOp], mini: Machine
) -> None:
    """A head tied to the embedding is a matrix, cut for products."""
    module = from_text(
        """
        rom.parameter @e : !rom.tensor<[64, 32], int8, group 32> {key = "e", exponent = 9 : i64}
        rom.step @decode context 8 {
        ^bb0(%token: i32, %position: index):
          %x = rom.embed %token of @e {onnx = [["e"]]} : !rom.fixed<32, 16>
          %c = rom.quantize %x {onnx = [["h"]]} : !rom.fixed<32, 16> -> !rom.quantized<1, 32, int8>
          %a = rom.dot %c by @e {onnx = [["h"]]}
            : !rom.quantized<1, 32, int8> -> !rom.accumulator<64, 40>
          %y = rom.requantize %a scaled %c, @e {pre_shift = 0 : i64, onnx = [["h"]]}
            : !rom.accumulator<64, 40>, !rom.quantized<1, 32, int8> -> !rom.fixed<64, 16>
          %next = rom.sample %y {onnx = [["h"]]} : !rom.fixed<64, 16>
          rom.emit %y, %next : !rom.fixed<64, 16>
        }
        """
    )
    Rewriter.insert_op(MachineOp(mini), InsertPoint.at_start(module.body.block))
    ((name, shape, pieces),) = engraved(place(module))
    assert name == "e"
    wanted = choose_piece(shape, mini, is_table=False)
    assert pieces == [replace(wanted, first_tile=pieces[0].first_tile)]


@pytest.mark.parametrize("is_table", [False, True])
@pytest.mark.parametrize(
    ("tiles", "l_units", "results", "used"),
    # As TOM; three tiles; as BitROM, where 270 rows are no whole beats of 64; a power of two.
    [(10, 16, 32, 10), (3, 4, 4, 3), (270, 1, 64, 256), (6, 2, 8, 4), (8, 4, 16, 8)],
)
def test_rows_that_are_read_lie_on_all_tiles(
    mini: Machine, is_table: bool, tiles: int, l_units: int, results: int, used: int
) -> None:
    """But where their results would not leave in whole beats."""
    machine = replace(mini, tiles=tiles, l_units=l_units, results_per_cycle=results)
    shape = MatrixShape(2000, 256, 128, 8, 16)
    piece = choose_piece(shape, machine, is_table, is_read=True)
    assert piece.tiles == used
    rows = piece.rows_per_step(machine)
    assert rows % results == 0 or rows & (rows - 1) == 0


@RELAXED
@given(data=st.data())
def test_the_least_padding_where_speed_does_not_fit(
    data: st.DataObject, integers: Any, decoders: Any, mini: Machine
) -> None:
    """A bit less than cuts for speed need is enough where padding can be saved."""
    model = data.draw(decoders)

    def fullest(module: ModuleOp) -> int:
        """Bits of an L-Unit of the fullest tile."""
        use = [0] * mini.tiles
        for _, shape, pieces in engraved(module):
            for piece in pieces:
                for tile in range(piece.first_tile, piece.first_tile + piece.tiles):
                    use[tile] += piece.bank_bits(shape, mini)
        return max(use)

    needed = fullest(place(integers(model, replace(mini, rom_bits=1 << 24))))
    module = integers(model, replace(mini, rom_bits=needed - 1))
    try:
        place(module)
    except DoesNotFit:
        assume(False)
    assert fullest(module) < needed


@RELAXED
@given(data=st.data())
def test_packed_matrices_take_few_tiles(
    data: st.DataObject,
    decoders: st.SearchStrategy[Any],
    machines: st.SearchStrategy[Machine],
    integers: Callable[..., ModuleOp],
) -> None:
    """Each lies on an aligned power of two of tiles, and half as many would not hold it."""
    machine = replace(
        data.draw(machines), placement="packed", tiles=data.draw(st.integers(60, 100))
    )
    module = integers(data.draw(decoders), machine)
    try:
        place(module)
    except DoesNotFit:
        assume(False)
    assert_rom_is_shared_by_none(module, machine)
    for _, shape, (piece,) in engraved(module):
        assert piece.tiles & (piece.tiles - 1) == 0
        assert piece.first_tile % piece.tiles == 0
        half = replace(piece, tiles=piece.tiles // 2, base=0, scale_base=0)
        if half.tiles:
            assert half.bank_bits(shape, machine) > machine.rom_bits or shape.scale_bits == 0


def test_logic_rom_counts_weights_and_no_padding(
    mini: Machine, decoder: Any, integers: Callable[..., ModuleOp]
) -> None:
    """Rows that do not go round the tiles cost nothing where ROM is gates."""
    array = replace(mini, lanes=16, rom_bits=1 << 20)
    module = place(integers(decoder, array))
    exact = sum(shape.stored_bits for _, shape, _ in engraved(module))
    padded = sum(
        p.bank_bits(shape, array) * p.tiles * array.l_units
        for _, shape, pieces in engraved(module)
        for p in pieces
    )
    assert exact < padded
    units = mini.tiles * mini.l_units
    logic = replace(array, rom="logic", rom_bits=-(-exact // units))
    place(integers(decoder, logic))
    with pytest.raises(DoesNotFit, match="the ROM of roma-mini holds"):
        place(integers(decoder, replace(logic, rom_bits=exact // units - 1)))


def test_falcon_takes_the_papers_macros(from_text: Callable[[str], ModuleOp]) -> None:
    """BitROM: the linears of Falcon3-1B fill 270 macros of 2048 x 1024 cells, two trits each."""
    machine = load_target("bitrom").machine()
    hidden, inner, kv = 2048, 8192, 1024
    sizes = [(hidden, hidden), (kv, hidden), (kv, hidden), (hidden, hidden)]
    sizes += [(inner, hidden), (inner, hidden), (hidden, inner)]
    lines: list[str] = []
    body: list[str] = []
    for layer in range(18):
        for number, (rows, columns) in enumerate(sizes):
            name = f"w{layer}_{number}"
            lines.append(
                f"rom.parameter @{name} : !rom.tensor<[{rows}, {columns}], ternary>"
                f' {{key = "{name}", zero = 1 : i64, exponent = 15 : i64}}'
            )
            size = f"tensor<{columns}xf32> -> tensor<{rows}xf32>"
            source = "%x" if columns == hidden else "%h"
            body.append(f'%{name} = rom.linear {source} by @{name} {{onnx = [["m"]]}} : {size}')
    # What a head would be does not matter here: the layers' matrices are outside repeated layers.
    lines.append(
        f'rom.parameter @t : !rom.tensor<[8, {hidden}], float32> {{key = "t", peak = 1.0 : f64}}'
    )
    first = f'%x = rom.embed %token of @t {{onnx = [["e"]]}} : tensor<{hidden}xf32>'
    sizes_of_wide = f"tensor<{hidden}xf32> -> tensor<{inner}xf32>"
    wide = f'%h = rom.linear %x by @w0_4 {{onnx = [["m"]]}} : {sizes_of_wide}'
    last = [
        f'%next = rom.sample %w17_6 {{onnx = [["s"]]}} : tensor<{hidden}xf32>',
        f"rom.emit %w17_6, %next : tensor<{hidden}xf32>",
    ]
    step = "rom.step @decode context 8 {\n^bb0(%token: i32, %position: index):"
    module = from_text("\n".join([*lines, step, first, wide, *body, *last, "}"]))
    machine = replace(machine, head_store="rom")
    Rewriter.insert_op(MachineOp(machine), InsertPoint.at_start(module.body.block))
    RomLegalize().apply(Context(), module)
    place(module)
    used = {
        tile
        for name, _, pieces in engraved(module)
        if name != "t"
        for piece in pieces
        for tile in range(piece.first_tile, piece.first_tile + piece.tiles)
    }
    assert len(used) == 270
