"""What `intaglio targets` shows: a list of targets, or one with every figure and its origin."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping

from intaglio.backend.target.formula import Value, names
from intaglio.backend.target.schema import KEYS, SECTIONS, WIRES
from intaglio.backend.target.target import Target
from intaglio.backend.target.values import Parameter
from intaglio.dialects.json_file import JSON

WIDTH = 100
_NAME = 26
_VALUE = 24


def list_text(targets: Iterable[Target]) -> str:
    """A table with one line for each target, at most 100 columns, ending in a line break."""
    rows = [("NAME", "CLOCK", "L-UNITS", "ROM", "SRAM", "DESCRIPTION")]
    rows += [
        (
            target.name,
            f"{target.integer('clock.frequency_hz') / 1e6:g} MHz",
            f"{target.integer('array.matrix_units')} x {target.integer('array.l_units')}",
            _bytes(target.rom_bytes, 1000),
            _bytes(target.sram_bytes, 1024),
            target.description,
        )
        for target in targets
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    lines: list[str] = []
    for row in rows:
        left = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False))
        room = max(WIDTH - len(left) - 2, 16)
        lines.append(f"{left}  {textwrap.shorten(row[5], room, placeholder='...')}")
    return "\n".join(lines) + "\n"


def list_json(targets: Iterable[Target]) -> dict[str, JSON]:
    """The list as JSON: `schema` and `targets`, each with name, description and totals."""
    return {
        "schema": 1,
        "targets": [
            {"name": target.name, "description": target.description, "totals": _totals(target)}
            for target in targets
        ],
    }


def target_text(target: Target) -> str:
    """Every figure of a target with unit, origin, source, formula, range and reason."""
    peak = target.peak_macs_per_second / 1e12
    lines = [f"{target.name}: {target.description}"]
    if target.options:
        lines.append(f"options: {' '.join(target.options)}")
    tiles, l_units = target.integer("array.matrix_units"), target.integer("array.l_units")
    lines += [
        "",
        f"  L-Units  {target.total_l_units:,} ({tiles:,} x {l_units}), peak {peak:.3g} TMAC/s",
        *_rom_text(target),
        f"  SRAM     {_bytes(target.adapter_kv_sram_bytes, 1024)} for adapters and KV cache",
        f"           {_bytes(target.vector_sram_bytes, 1024)} for intermediate values",
        *_external_text(target),
        *_power_text(target),
    ]
    for section, heading in SECTIONS.items():
        names = [name for name in target.parameters if name.startswith(f"{section}.")]
        if names:
            lines += ["", f"[{section}]  {heading}"]
        for name in names:
            lines += _entry_text(name, target.parameters[name], target.sources)
            if name in target.wire_ends:
                lines += _wrap(_ends_text(target, name), "      ends:    ", " " * 15)
    if target.sources:
        lines += ["", "Sources"]
        for key, text in target.sources.items():
            lines += _wrap(text, f"  {key.ljust(4)} ", " " * 7)
    counts = _origins(target)
    lines += ["", "Origins: " + ", ".join(f"{count} {origin}" for origin, count in counts.items())]
    return "\n".join(lines) + "\n"


def _rom_text(target: Target) -> list[str]:
    """What the ROM holds and what it is made of."""
    words, bits = (target.integer(f"l_unit.bank_{key}") for key in ("words", "bits"))
    made = "logic" if target.text("l_unit.rom") == "logic" else "arrays"
    size = _bytes(target.rom_bytes, 1000)
    if target.text("l_unit.cell") == "ternary":
        size += f" ({target.rom_bytes * 4 / 1e6:,.6g} million trits)"
    return [
        f"  ROM      {size}",
        f"           {made}: {target.banks:,} banks of {words:,} words of {bits} bit",
    ]


def _external_text(target: Target) -> list[str]:
    """Where the keys and values of later tokens lie."""
    if "external.kv_on_die_tokens" not in target.parameters:
        return []
    tokens = target.integer("external.kv_on_die_tokens")
    rate = target.integer("external.bytes_per_cycle") * target.integer("clock.frequency_hz") / 1e9
    lines = [f"  KV       the first {tokens} tokens on the die, the others behind {rate:.3g} GB/s"]
    if "external.retention_us" in target.parameters:
        retention = target.number("external.retention_us") / 1000
        lines.append(f"           kept for {retention:.3g} ms, the longest time between tokens")
    return lines


def _power_text(target: Target) -> list[str]:
    """The two ends of power gating."""
    names = [f"power.{key}" for key in ("rest_w", "rom_on_w", "gated_on_share")]
    if any(name not in target.parameters for name in names):
        return []
    rest, rom, share = map(target.number, names)
    return [
        f"  Power    {rest + rom:.4g} W with all ROM banks on",
        f"           {rest + rom * share:.4g} W with {share:.3g} of them on",
    ]


def target_json(target: Target) -> dict[str, JSON]:
    """A target as JSON, the same for the same target: parameters by full name, with meaning."""
    return {
        "schema": target.schema,
        "name": target.name,
        "description": target.description,
        "options": list(target.options),
        "totals": _totals(target),
        "origins": _origins(target),
        "sources": dict(target.sources),
        "parameters": _parameters(target),
    }


def _parameters(target: Target) -> dict[str, dict[str, JSON]]:
    return {
        name: {**parameter.to_dict(), "meaning": KEYS[name].meaning}
        for name, parameter in target.parameters.items()
    }


def shown_json(target: Target) -> dict[str, JSON]:
    """`target_json` as it is shown: sources by what is public, `ends` of latencies of distances."""
    parameters = _parameters(target)
    for name, parameter in target.parameters.items():
        parameters[name]["source"] = source_keys(parameter.source)
    for name, ends in target.wire_ends.items():
        parameters[name]["ends"] = list(ends)
    return {**target_json(target), "parameters": parameters}


def _totals(target: Target) -> dict[str, int]:
    return {
        "l_units": target.total_l_units,
        "rom_bytes": target.rom_bytes,
        "banks": target.banks,
        "sram_bytes": target.sram_bytes,
        "adapter_kv_sram_bytes": target.adapter_kv_sram_bytes,
        "vector_sram_bytes": target.vector_sram_bytes,
        "peak_macs_per_second": target.peak_macs_per_second,
    }


SHEET = "facts/papers.md"
"""What the project collected of each chip; not shipped, so that only what it rests on is shown."""


def _source(text: str | None) -> tuple[str, list[str]]:
    """The place that an entry's source names, unless it is one of the sheet, and its keys."""
    place, _, keys = (text or "").partition(";")
    shown = "" if place.strip().startswith(SHEET) else place.strip()
    return shown, [key.strip() for key in keys.split(",") if key.strip()]


def source_keys(text: str | None) -> str | None:
    """An entry's source as JSON has it: the titles of the keys stand in `sources`."""
    place, keys = _source(text)
    return "; ".join(part for part in (place, ", ".join(keys)) if part) or None


def _source_text(text: str | None, titles: Mapping[str, str]) -> str:
    """An entry's source with the titles of its keys."""
    place, keys = _source(text)
    named = [f"{key}, {titles[key]}" if key in titles else key for key in keys]
    return "; ".join(part for part in (place, *named) if part)


def _origins(target: Target) -> dict[str, int]:
    counts: dict[str, int] = {}
    for parameter in target.parameters.values():
        counts[parameter.origin] = counts.get(parameter.origin, 0) + 1
    return dict(sorted(counts.items()))


def _entry_text(name: str, parameter: Parameter, titles: Mapping[str, str]) -> list[str]:
    key = name.partition(".")[2]
    value = f"{_value_text(parameter.value)} {parameter.unit}".rstrip()
    lines = [f"  {key.ljust(_NAME)} {value.ljust(_VALUE)} {parameter.origin}"]
    if parameter.range is not None:
        numeric = not isinstance(parameter.range[0], str)
        limits = (" .. " if numeric else " | ").join(map(_value_text, parameter.range))
        column = _NAME + _VALUE + len("    assumed  ")
        limits = f"{'range' if numeric else 'of'} {limits}"
        if column + len(limits) <= WIDTH:
            lines[0] = lines[0].ljust(column) + limits
        else:
            lines += _wrap(limits, "      ", "      ")
    lines += _wrap(KEYS[name].meaning, "      ", "      ")
    for label, text in (
        ("formula", parameter.formula),
        ("reason", parameter.reason),
        ("source", _source_text(parameter.source, titles)),
    ):
        if text:
            lines += _wrap(text, f"      {label + ':':<9}", " " * 15)
    return lines


def _ends_text(target: Target, name: str) -> str:
    """A figure at both ends of what wires and adders are assumed to take."""
    low, high = map(_value_text, target.wire_ends[name])
    formula = target.parameters[name].formula or ""
    moved = " and ".join(key for key in WIRES if key in names(formula))
    return f"{low} .. {high}, {moved} at the ends of the range{'s' * (' and ' in moved)}"


def _wrap(text: str, first: str, rest: str) -> list[str]:
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=first,
        subsequent_indent=rest,
        break_on_hyphens=False,
    )


def _value_text(value: Value) -> str:
    if isinstance(value, tuple):
        return ", ".join(value)
    if isinstance(value, float):
        return f"{value:.6g}"
    return f"{value:,}" if isinstance(value, int) and abs(value) >= 10_000 else str(value)


def _bytes(count: int, base: int) -> str:
    infix = "i" if base == 1024 else ""
    for power, letter in ((3, "G"), (2, "M"), (1, "k" if base == 1000 else "K")):
        if count >= base**power and not (letter == "G" and base == 1024):
            return f"{count / base**power:.4g} {letter}{infix}B"
    return f"{count} B"
