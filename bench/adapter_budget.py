"""Adapters against context on full-size chips: what fits, beside what is published.

    python bench/adapter_budget.py            tables for ROMA and TOM
    python bench/adapter_budget.py --json

No model is compiled: the demand of a model follows from its shape, and the rules of placement are
those of the compiler. Published figures come from the target files. "linear" is the papers' own
arithmetic as far as it is known, without scales and without rounding to whole H-Units:
(SRAM - adapters) / bytes of a token. What BitROM's tokens on the die save is in docs/papers.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from decoder_model import BITNET_2B, LLAMA_3_2_3B, Shape
from papers_work import published

from intaglio.backend.target.target import Target, load_target
from intaglio.dialects.codes import SLOT_BITS
from intaglio.dialects.formats import FORMATS
from intaglio.runtime.adapters.budget import Demand, adapter_bytes, context_that_fits

MIB = 2**20
SETTINGS = ("kv=fp8",)
"""The papers' format; it has no scales."""
SIZES_AND_RANKS = ((64, 16), (128, 16), (256, 16), (64, 64))
"""SRAM in MiB and rank for which ROMA's context is published."""
RANK = 16


@dataclass(frozen=True)
class Point:
    """An SRAM and an adapter.

    Attributes:
        size: of the SRAM in MiB.
        rank: of the adapter; 0 is none.
        published: tokens of context, where that is published.
    """

    size: float
    rank: int
    published: float | None


def sites_of(shape: Shape) -> dict[str, tuple[int, int]]:
    """(rows N, columns K) of the seven matrices of a layer."""
    query, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    return {
        "q_proj": (query, shape.hidden),
        "k_proj": (kv, shape.hidden),
        "v_proj": (kv, shape.hidden),
        "o_proj": (shape.hidden, query),
        "gate_proj": (shape.ffn, shape.hidden),
        "up_proj": (shape.ffn, shape.hidden),
        "down_proj": (shape.hidden, shape.ffn),
    }


def series(
    target: Target, model: str, shape: Shape, points: Sequence[Point]
) -> list[dict[str, Any]]:
    """Contexts that fit, on a target with another SRAM."""
    machine = target.machine()
    of = sites_of(shape)
    sites = [of[role] for role in machine.adapter_sites or of] * shape.layers
    width = shape.head_dim * FORMATS[machine.kv].bits // 8
    demand = Demand(2 * shape.layers * shape.kv_heads * width, sites)
    found: list[dict[str, Any]] = []
    for point in points:
        total = int(point.size * MIB)
        chip = replace(machine, sram_bytes=total // machine.h_units)
        numbers = point.rank * sum(rows + columns for rows, columns in sites)
        plain = numbers * SLOT_BITS[machine.adapter] / 8
        found.append(
            {
                "target": target.name,
                "model": model,
                "sram_mib": point.size,
                "rank": point.rank,
                "published": None if point.published is None else int(point.published),
                "linear": max(0, int((total - plain) // demand.kv_bytes)),
                "adapters_mib": adapter_bytes(chip, demand, point.rank) / MIB,
                "fits": context_that_fits(chip, demand, point.rank),
            }
        )
    return found


def report() -> dict[str, Any]:
    """All series."""
    roma, tom = (load_target(name).with_options(SETTINGS) for name in ("roma", "tom"))
    of_roma, of_tom = published(roma), published(tom)
    by_size = [
        Point(size, rank, of_roma(f"context_{size}_mb_rank_{rank}_tokens"))
        for size, rank in SIZES_AND_RANKS
    ]
    sram = of_tom("adapter_kv_sram_mb")
    by_rank = [Point(sram, 0, of_tom("default_context_tokens")), Point(sram, RANK, None)]
    return {
        "schema": 2,
        "context": [
            *series(roma, "Llama-3.2-3B", LLAMA_3_2_3B, by_size),
            *series(tom, "BitNet-2B", BITNET_2B, by_rank),
        ],
    }


def main() -> int:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true")
    content = report()
    if parser.parse_args().json:
        sys.stdout.write(json.dumps(content, indent=1) + "\n")
        return 0
    write = sys.stdout.write
    write(
        f"{'target':7} {'model':13} {'SRAM MiB':>8} {'rank':>5} {'adapters MiB':>13} "
        f"{'paper':>7} {'linear':>7} {'here':>7}\n"
    )
    for row in content["context"]:
        paper = "-" if row["published"] is None else f"{row['published']:,}"
        write(
            f"{row['target']:7} {row['model']:13} {row['sram_mib']:8g} {row['rank']:5} "
            f"{row['adapters_mib']:13.2f} {paper:>7} {row['linear']:7,} {row['fits']:7,}\n"
        )
    write("\ntokens of context that fit; paper: as published; here: with scales, by H-Unit\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
