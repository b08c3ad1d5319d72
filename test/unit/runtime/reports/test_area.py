"""Area by component, and what a chip gives for it."""

import pytest

from intaglio.backend.target.target import load_target, target_names
from intaglio.runtime.reports.area import area, not_followed
from intaglio.runtime.reports.inspect import inspect_json
from intaglio.runtime.reports.text import inspect_text


@pytest.mark.parametrize("name", target_names())
def test_components_are_the_die(name):
    found = area(load_target(name))
    assert sum(one["mm2"] for one in found["components"]) == pytest.approx(
        found["die_mm2"]["value"], rel=0.005
    )
    assert sum(one["share"] for one in found["components"]) == pytest.approx(1)
    for one in found["components"]:
        assert load_target(name).parameters[one["figure"]].origin == one["origin"]
    assert found["extra_rom_mm2"] is None and found["not_followed"] == []


def test_units_of_roma():
    found = {one["name"]: one for one in area(load_target("roma"))["components"]}
    assert found["L-Units"]["count"] == 16_384
    assert found["L-Units"]["share"] == pytest.approx(0.732, abs=0.001)
    assert found["H-Units"]["share"] == pytest.approx(0.166, abs=0.001)
    assert found["vector units"]["share"] == pytest.approx(0.014, abs=0.001)
    assert found["other"]["figure"] == "area.other_share"


def test_lanes_have_a_size():
    roma = load_target("roma")
    wide, narrow = (roma.with_options([f"l_unit.lanes={n}"]) for n in (64, 16))
    published = roma.number("published.l_unit_mm2")
    share = roma.number("area.l_unit_rom_share")
    assert wide.number("area.l_unit_mm2") == pytest.approx(published * (share + (1 - share) * 2))
    assert narrow.number("area.l_unit_mm2") == pytest.approx(published * (share + (1 - share) / 2))
    assert wide.number("energy.l_unit_cycle_pj") == pytest.approx(27.2)
    assert not_followed(wide) == []
    vectors = roma.with_options(["vector.lanes=64"])
    assert vectors.number("area.vector_unit_mm2") == pytest.approx(0.4407 + 32 * 0.003572, abs=1e-3)


def test_what_no_area_follows_is_said():
    mini = load_target("roma-mini").with_options(["l_unit.lanes=8", "network.wire_ps_per_mm=60"])
    assert not_followed(mini) == ["l_unit.lanes=8"]
    assert not_followed(load_target("hc1").with_options(["l_unit.lanes=32"])) == ["l_unit.lanes=32"]


def test_deeper_banks_take_area_apart():
    tom = load_target("tom")
    found = area(tom, 8 * 2**20 * 30)
    assert found["extra_rom_mm2"]["mm2"] == pytest.approx(30 / tom.number("area.rom_mib_per_mm2"))
    assert found["die_mm2"] == area(tom)["die_mm2"]
    assert area(load_target("hc1"), 8)["extra_rom_mm2"] is None


def test_reports_have_area_and_what_it_is_worth(compiled):
    content = inspect_json(compiled("llama"))
    worth, position = content["worth"][0], content["positions"][0]
    die = content["area"]["die_mm2"]["value"]
    rate = position["tokens_per_second"]
    assert worth["tokens_per_second_per_mm2"] == pytest.approx(rate / die)
    token = content["power"]["positions"][0]["token"]
    assert token["by"] == worth["by"] == "activity"
    assert worth["tokens_per_joule"] == pytest.approx(1e3 / token["millijoules"])
    text = inspect_text(content)
    assert "area    4.62 mm2 (derived): L-Units" in text and "tokens/s/mm2" in text
