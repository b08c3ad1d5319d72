"""Linear attention and what stands around it: gates, norms of heads, gated norms."""

from __future__ import annotations

import math

import numpy as np

from intaglio.dialects import rom
from intaglio.lowering.onnx.graph.model import Node, text_of
from intaglio.lowering.onnx.known.expressions import dims_text
from intaglio.lowering.onnx.known.shapes import axis_of
from intaglio.lowering.onnx.operators.convolution import TAP
from intaglio.lowering.onnx.operators.linear import with_bias
from intaglio.lowering.onnx.step import BIAS, GAMMA, Step, real
from intaglio.lowering.onnx.values import (
    Blocked,
    Past,
    Present,
    Refusal,
    Stored,
    Unknown,
    Vector,
    kind_of,
)

ATTENTION_ATTRIBUTES = (
    "chunk_size",
    "kv_num_heads",
    "q_num_heads",
    "scale",
    "state_window",
    "update_rule",
)


def linear_attention(step: Step, node: Node) -> None:
    """LinearAttention of com.microsoft and of ai.onnx 27, of one token.

    Its inputs: query, key, value [B, T, heads * width], past_state [B, heads, K, V], decay (a
    logarithm) and beta [B, T, heads].
    """
    if any(isinstance(value, Unknown) for value in step.inputs(node)):
        raise Blocked
    if node.integer("state_window"):
        raise Refusal("state_window is not supported: states of tokens that are taken back")
    rule = text_of(node.attributes.get("update_rule", "gated_delta"))
    if rule not in rom.LINEAR_RULES:
        known = ", ".join(rom.LINEAR_RULES)
        raise Refusal(f"update_rule = {rule} is not known; {known} are")
    query_heads, heads = node.integer("q_num_heads"), node.integer("kv_num_heads")
    if query_heads < 1 or heads < 1:
        raise Refusal("q_num_heads and kv_num_heads must be positive")
    past = _past(step, node, heads)
    width, columns = past.dims[2].constant, past.dims[3].constant
    assert width is not None and columns is not None
    query = step.row(node, 0, query_heads * width, f"{query_heads} heads of {width}")
    value = step.row(node, 2, heads * columns, f"{heads} heads of {columns}")
    key = step.vector(node, 1)
    step.whole_row(key)
    if query_heads > heads or heads % query_heads:
        raise Refusal(
            f"{query_heads} heads of queries read {heads} states; only as many, or a part of them, "
            "are supported"
        )
    if key.size % width or heads % max(1, key.size // width):
        raise Refusal(f"input 1 has {key.size} elements, no heads of {width} that divide {heads}")
    gates: list[Vector] = []
    for place, word, what in ((4, "gated", "decay"), (5, "delta", "beta")):
        if word not in rule:
            continue
        if not node.input(place):
            raise Refusal(f"update_rule = {rule} needs a {what}")
        gate = step.vector(node, place)
        if gate.size != heads:
            raise Refusal(
                f"{what} has {gate.size} elements a token; one for each of {heads} heads is "
                "supported"
            )
        gates.append(gate)
    names = rom.nodes(node.name)
    scale = node.real("scale", 0.0) or 1 / math.sqrt(width)
    asked = query.ssa
    if scale != 1.0:
        asked = step.emit(rom.ScaleOp(asked, real(scale), names)).output
    (symbol,) = step.state(past.name, rom.MatricesType(heads, width, columns))
    op = rom.LinearAttentionOp(
        asked,
        key.ssa,
        value.ssa,
        [gate.ssa for gate in gates],
        symbol,
        rule,
        step.position,
        names,
    )
    step.result(node, step.emit(op).output, value.dims)
    step.bind(node, Present(past.name, past.dims), 1)


def _past(step: Step, node: Node, heads: int) -> Past:
    """The input of the graph that holds the state."""
    value = step.values.get(node.input(3)) if node.input(3) else None
    if not isinstance(value, Past):
        raise Refusal(
            f"its past state must be an input of the graph; here it is {kind_of(value)}",
            "export with past states as inputs and present states as outputs (with past)",
        )
    if len(value.dims) != 4 or value.dims[1] != heads:
        raise Refusal(
            f"'{value.name}' has the shape {dims_text(value.dims)}, {heads} heads need "
            f"[batch, {heads}, key width, value width]"
        )
    return value


def linear_attention_gate(step: Step, node: Node) -> None:
    """com.microsoft.LinearAttentionGate: a, dt_bias, decay_scale, b.

    decay = decay_scale * softplus(a + dt_bias); beta = sigmoid(b).
    """
    names = rom.nodes(node.name)
    a = step.vector(node, 0)
    step.whole_row(a)
    bias = step.dense(node, 1, (a.size,), BIAS)
    moved = with_bias(step, node, a, bias) if step.single_use(node.input(0)) else None
    if moved is None:
        ones = step.made(node, "ones", np.ones(a.size, np.float32), TAP)
        moved = Vector(step.emit(rom.TapOp(a.ssa, ones, names, bias=bias)).output, a.dims)
    soft = step.emit(rom.ActivateOp(moved.ssa, "softplus", names)).output
    scale = step.dense(node, 2, (a.size,), TAP)
    step.result(node, step.emit(rom.TapOp(soft, scale, names)).output, a.dims)
    if node.input(3):
        b = step.vector(node, 3)
        step.result(node, step.emit(rom.ActivateOp(b.ssa, "sigmoid", names)).output, b.dims, 1)


def gated_rms_norm(step: Step, node: Node) -> None:
    """com.microsoft.GatedRMSNorm: X, scale, gate; the norm is of parts as long as the scale."""
    x, gate = step.vector(node, 0), step.vector(node, 2)
    step.same_dims(x, gate)
    step.whole_row(x)
    value = step.values.get(node.input(1))
    if not isinstance(value, Stored) or len(value.dims) != 1 or x.size % value.dims[0]:
        raise Refusal(f"its scale must be a constant vector whose length divides {x.size}")
    (width,) = value.dims
    kind = text_of(node.attributes.get("activation", "silu"))
    kinds = {"silu": "silu", "swish": "silu", "sigmoid": "sigmoid"}
    if kind not in kinds:
        raise Refusal(f"activation = {kind} is not known; {', '.join(kinds)} are")
    names = rom.nodes(node.name)
    gamma = step.dense(node, 1, (width,), GAMMA)
    eps = real(node.real("epsilon", 1e-5))
    norm = step.emit(rom.RMSNormOp(x.ssa, gamma, eps, names, groups=x.size // width)).output
    gated = step.emit(rom.ActivateOp(gate.ssa, kinds[kind], names)).output
    step.result(node, step.emit(rom.MulOp(norm, gated, names)).output, x.dims)


def lp_normalization(step: Step, node: Node) -> None:
    """LpNormalization over the last axis, p = 2: each part over the root of its sum of squares.

    That is the root mean square norm without an epsilon, its weight one over the root of the width.
    """
    x = step.vector(node, 0)
    if (p := node.integer("p", 2)) != 2:
        raise Refusal(f"p = {p} is not supported; 2 is")
    rank = len(x.dims)
    if axis_of(node, rank, -1) != rank - 1:
        raise Refusal("only the last axis can be normalised")
    width = x.dims[-1].constant
    if width is None:
        raise Refusal(f"the last axis of {dims_text(x.dims)} varies in length")
    values = np.full(width, 1 / math.sqrt(width), np.float32)
    gamma = step.made(node, "unit", values, GAMMA)
    groups = x.size // width
    op = rom.RMSNormOp(x.ssa, gamma, real(0.0), rom.nodes(node.name), groups=groups)
    step.result(node, step.emit(op).output, x.dims)
