"""What the vector unit's descriptors say: fields, and their values for an instruction.

`backend/hw/units/vector/unit.py` is the unit. Everything an instruction needs to know at run time
but the position is a field of its descriptor; everything here is plain integers, computed at
emission.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from intaglio.backend.hw.units.peaks import peak_fields
from intaglio.backend.hw.units.vector.constants import constant_forms, unfit
from intaglio.backend.hw.units.vector.operations import (
    COPY,
    FORMAT_CODES,
    LARGEST_SHIFT,
    PASS_COUNTS,
    PASSES,
    QUANTIZE_STATIC,
    SOFTMAX,
    SOFTMAX_PLACES,
    TAP,
    TAP_ONTO,
    WEIGH,
    WEIGH_ONTO,
)
from intaglio.backend.hw.units.vector.router import FRACTION
from intaglio.backend.program.types import Instruction, Program
from intaglio.dialects.constant_rom import ADJACENT, HALVES, PAIRS
from intaglio.dialects.descriptor import Field, Fields
from intaglio.dialects.errors import CompilerBug
from intaglio.dialects.fixed_point import Scale
from intaglio.dialects.formats import FORMATS
from intaglio.dialects.formulas.blocks import least_exponent
from intaglio.dialects.formulas.elementwise import CLIP, ELEMENTWISE
from intaglio.dialects.formulas.norms import NORM_WIDTH, UNIT_FRAC, norm_constants
from intaglio.dialects.formulas.products import ROTARY_FRAC
from intaglio.dialects.formulas.routing import SHARE_FRAC
from intaglio.dialects.formulas.softmax import SCORE_FRAC
from intaglio.dialects.isa.values import Blocks, Fixed, Probabilities, Quantized, Routing, Scores
from intaglio.dialects.isa.vector import (
    Copy,
    Delay,
    ElementwiseInstruction,
    LayerNorm,
    OverScores,
    Quantize,
    QuantizeBlocks,
    QuantizeHeads,
    RMSNorm,
    RMSScale,
    Rotary,
    Route,
    Sample,
    Tap,
    VectorInstruction,
    Weigh,
)

GATE_TABLES = tuple(dict.fromkeys(one.table for one in ELEMENTWISE.values() if one.table))
"""Tables of a magnitude, in the order of the field `gate_table`."""

FIELDS = Fields(
    (
        Field("operation", (len(PASSES) - 1).bit_length(), "number in `PASSES`"),
        # Rows are those of the memory that the operation means.
        Field("read0", 20, "first row of what is read"),
        Field("read1", 20, "first row of the second operand; first entry of the scores' largest"),
        Field("write", 20, "first row of what is written"),
        Field("constant0", 20, "first row of the first constants; of a cache's scales"),
        Field("constant1", 20, "first row of the second constants; first entry of the heads"),
        Field("scale", 20, "first entry in the file of scales; row of the chosen expert"),
        Field("entry", 12, "first entry in the files of groups"),
        Field("opens", 1, "1: each group's first row is here"),
        Field("closes", 1, "1: each group's last row is here"),
        Field("groups", 12, "groups; experts that are chosen"),
        Field("rows", 16, "rows of a group; experts to choose from"),
        Field("lanes", 11, "lanes used in a group's last row"),
        Field("first_word", 24, "first word of the first group"),
        Field("group_words", 20, "words from a group to the next one"),
        Field(
            "constant_restart",
            1,
            "1: all groups have the constants of the first one; of equal logits the first leads",
        ),
        Field("offset", 1, "1: add the second constants; all experts have a share in the sum"),
        Field("exchange", 10, "lanes from a turning element to its partner"),
        Field("half_rows", 8, "rows from a turning element to its partner"),
        Field("turning_rows", 8, "rows of a head that turn"),
        Field("position_rows", 8, "constant rows of a position"),
        Field("elements", 15, "elements of a group whose mean is taken off"),
        Field("first_mantissa", 25, "mantissa of the first real number", True),
        Field("first_shift", 10, "places that its product is shifted by", True),
        Field("second_mantissa", 25, "mantissa of the second real number", True),
        Field("second_shift", 10, "places that its product is shifted by", True),
        Field(
            "fraction",
            7,
            "fraction bits of what is read, less those that are wanted; least exponent of blocks",
            True,
        ),
        Field("largest_shift", 8, "largest shift that normalises", True),
        Field("peak", 1, "1: the largest magnitude of what is written is taken"),
        Field("peak_entry", 12, "its entry in the files of groups"),
        Field("peak_quantized", 1, "1: it is that of a quantisation, whose scale it gives"),
        Field("peak_fraction", 7, "fraction bits of what is written", True),
        Field("gate_table", (len(GATE_TABLES) - 1).bit_length(), "number in `GATE_TABLES`"),
        Field("number_format", 3, "number in `FORMAT_CODES`"),
        Field("window", 20, "tokens that attention sees; 0: all"),
        Field("static_scale", 1, "1: the cache has one scale, the first real number"),
        Field("shared", 8, "query heads that share a key-value head"),
        Field("scale_stride", 16, "rows from a head's scales to the next one's"),
        Field("sunk", 1, "1: the heads have sinks"),
        Field("sink", 24, "place of the first head's sink among the elements of constants"),
    )
)
"""The fields of every vector unit's descriptor; there may be more (`fields_of`)."""


class OfBlocks(NamedTuple):
    """The codes with an exponent a block that a program has, and what is told of several kinds."""

    wide: int = 0
    """Bits that say which blocks of a beat have codes of 16 bits: 0 where none has anywhere, 1
    where in each beat either all have or none, else one for each block."""
    formats: tuple[str, ...] = ()
    """Theirs, which need not be the chip's (`--set activations.NAME`)."""

    @property
    def both(self) -> bool:
        """Whether there are half steps and steps of powers of two, which are rounded to even."""
        return len(self.formats) > 1

    @property
    def steps(self) -> int:
        """The finest (`formats.Format.steps`); 0: there are none."""
        return max((FORMATS[fmt].steps for fmt in self.formats), default=0)

    @staticmethod
    def of(program: Program) -> OfBlocks:
        """What a program needs."""
        made = [
            one
            for block in program.blocks
            for one in block.instructions
            if isinstance(one.does, QuantizeBlocks)
        ]
        masks = [_wide_mask(program, one) for one in made]
        wide = max((count for _, count in masks), default=0) if any(m for m, _ in masks) else 0
        if wide:
            every = all(mask in (0, (1 << count) - 1) for mask, count in masks)
            wide = 1 if every else max(2, wide)
        there = {_blocks(program, one).format for one in made}
        return OfBlocks(wide, tuple(fmt for fmt in FORMATS if fmt in there))


PLAIN = OfBlocks()
"""There are none."""


def fields_of(blocks: OfBlocks) -> Fields:
    """The fields of the unit's descriptor."""
    found = list(FIELDS.fields)
    if blocks.wide:
        means = "a bit for each block: 1: its codes have 16 bits; of one bit: those of all blocks"
        found.append(Field("wide", blocks.wide, means))
    if blocks.both:
        found.append(Field("to_even", 1, "1: steps are powers of two, codes are rounded to even"))
    return Fields(found)


@dataclass(frozen=True)
class Places:
    """Where the chip keeps what is no value: first rows.

    Attributes:
        heads: of each buffer of probabilities, its first entry in the file of scales and totals; of
            each of scores, in that of the largest.
        value_scales: of each cache with scales of its tokens in the value scale memory.
        score_rows: rows of a head in score and probability memory.
        blocks: what is told of blocks.
    """

    heads: Mapping[str, int] = field(default_factory=dict[str, int])
    value_scales: Mapping[str, int] = field(default_factory=dict[str, int])
    score_rows: int = 1
    blocks: OfBlocks = PLAIN


def encode(
    program: Program, one: Instruction, instance: Mapping[str, str], places: Places
) -> dict[str, int]:
    """The descriptor of an instruction instance: a number for each of `fields_of`.

    Args:
        program: its buffers at rows of the memories outside.
        one: one of a block's instructions, of the vector queue.
        instance: what the block's slots are bound to.
        places: where the chip keeps scores and scales.

    Raises:
        UserError: a shape that the unit does not take; names the ONNX node.
    """
    known = fields_of(places.blocks)
    values = dict.fromkeys(known, 0)
    values |= {"groups": 1, "elements": 1, "shared": 1, "second_mantissa": 1}
    values |= {"largest_shift": LARGEST_SHIFT}
    encoder = _Encoder(program, one, instance, places)
    values |= encoder.fields()
    peak = peak_fields(program, one, last=bool(values["closes"]))
    if peak["peak"]:
        values |= {name: number for name, number in peak.items() if name in FIELDS}
        values |= {"largest_shift": peak["peak_shift"]}
        if peak["peak_quantized"]:
            values |= {"number_format": peak["peak_format"], "scale": peak["peak_scale"]}
    # A product is shifted by no more than changes it.
    values["second_shift"] = min(max(values["second_shift"], -127), 127)
    return known.checked(values, one.opcode, one.node)


def operations(program: Program) -> frozenset[str]:
    """The members of `OPERATIONS` that a program uses."""
    found = frozenset(_operation(one) for one in _vector_instructions(program))
    return found | {SOFTMAX} if SOFTMAX_PLACES in found else found


def gate_tables(program: Program) -> frozenset[str]:
    """The members of `GATE_TABLES` that a program uses."""
    return frozenset(
        one.formula.table
        for one in _vector_instructions(program)
        if isinstance(one, ElementwiseInstruction) and one.formula.table is not None
    )


def formats(program: Program) -> frozenset[str]:
    """The formats that a program's vector instructions write, of those with a number."""
    values = (program.buffers[n].type for i in _vector_instructions(program) for n in i.writes)
    found = {one.format for one in values if isinstance(one, Quantized | Probabilities)}
    # Of bytes at places the unit has the scales alone.
    more = {"uint8"} if "places8" in found else set[str]()
    return frozenset((found & FORMAT_CODES.keys()) | more)


def head_rows(program: Program) -> int:
    """Rows of the widest head that has an exponent of its own; 0: none has one."""
    lanes = program.machine.vector_lanes
    widths = (
        kind.width
        for one in _vector_instructions(program)
        if isinstance(one, QuantizeHeads)
        and isinstance(kind := program.buffers[one.output].type, Quantized)
    )
    return -(-max(widths, default=0) // lanes)


def _blocks(program: Program, one: Instruction) -> Blocks:
    assert isinstance(one.does, QuantizeBlocks)
    return program.value(one.does.output, Blocks)


def _wide_mask(program: Program, one: Instruction) -> tuple[int, int]:
    """Which blocks of a beat are wide, the first at the lowest bit, and how many there are."""
    kind = _blocks(program, one)
    begin, elements = one.beat.of(kind.size)
    first, count = begin // kind.block, -(-elements // kind.block)
    return sum(1 << b for b in range(count) if first + b in kind.wide_blocks), count


def rotary_fraction(program: Program) -> int:
    """Fraction bits of a program's tables of cosines and sines, which are alike."""
    for block in program.blocks:
        for one in block.instructions:
            if isinstance(one.does, Rotary):
                table = block.instances[0][one.does.cos]
                return program.parameters[table].exponent
    return ROTARY_FRAC


def _vector_instructions(program: Program) -> Iterator[VectorInstruction[str]]:
    for block in program.blocks:
        for one in block.instructions:
            if isinstance(one.does, VectorInstruction):
                yield one.does


def _operation(one: VectorInstruction[str]) -> str:
    match one:
        case Copy():
            return COPY
        case Quantize() if one.scale_of is not None:
            return QUANTIZE_STATIC
        case Tap():
            return TAP if one.addend is None else TAP_ONTO
        case Weigh():
            return WEIGH if one.residual is None else WEIGH_ONTO
        case ElementwiseInstruction():
            return one.formula.family
        case _:
            return one.opcode


@dataclass(frozen=True)
class _Encoder:
    program: Program
    instruction: Instruction
    instance: Mapping[str, str]
    places: Places

    @property
    def lanes(self) -> int:
        return self.program.machine.vector_lanes

    def fields(self) -> dict[str, int]:
        one = self.instruction.does.bound(self.instance)
        if not isinstance(one, VectorInstruction):
            raise CompilerBug(f"the vector unit has no operation {one.opcode}")
        name, beat = _operation(one), self.instruction.beat
        number = beat.number
        if name == SOFTMAX_PLACES:
            name, number = (name, number - 1) if number else (SOFTMAX, 0)
        if number >= PASS_COUNTS[name]:
            raise CompilerBug(f"{name} has {PASS_COUNTS[name]} passes, not {number + 1}")
        values = {"operation": PASSES.index((name, number)), "entry": beat.entry}
        if isinstance(one, OverScores):
            return values | self.softmax(one)
        values["read0"] = values["read1"] = self.row(one.reads[0])
        if isinstance(one, Sample):
            # The number of the first row, which is that of the row in the vector.
            rows = self.grouped(1, self.size(one.input))
            return values | rows | {"write": rows["first_word"] // self.lanes}
        values["write"] = self.row(one.writes[0])
        match one:
            case RMSNorm() | LayerNorm():
                return values | self.norm(one)
            case Quantize():
                return values | self.quantize(one)
            case QuantizeBlocks():
                return values | self.quantize_blocks(one)
            case QuantizeHeads():
                return values | self.quantize_heads(one)
            case RMSScale():
                return values | self.rms_scale(one)
            case Rotary():
                return values | self.rotary(one)
            case Tap():
                return values | self.tap(one)
            case Route():
                return values | self.route(one)
            case Weigh():
                return values | self.weigh(one)
            case Delay():
                state = self.program.states[one.state].row
                values |= {"write": state} if beat.number else {"read0": state}
                return values | self.grouped(1, self.size(one.input))
            case _:
                values |= self.grouped(1, self.size(one.reads[0]))
        return values | self.elementwise(one) if isinstance(one, ElementwiseInstruction) else values

    # Buffers

    def row(self, buffer: str) -> int:
        return self.program.row_of(buffer, self.instruction)

    def size(self, buffer: str) -> int:
        return self.program.value(buffer, Fixed).size

    # Groups

    def grouped(self, groups: int, width: int) -> dict[str, int]:
        """Of the beat: its groups, or the rows of the only one."""
        lanes, beat = self.lanes, self.instruction.beat
        if groups > 1 and width % lanes and lanes % width:
            raise unfit(
                self.instruction,
                f"{groups} groups of {width} elements do not fit {lanes} vector lanes",
                "a group must be a multiple of the lanes, or divide them",
            )
        rows = -(-width // lanes)
        tail = width - (rows - 1) * lanes
        begin, elements = beat.of(groups * width)
        end = begin + elements
        unit = width if groups > 1 else lanes
        if begin % unit or (end % unit and end != groups * width):
            raise CompilerBug(f"{self.instruction.opcode} of elements {begin} to {end}: {unit}")
        first, count = begin // unit, -(-elements // unit)
        if groups > 1:
            return {
                "groups": count,
                "rows": rows,
                "lanes": tail,
                "first_word": first * width,
                "group_words": width,
                "entry": beat.entry + first,
                "opens": 1,
                "closes": 1,
            }
        closes = first + count == rows
        return {
            "rows": count,
            "lanes": tail if closes else lanes,
            "first_word": first * lanes,
            "entry": beat.entry,
            "opens": int(not first),
            "closes": int(closes),
        }

    # Operations

    def elementwise(self, one: ElementwiseInstruction[str]) -> dict[str, int]:
        formula, (target,) = one.formula, one.writes
        fractions = [self.program.fraction(name) for name in one.reads]
        c = formula.constants(fractions, self.program.fraction(target), one.constants)
        values = {
            "first_mantissa": c.first,
            "first_shift": min(max(c.first_shift, -127), 127),
            "second_mantissa": c.second,
            "second_shift": c.second_shift,
        }
        if formula.operands == 2:
            values["read1"] = self.row(one.reads[1])
        if formula.table is not None:
            values |= {"fraction": c.places, "gate_table": GATE_TABLES.index(formula.table)}
        elif formula is CLIP:
            values["fraction"] = c.places
        return values

    def constant_fields(self) -> dict[str, int]:
        used = constant_forms(self.program, self.instruction, self.instance)
        return {f"constant{i}": one.constant_row(form) for i, (one, form) in enumerate(used)}

    def norm(self, one: RMSNorm[str] | LayerNorm[str]) -> dict[str, int]:
        centred = isinstance(one, LayerNorm)
        groups = 1 if isinstance(one, LayerNorm) else one.groups
        width = self.size(one.input) // groups
        if width > NORM_WIDTH:
            raise unfit(self.instruction, f"norms take up to {NORM_WIDTH} elements, not {width}")
        gamma, fraction = self.program.parameters[one.gamma], self.program.fraction(one.input)
        constants = norm_constants(one.eps, width, fraction, centred)
        return {
            **self.grouped(groups, width),
            **self.constant_fields(),
            "constant_restart": int(groups > 1 and gamma.dims[-1] == width),
            "offset": int(isinstance(one, LayerNorm) and one.beta is not None),
            "elements": width if centred else 1,
            "first_mantissa": constants.epsilon.mantissa,
            "first_shift": constants.epsilon.exponent,
            "largest_shift": constants.largest_shift,
            "second_shift": UNIT_FRAC + gamma.exponent - self.program.fraction(one.output),
        }

    def tap(self, one: Tap[str]) -> dict[str, int]:
        weights, fraction = self.program.parameters[one.weights], self.program.fraction(one.input)
        return {
            **self.grouped(1, self.size(one.input)),
            **self.constant_fields(),
            "read1": self.row(one.reads[-1]),
            "offset": int(one.bias is not None),
            "second_shift": fraction + weights.exponent - self.program.fraction(one.output),
        }

    def route(self, one: Route[str]) -> dict[str, int]:
        kind = self.program.value(one.output, Routing)
        (least, most), fraction = FRACTION, self.program.fraction(one.input) - SCORE_FRAC
        if not least <= fraction <= most:
            raise CompilerBug(f"logits of experts with {fraction + SCORE_FRAC} fraction bits")
        return {
            "rows": kind.experts,
            "groups": kind.chosen,
            "constant_restart": int(one.lowest),
            "offset": int(one.over_all),
            "fraction": fraction,
        }

    def weigh(self, one: Weigh[str]) -> dict[str, int]:
        fractions = self.program.fraction(one.input), self.program.fraction(one.output)
        return {
            **self.grouped(1, self.size(one.input)),
            "read1": self.row(one.input if one.residual is None else one.residual),
            "scale": self.row(one.routing) + one.expert,
            "second_shift": SHARE_FRAC + fractions[0] - fractions[1],
        }

    def quantize(self, one: Quantize[str]) -> dict[str, int]:
        kind, fraction = self.program.value(one.output, Quantized), self.program.fraction(one.input)
        fmt = FORMATS[kind.format]
        values = self.groups_of_codes(one.output, kind)
        values |= {"number_format": FORMAT_CODES[fmt.name], "fraction": fraction}
        # E4M3 takes its argument with 8 fraction bits.
        finer = 8 if fmt.name == "fp8" else 0
        if one.scale_of is None:
            return values | {"second_shift": 47 - fmt.limit.bit_length() - finer}
        inverse = self.program.caches[one.scale_of].static_inverse
        assert inverse is not None
        return values | {
            "second_mantissa": inverse.mantissa,
            "second_shift": inverse.exponent + fraction - finer,
        }

    def groups_of_codes(self, output: str, kind: Quantized) -> dict[str, int]:
        """The groups of a beat, and where their codes and scales go."""
        values = self.grouped(kind.groups, kind.width)
        # Codes of a group begin in a row of their own.
        before = values["first_word"] // self.lanes
        if kind.groups > 1:
            before = self.instruction.beat.first // kind.width * values["rows"]
        return values | {
            "write": self.row(output) + before,
            "scale": self.row(output) + (values["entry"] - self.instruction.beat.entry),
        }

    def quantize_heads(self, one: QuantizeHeads[str]) -> dict[str, int]:
        values = self.groups_of_codes(one.output, self.program.value(one.output, Quantized))
        return values | {"fraction": self.program.fraction(one.input)}

    def quantize_blocks(self, one: QuantizeBlocks[str]) -> dict[str, int]:
        kind, machine = self.program.value(one.output, Blocks), self.program.machine
        if not machine.has_blocks or kind.block != machine.block:
            raise unfit(
                self.instruction,
                f"the hardware of {machine.name} has {machine.activations} in blocks of "
                f"{machine.block}, not {kind.format} in blocks of {kind.block}",
                "--set activations=int8",
            )
        values = self.grouped(1, kind.size)
        steps = FORMATS[kind.format].steps
        if self.places.blocks.wide:
            mask, _ = _wide_mask(self.program, self.instruction)
            values["wide"] = int(mask > 0) if self.places.blocks.wide == 1 else mask
        if self.places.blocks.both:
            values["to_even"] = int(steps == 1)
        return values | {
            "write": self.row(one.output) + values["first_word"] // self.lanes,
            "fraction": least_exponent(self.program.fraction(one.input), kind.fraction, steps),
        }

    def rms_scale(self, one: RMSScale[str]) -> dict[str, int]:
        size, fraction = self.size(one.input), self.program.fraction(one.input)
        constants = norm_constants(one.eps, size, fraction)
        return {
            **self.grouped(1, size),
            "scale": self.row(one.output),
            "first_mantissa": constants.epsilon.mantissa,
            "first_shift": constants.epsilon.exponent,
            "fraction": fraction,
        }

    def rotary(self, one: Rotary[str]) -> dict[str, int]:
        size, lanes, turning = self.size(one.input), self.lanes, one.rotary_dim
        width = size // one.heads
        ((table, form), _) = constant_forms(self.program, self.instruction, self.instance)
        if width < lanes:
            # Whole rows are the groups: each holds heads that turn alike.
            values = self.grouped(1, size)
            values |= {"groups": values["rows"], "rows": 1, "group_words": lanes}
        elif one.heads > 1:
            values = self.grouped(one.heads, width)
        else:
            # The rows of a head turn together.
            rows = -(-width // lanes)
            values = {"rows": rows, "lanes": width - (rows - 1) * lanes}
        return {
            **values,
            **self.constant_fields(),
            "constant_restart": 1,
            "exchange": {HALVES: 0, PAIRS: turning // 2, ADJACENT: 1}[form.kind],
            "half_rows": turning // 2 // lanes if form.kind == HALVES else 0,
            "turning_rows": -(-turning // lanes),
            "position_rows": form.position_rows(table.dims[-1], lanes),
            "second_shift": table.exponent,
        }

    def softmax(self, one: OverScores[str]) -> dict[str, int]:
        heads = self.program.value(one.scores, Scores).heads
        fmt = FORMATS[self.program.value(one.output, Probabilities).format]
        cache = self.program.caches[one.values]
        first, count = self.instruction.beat.of(heads)
        shared = heads // cache.heads
        if first % shared or count % shared:
            raise CompilerBug(
                f"a beat of softmax has heads {first} to {first + count}, {shared} share scales"
            )
        # The first pass has a group for each head of the cache.
        together = 1 if self.instruction.beat.number else shared
        stride = self.places.score_rows * self.lanes
        values = {
            "read0": self.row(one.scores),
            "read1": self.places.heads[one.scores] + first,
            "write": self.row(one.output),
            "constant1": self.places.heads[one.output] + first,
            "entry": self.instruction.beat.entry + first,
            "opens": 1,
            "closes": 1,
            "groups": count // together,
            "first_word": first * stride,
            "group_words": stride,
            "number_format": FORMAT_CODES.get(fmt.name, FORMAT_CODES["uint8"]),
            "second_shift": 47 - fmt.limit.bit_length(),
            "window": one.window,
            "shared": shared,
        }
        if one.sink is not None:
            row = self.constant_fields()["constant0"]
            values |= {"sunk": 1, "sink": row * self.lanes + first}
        if cache.static_scale is not None:
            scale = Scale.of(cache.static_scale)
            return values | {
                "static_scale": 1,
                "first_mantissa": int(scale.mantissa),
                "first_shift": int(scale.exponent),
            }
        rows = -(-cache.capacity // self.lanes)
        return values | {
            "constant0": self.places.value_scales[one.values] + first // shared * rows,
            "scale_stride": rows,
        }
