"""The whole chip in both hardware simulations against simulator and timeline."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hardware import random_shape
from small_chip import SMALL

from intaglio.backend import circt
from intaglio.backend.compile import compile_model
from intaglio.backend.emit_hardware import (
    HEX,
    IR,
    ROM_INDEX,
    ROMS,
    TESTBENCH,
    VERILOG,
    WAIVERS,
    hardware_text,
)
from intaglio.backend.hw.chip.contents import descriptor_words
from intaglio.backend.hw.chip.layout import layout_of
from intaglio.backend.hw.units.attention.interface import AttentionUnit
from intaglio.backend.hw.units.matrix.interface import MatrixUnit
from intaglio.backend.hw.units.unit import Unit
from intaglio.backend.hw.units.vector.interface import VectorUnit
from intaglio.backend.hw.wires.signal import Signal, larger
from intaglio.backend.images.read import Images
from intaglio.backend.program.program import PROGRAM, Instruction, Program, load_program
from intaglio.backend.stages import Options
from intaglio.dialects.encoded import Value
from intaglio.dialects.errors import UserError
from intaglio.dialects.isa.values import Blocks, Coded
from intaglio.runtime.chip import load
from intaglio.runtime.engines.compare import Difference, compare_token
from intaglio.runtime.engines.rtl import Event, RTLChip, write_hardware
from intaglio.runtime.engines.simulator import Simulator
from intaglio.runtime.engines.verilator import compiler, translate, verilator_root
from intaglio.runtime.reports.timing import spans


@pytest.fixture(scope="module")
def out(model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rtl") / "out"
    compile_model(model("tied"), folder, Options("roma-mini", SMALL, context=16, emit="sv"))
    return folder


@pytest.fixture(scope="module")
def rtl(out: Path) -> RTLChip:
    return RTLChip(load_program(out), out, cache=False, opt=0)


@pytest.fixture
def pair(rtl: RTLChip, out: Path) -> Iterator[tuple[Simulator, RTLChip]]:
    """Simulator and chip without tokens."""
    rtl.reset()
    yield Simulator(rtl.program, out), rtl


Pairs = Callable[..., tuple[Simulator, RTLChip]]


@pytest.fixture
def built(model: Callable[[str], Path], tmp_path: Path) -> Pairs:
    """Makes simulator and chip of a model of test/models, for some settings of roma-mini."""

    def build(name: str, context: int, *settings: str) -> tuple[Simulator, RTLChip]:
        options = Options("roma-mini", settings, context, emit="hw")
        compile_model(model(name), tmp_path / "out", options)
        program = load_program(tmp_path / "out")
        chip = RTLChip(program, tmp_path / "out", cache=False, opt=0)
        return Simulator(program, tmp_path / "out"), chip

    return build


def run(simulator: Simulator, chip: RTLChip, tokens: int, seed: int, first: int = 0) -> int:
    """Compares tokens, every third without a successor; the number of instructions."""
    rng = np.random.default_rng(seed)
    token, instructions = int(rng.integers(chip.vocabulary)), 0
    for position in range(first, first + tokens):
        sample = position % 3 != 1
        result = compare_token(simulator, chip, token, position, sample)
        assert result.equal, str(result.difference)
        instructions += result.instructions
        assert chip.saturations == simulator.saturations
        drawn = int(rng.integers(chip.vocabulary))
        token = drawn if result.token is None else result.token
    return instructions


def test_equal_in_every_value_and_cycle(pair: tuple[Simulator, RTLChip]) -> None:
    assert run(*pair, tokens=16, seed=1) > 16 * 40


def events_of(chip: RTLChip, position: int) -> list[Event]:
    """What the event port says of a token: beats, and reductions."""
    steps = chip.schedule(position, True)
    reductions = [step.reduction for step in steps if step.reduction is not None]
    assert reductions and len(steps) > len(reductions)
    return sorted([*(step.event for step in steps), *reductions])


def test_step_is_that_of_the_simulator(pair: tuple[Simulator, RTLChip]) -> None:
    simulator, chip = pair
    for position, token in enumerate((5, 63, 0)):
        want, got = simulator.step(token, position), chip.step(token, position)
        assert want is not None and got is not None
        assert (want[0] == got[0]).all() and want[1] == got[1]
        assert sorted(chip.events) == events_of(chip, position)
    assert chip.step(1, 3, sample=False) is None
    # A new sequence begins without a reset.
    simulator.reset()
    assert run(simulator, chip, 2, seed=3) and chip.position == 2
    with pytest.raises(UserError, match="position 2 of 16"):
        chip.step(1, 7)
    with pytest.raises(UserError, match="token id 64"):
        chip.step(64, 2)


def test_reset_in_the_middle_of_a_token(pair: tuple[Simulator, RTLChip]) -> None:
    simulator, chip = pair
    rng = np.random.default_rng(5)
    for _ in range(6):
        chip.step(int(rng.integers(64)), 0)
        chip.accept(int(rng.integers(64)), 1, True)
        chip.advance(int(rng.integers(1, chip.period(1, True))))
        chip.reset()
        simulator.reset()
        assert run(simulator, chip, 2, seed=int(rng.integers(1000)))


def test_stalls_at_the_token_ports(pair: tuple[Simulator, RTLChip]) -> None:
    """The result waits for its taker, the next token waits for the result; no cycle changes."""
    simulator, chip = pair
    model, rng = chip.model, np.random.default_rng(7)
    token = 9
    for position in range(4):
        want = simulator.step(token, position)
        assert want is not None
        model.set("next_ready", 0)
        chip.accept(token, position, True)
        chip.advance(chip.period(position, True))
        assert chip.model.get("next_valid") == 1
        late = int(rng.integers(0, 40))
        model.set("token_valid", 1)
        seen = model.run(late + 1)
        model.set("token_valid", 0)
        assert not seen.outputs["token_ready"].any()
        assert (seen.outputs["next_token"] == want[1]).all()
        assert seen.outputs["next_valid"].all() and not seen.outputs["busy"].any()
        model.set("next_ready", 1)
        assert model.get("token_ready") == 1
        model.step(1)
        assert model.get("next_valid") == 0
        # All but what comes in the last cycle, in which nobody looked.
        wanted = events_of(chip, position)
        end = max(event.finish for event in wanted)
        assert end == chip.period(position, True)
        assert sorted(chip.events) == [event for event in wanted if event.finish < end]
        token = want[1]


def test_tokens_without_gaps(pair: tuple[Simulator, RTLChip]) -> None:
    """Each token is accepted in the very cycle in which the one before has finished."""
    simulator, chip = pair
    model, prompt = chip.model, (3, 60, 1, 1, 17)
    want = None
    for position, token in enumerate(prompt):
        want = simulator.step(token, position)
    chip.accept(prompt[0], 0, False)
    for position, token in enumerate(prompt[1:], 1):
        last = position == len(prompt) - 1
        for name, value in (("token", token), ("sample", int(last)), ("restart", 0)):
            model.set(name, value)
        model.set("token_valid", 1)
        trace = model.run(10_000, stop="token_ready", samples=1 << 14)
        # Cycle 0 was run before, and this ends with cycle 0 of the next token.
        assert trace.cycles == chip.period(position - 1, False)
    model.set("token_valid", 0)
    trace = model.run(10_000, stop="token_ready", samples=1 << 14)
    assert trace.cycles == chip.period(len(prompt) - 1, True)
    assert want is not None
    (wanted,) = np.flatnonzero(trace.outputs["next_valid"])
    assert trace.outputs["next_token"][wanted] == want[1]
    assert np.array_equal(np.asarray(chip.read(chip.program.logits)), want[0])


def test_a_wrong_rom_bit_is_located(pair: tuple[Simulator, RTLChip]) -> None:
    simulator, chip = pair
    name = next(n for n in chip.program.parameters if "down_proj" in n)
    parameter = chip.program.parameters[name]
    codes = chip.memory("matrix/tile0/l_unit0/codes")
    at = parameter.pieces[0].base
    codes[at] ^= 0b1111
    try:
        result = compare_token(simulator, chip, 3, 0)
    finally:
        codes[at] ^= 0b1111
    assert result.difference is not None and result.difference.step is not None
    assert result.difference.step.instruction.opcode == "matvec"
    assert "down_proj" in str(result.difference)


def mutant(out: Path, text: str) -> Difference:
    """What the comparison says of a chip that is not the program's."""
    program = load_program(out)
    chip = RTLChip(program, out, cache=False, opt=0, text=text)
    simulator = Simulator(program, out)
    for position in range(4):
        result = compare_token(simulator, chip, 7, position)
        if result.difference is not None:
            return result.difference
    pytest.fail("nobody noticed")


def with_descriptors(pair: tuple[Simulator, RTLChip], out: Path, program: Program) -> str:
    """What the comparison says of the chip with another program's descriptors; empty: equal."""
    simulator, chip = pair
    images = Images(chip.program, out)
    other = layout_of(program)
    try:
        for queue in other.queues:
            memory = chip.model.memory(f"sequencer_{queue}/descriptors")
            words = descriptor_words(other, queue, images)
            memory[: len(words)] = words
        for position in range(3):
            result = compare_token(simulator, chip, 7, position)
            if result.difference is not None:
                return str(result.difference)
        return ""
    finally:
        chip.fill(chip.program, images, out)


def binding_waits(program: Program) -> Iterator[tuple[int, str, str, Program]]:
    """The program with a wait of its layers one beat too early, where that changes a start.

    Each with the place of the beat, its queue, the counter, of each two counters.
    """
    number = max(range(len(program.blocks)), key=lambda n: len(program.blocks[n].instances))
    block = program.blocks[number]
    starts = [int(span.start[0]) for span, _ in spans(program, [0], True, {})]
    found: Counter[tuple[str, str]] = Counter()
    for place, one in enumerate(block.instructions):
        for counter, count in one.issue.waits.items():
            if not count or found[one.queue, counter] == 2:
                continue
            waits = {**one.issue.waits, counter: count - 1}
            early = replace(one, issue=replace(one.issue, waits=waits))
            beats = (*block.instructions[:place], early, *block.instructions[place + 1 :])
            blocks = list(program.blocks)
            blocks[number] = replace(block, instructions=beats)
            mutated = replace(program, blocks=tuple(blocks))
            if [int(span.start[0]) for span, _ in spans(mutated, [0], True, {})] != starts:
                found[one.queue, counter] += 1
                yield place, one.queue, counter, mutated


def located_waits(pair: tuple[Simulator, RTLChip], out: Path) -> set[tuple[str, str]]:
    """Queues and counters of which a wait that is one beat too early is named."""
    program = pair[1].program
    found: set[tuple[str, str]] = set()
    for place, queue, counter, mutated in binding_waits(program):
        said = with_descriptors(pair, out, mutated)
        assert f"queue {queue}" in said and "start cycle" in said, (place, counter, said)
        found.add((queue, counter))
    return found


def test_a_wait_one_beat_too_early_is_located(pair: tuple[Simulator, RTLChip], out: Path) -> None:
    """In the descriptors of the hardware, of all queues and for what they wait for."""
    assert located_waits(pair, out) >= {
        ("vector", "matrix"),
        ("vector", "vector"),
        ("vector", "attention"),
        ("vector", "kv"),
        ("vector", "reductions"),
        ("matrix", "vector"),
        ("attention", "kv"),
        ("attention", "vector"),
        ("kv", "reductions"),
    }


def test_a_wait_for_a_largest_magnitude_is_located(built: Pairs, tmp_path: Path) -> None:
    """The same where vectors and heads have one scale each, from their largest."""
    pair = built("tied", 16, *SMALL, "activations=int8", "kv=int8")
    assert located_waits(pair, tmp_path / "out") >= {
        ("vector", "matrix"),
        ("vector", "vector"),
        ("vector", "matrix_peaks"),
        ("vector", "attention_peaks"),
        ("vector", "reductions"),
        ("matrix", "vector"),
        ("attention", "vector"),
        ("attention", "kv"),
        ("kv", "vector"),
    }


@pytest.mark.parametrize(
    ("unit", "opcode", "field"),
    [
        (MatrixUnit, "matvec", "slots"),
        (VectorUnit, "quantize_blocks", "rows"),
        (AttentionUnit, "query_key", "interval_last"),
        (AttentionUnit, "append", "slots_last"),
    ],
)
def test_a_pace_one_too_small_is_located(
    pair: tuple[Simulator, RTLChip],
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
    unit: type[Unit],
    opcode: str,
    field: str,
) -> None:
    """A unit that is done with its beats a cycle, or a row, too early."""
    encode = unit.encode

    def early(
        self: Unit, program: Program, instruction: Instruction, instance: Mapping[str, str]
    ) -> Mapping[str, Value]:
        values = encode(self, program, instruction, instance)
        if instruction.opcode != opcode:
            return values
        less = values[field]
        assert isinstance(less, int)
        return {**values, field: max(less - 1, 0)}

    monkeypatch.setattr(unit, "encode", early)
    assert opcode in with_descriptors(pair, out, pair[1].program)


def test_a_changed_latency_is_located(out: Path) -> None:
    program = load_program(out)
    slower = replace(program.machine, vector_reduce=program.machine.vector_reduce + 1)
    found = mutant(out, hardware_text(replace(program, machine=slower)))
    # The first instruction whose result is reduced over the lanes.
    assert found.step is not None and found.step.instruction.opcode == "tap"
    assert "queue vector, number 0" in str(found)
    assert f"should be {found.expected}" in str(found)


def test_a_wrong_rounding_is_located(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The adder of one half is lost in a product's requantisation."""
    from intaglio.backend.hw.wires import datapaths

    def floor(x: Signal, places: Signal, *rest: Any) -> datapaths.Fixed:
        return datapaths.saturate(x >> larger(places, 0))

    monkeypatch.setattr(datapaths, "shift_saturate", floor)
    found = mutant(out, hardware_text(load_program(out)))
    assert found.step is not None and found.step.instruction.opcode in ("matvec", "embed")
    assert not found.is_cycle and "element" in found.what


def test_another_shape(built: Pairs) -> None:
    """So the cycle model is a model; bench/hardware.py tries more. INTAGLIO_SEED changes it."""
    seed = int(os.environ.get("INTAGLIO_SEED", "1"))
    settings = random_shape(np.random.default_rng(seed))
    print(f"seed {seed}: {' '.join(settings)}")
    name = ("llama", "qwen", "phi")[seed % 3]
    assert run(*built(name, 64, *settings), 3, seed) > 100


@pytest.mark.parametrize(("name", "setting"), [("hqq4", "int8"), ("hqq2", "int16")])
def test_zero_points_of_any_value(built: Pairs, name: str, setting: str) -> None:
    """HQQ's: offsets beside the scales, in the hardware as in the simulator."""
    simulator, chip = built(name, 8, *SMALL, f"activations={setting}")
    assert sum(p.offsets is not None for p in chip.program.parameters.values()) > 8
    assert run(simulator, chip, 3, seed=2)


@pytest.mark.parametrize("setting", ["embedding=int16", "embedding=int8"])
def test_rows_by_position(built: Pairs, setting: str) -> None:
    """OPT's learned positions: the position chooses a row, beside the token's."""
    simulator, chip = built("learned", 8, *SMALL, f"formats.{setting}")
    assert chip.program.parameters["model_embed_positions"].dims[0] == 8
    assert run(simulator, chip, 3, seed=3)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("tied", ("activations=half8", "formats.block=8")),
        ("tied", ("activations=mxint8", "formats.block=8")),
        ("experts", ("activations=half8", "formats.block=8")),
        # Words of two and four blocks, the last one of each vector shorter.
        ("odd", ("activations=half8", "formats.block=4")),
        ("odd_bias", ("activations=mxint8", "formats.block=4", "l_unit.lanes=16")),
    ],
)
def test_exponents_of_blocks(built: Pairs, name: str, settings: tuple[str, ...]) -> None:
    """Blocks' exponents and norms' factors, in every product, and of experts."""
    simulator, chip = built(name, 8, *SMALL, *settings)
    opcodes = {one.opcode for block in chip.program.blocks for one in block.whole}
    assert {"quantize_blocks", "rms_scale"} <= opcodes
    assert run(simulator, chip, 4, seed=6)
    # A factor is compared where it lies, before a product shows it.
    number, index = next(
        (number, index)
        for number, block in enumerate(chip.program.blocks)
        for index, one in enumerate(block.whole)
        if one.opcode == "rms_scale"
    )
    actions = simulator._steps[number][1][0]
    right = actions[index]
    actions[index] = lambda c: right(c)._replace(exponent=right(c).exponent + 1)
    found = compare_token(simulator, chip, 3, 4).difference
    assert found is not None and found.step is not None
    assert found.step.instruction.opcode == "rms_scale" and "scale exponent" in found.what


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("tied", ("activations=half8", "wide=attention", "formats.block=8")),
        # Some blocks of words of two; whole vectors beside them, with both kinds of steps.
        (
            "odd",
            (
                "activations=half8",
                "formats.block=4",
                "wide.qkv_proj=1,3",
                "wide.down_proj=0,2-4",
                "activations.gate_up_proj=mxint8",
                "activations.lm_head=int8",
            ),
        ),
        ("experts", ("activations=mxint8", "formats.block=8", "activations.experts=int16")),
        ("tied", ("activations=int8", "activations.down_proj=int16")),
        ("tied", ("activations=int16", "activations.qkv_proj=int8")),
    ],
)
def test_several_formats(built: Pairs, name: str, settings: tuple[str, ...]) -> None:
    """Inputs of products with wide blocks, or in formats of their own."""
    simulator, chip = built(name, 8, *SMALL, *settings)
    coded = [one.type for one in chip.program.buffers.values() if isinstance(one.type, Coded)]
    assert len({one.shown for one in coded}) > 1
    assert run(simulator, chip, 4, seed=9)


@pytest.mark.parametrize(("chip_has", "fmt"), [("half8", "mxint8"), ("mxint8", "half8")])
def test_all_inputs_in_another_format(built: Pairs, chip_has: str, fmt: str) -> None:
    """Blocks have the steps of the inputs, not of the chip's activations that no input has."""
    named = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj", "lm_head")
    told = [f"activations.{one}={fmt}" for one in named]
    simulator, chip = built("tied", 8, *SMALL, f"activations={chip_has}", "formats.block=8", *told)
    coded = [one.type for one in chip.program.buffers.values() if isinstance(one.type, Blocks)]
    assert {one.format for one in coded} == {fmt}
    assert run(simulator, chip, 4, seed=9)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("sinks", ()),
        ("qwen", ("activations=half8", "formats.block=8")),
        ("alibi", ("activations=int16",)),
    ],
)
def test_exponents_of_heads(built: Pairs, name: str, settings: tuple[str, ...]) -> None:
    """Half steps a head in all of the attention; codes are compared when they are there."""
    simulator, chip = built(name, 8, *SMALL, "kv=half8", *settings)
    assert chip.program.memories["kv_scales"].bits == 8
    assert run(simulator, chip, 4, seed=6)
    number, index = next(
        (number, index)
        for number, block in enumerate(chip.program.blocks)
        for index, one in enumerate(block.whole)
        if one.opcode == "quantize_heads"
    )
    actions = simulator._steps[number][1][0]
    right = actions[index]
    actions[index] = lambda c: right(c)._replace(codes=right(c).codes ^ 1)
    found = compare_token(simulator, chip, 3, 4).difference
    assert found is not None and found.step is not None
    assert found.step.instruction.opcode == "quantize_heads" and "code" in found.what


@pytest.mark.parametrize(
    ("name", "settings"),
    [("sinks", ()), ("qwen", ("activations=half8", "formats.block=8")), ("tied", ())],
)
def test_bytes_at_places(built: Pairs, name: str, settings: tuple[str, ...]) -> None:
    """Numerators of the softmax at one of five places: codes, places, scales and sums."""
    simulator, chip = built(name, 8, *SMALL, "kv=half8", "probabilities=places8", *settings)
    opcodes = {one.opcode for block in chip.program.blocks for one in block.whole}
    assert "softmax_places" in opcodes and "softmax" not in opcodes
    assert run(simulator, chip, 6, seed=7)


def test_blocks_without_hardware(built: Pairs) -> None:
    """A row has whole blocks; the simulator takes any."""
    with pytest.raises(UserError, match="a block of 16 is more than the 8 vector lanes") as error:
        built("tied", 8, *SMALL, "formats.block=16", "activations=half8")
    assert "--set formats.block=8, or --set activations=int8" in str(error.value)


@pytest.mark.parametrize("lookup", [4, 8])
def test_keys_of_each_head(built: Pairs, lookup: int) -> None:
    """Nothing of another head is waited for: sums of weights, and factors of norms, come as late as
    they may."""
    settings = ("kv=half8", f"latency.table_lookup={lookup}")
    assert run(*built("own_heads", 16, *SMALL, *settings), 4, seed=4)


@pytest.mark.parametrize("heads", ["h_unit.query_parallel=1", "h_unit.query_parallel=2"])
def test_sinks(built: Pairs, heads: str) -> None:
    """gpt-oss: a score of each head without a token, within a window and without one."""
    assert run(*built("sinks", 16, *SMALL, heads), 9, seed=4)


@pytest.mark.parametrize("heads", ["h_unit.query_parallel=1", "h_unit.query_parallel=2"])
def test_slopes(built: Pairs, heads: str) -> None:
    """Bloom's ALiBi, and beside a soft cap, sinks and a window."""
    assert run(*built("alibi", 16, *SMALL, heads), 9, seed=4)


def test_shared_caches(built: Pairs) -> None:
    """Gemma-4 E2B: a layer reads what another one has written."""
    simulator, chip = built("shared", 16, *SMALL)
    assert len(chip.program.caches) == 2
    assert run(simulator, chip, 5, seed=5)


@pytest.mark.parametrize("name", ["lfm2", "conv4"])
def test_state_of_a_convolution(built: Pairs, name: str) -> None:
    """Values of earlier tokens, and zeros at the next sequence's beginning whatever is left."""
    simulator, chip = built(name, 8, *SMALL)
    assert run(simulator, chip, 5, seed=4)
    assert any(chip.state(one).any() for one in chip.program.states)
    simulator.reset()
    chip.reset()
    assert run(simulator, chip, 3, seed=5)


@pytest.mark.parametrize(
    ("name", "settings"),
    [("qwen35", ()), ("recurrent_delta", ("vector.lanes=16", "activations=int16", "kv=int16"))],
)
def test_states_of_linear_attention(built: Pairs, name: str, settings: tuple[str, ...]) -> None:
    """As above; with heads that are wider than a row of the vector units, and narrower."""
    simulator, chip = built(name, 8, *SMALL, *settings)
    assert run(simulator, chip, 8, seed=4)
    assert all(chip.matrices(one).mantissas.any() for one in chip.program.matrices)
    simulator.reset()
    chip.reset()
    assert run(simulator, chip, 2, seed=5)


def test_static_caches(built: Pairs) -> None:
    """Buffers of 24 tokens that the graph scatters into: caches like any other, to the last one."""
    simulator, chip = built("static", 24, *SMALL)
    assert [one.capacity for one in chip.program.caches.values()] == [24] * 4
    assert run(simulator, chip, 8, seed=7)
    chip.jump(22)
    assert run(simulator, chip, 2, seed=8, first=22)


@pytest.mark.parametrize(
    ("context", "settings"),
    [
        (8, ()),
        # The position's register holds more positions than there are.
        (5, ("activations=int16", "vector.lanes=16", "latency.broadcast=5")),
    ],
)
def test_states_alone(built: Pairs, context: int, settings: tuple[str, ...]) -> None:
    """No caches: a chip without attention, its memories and its write port."""
    simulator, chip = built("recurrent", context, *SMALL, *settings)
    names = [unit.name for unit in chip.layout.units]
    assert "recurrence" in names and "attention" not in names
    assert not chip.layout.rows.keys() & {"scores", "largest", "probabilities", "heads"}
    assert run(simulator, chip, context, seed=4)
    assert all(chip.matrices(one).mantissas.any() for one in chip.program.matrices)
    simulator.reset()
    chip.reset()
    assert run(simulator, chip, 2, seed=5)


def test_what_is_emitted(out: Path, rtl: RTLChip) -> None:
    files = (IR, *VERILOG, WAIVERS, ROMS, ROM_INDEX, TESTBENCH)
    assert all((out / name).is_file() for name in files)
    text = (out / IR).read_text()
    circt.verify(text)
    assert text.startswith("// Made by intaglio") and "program.json sha256" in text[:300]
    modules, memories = ((out / name).read_text() for name in VERILOG)
    assert "module chip(" in modules and "module vector(" in modules
    assert "module sram_" in memories and "module chip(" not in memories
    assert "module sram_" not in modules and "module rom_" not in modules
    index = json.loads((out / ROM_INDEX).read_text())["memories"]
    content = np.fromfile(out / ROMS, np.uint8)
    assert set(index) <= set(rtl.model.memories)
    for name, one in index.items():
        memory = rtl.memory(name)
        words = content[one["offset"] : one["offset"] + one["depth"] * one["bytes"]]
        words = words.reshape(one["depth"], one["bytes"])
        raw = np.ascontiguousarray(memory[: one["depth"]]).view(np.uint8)
        assert (raw.reshape(one["depth"], -1)[:, : one["bytes"]] == words).all(), name
        lines = (out / HEX / f"{name.replace('/', '.')}.hex").read_text().split()
        assert int(lines[1], 16) == int.from_bytes(words[1].tobytes(), "little")


def test_the_ir_alone_can_be_emitted(out: Path, tmp_path: Path) -> None:
    shutil.copy(out / PROGRAM, tmp_path)
    assert write_hardware(tmp_path, "hw") == [IR]
    assert (tmp_path / IR).read_text() == (out / IR).read_text()
    assert not (tmp_path / VERILOG[0]).exists()


@pytest.mark.parametrize(("handed_out", "tokens"), [(False, 4), (True, 2)])
def test_verilator(out: Path, handed_out: bool, tokens: int) -> None:
    """On the text that is made to be fast, and on the files that are handed out."""
    try:
        compiler()
        verilator_root()
    except UserError as error:
        pytest.skip(str(error))
    program = load_program(out)
    chip = RTLChip(program, out, "verilator", handed_out=handed_out)
    assert run(Simulator(program, out), chip, tokens, seed=11) > 30 * tokens
    chip.close()


class Built(Exception):
    """In place of a model of SystemVerilog: its text."""


def give_text(verilog: str, top: str, **options: Any) -> None:
    raise Built(verilog)


def test_what_verilator_runs(
    out: Path, model: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Handed-out files where they are asked for, traced or edited; else text with its options."""
    monkeypatch.setattr("intaglio.runtime.engines.verilator.VerilatorModel", give_text)
    monkeypatch.setattr("intaglio.runtime.engines.verilator.compiler", lambda: "c++")
    monkeypatch.setattr("intaglio.runtime.engines.verilator.verilator_root", Path)

    def of(folder: Path, **options: Any) -> str:
        with pytest.raises(Built) as built:
            RTLChip(load_program(folder), folder, "verilator", cache=False, **options)
        return built.value.args[0]

    def written(folder: Path) -> str:
        return "\n".join((folder / name).read_text() for name in VERILOG)

    assert of(out, handed_out=True) == written(out)
    assert of(out, trace=tmp_path / "a.vcd") == written(out)
    fast = of(out)
    assert "automatic logic" in fast and "automatic logic" not in written(out)
    assert "casez (" in fast and "'{" not in fast

    tom = compile_model(model("ternary"), tmp_path / "tom", Options("tom-mini", context=8)).folder
    text = of(tom)
    assert "automatic logic" in text and "casez (" in text and "'{" not in text
    monkeypatch.setattr("intaglio.runtime.engines.rtl.LARGE_TABLES", 1 << 10)
    assert of(out) == fast
    text = of(tom)
    assert "automatic logic" in text and "casez (" not in text and "'{" in text

    shutil.copytree(out, tmp_path / "edited")
    file = tmp_path / "edited" / VERILOG[0]
    file.write_text(file.read_text() + "// by hand\n")
    with pytest.raises(Built) as built:
        load(tmp_path / "edited", trust_edited=True).machine("verilator")
    assert "// by hand" in built.value.args[0]


def test_lint(out: Path, tmp_path: Path) -> None:
    try:
        verilator_root()
    except UserError as error:
        pytest.skip(str(error))
    files = [str(out / name) for name in (WAIVERS, *VERILOG)]
    said = translate(["--lint-only", "-Wall", "--top-module", "chip", *files], tmp_path)
    assert "%" not in said, said


def test_unknown_engine(out: Path) -> None:
    with pytest.raises(UserError, match="no engine spice"):
        RTLChip(load_program(out), out, "spice")
