"""Adapters on the whole chip: loaded through the port, equal to the simulator, and gone again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from small_chip import SMALL

from intaglio.backend.compile import compile_model
from intaglio.backend.images.adapter import AdapterImage, SiteImage
from intaglio.backend.program.program import Program, load_program
from intaglio.backend.stages import Options
from intaglio.dialects.codes import SLOT_BITS, AdapterMatrix, e4m3_encode
from intaglio.dialects.errors import CompilerBug, UserError
from intaglio.runtime.adapters.slots import load_cycles
from intaglio.runtime.chip import Chip
from intaglio.runtime.engines.compare import compare_token
from intaglio.runtime.engines.rtl import RTLChip
from intaglio.runtime.engines.simulator import Simulator
from intaglio.runtime.judge.hardware import check_hardware

RANK = 6


@pytest.fixture(scope="module")
def out(model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rtl_adapters") / "out"
    options = Options("roma-mini", SMALL, context=16, emit="program", adapter_rank=RANK)
    compile_model(model("tied"), folder, options)
    return folder


@pytest.fixture(scope="module")
def rtl(out: Path) -> RTLChip:
    return RTLChip(load_program(out), out, cache=False, opt=0)


def matrix(rng: np.random.Generator, code: str, rows: int, columns: int) -> AdapterMatrix:
    if code == "fp8":
        codes = e4m3_encode(rng.integers(-(448 << 17), 448 << 17, (rows, columns)) >> 4, 8)
    else:
        codes = rng.integers(0, 3 if code == "ternary" else 1 << SLOT_BITS[code], (rows, columns))
    scales = rng.integers(1 << 12, 1 << 15, rows).astype(np.int16)
    # Numbers of about a quarter: enough for other tokens.
    exponent = {"fp8": 28, "int8": 21, "int6": 19, "ternary": 15}[code]
    return AdapterMatrix(code, codes.astype(np.uint8), scales, exponent)


def adapter(program: Program, name: str, seed: int, ranks: tuple[int, ...]) -> AdapterImage:
    """Random matrices; the ranks go round the sites."""
    rng = np.random.default_rng(seed)
    sites: dict[str, SiteImage] = {}
    for number, (key, site) in enumerate(program.sites.items()):
        if rank := ranks[number % len(ranks)]:
            code = program.parameters[site.a].code
            a = matrix(rng, code, rank, site.columns)
            sites[key] = SiteImage(rank, a, matrix(rng, code, site.rows, rank))
    return AdapterImage(name, "", sites)


def run(simulator: Simulator, chip: RTLChip, tokens: int = 4) -> list[int]:
    """Compares tokens from position 0 on; what they are."""
    token, seen = 3, list[int]()
    for position in range(tokens):
        result = compare_token(simulator, chip, token, position)
        assert result.equal, str(result.difference)
        assert result.token is not None
        token = result.token
        seen.append(token)
    return seen


def test_swapping_adapters(rtl: RTLChip, out: Path) -> None:
    """A, then B, then none give the tokens of fresh chips, in the same cycles."""
    program = rtl.program
    assert len(program.sites) >= 7
    one = adapter(program, "one", 1, (RANK, 2, 0, 1))
    two = adapter(program, "two", 2, (0, 0, 5))
    seen: dict[str, list[int]] = {}
    for step, image in enumerate((None, one, two, None, one)):
        simulator = Simulator(program, out)
        rtl.reset()
        cycles = simulator.load_adapter(image)
        assert rtl.load_adapter(image) == cycles
        name = "none" if image is None else image.name
        tokens = run(simulator, rtl)
        assert seen.setdefault(name, tokens) == tokens
        if step == 1:
            # First products take as long as the ranks demand.
            with_adapter = rtl.schedule(0, True)
            rtl.load_adapter(None)
            without = rtl.schedule(0, True)
            longer = [
                one.event.finish - one.event.start > other.event.finish - other.event.start
                for one, other in zip(with_adapter, without, strict=True)
            ]
            assert 0 < sum(longer) <= len(program.sites)
    assert len({tuple(tokens) for tokens in seen.values()}) > 1


def test_check_compares_cycles_with_the_adapters_ranks(
    rtl: RTLChip, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chip = Chip(out)
    chip._hardware["rtl"] = rtl
    image = adapter(rtl.program, "one", 1, (RANK, 2, 0, 1))
    assert chip.load_adapter(image) > len(rtl.program.sites)
    found = check_hardware(chip, "rtl", [3, 5])
    assert found["bit_exact"] and found["cycle_exact"], found["hardware_difference"]
    assert found["instructions_compared"] == 2 * len(rtl.schedule(0, True))
    # A schedule without the ranks is not what the hardware does.
    monkeypatch.setattr(RTLChip, "ranks", {})
    found = check_hardware(chip, "rtl", [3])
    assert found["bit_exact"] and not found["cycle_exact"]
    assert "the finish cycle" in found["hardware_difference"]
    monkeypatch.undo()
    chip.load_adapter(None)
    assert check_hardware(chip, "rtl", [3])["cycle_exact"]


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("tied", ()),
        ("tied", ("activations=half8", "formats.block=4")),
        ("odd", ("activations=mxint8", "formats.block=8", "formats.adapter=int8")),
    ],
    ids=["int8", "words of two blocks", "a shorter last block"],
)
def test_residents(
    model: Callable[[str], Path], tmp_path: Path, name: str, settings: tuple[str, ...]
) -> None:
    """A to B to A to none costs a word each, and gives the tokens and cycles of the simulator."""
    given = (*SMALL, *settings)
    options = Options("roma-mini", given, context=16, adapter_rank=RANK, resident_adapters=2)
    out = compile_model(model(name), tmp_path / "out", options).folder
    chip = Chip(out)
    program = chip.program
    assert program.residents == 2
    a = adapter(program, "a", 1, (RANK, 2, 0, 1))
    b = adapter(program, "b", 2, (0, 0, 5))
    c = adapter(program, "c", 3, (1, 4))
    whole = {image.name: load_cycles(program, image) for image in (a, b, c)}
    assert whole["a"] > whole["b"] > len(program.sites)
    # An engine that is made later has the adapters of the others.
    for image in (a, b):
        assert chip.load_adapter(image) == whole[image.name]
    rtl = RTLChip(program, out, cache=False, opt=0)
    chip._fill(rtl)
    chip._hardware["rtl"] = rtl
    seen: dict[str, list[int]] = {}
    order = [(a, 1), (b, 1), (a, 1), (None, 1), (a, 1), (c, whole["c"]), (a, 1), (b, whole["b"]),
             (None, 1), (c, whole["c"])]  # fmt: skip
    for image, wanted in order:
        rtl.reset()
        before = rtl.model.cycle
        # Every engine takes as many, and the hardware's clock says so.
        assert chip.load_adapter(image) == wanted
        assert rtl.model.cycle - before == wanted
        name = "none" if image is None else image.name
        fresh = Simulator(program, out)
        fresh.load_adapter(image)
        tokens = run(fresh, rtl, 3)
        assert seen.setdefault(name, tokens) == tokens
        assert chip.generate([3], 3) == tokens
    assert chip.residents == ("b", "c")
    assert len({tuple(tokens) for tokens in seen.values()}) > 1
    found = check_hardware(chip, "rtl", [3, 5])
    assert found["bit_exact"] and found["cycle_exact"], found["hardware_difference"]
    # Reset switches to none, and back with a word.
    before = rtl.model.cycle
    rtl.reset()
    assert rtl.model.cycle - before == 2


def test_reset_keeps_the_adapter(rtl: RTLChip, out: Path) -> None:
    image = adapter(rtl.program, "one", 5, (3,))
    simulator = Simulator(rtl.program, out)
    simulator.load_adapter(image)
    rtl.reset()
    rtl.load_adapter(image)
    run(simulator, rtl, 2)
    simulator.reset()
    rtl.reset()
    run(simulator, rtl, 1)
    rtl.accept(1, 1, True)
    assert rtl.model.get("load_ready") == 0
    with pytest.raises(CompilerBug, match="worked on"):
        rtl.load_adapter(None)
    rtl.reset()
    assert rtl.load_adapter(None) == len(rtl.program.sites)


def test_words_wait_for_the_token(rtl: RTLChip, out: Path) -> None:
    """What comes to the load port while a token runs is not taken."""
    rtl.reset()
    rtl.load_adapter(None)
    simulator = Simulator(rtl.program, out)
    want = simulator.step(7, 0)
    rtl.accept(7, 0, True)
    rng = np.random.default_rng(0)
    count = rtl.period(0, True) - 1
    layout = rtl.layout.adapters
    assert layout is not None
    stream = layout.places.load_stream(adapter(rtl.program, "x", 3, (4,)).sites)
    take = rng.integers(0, len(stream), count)
    rtl.model.set("load_valid", 1)
    trace = rtl.model.run(
        count,
        {"load_address": stream.addresses[take], "load_data": stream.data[take].view("<u8")},
    )
    assert not trace.outputs["load_ready"].any()
    rtl.model.set("load_valid", 0)
    rtl._collect(trace)
    rtl.advance(rtl.period(0, True) + 1)
    assert want is not None
    logits, token = rtl.result()
    assert token == want[1] and (logits == want[0]).all()


def test_wrong_adapters(rtl: RTLChip) -> None:
    image = adapter(rtl.program, "large", 1, (RANK + 1,))
    with pytest.raises(UserError, match="rank 7"):
        rtl.load_adapter(image)
