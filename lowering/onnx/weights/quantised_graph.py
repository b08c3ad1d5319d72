"""The quantised graph that onnxruntime judges when weights were quantised on request.

`--weights` rounds floating-point matrices as they are engraved. To compare like with like, the same
codes and scales are written as an ONNX model: MatMul and Gemm become MatMulNBits, an embedding that
shares the head's matrix becomes GatherBlockQuantized. All else stays as it was. onnxruntime has no
3 and 6-bit matrices: their codes stand in 4 and 8 bits, around the same zero points.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import numpy.typing as npt

from intaglio.dialects.codes import container_bits
from intaglio.dialects.errors import UserError
from intaglio.lowering.onnx.graph.model import Array
from intaglio.lowering.onnx.graph.records import read_proto
from intaglio.lowering.onnx.weights.sources import RoundedSource
from intaglio.lowering.onnx.weights.weights import Parameter
from intaglio.lowering.parameters import row_chunks

if TYPE_CHECKING:
    import onnx

DATA_FILE = "quantised.data"
"""Name of the quantised weights, where it is free."""
BLOCKS = (16, 32, 64, 128, 256)
"""Block sizes of MatMulNBits."""


def write_quantised(
    model: Path, rounded: dict[str, Parameter], path: Path, data_file: Path
) -> None:
    """Writes the quantised graph beside copies of the model's own external data.

    Args:
        model: the graph that was imported.
        rounded: what was quantised, by the first output of its node.
        path: of the graph; its external data are expected beside it.
        data_file: of the quantised weights, beside it too.

    Raises:
        UserError: the groups are none that MatMulNBits knows.
    """
    import onnx

    proto = read_proto(model)
    graph = proto.graph
    path.parent.mkdir(parents=True, exist_ok=True)
    with data_file.open("wb") as data:
        written: dict[tuple[object, ...], tuple[str, str]] = {}
        nodes = {node.output[0]: node for node in graph.node}
        for output, parameter in rounded.items():
            node = nodes[output]
            source = parameter.source
            assert isinstance(source, RoundedSource)
            block = _block(source, str(model), node)
            if parameter.identity not in written:
                written[parameter.identity] = _write_matrix(graph, data, source, block)
            if node.op_type == "Gather":
                _table(str(model), graph, node, source, block, written[parameter.identity])
            else:
                _product(graph, node, source, block, *written[parameter.identity])
    _remove_dead(graph)
    # Exporters leave shapes of inner values that do not hold; onnxruntime plans buffers by them.
    del graph.value_info[:]
    used = {one for node in graph.node for one in node.input}
    used |= {output.name for output in graph.output}
    for tensor in [t for t in graph.initializer if t.name not in used]:
        graph.initializer.remove(tensor)
    if not any(opset.domain == "com.microsoft" for opset in proto.opset_import):
        proto.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    path.write_bytes(proto.SerializeToString())


def _remove_dead(graph: onnx.GraphProto) -> None:
    """Removes nodes that only prepared the matrices in floating point."""
    used = {output.name for output in graph.output}
    kept: list[onnx.NodeProto] = []
    for node in reversed(graph.node):
        inner = [a.g for a in node.attribute if a.HasField("g")]
        if inner or any(name in used for name in node.output if name):
            kept.append(node)
            used |= set(node.input)
            used |= {name for one in inner for sub in one.node for name in sub.input}
    del graph.node[:]
    graph.node.extend(reversed(kept))


def _block(source: RoundedSource, file: str, node: onnx.NodeProto) -> int:
    """The block size; a scale for a whole row takes one block that covers it."""
    if not source.group or source.group >= source.dims[1]:
        block = BLOCKS[0]
        while block < source.dims[1]:
            block *= 2
        return block
    if source.group in BLOCKS:
        return source.group
    raise UserError(
        f"groups of {source.group} cannot be written for onnxruntime",
        file=file,
        node=node.name,
        op_type=node.op_type,
        hint=f"groups of {', '.join(map(str, BLOCKS))} can",
    )


def _write_matrix(
    graph: onnx.GraphProto, data: BinaryIO, source: RoundedSource, block: int
) -> tuple[str, str]:
    import onnx

    n, k = source.dims
    bits = container_bits(source.bits)
    blocks = -(-k // block)
    row_bytes = blocks * block * bits // 8
    base = _base(source)

    def codes() -> Iterator[Array]:
        for first, last in row_chunks(n, row_bytes):
            rows = np.zeros((last - first, row_bytes), np.uint8)
            packed = source.packed_rows(first, last)
            rows[:, : packed.shape[1]] = packed
            yield rows

    def scales() -> Iterator[Array]:
        for first, last in row_chunks(n, 4 * blocks):
            yield source.scales(first, last).astype(real)

    # MatMulNBits wants scales of the activations' type, which is that of the matrix.
    real = np.float16 if source.constant.dtype == np.float16 else np.float32
    scale_type = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(real))
    parts = (
        (f"{base}.Q{bits}", onnx.TensorProto.UINT8, [n, blocks, block * bits // 8], codes()),
        (f"{base}.scales", scale_type, [n, blocks], scales()),
        (_zeros_name(source), onnx.TensorProto.UINT8, [n, -(-blocks * bits // 8)], None),
    )
    for name, data_type, dims, chunks in parts:
        if chunks is None:
            chunks = iter([_packed_zeros(source, dims, blocks, bits)])
        offset = data.tell()
        for chunk in chunks:
            data.write(np.ascontiguousarray(chunk).tobytes())
        tensor = graph.initializer.add(name=name, data_type=data_type, dims=dims)
        tensor.data_location = onnx.TensorProto.EXTERNAL
        entries = {
            "location": Path(data.name).name,
            "offset": offset,
            "length": data.tell() - offset,
        }
        for key, value in entries.items():
            tensor.external_data.add(key=key, value=str(value))
    return f"{base}.Q{bits}", f"{base}.scales"


def _packed_zeros(
    source: RoundedSource, dims: list[int], blocks: int, bits: int
) -> npt.NDArray[np.uint8]:
    byte = 0
    for i in range(8 // bits):
        byte |= (source.zero or 0) << (i * bits)
    return np.full(dims, byte, np.uint8)


def _base(source: RoundedSource) -> str:
    """Names of what is written begin so; one tensor may be rounded in several ways."""
    return f"intaglio.{source.name}.{source.code}.{source.group}"


def _zeros_name(source: RoundedSource) -> str:
    return f"{_base(source)}.zeros"


def _table(
    file: str,
    graph: onnx.GraphProto,
    node: onnx.NodeProto,
    source: RoundedSource,
    block: int,
    written: tuple[str, str],
) -> None:
    """Gather on the head's matrix: the same codes without the axis of blocks."""
    import onnx

    n, k = source.dims
    if k % block:
        raise UserError(
            f"rows of {k} are no whole number of blocks of {block}",
            file=file,
            node=node.name,
            op_type=node.op_type,
            hint="choose a group that divides the hidden size",
        )
    codes, scales = written
    bits = container_bits(source.bits)
    (matrix,) = (tensor for tensor in graph.initializer if tensor.name == codes)
    table = graph.initializer.add()
    table.CopyFrom(matrix)
    table.name = f"{codes}.table"
    table.dims[:] = [n, k * bits // 8]
    node.CopyFrom(
        onnx.helper.make_node(
            "GatherBlockQuantized",
            [table.name, node.input[1], scales, _zeros_name(source)],
            list(node.output),
            name=node.name,
            domain="com.microsoft",
            bits=bits,
            block_size=block,
            gather_axis=0,
            quantize_axis=1,
        )
    )


def _product(
    graph: onnx.GraphProto,
    node: onnx.NodeProto,
    source: RoundedSource,
    block: int,
    codes: str,
    scales: str,
) -> None:
    import onnx

    n, k = source.dims
    alpha = next((a.f for a in node.attribute if a.name == "alpha"), 1.0)
    bias = list(node.input[2:3]) if node.op_type == "Gemm" else []
    inputs = [node.input[0], codes, scales, _zeros_name(source), *(["", *bias] if bias else [])]
    node.CopyFrom(
        onnx.helper.make_node(
            "MatMulNBits",
            inputs,
            list(node.output),
            name=node.name,
            domain="com.microsoft",
            K=k,
            N=n,
            bits=container_bits(source.bits),
            block_size=block,
            accuracy_level=4,
        )
    )
    if alpha != 1.0:
        _scale(graph, node, source, alpha)


def _scale(
    graph: onnx.GraphProto, node: onnx.NodeProto, source: RoundedSource, alpha: float
) -> None:
    """MatMulNBits has no factor: it becomes a node of its own behind it."""
    import onnx

    output = node.output[0]
    node.output[0] = f"intaglio.{output}.product"
    factor = f"intaglio.{output}.alpha"
    real = np.float16 if source.constant.dtype == np.float16 else np.float32
    graph.initializer.append(onnx.numpy_helper.from_array(np.array(alpha, real), factor))
    place = next(i for i, one in enumerate(graph.node) if one is node or one == node)
    graph.node.insert(place + 1, onnx.helper.make_node("Mul", [node.output[0], factor], [output]))
