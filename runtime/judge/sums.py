"""Whether the sums of integer products equal onnxruntime's, product by product.

Where a graph rounds activations to 8 bits itself (BitNet), a matrix product is a sum of integers:
levels -127..127 times weights. onnxruntime computes it in floating point, or with MatMulInteger.
Given onnxruntime's own rounded inputs, `semantics.dot` must give the same integers, all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from intaglio.dialects import rom
from intaglio.dialects.codes import Matrix, container_bits
from intaglio.dialects.errors import UserError
from intaglio.dialects.semantics import dot
from intaglio.lowering.onnx.graph.records import read_proto
from intaglio.lowering.onnx.importer import import_model
from intaglio.lowering.onnx.step import names_of
from intaglio.lowering.onnx.weights.sources import Matrix as MatrixSource
from intaglio.lowering.onnx.weights.sources import RowsSource, ScaledSource
from intaglio.runtime.judge.reference import Reference

if TYPE_CHECKING:
    import onnx

LEVELS = 127
_PRODUCTS = ("MatMul", "MatMulInteger", "FusedMatMul")


@dataclass(frozen=True)
class Sums:
    """One matrix product of the graph.

    Attributes:
        node: its ONNX node.
        compared: how many sums.
        different: how many of them are not the same integer.
        largest: the largest magnitude of a sum.
        distance: the largest distance of onnxruntime's value to an integer (0 for MatMulInteger).
    """

    node: str
    compared: int
    different: int
    largest: int
    distance: float


@dataclass(frozen=True)
class _Watched:
    node: str
    levels: str
    sums: str
    source: MatrixSource


def compare_sums(model: str | Path, tokens: Sequence[int]) -> list[Sums]:
    """Compares the sums of all products with activations that the graph rounds to int8.

    Args:
        model: the .onnx file.
        tokens: a prompt; onnxruntime runs it once.

    Returns:
        One entry for each product, in the order of the graph; empty when it has none.

    Raises:
        UserError: the model cannot be imported or run, or a matrix has several scales, or zero
            points that are no integers.
    """
    watched = _watched(Path(model), read_proto(Path(model)).graph)
    names = list(dict.fromkeys(n for one in watched for n in (one.levels, one.sums)))
    reference = Reference(model, float_activations=True, observed=names)
    _, values = reference.observe(list(tokens))
    return [_compared(one, values) for one in watched]


def _watched(model: Path, graph: onnx.GraphProto) -> list[_Watched]:
    imported = import_model(model, weights="int8:32")
    nodes = {node.name: node for node in graph.node}
    keys = {
        op.sym_name.data: op.key.data
        for op in imported.module.walk()
        if isinstance(op, rom.ParameterOp)
    }
    found: list[_Watched] = []
    for op in imported.module.walk():
        if not isinstance(op, rom.LinearOp) or op.activation is None:
            continue
        node = next((nodes[n] for n in names_of(op) if _is_product(nodes.get(n))), None)
        if node is None or any(one.node == node.name for one in found):
            continue
        source = imported.parameters[keys[op.weights.root_reference.data]]
        while isinstance(source, ScaledSource | RowsSource):
            # Scales that stand after the product in the graph, of parts that it is cut into.
            source = source.base
        assert isinstance(source, MatrixSource)
        found.append(_Watched(node.name, node.input[0], node.output[0], source))
    return found


def _is_product(node: onnx.NodeProto | None) -> bool:
    return node is not None and node.op_type in _PRODUCTS


def _compared(one: _Watched, values: dict[str, np.ndarray]) -> Sums:
    n, k = one.source.dims
    x = np.asarray(values[one.levels], np.float64).reshape(-1, k)
    y = np.asarray(values[one.sums], np.float64).reshape(-1, n)
    # The largest level of a token is 127 by construction, whether it is scaled back or not.
    peak = np.abs(x).max(axis=1, keepdims=True)
    unit = np.where(peak > 0, peak / LEVELS, 1.0)
    levels = np.rint(x / unit).astype(np.int64)
    scales = one.source.scales(0, n)
    if one.source.has_real_zeros:
        raise UserError("its matrix has zero points that are no integers", node=one.node)
    if one.source.groups != 1:
        raise UserError("its matrix has scales for groups of inputs", node=one.node)
    theirs = y / (unit * scales.reshape(1, n).astype(np.float64))
    ours = np.concatenate(
        [dot(levels, _plain(one.source, r0, min(n, r0 + 512)), "int8") for r0 in range(0, n, 512)],
        axis=-1,
    )
    rounded = np.rint(theirs)
    return Sums(
        node=one.node,
        compared=ours.size,
        different=int(np.count_nonzero(rounded != ours)),
        largest=int(np.abs(ours).max(initial=0)),
        distance=float(np.abs(theirs - rounded).max(initial=0.0)),
    )


def _plain(source: MatrixSource, r0: int, r1: int) -> Matrix:
    """Some rows with all scales 1, so that sums are those of the integers."""
    zeros = source.zeros(r0, r1)
    return Matrix(
        codes=np.ascontiguousarray(source.packed_rows(r0, r1)),
        bits=container_bits(source.bits),
        columns=source.dims[1],
        group=source.dims[1],
        zero=(source.zero or 0) if zeros is None else zeros,
        scales=np.ones((r1 - r0, 1), np.int16),
        exponent=0,
    )
