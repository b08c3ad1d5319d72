"""Which runs of layers are found, and what keeps them from being outlined."""

from __future__ import annotations

import time
from collections.abc import Sequence

import pytest
from xdsl.context import Context
from xdsl.dialects.builtin import FloatAttr, IndexType, ModuleOp, f64, i32
from xdsl.ir import Block, Operation, Region, SSAValue

from intaglio.dialects import rom
from intaglio.lowering.step.outline_layers import RomOutlineLayers

WIDTH = 8


class Model:
    """A chain of layers: norm, linear (`bits` of each layer), append, residual add."""

    def __init__(self) -> None:
        self.declarations: list[Operation] = []
        self.block = Block(arg_types=[i32, IndexType()])
        self.declare("table", rom.ROMTensorType([16, WIDTH], "float32"))
        self.declare("head", rom.ROMTensorType([16, WIDTH], "int4", 8), 8)
        embed = rom.EmbedOp(self.block.args[0], "table", rom.nodes("embed"), vector())
        self.x: SSAValue = self.add(embed)
        self.residuals: list[SSAValue] = [self.x]

    def declare(self, name: str, type_, zero: int | None = None) -> str:
        self.declarations.append(rom.ParameterOp(name, type_, f"onnx::{name}", zero=zero))
        return name

    def add(self, op: Operation) -> SSAValue:
        self.block.add_op(op)
        return op.results[0]

    def layer(
        self, number: int, *, bits: int = 4, zero: int = 8, eps: float = 1e-5, skip=None
    ) -> None:
        gamma = self.declare(f"layers_{number}_norm", rom.ROMTensorType([WIDTH], "float32"))
        matrix = rom.ROMTensorType([WIDTH, WIDTH], f"int{bits}", 8)
        weights = self.declare(f"layers_{number}_proj", matrix, zero)
        cache = f"past_{number}_key"
        self.declarations.append(rom.CacheOp(cache, rom.KVType(16, 1, WIDTH, "float32")))
        norm = self.add(
            rom.RMSNormOp(self.x, gamma, FloatAttr(eps, f64), rom.nodes(f"norm.{number}"))
        )
        y = self.add(rom.LinearOp(norm, weights, rom.nodes(f"proj.{number}"), vector()))
        self.block.add_op(rom.AppendOp(y, cache, self.block.args[1], rom.nodes(f"append.{number}")))
        self.x = self.add(rom.AddOp(skip or self.x, y, rom.nodes(f"add.{number}")))
        self.residuals.append(self.x)

    def finish(self, *also: SSAValue) -> ModuleOp:
        for value in also:
            self.x = self.add(rom.MulOp(self.x, value, rom.nodes("mul")))
        logits = self.add(rom.LinearOp(self.x, "head", rom.nodes("head"), rom.float_vector(16)))
        token = self.add(rom.SampleOp(logits, rom.nodes("head")))
        self.block.add_op(rom.EmitOp(logits, token))
        step = rom.StepOp("decode", 16, Region(self.block))
        module = ModuleOp([*self.declarations, step])
        module.verify()
        return module


def vector():
    return rom.float_vector(WIDTH)


def outlined(module: ModuleOp) -> list[int]:
    """Numbers of instances of each repeat."""
    RomOutlineLayers().apply(Context(), module)
    module.verify()
    return [len(op.instances) for op in module.walk() if isinstance(op, rom.RepeatOp)]


def names(module: ModuleOp) -> list[str]:
    """All names of ONNX nodes, layer by layer."""
    found = []
    for op in module.walk():
        if isinstance(op, rom.OperatorOp):
            found += [name.data for one in op.properties["onnx"] for name in one]  # pyright: ignore
    return sorted(found)


@pytest.mark.parametrize("count", [2, 3, 7])
def test_equal_layers(count):
    model = Model()
    for i in range(count):
        model.layer(i)
    module = model.finish()
    before = names(module)
    assert outlined(module) == [count]
    assert names(module) == before
    (layer,) = (op for op in module.walk() if isinstance(op, rom.LayerOp))
    assert [slot.sym_name.data for slot in layer.slots] == ["norm", "proj", "key"]
    assert outlined(module) == [count], "a second run changes nothing"


def test_one_layer_stays():
    model = Model()
    model.layer(0)
    assert outlined(model.finish()) == []


def test_layers_of_different_bits():
    model = Model()
    for i in range(3):
        model.layer(i, bits=8, zero=128)
    for i in range(3, 8):
        model.layer(i)
    module = model.finish()
    assert outlined(module) == [3, 5]
    assert [op.sym_name.data for op in module.walk() if isinstance(op, rom.LayerOp)] == [
        "layer",
        "layer_2",
    ]


def test_alternating_layers():
    model = Model()
    for i in range(6):
        model.layer(i, eps=1e-5 if i % 2 else 1e-6)
    module = model.finish()
    assert outlined(module) == [3]
    (layer,) = (op for op in module.walk() if isinstance(op, rom.LayerOp))
    assert [slot.sym_name.data for slot in layer.slots] == [
        "norm",
        "proj",
        "key",
        "norm_2",
        "proj_2",
        "key_2",
    ]


def test_default_zero_points_are_part_of_the_structure():
    model = Model()
    for i, zero in enumerate([8, 8, 7, 7]):
        model.layer(i, zero=zero)
    assert outlined(model.finish()) == [2, 2]


def test_value_of_a_middle_layer_used_later():
    """Layers up to the one that is read later form a run of their own."""
    model = Model()
    for i in range(6):
        model.layer(i)
    assert outlined(model.finish(model.residuals[3])) == [3, 3]


def test_every_layer_used_later():
    model = Model()
    for i in range(4):
        model.layer(i)
    assert outlined(model.finish(*model.residuals)) == []


def test_invariant_value_is_carried_unchanged():
    """Every layer adds the embedding instead of its own input."""
    model = Model()
    embedding = model.x
    for i in range(4):
        model.layer(i, skip=embedding)
    module = model.finish()
    assert outlined(module) == [4]
    (repeat,) = (op for op in module.walk() if isinstance(op, rom.RepeatOp))
    assert len(repeat.inputs) == 2
    (layer,) = (op for op in module.walk() if isinstance(op, rom.LayerOp))
    end = layer.body.block.last_op
    assert isinstance(end, rom.YieldOp)
    assert end.values[1] is layer.body.block.args[2]


def test_skipping_over_a_layer_is_not_outlined():
    model = Model()
    for i in range(4):
        model.layer(i, skip=model.residuals[-2] if i else None)
    assert all(count < 4 for count in outlined(model.finish()))


def test_long_models_take_linear_time():
    model = Model()
    for i in range(400):
        model.layer(i)
    module = model.finish()
    start = time.perf_counter()
    RomOutlineLayers().apply(Context(), module)
    assert time.perf_counter() - start < 5
    assert len(list(module.walk())) < 2000


def instances(module: ModuleOp) -> Sequence[dict[str, str]]:
    (repeat,) = (op for op in module.walk() if isinstance(op, rom.RepeatOp))
    return [
        {slot: buffer.root_reference.data for slot, buffer in one.data.items()}  # pyright: ignore
        for one in repeat.instances
    ]


def test_instances_bind_their_own_buffers():
    model = Model()
    for i in range(2):
        model.layer(i)
    module = model.finish()
    outlined(module)
    assert instances(module) == [
        {"norm": f"layers_{i}_norm", "proj": f"layers_{i}_proj", "key": f"past_{i}_key"}
        for i in range(2)
    ]
