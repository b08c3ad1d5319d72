"""A mixture of experts: which experts a token takes, products with them, what they give together.

The matrices of all experts are one buffer, a family (`experts` of `!rom.tensor`). Which of them a
product multiplies with is a value of the token, never a branch.
"""

from __future__ import annotations

from xdsl.dialects.builtin import I64, IntegerAttr, SymbolRefAttr, UnitAttr
from xdsl.ir import Attribute, Operation, SSAValue
from xdsl.irdl import (
    irdl_op_definition,
    operand_def,
    opt_operand_def,
    opt_prop_def,
    prop_def,
    result_def,
    traits_def,
)
from xdsl.traits import Pure
from xdsl.utils.exceptions import VerifyException

from intaglio.dialects.rom.buffers import resolved_type
from intaglio.dialects.rom.integers import verify_multiplied, verify_normed
from intaglio.dialects.rom.operators import OperatorOp, same_size
from intaglio.dialects.rom.types import (
    MULTIPLIED,
    SCALE,
    SYMBOL,
    VECTOR,
    FixedType,
    Nodes,
    ROMTensorType,
    RoutingType,
    vector_size,
)


@irdl_op_definition
class RouteOp(OperatorOp):
    """Chooses the experts with the largest logits, and their shares: a softmax.

    The softmax is over the chosen experts, or with `over_all` over all of them. Among equal logits
    the expert with the highest number is chosen first, as onnxruntime's MoE does, with `lowest`
    that with the lowest, as TopK does.

    Example:
    ```
    %r = rom.route %logits {lowest, onnx = [["QMoE"]]} : tensor<8xf32> -> !rom.routing<2, 8>
    ```
    """

    name = "rom.route"
    input = operand_def(VECTOR)
    lowest = opt_prop_def(UnitAttr)
    over_all = opt_prop_def(UnitAttr)
    output = result_def(RoutingType)
    assembly_format = "$input attr-dict `:` type($input) `->` type($output)"
    traits = traits_def(Pure())

    def __init__(
        self, x: SSAValue, output: Attribute, onnx: Nodes, *, lowest: bool, every: bool
    ) -> None:
        self._build([x], [output], lowest=lowest, over_all=every, onnx=onnx)

    def verify_(self) -> None:
        """There is a logit for each expert."""
        experts = self.output.type.experts.data
        if vector_size(self.input.type) != experts:
            raise VerifyException(
                f"{vector_size(self.input.type)} logits for a routing over {experts} experts"
            )


def _verify_family(
    op: Operation, routing: Attribute, weights: SymbolRefAttr, size: int, rows: int
) -> int:
    """A family has the routing's experts, each [rows, size]; the number of experts."""
    family = resolved_type(op, weights, ROMTensorType)
    assert isinstance(routing, RoutingType)
    name, experts = weights.root_reference.data, routing.experts.data
    if family.experts.data != experts:
        raise VerifyException(
            f"@{name} has {family.experts.data} experts, the routing chooses from {experts}"
        )
    found = (family.product_rows, family.dims[1])
    if found != (rows, size):
        raise VerifyException(
            f"experts of @{name} have shape {list(found)}, the operation needs [{rows}, {size}]"
        )
    return experts


def _verify_biases(op: Operation, bias: SymbolRefAttr | None, experts: int, rows: int) -> None:
    """The biases of a family are [experts, rows]."""
    if bias is None:
        return
    found = resolved_type(op, bias, ROMTensorType)
    if found.dims != (experts, rows):
        raise VerifyException(
            f"biases @{bias.root_reference.data} have shape {list(found.dims)}, the operation "
            f"needs [{experts}, {rows}]"
        )


def _verify_number(number: int, routing: Attribute) -> None:
    assert isinstance(routing, RoutingType)
    if not 0 <= number < routing.chosen.data:
        raise VerifyException(f"there is no expert {number} among {routing.chosen.data} chosen")


@irdl_op_definition
class ExpertLinearOp(OperatorOp):
    """y = W[e] x + b[e], of the float stage, with the `expert`-th chosen expert e.

    Legalisation turns it into quantize and expert_product.

    Example:
    ```
    %y = rom.expert_linear %x, %r expert 0 by @up bias @up_bias {onnx = [["QMoE"]]}
        : tensor<64xf32>, !rom.routing<2, 8> -> tensor<128xf32>
    ```
    """

    name = "rom.expert_linear"
    input = operand_def(VECTOR)
    routing = operand_def(RoutingType)
    expert = prop_def(IntegerAttr[I64])
    weights = prop_def(SYMBOL)
    bias = opt_prop_def(SYMBOL)
    output = result_def(VECTOR)
    assembly_format = (
        "$input `,` $routing `expert` $expert `by` $weights (`bias` $bias^)? attr-dict"
        " `:` type($input) `,` type($routing) `->` type($output)"
    )
    traits = traits_def(Pure())

    def __init__(
        self,
        x: SSAValue,
        routing: SSAValue,
        expert: int,
        weights: str,
        onnx: Nodes,
        output: Attribute,
        bias: str | None = None,
    ) -> None:
        self._build([x, routing], [output], expert=expert, weights=weights, bias=bias, onnx=onnx)

    def verify_(self) -> None:
        """Shapes agree."""
        size, rows = vector_size(self.input.type), vector_size(self.output.type)
        _verify_number(self.expert.value.data, self.routing.type)
        experts = _verify_family(self, self.routing.type, self.weights, size, rows)
        _verify_biases(self, self.bias, experts, rows)


@irdl_op_definition
class ExpertProductOp(OperatorOp):
    """The same of the integer stage: the exact product with a quantised vector, as `rom.dot` has
    it, scaled to fixed point, the bias added, as `rom.requantize` does.

    Example:
    ```
    %y = rom.expert_product %q, %r expert 0 by @up bias @up_bias
        {pre_shift = 0 : i64, onnx = [["QMoE"]]}
        : !rom.quantized<1, 64, int8>, !rom.routing<2, 8> -> !rom.fixed<128, 16>
    ```
    """

    name = "rom.expert_product"
    input = operand_def(MULTIPLIED)
    routing = operand_def(RoutingType)
    norm = opt_operand_def(SCALE)
    expert = prop_def(IntegerAttr[I64])
    weights = prop_def(SYMBOL)
    bias = opt_prop_def(SYMBOL)
    pre_shift = prop_def(IntegerAttr[I64])
    output = result_def(FixedType)
    assembly_format = (
        "$input `,` $routing `expert` $expert `by` $weights (`bias` $bias^)? (`norm` $norm^)?"
        " attr-dict `:` type($input) `,` type($routing) `->` type($output)"
    )
    traits = traits_def(Pure())

    def __init__(
        self,
        x: SSAValue,
        routing: SSAValue,
        expert: int,
        weights: str,
        pre_shift: int,
        onnx: Nodes,
        output: Attribute,
        bias: str | None = None,
        norm: SSAValue | None = None,
    ) -> None:
        self._build(
            [x, routing, norm],
            [output],
            expert=expert,
            weights=weights,
            bias=bias,
            pre_shift=pre_shift,
            onnx=onnx,
        )

    def verify_(self) -> None:
        """Shapes agree."""
        size, rows = verify_multiplied(self.input.type), vector_size(self.output.type)
        _verify_number(self.expert.value.data, self.routing.type)
        experts = _verify_family(self, self.routing.type, self.weights, size, rows)
        _verify_biases(self, self.bias, experts, rows)
        verify_normed(self.norm, self.input.type)
        if self.pre_shift.value.data < 0:
            raise VerifyException("pre_shift must not be negative")


@irdl_op_definition
class WeighOp(OperatorOp):
    """A vector times the share of the `expert`-th chosen expert, plus what others gave.

    Example:
    ```
    %z = rom.weigh %y, %r expert 1 plus %x {onnx = [["QMoE"]]}
        : tensor<64xf32>, !rom.routing<2, 8>, tensor<64xf32> -> tensor<64xf32>
    ```
    """

    name = "rom.weigh"
    input = operand_def(VECTOR)
    routing = operand_def(RoutingType)
    residual = opt_operand_def(VECTOR)
    expert = prop_def(IntegerAttr[I64])
    output = result_def(VECTOR)
    assembly_format = (
        "$input `,` $routing `expert` $expert (`plus` $residual^)? attr-dict"
        " `:` type($input) `,` type($routing) (`,` type($residual)^)? `->` type($output)"
    )
    traits = traits_def(Pure())

    def __init__(
        self,
        x: SSAValue,
        routing: SSAValue,
        expert: int,
        onnx: Nodes,
        output: Attribute | None = None,
        residual: SSAValue | None = None,
    ) -> None:
        self._build([x, routing, residual], [output or x.type], expert=expert, onnx=onnx)

    def verify_(self) -> None:
        """Sizes agree."""
        added = [] if self.residual is None else [self.residual]
        same_size(self, self.input, *added, self.output)
        _verify_number(self.expert.value.data, self.routing.type)
