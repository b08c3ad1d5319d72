"""Beats that make whole instructions, and each kind of what does not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from intaglio.dialects import formula, timeline
from intaglio.dialects.hazards import Taken
from intaglio.dialects.isa.beat import WHOLE, Beat
from intaglio.dialects.isa.cache import Append
from intaglio.dialects.isa.instruction import Instruction
from intaglio.dialects.isa.matrix import Matvec
from intaglio.dialects.isa.values import Fixed, Quantized, Value
from intaglio.dialects.isa.vector import Mul, Quantize
from intaglio.dialects.wholeness import Fault, first_fault

KINDS: dict[str, Value] = {
    **dict.fromkeys(("x", "y", "z"), Fixed(64, 16)),
    "c": Quantized(1, 64, "int8"),
    "k": Quantized(2, 32, "int8"),
}
FLOWS = timeline.Issue("vector", {}, formula.constant(9), formula.constant(4))
ALONE = timeline.Issue("vector", {}, formula.constant(9))
MUL = Mul(lhs="x", rhs="y", output="z")
QUANTIZE: Instruction[str] = Quantize(input="z", output="c", scale_of=None)
MATVEC = Matvec(input="c", output="y", weights="w", pre_shift=0)
APPEND = Append(input="k", cache="kv")


def whole() -> list[Taken]:
    """A product of two vectors in rows, its quantisation, a matrix, an append by heads."""
    beats: list[tuple[Instruction[str], Beat]] = [
        *((MUL, Beat(0, 16 * n, 16, 0, n == 3, 0)) for n in range(4)),
        (QUANTIZE, Beat(0, 0, None, 0, False, 1)),
        *((QUANTIZE, Beat(1, 32 * n, 32, 0, n == 1, 1)) for n in range(2)),
        (MATVEC, Beat(0, 0, 48, 0, False, 2)),
        (MATVEC, Beat(0, 48, 16, 0, True, 2)),
        *((APPEND, Beat(0, n, 1, 0, n == 1, 3)) for n in range(2)),
    ]
    return [(does, beat, FLOWS) for does, beat in beats]


def fault(taken: Sequence[Taken]) -> Fault | None:
    return first_fault(taken, [{"w": "w0", "kv": "past"}], KINDS, {"past": 2})


def test_whole_in_any_order():
    assert fault(whole()) is None
    assert fault(whole()[::-1]) is None
    # What its writer has reduced needs no pass for it. That it has is asked of what uses the entry
    # (`dialects/hazards.py`; test_peaks.py).
    left = [(does, replace(beat, peak=1) if does is MUL else beat, i) for does, beat, i in whole()]
    assert fault([one for one in left if (one[0], one[1].number) != (QUANTIZE, 0)]) is None
    # Without a pace an instruction is all of itself.
    assert fault([(MUL, WHOLE, ALONE), (QUANTIZE, WHOLE, ALONE), (MATVEC, WHOLE, ALONE)]) is None


def changed(which: int, /, **words: int) -> Callable[[list[Taken]], None]:
    def change(taken: list[Taken]) -> None:
        does, beat, issue = taken[which]
        taken[which] = does, replace(beat, **words), issue

    return change


def without(number: int) -> Callable[[list[Taken]], None]:
    return lambda taken: taken.__delitem__(number)


@pytest.mark.parametrize(
    ("change", "beat", "reason"),
    [
        (without(1), 1, "no beat of pass 0 takes 16 to 32 of 64"),
        (without(0), 0, "no beat of pass 0 takes 0 to 16 of 64"),
        (without(3), 2, "no beat of pass 0 takes 48 to 64 of 64"),
        (without(8), 7, "no beat of pass 0 takes 48 to 64 of 64"),
        (without(9), 9, "no beat of pass 0 takes 0 to 1 of 2"),
        (changed(2, first=24), 2, "pass 0 takes 24 to 32 twice"),
        (changed(7, count=40), 8, "no beat of pass 0 takes 40 to 48 of 64"),
        (changed(8, count=17), 8, "a beat of 17 from 48 on, of 64"),
        (changed(4, number=2), 4, "the instruction has no pass 2 to be done"),
        (changed(8, of_instruction=1), 8, "it is a beat of instruction 1, another one"),
        (changed(0, ends=True), 3, "2 beats of the instruction say that no more follows"),
        (changed(6, ends=False), 6, "0 beats of the instruction say that no more follows"),
        # All beats of what leaves the largest magnitude of its result leave it, or none.
        (changed(3, peak=1), 3, "beats of the instruction leave largest magnitudes apart"),
    ],
)
def test_what_is_not_whole(change: Callable[[list[Taken]], None], beat: int, reason: str):
    taken = whole()
    change(taken)
    assert fault(taken) == Fault(beat, reason)


def test_a_beat_is_needed_where_instructions_flow():
    assert fault([(MATVEC, WHOLE, FLOWS)]) is None
    found = fault([(QUANTIZE, WHOLE, FLOWS)])
    assert found == Fault(0, "no beat of pass 1 takes 0 to 64 of 64")


ROUNDS = Matvec(input="c", output="y", weights="w", pre_shift=0, row_rounds=2, round_columns=32)
OTHER = Matvec(input="c", output="x", weights="w", pre_shift=0, row_rounds=2, round_columns=32)


def in_rounds(order: Sequence[int]) -> list[Taken]:
    """Two products in two rounds each, the last one in two parts, and one without."""
    beats: list[tuple[Instruction[str], Beat]] = [
        *((ROUNDS, Beat(0, 0, None, 0, False, 0)),),
        *((ROUNDS, Beat(1, 32 * n, 32, 0, n == 1, 0)) for n in range(2)),
        *((OTHER, Beat(0, 0, None, 0, False, 1)),),
        *((OTHER, Beat(1, 32 * n, 32, 0, n == 1, 1)) for n in range(2)),
        *((MATVEC, Beat(0, 32 * n, 32, 0, n == 1, 2)) for n in range(2)),
    ]
    return [(*beats[number], FLOWS) for number in order]


@pytest.mark.parametrize(
    ("order", "found"),
    [
        ((0, 1, 2, 3, 4, 5, 6, 7), None),
        # What keeps no sums may come between, and steps of the last round in any order.
        ((6, 0, 7, 2, 1, 3, 5, 4), None),
        ((1, 0, 2, 3, 4, 5, 6, 7), Fault(0, "round 1 comes before round 0")),
        ((0, 3, 1, 2, 4, 5, 6, 7), Fault(1, "L-Units still keep sums of instruction 0")),
        ((0, 1, 3, 2, 4, 5, 6, 7), Fault(2, "L-Units still keep sums of instruction 0")),
        ((0, 1, 2, 4, 3, 5, 6, 7), Fault(3, "round 1 comes before round 0")),
        ((1, 2, 3, 4, 5, 6, 7), Fault(1, "no beat of pass 0 takes 0 to 64 of 64")),
    ],
)
def test_sums_that_stay_are_of_one_product(order: Sequence[int], found: Fault | None):
    assert fault(in_rounds(order)) == found
