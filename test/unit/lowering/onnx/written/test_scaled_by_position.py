"""A number of the position on queries: Ministral 3 sharpens attention beyond some length."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto

from intaglio.dialects import rom
from intaglio.lowering.onnx.importer import import_model


def scaled(decoder, original, *, turned):
    """x, rotated or not, times 1 + 0.5 * log(1 + floor(position / original))."""
    decoder.inputs.append(("position_ids", TensorProto.INT64, ["batch", "sequence"]))
    decoder.node("Cast", ["position_ids"], ["place"], to=TensorProto.FLOAT)
    for name, value in (("one", 1.0), ("beta", 0.5), ("original", float(original))):
        decoder.constant(name, np.array(value, np.float32))
    decoder.node("Div", ["place", "original"], ["share"])
    decoder.node("Floor", ["share"], ["count"])
    decoder.node("Add", ["count", "one"], ["more"])
    decoder.node("Log", ["more"], ["log"])
    decoder.node("Mul", ["log", "beta"], ["part"])
    decoder.node("Add", ["part", "one"], ["number"])
    decoder.node("Unsqueeze", ["number", decoder.constant("axes", np.array([1, 3]))], ["by"])
    shape = decoder.constant("apart", np.array([0, 0, 4, 16]))
    decoder.node("Reshape", ["x", shape], ["split"])
    decoder.node("Transpose", ["split"], ["heads"], perm=[0, 2, 1, 3])
    if turned:
        angles = np.arange(24)[:, None] * 0.3 ** np.arange(8)[None]
        for name, function in (("cos", np.cos), ("sin", np.sin)):
            decoder.constant(name, function(angles).astype(np.float32))
        inputs = ["heads", "position_ids", "cos", "sin"]
        decoder.ms("RotaryEmbedding", inputs, ["rotated"], interleaved=int(turned == "pairs"))
    decoder.node("Mul", ["rotated" if turned else "heads", "by"], ["z"])
    decoder.node("Transpose", ["z"], ["back"], perm=[0, 2, 1, 3])
    decoder.node("Reshape", ["back", decoder.constant("flat", np.array([0, 0, 64]))], ["y"])


@pytest.mark.parametrize("turned", ["", "halves", "pairs"])
@pytest.mark.parametrize("original", [2, 3, 5])
def test_it_differs_within_the_context(wide, agrees, turned, original):
    scaled(wide, original, turned=turned)
    model = agrees(wide, tolerance=1e-4)
    assert len([op for op in model.module.walk() if isinstance(op, rom.RotaryOp)]) == 1


@pytest.mark.parametrize("turned", ["", "halves"])
def test_it_is_1_within_the_context(wide, turned):
    scaled(wide, 20, turned=turned)
    model = import_model(wide.save(), context=20)
    found = [type(op) for op in model.module.walk()]
    assert found.count(rom.RotaryOp) == bool(turned) and rom.ScaleOp not in found
