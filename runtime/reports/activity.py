"""What takes energy in a token: reads, writes and operations, counted from its program.

Engraved products have a figure of their own, a busy cycle of an L-Unit (see `power.py` beside it).
Everything else is counted here, for one token at a position: bytes of caches, adapters and states
that H-Units read and write, products of their multipliers, elements that pass through the lanes of
the vector units, bytes of values that these read and write, and bytes of external memory. Energies
of each are the target's, with their origins; a target that lacks one states no sum.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from intaglio.backend.program.program import Instruction, Program
from intaglio.backend.target.target import Target
from intaglio.dialects.codes import SLOT_BITS
from intaglio.dialects.formats import FORMATS
from intaglio.dialects.formulas.recurrence import STATE_BITS
from intaglio.dialects.h_units import STATE_BYTES
from intaglio.dialects.isa.adapter import AdapterMatvec
from intaglio.dialects.isa.attention import OverTokens, QueryKey, WeightedSum
from intaglio.dialects.isa.cache import Append
from intaglio.dialects.isa.recurrence import LinearAttention
from intaglio.dialects.isa.touched import passes_of, size_of
from intaglio.dialects.isa.values import Blocks, Fixed, Probabilities, Quantized, Scores, Value
from intaglio.dialects.isa.vector import OverScores, VectorInstruction
from intaglio.lowering.schedule.durations import multiplier_passes
from intaglio.runtime.reports.figures import figure
from intaglio.runtime.reports.timing import Ranks
from intaglio.runtime.reports.traffic import traffic

MULTIPLY, CACHE, LANE, VALUE, OUTSIDE = (
    "energy.h_unit_product_pj",
    "energy.h_unit_byte_pj",
    "energy.vector_operation_pj",
    "energy.vector_byte_pj",
    "energy.external_byte_pj",
)
PARTS: Mapping[str, tuple[str, str]] = {
    "products": (MULTIPLY, "products of attention and adapters"),
    "h_unit_bytes": (CACHE, "bytes of caches, adapters and states"),
    "operations": (LANE, "elements through lanes of the vector units"),
    "value_bytes": (VALUE, "bytes of values that vector units keep"),
    "external_bytes": (OUTSIDE, "bytes of external memory"),
}
"""What is counted, with the energy of one and what it is."""
LEFT_OUT = "wires between units, control, the clock and what leaks are in none of these"


@dataclass
class Activity:
    """Counts of a token.

    Attributes:
        position: of the token.
        products: of H-Units' multipliers, each as wide as these are.
        h_unit_bytes: read from and written to their SRAM.
        operations: elements in passes of the vector units.
        value_bytes: read from and written to the memory of values.
        external_bytes: read from and written to memory outside of the die.
    """

    position: int
    products: int = 0
    h_unit_bytes: int = 0
    operations: int = 0
    value_bytes: int = 0
    external_bytes: int = 0


def activity(program: Program, position: int, ranks: Ranks | None = None) -> Activity:
    """What one token at a position does, whose successor is wanted.

    Args:
        program: the compiled model.
        position: of the token.
        ranks: of the active adapter at its sites; None: there is none.
    """
    found = Activity(position)
    for block in program.blocks:
        for one in block.whole:
            for instance in block.instances:
                _count(found, program, one, instance, position, ranks or {})
    if program.machine.kv_on_die:
        bytes_ = traffic(program, position)
        found.external_bytes = int(bytes_.read[0] + bytes_.written[0])
    return found


def energy(target: Target, counts: Activity) -> dict[str, float] | None:
    """Millijoules of each part; None where the target does not state the energy of one of them."""
    found: dict[str, float] = {}
    for name, (key, _) in PARTS.items():
        if not (count := getattr(counts, name)):
            continue
        if key not in target.parameters:
            return None
        found[name] = count * target.number(key) * 1e-9
    return found


def figures_of(target: Target) -> dict[str, Any]:
    """The energies that a target states, by name, with their origins."""
    return {key: one for key, _ in PARTS.values() if (one := figure(target, key)) is not None}


def _count(
    found: Activity,
    program: Program,
    one: Instruction,
    instance: Mapping[str, str],
    position: int,
    ranks: Ranks,
) -> None:
    """Adds what an instruction instance does."""
    does, machine = one.does, program.machine
    tokens = position + 1 - (does.first(position) if isinstance(does, OverTokens) else 0)
    passes = 1
    match does:
        case QueryKey() | WeightedSum():
            slot = does.keys if isinstance(does, QueryKey) else does.values
            cache, heads = program.caches[instance.get(slot, slot)], _heads(program, does)
            stored = FORMATS[cache.format].memory_bits
            # More query heads than are multiplied at once have the keys read again.
            times = -(-(heads // cache.heads) // machine.query_parallel)
            found.h_unit_bytes += times * cache.heads * cache.width * tokens * stored // 8
            both = multiplier_passes(machine, _format(program, does), cache.format)
            found.products += heads * cache.width * tokens * both
        case Append():
            cache = program.caches[instance.get(does.cache, does.cache)]
            bits = FORMATS[cache.format].memory_bits
            found.h_unit_bytes += cache.heads * cache.width * bits // 8
        case AdapterMatvec():
            elements, bits = _adapter(program, instance.get(does.weights, does.weights), ranks)
            found.products += elements
            found.h_unit_bytes += elements * bits // 8
            if not elements:
                return
        case LinearAttention():
            state = program.matrices[instance.get(does.state, does.state)]
            elements = state.heads * state.key_width * state.value_width
            # Recalled and asked in the first pass; decayed, and added to, in the second one.
            found.products += 4 * elements * -(-STATE_BITS // machine.multiplier_bits)
            found.h_unit_bytes += 3 * elements * STATE_BYTES
        case VectorInstruction():
            passes = passes_of(does)
            found.operations += passes * _elements(program, does, tokens)
        case _:
            pass
    read = sum(_bytes(program.buffers[name].type, tokens) for name in one.reads)
    written = sum(_bytes(program.buffers[name].type, tokens) for name in one.writes)
    found.value_bytes += passes * read + written


def _elements(program: Program, does: VectorInstruction[str], tokens: int) -> int:
    """Elements of a vector that an instruction passes over."""
    if isinstance(does, OverScores):
        return program.value(does.scores, Scores).heads * tokens
    # Only attention asks for heads of a cache.
    return size_of(does, lambda name: program.buffers[name].type, lambda slot: 1)


def _heads(program: Program, does: QueryKey[str] | WeightedSum[str]) -> int:
    """Query heads of an instruction that passes over a cache."""
    if isinstance(does, QueryKey):
        return program.value(does.query, Quantized).groups
    return program.value(does.probabilities, Probabilities).heads


def _format(program: Program, does: QueryKey[str] | WeightedSum[str]) -> str:
    """That of what cached vectors are multiplied with."""
    if isinstance(does, QueryKey):
        return program.value(does.query, Quantized).format
    return program.value(does.probabilities, Probabilities).format


def _adapter(program: Program, name: str, ranks: Ranks) -> tuple[int, int]:
    """Elements of an adapter's matrix that are read, and bits of one."""
    if name in program.slots:
        site, half = program.slots[name]
        width = site.columns if half == "a" else site.rows
        return ranks.get(site.name, 0) * width, SLOT_BITS[program.parameters[name].code]
    matrix = program.parameters[name]
    rows, columns = matrix.dims
    return rows * columns, matrix.bits


def _bytes(value: Value, tokens: int) -> int:
    """Bytes of a value in the memory of the vector units."""
    match value:
        case Fixed():
            return 4 * value.size
        case Quantized() | Blocks():
            return value.size * FORMATS[value.format].memory_bits // 8
        case Scores():
            return 4 * value.heads * tokens
        case Probabilities():
            return value.heads * tokens * FORMATS[value.format].memory_bits // 8
        case _:
            return 0
