"""The graph by which onnxruntime judges adapters: the base with A and B as inputs beside its sites.

Merging an adapter into quantised weights would quantise them again, so each site gets the branch
``y + B (A x)`` as MatMul, MatMul and Add beside its matrix. A [K, r] and B [r, N] are inputs of the
graph, named `SITE.lora_A` and `SITE.lora_B`, with defaults of rank 0: without an adapter the graph
computes what the base does. A site that is a part of the rows of a matrix has its B padded with
zeros to all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from intaglio.dialects import rom
from intaglio.dialects.errors import UserError
from intaglio.lowering.onnx.graph.model import Graph, Node
from intaglio.lowering.onnx.graph.model_file import load
from intaglio.lowering.onnx.graph.records import read_proto

if TYPE_CHECKING:
    import onnx
    from xdsl.dialects.builtin import ModuleOp

GRAPH_FILE = "adapters.onnx"
"""Name of the graph beside the model, where it is free."""

_LINEAR = frozenset(
    {
        "MatMul",
        "MatMulNBits",
        "MatMulInteger",
        "MatMulIntegerToFloat",
        "DynamicQuantizeMatMul",
        "FusedMatMul",
        "Gemm",
    }
)
_THROUGH = frozenset({"Transpose", "Identity", "Cast", "Reshape", "DequantizeLinear"})
"""Nodes between a matrix product and the constant that has the type of its result."""
_LONGEST = 6
"""Nodes from a product to its result, some of which (casts) belong to nothing on the chip."""


@dataclass(frozen=True)
class GraphSite:
    """A place for an adapter.

    Attributes:
        name: `layers.0.q_proj`.
        first_row: of the rows of the matrix that the site stands for.
        rows: N, how many they are.
        columns: K.
        matrix_rows: of the whole matrix.
        nodes: names of the ONNX nodes of the product.
    """

    name: str
    first_row: int
    rows: int
    columns: int
    matrix_rows: int
    nodes: Sequence[str]


def graph_sites(module: ModuleOp) -> list[GraphSite]:
    """The sites that a module declares (`rom.site`)."""
    found: list[GraphSite] = []
    for op in module.ops:
        if not isinstance(op, rom.SiteOp):
            continue
        matrix = rom.resolved_type(op, op.matrix, rom.ROMTensorType)
        first, last = op.first_row.value.data, op.last_row.value.data
        found.append(
            GraphSite(
                name=op.site.data,
                first_row=first,
                rows=last - first,
                columns=matrix.dims[1],
                matrix_rows=matrix.dims[0],
                nodes=tuple(name for names in rom.node_names(op.onnx) for name in names),
            )
        )
    return found


def input_names(site: str) -> tuple[str, str]:
    """Names of the graph's inputs for A and B of a site."""
    return f"{site}.lora_A", f"{site}.lora_B"


def write_adapter_graph(model: Path, sites: Iterable[GraphSite], path: Path) -> Path:
    """Writes the graph into the model's folder, with whose external data it shares the weights.

    Args:
        model: the base, as the judge runs it.
        sites: of the chip.
        path: of the file to write.

    Raises:
        UserError: a site's nodes are not in the graph.
    """

    graph = load(model, allow_links=True)
    proto = read_proto(model)
    _Writer(graph, proto).add(sites)
    path.write_bytes(proto.SerializeToString(deterministic=True))
    return path


class _Writer:
    def __init__(self, graph: Graph, proto: onnx.ModelProto) -> None:
        self.graph = graph
        self.proto = proto
        self.by_name = {node.name: node for node in graph.nodes}
        # Nodes without a name have one in `Graph` only; what they write identifies them.
        self.by_output = {name: node for node in proto.graph.node for name in node.output}

    def add(self, sites: Iterable[GraphSite]) -> None:
        for site in sites:
            nodes = [self.by_name[name] for name in site.nodes if name in self.by_name]
            linear = next((n for n in reversed(nodes) if n.op_type in _LINEAR), None)
            if linear is None or linear.outputs[0] not in self.by_output:
                raise UserError(
                    f"the site {site.name} has no product in the graph to stand beside",
                    file=str(self.graph.path),
                    node=site.nodes[-1] if site.nodes else None,
                )
            inside = {node.index for node in nodes}
            self._branch(site, self._read(linear, inside), self._written(linear, inside), linear)
        self._sort()

    def _read(self, linear: Node, inside: set[int]) -> str:
        """The activation that the site reads, before the product's own quantisation."""
        pending, seen = [linear.input(0)], set[str]()
        while pending:
            name = pending.pop(0)
            if name in seen or not name or self._is_constant(name):
                continue
            seen.add(name)
            if not self._is_inside(name, inside):
                return name
            pending += self.graph.producers[name].inputs
        return linear.input(0)

    def _is_inside(self, name: str, inside: set[int]) -> bool:
        """Whether a value is computed by some nodes, apart from casts behind them."""
        node = self.graph.producers.get(name)
        while node is not None and node.index not in inside and node.op_type == "Cast":
            node = self.graph.producers.get(node.input(0))
        return node is not None and node.index in inside

    def _is_constant(self, name: str) -> bool:
        node = self.graph.producers.get(name)
        return name in self.graph.initializers or (node is not None and node.op_type == "Constant")

    def _written(self, linear: Node, inside: set[int]) -> str:
        """The result of the product with its scale and bias: the last of the site's nodes."""
        name = found = linear.outputs[0]
        for _ in range(_LONGEST):
            users = self.graph.readers(name)
            if len(users) != 1 or name in self.graph.outputs:
                break
            name = self._own_output(users[0], inside)
            if users[0].index in inside:
                found = name
        return found

    def _own_output(self, node: Node, inside: set[int]) -> str:
        """The output that a site's later nodes read: a part of a packed product that is cut."""
        for name in node.outputs:
            if any(user.index in inside for user in self.graph.consumers.get(name, ())):
                return name
        return node.outputs[0]

    def _element_type(self, linear: Node) -> int:
        """The element type of the product's result."""
        import onnx

        name = linear.input(2 if linear.op_type == "MatMulNBits" else 1)
        while name not in self.graph.initializers:
            node = self.graph.producers.get(name)
            if node is None or node.op_type not in _THROUGH:
                return onnx.TensorProto.FLOAT
            if node.op_type == "Cast":
                return node.integer("to")
            name = node.input(1 if node.op_type == "DequantizeLinear" else 0)
        dtype = self.graph.initializers[name].dtype
        is_float = dtype in ("FLOAT16", "BFLOAT16", "DOUBLE")
        return onnx.TensorProto.DataType.Value(dtype if is_float else "FLOAT")

    def _branch(self, site: GraphSite, x: str, y: str, linear: Node) -> None:
        import numpy as np
        import onnx
        from onnx import helper, numpy_helper

        graph, prefix = self.proto.graph, site.name
        element = self._element_type(linear)
        a, b = input_names(site.name)
        rank = f"{site.name}.rank"
        for name, dims, empty in (
            (a, (site.columns, rank), (site.columns, 0)),
            (b, (rank, site.rows), (0, site.rows)),
        ):
            graph.input.append(
                helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, list(dims))
            )
            graph.initializer.append(numpy_helper.from_array(np.zeros(empty, np.float32), name))
        nodes: list[onnx.NodeProto] = []

        def emit(op_type: str, inputs: list[str], name: str, to: int | None = None) -> str:
            output = f"{prefix}.{name}"
            # `to` of a Cast; what is None is left out.
            nodes.append(
                helper.make_node(op_type, inputs, [output], name=f"{prefix}.lora/{name}", to=to)
            )
            return output

        is_wide = element == onnx.TensorProto.FLOAT
        source = x if is_wide else emit("Cast", [x], "x", to=onnx.TensorProto.FLOAT)
        whole = b
        if site.rows != site.matrix_rows:
            pads = np.array(
                [0, site.first_row, 0, site.matrix_rows - site.first_row - site.rows], np.int64
            )
            graph.initializer.append(numpy_helper.from_array(pads, f"{prefix}.pads"))
            whole = emit("Pad", [b, f"{prefix}.pads"], "B")
        inner = emit("MatMul", [source, a], "Ax")
        delta = emit("MatMul", [inner, whole], "BAx")
        if not is_wide:
            delta = emit("Cast", [delta], "narrow", to=element)
        # The sum takes over the name, so that whoever reads it need not change.
        base = f"{prefix}.base"
        producer = self.by_output.get(y)
        if producer is None:
            raise UserError(f"nothing computes '{y}'", file=str(self.graph.path))
        producer.output[list(producer.output).index(y)] = base
        added = helper.make_node("Add", [base, delta], [y], name=f"{prefix}.lora/Add")
        graph.node.extend([*nodes, added])
        # The next site of the same matrix adds to this sum. (`extend` copies.)
        self.by_output[y] = graph.node[-1]

    def _sort(self) -> None:
        """Puts nodes behind what they read, otherwise in the order they have."""
        graph = self.proto.graph
        writers = {name: i for i, node in enumerate(graph.node) for name in node.output if name}
        order: list[int] = []
        state = [0] * len(graph.node)
        for start in range(len(graph.node)):
            stack = [start]
            while stack:
                i = stack[-1]
                if state[i] == 2:
                    stack.pop()
                    continue
                needed = [
                    writers[name]
                    for name in graph.node[i].input
                    if name in writers and not state[writers[name]]
                ]
                if state[i] == 0 and needed:
                    state[i] = 1
                    stack.extend(reversed(needed))
                    continue
                state[i] = 2
                order.append(i)
                stack.pop()
        nodes = [graph.node[i] for i in order]
        copies = [type(node).FromString(node.SerializeToString()) for node in nodes]
        del graph.node[:]
        graph.node.extend(copies)
