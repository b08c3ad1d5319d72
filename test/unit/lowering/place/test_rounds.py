"""Which matrices take their rows in rounds, and in which runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from xdsl.context import Context

from intaglio.dialects.machine import Machine
from intaglio.dialects.tiling import MatrixShape, Piece, misdealt
from intaglio.lowering.place.place import FabricPlace
from intaglio.lowering.place.rounds import dealt, in_rounds


@pytest.fixture
def blocks(mini: Machine) -> Machine:
    return replace(mini, activations="half8", block=8, block_exponent=2, accumulators=64)


@pytest.mark.parametrize(("outline", "rank"), [(True, 0), (False, 0), (True, 4), (False, 4)])
def test_every_other_product(
    integers: Callable[..., Any], decoder: Any, blocks: Machine, outline: bool, rank: int
) -> None:
    """O follows attention, down the FFN's first product; what follows these takes rows at once;
    beside adapter slots too."""
    module = integers(replace(decoder, outline=outline), blocks, rank)
    found = in_rounds(module)
    kinds = {name.split("_")[-1] for name in found}
    assert kinds == {"o", "down"} and len(found) == 2 * decoder.layers


def test_one_scale_a_vector_waits_for_all_of_it(
    integers: Callable[..., Any], decoder: Any, mini: Machine
) -> None:
    assert in_rounds(integers(decoder, mini)) == set()


def test_runs_store_the_fewest_scales_then_are_the_shortest(blocks: Machine) -> None:
    machine = replace(blocks, tiles=2, l_units=4, lanes=8, plane_bits=4, results_per_cycle=8)
    shape = MatrixShape(rows=16, columns=256, group=32, bits=4, scale_bits=16)
    piece = Piece(0, 16, 0, 2, 2, 0, 0)
    # 16 words a slice, groups of 4: runs of 4 keep one scale each.
    assert dealt(piece, shape, machine, 1).run == 4
    # Without scales nothing speaks for longer runs but the cycles in which results leave.
    plain = replace(shape, group=256, scale_bits=0)
    assert dealt(piece, plain, machine, 1).run == 1
    assert dealt(piece, plain, machine, 3).run == 4
    # As many steps as there are accumulators.
    assert dealt(piece, shape, replace(machine, accumulators=3), 1) == piece
    assert dealt(piece, shape, replace(machine, accumulators=4), 1).run == 4


def test_a_family_of_experts_is_not_dealt(blocks: Machine) -> None:
    shape = MatrixShape(rows=16, columns=256, group=32, bits=4, scale_bits=16, experts=2)
    reason = misdealt(Piece(0, 16, 0, 8, 2, 0, 0, 2), shape, blocks)
    assert reason is not None and "experts" in reason


def test_a_target_without_accumulators_takes_rows_at_once(
    integers: Callable[..., Any], decoder: Any, blocks: Machine
) -> None:
    machine = replace(blocks, accumulators=0)
    module = integers(decoder, machine)
    FabricPlace().apply(Context(), module)
    assert "run " not in str(module)
