"""Past inputs and present outputs find each other by name, or by their order."""

from __future__ import annotations

import pytest

from intaglio.lowering.onnx.graph.pairs import is_mask, is_position, presents_of


@pytest.mark.parametrize(
    ("pasts", "presents"),
    [
        (
            ["past_key_values.0.key", "past_key_values.0.value", "past_key_values.1.key"],
            ["present.0.key", "present.0.value", "present.1.key"],
        ),
        (["past_0_0", "past_0_1", "past_1_0"], ["cat_7", "cat_8", "cat_11"]),
        (["past_0_0", "past_0_1"], ["cat_0_0", "cat_8"]),
        (["k", "v"], ["new_k", "new_v"]),
    ],
    ids=["named", "numbered by torch", "one number in common", "a single layer"],
)
def test_pairs_in_order(pasts, presents):
    assert presents_of(pasts, presents) == dict(zip(pasts, presents, strict=True))


def test_names_count_more_than_the_order():
    pasts = [f"past.{layer}.{kind}" for layer in (0, 1) for kind in ("key", "value")]
    presents = [f"present.{layer}.{kind}" for kind in ("value", "key") for layer in (1, 0)]
    found = presents_of(pasts, presents)
    assert found == {past: past.replace("past", "present") for past in pasts}


def test_a_past_without_a_present():
    assert presents_of(["past.0.key", "past.1.key"], ["present.1.key"]) == {
        "past.1.key": "present.1.key"
    }


def test_masks_and_positions_by_name():
    assert is_mask("attention_mask") and is_mask("input.attention_mask") and is_mask("mask")
    assert not is_mask("masked_lm_labels")
    assert is_position("position_ids") and is_position("cache_position")
