"""Whether onnxruntime can run a graph on a CPU, by its operators and types, without its weights.

`compile` says what `check` would find out: a graph that was exported for a GPU is compiled all the
same, but nobody can judge it here.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx
from onnx import TensorProto

NORM_WEIGHTS = (14, 15)
"""Inputs of GroupQueryAttention that onnxruntime has on GPUs only."""
_MOVES = frozenset(
    (
        *("Cast", "Concat", "Flatten", "Gather", "GatherND", "Identity", "If", "IsNaN", "Reshape"),
        *("ScatterND", "Shape", "Sign", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"),
        *("LayerNormalization", "SimplifiedLayerNormalization"),
        *("SkipLayerNormalization", "SkipSimplifiedLayerNormalization"),
    )
)
"""Operators that take bfloat16 on a CPU, of those that are compiled: onnxruntime 1.32's kernels."""
_HELD = frozenset(
    (
        *(TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT8),
        *(TensorProto.UINT8, TensorProto.INT32, TensorProto.INT64),
    )
)
"""Types of inputs and outputs that the comparison can hand over."""


def why_not(model: Path) -> str | None:
    """Why onnxruntime cannot run a graph on a CPU; None where nothing is known against it.

    Args:
        model: an .onnx file; its external data are not read.
    """
    graph = onnx.load(model, load_external_data=False).graph
    return next(_reasons(graph), None)


def _reasons(graph: onnx.GraphProto) -> Iterator[str]:
    for port in (*graph.input, *graph.output):
        kind = port.type.tensor_type.elem_type
        if kind and kind not in _HELD:
            yield f"'{port.name}' is of {TensorProto.DataType.Name(kind)}"
    brains = {one.name for one in graph.initializer if one.data_type == TensorProto.BFLOAT16}
    brains |= {
        one.name
        for one in (*graph.input, *graph.value_info)
        if one.type.tensor_type.elem_type == TensorProto.BFLOAT16
    }
    for node in graph.node:
        if node.op_type == "GroupQueryAttention" and any(
            node.input[place] for place in NORM_WEIGHTS if place < len(node.input)
        ):
            yield (
                f"GroupQueryAttention '{node.name}' normalises queries and keys itself, which "
                "onnxruntime does on GPUs only"
            )
        if node.op_type == "Cast":
            if any(a.name == "to" and a.i == TensorProto.BFLOAT16 for a in node.attribute):
                brains.update(node.output)
        elif brains.intersection(node.input):
            if node.op_type not in _MOVES:
                yield (
                    f"{node.op_type} '{node.name}' takes bfloat16, for which onnxruntime has no "
                    "kernel on CPUs"
                )
            brains.update(node.output)
