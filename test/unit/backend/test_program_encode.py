"""The encoded program: its words are the ROMs', hardware made of it is the chip's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from xdsl.context import Context
from xdsl.dialects.builtin import Builtin, ModuleOp
from xdsl.parser import Parser

from intaglio.backend.hw.chip.chip import chip_design
from intaglio.backend.hw.chip.contents import descriptor_wires, descriptor_words
from intaglio.backend.hw.chip.layout import layout_of, with_queues
from intaglio.backend.hw.units.matrix.plan import single_scales
from intaglio.backend.images.read import Images
from intaglio.backend.program.program import Program
from intaglio.dialects.encoded import QueueOp, word_of
from intaglio.dialects.errors import UserError
from intaglio.dialects.program import PROGRAM
from intaglio.dialects.rom import ROM


def parsed(queues: list[QueueOp]) -> list[QueueOp]:
    """The same queues, printed and read again."""
    context = Context()
    for dialect in (Builtin, ROM, PROGRAM):
        context.load_dialect(dialect)
    module = Parser(context, str(ModuleOp([one.clone() for one in queues]))).parse_module()
    module.verify()
    return [one for one in module.ops if isinstance(one, QueueOp)]


def test_words_and_hardware_of_the_text(compiled_chip: tuple[Program, Path]) -> None:
    program, out = compiled_chip
    images, layout = Images(program, out), layout_of(program)
    again = parsed(list(layout.encoded.values()))
    for queue in again:
        name, form = queue.queue.data, queue.form
        scales = single_scales(program, images) if name == "matrix" else {}
        words = [word_of(form, one, scales) for one in queue.descriptors]
        held = descriptor_words(layout, name, images)
        rows = held if held.ndim == 2 else held[:, None].view(np.uint8)
        assert [int.from_bytes(row.tobytes(), "little") for row in rows][: len(words)] == words
        # A word says what the descriptor says, and its wires carry that.
        for word, one, wires in zip(
            words, queue.descriptors, descriptor_wires(layout, name, images), strict=True
        ):
            numbers = {n: scales[v] if isinstance(v, str) else v for n, v in one.numbers.items()}
            waits = {f"wait_{other}": count for other, count in one.counts.items()}
            assert {n: v for n, v in form.unpack(word).items() if v} == {
                n: v for n, v in {**waits, **numbers}.items() if v
            }
            assert wires == {n: v & (1 << queue.unit_fields[n]) - 1 for n, v in numbers.items()}
    assert chip_design(with_queues(layout, again)).text() == chip_design(layout).text()


def test_descriptors_are_those_of_the_program(compiled_chip: tuple[Program, Path]) -> None:
    program, _ = compiled_chip
    layout = layout_of(program)
    blocks = {block.name: block for block in program.blocks}
    for (_, name), queue in layout.encoded.items():
        expected = [
            (block.name, instance, number)
            for block in program.blocks
            for instance in range(len(block.instances))
            for number, one in enumerate(block.instructions)
            if one.queue == name
        ]
        assert [one.at for one in queue.descriptors] == expected
        for one in queue.descriptors:
            block, instance, number = one.at
            instruction = blocks[block].instructions[number]
            assert one.opcode.data == instruction.opcode
            onnx = instruction.onnx[min(instance, len(instruction.onnx) - 1)]
            assert [n.data for n in one.onnx or ()] == list(onnx)


def test_all_that_cannot_be_encoded_is_said(compiled_chip: tuple[Program, Path]) -> None:
    """Fractions that no shift reaches: each instruction of the vector unit with its node."""
    program, _ = compiled_chip
    layout = layout_of(program)
    norms = [
        one.writes[0]
        for block in program.blocks
        for one in block.instructions
        if one.opcode in ("rms_norm", "tap")
    ]
    assert len(norms) > 1
    buffers = {
        name: replace(one, type=replace(one.type, fraction=4000)) if name in norms else one
        for name, one in layout.program.buffers.items()
    }
    changed = replace(layout.program, buffers=buffers)
    with pytest.raises(UserError) as error:
        _ = replace(layout, program=changed).encoded
    said = str(error.value)
    assert "does not fit the 7 signed bits of 'fraction'" in said
    assert said.count("node '") > 1 and "(quantize" in said
