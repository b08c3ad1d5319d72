"""Mixtures of experts written out, as mobius and torch do: recognised, or refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto

from intaglio.dialects import rom
from intaglio.dialects.errors import UserErrors
from intaglio.lowering.onnx.importer import import_model

HIDDEN, INNER = 64, 32


def matrix(d: Any, name: str, rows: int, columns: int) -> str:
    """A matrix [columns, rows] for MatMul, from codes of 4 bits."""
    codes = d.rng.integers(-8, 8, (columns, rows)).astype(np.int8)
    scale = d.constant(f"{name}.scale", np.array(0.2 / columns**0.5, np.float32))
    d.node("DequantizeLinear", [d.constant(f"{name}.codes", codes), scale], [name])
    return name


class Mixture:
    """A decoder under construction whose y is a mixture of x."""

    def __init__(self, d: Any, experts: int = 4, k: int = 2, **form: Any) -> None:
        self.d, self.experts, self.k, self.form = d, experts, k, form
        d.constant("last", np.array([-1]))
        d.constant("k", np.array([k]))
        d.constant("zero", np.array(0, np.float32))
        self.router()
        total = ""
        for expert in range(experts):
            part = self.term(expert)
            if total:
                output = "y" if expert == experts - 1 else f"sum{expert}"
                d.node("Add", self.turned(total, part), [output])
                part = output
            total = part

    def turned(self, *names: str) -> list[str]:
        """Operands, the other way round where the form says so."""
        return [*names][:: -1 if self.form.get("turned") else 1]

    def router(self) -> None:
        d, form = self.d, self.form
        if form.get("integers"):
            table = d.rng.integers(-1, 2, (11, d.width)).astype(np.float32)
            d.constants[0].raw_data = table.tobytes()
        ends = [d.constant(f"s{i}", np.array([n])) for i, n in enumerate((0, self.experts, 2))]
        d.node("Slice", ["x", *ends], ["logits"])
        if form.get("after"):
            # Granite: a softmax of the chosen logits.
            d.node("TopK", ["logits", "k"], ["best", "indices"], axis=-1)
            d.node("Softmax", ["best"], ["shares"], axis=-1)
            return
        d.node("Softmax", ["logits"], ["all"], axis=-1)
        d.node("TopK", ["all", "k"], ["best", "indices"], **form.get("top", {}))
        if form.get("normalised", True):
            d.node("ReduceSum", ["best", "last"], ["total"], keepdims=1)
            d.node("Div", ["best", "total"], ["shares"])
        else:
            d.node("Identity", ["best"], ["shares"])

    def term(self, expert: int) -> str:
        d, p = self.d, f"e{expert}."
        number = d.constant(
            f"{p}number", np.array(self.form.get("numbers", {}).get(expert, expert))
        )
        d.node("Equal", ["indices", number], [f"{p}hit"])
        d.node("Cast", [f"{p}hit"], [f"{p}mask"], to=TensorProto.FLOAT)
        d.node("Mul", self.turned("shares", f"{p}mask"), [f"{p}masked"])
        d.node("ReduceSum", [f"{p}masked", "last"], [f"{p}share"], keepdims=1)
        d.node("Mul", self.turned(self.network(expert), f"{p}share"), [f"{p}term"])
        return f"{p}term"

    def network(self, expert: int) -> str:
        d, p = self.d, f"e{expert}."
        inner = INNER * (1 + (expert == self.form.get("wider")))
        for part in ("gate", "up"):
            d.node("MatMul", ["x", matrix(d, f"{p}{part}", inner, HIDDEN)], [f"{p}{part}.y"])
            if self.form.get("bias"):
                bias = d.floats(f"{p}{part}.bias", inner)
                d.node("Add", [f"{p}{part}.y", bias], [f"{p}{part}.z"])
            else:
                d.node("Identity", [f"{p}{part}.y"], [f"{p}{part}.z"])
        act = "Relu" if expert == self.form.get("other") else self.form.get("act", "Sigmoid")
        d.node(act, [f"{p}gate.z"], [f"{p}act"])
        if act == "Sigmoid":
            d.node("Mul", [f"{p}gate.z", f"{p}act"], [f"{p}silu"])
        else:
            d.node("Identity", [f"{p}act"], [f"{p}silu"])
        d.node("Mul", [f"{p}silu", f"{p}up.z"], [f"{p}h"])
        d.node("MatMul", [f"{p}h", matrix(d, f"{p}down", HIDDEN, inner)], [f"{p}y"])
        return f"{p}y"


FORMS = {
    "Qwen3": {},
    "OLMoE": {"normalised": False},
    "Granite": {"after": True},
    "operands turned": {"turned": True},
    "biases": {"bias": True},
    "one of 3": {"experts": 3, "k": 1},
    "3 of 8": {"experts": 8, "k": 3},
    "all of 2": {"experts": 2, "k": 2},
    "relu": {"act": "Relu"},
    "ties": {"experts": 8, "k": 3, "integers": True},
    "ties of logits": {"experts": 8, "k": 3, "integers": True, "after": True},
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_the_chosen_experts_alone_are_computed(wide: Any, agrees: Any, form: Any) -> None:
    mixture = Mixture(wide, **form)
    model = agrees(wide, tolerance=1e-4)
    ops = [*model.module.walk()]
    linear = [one for one in ops if isinstance(one, rom.LinearOp)]
    chosen = [one for one in ops if isinstance(one, rom.ExpertLinearOp)]
    assert not linear and len(chosen) == 3 * mixture.k
    (route,) = [one for one in ops if isinstance(one, rom.RouteOp)]
    assert route.lowest is not None
    assert (route.over_all is not None) == (not form.get("normalised", True))
    families = [one for one in ops if isinstance(one, rom.ParameterOp)]
    matrices = [one.type.dims for one in families if one.type.is_matrix]  # pyright: ignore
    up, down = (mixture.experts * INNER, HIDDEN), (mixture.experts * HIDDEN, INNER)
    assert matrices == [up, up, down]
    # Every node is named by some operation.
    named = {
        name.data for one in ops if isinstance(one, rom.OperatorOp) for name in one.onnx.data[0]
    }
    assert {n.name for n in wide.nodes if n.op_type == "MatMul" and n.name} <= named


REFUSED = {
    "experts do not all compute the same": {"other": 2},
    "experts do not all compute the same: rom.mul is one's alone": {"wider": 1},
    "experts of different routers, or one of them twice, are summed": {"numbers": {2: 1}},
    "an expert's number is not known": {"numbers": {2: 9}},
    "it takes the smallest": {"top": {"largest": 0}},
}


@pytest.mark.parametrize(("words", "form"), REFUSED.items(), ids=REFUSED)
def test_what_is_no_mixture_is_refused(wide: Any, words: str, form: Any) -> None:
    _ = Mixture(wide, **form)
    with pytest.raises(UserErrors) as caught:
        import_model(wide.save())
    assert any(words in str(error) for error in caught.value.errors), caught.value.errors


def test_experts_that_are_left_out_are_refused(wide: Any) -> None:
    """A sum of some experts has no meaning of its own."""
    mixture = Mixture(wide, experts=3)
    last = wide.nodes.pop()
    wide.node("Add", ["x", last.input[0]], ["y"])
    assert mixture.experts == 3
    with pytest.raises(UserErrors, match="of 3 experts 2 are summed before something else"):
        import_model(wide.save())


def test_shares_that_are_used_otherwise_are_refused(wide: Any) -> None:
    _ = Mixture(wide)
    wide.nodes.pop()
    wide.node("Mul", ["x", "e0.share"], ["other"])
    wide.node("Add", ["other", "x"], ["y"])
    with pytest.raises(UserErrors, match="of 4 experts 1 are summed"):
        import_model(wide.save())
