"""Operators that stand in both stages, and those that legalisation takes apart."""

from __future__ import annotations

from xdsl.dialects.builtin import (
    I64,
    FloatAttr,
    IntegerAttr,
    StringAttr,
    SymbolRefAttr,
    UnitAttr,
    i32,
    i64,
)
from xdsl.ir import Attribute, Operation, SSAValue
from xdsl.irdl import (
    AnyOf,
    BaseAttr,
    irdl_op_definition,
    operand_def,
    opt_operand_def,
    opt_prop_def,
    prop_def,
    result_def,
    traits_def,
)
from xdsl.traits import MemoryReadEffect, MemoryWriteEffect, Pure
from xdsl.utils.exceptions import VerifyException

from intaglio.dialects.formulas.elementwise import ACTIVATIONS
from intaglio.dialects.plain import PlainOp
from intaglio.dialects.rom.buffers import resolved_type
from intaglio.dialects.rom.types import (
    ACTIVATION_CODES,
    POSITION,
    REAL,
    SYMBOL,
    TOKEN,
    VECTOR,
    AdapterType,
    FixedType,
    KVType,
    Nodes,
    QuantizedType,
    RealAttr,
    ROMTensorType,
    StateType,
    vector_size,
)


class OperatorOp(PlainOp):
    """Base of every operator: it carries the names of the ONNX nodes that it stands for."""

    onnx = prop_def(Nodes)


def same_size(op: Operation, *values: SSAValue) -> int:
    """The size that all values have; VerifyException where they differ."""
    sizes = {vector_size(value.type) for value in values}
    if len(sizes) != 1:
        found = ", ".join(str(vector_size(v.type)) for v in values)
        raise VerifyException(f"{op.name}: values must have equal sizes, found {found}")
    return sizes.pop()


class RowOp(OperatorOp):
    """Base of what reads a row of a table."""

    table = prop_def(SYMBOL)
    output = result_def(VECTOR)
    traits = traits_def(Pure())

    def __init__(self, number: SSAValue, table: str, onnx: Nodes, output: Attribute) -> None:
        self._build([number], [output], table=table, onnx=onnx)

    def verify_(self) -> None:
        """The row has the table's width."""
        table = resolved_type(self, self.table, ROMTensorType)
        if table.dims[-1] != vector_size(self.output.type):
            raise VerifyException(
                f"rows of @{self.table.root_reference.data} have {table.dims[-1]} elements, "
                f"the result has {vector_size(self.output.type)}"
            )
        if table.offsets.data:
            raise VerifyException(f"@{self.table.root_reference.data}: a table has no offsets")


@irdl_op_definition
class EmbedOp(RowOp):
    """Reads a token's row (ONNX Gather, com.microsoft.GatherBlockQuantized).

    Example:
    ```
    %x = rom.embed %token of @embedding {onnx = [["Gather"]]} : tensor<64xf32>
    ```
    """

    name = "rom.embed"
    token = operand_def(TOKEN)
    assembly_format = "$token `of` $table attr-dict `:` type($output)"


@irdl_op_definition
class EmbedPositionOp(RowOp):
    """Reads the row of the token's position: learned positions (ONNX Gather by position ids).

    Example:
    ```
    %x = rom.embed_position %position of @positions {onnx = [["Gather"]]} : tensor<64xf32>
    ```
    """

    name = "rom.embed_position"
    position = operand_def(POSITION)
    assembly_format = "$position `of` $table attr-dict `:` type($output)"


@irdl_op_definition
class LinearOp(OperatorOp):
    """y = W x + b, of the float stage (MatMulNBits, MatMul on DequantizeLinear, Gemm).

    W is [N, K]: row n gives y[n]. Legalisation turns it into quantize, dot, requantize. With
    `activation` the graph itself rounds x to that format, one scale a token: y = W round(x) + b.

    Example:
    ```
    %y = rom.linear %x by @q_proj bias @q_bias {onnx = [["MatMul"]]}
        : tensor<64xf32> -> tensor<96xf32>
    ```
    """

    name = "rom.linear"
    input = operand_def(VECTOR)
    weights = prop_def(SYMBOL)
    bias = opt_prop_def(SYMBOL)
    activation = opt_prop_def(StringAttr)
    output = result_def(VECTOR)
    assembly_format = (
        "$input `by` $weights (`bias` $bias^)? attr-dict `:` type($input) `->` type($output)"
    )
    traits = traits_def(Pure())

    def __init__(
        self,
        x: SSAValue,
        weights: str,
        onnx: Nodes,
        output: Attribute,
        bias: str | None = None,
        activation: str | None = None,
    ) -> None:
        self._build([x], [output], weights=weights, bias=bias, activation=activation, onnx=onnx)

    def verify_(self) -> None:
        """Shapes agree; the activation's format is known."""
        if self.activation is not None and self.activation.data not in ACTIVATION_CODES:
            raise VerifyException(
                f"unknown format '{self.activation.data}', known are {', '.join(ACTIVATION_CODES)}"
            )
        verify_matrix(
            self,
            self.weights,
            self.bias,
            vector_size(self.input.type),
            vector_size(self.output.type),
        )


def verify_matrix(
    op: Operation, weights: SymbolRefAttr, bias: SymbolRefAttr | None, size: int, rows: int
) -> None:
    """A matrix is [rows, size] and its bias [rows]; VerifyException where not."""
    type_ = resolved_type(op, weights, ROMTensorType, AdapterType)
    if type_.dims != (rows, size):
        raise VerifyException(
            f"@{weights.root_reference.data} has shape {list(type_.dims)}, "
            f"the operation needs [{rows}, {size}]"
        )
    if bias is not None:
        found = resolved_type(op, bias, ROMTensorType)
        if found.dims != (rows,):
            raise VerifyException(
                f"bias @{bias.root_reference.data} has shape {list(found.dims)}, "
                f"the operation needs [{rows}]"
            )


@irdl_op_definition
class RMSNormOp(OperatorOp):
    """y = x / sqrt(mean(x^2) + eps) * gamma in each of `groups` equal parts.

    ONNX SimplifiedLayerNormalization, RMSNormalization; `groups` > 1 is the norm of each head of
    a query or key. Gamma has the size of one group.

    Example:
    ```
    %y = rom.rms_norm %x by @gamma {eps = 1.0e-05 : f64, onnx = [["norm"]]}
        : tensor<64xf32> -> tensor<64xf32>
    ```
    """

    name = "rom.rms_norm"
    input = operand_def(VECTOR)
    gamma = prop_def(SYMBOL)
    eps = prop_def(REAL)
    groups = prop_def(IntegerAttr[I64], default_value=IntegerAttr(1, i64))
    output = result_def(VECTOR)
    assembly_format = "$input `by` $gamma attr-dict `:` type($input) `->` type($output)"
    traits = traits_def(Pure())

    def __init__(
        self,
        x: SSAValue,
        gamma: str,
        eps: Attribute,
        onnx: Nodes,
        groups: int = 1,
        output: Attribute | None = None,
    ) -> None:
        self._build(
            [x],
            [output or x.type],
            gamma=gamma,
            eps=eps,
            groups=groups,
            onnx=onnx,
        )

    def verify_(self) -> None:
        """Gamma fits the groups."""
        size = same_size(self, self.input, self.output)
        _verify_norm(self, size, self.groups.value.data, self.gamma)


def _verify_norm(op: Operation, size: int, groups: int, *vectors: SymbolRefAttr) -> None:
    if groups < 1 or size % groups:
        raise VerifyException(f"{size} elements do not divide into {groups} groups")
    for vector in vectors:
        type_ = resolved_type(op, vector, ROMTensorType)
        if type_.dims != (size // groups,):
            raise VerifyException(
                f"@{vector.root_reference.data} has shape {list(type_.dims)}, "
                f"the norm needs [{size // groups}]"
            )


@irdl_op_definition
class LayerNormOp(OperatorOp):
    """y = (x - mean(x)) / sqrt(var(x) + eps) * gamma + beta (ONNX LayerNormalization).

    Example:
    ```
    %y = rom.layer_norm %x by @gamma, @beta {eps = 1.0e-05 : f64, onnx = [["norm"]]}
        : tensor<64xf32> -> tensor<64xf32>
    ```
    """

    name = "rom.layer_norm"
    input = operand_def(VECTOR)
    gamma = prop_def(SYMBOL)
    beta = opt_prop_def(SYMBOL)
    eps = prop_def(REAL)
    output = result_def(VECTOR)
    assembly_format = (
        "$input `by` $gamma (`,` $beta^)? attr-dict `:` type($input) `->` type($output)"
    )
    traits = traits_def(Pure())

    def __init__(
        self,
        x: SSAValue,
        gamma: str,
        beta: str | None,
        eps: Attribute,
        onnx: Nodes,
        output: Attribute | None = None,
    ) -> None:
        self._build([x], [output or x.type], gamma=gamma, beta=beta, eps=eps, onnx=onnx)

    def verify_(self) -> None:
        """Gamma and beta fit."""
        size = same_size(self, self.input, self.output)
        vectors = [self.gamma] if self.beta is None else [self.gamma, self.beta]
        _verify_norm(self, size, 1, *vectors)


@irdl_op_definition
class RotaryOp(OperatorOp):
    """Rotates pairs of each head by the position's angles (RotaryEmbedding; inside GQA).

    Pairs are (i, i + rotary_dim/2), or (2i, 2i+1) with `interleaved`; elements from `rotary_dim`
    on pass unchanged. `cos` and `sin` are tables [positions, rotary_dim/2].

    Example:
    ```
    %y = rom.rotary %x at %position by @cos, @sin
        {heads = 4 : i64, rotary_dim = 16 : i64, onnx = [["GQA"]]}
        : tensor<64xf32> -> tensor<64xf32>
    ```
    """

    name = "rom.rotary"
    input = operand_def(VECTOR)
    position = operand_def(POSITION)
    cos = prop_def(SYMBOL)
    sin = prop_def(SYMBOL)
    heads = prop_def(IntegerAttr[I64])
    rotary_dim = prop_def(IntegerAttr[I64])
    interleaved = opt_prop_def(UnitAttr)
    output = result_def(VECTOR)
    assembly_format = (
        "$input `at` $position `by` $cos `,` $sin attr-dict `:` type($input) `->` type($output)"
    )
    traits = traits_def(Pure())

    def __init__(
        self,
        x: SSAValue,
        position: SSAValue,
        cos: str,
        sin: str,
        onnx: Nodes,
        *,
        heads: int,
        rotary_dim: int,
        interleaved: bool = False,
    ) -> None:
        self._build(
            [x, position],
            [x.type],
            cos=cos,
            sin=sin,
            heads=heads,
            rotary_dim=rotary_dim,
            interleaved=interleaved,
            onnx=onnx,
        )

    def verify_(self) -> None:
        """Heads divide the vector; the tables have the right width."""
        size = same_size(self, self.input, self.output)
        heads, width = self.heads.value.data, self.rotary_dim.value.data
        if heads < 1 or size % heads:
            raise VerifyException(f"{size} elements do not divide into {heads} heads")
        if width % 2 or width > size // heads:
            raise VerifyException(
                f"rotary_dim {width} must be even and at most the head width {size // heads}"
            )
        for table in (self.cos, self.sin):
            type_ = resolved_type(self, table, ROMTensorType)
            if len(type_.dims) != 2 or type_.dims[1] != width // 2:
                raise VerifyException(
                    f"@{table.root_reference.data} has shape {list(type_.dims)}, "
                    f"rotary_dim {width} needs [positions, {width // 2}]"
                )


@irdl_op_definition
class AppendOp(OperatorOp):
    """Writes the token's keys or values into a cache.

    Of the float stage it takes the vector of all heads, of the integer stage one quantised group a
    head.

    Example:
    ```
    rom.append %k to @k0 at %position {onnx = [["GQA"]]} : tensor<32xf32>
    ```
    """

    name = "rom.append"
    input = operand_def(AnyOf((VECTOR, BaseAttr(QuantizedType))))
    position = operand_def(POSITION)
    cache = prop_def(SYMBOL)
    assembly_format = "$input `to` $cache `at` $position attr-dict `:` type($input)"
    traits = traits_def(MemoryWriteEffect())

    def __init__(self, x: SSAValue, cache: str, position: SSAValue, onnx: Nodes) -> None:
        self._build([x, position], cache=cache, onnx=onnx)

    def verify_(self) -> None:
        """The vector holds every head of the cache, quantised in its format."""
        cache = resolved_type(self, self.cache, KVType)
        type_ = self.input.type
        size = type_.size if isinstance(type_, QuantizedType) else vector_size(type_)
        wanted = cache.heads.data * cache.width.data
        if size != wanted:
            raise VerifyException(
                f"@{self.cache.root_reference.data} takes {wanted} elements a token, not {size}"
            )
        if isinstance(type_, QuantizedType) and (
            (type_.groups, type_.format) != (cache.heads, cache.format)
        ):
            raise VerifyException(
                f"@{self.cache.root_reference.data} takes {cache.heads.data} groups of "
                f"{cache.format.data}, not {type_.groups.data} of {type_.format.data}"
            )


@irdl_op_definition
class AttentionOp(OperatorOp):
    """softmax(q k^T * scale) v over the cached tokens, of the float stage (GroupQueryAttention).

    Head h reads KV head h // (heads // kv heads). `window` > 0 limits it to the last `window`
    tokens, this one included; `softcap` > 0 maps scores s to softcap * tanh(s / softcap). `slopes`
    has a number for each head: what a score loses after that for each token that its key lies
    before the query (ALiBi). `sink` has one too: the score of a token without a value, which no
    cap, slope or window changes.

    Example:
    ```
    %y = rom.attention %q over @k0, @v0 at %position
        {heads = 4 : i64, scale = 0.25 : f64, onnx = [["GQA"]]}
        : tensor<64xf32> -> tensor<64xf32>
    ```
    """

    name = "rom.attention"
    query = operand_def(VECTOR)
    position = operand_def(POSITION)
    keys = prop_def(SYMBOL)
    values = prop_def(SYMBOL)
    heads = prop_def(IntegerAttr[I64])
    scale = prop_def(FloatAttr)
    softcap = opt_prop_def(FloatAttr)
    window = opt_prop_def(IntegerAttr[I64])
    sink = opt_prop_def(SYMBOL)
    slopes = opt_prop_def(SYMBOL)
    output = result_def(VECTOR)
    assembly_format = (
        "$query `over` $keys `,` $values `at` $position attr-dict"
        " `:` type($query) `->` type($output)"
    )
    traits = traits_def(MemoryReadEffect())

    def __init__(
        self,
        query: SSAValue,
        keys: str,
        values: str,
        position: SSAValue,
        onnx: Nodes,
        *,
        heads: int,
        scale: float,
        softcap: float = 0.0,
        window: int = 0,
        sink: str | None = None,
        slopes: str | None = None,
        output: Attribute | None = None,
    ) -> None:
        self._build(
            [query, position],
            [output or query.type],
            keys=keys,
            values=values,
            heads=heads,
            scale=scale,
            softcap=softcap if softcap else None,
            window=window if window > 0 else None,
            sink=sink,
            slopes=slopes,
            onnx=onnx,
        )

    def verify_(self) -> None:
        """Query heads are a multiple of KV heads of the same width."""
        keys = resolved_type(self, self.keys, KVType)
        values = resolved_type(self, self.values, KVType)
        heads = self.heads.value.data
        verify_heads(heads, keys)
        verify_heads(heads, values)
        verify_of_heads(self, self.sink, heads, "sink")
        verify_of_heads(self, self.slopes, heads, "slopes")
        for value, cache in ((self.query, keys), (self.output, values)):
            if vector_size(value.type) != heads * cache.width.data:
                raise VerifyException(
                    f"{heads} heads of width {cache.width.data} need {heads * cache.width.data} "
                    f"elements, found {vector_size(value.type)}"
                )


def verify_of_heads(op: Operation, given: SymbolRefAttr | None, heads: int, what: str) -> None:
    """Sinks and slopes are one number a head; VerifyException where not."""
    if given is None:
        return
    dims = resolved_type(op, given, ROMTensorType).dims
    if dims != (heads,):
        raise VerifyException(
            f"{what} @{given.root_reference.data} has shape {list(dims)}, the heads need [{heads}]"
        )


def verify_heads(heads: int, cache: KVType) -> None:
    """Query heads are a multiple of a cache's; VerifyException where not."""
    if heads < 1 or heads % cache.heads.data:
        raise VerifyException(
            f"{heads} query heads are not a multiple of {cache.heads.data} KV heads"
        )


class _UnaryOp(OperatorOp):
    input = operand_def(VECTOR)
    output = result_def(VECTOR)
    assembly_format = "$input attr-dict `:` type($input) `->` type($output)"
    traits = traits_def(Pure())

    def verify_(self) -> None:
        """All sizes are equal."""
        same_size(self, self.input, self.output)


@irdl_op_definition
class ActivateOp(_UnaryOp):
    """An activation function of each element; `kind` is one of `elementwise.ACTIVATIONS`.

    Example:
    ```
    %y = rom.activate %x {kind = "silu", onnx = [["Sigmoid", "Mul"]]}
        : tensor<64xf32> -> tensor<64xf32>
    ```
    """

    name = "rom.activate"
    kind = prop_def(StringAttr)

    def __init__(
        self, x: SSAValue, kind: str, onnx: Nodes, output: Attribute | None = None
    ) -> None:
        self._build([x], [output or x.type], kind=kind, onnx=onnx)

    def verify_(self) -> None:
        """All sizes are equal; the kind is known."""
        same_size(self, self.input, self.output)
        if self.kind.data not in ACTIVATIONS:
            raise VerifyException(
                f"unknown activation '{self.kind.data}', known are {', '.join(ACTIVATIONS)}"
            )


class _BinaryOp(OperatorOp):
    lhs = operand_def(VECTOR)
    rhs = operand_def(VECTOR)
    output = result_def(VECTOR)
    assembly_format = "$lhs `,` $rhs attr-dict `:` type($lhs) `,` type($rhs) `->` type($output)"
    traits = traits_def(Pure())

    def __init__(
        self, lhs: SSAValue, rhs: SSAValue, onnx: Nodes, output: Attribute | None = None
    ) -> None:
        self._build([lhs, rhs], [output or lhs.type], onnx=onnx)

    def verify_(self) -> None:
        """All sizes are equal."""
        same_size(self, self.lhs, self.rhs, self.output)


@irdl_op_definition
class AddOp(_BinaryOp):
    """x + y of each element, saturating in the integer stage.

    Example:
    ```
    %z = rom.add %x, %y {onnx = [["Add"]]} : tensor<64xf32>, tensor<64xf32> -> tensor<64xf32>
    ```
    """

    name = "rom.add"


@irdl_op_definition
class MulOp(_BinaryOp):
    """x * y of each element.

    Example:
    ```
    %z = rom.mul %x, %y {onnx = [["Mul"]]} : tensor<64xf32>, tensor<64xf32> -> tensor<64xf32>
    ```
    """

    name = "rom.mul"


@irdl_op_definition
class TapOp(OperatorOp):
    """x * w of each element, plus an addend or a bias: a tap of a depthwise convolution.

    The weights are a constant vector. ONNX CausalConvWithState is one for each tap, each `onto`
    the one before; the bias is that of the first.

    Example:
    ```
    %y = rom.tap %x by @w2 onto %a {onnx = [["Conv"]]}
        : tensor<64xf32>, tensor<64xf32> -> tensor<64xf32>
    ```
    """

    name = "rom.tap"
    input = operand_def(VECTOR)
    addend = opt_operand_def(VECTOR)
    weights = prop_def(SYMBOL)
    bias = opt_prop_def(SYMBOL)
    output = result_def(VECTOR)
    assembly_format = (
        "$input `by` $weights (`bias` $bias^)? (`onto` $addend^)? attr-dict"
        " `:` type($input) (`,` type($addend)^)? `->` type($output)"
    )
    traits = traits_def(Pure())

    def __init__(
        self,
        x: SSAValue,
        weights: str,
        onnx: Nodes,
        *,
        bias: str | None = None,
        addend: SSAValue | None = None,
        output: Attribute | None = None,
    ) -> None:
        self._build([x, addend], [output or x.type], weights=weights, bias=bias, onnx=onnx)

    def verify_(self) -> None:
        """Sizes agree; what is added has the result's fraction bits, and is one thing."""
        added = [] if self.addend is None else [self.addend]
        size = same_size(self, self.input, *added, self.output)
        for symbol in (self.weights, self.bias):
            if symbol is None:
                continue
            type_ = resolved_type(self, symbol, ROMTensorType)
            if type_.dims != (size,):
                raise VerifyException(
                    f"@{symbol.root_reference.data} has shape {list(type_.dims)}, "
                    f"the operation needs [{size}]"
                )
        if self.addend is None:
            return
        if self.bias is not None:
            raise VerifyException("rom.tap adds a bias or another value, not both")
        if self.addend.type != self.output.type:
            raise VerifyException("rom.tap: the addend and the result must have equal types")


@irdl_op_definition
class DelayOp(OperatorOp):
    """The value that the last token had here; zeros at position 0. This token's is kept.

    A state holds it from token to token. K - 1 of them, one behind the other, give the taps of a
    convolution over the last K tokens (ONNX CausalConvWithState).

    Example:
    ```
    %y = rom.delay %x in @c0 at %position {onnx = [["Conv"]]}
        : tensor<64xf32> -> tensor<64xf32>
    ```
    """

    name = "rom.delay"
    input = operand_def(VECTOR)
    position = operand_def(POSITION)
    state = prop_def(SYMBOL)
    output = result_def(VECTOR)
    assembly_format = (
        "$input `in` $state `at` $position attr-dict `:` type($input) `->` type($output)"
    )
    traits = traits_def(MemoryReadEffect(), MemoryWriteEffect())

    def __init__(self, x: SSAValue, state: str, position: SSAValue, onnx: Nodes) -> None:
        self._build([x, position], [x.type], state=state, onnx=onnx)

    def verify_(self) -> None:
        """The state holds a value of this size; what comes out is in the format of what went in."""
        state = resolved_type(self, self.state, StateType)
        size = same_size(self, self.input, self.output)
        if state.size.data != size:
            raise VerifyException(
                f"@{self.state.root_reference.data} holds {state.size.data} elements, not {size}"
            )
        given, kept = self.input.type, self.output.type
        if isinstance(given, FixedType) and given != kept:
            raise VerifyException("rom.delay: input and result must have equal types")


@irdl_op_definition
class ScaleOp(_UnaryOp):
    """x * factor of each element.

    Example:
    ```
    %y = rom.scale %x {factor = 8.0 : f64, onnx = [["Mul"]]} : tensor<64xf32> -> tensor<64xf32>
    ```
    """

    name = "rom.scale"
    factor = prop_def(REAL)

    def __init__(
        self, x: SSAValue, factor: Attribute, onnx: Nodes, output: Attribute | None = None
    ) -> None:
        self._build([x], [output or x.type], factor=factor, onnx=onnx)


@irdl_op_definition
class SoftcapOp(_UnaryOp):
    """cap * tanh(x / cap) of each element (Gemma 2's final logits).

    Example:
    ```
    %y = rom.softcap %x {cap = 30.0 : f64, onnx = [["Div", "Tanh", "Mul"]]}
        : tensor<64xf32> -> tensor<64xf32>
    ```
    """

    name = "rom.softcap"
    cap = prop_def(REAL)
    inverse = opt_prop_def(RealAttr)
    """1 / cap, in the integer stage."""

    def __init__(
        self,
        x: SSAValue,
        cap: Attribute,
        onnx: Nodes,
        inverse: RealAttr | None = None,
        output: Attribute | None = None,
    ) -> None:
        self._build([x], [output or x.type], cap=cap, inverse=inverse, onnx=onnx)


@irdl_op_definition
class ClipOp(_UnaryOp):
    """Each element, at least `low` and at most `high`; a bound that is not said is none.

    Example:
    ```
    %y = rom.clip %x {low = -7.0 : f64, high = 7.0 : f64, onnx = [["QMoE"]]}
        : tensor<64xf32> -> tensor<64xf32>
    ```
    """

    name = "rom.clip"
    low = opt_prop_def(REAL)
    high = opt_prop_def(REAL)

    def __init__(
        self,
        x: SSAValue,
        onnx: Nodes,
        low: Attribute | None = None,
        high: Attribute | None = None,
        output: Attribute | None = None,
    ) -> None:
        self._build([x], [output or x.type], low=low, high=high, onnx=onnx)


@irdl_op_definition
class SliceOp(OperatorOp):
    """A contiguous part of a vector (Split, packed QKV).

    Example:
    ```
    %q = rom.slice %qkv from 0 {onnx = [["Split"]]} : tensor<128xf32> -> tensor<64xf32>
    ```
    """

    name = "rom.slice"
    input = operand_def(VECTOR)
    offset = prop_def(IntegerAttr[I64])
    output = result_def(VECTOR)
    assembly_format = "$input `from` $offset attr-dict `:` type($input) `->` type($output)"
    traits = traits_def(Pure())

    def __init__(self, x: SSAValue, offset: int, onnx: Nodes, output: Attribute) -> None:
        self._build([x], [output], offset=offset, onnx=onnx)

    def verify_(self) -> None:
        """The part lies inside."""
        first, size = self.offset.value.data, vector_size(self.output.type)
        if first < 0 or first + size > vector_size(self.input.type):
            raise VerifyException(
                f"elements {first} to {first + size} do not lie inside "
                f"{vector_size(self.input.type)}"
            )


@irdl_op_definition
class SampleOp(OperatorOp):
    """The first index of the largest logit (greedy).

    Example:
    ```
    %next = rom.sample %logits {onnx = [["lm_head"]]} : tensor<256xf32>
    ```
    """

    name = "rom.sample"
    input = operand_def(VECTOR)
    token = result_def(TOKEN)
    assembly_format = "$input attr-dict `:` type($input)"
    traits = traits_def(Pure())

    def __init__(self, x: SSAValue, onnx: Nodes) -> None:
        self._build([x], [i32], onnx=onnx)
