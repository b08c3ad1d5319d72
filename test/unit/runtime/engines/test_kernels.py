"""The kernels against a restatement of the formula in plain numpy, on every path of this CPU."""

from __future__ import annotations

import os
import threading
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from intaglio.dialects.codes import Matrix, decode
from intaglio.dialects.formats import FORMATS
from intaglio.dialects.formulas.blocks import integer_fraction
from intaglio.dialects.semantics import BlockCodes, dot, quantize_blocks
from intaglio.runtime.engines import kernels
from intaglio.runtime.engines.kernels import PackedMatrix, matmul, matvec

PATHS = kernels.path_names()


def pack(q: np.ndarray, bits: int) -> np.ndarray:
    n, k = q.shape
    out = np.zeros((n, -(-k * bits // 8)), np.uint8)
    for i in range(k):
        out[:, i * bits // 8] |= (q[:, i] << (i * bits % 8)).astype(np.uint8)
    return out


def expected(
    q: np.ndarray,
    scales: np.ndarray,
    zero: int | np.ndarray,
    group: int,
    x: np.ndarray,
    offsets: np.ndarray | None = None,
) -> np.ndarray:
    """Y[s, n] as Python integers."""
    g = np.arange(q.shape[1]) // group
    z = np.broadcast_to(np.asarray(zero, np.int64), scales.shape)[:, g]
    w = (q.astype(np.int64) - z) * scales.astype(np.int64)[:, g]
    if offsets is not None:
        w -= offsets.astype(np.int64)[:, g]
    return x.astype(object) @ w.astype(object).T


def make(
    rng: np.random.Generator, bits: int, n: int, k: int, group: int, zeros: bool, mode: str
) -> tuple[np.ndarray, np.ndarray, int | np.ndarray]:
    top, groups = (1 << bits) - 1, -(-k // group)
    if mode == "extreme":
        q = rng.choice(np.array([0, top], np.uint8), (n, k))
        scales = rng.choice(np.array([-32768, 32767], np.int16), (n, groups))
        zero = rng.choice(np.array([0, 255], np.uint8), (n, groups)) if zeros else 255
    elif mode == "worst":
        q = np.full((n, k), top, np.uint8)
        scales = np.full((n, groups), -32768, np.int16)
        zero = np.zeros((n, groups), np.uint8) if zeros else 0
    else:
        q = rng.integers(0, top + 1, (n, k), dtype=np.uint8)
        scales = rng.integers(-32768, 32768, (n, groups), dtype=np.int16)
        zero = rng.integers(0, 256, (n, groups), dtype=np.uint8) if zeros else (top + 1) // 2
    return q, scales, zero


def make_offsets(rng: np.random.Generator, shape: tuple[int, ...], mode: str) -> np.ndarray:
    low, high = -(1 << 31), (1 << 31) - 1
    if mode == "random":
        return rng.integers(low, high + 1, shape, dtype=np.int32)
    return rng.choice(np.array([low, high] if mode == "extreme" else [high], np.int32), shape)


def activations(rng: np.random.Generator, dtype: str, s: int, k: int, mode: str) -> np.ndarray:
    if dtype == "fp8":
        low, high, dtype = -(448 << 9), (448 << 9), "int32"
    else:
        low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    if mode == "worst":
        return np.full((s, k), low, dtype)
    if mode == "extreme":
        return rng.choice(np.array([low, high], dtype), (s, k))
    return rng.integers(low, high + 1, (s, k), dtype=dtype)


def check(
    path: str,
    bits: int,
    n: int,
    k: int,
    group: int,
    zeros: bool,
    mode: str,
    dtype: str = "int8",
    s: int = 1,
    seed: int = 0,
    has_offsets: bool = False,
) -> None:
    rng = np.random.default_rng(seed)
    q, scales, zero = make(rng, bits, n, k, group, zeros, mode)
    offsets = make_offsets(rng, scales.shape, mode) if has_offsets else None
    x = activations(rng, dtype, s, k, mode)
    y = matmul(PackedMatrix(pack(q, bits), scales, zero, bits, group, k, offsets), x, path=path)
    assert y.dtype == np.int64
    assert y.shape == (s, n)
    assert np.array_equal(y.astype(object), expected(q, scales, zero, group, x, offsets))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("group", [16, 32, 64, 128, 256, 48, 80, 160, 10**6])
def test_every_layout_and_zero_kind(path: str, bits: int, group: int) -> None:
    for zeros in (False, True):
        for k in (512, 641):
            check(path, bits, 5, k, group, zeros, "random")
    for k in (512, 641):
        check(path, bits, 5, k, group, False, "random", has_offsets=True)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("mode", ["extreme", "worst"])
def test_extremes(path: str, bits: int, mode: str) -> None:
    for group in (16, 32, 128, 4096):
        check(path, bits, 3, 1027, group, False, mode)
        check(path, bits, 3, 1027, group, True, mode)
        check(path, bits, 3, 1027, group, False, mode, has_offsets=True)


@settings(max_examples=60, deadline=None)
@given(
    path=st.sampled_from(PATHS),
    bits=st.sampled_from([2, 4, 8]),
    n=st.integers(1, 40),
    k=st.integers(1, 700),
    group=st.one_of(st.integers(1, 20).map(lambda i: 16 * i), st.just(1 << 20)),
    points=st.sampled_from(["one", "groups", "offsets"]),
    mode=st.sampled_from(["random", "extreme"]),
    seed=st.integers(0, 2**32),
)
def test_any_shape(
    path: str, bits: int, n: int, k: int, group: int, points: str, mode: str, seed: int
) -> None:
    offsets = points == "offsets"
    check(path, bits, n, k, group, points == "groups", mode, seed=seed, has_offsets=offsets)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "fp8", "int32"])
def test_wide_activations(path: str, dtype: str) -> None:
    for mode in ("random", "extreme", "worst"):
        check(path, 4, 6, 300, 32, False, mode, dtype)
        if dtype != "int32":
            check(path, 4, 6, 300, 32, False, mode, dtype, s=3, has_offsets=True)


@pytest.mark.parametrize(
    ("low", "high", "count"),
    [
        (-128, 127, 1),
        (-127, 128, 1),
        (-128, 128, 2),
        (-32896, 32639, 2),
        (-32639, 32767, 2),
        (-32768, 32767, 3),
        (0, 65535, 3),
    ],
)
def test_digits_are_as_few_as_the_values_allow(low: int, high: int, count: int) -> None:
    matrix = PackedMatrix(np.zeros((1, 2), np.uint8), np.ones((1, 1), np.int16), 0, 8, 2, 2)
    x = np.array([[low, high]], np.int32)
    digits, sign = kernels._digits(matrix, x)
    assert len(digits) == count
    value = sum(d.astype(np.int64) << (8 * i) for i, d in enumerate(digits))
    assert np.array_equal(sign * value, x)


@pytest.mark.parametrize("s", range(1, 10))
def test_several_tokens(s: int) -> None:
    check(PATHS[0], 4, 37, 333, 32, True, "random", s=s)
    check(PATHS[0], 2, 37, 1100, 256, False, "random", "int16", s=s)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_many_tokens_on_every_path(path: str, bits: int) -> None:
    for group in (16, 32, 48, 10**6):
        for points in ("one", "groups", "offsets"):
            check(
                path,
                bits,
                13,
                641,
                group,
                points == "groups",
                "random",
                s=41,
                has_offsets=points == "offsets",
            )
    for mode in ("extreme", "worst"):
        check(path, bits, 3, 1027, 32, False, mode, s=16)
        check(path, bits, 3, 1027, 4096, True, mode, "int16", s=9)


@settings(max_examples=20, deadline=None)
@given(
    bits=st.sampled_from([2, 4, 8]),
    n=st.integers(1, 40),
    k=st.integers(1, 700),
    group=st.one_of(st.integers(1, 20).map(lambda i: 16 * i), st.just(1 << 20)),
    points=st.sampled_from(["one", "groups", "offsets"]),
    form=st.sampled_from(["int8", "int16", "half8", "mxint8", "wide"]),
    block=st.sampled_from([16, 32, 48, 1 << 20]),
    s=st.integers(1, 80),
    threads=st.sampled_from([1, None]),
    seed=st.integers(0, 2**32),
)
def test_tokens_together_are_those_one_by_one(
    bits: int,
    n: int,
    k: int,
    group: int,
    points: str,
    form: str,
    block: int,
    s: int,
    threads: int | None,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    q, scales, zero = make(rng, bits, n, k, group, points == "groups", "random")
    offsets = rng.integers(-(1 << 19), 1 << 19, scales.shape, dtype=np.int32)
    matrix = PackedMatrix(
        pack(q, bits),
        scales,
        zero,
        bits,
        group,
        k,
        offsets if points == "offsets" else None,
        20,
    )
    x: np.ndarray | BlockCodes
    if form in ("int8", "int16"):
        x = activations(rng, form, s, k, "random")
        rows = [x[i : i + 1] for i in range(s)]
    else:
        values = rng.integers(-(1 << 24), 1 << 24, (s, k)) >> rng.integers(0, 20, (s, k))
        wide = (0,) if form == "wide" else ()
        made = quantize_blocks(values, "half8" if wide else form, block, wide=wide).blocks
        assert made is not None
        x, rows = made, [made.part(slice(i, i + 1)) for i in range(s)]
    together = matmul(matrix, x, threads=threads)
    assert np.array_equal(together, np.concatenate([matmul(matrix, row) for row in rows]))


def test_the_longest_row_of_many_tokens_stays_exact() -> None:
    k = kernels.MAX_K
    codes, scales = np.full((1, k), 255, np.uint8), np.full((1, 1), -32768, np.int16)
    x = np.full((16, k), -128, np.int8)
    assert (matmul(PackedMatrix(codes, scales, 0, 8, k, k), x) == k * 255 * 128 * 32768).all()


def test_several_tokens_on_every_path() -> None:
    for path in PATHS:
        for bits in (2, 8):
            check(path, bits, 9, 257, 64, False, "random", s=6)


@pytest.mark.parametrize("path", PATHS)
def test_longest_row_stays_exact(path: str) -> None:
    k = kernels.MAX_K
    codes = np.full((1, k), 255, np.uint8)
    x = np.full(k, -128, np.int8)
    scales = np.full((1, 1), -32768, np.int16)
    y = matvec(PackedMatrix(codes, scales, 0, 8, k, k), x, path=path)
    assert y[0] == k * 255 * 128 * 32768
    y = matvec(PackedMatrix(np.zeros_like(codes), scales, 255, 8, k, k), x, path=path)
    assert y[0] == -k * 255 * 128 * 32768
    zero = np.full((1, 1), 255, np.uint8)
    y = matvec(PackedMatrix(np.zeros_like(codes), scales, zero, 8, k, k), x, path=path)
    assert y[0] == -k * 255 * 128 * 32768


@pytest.mark.parametrize("path", PATHS)
def test_reads_nothing_behind_the_last_row(path: str) -> None:
    """The operands end right before a page that may not be read."""
    import ctypes
    import mmap

    libc = ctypes.CDLL(None, use_errno=True)
    page = mmap.PAGESIZE
    keep = []

    def at_the_edge(array: np.ndarray) -> np.ndarray:
        area = mmap.mmap(-1, 4 * page)
        keep.append(area)
        whole = np.frombuffer(area, np.uint8)
        address = ctypes.c_void_p(whole.ctypes.data + 3 * page)
        assert libc.mprotect(address, ctypes.c_size_t(page), 0) == 0
        place = whole[3 * page - array.nbytes : 3 * page].view(array.dtype).reshape(array.shape)
        place[...] = array
        return place

    rng = np.random.default_rng(1)
    for bits, k, group in ((4, 333, 32), (2, 333, 16), (8, 70, 16), (4, 333, 48), (4, 300, 300)):
        q, scales, zero = make(rng, bits, 3, k, group, True, "random")
        assert isinstance(zero, np.ndarray)
        x = activations(rng, "int8", 1, k, "random")
        matrix = PackedMatrix(
            at_the_edge(pack(q, bits)), at_the_edge(scales), at_the_edge(zero), bits, group, k
        )
        for points in (zero, zero & ((1 << bits) - 1)):
            matrix.zero[...] = points
            # Whether chunks go in pairs depends on the zero points, so the plan is made again.
            matrix.plans.clear()
            for tokens in (x, np.tile(x, (16, 1))):
                y = matmul(matrix, tokens, path=path)
                assert np.array_equal(y, expected(q, scales, points, group, tokens))


def test_unused_bits_of_the_last_byte_do_not_count() -> None:
    codes = np.array([[0xF5]], np.uint8)
    y = matvec(PackedMatrix(codes, np.ones((1, 1), np.int16), 0, 4, 16, 1), np.array([3], np.int8))
    assert y.tolist() == [15]


def test_two_threads_and_two_callers_agree_with_one() -> None:
    rng = np.random.default_rng(2)
    n, k = 512, 2048
    codes = rng.integers(0, 256, (n, k // 2), dtype=np.uint8)
    scales = rng.integers(-32768, 32768, (n, k // 32), dtype=np.int16)
    matrix = PackedMatrix(codes, scales, 8, 4, 32, k)
    x = rng.integers(-128, 128, k, dtype=np.int8)
    want = matvec(matrix, x, threads=1)
    results: list[bool] = []

    def call() -> None:
        results.extend(bool(np.array_equal(matvec(matrix, x), want)) for _ in range(50))

    callers = [threading.Thread(target=call) for _ in range(3)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert results == [True] * 150


def test_read_only_and_empty_operands() -> None:
    codes = np.frombuffer(bytes(range(64)), np.uint8).reshape(2, 32)
    scales = np.frombuffer(bytes(8), np.int16).reshape(2, 2)
    matrix = PackedMatrix(codes, scales, 8, 4, 32, 64)
    assert matvec(matrix, np.ones(64, np.int8)).tolist() == [0, 0]
    assert matmul(matrix, np.ones((0, 64), np.int8)).shape == (0, 2)
    empty = PackedMatrix(codes[:0], scales[:0], 8, 4, 32, 64)
    assert matvec(empty, np.ones(64, np.int8)).shape == (0,)


def test_strided_activations() -> None:
    rng = np.random.default_rng(3)
    q, scales, zero = make(rng, 4, 4, 128, 32, False, "random")
    matrix = PackedMatrix(pack(q, 4), scales, zero, 4, 32, 128)
    x = rng.integers(-128, 128, (256, 3), dtype=np.int8)[::2].T
    assert np.array_equal(matmul(matrix, x), expected(q, scales, zero, 32, x))


def test_wide_offsets_leave_room_for_fewer_elements() -> None:
    codes, scales = np.zeros((1, 1 << 14), np.uint8), np.ones((1, 1), np.int16)
    offsets = np.full((1, 1), (1 << 18) - 1, np.int32)
    x = np.full(1 << 15, 448 << 9)
    narrow = PackedMatrix(codes, scales, 8, 4, 1 << 15, 1 << 15, offsets, 19)
    assert matvec(narrow, x).tolist() == [-((1 << 18) + 7) * (448 << 9) << 15]
    with pytest.raises(OverflowError, match="may exceed"):
        matvec(PackedMatrix(codes, scales, 8, 4, 1 << 15, 1 << 15, offsets, 32), x)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bits": 3}, "2, 4 or 8"),
        ({"k": 0}, "1 to"),
        ({"group": 24}, "multiple of 16"),
        ({"zero": 256}, "0..255"),
        ({"codes": np.zeros((2, 31), np.uint8)}, "codes must be"),
        ({"codes": np.zeros((32, 2), np.uint8).T}, "C order"),
        ({"scales": np.zeros((2, 2), np.int32)}, "scales must be"),
        ({"zero": np.zeros((2, 1), np.uint8)}, "zero must be"),
        ({"offsets": np.zeros((2, 2), np.int64)}, "offsets must be"),
        ({"offsets": np.zeros((2, 1), np.int32)}, "offsets must be"),
        (
            {"zero": np.zeros((2, 2), np.uint8), "offsets": np.zeros((2, 2), np.int32)},
            "not both",
        ),
    ],
)
def test_wrong_operands_are_refused(change: dict[str, object], message: str) -> None:
    good: dict[str, object] = {
        "codes": np.zeros((2, 32), np.uint8),
        "scales": np.zeros((2, 2), np.int16),
        "zero": 8,
        "bits": 4,
        "group": 32,
        "k": 64,
    }
    matrix = PackedMatrix(**good)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=message):
        PackedMatrix(**(good | change))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="activations must be"):
        matvec(matrix, np.zeros(63, np.int8))
    with pytest.raises(ValueError, match="activations must be"):
        matvec(matrix, np.zeros(64, np.float32))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no path"):
        matvec(matrix, np.zeros(64, np.int8), path="avx1024")
    with pytest.raises(OverflowError, match="may exceed"):
        matvec(matrix, np.full(64, 1 << 50, np.int64))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("fmt", ["int8", "int16", "uint8", "fp8"])
def test_same_integers_as_the_reference(path: str, fmt: str) -> None:
    rng = np.random.default_rng(4)
    limits = FORMATS[fmt]
    for bits, zeros in ((2, False), (4, True), (8, False)):
        q, scales, zero = make(rng, bits, 20, 437, 64, zeros, "random")
        zero = zero % (1 << bits)
        if fmt == "fp8":
            # 0x7f and 0xff are not numbers.
            codes = rng.choice(np.delete(np.arange(256, dtype=np.uint8), [127, 255]), (3, 437))
        else:
            codes = rng.integers(limits.low, limits.high + 1, (3, 437)).astype(fmt)
        weights = Matrix(pack(q, bits), bits, 437, 64, zero, scales, 0)
        packed = PackedMatrix(weights.codes, weights.scales, zero, bits, 64, 437)
        y = matmul(packed, decode(codes, fmt), path=path)
        assert np.array_equal(y, dot(codes, weights, fmt))


def test_fork_leaves_the_child_able_to_compute() -> None:
    codes = np.full((512, 1024), 0x99, np.uint8)
    matrix = PackedMatrix(codes, np.ones((512, 64), np.int16), 8, 4, 32, 2048)
    x = np.ones(2048, np.int8)
    want = matvec(matrix, x)
    child = os.fork()
    if not child:
        os._exit(0 if np.array_equal(matvec(matrix, x), want) else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_backend_name_is_the_best_path() -> None:
    assert kernels.backend_name() == PATHS[0]
    assert PATHS[-1] == "generic"


def block_codes(
    rng: np.random.Generator, s: int, k: int, size: int, mode: str, halves: bool
) -> BlockCodes:
    """Codes with an exponent for each block of `size`, of which the last may be shorter."""
    shape = (s, -(-k // size))
    codes = rng.integers(-127, 128, (s, k), dtype=np.int8)
    exponents, half = rng.integers(0, 16, shape), rng.integers(0, 2, shape)
    if mode != "random":
        codes = np.full((s, k), -127, np.int8) if mode == "worst" else np.sign(codes) * np.int8(127)
        exponents = np.full(shape, 15) if mode == "worst" else rng.choice([0, 15], shape)
        half = half * (mode != "worst")
    return BlockCodes(codes, size, exponents, half if halves else None)


def stands_for(x: BlockCodes) -> np.ndarray:
    """Element by element, in Python's integers."""
    s, k = x.codes.shape
    found = np.empty((s, k), object)
    for token in range(s):
        for i in range(k):
            block = i // x.size
            step = 1 if x.halves is None else 4 - int(x.halves[token, block])
            found[token, i] = int(x.codes[token, i]) * step << int(x.exponents[token, block])
    return found


def check_blocks(
    path: str | None,
    bits: int,
    n: int,
    k: int,
    group: int,
    points: str,
    mode: str,
    x: BlockCodes,
    seed: int = 0,
) -> None:
    rng = np.random.default_rng(seed)
    q, scales, zero = make(rng, bits, n, k, group, points == "groups", mode)
    offsets = make_offsets(rng, scales.shape, mode) >> 8 if points == "offsets" else None
    matrix = PackedMatrix(pack(q, bits), scales, zero, bits, group, k, offsets, 24)
    y = matmul(matrix, x, path=path)
    assert y.dtype == np.int64
    want = expected(q, scales, zero, group, stands_for(x), offsets)
    assert np.array_equal(y.astype(object), want)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("group", [16, 32, 64, 128, 256, 48, 160, 10**6])
def test_blocks_in_every_layout(path: str, bits: int, group: int) -> None:
    seed = bits + group
    rng = np.random.default_rng(seed)
    for i, points in enumerate(("one", "groups", "offsets")):
        size, mode = (16, 32, 8)[(i + bits) % 3], ("random", "extreme", "worst")[(i + group) % 3]
        x = block_codes(rng, 1 + i, 544, size, mode, halves=bool((i + bits) % 2))
        check_blocks(path, bits, 3, 544, group, points, mode, x, seed)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 700),
    st.sampled_from([1, 2, 4, 8, 16, 32, 64, 128, 1024]),
    st.sampled_from([16, 32, 64, 128, 96, 1024]),
    st.sampled_from([2, 4, 8]),
    st.sampled_from(["one", "groups", "offsets"]),
    st.sampled_from(["random", "extreme", "worst"]),
    st.booleans(),
    st.integers(1, 6),
    st.sampled_from(PATHS),
)
def test_blocks_of_any_size(
    k: int,
    size: int,
    group: int,
    bits: int,
    points: str,
    mode: str,
    halves: bool,
    s: int,
    path: str,
) -> None:
    """Rows that end inside of blocks, groups, lanes and vectors; blocks smaller than lanes too."""
    x = block_codes(np.random.default_rng(k), s, k, size, mode, halves)
    check_blocks(path, bits, 2, k, group, points, mode, x, k)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("ends", [(0, 0), (-32767, 32767), (-32640, 32639), (32640, 32767)])
def test_wide_blocks(path: str, bits: int, ends: tuple[int, int]) -> None:
    """Codes of 16 bits, as far up and down as they go, of some blocks."""
    rng = np.random.default_rng(bits)
    for size, group in ((16, 32), (32, 128), (32, 10**6), (8, 48)):
        narrow = block_codes(rng, 3, 200, size, "random", halves=bits != 4)
        codes = narrow.codes.astype(np.int16)
        codes[:, 2 * size : 3 * size] = rng.choice([*ends, -1, 77], (3, size))
        exponents = narrow.exponents.copy()
        exponents[:, 2] %= 8
        x = replace(narrow, codes=codes, exponents=exponents)
        check_blocks(path, bits, 3, 200, group, "groups", "random", x)
    assert np.array_equal(stands_for(x), x.integers)


def test_the_longest_rows_of_blocks() -> None:
    """What a compile allows fits: 62 bits are exact, and a longer row is refused."""
    x = block_codes(np.random.default_rng(1), 1, 1 << 15, 32, "worst", halves=True)
    check_blocks(None, 8, 1, 1 << 15, 128, "one", "worst", x)
    matrix = PackedMatrix(
        np.zeros((1, 1 << 17), np.uint8), np.ones((1, 1), np.int16), 0, 8, 1 << 17, 1 << 17
    )
    with pytest.raises(OverflowError, match="may exceed"):
        matmul(matrix, block_codes(np.random.default_rng(1), 1, 1 << 17, 32, "worst", True))


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 1300),
    st.sampled_from([0, 8, 16, 32, 64, 1024]),
    st.sampled_from([16, 32, 64, 128, 256, 512, 768, 2048]),
    st.sampled_from([2, 4]),
    st.booleans(),
    st.sampled_from(["random", "extreme", "worst"]),
    st.integers(1, 5),
    st.sampled_from(PATHS),
)
def test_chunks_in_pairs(
    k: int, size: int, group: int, bits: int, zeros: bool, mode: str, s: int, path: str
) -> None:
    """Zero points within the codes' range, for a matrix and for groups, with blocks and without;
    the largest sums that words and their products have."""
    rng = np.random.default_rng(k)
    q, scales, _ = make(rng, bits, 3, k, group, False, mode)
    top = (1 << bits) - 1
    zero = rng.integers(0, top + 1, scales.shape, np.uint8)
    if mode != "random":
        zero = np.where(q[:, ::group] == top, 0, top).astype(np.uint8)
    points = zero if zeros else int(zero[0, 0])
    matrix = PackedMatrix(pack(q, bits), scales, points, bits, group, k)
    if size:
        x = block_codes(rng, s, k, size, mode, halves=bool(k % 2))
        codes = stands_for(x)
    else:
        x = codes = activations(rng, "int8", s, k, mode)
    y = matmul(matrix, x, path=path)
    assert np.array_equal(y.astype(object), expected(q, scales, points, group, codes))


def test_which_chunks_go_in_pairs() -> None:
    """Where the words have room, and a block is two lanes or more."""
    path = kernels.choose_path("generic")

    def paired(bits: int, group: int, zero: int, block: int = 0) -> bool:
        codes = np.zeros((1, 96 * bits), np.uint8)
        scales = np.ones((1, -(-768 // group)), np.int16)
        matrix = PackedMatrix(codes, scales, zero, bits, group, 768)
        return kernels._plan(matrix, path, block).paired

    assert paired(4, 32, 8)
    assert paired(4, 32, 15, 16)
    assert not paired(4, 32, 8, 8)
    assert paired(4, 128, 8, 32)
    assert not paired(4, 128, 8)
    assert not paired(4, 192, 8, 32)
    assert paired(4, 768, 8, 32)
    assert paired(2, 32, 1, 32)
    assert not paired(2, 32, 1, 16)
    assert not paired(4, 32, 16)
    assert not paired(8, 32, 128)


@pytest.mark.parametrize("fmt", [name for name, one in FORMATS.items() if one.by_block])
@pytest.mark.parametrize(("bits", "group"), [(2, 128), (4, 32), (4, 512), (8, 64)])
def test_blocks_give_the_integers_of_the_reference(fmt: str, bits: int, group: int) -> None:
    rng = np.random.default_rng(bits)
    values = rng.integers(-(1 << 20), 1 << 20, (3, 512)) >> rng.integers(0, 12, (3, 512))
    x = quantize_blocks(values, fmt, 32, 16, integer_fraction(16, 4, FORMATS[fmt].steps))
    assert x.blocks is not None
    assert np.array_equal(x.blocks.integers, x.codes)
    q, scales, zero = make(rng, bits, 5, 512, group, True, "random")
    assert isinstance(zero, np.ndarray)
    zero = zero & ((1 << bits) - 1)
    packed = pack(q, bits)
    y = matmul(PackedMatrix(packed, scales, zero, bits, group, 512), x.blocks)
    want = dot(x.codes, Matrix(packed, bits, 512, group, zero, scales, 0), fmt)
    assert np.array_equal(y, want)
