"""How long each instruction takes: one formula for each opcode, from the machine's latencies.

This is the only place that knows; schedule, simulator and hardware take the formulas from here.
All numbers come from the target description through `Machine`.
"""

from __future__ import annotations

from collections.abc import Sequence

from intaglio.dialects.codes import FORMATS
from intaglio.dialects.formula import (
    RANK,
    TOKENS,
    Formula,
    ceildiv,
    constant,
    floordiv,
    maximum,
    minimum,
)
from intaglio.dialects.isa.vector import (
    LayerNorm,
    Passes,
    Quantize,
    RMSNorm,
    Sample,
    Softmax,
    VectorInstruction,
)
from intaglio.dialects.machine import Machine
from intaglio.dialects.tiling import MatrixShape, Piece, activation_passes


def attended(window: int, size: int) -> Formula:
    """Blocks of `size` cached tokens that hold any that attention reads: all, or a window's.

    Token t lies in block t div size, so a window that begins inside a block reads all of it.
    """
    blocks = ceildiv(TOKENS, size)
    if window:
        blocks = blocks + -1 * floordiv(maximum(0, TOKENS + -window), size)
    return blocks


def blocks_outside(machine: Machine, window: int) -> Formula:
    """Blocks of `h_units` cached tokens that attention reads from external memory."""
    if not machine.kv_on_die:
        return constant(0)
    first: Formula = constant(machine.kv_on_die // machine.h_units)
    if window:
        first = maximum(first, floordiv(maximum(0, TOKENS + -window), machine.h_units))
    return maximum(0, ceildiv(TOKENS, machine.h_units) + -1 * first)


def block_fetch(machine: Machine, width: int, kv: str) -> int:
    """Cycles in which a KV head's keys or values of `h_units` tokens come from external memory.

    Vectors lie there in words of the H-Units; their scales are on the die.
    """
    if not machine.external_bytes:
        return 0
    words = -(-width // machine.attention_lanes) * FORMATS[kv].memory_bits // 8
    return -(-machine.h_units * words * machine.attention_lanes // machine.external_bytes)


def _over_tokens(
    machine: Machine, kv_heads: int, width: int, window: int, kv: str, work: int
) -> Formula:
    """Cycles in which all KV heads pass over the cached tokens, a block of `h_units` in `work`.

    A block from external memory takes as long as its bytes do. While one is multiplied the next
    ones are fetched into the H-Units' buffers, so only the first one is waited for.
    """
    blocks = attended(window, machine.h_units)
    if not machine.kv_on_die:
        return kv_heads * work * blocks
    outside, fetch = blocks_outside(machine, window), block_fetch(machine, width, kv)
    slow = max(work, fetch)
    late = (machine.external_latency + fetch) * minimum(1, outside)
    return kv_heads * work * blocks + kv_heads * (slow - work) * outside + late


def wake(machine: Machine) -> Formula:
    """ROM banks from off to their first word."""
    return constant(machine.power_wake)


def sleep(machine: Machine) -> Formula:
    """ROM banks from on to off."""
    return constant(machine.power_sleep)


def product(machine: Machine, shape: MatrixShape, pieces: Sequence[Piece]) -> Formula:
    """A matrix by a vector, requantised; the slowest piece decides."""
    passes = activation_passes(machine.activations, machine)
    cycles = max(piece.product_cycles(shape, machine, passes) for piece in pieces)
    return constant(
        machine.broadcast + machine.mac_pipeline + cycles + machine.reduce + machine.requantise
    )


def adapter_product(machine: Machine, shape: MatrixShape) -> Formula:
    """A matrix in SRAM by a vector, on the H-Units.

    Rows go round the H-Units. A block of `h_units` rows is multiplied while the results of the one
    before leave the array, and takes as long as the slower of the two.
    """
    blocks = -(-shape.rows // machine.h_units)
    words = -(-shape.columns // machine.attention_lanes)
    block = max(_adapter_work(machine) * words, _leave(machine))
    return constant(_adapter_fill(machine) + blocks * block)


def slot_product(machine: Machine, shape: MatrixShape, *, first: bool) -> Formula:
    """A or B of an adapter in slots by a vector; the site's rank says how much of it counts.

    Blocks of A's rows beyond the rank are zeros that only leave the array; of B's rows only the
    words with columns below the rank are read.

    Args:
        machine: the chip.
        shape: of the slot.
        first: A, of whose rows `rank` count; else B, of whose columns they do.
    """
    blocks = -(-shape.rows // machine.h_units)
    work, leave = _adapter_work(machine), _leave(machine)
    if first:
        block = max(work * -(-shape.columns // machine.attention_lanes), leave)
        more = (block - leave) * ceildiv(RANK, machine.h_units)
        return _adapter_fill(machine) + blocks * leave + more
    words = ceildiv(RANK, machine.attention_lanes)
    return _adapter_fill(machine) + blocks * maximum(work * words, leave)


def _adapter_work(machine: Machine) -> int:
    """Cycles in which an H-Unit multiplies a word of an adapter's row."""
    return _multiplier_passes(machine, machine.activations, "int8")


def _leave(machine: Machine) -> int:
    """Cycles in which a result of each H-Unit leaves the array."""
    return -(-machine.h_units // machine.results_per_cycle)


def _adapter_fill(machine: Machine) -> int:
    """Cycles from the start of a product to the first result, and those of the last block's."""
    fixed = machine.broadcast + machine.attention_pipeline + machine.reduce + machine.requantise
    return fixed + _leave(machine)


def table_beats(machine: Machine) -> int:
    """Cycles in which the elements of one word of a table leave the array."""
    return -(-machine.lanes // machine.results_per_cycle)


def embed(machine: Machine, shape: MatrixShape) -> Formula:
    """One row of a table from ROM to the vector memory, word after word.

    While the elements of a word leave the array, the planes of the next one are read.
    """
    planes, beats = shape.planes(machine), table_beats(machine)
    cycles = (shape.words_per_row(machine) - 1) * max(planes, beats) + planes + beats - 1
    return constant(
        machine.broadcast + machine.rom_read + cycles + machine.reduce + machine.requantise
    )


def vector(
    machine: Machine, elements: int, passes: Passes = VectorInstruction.passes, *, groups: int = 1
) -> Formula:
    """Passes of the vector unit over a vector.

    Args:
        machine: the chip.
        elements: of the vector.
        passes: what it does of the vector.
        groups: equal parts that are treated apart; each begins in a beat of its own.
    """
    beats = groups * -(-elements // (groups * machine.vector_lanes))
    return _passes(machine, constant(beats), passes, groups)


def _passes(machine: Machine, beats: Formula, passes: Passes, groups: int) -> Formula:
    """Each pass fills the pipeline, each reduction the adders; a table is read once a group."""
    count = passes.passes
    fixed = count * machine.vector_pipeline + passes.reductions * machine.vector_reduce
    if passes.lookups:
        fixed += machine.table_lookup + groups - 1
    return fixed + count * beats


def norm(machine: Machine, elements: int, groups: int, *, centred: bool) -> Formula:
    """Maximum, sum of squares, scaling; centring takes a pass and a sum before them."""
    passes = LayerNorm.passes if centred else RMSNorm.passes
    return vector(machine, elements, passes, groups=groups)


def quantize(machine: Machine, elements: int, groups: int, *, static: bool) -> Formula:
    """Maximum and scaling, or scaling alone."""
    passes = VectorInstruction.passes if static else Quantize.passes
    return vector(machine, elements, passes, groups=groups)


def softmax(machine: Machine, heads: int, window: int) -> Formula:
    """Maximum; powers of two, sum and largest product; scaling."""
    beats = heads * attended(window, machine.vector_lanes)
    return _passes(machine, beats, Softmax.passes, heads)


def sample(machine: Machine, elements: int) -> Formula:
    """Arg-max over the logits, to the token port."""
    return vector(machine, elements, Sample.passes) + machine.sample


def append(machine: Machine, heads: int, vector_bytes: int) -> Formula:
    """The token's vectors, one a KV head, to the SRAM of one H-Unit or to external memory.

    External memory takes what the port gives in a cycle, or less.
    """
    writes = heads * -(-vector_bytes // machine.kv_port_bytes)
    inside = constant(machine.kv_write + writes)
    if not machine.kv_on_die:
        return inside
    more = -(-machine.kv_port_bytes // machine.external_bytes) - 1
    return inside + writes * more * minimum(1, maximum(0, TOKENS + -machine.kv_on_die))


def _vector_cycles(machine: Machine, shared: int, width: int, passes: int) -> int:
    """Cycles in which a tile multiplies a cached vector with the query heads that share it."""
    reads = -(-width // machine.attention_lanes)
    return reads * -(-shared // machine.query_parallel) * passes


def query_key(
    machine: Machine, heads: int, kv_heads: int, width: int, window: int, kv: str
) -> Formula:
    """Scores of the cached tokens, scaled.

    KV heads come one after the other; of each, as many tokens at a time as there are H-Units. The
    scores of one query head leave the array together.
    """
    shared = heads // kv_heads
    work = _vector_cycles(
        machine, shared, width, _multiplier_passes(machine, machine.activations, kv)
    )
    drain = shared * -(-machine.h_units // machine.results_per_cycle)
    fixed = machine.broadcast + machine.attention_pipeline + machine.reduce + machine.requantise
    passes = _over_tokens(machine, kv_heads, width, window, kv, max(work, drain))
    return fixed + drain + passes


def weighted_sum(
    machine: Machine, heads: int, kv_heads: int, width: int, window: int, kv: str
) -> Formula:
    """Values summed over the cached tokens, then over the H-Units, scaled.

    After each KV head the sums of its query heads leave the array, as wide as an H-Unit's lanes or
    the reduction network.
    """
    shared = heads // kv_heads
    work = _vector_cycles(
        machine, shared, width, _multiplier_passes(machine, machine.probabilities, kv)
    )
    beat = min(machine.attention_lanes, machine.results_per_cycle)
    drain = heads * -(-width // beat)
    fixed = machine.broadcast + machine.attention_pipeline + machine.reduce + machine.requantise
    passes = _over_tokens(machine, kv_heads, width, window, kv, work)
    return fixed + machine.table_lookup + heads - 1 + drain + passes


def _multiplier_passes(machine: Machine, left: str, right: str) -> int:
    """Passes in which an H-Unit multiplies elements of two formats: each part by each part."""
    passes = 1
    for name in (left, right):
        passes *= -(-FORMATS[name].memory_bits // machine.multiplier_bits)
    return passes
