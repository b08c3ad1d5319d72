"""What simulating the hardware has to do, said before minutes of silence."""

from __future__ import annotations

from collections.abc import Iterator

from intaglio.backend.images.read import Images
from intaglio.runtime.loaded_model import LoadedModel
from intaglio.runtime.reports.timing import token_cycles
from intaglio.runtime.reports.wording import counted

LARGE = 8192
"""Multipliers of a chip above which a user is told of smaller ones; a mini target has some 500."""


def work_lines(chip: LoadedModel, engine: str, tokens: int) -> Iterator[str]:
    """The work of some tokens from position 0 on, as lines for people; nothing is guessed.

    Args:
        chip: the compiled model.
        engine: `rtl` or `verilator`.
        tokens: how many at most, the prompt's included.
    """
    program = chip.program
    machine = program.machine
    last = min(tokens, program.capacity) - 1
    cycles = int(token_cycles(program, [last], ranks=chip.ranks).period[0])
    beats = sum(len(block.instructions) * len(block.instances) for block in program.blocks)
    multipliers = machine.tiles * machine.l_units * machine.lanes
    size = Images(program, chip.folder).size / 1e6
    yield (
        f"{engine}: builds the hardware ({multipliers:,} multipliers, {size:,.1f} MB of images) "
        "unless it is kept from before, and simulates every cycle"
    )
    yield (
        f"  at most {counted(last + 1, 'token')} of {beats:,} beats and up "
        f"to {cycles:,} cycles each"
    )
    if multipliers > LARGE:
        yield "  a chip of this size takes long to build and to run; targets called -mini are small"
