"""The one table of supported ONNX operators: what each becomes, its limits, and its converters.

An operator may be *folded* (what it computes is known before the token: constants, shapes, counts
of the attention mask) and *converted* (it works on activations). `intaglio ops` and the
documentation are generated from the same table that drives the import.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from intaglio.lowering.onnx.known import field_folding, folding, lazy
from intaglio.lowering.onnx.known.folding import Fold
from intaglio.lowering.onnx.operators import (
    activations,
    attention,
    convolution,
    elementwise,
    embedding,
    experts,
    linear,
    norms,
    rearrangement,
    recurrence,
    rotary_operators,
)
from intaglio.lowering.onnx.step import Convert
from intaglio.lowering.onnx.written import levels
from intaglio.lowering.onnx.written import norms as written_norms


@dataclass(frozen=True)
class OperatorSupport:
    """One supported operator.

    Attributes:
        domain: "" is ai.onnx.
        op_type: the operator's name.
        since: the first version of the domain whose form is understood.
        becomes: the rom operations it is converted to, or "nothing" when it only folds.
        limits: what is not supported, in words.
        attributes: the attributes that are understood; any other is refused.
        outputs: how many outputs may be used.
        inputs: how many inputs must be given, all before the first optional one.
        fold: computes it before the token.
        convert: emits rom operations for one token.
    """

    domain: str
    op_type: str
    since: int
    becomes: str
    limits: str
    attributes: tuple[str, ...] = ()
    outputs: int = 1
    inputs: int = 1
    fold: Fold | None = None
    convert: Convert | None = None


_NO_CODEBOOK = "quantise to integers (MatMulNBits, DequantizeLinear) instead of FP4 or NF4"
_NO_STATIC = (
    "quantise the weights alone, or activations dynamically (quantize_dynamic), not with the "
    "scales of a calibration"
)

HINTS = {
    ("", "QuantizeLinear"): _NO_STATIC,
    ("", "QLinearMatMul"): _NO_STATIC,
    ("com.microsoft", "MatMulBnb4"): _NO_CODEBOOK,
    ("com.microsoft", "MatMulFpQ4"): _NO_CODEBOOK,
}
"""What would help where an exporter writes an operator that is not supported."""

# --- the table -----------------------------------------------------------------------------------

_MS = "com.microsoft"
_NONE = "nothing"
_EXPERTS = (
    "rom.route, rom.expert_linear, rom.slice, rom.clip, rom.activate, rom.scale, rom.mul, rom.weigh"
)
_COMPARED = (
    "of constants, lengths, positions and masks; in an activation function written out (xIELU)"
)
_ROUNDED = "of constants, and where the graph rounds activations to 8 bits (BitNet)"
_CONVOLUTION = "constant weights; the past state an input of the graph, the present one an output"
_RECURRENCE = (
    "one decay and one beta a head; as many heads of queries as of values, or a part; the past "
    "state an input of the graph, the present one an output"
)
_TOKEN_SHAPES = "an activation's tokens must not mix and a token's elements keep their order"


@cache
def supported_operators() -> list[OperatorSupport]:
    """Every operator the import understands, sorted by domain and name."""
    table = [
        OperatorSupport(
            "", "Abs", 6, "the activation of rom.linear", _ROUNDED, fold=lazy.small,
        ),
        OperatorSupport(
            "", "Add", 7, "rom.add, rom.embed_position, or the bias of rom.linear",
            "equal shapes, or a constant vector directly after a linear operator or norm; what "
            "depends on the position alone; masks of attention scores",
            inputs=2, fold=folding.elementwise(np.add), convert=elementwise.add,
        ),
        OperatorSupport(
            "", "And", 7, _NONE,
            "of masks and conditions",
            inputs=2, fold=field_folding.fold,
        ),
        OperatorSupport(
            "", "Attention", 23, "rom.append, rom.attention",
            "of all tokens, with the past or over buffers; a mask proven to be causal or a window, "
            "slopes of the heads added to it",
            (
                "is_causal", "kv_num_heads", "q_num_heads", "qk_matmul_output_mode", "scale",
                "softcap", "softmax_precision",
            ),
            inputs=3, outputs=3, convert=attention.standard_attention,
        ),
        OperatorSupport(
            "", "BitShift", 11, _NONE, "of constants only", ("direction",),
            inputs=2, fold=lazy.small,
        ),
        OperatorSupport(
            "", "BitwiseAnd", 18, _NONE, "of constants only", inputs=2, fold=lazy.small,
        ),
        OperatorSupport(
            "", "BitwiseNot", 18, _NONE, "of constants only", fold=lazy.small,
        ),
        OperatorSupport(
            "", "BitwiseOr", 18, _NONE, "of constants only", inputs=2, fold=lazy.small,
        ),
        OperatorSupport(
            "", "BitwiseXor", 18, _NONE, "of constants only", inputs=2, fold=lazy.small,
        ),
        OperatorSupport(
            "", "Cast", 6, _NONE, "between floating-point types; integers of shapes and masks",
            ("to", "saturate", "round_mode"), fold=folding.cast, convert=rearrangement.cast,
        ),
        OperatorSupport(
            "", "CastLike", 15, _NONE, "as Cast", ("saturate", "round_mode"),
            inputs=2, fold=lazy.small,
        ),
        OperatorSupport(
            "", "Ceil", 6, _NONE, "of constants, lengths, positions and masks",
            fold=lazy.small,
        ),
        OperatorSupport(
            "", "CausalConvWithState", 27, "rom.delay, rom.tap, rom.activate",
            _CONVOLUTION, ("activation",), outputs=2, inputs=2,
            convert=convolution.causal_convolution,
        ),
        OperatorSupport(
            "", "Clip", 6, "the activation of rom.linear", _ROUNDED,
            ("min", "max"), fold=lazy.small,
        ),
        OperatorSupport(
            "", "Concat", 4, "rom.append, rom.attention, rom.rotary",
            "of constants, shapes and positions; past and new keys or values; in a rotary "
            "embedding written "
            "out",
            ("axis",), fold=folding.concat,
        ),
        OperatorSupport(
            "", "Constant", 1, _NONE, "numbers only",
            ("value", "value_float", "value_floats", "value_int", "value_ints"),
            inputs=0, fold=folding.constant,
        ),
        OperatorSupport(
            "", "ConstantOfShape", 9, _NONE, "of a small constant shape, or one of lengths",
            ("value",),
            fold=folding.constant_of_shape,
        ),
        OperatorSupport(
            "", "Cos", 7, "rom.rotary",
            "of angles that depend on positions",
            fold=field_folding.fold,
        ),
        OperatorSupport(
            "", "CumSum", 11, _NONE,
            "of the attention mask",
            ("exclusive", "reverse"),
            inputs=2, fold=field_folding.fold,
        ),
        OperatorSupport(
            "", "DequantizeLinear", 10, "rom.embed, or the code of a rom.parameter",
            "constants of 2, 4 or 8 bits as weights or table; scales per tensor, per output or in "
            "blocks along the inputs",
            ("axis", "block_size", "output_dtype"), inputs=2, fold=folding.dequantize,
            convert=embedding.dequantize,
        ),
        OperatorSupport(
            "", "Div", 7, "rom.scale", "by one constant number",
            inputs=2, fold=folding.elementwise(folding.exact_divide), convert=elementwise.div,
        ),
        OperatorSupport(
            "", "DynamicQuantizeLinear", 11, "rom.linear",
            "becomes the chip's own rounding of each token; read by MatMulInteger only", outputs=3,
            convert=levels.dynamic,
        ),
        OperatorSupport(
            "", "Elu", 6, "rom.activate", "", ("alpha",), convert=activations.elu,
        ),
        OperatorSupport(
            "", "Equal", 7, _NONE, "of constants, lengths, positions and masks",
            inputs=2, fold=lazy.small,
        ),
        OperatorSupport(
            "", "Erf", 9, "rom.activate",
            "in an activation function written out",
        ),
        OperatorSupport(
            "", "Exp", 6, "rom.activate",
            "of constants, and in an activation function written out",
            fold=field_folding.fold,
        ),
        OperatorSupport(
            "", "Expand", 8, _NONE,
            "of constants, lengths and masks; repeats heads of keys and values",
            inputs=2, fold=lazy.small,
        ),
        OperatorSupport(
            "", "Flatten", 1, _NONE, _TOKEN_SHAPES, ("axis",), fold=folding.reshape,
            convert=rearrangement.reshape,
        ),
        OperatorSupport(
            "", "Floor", 6, _NONE, "of constants, lengths, positions and masks",
            fold=lazy.small,
        ),
        OperatorSupport(
            "", "Gather", 1, "rom.embed, rom.embed_position",
            "rows of a constant table by token id or by position (from any row on); the last token "
            "of a sequence; shapes and positions; repeats heads of keys and values",
            ("axis",), inputs=2, fold=folding.gather, convert=embedding.gather,
        ),
        OperatorSupport(
            "", "GatherND", 11, _NONE,
            "of masks and positions; of a token's elements along the first axis",
            ("batch_dims",),
            inputs=2, fold=field_folding.fold, convert=rearrangement.gather_nd,
        ),
        OperatorSupport(
            "", "Gelu", 20, "rom.activate", "", ("approximate",), convert=activations.gelu,
        ),
        OperatorSupport(
            "", "Gemm", 7, "rom.linear",
            "constant second factor (as MatMul) and bias; transA = 0, beta = 1",
            ("alpha", "beta", "transA", "transB"), inputs=2, convert=linear.gemm,
        ),
        OperatorSupport(
            "", "Greater", 7, _NONE, _COMPARED,
            inputs=2, fold=lazy.small,
        ),
        OperatorSupport(
            "", "GreaterOrEqual", 12, _NONE,
            "of constants, lengths, positions and masks",
            inputs=2, fold=field_folding.fold,
        ),
        OperatorSupport(
            "", "Identity", 1, _NONE, "", fold=folding.reshape, convert=rearrangement.reshape,
        ),
        OperatorSupport(
            "", "IsNaN", 9, _NONE,
            "of attention probabilities, which are never NaN, and of constants",
            fold=field_folding.fold,
        ),
        OperatorSupport(
            "", "LayerNormalization", 17, "rom.layer_norm", "over the whole last axis",
            ("axis", "epsilon", "stash_type"), inputs=2, convert=norms.layer_norm,
        ),
        OperatorSupport(
            "", "Less", 7, _NONE, "of constants, lengths, positions and masks",
            inputs=2, fold=lazy.small,
        ),
        OperatorSupport(
            "", "LessOrEqual", 12, _NONE,
            "of constants, lengths, positions and masks",
            inputs=2, fold=field_folding.fold,
        ),
        OperatorSupport(
            "", "LinearAttention", 27, "rom.linear_attention, rom.scale", _RECURRENCE,
            tuple(a for a in recurrence.ATTENTION_ATTRIBUTES if a != "state_window"),
            outputs=2, inputs=3, convert=recurrence.linear_attention,
        ),
        OperatorSupport(
            "", "Log", 6, "rom.activate",
            "of constants, and in an activation function written out",
            fold=field_folding.fold,
        ),
        OperatorSupport(
            "", "LpNormalization", 1, "rom.rms_norm", "p = 2, over the last axis", ("axis", "p"),
            convert=recurrence.lp_normalization,
        ),
        OperatorSupport(
            "", "MatMul", 1, "rom.linear, rom.attention",
            "constant second factor: dequantised (DequantizeLinear), or floating point with "
            "--weights or as a LoRA adapter; in attention written out",
            inputs=2, convert=linear.matmul,
        ),
        OperatorSupport(
            "", "MatMulInteger", 10, "rom.linear",
            "constant second factor; the first one rounded to 8 bits by the graph",
            inputs=2, convert=levels.integer_product,
        ),
        OperatorSupport(
            "", "Max", 8, "the activation of rom.linear", _ROUNDED,
            fold=lazy.small,
        ),
        OperatorSupport(
            "", "Min", 8, "the activation of rom.linear",
            f"{_ROUNDED}; in an activation function written out",
            fold=lazy.small,
        ),
        OperatorSupport(
            "", "Mish", 18, "rom.activate", "", convert=activations.activation("mish"),
        ),
        OperatorSupport(
            "", "Mod", 10, _NONE, "of constants, lengths, positions and masks", ("fmod",),
            inputs=2, fold=lazy.small,
        ),
        OperatorSupport(
            "", "Mul", 7, "rom.mul, rom.scale, rom.activate, rom.softcap, rom.rms_norm",
            "equal shapes, or one constant number",
            inputs=2, fold=folding.elementwise(np.multiply), convert=elementwise.mul,
        ),
        OperatorSupport(
            "", "Neg", 6, "rom.scale, rom.rotary", "in a rotary embedding written out, else by -1",
            fold=lazy.small,
        ),
        OperatorSupport(
            "", "Not", 1, _NONE,
            "of masks and conditions",
            fold=field_folding.fold,
        ),
        OperatorSupport(
            "", "Or", 7, _NONE,
            "of masks and conditions",
            inputs=2, fold=field_folding.fold,
        ),
        OperatorSupport(
            "", "Pow", 7, "rom.activate, rom.mul",
            "exponent 2; others in norms and activation functions written out",
            inputs=2, fold=folding.elementwise(np.power), convert=elementwise.pow_,
        ),
        OperatorSupport(
            "", "RMSNormalization", 23, "rom.rms_norm", "over the last axis",
            ("axis", "epsilon", "stash_type"), inputs=2, convert=norms.rms_norm,
        ),
        OperatorSupport(
            "", "Range", 11, _NONE,
            "of constants and lengths",
            inputs=3, fold=field_folding.fold,
        ),
        OperatorSupport(
            "", "Reciprocal", 6, "rom.rms_norm", "of constants, and in a norm written out",
            fold=lazy.small,
        ),
        OperatorSupport(
            "", "ReduceMax", 1, "the activation of rom.linear",
            _ROUNDED,
            ("axes", "keepdims", "noop_with_empty_axes"), fold=lazy.small,
        ),
        OperatorSupport(
            "", "ReduceMean", 1, "rom.rms_norm, rom.layer_norm", "in a norm written out",
            ("axes", "keepdims", "noop_with_empty_axes"), fold=lazy.small,
            convert=written_norms.reduce_mean,
        ),
        OperatorSupport(
            "", "ReduceMin", 1, _NONE, "of constants, lengths, positions and masks",
            ("axes", "keepdims", "noop_with_empty_axes"), fold=lazy.small,
        ),
        OperatorSupport(
            "", "ReduceSum", 1, _NONE, "of masks and of constants",
            ("axes", "keepdims", "noop_with_empty_axes"), fold=lazy.small,
        ),
        OperatorSupport(
            "", "Relu", 6, "rom.activate", "", convert=activations.activation("relu"),
        ),
        OperatorSupport(
            "", "Reshape", 5, _NONE, _TOKEN_SHAPES, ("allowzero",), inputs=2, fold=folding.reshape,
            convert=rearrangement.reshape,
        ),
        OperatorSupport(
            "", "RotaryEmbedding", 23, "rom.rotary",
            "constant tables [positions, rotary_dim / 2] with the graph's position ids",
            ("interleaved", "num_heads", "rotary_embedding_dim"),
            inputs=3, convert=rotary_operators.standard_rotary,
        ),
        OperatorSupport(
            "", "Round", 11, "the activation of rom.linear", _ROUNDED,
            fold=lazy.small,
        ),
        OperatorSupport(
            "", "ScatterND", 11, _NONE, "rows of constants only", ("reduction",),
            inputs=3, fold=lazy.small,
        ),
        OperatorSupport(
            "", "Shape", 1, _NONE, "", ("start", "end"), fold=folding.shape,
        ),
        OperatorSupport(
            "", "Sigmoid", 6, "rom.activate", "", convert=activations.activation("sigmoid"),
        ),
        OperatorSupport(
            "", "Sign", 9, _NONE, "of constants only", fold=lazy.small,
        ),
        OperatorSupport(
            "", "SimplifiedLayerNormalization", 1, "rom.rms_norm",
            "over the last axis (an onnxruntime operator in the default domain)",
            ("axis", "epsilon", "stash_type"), inputs=2, convert=norms.rms_norm,
        ),
        OperatorSupport(
            "", "Sin", 7, "rom.rotary",
            "of angles that depend on positions",
            fold=field_folding.fold,
        ),
        OperatorSupport("", "Size", 1, _NONE, "", fold=folding.size),
        OperatorSupport(
            "", "Slice", 1, "rom.slice",
            "contiguous parts of a token's elements; the last token of a sequence; shapes and "
            "masks; parts of heads in a rotary embedding written out",
            ("starts", "ends", "axes"), fold=folding.slice_, convert=rearrangement.slice_,
        ),
        OperatorSupport(
            "", "Softmax", 13, "rom.attention, rom.route",
            "of attention scores over the tokens, in attention written out; of a router's logits",
            ("axis",),
        ),
        OperatorSupport(
            "", "Softplus", 1, "rom.activate", "", fold=lazy.small,
            convert=activations.activation("softplus"),
        ),
        OperatorSupport(
            "", "Split", 2, "rom.slice",
            "contiguous parts of a token's elements; parts of heads in a rotary embedding written "
            "out",
            ("axis", "split", "num_outputs"), outputs=1 << 16, convert=rearrangement.split,
        ),
        OperatorSupport(
            "", "Sqrt", 6, "rom.rms_norm", "of constants, and in a norm written out",
            fold=lazy.small,
        ),
        OperatorSupport(
            "", "Squeeze", 1, _NONE, _TOKEN_SHAPES, ("axes",), fold=folding.reshape,
            convert=rearrangement.reshape,
        ),
        OperatorSupport(
            "", "Sub", 7, "rom.scale, rom.add",
            "equal shapes; no constants but 0; in norms and activation functions written out",
            inputs=2, fold=folding.elementwise(np.subtract), convert=elementwise.sub,
        ),
        OperatorSupport(
            "", "Swish", 24, "rom.activate", "alpha 1 or 1.702", ("alpha",),
            convert=activations.quick_gelu,
        ),
        OperatorSupport(
            "", "Tanh", 6, "rom.activate, rom.softcap", "", convert=activations.activation("tanh"),
        ),
        OperatorSupport(
            "", "TensorScatter", 24, "rom.append",
            "new keys or values, written behind the past ones into a buffer that attention is told "
            "how many tokens of count (nonpad_kv_seqlen)",
            ("axis", "mode"), inputs=2, convert=attention.tensor_scatter,
        ),
        OperatorSupport(
            "", "Tile", 6, _NONE,
            "as Expand",
            inputs=2, fold=field_folding.fold,
        ),
        OperatorSupport(
            "", "TopK", 11, "rom.route, rom.expert_linear, rom.weigh",
            "of a router's logits or probabilities, in a mixture of experts written out",
            ("axis", "largest", "sorted"), inputs=2, outputs=2,
        ),
        OperatorSupport(
            "", "Transpose", 1, _NONE, _TOKEN_SHAPES, ("perm",), fold=folding.transpose,
            convert=rearrangement.transpose,
        ),
        OperatorSupport(
            "", "Trilu", 14, _NONE,
            "of constants and masks",
            ("upper",),
            fold=field_folding.fold,
        ),
        OperatorSupport(
            "", "Unsqueeze", 1, _NONE, _TOKEN_SHAPES, ("axes",), fold=folding.reshape,
            convert=rearrangement.reshape,
        ),
        OperatorSupport(
            "", "Where", 9, "rom.attention",
            "of constants, lengths and masks; of attention scores by a mask; in an activation "
            "function written out (xIELU)",
            inputs=3, fold=lazy.small,
        ),
        OperatorSupport(
            "", "Xor", 7, _NONE,
            "of masks and conditions",
            inputs=2, fold=field_folding.fold,
        ),
        OperatorSupport(
            _MS, "BiasGelu", 1, "rom.activate, and the bias of rom.linear",
            "the bias follows a linear operator",
            inputs=2, convert=activations.biased_gelu("gelu_erf"),
        ),
        OperatorSupport(
            _MS, "CausalConvWithState", 1, "rom.delay, rom.tap, rom.activate",
            _CONVOLUTION, convolution.ATTRIBUTES, outputs=2, inputs=2,
            convert=convolution.causal_convolution,
        ),
        OperatorSupport(
            _MS, "DynamicQuantizeMatMul", 1, "rom.linear",
            "constant second factor; the first one is rounded as by DynamicQuantizeLinear",
            inputs=3, convert=linear.dynamic_quantize_matmul,
        ),
        OperatorSupport(
            _MS, "FastGelu", 1, "rom.activate, and the bias of rom.linear",
            "a bias follows a linear operator",
            convert=activations.biased_gelu("gelu_tanh"),
        ),
        OperatorSupport(
            _MS, "FusedMatMul", 1, "rom.linear, rom.scale", "as MatMul; transA = 0",
            ("alpha", "transA", "transB", "transBatchA", "transBatchB"),
            inputs=2, convert=linear.fused_matmul,
        ),
        OperatorSupport(
            _MS, "GatherBlockQuantized", 1, "rom.embed, rom.embed_position",
            "rows by token id or by position; 2, 4 or 8 bits; integral zero points",
            ("bits", "block_size", "gather_axis", "quantize_axis"),
            inputs=3, convert=embedding.gather_block_quantized,
        ),
        OperatorSupport(
            _MS, "Gelu", 1, "rom.activate", "", convert=activations.activation("gelu_erf"),
        ),
        OperatorSupport(
            _MS, "GroupQueryAttention", 1,
            "rom.slice, rom.rms_norm, rom.rotary, rom.append, rom.attention",
            "an attention bias proven to be causal or a window; constant sinks; a quantised cache "
            "needs one scale for keys and one for values",
            attention.GQA_ATTRIBUTES, outputs=3, convert=attention.group_query_attention,
        ),
        OperatorSupport(
            _MS, "GatedRMSNorm", 1, "rom.rms_norm, rom.activate, rom.mul", "",
            ("activation", "epsilon"), inputs=3, convert=recurrence.gated_rms_norm,
        ),
        OperatorSupport(
            _MS, "LinearAttention", 1, "rom.linear_attention, rom.scale", _RECURRENCE,
            recurrence.ATTENTION_ATTRIBUTES, outputs=2, inputs=3,
            convert=recurrence.linear_attention,
        ),
        OperatorSupport(
            _MS, "LinearAttentionGate", 1, "rom.tap, rom.activate, and the bias of rom.linear",
            "constant dt_bias and decay_scale",
            inputs=3, outputs=2, convert=recurrence.linear_attention_gate,
        ),
        OperatorSupport(
            _MS, "MatMulIntegerToFloat", 1, "rom.linear",
            "constant second factor; the first one rounded to 8 bits by DynamicQuantizeLinear",
            inputs=4, convert=linear.matmul_integer_to_float,
        ),
        OperatorSupport(
            _MS, "MatMulNBits", 1, "rom.linear",
            "2, 4 or 8 bits; zero points absent, integers, or floats of any value; no "
            "reordering g_idx",
            ("K", "N", "bits", "block_size", "accuracy_level", "weight_prepacked"),
            inputs=3, convert=linear.matmul_nbits,
        ),
        OperatorSupport(
            _MS, "MoE", 1, _EXPERTS,
            "weights quantised on request (--weights); relu, silu, gelu, identity, or swiglu with "
            "rows in turns (swiglu_fusion 1); no third layer",
            experts.MOE_ATTRIBUTES, inputs=3, convert=experts.moe,
        ),
        OperatorSupport(
            _MS, "MultiHeadAttention", 1, "rom.append, rom.attention",
            "of all tokens or with the past; no bias; an attention bias proven to be causal or a "
            "window",
            ("mask_filter_value", "num_heads", "scale", "unidirectional"), outputs=3,
            convert=attention.multi_head_attention,
        ),
        OperatorSupport(
            _MS, "QMoE", 1, _EXPERTS,
            "2, 4 or 8 bits in blocks or with one scale a row; as MoE; shares are a softmax of the "
            "chosen experts' logits (no router_weights)",
            experts.QMOE_ATTRIBUTES, inputs=3, convert=experts.qmoe,
        ),
        OperatorSupport(
            _MS, "QuickGelu", 1, "rom.activate", "alpha 1.702 or 1", ("alpha",),
            convert=activations.quick_gelu,
        ),
        OperatorSupport(
            _MS, "MRotaryEmbedding", 1, "rom.rotary",
            "as RotaryEmbedding; positions along all axes are equal, as those of text",
            (
                "interleaved", "num_heads", "rotary_embedding_dim", "scale", "is_packed_batching",
                "mrope_layout", "mrope_section",
            ),
            inputs=4, convert=rotary_operators.multi_axis_rotary,
        ),
        OperatorSupport(
            _MS, "RotaryEmbedding", 1, "rom.rotary",
            "constant tables with the graph's position ids; scale = 1",
            ("interleaved", "num_heads", "rotary_embedding_dim", "scale", "is_packed_batching"),
            inputs=4, convert=rotary_operators.rotary_embedding,
        ),
        OperatorSupport(
            _MS, "SkipLayerNormalization", 1, "rom.add, rom.layer_norm",
            "outputs 0 and 3; a bias input follows a linear operator", ("epsilon",),
            inputs=3, outputs=4,
            convert=norms.skip_layer_norm,
        ),
        OperatorSupport(
            _MS, "SkipSimplifiedLayerNormalization", 1, "rom.add, rom.rms_norm",
            "outputs 0 and 3; a bias input follows a linear operator", ("epsilon",),
            inputs=3, outputs=4,
            convert=norms.skip_rms_norm,
        ),
    ]  # fmt: skip
    return sorted(table, key=lambda entry: (entry.domain, entry.op_type))


@cache
def table() -> dict[tuple[str, str], OperatorSupport]:
    """The table by domain and name."""
    return {(entry.domain, entry.op_type): entry for entry in supported_operators()}
