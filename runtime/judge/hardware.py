"""Hardware against simulator and timeline: every value and every cycle of some tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from intaglio.runtime.engines.compare import compare_token
from intaglio.runtime.engines.in_flight import compare_in_flight
from intaglio.runtime.engines.rtl import RTLChip
from intaglio.runtime.loaded_model import LoadedModel


def check_hardware(
    chip: LoadedModel,
    engine: str,
    ids: Sequence[int],
    progress: Callable[[str], None] = lambda message: None,
    *,
    stress: bool = False,
) -> dict[str, Any]:
    """Runs tokens on the simulator and on the hardware, and compares all that the two say.

    Compared are, for every beat of an instruction, what it wrote, its start and finish cycle, and
    when its reduction is there; after every token logits, the next token, saturations and the
    content of all caches. Where the chip has contexts, the same tokens are run again with 2, 3, ...
    of them in flight.

    Args:
        chip: the compiled model.
        engine: `rtl` or `verilator`.
        ids: tokens, from position 0 on.
        progress: called with a line for each token.
        stress: if they are equal, go on with extreme contents (`runtime/judge/stress.py`).

    Returns:
        `bit_exact` and `cycle_exact`, `hardware_tokens`, `in_flight` (the most at once),
        `instructions_compared` (beats),
        `values_compared`, and `hardware_difference`: the first one (instruction, ONNX node, unit,
        expected and seen), or None. With `stress` also the counts of `runtime.judge.stress.stress`;
        what that finds is in the other keys.
    """
    hardware = chip.machine(engine)
    assert isinstance(hardware, RTLChip)
    simulator = chip.simulator
    simulator.reset()
    hardware.reset()
    instructions = values = tokens = 0
    difference = None
    for position, token in enumerate(ids):
        progress(f"token {position + 1} of {len(ids)} on {engine}")
        one = compare_token(simulator, hardware, token, position)
        instructions += one.instructions
        values += one.values
        tokens += 1
        if one.difference is not None:
            difference = one.difference
            break
    contexts = chip.program.machine.contexts
    for count in range(2, contexts + 1):
        if difference is not None:
            break
        progress(f"{len(ids)} tokens on {engine}, {count} in flight")
        one = compare_in_flight(simulator, hardware, ids, count)
        instructions += one.instructions
        values += one.values
        difference = one.difference
    counts: dict[str, int] = {}
    if stress and difference is None:
        from intaglio.runtime.judge.stress import stress as compare_limits

        counts, difference = compare_limits(chip, hardware, progress)
    is_cycle = difference is not None and difference.is_cycle
    return {
        "bit_exact": difference is None or is_cycle,
        "cycle_exact": difference is None or not is_cycle,
        "hardware_tokens": tokens,
        "in_flight": contexts,
        "instructions_compared": instructions,
        "values_compared": values,
        "hardware_difference": None if difference is None else str(difference),
        **counts,
    }
