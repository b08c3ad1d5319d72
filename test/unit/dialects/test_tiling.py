"""Tiling against an enumeration of every weight on small machines."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from intaglio.backend.target.target import load_target
from intaglio.dialects.isa.values import Blocks, Quantized
from intaglio.dialects.machine import Machine
from intaglio.dialects.tiling import (
    MatrixShape,
    Piece,
    Reads,
    activation_passes,
    lower_bound_cycles,
    misdealt,
)

BASE = load_target("roma-mini").machine()


@dataclass(frozen=True)
class Case:
    machine: Machine
    shape: MatrixShape
    piece: Piece


@st.composite
def cases(draw: st.DrawFn) -> Case:
    small = st.integers(1, 5)
    machine = replace(
        BASE,
        tiles=draw(small),
        l_units=draw(small),
        lanes=draw(small),
        plane_bits=draw(st.sampled_from([1, 2, 3])),
        results_per_cycle=draw(small),
        accumulators=draw(st.sampled_from([0, 2, 24])),
    )
    rows, columns = draw(st.integers(1, 24)), draw(st.integers(1, 24))
    is_table = draw(st.booleans())
    shape = MatrixShape(
        rows=rows,
        columns=columns,
        group=columns if is_table else draw(st.integers(1, 30)),
        bits=draw(st.sampled_from([2, 4, 8])),
        scale_bits=0 if is_table else 16,
    )
    first_row = draw(st.integers(0, rows - 1))
    first_tile = draw(st.integers(0, machine.tiles - 1))
    piece = Piece(
        first_row=first_row,
        rows=draw(st.integers(1, rows - first_row)),
        first_tile=first_tile,
        tiles=draw(st.integers(1, machine.tiles - first_tile)),
        split=draw(st.integers(1, machine.l_units)),
        base=draw(st.integers(0, 9)),
        scale_base=draw(st.integers(0, 9)),
    )
    return Case(
        machine, shape, draw(st.sampled_from([piece, *ways_to_deal(machine, shape, piece)]))
    )


def ways_to_deal(machine: Machine, shape: MatrixShape, piece: Piece) -> list[Piece]:
    ways = [replace(piece, run=run) for run in range(1, piece.words(shape, machine) + 1)]
    return [one for one in ways if misdealt(one, shape, machine) is None]


def words_of_a_row(shape: MatrixShape, lanes: int) -> list[list[int]]:
    """Columns of each word: up to `lanes` neighbours inside one scale group."""
    words: list[list[int]] = []
    for column in range(shape.columns):
        starts_group = column % shape.group == 0
        if starts_group or len(words[-1]) == lanes:
            words.append([])
        words[-1].append(column)
    return words


Cell = tuple[int, int, int, int]
"""Tile, L-Unit, bank address, lane."""


def enumerate_codes(case: Case) -> dict[tuple[int, int, int], Cell]:
    """Where every bit plane of every weight lies: (row, column, plane) -> cell."""
    machine, shape, piece = case.machine, case.shape, case.piece
    planes = shape.planes(machine)
    words = words_of_a_row(shape, machine.lanes)
    a_slice = piece.words(shape, machine)
    cells: dict[tuple[int, int, int], Cell] = {}
    for row in range(piece.first_row, piece.first_row + piece.rows):
        tile, unit, step = piece.place_of(row, machine)
        for number, columns in enumerate(words):
            which, word = divmod(number, a_slice)
            before = step * a_slice
            if piece.run:
                # Runs go round the slices; those of a round lie together, step by step.
                run, word = divmod(number, piece.run)
                round_, which = divmod(run, piece.split)
                before = (round_ * piece.steps(machine) + step) * piece.run
            for lane, column in enumerate(columns):
                for plane in range(planes):
                    address = piece.base + (before + word) * planes + plane
                    cells[row, column, plane] = (tile, unit + which, address, lane)
    return cells


def enumerate_scales(case: Case) -> dict[tuple[int, int, object], tuple[int, int, int]]:
    """Where group scales lie: (row, slice, group) -> tile, L-Unit, scale address."""
    machine, shape, piece = case.machine, case.shape, case.piece
    words = words_of_a_row(shape, machine.lanes)
    a_slice = piece.words(shape, machine)
    column_height = piece.slice_groups(shape, machine)
    places = {}
    for row in range(piece.first_row, piece.first_row + piece.rows):
        tile, unit, step = piece.place_of(row, machine)
        for number in range(0, len(words) if piece.run else 0, piece.run or 1):
            round_, which = divmod(number // piece.run, piece.split)
            own = words[number : number + piece.run]
            groups = sorted({columns[0] // shape.group for columns in own})
            first = (round_ * piece.steps(machine) + step) * piece.run_groups(shape, machine)
            for i, group in enumerate(groups):
                # Two runs of a slice may be of one group: each has its scale beside it.
                place = (tile, unit + which, piece.scale_base + first + i)
                places[row, which, (round_, group)] = place
        for which in range(0 if piece.run else piece.split):
            own = words[which * a_slice : (which + 1) * a_slice]
            groups = sorted({columns[0] // shape.group for columns in own})
            for i, group in enumerate(groups):
                address = piece.scale_base + step * column_height + i
                places[row, which, group] = (tile, unit + which, address)
    return places


@settings(max_examples=120, deadline=None)
@given(cases())
def test_every_weight_has_one_place_and_no_two_share_one(case: Case) -> None:
    machine, shape, piece = case.machine, case.shape, case.piece
    assert len(words_of_a_row(shape, machine.lanes)) == shape.words_per_row(machine)
    cells = enumerate_codes(case)
    assert len(cells) == piece.rows * shape.columns * shape.planes(machine)
    assert len(set(cells.values())) == len(cells)
    for tile, unit, address, lane in cells.values():
        assert piece.first_tile <= tile < piece.first_tile + piece.tiles
        assert 0 <= unit < machine.l_units
        assert piece.base <= address < piece.base + piece.code_words(shape, machine)
        assert 0 <= lane < machine.lanes


@settings(max_examples=120, deadline=None)
@given(cases())
def test_bank_bits_are_those_of_the_fullest_bank(case: Case) -> None:
    machine, shape, piece = case.machine, case.shape, case.piece
    last = max(address for _, _, address, _ in enumerate_codes(case).values())
    code_words = last + 1 - piece.base
    assert piece.code_words(shape, machine) == code_words
    scale_words = piece.scale_words(shape, machine)
    assert piece.bank_bits(shape, machine) == (
        code_words * machine.lanes * machine.plane_bits + scale_words * shape.scale_bits
    )
    if shape.scale_bits == 0:
        assert scale_words == 0


@settings(max_examples=120, deadline=None)
@given(cases().filter(lambda case: case.shape.scale_bits > 0))
def test_every_slice_finds_its_scales_beside_it(case: Case) -> None:
    machine, shape, piece = case.machine, case.shape, case.piece
    places = enumerate_scales(case)
    assert len(set(places.values())) == len(places)
    last = max(address for _, _, address in places.values())
    reserved = piece.scale_base + piece.scale_words(shape, machine)
    assert last < reserved
    if piece.words(shape, machine) % shape.words_per_group(machine) == 0 and not piece.run:
        assert last == reserved - 1


@settings(max_examples=120, deadline=None)
@given(cases(), st.integers(1, 4))
def test_product_cycles_count_words_and_results_of_each_step(case: Case, passes: int) -> None:
    machine, shape, piece = case.machine, case.shape, case.piece
    reads: dict[tuple[int, int, int], set[int]] = {}
    rows_of: dict[int, set[int]] = {}
    rounds = piece.rounds(shape, machine)
    for (row, _, _), (tile, unit, address, _) in enumerate_codes(case).items():
        step = piece.place_of(row, machine)[2]
        rows_of.setdefault(step, set()).add(row)
        reads.setdefault((step, tile, unit), set()).add(address)
    drain = {step: -(-len(rows) // machine.results_per_cycle) for step, rows in rows_of.items()}
    cycles = 0
    for step in sorted(rows_of):
        slowest = max(len(a) for (s, _, _), a in reads.items() if s == step)
        # Nothing leaves in the rounds before the last one.
        before = slowest * passes * (rounds - 1) // rounds
        cycles += before + max(slowest * passes - before, drain[0])
    # All steps are as long as the first, the fullest; only the last drain is not hidden.
    assert piece.product_cycles(shape, machine, Reads(passes)) == cycles + drain[0]
    assert sorted(rows_of) == list(range(piece.steps(machine)))


@settings(max_examples=60, deadline=None)
@given(cases(), st.integers(1, 4))
def test_no_piece_is_faster_than_all_lanes_busy(case: Case, passes: int) -> None:
    machine, shape, piece = case.machine, case.shape, case.piece
    whole = replace(piece, first_row=0, rows=shape.rows)
    bound = lower_bound_cycles(shape, machine, Reads(passes))
    assert whole.product_cycles(shape, machine, Reads(passes)) > bound - 1e-9


@settings(max_examples=120, deadline=None)
@given(cases(), st.sampled_from([1, 2, 4, 8]), st.sets(st.integers(0, 23)), st.integers(1, 3))
def test_words_of_wide_blocks_are_read_more_often(
    case: Case, block: int, wide: set[int], more: int
) -> None:
    """In every L-Unit at once, where the word of any slice is of such a block."""
    machine, shape, piece = case.machine, case.shape, case.piece
    count = -(-shape.columns // block)
    reads = Reads(2, frozenset(one for one in wide if one < count), block, more)
    of_words: dict[int, set[int]] = {}
    for (row, column, _), (_, _, address, _) in enumerate_codes(case).items():
        if row == piece.first_row:
            of_words.setdefault(address - piece.base, set()).add(column // block)
    planes = shape.planes(machine)
    rounds = piece.rounds(shape, machine)
    run = piece.run or piece.words(shape, machine)
    for number in range(rounds):
        first = number * piece.steps(machine) * run * planes
        mine = [of_words.get(first + one, set()) for one in range(run * planes)]
        longer = sum(bool(blocks & reads.wide) for blocks in mine)
        assert piece.read_cycles(shape, machine, reads, number) == 2 * len(mine) + more * longer
        words = piece.wide_words(shape, machine, reads, number)
        assert len(words) * planes == longer
        assert all(mine[word * planes] & reads.wide for word in words)
    columns = sum(2 + more * (column // block in reads.wide) for column in range(shape.columns))
    assert reads.of_row(shape.columns) == columns
    bound = lower_bound_cycles(shape, machine, reads)
    whole = replace(piece, first_row=0, rows=shape.rows)
    assert whole.product_cycles(shape, machine, reads) > bound - 1e-9
    every = replace(reads, wide=frozenset(range(count)))
    assert lower_bound_cycles(shape, machine, every) == pytest.approx(
        lower_bound_cycles(shape, machine, Reads(2 + more))
    )


def test_reads_of_a_vector() -> None:
    blocks = Blocks(48, "half8", 16, 16, "1")
    assert Reads.of(Quantized(1, 48, "int16"), BASE) == Reads(2)
    assert Reads.of(replace(blocks, wide=""), BASE) == Reads(1)
    assert Reads.of(blocks, BASE) == Reads(1, frozenset({1}), 16, 1)
    assert Reads.of(blocks, replace(BASE, pass_bits=4)) == Reads(2, frozenset({1}), 16, 2)
    assert Reads.of(blocks, replace(BASE, pass_bits=16)).more == 0


@pytest.mark.parametrize(
    ("activations", "pass_bits", "passes"),
    [("int8", 8, 1), ("int16", 8, 2), ("fp8", 8, 1), ("int8", 4, 2), ("int16", 5, 4)],
)
def test_activations_take_passes(activations: str, pass_bits: int, passes: int) -> None:
    assert activation_passes(activations, replace(BASE, pass_bits=pass_bits)) == passes
