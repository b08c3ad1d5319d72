"""Formats of single matrices' inputs: by role or node, where layers share and where not."""

from __future__ import annotations

from dataclasses import replace

import pytest
from xdsl.context import Context
from xdsl.dialects.builtin import Builtin, ModuleOp
from xdsl.parser import Parser

from intaglio.backend.target.target import load_target
from intaglio.dialects import rom
from intaglio.dialects.errors import UserError
from intaglio.lowering.step.input_formats import told_formats, unheard, wide_blocks

MACHINE = load_target("roma-mini").machine()
SQUARE, QKV = "!rom.tensor<[8, 8], int4, group 8>", "!rom.tensor<[24, 8], int4, group 8>"
KV, VECTOR = "!rom.kv<16, 2, 4, float32>", "tensor<8xf32>"
BOTH = 'onnx = [["a"], ["a"]]'
MATRICES = {"m0": QKV, "m1": QKV, "o0": SQUARE, "o1": SQUARE, "head": SQUARE}
LINES = (
    *(
        f'rom.parameter @{n} : {kind} {{key = "{n}", zero = 8 : i64, peak = 0.5 : f64}}'
        for n, kind in MATRICES.items()
    ),
    'rom.parameter @emb : !rom.tensor<[8, 8], float32> {key = "e", peak = 0.5 : f64}',
    *(f"rom.cache @{n} : {KV}" for n in ("k0", "v0", "k1", "v1")),
    "rom.layer @decoder {",
    f"^bb0(%p: index, %x: {VECTOR}):",
    f"rom.slot @w : {QKV}",
    f"rom.slot @o : {SQUARE}",
    f"rom.slot @k : {KV}",
    f"rom.slot @v : {KV}",
    (
        '%m = rom.linear %x by @w {onnx = [["/0/qkv/MatMul"], ["/1/qkv/MatMul"]]} '
        f": {VECTOR} -> tensor<24xf32>"
    ),
    *(
        f"%{n} = rom.slice %m from {at} {{{BOTH}}} : tensor<24xf32> -> {VECTOR}"
        for n, at in (("q", 0), ("a", 8), ("b", 16))
    ),
    f"rom.append %a to @k at %p {{{BOTH}}} : {VECTOR}",
    f"rom.append %b to @v at %p {{{BOTH}}} : {VECTOR}",
    (
        f"%c = rom.attention %q over @k, @v at %p {{heads = 2 : i64, scale = 0.5 : f64, {BOTH}}} "
        f": {VECTOR} -> {VECTOR}"
    ),
    (
        '%y = rom.linear %c by @o {onnx = [["/0/o/MatMul"], ["/1/o/MatMul"]]} '
        f": {VECTOR} -> {VECTOR}"
    ),
    f"rom.yield %y : {VECTOR}",
    "}",
    "rom.step @decode context 16 {",
    "^bb0(%token: i32, %p: index):",
    f'%x = rom.embed %token of @emb {{onnx = [["e"]]}} : {VECTOR}',
    (
        "%y = rom.repeat @decoder at %p (%x) instances [{w = @m0, o = @o0, k = @k0, v = @v0}, "
        f"{{w = @m1, o = @o1, k = @k1, v = @v1}}] : ({VECTOR}) -> {VECTOR}"
    ),
    f'%z = rom.linear %y by @head {{onnx = [["/output/MatMul"]]}} : {VECTOR} -> {VECTOR}',
    f'%next = rom.sample %z {{onnx = [["argmax"]]}} : {VECTOR}',
    f"rom.emit %z, %next : {VECTOR}",
    "}",
)


@pytest.fixture(scope="module")
def module() -> ModuleOp:
    ctx = Context(allow_unregistered=True)
    ctx.load_dialect(Builtin)
    ctx.load_dialect(rom.ROM)
    return Parser(ctx, "\n".join(LINES)).parse_module()


def formats(module: ModuleOp, *told: str) -> dict[str, str]:
    """By the matrix (or the slot that it is bound to)."""
    found = told_formats(module, replace(MACHINE, activations_of=told))
    return {str(op.properties["weights"]).lstrip("@"): fmt for op, fmt in found.items()}


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


@pytest.mark.parametrize(
    ("told", "said"),
    [
        (("o_proj=int16", "MatMul=half8"), None),
        (("MatMul=half8", "o_proj=half8"), None),
        (("qkv_proj=int16", "q_proj=int16"), None),
        (
            ("MatMul=half8", "o_proj=int16"),
            "activations.o_proj=int16 says nothing: activations.Mat",
        ),
    ],
)
def test_settings_that_say_nothing(
    module: ModuleOp, told: tuple[str, ...], said: str | None
) -> None:
    found = unheard(module, replace(MACHINE, activations_of=told))
    assert [said in one for one in found if said is not None] == [True] * (said is not None)
    assert bool(found) == (said is not None)


def wide(
    module: ModuleOp, told: tuple[str, ...], **machine: str | tuple[str, ...]
) -> dict[str, set[int]]:
    """The wide blocks of inputs of 8 in blocks of 4, by the matrix."""
    chip = replace(MACHINE, **{"activations": "half8", "block": 4, **machine}, wide_of=told)
    found = wide_blocks(module, chip, told_formats(module, chip))
    return {str(op.properties["weights"]).lstrip("@"): set(of) for op, of in found.items()}


def test_wide_blocks(module: ModuleOp) -> None:
    assert wide(module, ()) == {}
    assert wide(module, ("qkv_proj=1", "o_proj=all")) == {"w": {1}, "o": {0, 1}}
    assert wide(module, ("MatMul=0-1",)) == {"w": {0, 1}, "o": {0, 1}, "head": {0, 1}}
    # int16 is all blocks of a chip that has some, where none are told.
    told = ("o_proj=int16", "lm_head=int8")
    assert wide(module, (), activations_of=told) == {"o": {0, 1}}
    assert wide(module, ("o_proj=1",), activations_of=told) == {"o": {1}}
    assert wide(module, (), activations="int8", activations_of=told) == {}
    own = ("o_proj=mxint8",)
    assert wide(module, ("o_proj=0",), activations="int8", activations_of=own) == {"o": {0}}


@pytest.mark.parametrize(
    ("told", "machine", "message"),
    [
        (("o_proj=2",), {}, "block 2 is to be wide; an input of 8 has 2 blocks of 4, from 0 to 1"),
        (("o_proj=0",), {"activations": "int8"}, "half8 and mxint8, and this input is int8"),
        (("o_proj=0",), {"activations_of": ("o_proj=int8",)}, "and this input is int8"),
        (("o_prj=0",), {}, "so its input cannot have wide blocks"),
        (("q_proj=0", "v_proj=1"), {}, "--set wide.qkv_proj=BLOCKS"),
    ],
)
def test_wide_refusals(
    module: ModuleOp,
    told: tuple[str, ...],
    machine: dict[str, str | tuple[str, ...]],
    message: str,
) -> None:
    with pytest.raises(UserError) as caught:
        wide(module, told, **machine)
    assert message in str(caught.value)
