"""The choice of a token on the host, from logits that came out of the chip.

The head of the hardware takes the first maximum. Where another token is wanted, the logits are read
and the host chooses: the same logits, temperature, k and seed give the same tokens, on every engine
whose logits are equal. No part of the chip's own arithmetic is done here.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from intaglio.dialects.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Logits = npt.NDArray[np.float32]


class Sampler:
    """Draws tokens with probabilities proportional to exp(logit / temperature).

    Args:
        temperature: above 0; small ones prefer large logits. 0 takes the first maximum.
        top_k: draw from this many tokens of the largest logits; of equal logits the lower ids
            count as larger. None: from all.
        top_p: draw from the largest of these that together have this much of the probability, at
            least one token; 1: from all.
        seed: of the generator (PCG64); one draw a token.

    Raises:
        UserError: a number is out of range.
    """

    def __init__(
        self, temperature: float, top_k: int | None = None, seed: int = 0, *, top_p: float = 1
    ) -> None:
        import numpy as np

        if not math.isfinite(temperature) or temperature < 0:
            raise UserError(
                f"temperature {temperature}: not a number from 0 on",
                hint="0 takes the likeliest token each time, 1 the model's own probabilities",
            )
        if top_k is not None and top_k < 1:
            raise UserError(f"top-k {top_k}: at least one token must be left to draw from")
        if not 0 <= top_p <= 1:
            raise UserError(f"top-p {top_p}: not a share from 0 to 1")
        if seed < 0:
            raise UserError(f"seed {seed}: not a number from 0 on")
        self.temperature = temperature
        self.top_k = top_k
        self.top_p = top_p
        self.seed = seed
        self._random = np.random.Generator(np.random.PCG64(seed))

    def choose(self, logits: Logits) -> int:
        """A token for logits [V]."""
        import numpy as np

        if self.temperature == 0:
            return int(logits.argmax())
        # A stable sort of what is negated puts the lower of two equal ids first.
        order = np.argsort(-logits, kind="stable")[: self.top_k]
        ranked = logits[order].astype(np.float64)
        # Before the division, which could overflow where the temperature is tiny.
        with np.errstate(over="ignore", under="ignore"):
            weights = np.exp((ranked - ranked[0]) / self.temperature)
        sums = np.cumsum(weights)
        if self.top_p < 1:
            sums = sums[: np.searchsorted(sums, self.top_p * sums[-1]) + 1]
        drawn = np.searchsorted(sums, self._random.random() * sums[-1], side="right")
        return int(order[min(int(drawn), len(sums) - 1)])
