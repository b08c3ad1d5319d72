"""What the attention unit must be able to do, and its descriptors: from a program to numbers.

`AttentionModel` gathers from all instructions of a program the sizes, formats and constants that
`attention.attention_unit` is built for; `encode` makes the descriptor of an instruction instance.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from math import gcd
from typing import TYPE_CHECKING

from intaglio.backend.hw.units import peaks
from intaglio.backend.hw.units.attention.h_unit import BYTE, HShape, SumShape
from intaglio.backend.hw.units.attention.kv import CachePlace, KVPlaces, cache_refusals, kv_places
from intaglio.backend.hw.units.refusals import (
    attempted,
    no_powers,
    result_refusals,
    short_latencies,
)
from intaglio.backend.hw.wires.widths import index_bits
from intaglio.dialects.constant_rom import CONSTANTS, Form
from intaglio.dialects.descriptor import Field, Fields
from intaglio.dialects.errors import CompilerBug, UserError
from intaglio.dialects.fixed_point import SCALE_BITS, Real
from intaglio.dialects.fixed_point import Scale as ConstantScale
from intaglio.dialects.formats import FORMATS
from intaglio.dialects.formulas.softmax import SCORE_FRAC
from intaglio.dialects.isa.attention import QueryKey, WeightedSum
from intaglio.dialects.isa.cache import Append
from intaglio.dialects.isa.queues import ATTENTION
from intaglio.dialects.isa.values import Probabilities, Quantized, Scores
from intaglio.dialects.machine import Machine
from intaglio.dialects.memories import EXPONENT_BITS, HEADS, LARGEST
from intaglio.dialects.semantics import query_key_bits, weighted_sum_bits
from intaglio.lowering.schedule import durations

if TYPE_CHECKING:
    from intaglio.backend.program.program import Cache, Instruction, Program

_LEAST_LATENCIES = {"broadcast": 2, "attention_pipeline": 2, "kv_write": 1, "table_lookup": 1}

OverCache = QueryKey[str] | WeightedSum[str]
"""What passes over a cache."""

Cap = tuple[Real, Real, Real]
"""A soft cap: one over it, itself, log2(e)."""


def machine_refusals(machine: Machine) -> list[UserError]:
    """Why H-Units cannot be built; each names the parameter and what it must be."""
    found = result_refusals(machine)
    found += no_powers(
        {
            "array.h_units": machine.h_units,
            "h_unit.attention_lanes": machine.attention_lanes,
            "h_unit.kv_port_bytes": machine.kv_port_bytes,
        }
    )
    if machine.multiplier_bits != BYTE:
        found.append(
            UserError(
                f"h_unit.multiplier_bits is {machine.multiplier_bits}; the hardware multiplies "
                f"bytes, {BYTE} bits"
            )
        )
    if machine.kv_port_bytes > machine.attention_lanes:
        found.append(
            UserError(
                f"h_unit.kv_port_bytes is {machine.kv_port_bytes}; the hardware writes at most "
                f"a word of h_unit.attention_lanes={machine.attention_lanes} bytes in a cycle"
            )
        )
    return found + short_latencies(machine, "attention unit", _LEAST_LATENCIES)


def refusals(program: Program) -> list[UserError]:
    """Why there is no attention unit for a program: machine, formats, heads, caches."""
    machine, caches = program.machine, program.caches.values()
    if not caches:
        return [UserError("the hardware needs a model with attention")]
    found = machine_refusals(machine) + cache_refusals(machine, caches)
    if machine.results_per_cycle:
        found += attempted(*[partial(_check_width, cache.width, machine) for cache in caches])
    if len(after := _scores_peaks(program)) > 1:
        told = " and ".join(map(str, sorted(after)))
        found.append(
            UserError(
                "the hardware counts all largest scores as many cycles after the scores, here "
                f"{told}",
                hint="compile the model again",
            )
        )
    return found


def _scores_peaks(program: Program) -> set[int]:
    """Cycles from scores to their largest, of all instructions; compiled ones have the same."""
    return {
        int(one.issue.reduces(tokens=1, rank=0)) - int(one.issue.duration(tokens=1, rank=0))
        for block in program.blocks
        for one in block.instructions
        if isinstance(one.does, QueryKey) and one.issue.reduces is not None
    }


@dataclass(frozen=True)
class AttentionModel:
    """What the unit must be able to do: gathered from all instructions of a program.

    Attributes:
        program: the program.
        row_bits: width of the rows of the memories outside.
        heads_of: first entry of each buffer of scores in the file of their largest, of each of
            probabilities in that of scales and sums; at the buffer's first row where it is not
            given.
    """

    program: Program
    row_bits: int = 16
    heads_of: Mapping[str, int] = field(default_factory=dict[str, int])

    @cached_property
    def machine(self) -> Machine:
        """The chip."""
        return self.program.machine

    @property
    def head_bits(self) -> int:
        """Width of the entries' numbers in the files of heads."""
        if not self.heads_of:
            return self.row_bits
        kinds = {name: self.program.buffers[name].type for name in self.heads_of}
        ends = (
            self.heads_of[name] + kind.heads
            for name, kind in kinds.items()
            if isinstance(kind, Scores | Probabilities)
        )
        of_contexts = (
            one.rows
            for name in (LARGEST, HEADS)
            if self.machine.contexts > 1 and (one := self.program.memories.get(name)) is not None
        )
        return index_bits(max(*ends, *of_contexts, 0))

    @cached_property
    def kv(self) -> KVPlaces:
        """Where the caches are."""
        return kv_places(self.program)

    @cached_property
    def _uses(self) -> list[tuple[OverCache, Cache]]:
        """The attention's instructions with the caches of all their instances."""
        return [
            (one, self.cache_of(one))
            for block in self.program.blocks
            for found in block.instructions
            if isinstance(found.does, QueryKey | WeightedSum)
            for instance in block.instances
            for one in (found.does.bound(instance),)
        ]

    def cache_of(self, one: OverCache) -> Cache:
        """The cache that an instruction instance passes over."""
        return self.program.caches[one.keys if isinstance(one, QueryKey) else one.values]

    def query_heads(self, one: OverCache) -> int:
        """Its query heads."""
        if isinstance(one, QueryKey):
            return self.program.value(one.query, Quantized).groups
        return self.program.value(one.probabilities, Probabilities).heads

    def format_of(self, one: OverCache) -> str:
        """The format of the vector that it multiplies with."""
        if isinstance(one, QueryKey):
            return self.program.value(one.query, Quantized).format
        return self.program.value(one.probabilities, Probabilities).format

    @cached_property
    def capacity(self) -> int:
        """Positions of a token."""
        return max((cache.capacity for cache in self.program.caches.values()), default=2)

    @cached_property
    def heads(self) -> int:
        """Most query heads."""
        return max((self.query_heads(one) for one, _ in self._uses), default=1)

    @cached_property
    def kv_heads(self) -> int:
        """Most KV heads."""
        return max((cache.heads for cache in self.program.caches.values()), default=1)

    @cached_property
    def shared(self) -> int:
        """Most query heads that share a KV head."""
        return max((self.query_heads(one) // cache.heads for one, cache in self._uses), default=1)

    @property
    def together(self) -> int:
        """Query heads whose scores leave the array in a beat, at most."""
        return min(durations.scores_together(self.machine), self.shared)

    @cached_property
    def widths(self) -> tuple[int, ...]:
        """Widths of the heads."""
        return tuple(sorted({cache.width for cache in self.program.caches.values()})) or (1,)

    @cached_property
    def shift(self) -> int:
        """Largest `pre_shift`."""
        return max((one.pre_shift for one, _ in self._uses), default=0)

    @cached_property
    def caps(self) -> tuple[Cap, ...]:
        """The soft caps of scores."""
        return tuple(
            dict.fromkeys(
                c
                for one, _ in self._uses
                if isinstance(one, QueryKey) and (c := one.softcap) is not None
            )
        )

    @cached_property
    def sloped(self) -> bool:
        """Whether scores of any head fall with the distance."""
        return any(isinstance(one, QueryKey) and one.slopes is not None for one, _ in self._uses)

    @property
    def constant_rows(self) -> int:
        """Rows of the constant ROM, which has the slopes."""
        return self.program.memories[CONSTANTS].rows

    @property
    def external(self) -> bool:
        """Whether keys and values of later tokens are in external memory."""
        return self.kv.external_depth > 0

    @property
    def inside_blocks(self) -> int:
        """Blocks of `h_units` tokens on the die, where there is external memory."""
        return self.machine.kv_on_die // self.machine.h_units

    def interval(self, one: OverCache, place: CachePlace) -> int:
        """Cycles of a block of cached tokens that are on the die."""
        machine, shared = self.machine, self.query_heads(one) // place.cache.heads
        work = -(-shared // machine.query_parallel) * place.words * _bytes(self.format_of(one))
        return work if isinstance(one, WeightedSum) else max(work, self.floor)

    @cached_property
    def floor(self) -> int:
        """Cycles until the scores of a block have left, of the slowest that there are; 0: none."""
        return max(
            (
                durations.score_drain(self.machine, self.query_heads(one) // cache.heads)
                for one, cache in self._uses
                if isinstance(one, QueryKey)
            ),
            default=0,
        )

    def hold(self, one: WeightedSum[str], count: int) -> int:
        """Cycles from a weighted sum's start to the last step of a head, at least.

        Scores of what went before may be leaving, and the heads' scales must be there.

        Args:
            one: the instruction.
            count: KV heads of the beat at hand.
        """
        cache = self.cache_of(one)
        shared = self.query_heads(one) // cache.heads
        return durations.least_before_sums(self.machine, self.floor, shared, cache.width, count)

    @cached_property
    def most_hold(self) -> int:
        """The longest `hold`; 0: none is longer than a block."""
        found = 0
        for one, cache in self._uses:
            if isinstance(one, WeightedSum):
                least = max(self.hold(one, count) for count in (1, cache.heads))
                if least > self.interval(one, self.kv[cache.name]):
                    found = max(found, least)
        return found

    @cached_property
    def sum_shapes(self) -> tuple[SumShape, ...]:
        """How sums leave the array, in the order of the beats' numbers."""
        pairs = {
            (cache.width, self.query_heads(one) // cache.heads)
            for one, cache in self._uses
            if isinstance(one, WeightedSum)
        }
        return tuple(
            SumShape(width, shared, *durations.sum_beat(self.machine, shared, width))
            for width, shared in sorted(pairs)
        ) or (SumShape(1, 1, 1, 1),)

    def sum_shape(self, one: OverCache) -> int:
        """The number of the shape in which an instruction's sums leave."""
        cache = self.cache_of(one)
        key = cache.width, self.query_heads(one) // cache.heads
        return [(shape.width, shape.shared) for shape in self.sum_shapes].index(key)

    @cached_property
    def output(self) -> int:
        """Sums that leave in a beat, at most: a power of two."""
        most = max(shape.size for shape in self.sum_shapes)
        return 1 << (most - 1).bit_length()

    @cached_property
    def turn(self) -> int:
        """What the first element of all beats is a multiple of: a power of two."""
        sizes = gcd(self.output, *(one.size if one.heads == 1 else one.width
                                   for one in self.sum_shapes))  # fmt: skip
        return sizes & -sizes

    @property
    def results(self) -> tuple[str, ...]:
        """The write ports of the vector memory: of a beat's row, and of the next one."""
        return ("result", "spill") if self.crosses else ("result",)

    @cached_property
    def crosses(self) -> bool:
        """Whether the sums of a beat may lie in two rows."""
        return any(
            one.heads > 1 and (one.size & (one.size - 1) or one.shared % one.heads)
            for one in self.sum_shapes
        )

    @cached_property
    def buffers(self) -> int:
        """Vectors from external memory that an H-Unit holds: a power of two.

        A buffer is free again when the last step that reads it has reached the H-Units; from then
        on it takes a block's request and the latency until the next vector is there. So many are
        in use at a time that a block can begin in every interval.
        """
        machine, most = self.machine, 2
        for one, cache in self._uses:
            place = self.kv[cache.name]
            interval = max(self.interval(one, place), place.beats)
            way = machine.broadcast + machine.external_latency + place.beats + 2
            most = max(most, 1 + -(-way // interval))
        return 1 << (most - 1).bit_length()

    @property
    def buffer_words(self) -> int:
        """Words of a buffer, a power of two."""
        most = max((place.words for place in self.kv.places.values()), default=1)
        return 1 << (most - 1).bit_length()

    @cached_property
    def shape(self) -> HShape:
        """What the H-Units must be able to do."""
        machine = self.machine
        lefts = {self.format_of(one) for one, _ in self._uses}
        rights = {cache.format for _, cache in self._uses}
        dots, sums = [2], [2]
        places = 0
        for one, cache in self._uses:
            fmt = self.format_of(one)
            places = max(places, _bytes(fmt) + _bytes(cache.format) - 2)
            if isinstance(one, QueryKey):
                dots.append(query_key_bits(cache.width, fmt, cache.format))
            else:
                sums.append(weighted_sum_bits(cache.capacity, fmt, cache.format))
        return HShape(
            depth=self.kv.depth,
            groups=-(-self.shared // machine.query_parallel),
            reads=max(-(-width // machine.attention_lanes) for width in self.widths),
            dot_bits=max(dots),
            sum_bits=max(sums),
            query_fp8="fp8" in lefts,
            query_integer=lefts != {"fp8"},
            kv_fp8="fp8" in rights,
            kv_integer=rights != {"fp8"},
            places=places,
            placed="places8" in lefts,
            together=self.together,
            output=self.output,
            sums=self.sum_shapes,
            buffer=self.buffers * self.buffer_words if self.external else 0,
            buffer_parts=max(1, machine.attention_lanes // (machine.external_bytes or 1))
            if self.external
            else 1,
        )

    @cached_property
    def fields(self) -> Fields:
        """The descriptor of an attention instruction."""
        shape, machine, kv = self.shape, self.machine, self.kv
        most = max((place.words for place in kv.places.values()), default=1)
        interval = number_bits(
            max(1, shape.groups * shape.reads * 4),
            self.floor,
        )
        return Fields(
            (
                Field("weighted", 1, "1: `weighted_sum`, 0: `query_key`"),
                Field("source", self.row_bits, "first row of the codes that are read"),
                Field("source_stride", self.row_bits, "rows from a head to the next one"),
                Field("entry", self.row_bits, "first entry of the scales of those codes"),
                Field(
                    "head",
                    self.head_bits,
                    "first entry of its heads in their file",
                ),
                Field("target", self.row_bits, "first row of the result"),
                Field("lane", index_bits(machine.vector_lanes), "lane of the first sum there"),
                Field("target_stride", self.row_bits, "rows of scores from a head to the next one"),
                Field("word", index_bits(kv.depth), "first word of the first head in every H-Unit"),
                Field("vector_words", number_bits(most), "words of a cached vector"),
                Field("kv_heads", number_bits(self.kv_heads), "heads of the cache"),
                Field("count", number_bits(self.kv_heads), "how many of them are passed over"),
                Field(
                    "shared", number_bits(self.shared), "query heads that share a head of the cache"
                ),
                Field("heads_last", index_bits(self.heads), "query heads of those, less one"),
                Field(
                    "groups_last",
                    index_bits(shape.groups),
                    "groups of `query_parallel` heads that share one, less one",
                ),
                Field(
                    "reads_last",
                    index_bits(shape.reads),
                    "words of a plane of a cached vector, less one",
                ),
                Field("planes_last", 1, "bytes of a cached element, less one"),
                Field(
                    "passes_last",
                    1,
                    "bytes of an element of the query, or of a probability, less one",
                ),
                Field("interval_last", interval, "cycles of a block of cached tokens, less one"),
                Field(
                    "beats_last",
                    index_bits(max(one.parts for one in self.sum_shapes)),
                    "cycles in which a head's sums leave, less one",
                ),
                Field(
                    "beat_heads",
                    number_bits(self.together, *(one.heads for one in self.sum_shapes)),
                    "query heads whose sums or scores leave together",
                ),
                Field("beat_size", number_bits(self.output), "sums that leave in a cycle"),
                Field("last_size", number_bits(self.output), "and in the last one of a KV head"),
                *self._sum_fields,
                Field("width", number_bits(max(self.widths)), "elements of a head"),
                Field(
                    "reach",
                    index_bits(self.capacity),
                    "tokens that are seen before the one at hand",
                ),
                Field("query_fp8", 1, "1: the query is of E4M3"),
                Field("kv_fp8", 1, "1: the cache is of E4M3"),
                Field("static", 1, "1: the cache has one scale, the next two fields"),
                Field("scale_mantissa", SCALE_BITS, "mantissa of the cache's one scale"),
                Field("scale_exponent", EXPONENT_BITS, "exponent of the cache's one scale", True),
                Field(
                    "scale_row", index_bits(kv.scale_depth), "first row of the first head's scales"
                ),
                Field(
                    "scale_stride",
                    index_bits(kv.scale_depth),
                    "rows of scales from a head to the next one",
                ),
                Field("factor_mantissa", SCALE_BITS, "mantissa of the factor of scores"),
                Field("factor_exponent", EXPONENT_BITS, "exponent of the factor of scores", True),
                Field(
                    "pre_shift",
                    number_bits(max(1, self.shift)),
                    "places that a sum loses before it is scaled",
                ),
                Field("frac", 6, "fraction bits of the result"),
                Field(
                    "cap",
                    number_bits(max(1, len(self.caps))),
                    "number of the soft cap, from 1; 0: none",
                ),
                *self._slope_fields,
                *self._peak_fields,
                *self._external_fields(interval),
            )
        )

    @property
    def leaves_peaks(self) -> bool:
        """Whether the largest magnitudes of sums are taken."""
        return ATTENTION in self.program.peaks

    @property
    def looks_up_peaks(self) -> bool:
        """Whether some of them are of quantisations."""
        return self.program.peaks.get(ATTENTION, False)

    @property
    def counts_scores_apart(self) -> bool:
        """Whether the largest scores count sooner after their results than other peaks do."""
        return self.leaves_peaks and self.scores_peak < self.sums_peak

    @property
    def sums_peak(self) -> int:
        """Cycles from sums to their largest magnitudes."""
        return durations.peak(self.machine, quantized=self.looks_up_peaks)

    @cached_property
    def scores_peak(self) -> int:
        """Cycles from scores to their largest, the same for all (`durations.scores_peak`)."""
        (found,) = _scores_peaks(self.program) or {0}
        return found

    @property
    def _peak_fields(self) -> tuple[Field, ...]:
        return peaks.fields_of(quantized=self.looks_up_peaks) if self.leaves_peaks else ()

    @property
    def _slope_fields(self) -> tuple[Field, ...]:
        if not self.sloped:
            return ()
        places = self.constant_rows * self.machine.vector_lanes
        return (
            Field("sloped", 1, "1: the heads have slopes"),
            Field(
                "slope",
                index_bits(places),
                "place of the first head's slope among the elements of constants",
            ),
        )

    @property
    def _sum_fields(self) -> tuple[Field, ...]:
        found: tuple[Field, ...] = ()
        if (count := len(self.sum_shapes)) > 1:
            found += (Field("sum_shape", index_bits(count), "which sums leave together"),)
        if most := self.most_hold:
            means = "cycles until the first sums may leave, less one"
            found += (Field("hold_last", number_bits(most), means),)
        return found

    def _external_fields(self, interval: int) -> tuple[Field, ...]:
        if not self.external:
            return ()
        beats = max(place.beats for place in self.kv.places.values())
        return (
            Field(
                "external",
                index_bits(self.kv.external_depth),
                "first row of the first head in external memory",
            ),
            Field("block_beats", number_bits(beats), "rows of a block there"),
            Field(
                "slow_last",
                max(interval, number_bits(beats)),
                "cycles of a block that comes from there, less one",
            ),
            Field(
                "pause_last",
                number_bits(self.machine.external_latency + beats),
                "cycles until the first one is here, less one",
            ),
        )

    @cached_property
    def append_fields(self) -> Fields:
        """The descriptor of an append."""
        kv, port = self.kv, self.machine.kv_port_bytes
        most = max((place.words for place in kv.places.values()), default=1)
        slots = 2 * -(-max(self.widths) // port) + 4
        return Fields(
            (
                Field("source", self.row_bits, "first row of the codes that are read"),
                Field("source_stride", self.row_bits, "rows from a head to the next one"),
                Field("entry", self.row_bits, "first entry of their scales"),
                Field("word", index_bits(kv.depth), "first word of the first head in every H-Unit"),
                Field("vector_words", number_bits(most), "words of a cached vector"),
                Field("heads", number_bits(self.kv_heads), "heads of the cache"),
                Field("count", number_bits(self.kv_heads), "how many of them are written"),
                Field(
                    "slots_last", number_bits(slots), "cycles of a head at the KV port, less one"
                ),
                Field("chunks", number_bits(slots), "words of the KV port of a plane"),
                Field("planes_last", 1, "bytes of a cached element, less one"),
                Field("dynamic", 1, "1: each vector has a scale of its own"),
                Field(
                    "scale_row", index_bits(kv.scale_depth), "first row of the first head's scales"
                ),
                Field(
                    "scale_stride",
                    index_bits(kv.scale_depth),
                    "rows of scales from a head to the next one",
                ),
                *self._external_fields(1)[:2],
            )
        )


def encode(
    model: AttentionModel, instruction: Instruction, instance: Mapping[str, str]
) -> dict[str, int]:
    """The descriptor of an instruction instance: a number for each of `AttentionModel.fields`, or
    of `append_fields` for an append.

    Args:
        model: of the program.
        instruction: query_key, weighted_sum or append.
        instance: what the block's instance binds its slots to.

    Raises:
        UserError: a size that the hardware does not take.
    """
    match instruction.does.bound(instance):
        case Append() as one:
            fields, values = model.append_fields, _encode_append(model, instruction, one)
        case QueryKey() | WeightedSum() as one:
            fields, values = model.fields, _encode_attention(model, instruction, one)
        case other:
            raise CompilerBug(f"the attention unit cannot execute {other.opcode}")
    return fields.checked(values, instruction.opcode)


def _encode_attention(
    model: AttentionModel, instruction: Instruction, one: OverCache
) -> dict[str, int]:
    machine, program = model.machine, model.program
    parallel = machine.query_parallel
    place = model.kv[model.cache_of(one).name]
    cache, fmt = place.cache, model.format_of(one)
    weighted = isinstance(one, WeightedSum)
    source = one.probabilities if isinstance(one, WeightedSum) else one.query
    heads = model.query_heads(one)
    shared = heads // cache.heads
    _check_width(cache.width, machine)
    groups, passes = -(-shared // parallel), _bytes(fmt)
    token_rows, row = program.rows_of_head, program.row_of(source, instruction)
    vector_rows = -(-cache.width // machine.vector_lanes)
    static = ConstantScale.of(cache.static_scale) if cache.static_scale is not None else None
    factor, cap = Real(0, 0), one.softcap if isinstance(one, QueryKey) else None
    interval, frac = model.interval(one, place), SCORE_FRAC
    if isinstance(one, QueryKey):
        factor = _normal(one.score_scale)
    else:
        frac = program.fraction(one.output)
    first, count = instruction.beat.of(cache.heads)
    stride, scale_rows = token_rows if weighted else vector_rows, _scale_rows(place)
    target, lane = program.row_of(one.output, instruction), 0
    of_heads, at = (source, row) if weighted else (one.output, target)
    if weighted:
        more, lane = divmod(first * shared * cache.width, machine.vector_lanes)
        target += more
    else:
        target += first * shared * token_rows
    external: dict[str, int] = {}
    if model.external:
        external = {
            "external": place.external + first * place.beats,
            "block_beats": place.beats,
            "slow_last": max(interval, place.beats) - 1,
            "pause_last": machine.external_latency + place.beats - 1,
        }
    return {
        "weighted": int(weighted),
        "source": row + first * shared * stride,
        "source_stride": stride,
        "entry": 0 if weighted else row + first * shared,
        "head": model.heads_of.get(of_heads, at) + first * shared,
        "target": target,
        "lane": lane,
        "target_stride": 0 if weighted else token_rows,
        "word": place.word + first * place.words,
        "vector_words": place.words,
        "kv_heads": cache.heads,
        "count": count,
        "shared": shared,
        "heads_last": count * shared - 1,
        "groups_last": groups - 1,
        "reads_last": place.reads - 1,
        "planes_last": place.planes - 1,
        "passes_last": passes - 1,
        "interval_last": interval - 1,
        **_leaving(model, one, count),
        "width": cache.width,
        "reach": min(one.window, model.capacity) - 1 if one.window else model.capacity - 1,
        "query_fp8": int(fmt == "fp8"),
        "kv_fp8": int(cache.format == "fp8"),
        "static": int(place.static),
        "scale_mantissa": 0 if static is None else int(static.mantissa),
        "scale_exponent": 0 if static is None else int(static.exponent),
        "scale_row": place.scale_row + first * scale_rows,
        "scale_stride": scale_rows,
        "factor_mantissa": factor.mantissa,
        "factor_exponent": factor.exponent,
        "pre_shift": one.pre_shift,
        "frac": frac,
        "cap": 0 if cap is None else 1 + model.caps.index(cap),
        **_slopes(model, one, first * shared),
        **{
            name: value
            for name, value in peaks.peak_fields(
                program, instruction, last=first + count == cache.heads
            ).items()
            if name in model.fields
        },
        **external,
    }


def _slopes(model: AttentionModel, one: OverCache, head: int) -> dict[str, int]:
    """Fields that say where the slopes of the heads from one on are."""
    if not model.sloped:
        return {}
    if not isinstance(one, QueryKey) or one.slopes is None:
        return {"sloped": 0, "slope": 0}
    row = model.program.parameters[one.slopes].constant_row(Form())
    return {"sloped": 1, "slope": row * model.machine.vector_lanes + head}


def _leaving(model: AttentionModel, one: OverCache, count: int) -> dict[str, int]:
    """Fields that say how results of some KV heads leave: how many of them in a cycle."""
    if not isinstance(one, WeightedSum):
        fields = {"beats_last": 0, "beat_heads": model.together, "beat_size": 0, "last_size": 0}
        return fields | {name: 0 for name in ("sum_shape", "hold_last") if name in model.fields}
    number = model.sum_shape(one)
    shape = model.sum_shapes[number]
    of_sums = {"sum_shape": number, "hold_last": max(0, model.hold(one, count) - 1)}
    return {
        "beats_last": shape.parts - 1,
        "beat_heads": shape.heads,
        "beat_size": shape.size,
        "last_size": shape.last_size,
        **{name: value for name, value in of_sums.items() if name in model.fields},
    }


def _encode_append(
    model: AttentionModel, instruction: Instruction, one: Append[str]
) -> dict[str, int]:
    machine = model.machine
    place = model.kv[one.cache]
    cache, port = place.cache, machine.kv_port_bytes
    chunks = -(-cache.width // port)
    scale = place.shape.scale_bits // BYTE
    first, count = instruction.beat.of(cache.heads)
    row = model.program.row_of(one.input, instruction)
    stride = -(-cache.width // machine.vector_lanes)
    external: dict[str, int] = {}
    if model.external:
        external = {"external": place.external + first * place.beats, "block_beats": place.beats}
    return {
        "source": row + first * stride,
        "source_stride": stride,
        "entry": row + first,
        "word": place.word + first * place.words,
        "vector_words": place.words,
        "heads": cache.heads,
        "count": count,
        "slots_last": -(-(cache.width * place.planes + scale) // port) - 1,
        "chunks": chunks,
        "planes_last": place.planes - 1,
        "dynamic": int(not place.static),
        "scale_row": place.scale_row + first * _scale_rows(place),
        "scale_stride": _scale_rows(place),
        **external,
    }


def _scale_rows(place: CachePlace) -> int:
    """Rows of scales from a head to the next one."""
    return 0 if place.static else place.scale_rows


def _check_width(width: int, machine: Machine) -> None:
    """The elements of a beat lie in one row of the vector memory."""
    output = min(machine.attention_lanes, machine.results_per_cycle)
    if width % output and (width > output or output % width):
        raise UserError(
            f"heads {width} wide do not fit the attention unit",
            hint=f"a head's width divides {output} or is a multiple of it",
        )


def _normal(value: Real) -> Real:
    """A positive constant with a mantissa of 24 bits, as `score_scale` takes it."""
    scale = ConstantScale.of(value)
    return Real(int(scale.mantissa), int(scale.exponent))


def _bytes(fmt: str) -> int:
    return FORMATS[fmt].memory_bits // BYTE


def number_bits(*numbers: int) -> int:
    """Wires that hold the largest of the numbers."""
    return max(1, max(numbers).bit_length())
