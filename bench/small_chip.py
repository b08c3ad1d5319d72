"""The least chip that tests and benches of hardware need."""

from __future__ import annotations

SMALL = (
    "array.rows=3",
    "array.l_units=2",
    "l_unit.lanes=8",
    "vector.lanes=4",
    "network.results_per_cycle=8",
    "h_unit.attention_lanes=8",
    "h_unit.kv_port_bytes=8",
    "latency.issue=2",
    "latency.requantise=5",
)
"""Settings of `roma-mini`: four tiles, eight vector lanes, latencies other than its own."""
