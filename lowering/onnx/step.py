"""Builds the `rom.step` while nodes are converted: values by name, parameters, caches."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from xdsl.dialects.builtin import FloatAttr, SymbolRefAttr
from xdsl.ir import Block, Operation, SSAValue

from intaglio.dialects import rom
from intaglio.dialects.errors import CompilerBug
from intaglio.lowering.onnx.graph.model import Graph, Node, Port, Tensor
from intaglio.lowering.onnx.known.expressions import Dims, Expression, dims_text, expression
from intaglio.lowering.onnx.values import (
    Blocked,
    Columns,
    Computed,
    NormPart,
    Refusal,
    Stored,
    Turned,
    Unknown,
    Value,
    Vector,
    kind_of,
    token_size,
)
from intaglio.lowering.onnx.weights import weights
from intaglio.lowering.onnx.weights.narrow import narrowed
from intaglio.lowering.onnx.weights.rounding import Request, Rounding
from intaglio.lowering.onnx.weights.sources import DenseSource
from intaglio.lowering.onnx.weights.weights import FloatWeightsHint, Parameter

_Op = TypeVar("_Op", bound=Operation)

_NOISE = re.compile(
    r"(?:[._/](?:MatMul|MatMulNBits|DequantizeLinear|Add|Gather|weight|qweight|quantized|"
    r"(?:weight_)?(?:DQ_)?Q[248]\w*))+$"
)


# Torch names folded weights and what it computes without meaning.
_ANONYMOUS = re.compile(r"[a-z_]+_\d+")

# What tensors of embeddings are called, `wte` by GPT-2.
_EMBEDDING = re.compile(r"emb|wte", re.IGNORECASE)


def identifier(name: str) -> str:
    """A symbol name from a tensor's name: letters, digits and underscores only."""
    short = re.sub(r"^onnx::", "", name.strip("/"))
    bias = ".bias" if short.endswith((".bias", "/bias")) else ""
    trimmed = _NOISE.sub("", short[: len(short) - len(bias)]) + bias
    clean = re.sub(r"[^0-9A-Za-z]+", "_", trimmed).strip("_")
    if not clean:
        return "parameter"
    return f"p_{clean}" if clean[0].isdigit() else clean


@dataclass(frozen=True)
class Role:
    """What a dense tensor is to an operator.

    Attributes:
        what: in words.
        form: equal for roles in which a tensor gets the same integers. A tensor of the model in
            roles of different forms is engraved once for each.
    """

    what: str
    form: str


BIAS, BETA = Role("the bias", "bias"), Role("beta", "bias")
GAMMA = Role("gamma", "norm")
SINKS = Role("the sinks of heads", "sink")
SLOPES = Role("the slopes of heads", "slope")
ANGLES = Role("the table of a rotation", "rotation")


@dataclass(eq=False)
class Declared:
    """A parameter with its symbol."""

    symbol: str
    parameter: Parameter
    adapter: bool
    node: Node
    form: str = ""
    """See `Role`; a matrix has none."""

    @property
    def identity(self) -> tuple[object, ...]:
        """Equal for what is declared once."""
        return (*self.parameter.identity, self.form, self.adapter)


@dataclass(eq=False)
class Cache:
    """A key or value cache with its symbol."""

    symbol: str
    heads: int
    width: int
    format: str
    static_scale: float | None


@dataclass(eq=False)
class Step:
    """The step under construction.

    Attributes:
        adapters: indices of nodes whose weights are those of an adapter.
        rounding: how floating-point weights are quantised, if asked for.
        head_rounding: how a head in floating point is quantised where other matrices are.
        float_weights_hint: what would help products whose weights are floating point.
        float_columns: columns of matrices of floats that were refused.
        heads: indices of nodes that give the logits; their weights may be floating point where
            other matrices are small integers.
        has_integers: whether a matrix of small integers was met.
        embedding_rounding: how a floating-point embedding is quantised, if it is to be.
        rounded: what was quantised on request, by the first output of its node.
        positions: the smallest number of rows of a rotary table used so far, 0 for none.
        capacity: positions for which tables are computed.
        tables: coefficients of rotary embeddings at all positions, as computed.
        rotations: tables of cosines and sines by the coefficients of pairs; None for no rotation.
        engraved: constants that were computed, by their hash or name.
        states: of each past input that is one, symbols and types.
        settled: nodes that became an activation function together.
        codes: what the chip has cells for; weights are narrowed to one of them where they fit.
        parted: symbols of matrices and biases that rows were chosen of: the whole need not be used.
        whole: gives lanes that are not contiguous as a value of their own; None where they cannot.
        bound: tokens that the caches hold at most, where that is known before the import.
        switches: numbers of tokens beyond which the graph computes otherwise, with the node that
            says so; those above `bound` are not decided by it.
    """

    graph: Graph
    block: Block
    adapters: set[int]
    rounding: Request | None
    head_rounding: Rounding
    float_weights_hint: FloatWeightsHint
    batch: Expression
    sequence: Expression
    total: Expression
    values: dict[str, Value] = field(default_factory=dict)
    declared: dict[tuple[object, ...], Declared] = field(default_factory=dict)
    caches: dict[str, Cache] = field(default_factory=dict)
    states: dict[str, list[tuple[str, rom.StateType | rom.MatricesType]]] = field(
        default_factory=dict
    )
    pasts: dict[str, Port] = field(default_factory=dict)
    symbols: set[str] = field(default_factory=set)
    positions: int = 0
    rounded_tables: dict[str, Node] = field(default_factory=dict)
    heads: frozenset[int] = frozenset()
    embedding_rounding: Rounding | None = None
    rounded: dict[str, Parameter] = field(default_factory=dict)
    float_columns: set[int] = field(default_factory=set)
    capacity: int = 1
    tables: dict[Columns, npt.NDArray[np.float32]] = field(default_factory=dict)
    rotations: dict[object, tuple[Stored, Stored] | None] = field(default_factory=dict)
    engraved: dict[bytes | str, Stored] = field(default_factory=dict)
    settled: set[str] = field(default_factory=set)
    warnings: list[str] = field(default_factory=list)
    has_integers: bool = False
    superseded: set[int] = field(default_factory=set)
    parted: set[str] = field(default_factory=set)
    whole: Callable[[Step, Turned, Node], Vector | None] = lambda step, value, node: None
    bound: int | None = None
    switches: list[tuple[int, Node]] = field(default_factory=list)
    codes: tuple[str, ...] = ()

    @property
    def token(self) -> SSAValue:
        """The token id."""
        return self.block.args[0]

    @property
    def position(self) -> SSAValue:
        """The token's position."""
        return self.block.args[1]

    def float_weights(self, dtype: str, columns: int) -> Refusal:
        """Why a matrix of floats with so many columns is not taken, and what would help.

        What helps hangs on all such matrices: `Report.settle_hint` says it once they are known.
        """
        self.float_columns.add(columns)
        return Refusal(
            f"its weights are floating point ({dtype}); the chip engraves small integers",
            self.float_weights_hint(()),
        )

    # --- values ---------------------------------------------------------------------------------

    def inputs(self, node: Node) -> list[Value | None]:
        """Values of a node's inputs, None where absent, with room for 16."""
        found: list[Value | None] = [self.values[name] if name else None for name in node.inputs]
        return found + [None] * (16 - len(found))

    def vector(self, node: Node, i: int) -> Vector:
        """Input i as an activation.

        Raises:
            Refusal: it is something else.
            Blocked: it comes from a refused node.
        """
        name = node.input(i)
        value = self.values.get(name) if name else None
        if isinstance(value, Unknown):
            raise Blocked
        if isinstance(value, Turned):
            value = self.part(value) or self.whole(self, value, node) or value
        if isinstance(value, NormPart) and value.stage == "normalised":
            value = self.without_gamma(node, value)
        if not isinstance(value, Vector):
            kind = kind_of(value)
            raise Refusal(f"input {i} must be an activation; here it is {kind}")
        return value

    def part(self, value: Turned) -> Vector | None:
        """Selected elements as an activation, where they are a contiguous part of one, or None."""
        if len(value.terms) != 1:
            return None
        (term,) = value.terms
        flat, factors = term.source.reshape(-1), term.factor.reshape(-1)
        first, count = int(flat[0]), flat.size
        in_order = np.array_equal(flat, np.arange(first, first + count))
        if term.table is not None or not in_order or not (factors == factors[0]).all():
            return None
        x = value.input
        whole = count == token_size(x.dims[value.lead :])
        if not whole and token_size(x.dims[: value.lead]) != 1:
            return None
        names = rom.nodes(*value.names)
        ssa = x.ssa
        if not whole:
            ssa = self.emit(rom.SliceOp(ssa, first, names, rom.float_vector(count))).output
        if factors[0] != 1.0:
            ssa = self.emit(rom.ScaleOp(ssa, real(float(factors[0])), names)).output
        return Vector(ssa, value.dims)

    def chosen_rows(self, value: Turned) -> Vector | None:
        """Selected elements of a matrix product as the product with these rows, or None.

        Exporters pack queries, keys and values into one matrix, by head: what is cut out of each
        head is then no contiguous part of the result. Each element must be chosen once at most.
        """
        x, owner, offset = value.input, value.input.ssa.owner, 0
        while isinstance(owner, rom.SliceOp):
            # A part of what several matrices in one give.
            offset += owner.offset.value.data
            owner = owner.input.owner
        if len(value.terms) != 1 or not isinstance(owner, rom.LinearOp):
            return None
        (term,) = value.terms
        declared = self._declared_by(owner.weights.root_reference.data)
        if term.table is not None or not (term.factor == 1.0).all() or declared.adapter:
            return None
        inner = term.source.reshape(-1)
        outer = np.arange(token_size(x.dims[: value.lead])) * token_size(x.dims[value.lead :])
        rows = (outer[:, None] + inner).reshape(-1) + offset
        if np.unique(rows).size != rows.size:
            return None
        bias = None
        if owner.bias is not None:
            added = self._declared_by(owner.bias.root_reference.data)
            part = weights.chosen_rows(added.parameter, rows)
            bias = self.declare(added.node, part, form=added.form)
        part = weights.chosen_rows(declared.parameter, rows)
        op = rom.LinearOp(
            owner.input,
            self.declare(declared.node, part),
            merged(owner, *value.names),
            rom.float_vector(rows.size),
            bias,
            None if owner.activation is None else owner.activation.data,
        )
        self.parted |= {one.symbol for one in (declared,)}
        if owner.bias is not None:
            self.parted.add(owner.bias.root_reference.data)
        return Vector(self.emit(op).output, value.dims)

    def table_values(self, symbol: str) -> npt.NDArray[np.float32]:
        """The elements of a declared table of floats."""
        source = self._declared_by(symbol).parameter.source
        assert isinstance(source, DenseSource)
        return source.values(0, source.dims[0])

    def _declared_by(self, symbol: str) -> Declared:
        return next(one for one in self.declared.values() if one.symbol == symbol)

    def made(self, node: Node, name: str, values: npt.NDArray[np.float32], role: Role) -> str:
        """Declares a vector that the graph does not hold; gives its symbol.

        Args:
            node: where it is needed.
            name: says, with the length, which elements it has.
            values: the elements.
            role: of the vector.
        """
        size = values.size
        tensor = Tensor(f"{name}_{size}", "FLOAT", (size,), lambda: values.view(np.uint8))
        stored = self.engraved.setdefault(tensor.name, Stored(tensor, (size,)))
        return self.dense_value(node, stored, (size,), role)

    def without_gamma(self, node: Node, part: NormPart) -> Vector:
        """A norm that nothing is multiplied with."""
        x = part.input
        width = x.dims[-1].constant
        if width is None:
            raise Refusal("the last axis of a norm varies in length")
        gamma = self.made(node, "ones", np.ones(width, np.float32), GAMMA)
        return self.norm(part, gamma, width, part.names)

    def norm(self, part: NormPart, gamma: str, width: int, names: Iterable[str]) -> Vector:
        """Emits the norm that a part has become, over a last axis of `width` elements."""
        x, eps, onnx = part.input, real(part.eps), rom.nodes(*names)
        if part.centred:
            self.whole_row(x)
            op = rom.LayerNormOp(x.ssa, gamma, None, eps, onnx)
        else:
            op = rom.RMSNormOp(x.ssa, gamma, eps, onnx, groups=x.size // width)
        return Vector(self.emit(op).output, x.dims)

    def row(self, node: Node, i: int, size: int, what: str) -> Vector:
        """Input i as an activation whose last axis holds all `size` elements of a token."""
        x = self.vector(node, i)
        self.whole_row(x)
        if x.size != size:
            raise Refusal(f"input {i} has {x.size} elements a token, {what} needs {size}")
        return x

    def whole_row(self, x: Vector) -> None:
        """Checks that the last axis holds all elements of a token.

        Raises:
            Refusal: it does not.
        """
        if not x.dims or x.dims[-1] != x.size:
            raise Refusal(f"the last axis of {dims_text(x.dims)} does not hold all of a token")

    def same_dims(self, a: Vector, b: Vector) -> None:
        """Checks that two activations have one shape.

        Raises:
            Refusal: they do not.
        """
        if a.dims != b.dims:
            raise Refusal(
                f"shapes {dims_text(a.dims)} and {dims_text(b.dims)} differ; broadcasting between "
                "activations is not supported"
            )

    def single_use(self, name: str) -> bool:
        """Whether one node alone reads the value."""
        return self.graph.uses(name) == 1

    # --- operations -----------------------------------------------------------------------------

    def emit(self, op: _Op) -> _Op:
        """Appends an operation."""
        self.block.add_op(op)
        return op

    def result(self, node: Node, ssa: SSAValue, dims: Dims, i: int = 0) -> None:
        """Binds output i of a node."""
        self.bind(node, Vector(ssa, dims), i)

    def bind(self, node: Node, value: Value, i: int = 0) -> None:
        """Binds output i of a node to a value of any kind."""
        if node.output(i):
            self.values[node.output(i)] = value

    def linear(
        self,
        node: Node,
        x: Vector,
        parameter: Parameter,
        bias: str | None = None,
        *,
        activation: str | None = None,
        before: Iterable[str] = (),
    ) -> Vector:
        """y = W x + b; with `activation` the graph rounds x to it, by the nodes `before`."""
        n = parameter.source.dims[0]
        adapter = node.index in self.adapters
        if adapter:
            parameter = weights.of_adapter(parameter)
        weights_name = self.declare(node, parameter, adapter=adapter)
        names = rom.nodes(*dict.fromkeys([*before, node.name]))
        op = self.emit(
            rom.LinearOp(x.ssa, weights_name, names, rom.float_vector(n), bias, activation)
        )
        return Vector(op.output, (*x.dims[:-1], expression(n)))

    def dense(self, node: Node, i: int, dims: tuple[int, ...], role: Role) -> str:
        """Declares constant input i as a dense tensor of the given shape; gives its symbol."""
        value = self.values.get(node.input(i)) if node.input(i) else None
        if isinstance(value, Unknown):
            raise Blocked
        return self.dense_value(node, value, dims, role)

    def dense_value(
        self, node: Node, value: Value | None, dims: tuple[int, ...], role: Role
    ) -> str:
        """Declares a constant as a dense tensor of the given shape; gives its symbol."""
        what = role.what
        if not isinstance(value, Stored | Computed):
            kind = kind_of(value)
            raise Refusal(f"{what} must be a constant of the model; here it is {kind}")
        if (
            isinstance(value, Stored)
            and len(dims) == 1
            and value.tensor.size == dims[0]
            and value.dims != dims
        ):
            value = Stored(value.tensor, dims)
        if value.dims != dims:
            raise Refusal(f"{what} has shape {list(value.dims)}, expected {list(dims)}")
        return self.declare(node, weights.dense(value, what), form=role.form)

    # --- symbols --------------------------------------------------------------------------------

    def unique(self, name: str) -> str:
        """A symbol nobody has, made from a name."""
        base = identifier(name)
        symbol, count = base, 1
        while symbol in self.symbols:
            count += 1
            symbol = f"{base}_{count}"
        self.symbols.add(symbol)
        return symbol

    def declare(
        self, node: Node, parameter: Parameter, *, adapter: bool = False, form: str = ""
    ) -> str:
        """Declares a parameter once for each form (see `Role`); gives its symbol.

        Raises:
            Refusal: it has no elements.
        """
        if not all(parameter.source.dims):
            shape = list(parameter.source.dims)
            raise Refusal(f"tensor '{parameter.names[0]}' has the shape {shape}, no elements")
        identity = (*parameter.identity, form, adapter)
        if identity not in self.declared:
            name = parameter.names[0]
            if form and any(
                one.parameter.identity == parameter.identity for one in self.declared.values()
            ):
                name = f"{name}_{form}"
            if node.scopes and _ANONYMOUS.fullmatch(name):
                name = node.scopes[0]
            symbol = self.unique(self._by_role(name))
            if not adapter:
                parameter = narrowed(parameter, self.codes)
            self.declared[identity] = Declared(symbol, parameter, adapter, node, form)
        return self.declared[identity].symbol

    def _by_role(self, name: str) -> str:
        """A name for a tensor; where an embedding has it already, one that says which is which.

        Embedding and head may be one tensor of the model in two forms. What exporters name it after
        is one of the two, and a number would not say which.
        """
        base = identifier(name)
        tables = [op for op in self.block.ops if isinstance(op, rom.RowOp)]
        taken = [op for op in tables if op.table.root_reference.data == base]
        if not taken:
            return name
        if _EMBEDDING.search(base):
            # A row for each token: the product with it gives the logits.
            return f"{base}_head"
        symbol = self.unique(f"{base}_embedding")
        for op in taken:
            op.properties["table"] = SymbolRefAttr(symbol)
        for declared in self.declared.values():
            if declared.symbol == base:
                declared.symbol = symbol
        self.symbols.discard(base)
        return name

    def quantised(self, node: Node, parameter: Parameter) -> None:
        """Notes what was quantised on request, for the graph that onnxruntime judges.

        Raises:
            Refusal: the node is none of the graph's own, which alone can be written anew.
        """
        if node.calls:
            raise Refusal(
                f"its floating-point weights are multiplied inside of a function or branch "
                f"('{node.calls[-1]}'), where --weights cannot quantise them",
                "export the model without functions of its own, or with quantised weights",
            )
        self.rounded[node.outputs[0]] = parameter

    def replace_parameter(
        self, symbol: str, change: Callable[[Parameter], Parameter], name: str
    ) -> str:
        """Changes what a symbol stands for, where nothing else uses it; gives the symbol.

        A symbol made from a name without meaning (such as torch's `val_84`) gives way to `name`.
        """
        for identity, declared in self.declared.items():
            if declared.symbol == symbol:
                del self.declared[identity]
                declared.parameter = change(declared.parameter)
                changed = declared.identity
                if changed in self.declared:
                    # Another product has the same matrix with the same scale.
                    return self.declared[changed].symbol
                if name and _ANONYMOUS.fullmatch(declared.parameter.names[0]):
                    declared.symbol = self.unique(name)
                self.declared[changed] = declared
                return declared.symbol
        raise CompilerBug(f"@{symbol} is not declared")

    def split_parameter(self, symbol: str, sizes: Sequence[int]) -> list[str]:
        """Puts parts of its rows in the place of a matrix of one use; gives their symbols."""
        for identity, declared in self.declared.items():
            if declared.symbol == symbol:
                del self.declared[identity]
                starts = [sum(sizes[:i]) for i in range(len(sizes))]
                return [
                    self.declare(
                        declared.node,
                        weights.rows(declared.parameter, first, count),
                        adapter=declared.adapter,
                    )
                    for first, count in zip(starts, sizes, strict=True)
                ]
        raise CompilerBug(f"@{symbol} is not declared")

    def cache(self, past: str, heads: int, width: int, fmt: str, static_scale: float | None) -> str:
        """Declares the cache behind a past input; gives its symbol.

        Raises:
            Refusal: another node has it already.
        """
        if past in self.caches:
            raise Refusal(
                f"'{past}' is written by another attention node too; one that reads it takes what "
                "the other gives back"
            )
        symbol = self.unique(past)
        self.caches[past] = Cache(symbol, heads, width, fmt, static_scale)
        return symbol

    def state(
        self, past: str, type_: rom.StateType | rom.MatricesType, count: int = 1
    ) -> list[str]:
        """Declares the states of a type behind a past input; gives their symbols.

        Raises:
            Refusal: another node has them already.
        """
        if past in self.states:
            raise Refusal(f"the state '{past}' belongs to another node too")
        single = isinstance(type_, rom.MatricesType)
        names = [past] if single else [f"{past}.{number}" for number in range(1, count + 1)]
        symbols = [self.unique(name) for name in names]
        self.states[past] = [(symbol, type_) for symbol in symbols]
        return symbols


def names_of(op: Operation) -> Iterable[str]:
    """Names of the ONNX nodes an operation stands for."""
    assert isinstance(op, rom.OperatorOp)
    return [name.data for instance in op.onnx for name in instance]


def merged(*parts: Operation | str) -> rom.Nodes:
    """The `onnx` property of an operation that stands for several others and named nodes."""
    names: dict[str, None] = {}
    for part in parts:
        for name in [part] if isinstance(part, str) else names_of(part):
            names[name] = None
    return rom.nodes(*names)


def real(value: float) -> FloatAttr:
    """A float-stage constant.

    Raises:
        Refusal: it is infinite or no number.
    """
    if not math.isfinite(value):
        raise Refusal(f"one of its constants is {value}, not a finite number")
    return FloatAttr(value, 64)


Convert = Callable[[Step, Node], None]
"""Emits the operations of a node and binds its outputs."""
