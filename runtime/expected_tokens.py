"""What a chip answers to the first token of its test bench, by the simulator."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from intaglio.backend.program.program import Program
from intaglio.runtime.reports.timing import token_cycles

if TYPE_CHECKING:
    from intaglio.backend.testbench import Expected


def expected_tokens(program: Program, folder: Path) -> Sequence[Expected]:
    """Tokens and cycles of greedy decoding, without an adapter; see `backend.testbench`.

    Args:
        program: of a compiled model.
        folder: where its images are.
    """
    # Only where hardware is emitted, which a compile need not load otherwise.
    from intaglio.backend.testbench import FIRST_TOKEN, TOKENS, Expected
    from intaglio.runtime.engines.simulator import Simulator

    count = min(TOKENS, program.capacity)
    if program.vocabulary <= FIRST_TOKEN:
        return ()
    # In numpy: for a few tokens compiling the kernels would take longer than the tokens do.
    simulator = Simulator(program, folder, reference=True)
    cycles = token_cycles(program, np.arange(count)).out.tolist()
    found: list[Expected] = []
    token = FIRST_TOKEN
    for position in range(count):
        result = simulator.step(token, position)
        assert result is not None
        _, token = result
        found.append(Expected(token, cycles[position]))
    return found
