"""What a compiled model takes of its chip: memory by use, cycles, power, and what they go into.

Everything comes from program.json, mapping.json, target.json and manifest.json; nothing is
executed. `text.py`, `html.py` and `perfetto.py` show it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from intaglio.backend.output.output import read_manifest
from intaglio.backend.program.program import Program, load_program
from intaglio.backend.target.file import read_target
from intaglio.backend.target.target import Target
from intaglio.dialects.constant_rom import CONSTANTS
from intaglio.dialects.errors import UserError
from intaglio.dialects.formula import constant
from intaglio.dialects.h_units import (
    ADAPTER_SCALES,
    ADAPTERS,
    KV,
    KV_SCALES,
    STATE_SCALES,
    STATES,
    tokens_on_die,
)
from intaglio.dialects.isa.matrix import Product, Row
from intaglio.dialects.isa.values import Fixed, Probabilities
from intaglio.dialects.json_file import JSONFile
from intaglio.dialects.latency_bound import Chain, read_chain
from intaglio.dialects.memories import OF_VALUES, size_of
from intaglio.dialects.tiling import Reads, lower_bound_cycles
from intaglio.runtime.adapters.budget import adapter_bytes, budget, demand_of
from intaglio.runtime.adapters.slots import load_cycles_of
from intaglio.runtime.reports.area import area, worth
from intaglio.runtime.reports.bottleneck import bottleneck
from intaglio.runtime.reports.model_shape import model_shape
from intaglio.runtime.reports.power import power
from intaglio.runtime.reports.rom_use import (
    USES,
    Placed,
    placed_matrices,
    products_with_inputs,
    read_bits,
    read_placement,
)
from intaglio.runtime.reports.timing import TokenTimeline
from intaglio.runtime.reports.traffic import traffic

SCHEMA = 1
SLOWEST = 10
"""Instructions that are listed as the slowest."""


def inspect_json(
    out: str | Path, positions: Sequence[int] | None = None, program: Program | None = None
) -> dict[str, Any]:
    """Sizes, cycles, power and bottlenecks of an output folder.

    Keys: `schema`, `target`, `clock_hz`, `model`, `folder` (the output folder's own name), `shape`
    (see `runtime/reports/model_shape.py`), `context`, `formats` (`fraction_bits` of
    fixed-point values: what embeddings enter, the logits, and all that occur), `rom` (bits by use
    and by class of tensor, fill of the banks; `extra_bits` of them lie in banks made deeper than
    the target's),
    `zeros` (of the weights and of their stored bits, by class of tensor), `constants`, `sram` (of
    the H-Units, in bytes; `kv_tokens` are the tokens whose keys and values are there),
    `vector_memory` (bytes; `kv_scale_bytes` of them for the scales of all cached keys and values),
    `memories` (all that the chip has: rows, elements of a row and their bits, units that have one
    each, and bytes of all together),
    `budget` (adapters against context, see `runtime/adapters/budget.py`), `lower_bound` (every lane
    always busy), `positions` (cycles without an adapter and what they are spent on, at each stated
    position; `latency_bound`: the least cycles in any order of the work (`cycles`,
    `tokens_per_second`), what they consist of (`work`, `latencies`, less `overlap`), and the share
    of that speed that the token has (`reached`), see `dialects/latency_bound.py`; None in folders
    of earlier versions; `limits`: what keeps the token from being faster, see
    `runtime/reports/bottleneck.py`;
    `external`: bytes of keys and values that the token reads from external memory and writes to it,
    or None), `adapter` (the same with an adapter of the slots' full rank, or None without slots),
    `power` (see `runtime/reports/power.py`), `area` (see `runtime/reports/area.py`), `worth` (at
    each position: tokens/s a mm2 of the die, tokens a joule, or None), `outside_range` (settings
    beyond what the target assumes possible), `slowest` (instructions with the most cycles
    on the critical path, all beats and instances together; `duration`: for how many cycles its
    `beats` have their queue).

    Args:
        out: the output folder.
        positions: to state; those of the program by default.
        program: that of the folder, where it is in memory; else it is read.

    Raises:
        UserError: the folder holds no compiled program, or a position is beyond its context.
    """
    out = Path(out)
    program = load_program(out) if program is None else program
    stated = list(program.positions) if positions is None else list(positions)
    check_positions(program, stated)
    manifest = read_manifest(out)
    rounding, sites = manifest.get("rounding"), manifest.get("adapter_sites")
    largest = None if rounding is None else rounding.get("largest_relative_error")
    mapping = read_placement(out, program)
    target = read_target(out)
    products_in_turn = manifest.get("latency_bound")
    chain = None if products_in_turn is None else read_chain(products_in_turn)
    placed = placed_matrices(program, mapping)
    multiplied = products_with_inputs(program)
    bound = sum(
        lower_bound_cycles(placed[name].shape, program.machine, Reads.of(coded, program.machine))
        for name, coded in multiplied
        if name in placed
    )
    token = TokenTimeline(program, stated)
    rom, energies = rom_by_use(program, placed), power(token, target, placed)
    die = area(target, rom["extra_bits"])
    return {
        "schema": SCHEMA,
        "target": program.machine.name,
        "settings": settings.texts() if (settings := manifest.get("settings")) else [],
        "model": manifest["model"].text(),
        "folder": out.resolve().name,
        "shape": model_shape(program),
        "clock_hz": program.machine.clock_hz,
        "context": program.capacity,
        "formats": {
            "activations": program.machine.activations,
            "inputs": {name: coded.shown for name, coded in multiplied},
            "kv": sorted({cache.format for cache in program.caches.values()}),
            "probabilities": _probabilities(program),
            "fraction_bits": _fraction_bits(program),
        },
        "rounding": None if largest is None else largest.value,
        "rom": rom,
        "zeros": _zeros(program, manifest.get("zeros")),
        "constants": _constants(program),
        "sram": sram_by_use(program),
        "budget": budget(program, [] if sites is None else sites.list()),
        "vector_memory": vector_memory_by_use(program),
        "memories": [
            {**asdict(one), "name": name, "bytes": one.size}
            for name, one in program.memories.items()
        ],
        "lower_bound": {
            "cycles": bound,
            "tokens_per_second": program.machine.clock_hz / bound if bound else None,
            "meaning": "every lane of the chip multiplies one plane of a weight in every cycle",
        },
        "positions": [
            _with_latency_bound(program, _position(token, which, bound), chain)
            for which in range(len(stated))
        ],
        "adapter": _adapter(token, bound),
        "power": energies,
        "area": die,
        "worth": [worth(one, die) for one in energies["positions"]],
        "outside_range": _outside_range(target),
        "slowest": _slowest(token) if stated else [],
    }


def check_positions(program: Program, positions: Sequence[int]) -> None:
    """Whether the caches reach to all positions.

    Raises:
        UserError: they do not.
    """
    for position in positions:
        if not 0 <= position < program.capacity:
            raise UserError(
                f"position {position} is out of range",
                hint=f"the KV caches hold {program.capacity} tokens: 0 to {program.capacity - 1}",
            )


def _probabilities(program: Program) -> str:
    """Formats of softmax's numerators, with commas; without attention that of the machine."""
    found = {
        one.type.format for one in program.buffers.values() if isinstance(one.type, Probabilities)
    }
    return ", ".join(sorted(found)) or program.machine.probabilities


def _fraction_bits(program: Program) -> dict[str, Any]:
    """Fraction bits of fixed-point values: of embeddings, of the logits, and all that occur."""
    fractions = {
        name: one.type.fraction
        for name, one in program.buffers.items()
        if isinstance(one.type, Fixed)
    }
    embedded = [
        fractions[one.does.output]
        for block in program.blocks
        for one in block.instructions
        if isinstance(one.does, Row)
    ]
    return {
        "embedding": max(embedded),
        "logits": fractions[program.logits],
        "all": sorted(set(fractions.values())),
    }


def _outside_range(target: Target) -> list[dict[str, Any]]:
    """Figures that options moved out of the range that the target file states for them."""
    found: list[dict[str, Any]] = []
    for name, one in target.parameters.items():
        if one.origin != "option" or one.range is None or not isinstance(one.value, int | float):
            continue
        low, high = one.range
        assert isinstance(low, int | float) and isinstance(high, int | float)
        if not low <= one.value <= high:
            found.append({"name": name, "value": one.value, "range": [low, high]})
    return found


# --- memory -----------------------------------------------------------------------------------


def _classes(program: Program) -> dict[str, str]:
    """Class of each parameter: its slot in the layers, else its own name."""
    classes: dict[str, str] = {}
    for block in program.blocks:
        for instance in block.instances:
            for slot, name in instance.items():
                classes.setdefault(name, slot)
    return classes


def rom_by_use(program: Program, placed: Mapping[str, Placed]) -> dict[str, Any]:
    """Bits of the matrix units' ROM by use and by class of tensor, and how full its banks are."""
    machine = program.machine
    banks = machine.tiles * machine.l_units
    classes = _classes(program)
    total = dict.fromkeys(USES, 0)
    by_class: dict[str, dict[str, int]] = {}
    fill = [0.0] * machine.tiles
    extra = 0
    for name, one in placed.items():
        bits = one.bits(machine)
        entry = by_class.setdefault(
            classes.get(name, name),
            {"tensors": 0, "weights": 0, "extra": 0, "experts": 1, **dict.fromkeys(USES, 0)},
        )
        entry["tensors"] += 1
        entry["weights"] += one.shape.experts * one.shape.rows * one.shape.columns
        entry["experts"] = one.shape.experts
        for use in USES:
            entry[use] += bits[use]
            total[use] += bits[use]
        if one.extra:
            entry["extra"] += sum(bits.values())
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
        "read_bits_a_token": read_bits(program, placed),
        **{f"{use}_bits": total[use] for use in USES},
        "by_class": {
            name: {
                "tensors": entry["tensors"],
                "weights": entry["weights"],
                **({"experts": entry["experts"]} if entry["experts"] > 1 else {}),
                **{f"{use}_bits": entry[use] for use in USES},
                "extra_bits": entry["extra"],
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


def _zeros(program: Program, counted: JSONFile | None) -> dict[str, dict[str, int]]:
    """The manifest's counts of zeros (`backend/images/zeros.py`) by class of tensor."""
    classes = _classes(program)
    found: dict[str, dict[str, int]] = {}
    for name, counts in counted.items() if counted is not None else ():
        entry = found.setdefault(classes.get(name, name), dict.fromkeys(counts.names(), 0))
        for key, value in counts.items():
            entry[key] += value.count()
    return found


def _constants(program: Program) -> dict[str, Any]:
    """The constant ROM of the vector units: bytes of its rows, and by class of what is there."""
    classes, rom = _classes(program), program.memories[CONSTANTS]
    by_class: dict[str, int] = {}
    for name, parameter in program.parameters.items():
        for form, _ in parameter.constants:
            entry = classes.get(name, name)
            rows = form.depth(parameter.dims, rom.lanes, program.capacity)
            by_class[entry] = by_class.get(entry, 0) + replace(rom, rows=rows).size
    return {"used_bytes": rom.size, "by_class": by_class}


def _size(program: Program, *names: str) -> int:
    """Bytes of those of the named memories that the chip has."""
    return size_of(one for name, one in program.memories.items() if name in names)


def vector_memory_by_use(program: Program) -> dict[str, Any]:
    """Bytes of the vector units' memory."""
    return {
        "capacity_bytes": program.machine.vector_sram_bytes,
        "used_bytes": _size(program, *OF_VALUES, KV_SCALES, STATE_SCALES),
        "kv_scale_bytes": _size(program, KV_SCALES),
    }


def sram_by_use(program: Program) -> dict[str, Any]:
    """SRAM of all H-Units together."""
    machine, demand = program.machine, demand_of(program)
    adapters = slots = _size(program, ADAPTERS, ADAPTER_SCALES)
    if demand.fixed:
        slots = sum(
            replace(one, rows=program.residents * one.resident).size
            for name, one in program.memories.items()
            if name in (ADAPTERS, ADAPTER_SCALES)
        )
    use = {
        "kv_bytes": _size(program, KV),
        "state_bytes": _size(program, STATES),
        "graph_adapter_bytes": adapters - slots,
        "adapter_slot_bytes": slots,
    }
    return {
        "capacity_bytes": machine.sram_bytes * machine.h_units,
        "used_bytes": sum(use.values()),
        **use,
        "kv_tokens": tokens_on_die(program.capacity, machine),
        "kv_bytes_per_token": demand.kv_bytes,
    }


# --- cycles -----------------------------------------------------------------------------------


def _position(token: TokenTimeline, which: int, bound: float) -> dict[str, Any]:
    """Cycles of the token at one of the positions, and the instructions that they consist of."""
    program, position = token.program, token.positions[which]
    busy: dict[str, int] = {}
    own: dict[str, int] = {}
    for number, taken in enumerate((token.free - token.start)[: len(token.at), which].tolist()):
        one = token.taken(number)
        busy[one.queue] = busy.get(one.queue, 0) + taken
        own[one.queue] = own.get(one.queue, 0) + taken
        if one.issue.pace is None:
            own[one.queue] += program.machine.issue
    period, out = int(token.period[which]), int(token.out[:, which].max(initial=0))
    by_queue: dict[str, int] = {}
    by_opcode: dict[str, int] = {}
    by_unit: dict[str, dict[str, int]] = {}
    by_block: dict[str, int] = {}
    path = token.critical_path(which)
    in_slots = 0
    for step in path:
        span, cycles = step.span, step.cycles
        block = program.blocks[span.block]
        one = block.instructions[span.instruction]
        if isinstance(one.does, Product):
            weights = block.instances[span.instance].get(one.does.weights, one.does.weights)
            in_slots += cycles + step.issue if weights in program.slots else 0
        by_queue[one.queue] = by_queue.get(one.queue, 0) + cycles
        by_opcode[one.opcode] = by_opcode.get(one.opcode, 0) + cycles
        unit = by_unit.setdefault(one.queue, {})
        unit[one.opcode] = unit.get(one.opcode, 0) + cycles
        by_block[block.name] = by_block.get(block.name, 0) + cycles + step.issue
    on_path = {
        "instructions": len(path),
        "issue_cycles": sum(step.issue for step in path),
        "adapter_slot_cycles": in_slots,
        "by_queue": _descending(by_queue),
        "by_opcode": _descending(by_opcode),
        "by_unit": {queue: _descending(by_unit[queue]) for queue in _descending(by_queue)},
    }
    return {
        "position": position,
        "cycles": period,
        "cycles_to_token_out": out or period,
        "tokens_per_second": program.machine.clock_hz / period,
        "lane_utilisation": bound / period,
        "busy": {queue: cycles / period for queue, cycles in busy.items()},
        "critical_path": on_path,
        "limits": bottleneck(period, on_path["by_unit"], on_path["issue_cycles"], own, bound),
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
        "external": _external(program, position),
    }


def _with_latency_bound(
    program: Program, entry: dict[str, Any], chain: Chain | None
) -> dict[str, Any]:
    """The cycles of a token with the least in any order of its work, and how near they come."""
    if chain is None:
        return {**entry, "latency_bound": None}
    bound = chain.at(entry["position"] + 1)
    return {
        **entry,
        "latency_bound": {
            "cycles": bound.cycles,
            "tokens_per_second": program.machine.clock_hz / bound.cycles,
            "work": bound.work,
            "latencies": bound.latencies,
            "overlap": bound.overlap,
            "reached": bound.cycles / entry["cycles"],
        },
    }


def _external(program: Program, position: int) -> dict[str, int] | None:
    """Bytes of a token's keys and values that external memory gives and takes."""
    if not program.machine.kv_on_die:
        return None
    one = traffic(program, position)
    return {"read_bytes": int(one.read[0]), "written_bytes": int(one.written[0])}


def full_ranks(program: Program) -> dict[str, int]:
    """The largest rank at each site: the most that an adapter can cost."""
    return {site.name: site.rank for site in program.sites.values()}


def _adapter(token: TokenTimeline, bound: float) -> dict[str, Any] | None:
    """Cycles with an adapter that fills all slots, and what it takes to load it.

    Args:
        token: without an adapter, at the stated positions.
        bound: cycles with every lane always busy.
    """
    program = token.program
    ranks = full_ranks(program)
    if not ranks:
        return None
    entries: list[dict[str, Any]] = []
    adapted = TokenTimeline(program, token.positions, ranks=ranks)
    for which, without in enumerate(token.period):
        with_adapter = _position(adapted, which, bound)
        added = with_adapter["cycles"] - int(without)
        entries.append({**with_adapter, "added_cycles": added})
    largest = max(ranks.values())
    size = adapter_bytes(program.machine, demand_of(program), largest)
    return {
        "rank": largest,
        "sites": len(ranks),
        "bytes": size,
        "residents": program.residents,
        "load_cycles": load_cycles_of(program, ranks, size),
        "positions": entries,
    }


def _descending(counts: Mapping[str, int]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: -item[1]))


def _slowest(token: TokenTimeline) -> list[dict[str, Any]]:
    """Instructions with the most cycles on the critical path at the last of the positions, their
    instances together."""
    program, position = token.program, token.positions[-1]
    path = token.critical_path(len(token.positions) - 1)
    total = int(path[-1].span.end[0]) if path else 0
    cycles: dict[tuple[int, int], dict[int, int]] = {}
    """Of all beats of an instruction together, by instance."""
    for step in path:
        block = program.blocks[step.span.block]
        number = block.whole_of[step.span.instruction]
        own = cycles.setdefault((step.span.block, number), {})
        own[step.span.instance] = own.get(step.span.instance, 0) + step.cycles
    ranked = sorted(cycles.items(), key=lambda item: -sum(item[1].values()))[:SLOWEST]
    entries: list[dict[str, Any]] = []
    for (block_number, number), each in ranked:
        block, durations = program.blocks[block_number], each.values()
        one = block.whole[number]
        beats = Counter(
            beat.issue.duration if beat.issue.pace is None else beat.issue.pace
            for beat, of in zip(block.instructions, block.whole_of, strict=True)
            if of == number
        )
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
                "beats": beats.total(),
                "duration": str(sum((n * each for each, n in beats.items()), constant(0))),
                "onnx": list(one.onnx[0]),
            }
        )
    return entries
