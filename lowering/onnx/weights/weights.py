"""Weight encodings: from constants of the graph to matrices with a source, or a refusal."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from intaglio.dialects.rom import WEIGHT_CODES
from intaglio.lowering.onnx.graph.model import Node, Tensor
from intaglio.lowering.onnx.known.constants import Constant, Selected, Taken, permuted
from intaglio.lowering.onnx.known.lazy import constant_of
from intaglio.lowering.onnx.values import (
    Blocked,
    Computed,
    Known,
    Quantised,
    Refusal,
    Stored,
    Unknown,
    Value,
    numbers,
)
from intaglio.lowering.onnx.weights import ternary
from intaglio.lowering.onnx.weights.rounding import Rounding
from intaglio.lowering.onnx.weights.sources import (
    ChosenRowsSource,
    DenseSource,
    DequantizedSource,
    Matrix,
    RoundedSource,
    RowBlockSource,
    RowScaleSource,
    RowsSource,
    ScaledSource,
    Source,
    floats,
)
from intaglio.lowering.parameters import row_chunks

CODES = {2: "int2", 4: "int4", 8: "int8"}
"""Codes of the widths in which ONNX stores weights."""

FLOAT_WEIGHTS_HINT = (
    "quantise them while importing: --weights int4:32 (or int2:128, ternary), or give a model with "
    "quantised weights"
)
"""What helps where no target says which codes there are."""

FloatWeightsHint = Callable[[Collection[int]], str]
"""What would help where matrices of floats are refused, by the columns that these have."""


def no_target_hint(columns: Collection[int]) -> str:
    """What helps where no target says which codes there are, whatever the matrices' columns."""
    return FLOAT_WEIGHTS_HINT


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
    identity: tuple[object, ...]


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


def _are_codes(tensor: Tensor, bits: int) -> bool:
    """Whether floating point zero points are all codes.

    Raises:
        Refusal: one of them is not finite.
    """
    values = tensor.stored().reshape(-1)
    found = True
    for r0, r1 in row_chunks(values.size, 4):
        part = floats(tensor, values[r0:r1])
        finite = np.isfinite(part)
        if not finite.all():
            bad = float(part[np.argmin(finite)])
            raise Refusal(f"a zero point is not finite ('{tensor.name}' has {bad:g})")
        found = found and bool(((part >= 0) & (part < 1 << bits) & (part == np.rint(part))).all())
    return found


def _is_shaped(dims: tuple[int, ...], *wanted: int) -> bool:
    """Whether a tensor is stored in a shape, flat, or with all axes but the first merged."""
    rest = math.prod(wanted[1:])
    return dims in (wanted, (wanted[0], rest), (wanted[0] * rest,))


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
    if not _is_shaped(codes.dims, n, blocks, block * bits // 8):
        raise Refusal(
            f"the weight matrix has shape {list(codes.dims)}, but N = {n}, K = {k}, block_size = "
            f"{block} and {bits} bits need {[n, blocks, block * bits // 8]}"
        )
    if not _is_shaped(scales.dims, n, blocks):
        raise Refusal(
            f"the scales have shape {list(scales.dims)}, expected {[n, blocks]} (or flat)"
        )
    names = [tensor.name, scales.name]
    points: Tensor | None = None
    # Codes count from it in ROM where zero points are none.
    zero: int | None = 1 << (bits - 1)
    if zeros is not None:
        stored = _constant(zeros, "the zero points")
        points = _plain(stored, "the zero points")
        if points.dtype == "UINT8":
            wanted = [n, -(-blocks * bits // 8)]
            zero = None
        elif stored.is_float:
            wanted = [n, blocks]
            zero = None if _are_codes(points, bits) else zero
        else:
            raise Refusal(f"the zero points have the element type {points.dtype}")
        if not _is_shaped(points.dims, *wanted):
            raise Refusal(
                f"the zero points have shape {list(points.dims)}, expected {wanted} (or flat)"
            )
        names.append(points.name)
    found = _Packed(dims, bits, block, zero, tensor, scales, points)
    identity = ("blocks", *names, *dims, bits, block)
    return recognised(Parameter(found.read_by(RowBlockSource), tuple(names), identity))


class _Packed(NamedTuple):
    """Unsigned codes packed in bytes, with scales and zero points beside them."""

    dims: tuple[int, int]
    bits: int
    group: int
    zero: int | None
    codes: Tensor
    scales: Tensor
    points: Tensor | None

    def read_by(self, kind: type[RowBlockSource]) -> RowBlockSource:
        """The source that knows how scales and zero points lie."""
        return kind(
            dims=self.dims,
            code=CODES[self.bits],
            bits=self.bits,
            group=self.group,
            zero=self.zero,
            codes=self.codes,
            scale_tensor=self.scales,
            zero_tensor=self.points,
        )


def recognised(parameter: Parameter) -> Parameter:
    """The same matrix, as ternary where its weights are -1, 0 and 1 times a scale."""
    source = parameter.source
    assert isinstance(source, Matrix)
    if source.has_real_zeros:
        return parameter
    found = ternary.of_codes(source)
    if found is None:
        return parameter
    return Parameter(found, parameter.names, ("ternary", *parameter.identity))


def scaled(parameter: Parameter, factor: npt.NDArray[np.float64]) -> Parameter:
    """A matrix times a number, or times one number for each of its rows [N]."""
    source = parameter.source
    assert isinstance(source, Matrix)
    if factor.size and bool((factor == factor.reshape(-1)[0]).all()):
        factor = factor.reshape(-1)[0].reshape(())
    group = source.group or (source.dims[1] if factor.ndim else 0)
    result = ScaledSource(source.dims, source.code, source.bits, group, source.zero, source, factor)
    identity = (*parameter.identity, "scaled", factor.tobytes())
    return Parameter(result, parameter.names, identity)


def rows(parameter: Parameter, first: int, count: int) -> Parameter:
    """Some rows of a matrix, or of a table of floats."""
    source = parameter.source
    identity = (*parameter.identity, "rows", first, count)
    if isinstance(source, DenseSource):
        part = Taken(source.constant, 0, first, 1, count)
        return Parameter(DenseSource(part), parameter.names, identity)
    dims = (count, source.dims[1])
    part = RowsSource(dims, source.code, source.bits, source.group, source.zero, source, first)
    return Parameter(part, parameter.names, identity)


def chosen_rows(parameter: Parameter, index: npt.NDArray[np.int64]) -> Parameter:
    """Rows of a matrix in any order, or elements of a vector of floats."""
    source = parameter.source
    identity = (*parameter.identity, "chosen", index.tobytes())
    if isinstance(source, DenseSource):
        part = Selected(source.constant, index, 0)
        return Parameter(DenseSource(part), parameter.names, identity)
    ends = np.flatnonzero(np.diff(index) != 1) + 1
    starts = [0, *ends.tolist()]
    runs = tuple(
        (int(index[a]), int(index[b - 1]) + 1)
        for a, b in zip(starts, [*starts[1:], index.size], strict=True)
    )
    dims = (index.size, source.dims[1])
    found = ChosenRowsSource(
        dims, source.code, source.bits, source.group, source.zero, source, runs
    )
    return Parameter(found, parameter.names, identity)


def matmul_nbits(node: Node, inputs: list[Value | None]) -> Parameter:
    """The weights [N, K] of com.microsoft.MatMulNBits.

    Raises:
        Refusal: an encoding that is not supported.
    """
    n, k = node.integer("N"), node.integer("K")
    bits = node.integer("bits", 4)
    block = node.integer("block_size")
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
    codes = _constant(inputs[0], "the table")
    scales = _float_tensor(inputs[2], "scales")
    block = node.integer("block_size", 128)
    axis = node.integer("quantize_axis", 1)
    if node.integer("gather_axis") != 0:
        raise Refusal("gather_axis must be 0")
    if len(codes.dims) != 2 or axis not in (1, -1):
        raise Refusal("the table must be a matrix that is quantised along its rows")
    rows, columns = codes.dims
    zeros = inputs[3]
    if isinstance(zeros, Stored) and zeros.is_float:
        raise Refusal(
            f"the zero points have the element type {zeros.tensor.dtype}; the operator takes those "
            f"of its codes' type, {codes.tensor.dtype}",
            "quantise the table with integer zero points",
        )
    if codes.tensor.dtype == "UINT8":
        bits = node.integer("bits", 4)
        if bits not in CODES:
            raise Refusal(f"bits = {bits} is not supported", "use 2, 4 or 8 bits")
        return _row_blocks(codes, scales, zeros, (rows, columns * 8 // bits), bits, block)
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


def expert_matrices(
    codes: Value | None, scales: Value | None, zeros: Value | None, bits: int, block: int
) -> Parameter:
    """The weights of com.microsoft.QMoE, [E, R, K], as one matrix [E * R, K].

    Args:
        codes: uint8 [E, R, K * bits / 8].
        scales: [E, R, K / block], or [E, R] without blocks.
        zeros: uint8, packed along the blocks, or without blocks along the rows; None: the middle.
        bits: of a code.
        block: columns under one scale; 0: all.

    Raises:
        Refusal: an encoding that is not supported.
    """
    stored = _constant(codes, "the experts' matrices")
    if len(stored.dims) != 3:
        raise Refusal(f"the experts' matrices have shape {list(stored.dims)}, expected 3 axes")
    experts, rows, packed = stored.dims
    columns = packed * 8 // bits
    if block and columns % block:
        raise Refusal(f"block_size = {block} does not divide rows of {columns}")
    dims, found = (experts * rows, columns), _float_tensor(scales, "scales")
    if block:
        flat = Stored(stored.tensor, (dims[0], packed))
        points = zeros
        if isinstance(zeros, Stored):
            points = _shaped(zeros, dims[0], -(-columns // block * bits // 8), "zero points")
        scaled = _shaped(Stored(found, found.dims), dims[0], columns // block, "scales")
        return _row_blocks(flat, scaled.tensor, points, dims, bits, block)
    tensor = _plain(stored, "the experts' matrices")
    if tensor.dtype != "UINT8" or found.size != dims[0]:
        raise Refusal(
            f"the experts' matrices are {tensor.dtype} with {found.size} scales, expected UINT8 "
            f"with {dims[0]}"
        )
    names, zero = [tensor.name, found.name], None if zeros is not None else 1 << (bits - 1)
    points = None
    if zeros is not None:
        points = _plain(_constant(zeros, "the zero points"), "the zero points")
        if rows * bits % 8 or points.dtype != "UINT8" or points.size != dims[0] * bits // 8:
            raise Refusal(
                f"the zero points of {rows} rows are {points.size} of {points.dtype}, expected "
                f"bytes with {bits} bits a row"
            )
        names.append(points.name)
    source = _Packed(dims, bits, columns, zero, tensor, found, points).read_by(RowScaleSource)
    return recognised(Parameter(source, tuple(names), ("row scales", *names, *dims, bits)))


def _shaped(value: Stored, rows: int, columns: int, what: str) -> Stored:
    """The same tensor, flat along all axes but the last."""
    if value.tensor.size != rows * columns:
        raise Refusal(
            f"the {what} have shape {list(value.dims)}, expected {rows} rows of {columns}"
        )
    return Stored(replace(value.tensor, dims=(rows, columns)), (rows, columns))


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
        group = 0
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
    names = [codes.name, *([scales.name] if scales.name else [])]
    points: Tensor | None = None
    signed = not codes.dtype.startswith("U")
    zero: int | None = 1 << (codes.bits - 1) if signed else 0
    if value.zeros is not None:
        points = _plain(value.zeros, "the zero point")
        if points.dtype != codes.dtype:
            raise Refusal(f"the zero point has the element type {points.dtype}, not {codes.dtype}")
        if points.size not in (size, 1, n if group in (0, k) else 1):
            raise Refusal(f"the zero point has {points.size} elements, the scale {size}")
        found_dims = value.zeros.dims
        if points.size > 1 and found_dims not in (
            value.scales.dims,
            (points.size,),
            (1, points.size),
        ):
            raise Refusal(
                f"the zero point has shape {list(found_dims)}, the scale {list(value.scales.dims)}"
            )
        names.append(points.name)
        found = points.array().reshape(-1)
        if (found == found[0]).all():
            # Codes and zero points of signed types are shifted to unsigned ones alike.
            zero, points = int(found[0]) + zero, None
        else:
            zero, group = None, group or k
    source = DequantizedSource(
        dims=(n, k),
        code=CODES[codes.bits],
        bits=codes.bits,
        group=group,
        zero=zero,
        codes=codes,
        transposed=n_axis == 1,
        scale_tensor=scales,
        zero_tensor=points,
    )
    identity = ("dequantised", *names, n, k, group, n_axis)
    return recognised(Parameter(source, tuple(names), identity))


def integers(codes: Value | None, zeros: Value | None, row_axis: int) -> Parameter:
    """Integer weights without a scale, such as those of MatMulInteger: the scale is 1.

    Raises:
        Refusal: no constants, or zero points that do not follow the outputs.
    """
    if isinstance(codes, Computed | Known):
        if zeros is not None and np.any(numbers(zeros)):
            raise Refusal("computed integer weights have a zero point")
        found = ternary_values(codes, row_axis)
        if found is None:
            raise Refusal("its integer weights are computed in the graph and are not ternary")
        return found
    stored = _constant(codes, "the weight matrix")
    one = np.ones(1, np.float32)
    scale = Stored(Tensor("", "FLOAT", (), lambda: one.view(np.uint8)), ())
    points = None if zeros is None else _constant(zeros, "the zero point of the weights")
    plain = Stored(stored.tensor, stored.dims[::-1] if stored.transposed else stored.dims)
    value = Quantised(plain, scale, points, row_axis, 0, stored.dims, stored.transposed)
    return matrix(value, row_axis)


def of_adapter(parameter: Parameter) -> Parameter:
    """The same matrix with a scale for each row where it has one for all: an adapter's form.

    Raises:
        Refusal: zero points that are no codes, which the SRAM of adapters has no place for.
    """
    source = parameter.source
    if isinstance(source, Matrix) and source.has_real_zeros:
        raise Refusal(
            "the zero points of an adapter's matrix are not all integers in the range of its codes",
            "quantise the adapter with integer zero points, or leave it in floating point",
        )
    if not isinstance(source, Matrix) or source.group:
        return parameter
    one = np.ones((), np.float64)
    columns = source.dims[1]
    whole = ScaledSource(source.dims, source.code, source.bits, columns, source.zero, source, one)
    return Parameter(whole, parameter.names, (*parameter.identity, "whole rows"))


def _oriented(value: Value, row_axis: int) -> Constant | None:
    """A constant matrix with its outputs along the first axis."""
    constant = constant_of(value)
    if constant is None or len(constant.dims) != 2 or min(constant.dims) < 1:
        return None
    return permuted(constant, (1, 0)) if row_axis else constant


def ternary_values(value: Stored | Computed | Known, row_axis: int) -> Parameter | None:
    """Weights that are ternary numbers in floating point, or None."""
    constant = _oriented(value, row_axis)
    found = None if constant is None else ternary.of_values(constant)
    if found is None:
        return None
    name = name_of(value)
    return Parameter(found, (name,), ("ternary", name, *found.dims, _stored_axis(value, row_axis)))


def _stored_axis(value: Value, row_axis: int) -> int:
    """The axis of the outputs in the file: the same for a tensor and its transposition."""
    return row_axis ^ 1 if isinstance(value, Stored) and value.transposed else row_axis


def name_of(value: Stored | Computed | Known) -> str:
    """The name of the initializer, or of what computes the constant."""
    match value:
        case Stored():
            return value.tensor.name
        case Computed():
            return value.name
        case Known():
            return "constant"


def rounded(value: Stored | Computed, row_axis: int, rounding: Rounding) -> Parameter:
    """Floating-point weights, quantised as they are read; outputs lie along `row_axis`.

    Raises:
        Refusal: no matrix of floats.
    """
    if not value.is_float:
        raise Refusal(f"weights of the element type {type_of(value)} without scales")
    constant = _oriented(value, row_axis)
    if constant is None:
        raise Refusal(f"the weights have shape {list(value.dims)}, expected a matrix")
    n, k = constant.dims
    bits = WEIGHT_CODES[rounding.code]
    group = rounding.group_for(k)
    zero = 1 if rounding.code == "ternary" else 1 << (bits - 1)
    name = name_of(value)
    source = RoundedSource((n, k), rounding.code, bits, group, zero, name, constant)
    axis = _stored_axis(value, row_axis)
    return Parameter(source, (name,), ("rounded", name, n, k, axis, rounding.code, group))


def type_of(value: Stored | Computed) -> str:
    """The element type, for messages."""
    return value.tensor.dtype if isinstance(value, Stored) else str(value.constant.dtype)


def dense(value: Stored | Computed, what: str) -> Parameter:
    """A vector or table of floats.

    Raises:
        Refusal: not floating point.
    """
    constant = constant_of(value)
    if not value.is_float or constant is None:
        raise Refusal(f"{what} has the element type {type_of(value)}, expected a float")
    name = name_of(value)
    transposed = isinstance(value, Stored) and value.transposed
    return Parameter(DenseSource(constant), (name,), ("dense", name, *value.dims, transposed))
