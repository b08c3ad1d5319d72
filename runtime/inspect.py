"""What a compiled model takes of its chip: memory by use, cycles, and what they are spent on.

Everything comes from program.json, mapping.json and manifest.json; nothing is executed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from intaglio.backend.program import Parameter, Program, load_program
from intaglio.dialects.errors import UserError
from intaglio.dialects.machine import Machine
from intaglio.dialects.tiling import (
    SCALE_BITS,
    MatrixShape,
    Piece,
    activation_passes,
    lower_bound_cycles,
)
from intaglio.runtime.adapter_budget import budget, tables
from intaglio.runtime.timing import critical_path, spans

if TYPE_CHECKING:
    from rich.console import Console

SCHEMA = 1
SLOWEST = 10
"""Instructions that are listed as the slowest."""

WIDTH = 100
"""Columns that the tables need."""

_CODES, _SCALES, _ZEROS, _PADDING = "codes", "scales", "zeros", "padding"
_USES = (_CODES, _SCALES, _ZEROS, _PADDING)


@dataclass(frozen=True)
class _Placed:
    """A matrix and its pieces."""

    parameter: Parameter
    shape: MatrixShape
    pieces: tuple[Piece, ...]
    extra: bool
    """In banks made deeper than published (policy `extra-rom`)."""

    def bits(self, machine: Machine) -> dict[str, int]:
        """ROM bits by use."""
        rows, shape = self.shape.rows, self.shape
        groups = rows * -(-shape.columns // shape.group) if shape.scale_bits else 0
        codes = rows * shape.columns * shape.bits
        scales, zeros = groups * SCALE_BITS, groups * max(0, shape.scale_bits - SCALE_BITS)
        padding = 0
        if machine.rom == "array":
            banks = ((p.bank_bits(shape, machine), p.tiles * machine.l_units) for p in self.pieces)
            padding = sum(bits * count for bits, count in banks) - codes - scales - zeros
        return dict(zip(_USES, (codes, scales, zeros, padding), strict=True))


def inspect_json(out: str | Path) -> dict[str, Any]:
    """Sizes, cycles and bottlenecks of an output folder.

    Keys: `schema`, `target`, `clock_hz`, `model`, `context`, `rom` (bits by use and by class of
    tensor, fill of the banks; `extra_bits` lie in banks made deeper than published), `constants`,
    `sram` and `vector_memory` (bytes), `budget` (adapters against context, see
    `runtime/adapter_budget.py`), `lower_bound`, `positions` (cycles and what they are spent
    on, at each stated position), `slowest`.

    Raises:
        UserError: the folder holds no compiled program.
    """
    out = Path(out)
    program = load_program(out)
    mapping, manifest = _read(out / "mapping.json"), _read(out / "manifest.json")
    placed = dict(_placed(program, mapping))
    bound = sum(
        lower_bound_cycles(
            placed[name].shape,
            program.machine,
            activation_passes(program.machine.activations, program.machine),
        )
        for name in _multiplied(program)
        if name in placed
    )
    positions = [_position(program, position, bound) for position in program.positions]
    return {
        "schema": SCHEMA,
        "target": program.machine.name,
        "settings": manifest.get("settings", []),
        "model": manifest.get("model"),
        "clock_hz": program.machine.clock_hz,
        "context": program.capacity,
        "formats": {
            "activations": program.machine.activations,
            "kv": sorted({cache.format for cache in program.caches.values()}),
            "probabilities": program.machine.probabilities,
        },
        "rounding": manifest.get("rounding", {}).get("largest_relative_error"),
        "rom": _rom(program, placed),
        "constants": _constants(program),
        "sram": _sram(program, mapping),
        "budget": budget(program),
        "vector_memory": {
            "capacity_bytes": program.machine.vector_sram_bytes,
            "used_bytes": max((b.address + b.size for b in program.buffers.values()), default=0),
        },
        "lower_bound": {
            "cycles": bound,
            "tokens_per_second": program.machine.clock_hz / bound if bound else None,
            "meaning": "every lane of the chip multiplies one plane of a weight in every cycle",
        },
        "positions": positions,
        "slowest": _slowest(program, program.positions[-1]) if program.positions else [],
    }


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(
            f"cannot be read: {error}", file=str(path), hint="compile the model again"
        ) from error


# --- memory -----------------------------------------------------------------------------------


def _placed(program: Program, mapping: Mapping[str, Any]) -> Iterator[tuple[str, _Placed]]:
    for entry in mapping["matrices"]:
        parameter = program.parameters[entry["name"]]
        pieces = tuple(
            Piece(
                first_row=piece["rows"][0],
                rows=piece["rows"][1] - piece["rows"][0],
                first_tile=piece["tiles"][0],
                tiles=piece["tiles"][1] - piece["tiles"][0],
                split=piece["split"],
                base=piece["at"][0],
                scale_base=piece["at"][1],
            )
            for piece in entry["pieces"]
        )
        extra = entry.get("extra", False)
        yield entry["name"], _Placed(parameter, _shape(parameter), pieces, extra)


def _shape(parameter: Parameter) -> MatrixShape:
    return MatrixShape.of(
        parameter.dims,
        parameter.code,
        parameter.bits,
        parameter.group,
        zeros=parameter.zeros is not None,
    )


def _multiplied(program: Program) -> Iterator[str]:
    """The matrix of every product that one token with a wanted successor takes."""
    for block in program.blocks:
        for instance in block.instances:
            for one in block.instructions:
                if one.opcode == "matvec" and one.queue == "matrix":
                    yield instance[one.uses["weights"]]


def _classes(program: Program) -> dict[str, str]:
    """Class of each parameter: its slot in the layers, else its own name."""
    classes: dict[str, str] = {}
    for block in program.blocks:
        for instance in block.instances:
            for slot, name in instance.items():
                classes.setdefault(name, slot)
    return classes


def _rom(program: Program, placed: Mapping[str, _Placed]) -> dict[str, Any]:
    machine = program.machine
    banks = machine.tiles * machine.l_units
    classes = _classes(program)
    total = dict.fromkeys(_USES, 0)
    by_class: dict[str, dict[str, int]] = {}
    fill = [0.0] * machine.tiles
    extra = 0
    for name, one in placed.items():
        bits = one.bits(machine)
        entry = by_class.setdefault(
            classes.get(name, name), {"tensors": 0, "weights": 0, **dict.fromkeys(_USES, 0)}
        )
        entry["tensors"] += 1
        entry["weights"] += one.shape.rows * one.shape.columns
        for use in _USES:
            entry[use] += bits[use]
            total[use] += bits[use]
        if one.extra:
            extra += sum(bits.values())
            continue
        for piece in one.pieces:
            bits_of_unit = piece.bank_bits(one.shape, machine)
            if machine.rom == "logic":
                bits_of_unit = sum(bits.values()) / len(one.pieces) / piece.tiles / machine.l_units
            for tile in range(piece.first_tile, piece.first_tile + piece.tiles):
                fill[tile] += bits_of_unit
    return {
        "capacity_bits": banks * machine.rom_bits,
        "used_bits": sum(total.values()) - extra,
        "extra_bits": extra,
        **{f"{use}_bits": total[use] for use in _USES},
        "by_class": {
            name: {
                "tensors": entry["tensors"],
                "weights": entry["weights"],
                **{f"{use}_bits": entry[use] for use in _USES},
            }
            for name, entry in by_class.items()
        },
        "banks": {
            "count": banks,
            "bits": machine.rom_bits,
            "tiles": machine.tiles,
            "tiles_used": sum(bits > 0 for bits in fill),
            "fill_min": min(fill) / machine.rom_bits,
            "fill_mean": sum(fill) / machine.tiles / machine.rom_bits,
            "fill_max": max(fill) / machine.rom_bits,
        },
    }


def _constants(program: Program) -> dict[str, Any]:
    """Vectors and tables in the constant ROM of the vector units: bytes by class."""
    classes = _classes(program)
    by_class: dict[str, int] = {}
    for name, parameter in program.parameters.items():
        if parameter.codes is not None and parameter.codes.file.endswith("constants.bin"):
            entry = classes.get(name, name)
            by_class[entry] = by_class.get(entry, 0) + parameter.codes.size
    return {"used_bytes": sum(by_class.values()), "by_class": by_class}


def _sram(program: Program, mapping: Mapping[str, Any]) -> dict[str, Any]:
    """SRAM of all H-Units together; the mapping states what one of them holds."""
    tiles = program.machine.h_units
    use = {"kv_bytes": 0, "graph_adapter_bytes": 0, "adapter_slot_bytes": 0}
    for entry in mapping["sram"]:
        if entry["name"] in program.slots:
            kind = "adapter_slot_bytes"
        else:
            kind = "kv_bytes" if entry["name"] in program.caches else "graph_adapter_bytes"
        parameter = program.parameters.get(entry["name"])
        # An adapter of few rows lies on as many units.
        use[kind] += entry["size"] * (min(tiles, parameter.dims[0]) if parameter else tiles)
    return {
        "capacity_bytes": program.machine.sram_bytes * tiles,
        "used_bytes": sum(use.values()),
        **use,
        "kv_bytes_per_token": use["kv_bytes"] / program.capacity,
    }


# --- cycles -----------------------------------------------------------------------------------


def _position(program: Program, position: int, bound: float) -> dict[str, Any]:
    """Cycles of the token at a position, and the instructions that they consist of."""
    busy: dict[str, int] = {}
    out = period = 0
    for span, number in spans(program, [position]):
        one = program.blocks[number].instructions[span.instruction]
        finish = int(span.finish[0])
        busy[one.queue] = busy.get(one.queue, 0) + finish - int(span.start[0])
        period = max(period, finish)
        if one.opcode == "sample":
            out = finish
    by_queue: dict[str, int] = {}
    by_opcode: dict[str, int] = {}
    by_block: dict[str, int] = {}
    path = critical_path(program, position)
    for span in path:
        block = program.blocks[span.block]
        one = block.instructions[span.instruction]
        cycles = int(span.finish[0] - span.start[0])
        by_queue[one.queue] = by_queue.get(one.queue, 0) + cycles
        by_opcode[one.opcode] = by_opcode.get(one.opcode, 0) + cycles
        by_block[block.name] = by_block.get(block.name, 0) + cycles + program.machine.issue
    return {
        "position": position,
        "cycles": period,
        "cycles_to_token_out": out or period,
        "tokens_per_second": program.machine.clock_hz / period,
        "lane_utilisation": bound / period,
        "busy": {queue: cycles / period for queue, cycles in busy.items()},
        "critical_path": {
            "instructions": len(path),
            "issue_cycles": len(path) * program.machine.issue,
            "by_queue": _descending(by_queue),
            "by_opcode": _descending(by_opcode),
        },
        "blocks": [
            {
                "name": block.name,
                "instances": len(block.instances),
                "sampled": block.sampled,
                "cycles": by_block.get(block.name, 0),
                "cycles_per_instance": by_block.get(block.name, 0) / len(block.instances),
            }
            for block in program.blocks
        ],
    }


def _descending(counts: Mapping[str, int]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: -item[1]))


def _slowest(program: Program, position: int) -> list[dict[str, Any]]:
    """Instructions with the most cycles on the critical path, their instances together."""
    path = critical_path(program, position)
    total = int(path[-1].finish[0]) if path else 0
    cycles: dict[tuple[int, int], list[int]] = {}
    for span in path:
        key = (span.block, span.instruction)
        cycles.setdefault(key, []).append(int(span.finish[0] - span.start[0]))
    ranked = sorted(cycles.items(), key=lambda item: -sum(item[1]))[:SLOWEST]
    entries: list[dict[str, Any]] = []
    for (block_number, number), durations in ranked:
        block = program.blocks[block_number]
        one = block.instructions[number]
        entries.append(
            {
                "block": block.name,
                "instruction": number,
                "opcode": one.opcode,
                "queue": one.queue,
                "instances": len(block.instances),
                "position": position,
                "cycles": sum(durations),
                "cycles_each": max(durations),
                "share": sum(durations) / total,
                "duration": str(one.issue.duration),
                "onnx": list(one.onnx[0]),
            }
        )
    return entries


# --- text -------------------------------------------------------------------------------------


def inspect_text(out: str | Path, width: int = WIDTH) -> str:
    """The same as tables for people, at most `width` columns wide.

    Raises:
        UserError: the folder holds no compiled program.
    """
    import io

    from rich.console import Console

    stream = io.StringIO()
    console = Console(file=stream, width=width, highlight=False, markup=False, color_system=None)
    _print(console, inspect_json(out))
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines()) + "\n"


def summary_lines(content: Mapping[str, Any]) -> list[str]:
    """The most important figures of `inspect_json`, one a line."""
    rom, sram, vector = content["rom"], content["sram"], content["vector_memory"]
    bound, clock = content["lower_bound"], content["clock_hz"]
    rom_use = _of(rom["used_bits"] / 8, rom["capacity_bits"] / 8)
    sram_use = _of(sram["used_bytes"], sram["capacity_bytes"])
    kv = f"KV cache of {content['context']} tokens {size_text(sram['kv_bytes'])}"
    banks = rom["banks"]
    tiles_used = f"{banks['tiles_used']} of {banks['tiles']} tiles"
    lines = [
        f"ROM     {rom_use}, fullest bank {banks['fill_max']:.1%}, {tiles_used}",
        f"SRAM    {sram_use}, {kv}",
        f"vectors {_of(vector['used_bytes'], vector['capacity_bytes'])}",
    ]
    if rom["extra_bits"]:
        lines.insert(
            1, f"        and {size_text(rom['extra_bits'] / 8)} in banks deeper than published"
        )
    lines += [
        f"speed   {one['tokens_per_second']:,.0f} tokens/s at position {one['position']} "
        f"({one['cycles']:,} cycles at {clock / 1e6:g} MHz)"
        for one in content["positions"]
    ]
    if bound["cycles"]:
        lines.append(
            f"bound   {bound['tokens_per_second']:,.0f} tokens/s ({bound['cycles']:,.1f} cycles) "
            "if every lane were always busy"
        )
    return lines


def _print(console: Console, content: Mapping[str, Any]) -> None:
    settings = "".join(f" --set {setting}" for setting in content["settings"])
    formats = content["formats"]
    console.print(f"{content['target']}{settings}: {content['model']}")
    console.print(
        f"activations {formats['activations']}, KV {', '.join(formats['kv'])}, probabilities "
        f"{formats['probabilities']}; context {content['context']} tokens"
    )
    console.print()
    for line in summary_lines(content):
        console.print(f"  {line}")
    _print_rom(console, content["rom"])
    _print_memory(console, content)
    for title, columns, rows, note in tables(content["budget"], size_text):
        _table(console, title, columns, rows)
        console.print(note)
    _print_cycles(console, content)
    _print_slowest(console, content["slowest"])


def _table(
    console: Console, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]
) -> None:
    """A table whose first column is text and whose other columns are numbers."""
    from rich.box import SIMPLE
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=SIMPLE, pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    console.print()
    console.print(table)


def _print_rom(console: Console, rom: Mapping[str, Any]) -> None:
    columns = ("class", "tensors", "weights", *_USES, "total")
    rows = [
        (
            name,
            str(entry["tensors"]),
            f"{entry['weights']:,}",
            *(size_text(entry[f"{use}_bits"] / 8) for use in _USES),
            size_text(sum(entry[f"{use}_bits"] for use in _USES) / 8),
        )
        for name, entry in rom["by_class"].items()
    ]
    rows.append(
        (
            "all",
            str(sum(entry["tensors"] for entry in rom["by_class"].values())),
            f"{sum(entry['weights'] for entry in rom['by_class'].values()):,}",
            *(size_text(rom[f"{use}_bits"] / 8) for use in _USES),
            size_text((rom["used_bits"] + rom["extra_bits"]) / 8),
        )
    )
    _table(console, "ROM of the matrix units", columns, rows)
    banks = rom["banks"]
    console.print(
        f"{banks['count']} banks of {size_text(banks['bits'] / 8)}: fill {banks['fill_min']:.1%} "
        f"to {banks['fill_max']:.1%}, mean {banks['fill_mean']:.1%}"
    )


def _print_memory(console: Console, content: Mapping[str, Any]) -> None:
    sram, vector, constants = content["sram"], content["vector_memory"], content["constants"]
    rows = [
        ("KV cache", size_text(sram["kv_bytes"]), size_text(sram["capacity_bytes"])),
        ("adapters of the graph", size_text(sram["graph_adapter_bytes"]), ""),
        ("adapter slots", size_text(sram["adapter_slot_bytes"]), ""),
        ("values", size_text(vector["used_bytes"]), size_text(vector["capacity_bytes"])),
        ("constants (ROM)", size_text(constants["used_bytes"]), ""),
    ]
    _table(console, "SRAM and vector units", ("use", "bytes", "of"), rows)


def _print_cycles(console: Console, content: Mapping[str, Any]) -> None:
    positions = content["positions"]
    titles = ("", *(f"position {one['position']}" for one in positions))

    def row(title: str, *path: str, style: str = ",") -> tuple[str, ...]:
        cells = []
        for one in positions:
            value: Any = one
            for key in path:
                value = value.get(key, 0)
            cells.append(format(value, style))
        return (title, *cells)

    rows = [
        row("cycles until the next token may enter", "cycles"),
        row("cycles until the token is out", "cycles_to_token_out"),
        row("tokens/s", "tokens_per_second", style=",.0f"),
        row("lanes busy", "lane_utilisation", style=".2%"),
        row("issue, on the critical path", "critical_path", "issue_cycles"),
    ]
    for kind, title in (("by_queue", "{} units, on the critical path"), ("by_opcode", "  {}")):
        names = dict.fromkeys(n for one in positions for n in one["critical_path"][kind])
        rows += [row(title.format(name), "critical_path", kind, name) for name in names]
    names = dict.fromkeys(n for one in positions for n in one["busy"])
    rows += [row(f"{name} units busy", "busy", name, style=".1%") for name in names]
    _table(console, "Cycles of a token", titles, rows)
    blocks = [
        (
            f"{block['name']}{' x ' + str(block['instances']) if block['instances'] > 1 else ''}",
            *(f"{one['blocks'][number]['cycles']:,}" for one in positions),
            *(f"{one['blocks'][number]['cycles_per_instance']:,.1f}" for one in positions),
        )
        for number, block in enumerate(positions[0]["blocks"])
    ]
    each = tuple(f"each at {one['position']}" for one in positions)
    _table(console, "Blocks, on the critical path", ("block", *titles[1:], *each), blocks)


def _print_slowest(console: Console, slowest: Sequence[Mapping[str, Any]]) -> None:
    if not slowest:
        return
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
    _table(
        console,
        f"Slowest instructions at position {slowest[0]['position']}",
        ("ONNX nodes (first instance)", "block", "opcode", "cycles", "in all", "share"),
        rows,
    )


def _of(used: float, capacity: float) -> str:
    return f"{size_text(used)} of {size_text(capacity)} ({used / capacity:.1%})"


def size_text(count: float) -> str:
    """Bytes in decimal units with four digits."""
    for power, unit in ((9, "GB"), (6, "MB"), (3, "kB")):
        if count >= 10**power:
            return f"{count / 10**power:.4g} {unit}"
    return f"{count:.0f} B"
