from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from intaglio.backend.target.formula import FormulaError, evaluate
from intaglio.backend.target.report import (
    list_json,
    list_text,
    shown_json,
    target_json,
    target_text,
)
from intaglio.backend.target.schema import KEYS, ORIGINS, SECTIONS
from intaglio.backend.target.target import Target, load_target, target_names
from intaglio.backend.target.values import contradictions
from intaglio.dialects.errors import UserError, UserErrors
from intaglio.dialects.machine import Machine
from intaglio.lowering.onnx.weights.rounding import parse_request

TARGETS = Path(load_target.__code__.co_filename).parents[1] / "targets"
MINI = (TARGETS / "roma-mini.toml").read_text()
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
    chips = ("roma", "tom", "bitrom", "hc1")
    assert {*chips, *(f"{chip}-mini" for chip in chips)} == set(target_names())


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
    assert roma.banks == roma.total_l_units


def test_tom_holds_what_is_published():
    tom = load_target("tom")
    machine = tom.machine()
    assert (machine.tiles, machine.l_units, machine.lanes) == (10, 16, 128)
    assert (machine.cell, machine.rom, machine.shared_arrays) == ("ternary", "logic", 1)
    linears = 30 * (2 * 2560 * 2560 + 2 * 640 * 2560 + 3 * 6912 * 2560)
    norms = 30 * (3 * 2560 + 6912) * 4
    assert linears * 2 / 8 + norms == pytest.approx(tom.rom_bytes, rel=2e-5)
    assert tom.banks == 31_907
    assert tom.adapter_kv_sram_bytes == 30 * 2 * 640 * 1024
    rows = machine.tiles * machine.l_units
    assert rows % machine.results_per_cycle == 0
    assert machine.lanes * machine.plane_bits == 2 * machine.bank_bits
    power = [tom.number(f"power.{key}") for key in ("rest_w", "rom_on_w", "rom_bank_mw")]
    assert power[0] + power[1] == pytest.approx(25.813, rel=1e-3)
    assert power[0] + power[1] / 30 == pytest.approx(5.33, rel=1e-3)
    assert power[2] * tom.banks / 1000 == pytest.approx(power[1], rel=1e-3)
    scaled = tom.with_options(["power.gated_on_share=0.0667"])
    assert scaled.number("power.rom_on_w") > tom.number("power.rom_on_w")


def test_bitrom_holds_what_is_published():
    bitrom = load_target("bitrom")
    machine = bitrom.machine()
    assert machine.tiles == bitrom.banks == 270
    assert machine.rom_bits == machine.bank_words * machine.bank_bits == 2 * 4_194_304
    assert bitrom.rom_bytes * 4 == 18 * 62_914_560
    assert (machine.pass_bits, machine.lanes, machine.placement) == (4, 128, "packed")
    on_die, tokens = machine.kv_on_die, 128
    saved = on_die * (2 * tokens - on_die + 1) / (tokens * (tokens + 1))
    assert saved == pytest.approx(bitrom.number("published.external_saving"), abs=5e-4)
    assert on_die % machine.h_units == 0
    assert machine.retention_cycles == 0.064 * machine.clock_hz
    assert machine.adapter_sites == ("v_proj", "o_proj", "down_proj")
    assert bitrom.number("area.rom_mm2") * (14 / 65) ** 2 == pytest.approx(16.71, abs=0.01)
    larger = bitrom.with_options(["array.matrix_units=1080"])
    assert larger.machine().tiles == larger.banks == 1080
    assert larger.number("network.reach_mm") > 1.6 * bitrom.number("network.reach_mm")


def test_hc1_holds_its_model():
    hc1 = load_target("hc1")
    machine = hc1.machine()
    assert (machine.cell, machine.plane_bits) == ("uint", 3)
    layers, down, head = 6_979_321_856, 32 * 4096 * 14336, 128256 * 4096
    # Group scales of 16 bits; the embedding's 8 bits take three cells of 3.
    bits = 3 * (layers - down) + 6 * (down + head) + 9 * head + (layers + head) // 64 * 16
    assert bits < hc1.rom_bytes * 8
    assert hc1.mixed_weights == "int3:64,down_proj=int6:64,lm_head=int6:64"
    assert load_target("roma").mixed_weights is None


@pytest.mark.parametrize("name", target_names())
def test_mixed_weights_are_a_request(name: str):
    target = load_target(name)
    if target.mixed_weights is not None:
        request = parse_request(target.mixed_weights)
        roundings = [request.of("layers.3.mlp.up_proj.weight"), request.of("mlp.down_proj.weight")]
        assert {rounding and rounding.code for rounding in roundings} <= set(
            target.machine().weights
        )


@pytest.mark.parametrize("chip", ["tom", "bitrom", "hc1"])
def test_minis_have_the_structure_of_their_chips(chip: str):
    full, mini = load_target(chip).machine(), load_target(f"{chip}-mini").machine()
    for key in ("cell", "rom", "plane_bits", "pass_bits", "placement", "shared_arrays", "weights"):
        assert getattr(full, key) == getattr(mini, key), key
    for key in ("kv_on_die", "power_wake", "power_sleep", "retention_cycles"):
        assert bool(getattr(full, key)) == bool(getattr(mini, key)), key
    assert full.lanes * full.plane_bits // full.bank_bits == (
        mini.lanes * mini.plane_bits // mini.bank_bits
    )
    assert mini.vector_lanes >= mini.lanes
    # A layer of hidden 128, FFN 384, 4 heads and 2 KV heads of 32; seven of them fit the ROM.
    layer = 2 * 128 * 128 + 2 * 64 * 128 + 3 * 384 * 128
    bits = layer * (2 if full.cell == "ternary" else 6)
    assert 7 * bits <= mini.rom_bits * mini.tiles * mini.l_units


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
        ("[network]", "[net]", "section [network] is missing"),
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
        ('kv = { value = "half8"', 'kv = { value = "int7"', "value is 'int7', not among the"),
        (
            '\nweights = { value = ["ternary", "int2", "int4", "int8"]',
            '\nweights = { value = ["int2", "int5"]',
            "with 'int5' not among the choices",
        ),
        ("rows = { value = 5,", "rows = { value = 6,", "array] matrix_units: value is 8, but"),
    ],
)
def test_faults_are_named(broken: Edit, old: str, new: str, expected: str):
    if old == LANES:
        assert old != new
    assert expected in str(broken(old, new))


def _chip(name: str, old: str, new: str, path: Path) -> str:
    """The error for a target that ships with one passage changed."""
    text = (TARGETS / f"{name}.toml").read_text()
    assert text.count(old) == 1, old
    path.write_text(text.replace(old, new))
    with pytest.raises(UserError) as caught:
        load_target(path)
    return str(caught.value)


ROW = 'rows = { value = 3, origin = "assumed", range = [3, 3], reason = "x" }'
PLANE = 'plane_bits = { value = 2, origin = "assumed", range = [2, 2]'
NO_TRAFFIC = ("bytes_per_cycle = { value = 4", "bytes_per_cycle = { value = 0")
"""Tokens are kept on the die, and nothing could bring the others."""
MIX = '"int3:64,down_proj=int6:64,lm_head=int6:64"'
MIXES = f'range = ["int3:64,lm_head=int6:64", {MIX}]'


def test_experts_are_switched_only_where_banks_are(tmp_path: Path):
    text = (TARGETS / "tom-mini.toml").read_text()
    text = text.replace('expert_power = { value = "layer"', 'expert_power = { value = "chosen"')
    path = tmp_path / "gated.toml"
    path.write_text(text)
    assert load_target(str(path)).machine().expert_power == "chosen"
    path.write_text(re.sub(r"^power_(wake|sleep) =", r"# \g<0>", text, flags=re.MULTILINE))
    with pytest.raises(UserError, match=r"expert_power.*without latency\.power_wake no bank"):
        load_target(str(path))


@pytest.mark.parametrize(
    ("name", "old", "new", "expected"),
    [
        ("roma-mini", "\ncolumns = {", "\n# columns = {", "'array.columns', which is not a param"),
        ("tom-mini", "[array]\n", f"[array]\n{ROW}\n", "needs array.columns, array.vector_rows"),
        ("tom-mini", PLANE, PLANE.replace("2", "3"), "is 3, a ternary cell is stored in 2"),
        ("tom-mini", "power_sleep =", "# power =", "power_wake: needs latency.power_sleep"),
        ("bitrom-mini", "latency_cycles =", "# =", "needs external.latency_cycles"),
        ("bitrom-mini", "bytes_per_cycle =", "# =", "needs external.bytes_per_cycle"),
        ("bitrom-mini", *NO_TRAFFIC, "[external] bytes_per_cycle: value is 0, outside 1 to 65536"),
        ("hc1-mini", MIXES, 'range = ["int4:64"]', "is not in its own range"),
        ("hc1-mini", MIXES, "range = [3, 6]", "range is not a list of choices"),
        ("hc1-mini", 'int6:128", "int8:128', "int6", "range is not a list of choices"),
        ("hc1-mini", f"weights = {{ value = {MIX}", "weights = { value = 3", "3, not a text"),
    ],
)
def test_contradictions(name: str, old: str, new: str, expected: str, tmp_path: Path):
    assert expected in _chip(name, old, new, tmp_path / "mine.toml")


@pytest.mark.parametrize("fmt", ["half8", "mxint8"])
def test_blocks_need_a_size_and_a_latency(fmt: str, tmp_path: Path):
    """A target file without them is told which lines they would be."""
    lines = [one for one in MINI.splitlines() if not one.startswith(("block =", "block_exponent"))]
    (tmp_path / "mine.toml").write_text("\n".join(lines))
    text = (tmp_path / "mine.toml").read_text()
    for old, new in (
        ('activations = { value = "half8"', 'activations = { value = "int8"'),
        ("mac_pipeline = { value = 6", "mac_pipeline = { value = 5"),
    ):
        assert text.count(old) == 1
        text = text.replace(old, new)
    (tmp_path / "mine.toml").write_text(text)
    target = load_target(str(tmp_path / "mine.toml")).with_options(["kv=int8"])
    with pytest.raises(UserErrors) as error:
        target.with_options([f"activations={fmt}"])
    assert [one.what for one in error.value.errors] == [
        f"--set activations={fmt}: formats.activations is {fmt}, which needs {one}"
        for one in ("formats.block", "latency.block_exponent")
    ]
    hints = [one.hint or "" for one in error.value.errors]
    assert "[formats] block = { value = 32," in hints[0]
    assert "[latency] block_exponent = { value = 3," in hints[1]
    assert all("or activations of int8" in hint for hint in hints)


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
        "l_unit.bank_bits",
        "l_unit.bank_words",
        # An L-Unit of fewer lanes is smaller and takes less, and the die is smaller.
        "latency.vector_reduce",
        "area.l_unit_mm2",
        "area.fused_rom_mbit_per_mm2",
        "area.die_mm2",
        "network.reach_mm",
        "network.row_mm",
        "network.port_mm",
        "power.l_unit_mw",
        "power.l_units_peak_w",
        "energy.l_unit_cycle_pj",
    }
    assert all(changed.parameters[key] == roma.parameters[key] for key in untouched)
    assert roma.machine().lanes == 32
    assert roma.with_options([]) is roma


def test_options_accumulate_and_the_last_holds(mini: Target):
    twice = mini.with_options(["kv=fp8", "kv=int16"]).with_options(["embedding=int8"])
    assert (twice.machine().kv, twice.machine().embedding) == ("int16", "int8")
    assert mini.with_options(["activations=fp8"]).machine().probabilities == "places8"
    assert mini.with_options(["activations=fp8", "kv=int8"]).machine().probabilities == "uint8"
    assert mini.with_options(["activations=int16"]).machine().probabilities == "uint16"


def test_a_block_is_no_longer_than_a_row_of_the_vector_units(mini: Target):
    """Two vector units of 8 lanes, of 3 and of 32."""
    found = [mini.with_options([f"vector.lanes={n}"]).machine().block for n in (8, 3, 32)]
    assert found == [16, 4, 16]


def test_inputs_of_single_matrices(mini: Target):
    told = mini.with_options(
        ["activations.o_proj=half8", "formats.activations.lm_head=int16", "wide=attention"]
    )
    assert told.machine().activations_of == (
        "o_proj=int16",
        "lm_head=int16",
        "q_proj=int16",
        "k_proj=int16",
        "v_proj=int16",
    )
    assert mini.machine().activations_of == ()
    again = told.with_options(["activations.lm_head=mxint8"])
    assert again.machine().activations_of[1] == "lm_head=mxint8"
    assert again.machine().activations == "half8"


def test_wide_blocks_of_single_matrices(mini: Target):
    told = mini.with_options(["activations=half8", "wide.o_proj= 3,17-18", "wide.lm_head=all"])
    assert told.machine().wide_of == ("o_proj=3,17-18", "lm_head=all")
    assert mini.machine().wide_of == ()
    again = told.with_options(["formats.wide.o_proj=5,4"])
    assert again.machine().wide_of == ("o_proj=4-5", "lm_head=all")
    for option, what in (
        ("wide.o_proj=3-", "'3-' is no list"),
        ("wide.o_proj=4-3", "'4-3' ends before it begins"),
        ("wide.=3", "not of the form wide.NAME=BLOCKS"),
        ("wide.o_proj", "not of the form"),
        ("wide=mlp", "nothing is called 'mlp'"),
    ):
        with pytest.raises(UserError, match=what):
            mini.with_options([option])


def test_blocks_of_single_matrices_need_their_size(mini: Target):
    told = mini.with_options(["activations=int8", "activations.o_proj=half8"]).parameters
    assert contradictions(told) == []
    bare = {name: one for name, one in told.items() if name != "formats.block"}
    (found,) = contradictions(bare)
    assert found[:2] == ("activations.o_proj", "is half8, which needs formats.block")
    assert found[2] is not None and "[formats] block = { value = " in found[2]


def test_geometry_options_carry_through(roma: Target):
    half = roma.with_options(["array.rows=9"])
    assert half.machine().tiles == 128
    reach = [one.number("network.reach_mm") for one in (half, roma)]
    assert reach[0] == pytest.approx(reach[1] * 19 / 23, rel=0.03)  # units on the way
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
        ("lanes=8", "did you mean 'l_unit.lanes' or 'vector.lanes'? `intaglio targets` with"),
        ("lane=8", "did you mean 'l_unit.lanes' or 'vector.lanes'?"),
        ("policy.lanes=8", "did you mean 'l_unit.lanes' or 'vector.lanes'?"),
        ("sram_bytes=8", "did you mean 'h_unit.sram_bytes' or 'vector.sram_bytes'?"),
        ("issues=3", "did you mean 'latency.issue'?"),
        ("format.kv=int8", "did you mean 'kv'?"),
        (
            "wibble=1",
            "no parameter 'wibble'\n  help: `intaglio targets` with its name or file lists all",
        ),
        ("lanes", "not of the form key=value"),
        ("l_unit.lanes=", "not of the form key=value"),
        ("activations=int7", "allowed: one of int8, int16, fp8"),
        ("formats.weights=int5", "'int5' not among the choices"),
        ("l_unit.lanes=many", "'many', not a number"),
        ("l_unit.lanes=12", "not a power of two"),
        ("h_unit.multiplier_bits=12", "not a power of two"),
        ("h_unit.multiplier_bits=2", "outside 4 to 32"),
        ("policy.head_weights=int8", "'int8', not of the form allowed"),
        ("policy.head_weights=int5:64", "allowed: CODE:GROUP with CODE one of ternary, int2"),
        ("policy.head_weights=int4:0", "not of the form allowed"),
        ("policy.head_weights=int3:64", "is int3:64, formats.head_weights has only ternary, int2"),
        ("l_unit.lanes=4096", "outside 1 to 1024"),
        ("latency.reduce=1.5", "1.5, not an integer"),
        ("latency.reduce=nan", "not an integer"),
        ("area.l_unit_mm2=nan", "outside 0 to 1000"),
        ("area.l_unit_mm2=inf", "outside 0 to 1000"),
        ("area.other_share=1", "outside 0 to 0.99"),
        ("probabilities=uint16", "must be uint8 with half8 activations"),
        ("probabilities=uint16", "help: --set probabilities=uint8, or --set activations=int16"),
        ("kv=int8 probabilities=places8", "is places8, which needs formats.kv=half8"),
        ("kv=int8 probabilities=places8", "help: --set kv=half8"),
        ("activations.q_proj=int3", "allowed: one of int8, int16, half8, mxint8"),
        ("activations.=int16", "not of the form activations.NAME=FORMAT"),
        ("activations.q_proj=", "not of the form activations.NAME=FORMAT"),
        ("activations.a,b=int8", "not of the form activations.NAME=FORMAT"),
        ("wide=ffn", "allowed: attention"),
        ("array.matrix_units=12", "follows rows and columns"),
        ("array.matrix_units=12", "help: --set array.rows=N or array.columns=N"),
        ("published.rom_gb=3", "published.rom_gb cannot be set"),
        ("published.rom_gb=3", "help: a target file of your own"),
        ("array.rows=8", "not as many on each side"),
        ("array.rows=1", "--set array.rows=1: the formula of array.matrix_units gives 0, outside"),
    ],
)
def test_wrong_options(roma: Target, option: str, expected: str):
    with pytest.raises(UserError) as caught:
        roma.with_options(option.split())
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("name", "option", "expected"),
    [
        ("tom", "l_unit.lanes=32", "bank_bits is 128, which does not divide a word of 64 bits"),
        ("tom", "l_unit.cell=uint", "l_unit.cell cannot be set"),
        ("tom", "array.rows=3", "no parameter 'array.rows'"),
        ("tom", "external.kv_on_die_tokens=8", "no parameter 'external.kv_on_die_tokens'"),
        ("bitrom", "external.kv_on_die_tokens=0", r"0, with all of them outside, is not modelled"),
        ("roma", "latency.power_wake=8", "no parameter 'latency.power_wake'"),
        ("roma", "latency.power_wake=8", "help: a target file may have it: copy this one and add"),
        ("hc1", "policy.weights=int4:64", "policy.weights cannot be set"),
        ("hc1", "policy.weights=int4:64", "help: --weights FORMAT"),
        ("bitrom", "external.bytes_per_cycle=0", "bytes_per_cycle is 0, outside 1 to 65536"),
        ("tom-mini", "activations=int16", "allowed: one of int8, fp8"),
    ],
)
def test_wrong_options_of_other_chips(name: str, option: str, expected: str):
    with pytest.raises(UserError) as caught:
        load_target(name).with_options([option])
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
        for part in (parameter.formula, parameter.reason):
            assert part is None or " ".join(part.split()) in words


@pytest.mark.parametrize("name", target_names())
def test_sources_are_shown_by_what_is_public(name: str):
    """Keys with their titles; never the sheet, which is not shipped."""
    target = load_target(name)
    words = " ".join(target_text(target).split())
    report = shown_json(target)
    assert "facts/" not in words and "facts/" not in json.dumps(report)
    for full_name, parameter in target.parameters.items():
        place, _, rest = (parameter.source or "").partition(";")
        keys = [k.strip() for k in rest.split(",") if k]
        public = [place] * (place != "" and not place.startswith("facts/"))
        shown = "; ".join([*public, *([", ".join(keys)] if keys else [])])
        assert report["parameters"][full_name]["source"] == (shown or None)
        for key in keys:
            assert f"{key}, {' '.join(target.sources[key].split())}" in words


def test_a_place_of_a_source_is_shown(tmp_path: Path):
    text = (TARGETS / "roma.toml").read_text()
    path = tmp_path / "mine.toml"
    path.write_text(text.replace("facts/papers.md section 1.2; R2", "table 3; R2", 1))
    words = " ".join(target_text(load_target(path)).split())
    assert "source: table 3; R2, rom4ai.github.io, post of 2026-03-13 on ROMA" in words


def test_list():
    targets = [load_target(name) for name in target_names()]
    lines = list_text(targets).splitlines()
    assert len(lines) == len(targets) + 1
    assert max(map(len, lines)) <= 100
    assert [entry["name"] for entry in list_json(targets)["targets"]] == list(target_names())


def test_summaries():
    tom = target_text(load_target("tom"))
    assert "logic: 31,907 banks of 1,024 words of 128 bit" in tom
    assert "25.81 W with all ROM banks on" in tom
    assert "5.33 W with 0.0333 of them on" in tom
    bitrom = target_text(load_target("bitrom"))
    assert "1,132.46 million trits" in bitrom
    assert "the first 32 tokens on the die, the others behind 6.4 GB/s" in bitrom
    assert "kept for 64 ms" in bitrom
    assert "banks on" not in bitrom
    assert "on the die, the others" not in target_text(load_target("roma"))


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
        "9" * 300,
        "9" * 5000,
        "2 ** -1000000000",
        "2 ** 64 * 2 ** 64 * 2 ** 64 * 2 ** 64 * 2",
        "(-8) ** 0.5",
        "1e308 * 10",
        "1e400",
        "min()",
        "max('a')",
        "'a' + 'b'",
        "round(5, -1000000000)",
        "a.x" + " * a.x" * 90,
    ):
        with pytest.raises(FormulaError):
            evaluate(text, known.__getitem__)
    assert evaluate("round(a.x / 3, 1)", known.__getitem__) == 2.7
