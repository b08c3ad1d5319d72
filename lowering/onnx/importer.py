"""ONNX to rom: a decoder graph over [batch, sequence, ...] becomes a step for one token.

Every node is converted, folded (constants, shapes, counts of the attention mask) or reported; all
unsupported nodes are reported together, before any weight is read.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from xdsl.dialects.builtin import IndexType, ModuleOp, i32
from xdsl.ir import Block

from intaglio.dialects.errors import UserError, UserErrors
from intaglio.lowering.onnx.assembly import DEFAULT_CONTEXT, assemble, finish
from intaglio.lowering.onnx.graph import adapters, analysis
from intaglio.lowering.onnx.graph.model import Graph, Node, Subgraph
from intaglio.lowering.onnx.graph.model_file import load
from intaglio.lowering.onnx.graph.node_check import NodeCheck
from intaglio.lowering.onnx.graph.pairs import is_mask, is_position
from intaglio.lowering.onnx.inputs import bind_inputs
from intaglio.lowering.onnx.known import conditions, field_folding, lazy
from intaglio.lowering.onnx.known.branches import ancestors, outer_names, subgraphs, taken
from intaglio.lowering.onnx.known.expressions import PAST, SEQUENCE, expression
from intaglio.lowering.onnx.known.fields import field, same_for_all_tokens
from intaglio.lowering.onnx.operators.embedding import placed
from intaglio.lowering.onnx.operators.table import HINTS, OperatorSupport, table
from intaglio.lowering.onnx.outputs import check_pasts, find_logits
from intaglio.lowering.onnx.report import Report
from intaglio.lowering.onnx.step import Step
from intaglio.lowering.onnx.values import (
    PARTS,
    Blocked,
    Computed,
    Curve,
    Field,
    Known,
    Past,
    Present,
    Refusal,
    Scores,
    Stored,
    Unknown,
    Value,
    Vector,
    numbers,
)
from intaglio.lowering.onnx.weights.rounding import HEAD_ROUNDING, parse_request, parse_rounding
from intaglio.lowering.onnx.weights.weights import FloatWeightsHint, Parameter, no_target_hint
from intaglio.lowering.onnx.written import curves, experts, levels, rotary, scores
from intaglio.lowering.onnx.written import norms as written_norms
from intaglio.lowering.parameters import ParameterSource

_INCOMPLETE = "the exporter wrote an incomplete model; export it with another version of the tool"
_WEIGHTS_MISSING = (
    "the exporter wrote an incomplete model; with the model builder, tied and asymmetric weights "
    "need shared_embeddings=false"
)

_ELEMENTWISE = frozenset({"Add", "Div", "Max", "Min", "Mul", "Pow", "Sub"})
_ADDS = frozenset({"Add", "Sub", "SkipLayerNormalization", "SkipSimplifiedLayerNormalization"})
"""Operators that add their first two inputs, activations or rows of tables."""

WRITTEN_OUT = (levels, scores, experts, rotary, curves, written_norms)
"""What exporters write out in small operators; each follows its parts as values of its own."""


@dataclass(frozen=True, eq=False)
class ImportedModel:
    """A model in the float stage of rom.

    Attributes:
        module: `rom.parameter`s, `rom.cache`s and one `rom.step @decode`.
        parameters: who reads each parameter, by its key.
        model_path: the file.
        external_files: files with weights beside it.
        positions: positions the model allows (rows of its tables by position); 0 is unlimited.
        vocabulary: number of logits.
        warnings: what was noticed but is no error.
        rounded: parameters quantised on request, by the first output of their ONNX node.
    """

    module: ModuleOp
    parameters: dict[str, ParameterSource]
    model_path: Path
    external_files: tuple[Path, ...]
    positions: int
    vocabulary: int
    warnings: tuple[str, ...]
    rounded: dict[str, Parameter]


def import_model(
    path: str | os.PathLike[str],
    *,
    allow_links: bool = False,
    weights: str | None = None,
    context: int | None = None,
    embedding: str | None = None,
    codes: Iterable[str] = (),
    head: str = HEAD_ROUNDING,
    float_weights_hint: FloatWeightsHint = no_target_hint,
) -> ImportedModel:
    """Imports a model.

    Args:
        path: the `.onnx` file.
        allow_links: follow links inside a model hub's cache.
        weights: how floating-point weights are quantised (`int4:32`, `int2:128`, `ternary`, or
            with names `int3:32,down_proj=int6:32`); without it they are refused.
        context: capacity of the caches; the model's number of positions when absent.
        embedding: how a floating-point embedding is quantised (`int8:64`); kept as it is when
            absent.
        codes: what the chip has cells for, such as `int3`; integer weights that all fit a narrower
            one of them than the file stores are taken as that.
        head: how a floating-point head is quantised in a graph whose other matrices are.
        float_weights_hint: what would help where floating-point weights are refused, by the
            columns of the matrices that are.

    Raises:
        UserError: the file is unusable.
        UserErrors: nodes, inputs or outputs are not supported; all are listed.
    """
    graph, lifted = adapters.without_lifted(load(path, allow_links=allow_links))

    def step(graph: Graph, bound: int | None) -> Step:
        return Step(
            graph=graph,
            block=Block(arg_types=[i32, IndexType()]),
            adapters=adapters.find(graph),
            rounding=None if weights is None else parse_request(weights),
            head_rounding=parse_rounding(head),
            float_weights_hint=float_weights_hint,
            heads=analysis.float_heads(graph),
            rounded_tables=analysis.tied_tables(graph),
            embedding_rounding=None if embedding is None else parse_rounding(embedding),
            batch=expression(1),
            sequence=SEQUENCE,
            total=PAST + SEQUENCE,
            codes=tuple(codes),
            whole=rotary.whole,
            bound=bound,
        )

    def attempt(bound: int | None) -> tuple[ImportedModel | UserErrors, list[tuple[int, Node]]]:
        found, switches, decided = _with_branches(graph, bound, step)
        importer = _Import(found, step(found, bound), decided)
        importer.step.switches += switches
        if lifted:
            importer.report.warnings.append(
                f"{len(lifted)} inputs are matrices of adapters to be given at run time "
                f"('{lifted[0]}' and others): the base is compiled without their branches; "
                "--adapter-slots reserves places for adapters, and `intaglio adapter add` fills "
                "them"
            )
        try:
            return importer.run(bound), importer.step.switches
        except UserErrors as errors:
            return errors, importer.step.switches

    return _within(str(path), context, attempt)


Attempt = Callable[[int | None], tuple["ImportedModel | UserErrors", list[tuple[int, Node]]]]


def _within(file: str, context: int | None, attempt: Attempt) -> ImportedModel:
    """Imports for the context, or for fewer tokens where the graph computes otherwise beyond them.

    Without a context, the number up to which the graph does the same becomes the context.

    Raises:
        UserErrors: what is not supported, or a context beyond that number.
    """
    found, switches = attempt(context)
    bound, switch = context, None
    while isinstance(found, UserErrors):
        open_ = [one for one in switches if bound is None or one[0] < bound]
        if not open_:
            break
        switch = min(open_, key=lambda one: one[0])
        bound = switch[0]
        found, switches = attempt(bound)
    if switch is None:
        if isinstance(found, UserErrors):
            raise found
        return found
    tokens, node = switch
    error = UserError(
        f"the graph computes otherwise beyond {tokens} tokens (as models with LongRoPE switch "
        "their rotary tables), and a chip holds one of the two",
        file=file,
        node=node.name,
        op_type=node.op_type,
        hint=f"compile with --context {tokens} or less",
    )
    if isinstance(found, UserErrors):
        raise found if context is None else UserErrors([*found.errors, error])
    if context is not None:
        raise UserErrors([error])
    warning = (
        f"node '{node.name}' ({node.op_type}): the graph computes otherwise beyond {tokens} "
        "tokens, which becomes the context"
    )
    return replace(found, warnings=(*found.warnings, warning))


def _with_branches(
    graph: Graph, bound: int | None, step: Callable[[Graph, int | None], Step]
) -> tuple[Graph, list[tuple[int, Node]], set[str]]:
    """The graph with the branch in the place of each If whose condition is known.

    Returns:
        The graph, the switches met in the conditions, and the values that the conditions or the
        branches depended on, so that they had their effect although nothing may read them now.
    """
    switches: list[tuple[int, Node]] = []
    decided: set[str] = set()
    open_: set[str] = set()
    while True:
        node = next(
            (n for n in graph.nodes if n.op_type == "If" and n.outputs[0] not in open_), None
        )
        if node is None:
            return graph, switches, decided
        condition = _Import(graph, step(graph, bound)).value(node.input(0))
        switches += condition.switches
        branches = [node.attributes.get(name) for name in ("then_branch", "else_branch")]
        flat = None if condition.found is None else numbers(condition.found)
        if flat is None or flat.size != 1:
            open_.add(node.outputs[0])
            continue
        branch = branches[0 if flat.reshape(-1)[0] else 1]
        if not isinstance(branch, Subgraph) or len(branch.outputs) != len(node.outputs):
            open_.add(node.outputs[0])
            continue
        if node.index in analysis.live_nodes(graph):
            for name in (node.input(0), *(n for sub in subgraphs(node) for n in outer_names(sub))):
                decided.update(out for one in ancestors(graph, name) for out in one.outputs)
        graph = taken(graph, node, branch)


@dataclass(frozen=True)
class _Condition:
    """A value that an If reads, as far as it is known, and the switches met on the way."""

    found: Value | None
    switches: list[tuple[int, Node]]


def _kind(value: Value) -> str:
    """What a value is, for messages; lengths are no constants to whoever reads them."""
    if isinstance(value, Known) and numbers(value) is None:
        return "lengths or a shape"
    return value.kind


def _hint_of(fault: str) -> str | None:
    return _INCOMPLETE if fault.endswith("is missing") else None


def _undeclared(name: str) -> str:
    """What helps where a node reads a value that nothing gives."""
    if is_mask(name) or is_position(name) or name.split(".")[-1] == "input_ids":
        return (
            f"the exporter wrote an incomplete model: '{name}' belongs among the graph's inputs "
            "(integers [batch, tokens]); export it with another version of the tool"
        )
    words = ("weight", "scale", "zero", "qzeros", "embed", "lm_head")
    return _WEIGHTS_MISSING if any(word in name for word in words) else _INCOMPLETE


class _Import:
    def __init__(self, graph: Graph, step: Step, decided: Collection[str] = ()) -> None:
        self.graph = graph
        self.decided = decided
        self.step = step
        self.report = Report(str(graph.path))
        self.check = NodeCheck(graph)

    def _begin(self) -> None:
        bind_inputs(self.step, self.report)
        for name, tensor in self.graph.initializers.items():
            if name not in self.graph.inputs:
                self.step.values[name] = Stored(tensor, tensor.dims)

    def value(self, name: str) -> _Condition:
        """What a value is, from the nodes that it is computed by alone."""
        self._begin()
        for node in ancestors(self.graph, name):
            self._visit(node)
        return _Condition(self.step.values.get(name), self.step.switches)

    def run(self, context: int | None) -> ImportedModel:
        self.step.capacity = context or DEFAULT_CONTEXT
        self._begin()
        live = analysis.live_nodes(self.graph)
        for node in self.graph.nodes:
            faults = self.check.faults(node)
            for fault in faults:
                self.report.error(fault, node, _hint_of(fault))
            if faults:
                self._block(node)
            elif node.index in live:
                self._visit(node)
            elif not any(name in self.decided for name in node.outputs):
                self.report.warnings.append(
                    f"node '{node.name}' ({node.op_type}) has no effect on any output and is left "
                    "out"
                )
        self._check_curves()
        logits, head = find_logits(self.step, self.report)
        hint = self.step.float_weights_hint
        self.report.settle_hint(hint(()), hint(self.step.float_columns))
        self.report.raise_errors()
        assert logits is not None and head is not None
        check_pasts(self.step, self.report)
        if self.step.rounding is not None:
            self.report.warnings += self.step.rounding.unused()
        self._limit_positions()
        finish(self.step, logits, head)
        module, parameters = assemble(self.step, self.report, context)
        return ImportedModel(
            module=module,
            parameters=parameters,
            model_path=self.graph.path,
            external_files=self.graph.external_files,
            positions=self.step.positions,
            vocabulary=logits.size,
            warnings=(*self.report.warnings, *self.step.warnings),
            rounded=self.step.rounded,
        )

    def _limit_positions(self) -> None:
        """What was decided for the capacity holds up to the next switch and no further."""
        step = self.step
        if step.bound is not None:
            beyond = [tokens for tokens, _ in step.switches if tokens >= (step.bound or 0)]
            step.positions = min([step.positions or max(beyond, default=0), *beyond])

    def _visit(self, node: Node) -> None:
        try:
            self._check(node)
            entry = self._entry(node)
            if node.op_type == "CastLike":
                node, entry = _as_cast(node, self.step.inputs(node)[1])
            self._convert(node, entry)
        except Refusal as refusal:
            self.report.error(refusal.reason, refusal.node or node, refusal.hint)
        except Blocked:
            pass
        self._block(node)

    def _block(self, node: Node) -> None:
        """What a node has not given is unknown."""
        for name in node.outputs:
            if name and name not in self.step.values:
                self.step.values[name] = Unknown()

    def _check(self, node: Node) -> None:
        if any(isinstance(value, Subgraph | list) for value in node.attributes.values()):
            raise Refusal(
                "which branch it takes is not known before the token"
                if node.op_type == "If"
                else "control flow (a subgraph) is not supported"
            )
        for name in node.inputs:
            if name and name not in self.step.values:
                self.step.values[name] = Unknown()
                raise Refusal(
                    f"its input '{name}' is neither computed nor a constant nor an input of the "
                    "graph",
                    _undeclared(name),
                )

    def _entry(self, node: Node) -> OperatorSupport:
        entry = table().get((node.domain, node.op_type))
        if entry is None:
            domain = f" of domain {node.domain}" if node.domain else ""
            raise Refusal(
                f"the operator {node.op_type}{domain} is not supported",
                HINTS.get((node.domain, node.op_type)),
            )
        if node.version < entry.since:
            raise Refusal(
                f"version {node.version} of the operator set is too old; {node.op_type} is "
                f"supported from {entry.since} on",
                "export with a newer opset",
            )
        given = node.inputs[: entry.inputs]
        if len(given) < entry.inputs or not all(given):
            raise Refusal(f"it has not all of its first {entry.inputs} inputs", _INCOMPLETE)
        for name in node.attributes:
            if name not in entry.attributes and not name.startswith("__"):
                raise Refusal(f"its attribute '{name}' is not supported")
        for i, name in enumerate(node.outputs):
            if name and i >= entry.outputs and self._is_read(name):
                raise Refusal(f"its output {i} is not supported")
        if entry.op_type.startswith("Skip"):
            for i in (1, 2):
                if node.output(i) and self._is_read(node.output(i)):
                    raise Refusal(f"its output {i} (mean or deviation) is not supported")
        return entry

    def _is_read(self, name: str) -> bool:
        return name in self.graph.consumers or name in self.graph.outputs

    def _convert(self, node: Node, entry: OperatorSupport) -> None:
        inputs = self.step.inputs(node)
        known = not any(isinstance(value, Unknown) for value in inputs)
        folded = _folded(node, entry, inputs, known=known)
        if folded is not None:
            for i, value in enumerate(folded):
                self.step.bind(node, self._decided(node, value, i), i)
            return
        if known:
            node, inputs = self._with_constants(node, inputs)
        if known and any(stage.convert(self.step, node, inputs) for stage in WRITTEN_OUT):
            return
        if not known and any(isinstance(v, PARTS) for v in inputs):
            raise Blocked
        if entry.convert is not None:
            entry.convert(self.step, node)
            return
        if not known:
            raise Blocked
        kinds = ", ".join(sorted({_kind(v) for v in inputs if v is not None}))
        raise Refusal(
            f"{node.op_type} is supported {entry.limits or 'on constants'}; here it reads {kinds}"
        )

    def _decided(self, node: Node, value: Value, i: int) -> Value:
        """A tensor of positions or lengths, as far as the capacity of the caches decides it."""
        if not isinstance(value, Field):
            return value
        step = self.step
        one_by_one = step.sequence == 1
        step.switches += [
            (tokens, node) for tokens in conditions.switches(value.term, one_by_one=one_by_one)
        ]
        if step.bound is None:
            return value
        term = conditions.decided(value.term, step.bound)
        return value if term == value.term else field(node, value.dims, term, value.dtype, i)

    def _with_constants(
        self, node: Node, inputs: list[Value | None]
    ) -> tuple[Node, list[Value | None]]:
        """A node on an activation that reads expanded constants, as one that reads constants.

        What is added to an activation and differs from position to position becomes a row of a
        table.
        """
        if node.op_type not in _ELEMENTWISE and not node.op_type.startswith("Skip"):
            return node, inputs
        if any(isinstance(v, Scores) for v in inputs):
            return node, inputs
        beside = next((v for v in inputs if isinstance(v, Vector)), None)
        names = list(node.inputs)
        for i, value in enumerate(inputs):
            if not isinstance(value, Field):
                continue
            found = same_for_all_tokens(value, names[i])
            if found is None and beside is not None and node.op_type in _ADDS:
                found = placed(self.step, node, names[i], value, beside.dims)
            if found is not None:
                names[i] = f"{names[i]} of a token"
                self.step.values[names[i]] = found
        node = replace(node, inputs=tuple(names))
        return node, self.step.inputs(node)

    def _check_curves(self) -> None:
        """Reports nodes that were taken for a part of an activation function and are none."""
        for value in self.step.values.values():
            if isinstance(value, Curve) and not self.step.settled.intersection(value.names):
                self.report.error(value.reason, value.begun)


def _folded(
    node: Node, entry: OperatorSupport, inputs: list[Value | None], *, known: bool
) -> list[Value] | None:
    """A node's outputs where they are known before the token, else None.

    Masks and positions come first, then what is large or made of bits; the rest is the operator's
    own.
    """
    if node.op_type == "Identity" and isinstance(inputs[0], Past | Present):
        return [inputs[0]]
    sole = _sole_part(node, inputs)
    if sole is not None:
        return [sole]
    if not known:
        return None
    try:
        if field_folding.concerns(node, inputs):
            placed = field_folding.fold(node, inputs)
            if placed is not None:
                return placed
        computed = lazy.fold(node, inputs)
        if computed is not None or entry.fold is None:
            return computed
        return entry.fold(node, inputs)
    except ValueError as error:
        # What numpy says of shapes that do not fit.
        raise Refusal(f"the constants do not combine: {error}") from error


def _sole_part(node: Node, inputs: list[Value | None]) -> Value | None:
    """What a Concat gives that joins a tensor with nothing but empty ones."""
    if node.op_type != "Concat":
        return None
    parts = [
        value
        for value in inputs
        if value is not None and not (isinstance(value, Stored) and value.tensor.size == 0)
    ]
    return parts[0] if len(parts) == 1 else None


def _as_cast(node: Node, like: Value | None) -> tuple[Node, OperatorSupport]:
    """A CastLike as the Cast that it is."""
    import onnx_ir

    match like:
        case Stored():
            dtype = like.tensor.dtype
        case Field():
            dtype = like.dtype
        case Known():
            dtype = "BOOL" if like.array.dtype == np.bool_ else "INT64"
        case Computed():
            dtype = onnx_ir.DataType.from_numpy(like.constant.dtype).name
        case None | Unknown():
            raise Blocked
        case _:
            # Activations have one type here.
            dtype = "FLOAT"
    attributes = {**node.attributes, "to": int(onnx_ir.DataType[dtype])}
    cast = replace(node, op_type="Cast", inputs=node.inputs[:1], attributes=attributes)
    return cast, table()["", "Cast"]
