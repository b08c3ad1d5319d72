"""TOM with BitNet-b1.58-2B-4T."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from decoder_model import BITNET_2B
from papers_page import Row, Section, fixed, percent, whole
from papers_work import (
    Compiled,
    Questions,
    Work,
    ask,
    bound_rows,
    generation_rate,
    layers_rate,
    network_text,
    published,
    say,
    with_registers,
    within,
)

from intaglio.backend.stages import Options
from intaglio.backend.target.target import load_target
from intaglio.dialects import rom
from intaglio.runtime.reports.power import OnTimes, RomBits, on_times, power
from intaglio.runtime.reports.timing import TokenTimeline, token_cycles
from intaglio.runtime.what_if import WhatIf

ABOUT = """\
BitNet-b1.58-2B-4T, 42.2 % of the weights 0. Neither the context of the 3,306 tokens a second nor
whether they count the LM head is said; the published ROM does not hold one. The reading taken is
that of the ROM: the layers alone, on the average of 256 tokens after 256 (the published lengths are
64 to 512, both ways). A token that is really chosen needs a head; with one, in ROM beyond the
published, the chip is slower."""

MIB = 2**20
MIDDLE = (256, 256)
"""Tokens in and out for which rates are stated."""
LINEARS_MIB = 496.875
"""2,084,044,800 weights at two bits (facts/papers.md 8.2)."""
TERNARY_HEAD = replace(BITNET_2B, head_zeros=BITNET_2B.zeros, one_layer=True)
LONG = 2560


def study(work: Work) -> Section:
    """All figures of TOM."""
    target = load_target("tom")
    of = published(target)
    section = Section("TOM", f"{ABOUT}\n\n{network_text(target)}")
    options = Options("tom", context=1024)
    model = work.model("bitnet-2b", BITNET_2B)
    compiled = work.compile(model, options)
    section.costs = [within("BitNet-2B", compiled.cost)]
    say("asking about BitNet-2B")
    what_if = WhatIf(model, options)
    goal = of("tokens_per_s")
    questions: Questions = {
        "layers alone, tok/s": (goal, layers_rate(*MIDDLE), whole),
        "with an 8-bit head, tok/s": (goal, generation_rate(*MIDDLE), whole),
    }
    alone, chosen = ask(what_if, questions)
    positions = range(MIDDLE[0], sum(MIDDLE))
    section.answers = [("BitNet-2B", [alone, chosen])]
    ternary = WhatIf(work.model("bitnet-2b-ternary-head", TERNARY_HEAD), options).program()
    assert ternary is not None
    section.rows = [
        Row("tok/s", goal, alone.own, whole, "layers alone: the reading taken"),
        *(
            Row(
                "tok/s",
                goal,
                layers_rate(n, n)(compiled.program),
                whole,
                f"layers alone, {n} after {n}",
            )
            for n in (64, 512)
        ),
        Row("tok/s", goal, chosen.own, whole, "with a head of 8 bits, 6 cells a weight"),
        Row("tok/s", goal, generation_rate(*MIDDLE)(ternary), whole, "with a ternary head"),
        *with_registers(what_if, questions),
        *bound_rows(what_if, alone.name, goal, positions, head=False),
        *bound_rows(what_if, chosen.name, goal, positions),
        *_memory(compiled),
        *_flatness(model),
        *_power(compiled),
        Row("zero bits of the layers", None, _zero_bits(what_if), percent, "0 is 00, +1 01, -1 10"),
        Row(
            "ROM, MiB/mm2",
            of("rom_70_mib_per_mm2"),
            target.number("area.rom_mib_per_mm2"),
            fixed(1),
            "published ROM over its published share of the die; what synthesis gives for banks of "
            "this model is measured apart (docs/rom_density.md)",
        ),
    ]
    linears = _linears_mib(compiled)
    claim = f"ROM of the linears is {LINEARS_MIB} MiB before sharing: {linears!r}"
    section.checks.append((claim, linears == LINEARS_MIB))
    return section


def _linears_mib(compiled: Compiled) -> float:
    machine = compiled.program.machine
    return sum(sum(one.bits(machine).values()) for one in compiled.layers()) / 8 / MIB


def _memory(compiled: Compiled) -> list[Row]:
    """ROM and KV cache."""
    of, program = published(load_target("tom")), compiled.program
    linears = _linears_mib(compiled)
    # The final norm stands outside the layers.
    vectors = [p.dims[0] for p in program.parameters.values() if len(p.dims) == 1]
    norms = (sum(vectors) - BITNET_2B.hidden) * 4 / MIB
    kv = sum(c.capacity * c.heads * c.width for c in program.caches.values()) / MIB
    note = f"linears {linears:.3f}, the layers' norm weights at 32 bits {norms:.3f}"
    fills = "FP8; it fills the published SRAM"
    return [
        Row("ROM, MiB", of("rom_mib"), linears + norms, fixed(2), note),
        Row("KV cache, MiB", of("adapter_kv_sram_mb"), kv, fixed(2), f"1,024 tokens, {fills}"),
    ]


def _flatness(model: Path) -> list[Row]:
    """Time between tokens at 2,560 tokens over that at 64, in an SRAM that holds as many."""
    found: list[Row] = []
    target = load_target("tom")
    parameter = target.parameters["array.h_units"]
    assert parameter.range is not None
    for units in parameter.range:
        total = published(target)("adapter_kv_sram_mb") * MIB * LONG / 1024
        settings = (f"array.h_units={units}", f"h_unit.sram_bytes={int(total) // int(units)}")
        program = WhatIf(model, Options("tom", settings, context=LONG)).program()
        assert program is not None
        short, long = token_cycles(program, [63, LONG - 1], sampled=False).period
        note = (
            f"published: nearly flat up to 2,560 tokens. Here 2,560 cached tokens against 64, "
            f"layers alone, {units} parts of SRAM (`array.h_units`)"
        )
        found.append(Row("time between tokens, ratio", None, long / short, fixed(2), note))
    return found


def _power(compiled: Compiled) -> list[Row]:
    """Average power in the middle of the generation."""
    target, program = load_target("tom"), compiled.program
    of, position = published(target), sum(MIDDLE) - MIDDLE[1] // 2
    token = TokenTimeline(program, [position])
    found = power(token, target, compiled.placed)["positions"][0]["rom"]
    gated, ungated, extra = found["gated"], found["ungated"], found["extra"]
    times = on_times(program, position)
    layers = int(token_cycles(program, [position], sampled=False).period[0])
    # Banks are on while layers work, so leaving out the head leaves their cycles as they are.
    share = RomBits.of(program, compiled.placed).gated_share(OnTimes(layers, times.domains))
    watts = target.number("power.rest_w") + target.number("power.rom_on_w") * share
    low, high = gated["watts_range"]
    assumed = target.parameters["power.gated_on_share"]
    return [
        Row(
            "power without gating, W",
            of("ungated_power_w"),
            ungated["watts"],
            fixed(2),
            "rest + ROM that is on; two published figures give the two numbers of that model, so "
            f"this is no test of it. The head beyond the published ROM adds "
            f"{extra['ungated_watts']:.2f} W",
        ),
        Row(
            "power with gating, W",
            of("gated_power_w"),
            watts,
            fixed(2),
            f"layers alone; {share:.2%} of the ROM is on in our schedule, where "
            f"{assumed.value:.2%} is assumed of the published one",
        ),
        Row(
            "power with gating, W",
            of("gated_power_w"),
            gated["watts"],
            fixed(2),
            f"with the time of an 8-bit head, {gated['on_share']:.2%} of the published ROM on; "
            f"{low:.2f} to {high:.2f} W over the range of that assumption. The head's own ROM, "
            f"which as the embedding is always on, adds {extra['gated_watts']:.2f} W",
        ),
    ]


def _zero_bits(what_if: WhatIf) -> float:
    """The share of zero bits among those of the layers' ternary weights."""
    count = zeros = 0.0
    for op in what_if.imported.ops:
        if isinstance(op, rom.ParameterOp) and op.zero_fraction is not None:
            assert isinstance(op.type, rom.ROMTensorType)
            size = float(np.prod(op.type.dims))
            count += size
            zeros += size * (1 - (1 - op.zero_fraction.value.data) / 2)
    return zeros / count
