"""Operators of the integer stage: where rounding happens."""

from __future__ import annotations

from xdsl.dialects.builtin import I64, IntegerAttr
from xdsl.ir import Attribute, SSAValue
from xdsl.irdl import (
    AttrSizedOperandSegments,
    irdl_op_definition,
    operand_def,
    opt_operand_def,
    opt_prop_def,
    prop_def,
    result_def,
    traits_def,
)
from xdsl.traits import MemoryReadEffect, Pure
from xdsl.utils.exceptions import VerifyException

from intaglio.dialects.fixed_point import Real
from intaglio.dialects.formats import ACCUMULATOR_BITS, FORMATS, HEAD_FORMATS, SLOT_SCALE_BITS
from intaglio.dialects.formulas.blocks import LEAST_AT_MOST, least_exponent
from intaglio.dialects.formulas.norms import norm_epsilon
from intaglio.dialects.rom.buffers import resolve, resolved_type
from intaglio.dialects.rom.operators import OperatorOp, verify_heads, verify_matrix, verify_of_heads
from intaglio.dialects.rom.types import (
    ACTIVATION_CODES,
    MULTIPLIED,
    POSITION,
    PROBABILITY_CODES,
    SCALE,
    SYMBOL,
    AccumulatorType,
    AdapterType,
    BlocksType,
    FixedType,
    KVType,
    Nodes,
    ProbabilitiesType,
    QuantizedType,
    RealAttr,
    ScaleType,
    ScoresType,
    vector_size,
)


@irdl_op_definition
class QuantizeOp(OperatorOp):
    """Codes with one scale a group, chosen by its largest magnitude; or the scale of a cache.

    Example:
    ```
    %q = rom.quantize %x {onnx = [["MatMul"]]} : !rom.fixed<64, 16> -> !rom.quantized<1, 64, int8>
    %k = rom.quantize %y for @k0 {onnx = [["GQA"]]}
        : !rom.fixed<32, 16> -> !rom.quantized<2, 16, int8>
    ```
    """

    name = "rom.quantize"
    input = operand_def(FixedType)
    cache = opt_prop_def(SYMBOL)
    output = result_def(QuantizedType)
    assembly_format = "$input (`for` $cache^)? attr-dict `:` type($input) `->` type($output)"
    traits = traits_def(Pure())

    def __init__(
        self, x: SSAValue, output: QuantizedType, onnx: Nodes, cache: str | None = None
    ) -> None:
        self._build([x], [output], cache=cache, onnx=onnx)

    def verify_(self) -> None:
        """Groups cover the vector; the format is known; a cache has a static scale."""
        type_ = self.output.type
        verify_groups(type_, self.input.type)
        if type_.format.data not in ACTIVATION_CODES:
            raise VerifyException(
                f"unknown format '{type_.format.data}', known are {', '.join(ACTIVATION_CODES)}"
            )
        if self.cache is not None:
            cache = resolved_type(self, self.cache, KVType)
            if not cache.static.data:
                raise VerifyException(
                    f"@{self.cache.root_reference.data} has no static scale to quantise with"
                )


@irdl_op_definition
class QuantizeBlocksOp(OperatorOp):
    """Codes with an exponent and a step a block, chosen by its own largest magnitude.

    Example:
    ```
    %q = rom.quantize_blocks %x {onnx = [["MatMul"]]}
        : !rom.fixed<64, 16> -> !rom.blocks<64, half8, 32, 16>
    ```
    """

    name = "rom.quantize_blocks"
    input = operand_def(FixedType)
    output = result_def(BlocksType)
    assembly_format = "$input attr-dict `:` type($input) `->` type($output)"
    traits = traits_def(Pure())

    def __init__(self, x: SSAValue, output: BlocksType, onnx: Nodes) -> None:
        self._build([x], [output], onnx=onnx)

    def verify_(self) -> None:
        """Blocks cover the vector; their least exponent is within what they can have."""
        source, target = self.input.type, self.output.type
        assert isinstance(source, FixedType)
        if target.size != source.size.data:
            raise VerifyException(f"{target.size} codes do not cover {source.size.data} elements")
        low = least_exponent(
            source.fraction.data, target.fraction.data, FORMATS[target.format.data].steps
        )
        if not 0 <= low <= LEAST_AT_MOST:
            raise VerifyException(
                f"the least exponent would be {low}, and may be 0 to {LEAST_AT_MOST}; "
                f"it is the input's fraction bits less those of the result"
            )


@irdl_op_definition
class QuantizeHeadsOp(OperatorOp):
    """Codes with an exponent and a step a head, chosen by its own largest magnitude.

    Example:
    ```
    %q = rom.quantize_heads %x {onnx = [["GQA"]]}
        : !rom.fixed<64, 16> -> !rom.quantized<4, 16, half8>
    ```
    """

    name = "rom.quantize_heads"
    input = operand_def(FixedType)
    output = result_def(QuantizedType)
    assembly_format = "$input attr-dict `:` type($input) `->` type($output)"
    traits = traits_def(Pure())

    def __init__(self, x: SSAValue, output: QuantizedType, onnx: Nodes) -> None:
        self._build([x], [output], onnx=onnx)

    def verify_(self) -> None:
        """Heads cover the vector; the format has an exponent a head."""
        verify_groups(self.output.type, self.input.type)
        if (name := self.output.type.format.data) not in HEAD_FORMATS:
            raise VerifyException(
                f"'{name}' has no exponents of heads; {', '.join(HEAD_FORMATS)} has"
            )


def verify_groups(type_: QuantizedType, source: Attribute) -> None:
    """Groups cover the vector that is quantised.

    Raises:
        VerifyException: they do not.
    """
    if type_.size != vector_size(source):
        raise VerifyException(
            f"{type_.groups.data} groups of {type_.width.data} do not cover "
            f"{vector_size(source)} elements"
        )


@irdl_op_definition
class RMSScaleOp(OperatorOp):
    """1 / sqrt(sum(x^2) + n * eps): what is left of a norm whose weights are in the codes.

    The products that take x times the weights times sqrt(n) take it as a factor of their results.

    Example:
    ```
    %s = rom.rms_scale %x {eps = #rom.real<10995116, 40>, onnx = [["norm"]]}
        : !rom.fixed<64, 16> -> !rom.scale
    ```
    """

    name = "rom.rms_scale"
    input = operand_def(FixedType)
    eps = prop_def(RealAttr)
    output = result_def(ScaleType)
    assembly_format = "$input attr-dict `:` type($input) `->` type($output)"
    traits = traits_def(Pure())

    def __init__(self, x: SSAValue, eps: Attribute, onnx: Nodes) -> None:
        self._build([x], [ScaleType()], eps=eps, onnx=onnx)

    def verify_(self) -> None:
        """The sum of squares holds the squares and the epsilon."""
        assert isinstance(self.input.type, FixedType)
        size, frac = self.input.type.size.data, self.input.type.fraction.data
        try:
            _ = norm_epsilon(Real(self.eps.mantissa.data, self.eps.exponent.data), size, frac)
        except ValueError as error:
            raise VerifyException(str(error)) from error


def verify_multiplied(type_: Attribute) -> int:
    """Elements of a vector that a matrix is multiplied with.

    Raises:
        VerifyException: it has several scales.
    """
    assert isinstance(type_, QuantizedType | BlocksType)
    if isinstance(type_, QuantizedType) and type_.groups.data != 1:
        raise VerifyException("a matrix takes a vector with one scale, or with exponents of blocks")
    return type_.size


def verify_normed(norm: SSAValue | None, type_: Attribute) -> None:
    """A vector that has a scale of its own takes none of a norm.

    Raises:
        VerifyException: it has both.
    """
    if norm is not None and isinstance(type_, QuantizedType):
        raise VerifyException("a quantised vector has its scale; only blocks take that of a norm")


@irdl_op_definition
class DotOp(OperatorOp):
    """The exact integer product of a matrix and a quantised vector, scale mantissas included.

    Y[n] = sum over groups g of s[n,g] * sum over k in g of (q[n,k] - z[n,g]) * x[k]; where groups
    have offsets o, less the sum over g of o[n,g] * sum over k in g of x[k].

    Example:
    ```
    %a = rom.dot %q by @w {onnx = [["MatMul"]]}
        : !rom.quantized<1, 64, int8> -> !rom.accumulator<64, 34>
    ```
    """

    name = "rom.dot"
    input = operand_def(MULTIPLIED)
    weights = prop_def(SYMBOL)
    output = result_def(AccumulatorType)
    assembly_format = "$input `by` $weights attr-dict `:` type($input) `->` type($output)"
    traits = traits_def(Pure())

    def __init__(self, x: SSAValue, weights: str, onnx: Nodes, output: Attribute) -> None:
        self._build([x], [output], weights=weights, onnx=onnx)

    def verify_(self) -> None:
        """Shapes agree, and the sum fits 62 bits; of a slot that before the one scale of a row."""
        target = self.output.type
        size = verify_multiplied(self.input.type)
        verify_matrix(self, self.weights, None, size, target.size.data)
        type_ = resolve(self, self.weights).type
        is_slot = isinstance(type_, AdapterType) and type_.is_slot
        most = ACCUMULATOR_BITS + SLOT_SCALE_BITS * is_slot
        if target.bits.data > most:
            bits = target.bits.data
            raise VerifyException(f"{bits} bits of accumulator, at most {most} are exact")


@irdl_op_definition
class RequantizeOp(OperatorOp):
    """Scales accumulators to fixed point, then adds bias and residual, each step saturating.

    The scale is that of the quantised vector, or the unit of its blocks' integers and, where they
    are to be normalised, what `rom.rms_scale` says; times the matrix's exponent. The exponent of an
    adapter's slot is in a register of its site.

    Example:
    ```
    %y = rom.requantize %a scaled %q, @w bias @b residual %x
        {pre_shift = 0 : i64, onnx = [["MatMul"]]}
        : !rom.accumulator<64, 34>, !rom.quantized<1, 64, int8>, !rom.fixed<64, 16>
        -> !rom.fixed<64, 16>
    ```
    """

    name = "rom.requantize"
    input = operand_def(AccumulatorType)
    scale = operand_def(MULTIPLIED)
    residual = opt_operand_def(FixedType)
    norm = opt_operand_def(SCALE)
    weights = prop_def(SYMBOL)
    bias = opt_prop_def(SYMBOL)
    pre_shift = prop_def(IntegerAttr[I64])
    output = result_def(FixedType)
    irdl_options = (AttrSizedOperandSegments(as_property=True),)
    assembly_format = (
        "$input `scaled` $scale `,` $weights (`bias` $bias^)? (`residual` $residual^)?"
        " (`norm` $norm^)? attr-dict"
        " `:` type($input) `,` type($scale) (`,` type($residual)^)? `->` type($output)"
    )
    traits = traits_def(Pure())

    def __init__(
        self,
        x: SSAValue,
        scale: SSAValue,
        weights: str,
        pre_shift: int,
        onnx: Nodes,
        output: Attribute,
        bias: str | None = None,
        residual: SSAValue | None = None,
        norm: SSAValue | None = None,
    ) -> None:
        self._build(
            [x, scale, residual, norm],
            [output],
            weights=weights,
            bias=bias,
            pre_shift=pre_shift,
            onnx=onnx,
        )

    def verify_(self) -> None:
        """Sizes agree."""
        source, target = self.input.type, self.output.type
        assert isinstance(source, AccumulatorType)
        sizes = [source.size.data, target.size.data]
        if self.residual is not None:
            sizes.append(vector_size(self.residual.type))
        if len(set(sizes)) != 1:
            found = ", ".join(map(str, sizes))
            raise VerifyException(f"{self.name}: values must have equal sizes, found {found}")
        if self.pre_shift.value.data < 0:
            raise VerifyException("pre_shift must not be negative")
        verify_normed(self.norm, self.scale.type)


@irdl_op_definition
class QueryKeyOp(OperatorOp):
    """Scores of the cached tokens, in units of log2 (QK^T, scale, soft cap).

    `score_scale` is the softmax scale times log2(e). With a soft cap it is the plain scale, and
    `log2e` follows the cap. `slopes` has a number for each head, of 24 fraction bits, to the base
    2: what a score loses for each token that its key lies before the query.

    Example:
    ```
    %s = rom.query_key %q over @k0 at %position
        {score_scale = #rom.real<12101203, 25>, onnx = [["GQA"]]}
        : !rom.quantized<4, 16, int8> -> !rom.scores<4, 16>
    ```
    """

    name = "rom.query_key"
    query = operand_def(QuantizedType)
    position = operand_def(POSITION)
    keys = prop_def(SYMBOL)
    score_scale = prop_def(RealAttr)
    cap = opt_prop_def(RealAttr)
    cap_inverse = opt_prop_def(RealAttr)
    log2e = opt_prop_def(RealAttr)
    window = opt_prop_def(IntegerAttr[I64])
    slopes = opt_prop_def(SYMBOL)
    output = result_def(ScoresType)
    assembly_format = (
        "$query `over` $keys `at` $position attr-dict `:` type($query) `->` type($output)"
    )
    traits = traits_def(MemoryReadEffect())

    def __init__(
        self,
        query: SSAValue,
        keys: str,
        position: SSAValue,
        score_scale: RealAttr,
        onnx: Nodes,
        output: Attribute,
        *,
        softcap: tuple[RealAttr, RealAttr, RealAttr] | None = None,
        window: int = 0,
        slopes: str | None = None,
    ) -> None:
        cap, inverse, log2e = softcap or (None, None, None)
        self._build(
            [query, position],
            [output],
            keys=keys,
            score_scale=score_scale,
            cap=cap,
            cap_inverse=inverse,
            log2e=log2e,
            window=window if window > 0 else None,
            slopes=slopes,
            onnx=onnx,
        )

    def verify_(self) -> None:
        """One group a query head, of the cache's width."""
        query, scores = self.query.type, self.output.type
        keys = resolved_type(self, self.keys, KVType)
        assert isinstance(query, QuantizedType)
        verify_heads(query.groups.data, keys)
        if query.width.data != keys.width.data or scores.heads != query.groups:
            raise VerifyException("query, keys and scores differ in heads or width")
        verify_of_heads(self, self.slopes, query.groups.data, "slopes")
        given = [self.cap, self.cap_inverse, self.log2e]
        if any(given) and not all(given):
            raise VerifyException("a soft cap needs cap, cap_inverse and log2e")


@irdl_op_definition
class SoftmaxOp(OperatorOp):
    """exp2(score - max) of each head times the values' scales, as codes with a scale and a sum.

    `sink` has one more score for each head, of a token without a value: 16 fraction bits, to the
    base 2. Codes of places8 are bytes at one of five places, found without the largest of them.

    Example:
    ```
    %p = rom.softmax %s over @v0 at %position {onnx = [["GQA"]]}
        : !rom.scores<4, 16> -> !rom.probabilities<4, uint8>
    ```
    """

    name = "rom.softmax"
    scores = operand_def(ScoresType)
    position = operand_def(POSITION)
    values = prop_def(SYMBOL)
    window = opt_prop_def(IntegerAttr[I64])
    sink = opt_prop_def(SYMBOL)
    output = result_def(ProbabilitiesType)
    assembly_format = (
        "$scores `over` $values `at` $position attr-dict `:` type($scores) `->` type($output)"
    )
    traits = traits_def(MemoryReadEffect())

    def __init__(
        self,
        scores: SSAValue,
        values: str,
        position: SSAValue,
        onnx: Nodes,
        output: Attribute,
        *,
        window: int = 0,
        sink: str | None = None,
    ) -> None:
        self._build(
            [scores, position],
            [output],
            values=values,
            window=window if window > 0 else None,
            sink=sink,
            onnx=onnx,
        )

    def verify_(self) -> None:
        """Heads agree; the format is known."""
        source, target = self.scores.type, self.output.type
        values = resolved_type(self, self.values, KVType)
        assert isinstance(source, ScoresType)
        verify_heads(source.heads.data, values)
        verify_of_heads(self, self.sink, source.heads.data, "sink")
        if source.heads != target.heads:
            raise VerifyException("scores and probabilities differ in heads")
        if target.format.data not in PROBABILITY_CODES:
            raise VerifyException(
                f"unknown format '{target.format.data}', known are {', '.join(PROBABILITY_CODES)}"
            )
        if target.format.data == "places8" and values.format.data not in HEAD_FORMATS:
            raise VerifyException(
                f"probabilities of places8 take values of {', '.join(HEAD_FORMATS)}, whose scales "
                f"are never 0; @{self.values.root_reference.data} has {values.format.data}"
            )


@irdl_op_definition
class WeightedSumOp(OperatorOp):
    """Values summed by probability, divided by the probabilities' sum (PV).

    Example:
    ```
    %y = rom.weighted_sum %p over @v0 at %position {onnx = [["GQA"]]}
        : !rom.probabilities<4, uint8> -> !rom.fixed<64, 16>
    ```
    """

    name = "rom.weighted_sum"
    probabilities = operand_def(ProbabilitiesType)
    position = operand_def(POSITION)
    values = prop_def(SYMBOL)
    window = opt_prop_def(IntegerAttr[I64])
    output = result_def(FixedType)
    assembly_format = (
        "$probabilities `over` $values `at` $position attr-dict"
        " `:` type($probabilities) `->` type($output)"
    )
    traits = traits_def(MemoryReadEffect())

    def __init__(
        self,
        probabilities: SSAValue,
        values: str,
        position: SSAValue,
        onnx: Nodes,
        output: Attribute,
        *,
        window: int = 0,
    ) -> None:
        self._build(
            [probabilities, position],
            [output],
            values=values,
            window=window if window > 0 else None,
            onnx=onnx,
        )

    def verify_(self) -> None:
        """The result has all heads."""
        source, target = self.probabilities.type, self.output.type
        values = resolved_type(self, self.values, KVType)
        assert isinstance(source, ProbabilitiesType)
        verify_heads(source.heads.data, values)
        wanted = source.heads.data * values.width.data
        if target.size.data != wanted:
            raise VerifyException(f"the result needs {wanted} elements, found {target.size.data}")
