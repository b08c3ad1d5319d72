"""Largest magnitudes that are taken while values are written: who leaves them, who reads them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp

from intaglio.dialects import hazards
from intaglio.dialects.formula import constant
from intaglio.dialects.hazards import Access, first_race
from intaglio.dialects.machine import Machine
from intaglio.dialects.program import InstructionOp, ProgramOp
from intaglio.dialects.timeline import Block, Issue
from intaglio.lowering.place.place import FabricPlace
from intaglio.lowering.schedule.schedule import ProgramSchedule


def scheduled(module: ModuleOp) -> ProgramOp:
    FabricPlace().apply(Context(), module)
    ProgramSchedule().apply(Context(), module)
    module.verify()
    return next(op for op in module.ops if isinstance(op, ProgramOp))


def beats_of(program: ProgramOp, opcode: str) -> list[InstructionOp]:
    return [op for block in program.blocks for op in block.instructions if op.opcode.data == opcode]


def test_all_that_write_a_value_leave_its_peak(integers: Any, decoder: Any, mini: Machine) -> None:
    """Also across blocks and layers, in one entry; what reads it begins with its second pass."""
    program = scheduled(integers(replace(decoder, norm="rms_norm"), mini))
    (embed,) = beats_of(program, "embed")
    (value,) = embed.does.writes
    writers = [
        op
        for block in program.blocks
        for op in block.instructions
        if value in op.does.writes and op.opcode.data != "copy"
    ]
    assert {op.opcode.data for op in writers} == {"embed", "matvec"}
    assert {op.part.peak for op in writers} == {embed.part.peak} and embed.part.peak
    norms = [op for op in beats_of(program, "rms_norm") if value in op.does.reads]
    assert {op.part.number for op in norms} == {1, 2}
    assert {op.part.entry for op in norms} == {embed.part.peak - 1}
    assert all(op.part.peak for op in beats_of(program, "weighted_sum"))


def test_a_norm_of_layers_finds_its_own(integers: Any, decoder: Any, mini: Machine) -> None:
    """Its first pass sums."""
    program = scheduled(integers(replace(decoder, norm="layer_norm"), mini))
    assert {op.part.number for op in beats_of(program, "layer_norm")} == {0, 1, 2, 3}


def raced(accesses: list[Access], waits: list[dict[str, int]]) -> hazards.Race | None:
    """A product of the matrix queue, one more, and a norm of what the first one writes."""
    queues = ("matrix", "matrix", "vector")
    issues = [
        Issue(queue, own, constant(5), constant(1), constant(9))
        for queue, own in zip(queues, waits, strict=True)
    ]
    buffers = {"x": (0, 8), "y": (8, 16), "z": (4, 12), "n": (16, 24)}
    return first_race([Block("b", issues, 1)], [accesses], [[{}]], buffers)


LEFT = Access([], ["x"], leaves=(0, 1), leaves_peak="x")
NORM = Access(["x"], ["n"], uses=(0, 1), uses_peak="x")


@pytest.mark.parametrize(
    ("other", "norm", "last", "said"),
    [
        (Access([], ["y"]), NORM, {"matrix_peaks": 1}, None),
        (Access([], ["y"]), NORM, {"matrix": 1}, "may use reductions"),
        # Something else has been written over a part of it.
        (Access([], ["z"]), NORM, {"matrix_peaks": 2}, "nobody left"),
        # The entry has the peak of another value.
        (
            Access([], ["y"], leaves=(0, 1), leaves_peak="y"),
            NORM,
            {"matrix_peaks": 2},
            "nobody left",
        ),
        (Access([], ["y"]), replace(NORM, uses=(1, 2)), {"matrix_peaks": 2}, "nobody left"),
    ],
)
def test_peaks_are_of_what_is_read(
    other: Access, norm: Access, last: dict[str, int], said: str | None
) -> None:
    race = raced([LEFT, other, norm], [{}, {}, last])
    if said is None:
        assert race is None
    else:
        assert race is not None and said in race.told(str)


def test_a_peak_waits_for_who_reads_the_one_before() -> None:
    """Units of two queues leave something in an entry: one waits until the other is used."""
    issues = [
        Issue("matrix", {}, constant(5), constant(1), constant(9)),
        Issue("vector", {"matrix_peaks": 1}, constant(5), constant(1), constant(9)),
        Issue("matrix", {}, constant(5), constant(1), constant(9)),
    ]
    accesses = [LEFT, NORM, Access([], ["y"], leaves=(0, 1), leaves_peak="y")]
    buffers = {"x": (0, 8), "y": (8, 16), "n": (16, 24)}
    race = first_race([Block("b", issues, 1)], [accesses], [[{}]], buffers)
    assert race is not None and "may leave reductions where" in race.told(str)
    issues[2] = replace(issues[2], waits={"vector": 1})
    assert first_race([Block("b", issues, 1)], [accesses], [[{}]], buffers) is None
