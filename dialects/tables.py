"""Function tables with linear interpolation: what hardware has instead of a maths library.

A table is a ROM of integers, one interpolation multiplier and an adder. The entries are computed
with `decimal` arithmetic of 28 digits and rounded half to even, so they are the same on every
machine; they are computed when a table is first asked for.

| table      | argument                  | value                                   | error below |
|------------|---------------------------|-----------------------------------------|-------------|
| reciprocal | m in [2**23, 2**24)       | 2**47 / m, 24 bits                      | 2**-21 rel. |
| rsqrt      | v in [2**30, 2**32)       | 2**39 / sqrt(v), 24 bits                | 2**-21 rel. |
| exp2       | f in [0, 2**16)           | 2**24 * 2**(-f / 2**16), 24 bits        | 2**-21 rel. |
| sigmoid    | x in Q16, entries to 16   | 1 / (1 + exp(-x)), Q20                  | 2**-18 abs. |
| gelu_tanh  | x in Q16, entries to 8    | (1 + tanh(u)) / 2, Q20, with u =        | 2**-18 abs. |
|            |                           | sqrt(2 / pi) * (x + 0.044715 * x**3)    |             |
| gelu_erf   | x in Q16, entries to 8    | (1 + erf(x / sqrt(2))) / 2, Q20         | 2**-18 abs. |
| quick_gelu | x in Q16, entries to 16   | 1 / (1 + exp(-1.702 * x)), Q20          | 2**-18 abs. |
| tanh       | x in Q16, entries to 8    | tanh(x), Q20                            | 2**-18 abs. |
| softplus   | x in Q16, entries to 16   | log(1 + exp(-x)), Q20                   | 2**-18 abs. |
| mish       | x + 16 in Q16, to 32      | tanh(log(1 + exp(x))), Q20              | 2**-18 abs. |
| elu        | x + 16 in Q16, to 16      | 1 - exp(x), Q20                         | 2**-18 abs. |

The 24-bit tables clip a value of 2**24 (reached at the first argument only) to 2**24 - 1, so that
24 wires carry every value. Beyond the last argument of a gate table the value is the function's
limit, 1 (softplus, elu: 0).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Context, Decimal, localcontext

import numpy as np

from intaglio.dialects.fixed_point import Ints, round_shift

_PI = Decimal("3.14159265358979323846264338327950288419716939937510582097494")
GATE_FRAC = 20
"""Fraction bits of the gate tables' values."""
ARGUMENT_FRAC = 16
"""Fraction bits of the gate tables' arguments."""
WHOLE = 16
"""What is added to the argument of a table for both signs; below its negative the value is 0."""


@dataclass(frozen=True)
class Table:
    """A piecewise linear function of an unsigned argument.

    With the argument ``a = i * 2**step_bits + f``, ``0 <= f < 2**step_bits``:
    ``y = T[i] + round_shift((T[i+1] - T[i]) * f, step_bits)``.

    Attributes:
        name: what `table` calls it.
        lo_index: the ``i`` of the first entry; arguments below it are not allowed.
        entries: ``T[lo_index], T[lo_index + 1], ...``; an argument at or beyond the last entry's
            gives the last entry.
        step_bits: log2 of the distance of two entries.
        out_frac: fraction bits of the values (for the three 24-bit tables: of the function stated
            in the module's docstring, 0).
    """

    name: str
    lo_index: int
    entries: tuple[int, ...]
    step_bits: int
    out_frac: int

    @property
    def end(self) -> int:
        """The argument of the last entry."""
        return (self.lo_index + len(self.entries) - 1) << self.step_bits

    @property
    def value_bits(self) -> int:
        """Width of a value, unsigned."""
        return max(self.entries).bit_length()

    @property
    def delta_bits(self) -> int:
        """Width of the difference of two neighbours, signed."""
        pairs = zip(self.entries, self.entries[1:], strict=False)
        return max(abs(b - a) for a, b in pairs).bit_length() + 1

    @functools.cached_property
    def arrays(self) -> tuple[Ints, Ints]:
        """The entries, and each entry's difference to the next one (0 after the last)."""
        entries = np.array(self.entries, np.int64)
        return entries, np.append(np.diff(entries), 0)


def lookup(table: Table, argument: Ints) -> Ints:
    """The table's value for each element: `Table` states the formula.

    Args:
        table: the table.
        argument: any shape, at least ``table.lo_index << table.step_bits``.

    Returns:
        int64 of the same shape, `Table.value_bits` wide; the product inside has
        ``Table.delta_bits + Table.step_bits`` bits.
    """
    entries, deltas = table.arrays
    clipped = np.minimum(argument, table.end)
    index = clipped >> table.step_bits
    index -= table.lo_index
    clipped &= (1 << table.step_bits) - 1
    clipped *= deltas.take(index)
    y = round_shift(clipped, table.step_bits)
    y += entries.take(index)
    return y


def _rounded(value: Decimal) -> int:
    return int(value.to_integral_value(rounding=ROUND_HALF_EVEN))


def _reciprocal() -> Table:
    entries = [min(_rounded(Decimal(2**47) / (i << 13)), 2**24 - 1) for i in range(1024, 2049)]
    return Table("reciprocal", 1024, tuple(entries), 13, 0)


def _rsqrt() -> Table:
    entries = [min(_rounded(2**39 / Decimal(i << 21).sqrt()), 2**24 - 1) for i in range(512, 2049)]
    return Table("rsqrt", 512, tuple(entries), 21, 0)


def _exp2() -> Table:
    ratio = (Decimal(2).ln() / -512).exp()
    values: list[int] = []
    value = Decimal(2**24)
    for _ in range(513):
        values.append(min(_rounded(value), 2**24 - 1))
        value *= ratio
    return Table("exp2", 0, tuple(values), 7, 0)


def _gate(
    name: str, end: int, intervals: int, function: Callable[[Decimal], Decimal], limit: int = 1
) -> Table:
    step = Decimal(end) / intervals
    entries: list[int] = []
    for i in range(intervals):
        entries.append(_rounded(function(i * step) * 2**GATE_FRAC))
        if entries[-1] == limit << GATE_FRAC:
            break
    # The functions are monotonic: once one rounds to its limit it stays there.
    entries += [limit << GATE_FRAC] * (intervals + 1 - len(entries))
    step_bits = (end << ARGUMENT_FRAC).bit_length() - intervals.bit_length()
    return Table(name, 0, tuple(entries), step_bits, GATE_FRAC)


def _sigmoid(x: Decimal) -> Decimal:
    return 1 / (1 + (-x).exp())


def _gelu_tanh(x: Decimal) -> Decimal:
    return _sigmoid(2 * (2 / _PI).sqrt() * (x + Decimal("0.044715") * x**3))


def _normal_cdf(x: Decimal) -> Decimal:
    # Phi(x) = 1/2 + phi(x) * sum of x**(2n+1) / (2n+1)!! (Marsaglia 2004); all terms are positive.
    total = term = x
    n = 1
    square = x * x
    while term > Decimal("1e-20"):
        n += 2
        term = term * square / n
        total += term
    return Decimal("0.5") + total * (-square / 2).exp() / (2 * _PI).sqrt()


def _mish(x: Decimal) -> Decimal:
    # tanh(log(1 + e)) with e = exp(x), without a difference of what is nearly equal.
    e = x.exp()
    return e * (e + 2) / (e * (e + 2) + 2)


@functools.cache
def table(name: str) -> Table:
    """The table of that name, computed on first use.

    Raises:
        KeyError: no table has the name; `TABLES` lists them.
    """
    with localcontext(Context(prec=28)):
        return _BUILDERS[name]()


_BUILDERS: dict[str, Callable[[], Table]] = {
    "reciprocal": _reciprocal,
    "rsqrt": _rsqrt,
    "exp2": _exp2,
    "sigmoid": lambda: _gate("sigmoid", 16, 2048, _sigmoid),
    "gelu_tanh": lambda: _gate("gelu_tanh", 8, 1024, _gelu_tanh),
    "gelu_erf": lambda: _gate("gelu_erf", 8, 1024, _normal_cdf),
    "quick_gelu": lambda: _gate("quick_gelu", 16, 2048, lambda x: _sigmoid(Decimal("1.702") * x)),
    "tanh": lambda: _gate("tanh", 8, 2048, lambda x: 2 * _sigmoid(2 * x) - 1),
    "softplus": lambda: _gate("softplus", 16, 2048, lambda x: (1 + (-x).exp()).ln(), limit=0),
    "mish": lambda: _gate("mish", 2 * WHOLE, 4096, lambda x: _mish(x - WHOLE)),
    "elu": lambda: _gate("elu", WHOLE, 4096, lambda x: 1 - (x - WHOLE).exp(), limit=0),
}
TABLES = tuple(_BUILDERS)
"""The names of all tables."""
