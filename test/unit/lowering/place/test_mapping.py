"""Mapping files: what they say is what is placed; edits are followed, mistakes are named."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp

from intaglio.dialects.errors import DoesNotFit, UserError
from intaglio.dialects.fabric import EngraveOp, places
from intaglio.dialects.machine import Machine
from intaglio.lowering.place.mapping import SCHEMA, left_out_warnings, mapping_of
from intaglio.lowering.place.place import FabricPlace

Content = dict[str, Any]


def place(module: ModuleOp, **options: Any) -> ModuleOp:
    FabricPlace(**options).apply(Context(), module)
    module.verify()
    return module


def pieces(module: ModuleOp) -> dict[str, list[str]]:
    """Text of the pieces of each matrix."""
    return {
        op.buffer.root_reference.data: [str(piece) for piece in op.pieces]
        for op in places(module)
        if isinstance(op, EngraveOp)
    }


@pytest.fixture
def content(integers: Any, decoder: Any, mini: Machine) -> Content:
    """The mapping of the decoder, placed as the compiler likes it."""
    return mapping_of(place(integers(decoder, mini)), mini)


@pytest.fixture
def follow(integers: Any, decoder: Any, mini: Machine, tmp_path: Path) -> Any:
    """Places the decoder by a mapping."""

    def run(content: object, **machine: Any) -> ModuleOp:
        file = tmp_path / "mapping.json"
        file.write_text(content if isinstance(content, str) else json.dumps(content))
        module = integers(decoder, replace(mini, **machine))
        return place(module, mapping=str(file))

    return run


def matrix(content: Content, name: str) -> Content:
    (one,) = [m for m in content["matrices"] if m["name"] == name]
    return one


@settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_a_mapping_followed_gives_the_same_placement(
    data: st.DataObject, integers: Any, decoders: Any, machines: Any, tmp_path: Path
) -> None:
    machine, model = data.draw(machines), data.draw(decoders)
    machine = replace(machine, head_store=data.draw(st.sampled_from(["rom", "extra-rom"])))
    rank = data.draw(st.sampled_from([0, 4]))
    first = place(integers(model, machine, rank))
    file = tmp_path / "mapping.json"
    file.write_text(json.dumps(mapping_of(first, machine)))
    second = place(integers(model, machine, rank), mapping=str(file))
    assert str(second) == str(first)


def test_what_a_mapping_says(content: Content, mini: Machine, decoder: Any) -> None:
    assert content["schema"] == SCHEMA
    assert (content["target"], content["tiles"], content["l_units"]) == ("roma-mini", 8, 4)
    assert matrix(content, "layers_0_qkv")["key"] == "layers_0_qkv"
    (piece,) = matrix(content, "head")["pieces"]
    assert piece["rows"] == [0, decoder.vocabulary]
    assert {one["name"] for one in content["constants"]} >= {"cos", "sin", "layers_0_norm"}
    assert {one["name"] for one in content["sram"]} == {
        f"past_{layer}_{cache}" for layer in (0, 1) for cache in "kv"
    }


def test_an_edited_piece_is_followed(content: Content, follow: Any) -> None:
    rows = matrix(content, "head")["pieces"][0]["rows"][1]
    matrix(content, "head")["pieces"] = [
        {"rows": [0, 20], "tiles": [0, 3], "split": 4},
        {"rows": [20, rows], "tiles": [3, 8], "split": 2},
    ]
    (first, second) = pieces(follow(content))["head"]
    assert first.startswith("#fabric.piece<rows 0 to 20, tiles 0 to 3, split 4, at ")
    assert second.startswith(f"#fabric.piece<rows 20 to {rows}, tiles 3 to 8, split 2, at ")


def test_a_stated_address_is_followed(content: Content, follow: Any) -> None:
    (piece,) = matrix(content, "head")["pieces"]
    piece["at"] = [piece["at"][0] + 1000, piece["at"][1] + 50]
    (placed,) = pieces(follow(content))["head"]
    assert placed.endswith(f"at {piece['at'][0]}, {piece['at'][1]}>")


def test_matrices_that_a_mapping_leaves_out_are_placed(content: Content, follow: Any) -> None:
    content["matrices"] = [matrix(content, "layers_0_qkv")]
    assert len(pieces(follow(content))) == 12


def test_an_address_that_is_taken(content: Content, follow: Any) -> None:
    matrix(content, "head")["pieces"][0]["at"] = [0, 0]
    with pytest.raises(UserError, match=r"a piece of head lies at 0, 0, where other matrices"):
        follow(content)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": [1, 50]}, "a piece of head has rows 1 to 50, expected from 0"),
        ({"rows": [0, 0]}, "a piece of head has rows 0 to 0, expected from 0"),
        ({"rows": [0, 49]}, "a piece of head ends at row 49 of 50"),
        ({"rows": [0, 51]}, "a piece of head ends at row 51 of 50"),
        ({"tiles": [0, 9]}, "a piece of head has tiles 0 to 9 of 8"),
        ({"tiles": [-1, 4]}, "a piece of head has tiles -1 to 4 of 8"),
        ({"tiles": [3, 3]}, "a piece of head has tiles 3 to 3 of 8"),
        ({"split": 0}, "a piece of head has split 0, a tile has 4 L-Units"),
        ({"split": 5}, "a piece of head has split 5, a tile has 4 L-Units"),
        ({"split": 2, "run": 7}, r"a piece of head has runs of 7 words, which do not divide the"),
        ({"run": 0}, r"\.run is 0"),
        ({"run": "two"}, r"\.run is 'two'"),
        ({"run": None}, r"\.run is null"),
        ({"split": "many"}, r"\.split is 'many', not an integer"),
        ({"rows": 50}, r"\.rows is 50, not a list"),
        ({"tiles": [1, 2, 3]}, r"\.tiles has 3 entries, not 2"),
    ],
)
def test_pieces_that_cannot_be(
    content: Content, follow: Any, change: Content, message: str
) -> None:
    (piece,) = matrix(content, "head")["pieces"]
    piece.update(change)
    with pytest.raises(UserError, match=message) as raised:
        follow(content)
    assert raised.value.file is not None and raised.value.file.endswith("mapping.json")


def test_layers_that_take_rows_in_different_rounds(
    content: Content, follow: Any, mini: Machine
) -> None:
    """One instruction multiplies with both; the file and the layer are named."""
    for name in ("layers_0_o", "layers_1_o"):
        for piece in matrix(content, name)["pieces"]:
            piece.update(split=1, run=1)
    for one in content["matrices"]:
        for piece in one["pieces"]:
            del piece["at"]
    follow(content, accumulators=64)
    del matrix(content, "layers_1_o")["pieces"][0]["run"]
    with pytest.raises(
        UserError, match="a piece of layers_1_o takes rows at once, unlike"
    ) as raised:
        follow(content, accumulators=64)
    assert raised.value.file is not None and raised.value.file.endswith("mapping.json")
    assert raised.value.hint == "give all of them the same 'run' and 'split'"


def test_a_piece_without_tiles(content: Content, follow: Any) -> None:
    del matrix(content, "head")["pieces"][0]["tiles"]
    with pytest.raises(UserError, match=r"pieces\[0\] has no key 'tiles'"):
        follow(content)


def test_no_pieces(content: Content, follow: Any) -> None:
    matrix(content, "head")["pieces"] = []
    with pytest.raises(UserError, match="a piece of head ends at row 0 of 50"):
        follow(content)


def test_a_matrix_that_the_model_does_not_have(content: Content, follow: Any) -> None:
    matrix(content, "head")["name"] = "tail"
    with pytest.raises(UserError, match="the mapping places tail, which the model does not have"):
        follow(content)


def test_a_misspelt_matrix(content: Content, follow: Any) -> None:
    matrix(content, "layers_1_qkv")["name"] = "layers_1_qvk"
    with pytest.raises(UserError, match="layers_1_qvk, which the model") as raised:
        follow(content)
    assert raised.value.hint is not None and "did you mean 'layers_1_qkv'?" in raised.value.hint


def test_what_a_mapping_leaves_out_is_named(
    content: Content, mini: Machine, tmp_path: Path
) -> None:
    path = tmp_path / "mapping.json"
    names = [one["name"] for one in content["matrices"]]
    assert len(names) > 6
    for left, said in (
        (names[:0], None),
        (names[1:2], f"leaves out {names[1]} of {len(names)} matrices"),
        (names[:4], f"leaves out {', '.join(names[:4])} of"),
        (names[:6], f"leaves out {', '.join(names[:4])} and 2 more of"),
        (names, f"and {len(names) - 4} more of {len(names)} matrices: the compiler places"),
    ):
        given = [one for one in content["matrices"] if one["name"] not in left]
        path.write_text(json.dumps({**content, "matrices": given}))
        warnings = left_out_warnings(str(path), names, mini)
        assert len(warnings) == (said is not None)
        assert all(said in one and str(path) in one for one in warnings)


def test_a_matrix_that_is_placed_twice(content: Content, follow: Any) -> None:
    content["matrices"].append(matrix(content, "head"))
    with pytest.raises(UserError, match="the mapping places head twice"):
        follow(content)


@pytest.mark.parametrize(
    ("level", "wrong", "message", "hint"),
    [
        ("mapping", "matrixes", "the mapping has an unknown key 'matrixes'", "'matrices'"),
        ("matrix", "peices", "matrix head has an unknown key 'peices'", "'pieces'"),
        ("piece", "spilt", "a piece of head has an unknown key 'spilt'", "'split'"),
        ("piece", "bank", "a piece of head has an unknown key 'bank'", "keys: rows, tiles, split"),
    ],
)
def test_unknown_keys(
    content: Content, follow: Any, level: str, wrong: str, message: str, hint: str
) -> None:
    head = matrix(content, "head")
    {"mapping": content, "matrix": head, "piece": head["pieces"][0]}[level][wrong] = 1
    with pytest.raises(UserError, match=message) as raised:
        follow(content)
    assert raised.value.hint is not None and hint in raised.value.hint


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("target", "roma", "another chip: target is roma, here it is roma-mini"),
        ("tiles", 256, "another chip: tiles is 256, here it is 8"),
        ("l_units", 1, "another chip: l_units is 1, here it is 4"),
    ],
)
def test_a_mapping_for_another_chip(
    content: Content, follow: Any, key: str, value: object, message: str
) -> None:
    content[key] = value
    with pytest.raises(UserError, match=message):
        follow(content)
    del content[key]
    assert pieces(follow(content))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "mapping.json: is no JSON"),
        ("[]", "mapping.json: is a list, not an object"),
        ("{}", "mapping.json: the key 'schema' is missing"),
        ('{"schema": 1}', "the key 'matrices' is missing"),
        ('{"schema": 1, "matrices": [{"name": "head"}]}', r"matrices\[0\] has no key 'pieces'"),
        ('{"schema": 2, "matrices": []}', "schema 2, expected 1"),
    ],
)
def test_files_that_are_no_mapping(follow: Any, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        follow(text)


def test_a_missing_file(integers: Any, decoder: Any, mini: Machine, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.json: cannot be read: No such file"):
        place(integers(decoder, mini), mapping=str(tmp_path / "none.json"))


def test_two_pieces_on_one_tile(content: Content, follow: Any) -> None:
    matrix(content, "head")["pieces"] = [
        {"rows": [0, 20], "tiles": [0, 8], "split": 4},
        {"rows": [20, 50], "tiles": [0, 8], "split": 2},
    ]
    assert len(pieces(follow(content))["head"]) == 2


def test_gaps_that_a_mapping_leaves_count_as_used(content: Content, follow: Any) -> None:
    """Matrices above a gap may reach the end of the bank before its bits are used up."""
    (piece,) = matrix(content, "head")["pieces"]
    piece["at"] = [28_000, 500]
    with pytest.raises(DoesNotFit):
        follow(content, rom_bits=600_000)


@pytest.mark.parametrize("at", [5, [5], ["a", "b"], {"codes": 1}])
def test_an_address_that_is_none(content: Content, follow: Any, at: object) -> None:
    matrix(content, "head")["pieces"][0]["at"] = at
    with pytest.raises(UserError, match=r"matrices\[11\]\.pieces\[0\]\.at"):
        follow(content)
