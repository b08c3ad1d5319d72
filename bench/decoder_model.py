"""Writes a Llama-shaped decoder with random weights, as onnxruntime-genai's builder would.

MatMulNBits with packed QKV, GroupQueryAttention with rotary caches, tied embeddings through
GatherBlockQuantized, external data. Weights are written as a stream, so any size needs little
memory; the same seed gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ALIGNMENT = 4096


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder."""

    layers: int = 28
    hidden: int = 3072
    heads: int = 24
    kv_heads: int = 8
    head_dim: int = 128
    ffn: int = 8192
    vocabulary: int = 128256
    positions: int = 4096
    bits: int = 4
    block: int = 32


LLAMA_3_2_3B = Shape()
LLAMA_3_8B = Shape(layers=32, hidden=4096, heads=32, ffn=14336)


class _Model:
    """Nodes and initializers under construction; bytes go straight to the data file."""

    def __init__(self, folder: Path, shape: Shape, seed: int) -> None:
        self.shape = shape
        self.random = np.random.default_rng(seed)
        self.nodes: list[Any] = []
        self.tensors: list[Any] = []
        self.data = (folder / "model.onnx.data").open("wb")

    def tensor(self, name: str, values: np.ndarray) -> str:
        import onnx

        self.data.write(bytes(-self.data.tell() % ALIGNMENT))
        proto = onnx.TensorProto(name=name, data_location=onnx.TensorProto.EXTERNAL)
        proto.data_type = onnx.helper.np_dtype_to_tensor_dtype(values.dtype)
        proto.dims.extend(values.shape)
        entries = {
            "location": "model.onnx.data",
            "offset": self.data.tell(),
            "length": values.nbytes,
        }
        for key, value in entries.items():
            proto.external_data.add(key=key, value=str(value))
        self.data.write(values.tobytes())
        self.tensors.append(proto)
        return name

    def node(
        self,
        op_type: str,
        inputs: Sequence[str],
        outputs: Sequence[str],
        name: str,
        domain: str = "",
        **attributes: Any,
    ) -> str:
        import onnx

        self.nodes.append(
            onnx.helper.make_node(op_type, inputs, outputs, name=name, domain=domain, **attributes)
        )
        return outputs[-1] if op_type.startswith("Skip") else outputs[0]

    def constant(self, name: str, value: Any) -> str:
        import onnx

        array = onnx.numpy_helper.from_array(np.asarray(value, np.int64))
        return self.node("Constant", [], [name], name, value=array)

    def codes(self, name: str, rows: int, columns: int) -> tuple[str, str]:
        shape = self.shape
        blocks = -(-columns // shape.block)
        packed = self.random.integers(
            0, 256, (rows, blocks, shape.block * shape.bits // 8), dtype=np.uint8
        )
        # Codes are uniform, so this gives outputs of about the inputs' size.
        spread = ((4**shape.bits - 1) / 12) ** 0.5 * columns**0.5
        scales = (0.6 + 0.4 * self.random.random((rows, blocks), dtype=np.float32)) / spread
        scales *= self.random.choice([-1.0, 1.0], (rows, blocks))
        return (
            self.tensor(f"{name}.weight_Q{shape.bits}", packed),
            self.tensor(f"{name}.weight_scales", scales.astype(np.float32)),
        )

    def product(self, path: str, x: str, rows: int, columns: int, output: str | None = None) -> str:
        weights = self.codes(path.removeprefix("/").replace("/", ".") + ".MatMul", rows, columns)
        return self.node(
            "MatMulNBits",
            [x, *weights],
            [output or f"{path}/MatMul/output_0"],
            f"{path}/MatMul_Q{self.shape.bits}",
            "com.microsoft",
            K=columns,
            N=rows,
            bits=self.shape.bits,
            block_size=self.shape.block,
            accuracy_level=4,
        )

    def gamma(self, name: str) -> str:
        values = 1 + 0.05 * self.random.standard_normal(self.shape.hidden)
        return self.tensor(f"{name}.weight", values.astype(np.float32))

    def angles(self) -> tuple[str, str]:
        shape = self.shape
        frequencies = 500000.0 ** (-np.arange(0, shape.head_dim, 2) / shape.head_dim)
        angles = np.arange(shape.positions)[:, None] * frequencies
        return (
            self.tensor("cos_cache", np.cos(angles).astype(np.float32)),
            self.tensor("sin_cache", np.sin(angles).astype(np.float32)),
        )

    def lengths(self) -> tuple[str, str]:
        path = "/model/attn_mask_reformat"
        one = self.constant("axis_1", [1])
        total = self.node("ReduceSum", ["attention_mask", one], ["r"], f"{path}/Sum", keepdims=0)
        less = self.node("Sub", [total, one], ["s"], f"{path}/Sub")
        per_row = self.node("Cast", [less], ["seqlens_k"], f"{path}/Cast", to=6)
        size = self.node("Shape", ["attention_mask"], ["m"], f"{path}/Shape")
        index = self.constant("index_1", 1)
        last = self.node("Gather", [size, index], ["l"], f"{path}/Gather", axis=0)
        return per_row, self.node("Cast", [last], ["total"], f"{path}/Cast_1", to=6)


def write_decoder(folder: Path, shape: Shape, seed: int = 0) -> Path:
    """Writes model.onnx and model.onnx.data; returns the path of the former."""
    import onnx

    folder.mkdir(parents=True, exist_ok=True)
    m = _Model(folder, shape, seed)
    cos, sin = m.angles()
    per_row, total = m.lengths()
    hidden, width = shape.hidden, shape.head_dim
    head = m.codes("lm_head.MatMul", shape.vocabulary, hidden)
    rows = m.constant("embedding_shape", [shape.vocabulary, hidden * shape.bits // 8])
    table = m.node("Reshape", [head[0], rows], ["embedding"], "/model/embed_tokens/Reshape")
    residual = m.node(
        "GatherBlockQuantized",
        [table, "input_ids", head[1]],
        ["/model/embed_tokens/output_0"],
        "/model/embed_tokens/GatherBlockQuantized",
        "com.microsoft",
        bits=shape.bits,
        block_size=shape.block,
        gather_axis=0,
        quantize_axis=1,
    )
    eps = 1e-5
    x = m.node(
        "SimplifiedLayerNormalization",
        [residual, m.gamma("model.layers.0.input_layernorm")],
        ["norm"],
        "/model/layers.0/input_layernorm/LayerNorm",
        axis=-1,
        epsilon=eps,
        stash_type=1,
    )
    for layer in range(shape.layers):
        path = f"/model/layers.{layer}"
        qkv = m.product(
            f"{path}/attn/qkv_proj", x, (shape.heads + 2 * shape.kv_heads) * width, hidden
        )
        past = [f"past_key_values.{layer}.{kind}" for kind in ("key", "value")]
        present = [f"present.{layer}.{kind}" for kind in ("key", "value")]
        attention = m.node(
            "GroupQueryAttention",
            [qkv, "", "", *past, per_row, total, cos, sin, "", "", ""],
            [f"{path}/attn/output_0", *present],
            f"{path}/attn/GroupQueryAttention",
            "com.microsoft",
            num_heads=shape.heads,
            kv_num_heads=shape.kv_heads,
            scale=width**-0.5,
            local_window_size=-1,
            softcap=0.0,
            do_rotary=1,
            rotary_interleaved=0,
        )
        o = m.product(f"{path}/attn/o_proj", attention, hidden, shape.heads * width)
        name = f"{path}/post_attention_layernorm"
        x = f"{name}/output_0"
        residual = m.node(
            "SkipSimplifiedLayerNormalization",
            [residual, o, m.gamma(f"model.layers.{layer}.post_attention_layernorm")],
            [x, "", "", f"{name}/output_3"],
            f"{name}/SkipLayerNorm",
            "com.microsoft",
            epsilon=eps,
        )
        gate = m.product(f"{path}/mlp/gate_proj", x, shape.ffn, hidden)
        up = m.product(f"{path}/mlp/up_proj", x, shape.ffn, hidden)
        s = m.node("Sigmoid", [gate], [f"{path}/mlp/s"], f"{path}/mlp/act_fn/Sigmoid")
        silu = m.node("Mul", [gate, s], [f"{path}/mlp/silu"], f"{path}/mlp/act_fn/Mul")
        y = m.node("Mul", [silu, up], [f"{path}/mlp/y"], f"{path}/mlp/Mul")
        down = m.product(f"{path}/mlp/down_proj", y, hidden, shape.ffn)
        name = f"{path}/next_layernorm"
        x = f"{name}/output_0"
        last = layer == shape.layers - 1
        residual = m.node(
            "SkipSimplifiedLayerNormalization",
            [residual, down, m.gamma(f"model.layers.{layer + 1}.input_layernorm")],
            [x] if last else [x, "", "", f"{name}/output_3"],
            f"{name}/SkipLayerNorm",
            "com.microsoft",
            epsilon=eps,
        )
    m.node(
        "MatMulNBits",
        [x, *head],
        ["logits"],
        f"/lm_head/MatMul_Q{shape.bits}",
        "com.microsoft",
        K=hidden,
        N=shape.vocabulary,
        bits=shape.bits,
        block_size=shape.block,
        accuracy_level=4,
    )
    m.data.close()

    def value(name: str, kind: int, dims: list[str | int]) -> Any:
        return onnx.helper.make_tensor_value_info(name, kind, dims)

    integer, real = onnx.TensorProto.INT64, onnx.TensorProto.FLOAT
    batch, total_name = "batch_size", "total_sequence_length"
    names = [f"{i}.{kind}" for kind in ("key", "value") for i in range(shape.layers)]
    inputs = [
        value("input_ids", integer, [batch, "sequence_length"]),
        value("attention_mask", integer, [batch, total_name]),
        *(
            value(
                f"past_key_values.{n}",
                real,
                [batch, shape.kv_heads, "past_sequence_length", width],
            )
            for n in names
        ),
    ]
    outputs = [
        value("logits", real, [batch, "sequence_length", shape.vocabulary]),
        *(value(f"present.{n}", real, [batch, shape.kv_heads, total_name, width]) for n in names),
    ]
    graph = onnx.helper.make_graph(m.nodes, "main_graph", inputs, outputs, m.tensors)
    opsets = [onnx.helper.make_opsetid("", 21), onnx.helper.make_opsetid("com.microsoft", 1)]
    model = onnx.helper.make_model(
        graph, opset_imports=opsets, ir_version=10, producer_name="intaglio-bench"
    )
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path
