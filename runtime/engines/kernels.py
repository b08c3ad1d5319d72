"""Exact integer matrix-vector products on packed weight codes, compiled just in time.

    Y[n] = sum_g scale[n, g] * sum_{k in group g} (q[n, k] - zero[n, g]) * x[k]
           - sum_g offset[n, g] * sum_{k in group g} x[k]           where groups have offsets

The operands are those of a ROM image (usually memory maps) and are read in place; no unpacked copy
is made. Every path gives the same integers as the numpy reference (`dialects.semantics.dot`).
`kernel_code` holds the generated code and the proof that no intermediate overflows.

Activations wider than int8 are written as balanced base-256 digits, x = sum_d 256^d * x_d with
x_d in -128..127, and all digits go through the int8 kernel in one pass over the weights; the
products of the digits are then put together in int64.

Activations with an exponent a block are codes of int8 beside the steps of their blocks, which the
kernel applies to the sums of codes (`matmul` with `blocks`).
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import numpy.typing as npt

from intaglio.dialects.formulas.blocks import LARGEST
from intaglio.dialects.semantics import BlockCodes
from intaglio.runtime.engines import batches
from intaglio.runtime.engines.kernel_code import (
    MAX_K,
    KernelSpec,
    Layout,
    Param,
    Path,
    Points,
    available_paths,
    compile_module,
    emit_prepare,
)
from intaglio.runtime.engines.packed_matrix import UNIT, PackedMatrix
from intaglio.runtime.engines.packed_matrix import lane as lane_of
from intaglio.runtime.engines.product_code import Prefetch, emit_kernel
from intaglio.runtime.engines.workers import POOL, SCRATCH, address

__all__ = ["MAX_K", "PackedMatrix", "backend_name", "matmul", "matvec", "path_names"]

IntArray = npt.NDArray[np.integer]

_TOKENS = 4
"""Most tokens in one pass over a row: their accumulators and the codes stay in registers."""
_SERIAL_BYTES = 1 << 17
"""A product that reads fewer bytes than this is not worth waking another thread for."""
_PREFETCH = Prefetch(4096, 3)
"""The hardware's own prefetcher stops at every 4 KiB page."""
_PAIRED_PREFETCH = Prefetch(8192, 2)
"""Where chunks go in pairs less is done for each, and the first level does not take as many lines
as are on their way at once."""


@cache
def _paths() -> dict[str, Path]:
    return available_paths()


def path_names() -> list[str]:
    """Names of the code paths this CPU can run, best first; any of them may be forced."""
    return list(_paths())


def backend_name() -> str:
    """Name of the path used unless another is forced, for example "avx512-vnni"."""
    return path_names()[0]


def choose_path(name: str | None) -> Path:
    if name is None:
        return next(iter(_paths().values()))
    if name not in _paths():
        raise ValueError(f"this CPU has no path {name!r}; it has {', '.join(_paths())}")
    return _paths()[name]


@cache
def _compile(path: Path, what: KernelSpec | int) -> Callable[[int], None]:
    """The compiled kernel, or for an int (bits) the compiled `prepare`."""
    if isinstance(what, int):
        return compile_module(path, emit_prepare(path, what))
    prefetch = _PAIRED_PREFETCH if what.paired else _PREFETCH
    return compile_module(path, emit_kernel(path, what, prefetch))


@dataclass(frozen=True)
class _Plan:
    """How a matrix is walked on one path."""

    layout: Layout
    groups_per_chunk: int
    chunks: int
    """Chunks of a row, a partial one included."""
    elements: int
    """Elements of a chunk."""
    entries: int
    """Correction entries of a token: one for a chunk, or for a group if `COARSE`."""
    index: npt.NDArray[np.int32] | None
    parameters: array[int]
    """The parameter block up to `Param.SOURCE`: what does not change between calls."""
    prepare: Callable[[int], None]
    kernels: dict[int, Callable[[int], None]]
    """Compiled kernels by tokens in one pass."""
    steps: int = 0
    """Vectors of steps of a chunk (`KernelSpec.steps`)."""
    shifted: bool = False
    """Whether steps are a factor and a shift (`KernelSpec.shifted`)."""
    paired: bool = False
    """Whether chunks go in pairs (`KernelSpec.paired`)."""
    step_index: npt.NDArray[np.int64] | None = None
    """Of each lane of those, in the order in which they lie, its block."""


def _plan(matrix: PackedMatrix, path: Path, block: int) -> _Plan:
    plan = matrix.plans.get((path.name, block))
    if not isinstance(plan, _Plan):
        plan = matrix.plans[path.name, block] = _make_plan(matrix, path, block)
    return plan


def _make_plan(matrix: PackedMatrix, path: Path, block: int) -> _Plan:
    """The plan for activations with an exponent for each block of so many; 0: without."""
    elements = path.width * 8 // matrix.bits
    full, rest = divmod(matrix.k, elements)
    chunks = full + (rest > 0)
    group, per_group, per_chunk = matrix.group, 1, 1
    index = None
    if group >= matrix.k or group % elements == 0:
        layout = Layout.COARSE
        per_group = chunks if group >= matrix.k else group // elements
        if per_group == 1:
            layout = Layout.FINE
    elif elements % group == 0:
        layout = Layout.FINE
        per_chunk = elements // group
    else:
        layout = Layout.INDEXED
        per_chunk = elements // UNIT
        units = np.arange(chunks * per_chunk, dtype=np.int64) * UNIT // group
        index = np.minimum(units, matrix.scales.shape[1] - 1).astype(np.int32)
    lane = lane_of(matrix.bits)
    # Those of wider groups become 64 bits once a group, so that it is not worth it without steps.
    paired = bool(
        matrix.kind_of_points is not Points.OFFSETS
        and lane * matrix.largest_code << 7 < 1 << 14
        and (not block or block % (2 * lane) == 0 or block >= matrix.k)
        and (
            layout is Layout.FINE
            or (layout is Layout.COARSE and block and (per_group % 2 == 0 or group >= matrix.k))
        )
    )
    if paired:
        chunks += chunks % 2
        full -= full % 2
        per_group += layout is Layout.COARSE and per_group % 2
    p = array("q", bytes(8 * Param.SOURCE))
    p[Param.CODES] = address(matrix.codes)
    p[Param.SCALES] = address(matrix.scales)
    if matrix.points is not None:
        p[Param.ZEROS] = address(matrix.points)
    if index is not None:
        p[Param.INDEX] = address(index)
    row_bytes = matrix.codes.shape[1]
    p[Param.ROWS] = matrix.n
    p[Param.ROW_BLOCK] = matrix.rows_at_once
    p[Param.ROW_BYTES] = row_bytes
    p[Param.GROUPS] = matrix.scales.shape[1]
    p[Param.CHUNKS] = chunks
    p[Param.FULL_CHUNKS] = full
    p[Param.TAIL_BYTES] = row_bytes - full * path.width
    p[Param.CHUNKS_PER_GROUP] = per_group
    p[Param.X_STRIDE] = chunks * elements
    # Chunks of a group have blocks of their own.
    per_entry = 1 if block else per_group
    p[Param.CHUNKS_PER_CORRECTION] = per_entry
    entries = -(-chunks // per_entry)
    p[Param.CORRECTION_STRIDE] = entries * path.lanes
    # What groups have multiplies the sums of x in the kernel, one zero point for the matrix does
    # here.
    p[Param.FACTOR] = -int(matrix.zero) if matrix.points is None else 1
    p[Param.ZERO] = int(matrix.zero) if matrix.zeros is None else 0
    prepare = _compile(path, matrix.bits)
    plan = _Plan(layout, per_chunk, chunks, elements, entries, index, p, prepare, {}, paired=paired)
    return _with_steps(plan, matrix, path, block) if block else plan


def _with_steps(plan: _Plan, matrix: PackedMatrix, path: Path, block: int) -> _Plan:
    """A plan with where the steps of blocks stand."""
    lane = lane_of(matrix.bits)
    first = np.arange(plan.chunks * path.lanes, dtype=np.int64) * lane
    if plan.paired:
        steps = 1 if block % (4 * lane) == 0 or block >= matrix.k else 2
        # In the order in which `packed` and the sums of words leave them.
        first = first.reshape(plan.chunks // 2, 2, path.lanes // 4, 4).swapaxes(1, 2)
        first = first[..., ::2].reshape(plan.chunks // 2, path.lanes // 2, 2)
    else:
        spec = KernelSpec(matrix.bits, plan.layout, plan.groups_per_chunk, matrix.kind_of_points, 1)
        apart = spec.apart(path.lanes) or (block % (2 * lane) and block < matrix.k)
        steps = 2 if apart else 1
        # Pairs of lanes in order, or of each chunk its even lanes and then its odd ones.
        first = first.reshape(plan.chunks, path.lanes // 2, 2)
    first = first[..., :steps]
    index = np.minimum(first.swapaxes(1, 2), matrix.k - 1) // block
    of_pair = 2 * lane * matrix.largest_code * LARGEST
    shifted = not plan.paired and plan.layout is not Layout.COARSE and of_pair >= 1 << 15
    if shifted:
        # Factors are followed by shifts, which lie behind those of all blocks.
        index = np.stack([index, index + -(-matrix.k // block)], axis=2)
    return replace(plan, steps=steps, shifted=shifted, step_index=index.reshape(-1))


def matvec(
    matrix: PackedMatrix,
    x_codes: IntArray,
    *,
    path: str | None = None,
    threads: int | None = None,
) -> npt.NDArray[np.int64]:
    """The exact product of a matrix and one vector of activation codes.

    Args:
        matrix: weights [N, K].
        x_codes: integers [K]; int8 is the fast case, any other integer type costs about one int8
            product for each 8 bits its values need.
        path: one of `path_names()`; the best unless given.
        threads: at most this many; all CPUs unless given.

    Returns:
        int64 [N].

    Raises:
        ValueError: the shape or type of x_codes, or the path, does not fit.
        OverflowError: the worst case for these activations exceeds int64.
    """
    if x_codes.ndim != 1:
        raise ValueError(f"activations must be [{matrix.k}], not {list(x_codes.shape)}")
    return matmul(matrix, x_codes[None], path=path, threads=threads)[0]


def matmul(
    matrix: PackedMatrix,
    x: IntArray | BlockCodes,
    *,
    path: str | None = None,
    threads: int | None = None,
) -> npt.NDArray[np.int64]:
    """The exact products of a matrix and several vectors; weights are read from memory once.

    Args:
        matrix: weights [N, K].
        x: integers [S, K], one vector a token; see `matvec`. Codes with an exponent a block stand
            for the integers that they are (`formulas.blocks.integer`), and cost little more than
            int8; where some are wide, twice that.
        path: one of `path_names()`; the best unless given.
        threads: at most this many; all CPUs unless given.

    Returns:
        int64 [S, N].

    Raises:
        ValueError: the shape or type of x, or the path, does not fit.
        OverflowError: the worst case for these activations exceeds int64.
    """
    steps = None
    if isinstance(x, BlockCodes):
        if x.size % lane_of(matrix.bits) and x.size < matrix.k:
            x = x.integers
        else:
            x, steps = x.codes, x
    if x.ndim != 2 or x.shape[1] != matrix.k or x.dtype.kind not in "iu":
        raise ValueError(
            f"activations must be integers [..., {matrix.k}], not {x.dtype} {list(x.shape)}"
        )
    chosen = choose_path(path)
    tokens = x.shape[0]
    if not tokens or not matrix.n:
        return np.zeros((tokens, matrix.n), np.int64)
    if steps is not None:
        _check_range(matrix, steps.largest)
    if x.dtype == np.int8:
        return _product(matrix, x.astype(np.int8, copy=False), chosen, threads, steps)
    digits, sign = _digits(matrix, x)
    if steps is not None:
        steps = steps.times(len(digits))
    y = _product(matrix, digits.reshape(-1, matrix.k), chosen, threads, steps)
    y = y.reshape(len(digits), tokens, matrix.n)
    total = y[0]
    for d in range(1, len(digits)):
        # Wraps modulo 2^64 at most on the way: the sum was checked to fit.
        total += y[d] << (8 * d)
    return -total if sign < 0 else total


def _digits(matrix: PackedMatrix, x: IntArray) -> tuple[npt.NDArray[np.int8], int]:
    """Balanced base-256 digits int8 [D, S, K] of sign * x, least significant first, and sign."""
    low, high = int(x.min()), int(x.max())
    _check_range(matrix, max(high, -low))
    count, sign = 1, 1
    while True:
        # Digits of -128..127 reach a little further down than up: 127 * 257 = 32639 for two.
        ones = (256**count - 1) // 255
        if -128 * ones <= low and high <= 127 * ones:
            break
        if -128 * ones <= -high and -low <= 127 * ones:
            sign = -1
            break
        count += 1
    rest = x.astype(np.int64)
    if sign < 0:
        np.negative(rest, out=rest)
    digits = np.empty((count, *x.shape), np.int8)
    for d in range(count):
        digits[d] = rest.astype(np.int8)
        rest = (rest - digits[d]) >> 8
    return digits, sign


def _check_range(matrix: PackedMatrix, largest: int) -> None:
    if matrix.k * matrix.largest * largest >> 63:
        raise OverflowError(
            f"activations up to {largest} over {matrix.k} elements may exceed the int64 product"
        )


def _product(
    matrix: PackedMatrix,
    x: npt.NDArray[np.int8],
    path: Path,
    threads: int | None,
    coded: BlockCodes | None = None,
) -> npt.NDArray[np.int64]:
    """`matmul` for int8 [S, K] with S and N at least 1."""
    tokens = x.shape[0]
    y = np.empty((tokens, matrix.n), np.int64)
    workers = POOL.size if threads is None else min(threads, POOL.size)
    if matrix.codes.nbytes * tokens < _SERIAL_BYTES:
        workers = 1
    many = batches.share(matrix, path, tokens)
    if many:
        first = slice(many)
        batches.product(
            matrix, x[first], path, workers, coded if coded is None else coded.part(first), y
        )
    if many < tokens:
        rest = slice(many, None)
        coded = coded if coded is None or not many else coded.part(rest)
        _few(matrix, x[rest], path, workers, coded, y[rest])
    return y


def _few(
    matrix: PackedMatrix,
    x: npt.NDArray[np.int8],
    path: Path,
    workers: int,
    coded: BlockCodes | None,
    y: npt.NDArray[np.int64],
) -> None:
    """Writes the products of some tokens, the elements of rows in the lanes of vectors."""
    plan = _plan(matrix, path, 0 if coded is None else coded.size)
    tokens, k = x.shape
    row = plan.chunks * plan.elements
    correction_row = plan.entries * path.width
    step_row = 0 if plan.step_index is None else 8 * plan.step_index.size
    size = tokens * row
    steps_at = 2 * size + tokens * correction_row
    area, scratch = SCRATCH.take(steps_at + tokens * step_row)
    if coded is not None and plan.step_index is not None:
        steps = area[steps_at : steps_at + tokens * step_row].view(np.int64)
        steps = steps.reshape(tokens, plan.step_index.size)
        # No index is clipped; otherwise `out` would be written by way of a copy.
        coded.steps(apart=plan.shifted).take(plan.step_index, 1, steps, "clip")
    source = area[:size].reshape(tokens, row)
    if row == k:
        source[...] = x
    else:
        source[:, :k] = x
        source[:, k:] = 0
    y_address = address(y)
    done = 0
    while done < tokens:
        width = min(_TOKENS, tokens - done)
        blocks = (tokens - done) // width
        kernel = plan.kernels.get(width)
        if kernel is None:
            spec = KernelSpec(
                matrix.bits,
                plan.layout,
                plan.groups_per_chunk,
                matrix.kind_of_points,
                width,
                plan.steps,
                plan.shifted,
                plan.paired,
            )
            kernel = plan.kernels[width] = _compile(path, spec)
        # SOURCE, TOKENS, X, CORRECTION, STEPS, Y, TOKEN_BLOCKS, NEXT_ROW
        call = (
            scratch,
            tokens,
            scratch + size + done * row,
            scratch + 2 * size + done * correction_row,
            scratch + steps_at + done * step_row,
            y_address + 8 * done * matrix.n,
            blocks,
            0,
        )
        p = plan.parameters + array("q", call)
        parameters = p.buffer_info()[0]
        if not done:
            plan.prepare(parameters)
        POOL.run(kernel, parameters, workers)
        done += width * blocks
