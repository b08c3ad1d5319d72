"""Codes of 8 bits with an exponent a block: what a product reads without waiting for a maximum.

A block's step is a power of two, or three quarters of one ("half steps"), chosen from 16 exponents
(`formats.EXPONENTS`) by the block's own largest magnitude. Codes stand for integers of one unit, so
that products of any blocks are added exactly, in any order.

A block may be *wide*: codes of 16 bits, steps of powers of two alone, exponents of which the
largest is 8 below that of the others. What its codes stand for is no larger than what those of
other blocks do, so sums are no wider.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, NamedTuple

from intaglio.dialects.formats import EXPONENTS, FORMATS
from intaglio.dialects.formulas.reader import Groups, P, Reader, V

CODE_PLACES = 7
"""Bits of a code's magnitude."""
EXPONENT_BITS = (EXPONENTS - 1).bit_length()
"""Bits of an exponent above the least one."""
LARGEST = FORMATS["half8"].high
WIDE_PLACES = CODE_PLACES + 8
"""The same of a wide block's code."""
WIDE_LARGEST = FORMATS["int16"].high
THIRDS = 87381
"""``4/3 * 2**16``, rounded up: 4 * 5 * 17 * 257 + 1, so four adders."""
THIRDS_PLACES = 16
LEAST_AT_MOST = 24
"""Of least exponents: the largest one then reaches all of 32 bits."""
LARGEST_EXPONENT = LEAST_AT_MOST + EXPONENTS - 1
REACH = EXPONENTS + CODE_PLACES - 1
"""Bits that a magnitude has beyond the least exponent, at most."""


class Block(NamedTuple, Generic[V]):
    """What a block's codes share.

    Attributes:
        exponent: above the least one, 0 to 15.
        half: 1 where the step is three quarters of the power of two, else 0.
    """

    exponent: V
    half: V


def least_exponent(frac: int, fraction: int, steps: int) -> int:
    """The least exponent of blocks whose integers have `fraction` fraction bits.

    Args:
        frac: fraction bits of the numbers that are coded.
        fraction: of the integers that the codes stand for.
        steps: of the format (`formats.Format.steps`).
    """
    return frac - fraction + (steps.bit_length() - 1)


def integer_fraction(frac: int, low: int, steps: int) -> int:
    """Fraction bits of the integers of blocks whose least exponent is `low`."""
    return frac - low + (steps.bit_length() - 1)


def block_of(
    r: Reader[V],
    m: V,
    low: V | int,
    steps: int,
    exponents: int = EXPONENTS,
    wide: V | None = None,
) -> Block[V]:
    """Exponent and step of a block with ``m = max|x|``.

    ::

        e = clip(bit_length(m) - 7, low, low + 15)
        h = 8 * m <= 765 * 2**e and e > 0          that is m <= 0.75 * 127.5 * 2**e; 35 bits
        e = clip(bit_length(m) - 15, low, low + 7), h = 0                  of a wide block

    `low` is 0 to `LEAST_AT_MOST`; there are `exponents` exponents, 16 of blocks. The step is
    ``(4 - h) / 4 * 2**e`` where steps are 4, else ``2**e``. `wide` is 1 where the block is, and
    left out where no block may be.
    """
    places: V | int = CODE_PLACES
    last: V | int = exponents - 1
    if wide is not None:
        places = r.select(-wide, WIDE_PLACES, CODE_PLACES)
        last = r.select(-wide, exponents - 1 - (WIDE_PLACES - CODE_PLACES), exponents - 1)
    above = r.cut(r.smaller(r.larger(r.bit_length(m) - places - low, 0), last))
    if steps == 1:
        return Block(above, r.lift(0))
    exponent = above + low
    limit = r.lift(765) << r.assume(exponent, 0, LARGEST_EXPONENT)
    fits = r.select((m << 3) - limit - 1, 1, 0)
    half = r.select(-exponent, fits, 0)
    if wide is not None:
        half = r.select(-wide, 0, half)
    return Block(above, r.cut(half))


def code(r: Reader[V], x: V, block: Block[V], low: V | int, steps: int, wide: V | None = None) -> V:
    """The code of an element of a block.

    ::

        code = clip(round_shift(x, e), -127, 127)                        h = 0
        code = clip(round_shift(x * 87381, e + 16), -127, 127)           h = 1; 49 bits
        code = clip(round_shift(x, e), -most, most)                      of a wide block
               most = min(32767, 127 << (15 - (e - low)))

    With steps of powers of two alone ties go to the even code: it is MXINT8 of the OCP
    Microscaling formats 1.0 (elements in units of 2**-6, so that X is ``2**(e + 6)``), ties to even
    as its reference implementation offers. Counts elements that the largest exponent does not
    reach.
    """
    most = (r.lift(1) << (r.lift(low) + REACH)) - 1
    r.count(r.cut(most - abs(x)))
    return rounded(r, x, block, low, steps, wide)


def rounded(
    r: Reader[V], x: V, block: Block[V], low: V | int, steps: int, wide: V | None = None
) -> V:
    """`code` without the count."""
    exponent = block.exponent + low
    if steps == 1:
        odd = (x >> exponent) & 1
        nearly_half = ((r.lift(1) << exponent) >> 1) - 1 + odd
        t = (x + r.select(-exponent, nearly_half, 0)) >> exponent
    else:
        thirds = r.product(x, r.select(-block.half, THIRDS, 1 << THIRDS_PLACES))
        t = r.round_shift(thirds, exponent + THIRDS_PLACES)
    most: V | int = LARGEST
    if wide is not None:
        most = r.select(-wide, wide_largest(r, block.exponent), LARGEST)
    return r.larger(r.smaller(t, most), -most)


def wide_largest(r: Reader[V], exponent: V) -> V:
    """The largest code of a wide block by its exponent above the least one: that of its 16 bits,
    but for the largest exponent, where it stands for as much as the largest code of 8 bits."""
    last = WIDE_PLACES - CODE_PLACES - 1
    return r.select(-exponent + (last - 1), LARGEST << (EXPONENTS - 1 - last), WIDE_LARGEST)


def integer(r: Reader[V], code: V, block: Block[V], steps: int) -> V:
    """What a code stands for, of a wide block too: ``code * (4 - h) << (e - low)``; with steps of 1
    ``code << (e - low)``; at most ``127 * 4 * 2**15``, 25 bits with the sign."""
    if steps > 1:
        code = (code << 2) - r.select(-block.half, code, 0)
    return code << block.exponent


def quantise(
    r: Groups[V, P], x: Callable[[P], V], low: V | int, steps: int, wide: V | None = None
) -> tuple[Block[V], Callable[[P], V]]:
    """What a block's codes share, and of each element its code.

    Stands for what is done to activations by MatMulNBits with accuracy_level 4, which scales blocks
    of a row with real numbers.
    """
    (m,) = r.sweep(lambda at: (abs(x(at)),), "largest")
    block = block_of(r, m, low, steps, wide=wide)
    return block, lambda at: code(r, x(at), block, low, steps, wide)
