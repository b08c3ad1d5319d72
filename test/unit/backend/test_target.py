from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from intaglio.backend.target import Target, load_target, target_names
from intaglio.backend.target_formula import FormulaError, evaluate
from intaglio.backend.target_report import list_json, list_text, target_json, target_text
from intaglio.backend.target_schema import KEYS, ORIGINS, SECTIONS
from intaglio.dialects.errors import UserError, UserErrors
from intaglio.dialects.machine import Machine

MINI = (Path(load_target.__code__.co_filename).parent / "targets" / "roma-mini.toml").read_text()
LANES = next(line for line in MINI.splitlines() if line.startswith("lanes = { value = 16,"))

Edit = Callable[[str, str], UserError]


@pytest.fixture
def mini() -> Target:
    return load_target("roma-mini")


@pytest.fixture
def roma() -> Target:
    return load_target("roma")


@pytest.fixture
def broken(tmp_path: Path) -> Edit:
    """The error for roma-mini with one passage changed."""

    def load(old: str, new: str) -> UserError:
        assert MINI.count(old) == 1, old
        path = tmp_path / "mine.toml"
        path.write_text(MINI.replace(old, new))
        with pytest.raises(UserError) as caught:
            load_target(path)
        assert caught.value.file == str(path) or isinstance(caught.value, UserErrors)
        assert str(path) in str(caught.value)
        return caught.value

    return load


def test_names():
    assert {"roma", "roma-mini"} <= set(target_names())


@pytest.mark.parametrize("name", target_names())
def test_every_number_has_an_origin(name: str):
    target = load_target(name)
    assert target.name == name
    for key, parameter in target.parameters.items():
        assert parameter.origin in ORIGINS, key
        assert parameter.unit == KEYS[key].unit
        if parameter.origin in ("paper", "secondary"):
            assert parameter.source, key
        if parameter.origin == "derived":
            assert parameter.formula, key
        if parameter.origin == "assumed":
            assert parameter.range, key
            assert parameter.reason, key


@pytest.mark.parametrize("name", target_names())
def test_machine_round_trip(name: str):
    machine = load_target(name).machine()
    assert machine.name == name
    assert Machine.from_dict(json.loads(json.dumps(machine.to_dict()))) == machine


def test_roma_geometry(roma: Target):
    machine = roma.machine()
    assert (machine.tiles, machine.l_units, machine.lanes) == (256, 64, 32)
    assert (machine.vector_lanes, machine.results_per_cycle) == (512, 512)
    assert (machine.clock_hz, machine.kv_port_bytes) == (500_000_000, 64)
    assert 0 <= 1_860_000_000 - roma.rom_bytes < 16_384
    assert roma.adapter_kv_sram_bytes == 288 * 2**20
    assert roma.sram_bytes == 304 * 2**20
    assert roma.peak_macs_per_second == 256 * 64 * 32 * 500_000_000


def test_mini_has_the_unit_contents_of_roma(roma: Target, mini: Target):
    for key in ("l_unit.rom_bits", "h_unit.sram_bytes", "vector.sram_bytes", "l_unit.plane_bits"):
        assert mini[key] == roma[key]
    assert (mini.machine().tiles, mini.machine().l_units, mini.machine().lanes) == (8, 4, 16)


def test_path_of_a_users_file(tmp_path: Path):
    path = tmp_path / "mine.toml"
    path.write_text(MINI.replace('name = "roma-mini"', 'name = "mine"'))
    assert load_target(path).name == load_target(str(path)).name == "mine"


def test_unknown_target():
    with pytest.raises(UserError, match="no target is called 'rome'") as caught:
        load_target("rome")
    assert caught.value.hint is not None
    assert "did you mean 'roma'?" in caught.value.hint
    assert "roma-mini" in caught.value.hint


def test_missing_and_invalid_file(tmp_path: Path):
    with pytest.raises(UserError, match=r"absent\.toml: cannot be read"):
        load_target(tmp_path / "absent.toml")
    path = tmp_path / "mine.toml"
    path.write_text("schema = = 1")
    with pytest.raises(UserError, match=r"mine\.toml: is not valid TOML"):
        load_target(path)
    path.write_bytes(b"\xff")
    with pytest.raises(UserError, match="not UTF-8"):
        load_target(path)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("schema = 1", "schema = 2", "schema is 2"),
        ("schema = 1", "", "schema is missing"),
        ("schema = 1", "schema = true", "schema is True"),
        ("[energy]", "[energi]", "unknown section 'energi'"),
        ("[energy]", "[energi]", "did you mean 'energy'?"),
        ("[energy]", "[energi]", "section [energy] is missing"),
        ("schema = 1", "schema = 1\nspeed = 3", "unknown key 'speed'"),
        ('name = "roma-mini"', 'name = "My Chip"', "'My Chip' is no name for a target"),
        ('name = "roma-mini"', 'nam = "x"', "[target] nam: unknown key"),
        ('name = "roma-mini"', "", "[target] name: is missing"),
        (LANES, LANES.replace("lanes", "lane"), "[l_unit] lane: unknown key"),
        (LANES, LANES.replace("lanes", "lane"), "did you mean 'lanes'?"),
        (LANES, "", "[l_unit] lanes: is missing"),
        (LANES, "lanes = 16", "[l_unit] lanes: a value without an origin"),
        (LANES, "lanes = { value = 16 }", "[l_unit] lanes: a value without an origin"),
        (LANES, LANES.replace('"assumed"', '"guessed"'), "unknown origin 'guessed'"),
        (LANES, LANES.replace('"assumed"', '["assumed"]'), "unknown origin ['assumed']"),
        (LANES, LANES.replace("reason", "resaon"), "unknown part 'resaon'"),
        (LANES, LANES.replace("value = 16,", ""), "[l_unit] lanes: has no value"),
        (LANES, LANES.replace("16,", "16.5,"), "value is 16.5, not an integer"),
        (LANES, LANES.replace("16,", "true,"), "value is True, not a number"),
        (LANES, LANES.replace("16,", '"16",'), "value is '16', not a number"),
        (LANES, LANES.replace("16,", "0,"), "value is 0, outside 1 to 1024"),
        (LANES, LANES.replace("16,", "24,"), "value is 24, not a power of two"),
        (LANES, LANES.replace("range = [4, 32], ", ""), "assumed without a range"),
        (LANES, LANES[: LANES.index(", reason")] + " }", "assumed without a reason"),
        (LANES, LANES.replace("[4, 32]", "[32, 4]"), "range is not [low, high]"),
        (LANES, LANES.replace("[4, 32]", "[32, 64]"), "value 16 is not in its own range"),
        (LANES, LANES.replace("[4, 32]", "[0, 32]"), "range 0, 32 leaves the bounds of sense"),
        (LANES, LANES.replace('"assumed"', '"derived"'), "derived without a formula"),
        (LANES, LANES.replace('"assumed"', '"derived"'), "derived with a range"),
        (LANES, LANES.replace('"assumed"', '"paper"'), "paper without a source"),
        (LANES, LANES.replace('"assumed"', '"paper", source = "x"'), "names no key of [sources]"),
        (LANES, LANES.replace("reason", 'source = "x; Q9", reason'), "'Q9', which is not in"),
        (LANES, LANES.replace("reason =", 'formula = "1", reason ='), "assumed with a formula"),
        ('formula = "stage.rom_access_cycles"', 'formula = "stage.rom"', "names 'stage.rom'"),
        ('formula = "stage.rom_access_cycles"', 'formula = "7"', "value is 1, but its formula"),
        ('formula = "stage.rom_access_cycles"', 'formula = "1 +"', "not an arithmetic expr"),
        (
            'formula = "stage.rom_access_cycles"',
            'formula = "latency.rom_read"',
            "formulas run in a circle: latency.rom_read -> latency.rom_read",
        ),
        ('kv = { value = "int8"', 'kv = { value = "int7"', "value is 'int7', not among the"),
        (
            'weights = { value = ["ternary", "int2", "int4", "int8"]',
            'weights = { value = ["int2", "int3"]',
            "with 'int3' not among the choices",
        ),
        ("rows = { value = 5,", "rows = { value = 6,", "array] matrix_units: value is 8, but"),
    ],
)
def test_faults_are_named(broken: Edit, old: str, new: str, expected: str):
    if old == LANES:
        assert old != new
    assert expected in str(broken(old, new))


def test_all_faults_at_once(broken: Edit):
    error = broken(LANES, "lanes = 16\nlines = 3")
    assert isinstance(error, UserErrors)
    assert len(error.errors) == 2


def test_options(roma: Target):
    changed = roma.with_options(["activations=int16", "l_unit.lanes=16", "latency.reduce=9"])
    machine = changed.machine()
    assert (machine.activations, machine.probabilities) == ("int16", "uint16")
    assert (machine.lanes, machine.reduce) == (16, 9)
    assert machine.mac_pipeline == 6
    assert changed.parameters["l_unit.lanes"].origin == "option"
    assert "32 (assumed)" in (changed.parameters["l_unit.lanes"].reason or "")
    assert changed.parameters["formats.probabilities"].origin == "derived"
    assert changed.options == ("activations=int16", "l_unit.lanes=16", "latency.reduce=9")
    untouched = set(roma.parameters) - {
        "formats.activations",
        "formats.probabilities",
        "l_unit.lanes",
        "latency.reduce",
        "latency.mac_pipeline",
    }
    assert all(changed.parameters[key] == roma.parameters[key] for key in untouched)
    assert roma.machine().lanes == 32
    assert roma.with_options([]) is roma


def test_options_accumulate_and_the_last_holds(mini: Target):
    twice = mini.with_options(["kv=fp8", "kv=int16"]).with_options(["embedding=int8"])
    assert (twice.machine().kv, twice.machine().embedding) == ("int16", "int8")
    assert mini.with_options(["activations=fp8"]).machine().probabilities == "uint8"


def test_geometry_options_carry_through(roma: Target):
    half = roma.with_options(["array.rows=9"])
    assert half.machine().tiles == 128
    assert half.machine().broadcast == roma.machine().broadcast - 4
    assert half.rom_bytes * 2 == pytest.approx(roma.rom_bytes, abs=2)
    binary = roma.with_options(["l_unit.gigabyte=1073741824"])
    assert binary.machine().rom_bits == 1.86 * 2**30 * 8 // 16_384


def test_option_outside_the_assumed_range_is_marked(roma: Target):
    reason = roma.with_options(["l_unit.lanes=128"]).parameters["l_unit.lanes"].reason
    assert reason is not None
    assert "outside its assumed range" in reason


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("l_unit.lane=16", "did you mean 'l_unit.lanes'?"),
        ("activation=int8", "did you mean 'activations'?"),
        ("wibble=1", "allowed: weights, activations, kv, embedding, fraction_bits"),
        ("lanes", "not of the form key=value"),
        ("l_unit.lanes=", "not of the form key=value"),
        ("activations=int7", "allowed: one of int8, int16, fp8"),
        ("formats.weights=int5", "'int5' not among the choices"),
        ("l_unit.lanes=many", "'many', not a number"),
        ("l_unit.lanes=12", "not a power of two"),
        ("l_unit.lanes=4096", "outside 1 to 1024"),
        ("latency.reduce=1.5", "1.5, not an integer"),
        ("latency.reduce=nan", "not an integer"),
        ("area.l_unit_mm2=nan", "outside 0 to 1000"),
        ("area.l_unit_mm2=inf", "outside 0 to 1000"),
        ("area.other_share=1", "outside 0 to 0.99"),
        ("probabilities=uint16", "formats.probabilities cannot be set"),
        ("array.matrix_units=12", "follows rows and columns"),
        ("published.rom_gb=3", "published.rom_gb cannot be set"),
        ("array.rows=8", "not as many on each side"),
        ("array.rows=1", "array.matrix_units gives 0, outside"),
    ],
)
def test_wrong_options(roma: Target, option: str, expected: str):
    with pytest.raises(UserError) as caught:
        roma.with_options([option])
    assert expected in str(caught.value)


def test_all_wrong_options_at_once(mini: Target):
    with pytest.raises(UserErrors) as caught:
        mini.with_options(["kv=none", "l_unit.lanes=3", "latency.issue=2"])
    assert len(caught.value.errors) == 2


@pytest.mark.parametrize("name", target_names())
def test_json_is_deterministic_and_whole(name: str):
    first, second = (json.dumps(target_json(load_target(name))) for _ in range(2))
    assert first == second
    report = json.loads(first)
    assert list(report["parameters"]) == [
        key for key in KEYS if key in load_target(name).parameters
    ]
    for parameter in report["parameters"].values():
        assert set(parameter) == {
            *("value", "unit", "origin", "source", "formula", "range", "reason", "meaning")
        }


@pytest.mark.parametrize("name", target_names())
def test_text_shows_every_figure_in_100_columns(name: str):
    target = load_target(name)
    text = target_text(target)
    assert max(map(len, text.splitlines())) <= 100
    words = " ".join(text.split())
    for section, heading in SECTIONS.items():
        if any(key.startswith(f"{section}.") for key in target.parameters):
            assert f"[{section}] {heading}" in text.replace("  ", " ")
    for parameter in target.parameters.values():
        for part in (parameter.source, parameter.formula, parameter.reason):
            assert part is None or " ".join(part.split()) in words


def test_list():
    targets = [load_target(name) for name in target_names()]
    lines = list_text(targets).splitlines()
    assert len(lines) == len(targets) + 1
    assert max(map(len, lines)) <= 100
    assert [entry["name"] for entry in list_json(targets)["targets"]] == list(target_names())


def test_report_shows_options(mini: Target):
    changed = mini.with_options(["activations=fp8"])
    assert "options: activations=fp8" in target_text(changed)
    report = target_json(changed)
    assert report["options"] == ["activations=fp8"]
    assert report["parameters"]["formats.activations"]["origin"] == "option"


def test_formulas():
    known = {"a.x": 8, "a.y": "int16"}
    assert evaluate("ceil(log2(a.x) / 2) + 2 ** 3 - -1", known.__getitem__) == 11
    assert evaluate("1 if a.y == 'int16' else 2", known.__getitem__) == 1
    assert evaluate("1 if a.y != 'int16' else 2", known.__getitem__) == 2
    for text in (
        "a.z",
        "a",
        "1 / 0",
        "'x' * 9",
        "True",
        "open('x')",
        "a.x.real",
        "9 ** 9 ** 9",
        "[1]",
        "lambda: 1",
        "log2(0)",
        "'a' ** 2",
        "(" * 500,
        "1 + " * 400 + "1",
    ):
        with pytest.raises(FormulaError):
            evaluate(text, known.__getitem__)
