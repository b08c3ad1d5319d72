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
from xdsl.dialects.builtin import ModuleOp
from xdsl.rewriter import InsertPoint, Rewriter

from intaglio.dialects import rom
from intaglio.dialects.errors import DoesNotFit, UserError
from intaglio.dialects.fabric import (
    AdapterSlotOp,
    ConstantOp,
    EngraveOp,
    MachineOp,
    ReserveOp,
    kv_vector_bytes,
    matrix_shape,
    places,
)
from intaglio.dialects.machine import Machine
from intaglio.dialects.tiling import MatrixShape, Piece, activation_passes
from intaglio.lowering.place import CONSTANT_ALIGNMENT, FabricPlace, choose_piece

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
    module = integers(model, machine)
    assume(any(isinstance(op, rom.LayerOp) for op in module.ops))
    place(module, adapter_rank=rank)
    assert_rom_is_shared_by_none(module, machine)

    sram: list[tuple[int, int]] = []
    constants: list[int] = []
    for op in places(module):
        if isinstance(op, ReserveOp | AdapterSlotOp):
            first = op.address.value.data
            sram.append((first, first + op.size.value.data))
            assert first + op.size.value.data <= machine.sram_bytes
        if isinstance(op, ConstantOp):
            constants.append(op.address.value.data)
    assert_disjoint(sram)
    assert len(set(constants)) == len(constants)
    assert all(address % CONSTANT_ALIGNMENT == 0 for address in constants)

    placed = [op.buffer.root_reference.data for op in places(module)]
    slots = {
        op.buffer.root_reference.data for op in places(module) if isinstance(op, AdapterSlotOp)
    }
    declared = [
        op.sym_name.data for op in module.ops if isinstance(op, rom.ParameterOp | rom.CacheOp)
    ]
    assert sorted([*declared, *slots]) == sorted(placed)
    assert bool(slots) == bool(rank)


@RELAXED
@given(data=st.data())
def test_a_cache_has_room_for_every_token(
    data: st.DataObject, integers: Any, decoders: Any, machines: Any
) -> None:
    """Head h of token t lies in tile t mod tiles, vector (t div tiles) * heads + h."""
    machine = data.draw(machines)
    module = place(integers(data.draw(decoders), machine))
    caches = {op.sym_name.data: op for op in module.ops if isinstance(op, rom.CacheOp)}
    for op in places(module):
        if isinstance(op, ReserveOp):
            cache = caches[op.buffer.root_reference.data]
            assert isinstance(cache.type, rom.KVType)
            token, heads = cache.type.capacity.data - 1, cache.type.heads.data
            last = (token // machine.tiles) * heads + heads
            assert last * kv_vector_bytes(cache) <= op.size.value.data


@st.composite
def matrices(draw: st.DrawFn) -> MatrixShape:
    columns = draw(st.integers(1, 40))
    bits = draw(st.sampled_from([2, 4, 8]))
    return MatrixShape(draw(st.integers(1, 60)), columns, draw(st.integers(1, 40)), bits, 16)


@RELAXED
@given(data=st.data())
def test_no_other_cut_that_uses_every_l_unit_is_faster(data: st.DataObject, machines: Any) -> None:
    shape, machine = data.draw(matrices()), data.draw(machines)
    passes = activation_passes(machine.activations, machine)
    chosen = choose_piece(shape, machine, is_table=False)
    others = [
        Piece(0, shape.rows, 0, machine.tiles, split, 0, 0)
        for split in range(1, machine.l_units + 1)
        if machine.l_units % split == 0
    ]
    best = min(piece.product_cycles(shape, machine, passes) for piece in others)
    assert chosen.product_cycles(shape, machine, passes) == best


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
    bits = int(raised.value.hint.rsplit("l_unit.rom_bits=", 1)[1])
    place(integers(decoder, replace(mini, rom_bits=bits)))


def test_the_context_that_would_make_it_fit(integers: Any, decoder: Any, mini: Machine) -> None:
    long = replace(decoder, capacity=4000)
    machine = replace(mini, sram_bytes=4096)
    with pytest.raises(DoesNotFit, match="the SRAM of roma-mini holds") as raised:
        place(integers(long, machine))
    assert raised.value.hint is not None
    context = int(raised.value.hint.split("--context ", 1)[1].split()[0])
    assert 0 < context < 4000
    place(integers(replace(long, capacity=context // mini.tiles * mini.tiles), machine))


def test_weights_that_have_no_cells(integers: Any, decoder: Any, mini: Machine) -> None:
    with pytest.raises(UserError, match="are int4, which roma-mini has no cells for"):
        place(integers(decoder, replace(mini, weights=("int8",))))


@pytest.mark.parametrize("modules", [(), ("qkv", "down")])
def test_adapter_slots_stand_beside_the_matrices_named(
    integers: Any, decoder: Any, mini: Machine, modules: tuple[str, ...]
) -> None:
    module = place(integers(decoder, mini), adapter_rank=4, adapter_modules=modules)
    slots = [
        op.buffer.root_reference.data for op in places(module) if isinstance(op, AdapterSlotOp)
    ]
    named = modules or ("qkv", "o", "gate", "up", "down")
    assert sorted(slots) == sorted(f"layers_{i}_{part}" for i in (0, 1) for part in named)


def test_no_adapter_site(integers: Any, decoder: Any, mini: Machine) -> None:
    with pytest.raises(UserError, match="no matrix matches the adapter modules head"):
        place(integers(decoder, mini), adapter_rank=4, adapter_modules=("head",))


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
