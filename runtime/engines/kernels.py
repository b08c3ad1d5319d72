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

import ctypes
import os
import threading
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from intaglio.dialects.formulas.blocks import LARGEST
from intaglio.dialects.semantics import BlockCodes
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
from intaglio.runtime.engines.product_code import Prefetch, emit_kernel

__all__ = ["MAX_K", "PackedMatrix", "backend_name", "matmul", "matvec", "path_names"]

IntArray = npt.NDArray[np.integer]

_UNIT = 16
"""A group is a multiple of this many elements, or the whole row."""
_TOKENS = 4
"""Most tokens in one pass over a row: their accumulators and the codes stay in registers."""
_BLOCK_BYTES = 1 << 17
"""Weight bytes a thread takes at a time: in its second-level cache while many tokens pass."""
_SERIAL_BYTES = 1 << 17
"""A product that reads fewer bytes than this is not worth waking another thread for."""
_PREFETCH = Prefetch(4096, 3)
"""The hardware's own prefetcher stops at every 4 KiB page."""
_PAIRED_PREFETCH = Prefetch(8192, 2)
"""Where chunks go in pairs less is done for each, and the first level does not take as many lines
as are on their way at once."""

_compile_lock = threading.RLock()


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


_engines: list[object] = []


@cache
def _compile(path: Path, what: KernelSpec | int) -> Callable[[int], None]:
    """The compiled kernel, or for an int (bits) the compiled `prepare`."""
    with _compile_lock:
        module = (
            emit_prepare(path, what)
            if isinstance(what, int)
            else emit_kernel(path, what, _PAIRED_PREFETCH if what.paired else _PREFETCH)
        )
        function, engine = compile_module(path, module)
        _engines.append(engine)
        return function


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


@dataclass(frozen=True, eq=False)
class PackedMatrix:
    """A quantised weight matrix [N, K] as it lies in a ROM image; a wrapper, nothing is copied.

    Attributes:
        codes: uint8 [N, ceil(K * bits / 8)], C order; element k of a row is in the bits from
            k * bits mod 8 of byte k * bits // 8 (low bits first). Unused bits may hold anything.
        scales: int16 [N, G], C order, G = ceil(K / group): signed scale mantissas.
        zero: the zero point, 0..255: one integer for the matrix or uint8 [N, G] in C order.
        bits: width of a code: 2, 4 or 8 (codes are unsigned).
        group: elements of a group along K: a multiple of 16, or at least K. The last group may
            be shorter.
        k: elements of a row, at most `MAX_K`.
        offsets: int32 [N, G] in C order, beside one zero point for the matrix; or None.
        offset_bits: width of an offset with its sign.

    Raises:
        ValueError: a shape, type, memory order or number is not as above.
    """

    codes: npt.NDArray[np.uint8]
    scales: npt.NDArray[np.int16]
    zero: int | npt.NDArray[np.uint8]
    bits: int
    group: int
    k: int
    offsets: npt.NDArray[np.int32] | None = None
    offset_bits: int = 32
    _plans: dict[tuple[str, int], _Plan] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.bits not in (2, 4, 8):
            raise ValueError(f"codes are 2, 4 or 8 bits wide, not {self.bits}")
        if not 1 <= self.k <= MAX_K:
            raise ValueError(f"a row has 1 to {MAX_K} elements, not {self.k}")
        if self.group < 1 or (self.group < self.k and self.group % _UNIT):
            raise ValueError(
                f"a group is a multiple of {_UNIT} or the whole row of {self.k}, not {self.group}"
            )
        rows = self.codes.shape[0] if self.codes.ndim else 0
        _check("codes", self.codes, np.uint8, (rows, -(-self.k * self.bits // 8)))
        groups = -(-self.k // self.group)
        _check("scales", self.scales, np.int16, (rows, groups))
        zeros = self._zeros
        if zeros is not None:
            _check("zero", zeros, np.uint8, (rows, groups))
        elif not 0 <= int(self.zero) <= 255:
            raise ValueError(f"a zero point lies in 0..255, not {int(self.zero)}")
        if self.offsets is not None:
            if zeros is not None:
                raise ValueError("a matrix has zero points of its groups or offsets, not both")
            _check("offsets", self.offsets, np.int32, (rows, groups))

    @property
    def n(self) -> int:
        """Rows."""
        return self.codes.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes one product reads: codes, scales and zero points or offsets."""
        points = self._zeros if self.offsets is None else self.offsets
        return self.codes.nbytes + self.scales.nbytes + (0 if points is None else points.nbytes)

    @property
    def _zeros(self) -> npt.NDArray[np.uint8] | None:
        """The zero points of the groups, or None if there is one for the matrix."""
        return self.zero if isinstance(self.zero, np.ndarray) and self.zero.ndim else None

    @property
    def largest_code(self) -> int:
        """The largest magnitude of a code less its zero point."""
        top, zeros = (1 << self.bits) - 1, self._zeros
        if zeros is not None:
            return max(top, int(zeros.max(initial=0)))
        return max(int(self.zero), top - int(self.zero))

    @property
    def _points(self) -> Points:
        if self.offsets is not None:
            return Points.OFFSETS
        return Points.ONE if self._zeros is None else Points.GROUPS

    @property
    def _largest(self) -> int:
        """The largest magnitude of a weight."""
        offset = 0 if self.offsets is None else 1 << (self.offset_bits - 1)
        return (255 << 15) + offset

    def _plan(self, path: Path, block: int = 0) -> _Plan:
        plan = self._plans.get((path.name, block))
        if plan is None:
            plan = self._plans[path.name, block] = _make_plan(self, path, block)
        return plan


def _check(name: str, array: np.ndarray, dtype: npt.DTypeLike, shape: tuple[int, ...]) -> None:
    if array.dtype != np.dtype(dtype) or array.shape != shape or not array.flags.c_contiguous:
        raise ValueError(
            f"{name} must be {np.dtype(dtype)} {list(shape)} in C order, "
            f"not {array.dtype} {list(array.shape)}"
        )


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
        per_chunk = elements // _UNIT
        units = np.arange(chunks * per_chunk, dtype=np.int64) * _UNIT // group
        index = np.minimum(units, matrix.scales.shape[1] - 1).astype(np.int32)
    lane = _lane(matrix.bits)
    # Those of wider groups become 64 bits once a group, so that it is not worth it without steps.
    paired = bool(
        matrix._points is not Points.OFFSETS
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
    points = matrix._zeros if matrix.offsets is None else matrix.offsets
    if points is not None:
        p[Param.ZEROS] = address(points)
    if index is not None:
        p[Param.INDEX] = address(index)
    row_bytes = matrix.codes.shape[1]
    p[Param.ROWS] = matrix.n
    p[Param.ROW_BLOCK] = max(1, min(_BLOCK_BYTES // row_bytes, -(-matrix.n // 8)))
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
    p[Param.FACTOR] = -int(matrix.zero) if points is None else 1
    p[Param.ZERO] = int(matrix.zero) if matrix._zeros is None else 0
    prepare = _compile(path, matrix.bits)
    plan = _Plan(layout, per_chunk, chunks, elements, entries, index, p, prepare, {}, paired=paired)
    return _with_steps(plan, matrix, path, block) if block else plan


def _with_steps(plan: _Plan, matrix: PackedMatrix, path: Path, block: int) -> _Plan:
    """A plan with where the steps of blocks stand."""
    lane = _lane(matrix.bits)
    first = np.arange(plan.chunks * path.lanes, dtype=np.int64) * lane
    if plan.paired:
        steps = 1 if block % (4 * lane) == 0 or block >= matrix.k else 2
        # In the order in which `packed` and the sums of words leave them.
        first = first.reshape(plan.chunks // 2, 2, path.lanes // 4, 4).swapaxes(1, 2)
        first = first[..., ::2].reshape(plan.chunks // 2, path.lanes // 2, 2)
    else:
        spec = KernelSpec(matrix.bits, plan.layout, plan.groups_per_chunk, matrix._points, 1)
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


def _lane(bits: int) -> int:
    """Consecutive elements that a lane of the accumulator sums."""
    return 4 * (8 // bits)


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
        if x.size % _lane(matrix.bits) and x.size < matrix.k:
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
    if matrix.k * matrix._largest * largest >> 63:
        raise OverflowError(
            f"activations up to {largest} over {matrix.k} elements may exceed the int64 product"
        )


_buffer: Callable[[Any], ctypes.c_char] = ctypes.c_char.from_buffer
_addressof = ctypes.addressof


def address(operand: np.ndarray) -> int:
    """Of an array's first element."""
    try:
        # Several times faster than `ctypes.data`.
        return _addressof(_buffer(operand))
    except (TypeError, ValueError, BufferError):
        # Read-only or empty.
        return operand.ctypes.data


class _Scratch(threading.local):
    """A thread's buffer for activations, kept because fresh pages cost more than small products.

    It begins on a cache line, so that no vector load straddles two.
    """

    def __init__(self) -> None:
        self._allocate(1 << 16)

    def _allocate(self, nbytes: int) -> None:
        raw = np.empty(nbytes + 63, np.int8)
        start = -address(raw) % 64
        self.area = raw[start : start + nbytes]
        self.address = address(self.area)

    def take(self, nbytes: int) -> tuple[npt.NDArray[np.int8], int]:
        """At least that many bytes, and their address; overwritten by the thread's next call."""
        if nbytes > self.area.nbytes:
            self._allocate(nbytes)
        return self.area, self.address


_SCRATCH = _Scratch()


def _product(
    matrix: PackedMatrix,
    x: npt.NDArray[np.int8],
    path: Path,
    threads: int | None,
    coded: BlockCodes | None = None,
) -> npt.NDArray[np.int64]:
    """`matmul` for int8 [S, K] with S and N at least 1."""
    plan = matrix._plan(path, 0 if coded is None else coded.size)
    tokens, k = x.shape
    row = plan.chunks * plan.elements
    correction_row = plan.entries * path.width
    step_row = 0 if plan.step_index is None else 8 * plan.step_index.size
    size = tokens * row
    steps_at = 2 * size + tokens * correction_row
    area, scratch = _SCRATCH.take(steps_at + tokens * step_row)
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
    y = np.empty((tokens, matrix.n), np.int64)
    y_address = address(y)
    workers = _POOL.size if threads is None else min(threads, _POOL.size)
    if matrix.codes.nbytes * tokens < _SERIAL_BYTES:
        workers = 1
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
                matrix._points,
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
        _POOL.run(kernel, parameters, workers)
        done += width * blocks
    return y


class _Pool:
    """Threads that run one kernel together with the caller; they share its row counter.

    Waking a bare lock costs a few microseconds, an executor's queue and future some tens.
    """

    def __init__(self) -> None:
        self.size = max(1, os.cpu_count() or 1)
        self._busy = threading.Lock()
        self._workers: list[tuple[threading.Lock, threading.Lock]] = []
        self._function: Callable[[int], None] | None = None
        self._argument = 0

    def run(self, function: Callable[[int], None], argument: int, threads: int) -> None:
        """Calls `function(argument)` on this many threads and waits for all of them.

        A second caller finds the workers taken and computes alone; the result is the same.
        """
        if threads <= 1 or not self._busy.acquire(blocking=False):
            function(argument)
            return
        try:
            while len(self._workers) < threads - 1:
                self._start()
            self._function, self._argument = function, argument
            helpers = self._workers[: threads - 1]
            for go, _ in helpers:
                go.release()
            function(argument)
            for go, finished in helpers:
                # A worker the system has not woken yet is not needed any more: all rows are taken.
                if not go.acquire(blocking=False):
                    finished.acquire()
        finally:
            self._busy.release()

    def _start(self) -> None:
        go, finished = threading.Lock(), threading.Lock()
        go.acquire()
        finished.acquire()
        self._workers.append((go, finished))

        def work() -> None:
            while True:
                go.acquire()
                if self._function is not None:
                    self._function(self._argument)
                finished.release()

        threading.Thread(target=work, name="intaglio-kernel", daemon=True).start()


_POOL = _Pool()


def _forget_threads() -> None:
    global _POOL
    _POOL = _Pool()


# A forked child has none of its parent's threads; waiting for them would never end.
os.register_at_fork(after_in_child=_forget_threads)
