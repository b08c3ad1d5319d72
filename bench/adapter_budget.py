"""SRAM between adapters and context on full-size targets, beside the papers' figures.

    python bench/adapter_budget.py            tables for ROMA, TOM and BitROM
    python bench/adapter_budget.py --json

No model is compiled: the demand of a model follows from its shape, and the rules of placement are
those of the compiler. "linear" is the papers' own arithmetic as far as it is known, without scales
and without rounding to whole H-Units: (SRAM - adapters) / bytes of a token.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from intaglio.backend.target import load_target
from intaglio.dialects.machine import Machine
from intaglio.runtime.adapter_budget import (
    Demand,
    adapter_bytes,
    context_that_fits,
    external_saving,
)

MIB = 2**20


@dataclass(frozen=True)
class Model:
    """The sizes of a decoder that decide its demand."""

    name: str
    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head: int

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """(rows N, columns K) of the seven matrices of a layer."""
        query, kv = self.heads * self.head, self.kv_heads * self.head
        return {
            "q_proj": (query, self.hidden),
            "k_proj": (kv, self.hidden),
            "v_proj": (kv, self.hidden),
            "o_proj": (self.hidden, query),
            "gate_proj": (self.ffn, self.hidden),
            "up_proj": (self.ffn, self.hidden),
            "down_proj": (self.hidden, self.ffn),
        }

    def demand(self, machine: Machine, scale_bytes: int) -> Demand:
        """What the model asks of a chip's SRAM, with adapters at the target's sites."""
        bits = {"int4": 4, "int8": 8, "fp8": 8, "int16": 16}[machine.kv]
        vector = self.head * bits // 8 + scale_bytes
        roles = machine.adapter_sites or tuple(self.linears)
        sites = [self.linears[role] for role in roles] * self.layers
        return Demand(2 * self.layers * self.kv_heads * vector, sites)

    def parameters(self, roles: Sequence[str], rank: int) -> int:
        """Numbers in A and B of an adapter at these roles of every layer."""
        return self.layers * sum(rank * sum(self.linears[role]) for role in roles)


LLAMA_3B = Model("Llama-3.2-3B", 28, 3072, 8192, 24, 8, 128)
BITNET_2B = Model("BitNet-2B", 30, 2560, 6912, 20, 5, 128)
FALCON3_1B = Model("Falcon3-1B", 18, 2048, 8192, 8, 4, 256)

ROMA_PAPER = ((64, 16, 736), (128, 16, 1600), (256, 16, 3808), (64, 64, 0))
"""MiB, rank, tokens (facts/papers.md 1.4). The two in the middle fit no linear model (8.1)."""
TOM_PAPER = ((37.5, 0, 1024), (37.5, 16, None))
"""MiB, rank, tokens (facts/papers.md 2.1 and 8.2)."""
BITROM_PAPER = ((128, 32, 0.436),)
"""Tokens, of them on the die, part of the external accesses saved (facts/papers.md 3.4, 8.3)."""


def series(
    target: str, model: Model, points: Sequence[tuple[float, int, int | None]], *settings: str
) -> list[dict[str, Any]]:
    """Contexts that fit for each SRAM size and rank, on a target with another SRAM."""
    machine = load_target(target).with_options(list(settings)).machine()
    demand = model.demand(machine, 0)
    found: list[dict[str, Any]] = []
    for size, rank, published in points:
        total = int(size * MIB)
        chip = replace(machine, sram_bytes=total // machine.h_units)
        bits = {"fp8": 8, "int8": 8, "int6": 6, "ternary": 2}[machine.adapter]
        roles = machine.adapter_sites or tuple(model.linears)
        plain = model.parameters(roles, rank) * bits / 8
        found.append(
            {
                "target": target,
                "model": model.name,
                "sram_mib": size,
                "rank": rank,
                "published": published,
                "linear": max(0, int((total - plain) // demand.kv_bytes)),
                "adapters_mib": adapter_bytes(chip, demand, rank) / MIB,
                "fits": context_that_fits(chip, demand, rank),
            }
        )
    return found


def external() -> list[dict[str, Any]]:
    """BitROM: external accesses saved by the first tokens on the die."""
    return [
        {
            "target": "bitrom",
            "tokens": tokens,
            "on_die": on_die,
            "published": published,
            "saving": external_saving(on_die, tokens),
        }
        for tokens, on_die, published in BITROM_PAPER
    ]


def adapter_shares() -> dict[str, Any]:
    """BitROM: what rank 16 on V, O and Down adds to the model (paper: 0.22 to 0.30 %)."""
    roles = ("v_proj", "o_proj", "down_proj")
    added = FALCON3_1B.parameters(roles, 16)
    # Falcon3-1B has 1.67e9 parameters with embedding and head (facts/papers.md 8.3).
    return {"model": FALCON3_1B.name, "added": added}


def report() -> dict[str, Any]:
    """All series."""
    return {
        "schema": 1,
        "context": [
            *series("roma", LLAMA_3B, ROMA_PAPER, "kv=fp8"),
            *series("tom", BITNET_2B, TOM_PAPER, "kv=fp8"),
        ],
        "external": external(),
        "adapter_parameters": adapter_shares(),
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
        published = "-" if row["published"] is None else f"{row['published']:,}"
        write(
            f"{row['target']:7} {row['model']:13} {row['sram_mib']:8g} {row['rank']:5} "
            f"{row['adapters_mib']:13.2f} {published:>7} {row['linear']:7,} {row['fits']:7,}\n"
        )
    write("\ntokens of context that fit; paper: as published; here: with scales, by H-Unit\n\n")
    for row in content["external"]:
        write(
            f"bitrom: {row['on_die']} of {row['tokens']} tokens on the die save "
            f"{row['saving']:.2%} of the external accesses (paper: {row['published']:.1%})\n"
        )
    added = content["adapter_parameters"]
    write(
        f"bitrom: rank 16 on V, O and Down of {added['model']} adds {added['added']:,} parameters "
        "(paper's share of 0.30 % is 5.01 million)\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
