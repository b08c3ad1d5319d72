"""Codes and scales of heads with an exponent and a step of their own: `formulas/heads.py` in wires.

Rows go by, one a cycle; a tree of comparators takes each, and a register the largest magnitude of a
head of several rows. Meanwhile the rows wait. So passes follow each other without a gap, and the
multipliers of the lanes have no part in it: three quarters are a product with a constant.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from intaglio.backend.hw.wires.reader import Wires
from intaglio.backend.hw.wires.signal import (
    ModuleBuilder,
    Signal,
    cat,
    choose,
    larger,
    mux,
    pipelined,
    tree,
)
from intaglio.dialects.fixed_point import FIXED_BITS
from intaglio.dialects.formulas import heads


@dataclass(frozen=True)
class Row:
    """A row in the cycle in which its elements are there.

    Attributes:
        elements: of each lane, 0 where there is none.
        on: whether there is a row.
        first, last: whether it is the first one of its head, and the last.
        fraction: fraction bits of the elements.
    """

    elements: Sequence[Signal]
    on: Signal
    first: Signal
    last: Signal
    fraction: Signal


@dataclass(frozen=True)
class Found:
    """What leaves: the codes of a row, and the scale of a head with its first row.

    Attributes:
        codes: signed, of each lane.
        mantissa, exponent: of the scale.
    """

    codes: Sequence[Signal]
    mantissa: Signal
    exponent: Signal


def build(m: ModuleBuilder, row: Row, before: Signal, rows: int, reduce: int, depth: int) -> Found:
    """The codes of a row `depth` cycles after it comes, and as many more as its head has rows
    before the last one; the scale of a head `depth` cycles after its last row comes.

    Args:
        m: the unit.
        row: what comes.
        before: rows of the heads at hand before the last one, while these come and wait.
        rows: of the widest head.
        reduce: cycles of the tree.
        depth: at least `reduce` + 2.
    """

    def most(*given: Signal) -> Signal:
        return tree([abs(one).cut() for one in given], lambda a, b: larger(a, b).cut())

    (value,) = pipelined(most, list(row.elements), reduce).outputs
    value = value.as_unsigned().truncate(FIXED_BITS)
    on, first, last = (
        one.delay(reduce, reset=reset, name=f"head_{name}_reduced")
        for one, name, reset in (
            (row.on, "on", 0),
            (row.first, "first", None),
            (row.last, "last", None),
        )
    )
    so_far = m.register("head_so_far", FIXED_BITS)
    best = mux(first, value, larger(so_far, value)).truncate(FIXED_BITS)
    so_far.drive(best, on)
    # It stays for the rows of the head, which follow in as many cycles.
    largest = m.register("head_largest", FIXED_BITS)
    largest.drive(best, on & last)

    waiting = cat(*[one.truncate(FIXED_BITS) for one in reversed(row.elements)])
    taps = [waiting]
    for number in range(1, rows):
        taps.append(taps[-1].delay(name=f"head_row_before{number}"))
    chosen = taps[0] if rows == 1 else choose(before, taps)
    late = chosen.delay(reduce + 1, name="head_row_waiting")
    elements = [
        late[FIXED_BITS * i : FIXED_BITS * (i + 1)].as_signed() for i in range(len(row.elements))
    ]
    fraction = row.fraction.delay(reduce + 1, name="head_fraction_waiting")

    def codes(*given: Signal) -> list[Signal]:
        r = Wires(m)
        largest, fraction, *elements = given
        head = heads.head_of(r, largest.assume(0, 1 << (FIXED_BITS - 1)))
        scale = heads.scale(r, head, fraction.assume(8, 30))
        return [scale.mantissa, scale.exponent, *(heads.code(r, one, head) for one in elements)]

    outputs = pipelined(codes, [largest, fraction, *elements], depth - reduce - 1).outputs
    return Found(outputs[2:], outputs[0], outputs[1])
