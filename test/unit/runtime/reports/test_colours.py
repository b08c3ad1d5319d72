"""Colours of the pictures: contrast, and that they differ with and without colour vision."""

from __future__ import annotations

import math
from itertools import combinations, pairwise

import numpy as np
import pytest

from intaglio.dialects.isa.queues import QUEUES
from intaglio.dialects.isa.registry import INSTRUCTIONS
from intaglio.runtime.reports.colours import (
    MOST_TENSORS,
    PAPER,
    PATTERNS,
    TENSORS,
    TONES,
    definitions,
    fewer,
    opcode_fill,
    queue_fill,
    rules,
    tensor_fills,
)

SCHEMES = (0, 1)
GREY = [[0.2126, 0.7152, 0.0722]] * 3
VISIONS = {
    "all cones": np.eye(3).tolist(),
    # Machado, Oliveira and Fernandes 2009, severity 1, on linear RGB.
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
    "no colour": GREY,
}


def linear(colour: str) -> np.ndarray:
    """Linear RGB of #rrggbb (IEC 61966-2-1)."""
    parts = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)


def contrast(one: str, two: str) -> float:
    """The ratio of WCAG 2."""
    low, high = sorted(float(GREY[0] @ linear(colour)) for colour in (one, two))
    return (high + 0.05) / (low + 0.05)


def lab(rgb: np.ndarray) -> np.ndarray:
    """CIE L*a*b* for D65 of linear RGB."""
    matrix = [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
    x, y, z = np.cbrt(np.array(matrix) @ rgb / [0.95047, 1, 1.08883])
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def distance(one: str, two: str, vision: str) -> float:
    """CIE 1976 colour difference as somebody sees it."""
    seen = [np.clip(np.array(VISIONS[vision]) @ linear(c), 0, 1) for c in (one, two)]
    return math.dist(*map(lab, seen))


def test_the_formulas():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)
    assert lab(linear("#ff0000")) == pytest.approx([53.2, 80.1, 67.2], abs=0.3)
    assert distance("#ff0000", "#00ff00", "all cones") > 150


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("tone", TONES)
def test_each_tone_is_seen_on_the_page(tone: str, scheme: int):
    assert contrast(TONES[tone][scheme], PAPER[scheme]) >= 3


@pytest.mark.parametrize("vision", VISIONS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_queues_are_told_apart(scheme: int, vision: str):
    least = 9 if vision == "no colour" else 16
    for one, two in combinations(QUEUES, 2):
        assert distance(TONES[one][scheme], TONES[two][scheme], vision) >= least, (one, two)
    for one, two in combinations(TENSORS, 2):
        assert distance(TONES[one][scheme], TONES[two][scheme], vision) >= 16, (one, two)


def test_what_was_shipped_before_would_fail():
    """Yellow, pink and teal on white, green beside red."""
    assert [contrast(one, "#ffffff") < 3 for one in ("#edc948", "#ff9da7", "#76b7b2")] == [True] * 3
    assert distance("#59a14f", "#e15759", "no colour") < 9


def test_every_opcode_of_a_queue_has_its_own_look():
    for queue in QUEUES:
        fills = [opcode_fill(queue, one.opcode) for one in INSTRUCTIONS if one.queue == queue]
        assert len(set(fills)) == len(fills) > 0
        assert {fill.tone for fill in fills} == {queue} == {queue_fill(queue).tone}
        assert {fill.pattern for fill in fills} <= set(PATTERNS)
    # Wherever it stands, an opcode has one pattern.
    queues = [one.queue for one in INSTRUCTIONS if one.opcode == "matvec"]
    assert len(queues) == 2
    assert len({opcode_fill(queue, "matvec").pattern for queue in queues}) == 1


@pytest.mark.parametrize("count", [1, 12, 13, MOST_TENSORS])
def test_no_palette_begins_again(count: int):
    fills = list(tensor_fills(f"t{i}" for i in range(count)).values())
    assert len(set(fills)) == count
    assert all(one.tone != two.tone for one, two in pairwise(fills))


def test_more_tensors_than_looks_become_one():
    sizes = {f"t{i}": 100 + i for i in range(MOST_TENSORS + 5)}
    shown = fewer(sizes)
    assert len(shown) == MOST_TENSORS and sum(shown.values()) == sum(sizes.values())
    assert shown["6 smaller"] == sum(100 + i for i in range(6))
    assert fewer({"a": 1}) == {"a": 1}
    with pytest.raises(ValueError, match="zip"):
        tensor_fills(sizes)


def test_rules_and_patterns_for_what_is_used():
    used = [queue_fill("kv").name, opcode_fill("vector", "mul").name]
    assert rules(used).splitlines() == [
        ".f-kv-solid { fill: var(--kv); }",
        ".f-vector-net { fill: url(#f-vector-net); }",
    ]
    assert definitions(used).count("<pattern ") == 1
