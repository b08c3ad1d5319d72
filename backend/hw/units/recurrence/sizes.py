"""What the recurrence unit must be able to do, and its descriptors: from a program to numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from intaglio.backend.hw.units.attention.sizes import machine_refusals, number_bits
from intaglio.backend.hw.wires.widths import index_bits
from intaglio.dialects.descriptor import Field, Fields
from intaglio.dialects.errors import CompilerBug, UserError
from intaglio.dialects.h_units import STATE_SCALES, STATES, StateShape
from intaglio.dialects.isa.recurrence import LinearAttention
from intaglio.dialects.isa.values import Quantized
from intaglio.dialects.machine import Machine
from intaglio.dialects.semantics import state_sum_bits
from intaglio.lowering.schedule import durations
from intaglio.lowering.schedule.durations import StateSteps

if TYPE_CHECKING:
    from intaglio.backend.program.program import Instruction, Program

FRACTION_BITS = 6
"""Width of a number of fraction bits; of a difference of two it is one more."""


@dataclass(frozen=True)
class Form:
    """What all linear attentions of a program have in common.

    Attributes:
        shape: of the state.
        query_heads, key_heads: of queries and of keys.
        format: of their codes.
        gated: whether there is a decay.
        delta: whether there is a rate.
        shift: places that sums over a head lose.
    """

    shape: StateShape
    query_heads: int
    key_heads: int
    format: str
    gated: bool
    delta: bool
    shift: int


def forms(program: Program) -> set[Form]:
    """The forms of the linear attentions of a program."""
    found: set[Form] = set()
    for block in program.blocks:
        for one in block.instructions:
            does = one.does
            if not isinstance(does, LinearAttention):
                continue
            query, key = (program.value(n, Quantized) for n in (does.query, does.key))
            for instance in block.instances:
                state = program.matrices[does.bound(instance).state]
                found.add(
                    Form(
                        state.shape(program.machine),
                        query.groups,
                        key.groups,
                        key.format,
                        does.decay is not None,
                        does.rate is not None,
                        does.pre_shift,
                    )
                )
    return found


def refusals(program: Program) -> list[UserError]:
    """Why there is no recurrence unit for a program."""
    found = machine_refusals(program.machine)
    of = forms(program)
    if len(of) > 1:
        found.append(
            UserError("the hardware takes states of linear attention of one shape and rule only")
        )
    lanes = program.machine.vector_lanes
    for one in of:
        width = one.shape.value_width
        if not one.shape.together:
            found.append(
                UserError(
                    f"a vector of {width} values of a state is wider than a row of all H-Units"
                )
            )
        if width % lanes and lanes % width:
            found.append(
                UserError(
                    f"values of {width} elements a head do not go into rows of {lanes} lanes",
                    hint="a multiple or a divisor of the vector lanes fits",
                )
            )
    return found


@dataclass(frozen=True)
class RecurrenceModel:
    """The unit's sizes.

    Attributes:
        program: the program, its buffers at rows of the memories outside.
        row_bits: width of the rows of the memories outside.
    """

    program: Program
    row_bits: int

    @cached_property
    def form(self) -> Form:
        """What all instructions have in common."""
        (form,) = forms(self.program)
        return form

    @property
    def machine(self) -> Machine:
        """The chip."""
        return self.program.machine

    @property
    def shape(self) -> StateShape:
        """Of a state."""
        return self.form.shape

    @cached_property
    def recall(self) -> StateSteps:
        """The steps of the first pass."""
        return durations.recall_steps(self.machine, self.shape, self.form.format)

    @cached_property
    def change(self) -> StateSteps:
        """The steps of the second pass."""
        return durations.change_steps(self.machine, self.shape, self.form.format)

    @cached_property
    def cycles(self) -> tuple[int, int]:
        """Cycles of both passes."""
        given = self.machine, self.shape, self.form.format
        recall, change = (int(f(*given)(tokens=1, rank=0))
                          for f in (durations.recall, durations.change))  # fmt: skip
        return recall, change

    @property
    def sum_bits(self) -> int:
        """Width of an exact sum over a head."""
        return state_sum_bits(self.shape.key_width, self.form.format)

    @property
    def depth(self) -> int:
        """Rows of the states."""
        return self.program.memories[STATES].rows

    @property
    def scale_depth(self) -> int:
        """Entries of exponents."""
        return self.program.memories[STATE_SCALES].rows

    @cached_property
    def fields(self) -> Fields:
        """The descriptor of an instruction."""
        form = self.form
        return Fields(
            (
                Field("state_pass", 1, "0: the result; 1: the state"),
                Field("state_query", self.row_bits, "first row of the query's codes"),
                Field("state_key", self.row_bits, "first row of the key's codes"),
                Field("state_value", self.row_bits, "first row of the value"),
                *((Field("state_decay", self.row_bits, "first row of the decay"),) * form.gated),
                *((Field("state_rate", self.row_bits, "first row of the rate"),) * form.delta),
                Field("state_output", self.row_bits, "first row of the result"),
                Field("state_row", index_bits(self.depth), "first row of the state"),
                Field("state_head", index_bits(self.scale_depth), "entry of its first exponent"),
                Field(
                    "state_value_places",
                    FRACTION_BITS + 1,
                    "fraction bits of the value less those of the result",
                    True,
                ),
                *(
                    (Field("state_decay_frac", FRACTION_BITS, "fraction bits of the decay"),)
                    * form.gated
                ),
                *(
                    (Field("state_rate_frac", FRACTION_BITS, "fraction bits of the rate"),)
                    * form.delta
                ),
                Field("state_frac", FRACTION_BITS, "fraction bits of the result"),
            )
        )


def encode(
    model: RecurrenceModel, instruction: Instruction, instance: Mapping[str, str]
) -> dict[str, int]:
    """The descriptor of a pass: a number for each of `RecurrenceModel.fields`.

    Raises:
        UserError: a value begins inside a row.
    """
    program, one = model.program, instruction.does.bound(instance)
    if not isinstance(one, LinearAttention):
        raise CompilerBug(f"the recurrence unit cannot execute {one.opcode}")
    state, frac = program.matrices[one.state], program.fraction(one.output)

    def row(buffer: str) -> int:
        return program.row_of(buffer, instruction)

    values = {
        "state_pass": instruction.beat.number,
        "state_query": row(one.query),
        "state_key": row(one.key),
        "state_value": row(one.value),
        "state_output": row(one.output),
        "state_row": state.row,
        "state_head": state.scale,
        "state_value_places": program.fraction(one.value) - frac,
        "state_frac": frac,
    }
    for name, gate in (("decay", one.decay), ("rate", one.rate)):
        if gate is not None:
            values[f"state_{name}"] = row(gate)
            values[f"state_{name}_frac"] = program.fraction(gate)
    return model.fields.checked(values, one.opcode)


def head_bits(model: RecurrenceModel) -> int:
    """Wires of the number of a head."""
    return number_bits(model.shape.heads)
