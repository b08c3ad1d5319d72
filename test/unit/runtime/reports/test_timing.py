"""Cycles of tokens and generations against programs small enough to count by hand."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from intaglio.backend.program.program import Block, Instruction, Program, load_program
from intaglio.backend.target.target import load_target
from intaglio.dialects import formula, timeline
from intaglio.dialects.fixed_point import Real
from intaglio.dialects.isa.beat import WHOLE, Beat
from intaglio.dialects.isa.cache import Append
from intaglio.dialects.isa.instruction import Instruction as Does
from intaglio.dialects.isa.matrix import Embed, Matvec
from intaglio.dialects.isa.vector import RMSNorm, Sample
from intaglio.runtime.reports.timing import (
    GenerationCycles,
    OnPath,
    Wait,
    critical_path,
    generation_cycles,
    spans,
    steps,
    token_cycles,
)

DOES: dict[str, Does[str]] = {
    "embed": Embed(token="t", output="x", table="w"),
    "matvec": Matvec(input="x", output="y", weights="w", pre_shift=0),
    "append": Append(input="x", cache="k"),
    "sample": Sample(input="y", token="t"),
    "norm": RMSNorm(input="y", output="x", gamma="g", eps=Real(1, -20), groups=1),
}


def instruction(
    opcode: str,
    queue: str,
    duration: str,
    waits: dict[str, int] | None = None,
    *,
    pace: str | None = None,
    reduces: str | None = None,
    beat: Beat = WHOLE,
) -> Instruction:
    pace_, reduces_ = (None if text is None else formula.parse(text) for text in (pace, reduces))
    issue = timeline.Issue(queue, waits or {}, formula.parse(duration), pace_, reduces_)
    return Instruction(DOES[opcode], [[]], issue, [], [], beat)


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


@pytest.fixture
def flowing() -> Program:
    """A product of two beats, each of which a pass takes that reduces, and the largest of both.

    The product: 1-8 and 4-11, its queue free at 4 and 7. The pass: 8-13, its reduction at 17, and
    11-16, its reduction at 20. The last pass needs both reductions: 20-25; `append`, which does not
    flow, needs its finish: 26-29.
    """

    def beat(number: int, ends: bool, of: int, of_pass: int = 0) -> Beat:
        return Beat(of_pass, number, 1, 0, ends, of)

    product = {"pace": "3", "duration": "7"}
    rows = {"pace": "1", "duration": "5", "reduces": "9"}
    taken = program(
        Block(
            "all",
            True,
            [{}],
            [
                instruction("matvec", "matrix", **product, beat=beat(0, False, 0)),
                instruction("matvec", "matrix", **product, beat=beat(1, True, 0)),
                instruction("norm", "vector", waits={"matrix": 1}, **rows, beat=beat(0, False, 1)),
                instruction("norm", "vector", waits={"matrix": 2}, **rows, beat=beat(1, False, 1)),
                instruction(
                    *("norm", "vector", "5", {"reductions": 2}),
                    pace="2",
                    beat=beat(0, True, 1, of_pass=1),
                ),
                instruction("append", "kv", "3", {"vector": 3}, beat=beat(0, True, 2)),
                instruction("sample", "vector", **rows, beat=beat(0, True, 3)),
            ],
        )
    )
    machine = replace(taken.machine, vector_reduce=2, sample=1, table_lookup=2)
    return replace(taken, machine=machine)


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


def test_beats_flow_and_the_token_is_out_after_the_lanes_have_compared(flowing: Program):
    found = [(s.start[0], s.finish[0], s.free[0], s.left) for s, _ in spans(flowing, [0])]
    assert [one[:3] for one in found] == [
        (1, 8, 4),
        (4, 11, 7),
        (8, 13, 9),
        (11, 16, 12),
        (20, 25, 22),
        (26, 29, 29),
        (22, 27, 23),
    ]
    assert [one[3] if one[3] is None else int(one[3][0]) for one in found] == [
        *(None, None, 17, 20, None, None, 31)
    ]
    cycles = token_cycles(flowing, [0])
    # The last reduction is there at 31; the sample finishes at 27, its token is out three later.
    assert (cycles.out.tolist(), cycles.period.tolist()) == ([30], [31])
    # A longer way to the port keeps the next token waiting.
    machine = replace(flowing.machine, sample=6)
    far = replace(flowing, machine=machine)
    cycles = token_cycles(far, [0])
    assert (cycles.out.tolist(), cycles.period.tolist()) == ([35], [35])
    check_path(far, 0)


def test_steps_tell_what_they_wait_for(flowing: Program):
    one, two, three, four, last, alone, sample = steps(flowing, 0)
    assert one.before is None and one.waits == ()
    # The pace of the first leaves the queue free, not its finish.
    assert two.before == Wait(0, 4)
    assert three.waits == (Wait(0, 8),) and four.waits == (Wait(1, 11),)
    assert last.waits == (Wait(3, 20),) and last.before == Wait(3, 12)
    assert alone.waits == (Wait(4, 25),) and sample.before == Wait(4, 22)
    assert [step.whole(flowing)[2] for step in (one, two, three, four, last, alone, sample)] == [
        *(0, 0, 1, 1, 1, 2, 3)
    ]
    opcodes = [one.opcode for one in flowing.blocks[0].whole]
    assert opcodes == ["matvec", "rms_norm", "append", "sample"]


def check_path(real: Program, position: int) -> list[OnPath]:
    """Each on the path starts for the one before it, and the cycles add up."""
    path, found = critical_path(real, position), steps(real, position)
    ready = 0
    numbers = {step.span.at: number for number, step in enumerate(found)}
    before: int | None = None
    for one in path:
        step = found[numbers[one.span.at]]
        start, issue = int(one.span.start[0]), real.machine.issue
        flows = step.taken(real).issue.pace is not None
        assert start == ready + one.issue and one.cycles >= 0
        # A queue that flows knows what comes, but what those who do not flow will finish.
        assert one.issue == issue if not flows or before is None else one.issue in (0, issue)
        waits = (*step.waits, *([] if step.before is None else [step.before]))
        assert before is None or (before, ready) in [(wait.number, wait.cycle) for wait in waits]
        before, ready = numbers[one.span.at], start + one.cycles
    assert ready == sum(one.cycles + one.issue for one in path)
    assert ready == token_cycles(real, [position]).period[0]
    return path


def test_critical_path_of_beats(flowing: Program):
    path = check_path(flowing, 0)
    cycles = [(one.span.instruction, one.cycles, one.issue) for one in path]
    # Product to 4, product to 11, pass and its reduction to 20, pass to 22, sample to 31.
    assert cycles == [(0, 3, 1), (1, 7, 0), (3, 9, 0), (4, 2, 0), (6, 9, 0)]


def test_critical_path_adds_up_to_the_period(small: Program):
    for position, wanted in (
        (0, ["embed", "matvec", "matvec", "matvec", "sample"]),
        (29, ["embed", "matvec", "append", "append"]),
    ):
        path = check_path(small, position)
        blocks = [small.blocks[one.span.block] for one in path]
        opcodes = [
            b.instructions[s.span.instruction].opcode for b, s in zip(blocks, path, strict=True)
        ]
        assert opcodes == wanted
        for one in path:
            assert one.cycles == one.span.finish[0] - one.span.start[0] and one.issue == 1


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
        check_path(real, position)
