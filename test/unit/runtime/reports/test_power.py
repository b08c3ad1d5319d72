"""Average power: shares counted cycle by cycle, and what targets without figures say."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from intaglio.backend.compile import compile_model
from intaglio.backend.program.program import load_program
from intaglio.backend.stages import Options
from intaglio.backend.target.file import read_target
from intaglio.backend.target.target import load_target
from intaglio.dialects.json_file import JSONFile
from intaglio.runtime.reports.inspect import inspect_json
from intaglio.runtime.reports.power import OnTimes, RomBits, on_times, power, ungated
from intaglio.runtime.reports.rom_use import Placed, placed_matrices
from intaglio.runtime.reports.tables import all_tables, summary_lines
from intaglio.runtime.reports.timing import TokenTimeline, spans, token_cycles

Named = Callable[[str], Path]


@pytest.fixture(scope="module")
def gated(model: Named, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("gated") / "out"
    options = Options("tom-mini", context=32, emit="program", adapter_rank=4)
    return compile_model(model("ternary"), out, options).folder


def placed_of(out: Path) -> dict[str, Placed]:

    return placed_matrices(load_program(out), JSONFile.read(out / "mapping.json"))


def power_note(out: Path) -> str:
    return next(note for title, _, _, note in all_tables(inspect_json(out)) if title == "Power")


@pytest.mark.parametrize("rank", [0, 4])
@pytest.mark.parametrize("position", [0, 31])
def test_on_times_against_every_cycle(gated: Path, position: int, rank: int):
    """Wakes and sleeps replayed on an array with an element a cycle."""
    program = load_program(gated)
    ranks = dict.fromkeys(program.sites, rank)
    period = int(token_cycles(program, [position], ranks=ranks).period[0])
    is_on = {name: np.zeros(period, bool) for name in program.domains}
    woken: dict[str, int] = {}
    for span, number in spans(program, [position], ranks=ranks):
        block = program.blocks[number]
        one = block.instructions[span.instruction]
        if one.queue != "power":
            continue
        domain = block.instances[span.instance][one.does.uses["domain"]]
        if one.opcode == "wake":
            woken[domain] = int(span.start[0])
        else:
            is_on[domain][woken.pop(domain) : int(span.finish[0])] = True
    # The last layer has no next one to wake.
    assert set(woken) <= {"none"}
    times = on_times(program, position, ranks)
    assert times.period == period and set(times.domains) == set(is_on)
    for name, cycles in is_on.items():
        assert times.share(name) == pytest.approx(cycles.mean())
        assert 0 < times.share(name) < 1
    counts = np.bincount(np.sum(list(is_on.values()), axis=0))
    at_once = times.at_once(program.domains)
    assert at_once == {n: pytest.approx(c / period) for n, c in enumerate(counts) if c}
    assert sum(at_once.values()) == pytest.approx(1)

    bits = RomBits.of(program, placed_of(gated))
    on = np.full(period, bits.always, float)
    for name, cycles in is_on.items():
        on += bits.domains[name] * cycles
    assert bits.gated_share(times) == pytest.approx(on.mean() / bits.capacity)


@pytest.mark.parametrize("words", [32, 256])
def test_chosen_experts_banks(model: Named, tmp_path: Path, words: int):
    """The part that is on, counted over all pairs of the six experts."""
    settings = ("policy.expert_power=chosen", f"l_unit.bank_words={words}")
    options = Options("tom-mini", settings, context=16, emit="program")
    out = compile_model(model("experts_ternary"), tmp_path / "out", options).folder
    program, placed = load_program(out), placed_of(out)
    machine, bits = program.machine, RomBits.of(program, placed)
    assert set(bits.chosen) == {"power0_experts", "power1_experts"}
    for domain, part in bits.chosen.items():
        shares: list[float] = []
        for pair in combinations(range(6), 2):
            on = whole = 0.0
            for name in program.domains[domain]:
                family = placed[name]
                (piece,) = family.pieces
                each = piece.expert_words(family.shape, machine)
                size = sum(family.bits(machine).values()) / (6 * each)
                # Word by word: on with all of its bank, of which any family's expert may be chosen.
                for word in range(piece.base, piece.base + 6 * each):
                    bank = word // words
                    reached = any(
                        p.base + e * p.expert_words(o.shape, machine) < (bank + 1) * words
                        and p.base + (e + 1) * p.expert_words(o.shape, machine) > bank * words
                        for other in program.domains[domain]
                        for o in (placed[other],)
                        for p in o.pieces
                        for e in pair
                    )
                    on += size * reached
                    whole += size
            shares.append(on / whole)
        assert part == pytest.approx(np.mean(shares), rel=1e-3)
        assert part < 0.6 or words > 32
    content = inspect_json(out)["power"]
    assert content["rom"]["chosen_parts"] == bits.chosen
    layer = Options("tom-mini", settings[1:], context=16, emit="program")
    other = compile_model(model("experts_ternary"), tmp_path / "layer", layer).folder
    whole = inspect_json(other)["power"]
    assert whole["rom"]["chosen_parts"] == {}
    for one, all_ in zip(content["positions"], whole["positions"], strict=True):
        # A wake and a cycle an expert behind the choices of two layers, and the sleep before it.
        wake = 2 * (machine.power_wake + 2)
        most = wake + 2 * (machine.power_sleep + machine.issue)
        assert 0 < one["cycles"] - all_["cycles"] <= most
        assert one["rom"]["gated"]["on_share"] < all_["rom"]["gated"]["on_share"]
    assert "only the banks of chosen experts are on" in power_note(out)


def test_bits_are_those_of_the_rom(gated: Path):
    program, rom = load_program(gated), inspect_json(gated)["rom"]
    bits = RomBits.of(program, placed_of(gated))
    assert bits.capacity == rom["capacity_bits"]
    assert sum(bits.domains.values()) + bits.always == rom["used_bits"]
    assert sum(bits.extra_domains.values()) + bits.extra_always == rom["extra_bits"] > 0
    # Layers of equal shape.
    assert len({*bits.domains.values()} - {0}) == 1
    assert bits.ungated_share(program.machine) == rom["used_bits"] / rom["capacity_bits"]
    assert bits.ungated_share(replace(program.machine, rom="array")) == 1


def test_power_is_the_targets_model(gated: Path):
    target, program = load_target("tom-mini"), load_program(gated)
    rest, rom_on = target.number("power.rest_w"), target.number("power.rom_on_w")
    content = inspect_json(gated)["power"]
    assert content["published"] is None and content["l_units"] is None
    assert content["rom"]["assumed_on_share"]["value"] == 0.15
    assert [one["position"] for one in content["positions"]] == list(program.positions)
    for one in content["positions"]:
        seconds = one["cycles"] / program.machine.clock_hz
        gated_power, ungated = one["rom"]["gated"], one["rom"]["ungated"]
        for part in (gated_power, ungated, gated_power["while_a_domain_is_on"]):
            assert part["watts"] == pytest.approx(rest + rom_on * part["on_share"])
        assert rest < gated_power["watts"] < ungated["watts"] < rest + rom_on
        assert gated_power["millijoules"] == pytest.approx(gated_power["watts"] * seconds * 1e3)
        # Time in which no domain is on counts in the one and not in the other.
        awake = 1 - gated_power["domains_on_at_once"].get("0", 0)
        bits = content["rom"]
        assert bits["always_on_bits"] == 0
        while_on = gated_power["while_a_domain_is_on"]["on_share"]
        assert while_on * awake == pytest.approx(gated_power["on_share"])
    assert "this program has" in power_note(gated) and "deeper than the target's" in power_note(
        gated
    )


@pytest.fixture(scope="module")
def always_on(model: Named, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compiled for the same chip without power gating."""
    folder = tmp_path_factory.mktemp("always_on")
    targets = Path(load_target.__code__.co_filename).parents[1] / "targets"
    text = (targets / "tom-mini.toml").read_text()
    file = folder / "always-on.toml"
    file.write_text(re.sub(r"^power_(wake|sleep) = .*\n", "", text, flags=re.MULTILINE))
    options = Options(str(file), context=32, emit="program", adapter_rank=4)
    return compile_model(model("ternary"), folder / "out", options).folder


@pytest.mark.parametrize(("wake", "saves"), [(10, True), (1000, False)])
def test_ungated_is_the_chip_without_switches(
    model: Named, always_on: Path, tmp_path: Path, wake: int, saves: bool
):
    """To the cycle; so the comparison says whether gating saves energy."""
    options = Options(
        "tom-mini", (f"latency.power_wake={wake}",), context=32, emit="program", adapter_rank=4
    )
    out = compile_model(model("ternary"), tmp_path / "out", options).folder
    program, other = load_program(out), load_program(always_on)
    assert program.domains and not other.domains
    for rank in (0, 4):
        ranks = dict.fromkeys(program.sites, rank)
        for sampled in (True, False):
            ours, its = (
                token_cycles(one, range(32), sampled, ranks) for one in (ungated(program), other)
            )
            assert ours.period.tolist() == its.period.tolist()
    content, without = inspect_json(out), inspect_json(always_on)
    pairs = zip(content["power"]["positions"], without["power"]["positions"], strict=True)
    for one, two in pairs:
        gated_power = one["rom"]["gated"]
        assert one["rom"]["ungated"] == two["rom"]["ungated"]
        assert two["rom"]["gated"] is None and two["rom"]["ungated"]["cycles"] == two["cycles"]
        assert gated_power["added_cycles"] == one["cycles"] - two["cycles"]
        assert (gated_power["millijoules"] < two["rom"]["ungated"]["millijoules"]) == saves
    added = content["power"]["positions"][0]["rom"]["gated"]["added_cycles"]
    assert any(f"gating costs {added:,} cycles" in line for line in summary_lines(content))
    rows = next(rows for title, _, rows, _ in all_tables(content) if title == "Power")
    assert any(row[:2] == ("  gating costs, cycles a token", f"{added:,}") for row in rows)


def test_the_assumed_share_moves_what_hangs_on_it(gated: Path):
    """Full-size tom splits two published figures by the assumed share; the mini does not."""
    program, placed = load_program(gated), placed_of(gated)
    tom = load_target("tom")
    one = power(TokenTimeline(program, [0]), tom, placed)["positions"][0]["rom"]["gated"]
    low, high = one["watts_range"]
    assert low < one["watts"] <= high
    ends = [tom.with_options([f"power.gated_on_share={end}"]) for end in (0.0333, 0.0667)]
    share = one["on_share"]
    watts = [t.number("power.rest_w") + t.number("power.rom_on_w") * share for t in ends]
    assert [low, high] == pytest.approx(sorted(watts))
    mini = inspect_json(gated)["power"]["positions"][0]["rom"]["gated"]
    assert mini["watts_range"][0] == mini["watts_range"][1]


def test_published_figures_of_tom_are_its_model():
    """At the assumed share the model gives what is published, gated and not."""
    tom = load_target("tom")
    rest, rom_on = tom.number("power.rest_w"), tom.number("power.rom_on_w")
    assert rest + rom_on == pytest.approx(25.813, rel=1e-3)
    assert rest + rom_on * tom.number("power.gated_on_share") == pytest.approx(5.33, rel=1e-3)


def test_energy_of_l_units(compiled: Named):
    """A busy cycle each for every word of the engraved codes, padding included."""
    out = compiled("llama")
    content, program = inspect_json(out)["power"], load_program(out)
    assert content["rom"] is None and content["published"] is None
    machine = program.machine
    words = 0
    for block in program.blocks:
        for instance in block.instances:
            for one in block.whole:
                if one.opcode == "matvec":
                    name = instance[one.does.weights]
                    placed = placed_of(out)[name]
                    words += sum(
                        piece.code_words(placed.shape, machine) * piece.tiles
                        for piece in placed.pieces
                    )
    assert content["l_units"]["busy_cycles"] == words * machine.l_units
    joules = words * machine.l_units * 13.6e-12
    for one in content["positions"]:
        assert one["l_units"]["millijoules"] == pytest.approx(joules * 1e3)
        assert one["l_units"]["watts"] == pytest.approx(joules / one["seconds"])
        assert 0 < one["l_units"]["busy_share"] < 1
    lines = [line for line in summary_lines(inspect_json(out)) if line.startswith("power")]
    for line, one in zip(lines, content["positions"], strict=True):
        units = one["l_units"]
        said = f"L-Units {units['watts']:.4g} W, {units['millijoules']:.4g} mJ a token"
        whole = one["activity"]
        said += f"; all activity {whole['watts']:.4g} W, {whole['millijoules']:.4g} mJ a token"
        assert line == f"power   {said} at position {one['position']}"


def test_two_passes_have_their_own_energy(model: Named, tmp_path: Path):
    options = Options("bitrom-mini", context=16, emit="program")
    out = compile_model(model("ternary"), tmp_path / "out", options).folder
    figures = inspect_json(out)["power"]["l_units"]
    assert figures["figure"] == "energy.l_unit_cycle_8bit_pj"
    target = read_target(out)
    assert figures["cycle_pj"]["value"] == target.number("energy.l_unit_cycle_8bit_pj")


@pytest.mark.parametrize(
    ("settings", "holds"),
    [
        (("l_unit.lanes=8",), False),
        (("l_unit.lanes=8", "power.l_unit_mw=3.4"), True),
        (("array.l_units=2",), True),
    ],
)
def test_energy_of_other_l_units_is_not_stated(
    model: Named, tmp_path: Path, settings: tuple[str, ...], holds: bool
):
    options = Options("roma-mini", settings, context=16, emit="program")
    out = compile_model(model("llama"), tmp_path / "out", options).folder
    content = inspect_json(out)["power"]
    assert (content["l_units"] is not None) == (content["l_units_invalid"] is None) == holds
    if not holds:
        assert all(one["l_units"] is None for one in content["positions"])
        assert "--set l_unit.lanes made another one" in power_note(out)
        assert "--set power.l_unit_mw=... states its own" in power_note(out)


def test_energy_that_follows_the_lanes(model: Named, tmp_path: Path):
    options = Options("bitrom-mini", ("l_unit.lanes=8",), context=16, emit="program")
    out = compile_model(model("ternary"), tmp_path / "out", options).folder
    figures = inspect_json(out)["power"]["l_units"]
    assert figures["cycle_pj"]["value"] == pytest.approx(2 * 8 / 5.2 / 2)


def test_a_published_total_gives_energy(compiled: Named):
    out = compiled("llama")
    program = load_program(out)
    content = power(TokenTimeline(program, [0]), load_target("roma"), placed_of(out))
    (one,) = content["positions"]
    assert content["published"]["value"] == one["published"]["watts"] == 33.1
    assert one["published"]["millijoules"] == pytest.approx(33.1e3 * one["seconds"])


def test_a_target_that_says_nothing(model: Named, tmp_path: Path):
    options = Options("hc1-mini", context=16, emit="program")
    out = compile_model(model("llama"), tmp_path / "out", options).folder
    content = inspect_json(out)
    assert not any(content["power"][key] for key in ("rom", "published", "l_units"))
    assert "not stated by the target" in power_note(out)
    assert not any("power" in line for line in summary_lines(content))


def test_domains_that_stay_on():
    """Intervals join, also where a token leaves a domain on."""
    times = OnTimes(100, {"a": [(0, 10), (90, 100)], "b": [(5, 20)], "c": []})
    assert [times.share(name) for name in "abc"] == [0.2, 0.15, 0]
    assert times.at_once("abc") == {0: 0.7, 1: 0.25, 2: 0.05}
    assert times.at_once("c") == {0: 1}
