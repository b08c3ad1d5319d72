"""What every operator of a compiled model computes, to the bit, in integers.

Products are written down here; what is done with each element is a formula of `dialects/formulas`,
which numpy reads here. The simulator's kernels and the RTL are tested against these functions and
must give the same integers, always. The functions are exact: floating point appears only inside
matrix products whose partial sums are integers that the float type represents exactly, whatever the
order of summation.

Conventions (`fixed_point` defines the words):

* Vectors are int64 arrays with any leading axes: a batch of tokens is the same call.
* *Fixed* values are int32 payloads with `frac` fraction bits, 16 unless stated; every function
  that makes them saturates to int32 and counts what saturated in the optional `saturations`.
* *Quantized* values are codes of a format with one `Scale` for each group.
* "width" in a docstring is the number of wires, with the sign where there is one. Shifts are by
  `round_shift` (half up) unless "floor" is said.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from intaglio.dialects.codes import SLOT_LIMITS, AdapterMatrix, Matrix, decode
from intaglio.dialects.fixed_point import SCALE_BITS, Ints, Real, Saturations, Scale, multiply
from intaglio.dialects.formats import ACCUMULATOR_BITS, EXPONENTS, FORMATS, SLOT_SCALE_BITS
from intaglio.dialects.formulas import blocks, heads, norms, products, quantise, recurrence, routing
from intaglio.dialects.formulas import softmax as softmax_formulas
from intaglio.dialects.formulas.arrays import Arrays
from intaglio.dialects.formulas.elementwise import ADD, ELEMENTWISE, MUL, Constants, Elementwise
from intaglio.dialects.formulas.norms import norm_epsilon, norm_values
from intaglio.dialects.formulas.products import PRODUCT_BITS, ROTARY_FRAC
from intaglio.dialects.formulas.quantise import format_values
from intaglio.dialects.formulas.reader import ScaleOf
from intaglio.dialects.formulas.softmax import PROBABILITY_FRAC

SLOT_HALF = 16
"""Places of a sum that are multiplied apart where the product has more bits than a word."""


@dataclass(frozen=True)
class BlockCodes:
    """Codes with an exponent a block, as they are written (`formulas.blocks`).

    Attributes:
        codes: int8 [..., N]; int16 where blocks are wide.
        size: elements of a block; the last one may be shorter.
        exponents: above the least one, [..., blocks].
        halves: 1 where a step is three quarters of a power of two, [..., blocks]; None: nowhere.
    """

    codes: npt.NDArray[np.signedinteger]
    size: int
    exponents: Ints
    halves: Ints | None

    def steps(self, *, apart: bool = False) -> Ints:
        """Of each block its step, in the integers' unit; apart: the factors ``4 - h`` (1 without
        half steps) of all blocks, and then their exponents."""
        factors = np.ones_like(self.exponents) if self.halves is None else 4 - self.halves
        if apart:
            return np.concatenate([factors, self.exponents], axis=-1)
        return factors << self.exponents

    @property
    def integers(self) -> Ints:
        """What the codes stand for."""
        steps = np.repeat(self.steps(), self.size, axis=-1)[..., : self.codes.shape[-1]]
        return self.codes * steps

    @property
    def largest(self) -> int:
        """The largest magnitude of such integers."""
        return (blocks.LARGEST * (1 if self.halves is None else 4)) << (EXPONENTS - 1)

    def times(self, count: int) -> BlockCodes:
        """The vectors [S, N], all of them so often."""
        parts = (self.codes, self.exponents, self.halves)
        codes, exponents, halves = (
            one if one is None else np.tile(one, (count, 1)) for one in parts
        )
        assert codes is not None
        assert exponents is not None
        return BlockCodes(codes, self.size, exponents, halves)

    def part(self, rows: npt.NDArray[np.bool_] | slice) -> BlockCodes:
        """Some of the vectors [S, N]."""
        halves = None if self.halves is None else self.halves[rows]
        return BlockCodes(self.codes[rows], self.size, self.exponents[rows], halves)


class Quantized(NamedTuple):
    """Codes [..., N] with a scale [..., groups] for each ``N / groups`` of them.

    The real value of an element is ``decode(code) * scale``. In place of codes with an exponent a
    block (not a head) stand the integers that they are multiplied as, with one scale; whoever made
    them may give the codes themselves in `blocks`.
    """

    codes: Ints
    scale: Scale
    format: str
    blocks: BlockCodes | None = None

    def rows(self, which: npt.NDArray[np.bool_]) -> Quantized:
        """Some of the vectors [S, N]."""
        scale = Scale(self.scale.mantissa[which], self.scale.exponent[which])
        made = None if self.blocks is None else self.blocks.part(which)
        return Quantized(self.codes[which], scale, self.format, made)

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
    """Width of the exact product with an adapter in a slot, signed, for any codes, scales,
    activations.

    A row has one scale, so it is the sum before that which may have 62 bits; what the product has
    beyond them `dot` leaves out (`slot_floor`).

    Args:
        code: of the adapter's weights.
        columns: K, the elements of a row.
        fmt: the activations' format.

    Raises:
        ValueError: the sum needs more than 62 bits.
    """
    bound = columns * SLOT_LIMITS[code] * FORMATS[fmt].magnitude
    _ = _checked(bound)
    return (bound << SLOT_SCALE_BITS).bit_length() + 1


def slot_floor(shift: int) -> int:
    """Places that `dot` leaves out of an adapter's product, so that it has 62 bits: of the `shift`
    that `requantize` takes from it the lowest ones.

    They are below the one that rounding asks for, so ``round_shift(y, shift)`` is
    ``round_shift(y >> floor, shift - floor)``.
    """
    return max(0, shift - (ACCUMULATOR_BITS - PRODUCT_BITS))


def query_key_bits(head_dim: int, q_format: str, k_format: str) -> int:
    """Width of `query_key`'s result, signed."""
    return _checked(head_dim * FORMATS[q_format].code_magnitude * FORMATS[k_format].code_magnitude)


def weighted_sum_bits(tokens: int, p_format: str, v_format: str) -> int:
    """Width of `weighted_sum`'s result, signed, for a context of `tokens`."""
    return _checked(tokens * FORMATS[p_format].code_magnitude * FORMATS[v_format].code_magnitude)


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
    """Codes and scales of `formulas.quantise.quantize`.

    Args:
        x: Fixed [..., N], ``|x| <= 2**31``; not negative for the unsigned formats.
        fmt: a name in `FORMATS`.
        frac: fraction bits of `x`.
        groups: equal parts of the last axis with a scale of their own (heads, for a KV cache).
    """
    r, grouped = Arrays(), _grouped(np.asarray(x, np.int64), groups)
    m = np.abs(grouped).max(axis=-1, keepdims=True)
    code, scale = quantise.quantize(
        r, lambda at: grouped, m, frac, format_values(fmt), fmt == "fp8"
    )
    mantissa, exponent = (part[..., 0] for part in scale)
    return Quantized(code(None).reshape(np.shape(x)), Scale(mantissa, exponent), fmt)


def quantize_static(
    x: Ints,
    fmt: str,
    inverse: Real,
    frac: int = 16,
    saturations: Saturations | None = None,
) -> Ints:
    """Codes of `formulas.quantise.quantize_static`.

    Args:
        x: Fixed [..., N].
        fmt: a name in `FORMATS`.
        inverse: one over the real value of a decoded 1 (for fp8: of 2**-9 times the graph's
            scale).
        frac: fraction bits of `x`.
        saturations: counts clipped elements.
    """
    form, fp8 = FORMATS[fmt], fmt == "fp8"
    places = inverse.exponent + frac - (8 if fp8 else 0)
    return quantise.quantize_static(
        Arrays(saturations),
        np.asarray(x, np.int64),
        inverse.mantissa,
        places,
        form.low,
        form.high,
        fp8,
    )


def quantize_blocks(
    x: Ints,
    fmt: str,
    block: int,
    frac: int = 16,
    fraction: int = 16,
    saturations: Saturations | None = None,
    wide: Collection[int] = (),
) -> Quantized:
    """Integers of `formulas.blocks.quantise`, as `dot` takes them, and their unit.

    Args:
        x: Fixed [..., N], ``|x| <= 2**31``.
        fmt: a name in `FORMATS`, of codes with an exponent a block.
        block: elements that share an exponent; fewer in the last block, where it does not divide N.
        frac: fraction bits of `x`.
        fraction: of the integers; `formulas.blocks.least_exponent` of it is 0 to 24.
        saturations: counts elements that the largest exponent does not reach.
        wide: numbers of the blocks whose codes have 16 bits.

    Returns:
        What codes stand for, in place of codes, and one scale ``2**-fraction`` a vector.
    """
    steps = FORMATS[fmt].steps
    low = blocks.least_exponent(frac, fraction, steps)
    x = np.asarray(x, np.int64)
    whole = whole_blocks(x, block)
    grouped = whole.reshape(*x.shape[:-1], -1, block)
    r = Arrays(saturations)
    of_16 = wide_mask(wide, grouped.shape[-2])[:, None] if wide else None
    shared, code = blocks.quantise(r, lambda at: grouped, low, steps, of_16)
    codes = code(None)
    integers = blocks.integer(r, codes, shared, steps).reshape(whole.shape)
    made = BlockCodes(
        codes.astype(np.int16 if wide else np.int8).reshape(whole.shape)[..., : x.shape[-1]],
        block,
        shared.exponent[..., 0],
        None if steps == 1 else shared.half[..., 0],
    )
    return Quantized(integers[..., : x.shape[-1]], unit_scale(x.shape, fraction), fmt, made)


def wide_mask(wide: Collection[int], count: int) -> Ints:
    """Of each block whether it is wide: 1 or 0 [count].

    Raises:
        ValueError: there is no block of such a number.
    """
    if wide and not 0 <= min(wide) <= max(wide) < count:
        raise ValueError(f"{max(wide)} is no block of {count}")
    mask = np.zeros(count, np.int64)
    mask[list(wide)] = 1
    return mask


def whole_blocks(x: Ints, block: int) -> Ints:
    """Vectors [..., N] with zeros behind, so that whole blocks cover them; zeros change neither a
    block's exponent nor its step."""
    more = -x.shape[-1] % block
    return np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, more)]) if more else x


def quantize_heads(x: Ints, fmt: str, frac: int = 16, groups: int = 1) -> Quantized:
    """Codes and scales of `formulas.heads.quantise`.

    Args:
        x: Fixed [..., N], ``|x| <= 2**31``.
        fmt: a name in `HEAD_FORMATS`.
        frac: fraction bits of `x`.
        groups: heads, equal parts of the last axis.
    """
    grouped = _grouped(np.asarray(x, np.int64), groups)
    code, scale = heads.quantise(Arrays(), lambda at: grouped, frac)
    mantissa, exponent = (part[..., 0] for part in scale)
    return Quantized(code(None).reshape(np.shape(x)), Scale(mantissa, exponent), fmt)


def unit_scale(shape: tuple[int, ...], fraction: int) -> Scale:
    """``2**-fraction`` for each vector [..., N] of a shape, as scales [..., 1]."""
    of = (*shape[:-1], 1)
    places = SCALE_BITS - 1
    return Scale(np.full(of, 1 << places), np.full(of, places + fraction))


# Matrix products


def dot(
    codes: npt.NDArray[np.integer], weights: Matrix | AdapterMatrix, fmt: str, floor: int = 0
) -> Ints:
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
    ``slot_bits - 15``, of the whole `slot_bits`, of which `floor` places are left out. Where an
    adapter of rank r is in slots of a larger rank, elements of the first product from r on are 0:
    quantising them changes nothing, and the second product needs r columns only.

    Stands for MatMulNBits, MatMulInteger and (DequantizeLinear +) MatMul or Gemm.

    Args:
        codes: [..., K] of the format.
        weights: N rows of K elements.
        fmt: the activations' format.
        floor: places that the product of an adapter loses, rounded down: `slot_floor`.

    Returns:
        int64 [..., N].

    Raises:
        ValueError: shapes do not fit, or the exact sum would need more than 62 bits.
    """
    columns = weights.columns
    if codes.shape[-1] != columns:
        raise ValueError(f"{codes.shape[-1]} activations for {columns} columns")
    if isinstance(weights, AdapterMatrix):
        bits = slot_bits(weights.code, columns, fmt)
        if bits - floor > ACCUMULATOR_BITS:
            raise ValueError(f"a product of {bits} bits less {floor} is more than 62")
        x = np.asarray(decode(codes, fmt), np.int64)
        sums = _adapter_sums(x, weights.weights, FORMATS[fmt].magnitude, SLOT_LIMITS[weights.code])
        return _scaled_down(sums, weights.scales.astype(np.int64), floor)
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


def _adapter_sums(x: Ints, weights: Ints, largest: int, limit: int) -> Ints:
    """The exact products of integers up to `largest` and weights up to `limit`."""
    bound = x.shape[-1] * limit
    if bound * largest < 1 << 53:
        kind = _exact_type(bound * largest)
        return (x.astype(kind) @ weights.T.astype(kind)).astype(np.int64)
    # In two halves, each of which floating point holds.
    half = largest.bit_length() // 2
    parts = ((x >> half, bound * ((largest >> half) + 1)), (x & (1 << half) - 1, bound << half))
    high, low = (
        (one.astype(kind) @ weights.T.astype(kind)).astype(np.int64)
        for one, of in parts
        for kind in (_exact_type(of),)
    )
    return (high << half) + low


def _scaled_down(sums: Ints, scales: Ints, places: int) -> Ints:
    """``sums * scales >> places``, exactly, for products of up to 78 bits and 16 places."""
    if not places:
        return sums * scales
    high, low = sums >> SLOT_HALF, sums & (1 << SLOT_HALF) - 1
    return (high * scales << SLOT_HALF - places) + (low * scales >> places)


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
    """`formulas.products.requantize` of accumulators.

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
    grouped = _grouped(y, mantissa.shape[-1])
    each = ScaleOf(mantissa[..., None], power[..., None])
    terms = [
        _grouped(np.broadcast_to(term, y.shape), mantissa.shape[-1])
        for term in (bias, residual)
        if term is not None
    ]
    more = exponent - shift - out_frac
    r = Arrays(saturations)
    return products.requantize(r, grouped, each, shift, more, *terms).reshape(y.shape)


def embed(
    rows: Ints,
    exponent: int,
    frac: int = 16,
    factor: Real | None = None,
    saturations: Saturations | None = None,
) -> Ints:
    """`formulas.products.embed` of rows of a table.

    Args:
        rows: mantissas, at most 24 bits and a sign: ``Matrix.values(ids)``, or int16 mantissas
            ``table[ids]``.
        exponent: of the mantissas.
        frac: fraction bits of the result.
        factor: a constant of at most 24 bits and a sign.
        saturations: counts elements.
    """
    by, places = (1, 0) if factor is None else (factor.mantissa, factor.exponent)
    rows = np.asarray(rows, np.int64)
    return products.embed(Arrays(saturations), rows, by, exponent + places - frac)


# Norms


def norm(
    x: Ints,
    gamma: npt.NDArray[np.integer],
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
    """`formulas.norms.norm` of each group of n elements.

    As they are: ``x / sqrt(mean(x**2) + eps) * weight``. Of `formulas.norms.centred` elements:
    ``(x - mean) / sqrt(variance + eps) * weight + bias``.

    Args:
        x: Fixed [..., groups * n], ``|x| <= 2**31``.
        gamma: signed mantissas of the weight **times sqrt(n)**, at most 24 bits and a sign (int16
            as a rule), [n] or [groups * n].
        gamma_exponent: their exponent.
        eps: the graph's epsilon, not negative.
        frac: fraction bits of `x`.
        out_frac: fraction bits of the result.
        groups: equal parts of the last axis that are normalised apart.
        saturations: counts elements, with `beta` at both places.
        centred: whether the mean is taken off.
        beta: Fixed with `out_frac` fraction bits, [groups * n] or what broadcasts to it, or None.

    Raises:
        ValueError: n is more than 2**14.
    """
    r, grouped = Arrays(saturations), _grouped(np.asarray(x, np.int64), groups)
    width = grouped.shape[-1]
    values = norm_values(eps, width, frac, centred, gamma_exponent - out_frac)
    weight = np.asarray(gamma, np.int64)
    if weight.shape[-1] != width:
        weight = weight.reshape(groups, width)
    elements = norms.centred(r, lambda at: grouped, width)(None) if centred else grouped
    y = norms.norm(r, lambda at: elements, lambda at: weight, values)(None).reshape(x.shape)
    return y if beta is None else operator(ADD.name, y, beta, saturations=saturations)


def rms_scale(x: Ints, eps: Real, frac: int = 16) -> Scale:
    """`formulas.norms.rms_scale` of vectors.

    Args:
        x: Fixed [..., n].
        eps: the graph's epsilon, not negative.
        frac: fraction bits of `x`.

    Returns:
        A scale a vector, [..., 1].

    Raises:
        ValueError: n is more than 2**14.
    """
    r, x = Arrays(), np.asarray(x, np.int64)
    epsilon = norm_epsilon(eps, x.shape[-1], frac)
    high, low = r.sweep(lambda at: norms.square(r, x), "sum", "sum")
    mantissa, exponent = norms.rms_scale(r, high, low, np.asarray(epsilon, np.int64), frac)
    return Scale(mantissa, exponent)


def with_norm(x: Quantized, norm: Scale) -> Quantized:
    """A vector of one unit whose products' results are times the factor of a norm."""
    unit = int(np.asarray(x.scale.exponent).reshape(-1)[0]) - (SCALE_BITS - 1)
    return x._replace(scale=Scale(norm.mantissa, norm.exponent + unit))


# Attention


def rotary(
    x: Ints,
    cos: npt.NDArray[np.integer],
    sin: npt.NDArray[np.integer],
    heads: int,
    interleaved: bool = False,
    saturations: Saturations | None = None,
    table_frac: int = ROTARY_FRAC,
) -> Ints:
    """`formulas.products.rotate` of pairs of elements of each head, by the token's angles.

    Pairs are (i, i + R/2), or (2i, 2i + 1) when interleaved, among the first R elements of a head
    (R = twice the cosines); the others pass.

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
    y[..., first], y[..., second] = products.rotate(Arrays(saturations), a, b, c, s, table_frac)
    return y.reshape(x.shape)


def tap(
    x: Ints,
    weights: npt.NDArray[np.integer],
    shift: int,
    bias: npt.NDArray[np.integer] | None = None,
    addend: Ints | None = None,
    saturations: Saturations | None = None,
) -> Ints:
    """A tap of a depthwise convolution: the formula `mul` with constant weights, then `add`.

    ::

        y = shift_saturate(x * w, shift)      48 -> 32 bits
        y = saturate(y + a)                   33 -> 32 bits; a is the bias or the addend

    Args:
        x: Fixed [..., N].
        weights: int16 [N].
        shift: fraction bits of `x` and of the weights, less those of the result.
        bias: Fixed [N], of the result's fraction bits.
        addend: Fixed [..., N], the same.
        saturations: counts elements.
    """
    w = np.asarray(weights, np.int64)
    y = elementwise(MUL, (x, w), Constants(second_shift=shift), saturations)
    more = bias if addend is None else addend
    if more is None:
        return y
    return elementwise(ADD, (y, np.asarray(more, np.int64)), Constants(), saturations)


def delay(x: Ints, last: Ints) -> Ints:
    """The same values a token later: [last, x[0], ..., x[-2]]; what x ends with is the next `last`.

    Args:
        x: Fixed [S, N], of S tokens one after the other.
        last: Fixed [N], that of the token before them; zeros where they begin at position 0.
    """
    return np.concatenate([np.asarray(last, np.int64)[None], np.asarray(x, np.int64)[:-1]])


# Linear attention


class Matrices(NamedTuple):
    """The state of linear attention: mantissas [heads, K, V] and an exponent a head [heads].

    The real value of an element is ``mantissas * 2**-exponents``.
    """

    mantissas: Ints
    exponents: Ints

    @staticmethod
    def empty(heads: int, key_width: int, value_width: int) -> Matrices:
        """The state before the first token."""
        return Matrices(
            np.zeros((heads, key_width, value_width), np.int64), np.zeros(heads, np.int64)
        )

    @property
    def values(self) -> npt.NDArray[np.float64]:
        """The real values as float64: for reports and tests, never for arithmetic."""
        return np.ldexp(self.mantissas.astype(np.float64), -self.exponents[:, None, None])


def state_sum_bits(key_width: int, fmt: str) -> int:
    """Width of a sum over a head's state, and over a key and a query, signed."""
    largest = max(FORMATS[fmt].magnitude, recurrence.STATE_LIMIT)
    return _checked(key_width * FORMATS[fmt].magnitude * largest)


def linear_attention(
    query: Quantized,
    key: Quantized,
    value: Ints,
    decay: Ints | None,
    beta: Ints | None,
    state: Matrices,
    *,
    fractions: tuple[int, int, int, int],
    shift: int,
    saturations: Saturations | None = None,
) -> tuple[Ints, Matrices]:
    """Tokens one after the other through the states of their heads: `formulas.recurrence`.

    Of each token t and each of H heads, whose key and query are those of head
    ``h * groups div H``::

        g = decay_factor(decay)                  without a decay 2**24, that is 1
        dots = sum_i k_i * S_ij, sum_i q_i * S_ij, sum_i k_i * q_i      exact, `state_sum_bits`
        o_j, w_j = recalled(...)
        S_ij = remembered(...), by the exponent of news(...)

    Stands for LinearAttention with the rules linear (neither), gated (decay), delta (beta), and
    gated_delta (both); the decay is a logarithm, one a head.

    Args:
        query, key: codes [S, groups * K], integers of one format; groups divide the heads.
        value: Fixed [S, heads * V].
        decay: Fixed [S, heads], or None.
        beta: Fixed [S, heads], or None.
        state: of the tokens before.
        fractions: fraction bits of value, decay, beta and the result.
        shift: `pre_shift` of `state_sum_bits`.
        saturations: counts elements.

    Returns:
        Fixed [S, heads * V], and the state after the tokens.
    """
    heads, width, columns = state.mantissas.shape
    tokens = len(value)
    of_value, of_decay, of_beta, frac = fractions
    r = Arrays(saturations)
    limit = FORMATS[key.format].limit

    def codes(x: Quantized) -> Ints:
        found = np.asarray(decode(x.codes, x.format), np.int64).reshape(tokens, -1, width)
        return np.repeat(found, heads // found.shape[1], 1)

    def scales(x: Quantized, t: int) -> ScaleOf[Ints]:
        parts = (np.repeat(one[t], heads // len(one[t]))[:, None] for one in x.scale)
        return ScaleOf(*parts)

    q, k = codes(query), codes(key)
    v = np.asarray(value, np.int64).reshape(tokens, heads, columns)
    v = r.shift_saturate(v, of_value - frac)
    factors = np.full((tokens, heads), 1 << recurrence.DECAY_FRAC, np.int64)
    if decay is not None:
        factors = recurrence.decay_factor(r, np.asarray(decay, np.int64), of_decay)
    output = np.empty((tokens, heads, columns), np.int64)
    mantissas, exponents = state
    for t in range(tokens):
        ks, qs, factor = scales(key, t), scales(query, t), factors[t][:, None]
        b = None if beta is None else np.asarray(beta[t], np.int64)[:, None]
        both = _sums(np.stack([k[t], q[t]], 1), mantissas)
        dot = (k[t] * q[t]).sum(-1, keepdims=True)
        match = recurrence.matched(r, dot, ks, qs, shift)
        more = exponents[:, None] - shift - frac
        output[t], w = recurrence.recalled(
            r, both[:, 0], both[:, 1], ks, qs, match, v[t], factor, b, shift, more, of_beta
        )
        top = np.abs(mantissas).max(axis=(1, 2), keepdims=False)[:, None]
        largest = np.abs(w).max(axis=-1, keepdims=True)
        one = recurrence.news(r, largest, ks, limit, frac, top, exponents[:, None], factor)
        a = recurrence.added(r, w, ks.mantissa, one.places)
        wide = recurrence.News(*(part[:, :, None] for part in one))
        mantissas = recurrence.remembered(
            r, mantissas, k[t][:, :, None], factor[:, :, None], a[:, None, :], wide
        )
        exponents = one.exponent[:, 0]
    return output.reshape(tokens, -1), Matrices(mantissas, exponents)


def _sums(codes: Ints, mantissas: Ints) -> Ints:
    """Exact products of codes [heads, n, K] and states [heads, K, V]."""
    largest = int(np.abs(codes).max(initial=0)) * recurrence.STATE_LIMIT * codes.shape[-1]
    kind = _exact_type(max(1, largest))
    return (codes.astype(kind) @ mantissas.astype(kind)).astype(np.int64)


def attention_mask(
    positions: int | npt.NDArray[np.integer], tokens: int, window: int | None = None
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


def seen_of_last(tokens: int, cached: int, window: int) -> npt.NDArray[np.bool_]:
    """Which of the cached tokens the last ones see: bool [tokens, cached].

    Args:
        tokens: how many queries, each of one of the last tokens.
        cached: length of the cache.
        window: how many tokens a query sees, itself included; 0: all up to itself.
    """
    return attention_mask(np.arange(cached - tokens, cached), cached, window or None)


def query_key(
    q: npt.NDArray[np.integer],
    k: npt.NDArray[np.integer],
    q_format: str = "int8",
    k_format: str = "int8",
    window: int | None = None,
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
        window: where queries [S, heads, D] are of the last S tokens, what each of them sees
            (`seen_of_last`); products with the other keys are 0. None: each sees all.

    Returns:
        int64 [..., heads, T].
    """
    bound = q.shape[-1] * FORMATS[q_format].code_magnitude * FORMATS[k_format].code_magnitude
    keys = np.swapaxes(decode(k, k_format), 1, 2)
    y = _by_kv_head(decode(q, q_format), keys, bound)
    if window is None:
        return y
    return y * seen_of_last(len(q), k.shape[1], window)[:, None]


def weighted_sum(
    p: npt.NDArray[np.integer],
    v: npt.NDArray[np.integer],
    p_format: str = "uint8",
    v_format: str = "int8",
    window: int | None = None,
) -> Ints:
    """The exact weighted sums of cached values.

    ``y[h, d] = sum_t p[h, t] * decode(v[h // r, t, d])``. Width: `weighted_sum_bits`. Stands for
    the second product in GroupQueryAttention and its kin.

    Args:
        p: `softmax`'s codes [..., heads, T].
        v: codes [kv_heads, T, D].
        p_format: format of the probabilities.
        v_format: format of the values.
        window: as in `query_key`; the codes of what is not seen are 0.

    Returns:
        int64 [..., heads, D].
    """
    bound = p.shape[-1] * FORMATS[p_format].code_magnitude * FORMATS[v_format].code_magnitude
    return _by_kv_head(p, decode(v, v_format), bound)


def _by_kv_head(a: npt.NDArray[np.integer], b: npt.NDArray[np.integer], bound: int) -> Ints:
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
    window: int | None = None,
) -> Ints:
    """`formulas.softmax.score_scale` of products of queries and keys.

    Args:
        dots: `query_key`'s [..., heads, T].
        q_scale: [..., heads].
        k_scale: [kv_heads, T] for scales of each token; [kv_heads, 1] or no axes for static ones.
        factor: positive, normalised to 24 bits (`Real.of`).
        shift: `pre_shift` of `query_key_bits`.
        saturations: counts elements.
        window: as in `query_key`; a score of what is not seen is 0, as its product.
    """
    keys = _per_token(k_scale)
    kv_heads = keys.mantissa.shape[0]
    dots = np.asarray(dots, np.int64)
    by_kv = (*dots.shape[:-2], kv_heads, dots.shape[-2] // kv_heads)
    query = multiply(q_scale, Scale.of(factor))
    return softmax_formulas.score_scale(
        Arrays(saturations),
        dots.reshape(*by_kv, dots.shape[-1]),
        ScaleOf(*(part.reshape(*by_kv, 1) for part in query)),
        ScaleOf(*(part[:, None, :] for part in keys)),
        shift,
    ).reshape(dots.shape)


def sloped(
    scores: Ints, slopes: Ints, distance: Ints, saturations: Saturations | None = None
) -> Ints:
    """`formulas.softmax.sloped` of scores; what ALiBi adds to them.

    Args:
        scores: Fixed with 16 fraction bits [S, heads, T], to the base 2.
        slopes: Fixed with 24 fraction bits [heads]: what a score loses for each token.
        distance: tokens from each key to the query [S, T]; negative where a key is not seen.
        saturations: counts elements that are seen.
    """
    r, there = Arrays(), np.maximum(np.asarray(distance, np.int64), 0)[:, None, :]
    loss = softmax_formulas.distance_loss(r, np.asarray(slopes, np.int64)[:, None], there)
    return softmax_formulas.sloped(Arrays(saturations), np.asarray(scores, np.int64), loss)


def softmax(
    scores: Ints,
    v_scale: Scale,
    fmt: str = "uint8",
    mask: npt.NDArray[np.bool_] | None = None,
    sink: Ints | None = None,
    window: int | None = None,
) -> tuple[Quantized, Ints]:
    """`formulas.softmax.softmax` of each head.

    Args:
        scores: Fixed with 16 fraction bits [..., heads, T], to the base 2.
        v_scale: [kv_heads, T] for scales of each token; [kv_heads, 1] or no axes for static ones.
        fmt: uint8 or uint16.
        mask: True where a query sees a token, broadcasts to [..., T].
        sink: Fixed with 16 fraction bits [heads], to the base 2: a token without a value
            (head_sink).
        window: in place of a mask, as in `query_key`.

    Returns:
        Codes [..., heads, T] with a scale [..., heads]; the total [..., heads] with 24 fraction
        bits.
    """
    x, values, seen, sinks = _softmax_inputs(scores, v_scale, mask, sink, window)
    code, scale, total = softmax_formulas.softmax(
        Arrays(), x, values, format_values(fmt), seen, sinks
    )
    return _numerators(code(None), scale, total, np.shape(scores), fmt)


def softmax_places(
    scores: Ints,
    v_scale: Scale,
    fmt: str = "places8",
    mask: npt.NDArray[np.bool_] | None = None,
    sink: Ints | None = None,
    window: int | None = None,
) -> tuple[Quantized, Ints]:
    """`formulas.softmax.softmax_places` of each head; arguments and result are those of `softmax`.

    In place of codes stand the integers that they are multiplied as: a byte at its place.
    """
    x, values, seen, sinks = _softmax_inputs(scores, v_scale, mask, sink, window)
    integer, scale, total = softmax_formulas.softmax_places(Arrays(), x, values, seen, sinks)
    return _numerators(integer(None), scale, total, np.shape(scores), fmt)


def _softmax_inputs(
    scores: Ints,
    v_scale: Scale,
    mask: npt.NDArray[np.bool_] | None,
    sink: Ints | None,
    window: int | None,
) -> tuple[
    Callable[[None], Ints],
    Callable[[None], ScaleOf[Ints]],
    Callable[[None], Ints] | None,
    Ints | None,
]:
    """Scores, values' scales, what is seen and sinks, with an axis of KV heads and one of the query
    heads that share one."""
    scores = np.asarray(scores, np.int64)
    lead, (heads, tokens) = scores.shape[:-2], scores.shape[-2:]
    values = _per_token(v_scale)
    kv_heads = values.mantissa.shape[0]
    by_kv = scores.reshape(*lead, kv_heads, heads // kv_heads, tokens)
    each = ScaleOf(*(part[:, None, :] for part in values))
    sinks = None if sink is None else np.asarray(sink, np.int64).reshape(kv_heads, -1, 1)
    if window is not None:
        mask = seen_of_last(len(scores), tokens, window)
    if mask is None:
        return lambda at: by_kv, lambda at: each, None, sinks
    seen = -np.broadcast_to(mask, (*lead, tokens)).astype(np.int64)[..., None, None, :]
    return lambda at: by_kv, lambda at: each, lambda at: seen, sinks


def _numerators(
    codes: Ints, scale: ScaleOf[Ints], total: Ints, shape: tuple[int, ...], fmt: str
) -> tuple[Quantized, Ints]:
    """Numerators of scores of a shape, and totals, with one axis of query heads again."""
    mantissa, exponent = (np.broadcast_to(part, total.shape).reshape(shape[:-1]) for part in scale)
    made = Quantized(codes.reshape(shape), Scale(mantissa, exponent), fmt)
    return made, total.reshape(shape[:-1])


def reciprocal_scale(total: Ints, frac: int = PROBABILITY_FRAC) -> Scale:
    """`formulas.softmax.reciprocal_scale` of totals.

    Args:
        total: `softmax`'s total [..., heads].
        frac: its fraction bits.
    """
    total = np.asarray(total, np.int64)
    scale = softmax_formulas.reciprocal_scale(Arrays(), total, frac)
    return Scale(scale.mantissa, scale.exponent)


def _per_token(scale: Scale) -> Scale:
    return Scale(np.atleast_2d(scale.mantissa), np.atleast_2d(scale.exponent))


# Experts


class Routing(NamedTuple):
    """Numbers of the chosen experts [..., k], the one with the largest logit first, and their
    shares with 24 fraction bits."""

    experts: Ints
    shares: Ints


def route(
    logits: Ints, chosen: int, frac: int = 16, *, lowest: bool = False, every: bool = False
) -> Routing:
    """The experts with the largest logits, and their shares: `formulas.routing`.

    ::

        p[i] = numerator(m - logit[i])    of the chosen, or of all; m is the largest logit
        total = sum(p)                    24 bits + log2 of their number
        share[i] = p[i] * reciprocal_scale(total)

    Among equal logits the expert with the highest number comes first, as in onnxruntime's MoE and
    QMoE; with `lowest` that with the lowest, as in TopK.

    Args:
        logits: Fixed [..., E].
        chosen: how many.
        frac: fraction bits of `logits`.
        lowest: which of equal logits comes first.
        every: whether the numerators of all experts are summed, not only those of the chosen.
    """
    logits = np.asarray(logits, np.int64)
    last = logits.shape[-1] - 1
    if lowest:
        experts = np.argsort(-logits, axis=-1, kind="stable")[..., :chosen]
    else:
        experts = last - np.argsort(-logits[..., ::-1], axis=-1, kind="stable")[..., :chosen]
    return route_to(logits, experts, frac, every=every)


def route_to(logits: Ints, experts: Ints, frac: int = 16, *, every: bool = False) -> Routing:
    """The shares of given experts [..., k]; the other arguments are those of `route`."""
    logits = np.asarray(logits, np.int64)
    r = Arrays()
    largest = logits.max(axis=-1, keepdims=True)
    p = routing.numerator(r, largest, np.take_along_axis(logits, experts, -1), frac)
    summed = routing.numerator(r, largest, logits, frac) if every else p
    reciprocal = softmax_formulas.reciprocal_scale(
        r, summed.sum(axis=-1, keepdims=True), PROBABILITY_FRAC
    )
    return Routing(experts.astype(np.int64), routing.share(r, p, reciprocal))


def weigh(
    y: Ints,
    share: Ints,
    frac: int = 16,
    out_frac: int = 16,
    residual: Ints | None = None,
    saturations: Saturations | None = None,
) -> Ints:
    """`formulas.routing.weigh` of an expert's result.

    Args:
        y: Fixed [..., N].
        share: of the expert, with 24 fraction bits [...].
        frac: fraction bits of `y`.
        out_frac: fraction bits of the result and of `residual`.
        residual: Fixed [..., N], what other experts gave.
        saturations: counts elements, with `residual` at both places.
    """
    r = Arrays(saturations)
    each = np.asarray(share, np.int64)[..., None]
    places = routing.SHARE_FRAC + frac - out_frac
    return routing.weigh(r, np.asarray(y, np.int64), each, places, residual)


# Elementwise


def elementwise(
    one: Elementwise,
    operands: Sequence[Ints],
    constants: Constants[int],
    saturations: Saturations | None = None,
) -> Ints:
    """An elementwise operator: its formula in `formulas.elementwise`.

    Args:
        one: a value of `ELEMENTWISE`.
        operands: Fixed [...], as many as it takes; they broadcast.
        constants: `one.constants` of the operands' and the result's fraction bits.
        saturations: counts elements.
    """
    x = [np.asarray(operand, np.int64) for operand in operands]
    return one.body(Arrays(saturations), constants, x[0], x[-1])


def operator(
    name: str,
    *operands: Ints,
    fractions: Sequence[int] = (16,),
    into: int = 16,
    given: Sequence[Real] = (),
    saturations: Saturations | None = None,
) -> Ints:
    """`elementwise` by name.

    Args:
        name: a key of `ELEMENTWISE`.
        operands: Fixed [...], as many as it takes; they broadcast.
        fractions: their fraction bits.
        into: fraction bits of the result.
        given: the real numbers of an instruction.
        saturations: counts elements.
    """
    one = ELEMENTWISE[name]
    return elementwise(one, operands, one.constants(fractions, into, given), saturations)


def argmax(x: Ints) -> Ints:
    """The index of the first maximum along the last axis; ONNX ArgMax (select_last_index 0)."""
    return np.argmax(x, axis=-1).astype(np.int64)


def _grouped(x: np.ndarray, groups: int) -> np.ndarray:
    return x.reshape(*x.shape[:-1], groups, -1)
