"""Rows of the chip's memories: what each needs, and no more."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from intaglio.backend.compile import compile_model
from intaglio.backend.hw.chip.layout import Layout, layout_of
from intaglio.backend.program.program import load_program
from intaglio.backend.stages import Options
from intaglio.dialects import hazards
from intaglio.dialects.errors import UserError
from intaglio.dialects.isa.attention import QueryKey
from intaglio.dialects.isa.values import Blocks, Fixed, Probabilities, Quantized, Scores, Value

CONTEXT = 40


def laid_out(model: Path, out: Path, target: str) -> Layout:
    compile_model(model, out, Options(target, context=CONTEXT, emit="program"))
    return layout_of(load_program(out))


@pytest.fixture(
    scope="module",
    params=[
        ("llama", "roma-mini"),
        ("qwen", "hc1-mini"),
        ("phi", "roma-mini"),
        ("ternary", "tom-mini"),
        ("ternary", "bitrom-mini"),
    ],
    ids=lambda param: "-".join(param),
)
def layout(
    request: pytest.FixtureRequest,
    model: Callable[[str], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Layout:
    name, target = request.param
    return laid_out(model(name), tmp_path_factory.mktemp("layout") / "out", target)


def test_largest_scores_of_two_times_are_refused(layout: Layout) -> None:
    """A program edited by hand: the hardware has one delay for all of them."""
    block = next(
        one
        for one in layout.program.blocks
        if sum(isinstance(beat.does, QueryKey) for beat in one.instructions) > 1
    )
    (late, *_) = (one for one in block.instructions if isinstance(one.does, QueryKey))
    assert late.issue.reduces is not None
    issue = replace(late.issue, reduces=late.issue.reduces + 1)
    edited = [replace(late, issue=issue) if one is late else one for one in block.instructions]
    blocks = [
        replace(one, instructions=edited) if one is block else one for one in layout.program.blocks
    ]
    with pytest.raises(UserError, match="counts all largest scores as many cycles after"):
        layout_of(replace(layout.program, blocks=blocks))


def test_scores_and_probabilities_do_not_count_each_other(layout: Layout) -> None:
    """All layers share a block, and with it the buffers: the memories hold one layer's."""
    heads = {
        kind: [b.type.heads for b in layout.program.buffers.values() if isinstance(b.type, kind)]
        for kind in (Scores, Probabilities)
    }
    rows = -(-CONTEXT // layout.lanes)
    assert layout.program.memories["scores"].rows == max(2, max(heads[Scores]) * rows)
    assert layout.program.memories["probabilities"].rows == max(2, max(heads[Probabilities]) * rows)
    assert layout.program.memories["heads"].rows == max(2, max(heads[Probabilities]))


def test_quantised_values_share_rows(layout: Layout) -> None:
    sizes = {
        name: one.type.groups * -(-one.type.width // layout.lanes)
        for name, one in layout.program.buffers.items()
        if isinstance(one.type, Quantized)
    } | {
        name: -(-one.type.elements // layout.lanes)
        for name, one in layout.program.buffers.items()
        if isinstance(one.type, Blocks)
    }
    assert max(sizes.values()) <= layout.program.memories["codes"].rows < sum(sizes.values())
    assert layout.program.memories["codes"].rows == max(
        2, *(layout.row_of(n) + size for n, size in sizes.items())
    )


@pytest.mark.parametrize("kind", [Quantized, Blocks, Scores, Probabilities, Fixed])
def test_what_shares_rows_is_ordered(layout: Layout, kind: type[Value]) -> None:
    """The elements that the hardware has, held against the waits, kind by kind."""
    program, lanes = layout.program, layout.lanes
    rows_of_head = layout.places.score_rows

    def elements(name: str) -> tuple[int, int]:
        one, first = program.buffers[name].type, layout.row_of(name) * lanes
        match one:
            case Quantized():
                size = one.groups * -(-one.width // lanes) * lanes
            case Blocks():
                size = -(-one.elements // lanes) * lanes
            case Fixed():
                size, first = one.size, first + program.buffers[name].element
            case Scores() | Probabilities():
                size = one.heads * rows_of_head * lanes
            case _:
                raise AssertionError(one)
        return first, first + size

    names = {name for name, one in program.buffers.items() if isinstance(one.type, kind)}
    accesses = [
        [
            hazards.Access(
                [name for name in one.reads if name in names],
                [name for name in one.writes if name in names],
                parts=one.parts,
            )
            for one in block
        ]
        for block in program.accesses
    ]
    race = hazards.first_race(
        [block.timing for block in program.blocks],
        accesses,
        [block.instances for block in program.blocks],
        {name: elements(name) for name in names},
    )
    assert race is None
