"""Which parts of what an instruction names a beat of it touches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic

from intaglio.dialects.isa.attention import QueryKey, WeightedSum
from intaglio.dialects.isa.beat import Beat
from intaglio.dialects.isa.cache import Append
from intaglio.dialects.isa.instruction import Instruction, V
from intaglio.dialects.isa.matrix import ExpertMatvec, Matvec, Product, Row
from intaglio.dialects.isa.recurrence import LinearAttention
from intaglio.dialects.isa.values import (
    Coded,
    Fixed,
    Probabilities,
    Quantized,
    Routing,
    Scale,
    Scores,
    Value,
)
from intaglio.dialects.isa.vector import (
    Copy,
    Delay,
    ElementwiseInstruction,
    LayerNorm,
    OverScores,
    Quantize,
    QuantizeBlocks,
    QuantizeHeads,
    RMSNorm,
    RMSScale,
    Route,
    Sample,
    Softmax,
    SoftmaxPlaces,
    VectorInstruction,
)
from intaglio.dialects.machine import Early
from intaglio.dialects.memories import rows_of

Range = tuple[int, int]
"""The first, and the one after the last."""


@dataclass(frozen=True)
class Memories:
    """What places within values depend on.

    Attributes:
        lanes: elements of a row.
        capacity: tokens of the longest context, which scores are stored for.
        heads: of a cache or a state of matrices, or elements of a state, by the slot that is bound
            to it.
    """

    lanes: int
    capacity: int
    heads: Callable[[str], int]


@dataclass(frozen=True)
class Touched(Generic[V]):
    """What a beat touches.

    Attributes:
        reads, writes: values with their elements, counted in the rows of their memory.
        read_caches, written_caches: slots with heads; of states, elements.
        uses: entries of reductions that it reads.
        leaves: those that it leaves.
        largest: whether it takes the largest of what it reads as whoever wrote it leaves it.
        late: whether what it writes is there with its reductions, and not with its results.
        sums: whether that is only so of sums of what it writes.
    """

    reads: Mapping[V, Range]
    writes: Mapping[V, Range]
    read_caches: Mapping[str, Range] = field(default_factory=dict[str, Range])
    written_caches: Mapping[str, Range] = field(default_factory=dict[str, Range])
    uses: Range = (0, 0)
    leaves: Range = (0, 0)
    largest: bool = False
    late: bool = False
    sums: bool = False


def early_of(one: Instruction[Any], early: Early) -> int:
    """Cycles that an instruction may start before what is reduced for it is there.

    Args:
        one: the instruction.
        early: those of the chip's units.
    """
    match one:
        case Product() | ExpertMatvec():
            return early.product
        case WeightedSum():
            return early.sums
        case _:
            return 0


def passes_of(one: Instruction[Any]) -> int:
    """How often an instruction passes over its vector."""
    if isinstance(one, Quantize) and one.scale_of is not None:
        return 1
    if isinstance(one, LinearAttention):
        return one.passes
    if isinstance(one, Matvec):
        return one.row_rounds or 1
    return one.passes.passes if isinstance(one, VectorInstruction) else 1


def size_of(one: Instruction[V], kind: Callable[[V], Value], heads: Callable[[str], int]) -> int:
    """What a beat of an instruction counts: heads of a cache, query heads of a softmax, elements of
    a vector."""
    match one:
        case QueryKey():
            return heads(one.keys)
        case WeightedSum():
            return heads(one.values)
        case Append():
            return heads(one.cache)
        case OverScores():
            return _scores(kind(one.scores))
        case Quantize() | QuantizeBlocks() | QuantizeHeads():
            value = kind(one.output)
            assert isinstance(value, Coded)
            return value.size
        case Sample() | Route() | RMSScale():
            return _elements(kind(one.input))
        case _:
            return _elements(kind(one.writes[0])) if one.writes else 1


def groups_of(one: Instruction[V], kind: Callable[[V], Value]) -> int:
    """Groups that an instruction of the vector unit reduces apart."""
    match one:
        case Quantize() | QuantizeHeads():
            value = kind(one.output)
            assert isinstance(value, Quantized)
            return value.groups
        case RMSNorm():
            return one.groups
        case OverScores():
            return _scores(kind(one.scores))
        case _:
            return 1


def reduces(one: Instruction[Any], beat: Beat) -> bool:
    """Whether rows of a pass add to something that is reduced over its group: maxima or sums."""
    if beat.peak:
        return True
    if not isinstance(one, VectorInstruction) or isinstance(one, Delay):
        return False
    return isinstance(one, Sample | Route | RMSScale) or beat.number < passes_of(one) - 1


def may_leave_peak(one: Instruction[V], kind: Callable[[V], Value]) -> bool:
    """Whether the last pass of an instruction can leave the largest magnitude of what it writes:
    it writes elements of one vector, one part after the other."""
    if isinstance(one, Row | Matvec | WeightedSum):
        return True
    return (
        isinstance(one, ElementwiseInstruction | RMSNorm | LayerNorm | Copy)
        and groups_of(one, kind) == 1
    )


def may_read_peak(one: Instruction[V], kind: Callable[[V], Value]) -> bool:
    """Whether the first pass of an instruction does nothing but find the largest magnitude of the
    vector that it reads, so that it is not needed where that has been left."""
    if isinstance(one, Quantize):
        return one.scale_of is None and groups_of(one, kind) == 1
    return isinstance(one, RMSNorm) and groups_of(one, kind) == 1


def touched(
    one: Instruction[V],
    beat: Beat,
    kind: Callable[[V], Value],
    chip: Memories,
    after: Quantize[V] | None = None,
) -> Touched[V]:
    """What a beat of an instruction touches.

    Args:
        one: the instruction.
        beat: which part of it.
        kind: of each of its values.
        chip: what places within them depend on.
        after: the quantisation that reads the peak that the beat leaves, if one does.

    Raises:
        ValueError: the instruction has no such beat.
    """
    first, count = beat.of(size_of(one, kind, chip.heads))
    last = first + count
    reads, writes = (
        {value: _whole(kind(value), chip) for value in values} for values in _named(one, beat)
    )
    read_caches = {slot: (0, chip.heads(slot)) for slot in one.read_caches}
    written_caches = {slot: (0, chip.heads(slot)) for slot in one.written_caches}
    uses = leaves = (0, 0)
    match one:
        case Product():
            # The vector is multiplied with every row; of a round, its part.
            if isinstance(one, Matvec) and one.row_rounds is not None:
                reads[one.input] = _of_round(one, beat, kind)
            if beat.number < passes_of(one) - 1:
                reads, writes = {one.input: reads[one.input]}, {}
            else:
                reads |= {} if one.residual is None else {one.residual: (first, last)}
                writes[one.output] = (first, last)
                uses = _of_norm(one, beat)
        case ExpertMatvec():
            writes[one.output] = (first, last)
            uses = _of_norm(one, beat)
        case RMSScale():
            reads[one.input] = (first, last)
            if last == size_of(one, kind, chip.heads):
                leaves = beat.entry, beat.entry + 1
            else:
                writes = {}
        case QueryKey() | WeightedSum() | Append() | OverScores():
            found = _of_attention(one, beat, (first, last), kind, chip)
            reads, writes, read_caches, written_caches, uses, leaves = found
        case Quantize() | RMSNorm() | LayerNorm():
            reads[one.input] = (first, last)
            writes[one.output], uses, leaves = _of_groups(one, beat, kind, chip)
        case QuantizeHeads():
            value = kind(one.output)
            assert isinstance(value, Quantized)
            if first % value.width or last % value.width:
                raise ValueError(f"a beat of {one.opcode} has no whole heads of {value.width}")
            reads[one.input] = (first, last)
            writes[one.output] = _part(value, first // value.width, last // value.width, chip)
        case Sample() | Route():
            reads[one.input] = (first, last)
        case Delay():
            # The first pass takes what the state holds, the second one keeps the input there.
            here = {one.state: (first, last)}
            if beat.number:
                reads, writes = {one.input: (first, last)}, {}
                read_caches, written_caches = {}, here
            else:
                reads, writes = {}, {one.output: (first, last)}
                read_caches, written_caches = here, {}
        case VectorInstruction():
            reads |= {v: (first, last) for v in one.reads if not isinstance(kind(v), Routing)}
            writes = dict.fromkeys(one.writes, (first, last))
        case _:
            pass
    if reduces(one, beat) and beat.number < passes_of(one) - 1:
        writes = {value: there for value, there in writes.items() if value not in one.writes}
    if isinstance(one, Quantize) and leaves != (0, 0):
        # The scales lie beside the first rows of the groups.
        value = kind(one.output)
        assert isinstance(value, Quantized)
        begin = leaves[0] - beat.entry
        writes[one.output] = _part(value, begin, begin + leaves[1] - leaves[0], chip)
    if beat.peak:
        if not may_leave_peak(one, kind) or beat.number < passes_of(one) - 1:
            raise ValueError(f"a beat of {one.opcode} leaves no largest magnitude")
        if last == size_of(one, kind, chip.heads):
            leaves = beat.peak - 1, beat.peak
            if after is not None:
                writes[after.output] = _part(kind(after.output), 0, 1, chip)
    largest = isinstance(one, OverScores) and beat.number == 1
    # The sums of probabilities follow their codes.
    sums = isinstance(one, SoftmaxPlaces) and largest
    late = isinstance(one, QuantizeHeads) or sums
    return Touched(reads, writes, read_caches, written_caches, uses, leaves, largest, late, sums)


def _of_attention(
    one: QueryKey[V] | WeightedSum[V] | Append[V] | OverScores[V],
    beat: Beat,
    mine: Range,
    kind: Callable[[V], Value],
    chip: Memories,
) -> tuple[dict[V, Range], dict[V, Range], dict[str, Range], dict[str, Range], Range, Range]:
    """Of a beat of what reads or writes caches: values and caches that it reads and writes, and the
    entries that it uses and leaves; `mine` are its heads."""
    first, last = mine
    none = (0, 0)
    match one:
        case QueryKey():
            value = kind(one.query)
            assert isinstance(value, Quantized)
            shared = value.groups // chip.heads(one.keys)
            heads = first * shared, last * shared
            reads = {one.query: _part(value, *heads, chip)}
            writes = {one.output: _part(kind(one.output), *heads, chip)}
            return reads, writes, {one.keys: mine}, {}, none, none
        case WeightedSum():
            value = kind(one.probabilities)
            shared = _scores(value) // chip.heads(one.values)
            width = _elements(kind(one.output)) // _scores(value)
            reads = {one.probabilities: _part(value, first * shared, last * shared, chip)}
            writes = {one.output: (first * shared * width, last * shared * width)}
            return reads, writes, {one.values: mine}, {}, none, none
        case Append():
            reads = {one.input: _part(kind(one.input), first, last, chip)}
            return reads, {}, {}, {one.cache: mine}, none, none
        case OverScores():
            shared = _scores(kind(one.scores)) // chip.heads(one.values)
            caches = {one.values: (first // shared, -(-last // shared))}
            reads = {one.scores: _part(kind(one.scores), first, last, chip)}
            writes = {one.output: _part(kind(one.output), first, last, chip)}
            if beat.number == 1 and isinstance(one, Softmax):
                # The products with the values' scales take the scores' place.
                writes = {one.scores: reads[one.scores]}
            # First, only the least exponent of the scales is looked for.
            reads = reads if beat.number else {}
            return reads, writes, caches, {}, *_entries(one, beat, first, last)


def _of_groups(
    one: Quantize[V] | RMSNorm[V] | LayerNorm[V],
    beat: Beat,
    kind: Callable[[V], Value],
    chip: Memories,
) -> tuple[Range, Range, Range]:
    """Of a beat of what reduces groups: what it writes, and the entries that it uses and leaves."""
    size, groups = size_of(one, kind, chip.heads), groups_of(one, kind)
    first, count = beat.of(size)
    last, width = first + count, size // groups
    if groups == 1:
        uses, leaves = _entries(one, beat, 0, 1)
        # Only the last row leaves what is reduced.
        return (first, last), uses, leaves if last == width else (0, 0)
    begin, end = first // width, -(-last // width)
    value = kind(one.output)
    written = _part(value, begin, end, chip) if isinstance(value, Quantized) else (first, last)
    return written, *_entries(one, beat, begin, end)


def _of_round(one: Matvec[V], beat: Beat, kind: Callable[[V], Value]) -> Range:
    """The elements that a round of a product multiplies."""
    value = kind(one.input)
    assert isinstance(value, Coded)
    first, last = one.columns_of(beat.number, value.size)
    # A scale of the whole vector lies beside its first row.
    return (0 if isinstance(value, Quantized) else first), last


def _of_norm(one: Product[V] | ExpertMatvec[V], beat: Beat) -> Range:
    """The entry of the reduction that gives the factor of a product's results."""
    return (0, 0) if one.norm is None else (beat.entry, beat.entry + 1)


def _named(one: Instruction[V], beat: Beat) -> tuple[tuple[V, ...], tuple[V, ...]]:
    """The values that a beat reads and writes at most."""
    if isinstance(one, LinearAttention) and beat.number:
        # What the first pass has kept in the H-Units is a part of the state.
        return tuple(value for value in one.reads if value in (one.key, one.decay)), ()
    return one.reads, one.writes


def _entries(one: VectorInstruction[V], beat: Beat, first: int, last: int) -> tuple[Range, Range]:
    """Entries of groups that a pass reads, and leaves."""
    mine, none = (beat.entry + first, beat.entry + last), (0, 0)
    return (mine if beat.number else none), (mine if beat.number < passes_of(one) - 1 else none)


def _scores(value: Value) -> int:
    """Query heads of scores or probabilities."""
    assert isinstance(value, Scores | Probabilities)
    return value.heads


def _elements(value: Value) -> int:
    return value.size if isinstance(value, Fixed) else 1


def _whole(value: Value, chip: Memories) -> Range:
    if isinstance(value, Fixed):
        return 0, value.size
    if isinstance(value, Scale):
        # Its memory has one element a row.
        return 0, 1
    return 0, max(1, rows_of(value, chip.lanes, chip.capacity) * chip.lanes)


def _part(value: Value, first: int, last: int, chip: Memories) -> Range:
    """Groups or heads of a value whose groups each begin in a row of their own."""
    count = value.groups if isinstance(value, Quantized) else _scores(value)
    rows = rows_of(value, chip.lanes, chip.capacity) // count
    return first * rows * chip.lanes, last * rows * chip.lanes
