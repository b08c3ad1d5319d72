"""Linear attention: tokens through a state of constant size."""

from __future__ import annotations

from collections.abc import Sequence

from xdsl.dialects.builtin import I64, IntegerAttr, StringAttr
from xdsl.ir import Attribute, SSAValue
from xdsl.irdl import (
    AnyOf,
    BaseAttr,
    irdl_op_definition,
    operand_def,
    opt_prop_def,
    prop_def,
    result_def,
    traits_def,
    var_operand_def,
)
from xdsl.traits import MemoryReadEffect, MemoryWriteEffect
from xdsl.utils.exceptions import VerifyException

from intaglio.dialects.rom.buffers import resolved_type
from intaglio.dialects.rom.operators import OperatorOp
from intaglio.dialects.rom.types import (
    POSITION,
    SYMBOL,
    VECTOR,
    MatricesType,
    Nodes,
    QuantizedType,
    vector_size,
)

RULES = {"linear": 0, "gated": 1, "delta": 1, "gated_delta": 2}
"""The rules by which a state changes; how many gates each takes: the decay, then beta."""

_CODES = AnyOf((VECTOR, BaseAttr(QuantizedType)))


@irdl_op_definition
class LinearAttentionOp(OperatorOp):
    """Reads a state with the token's query, after it has taken in the token's key and value.

    Of each head, whose state S is zeros at position 0 (ONNX and com.microsoft LinearAttention)::

        S = exp(decay) * S                      gated, gated_delta
        u = beta * (value - S' key)             delta, gated_delta; else value
        S = S + key u'
        y = S' query

    Heads of queries and keys are a part of those of the state; head h has theirs of number
    ``h * their heads div heads``. Gates are one number a head: the decay, a logarithm, then beta,
    as far as the rule has them. In the integer stage queries and keys are codes, one group a head.

    Example:
    ```
    %y = rom.linear_attention %q, %k, %v gates %decay, %beta in @s0 at %position
        {rule = "gated_delta", onnx = [["LinearAttention"]]}
        : tensor<32xf32>, tensor<32xf32>, tensor<64xf32>, tensor<4xf32>, tensor<4xf32>
        -> tensor<64xf32>
    ```
    """

    name = "rom.linear_attention"
    query = operand_def(_CODES)
    key = operand_def(_CODES)
    value = operand_def(VECTOR)
    gates = var_operand_def(VECTOR)
    position = operand_def(POSITION)
    state = prop_def(SYMBOL)
    rule = prop_def(StringAttr)
    pre_shift = opt_prop_def(IntegerAttr[I64])
    """Places that sums over a head lose, in the integer stage."""
    output = result_def(VECTOR)
    assembly_format = (
        "$query `,` $key `,` $value (`gates` $gates^)? `in` $state `at` $position attr-dict"
        " `:` type($query) `,` type($key) `,` type($value) (`,` type($gates)^)?"
        " `->` type($output)"
    )
    traits = traits_def(MemoryReadEffect(), MemoryWriteEffect())

    def __init__(
        self,
        query: SSAValue,
        key: SSAValue,
        value: SSAValue,
        gates: Sequence[SSAValue],
        state: str,
        rule: str,
        position: SSAValue,
        onnx: Nodes,
        *,
        pre_shift: int | None = None,
        output: Attribute | None = None,
    ) -> None:
        self._build(
            [query, key, value, list(gates), position],
            [output or value.type],
            state=state,
            rule=rule,
            pre_shift=pre_shift,
            onnx=onnx,
        )

    @property
    def decay(self) -> SSAValue | None:
        """The logarithm of what the state keeps, where there is one."""
        return self.gates[0] if "gated" in self.rule.data else None

    @property
    def beta(self) -> SSAValue | None:
        """How much of what differs is taken in, where there is one."""
        return self.gates[-1] if "delta" in self.rule.data else None

    def verify_(self) -> None:
        """Sizes are those of the state's heads."""
        state = resolved_type(self, self.state, MatricesType)
        heads, width, columns = state.dims
        rule = self.rule.data
        if rule not in RULES:
            raise VerifyException(f"unknown rule '{rule}', known are {', '.join(RULES)}")
        if len(self.gates) != RULES[rule]:
            raise VerifyException(f"rule {rule} takes {RULES[rule]} gates, found {len(self.gates)}")
        for what, one, size in (
            ("values", self.value, heads * columns),
            ("results", self.output, heads * columns),
            *(("gates", gate, heads) for gate in self.gates),
        ):
            if (found := vector_size(one.type)) != size:
                raise VerifyException(
                    f"@{self.state.root_reference.data} has {heads} heads of {width} by {columns}: "
                    f"it takes {size} {what}, found {found}"
                )
        for what, one in (("queries", self.query), ("keys", self.key)):
            self._verify_codes(what, one.type, heads, width)

    def _verify_codes(self, what: str, type_: Attribute, heads: int, width: int) -> None:
        size = type_.size if isinstance(type_, QuantizedType) else vector_size(type_)
        groups = size // width
        if size % width or groups < 1 or heads % groups:
            raise VerifyException(
                f"{size} elements of {what} are no heads of {width} that divide {heads}"
            )
        if isinstance(type_, QuantizedType) and type_.groups.data != groups:
            raise VerifyException(f"{what} have {type_.groups.data} groups, not one a head")
