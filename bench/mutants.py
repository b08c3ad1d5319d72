"""How many faults of a chip are seen: mutants of chip.mlir under `check`, plain and stressed.

    pip install pyosys z3-solver
    python test/models/make_models.py FOLDER tied    a small model: FOLDER/tied/model.onnx
    python bench/mutants.py                          100 faults of a small chip with adapter slots
    python bench/mutants.py MODEL --target T --set NAME=VALUE --slots 0 --count 30 --seed 7

Each fault changes a line of the hardware (`bench/mutant_text.py`). It is seen when 8 random tokens
show a difference to simulator or timeline, or when the rounds of `check --stress` do, which are run
for those that the tokens do not show. What survives both is put before Z3 (`bench/mutant_terms.py`)
and Yosys (`bench/mutant_proof.py`): is the module the same with the fault? Prints every fault by
name with what became of it, then the figures.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from pathlib import Path

import mutant_terms
import numpy as np
from mutant_proof import constant_inputs, unproven
from mutant_text import Mutant, mutants
from small_chip import SMALL

from intaglio.backend.compile import compile_model
from intaglio.backend.output.hardware_files import IR
from intaglio.backend.stages import Options
from intaglio.dialects.errors import CompilerBug
from intaglio.runtime.chip import Chip
from intaglio.runtime.engines.compare import compare_token
from intaglio.runtime.engines.rtl import RTLChip
from intaglio.runtime.engines.simulator import Simulator
from intaglio.runtime.judge.defaults import HARDWARE_TOKENS
from intaglio.runtime.judge.stress import ROUNDS, stress

DEMO = Path(__file__).parents[1] / "examples" / "demo" / "model" / "model.onnx"
_UNITS = {
    "l_unit": "matrix",
    "matrix_unit": "matrix",
    "h_unit": "attention_unit",
    "score_lane": "attention_unit",
    "sum_lane": "attention_unit",
    "vector_lane": "vector",
    "adapter_h_unit": "adapter_unit",
    "adapter_lane": "adapter_unit",
}
"""The unit around a module."""
TOKENS, STRESS, PROVED, ALIVE = "tokens", "stress", "the same", "SURVIVED"


def seen_by_tokens(chip: Chip, hardware: RTLChip, count: int) -> bool:
    """Whether random tokens show a difference."""
    simulator, rng = Simulator(chip.program, chip.folder), np.random.default_rng(1)
    for position in range(count):
        token = int(rng.integers(chip.program.vocabulary))
        if not compare_token(simulator, hardware, token, position).equal:
            return True
    return False


def fate(
    chip: Chip, mutant: Mutant, text: str, tokens: int, rounds: int, work: Path | None
) -> tuple[str, str]:
    """What becomes of a fault, and how."""
    other = mutant.of(text)
    try:
        hardware = RTLChip(chip.program, chip.folder, cache=False, opt=0, text=other)
        if seen_by_tokens(chip, hardware, tokens):
            return TOKENS, ""
        counts, difference = stress(chip, hardware, rounds=rounds)
    except CompilerBug as error:
        # A loop without a register, or a chip that does not come to an end.
        return TOKENS, str(error)[:60]
    if difference is not None:
        return STRESS, f"round {counts['stress_rounds'] + 1}: {difference.where}"
    if work is None:
        return ALIVE, "not put before a prover"
    fields = mutant_terms.fields_of(chip.program, chip.folder)
    if mutant_terms.unproven(text, other, mutant.module, fields) is None:
        return PROVED, f"by Z3, within {mutant.module}"
    inputs = constant_inputs(chip.program, chip.folder, text)
    said = ""
    for module in (mutant.module, _UNITS.get(mutant.module)):
        if module is not None:
            constant = inputs.get(module, {})
            found = unproven(text, other, module, constant, work / str(mutant.number))
            if found is None:
                return PROVED, f"by Yosys, within {module}"
            said = f"{module}: {found}"
    return ALIVE, said


def main() -> None:
    """See the top of the file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", nargs="?", type=Path, default=DEMO)
    parser.add_argument("--target", default="roma-mini")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--slots", type=int, default=4, help="rank of the adapter slots (4)")
    parser.add_argument("--context", type=int, default=16)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--tokens", type=int, default=HARDWARE_TOKENS)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--no-proofs", action="store_true", help="ask no prover")
    given = parser.parse_args()
    settings = tuple(given.set) or (SMALL if given.target == "roma-mini" else ())
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary) / "out"
        options = Options(
            given.target, settings, context=given.context, emit="hw", adapter_rank=given.slots
        )
        compile_model(given.model, out, options)
        chip = Chip(out)
        text = (out / IR).read_text()
        work = None if given.no_proofs else Path(temporary) / "proofs"
        fates: Counter[str] = Counter()
        for mutant in mutants(text, given.seed, given.count):
            kind, how = fate(chip, mutant, text, given.tokens, given.rounds, work)
            fates[kind] += 1
            print(f"{mutant.name} | {kind} | {how}", flush=True)
    plain = fates.total() - fates[TOKENS]
    print(f"\n{fates.total()} faults, seed {given.seed}")
    print(f"  survive {given.tokens} random tokens: {plain}")
    print(f"  survive --stress too: {plain - fates[STRESS]}")
    print(f"  of these proved to change nothing: {fates[PROVED]}, not proved: {fates[ALIVE]}")
    sys.exit(0 if fates[ALIVE] <= given.count // 100 else 1)


if __name__ == "__main__":
    main()
