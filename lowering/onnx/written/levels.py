"""Activations that the graph itself rounds to 8 bits: what BitNet's exports and quantisers write.

BitNet scales each token by 127 / max(|x|, eps), rounds half to even, clips, and divides by the
scale before or after the matrix product. That is the per-token quantisation of a chip with int8
activations, so the whole chain becomes the property `activation = "int8"` of the linear operators
that read it. The parts of the chain are values of their own kind (`TokenScale`, `Levels`,
`Product`): numbers times a power of the token's largest magnitude. Only such chains are taken; one
that differs (other levels, another axis, no rounding) is refused, never approximated.

DynamicQuantizeLinear with MatMulInteger takes one asymmetric uint8 scale for all tokens of a call.
A chip sees one token at a time, so these become its own quantisation of a token, with a warning.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from intaglio.lowering.onnx.graph.model import FLOATS, Node, cast_type
from intaglio.lowering.onnx.known.expressions import dims_text
from intaglio.lowering.onnx.known.shapes import axis_of, reduced_axes, split_sizes
from intaglio.lowering.onnx.step import Step
from intaglio.lowering.onnx.values import (
    Blocked,
    Levels,
    Product,
    Refusal,
    TokenScale,
    Unknown,
    Value,
    Vector,
    ZeroPoint,
    kind_of,
    numbers,
)
from intaglio.lowering.onnx.weights import weights
from intaglio.lowering.onnx.weights.scales import scaled, split

LEVELS = 127.0
LARGEST_EPS = 1e-3
"""The largest lower bound of a token's magnitude that is left out."""

_HINT = (
    "the chip rounds each token to 127 levels of its largest magnitude on either side, as BitNet "
    "does (round(127 x / max|x|), clipped to -128..127)"
)
_DYNAMIC_HINT = (
    "quantise the products with constant weights only: quantize_dynamic(..., "
    "extra_options={'MatMulConstBOnly': True})"
)


def convert(step: Step, node: Node, inputs: list[Value | None]) -> bool:
    """Converts a node that rounds activations or reads rounded ones; says whether it is one.

    Raises:
        Refusal: the chain differs from what a chip does.
    """
    if node.op_type == "Abs" and isinstance(inputs[0], Vector):
        one = np.asarray(1.0, np.float64)
        step.bind(node, TokenScale("magnitudes", inputs[0], one, 1, (node.name,)))
        return True
    kinds = (TokenScale, Levels, Product, ZeroPoint)
    places = [i for i, value in enumerate(inputs) if isinstance(value, kinds)]
    if not places or node.op_type in ("MatMulInteger", "MatMulIntegerToFloat"):
        return False
    value = inputs[places[0]]
    assert value is not None
    match value:
        case _ if node.op_type in ("Identity", "Cast"):
            _cast(step, node, value)
        case TokenScale(stage="magnitudes"):
            _largest(step, node, value)
        case TokenScale() | Levels() | Product() if node.op_type in ("Mul", "Div"):
            step.bind(node, _combined(step, node, inputs))
        case Product() if node.op_type == "Split":
            _parts(step, node, inputs, value)
        case TokenScale():
            step.bind(node, _bounded(node, inputs, value))
        case Levels() if node.op_type in ("MatMul", "Gemm", "MatMulNBits", "FusedMatMul"):
            return False
        case Levels():
            step.bind(node, _rounded(node, inputs, value))
        case _:
            raise Refusal(f"{node.op_type} reads {value.kind}")
    return True


# --- the scale of a token ------------------------------------------------------------------------


def _largest(step: Step, node: Node, value: TokenScale) -> None:
    """ReduceMax of magnitudes over all elements of a token."""
    if node.op_type != "ReduceMax":
        raise Refusal(f"{node.op_type} reads the magnitudes of an activation", _HINT)
    rank = len(value.input.dims)
    axes = reduced_axes(node, step.inputs(node), rank)
    step.whole_row(value.input)
    if axes != {rank - 1}:
        where = "all tokens" if len(axes) == rank else f"axis {', '.join(map(str, sorted(axes)))}"
        raise Refusal(
            f"activations are rounded by the largest magnitude over {where} of "
            f"{dims_text(value.input.dims)}; a chip takes tokens one by one",
            _HINT,
        )
    if not node.attributes.get("keepdims", 1):
        raise Refusal("the largest magnitude of a token loses its axis (keepdims = 0)")
    names = (*value.names, node.name)
    step.bind(node, TokenScale("scale", value.input, value.factor, 1, names))


def _bounded(node: Node, inputs: list[Value | None], value: TokenScale) -> Value:
    """Clip or Max with a small number; Reciprocal."""
    names = (*value.names, node.name)
    if node.op_type == "Reciprocal":
        return TokenScale("scale", value.input, 1.0 / value.factor, -value.power, names)
    if node.op_type == "Clip":
        low = _limit(node, "min", inputs[1])
        high = _limit(node, "max", inputs[2])
        unlimited = high is None or float(high) >= 1e30
    elif node.op_type == "Max":
        low = next((n for n in map(_number, inputs[:2]) if n is not None), None)
        unlimited = True
    else:
        raise Refusal(f"{node.op_type} reads the largest magnitude of a token", _HINT)
    is_largest = value.power == 1 and float(value.factor) == 1.0
    if low is None or not unlimited or not is_largest or not 0 <= float(low) <= LARGEST_EPS:
        raise Refusal(
            f"the largest magnitude of a token is limited to {low} and more; only small bounds "
            f"against division by zero (up to {LARGEST_EPS}) are left out",
            _HINT,
        )
    return TokenScale("scale", value.input, value.factor, 1, names)


def _number(value: Value | None) -> float | None:
    array = None if value is None else numbers(value)
    if array is None or array.size != 1 or array.dtype.kind not in "fiu":
        return None
    return float(array.reshape(-1)[0])


def _limit(node: Node, name: str, value: Value | None) -> float | None:
    """A limit of Clip: an input, an attribute before opset 11, or none."""
    if value is not None:
        return _number(value)
    return node.real(name) if name in node.attributes else None


# --- levels --------------------------------------------------------------------------------------


def _rounded(node: Node, inputs: list[Value | None], value: Levels) -> Value:
    """Round, then Clip."""
    names = (*value.names, node.name)

    def to(stage: str) -> Levels:
        return Levels(stage, value.input, value.factor, value.power, names, value.own)

    match node.op_type, value.stage:
        case ("Round", "scaled"):
            return to("rounded")
        case ("Clip", "rounded" | "levels"):
            low = _limit(node, "min", inputs[1])
            high = _limit(node, "max", inputs[2])
            if low not in (-127.0, -128.0) or high != LEVELS:
                raise Refusal(
                    f"rounded activations are clipped to {low:g}..{high:g}"
                    if isinstance(low, int | float) and isinstance(high, int | float)
                    else "rounded activations are clipped by no numbers",
                    _HINT,
                )
            return to("levels")
        case ("Max" | "Min", "rounded" | "levels"):
            limit = next((n for n in map(_number, inputs[:2]) if n is not None), None)
            if limit is None or abs(limit) not in (127.0, 128.0):
                raise Refusal("rounded activations are limited by another number than 127", _HINT)
            return to("levels")
        case ("Clip" | "Max" | "Min", "scaled"):
            raise Refusal("scaled activations are clipped before they are rounded", _HINT)
        case _:
            raise Refusal(f"{node.op_type} reads {value.kind}; only matrix products do", _HINT)


def _cast(step: Step, node: Node, value: Value) -> None:
    target = cast_type(node) if node.op_type == "Cast" else ""
    if isinstance(value, Levels):
        if target == "INT8" and value.stage == "scaled":
            raise Refusal("scaled activations are cut off, not rounded (Cast without Round)", _HINT)
        good = target in ("", "INT8", "INT32", *FLOATS) or value.own
    else:
        good = target in ("", *FLOATS)
    if not good:
        raise Refusal(f"{value.kind} cast to {target} is not supported")
    step.bind(node, value)


def _combined(step: Step, node: Node, inputs: list[Value | None]) -> Value:
    """Mul and Div: numbers and powers of the largest magnitude come together."""
    a, b = inputs[0], inputs[1]
    if node.op_type == "Mul" and isinstance(b, Levels | Product | Vector):
        a, b = b, a
    divides = node.op_type == "Div"
    match a, b:
        case (Vector(), TokenScale(stage="scale")):
            return _scaled_activation(node, a, b, divides=divides)
        case (TokenScale(), Vector()) if divides:
            raise Refusal("a token's scale is divided by an activation", _HINT)
        case (TokenScale(stage="scale") | Levels() | Product(), TokenScale(stage="scale")):
            if a.input.ssa is not b.input.ssa:
                raise Refusal("scales of different activations meet", _DYNAMIC_HINT)
            factor, power, names = b.factor, b.power, b.names
        case (TokenScale(stage="scale") | Levels() | Product(), _):
            factor, power, names = _constant_factor(b), 0, ()
        case (_, TokenScale(stage="scale")):
            # A number divided by, or times, a scale.
            factor = _constant_factor(a)
            own = (1.0 / b.factor, -b.power) if divides else (b.factor, b.power)
            return TokenScale("scale", b.input, factor * own[0], own[1], (*b.names, node.name))
        case _:
            raise Refusal(f"{node.op_type} joins rounded activations with something else", _HINT)
    if divides:
        with np.errstate(divide="ignore"):
            factor = 1.0 / factor
        power = -power
        if not np.isfinite(factor).all():
            raise Refusal("a division by zero")
    match a:
        case TokenScale():
            all_names = (*a.names, *names, node.name)
            return TokenScale("scale", a.input, a.factor * factor, a.power + power, all_names)
        case Levels():
            if factor.size != 1:
                raise Refusal("rounded activations are scaled by more than one number")
            if a.stage == "scaled":
                raise Refusal("scaled activations are scaled back without being rounded", _HINT)
            total = a.factor * float(factor.reshape(()))
            named = (*a.names, node.name)
            return Levels(a.stage, a.input, total, a.power + power, named, a.own)
        case Product():
            return _applied(step, node, a, a.factor * factor, a.power + power)


def _constant_factor(value: Value | None) -> npt.NDArray[np.float64]:
    array = None if value is None else numbers(value)
    if array is None or array.dtype.kind not in "fiu":
        kind = kind_of(value)
        raise Refusal(f"rounded activations are scaled by {kind}", _HINT)
    found = array.astype(np.float64)
    return found.reshape(()) if found.size == 1 else found.reshape(-1)


def _scaled_activation(node: Node, x: Vector, scale: TokenScale, *, divides: bool) -> Value:
    """x * 127 / m, not rounded yet."""
    if x.ssa is not scale.input.ssa:
        raise Refusal("an activation is scaled by the largest magnitude of another one", _HINT)
    factor, power = scale.factor, scale.power
    if divides:
        factor, power = 1.0 / factor, -power
    if power != -1 or factor.size != 1:
        raise Refusal("an activation is multiplied by its own largest magnitude", _HINT)
    levels = float(factor.reshape(()))
    if not math.isclose(levels, LEVELS, rel_tol=1e-6):
        raise Refusal(f"activations are rounded to {levels:g} levels on either side", _HINT)
    return Levels("scaled", x, LEVELS, -1, (*scale.names, node.name))


# --- products ------------------------------------------------------------------------------------


def product(
    step: Step, node: Node, x: Levels, parameter: weights.Parameter, factor: float = 1.0
) -> Value:
    """W times levels: a linear operator that rounds its input, and what is left to multiply.

    Args:
        factor: a number that the node itself multiplies with.

    Raises:
        Refusal: not rounded, or sizes that do not agree.
    """
    if x.stage == "scaled":
        raise Refusal("scaled activations are multiplied without being rounded", _HINT)
    k = parameter.source.dims[1]
    step.whole_row(x.input)
    if x.input.size != k:
        raise Refusal(f"input 0 has {x.input.size} elements a token, the matrix needs {k}")
    activation = None if x.own else "int8"
    y = step.linear(node, x.input, parameter, activation=activation, before=x.names)
    total = np.asarray(x.factor * factor, np.float64)
    return _applied(step, node, Product(y, x.input, total, x.power), total, x.power)


def _parts(step: Step, node: Node, inputs: list[Value | None], value: Product) -> None:
    """Split: sums of packed modules, each with a scale of its own later."""
    y = value.output
    axis = axis_of(node, len(y.dims))
    sizes = split_sizes(node, inputs, y.dims, axis)
    parts = split(step, node, y, sizes) if axis == len(y.dims) - 1 else None
    if parts is None or value.factor.size != 1:
        raise Refusal("the sums of a product with 8-bit activations are cut into parts")
    for i, part in enumerate(parts[: len(node.outputs)]):
        step.bind(node, Product(part, value.input, value.factor, value.power), i)


def _applied(
    step: Step, node: Node, value: Product, factor: npt.NDArray[np.float64], power: int
) -> Value:
    """The finished product once no power of the token's magnitude is left."""
    if power:
        return Product(value.output, value.input, factor, power)
    close = np.isclose(factor, 1.0, rtol=1e-7, atol=0.0)
    if close.all():
        return value.output
    result = scaled(step, node, value.output, factor)
    if result is None:
        raise Refusal("the sums of a product with 8-bit activations are used in several ways")
    return result


# --- onnxruntime's dynamic quantisation ----------------------------------------------------------


def dynamic(step: Step, node: Node) -> None:
    """DynamicQuantizeLinear: levels, their scale and their zero point."""
    levels, scale = _dynamic(step, node)
    step.bind(node, levels, 0)
    step.bind(node, scale, 1)
    step.bind(node, ZeroPoint(levels.input), 2)


def _dynamic(step: Step, node: Node) -> tuple[Levels, TokenScale]:
    """Input 0 as levels of the chip's own, and their scale."""
    value = step.inputs(node)[0]
    if isinstance(value, Unknown):
        raise Blocked
    if not isinstance(value, Vector):
        kind = kind_of(value)
        raise Refusal(
            f"it rounds {kind} with one scale for all tokens; only activations that matrices are "
            "multiplied with are rounded by a chip",
            _DYNAMIC_HINT,
        )
    warning = (
        f"{node.op_type} takes one asymmetric uint8 scale for all tokens of a call; the chip "
        "takes tokens one by one and rounds each in its own format, symmetric and with its own "
        f"scale (node '{node.name}' and those like it); `intaglio check` reports the difference"
    )
    if not any(w.startswith(f"{node.op_type} takes") for w in step.warnings):
        step.warnings.append(warning)
    names = (node.name,)
    factor = np.asarray(1 / LEVELS, np.float64)
    return (
        Levels("levels", value, LEVELS, -1, names, own=True),
        TokenScale("scale", value, factor, 1, names),
    )


def integer_product(step: Step, node: Node) -> None:
    """MatMulInteger of levels and constant weights."""
    x, w, zero, points = _operands(step, node)[:4]
    step.bind(node, _integer_product(step, node, x, zero, w, points))


def scaled_integer_product(step: Step, node: Node) -> Vector:
    """com.microsoft.MatMulIntegerToFloat without its bias: A, B, their scales, their zero points.

    Raises:
        Refusal: the scale is not that of the rounded activations.
    """
    x, w, scale, weight_scale, zero, points = _operands(step, node)[:6]
    if not isinstance(scale, TokenScale) or scale.stage != "scale":
        raise Refusal(f"the scale of its activations is {kind_of(scale)}, not that of levels")
    found = _integer_product(step, node, x, zero, w, points)
    return _finished(step, node, found, scale, weight_scale)


def dynamic_product(step: Step, node: Node) -> Vector:
    """com.microsoft.DynamicQuantizeMatMul without its bias: A, B, B's scale, B's zero point."""
    _, w, weight_scale, points = _operands(step, node)[:4]
    x, scale = _dynamic(step, node)
    found = _integer_product(step, node, x, ZeroPoint(x.input), w, points)
    return _finished(step, node, found, scale, weight_scale)


def _operands(step: Step, node: Node) -> list[Value | None]:
    inputs = step.inputs(node)
    if any(isinstance(value, Unknown) for value in inputs):
        raise Blocked
    return inputs


def _finished(
    step: Step, node: Node, found: Value, scale: TokenScale, weight_scale: Value | None
) -> Vector:
    """Sums of levels times the scales of both factors."""
    if not isinstance(found, Product) or found.input.ssa is not scale.input.ssa:
        raise Refusal("scales of different activations meet", _DYNAMIC_HINT)
    factor = found.factor * scale.factor * _constant_factor(weight_scale)
    result = _applied(step, node, found, factor, found.power + scale.power)
    if not isinstance(result, Vector):
        raise Refusal("the scale of its activations is not that of their rounding")
    return result


def _integer_product(
    step: Step,
    node: Node,
    x: Value | None,
    zero: Value | None,
    w: Value | None,
    points: Value | None,
) -> Value:
    """Levels with a zero point times integer weights with theirs."""
    if not isinstance(x, Levels) or x.stage == "scaled":
        kind = kind_of(x)
        raise Refusal(
            f"its first factor is {kind}; it must be an activation that the graph rounds to 8 bits"
        )
    if isinstance(w, Levels):
        raise Refusal(
            "both factors are activations, rounded with one scale for all tokens", _DYNAMIC_HINT
        )
    if x.own:
        if not isinstance(zero, ZeroPoint) or zero.input.ssa is not x.input.ssa:
            raise Refusal("the zero point of its activations is not that of their rounding")
    elif zero is not None and np.any(numbers(zero)):
        raise Refusal("the zero point of its activations is not 0")
    parameter = weights.integers(w, points, row_axis=1)
    step.has_integers = True
    return product(step, node, x, parameter)
