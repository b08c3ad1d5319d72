"""What the vector unit does: its operations, each for one instruction or several.

An elementwise instruction is the operation of its formula's family; all others have their own.
"""

from __future__ import annotations

from collections.abc import Mapping

from intaglio.dialects.formats import FORMATS
from intaglio.dialects.formulas import elementwise
from intaglio.dialects.isa import vector as isa

FORMAT_CODES = {
    name: code
    for code, name in enumerate(
        n for n, one in FORMATS.items() if not one.by_block and n != "places8"
    )
}
"""Values of the field `number_format`; the others have an operation."""

LARGEST_SHIFT = 24
"""Of magnitudes that are quantised."""

COPY = elementwise.SCALE.family
"""A copy is a product with 1."""
ROTARY, SOFTMAX, SAMPLE = isa.Rotary.opcode, isa.Softmax.opcode, isa.Sample.opcode
SOFTMAX_PLACES = isa.SoftmaxPlaces.opcode
"""Its second pass; the first one is that of `softmax`."""
RMS_NORM, LAYER_NORM = isa.RMSNorm.opcode, isa.LayerNorm.opcode
NORMS = (RMS_NORM, LAYER_NORM)
QUANTIZE = isa.Quantize.opcode
QUANTIZE_STATIC = "quantize_static"
"""With the static scale of a cache."""

QUANTIZE_BLOCKS = isa.QuantizeBlocks.opcode
QUANTIZE_HEADS = isa.QuantizeHeads.opcode
RMS_SCALE = isa.RMSScale.opcode
"""A norm's factor alone: what it writes is looked up."""

TAP, TAP_ONTO = isa.Tap.opcode, "tap_onto"
"""Constant weights, and a bias; constant weights, and the second operand."""
DELAY = isa.Delay.opcode
"""Both passes copy; at position 0 the first one gives zeros."""

ROUTE = isa.Route.opcode
"""Not a pass over rows: `router.py`."""
WEIGH, WEIGH_ONTO = isa.Weigh.opcode, "weigh_onto"
"""By the share of a chosen expert; and the second operand."""

LANE_SETTINGS: Mapping[str, frozenset[str]] = {
    elementwise.SCALE.family: frozenset({"counted"}),
    elementwise.ADD.family: frozenset({"added", "counted"}),
    elementwise.MUL.family: frozenset({"paired", "counted"}),
    "gate": frozenset({"gated", "counted"}),
    "sigmoid": frozenset({"bare"}),
    "tanh": frozenset({"bare", "odd"}),
    "relu": frozenset({"rectified", "counted"}),
    "relu2": frozenset({"rectified", "doubled", "counted"}),
    elementwise.SOFTCAP.family: frozenset({"capped", "bare", "odd", "counted"}),
    elementwise.CLIP.family: frozenset({"bounded", "counted"}),
    "softplus": frozenset({"bare", "even", "joined", "counted"}),
    "mish": frozenset({"gated", "even", "whole", "counted"}),
    "elu": frozenset({"bare", "even", "whole", "joined", "counted"}),
    TAP: frozenset({"tapped", "counted"}),
    TAP_ONTO: frozenset({"tapped", "added", "counted"}),
    DELAY: frozenset(),
    WEIGH: frozenset({"counted"}),
    WEIGH_ONTO: frozenset({"added", "counted"}),
}
"""What of `LaneControl` is 1 for an operation, by the formula's family where it has one."""

OPERATIONS = (
    *LANE_SETTINGS,
    ROTARY,
    *NORMS,
    QUANTIZE,
    QUANTIZE_STATIC,
    QUANTIZE_BLOCKS,
    QUANTIZE_HEADS,
    RMS_SCALE,
    SOFTMAX,
    SOFTMAX_PLACES,
    SAMPLE,
    ROUTE,
)
"""What the unit distinguishes."""

PASS_COUNTS: Mapping[str, int] = {
    **dict.fromkeys(OPERATIONS, 1),
    **{
        one.opcode: one.passes.passes
        for one in (isa.RMSNorm, isa.LayerNorm, isa.Quantize, isa.Softmax, isa.Delay)
    },
}
"""How often each operation passes over its vector."""

PASSES = tuple((name, number) for name in OPERATIONS for number in range(PASS_COUNTS[name]))
"""Operations with the numbers of their passes, in the order of the field `operation`."""
