"""Products of the longest rows: exact, or refused with the formats that would do."""

from __future__ import annotations

import pytest
from xdsl.context import Context
from xdsl.dialects.builtin import Builtin
from xdsl.parser import Parser

from intaglio.backend.target.attach import AttachTarget
from intaglio.dialects import rom
from intaglio.dialects.errors import UserError
from intaglio.lowering.step.legalize import RomLegalize
from intaglio.universe import INTAGLIO

TEXT = """
rom.parameter @w : !rom.tensor<[64, {columns}], {code}, group 32{zeros}>
  {{key = "w", peak = 1.0 : f64}}
rom.parameter @e : !rom.tensor<[16, {columns}], float32> {{key = "e", peak = 1.0 : f64}}
rom.cache @k : !rom.kv<128, 2, 16, float32>

rom.step @decode context 128 {{
^bb0(%token: i32, %position: index):
  %x = rom.embed %token of @e {{onnx = [["Gather"]]}} : tensor<{columns}xf32>
  %y = rom.linear %x by @w {{onnx = [["/layers.0/down"]]}} : tensor<{columns}xf32> -> tensor<64xf32>
  %s = rom.sample %y {{onnx = [["head"]]}} : tensor<64xf32>
  rom.emit %y, %s : tensor<64xf32>
}}
"""


def width(code: str, columns: int, fmt: str) -> int:
    """Bits of the accumulator of a product on roma."""
    zeros = "" if code == "ternary" else ", zeros"
    context = Context()
    for name, make in {**INTAGLIO.all_dialects, "builtin": lambda: Builtin}.items():
        context.register_dialect(name, make)
    text = TEXT.format(code=code, columns=columns, zeros=zeros)
    module = Parser(context, text).parse_module()
    AttachTarget("roma", (f"activations={fmt}",)).apply(context, module)
    RomLegalize().apply(context, module)
    module.verify()
    (dot,) = (op for op in module.walk() if isinstance(op, rom.DotOp))
    assert isinstance(dot.output.type, rom.AccumulatorType)
    return dot.output.type.bits.data


@pytest.mark.parametrize("columns", [16_384, 53_248])
@pytest.mark.parametrize(
    ("code", "fmt", "bits"),
    [
        ("int4", "half8", 58), ("int4", "mxint8", 56), ("int8", "mxint8", 60),
        ("ternary", "half8", 56), ("ternary", "mxint8", 54), ("int8", "int8", 45),
    ],
)  # fmt: skip
def test_exact(code: str, fmt: str, bits: int, columns: int) -> None:
    """Hidden 16,384, and FFN 53,248 with two bits more."""
    assert width(code, columns, fmt) == bits + 2 * (columns > 16_384)


@pytest.mark.parametrize("columns", [28_672, 53_248])
def test_refused(columns: int) -> None:
    """int8 weights of any zero point with half steps: powers of two, or one scale, would do."""
    assert width("int8", 16_384, "half8") == 62
    with pytest.raises(UserError, match=f"for {columns} inputs of half8") as error:
        width("int8", columns, "half8")
    assert error.value.node == "/layers.0/down"
    assert error.value.hint == "--set activations=mxint8, or --set activations=int8"


def test_no_format_helps() -> None:
    """Where none would do, none is named."""
    with pytest.raises(UserError, match="inputs of int8 are beyond") as error:
        width("int8", 1 << 32, "int8")
    assert error.value.hint is None
