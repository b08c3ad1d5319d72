"""Places in the SRAM of the H-Units: caches and adapters.

Vectors of a cache go round the H-Units token by token, rows of an adapter's matrix one by one, so
that all units multiply at once. A matrix of fewer rows than there are units (A of a low-rank
adapter on a large chip) takes as many neighbouring units as it has rows; such matrices fill the
units evenly, the widest first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from xdsl.dialects.builtin import ModuleOp

from intaglio.dialects import rom
from intaglio.dialects.errors import DoesNotFit, UserError
from intaglio.dialects.fabric import ReserveOp, kv_vector_bytes, matrix_shape
from intaglio.dialects.machine import Machine

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
    for op in module.ops:
        match op:
            case rom.CacheOp(type=rom.KVType() as kv):
                tokens = -(-tokens_on_die(kv, machine) // machine.h_units)
                size = tokens * kv.heads.data * kv_vector_bytes(op)
                yield Reservation(op.sym_name.data, KV, machine.h_units, size)
            case rom.ParameterOp(type=rom.AdapterType() as adapter):
                use = SLOTS if adapter.is_slot else CONSTANT
                yield Reservation(op.sym_name.data, use, *adapter_size(adapter, machine))
            case _:
                continue


def adapter_size(type_: rom.AdapterType, machine: Machine) -> tuple[int, int]:
    """H-Units that a matrix of an adapter lies on, and bytes in each.

    A row is its codes, packed, and its scales of two bytes.
    """
    shape = matrix_shape(type_)
    groups = -(-shape.columns // shape.group)
    row = -(-(shape.columns * shape.bits + groups * shape.scale_bits) // 8)
    return min(shape.rows, machine.h_units), -(-shape.rows // machine.h_units) * row


def tokens_on_die(cache: rom.KVType, machine: Machine) -> int:
    """Tokens of a cache that lie in the chip's SRAM; the others are in external memory."""
    return min(cache.capacity.data, machine.kv_on_die or cache.capacity.data)


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
            hint=f"--set external.kv_on_die_tokens to a multiple of {machine.h_units}",
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
    lines = [first]
    lines += [
        f"    {size / 2**20:10.2f} MiB  {use}"
        for use, size in sorted(sram.bytes_by_use.items(), key=lambda item: -item[1])
    ]
    ways, hint = _ways_out(module, machine, wanted)
    return DoesNotFit("\n".join([*lines, *ways]), hint=hint)


def _ways_out(
    module: ModuleOp, machine: Machine, wanted: Sequence[Reservation]
) -> tuple[list[str], str]:
    """Ranks and contexts that fit together, as lines; and what to ask for instead."""
    slots = list(_slots(module))
    asked = max((type_.dims[axis] for type_, axis in slots), default=0)
    tokens = _tokens(module, machine, wanted)
    by_rank = {
        rank: tokens(wanted if rank == asked else _at_rank(wanted, slots, rank, machine))
        for rank in _ranks(asked)
    }
    on_die = bool(machine.kv_on_die)
    what = "tokens on the die" if on_die else "tokens"
    option = "--set external.kv_on_die_tokens=" if on_die else "--context "
    ways: list[str] = []
    if asked:
        fitting = [
            f"{f'rank {rank}' if rank else 'no slots'} with {count:,} {what}"
            for rank, count in by_rank.items()
            if count
        ]
        ways.append(f"    what fits: {', '.join(fitting) or 'no rank with any context'}")
    hints = [f"{option}{by_rank[asked]} would fit"] if by_rank[asked] else []
    if any(one.use == SLOTS for one in wanted):
        rank = _rank_that_fits(machine, wanted, slots)
        hints.append(f"--adapter-slots {rank}" if rank else "a smaller adapter rank")
        hints.append("slots for fewer matrices")
    fewer = "fewer tokens on the die" if on_die else "a shorter --context"
    hints.append(f"{fewer}, a narrower --set kv=..., or a larger target")
    return ways, "; or ".join(hints)


def _ranks(asked: int) -> list[int]:
    """The rank that was asked for, three times its half, and none."""
    return list(dict.fromkeys([asked, asked // 2, asked // 4, asked // 8, 0]))


def _tokens(
    module: ModuleOp, machine: Machine, wanted: Sequence[Reservation]
) -> Callable[[Sequence[Reservation]], int]:
    """How many tokens of all caches fit beside given reservations; at most as many as asked."""
    asked = max(
        (
            tokens_on_die(op.type, machine)
            for op in module.ops
            if isinstance(op, rom.CacheOp) and isinstance(op.type, rom.KVType)
        ),
        default=0,
    )
    # Tokens go round the H-Units; each takes as much of its own.
    rounds = -(-asked // machine.h_units)
    each = sum(one.size for one in wanted if one.use == KV) // rounds if rounds else 0

    def fitting(others: Sequence[Reservation]) -> int:
        rest, _ = fill([one for one in others if one.use != KV], machine)
        free = machine.sram_bytes - rest.fullest
        return min(asked, max(0, free // each) * machine.h_units) if each else 0

    return fitting


_Slot = tuple[rom.AdapterType, int]
"""The type of a slot, and which of its dimensions is the rank."""


def _slots(module: ModuleOp) -> Iterator[_Slot]:
    for op in module.ops:
        if isinstance(op, rom.SiteOp):
            for axis, symbol in enumerate((op.a, op.b)):
                type_ = rom.resolve(op, symbol).type
                assert isinstance(type_, rom.AdapterType)
                yield type_, axis


def _at_rank(
    wanted: Sequence[Reservation], slots: Sequence[_Slot], rank: int, machine: Machine
) -> list[Reservation]:
    """The same reservations with slots of another rank; 0: without slots."""
    found = [one for one in wanted if one.use != SLOTS]
    for type_, axis in slots if rank else ():
        dims = list(type_.dims)
        dims[axis] = rank
        size = adapter_size(rom.AdapterType(dims, type_.code.data), machine)
        found.append(Reservation("", SLOTS, *size))
    return found


def _rank_that_fits(machine: Machine, wanted: Sequence[Reservation], slots: Sequence[_Slot]) -> int:
    """The largest rank of the slots at which all of a module fits; 0: not even the smallest."""

    def fits(rank: int) -> bool:
        return fill(_at_rank(wanted, slots, rank, machine), machine)[0].fullest <= (
            machine.sram_bytes
        )

    low, high = 0, max((type_.dims[axis] for type_, axis in slots), default=0)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
