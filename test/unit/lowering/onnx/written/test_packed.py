"""Queries, keys and values packed into one matrix by head: their rows become matrices."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto

from intaglio.dialects import rom
from intaglio.dialects.errors import UserErrors
from intaglio.lowering.onnx.importer import import_model

HEADS, WIDTH = 4, 16


def linears(model):
    """Rows of all matrices that are multiplied with, and whether a bias is added."""
    found = [op for op in model.module.walk() if isinstance(op, rom.LinearOp)]
    return sorted((rom.vector_size(op.output.type), op.bias is not None) for op in found)


def packed(decoder, rows, *, bits=4, bias=True):
    """A product of `rows` outputs, quantised, with a bias."""
    blocks = decoder.width // 16
    codes = decoder.rng.integers(0, 256, (rows, blocks, 2 * bits)).astype(np.uint8)
    scales = decoder.rng.normal(size=(rows, blocks)).astype(np.float32) / 16
    inputs = ["x", decoder.constant("codes", codes), decoder.constant("scales", scales)]
    if bits == 8:
        zeros = decoder.rng.integers(100, 150, (rows, blocks)).astype(np.uint8)
        inputs.append(decoder.constant("zeros", zeros))
    attributes = {"K": decoder.width, "N": rows, "bits": bits, "block_size": 16}
    decoder.ms("MatMulNBits", inputs, ["product"], name="qkv", **attributes)
    if not bias:
        return "product"
    decoder.node("Add", ["product", decoder.floats("bias", rows)], ["packed"])
    return "packed"


def reshaped(decoder, x, y, *dims):
    shape = decoder.constant(f"{y}_shape", np.array(dims, np.int64))
    decoder.node("Reshape", [x, shape], [y])
    return y


def merged(decoder, parts, sizes):
    """The sum of the parts, each [batch, sequence, heads, width], as one vector a token."""
    flat = [
        reshaped(decoder, part, f"{part}_flat", 0, -1, n)
        for part, n in zip(parts, sizes, strict=True)
    ]
    while len(flat) > 1:
        decoder.node("Add", flat[:2], [f"{flat[0]}_{len(flat)}"])
        flat = [f"{flat[0]}_{len(flat)}", *flat[2:]]
    decoder.node("Identity", flat, ["y"])


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_split_of_each_head(wide, agrees, bits):
    """GPT-NeoX: [heads, 3 * width]."""
    x = reshaped(wide, packed(wide, 192, bits=bits), "apart", 0, 0, HEADS, 48)
    wide.node("Transpose", [x], ["turned"], perm=[0, 2, 1, 3])
    wide.node("Split", ["turned"], ["q", "k", "v"], axis=-1, num_outputs=3)
    for name in ("q", "k", "v"):
        wide.node("Transpose", [name], [f"{name}_back"], perm=[0, 2, 1, 3])
    merged(wide, ["q_back", "k_back", "v_back"], [64] * 3)
    assert linears(agrees(wide)) == [(64, True)] * 3


def test_an_axis_of_three(wide, agrees):
    """Bloom: [heads, 3, width], chosen by an index; the order of the three is another here."""
    x = reshaped(wide, packed(wide, 192), "apart", 0, 0, HEADS, 3, WIDTH)
    for i, name in enumerate(("v", "q", "k")):
        wide.node("Gather", [x, wide.constant(f"at_{name}", np.array(i))], [name], axis=3)
    merged(wide, ["q", "k", "v"], [64] * 3)
    assert linears(agrees(wide)) == [(64, True)] * 3


def test_queries_of_a_group_before_its_key(wide, agrees):
    """Falcon: [groups, queries of the group, key, value]."""
    x = reshaped(wide, packed(wide, 128, bias=False), "apart", 0, 0, 2, 4, WIDTH)
    for name, first, end in (("q", 0, -2), ("k", -2, -1), ("v", -1, 1 << 40)):
        ends = [wide.constant(f"{name}_{i}", np.array([v])) for i, v in enumerate((first, end, 3))]
        wide.node("Slice", [x, *ends], [name])
    merged(wide, ["k", "v"], [32, 32])
    model = agrees(wide)
    assert linears(model) == [(32, False)] * 2
    wide.nodes[-1].output[0] = "small"
    reshaped(wide, "q", "q_flat", 0, -1, 64)
    wide.node("Relu", ["q_flat"], ["y"])
    assert linears(agrees(wide)) == [(64, False)]


@pytest.mark.parametrize(("turned", "factor"), [(16, 1.0), (4, 1.0), (4, 0.5)])
def test_rotated_parts(wide, agrees, turned, factor):
    """GPT-NeoX turns a part of each head, of what it has cut out of the packed one."""
    wide.inputs.append(("position_ids", TensorProto.INT64, ["batch", "sequence"]))
    wide.node("Cast", ["position_ids"], ["place"], to=TensorProto.FLOAT)
    wide.node("Unsqueeze", ["place", wide.constant("axes", np.array([1, 3]))], ["tall"])
    wide.node("Mul", ["tall", wide.floats("frequencies", turned // 2)], ["half"])
    wide.node("Concat", ["half", "half"], ["angles"], axis=-1)
    wide.node("Cos", ["angles"], ["cos"])
    wide.node("Sin", ["angles"], ["sin"])
    x = reshaped(wide, packed(wide, 192), "apart", 0, 0, HEADS, 48)
    wide.node("Transpose", [x], ["heads"], perm=[0, 2, 1, 3])
    wide.node("Split", ["heads"], ["q", "k", "v"], axis=-1, num_outputs=3)
    sizes = wide.constant("sizes", np.array([turned, 16 - turned]))
    last = "k"
    if turned < 16:
        wide.node("Split", ["k", sizes], ["turn", "pass"], axis=-1)
        last = "turn"
    wide.node("Split", [last], ["a", "b"], axis=-1, num_outputs=2)
    wide.node("Neg", ["b"], ["minus"])
    wide.node("Concat", ["minus", "a"], ["other"], axis=-1)
    wide.node("Mul", [last, "cos"], ["straight"])
    wide.node("Mul", ["other", "sin"], ["across"])
    wide.node("Add", ["straight", "across"], ["rotated"])
    whole = "rotated"
    if turned < 16:
        wide.node("Concat", ["rotated", "pass"], ["whole"], axis=-1)
        whole = "whole"
    wide.node("Mul", [whole, wide.constant("factor", np.array(factor, np.float32))], ["scaled"])
    wide.node("Transpose", ["scaled"], ["back"], perm=[0, 2, 1, 3])
    reshaped(wide, "back", "y", 0, -1, 64)
    model = agrees(wide, tolerance=1e-4)
    assert linears(model) == [(64, True)]
    (op,) = [op for op in model.module.walk() if isinstance(op, rom.RotaryOp)]
    assert op.rotary_dim.value.data == turned


def test_one_of_several_in_front(wide, agrees):
    """Gemma-4: rows of all layers at once, of which each layer takes its own."""
    x = reshaped(wide, packed(wide, 96, bias=False), "layers", 0, 0, 6, 16)
    wide.node("Gather", [x, wide.constant("second", np.array(-2))], ["own"], axis=2)
    wide.node("Relu", ["own"], ["y"])
    assert linears(agrees(wide)) == [(96, False)]


def test_by_gather_nd(wide, agrees):
    """torch's indexing with a list moves the axis to the front and back."""
    x = reshaped(wide, packed(wide, 96, bias=False), "apart", 0, 0, 6, 16)
    wide.node("Transpose", [x], ["front"], perm=[2, 0, 1, 3])
    wide.node("GatherND", ["front", wide.constant("at", np.array([[4]]))], ["chosen"])
    wide.node("Transpose", ["chosen"], ["back"], perm=[1, 2, 0, 3])
    reshaped(wide, "back", "y", 0, 0, 16)
    agrees(wide)


def test_what_is_no_product(wide):
    """Elements of each head of an activation that no matrix gives cannot be cut out."""
    wide.node("Relu", ["x"], ["kept"])
    x = reshaped(wide, "kept", "apart", 0, 0, HEADS, 2, 8)
    wide.node("Gather", [x, wide.constant("at", np.array(1))], ["own"], axis=3)
    reshaped(wide, "own", "y", 0, 0, 32)
    with pytest.raises(UserErrors, match="elements of each"):
        import_model(wide.save())
