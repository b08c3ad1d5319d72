"""Writes a Llama-shaped decoder with random weights, as onnxruntime-genai's builder would.

MatMulNBits with packed QKV, GroupQueryAttention with rotary caches, tied embeddings through
GatherBlockQuantized, external data. Ternary weights are INT2 with one scale for each matrix
(DequantizeLinear, opset 25), beside a head of more bits; BitNet's blocks have norms before their
output projections and a squared ReLU. Weights are written as a stream, so any size needs little
memory; the same seed gives the same bytes.

Codes of 3 and 6 bits, which ONNX does not have, are written into carriers of 4 and 8 bits, whose
other values do not occur.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mixers
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
    """Of the layers' weights; 2 with `zeros` means ternary."""
    block: int = 32
    head_bits: int = 0
    """Of head and embedding; 0: as the layers' weights."""
    zeros: float | None = None
    """The share of zeros among ternary weights; None: other weights."""
    bitnet: bool = False
    """BitNet's norms before output projections and its squared ReLU, instead of SiLU."""
    tied: bool = True
    """One matrix is embedding and head."""
    embedding_bits: int = 8
    """Of an embedding of its own."""
    head_zeros: float | None = None
    """The share of zeros in a ternary head, which has one scale; None: another head."""
    mix: tuple[tuple[str, int], ...] = ()
    """Parts of the matrices' names, and the bits of those: the first that occurs decides, before
    `bits` and `head_bits`."""
    experts: int = 0
    """A mixture of so many experts of `ffn` in each layer (QMoE); 0: one network."""
    chosen: int = 0
    """Of them, those that a token takes."""
    limited: bool = False
    """gpt-oss's SwiGLU: a limit of 7, a slope of 1.702, 1 added, biases."""
    mixers: tuple[str, ...] = ("attention",)
    """What the layers do, in turns: `attention`, `convolution` or `linear`."""
    taps: int = 0
    """Of convolutions."""
    linear: tuple[int, int, int] = (0, 0, 0)
    """Of linear attention: heads of keys and of values, elements of each."""
    one_layer: bool = False
    """All layers are the bytes of the first: a small file where only shapes matter."""

    def mixer(self, layer: int) -> str:
        """What a layer does."""
        return self.mixers[layer % len(self.mixers)]

    def bits_of(self, name: str) -> int:
        """Bits of the weights of a matrix."""
        head = name.startswith("lm_head")
        default = (self.head_bits if head else 0) or self.bits
        return next((bits for part, bits in self.mix if part in name), default)


LLAMA_3_2_3B = Shape()
LLAMA_3_8B = Shape(layers=32, hidden=4096, heads=32, ffn=14336, tied=False)
BITNET_2B = Shape(
    layers=30,
    hidden=2560,
    heads=20,
    kv_heads=5,
    ffn=6912,
    bits=2,
    block=128,
    head_bits=8,
    zeros=0.422,
    bitnet=True,
)
FALCON3_1B = Shape(
    layers=18,
    hidden=2048,
    heads=8,
    kv_heads=4,
    head_dim=256,
    ffn=8192,
    vocabulary=131072,
    bits=2,
    block=128,
    head_bits=8,
    zeros=0.297,
    tied=False,
)
FALCON3_3B = replace(FALCON3_1B, layers=22, hidden=3072, heads=12, ffn=9216)
FALCON3_7B = replace(FALCON3_3B, layers=28, ffn=23040)
FALCON3_10B = replace(FALCON3_7B, layers=40)


GPT_OSS_20B = Shape(
    layers=24,
    hidden=2880,
    heads=64,
    kv_heads=8,
    head_dim=64,
    ffn=2880,
    vocabulary=201088,
    tied=False,
    experts=32,
    chosen=4,
    limited=True,
    one_layer=True,
)
"""openai/gpt-oss-20b, without sinks and windows."""
QWEN3_30B_A3B = Shape(
    layers=48,
    hidden=2048,
    heads=32,
    kv_heads=4,
    head_dim=128,
    ffn=768,
    vocabulary=151936,
    tied=False,
    experts=128,
    chosen=8,
    one_layer=True,
)
"""Qwen/Qwen3-30B-A3B, without the norms of queries and keys."""


LFM2_1_2B = Shape(
    layers=16,
    hidden=2048,
    heads=32,
    kv_heads=8,
    head_dim=64,
    ffn=8192,
    vocabulary=65536,
    mixers=tuple(
        "attention" if layer in (2, 5, 8, 10, 12, 14) else "convolution" for layer in range(16)
    ),
    taps=3,
    one_layer=True,
)
"""LiquidAI/LFM2-1.2B, without the norms of queries and keys."""
QWEN3_5_2B = Shape(
    layers=24,
    hidden=2048,
    heads=8,
    kv_heads=2,
    head_dim=256,
    ffn=6144,
    vocabulary=248320,
    mixers=("linear", "linear", "linear", "attention"),
    taps=4,
    linear=(16, 16, 128),
    one_layer=True,
)
"""As Qwen3.5-2B: three of four layers are linear attention; without the gates, norms and partial
rotation of the others."""


class Model:
    """Nodes and initializers under construction; bytes go straight to the data file."""

    def __init__(self, folder: Path, shape: Shape, seed: int) -> None:
        self.shape = shape
        self.random = np.random.default_rng(seed)
        self.nodes: list[Any] = []
        self.tensors: list[Any] = []
        self.data = (folder / "model.onnx.data").open("wb")
        self.written: dict[str, Any] = {}

    def tensor(self, name: str, values: Callable[[], np.ndarray], data_type: int = 0) -> str:
        """An initializer; `values` are asked for when they are to be written."""
        import onnx

        # Of a model of one layer's bytes, the layer that is written stands for all.
        part = re.sub(r"\.layers\.\d+\.", ".layers.0.", name) if self.shape.one_layer else name
        if part in self.written:
            proto = onnx.TensorProto()
            proto.CopyFrom(self.written[part])
            proto.name = name
            self.tensors.append(proto)
            return name
        array = values()
        self.data.write(bytes(-self.data.tell() % ALIGNMENT))
        proto = onnx.TensorProto(name=name, data_location=onnx.TensorProto.EXTERNAL)
        proto.data_type = data_type or onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
        proto.dims.extend(array.shape)
        entries = {
            "location": "model.onnx.data",
            "offset": self.data.tell(),
            "length": array.nbytes,
        }
        for key, value in entries.items():
            proto.external_data.add(key=key, value=str(value))
        self.data.write(array.data)
        self.tensors.append(proto)
        self.written[part] = proto
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

    def codes(self, name: str, rows: int, columns: int, bits: int) -> tuple[str, str]:
        """Codes and scales of a matrix in the layout of MatMulNBits."""
        block = self.shape.block
        blocks = -(-columns // block)
        # Codes are uniform, so this gives outputs of about the inputs' size.
        spread = ((4**bits - 1) / 12) ** 0.5 * columns**0.5

        def packed() -> np.ndarray:
            shape = (rows, blocks, block * carrier(bits) // 8)
            return _narrow(self.random.integers(0, 256, shape, dtype=np.uint8), bits)

        def scales() -> np.ndarray:
            values = (0.6 + 0.4 * self.random.random((rows, blocks), dtype=np.float32)) / spread
            values *= self.random.choice([-1.0, 1.0], (rows, blocks))
            return values.astype(np.float32)

        return (
            self.tensor(f"{name}.weight_Q{carrier(bits)}", packed),
            self.tensor(f"{name}.weight_scales", scales),
        )

    def ternary_codes(self, name: str, rows: int, columns: int, zeros: float) -> tuple[str, str]:
        """The same of a ternary matrix with one scale."""
        block = self.shape.block
        blocks = -(-columns // block)
        size = ((1 - zeros) * columns) ** -0.5

        def packed() -> np.ndarray:
            drawn = self.random.integers(0, 1 << 16, rows * blocks * block // 4, dtype=np.uint16)
            # From two's complement to codes around 2.
            codes = _four_trits(zeros).take(drawn) ^ np.uint8(0xAA)
            return codes.reshape(rows, blocks, block // 4)

        return (
            self.tensor(f"{name}.weight_Q2", packed),
            self.tensor(f"{name}.weight_scales", lambda: np.full((rows, blocks), size, np.float32)),
        )

    def ternary(self, path: str, x: str, rows: int, columns: int) -> str:
        """A product with INT2 weights [rows, columns] of -1, 0 and 1 under one scale."""
        import onnx

        shape = self.shape
        assert shape.zeros is not None
        assert columns % 4 == 0
        name = path.removeprefix("/").replace("/", ".") + ".weight"
        zeros = shape.zeros

        def packed() -> np.ndarray:
            drawn = self.random.integers(0, 1 << 16, rows * columns // 4, dtype=np.uint16)
            return _four_trits(zeros).take(drawn)

        codes = self.tensor(name, packed, onnx.TensorProto.INT2)
        del self.tensors[-1].dims[:]
        self.tensors[-1].dims.extend([rows, columns])
        size = ((1 - zeros) * columns) ** -0.5
        scale = self.tensor(f"{name}_scale", lambda: np.array(size, np.float32))
        weights = self.node("DequantizeLinear", [codes, scale], [f"{path}/w"], f"{path}/Dequantize")
        turned = self.node("Transpose", [weights], [f"{path}/t"], f"{path}/Transpose", perm=[1, 0])
        return self.node("MatMul", [x, turned], [f"{path}/MatMul/output_0"], f"{path}/MatMul")

    def product(self, path: str, x: str, rows: int, columns: int, output: str | None = None) -> str:
        if self.shape.zeros is not None:
            return self.ternary(path, x, rows, columns)
        name = path.removeprefix("/").replace("/", ".") + ".MatMul"
        bits = self.shape.bits_of(name)
        return self.node(
            "MatMulNBits",
            [x, *self.codes(name, rows, columns, bits)],
            [output or f"{path}/MatMul/output_0"],
            f"{path}/MatMul_Q{carrier(bits)}",
            "com.microsoft",
            K=columns,
            N=rows,
            bits=carrier(bits),
            block_size=self.shape.block,
            accuracy_level=4,
        )

    def mixture(self, path: str, x: str) -> str:
        """A router and a QMoE, as the builder writes them."""
        shape = self.shape
        name = path.removeprefix("/").replace("/", ".")
        logits = self.product(f"{path}/router", x, shape.experts, shape.hidden)
        flat = self.constant(f"{path}/flat", [-1, shape.experts])
        logits = self.node("Reshape", [logits, flat], [f"{path}/logits"], f"{path}/Reshape")
        inputs = [x, logits]
        for part, rows, columns in (
            ("gate_up", 2 * shape.ffn, shape.hidden),
            ("down", shape.hidden, shape.ffn),
        ):
            bits = shape.bits_of(part)
            whole = f"{name}.experts.{part}"
            inputs += self.codes(whole, shape.experts * rows, columns, bits)
            for tensor in self.tensors[-2:]:
                size = columns * bits // 8 if tensor is self.tensors[-2] else columns // shape.block
                del tensor.dims[:]
                tensor.dims.extend([shape.experts, rows, size])
            bias = ""
            if shape.limited:
                dims = (shape.experts, rows)
                bias = self.tensor(f"{whole}.bias", lambda dims=dims: np.zeros(dims, np.float32))
            inputs.append(bias)
        more = {"activation_alpha": 1.702, "activation_beta": 1.0, "swiglu_limit": 7.0}
        return self.node(
            "QMoE",
            inputs,
            [f"{path}/QMoE/output_0"],
            f"{path}/QMoE",
            "com.microsoft",
            k=shape.chosen,
            expert_weight_bits=shape.bits,
            block_size=shape.block,
            activation_type="swiglu",
            swiglu_fusion=1,
            **(more if shape.limited else {}),
        )

    def norm(self, path: str, x: str, size: int) -> str:
        """An RMSNorm of its own."""
        return self.node(
            "SimplifiedLayerNormalization",
            [x, self.gamma(path.removeprefix("/").replace("/", "."), size)],
            [f"{path}/output_0"],
            f"{path}/LayerNorm",
            axis=-1,
            epsilon=1e-5,
            stash_type=1,
        )

    def gamma(self, name: str, size: int | None = None) -> str:
        def values() -> np.ndarray:
            drawn = 1 + 0.05 * self.random.standard_normal(size or self.shape.hidden)
            return drawn.astype(np.float32)

        return self.tensor(f"{name}.weight", values)

    def angles(self) -> tuple[str, str]:
        shape = self.shape
        frequencies = 500000.0 ** (-np.arange(0, shape.head_dim, 2) / shape.head_dim)
        angles = np.arange(shape.positions)[:, None] * frequencies
        return (
            self.tensor("cos_cache", lambda: np.cos(angles).astype(np.float32)),
            self.tensor("sin_cache", lambda: np.sin(angles).astype(np.float32)),
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


def carrier(bits: int) -> int:
    """The width in which ONNX stores codes of so many bits: 2, 4 or 8."""
    return next(width for width in (2, 4, 8) if bits <= width)


def _narrow(packed: np.ndarray, bits: int) -> np.ndarray:
    """Random bytes as codes around the middle of their carrier that fit so many bits."""
    width = carrier(bits)
    if bits == width:
        return packed
    keep, bias = (1 << bits) - 1, (1 << (width - 1)) - (1 << (bits - 1))
    places = range(0, 8, width)
    packed &= np.uint8(sum(keep << place for place in places))
    packed += np.uint8(sum(bias << place for place in places))
    return packed


@functools.cache
def _four_trits(zeros: float) -> np.ndarray:
    """For each 16-bit number a byte of four INT2 codes, each 0 with the given chance: uint8."""
    trits, chance = np.array([0, 1, 3]), np.array([zeros, (1 - zeros) / 2, (1 - zeros) / 2])
    bytes_, weights = np.zeros(1, np.int64), np.ones(1)
    for place in range(4):
        bytes_ = (bytes_[:, None] | (trits << (2 * place))).reshape(-1)
        weights = (weights[:, None] * chance).reshape(-1)
    bounds = np.cumsum(weights) / weights.sum() * (1 << 16)
    return bytes_[np.searchsorted(bounds, np.arange(1 << 16) + 0.5)].astype(np.uint8)


def _network(m: Model, path: str, x: str) -> str:
    """Gate, up and down with SiLU, or BitNet's form."""
    shape, hidden = m.shape, m.shape.hidden
    gate = m.product(f"{path}/mlp/gate_proj", x, shape.ffn, hidden)
    up = m.product(f"{path}/mlp/up_proj", x, shape.ffn, hidden)
    if shape.bitnet:
        relu = m.node("Relu", [gate], [f"{path}/mlp/r"], f"{path}/mlp/act_fn/Relu")
        acted = m.node("Mul", [relu, relu], [f"{path}/mlp/r2"], f"{path}/mlp/act_fn/Mul")
    else:
        s = m.node("Sigmoid", [gate], [f"{path}/mlp/s"], f"{path}/mlp/act_fn/Sigmoid")
        acted = m.node("Mul", [gate, s], [f"{path}/mlp/silu"], f"{path}/mlp/act_fn/Mul")
    y = m.node("Mul", [acted, up], [f"{path}/mlp/y"], f"{path}/mlp/Mul")
    if shape.bitnet:
        y = m.norm(f"{path}/ffn_sub_norm", y, shape.ffn)
    return m.product(f"{path}/mlp/down_proj", y, hidden, shape.ffn)


def _attention(
    m: Model, layer: int, x: str, lengths: tuple[str, str], angles: tuple[str, str]
) -> str:
    """Grouped-query attention of all cached tokens."""
    shape, path = m.shape, f"/model/layers.{layer}"
    hidden, width = shape.hidden, shape.head_dim
    size, kv = shape.heads * width, shape.kv_heads * width
    if shape.zeros is None and not shape.mix:
        qkv = [m.product(f"{path}/attn/qkv_proj", x, size + 2 * kv, hidden), "", ""]
    else:
        # One scale or one width a matrix: the three are not packed.
        parts = (("q", size), ("k", kv), ("v", kv))
        qkv = [m.product(f"{path}/attn/{one}_proj", x, n, hidden) for one, n in parts]
    past = [f"past_key_values.{layer}.{kind}" for kind in ("key", "value")]
    present = [f"present.{layer}.{kind}" for kind in ("key", "value")]
    attention = m.node(
        "GroupQueryAttention",
        [*qkv, *past, *lengths, *angles, "", "", ""],
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
    if shape.bitnet:
        attention = m.norm(f"{path}/attn_sub_norm", attention, size)
    return attention


def write_decoder(folder: Path, shape: Shape, seed: int = 0) -> Path:
    """Writes model.onnx and model.onnx.data; returns the path of the former."""
    import onnx

    folder.mkdir(parents=True, exist_ok=True)
    m = Model(folder, shape, seed)
    angles, lengths = m.angles(), m.lengths()
    hidden = shape.hidden
    if shape.head_zeros is None:
        head_bits = shape.bits_of("lm_head")
        head = m.codes("lm_head.MatMul", shape.vocabulary, hidden, head_bits)
    else:
        head_bits = 2
        head = m.ternary_codes("lm_head.MatMul", shape.vocabulary, hidden, shape.head_zeros)
    if shape.tied:
        rows = m.constant("embedding_shape", [shape.vocabulary, hidden * carrier(head_bits) // 8])
        table = m.node("Reshape", [head[0], rows], ["embedding"], "/model/embed_tokens/Reshape")
        embedding, table_bits = (table, head[1]), head_bits
    else:
        table_bits = shape.embedding_bits
        codes, scales = m.codes("model.embed_tokens", shape.vocabulary, hidden, table_bits)
        del m.tensors[-2].dims[:]
        m.tensors[-2].dims.extend([shape.vocabulary, hidden * carrier(table_bits) // 8])
        embedding = (codes, scales)
    residual = m.node(
        "GatherBlockQuantized",
        [embedding[0], "input_ids", embedding[1]],
        ["/model/embed_tokens/output_0"],
        "/model/embed_tokens/GatherBlockQuantized",
        "com.microsoft",
        bits=carrier(table_bits),
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
        match shape.mixer(layer):
            case "convolution":
                mixed, width = mixers.convolution(m, layer, x), hidden
            case "linear":
                mixed = mixers.linear_attention(m, layer, x)
                width = shape.linear[1] * shape.linear[2]
            case _:
                mixed = _attention(m, layer, x, lengths, angles)
                width = shape.heads * shape.head_dim
        o = m.product(f"{path}/attn/o_proj", mixed, hidden, width)
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
        down = m.mixture(f"{path}/moe", x) if shape.experts else _network(m, path, x)
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
        f"/lm_head/MatMul_Q{carrier(head_bits)}",
        "com.microsoft",
        K=hidden,
        N=shape.vocabulary,
        bits=carrier(head_bits),
        block_size=shape.block,
        accuracy_level=4,
    )
    m.data.close()

    def value(name: str, kind: int, dims: list[str | int]) -> Any:
        return onnx.helper.make_tensor_value_info(name, kind, dims)

    integer, real = onnx.TensorProto.INT64, onnx.TensorProto.FLOAT
    batch, total_name = "batch_size", "total_sequence_length"
    attends = [i for i in range(shape.layers) if shape.mixer(i) == "attention"]
    names = [f"{i}.{kind}" for kind in ("key", "value") for i in attends]
    kept = {
        f"{i}.{kind}": [batch, *dims]
        for i in range(shape.layers)
        for kind, dims in mixers.states(shape, i).items()
    }
    width = shape.head_dim
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
        *(value(f"past.{n}", real, dims) for n, dims in kept.items()),
    ]
    outputs = [
        value("logits", real, [batch, "sequence_length", shape.vocabulary]),
        *(value(f"present.{n}", real, [batch, shape.kv_heads, total_name, width]) for n in names),
        *(value(f"present.{n}", real, dims) for n, dims in kept.items()),
    ]
    graph = onnx.helper.make_graph(m.nodes, "main_graph", inputs, outputs, m.tensors)
    # INT2 came with opset 25.
    version = 21 if shape.zeros is None else 25
    opsets = [onnx.helper.make_opsetid("", version), onnx.helper.make_opsetid("com.microsoft", 1)]
    model = onnx.helper.make_model(
        graph, opset_imports=opsets, ir_version=10, producer_name="intaglio-bench"
    )
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path
