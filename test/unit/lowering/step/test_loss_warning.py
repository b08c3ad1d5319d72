"""Words of warnings about lost precision."""

from __future__ import annotations

import pytest

from intaglio.lowering.step.loss_warning import Loss, loss_warnings, percent


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.0102, "1 %"), (0.0149, "1.5 %"), (0.333, "33 %"), (0.9949, "99 %"), (1.0, "100 %")],
)
def test_percent(share: float, text: str) -> None:
    assert percent(share) == text


def test_small_losses_are_not_worth_a_warning() -> None:
    assert loss_warnings([Loss("a", 0.01), Loss("b", 0.0)], "somehow", "do something") == []


def test_the_largest_are_named_and_the_others_counted() -> None:
    losses = [Loss(f"t{i}", 0.02 * i, f"row {i}", i) for i in range(6)]
    (said,) = loss_warnings(losses, "as 16-bit numbers", "use float32")
    assert said == (
        "tensor 't5', row 5, loses 10 % (and 4 others) as 16-bit numbers; 't4', row 4, loses 8 % "
        "(and 3 others); 't3', row 3, loses 6 % (and 2 others); 2 more tensors more than 1 % "
        "(manifest.json, rounding); use float32"
    )


def test_equal_losses_stand_in_the_order_of_names() -> None:
    (said,) = loss_warnings([Loss("b", 1.0), Loss("a", 1.0)], "here", "help")
    assert said.startswith("tensor 'a' loses 100 % here; 'b' loses 100 % (")


@pytest.mark.parametrize(
    ("shares", "gone"),
    [
        ((0.5,), ""),
        ((0.51,), "'t0', row 0: as good as gone; "),
        ((0.6, 0.4), "'t0', row 0: as good as gone; "),
        ((1.0,) * 3, "'t0', row 0; 't1', row 1; 't2', row 2: as good as gone; "),
        ((1.0,) * 5, "'t0', row 0; 't1', row 1; 't2', row 2; 2 more: as good as gone; "),
    ],
)
def test_what_is_gone_is_said_to_be(shares: tuple[float, ...], gone: str) -> None:
    losses = [Loss(f"t{i}", share, f"row {i}") for i, share in enumerate(shares)]
    (said,) = loss_warnings(losses, "here", "use float32")
    assert said.endswith(f" (manifest.json, rounding); {gone}use float32")
