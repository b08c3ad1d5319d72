"""xIELU (Apertus) and its like: functions that choose by the sign, with learned numbers."""

from __future__ import annotations

import numpy as np
import pytest

from intaglio.dialects import rom
from intaglio.dialects.errors import UserErrors
from intaglio.lowering.onnx.importer import import_model

F = np.float32


def xielu(d, positive, negative, beta=0.5, eps=-1e-6, form="torch"):
    """Its nodes as exporters write them: x "x", result "y"."""
    given = {"zero": F(0), "one": F(1), "p": F(positive), "n": F(negative), "b": F(beta)}
    for name, value in (given | {"eps": F(eps)}).items():
        d.constant(name, np.array(value))
    d.node("Mul", ["x", "p"] if form == "torch" else ["p", "x"], ["px"])
    d.node("Mul", ["px", "x"], ["pxx"])
    d.node("Mul", ["b", "x"], ["bx"])
    d.node("Add", ["pxx", "bx"], ["up"])
    d.node("Min", ["x", "eps"], ["low"])
    d.node("Exp", ["low"], ["e"])
    if form == "torch":
        d.node("Sub", ["e", "one"], ["em"])
        d.node("Sub", ["em", "x"], ["below"])
    else:
        d.node("Add", ["x", "one"], ["x1"])
        d.node("Sub", ["e", "x1"], ["below"])
    d.node("Mul", ["below", "n"], ["nb"])
    d.node("Add", ["nb", "bx"], ["down"])
    if form == "less":
        d.node("LessOrEqual", ["x", "zero"], ["which"])
        d.node("Where", ["which", "down", "up"], ["y"])
    else:
        d.node("Greater", ["x", "zero"], ["which"])
        d.node("Where", ["which", "up", "down"], ["y"])


@pytest.mark.parametrize("form", ["torch", "mobius", "less"])
@pytest.mark.parametrize(
    ("positive", "negative", "beta"), [(0.8, 0.8, 0.5), (1.2753, 0.6350, 0.5), (0.3, 2.5, 0.25)]
)
def test_it_is_a_sum_of_three(decoder, agrees, form, positive, negative, beta) -> None:
    xielu(decoder, positive, negative, beta, form=form)
    model = agrees(decoder)
    kinds = sorted(op.kind.data for op in model.module.walk() if isinstance(op, rom.ActivateOp))
    assert kinds == ["elu", "relu2"]
    sums = [op for op in model.module.walk() if isinstance(op, rom.AddOp)]
    parts = [o.owner for op in sums for o in (op.lhs, op.rhs) if isinstance(o.owner, rom.ScaleOp)]
    found = [part.factor.value.data for part in parts[-3:]]
    np.testing.assert_allclose(found, [positive, negative, beta - negative], atol=1e-4)


@pytest.mark.parametrize("alpha", [1.0, 0.5, 2.0])
def test_elu(decoder, agrees, alpha) -> None:
    decoder.node("Elu", ["x"], ["y"], alpha=alpha)
    agrees(decoder)


def test_elu_written_out(decoder, agrees) -> None:
    decoder.constant("zero", np.array(F(0)))
    decoder.constant("one", np.array(F(1)))
    decoder.node("Min", ["x", "zero"], ["low"])
    decoder.node("Exp", ["low"], ["e"])
    decoder.node("Sub", ["e", "one"], ["below"])
    decoder.node("Greater", ["x", "zero"], ["which"])
    decoder.node("Where", ["which", "x", "below"], ["y"])
    model = agrees(decoder)
    (op,) = (op for op in model.module.walk() if isinstance(op, rom.ActivateOp))
    assert op.kind.data == "elu"


def test_a_relu_by_max(decoder, agrees) -> None:
    decoder.constant("zero", np.array(F(0)))
    decoder.node("Max", ["x", "zero"], ["y"])
    model = agrees(decoder)
    (op,) = (op for op in model.module.walk() if isinstance(op, rom.ActivateOp))
    assert op.kind.data == "relu"


def test_what_is_none_is_refused(decoder) -> None:
    """A leaky ReLU is no sum of them, and says which node began it."""
    decoder.constant("zero", np.array(F(0)))
    decoder.constant("slope", np.array(F(0.1)))
    decoder.node("Mul", ["x", "slope"], ["less"])
    decoder.node("Greater", ["x", "zero"], ["which"], name="compared")
    decoder.node("Where", ["which", "x", "less"], ["y"])
    with pytest.raises(UserErrors) as caught:
        import_model(decoder.save("y"))
    (error,) = caught.value.errors
    assert error.node == "compared"
    assert "Greater is supported in an activation function that is written out only" in error.what
