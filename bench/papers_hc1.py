"""Taalas HC1 with Llama-3.1-8B in 3 and 6 bits."""

from __future__ import annotations

from dataclasses import replace

from decoder_model import LLAMA_3_8B, Shape
from papers_page import Row, Section, fixed, whole
from papers_work import (
    Compiled,
    Work,
    ask,
    bound_rows,
    generation_rate,
    network_text,
    published,
    say,
    with_registers,
)

from intaglio.backend.stages import Options
from intaglio.backend.target.target import load_target
from intaglio.dialects.rom import WEIGHT_CODES
from intaglio.lowering.onnx.weights.rounding import parse_request
from intaglio.runtime.reports.power import power
from intaglio.runtime.reports.timing import TokenTimeline
from intaglio.runtime.what_if import WhatIf

ABOUT = """\
Llama-3.1-8B with `{mix}`, the mix that the target states
and that `--weights target` asks for: every matrix in 3 bits but the down projections and the head
in 6 (C8: 6 bits are read as parameters, not as scales). Which parameters have 6 bits is not
published. `--weights` takes any other assignment for float models; quantised ones keep their own:
an INT4 or INT8 tensor whose values fit 3 or 6 bits is stored in as many, which is how this model is
written. 1,024 tokens in, 1,024 out, one user. Nearly everything about this chip is assumed."""

LENGTHS = (1024, 1024)
NAME = "tok/s, 1k in and 1k out"


def study(work: Work) -> Section:
    """All figures of HC1."""
    target = load_target("hc1")
    of = published(target)
    mix = target.mixed_weights
    assert mix is not None
    section = Section("Taalas HC1", f"{ABOUT.format(mix=mix)}\n\n{network_text(target)}")
    options = Options("hc1", context=sum(LENGTHS))
    model = work.model("llama-3.1-8b-mixed", mixed(mix))
    compiled = work.compile(model, options)
    section.costs = [(f"Llama-3.1-8B, 3 and 6 bits: {compiled.cost}", True)]
    say("asking about Llama-3.1-8B")
    goal, figure = of("tokens_per_s"), generation_rate(*LENGTHS)
    what_if, question = WhatIf(model, options), {NAME: (goal, figure, whole)}
    (answer,) = ask(what_if, question)
    section.answers = [("Llama-3.1-8B", [answer])]
    note = f"{_bits_a_weight(compiled):.2f} bits a weight, head included"
    prompt, tokens = LENGTHS
    section.rows = [
        Row(NAME, goal, answer.own, whole, note),
        *with_registers(what_if, question),
        *bound_rows(what_if, NAME, goal, range(prompt, prompt + tokens)),
    ]
    for other in map(str, target.parameters["policy.weights"].range or ()):
        if other != mix:
            path = work.model("llama-3.1-8b-other", replace(mixed(other), one_layer=True))
            program = WhatIf(path, options).program()
            assert program is not None
            section.rows.append(Row(NAME, goal, figure(program), whole, f"with `{other}`"))
    used = compiled.rom_bytes(extra=True)
    last = sum(LENGTHS) - 1
    token = TokenTimeline(compiled.program, [last])
    stated = power(token, target, compiled.placed)["positions"][0]["published"]
    section.rows += [
        Row("ROM, GB", None, used / 1e9, fixed(2), "with scales, padding and an 8-bit embedding"),
        Row(
            "ROM, MB/mm2 of the die",
            None,
            used / 1e6 / of("die_mm2"),
            fixed(2),
            "third parties infer 4.3 to 4.9",
        ),
        Row(
            "energy, mJ a token",
            of("token_mj"),
            stated["millijoules"],
            fixed(1),
            f"the published {of('power_w'):.0f} W a card (C9) for our time at {last + 1:,} tokens",
        ),
    ]
    return section


def mixed(request: str) -> Shape:
    """Llama-3.1-8B with the widths that a `--weights` text asks for."""
    asked = parse_request(request)
    assert asked.default is not None
    return replace(
        LLAMA_3_8B,
        bits=WEIGHT_CODES[asked.default.code],
        block=asked.default.group,
        mix=tuple((part, WEIGHT_CODES[rounding.code]) for part, rounding in asked.parts),
    )


def _bits_a_weight(compiled: Compiled) -> float:
    shapes = [one.shape for one in compiled.multiplied()]
    sizes = [shape.rows * shape.columns for shape in shapes]
    return sum(s.bits * n for s, n in zip(shapes, sizes, strict=True)) / sum(sizes)
