"""The encoded program: for each queue the descriptors that its sequencer holds, one an instance.

Descriptors are what the hardware is told of an instruction: numbers in fields. The fields of a
queue, with their widths and meanings, are those of the units that execute it. Weights stand
nowhere: a number that is the one scale of a matrix is written as the matrix's symbol.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache

from xdsl.dialects.builtin import (
    I64,
    ArrayAttr,
    DictionaryAttr,
    IntAttr,
    IntegerAttr,
    StringAttr,
    SymbolRefAttr,
    UnitAttr,
    i64,
)
from xdsl.ir import Attribute, Block, ParametrizedAttribute, Region
from xdsl.irdl import (
    irdl_attr_definition,
    irdl_op_definition,
    lazy_traits_def,
    opt_prop_def,
    prop_def,
    region_def,
    traits_def,
)
from xdsl.parser import AttrParser
from xdsl.printer import Printer
from xdsl.traits import HasParent, NoTerminator
from xdsl.utils.exceptions import VerifyException

from intaglio.dialects.descriptor import Field, Fields, wait_fields
from intaglio.dialects.isa.check import Misfit
from intaglio.dialects.isa.queues import COUNTERS, QUEUES
from intaglio.dialects.isa.registry import declared
from intaglio.dialects.plain import PlainOp, counts

Value = int | str
"""What a field holds: a number, or the name of the matrix whose one scale it is."""


@irdl_attr_definition
class FieldAttr(ParametrizedAttribute):
    """A field of a queue's descriptors: name, width in bits, meaning; `signed` where its number is
    in two's complement.

    Example: `#program.field<"places", 12 signed, "places to shift by">`
    """

    name = "program.field"
    field_name: StringAttr
    width: IntAttr
    signed: IntAttr
    meaning: StringAttr

    @staticmethod
    def of(field: Field) -> FieldAttr:
        """The attribute of a field."""
        return FieldAttr(
            StringAttr(field.name),
            IntAttr(field.width),
            IntAttr(int(field.signed)),
            StringAttr(field.meaning),
        )

    @property
    def field(self) -> Field:
        """The field in plain Python."""
        name, meaning = self.field_name.data, self.meaning.data
        return Field(name, self.width.data, meaning, bool(self.signed.data))

    @classmethod
    def parse_parameters(cls, parser: AttrParser) -> Sequence[Attribute]:
        """Parses `<"name", width, "meaning">` or `<"name", width signed, "meaning">`."""
        with parser.in_angle_brackets():
            name = StringAttr(parser.parse_str_literal())
            parser.parse_punctuation(",")
            width = IntAttr(parser.parse_integer(allow_boolean=False, allow_negative=False))
            signed = IntAttr(int(parser.parse_optional_keyword("signed") is not None))
            parser.parse_punctuation(",")
            return [name, width, signed, StringAttr(parser.parse_str_literal())]

    def print_parameters(self, printer: Printer) -> None:
        """Prints what `parse_parameters` parses."""
        with printer.in_angle_brackets():
            printer.print_string_literal(self.field_name.data)
            signed = " signed" if self.signed.data else ""
            printer.print_string(f", {self.width.data}{signed}, ")
            printer.print_string_literal(self.meaning.data)

    def verify(self) -> None:
        """A field has a name and at least one bit."""
        if not self.field_name.data or self.width.data < 1:
            raise VerifyException("a field has a name and at least one bit")


@lru_cache(1 << 12)
def _number(value: int) -> IntegerAttr[I64]:
    """Descriptors say the same few numbers again and again."""
    return IntegerAttr(value, i64)


@irdl_op_definition
class DescriptorOp(PlainOp):
    """An instance of a beat as its unit is told it.

    `waits` counts what must be there since the token's acceptance: beats of queues that have
    finished, and reductions. `fields` has a number for each field of the queue, or the symbol of
    the matrix whose one scale it is.

    Example:
    ```
    program.descriptor "wake" of @decoder instance 1 number 0 waits {matrix = 3 : i64}
        fields {wake = 1 : i64, domain = 2 : i64} {onnx = ["/q_proj/MatMul"]}
    ```
    """

    name = "program.descriptor"
    opcode = prop_def(StringAttr)
    block = prop_def(SymbolRefAttr)
    """Of the program."""
    instance = prop_def(IntegerAttr[I64])
    """Of the block."""
    number = prop_def(IntegerAttr[I64])
    """Of the beat in its block."""
    waits = prop_def(DictionaryAttr)
    values = prop_def(DictionaryAttr)
    onnx = opt_prop_def(ArrayAttr[StringAttr])
    """The ONNX nodes that it stands for."""
    assembly_format = (
        "$opcode `of` $block `instance` $instance `number` $number `waits` $waits"
        " `fields` $values attr-dict"
    )
    traits = lazy_traits_def(lambda: (HasParent(QueueOp),))

    def __init__(
        self,
        opcode: str,
        at: tuple[str, int, int],
        waits: Mapping[str, int],
        values: Mapping[str, Value],
        onnx: Iterable[str] = (),
    ) -> None:
        block, instance, number = at
        names = [StringAttr(name) for name in onnx]
        self._build(
            opcode=opcode,
            block=block,
            instance=instance,
            number=number,
            waits=DictionaryAttr({queue: _number(n) for queue, n in waits.items()}),
            values=DictionaryAttr(
                {
                    name: SymbolRefAttr(one) if isinstance(one, str) else _number(one)
                    for name, one in values.items()
                }
            ),
            onnx=ArrayAttr(names) if names else None,
        )

    @property
    def at(self) -> tuple[str, int, int]:
        """Block, instance of it, instruction in it."""
        return (
            self.block.root_reference.data,
            self.instance.value.data,
            self.number.value.data,
        )

    @property
    def counts(self) -> dict[str, int]:
        """`waits` in plain Python."""
        return counts(self.waits)

    @property
    def numbers(self) -> dict[str, Value]:
        """`fields` in plain Python."""
        return {
            name: one.root_reference.data if isinstance(one, SymbolRefAttr) else one.value.data
            for name, one in self.values.data.items()
            if isinstance(one, (SymbolRefAttr, IntegerAttr))
        }

    def verify_(self) -> None:
        """The queue executes the opcode; waits and fields are those of the queue, and fit."""
        queue = self.parent_op()
        opcode = self.opcode.data
        wrong = [
            f"wait for '{name}'"
            for name, count in self.waits.data.items()
            if not (isinstance(count, IntegerAttr) and count.value.data > 0 and name in COUNTERS)
        ]
        wrong += [
            f"field '{name}'"
            for name, one in self.values.data.items()
            if not isinstance(one, (IntegerAttr, SymbolRefAttr))
        ]
        if wrong:
            raise VerifyException(f"'{opcode}' has a {wrong[0]} that is no number")
        if not isinstance(queue, QueueOp):
            return
        own = queue.queue.data
        try:
            declared(opcode, own)
        except Misfit as misfit:
            raise VerifyException(str(misfit)) from misfit
        if own in self.counts and queue.flows is None:
            raise VerifyException(f"'{opcode}' waits for its own queue, which does not flow")
        known = {name: 0 if isinstance(one, str) else one for name, one in self.numbers.items()}
        if found := queue.unit_fields.refusals(known):
            raise VerifyException(f"'{opcode}': {'; '.join(found)}")


@irdl_op_definition
class QueueOp(PlainOp):
    """What a queue executes for a token: its descriptors in order, the first `short` of them for a
    token whose successor is not wanted.

    Where it `flows` the next one may start before the last one has finished; where it `reduces`
    they leave reductions, which are counted as they are.

    Example:
    ```
    program.queue "power" short 1 fields [#program.field<"wake", 1, "1: switch on">] {
      program.descriptor "wake" of @decoder instance 0 number 0 waits {}
          fields {wake = 1 : i64}
    }
    ```
    """

    name = "program.queue"
    queue = prop_def(StringAttr)
    short = prop_def(IntegerAttr[I64])
    flows = opt_prop_def(UnitAttr)
    reduces = opt_prop_def(UnitAttr)
    fields = prop_def(ArrayAttr[FieldAttr])
    """Those of the units, the first in the lowest bits above the waits."""
    body = region_def("single_block")
    context = opt_prop_def(IntegerAttr[I64])
    """Whose rows the descriptors say, of a chip that has contexts; absent: the first one's."""
    assembly_format = (
        "$queue (`context` $context^)? `short` $short (`flows` $flows^)? (`reduces` $reduces^)?"
        " `fields` $fields $body attr-dict"
    )
    traits = traits_def(NoTerminator())

    def __init__(
        self,
        queue: str,
        short: int,
        fields: Fields,
        descriptors: Iterable[DescriptorOp],
        *,
        flows: bool = False,
        reduces: bool = False,
        context: int = 0,
    ) -> None:
        self._build(
            regions=[Region(Block(list(descriptors)))],
            queue=queue,
            context=context or None,
            short=short,
            flows=UnitAttr() if flows else None,
            reduces=UnitAttr() if reduces else None,
            fields=ArrayAttr([FieldAttr.of(one) for one in fields.fields]),
        )

    @property
    def number(self) -> tuple[int, str]:
        """Context and name."""
        return 0 if self.context is None else self.context.value.data, self.queue.data

    @property
    def descriptors(self) -> Iterator[DescriptorOp]:
        """The descriptors in order."""
        return (op for op in self.body.block.ops if isinstance(op, DescriptorOp))

    @property
    def unit_fields(self) -> Fields:
        """The fields of the units.

        Raises:
            VerifyException: two have one name.
        """
        return _fields(self.fields)

    @property
    def form(self) -> Fields:
        """All fields of a word: waits, then those of the units."""
        waits = wait_fields((one.counts for one in self.descriptors), COUNTERS)
        return Fields((*waits, *self.unit_fields.fields))

    def verify_(self) -> None:
        """The queue is one, its fields have different names, it holds `short` descriptors."""
        if self.queue.data not in QUEUES:
            raise VerifyException(
                f"unknown queue '{self.queue.data}', known are {', '.join(QUEUES)}"
            )
        _ = self.unit_fields
        count = len(list(self.descriptors))
        if not 0 <= self.short.value.data <= count:
            raise VerifyException(
                f"{self.short.value.data} of {count} descriptors run for a token whose successor "
                f"is not wanted"
            )


@lru_cache(16)
def _fields(attributes: ArrayAttr[FieldAttr]) -> Fields:
    """What a queue's `fields` say; every descriptor asks for it when it is verified."""
    names = [one.field_name.data for one in attributes]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise VerifyException(f"two fields are named '{twice}'")
    return Fields(one.field for one in attributes)


def word_of(form: Fields, one: DescriptorOp, scales: Mapping[str, int] | None = None) -> int:
    """The word of a descriptor.

    Args:
        form: of its queue (`QueueOp.form`).
        one: the descriptor.
        scales: by matrix; 0 without.
    """
    numbers = {
        name: value if isinstance(value, int) else (scales or {}).get(value, 0)
        for name, value in one.numbers.items()
    }
    return form.pack({**{f"wait_{queue}": n for queue, n in one.counts.items()}, **numbers})


def listing(queues: Iterable[QueueOp]) -> Iterator[str]:
    """Each queue's words, taken apart again: a line for each descriptor."""
    for queue in queues:
        form = queue.form
        digits = -(-form.width // 4)
        yield f"{queue.queue.data}: {form.width} bits"
        for one in form.fields:
            sign = " signed" if one.signed else ""
            yield f"  {one.name} {one.width}{sign}: {one.meaning}"
        for number, one in enumerate(queue.descriptors):
            word = word_of(form, one)
            block, instance, _ = one.at
            symbols = {n: f"@{v}" for n, v in one.numbers.items() if isinstance(v, str)}
            parts = " ".join(
                f"{name}={symbols.get(name, value)}" for name, value in form.unpack(word).items()
            )
            place = f"{block}[{instance}]"
            yield f"  {number}: {word:0{digits}x} {place} {one.opcode.data} {parts}"
