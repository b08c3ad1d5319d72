"""The vector kernels against the functions of `semantics` that they stand in for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from intaglio.dialects import semantics
from intaglio.dialects.fixed_point import Real, Saturations, Scale
from intaglio.dialects.formats import FORMATS
from intaglio.dialects.formulas.blocks import LEAST_AT_MOST, integer_fraction
from intaglio.dialects.formulas.elementwise import ELEMENTWISE, Constants
from intaglio.dialects.formulas.heads import HALF, WHOLE
from intaglio.dialects.semantics import BlockCodes
from intaglio.runtime.engines import kernels, vector_kernels

LEADS = ((), (1,), (3,), (2, 2))
WIDTHS = (1, 2, 7, 8, 9, 16, 40, 67)
EXTREMES = (0, 1, -1, 2**31 - 1, -(2**31), 2**24 - 1, 2**24, 2**16, -(2**16))

PATHS = kernels.path_names()


@pytest.fixture(params=[PATHS[0], PATHS[-1]] if len(PATHS) > 1 else PATHS)
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The best code path of this CPU and the plainest one."""
    name: str = request.param
    monkeypatch.setattr(vector_kernels, "choose_path", lambda _: kernels.choose_path(name))
    vector_kernels._kernel.cache_clear()
    yield name
    vector_kernels._kernel.cache_clear()


examples = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


class Source:
    """Random operands from one seed."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def pick(self, *options: Any) -> Any:
        return options[int(self.rng.integers(len(options)))]

    def lead(self) -> tuple[int, ...]:
        return self.pick(*LEADS)

    def width(self) -> int:
        return self.pick(*WIDTHS)

    def fixed(self, *shape: int) -> np.ndarray:
        """Fixed values: of some magnitude, extreme, or all zero."""
        kind = self.pick("plain", "plain", "small", "extreme", "edges", "zero")
        if kind == "zero":
            return np.zeros(shape, np.int64)
        if kind == "edges":
            return self.rng.choice(np.array([-(2**31), 2**31 - 1]), shape)
        if kind == "extreme":
            return self.rng.choice(np.array(EXTREMES), shape)
        bits = int(self.rng.integers(1, 6 if kind == "small" else 32))
        return self.rng.integers(-(1 << bits), 1 << bits, shape).clip(-(2**31), 2**31 - 1)

    def scale(self, *shape: int) -> Scale:
        """Scales, some of them 0; mostly of like size."""
        mantissa = self.rng.integers(1 << 23, 1 << 24, shape)
        mantissa = np.where(self.rng.random(shape) < 0.1, 0, mantissa)
        spread = self.pick(1, 4, 60)
        exponent = self.rng.integers(-spread, spread + 1, shape) + self.pick(0, 12, 30)
        return Scale(np.asarray(mantissa, np.int64), np.asarray(exponent, np.int64))

    def real(self) -> Real:
        value = Real.of(float(self.rng.uniform(0.5, 1) * 2.0 ** self.rng.integers(-12, 12)))
        return Real(self.pick(1, -1) * value.mantissa, value.exponent)

    def codes(self, fmt: str, *shape: int) -> np.ndarray:
        form = FORMATS[fmt]
        if self.pick(True, False):
            return self.rng.choice(np.array([form.low, form.high]), shape)
        return self.rng.integers(form.low, form.high + 1, shape)


def same(got: Any, expected: Any) -> None:
    if isinstance(expected, tuple):
        assert type(got) is type(expected)
        for a, b in zip(got, expected, strict=True):
            same(a, b)
        return
    if isinstance(expected, BlockCodes):
        assert isinstance(got, BlockCodes)
        assert got.size == expected.size
        for part in ("codes", "exponents", "halves"):
            same(getattr(got, part), getattr(expected, part))
        return
    if expected is None or isinstance(expected, str):
        assert got == expected
        return
    assert got.dtype == expected.dtype
    np.testing.assert_array_equal(got, expected, strict=True)


def check(name: str, *arguments: Any, counted: bool = True, **options: Any) -> None:
    """Both functions on the same arguments: results and saturations."""
    counters = [Saturations(), Saturations()]
    results = []
    for module, counter in zip((semantics, vector_kernels), counters, strict=True):
        function: Callable[..., Any] = getattr(module, name)
        more = {"saturations": counter} if counted else {}
        results.append(function(*arguments, **more, **options))
    same(results[1], results[0])
    assert counters[1].count == counters[0].count


seeds = st.integers(0, 2**32)


@given(seeds)
@examples
def test_quantize(path: str, seed: int) -> None:
    s = Source(seed)
    fmt, groups = s.pick(*FORMATS), s.pick(1, 2, 5)
    x = s.fixed(*s.lead(), groups * s.width())
    if FORMATS[fmt].low == 0:
        x = np.abs(x)
    check("quantize", x, fmt, s.pick(0, 10, 16, 24), groups, counted=False)
    check("quantize_static", x, fmt, s.real(), s.pick(0, 8, 16))


@given(seeds)
@examples
def test_requantize(path: str, seed: int) -> None:
    s = Source(seed)
    lead, groups = s.lead(), s.pick(1, 1, 4)
    n = groups * s.width()
    shift = s.pick(0, 0, 3, 22)
    y = s.fixed(*lead, n) * (1 << s.pick(0, 7 + shift))
    scale = s.scale() if s.pick(True, False) else s.scale(*lead, groups)
    bias = s.fixed(n) if s.pick(True, False) else None
    residual = s.fixed(*lead, n) if s.pick(True, False) else None
    check("requantize", y, scale, s.pick(-4, 0, 9), shift, s.pick(8, 16), bias, residual)


@given(seeds)
@examples
def test_norms(path: str, seed: int) -> None:
    s = Source(seed)
    groups, n = s.pick(1, 3), s.width()
    x = s.fixed(*s.lead(), groups * n)
    gamma = s.rng.integers(-32768, 32768, n if s.pick(True, False) else groups * n)
    gamma = gamma.astype(s.pick(np.int16, np.int64))
    eps = s.pick(Real.of(1e-5), Real.of(1e-12), Real.of(1.0), Real(0, 0))
    exponent, fractions = s.pick(0, 8, 14, 20), (s.pick(10, 16, 20), s.pick(10, 16))
    check("norm", x, gamma, exponent, eps, *fractions, groups)
    beta = s.fixed(groups * n) if s.pick(True, False) else None
    check("norm", x, gamma, exponent, eps, *fractions, groups, centred=True, beta=beta)


@given(seeds)
@examples
def test_blocks(path: str, seed: int) -> None:
    """Integers of blocks, and how many of them their window does not reach."""
    s = Source(seed)
    fmt, block = s.pick("half8", "mxint8"), s.pick(1, 2, 8, 16, 32, 64)
    x = s.fixed(*s.lead(), s.pick(1, 2, 5) * block)
    low = s.pick(0, 2, 4, 9, LEAST_AT_MOST)
    frac = s.pick(10, 16, 20)
    fraction = integer_fraction(frac, low, FORMATS[fmt].steps)
    check("quantize_blocks", x, fmt, block, frac, fraction)
    wide = {n for n in range(x.shape[-1] // block) if s.pick(0, 1)}
    check("quantize_blocks", x, fmt, block, frac, fraction, wide=wide)
    # Ties of all exponents, and the magnitudes where a step changes.
    edges = np.array([(765 << e) // 8 + d for e in range(24) for d in (-1, 0, 1)])
    ties = np.array([(2 * c + 1 << e) >> 1 for e in range(22) for c in (-64, 63, 126)])
    both = np.concatenate([edges, -edges, ties]).clip(-(2**31), 2**31 - 1)
    for one in (both, np.repeat(both, block)):
        check("quantize_blocks", one, fmt, block, frac, fraction)
        every = range(-(-one.shape[-1] // block))
        check("quantize_blocks", one, fmt, block, frac, fraction, wide=every)


@given(seeds)
@examples
def test_quantize_heads(path: str, seed: int) -> None:
    s = Source(seed)
    groups = s.pick(1, 2, 3)
    x = s.fixed(*s.lead(), groups * s.pick(*WIDTHS))
    check("quantize_heads", x, "half8", s.pick(8, 16, 30), groups, counted=False)
    edges = np.array([(765 << e) // 8 + d for e in range(25) for d in (-1, 0, 1)])
    check("quantize_heads", edges.clip(-(2**31), 2**31 - 1), "half8", 16, 25, counted=False)


@given(seeds)
@examples
def test_rms_scale(path: str, seed: int) -> None:
    s = Source(seed)
    x = s.fixed(*s.lead(), s.pick(*WIDTHS, 1000))
    eps = s.pick(Real.of(1e-5), Real.of(1e-12), Real.of(1.0), Real(0, 0), Real.of(3e3))
    check("rms_scale", x, eps, s.pick(8, 10, 16), counted=False)


@given(seeds)
@examples
def test_elementwise(path: str, seed: int) -> None:
    s = Source(seed)
    shape = (*s.lead(), s.width())
    a, b = s.fixed(*shape), s.fixed(*shape)
    frac, into = s.pick(12, 16, 20), s.pick(8, 16, 24)
    for one in ELEMENTWISE.values():
        fractions = (frac, s.pick(0, 16))[: one.operands]
        c = one.constants(fractions, into, [s.real() for _ in range(one.reals)])
        check("elementwise", one, (a, b)[: one.operands], c)
    for other in (b[..., :1], b.reshape(-1, shape[-1])[0]):
        check("elementwise", ELEMENTWISE["mul"], (a, other), Constants(second_shift=16))


@given(seeds)
@examples
def test_rotary(path: str, seed: int) -> None:
    s = Source(seed)
    lead, heads, half = s.lead(), s.pick(1, 3), s.pick(1, 4, 8, 19)
    x = s.fixed(*lead, heads * (2 * half + s.pick(0, 0, 6)))
    cos, sin = (s.rng.integers(-16384, 16385, (*lead, half)).astype(np.int16) for _ in range(2))
    check("rotary", x, cos, sin, heads, s.pick(True, False), table_frac=s.pick(14, 14, 11, 3))


@given(seeds)
@settings(examples, max_examples=10)
def test_products_with_caches(path: str, seed: int) -> None:
    s = Source(seed)
    # Few shapes: each has kernels of its own.
    width, shared, dtype = s.pick((7, 1, "int8"), (96, 4, "int8"), (80, 3, "int16"))
    kv_heads, tokens, lead = s.pick(1, 2), s.pick(1, 2, 3, 4, 17), s.lead()
    cache = s.codes(dtype, kv_heads, tokens + 6, width).astype(dtype)
    seen = cache[:, 2 : 2 + tokens]
    q_format = s.pick("int8", dtype, "uint8")
    q = s.codes(q_format, *lead, kv_heads * shared, width)
    check("query_key", q, seen, q_format, dtype, counted=False)
    p_format = s.pick("uint8", "uint8", "uint16")
    p = s.codes(p_format, *lead, kv_heads * shared, tokens)
    check("weighted_sum", p, seen, p_format, dtype, counted=False)


@given(seeds)
@settings(examples, max_examples=10)
def test_each_token_sees_those_before_it(path: str, seed: int) -> None:
    s = Source(seed)
    kv_heads, shared, tokens, width = 2, 3, s.pick(1, 2, 5, 18), 16
    heads, cached = kv_heads * shared, tokens + s.pick(0, 3)
    window = s.pick(0, 1, 4)
    keys = s.codes("int8", kv_heads, cached, width).astype(np.int8)
    q = s.codes("int8", tokens, heads, width)
    check("query_key", q, keys, "int8", "int8", window, counted=False)
    seen = semantics.seen_of_last(tokens, cached, window)
    dots = s.fixed(tokens, heads, cached) * seen[:, None]
    scales, factor = s.scale(kv_heads, cached), Real.of(float(s.rng.uniform(0.01, 4)))
    check("score_scale", dots, s.scale(tokens, heads), scales, factor, 0, window=window)
    scores, sink = s.fixed(tokens, heads, cached), s.fixed(heads) if s.pick(True, False) else None
    fmt = s.pick("uint8", "uint16")
    check("softmax", scores, scales, fmt, None, sink, window, counted=False)
    steps = Scale(np.full(scales.exponent.shape, WHOLE), scales.exponent)
    check("softmax_places", scores, steps, "places8", None, sink, window, counted=False)
    made, _ = vector_kernels.softmax(scores, scales, fmt, None, sink, window)
    same(made, semantics.softmax(scores, scales, fmt, seen, sink)[0])
    check("weighted_sum", made.codes, keys, fmt, "int8", window, counted=False)


def test_products_fall_back() -> None:
    s = Source(0)
    q, keys = s.codes("int8", 4, 16), s.rng.integers(0, 120, (2, 5, 16)).astype(np.uint8)
    check("query_key", q, keys, "int8", "fp8", counted=False)
    p = s.codes("uint8", 4, 5)
    check("weighted_sum", p, keys, "uint8", "fp8", counted=False)


def test_longest_sum_of_bytes() -> None:
    tokens = 1 << 16
    p, v = np.full((1, 1, tokens), 255), np.full((1, tokens, 16), -128, np.int8)
    assert (vector_kernels.weighted_sum(p, v) == -128 * 255 * tokens).all()


@given(seeds)
@examples
def test_scores(path: str, seed: int) -> None:
    s = Source(seed)
    kv_heads, shared, tokens, lead = s.pick(1, 2), s.pick(1, 3), s.width(), s.lead()
    heads = kv_heads * shared
    dots = s.fixed(*lead, heads, tokens) * (1 << s.pick(0, 7))
    scales = [s.scale(kv_heads, tokens + 3), s.scale(kv_heads, 1), s.scale()]
    of_keys = s.pick(*scales)
    if of_keys is scales[0]:
        of_keys = Scale(of_keys.mantissa[:, 3:], of_keys.exponent[:, 3:])
    factor = Real.of(float(s.rng.uniform(0.01, 4)))
    check("score_scale", dots, s.scale(*lead, heads), of_keys, factor, s.pick(0, 3))
    scores = s.fixed(*lead, heads, tokens)
    mask = s.rng.random((*lead, tokens)) < s.pick(0, 0.5, 1) if s.pick(True, False) else None
    sink = s.fixed(heads) if s.pick(True, False) else None
    fmt = s.pick("uint8", "uint16")
    check("softmax", scores, of_keys, fmt, mask, sink, counted=False)
    halves = s.rng.integers(0, 2, np.shape(of_keys.exponent)) if np.ndim(of_keys.exponent) else 0
    steps = Scale(np.where(halves, HALF, WHOLE), of_keys.exponent)
    check("softmax_places", scores, steps, "places8", mask, sink, counted=False)
    check("reciprocal_scale", np.abs(scores) + 1, counted=False)
    check("multiply", s.scale(*lead, heads), s.scale(*lead, heads), counted=False)
    check("multiply", s.scale(*lead, heads), s.scale(), counted=False)


def test_empty_and_read_only() -> None:
    empty = np.zeros((2, 0), np.int64)
    check("elementwise", ELEMENTWISE["silu"], (empty,), Constants())
    check("requantize", empty, Scale.of(1.0), 0, 0)
    x = np.arange(24).reshape(2, 12)
    x.setflags(write=False)
    check("quantize", x[:, ::2], "int8", 16, 2, counted=False)
    check("norm", x[:, :8], np.arange(8), 3, Real.of(1e-5))
    check("quantize_blocks", x[:, ::3], "half8", 2)
    check("quantize_blocks", empty, "mxint8", 4)
    check("quantize_heads", x[:, ::3], "half8", 16, 2, counted=False)
    check("rms_scale", x[:, ::2], Real.of(1e-5), counted=False)
    with pytest.raises(ValueError, match="elements"):
        vector_kernels.norm(np.ones((1, 1 << 15), np.int64), x, 0, Real(0, 0))


def test_stands_in_for_semantics() -> None:
    assert all(hasattr(semantics, name) for name in vector_kernels.__all__)
    assert all(hasattr(vector_kernels, name) for name in vector_kernels.__all__)


def test_edges_of_rounding() -> None:
    """Products of scales that round up to 2**24, and the last values that FP8 does not clip."""
    a = np.arange(11_863_283, 11_863_783)
    b = ((1 << 47) - 1) // a
    zero = np.zeros_like(a)
    check("multiply", Scale(a, zero), Scale(b, zero), counted=False)
    assert (semantics.multiply(Scale(a, zero), Scale(b, zero)).mantissa == (1 << 24) - 1).any()
    x = np.arange(-9, 10) + np.array([[464 << 17], [-464 << 17], [448 << 17]])
    check("quantize_static", x, "fp8", Real(1, 0), 8)
