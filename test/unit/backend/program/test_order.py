"""Edited programs: a wait that is weakened is refused, or a replay of all cycles shows no harm."""

from __future__ import annotations

import copy
import json
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from intaglio.backend.compile import compile_model
from intaglio.backend.program.program import PROGRAM, Program, load_program, program_of
from intaglio.backend.stages import Options
from intaglio.dialects import hazards, timeline
from intaglio.dialects.errors import UserError
from intaglio.dialects.isa.queues import reductions_of

DEMO = Path(__file__).parents[4] / "examples/demo/model/model.onnx"
RANK = 4


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """program.json of the demo model, with slots for adapters."""
    return compiled_demo(tmp_path_factory.mktemp("order") / "out")


@pytest.fixture(scope="module")
def one_scale(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The same where vectors and heads have one scale each, from their largest."""
    out = tmp_path_factory.mktemp("one_scale") / "out"
    return compiled_demo(out, "activations=int8", "kv=int8")


def compiled_demo(out: Path, *settings: str) -> dict[str, Any]:
    compile_model(DEMO, out, Options("roma-mini", settings, emit="program", adapter_rank=RANK))
    return json.loads((out / PROGRAM).read_text())


def edited(content: dict[str, Any], tmp_path: Path) -> Program:
    """What reads program.json makes of an edited one; cycles that were stated are left out."""
    content = copy.deepcopy(content)
    for one in (one for block in content["blocks"] for one in block["instructions"]):
        one["start"] = one["finish"] = []
    (tmp_path / PROGRAM).write_text(json.dumps(content))
    return load_program(tmp_path)


def with_a_weaker_wait(content: dict[str, Any], seed: int, *, new: bool = False) -> dict[str, Any]:
    """A copy of which one wait is gone or counts fewer instructions.

    Args:
        content: of program.json.
        seed: which wait.
        new: only a wait for more than all before it in the queue.
    """
    rng = random.Random(seed)
    content = copy.deepcopy(content)
    waits: list[tuple[dict[str, int], str, int]] = []
    for block in content["blocks"]:
        most: dict[tuple[str, str], int] = {}
        instructions = block["instructions"]
        issued = Counter(one["queue"] for one in instructions)
        issued += Counter(reductions_of(one["queue"]) for one in instructions if "reduces" in one)
        for one in instructions:
            for queue, count in one["waits"].items():
                at = one["queue"], queue
                if not new or at not in most or count > most[at]:
                    # In a single instance all before it is the least.
                    least = -issued[queue] if len(block["instances"]) > 1 else 0
                    waits.append((one["waits"], queue, least))
                most[at] = max(count, most.get(at, count))
    where, queue, least = rng.choice(waits)
    if where[queue] > least and rng.random() < 0.5:
        where[queue] = rng.randrange(least, where[queue])
    else:
        del where[queue]
    return content


def conflicts(program: Program, positions: list[int], ranks: timeline.Ranks) -> Iterator[str]:
    """Reads and writes that come too early at some of the positions."""
    blocks = [block.timing for block in program.blocks]
    spans = timeline.simulate(blocks, program.machine.issue, positions, ranks)
    written: dict[object, dict[str, np.ndarray]] = {}
    touched: dict[object, dict[str, np.ndarray]] = {}
    left: dict[tuple[int, int, int], np.ndarray] = {}

    def elements(names: Iterable[str], access: hazards.Access) -> set[object]:
        places = ((name, program.span(name)) for name in names)
        return {
            (one.memory, i)
            for name, one in places
            if one
            for i in range(*access.places(name, (one.first, one.last)))
        }

    for span in spans:
        block = program.blocks[span.block]
        one, bound = block.instructions[span.instruction], block.instances[span.instance]
        access = program.accesses[span.block][span.instruction]
        reads, writes = elements(access.reads, access), elements(access.writes, access)
        for slots, found in ((access.read_caches, reads), (access.written_caches, writes)):
            for slot in slots:
                heads = program.caches[bound.get(slot, slot)].heads
                found |= {(bound.get(slot, slot), head) for head in range(heads)[
                    slice(*access.parts.get(slot, (0, heads)))]}  # fmt: skip
        if program.machine.shared_arrays and one.queue in ("matrix", "attention"):
            writes.add("adders")
        # A queue that flows takes and leaves things in order: there only results are waited for.
        flows = one.issue.pace is not None
        for before, what, own in ((written, reads, True), (touched, writes, not flows)):
            for place in what & before.keys():
                for queue, finish in before[place].items():
                    if (own or queue != one.queue) and (finish > span.start).any():
                        yield f"{one.opcode} {span}"
        # Largest magnitudes are those of values, in whatever instance.
        at, then = (
            peak or (span.block, span.instance) for peak in (access.uses_peak, access.leaves_peak)
        )
        # What is reduced may be read later than at the start.
        by = span.start + access.early
        if any((left[at, entry] > by).any() for entry in range(*access.uses)):
            yield f"{one.opcode} {span} and what was reduced"
        if span.left is not None:
            left |= dict.fromkeys([(then, entry) for entry in range(*access.leaves)], span.left)
        for before, what in ((written, writes), (touched, reads | writes)):
            for place in what:
                own_queue = before.setdefault(place, {})
                last = own_queue.get(one.queue, span.finish)
                own_queue[one.queue] = np.maximum(last, span.finish)


def most_ranks(program: Program) -> timeline.Ranks:
    """The largest rank at every product with a slot."""
    return {
        (number, instance, i): RANK
        for number, block in enumerate(program.blocks)
        for instance, bound in enumerate(block.instances)
        for i, one in enumerate(block.instructions)
        if bound.get(one.does.uses.get("weights", "")) in program.slots
    }


@pytest.mark.parametrize("seed", range(10))
def test_a_weaker_wait_is_refused_or_does_no_harm(
    demo: dict[str, Any], tmp_path: Path, seed: int
) -> None:
    content = with_a_weaker_wait(demo, seed)
    try:
        program = edited(content, tmp_path)
    except UserError as error:
        assert "no wait orders them" in error.what or "reductions" in error.what
        return
    positions = [0, 1, 100, program.capacity - 1]
    for ranks in ({}, most_ranks(program)):
        assert not list(conflicts(program, positions, ranks))


def test_what_the_compiler_writes_passes(demo: dict[str, Any], tmp_path: Path) -> None:
    program = edited(demo, tmp_path)
    assert not list(conflicts(program, [0, 7, program.capacity - 1], most_ranks(program)))


def test_most_weaker_waits_are_refused(demo: dict[str, Any], tmp_path: Path) -> None:
    """What passes is not much: another wait, or the order of a queue, says the same. Beats repeat
    waits of those before them, so only new ones are weakened."""
    refused = 0
    for seed in range(40):
        try:
            edited(with_a_weaker_wait(demo, seed, new=True), tmp_path)
        except UserError:
            refused += 1
    assert refused >= 20


def test_the_largest_score_is_waited_for(demo: dict[str, Any], tmp_path: Path) -> None:
    """It comes after the scores: what takes it must not start with them."""
    content = copy.deepcopy(demo)
    layer = content["blocks"][1]["instructions"]
    passes = [
        one for one in layer if one["opcode"] == "softmax_places" and one["beat"].get("pass") == 1
    ]
    assert passes and all(one["waits"]["attention_peaks"] > 0 for one in passes)
    waits = passes[-1]["waits"]
    waits["attention"] = waits.pop("attention_peaks")
    with pytest.raises(
        UserError, match=r"'softmax_places' .* may read .* before 'query_key' .* written"
    ):
        edited(content, tmp_path)


def test_the_message_names_both(demo: dict[str, Any], tmp_path: Path) -> None:
    content = copy.deepcopy(demo)
    layer = content["blocks"][1]
    first = layer["instructions"][0]
    assert first["opcode"] == "tap" and first["waits"].pop("matrix") <= 0
    with pytest.raises(UserError) as caught:
        edited(content, tmp_path)
    error = caught.value
    assert f"instruction 0 of block {layer['name']}, instance 0, queue vector" in error.what
    assert "before 'embed' (instruction 0 of block part0, instance 0, queue matrix)" in error.what
    assert str(error.file).endswith(PROGRAM) and error.node == first["onnx"][0][-1]


@pytest.mark.parametrize("key", ["start", "finish"])
def test_stated_cycles_that_do_not_follow(demo: dict[str, Any], tmp_path: Path, key: str) -> None:
    content = copy.deepcopy(demo)
    content["blocks"][1]["instructions"][3][key][5] += 1
    (tmp_path / PROGRAM).write_text(json.dumps(content))
    with pytest.raises(UserError, match=f"states {key} .* its duration and waits make it"):
        load_program(tmp_path)


def test_a_changed_duration_contradicts_what_is_stated(
    demo: dict[str, Any], tmp_path: Path
) -> None:
    content = copy.deepcopy(demo)
    content["blocks"][1]["instructions"][0]["duration"] = "1"
    (tmp_path / PROGRAM).write_text(json.dumps(content))
    with pytest.raises(UserError, match="states finish"):
        load_program(tmp_path)
    assert program_of(content).blocks[1].instructions[0].issue.duration(tokens=1, rank=0) == 1


@pytest.mark.parametrize(
    ("chip", "key", "by", "queues"),
    [
        ("demo", "duration", -1, {"matrix", "vector", "attention", "kv"}),
        ("demo", "duration", 1, {"matrix", "vector", "attention", "kv"}),
        # Heads are appended one by one, as their codes come.
        ("demo", "pace", -1, {"matrix", "vector", "attention"}),
        # What products leave, and largest scores, are there long before they are waited for.
        ("demo", "reduces", -1, {"vector"}),
        ("one_scale", "duration", -1, {"matrix", "vector", "attention", "kv"}),
        ("one_scale", "duration", 1, {"matrix", "vector", "attention", "kv"}),
        ("one_scale", "pace", -1, {"matrix", "vector", "attention", "kv"}),
        ("one_scale", "reduces", -1, {"vector", "attention"}),
    ],
)
def test_one_cycle_off_is_named(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    chip: str,
    key: str,
    by: int,
    queues: set[str],
) -> None:
    """A latency, a pace, or what is left after it: of each queue the first beat of a layer on which
    a stated cycle hangs."""
    given = request.getfixturevalue(chip)
    program, content = program_of(given), copy.deepcopy(given)
    issue = program.machine.issue
    timing = [block.timing for block in program.blocks]
    cycles = timeline.tables(timing, issue, 0)[1]
    found: set[str] = set()
    for number, one in enumerate(timing[1].issues):
        was = getattr(one, key)
        if was is None or one.queue in found:
            continue
        issues = [*timing[1].issues]
        issues[number] = replace(one, **{key: was + by})
        mutated = [timing[0], replace(timing[1], issues=issues), *timing[2:]]
        changed = timeline.tables(mutated, issue, 0)[1]
        if all(np.array_equal(*both) for both in zip(cycles, changed, strict=True)):
            continue
        found.add(one.queue)
        beats = content["blocks"][1]["instructions"]
        stated = beats[number][key]
        beats[number][key] = str(was + by)
        (tmp_path / PROGRAM).write_text(json.dumps(content))
        beats[number][key] = stated
        with pytest.raises(UserError, match="its duration and waits make it") as caught:
            load_program(tmp_path)
        if key == "duration":
            assert f"(instruction {number} of block {timing[1].name}," in caught.value.what
    assert found == queues


@pytest.mark.parametrize(
    ("target", "name"), [("tom-mini", "ternary"), ("bitrom-mini", "ternary"), ("hc1-mini", "llama")]
)
def test_other_chips(model: Callable[[str], Path], tmp_path: Path, target: str, name: str) -> None:
    """Power, external memory, shared adders: what is written passes, few waits can be missed."""
    compile_model(model(name), tmp_path / "out", Options(target, context=32, emit="program"))
    content = json.loads((tmp_path / "out" / PROGRAM).read_text())
    assert not list(conflicts(edited(content, tmp_path), [0, 5, 31], {}))
    refused = 0
    for seed in range(12):
        try:
            program = edited(with_a_weaker_wait(content, seed, new=True), tmp_path)
        except UserError:
            refused += 1
        else:
            assert not list(conflicts(program, [0, 5, 31], {}))
    assert refused
