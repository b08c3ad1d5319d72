"""Exact integer products of a matrix with the activations of many tokens.

What `kernels.matmul` does with many tokens; `batch_code` has the generated code and its terms.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import numpy.typing as npt

from intaglio.dialects.semantics import BlockCodes
from intaglio.runtime.engines.batch_code import (
    LONGEST,
    BatchParam,
    BatchSpec,
    emit_batch,
    emit_pack,
    totals_bytes,
)
from intaglio.runtime.engines.kernel_code import Path, compile_module
from intaglio.runtime.engines.packed_matrix import PackedMatrix, lane
from intaglio.runtime.engines.workers import LINE, POOL, SCRATCH, address

_X_BYTES = 1 << 19
"""Of activations, that stay in the second-level cache while rows pass."""

_TILES = {True: (4, 2), False: (2, 2)}
"""Rows and vectors of a tile, whose sums and totals stay in registers: of 32 and of 16."""


@cache
def _compile(path: Path, what: BatchSpec | int) -> Callable[[int], None]:
    """The compiled kernel, or for an int (bits) what packs the activations."""
    module = emit_pack(path, what) if isinstance(what, int) else emit_batch(path, what)
    return compile_module(path, module)


@dataclass(frozen=True)
class _Plan:
    """How a matrix is walked on one path."""

    spec: BatchSpec
    """With as many vectors of tokens in a tile as there may be."""
    segments: int
    elements: int
    """Of a segment."""
    group_of: npt.NDArray[np.int32]
    block_of: npt.NDArray[np.int64]
    """Of each segment its group and its block."""
    parameters: array[int]
    """What does not change between calls."""
    own: int
    """Bytes of a thread's scratch."""


def _segment(matrix: PackedMatrix, block: int) -> int:
    """Elements of a segment, where activations have an exponent for each block of so many; 0:
    without."""
    k, unit = matrix.k, lane(matrix.bits)
    if bounds := [size for size in (matrix.group, block) if 0 < size < k]:
        elements = math.gcd(*bounds)
        return elements if elements <= LONGEST else math.gcd(elements, LONGEST)
    parts = -(-k // LONGEST)
    return -(-k // (4 * unit * parts)) * 4 * unit


def _plan(matrix: PackedMatrix, path: Path, block: int) -> _Plan:
    plan = matrix.plans.get(("many", path.name, block))
    if not isinstance(plan, _Plan):
        plan = matrix.plans["many", path.name, block] = _make_plan(matrix, path, block)
    return plan


def _make_plan(matrix: PackedMatrix, path: Path, block: int) -> _Plan:
    elements = _segment(matrix, block)
    segments = -(-matrix.k // elements)
    first = np.arange(segments, dtype=np.int64) * elements
    group_of = np.minimum(first // matrix.group, matrix.scales.shape[1] - 1).astype(np.int32)
    block_of = first // block if block else np.zeros(0, np.int64)
    rows, vectors = _TILES[path.masked]
    # A code less its zero point times an activation of -128 times a scale of -2^15.
    product = elements * matrix.largest_code << 22 < 1 << 31
    lanes = elements // lane(matrix.bits)
    spec = BatchSpec(matrix.bits, matrix.kind_of_points, rows, vectors, bool(block), product, lanes)
    row_bytes, chunk = matrix.codes.shape[1], path.width * 8 // matrix.bits
    # Whole chunks and whole segments.
    codes_stride = -(-max(segments * elements, -(-matrix.k // chunk) * chunk) // LINE) * LINE
    own = totals_bytes(path, spec) + rows * codes_stride
    p = array("q", bytes(8 * len(BatchParam)))
    p[BatchParam.CODES] = address(matrix.codes)
    p[BatchParam.SCALES] = address(matrix.scales)
    if matrix.points is not None:
        p[BatchParam.POINTS] = address(matrix.points)
    p[BatchParam.GROUP_OF] = address(group_of)
    p[BatchParam.ROWS] = matrix.n
    p[BatchParam.ROW_BLOCK] = -(-matrix.rows_at_once // rows) * rows
    p[BatchParam.ROW_BYTES] = row_bytes
    p[BatchParam.GROUPS] = matrix.scales.shape[1]
    p[BatchParam.SEGMENTS] = segments
    p[BatchParam.FULL_CHUNKS], p[BatchParam.TAIL_BYTES] = divmod(row_bytes, path.width)
    p[BatchParam.LANES] = lanes
    p[BatchParam.CODES_STRIDE] = codes_stride
    # What groups have multiplies the sums of x in the kernel.
    p[BatchParam.FACTOR] = -int(matrix.zero) if matrix.points is None else 1
    p[BatchParam.ZERO] = int(matrix.zero) if matrix.zeros is None else 0
    p[BatchParam.SOURCE_STRIDE] = segments * elements
    p[BatchParam.SCRATCH_STRIDE] = own
    return _Plan(spec, segments, elements, group_of, block_of, p, own)


def share(matrix: PackedMatrix, path: Path, tokens: int) -> int:
    """How many of so many tokens are worth a lane each.

    A few that are left over are not, as they take as long as a whole vector of them.
    """
    least = path.lanes * (1 if matrix.bits == 8 else 3) // (2 if matrix.bits == 8 else 4)
    rest = tokens % path.lanes
    return tokens if rest >= least else tokens - rest


def product(
    matrix: PackedMatrix,
    x: npt.NDArray[np.int8],
    path: Path,
    workers: int,
    coded: BlockCodes | None,
    y: npt.NDArray[np.int64],
) -> None:
    """Writes the products of a matrix with many tokens.

    Args:
        matrix: weights [N, K].
        x: codes [S, K].
        path: how to compute.
        workers: threads.
        coded: what gives the steps of codes with an exponent a block.
        y: int64 [S, N] in C order.
    """
    plan = _plan(matrix, path, 0 if coded is None else coded.size)
    tokens, k = x.shape
    spec, lanes, row = plan.spec, path.lanes, plan.segments * plan.elements
    vectors = -(-tokens // lanes)
    padded = vectors * lanes
    of_token = (row, row, 4 * plan.segments, 4 * plan.segments * spec.step_vectors)
    sizes = [padded * size for size in of_token] + [workers * plan.own]
    ends = np.cumsum([-(-size // LINE) * LINE for size in sizes]).tolist()
    area, scratch = SCRATCH.take(ends[-1])
    source = area[: sizes[0]].reshape(padded, row)
    source[:tokens, :k] = x
    # All tokens fill whole vectors, and elements whole segments.
    source[:tokens, k:] = 0
    source[tokens:] = 0
    if coded is not None:
        steps = area[ends[2] : ends[2] + sizes[3]].view(np.int64)
        _spread_steps(coded, plan, steps, tokens, lanes)
    p = plan.parameters[:]
    p[BatchParam.SOURCE] = scratch
    p[BatchParam.X : BatchParam.STEPS + 1] = array("q", [scratch + end for end in ends[:3]])
    p[BatchParam.Y] = address(y)
    p[BatchParam.SCRATCH] = scratch + ends[3]
    p[BatchParam.TOKEN_VECTORS] = vectors
    _compile(path, matrix.bits)(p.buffer_info()[0])
    done = 0
    while done < vectors:
        width = min(spec.vectors, vectors - done)
        blocks = (vectors - done) // width
        p[BatchParam.FIRST_TOKEN] = done * lanes
        p[BatchParam.TOKENS] = tokens - done * lanes
        p[BatchParam.TOKEN_BLOCKS] = blocks
        p[BatchParam.BLOCKS_AT_ONCE] = max(1, _X_BYTES // (width * lanes * sum(of_token[1:])))
        p[BatchParam.NEXT_ROW] = p[BatchParam.NEXT_SCRATCH] = 0
        POOL.run(_compile(path, replace(spec, vectors=width)), p.buffer_info()[0], workers)
        done += width * blocks
        for which, size in zip(
            (BatchParam.X, BatchParam.SUMS, BatchParam.STEPS), of_token[1:], strict=True
        ):
            p[which] += width * blocks * lanes * size


def _spread_steps(
    coded: BlockCodes, plan: _Plan, into: npt.NDArray[np.int64], tokens: int, lanes: int
) -> None:
    """Writes the steps of tokens as `BatchParam.STEPS` has them."""
    kinds = plan.spec.step_vectors // 2
    steps = coded.steps(apart=not plan.spec.product)
    blocks = steps.shape[-1] // kinds
    vectors = -(-tokens // lanes)
    whole = np.zeros((vectors * lanes, plan.segments, kinds), np.int64)
    for kind in range(kinds):
        whole[:tokens, :, kind] = steps[:, plan.block_of + kind * blocks]
    # From [vector, half, parity, segment, kind] to [vector, segment, kind, parity, half].
    whole = whole.reshape(vectors, lanes // 2, 2, plan.segments, kinds)
    into.reshape(vectors, plan.segments, kinds, 2, lanes // 2)[...] = whole.transpose(0, 3, 4, 2, 1)
