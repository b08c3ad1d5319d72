"""The trade of SRAM between adapters and context: what rank leaves room for how many tokens.

The same rules place caches and adapters here and in a compile (`lowering/place/sram.py`). For chips
that keep the first tokens on the die and the others in external memory, the trade is between the
tokens on the die and the traffic outside (`runtime/reports/traffic.py`). The scales of all tokens
lie in the vector units' SRAM, and must find room there; values besides are not counted here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from intaglio.backend.program.program import Program
from intaglio.dialects.codes import SLOT_BITS
from intaglio.dialects.h_units import AdapterShape, tokens_on_die
from intaglio.dialects.json_file import JSONFile
from intaglio.dialects.machine import Machine
from intaglio.dialects.memories import Memory
from intaglio.lowering.place.search import largest
from intaglio.runtime.reports.traffic import traffic
from intaglio.runtime.reports.wording import counted

RANKS = (0, 4, 8, 16, 32, 64, 128)
"""Ranks of the table, beside the chip's own."""
CONTEXTS = 6
"""Contexts of the table, powers of two around the chip's own."""
ON_DIE = (8, 16, 32, 64, 128)
"""Tokens on the die of the table, beside the chip's own."""
GENERATIONS = (128, 512, 2048)
"""Tokens of the generations whose traffic is stated, beside the context."""


@dataclass(frozen=True)
class Demand:
    """What a model asks of the SRAM.

    Attributes:
        kv_bytes: of one token, all layers: codes in whole words of the H-Units, and dynamic scales.
        sites: (rows N, columns K) of each matrix that adapters stand beside.
        fixed: adapters that are part of the model.
        scale_bytes: of `kv_bytes`, those of the scales.
        context: tokens of the caches; needed where some of them are in external memory.
        residents: adapters that the slots hold at once.
    """

    kv_bytes: int
    sites: Sequence[tuple[int, int]]
    fixed: Sequence[AdapterShape] = ()
    scale_bytes: int = 0
    context: int = 0
    residents: int = 1

    @property
    def code_bytes(self) -> int:
        """Bytes of the codes of one token."""
        return self.kv_bytes - self.scale_bytes


def demand_of(program: Program, possible: Sequence[JSONFile] = ()) -> Demand:
    """The demand of a compiled model.

    Args:
        program: the compiled model.
        possible: the sites that slots would stand beside, as the manifest has them
            (`adapter_sites`); they count where the chip has no slots.
    """
    machine = program.machine
    caches = [one.shape(machine) for one in program.caches.values()]
    codes = sum(one.heads * one.words * machine.attention_lanes for one in caches)
    scales = sum(one.heads * one.scale_bits // 8 for one in caches)
    sites = [(site.rows, site.columns) for site in program.sites.values()]
    if not sites:
        for one in possible:
            sites += [(one["rows"].count(), one["columns"].count())] * one["sites"].count()
    fixed = [
        one.shape(machine)
        for one in program.parameters.values()
        if one.store == "rom.adapter" and not one.is_slot
    ]
    return Demand(codes + scales, sites, fixed, scales, program.capacity, program.residents)


def adapter_bytes(machine: Machine, demand: Demand, rank: int) -> int:
    """Bytes of the H-Units' memories that A and B of all sites take at a rank, with their scales,
    of one adapter."""
    found = _memories(machine, tuple(demand.sites), (), 1, rank)
    return sum(one.resident * one.lanes * one.bits * one.units // 8 for one in found)


@lru_cache(maxsize=64)
def _memories(
    machine: Machine,
    sites: tuple[tuple[int, int], ...],
    fixed: tuple[AdapterShape, ...],
    residents: int,
    rank: int,
) -> tuple[Memory, ...]:
    """The memories of all matrices of adapters of a rank, as a compile places them."""
    from intaglio.lowering.place.sram import place_matrices

    bits = SLOT_BITS[machine.adapter]
    shapes = {f"fixed{number}": one for number, one in enumerate(fixed)}
    for number, (rows, columns) in enumerate(sites if rank else ()):
        for half, dims in (("a", (rank, columns)), ("b", (rows, rank))):
            shapes[f"{half}{number}"] = AdapterShape(machine, *dims, bits, 0, is_slot=True)
    return tuple(place_matrices(shapes, machine, residents).memories.values())


def used_bytes(machine: Machine, demand: Demand, rank: int) -> int:
    """Bytes of each H-Unit without any cache."""
    found = _memories(machine, tuple(demand.sites), tuple(demand.fixed), demand.residents, rank)
    return sum(one.unit_size for one in found)


def cached_bytes(machine: Machine, demand: Demand, tokens: int) -> int:
    """Bytes of each H-Unit that caches of so many tokens on the die take."""
    return -(-tokens // machine.h_units) * demand.code_bytes


def _fits(machine: Machine, demand: Demand, used: int, tokens: int) -> bool:
    """Whether so many tokens fit beside what takes `used` bytes of each H-Unit."""
    lanes, whole = machine.vector_lanes, demand.context if machine.kv_on_die else tokens
    scales = -(-whole // lanes) * lanes * demand.scale_bytes
    return (
        used + cached_bytes(machine, demand, tokens) <= machine.sram_bytes
        and scales <= machine.vector_sram_bytes
    )


def context_that_fits(machine: Machine, demand: Demand, rank: int) -> int:
    """The largest context beside adapters of a rank; tokens go round the H-Units in turn.

    0 when the adapters alone are too large. Where the KV cache continues in external memory, it is
    the number of tokens that could be kept on the die, at most the whole context.
    """
    used, units = used_bytes(machine, demand, rank), machine.h_units
    free = machine.sram_bytes - used
    if not machine.kv_on_die:
        most = max(0, free // demand.code_bytes) * units if demand.code_bytes else 0
        return largest(lambda tokens: _fits(machine, demand, used, tokens), most)
    rounds = -(-demand.context // units)
    most = largest(lambda number: _fits(machine, demand, used, number * units), rounds)
    return min(demand.context, most * units)


def external_saving(on_die: int, tokens: int) -> float:
    """The part of external KV accesses that the first tokens on the die save (BitROM), where each
    token is fetched alone and none is outside a window.

    The i-th of n tokens reads i cached ones, of which those among the first L are inside, so that
    ``L (2 n - L + 1) / 2`` of ``n (n + 1) / 2`` accesses are saved: 43.6 % for L = 32 of n = 128.
    """
    inside = min(on_die, tokens)
    return inside * (2 * tokens - inside + 1) / (tokens * (tokens + 1))


def external_reads(on_die: int, tokens: int) -> int:
    """Cached tokens that a generation reads from external memory, each as often as it is read."""
    outside = max(0, tokens - on_die)
    return outside * (outside + 1) // 2


def budget(program: Program, possible: Sequence[JSONFile] = ()) -> dict[str, Any]:
    """The trade as data, for `intaglio inspect`; `possible` as in `demand_of`.

    Keys: `format`, `sites` (their number), `has_slots`, `residents`, `default_sites` (roles that
    slots stand beside unless asked otherwise; none: all), `rank` and `context` (the chip's own),
    `sram_bytes`, `kv_bytes_per_token` (codes and scales), `ranks` (each with `rank`,
    `adapter_bytes` of all residents, `context`, the largest that fits, and `use`, the part of the
    SRAM that each of `contexts` takes in all).
    Where the KV cache continues in external memory, `context` and `contexts` are tokens on the die,
    and `external` has these against the traffic outside, else None: `tokens_on_die`, `room_on_die`,
    `block_tokens` (that are fetched together), `code_bytes_per_token`, `tokens` (of generations),
    and `rows` with `on_die`, `kv_bytes` on the die, `fits`, and for each of `tokens` `read_bytes`
    of the program and the part `saving` of what it would read with no token on the die;
    `ideal_saving` and `ideal_read_bytes` are the same where each token is fetched alone, the
    papers' formula.
    """
    machine, demand = program.machine, demand_of(program, possible)
    rank = max((site.rank for site in program.sites.values()), default=0)
    capacity = program.capacity
    held = tokens_on_die(capacity, machine)
    contexts = _contexts(held, context_that_fits(machine, demand, 0))
    if machine.kv_on_die:
        contexts = [one for one in contexts if one <= capacity]
    rows: list[dict[str, Any]] = []
    for one in sorted({*RANKS, rank}) if demand.sites else (0,):
        used = used_bytes(machine, demand, one)
        rows.append(
            {
                "rank": one,
                "adapter_bytes": demand.residents * adapter_bytes(machine, demand, one),
                "context": context_that_fits(machine, demand, one),
                "use": {
                    str(tokens): (used + cached_bytes(machine, demand, tokens)) / machine.sram_bytes
                    for tokens in contexts
                },
            }
        )
    return {
        "format": machine.adapter,
        "sites": len(demand.sites),
        "has_slots": bool(program.sites),
        "residents": demand.residents,
        "default_sites": list(machine.adapter_sites),
        "rank": rank,
        "context": held,
        "sram_bytes": machine.sram_bytes * machine.h_units,
        "kv_bytes_per_token": demand.kv_bytes,
        "contexts": contexts,
        "ranks": rows,
        "external": _external(program, demand, rank) if machine.kv_on_die else None,
    }


def _contexts(own: int, largest: int) -> list[int]:
    """The chip's own context among powers of two, up to the first that fits no adapter."""
    last = 1 << max(own, largest, 1).bit_length()
    powers = [last >> i for i in range(CONTEXTS) if last >> i]
    return sorted({*powers, own})


def _external(program: Program, demand: Demand, rank: int) -> dict[str, Any]:
    machine, capacity = program.machine, program.capacity
    used = used_bytes(machine, demand, rank)
    tokens = [*(n for n in GENERATIONS if n < capacity), capacity]
    possible = {n for n in ON_DIE if n <= capacity and n % machine.h_units == 0}
    rows: list[dict[str, Any]] = []
    for on_die in sorted({*possible, machine.kv_on_die}):
        size = cached_bytes(machine, demand, on_die)
        of_each = traffic(program, np.arange(capacity), on_die)
        read, every = np.cumsum(of_each.read), np.cumsum(of_each.every)
        rows.append(
            {
                "on_die": on_die,
                "kv_bytes": size * machine.h_units,
                "fits": _fits(machine, demand, used, on_die),
                "saving": {str(n): 1 - int(read[n - 1]) / int(every[n - 1]) for n in tokens},
                "read_bytes": {str(n): int(read[n - 1]) for n in tokens},
                "ideal_saving": {str(n): external_saving(on_die, n) for n in tokens},
                "ideal_read_bytes": {
                    str(n): external_reads(on_die, n) * demand.code_bytes for n in tokens
                },
            }
        )
    return {
        "tokens_on_die": machine.kv_on_die,
        "room_on_die": context_that_fits(machine, demand, rank),
        "block_tokens": machine.h_units,
        "code_bytes_per_token": demand.code_bytes,
        "tokens": tokens,
        "rows": rows,
    }


# --- text ---------------------------------------------------------------------------------------

Table = tuple[str, tuple[str, ...], list[tuple[str, ...]], str]
"""A title, titles of the columns, rows, what is to be said below."""


def tables(content: Mapping[str, Any], size_text: Any) -> Iterator[Table]:
    """The trade as tables: `*` marks what the chip was compiled for.

    Args:
        content: what `budget` gives.
        size_text: how a number of bytes is written.
    """
    own_rank, own = content["rank"], content["context"]
    of = counted(content["sites"], "slot" if content["has_slots"] else "site")
    if not content["has_slots"]:
        of += " that slots would stand beside"
        if content["default_sites"]:
            of += f" (--adapter-slots R takes {', '.join(content['default_sites'])} alone)"
    residents = content["residents"]
    held = f", of {residents} resident adapters" if residents > 1 else ""
    contexts = content["contexts"]
    rows = [
        (
            f"{row['rank']}{'*' if row['rank'] == own_rank else ''}",
            size_text(row["adapter_bytes"]),
            f"{row['context']:,}" if row["context"] else "none",
            *(_use(row, tokens, (own_rank, own)) for tokens in contexts),
        )
        for row in content["ranks"]
    ]
    external = content["external"]
    kv = f"{content['kv_bytes_per_token']:,} bytes of KV a token"
    if external is not None:
        outside = content["kv_bytes_per_token"] - external["code_bytes_per_token"]
        kv += f" on the die, {outside:,} of one outside"
    yield (
        "Adapter rank against context"
        if external is None
        else "Adapter rank against tokens on the die",
        (
            "rank",
            "adapters",
            "longest" if external is None else "most",
            *(f"{tokens:,}" for tokens in contexts),
        ),
        rows,
        f"part of the SRAM used; {of} in {content['format']}{held}, {kv}; * is this chip",
    )
    if external is not None:
        yield from _external_tables(external, size_text)


def _external_tables(external: Mapping[str, Any], size_text: Any) -> Iterator[Table]:
    """Tokens on the die against the traffic outside: the program's, and the papers' formula."""
    columns = tuple(f"of {tokens:,}" for tokens in external["tokens"])

    def cells(row: Mapping[str, Any], saving: str, read: str) -> tuple[str, ...]:
        return (
            f"{row['on_die']:,}{'*' if row['on_die'] == external['tokens_on_die'] else ''}",
            *(
                f"{row[saving][str(n)]:.1%} {size_text(row[read][str(n)]):>9}"
                for n in external["tokens"]
            ),
        )

    rows = [cells(row, "saving", "read_bytes") for row in external["rows"]]
    sizes = [
        size_text(row["kv_bytes"]) + ("" if row["fits"] else " (no room)")
        for row in external["rows"]
    ]
    yield (
        "Tokens on the die",
        ("tokens", "bytes", *columns),
        [(row[0], size, *row[1:]) for row, size in zip(rows, sizes, strict=True)],
        (
            "external KV reads that tokens on the die save in a generation of so many tokens, and "
            f"bytes still read, as the program fetches them: {external['block_tokens']} tokens at "
            f"a time; {external['room_on_die']:,} tokens have room"
        ),
    )
    yield (
        "Tokens on the die, if each token were fetched alone",
        ("tokens", *columns),
        [cells(row, "ideal_saving", "ideal_read_bytes") for row in external["rows"]],
        (
            "the papers' formula, L (2 n - L + 1) / (n (n + 1)) for L of n tokens, and "
            f"{external['code_bytes_per_token']:,} bytes of a token; not what this chip does"
        ),
    )


def _use(row: Mapping[str, Any], tokens: int, own: tuple[int, int]) -> str:
    use = row["use"][str(tokens)]
    text = "over" if use > 1 or tokens > row["context"] else f"{use:.1%}"
    return f"{text}*" if (row["rank"], tokens) == own else text
