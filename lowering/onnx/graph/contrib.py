"""Operators that onnxruntime adds to ONNX: their names, and the schemas of those that compile.

From the schemas that onnxruntime 1.32 registers (docs/ContribOperators.md in its repository); a
test compares them with the installed one. Names matter beyond those that compile: a function of the
model that has one of them does not count (`local_functions`).
"""

from __future__ import annotations

from functools import cache

from intaglio.lowering.onnx.graph.schema import Attribute, Formal, Schema

DOMAIN = "com.microsoft"

_CLOSED = frozenset({"", "ai.onnx.ml"})
"""Domains in which onnxruntime knows every operator and takes no function of a model."""

_NAMES = """
    Attention AttnLSTM BeamSearch BiasAdd BiasDropout BiasGelu BiasSoftmax BiasSplitGelu
    BifurcationDetector BitmaskBiasDropout BitmaskDropout BranchwiseRMSNorm CDist
    CausalConvWithState ComplexMul ComplexMulConj ConvStateReplay
    ConvTransposeWithDynamicPads CropAndResize DecoderAttention
    DecoderMaskedMultiHeadAttention DecoderMaskedSelfAttention DequantizeBFP
    DequantizeLinear DequantizeWithOrder DynamicQuantizeLSTM DynamicQuantizeMatMul
    DynamicSparseAttention DynamicTimeWarping EPContext EmbedLayerNormalization EngramGate
    ExpandDims FastGelu FusedConv FusedGemm FusedMatMul FusedMatMulActivation GatedAdd
    GatedDeltaNet GatedDeltaNetStateReplay GatedRMSNorm GatedRelativePositionBias
    GatherBlockQuantized GatherND GatherPacked Gelu GemmFastGelu GemmFloat8
    GemmaRotaryEmbedding GreedySearch GridSample GroupNorm GroupQueryAttention
    HyperConnectionLowRankMix HyperConnectionPostMix HyperConnectionPreMix Inverse Irfft
    IsAllFinite LinearAttention LinearAttentionGate LongformerAttention MRotaryEmbedding
    Mamba2Verify MatMulBlockQuantizedFp4Weight MatMulBlockQuantizedFp8Weight MatMulBnb4
    MatMulFpQ4 MatMulInteger16 MatMulIntegerToFloat MatMulNBits MatMulNBitsMlp
    MatMulNBitsQLoRA MatMulNBitsQkv MatMulPacked MaxpoolWithMask MoE MoEGroupRouter
    MoEPacked MulInteger MultiHeadAttention MurmurHash3 NGramHashMapping NGramRepeatBlock
    NhwcConv NhwcFusedConv NhwcMaxPool PackedAttention PackedMultiHeadAttention
    PackedSparseAttentionIndexer PackedSparseAttentionIndexerMerge Pad PagedAttention
    QAttention QEmbedLayerNormalization QGemm QLinearAdd QLinearAveragePool QLinearConcat
    QLinearConv QLinearGlobalAveragePool QLinearLeakyRelu QLinearMul QLinearReduceMean
    QLinearSigmoid QLinearSoftmax QLinearWhere QMoE QOrderedAttention QOrderedGelu
    QOrderedLayerNormalization QOrderedLongformerAttention QOrderedMatMul QuantizeBFP
    QuantizeLinear QuantizeWithOrder QuickGelu RMSNormRotary Range ReduceSumInteger
    RelativePositionBias RemovePadding RestorePadding Rfft RotaryEmbedding RouterGateUpProj
    SampleOp Sampling ScaledSiLU SkipGroupNorm SkipLayerNormalization
    SkipSimplifiedLayerNormalization Snpe SparseAttention SparseAttentionIndexer
    SparsePagedAttention SparseToDenseMatMul SpeculativePrefixCommit SwiGLU Tokenizer
    TorchEmbedding TransposeMatMul Trilu UnfoldTensor Unique VarlenCausalConvWithState
    VarlenNGramHashMapping WhisperBeamSearch WordConvEmbedding
"""
_KNOWN = frozenset(_NAMES.split())


def is_operator(domain: str, op_type: str) -> bool:
    """Whether onnxruntime runs its own kernel, or none, for a node of this domain and name."""
    return domain in _CLOSED or (domain == DOMAIN and op_type in _KNOWN)


_FLOATS = "float float16 bfloat16"
_REALS = "float16 float double bfloat16"
_CACHES = "float float16 bfloat16 uint8 int8 float8e4m3fn"
_CODES = "int4 uint4 uint8 float8e4m3fn float8e4m3fnuz float8e5m2 float8e5m2fnuz float4e2m1"
_BYTES = "int8 uint8"

# Name, inputs, outputs, attributes, types. `?` marks what may be left out, `!` what may not.
_SCHEMAS: tuple[tuple[str, str, str, str, dict[str, str]], ...] = (
    ("BiasGelu", "A:T B:T", "C:T", "", {"T": _REALS}),
    (
        "DynamicQuantizeMatMul",
        "A:T1 B:T2 b_scale:T1 b_zero_point?:T2 bias?:T1",
        "Y:T1",
        "",
        {"T1": "float", "T2": _BYTES},
    ),
    (
        "CausalConvWithState",
        "input:T weight:T bias?:T past_state?:T",
        "output:T present_state:T state_update?:T",
        (
            "activation:string channels_last:int dilation:int input_channel_offset:int "
            "input_channels:int ndim:int state_channels_last:int state_length:int "
            "state_update_capacity:int state_window:int"
        ),
        {"T": _FLOATS},
    ),
    ("FastGelu", "X:T bias?:T", "Y:T", "", {"T": _REALS}),
    (
        "FusedMatMul",
        "A:T B:T",
        "Y:T",
        "alpha:float transA:bool transB:bool transBatchA:bool transBatchB:bool",
        {"T": _REALS},
    ),
    (
        "GatherBlockQuantized",
        "data:T1 indices:Tind scales:T2 zero_points?:T1",
        "output:T2",
        "bits:int block_size:int gather_axis:int quantize_axis:int",
        {"T1": _CODES, "T2": _FLOATS, "Tind": "int32 int64"},
    ),
    ("Gelu", "X:T", "Y:T", "", {"T": _REALS}),
    (
        "GroupQueryAttention",
        (
            "query:T key?:T value?:T past_key?:T_CACHE past_value?:T_CACHE seqlens_k:M "
            "total_sequence_length:M cos_cache?:T sin_cache?:T position_ids?:int64 "
            "attention_bias?:T head_sink?:T k_scale?:T_KV_SCALE v_scale?:T_KV_SCALE "
            "q_norm_weight?:T k_norm_weight?:T query_seqlens?:M"
        ),
        "output:T present_key?:T_CACHE present_value?:T_CACHE output_qk?:T",
        (
            "causal:bool do_rotary:bool k_norm_epsilon:float k_quant_type:string "
            "kv_cache_bit_width:int kv_num_heads:int! local_window_size:int num_heads:int! "
            "q_norm_epsilon:float qk_norm_epsilon:float qk_output:int rotary_interleaved:bool "
            "scale:float sliding_window_cache:bool smooth_softmax:int softcap:float "
            "v_quant_type:string"
        ),
        {"T": _FLOATS, "T_CACHE": _CACHES, "T_KV_SCALE": "float", "M": "int32"},
    ),
    (
        "GatedRMSNorm",
        "X:T scale:T gate:T",
        "Y:T",
        "activation:string epsilon:float",
        {"T": _FLOATS},
    ),
    (
        "LinearAttention",
        "query:T key:T value:T past_state?:S decay?:T beta?:T",
        "output:T present_state:S",
        (
            "chunk_size:int kv_num_heads:int! q_num_heads:int! scale:float state_window:int "
            "update_rule:string"
        ),
        {"T": _FLOATS, "S": _FLOATS},
    ),
    (
        "LinearAttentionGate",
        "a:T dt_bias:TF decay_scale:TF b?:T",
        "decay:T beta?:T",
        "",
        {"T": _FLOATS, "TF": "float"},
    ),
    (
        "MatMulIntegerToFloat",
        "A:T1 B:T2 a_scale:T3 b_scale:T3 a_zero_point?:T1 b_zero_point?:T2 bias?:T3",
        "Y:T3",
        "",
        {"T1": _BYTES, "T2": _BYTES, "T3": "float float16"},
    ),
    (
        "MatMulNBits",
        "A:T1 B:T2 scales:T1 zero_points?:T3 g_idx?:T4 bias?:T1",
        "Y:T1",
        "K:int! N:int! accuracy_level:int bits:int block_size:int! weight_prepacked:int",
        {"T1": _FLOATS, "T2": "uint8", "T3": "uint8 float16 float bfloat16", "T4": "int32"},
    ),
    (
        "MRotaryEmbedding",
        "input:T position_ids:M cos_cache:T sin_cache:T",
        "output:T",
        (
            "interleaved:bool is_packed_batching:bool mrope_layout:int mrope_section:ints! "
            "num_heads:int rotary_embedding_dim:int scale:float"
        ),
        {"T": _FLOATS, "M": "int64"},
    ),
    (
        "MoE",
        (
            "input:T router_probs:T fc1_experts_weights:T fc1_experts_bias?:T "
            "fc2_experts_weights:T fc2_experts_bias?:T fc3_experts_weights?:T fc3_experts_bias?:T"
        ),
        "output:T",
        (
            "activation_alpha:float activation_beta:float activation_type:string k:int "
            "normalize_routing_weights:bool swiglu_fusion:int swiglu_limit:float "
            "swiglu_limit_after_activation:bool use_sparse_mixer:bool"
        ),
        {"T": _FLOATS},
    ),
    (
        "MultiHeadAttention",
        (
            "query:T key?:T value?:T bias?:T key_padding_mask?:M attention_bias?:T past_key?:T "
            "past_value?:T past_sequence_length?:M cache_indirection?:M"
        ),
        "output:T present_key?:T present_value?:T qk?:QK",
        "mask_filter_value:float num_heads:int! scale:float unidirectional:bool",
        {"T": _FLOATS, "QK": _FLOATS, "M": "int32"},
    ),
    (
        "QMoE",
        (
            "input:T router_probs:T fc1_experts_weights:T1 fc1_scales?:T2 fc1_experts_bias?:T "
            "fc2_experts_weights:T1 fc2_scales?:T2 fc2_experts_bias?:T fc3_experts_weights?:T1 "
            "fc3_scales?:T2 fc3_experts_bias?:T fc1_zero_points?:T1 fc2_zero_points?:T1 "
            "fc3_zero_points?:T1 router_weights?:T fc1_global_scale?:T4 fc2_global_scale?:T4 "
            "fc1_act_scale?:T4 fc2_act_scale?:T4 fc1_act_block_scale?:T2 fc2_act_block_scale?:T2"
        ),
        "output:T",
        (
            "accuracy_level:int activation_alpha:float activation_beta:float "
            "activation_type:string block_size:int expert_weight_bits:int "
            "fc1_expert_weight_bits:int fc2_expert_weight_bits:int fc3_expert_weight_bits:int "
            "k:int normalize_routing_weights:bool quant_type:string swiglu_fusion:int "
            "swiglu_limit:float swiglu_limit_after_activation:bool use_sparse_mixer:bool "
            "weights_prepacked:int"
        ),
        {
            "T": _FLOATS,
            "T1": "uint8 float8e4m3fn",
            "T2": f"{_FLOATS} float8e8m0 float8e4m3fn",
            "T4": "float",
        },
    ),
    ("QuickGelu", "X:T", "Y:T", "alpha:float", {"T": _REALS}),
    (
        "RotaryEmbedding",
        "input:T position_ids:M cos_cache:T sin_cache:T",
        "output:T",
        (
            "interleaved:bool is_packed_batching:bool num_heads:int rotary_embedding_dim:int "
            "scale:float"
        ),
        {"T": _FLOATS, "M": "int64"},
    ),
    (
        "SkipLayerNormalization",
        "input:T skip:T gamma:T beta?:T bias?:T",
        "output:T mean?:U inv_std_var?:U input_skip_bias_sum?:T",
        "epsilon:float",
        {"T": _FLOATS, "U": "float"},
    ),
    (
        "SkipSimplifiedLayerNormalization",
        "input:T skip:T gamma:T bias?:T",
        "output:T mean?:U inv_std_var?:U input_skip_bias_sum?:T",
        "epsilon:float",
        {"T": _FLOATS, "U": "float"},
    ),
)

_IN_ONNX_DOMAIN = (
    "SimplifiedLayerNormalization",
    "X:T scale:V",
    "Y:V inv_std_var?:U",
    "axis:int epsilon:float stash_type:int",
    {"T": _REALS, "U": "float double", "V": _REALS},
)


def _schema(name: str, inputs: str, outputs: str, attributes: str, types: dict[str, str]) -> Schema:
    return Schema(
        name,
        tuple(_formal(text) for text in inputs.split()),
        tuple(_formal(text) for text in outputs.split()),
        {one.name: one for one in map(_attribute, attributes.split())},
        {key: frozenset(value.split()) for key, value in types.items()},
    )


def _formal(text: str) -> Formal:
    name, kind = text.split(":")
    return Formal(name.rstrip("?"), kind, optional=name.endswith("?"))


def _attribute(text: str) -> Attribute:
    name, kind = text.split(":")
    return Attribute(name, kind.rstrip("!"), required=kind.endswith("!"))


@cache
def schemas() -> dict[tuple[str, str], Schema]:
    """Schemas by domain and name."""
    found = {(DOMAIN, entry[0]): _schema(*entry) for entry in _SCHEMAS}
    found["", _IN_ONNX_DOMAIN[0]] = _schema(*_IN_ONNX_DOMAIN)
    return found
