"""Where values saturate, and what helps: fewer fraction bits, tried on the same tokens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from intaglio.dialects.isa.values import Fixed

if TYPE_CHECKING:
    from intaglio.backend.program.program import Instruction
    from intaglio.runtime.engines.simulator import Simulator

TRIED = (16, 14, 12, 10, 8)
"""Fraction bits of all values that are tried, those that are fewer than the program's most."""
TOKENS = 128
"""Tokens that they are tried on: the first of those that saturated."""
LEFT = 0.01
"""Share of the saturations that a remedy may leave."""
ERROR_LEFT = 0.25
"""Share of the largest error of a logit that it may leave."""


def saturation(
    simulator: Simulator,
    ids: Sequence[int],
    judged: npt.NDArray[np.floating] | None = None,
) -> dict[str, Any]:
    """Where values of the first tokens saturate, and which setting was found to help.

    A setting helps when the model can be used with it: at most `LEFT` of the saturations remain
    and, where somebody judges, at most `ERROR_LEFT` of the largest error of the logits. Those that
    leave nothing come first, then those that leave least; of equals the one with the most fraction
    bits.

    Args:
        simulator: with the adapter that is active; its tokens are forgotten.
        ids: the tokens that saturated.
        judged: their logits [S, V] as they should be.

    Returns:
        `tokens` that were run, `count` of what saturated there, `nodes` (names of ONNX nodes,
        opcode and count, largest first), `tried` (fraction bits and what saturated with each;
        `error` and, in the whole, `error` before: the largest error of a logit, None where nobody
        judges), and `remedy`, the one of them that helps, or None.
    """
    ids = list(ids)[: min(TOKENS, simulator.capacity)]
    counts: Counter[tuple[str, str]] = Counter()
    seen = 0

    def observe(one: Instruction, instance: int, values: Any) -> None:
        nonlocal seen
        counts[", ".join(one.onnx[instance]), one.opcode] += simulator.saturations - seen
        seen = simulator.saturations

    simulator.reset()
    error = _error(simulator, simulator.forward(ids, observe=observe), judged)
    buffers = simulator.program.buffers.values()
    most = max(one.type.fraction for one in buffers if isinstance(one.type, Fixed))
    tried: list[dict[str, Any]] = []
    for bits in TRIED if seen else ():
        if bits >= most:
            continue
        other = simulator.with_fraction_bits(bits)
        found = _error(other, other.forward(ids), judged)
        tried.append({"fraction_bits": bits, "saturations": other.saturations, "error": found})
        if not other.saturations:
            break
    simulator.reset()
    better = [
        one
        for one in tried
        if one["saturations"] <= LEFT * seen
        and (error is None or one["error"] <= ERROR_LEFT * error)
    ]
    return {
        "tokens": len(ids),
        "count": seen,
        "error": error,
        "nodes": [
            {"onnx": onnx, "opcode": opcode, "count": count}
            for (onnx, opcode), count in counts.most_common()
            if count
        ],
        "tried": tried,
        "remedy": min(better, key=lambda one: one["saturations"], default=None),
    }


def _error(
    simulator: Simulator,
    exact: npt.NDArray[np.int64] | None,
    judged: npt.NDArray[np.floating] | None,
) -> float | None:
    """The largest distance of logits from those of a judge."""
    if judged is None:
        return None
    assert exact is not None
    logits = np.ldexp(exact.astype(np.float64), -simulator.fraction_bits)
    return float(np.abs(logits - judged[: len(logits)]).max(initial=0.0))


def saturation_lines(found: dict[str, Any]) -> list[str]:
    """What `saturation` found, for people."""
    if not found["count"]:
        return [f"none among the first {found['tokens']:,} tokens, where remedies are tried"]
    first = found["nodes"][0]
    lines = [f"{first['count']:,} of {found['count']:,} at {first['onnx']} ({first['opcode']})"]
    tried, remedy = found["tried"], found["remedy"]
    if remedy is None:
        if tried:
            lines.append(f"no setting tried helps; on the same {found['tokens']:,} tokens:")
            lines += [
                f"  --set fraction_bits={one['fraction_bits']}: {_left(one, found)}"
                for one in tried
            ]
        else:
            lines.append("no fewer fraction bits are possible")
        return lines
    lines.append(
        f"--set fraction_bits={remedy['fraction_bits']} helps: on the same {found['tokens']:,} "
        f"tokens {_left(remedy, found)}"
    )
    return lines


def _left(one: dict[str, Any], found: dict[str, Any]) -> str:
    """What saturates with a setting, and how wrong the logits are."""
    left = one["saturations"]
    text = f"{f'{left:,}' if left else 'none'} of {found['count']:,}"
    if one["error"] is None:
        return text
    return f"{text}, largest error of a logit {one['error']:.2g} instead of {found['error']:.2g}"
