"""The trade of SRAM between adapters and context: what rank leaves room for how many tokens.

The same rules place caches and adapters here and in a compile (`lowering/sram.py`). For chips that
keep the first tokens on the die and the others in external memory, the trade is between the tokens
on the die and the traffic outside.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from intaglio.backend.program import Program
from intaglio.dialects.codes import FORMATS, SLOT_BITS
from intaglio.dialects.machine import Machine
from intaglio.runtime.wording import counted

RANKS = (0, 4, 8, 16, 32, 64, 128)
"""Ranks of the table, beside the chip's own."""
CONTEXTS = 6
"""Contexts of the table, powers of two around the chip's own."""
ON_DIE = (8, 16, 32, 64, 128)
"""Tokens on the die of the table, beside the chip's own."""
SCALE_BYTES = 4
"""Of a cached key or value with a scale of its own."""


@dataclass(frozen=True)
class Demand:
    """What a model asks of the SRAM.

    Attributes:
        kv_bytes: of one token, all layers.
        sites: (rows N, columns K) of each matrix that adapters stand beside.
        fixed: (rows N, columns K, bytes of a row) of adapters that are part of the model.
        residents: adapters that the slots hold at once.
    """

    kv_bytes: int
    sites: Sequence[tuple[int, int]]
    fixed: Sequence[tuple[int, int]] = ()
    residents: int = 1


def demand_of(program: Program) -> Demand:
    """The demand of a compiled model.

    Without slots, the sites are those that the matrices of its repeated layers would make.
    """
    kv = sum(
        cache.heads
        * (
            -(-cache.width * FORMATS[cache.format].bits // 8)
            + (0 if cache.static_scale is not None or cache.format == "fp8" else SCALE_BYTES)
        )
        for cache in program.caches.values()
    )
    sites = [(site.rows, site.columns) for site in program.sites.values()]
    if not sites:
        sites = [program.parameters[name].dims[:2] for name in _layer_matrices(program)]
    fixed = [
        (p.dims[0], -(-(p.codes.size + (p.scales.size if p.scales else 0)) // p.dims[0]))
        for p in program.parameters.values()
        if p.store == "rom.adapter" and p.codes is not None
    ]
    return Demand(kv, [(n, k) for n, k in sites], fixed, program.residents)


def _layer_matrices(program: Program) -> Iterator[str]:
    """Engraved matrices that a product of a repeated block uses."""
    for block in program.blocks:
        if len(block.instances) < 2:
            continue
        for instance in block.instances:
            for one in block.instructions:
                if one.opcode == "matvec" and one.queue == "matrix":
                    yield instance[one.uses["weights"]]


def adapter_bytes(machine: Machine, demand: Demand, rank: int) -> int:
    """Bytes of A and B of all sites at a rank, with their scales, of one adapter."""
    return sum(rows * row for rows, row in _matrices(machine, demand, rank))


def _matrices(machine: Machine, demand: Demand, rank: int) -> Iterator[tuple[int, int]]:
    """(rows, bytes of a row) of each matrix of an adapter."""
    bits = SLOT_BITS[machine.adapter]
    if rank:
        for rows, columns in demand.sites:
            yield rank, -(-columns * bits // 8) + 2
            yield rows, -(-rank * bits // 8) + 2


def used_bytes(machine: Machine, demand: Demand, rank: int) -> int:
    """Bytes of the fullest H-Unit without any cache."""
    from intaglio.lowering.sram import CONSTANT, SLOTS, fill, of_rows

    matrices = [
        *((CONSTANT, 1, one) for one in demand.fixed),
        *((SLOTS, demand.residents, one) for one in _matrices(machine, demand, rank)),
    ]
    wanted = [
        of_rows(str(i), use, rows, row, machine, copies)
        for i, (use, copies, (rows, row)) in enumerate(matrices)
    ]
    return fill(wanted, machine)[0].fullest


def context_that_fits(machine: Machine, demand: Demand, rank: int) -> int:
    """The largest context beside adapters of a rank; tokens go round the H-Units in turn.

    0 when the adapters alone are too large. Where the KV cache continues in external memory, it is
    the number of tokens that could be kept on the die.
    """
    free = machine.sram_bytes - used_bytes(machine, demand, rank)
    return max(0, free // demand.kv_bytes) * machine.h_units if demand.kv_bytes else 0


def external_saving(on_die: int, tokens: int) -> float:
    """The part of external KV accesses that the first tokens on the die save (BitROM).

    The i-th of n tokens reads i cached ones, of which those among the first L are inside, so that
    ``L (2 n - L + 1) / 2`` of ``n (n + 1) / 2`` accesses are saved: 43.6 % for L = 32 of n = 128.
    """
    inside = min(on_die, tokens)
    return inside * (2 * tokens - inside + 1) / (tokens * (tokens + 1))


def external_reads(on_die: int, tokens: int) -> int:
    """Cached tokens that a generation reads from external memory, each as often as it is read."""
    outside = max(0, tokens - on_die)
    return outside * (outside + 1) // 2


def budget(program: Program) -> dict[str, Any]:
    """The trade as data, for `intaglio inspect`.

    Keys: `format`, `sites` (their number), `has_slots`, `residents`, `rank` and `context` (the
    chip's own), `sram_bytes`, `kv_bytes_per_token`, `ranks` (each with `rank`, `adapter_bytes` of
    all residents, `context`, the largest that fits, and `use`, the part of the SRAM that each of
    `contexts` takes in all);
    `external` with the tokens on the die against the traffic outside, or None.
    """
    machine, demand = program.machine, demand_of(program)
    rank = max((site.rank for site in program.sites.values()), default=0)
    capacity = program.capacity
    held = min(capacity, machine.kv_on_die or capacity)
    contexts = _contexts(held, context_that_fits(machine, demand, 0))
    rows: list[dict[str, Any]] = []
    for one in sorted({*RANKS, rank}):
        used = used_bytes(machine, demand, one)
        rows.append(
            {
                "rank": one,
                "adapter_bytes": demand.residents * adapter_bytes(machine, demand, one),
                "context": context_that_fits(machine, demand, one),
                "use": {
                    str(tokens): (used + -(-tokens // machine.h_units) * demand.kv_bytes)
                    / machine.sram_bytes
                    for tokens in contexts
                },
            }
        )
    return {
        "format": machine.adapter,
        "sites": len(demand.sites),
        "has_slots": bool(program.sites),
        "residents": demand.residents,
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
    machine = program.machine
    room = context_that_fits(machine, demand, rank)
    tokens = [n for n in (64, 128, 256, 512, 1024, 2048) if n < program.capacity]
    tokens.append(program.capacity)
    return {
        "tokens_on_die": machine.kv_on_die,
        "room_on_die": room,
        "tokens": tokens,
        "rows": [
            {
                "on_die": on_die,
                "kv_bytes": on_die * demand.kv_bytes,
                "fits": on_die <= room,
                "saving": {str(n): external_saving(on_die, n) for n in tokens},
                "read_bytes": {str(n): external_reads(on_die, n) * demand.kv_bytes for n in tokens},
            }
            for on_die in sorted({*ON_DIE, machine.kv_on_die})
        ],
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
        of += " that the layers' matrices would make"
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
    yield (
        "Adapter rank against context",
        ("rank", "adapters", "longest", *(f"{tokens:,}" for tokens in contexts)),
        rows,
        (
            f"part of the SRAM used; {of} in {content['format']}{held}, "
            f"{content['kv_bytes_per_token']:,} bytes of KV a token; * is this chip"
        ),
    )
    external = content["external"]
    if external is None:
        return
    yield (
        "Tokens on the die",
        ("tokens", "bytes", *(f"of {tokens:,}" for tokens in external["tokens"])),
        [
            (
                f"{row['on_die']}{'*' if row['on_die'] == external['tokens_on_die'] else ''}",
                size_text(row["kv_bytes"]) + ("" if row["fits"] else " (no room)"),
                *(
                    f"{row['saving'][str(n)]:.1%} {size_text(row['read_bytes'][str(n)]):>9}"
                    for n in external["tokens"]
                ),
            )
            for row in external["rows"]
        ],
        (
            "external KV reads saved in a generation of so many tokens, and bytes still read; "
            f"{external['room_on_die']:,} tokens have room"
        ),
    )


def _use(row: Mapping[str, Any], tokens: int, own: tuple[int, int]) -> str:
    use = row["use"][str(tokens)]
    text = "over" if use > 1 else f"{use:.1%}"
    return f"{text}*" if (row["rank"], tokens) == own else text
