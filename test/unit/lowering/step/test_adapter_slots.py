"""Slots beside the matrices: what the pass adds, and that it adds nothing else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from xdsl.context import Context
from xdsl.dialects.builtin import SymbolRefAttr
from xdsl.rewriter import InsertPoint, Rewriter

from intaglio.dialects import rom
from intaglio.dialects.errors import UserError
from intaglio.dialects.fabric import MachineOp, matrix_shape
from intaglio.dialects.formula import parse
from intaglio.dialects.machine import Machine
from intaglio.dialects.program import InstructionOp, ProgramOp
from intaglio.dialects.semantics import pre_shift, slot_bits
from intaglio.lowering.place.place import FabricPlace
from intaglio.lowering.schedule import durations
from intaglio.lowering.schedule.schedule import ProgramSchedule
from intaglio.lowering.step.adapter_slots import RomAdapterSlots
from intaglio.lowering.step.fuse_residual import RomFuseResidual
from intaglio.lowering.step.legalize import RomLegalize
from intaglio.lowering.step.sites import ROLES

RELAXED = settings(
    max_examples=15,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def instructions(module: Any) -> list[tuple[str, InstructionOp]]:
    """The scheduled program's instructions with their blocks."""
    FabricPlace().apply(Context(), module)
    ProgramSchedule().apply(Context(), module)
    module.verify()
    (program,) = (op for op in module.ops if isinstance(op, ProgramOp))
    return [(block.sym_name.data, one) for block in program.blocks for one in block.instructions]


def is_slot_product(one: InstructionOp) -> bool:
    """Whether it multiplies with a slot, by its name."""
    weights = one.uses.data.get("weights")
    return isinstance(weights, SymbolRefAttr) and weights.root_reference.data[-2:] in ("_A", "_B")


PEAKED = ("quantize", "rms_norm")
"""Their first pass may be left out, where what they read comes with its largest magnitude."""


@RELAXED
@given(data=st.data())
def test_every_instruction_of_the_base_stays(
    data: st.DataObject, integers: Any, decoders: Any, mini: Machine, work: Any
) -> None:
    """The instructions without those of slots are the base's, and take what they take there, though
    behind a product with a slot a pass may be cut otherwise, and that for the largest magnitude may
    be one of its own: a product leaves that of its results where a slot's product does not follow.
    """
    model = data.draw(decoders)
    roles = data.draw(st.lists(st.sampled_from(ROLES), unique=True, min_size=1))
    rank = data.draw(st.integers(1, 9))
    base = instructions(integers(model, mini))
    module = integers(model, mini, rank, tuple(roles))
    sites = [op for op in module.ops if isinstance(op, rom.SiteOp)]
    assert len(sites) == model.layers * len(roles)
    changed = instructions(module)

    def content(found: list[tuple[str, InstructionOp]]) -> list[tuple[Any, ...]]:
        whole: dict[tuple[str, int], list[InstructionOp]] = {}
        for block, one in found:
            whole.setdefault((block, one.part.of_instruction), []).append(one)
        return [
            (
                block,
                one.opcode.data,
                one.queue.data,
                str(one.uses),
                str(one.onnx),
                [taken[:3] for taken in work(beats, model.capacity)[-1:]],
                work(beats, model.capacity)[:-1] if one.opcode.data not in PEAKED else (),
            )
            for (block, _), beats in whole.items()
            for one in beats[:1]
        ]

    added = [(b, i) for b, i in changed if is_slot_product(i)]
    hidden = {w for _, i in added for w in i.writes if len(i.reads) == 1}
    # Between the two products of a site the hidden vector is quantised.
    added += [
        (b, i) for b, i in changed if i.opcode.data == "quantize" and i.reads.data[0] in hidden
    ]
    kept = [found for found in changed if found not in added]
    assert sorted(content(kept)) == sorted(content(base))


@pytest.mark.parametrize("code", ["fp8", "int8"])
def test_products_with_slots(integers: Any, decoder: Any, mini: Machine, code: str) -> None:
    machine = replace(mini, adapter=code)
    found = instructions(integers(decoder, machine, 6, ("down_proj",)))
    first, second = (one for _, one in found if "rank" in one.duration.data)
    hidden, inner = decoder.hidden, decoder.hidden + 5
    for one, rows, columns in ((first, 6, inner), (second, hidden, 6)):
        assert (one.opcode.data, one.queue.data) == ("matvec", "attention")
        shape = matrix_shape(rom.AdapterType((rows, columns), code))
        floor = durations.score_drain(machine, decoder.heads // decoder.kv_heads)
        pace, duration = durations.slot_beat(machine, shape, first=one is first, floor=floor)
        assert one.duration.data == str(duration) and one.pace is not None
        assert one.pace.data == str(pace)
        assert one.arguments is not None
        bits = slot_bits(code, columns, machine.activations)
        assert one.arguments.data["pre_shift"].value.data == pre_shift(bits)
    # The residual is what the base's product wrote.
    assert len(first.reads) == 1 and len(second.reads) == 2


def test_a_larger_rank_takes_no_less_time(integers: Any, decoder: Any, mini: Machine) -> None:
    found = instructions(integers(decoder, mini, 64))
    formulas = {one.duration.data for _, one in found if "rank" in one.duration.data}
    assert formulas
    for text in formulas:
        cycles = [parse(text)(rank=rank) for rank in range(65)]
        assert cycles == sorted(cycles) and cycles[64] > cycles[0]


def test_the_largest_adapter_counts_for_retention(
    integers: Any, decoder: Any, mini: Machine
) -> None:
    """A token with an adapter of the slots' rank must end before cells lose their values."""
    (base,) = {
        max(int(f) for f in one.finish.get_values())
        for _, one in instructions(integers(decoder, mini, 64))[-1:]
        if one.finish is not None
    }
    instructions(integers(decoder, replace(mini, retention_cycles=base + 4000), 64))
    with pytest.raises(UserError, match="without being read"):
        instructions(integers(decoder, replace(mini, retention_cycles=base + 1), 64))


def test_slots_beside_a_constant_branch(from_text: Any, mini: Machine) -> None:
    """Of the graph's own adapter stays what was: its code, and its place in the base's product."""
    text = """
    rom.parameter @w : !rom.tensor<[8, 8], int4, group 4> {key = "w", zero = 8 : i64, peak = 1.0}
    rom.parameter @la : !rom.adapter<[2, 8], int4, group 4> {key = "la", zero = 8 : i64, peak = 1.0}
    rom.parameter @lb : !rom.adapter<[8, 2], int4, group 2> {key = "lb", zero = 8 : i64, peak = 1.0}
    rom.parameter @e : !rom.tensor<[8, 8], float32> {key = "e", peak = 1.0}
    rom.cache @k : !rom.kv<16, 2, 4, float32>
    rom.cache @v : !rom.kv<16, 2, 4, float32>
    rom.step @decode context 16 {
    ^bb0(%token: i32, %p: index):
      %x = rom.embed %token of @e {onnx = [["e"]]} : T
      rom.append %x to @k at %p {onnx = [["k"]]} : T
      rom.append %x to @v at %p {onnx = [["v"]]} : T
      %o = rom.attention %x over @k, @v at %p
        {heads = 2 : i64, scale = 0.5 : f64, onnx = [["a"]]} : T -> T
      %a = rom.linear %o by @la {onnx = [["la"]]} : T -> tensor<2xf32>
      %b = rom.linear %a by @lb {onnx = [["lb"]]} : tensor<2xf32> -> T
      %y = rom.linear %o by @w {onnx = [["w"]]} : T -> T
      %s = rom.add %y, %b {onnx = [["s"]]} : T, T -> T
      %z = rom.add %x, %s {onnx = [["z"]]} : T, T -> T
      %next = rom.sample %z {onnx = [["n"]]} : T
      rom.emit %z, %next : T
    }
    """
    text = text.replace("T ", "tensor<8xf32> ").replace("T\n", "tensor<8xf32>\n")
    text = text.replace("T,", "tensor<8xf32>,").replace("1.0}", "1.0 : f64}")
    module = from_text(text)
    Rewriter.insert_op(MachineOp(mini), InsertPoint.at_start(module.body.block))
    for one in (RomAdapterSlots(3), RomLegalize(), RomFuseResidual()):
        one.apply(Context(), module)
        module.verify()
    products = {
        op.weights.root_reference.data: op.residual is not None
        for op in module.walk()
        if isinstance(op, rom.RequantizeOp)
    }
    assert products == {
        "la": False,
        "lb": False,
        "w": True,
        "layers_0_o_proj_A": False,
        "layers_0_o_proj_B": True,
    }
    codes = {
        op.sym_name.data: op.type.code.data
        for op in module.ops
        if isinstance(op, rom.ParameterOp) and isinstance(op.type, rom.AdapterType)
    }
    assert codes["la"] == codes["lb"] == "int4" and codes["layers_0_o_proj_A"] == "fp8"
