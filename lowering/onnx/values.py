"""What a name of the graph stands for while the token-level step is built."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from xdsl.ir import SSAValue

from intaglio.lowering.onnx.expressions import Dims, Expression, dims_text
from intaglio.lowering.onnx.model import FLOATS, Node, Tensor

SMALL = 1 << 16
"""Constants of at most this many elements may be computed with."""


class Refusal(Exception):
    """Why a node cannot be converted, and what would help."""

    def __init__(self, reason: str, hint: str | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.hint = hint


class Blocked(Exception):
    """A node's input comes from a node that was refused, so nothing more can be said of it."""


@dataclass(frozen=True, eq=False)
class Vector:
    """One token's part of an activation [batch, sequence, ...], flat.

    `dims` are those of the whole activation. Batch and sequence stand before every other factor, or
    the token's elements keep their order (see `refold`), so the flat vector is one token's part.
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

    array: npt.NDArray[Any]

    kind = "a constant"


@dataclass(frozen=True, eq=False)
class Filled:
    """A tensor of one repeated value, such as an attention mask without padding."""

    value: Expression
    dims: Dims

    kind = "the attention mask or a count taken from it"


@dataclass(frozen=True, eq=False)
class Ids:
    """Token ids or position ids, [batch, sequence] up to reshaping."""

    role: str
    dims: Dims

    @property
    def kind(self) -> str:
        """What this is, for messages."""
        return f"the {self.role} ids"


@dataclass(frozen=True, eq=False)
class Past:
    """Keys or values of earlier tokens, an input of the graph."""

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
    of the result. `names` are those of the nodes passed through.
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
class NormPart:
    """A part of an RMS norm that is written out: what was computed of `input` so far.

    `stage` is "mean" (of squares, plus eps), "root", "inverse" (1 / root) or "normalised".
    """

    stage: str
    input: Vector
    eps: float
    names: tuple[str, ...]

    kind = "a part of a norm"

    def to(self, stage: str, node: Node, eps: float | None = None) -> NormPart:
        """The part after one more node."""
        names = (*self.names, node.name)
        return NormPart(stage, self.input, self.eps if eps is None else eps, names)


@dataclass(frozen=True)
class Unknown:
    """The result of a refused node."""

    kind = "unknown"


Value = Vector | Known | Filled | Ids | Past | Present | Stored | Quantised | NormPart | Unknown


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


def array_of(value: Value) -> npt.NDArray[Any] | None:
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


def numbers(value: Value) -> npt.NDArray[Any] | None:
    """The numbers of a small constant without lengths in it, or None."""
    array = array_of(value)
    if array is not None and array.dtype == object:
        constants = [e.constant if isinstance(e, Expression) else int(e) for e in array.flat]
        if any(c is None for c in constants):
            return None
        return np.array(constants, np.int64).reshape(array.shape)
    return array


def integers(value: Value) -> list[int] | None:
    """A small constant as a flat list of integers, or None."""
    array = numbers(value)
    if array is None or (array.dtype.kind not in "iub"):
        return None
    return [int(v) for v in array.reshape(-1)]
