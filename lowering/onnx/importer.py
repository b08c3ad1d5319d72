"""ONNX to rom: a decoder graph over [batch, sequence, ...] becomes a step for one token.

Every node is converted, folded (constants, shapes, counts of the attention mask) or reported; all
unsupported nodes are reported together, before any weight is read.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from xdsl.dialects.builtin import IndexType, ModuleOp, i32
from xdsl.ir import Block

from intaglio.lowering.onnx import (
    adapters,
    analysis,
    curves,
    field_folding,
    lazy,
    levels,
    rotary,
    scores,
    written_norms,
)
from intaglio.lowering.onnx.assembly import DEFAULT_CONTEXT, assemble, finish
from intaglio.lowering.onnx.expressions import PAST, SEQUENCE, expression
from intaglio.lowering.onnx.fields import same_for_all_tokens
from intaglio.lowering.onnx.inputs import bind_inputs
from intaglio.lowering.onnx.model import Graph, Node, Subgraph
from intaglio.lowering.onnx.model_file import load
from intaglio.lowering.onnx.node_check import NodeCheck
from intaglio.lowering.onnx.operators import HINTS, OperatorSupport, table
from intaglio.lowering.onnx.outputs import check_pasts, find_logits
from intaglio.lowering.onnx.pairs import is_mask, is_position
from intaglio.lowering.onnx.report import Report
from intaglio.lowering.onnx.rounding import HEAD_ROUNDING, parse_request, parse_rounding
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
)
from intaglio.lowering.onnx.weights import FLOAT_WEIGHTS_HINT, Parameter
from intaglio.lowering.parameters import ParameterSource

_INCOMPLETE = "the exporter wrote an incomplete model; export it with another version of the tool"
_WEIGHTS_MISSING = (
    "the exporter wrote an incomplete model; with the model builder, tied and asymmetric weights "
    "need shared_embeddings=false"
)

_ELEMENTWISE = frozenset({"Add", "Div", "Max", "Min", "Mul", "Pow", "Sub"})

WRITTEN_OUT = (levels, scores, rotary, curves, written_norms)
"""What exporters write out in small operators; each follows its parts as values of its own."""


@dataclass(frozen=True, eq=False)
class ImportedModel:
    """A model in the float stage of rom.

    Attributes:
        module: `rom.parameter`s, `rom.cache`s and one `rom.step @decode`.
        parameters: who reads each parameter, by its key.
        model_path: the file.
        external_files: files with weights beside it.
        positions: positions the model allows (rows of its rotary tables); 0 is unlimited.
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
    float_weights_hint: str = FLOAT_WEIGHTS_HINT,
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
        float_weights_hint: what would help where floating-point weights are refused.

    Raises:
        UserError: the file is unusable.
        UserErrors: nodes, inputs or outputs are not supported; all are listed.
    """
    rounding = None if weights is None else parse_request(weights)
    graph, lifted = adapters.without_lifted(load(path, allow_links=allow_links))
    importer = _Import(
        graph,
        Step(
            graph=graph,
            block=Block(arg_types=[i32, IndexType()]),
            adapters=adapters.find(graph),
            rounding=rounding,
            head_rounding=parse_rounding(head),
            float_weights_hint=float_weights_hint,
            heads=analysis.float_heads(graph),
            rounded_tables=analysis.tied_tables(graph),
            embedding_rounding=None if embedding is None else parse_rounding(embedding),
            batch=expression(1),
            sequence=SEQUENCE,
            total=PAST + SEQUENCE,
            codes=tuple(codes),
        ),
    )
    if lifted:
        importer.report.warnings.append(
            f"{len(lifted)} inputs are matrices of adapters to be given at run time ('{lifted[0]}' "
            "and others): the base is compiled without their branches; --adapter-slots reserves "
            "places for adapters, and `intaglio adapter add` fills them"
        )
    return importer.run(context)


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
    def __init__(self, graph: Graph, step: Step) -> None:
        self.graph = graph
        self.step = step
        self.report = Report(str(graph.path))
        self.check = NodeCheck(graph)

    def run(self, context: int | None) -> ImportedModel:
        self.step.capacity = context or DEFAULT_CONTEXT
        bind_inputs(self.step, self.report)
        for name, tensor in self.graph.initializers.items():
            if name not in self.graph.inputs:
                self.step.values[name] = Stored(tensor, tensor.dims)
        live = analysis.live_nodes(self.graph)
        for node in self.graph.nodes:
            faults = self.check.faults(node)
            for fault in faults:
                self.report.error(fault, node, _hint_of(fault))
            if faults:
                self._block(node)
            elif node.index in live:
                self._visit(node)
            else:
                self.report.warnings.append(
                    f"node '{node.name}' ({node.op_type}) has no effect on any output and is left "
                    "out"
                )
        self._check_curves()
        logits, head = find_logits(self.step, self.report)
        self.report.raise_errors()
        assert logits is not None and head is not None
        check_pasts(self.step, self.report)
        if self.step.rounding is not None:
            self.report.warnings += self.step.rounding.unused()
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
            raise Refusal("control flow (a subgraph) is not supported")
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
                self.step.bind(node, value, i)
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
        kinds = ", ".join(sorted({v.kind for v in inputs if v is not None}))
        raise Refusal(
            f"{node.op_type} is supported {entry.limits or 'on constants'}; here it reads {kinds}"
        )

    def _with_constants(
        self, node: Node, inputs: list[Value | None]
    ) -> tuple[Node, list[Value | None]]:
        """A node on an activation that reads expanded constants, as one that reads constants."""
        if node.op_type not in _ELEMENTWISE or any(isinstance(v, Scores) for v in inputs):
            return node, inputs
        names = list(node.inputs)
        for i, value in enumerate(inputs):
            if isinstance(value, Field):
                found = same_for_all_tokens(value, names[i])
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
