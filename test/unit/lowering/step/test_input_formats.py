"""Formats of single matrices' inputs: by role, by node, where layers share and where they do not."""

from __future__ import annotations

from dataclasses import replace

import pytest
from xdsl.context import Context
from xdsl.dialects.builtin import Builtin, ModuleOp
from xdsl.parser import Parser

from intaglio.backend.target.target import load_target
from intaglio.dialects import rom
from intaglio.dialects.errors import UserError
from intaglio.lowering.step.input_formats import told_formats

MACHINE = load_target("roma-mini").machine()
LAYER = """
rom.parameter @m0 : !rom.tensor<[24, 8], int4, group 8> {{key = "m0", zero = 8 : i64, peak = 0.5 : f64}}
rom.parameter @m1 : !rom.tensor<[24, 8], int4, group 8> {{key = "m1", zero = 8 : i64, peak = 0.5 : f64}}
rom.parameter @o0 : !rom.tensor<[8, 8], int4, group 8> {{key = "o0", zero = 8 : i64, peak = 0.5 : f64}}
rom.parameter @o1 : !rom.tensor<[8, 8], int4, group 8> {{key = "o1", zero = 8 : i64, peak = 0.5 : f64}}
rom.parameter @head : !rom.tensor<[8, 8], int4, group 8> {{key = "h", zero = 8 : i64, peak = 0.5 : f64}}
rom.parameter @emb : !rom.tensor<[8, 8], float32> {{key = "e", peak = 0.5 : f64}}
rom.cache @k0 : !rom.kv<16, 2, 4, float32>
rom.cache @v0 : !rom.kv<16, 2, 4, float32>
rom.cache @k1 : !rom.kv<16, 2, 4, float32>
rom.cache @v1 : !rom.kv<16, 2, 4, float32>
rom.layer @decoder {{
^bb0(%p: index, %x: tensor<8xf32>):
  rom.slot @w : !rom.tensor<[24, 8], int4, group 8>
  rom.slot @o : !rom.tensor<[8, 8], int4, group 8>
  rom.slot @k : !rom.kv<16, 2, 4, float32>
  rom.slot @v : !rom.kv<16, 2, 4, float32>
  %m = rom.linear %x by @w {{onnx = [["/0/qkv/MatMul"], ["/1/qkv/MatMul"]]}} : tensor<8xf32> -> tensor<24xf32>
  %q = rom.slice %m from 0 {{onnx = [["s"], ["s"]]}} : tensor<24xf32> -> tensor<8xf32>
  %a = rom.slice %m from 8 {{onnx = [["s"], ["s"]]}} : tensor<24xf32> -> tensor<8xf32>
  %b = rom.slice %m from 16 {{onnx = [["s"], ["s"]]}} : tensor<24xf32> -> tensor<8xf32>
  rom.append %a to @k at %p {{onnx = [["a"], ["a"]]}} : tensor<8xf32>
  rom.append %b to @v at %p {{onnx = [["a"], ["a"]]}} : tensor<8xf32>
  %c = rom.attention %q over @k, @v at %p {{heads = 2 : i64, scale = 0.5 : f64, onnx = [["a"], ["a"]]}} : tensor<8xf32> -> tensor<8xf32>
  %y = rom.linear %c by @o {{onnx = [["/0/o/MatMul"], ["/1/o/MatMul"]]}} : tensor<8xf32> -> tensor<8xf32>
  rom.yield %y : tensor<8xf32>
}}
rom.step @decode context 16 {{
^bb0(%token: i32, %p: index):
  %x = rom.embed %token of @emb {{onnx = [["e"]]}} : tensor<8xf32>
  %y = rom.repeat @decoder at %p (%x) instances [{{w = @m0, o = @o0, k = @k0, v = @v0}}, {{w = @m1, o = @o1, k = @k1, v = @v1}}] : (tensor<8xf32>) -> tensor<8xf32>
  %z = rom.linear %y by @head {{onnx = [["/output/MatMul"]]}} : tensor<8xf32> -> tensor<8xf32>
  %next = rom.sample %z {{onnx = [["argmax"]]}} : tensor<8xf32>
  rom.emit %z, %next : tensor<8xf32>
}}
"""


@pytest.fixture(scope="module")
def module() -> ModuleOp:
    ctx = Context(allow_unregistered=True)
    ctx.load_dialect(Builtin)
    ctx.load_dialect(rom.ROM)
    return Parser(ctx, LAYER.format()).parse_module()


def formats(module: ModuleOp, *told: str) -> dict[str, str]:
    """By the matrix (or the slot that it is bound to)."""
    found = told_formats(module, replace(MACHINE, activations_of=told))
    return {op.weights.root_reference.data: fmt for op, fmt in found.items()}  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ((), {}),
        (("qkv_proj=int16",), {"w": "int16"}),
        (("k_proj=half8",), {"w": "half8"}),
        (("q_proj=int16", "k_proj=int16", "o_proj=mxint8"), {"w": "int16", "o": "mxint8"}),
        (("lm_head=int16",), {"head": "int16"}),
        (("/output/=int16",), {"head": "int16"}),
        (("o/MatMul=half8",), {"o": "half8"}),
        (("MatMul=half8",), {"w": "half8", "o": "half8", "head": "half8"}),
        # The first that fits decides.
        (("o_proj=int16", "MatMul=half8"), {"w": "half8", "o": "int16", "head": "half8"}),
        (("MatMul=half8", "o_proj=int16"), {"w": "half8", "o": "half8", "head": "half8"}),
        # A name of a tensor that only the step has.
        (("head=int8",), {"head": "int8"}),
    ],
)
def test_names(module: ModuleOp, told: tuple[str, ...], expected: dict[str, str]) -> None:
    assert formats(module, *told) == expected


@pytest.mark.parametrize(
    ("told", "message"),
    [
        (("gate_proj=int16",), "no matrix is called 'gate_proj'"),
        (("o_prj=int16",), "did you mean 'o_proj'?"),
        (("nope=int16",), "this model has k_proj, lm_head, o_proj, q_proj, qkv_proj, v_proj"),
        (("/0/o=int16",), "fits the matrices of some layers only"),
        (("o1=int16",), "name what all of them have: o_proj"),
        (("q_proj=int16", "k_proj=int8"), "q_proj is told int16, k_proj is told int8, but one"),
    ],
)
def test_refusals(module: ModuleOp, told: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError) as caught:
        formats(module, *told)
    assert message in str(caught.value)
