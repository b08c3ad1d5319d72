"""The rom dialect says *what*: tensors engraved in ROM, writable buffers, a decoder's operators.

One `rom.step` describes what the chip does with one token at one position. The same operators stand
in two stages. As imported, values are `tensor<Nxf32>` and an operator means what the ONNX operator
means. After `rom-legalize`, values are `!rom.fixed`, `!rom.quantized`, ... and an operator means
exactly what `dialects/semantics.py` says.

See docs/dialects/rom.md for the rationale.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary, WeakValueDictionary

from xdsl.dialects.builtin import (
    I64,
    ArrayAttr,
    DictionaryAttr,
    FloatAttr,
    IndexType,
    IntAttr,
    IntegerAttr,
    StringAttr,
    SymbolNameConstraint,
    SymbolRefAttr,
    TensorType,
    UnitAttr,
    f32,
    i32,
    i64,
)
from xdsl.ir import (
    Attribute,
    Block,
    Dialect,
    Operation,
    ParametrizedAttribute,
    Region,
    SSAValue,
    TypeAttribute,
)
from xdsl.irdl import (
    AnyOf,
    BaseAttr,
    EqAttrConstraint,
    IRDLOperation,
    ParsePropInAttrDict,
    irdl_attr_definition,
    irdl_op_definition,
    lazy_traits_def,
    operand_def,
    opt_operand_def,
    opt_prop_def,
    prop_def,
    region_def,
    result_def,
    traits_def,
    var_operand_def,
    var_result_def,
)
from xdsl.parser import AttrParser
from xdsl.printer import Printer
from xdsl.traits import (
    HasParent,
    IsolatedFromAbove,
    IsTerminator,
    MemoryReadEffect,
    MemoryWriteEffect,
    Pure,
    SymbolOpInterface,
    SymbolTable,
    SymbolUserOpInterface,
)
from xdsl.utils.exceptions import VerifyException

from intaglio.dialects import codes
from intaglio.dialects.names import escaped, unescaped
from intaglio.dialects.semantics import ACTIVATIONS

WEIGHT_CODES = codes.WEIGHT_BITS
"""Codes of a matrix in ROM and the bits each weight takes."""

MIDDLES: dict[str, int] = {"int2": 2, "int4": 8, "int8": 128}
"""Codes whose groups may have offsets, and the middle of their range, which then stands for 0."""

SLOT_CODES = codes.SLOT_BITS
"""Codes of a matrix in an adapter slot and the bits each weight takes."""

DENSE_CODES = codes.DENSE_BITS
"""Codes of vectors and tables without group scales; `float32` only before legalisation."""

ACTIVATION_CODES = ("int4", "int8", "int16", "fp8")
"""Codes of a quantised vector, and of keys and values."""

PROBABILITY_CODES = ("uint8", "uint16")


# --- attributes and types -----------------------------------------------------------------------


@irdl_attr_definition
class RealAttr(ParametrizedAttribute):
    """An exact constant of the integer stage: `#rom.real<m, e>` is m * 2**-e."""

    name = "rom.real"
    mantissa: IntAttr
    exponent: IntAttr

    def __init__(self, mantissa: int, exponent: int) -> None:
        super().__init__(IntAttr(mantissa), IntAttr(exponent))

    @classmethod
    def parse_parameters(cls, parser: AttrParser) -> Sequence[Attribute]:
        """Parses `<m, e>`."""
        return _parse_integers(parser, 2)

    def print_parameters(self, printer: Printer) -> None:
        """Prints `<m, e>`."""
        printer.print_string(f"<{self.mantissa.data}, {self.exponent.data}>")


def _parse_integers(parser: AttrParser, count: int) -> list[Attribute]:
    with parser.in_angle_brackets():
        values: list[Attribute] = []
        for i in range(count):
            if i:
                parser.parse_punctuation(",")
            values.append(IntAttr(parser.parse_integer(allow_boolean=False)))
    return values


@irdl_attr_definition
class ImageAttr(ParametrizedAttribute):
    """Where bytes lie: `#rom.image<"rom/weights.bin", offset, bytes, "sha256">`.

    The file is relative to the output folder, offset and size are in bytes.
    """

    name = "rom.image"
    file: StringAttr
    offset: IntAttr
    size: IntAttr
    sha256: StringAttr

    def __init__(self, file: str, offset: int, size: int, sha256: str) -> None:
        super().__init__(StringAttr(file), IntAttr(offset), IntAttr(size), StringAttr(sha256))

    @classmethod
    def parse_parameters(cls, parser: AttrParser) -> Sequence[Attribute]:
        """Parses `<"file", offset, size, "sha256">`."""
        with parser.in_angle_brackets():
            file = StringAttr(parser.parse_str_literal())
            parser.parse_punctuation(",")
            offset = IntAttr(parser.parse_integer(allow_boolean=False))
            parser.parse_punctuation(",")
            size = IntAttr(parser.parse_integer(allow_boolean=False))
            parser.parse_punctuation(",")
            sha256 = StringAttr(parser.parse_str_literal())
        return [file, offset, size, sha256]

    def print_parameters(self, printer: Printer) -> None:
        """Prints `<"file", offset, size, "sha256">`."""
        with printer.in_angle_brackets():
            printer.print_string_literal(self.file.data)
            printer.print_string(f", {self.offset.data}, {self.size.data}, ")
            printer.print_string_literal(self.sha256.data)


@dataclass(frozen=True, init=False)  # Else its parameters take no part in comparisons.
class _WeightsType(ParametrizedAttribute, TypeAttribute):
    """Shape and code shared by engraved tensors and adapters."""

    shape: ArrayAttr[IntAttr]
    code: StringAttr
    group: IntAttr
    zeros: IntAttr
    offsets: IntAttr
    """Bits of a group's offset, with its sign; 0: there are none."""

    def __init__(
        self,
        shape: Sequence[int],
        code: str,
        group: int = 0,
        zeros: bool = False,
        offsets: int = 0,
    ) -> None:
        super().__init__(
            ArrayAttr([IntAttr(n) for n in shape]),
            StringAttr(code),
            IntAttr(group),
            IntAttr(int(zeros)),
            IntAttr(offsets),
        )

    @classmethod
    def parse_parameters(cls, parser: AttrParser) -> Sequence[Attribute]:
        """Parses `<[N, K], code (, group G)? (, zeros | , offsets B)?>`."""
        with parser.in_angle_brackets():
            shape = parser.parse_comma_separated_list(
                parser.Delimiter.SQUARE, lambda: parser.parse_integer(allow_boolean=False)
            )
            parser.parse_punctuation(",")
            code = parser.parse_identifier()
            group, zeros, offsets = 0, 0, 0
            while parser.parse_optional_punctuation(","):
                if parser.parse_optional_keyword("group"):
                    group = parser.parse_integer(allow_boolean=False)
                elif parser.parse_optional_keyword("offsets"):
                    offsets = parser.parse_integer(allow_boolean=False)
                else:
                    parser.parse_keyword("zeros")
                    zeros = 1
        return [
            ArrayAttr([IntAttr(n) for n in shape]),
            StringAttr(code),
            IntAttr(group),
            IntAttr(zeros),
            IntAttr(offsets),
        ]

    def print_parameters(self, printer: Printer) -> None:
        """Prints `<[N, K], code (, group G)? (, zeros | , offsets B)?>`."""
        dims = ", ".join(str(n) for n in self.dims)
        group = f", group {self.group.data}" if self.group.data else ""
        zeros = ", zeros" if self.zeros.data else ""
        offsets = f", offsets {self.offsets.data}" if self.offsets.data else ""
        printer.print_string(f"<[{dims}], {self.code.data}{group}{zeros}{offsets}>")

    def verify(self) -> None:
        """Checks code, shape and group."""
        code = self.code.data
        if code not in self.matrix_codes and code not in DENSE_CODES:
            known = ", ".join([*self.matrix_codes, *DENSE_CODES])
            raise VerifyException(f"unknown code '{code}', known are {known}")
        if not self.dims or any(n < 1 for n in self.dims):
            raise VerifyException("every dimension must be at least 1")
        if self.is_matrix:
            if len(self.dims) != 2:
                raise VerifyException(f"a matrix of {code} has two dimensions, rows and columns")
            if self.zeros.data and not self.group.data:
                raise VerifyException(f"zero points of {code} need the size of their groups")
            self._verify_offsets()
        elif self.group.data or self.zeros.data or self.offsets.data:
            raise VerifyException(f"{code} has neither groups nor zero points")

    def _verify_offsets(self) -> None:
        code, bits = self.code.data, self.offsets.data
        if not bits:
            return
        if self.zeros.data:
            raise VerifyException(f"{code} has zero points or offsets, not both")
        if not self.group.data:
            raise VerifyException(f"offsets of {code} need the size of their groups")
        if code not in MIDDLES:
            raise VerifyException(f"{code} has no offsets; {', '.join(MIDDLES)} may have them")
        if not 1 <= bits <= codes.OFFSET_LIMIT:
            raise VerifyException(f"offsets have 1 to {codes.OFFSET_LIMIT} bits, not {bits}")

    @property
    def matrix_codes(self) -> dict[str, int]:
        """Codes of a matrix with scales, and the bits each element takes."""
        return WEIGHT_CODES

    @property
    def dims(self) -> tuple[int, ...]:
        """The shape as Python integers; a matrix is (rows N, columns K)."""
        return tuple(n.data for n in self.shape)

    @property
    def bits(self) -> int:
        """Bits of one element."""
        return {**self.matrix_codes, **DENSE_CODES}[self.code.data]

    @property
    def is_matrix(self) -> bool:
        """Whether this is a matrix of small codes with scales."""
        return self.code.data in self.matrix_codes

    @property
    def groups(self) -> int:
        """Scale groups in a row (the last one may be ragged)."""
        return -(-self.dims[1] // self.group_size)

    @property
    def group_size(self) -> int:
        """Columns under one scale."""
        return self.group.data or self.dims[1]


@irdl_attr_definition
class ROMTensorType(_WeightsType):
    """A frozen tensor: `!rom.tensor<[256, 64], int4, group 32, zeros>`.

    Codes `int8`, `int6`, `int4`, `int3`, `int2`, `ternary` have one scale for `group` elements
    along the columns (and with `zeros` a zero point each), or, without `group`, one for the whole
    matrix; `fixed16` and `fixed32` are mantissas with one exponent; `float32` stands before
    legalisation only.

    `offsets 19` in place of `zeros` is for zero points of any value: beside each scale stands a
    signed number of so many bits, in the same unit, and a weight is
    ``(code - middle) * scale - offset`` with the middle of the codes' range.
    """

    name = "rom.tensor"

    def __init__(
        self,
        shape: Sequence[int],
        code: str,
        group: int = 0,
        zeros: bool = False,
        offsets: int = 0,
    ) -> None:
        super().__init__(shape, code, group, zeros, offsets)


@irdl_attr_definition
class AdapterType(_WeightsType):
    """A tensor that can be rewritten, in SRAM: `!rom.adapter<[8, 64], int4, group 32>`.

    Without a group it is a *slot*, `!rom.adapter<[8, 64], fp8>`: one of the two matrices of a site
    (`rom.site`), which the model does not fill. Codes `fp8` (E4M3), `int8`, `int6` and `ternary`
    have one scale a row there; their common exponent and how many of the rank's rows or columns
    count are registers of the site.
    """

    name = "rom.adapter"

    def __init__(
        self, shape: Sequence[int], code: str, group: int = 0, zeros: bool = False
    ) -> None:
        super().__init__(shape, code, group, zeros)

    def verify(self) -> None:
        """Checks code, shape and group; those of a slot."""
        super().verify()
        code = self.code.data
        if self.is_slot and code not in SLOT_CODES:
            raise VerifyException(
                f"an adapter of {code} needs the size of its groups; a slot without is one of "
                f"{', '.join(SLOT_CODES)}"
            )
        if self.offsets.data:
            raise VerifyException("an adapter has no offsets")
        if code == "fp8" and self.group.data:
            raise VerifyException("an adapter of fp8 has one scale a row, no groups")

    @property
    def matrix_codes(self) -> dict[str, int]:
        """Codes of a matrix with scales, and the bits each element takes."""
        return {**WEIGHT_CODES, **SLOT_CODES}

    @property
    def is_slot(self) -> bool:
        """Whether adapters are loaded into it while the chip runs."""
        return self.is_matrix and not self.group.data


@irdl_attr_definition
class KVType(ParametrizedAttribute, TypeAttribute):
    """A key or value cache: `!rom.kv<256, 2, 16, int8>`: capacity, heads, width, format.

    With `static` behind the format all codes share the scale that the cache's declaration states;
    without it each token and head has its own.
    """

    name = "rom.kv"
    capacity: IntAttr
    heads: IntAttr
    width: IntAttr
    format: StringAttr
    static: IntAttr

    def __init__(
        self, capacity: int, heads: int, width: int, fmt: str, static: bool = False
    ) -> None:
        super().__init__(
            IntAttr(capacity), IntAttr(heads), IntAttr(width), StringAttr(fmt), IntAttr(int(static))
        )

    @classmethod
    def parse_parameters(cls, parser: AttrParser) -> Sequence[Attribute]:
        """Parses `<capacity, heads, width, format(, static)?>`."""
        with parser.in_angle_brackets():
            values: list[Attribute] = []
            for _ in range(3):
                values.append(IntAttr(parser.parse_integer(allow_boolean=False)))
                parser.parse_punctuation(",")
            values.append(StringAttr(parser.parse_identifier()))
            static = 0
            if parser.parse_optional_punctuation(","):
                parser.parse_keyword("static")
                static = 1
            values.append(IntAttr(static))
        return values

    def print_parameters(self, printer: Printer) -> None:
        """Prints `<capacity, heads, width, format(, static)?>`."""
        static = ", static" if self.static.data else ""
        printer.print_string(
            f"<{self.capacity.data}, {self.heads.data}, {self.width.data}, "
            f"{self.format.data}{static}>"
        )

    def verify(self) -> None:
        """Checks sizes and format."""
        if min(self.capacity.data, self.heads.data, self.width.data) < 1:
            raise VerifyException("capacity, heads and width of a KV buffer must be at least 1")
        if self.format.data not in (*ACTIVATION_CODES, "float32"):
            raise VerifyException(
                f"unknown KV format '{self.format.data}', known are "
                f"{', '.join(ACTIVATION_CODES)}, and float32 before legalisation"
            )


class _IntegersType(ParametrizedAttribute, TypeAttribute):
    """Base of types written `<n, n, ...>` with integers only."""

    @classmethod
    def parse_parameters(cls, parser: AttrParser) -> Sequence[Attribute]:
        """Parses the integers in angle brackets."""
        count = len(cls.get_irdl_definition().parameters)  # pyright: ignore[reportAttributeAccessIssue]
        return _parse_integers(parser, count)

    def print_parameters(self, printer: Printer) -> None:
        """Prints the integers in angle brackets."""
        values = ", ".join(str(p.data) for p in self.parameters if isinstance(p, IntAttr))
        printer.print_string(f"<{values}>")


@irdl_attr_definition
class FixedType(_IntegersType):
    """`!rom.fixed<64, 16>`: 64 values of 32 bits, 16 of them fraction bits."""

    name = "rom.fixed"
    size: IntAttr
    fraction: IntAttr

    def __init__(self, size: int, fraction: int) -> None:
        super().__init__(IntAttr(size), IntAttr(fraction))


@irdl_attr_definition
class AccumulatorType(_IntegersType):
    """`!rom.accumulator<64, 38>`: 64 exact sums, each at most 38 bits wide with its sign."""

    name = "rom.accumulator"
    size: IntAttr
    bits: IntAttr

    def __init__(self, size: int, bits: int) -> None:
        super().__init__(IntAttr(size), IntAttr(bits))


@irdl_attr_definition
class ScoresType(_IntegersType):
    """`!rom.scores<4, 16>`: for 4 heads, one 32-bit score a cached token, 16 fraction bits."""

    name = "rom.scores"
    heads: IntAttr
    fraction: IntAttr

    def __init__(self, heads: int, fraction: int) -> None:
        super().__init__(IntAttr(heads), IntAttr(fraction))


@irdl_attr_definition
class QuantizedType(ParametrizedAttribute, TypeAttribute):
    """`!rom.quantized<4, 16, int8>`: 4 groups of 16 codes, each group with its own scale."""

    name = "rom.quantized"
    groups: IntAttr
    width: IntAttr
    format: StringAttr

    def __init__(self, groups: int, width: int, fmt: str) -> None:
        super().__init__(IntAttr(groups), IntAttr(width), StringAttr(fmt))

    @classmethod
    def parse_parameters(cls, parser: AttrParser) -> Sequence[Attribute]:
        """Parses `<groups, width, format>`."""
        with parser.in_angle_brackets():
            groups = IntAttr(parser.parse_integer(allow_boolean=False))
            parser.parse_punctuation(",")
            width = IntAttr(parser.parse_integer(allow_boolean=False))
            parser.parse_punctuation(",")
            fmt = StringAttr(parser.parse_identifier())
        return [groups, width, fmt]

    def print_parameters(self, printer: Printer) -> None:
        """Prints `<groups, width, format>`."""
        printer.print_string(f"<{self.groups.data}, {self.width.data}, {self.format.data}>")

    @property
    def size(self) -> int:
        """Number of codes."""
        return self.groups.data * self.width.data


@irdl_attr_definition
class ProbabilitiesType(ParametrizedAttribute, TypeAttribute):
    """`!rom.probabilities<4, uint8>`: for 4 heads, one code a cached token, a scale and a sum."""

    name = "rom.probabilities"
    heads: IntAttr
    format: StringAttr

    def __init__(self, heads: int, fmt: str) -> None:
        super().__init__(IntAttr(heads), StringAttr(fmt))

    @classmethod
    def parse_parameters(cls, parser: AttrParser) -> Sequence[Attribute]:
        """Parses `<heads, format>`."""
        with parser.in_angle_brackets():
            heads = IntAttr(parser.parse_integer(allow_boolean=False))
            parser.parse_punctuation(",")
            fmt = StringAttr(parser.parse_identifier())
        return [heads, fmt]

    def print_parameters(self, printer: Printer) -> None:
        """Prints `<heads, format>`."""
        printer.print_string(f"<{self.heads.data}, {self.format.data}>")


VectorType = TensorType | FixedType
"""A value of the float stage or of the integer stage."""

_vector = AnyOf((BaseAttr(TensorType), BaseAttr(FixedType)))
_real = AnyOf((BaseAttr(FloatAttr), BaseAttr(RealAttr)))
_token = EqAttrConstraint(i32)
_position = EqAttrConstraint(IndexType())
_symbol = BaseAttr(SymbolRefAttr)
_buffer = AnyOf((BaseAttr(ROMTensorType), BaseAttr(AdapterType), BaseAttr(KVType)))


def vector_size(type_: Attribute) -> int:
    """The number of elements of a value of either stage."""
    match type_:
        case TensorType() if type_.element_type == f32 and len(type_.get_shape()) == 1:
            (size,) = type_.get_shape()
            return size
        case FixedType():
            return type_.size.data
        case _:
            raise VerifyException(f"{type_} is not a vector")


def float_vector(size: int) -> TensorType:
    """The float-stage type of `size` values."""
    return TensorType(f32, [size])


Nodes = ArrayAttr[ArrayAttr[StringAttr]]
"""Names of the ONNX nodes an operation stands for; one list for each instance of its layer."""


def nodes(*names: str) -> Nodes:
    """The `onnx` property of an operation outside outlined layers."""
    return ArrayAttr([ArrayAttr([StringAttr(escaped(name)) for name in names])])


def node_names(onnx: Nodes) -> list[list[str]]:
    """The names in an `onnx` property."""
    return [[unescaped(name.data) for name in names] for names in onnx]


# --- symbols ------------------------------------------------------------------------------------


@irdl_op_definition
class ParameterOp(IRDLOperation):
    """A tensor of the model, by key; its bytes are elsewhere.

    `peak` is the largest magnitude of the scales that its weights use (a matrix) or of its values
    (a dense tensor) in the model; greater scales stand before weights that are all 0 and become 0.
    It is more where offsets would need more bits than there are. `multiplier` is a constant folded
    into the values when the image is written; `exponent` is that of the image's mantissas. `codes`,
    `scales`, `zeros`, `offsets` say where the image lies once it is written.

    Example:
    ```
    rom.parameter @q_proj : !rom.tensor<[64, 64], int4, group 32> {key = "onnx::q.weight"}
    ```
    """

    name = "rom.parameter"
    sym_name = prop_def(SymbolNameConstraint())
    type = prop_def(_buffer)
    key = prop_def(StringAttr)
    peak = opt_prop_def(FloatAttr)
    multiplier = opt_prop_def(FloatAttr)
    exponent = opt_prop_def(IntegerAttr[I64])
    zero = opt_prop_def(IntegerAttr[I64])
    """The zero point of all weights, where the type has no `zeros`; with `offsets` the middle."""
    zero_fraction = opt_prop_def(FloatAttr)
    """The share of weights that are 0, where the importer knows it (ternary matrices)."""
    rms = opt_prop_def(FloatAttr)
    """Root mean square of the elements of a typical row, where the importer looked at it."""
    codes = opt_prop_def(ImageAttr)
    scales = opt_prop_def(ImageAttr)
    zeros = opt_prop_def(ImageAttr)
    offsets = opt_prop_def(ImageAttr)

    assembly_format = "$sym_name `:` $type attr-dict"
    irdl_options = (ParsePropInAttrDict(),)
    traits = traits_def(SymbolOpInterface())

    def __init__(
        self,
        name: str,
        type_: ROMTensorType | AdapterType,
        key: str,
        *,
        peak: float | None = None,
        multiplier: float | None = None,
        exponent: int | None = None,
        zero: int | None = None,
        zero_fraction: float | None = None,
        rms: float | None = None,
    ) -> None:
        super().__init__(
            properties={
                "sym_name": StringAttr(name),
                "type": type_,
                "key": StringAttr(escaped(key)),
                "rms": None if rms is None else FloatAttr(rms, 64),
                "zero_fraction": None if zero_fraction is None else FloatAttr(zero_fraction, 64),
                "peak": None if peak is None else FloatAttr(peak, 64),
                "multiplier": None if multiplier is None else FloatAttr(multiplier, 64),
                "exponent": None if exponent is None else IntegerAttr(exponent, i64),
                "zero": None if zero is None else IntegerAttr(zero, i64),
            }
        )

    @property
    def source(self) -> str:
        """Where its bytes come from: the key, as a name."""
        return unescaped(self.key.data)

    def verify_(self) -> None:
        """A KV buffer is no parameter; a zero point stands once."""
        if isinstance(self.type, KVType):
            raise VerifyException("a KV buffer is declared with rom.cache")
        assert isinstance(self.type, ROMTensorType | AdapterType)
        if self.zero is not None and (self.type.zeros.data or not self.type.is_matrix):
            raise VerifyException("`zero` is for matrices whose type has no zero points")
        if self.type.offsets.data:
            middle = MIDDLES[self.type.code.data]
            if self.zero is None or self.zero.value.data != middle:
                raise VerifyException(f"with offsets `zero` is the middle of the codes, {middle}")
        if self.zero_fraction is not None and (
            not self.type.is_matrix or not 0.0 <= self.zero_fraction.value.data <= 1.0
        ):
            raise VerifyException("`zero_fraction` is for matrices, from 0 to 1")


@irdl_op_definition
class CacheOp(IRDLOperation):
    """A key or value cache of one layer.

    `static_scale` is the graph's own scale of a quantised cache, `static_inverse` (integer stage)
    one over it.

    Example:
    ```
    rom.cache @k0 : !rom.kv<128, 2, 16, int8>
    ```
    """

    name = "rom.cache"
    sym_name = prop_def(SymbolNameConstraint())
    type = prop_def(_buffer)
    static_scale = opt_prop_def(_real)
    static_inverse = opt_prop_def(RealAttr)

    assembly_format = "$sym_name `:` $type attr-dict"
    irdl_options = (ParsePropInAttrDict(),)
    traits = traits_def(SymbolOpInterface())

    def __init__(self, name: str, type_: KVType, static_scale: Attribute | None = None) -> None:
        super().__init__(
            properties={
                "sym_name": StringAttr(name),
                "type": type_,
                "static_scale": static_scale,
            }
        )

    def verify_(self) -> None:
        """The type is that of a KV buffer."""
        if not isinstance(self.type, KVType):
            raise VerifyException(f"a cache has a type !{KVType.name}, not {self.type}")
        if self.type.static.data and self.static_scale is None:
            raise VerifyException("a cache with a static scale states it as `static_scale`")


@irdl_op_definition
class SlotOp(IRDLOperation):
    """A buffer of an outlined layer that each instance binds to one of the module.

    Example:
    ```
    rom.slot @q_proj : !rom.tensor<[64, 64], int4, group 32>
    ```
    """

    name = "rom.slot"
    sym_name = prop_def(SymbolNameConstraint())
    type = prop_def(_buffer)

    assembly_format = "$sym_name `:` $type attr-dict"
    irdl_options = (ParsePropInAttrDict(),)
    traits = traits_def(SymbolOpInterface())

    def __init__(self, name: str, type_: Attribute) -> None:
        super().__init__(properties={"sym_name": StringAttr(name), "type": type_})


Buffer = ParameterOp | CacheOp | SlotOp
"""What declares a buffer."""

_DECLARED: WeakKeyDictionary[Block, WeakValueDictionary[str, Buffer]] = WeakKeyDictionary()


def resolve(user: Operation, symbol: SymbolRefAttr) -> Buffer:
    """The declaration a buffer symbol names, in the layer around `user` or in the module.

    Raises:
        VerifyException: no such buffer.
    """
    name = symbol.root_reference.data
    scope = user.parent_op()
    while scope is not None:
        if scope.has_trait(SymbolTable):
            found = _declared(scope.regions[0].block, name)
            if found is not None:
                return found
        scope = scope.parent_op()
    raise VerifyException(f"no buffer @{name} is declared")


def _declared(block: Block, name: str) -> Buffer | None:
    """A block's declaration of a name.

    A model of many layers declares hundreds of buffers and names each many times; what was found
    last is looked at first.
    """
    found = _DECLARED.get(block, {}).get(name)
    if found is not None and found.parent is block and found.sym_name.data == name:
        return found
    buffers = [op for op in block.ops if isinstance(op, Buffer)]
    _DECLARED[block] = WeakValueDictionary({op.sym_name.data: op for op in reversed(buffers)})
    return _DECLARED[block].get(name)


def _resolved_type(user: Operation, symbol: SymbolRefAttr, *kinds: type) -> Attribute:
    type_ = resolve(user, symbol).type
    if not isinstance(type_, kinds):
        expected = " or ".join(f"!{kind.name}" for kind in kinds)
        raise VerifyException(f"@{symbol.root_reference.data} is {type_}, expected {expected}")
    return type_


class _VerifiesSite(SymbolUserOpInterface):
    def verify(self, op: Operation) -> None:
        assert isinstance(op, SiteOp)
        a, b = (_resolved_type(op, symbol, AdapterType) for symbol in (op.a, op.b))
        matrix = _resolved_type(op, op.matrix, ROMTensorType)
        assert isinstance(a, AdapterType) and isinstance(b, AdapterType)
        assert isinstance(matrix, ROMTensorType)
        name = op.site.data
        if not a.is_slot or not b.is_slot:
            raise VerifyException(f"the adapter of site {name} is no slot: it has groups")
        if op.copies < 1:
            raise VerifyException(f"site {name} has {op.copies} resident adapters, needs one")
        first, last = op.first_row.value.data, op.last_row.value.data
        if not 0 <= first < last <= matrix.dims[0]:
            raise VerifyException(
                f"site {name} stands for rows {first} to {last} of a matrix of {matrix.dims[0]}"
            )
        rank = a.dims[0]
        if a.dims != (rank, matrix.dims[1]) or b.dims != (last - first, rank):
            raise VerifyException(
                f"site {name} needs A [rank, {matrix.dims[1]}] and B [{last - first}, rank], "
                f"found {list(a.dims)} and {list(b.dims)}"
            )


@irdl_op_definition
class SiteOp(IRDLOperation):
    """A place for low-rank adapters: some rows of a matrix, and the slots of A and B beside it.

    Named `layers.<number>.<role>`. With an adapter of rank r there, the first r rows of A and
    columns of B count; r, and the exponents of the two matrices, are registers of the chip. A rank
    of 0 is no adapter: B (A x) is 0 exactly. Where several adapters are resident the slots have
    room for `residents` of them, one after the other, of which one is active.

    Example:
    ```
    rom.site "layers.0.q_proj" beside @qkv rows 0 to 64 by @q_a, @q_b {onnx = [["MatMul"]]}
    ```
    """

    name = "rom.site"
    site = prop_def(StringAttr)
    matrix = prop_def(BaseAttr(SymbolRefAttr))
    first_row = prop_def(IntegerAttr[I64])
    last_row = prop_def(IntegerAttr[I64])
    """One after the last."""
    a = prop_def(BaseAttr(SymbolRefAttr))
    b = prop_def(BaseAttr(SymbolRefAttr))
    residents = opt_prop_def(IntegerAttr[I64])
    """Adapters that the slots hold at once (1 where it is not said)."""
    onnx = prop_def(Nodes)

    assembly_format = (
        "$site `beside` $matrix `rows` $first_row `to` $last_row `by` $a `,` $b attr-dict"
    )
    irdl_options = (ParsePropInAttrDict(),)
    traits = traits_def(_VerifiesSite())

    def __init__(
        self,
        site: str,
        matrix: str,
        rows: tuple[int, int],
        a: str,
        b: str,
        onnx: Nodes,
        residents: int = 1,
    ) -> None:
        first, last = rows
        super().__init__(
            properties={
                "site": StringAttr(site),
                "matrix": SymbolRefAttr(matrix),
                "first_row": IntegerAttr(first, i64),
                "last_row": IntegerAttr(last, i64),
                "a": SymbolRefAttr(a),
                "b": SymbolRefAttr(b),
                "residents": IntegerAttr(residents, i64) if residents != 1 else None,
                "onnx": onnx,
            }
        )

    @property
    def copies(self) -> int:
        """Adapters that the slots hold at once."""
        return 1 if self.residents is None else self.residents.value.data


# --- structure ----------------------------------------------------------------------------------


@irdl_op_definition
class YieldOp(IRDLOperation):
    """Ends the body of a layer with the values carried to the next instance.

    Example:
    ```
    rom.yield %hidden : tensor<64xf32>
    ```
    """

    name = "rom.yield"
    values = var_operand_def(_vector)
    assembly_format = "($values^ `:` type($values))? attr-dict"
    traits = traits_def(IsTerminator())

    def __init__(self, *values: SSAValue) -> None:
        super().__init__(operands=[values])


@irdl_op_definition
class LayerOp(IRDLOperation):
    """A body shared by layers of equal structure.

    Its block takes the position first, then the carried values. Buffers are `rom.slot`s; each
    operation's `onnx` has one list of names for each instance.

    Example:
    ```
    rom.layer @decoder {
    ^bb0(%position: index, %x: tensor<64xf32>):
      rom.slot @w : !rom.tensor<[64, 64], int4, group 32>
      %y = rom.linear %x by @w {onnx = [["a"], ["b"]]} : tensor<64xf32> -> tensor<64xf32>
      rom.yield %y : tensor<64xf32>
    }
    ```
    """

    name = "rom.layer"
    sym_name = prop_def(SymbolNameConstraint())
    body = region_def("single_block")
    assembly_format = "$sym_name $body attr-dict"
    irdl_options = (ParsePropInAttrDict(),)
    traits = traits_def(SymbolOpInterface(), SymbolTable(), IsolatedFromAbove())

    def __init__(self, name: str, body: Region) -> None:
        super().__init__(properties={"sym_name": StringAttr(name)}, regions=[body])

    def verify_(self) -> None:
        """The body takes a position, and yields what it carries."""
        arguments = self.body.block.args
        if not arguments or not isinstance(arguments[0].type, IndexType):
            raise VerifyException("the first argument of a layer is the position (index)")
        end = self.body.block.last_op
        if not isinstance(end, YieldOp):
            raise VerifyException("a layer ends with rom.yield")
        carried = [a.type for a in arguments[1:]]
        if [v.type for v in end.values] != carried:
            raise VerifyException("a layer yields values of the types that it carries")

    @property
    def slots(self) -> Iterator[SlotOp]:
        """The buffers each instance binds."""
        return (op for op in self.body.block.ops if isinstance(op, SlotOp))


@irdl_op_definition
class RepeatOp(IRDLOperation):
    """Runs an outlined layer once for each instance, each with its own buffers.

    Example:
    ```
    %y = rom.repeat @decoder at %position (%x) instances [{w = @w0}, {w = @w1}]
        : (tensor<64xf32>) -> tensor<64xf32>
    ```
    """

    name = "rom.repeat"
    layer = prop_def(_symbol)
    position = operand_def(_position)
    inputs = var_operand_def(_vector)
    instances = prop_def(ArrayAttr[DictionaryAttr])
    outputs = var_result_def(_vector)
    assembly_format = (
        "$layer `at` $position `(` $inputs `)` `instances` $instances attr-dict"
        " `:` `(` type($inputs) `)` `->` type($outputs)"
    )
    irdl_options = (ParsePropInAttrDict(),)
    traits = traits_def(MemoryReadEffect(), MemoryWriteEffect())

    def __init__(
        self,
        layer: str,
        position: SSAValue,
        inputs: Sequence[SSAValue],
        instances: Sequence[dict[str, str]],
    ) -> None:
        super().__init__(
            operands=[position, inputs],
            result_types=[[v.type for v in inputs]],
            properties={
                "layer": SymbolRefAttr(layer),
                "instances": ArrayAttr(
                    [
                        DictionaryAttr({slot: SymbolRefAttr(b) for slot, b in one.items()})
                        for one in instances
                    ]
                ),
            },
        )

    def verify_(self) -> None:
        """Every instance binds every slot to a buffer of its type."""
        if [v.type for v in self.inputs] != [v.type for v in self.outputs]:
            raise VerifyException("a repeated layer gives back the types that it takes")
        if not self.inputs:
            raise VerifyException("a repeated layer carries at least one value")
        layer = self.body()
        carried = [a.type for a in layer.body.block.args[1:]]
        if [v.type for v in self.inputs] != carried:
            raise VerifyException(
                f"layer @{layer.sym_name.data} carries ({', '.join(map(str, carried))}), "
                f"it is given ({', '.join(str(v.type) for v in self.inputs)})"
            )
        slots = {slot.sym_name.data: slot.type for slot in layer.slots}
        if not self.instances.data:
            raise VerifyException("a repeated layer needs at least one instance")
        for number, instance in enumerate(self.instances):
            if set(instance.data) != set(slots):
                raise VerifyException(
                    f"instance {number} binds {sorted(instance.data)}, "
                    f"the slots of the layer are {sorted(slots)}"
                )
            for slot, buffer in instance.data.items():
                if not isinstance(buffer, SymbolRefAttr):
                    raise VerifyException(f"instance {number} binds slot @{slot} to no symbol")
                found = resolve(self, buffer).type
                if found != slots[slot]:
                    raise VerifyException(
                        f"instance {number} binds slot @{slot} of {slots[slot]} "
                        f"to @{buffer.root_reference.data} of {found}"
                    )

    def body(self) -> LayerOp:
        """The layer this operation repeats."""
        scope: Operation | None = self
        name = self.layer.root_reference.data
        while scope is not None:
            if scope.has_trait(SymbolTable):
                for op in scope.regions[0].block.ops:
                    if isinstance(op, LayerOp) and op.sym_name.data == name:
                        return op
            scope = scope.parent_op()
        raise VerifyException(f"no layer @{name} is declared")


@irdl_op_definition
class EmitOp(IRDLOperation):
    """Ends a step: the logits, and the token chosen from them.

    Example:
    ```
    rom.emit %logits, %next : tensor<256xf32>
    ```
    """

    name = "rom.emit"
    logits = operand_def(_vector)
    token = operand_def(_token)
    assembly_format = "$logits `,` $token attr-dict `:` type($logits)"
    traits = lazy_traits_def(lambda: (IsTerminator(), HasParent(StepOp)))

    def __init__(self, logits: SSAValue, token: SSAValue) -> None:
        super().__init__(operands=[logits, token])


@irdl_op_definition
class StepOp(IRDLOperation):
    """What the chip does with one token at one position.

    `context` is the number of positions the model itself allows (0: unlimited).

    Example:
    ```
    rom.step @decode context 128 {
    ^bb0(%token: i32, %position: index):
      ...
      rom.emit %logits, %next : tensor<256xf32>
    }
    ```
    """

    name = "rom.step"
    sym_name = prop_def(SymbolNameConstraint())
    context = prop_def(IntegerAttr[I64])
    body = region_def("single_block")
    assembly_format = "$sym_name `context` $context $body attr-dict"
    irdl_options = (ParsePropInAttrDict(),)
    traits = traits_def(SymbolOpInterface())

    def __init__(self, name: str, context: int, body: Region | None = None) -> None:
        if body is None:
            body = Region(Block(arg_types=[i32, IndexType()]))
        super().__init__(
            properties={
                "sym_name": StringAttr(name),
                "context": IntegerAttr(context, i64),
            },
            regions=[body],
        )

    def verify_(self) -> None:
        """The body takes a token and a position and ends with rom.emit."""
        types = [a.type for a in self.body.block.args]
        if types != [i32, IndexType()]:
            raise VerifyException("a step takes a token (i32) and a position (index)")
        if not isinstance(self.body.block.last_op, EmitOp):
            raise VerifyException("a step ends with rom.emit")


# --- operators of both stages -------------------------------------------------------------------


class OperatorOp(IRDLOperation):
    """Base of every operator: it carries the names of the ONNX nodes that it stands for."""

    irdl_options = (ParsePropInAttrDict(),)


def _same_size(op: Operation, *values: SSAValue) -> int:
    sizes = {vector_size(value.type) for value in values}
    if len(sizes) != 1:
        found = ", ".join(str(vector_size(v.type)) for v in values)
        raise VerifyException(f"{op.name}: values must have equal sizes, found {found}")
    return sizes.pop()


@irdl_op_definition
class EmbedOp(OperatorOp):
    """Reads a token's row (ONNX Gather, com.microsoft.GatherBlockQuantized).

    Example:
    ```
    %x = rom.embed %token of @embedding {onnx = [["Gather"]]} : tensor<64xf32>
    ```
    """

    name = "rom.embed"
    token = operand_def(_token)
    table = prop_def(_symbol)
    onnx = prop_def(Nodes)
    output = result_def(_vector)
    assembly_format = "$token `of` $table attr-dict `:` type($output)"
    traits = traits_def(Pure())

    def __init__(self, token: SSAValue, table: str, onnx: Nodes, output: Attribute) -> None:
        super().__init__(
            operands=[token],
            properties={"table": SymbolRefAttr(table), "onnx": onnx},
            result_types=[output],
        )

    def verify_(self) -> None:
        """The row has the table's width."""
        table = _resolved_type(self, self.table, ROMTensorType)
        assert isinstance(table, ROMTensorType)
        if table.dims[-1] != vector_size(self.output.type):
            raise VerifyException(
                f"rows of @{self.table.root_reference.data} have {table.dims[-1]} elements, "
                f"the result has {vector_size(self.output.type)}"
            )
        if table.offsets.data:
            raise VerifyException(f"@{self.table.root_reference.data}: a table has no offsets")


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
    input = operand_def(_vector)
    weights = prop_def(_symbol)
    bias = opt_prop_def(_symbol)
    activation = opt_prop_def(StringAttr)
    onnx = prop_def(Nodes)
    output = result_def(_vector)
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
        super().__init__(
            operands=[x],
            properties={
                "weights": SymbolRefAttr(weights),
                "bias": None if bias is None else SymbolRefAttr(bias),
                "activation": None if activation is None else StringAttr(activation),
                "onnx": onnx,
            },
            result_types=[output],
        )

    def verify_(self) -> None:
        """Shapes agree; the activation's format is known."""
        if self.activation is not None and self.activation.data not in ACTIVATION_CODES:
            raise VerifyException(
                f"unknown format '{self.activation.data}', known are {', '.join(ACTIVATION_CODES)}"
            )
        _verify_matrix(
            self,
            self.weights,
            self.bias,
            vector_size(self.input.type),
            vector_size(self.output.type),
        )


def _verify_matrix(
    op: Operation, weights: SymbolRefAttr, bias: SymbolRefAttr | None, size: int, rows: int
) -> None:
    type_ = _resolved_type(op, weights, ROMTensorType, AdapterType)
    assert isinstance(type_, ROMTensorType | AdapterType)
    if type_.dims != (rows, size):
        raise VerifyException(
            f"@{weights.root_reference.data} has shape {list(type_.dims)}, "
            f"the operation needs [{rows}, {size}]"
        )
    if bias is not None:
        found = _resolved_type(op, bias, ROMTensorType)
        assert isinstance(found, ROMTensorType)
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
    input = operand_def(_vector)
    gamma = prop_def(_symbol)
    eps = prop_def(_real)
    groups = prop_def(IntegerAttr[I64], default_value=IntegerAttr(1, i64))
    onnx = prop_def(Nodes)
    output = result_def(_vector)
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
        super().__init__(
            operands=[x],
            properties={
                "gamma": SymbolRefAttr(gamma),
                "eps": eps,
                "groups": IntegerAttr(groups, i64),
                "onnx": onnx,
            },
            result_types=[x.type if output is None else output],
        )

    def verify_(self) -> None:
        """Gamma fits the groups."""
        size = _same_size(self, self.input, self.output)
        _verify_norm(self, size, self.groups.value.data, self.gamma)


def _verify_norm(op: Operation, size: int, groups: int, *vectors: SymbolRefAttr) -> None:
    if groups < 1 or size % groups:
        raise VerifyException(f"{size} elements do not divide into {groups} groups")
    for vector in vectors:
        type_ = _resolved_type(op, vector, ROMTensorType)
        assert isinstance(type_, ROMTensorType)
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
    input = operand_def(_vector)
    gamma = prop_def(_symbol)
    beta = opt_prop_def(_symbol)
    eps = prop_def(_real)
    onnx = prop_def(Nodes)
    output = result_def(_vector)
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
        super().__init__(
            operands=[x],
            properties={
                "gamma": SymbolRefAttr(gamma),
                "beta": None if beta is None else SymbolRefAttr(beta),
                "eps": eps,
                "onnx": onnx,
            },
            result_types=[x.type if output is None else output],
        )

    def verify_(self) -> None:
        """Gamma and beta fit."""
        size = _same_size(self, self.input, self.output)
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
    input = operand_def(_vector)
    position = operand_def(_position)
    cos = prop_def(_symbol)
    sin = prop_def(_symbol)
    heads = prop_def(IntegerAttr[I64])
    rotary_dim = prop_def(IntegerAttr[I64])
    interleaved = opt_prop_def(UnitAttr)
    onnx = prop_def(Nodes)
    output = result_def(_vector)
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
        super().__init__(
            operands=[x, position],
            properties={
                "cos": SymbolRefAttr(cos),
                "sin": SymbolRefAttr(sin),
                "heads": IntegerAttr(heads, i64),
                "rotary_dim": IntegerAttr(rotary_dim, i64),
                "interleaved": UnitAttr() if interleaved else None,
                "onnx": onnx,
            },
            result_types=[x.type],
        )

    def verify_(self) -> None:
        """Heads divide the vector; the tables have the right width."""
        size = _same_size(self, self.input, self.output)
        heads, width = self.heads.value.data, self.rotary_dim.value.data
        if heads < 1 or size % heads:
            raise VerifyException(f"{size} elements do not divide into {heads} heads")
        if width % 2 or width > size // heads:
            raise VerifyException(
                f"rotary_dim {width} must be even and at most the head width {size // heads}"
            )
        for table in (self.cos, self.sin):
            type_ = _resolved_type(self, table, ROMTensorType)
            assert isinstance(type_, ROMTensorType)
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
    input = operand_def(AnyOf((_vector, BaseAttr(QuantizedType))))
    position = operand_def(_position)
    cache = prop_def(_symbol)
    onnx = prop_def(Nodes)
    assembly_format = "$input `to` $cache `at` $position attr-dict `:` type($input)"
    traits = traits_def(MemoryWriteEffect())

    def __init__(self, x: SSAValue, cache: str, position: SSAValue, onnx: Nodes) -> None:
        super().__init__(
            operands=[x, position],
            properties={"cache": SymbolRefAttr(cache), "onnx": onnx},
        )

    def verify_(self) -> None:
        """The vector holds every head of the cache, quantised in its format."""
        cache = _resolved_type(self, self.cache, KVType)
        assert isinstance(cache, KVType)
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
    tokens, this one included; `softcap` > 0 maps scores s to softcap * tanh(s / softcap).

    Example:
    ```
    %y = rom.attention %q over @k0, @v0 at %position
        {heads = 4 : i64, scale = 0.25 : f64, onnx = [["GQA"]]}
        : tensor<64xf32> -> tensor<64xf32>
    ```
    """

    name = "rom.attention"
    query = operand_def(_vector)
    position = operand_def(_position)
    keys = prop_def(_symbol)
    values = prop_def(_symbol)
    heads = prop_def(IntegerAttr[I64])
    scale = prop_def(FloatAttr)
    softcap = opt_prop_def(FloatAttr)
    window = opt_prop_def(IntegerAttr[I64])
    onnx = prop_def(Nodes)
    output = result_def(_vector)
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
        output: Attribute | None = None,
    ) -> None:
        super().__init__(
            operands=[query, position],
            properties={
                "keys": SymbolRefAttr(keys),
                "values": SymbolRefAttr(values),
                "heads": IntegerAttr(heads, i64),
                "scale": FloatAttr(scale, 64),
                "softcap": FloatAttr(softcap, 64) if softcap else None,
                "window": IntegerAttr(window, i64) if window > 0 else None,
                "onnx": onnx,
            },
            result_types=[query.type if output is None else output],
        )

    def verify_(self) -> None:
        """Query heads are a multiple of KV heads of the same width."""
        keys = _resolved_type(self, self.keys, KVType)
        values = _resolved_type(self, self.values, KVType)
        assert isinstance(keys, KVType) and isinstance(values, KVType)
        heads = self.heads.value.data
        _verify_heads(heads, keys)
        _verify_heads(heads, values)
        for value, cache in ((self.query, keys), (self.output, values)):
            if vector_size(value.type) != heads * cache.width.data:
                raise VerifyException(
                    f"{heads} heads of width {cache.width.data} need {heads * cache.width.data} "
                    f"elements, found {vector_size(value.type)}"
                )


def _verify_heads(heads: int, cache: KVType) -> None:
    if heads < 1 or heads % cache.heads.data:
        raise VerifyException(
            f"{heads} query heads are not a multiple of {cache.heads.data} KV heads"
        )


@irdl_op_definition
class ActivateOp(OperatorOp):
    """An activation function of each element; `kind` is one of `semantics.ACTIVATIONS`.

    Example:
    ```
    %y = rom.activate %x {kind = "silu", onnx = [["Sigmoid", "Mul"]]}
        : tensor<64xf32> -> tensor<64xf32>
    ```
    """

    name = "rom.activate"
    input = operand_def(_vector)
    kind = prop_def(StringAttr)
    onnx = prop_def(Nodes)
    output = result_def(_vector)
    assembly_format = "$input attr-dict `:` type($input) `->` type($output)"
    traits = traits_def(Pure())

    def __init__(
        self, x: SSAValue, kind: str, onnx: Nodes, output: Attribute | None = None
    ) -> None:
        super().__init__(
            operands=[x],
            properties={"kind": StringAttr(kind), "onnx": onnx},
            result_types=[x.type if output is None else output],
        )

    def verify_(self) -> None:
        """The kind is known."""
        _same_size(self, self.input, self.output)
        if self.kind.data not in ACTIVATIONS:
            raise VerifyException(
                f"unknown activation '{self.kind.data}', known are {', '.join(ACTIVATIONS)}"
            )


class _BinaryOp(OperatorOp):
    lhs = operand_def(_vector)
    rhs = operand_def(_vector)
    onnx = prop_def(Nodes)
    output = result_def(_vector)
    assembly_format = "$lhs `,` $rhs attr-dict `:` type($lhs) `,` type($rhs) `->` type($output)"
    traits = traits_def(Pure())

    def __init__(
        self, lhs: SSAValue, rhs: SSAValue, onnx: Nodes, output: Attribute | None = None
    ) -> None:
        super().__init__(
            operands=[lhs, rhs],
            properties={"onnx": onnx},
            result_types=[lhs.type if output is None else output],
        )

    def verify_(self) -> None:
        """All sizes are equal."""
        _same_size(self, self.lhs, self.rhs, self.output)


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
class ScaleOp(OperatorOp):
    """x * factor of each element.

    Example:
    ```
    %y = rom.scale %x {factor = 8.0 : f64, onnx = [["Mul"]]} : tensor<64xf32> -> tensor<64xf32>
    ```
    """

    name = "rom.scale"
    input = operand_def(_vector)
    factor = prop_def(_real)
    onnx = prop_def(Nodes)
    output = result_def(_vector)
    assembly_format = "$input attr-dict `:` type($input) `->` type($output)"
    traits = traits_def(Pure())

    def __init__(
        self, x: SSAValue, factor: Attribute, onnx: Nodes, output: Attribute | None = None
    ) -> None:
        super().__init__(
            operands=[x],
            properties={"factor": factor, "onnx": onnx},
            result_types=[x.type if output is None else output],
        )

    def verify_(self) -> None:
        """All sizes are equal."""
        _same_size(self, self.input, self.output)


@irdl_op_definition
class SoftcapOp(OperatorOp):
    """cap * tanh(x / cap) of each element (Gemma 2's final logits).

    Example:
    ```
    %y = rom.softcap %x {cap = 30.0 : f64, onnx = [["Div", "Tanh", "Mul"]]}
        : tensor<64xf32> -> tensor<64xf32>
    ```
    """

    name = "rom.softcap"
    input = operand_def(_vector)
    cap = prop_def(_real)
    inverse = opt_prop_def(RealAttr)
    """1 / cap, in the integer stage."""
    onnx = prop_def(Nodes)
    output = result_def(_vector)
    assembly_format = "$input attr-dict `:` type($input) `->` type($output)"
    traits = traits_def(Pure())

    def __init__(
        self,
        x: SSAValue,
        cap: Attribute,
        onnx: Nodes,
        inverse: RealAttr | None = None,
        output: Attribute | None = None,
    ) -> None:
        super().__init__(
            operands=[x],
            properties={"cap": cap, "inverse": inverse, "onnx": onnx},
            result_types=[x.type if output is None else output],
        )

    def verify_(self) -> None:
        """All sizes are equal."""
        _same_size(self, self.input, self.output)


@irdl_op_definition
class SliceOp(OperatorOp):
    """A contiguous part of a vector (Split, packed QKV).

    Example:
    ```
    %q = rom.slice %qkv from 0 {onnx = [["Split"]]} : tensor<128xf32> -> tensor<64xf32>
    ```
    """

    name = "rom.slice"
    input = operand_def(_vector)
    offset = prop_def(IntegerAttr[I64])
    onnx = prop_def(Nodes)
    output = result_def(_vector)
    assembly_format = "$input `from` $offset attr-dict `:` type($input) `->` type($output)"
    traits = traits_def(Pure())

    def __init__(self, x: SSAValue, offset: int, onnx: Nodes, output: Attribute) -> None:
        super().__init__(
            operands=[x],
            properties={"offset": IntegerAttr(offset, i64), "onnx": onnx},
            result_types=[output],
        )

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
    input = operand_def(_vector)
    onnx = prop_def(Nodes)
    token = result_def(_token)
    assembly_format = "$input attr-dict `:` type($input)"
    traits = traits_def(Pure())

    def __init__(self, x: SSAValue, onnx: Nodes) -> None:
        super().__init__(operands=[x], properties={"onnx": onnx}, result_types=[i32])


# --- operators of the integer stage -------------------------------------------------------------


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
    cache = opt_prop_def(_symbol)
    onnx = prop_def(Nodes)
    output = result_def(QuantizedType)
    assembly_format = "$input (`for` $cache^)? attr-dict `:` type($input) `->` type($output)"
    traits = traits_def(Pure())

    def __init__(
        self, x: SSAValue, output: QuantizedType, onnx: Nodes, cache: str | None = None
    ) -> None:
        super().__init__(
            operands=[x],
            properties={
                "cache": None if cache is None else SymbolRefAttr(cache),
                "onnx": onnx,
            },
            result_types=[output],
        )

    def verify_(self) -> None:
        """Groups cover the vector; the format is known; a cache has a static scale."""
        type_ = self.output.type
        assert isinstance(type_, QuantizedType)
        if type_.size != vector_size(self.input.type):
            raise VerifyException(
                f"{type_.groups.data} groups of {type_.width.data} do not cover "
                f"{vector_size(self.input.type)} elements"
            )
        if type_.format.data not in ACTIVATION_CODES:
            raise VerifyException(
                f"unknown format '{type_.format.data}', known are {', '.join(ACTIVATION_CODES)}"
            )
        if self.cache is not None:
            cache = _resolved_type(self, self.cache, KVType)
            assert isinstance(cache, KVType)
            if not cache.static.data:
                raise VerifyException(
                    f"@{self.cache.root_reference.data} has no static scale to quantise with"
                )


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
    input = operand_def(QuantizedType)
    weights = prop_def(_symbol)
    onnx = prop_def(Nodes)
    output = result_def(AccumulatorType)
    assembly_format = "$input `by` $weights attr-dict `:` type($input) `->` type($output)"
    traits = traits_def(Pure())

    def __init__(self, x: SSAValue, weights: str, onnx: Nodes, output: Attribute) -> None:
        super().__init__(
            operands=[x],
            properties={"weights": SymbolRefAttr(weights), "onnx": onnx},
            result_types=[output],
        )

    def verify_(self) -> None:
        """Shapes agree, and the sum fits 62 bits."""
        source, target = self.input.type, self.output.type
        assert isinstance(source, QuantizedType) and isinstance(target, AccumulatorType)
        if source.groups.data != 1:
            raise VerifyException("a matrix takes a vector with one scale")
        _verify_matrix(self, self.weights, None, source.size, target.size.data)
        if target.bits.data > 62:
            raise VerifyException(f"{target.bits.data} bits of accumulator, at most 62 are exact")


@irdl_op_definition
class RequantizeOp(OperatorOp):
    """Scales accumulators to fixed point, then adds bias and residual, each step saturating.

    The scale is that of the quantised vector times the matrix's exponent; the exponent of an
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
    scale = operand_def(QuantizedType)
    residual = opt_operand_def(FixedType)
    weights = prop_def(_symbol)
    bias = opt_prop_def(_symbol)
    pre_shift = prop_def(IntegerAttr[I64])
    onnx = prop_def(Nodes)
    output = result_def(FixedType)
    assembly_format = (
        "$input `scaled` $scale `,` $weights (`bias` $bias^)? (`residual` $residual^)? attr-dict"
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
    ) -> None:
        super().__init__(
            operands=[x, scale, residual],
            properties={
                "weights": SymbolRefAttr(weights),
                "bias": None if bias is None else SymbolRefAttr(bias),
                "pre_shift": IntegerAttr(pre_shift, i64),
                "onnx": onnx,
            },
            result_types=[output],
        )

    def verify_(self) -> None:
        """Sizes agree."""
        source, target = self.input.type, self.output.type
        assert isinstance(source, AccumulatorType) and isinstance(target, FixedType)
        sizes = [source.size.data, target.size.data]
        if self.residual is not None:
            sizes.append(vector_size(self.residual.type))
        if len(set(sizes)) != 1:
            found = ", ".join(map(str, sizes))
            raise VerifyException(f"{self.name}: values must have equal sizes, found {found}")
        if self.pre_shift.value.data < 0:
            raise VerifyException("pre_shift must not be negative")


@irdl_op_definition
class QueryKeyOp(OperatorOp):
    """Scores of the cached tokens, in units of log2 (QK^T, scale, soft cap).

    `score_scale` is the softmax scale times log2(e). With a soft cap it is the plain scale, and
    `log2e` follows the cap.

    Example:
    ```
    %s = rom.query_key %q over @k0 at %position
        {score_scale = #rom.real<12101203, 25>, onnx = [["GQA"]]}
        : !rom.quantized<4, 16, int8> -> !rom.scores<4, 16>
    ```
    """

    name = "rom.query_key"
    query = operand_def(QuantizedType)
    position = operand_def(_position)
    keys = prop_def(_symbol)
    score_scale = prop_def(RealAttr)
    cap = opt_prop_def(RealAttr)
    cap_inverse = opt_prop_def(RealAttr)
    log2e = opt_prop_def(RealAttr)
    window = opt_prop_def(IntegerAttr[I64])
    onnx = prop_def(Nodes)
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
    ) -> None:
        cap, inverse, log2e = softcap or (None, None, None)
        super().__init__(
            operands=[query, position],
            properties={
                "keys": SymbolRefAttr(keys),
                "score_scale": score_scale,
                "cap": cap,
                "cap_inverse": inverse,
                "log2e": log2e,
                "window": IntegerAttr(window, i64) if window > 0 else None,
                "onnx": onnx,
            },
            result_types=[output],
        )

    def verify_(self) -> None:
        """One group a query head, of the cache's width."""
        query, scores = self.query.type, self.output.type
        keys = _resolved_type(self, self.keys, KVType)
        assert isinstance(query, QuantizedType) and isinstance(scores, ScoresType)
        assert isinstance(keys, KVType)
        _verify_heads(query.groups.data, keys)
        if query.width.data != keys.width.data or scores.heads != query.groups:
            raise VerifyException("query, keys and scores differ in heads or width")
        given = [self.cap, self.cap_inverse, self.log2e]
        if any(given) and not all(given):
            raise VerifyException("a soft cap needs cap, cap_inverse and log2e")


@irdl_op_definition
class SoftmaxOp(OperatorOp):
    """exp2(score - max) of each head times the values' scales, as codes with a scale and a sum.

    Example:
    ```
    %p = rom.softmax %s over @v0 at %position {onnx = [["GQA"]]}
        : !rom.scores<4, 16> -> !rom.probabilities<4, uint8>
    ```
    """

    name = "rom.softmax"
    scores = operand_def(ScoresType)
    position = operand_def(_position)
    values = prop_def(_symbol)
    window = opt_prop_def(IntegerAttr[I64])
    onnx = prop_def(Nodes)
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
    ) -> None:
        super().__init__(
            operands=[scores, position],
            properties={
                "values": SymbolRefAttr(values),
                "window": IntegerAttr(window, i64) if window > 0 else None,
                "onnx": onnx,
            },
            result_types=[output],
        )

    def verify_(self) -> None:
        """Heads agree; the format is known."""
        source, target = self.scores.type, self.output.type
        values = _resolved_type(self, self.values, KVType)
        assert isinstance(source, ScoresType) and isinstance(target, ProbabilitiesType)
        assert isinstance(values, KVType)
        _verify_heads(source.heads.data, values)
        if source.heads != target.heads:
            raise VerifyException("scores and probabilities differ in heads")
        if target.format.data not in PROBABILITY_CODES:
            raise VerifyException(
                f"unknown format '{target.format.data}', known are {', '.join(PROBABILITY_CODES)}"
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
    position = operand_def(_position)
    values = prop_def(_symbol)
    window = opt_prop_def(IntegerAttr[I64])
    onnx = prop_def(Nodes)
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
        super().__init__(
            operands=[probabilities, position],
            properties={
                "values": SymbolRefAttr(values),
                "window": IntegerAttr(window, i64) if window > 0 else None,
                "onnx": onnx,
            },
            result_types=[output],
        )

    def verify_(self) -> None:
        """The result has all heads."""
        source, target = self.probabilities.type, self.output.type
        values = _resolved_type(self, self.values, KVType)
        assert isinstance(source, ProbabilitiesType) and isinstance(target, FixedType)
        assert isinstance(values, KVType)
        _verify_heads(source.heads.data, values)
        wanted = source.heads.data * values.width.data
        if target.size.data != wanted:
            raise VerifyException(f"the result needs {wanted} elements, found {target.size.data}")


ROM = Dialect(
    "rom",
    [
        ParameterOp,
        CacheOp,
        SlotOp,
        SiteOp,
        LayerOp,
        YieldOp,
        RepeatOp,
        StepOp,
        EmitOp,
        EmbedOp,
        LinearOp,
        RMSNormOp,
        LayerNormOp,
        RotaryOp,
        AppendOp,
        AttentionOp,
        ActivateOp,
        AddOp,
        MulOp,
        ScaleOp,
        SoftcapOp,
        SliceOp,
        SampleOp,
        QuantizeOp,
        DotOp,
        RequantizeOp,
        QueryKeyOp,
        SoftmaxOp,
        WeightedSumOp,
    ],
    [
        RealAttr,
        ImageAttr,
        ROMTensorType,
        AdapterType,
        KVType,
        FixedType,
        AccumulatorType,
        ScoresType,
        QuantizedType,
        ProbabilitiesType,
    ],
)
