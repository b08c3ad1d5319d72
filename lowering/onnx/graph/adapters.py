"""LoRA branches of a graph: y = W x + (scale) B (A x).

With constant A and B they are adapters that the chip runs with the model. Where A and B are inputs
of the graph (Olive lifts them there, with empty matrices as defaults), they are places for adapters
to come, and are taken out.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from intaglio.lowering.onnx.graph.model import Graph, Node

MAX_RANK = 512

_LINEAR = {
    ("", "MatMul"): (1,),
    ("", "Gemm"): (1,),
    ("com.microsoft", "MatMulNBits"): (1, 2, 3, 4, 5),
    ("com.microsoft", "FusedMatMul"): (1,),
}
"""Linear operators and which inputs are their weights."""

_PASSED = ("DequantizeLinear", "Transpose", "Identity", "Cast")
"""Nodes that matrices of adapters may pass through."""

_KEPT = ("Identity", "Cast", "Reshape", "Dropout")
"""Nodes on activations that may stand anywhere in a branch."""


def find(graph: Graph) -> set[int]:
    """Indices of the nodes that multiply with A or B of an adapter.

    A branch is one when it reads what a parallel linear operator reads, its inner width is smaller
    than both sides, nothing else uses its inner value, and it is added to the parallel result.
    Constant scales may stand before A, between A and B, and behind B. Several A may be packed.
    """
    return _Branches(graph).found()


class _Branches:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.varying = {*graph.inputs}
        for node in graph.nodes:
            if not self.varying.isdisjoint(node.inputs):
                self.varying.update(node.outputs)

    def found(self) -> set[int]:
        found: set[int] = set()
        for down in self.graph.nodes:
            inner = self._weight_dims(down)
            if inner is None:
                continue
            ups = self._ups(down)
            sizes = [self._weight_dims(up) for up in ups]
            if not ups or sum(dims[1] for dims in sizes if dims is not None) != inner[0]:
                continue
            if all(
                dims is not None and dims[1] < min(dims[0], inner[1]) and dims[1] <= MAX_RANK
                for dims in sizes
            ) and all(self._joins_parallel(up, down) for up in ups):
                found |= {down.index, *(up.index for up in ups)}
        return found

    def _ups(self, down: Node) -> list[Node]:
        """The nodes that alone read what A gives: one, or one for each part of a packed A."""
        reader = self._only_reader(down.output(0))
        if reader is None or reader.op_type != "Split":
            return [] if reader is None else [reader]
        found = [self._only_reader(name) for name in reader.outputs]
        return [] if None in found else [up for up in found if up is not None]

    def _is_linear(self, node: Node) -> bool:
        """Whether a node multiplies an activation with constants."""
        places = _LINEAR.get((node.domain, node.op_type))
        return (
            places is not None
            and not node.attributes.get("transA")
            and node.input(0) in self.varying
            and self.varying.isdisjoint(node.input(i) for i in places)
        )

    def _weight_dims(self, node: Node) -> tuple[int, int] | None:
        """(rows N, columns K) of a linear node with stored weights, or None."""
        if not self._is_linear(node):
            return None
        if node.op_type == "MatMulNBits":
            rows, columns = node.attributes.get("N"), node.attributes.get("K")
            if not isinstance(rows, int) or not isinstance(columns, int):
                return None
            return rows, columns
        name, swap = node.input(1), bool(node.attributes.get("transB", 0))
        while name not in self.graph.initializers:
            producer = self.graph.producers.get(name)
            if producer is None or producer.op_type not in _PASSED:
                return None
            swap ^= producer.op_type == "Transpose"
            name = producer.input(0)
        dims = self.graph.initializers[name].dims
        if len(dims) != 2:
            return None
        k, n = dims[::-1] if swap else dims
        return n, k

    def _is_scaled(self, node: Node) -> bool:
        """Whether a node multiplies or divides one value by constants."""
        if node.op_type not in ("Mul", "Div") or (
            node.op_type == "Div" and node.input(1) in self.varying
        ):
            return False
        return sum(name in self.varying for name in node.inputs) == 1

    def _passes(self, node: Node) -> str | None:
        """The value that a node hands on, but for its shape, type and scale."""
        if node.op_type in _KEPT:
            return node.input(0)
        if self._is_scaled(node):
            return next(name for name in node.inputs if name in self.varying)
        return None

    def _origin(self, name: str) -> str:
        """Where a value comes from, through shapes, types and scales."""
        for _ in range(_LONGEST):
            node = self.graph.producers.get(name)
            before = None if node is None else self._passes(node)
            if before is None:
                break
            name = before
        return name

    def _only_reader(self, name: str) -> Node | None:
        """The node that alone reads a value, through shapes, types and scales."""
        for _ in range(_LONGEST):
            readers = self.graph.readers(name)
            if self.graph.uses(name) != 1 or not readers:
                return None
            if self._passes(readers[0]) != name:
                return readers[0]
            name = readers[0].output(0)
        return None

    def _joins_parallel(self, up: Node, down: Node) -> bool:
        graph, value = self.graph, up.output(0)
        for _ in range(_LONGEST):
            users = graph.readers(value)
            if len(users) != 1 or value in graph.outputs:
                return False
            user = users[0]
            if self._passes(user) == value:
                value = user.output(0)
                continue
            if user.op_type != "Add":
                return False
            other = next((i for i in user.inputs if i != value), "")
            base = self._base(graph.producers.get(other))
            return base is not None and self._reads_rounded(base.input(0), down.input(0))
        return False

    def _base(self, node: Node | None) -> Node | None:
        """The linear operator that a value comes from through its bias and scales."""
        for _ in range(_LONGEST):
            if node is None or self._is_base(node):
                return node
            if node.op_type not in ("Add", "Mul", "Div", "Split", *_KEPT):
                return None
            # Of two factors the product is the one that is no scale of a token.
            is_sole = node.op_type in (*_KEPT, "Split")
            names = node.inputs[:1] if is_sole else node.inputs
            inner = [self.graph.producers.get(name) for name in names if name in self.varying]
            node = next((n for n in inner if n is not None and self._is_base(n)), None) or next(
                (n for n in inner if n is not None), None
            )
        return None

    def _is_base(self, node: Node) -> bool:
        return self._is_linear(node) or node.op_type == "MatMulInteger"

    def _reads_rounded(self, name: str, activation: str) -> bool:
        """Whether two values are the same activation, the first one perhaps rounded to 8 bits."""
        origin = self._origin(activation)
        if self._origin(name) == origin:
            return True
        pending, seen = [(name, False)], set[tuple[str, bool]]()
        while pending and len(seen) < 24:
            one, rounded = pending.pop()
            if rounded and self._origin(one) == origin:
                return True
            node = self.graph.producers.get(one)
            if (one, rounded) in seen or node is None or node.op_type not in _ROUNDING:
                continue
            seen.add((one, rounded))
            rounded = rounded or node.op_type in ("Round", "DynamicQuantizeLinear")
            pending += [(source, rounded) for source in node.inputs]
        return False


_LONGEST = 8
"""Nodes between a matrix and the next one of a branch, or between a product and its sum."""

_ROUNDING = ("Div", "Mul", "Clip", "Round", "Cast", "DynamicQuantizeLinear", "Max", "Min")
"""Nodes between an activation and the levels it is rounded to by the graph (BitNet)."""


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
