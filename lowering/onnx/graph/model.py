"""A model's graph in plain form, its tensors as views of memory-mapped files."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = np.ndarray
"""An array whose element type the model's file decides; lengths stand in arrays of objects."""

BITS = {
    "FLOAT": 32,
    "DOUBLE": 64,
    "FLOAT16": 16,
    "BFLOAT16": 16,
    "INT8": 8,
    "UINT8": 8,
    "INT16": 16,
    "UINT16": 16,
    "INT32": 32,
    "UINT32": 32,
    "INT64": 64,
    "UINT64": 64,
    "BOOL": 8,
    "INT4": 4,
    "UINT4": 4,
    "INT2": 2,
    "UINT2": 2,
}
"""Element types that are understood, and their size."""

FLOATS = ("FLOAT", "FLOAT16", "BFLOAT16", "DOUBLE")

_NUMPY = {
    "FLOAT": "<f4",
    "DOUBLE": "<f8",
    "FLOAT16": "<f2",
    "INT8": "i1",
    "UINT8": "u1",
    "INT16": "<i2",
    "UINT16": "<u2",
    "INT32": "<i4",
    "UINT32": "<u4",
    "INT64": "<i8",
    "UINT64": "<u8",
    "BOOL": "?",
}


NUMPY = {**_NUMPY, "BFLOAT16": "<f4"}
"""Types that elements are computed in; bfloat16 in float32."""


@dataclass(frozen=True, eq=False)
class Tensor:
    """A constant of the model, as stored.

    Attributes:
        name: the initializer's name, or that of the Constant node's output.
        dtype: the ONNX element type's name, a key of BITS.
        dims: the shape.
        read: gives the stored bytes, row-major, sub-byte elements packed low bits first.
    """

    name: str
    dtype: str
    dims: tuple[int, ...]
    read: Callable[[], npt.NDArray[np.uint8]] = field(repr=False)

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.dims)

    @property
    def bits(self) -> int:
        """Bits of an element."""
        return BITS[self.dtype]

    def stored(self) -> Array:
        """A view in the shape `dims`; bfloat16 as its 16 bits (uint16). Whole-byte types only."""
        dtype = "<u2" if self.dtype == "BFLOAT16" else _NUMPY[self.dtype]
        return self.read().view(dtype).reshape(self.dims)

    def array(self) -> Array:
        """The elements in the shape `dims`; bfloat16 becomes float32. For small tensors."""
        if self.bits < 8:
            from intaglio.dialects.codes import unpack

            codes = unpack(self.read(), self.bits, self.size).reshape(self.dims)
            if self.dtype.startswith("U"):
                return codes
            half = 1 << (self.bits - 1)
            return ((codes ^ half).astype(np.int8) - half).astype(np.int8)
        stored = self.stored()
        return widen(stored) if self.dtype == "BFLOAT16" else stored


def text_of(attribute: object) -> str:
    """A node's attribute as text."""
    return attribute.decode(errors="replace") if isinstance(attribute, bytes) else str(attribute)


def widen(bfloat16: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
    """Bfloat16 bits as float32, exactly."""
    return (bfloat16.astype(np.uint32) << np.uint32(16)).view(np.float32)


@dataclass(frozen=True, eq=False)
class Node:
    """One node; an absent input or output is the empty string."""

    index: int
    name: str
    domain: str
    op_type: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, object]
    version: int
    scopes: tuple[str, ...] = ()
    """Names of the modules it was exported from, where the exporter says so (torch)."""
    calls: tuple[str, ...] = ()
    """Names of the nodes whose model-local functions it stands in, outermost first."""

    def input(self, i: int) -> str:
        """The name of input i, empty when absent."""
        return self.inputs[i] if i < len(self.inputs) else ""

    def output(self, i: int) -> str:
        """The name of output i, empty when absent."""
        return self.outputs[i] if i < len(self.outputs) else ""

    def integer(self, name: str, default: int = 0) -> int:
        """An attribute that its schema says to be an integer."""
        found = self.attributes.get(name, default)
        assert isinstance(found, int)
        return found

    def real(self, name: str, default: float = 0.0) -> float:
        """An attribute that its schema says to be a number."""
        found = self.attributes.get(name, default)
        assert isinstance(found, int | float)
        return float(found)

    def integers(self, name: str) -> list[int] | None:
        """A list of integers, None where the node has none."""
        found = self.attributes.get(name)
        if found is None:
            return None
        assert isinstance(found, Sequence)
        return [one for one in found if isinstance(one, int)]


@dataclass(frozen=True, eq=False)
class Subgraph:
    """A branch or body of a control flow node; it may read values of the graph around it."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[Node, ...]
    initializers: Mapping[str, Tensor]


@dataclass(frozen=True)
class Port:
    """An input or output of the graph: `dims` has integers, names, or None where unknown."""

    name: str
    dtype: str
    dims: tuple[int | str | None, ...]


@dataclass(frozen=True, eq=False)
class Graph:
    """A model's graph, nodes in topological order."""

    path: Path
    inputs: dict[str, Port]
    outputs: dict[str, Port]
    nodes: tuple[Node, ...]
    initializers: dict[str, Tensor]
    opsets: dict[str, int]
    external_files: tuple[Path, ...]
    consumers: dict[str, tuple[Node, ...]]
    producers: dict[str, Node]

    def readers(self, value: str) -> tuple[Node, ...]:
        """The nodes that read the elements of a value, not its shape alone."""
        users = self.consumers.get(value, ())
        return tuple(user for user in users if user.op_type not in ("Shape", "Size"))

    def uses(self, value: str) -> int:
        """How often the elements of a value are read, by nodes or as an output of the graph."""
        return len(self.readers(value)) + (value in self.outputs)

    def with_nodes(self, nodes: Iterable[Node], initializers: Mapping[str, Tensor]) -> Graph:
        """The graph with other nodes, in topological order, and with more tensors."""
        numbered = tuple(
            node if node.index == i else replace(node, index=i) for i, node in enumerate(nodes)
        )
        consumers: dict[str, list[Node]] = {}
        producers: dict[str, Node] = {}
        for node in numbered:
            for name in filter(None, node.inputs):
                consumers.setdefault(name, []).append(node)
            producers.update((name, node) for name in node.outputs if name)
        return replace(
            self,
            nodes=numbered,
            initializers={**self.initializers, **initializers},
            consumers={name: tuple(users) for name, users in consumers.items()},
            producers=producers,
        )


def cast_type(node: Node) -> str:
    """The name of the element type that a Cast gives."""
    import onnx_ir

    number = node.attributes.get("to")
    try:
        return onnx_ir.DataType(number).name
    except ValueError:
        return f"type {number}"
