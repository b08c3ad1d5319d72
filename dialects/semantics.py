"""What every operator of a compiled model computes, to the bit, in integers.

This is the only place where the arithmetic is written down. The simulator's kernels and the RTL
are tested against these functions and must give the same integers, always. The functions are
exact: floating point appears only inside matrix products whose partial sums are integers that the
float type represents exactly, whatever the order of summation.

Conventions (`fixed_point` defines the words):

* Vectors are int64 arrays with any leading axes: a batch of tokens is the same call.
* *Fixed* values are int32 payloads with `frac` fraction bits, 16 unless stated; every function
  that makes them saturates to int32 and counts what saturated in the optional `saturations`.
* *Quantized* values are codes of a format with one `Scale` for each group.
* "width" in a docstring is the number of wires, with the sign where there is one. Shifts are by
  `round_shift` (half up) unless "floor" is said.
"""

from __future__ import annotations

import functools
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from intaglio.dialects.codes import (
    FORMATS,
    SLOT_LIMITS,
    AdapterMatrix,
    Format,
    Matrix,
    decode,
    e4m3_encode,
)
from intaglio.dialects.fixed_point import (
    FIXED_BITS,
    SCALE_BITS,
    Ints,
    Real,
    Saturations,
    Scale,
    bit_length,
    multiply,
    normalise,
    round_shift,
    saturate,
    shift_normal,
    shift_saturate,
)
from intaglio.dialects.tables import ARGUMENT_FRAC, GATE_FRAC, lookup, table

SCORE_FRAC = 16
"""Fraction bits of attention scores."""
PROBABILITY_FRAC = 24
"""Fraction bits of softmax's numerators and of their sum."""
ROTARY_FRAC = 14
"""Fraction bits of the rotary embedding's cosines and sines, unless they reach 2."""
UNIT_FRAC = 24
"""Fraction bits of a normalised vector before its weight is applied."""
NORM_WIDTH = 1 << 14
"""Longest vector that the norms take."""
PRODUCT_BITS = 39
"""Width of what a scale mantissa is multiplied with: 39 + 24 bits fit a signed 64-bit product."""
ACCUMULATOR_BITS = 62
"""Widest accumulator allowed."""

GATES = {
    "silu": "sigmoid",
    "gelu_tanh": "gelu_tanh",
    "gelu_erf": "gelu_erf",
    "quick_gelu": "quick_gelu",
}
"""The activation functions ``x * G(x)`` with ``G(-x) = 1 - G(x)``, and the tables of their G."""
GATE_KINDS = (*GATES, "relu", "relu2")
"""The kinds that `gate` takes."""
ACTIVATIONS = (*GATE_KINDS, "sigmoid", "tanh")
"""The kinds of `rom.activate`: those of `gate`, and `sigmoid` and `tanh`."""


class Quantized(NamedTuple):
    """Codes [..., N] with a scale [..., groups] for each ``N / groups`` of them.

    The real value of an element is ``decode(code) * scale``.
    """

    codes: Ints
    scale: Scale
    format: str

    @property
    def values(self) -> npt.NDArray[np.float64]:
        """The real values as float64: for reports and tests, never for arithmetic."""
        decoded = decode(self.codes, self.format).astype(np.float64)
        grouped = _grouped(decoded, self.scale.mantissa.shape[-1])
        return (grouped * self.scale.values[..., None]).reshape(decoded.shape)


# Widths


def pre_shift(bits: int) -> int:
    """Places an accumulator of `bits` bits loses before it is multiplied by a scale."""
    return max(0, bits - PRODUCT_BITS)


def group_bits(bits: int, group: int, fmt: str, zero: int | None = None) -> int:
    """Width of one group's sum ``sum((q - zero) * decode(code))``, signed.

    Args:
        bits: of a weight's code.
        group: elements in the group.
        fmt: the activations' format.
        zero: the zero point when all groups have the same one (None: any).
    """
    return (group * _largest_weight(bits, zero) * FORMATS[fmt].magnitude).bit_length() + 1


def accumulator_bits(
    bits: int,
    columns: int,
    fmt: str,
    scale_bits: int = 16,
    zero: int | None = None,
    offset_bits: int = 0,
) -> int:
    """Width of `dot`'s result, signed, for any codes, scales and activations.

    Args:
        bits: of a weight's code.
        columns: K, the elements of a row.
        fmt: the activations' format.
        scale_bits: width of the signed scale mantissas (1: all are +1 or -1).
        zero: the zero point when all groups have the same one (None: any).
        offset_bits: width of the signed offsets, where groups have them (0: none have). Their zero
            point is the middle of the codes.

    Raises:
        ValueError: more than 62 bits.
    """
    scale = max(1, 1 << (scale_bits - 1))
    if offset_bits:
        zero = 1 << (bits - 1)
    weight = _largest_weight(bits, zero) * scale
    if offset_bits:
        weight += 1 << (offset_bits - 1)
    return _checked(columns * weight * FORMATS[fmt].magnitude)


def slot_bits(code: str, columns: int, fmt: str) -> int:
    """Width of `dot`'s result for an adapter in a slot, signed, for any codes, scales, activations.

    Args:
        code: of the adapter's weights.
        columns: K, the elements of a row.
        fmt: the activations' format.

    Raises:
        ValueError: more than 62 bits.
    """
    return _checked((columns * SLOT_LIMITS[code] * FORMATS[fmt].magnitude) << 15)


def query_key_bits(head_dim: int, q_format: str, k_format: str) -> int:
    """Width of `query_key`'s result, signed."""
    return _checked(head_dim * FORMATS[q_format].magnitude * FORMATS[k_format].magnitude)


def weighted_sum_bits(tokens: int, p_format: str, v_format: str) -> int:
    """Width of `weighted_sum`'s result, signed, for a context of `tokens`."""
    return _checked(tokens * FORMATS[p_format].magnitude * FORMATS[v_format].magnitude)


def _largest_weight(bits: int, zero: int | None) -> int:
    top = (1 << bits) - 1
    return top if zero is None else max(zero, top - zero)


def _checked(bound: int) -> int:
    bits = bound.bit_length() + 1
    if bits > ACCUMULATOR_BITS:
        raise ValueError(f"an exact sum needs {bits} bits, more than {ACCUMULATOR_BITS}")
    return bits


# Quantisation


def quantize(x: Ints, fmt: str, frac: int = 16, groups: int = 1) -> Quantized:
    """Scale each group so that its largest magnitude gets the format's largest code.

    For a group with ``m = max|x|`` and the format's limit L of l bits (int8: 127, int16: 32767,
    uint8: 255, uint16: 65535, fp8: 448 * 2**9)::

        z    = 24 - bit_length(m)                          signed 6 bits
        xs   = shift_normal(x, z)                          24 bits and sign
        mn   = shift_normal(m, z)                          24 bits
        r    = reciprocal(max(mn, 2**23))                  24 bits
        rl   = round_shift(r * L, l)                       24 bits (product 24 + l)
        code = round_shift(xs * rl, 47 - l)                product 48 bits and sign
        fp8:   code = e4m3_encode(round_shift(xs * rl, 39 - l), 8)    argument 26 bits and sign
        scale = multiply((mn, z + frac), 1 / L)            24 bits

    No code exceeds L: ``r`` is never so large that the group's maximum rounds beyond it. A group
    of zeros has codes 0 and scale (0, 0). The scale's error is at most 2**-22 of it; a code is off
    by at most 1/2 + L * 2**-20 steps (fp8: half a step of E4M3 at the value).

    Stands for DynamicQuantizeLinear (symmetric, a scale per token and group), for the activation
    side of MatMulNBits with accuracy_level 4, and for the absmax chain of BitNet graphs.

    Args:
        x: Fixed [..., N], ``|x| <= 2**31``; not negative for the unsigned formats.
        fmt: a name in `FORMATS`.
        frac: fraction bits of `x`.
        groups: equal parts of the last axis with a scale of their own (heads, for a KV cache).
    """
    codes, scale = _quantized(_grouped(np.asarray(x, np.int64), groups), frac, FORMATS[fmt])
    return Quantized(codes.reshape(np.shape(x)), scale, fmt)


def _quantized(x: Ints, frac: int | Ints, fmt: Format) -> tuple[Ints, Scale]:
    """`quantize` over the last axis; `frac` may have the shape [..., groups]."""
    m = (x if fmt.low == 0 else np.abs(x)).max(axis=-1, keepdims=True)
    z = normalise(m)
    xs = shift_normal(x, z)
    mn = shift_normal(m, z)
    limit_bits = fmt.limit.bit_length()
    r = lookup(table("reciprocal"), np.maximum(mn, 1 << 23))
    xs = xs * round_shift(r * fmt.limit, limit_bits)
    if fmt.name == "fp8":
        codes = e4m3_encode(round_shift(xs, 39 - limit_bits), 8)
    else:
        codes = round_shift(xs, 47 - limit_bits)
    m, z, mn = m[..., 0], z[..., 0], mn[..., 0]
    scale = multiply(Scale(mn, z + frac), _inverse_limit(fmt.limit))
    return codes, Scale(scale.mantissa, np.where(m > 0, scale.exponent, 0))


@functools.cache
def _inverse_limit(limit: int) -> Scale:
    return Scale.of(Fraction(1, limit))


def quantize_static(
    x: Ints,
    fmt: str,
    inverse: Real,
    frac: int = 16,
    saturations: Saturations | None = None,
) -> Ints:
    """Codes with a scale known at compile time: ``clip(round(x / scale))``.

    ``code = clip(round_shift(x * inverse.mantissa, inverse.exponent + frac), low, high)`` with the
    format's whole range (int8: -128 to 127), product 56 bits; fp8:
    ``t = shift_saturate(x * inverse.mantissa, inverse.exponent + frac - 8, 32)``,
    ``code = e4m3_encode(t, 8)``, which clips to 448. One product of an element by a constant: no
    maximum, no table.

    Stands for QuantizeLinear and for a GroupQueryAttention cache with scales in the graph.

    Args:
        x: Fixed [..., N].
        fmt: a name in `FORMATS`.
        inverse: one over the real value of a decoded 1 (for fp8: of 2**-9 times the graph's
            scale).
        frac: fraction bits of `x`.
        saturations: counts clipped elements.
    """
    form = FORMATS[fmt]
    product = np.asarray(x, np.int64) * inverse.mantissa
    if fmt == "fp8":
        t = shift_saturate(product, inverse.exponent + frac - 8)
        if saturations is not None:
            # Up to half a step beyond 448 is rounding, not saturation.
            saturations.count += int(np.count_nonzero(np.abs(t) > 464 << 17))
        return e4m3_encode(t, 8)
    wide = shift_saturate(product, inverse.exponent + frac)
    codes = np.minimum(wide, form.high)
    np.maximum(codes, form.low, out=codes)
    if saturations is not None:
        saturations.count += int(np.count_nonzero(codes != wide))
    return codes


# Matrix products


def dot(codes: npt.NDArray[np.integer[Any]], weights: Matrix | AdapterMatrix, fmt: str) -> Ints:
    """The exact product of an activation vector and a weight matrix.

    ``Y[..., n] = sum_g s[n, g] * sum_(k in g) (q[n, k] - zero[n, g]) * decode(code[..., k])``; the
    real product is ``Y * 2**-weights.exponent`` times the activations' scale. Widths: product of
    an element ``bits + 1 + decoded_bits``, of a group `group_bits`, of the whole
    `accumulator_bits`.

    Where groups have offsets, zero points that are no codes, ``offset[n, g]`` is a second scale, on
    the sum of the group's activations: ``Y[..., n]`` has
    ``- sum_g offset[n, g] * sum_(k in g) decode(code[..., k])`` too.

    The matrix of a low-rank adapter has one scale a row:
    ``Y[..., n] = s[n] * sum_k weight[n, k] * decode(code[..., k])``; widths: of the sum
    ``slot_bits - 15``, of the whole `slot_bits`. Where an adapter of rank r is in slots of a larger
    rank, elements of the first product from r on are 0: quantising them changes nothing, and the
    second product needs r columns only.

    Stands for MatMulNBits, MatMulInteger and (DequantizeLinear +) MatMul or Gemm.

    Args:
        codes: [..., K] of the format.
        weights: N rows of K elements.
        fmt: the activations' format.

    Returns:
        int64 [..., N].

    Raises:
        ValueError: shapes do not fit, or the exact sum would need more than 62 bits.
    """
    columns = weights.columns
    if codes.shape[-1] != columns:
        raise ValueError(f"{codes.shape[-1]} activations for {columns} columns")
    if isinstance(weights, AdapterMatrix):
        slot_bits(weights.code, columns, fmt)
        kind = _exact_type(columns * SLOT_LIMITS[weights.code] * FORMATS[fmt].magnitude)
        sums = np.asarray(decode(codes, fmt)).astype(kind) @ weights.weights.T.astype(kind)
        return sums.astype(np.int64) * weights.scales
    accumulator_bits(weights.bits, columns, fmt, offset_bits=weights.offset_bits)
    groups = weights.groups
    activations = np.asarray(decode(codes, fmt)).reshape(-1, columns)
    batch = activations.shape[0]
    width = min(weights.group, columns)
    kind = _exact_type(width * _largest_weight(weights.bits, None) * FORMATS[fmt].magnitude)
    padded = np.zeros((batch, groups * width), np.int64)
    padded[:, :columns] = activations
    by_group = padded.reshape(batch, groups, width).transpose(1, 2, 0)
    sums = by_group.sum(axis=1)
    by_group = np.ascontiguousarray(by_group, kind)
    # Blocks of rows bound the memory: the unpacked codes of a vocabulary would not fit.
    block = max(1, min(weights.rows, (1 << 20) // (groups * width)))
    unpacked = np.zeros((block, groups * width), kind)
    y = np.empty((batch, weights.rows), np.int64)
    for start in range(0, weights.rows, block):
        rows = slice(start, min(start + block, weights.rows))
        q = unpacked[: rows.stop - start]
        q[:, :columns] = weights.unpack(rows)
        partial = (q.reshape(-1, groups, width).transpose(1, 0, 2) @ by_group).astype(np.int64)
        partial -= weights.zeros(rows).T.astype(np.int64)[:, :, None] * sums[:, None, :]
        np.einsum("rg,grb->br", weights.scales[rows].astype(np.int64), partial, out=y[:, rows])
        if weights.offsets is not None:
            y[:, rows] -= (weights.offsets[rows].astype(np.int64) @ sums).T
    return y.reshape(*codes.shape[:-1], weights.rows)


def _exact_type(bound: int) -> type[np.float32] | type[np.float64] | type[np.int64]:
    """The fastest type in which every partial sum up to `bound` is exact."""
    if bound < 1 << 24:
        return np.float32
    return np.float64 if bound < 1 << 53 else np.int64


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
    """An accumulator times its scale, as Fixed; then bias and residual are added.

    ::

        t = round_shift(y, shift)                                         39 bits
        places = scale.exponent + exponent - shift - out_frac
        f = shift_saturate(t * scale.mantissa, places)                    63 -> 32 bits
        f = saturate(f + bias); f = saturate(f + residual)                33 -> 32 bits, each

    The relative error of the product before the last rounding is that of the scale (2**-22), and
    half a unit of ``2**(shift - scale.exponent - exponent)`` from the first shift.

    Stands for the multiplication by activation and weight scales in MatMulNBits, for
    DequantizeLinear after MatMulInteger, and for Add after MatMul (bias,
    SkipSimplifiedLayerNormalization's sum).

    Args:
        y: accumulators [..., N].
        scale: [..., groups] or without axes, for equal parts of the last axis of `y`.
        exponent: of the weights' mantissas (`Matrix.exponent`, `AdapterMatrix.exponent`; 0 where
            there are none).
        shift: `pre_shift` of the accumulator's width.
        out_frac: fraction bits of the result, of `bias` and of `residual`.
        bias: Fixed, broadcasts with `y`.
        residual: Fixed, in the shape of `y`.
        saturations: counts elements, at each of the three places.
    """
    y = np.asarray(y, np.int64)
    mantissa, power = np.atleast_1d(scale.mantissa), np.atleast_1d(scale.exponent)
    t = _grouped(round_shift(y, shift), mantissa.shape[-1])
    places = power[..., None] + (exponent - shift - out_frac)
    f = shift_saturate(t * mantissa[..., None], places, FIXED_BITS, saturations).reshape(y.shape)
    if bias is not None:
        f = add(f, bias, saturations)
    if residual is not None:
        f = add(f, residual, saturations)
    return f


def embed(
    rows: Ints,
    exponent: int,
    frac: int = 16,
    factor: Real | None = None,
    saturations: Saturations | None = None,
) -> Ints:
    """Rows of an embedding table as Fixed, times an optional constant.

    ``shift_saturate(rows * factor.mantissa, exponent + factor.exponent - frac)``; 25 + 25 = 50 ->
    32 bits.

    Stands for Gather, GatherBlockQuantized, and the multiplication by sqrt(hidden size) in Gemma.

    Args:
        rows: mantissas, at most 24 bits and a sign: ``Matrix.values(ids)``, or int16 mantissas
            ``table[ids]``.
        exponent: of the mantissas.
        frac: fraction bits of the result.
        factor: a constant of at most 24 bits and a sign.
        saturations: counts elements.
    """
    rows = np.asarray(rows, np.int64)
    if factor is not None:
        rows, exponent = rows * factor.mantissa, exponent + factor.exponent
    return shift_saturate(rows, exponent - frac, FIXED_BITS, saturations)


# Norms


class NormConstants(NamedTuple):
    """What a norm's hardware knows of epsilon: see `norm_constants`."""

    epsilon: Real
    largest_shift: int


@functools.cache
def norm_constants(eps: Real, width: int, frac: int = 16, centred: bool = False) -> NormConstants:
    """Epsilon in the units of the sum of squares, and the largest normalising shift it allows.

    ``epsilon = eps * width * 4**frac`` (`layer_norm`, centred: ``eps * width**3 * 4**frac``),
    rounded to 24 bits; ``largest_shift`` is such that ``epsilon * 4**largest_shift < 2**61``, and
    at most 24. Vectors so small that the limit matters are shifted left by less: nothing is lost,
    as left shifts are exact.
    """
    fraction = eps.fraction * width ** (3 if centred else 1) * 4**frac
    epsilon = Real.of(fraction)
    limit = SCALE_BITS if not epsilon.mantissa else (37 + epsilon.exponent) // 2
    return NormConstants(epsilon, min(SCALE_BITS, limit))


def rms_norm(
    x: Ints,
    gamma: npt.NDArray[np.integer[Any]],
    gamma_exponent: int,
    eps: Real,
    frac: int = 16,
    out_frac: int = 16,
    groups: int = 1,
    saturations: Saturations | None = None,
) -> Ints:
    """``x / sqrt(mean(x**2) + eps) * weight``, per group of n elements.

    ::

        m  = max|x|;  z = min(24 - bit_length(m), largest_shift)     largest_shift: norm_constants
        xs = shift_normal(x, z)                                      24 bits and sign
        ss = sum(xs * xs)                                            62 bits, n <= 2**14
        t  = ss + round_shift(epsilon, epsilon.exponent - 2 * z)     63 bits
        h  = floor((bit_length(t) - 31) / 2)                         -15 to 16
        v  = floor(t / 4**h)                                         32 bits, in [2**30, 2**32)
        r  = rsqrt(max(v, 2**30))                                    24 bits
        u  = round_shift(xs * r, 15 + h)       Q24: 25 bits and sign (product 48 and sign)
        y  = shift_saturate(u * gamma, 24 + gamma_exponent - out_frac)   50 -> 32 bits

    A vector of zeros gives zeros. The error of `u` is at most 2**-21 of its value plus 2**-23;
    relative to the root mean square the latter is sqrt(n) * 2**-23.

    Stands for SimplifiedLayerNormalization, RMSNormalization, its decomposition in exported
    graphs, and the per-head norms of queries and keys (``groups=heads``).

    Args:
        x: Fixed [..., groups * n], ``|x| <= 2**31``.
        gamma: signed mantissas of the weight **times sqrt(n)**, at most 24 bits and a sign (int16
            as a rule), [n] or [groups * n].
        gamma_exponent: their exponent.
        eps: the graph's epsilon, not negative.
        frac: fraction bits of `x`.
        out_frac: fraction bits of the result.
        groups: equal parts of the last axis that are normalised apart.
        saturations: counts elements.

    Raises:
        ValueError: n is more than 2**14.
    """
    grouped = _grouped(np.asarray(x, np.int64), groups)
    constants = norm_constants(eps, grouped.shape[-1], frac)
    return _unit(grouped, constants, gamma, gamma_exponent, out_frac, saturations).reshape(x.shape)


def layer_norm(
    x: Ints,
    gamma: npt.NDArray[np.integer[Any]],
    gamma_exponent: int,
    beta: Ints | None,
    eps: Real,
    frac: int = 16,
    out_frac: int = 16,
    groups: int = 1,
    saturations: Saturations | None = None,
) -> Ints:
    """``(x - mean) / sqrt(variance + eps) * weight + bias``, per group of n elements.

    The centring is exact: ``d = n * x - sum(x)`` (sum 46 bits, d 47 bits, n <= 2**14). Then as in
    `rms_norm`, with `d` for `x` and ``norm_constants(..., centred=True)``, whose epsilon has the
    factor n**3 that makes the n in `d` cancel; ``z`` is -23 to 24. At last
    ``y = saturate(y + beta)``.

    Stands for LayerNormalization and SkipLayerNormalization's norm.

    Args:
        x: Fixed [..., groups * n].
        gamma: as in `rms_norm`.
        gamma_exponent: its exponent.
        beta: Fixed with `out_frac` fraction bits, [groups * n] or what broadcasts to it, or None.
        eps: the graph's epsilon, not negative.
        frac: fraction bits of `x`.
        out_frac: fraction bits of the result.
        groups: equal parts of the last axis that are normalised apart.
        saturations: counts elements, at both places.

    Raises:
        ValueError: n is more than 2**14.
    """
    grouped = _grouped(np.asarray(x, np.int64), groups)
    width = grouped.shape[-1]
    centred = width * grouped - grouped.sum(axis=-1, keepdims=True)
    constants = norm_constants(eps, width, frac, centred=True)
    y = _unit(centred, constants, gamma, gamma_exponent, out_frac, saturations).reshape(x.shape)
    return y if beta is None else add(y, beta, saturations)


def _unit(
    x: Ints,
    constants: NormConstants,
    gamma: npt.NDArray[np.integer[Any]],
    gamma_exponent: int,
    out_frac: int,
    saturations: Saturations | None,
) -> Ints:
    """The part that the two norms share, over the last axis of [..., groups, n]."""
    width = x.shape[-1]
    if width > NORM_WIDTH:
        raise ValueError(f"norms take up to {NORM_WIDTH} elements, not {width}")
    weight = np.asarray(gamma, np.int64)
    if weight.shape[-1] != width:
        weight = weight.reshape(x.shape[-2:])
    epsilon, largest_shift = constants
    m = np.abs(x).max(axis=-1, keepdims=True)
    z = np.minimum(normalise(m), largest_shift)
    xs = shift_normal(x, z)
    total = np.einsum("...i,...i->...", xs, xs)[..., None]
    total += round_shift(np.array(epsilon.mantissa, np.int64), epsilon.exponent - 2 * z)
    half = (bit_length(total) - 31) >> 1
    v = (total << np.maximum(-2 * half, 0)) >> np.maximum(2 * half, 0)
    r = lookup(table("rsqrt"), np.maximum(v, 1 << 30))
    u = round_shift(xs * r, half + (39 - UNIT_FRAC))
    u *= weight
    return shift_saturate(u, UNIT_FRAC + gamma_exponent - out_frac, FIXED_BITS, saturations)


# Attention


def rotary(
    x: Ints,
    cos: npt.NDArray[np.integer[Any]],
    sin: npt.NDArray[np.integer[Any]],
    heads: int,
    interleaved: bool = False,
    saturations: Saturations | None = None,
    table_frac: int = ROTARY_FRAC,
) -> Ints:
    """Rotary position embedding: rotates pairs of elements of each head by the token's angles.

    For a pair (a, b) with cosine c and sine s::

        a' = shift_saturate(a * c - b * s, table_frac)       products 48 bits, sum 49 -> 32
        b' = shift_saturate(b * c + a * s, table_frac)

    Pairs are (i, i + R/2), or (2i, 2i + 1) when interleaved, among the first R elements of a head
    (R = twice the cosines); the others pass. The cosines' rounding turns into an error of at most
    ``2**-(table_frac + 1)`` of ``|a| + |b|``.

    Stands for RotaryEmbedding (both domains) and GroupQueryAttention with do_rotary.

    Args:
        x: Fixed [..., heads * head_dim].
        cos: int16, [..., R/2] with the leading axes of `x` (a row for each token).
        sin: the same.
        heads: number of heads.
        interleaved: which elements are pairs.
        saturations: counts elements.
        table_frac: fraction bits of the cosines and sines: 14, fewer where they reach 2.
    """
    by_head = _grouped(np.asarray(x, np.int64), heads)
    half = cos.shape[-1]
    c = np.asarray(cos, np.int64)[..., None, :]
    s = np.asarray(sin, np.int64)[..., None, :]
    if interleaved:
        first, second = slice(0, 2 * half, 2), slice(1, 2 * half, 2)
    else:
        first, second = slice(0, half), slice(half, 2 * half)
    a, b = by_head[..., first], by_head[..., second]
    y = by_head.copy()
    y[..., first] = shift_saturate(a * c - b * s, table_frac, FIXED_BITS, saturations)
    y[..., second] = shift_saturate(b * c + a * s, table_frac, FIXED_BITS, saturations)
    return y.reshape(x.shape)


def attention_mask(
    positions: int | npt.NDArray[np.integer[Any]], tokens: int, window: int | None = None
) -> npt.NDArray[np.bool_]:
    """Which of the cached tokens 0 to `tokens` - 1 a query sees: True for ``p - window < j <= p``.

    Args:
        positions: the queries' own positions [...].
        tokens: length of the cache.
        window: how many tokens a query sees, itself included (None: all up to itself).

    Returns:
        bool [..., tokens].
    """
    p = np.asarray(positions)[..., None]
    j = np.arange(tokens)
    seen = j <= p
    return seen if window is None else seen & (j > p - window)


def query_key(
    q: npt.NDArray[np.integer[Any]],
    k: npt.NDArray[np.integer[Any]],
    q_format: str = "int8",
    k_format: str = "int8",
) -> Ints:
    """The exact products of queries and cached keys.

    ``y[h, t] = sum_d decode(q[h, d]) * decode(k[h // r, t, d])``, where ``r = heads // kv_heads``
    query heads share a key head. Width: `query_key_bits`.

    Stands for the first product in GroupQueryAttention, MultiHeadAttention and Attention.

    Args:
        q: codes [..., heads, D].
        k: codes [kv_heads, T, D].
        q_format: format of the queries.
        k_format: format of the keys.

    Returns:
        int64 [..., heads, T].
    """
    bound = q.shape[-1] * FORMATS[q_format].magnitude * FORMATS[k_format].magnitude
    keys = np.swapaxes(decode(k, k_format), 1, 2)
    return _by_kv_head(decode(q, q_format), keys, bound)


def weighted_sum(
    p: npt.NDArray[np.integer[Any]],
    v: npt.NDArray[np.integer[Any]],
    p_format: str = "uint8",
    v_format: str = "int8",
) -> Ints:
    """The exact weighted sums of cached values.

    ``y[h, d] = sum_t p[h, t] * decode(v[h // r, t, d])``. Width: `weighted_sum_bits`. Stands for
    the second product in GroupQueryAttention and its kin.

    Args:
        p: `softmax`'s codes [..., heads, T].
        v: codes [kv_heads, T, D].
        p_format: format of the probabilities.
        v_format: format of the values.

    Returns:
        int64 [..., heads, D].
    """
    bound = p.shape[-1] * FORMATS[p_format].magnitude * FORMATS[v_format].magnitude
    return _by_kv_head(p, decode(v, v_format), bound)


def _by_kv_head(
    a: npt.NDArray[np.integer[Any]], b: npt.NDArray[np.integer[Any]], bound: int
) -> Ints:
    """[..., heads, I] by [kv_heads, I, J] is [..., heads, J], exactly."""
    kind = _exact_type(bound)
    lead, heads, kv_heads = a.shape[:-2], a.shape[-2], b.shape[0]
    shared = heads // kv_heads
    rows = a.reshape(-1, kv_heads, shared, a.shape[-1]).swapaxes(0, 1)
    flat = rows.reshape(kv_heads, -1, a.shape[-1]).astype(kind)
    y = (flat @ b.astype(kind)).astype(np.int64).reshape(kv_heads, -1, shared, b.shape[-1])
    return y.swapaxes(0, 1).reshape(*lead, heads, b.shape[-1])


def score_scale(
    dots: Ints,
    q_scale: Scale,
    k_scale: Scale,
    factor: Real,
    shift: int,
    saturations: Saturations | None = None,
) -> Ints:
    """Products of queries and keys as attention scores, Fixed with 16 fraction bits.

    ::

        qs = multiply(q_scale, factor)                               one a head
        c  = multiply(qs, k_scale)                                   one a score
        t  = round_shift(dots, shift)                                39 bits
        s  = shift_saturate(t * c.mantissa, c.exponent - shift - 16) 63 -> 32 bits

    `softmax` takes scores to the base 2, so `factor` is the softmax scale times log2(e). With a
    soft cap it is the softmax scale alone, and `softcap` follows, which brings log2(e) in.

    Args:
        dots: `query_key`'s [..., heads, T].
        q_scale: [..., heads].
        k_scale: [kv_heads, T] for scales of each token; [kv_heads, 1] or no axes for static ones.
        factor: positive, normalised to 24 bits (`Real.of`).
        shift: `pre_shift` of `query_key_bits`.
        saturations: counts elements.
    """
    keys = _per_token(k_scale)
    kv_heads = keys.mantissa.shape[0]
    dots = np.asarray(dots, np.int64)
    by_kv = (*dots.shape[:-2], kv_heads, dots.shape[-2] // kv_heads)
    queries = multiply(q_scale, Scale.of(factor))
    c = multiply(
        Scale(queries.mantissa.reshape(*by_kv, 1), queries.exponent.reshape(*by_kv, 1)),
        Scale(keys.mantissa[:, None, :], keys.exponent[:, None, :]),
    )
    t = round_shift(dots, shift).reshape(*by_kv, dots.shape[-1])
    places = c.exponent - (shift + SCORE_FRAC)
    return shift_saturate(t * c.mantissa, places, FIXED_BITS, saturations).reshape(dots.shape)


def softmax(
    scores: Ints,
    v_scale: Scale,
    fmt: str = "uint8",
    mask: npt.NDArray[np.bool_] | None = None,
    sink: Ints | None = None,
) -> tuple[Quantized, Ints]:
    """Softmax's numerators times the values' scales, quantised, and the sum of the numerators.

    Over the tokens j that the mask lets through (the others have ``p = w = 0``)::

        m = max(s[j], sink)
        p = round_shift(exp2((m - s[j]) & 0xffff), (m - s[j]) >> 16)      24 bits, 1.0 is 2**24 - 1
        total = sum(p) (+ the same of the sink)                           24 bits + log2(T + 1)
        e0 = min exponent of v_scale (of scales that are not 0)
        w = round_shift(p * v_scale.mantissa, 17 + v_scale.exponent - e0) 31 bits (product 48)
        codes, scale = quantize(w, frac = 7 + e0), unsigned

    The real numerator times the value's scale is ``w * 2**-(7 + e0)``; dividing by the sum is left
    to the scale of the result (`reciprocal_scale`). The relative error of `p` is below 2**-21 plus
    2**-25 of the largest. When nothing is let through all codes, the scale and the total are 0.

    Stands for Softmax inside GroupQueryAttention and its kin.

    Args:
        scores: Fixed with 16 fraction bits [..., heads, T], to the base 2.
        v_scale: [kv_heads, T] for scales of each token; [kv_heads, 1] or no axes for static ones.
        fmt: uint8 or uint16.
        mask: True where a query sees a token, broadcasts to [..., T].
        sink: Fixed with 16 fraction bits [heads], to the base 2: a token without a value
            (head_sink).

    Returns:
        Codes [..., heads, T] with a scale [..., heads]; the total [..., heads] with 24 fraction
        bits.
    """
    scores = np.asarray(scores, np.int64)
    seen = None if mask is None else np.broadcast_to(mask, scores.shape[:-2] + scores.shape[-1:])
    lowest = -(1 << (FIXED_BITS - 1))
    s = scores if seen is None else np.where(seen[..., None, :], scores, lowest)
    m = s.max(axis=-1, keepdims=True)
    if sink is not None:
        m = np.maximum(m, np.asarray(sink, np.int64)[:, None])
    p = _exp2(m - s)
    if seen is not None:
        p *= seen[..., None, :]
    total = p.sum(axis=-1)
    if sink is not None:
        total += _exp2(m[..., 0] - sink)
    values = _per_token(v_scale)
    kv_heads = values.mantissa.shape[0]
    by_kv = (*scores.shape[:-2], kv_heads, scores.shape[-2] // kv_heads)
    # A scale of 0 and a token that is not seen have no say in the common exponent.
    used = values.mantissa > 0
    if seen is not None:
        used = used & seen[..., None, :]
    exponents = np.where(used, values.exponent, _FAR)
    e0 = exponents.min(axis=-1, keepdims=True)
    places = np.minimum(exponents - e0, 32) + 17
    w = p.reshape(*by_kv, -1) * values.mantissa[:, None, :]
    w = round_shift(w, 17 if (places == 17).all() else places[..., None, :])
    frac = np.broadcast_to(e0 + 7, by_kv).reshape(scores.shape[:-1])
    codes, scale = _quantized(w.reshape(scores.shape), frac, FORMATS[fmt])
    return Quantized(codes, scale, fmt), total


_FAR = 1 << 20


def _exp2(d: Ints) -> Ints:
    """``2**24 * 2**(-d / 2**16)`` for d >= 0, as `softmax` states it."""
    p = lookup(table("exp2"), d & 0xFFFF)
    # Beyond 25 places nothing of 24 bits is left.
    places = np.minimum(d >> 16, 25)
    p += p
    p += np.int64(1) << places
    places += 1
    p >>= places
    return p


def reciprocal_scale(total: Ints, frac: int = PROBABILITY_FRAC) -> Scale:
    """One over a positive number of `frac` fraction bits, as a scale; relative error below 2**-21.

    ``z = 24 - bit_length(total)``, ``mn = shift_normal(total, z)``, mantissa
    ``reciprocal(max(mn, 2**23))``, exponent ``47 - frac - z``. The attention's result is
    ``requantize(weighted_sum(...), multiply(scale, reciprocal_scale(total)), 0, ...)``.

    Args:
        total: `softmax`'s total [..., heads].
        frac: its fraction bits.
    """
    total = np.asarray(total, np.int64)
    z = normalise(total)
    mantissa = lookup(table("reciprocal"), np.maximum(shift_normal(total, z), 1 << 23))
    return Scale(mantissa, 47 - frac - z)


def _per_token(scale: Scale) -> Scale:
    return Scale(np.atleast_2d(scale.mantissa), np.atleast_2d(scale.exponent))


# Elementwise


def gate(
    x: Ints,
    kind: str,
    frac: int = 16,
    out_frac: int | None = None,
    saturations: Saturations | None = None,
) -> Ints:
    """An activation function: silu, gelu_tanh, gelu_erf, quick_gelu, relu or relu2.

    With the kind's table G of 20 fraction bits::

        a = round_shift(|x|, frac - 16)                       32 bits
        g = G(a); for x < 0: 2**20 - g                        21 bits
        y = shift_saturate(x * g, 20 + frac - out_frac)       53 -> 32

    ``relu`` is ``shift_saturate(max(x, 0), frac - out_frac)``; ``relu2`` is
    ``shift_saturate(max(x, 0)**2, 2 * frac - out_frac)``, product 62 bits. The error of a gate is
    at most ``|x| * 2**-18`` plus half a unit.

    Stands for Sigmoid + Mul, Gelu (both forms and their decompositions), QuickGelu, Relu, Relu +
    Pow 2.

    Args:
        x: Fixed [...].
        kind: one of `GATE_KINDS`.
        frac: fraction bits of `x`.
        out_frac: fraction bits of the result (None: `frac`).
        saturations: counts elements.

    Raises:
        KeyError: an unknown kind.
    """
    x = np.asarray(x, np.int64)
    out_frac = frac if out_frac is None else out_frac
    if kind in ("relu", "relu2"):
        y = np.maximum(x, 0)
        if kind == "relu":
            return shift_saturate(y, frac - out_frac, FIXED_BITS, saturations)
        y *= y
        return shift_saturate(y, 2 * frac - out_frac, FIXED_BITS, saturations)
    y = _both_sides(x, GATES[kind], frac)
    y *= x
    return shift_saturate(y, GATE_FRAC + frac - out_frac, FIXED_BITS, saturations)


def _both_sides(x: Ints, name: str, frac: int) -> Ints:
    """A table of |x| with the other side from ``G(-x) = 1 - G(x)``, 20 fraction bits."""
    g = _of_magnitude(x, name, frac)
    # For negative x: complement and add one, then add 1.0.
    sign = x >> 63
    g ^= sign
    g -= sign
    sign &= 1 << GATE_FRAC
    g += sign
    return g


def _of_magnitude(x: Ints, name: str, frac: int) -> Ints:
    return lookup(table(name), round_shift(np.abs(x), frac - ARGUMENT_FRAC))


def sigmoid(x: Ints, frac: int = 16, out_frac: int = 16) -> Ints:
    """``1 / (1 + exp(-x))``: the gate g of `gate`'s silu, shifted to `out_frac`; ONNX Sigmoid.

    Error at most 2**-18 plus half a unit.
    """
    g = _both_sides(np.asarray(x, np.int64), "sigmoid", frac)
    return shift_saturate(g, GATE_FRAC - out_frac)


def tanh(x: Ints, frac: int = 16, out_frac: int = 16) -> Ints:
    """``tanh(x)``: table of |x|, negated for negative x, shifted to `out_frac`; ONNX Tanh.

    Error at most 2**-18 plus half a unit.
    """
    x = np.asarray(x, np.int64)
    return shift_saturate(_tanh(x, frac), GATE_FRAC - out_frac)


def _tanh(x: Ints, frac: int) -> Ints:
    g = _of_magnitude(x, "tanh", frac)
    sign = x >> 63
    g ^= sign
    g -= sign
    return g


def softcap(
    x: Ints,
    inverse: Real,
    cap: Real,
    frac: int = 16,
    out_frac: int = 16,
    saturations: Saturations | None = None,
) -> Ints:
    """``cap * tanh(x * inverse)``: bounds scores or logits smoothly.

    ::

        a = shift_saturate(x * inverse.mantissa, inverse.exponent + frac - 16)     57 -> 32
        g = tanh(a)                                                        21 bits and sign
        y = shift_saturate(g * cap.mantissa, 20 + cap.exponent - out_frac) 46 -> 32 bits

    Error at most ``cap * 2**-16`` plus half a unit. Stands for Div, Tanh, Mul (final logits) and
    for the softcap attribute of the attention operators.

    Args:
        x: Fixed [...].
        inverse: one over the cap.
        cap: the cap (for attention scores times log2(e), as `softmax` wants them).
        frac: fraction bits of `x`.
        out_frac: fraction bits of the result.
        saturations: counts elements of the result.
    """
    product = np.asarray(x, np.int64) * inverse.mantissa
    a = shift_saturate(product, inverse.exponent + frac - ARGUMENT_FRAC)
    g = _tanh(a, ARGUMENT_FRAC)
    g *= cap.mantissa
    return shift_saturate(g, GATE_FRAC + cap.exponent - out_frac, FIXED_BITS, saturations)


def mul(a: Ints, b: Ints, shift: int = 16, saturations: Saturations | None = None) -> Ints:
    """``shift_saturate(a * b, shift)``: product 63 -> 32 bits; ONNX Mul of two vectors.

    `shift` is the sum of the operands' fraction bits minus the result's.
    """
    return shift_saturate(np.asarray(a, np.int64) * b, shift, FIXED_BITS, saturations)


def add(a: Ints, b: Ints, saturations: Saturations | None = None) -> Ints:
    """``saturate(a + b)``, 33 -> 32 bits; ONNX Add (bias, residual). Fraction bits are equal."""
    return saturate(np.asarray(a, np.int64) + b, FIXED_BITS, saturations)


def scale(x: Ints, factor: Real, shift: int = 0, saturations: Saturations | None = None) -> Ints:
    """A product with a constant; ONNX Mul by a scalar.

    ``shift_saturate(x * factor.mantissa, factor.exponent + shift)``, product 57 -> 32 bits;
    `shift` is the fraction bits of `x` minus the result's.
    """
    product = np.asarray(x, np.int64) * factor.mantissa
    return shift_saturate(product, factor.exponent + shift, FIXED_BITS, saturations)


def argmax(x: Ints) -> Ints:
    """The index of the first maximum along the last axis; ONNX ArgMax (select_last_index 0)."""
    return np.argmax(x, axis=-1).astype(np.int64)


def _grouped(x: npt.NDArray[Any], groups: int) -> npt.NDArray[Any]:
    return x.reshape(*x.shape[:-1], groups, -1)
