"""The structure of a decoder: its step, its layers, what they yield."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from xdsl.dialects.builtin import (
    I64,
    ArrayAttr,
    DictionaryAttr,
    IndexType,
    IntegerAttr,
    SymbolNameConstraint,
    SymbolRefAttr,
    i32,
)
from xdsl.ir import Block, Operation, Region, SSAValue
from xdsl.irdl import (
    irdl_op_definition,
    lazy_traits_def,
    operand_def,
    prop_def,
    region_def,
    traits_def,
    var_operand_def,
    var_result_def,
)
from xdsl.traits import (
    HasParent,
    IsolatedFromAbove,
    IsTerminator,
    MemoryReadEffect,
    MemoryWriteEffect,
    SymbolOpInterface,
    SymbolTable,
)
from xdsl.utils.exceptions import VerifyException

from intaglio.dialects.plain import PlainOp
from intaglio.dialects.rom.buffers import Buffer, SlotOp, resolve
from intaglio.dialects.rom.types import POSITION, SYMBOL, TOKEN, VECTOR


@irdl_op_definition
class YieldOp(PlainOp):
    """Ends the body of a layer with the values carried to the next instance.

    Example:
    ```
    rom.yield %hidden : tensor<64xf32>
    ```
    """

    name = "rom.yield"
    values = var_operand_def(VECTOR)
    assembly_format = "($values^ `:` type($values))? attr-dict"
    traits = traits_def(IsTerminator())

    def __init__(self, *values: SSAValue) -> None:
        self._build([values])


@irdl_op_definition
class LayerOp(PlainOp):
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
    traits = traits_def(SymbolOpInterface(), SymbolTable(), IsolatedFromAbove())

    def __init__(self, name: str, body: Region) -> None:
        self._build(regions=[body], sym_name=name)

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
class RepeatOp(PlainOp):
    """Runs an outlined layer once for each instance, each with its own buffers.

    Example:
    ```
    %y = rom.repeat @decoder at %position (%x) instances [{w = @w0}, {w = @w1}]
        : (tensor<64xf32>) -> tensor<64xf32>
    ```
    """

    name = "rom.repeat"
    layer = prop_def(SYMBOL)
    position = operand_def(POSITION)
    inputs = var_operand_def(VECTOR)
    instances = prop_def(ArrayAttr[DictionaryAttr])
    outputs = var_result_def(VECTOR)
    assembly_format = (
        "$layer `at` $position `(` $inputs `)` `instances` $instances attr-dict"
        " `:` `(` type($inputs) `)` `->` type($outputs)"
    )
    traits = traits_def(MemoryReadEffect(), MemoryWriteEffect())

    def __init__(
        self,
        layer: str,
        position: SSAValue,
        inputs: Sequence[SSAValue],
        instances: Sequence[dict[str, str]],
    ) -> None:
        bound = [{slot: SymbolRefAttr(b) for slot, b in one.items()} for one in instances]
        self._build(
            [position, inputs],
            [[v.type for v in inputs]],
            layer=layer,
            instances=ArrayAttr([DictionaryAttr(one) for one in bound]),
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

    def bound(self) -> Iterator[tuple[SlotOp, Buffer]]:
        """The slots of each instance in turn, with the buffers that they stand for."""
        slots = {slot.sym_name.data: slot for slot in self.body().slots}
        for instance in self.instances:
            for name, symbol in instance.data.items():
                assert isinstance(symbol, SymbolRefAttr)
                yield slots[name], resolve(self, symbol)


@irdl_op_definition
class EmitOp(PlainOp):
    """Ends a step: the logits, and the token chosen from them.

    Example:
    ```
    rom.emit %logits, %next : tensor<256xf32>
    ```
    """

    name = "rom.emit"
    logits = operand_def(VECTOR)
    token = operand_def(TOKEN)
    assembly_format = "$logits `,` $token attr-dict `:` type($logits)"
    traits = lazy_traits_def(lambda: (IsTerminator(), HasParent(StepOp)))

    def __init__(self, logits: SSAValue, token: SSAValue) -> None:
        self._build([logits, token])


@irdl_op_definition
class StepOp(PlainOp):
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
    traits = traits_def(SymbolOpInterface())

    def __init__(self, name: str, context: int, body: Region | None = None) -> None:
        if body is None:
            body = Region(Block(arg_types=[i32, IndexType()]))
        self._build(regions=[body], sym_name=name, context=context)

    def verify_(self) -> None:
        """The body takes a token and a position and ends with rom.emit."""
        types = [a.type for a in self.body.block.args]
        if types != [i32, IndexType()]:
            raise VerifyException("a step takes a token (i32) and a position (index)")
        if not isinstance(self.body.block.last_op, EmitOp):
            raise VerifyException("a step ends with rom.emit")
