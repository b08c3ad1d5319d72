"""Hardware against simulator at its limits: what `check --stress` does.

Random tokens of a real model hardly ever saturate a sum, and constants of instructions never move,
so much of a chip could be wrong unseen. Here every round gives the running hardware and the
simulator the same extreme contents (`runtime/judge/stress_content.py`): ROM, descriptors of
instructions, caches, states, an adapter through its port, a position, and, between instructions,
what they wrote. Then tokens are compared as ever: each value, each cycle. The ports outside get
what they must ignore or wait for: tokens and words while a token is worked on, resets within one, a
result without a taker.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np

from intaglio.backend.images.read import Images
from intaglio.backend.program.program import Instruction
from intaglio.dialects.errors import UserError
from intaglio.dialects.fixed_point import Scale
from intaglio.dialects.isa.attention import OverTokens
from intaglio.dialects.isa.cache import Append
from intaglio.dialects.isa.recurrence import LinearAttention
from intaglio.dialects.isa.vector import Quantize
from intaglio.dialects.memories import VECTORS
from intaglio.dialects.semantics import Quantized
from intaglio.runtime.engines.compare import Difference, compare_token
from intaglio.runtime.engines.rtl import RTLChip
from intaglio.runtime.engines.simulator import Simulator
from intaglio.runtime.judge import stress_content
from intaglio.runtime.judge.stress_content import ChangedImages, Random
from intaglio.runtime.loaded_model import LoadedModel

SEED = 20241
"""Of all that is drawn."""
ROUNDS = 48
"""Contents that are tried."""
_COUNTS = ("rounds", "tokens", "instructions", "values", "saturations")
_AFTER_RESET = 64
"""Cycles after a reset in which nothing happens: what went into a pipeline has come out of it."""
_RESETS = 3
"""Tokens that are given up, one after another."""
_BESIDE = 24
"""A reset hits what happens within so many cycles of an instruction's start or finish."""
_SILENT = ("event_any", "next_valid", "busy", "saturations")
ENGINE = "rtl"
"""The engine whose registers can be written."""


def check_engine(engine: str) -> None:
    """Whether an engine can be stressed.

    Raises:
        UserError: it cannot.
    """
    if engine != ENGINE:
        raise UserError(
            f"--stress writes memories and registers of the running hardware, which engine "
            f"'{engine}' does not let it",
            hint=f"--engine {ENGINE}",
        )


def stress(
    chip: LoadedModel,
    hardware: RTLChip,
    progress: Callable[[str], None] = lambda message: None,
    rounds: int | None = None,
    seed: int = SEED,
) -> tuple[dict[str, int], Difference | None]:
    """Compares hardware and simulator with extreme contents; both are as before afterwards.

    Args:
        chip: the compiled model.
        hardware: its hardware on the engine `rtl`.
        progress: called with a line for each round.
        rounds: how many contents; `ROUNDS` by default.
        seed: of what is drawn.

    Returns:
        `stress_rounds`, `stress_tokens`, `stress_instructions`, `stress_values` and
        `stress_saturations`: what was compared, and how many values did not fit; and the first
        difference, or None.
    """
    found: dict[str, int] = dict.fromkeys(_COUNTS, 0)
    difference: Difference | None = None
    rounds = ROUNDS if rounds is None else rounds
    try:
        for number in range(rounds):
            progress(f"stress {number + 1} of {rounds}")
            one = _Round(chip, hardware, np.random.default_rng([seed, number]))
            difference = one.run(found)
            found["rounds"] += 1
            if difference is not None:
                where = f"{difference.where} (stress round {number + 1} of seed {seed})"
                difference = replace(difference, where=where)
                break
    finally:
        hardware.fill(chip.program, Images(chip.program, chip.folder), chip.folder)
        hardware.reset()
        chip.refill(hardware)
    return {f"stress_{name}": count for name, count in found.items()}, difference


class _Round:
    """Contents for hardware and simulator, and the tokens that are compared with them."""

    def __init__(self, chip: LoadedModel, hardware: RTLChip, rng: Random) -> None:
        self.hardware, self.rng = hardware, rng
        self.program = program = stress_content.changed_program(chip.program, rng)
        images = ChangedImages(program, chip.folder, rng)
        self.simulator = Simulator(program, chip.folder, images=images)
        hardware.fill(program, images, chip.folder)
        hardware.power_up(rng)
        image = stress_content.adapter(program, rng)
        if program.sites:
            # Without an adapter the first token comes right after the reset.
            hardware.load_adapter(image)
            self.simulator.load_adapter(image)
        self._early: Difference | None = None
        match int(rng.integers(3)):
            case 0:
                for _ in range(_RESETS):
                    self._early = self._early or self._reset_within_a_token()
            case 1:
                self._early = self._stalled()
            case _:
                pass
        for cache in program.caches.values():
            store = self.simulator.stores[cache.name]
            store.append(stress_content.cached(rng, cache), 0)
            hardware.write_store(store)
        for name, state in program.states.items():
            value = stress_content.numbers(rng, (state.size,))
            self.simulator.states[name] = value
            hardware.write_state(name, value)
        for name, matrices in program.matrices.items():
            content = stress_content.remembered(rng, matrices)
            self.simulator.matrices[name] = content
            hardware.write_matrices(name, content)
        self.position = self._position()
        hardware.jump(self.position)

    def _position(self) -> int:
        """Of the first token: an end, or beside a place where a block or a window ends."""
        capacity, machine = self.program.capacity, self.program.machine
        windows = {
            one.does.window
            for block in self.program.blocks
            for one in block.instructions
            if isinstance(one.does, OverTokens) and one.does.window
        }
        steps = (machine.h_units, machine.vector_lanes, machine.kv_on_die or capacity, *windows)
        places = {0, 1, capacity - 2, capacity - 1, *(s + d for s in steps for d in (-1, 0, 1))}
        usable = sorted(place for place in places if 0 <= place < capacity)
        if self.rng.integers(3):
            return int(self.rng.choice(usable))
        return int(self.rng.integers(capacity))

    def _reset_within_a_token(self) -> Difference | None:
        """A token that is given up: nothing goes on, and nothing is said, after the reset."""
        hardware, model = self.hardware, self.hardware.model
        hardware.accept(self._token(), 0, True)
        hardware.advance(self._moment())
        model.set("rst", 1)
        model.step(1)
        model.set("rst", 0)
        before = self._contents()
        said = model.run(_AFTER_RESET).outputs
        difference = _first_wrong(
            "after a reset within a token",
            *((name, 0, int(said[name].max())) for name in _SILENT),
            *((f"the memory {name}", 1, int(self._same(name, before))) for name in before),
        )
        hardware.reset()
        return difference

    def _moment(self) -> int:
        """A cycle within a token at position 0, as a rule beside an instruction's start or end."""
        steps, rng = self.hardware.schedule(0, True), self.rng
        end = max(step.end for step in steps)
        if not rng.integers(4):
            return int(rng.integers(1, end))
        event = steps[int(rng.integers(len(steps)))].event
        near = int(rng.choice([event.start, event.finish])) + int(rng.integers(-_BESIDE, _BESIDE))
        return min(max(1, near), end - 1)

    def _same(self, name: str, before: dict[str, bytes]) -> bool:
        return self.hardware.memory(name).tobytes() == before[name]

    def _token(self) -> int:
        last = self.program.vocabulary - 1
        return int(self.rng.choice([0, last, *self.rng.integers(0, last + 1, 2).tolist()]))

    def run(self, found: dict[str, int]) -> Difference | None:
        """Compares some tokens and counts; the first difference."""
        if (difference := self._early) is not None:
            return difference
        before = self._contents()
        rng, capacity = self.rng, self.program.capacity
        for position in range(self.position, min(self.position + 2, capacity)):
            sample = bool(rng.integers(4))
            one = compare_token(
                self.simulator,
                self.hardware,
                self._token(),
                position,
                sample,
                change=self._change,
                disturb=self._disturb,
            )
            found["tokens"] += 1
            found["instructions"] += one.instructions
            found["values"] += one.values
            if one.difference is not None:
                return one.difference
            if (difference := self._ports() or self._idle(before)) is not None:
                return difference
        found["saturations"] += self.simulator.saturations
        return None

    def _ports(self) -> Difference | None:
        """Whether the chip is ready, and the vector memory can be read from outside."""
        model, memory = self.hardware.model, self.hardware.memory(VECTORS)
        row = int(self.rng.integers(len(memory)))
        model.set("vector_row", row)
        model.step(1)
        content = int.from_bytes(np.ascontiguousarray(memory[row]).tobytes(), "little")
        return _first_wrong(
            "after the token",
            (f"row {row} at the port vector_data", content, model.get("vector_data")),
            ("token_ready", 1, model.get("token_ready")),
            ("next_valid", 0, model.get("next_valid")),
            ("busy", 0, model.get("busy")),
        )

    def _stalled(self) -> Difference | None:
        """A result that nobody takes for a while waits, and so does the next token."""
        hardware, model = self.hardware, self.hardware.model
        model.set("next_ready", 0)
        hardware.accept(self._token(), 0, True)
        hardware.advance(hardware.period(0, True) + 1)
        token = model.get("next_token")
        model.set("token_valid", 1)
        ready = 0
        for _ in range(int(self.rng.integers(4))):
            ready |= model.get("token_ready")
            model.step(1)
        seen = [
            ("token_ready", 0, ready),
            ("next_valid", 1, model.get("next_valid")),
            ("next_token", token, model.get("next_token")),
        ]
        model.set("token_valid", 0)
        model.set("next_ready", 1)
        seen.append(("token_ready with a taker", 1, model.get("token_ready")))
        model.step(1)
        seen.append(("next_valid when taken", 0, model.get("next_valid")))
        return _first_wrong("a result that waits", *seen)

    def _contents(self) -> dict[str, bytes]:
        """The contents of all memories."""
        names = self.hardware.model.memories
        return {name: self.hardware.memory(name).tobytes() for name in names}

    def _idle(self, start: dict[str, bytes]) -> Difference | None:
        """Whether ROM is as before the tokens, and an idle chip and its reset write nothing."""
        now, model = self._contents(), self.hardware.model
        model.step(int(self.rng.integers(1, 4)))
        later = self._contents()
        for name in later:
            if later[name] != now[name]:
                where = "no token is worked on"
            elif _is_rom(name) and later[name] != start[name]:
                where = "in ROM"
            else:
                continue
            return Difference(where, f"the memory {name}", "as before", "another")
        return None

    def _change(self, one: Instruction, value: Any) -> Any:
        if not one.writes:
            return None
        if one.beat.peak:
            # Its largest magnitude was taken while it was written.
            return None
        name = one.writes[0]
        if not isinstance(self.program.buffers[name].type, stress_content.CHANGED):
            return None
        if isinstance(value, Quantized):
            # A scale that is known at compile time is nobody's to change.
            is_static = isinstance(one.does, Quantize) and one.does.scale_of is not None
            is_cached = name in self._appended
            return None if is_static else stress_content.quantized(value, is_cached, self.rng)
        if isinstance(value, Scale):
            return stress_content.factor(value, self.rng)
        return stress_content.fixed(np.shape(value), self.rng)

    @cached_property
    def _appended(self) -> frozenset[str]:
        """Buffers that go into caches, and keys, whose scales go into those of states."""
        every = [one.does for block in self.program.blocks for one in block.instructions]
        cached = {one.input for one in every if isinstance(one, Append)}
        return frozenset(cached | {one.key for one in every if isinstance(one, LinearAttention)})

    def _disturb(self) -> None:
        """Inputs that mean nothing while a token is worked on."""
        model, rng = self.hardware.model, self.rng
        for name, width in (("token", 32), ("sample", 1), ("restart", 1)):
            model.set(name, int(rng.integers(1 << width)))
        if (port := model.ports.get("load_data")) is None:
            return
        steps = self.hardware.schedule(self.hardware.position - 1, True)
        soon = min(step.event.finish for step in steps)
        model.set("load_valid", 1)
        for cycle in range(2, soon):
            model.set("load_address", int(rng.integers(1 << model.ports["load_address"].width)))
            data = int.from_bytes(rng.bytes(-(-port.width // 8)), "little")
            model.set("load_data", data & ((1 << port.width) - 1))
            self.hardware.advance(cycle)
        model.set("load_valid", 0)


def _first_wrong(where: str, *found: tuple[str, int, int]) -> Difference | None:
    """The first of some (what, wanted, seen) that is not as wanted."""
    for what, wanted, seen in found:
        if wanted != seen:
            return Difference(where, what, str(wanted), str(seen))
    return None


def _is_rom(name: str) -> bool:
    """Whether nothing ever writes a memory of the chip, by its path."""
    return name == "constants" or name.startswith(("sequencer_", "matrix/"))
