"""Opening a model file: the graph in plain form, its tensors as views of memory-mapped files."""

from __future__ import annotations

import logging
import math
import os
import re
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from intaglio.dialects.errors import UserError, UserErrors
from intaglio.lowering.onnx.external_data import ExternalFiles

if TYPE_CHECKING:
    import onnx_ir

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

    def stored(self) -> npt.NDArray[Any]:
        """A view in the shape `dims`; bfloat16 as its 16 bits (uint16). Whole-byte types only."""
        dtype = "<u2" if self.dtype == "BFLOAT16" else _NUMPY[self.dtype]
        return self.read().view(dtype).reshape(self.dims)

    def array(self) -> npt.NDArray[Any]:
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
    attributes: dict[str, Any]
    version: int
    scopes: tuple[str, ...] = ()
    """Names of the modules it was exported from, where the exporter says so (torch)."""

    def input(self, i: int) -> str:
        """The name of input i, empty when absent."""
        return self.inputs[i] if i < len(self.inputs) else ""

    def output(self, i: int) -> str:
        """The name of output i, empty when absent."""
        return self.outputs[i] if i < len(self.outputs) else ""


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


def cast_type(node: Node) -> str:
    """The name of the element type that a Cast gives."""
    import onnx_ir

    number = node.attributes.get("to")
    try:
        return onnx_ir.DataType(number).name
    except ValueError:
        return f"type {number}"


SUBGRAPH = "a subgraph"
"""Stands for an attribute that holds a graph (If, Loop, Scan)."""


def load(path: str | os.PathLike[str], *, allow_links: bool = False) -> Graph:
    """Opens a model without reading its weights.

    External data is memory-mapped, one mapping a file.

    Args:
        path: the `.onnx` file.
        allow_links: follow links inside a model hub's cache (`snapshots/REVISION/file` to
            `../../blobs/HASH`).

    Raises:
        UserError: the file is missing or no ONNX model, or its external data is missing, too short
            or outside the model's folder.
    """
    file = Path(path)
    model = _open(file, allow_links)
    files = ExternalFiles(file, allow_links)
    graph = _graph(file, model, files)
    for node in graph.nodes:
        for name in (node.name, node.domain, node.op_type, *node.inputs, *node.outputs):
            if not isinstance(name, str):
                raise UserError(
                    f"a name in the model is no text: {name}", file=str(file), hint=_WHOLE
                )
    return graph


_WHOLE = "copy or export the model again; it must be a whole ONNX file in binary form"


def _open(file: Path, allow_links: bool) -> onnx_ir.Model:
    if not file.exists():
        raise UserError("there is no such file", file=str(file))
    if file.is_dir():
        inside = sorted(p.name for p in file.glob("*.onnx"))
        hint = f"pass the model file, for example {file / inside[0]}" if inside else None
        raise UserError("this is a folder, not a model file", file=str(file), hint=hint)
    if file.stat().st_size == 0:
        raise UserError("the file is empty", file=str(file), hint=_WHOLE)

    import onnx_ir
    from google.protobuf.message import DecodeError

    # What onnx_ir would log or warn of is found again here, with the node and a remedy.
    log = logging.getLogger("onnx_ir")
    level = log.level
    try:
        log.setLevel(logging.CRITICAL)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = onnx_ir.load(file)
        if model.functions:
            from onnx_ir.passes.common import InlinePass

            model = InlinePass()(model).model
    except DecodeError as error:
        raise UserError(
            "the file is no ONNX model, or a part of it is missing", file=str(file), hint=_WHOLE
        ) from error
    except OSError as error:
        raise UserError(f"cannot read: {error.strerror}", file=str(file)) from error
    except (
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        RuntimeError,
        NotImplementedError,
    ) as e:
        raise UserError(f"not a valid ONNX model: {_cause(e)}", file=str(file), hint=_WHOLE) from e
    finally:
        log.setLevel(level)
    if not len(model.graph) or not model.graph.outputs:
        raise UserError("the model has no nodes or no outputs", file=str(file), hint=_WHOLE)
    return model


def _cause(error: BaseException) -> BaseException:
    """What an error began with."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _graph(file: Path, model: onnx_ir.Model, files: ExternalFiles) -> Graph:
    import onnx_ir

    errors: list[UserError] = []
    source = model.graph
    initializers: dict[str, Tensor] = {}

    def tensor(name: str, value: Any) -> Tensor | None:
        dtype = value.dtype.name
        dims = tuple(int(d) for d in value.shape.numpy())
        if any(d < 0 for d in dims):
            what = f"tensor '{name}' has the shape {list(dims)}"
            errors.append(UserError(what, file=str(file), hint=_WHOLE))
            return None
        if dtype not in BITS:
            if dtype != "STRING":
                errors.append(
                    UserError(
                        f"tensor '{name}' has the element type {dtype}, which is not supported",
                        file=str(file),
                        hint="quantise weights to integers of 2, 4 or 8 bits",
                    )
                )
            return None
        if isinstance(value, onnx_ir.ExternalTensor):
            try:
                data = files.bytes_of(value, BITS[dtype])
            except UserError as error:
                # Many tensors lie in one file: its fault is said once.
                if error.hint is None or error.hint not in {known.hint for known in errors}:
                    errors.append(error)
                return None
            return Tensor(name, dtype, dims, lambda: data)
        return Tensor(name, dtype, dims, _inline(file, name, value))

    for name, value in source.initializers.items():
        if value.const_value is not None:
            found = tensor(name, value.const_value)
            if found is not None:
                initializers[name] = found

    inputs: dict[str, Port] = {}
    for value in source.inputs:
        inputs[value.name or ""] = _port(value)
    nodes = tuple(_node(i, node, source, tensor) for i, node in enumerate(_sorted(file, source)))
    if errors:
        raise errors[0] if len(errors) == 1 else UserErrors(errors)
    consumers: dict[str, list[Node]] = {}
    producers: dict[str, Node] = {}
    for node in nodes:
        for name in node.inputs:
            if name:
                consumers.setdefault(name, []).append(node)
        for name in node.outputs:
            if name:
                producers[name] = node
    return Graph(
        path=file,
        inputs=inputs,
        outputs={value.name or "": _port(value) for value in source.outputs},
        nodes=nodes,
        initializers=initializers,
        opsets=dict(source.opset_imports),
        external_files=tuple(files.paths.values()),
        consumers={name: tuple(users) for name, users in consumers.items()},
        producers=producers,
    )


def _sorted(file: Path, graph: onnx_ir.Graph) -> Iterable[onnx_ir.Node]:
    try:
        graph.sort()
    except ValueError as error:
        raise UserError("the graph has a cycle", file=str(file)) from error
    return graph


def _inline(file: Path, name: str, value: Any) -> Callable[[], npt.NDArray[np.uint8]]:
    kept: list[npt.NDArray[np.uint8]] = []

    def read() -> npt.NDArray[np.uint8]:
        if not kept:
            data = np.frombuffer(value.tobytes(), np.uint8)
            size = -(-math.prod(map(int, value.shape.numpy())) * BITS[value.dtype.name] // 8)
            if data.size < size:
                raise UserError(
                    f"tensor '{name}' needs {size} bytes, the file holds {data.size}",
                    file=str(file),
                    hint=_WHOLE,
                )
            kept.append(data[:size])
        return kept[0]

    return read


def _port(value: onnx_ir.Value) -> Port:
    dims: list[int | str | None] = []
    for dim in value.shape or ():
        if isinstance(dim, int):
            dims.append(dim)
        else:
            text = dim.value
            dims.append(int(text) if isinstance(text, str) and text.isdigit() else text)
    dtype = value.dtype.name if value.dtype is not None else "UNDEFINED"
    return Port(value.name or "", dtype, tuple(dims))


def _node(
    index: int,
    node: onnx_ir.Node,
    graph: onnx_ir.Graph,
    tensor: Callable[[str, Any], Tensor | None],
) -> Node:
    import onnx_ir

    attributes: dict[str, Any] = {}
    for name, attribute in node.attributes.items():
        match attribute.type:
            case onnx_ir.AttributeType.TENSOR:
                attributes[name] = tensor(node.outputs[0].name or name, attribute.value)
            case onnx_ir.AttributeType.GRAPH | onnx_ir.AttributeType.GRAPHS:
                attributes[name] = SUBGRAPH
            case _:
                attributes[name] = attribute.value
    domain = "" if node.domain == "ai.onnx" else node.domain
    return Node(
        index=index,
        name=node.name or f"{node.op_type}_{index}",
        domain=domain,
        op_type=node.op_type,
        inputs=tuple("" if v is None else v.name or "" for v in node.inputs),
        outputs=tuple(v.name or "" for v in node.outputs),
        attributes=attributes,
        version=graph.opset_imports.get(domain, 1),
        scopes=_scopes(node),
    )


def _scopes(node: onnx_ir.Node) -> tuple[str, ...]:
    """The innermost module in torch's `name_scopes`, a list of dotted names as text."""
    text = node.metadata_props.get("pkg.torch.onnx.name_scopes", "")
    found = [name for name in re.findall(r"'([^']*)'", text) if name]
    # The last one is the operation, before it stands its module.
    return tuple(found[-2:-1])
