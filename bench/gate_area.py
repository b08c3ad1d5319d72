"""Area of a network of gates in cells of a library, counted and not synthesised."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache

from intaglio.backend.images.logic_rom import Kind, Network


def gate_equivalents(network: Network, areas: Mapping[str, float]) -> float:
    """A network's area if each gate is a tree of NANDs and NORs, nothing merged across gates.

    An upper bound: synthesis does better. In areas of NAND2.

    Args:
        network: the gates.
        areas: of the cells INV, NAND2, NOR2 and wider ones, as `cell_areas` gives them.

    Raises:
        KeyError: one of these three is missing.
    """
    inverter, unit = areas["INV"], areas["NAND2"]
    wide = {kind: _widths(areas, kind) for kind in ("NAND", "NOR")}

    @cache
    def cost(kind: Kind, inputs: int, inverted: bool) -> float:
        """Of an AND or OR, or its inverse, with this many inputs."""
        if inputs == 1:
            return inverter if inverted else 0
        # The last cell inverts: NAND(AND, ...), or NOR(NAND, ...) for AND itself.
        last = wide["NAND" if (kind == "and") == inverted else "NOR"]
        return min(
            area
            + sum(
                cost(kind, inputs // width + (part < inputs % width), not inverted)
                for part in range(width)
            )
            for width, area in last.items()
            if width <= inputs
        )

    area = network.inverted * inverter
    return (area + sum(cost(g.kind, len(g.inputs), False) for g in network.gates)) / unit


def _widths(areas: Mapping[str, float], kind: str) -> dict[int, float]:
    """Areas of the cells of a kind by their inputs; the narrowest must be there."""
    found = {2: areas[f"{kind}2"]}
    return found | {n: areas[f"{kind}{n}"] for n in range(3, 9) if f"{kind}{n}" in areas}


def cell_areas(liberty: str) -> dict[str, float]:
    """The area of each cell of a Liberty file, given its text."""
    cells = re.finditer(r"\bcell\s*\(\s*\"?(\w+)\"?\s*\)\s*\{\s*area\s*:\s*([\d.]+)", liberty)
    return {match[1]: float(match[2]) for match in cells}
