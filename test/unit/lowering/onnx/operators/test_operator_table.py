"""The table of supported operators says the truth: an example of each, and what schemas say."""

from __future__ import annotations

import re

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from intaglio.dialects import rom
from intaglio.dialects.errors import UserErrors
from intaglio.dialects.formulas import elementwise
from intaglio.lowering.onnx.importer import import_model
from intaglio.lowering.onnx.operators.page import page
from intaglio.lowering.onnx.operators.table import OperatorSupport, supported_operators, table
from intaglio.lowering.onnx.written import curves

MS = "com.microsoft"
INTEGERS = (
    "DynamicQuantizeLinear", "DynamicQuantizeMatMul", "MatMulInteger", "MatMulIntegerToFloat",
)  # fmt: skip
FLOAT, INT = np.float32, np.int64


def f(*values):
    return np.array(values, FLOAT)


def i(*values):
    return np.array(values, INT)


def b(*values):
    return np.array(values, np.bool_)


class Example:
    """A decoder in which the node `it` is of the operator; its result is `y`."""

    def __init__(self, decoder, entry: OperatorSupport):
        self.decoder = decoder
        self.entry = entry
        self.count = 0

    def name(self, value) -> str:
        """An input: the name of a value, or a constant."""
        if isinstance(value, str):
            return value
        self.count += 1
        return self.decoder.constant(f"c{self.count}", value)

    def write(self, op_type, *inputs, output=None, **attributes) -> str:
        """Adds a node of ai.onnx."""
        names = [self.name(value) for value in inputs]
        self.count += 1
        output = output or f"v{self.count}"
        self.decoder.node(op_type, names, [output], **attributes)
        return output

    def it(self, *inputs, output=None, outputs=None, **attributes) -> str:
        """Adds the node that the example is of."""
        names = [self.name(value) for value in inputs]
        given = outputs or [output or "its"]
        op_type, domain = self.entry.op_type, self.entry.domain
        self.decoder.node(op_type, names, given, name="it", domain=domain, **attributes)
        return given[0]

    def writer(self, part: str):
        """Adds nodes; the first of the operator `part` is `it`."""
        waiting = {part}

        def node(op_type, *inputs, **attributes):
            if op_type not in waiting:
                return self.write(op_type, *inputs, **attributes)
            waiting.clear()
            return self.it(*inputs, **attributes)

        return node

    def scales(self, value) -> None:
        """y = x times the largest element of a constant."""
        real = self.write("Cast", value, to=TensorProto.FLOAT)
        self.write("Mul", "x", self.write("ReduceMax", real, keepdims=0), output="y")

    def caches(self, heads=1, width=16) -> None:
        """The mask's lengths, and one layer of past keys and values."""
        self.decoder.lengths()
        self.decoder.past(0, heads, width)

    def angles(self, width, rows=32) -> tuple[str, str]:
        """Tables of cosines and sines [rows, width]."""
        angle = np.arange(rows)[:, None] * 0.3 ** np.arange(width)[None]
        return self.name(np.cos(angle).astype(FLOAT)), self.name(np.sin(angle).astype(FLOAT))

    def positions(self) -> str:
        """The input of position ids."""
        self.decoder.inputs.append(("position_ids", TensorProto.INT64, ["batch", "sequence"]))
        return "position_ids"

    def matrix(self, n=16, k=16) -> list[str]:
        """Codes and scales in the layout of MatMulNBits."""
        codes = self.decoder.rng.integers(0, 256, (n, k // 16, 8)).astype(np.uint8)
        return [
            self.name(codes),
            self.name(self.decoder.rng.normal(size=(n, k // 16)).astype(FLOAT)),
        ]

    def engraved(self, output="matrix", k=16, n=16) -> str:
        """A dequantised matrix [K, N]."""
        codes = self.decoder.rng.integers(-9, 9, (k, n)).astype(np.int8)
        return self.write("DequantizeLinear", codes, f(*[0.1] * n), axis=1, output=output)

    def attention(self, part: str) -> None:
        """Attention written out with one head; the node of the operator `part` is `it`."""
        self.caches()
        node = self.writer(part)
        head = self.write("Reshape", "x", i(0, 0, 1, 16))
        head = self.write("Transpose", head, perm=[0, 2, 1, 3])
        past = ("past_key_values.0.key", "past_key_values.0.value")
        keys = node("Concat", past[0], head, output="present.0.key", axis=2)
        values = node("Concat", past[1], head, output="present.0.value", axis=2)
        scores = node("MatMul", head, self.write("Transpose", keys, perm=[0, 1, 3, 2]))
        length = self.write("Gather", self.write("Shape", "attention_mask"), i(1))
        new = self.write("Gather", self.write("Shape", "x"), i(1))
        past_length = self.write("Sub", length, new)
        rows = self.write(
            "Add",
            self.write("Range", i(0).reshape(()), self.flat(new), i(1).reshape(())),
            past_length,
        )
        columns = self.write("Range", i(0).reshape(()), self.flat(length), i(1).reshape(()))
        seen = self.write("LessOrEqual", columns, self.write("Unsqueeze", rows, i(1)))
        scores = node("Where", seen, scores, f(-1e9).reshape(()))
        scores = node("Softmax", scores, axis=-1)
        if part == "IsNaN":
            scores = self.write("Where", node("IsNaN", scores), f(0.0).reshape(()), scores)
        found = self.write("Transpose", self.write("MatMul", scores, values), perm=[0, 2, 1, 3])
        self.write("Reshape", found, i(0, 0, 16), output="y")

    def flat(self, value) -> str:
        """A scalar."""
        return self.write("Squeeze", value)

    def bitnet(self, part: str) -> None:
        """A BitNet product; the node of the operator `part` is `it`."""
        node = self.writer(part)
        largest = node("ReduceMax", node("Abs", "x"), i(-1), keepdims=1)
        largest = (
            node("Max", largest, f(1e-5).reshape(()))
            if part == "Max"
            else self.write("Clip", largest, f(1e-5).reshape(()))
        )
        scale = self.write("Div", f(127.0).reshape(()), largest)
        levels = node("Round", self.write("Mul", "x", scale))
        if part == "Min":
            levels = node(
                "Min", self.write("Max", levels, f(-128.0).reshape(())), f(127.0).reshape(())
            )
        else:
            levels = node("Clip", levels, f(-128.0).reshape(()), f(127.0).reshape(()))
        weights = self.decoder.rng.integers(-1, 2, (16, 16)).astype(FLOAT)
        product = self.write("MatMul", self.write("Div", levels, scale), weights * FLOAT(0.25))
        self.write("Identity", product, output="y")


CONSTANTS = {
    "And": (b(True, False), b(True, True)),
    "BitwiseAnd": (i(6, 3), i(3, 5)),
    "BitwiseNot": (i(-3, -7),),
    "BitwiseOr": (i(6, 3), i(1, 0)),
    "BitwiseXor": (i(6, 3), i(3, 3)),
    "Ceil": (f(1.5, -1.5),),
    "Cos": (f(0.5, 0.25),),
    "CumSum": (i(2, 2, 2), i(0).reshape(())),
    "Equal": (i(1, 2), i(1, 3)),
    "Expand": (f(1.5), i(2, 3)),
    "Floor": (f(1.5, 2.5),),
    "GatherND": (f(1.5, 2.5, 3.5), i(1).reshape(1, 1)),
    "Greater": (i(2, 2), i(1, 3)),
    "GreaterOrEqual": (i(2, 2), i(2, 3)),
    "Less": (i(1, 2), i(2, 2)),
    "LessOrEqual": (i(1, 2), i(1, 1)),
    "Mod": (i(7, 8), i(4, 5)),
    "Not": (b(False, True),),
    "Or": (b(False, True), b(False, False)),
    "Range": (i(0).reshape(()), i(4).reshape(()), i(1).reshape(())),
    "ReduceMin": (f(1.5, 2.5),),
    "ReduceSum": (f(1.5, 2.5),),
    "ScatterND": (f(0.5, 1.0), i(1).reshape(1, 1), f(3.0)),
    "Sign": (f(3.0, -2.0),),
    "Sin": (f(0.5, 0.25),),
    "Tile": (f(2.5), i(3)),
    "Trilu": (f(1.0, 2.0, 9.0, 3.0).reshape(2, 2), i(0).reshape(())),
    "Xor": (b(False, True), b(True, True)),
}
"""Constant inputs of operators that are computed before the token."""

ACTIVATIONS = ("Relu", "Elu", "Mish", "Sigmoid", "Tanh", "Gelu", "QuickGelu", "FastGelu", "Swish")
REGROUPED = {
    "Flatten": lambda e: e.write("Reshape", e.it("x", axis=2), i(1, -1, 16), output="y"),
    "Reshape": lambda e: e.it("x", i(0, 0, -1), output="y"),
    "Squeeze": lambda e: e.it(e.write("Unsqueeze", "x", i(2)), i(2), output="y"),
    "Unsqueeze": lambda e: e.write("Squeeze", e.it("x", i(2)), i(2), output="y"),
    "Transpose": lambda e: e.write(
        "Transpose", e.it("x", perm=[1, 0, 2]), perm=[1, 0, 2], output="y"
    ),
    "Identity": lambda e: e.it("x", output="y"),
    "Cast": lambda e: e.it("x", output="y", to=TensorProto.FLOAT),
    "CastLike": lambda e: e.it("x", f(1.0), output="y"),
}


def shape(e):
    e.write("Reshape", "x", e.it("x"), output="y")


def size(e):
    e.scales(e.it(f(1.0, 2.0, 3.0)))


def constant(e):
    e.scales(e.it(value_float=1.5))


def constant_of_shape(e):
    e.scales(e.it(i(2, 2), value=onnx.helper.make_tensor("v", TensorProto.FLOAT, [1], [2.5])))


def bit_shift(e):
    e.scales(e.it(np.array([3], np.uint8), np.array([2], np.uint8), direction="LEFT"))


def where(e):
    e.scales(e.it(b(True, False), f(1.5, 9.0), f(9.0, 1.25)))


def add(e):
    e.it("x", e.write("Relu", "x"), output="y")


def scaled(e):
    e.it("x", f(3.0), output="y")


def neg(e):
    e.write("Add", "x", e.it(e.write("Relu", "x")), output="y")


def pow_(e):
    e.it("x", f(2.0), output="y")


def erf(e):
    half = e.write("Mul", "x", f(0.5))
    inner = e.it(e.write("Mul", "x", f(2.0**-0.5)))
    e.write("Mul", half, e.write("Add", inner, f(1.0)), output="y")


def exp(e):
    below = e.write("Add", e.it(e.write("Neg", "x")), f(1.0))
    e.write("Div", "x", below, output="y")


def log(e):
    below = e.write("Add", e.write("Exp", e.write("Neg", "x")), f(1.0))
    e.write("Exp", e.write("Neg", e.it(below)), output="y")


def softplus(e):
    # By itself, and as a part: exp(-softplus(-x)) is a sigmoid.
    gate = e.write("Exp", e.write("Neg", e.write("Softplus", e.write("Neg", "x"))))
    e.write("Mul", e.it("x"), gate, output="y")


def norm_written_out(e):
    node = e.writer(e.entry.op_type)
    mean = node("ReduceMean", e.write("Mul", "x", "x"), i(-1), keepdims=1)
    inverse = node("Reciprocal", node("Sqrt", e.write("Add", mean, f(1e-5))))
    e.write("Mul", e.write("Mul", "x", inverse), f(*np.linspace(0.5, 2, 16)), output="y")


def norm(e):
    e.it("x", f(*np.linspace(0.5, 2, 16)), output="y", epsilon=1e-3)


def skip_norm(e):
    gamma = f(*np.linspace(0.5, 2, 16))
    e.it("x", e.write("Relu", "x"), gamma, output="y", epsilon=1e-3)


def slice_(e):
    part = e.it("x", i(4), i(12), i(-1))
    e.write("Relu", part, output="y")


def split(e):
    e.it("x", i(8, 8), outputs=["one", "two"], axis=-1)
    e.write("Add", "one", "two", output="y")


def gather(e):
    e.decoder.nodes.clear()
    e.it("table", "input_ids", output="y")


def dequantize(e):
    e.decoder.nodes.clear()
    codes = e.name(e.decoder.rng.integers(-9, 9, (11, 16)).astype(np.int8))
    rows = e.write("Gather", codes, "input_ids")
    e.it(rows, f(0.25).reshape(()), output="y")


def gather_block_quantized(e):
    e.decoder.nodes.clear()
    codes, scales = e.matrix(11)
    codes = e.write("Reshape", codes, i(11, 8))
    more = {"bits": 4, "block_size": 16, "gather_axis": 0, "quantize_axis": 1}
    e.it(codes, "input_ids", scales, output="y", **more)


def matmul(e):
    e.it("x", e.engraved(), output="y")


def gemm(e):
    e.write(
        "Reshape", e.it(e.write("Reshape", "x", i(-1, 16)), e.engraved()), i(1, -1, 16), output="y"
    )


def matmul_nbits(e):
    e.it("x", *e.matrix(), output="y", K=16, N=16, bits=4, block_size=16)


def fused_matmul(e):
    e.it("x", e.engraved(), output="y", alpha=0.5)


def biased_gelu(e):
    e.it(e.write("MatMul", "x", e.engraved()), f(*np.linspace(-1, 1, 16)), output="y")


def rotary(e):
    cos, sin = e.angles(4)
    e.decoder.opset = 23
    e.it("x", cos, sin, e.positions(), output="y", num_heads=2)


def multi_axis_rotary(e):
    name = "position_ids"
    e.decoder.inputs.append((name, TensorProto.INT64, [3, "batch", "sequence"]))
    e.it("x", name, *e.angles(4), output="y", num_heads=2, mrope_section=[1, 1, 2])


def ms_rotary(e):
    e.it("x", e.positions(), *e.angles(4), output="y")


def causal_convolution(e):
    """Silu of the sum of three taps, between channels and tokens."""
    decoder = e.decoder
    decoder.inputs.append(("past.0.conv", TensorProto.FLOAT, ["batch", 16, 2]))
    decoder.outputs.append(("present.0.conv", TensorProto.FLOAT, ["batch", 16, 2]))
    decoder.pasts.append(("past.0.conv", TensorProto.FLOAT, [1, 16, 2]))
    channels = e.write("Transpose", "x", perm=[0, 2, 1])
    weights, bias = (decoder.rng.normal(size=n).astype(FLOAT) for n in ((16, 1, 3), 16))
    outputs = ["convolved", "present.0.conv"]
    e.it(channels, weights, bias, "past.0.conv", outputs=outputs, activation="silu")
    e.write("Transpose", "convolved", perm=[0, 2, 1], output="y")


def tensor_scatter(e):
    """Keys and values in buffers of 24 tokens."""
    for name in ("write_indices", "nonpad_kv_seqlen"):
        e.decoder.inputs.append((name, TensorProto.INT64, ["batch"]))
    for kind in ("key", "value"):
        past, present = f"{kind}_cache.0", f"updated_{kind}_cache.0"
        e.decoder.inputs.append((past, TensorProto.FLOAT, ["batch", 24, 16]))
        e.decoder.outputs.append((present, TensorProto.FLOAT, ["batch", 24, 16]))
        e.decoder.pasts.append((past, TensorProto.FLOAT, [1, 24, 16]))
        name = "it" if kind == "key" else "other"
        e.decoder.node("TensorScatter", [past, "x", "write_indices"], [present], name=name, axis=1)
    inputs = ["x", "updated_key_cache.0", "updated_value_cache.0", "", "", "", "nonpad_kv_seqlen"]
    e.decoder.node("Attention", inputs, ["y"], is_causal=1, q_num_heads=2, kv_num_heads=2)


def linear_attention(e):
    """One head, by the gated delta rule."""
    decoder, shape = e.decoder, [1, 16, 16]
    decoder.inputs.append(("past.0.recurrent", TensorProto.FLOAT, ["batch", *shape]))
    decoder.outputs.append(("present.0.recurrent", TensorProto.FLOAT, ["batch", *shape]))
    decoder.pasts.append(("past.0.recurrent", TensorProto.FLOAT, [1, *shape]))
    gates = [e.write("MatMulNBits", "x", *e.matrix(1), domain=MS, K=16, N=1, bits=4, block_size=16)
             for _ in range(2)]  # fmt: skip
    unit = e.write("LpNormalization", "x")
    decay, beta = e.write("Neg", e.write("Softplus", gates[0])), e.write("Sigmoid", gates[1])
    outputs = ["y", "present.0.recurrent"]
    past = "past.0.recurrent"
    e.it(unit, unit, "x", past, decay, beta, outputs=outputs, q_num_heads=1, kv_num_heads=1)


def linear_attention_gate(e):
    bias, rate = (e.decoder.rng.normal(size=16).astype(FLOAT) for _ in range(2))
    e.it("x", bias, rate, "x", outputs=["decay", "beta"])
    e.write("Mul", "decay", "beta", output="y")


def group_query_attention(e):
    e.caches(1, 16)
    past = ["past_key_values.0.key", "past_key_values.0.value"]
    outputs = ["y", "present.0.key", "present.0.value"]
    lengths = ["seqlens_k", "total"]
    e.it("x", "x", "x", *past, *lengths, outputs=outputs, num_heads=1, kv_num_heads=1)


def all_heads(e, *between, **attributes):
    e.caches(1, 16)
    past = ["past_key_values.0.key", "past_key_values.0.value"]
    outputs = ["y", "present.0.key", "present.0.value"]
    e.it("x", "x", "x", *between, *past, outputs=outputs, **attributes)


def multi_head_attention(e):
    all_heads(e, "", "", "", num_heads=1, unidirectional=1)


def attention(e):
    e.decoder.opset = 23
    all_heads(e, "", q_num_heads=1, kv_num_heads=1, is_causal=1)


def dynamic(e):
    """DynamicQuantizeLinear and MatMulInteger."""
    op = e.entry.op_type
    outputs = ["levels", "scale", "zero"]
    codes = e.name(e.decoder.rng.integers(-9, 9, (16, 16)).astype(np.int8))
    if op == "DynamicQuantizeLinear":
        e.it("x", outputs=outputs)
        sums = e.write("MatMulInteger", "levels", codes, "zero")
    else:
        e.decoder.node("DynamicQuantizeLinear", ["x"], outputs)
        sums = e.it("levels", codes, "zero")
    scale = e.write("Mul", "scale", f(0.1).reshape(()))
    e.write("Mul", e.write("Cast", sums, to=TensorProto.FLOAT), scale, output="y")


def scaled_integers(e):
    """onnxruntime's fusions of the two, with scales and a bias."""
    codes = e.name(e.decoder.rng.integers(-9, 9, (16, 16)).astype(np.int8))
    scale, points, bias = f(0.1).reshape(()), np.zeros((), np.int8), e.decoder.floats("bias", 16)
    if e.entry.op_type == "DynamicQuantizeMatMul":
        e.it("x", codes, scale, points, bias, output="y")
        return
    e.decoder.node("DynamicQuantizeLinear", ["x"], ["levels", "scale", "zero"])
    e.it("levels", codes, "scale", scale, "zero", points, bias, output="y")


def logits(e, experts=4) -> str:
    """A router's logits: the first elements of x."""
    part = e.write("Slice", "x", i(0), i(experts), i(2))
    return e.write("Reshape", part, i(-1, experts))


def qmoe(e):
    layers = []
    for rows, columns in ((32, 16), (16, 16)):
        codes = e.decoder.rng.integers(0, 256, (4, rows, columns // 2)).astype(np.uint8)
        scales = (e.decoder.rng.random((4, rows, 1)) / 16).astype(FLOAT)
        bias = e.decoder.rng.normal(size=(4, rows)).astype(FLOAT)
        layers += [codes, scales, bias]
    e.it(
        "x", logits(e), *layers, output="y", k=2, block_size=16, activation_type="swiglu",
        swiglu_fusion=1, swiglu_limit=7.0, activation_alpha=1.702, activation_beta=1.0,
    )  # fmt: skip


def moe(e):
    def matrices(rows, columns):
        codes = e.decoder.rng.integers(-9, 9, (4, rows, columns)).astype(np.int8)
        return e.write("DequantizeLinear", codes, np.array(0.1, FLOAT))

    bias = e.decoder.rng.normal(size=(4, 32)).astype(FLOAT)
    up, down = matrices(32, 16), matrices(16, 32)
    e.it("x", logits(e), up, bias, down, output="y", k=3, activation_type="silu")


def top_k(e):
    """Two experts, each a product; the nearest is taken."""
    part = e.write("Slice", "x", i(0), i(2), i(2))
    shares = e.write("Softmax", part, axis=-1)
    e.it(shares, i(1), outputs=["best", "indices"])
    terms = []
    for number in range(2):
        codes = e.decoder.rng.integers(-9, 9, (16, 16)).astype(np.int8)
        matrix = e.write("DequantizeLinear", codes, np.array(0.1, FLOAT))
        hit = e.write("Cast", e.write("Equal", "indices", i(number)), to=TensorProto.FLOAT)
        share = e.write("ReduceSum", e.write("Mul", "best", hit), i(-1), keepdims=1)
        terms.append(e.write("Mul", e.write("MatMul", "x", matrix), share))
    e.write("Add", *terms, output="y")


EXAMPLES = {
    **{("", op): lambda e, given=given: e.scales(e.it(*given)) for op, given in CONSTANTS.items()},
    **{key: lambda e: e.it("x", output="y") for key in table() if key[1] in ACTIVATIONS},
    **{("", op): example for op, example in REGROUPED.items()},
    **{
        ("", op): lambda e, op=op: e.attention(op) for op in ("Concat", "IsNaN", "Softmax", "Where")
    },
    **{
        ("", op): lambda e, op=op: e.bitnet(op)
        for op in ("Abs", "Clip", "Max", "Min", "ReduceMax", "Round")
    },
    **{("", op): norm_written_out for op in ("Reciprocal", "ReduceMean", "Sqrt")},
    **{
        ("", op): norm
        for op in ("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization")
    },
    **{
        (MS, op): skip_norm for op in ("SkipLayerNormalization", "SkipSimplifiedLayerNormalization")
    },
    **{(MS, op): biased_gelu for op in ("BiasGelu", "FastGelu")},
    **{("", op): dynamic for op in ("DynamicQuantizeLinear", "MatMulInteger")},
    **{(MS, op): scaled_integers for op in ("DynamicQuantizeMatMul", "MatMulIntegerToFloat")},
    ("", "Add"): add,
    ("", "Sub"): add,
    ("", "Attention"): attention,
    ("", "BitShift"): bit_shift,
    ("", "Constant"): constant,
    ("", "ConstantOfShape"): constant_of_shape,
    ("", "DequantizeLinear"): dequantize,
    ("", "Div"): scaled,
    ("", "Erf"): erf,
    ("", "Exp"): exp,
    ("", "Gather"): gather,
    ("", "Gemm"): gemm,
    ("", "Log"): log,
    ("", "MatMul"): matmul,
    ("", "Mul"): scaled,
    ("", "Neg"): neg,
    ("", "Pow"): pow_,
    ("", "RotaryEmbedding"): rotary,
    ("", "Shape"): shape,
    ("", "Size"): size,
    ("", "Slice"): slice_,
    ("", "Softplus"): softplus,
    ("", "TensorScatter"): tensor_scatter,
    ("", "TopK"): top_k,
    ("", "Split"): split,
    **{(domain, "CausalConvWithState"): causal_convolution for domain in ("", MS)},
    **{(domain, "LinearAttention"): linear_attention for domain in ("", MS)},
    ("", "LpNormalization"): lambda e: e.it("x", output="y"),
    (MS, "LinearAttentionGate"): linear_attention_gate,
    (MS, "GatedRMSNorm"): lambda e: e.it("x", f(*range(1, 5)), "x", output="y"),
    (MS, "FusedMatMul"): fused_matmul,
    (MS, "GatherBlockQuantized"): gather_block_quantized,
    (MS, "GroupQueryAttention"): group_query_attention,
    (MS, "MatMulNBits"): matmul_nbits,
    (MS, "MoE"): moe,
    (MS, "QMoE"): qmoe,
    (MS, "MultiHeadAttention"): multi_head_attention,
    (MS, "MRotaryEmbedding"): multi_axis_rotary,
    (MS, "RotaryEmbedding"): ms_rotary,
}


def test_every_operator_has_an_example():
    assert len(supported_operators()) == len(table())
    assert table().keys() == EXAMPLES.keys()


@pytest.mark.parametrize("key", sorted(EXAMPLES), ids="".join)
def test_example(key, decoder, agrees):
    """An example gives what onnxruntime gives, by the operations that the table names."""
    entry = table()[key]
    if entry.since > decoder.opset:
        decoder.opset = entry.since
    EXAMPLES[key](Example(decoder, entry))
    rounds = "rounds" in entry.limits or entry.op_type in INTEGERS
    model = agrees(decoder, tolerance=0.2 if rounds else 2e-5)
    became = {
        op.name
        for op in model.module.walk()
        if isinstance(op, rom.OperatorOp)
        and not isinstance(op, rom.SampleOp)
        and "it" in {n.data for n in op.onnx.data[0]}
    }
    assert became <= set(re.findall(r"rom\.\w+", entry.becomes))
    assert became or entry.convert is None or entry.becomes == "nothing"


def schemas(entry: OperatorSupport):
    """All versions of an operator, by onnx, or by onnxruntime where onnx does not know it."""
    found = [
        one
        for one in onnx.defs.get_all_schemas_with_history()
        if (one.domain, one.name) == (entry.domain, entry.op_type)
    ]
    if found:
        return found
    from onnxruntime.capi.onnxruntime_pybind11_state import get_all_operator_schema

    return [
        one
        for one in get_all_operator_schema()
        if (one.domain, one.name) == (entry.domain, entry.op_type)
    ]


ENTRIES = pytest.mark.parametrize(
    "entry", supported_operators(), ids=lambda e: e.domain + e.op_type
)


@ENTRIES
def test_facts_are_those_of_the_schema(entry):
    found = schemas(entry)
    assert entry.since in {one.since_version for one in found}
    assert set(entry.attributes) <= {name for one in found for name in one.attributes}
    assert entry.outputs <= max(one.max_output for one in found)
    newer = [one for one in found if one.since_version >= entry.since]
    assert entry.inputs == min(required(one) for one in newer)


def required(schema) -> int:
    """How many inputs stand before the first optional one; a list counts as one."""
    options = [str(one.option).split(".")[-1] for one in schema.inputs]
    return options.index("Optional") if "Optional" in options else len(options)


def refusal(entry, decoder, inputs, **attributes) -> str:
    decoder.opset = max(decoder.opset, entry.since)
    decoder.node(entry.op_type, inputs, ["y"], name="it", domain=entry.domain, **attributes)
    with pytest.raises(UserErrors) as caught:
        import_model(decoder.save())
    found = [str(error) for error in caught.value.errors]
    return "\n".join(error for error in found if "node 'it'" in error)


@ENTRIES
def test_an_attribute_that_is_not_listed_is_refused(entry, decoder):
    inputs = ["x"] * entry.inputs
    found = refusal(entry, decoder, inputs, surprise=1)
    assert f"its attribute 'surprise' is none of {entry.op_type}'s" in found


@ENTRIES
def test_a_missing_input_is_refused(entry, decoder):
    if entry.inputs:
        inputs = [*["x"] * (entry.inputs - 1), ""]
        words = rf"its input {entry.inputs - 1} \(\w+\) is missing|attribute '\w+' is missing"
        assert re.search(words, refusal(entry, decoder, inputs))


def test_the_page_lists_the_table():
    lines = [line for line in page().splitlines() if line.startswith("| ")]
    assert len(lines) == len(table()) + 1
    for entry in supported_operators():
        cells = [entry.domain or "ai.onnx", entry.op_type, str(entry.since), entry.becomes]
        assert f"| {' | '.join(cells)} | {entry.limits} |" in lines


def test_curves_know_every_activation():
    assert set(curves.KINDS) == set(elementwise.ACTIVATIONS)
