"""How long each instruction takes: one formula for each opcode, from the machine's latencies.

This is the only place that knows; schedule, simulator and hardware take the formulas from here.
All numbers come from the target description through `Machine`.
"""

from __future__ import annotations

from collections.abc import Sequence

from intaglio.dialects.formula import TOKENS, Formula, ceildiv, constant, maximum, minimum
from intaglio.dialects.machine import Machine
from intaglio.dialects.tiling import MatrixShape, Piece, activation_passes

MULTIPLIER_BITS = 8
"""Bits of each operand of an H-Unit's multiplier; wider operands take several passes."""

FORMAT_BITS: dict[str, int] = {
    "int4": 8,
    "int8": 8,
    "fp8": 8,
    "uint8": 8,
    "int16": 16,
    "uint16": 16,
}
"""Bits that a format occupies in a multiplier."""


def attended(window: int) -> Formula:
    """Cached tokens that attention reads: all, or those of the window."""
    return minimum(TOKENS, window) if window else TOKENS


def product(machine: Machine, shape: MatrixShape, pieces: Sequence[Piece]) -> Formula:
    """A matrix by a vector, requantised; the slowest piece decides."""
    passes = activation_passes(machine.activations, machine)
    cycles = max(piece.product_cycles(shape, machine, passes) for piece in pieces)
    return constant(
        machine.broadcast + machine.mac_pipeline + cycles + machine.reduce + machine.requantise
    )


def adapter_product(machine: Machine, shape: MatrixShape) -> Formula:
    """A matrix in SRAM by a vector, on the H-Units; rows go round the tiles."""
    passes = _multiplier_passes(machine.activations, "int8")
    rows = -(-shape.rows // machine.tiles)
    cycles = rows * -(-shape.columns // machine.attention_lanes) * passes
    drain = -(-shape.rows // machine.results_per_cycle)
    return constant(
        machine.broadcast
        + machine.attention_pipeline
        + cycles
        + drain
        + machine.reduce
        + machine.requantise
    )


def embed(machine: Machine, shape: MatrixShape, pieces: Sequence[Piece]) -> Formula:
    """One row of a table from ROM to the vector memory."""
    words = max(piece.words(shape, machine) * shape.planes(machine) for piece in pieces)
    drain = -(-shape.columns // machine.results_per_cycle)
    return constant(machine.rom_read + words + machine.reduce + drain + machine.requantise)


def vector(
    machine: Machine,
    elements: Formula | int,
    passes: int = 1,
    *,
    reductions: int = 0,
    lookups: int = 0,
) -> Formula:
    """Passes of the vector unit over a vector.

    Args:
        machine: the chip.
        elements: of the vector.
        passes: how often the vector is read.
        reductions: passes that end in a reduction over the lanes.
        lookups: scalar table functions; the table unit starts one a cycle.
    """
    beats = ceildiv(elements, machine.vector_lanes)
    fixed = passes * machine.vector_pipeline + reductions * machine.vector_reduce
    if lookups:
        fixed += machine.table_lookup + lookups - 1
    return fixed + passes * beats


def norm(machine: Machine, elements: int, groups: int, *, centred: bool) -> Formula:
    """Maximum, sum of squares, scaling; centring takes a pass and a sum before them."""
    extra = int(centred)
    return vector(machine, elements, 3 + extra, reductions=2 + extra, lookups=groups)


def quantize(machine: Machine, elements: int, groups: int, *, static: bool) -> Formula:
    """Maximum and scaling, or scaling alone."""
    if static:
        return vector(machine, elements)
    return vector(machine, elements, 2, reductions=1, lookups=groups)


def softmax(machine: Machine, heads: int, window: int) -> Formula:
    """Maximum; powers of two, sum and largest product; scaling."""
    return vector(machine, heads * attended(window), 3, reductions=2, lookups=heads)


def sample(machine: Machine, elements: int) -> Formula:
    """Arg-max over the logits, to the token port."""
    return vector(machine, elements, 1, reductions=1) + machine.sample


def append(machine: Machine, heads: int, vector_bytes: int) -> Formula:
    """One vector a KV head to the SRAM of as many H-Units."""
    rounds = -(-heads // machine.tiles)
    return constant(machine.kv_write + rounds * -(-vector_bytes // machine.kv_port_bytes))


def _attention_rounds(
    machine: Machine, heads: int, kv_heads: int, width: int, window: int, passes: int
) -> Formula:
    """Cycles in which the H-Units read every cached vector of a layer once.

    A tile takes one vector of `width` in a round and multiplies it with the query heads that share
    it.
    """
    shared = heads // kv_heads
    cycles = -(-width // machine.attention_lanes) * -(-shared // machine.query_parallel) * passes
    return ceildiv(kv_heads * attended(window), machine.tiles) * cycles


def query_key(
    machine: Machine, heads: int, kv_heads: int, width: int, window: int, kv: str
) -> Formula:
    """Scores of the cached tokens, scaled."""
    passes = _multiplier_passes(machine.activations, kv)
    rounds = _attention_rounds(machine, heads, kv_heads, width, window, passes)
    drain = ceildiv(heads * attended(window), machine.results_per_cycle)
    fixed = machine.broadcast + machine.attention_pipeline + machine.reduce + machine.requantise
    return fixed + maximum(rounds, drain)


def weighted_sum(
    machine: Machine, heads: int, kv_heads: int, width: int, window: int, kv: str
) -> Formula:
    """Values summed over the cached tokens, then over the tiles, scaled."""
    passes = _multiplier_passes(machine.probabilities, kv)
    rounds = _attention_rounds(machine, heads, kv_heads, width, window, passes)
    drain = -(-heads * width // machine.results_per_cycle)
    fixed = machine.broadcast + machine.attention_pipeline + machine.reduce + machine.requantise
    return fixed + machine.table_lookup + heads - 1 + drain + rounds


def _multiplier_passes(left: str, right: str) -> int:
    passes = 1
    for name in (left, right):
        passes *= -(-FORMAT_BITS[name] // MULTIPLIER_BITS)
    return passes
