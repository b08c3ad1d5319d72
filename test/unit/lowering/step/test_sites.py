"""Roles of matrices, found by what their results are for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp

from intaglio.dialects.errors import UserError
from intaglio.lowering.step.outline_layers import RomOutlineLayers
from intaglio.lowering.step.sites import ROLES, bodies, check_unique, names, selected

FromText = Callable[[str], ModuleOp]


def found(module: ModuleOp) -> dict[str, tuple[str, int, int]]:
    """Each site's matrix (as its block calls it), first row and rows."""
    sites: dict[str, tuple[str, int, int]] = {}
    for body in bodies(module):
        for instance in range(len(body.first)):
            for place in body.places:
                matrix = place.linear.weights.root_reference.data
                sites[body.site(place, instance)] = (matrix, place.first_row, place.rows)
    return sites


@pytest.mark.parametrize("outline", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_a_decoder_with_packed_projections(
    from_text: FromText, decoder: Any, outline: bool, bias: bool
) -> None:
    model = replace(decoder, layers=3, bias=bias)
    module = from_text(model.text())
    if outline:
        RomOutlineLayers().apply(Context(), module)
    sites = found(module)
    assert names(bodies(module)) == [f"layers.{i}.{role}" for i in range(3) for role in ROLES]
    size, kv = model.heads * model.width, model.kv_heads * model.width
    prefix = "" if outline else "layers_2_"
    assert sites["layers.2.q_proj"] == (f"{prefix}qkv", 0, size)
    assert sites["layers.2.k_proj"] == (f"{prefix}qkv", size, kv)
    assert sites["layers.2.v_proj"] == (f"{prefix}qkv", size + kv, kv)
    assert sites["layers.2.o_proj"] == (f"{prefix}o", 0, model.hidden)
    assert sites["layers.2.gate_proj"] == (f"{prefix}gate", 0, model.hidden + 5)
    assert sites["layers.2.up_proj"] == (f"{prefix}up", 0, model.hidden + 5)
    assert sites["layers.2.down_proj"] == (f"{prefix}down", 0, model.hidden)


def block(*lines: str, matrices: dict[str, tuple[int, int]]) -> str:
    """A step with one attention of two heads of width 4, on %x of 8 elements."""
    declared = [
        f'rom.parameter @{name} : !rom.tensor<[{n}, {k}], int4, group 4> {{key = "{name}"}}'
        for name, (n, k) in {**matrices, "q": (8, 8), "k": (8, 8), "v": (8, 8)}.items()
    ]
    declared += [
        'rom.parameter @g : !rom.tensor<[8], float32> {key = "g"}',
        'rom.parameter @g4 : !rom.tensor<[4], float32> {key = "g4"}',
        'rom.parameter @c : !rom.tensor<[16, 2], float32> {key = "c"}',
        'rom.parameter @emb : !rom.tensor<[8, 8], float32> {key = "e"}',
        'rom.parameter @la : !rom.adapter<[2, 8], int4, group 4> {key = "la"}',
        'rom.parameter @lb : !rom.adapter<[8, 2], int4, group 2> {key = "lb"}',
        "rom.cache @ck : !rom.kv<16, 2, 4, float32>",
        "rom.cache @cv : !rom.kv<16, 2, 4, float32>",
    ]
    step = [
        "rom.step @decode context 16 {",
        "^bb0(%token: i32, %p: index):",
        "%x = rom.embed %token of @emb",
        *lines,
        "rom.emit %z, %next",
    ]
    types = {
        "embed": "tensor<8xf32>",
        "rms_norm": "tensor<8xf32> -> tensor<8xf32>",
        "rotary": "tensor<8xf32> -> tensor<8xf32>",
        "add": "tensor<8xf32>, tensor<8xf32> -> tensor<8xf32>",
        "mul": "tensor<8xf32>, tensor<8xf32> -> tensor<8xf32>",
        "scale": "tensor<8xf32> -> tensor<8xf32>",
        "activate": "tensor<8xf32> -> tensor<8xf32>",
        "append": "tensor<8xf32>",
        "attention": "tensor<8xf32> -> tensor<8xf32>",
        "sample": "tensor<8xf32>",
        "emit": "tensor<8xf32>",
        "linear": "tensor<8xf32> -> tensor<8xf32>",
    }
    text: list[str] = []
    for line in step:
        operator = line.split("rom.", 1)[1].split()[0] if "rom." in line else ""
        if operator in types and " : tensor" not in line:
            nodes = "" if operator == "emit" else 'onnx = [["n"]]'
            given = line.split("{", 1)
            attributes = ", ".join(filter(None, [given[1].rstrip("}") if given[1:] else "", nodes]))
            body = f" {{{attributes}}}" if attributes else ""
            line = f"{given[0].rstrip()}{body} : {types[operator]}"
        text.append(line)
    return "\n".join([*declared, *text, "}"])


ATTENTION = (
    "%q = rom.linear %n by @q",
    "%k = rom.linear %n by @k",
    "%v = rom.linear %n by @v",
    "rom.append %k to @ck at %p",
    "rom.append %v to @cv at %p",
    "%a = rom.attention %q over @ck, @cv at %p {heads = 2 : i64, scale = 0.5 : f64}",
)
NORM = "%n = rom.rms_norm %x by @g {eps = 1.0e-05 : f64}"
END = ("%next = rom.sample %z",)
SQUARE = (8, 8)


def test_norms_and_rotary_embeddings_of_heads_and_a_norm_before_o(from_text: FromText) -> None:
    text = block(
        NORM,
        "%q0 = rom.linear %n by @q",
        "%q1 = rom.rms_norm %q0 by @g4 {groups = 2 : i64, eps = 1.0e-05 : f64}",
        "%q = rom.rotary %q1 at %p by @c, @c {heads = 2 : i64, rotary_dim = 4 : i64}",
        "%k = rom.linear %n by @k",
        "%v = rom.linear %n by @v",
        "rom.append %k to @ck at %p",
        "rom.append %v to @cv at %p",
        "%a = rom.attention %q over @ck, @cv at %p {heads = 2 : i64, scale = 0.5 : f64}",
        "%b = rom.rms_norm %a by @g {eps = 1.0e-05 : f64}",
        "%z = rom.linear %b by @o",
        *END,
        matrices={"o": SQUARE},
    )
    sites = found(from_text(text))
    assert {name: matrix for name, (matrix, *_) in sites.items()} == {
        "layers.0.q_proj": "q",
        "layers.0.k_proj": "k",
        "layers.0.v_proj": "v",
        "layers.0.o_proj": "o",
    }


def test_a_network_without_a_gate_beside_the_attention(from_text: FromText) -> None:
    """Phi: both read one norm, and the network stands before the attention."""
    text = block(
        NORM,
        "%u = rom.linear %n by @fc1",
        '%h = rom.activate %u {kind = "gelu_tanh"}',
        "%d = rom.linear %h by @fc2",
        *ATTENTION,
        "%o = rom.linear %a by @o",
        "%s = rom.add %o, %d",
        "%z = rom.add %x, %s",
        *END,
        matrices={"o": SQUARE, "fc1": SQUARE, "fc2": SQUARE},
    )
    sites = found(from_text(text))
    assert sites["layers.0.up_proj"][0] == "fc1" and sites["layers.0.down_proj"][0] == "fc2"
    assert "layers.0.gate_proj" not in sites


def test_an_activation_written_as_a_product_and_a_norm_before_down(from_text: FromText) -> None:
    text = block(
        NORM,
        *ATTENTION,
        "%o = rom.linear %a by @o",
        "%m = rom.add %x, %o",
        "%g = rom.linear %m by @gate",
        "%u = rom.linear %m by @up",
        '%s = rom.activate %g {kind = "sigmoid"}',
        "%h = rom.mul %s, %g",
        "%y = rom.mul %u, %h",
        "%y1 = rom.rms_norm %y by @g {eps = 1.0e-05 : f64}",
        "%d = rom.linear %y1 by @down",
        "%z = rom.add %m, %d",
        *END,
        matrices=dict.fromkeys(("o", "gate", "up", "down"), SQUARE),
    )
    sites = {name: matrix for name, (matrix, *_) in found(from_text(text)).items()}
    assert [sites[f"layers.0.{role}"] for role in ROLES[3:]] == ["o", "gate", "up", "down"]


def test_constant_branches_are_no_sites(from_text: FromText) -> None:
    down = '%{0} = rom.linear %{1} by @la {{onnx = [["n"]]}} : tensor<8xf32> -> tensor<2xf32>'
    up = '%{0} = rom.linear %{1} by @lb {{onnx = [["n"]]}} : tensor<2xf32> -> tensor<8xf32>'
    text = block(
        NORM,
        down.format("qa", "n"),
        up.format("qb", "qa"),
        "%q0 = rom.linear %n by @q",
        "%q = rom.add %q0, %qb",
        *ATTENTION[1:],
        down.format("oa", "a"),
        up.format("ob", "oa"),
        "%o = rom.linear %a by @o",
        "%z = rom.add %o, %ob",
        *END,
        matrices={"o": SQUARE},
    )
    sites = {name: matrix for name, (matrix, *_) in found(from_text(text)).items()}
    assert sites["layers.0.q_proj"] == "q" and sites["layers.0.o_proj"] == "o"
    assert len(sites) == 4


def test_two_matrices_of_one_role(from_text: FromText) -> None:
    text = block(
        NORM,
        *ATTENTION,
        "%o = rom.linear %a by @o",
        "%o2 = rom.linear %a by @o2",
        "%z = rom.add %o, %o2",
        *END,
        matrices={"o": SQUARE, "o2": SQUARE},
    )
    with pytest.raises(UserError, match=r"two matrices of layers\.0 have the role o_proj"):
        check_unique(bodies(from_text(text)))
    check_unique(bodies(from_text(text)), {"q_proj", "k_proj", "v_proj"})


def test_the_roles_that_get_slots(from_text: FromText, decoder: Any) -> None:
    here = bodies(from_text(decoder.text()))
    assert selected(here, (), ()) == set(ROLES)
    assert selected(here, ("qkv_proj", "down_proj"), ("o_proj",)) == {*ROLES[:3], "down_proj"}
    assert selected(here, (), ("o_proj", "v_proj", "elsewhere")) == {"o_proj", "v_proj"}
    with pytest.raises(UserError, match="no matrix has the role 'head'") as raised:
        selected(here, ("q_proj", "head"), ())
    assert raised.value.hint == f"in this model layers 0 to 1 have {', '.join(ROLES)}"
    with pytest.raises(UserError, match="has adapters for elsewhere only"):
        selected(here, (), ("elsewhere",))


def test_a_model_without_sites(from_text: FromText) -> None:
    text = block("%z = rom.linear %x by @o", *END, matrices={"o": SQUARE})
    assert bodies(from_text(text)) == []
    with pytest.raises(UserError, match="no matrices that adapter slots could stand beside"):
        selected([], (), ())


def test_experts_say_why_they_have_no_slots(from_text: FromText, decoder: Any) -> None:
    found = bodies(from_text(decoder.text()))
    families = ["moe_router", "moe_experts_gate_up", "moe_experts_down"]
    some = [
        replace(body, places=[p for p in body.places if "gate" not in p.role]) for body in found
    ]
    for name in ("gate_proj", "router", "experts", "moe_experts_down"):
        with pytest.raises(UserError, match=rf"'{name}', .*; experts share no A and B"):
            selected(some, [name], [], families)
    # A mistyped name is no matrix of the experts, and a model without has none to speak of.
    for name, without in (("q_prj", families), ("gate_pro", families), ("gate_proj", [])):
        with pytest.raises(UserError) as raised:
            selected(some, [name], [], without)
        assert "experts" not in str(raised.value)
