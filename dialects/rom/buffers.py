"""What declares a buffer: parameters, caches, states, slots of layers, sites of adapters."""

from __future__ import annotations

from xdsl.dialects.builtin import (
    I64,
    FloatAttr,
    IntegerAttr,
    StringAttr,
    SymbolNameConstraint,
    SymbolRefAttr,
)
from xdsl.ir import Attribute, AttributeInvT, Operation
from xdsl.irdl import BaseAttr, irdl_op_definition, opt_prop_def, prop_def, traits_def
from xdsl.traits import SymbolOpInterface, SymbolTable, SymbolUserOpInterface
from xdsl.utils.exceptions import VerifyException

from intaglio.dialects.by_name import ByName
from intaglio.dialects.names import escaped, unescaped
from intaglio.dialects.plain import PlainOp
from intaglio.dialects.rom.types import (
    BUFFER,
    MIDDLES,
    REAL,
    AdapterType,
    ImageAttr,
    KVType,
    MatricesType,
    Nodes,
    RealAttr,
    ROMTensorType,
    StateType,
)


@irdl_op_definition
class ParameterOp(PlainOp):
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
    type = prop_def(BUFFER)
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
        self._build(
            sym_name=name,
            type=type_,
            key=escaped(key),
            rms=rms,
            zero_fraction=zero_fraction,
            peak=peak,
            multiplier=multiplier,
            exponent=exponent,
            zero=zero,
        )

    @property
    def source(self) -> str:
        """Where its bytes come from: the key, as a name."""
        return unescaped(self.key.data)

    def verify_(self) -> None:
        """A KV buffer is no parameter; a zero point stands once."""
        if isinstance(self.type, KVType):
            raise VerifyException("a KV buffer is declared with rom.cache")
        if isinstance(self.type, StateType | MatricesType):
            raise VerifyException("a state is declared with rom.state")
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
class CacheOp(PlainOp):
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
    type = prop_def(BUFFER)
    static_scale = opt_prop_def(REAL)
    static_inverse = opt_prop_def(RealAttr)

    assembly_format = "$sym_name `:` $type attr-dict"
    traits = traits_def(SymbolOpInterface())

    def __init__(self, name: str, type_: KVType, static_scale: Attribute | None = None) -> None:
        self._build(sym_name=name, type=type_, static_scale=static_scale)

    def verify_(self) -> None:
        """The type is that of a KV buffer."""
        if not isinstance(self.type, KVType):
            raise VerifyException(f"a cache has a type !{KVType.name}, not {self.type}")
        if self.type.static.data and self.static_scale is None:
            raise VerifyException("a cache with a static scale states it as `static_scale`")


@irdl_op_definition
class StateOp(PlainOp):
    """What one layer keeps of the last token: of constant size, nothing before the first token.

    Example:
    ```
    rom.state @c0 : !rom.state<64>
    rom.state @s0 : !rom.matrices<4, 16, 16>
    ```
    """

    name = "rom.state"
    sym_name = prop_def(SymbolNameConstraint())
    type = prop_def(BUFFER)

    assembly_format = "$sym_name `:` $type attr-dict"
    traits = traits_def(SymbolOpInterface())

    def __init__(self, name: str, type_: StateType | MatricesType) -> None:
        self._build(sym_name=name, type=type_)

    def verify_(self) -> None:
        """The type is that of a state."""
        if not isinstance(self.type, StateType | MatricesType):
            raise VerifyException(
                f"a state has a type !{StateType.name} or !{MatricesType.name}, not {self.type}"
            )


@irdl_op_definition
class SlotOp(PlainOp):
    """A buffer of an outlined layer that each instance binds to one of the module.

    Example:
    ```
    rom.slot @q_proj : !rom.tensor<[64, 64], int4, group 32>
    ```
    """

    name = "rom.slot"
    sym_name = prop_def(SymbolNameConstraint())
    type = prop_def(BUFFER)

    assembly_format = "$sym_name `:` $type attr-dict"
    traits = traits_def(SymbolOpInterface())

    def __init__(self, name: str, type_: Attribute) -> None:
        self._build(sym_name=name, type=type_)


Buffer = ParameterOp | CacheOp | StateOp | SlotOp
"""What declares a buffer."""

_DECLARED = ByName[Buffer](lambda op: (op.sym_name.data, op) if isinstance(op, Buffer) else None)


def resolve(user: Operation, symbol: SymbolRefAttr) -> Buffer:
    """The declaration a buffer symbol names, in the layer around `user` or in the module.

    Raises:
        VerifyException: no such buffer.
    """
    name = symbol.root_reference.data
    scope = user.parent_op()
    while scope is not None:
        if scope.has_trait(SymbolTable):
            found = _DECLARED.find(scope.regions[0].block, name)
            if found is not None:
                return found
        scope = scope.parent_op()
    raise VerifyException(f"no buffer @{name} is declared")


def resolved_type(
    user: Operation, symbol: SymbolRefAttr, *kinds: type[AttributeInvT]
) -> AttributeInvT:
    """The type of the buffer that a symbol names, one of some kinds; else VerifyException."""
    type_ = resolve(user, symbol).type
    if not isinstance(type_, kinds):
        expected = " or ".join(f"!{kind.name}" for kind in kinds)
        raise VerifyException(f"@{symbol.root_reference.data} is {type_}, expected {expected}")
    return type_


class _VerifiesSite(SymbolUserOpInterface):
    def verify(self, op: Operation) -> None:
        assert isinstance(op, SiteOp)
        a, b = (resolved_type(op, symbol, AdapterType) for symbol in (op.a, op.b))
        matrix = resolved_type(op, op.matrix, ROMTensorType)
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
class SiteOp(PlainOp):
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
        self._build(
            site=site,
            matrix=matrix,
            first_row=first,
            last_row=last,
            a=a,
            b=b,
            residents=residents if residents != 1 else None,
            onnx=onnx,
        )

    @property
    def copies(self) -> int:
        """Adapters that the slots hold at once."""
        return 1 if self.residents is None else self.residents.value.data
