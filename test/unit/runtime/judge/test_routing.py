"""What a comparison says of experts' choices."""

from typing import Any

import numpy as np
import pytest

from intaglio.runtime.judge.routing import _differing, routing_lines


def _found(**changed: Any) -> dict[str, Any]:
    one = {"token": 22, "node": "gate", "here": [1, 3], "there": [0, 3]}
    return {
        "judge": "as_it_comes",
        "tokens": 40,
        "choices": 80,
        "differing": 1,
        "near_ties": 1,
        "counted": 0,
        "listed": [one | {"gap": 0.0017, "apart": 0.00718, "near_tie": True}],
        "same_tokens": 40,
        "max_abs_logit_error": 0.05595,
        "max_error_of_range": 0.0124,
    } | changed


def test_errors_are_said_to_be_with_near_ties_decided():
    head, error, listed = routing_lines(_found())
    assert "1 of 80 choices differ from onnxruntime's as it comes, 1 of them near ties" in head
    assert "same experts" not in head + error
    assert error.strip() == (
        "near ties decided as there, the largest error of a logit is 0.05595, 1.24% of their "
        "range, on 40 of 40 tokens: those without another difference"
    )
    assert "[0, 3] there, a near tie; the gap is 0.0017 there" in listed
    _, error = routing_lines(_found(differing=0, near_ties=0, listed=[]))
    assert "near ties" not in error
    assert error.endswith("on 40 of 40 tokens: those without a difference")
    _, error, listed = routing_lines(
        _found(
            near_ties=0,
            same_tokens=39,
            counted=1,
            listed=[_found()["listed"][0] | {"near_tie": False}],
        )
    )
    assert "near tie" not in error + listed and "on 39 of 40 tokens" in error


@pytest.mark.parametrize(
    ("judge", "name"),
    [("as_it_comes", "as it comes"), ("float_activations", "with float activations")],
)
def test_the_judge_is_named(judge: str, name: str):
    assert f"from onnxruntime's {name}," in next(routing_lines(_found(judge=judge)))


@pytest.mark.parametrize("differing", [1, 2, 1500])
def test_those_not_listed_are_counted(differing: int):
    lines = list(routing_lines(_found(differing=differing)))
    assert len(lines) == 3 + (differing > 1)
    assert differing == 1 or lines[-1].strip() == f"and {differing - 1:,} more"


def test_no_experts_no_lines():
    assert list(routing_lines(None)) == []


def test_the_gap_is_between_the_last_chosen_and_the_first_that_is_not():
    theirs = np.array([[3.0, 1.0, 2.5, 0.0], [1.0, 1.0, 4.0, 0.0], [5.0, 1.0, 2.0, 1.5]])
    mine = np.array([[0, 1], [2, 1], [3, 0]])
    # Of the second token 0 and 1 are equal: no difference.
    assert list(_differing(mine, theirs, 2)) == [(0, [0, 2], 1.5), (2, [0, 2], 0.5)]
