"""What is varied, and the points that it makes."""

import json
from pathlib import Path

import pytest

from intaglio.backend import targets
from intaglio.backend.stages import Options
from intaglio.dialects.errors import UserError
from intaglio.runtime.sweep.points import (
    Asked,
    check_keys,
    grid,
    grid_size,
    key_of,
    options_of,
    parse_vary,
    read_points,
)

MINI = Options("roma-mini", ("latency.reduce=9",), context=8)


def test_a_grid_has_every_combination():
    vary = parse_vary(["l_unit.lanes=8, 16", "weights=int4:32|int3:32,lm_head=int6:32"])
    assert vary["weights"] == ("int4:32", "int3:32,lm_head=int6:32")
    points = list(grid(vary))
    assert len(points) == grid_size(vary) == 4
    assert points[1] == (("l_unit.lanes", "8"), ("weights", "int3:32,lm_head=int6:32"))


@pytest.mark.parametrize("text", ["lanes", "=8", "l_unit.lanes=", "l_unit.lanes=8,,16"])
def test_what_is_no_list_of_values(text):
    with pytest.raises(UserError, match="not of the form"):
        parse_vary([text])


def test_nothing_is_named_twice():
    with pytest.raises(UserError, match="varied twice"):
        parse_vary(["kv=int8", "kv=int16"])
    with pytest.raises(UserError, match="stands there twice"):
        parse_vary(["kv=int8,int8"])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("points.jsonl", '{"kv": "int8"}\n\n{"l_unit.lanes": 8}\n{"kv": "int8"}\n'),
        ("points.json", '[{"kv": "int8"}, {"l_unit.lanes": 8}]'),
    ],
)
def test_points_of_a_file(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    assert read_points(tmp_path / name) == [(("kv", "int8"),), (("l_unit.lanes", "8"),)]


def test_points_as_csv(tmp_path):
    (tmp_path / "p.csv").write_text("kv,l_unit.lanes\nint8,8\nhalf8,16\n")
    assert read_points(tmp_path / "p.csv")[1] == (("kv", "half8"), ("l_unit.lanes", "16"))


@pytest.mark.parametrize("text", ["", "[1]", '{"kv": null}', '{"kv": [1]}', "{", "\xff"])
def test_what_is_no_file_of_points(tmp_path, text):
    (tmp_path / "p.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=r"p\.json"):
        read_points(tmp_path / "p.json")


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("p.json", "[" * 100_000, "nested too deeply"),
        ("p.jsonl", '{"kv": ' + "[" * 100_000, "nested too deeply"),
        ("p.csv", "kv\n" + "a" * 200_000, "no list of points: field larger"),
    ],
)
def test_what_no_reader_takes(tmp_path, name, text, words):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=words):
        read_points(tmp_path / name)


def test_keys_are_those_of_the_target():
    check_keys({"l_unit.lanes": ("8",), "context": ("4",), "activations.q_proj": ("int16",)}, MINI)
    with pytest.raises(UserError, match=r"--vary l_unit.lane=8: target .* has no parameter"):
        check_keys({"l_unit.lane": ("8",)}, MINI)
    with pytest.raises(UserError, match="not a power of two"):
        check_keys({"l_unit.lanes": ("8", "9")}, MINI)
    with pytest.raises(UserError, match="set for all points, and varied"):
        check_keys({"latency.reduce": ("8",)}, MINI)
    with pytest.raises(UserError, match="at least one token"):
        check_keys({"context": ("0",)}, MINI)


def test_options_of_a_point():
    options = options_of((("kv", "int8"), ("context", "4"), ("adapter_slots", "8:q_proj")), MINI)
    assert options.settings == ("latency.reduce=9", "kv=int8")
    assert (options.context, options.adapter_rank, options.adapter_modules) == (4, 8, ("q_proj",))
    assert options_of((("adapter_slots", "0"), ("target", "tom")), MINI).target == "tom"


def test_a_key_hangs_on_all_that_figures_do():
    base = key_of(MINI, Asked(), "model", "code")
    others = [
        key_of(options_of((("kv", "int8"),), MINI), Asked(), "model", "code"),
        key_of(MINI, Asked(prompt=3), "model", "code"),
        key_of(MINI, Asked(), "other", "code"),
        key_of(MINI, Asked(), "model", "other"),
    ]
    assert len({base, *others}) == 5
    assert base == key_of(MINI, Asked(), "model", "code")


def test_a_key_hangs_on_the_file_of_a_target(tmp_path):
    text = (Path(targets.__file__).parent / "roma-mini.toml").read_text()
    path = tmp_path / "own.toml"
    keys: set[str] = set()
    for more in ("", "\n"):
        path.write_text(text.replace("As roma.", "Nearly as roma.", 1) if more else text)
        keys.add(key_of(Options(str(path)), Asked(), json.dumps(1), "code"))
    assert len(keys) == 2
