"""What keeps a token from being faster, in figures and in a sentence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def bottleneck(
    period: int,
    by_unit: Mapping[str, Mapping[str, int]],
    issue_cycles: int,
    own_cycles: Mapping[str, int],
    lanes: float,
) -> dict[str, Any]:
    """Who has the critical path, what is idle, and how far the nearest bound is.

    Keys: `units` (share of the period that each class of unit has on the critical path, `issue`
    among them, largest first; they add up to 1), `operator` (`opcode`, `queue` and `share` of the
    one with the most cycles there, or None), `idle_lanes` (share of multiplications that the
    matrix units' lanes could do in the period and do not), `bound` (`name`, `cycles` and `share` of
    the largest lower bound of the period: `lanes`, all of them always busy, or a queue, which would
    never wait), `bounds` (all of them, in cycles).

    Args:
        period: cycles of the token.
        by_unit: cycles on the critical path, by queue and opcode.
        issue_cycles: between the instructions of the critical path.
        own_cycles: of all instructions of each queue with their issue: an order that it cannot
            leave, so that no token is shorter.
        lanes: cycles if every lane were always busy.
    """
    units = {unit: sum(opcodes.values()) / period for unit, opcodes in by_unit.items()}
    units["issue"] = issue_cycles / period
    operators = [(n, opcode, unit) for unit, one in by_unit.items() for opcode, n in one.items()]
    cycles, opcode, queue = max(operators, default=(0, "", ""), key=lambda one: one[0])
    bounds = {**own_cycles, "lanes": lanes}
    nearest = max(bounds, key=lambda name: bounds[name])
    return {
        "units": dict(sorted(units.items(), key=lambda item: -item[1])),
        "operator": {"opcode": opcode, "queue": queue, "share": cycles / period}
        if operators
        else None,
        "idle_lanes": 1 - lanes / period,
        "bound": {
            "name": nearest,
            "cycles": bounds[nearest],
            "share": bounds[nearest] / period,
        },
        "bounds": bounds,
    }


def bottleneck_text(limits: Mapping[str, Any]) -> str:
    """What `bottleneck` gives as the second part of a sentence, and one more."""
    shares = [(unit, share) for unit, share in limits["units"].items() if share >= 0.0005]
    (first, most), rest = shares[0], shares[1:]
    subject = "the cycles between instructions have" if first == "issue" else f"{first} units have"
    others = "".join(f", {unit} {share:.1%}" for unit, share in rest)
    parts = [f"{subject} {most:.1%} of the critical path{others}"]
    if (one := limits["operator"]) is not None:
        parts.append(f"the longest operator is {one['opcode']} ({one['share']:.1%})")
    parts.append(f"lanes are idle {limits['idle_lanes']:.1%} of the time")
    bound = limits["bound"]
    what = "every lane always busy" if bound["name"] == "lanes" else f"{bound['name']} units alone"
    return (
        f"{'; '.join(parts)}. The nearest bound, {what}, is {bound['cycles']:,.0f} cycles, "
        f"{bound['share']:.1%} of the token."
    )
