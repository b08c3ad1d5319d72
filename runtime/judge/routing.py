"""Which experts a mixture takes, here and in onnxruntime, token by token and layer by layer.

A router's choice is a comparison: where two logits are nearly equal, rounding decides, and one
token then goes another way. So choices that differ are told apart: those where the reference's own
gap, between the last chosen logit and the first that is not, is no more than twice the distance of
the two references there are *near ties*, which neither reference can tell.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from intaglio.backend.program.program import Instruction
from intaglio.dialects.isa.values import Routing
from intaglio.dialects.isa.vector import Route
from intaglio.runtime.judge.reference import FLOAT_ACTIVATIONS, NAMES, inputs_of
from intaglio.runtime.loaded_model import LoadedModel
from intaglio.runtime.reports.wording import counted

Array = npt.NDArray[np.float64]

_LOGITS: Mapping[str, int] = {"QMoE": 1, "MoE": 1, "Softmax": 0, "TopK": 0}
"""The input of a node that holds the router's logits, the surest kind of node first."""
LISTED = 20
"""Choices that differ that are listed."""


@dataclass(frozen=True)
class _Router:
    """A router of the program: where it stands, the value of the graph it reads, what it takes."""

    block: str
    instance: int
    node: str
    value: str
    chosen: int


def _routers(chip: LoadedModel) -> Iterator[tuple[Instruction, int, _Router]]:
    """Every router, instance by instance in the order of execution."""
    inputs = inputs_of(chip.judged)
    for block in chip.program.blocks:
        for instance in range(len(block.instances)):
            for one in block.whole:
                if not isinstance(one.does, Route):
                    continue
                names = one.onnx[min(instance, len(one.onnx) - 1)]
                found = [
                    (name, inputs[name][1][place])
                    for kind, place in _LOGITS.items()
                    for name in names
                    if name in inputs and inputs[name][0] == kind
                ]
                if found:
                    chosen = chip.program.value(one.does.output, Routing).chosen
                    yield one, instance, _Router(block.name, instance, *found[0], chosen)


def routes(chip: LoadedModel) -> bool:
    """Whether a model is a mixture of experts."""
    return any(isinstance(one.does, Route) for block in chip.program.blocks for one in block.whole)


def check_routing(
    chip: LoadedModel, windows: Sequence[Sequence[int]], judge: str, other: str
) -> dict[str, Any]:
    """Compares the experts of each token with a reference's.

    Args:
        chip: the compiled model.
        windows: tokens of each window, from position 0 on.
        judge: the reference that counts: `as_it_comes` or `float_activations`.
        other: the other one.

    Returns:
        `judge`, whose gaps these are; `tokens`, how many; `choices` (tokens times
        routers), `differing`, `near_ties` (of those that differ), their
        difference `counted`; `listed`, the first of those that differ, each with `token` (its
        number among those of all windows), `node`, the experts `here` and `there`, `gap` and
        `apart`, the logits' distance of the references at this token;
        `same_tokens`, those of which no choice differs but near ties, and over these tokens
        `max_abs_logit_error` and `max_error_of_range`, where near ties are decided as there.

    Raises:
        CannotJudge: onnxruntime cannot run the model.
    """
    every = list(_routers(chip))
    names = list(dict.fromkeys(router.value for _, _, router in every))
    first, second = (
        chip.reference(float_activations=name == FLOAT_ACTIVATIONS, observed=names)
        for name in (judge, other)
    )
    listed: list[dict[str, Any]] = []
    tokens = same = 0
    error, lowest, highest = 0.0, math.inf, -math.inf
    for ids in windows:
        first.reset()
        second.reset()
        logits, theirs = first.observe(ids)
        found, ours = _window(chip, every, ids, theirs, second.observe(ids)[1])
        counts = np.ones(len(ids), np.bool_)
        counts[[one["token"] for one in found if not one["near_tie"]]] = False
        same += int(counts.sum())
        error = max(error, float(np.abs(ours - logits)[counts].max(initial=0.0)))
        lowest, highest = min(lowest, float(logits.min())), max(highest, float(logits.max()))
        listed += [one | {"token": tokens + one["token"]} for one in found]
        tokens += len(ids)
    near = sum(one["near_tie"] for one in listed)
    size = highest - lowest
    return {
        "judge": judge,
        "tokens": tokens,
        "choices": tokens * len(every),
        "differing": len(listed),
        "near_ties": near,
        "counted": len(listed) - near,
        "listed": listed[:LISTED],
        "same_tokens": same,
        "max_abs_logit_error": error,
        "max_error_of_range": error / size if size else 0.0,
    }


def _window(
    chip: LoadedModel,
    every: Sequence[tuple[Instruction, int, _Router]],
    ids: Sequence[int],
    theirs: Mapping[str, npt.NDArray[Any]],
    others: Mapping[str, npt.NDArray[Any]],
) -> tuple[list[dict[str, Any]], Array]:
    """Choices of a window that differ, and the chip's logits [S, V], near ties decided as there.

    Args:
        chip: the compiled model.
        every: its routers.
        ids: tokens of the window.
        theirs: the routers' logits of the reference that counts, by name.
        others: those of the other one.
    """
    places = {(id(one), instance): number for number, (one, instance, _) in enumerate(every)}
    mine: dict[int, npt.NDArray[np.int64]] = {}

    def observe(one: Instruction, instance: int, written: list[Array]) -> None:
        number = places.get((id(one), instance))
        if number is not None:
            mine[number] = written[0][:, : every[number][2].chosen].astype(np.int64)

    listed: dict[tuple[int, int], dict[str, Any]] = {}
    simulator, forced = chip.simulator, chip.simulator.forced
    try:
        while True:
            simulator.reset()
            exact = simulator.forward(ids, 0, observe=observe)
            assert exact is not None
            fresh = 0
            for number, (_, _, router) in enumerate(every):
                known, unsure = (
                    of[router.value].reshape(len(ids), -1).astype(np.float64)
                    for of in (theirs, others)
                )
                apart = np.abs(known - unsure).max(axis=1)
                for token, experts, gap in _differing(mine[number], known, router.chosen):
                    if (number, token) in listed:
                        continue
                    is_near = gap <= 2 * float(apart[token])
                    listed[number, token] = {
                        "token": token,
                        "node": router.node,
                        "here": sorted(mine[number][token].tolist()),
                        "there": experts,
                        "gap": gap,
                        "apart": float(apart[token]),
                        "near_tie": is_near,
                    }
                    if is_near:
                        forced[number, token] = experts
                        fresh += 1
            if not fresh:
                break
    finally:
        forced.clear()
    return list(listed.values()), np.ldexp(exact.astype(np.float64), -simulator.fraction_bits)


def _differing(
    mine: npt.NDArray[np.int64], theirs: Array, chosen: int
) -> Iterator[tuple[int, list[int], float]]:
    """Tokens whose experts differ: theirs, and the gap of their logits."""
    order = np.argsort(-theirs, axis=1, kind="stable")
    for token, (own, best) in enumerate(zip(mine, order, strict=True)):
        wanted = sorted(best[:chosen].tolist())
        if sorted(own.tolist()) == wanted:
            continue
        # Equal logits are no difference, whichever of them is taken.
        row = theirs[token]
        if sorted(row[own]) == sorted(row[wanted]):
            continue
        yield token, wanted, float(row[best[chosen - 1]] - row[best[chosen]])


def routing_lines(found: Mapping[str, Any] | None) -> Iterator[str]:
    """What `check_routing` found, for people; None for a model without experts."""
    if found is None:
        return
    yield (
        f"  experts      {found['differing']:,} of {counted(found['choices'], 'choice')} "
        f"{'differs' if found['choices'] == 1 else 'differ'} from onnxruntime's "
        f"{NAMES[found['judge']]}, {found['near_ties']:,} of them near ties, which the references "
        "cannot tell"
    )
    decided = "near ties decided as there, " if found["near_ties"] else ""
    other = "another" if found["near_ties"] else "a"
    yield (
        f"               {decided}the largest error of a logit is "
        f"{found['max_abs_logit_error']:.4g}, {found['max_error_of_range']:.2%} of their range, "
        f"on {found['same_tokens']:,} of {counted(found['tokens'], 'token')}: those without "
        f"{other} difference"
    )
    for one in found["listed"]:
        tie = ", a near tie" if one["near_tie"] else ""
        yield (
            f"               token {one['token']} at {one['node']}: {one['here']} here, "
            f"{one['there']} there{tie}; the gap is {one['gap']:.3g} there, the references are "
            f"{one['apart']:.3g} apart"
        )
    if more := found["differing"] - len(found["listed"]):
        yield f"               and {more:,} more"
