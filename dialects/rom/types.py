"""Attributes and types of the rom dialect: tensors of the ROM, caches, values of both stages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from xdsl.dialects.builtin import (
    ArrayAttr,
    FloatAttr,
    IndexType,
    IntAttr,
    StringAttr,
    SymbolRefAttr,
    TensorType,
    f32,
    i32,
)
from xdsl.ir import Attribute, ParametrizedAttribute, TypeAttribute
from xdsl.irdl import AnyOf, BaseAttr, EqAttrConstraint, irdl_attr_definition
from xdsl.parser import AttrParser
from xdsl.printer import Printer
from xdsl.utils.exceptions import VerifyException

from intaglio.dialects import codes
from intaglio.dialects.formats import BLOCK_FORMATS, HEAD_FORMATS
from intaglio.dialects.names import escaped, unescaped
from intaglio.dialects.number_ranges import ranges_text, read_ranges

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

PROBABILITY_CODES = ("uint8", "uint16", "places8")


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
    experts: IntAttr
    """Matrices of a family, whose rows follow each other; 1: it is no family."""

    def __init__(
        self,
        shape: Sequence[int],
        code: str,
        group: int = 0,
        zeros: bool = False,
        offsets: int = 0,
        experts: int = 1,
    ) -> None:
        super().__init__(
            ArrayAttr([IntAttr(n) for n in shape]),
            StringAttr(code),
            IntAttr(group),
            IntAttr(int(zeros)),
            IntAttr(offsets),
            IntAttr(experts),
        )

    @classmethod
    def parse_parameters(cls, parser: AttrParser) -> Sequence[Attribute]:
        """Parses `<[N, K], code (, group G)? (, zeros | , offsets B)? (, experts E)?>`."""
        with parser.in_angle_brackets():
            shape = parser.parse_comma_separated_list(
                parser.Delimiter.SQUARE, lambda: parser.parse_integer(allow_boolean=False)
            )
            parser.parse_punctuation(",")
            code = parser.parse_identifier()
            group, zeros, offsets, experts = 0, 0, 0, 1
            while parser.parse_optional_punctuation(","):
                if parser.parse_optional_keyword("group"):
                    group = parser.parse_integer(allow_boolean=False)
                elif parser.parse_optional_keyword("offsets"):
                    offsets = parser.parse_integer(allow_boolean=False)
                elif parser.parse_optional_keyword("experts"):
                    experts = parser.parse_integer(allow_boolean=False)
                else:
                    parser.parse_keyword("zeros")
                    zeros = 1
        return [
            ArrayAttr([IntAttr(n) for n in shape]),
            StringAttr(code),
            IntAttr(group),
            IntAttr(zeros),
            IntAttr(offsets),
            IntAttr(experts),
        ]

    def print_parameters(self, printer: Printer) -> None:
        """Prints `<[N, K], code (, group G)? (, zeros | , offsets B)? (, experts E)?>`."""
        dims = ", ".join(str(n) for n in self.dims)
        group = f", group {self.group.data}" if self.group.data else ""
        zeros = ", zeros" if self.zeros.data else ""
        offsets = f", offsets {self.offsets.data}" if self.offsets.data else ""
        experts = f", experts {self.experts.data}" if self.experts.data != 1 else ""
        printer.print_string(f"<[{dims}], {self.code.data}{group}{zeros}{offsets}{experts}>")

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
            if self.experts.data < 1 or self.dims[0] % self.experts.data:
                raise VerifyException(
                    f"{self.dims[0]} rows are not those of {self.experts.data} experts"
                )
        elif self.experts.data != 1:
            raise VerifyException(f"a family of experts is of matrices, not of {code}")
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
    def product_rows(self) -> int:
        """Rows of a product: all of a matrix, those of one expert of a family."""
        return self.dims[0] // self.experts.data

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

    With `experts 8` it is a family of so many matrices of equal shape: the rows of one expert
    follow those of the other, `!rom.tensor<[1024, 64], int4, group 32, experts 8>`.
    """

    name = "rom.tensor"

    def __init__(
        self,
        shape: Sequence[int],
        code: str,
        group: int = 0,
        zeros: bool = False,
        offsets: int = 0,
        experts: int = 1,
    ) -> None:
        super().__init__(shape, code, group, zeros, offsets, experts)


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
        if self.experts.data != 1:
            raise VerifyException("an adapter is no family of experts")
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
        known = (*ACTIVATION_CODES, *HEAD_FORMATS)
        if self.format.data not in (*known, "float32"):
            raise VerifyException(
                f"unknown KV format '{self.format.data}', known are "
                f"{', '.join(known)}, and float32 before legalisation"
            )
        if self.static.data and self.format.data in HEAD_FORMATS:
            raise VerifyException(f"{self.format.data} has a scale a head, no static one")


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
class StateType(_IntegersType):
    """`!rom.state<64>`: 64 values of the last token, in the format of what is stored there."""

    name = "rom.state"
    size: IntAttr

    def __init__(self, size: int) -> None:
        super().__init__(IntAttr(size))

    def verify(self) -> None:
        """There is something of it."""
        if self.size.data < 1:
            raise VerifyException("a state has at least 1 element")


@irdl_attr_definition
class MatricesType(_IntegersType):
    """`!rom.matrices<4, 16, 16>`: the state of linear attention: heads, key and value elements.

    Each head has a matrix of 16-bit mantissas with one exponent.
    """

    name = "rom.matrices"
    heads: IntAttr
    key_width: IntAttr
    value_width: IntAttr

    def __init__(self, heads: int, key_width: int, value_width: int) -> None:
        super().__init__(IntAttr(heads), IntAttr(key_width), IntAttr(value_width))

    def verify(self) -> None:
        """There is something of it."""
        if min(self.dims) < 1:
            raise VerifyException("a state has at least 1 head and 1 element a head")

    @property
    def dims(self) -> tuple[int, int, int]:
        """Heads, elements of a key, elements of a value."""
        return self.heads.data, self.key_width.data, self.value_width.data


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
class RoutingType(_IntegersType):
    """`!rom.routing<2, 8>`: the numbers of 2 of 8 experts, each with its share of the result."""

    name = "rom.routing"
    chosen: IntAttr
    experts: IntAttr

    def __init__(self, chosen: int, experts: int) -> None:
        super().__init__(IntAttr(chosen), IntAttr(experts))

    def verify(self) -> None:
        """No more are chosen than there are."""
        if not 1 <= self.chosen.data <= self.experts.data:
            raise VerifyException(
                f"{self.chosen.data} of {self.experts.data} experts cannot be chosen"
            )


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
class BlocksType(ParametrizedAttribute, TypeAttribute):
    """`!rom.blocks<192, half8, 32, 16>`: 192 codes, of which 32 share an exponent and a step.

    They stand for integers of one unit, of 16 fraction bits (`formulas.blocks`). In
    `!rom.blocks<192, half8, 32, 16, wide "0,3-5">` the codes of blocks 0, 3, 4 and 5 have 16 bits.
    """

    name = "rom.blocks"
    elements: IntAttr
    format: StringAttr
    block: IntAttr
    fraction: IntAttr
    wide: StringAttr
    """Blocks whose codes have 16 bits, as `number_ranges.ranges_text` has them."""

    def __init__(
        self, elements: int, fmt: str, block: int, fraction: int, wide: Iterable[int] = ()
    ) -> None:
        super().__init__(
            IntAttr(elements),
            StringAttr(fmt),
            IntAttr(block),
            IntAttr(fraction),
            StringAttr(ranges_text(wide)),
        )

    @classmethod
    def parse_parameters(cls, parser: AttrParser) -> Sequence[Attribute]:
        """Parses `<size, format, block, fraction>`, and `, wide "blocks"` before its end."""
        with parser.in_angle_brackets():
            size = IntAttr(parser.parse_integer(allow_boolean=False))
            parser.parse_punctuation(",")
            fmt = StringAttr(parser.parse_identifier())
            parser.parse_punctuation(",")
            block = IntAttr(parser.parse_integer(allow_boolean=False))
            parser.parse_punctuation(",")
            fraction, wide = IntAttr(parser.parse_integer()), ""
            if parser.parse_optional_punctuation(",") is not None:
                parser.parse_keyword("wide")
                wide = parser.parse_str_literal()
        return [size, fmt, block, fraction, StringAttr(wide)]

    def print_parameters(self, printer: Printer) -> None:
        """Prints `<size, format, block, fraction>`, and which are wide, if any are."""
        size, block, fraction = (one.data for one in (self.elements, self.block, self.fraction))
        wide = f', wide "{self.wide.data}"' if self.wide.data else ""
        printer.print_string(f"<{size}, {self.format.data}, {block}, {fraction}{wide}>")

    def verify(self) -> None:
        """The format has exponents of blocks, and a block's size is a power of two."""
        if self.format.data not in BLOCK_FORMATS:
            raise VerifyException(
                f"'{self.format.data}' has no exponents of blocks; {', '.join(BLOCK_FORMATS)} have"
            )
        size, block = self.size, self.block.data
        if size < 1:
            raise VerifyException(f"there are {size} elements, at least 1 is needed")
        if block < 1 or block & (block - 1):
            raise VerifyException(f"a block of {block} elements is no power of two")
        try:
            wide = read_ranges(self.wide.data)
        except ValueError as error:
            raise VerifyException(f"wide blocks: {error}") from error
        if ranges_text(wide) != self.wide.data:
            raise VerifyException(
                f'wide blocks "{self.wide.data}" are written as "{ranges_text(wide)}"'
            )
        if wide and max(wide) >= (count := -(-size // block)):
            raise VerifyException(
                f"block {max(wide)} is to be wide; there are {count}, from 0 to {count - 1}"
            )

    @property
    def size(self) -> int:
        """Number of codes."""
        return self.elements.data


@irdl_attr_definition
class ScaleType(ParametrizedAttribute, TypeAttribute):
    """`!rom.scale`: a mantissa of 24 bits with an exponent, which a product's results are times."""

    name = "rom.scale"


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

VECTOR = AnyOf((BaseAttr(TensorType), BaseAttr(FixedType)))
REAL = AnyOf((BaseAttr(FloatAttr), BaseAttr(RealAttr)))
TOKEN = EqAttrConstraint(i32)
POSITION = EqAttrConstraint(IndexType())
SYMBOL = BaseAttr(SymbolRefAttr)
SCALE = EqAttrConstraint(ScaleType())
MULTIPLIED = AnyOf((BaseAttr(QuantizedType), BaseAttr(BlocksType)))
"""What a matrix is multiplied with: codes with one scale, or with an exponent a block."""
BUFFER = AnyOf(
    (
        BaseAttr(ROMTensorType),
        BaseAttr(AdapterType),
        BaseAttr(KVType),
        BaseAttr(StateType),
        BaseAttr(MatricesType),
    )
)


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
