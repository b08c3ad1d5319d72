"""LoRA branches of constants beside a product, in the ways that exporters wire them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto

from intaglio.dialects import rom

RANK = 4
Build = Callable[[Any, str, str, str], str]
"""Writes a branch from x, A and B; gives its result."""


def op(d: Any, op_type: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
    output = f"{op_type}_{len(d.nodes)}_out"
    d.node(op_type, list(inputs), [output], domain=domain, **attributes)
    return output


def product(d: Any, x: str, a: str, b: str) -> str:
    return op(d, "MatMul", op(d, "MatMul", x, a), b)


def number(d: Any, value: float) -> str:
    return d.constant(f"number_{len(d.constants)}", np.array(value, np.float32))


def gemm(d: Any, x: str, a: str, b: str) -> str:
    """Linear modules on rows of tokens."""
    tall = op(d, "Reshape", x, d.constant("tall", np.array([-1, d.width])))
    y = op(d, "Gemm", op(d, "Gemm", tall, a), b)
    shape = op(d, "Concat", op(d, "Shape", x, end=2), d.constant("n", np.array([24])), axis=0)
    return op(d, "Reshape", y, shape)


FORMS: dict[str, Build] = {
    "plain": product,
    "scaled": lambda d, x, a, b: op(d, "Mul", product(d, x, a, b), number(d, 2)),
    "divided": lambda d, x, a, b: op(d, "Div", product(d, x, a, b), number(d, 2)),
    "scaled between": lambda d, x, a, b: op(
        d, "MatMul", op(d, "Mul", number(d, 2), op(d, "MatMul", x, a)), b
    ),
    "scaled before": lambda d, x, a, b: product(d, op(d, "Mul", x, number(d, 2)), a, b),
    "dropout": lambda d, x, a, b: product(d, op(d, "Identity", x), a, b),
    "cast": lambda d, x, a, b: op(d, "Cast", product(d, x, a, b), to=TensorProto.FLOAT),
    "fused": lambda d, x, a, b: op(
        d, "MatMul", op(d, "FusedMatMul", x, a, domain="com.microsoft", alpha=2.0), b
    ),
    "transposed": lambda d, x, a, b: product(
        d, x, a, op(d, "Transpose", d.floats("bt", 24, RANK), perm=[1, 0])
    ),
    "gemm": gemm,
}


def adapters(model: Any) -> list[Any]:
    found = (o for o in model.module.body.block.ops if isinstance(o, rom.ParameterOp))
    return [o for o in found if isinstance(o.type, rom.AdapterType)]


def base(d: Any) -> str:
    codes = d.rng.integers(-1, 2, (d.width, 24)).astype(np.float32)
    return op(d, "MatMul", "x", d.constant("w", codes))


@pytest.mark.parametrize("form", FORMS)
def test_branches_are_adapters(decoder, agrees, form):
    y = base(decoder)
    a, b = decoder.floats("a", decoder.width, RANK), decoder.floats("b", RANK, 24)
    decoder.node("Add", [y, FORMS[form](decoder, "x", a, b)], ["y"])
    assert len(adapters(agrees(decoder, tolerance=0.3))) == 2


def test_beside_weights_that_the_graph_makes_ternary(decoder, agrees):
    """PEFT on HF's AutoBitLinear: the base's weights are computed from constants."""
    d = decoder
    w = d.floats("w", 24, d.width)
    d.constant("low", np.array(-1, np.float32))
    d.constant("high", np.array(1, np.float32))
    codes = op(d, "Clip", op(d, "Round", w), "low", "high")
    y = op(d, "MatMul", "x", op(d, "Transpose", codes, perm=[1, 0]))
    branch = product(d, "x", d.floats("a", d.width, RANK), d.floats("b", RANK, 24))
    d.node("Add", [y, branch], ["y"])
    assert len(adapters(agrees(d, tolerance=0.3))) == 2


def test_several_a_in_one_matrix(decoder, agrees):
    """transformers' fusions for onnxruntime pack matrices that read one activation."""
    d = decoder
    inner = op(d, "MatMul", "x", d.floats("a", d.width, 2 * RANK))
    d.node("Split", [inner], ["p", "q"], axis=-1, num_outputs=2)
    sums = []
    for name in ("p", "q"):
        w = d.constant(f"w{name}", d.rng.integers(-1, 2, (d.width, 24)).astype(np.float32))
        branch = op(d, "Mul", op(d, "MatMul", name, d.floats(f"b{name}", RANK, 24)), number(d, 2))
        sums.append(op(d, "Add", op(d, "MatMul", "x", w), branch))
    d.node("Add", sums, ["y"])
    found = adapters(agrees(d, tolerance=0.3))
    assert sorted(tuple(o.type.dims) for o in found) == sorted(2 * [(RANK, d.width), (24, RANK)])


@pytest.mark.parametrize("form", ["another input", "inner value read elsewhere"])
def test_other_pairs_of_products_are_none(decoder, form):
    from intaglio.dialects.errors import UserErrors
    from intaglio.lowering.onnx.importer import import_model

    d = decoder
    y = base(d)
    x = op(d, "Relu", "x") if form == "another input" else "x"
    inner = op(d, "MatMul", x, d.floats("a", d.width, RANK))
    branch = op(d, "MatMul", inner, d.floats("b", RANK, 24))
    if form != "another input":
        branch = op(d, "Mul", branch, op(d, "MatMul", inner, d.floats("c", RANK, 24)))
    d.node("Add", [y, branch], ["y"])
    with pytest.raises(UserErrors, match="floating point"):
        import_model(d.save())
