"""Puts a graph that is one matrix product into a small decoder, so that a chip can run it.

The product's result is query, key and value of one attention, and its residual; embedding and head
around it are random floats. The nodes and tensors of the product stay as they are.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

VOCABULARY, HEAD = 64, 16
SEED = 3


def is_single_product(path: Path) -> bool:
    """Whether a graph maps one float [m, K] to one float [m, N]."""
    graph = onnx.load(path, load_external_data=False).graph
    if len(graph.input) != 1 or len(graph.output) != 1:
        return False
    ends = (graph.input[0].type.tensor_type, graph.output[0].type.tensor_type)
    return all(e.elem_type == TensorProto.FLOAT and len(e.shape.dim) == 2 for e in ends)


def decoder_around(path: Path, out: Path) -> Path:
    """Writes the decoder into a folder.

    Args:
        path: a graph that `is_single_product`; N is a multiple of 16.
        out: a new folder.

    Returns:
        The written model.onnx.
    """
    model = onnx.load(path)
    graph = model.graph
    x, y = graph.input[0].name, graph.output[0].name
    k, n = (e.type.tensor_type.shape.dim[1].dim_value for e in (graph.input[0], graph.output[0]))
    rng = np.random.default_rng(SEED)
    tensors = {
        "decoder.embedding": rng.normal(size=(VOCABULARY, k)).astype(np.float32),
        "decoder.head": rng.normal(size=(n, VOCABULARY)).astype(np.float32)
        / np.float32(np.sqrt(n)),
        "decoder.one": np.array(1, np.int64),
        "decoder.last": np.array([1], np.int64),
    }
    before = [
        helper.make_node("Gather", ["decoder.embedding", "input_ids"], [x], "embed"),
        helper.make_node(
            "ReduceSum",
            ["attention_mask", "decoder.last"],
            ["decoder.seen"],
            "decoder.seen",
            keepdims=0,
        ),
        helper.make_node(
            "Sub", ["decoder.seen", "decoder.one"], ["decoder.before"], "decoder.before"
        ),
        helper.make_node(
            "Cast",
            ["decoder.before"],
            ["decoder.seqlens_k"],
            "decoder.seqlens_k",
            to=TensorProto.INT32,
        ),
        helper.make_node("Shape", ["attention_mask"], ["decoder.sizes"], "decoder.sizes"),
        helper.make_node(
            "Gather", ["decoder.sizes", "decoder.one"], ["decoder.total"], "decoder.total"
        ),
        helper.make_node(
            "Cast",
            ["decoder.total"],
            ["decoder.total_32"],
            "decoder.total_32",
            to=TensorProto.INT32,
        ),
    ]
    past = ["past_key_values.0.key", "past_key_values.0.value"]
    present = ["present.0.key", "present.0.value"]
    attention = helper.make_node(
        "GroupQueryAttention",
        [y, y, y, *past, "decoder.seqlens_k", "decoder.total_32"],
        ["decoder.attended", *present],
        "attention",
        domain="com.microsoft",
        num_heads=n // HEAD,
        kv_num_heads=n // HEAD,
    )
    after = [
        attention,
        helper.make_node("Add", [y, "decoder.attended"], ["decoder.hidden"], "residual"),
        helper.make_node("MatMul", ["decoder.hidden", "decoder.head"], ["logits"], "lm_head"),
    ]
    floats = TensorProto.FLOAT

    def cache(name: str, length: str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, floats, ["batch", n // HEAD, length, HEAD])

    tokens = ("input_ids", "sequence"), ("attention_mask", "total_sequence")
    made = helper.make_model(
        helper.make_graph(
            [*before, *graph.node, *after],
            path.stem,
            [
                *(
                    helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", length])
                    for name, length in tokens
                ),
                *(cache(name, "past_sequence") for name in past),
            ],
            [
                helper.make_tensor_value_info("logits", floats, ["batch", "sequence", VOCABULARY]),
                *(cache(name, "total_sequence") for name in present),
            ],
            [
                *graph.initializer,
                *(numpy_helper.from_array(value, name) for name, value in tensors.items()),
            ],
        ),
        opset_imports=[
            *(one for one in model.opset_import if one.domain != "com.microsoft"),
            helper.make_opsetid("com.microsoft", 1),
        ],
        ir_version=model.ir_version,
    )
    out.mkdir(parents=True)
    onnx.save(made, out / "model.onnx")
    return out / "model.onnx"
