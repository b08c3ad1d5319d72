"""Writes tiny decoder models, deterministic and in the form of onnxruntime-genai's builder.

`python make_models.py FOLDER` writes all of them, each into a folder of its own. Hidden size 64,
two layers, 4 query and 2 key/value heads, 128 positions, random weights with external data.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

HIDDEN, FFN, HEADS, KV_HEADS, LAYERS, POSITIONS, BLOCK = 64, 96, 4, 2, 2, 128, 32
HEAD = HIDDEN // HEADS
MS = "com.microsoft"


@dataclass(frozen=True)
class Variant:
    """What sets a model apart from a Llama in int4 with its own head."""

    vocabulary: int = 64
    hidden: int = HIDDEN
    ffn: int = FFN
    kv_heads: int = KV_HEADS
    bits: int = 4
    tied: bool = False
    bias: bool = False
    qk_norm: bool = False
    asymmetric: bool = False
    parallel: bool = False
    """Phi-2: LayerNormalization, attention and Gelu network side by side, biases."""
    prune: bool = False
    """Logits of the last token only."""
    accuracy_level: int = 4
    hqq: bool = False
    """Zero points in floating point, none of them a code; scales and zero points in one
    dimension."""
    sinks: bool = False
    """gpt-oss: each head has a sink, and half of the layers a window."""
    shared: bool = False
    """Gemma-4 E2B: the last layer attends to the first one's keys and values."""
    learned: bool = False
    """OPT: a row for each position is added to the embedding, from row 2 on; nothing is rotated."""
    alibi: bool = False
    """Bloom: scores fall with the distance, by a slope of each head. The second layer has a soft
    cap, sinks and a window besides, and its first head has no slope."""
    static: int = 0
    """mobius' static caches: buffers of so many tokens, which new ones are written into."""
    experts: int = 0
    """A mixture of so many in each layer (gpt-oss); 0: none."""
    chosen: int = 2
    """Of them."""

    taps: int = 0
    """LFM2: the first layer is a convolution over so many taps, between two gates."""
    activation: str = "none"
    """Of the convolution."""
    recurrent: int = 0
    """Qwen3.5: so many of the first layers are linear attention."""
    rule: str = "gated_delta"
    """Of linear attention."""


VARIANTS = {
    "llama": Variant(vocabulary=256),
    "tied": Variant(tied=True),
    "qwen": Variant(bias=True, qk_norm=True, asymmetric=True),
    "phi": Variant(parallel=True, bias=True),
    "int8": Variant(bits=8, accuracy_level=0),
    "prune": Variant(prune=True),
    "ternary": Variant(bits=2, accuracy_level=0),
    "hqq4": Variant(hqq=True),
    "hqq2": Variant(bits=2, hqq=True, accuracy_level=0),
    "sinks": Variant(sinks=True),
    "shared": Variant(shared=True),
    "learned": Variant(parallel=True, bias=True, learned=True),
    "ternary_tied": Variant(bits=2, tied=True, accuracy_level=0),
    "experts": Variant(bias=True, experts=8),
    "lfm2": Variant(taps=3),
    "conv4": Variant(taps=4, bias=True, activation="silu"),
    "qwen35": Variant(recurrent=1),
    "recurrent": Variant(recurrent=2),
    "alibi": Variant(alibi=True),
    "experts8": Variant(bits=8, experts=5, chosen=3, accuracy_level=0),
    "experts_ternary": Variant(bits=2, experts=6, accuracy_level=0),
    **{f"recurrent_{r}": Variant(recurrent=1, rule=r) for r in ("linear", "gated", "delta")},
    "static": Variant(parallel=True, bias=True, learned=True, static=24),
    "own_heads": Variant(kv_heads=HEADS),
    "odd": Variant(hidden=72, ffn=75),
    "odd_bias": Variant(hidden=36, ffn=51, bias=True, asymmetric=True),
}


@dataclass
class Builder:
    """Collects nodes and initializers; methods give the name of what they compute."""

    variant: Variant
    random: np.random.Generator
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    tensors: list[onnx.TensorProto] = field(default_factory=list)

    def tensor(self, name: str, value: np.ndarray) -> str:
        self.tensors.append(numpy_helper.from_array(value, name))
        return name

    def node(
        self, op: str, name: str, inputs: list[str], output: str | None = None, **attributes: Any
    ) -> str:
        domain = attributes.pop("domain", "")
        outputs = attributes.pop("outputs", [output or f"{name}/output_0"])
        node = helper.make_node(op, inputs, outputs, name=name, domain=domain, **attributes)
        self.nodes.append(node)
        return outputs[0]

    def normal(self, name: str, *dims: int, mean: float = 0.0, std: float = 1.0) -> str:
        value = mean + std * self.random.standard_normal(dims)
        return self.tensor(name, value.astype(np.float32))

    def ternary(self, *dims: int) -> np.ndarray:
        """-1, 0 and 1 around the zero point 2, four in a byte."""
        trits = self.random.integers(1, 4, (*dims, 4), np.uint8)
        return (trits << np.arange(0, 8, 2, dtype=np.uint8)).sum(axis=-1).astype(np.uint8)

    def weights(self, name: str, n: int, k: int) -> list[str]:
        """A quantised matrix: codes, scales and, where the variant has them, zero points."""
        bits, blocks = self.variant.bits, -(-k // BLOCK)
        codes = self.random.integers(0, 256, (n, blocks, BLOCK * bits // 8), np.uint8)
        if bits == 2 and not self.variant.hqq:
            codes = self.ternary(n, blocks, BLOCK // 4)
        scales = self.random.uniform(0.5, 1.5, (n, blocks)) * 2.0 ** (1 - bits) / np.sqrt(k) * 1.7
        if self.variant.hqq:
            scales = scales.reshape(-1)
        names = [
            self.tensor(f"{name}.weight_Q{bits}", codes),
            self.tensor(f"{name}.weight_scales", scales.astype(np.float32)),
        ]
        if self.variant.asymmetric:
            zeros = self.random.integers(0, 256, (n, -(-blocks * bits // 8)), np.uint8)
            middle = np.uint8(0x77) if bits == 4 else np.uint8(0x7F)
            names.append(self.tensor(f"{name}.weight_zp", (zeros & 0x11) + middle))
        if self.variant.hqq:
            middles = ((1 << bits) - 1) / 2 + 0.2 * self.random.standard_normal((n, blocks))
            # A row all of whose weights are positive, and one of negative ones.
            middles[0], middles[-1] = -1.3, (1 << bits) + 0.4
            names.append(self.tensor(f"{name}.weight_zp", middles.reshape(-1).astype(np.float32)))
        return names

    def linear(self, name: str, x: str, n: int, k: int, weights: list[str] | None = None) -> str:
        path = f"/{name.replace('.', '/').replace('layers/', 'layers.')}"
        matrix = weights or self.weights(f"{name}.MatMul", n, k)
        attributes = {"K": k, "N": n, "bits": self.variant.bits, "block_size": BLOCK}
        if self.variant.accuracy_level:
            attributes["accuracy_level"] = self.variant.accuracy_level
        y = self.node("MatMulNBits", f"{path}/MatMul", [x, *matrix], domain=MS, **attributes)
        if self.variant.bias:
            bias = self.normal(f"{name}.Add.bias", n, std=0.1)
            y = self.node("Add", f"{path}/Add", [y, bias])
        return y

    def norm(self, path: str, x: str, skip: str | None, last: bool = False) -> tuple[str, str]:
        """The normalised value and the sum of `x` and `skip`."""
        key = path.strip("/").replace("/", ".")
        inputs = [x] if skip is None else [x, skip]
        inputs.append(self.normal(f"{key}.weight", self.variant.hidden, mean=1.0, std=0.1))
        kind = "LayerNormalization" if self.variant.parallel else "SimplifiedLayerNormalization"
        if self.variant.parallel:
            inputs.append(self.normal(f"{key}.bias", self.variant.hidden, std=0.1))
        if skip is None:
            attributes: dict[str, Any] = {"axis": -1, "epsilon": 1e-5, "stash_type": 1}
            return self.node(kind, f"{path}/LayerNorm", inputs, **attributes), x
        outputs = [f"{path}/output_0"] if last else [f"{path}/output_0", "", "", f"{path}/output_3"]
        y = self.node(
            f"Skip{kind}", f"{path}/SkipLayerNorm", inputs, outputs=outputs, domain=MS, epsilon=1e-5
        )
        return y, outputs[-1]

    def attention(self, layer: int, x: str) -> str:
        size, kv = HEADS * HEAD, self.variant.kv_heads * HEAD
        path = f"/model/layers.{layer}/attn"
        if self.variant.shared and layer:
            return self.borrowing(layer, x)
        packed = self.linear(
            f"model.layers.{layer}.attn.qkv_proj", x, size + 2 * kv, self.variant.hidden
        )
        values = [packed, "", ""]
        if self.variant.static:
            return self.buffered(layer, packed)
        if self.variant.qk_norm:
            sizes = self.tensor(f"{path}/sizes", np.array([size, kv, kv], np.int64))
            values = [f"{path}/split_{i}" for i in range(3)]
            self.node("Split", f"{path}/Split", [packed, sizes], outputs=values, axis=-1)
            for i, (letter, width) in enumerate((("q", size), ("k", kv))):
                values[i] = self.head_norm(layer, letter, values[i], width)
        sinks, attributes = [], {}
        if self.variant.alibi and layer:
            sinks = [self.normal(f"model.layers.{layer}.attn.sinks", HEADS, mean=1.0)]
            attributes = {"local_window_size": 7, "softcap": 5.0}
        if self.variant.sinks:
            name = f"model.layers.{layer}.attn.sinks"
            sinks = ["", "", self.normal(name, HEADS, mean=1.0)]
            attributes = {"local_window_size": 5} if layer % 2 else {}
        if self.variant.alibi:
            sinks = [*self.alibi(layer), *sinks]
        return self.node(
            "GroupQueryAttention",
            f"{path}/GroupQueryAttention",
            [
                *values,
                f"past_key_values.{layer}.key",
                f"past_key_values.{layer}.value",
                "seqlens_k",
                "total_length",
                "cos_cache",
                "sin_cache",
                *sinks,
            ],
            outputs=[f"{path}/output_0", f"present.{layer}.key", f"present.{layer}.value"],
            domain=MS,
            num_heads=HEADS,
            kv_num_heads=self.variant.kv_heads,
            do_rotary=int(not (self.variant.learned or self.variant.alibi)),
            **attributes,
        )

    def buffered(self, layer: int, packed: str) -> str:
        """Attention over buffers of all tokens, which the new ones are written into."""
        path, kv = f"/model/layers.{layer}/attn", self.variant.kv_heads * HEAD
        sizes = self.tensor(f"{path}/sizes", np.array([HEADS * HEAD, kv, kv], np.int64))
        values = [f"{path}/split_{i}" for i in range(3)]
        self.node("Split", f"{path}/Split", [packed, sizes], outputs=values, axis=-1)
        for i, kind in ((1, "key"), (2, "value")):
            inputs = [f"{kind}_cache.{layer}", values[i], "write_indices"]
            present = f"updated_{kind}_cache.{layer}"
            values[i] = self.node("TensorScatter", f"{path}/{kind}", inputs, present, axis=1)
        return self.node(
            "Attention",
            f"{path}/Attention",
            [*values, "", "", "", "nonpad_kv_seqlen"],
            is_causal=1,
            q_num_heads=HEADS,
            kv_num_heads=self.variant.kv_heads,
        )

    def alibi(self, layer: int) -> list[str]:
        """Inputs 9 and 10 of an attention: what its scores lose, slope * (query - key)."""
        path = f"/model/layers.{layer}/attn/alibi"
        slopes = 0.5 ** np.arange(1, HEADS + 1) * (1.0 if layer == 0 else -1.3)
        slopes[0] *= layer == 0
        bias = self.node("Mul", f"{path}/Mul", [
            self.tensor(f"{path}/slopes", slopes.reshape(1, HEADS, 1, 1).astype(np.float32)),
            "/alibi/forwards" if layer == 0 else "/alibi/backwards",
        ])  # fmt: skip
        return ["", bias]

    def distances(self) -> None:
        """[1, 1, sequence, total]: from query to key, and the other way."""
        total = self.node("Cast", "/alibi/Cast", ["total_length"], to=TensorProto.INT64)
        zero, one = (self.tensor(f"/alibi/{n}", np.array(n, np.int64)) for n in (0, 1))
        keys = self.node("Range", "/alibi/Range", [zero, total, one])
        shape = self.node("Shape", "/alibi/Shape", ["input_ids"])
        sequence = self.node("Gather", "/alibi/Gather", [shape, one], axis=0)
        first = self.node("Sub", "/alibi/Sub_1", [total, sequence])
        queries = self.node("Range", "/alibi/Range_1", [first, total, one])
        before, around = (self.tensor(f"/alibi/{n}", np.array([0, 1, n])) for n in (2, 3))
        keys = self.node("Unsqueeze", "/alibi/Unsqueeze", [keys, before])
        queries = self.node("Unsqueeze", "/alibi/Unsqueeze_1", [queries, around])
        for name, pair in (("forwards", [keys, queries]), ("backwards", [queries, keys])):
            y = self.node("Sub", f"/alibi/Sub/{name}", pair)
            self.node("Cast", f"/alibi/Cast/{name}", [y], f"/alibi/{name}", to=TensorProto.FLOAT)

    def borrowing(self, layer: int, x: str) -> str:
        """Attention on the first layer's cache, with keys and values of no token of its own."""
        path = f"/model/layers.{layer}/attn"
        query = self.linear(f"model.layers.{layer}.attn.q_proj", x, HEADS * HEAD, HIDDEN)
        empty = self.tensor(
            f"{path}/empty", np.zeros((1, 0, self.variant.kv_heads * HEAD), np.float32)
        )
        return self.node(
            "GroupQueryAttention",
            f"{path}/GroupQueryAttention",
            [
                *(query, empty, empty, "present.0.key", "present.0.value"),
                *("seqlens_k", "total_length", "cos_cache", "sin_cache"),
            ],
            outputs=[f"{path}/output_{i}" for i in range(3)],
            domain=MS,
            num_heads=HEADS,
            kv_num_heads=self.variant.kv_heads,
            do_rotary=1,
        )

    def convolution(self, layer: int, x: str) -> str:
        """B * x through a convolution over the last taps, times C; channels come before tokens."""
        name, path = f"model.layers.{layer}.conv", f"/model/layers.{layer}/conv"
        packed = self.linear(f"{name}.in_proj", x, 3 * HIDDEN, HIDDEN)
        packed = self.node("Transpose", f"{path}/Transpose_1", [packed], perm=[0, 2, 1])
        sizes = self.tensor(f"{path}/sizes", np.array([HIDDEN] * 3, np.int64))
        parts = [f"{path}/split_{i}" for i in range(3)]
        self.node("Split", f"{path}/Split", [packed, sizes], outputs=parts, axis=1)
        y = self.node("Mul", f"{path}/Mul_1", [parts[0], parts[2]])
        weights = self.normal(f"{name}.conv.weight", HIDDEN, 1, self.variant.taps, std=0.6)
        bias = self.normal(f"{name}.conv.bias", HIDDEN, std=0.3) if self.variant.bias else ""
        y = self.node(
            "CausalConvWithState",
            f"{path}/CausalConvWithState",
            [y, weights, bias, f"past.{layer}.conv"],
            outputs=[f"{path}/convolved", f"present.{layer}.conv"],
            domain=MS,
            activation=self.variant.activation,
        )
        y = self.node("Mul", f"{path}/Mul_2", [parts[1], y])
        return self.node("Transpose", f"{path}/Transpose_2", [y], perm=[0, 2, 1])

    def recurrence(self, layer: int, x: str) -> str:
        """Queries, keys and values in one product through a convolution of 4 taps; queries and keys
        of length 1; half as many heads of them as of values; the result's norm times a gate."""
        name, path = f"model.layers.{layer}.linear_attn", f"/model/layers.{layer}/linear_attn"
        keys = HIDDEN // 2
        packed = self.linear(f"{name}.qkv_proj", x, HIDDEN + 2 * keys, HIDDEN)
        z = self.linear(f"{name}.z_proj", x, HIDDEN, HIDDEN)
        a, b = (self.linear(f"{name}.{one}_proj", x, HEADS, HIDDEN) for one in "ab")
        packed = self.node("Transpose", f"{path}/Transpose_1", [packed], perm=[0, 2, 1])
        packed = self.node(
            "CausalConvWithState",
            f"{path}/CausalConvWithState",
            [
                packed,
                self.normal(f"{name}.conv1d.weight", HIDDEN + 2 * keys, 1, 4, std=0.6),
                "",
                f"past.{layer}.conv",
            ],
            outputs=[f"{path}/convolved", f"present.{layer}.conv"],
            domain=MS,
            activation="silu",
        )
        packed = self.node("Transpose", f"{path}/Transpose_2", [packed], perm=[0, 2, 1])
        sizes = self.tensor(f"{path}/sizes", np.array([keys, keys, HIDDEN], np.int64))
        parts = [f"{path}/split_{i}" for i in range(3)]
        self.node("Split", f"{path}/Split", [packed, sizes], outputs=parts, axis=-1)
        apart = self.tensor(f"{path}/apart", np.array([0, -1, HEAD], np.int64))
        together = self.tensor(f"{path}/together", np.array([0, -1, keys], np.int64))
        for place, letter in enumerate("qk"):
            y = self.node("Reshape", f"{path}/{letter}_apart", [parts[place], apart])
            y = self.node("LpNormalization", f"{path}/{letter}_norm", [y], axis=-1, p=2)
            parts[place] = self.node("Reshape", f"{path}/{letter}_together", [y, together])
        # Some heads forget slowly.
        rates = -np.exp(self.random.uniform(-6, 0, HEADS)).astype(np.float32)
        gates = [f"{path}/decay", f"{path}/beta"]
        self.node(
            "LinearAttentionGate",
            f"{path}/LinearAttentionGate",
            [
                a,
                self.normal(f"{name}.dt_bias", HEADS),
                self.tensor(f"{name}.neg_exp_A", rates),
                b,
            ],
            outputs=gates,
            domain=MS,
        )
        rule = self.variant.rule
        given = [gates[0] if "gated" in rule else "", gates[1] if "delta" in rule else ""]
        y = self.node(
            "LinearAttention",
            f"{path}/LinearAttention",
            [*parts, f"past.{layer}.recurrent", *given],
            outputs=[f"{path}/read", f"present.{layer}.recurrent"],
            domain=MS,
            q_num_heads=HEADS // 2,
            kv_num_heads=HEADS,
            update_rule=rule,
        )
        gamma = self.normal(f"{name}.norm.weight", HEAD, mean=1, std=0.1)
        return self.node(
            "GatedRMSNorm", f"{path}/GatedRMSNorm", [y, gamma, z], domain=MS, epsilon=1e-6
        )

    def head_norm(self, layer: int, letter: str, x: str, width: int) -> str:
        path = f"/model/layers.{layer}/attn/{letter}_norm"
        apart = self.tensor(f"{path}/apart", np.array([0, -1, HEAD], np.int64))
        together = self.tensor(f"{path}/together", np.array([0, -1, width], np.int64))
        gamma = self.normal(
            f"model.layers.{layer}.attn.{letter}_norm.weight", HEAD, mean=1, std=0.1
        )
        y = self.node("Reshape", f"{path}/Reshape_1", [x, apart])
        y = self.node(
            "SimplifiedLayerNormalization",
            f"{path}/SimplifiedLayerNormalization",
            [y, gamma],
            axis=-1,
            epsilon=1e-6,
            stash_type=1,
        )
        return self.node("Reshape", f"{path}/Reshape_2", [y, together])

    def mixture(self, layer: int, x: str) -> str:
        """Rows of gate and linear part in turns, biases, a limit that some values reach."""
        name, path = f"model.layers.{layer}.moe", f"/model/layers.{layer}/moe"
        count, bits = self.variant.experts, self.variant.bits
        logits = self.linear(f"{name}.router", x, count, HIDDEN)
        flat = self.tensor(f"{path}/flat", np.array([-1, count], np.int64))
        logits = self.node("Reshape", f"{path}/router/Reshape", [logits, flat])
        inputs = [x, logits]
        for part, rows, columns in (("gate_up", 2 * FFN, HIDDEN), ("down", HIDDEN, FFN)):
            size = columns * bits // 8
            codes = self.random.integers(0, 256, (count, rows, size), np.uint8)
            if bits == 2:
                codes = self.ternary(count, rows, size)
            scales = self.random.uniform(0.5, 1.5, (count, rows, columns // BLOCK))
            scales *= 0.3 / np.sqrt(columns) * 2 ** (4 - bits)
            inputs += [
                self.tensor(f"{name}.experts.{part}.qweight", codes),
                self.tensor(f"{name}.experts.{part}.scales", scales.astype(np.float32)),
                self.normal(f"{name}.experts.{part}.bias", count, rows, std=0.1),
            ]
        return self.node(
            "QMoE",
            f"{path}/QMoE",
            inputs,
            domain=MS,
            k=self.variant.chosen,
            activation_type="swiglu",
            swiglu_fusion=1,
            swiglu_limit=2.0,
            activation_alpha=1.702,
            activation_beta=1.0,
            expert_weight_bits=bits,
            block_size=BLOCK,
            normalize_routing_weights=1,
        )

    def convolves(self, layer: int) -> bool:
        return bool(self.variant.taps) and layer == 0

    def recurs(self, layer: int) -> bool:
        return layer < self.variant.recurrent

    def network(self, layer: int, x: str) -> str:
        if self.variant.experts:
            return self.mixture(layer, x)
        name, path = f"model.layers.{layer}.mlp", f"/model/layers.{layer}/mlp"
        if self.variant.parallel:
            y = self.linear(f"{name}.fc1", x, self.variant.ffn, self.variant.hidden)
            y = self.node("Gelu", f"{path}/Gelu", [y], approximate="tanh")
            return self.linear(f"{name}.fc2", y, self.variant.hidden, self.variant.ffn)
        gate = self.linear(f"{name}.gate_proj", x, self.variant.ffn, self.variant.hidden)
        up = self.linear(f"{name}.up_proj", x, self.variant.ffn, self.variant.hidden)
        sigmoid = self.node("Sigmoid", f"{path}/act_fn/Sigmoid", [gate])
        silu = self.node("Mul", f"{path}/act_fn/Mul", [gate, sigmoid])
        y = self.node("Mul", f"{path}/Mul", [silu, up])
        return self.linear(f"{name}.down_proj", y, self.variant.hidden, self.variant.ffn)

    def lengths(self) -> None:
        """Cached tokens from the attention mask, as the builder counts them."""
        one = self.tensor("one", np.array([1], np.int64))
        total = self.node("ReduceSum", "/mask/ReduceSum", ["attention_mask", one], keepdims=0)
        before = self.node("Sub", "/mask/Sub", [total, one])
        self.node("Cast", "/mask/Sub/Cast", [before], "seqlens_k", to=TensorProto.INT32)
        index = self.tensor("index", np.array(1, np.int64))
        shape = self.node("Shape", "/mask/Shape", ["attention_mask"])
        length = self.node("Gather", "/mask/Gather", [shape, index], axis=0)
        self.node("Cast", "/mask/Gather/Cast", [length], "total_length", to=TensorProto.INT32)

    def tables(self) -> None:
        frequencies = 10000.0 ** (-np.arange(0, HEAD, 2) / HEAD)
        angles = np.arange(POSITIONS)[:, None] * frequencies
        self.tensor("cos_cache", np.cos(angles).astype(np.float32))
        self.tensor("sin_cache", np.sin(angles).astype(np.float32))

    def embedding(self) -> tuple[str, list[str] | None]:
        """The embedded tokens, and the matrix that a tied head shares."""
        vocabulary = self.variant.vocabulary
        if not self.variant.tied:
            table = self.normal("model.embed_tokens.weight", vocabulary, self.variant.hidden)
            return self.node("Gather", "/model/embed_tokens/Gather", [table, "input_ids"]), None
        head = self.weights("lm_head.MatMul", vocabulary, self.variant.hidden)
        dims = np.array([vocabulary, self.variant.hidden * self.variant.bits // 8], np.int64)
        shape = self.tensor("/model/embed_tokens/shape", dims)
        rows = self.node("Reshape", "/model/embed_tokens/Reshape", [head[0], shape])
        x = self.node(
            "GatherBlockQuantized",
            "/model/embed_tokens/GatherBlockQuantized",
            [rows, "input_ids", head[1]],
            domain=MS,
            bits=self.variant.bits,
            block_size=BLOCK,
            gather_axis=0,
            quantize_axis=1,
        )
        return x, head

    def positions(self, x: str) -> str:
        """The embedding, and a learned row for each position, as OPT has them."""
        table = self.normal("model.embed_positions.weight", POSITIONS + 2, HIDDEN, std=0.3)
        two = self.tensor("two", np.array(2, np.int64))
        rows = self.node("Add", "/model/embed_positions/Add", ["position_ids", two])
        y = self.node("Gather", "/model/embed_positions/Gather", [table, rows])
        return self.node("Add", "/model/Add", [x, y])

    def decoder(self) -> None:
        if not self.variant.static:
            self.lengths()
            self.tables()
        if self.variant.alibi:
            self.distances()
        x, head = self.embedding()
        if self.variant.learned:
            x = self.positions(x)
        y, x = self.norm("/model/layers.0/input_layernorm", x, None)
        for layer in range(LAYERS):
            path = f"/model/layers.{layer}"
            mixer = self.convolution if self.convolves(layer) else self.attention
            mixer = self.recurrence if self.recurs(layer) else mixer
            attended = mixer(layer, y)
            attended = self.linear(
                f"model.layers.{layer}.attn.o_proj", attended, self.variant.hidden, HEADS * HEAD
            )
            if self.variant.parallel:
                other = self.network(layer, y)
                y = self.node("Add", f"{path}/residual_add/Add", [attended, other])
            else:
                y, x = self.norm(f"{path}/post_attention_layernorm", x, attended)
                y = self.network(layer, y)
            last = layer == LAYERS - 1
            name = "final_norm_layernorm" if last else "input_layernorm"
            y, x = self.norm(f"/model/layers.{layer + 1}/{name}", x, y, last)
        if self.variant.prune:
            last_index = self.tensor("last", np.array([-1], np.int64))
            y = self.node("Gather", "/lm_head/Gather", [y, last_index], axis=1)
        logits = self.linear("lm_head", y, self.variant.vocabulary, self.variant.hidden, head)
        self.nodes[-1].output[0] = "logits"
        assert logits.startswith("/lm_head")

    def model(self) -> onnx.ModelProto:
        self.decoder()
        past = ["batch_size", self.variant.kv_heads, "past_sequence_length", "kv_cache_dim"]
        present = ["batch_size", self.variant.kv_heads, "total_sequence_length", "kv_cache_dim"]
        sequence = 1 if self.variant.prune else "sequence_length"
        logits = ["batch_size", sequence, self.variant.vocabulary]
        ids = ["batch_size", "sequence_length"]
        mask = ["batch_size", "total_sequence_length"]
        floats, integers = TensorProto.FLOAT, TensorProto.INT64
        inputs = [helper.make_tensor_value_info("input_ids", integers, ids)]
        if self.variant.static:
            inputs += [
                helper.make_tensor_value_info(name, integers, ids[:1])
                for name in ("write_indices", "nonpad_kv_seqlen")
            ]
            past = present = ["batch_size", self.variant.static, self.variant.kv_heads * HEAD]
        else:
            inputs.append(helper.make_tensor_value_info("attention_mask", integers, mask))
        names = ("{kind}_cache.{layer}", "updated_{kind}_cache.{layer}")
        if not self.variant.static:
            names = ("past_key_values.{layer}.{kind}", "present.{layer}.{kind}")
        if self.variant.learned:
            inputs.append(helper.make_tensor_value_info("position_ids", integers, ids))
        outputs = [helper.make_tensor_value_info("logits", floats, logits)]
        for kind in ("key", "value"):
            for layer in range(1 if self.variant.shared else LAYERS):
                if self.convolves(layer) or self.recurs(layer):
                    continue
                before, after = (name.format(layer=layer, kind=kind) for name in names)
                inputs.append(helper.make_tensor_value_info(before, floats, past))
                outputs.append(helper.make_tensor_value_info(after, floats, present))
        if self.variant.taps:
            state = ["batch_size", HIDDEN, self.variant.taps - 1]
            inputs.append(helper.make_tensor_value_info("past.0.conv", floats, state))
            outputs.append(helper.make_tensor_value_info("present.0.conv", floats, state))
        for layer in range(self.variant.recurrent):
            for kind, dims in (("conv", [2 * HIDDEN, 3]), ("recurrent", [HEADS, HEAD, HEAD])):
                of, name = ["batch_size", *dims], f"{layer}.{kind}"
                inputs.append(helper.make_tensor_value_info(f"past.{name}", floats, of))
                outputs.append(helper.make_tensor_value_info(f"present.{name}", floats, of))
        graph = helper.make_graph(self.nodes, "main_graph", inputs, outputs, self.tensors)
        opset = 24 if self.variant.static else 21
        opsets = [helper.make_opsetid("", opset), helper.make_opsetid(MS, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def make_model(name: str, folder: Path) -> Path:
    """Writes one model with its external data and genai_config.json; gives the .onnx file."""
    variant = VARIANTS[name]
    folder.mkdir(parents=True, exist_ok=True)
    seed = list(VARIANTS).index(name)
    model = Builder(variant, np.random.Generator(np.random.PCG64(seed))).model()
    path = folder / "model.onnx"
    onnx.save_model(
        model,
        path,
        save_as_external_data=True,
        all_tensors_to_one_file=True,
        location="model.onnx.data",
        size_threshold=64,
    )
    decoder = {
        "head_size": HEAD,
        "num_attention_heads": HEADS,
        "num_key_value_heads": variant.kv_heads,
    }
    config = {"model": {"decoder": decoder, "context_length": POSITIONS}}
    (folder / "genai_config.json").write_text(json.dumps(config))
    return path


if __name__ == "__main__":
    for each in VARIANTS:
        print(make_model(each, Path(sys.argv[1]) / each))
