"""How long each instruction takes: one formula for each opcode, from the machine's latencies.

This is the only place that knows; schedule, simulator and hardware take the formulas from here.
All numbers come from the target description through `Machine`.
"""

from __future__ import annotations

from collections.abc import Sequence

from intaglio.dialects.formula import TOKENS, Formula, ceildiv, constant, floordiv, maximum
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


def attended(window: int, size: int) -> Formula:
    """Blocks of `size` cached tokens that hold any that attention reads: all, or a window's.

    Token t lies in block t div size, so a window that begins inside a block reads all of it.
    """
    blocks = ceildiv(TOKENS, size)
    if window:
        blocks = blocks + -1 * floordiv(maximum(0, TOKENS + -window), size)
    return blocks


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


def embed(machine: Machine, shape: MatrixShape) -> Formula:
    """One row of a table from ROM to the vector memory, word after word."""
    words = shape.words_per_row(machine) * shape.planes(machine)
    return constant(
        machine.broadcast + machine.rom_read + words + machine.reduce + machine.requantise
    )


def vector(
    machine: Machine,
    elements: int,
    passes: int = 1,
    *,
    groups: int = 1,
    reductions: int = 0,
    lookups: int = 0,
) -> Formula:
    """Passes of the vector unit over a vector.

    Args:
        machine: the chip.
        elements: of the vector.
        passes: how often the vector is read.
        groups: equal parts that are treated apart; each begins in a beat of its own.
        reductions: passes that end in a reduction over the lanes.
        lookups: scalar table functions; the table unit starts one a cycle.
    """
    beats = groups * -(-elements // (groups * machine.vector_lanes))
    return _passes(machine, constant(beats), passes, reductions, lookups)


def _passes(
    machine: Machine, beats: Formula, passes: int, reductions: int, lookups: int
) -> Formula:
    fixed = passes * machine.vector_pipeline + reductions * machine.vector_reduce
    if lookups:
        fixed += machine.table_lookup + lookups - 1
    return fixed + passes * beats


def norm(machine: Machine, elements: int, groups: int, *, centred: bool) -> Formula:
    """Maximum, sum of squares, scaling; centring takes a pass and a sum before them."""
    extra = int(centred)
    return vector(machine, elements, 3 + extra, groups=groups, reductions=2 + extra, lookups=groups)


def quantize(machine: Machine, elements: int, groups: int, *, static: bool) -> Formula:
    """Maximum and scaling, or scaling alone."""
    if static:
        return vector(machine, elements, groups=groups)
    return vector(machine, elements, 2, groups=groups, reductions=1, lookups=groups)


def softmax(machine: Machine, heads: int, window: int) -> Formula:
    """Maximum; powers of two, sum and largest product; scaling."""
    beats = heads * attended(window, machine.vector_lanes)
    return _passes(machine, beats, 3, reductions=2, lookups=heads)


def sample(machine: Machine, elements: int) -> Formula:
    """Arg-max over the logits, to the token port."""
    return vector(machine, elements, 1, reductions=1) + machine.sample


def append(machine: Machine, heads: int, vector_bytes: int) -> Formula:
    """The token's vectors, one a KV head, to the SRAM of one H-Unit."""
    return constant(machine.kv_write + heads * -(-vector_bytes // machine.kv_port_bytes))


def _vector_cycles(machine: Machine, shared: int, width: int, passes: int) -> int:
    """Cycles in which a tile multiplies a cached vector with the query heads that share it."""
    reads = -(-width // machine.attention_lanes)
    return reads * -(-shared // machine.query_parallel) * passes


def query_key(
    machine: Machine, heads: int, kv_heads: int, width: int, window: int, kv: str
) -> Formula:
    """Scores of the cached tokens, scaled.

    KV heads come one after the other; of each, as many tokens at a time as there are tiles. The
    scores of one query head leave the array together.
    """
    shared = heads // kv_heads
    work = _vector_cycles(machine, shared, width, _multiplier_passes(machine.activations, kv))
    drain = shared * -(-machine.tiles // machine.results_per_cycle)
    blocks = kv_heads * attended(window, machine.tiles)
    fixed = machine.broadcast + machine.attention_pipeline + machine.reduce + machine.requantise
    return fixed + drain + max(work, drain) * blocks


def weighted_sum(
    machine: Machine, heads: int, kv_heads: int, width: int, window: int, kv: str
) -> Formula:
    """Values summed over the cached tokens, then over the tiles, scaled.

    After each KV head the sums of its query heads leave the array, as wide as an H-Unit's lanes or
    the reduction network.
    """
    shared = heads // kv_heads
    work = _vector_cycles(machine, shared, width, _multiplier_passes(machine.probabilities, kv))
    beat = min(machine.attention_lanes, machine.results_per_cycle)
    drain = heads * -(-width // beat)
    blocks = kv_heads * attended(window, machine.tiles)
    fixed = machine.broadcast + machine.attention_pipeline + machine.reduce + machine.requantise
    return fixed + machine.table_lookup + heads - 1 + drain + work * blocks


def _multiplier_passes(left: str, right: str) -> int:
    passes = 1
    for name in (left, right):
        passes *= -(-FORMAT_BITS[name] // MULTIPLIER_BITS)
    return passes
