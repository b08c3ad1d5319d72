"""ONNX to rom: a decoder graph over [batch, sequence, ...] becomes a step for one token.

Every node is converted, folded (constants, shapes, counts of the attention mask) or reported; all
unsupported nodes are reported together, before any weight is read.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from xdsl.dialects.builtin import IndexType, ModuleOp, SymbolRefAttr, i32
from xdsl.ir import Block, Operation, Region

from intaglio.dialects import rom
from intaglio.dialects.errors import CompilerBug, UserError, UserErrors
from intaglio.lowering.onnx import (
    adapters,
    attention,
    curves,
    fields,
    lazy,
    levels,
    rotary,
    scores,
)
from intaglio.lowering.onnx.expressions import BATCH, PAST, SEQUENCE, Expression, expression
from intaglio.lowering.onnx.fields import axis_index
from intaglio.lowering.onnx.model import FLOATS, SUBGRAPH, Graph, Node, Port, load
from intaglio.lowering.onnx.operators import OperatorSupport, is_attribute_of_its_type, table
from intaglio.lowering.onnx.sources import DenseSource, Source
from intaglio.lowering.onnx.step import Cache, Declared, Step, real
from intaglio.lowering.onnx.terms import TRUE, Count, count
from intaglio.lowering.onnx.values import (
    Blocked,
    Cached,
    Curve,
    Field,
    Ids,
    Known,
    Past,
    Present,
    Refusal,
    Scores,
    Stored,
    Turned,
    Unknown,
    Value,
    Vector,
)
from intaglio.lowering.onnx.weights import Parameter, parse_request, parse_rounding
from intaglio.lowering.parameters import ParameterSource

DEFAULT_CONTEXT = 1024
"""Capacity of the caches where neither the caller nor the model states one."""

SCOPE = "onnx"
"""Keys of parameters that come from the model are `onnx::NAMES`."""


_ATTENTION = frozenset({"Attention", "GroupQueryAttention", "MultiHeadAttention", "Softmax"})
"""Operators that say that a graph attends to several tokens."""

WRITTEN_OUT = (scores, rotary, curves)
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
            heads=_float_heads(graph),
            embedding_rounding=None if embedding is None else parse_rounding(embedding),
            batch=BATCH,
            sequence=SEQUENCE,
            total=PAST + SEQUENCE,
        ),
    )
    if lifted:
        importer.warnings.append(
            f"{len(lifted)} inputs are matrices of adapters to be given at run time ('{lifted[0]}' "
            "and others): the base is compiled without their branches; --adapter-slots reserves "
            "places for adapters, and `intaglio adapter add` fills them"
        )
    return importer.run(context)


def _float_heads(graph: Graph) -> frozenset[int]:
    """Nodes that give the logits.

    Quantisers often leave the head in floating point; whole models in floating point are another
    matter (`Step.has_integers`).
    """
    writers = {name: node for node in graph.nodes for name in node.outputs if name}
    heads: set[int] = set()
    pending = [name for name in graph.outputs if name.startswith("logits")]
    while pending:
        node = writers.get(pending.pop())
        if node is None:
            continue
        if node.op_type in ("MatMul", "Gemm", "FusedMatMul"):
            heads.add(node.index)
        elif node.op_type in _AFTER_HEAD:
            pending += [name for name in node.inputs if name]
    return frozenset(heads)


_AFTER_HEAD = frozenset({"Add", "Cast", "Div", "Identity", "Mul", "Tanh"})


class _Import:
    def __init__(self, graph: Graph, step: Step) -> None:
        self.graph = graph
        self.step = step
        self.file = str(graph.path)
        self.errors: list[UserError] = []
        self.warnings: list[str] = []

    def run(self, context: int | None) -> ImportedModel:
        self.step.capacity = context or DEFAULT_CONTEXT
        self._bind_inputs()
        self._bind_initializers()
        self._find_tied_tables()
        live = self._live_nodes()
        for node in self.graph.nodes:
            if node.index in live:
                self._visit(node)
        self._check_curves()
        logits, head = self._logits()
        self._raise_errors()
        assert logits is not None and head is not None
        self._check_pasts()
        if self.step.rounding is not None:
            self.warnings += self.step.rounding.unused()
        self._finish_step(logits, head)
        module, parameters = self._module(context)
        return ImportedModel(
            module=module,
            parameters=parameters,
            model_path=self.graph.path,
            external_files=self.graph.external_files,
            positions=self.step.positions,
            vocabulary=logits.size,
            warnings=(*self.warnings, *self.step.warnings),
            rounded=self.step.rounded,
        )

    # --- what enters ----------------------------------------------------------------------------

    def _error(self, what: str, node: Node | None = None, hint: str | None = None) -> None:
        error = UserError(
            what,
            file=self.file,
            node=None if node is None else node.name,
            op_type=None if node is None else node.op_type,
            hint=hint,
        )
        if str(error) not in {str(known) for known in self.errors}:
            self.errors.append(error)

    def _raise_errors(self) -> None:
        if not self.errors:
            return
        # Many nodes may share a remedy; it is said once, after the last of them.
        said: set[str | None] = set()
        errors: list[UserError] = []
        for error in reversed(self.errors):
            hint = None if error.hint in said else error.hint
            said.add(error.hint)
            errors.insert(
                0,
                UserError(
                    error.what, file=error.file, node=error.node, op_type=error.op_type, hint=hint
                ),
            )
        raise UserErrors(errors)

    def _capacity(self, context: int | None) -> int:
        positions = self.step.positions
        if context is None:
            return positions or DEFAULT_CONTEXT
        if context < 1 or (positions and context > positions):
            limit = (
                f"from 1 to {positions}, the rows of its rotary tables" if positions else "positive"
            )
            raise UserError(
                f"a context of {context} tokens is not possible; it must be {limit}", file=self.file
            )
        return context

    def _bind_inputs(self) -> None:
        ports = self.graph.inputs.values()
        tokens = self._token_input()
        step = self.step
        if tokens is not None:
            step.batch = self._length(tokens, 0, BATCH)
            step.sequence = self._length(tokens, 1, SEQUENCE)
            step.total = PAST + step.sequence
        else:
            self._error(
                "the graph has no input of token ids (int64 [batch, sequence] that selects rows of "
                "an embedding table)",
                hint="export the model with its embedding (without exclude_embeds)",
            )
        for port in ports:
            step.values[port.name] = self._input(port, tokens)
        attends = any(node.op_type in _ATTENTION for node in self.graph.nodes)
        if attends and not step.pasts and tokens is not None:
            self._error(
                "the graph has attention but takes no past keys and values: an encoder, or a "
                "decoder without its cache",
                hint="encoders are not supported; export a decoder with past keys and values "
                "(text-generation-with-past)",
            )

    def _token_input(self) -> Port | None:
        candidates = [
            port
            for port in self.graph.inputs.values()
            if port.dtype in ("INT64", "INT32") and port.name not in self.graph.initializers
        ]
        for port in candidates:
            if port.name.split(".")[-1] == "input_ids":
                return port
        for port in candidates:
            users = self.graph.consumers.get(port.name, ())
            if (
                any(
                    user.op_type in ("Gather", "GatherBlockQuantized")
                    and user.input(1) == port.name
                    for user in users
                )
                and "position" not in port.name
            ):
                return port
        return None

    def _length(self, port: Port, axis: int, length: Expression) -> Expression:
        dim = port.dims[axis] if axis < len(port.dims) else None
        if not isinstance(dim, int):
            return length
        if dim != 1:
            self._error(
                f"input '{port.name}' has the fixed size {dim} in axis {axis}",
                hint="export with a dynamic (symbolic) batch and sequence",
            )
        return expression(1)

    def _input(self, port: Port, tokens: Port | None) -> Value:
        step, name = self.step, port.name
        if name in self.graph.initializers:
            return self._default_input(port)
        if tokens is not None and name == tokens.name:
            return Ids("token", (step.batch, step.sequence))
        rank = len(port.dims)
        integral = port.dtype in ("INT64", "INT32")
        if integral and "position_ids" in name and rank == 2:
            index = axis_index(1) if step.sequence != 1 else expression(0)
            return Field((step.batch, step.sequence), Count(PAST + index), "INT64")
        if (integral or port.dtype == "BOOL") and "attention_mask" in name and rank == 2:
            ones = TRUE if port.dtype == "BOOL" else count(1)
            return Field((step.batch, step.total), ones, "INT64" if integral else "BOOL")
        if rank == 4 and (port.dtype in FLOATS or port.dtype in ("INT8", "UINT8")):
            step.pasts[name] = port
            dims = [step.batch, PAST, PAST, PAST]
            for axis in (1, 2, 3):
                dim = port.dims[axis]
                dims[axis] = expression(dim) if isinstance(dim, int) else PAST
            if isinstance(port.dims[3], int):
                return Past(name, tuple(dims))
            return Past(name, (*dims[:3], Expression({("head width",): 1})))
        hint = None
        if "embeds" in name:
            hint = "export the model with its embedding (without exclude_embeds)"
        elif "cumulative_length" in name or "sliding_window" in name:
            hint = (
                "export with caches that keep all tokens and grow (no static cache, and no cache "
                "that forgets: a sliding window belongs into the mask)"
            )
        elif "mask" in name or "position" in name:
            hint = "export with input_ids, a 2-D attention_mask and past keys and values only"
        self._error(
            f"the graph's input '{name}' ({port.dtype.lower()}, {rank} axes) is not understood",
            hint=hint,
        )
        return Unknown()

    def _default_input(self, port: Port) -> Value:
        tensor = self.graph.initializers[port.name]
        if tensor.size == 0:
            self._error(
                f"the graph's input '{port.name}' is an adapter matrix to be given at run time",
                hint="export the base model without adapter inputs, or with constant adapters; "
                "adapters are added later with `intaglio adapter add`",
            )
            return Unknown()
        self.warnings.append(f"input '{port.name}' has a default value; it is taken as a constant")
        return Stored(tensor, tensor.dims)

    def _bind_initializers(self) -> None:
        for name, tensor in self.graph.initializers.items():
            if name in self.graph.inputs:
                continue
            self.step.values[name] = Stored(tensor, tensor.dims)

    def _find_tied_tables(self) -> None:
        """Tables that are also a linear operator's floating-point weights."""

        def stored(name: str) -> str:
            while name not in self.graph.initializers:
                producer = self.graph.producers.get(name)
                if producer is None or producer.op_type not in ("Transpose", "Identity", "Cast"):
                    return ""
                name = producer.input(0)
            return name

        self.step.rounded_tables = {
            stored(node.input(1)): node
            for node in self.graph.nodes
            if node.op_type in ("MatMul", "Gemm", "FusedMatMul")
        }

    def _live_nodes(self) -> set[int]:
        """Nodes that an output depends on; the others are reported as without effect."""
        live: set[int] = set()
        todo = [
            self.graph.producers[name]
            for name in self.graph.outputs
            if name in self.graph.producers
        ]
        while todo:
            node = todo.pop()
            if node.index in live:
                continue
            live.add(node.index)
            todo += [
                self.graph.producers[name] for name in node.inputs if name in self.graph.producers
            ]
        dead = [node for node in self.graph.nodes if node.index not in live]
        self.warnings += [
            f"node '{node.name}' ({node.op_type}) has no effect on any output and is left out"
            for node in dead
        ]
        return live

    # --- nodes ----------------------------------------------------------------------------------

    def _visit(self, node: Node) -> None:
        try:
            self._check(node)
            entry = self._entry(node)
            if node.op_type == "CastLike":
                node, entry = _as_cast(node, self.step.inputs(node)[1])
            self._convert(node, entry)
        except Refusal as refusal:
            self._error(refusal.reason, refusal.node or node, refusal.hint)
        except Blocked:
            pass
        for name in node.outputs:
            if name and name not in self.step.values:
                self.step.values[name] = Unknown()

    def _check(self, node: Node) -> None:
        if any(value == SUBGRAPH for value in node.attributes.values() if isinstance(value, str)):
            raise Refusal("control flow (a subgraph) is not supported")
        for name in node.inputs:
            if name and name not in self.step.values:
                self.step.values[name] = Unknown()
                raise Refusal(
                    f"its input '{name}' is neither computed nor a constant nor an input of the "
                    "graph",
                    "the exporter wrote an incomplete model; with the model builder, tied and "
                    "asymmetric weights need shared_embeddings=false",
                )

    def _entry(self, node: Node) -> OperatorSupport:
        entry = table().get((node.domain, node.op_type))
        if entry is None:
            domain = f" of domain {node.domain}" if node.domain else ""
            raise Refusal(f"the operator {node.op_type}{domain} is not supported")
        if node.version < entry.since:
            raise Refusal(
                f"version {node.version} of the operator set is too old; {node.op_type} is "
                f"supported from {entry.since} on",
                "export with a newer opset",
            )
        for name in node.attributes:
            if name not in entry.attributes:
                raise Refusal(f"its attribute '{name}' is not supported")
            if not is_attribute_of_its_type(name, node.attributes[name]):
                raise Refusal(f"its attribute '{name}' has a value of the wrong type")
        for i, name in enumerate(node.outputs):
            if name and i >= entry.outputs and self.graph.uses(name):
                raise Refusal(f"its output {i} is not supported")
        if entry.op_type.startswith("Skip"):
            for i in (1, 2):
                if node.output(i) and self.graph.uses(node.output(i)):
                    raise Refusal(f"its output {i} (mean or deviation) is not supported")
        return entry

    def _convert(self, node: Node, entry: OperatorSupport) -> None:
        inputs = self.step.inputs(node)
        known = not any(isinstance(value, Unknown) for value in inputs)
        sole = _sole_part(node, inputs)
        if sole is not None:
            self.step.bind(node, sole)
            return
        if known and fields.concerns(node, inputs):
            placed = fields.fold(node, inputs)
            if placed is not None:
                for i, value in enumerate(placed):
                    self.step.bind(node, value, i)
                return
        computed = lazy.fold(node, inputs)
        if computed is not None:
            self.step.bind(node, computed[0])
            return
        if levels.convert(self.step, node):
            return
        if entry.fold is not None:
            folded = entry.fold(node, inputs) if known else None
            if folded is not None:
                for i, value in enumerate(folded):
                    self.step.bind(node, value, i)
                return
        if known and any(stage.convert(self.step, node, inputs) for stage in WRITTEN_OUT):
            return
        if not known and any(isinstance(v, Cached | Scores | Turned | Curve) for v in inputs):
            raise Blocked
        if entry.convert is not None:
            entry.convert(self.step, node)
            return
        if any(isinstance(value, Unknown) for value in inputs):
            raise Blocked
        kinds = ", ".join(sorted({v.kind for v in inputs if v is not None}))
        raise Refusal(
            f"{node.op_type} is supported {entry.limits or 'on constants'}; here it reads {kinds}"
        )

    def _check_curves(self) -> None:
        """Reports nodes that were taken for a part of an activation function and are none."""
        for value in self.step.values.values():
            if isinstance(value, Curve) and not self.step.settled.intersection(value.names):
                self._error(value.reason, value.begun)

    # --- what leaves ----------------------------------------------------------------------------

    def _logits(self) -> tuple[Vector | None, Node | None]:
        found: list[tuple[str, Vector]] = []
        unknown = False
        for name in self.graph.outputs:
            value = self.step.values.get(name)
            match value:
                case Vector():
                    found.append((name, value))
                case Unknown():
                    unknown = True
                case Present():
                    pass
                case Cached() if scores.is_whole(value):
                    self._check_present(name, value)
                case Curve():
                    unknown = True
                case None:
                    self._error(f"nothing computes the output '{name}'")
                case _:
                    self._error(f"the output '{name}' is {value.kind}, not logits")
        if len(found) > 1:
            chosen = next((p for p in found if p[0] == "logits"), None)
            if chosen is not None:
                for name, _ in found:
                    if name != "logits":
                        self._error(
                            f"the output '{name}' is not supported: the chip gives logits only",
                            hint="export without it (include_hidden_states=false)",
                        )
                found = [chosen]
            else:
                names = ", ".join(f"'{name}'" for name, _ in found)
                self._error(f"only one output can be the logits, found {names}")
        if not found:
            if not unknown and not self.errors:
                self._error("the graph has no output of logits")
            return None, None
        name, value = found[0]
        try:
            self.step.whole_row(value)
        except Refusal as refusal:
            self._error(f"the logits '{name}': {refusal.reason}")
        if name == "hidden_states":
            self._error(
                "the output 'hidden_states' is not logits",
                hint="export the model with its head (without exclude_lm_head)",
            )
        return value, self.graph.producers.get(name)

    def _check_present(self, name: str, value: Cached) -> None:
        if attention.layer(name) != attention.layer(value.past):
            self._error(f"'{value.past}' and '{name}' belong to different layers")

    def _check_pasts(self) -> None:
        given = {
            value.past
            for value in (self.step.values.get(name) for name in self.graph.outputs)
            if isinstance(value, Cached | Present)
        }
        for past in self.step.caches:
            if past not in given:
                self._error(
                    f"no output gives back what '{past}' becomes with the new tokens",
                    hint="export with present keys and values as outputs (with past)",
                )
        self._raise_errors()
        for name in self.step.pasts:
            if name not in self.step.caches:
                self.warnings.append(f"input '{name}' is read by no attention and is left out")

    def _finish_step(self, logits: Vector, head: Node) -> None:
        step = self.step
        sample = step.emit(rom.SampleOp(logits.ssa, rom.nodes(head.name)))
        step.emit(rom.EmitOp(logits.ssa, sample.token))
        for op in reversed(list(step.block.ops)):
            if _is_unused(op):
                op.detach()
                op.erase()

    def _module(self, context: int | None) -> tuple[ModuleOp, dict[str, ParameterSource]]:
        step = self.step
        used = {
            attribute.root_reference.data
            for op in step.block.ops
            for attribute in op.properties.values()
            if isinstance(attribute, SymbolRefAttr)
        }
        operations: list[Operation] = []
        parameters: dict[str, ParameterSource] = {}
        for declared in step.declared.values():
            if declared.symbol not in used:
                raise CompilerBug(f"parameter @{declared.symbol} is declared and never used")
            operation, key = self._parameter(declared, parameters)
            parameters[key] = declared.parameter.source
            operations.append(operation)
        self._raise_errors()
        capacity = self._capacity(context)
        operations += [self._cache(cache, capacity) for cache in step.caches.values()]
        operations.append(rom.StepOp("decode", step.positions, Region(step.block)))
        return ModuleOp(operations), parameters

    def _parameter(
        self, declared: Declared, known: dict[str, ParameterSource]
    ) -> tuple[rom.ParameterOp, str]:
        source = declared.parameter.source
        peak = source.peak()
        if not math.isfinite(peak):
            kind = "values" if isinstance(source, DenseSource) else "scales"
            self._error(
                f"tensor '{declared.parameter.names[0]}' has {kind} that are not finite",
                declared.node,
            )
        key = f"{SCOPE}::{','.join(declared.parameter.names)}"
        number = 1
        while key in known:
            number += 1
            key = f"{SCOPE}::{','.join(declared.parameter.names)}#{number}"
        return (
            rom.ParameterOp(
                declared.symbol,
                _type(source, declared.adapter),
                key,
                peak=peak if math.isfinite(peak) else None,
                zero=source.zero,
                zero_fraction=None if isinstance(source, DenseSource) else source.zero_fraction,
            ),
            key,
        )

    def _cache(self, cache: Cache, capacity: int) -> rom.CacheOp:
        type_ = rom.KVType(capacity, cache.heads, cache.width, cache.format)
        scale = None if cache.static_scale is None else real(cache.static_scale)
        return rom.CacheOp(cache.symbol, type_, scale)


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
        case None | Unknown():
            raise Blocked
        case _:
            # Activations have one type here.
            dtype = "FLOAT"
    attributes = {**node.attributes, "to": int(onnx_ir.DataType[dtype])}
    cast = replace(node, op_type="Cast", inputs=node.inputs[:1], attributes=attributes)
    return cast, table()["", "Cast"]


def _type(source: Source, adapter: bool) -> rom.ROMTensorType | rom.AdapterType:
    dense = isinstance(source, DenseSource)
    group, zeros = (0, False) if dense else (source.group, source.zero is None)
    kind = rom.AdapterType if adapter else rom.ROMTensorType
    return kind(source.dims, source.code, group, zeros)


def _is_unused(op: Operation) -> bool:
    return bool(op.results) and not any(result.uses.get_length() for result in op.results)
