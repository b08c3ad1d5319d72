"""LoRA branches of a graph: y = W x + (scale) B (A x).

With constant A and B they are adapters that the chip runs with the model. Where A and B are inputs
of the graph (Olive lifts them there, with empty matrices as defaults), they are places for adapters
to come, and are taken out.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from intaglio.lowering.onnx.model import Graph, Node

MAX_RANK = 512

_LINEAR = {
    ("", "MatMul"): (1,),
    ("com.microsoft", "MatMulNBits"): (1, 2, 3, 4, 5),
    ("com.microsoft", "FusedMatMul"): (1,),
}
"""Linear operators and which inputs are their weights."""

_PASSED = ("DequantizeLinear", "Transpose", "Identity", "Cast", "Reshape", "Constant")
"""Nodes weights may pass through."""


def _is_constant(graph: Graph, name: str, depth: int = 8) -> bool:
    if not name or name in graph.initializers:
        return name not in graph.inputs
    node = graph.producers.get(name)
    if node is None or node.op_type not in _PASSED or not depth:
        return False
    return all(_is_constant(graph, i, depth - 1) for i in node.inputs)


def _weight_dims(graph: Graph, node: Node) -> tuple[int, int] | None:
    """(rows N, columns K) of a linear node with constant weights, or None."""
    places = _LINEAR.get((node.domain, node.op_type))
    if places is None or not all(_is_constant(graph, node.input(i)) for i in places):
        return None
    if node.op_type == "MatMulNBits":
        rows, columns = node.attributes.get("N"), node.attributes.get("K")
        if not isinstance(rows, int) or not isinstance(columns, int):
            return None
        return rows, columns
    name, swap = node.input(1), bool(node.attributes.get("transB", 0))
    while name not in graph.initializers:
        producer = graph.producers.get(name)
        if producer is None or not producer.inputs:
            return None
        swap ^= producer.op_type == "Transpose"
        name = producer.input(0)
    dims = graph.initializers[name].dims
    if len(dims) != 2:
        return None
    k, n = dims[::-1] if swap else dims
    return n, k


def find(graph: Graph) -> set[int]:
    """Indices of the nodes that multiply with A or B of an adapter.

    A branch is one when it reads what a parallel linear operator reads, its inner width is smaller
    than both sides, nothing else uses its inner value, and it is added to the parallel result.
    """
    found: set[int] = set()
    for up in graph.nodes:
        dims = _weight_dims(graph, up)
        if dims is None:
            continue
        down = graph.producers.get(up.input(0))
        if down is not None and down.op_type == "Mul":
            # A scale between the two matrices.
            down = next((graph.producers[i] for i in down.inputs if i in graph.producers), None)
        if down is None:
            continue
        inner = _weight_dims(graph, down)
        if inner is None or inner[0] != dims[1] or graph.uses(down.output(0)) != 1:
            continue
        rank, columns, rows = inner[0], inner[1], dims[0]
        if rank >= min(rows, columns) or rank > MAX_RANK:
            continue
        if _joins_parallel(graph, up, down):
            found |= {up.index, down.index}
    return found


def _joins_parallel(graph: Graph, up: Node, down: Node) -> bool:
    value = up.output(0)
    for _ in range(3):
        users = graph.consumers.get(value, ())
        if len(users) != 1 or value in graph.outputs:
            return False
        user = users[0]
        if user.op_type == "Mul":
            value = user.output(0)
            continue
        if user.op_type != "Add":
            return False
        other = next((i for i in user.inputs if i != value), "")
        base = _base(graph, graph.producers.get(other))
        return base is not None and _reads_rounded(graph, base.input(0), down.input(0))
    return False


def _base(graph: Graph, node: Node | None) -> Node | None:
    """The linear operator that a value comes from through its bias and scales."""
    for _ in range(6):
        if node is None or _weight_dims(graph, node) is not None:
            return node
        if node.op_type == "MatMulInteger":
            return node
        if node.op_type not in ("Add", "Mul", "Div", "Cast"):
            return None
        # Of two factors the product is the one that is no scale of a token.
        inner = [graph.producers[i] for i in node.inputs if i in graph.producers]
        inner = [n for n in inner if not _is_constant(graph, n.outputs[0])]
        found = [n for n in inner if _weight_dims(graph, n) or n.op_type == "MatMulInteger"]
        node = next(iter(found or inner), None)
    return None


_ROUNDING = ("Div", "Mul", "Clip", "Round", "Cast", "DynamicQuantizeLinear", "Max", "Min")
"""Nodes between an activation and the levels it is rounded to by the graph (BitNet)."""


def _reads_rounded(graph: Graph, name: str, activation: str) -> bool:
    """Whether `name` is an activation, or the same rounded to 8 bits."""
    if name == activation:
        return True
    pending, seen = [(name, False)], set[tuple[str, bool]]()
    while pending and len(seen) < 24:
        one, rounded = pending.pop()
        if one == activation and rounded:
            return True
        node = graph.producers.get(one)
        if (one, rounded) in seen or node is None or node.op_type not in _ROUNDING:
            continue
        seen.add((one, rounded))
        rounded = rounded or node.op_type in ("Round", "DynamicQuantizeLinear")
        pending += [(source, rounded) for source in node.inputs]
    return False


# --- adapters that are inputs of the graph ------------------------------------------------------


def without_lifted(graph: Graph) -> tuple[Graph, tuple[str, ...]]:
    """The graph without the branches whose A and B are inputs with empty defaults.

    Returns:
        The graph, and the names of the inputs that went with the branches. An empty input with
        another use stays, and so does its branch.
    """
    empty = {
        name
        for name in graph.inputs
        if name in graph.initializers and not graph.initializers[name].size
    }
    gone: set[int] = set()
    renamed: dict[str, str] = {}
    for up in graph.nodes:
        branch = _lifted_branch(graph, up, empty)
        if branch is None:
            continue
        added, base, indices = branch
        renamed[added.outputs[0]] = base
        gone |= indices
    if not renamed:
        return graph, ()
    nodes = tuple(
        replace(node, inputs=tuple(_final(renamed, name) for name in node.inputs))
        for node in graph.nodes
        if node.index not in gone
    )
    read = {name for node in nodes for name in node.inputs}
    # Matrices that were quantised before they were lifted are some inputs more.
    lost = {
        name
        for name in graph.inputs
        if name in graph.initializers
        and name not in read
        and any(user.index in gone for user in graph.consumers.get(name, ()))
    }
    consumers: dict[str, list[Node]] = {}
    for node in nodes:
        for name in node.inputs:
            if name:
                consumers.setdefault(name, []).append(node)
    return (
        replace(
            graph,
            nodes=nodes,
            inputs={name: port for name, port in graph.inputs.items() if name not in lost},
            initializers={n: t for n, t in graph.initializers.items() if n not in lost},
            consumers={name: tuple(users) for name, users in consumers.items()},
            producers={name: node for node in nodes for name in node.outputs if name},
        ),
        tuple(name for name in graph.inputs if name in lost),
    )


def _final(renamed: dict[str, str], name: str) -> str:
    while name in renamed:
        name = renamed[name]
    return name


def _lifted_branch(graph: Graph, up: Node, empty: set[str]) -> tuple[Node, str, set[int]] | None:
    """The Add of a branch that ends with `up`, the value it adds to, and the branch's nodes."""
    if not _reads(up, empty):
        return None
    gone = {up.index}
    down = graph.producers.get(up.input(0))
    if down is not None and down.op_type == "Mul":
        gone.add(down.index)
        down = _only_producer(graph, down.inputs)
    if down is None or not _reads(down, empty) or graph.uses(down.outputs[0]) != 1:
        return None
    gone.add(down.index)
    value = up.outputs[0]
    for _ in range(3):
        users = graph.consumers.get(value, ())
        if len(users) != 1 or value in graph.outputs:
            return None
        user = users[0]
        gone.add(user.index)
        if user.op_type == "Add" and user.outputs[0] not in graph.outputs:
            other = next((name for name in user.inputs if name != value), "")
            return (user, other, gone) if other in graph.producers else None
        if user.op_type not in ("Mul", "Cast"):
            return None
        value = user.outputs[0]
    return None


def _reads(node: Node, empty: set[str]) -> bool:
    places = _LINEAR.get((node.domain, node.op_type), ())
    return any(node.input(i) in empty for i in places)


def _only_producer(graph: Graph, names: Iterable[str]) -> Node | None:
    found = [graph.producers[name] for name in names if name in graph.producers]
    return next((node for node in found if node.op_type != "Constant"), None)
