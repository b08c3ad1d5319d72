"""The branch of an If that is taken, in the place of the If."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from intaglio.lowering.onnx.graph.model import Graph, Node, Subgraph


def ancestors(graph: Graph, value: str) -> list[Node]:
    """The nodes that a value is computed by, in topological order."""
    found: set[int] = set()
    todo = [value]
    while todo:
        node = graph.producers.get(todo.pop())
        if node is not None and node.index not in found:
            found.add(node.index)
            todo += filter(None, node.inputs)
            todo += (name for sub in subgraphs(node) for name in outer_names(sub))
    return [graph.nodes[i] for i in sorted(found)]


def subgraphs(node: Node) -> list[Subgraph]:
    """The branches or bodies of a node."""
    return [value for value in node.attributes.values() if isinstance(value, Subgraph)]


def outer_names(graph: Subgraph) -> set[str]:
    """Values around a branch that it reads."""
    own = {*graph.inputs, *graph.initializers}
    own.update(name for node in graph.nodes for name in node.outputs)
    read = {name for node in graph.nodes for name in node.inputs if name} | {*graph.outputs}
    for node in graph.nodes:
        for inner in subgraphs(node):
            read |= outer_names(inner)
    return read - own


def taken(graph: Graph, node: Node, branch: Subgraph) -> Graph:
    """The graph with a branch's nodes in the place of its If.

    Names of the branch that the graph has too get the name of the If in front.
    """
    used = {*graph.inputs, *graph.initializers, *graph.producers}
    titles = {other.name for other in graph.nodes}
    names: dict[str, str] = {}
    handed: list[tuple[str, str]] = []
    inner = {name for one in branch.nodes for name in one.outputs if name} | {*branch.initializers}
    for name, output in zip(branch.outputs, node.outputs, strict=False):
        if not output:
            continue
        if name in inner and name not in names:
            names[name] = output
        else:
            handed.append((name, output))
    for name in inner:
        if name not in names:
            names[name] = f"{node.name}/{name}" if name in used else name
    nodes: list[Node] = []
    for one in branch.nodes:
        found = _renamed(one, names)
        title = f"{node.name}/{one.name}" if one.name in titles else one.name
        titles.add(title)
        nodes.append(replace(found, name=title, calls=(*node.calls, node.name)))
    for name, output in handed:
        nodes.append(
            replace(
                node,
                name=f"{node.name}/{output}",
                op_type="Identity",
                inputs=(names.get(name, name),),
                outputs=(output,),
                attributes={},
                calls=(*node.calls, node.name),
            )
        )
    whole = [*graph.nodes[: node.index], *nodes, *graph.nodes[node.index + 1 :]]
    tensors = {names[name]: tensor for name, tensor in branch.initializers.items()}
    return graph.with_nodes(whole, tensors)


def _renamed(node: Node, names: Mapping[str, str]) -> Node:
    attributes: dict[str, object] = {
        key: _renamed_graph(value, names) if isinstance(value, Subgraph) else value
        for key, value in node.attributes.items()
    }
    return replace(
        node,
        inputs=tuple(names.get(name, name) for name in node.inputs),
        outputs=tuple(names.get(name, name) for name in node.outputs),
        attributes=attributes,
    )


def _renamed_graph(graph: Subgraph, names: Mapping[str, str]) -> Subgraph:
    own = {*graph.inputs, *graph.initializers}
    own.update(name for node in graph.nodes for name in node.outputs)
    outer = {name: new for name, new in names.items() if name not in own}
    return replace(
        graph,
        outputs=tuple(outer.get(name, name) for name in graph.outputs),
        nodes=tuple(_renamed(node, outer) for node in graph.nodes),
    )
