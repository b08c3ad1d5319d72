"""Mixtures of experts written out: every expert is computed for each token, and masked.

Softmax, TopK, and for each expert its products times the share that it has, which is 0 where it is
not chosen; their sum. What is recognised becomes the chosen experts alone, one after the other; the
matrices of all experts become families. That holds whatever experts compute, as long as all of them
do the same with matrices and biases of their own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from xdsl.dialects.builtin import SymbolRefAttr
from xdsl.ir import Operation, SSAValue

from intaglio.dialects import rom
from intaglio.dialects.isa.matrix import CHOSEN_BITS
from intaglio.lowering.onnx.graph.model import FLOATS, Node, cast_type
from intaglio.lowering.onnx.known.constants import joined, reshaped
from intaglio.lowering.onnx.known.shapes import axis_of, reduced_axes
from intaglio.lowering.onnx.step import BIAS, Step, merged
from intaglio.lowering.onnx.values import (
    Computed,
    Mixed,
    Refusal,
    Routed,
    Value,
    Vector,
    integers,
    number,
)
from intaglio.lowering.onnx.weights import families, narrow
from intaglio.lowering.onnx.weights.sources import DenseSource
from intaglio.lowering.onnx.weights.weights import Parameter

_SAME = (rom.ActivateOp, rom.ScaleOp, rom.ClipOp, rom.SliceOp, rom.MulOp, rom.AddOp)
"""What experts may compute beside products."""


def convert(step: Step, node: Node, inputs: list[Value | None]) -> bool:
    """Converts a node of a mixture written out; says whether it is one.

    Raises:
        Refusal: it reads a part of one and is no node of it.
    """
    given = [value for value in inputs if value is not None]
    if any(isinstance(value, Mixed) for value in given):
        _convert_mixed(step, node, given)
        return True
    part = next((value for value in given if isinstance(value, Routed)), None)
    if part is not None:
        _convert_routed(step, node, part, inputs)
        return True
    if node.op_type in ("Softmax", "TopK") and isinstance(inputs[0], Vector):
        x = inputs[0]
        step.whole_row(x)
        if axis_of(node, len(x.dims)) != len(x.dims) - 1:
            raise Refusal("it is supported over the last axis of a router's logits")
        start = Routed("logits", x, 0, every=False, names=())
        if node.op_type == "TopK":
            _top(step, node, start, inputs[1])
        else:
            step.bind(node, start.to("probabilities", node, every=True))
        return True
    return False


def _top(step: Step, node: Node, part: Routed, count: Value | None) -> None:
    chosen = None if count is None else integers(count)
    experts = part.logits.size
    most = min(experts, (1 << CHOSEN_BITS) - 1)
    if chosen is None or len(chosen) != 1 or not 1 <= chosen[0] <= most:
        raise Refusal(f"how many of {experts} experts are chosen is not known, or too many")
    if not node.integer("largest", 1):
        raise Refusal("it takes the smallest")
    if part.stage not in ("logits", "probabilities"):
        raise Refusal(_unclear(part))
    step.bind(node, part.to("chosen " + part.stage, node, chosen=chosen[0]))
    step.bind(node, part.to("indices", node, chosen=chosen[0]), 1)


def _convert_routed(step: Step, node: Node, part: Routed, inputs: list[Value | None]) -> None:
    places = [i for i, value in enumerate(inputs) if isinstance(value, Routed)]
    other = inputs[1 - places[0]] if places in ([0], [1]) else None
    match node.op_type, part.stage:
        case ("Cast", _) if part.stage == "hit" or cast_type(node) in FLOATS:
            step.bind(node, part.to(part.stage, node))
        case (("Identity" | "Reshape" | "Unsqueeze" | "Squeeze"), _) if node.op_type == "Identity":
            step.bind(node, part.to(part.stage, node))
        case ("TopK", "probabilities"):
            _top(step, node, part, inputs[1])
        case ("Softmax", "chosen logits"):
            step.bind(node, part.to("shares", node, every=False))
        case ("ReduceSum", "chosen probabilities" | "shares") if _over_last(node, inputs):
            step.bind(node, part.to("sum", node))
        case ("Div", _) if places == [0, 1] and _is_sum(inputs):
            step.bind(node, part.to("shares", node, every=False))
        case ("Equal", "indices") if other is not None:
            expert = number(other)
            if expert is None or expert != int(expert) or not 0 <= expert < part.logits.size:
                raise Refusal("an expert's number is not known")
            step.bind(node, part.to("hit", node, expert=int(expert)))
        case ("Mul", _) if places == [0, 1]:
            _convert_share(step, node, inputs[0], inputs[1])
        case ("ReduceSum", "masked") if _over_last(node, inputs):
            step.bind(node, part.to("share", node))
        case ("Mul", "share") if isinstance(other, Vector):
            mixed = Mixed(part, {part.expert: other}, (*part.names, node.name))
            step.bind(node, _finished(step, node, mixed))
        case _:
            raise Refusal(_unclear(part))


def _unclear(part: Routed) -> str:
    return f"a mixture of experts is written out in a way that is not understood ({part.stage})"


def _over_last(node: Node, inputs: list[Value | None]) -> bool:
    """Whether a sum is over the chosen experts, the last axis, and keeps it."""
    part = inputs[0]
    assert isinstance(part, Routed)
    rank = len(part.logits.dims)
    return reduced_axes(node, inputs, rank) == {rank - 1} and bool(node.integer("keepdims", 1))


def _is_sum(inputs: Sequence[Value | None]) -> bool:
    """Whether shares are divided by their own sum."""
    a, b = inputs[:2]
    return (
        isinstance(a, Routed)
        and isinstance(b, Routed)
        and a.is_of(b)
        and a.stage in ("chosen probabilities", "shares")
        and b.stage == "sum"
    )


def _convert_share(step: Step, node: Node, a: Value | None, b: Value | None) -> None:
    """Shares where an expert is chosen, 0 elsewhere."""
    assert isinstance(a, Routed) and isinstance(b, Routed)
    if a.stage == "hit":
        a, b = b, a
    if a.stage not in ("chosen probabilities", "shares") or b.stage != "hit" or not a.chose(b):
        raise Refusal(_unclear(a))
    names = tuple(dict.fromkeys((*a.names, *b.names, node.name)))
    step.bind(node, replace(a, stage="masked", expert=b.expert, names=names))


def _convert_mixed(step: Step, node: Node, given: Sequence[Value]) -> None:
    """Adds what experts give; where all have, that is the mixture."""
    parts = [value for value in given if isinstance(value, Mixed)]
    if node.op_type == "Identity" and len(given) == 1:
        step.bind(node, parts[0])
        return
    if node.op_type != "Add" or len(parts) != 2:
        raise Refusal(
            f"of {parts[0].router.logits.size} experts {len(parts[0].terms)} are summed before "
            "something else is done"
        )
    a, b = parts
    if not a.router.is_of(b.router) or a.terms.keys() & b.terms.keys():
        raise Refusal("experts of different routers, or one of them twice, are summed")
    names = tuple(dict.fromkeys((*a.names, *b.names, node.name)))
    step.bind(node, _finished(step, node, Mixed(a.router, {**a.terms, **b.terms}, names)))


def _finished(step: Step, node: Node, mixed: Mixed) -> Value:
    """The mixture, where all experts are there."""
    router = mixed.router
    experts = router.logits.size
    if len(mixed.terms) != experts:
        return mixed
    values = [mixed.terms[expert].ssa for expert in range(experts)]
    dims = mixed.terms[0].dims
    own = rom.nodes(*router.routing_names, node.name)
    type_ = rom.RoutingType(router.chosen, experts)
    route = rom.RouteOp(router.logits.ssa, type_, own, lowest=True, every=router.every)
    alike = _Alike(step, node, step.emit(route).output)
    total: SSAValue | None = None
    for place in range(router.chosen):
        y = alike.of(tuple(values), place)
        # What is left of the nodes is told once.
        left = rom.nodes(*(mixed.names if place == 0 else ()), node.name)
        weigh = rom.WeighOp(y, alike.routing, place, left, residual=total)
        total = step.emit(weigh).output
    assert total is not None
    return Vector(total, dims)


@dataclass
class _Alike:
    """Emits what all experts compute alike, for one that is chosen."""

    step: Step
    node: Node
    routing: SSAValue

    def __post_init__(self) -> None:
        self.families: dict[tuple[str, ...], str] = {}
        self.done: dict[tuple[int, tuple[SSAValue, ...]], SSAValue] = {}

    def of(self, values: tuple[SSAValue, ...], place: int) -> SSAValue:
        """The value of the chosen expert at a place, of those of all experts.

        Raises:
            Refusal: they do not compute the same.
        """
        if all(one is values[0] for one in values):
            return values[0]
        if (place, values) not in self.done:
            self.done[place, values] = self._emitted(values, place)
        return self.done[place, values]

    def _emitted(self, values: tuple[SSAValue, ...], place: int) -> SSAValue:
        owners = [one.owner for one in values]
        first = owners[0]
        ops = [one for one in owners if isinstance(one, Operation)]
        if len(ops) < len(owners) or not isinstance(first, Operation):
            raise Refusal("experts differ in what they read")
        names = self._names(ops, place)
        if isinstance(first, rom.LinearOp):
            linear = [one for one in ops if isinstance(one, rom.LinearOp)]
            if len(linear) == len(ops):
                return self._linear(linear, names, place)
        forms = {(type(one), *_properties(one)) for one in ops}
        if len(forms) != 1 or not isinstance(first, _SAME):
            raise Refusal(f"experts do not all compute the same: {first.name} is one's alone")
        operands = [
            self.of(tuple(one.operands[i] for one in ops), place)
            for i in range(len(first.operands))
        ]
        copy = first.clone()
        copy.properties["onnx"] = names
        for i, operand in enumerate(operands):
            copy.operands[i] = operand
        return self.step.emit(copy).results[0]

    def _names(self, ops: Sequence[Operation], place: int) -> rom.Nodes:
        """All nodes that an operation stands for, once; then those of the first expert."""
        return merged(*(ops if place == 0 else ops[:1]), self.node.name)

    def _linear(self, ops: Sequence[rom.LinearOp], names: rom.Nodes, place: int) -> SSAValue:
        if any(one.activation is not None for one in ops):
            raise Refusal("experts round their activations themselves")
        x = self.of(tuple(one.input for one in ops), place)
        weights = self._family([one.weights for one in ops])
        biases = [one.bias for one in ops if one.bias is not None]
        if biases and len(biases) < len(ops):
            raise Refusal("some experts have a bias, others not")
        bias = self._biases(biases) if biases else None
        op = rom.ExpertLinearOp(x, self.routing, place, weights, names, ops[0].output.type, bias)
        return self.step.emit(op).output

    def _family(self, symbols: Sequence[SymbolRefAttr]) -> str:
        names = tuple(one.root_reference.data for one in symbols)
        if names not in self.families:
            parameters = [*self._parameters(names)]
            if len({one.source.code for one in parameters}) > 1:
                parameters = [narrow.widened(one) for one in parameters]
            self.families[names] = self.step.declare(self.node, families.stacked(parameters))
        return self.families[names]

    def _biases(self, symbols: Sequence[SymbolRefAttr]) -> str:
        names = tuple(one.root_reference.data for one in symbols)
        if names not in self.families:
            parameters = [*self._parameters(names)]
            sources = [one.source for one in parameters]
            rows = [
                reshaped(one.constant, (1, *one.dims))
                for one in sources
                if isinstance(one, DenseSource)
            ]
            whole = Computed(joined(rows, 0), parameters[0].names[0])
            self.families[names] = self.step.dense_value(self.node, whole, whole.dims, BIAS)
        return self.families[names]

    def _parameters(self, names: Sequence[str]) -> Iterator[Parameter]:
        """The experts' own parameters, which the family takes the place of."""
        by_symbol = {one.symbol: key for key, one in self.step.declared.items()}
        if len(set(names)) < len(names):
            raise Refusal("experts share a matrix")
        for name in names:
            yield self.step.declared.pop(by_symbol[name]).parameter


def _properties(op: Operation) -> tuple[object, ...]:
    """What an operation says, but for the nodes that it stands for."""
    found = [(name, value) for name, value in op.properties.items() if name != "onnx"]
    return (tuple(sorted(found, key=lambda one: one[0])), tuple(r.type for r in op.results))
