"""One point of a sweep: from the model as it was read to figures, or why it does not fit."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from intaglio.backend.stages import Options
from intaglio.dialects.errors import UserError, UserErrors
from intaglio.runtime.reports.area import area, worth
from intaglio.runtime.reports.inspect import (
    check_positions,
    rom_by_use,
    sram_by_use,
    vector_memory_by_use,
)
from intaglio.runtime.reports.power import power
from intaglio.runtime.reports.timing import TokenTimeline, generation_cycles
from intaglio.runtime.sweep.points import Asked
from intaglio.runtime.sweep.rows import Found
from intaglio.runtime.what_if import WhatIf


@dataclass(frozen=True)
class Figure:
    """A figure of a point.

    Attributes:
        title: for tables, with its unit.
        best: 1 where more is better, -1 where less is.
        each: whether there is one at each stated position.
    """

    title: str
    best: int
    each: bool = False


FIGURES: Mapping[str, Figure] = {
    "tokens_per_second": Figure("tokens/s", 1, each=True),
    "cycles": Figure("cycles", -1, each=True),
    "reached": Figure("of the latency bound", 1, each=True),
    "millijoules": Figure("mJ a token", -1, each=True),
    "tokens_per_joule": Figure("tokens/J", 1, each=True),
    "tokens_per_second_per_mm2": Figure("tokens/s/mm2", 1, each=True),
    "first_token_ms": Figure("first token, ms", -1),
    "mm2": Figure("mm2", -1),
    "rom_share": Figure("ROM", -1),
    "sram_share": Figure("SRAM", -1),
    "vector_memory_share": Figure("vector memory", -1),
    "perplexity": Figure("perplexity", -1),
    "reference_perplexity": Figure("perplexity of onnxruntime", -1),
    "mean_kl": Figure("KL, nats", -1),
}
"""All figures by name; of those at a position `NAME@POSITION`."""


def figure_of(name: str) -> Figure | None:
    """What a figure's name, with or without a position, stands for."""
    base, at, position = name.partition("@")
    found = FIGURES.get(base)
    return None if found is None or bool(at) != found.each or (at and not position) else found


def title_of(name: str) -> str:
    """A figure's name for tables."""
    found, (_, at, position) = figure_of(name), name.partition("@")
    title = name if found is None else found.title
    return f"{title} at {position}" if at else title


def evaluate(what_if: WhatIf, options: Options, asked: Asked) -> Found:
    """The figures of a point.

    Keys: `fits`; if it does, `figures` by name (see `FIGURES`), `energy_by` (which statement of the
    power report energies are, or None), `not_followed` (settings that the area does not follow)
    and `no_energy` (why the energy of L-Units is not stated, or None); else `reason`, what the
    compile says, and `help`. `cpu_seconds` is what it took.

    Args:
        what_if: the model, read as the options have it read.
        options: of the compile at the point.
        asked: what is wanted.
    """
    began = time.process_time()
    try:
        found = _fitting(what_if, options, asked)
    except UserError as error:
        found = unfit(error)
    return {**found, "cpu_seconds": round(time.process_time() - began, 3)}


def unfit(error: UserError) -> Found:
    """A point that does not fit, in the words of the error: see `evaluate`."""
    said = error.errors if isinstance(error, UserErrors) else (error,)
    hints = [one.hint for one in said if one.hint]
    return {
        "fits": False,
        "reason": "; ".join(dict.fromkeys(one.what for one in said)),
        "help": "; ".join(dict.fromkeys(hints)) or None,
        "cpu_seconds": 0.0,
    }


def _fitting(what_if: WhatIf, options: Options, asked: Asked) -> Found:
    what_if = what_if.under(options)
    built = what_if.built()
    program, placed = built.program, built.placed
    positions = list(asked.positions or (0, program.capacity - 1))
    check_positions(program, positions)
    token = TokenTimeline(program, positions)
    clock = program.machine.clock_hz
    rom, sram = rom_by_use(program, placed), sram_by_use(program)
    vectors = vector_memory_by_use(program)
    energies, die = power(token, built.target, placed), area(built.target, rom["extra_bits"])
    figures: dict[str, float | None] = {}
    for position, cycles, stated in zip(
        positions, token.period.tolist(), energies["positions"], strict=True
    ):
        given = worth(stated, die)
        figures |= {
            f"tokens_per_second@{position}": clock / cycles,
            f"cycles@{position}": cycles,
            f"reached@{position}": built.chain.at(position + 1).cycles / cycles,
            f"millijoules@{position}": stated["token"] and stated["token"]["millijoules"],
            f"tokens_per_joule@{position}": given["tokens_per_joule"],
            f"tokens_per_second_per_mm2@{position}": given["tokens_per_second_per_mm2"],
        }
    if prompt := min(asked.prompt, program.capacity):
        figures["first_token_ms"] = 1e3 * generation_cycles(program, prompt, 1).prefill / clock
    extra = die["extra_rom_mm2"]
    figures |= {
        "mm2": die["die_mm2"]["value"] + (extra["mm2"] if extra else 0.0),
        "rom_share": rom["used_bits"] / rom["capacity_bits"],
        "sram_share": sram["used_bytes"] / sram["capacity_bytes"],
        "vector_memory_share": vectors["used_bytes"] / vectors["capacity_bytes"],
    }
    if asked.text is not None:
        figures |= _accuracy(what_if.model, options, asked)
    last = energies["positions"][-1]["token"] if positions else None
    return {
        "fits": True,
        "figures": figures,
        "energy_by": last and last["by"],
        "not_followed": die["not_followed"],
        "no_energy": energies["l_units_invalid"],
    }


def _accuracy(model: Path, options: Options, asked: Asked) -> dict[str, float | None]:
    """How near the simulator is to onnxruntime on the text: this one compiles the weights too."""
    from intaglio.backend.compile import compile_model
    from intaglio.runtime.chip import load
    from intaglio.runtime.judge.check import check

    assert asked.text is not None
    with TemporaryDirectory(prefix="intaglio-") as folder:
        compiled = compile_model(model, Path(folder) / "out", replace(options, emit="program"))
        report = check(load(compiled.folder), text=asked.text, windows=asked.windows)
    return {name: report.get(name) for name in ("perplexity", "reference_perplexity", "mean_kl")}
