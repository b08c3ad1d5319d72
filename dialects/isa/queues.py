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

COUNTERS: tuple[str, ...] = (*QUEUES, REDUCTIONS)
"""What instructions wait for: the results of queues, and reductions; each in order."""
