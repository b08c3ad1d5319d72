"""What `inspect_json` gives as tables of text: the same for a terminal and for a page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from textwrap import wrap
from typing import Any

from intaglio.backend.hw.units.adapter.layout import SWITCH_CYCLES
from intaglio.runtime.adapters.budget import Table, tables
from intaglio.runtime.reports.bottleneck import bottleneck_text
from intaglio.runtime.reports.model_shape import shape_text
from intaglio.runtime.reports.rom_use import USES
from intaglio.runtime.reports.wording import counted

LINE = 88
"""Columns of a sentence in a summary."""


def all_tables(content: Mapping[str, Any]) -> Iterator[Table]:
    """Every table, in the order of a report.

    Args:
        content: what `inspect_json` gives.
    """
    yield _rom(content["rom"])
    if content["zeros"]:
        yield _zeros(content["zeros"])
    yield _memory(content)
    yield from tables(content["budget"], size_text)
    yield _cycles(content)
    if any(one["external"] for one in content["positions"]):
        yield _external(content["positions"])
    yield _blocks(content)
    yield _power(content["power"])
    yield _area(content)
    if content["slowest"]:
        yield _slowest(content["slowest"])


def headline(content: Mapping[str, Any]) -> tuple[str, str, str]:
    """What was compiled for what; the model's shape; formats and context.

    Every exporter writes `model.onnx`, so the output folder's name stands first.
    """
    settings = "".join(f" --set {setting}" for setting in content["settings"])
    formats = content["formats"]
    return (
        (
            f"{content['folder']}: {PurePosixPath(content['model']).name} for "
            f"{content['target']}{settings}"
        ),
        shape_text(content["shape"]),
        (
            f"activations {_activations(formats)}, KV {', '.join(formats['kv'])}, probabilities "
            f"{formats['probabilities']}; context {counted(content['context'], 'token')}"
        ),
    )


def fraction_line(content: Mapping[str, Any]) -> str:
    """Which fraction bits fixed-point values have."""
    bits = content["formats"]["fraction_bits"]
    if len(bits["all"]) == 1:
        return f"numbers 32 bits, {bits['all'][0]} of them fraction"
    others = [str(one) for one in bits["all"] if one != bits["embedding"]]
    return (
        f"numbers 32 bits, {bits['embedding']} of them fraction in the residual stream, "
        f"{' or '.join(others)} elsewhere"
    )


def summary_lines(content: Mapping[str, Any], *, limits: bool = True) -> list[str]:
    """The most important figures of `inspect_json`, one a line.

    Args:
        content: what `inspect_json` gives.
        limits: whether what limits the token is among them.
    """
    rom, sram, vector = content["rom"], content["sram"], content["vector_memory"]
    bound, clock = content["lower_bound"], content["clock_hz"]
    rom_use = _of(rom["used_bits"] / 8, rom["capacity_bits"] / 8)
    sram_use = _of(sram["used_bytes"], sram["capacity_bytes"])
    cache, cache_size = _cache(content)
    vector_use = _of(vector["used_bytes"], vector["capacity_bytes"])
    if vector["kv_scale_bytes"]:
        vector_use += f", scales of the KV cache {size_text(vector['kv_scale_bytes'])}"
    banks = rom["banks"]
    tiles_used = f"{banks['tiles_used']} of {counted(banks['tiles'], 'tile')}"
    lines = [
        f"ROM     {rom_use}, fullest bank {banks['fill_max']:.1%}, {tiles_used}",
        f"SRAM    {sram_use}, {cache} {size_text(cache_size)}{_states(sram)}",
        f"vectors {vector_use}",
        fraction_line(content),
    ]
    if rom["extra_bits"]:
        lines.insert(
            1, f"        and {size_text(rom['extra_bits'] / 8)} in banks deeper than the target's"
        )
    lines += [
        f"speed   {one['tokens_per_second']:,.0f} tokens/s at position {one['position']} "
        f"({one['cycles']:,} cycles at {clock / 1e6:g} MHz)"
        for one in content["positions"]
    ]
    if limits:
        lines += limit_lines(content["positions"])
    lines += _external_lines(content["positions"])
    if content["adapter"] is not None:
        lines += _adapter_lines(content, clock)
    if bound["cycles"]:
        lines.append(
            f"bound   {bound['tokens_per_second']:,.0f} tokens/s ({bound['cycles']:,.1f} cycles) "
            "if every lane were always busy"
        )
    lines += _latency_bound_lines(content["positions"])
    lines += _power_lines(content["power"])
    lines += _area_lines(content)
    lines += [
        f"assumed {one['name']}={one['value']} is beyond {one['range'][0]:g} to "
        f"{one['range'][1]:g}, what the target assumes possible"
        for one in content["outside_range"]
    ]
    return lines


def limit_sentences(positions: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """What limits the token, at the first and at the last position."""
    ends = (positions[0], positions[-1]) if len(positions) > 1 else positions
    for one in ends:
        yield f"At position {one['position']} {bottleneck_text(one['limits'])}"


def limit_lines(positions: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The same, in lines of a summary."""
    for sentence in limit_sentences(positions):
        for number, line in enumerate(wrap(sentence, LINE)):
            yield f"{'limits' if not number else '':<8}{line}"


def _latency_bound_lines(positions: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The least cycles of a token in any order, and how near its schedule comes."""
    for one in positions:
        if (bound := one["latency_bound"]) is not None:
            yield (
                f"bound   {bound['tokens_per_second']:,.0f} tokens/s at position {one['position']} "
                f"({bound['cycles']:,} cycles) in the best order of work, {bound['reached']:.1%} "
                "reached"
            )


def _cache(content: Mapping[str, Any]) -> tuple[str, int]:
    """What of the caches is in the H-Units, with its bytes."""
    sram, tokens = content["sram"], counted(content["context"], "token")
    if not sram["kv_bytes"] and not sram["kv_bytes_per_token"]:
        return "no KV cache", 0
    if sram["kv_tokens"] == content["context"]:
        return f"KV cache of {tokens}", sram["kv_bytes"]
    return f"KV cache of the first {sram['kv_tokens']:,} of {tokens}", sram["kv_bytes"]


def _states(sram: Mapping[str, Any]) -> str:
    """What states of linear attention take besides, where there are any."""
    size = sram["state_bytes"]
    return f", states {size_text(size)}" if size else ""


def _external_lines(positions: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """What tokens read and write outside, where any does."""
    found = [one["external"] for one in positions]
    if not any(one and (one["read_bytes"] or one["written_bytes"]) for one in found):
        return
    for one, bytes_ in zip(positions, found, strict=True):
        yield (
            f"outside {size_text(bytes_['read_bytes'])} of keys and values read, "
            f"{size_text(bytes_['written_bytes'])} written at position {one['position']}"
        )


def _adapter_lines(content: Mapping[str, Any], clock: int) -> Iterator[str]:
    adapter = content["adapter"]
    for one, without in zip(adapter["positions"], content["positions"], strict=True):
        yield (
            f"adapter {one['tokens_per_second']:,.0f} tokens/s at position {one['position']} with "
            f"rank {adapter['rank']} at {counted(adapter['sites'], 'site')},"
        )
        empty = without["critical_path"]["adapter_slot_cycles"]
        yield (
            f"        {counted(one['added_cycles'], 'cycle')} a token more than with empty slots, "
            f"whose products are {counted(empty, 'cycle')} of the critical path"
        )
    microseconds = adapter["load_cycles"] / clock * 1e6
    loaded = counted(adapter["load_cycles"], "cycle")
    yield f"        such an adapter is loaded in {loaded} ({microseconds:,.1f} us)"
    if adapter["residents"] > 1:
        yield (
            f"        {adapter['residents']} are resident; to switch among them takes "
            f"{counted(SWITCH_CYCLES, 'cycle')}"
        )


def _power_lines(power: Mapping[str, Any]) -> Iterator[str]:
    """What the target lets say of each position."""
    for one in power["positions"]:
        parts: list[str] = []
        more = 0.0
        if one["rom"] is not None:
            ungated, gated, extra = (one["rom"][key] for key in ("ungated", "gated", "extra"))
            more = extra.get("gated_watts", extra["ungated_watts"])
            parts.append(
                f"{ungated['watts']:.4g} W, {ungated['millijoules']:.4g} mJ a token"
                if gated is None
                else f"{gated['watts']:.4g} W and {gated['millijoules']:.4g} mJ a token, not gated "
                f"{ungated['watts']:.4g} W and {ungated['millijoules']:.4g} mJ; gating costs "
                f"{counted(gated['added_cycles'], 'cycle')} a token"
            )
        if one["l_units"] is not None:
            parts.append(
                f"L-Units {one['l_units']['watts']:.4g} W, "
                f"{one['l_units']['millijoules']:.4g} mJ a token"
            )
        if (spent := one["activity"]) is not None:
            parts.append(
                f"all activity {spent['watts']:.4g} W, {spent['millijoules']:.4g} mJ a token"
            )
        if one["published"] is not None:
            parts.append(
                f"{one['published']['millijoules']:.4g} mJ a token at the published "
                f"{one['published']['watts']:g} W"
            )
        if parts:
            yield f"power   {'; '.join(parts)} at position {one['position']}"
        if more:
            yield f"        and {more:.4g} W for banks deeper than the target's"


# --- memory -------------------------------------------------------------------------------------


def _rom(rom: Mapping[str, Any]) -> Table:
    rows = [
        (
            name,
            str(entry["tensors"]),
            f"{entry['weights']:,}",
            *(size_text(entry[f"{use}_bits"] / 8) for use in USES),
            size_text(_bits_of(entry) / 8),
        )
        for name, entry in rom["by_class"].items()
    ]
    experts = [
        f"; {name}: {entry['experts']} experts of {size_text(_bits_of(entry) / _count(entry) / 8)}"
        for name, entry in rom["by_class"].items()
        if "experts" in entry
    ]
    if experts:
        share = rom["read_bits_a_token"] / (rom["used_bits"] + rom["extra_bits"])
        read = size_text(rom["read_bits_a_token"] / 8)
        experts.insert(0, f"; a token's products read {read}, {share:.1%} of what is engraved")
    rows.append(
        (
            "all",
            str(sum(entry["tensors"] for entry in rom["by_class"].values())),
            f"{sum(entry['weights'] for entry in rom['by_class'].values()):,}",
            *(size_text(rom[f"{use}_bits"] / 8) for use in USES),
            size_text((rom["used_bits"] + rom["extra_bits"]) / 8),
        )
    )
    banks = rom["banks"]
    return (
        "ROM of the matrix units",
        ("class", "tensors", "weights", *USES, "total"),
        rows,
        (
            f"{counted(banks['count'], 'bank')} of {size_text(banks['bits'] / 8)}: fill "
            f"{banks['fill_min']:.1%} to {banks['fill_max']:.1%}, mean {banks['fill_mean']:.1%}"
            f"{''.join(experts)}"
        ),
    )


def _bits_of(entry: Mapping[str, int]) -> int:
    return sum(entry[f"{use}_bits"] for use in USES)


def _count(entry: Mapping[str, int]) -> int:
    """Matrices of a class of families: of all layers, of all experts."""
    return entry["tensors"] * entry["experts"]


def _zeros(zeros: Mapping[str, Mapping[str, int]]) -> Table:
    keys = ("weights", "zero", "bits", "zero_bits")
    whole = {key: sum(entry[key] for entry in zeros.values()) for key in keys}
    has_cells = whole["bits"] > 0
    rows = [
        (
            name,
            f"{entry['weights']:,}",
            _share(entry["zero"], entry["weights"]),
            *[_share(entry["zero_bits"], entry["bits"])] * has_cells,
        )
        for name, entry in (*zeros.items(), ("all", whole))
    ]
    bits = ("of their stored bits",) if has_cells else ()
    note = "a bit that is 0 takes no gate where ROM is logic" if has_cells else ""
    return "Zeros in ROM", ("class", "weights", "of them 0", *bits), rows, note


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else ""


def _memory(content: Mapping[str, Any]) -> Table:
    sram, vector, constants = content["sram"], content["vector_memory"], content["constants"]
    cache, cache_size = _cache(content)
    rows = [
        (cache, size_text(cache_size), size_text(sram["capacity_bytes"])),
        ("states of linear attention", size_text(sram["state_bytes"]), ""),
        ("adapters of the graph", size_text(sram["graph_adapter_bytes"]), ""),
        ("adapter slots", size_text(sram["adapter_slot_bytes"]), ""),
        (
            "values",
            size_text(vector["used_bytes"] - vector["kv_scale_bytes"]),
            size_text(vector["capacity_bytes"]),
        ),
        ("scales of the KV cache", size_text(vector["kv_scale_bytes"]), ""),
        ("constants (ROM)", size_text(constants["used_bytes"]), ""),
    ]
    return "SRAM and vector units", ("use", "bytes", "of"), rows, ""


# --- cycles -------------------------------------------------------------------------------------


def _row(
    title: str, entries: Sequence[Mapping[str, Any]], *path: str, style: str = ","
) -> tuple[str, ...]:
    """A figure at each position; absent ones are 0."""
    cells: list[str] = []
    for one in entries:
        value: Any = one
        for key in path:
            value = value.get(key, 0)
        cells.append(format(value, style))
    return (title, *cells)


def _titles(entries: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    return tuple(f"position {one['position']}" for one in entries)


def _cycles(content: Mapping[str, Any]) -> Table:
    positions, adapter = content["positions"], content["adapter"]
    rows = [
        _row("cycles until the next token may enter", positions, "cycles"),
        _row("cycles until the token is out", positions, "cycles_to_token_out"),
        _row("tokens/s", positions, "tokens_per_second", style=",.0f"),
        _row("lanes busy", positions, "lane_utilisation", style=".2%"),
        *_latency_bound_rows(positions),
        *_path_rows(positions),
    ]
    names = dict.fromkeys(n for one in positions for n in one["busy"])
    rows += [_row(f"{name} units busy", positions, "busy", name, style=".1%") for name in names]
    note = ""
    if adapter is not None:
        entries, rank = adapter["positions"], adapter["rank"]
        sites = counted(adapter["sites"], "site")
        path = ("critical_path", "adapter_slot_cycles")
        rows += [
            _row("empty adapter slots, on the critical path", positions, *path),
            _row(f"with an adapter of rank {rank} at {sites}", entries, "cycles"),
            _row("  more than with empty slots", entries, "added_cycles"),
            _row("  tokens/s", entries, "tokens_per_second", style=",.0f"),
        ]
        note = (
            f"all but the last three rows are without an adapter: slots are empty, which is rank "
            f"0; one of rank {rank} is loaded in {counted(adapter['load_cycles'], 'cycle')}"
        )
    return "Cycles of a token", ("", *_titles(positions)), rows, note


def _latency_bound_rows(positions: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, ...]]:
    """The least cycles in any order, what they consist of, how near the schedule comes."""
    if not positions or any(one["latency_bound"] is None for one in positions):
        return
    rows = (
        ("latency bound: least cycles in any order of work", "cycles", ","),
        ("  work, every lane busy", "work", ",.0f"),
        ("  latencies", "latencies", ","),
        ("  less work during them", "overlap", ",.0f"),
        ("  reached", "reached", ".1%"),
    )
    for title, key, style in rows:
        yield _row(title, positions, "latency_bound", key, style=style)


def _path_rows(positions: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, ...]]:
    """The critical path as a tree: units, and their operators below each; they add up to it."""
    yield ("critical path", *(f"{one['cycles']:,}" for one in positions))
    for unit in dict.fromkeys(n for one in positions for n in one["critical_path"]["by_queue"]):
        yield _row(f"  {unit} units", positions, "critical_path", "by_queue", unit)
        inside = [one["critical_path"]["by_unit"].get(unit, {}) for one in positions]
        for name in dict.fromkeys(n for one in inside for n in one):
            yield (f"    {name}", *(f"{one.get(name, 0):,}" for one in inside))
    yield _row("  issue", positions, "critical_path", "issue_cycles")


def _external(positions: Sequence[Mapping[str, Any]]) -> Table:
    rows = [
        _row(name, positions, "external", key)
        for name, key in (("read", "read_bytes"), ("written", "written_bytes"))
    ]
    note = "keys and values as the program moves them; scales stay on the die"
    return "External memory, bytes of a token", ("", *_titles(positions)), rows, note


def _blocks(content: Mapping[str, Any]) -> Table:
    positions = content["positions"]
    blocks = positions[0]["blocks"] if positions else []
    rows = [
        (
            f"{block['name']}{' x ' + str(block['instances']) if block['instances'] > 1 else ''}",
            *(f"{one['blocks'][number]['cycles']:,}" for one in positions),
            *(f"{one['blocks'][number]['cycles_per_instance']:,.1f}" for one in positions),
        )
        for number, block in enumerate(blocks)
    ]
    each = tuple(f"each at {one['position']}" for one in positions)
    return "Blocks, on the critical path", ("block", *_titles(positions), *each), rows, ""


def _slowest(slowest: Sequence[Mapping[str, Any]]) -> Table:
    rows = [
        (
            "\n".join(entry["onnx"]),
            entry["block"],
            entry["opcode"],
            f"{entry['cycles_each']:,}",
            f"{entry['cycles']:,}",
            f"{entry['share']:.1%}",
        )
        for entry in slowest
    ]
    return (
        f"Slowest instructions at position {slowest[0]['position']}",
        ("ONNX nodes (first instance)", "block", "opcode", "cycles", "in all", "share"),
        rows,
        "",
    )


# --- power --------------------------------------------------------------------------------------


def _power(power: Mapping[str, Any]) -> Table:
    entries = power["positions"]
    rows: list[tuple[str, ...]] = []
    notes: list[str] = []
    if power["rom"] is not None:
        rows += _rom_rows(entries)
        notes += _rom_notes(power["rom"], entries)
    if power["l_units"] is not None:
        rows += [
            _row("L-Units, average power, W", entries, "l_units", "watts", style=".4g"),
            _row("  busy", entries, "l_units", "busy_share", style=".1%"),
            _row("  energy of a token, mJ", entries, "l_units", "millijoules", style=".4g"),
        ]
        one, figure = entries[0]["l_units"], power["l_units"]["cycle_pj"]
        rate = one["tera_operations_per_joule"]
        notes.append(
            f"L-Units: {power['l_units']['figure']} {figure['value']:g} pJ ({figure['origin']}) "
            "for each cycle in which one multiplies engraved weights"
            + ("" if rate is None else f", {rate:.3g} TOPS/W")
            + "; attention, adapters, vector units and what is drawn at rest are not in it."
        )
    if entries and all(one["activity"] is not None for one in entries):
        rows += _activity_rows(entries, power["activity"]["meaning"])
        given = (
            f"{name} {one['value']:g} ({one['origin']})"
            for name, one in power["activity"]["figures"].items()
        )
        notes.append(
            "By activity: what the program reads, writes and computes, counted, times the energy "
            f"of each: {', '.join(given)}, in pJ; {power['activity']['left_out']}."
        )
    if power["l_units_invalid"] is not None:
        notes.append(f"L-Units: {power['l_units_invalid']}")
    if power["published"] is not None:
        rows += [
            _row("whole chip as published, W", entries, "published", "watts", style=".4g"),
            _row("  energy of a token, mJ", entries, "published", "millijoules", style=".4g"),
        ]
        notes.append(
            f"As published: {power['published']['value']:g} W ({power['published']['origin']}) "
            "whatever the chip does, times the time of a token."
        )
    if not rows and not notes:
        notes.append(
            "not stated by the target: it has neither power.rest_w with power.rom_on_w, nor "
            "energy.l_unit_cycle_pj, nor published.power_w"
        )
    return "Power", ("", *_titles(entries)), rows, "\n".join(notes)


def _activity_rows(
    entries: Sequence[Mapping[str, Any]], meaning: Mapping[str, str]
) -> Iterator[tuple[str, ...]]:
    """Energy by activity, and its parts, largest first; they add up to it."""
    yield _row("by activity, average power, W", entries, "activity", "watts", style=".4g")
    yield _row("  energy of a token, mJ", entries, "activity", "millijoules", style=".4g")
    last = entries[-1]["activity"]["parts"]
    for name in sorted(last, key=lambda one: -last[one]):
        told = meaning.get(name, "L-Units")
        yield _row(f"    {told}", entries, "activity", "parts", name, style=".4g")


def _rom_rows(entries: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    if entries and entries[0]["rom"]["gated"] is not None:
        gated = ("rom", "gated")
        rows += [
            _row("gated, average power, W", entries, *gated, "watts", style=".4g"),
            _row("  energy of a token, mJ", entries, *gated, "millijoules", style=".4g"),
            _row("  gating costs, cycles a token", entries, *gated, "added_cycles", style=","),
            _row("  ROM on, average of the token", entries, *gated, "on_share", style=".2%"),
        ]
        at_once = (*gated, "domains_on_at_once")
        numbers = dict.fromkeys(n for one in entries for n in one["rom"]["gated"][at_once[-1]])
        rows += [
            _row(
                f"  time with {counted(int(number), 'domain')} on",
                entries,
                *at_once,
                number,
                style=".2%",
            )
            for number in sorted(numbers, key=int)
        ]
        busy = (*gated, "while_a_domain_is_on")
        rows += [
            _row("  ROM on while any domain is", entries, *busy, "on_share", style=".2%"),
            _row("  average power then, W", entries, *busy, "watts", style=".4g"),
        ]
    rows += [
        _row("not gated, average power, W", entries, "rom", "ungated", "watts", style=".4g"),
        _row("  energy of a token, mJ", entries, "rom", "ungated", "millijoules", style=".4g"),
    ]
    return rows


def _rom_notes(rom: Mapping[str, Any], entries: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    rest, on, assumed = rom["rest_w"], rom["rom_on_w"], rom["assumed_on_share"]
    yield (
        f"Power is rest_w {rest['value']:g} W ({rest['origin']}) + rom_on_w {on['value']:g} W "
        f"({on['origin']}) x the part of the target's ROM that is on, in bits, measured from the "
        "start of each wake to the finish of its sleep."
    )
    if rom["chosen_parts"]:
        parts = sorted(rom["chosen_parts"].values())
        ends = dict.fromkeys(f"{part:.1%}" for part in (parts[0], parts[-1]))
        yield (
            f"Of experts' domains only the banks of chosen experts are on, {' to '.join(ends)} of "
            "their bits on the average of choices at random."
        )
    gated = [one["rom"]["gated"] for one in entries]
    ungated, published = rom["published_ungated_w"], rom["published_gated_w"]
    if ungated is not None and published is not None:
        yield f"Published: {ungated['value']:g} W not gated, {published['value']:g} W gated."
    if assumed is not None and gated and gated[0] is not None:
        shares = " and ".join(dict.fromkeys(f"{one['on_share']:.4f}" for one in gated))
        limits = gated[0]["watts_range"]
        ends = (
            f", so that gated power at position {entries[0]['position']} lies between "
            f"{limits[0]:.4g} and {limits[1]:.4g} W over its range"
            if limits and limits[0] < limits[1]
            else ""
        )
        yield (
            f"The target assumes {assumed['value']:g} on while banks are gated "
            f"({assumed['origin']}); this program has {shares}. What is published was split into "
            f"rest_w and rom_on_w by the assumed part{ends}."
            if ends
            else f"The target assumes {assumed['value']:g} on while banks are gated "
            f"({assumed['origin']}); this program has {shares}."
        )
    if rom["extra_bits"]:
        extra = entries[0]["rom"]["extra"]
        always = (
            f", {size_text(rom['extra_always_on_bits'] / 8)} of them in no power domain"
            if gated and gated[0] is not None
            else ""
        )
        yield (
            f"Banks deeper than the target's ({size_text(rom['extra_bits'] / 8)}{always}) are in "
            f"none of these figures: at the same power a bit they would draw "
            + (
                f"{extra['gated_watts']:.4g} W gated, {extra['ungated_watts']:.4g} W not gated."
                if "gated_watts" in extra
                else f"{extra['ungated_watts']:.4g} W."
            )
        )


# --- area ---------------------------------------------------------------------------------------


def _area_lines(content: Mapping[str, Any]) -> Iterator[str]:
    """The die by component, and what it gives for area and energy."""
    area = content["area"]
    die, parts = area["die_mm2"], area["components"]
    shares = ", ".join(f"{one['name']} {one['share']:.1%}" for one in parts)
    told = f": {shares}" if len(parts) > 1 else ""
    yield f"area    {die['value']:,.4g} mm2 ({die['origin']}){told}"
    if (extra := area["extra_rom_mm2"]) is not None:
        yield f"        and {extra['mm2']:,.4g} mm2 for banks deeper than the target's"
    for one in content["worth"]:
        yield f"worth   {_worth_text(one)} at position {one['position']}"
    if area["not_followed"]:
        yield f"        the area does not follow {', '.join(area['not_followed'])}"


_BY = {
    "activity": "by activity",
    "rom": "by the ROM that is on",
    "published": "at the published power",
}
"""Which statement of power an energy is."""


def _worth_text(one: Mapping[str, Any]) -> str:
    """What a chip gives for its area, and for its energy where that is stated."""
    energy = one["tokens_per_joule"]
    text = f"{amount_text(one['tokens_per_second_per_mm2'])} tokens/s/mm2"
    return f"{text}, {amount_text(energy)} tokens/J ({_BY[one['by']]})" if energy else text


def _area(content: Mapping[str, Any]) -> Table:
    area = content["area"]
    rows = [
        (
            f"{one['name']}{' x {:,}'.format(one['count']) if 'count' in one else ''}",
            f"{one['mm2']:,.4g}",
            f"{one['share']:.1%}",
            f"{one['each_mm2']:.4g}" if "each_mm2" in one else "",
            f"{one['figure']} ({one['origin']})",
        )
        for one in area["components"]
    ]
    die = area["die_mm2"]
    rows.append(("die", f"{die['value']:,.4g}", "", "", f"area.die_mm2 ({die['origin']})"))
    notes: list[str] = []
    if (extra := area["extra_rom_mm2"]) is not None:
        notes.append(
            f"Banks deeper than the target's ({size_text(extra['bits'] / 8)}) are on no published "
            f"die: at the density of {extra['figure']} ({extra['origin']}) they would add "
            f"{extra['mm2']:,.4g} mm2."
        )
    if area["not_followed"]:
        notes.append(f"The area does not follow {', '.join(area['not_followed'])}.")
    notes += [
        f"At position {one['position']}: {_worth_text(one)}"
        + ("." if one["tokens_per_joule"] else "; no energy of a token is stated.")
        for one in content["worth"]
    ]
    return "Area", ("component", "mm2", "share", "each", "follows from"), rows, "\n".join(notes)


# --- figures as text ----------------------------------------------------------------------------


def _of(used: float, capacity: float) -> str:
    return f"{size_text(used)} of {size_text(capacity)} ({used / capacity:.1%})"


def amount_text(value: float) -> str:
    """A number with four digits, and as many as it has before the point."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def size_text(count: float) -> str:
    """Bytes in decimal units with four digits."""
    for power, unit in ((9, "GB"), (6, "MB"), (3, "kB")):
        if count >= 10**power:
            return f"{count / 10**power:.4g} {unit}"
    return f"{count:.0f} B"


def _activations(formats: dict[str, Any]) -> str:
    """The format of most matrices' inputs, and of those that have another one."""
    counts = Counter[str](formats["inputs"].values()).most_common(1)
    # The target's, unless most keep one that the graph gives them.
    most = counts[0][0] if counts else str(formats["activations"])
    found: dict[str, list[str]] = {}
    for name, fmt in formats["inputs"].items():
        if fmt != most:
            found.setdefault(fmt, []).append(name)
    others = [f"{fmt} for {_first(names)}" for fmt, names in found.items()]
    return f"{most} ({'; '.join(others)})" if others else most


def _first(names: list[str]) -> str:
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(names[:4]) + more
