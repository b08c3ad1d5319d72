"""Waveforms of both engines against the outputs that the same run samples."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from intaglio.backend import circt
from intaglio.dialects.errors import UserError
from intaglio.runtime.engines.arc import ArcModel
from intaglio.runtime.engines.running import Model, Trace
from intaglio.runtime.engines.vcd import PERIOD, VCDWriter
from intaglio.runtime.engines.verilator import VerilatorModel, compiler, verilator_root

ENGINES = ("rtl", "verilator")
CYCLES = 40

TEXT = """
hw.module private @counter(in %clk : !seq.clock, in %rst : i1, in %up : i1, out now : i8) {
  %one = hw.constant 1 : i8
  %five = hw.constant 5 : i8
  %sum = comb.add %count, %one : i8
  %next = comb.mux %up, %sum, %count : i8
  %count = seq.compreg %next, %clk reset %rst, %five : i8
  hw.output %count : i8
}
hw.module @traced(in %clk : !seq.clock, in %rst : i1, in %go : i1, in %x : i70, in %at : i3,
                  out now : i8, out second : i8, out wide : i70, out direct : i70, out read : i9) {
  %first = hw.instance "first" @counter(clk: %clk: !seq.clock, rst: %rst: i1, up: %go: i1)
      -> (now: i8)
  %bit = comb.extract %first from 0 : (i8) -> i1
  %other = hw.instance "second" @counter(clk: %clk: !seq.clock, rst: %rst: i1, up: %bit: i1)
      -> (now: i8)
  %held = seq.compreg %x, %clk : i70
  %direct = comb.xor %held, %x : i70
  %memory = seq.firmem 0, 1, undefined, undefined
      {inner_sym = #hw<innerSym@rom>, name = "mem_rom"} : <8 x 9>
  %read = seq.firmem.read_port %memory[%at], clock %clk : <8 x 9>
  hw.output %first, %other, %held, %direct, %read : i8, i8, i70, i70, i9
}
"""


@cache
def verilog() -> str:
    return circt.to_verilog(TEXT)


def build(engine: str, waveform: str = "vcd") -> Model:
    if engine == "rtl":
        return ArcModel(TEXT, "traced")
    try:
        compiler()
        verilator_root()
    except UserError as error:
        pytest.skip(str(error))
    return VerilatorModel(verilog(), "traced", waveform=waveform)


@pytest.fixture(params=ENGINES)
def model(request: pytest.FixtureRequest) -> Iterator[Model]:
    model = build(request.param)
    yield model
    model.close()


def drive(model: Model, start: int = 0, end: int = CYCLES) -> Trace:
    """Runs some of the cycles with the same random inputs each time."""
    rng = np.random.default_rng(7)
    wide = rng.integers(0, 1 << 62, (CYCLES, 2)).astype(np.uint64)
    wide[:, 1] &= np.uint64(63)
    inputs = {
        "rst": np.arange(CYCLES) == 0,
        "go": rng.integers(0, 2, CYCLES),
        "x": wide,
        "at": rng.integers(0, 8, CYCLES),
    }
    return model.run(end - start, {name: rows[start:end] for name, rows in inputs.items()})


def read_vcd(path: Path) -> dict[str, dict[int, int]]:
    """For each signal its values by time, at each time that stands in the file."""
    names: dict[str, list[str]] = {}
    scope: list[str] = []
    now: dict[str, int] = {}
    seen: dict[str, dict[int, int]] = {}
    time = -1

    def keep() -> None:
        for code, value in now.items():
            for name in names[code]:
                seen.setdefault(name, {})[time] = value

    for line in path.read_text().splitlines():
        match line.split():
            case ["$scope", "module", name, "$end"]:
                scope.append(name)
            case ["$upscope", "$end"]:
                scope.pop()
            case ["$var", _, _, code, name, *_]:
                names.setdefault(code, []).append("/".join([*scope, name]))
            case [word] if word[0] == "#":
                if time >= 0:
                    keep()
                time = int(word[1:])
            case [word] if word[0] in "01":
                now[word[1:]] = int(word[0])
            case [word, code] if word[0] == "b":
                now[code] = int(word[1:], 2)
            case _:
                pass
    keep()
    return {name.removeprefix("TOP/").removeprefix("traced/"): v for name, v in seen.items()}


def value(trace: Trace, output: str, cycle: int) -> int:
    words = np.atleast_1d(trace.outputs[output][cycle]).tolist()
    return sum(word << (64 * i) for i, word in enumerate(words))


@pytest.mark.parametrize(("first", "last"), [(0, CYCLES - 1), (11, 23), (39, 39)])
def test_values_and_range(model: Model, tmp_path: Path, first: int, last: int) -> None:
    path = tmp_path / "a.vcd"
    (memory,) = model.memories
    model.memory(memory)[:] = np.arange(8) * 60
    model.trace(path, first, last)
    trace = drive(model)
    # The file is complete as soon as its last cycle has been run.
    seen = read_vcd(path)
    times = [t for c in range(first, last + 1) for t in (PERIOD * c, PERIOD * c + PERIOD // 2)]
    assert list(seen["clk"]) == times
    assert list(seen["clk"].values()) == [1, 0] * (last - first + 1)
    for name, output in {**{o: o for o in trace.outputs}, "first/count": "now"}.items():
        for cycle in range(first, last + 1):
            expected = value(trace, output, cycle)
            assert seen[name][PERIOD * cycle] == expected, (name, cycle)
            assert seen[name][PERIOD * cycle + PERIOD // 2] == expected, (name, cycle)
    (row,) = (name for name in seen if name.endswith("Memory[7]"))
    assert set(seen[row].values()) == {420}


def test_tracing_changes_nothing(model: Model, tmp_path: Path) -> None:
    model.trace(tmp_path / "a.vcd", 3, 20)
    traced, plain = drive(model), drive(build("rtl"))
    assert all((traced.outputs[name] == plain.outputs[name]).all() for name in plain.outputs)


@pytest.mark.parametrize("engine", ENGINES)
def test_same_bytes(engine: str, tmp_path: Path) -> None:
    """In one run, and in pieces with outputs read between them; closed or complete."""
    paths = [tmp_path / f"{i}.vcd" for i in range(3)]
    for path in paths[:2]:
        model = build(engine)
        model.trace(path, 5, 29 if path is paths[0] else None)
        drive(model, 0, 30)
        model.close()
    model = build(engine)
    model.trace(paths[2], 5)
    for start in range(0, 30, 4):
        drive(model, start, min(30, start + 4))
        model.get("direct")
    model.trace_end()
    model.step(3)
    assert paths[0].read_bytes() == paths[1].read_bytes() == paths[2].read_bytes()


def test_two_waveforms_of_a_model(model: Model, tmp_path: Path) -> None:
    model.trace(tmp_path / "a.vcd", 2, 3)
    model.step(6)
    model.trace(tmp_path / "b.vcd", 0, 7)
    model.step(6)
    assert list(read_vcd(tmp_path / "a.vcd")["clk"]) == [20, 25, 30, 35]
    assert list(read_vcd(tmp_path / "b.vcd")["clk"]) == [60, 65, 70, 75]
    with pytest.raises(UserError, match="is to come"):
        model.trace(tmp_path / "c.vcd", 3, 11)
    with pytest.raises(UserError, match="cannot be written"):
        model.trace(tmp_path / "none" / "c.vcd")


def test_a_failing_writer_ends_the_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: VCDWriter, time: int, values: object) -> None:
        raise OSError(f"full at {time}")

    model = build("rtl")
    monkeypatch.setattr(VCDWriter, "change", full)
    model.trace(tmp_path / "a.vcd", 3)
    with pytest.raises(OSError, match="full at 30"):
        model.step(5)
    model.step(5)


def test_a_program_that_ends_early_leaves_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "a.vcd"
    code = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_trace import build
model = build(sys.argv[1])
model.trace(Path({str(path)!r}))
model.step(5)
raise SystemExit(3)
"""
    for engine in ENGINES:
        build(engine).close()
        assert subprocess.run([sys.executable, "-c", code, engine]).returncode == 3
        assert list(read_vcd(path)["clk"]) == list(range(0, 50, 5))
        path.unlink()


def test_fst(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot write"):
        build("rtl").trace(tmp_path / "a.fst")
    paths = [tmp_path / "a.fst", tmp_path / "b.fst"]
    try:
        for path in paths:
            model = build("verilator", "fst")
            model.trace(path, 5, 29)
            drive(model)
            model.close()
    except UserError as error:
        assert "lz4" in str(error)
        return
    content = paths[0].read_bytes()
    assert content == paths[1].read_bytes()
    # Start and end time in the header of section 0.
    assert [int.from_bytes(content[i : i + 8]) for i in (1, 9, 17)] == [329, 50, 295]
