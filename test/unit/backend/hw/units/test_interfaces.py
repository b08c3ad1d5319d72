"""Units as the chip sees them: instructions, queues, bundles of ports, refusals."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from intaglio.backend.hw.chip.layout import Layout, layout_of
from intaglio.backend.hw.units.memories import BLOCK_STEPS, CODES, SHARED, VALUE_SCALES
from intaglio.backend.hw.units.ports import (
    Bundle,
    Command,
    Read,
    Saturations,
    Serve,
    Write,
    check_ports,
    row,
)
from intaglio.backend.hw.wires.signal import Design
from intaglio.backend.program.program import Program
from intaglio.dialects.errors import CompilerBug, UserError
from intaglio.dialects.isa.queues import QUEUES
from intaglio.dialects.isa.registry import INSTRUCTIONS


@pytest.fixture
def program(compiled_chip: tuple[Program, Path]) -> Program:
    return compiled_chip[0]


def bundles(layout: Layout) -> list[Bundle]:
    return [bundle for unit in layout.units for bundle in unit.ports]


def test_every_instruction_has_one_unit(program: Program) -> None:
    layout = layout_of(program)
    commands = [one for one in bundles(layout) if isinstance(one, Command)]
    executed = Counter((a.queue, one.opcode) for a in commands for one in a.instructions)
    assert set(executed.values()) == {1}
    declared = {(one.queue, one.opcode) for one in INSTRUCTIONS}
    absent = {"wake", "wake_chosen", "sleep"}
    absent |= {"matvec"} if layout.adapters is None else set()
    absent |= set() if layout.program.matrices else {"linear_attention"}
    assert {opcode for _, opcode in declared - executed.keys()} <= absent
    used = {(one.queue, one.opcode) for block in program.blocks for one in block.instructions}
    assert used <= executed.keys()
    assert [queue for queue in QUEUES if any(queue == one.queue for one in commands)] == list(
        layout.queues
    )
    # Where units share a queue, fields of all stand side by side, and one tells whose it is.
    for queue, fields in layout.fields.items():
        own = [one.fields for one in commands if one.queue == queue]
        assert len(fields) == sum(map(len, own)) + len(own) - 1
        assert all(one.meaning for one in fields.fields)


def test_ports_are_those_of_the_modules(program: Program) -> None:
    layout = layout_of(program)
    for unit in layout.units:
        module = unit.build(Design())
        check_ports(module, unit.ports)
        widths = {port.name: port.width for port in module.ports}
        for bundle in unit.ports:
            match bundle:
                case Read() | Write():
                    elements = layout.lanes
                    if bundle.memory is BLOCK_STEPS:
                        elements //= program.machine.block
                    word = bundle.memory.word(elements)
                    # Of a word a reader takes what it needs.
                    given = bundle.data.keys()
                    assert given == word.keys() or (
                        isinstance(bundle, Read) and given < word.keys()
                    )
                    for part, port in bundle.data.items():
                        # Codes of 8 bits take the low half of a lane.
                        wanted = {word[part], word[part] // 2 if bundle.memory is CODES else 0}
                        assert widths[port] in wanted, (unit.name, port)
                case Command():
                    assert widths[bundle.start] == widths[bundle.done] == 1
                    for name, width in bundle.fields.items():
                        assert widths[bundle.port(name)] <= width
                case _:
                    pass


def test_every_memory_is_read_and_written(program: Program) -> None:
    found = bundles(layout_of(program))
    read = {one.memory.name for one in found if isinstance(one, Read)}
    written = {one.memory.name for one in found if isinstance(one, Write)}
    served = {one.memory.name for one in found if isinstance(one, Serve)}
    # Routings are of experts, steps and factors of norms of codes with an exponent a block.
    sometimes = {"routings", "block_steps", "norm_scales"}
    shared = {memory.name for memory in SHARED} - sometimes
    assert read - sometimes == shared | {VALUE_SCALES.name}
    assert written - sometimes == shared - {"constants"}
    assert served == {VALUE_SCALES.name}
    assert sum(isinstance(one, Saturations) for one in found) >= 3


def test_ports_that_are_not_declared() -> None:
    module = Design().module("unit")
    module.output("input_row", module.input("input_data", 16))
    check_ports(module, (row(CODES, "input"),))
    with pytest.raises(CompilerBug, match="unit: undeclared ports input_data, input_row"):
        check_ports(module, ())
    with pytest.raises(CompilerBug, match="unit: missing ports saturations"):
        check_ports(module, (row(CODES, "input"), Saturations("saturations")))


@pytest.mark.parametrize(
    ("changes", "lines"),
    [
        ({"vector_pipeline": 2}, ["vector_pipeline is 2"]),
        (
            {"vector_pipeline": 2, "kv_write": 0, "mac_pipeline": 0, "issue": 0},
            ["vector_pipeline is 2", "kv_write is 0", "mac_pipeline is 0", "issue is 0"],
        ),
        (
            {"h_units": 6, "l_units": 12, "activations": "fp4", "kv": "int5", "power_sleep": 0},
            [
                "array.h_units is 6",
                "array.l_units is 12",
                "no activations of fp4",
                "no kv of int5",
            ],
        ),
    ],
)
def test_all_refusals_come_at_once(
    program: Program, changes: dict[str, Any], lines: list[str]
) -> None:
    broken = replace(program, machine=replace(program.machine, **changes))
    with pytest.raises(UserError) as error:
        layout_of(broken)
    said = str(error.value)
    for line in lines:
        assert re.search(line, said), said
    # Nothing is said twice, and only a chip that switches domains needs to.
    assert len(said.splitlines()) == len(set(said.splitlines()))
    assert ("power_sleep" in said) == (bool(program.domains) and "power_sleep" in changes)
