"""ROMA with Llama-3.2-3B in 4 bits and Llama-3-8B in 2 bits, groups of 128."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from decoder_model import LLAMA_3_2_3B, LLAMA_3_8B
from papers_page import Row, Section, fixed, whole
from papers_work import (
    Compiled,
    Questions,
    Work,
    ask,
    bound_rows,
    first_token_ms,
    network_text,
    published,
    rate_at,
    say,
    with_registers,
)

from intaglio.backend.stages import Options
from intaglio.backend.target.target import load_target
from intaglio.runtime.reports.power import power
from intaglio.runtime.reports.timing import TokenTimeline
from intaglio.runtime.what_if import WhatIf

ABOUT = """\
Llama-3.2-3B with 4-bit weights and a tied 4-bit head, Llama-3-8B with 2-bit weights and head, both
in groups of 128. Decode rates (31.8K, 24.6K) are read as those of the 3B model without an adapter
(docs/targets.md says why), first-token times as stated, with an adapter of rank 16 on all linears;
prompt tokens run one after the other unless said. The series by input length fits neither and names
no model: it is read as decoding by the 8B model with so many cached tokens. The linears of that
model fill the published ROM to 99.7 %; its embedding and head lie in ROM beyond the published."""

LARGE = (
    "policy.head_store=extra-rom",
    "policy.embedding_store=extra-rom",
)
LENGTHS = {"256": 256, "512": 512, "1k": 1024, "2k": 2048}
RANK = 16


def study(work: Work) -> Section:
    """All figures of ROMA."""
    target = load_target("roma")
    of = published(target)
    section = Section("ROMA", f"{ABOUT}\n\n{network_text(target)}")
    small = work.model("llama-3.2-3b-int4", replace(LLAMA_3_2_3B, block=128))
    large = work.model("llama-3-8b-int2", replace(LLAMA_3_8B, bits=2, block=128))
    decode = Options("roma", context=1024)
    adapted = Options("roma", context=4096, adapter_rank=RANK)
    long = Options("roma", LARGE, context=2048)
    of_small, of_large = work.compile(small, decode), work.compile(large, long)
    section.costs = [
        (f"Llama-3.2-3B, int4: {of_small.cost}", True),
        (f"Llama-3-8B, int2: {of_large.cost}", True),
    ]
    rates: Questions = {
        "no KV, tok/s": (of("decode_tokens_per_s"), rate_at(0), whole),
        "1K KV, tok/s": (of("decode_1k_tokens_per_s"), rate_at(1023), whole),
    }
    first: Questions = {
        "first token after 256, ms": (
            of("first_token_256_ms"),
            first_token_ms(256, RANK),
            fixed(1),
        ),
        "first token after 4K, ms": (of("first_token_4k_ms"), first_token_ms(4096, RANK), fixed(1)),
    }
    series: Questions = {
        f"{length:,} cached, tok/s": (of(f"length_{name}_tokens_per_s"), rate_at(length - 1), whole)
        for name, length in LENGTHS.items()
    }
    for model, path, options, questions in (
        ("Llama-3.2-3B, 4 bits", small, decode, rates),
        (f"Llama-3.2-3B, 4 bits, adapter of rank {RANK}", small, adapted, first),
        ("Llama-3-8B, 2 bits", large, long, series),
    ):
        say(f"asking about {model}")
        what_if = WhatIf(path, options)
        answers = ask(what_if, questions)
        section.answers.append((model, answers))
        section.rows += [Row(a.name, a.goal, a.own, a.form, model) for a in answers]
        section.rows += with_registers(what_if, questions)
        if questions is rates:
            for (name, (goal, _, _)), position in zip(rates.items(), (0, 1023), strict=True):
                section.rows += bound_rows(what_if, name, goal, [position])
    for name, (goal, figure, form) in rates.items():
        note = "the other reading: Llama-3-8B, 2 bits"
        section.rows.append(Row(name, goal, figure(of_large.program), form, note))
    bare = first_token_ms(256, 0)(of_small.program)
    goal = of("first_token_256_ms")
    section.rows += [
        Row("first token after 256, ms", goal, bare, fixed(1), "Llama-3.2-3B without an adapter"),
        *_in_flight(small),
        *_rom(of_small, of_large),
    ]
    section.rows += _energy(of_small)
    return section


def _in_flight(small: Path) -> Iterator[Row]:
    """First-token times with several prompt tokens in flight."""
    of = published(load_target("roma"))
    for contexts in (2, 3):
        options = Options("roma", (f"policy.in_flight={contexts}",), context=4096)
        program = WhatIf(small, options).program(())
        for prompt, name in ((256, "256"), (4096, "4K")):
            own = first_token_ms(prompt, 0)(program)
            goal = of(f"first_token_{name.lower()}_ms")
            note = f"Llama-3.2-3B without an adapter, {contexts} tokens in flight"
            yield Row(f"first token after {name}, ms", goal, own, fixed(1), note)


def _rom(small: Compiled, large: Compiled) -> list[Row]:
    """What the ROM holds, with scales and padding."""
    goal = published(load_target("roma"))("rom_gb")
    return [
        Row("ROM, GB", goal, used / 1e9, fixed(3), note)
        for used, note in (
            (small.rom_bytes(extra=True), "3B: linears and the tied table"),
            (large.rom_bytes(extra=False), "8B: linears, with padding"),
            (large.rom_bytes(extra=True), "8B: with 2-bit head and 8-bit embedding"),
        )
    ]


def _energy(compiled: Compiled) -> list[Row]:
    """Energy of a token at position 0."""
    target = load_target("roma")
    goal = published(target)("token_mj")
    found = power(TokenTimeline(compiled.program, [0]), target, compiled.placed)["positions"][0]
    units = (
        "L-Units alone, at the published power of a busy one. All of them busy would draw "
        f"{target.number('power.l_units_peak_w'):.0f} W, which does not meet the published "
        f"{published(target)('power_w')} W of the chip"
    )
    chip = "the published power of the chip for the time of our token"
    return [
        Row("energy, mJ a token", goal, found["l_units"]["millijoules"], fixed(2), units),
        Row("energy, mJ a token", goal, found["published"]["millijoules"], fixed(2), chip),
    ]
