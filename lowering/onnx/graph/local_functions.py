"""The nodes of a graph in plain form; calls of model-local functions become what their bodies do.

onnxruntime prefers its kernel to a function of the model that has the same domain and name, with
every overload; where it knows the domain's operator set (ai.onnx, ai.onnx.ml) it takes no function
at all, even for a name or version that it does not know. So a body counts for unknown names of
other domains only, and a known operator's body is left alone, whatever it computes.

ONNX lets a body import operator sets of its own; onnxruntime reads it with the model's. An operator
that differs between the two is refused.

A node of a body is named `CALL/NODE`, after the node that calls and the node of the body, and its
inner values likewise: both can be found in the file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from intaglio.dialects.errors import UserError
from intaglio.lowering.onnx.graph.contrib import is_operator
from intaglio.lowering.onnx.graph.model import Node, Subgraph, Tensor

if TYPE_CHECKING:
    import onnx_ir

ReadTensor = Callable[[str, "onnx_ir.TensorProtocol"], Tensor | None]


@dataclass(frozen=True, eq=False)
class _Scope:
    """Where nodes stand: in the graph, or in the body of a function that is called.

    Attributes:
        names: what the values of the body are called in the graph.
        attributes: those of the call, for attributes that refer to them.
        opsets: versions that hold in it.
        calls: names of the nodes whose calls it stands in, outermost first.
        functions: what they call.
    """

    opsets: Mapping[str, int]
    names: dict[onnx_ir.Value, str] = field(default_factory=dict)
    attributes: Mapping[str, object] = field(default_factory=dict[str, object])
    calls: tuple[str, ...] = ()
    functions: tuple[onnx_ir.Function, ...] = ()


class Unfolding:
    """A model's nodes in plain form.

    Args:
        file: the model, for messages.
        model: as onnx_ir reads it.
        tensor: makes a tensor of an attribute's, by the name of the value that holds it.
    """

    def __init__(self, file: Path, model: onnx_ir.Model, tensor: ReadTensor) -> None:
        self.file = file
        self.graph = model.graph
        self.functions = model.functions
        self.tensor = tensor
        self.found: list[Node] = []
        outputs = (value for node in self.graph for value in node.outputs)
        self.named = {value.name for value in (*outputs, *self.graph.inputs) if value.name}
        self.named |= set(self.graph.initializers)
        self.titles: set[str] = {node.name for node in self.graph if node.name}

    def nodes(self) -> tuple[Node, ...]:
        """All nodes, in topological order.

        Raises:
            UserError: a cycle, or a call that does not fit its function.
        """
        scope = _Scope(self.graph.opset_imports)
        for node in self._sorted(self.graph, "the graph"):
            self._add(node, scope)
        return tuple(self.found)

    def _sorted(self, nodes: onnx_ir.Graph | onnx_ir.Function, what: str) -> Iterable[onnx_ir.Node]:
        try:
            nodes.sort()
        except ValueError as error:
            raise UserError(f"{what} has a cycle", file=str(self.file)) from error
        return nodes

    def _add(self, node: onnx_ir.Node, scope: _Scope) -> None:
        domain = "" if node.domain == "ai.onnx" else node.domain
        function = self.functions.get(node.op_identifier())
        if function is None or is_operator(domain, node.op_type):
            self.found.append(self._plain(node, domain, scope, len(self.found)))
        else:
            self._call(node, function, scope)

    def _plain(self, node: onnx_ir.Node, domain: str, scope: _Scope, index: int) -> Node:
        title = node.name or f"{node.op_type}_{index}"
        if scope.calls:
            title = self._unique(f"{scope.calls[-1]}/{title}", self.titles)
        version = self.graph.opset_imports.get(domain, 1)
        own = scope.opsets.get(domain, version)
        if own != version and _since(domain, node.op_type, own) != _since(
            domain, node.op_type, version
        ):
            raise UserError(
                f"its function imports version {own} of {domain or 'ai.onnx'}, the model "
                f"{version}, in which {node.op_type} differs; onnxruntime takes the model's",
                file=str(self.file),
                node=title,
                op_type=node.op_type,
                hint="export the model and its functions with one operator set",
            )
        return Node(
            index=index,
            name=title,
            domain=domain,
            op_type=node.op_type,
            inputs=tuple(self._name(value, scope) for value in node.inputs),
            outputs=tuple(self._name(value, scope) for value in node.outputs),
            attributes=self._attributes(node, scope),
            version=version,
            scopes=_scopes(node),
            calls=scope.calls,
        )

    def _name(self, value: onnx_ir.Value | None, scope: _Scope) -> str:
        if value is None or not value.name:
            return ""
        if not scope.calls:
            return value.name
        if value not in scope.names:
            scope.names[value] = self._unique(f"{scope.calls[-1]}/{value.name}", self.named)
        return scope.names[value]

    def _unique(self, name: str, taken: set[str]) -> str:
        found, count = name, 1
        while found in taken:
            count += 1
            found = f"{name}_{count}"
        taken.add(found)
        return found

    # --- calls ------------------------------------------------------------------------------------

    def _call(self, node: onnx_ir.Node, function: onnx_ir.Function, scope: _Scope) -> None:
        plain = self._plain(node, node.domain, scope, len(self.found))
        title = f"the function '{function.name}'"

        def error(what: str) -> UserError:
            return UserError(
                what,
                file=str(self.file),
                node=plain.name,
                op_type=node.op_type,
                hint="export the model again, or without functions of its own",
            )

        if function in scope.functions:
            raise error(f"{title} calls itself")
        for kind, given, known in (
            ("inputs", node.inputs, function.inputs),
            ("outputs", node.outputs, function.outputs),
        ):
            if len(given) > len(known):
                raise error(f"it has {len(given)} {kind}; {title} has {len(known)}")
        attributes = {
            name: self._value(name, attribute, scope, plain.name)
            for name, attribute in function.attributes.items()
            if attribute.value is not None
        }
        inner = _Scope(
            {**scope.opsets, **function.opset_imports},
            attributes={**attributes, **plain.attributes},
            calls=(*scope.calls, plain.name),
            functions=(*scope.functions, function),
        )
        for i, value in enumerate(function.inputs):
            inner.names[value] = plain.input(i)
        handed: list[tuple[onnx_ir.Value, str]] = []
        for value, name in zip(function.outputs, plain.outputs, strict=False):
            if not name:
                continue
            if value in inner.names:
                handed.append((value, name))
            else:
                inner.names[value] = name
        for one in self._sorted(function, title):
            self._add(one, inner)
        for value, name in handed:
            # An input that is handed on, or a value that is given twice.
            self.found.append(
                Node(
                    index=len(self.found),
                    name=self._unique(f"{plain.name}/{value.name}", self.titles),
                    domain="",
                    op_type="Identity",
                    inputs=(inner.names[value],),
                    outputs=(name,),
                    attributes={},
                    version=self.graph.opset_imports.get("", 1),
                    calls=inner.calls,
                )
            )

    # --- attributes -------------------------------------------------------------------------------

    def _attributes(self, node: onnx_ir.Node, scope: _Scope) -> dict[str, object]:
        title = (node.outputs[0].name if node.outputs else node.name) or node.op_type
        found: dict[str, object] = {}
        for name, attribute in node.attributes.items():
            if attribute.is_ref():
                if (outer := attribute.ref_attr_name or "") in scope.attributes:
                    found[name] = scope.attributes[outer]
            else:
                found[name] = self._value(name, attribute, scope, title)
        return found

    def _value(self, name: str, attribute: onnx_ir.Attr, scope: _Scope, title: str) -> object:
        import onnx_ir

        match attribute.type:
            case onnx_ir.AttributeType.TENSOR:
                return self.tensor(title, attribute.value)
            case onnx_ir.AttributeType.GRAPH:
                return self._subgraph(attribute.as_graph(), scope, name)
            case onnx_ir.AttributeType.GRAPHS:
                return [self._subgraph(graph, scope, name) for graph in attribute.as_graphs()]
            case _:
                return attribute.value

    def _subgraph(self, graph: onnx_ir.Graph, scope: _Scope, name: str) -> Subgraph:
        outer, self.found = self.found, []
        try:
            for node in self._sorted(graph, f"'{name}'"):
                self._add(node, scope)
            nodes = tuple(self.found)
        finally:
            self.found = outer
        tensors = {
            self._name(value, scope): self.tensor(value.name or "", value.const_value)
            for value in graph.initializers.values()
            if value.const_value is not None
        }
        return Subgraph(
            inputs=tuple(self._name(value, scope) for value in graph.inputs),
            outputs=tuple(self._name(value, scope) for value in graph.outputs),
            nodes=nodes,
            initializers={key: found for key, found in tensors.items() if found is not None},
        )


def _since(domain: str, op_type: str, version: int) -> int | None:
    """Since which version of its domain an operator is what it is at `version`."""
    import onnx

    try:
        return onnx.defs.get_schema(op_type, version, domain).since_version
    except onnx.defs.SchemaError:
        return None


def _scopes(node: onnx_ir.Node) -> tuple[str, ...]:
    """The innermost module in torch's `name_scopes`, a list of dotted names as text."""
    text = node.metadata_props.get("pkg.torch.onnx.name_scopes", "")
    found = [name for name in re.findall(r"'([^']*)'", text) if name]
    # The last one is the operation, before it stands its module.
    return tuple(found[-2:-1])
