"""Activation functions written out: GELU by Erf or Tanh, SiLU by Exp, in any order of the nodes.

Nodes that have no meaning for a chip on their own are followed as the function that they compute of
each element. Where it is one of the chip's activation functions on the whole line, as far as
float32 can tell, the value is that `rom.activate`; where it is an xIELU, whatever its learned
numbers, it is a sum of three.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from xdsl.dialects.builtin import FloatAttr
from xdsl.ir import SSAValue

from intaglio.dialects import rom
from intaglio.dialects.formulas.elementwise import ACTIVATIONS, Samples
from intaglio.lowering.onnx.graph.model import FLOATS, Node, cast_type
from intaglio.lowering.onnx.known.functions import ARITHMETIC, FUNCTIONS, Elementwise
from intaglio.lowering.onnx.step import Step, names_of, real
from intaglio.lowering.onnx.values import Curve, Refusal, Turned, Value, Vector, number

Function = Callable[[Samples], Samples]

KINDS = {kind: one.real for kind, one in ACTIVATIONS.items() if one.real is not None}
"""What the kinds of `rom.activate` compute."""

_UNARY = frozenset(
    {
        "Abs",
        "Erf",
        "Exp",
        "Log",
        "Neg",
        "Reciprocal",
        "Relu",
        "Sigmoid",
        "Softplus",
        "Sqrt",
        "Tanh",
    }
)
_BINARY = frozenset({"Add", "Div", "Mul", "Pow", "Sub"})
_COMPARISONS = frozenset({"Greater", "GreaterOrEqual", "Less", "LessOrEqual"})
"""Of an activation with a number: they choose between two functions of it."""
_BOUNDS = frozenset({"Max", "Min"})

_BEGIN = frozenset({"Erf", "Exp", "Log"})
"""Operators that have no meaning of their own for a chip."""

_POINTS: Samples = np.linspace(-12.0, 12.0, 2402)
"""No point is 0, where a quotient may not be defined."""

_TOLERANCE = 2e-5

_DEPTH = 12


Chain = tuple[Function, tuple[str, ...]]


def _chains(ssa: SSAValue, depth: int = _DEPTH) -> dict[SSAValue, Chain]:
    """The activations that a value is an elementwise function of alone, and how."""
    found: dict[SSAValue, Chain] = {ssa: (lambda x: x, ())}
    owner = ssa.owner
    if depth == 0:
        return found
    match owner:
        case rom.ScaleOp() if isinstance(owner.factor, FloatAttr):
            factor = owner.factor.value.data
            _extend(found, owner, lambda x: factor * x, depth)
        case rom.ActivateOp():
            _extend(found, owner, KINDS[owner.kind.data], depth)
        case rom.MulOp() | rom.AddOp():
            join = np.multiply if isinstance(owner, rom.MulOp) else np.add
            left, right = (_chains(o, depth - 1) for o in (owner.lhs, owner.rhs))
            for root in left.keys() & right.keys():
                (f, before), (g, more) = left[root], right[root]
                names = tuple(dict.fromkeys((*before, *more, *names_of(owner))))
                found.setdefault(root, (_of_both(join, f, g), names))
        case _:
            pass
    return found


def _after(outer: Function, inner: Function) -> Function:
    """`outer` of `inner`."""
    return lambda x: outer(inner(x))


def _of_both(op: Elementwise, f: Function, g: Function) -> Function:
    """An operator of the results of two functions."""
    return lambda x: op(f(x), g(x))


def _extend(
    found: dict[SSAValue, Chain],
    owner: rom.ScaleOp | rom.ActivateOp,
    function: Function,
    depth: int,
) -> None:
    for root, (before, names) in _chains(owner.input, depth - 1).items():
        found.setdefault(root, (_after(function, before), (*names, *names_of(owner))))


def _curve(value: Value, node: Node) -> Curve | None:
    """A value as a function of an activation."""
    match value:
        case Curve():
            return value
        case Vector():
            return Curve(value.ssa, lambda x: x, value.dims, (), node, _reason(node))
        case _:
            return None


def _reason(node: Node) -> str:
    match node.op_type:
        case "Add":
            return "adding a constant is supported for a vector of biases after a linear operator"
        case "Sub":
            return "subtracting a constant is not supported"
        case "Pow":
            return "only the square (exponent 2) is supported"
        case _:
            return f"{node.op_type} is supported in an activation function that is written out only"


def _begins(node: Node, given: list[Value]) -> bool:
    """Whether a node on an activation has no meaning of its own, but may be part of a function."""
    if not any(isinstance(v, Vector) for v in given):
        return False
    match node.op_type:
        case op if op in _BEGIN:
            return True
        case op if op in _COMPARISONS or op in _BOUNDS:
            return len(given) == 2 and any(number(v) is not None for v in given)
        case "Pow":
            return number(given[1]) not in (None, 2.0)
        case "Add" | "Sub":
            return any(number(v) not in (None, 0.0) for v in given)
        case _:
            return False


def convert(step: Step, node: Node, inputs: list[Value | None]) -> bool:
    """Converts a node of an activation function that is written out; says whether it is one.

    Raises:
        Refusal: it reads a part of one and is no node of one.
    """
    given = [v for v in inputs if v is not None]
    if node.op_type in _BEGIN or any(isinstance(v, Curve) for v in given):
        # The negative of an activation may also have been the beginning of a rotation.
        given = [(step.part(v) or v) if isinstance(v, Turned) else v for v in given]
    if not any(isinstance(v, Curve) for v in given) and not _begins(node, given):
        return False
    op = node.op_type
    if op == "Identity" or (op == "Cast" and cast_type(node) in FLOATS):
        step.bind(node, given[0])
        return True
    if op in _UNARY and len(given) == 1:
        inner = _curve(given[0], node)
        assert inner is not None
        _bind(step, node, replace(inner, function=_after(ARITHMETIC[op], inner.function)))
        return True
    binary = op in _BINARY or op in _COMPARISONS or op in _BOUNDS
    found = _joined(node, given) if binary and len(given) == 2 else None
    if op == "Where" and len(given) == 3:
        found = _chosen(node, given)
    if found is not None:
        _bind(step, node, found)
        return True
    part = next((v for v in given if isinstance(v, Curve)), None)
    if part is not None:
        raise Refusal(part.reason, node=part.begun)
    return False


def _joined(node: Node, given: list[Value]) -> Curve | None:
    """A function of two values, where both follow from one activation, or one is a number."""
    op = FUNCTIONS[node.op_type]
    values = [number(v) for v in given]
    place = next((i for i, v in enumerate(values) if v is not None), None)
    if place is not None:
        inner, constant = _curve(given[1 - place], node), np.asarray(values[place])
        if inner is None:
            return None

        def same(x: Samples) -> Samples:
            return constant

        operands = (inner.function, same) if place == 1 else (same, inner.function)
        return replace(inner, function=_of_both(op, *operands))
    left, right = (_curve(v, node) for v in given)
    return _of_two(op, left, right)


def _chosen(node: Node, given: list[Value]) -> Curve | None:
    """Where on three functions of one activation."""
    condition, yes, no = (_curve(v, node) for v in given)
    return _of_two(_where, condition, _of_two(_both, yes, no))


def _both(yes: Samples, no: Samples) -> Samples:
    return np.stack([yes, no])


def _where(condition: Samples, either: Samples) -> Samples:
    yes: Samples = either[0]
    no: Samples = either[1]
    return np.where(condition, yes, no)


def _of_two(op: Elementwise, left: Curve | None, right: Curve | None) -> Curve | None:
    """A function of two values that both follow from one activation."""
    if left is None or right is None or left.dims != right.dims:
        return None
    chains = [_chains(part.input) for part in (left, right)]
    root = next((root for root in chains[0] if root in chains[1]), None)
    if root is None:
        return None
    g, h = (
        _after(part.function, chain[root][0])
        for part, chain in zip((left, right), chains, strict=True)
    )
    inner = (*chains[0][root][1], *chains[1][root][1])
    names = tuple(dict.fromkeys((*inner, *left.names, *right.names)))
    first = left if left.names else right
    return replace(first, input=root, function=_of_both(op, g, h), names=names)


def _bind(step: Step, node: Node, value: Curve) -> None:
    """Binds the activation function that a value is, or the value itself while it is none."""
    names = (*value.names, node.name)
    for root, (inner, before) in _chains(value.input).items():
        with np.errstate(all="ignore"):
            found = value.function(inner(_POINTS))
        if found.dtype == np.bool_:
            break
        onnx = rom.nodes(*dict.fromkeys((*before, *names)))
        result = _activated(step, root, found, onnx)
        if result is not None:
            step.result(node, result, value.dims)
            step.settled.update(names)
            return
    step.bind(node, replace(value, names=names))


def _activated(step: Step, root: SSAValue, found: Samples, onnx: rom.Nodes) -> SSAValue | None:
    """Emits the activation function that has these values at `_POINTS`; None where none has."""
    for kind, function in KINDS.items():
        if np.allclose(found, function(_POINTS), rtol=_TOLERANCE, atol=_TOLERANCE):
            return step.emit(rom.ActivateOp(root, kind, onnx)).output
    # xIELU: p * x**2 + b * x where x is positive, else n * (exp(x) - 1 - x) + b * x.
    base = np.stack([KINDS["relu2"](_POINTS), KINDS["elu"](_POINTS), _POINTS], axis=1)
    if not np.isfinite(found).all():
        return None
    factors = np.linalg.lstsq(base, found, rcond=None)[0]
    if not np.allclose(base @ factors, found, rtol=_TOLERANCE, atol=_TOLERANCE):
        return None
    if (np.abs(factors[:2]) < _TOLERANCE).any():
        return None
    squares, below, line = (float(one) for one in factors)
    parts: list[SSAValue] = []
    for kind, factor in (("relu2", squares), ("elu", below), ("", line)):
        part = step.emit(rom.ActivateOp(root, kind, onnx)).output if kind else root
        parts.append(step.emit(rom.ScaleOp(part, real(factor), onnx)).output)
    both = step.emit(rom.AddOp(parts[0], parts[1], onnx)).output
    return step.emit(rom.AddOp(both, parts[2], onnx)).output
