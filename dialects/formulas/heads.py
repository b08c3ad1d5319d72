"""Codes of 8 bits with an exponent and a step a head: queries, keys and values with `kv=half8`.

The step is a power of two or three quarters of one, as that of a block (`formulas.blocks`), but
from as many exponents as 32-bit numbers need, so that nothing saturates. What a head's codes are
times has one of two mantissas, and fits a byte.
"""

from __future__ import annotations

from collections.abc import Callable

from intaglio.dialects.formats import FORMATS
from intaglio.dialects.formulas.blocks import Block, block_of, rounded
from intaglio.dialects.formulas.reader import Groups, P, Reader, ScaleOf, V

EXPONENTS = 25
"""0 to 24: 127 steps of the largest one are the largest number of 32 bits."""
STEPS = FORMATS["half8"].steps
WHOLE, HALF = 1 << 23, 3 << 22
"""The mantissas: of a power of two, and of three quarters of one."""
BYTE_PLACES = 1
"""Of a byte of scale the bits below its exponent: 1 where the mantissa is `HALF`."""


def head_of(r: Reader[V], m: V) -> Block[V]:
    """Exponent and step of a head with ``m = max|x|``: `block_of` with exponents 0 to 24."""
    return block_of(r, m, 0, STEPS, EXPONENTS)


def code(r: Reader[V], x: V, head: Block[V]) -> V:
    """The code of an element; half a step off, or one where 128 steps would be nearer."""
    return rounded(r, x, head, 0, STEPS)


def scale(r: Reader[V], head: Block[V], frac: V | int) -> ScaleOf[V]:
    """What the codes are times, of numbers with `frac` fraction bits: ``(4 - h) * 2**(e - 2 - f)``.

    ::

        mantissa = 2**23, or 3 * 2**22 where h = 1
        exponent = 23 + h + f - e                        at least f - 1; 7 bits for f up to 30
    """
    mantissa = r.select(-head.half, HALF, WHOLE)
    return ScaleOf(mantissa, head.half - head.exponent + (r.lift(frac) + 23))


def quantise(
    r: Groups[V, P], x: Callable[[P], V], frac: V | int
) -> tuple[Callable[[P], V], ScaleOf[V]]:
    """Codes and scale of a head; stands for nothing in a graph, whose attention is of floats."""
    (m,) = r.sweep(lambda at: (abs(x(at)),), "largest")
    head = head_of(r, m)
    return lambda at: code(r, x(at), head), scale(r, head, frac)


def byte_of(r: Reader[V], given: ScaleOf[V]) -> V:
    """A scale in the memory of a cache: its exponent above a bit that says which mantissa."""
    half = r.select(given.mantissa - HALF, 0, 1)
    return (given.exponent << BYTE_PLACES) + half


def scale_of(r: Reader[V], byte: V) -> ScaleOf[V]:
    """The inverse of `byte_of`."""
    mantissa = r.select(-(byte & 1), HALF, WHOLE)
    return ScaleOf(mantissa, byte >> BYTE_PLACES)
