"""Positions along the axes of an image: of text they are equal."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto

from intaglio.dialects import rom
from intaglio.dialects.errors import UserErrors
from intaglio.lowering.onnx.importer import import_model


def graph(decoder, **attributes):
    """MRotaryEmbedding of the embedding, with tables of 8 pairs."""
    decoder.inputs.append(("position_ids", TensorProto.INT64, [3, "batch", "sequence"]))
    angles = np.arange(24)[:, None] * 10.0 ** -np.linspace(0, 2, 8)
    tables = [
        decoder.constant(name, function(angles).astype(np.float32))
        for name, function in (("cos", np.cos), ("sin", np.sin))
    ]
    decoder.ms("MRotaryEmbedding", ["x", "position_ids", *tables], ["y"], **attributes)


@pytest.mark.parametrize("sections", [[2, 3, 3], [3, 3, 2], [8, 0, 0]])
@pytest.mark.parametrize("layout", [0, 1])
def test_layouts(wide, agrees, layout, sections):
    graph(wide, num_heads=4, mrope_section=sections, mrope_layout=layout)
    model = agrees(wide)
    (op,) = [op for op in model.module.walk() if isinstance(op, rom.RotaryOp)]
    assert op.heads.value.data == 4
    assert model.positions == 24
    assert any("3 positions for each token" in one for one in model.warnings)


@pytest.mark.parametrize("interleaved", [0, 1])
def test_part_of_each_head(wide, agrees, interleaved):
    graph(
        wide,
        num_heads=2,
        rotary_embedding_dim=16,
        mrope_section=[2, 3, 3],
        interleaved=interleaved,
    )
    (op,) = [op for op in agrees(wide).module.walk() if isinstance(op, rom.RotaryOp)]
    assert op.rotary_dim.value.data == 16


def test_rows_taken_apart(wide, agrees):
    """Exporters without the operator choose one of the rows themselves."""
    wide.inputs.append(("position_ids", TensorProto.INT64, [3, "batch", "sequence"]))
    wide.constant("second", np.array(1))
    wide.node("Gather", ["position_ids", "second"], ["own"], axis=0)
    wide.node("Gather", [wide.floats("wpe", 24, 64), "own"], ["row"])
    wide.node("Add", ["x", "row"], ["y"])
    agrees(wide)


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ({"num_heads": 4, "mrope_section": [2, 3, 4]}, "together 8 pairs"),
        ({"num_heads": 4, "mrope_section": [4, 4]}, "must be three numbers"),
        ({"num_heads": 4, "mrope_section": [2, 3, 3], "scale": 2.0}, "scale must be 1"),
    ],
)
def test_refusals(wide, attributes, reason):
    graph(wide, **attributes)
    with pytest.raises(UserErrors, match=reason):
        import_model(wide.save())
