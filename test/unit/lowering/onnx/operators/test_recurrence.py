"""Linear attention and its neighbours; the evaluator has the formulas of the rom operators."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto

from intaglio.dialects import rom
from intaglio.dialects.errors import UserErrors
from intaglio.lowering.onnx.importer import import_model

MS = "com.microsoft"
HEADS, KEY, VALUE = 4, 8, 4
"""Heads of values, and the elements of each; the decoder is 16 wide."""


def linear(decoder, x, y, n, k=16):
    """A product with random codes of 8 bits."""
    blocks = -(-k // 16)
    codes = decoder.rng.integers(0, 256, (n, blocks, 16)).astype(np.uint8)
    inputs = [x, decoder.constant(f"{y}_codes", codes)]
    scales = decoder.rng.uniform(0.5, 1.5, (n, blocks)) / 300
    inputs.append(decoder.constant(f"{y}_scales", scales.astype(np.float32)))
    decoder.ms("MatMulNBits", inputs, [y], K=k, N=n, bits=8, block_size=16)


def integers(decoder, name, *numbers):
    return decoder.constant(name, np.array(numbers, np.int64))


def attended(
    decoder,
    rule="gated_delta",
    *,
    query_heads=2,
    key_heads=2,
    domain=MS,
    dims=(HEADS, KEY, VALUE),
    past="past.0.recurrent",
    gates=None,
    **more,
):
    """x as values, as keys and queries of length 1, and as gates."""
    heads, width, columns = dims
    if past == "past.0.recurrent":
        decoder.inputs.append((past, TensorProto.FLOAT, ["batch", *dims]))
        decoder.pasts.append((past, TensorProto.FLOAT, [1, *dims]))
        decoder.outputs.append(("present.0.recurrent", TensorProto.FLOAT, ["batch", *dims]))
    inputs = []
    for letter, count in (("q", query_heads), ("k", key_heads)):
        linear(decoder, "x", f"{letter}0", count * width)
        apart = integers(decoder, f"{letter}_apart", 0, 0, count, width)
        together = integers(decoder, f"{letter}_together", 0, 0, count * width)
        decoder.node("Reshape", [f"{letter}0", apart], [f"{letter}1"])
        decoder.node("LpNormalization", [f"{letter}1"], [f"{letter}2"], axis=-1, p=2)
        decoder.node("Reshape", [f"{letter}2", together], [f"{letter}3"])
        inputs.append(f"{letter}3")
    linear(decoder, "x", "v", heads * columns)
    linear(decoder, "x", "a", gates or heads)
    linear(decoder, "x", "b", gates or heads)
    decoder.node("Softplus", ["a"], ["a1"])
    decoder.node("Neg", ["a1"], ["decay"])
    decoder.node("Sigmoid", ["b"], ["beta"])
    given = [
        *inputs,
        "v",
        past,
        "decay" if "gated" in rule else "",
        "beta" if "delta" in rule else "",
    ]
    while not given[-1]:
        given.pop()
    decoder.node(
        "LinearAttention",
        given,
        ["z", "present.0.recurrent"],
        name="linear",
        domain=domain,
        q_num_heads=query_heads,
        kv_num_heads=heads,
        update_rule=rule,
        **more,
    )
    linear(decoder, "z", "y", decoder.width, heads * columns)


def found(model):
    (op,) = (op for op in model.module.walk() if isinstance(op, rom.LinearAttentionOp))
    return op


@pytest.mark.parametrize("rule", ["linear", "gated", "delta", "gated_delta"])
@pytest.mark.parametrize("scale", [None, 1.0, 0.7])
def test_rules_and_scales(decoder, agrees, rule, scale):
    attended(decoder, rule, **({} if scale is None else {"scale": scale}))
    op = found(agrees(decoder))
    assert op.rule.data == rule
    assert (op.decay is not None, op.beta is not None) == ("gated" in rule, "delta" in rule)
    assert isinstance(op.query.owner, rom.ScaleOp) == (scale != 1.0)


@pytest.mark.parametrize("rule", ["linear", "gated_delta"])
def test_the_standard_operator(decoder, agrees, rule):
    """Opset 27: known by name, before its function body is looked at."""
    decoder.opset = 27
    attended(decoder, rule, query_heads=4, key_heads=4, domain="")
    assert found(agrees(decoder)).rule.data == rule


@pytest.mark.parametrize(("query_heads", "key_heads"), [(1, 1), (4, 2), (2, 4), (4, 4)])
def test_heads(decoder, agrees, query_heads, key_heads):
    """A head of queries, and one of keys, serve several of values."""
    attended(decoder, query_heads=query_heads, key_heads=key_heads)
    assert rom.vector_size(found(agrees(decoder)).query.type) == query_heads * KEY


@pytest.mark.parametrize("dims", [(4, 16, 2), (2, 4, 8), (8, 2, 16)])
def test_shapes(decoder, agrees, dims):
    attended(decoder, dims=dims)
    model = agrees(decoder)
    (state,) = (op for op in model.module.ops if isinstance(op, rom.StateOp))
    assert state.type == rom.MatricesType(*dims)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"state_window": 2}, "state_window"),
        ({"past": "table"}, "past state must be an input"),
        ({"rule": "other"}, "update_rule = other is not known; linear, gated, delta"),
        ({"query_heads": 8}, "8 heads of queries read 4 states"),
        ({"key_heads": 3}, "no heads of 8 that divide 4"),
        ({"gates": HEADS * KEY}, "decay has 32 elements a token; one for each of 4 heads"),
    ],
)
def test_what_is_refused(decoder, given, said):
    rule = given.pop("rule", "gated_delta")
    attended(decoder, rule, **given)
    with pytest.raises(UserErrors, match=said) as error:
        import_model(decoder.save())
    assert "linear" in str(error.value)


def test_a_state_that_no_output_gives_back(decoder):
    attended(decoder)
    decoder.outputs.clear()
    with pytest.raises(UserErrors, match=r"what 'past.0.recurrent' becomes"):
        import_model(decoder.save())


def test_a_state_of_another_size(decoder):
    attended(decoder)
    decoder.inputs[-1] = ("past.0.recurrent", TensorProto.FLOAT, ["batch", 2, KEY, VALUE])
    with pytest.raises(UserErrors, match=r"4 heads need \[batch, 4, key width, value width\]"):
        import_model(decoder.save())


@pytest.mark.parametrize("folded", [False, True])
def test_gates(decoder, agrees, folded):
    """dt_bias is folded into a product; else it is the bias of a tap."""
    linear(decoder, "x", "a", 16)
    source = "a"
    if not folded:
        decoder.node("Tanh", ["a"], ["a1"])
        source = "a1"
    linear(decoder, "x", "b", 16)
    inputs = [source, decoder.floats("dt", 16), decoder.floats("rate", 16), "b"]
    decoder.node("LinearAttentionGate", inputs, ["decay", "beta"], name="gate", domain=MS)
    decoder.node("Mul", ["decay", "beta"], ["y"])
    ops = list(agrees(decoder).module.walk())
    assert sum(isinstance(op, rom.TapOp) for op in ops) == (1 if folded else 2)


@pytest.mark.parametrize("activation", [None, "silu", "swish", "sigmoid"])
@pytest.mark.parametrize("width", [4, 16])
def test_gated_norm(decoder, agrees, activation, width):
    linear(decoder, "x", "gate", 16)
    more = {} if activation is None else {"activation": activation}
    inputs = ["x", decoder.floats("gamma", width), "gate"]
    decoder.node("GatedRMSNorm", inputs, ["y"], name="norm", domain=MS, **more)
    ops = list(agrees(decoder).module.walk())
    assert any(isinstance(op, rom.RMSNormOp) and op.groups.value.data == 16 // width for op in ops)


def test_gated_norm_of_another_activation(decoder):
    inputs = ["x", decoder.floats("gamma", 4), "x"]
    decoder.node("GatedRMSNorm", inputs, ["y"], name="norm", domain=MS, activation="relu")
    with pytest.raises(UserErrors, match="activation = relu is not known"):
        import_model(decoder.save())


@pytest.mark.parametrize(
    ("attributes", "said"), [({"p": 1}, "p = 1"), ({"axis": 1}, "only the last axis")]
)
def test_other_norms(decoder, attributes, said):
    decoder.node("LpNormalization", ["x"], ["y"], name="norm", **attributes)
    with pytest.raises(UserErrors, match=said):
        import_model(decoder.save())


def test_rows_of_a_packed_product(decoder, agrees):
    """Queries and gates of each head in turns: each becomes a product with its rows."""
    linear(decoder, "x", "packed", 48)
    sizes = integers(decoder, "sizes", 32, 16)
    decoder.node("Split", ["packed", sizes], ["both", "rest"], axis=-1)
    decoder.node("Reshape", ["both", integers(decoder, "apart", 0, 0, 4, 8)], ["heads"])
    halves = integers(decoder, "halves", 4, 4)
    decoder.node("Split", ["heads", halves], ["q0", "g0"], axis=-1)
    together = integers(decoder, "together", 0, 0, 16)
    decoder.node("Reshape", ["q0", together], ["q1"])
    decoder.node("Reshape", ["g0", together], ["g1"])
    decoder.node("Sigmoid", ["g1"], ["g2"])
    decoder.node("Mul", ["q1", "g2"], ["z"])
    decoder.node("Add", ["z", "rest"], ["y"])
    model = agrees(decoder)
    rows = [rom.vector_size(op.output.type) for op in model.module.walk()
            if isinstance(op, rom.LinearOp)]  # fmt: skip
    assert rows.count(16) >= 2
    assert np.isfinite(rows).all()
