"""A random sample of the banks of a chip whose ROM is logic: what is too much to do with all."""

from __future__ import annotations

import random

from intaglio.backend.hw.chip.layout import layout_of
from intaglio.backend.hw.units.matrix.plan import MatrixConfig
from intaglio.backend.hw.units.matrix.rom_bank import bank_columns
from intaglio.backend.program.program import Program

Place = tuple[int, int, int]
"""Tile, L-Unit, bank."""


def all_banks(config: MatrixConfig, tile: int) -> list[int]:
    """The banks of an L-Unit of a tile, where weights lie."""
    columns = bank_columns(config)
    rows = [row for row, place in enumerate(config.banks[tile]) if place is not None]
    return [row * columns + column for row in rows for column in range(columns)]


def banks_by_kind(program: Program) -> dict[str, list[Place]]:
    """All banks: those of the layers, and those of embedding and head."""
    config, machine = layout_of(program).matrix, program.machine
    columns = bank_columns(config)
    kinds: dict[str, list[Place]] = {"layers": [], "embedding and head": []}
    for tile in range(machine.tiles):
        for bank in all_banks(config, tile):
            place = config.banks[tile][bank // columns]
            # What is switched belongs to a layer.
            kind = "layers" if place and place.domain is not None else "embedding and head"
            kinds[kind] += [(tile, unit, bank) for unit in range(machine.l_units)]
    return {kind: places for kind, places in kinds.items() if places}


def drawn(kinds: dict[str, list[Place]], count: int, seed: int) -> dict[str, list[Place]]:
    """So many banks of each kind, sorted."""
    draw = random.Random(seed)
    return {kind: sorted(draw.sample(places, count)) for kind, places in kinds.items()}
