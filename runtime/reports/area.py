"""Area of a chip by component, as far as its target says.

A target states its die in one of three ways, all of them with origins: units (`area.l_unit_mm2` and
its like times how many there are, and what is none of them), kinds (`area.rom_mm2`, `sram_mm2`,
`logic_mm2`), or the die alone. Banks that are deeper than the target's (policy `extra-rom`) are on
no published die: what they would add is stated apart, at the density of the target's ROM.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from intaglio.backend.target.target import Target
from intaglio.runtime.reports.figures import depends, figure

_DIE = "area.die_mm2"
_UNITS = (
    ("L-Units", "area.l_unit_mm2", ("array.matrix_units", "array.l_units")),
    ("H-Units", "area.h_unit_mm2", ("array.h_units",)),
    ("vector units", "area.vector_unit_mm2", ("array.vector_units",)),
)
"""Component, area of one, and whose product is how many there are."""
_KINDS = (
    ("ROM", "area.rom_mm2"),
    ("SRAM", "area.sram_mm2"),
    ("logic", "area.logic_mm2"),
)
_ROM_OF_UNITS, _ROM_DENSITY = "area.fused_rom_mbit_per_mm2", "area.rom_mib_per_mm2"
_TAKES_AREA = ("array", "l_unit", "h_unit", "vector", "network", "formats.activations")
"""What a chip's area could hang on, so that a die that does not follow a setting of it is said."""
_ONLY_TIMES = ("network.wire_ps_per_mm", "network.adder_ps", "network.hop_cycles")
"""How fast a chip is, not how large."""


def area(target: Target, extra_bits: int = 0) -> dict[str, Any]:
    """Area as data.

    Keys: `die_mm2` (a figure), `components` (each with `name`, `mm2`, `share` of the die, `count`
    and `each_mm2` where it is units, the name and `origin` of the `figure` that it follows from;
    together the die), `extra_rom_mm2` (what banks deeper than the target's would add, with their
    `bits` and the density that they are taken to have, or None), `not_followed` (settings that
    change the chip and that no figure of its area hangs on, so that the area is that of another).

    Args:
        target: with its settings.
        extra_bits: of ROM in banks that are deeper than the target's.
    """
    die = target.number(_DIE)
    components = list(_components(target))
    rest = die - sum(one["mm2"] for one in components)
    # A die that is the sum of its parts is stated rounded.
    if rest > die / 500:
        name = "other" if components else "the die, not divided"
        shared = "area.other_share"
        of = shared if components and shared in target.parameters else _DIE
        origin = target.parameters[of].origin
        components.append({"name": name, "mm2": rest, "figure": of, "origin": origin})
    whole = sum(one["mm2"] for one in components)
    return {
        "die_mm2": figure(target, _DIE),
        "components": [{**one, "share": one["mm2"] / whole} for one in components],
        "extra_rom_mm2": _extra(target, extra_bits) if extra_bits else None,
        "not_followed": not_followed(target),
    }


def worth(stated: Mapping[str, Any], of: Mapping[str, Any]) -> dict[str, Any]:
    """What a chip gives for its area and energy at a position.

    Keys: `position`, `tokens_per_second_per_mm2`, `tokens_per_joule` (or None) and `by`, which
    statement of the power report the energy is.

    Args:
        stated: the position in `runtime/reports/power.py`.
        of: what `area` gives.
    """
    rate, token = 1 / stated["seconds"], stated["token"]
    return {
        "position": stated["position"],
        "tokens_per_second_per_mm2": rate / of["die_mm2"]["value"],
        "tokens_per_joule": token and 1e3 / token["millijoules"],
        "by": token and token["by"],
    }


def not_followed(target: Target) -> list[str]:
    """Settings, as `key=value`, of what a die could hang on and this target's does not."""
    hanging = set(depends(target, _DIE))
    return [
        f"{name}={one.value}"
        for name, one in target.parameters.items()
        if one.origin == "option"
        and name.startswith(_TAKES_AREA)
        and name not in hanging
        and name not in _ONLY_TIMES
    ]


def _components(target: Target) -> Iterator[dict[str, Any]]:
    if _UNITS[0][1] in target.parameters and _KINDS[0][1] not in target.parameters:
        for name, each, of in _UNITS:
            if (one := figure(target, each)) is None:
                continue
            count = 1
            for factor in of:
                count *= target.integer(factor)
            yield {
                "name": name,
                "mm2": count * one["value"],
                "count": count,
                "each_mm2": one["value"],
                "figure": each,
                "origin": one["origin"],
            }
        return
    for name, key in _KINDS:
        if (one := figure(target, key)) is not None:
            yield {"name": name, "mm2": one["value"], "figure": key, "origin": one["origin"]}


def _extra(target: Target, bits: int) -> dict[str, Any] | None:
    """Banks deeper than the target's; None where the target states no density of ROM."""
    for name, size in ((_ROM_DENSITY, 8 * 2**20), (_ROM_OF_UNITS, 1e6)):
        if (density := figure(target, name)) is not None and density["value"]:
            mm2 = bits / size / density["value"]
            return {"mm2": mm2, "bits": bits, "figure": name, "origin": density["origin"]}
    if "area.rom_mm2" in target.parameters:
        capacity = target.rom_bytes * 8
        origin = target.parameters["area.rom_mm2"].origin
        mm2 = bits / capacity * target.number("area.rom_mm2")
        return {"mm2": mm2, "bits": bits, "figure": "area.rom_mm2", "origin": origin}
    return None
