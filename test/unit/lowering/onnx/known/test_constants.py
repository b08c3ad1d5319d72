"""Constant expressions: any region equals the same part of what numpy computes at once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from intaglio.dialects.codes import pack
from intaglio.lowering.onnx.graph.model import Node, Tensor
from intaglio.lowering.onnx.known import lazy
from intaglio.lowering.onnx.known.constants import (
    Constant,
    Given,
    Leaf,
    Reduced,
    Repeated,
    Scattered,
    Selected,
    Spread,
    Table,
    Taken,
    elementwise,
    joined,
    permuted,
    reshaped,
    whole,
)
from intaglio.lowering.onnx.values import Computed, Known, Refusal, Stored

F32 = np.dtype(np.float32)


def tensor(values: np.ndarray, dtype: str | None = None, name: str = "w") -> Tensor:
    """A tensor as the file holds it; small types are given by their values."""
    if dtype in ("INT2", "INT4", "UINT2", "UINT4"):
        bits = int(dtype[-1])
        codes = (values.reshape(1, -1).astype(np.int64) & ((1 << bits) - 1)).astype(np.uint8)
        data = pack(codes, bits).reshape(-1)
    else:
        data = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
        names = {"f4": "FLOAT", "f2": "FLOAT16", "u1": "UINT8", "i1": "INT8", "i8": "INT64"}
        dtype = dtype or names[values.dtype.str[1:]]
    return Tensor(name, dtype, values.shape, lambda: data)


@st.composite
def expressions(draw: st.DrawFn) -> tuple[Constant, np.ndarray]:
    """A random expression over a few small tensors, with what numpy gives for it."""
    rng = np.random.default_rng(draw(st.integers(0, 1 << 20)))
    n, k = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    kind = draw(st.sampled_from(["FLOAT", "UINT8", "INT8", "INT4", "UINT2", "FLOAT16"]))
    if kind.startswith("FLOAT"):
        values = rng.normal(size=(n, k)).astype(np.float32 if kind == "FLOAT" else np.float16)
    else:
        low, high = {"UINT8": (0, 256), "INT8": (-128, 128), "INT4": (-8, 8), "UINT2": (0, 4)}[kind]
        values = rng.integers(low, high, (n, k))
        values = values.astype(np.uint8 if kind[0] == "U" else np.int8)
    found: Constant = Leaf(tensor(values, kind))
    assert found.dtype == values.dtype
    for _ in range(draw(st.integers(0, 6))):
        found, values = _step(draw, rng, found, values)
    return found, values


def _step(
    draw: st.DrawFn, rng: np.random.Generator, x: Constant, v: np.ndarray
) -> tuple[Constant, np.ndarray]:
    n, k = v.shape
    match draw(st.integers(0, 11)):
        case 0:
            return permuted(x, (1, 0)), v.T
        case 1:
            c = rng.integers(1, 4, (1, k)).astype(v.dtype)
            return elementwise(np.multiply, [x, Given(c)], v.dtype), v * c
        case 2:
            c = np.asarray(3, v.dtype)
            return elementwise(np.maximum, [x, Given(c)], v.dtype), np.maximum(v, c)
        case 3:
            return elementwise(lambda a: a.astype(F32), [x], F32), v.astype(np.float32)
        case 4:
            return joined([x, x], 0), np.concatenate([v, v])
        case 5:
            dims = draw(st.sampled_from([(k, n), (1, n * k), (n * k, 1), (n, k)]))
            return reshaped(x, dims), v.reshape(dims)
        case 6:
            start = draw(st.integers(0, n - 1))
            return Taken(x, 0, start, 1, n - start), v[start:]
        case 7:
            return Taken(x, 1, k - 1, -1, k), v[:, ::-1]
        case 8:
            index = rng.integers(0, n, 5)
            return Selected(x, index, 0), v[index]
        case 9:
            index = rng.permutation(n)[: (n + 1) // 2]
            new = Given(rng.integers(0, 4, (index.size, k)).astype(v.dtype))
            expected = v.copy()
            expected[index] = new.values
            return Scattered(x, index, new), expected
        case 10:
            return Repeated(x, 1, 3, 3 * k - 1), np.repeat(v, 3, axis=1)[:, : 3 * k - 1]
        case _:
            top = Spread(Reduced(x, "max", [1]), (n, k))
            return top, np.broadcast_to(v.max(axis=1, keepdims=True), (n, k))


@settings(max_examples=150, deadline=None)
@given(expressions(), st.data())
def test_any_region(pair, data):
    constant, expected = pair
    assert constant.dims == expected.shape and constant.dtype == expected.dtype
    np.testing.assert_array_equal(constant.read(whole(constant.dims)), expected)
    region = []
    for d in constant.dims:
        a = data.draw(st.integers(0, d))
        region.append((a, data.draw(st.integers(a, d))))
    part = constant.read(tuple(region))
    np.testing.assert_array_equal(part, expected[tuple(slice(a, b) for a, b in region)])


@pytest.mark.parametrize("kind", ["sum", "mean", "max", "min"])
@pytest.mark.parametrize("axes", [(0,), (1,), (0, 1)])
def test_reductions_are_streamed(kind, axes):
    values = np.random.default_rng(1).normal(size=(700, 900)).astype(np.float32)
    found = Reduced(Leaf(tensor(values)), kind, axes)
    expected = getattr(values.astype(np.float64), kind)(axis=axes, keepdims=True)
    np.testing.assert_allclose(found.array(), expected, rtol=1e-5, atol=1e-5)


def test_a_function_of_bytes_is_a_table():
    packed = Leaf(tensor(np.arange(256, dtype=np.uint8).reshape(4, 64)))
    shifted = elementwise(
        np.right_shift, [packed, Given(np.array([2], np.uint8).reshape(()))], packed.dtype
    )
    bits = elementwise(np.bitwise_and, [shifted, Given(np.array(3, np.uint8))], packed.dtype)
    number = elementwise(lambda q: q.astype(np.float32), [bits], F32)
    found = elementwise(np.subtract, [number, Given(np.array(1, np.float32))], F32)
    assert isinstance(found, Table) and found.base is packed
    expected = ((np.arange(256) >> 2) & 3).reshape(4, 64) - 1.0
    np.testing.assert_array_equal(found.array(), expected)
    turned = permuted(found, (1, 0))
    assert isinstance(turned, Table)
    np.testing.assert_array_equal(turned.rows(3, 9), expected.T[3:9])
    halves = joined([found, found], 0)
    assert isinstance(halves, Table) and halves.dims == (8, 64)


def node(op: str, **attributes: object) -> Node:
    """A node with one output."""
    return Node(0, "n", "", op, ("a", "b", "c"), ("y",), dict(attributes), 21)


def large(dtype: type = np.float32) -> tuple[Stored, np.ndarray]:
    values = np.random.default_rng(2).integers(-3, 4, (300, 256)).astype(dtype)
    return Stored(tensor(values), values.shape), values


@pytest.mark.parametrize(
    ("op", "function"),
    [
        ("Abs", np.abs),
        ("Sign", np.sign),
        ("Neg", np.negative),
        ("Round", np.rint),
        ("Floor", np.floor),
        ("Ceil", np.ceil),
        ("Exp", np.exp),
    ],
)
def test_unary_operators(op, function):
    value, expected = large()
    (found,) = lazy.fold(node(op), [value] + [None] * 15)
    assert isinstance(found, Computed)
    np.testing.assert_array_equal(found.constant.array(), function(expected))


def test_nothing_is_computed_for_activations_or_small_numbers():
    value, _ = large()
    small = Known(np.arange(4))
    assert lazy.fold(node("Add"), [small, small] + [None] * 14) is None
    assert lazy.fold(node("Add"), [value, None] + [object()] + [None] * 13) is None  # pyright: ignore
    assert lazy.fold(node("MatMul"), [value, value] + [None] * 14) is None


def test_clip_takes_inputs_and_attributes():
    value, expected = large()
    low, high = Known(np.float32(-1)), Known(np.float32(2))
    (found,) = lazy.fold(node("Clip"), [value, low, high] + [None] * 13)
    np.testing.assert_array_equal(found.constant.array(), np.clip(expected, -1, 2))
    (found,) = lazy.fold(node("Clip", min=-2.0), [value] + [None] * 15)
    np.testing.assert_array_equal(found.constant.array(), np.maximum(expected, -2))


def test_slices_and_gathers():
    value, expected = large()
    starts, ends = Known(np.array([-1, 10])), Known(np.array([-(1 << 63), 250]))
    axes, steps = Known(np.array([0, 1])), Known(np.array([-2, 3]))
    (found,) = lazy.fold(node("Slice"), [value, starts, ends, axes, steps] + [None] * 11)
    np.testing.assert_array_equal(found.array.reshape(150, 80), expected[::-2, 10:250:3]) if (
        isinstance(found, Known)
    ) else np.testing.assert_array_equal(
        lazy.constant_of(found).array(),
        expected[::-2, 10:250:3],  # pyright: ignore
    )
    index = Known(np.array([[5, -1], [0, 7]]))
    (found,) = lazy.fold(node("Gather", axis=1), [value, index] + [None] * 14)
    np.testing.assert_array_equal(
        lazy.constant_of(found).array(),
        expected[:, np.array([[5, -1], [0, 7]])],  # pyright: ignore
    )
    with pytest.raises(Refusal, match="out of range"):
        lazy.fold(node("Gather", axis=1), [value, Known(np.array([256]))] + [None] * 14)


def test_bits_wrap_as_their_type_does():
    value, expected = large(np.uint8)
    (found,) = lazy.fold(
        node("BitShift", direction=b"LEFT"),
        [value, Stored(tensor(np.array(3, np.uint8)), ())] + [None] * 14,
    )
    np.testing.assert_array_equal(found.constant.array(), expected << np.uint8(3))
    with pytest.raises(Refusal, match="direction"):
        lazy.fold(node("BitShift"), [value, Known(np.array(1))] + [None] * 14)


def test_casts_follow_the_type():
    value, expected = large()
    to = helper.np_dtype_to_tensor_dtype(np.dtype(np.int8))
    (found,) = lazy.fold(node("Cast", to=to), [value] + [None] * 15)
    assert found.constant.dtype == np.int8
    np.testing.assert_array_equal(found.constant.array(), expected.astype(np.int8))
    with pytest.raises(Refusal, match="cast to STRING"):
        lazy.fold(node("Cast", to=TensorProto.STRING), [value] + [None] * 15)
