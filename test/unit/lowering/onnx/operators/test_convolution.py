"""Convolutions over the last taps, whose state is an input and an output of the graph."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto

from intaglio.dialects import rom
from intaglio.dialects.errors import UserErrors
from intaglio.lowering.onnx.importer import import_model


def convolved(
    decoder,
    taps=3,
    *,
    bias=False,
    activation="none",
    domain="com.microsoft",
    last=False,
    dilation=1,
    past=None,
    **more,
):
    """x through a convolution of all its channels."""
    width, depth = decoder.width, (taps - 1) * dilation
    state = [depth, width] if last else [width, depth]
    name = "past.0.conv" if past is None else past
    if past is None and depth:
        decoder.inputs.append((name, TensorProto.FLOAT, ["batch", *state]))
        decoder.pasts.append((name, TensorProto.FLOAT, [1, *state]))
        decoder.outputs.append(("present.0.conv", TensorProto.FLOAT, ["batch", *state]))
    inputs = ["x"]
    if not last:
        decoder.node("Transpose", ["x"], ["channels"], perm=[0, 2, 1])
        inputs = ["channels"]
    inputs.append(decoder.floats("taps", width, 1, taps))
    inputs.append(decoder.floats("bias", width) if bias else "")
    inputs += [name] if depth else []
    if domain:
        more |= {"channels_last": 1} if last else {}
        more |= {"dilation": dilation} if dilation > 1 else {}
    outputs = ["z", "present.0.conv" if past is None else "other"]
    kind = "CausalConvWithState"
    decoder.node(kind, inputs, outputs, name="conv", domain=domain, activation=activation, **more)
    if last:
        decoder.node("Identity", ["z"], ["y"])
    else:
        decoder.node("Transpose", ["z"], ["y"], perm=[0, 2, 1])


def counts(model):
    """Delays, products and activation functions."""
    ops = list(model.module.walk())
    kinds = (rom.DelayOp, rom.TapOp, rom.ActivateOp)
    return tuple(sum(isinstance(op, kind) for op in ops) for kind in kinds)


@pytest.mark.parametrize("taps", [2, 3, 4])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("activation", ["none", "silu"])
def test_taps_bias_and_activation(decoder, agrees, taps, bias, activation):
    convolved(decoder, taps, bias=bias, activation=activation)
    model = agrees(decoder)
    assert counts(model) == (taps - 1, taps, int(activation == "silu"))
    states = [op.type.size.data for op in model.module.ops if isinstance(op, rom.StateOp)]
    assert states == [16] * (taps - 1)


@pytest.mark.parametrize("taps", [2, 4])
def test_the_standard_operator(decoder, agrees, taps):
    """Opset 27: known by name, before its function body is looked at."""
    decoder.opset = 27
    convolved(decoder, taps, bias=True, activation="swish", domain="")
    assert counts(agrees(decoder)) == (taps - 1, taps, 1)


def test_channels_last(decoder, agrees):
    convolved(decoder, 3, last=True)
    assert counts(agrees(decoder)) == (2, 3, 0)


def test_dilation(decoder, agrees):
    """Taps two tokens apart: twice as many tokens are kept."""
    convolved(decoder, 3, dilation=2)
    assert counts(agrees(decoder)) == (4, 3, 0)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"state_window": 2}, "state_window"),
        ({"ndim": 2}, "2 axes"),
        ({"activation": "relu"}, "activation = relu"),
        ({"past": ""}, "past state must be an input"),
        ({"past": "table"}, "past state must be an input"),
    ],
)
def test_what_is_refused(decoder, given, said):
    convolved(decoder, 3, **given)
    with pytest.raises(UserErrors, match=said) as error:
        import_model(decoder.save())
    assert "conv" in str(error.value)


def test_weights_that_are_no_constant(decoder):
    convolved(decoder, 3)
    (conv,) = [node for node in decoder.nodes if node.op_type == "CausalConvWithState"]
    conv.input[1] = "x"
    with pytest.raises(UserErrors, match="weights must be a constant"):
        import_model(decoder.save())


def test_a_state_of_another_size(decoder):
    convolved(decoder, 3)
    decoder.inputs[-1] = ("past.0.conv", TensorProto.FLOAT, ["batch", 16, 3])
    with pytest.raises(UserErrors, match=r"3 taps of 16 channels need \[batch, 16, 2\]"):
        import_model(decoder.save())


def test_a_state_that_no_output_gives_back(decoder):
    convolved(decoder, 3)
    decoder.outputs.clear()
    with pytest.raises(UserErrors, match=r"what 'past.0.conv' becomes"):
        import_model(decoder.save())


def test_two_nodes_with_one_state(decoder):
    convolved(decoder, 3)
    decoder.node(
        "CausalConvWithState",
        ["channels", "taps", "", "past.0.conv"],
        ["again", "present"],
        domain="com.microsoft",
    )
    decoder.nodes[-2].input[0] = "again"
    with pytest.raises(UserErrors, match="belongs to another node too"):
        import_model(decoder.save())


def test_tap_weights_are_the_columns(decoder):
    convolved(decoder, 3)
    model = import_model(decoder.save())
    weights = [
        model.parameters[rom.resolve(op, op.weights).key.data].values(0, 16)  # pyright: ignore
        for op in model.module.walk()
        if isinstance(op, rom.TapOp)
    ]
    taps = next(one for one in decoder.constants if one.name == "taps")
    expected = np.frombuffer(taps.raw_data, np.float32).reshape(16, 3).T
    np.testing.assert_array_equal(np.array(weights), expected)
