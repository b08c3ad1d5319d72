"""Comparison with onnxruntime operator by operator: the first that diverges, by its ONNX node."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from intaglio.backend.program.program import Block, Instruction
from intaglio.dialects.isa.attention import WeightedSum
from intaglio.dialects.isa.instruction import Instruction as Does
from intaglio.dialects.isa.matrix import Product
from intaglio.dialects.isa.values import Fixed, Routing
from intaglio.dialects.isa.vector import (
    Copy,
    LayerNorm,
    Mul,
    RMSNorm,
    RMSScale,
    Tap,
    VectorInstruction,
    Weigh,
)
from intaglio.runtime.judge.defaults import OPERATOR_THRESHOLD
from intaglio.runtime.judge.reference import nodes_of
from intaglio.runtime.loaded_model import LoadedModel

OPERATOR_KEYS = (
    "operators",
    "operators_without_counterpart",
    "operator_threshold",
    "operator_error",
    "worst_operator",
    "first_operator_above_threshold",
)
"""What `check_operators` says."""

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class _Observed:
    """The value of the graph that an instruction instance computes."""

    block: str
    index: int
    instance: int
    opcode: str
    node: str
    value: str
    convolved: bool
    """Whether its channels may come before its tokens."""
    folded: bool = False
    """Whether it is a norm's but for the factor that its products take (`rms_scale`)."""


_RESIDUAL_OUTPUT = 3
"""The output of a Skip...Normalization that holds the sum."""
_ATTENTION = ("GroupQueryAttention", "MultiHeadAttention", "Attention")


def _value_of(
    one: Instruction, op_type: str, outputs: Sequence[str], *, folded: bool = False
) -> str | None:
    """The output of its last node that an instruction computes, if any; `folded`: see
    `_Observed`."""
    does = one.does
    # Values of an ONNX graph are the fixed-point ones; a copy's is another instruction's.
    is_inner = isinstance(does, Copy) or [out.kind for out in does.form.writes] != [Fixed]
    if is_inner or (op_type in _ATTENTION and not isinstance(does, WeightedSum)):
        return None
    is_norm = folded or isinstance(does, RMSNorm | LayerNorm)
    number = _RESIDUAL_OUTPUT if op_type.startswith("Skip") and not is_norm else 0
    return (outputs[number] or None) if number < len(outputs) else None


_FINAL: dict[str, type[Does[str]]] = {
    "CausalConvWithState": VectorInstruction,
    "GatedRMSNorm": Mul,
    "LinearAttentionGate": Tap,
}
"""Nodes that become several instructions, and the last of which class gives their first output."""


def _is_inner(block: Block, instance: int, one: Instruction, op_type: str, node: str) -> bool:
    """Whether an instruction gives a step on the way to what its node gives."""
    if (final := _FINAL.get(op_type)) is None:
        return False
    own = [
        other
        for other in block.whole
        if isinstance(other.does, final) and _last_node(other, instance) == node
    ]
    return one is not own[-1]


def _place(block: Block, instance: int, one: Instruction, node: str) -> int:
    """Which of the instructions of a node it is."""
    own = [other for other in block.whole if _last_node(other, instance) == node]
    return next(place for place, other in enumerate(own) if other is one)


def _last_node(one: Instruction, instance: int) -> str:
    return one.onnx[min(instance, len(one.onnx) - 1)][-1]


def _factors(block: Block, instance: int) -> set[str]:
    """The last nodes of a block's norms whose factors follow their products."""
    return {_last_node(one, instance) for one in block.whole if isinstance(one.does, RMSScale)}


def _mixtures(block: Block, instance: int) -> set[str]:
    """The last nodes of a block's mixtures of experts."""
    return {
        one.onnx[min(instance, len(one.onnx) - 1)][-1]
        for one in block.whole
        if isinstance(one.does, Weigh)
    }


def _is_part(chip: LoadedModel, one: Instruction) -> bool:
    """Whether an instruction of a mixture gives a part of it only: all but its last expert's do."""
    does = one.does
    if not isinstance(does, Weigh):
        return True
    return does.expert != chip.program.value(does.routing, Routing).chosen - 1


def _names(
    chip: LoadedModel, block: Block, instance: int, one: Instruction, weights: str
) -> Sequence[str]:
    """The ONNX nodes of the value of the graph that an instruction writes, if it writes one.

    Of a site the chip computes the engraved part (with a residual, where one is added), A x, and
    the sum with B (A x): the last is a value of the graph, the others are not while an adapter is
    active. A part of a packed projection's rows never is.
    """
    program = chip.program
    own = one.onnx[min(instance, len(one.onnx) - 1)]
    if weights in program.slots:
        site, half = program.slots[weights]
        if half == "a" or site.rows != program.parameters[site.matrix].dims[0]:
            return ()
        buffers = block.instances[instance]
        return next(
            other.onnx[min(instance, len(other.onnx) - 1)]
            for other in block.whole
            if isinstance(other.does, Product) and buffers[other.does.weights] == site.matrix
        )
    is_base = any(site.matrix == weights for site in program.sites.values())
    return () if is_base and chip.adapter is not None else own


def _observations(chip: LoadedModel) -> Iterator[tuple[Instruction, _Observed | None]]:
    """Every instruction, instance by instance in the order of execution."""
    # The judge of adapters gives the sums the names that the base's products have.
    nodes = nodes_of(chip.model)
    for block in chip.program.blocks:
        for instance, buffers in enumerate(block.instances):
            mixtures, factors = _mixtures(block, instance), _factors(block, instance)
            for index, one in enumerate(block.whole):
                weights = buffers[one.does.weights] if isinstance(one.does, Product) else ""
                names = _names(chip, block, instance, one, weights)
                observed = None
                if names and names[-1] in nodes:
                    op_type, outputs = nodes[names[-1]]
                    value = None
                    folded = isinstance(one.does, Tap) and names[-1] in factors
                    if names[-1] not in mixtures or not _is_part(chip, one):
                        value = _value_of(one, op_type, outputs, folded=folded)
                    if _is_inner(block, instance, one, op_type, names[-1]):
                        value = None
                    elif op_type == "Split" and value is not None:
                        # Rows of a packed product, one product for each part.
                        value = outputs[_place(block, instance, one, names[-1]) % len(outputs)]
                    if value is not None:
                        observed = _Observed(
                            block.name,
                            index,
                            instance,
                            one.opcode,
                            names[-1],
                            value,
                            op_type == "CausalConvWithState",
                            folded,
                        )
                yield one, observed


def check_operators(chip: LoadedModel, ids: Sequence[int]) -> dict[str, Any]:
    """Compares what each instruction wrote with the float reference's value of that name.

    A norm that is folded into its products is compared all the same: its weighted elements, times
    the factor that its products take.

    Args:
        chip: the compiled model.
        ids: tokens, from position 0 on.

    Returns:
        The keys of `OPERATOR_KEYS`: `operators`, each with `relative_error` (largest error over
        largest magnitude), in the order of execution; the worst of them, and the first that is
        above `operator_threshold`.

    Raises:
        UserError: onnxruntime cannot run the model.
    """
    every = list(_observations(chip))
    names = list(dict.fromkeys(found.value for _, found in every if found is not None))
    reference = chip.reference(float_activations=True, observed=names)
    _, values = reference.observe(ids)
    found = iter(every)
    entries: list[dict[str, Any]] = []
    apart: list[str] = []
    factors: dict[str, Array] = {}
    weighted: dict[str, tuple[_Observed, int, Array]] = {}

    def observe(one: Instruction, instance: int, written: list[Array]) -> None:
        expected, observed = next(found)
        assert expected is one
        if isinstance(one.does, RMSScale):
            node = _last_node(one, instance)
            factors[node] = written[0]
            if (early := weighted.pop(node, None)) is not None:
                compare(early[0], early[1], early[2] * written[0])
        if observed is None or not written:
            return
        if not observed.folded:
            compare(observed, instance, written[0])
        elif (factor := factors.pop(observed.node, None)) is not None:
            compare(observed, instance, written[0] * factor)
        else:
            weighted[observed.node] = observed, instance, written[0]

    def compare(observed: _Observed, instance: int, ours: Array) -> None:
        theirs = _token_major(values[observed.value], ours.shape, observed.convolved)
        if theirs is None:
            apart.append(observed.node)
            return
        peak = float(np.abs(theirs).max(initial=0.0))
        error = float(np.abs(ours - theirs).max(initial=0.0))
        entries.append(
            {
                "block": observed.block,
                "instance": instance,
                "instruction": observed.index,
                "opcode": observed.opcode,
                "onnx": observed.node,
                "error": error,
                "relative_error": error / peak if peak else error,
            }
        )

    chip.simulator.reset()
    chip.simulator.forward(ids, 0, observe=observe)
    worst = max(entries, key=lambda entry: entry["relative_error"], default=None)
    first = next((e for e in entries if e["relative_error"] > OPERATOR_THRESHOLD), None)
    return {
        "operators": entries,
        "operators_without_counterpart": sorted(set(apart)),
        "operator_threshold": OPERATOR_THRESHOLD,
        "operator_error": worst["relative_error"] if worst else 0.0,
        "worst_operator": worst,
        "first_operator_above_threshold": first,
    }


def _token_major(
    value: np.ndarray, shape: tuple[int, ...], convolved: bool = False
) -> Array | None:
    """A value of the graph, batch 1, as [S, N]; None when it is of another size."""
    if value.size != math.prod(shape) or value.ndim not in (3, 4):
        return None
    # Heads, or the channels of a convolution, come before tokens.
    channels = convolved and value.shape[1:] == shape[::-1]
    if channels or (value.ndim == 4 and value.shape[1] != shape[0]):
        value = value.swapaxes(1, 2)
    return value.astype(np.float64).reshape(shape)
