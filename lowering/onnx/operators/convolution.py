"""Convolution over the last taps of each channel: CausalConvWithState."""

from __future__ import annotations

from xdsl.ir import SSAValue

from intaglio.dialects import rom
from intaglio.lowering.onnx.graph.model import Node, text_of
from intaglio.lowering.onnx.known.constants import Constant, Reshaped, Taken
from intaglio.lowering.onnx.known.expressions import dims_text
from intaglio.lowering.onnx.known.lazy import constant_of
from intaglio.lowering.onnx.step import BIAS, Role, Step
from intaglio.lowering.onnx.values import (
    Blocked,
    Computed,
    Past,
    Present,
    Refusal,
    Stored,
    Unknown,
    kind_of,
)

TAP = Role("a tap of the convolution", "tap")

ATTRIBUTES = ("activation", "channels_last", "dilation", "ndim", "state_window")


def causal_convolution(step: Step, node: Node) -> None:
    """CausalConvWithState of com.microsoft and of ai.onnx 27, of one token.

    Its inputs: x [B, C, T] (or [B, T, C] with `channels_last`), weight [C, 1, K], bias [C],
    past_state [B, C, (K - 1) * dilation], the last inputs, oldest first. One `rom.delay` gives the
    input a token later; K products of each channel are added up.
    """
    if any(isinstance(value, Unknown) for value in step.inputs(node)):
        raise Blocked
    if (ndim := node.integer("ndim", 1)) != 1:
        raise Refusal(f"it has {ndim} axes; of a sequence of tokens there is one")
    if node.integer("state_window"):
        raise Refusal("state_window is not supported: states of tokens that are taken back")
    if (dilation := node.integer("dilation", 1)) < 1:
        raise Refusal(f"dilation = {dilation} is not positive")
    last = bool(node.integer("channels_last"))
    taps = _weights(step, node)
    channels, _, count = taps.dims
    x = step.vector(node, 0)
    axis = 2 if last else 1
    if len(x.dims) != 3 or x.dims[axis] != channels or x.size != channels:
        raise Refusal(
            f"input 0 has the shape {dims_text(x.dims)}, the weights are of {channels} channels"
        )
    names, depth = rom.nodes(node.name), (count - 1) * dilation
    past = _past(step, node, channels, depth, last=last) if depth else None
    value, delayed = x.ssa, [x.ssa]
    for symbol in step.state(past.name, rom.StateType(channels), depth) if past else ():
        value = step.emit(rom.DelayOp(value, symbol, step.position, names)).output
        delayed.append(value)
    bias = step.dense(node, 2, (channels,), BIAS) if node.input(2) else None
    total: SSAValue | None = None
    for tap in range(count):
        # The last tap is that of this token.
        source = delayed[(count - 1 - tap) * dilation]
        part = Reshaped(Taken(taps, 2, tap, 1, 1), (channels,))
        name = f"{node.input(1)}.tap{tap}"
        weights = step.dense_value(node, Computed(part, name), (channels,), TAP)
        one = rom.TapOp(
            source, weights, names, bias=None if total is not None else bias, addend=total
        )
        total = step.emit(one).output
    assert total is not None
    kind = text_of(node.attributes.get("activation", "none"))
    if kind in ("silu", "swish"):
        total = step.emit(rom.ActivateOp(total, "silu", names)).output
    elif kind != "none":
        raise Refusal(f"activation = {kind} is not known; none, silu and swish are")
    step.result(node, total, x.dims)
    if past is not None:
        step.bind(node, Present(past.name, past.dims), 1)


def _weights(step: Step, node: Node) -> Constant:
    value = step.values.get(node.input(1))
    if not isinstance(value, Stored | Computed):
        raise Refusal(f"the weights must be a constant of the model; here it is {kind_of(value)}")
    constant = constant_of(value)
    if constant is None or not value.is_float:
        raise Refusal("the weights must be floating-point numbers")
    if len(constant.dims) != 3 or constant.dims[1] != 1 or 0 in constant.dims:
        raise Refusal(f"the weights have shape {list(constant.dims)}, not [channels, 1, taps]")
    return constant


def _past(step: Step, node: Node, channels: int, depth: int, *, last: bool) -> Past:
    """The input of the graph that holds the last inputs."""
    value = step.values.get(node.input(3)) if node.input(3) else None
    if not isinstance(value, Past):
        raise Refusal(
            f"its past state must be an input of the graph; here it is {kind_of(value)}",
            "export with past states as inputs and present states as outputs (with past)",
        )
    wanted = (depth, channels) if last else (channels, depth)
    if len(value.dims) != 3 or tuple(d.constant for d in value.dims[1:]) != wanted:
        raise Refusal(
            f"'{value.name}' has the shape {dims_text(value.dims)}, "
            f"{depth + 1} taps of {channels} channels need [batch, {wanted[0]}, {wanted[1]}]"
        )
    return value
