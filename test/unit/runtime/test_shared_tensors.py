"""Models in which one tensor has several roles: engraved once for each of its forms."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from intaglio.backend.compile import compile_model
from intaglio.backend.stages import Options
from intaglio.runtime.chip import load

NORM = "model.layers.0.input_layernorm.weight"
O_BIAS = "model.layers.{}.attn.o_proj.Add.bias"
SCALES = "model.layers.0.attn.o_proj.MatMul.weight_scales"
WIDE = ("activations=int16", "kv=int16")


@pytest.mark.parametrize(
    ("name", "given", "instead", "copies"),
    [
        ("qwen", NORM, [O_BIAS.format(0)], 2),
        # In both layers a bias, in one of them the norm's weight too.
        ("qwen", NORM, [O_BIAS.format(0), O_BIAS.format(1)], 2),
        (
            "phi",
            "model.layers.0.input_layernorm.weight",
            ["model.layers.0.input_layernorm.bias"],
            2,
        ),
        # A bias that is met first, and is the last norm's weight and its bias.
        (
            "phi",
            O_BIAS.format(1),
            [
                "model.layers.2.final_norm_layernorm.weight",
                "model.layers.2.final_norm_layernorm.bias",
            ],
            2,
        ),
        ("qwen", "model.layers.0.attn.q_norm.weight", ["model.layers.1.attn.k_norm.weight"], 1),
        # The scales of a matrix, which are in no form of their own, as a bias.
        ("qwen", SCALES, ["model.layers.1.attn.qkv_proj.Add.bias"], 1),
        ("tied", "cos_cache", ["sin_cache"], 1),
    ],
)
def test_roles_of_one_tensor(
    model: Callable[[str], Path],
    tmp_path: Path,
    name: str,
    given: str,
    instead: list[str],
    copies: int,
) -> None:
    """The results are onnxruntime's."""
    graph = onnx.load(model(name))
    for tensor in graph.graph.initializer:
        if tensor.name == SCALES:
            # As some exporters write scales.
            tensor.dims[:] = [tensor.dims[0] * tensor.dims[1]]
    replaced = 0
    for node in graph.graph.node:
        for i, one in enumerate(node.input):
            if one in instead:
                node.input[i] = given
                replaced += 1
    assert replaced >= len(instead)
    onnx.save(graph, tmp_path / "model.onnx")
    options = Options("roma-mini", WIDE, context=32, emit="program")
    chip = load(compile_model(tmp_path / "model.onnx", tmp_path / "out", options).folder)
    text = (chip.folder / "ir" / "rom.mlir").read_text()
    assert text.count(f'key = "onnx::{given}') == copies
    found = chip.check(tokens=24)
    assert found["max_abs_logit_error"] < 0.003
