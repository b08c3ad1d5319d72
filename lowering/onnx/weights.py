"""Weight encodings: from constants of the graph to matrices with a source, or a refusal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from intaglio.dialects.errors import UserError
from intaglio.dialects.rom import WEIGHT_CODES
from intaglio.lowering.onnx.model import Node, Tensor
from intaglio.lowering.onnx.sources import (
    DenseSource,
    DequantizedSource,
    RoundedSource,
    RowBlockSource,
    Source,
    floats,
)
from intaglio.lowering.onnx.values import Blocked, Quantised, Refusal, Stored, Unknown, Value
from intaglio.lowering.parameters import row_chunks

CODES = {bits: code for code, bits in WEIGHT_CODES.items() if code != "ternary"}

FLOAT_WEIGHTS_HINT = (
    "quantise them while importing: --weights int4:32 (or int2:128, ternary), or give a model with "
    "quantised weights"
)


@dataclass(frozen=True, eq=False)
class Parameter:
    """A tensor to declare.

    Attributes:
        source: who reads it.
        names: the initializers it is made of, codes first.
        identity: equal for parameters that are the same tensor in the same form.
    """

    source: Source
    names: tuple[str, ...]
    identity: tuple[Any, ...]


@dataclass(frozen=True)
class Rounding:
    """How floating-point weights are quantised on request; `group` 0 means whole rows."""

    code: str
    group: int

    def group_for(self, columns: int) -> int:
        """The group for a matrix of that many columns."""
        return self.group or columns


HEAD_ROUNDING = Rounding("int8", 32)
"""For a head that was left in floating point in a graph whose other matrices are quantised."""


def parse_rounding(text: str) -> Rounding:
    """Reads `int4:32`, `int2:128`, `int8:64`, `ternary` or `ternary:128`.

    Raises:
        UserError: something else.
    """
    code, _, group = text.partition(":")
    size = int(group) if group.isascii() and group.isdigit() else 0
    needs_group = code != "ternary"
    if code not in WEIGHT_CODES or (needs_group and size < 1) or (group and size < 1):
        raise UserError(
            f"--weights {text} is not understood",
            hint="write int4:GROUP, int2:GROUP, int8:GROUP, ternary or ternary:GROUP, "
            "for example int4:32",
        )
    return Rounding(code, size)


def _constant(value: Value | None, what: str) -> Stored:
    if isinstance(value, Unknown):
        raise Blocked
    if not isinstance(value, Stored):
        kind = "missing" if value is None else f"{value.kind}, not a constant of the model"
        raise Refusal(f"{what} must be a constant; here it is {kind}")
    return value


def _plain(value: Stored, what: str) -> Tensor:
    if value.transposed:
        raise Refusal(f"{what} is transposed")
    return value.tensor


def _float_tensor(value: Value | None, what: str) -> Tensor:
    stored = _constant(value, what)
    if not stored.is_float:
        raise Refusal(f"{what} has the element type {stored.tensor.dtype}, expected a float")
    return _plain(stored, what)


def _integral(tensor: Tensor, bits: int) -> None:
    values = tensor.stored().reshape(-1)
    top = (1 << bits) - 1
    for r0, r1 in row_chunks(values.size, 4):
        part = floats(tensor, values[r0:r1])
        good = (part >= 0) & (part <= top) & (part == np.rint(part))
        if not good.all():
            bad = float(part[np.argmin(good)])
            raise Refusal(
                f"zero points are floating point and not all integers from 0 to {top} "
                f"('{tensor.name}' has {bad:g})",
                "quantise with integer zero points (HQQ's fractional ones need more than integers)",
            )


def _row_blocks(
    codes: Stored,
    scales: Tensor,
    zeros: Value | None,
    dims: tuple[int, int],
    bits: int,
    block: int,
) -> Parameter:
    """A matrix in the MatMulNBits layout, all sizes checked."""
    n, k = dims
    if bits not in CODES:
        raise Refusal(f"bits = {bits} is not supported", "use 2, 4 or 8 bits")
    if block < 16 or block & (block - 1):
        raise Refusal(f"block_size = {block} must be a power of two, at least 16")
    blocks = -(-k // block)
    tensor = _plain(codes, "the weight matrix")
    if tensor.dtype != "UINT8":
        raise Refusal(f"the weight matrix has the element type {tensor.dtype}, expected UINT8")
    if tensor.size != n * blocks * (block * bits // 8):
        raise Refusal(
            f"the weight matrix has shape {list(tensor.dims)}, but N = {n}, K = {k}, block_size = "
            f"{block} and {bits} bits need {[n, blocks, block * bits // 8]}"
        )
    if scales.size != n * blocks:
        raise Refusal(
            f"the scales have shape {list(scales.dims)}, expected {[n, blocks]} (or flat)"
        )
    names = [tensor.name, scales.name]
    points: Tensor | None = None
    if zeros is not None:
        stored = _constant(zeros, "the zero points")
        points = _plain(stored, "the zero points")
        if points.dtype == "UINT8":
            wanted = [n, -(-blocks * bits // 8)]
        elif stored.is_float:
            wanted = [n, blocks]
            _integral(points, bits)
        else:
            raise Refusal(f"the zero points have the element type {points.dtype}")
        if points.size != wanted[0] * wanted[1]:
            raise Refusal(
                f"the zero points have shape {list(points.dims)}, expected {wanted} (or flat)"
            )
        names.append(points.name)
    source = RowBlockSource(
        dims=dims,
        code=CODES[bits],
        bits=bits,
        group=block,
        zero=1 << (bits - 1) if points is None else None,
        codes=tensor,
        scale_tensor=scales,
        zero_tensor=points,
    )
    return Parameter(source, tuple(names), ("blocks", *names, *dims, bits, block))


def matmul_nbits(node: Node, inputs: list[Value | None]) -> Parameter:
    """The weights [N, K] of com.microsoft.MatMulNBits.

    Raises:
        Refusal: an encoding that is not supported.
    """
    n, k = int(node.attributes.get("N", 0)), int(node.attributes.get("K", 0))
    bits = int(node.attributes.get("bits", 4))
    block = int(node.attributes.get("block_size", 0))
    if n < 1 or k < 1:
        raise Refusal("the attributes K and N are missing")
    g_idx = inputs[4]
    if g_idx is not None:
        tensor = _plain(_constant(g_idx, "g_idx"), "g_idx")
        index = tensor.array().reshape(-1)[:k]
        if index.size != k or not np.array_equal(index, np.arange(k) // max(1, block)):
            raise Refusal(
                "g_idx reorders the groups of the weights",
                "quantise without activation order (desc_act=False)",
            )
    codes = _constant(inputs[1], "the weight matrix")
    return _row_blocks(codes, _float_tensor(inputs[2], "scales"), inputs[3], (n, k), bits, block)


def gather_block_quantized(node: Node, inputs: list[Value | None]) -> Parameter:
    """The table [V, K] of com.microsoft.GatherBlockQuantized.

    Raises:
        Refusal: an encoding that is not supported.
    """
    if inputs[2] is None:
        raise Refusal(
            "the table has no scales",
            "the model builder writes this for tied and asymmetric weights; export with "
            "shared_embeddings=false or symmetric weights",
        )
    codes = _constant(inputs[0], "the table")
    scales = _float_tensor(inputs[2], "scales")
    block = int(node.attributes.get("block_size", 128))
    axis = int(node.attributes.get("quantize_axis", 1))
    if int(node.attributes.get("gather_axis", 0)) != 0:
        raise Refusal("gather_axis must be 0")
    if len(codes.dims) != 2 or axis not in (1, -1):
        raise Refusal("the table must be a matrix that is quantised along its rows")
    rows, columns = codes.dims
    if codes.tensor.dtype == "UINT8":
        bits = int(node.attributes.get("bits", 4))
        if bits not in CODES:
            raise Refusal(f"bits = {bits} is not supported", "use 2, 4 or 8 bits")
        return _row_blocks(codes, scales, inputs[3], (rows, columns * 8 // bits), bits, block)
    zeros = inputs[3]
    return matrix(
        Quantised(
            codes,
            _constant(inputs[2], "scales"),
            None if zeros is None else _constant(zeros, "the zero points"),
            axis=1,
            block=block,
            dims=codes.dims,
        ),
        row_axis=0,
    )


def matrix(value: Quantised, row_axis: int) -> Parameter:
    """Dequantised weights as a matrix whose outputs lie along `row_axis` of the value.

    Raises:
        Refusal: scales that do not follow groups along a row.
    """
    codes = _plain(value.codes, "the quantised tensor")
    if codes.bits not in CODES or codes.dtype not in (
        "INT8",
        "UINT8",
        "INT4",
        "UINT4",
        "INT2",
        "UINT2",
    ):
        raise Refusal(f"weights of the element type {codes.dtype} are not supported")
    if len(value.dims) != 2:
        raise Refusal(f"the weights have shape {list(value.dims)}, expected a matrix")
    stored = value.dims[::-1] if value.transposed else value.dims
    n_axis = row_axis ^ 1 if value.transposed else row_axis
    n, k = stored[n_axis], stored[1 - n_axis]
    axis = value.axis + 2 if value.axis < 0 else value.axis
    scales = _float_tensor(value.scales, "the scale")
    size = scales.size
    if size == 1:
        group = k
    elif len(value.scales.dims) == 1:
        group = k
        if axis != n_axis:
            raise Refusal(
                "there is one scale for each input of the matrix, not for each output",
                "quantise per output channel or in blocks along the inputs",
            )
        if size != n:
            raise Refusal(f"the scale has {size} elements, expected {n}")
    else:
        if axis != 1 - n_axis:
            raise Refusal(
                "the blocks lie along the outputs of the matrix, not along its inputs",
                "quantise in blocks along the inputs",
            )
        group = value.block or -(-k // max(1, value.scales.dims[axis]))
        blocks = -(-k // group)
        wanted = (blocks, n) if axis == 0 else (n, blocks)
        if tuple(value.scales.dims) != wanted:
            raise Refusal(f"the scale has shape {list(value.scales.dims)}, expected {list(wanted)}")
    names = [codes.name, scales.name]
    points: Tensor | None = None
    if value.zeros is not None:
        points = _plain(value.zeros, "the zero point")
        if points.dtype != codes.dtype:
            raise Refusal(f"the zero point has the element type {points.dtype}, not {codes.dtype}")
        if points.size != size:
            raise Refusal(f"the zero point has {points.size} elements, the scale {size}")
        names.append(points.name)
    signed = not codes.dtype.startswith("U")
    source = DequantizedSource(
        dims=(n, k),
        code=CODES[codes.bits],
        bits=codes.bits,
        group=group,
        zero=None if points is not None else (1 << (codes.bits - 1) if signed else 0),
        codes=codes,
        transposed=n_axis == 1,
        scale_tensor=scales,
        zero_tensor=points,
    )
    return Parameter(source, tuple(names), ("dequantised", *names, n, k, group, n_axis))


def rounded(value: Stored, row_axis: int, rounding: Rounding) -> Parameter:
    """Floating-point weights, quantised as they are read; outputs lie along `row_axis`.

    Raises:
        Refusal: no matrix of floats.
    """
    if not value.is_float:
        raise Refusal(f"weights of the element type {value.tensor.dtype} without scales")
    if len(value.dims) != 2 or min(value.dims) < 1:
        raise Refusal(f"the weights have shape {list(value.dims)}, expected a matrix")
    n, k = value.dims[row_axis], value.dims[1 - row_axis]
    n_axis = row_axis ^ 1 if value.transposed else row_axis
    bits = WEIGHT_CODES[rounding.code]
    group = rounding.group_for(k)
    source = RoundedSource(
        dims=(n, k),
        code=rounding.code,
        bits=bits,
        group=group,
        zero=1 if rounding.code == "ternary" else 1 << (bits - 1),
        tensor=value.tensor,
        transposed=n_axis == 1,
    )
    name = value.tensor.name
    return Parameter(source, (name,), ("rounded", name, n, k, n_axis, rounding.code, group))


def dense(value: Stored, what: str) -> Parameter:
    """A vector or table of floats.

    Raises:
        Refusal: not floating point.
    """
    if not value.is_float:
        raise Refusal(f"{what} has the element type {value.tensor.dtype}, expected a float")
    name = value.tensor.name
    source = DenseSource(value.dims, value.tensor, value.transposed)
    return Parameter(source, (name,), ("dense", name, *value.dims, value.transposed))
