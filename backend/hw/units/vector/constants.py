"""Which constants a vector instruction reads, in which form, and which shapes have none.

A compile asks without building hardware, so nothing here needs the modules of circuits.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from intaglio.backend.hw.units.refusals import attempted
from intaglio.backend.program.types import Instruction, Parameter, Program
from intaglio.dialects.constant_rom import Form, norm_form, rotary_forms
from intaglio.dialects.errors import UserError
from intaglio.dialects.isa.values import Fixed
from intaglio.dialects.isa.vector import LayerNorm, OverScores, RMSNorm, Rotary, Tap


def constant_forms(
    program: Program, one: Instruction, instance: Mapping[str, str]
) -> tuple[tuple[Parameter, Form], ...]:
    """The constants that an instruction reads, one for each port, and the forms that it takes them
    in: gamma and beta, or cosines and sines.

    Raises:
        UserError: a shape that the unit does not take.
    """
    lanes = program.machine.vector_lanes
    match one.does.bound(instance):
        case RMSNorm() | LayerNorm() as norm:
            groups = norm.groups if isinstance(norm, RMSNorm) else 1
            gamma = program.parameters[norm.gamma]
            form = norm_form(program.value(norm.input, Fixed).size, groups, gamma.dims[-1], lanes)
            if isinstance(norm, LayerNorm) and norm.beta is not None:
                return (gamma, form), (program.parameters[norm.beta], form)
            return ((gamma, form),)
        case Rotary() as rotary:
            width = program.value(rotary.input, Fixed).size // rotary.heads
            turning = rotary.rotary_dim
            forms = rotary_forms(width, turning, lanes, interleaved=rotary.interleaved)
            if forms is None:
                raise unfit(
                    one,
                    f"heads of {width} elements, of which {turning} turn, do not fit "
                    f"{lanes} vector lanes",
                    "half of the turning elements must be a multiple of the lanes, or a power of "
                    "two below them",
                )
            tables = (program.parameters[name] for name in (rotary.cos, rotary.sin))
            return tuple(zip(tables, forms, strict=True))
        case OverScores(sink=str(sink)):
            return ((program.parameters[sink], Form()),)
        case Tap() as tap:
            vectors = (tap.weights, *(() if tap.bias is None else (tap.bias,)))
            return tuple((program.parameters[name], Form()) for name in vectors)
        case _:
            return ()


def misfits(program: Program) -> list[str]:
    """Shapes of a program that the vector unit does not take: a line each, with the first node."""
    found: dict[str, list[UserError]] = {}
    for error in shape_refusals(program):
        found.setdefault(error.what, []).append(error)
    return [
        f"node '{errors[0].node}' and {len(errors) - 1} more: {what}"
        if len(errors) > 1
        else f"node '{errors[0].node}': {what}"
        for what, errors in found.items()
    ]


def shape_refusals(program: Program) -> list[UserError]:
    """Instructions whose shapes the vector unit does not take."""
    return attempted(
        *[
            partial(constant_forms, program, one, block.instances[0])
            for block in program.blocks
            for one in block.instructions
        ]
    )


def unfit(one: Instruction, what: str, hint: str | None = None) -> UserError:
    """What an instruction has that the unit does not take, at its ONNX node."""
    return UserError(what, node=one.node, op_type=one.opcode, hint=hint)
