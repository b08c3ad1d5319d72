"""The queues of a chip: one for each class of unit, in order; and what waits count."""

from __future__ import annotations

MATRIX = "matrix"
ATTENTION = "attention"
VECTOR = "vector"
KV = "kv"
POWER = "power"

QUEUES: tuple[str, ...] = (MATRIX, ATTENTION, VECTOR, KV, POWER)
"""The classes of unit; each has one in-order queue."""

REDUCTIONS = "reductions"
"""What the vector unit's lanes leave together: maxima and sums, and what the scalar tables make of
them. They are there some cycles after the elements."""

PEAKS = {MATRIX: "matrix_peaks", ATTENTION: "attention_peaks"}
"""By queue: the largest magnitudes of what its units write, of scores the largest, taken at their
write ports. Like reductions they are there some cycles after the elements."""

LEAVES = {VECTOR: REDUCTIONS, **PEAKS}
"""By queue: the counter of what its instructions leave besides their results."""

COUNTERS: tuple[str, ...] = (*QUEUES, *LEAVES.values())
"""What instructions wait for: the results of queues, reductions and peaks; each in order."""


def reductions_of(queue: str) -> str:
    """`LEAVES`; of other queues, whose instructions leave nothing, any."""
    return LEAVES.get(queue, REDUCTIONS)
