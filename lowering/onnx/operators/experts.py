"""Mixtures of experts as single operators: QMoE and MoE, as onnxruntime's CPU kernels compute them.

The router's logits choose; the shares are a softmax over the chosen experts, or over all. The
matrices of all experts are one parameter, a family.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from xdsl.ir import SSAValue

from intaglio.dialects import rom
from intaglio.dialects.isa.matrix import CHOSEN_BITS
from intaglio.lowering.onnx.graph.model import Array, Node, text_of
from intaglio.lowering.onnx.known.constants import Constant, Given, elementwise, permuted, reshaped
from intaglio.lowering.onnx.known.lazy import constant_of
from intaglio.lowering.onnx.step import BIAS, Step, real
from intaglio.lowering.onnx.values import (
    Blocked,
    Computed,
    Quantised,
    Refusal,
    Stored,
    Unknown,
    Value,
    Vector,
    kind_of,
)
from intaglio.lowering.onnx.weights import weights
from intaglio.lowering.onnx.weights.families import family
from intaglio.lowering.onnx.weights.narrow import narrowed
from intaglio.lowering.onnx.weights.weights import Parameter

MOE_ATTRIBUTES = (
    "activation_alpha",
    "activation_beta",
    "activation_type",
    "k",
    "normalize_routing_weights",
    "swiglu_fusion",
    "swiglu_limit",
    "swiglu_limit_after_activation",
    "use_sparse_mixer",
)
QMOE_ATTRIBUTES = (
    *MOE_ATTRIBUTES,
    "accuracy_level",
    "block_size",
    "expert_weight_bits",
    "fc1_expert_weight_bits",
    "fc2_expert_weight_bits",
    "fc3_expert_weight_bits",
    "quant_type",
    "weights_prepacked",
)

ACTIVATIONS = {"relu": "relu", "silu": "silu", "gelu": "gelu_tanh", "identity": None}
"""What `activation_type` is as a kind of `rom.activate`; gelu is the form by tanh."""
SWIGLU = "swiglu"
QUICK = 1.702
"""The slope of `quick_gelu`."""

_FC3, _ZEROS, _ROUTER_WEIGHTS, _GLOBAL = slice(8, 11), slice(11, 14), 14, 15


@dataclass(frozen=True)
class Inside:
    """What experts compute between their two products.

    Attributes:
        kind: of `rom.activate`, None for none; `swiglu` has a gate and a linear half.
        alpha: slope of the gate's sigmoid.
        beta: added to the linear half.
        limit: bound of the gate from above and of the linear half on both sides; infinite: none.
    """

    kind: str | None
    alpha: float = 1.0
    beta: float = 0.0
    limit: float = math.inf

    @property
    def gated(self) -> bool:
        """Whether the first product has two halves."""
        return self.kind == SWIGLU

    @property
    def folded(self) -> float:
        """What of beta the biases of the linear half take: a bound moves with it."""
        return self.beta if self.gated else 0.0


def qmoe(step: Step, node: Node) -> None:
    """com.microsoft.QMoE: input, router_probs (logits), weights, scales and bias of two layers."""
    inputs = step.inputs(node)
    _check_inputs(node, inputs)
    bits = node.integer("expert_weight_bits", 4)
    for name in ("fc1_expert_weight_bits", "fc2_expert_weight_bits"):
        if node.integer(name, bits) not in (0, -1, bits):
            raise Refusal(f"{name} differs from expert_weight_bits = {bits}")
    if bits not in (2, 4, 8):
        raise Refusal(f"expert_weight_bits = {bits} is not supported", "use 2, 4 or 8 bits")
    if node.integer("weights_prepacked", -1) > 0:
        raise Refusal("weights_prepacked = 1 is a layout of one device", "export the model for CPU")
    block = node.integer("block_size")
    inside, chosen = _inside(node), _chosen(node)
    x, logits = _activations(step, node)

    def matrix(codes: int, scales: int, zeros: int) -> Parameter:
        return weights.expert_matrices(inputs[codes], inputs[scales], inputs[zeros], bits, block)

    first, second = matrix(2, 3, 11), matrix(5, 6, 12)
    step.has_integers = True
    _mixture(
        step,
        node,
        (x, logits),
        (first, second),
        (inputs[4], inputs[7]),
        inside,
        chosen,
        every=False,
    )


def moe(step: Step, node: Node) -> None:
    """com.microsoft.MoE: the same with weights in floating point, quantised on request."""
    inputs = step.inputs(node)
    if any(value is not None for value in inputs[6:8]):
        raise Refusal("a third layer (fc3) is not supported")
    inside, chosen = _inside(node), _chosen(node)
    x, logits = _activations(step, node)
    first, second = (_rounded(step, node, inputs[i]) for i in (2, 4))
    _mixture(
        step,
        node,
        (x, logits),
        (first, second),
        (inputs[3], inputs[5]),
        inside,
        chosen,
        every=not node.integer("normalize_routing_weights"),
    )


def _rounded(step: Step, node: Node, value: Value | None) -> Parameter:
    """Matrices [E, R, K], dequantised or of floats, as one matrix [E * R, K]."""
    if isinstance(value, Unknown):
        raise Blocked
    if isinstance(value, Quantised) and len(value.dims) == 3:
        step.has_integers = True
        return weights.matrix(_flat(value), 0)
    found = constant_of(value) if isinstance(value, Stored | Computed) else None
    if found is None or not isinstance(value, Stored | Computed) or len(found.dims) != 3:
        raise Refusal(
            f"the experts' matrices must be a constant of 3 axes; here it is {kind_of(value)}"
        )
    name = weights.name_of(value)
    rounding = None if step.rounding is None else step.rounding.of(node.name, name, *node.scopes)
    if rounding is None:
        raise step.float_weights(weights.type_of(value), found.dims[2])
    step.warnings.append(
        f"node '{node.name}' ({node.op_type}): its experts are engraved as {rounding.in_words()}; "
        "onnxruntime judges them as they are in the file"
    )
    experts, rows, columns = found.dims
    flat = Computed(reshaped(found, (experts * rows, columns)), name)
    return weights.rounded(flat, 0, rounding)


def _flat(value: Quantised) -> Quantised:
    """Dequantised matrices [E, R, K] as one [E * R, K]; scales of all, or in blocks of a row."""
    experts, rows, columns = value.dims
    if value.scales.tensor.size > 1 and value.axis not in (2, -1):
        raise Refusal(
            "the scales of the experts' matrices do not follow their rows",
            "quantise in blocks along the inputs, with one scale for all, or use QMoE",
        )

    def flat(part: Stored) -> Stored:
        if part.tensor.size == 1:
            return part
        dims = (experts * rows, part.tensor.size // experts // rows)
        return Stored(replace(part.tensor, dims=dims), dims)

    return Quantised(
        Stored(value.codes.tensor, (experts * rows, columns)),
        flat(value.scales),
        None if value.zeros is None else flat(value.zeros),
        1,
        value.block,
        (experts * rows, columns),
    )


def _check_inputs(node: Node, inputs: Sequence[Value | None]) -> None:
    if any(value is not None for value in inputs[_FC3]) or inputs[_ZEROS][2] is not None:
        raise Refusal("a third layer (fc3) is not supported")
    if inputs[_ROUTER_WEIGHTS] is not None:
        raise Refusal(
            "shares that are not a softmax of the logits (router_weights) are not supported"
        )
    if any(node.input(i) for i in range(_GLOBAL, len(node.inputs))):
        raise Refusal("scales of floating-point formats are not supported", "use 2, 4 or 8 bits")


def _inside(node: Node) -> Inside:
    kind = text_of(node.attributes.get("activation_type", "relu"))
    if kind in ACTIVATIONS:
        return Inside(ACTIVATIONS[kind])
    if kind != SWIGLU:
        raise Refusal(
            f"activation_type = {kind} is not supported", f"{', '.join(ACTIVATIONS)} and swiglu are"
        )
    if node.integer("swiglu_fusion") != 1:
        raise Refusal(
            f"swiglu_fusion = {node.integer('swiglu_fusion')} is not supported",
            "onnxruntime's CPU takes rows of gate and linear part in turns (1)",
        )
    if node.integer("swiglu_limit_after_activation"):
        raise Refusal("swiglu_limit_after_activation is not supported")
    return Inside(
        SWIGLU,
        node.real("activation_alpha", 1.0),
        node.real("activation_beta", 0.0),
        node.real("swiglu_limit", math.inf),
    )


def _chosen(node: Node) -> int:
    chosen = node.integer("k", 1)
    if node.integer("use_sparse_mixer") and chosen != 2:
        raise Refusal(f"use_sparse_mixer takes k = 2, not {chosen}")
    return chosen


def _activations(step: Step, node: Node) -> tuple[Vector, Vector]:
    x, logits = step.vector(node, 0), step.vector(node, 1)
    step.whole_row(x)
    step.whole_row(logits)
    return x, logits


def _mixture(
    step: Step,
    node: Node,
    activations: tuple[Vector, Vector],
    matrices: tuple[Parameter, Parameter],
    biases: tuple[Value | None, Value | None],
    inside: Inside,
    chosen: int,
    *,
    every: bool,
) -> None:
    """Emits the chosen experts, one after the other, and binds their sum."""
    x, logits = activations
    experts = logits.size
    if not 1 <= chosen <= min(experts, (1 << CHOSEN_BITS) - 1):
        raise Refusal(f"k = {chosen} of {experts} experts")
    first, second = (one.source.dims for one in matrices)
    inner = first[0] // experts // (2 if inside.gated else 1)
    for what, found, wanted in (
        ("first", first, (experts * inner * (2 if inside.gated else 1), x.size)),
        ("second", second, (experts * x.size, inner)),
    ):
        if tuple(found) != wanted:
            raise Refusal(
                f"the {what} layer's matrices have {found[0]} rows of {found[1]} columns together, "
                f"{experts} experts of {x.size} elements need {wanted[0]} of {wanted[1]}"
            )
    order = _halves(inner) if inside.gated else None
    symbols = [
        step.declare(node, family(narrowed(matrix, step.codes), experts, rows))
        for matrix, rows in zip(matrices, (order, None), strict=True)
    ]
    up_bias = _first_bias(step, node, biases[0], experts, inner, inside)
    down_bias = _bias(step, node, biases[1], (experts, x.size))
    names = rom.nodes(node.name)
    routing = step.emit(
        rom.RouteOp(logits.ssa, rom.RoutingType(chosen, experts), names, lowest=False, every=every)
    ).output
    total: SSAValue | None = None
    width = rom.vector_size(x.ssa.type)
    for number in range(chosen):
        hidden = first[0] // experts
        up = rom.ExpertLinearOp(
            x.ssa, routing, number, symbols[0], names, rom.float_vector(hidden), up_bias
        )
        h = _activated(step, names, step.emit(up).output, inner, inside)
        down = rom.ExpertLinearOp(
            h, routing, number, symbols[1], names, rom.float_vector(width), down_bias
        )
        y = step.emit(down).output
        total = step.emit(rom.WeighOp(y, routing, number, names, residual=total)).output
    assert total is not None
    step.result(node, total, x.dims)


def _halves(inner: int) -> npt.NDArray[np.int64]:
    """Rows in the order in which those of the gate come first, then those of the linear part."""
    return np.arange(2 * inner).reshape(inner, 2).T.reshape(-1)


def _activated(step: Step, names: rom.Nodes, y: SSAValue, inner: int, inside: Inside) -> SSAValue:
    """What experts compute between their two products, of one of them."""
    if inside.kind is None:
        return y
    if not inside.gated:
        return step.emit(rom.ActivateOp(y, inside.kind, names)).output
    half = rom.float_vector(inner)
    gate = step.emit(rom.SliceOp(y, 0, names, half)).output
    linear = step.emit(rom.SliceOp(y, inner, names, half)).output
    if math.isfinite(inside.limit):
        low, high = (real(inside.folded + bound) for bound in (-inside.limit, inside.limit))
        gate = step.emit(rom.ClipOp(gate, names, None, real(inside.limit))).output
        linear = step.emit(rom.ClipOp(linear, names, low, high)).output
    return step.emit(rom.MulOp(_gate(step, names, gate, inside.alpha), linear, names)).output


def _gate(step: Step, names: rom.Nodes, x: SSAValue, alpha: float) -> SSAValue:
    """``x * sigmoid(alpha * x)``."""
    if math.isclose(alpha, QUICK, rel_tol=1e-3):
        return step.emit(rom.ActivateOp(x, "quick_gelu", names)).output
    if alpha == 0.0:
        return step.emit(rom.ScaleOp(x, real(0.5), names)).output
    if alpha != 1.0:
        x = step.emit(rom.ScaleOp(x, real(alpha), names)).output
    x = step.emit(rom.ActivateOp(x, "silu", names)).output
    return x if alpha == 1.0 else step.emit(rom.ScaleOp(x, real(1 / alpha), names)).output


def _constant(value: Value, dims: tuple[int, ...]) -> Constant:
    if isinstance(value, Unknown):
        raise Blocked
    found = constant_of(value) if isinstance(value, Stored | Computed) else None
    if found is None or not found.is_float:
        raise Refusal(f"{BIAS.what} must be a constant of the model; here it is {kind_of(value)}")
    if found.dims != dims:
        raise Refusal(f"{BIAS.what} has shape {list(found.dims)}, expected {list(dims)}")
    return found


def _bias(step: Step, node: Node, value: Value | None, dims: tuple[int, int]) -> str | None:
    if value is None:
        return None
    constant = _constant(value, dims)
    return _declared(step, node, constant, value)


def _declared(step: Step, node: Node, constant: Constant, value: Value | None) -> str:
    name = weights.name_of(value) if isinstance(value, Stored | Computed) else f"{node.name}.bias"
    dims = constant.dims
    return step.dense_value(node, Computed(constant, name), dims, BIAS)


def _first_bias(
    step: Step, node: Node, value: Value | None, experts: int, inner: int, inside: Inside
) -> str | None:
    """The biases of the first layer, in the order of its rows; of the linear part with beta."""
    if not inside.gated:
        return _bias(step, node, value, (experts, inner))
    rows = 2 * inner
    added = np.zeros((1, rows), np.float32)
    added[:, inner:] = inside.folded
    if value is None:
        if not inside.folded:
            return None
        return _declared(step, node, Given(np.repeat(added, experts, 0)), None)
    constant = _constant(value, (experts, rows))
    dealt = reshaped(permuted(reshaped(constant, (experts, inner, 2)), (0, 2, 1)), (experts, rows))
    if inside.folded:
        dealt = elementwise(_sum, [dealt, Given(added)], np.dtype(np.float32))
    return _declared(step, node, dealt, value)


def _sum(a: Array, b: Array) -> Array:
    return np.add(a.astype(np.float32), b)
