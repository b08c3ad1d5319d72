"""The queues of a chip: one for each class of unit, in order."""

from __future__ import annotations

MATRIX = "matrix"
ATTENTION = "attention"
VECTOR = "vector"
KV = "kv"
POWER = "power"

QUEUES: tuple[str, ...] = (MATRIX, ATTENTION, VECTOR, KV, POWER)
"""The classes of unit; each has one in-order queue."""
