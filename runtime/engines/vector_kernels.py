"""The vector functions of `dialects/semantics.py`, compiled just in time.

This module can stand in for `semantics`: its functions have the same names, take the same
arguments and give the same integers and the same saturation counts. What no kernel covers (shapes
that broadcast in unusual ways, FP8 caches, empty vectors) goes to `semantics` itself.

Decoding one token calls some thousand functions on a few thousand elements each, so the work around
a call counts as much as the kernel; numpy needs ten to thirty passes over the elements for each.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Collection, Sequence
from functools import cache

import numpy as np
import numpy.typing as npt

from intaglio.dialects import fixed_point, semantics
from intaglio.dialects.fixed_point import Ints, Real, Saturations, Scale
from intaglio.dialects.formats import FORMATS
from intaglio.dialects.formulas.blocks import least_exponent
from intaglio.dialects.formulas.elementwise import ADD, MUL, Constants, Elementwise
from intaglio.dialects.formulas.norms import norm_epsilon, norm_values
from intaglio.dialects.formulas.products import ROTARY_FRAC
from intaglio.dialects.formulas.quantise import format_values
from intaglio.dialects.formulas.softmax import PROBABILITY_FRAC
from intaglio.dialects.semantics import BlockCodes, Quantized, argmax, attention_mask, dot, embed
from intaglio.runtime.engines import vector_code
from intaglio.runtime.engines.kernel_code import compile_module
from intaglio.runtime.engines.kernels import choose_path
from intaglio.runtime.engines.workers import address

__all__ = [
    "argmax",
    "attention_mask",
    "dot",
    "elementwise",
    "embed",
    "multiply",
    "norm",
    "quantize",
    "quantize_blocks",
    "quantize_heads",
    "quantize_static",
    "query_key",
    "reciprocal_scale",
    "requantize",
    "rms_scale",
    "rotary",
    "score_scale",
    "softmax",
    "softmax_places",
    "weighted_sum",
]

IntArray = npt.NDArray[np.integer]

_HEAD_WIDTH = 1024
"""Widest head that the attention kernels take: they are unrolled over a head."""
_BYTE_TOKENS = 1 << 16
"""Most products of a byte and an int8 that an int32 holds: 2**16 * 255 * 128 < 2**31."""
_ROWS = 4
"""Most rows that share one pass over the cache: their accumulators stay in registers."""


@cache
def _kernel(name: str, *variant: int | str) -> Callable[[int], None]:
    """The compiled kernel; it takes the address of its arguments."""
    path = choose_path(None)
    return compile_module(path, vector_code.emit(path, name, *variant))


def _run(kernel: Callable[[int], None], saturations: Saturations | None, *block: int) -> None:
    """Calls a kernel; the block begins with the place of the saturations."""
    arguments = array("q", block)
    kernel(arguments.buffer_info()[0])
    if saturations is not None:
        saturations.count += arguments[0]


def _plain(constants: tuple[int, ...]) -> tuple[int, ...]:
    """Constants as the numbers they are: type checkers cannot unpack generic named tuples."""
    return constants


def _ints(x: npt.ArrayLike) -> Ints:
    return np.ascontiguousarray(x, np.int64)


# Quantisation


def quantize(x: Ints, fmt: str, frac: int = 16, groups: int = 1) -> Quantized:
    """`semantics.quantize`."""
    x = np.asarray(x)
    if not x.size or not x.ndim or x.shape[-1] % groups:
        return semantics.quantize(x, fmt, frac, groups)
    kernel = _kernel("quantize", fmt == "fp8")
    return _of_groups(kernel, x, fmt, groups, frac, *_plain(format_values(fmt)))


def quantize_static(
    x: Ints,
    fmt: str,
    inverse: Real,
    frac: int = 16,
    saturations: Saturations | None = None,
) -> Ints:
    """`semantics.quantize_static`."""
    fp8, form = fmt == "fp8", FORMATS[fmt]
    shift = inverse.exponent + frac - (8 if fp8 else 0)
    constants = inverse.mantissa, shift, form.low, form.high
    return _elementwise(_kernel("quantize_static", fp8), (x,), constants, saturations)


def quantize_blocks(
    x: Ints,
    fmt: str,
    block: int,
    frac: int = 16,
    fraction: int = 16,
    saturations: Saturations | None = None,
    wide: Collection[int] = (),
) -> Quantized:
    """`semantics.quantize_blocks`."""
    x, steps = np.asarray(x), FORMATS[fmt].steps
    if not x.size or not x.ndim:
        return semantics.quantize_blocks(x, fmt, block, frac, fraction, saturations, wide)
    source, width = _ints(x), x.shape[-1]
    integers = np.empty(x.shape, np.int64)
    codes = np.empty(x.shape, np.int16 if wide else np.int8)
    blocks = (*x.shape[:-1], -(-width // block))
    exponents, halves = np.empty(blocks, np.int64), np.empty(blocks, np.int64)
    mask = semantics.wide_mask(wide, blocks[-1])
    given = (address(mask),) if wide else ()
    _run(
        _kernel("quantize_blocks", steps, bool(wide)),
        saturations,
        0,
        address(source),
        address(integers),
        address(codes),
        address(exponents),
        address(halves),
        *given,
        x.size // width,
        blocks[-1],
        block,
        width,
        least_exponent(frac, fraction, steps),
    )
    made = BlockCodes(codes, block, exponents, None if steps == 1 else halves)
    return Quantized(integers, semantics.unit_scale(x.shape, fraction), fmt, made)


def quantize_heads(x: Ints, fmt: str, frac: int = 16, groups: int = 1) -> Quantized:
    """`semantics.quantize_heads`."""
    x = np.asarray(x)
    if not x.size or not x.ndim or x.shape[-1] % groups:
        return semantics.quantize_heads(x, fmt, frac, groups)
    return _of_groups(_kernel("quantize_heads"), x, fmt, groups, frac)


def _of_groups(
    kernel: Callable[[int], None], x: Ints, fmt: str, groups: int, *constants: int
) -> Quantized:
    """Codes and a scale of each group, as a kernel makes them."""
    source = _ints(x)
    codes = np.empty(x.shape, np.int64)
    rows = (*x.shape[:-1], groups)
    mantissa, exponent = np.empty(rows, np.int64), np.empty(rows, np.int64)
    results = address(codes), address(mantissa), address(exponent)
    width = x.shape[-1] // groups
    _run(kernel, None, 0, address(source), *results, mantissa.size, width, *constants)
    return Quantized(codes, Scale(mantissa, exponent), fmt)


def requantize(
    y: Ints,
    scale: Scale,
    exponent: int,
    shift: int,
    out_frac: int = 16,
    bias: Ints | None = None,
    residual: Ints | None = None,
    saturations: Saturations | None = None,
) -> Ints:
    """`semantics.requantize`."""
    y = np.asarray(y)
    mantissa = scale.mantissa
    one = mantissa.size == 1
    groups = 1 if one else mantissa.shape[-1]
    if (
        not (y.size and y.ndim)
        or y.shape[-1] % groups
        or mantissa.shape != scale.exponent.shape
        or (mantissa.ndim > y.ndim if one else mantissa.shape[:-1] != y.shape[:-1])
        or (bias is not None and bias.shape != y.shape[-1:])
        or (residual is not None and residual.shape != y.shape)
    ):
        return semantics.requantize(
            y, scale, exponent, shift, out_frac, bias, residual, saturations
        )
    source, mantissa, power = _ints(y), _ints(mantissa), _ints(scale.exponent)
    # An absent operand has the address of another one, and is not read.
    added = source if bias is None else _ints(bias)
    stream = source if residual is None else _ints(residual)
    result = np.empty(y.shape, np.int64)
    kernel = _kernel("requantize", bias is not None, residual is not None)
    _run(
        kernel,
        saturations,
        0,
        address(source),
        address(result),
        address(mantissa),
        address(power),
        address(added),
        address(stream),
        0 if one else 1,
        y.size // y.shape[-1],
        groups,
        y.shape[-1] // groups,
        shift,
        exponent - shift - out_frac,
    )
    return result


# Norms


def norm(
    x: Ints,
    gamma: IntArray,
    gamma_exponent: int,
    eps: Real,
    frac: int = 16,
    out_frac: int = 16,
    groups: int = 1,
    saturations: Saturations | None = None,
    *,
    centred: bool = False,
    beta: Ints | None = None,
) -> Ints:
    """`semantics.norm`."""
    width = x.shape[-1] // groups
    if not x.size or x.shape[-1] % groups or gamma.shape not in ((width,), x.shape[-1:]):
        return semantics.norm(
            x,
            gamma,
            gamma_exponent,
            eps,
            frac,
            out_frac,
            groups,
            saturations,
            centred=centred,
            beta=beta,
        )
    source, weight = _ints(x), _ints(gamma)
    result = np.empty(x.shape, np.int64)
    more = gamma_exponent - out_frac
    _run(
        _kernel("norm", centred),
        saturations,
        0,
        address(source),
        address(result),
        address(weight),
        0 if gamma.size == width else width,
        x.size // x.shape[-1],
        groups,
        width,
        *_plain(norm_values(eps, width, frac, centred, more)),
    )
    if beta is None:
        return result
    return semantics.operator(ADD.name, result, beta, saturations=saturations)


def rms_scale(x: Ints, eps: Real, frac: int = 16) -> Scale:
    """`semantics.rms_scale`."""
    x = np.asarray(x)
    if not x.size or not x.ndim:
        return semantics.rms_scale(x, eps, frac)
    source, n = _ints(x), x.shape[-1]
    rows = (*x.shape[:-1], 1)
    mantissa, exponent = np.empty(rows, np.int64), np.empty(rows, np.int64)
    _run(
        _kernel("rms_scale"),
        None,
        0,
        address(source),
        address(mantissa),
        address(exponent),
        mantissa.size,
        n,
        norm_epsilon(eps, n, frac),
        frac,
    )
    return Scale(mantissa, exponent)


# Attention


def rotary(
    x: Ints,
    cos: IntArray,
    sin: IntArray,
    heads: int,
    interleaved: bool = False,
    saturations: Saturations | None = None,
    table_frac: int = ROTARY_FRAC,
) -> Ints:
    """`semantics.rotary`."""
    half = cos.shape[-1]
    if (
        not x.size
        or x.shape[-1] % heads
        or 2 * half * heads > x.shape[-1]
        or cos.shape != sin.shape
        or cos.shape[:-1] != x.shape[:-1]
        or cos.dtype != np.int16
        or sin.dtype != np.int16
    ):
        return semantics.rotary(x, cos, sin, heads, interleaved, saturations, table_frac)
    source, cos, sin = _ints(x), np.ascontiguousarray(cos), np.ascontiguousarray(sin)
    result = np.empty(x.shape, np.int64)
    _run(
        _kernel("rotary", interleaved),
        saturations,
        0,
        address(source),
        address(result),
        address(cos),
        address(sin),
        x.size // x.shape[-1],
        heads,
        x.shape[-1] // heads,
        half,
        table_frac,
    )
    return result


def query_key(
    q: IntArray,
    k: IntArray,
    q_format: str = "int8",
    k_format: str = "int8",
    window: int | None = None,
) -> Ints:
    """`semantics.query_key`; int8 and int16 keys are read where they lie."""
    if not _covers(q, k, q.shape[-1], q_format, k_format) or k.shape[-1] != q.shape[-1]:
        return semantics.query_key(q, k, q_format, k_format, window)
    narrow = k.itemsize == 1 and FORMATS[q_format].low < 0 and FORMATS[q_format].bits <= 8
    width = q.shape[-1]
    source, result = _ints(q), _result((*q.shape[:-1], k.shape[1]), window)
    rows = _shared_rows(q.shape[-2] // k.shape[0])
    seen = _seen(window)
    kernel = _kernel("query_key", width, rows, 8 * k.itemsize, narrow, bool(seen))
    _run(kernel, None, 0, address(source), address(result), *_cache_shape(q, k, rows), *seen)
    return result


def weighted_sum(
    p: IntArray,
    v: IntArray,
    p_format: str = "uint8",
    v_format: str = "int8",
    window: int | None = None,
) -> Ints:
    """`semantics.weighted_sum`; int8 and int16 values are read where they lie."""
    width, tokens = v.shape[-1], p.shape[-1]
    if not _covers(p, v, width, p_format, v_format) or v.shape[1] != tokens:
        return semantics.weighted_sum(p, v, p_format, v_format, window)
    source, result = _ints(p), np.empty((*p.shape[:-1], width), np.int64)
    rows = _shared_rows(p.shape[-2] // v.shape[0])
    addresses = address(source), address(result)
    shape, windowed = (*_cache_shape(p, v, rows), *_seen(window)), window is not None
    if p_format == "uint8" and v.itemsize == 1 and tokens <= _BYTE_TOKENS:
        stride = -(-tokens // 4) * 4
        scratch = np.zeros(p.size // tokens * stride, np.uint8)
        kernel = _kernel("weighted_sum_bytes", width, rows, windowed)
        _run(kernel, None, 0, *addresses, address(scratch), stride, *shape)
    else:
        kernel = _kernel("weighted_sum", width, rows, 8 * v.itemsize, windowed)
        _run(kernel, None, 0, *addresses, *shape)
    return result


def _seen(window: int | None) -> tuple[int, ...]:
    """The last argument of a kernel where each of the last tokens sees those before it."""
    return () if window is None else (window,)


def _result(shape: tuple[int, ...], window: int | None) -> Ints:
    """Room for what a kernel writes, which leaves out what is not seen."""
    return np.empty(shape, np.int64) if window is None else np.zeros(shape, np.int64)


def _covers(a: IntArray, cached: IntArray, width: int, *formats: str) -> bool:
    """Whether an attention kernel takes [..., heads, I] by [kv_heads, T, D] of those formats."""
    return (
        a.size > 0
        and cached.size > 0
        and cached.dtype in (np.int8, np.int16)
        and cached.strides[-1] == cached.itemsize
        and a.shape[-2] % cached.shape[0] == 0
        and width <= _HEAD_WIDTH
        and "fp8" not in formats
    )


def _shared_rows(shared: int) -> int:
    """How many of the query heads that share a key head go over the cache together."""
    return next(rows for rows in range(_ROWS, 0, -1) if shared % rows == 0)


def _cache_shape(a: IntArray, cached: IntArray, rows: int) -> tuple[int, ...]:
    """What the attention kernels know of a cache and of what meets it.

    Address, batch, kv_heads, blocks of rows, T, bytes from head to head and from token to token.
    """
    heads, kv_heads = a.shape[-2], cached.shape[0]
    batch = a.size // (heads * a.shape[-1])
    blocks = heads // kv_heads // rows
    shape = batch, kv_heads, blocks, cached.shape[1]
    # The first row has the address of the whole, and is contiguous.
    return address(cached[0, 0]), *shape, *cached.strides[:2]


def _per_token(scale: Scale, tokens: int) -> tuple[Ints, Ints, int]:
    """Mantissas and exponents [kv_heads, tokens], and the elements from head to head."""
    mantissa, exponent = np.atleast_2d(scale.mantissa), np.atleast_2d(scale.exponent)
    if (
        mantissa.shape[1] == tokens
        and mantissa.strides == exponent.strides
        and mantissa.strides[1] == mantissa.itemsize
        and mantissa.dtype == exponent.dtype == np.int64
    ):
        return mantissa, exponent, mantissa.strides[0] // mantissa.itemsize
    shape = mantissa.shape[0], tokens
    return (
        _ints(np.broadcast_to(mantissa, shape)),
        _ints(np.broadcast_to(exponent, shape)),
        tokens,
    )


def score_scale(
    dots: Ints,
    q_scale: Scale,
    k_scale: Scale,
    factor: Real,
    shift: int,
    saturations: Saturations | None = None,
    window: int | None = None,
) -> Ints:
    """`semantics.score_scale`."""
    dots = np.asarray(dots)
    if not dots.size or q_scale.mantissa.shape != dots.shape[:-1]:
        return semantics.score_scale(dots, q_scale, k_scale, factor, shift, saturations, window)
    heads, tokens = dots.shape[-2:]
    key_mantissa, key_exponent, stride = _per_token(k_scale, tokens)
    kv_heads = key_mantissa.shape[0]
    source, mantissa, exponent = _ints(dots), _ints(q_scale.mantissa), _ints(q_scale.exponent)
    result, seen = _result(dots.shape, window), _seen(window)
    _run(
        _kernel("score_scale", bool(seen)),
        saturations,
        0,
        address(source),
        address(result),
        address(mantissa),
        address(exponent),
        address(key_mantissa[0]),
        address(key_exponent[0]),
        stride,
        factor.mantissa,
        factor.exponent,
        dots.size // (heads * tokens),
        kv_heads,
        heads // kv_heads,
        tokens,
        shift,
        *seen,
    )
    return result


def softmax(
    scores: Ints,
    v_scale: Scale,
    fmt: str = "uint8",
    mask: npt.NDArray[np.bool_] | None = None,
    sink: Ints | None = None,
    window: int | None = None,
) -> tuple[Quantized, Ints]:
    """`semantics.softmax`."""
    scores = np.asarray(scores)
    if not scores.size or FORMATS[fmt].low < 0:
        return semantics.softmax(scores, v_scale, fmt, mask, sink, window)
    return _softmax(
        "softmax", scores, v_scale, fmt, mask, sink, window, *_plain(format_values(fmt))
    )


def softmax_places(
    scores: Ints,
    v_scale: Scale,
    fmt: str = "places8",
    mask: npt.NDArray[np.bool_] | None = None,
    sink: Ints | None = None,
    window: int | None = None,
) -> tuple[Quantized, Ints]:
    """`semantics.softmax_places`."""
    scores = np.asarray(scores)
    if not scores.size:
        return semantics.softmax_places(scores, v_scale, fmt, mask, sink, window)
    return _softmax("softmax_places", scores, v_scale, fmt, mask, sink, window)


def _softmax(
    name: str,
    scores: Ints,
    v_scale: Scale,
    fmt: str,
    mask: npt.NDArray[np.bool_] | None,
    sink: Ints | None,
    window: int | None,
    *constants: int,
) -> tuple[Quantized, Ints]:
    """What a kernel makes of scores."""
    heads, tokens = scores.shape[-2:]
    v_mantissa, v_exponent, stride = _per_token(v_scale, tokens)
    kv_heads = v_mantissa.shape[0]
    source = _ints(scores)
    # An absent operand has the address of another one, and is not read.
    seen: np.ndarray = source
    if mask is not None:
        seen = np.ascontiguousarray(np.broadcast_to(mask, (*scores.shape[:-2], tokens)))
    sinks = source if sink is None else _ints(sink)
    codes = _result(scores.shape, window)
    mantissa, exponent, total = (np.empty(scores.shape[:-1], np.int64) for _ in range(3))
    _run(
        _kernel(name, mask is not None, sink is not None, window is not None),
        None,
        0,
        address(source),
        address(v_mantissa[0]),
        address(v_exponent[0]),
        address(sinks),
        address(codes),
        address(mantissa),
        address(exponent),
        address(total),
        address(seen),
        stride,
        scores.size // (heads * tokens),
        kv_heads,
        heads // kv_heads,
        tokens,
        *constants,
        *_seen(window),
    )
    return Quantized(codes, Scale(mantissa, exponent), fmt), total


def multiply(a: Scale, b: Scale) -> Scale:
    """`fixed_point.multiply`."""
    if not a.mantissa.shape == a.exponent.shape == b.mantissa.shape == b.exponent.shape:
        return fixed_point.multiply(a, b)
    operands = _ints(a.mantissa), _ints(a.exponent), _ints(b.mantissa), _ints(b.exponent)
    shape = a.mantissa.shape
    mantissa, exponent = np.empty(shape, np.int64), np.empty(shape, np.int64)
    results = address(mantissa), address(exponent), mantissa.size
    _run(_kernel("multiply"), None, 0, *map(address, operands), *results)
    return Scale(mantissa, exponent)


def reciprocal_scale(total: Ints, frac: int = PROBABILITY_FRAC) -> Scale:
    """`semantics.reciprocal_scale`."""
    source = _ints(total)
    mantissa, exponent = np.empty(np.shape(total), np.int64), np.empty(np.shape(total), np.int64)
    _run(
        _kernel("reciprocal_scale"),
        None,
        0,
        address(source),
        address(mantissa),
        address(exponent),
        source.size,
        frac,
    )
    return Scale(mantissa, exponent)


# Elementwise


def elementwise(
    one: Elementwise,
    operands: Sequence[Ints],
    constants: Constants[int],
    saturations: Saturations | None = None,
) -> Ints:
    """`semantics.elementwise`."""
    if operands[0].shape != operands[-1].shape:
        return semantics.elementwise(one, operands, constants, saturations)
    return _elementwise(_kernel("elementwise", one.name), operands, constants, saturations)


def tap(
    x: Ints,
    weights: npt.NDArray[np.integer],
    shift: int,
    bias: npt.NDArray[np.integer] | None = None,
    addend: Ints | None = None,
    saturations: Saturations | None = None,
) -> Ints:
    """`semantics.tap`."""
    wide = np.broadcast_to(np.asarray(weights, np.int64), x.shape)
    y = elementwise(MUL, (x, wide), Constants(second_shift=shift), saturations)
    more = bias if addend is None else addend
    if more is None:
        return y
    added = np.broadcast_to(np.asarray(more, np.int64), y.shape)
    return elementwise(ADD, (y, added), Constants(), saturations)


delay = semantics.delay


def _elementwise(
    kernel: Callable[[int], None],
    operands: Sequence[Ints],
    constants: tuple[int, ...],
    saturations: Saturations | None,
) -> Ints:
    """A kernel whose arguments are operands of one shape, the result, their size and constants."""
    sources = [_ints(x) for x in operands]
    result = np.empty(np.shape(operands[0]), np.int64)
    addresses = [address(x) for x in sources]
    _run(kernel, saturations, 0, *addresses, address(result), result.size, *constants)
    return result
