"""Chips of the other structures, each whole, with adapters, against simulator and timeline."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_chip import SMALL

from intaglio.backend.compile import compile_model
from intaglio.backend.hw.units.power import NO_DOMAIN
from intaglio.backend.images.adapter import AdapterImage, SiteImage
from intaglio.backend.program.program import Program, load_program
from intaglio.backend.stages import Options
from intaglio.dialects.codes import SLOT_BITS, AdapterMatrix
from intaglio.dialects.errors import UserError
from intaglio.runtime.engines.compare import compare_token
from intaglio.runtime.engines.rtl import RTLChip
from intaglio.runtime.engines.simulator import Simulator
from intaglio.runtime.reports.traffic import traffic

RANK = 5
CYCLE = 10
"""Time of a waveform that a cycle takes."""


def adapter(program: Program) -> AdapterImage:
    """Random matrices of ranks from 0 to the slots'."""
    rng = np.random.default_rng(len(program.sites))

    def matrix(code: str, rows: int, columns: int) -> AdapterMatrix:
        high = 3 if code == "ternary" else 1 << SLOT_BITS[code]
        codes = rng.integers(0, high, (rows, columns)).astype(np.uint8)
        scales = rng.integers(1 << 12, 1 << 15, rows).astype(np.int16)
        return AdapterMatrix(code, codes, scales, 15 + SLOT_BITS[code])

    sites: dict[str, SiteImage] = {}
    for number, (name, site) in enumerate(program.sites.items()):
        if rank := number % (RANK + 1):
            code = program.parameters[site.a].code
            a, b = matrix(code, rank, site.columns), matrix(code, site.rows, rank)
            sites[name] = SiteImage(rank, a, b)
    return AdapterImage("random", "", sites)


def cycles_high(waveform: Path) -> Counter[str]:
    """For each register of the attention unit of one bit, the cycles of a waveform in which it is
    set."""
    scope, time = list[str](), 0
    names, since = dict[str, str](), dict[str, int]()
    high = Counter[str]()
    for line in waveform.read_text().splitlines():
        match line.split():
            case ["$scope", _, name, *_]:
                scope.append(name)
            case ["$upscope", *_]:
                scope.pop()
            case ["$var", _, "1", code, name, *_] if scope[-1] == "attention":
                names[code] = name
            case [word] if word.startswith("#"):
                time = int(word[1:])
            case [word] if word[0] in "01" and word[1:] in names:
                name = names[word[1:]]
                if (start := since.pop(name, None)) is not None:
                    high[name] += (time - start) // CYCLE
                if word[0] == "1":
                    since[name] = time
            case _:
                pass
    assert not {"fetched", "external_enable"} & since.keys()
    return high


@pytest.mark.parametrize(
    ("target", "name", "tokens", "settings"),
    [
        ("tom-mini", "ternary", 3, ()),
        ("tom-mini", "ternary_tied", 2, ("array.matrix_units=6",)),
        ("bitrom-mini", "ternary", 10, ()),
        ("bitrom-mini", "ternary", 1, ("activations=int4",)),
        ("hc1-mini", "llama", 2, ()),
    ],
)
def test_chip_with_adapters(
    target: str,
    name: str,
    tokens: int,
    settings: tuple[str, ...],
    model: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    """Ten tokens on bitrom-mini: keys and values of the last two are in external memory.

    One with 4-bit activations, which take one pass of the macros instead of two; one with six
    tiles, on all of which the head lies that is the embedding too.
    """
    options = Options(target, settings, context=16, emit="program", adapter_rank=RANK)
    out = compile_model(model(name), tmp_path / "out", options).folder
    program = load_program(out)
    chip = RTLChip(program, out, cache=False, opt=0)
    simulator = Simulator(program, out)
    image = adapter(program)
    assert simulator.load_adapter(image) == chip.load_adapter(image) > len(program.sites)
    seen, token = list[int](), 3
    for position in range(tokens):
        if position == tokens - 1:
            chip.model.trace(tmp_path / "last.vcd", chip.model.cycle)
        result = compare_token(simulator, chip, token, position)
        assert result.equal, str(result.difference)
        assert result.token is not None
        token = result.token
        seen.append(chip.period(position, True))
    chip.model.trace_end()
    machine = program.machine
    inside = machine.kv_on_die
    if inside:
        found = traffic(program, tokens - 1)
        high = cycles_high(tmp_path / "last.vcd")
        assert high["fetched"] * machine.external_bytes == found.read[0]
        row = min(machine.external_bytes, machine.kv_port_bytes)
        assert high["external_enable"] * row == found.written[0]
    assert ("power" in chip.layout.queues) == (target == "tom-mini") == bool(program.domains)
    assert ("external_kv/memory" in chip.model.memories) == (target == "bitrom-mini")
    if tokens > inside > 0:
        assert seen[inside] > seen[inside - 1]
    chip.close()


@pytest.mark.parametrize("context", [1, 2, 3])
def test_caches_of_few_tokens(context: int, model: Callable[[str], Path], tmp_path: Path) -> None:
    options = Options("roma-mini", SMALL, context=context, emit="program")
    out = compile_model(model("llama"), tmp_path / "out", options).folder
    program = load_program(out)
    chip, simulator = RTLChip(program, out, cache=False, opt=0), Simulator(program, out)
    for position in range(context):
        result = compare_token(simulator, chip, 3 + position, position)
        assert result.equal, str(result.difference)
    chip.close()


def test_wrong_power_schedule_gives_wrong_tokens(
    model: Callable[[str], Path], tmp_path: Path
) -> None:
    """The products of a layer that nobody wakes are zeros."""
    options = Options("tom-mini", context=16, emit="program")
    out = compile_model(model("ternary"), tmp_path / "out", options).folder
    program = load_program(out)
    (domain, *_) = (
        name for name in program.domains if any("layers.1" in one for one in _keys(program, name))
    )
    blocks = [
        replace(
            block,
            instances=[
                {slot: NO_DOMAIN if bound == domain else bound for slot, bound in one.items()}
                for one in block.instances
            ],
        )
        for block in program.blocks
    ]
    wrong = replace(program, blocks=blocks)
    chip = RTLChip(wrong, out, cache=False, opt=0)
    simulator = Simulator(program, out)
    result = compare_token(simulator, chip, 3, 0)
    found = result.difference
    assert found is not None and found.step is not None and not found.is_cycle
    # Cycles are what they were; the first wrong value is that of the layer's first product.
    assert found.step.event.queue == "matrix" and found.step.instance == 1
    assert "layers.1" in found.step.nodes
    assert found.seen.startswith("0 (")
    logits, _ = simulator.step(3, 0) or ([], 0)
    chip.reset()
    seen = chip.step(3, 0)
    assert seen is not None and (seen[0] != logits).any()
    chip.close()


def test_domains_are_on_when_the_program_says(model: Callable[[str], Path], tmp_path: Path) -> None:
    """In every cycle; the head's only in tokens whose successor is wanted."""
    options = Options("tom-mini", context=16, emit="program")
    out = compile_model(model("ternary"), tmp_path / "out", options).folder
    program = load_program(out)
    chip = RTLChip(program, out, cache=False, opt=0)
    simulator = Simulator(program, out)
    for position, wanted in enumerate((False, True, False)):
        period = chip.period(position, wanted)
        expected = {name: np.zeros(period, bool) for name in program.domains}
        woken: dict[str, int] = {}
        for step in chip.schedule(position, wanted):
            event, one = step.event, step.instruction
            if event.queue != "power":
                continue
            name = program.blocks[step.block].instances[step.instance][one.does.uses["domain"]]
            if one.opcode == "wake":
                woken[name] = event.finish
            else:
                expected[name][woken.pop(name) : event.finish] = True
        assert list(woken) == ([] if wanted else ["power_head"])
        assert expected["power_head"].any() == wanted
        chip.accept(5, position, wanted)
        for cycle in range(1, period):
            chip.advance(cycle)
            bits = {name: bool(cycles[cycle]) for name, cycles in expected.items()}
            value = chip.model.get("power")
            assert {n: bool(value >> i & 1) for i, n in enumerate(program.domains)} == bits
        chip.advance(period + 3)
        assert not chip.model.get("power")
    chip.reset()
    for position, wanted in enumerate((False, False, True)):
        result = compare_token(simulator, chip, 5, position, wanted)
        assert result.equal, str(result.difference)
    chip.close()


def test_program_that_wakes_nothing_in_time_is_refused(
    model: Callable[[str], Path], tmp_path: Path
) -> None:
    """The simulator does not model banks that are off: such a program does not get that far."""
    options = Options("tom-mini", context=16, emit="program")
    out = compile_model(model("ternary"), tmp_path / "out", options).folder
    path = out / "program.json"
    content = json.loads(path.read_text())
    (head,) = (block for block in content["blocks"] if block["sampled"])
    product = next(one for one in head["instructions"] if one["queue"] == "matrix")
    del product["waits"]["power"]
    path.write_text(json.dumps(content))
    with pytest.raises(
        UserError, match=r"may find power domain .* off: it does not wait"
    ) as raised:
        load_program(out)
    assert raised.value.node == product["onnx"][0][-1]


def _keys(program: Program, domain: str) -> list[str]:
    """Names in the model of a domain's tensors."""
    return [program.parameters[name].key for name in program.domains[domain]]
