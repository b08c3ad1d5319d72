"""Places in the constant ROM of the vector units: vectors and tables, in the forms that are read.

How each lies there is in `dialects/constant_rom.py`; here they follow one another.
"""

from __future__ import annotations

from xdsl.dialects.builtin import ModuleOp
from xdsl.ir import Operation

from intaglio.dialects import constant_rom, rom
from intaglio.dialects.constant_rom import APART, CONSTANTS, Form, norm_form, rotary_forms
from intaglio.dialects.fabric import ConstantOp, MemoryOp, capacity
from intaglio.dialects.isa.vector import Rotary
from intaglio.dialects.machine import Machine
from intaglio.lowering.place.users import uses


def place_constants(module: ModuleOp, machine: Machine) -> list[MemoryOp | ConstantOp]:
    """The constant ROM of a module, and the places of its vectors and tables."""
    forms: dict[str, dict[Form, None]] = {}
    embeddings: set[str] = set()
    for name, op, role in uses(module):
        if isinstance(op, rom.RowOp):
            embeddings.add(name)
        forms.setdefault(name, {})[_form(op, role, machine.vector_lanes)] = None
    places: list[ConstantOp] = []
    row, positions = 0, capacity(module)
    for parameter in module.ops:
        if not isinstance(parameter, rom.ParameterOp):
            continue
        name, type_ = parameter.sym_name.data, parameter.type
        if not isinstance(type_, rom.ROMTensorType) or type_.is_matrix or name in embeddings:
            continue
        for form in forms.get(name, {Form(): None}):
            places.append(ConstantOp(name, row, form))
            row += form.depth(type_.dims, machine.vector_lanes, positions or type_.dims[0])
    return [MemoryOp(CONSTANTS, constant_rom.memory(row, machine.vector_lanes)), *places]


def _form(op: Operation, role: str, lanes: int) -> Form:
    """The form in which an operator takes what it uses as `role`; plain where the vector units do
    not take its shape."""
    match op:
        case rom.RMSNormOp() | rom.LayerNormOp():
            groups = op.groups.value.data if isinstance(op, rom.RMSNormOp) else 1
            gamma = rom.resolved_type(op, op.gamma, rom.ROMTensorType)
            return norm_form(rom.vector_size(op.input.type), groups, gamma.dims[-1], lanes)
        case rom.RotaryOp():
            width, turning = (
                rom.vector_size(op.input.type) // op.heads.value.data,
                op.rotary_dim.value.data,
            )
            found = rotary_forms(width, turning, lanes, interleaved=op.interleaved is not None)
            roles = [one.name for one in Rotary.form.roles]
            return Form() if found is None else found[roles.index(role)]
        case rom.ExpertProductOp():
            return Form(APART)
        case _:
            return Form()
