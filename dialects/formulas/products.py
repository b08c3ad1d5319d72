"""What is done with each element around exact products: requantisation, embedding, rotation."""

from __future__ import annotations

from intaglio.dialects.formulas.reader import Reader, ScaleOf, V

PRODUCT_BITS = 39
"""Width of what a scale mantissa is multiplied with: 39 + 24 bits fit a signed 64-bit product."""
ROTARY_FRAC = 14
"""Fraction bits of the rotary embedding's cosines and sines, unless they reach 2."""


def requantize(
    r: Reader[V], y: V, scale: ScaleOf[V], shift: V | int, more: V | int, *added: V
) -> V:
    """An accumulator times its scale, as Fixed; then bias and residual are added.

    ::

        t = round_shift(y, shift)                                         39 bits
        places = scale.exponent + exponent - shift - out_frac
        f = shift_saturate(t * scale.mantissa, places)                    63 -> 32 bits
        f = saturate(f + bias); f = saturate(f + residual)                33 -> 32 bits, each

    The relative error of the product before the last rounding is that of the scale (2**-22), and
    half a unit of ``2**(shift - scale.exponent - exponent)`` from the first shift. `shift` is
    `semantics.pre_shift` of the accumulator's width, `more` is
    ``exponent - shift - out_frac``. Counts elements, at each of the three places.

    Stands for the multiplication by activation and weight scales in MatMulNBits, for
    DequantizeLinear after MatMulInteger, and for Add after MatMul (bias,
    SkipSimplifiedLayerNormalization's sum).
    """
    most = 1 << (PRODUCT_BITS - 1)
    t = r.cut(r.assume(r.round_shift(y, shift), -most, most))
    f = r.shift_saturate(r.cut(t * scale.mantissa), scale.exponent + more)
    for term in added:
        f = r.saturate(r.cut(f) + term)
    return f


def embed(r: Reader[V], row: V, factor: V | int, places: V | int) -> V:
    """Rows of an embedding table as Fixed, times an optional constant.

    ``shift_saturate(rows * factor.mantissa, exponent + factor.exponent - frac)``; 25 + 25 = 50 ->
    32 bits. `places` is the second argument; without a constant `factor` is 1.

    Stands for Gather, GatherBlockQuantized, and the multiplication by sqrt(hidden size) in Gemma.
    """
    return r.shift_saturate(r.product(row, factor), places)


def rotate(r: Reader[V], a: V, b: V, c: V, s: V, places: V | int) -> tuple[V, V]:
    """Rotary position embedding: rotates pairs of elements of each head by the token's angles.

    For a pair (a, b) with cosine c and sine s::

        a' = shift_saturate(a * c - b * s, table_frac)       products 48 bits, sum 49 -> 32
        b' = shift_saturate(b * c + a * s, table_frac)

    The cosines' rounding turns into an error of at most ``2**-(table_frac + 1)`` of ``|a| + |b|``.

    Stands for RotaryEmbedding (both domains) and GroupQueryAttention with do_rotary.
    """
    first = r.product(a, c) - r.product(b, s)
    second = r.product(b, c) + r.product(a, s)
    return r.shift_saturate(first, places), r.shift_saturate(second, places)
