"""What must hold of a model's file before its graph is read: each name is given once.

onnx_ir keeps the last of two tensors, inputs or attributes of one name, onnxruntime another or
none; what they could read differently is refused here, on the file's own records. What
onnxruntime accepts and cannot be misread stays: a tensor stored twice with equal bytes, an input
with a default listed twice (Olive writes such graphs), an output listed twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from intaglio.dialects.errors import UserError, UserErrors
from intaglio.lowering.onnx.graph.contrib import is_operator

if TYPE_CHECKING:
    import onnx

_EXPORT = "export the model again; tools that edit graphs must keep names apart"
_EXTERNAL = "external data need an offset and a length of whole, positive numbers"


def check(file: Path, model: onnx.ModelProto) -> None:
    """Checks a model's records.

    Raises:
        UserErrors: names, attributes, versions or element types that can be read in two ways or in
            none; all are listed.
    """
    errors = [*_opsets(model), *_functions(model), *_graph(model.graph, _tensor_names(model.graph))]
    if errors:
        raise UserErrors(
            [
                UserError(
                    error.what,
                    file=str(file),
                    node=error.node,
                    op_type=error.op_type,
                    hint=error.hint,
                )
                for error in errors
            ]
        )


def _twice(names: Iterable[str]) -> list[str]:
    return [name for name, count in Counter(names).items() if name and count > 1]


def _opsets(model: onnx.ModelProto) -> Iterator[UserError]:
    versions: dict[str, int] = {}
    for opset in model.opset_import:
        domain = "" if opset.domain == "ai.onnx" else opset.domain
        if versions.setdefault(domain, opset.version) != opset.version:
            yield UserError(
                f"the operator set '{domain or 'ai.onnx'}' is imported in the versions "
                f"{versions[domain]} and {opset.version}",
                hint=_EXPORT,
            )
    import onnx

    # What operators of a later version mean is not known.
    newest = onnx.defs.onnx_opset_version()
    if (version := versions.get("", 1)) > newest:
        yield UserError(
            f"the operator set 'ai.onnx' has version {version}; onnx {onnx.__version__} knows 1 to "
            f"{newest}",
            hint=f"export with opset_version={newest} or older, or install a newer onnx",
        )


def _functions(model: onnx.ModelProto) -> Iterator[UserError]:
    for name in _twice(f"{f.domain}::{f.name}:{f.overload}".strip(":") for f in model.functions):
        yield UserError(f"the model has two functions '{name}'", hint=_EXPORT)
    for name in _circular(model):
        yield UserError(
            f"the function '{name}' calls itself", hint="export the model without functions"
        )
    for function in model.functions:
        names = [*function.input, *(name for node in function.node for name in node.output)]
        for name in _twice(names):
            yield UserError(
                f"in the function '{function.name}' the value '{name}' is given twice",
                hint=_EXPORT,
            )
        yield from _nodes(function.node)


def _circular(model: onnx.ModelProto) -> list[str]:
    """Functions whose calls come back to them, whether or not the graph calls them."""
    calls = {
        (f.domain, f.name): {(node.domain, node.op_type) for node in f.node}
        for f in model.functions
        if not is_operator("" if f.domain == "ai.onnx" else f.domain, f.name)
    }
    found: list[str] = []
    for start in calls:
        reached: set[tuple[str, str]] = set()
        todo = [*calls[start]]
        while todo:
            one = todo.pop()
            if one in calls and one not in reached:
                reached.add(one)
                todo += calls[one]
        if start in reached:
            found.append(start[1])
    return found


def _tensor_names(graph: onnx.GraphProto) -> set[str]:
    return {tensor.name for tensor in graph.initializer}


def _graph(graph: onnx.GraphProto, tensors: set[str]) -> Iterator[UserError]:
    yield from _tensors(graph)
    for name in _twice(port.name for port in graph.input):
        if name not in tensors:
            yield UserError(f"the graph has two inputs '{name}'", hint=_EXPORT)
    inputs = {port.name for port in graph.input}
    outputs = [name for node in graph.node for name in node.output if name]
    twice = set(_twice(outputs))
    for node in graph.node:
        for name in node.output:
            also = (
                "another node"
                if name in twice
                else "a tensor of the file"
                if name in tensors
                else "an input of the graph"
                if name in inputs
                else ""
            )
            if name and also:
                yield _of_node(node, f"its output '{name}' is the name of {also} too")
                twice.discard(name)
    for name in _twice(node.name for node in graph.node):
        kinds = ", ".join(node.op_type for node in graph.node if node.name == name)
        yield UserError(f"nodes share the name '{name}' ({kinds})", hint=_EXPORT)
    yield from _nodes(graph.node)


def _tensors(graph: onnx.GraphProto) -> Iterator[UserError]:
    first: dict[str, onnx.TensorProto] = {}
    for tensor in graph.initializer:
        if tensor.name in first and not _equal(first[tensor.name], tensor):
            yield UserError(
                f"the file holds two tensors '{tensor.name}' with different contents", hint=_EXPORT
            )
        first.setdefault(tensor.name, tensor)
        yield from _tensor(tensor, tensor.name)


def _equal(a: onnx.TensorProto, b: onnx.TensorProto) -> bool:
    """Whether two tensors of one name are the same: type, shape and bytes, or place in a file."""
    if a == b:
        return True
    if a.data_type != b.data_type or a.dims != b.dims or a.data_location or b.data_location:
        return False
    from onnx import numpy_helper

    try:
        return numpy_helper.to_array(a).tobytes() == numpy_helper.to_array(b).tobytes()
    except (TypeError, ValueError):
        return False


def _tensor(tensor: onnx.TensorProto, name: str) -> Iterator[UserError]:
    from onnx import TensorProto

    if tensor.data_type not in TensorProto.DataType.values():
        yield UserError(
            f"tensor '{name}' has an element type that ONNX does not know ({tensor.data_type})",
            hint="the file is damaged, or of a newer version of ONNX",
        )
    for key in ("offset", "length"):
        for entry in tensor.external_data:
            if entry.key == key and not _is_size(entry.value):
                yield UserError(
                    f"tensor '{name}' has the {key} '{entry.value}' in its external data",
                    hint=_EXTERNAL,
                )


def _is_size(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 18


def _of_node(node: onnx.NodeProto, what: str) -> UserError:
    return UserError(what, node=node.name or None, op_type=node.op_type, hint=_EXPORT)


def _nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[UserError]:
    for node in nodes:
        for name in _twice(attribute.name for attribute in node.attribute):
            yield _of_node(node, f"its attribute '{name}' is given twice")
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield from _tensor(attribute.t, node.output[0] if node.output else node.name)
            for graph in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                yield from _graph(graph, _tensor_names(graph))
