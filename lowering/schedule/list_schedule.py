"""List schedules of beats: from the start of a block, from its end, and how long an order takes.

Of the beats that need nothing that is still to come, the one that can start first is next; of
several, the one of the highest priority. A priority is how far a beat is from the end of the block:
on the longest way there if all queues were free (`tails`), or in a schedule that is made from the
end (`from_the_end`), in which queues are as busy as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Beats:
    """What is the same at all positions, of each beat by its number.

    Attributes:
        queues: where it stands.
        passes: what it is a part of: beats of a pass come one behind the other.
        reduces: whether its rows are reduced with those of others of its pass: from the first to
            the last of them none of another pass that reduces comes in the queue.
        closes: whether it is the last of these.
        needs: beats that come before it, which have lower numbers.
        needed: beats that it comes before.
        fills: whether it is work that can be done while others are waited for, and gives nothing
            that anything but its own pass waits for.
    """

    queues: Sequence[str]
    passes: Sequence[tuple[int, int]]
    reduces: Sequence[bool]
    closes: Sequence[bool]
    needs: Sequence[Sequence[int]]
    needed: Sequence[Sequence[int]]
    fills: Sequence[bool] = ()


@dataclass(frozen=True)
class Cycles:
    """What beats take at a position.

    Attributes:
        paces: until the queue is free for the next one.
        durations: until the result is there.
        delays: from the start of each beat that it needs, in their order, until it may start.
        released: when a beat may start for what comes before the block.
    """

    paces: Sequence[int]
    durations: Sequence[int]
    delays: Sequence[Sequence[int]]
    released: Sequence[int]


def tails(beats: Beats, cycles: Cycles) -> list[int]:
    """For each beat the cycles from its start to the end of the block, if queues were free for all
    but the beats of its own pass."""
    found = list(cycles.durations)
    behind: dict[tuple[int, int], int] = {}
    for number in reversed(range(len(found))):
        # All that need it have higher numbers.
        of_pass = beats.passes[number]
        if of_pass in behind:
            found[number] = max(found[number], cycles.paces[number] + found[behind[of_pass]])
        behind[of_pass] = number
        for other, delay in zip(beats.needs[number], cycles.delays[number], strict=True):
            found[other] = max(found[other], delay + found[number])
    return found


def from_the_start(
    beats: Beats, cycles: Cycles, priorities: Sequence[int], *, patient: bool = False
) -> list[int]:
    """The numbers of the beats in the order of a list schedule.

    Args:
        beats: of a block.
        cycles: what they take.
        priorities: of each beat.
        patient: a queue is left idle where a beat of higher priority can start before the one that
            could start first would leave it.
    """
    starts = list(cycles.released)
    missing = [len(needs) for needs in beats.needs]
    ready = [number for number, count in enumerate(missing) if not count]
    free = dict.fromkeys(beats.queues, 0)
    opened: dict[str, tuple[int, int]] = {}
    """By queue: the pass of which rows are still to be reduced."""
    order: list[int] = []
    while ready:
        able = [
            (max(free[beats.queues[number]], starts[number]), -priorities[number], number)
            for number in ready
            if not beats.reduces[number]
            or opened.get(beats.queues[number], beats.passes[number]) == beats.passes[number]
        ]
        start, _, chosen = min(able)
        queue = beats.queues[chosen]
        if patient:
            until = max(start + cycles.paces[chosen], start + 1)
            before = [one for one in able if one[0] < until and beats.queues[one[2]] == queue]
            start, _, chosen = min(before, key=lambda one: (one[1], one[0], one[2]))
        starts[chosen] = start
        free[queue] = start + cycles.paces[chosen]
        ready.remove(chosen)
        order.append(chosen)
        for number in beats.needed[chosen]:
            place = beats.needs[number].index(chosen)
            starts[number] = max(starts[number], start + cycles.delays[number][place])
            missing[number] -= 1
            if not missing[number]:
                ready.append(number)
        if beats.reduces[chosen]:
            opened[queue] = beats.passes[chosen]
            if beats.closes[chosen]:
                del opened[queue]
    return order


def from_the_end(beats: Beats, cycles: Cycles, priorities: Sequence[int]) -> list[int]:
    """For each beat the cycles from its start to the end, in a list schedule from the end.

    The last beat of a queue is chosen first: the one that can be the nearest to the end; of
    several, the one of the highest priority.
    """
    before = list(cycles.durations)
    missing = [len(needed) for needed in beats.needed]
    ready = [number for number, count in enumerate(missing) if not count]
    free: dict[str, int] = {}
    while ready:
        least, _, chosen = min(
            (
                max(before[number], free.get(beats.queues[number], 0) + cycles.paces[number]),
                -priorities[number],
                number,
            )
            for number in ready
        )
        before[chosen] = free[beats.queues[chosen]] = least
        ready.remove(chosen)
        for other, delay in zip(beats.needs[chosen], cycles.delays[chosen], strict=True):
            before[other] = max(before[other], least + delay)
            missing[other] -= 1
            if not missing[other]:
                ready.append(other)
    return before


def starts_of(beats: Beats, cycles: Cycles, order: Sequence[int]) -> list[int]:
    """When each beat starts if queues take them in an order."""
    starts = list(cycles.released)
    free = dict.fromkeys(beats.queues, 0)
    for number in order:
        start = max(free[beats.queues[number]], starts[number])
        for other, delay in zip(beats.needs[number], cycles.delays[number], strict=True):
            start = max(start, starts[other] + delay)
        starts[number] = start
        free[beats.queues[number]] = start + cycles.paces[number]
    return starts


def best(beats: Beats, positions: Sequence[Cycles]) -> list[int]:
    """The numbers of the beats in the order of least cycles, over some positions together.

    For each position there are two list schedules, and two more in which queues may wait. The
    priorities of the first are the tails. From the end a schedule is made in which of several beats
    that is nearest to it which the first one starts last; the priorities of the second are the
    distances from the end that all of these give together. Where some beats fill gaps, there is a
    third one, in which they come after all others that can start. The best order then begins again
    from the end, at all positions, for as long as that helps: what each direction leaves late the
    other one moves together.
    """
    ways_there = [tails(beats, cycles) for cycles in positions]
    if len(positions) == 1:
        return from_the_start(beats, positions[0], ways_there[0])
    lists = [
        [
            from_the_start(beats, cycles, longest, patient=patient)
            for cycles, longest in zip(positions, ways_there, strict=True)
        ]
        for patient in (False, True)
    ]
    fills = [number for number, one in enumerate(beats.fills) if one]

    def taken(order: Sequence[int]) -> int:
        total = 0
        for cycles in positions:
            starts = starts_of(beats, cycles, order)
            total += max(map(sum, zip(starts, cycles.durations, strict=True)))
        return total

    def again(orders: Sequence[Sequence[int]]) -> list[list[int]]:
        distances = [
            from_the_end(beats, cycles, starts_of(beats, cycles, order))
            for cycles, order in zip(positions, orders, strict=True)
        ]
        together = [sum(own) for own in zip(*distances, strict=True)]
        ways: list[list[int]] = []
        for patient in (False, True):
            ways += [from_the_start(beats, one, together, patient=patient) for one in positions]
        if fills:
            for number in fills:
                together[number] = 0
            ways += [from_the_start(beats, cycles, together) for cycles in positions]
        return ways

    def shortest(orders: Sequence[list[int]]) -> tuple[int, list[int]]:
        return min(((taken(one), one) for one in orders), key=lambda one: one[0])

    cycles, chosen = shortest([one for own in lists for one in (*own, *again(own))])
    while (other := shortest(again([chosen] * len(positions))))[0] < cycles:
        cycles, chosen = other
    return chosen
