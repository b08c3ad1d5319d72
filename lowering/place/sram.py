"""Places in the SRAM of the H-Units: caches and adapters.

Vectors of a cache go round the H-Units token by token, rows of an adapter's matrix one by one, so
that all units multiply at once. A slot has its matrix as often as adapters are resident. A matrix
of fewer rows than there are units (A of a low-rank adapter on a large chip) takes as many
neighbouring units as it has rows; such matrices fill the units evenly, the widest first.

Of tokens beyond `Machine.kv_on_die` the codes are in external memory; the dynamic scales of all
tokens stay on the die, where `backend/hw/units/attention/kv.py` gives them a memory, and count as
SRAM here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from xdsl.dialects.builtin import ModuleOp

from intaglio.dialects import rom
from intaglio.dialects.errors import DoesNotFit, UserError, Way
from intaglio.dialects.fabric import (
    ReserveOp,
    kv_code_bytes,
    kv_vector_bytes,
    matrix_shape,
)
from intaglio.dialects.fixed_point import SCALE_BYTES
from intaglio.dialects.machine import KV_FORMATS, Machine
from intaglio.lowering.place.search import largest

KV_ON_DIE = "external.kv_on_die_tokens"
"""The setting of how many tokens of the KV cache are on the die."""
KV = "KV cache"
SLOTS = "adapter slots"
CONSTANT = "adapters of the graph"


@dataclass(frozen=True)
class Reservation:
    """SRAM that a buffer needs: `size` bytes in each of `units` neighbouring H-Units."""

    name: str
    use: str
    units: int
    size: int


@dataclass
class Sram:
    """How full each H-Unit is."""

    machine: Machine
    used: list[int] = field(default_factory=list)
    bytes_by_use: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.used.extend([0] * self.machine.h_units)

    @property
    def fullest(self) -> int:
        """Bytes used of the fullest unit."""
        return max(self.used)

    def place(self, wanted: Reservation) -> tuple[int, int]:
        """Takes the lowest place; gives its first unit and its address."""
        step = 1 << (wanted.units - 1).bit_length()
        firsts = range(0, self.machine.h_units - wanted.units + 1, step)
        first = min(firsts, key=lambda unit: max(self.used[unit : unit + wanted.units]))
        part = slice(first, first + wanted.units)
        address = max(self.used[part])
        self.used[part] = [address + wanted.size] * wanted.units
        use = self.bytes_by_use
        use[wanted.use] = use.get(wanted.use, 0) + wanted.size * wanted.units
        return first, address


def reservations(module: ModuleOp, machine: Machine) -> Iterator[Reservation]:
    """What a module needs, in the order of its declarations."""
    residents = residents_of(module)
    for op in module.ops:
        match op:
            case rom.CacheOp(type=rom.KVType() as kv):
                size = _cache_size(op, kv, machine, kv.capacity.data)
                yield Reservation(op.sym_name.data, KV, machine.h_units, size)
            case rom.ParameterOp(type=rom.AdapterType() as adapter):
                yield _adapter(op.sym_name.data, adapter, machine, residents)
            case _:
                continue


def residents_of(module: ModuleOp) -> int:
    """How many adapters the slots of a module hold at once.

    Raises:
        UserError: its sites do not hold the same number.
    """
    found = {site.copies for site in module.ops if isinstance(site, rom.SiteOp)}
    if len(found) > 1:
        raise UserError(f"sites hold different numbers of adapters: {sorted(found)}")
    return max(found, default=1)


def _adapter(name: str, type_: rom.AdapterType, machine: Machine, residents: int) -> Reservation:
    """A matrix of an adapter: a row is its codes, packed, and its scales of two bytes."""
    shape = matrix_shape(type_)
    groups = -(-shape.columns // shape.group)
    row = -(-(shape.columns * shape.bits + groups * shape.scale_bits) // 8)
    if type_.is_slot:
        return of_rows(name, SLOTS, shape.rows, row, machine, residents)
    return of_rows(name, CONSTANT, shape.rows, row, machine)


def of_rows(
    name: str, use: str, rows: int, row: int, machine: Machine, copies: int = 1
) -> Reservation:
    """The reservation of a matrix whose rows of `row` bytes go round the H-Units.

    Args:
        name: of the buffer.
        use: what the SRAM is for.
        rows: of the matrix.
        row: bytes of a row.
        machine: the chip.
        copies: of the matrix, one after the other: the resident adapters of a slot.
    """
    size = copies * -(-rows // machine.h_units) * row
    return Reservation(name, use, min(rows, machine.h_units), size)


def tokens_on_die(tokens: int, machine: Machine) -> int:
    """Of the tokens of a cache those whose codes are on the die; the others' are in external
    memory."""
    return min(tokens, machine.kv_on_die or tokens)


def cache_bytes(tokens: int, codes: int, scales: int, machine: Machine) -> int:
    """Bytes that caches take of each H-Unit, of which tokens go round.

    Rows of the emitted memories may be padded beyond that: vectors to whole words of the H-Units,
    scales to whole rows of `vector_lanes` tokens.

    Args:
        tokens: that the caches hold.
        codes: bytes of the codes of a token.
        scales: bytes of the dynamic scales of a token.
        machine: the chip.
    """
    inside = -(-tokens_on_die(tokens, machine) // machine.h_units)
    return inside * codes + -(-tokens // machine.h_units) * scales


def _cache_size(op: rom.CacheOp, kv: rom.KVType, machine: Machine, tokens: int) -> int:
    scale = 0 if kv.static.data else SCALE_BYTES
    code = kv_vector_bytes(op) - scale
    return cache_bytes(tokens, kv.heads.data * code, kv.heads.data * scale, machine)


def fill(wanted: Sequence[Reservation], machine: Machine) -> tuple[Sram, dict[str, ReserveOp]]:
    """Places by name: first what lies on all units, then the rest, the largest first."""

    def order(one: Reservation) -> tuple[int, int]:
        return (-one.units, 0 if one.units == machine.h_units else -one.size)

    sram = Sram(machine)
    placed: dict[str, ReserveOp] = {}
    for one in sorted(wanted, key=order):
        unit, address = sram.place(one)
        placed[one.name] = ReserveOp(one.name, address, one.size, unit)
    return sram, placed


def place_sram(module: ModuleOp, machine: Machine) -> list[ReserveOp]:
    """The reservations of a module's caches and adapters, in the order of their declarations.

    Raises:
        DoesNotFit: an H-Unit has too little SRAM.
        UserError: the tokens that are kept on the die do not divide among the H-Units.
    """
    if machine.kv_on_die % machine.h_units:
        raise UserError(
            f"{machine.kv_on_die} tokens on the die do not go round {machine.h_units} H-Units",
            hint=f"--set {KV_ON_DIE} to a multiple of {machine.h_units}",
        )
    wanted = list(reservations(module, machine))
    sram, placed = fill(wanted, machine)
    if sram.fullest > machine.sram_bytes:
        raise _overflow(module, machine, sram, wanted)
    return [placed[one.name] for one in wanted]


def _overflow(
    module: ModuleOp, machine: Machine, sram: Sram, wanted: Sequence[Reservation]
) -> DoesNotFit:
    """Who uses the SRAM, by how much it is over, what would make it fit."""
    whole = machine.sram_bytes * machine.h_units
    over = (sram.fullest - machine.sram_bytes) / 2**10
    first = (
        f"the SRAM of {machine.name} holds {whole / 2**20:.2f} MiB, the model needs "
        f"{sum(sram.bytes_by_use.values()) / 2**20:.2f} MiB; the fullest H-Unit is over by "
        f"{over:.1f} KiB"
    )
    caches = _Caches(module, machine)
    lines = [first]
    lines += [
        f"    {size / 2**20:10.2f} MiB  {use}{caches.what if use == KV else ''}"
        for use, size in sorted(sram.bytes_by_use.items(), key=lambda item: -item[1])
    ]
    slots = any(one.use == SLOTS for one in wanted)
    return DoesNotFit(
        "\n".join(lines),
        of="the SRAM",
        ways=list(_ways_out(module, machine, wanted, caches)),
        others=[*(["slots for fewer matrices"] if slots else []), "a larger target"],
    )


class _Caches:
    """The caches of a module, and what they would take otherwise."""

    def __init__(self, module: ModuleOp, machine: Machine) -> None:
        self.machine = machine
        self.caches = [
            (op, op.type)
            for op in module.ops
            if isinstance(op, rom.CacheOp) and isinstance(op.type, rom.KVType)
        ]
        self.tokens = max((kv.capacity.data for _, kv in self.caches), default=0)
        self.on_die = tokens_on_die(self.tokens, machine)

    @property
    def what(self) -> str:
        """Which tokens' codes and scales are meant, to stand after "KV cache"."""
        if self.on_die == self.tokens:
            return ""
        scales = any(not kv.static.data for _, kv in self.caches)
        return f": first {self.on_die:,} tokens" + (
            f", scales of all {self.tokens:,}" if scales else ""
        )

    def size(self, tokens: int, on_die: int) -> int:
        """Bytes of each H-Unit with other numbers of tokens."""
        machine = replace(self.machine, kv_on_die=on_die)
        return sum(
            _cache_size(op, kv, machine, min(tokens, kv.capacity.data)) for op, kv in self.caches
        )

    def most_on_die(self, free: int) -> int:
        """The most tokens on the die that fit, of the whole context; 0: not even one round."""
        units = self.machine.h_units
        rounds = -(-self.on_die // units)
        return min(
            self.on_die,
            units * largest(lambda n: self.size(self.tokens, n * units) <= free, rounds),
        )

    def longest(self, free: int) -> int:
        """The longest context that fits, with as many tokens on the die as now; 0: none."""
        units, kept = self.machine.h_units, self.machine.kv_on_die
        rounds = -(-self.tokens // units)
        return min(
            self.tokens, units * largest(lambda n: self.size(n * units, kept) <= free, rounds)
        )

    def smaller_formats(self) -> list[str]:
        """Formats of the caches that have the chip's, not the graph's, that take fewer bytes.

        The largest is the first.
        """
        own = [(op, kv) for op, kv in self.caches if not kv.static.data]
        now = sum(kv.heads.data * kv_vector_bytes(op) for op, kv in own)

        def size(name: str) -> int:
            scale = 0 if name == "fp8" else SCALE_BYTES
            return sum(
                kv.heads.data * (kv_code_bytes(kv.width.data, name) + scale) for _, kv in own
            )

        smaller = [name for name in KV_FORMATS if size(name) < now]
        return sorted(smaller, key=size, reverse=True)


def _ways_out(
    module: ModuleOp, machine: Machine, wanted: Sequence[Reservation], caches: _Caches
) -> Iterator[Way]:
    """What the SRAM holds instead; last a list of ranks with as many tokens as go with them."""
    slots = list(_slots(module))
    asked = max((slot.rank for slot in slots), default=0)
    free = {
        rank: _beside(wanted if rank == asked else _at_rank(wanted, slots, rank, machine), machine)
        for rank in _ranks(asked)
    }
    if machine.kv_on_die and (most := caches.most_on_die(free[asked])):
        yield Way(settings=(f"{KV_ON_DIE}={most}",))
    if longest := caches.longest(free[asked]):
        yield Way(context=longest)
    if asked:
        if rank := _rank_that_fits(machine, wanted, slots):
            yield Way(rank=rank)
        if residents := _residents_that_fit(machine, wanted, slots):
            yield Way(residents=residents)
    yield from (Way(settings=(f"kv={name}",)) for name in caches.smaller_formats())
    for rank, left in free.items() if asked else ():
        if not machine.kv_on_die and (longest := caches.longest(left)):
            yield Way(rank=rank, context=longest, listed=True)
        elif machine.kv_on_die and (most := caches.most_on_die(left)):
            yield Way(rank=rank, settings=(f"{KV_ON_DIE}={most}",), listed=True)


def _beside(wanted: Sequence[Reservation], machine: Machine) -> int:
    """Bytes of each H-Unit that what is no cache leaves free; below 0 where it is too much."""
    rest, _ = fill([one for one in wanted if one.use != KV], machine)
    return machine.sram_bytes - rest.fullest


def _ranks(asked: int) -> list[int]:
    """The rank that was asked for, three times its half, and none."""
    return list(dict.fromkeys([asked, asked // 2, asked // 4, asked // 8, 0]))


class _Slot(NamedTuple):
    """The type of a slot, which of its dimensions is the rank, and how many adapters it holds."""

    type: rom.AdapterType
    axis: int
    residents: int

    @property
    def rank(self) -> int:
        return self.type.dims[self.axis]


def _slots(module: ModuleOp) -> Iterator[_Slot]:
    for op in module.ops:
        if isinstance(op, rom.SiteOp):
            for axis, symbol in enumerate((op.a, op.b)):
                type_ = rom.resolve(op, symbol).type
                assert isinstance(type_, rom.AdapterType)
                yield _Slot(type_, axis, op.copies)


def _at_rank(
    wanted: Sequence[Reservation], slots: Sequence[_Slot], rank: int, machine: Machine
) -> list[Reservation]:
    """The same reservations with slots of another rank; 0: without slots."""
    found = [one for one in wanted if one.use != SLOTS]
    for slot in slots if rank else ():
        dims = list(slot.type.dims)
        dims[slot.axis] = rank
        type_ = rom.AdapterType(dims, slot.type.code.data)
        found.append(_adapter("", type_, machine, slot.residents))
    return found


def _fits(wanted: Sequence[Reservation], machine: Machine) -> bool:
    return fill(wanted, machine)[0].fullest <= machine.sram_bytes


def _rank_that_fits(machine: Machine, wanted: Sequence[Reservation], slots: Sequence[_Slot]) -> int:
    """The largest rank of the slots at which all of a module fits; 0: not even the smallest."""

    def fits(rank: int) -> bool:
        return _fits(_at_rank(wanted, slots, rank, machine), machine)

    return largest(fits, max((slot.rank for slot in slots), default=1) - 1)


def _residents_that_fit(
    machine: Machine, wanted: Sequence[Reservation], slots: Sequence[_Slot]
) -> int:
    """The most resident adapters, fewer than there are, at which all fits; 0: not even one."""

    def fits(residents: int) -> bool:
        fewer = [slot._replace(residents=residents) for slot in slots]
        rank = max(slot.rank for slot in slots)
        return _fits(_at_rank(wanted, fewer, rank, machine), machine)

    return largest(fits, max((slot.residents for slot in slots), default=1) - 1)
