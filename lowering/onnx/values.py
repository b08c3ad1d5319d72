"""What a name of the graph stands for while the token-level step is built."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from xdsl.ir import SSAValue

from intaglio.lowering.onnx.graph.model import FLOATS, Array, Node, Tensor
from intaglio.lowering.onnx.known.constants import Constant
from intaglio.lowering.onnx.known.expressions import Dims, Expression, dims_text, expression
from intaglio.lowering.onnx.known.terms import Term

SMALL = 1 << 16
"""Constants of at most this many elements may be computed with."""


class Refusal(Exception):
    """Why a node cannot be converted, and what would help; `node` is it where that is another."""

    def __init__(self, reason: str, hint: str | None = None, node: Node | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.hint = hint
        self.node = node


class Blocked(Exception):
    """A node's input comes from a node that was refused, so nothing more can be said of it."""


@dataclass(frozen=True, eq=False)
class Vector:
    """One token's part of an activation [batch, sequence, ...], flat.

    `dims` are those of the whole activation. Batch and sequence stand before every other factor
    (`is_token_major`), or the token's elements keep their order, so the flat vector is one token's
    part.
    """

    ssa: SSAValue
    dims: Dims

    kind = "an activation"

    @property
    def size(self) -> int:
        """Elements a token."""
        return token_size(self.dims)


@dataclass(frozen=True, eq=False)
class Known:
    """Numbers, or shapes and lengths as expressions (an object array)."""

    array: Array

    kind = "a constant"


@dataclass(frozen=True, eq=False)
class Field:
    """A tensor whose elements follow from lengths and positions: `term` is one for all of them.

    The attention mask (no padding: all ones), position ids, ranges, angles, their cosines.
    """

    dims: Dims
    term: Term
    dtype: str

    kind = "a tensor of positions or lengths, or a mask"


@dataclass(frozen=True, eq=False)
class Ids:
    """Token ids, [batch, sequence] up to reshaping."""

    dims: Dims

    kind = "the token ids"


@dataclass(frozen=True, eq=False)
class Past:
    """Keys, values or a state of earlier tokens, an input of the graph."""

    name: str
    dims: Dims

    kind = "a past key or value"


@dataclass(frozen=True, eq=False)
class Present:
    """Keys or values up to this token, given back by an attention node."""

    past: str
    dims: Dims

    kind = "a present key or value"


@dataclass(frozen=True, eq=False)
class Stored:
    """A constant in the file, seen through `dims` and a possible transposition of its matrix."""

    tensor: Tensor
    dims: tuple[int, ...]
    transposed: bool = False

    kind = "a constant"

    @property
    def is_float(self) -> bool:
        """Whether its elements are floating point."""
        return self.tensor.dtype in FLOATS


@dataclass(frozen=True, eq=False)
class Quantised:
    """The result of DequantizeLinear on constants: (codes - zeros) * scales.

    `axis` and `block` are those of the node, on the codes as stored; `transposed` swaps the axes
    of the result.
    """

    codes: Stored
    scales: Stored
    zeros: Stored | None
    axis: int
    block: int
    dims: tuple[int, ...]
    transposed: bool = False

    kind = "dequantised weights"


@dataclass(frozen=True, eq=False)
class Computed:
    """A constant that is computed from the file's tensors, part by part as it is read."""

    constant: Constant
    name: str

    kind = "a constant"

    @property
    def dims(self) -> tuple[int, ...]:
        """The shape."""
        return self.constant.dims

    @property
    def is_float(self) -> bool:
        """Whether its elements are floating point."""
        return self.constant.is_float


@dataclass(frozen=True, eq=False)
class TableRows:
    """Rows of a table of integers, chosen by token ids: DequantizeLinear makes numbers of them."""

    table: Stored
    index: Ids

    kind = "rows of a table of integers"


@dataclass(frozen=True, eq=False)
class TokenScale:
    """One number a token: `factor * m ** power`, m the largest magnitude of `input`'s token.

    `stage` is "magnitudes" (|x|, one for each element) or "scale". `factor` is a number, or one
    for each output of a matrix.
    """

    stage: str
    input: Vector
    factor: npt.NDArray[np.float64]
    power: int
    names: tuple[str, ...]

    kind = "the largest magnitude of a token's elements"


@dataclass(frozen=True, eq=False)
class Levels:
    """An activation rounded to 8-bit levels of its token's largest magnitude m.

    Its values are `round(127 * x / m) / 127 * m * factor * m ** power`: the levels themselves have
    factor 127 and power -1. `stage` is "scaled" (not rounded yet), "rounded" or "levels".
    `own` says that the chip's own format stands for these levels (DynamicQuantizeLinear).
    """

    stage: str
    input: Vector
    factor: float
    power: int
    names: tuple[str, ...]
    own: bool = False

    kind = "an activation rounded to 8 bits"


@dataclass(frozen=True, eq=False)
class Product:
    """`output * factor * m ** power`: a matrix product of levels, before its scale is applied."""

    output: Vector
    input: Vector
    factor: npt.NDArray[np.float64]
    power: int

    kind = "the sums of a product with 8-bit activations"


@dataclass(frozen=True, eq=False)
class ZeroPoint:
    """The zero point of DynamicQuantizeLinear, of the levels of `input`."""

    input: Vector

    kind = "the zero point of activations"


@dataclass(frozen=True, eq=False)
class NormPart:
    """A part of a norm that is written out: what was computed of `input` so far.

    `stage` is "mean" (of squares, plus eps), "root", "inverse" (1 / root) or "normalised"; for a
    norm of layers, whose input is `centred`, before them "average", "centred" and "squares".
    """

    stage: str
    input: Vector
    eps: float
    names: tuple[str, ...]
    centred: bool = False

    kind = "a part of a norm"

    def to(self, stage: str, node: Node, eps: float | None = None) -> NormPart:
        """The part after one more node."""
        names = (*self.names, node.name)
        known = self.eps if eps is None else eps
        return NormPart(stage, self.input, known, names, self.centred)


@dataclass(frozen=True, eq=False)
class Lanes:
    """One term of a `Turned`: coefficients times elements of the input.

    All arrays have the shape of the lanes. `table` says which coefficients (None: all 1) and
    `column` which of its columns; `source` which element of the input's lanes, flat.
    """

    table: Columns | None
    column: npt.NDArray[np.int64]
    factor: npt.NDArray[np.float64]
    source: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Columns:
    """Position-dependent coefficients: `term` of the position `@p` and lanes `@0`, `@1`, ..."""

    term: Term
    shape: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Turned:
    """A rotary embedding that is written out, so far: sums of coefficients times elements.

    The axes from `lead` on are lanes; those before are the input's.
    """

    input: Vector
    lead: int
    dims: Dims
    terms: tuple[Lanes, ...]
    names: tuple[str, ...]

    kind = "some elements of each head, or a part of a rotary embedding"

    @property
    def lanes(self) -> tuple[int, ...]:
        """The shape of the lanes."""
        return tuple(d.constant or 0 for d in self.dims[self.lead :])


Axis = tuple[tuple[str, Expression], ...]
"""The factors of an axis by name, outermost first; none for an axis of length 1."""


@dataclass(frozen=True, eq=False)
class Cached:
    """Keys or values of all tokens: the past and the new ones, in any arrangement of the axes.

    Factors of axes are "batch", "heads", "repeat" (equal copies for query heads), "tokens" and
    "width". `buffered`: in the graph they lie in a buffer with room for more tokens, of which
    attention must be told how many count.
    """

    past: str
    symbol: str
    heads: int
    width: int
    axes: tuple[Axis, ...]
    factor: float
    names: tuple[str, ...]
    buffered: bool = False

    kind = "keys or values of all tokens"

    @property
    def dims(self) -> Dims:
        """The shape."""
        found: list[Expression] = []
        for axis in self.axes:
            size = expression(1)
            for _, length in axis:
                size = size * length
            found.append(size)
        return tuple(found)


@dataclass(frozen=True, eq=False)
class Scores:
    """Products of queries and keys that become attention: [..., queries, tokens].

    `cap` is that of a softcap whose tanh has been seen; `stage` is "scores", "tanh", "largest"
    (the largest of each head) or "probabilities". `masks` are those added or selected with, and
    what they are for messages. `sinks` are scores of the heads that stand behind those of the
    tokens. `slopes` are what the heads' scores lose for each token that a key lies before its
    query; none where there are none. `moves` says that the query's own key gets something too.
    """

    query: Vector
    keys: Cached
    heads: int
    scale: float
    dims: Dims
    names: tuple[str, ...]
    stage: str = "scores"
    cap: float = 0.0
    masks: tuple[tuple[Field, str], ...] = ()
    sinks: tuple[float, ...] = ()
    slopes: tuple[float, ...] = ()
    moves: bool = False

    kind = "attention scores"


@dataclass(frozen=True, eq=False)
class Curve:
    """An activation function that is written out, so far: a function of one activation.

    `function` computes it from the elements of `input`. `begun` is the first node of it, and
    `reason` why that is refused unless the whole becomes an activation function.
    """

    input: SSAValue
    function: Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]]
    dims: Dims
    names: tuple[str, ...]
    begun: Node
    reason: str

    kind = "a part of an activation function"


@dataclass(frozen=True, eq=False)
class Routed:
    """A part of a router that is written out: what was computed of its logits so far.

    `stage` is "logits", "probabilities" (a softmax over all experts), "chosen logits" or "chosen
    probabilities" and "indices" (TopK), "sum", "shares" (with the sum 1), "hit" (which of the
    chosen is an expert), "masked" (the shares, 0 for the others) or "share" (of the expert).
    `every` says that the shares' softmax is over all experts.
    """

    stage: str
    logits: Vector
    chosen: int
    every: bool
    names: tuple[str, ...]
    expert: int = 0
    routing_names: tuple[str, ...] = ()
    """Nodes that all experts have in common."""

    kind = "a part of a router"

    def to(
        self,
        stage: str,
        node: Node,
        *,
        chosen: int | None = None,
        every: bool | None = None,
        expert: int | None = None,
    ) -> Routed:
        """The part after one more node."""
        names = (*self.names, node.name)
        return Routed(
            stage,
            self.logits,
            self.chosen if chosen is None else chosen,
            self.every if every is None else every,
            names,
            self.expert if expert is None else expert,
            self.routing_names if stage in ("hit", "masked", "share") else names,
        )

    def chose(self, other: Routed) -> bool:
        """Whether both are of one choice."""
        return self.logits.ssa is other.logits.ssa and self.chosen == other.chosen

    def is_of(self, other: Routed) -> bool:
        """Whether both are of one router, with the same shares."""
        return self.chose(other) and self.every == other.every


@dataclass(frozen=True, eq=False)
class Mixed:
    """Results of some experts times their shares, summed; by the expert's number."""

    router: Routed
    terms: dict[int, Vector]
    names: tuple[str, ...]

    kind = "the sum of some experts"


@dataclass(frozen=True)
class Unknown:
    """The result of a refused node."""

    kind = "unknown"


Value = (
    Vector
    | Known
    | Field
    | Ids
    | Past
    | Present
    | Stored
    | Quantised
    | Computed
    | TableRows
    | TokenScale
    | Levels
    | Product
    | ZeroPoint
    | NormPart
    | Turned
    | Cached
    | Scores
    | Curve
    | Routed
    | Mixed
    | Unknown
)


PARTS = (
    TokenScale,
    Levels,
    Product,
    ZeroPoint,
    NormPart,
    Turned,
    Cached,
    Scores,
    Curve,
    Routed,
    Mixed,
)
"""Values that mean something to a chip only together with nodes that come later."""


def kind_of(value: Value | None) -> str:
    """What a value is, for messages."""
    return "missing" if value is None else value.kind


def token_size(dims: Dims) -> int:
    """Elements a token: the product of the factors that are no lengths.

    Raises:
        Refusal: a dimension is a sum of lengths (such as past + sequence).
    """
    size = 1
    for dim in dims:
        found = dim.monomial
        if found is None or "past" in found[0]:
            raise Refusal(f"the shape {dims_text(dims)} is not that of one token at a time")
        size *= found[1]
    return size


def is_token_major(dims: Dims) -> bool:
    """Whether batch and sequence stand before every other factor."""
    inner = False
    lengths: list[str] = []
    for dim in dims:
        found = dim.monomial
        if found is None:
            return False
        if found[0] and inner:
            return False
        lengths += found[0]
        inner = inner or found[1] > 1
    return lengths in ([], ["batch"], ["sequence"], ["batch", "sequence"])


def array_of(value: Value) -> Array | None:
    """The numbers of a small constant, or None."""
    match value:
        case Known():
            return value.array
        case Stored() if value.tensor.size <= SMALL:
            array = value.tensor.array()
            shape = value.dims[::-1] if value.transposed else value.dims
            array = array.reshape(shape)
            return array.T if value.transposed else array
        case _:
            return None


def numbers(value: Value) -> Array | None:
    """The numbers of a small constant without lengths in it, or None."""
    array = array_of(value)
    if array is not None and array.dtype == object:
        constants = [e.constant if isinstance(e, Expression) else int(e) for e in array.flat]
        if any(c is None for c in constants):
            return None
        return np.array(constants, np.int64).reshape(array.shape)
    return array


def number(value: Value | None) -> float | None:
    """The number that all elements of a small constant are, or None."""
    array = None if value is None else numbers(value)
    if array is None or array.size == 0 or array.dtype.kind not in "fiu":
        return None
    first = float(array.reshape(-1)[0])
    return first if bool((array == first).all()) else None


def integers(value: Value) -> list[int] | None:
    """A small constant as a flat list of integers, or None."""
    array = numbers(value)
    if array is None or (array.dtype.kind not in "iub"):
        return None
    return [int(v) for v in array.reshape(-1)]
