"""The test bench in simulators that are not ours, and its own complaint about a wrong answer."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from small_chip import SMALL

import intaglio
from intaglio.backend.compile import compile_model
from intaglio.backend.stages import Options
from intaglio.backend.testbench import Expected, bench_text
from intaglio.runtime.engines.verilator import translate
from intaglio.runtime.expected_tokens import expected_tokens


@pytest.fixture(scope="module")
def hw(model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The hardware of a small chip, with adapter slots: a load port has to be left alone."""
    out = tmp_path_factory.mktemp("testbench") / "out"
    options = Options("roma-mini", SMALL, context=8, adapter_rank=2, emit="sv")
    compile_model(model("tied"), out, options, expected=expected_tokens)
    return out / "hw"


def answers(text: str) -> list[tuple[int, int]]:
    return [
        (int(a), int(b)) for a, b in re.findall(r"^token (\d+) cycle (\d+)", text, re.MULTILINE)
    ]


def test_states_what_the_simulator_answers(hw: Path) -> None:
    chip = intaglio.load(hw.parent)
    tokens = chip.generate([1], tokens=4)
    text = (hw / "testbench.sv").read_text()
    stated = re.findall(r"(\d): answer = \{32'd(\d+), 32'd(\d+)\};", text)
    assert [int(number) for number, _, _ in stated] == [0, 1, 2, 3]
    assert [int(token) for _, token, _ in stated] == tokens
    assert [int(cycle) for *_, cycle in stated] == [chip.cycles(i) for i in range(4)]


@pytest.mark.skipif(shutil.which("iverilog") is None, reason="needs Icarus: apt install iverilog")
def test_icarus(hw: Path, tmp_path: Path) -> None:
    """Without a warning; tokens and cycles are the simulator's, and a wrong answer is an error."""
    bench = tmp_path / "bench"
    command = ["iverilog", "-g2012", "-Wall", "-s", "testbench", "-c", "filelist.f", "-o"]
    done = subprocess.run(
        [*command, bench, "testbench.sv"], cwd=hw, capture_output=True, text=True, check=True
    )
    assert done.stdout + done.stderr == ""
    done = subprocess.run(
        ["vvp", "-n", bench, "+tokens=2"], cwd=hw, capture_output=True, text=True, check=True
    )
    assert "2 of 2 as Intaglio's simulator says" in done.stdout
    expected = intaglio.load(hw.parent).generate([1], tokens=2)
    assert [token for token, _ in answers(done.stdout)] == expected

    text = (hw / "testbench.sv").read_text()
    changed = re.sub(r"1: answer = \{32'd\d+", "1: answer = {32'd77", text)
    assert changed != text
    (tmp_path / "changed.sv").write_text(changed)
    subprocess.run([*command, bench, tmp_path / "changed.sv"], cwd=hw, check=True)
    done = subprocess.run(["vvp", "-n", bench, "+tokens=2"], cwd=hw, capture_output=True, text=True)
    assert done.returncode == 1
    assert "WRONG: token 77 was expected" in done.stdout
    assert "1 of 2 tokens differ" in done.stdout + done.stderr


def test_verilator_takes_the_list(hw: Path, tmp_path: Path) -> None:
    """The options that build the bench, as far as the translation to C++."""
    options = (hw / "verilator.f").read_text()
    assert "--binary\n" in options
    translated = tmp_path / "translate.f"
    translated.write_text(options.replace("--binary\n", "--cc --main --timing\n"))
    said = translate(["-f", str(translated), "-Mdir", str(tmp_path)], hw)
    assert "%Warning" not in said
    assert (tmp_path / "Vtestbench.mk").is_file()


def test_ports_left_alone() -> None:
    """Inputs that the bench does not know get zeros of their width, outputs stay open."""
    ports = {"clk": (False, 1), "vector_row": (False, 9), "vector_data": (True, 64)}
    text = bench_text(ports, [], {}, [Expected(3, 40)])
    assert ".vector_row(9'd0)" in text
    assert ".vector_data()" in text
    assert "0: answer = {32'd3, 32'd40};" in text
