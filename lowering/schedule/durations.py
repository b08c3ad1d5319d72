"""How long each instruction takes: one formula for each opcode, from the machine's latencies.

This is the only place that knows; schedule, simulator and hardware take the formulas from here.
All numbers come from the target description through `Machine`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from intaglio.dialects.formats import FORMATS
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
from intaglio.dialects.formulas.recurrence import DECAY_FRAC, STATE_BITS
from intaglio.dialects.h_units import STATE_BYTES, StateShape
from intaglio.dialects.isa.values import Coded
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
from intaglio.dialects.tiling import MatrixShape, Piece, Reads
from intaglio.dialects.timeline import Times


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
    machine: Machine,
    kv_heads: int,
    width: int,
    window: int,
    kv: str,
    work: int,
    *,
    waits: bool = True,
) -> Formula:
    """Cycles in which all KV heads pass over the cached tokens, a block of `h_units` in `work`.

    A block from external memory takes as long as its bytes do. While one is multiplied the next
    ones are fetched into the H-Units' buffers, so only the first one is waited for, if it is.
    """
    blocks = attended(window, machine.h_units)
    if not machine.kv_on_die:
        return kv_heads * work * blocks
    outside, fetch = blocks_outside(machine, window), block_fetch(machine, width, kv)
    slow = max(work, fetch)
    passes = kv_heads * work * blocks + kv_heads * (slow - work) * outside
    if not waits:
        return passes
    return passes + (machine.external_latency + fetch) * minimum(1, outside)


def wake(machine: Machine) -> Formula:
    """ROM banks from off to their first word."""
    return constant(machine.power_wake)


def wake_chosen(machine: Machine, chosen: int) -> Formula:
    """The same of the chosen experts' banks: a cycle for each number, then they are switched."""
    return constant(machine.power_wake + chosen)


def sleep(machine: Machine) -> Formula:
    """ROM banks from on to off."""
    return constant(machine.power_sleep)


def steps(
    machine: Machine,
    shape: MatrixShape,
    pieces: Sequence[Piece],
    count: int,
    floor: int,
    value: Coded,
) -> tuple[Formula, Formula]:
    """Some steps of a matrix by a vector, requantised: until the next ones, and to the results.

    Of a matrix that is dealt, those of the last round.

    Args:
        machine: the chip.
        shape: of the matrix.
        pieces: what an instruction may be bound to; the slowest decides.
        count: of steps.
        floor: what a step takes at least (`tiling.step_floor`).
        value: the vector.
    """
    reads = Reads.of(value, machine)
    cycles = max(one.step_cycles(shape, machine, reads, floor) for one in pieces)
    drain = max(one.drain_cycles(machine) for one in pieces)
    fixed = machine.broadcast + machine.mac_pipeline + machine.reduce + machine.requantise
    return constant(count * cycles), constant(count * cycles + drain + fixed)


def product_round(
    machine: Machine,
    shape: MatrixShape,
    pieces: Sequence[Piece],
    number: int,
    floor: int,
    value: Coded,
) -> tuple[Formula, Formula]:
    """A round of a matrix by a vector that is not the last: until the next one, and until it counts
    as done, which is when results would be there that leave in a cycle.

    The arguments are those of `steps`, and the number of the round.
    """
    reads = Reads.of(value, machine)
    cycles = max(one.round_cycles(shape, machine, reads, floor, number) for one in pieces)
    fixed = machine.broadcast + machine.mac_pipeline + machine.reduce + machine.requantise
    return constant(cycles), constant(cycles + 1 + fixed)


def adapter_product(machine: Machine, shape: MatrixShape) -> Formula:
    """A matrix in SRAM by a vector, on the H-Units.

    Rows go round the H-Units. A block of `h_units` rows is multiplied while the results of the one
    before leave the array, and takes as long as the slower of the two.
    """
    blocks = -(-shape.rows // machine.h_units)
    words = -(-shape.columns // machine.attention_lanes)
    block = max(_adapter_work(machine) * words, adapter_drain(machine))
    fill = _adapter_fill(machine) + adapter_stage(machine)
    return constant(fill + blocks * block)


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
    work, leave = _adapter_work(machine), adapter_drain(machine)
    fill = _adapter_fill(machine) + adapter_stage(machine)
    if first:
        block = max(work * -(-shape.columns // machine.attention_lanes), leave)
        more = (block - leave) * ceildiv(RANK, machine.h_units)
        return fill + blocks * leave + more
    words = ceildiv(RANK, machine.attention_lanes)
    return fill + blocks * maximum(work * words, leave)


def adapter_beat(machine: Machine, shape: MatrixShape, *, floor: int) -> tuple[Formula, Formula]:
    """`adapter_product` until the next instruction, and to the result.

    Args:
        machine: the chip.
        shape: of the matrix.
        floor: the longest `score_drain` of the program, whose scores leave before its results; 0:
            there are none.
    """
    return _adapter_beat(machine, adapter_product(machine, shape), floor)


def slot_beat(
    machine: Machine, shape: MatrixShape, *, first: bool, floor: int
) -> tuple[Formula, Formula]:
    """`slot_product` until the next instruction, and to the result; `floor` as `adapter_beat`."""
    return _adapter_beat(machine, slot_product(machine, shape, first=first), floor)


def _adapter_beat(machine: Machine, alone: Formula, floor: int) -> tuple[Formula, Formula]:
    fill, stage = _adapter_fill(machine), adapter_stage(machine)
    pace = alone + -(fill + stage)
    if floor > adapter_drain(machine):
        pace = maximum(floor, pace)
    if stage:
        # The next one waits for it, so that results come in their order.
        pace = pace + stage
    return pace, pace + fill


def adapter_stage(machine: Machine) -> int:
    """Cycles that a product with an adapter takes longer than other work of the H-Units: a shift
    with exponents of blocks."""
    return int(machine.has_blocks)


def _adapter_work(machine: Machine) -> int:
    """Cycles in which an H-Unit multiplies a word of an adapter's row."""
    return multiplier_passes(machine, machine.scaled_activations, "int8")


def adapter_drain(machine: Machine) -> int:
    """Cycles in which a result of each H-Unit leaves the array."""
    return -(-machine.h_units // machine.results_per_cycle)


def _adapter_fill(machine: Machine) -> int:
    """Cycles from the start of a product to the first result, and those of the last block's."""
    fixed = machine.broadcast + machine.attention_pipeline + machine.reduce + machine.requantise
    return fixed + adapter_drain(machine)


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


def vector_pass(machine: Machine, elements: int, groups: int, width: int) -> Times:
    """A pass over some elements of a vector: until the next one, to the result, to its reduction.

    Args:
        machine: the chip.
        elements: at hand: some groups, or a part of the only one.
        groups: of the vector; each begins in a row of its own.
        width: elements of a group.
    """
    lanes = machine.vector_lanes
    rows = -(-elements // lanes)
    if groups > 1:
        rows = -(-elements // width) * -(-width // lanes)
    return _pass_times(machine, constant(rows))


def blocks_pass(machine: Machine, elements: int) -> Times:
    """Codes of some elements with exponents of their blocks: until the next pass, and to the codes.

    Rows wait for the exponents of their blocks before they are multiplied; the pass that follows
    waits as long.

    Args:
        machine: the chip.
        elements: at hand.
    """
    return _pass_times(
        machine, constant(-(-elements // machine.vector_lanes) + machine.block_exponent)
    )


def heads_pass(machine: Machine, elements: int, width: int) -> Times:
    """Codes of some heads with their own exponents: until the next pass, and to the codes, which
    come with what is reduced.

    Where a head has several rows its first ones wait for the last, and the pass that follows as
    long.

    Args:
        machine: the chip.
        elements: at hand: whole heads.
        width: of a head.
    """
    rows = -(-width // machine.vector_lanes)
    return _pass_times(machine, constant(elements // width * rows + rows - 1))


def route(machine: Machine, experts: int, chosen: int, *, every: bool) -> Formula:
    """The choice of experts: a logit a cycle is put in order, and, where all have a share in the
    sum, once more; then the chosen ones' numerators, one over their sum, and their shares, each one
    a cycle."""
    scans = 2 if every else 1
    looking = 2 * machine.table_lookup
    return constant(
        scans * experts + 2 * chosen + machine.vector_pipeline + machine.vector_reduce + looking
    )


def softmax_pass(machine: Machine, heads: int, window: int) -> Times:
    """A pass over the scores of some query heads, or over the values' scales of some KV heads."""
    return _pass_times(machine, heads * attended(window, machine.vector_lanes))


def _pass_times(machine: Machine, rows: Formula) -> Times:
    finish = rows + machine.vector_pipeline
    return Times(finish, rows, finish + machine.vector_reduce + machine.table_lookup)


def peak(machine: Machine, *, quantized: bool) -> int:
    """Cycles from a result to the largest magnitude of what was written up to it.

    The tree of comparators at a write port spans no more lanes than that of the vector unit, and as
    much of the row of vector units. A quantisation's scale is looked up behind it.
    """
    return machine.vector_reduce + (machine.table_lookup if quantized else 0)


def scores_peak(machine: Machine, scores: Sequence[Times], *, quantized: bool, beside: bool) -> int:
    """Cycles from scores to their largest, for which no scale is looked up.

    They are counted in one order with the peaks of what their queue took before, so none comes
    before, or with, the peak of a weighted sum or of an adapter's product that has just left it
    free.

    Args:
        machine: the chip.
        scores: what the program's shortest beats of a query and keys take.
        quantized: whether scales are looked up for other peaks of the queue.
        beside: whether adapters' products stand in the queue.
    """
    if not quantized:
        return peak(machine, quantized=False)
    least = min(int(one.duration(tokens=1, rank=0)) for one in scores) - _attention_way(machine)
    before = machine.table_lookup + (adapter_drain(machine) if beside else 0)
    return peak(machine, quantized=False) + max(0, before + 1 - least)


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

    KV heads come one after the other; of each, as many tokens at a time as there are H-Units.
    """
    shared = heads // kv_heads
    work = _vector_cycles(machine, shared, width, multiplier_passes(machine, machine.queries, kv))
    drain = score_drain(machine, shared)
    fixed = machine.broadcast + machine.attention_pipeline + machine.reduce + machine.requantise
    passes = _over_tokens(machine, kv_heads, width, window, kv, max(work, drain))
    return fixed + drain + passes


def weighted_sum(
    machine: Machine, heads: int, kv_heads: int, width: int, window: int, kv: str
) -> Formula:
    """Values summed over the cached tokens, then over the H-Units, scaled.

    After each KV head the sums of its query heads leave the array (`sum_beat`).
    """
    shared = heads // kv_heads
    work = _vector_cycles(
        machine, shared, width, multiplier_passes(machine, machine.probabilities, kv)
    )
    drain = kv_heads * sum_drain(machine, shared, width)
    fixed = machine.broadcast + machine.attention_pipeline + machine.reduce + machine.requantise
    passes = _over_tokens(machine, kv_heads, width, window, kv, work)
    return fixed + machine.table_lookup + heads - 1 + drain + passes


def scores_together(machine: Machine) -> int:
    """Query heads whose scores leave in one cycle: as many as results of all H-Units do."""
    return max(1, machine.results_per_cycle // machine.h_units)


def score_drain(machine: Machine, shared: int) -> int:
    """Cycles in which the scores of a block leave: of query heads that share a KV head."""
    beats = -(-shared // scores_together(machine))
    return beats * -(-machine.h_units // machine.results_per_cycle)


def sum_beat(machine: Machine, shared: int, width: int) -> tuple[int, int]:
    """Which sums leave in a cycle: of how many query heads, and how many elements of each.

    As many as the multipliers of the heads that share a KV head make in a step, or as the reduction
    network takes: whole heads, or else equal parts of one.
    """
    lanes, results = machine.attention_lanes, machine.results_per_cycle
    made = min(lanes * min(shared, machine.query_parallel), results)
    beats = -(-shared * width // made)
    heads = min(lanes * machine.query_parallel, results) // width
    if beats > 1:
        heads = min(heads, (shared - 1) // (beats - 1))
    if heads > 1:
        return min(heads, shared), width
    elements = min(lanes, results)
    while 2 * elements <= made and width % (2 * elements) == 0:
        elements *= 2
    return 1, elements


def sum_drain(machine: Machine, shared: int, width: int) -> int:
    """Cycles in which the sums of the query heads that share a KV head leave."""
    heads, elements = sum_beat(machine, shared, width)
    return -(-shared // heads) * -(-width // elements)


def least_before_sums(
    machine: Machine, floor: int, shared: int = 1, width: int = 1, count: int = 1
) -> int:
    """Cycles from the start of a weighted sum to the last step of its first KV head, at least.

    Scores of what went before have left by then. The look-up of the first head's scale begins in
    the cycle after the start, or when its sum is there, and is there `table_lookup` later
    (`looked_up`); it is wanted by the requantiser, `broadcast` and `attention_pipeline` after that
    step, and the beat in between is one more. The other heads follow in every cycle; where sums of
    several leave in one, they are waited for.

    Args:
        machine: the chip.
        floor: as in `query_key_beat`.
        shared: query heads that share a KV head.
        width: elements of a head.
        count: KV heads at hand.
    """
    heads, _ = sum_beat(machine, shared, width)
    drain = sum_drain(machine, shared, width)
    late = shared - 1 - (shared - 1) // heads
    # Each KV head before has a step, and its beats.
    late += (count - 1) * max(0, shared - 1 - drain)
    looked, read = looked_up(machine)
    first = looked + 2 - machine.broadcast - machine.attention_pipeline - read
    return max(floor, max(0, first) + late)


def looked_up(machine: Machine) -> tuple[int, int]:
    """Cycles from the one after a weighted sum's start until the scale of its first head is there,
    and how long after the sums of a beat it is read.

    Where sums of the weights may come after the start, the look-up waits for them; then scales are
    not read before the sums have gone through the reduction network, to the requantiser.
    """
    # The instruction itself reads from the cycle after its start on.
    wait = machine.early.sums
    return wait + machine.table_lookup, min(wait, machine.reduce)


def query_key_beat(
    machine: Machine,
    heads: int,
    kv_heads: int,
    width: int,
    window: int,
    kv: str,
    *,
    count: int,
    floor: int,
) -> tuple[Formula, Formula]:
    """Scores of some KV heads: until the next instruction, and to the results.

    The largest score of a head follows `peak` cycles later.

    Args:
        machine: the chip.
        heads: query heads of the attention.
        kv_heads: KV heads of it.
        width: elements of a head.
        window: tokens that are seen; 0: all.
        kv: format of the cache.
        count: KV heads at hand.
        floor: cycles that a block takes at least: the longest `score_drain` of the program.
    """
    shared = heads // kv_heads
    work = _vector_cycles(machine, shared, width, multiplier_passes(machine, machine.queries, kv))
    drain = score_drain(machine, shared)
    pace = _over_tokens(machine, count, width, window, kv, max(work, drain, floor))
    return pace, pace + _attention_way(machine) + drain


def weighted_sum_beat(
    machine: Machine,
    heads: int,
    kv_heads: int,
    width: int,
    window: int,
    kv: str,
    *,
    count: int,
    floor: int,
) -> tuple[Formula, Formula]:
    """Weighted sums of some KV heads: until the next instruction, and to the results.

    The arguments are those of `query_key_beat`. The array pauses while sums leave; the scales are
    looked up beside the steps.
    """
    shared = heads // kv_heads
    work = _vector_cycles(
        machine, shared, width, multiplier_passes(machine, machine.probabilities, kv)
    )
    drain = sum_drain(machine, shared, width)
    first = _over_tokens(machine, 1, width, window, kv, work)
    least = least_before_sums(machine, floor, shared, width, count)
    if least > work:
        first = maximum(least, first)
    pace = first + count * drain
    if count > 1:
        pace = pace + _over_tokens(machine, count - 1, width, window, kv, work, waits=False)
    return pace, pace + _attention_way(machine)


def append_beat(machine: Machine, vector_bytes: int, *, count: int) -> tuple[Formula, Formula]:
    """Some of the token's vectors to a cache: until the next instruction, and to where they stay.

    Args:
        machine: the chip.
        vector_bytes: of a KV head's vector.
        count: KV heads at hand.
    """
    duration = append(machine, count, vector_bytes)
    return duration + -machine.kv_write, duration


@dataclass(frozen=True)
class StateSteps:
    """How a pass over a state is cut: heads one after the other.

    Attributes:
        rows: of the memory, of a head.
        work: cycles of a row.
        keys: rows of the codes of a head's key, and of its query.
        values: rows of numbers of a head's values.
        interval: cycles from a head to the next one.
        fill: from its first cycle to its first row.
    """

    rows: int
    work: int
    keys: int
    values: int
    interval: int
    fill: int

    @property
    def last_row(self) -> int:
        """Cycles from the first row of a head to its last one."""
        return (self.rows - 1) * self.work


def recall_steps(machine: Machine, state: StateShape, fmt: str) -> StateSteps:
    """Of the first pass: while a head is multiplied the codes of the next one are read."""
    parts = 2 * _parts(machine, FORMATS[fmt].memory_bits)
    return _state_steps(machine, state, parts, lambda keys, _: keys)


def change_steps(machine: Machine, state: StateShape, fmt: str) -> StateSteps:
    """Of the second pass: factor, exponent and what is added come before the rows."""
    parts = _parts(machine, DECAY_FRAC) + _parts(machine, FORMATS[fmt].memory_bits)
    look = machine.table_lookup + 3 * machine.requantise
    return _state_steps(machine, state, parts, lambda keys, values: max(keys, look + values))


def _state_steps(
    machine: Machine, state: StateShape, parts: int, fill: Callable[[int, int], int]
) -> StateSteps:
    work, lanes = _state_work(machine, parts), machine.vector_lanes
    keys, values = -(-state.key_width // lanes), -(-state.value_width // lanes)
    interval = max(state.head_rows * work, keys, values)
    return StateSteps(state.head_rows, work, keys, values, interval, fill(keys, values))


def recall(machine: Machine, state: StateShape, fmt: str) -> Formula:
    """What a query has of a state with the token's key and value: the first pass.

    Heads come one after the other; of each, as many vectors at a time as a row of the memory has.
    Results leave a row of the vector units' in a cycle. Three products follow the requantisation:
    with the decay's factor, with beta, and of the head's match with its news.

    Args:
        machine: the chip.
        state: its shape.
        fmt: format of queries and keys.
    """
    steps = recall_steps(machine, state, fmt)
    first = steps.fill + (state.heads - 1) * steps.interval + steps.last_row
    rest = steps.values + machine.table_lookup + 3 * machine.requantise
    return constant(1 + first + rest + _attention_way(machine))


def change(machine: Machine, state: StateShape, fmt: str) -> Formula:
    """What the state becomes: the second pass. The arguments are those of `recall`.

    Each element is multiplied by the decay's factor, of 24 bits, and the code of its key by what is
    added, of 16 bits, and written back.
    """
    steps = change_steps(machine, state, fmt)
    first = steps.fill + (state.heads - 1) * steps.interval + steps.last_row
    way = machine.broadcast + machine.attention_pipeline + machine.kv_write
    return constant(1 + first + way)


def _parts(machine: Machine, bits: int) -> int:
    """Operands of an H-Unit's multiplier that make a number of some bits."""
    return -(-bits // machine.multiplier_bits)


def _state_work(machine: Machine, parts: int) -> int:
    """Cycles of a row of a state: each element by operands of so many parts together."""
    products = machine.attention_lanes // STATE_BYTES * _parts(machine, STATE_BITS) * parts
    return max(1, -(-products // (machine.attention_lanes * machine.query_parallel)))


def _attention_way(machine: Machine) -> int:
    """Cycles from the last step, or the last beat, to the result."""
    return machine.broadcast + machine.attention_pipeline + machine.reduce + machine.requantise


def multiplier_passes(machine: Machine, left: str, right: str) -> int:
    """Passes in which an H-Unit multiplies elements of two formats: each part by each part."""
    passes = 1
    for name in (left, right):
        passes *= -(-FORMATS[name].memory_bits // machine.multiplier_bits)
    return passes
