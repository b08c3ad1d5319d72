"""Cycles of tokens and generations against programs small enough to count by hand."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from intaglio.backend.program.program import Block, Instruction, Program, load_program
from intaglio.backend.target.target import load_target
from intaglio.dialects import formula, timeline
from intaglio.dialects.isa.cache import Append
from intaglio.dialects.isa.instruction import Instruction as Does
from intaglio.dialects.isa.matrix import Embed, Matvec
from intaglio.dialects.isa.vector import Sample
from intaglio.runtime.reports.timing import (
    GenerationCycles,
    critical_path,
    generation_cycles,
    spans,
    token_cycles,
)

DOES: dict[str, Does[str]] = {
    "embed": Embed(token="t", output="x", table="w"),
    "matvec": Matvec(input="x", output="y", weights="w", pre_shift=0),
    "append": Append(input="x", cache="k"),
    "sample": Sample(input="y", token="t"),
}


def instruction(
    opcode: str, queue: str, duration: str, waits: dict[str, int] | None = None
) -> Instruction:
    issue = timeline.Issue(queue, waits or {}, formula.parse(duration))
    return Instruction(DOES[opcode], [[]], issue, [], [])


def program(*blocks: Block) -> Program:
    machine = replace(load_target("roma-mini").machine(), issue=1)
    return Program(machine, "decode", 8, {}, {}, {}, blocks, [0], "logits", "next")


@pytest.fixture
def small() -> Program:
    """Embed 10; in two layers a product of 5 and an append of 3 + tokens; head of 20 and 4.

    Without the head: embed 1-11; layer 0: product 12-17, append 18-(21+t); layer 1: product
    18-23, append from max(22, 23+... ) on. The appends go on while the head runs.
    """
    return program(
        Block("embed", False, [{}], [instruction("embed", "matrix", "10")]),
        Block(
            "layer",
            False,
            [{}, {}],
            [
                instruction("matvec", "matrix", "5"),
                instruction("append", "kv", "3 + tokens", {"matrix": 1}),
            ],
        ),
        Block(
            "head",
            True,
            [{}],
            [
                instruction("matvec", "matrix", "20", {"matrix": 0}),
                instruction("sample", "vector", "4", {"matrix": 1}),
            ],
        ),
    )


def test_period_counts_everything_and_out_only_the_sample(small: Program):
    # Tokens cached: 1 at position 0. Appends: 18..22, then 1 + max(22, 23) = 24..28.
    cycles = token_cycles(small, [0], sampled=False)
    assert cycles.period.tolist() == cycles.out.tolist() == [28]
    # The head: product 24..44, sample 45..49.
    cycles = token_cycles(small, [0])
    assert cycles.period.tolist() == cycles.out.tolist() == [49]
    # At position 29 the appends take 33: 18..51 and 52..85, longer than the head.
    cycles = token_cycles(small, [29])
    assert cycles.out.tolist() == [49]
    assert cycles.period.tolist() == [85]


def test_positions_are_evaluated_at_once(small: Program):
    together = token_cycles(small, np.arange(40))
    for position in (0, 7, 29, 39):
        alone = token_cycles(small, position)
        assert together.period[position] == alone.period[0]
        assert together.out[position] == alone.out[0]


@pytest.mark.parametrize("prompt,tokens", [(1, 1), (1, 3), (4, 1), (20, 25)])
def test_generation_is_one_running_clock(small: Program, prompt: int, tokens: int):
    clock, outs = 0, []
    for position in range(prompt + tokens - 1):
        wanted = position >= prompt - 1
        cycles = token_cycles(small, [position], sampled=wanted)
        if wanted:
            outs.append(clock + int(cycles.out[0]))
        accepted, clock = clock, clock + int(cycles.period[0])
        if position == prompt - 1:
            last_accepted = accepted
    generation = generation_cycles(small, prompt, tokens)
    assert generation.prefill == outs[0]
    assert generation.tokens[0] == outs[0] - last_accepted
    assert list(generation.tokens[1:]) == np.diff(outs).tolist()
    assert len(generation.tokens) == tokens


def test_tokens_per_second_leaves_the_first_out():
    assert GenerationCycles(1000, (500, 100, 300)).per_second(10_000) == 50.0
    assert GenerationCycles(1000, (500,)).per_second(10_000) is None


def test_critical_path_adds_up_to_the_period(small: Program):
    path = critical_path(small, 29)
    opcodes = [small.blocks[s.block].instructions[s.instruction].opcode for s in path]
    assert opcodes == ["embed", "matvec", "append", "append"]
    for position in (0, 29):
        path = critical_path(small, position)
        total = sum(int(s.finish[0] - s.start[0]) + 1 for s in path)
        assert total == path[-1].finish[0] == token_cycles(small, [position]).period[0]


@pytest.mark.parametrize("name", ["llama", "phi"])
def test_agrees_with_what_the_compiler_states(compiled, name: str):
    out: Path = compiled(name)
    real = load_program(out)
    stated: dict[tuple[int, int, int], tuple[list[int], list[int]]] = {}
    count = len(real.positions)
    for number, block in enumerate(real.blocks):
        for index, one in enumerate(block.instructions):
            for instance in range(len(block.instances)):
                part = slice(instance * count, (instance + 1) * count)
                stated[number, instance, index] = list(one.start[part]), list(one.finish[part])
    found = {
        (block, span.instance, span.instruction): (span.start.tolist(), span.finish.tolist())
        for span, block in spans(real, real.positions)
    }
    assert found == stated
    for position in real.positions:
        path = critical_path(real, position)
        total = sum(int(s.finish[0] - s.start[0]) + real.machine.issue for s in path)
        assert total == token_cycles(real, [position]).period[0]
