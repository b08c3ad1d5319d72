"""`rom-legalize`: from float operators to the integer semantics of dialects/semantics.py.

Formats come from the module's `fabric.machine`. Every value becomes `!rom.fixed`; products with
matrices become quantize, dot and requantize; attention becomes quantize, query_key, softmax and
weighted_sum. Vectors that share a quantisation (Q, K and V; gate and up) share the operation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction

from xdsl.context import Context
from xdsl.dialects.builtin import (
    I64,
    FloatAttr,
    IntegerAttr,
    ModuleOp,
    SymbolRefAttr,
    TensorType,
    i64,
)
from xdsl.ir import Attribute, Block, Operation, SSAValue
from xdsl.passes import ModulePass
from xdsl.rewriter import InsertPoint, Rewriter
from xdsl.utils.exceptions import PassFailedException

from intaglio.dialects import rom
from intaglio.dialects.codes import mantissa_exponent
from intaglio.dialects.errors import UserError
from intaglio.dialects.fabric import machine_of
from intaglio.dialects.fixed_point import Real
from intaglio.dialects.formats import FORMATS, HEAD_FORMATS
from intaglio.dialects.formulas.blocks import LEAST_AT_MOST, REACH, integer_fraction
from intaglio.dialects.formulas.norms import norm_epsilon, weight_fraction
from intaglio.dialects.formulas.softmax import SCORE_FRAC, SLOPE_FRAC
from intaglio.dialects.machine import Machine
from intaglio.dialects.semantics import (
    accumulator_bits,
    pre_shift,
    query_key_bits,
    slot_bits,
    state_sum_bits,
    weighted_sum_bits,
)
from intaglio.lowering.buffers import context, name_of
from intaglio.lowering.order import check_before
from intaglio.lowering.step.fractions import Fractions, fractions
from intaglio.lowering.step.input_formats import input_format, told_formats, wide_blocks

LOG2E = Fraction(math.log2(math.e))
SCALE_MANTISSA_BITS = 16
UNBOUNDED = 1 << 31
"""No fixed-point number is larger."""
WINDOW = REACH - 8
"""Fraction bits of numbers whose blocks' least exponent is 0, and whose largest one reaches 8 bits
above the point."""
STREAM_BITS = 2
"""How many bits further up the blocks of a residual stream reach."""
FP8_UNITS = 1 << 9
"""E4M3 codes decode to integers in units of its smallest number, 2**-9."""


def real_attr(value: float | Fraction) -> rom.RealAttr:
    """The nearest constant with a 24-bit mantissa."""
    real = Real.of(value)
    return rom.RealAttr(real.mantissa, real.exponent)


def substituted(module: ModuleOp, machine: Machine) -> list[str]:
    """Warnings where the graph rounds activations to a format that the machine does not have."""
    told = told_formats(module, machine)
    found = [
        op
        for op in module.walk()
        if isinstance(op, rom.LinearOp)
        and op.activation is not None
        and op not in told
        and input_format(op, machine, told) != op.activation.data
    ]
    if not found:
        return []
    warning = (
        "the model rounds the activations of its matrix products to int8, one scale a token; "
        f"{machine.name} takes {machine.activations} instead"
    )
    return [warning]


@dataclass(frozen=True)
class Conversion:
    """How a float tensor becomes integers."""

    code: str
    multiplier: float = 1.0
    exponent: int | None = None
    """Given for tables of a fixed format; else from the tensor's peak."""
    rows: int | None = None
    """How many rows of a table are kept: those of positions that the caches can hold."""


@dataclass(frozen=True)
class RomLegalize(ModulePass):
    """Turns float operators into operators with integer semantics."""

    name = "rom-legalize"

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        legalize(op)


def legalize(module: ModuleOp) -> Fractions:
    """What the pass does.

    Returns:
        The fraction bits that it chose; they are worked out from the float stage, which is gone.
    """
    machine = machine_of(module)
    check_before(RomLegalize.name, module, RomLegalize.name)
    chosen, told = fractions(module, machine), told_formats(module, machine)
    wide = wide_blocks(module, machine, told)
    _convert_buffers(module, machine, chosen)
    for symbol in list(module.ops):
        if isinstance(symbol, rom.StepOp | rom.LayerOp):
            _Body(machine, chosen, told, wide).convert(symbol.body.block)
    return chosen


# --- buffers ------------------------------------------------------------------------------------


def _conversions(op: Operation, chosen: Fractions, capacity: int) -> dict[str, Conversion]:
    """How the buffers an operator names are to be converted, by symbol."""

    def fixed(symbol: SymbolRefAttr | None) -> dict[str, Conversion]:
        if symbol is None:
            return {}
        return {name_of(symbol): Conversion("fixed32", exponent=chosen.of[op.results[0]])}

    match op:
        case rom.EmbedOp():
            return {name_of(op.table): Conversion("fixed16")}
        case rom.EmbedPositionOp():
            return {name_of(op.table): Conversion("fixed16", rows=capacity)}
        case rom.LinearOp():
            return fixed(op.bias)
        case rom.ExpertLinearOp():
            return fixed(op.bias)
        case rom.TapOp():
            return {name_of(op.weights): Conversion("fixed16"), **fixed(op.bias)}
        case rom.RMSNormOp():
            width = rom.vector_size(op.input.type) // op.groups.value.data
            return {name_of(op.gamma): Conversion("fixed16", math.sqrt(width))}
        case rom.LayerNormOp():
            width = rom.vector_size(op.input.type)
            return {name_of(op.gamma): Conversion("fixed16", math.sqrt(width)), **fixed(op.beta)}
        case rom.AttentionOp():
            # Scores are to the base 2 when softmax takes them.
            of_heads = ((op.sink, SCORE_FRAC), (op.slopes, SLOPE_FRAC))
            return {
                name_of(symbol): Conversion("fixed32", float(LOG2E), frac)
                for symbol, frac in of_heads
                if symbol is not None
            }
        case rom.RotaryOp():
            table = Conversion("fixed16", exponent=chosen.rotary, rows=capacity)
            return {name_of(op.cos): table, name_of(op.sin): table}
        case _:
            return {}


def _convert_buffers(module: ModuleOp, machine: Machine, chosen: Fractions) -> None:
    wanted: dict[rom.ParameterOp | rom.SlotOp, Conversion] = {}
    static: set[Operation] = {
        op for op in module.ops if isinstance(op, rom.CacheOp) and op.static_scale is not None
    }

    def want(buffer: Operation, conversion: Conversion, user: str) -> None:
        assert isinstance(buffer, rom.ParameterOp | rom.SlotOp)
        if wanted.setdefault(buffer, conversion) != conversion:
            raise PassFailedException(
                f"@{buffer.sym_name.data} would need two different integer forms, "
                f"one of them for {user}"
            )

    capacity = context(module)
    for op in module.walk():
        for symbol, conversion in _conversions(op, chosen, capacity).items():
            want(rom.resolve(op, SymbolRefAttr(symbol)), conversion, op.name)
    for op in module.walk():
        if isinstance(op, rom.RepeatOp):
            for slot, buffer in op.bound():
                if buffer in static:
                    static.add(slot)
                if (conversion := wanted.get(slot)) is not None:
                    want(buffer, conversion, op.name)

    for op in module.walk():
        if not isinstance(op, rom.ParameterOp | rom.SlotOp | rom.CacheOp):
            continue
        match op.type:
            case rom.KVType():
                _convert_cache(op, op.type, machine, static=op in static)
            case rom.ROMTensorType() | rom.AdapterType() if op.type.code.data == "float32":
                if isinstance(op, rom.CacheOp) or op not in wanted:
                    raise PassFailedException(
                        f"@{op.sym_name.data} holds floats and no operator says how to convert it"
                    )
                _convert_dense(op, op.type, wanted[op])
            case rom.ROMTensorType() | rom.AdapterType() if isinstance(op, rom.ParameterOp):
                if isinstance(op.type, rom.AdapterType) and op.type.is_slot:
                    # The exponent comes with each adapter, into a register of the site.
                    continue
                if op.exponent is None and op.type.is_matrix:
                    op.exponent = _exponent(op, 1.0, SCALE_MANTISSA_BITS)
            case _:
                pass


def _exponent(op: rom.ParameterOp, multiplier: float, bits: int) -> IntegerAttr[I64]:
    if op.peak is None:
        raise PassFailedException(f"@{op.sym_name.data} states no peak to choose an exponent by")
    peak = op.peak.value.data * multiplier
    return IntegerAttr(mantissa_exponent(peak, bits), i64)


def _convert_dense(
    op: rom.ParameterOp | rom.SlotOp,
    type_: rom.ROMTensorType | rom.AdapterType,
    conversion: Conversion,
) -> None:
    rows, *rest = type_.dims
    dims = (rows if conversion.rows is None else min(rows, conversion.rows), *rest)
    is_adapter = isinstance(type_, rom.AdapterType)
    kind = rom.AdapterType if is_adapter else rom.ROMTensorType
    op.type = kind(dims, conversion.code)
    if isinstance(op, rom.ParameterOp):
        if conversion.multiplier != 1.0:
            op.multiplier = FloatAttr(conversion.multiplier, 64)
        if conversion.exponent is not None:
            op.exponent = IntegerAttr(conversion.exponent, i64)
        else:
            op.exponent = _exponent(op, conversion.multiplier, op.type.bits)


def _convert_cache(
    op: rom.ParameterOp | rom.SlotOp | rom.CacheOp,
    type_: rom.KVType,
    machine: Machine,
    *,
    static: bool,
) -> None:
    """Chooses the format of a cache; FP8 is a floating-point format and needs no scale but 1."""
    fmt = type_.format.data
    is_fp8 = fmt == "float32" and machine.kv == "fp8"
    op.type = rom.KVType(
        type_.capacity.data,
        type_.heads.data,
        type_.width.data,
        machine.kv if fmt == "float32" else fmt,
        static or is_fp8,
    )
    if not isinstance(op, rom.CacheOp):
        return
    if isinstance(op.static_scale, FloatAttr):
        scale = Fraction(op.static_scale.value.data)
    elif is_fp8:
        scale = Fraction(1, FP8_UNITS)
    else:
        return
    op.static_scale, op.static_inverse = real_attr(scale), real_attr(1 / scale)


# --- operators ----------------------------------------------------------------------------------


@dataclass
class _Body:
    """Converts one block, operator by operator, in order."""

    machine: Machine
    chosen: Fractions
    told: Mapping[Operation, str]
    """The formats of inputs that are told apart from `machine.activations`."""
    wide: Mapping[Operation, frozenset[int]]
    """The blocks of inputs that have codes of 16 bits."""
    quantized: dict[tuple[SSAValue, str, frozenset[int]], SSAValue] = field(default_factory=dict)
    factors: dict[SSAValue, SSAValue] = field(default_factory=dict)
    """Of values that are a norm's but for its factor, the factor."""

    def convert(self, block: Block) -> None:
        for argument in list(block.args):
            if isinstance(argument.type, TensorType):
                Rewriter.replace_value_with_new_type(argument, self.fixed(argument))
        for op in list(block.ops):
            if (converter := _CONVERTERS.get(type(op))) is not None:
                converter(self, op)

    def fixed(self, value: SSAValue) -> rom.FixedType:
        return rom.FixedType(rom.vector_size(value.type), self.chosen.of[value])

    def insert(self, before: Operation, op: Operation) -> SSAValue:
        Rewriter.insert_op(op, InsertPoint.before(before))
        return op.results[0]

    def replace(self, op: Operation, *new: Operation) -> None:
        Rewriter.replace_op(op, new, new[-1].results)

    def retype(self, op: Operation) -> None:
        """Keeps an operator and gives its results the integer types."""
        for result in op.results:
            if isinstance(result.type, TensorType):
                Rewriter.replace_value_with_new_type(result, self.fixed(result))

    def quantize(self, op: rom.LinearOp | rom.ExpertLinearOp, fmt: str) -> SSAValue:
        """The input of a product as codes."""
        x, wide = op.input, self.wide.get(op, frozenset[int]())
        if (x, fmt, wide) not in self.quantized:
            if FORMATS[fmt].by_block:
                made = rom.QuantizeBlocksOp(x, self.blocks(x, fmt, wide), op.onnx)
            else:
                type_ = rom.QuantizedType(1, rom.vector_size(x.type), fmt)
                made = rom.QuantizeOp(x, type_, op.onnx)
            self.quantized[x, fmt, wide] = self.insert(op, made)
        return self.quantized[x, fmt, wide]

    def blocks(self, x: SSAValue, fmt: str, wide: frozenset[int]) -> rom.BlocksType:
        """The blocks of a vector, of as many elements as the chip has together; the last one may
        be shorter.

        Their largest exponent reaches 8 bits above the point, 2**24 units where the fraction has
        16 bits, as it does in all models measured.
        """
        assert isinstance(x.type, rom.FixedType)
        size, frac = x.type.size.data, x.type.fraction.data
        low = frac - WINDOW
        if x in self.factors:
            # As large as the stream, which has outliers.
            low += frac - weight_fraction(frac, size) + STREAM_BITS
        low = min(max(0, low), LEAST_AT_MOST)
        fraction = integer_fraction(frac, low, FORMATS[fmt].steps)
        return rom.BlocksType(size, fmt, self.machine.block, fraction, wide)

    def linear(self, op: rom.LinearOp) -> None:
        type_ = rom.resolved_type(op, op.weights, rom.ROMTensorType, rom.AdapterType)
        weights = name_of(op.weights)
        fmt = input_format(op, self.machine, self.told)
        q = self.quantize(op, fmt)
        if isinstance(type_, rom.AdapterType) and type_.is_slot:
            bits = _slot_bits(type_, fmt)
        else:
            bits = _product_bits(op, type_, fmt)
        accumulator = rom.AccumulatorType(type_.dims[0], bits)
        dot = rom.DotOp(q, weights, op.onnx, accumulator)
        requantize = rom.RequantizeOp(
            dot.output,
            q,
            weights,
            pre_shift(bits),
            op.onnx,
            self.fixed(op.output),
            bias=None if op.bias is None else name_of(op.bias),
            norm=self.factors.get(op.input),
        )
        self.replace(op, dot, requantize)

    def expert_linear(self, op: rom.ExpertLinearOp) -> None:
        type_ = rom.resolved_type(op, op.weights, rom.ROMTensorType)
        fmt = input_format(op, self.machine, self.told)
        bits = _product_bits(op, type_, fmt)
        product = rom.ExpertProductOp(
            self.quantize(op, fmt),
            op.routing,
            op.expert.value.data,
            name_of(op.weights),
            pre_shift(bits),
            op.onnx,
            self.fixed(op.output),
            bias=None if op.bias is None else name_of(op.bias),
            norm=self.factors.get(op.input),
        )
        self.replace(op, product)

    def clip(self, op: rom.ClipOp) -> None:
        low, high = (
            real_attr(default if bound is None else _number(bound))
            for bound, default in ((op.low, -UNBOUNDED), (op.high, UNBOUNDED))
        )
        op.low, op.high = low, high
        self.retype(op)

    def rms_norm(self, op: rom.RMSNormOp) -> None:
        if isinstance(op.eps, FloatAttr):
            op.eps = real_attr(op.eps.value.data)
        if self.folds(op):
            self.fold(op)
        else:
            self.retype(op)

    def folds(self, op: rom.RMSNormOp) -> bool:
        """Whether only products that take blocks read a norm, so that its factor can follow them,
        and its sum of squares holds its epsilon."""
        if op.groups.value.data != 1 or not op.output.uses:
            return False
        assert isinstance(op.eps, rom.RealAttr)
        assert isinstance(op.input.type, rom.FixedType)
        eps = Real(op.eps.mantissa.data, op.eps.exponent.data)
        try:
            _ = norm_epsilon(eps, op.input.type.size.data, op.input.type.fraction.data)
        except ValueError:
            return False
        return all(
            isinstance(user, rom.LinearOp | rom.ExpertLinearOp)
            and FORMATS[input_format(user, self.machine, self.told)].by_block
            for user in (use.operation for use in op.output.uses)
        )

    def fold(self, op: rom.RMSNormOp) -> None:
        """The weights go into what is coded, the factor follows the products."""
        assert isinstance(op.input.type, rom.FixedType)
        size, frac = op.input.type.size.data, op.input.type.fraction.data
        weighted = rom.TapOp(
            op.input,
            name_of(op.gamma),
            op.onnx,
            output=rom.FixedType(size, weight_fraction(frac, size)),
        )
        factor = rom.RMSScaleOp(op.input, op.eps, op.onnx)
        self.factors[weighted.output] = factor.output
        Rewriter.insert_op(factor, InsertPoint.before(op))
        self.replace(op, weighted)

    def layer_norm(self, op: rom.LayerNormOp) -> None:
        if isinstance(op.eps, FloatAttr):
            op.eps = real_attr(op.eps.value.data)
        self.retype(op)

    def scale(self, op: rom.ScaleOp) -> None:
        if isinstance(op.factor, FloatAttr):
            op.factor = real_attr(op.factor.value.data)
        self.retype(op)

    def softcap(self, op: rom.SoftcapOp) -> None:
        if isinstance(op.cap, FloatAttr):
            cap = op.cap.value.data
            op.cap, op.inverse = real_attr(cap), real_attr(1 / Fraction(cap))
        self.retype(op)

    def append(self, op: rom.AppendOp) -> None:
        cache = rom.resolved_type(op, op.cache, rom.KVType)
        type_ = rom.QuantizedType(cache.heads.data, cache.width.data, cache.format.data)
        static = name_of(op.cache) if cache.static.data else None
        q = self.heads(op, op.input, type_, static)
        Rewriter.replace_op(op, rom.AppendOp(q, name_of(op.cache), op.position, op.onnx), [])

    def heads(
        self,
        op: rom.AppendOp | rom.AttentionOp,
        x: SSAValue,
        type_: rom.QuantizedType,
        static: str | None = None,
    ) -> SSAValue:
        """The heads of queries, keys or values as codes, each with its scale."""
        if type_.format.data in HEAD_FORMATS:
            return self.insert(op, rom.QuantizeHeadsOp(x, type_, op.onnx))
        return self.insert(op, rom.QuantizeOp(x, type_, op.onnx, static))

    def linear_attention(self, op: rom.LinearAttentionOp) -> None:
        """Queries and keys become integers; E4M3 codes of a key would lose what the rule removes
        again."""
        state = rom.resolved_type(op, op.state, rom.MatricesType)
        width = state.key_width.data
        fmt = "int16" if self.machine.activations == "int16" else "int8"

        def codes(x: SSAValue) -> SSAValue:
            type_ = rom.QuantizedType(rom.vector_size(x.type) // width, width, fmt)
            return self.insert(op, rom.QuantizeOp(x, type_, op.onnx))

        query = codes(op.query)
        key = query if op.key is op.query else codes(op.key)
        new = rom.LinearAttentionOp(
            query,
            key,
            op.value,
            list(op.gates),
            name_of(op.state),
            op.rule.data,
            op.position,
            op.onnx,
            pre_shift=pre_shift(state_sum_bits(width, fmt)),
            output=self.fixed(op.output),
        )
        self.replace(op, new)

    def attention(self, op: rom.AttentionOp) -> None:
        machine = self.machine
        cache = rom.resolved_type(op, op.keys, rom.KVType)
        heads, width = op.heads.value.data, cache.width.data
        window = 0 if op.window is None else op.window.value.data
        kv = cache.format.data
        numerators = machine.probabilities_beside(kv)
        # Stated here so that a sum too wide to be exact is an error at compile time.
        _ = query_key_bits(width, machine.queries, kv)
        _ = weighted_sum_bits(cache.capacity.data, numerators, kv)

        q = self.heads(op, op.query, rom.QuantizedType(heads, width, machine.queries))
        scale, softcap = Fraction(op.scale.value.data), None
        if op.softcap is None:
            scale *= LOG2E
        else:
            cap = Fraction(op.softcap.value.data)
            softcap = (real_attr(cap), real_attr(1 / cap), real_attr(LOG2E))
        scores = rom.QueryKeyOp(
            q,
            name_of(op.keys),
            op.position,
            real_attr(scale),
            op.onnx,
            rom.ScoresType(heads, SCORE_FRAC),
            softcap=softcap,
            window=window,
            slopes=None if op.slopes is None else name_of(op.slopes),
        )
        probabilities = rom.SoftmaxOp(
            scores.output,
            name_of(op.values),
            op.position,
            op.onnx,
            rom.ProbabilitiesType(heads, numerators),
            window=window,
            sink=None if op.sink is None else name_of(op.sink),
        )
        output = rom.WeightedSumOp(
            probabilities.output,
            name_of(op.values),
            op.position,
            op.onnx,
            self.fixed(op.output),
            window=window,
        )
        self.replace(op, scores, probabilities, output)


def _number(bound: Attribute) -> float | Fraction:
    """A bound of either stage."""
    if isinstance(bound, FloatAttr):
        return bound.value.data
    assert isinstance(bound, rom.RealAttr)
    return Fraction(bound.mantissa.data) / Fraction(2) ** bound.exponent.data


def _product_bits(
    op: rom.LinearOp | rom.ExpertLinearOp, type_: rom.ROMTensorType | rom.AdapterType, fmt: str
) -> int:
    """The accumulator of a matrix of the model."""
    bits, columns, offsets = type_.bits, type_.dims[1], type_.offsets.data
    try:
        return accumulator_bits(bits, columns, fmt, offset_bits=offsets)
    except ValueError as error:
        wide = f" with offsets of {offsets} bits" if offsets else ""
        raise UserError(
            f"weights of {type_.code.data}{wide} for {columns} inputs of {fmt} are beyond the "
            f"chip's arithmetic: {error}",
            node=rom.node_names(op.onnx)[0][0],
            hint=_fitting(
                fmt, lambda one: accumulator_bits(bits, columns, one, offset_bits=offsets)
            ),
        ) from error


def _fitting(fmt: str, bits: Callable[[str], int]) -> str | None:
    """Which formats of activations make a product fit that does not in another; None: none does.

    Args:
        fmt: the other.
        bits: of the exact sum with a format.
    """
    found: list[str] = []
    for one in ("mxint8", "int8"):
        # Exponents a block are for those who asked for some.
        if one == fmt or (FORMATS[one].by_block and not FORMATS[fmt].by_block):
            continue
        try:
            _ = bits(one)
        except ValueError:
            continue
        found.append(f"--set activations={one}")
    return ", or ".join(found) or None


def _slot_bits(type_: rom.AdapterType, fmt: str) -> int:
    """The accumulator of a slot, for any adapter that may be loaded."""
    code, columns = type_.code.data, type_.dims[1]
    try:
        return slot_bits(code, columns, fmt)
    except ValueError as error:
        raise UserError(
            f"adapters of {code} for {columns} inputs of {fmt} are beyond the chip's arithmetic: "
            f"{error}",
            hint=", or ".join(
                filter(
                    None,
                    (
                        _fitting(fmt, lambda one: slot_bits(code, columns, one)),
                        "--set formats.adapter=int8" if code == "fp8" else None,
                    ),
                )
            )
            or None,
        ) from error


_CONVERTERS: dict[type[Operation], Callable[..., None]] = {
    rom.LinearOp: _Body.linear,
    rom.RMSNormOp: _Body.rms_norm,
    rom.LayerNormOp: _Body.layer_norm,
    rom.ScaleOp: _Body.scale,
    rom.SoftcapOp: _Body.softcap,
    rom.ClipOp: _Body.clip,
    rom.RouteOp: _Body.retype,
    rom.ExpertLinearOp: _Body.expert_linear,
    rom.WeighOp: _Body.retype,
    rom.AppendOp: _Body.append,
    rom.AttentionOp: _Body.attention,
    rom.EmbedOp: _Body.retype,
    rom.EmbedPositionOp: _Body.retype,
    rom.RotaryOp: _Body.retype,
    rom.ActivateOp: _Body.retype,
    rom.AddOp: _Body.retype,
    rom.TapOp: _Body.retype,
    rom.DelayOp: _Body.retype,
    rom.LinearAttentionOp: _Body.linear_attention,
    rom.MulOp: _Body.retype,
    rom.SliceOp: _Body.retype,
    rom.RepeatOp: _Body.retype,
}
