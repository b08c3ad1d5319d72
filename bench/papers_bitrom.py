"""BitROM with Falcon3-1B."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from decoder_model import FALCON3_1B, FALCON3_3B, FALCON3_7B, FALCON3_10B
from papers_page import Row, Section, fixed, percent, whole
from papers_work import (
    Compiled,
    Work,
    ask,
    network_text,
    published,
    say,
    token_ms,
    with_registers,
    within,
)

from intaglio.backend.stages import Options
from intaglio.backend.target.target import load_target
from intaglio.dialects import rom
from intaglio.dialects.machine import Machine
from intaglio.dialects.tiling import Reads, activation_passes
from intaglio.lowering.schedule import durations
from intaglio.runtime.adapters.budget import external_saving
from intaglio.runtime.reports.power import power
from intaglio.runtime.reports.timing import TokenTimeline, token_cycles
from intaglio.runtime.what_if import WhatIf

ABOUT = """\
Falcon3-1B with ternary weights, 29.7 % of them 0, 8-bit activations. No rate is published.
Embedding and head (8 bits) lie in macros beyond the published 270. Areas that are printed in cm2
and a density in kB/mm2 are read as mm2 and kilobit (C7), 20.8 and 5.2 TOPS/W as those of 4-bit and
8-bit activations."""

TOKENS = 128
"""Length of the sequence for which accesses are published."""
MACROS = 270
FALCONS = {"1B": FALCON3_1B, "3B": FALCON3_3B, "7B": FALCON3_7B, "10B": FALCON3_10B}


def study(work: Work) -> Section:
    """All figures of BitROM."""
    target = load_target("bitrom")
    section = Section("BitROM", f"{ABOUT}\n\n{network_text(target)}")
    options = Options("bitrom", context=TOKENS)
    model = work.model("falcon3-1b", FALCON3_1B)
    compiled = work.compile(model, options)
    section.costs = [within("Falcon3-1B", compiled.cost)]
    say("asking about Falcon3-1B")
    limit = target.number("external.retention_us") / 1e3
    question = (limit, token_ms(TOKENS - 1), fixed(1))
    what_if, questions = WhatIf(model, options), {"time between tokens, ms": question}
    (answer,) = ask(what_if, questions)
    section.answers = [(f"Falcon3-1B, {TOKENS} tokens, against the retention", [answer])]
    cycles = int(token_cycles(compiled.program, [TOKENS - 1], sampled=False).period[0])
    clock = target.integer("clock.frequency_hz")
    alone = 1e3 * cycles / clock
    macros = _macros(compiled)
    section.rows = [
        *_area(macros),
        *_external(compiled.program.machine),
        *(_adapters(work, name) for name in FALCONS),
        *_energy(compiled, model),
        Row(
            answer.name,
            limit,
            answer.own,
            answer.form,
            f"the limit is the retention: it must stay below; {TOKENS} cached tokens, with head",
        ),
        Row(answer.name, limit, alone, answer.form, "layers alone"),
        *with_registers(what_if, questions),
        Row(
            "least clock, MHz",
            None,
            answer.own / limit * clock / 1e6,
            fixed(1),
            f"at which a token takes the retention; {clock / 1e6:.0f} are assumed",
        ),
    ]
    section.checks = [
        (f"the linears take {MACROS} macros: {macros}", macros == MACROS),
    ]
    return section


def _macros(compiled: Compiled) -> int:
    """Macros that hold matrices of the layers."""
    pieces = [piece for one in compiled.layers() for piece in one.pieces]
    return len({tile for p in pieces for tile in range(p.first_tile, p.first_tile + p.tiles)})


def _area(macros: int) -> list[Row]:
    target = load_target("bitrom")
    area = macros * target.number("area.l_unit_mm2") * (14 / 65) ** 2
    derived = "follows from the printed area and density; 15 a layer"
    circular = "from the published density, so no test of it"
    return [
        Row("macros", target.number("array.matrix_units"), macros, whole, derived),
        Row(
            "area at 14 nm, mm2",
            published(target)("model_14nm_mm2"),
            area,
            fixed(2),
            circular,
        ),
    ]


def _external(machine: Machine) -> list[Row]:
    """External KV accesses saved, by tokens and as the program fetches them."""
    goal, name = published(load_target("bitrom"))("external_saving"), "external accesses saved"
    outside, every = durations.blocks_outside(machine, 0), durations.attended(0, machine.h_units)
    lengths = range(1, TOKENS + 1)
    fetched = sum(int(outside(tokens=n)) for n in lengths)
    saved = 1 - fetched / sum(int(every(tokens=n)) for n in lengths)
    which = f"{machine.kv_on_die} of {TOKENS} tokens on the die"
    blocks = (
        f"as the program fetches them, in whole blocks of {machine.h_units} (`array.h_units` is "
        "assumed; with 1 it is the figure above)"
    )
    exact = external_saving(machine.kv_on_die, TOKENS)
    return [
        Row(name, goal, exact, percent, f"{which}, token by token"),
        Row(name, goal, saved, percent, f"{which}, {blocks}"),
    ]


def _adapters(work: Work, name: str) -> Row:
    """What rank 16 on V, O and Down adds to a model: numbers in the compiler's slots."""
    of = published(load_target("bitrom"))
    shape = FALCONS[name]
    if shape is not FALCON3_1B:
        # Only shapes matter; the other one is there as a whole.
        shape = replace(shape, one_layer=True)
    added, total = _slots(work.model(f"falcon3-{name.lower()}", shape))
    goal = {"1B": of("high_adapter_share"), "7B": of("low_adapter_share")}.get(name)
    note = f"rank 16 on V, O and Down: {added:,} numbers in the compiler's slots"
    return Row(f"adapter, share of Falcon3-{name}", goal, added / total, percent, note)


def _slots(model: Path) -> tuple[int, int]:
    """Numbers in the adapter slots of rank 16, and in the matrices of the model."""
    options = Options("bitrom", context=TOKENS, adapter_rank=16, emit="integer")
    added = total = 0
    for op in WhatIf(model, options).built().module.ops:
        match op:
            case rom.ParameterOp(type=rom.AdapterType() as type_):
                added += int(np.prod(type_.dims))
            case rom.ParameterOp(type=rom.ROMTensorType() as type_) if type_.is_matrix:
                total += int(np.prod(type_.dims))
            case _:
                pass
    return added, total


def _energy(compiled: Compiled, model: Path) -> list[Row]:
    """Efficiency of the macros that hold the layers, with 8-bit and with 4-bit activations."""
    of = published(load_target("bitrom"))
    what_if = WhatIf(model, Options("bitrom", ("activations=int4",), context=TOKENS))
    program = what_if.program()
    assert program is not None
    four = Compiled(program, what_if.placed(), compiled.cost)
    rows: list[Row] = []
    for bits, goal, target, one in (
        (8, of("low_tops_per_w"), load_target("bitrom"), compiled),
        (4, of("high_tops_per_w"), what_if.target(), four),
    ):
        machine, layers = one.program.machine, one.layers()
        l_units = power(TokenTimeline(one.program, []), target, one.placed)["l_units"]
        cycle = l_units["cycle_pj"]["value"]
        reads = Reads(activation_passes(machine.activations, machine))
        joules = sum(p.busy_l_units(machine, reads) for p in layers) * cycle * 1e-12
        operations = sum(2 * p.shape.rows * p.shape.columns for p in layers)
        circular = (
            "of the layers' products. A macro's energy a cycle is derived from this figure, so "
            "it shows only whether accumulators idle"
        )
        bound = f"macros of the layers alone, {bits}-bit activations: a lower bound"
        name = f"TOPS/W, {bits}-bit activations"
        rows += [
            Row(name, goal, operations / joules / 1e12, fixed(2), circular),
            Row("energy, mJ a token", None, joules * 1e3, fixed(3), bound),
        ]
    return rows
