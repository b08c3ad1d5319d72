"""The chip as the passes see it: geometry, formats and latencies, without origins or file syntax.

A `Machine` is what remains of a target description (backend/targets) after options are applied. It
travels in the IR as the `fabric.machine` operation, so that every pass runs from the command line
on a module alone. Units: cycles for latencies, bits and bytes for memories, multiplications a cycle
for lanes.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass(frozen=True)
class Machine:
    """Geometry, formats and latencies of one chip.

    The array has `tiles` matrix units; each holds `l_units` L-Units (a ROM bank fused with
    `lanes` multipliers of `plane_bits`-bit weights by `pass_bits`-bit activations) and one H-Unit
    (SRAM for adapters and KV with `attention_lanes` 8x8-bit multipliers). `vector_lanes` counts
    the lanes of all vector units together.
    """

    name: str
    clock_hz: int
    # Array
    tiles: int
    l_units: int
    # L-Unit
    lanes: int
    plane_bits: int
    pass_bits: int
    rom_bits: int
    """Capacity of one L-Unit's bank: codes, group scales and zero points together."""
    # H-Unit
    attention_lanes: int
    query_parallel: int
    """Query heads of one KV head that a fetched key or value element serves in one cycle."""
    sram_bytes: int
    """SRAM of one H-Unit: adapters and KV cache."""
    kv_port_bytes: int
    """Bytes of the KV cache one H-Unit writes in a cycle."""
    # Vector units
    vector_lanes: int
    vector_sram_bytes: int
    """SRAM of all vector units together: intermediate values and attention scores."""
    # Network
    results_per_cycle: int
    """Row results that the reduction network delivers to the vector units in a cycle."""
    # Formats
    weights: tuple[str, ...]
    activations: str
    kv: str
    probabilities: str
    embedding: str
    """Format of embeddings that arrive as floats: int16 or int8."""
    fraction_bits: int
    # Policy
    embedding_store: str
    """`rom`, or `extra-rom`: banks made deeper than published, the surplus reported."""
    head_store: str
    # Latencies, cycles
    issue: int
    """Between the last condition an instruction waits for and its start."""
    broadcast: int
    """From activation buffer to the L-Units."""
    mac_pipeline: int
    """ROM read, multiply, add, group scale, accumulate: fill of the L-Unit's pipeline."""
    reduce: int
    """From the L-Units' accumulators through the reduction network to the vector unit."""
    requantise: int
    """Pipeline of a requantiser lane."""
    rom_read: int
    """Random access to a ROM row (embedding)."""
    attention_pipeline: int
    """SRAM read, multiply, add, accumulate: fill of the H-Unit's pipeline."""
    kv_write: int
    """Fill of the KV write port."""
    vector_pipeline: int
    """Fill of one pass of the vector unit."""
    vector_reduce: int
    """Tree over the lanes at the end of a reducing pass."""
    table_lookup: int
    """Scalar table function (reciprocal, reciprocal square root) with interpolation."""
    sample: int
    """From the arg-max result to the token port."""

    def to_dict(self) -> dict[str, Any]:
        """All fields by name, in declaration order."""
        return asdict(self)

    @staticmethod
    def from_dict(values: dict[str, Any]) -> Machine:
        """The inverse of `to_dict`; unknown or missing names raise `ValueError`."""
        names = {f.name for f in fields(Machine)}
        if wrong := sorted(set(values) ^ names):
            raise ValueError(f"machine description: unknown or missing {', '.join(wrong)}")
        return Machine(**{**values, "weights": tuple(values["weights"])})
