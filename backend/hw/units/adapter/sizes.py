"""What the adapter unit must be able to do, and its descriptors: from a program to numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from intaglio.backend.hw.units.adapter.layout import (
    EXPONENT_BITS,
    AdapterPlaces,
    MatrixPlace,
    place_refusals,
)
from intaglio.backend.hw.units.attention.h_unit import BYTE
from intaglio.backend.hw.units.attention.sizes import AttentionModel, machine_refusals, number_bits
from intaglio.backend.hw.wires.widths import index_bits
from intaglio.dialects.descriptor import Field, Fields
from intaglio.dialects.errors import CompilerBug, UserError
from intaglio.dialects.formats import FORMATS
from intaglio.dialects.isa.adapter import AdapterMatvec
from intaglio.dialects.isa.values import Blocks, Coded, Quantized
from intaglio.dialects.machine import Machine
from intaglio.dialects.semantics import accumulator_bits, slot_bits
from intaglio.lowering.schedule import durations

if TYPE_CHECKING:
    from intaglio.backend.program.program import Instruction, Parameter, Program

PLACES_BITS = EXPONENT_BITS + 2
"""Width of the signed number of places of a requantisation that the program knows."""

_MIXED = {
    "source_fp8": "1: the vector is of E4M3, 0: of integers",
    "weight_fp8": "1: the matrix is of E4M3, 0: of integers",
    "source_blocks": "1: the vector has an exponent a block, 0: one scale",
}
"""What is told only where a program has both."""


@dataclass(frozen=True)
class AdapterModel:
    """What the unit must be able to do: gathered from all products of a program.

    Attributes:
        program: the program, its buffers at rows of the memories outside.
        places: of the adapters.
        row_bits: width of the rows of the memories outside.
    """

    program: Program
    places: AdapterPlaces
    row_bits: int = 16

    @cached_property
    def machine(self) -> Machine:
        """The chip."""
        return self.program.machine

    @cached_property
    def uses(self) -> list[tuple[AdapterMatvec[str], MatrixPlace]]:
        """The instructions with the matrices of all their instances."""
        return [
            (one.does, self.places.places[one.does.bound(instance).weights])
            for block in self.program.blocks
            for one in block.instructions
            if isinstance(one.does, AdapterMatvec)
            for instance in block.instances
        ]

    def format(self, one: AdapterMatvec[str]) -> str:
        """The format of an instruction's vector."""
        return self.program.value(one.input, Coded).format

    @cached_property
    def accumulator_bits(self) -> int:
        """Width of the widest exact sum."""
        return max(self._bits(place.parameter, self.format(one)) for one, place in self.uses)

    def _bits(self, parameter: Parameter, fmt: str) -> int:
        columns = parameter.dims[1]
        if parameter.is_slot:
            return slot_bits(parameter.code, columns, fmt)
        return accumulator_bits(parameter.bits, columns, fmt)

    @cached_property
    def shift(self) -> int:
        """Largest `pre_shift`."""
        return max(one.pre_shift for one, _ in self.uses)

    @cached_property
    def formats(self) -> frozenset[str]:
        """Formats of vectors."""
        return frozenset(self.format(one) for one, _ in self.uses)

    @cached_property
    def codes(self) -> frozenset[bool]:
        """Whether weights are E4M3, of all matrices."""
        return frozenset(place.parameter.code == "fp8" for _, place in self.uses)

    @cached_property
    def passes(self) -> int:
        """Most bytes of an element of a vector."""
        return max(FORMATS[fmt].memory_bits // BYTE for fmt in self.formats)

    @cached_property
    def mixed(self) -> tuple[str, ...]:
        """What must be told of an instruction, since some have E4M3 there and some integers."""
        sources = "fp8" in self.formats and len(self.formats) > 1
        by_block = {FORMATS[fmt].by_block for fmt in self.formats}
        found = {
            "source_fp8": sources,
            "weight_fp8": len(self.codes) > 1,
            "source_blocks": len(by_block) > 1,
        }
        return tuple(name for name, on in found.items() if on)

    @cached_property
    def steps(self) -> int:
        """Of vectors with an exponent a block (`formats.Format.steps`); 0: there are none."""
        return max(FORMATS[fmt].steps for fmt in self.formats)

    @property
    def word_blocks(self) -> int:
        """Parts of a word of the H-Units that have an exponent each."""
        return max(1, self.machine.attention_lanes // self.machine.block) if self.steps else 1

    @property
    def scale_fields(self) -> list[Field]:
        """What is told of scales, where some vectors have none of their own."""
        found: list[Field] = []
        if any(self._unscaled(one) for one, _ in self.uses):
            means = "1: the vector has no scale of its own, its unit is in `adapter_places`"
            found.append(Field("adapter_unscaled", 1, means))
        if any(one.norm is not None for one, _ in self.uses):
            means = "1: the results are times the factor of a norm"
            found.append(Field("adapter_normed", 1, means))
            found.append(Field("adapter_norm_row", self.row_bits, "row of the factor"))
        return found

    def _unscaled(self, one: AdapterMatvec[str]) -> bool:
        return FORMATS[self.format(one)].by_block and one.norm is None

    @property
    def beat(self) -> int:
        """Results of a beat."""
        return min(self.machine.h_units, self.machine.results_per_cycle)

    @cached_property
    def turns(self) -> tuple[int, ...]:
        """At which results of a beat matrices begin."""
        return tuple(sorted({0, *(place.unit % self.beat for _, place in self.uses)}))

    @property
    def _unit_fields(self) -> list[Field]:
        """Where rows of a matrix begin among the H-Units, where any does not at the first."""
        beats = max(place.unit // self.beat for _, place in self.uses)
        found = (
            ("adapter_turn", len(self.turns) - 1, "where in a beat the first row's result is"),
            ("adapter_part", beats, "beats of a block before the first row's result"),
        )
        return [Field(name, number_bits(most), means) for name, most, means in found if most]

    @cached_property
    def hold(self) -> int:
        """Cycles from the start to the last step, at least; 0: as they are.

        Scores of an attention before have left by then.
        """
        floor, machine = AttentionModel(self.program).floor, self.machine
        return floor if floor > durations.adapter_drain(machine) else 0

    @cached_property
    def fields(self) -> Fields:
        """The descriptor of a product: see `Fields`."""
        places = [place for _, place in self.uses]
        rows = max(place.parameter.dims[0] for place in places)
        units = self.machine.h_units
        return Fields(
            (
                Field("adapter_source", self.row_bits, "first row of the vector; also its scale's"),
                Field("adapter_target", self.row_bits, "first row of the result"),
                Field("adapter_residual", 1, "1: add a vector"),
                Field("adapter_residual_row", self.row_bits, "first row of that vector"),
                Field(
                    "adapter_word",
                    index_bits(self.places.depth),
                    "first word of the matrix in every H-Unit",
                ),
                Field(
                    "adapter_words",
                    number_bits(*(place.words for place in places)),
                    "words of a row",
                ),
                Field(
                    "adapter_scale",
                    index_bits(self.places.scale_depth),
                    "place of the matrix's first scale in every H-Unit",
                ),
                Field(
                    "adapter_groups",
                    number_bits(*(place.groups for place in places)),
                    "scales of a row",
                ),
                Field(
                    "adapter_group_last",
                    number_bits(*(place.group_words - 1 for place in places)),
                    "words under one scale, less one",
                ),
                Field("adapter_rows", number_bits(rows), "rows of the matrix"),
                Field(
                    "adapter_blocks_last",
                    index_bits(-(-rows // units)),
                    "blocks of `h_units` rows, less one",
                ),
                Field("adapter_passes_last", 1, "bytes of an element of the vector, less one"),
                *(Field(f"adapter_{name}", 1, _MIXED[name]) for name in self.mixed),
                *self.scale_fields,
                *self._unit_fields,
                Field("adapter_first", 1, "1: the first matrix of a site"),
                Field("adapter_second", 1, "1: the second matrix of a site"),
                Field("adapter_site", index_bits(len(self.places.sites)), "number of the site"),
                Field(
                    "adapter_pre_shift",
                    number_bits(self.shift),
                    "places that a sum loses before it is scaled",
                ),
                Field(
                    "adapter_places",
                    PLACES_BITS,
                    "places to shift the scaled sum by, without exponents that are loaded",
                    True,
                ),
            )
        )


def refusals(program: Program) -> list[UserError]:
    """Why there is no adapter unit for a program: machine, matrices, load port."""
    return machine_refusals(program.machine) + place_refusals(program)


def encode(
    model: AdapterModel, instruction: Instruction, instance: Mapping[str, str]
) -> dict[str, int]:
    """The descriptor of a product: a number for each of `AdapterModel.fields`.

    Args:
        model: of the program.
        instruction: a `matvec` of the attention queue.
        instance: what the block's instance binds its slots to.

    Raises:
        UserError: a size that the hardware does not take.
    """
    program = model.program
    one = instruction.does.bound(instance)
    if not isinstance(one, AdapterMatvec):
        raise CompilerBug(f"the adapter unit cannot execute {one.opcode}")
    place = model.places.places[one.weights]
    parameter = place.parameter
    rows, _ = parameter.dims
    if one.bias is not None:
        raise UserError(
            f"the hardware adds no bias to products with adapters: {parameter.key}",
            op_type=one.opcode,
        )
    fmt, kind, machine = model.format(one), program.value(one.input, Coded), model.machine
    if isinstance(kind, Quantized) and kind.groups != 1:
        raise UserError("the hardware multiplies adapters with vectors of one scale")
    if isinstance(kind, Blocks) and kind.block != machine.block:
        raise UserError(
            f"the hardware of {machine.name} multiplies blocks of {machine.block}, not of "
            f"{kind.block}"
        )
    unit = kind.fraction if isinstance(kind, Blocks) else 0
    frac, residual = program.fraction(one.output), one.residual
    exponent = 0 if parameter.is_slot else parameter.exponent
    site, first, second = 0, False, False
    if parameter.is_slot:
        found, half = program.slots[parameter.name]
        site = [one.name for one in model.places.sites].index(found.name)
        first, second = half == "a", half == "b"
    shift = one.pre_shift
    flags = {
        "adapter_source_fp8": fmt == "fp8",
        "adapter_weight_fp8": parameter.code == "fp8",
        "adapter_source_blocks": FORMATS[fmt].by_block,
        "adapter_unscaled": FORMATS[fmt].by_block and one.norm is None,
        "adapter_normed": one.norm is not None,
    }
    values = {
        "adapter_source": program.row_of(one.input, instruction),
        "adapter_target": program.row_of(one.output, instruction),
        "adapter_residual": int(residual is not None),
        "adapter_residual_row": (0 if residual is None else program.row_of(residual, instruction)),
        "adapter_word": place.word,
        "adapter_words": place.words,
        "adapter_scale": place.scale,
        "adapter_groups": place.groups,
        "adapter_group_last": place.group_words - 1,
        "adapter_rows": rows,
        "adapter_blocks_last": -(-rows // model.machine.h_units) - 1,
        "adapter_passes_last": FORMATS[fmt].memory_bits // BYTE - 1,
        "adapter_first": int(first),
        "adapter_second": int(second),
        "adapter_site": site,
        "adapter_pre_shift": shift,
        "adapter_places": exponent + unit - shift - frac,
    }
    more = {name: int(flag) for name, flag in flags.items()}
    more["adapter_norm_row"] = 0 if one.norm is None else program.row_of(one.norm, instruction)
    units = {
        "adapter_turn": model.turns.index(place.unit % model.beat),
        "adapter_part": place.unit // model.beat,
    }
    more |= units
    values |= {name: value for name, value in more.items() if name in model.fields}
    return model.fields.checked(values, one.opcode)
