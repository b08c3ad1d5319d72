"""What the graph as a whole says: which nodes count, which matrix is the head, what is shared."""

from __future__ import annotations

from intaglio.lowering.onnx.graph.model import Graph, Node

PRODUCTS = ("MatMul", "Gemm", "FusedMatMul")
"""Operators whose second input may be a matrix of floats."""

_AFTER_HEAD = frozenset(
    {
        *("Add", "Cast", "Div", "Gather", "Identity", "Mul"),
        *("Reshape", "Slice", "Squeeze", "Tanh", "Unsqueeze"),
    }
)


def live_nodes(graph: Graph) -> set[int]:
    """Indices of the nodes that an output depends on."""
    live: set[int] = set()
    todo = [graph.producers[name] for name in graph.outputs if name in graph.producers]
    while todo:
        node = todo.pop()
        if node.index not in live:
            live.add(node.index)
            todo += [graph.producers[name] for name in node.inputs if name in graph.producers]
    return live


def float_heads(graph: Graph) -> frozenset[int]:
    """Indices of the products that give the logits.

    Quantisers often leave the head in floating point; whole models in floating point are another
    matter (`Step.has_integers`).
    """
    heads: set[int] = set()
    named = [name for name in graph.outputs if name.startswith("logits")]
    pending = named or [*graph.outputs]
    while pending:
        node = graph.producers.get(pending.pop())
        if node is None:
            continue
        if node.op_type in PRODUCTS:
            heads.add(node.index)
        elif node.op_type in _AFTER_HEAD:
            pending += [name for name in node.inputs if name]
    return frozenset(heads)


def tied_tables(graph: Graph) -> dict[str, Node]:
    """Initializers that are a product's second input, as they are or transposed, with the node."""

    def stored(name: str) -> str:
        while name not in graph.initializers:
            producer = graph.producers.get(name)
            if producer is None or producer.op_type not in ("Transpose", "Identity", "Cast"):
                return ""
            name = producer.input(0)
        return name

    found = {stored(node.input(1)): node for node in graph.nodes if node.op_type in PRODUCTS}
    found.pop("", None)
    return found
