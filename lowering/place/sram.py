"""Places in the H-Units' memories: caches and adapters, and the scales beside them.

How a cache or a matrix lies on the H-Units is in `dialects/h_units.py`; here they follow one
another. Matrices that the graph brings along come before slots, and a slot has its rows as often as
adapters are resident, those of the next resident behind all of the last one's. A matrix of fewer
rows than there are units (A of a low-rank adapter on a large chip) takes as many neighbouring units
as it has rows; such matrices fill the units evenly, the widest first.

The SRAM of an H-Unit holds its part of `kv`, `adapters`, `adapter_scales` and `states`. The scales
of caches are one memory of whole rows of the vector units, and take of these units' SRAM
(`Need.scales`). Of states those of convolutions have the first rows of `vectors`; values lie behind
them (`vector_memory.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

from xdsl.dialects.builtin import ModuleOp

from intaglio.dialects import rom
from intaglio.dialects.errors import DoesNotFit, UserError, Way
from intaglio.dialects.fabric import (
    MemoryOp,
    ReserveOp,
    adapter_shape,
    cache_shape,
    shape_of_adapter,
)
from intaglio.dialects.h_units import (
    ADAPTER_SCALES,
    ADAPTERS,
    BYTE,
    EXTERNAL,
    KV,
    KV_SCALES,
    STATE_SCALE_BITS,
    STATE_SCALES,
    STATES,
    AdapterShape,
    CacheShape,
    StateShape,
    kv_scale_bits,
    scale_group,
    tokens_on_die,
    unit_step,
)
from intaglio.dialects.machine import KV_FORMATS, Machine
from intaglio.dialects.memories import LEAST_ROWS, VECTORS, Memory
from intaglio.dialects.tiling import SCALE_BITS
from intaglio.lowering.buffers import matrices_of, state_sizes
from intaglio.lowering.place.search import largest

KV_ON_DIE = "external.kv_on_die_tokens"
"""The setting of how many tokens of the KV cache are on the die."""
NO_SCALES = Way(settings=("kv=fp8",))
"""Caches without scales."""
KV_USE, SLOTS, CONSTANT = "KV cache", "adapter slots", "adapters of the graph"
STATE_USE = "states of linear attention"


class Rows(NamedTuple):
    """Where a matrix begins: its first word, its first scale, the H-Unit of its row 0."""

    word: int
    scale: int
    unit: int


@dataclass(frozen=True)
class Adapters:
    """Matrices in the H-Units' memories.

    Attributes:
        places: of each, by name.
        words: the memory of codes; None: there is no matrix.
        scales: that of their scales.
    """

    places: Mapping[str, Rows]
    words: Memory | None
    scales: Memory | None

    @property
    def memories(self) -> dict[str, Memory]:
        """The memories by name."""
        found = {ADAPTERS: self.words, ADAPTER_SCALES: self.scales}
        return {name: one for name, one in found.items() if one is not None}

    @property
    def unit_size(self) -> int:
        """Bytes in every H-Unit."""
        return sum(one.unit_size for one in self.memories.values())


def place_matrices(
    shapes: Mapping[str, AdapterShape], machine: Machine, residents: int = 1
) -> Adapters:
    """Gives matrices of adapters their places.

    Args:
        shapes: by name.
        machine: the chip.
        residents: adapters that the slots hold at once.
    """
    if not shapes:
        return Adapters({}, None, None)
    bits = max(one.bits for one in shapes.values())
    words, scales = [0] * machine.h_units, [0] * machine.h_units
    places: dict[str, Rows] = {}
    ends: list[tuple[int, int]] = []
    for of_slots in (False, True):
        # What comes next begins on all units alike.
        ends.append((max(words), max(scales)))
        words, scales = [max(words)] * machine.h_units, [max(scales)] * machine.h_units
        own = {name: one for name, one in shapes.items() if one.is_slot == of_slots}
        for name in sorted(own, key=lambda name: _order(own[name])):
            one = own[name]
            step = unit_step(machine, one.units, bits * machine.attention_lanes)
            firsts = range(0, machine.h_units - one.units + 1, step)
            first = min(firsts, key=lambda first: max(words[first : first + one.units]))
            part = slice(first, first + one.units)
            begin, count = scale_group(machine, first, one.units)
            group = slice(begin, begin + count)
            word, scale = max(words[part]), max(scales[group])
            places[name] = Rows(word, scale, first)
            words[part] = [word + one.blocks * one.words] * one.units
            scales[group] = [scale + one.blocks * one.groups] * count
    word, scale = ends[1]
    of_one = max(words) - word, max(scales) - scale
    units = machine.h_units
    return Adapters(
        {name: places[name] for name in shapes},
        Memory(
            max(LEAST_ROWS, word + residents * of_one[0]),
            machine.attention_lanes,
            bits,
            units,
            of_one[0],
        ),
        Memory(max(LEAST_ROWS, scale + residents * of_one[1]), 1, SCALE_BITS, units, of_one[1]),
    )


def _order(one: AdapterShape) -> tuple[int, int]:
    """What lies on all units first, then the rest, the largest first."""
    return -one.units, 0 if one.units == one.machine.h_units else -one.words


def place_caches(
    caches: Mapping[str, CacheShape], machine: Machine
) -> tuple[dict[str, tuple[int, int, int]], dict[str, Memory]]:
    """Gives caches their first rows in `kv`, `kv_scales` and `external`, one after the other."""
    places: dict[str, tuple[int, int, int]] = {}
    word = scale = external = 0
    for name, one in caches.items():
        places[name] = word, 0 if one.static else scale, external
        word, scale, external = word + one.rows, scale + one.scales, external + one.outside
    if not caches:
        return {}, {}
    # Scales of caches that have some; without any the memory has its least rows.
    bits = max(one.scale_bits for one in caches.values()) or kv_scale_bits(machine.kv)
    found = {
        KV: Memory(max(LEAST_ROWS, word), machine.attention_lanes, BYTE, machine.h_units),
        KV_SCALES: Memory(max(LEAST_ROWS, scale), machine.vector_lanes, bits),
    }
    if external:
        found[EXTERNAL] = Memory(max(LEAST_ROWS, external), machine.external_bytes, BYTE)
    return places, found


def place_states(
    states: Mapping[str, StateShape], machine: Machine
) -> tuple[dict[str, tuple[int, int]], dict[str, Memory]]:
    """Gives states their first rows in `states` and `state_scales`, one after the other."""
    places: dict[str, tuple[int, int]] = {}
    row = head = 0
    for name, one in states.items():
        places[name] = row, head
        row, head = row + one.rows, head + one.heads
    if not states:
        return {}, {}
    return places, {
        STATES: Memory(max(LEAST_ROWS, row), machine.attention_lanes, BYTE, machine.h_units),
        STATE_SCALES: Memory(max(LEAST_ROWS, head), 1, STATE_SCALE_BITS),
    }


def states_of(module: ModuleOp, machine: Machine) -> dict[str, StateShape]:
    """The states of linear attention of a module by name, as the H-Units see them."""
    return {name: StateShape(machine, *one.dims) for name, one in matrices_of(module).items()}


def residents_of(module: ModuleOp) -> int:
    """How many adapters the slots of a module hold at once.

    Raises:
        UserError: its sites do not hold the same number.
    """
    found = {site.copies for site in module.ops if isinstance(site, rom.SiteOp)}
    if len(found) > 1:
        raise UserError(f"sites hold different numbers of adapters: {sorted(found)}")
    return max(found, default=1)


def caches_of(module: ModuleOp, machine: Machine) -> dict[str, CacheShape]:
    """The caches of a module by name, as the H-Units see them."""
    return {
        op.sym_name.data: cache_shape(kv, machine)
        for op in module.ops
        if isinstance(op, rom.CacheOp) and isinstance(kv := op.type, rom.KVType)
    }


def adapters_of(module: ModuleOp, machine: Machine) -> dict[str, AdapterShape]:
    """The matrices of adapters of a module by name, as the H-Units see them."""
    return {
        op.sym_name.data: adapter_shape(op, machine)
        for op in module.ops
        if isinstance(op, rom.ParameterOp) and isinstance(op.type, rom.AdapterType)
    }


@dataclass(frozen=True)
class Need:
    """What caches, states and adapters need of a chip's SRAM.

    Attributes:
        machine: the chip.
        caches: of the model.
        adapters: in their places.
        states: those of linear attention.
    """

    machine: Machine
    caches: Sequence[CacheShape]
    adapters: Adapters
    states: Sequence[StateShape] = ()

    @cached_property
    def _memories(self) -> dict[str, Memory]:
        caches = {str(n): one for n, one in enumerate(self.caches)}
        states = {str(n): one for n, one in enumerate(self.states)}
        return place_caches(caches, self.machine)[1] | place_states(states, self.machine)[1]

    def _of(self, *names: str) -> Iterator[Memory]:
        return (self._memories[name] for name in names if name in self._memories)

    @property
    def unit_size(self) -> int:
        """Bytes of every H-Unit's SRAM."""
        return self.adapters.unit_size + sum(one.unit_size for one in self._of(KV, STATES))

    @property
    def codes(self) -> int:
        """Bytes of the caches' codes on the die, of all H-Units."""
        return sum(one.size for one in self._of(KV))

    @property
    def mantissas(self) -> int:
        """Bytes of the states' mantissas, of all H-Units."""
        return sum(one.size for one in self._of(STATES))

    @property
    def scales(self) -> int:
        """Bytes of the vector units' SRAM: scales of all tokens, exponents of states."""
        return sum(one.size for one in self._of(KV_SCALES, STATE_SCALES))

    @property
    def fits(self) -> bool:
        """Whether the chip has it; of the vector units' SRAM values take their part besides."""
        machine = self.machine
        return self.unit_size <= machine.sram_bytes and self.scales <= machine.vector_sram_bytes

    def at(self, tokens: int, on_die: int | None = None) -> Need:
        """The same with other numbers of tokens, on the die and in all."""
        kept = self.machine.kv_on_die if on_die is None else on_die
        machine = replace(self.machine, kv_on_die=kept)
        caches = [
            replace(one, machine=machine, capacity=min(tokens, one.capacity)) for one in self.caches
        ]
        return replace(self, machine=machine, caches=caches)


def need_of(module: ModuleOp, machine: Machine) -> Need:
    """What a module needs of the SRAM."""
    adapters = place_matrices(adapters_of(module, machine), machine, residents_of(module))
    caches = list(caches_of(module, machine).values())
    states = list(states_of(module, machine).values())
    return Need(machine, caches, adapters, states)


def place_sram(module: ModuleOp, machine: Machine) -> list[MemoryOp | ReserveOp]:
    """The memories of a module's caches and adapters, and their places.

    Raises:
        DoesNotFit: an H-Unit has too little SRAM.
        UserError: the tokens that are kept on the die do not divide among the H-Units.
    """
    if machine.kv_on_die % machine.h_units:
        raise UserError(
            f"{machine.kv_on_die} tokens on the die do not go round {machine.h_units} H-Units",
            hint=f"--set {KV_ON_DIE} to a multiple of {machine.h_units}",
        )
    need = need_of(module, machine)
    if need.unit_size > machine.sram_bytes:
        raise _overflow(module, need)
    if not need.fits:
        raise _scales_overflow(need)
    caches, memories = place_caches(caches_of(module, machine), machine)
    placed = {
        name: ReserveOp(name, KV, word, scale, external=external)
        for name, (word, scale, external) in caches.items()
    }
    placed |= {
        name: ReserveOp(name, ADAPTERS, one.word, one.scale, one.unit)
        for name, one in need.adapters.places.items()
    }
    of_states, more = place_states(states_of(module, machine), machine)
    memories |= more
    placed |= {name: ReserveOp(name, STATES, row, head) for name, (row, head) in of_states.items()}
    row = 0
    for name, size in state_sizes(module).items():
        placed[name] = ReserveOp(name, VECTORS, row)
        row += -(-size // machine.vector_lanes)
    ops: list[MemoryOp | ReserveOp] = [
        MemoryOp(name, one) for name, one in (memories | need.adapters.memories).items()
    ]
    declared = (op.sym_name.data for op in module.ops if isinstance(op, _DECLARED))
    return ops + [placed[name] for name in declared if name in placed]


_DECLARED = (rom.ParameterOp, rom.CacheOp, rom.StateOp)


def _overflow(module: ModuleOp, need: Need) -> DoesNotFit:
    """Who uses the SRAM, by how much it is over, what would make it fit."""
    machine = need.machine
    whole = machine.sram_bytes * machine.h_units
    slots = place_matrices(
        {n: one for n, one in adapters_of(module, machine).items() if one.is_slot},
        machine,
        residents_of(module),
    )
    by_use = {
        KV_USE: need.codes,
        SLOTS: slots.unit_size * machine.h_units,
        STATE_USE: need.mantissas,
        CONSTANT: (need.adapters.unit_size - slots.unit_size) * machine.h_units,
    }
    over = need.unit_size - machine.sram_bytes
    first = (
        f"the SRAM of {machine.name} holds {whole / 2**20:.2f} MiB, the model needs "
        f"{sum(by_use.values()) / 2**20:.2f} MiB; every H-Unit is over by {over:,} bytes"
    )
    lines = [first]
    lines += [
        f"    {size / 2**20:10.2f} MiB  {use}{_tokens(need) if use == KV_USE else ''}"
        for use, size in sorted(by_use.items(), key=lambda item: -item[1])
        if size
    ]
    return DoesNotFit(
        "\n".join(lines),
        of="the SRAM",
        ways=list(_ways_out(module, need)),
        others=[*(["slots for fewer matrices"] if slots.places else []), "a larger target"],
    )


def _scales_overflow(need: Need) -> DoesNotFit:
    """The same where the scales of caches alone take more than the vector units have."""
    machine = need.machine
    return DoesNotFit(
        f"the vector units of {machine.name} hold {machine.vector_sram_bytes} bytes, scales of "
        f"cached keys and values take {need.scales}",
        of="the vector memory",
        ways=[*([Way(context=longest)] if (longest := _longest(need)) else []), NO_SCALES],
        others=["a larger target"],
    )


def _tokens(need: Need) -> str:
    """Which tokens' codes are meant, to stand after "KV cache"."""
    longest = max((one.capacity for one in need.caches), default=0)
    on_die = tokens_on_die(longest, need.machine)
    return "" if on_die == longest else f": first {on_die:,} tokens"


def _most_on_die(need: Need) -> int:
    """The most tokens on the die that fit, of the whole context; 0: not even one round."""
    units = need.machine.h_units
    tokens = max((one.capacity for one in need.caches), default=0)
    on_die = tokens_on_die(tokens, need.machine)
    rounds = largest(lambda n: need.at(tokens, n * units).fits, -(-on_die // units))
    return min(on_die, units * rounds)


def _longest(need: Need) -> int:
    """The longest context that fits, with as many tokens on the die as now; 0: none."""
    tokens = max((one.capacity for one in need.caches), default=0)
    return largest(lambda n: need.at(n).fits, tokens)


def _smaller_formats(caches: Sequence[CacheShape]) -> list[str]:
    """Formats of the caches that have the chip's, not the graph's, that take fewer words.

    The largest is the first.
    """
    own = [one for one in caches if not one.static]

    def size(name: str) -> int:
        return sum(replace(one, format=name).rows for one in own)

    now = sum(one.rows for one in own)
    return sorted((name for name in KV_FORMATS if size(name) < now), key=size, reverse=True)


def _ways_out(module: ModuleOp, need: Need) -> Iterator[Way]:
    """What the SRAM holds instead; last a list of ranks with as many tokens as go with them."""
    machine = need.machine
    slots = dict(_slots(module))
    asked = max((slot.rank for slot in slots.values()), default=0)

    def at_rank(rank: int) -> Need:
        shapes = _at_rank(module, machine, slots, rank)
        return replace(need, adapters=place_matrices(shapes, machine, residents_of(module)))

    if machine.kv_on_die and (most := _most_on_die(need)):
        yield Way(settings=(f"{KV_ON_DIE}={most}",))
    if longest := _longest(need):
        yield Way(context=longest)
    if asked:
        if rank := largest(lambda rank: at_rank(rank).fits, asked - 1):
            yield Way(rank=rank)
        now = residents_of(module)
        shapes = adapters_of(module, machine)

        def with_residents(count: int) -> bool:
            return replace(need, adapters=place_matrices(shapes, machine, count)).fits

        if residents := largest(with_residents, now - 1):
            yield Way(residents=residents)
    yield from (Way(settings=(f"kv={name}",)) for name in _smaller_formats(need.caches))
    for rank in _ranks(asked) if asked else ():
        other = at_rank(rank)
        if not machine.kv_on_die and (longest := _longest(other)):
            yield Way(rank=rank, context=longest, listed=True)
        elif machine.kv_on_die and (most := _most_on_die(other)):
            yield Way(rank=rank, settings=(f"{KV_ON_DIE}={most}",), listed=True)


def _ranks(asked: int) -> list[int]:
    """The rank that was asked for, three times its half, and none."""
    return list(dict.fromkeys([asked, asked // 2, asked // 4, asked // 8, 0]))


class _Slot(NamedTuple):
    """The type of a slot, and which of its dimensions is the rank."""

    type: rom.AdapterType
    axis: int

    @property
    def rank(self) -> int:
        return self.type.dims[self.axis]


def _slots(module: ModuleOp) -> Iterator[tuple[str, _Slot]]:
    for op in module.ops:
        if isinstance(op, rom.SiteOp):
            for axis, symbol in enumerate((op.a, op.b)):
                type_ = rom.resolve(op, symbol).type
                assert isinstance(type_, rom.AdapterType)
                yield symbol.root_reference.data, _Slot(type_, axis)


def _at_rank(
    module: ModuleOp, machine: Machine, slots: Mapping[str, _Slot], rank: int
) -> dict[str, AdapterShape]:
    """The matrices with slots of another rank; 0: without slots."""
    found = adapters_of(module, machine)
    for name, slot in slots.items():
        if not rank:
            del found[name]
            continue
        dims = list(slot.type.dims)
        dims[slot.axis] = rank
        type_ = rom.AdapterType(dims, slot.type.code.data)
        found[name] = shape_of_adapter(type_, machine, None)
    return found
