"""Which format a product's input gets, and what is said where it is not the graph's own."""

from __future__ import annotations

import pytest
from xdsl.context import Context
from xdsl.dialects.builtin import Builtin, ModuleOp
from xdsl.parser import Parser

from intaglio.backend.target.target import load_target
from intaglio.dialects import rom
from intaglio.dialects.machine import Machine
from intaglio.lowering.step.input_formats import input_format
from intaglio.lowering.step.legalize import substituted

MODULE = """
rom.parameter @w : !rom.tensor<[96, 64], ternary> {key = "w", zero = 1 : i64, peak = 0.5 : f64}
%x = "test.op"() : () -> tensor<64xf32>
%y = rom.linear %x by @w {activation = "int8", onnx = [["y"]]} : tensor<64xf32> -> tensor<96xf32>
%z = rom.linear %x by @w {onnx = [["z"]]} : tensor<64xf32> -> tensor<96xf32>
"""


@pytest.fixture
def module() -> ModuleOp:
    """One product whose input the graph rounds, and one whose input it does not."""
    ctx = Context(allow_unregistered=True)
    ctx.load_dialect(Builtin)
    ctx.load_dialect(rom.ROM)
    return Parser(ctx, MODULE).parse_module()


def machine(activations: str) -> Machine:
    """A small target with other activations."""
    return load_target("roma-mini").with_options([f"activations={activations}"]).machine()


@pytest.mark.parametrize(
    ("activations", "rounded", "warns"),
    [("int8", "int8", False), ("int16", "int8", False), ("fp8", "fp8", True)],
)
def test_the_format_of_a_product(module, activations, rounded, warns):
    target = machine(activations)
    first, second = (op for op in module.walk() if isinstance(op, rom.LinearOp))
    assert input_format(first, target, {}) == rounded
    assert input_format(second, target, {}) == activations
    warnings = substituted(module, target)
    assert len(warnings) == warns
    assert not warns or "roma-mini takes fp8 instead" in warnings[0]
