"""What the studies of bench/papers.py share: models, compiles, figures, and what moves them."""

from __future__ import annotations

import hashlib
import inspect
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import decoder_model
import numpy as np
from decoder_model import Shape, write_decoder
from measured import Cost, compile_command, measured
from papers_page import Answer, Form, Row, whole
from sensitivity import Knob, Reach, reach, together

from intaglio.backend.program.program import Program, load_program
from intaglio.backend.stages import Options
from intaglio.backend.target.target import Target
from intaglio.backend.target.values import is_number, is_settable
from intaglio.runtime.reports.rom_use import Placed, placed_matrices, products, read_placement
from intaglio.runtime.reports.timing import generation_cycles, token_cycles
from intaglio.runtime.what_if import WhatIf

STILL = ("area.", "energy.", "power.", "technology.")
"""Sections that no cycle hangs on."""
FIXED = ("policy.emit", "policy.head_weights")
"""Policies that do not change the program of a model that is read once."""
REGISTERS = "network.wire_ps_per_mm=10000"
"""Wires so slow that a register in each unit of the network is the faster one."""
LIMIT_SECONDS, LIMIT_BYTES = 60.0, 1.5e9
"""What a compile of BitNet-2B and of Falcon3-1B may take."""

Figure = Callable[[Program], float]
Questions = Mapping[str, tuple[float, Figure, Form]]
"""By name: the published figure, how ours follows from a program, how both are written."""


@dataclass(frozen=True)
class Compiled:
    """A compiled model: the program and the ROM that its output folder states, and its cost."""

    program: Program
    placed: Mapping[str, Placed]
    cost: Cost

    def multiplied(self) -> list[Placed]:
        """The matrices of all products of a token."""
        return [self.placed[name] for name in products(self.program)]

    def layers(self) -> list[Placed]:
        """Of these the ones in published ROM."""
        return [one for one in self.multiplied() if not one.extra]

    def rom_bytes(self, *, extra: bool) -> float:
        """Bytes of ROM with scales and padding, with or without what is deeper than published."""
        placed = [one for one in self.placed.values() if extra or not one.extra]
        return sum(sum(one.bits(self.program.machine).values()) for one in placed) / 8


class Work:
    """The work folder: models are kept there, compiles are not."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def model(self, name: str, shape: Shape) -> Path:
        """The file of a model; written unless the same is there."""
        made_of = repr(shape) + inspect.getsource(decoder_model)
        digest = hashlib.sha256(made_of.encode()).hexdigest()[:12]
        folder = self.folder / f"{name}-{digest}"
        if not (folder / "model.onnx").is_file():
            say(f"writing {folder}")
            part = self.folder / f"{folder.name}.part"
            shutil.rmtree(part, ignore_errors=True)
            write_decoder(part, shape)
            part.rename(folder)
        return folder / "model.onnx"

    def compile(self, model: Path, options: Options) -> Compiled:
        """Compiles a model in a process of its own, measured."""
        assert options.context is not None
        out = self.folder / "out"
        say(f"compiling {model.parent.name} for {options.target}")
        command = compile_command(
            model, out, options.target, options.context, options.settings, options.adapter_rank
        )
        cost = measured(command, quiet=True)
        program = load_program(out)
        placed = placed_matrices(program, read_placement(out, program))
        shutil.rmtree(out)
        return Compiled(program, placed, cost)


def say(text: str) -> None:
    """Progress, apart from the tables."""
    sys.stderr.write(f"{text}\n")


def published(target: Target) -> Callable[[str], float]:
    """The published figures of a target, by name without section."""
    return lambda name: target.number(f"published.{name}")


def within(what: str, cost: Cost) -> tuple[str, bool]:
    """What a compile took, and whether it may."""
    good = cost.seconds <= LIMIT_SECONDS and cost.anonymous <= LIMIT_BYTES
    verdict = "within" if good else "NOT within"
    limits = f"{LIMIT_SECONDS:.0f} s and {LIMIT_BYTES / 1e9} GB"
    return f"{what}: {cost}; {verdict} {limits}", good


# --- figures ------------------------------------------------------------------------------------


def rate_at(position: int) -> Figure:
    """Tokens a second at a position."""

    def figure(program: Program) -> float:
        return program.machine.clock_hz / int(token_cycles(program, [position]).period[0])

    return figure


def token_ms(position: int) -> Figure:
    """Milliseconds of a token at a position."""
    rate = rate_at(position)
    return lambda program: 1e3 / rate(program)


def first_token_ms(prompt: int, rank: int) -> Figure:
    """Milliseconds from the first of some prompt tokens to the first token out."""

    def figure(program: Program) -> float:
        ranks = dict.fromkeys(program.sites, rank)
        cycles = generation_cycles(program, prompt, 1, ranks).prefill
        return 1e3 * cycles / program.machine.clock_hz

    return figure


def generation_rate(prompt: int, tokens: int) -> Figure:
    """Tokens a second of a generation after a prompt."""

    def figure(program: Program) -> float:
        rate = generation_cycles(program, prompt, tokens).per_second(program.machine.clock_hz)
        assert rate is not None
        return rate

    return figure


def layers_rate(prompt: int, tokens: int) -> Figure:
    """The same of the layers alone: no final norm, no head, no sampling."""

    def figure(program: Program) -> float:
        positions = np.arange(prompt, prompt + tokens)
        cycles = token_cycles(program, positions, sampled=False).period
        return program.machine.clock_hz / float(cycles.mean())

    return figure


# --- both networks, and the bound ---------------------------------------------------------------


def network_text(target: Target) -> str:
    """Latencies of distances: what a target's geometry gives, and a register in each unit."""
    registers = target.with_options([REGISTERS])
    parts: list[str] = []
    for name in ("broadcast", "reduce", "vector_reduce", "sample"):
        full = f"latency.{name}"
        low, high = target.wire_ends[full]
        ends = f"{low} to {high}; " if low != high else ""
        parts.append(f"`{name}` {target[full]} ({ends}{registers[full]})")
    return (
        "Latencies of distances follow from the die, "
        f"{target.number('area.die_mm2'):,.4g} mm2, in cycles: {', '.join(parts)}. In brackets, "
        "where they differ, those with wires and adders at the ends of their ranges, then those "
        "with a register in each unit or branching on the way."
    )


def with_registers(what_if: WhatIf, questions: Questions) -> list[Row]:
    """The figures with a register in each unit of the network, as was assumed before."""
    program = what_if.program((REGISTERS,))
    assert program is not None
    note = "a register in each unit or branching of the network"
    return [
        Row(name, goal, figure(program), form, note)
        for name, (goal, figure, form) in questions.items()
    ]


def bound_rate(
    what_if: WhatIf, positions: Sequence[int], settings: Sequence[str] = (), *, head: bool = True
) -> float:
    """The rate of the latency bound on the average of some positions, tokens a second."""
    chain = what_if.chain(settings)
    cycles = [chain.at(position + 1, head=head).exact for position in positions]
    return what_if.target(settings).integer("clock.frequency_hz") * len(cycles) / sum(cycles)


def bound_rows(
    what_if: WhatIf, name: str, goal: float, positions: Sequence[int], *, head: bool = True
) -> list[Row]:
    """The latency bound of a rate, with wires and with a register in each unit."""
    note = "latency bound: no order of these operators is faster (docs/performance.md)"
    return [
        Row(name, goal, bound_rate(what_if, positions, settings, head=head), whole, note + more)
        for settings, more in (((), ""), ((REGISTERS,), "; a register in each unit"))
    ]


# --- what assumed parameters can do -------------------------------------------------------------


def knobs(target: Target) -> list[Knob]:
    """The numbers of a target that are assumed and that cycles may hang on."""
    found: list[Knob] = []
    for name, one in target.parameters.items():
        value = one.value
        if one.origin != "assumed" or one.range is None or name.startswith(STILL):
            continue
        if isinstance(value, int | float) and is_settable(name, target.parameters):
            low, high = (float(end) for end in one.range if is_number(end))
            found.append(Knob(name, float(value), low, high, isinstance(value, int)))
    return found


def choices(target: Target) -> dict[str, list[str]]:
    """For each assumed format or policy of a target the other choices."""
    return {
        name: [str(other) for other in one.range if other != one.value]
        for name, one in target.parameters.items()
        if one.origin == "assumed"
        and isinstance(one.value, str)
        and one.range is not None
        and is_settable(name, target.parameters)
        and name not in FIXED
    }


def ask(what_if: WhatIf, questions: Questions) -> list[Answer]:
    """What each assumed parameter can do to some figures of a model."""
    return [_answer(what_if, name, *question) for name, question in questions.items()]


def _answer(what_if: WhatIf, name: str, goal: float, figure: Figure, form: Form) -> Answer:
    target = what_if.target()

    def at(settings: Sequence[str]) -> float | None:
        program = what_if.program(settings)
        return None if program is None else figure(program)

    def moved(knob: Knob, value: float) -> float | None:
        return at(() if value == knob.value else (knob.setting(value),))

    own = at(())
    assert own is not None
    reaches: dict[str, Reach] = {}
    for knob in knobs(target):
        reaches[knob.name] = reach(knob, lambda value, knob=knob: moved(knob, value), goal)
    best = together(reaches.values(), goal)
    settings = [reaches[name].knob.setting(value) for name, value in best.items()]
    others = {
        policy: {one: at((f"{policy}={one}",)) for one in names}
        for policy, names in choices(target).items()
    }
    return Answer(name, goal, own, form, reaches, others, at(settings))
