"""How a compile says that tensors of the model lose precision where they become integers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

NOTEWORTHY = 0.01
"""Share of a value from which its loss is worth a warning."""
GONE = 0.5
"""Share of a value beyond which what is left of it is of no use."""
NAMED = 3
"""Tensors that a warning names; the others are counted."""


@dataclass(frozen=True)
class Loss:
    """What part of a tensor loses in becoming integers.

    Attributes:
        tensor: its name in the model's file.
        share: of the part's magnitude that is lost; 1 where nothing is left.
        place: the part, such as `row 7, group 2`; empty for all of the tensor.
        parts: how many parts of the tensor lose more than `NOTEWORTHY`, this one included; 0 where
            nobody counted.
    """

    tensor: str
    share: float
    place: str = ""
    parts: int = 0

    @property
    def part(self) -> str:
        """The tensor and the part of it."""
        return f"'{self.tensor}'" + (f", {self.place}" if self.place else "")

    def __str__(self) -> str:
        place = "," if self.place else ""
        others = f" (and {self.parts - 1:,} others)" if self.parts > 1 else ""
        return f"{self.part}{place} loses {percent(self.share)}{others}"


def percent(share: float) -> str:
    """A share in per cent, two significant digits."""
    return f"{100 * share:.2g} %" if share < 0.995 else f"{100 * share:.0f} %"


def loss_warnings(
    losses: Iterable[Loss],
    because: str,
    remedy: str,
    *,
    kind: str = "tensor",
    listed: str = "manifest.json, rounding",
) -> list[str]:
    """One warning for all tensors that lose more than `NOTEWORTHY` for the same reason, or none.

    Args:
        losses: of any tensors; small ones are left out, the largest are named.
        because: why, as the rest of a sentence: `as 16-bit numbers that share an exponent`.
        remedy: what would help, as a sentence's end.
        kind: what they are losses of.
        listed: where all of them stand.
    """
    found = sorted(
        (loss for loss in losses if loss.share > NOTEWORTHY),
        key=lambda loss: (-loss.share, loss.tensor),
    )
    if not found:
        return []
    more = len(found) - NAMED
    named = [f"{kind} {found[0]} {because}", *(str(loss) for loss in found[1:NAMED])]
    if more > 0:
        named.append(
            f"{more:,} more {kind}{'s' if more > 1 else ''} more than {percent(NOTEWORTHY)}"
        )
    gone = [loss.part for loss in found if loss.share > GONE]
    if len(gone) > NAMED:
        gone[NAMED:] = [f"{len(gone) - NAMED:,} more"]
    said = f"{'; '.join(gone)}: as good as gone; " if gone else ""
    return [f"{'; '.join(named)} ({listed}); {said}{remedy}"]
