"""Hardware at its limits: chips of every kind are equal, and faults that tokens do not see fall."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from small_chip import SMALL

from intaglio.backend.compile import compile_model
from intaglio.backend.emit_hardware import hardware_text
from intaglio.backend.images.read import Images
from intaglio.backend.program.program import load_program
from intaglio.backend.stages import Options
from intaglio.dialects.codes import decode
from intaglio.dialects.errors import UserError
from intaglio.dialects.fixed_point import SCALE_BITS
from intaglio.dialects.formats import FORMATS
from intaglio.runtime import cli
from intaglio.runtime.chip import Chip
from intaglio.runtime.engines.rtl import RTLChip
from intaglio.runtime.engines.simulator import Store
from intaglio.runtime.judge import stress_content
from intaglio.runtime.judge.hardware import check_hardware
from intaglio.runtime.judge.report import text_lines
from intaglio.runtime.judge.stress import _Round, check_engine, stress

RANK = 3


@pytest.fixture(scope="module")
def small(model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("stress") / "out"
    options = Options("roma-mini", SMALL, context=16, emit="program", adapter_rank=RANK)
    return compile_model(model("tied"), out, options).folder


def chip_of(out: Path, text: str | None = None) -> Chip:
    chip = Chip(out)
    chip._hardware["rtl"] = RTLChip(chip.program, out, cache=False, opt=0, text=text)
    return chip


@pytest.fixture(scope="module")
def chip(small: Path) -> Chip:
    return chip_of(small)


def hardware_of(chip: Chip) -> RTLChip:
    hardware = chip.machine("rtl")
    assert isinstance(hardware, RTLChip)
    return hardware


def test_equal_and_as_before_afterwards(chip: Chip) -> None:
    hardware = hardware_of(chip)
    hardware.reset()
    before = {name: hardware.memory(name).tobytes() for name in hardware.model.memories}
    tokens = [hardware.step(token, i) for i, token in enumerate((3, 60))]
    counts, difference = stress(chip, hardware, rounds=6)
    assert difference is None, str(difference)
    assert counts["stress_rounds"] == 6 and 6 <= counts["stress_tokens"] <= 12
    assert counts["stress_instructions"] > 6 * 50 and counts["stress_saturations"] > 1000
    for name, content in before.items():
        if name.startswith(("matrix", "constants", "sequencer")):
            assert hardware.memory(name).tobytes() == content, name
    for position, (token, wanted) in enumerate(zip((3, 60), tokens, strict=True)):
        found = hardware.step(token, position)
        assert wanted is not None and found is not None
        assert found[1] == wanted[1] and (found[0] == wanted[0]).all()


@pytest.mark.parametrize(
    ("target", "name", "settings", "rank"),
    [
        ("tom-mini", "ternary", (), RANK),
        ("bitrom-mini", "ternary", (), 0),
        ("hc1-mini", "llama", (), 0),
        ("roma-mini", "qwen", (*SMALL, "activations=int16", "kv=fp8"), 0),
        ("roma-mini", "phi", SMALL, 0),
        ("roma-mini", "qwen", (*SMALL, "kv=half8", "probabilities=places8"), 0),
        ("roma-mini", "tied", (*SMALL, "activations=half8", "formats.block=8"), RANK),
        ("roma-mini", "llama", (*SMALL, "activations=mxint8", "formats.block=8"), 0),
    ],
)
def test_chips_of_other_kinds(
    target: str,
    name: str,
    settings: tuple[str, ...],
    rank: int,
    model: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    options = Options(target, settings, context=16, emit="program", adapter_rank=rank)
    out = compile_model(model(name), tmp_path / "out", options).folder
    text = hardware_text(load_program(out), Images(load_program(out), out))
    other = chip_of(out, text)
    _, difference = stress(other, hardware_of(other), rounds=3)
    assert difference is None, str(difference)


def saturation_lost(text: str) -> str:
    """The matrix array's results with another largest number."""
    start = text.index("hw.module @matrix(")
    end = text.index("\n  }", start)
    module, count = re.subn(
        r"(= hw\.constant )2147483647( : i32)", r"\g<1>2147483646\2", text[start:end]
    )
    assert count == 1
    return text[:start] + module + text[end:]


def mask_of_the_head_lost(text: str) -> str:
    """The position wraps one bit too early: the last positions are the first ones again."""
    start = text.index("hw.module @token_port(")
    end = text.index("\n  }", start)
    old = re.search(r"comb\.mux %accepted, (%\d+), %next_position : i4", text[start:end])
    assert old is not None
    name = old[1]
    line = re.search(rf"{name} = comb\.extract (%\d+) from 0 :  \(i5\) -> i4", text[start:end])
    assert line is not None
    fault = (
        f"%three = comb.extract {line[1]} from 0 : (i5) -> i3\n    %none = hw.constant false\n"
        f"    {name} = comb.concat %none, %three : i1, i3"
    )
    return text[:start] + text[start:end].replace(line[0], fault) + text[end:]


@pytest.mark.parametrize("fault", [saturation_lost, mask_of_the_head_lost])
def test_faults_that_random_tokens_do_not_see(fault: Callable[[str], str], small: Path) -> None:
    text = hardware_text(load_program(small))
    other = chip_of(small, fault(text))
    plain = check_hardware(other, "rtl", [3, 5, 7])
    assert plain["bit_exact"] and plain["cycle_exact"]
    found = check_hardware(other, "rtl", [3], stress=True)
    assert not found["bit_exact"] or not found["cycle_exact"]
    assert re.search(r"\(stress round \d+ of seed \d+\)", found["hardware_difference"])
    assert found["stress_rounds"] >= 0


def test_a_written_cache_is_read_back(model: Callable[[str], Path], tmp_path: Path) -> None:
    """On the die and outside, of every format, static and not."""
    for number, (target, name, settings) in enumerate(
        [
            ("bitrom-mini", "ternary", ()),
            ("roma-mini", "tied", (*SMALL, "kv=int16")),
            ("roma-mini", "tied", (*SMALL, "kv=fp8")),
            ("roma-mini", "tied", (*SMALL, "kv=half8", "probabilities=places8")),
        ]
    ):
        out = tmp_path / str(number)
        compile_model(model(name), out, Options(target, settings, context=13, emit="program"))
        hardware = hardware_of(chip_of(out))
        rng = np.random.default_rng(number)
        for cache in hardware.program.caches.values():
            store = Store.empty(cache)
            store.append(stress_content.cached(rng, cache), 0)
            hardware.write_store(store)
            seen = hardware.stores[cache.name]
            assert (seen.codes == store.codes).all()
            if cache.static_scale is None:
                assert (seen.scale.mantissa == store.scale.mantissa).all()
                assert (seen.scale.exponent == store.scale.exponent).all()


@pytest.mark.parametrize("name", ["recurrent", "experts"])
def test_states_and_experts(model: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    """What a chip holds besides caches is given to both sides, and read back as it was."""
    options = Options("roma-mini", SMALL, context=9, emit="program")
    compile_model(model(name), tmp_path / "out", options)
    chip = chip_of(tmp_path / "out")
    hardware, rng = hardware_of(chip), np.random.default_rng(2)
    for one in chip.program.states.values():
        value = stress_content.numbers(rng, (one.size,))
        hardware.write_state(one.name, value)
        assert (hardware.state(one.name) == value).all()
    for one in chip.program.matrices.values():
        content = stress_content.remembered(rng, one)
        hardware.write_matrices(one.name, content)
        for seen, wanted in zip(hardware.matrices(one.name), content, strict=True):
            assert (seen == wanted).all()
    counts, difference = stress(chip, hardware, rounds=4)
    assert difference is None, str(difference)
    assert counts["stress_tokens"] >= 4


def test_contents_are_such_as_a_model_could_have(small: Path) -> None:
    rng = np.random.default_rng(0)
    for _ in range(60):
        found = stress_content.numbers(rng, (3, 5), 16)
        assert found.shape == (3, 5) and abs(found).max() <= 1 << 15 and found.max() < 1 << 15
    program = load_program(small)
    real = Images(program, small)
    for _ in range(8):
        other = stress_content.changed_program(program, rng)
        images = stress_content.ChangedImages(other, small, rng)
        for name, parameter in program.parameters.items():
            if parameter.is_slot:
                continue
            if len(parameter.dims) == 2 and parameter.pieces and not parameter.code.startswith("f"):
                one, two = images.matrix(name), real.matrix(name)
                assert one.codes.shape == two.codes.shape and one.scales.shape == two.scales.shape
                assert images.matrix(name) is one
        image = stress_content.adapter(program, rng)
        for site in () if image is None else image.sites.values():
            assert 0 < site.rank <= RANK and not (site.a.codes & 127 == 127).any()
    cache = next(iter(program.caches.values()))
    value = stress_content.cached(rng, cache)
    for _ in range(20):
        changed = stress_content.quantized(value, True, rng)
        if changed is None:
            continue
        limit = FORMATS[value.format].limit
        assert abs(decode(changed.codes, value.format)).max() <= limit
        assert (changed.scale.mantissa >> (SCALE_BITS - 1) == 1).all()
        assert abs(changed.scale.exponent).max() <= 128


def test_on_the_command_line(
    chip: Chip, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for engine in ("simulator", "verilator"):
        with pytest.raises(UserError, match=f"'{engine}' does not let it"):
            check_engine(engine)
        assert cli.main(["check", str(chip.folder), "--engine", engine, "--stress"]) == 1
    assert "--engine rtl" in capsys.readouterr().err
    monkeypatch.setattr("intaglio.runtime.chip.load", lambda out, **options: chip)
    monkeypatch.setattr("intaglio.runtime.judge.stress.ROUNDS", 2)
    command = ["check", str(chip.folder), "--engine", "rtl", "--tokens", "1", "--stress", "--json"]
    assert cli.main(command) == 0
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert result["stress_rounds"] == 2 and result["bit_exact"] and result["cycle_exact"]
    assert any("2 rounds of extreme contents" in line for line in text_lines(result))


def test_the_adapter_that_was_active_is_active_again(chip: Chip) -> None:
    rng, image = np.random.default_rng(1), None
    while image is None or not image.sites:
        image = stress_content.adapter(chip.program, rng)
    chip.load_adapter(image)
    try:
        assert stress(chip, hardware_of(chip), rounds=2)[1] is None
        found = check_hardware(chip, "rtl", [3, 5])
        assert found["bit_exact"] and found["cycle_exact"], found["hardware_difference"]
    finally:
        chip.load_adapter(None)


def test_registers_of_other_engines_are_not_written(chip: Chip) -> None:
    from intaglio.dialects.errors import CompilerBug

    stub: Any = SimpleNamespace(model=object(), engine="verilator")
    with pytest.raises(CompilerBug, match="verilator has no registers"):
        RTLChip.jump(stub, 3)


def test_a_token_does_not_depend_on_what_registers_held(chip: Chip) -> None:
    hardware = hardware_of(chip)
    hardware.reset()
    wanted, _ = hardware.step(3, 0) or (None, None)
    hardware.power_up(np.random.default_rng(7))
    seen, _ = hardware.step(3, 0) or (None, None)
    np.testing.assert_array_equal(seen, wanted)


def test_resets_are_within_a_token(chip: Chip) -> None:
    one = _Round(chip, hardware_of(chip), np.random.default_rng(3))
    end = one.hardware.period(0, True)
    moments = {one._moment() for _ in range(200)}
    assert min(moments) >= 1 and max(moments) < end and len(moments) > 50
