"""Operations of CIRCT's hw and seq dialects that xDSL lacks; their text is what CIRCT parses.

The dialects' names belong to xDSL, so the operations are added one by one: `load` for a context.
Only what Intaglio builds is here. Sources: CIRCT's HW, Seq dialect documentation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, NamedTuple

from xdsl.context import Context
from xdsl.dialects import seq
from xdsl.dialects.builtin import (
    I32,
    ArrayAttr,
    BoolAttr,
    IntAttr,
    IntegerAttr,
    IntegerType,
    StringAttr,
    i1,
    i32,
)
from xdsl.dialects.hw import ArrayType, InnerSymAttr
from xdsl.ir import Attribute, Data, ParametrizedAttribute, SSAValue, TypeAttribute
from xdsl.irdl import (
    AnyAttr,
    AttrSizedOperandSegments,
    IRDLOperation,
    VarConstraint,
    irdl_attr_definition,
    irdl_op_definition,
    operand_def,
    opt_operand_def,
    opt_prop_def,
    prop_def,
    result_def,
    traits_def,
)
from xdsl.parser import AttrParser, Parser, UnresolvedOperand
from xdsl.printer import Printer
from xdsl.traits import ConstantLike, Pure
from xdsl.utils.exceptions import VerifyException


class Words(NamedTuple):
    """A table of unsigned numbers, element 0 first."""

    numbers: Sequence[int]
    bits: int


@irdl_attr_definition
class WordsAttr(Data[Words]):
    """The fields of an `AggregateConstantOp` of many integers; printed as they are, without an
    attribute for each."""

    name = "intaglio.words"

    def print_parameter(self, printer: Printer) -> None:
        kind = f" : i{self.data.bits}"
        printer.print_string(f"[{(kind + ', ').join(map(str, reversed(self.data.numbers)))}{kind}]")

    @classmethod
    def parse_parameter(cls, parser: AttrParser) -> Words:
        parser.raise_error("integers of an array are parsed as such")

    def __len__(self) -> int:
        return len(self.data.numbers)


@irdl_op_definition
class AggregateConstantOp(IRDLOperation):
    """A constant array. Element 0 is the **last** field, as in `hw.array_create`.

    Example:
    ```
    %0 = hw.aggregate_constant [3 : i4, 2 : i4] : !hw.array<2xi4>
    ```
    """

    name = "hw.aggregate_constant"
    fields = prop_def(ArrayAttr[Attribute] | WordsAttr)
    result = result_def(ArrayType)
    traits = traits_def(Pure(), ConstantLike())

    def __init__(self, fields: ArrayAttr[Attribute] | WordsAttr, result_type: ArrayType) -> None:
        super().__init__(properties={"fields": fields}, result_types=[result_type])

    @classmethod
    def parse(cls, parser: Parser) -> AggregateConstantOp:
        fields = parser.parse_attribute()
        attributes = parser.parse_optional_attr_dict()
        parser.parse_punctuation(":")
        op = cls.create(properties={"fields": fields}, result_types=[parser.parse_type()])
        op.attributes.update(attributes)
        return op

    def print(self, printer: Printer) -> None:
        printer.print_string(" ")
        if isinstance(self.fields, WordsAttr):
            self.fields.print_parameter(printer)
        else:
            printer.print_attribute(self.fields)
        printer.print_op_attributes(self.attributes)
        printer.print_string(" : ")
        printer.print_attribute(self.result.type)

    def verify_(self) -> None:
        """As many fields as the array has elements."""
        assert isinstance(self.result.type, ArrayType)
        if len(self.fields) != len(self.result.type):
            raise VerifyException(
                f"{len(self.fields)} fields for an array of {len(self.result.type)} elements"
            )


@irdl_op_definition
class WireOp(IRDLOperation):
    """A value with a name of its own; may be used before the value is defined.

    Example:
    ```
    %next = hw.wire %0 : i8
    ```
    """

    name = "hw.wire"
    T: ClassVar = VarConstraint("T", AnyAttr())
    inner_sym = opt_prop_def(InnerSymAttr)
    input = operand_def(T)
    result = result_def(T)
    assembly_format = "$input (`sym` $inner_sym^)? attr-dict `:` type($input)"

    def __init__(self, value: SSAValue) -> None:
        super().__init__(operands=[value], result_types=[value.type])


@irdl_attr_definition
class FirMemType(ParametrizedAttribute, TypeAttribute):
    """A memory of `depth` words of `width` bits; a mask of `mask` bits enables equal parts."""

    name = "seq.firmem"
    depth: IntAttr
    width: IntAttr
    mask: IntAttr
    """Bits of the write mask; 0 for none."""

    @staticmethod
    def of(depth: int, width: int, mask: int = 0) -> FirMemType:
        """From numbers."""
        return FirMemType(IntAttr(depth), IntAttr(width), IntAttr(mask))

    @property
    def address(self) -> IntegerType:
        """Type of an address: enough bits for the depth, at least one."""
        return IntegerType(max(1, (self.depth.data - 1).bit_length()))

    @property
    def element(self) -> IntegerType:
        """Type of a word."""
        return IntegerType(self.width.data)

    @classmethod
    def parse_parameters(cls, parser: AttrParser) -> tuple[IntAttr, IntAttr, IntAttr]:
        with parser.in_angle_brackets():
            depth = parser.parse_shape_dimension(allow_dynamic=False)
            parser.parse_shape_delimiter()
            width = parser.parse_shape_dimension(allow_dynamic=False)
            mask = 0
            if parser.parse_optional_punctuation(",") is not None:
                parser.parse_keyword("mask")
                mask = parser.parse_integer(allow_boolean=False, allow_negative=False)
        return IntAttr(depth), IntAttr(width), IntAttr(mask)

    def print_parameters(self, printer: Printer) -> None:
        printer.print_string(f"<{self.depth.data} x {self.width.data}")
        if self.mask.data:
            printer.print_string(f", mask {self.mask.data}")
        printer.print_string(">")

    def verify(self) -> None:
        """A word at least, and masked parts of equal width."""
        if self.depth.data < 1 or self.width.data < 1:
            raise VerifyException("a memory has at least one word of one bit")
        if self.mask.data and self.width.data % self.mask.data:
            raise VerifyException(
                f"{self.width.data} bits do not split into {self.mask.data} masked parts"
            )


@irdl_attr_definition
class FirMemInitAttr(ParametrizedAttribute):
    """Content of a memory at power-on: a file for `$readmemh` or `$readmemb`.

    `inline_` puts the `initial` block into the memory's module, else into a bound one.
    """

    name = "seq.firmem.init"
    file: StringAttr
    binary: BoolAttr
    inline_: BoolAttr

    @classmethod
    def parse_parameters(cls, parser: AttrParser) -> tuple[StringAttr, BoolAttr, BoolAttr]:
        with parser.in_angle_brackets():
            file = parser.parse_str_literal()
            parser.parse_punctuation(",")
            binary = parser.parse_boolean()
            parser.parse_punctuation(",")
            inline = parser.parse_boolean()
        return StringAttr(file), _bool(binary), _bool(inline)

    def print_parameters(self, printer: Printer) -> None:
        words = [str(bool(flag.value.data)).lower() for flag in (self.binary, self.inline_)]
        with printer.in_angle_brackets():
            printer.print_string_literal(self.file.data)
            printer.print_string(f", {words[0]}, {words[1]}")


def _bool(value: bool) -> BoolAttr:
    return IntegerAttr(int(value), i1)


READ_UNDER_WRITE = ("undefined", "old", "new")
WRITE_UNDER_WRITE = ("undefined", "port_order")


@irdl_op_definition
class FirMemOp(IRDLOperation):
    """A memory; its ports are `seq.firmem.read_port` and `seq.firmem.write_port`.

    A memory without write ports and without an inner symbol or initial content is folded to zero
    by CIRCT's canonicaliser: a ROM that is filled from outside needs the symbol.

    Example:
    ```
    %mem = seq.firmem sym @mem 1, 1, undefined, port_order : <16 x 8>
    ```
    """

    name = "seq.firmem"
    inner_sym = opt_prop_def(InnerSymAttr)
    read_latency = prop_def(IntegerAttr[I32], prop_name="readLatency")
    write_latency = prop_def(IntegerAttr[I32], prop_name="writeLatency")
    ruw = prop_def(StringAttr)
    wuw = prop_def(StringAttr)
    init = opt_prop_def(FirMemInitAttr)
    memory = result_def(FirMemType)

    def __init__(
        self,
        type_: FirMemType,
        read_latency: int = 1,
        write_latency: int = 1,
        ruw: str = "undefined",
        wuw: str = "port_order",
        init: FirMemInitAttr | None = None,
        inner_sym: InnerSymAttr | None = None,
    ) -> None:
        super().__init__(
            properties={
                "inner_sym": inner_sym,
                "readLatency": IntegerAttr(read_latency, i32),
                "writeLatency": IntegerAttr(write_latency, i32),
                "ruw": StringAttr(ruw),
                "wuw": StringAttr(wuw),
                "init": init,
            },
            result_types=[type_],
        )

    @classmethod
    def parse(cls, parser: Parser) -> FirMemOp:
        symbol = None
        if parser.parse_optional_keyword("sym") is not None:
            symbol = InnerSymAttr(InnerSymAttr.parse_parameters(parser)[0])
        read = parser.parse_integer(allow_boolean=False)
        parser.parse_punctuation(",")
        write = parser.parse_integer(allow_boolean=False)
        parser.parse_punctuation(",")
        ruw = parser.parse_identifier()
        parser.parse_punctuation(",")
        wuw = parser.parse_identifier()
        attributes = parser.parse_optional_attr_dict()
        parser.parse_punctuation(":")
        init = attributes.pop("init", None)
        if init is not None and not isinstance(init, FirMemInitAttr):
            parser.raise_error("init is no #seq.firmem.init")
        op = cls(_short_type(parser), read, write, ruw, wuw, init, symbol)
        op.attributes.update(attributes)
        return op

    def print(self, printer: Printer) -> None:
        if self.inner_sym is not None:
            printer.print_string(" sym ")
            self.inner_sym.print_parameters(printer)
        latencies = f" {self.read_latency.value.data}, {self.write_latency.value.data}"
        printer.print_string(f"{latencies}, {self.ruw.data}, {self.wuw.data}")
        init = {} if self.init is None else {"init": self.init}
        printer.print_op_attributes({**init, **self.attributes})
        _print_short_type(printer, self.memory.type)

    def verify_(self) -> None:
        """The words CIRCT knows."""
        if self.ruw.data not in READ_UNDER_WRITE or self.wuw.data not in WRITE_UNDER_WRITE:
            raise VerifyException(f"no such behaviour: {self.ruw.data}, {self.wuw.data}")


@irdl_op_definition
class FirMemReadOp(IRDLOperation):
    """A read port: the word at `address`, as many cycles later as the memory's read latency.

    Example:
    ```
    %q = seq.firmem.read_port %mem[%address], clock %clk enable %en : <16 x 8>
    ```
    """

    name = "seq.firmem.read_port"
    memory = operand_def(FirMemType)
    address = operand_def(IntegerType)
    clk = operand_def(seq.ClockType)
    enable = opt_operand_def(i1)
    data = result_def(IntegerType)
    irdl_options = (AttrSizedOperandSegments(as_property=True),)

    def __init__(
        self, memory: SSAValue, address: SSAValue, clk: SSAValue, enable: SSAValue | None = None
    ) -> None:
        assert isinstance(memory.type, FirMemType)
        super().__init__(
            operands=[memory, address, clk, enable], result_types=[memory.type.element]
        )

    @classmethod
    def parse(cls, parser: Parser) -> FirMemReadOp:
        memory, address = _parse_place(parser)
        parser.parse_punctuation(",")
        parser.parse_keyword("clock")
        clk = parser.parse_unresolved_operand()
        enable = _optional(parser, "enable")
        attributes = parser.parse_optional_attr_dict()
        parser.parse_punctuation(":")
        type_ = _short_type(parser)
        op = cls(
            parser.resolve_operand(memory, type_),
            parser.resolve_operand(address, type_.address),
            parser.resolve_operand(clk, seq.clock),
            None if enable is None else parser.resolve_operand(enable, i1),
        )
        op.attributes.update(attributes)
        return op

    def print(self, printer: Printer) -> None:
        _print_place(printer, self.memory, self.address)
        printer.print_string(", clock ")
        printer.print_ssa_value(self.clk)
        _print_optional(printer, "enable", self.enable)
        printer.print_op_attributes(self.attributes)
        _print_short_type(printer, self.memory.type)

    def verify_(self) -> None:
        """Address and data have the memory's widths."""
        _check_port(self.memory.type, self.address.type, self.data.type)


@irdl_op_definition
class FirMemWriteOp(IRDLOperation):
    """A write port; the masked parts are written at the clock edge while `enable` is 1.

    Example:
    ```
    seq.firmem.write_port %mem[%address] = %data, clock %clk enable %en mask %m
        : <16 x 8, mask 2>, i2
    ```
    """

    name = "seq.firmem.write_port"
    memory = operand_def(FirMemType)
    address = operand_def(IntegerType)
    clk = operand_def(seq.ClockType)
    enable = opt_operand_def(i1)
    data = operand_def(IntegerType)
    mask = opt_operand_def(IntegerType)
    irdl_options = (AttrSizedOperandSegments(as_property=True),)

    def __init__(
        self,
        memory: SSAValue,
        address: SSAValue,
        clk: SSAValue,
        data: SSAValue,
        enable: SSAValue | None = None,
        mask: SSAValue | None = None,
    ) -> None:
        super().__init__(operands=[memory, address, clk, enable, data, mask])

    @classmethod
    def parse(cls, parser: Parser) -> FirMemWriteOp:
        memory, address = _parse_place(parser)
        parser.parse_punctuation("=")
        data = parser.parse_unresolved_operand()
        parser.parse_punctuation(",")
        parser.parse_keyword("clock")
        clk = parser.parse_unresolved_operand()
        enable = _optional(parser, "enable")
        mask = _optional(parser, "mask")
        attributes = parser.parse_optional_attr_dict()
        parser.parse_punctuation(":")
        type_ = _short_type(parser)
        mask_type = None
        if mask is not None:
            parser.parse_punctuation(",")
            mask_type = parser.parse_type()
        op = cls(
            parser.resolve_operand(memory, type_),
            parser.resolve_operand(address, type_.address),
            parser.resolve_operand(clk, seq.clock),
            parser.resolve_operand(data, type_.element),
            None if enable is None else parser.resolve_operand(enable, i1),
            None if mask is None or mask_type is None else parser.resolve_operand(mask, mask_type),
        )
        op.attributes.update(attributes)
        return op

    def print(self, printer: Printer) -> None:
        _print_place(printer, self.memory, self.address)
        printer.print_string(" = ")
        printer.print_ssa_value(self.data)
        printer.print_string(", clock ")
        printer.print_ssa_value(self.clk)
        _print_optional(printer, "enable", self.enable)
        _print_optional(printer, "mask", self.mask)
        printer.print_op_attributes(self.attributes)
        _print_short_type(printer, self.memory.type)
        if self.mask is not None:
            printer.print_string(", ")
            printer.print_attribute(self.mask.type)

    def verify_(self) -> None:
        """Address, data and mask have the memory's widths."""
        _check_port(self.memory.type, self.address.type, self.data.type)
        assert isinstance(self.memory.type, FirMemType)
        bits = self.memory.type.mask.data
        if self.mask is not None and self.mask.type != IntegerType(max(bits, 1)):
            raise VerifyException(f"mask is {self.mask.type}, the memory has {bits} bits")


def _check_port(memory: Attribute, address: Attribute, data: Attribute) -> None:
    assert isinstance(memory, FirMemType)
    if address != memory.address:
        raise VerifyException(f"address is {address}, the memory wants {memory.address}")
    if data != memory.element:
        raise VerifyException(f"data is {data}, the memory has {memory.element}")


def _short_type(parser: Parser) -> FirMemType:
    return FirMemType(*FirMemType.parse_parameters(parser))


def _print_short_type(printer: Printer, type_: Attribute) -> None:
    assert isinstance(type_, FirMemType)
    printer.print_string(" : ")
    type_.print_parameters(printer)


def _parse_place(parser: Parser) -> tuple[UnresolvedOperand, UnresolvedOperand]:
    memory = parser.parse_unresolved_operand()
    with parser.in_square_brackets():
        address = parser.parse_unresolved_operand()
    return memory, address


def _print_place(printer: Printer, memory: SSAValue, address: SSAValue) -> None:
    printer.print_string(" ")
    printer.print_ssa_value(memory)
    with printer.in_square_brackets():
        printer.print_ssa_value(address)


def _optional(parser: Parser, keyword: str) -> UnresolvedOperand | None:
    if parser.parse_optional_keyword(keyword) is None:
        return None
    return parser.parse_unresolved_operand()


def _print_optional(printer: Printer, keyword: str, value: SSAValue | None) -> None:
    if value is not None:
        printer.print_string(f" {keyword} ")
        printer.print_ssa_value(value)


OPERATIONS = (AggregateConstantOp, WireOp, FirMemOp, FirMemReadOp, FirMemWriteOp)
ATTRIBUTES = (FirMemType, FirMemInitAttr)


def load(context: Context) -> None:
    """Adds the operations and attributes to a context that has xDSL's hw, comb and seq."""
    for operation in OPERATIONS:
        context.load_op(operation)
    for attribute in ATTRIBUTES:
        context.load_attr_or_type(attribute)
