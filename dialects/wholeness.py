"""That the beats of a block make whole instructions: each pass over each part, once.

What is computed is that of whole instructions (`Block.whole`), and the hardware does what the beats
say. So nothing of an instruction may be left out or done twice; but of what finds a largest
magnitude that others have left the first pass is (`hazards.py` proves that they have). And units
have one register for a maximum, the vector unit one for a sum too: rows of a group that a unit
reduces follow each other in their order, with rows between them only of passes that reduce nothing.
L-Units keep the sums of one product that takes its rows in rounds: these follow each other, and no
other such product comes between them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from intaglio.dialects.hazards import Taken
from intaglio.dialects.isa.beat import WHOLE
from intaglio.dialects.isa.instruction import Instruction
from intaglio.dialects.isa.matrix import Matvec
from intaglio.dialects.isa.touched import groups_of, may_read_peak, passes_of, reduces, size_of
from intaglio.dialects.isa.values import Value


@dataclass(frozen=True)
class Fault:
    """A beat of an instruction that is not whole: its number in the block, and what is wrong."""

    beat: int
    reason: str


def first_fault(
    taken: Sequence[Taken],
    instances: Sequence[Mapping[str, str]],
    kinds: Mapping[str, Value],
    heads: Mapping[str, int],
) -> Fault | None:
    """The first instruction of a block that its beats do not make whole; None: all are.

    Args:
        taken: the block's beats, in order.
        instances: what the block's instances bind slots to.
        kinds: of values.
        heads: of caches.
    """
    bound: Mapping[str, str] = instances[0] if instances else {}

    def size(does: Instruction[str]) -> int:
        return size_of(does, kinds.__getitem__, lambda slot: heads[bound.get(slot, slot)])

    own: dict[int, list[int]] = {}
    for number, (_, beat, issue) in enumerate(taken):
        # What has its unit alone is all of its instruction.
        if beat != WHOLE or issue.pace is not None:
            own.setdefault(beat.of_instruction, []).append(number)
    for numbers in own.values():
        beats = [(number, taken[number]) for number in numbers]
        does = beats[0][1][0]
        begun = any(beat.number == 0 for _, (_, beat, _) in beats)
        from_pass = int(
            not begun and passes_of(does) > 1 and may_read_peak(does, kinds.__getitem__)
        )
        fault = _fault(beats, size(does), from_pass)
        if fault is not None:
            return fault
    return _first_mixed(taken, kinds, size) or _first_kept(taken)


def _first_kept(taken: Sequence[Taken]) -> Fault | None:
    """The first beat that finds the sums of another product in the L-Units, or a round that does
    not follow its own."""
    opened: tuple[int, int] | None = None
    left = 0
    for number, (does, beat, _) in enumerate(taken):
        if not isinstance(does, Matvec) or does.row_rounds is None:
            continue
        mine = beat.of_instruction, beat.number
        if opened is None or left == 0:
            if beat.number:
                return Fault(number, f"round {beat.number} comes before round 0")
            left = sum(
                isinstance(other, Matvec) and one.of_instruction == mine[0]
                for other, one, _ in taken
            )
        elif opened[0] != mine[0]:
            return Fault(number, f"L-Units still keep sums of instruction {opened[0]}")
        elif mine[1] not in (opened[1], opened[1] + 1):
            return Fault(number, f"round {mine[1]} comes after round {opened[1]}")
        opened, left = mine, left - 1
    return None


def _first_mixed(
    taken: Sequence[Taken], kinds: Mapping[str, Value], size: Callable[[Instruction[str]], int]
) -> Fault | None:
    """The first beat whose rows are not the next ones of the group that is reduced."""
    opened: dict[str, tuple[int, int]] = {}
    """By queue: the pass of which rows are still to come."""
    ends: dict[str, int] = {}
    for number, (does, beat, issue) in enumerate(taken):
        if issue.pace is None or not reduces(does, beat) or groups_of(does, kinds.__getitem__) > 1:
            continue
        first, count = beat.of(size(does))
        mine, open_ = (beat.of_instruction, beat.number), opened.pop(does.queue, None)
        if open_ not in (None, mine):
            return Fault(number, f"it comes before all of a group of instruction {open_[0]}")
        if first != (ends[does.queue] if open_ else 0):
            return Fault(number, f"its rows are reduced in order, and {first} is not the next one")
        ends[does.queue] = done = first + count
        if done < size(does):
            opened[does.queue] = mine
    return None


def _fault(beats: Sequence[tuple[int, Taken]], size: int, from_pass: int) -> Fault | None:
    """What is wrong with the beats of one instruction, whose first pass is `from_pass`."""
    does = beats[0][1][0]
    last, passes = beats[-1][0], passes_of(does)
    parts: dict[int, list[tuple[int, int, int]]] = {one: [] for one in range(from_pass, passes)}
    for number, (other, beat, _) in beats:
        if other != does:
            return Fault(number, f"it is a beat of instruction {beat.of_instruction}, another one")
        if beat.number not in parts:
            return Fault(number, f"the instruction has no pass {beat.number} to be done")
        try:
            first, count = beat.of(size)
        except ValueError as error:
            return Fault(number, str(error))
        parts[beat.number].append((first, first + count, number))
    for one, found in parts.items():
        done = 0
        for first, end, number in sorted(found):
            if first < done:
                return Fault(number, f"pass {one} takes {first} to {min(end, done)} twice")
            if first > done:
                return Fault(number, f"no beat of pass {one} takes {done} to {first} of {size}")
            done = end
        if done < size:
            return Fault(last, f"no beat of pass {one} takes {done} to {size} of {size}")
    left = [(beat.peak, number) for number, (_, beat, _) in beats if beat.number == passes - 1]
    for peak, number in left:
        if peak != left[0][0]:
            return Fault(number, "beats of the instruction leave largest magnitudes apart")
    ends = [number for number, (_, beat, _) in beats if beat.ends]
    if len(ends) != 1:
        number = ends[-1] if ends else last
        return Fault(number, f"{len(ends)} beats of the instruction say that no more follows")
    return None
