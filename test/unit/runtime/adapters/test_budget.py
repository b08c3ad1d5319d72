"""The trade of adapters against context: equal to what a compile reserves."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from intaglio.backend.compile import compile_model
from intaglio.backend.program.program import load_program
from intaglio.backend.stages import Options
from intaglio.dialects.errors import DoesNotFit
from intaglio.runtime.adapters.budget import (
    ON_DIE,
    Demand,
    adapter_bytes,
    budget,
    context_that_fits,
    demand_of,
    external_reads,
    external_saving,
    tables,
    used_bytes,
)
from intaglio.runtime.reports.inspect import inspect_json
from intaglio.runtime.reports.tables import size_text
from intaglio.runtime.reports.text import inspect_text
from intaglio.runtime.reports.traffic import traffic


def test_rows_agree_with_the_compiled_chip(slotted: Path):
    content = inspect_json(slotted)
    trade, sram = content["budget"], content["sram"]
    assert trade["rank"] == 4 and trade["context"] == 64 and trade["has_slots"]
    assert trade["sites"] == 14
    (own,) = (row for row in trade["ranks"] if row["rank"] == 4)
    assert own["adapter_bytes"] == sram["adapter_slot_bytes"]
    scales = content["vector_memory"]["kv_scale_bytes"]
    assert trade["kv_bytes_per_token"] * 64 == sram["kv_bytes"] + scales
    assert 0 < own["use"]["64"] < 1
    contexts = [row["context"] for row in trade["ranks"]]
    assert contexts == sorted(contexts, reverse=True)
    used = [row["use"]["64"] for row in trade["ranks"]]
    assert used == sorted(used) and used[0] < used[-1]


def test_longest_context_is_what_a_compile_takes(
    model: Callable[[str], Path], slotted: Path, tmp_path: Path
):
    """On an SRAM so small that the limit is within the model's 128 positions."""
    program = load_program(slotted)
    demand = demand_of(program)
    size = used_bytes(program.machine, demand, 4) + 5 * demand.code_bytes
    small = replace(program.machine, sram_bytes=size + demand.code_bytes - 1)
    longest = context_that_fits(small, demand, 4)
    assert longest == 5 * program.machine.h_units <= 128
    settings = (f"h_unit.sram_bytes={small.sram_bytes}",)

    def made(context: int) -> None:
        options = Options("roma-mini", settings, context=context, adapter_rank=4)
        compile_model(model("llama"), tmp_path / "out", options)

    made(longest)
    with pytest.raises(DoesNotFit, match="adapter slots") as caught:
        made(longest + 1)
    assert f"--context {longest} would fit" in str(caught.value)


def test_a_smaller_rank_that_fits_is_named(
    model: Callable[[str], Path], slotted: Path, tmp_path: Path
):
    program = load_program(slotted)
    demand = demand_of(program)
    rounds = -(-program.capacity // program.machine.h_units)
    size = used_bytes(program.machine, demand, 9) + rounds * demand.code_bytes
    settings = (f"h_unit.sram_bytes={size}",)

    def made(rank: int) -> None:
        options = Options("roma-mini", settings, context=program.capacity, adapter_rank=rank)
        compile_model(model("llama"), tmp_path / "out", options)

    with pytest.raises(DoesNotFit) as caught:
        made(20)
    (named,) = re.findall(r"--adapter-slots (\d+)", str(caught.value))
    assert int(named) >= 9
    made(int(named))
    with pytest.raises(DoesNotFit):
        made(int(named) + 1)


def test_combinations_that_fit_are_named(
    model: Callable[[str], Path], slotted: Path, tmp_path: Path
):
    """Each of them compiles, and no context beyond it does."""
    program = load_program(slotted)
    demand, units = demand_of(program), program.machine.h_units
    size = used_bytes(program.machine, demand, 5) + 3 * demand.code_bytes + demand.code_bytes // 2
    settings = (f"h_unit.sram_bytes={size}",)

    def made(rank: int, context: int) -> None:
        options = Options("roma-mini", settings, context=context, emit="fabric", adapter_rank=rank)
        compile_model(model("llama"), tmp_path / "out", options)

    with pytest.raises(DoesNotFit) as caught:
        made(8, 128)
    line = next(one for one in str(caught.value).splitlines() if "what fits:" in one)
    named = re.findall(r"(rank (\d+)|no slots) with (\d+) tokens", line)
    assert named, line
    small = replace(program.machine, sram_bytes=size)
    for _, rank, context in named:
        fits = context_that_fits(small, demand, int(rank or 0))
        assert int(context) == min(fits, 128) and int(context) % units == 0
        made(int(rank or 0), int(context))
        if int(context) < 128:
            with pytest.raises(DoesNotFit):
                made(int(rank or 0), int(context) + 1)
    assert [rank for _, rank, _ in named][-1] == ""


def test_tokens_on_the_die_that_fit_are_named(model: Callable[[str], Path], tmp_path: Path):
    """Either fewer of them, or a shorter context."""

    def made(on_die: int, context: int = 64) -> None:
        settings = ("h_unit.sram_bytes=1800", f"external.kv_on_die_tokens={on_die}")
        options = Options("bitrom-mini", settings, context=context, emit="fabric")
        compile_model(model("ternary"), tmp_path / "out", options)

    with pytest.raises(DoesNotFit) as caught:
        made(64)
    (tokens,) = map(int, re.findall(r"kv_on_die_tokens=(\d+) would fit", str(caught.value)))
    (context,) = map(int, re.findall(r"--context (\d+) would fit", str(caught.value)))
    made(tokens)
    made(64, context)
    with pytest.raises(DoesNotFit):
        made(tokens + 4)
    with pytest.raises(DoesNotFit):
        made(64, context + 1)


def test_scales_of_tokens_outside_are_counted(model: Callable[[str], Path], tmp_path: Path):
    """They alone may be too much for the vector units; fewer tokens on the die are no way out."""

    def made(context: int) -> None:
        settings = ("vector.sram_bytes=3000", "external.kv_on_die_tokens=8", "kv=int8")
        options = Options("bitrom-mini", settings, context=context, emit="fabric")
        compile_model(model("ternary"), tmp_path / "out", options)

    with pytest.raises(DoesNotFit) as caught:
        made(128)
    text = str(caught.value)
    assert "scales of cached keys and values take 4096" in text and "kv_on_die" not in text
    assert "--set kv=fp8 would fit" in text
    (context,) = map(int, re.findall(r"--context (\d+) would fit", text))
    made(context)
    with pytest.raises(DoesNotFit):
        made(context + 1)


@pytest.mark.parametrize(
    ("kv", "size", "named"),
    [
        ("int16", 2048, ["int8", "fp8", "half8"]),
        ("int16", 2047, []),
        ("int8", 2047, []),
        ("fp8", 64, []),
        ("int16", 64, []),
    ],
)
def test_only_formats_that_fit_are_named(
    kv: str, size: int, named: list[str], model: Callable[[str], Path], tmp_path: Path
):
    """16 tokens an H-Unit, 8 vectors of 16 elements each; scales lie elsewhere."""
    settings = (f"h_unit.sram_bytes={size}", f"kv={kv}")
    options = Options("roma-mini", settings, context=128, emit="fabric")
    with pytest.raises(DoesNotFit) as caught:
        compile_model(model("llama"), tmp_path / "out", options)
    assert re.findall(r"--set kv=(\w+) would fit", str(caught.value)) == named
    assert "a larger target" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "sites"),
    [
        # q, k and v are one matrix there, a layer has 5.
        ("llama", 14),
        ("qwen", 14),
        # No gate.
        ("phi", 12),
    ],
)
def test_without_slots_the_sites_are_those_that_slots_would_make(
    model: Callable[[str], Path], compiled: Callable[[str], Path], tmp_path: Path, name: str, sites
):
    """Rank by rank what a compile with slots takes: packed projections count as their parts."""
    trade = inspect_json(compiled(name))["budget"]
    assert not trade["has_slots"] and trade["rank"] == 0
    options = Options("roma-mini", adapter_rank=16)
    made = inspect_json(compile_model(model(name), tmp_path / "out", options).folder)
    assert trade["sites"] == made["budget"]["sites"] == made["adapter"]["sites"] == sites
    (own,) = (row for row in trade["ranks"] if row["rank"] == 16)
    assert own["adapter_bytes"] == made["sram"]["adapter_slot_bytes"]
    for ours, theirs in zip(trade["ranks"], made["budget"]["ranks"], strict=True):
        assert ours["adapter_bytes"] == theirs["adapter_bytes"]
        assert ours["context"] == theirs["context"]
    text = " ".join(inspect_text(inspect_json(compiled(name))).split())
    assert f"{sites} sites that slots would stand beside" in text


def test_a_model_without_sites_has_no_ranks(compiled: Callable[[str], Path]):
    program = load_program(compiled("llama"))
    assert [row["rank"] for row in budget(program)["ranks"]] == [0]


def test_nothing_fits(slotted: Path):
    machine = replace(load_program(slotted).machine, sram_bytes=64)
    assert context_that_fits(machine, Demand(100, [(64, 64)]), 16) == 0


def test_bytes_of_adapters(slotted: Path):
    """Each of 8 H-Units has a row of A, 4 words, and up to 4 rows of B, a word each; 5 scales."""
    machine = load_program(slotted).machine
    demand = Demand(1, [(30, 50)])
    assert adapter_bytes(machine, demand, 0) == 0
    assert adapter_bytes(machine, demand, 8) == 8 * (2 * 4 * 16 + 5 * 2)
    ternary = replace(machine, adapter="ternary")
    assert adapter_bytes(ternary, demand, 8) == 8 * (2 * 4 * 4 + 5 * 2)
    int6 = replace(machine, adapter="int6")
    assert adapter_bytes(int6, demand, 4) == 8 * (2 * 4 * 12 + 5 * 2)


def test_saving_of_tokens_on_the_die():
    """Against counting the accesses one by one; and the paper's point."""
    assert external_saving(32, 128) == pytest.approx(0.436, abs=5e-4)
    for tokens in (1, 2, 7, 50):
        for on_die in (0, 1, 3, tokens, tokens + 5):
            every = inside = 0
            for step in range(1, tokens + 1):
                every += step
                inside += min(step, on_die)
            assert external_saving(on_die, tokens) == pytest.approx(inside / every)


def test_bytes_read_outside():
    """Against counting them one by one."""
    for tokens in (1, 7, 50):
        for on_die in (0, 3, tokens, tokens + 5):
            reads = sum(max(0, step - on_die) for step in range(1, tokens + 1))
            assert external_reads(on_die, tokens) == reads
            every = tokens * (tokens + 1) // 2
            assert reads == pytest.approx(every * (1 - external_saving(on_die, tokens)))


def test_external_table(slotted: Path):
    """The trade is between tokens on the die and adapters."""
    program = load_program(slotted)
    demand, units = demand_of(program), program.machine.h_units
    assert (demand.code_bytes, demand.scale_bytes, demand.context) == (128, 8, 64)
    used = used_bytes(program.machine, demand, 4)
    small = replace(
        program.machine,
        kv_on_die=2 * units,
        external_bytes=8,
        sram_bytes=used + 3 * demand.code_bytes,
    )
    chip = replace(program, machine=small)
    trade = budget(chip)
    external = trade["external"]
    assert external["tokens_on_die"] == 2 * units and external["tokens"] == [64]
    assert external["room_on_die"] == context_that_fits(small, demand, 4) == 3 * units
    on_die = [row["on_die"] for row in external["rows"]]
    assert on_die == sorted({*(n for n in ON_DIE if n <= 64 and n % units == 0), 2 * units})
    for row in external["rows"]:
        assert row["fits"] == (row["on_die"] <= external["room_on_die"])
        assert row["kv_bytes"] == row["on_die"] * demand.code_bytes
        read = traffic(chip, range(64), row["on_die"]).read.sum()
        assert row["read_bytes"]["64"] == read >= row["ideal_read_bytes"]["64"]
        ideal = external_reads(row["on_die"], 64) * demand.code_bytes
        assert row["ideal_read_bytes"]["64"] == ideal
        assert row["ideal_saving"]["64"] == external_saving(row["on_die"], 64)
    (own,) = (row for row in trade["ranks"] if row["rank"] == 4)
    assert max(trade["contexts"]) <= 64
    for tokens, use in own["use"].items():
        assert (use <= 1) == (int(tokens) <= own["context"] == 3 * units)
    titles = [title for title, *_ in tables(trade, size_text)]
    assert titles == [
        "Adapter rank against tokens on the die",
        "Tokens on the die",
        "Tokens on the die, if each token were fetched alone",
    ]
    assert [title for title, *_ in tables(budget(program), size_text)] == [
        "Adapter rank against context"
    ]


def test_text_marks_the_point(slotted: Path):
    text = inspect_text(inspect_json(slotted))
    assert "Adapter rank against context" in text and "14 slots in fp8" in text
    assert "\n 4* " in text
