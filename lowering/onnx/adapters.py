"""Finds LoRA branches: y = W x + (scale) B (A x), with constant A and B."""

from __future__ import annotations

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
        producer = graph.producers[name]
        if not producer.inputs:
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
        base = graph.producers.get(other)
        if base is not None and base.op_type == "Add":
            # The base may carry its bias.
            base = next(
                (
                    graph.producers[i]
                    for i in base.inputs
                    if i in graph.producers and not _is_constant(graph, i)
                ),
                None,
            )
        return (
            base is not None
            and _weight_dims(graph, base) is not None
            and base.input(0) == down.input(0)
        )
    return False
