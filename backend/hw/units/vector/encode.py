"""What the vector unit's descriptors say: fields, their values for an instruction, constant rows.

`backend/hw/units/vector/unit.py` is the unit. Everything an instruction needs to know at run time
but the position is a field of its descriptor; everything here is plain integers, computed at
emission.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from intaglio.backend.hw.units.refusals import attempted
from intaglio.dialects.codes import FORMATS
from intaglio.dialects.descriptor import Field, Fields
from intaglio.dialects.errors import UserError
from intaglio.dialects.fixed_point import Real, Scale
from intaglio.dialects.formulas.elementwise import ELEMENTWISE, Elementwise
from intaglio.dialects.formulas.norms import NORM_WIDTH, UNIT_FRAC, norm_constants
from intaglio.dialects.formulas.products import ROTARY_FRAC

LANE_SETTINGS: Mapping[str, frozenset[str]] = {
    "scale": frozenset({"counted"}),
    "add": frozenset({"added", "counted"}),
    "mul": frozenset({"paired", "counted"}),
    "gate": frozenset({"gated", "counted"}),
    "sigmoid": frozenset({"bare"}),
    "tanh": frozenset({"bare", "odd"}),
    "relu": frozenset({"rectified", "counted"}),
    "relu2": frozenset({"rectified", "doubled", "counted"}),
    "softcap": frozenset({"capped", "bare", "odd", "counted"}),
    "softplus": frozenset({"bare", "even", "joined", "counted"}),
    "mish": frozenset({"gated", "even", "whole", "counted"}),
}
"""What of `LaneControl` is 1 for an elementwise operation, by the formula's family."""

if TYPE_CHECKING:
    from intaglio.backend.program.program import Program

OPERATIONS = (
    *LANE_SETTINGS,
    "rotary",
    "rms_norm",
    "layer_norm",
    "quantize",
    "quantize_static",
    "softmax",
    "sample",
)
"""What the unit distinguishes. `copy` is a `scale` by 1."""

GATE_TABLES = tuple(dict.fromkeys(one.table for one in ELEMENTWISE.values() if one.table))
"""Tables of a magnitude, in the order of the field `gate_table`."""

FORMAT_CODES = {name: code for code, name in enumerate(FORMATS)}
"""Values of the field `number_format`."""


FIELDS = Fields(
    (
        Field("operation", (len(OPERATIONS) - 1).bit_length(), "number in `OPERATIONS`"),
        # Rows are those of the memory that the operation means.
        Field("read0", 20, "first row of what is read"),
        Field("read1", 20, "first row of the second operand"),
        Field("write", 20, "first row of what is written"),
        Field("constant0", 20, "first row of the first constants; of a cache's scales"),
        Field("constant1", 20, "first row of the second constants; first entry of the heads"),
        Field("groups", 12, "groups"),
        Field("beats", 16, "beats of a group"),
        Field("lanes", 11, "lanes used in a group's last beat"),
        Field("group_words", 20, "words from a group to the next one"),
        Field("constant_restart", 1, "1: all groups have the constants of the first one"),
        Field("offset", 1, "1: add the second constants"),
        Field("exchange", 10, "lanes from a turning element to its partner"),
        Field("half_rows", 8, "rows from a turning element to its partner"),
        Field("turning_rows", 8, "rows of a head that turn"),
        Field("position_rows", 8, "constant rows of a position"),
        Field("elements", 15, "elements of a group whose mean is taken off"),
        Field("first_mantissa", 25, "mantissa of the first real number", True),
        Field("first_shift", 10, "places that its product is shifted by", True),
        Field("second_mantissa", 25, "mantissa of the second real number", True),
        Field("second_shift", 10, "places that its product is shifted by", True),
        Field("fraction", 7, "fraction bits of what is read, less those that are wanted", True),
        Field("largest_shift", 8, "largest shift that normalises", True),
        Field("gate_table", (len(GATE_TABLES) - 1).bit_length(), "number in `GATE_TABLES`"),
        Field("number_format", 3, "number in `FORMAT_CODES`"),
        Field("window", 20, "tokens that attention sees; 0: all"),
        Field("static_scale", 1, "1: the cache has one scale, the first real number"),
        Field("shared", 8, "query heads that share a key-value head"),
        Field("scale_stride", 16, "rows from a head's scales to the next one's"),
    )
)
"""The fields of the vector unit's descriptor."""

Content = Mapping[str, Any]
"""program.json, or a part of it."""


@dataclass(frozen=True)
class ConstantRows:
    """How a parameter lies in the constant ROM for the vector unit.

    Attributes:
        parameter: its name.
        kind: `plain` (rows one after the other), `repeated` (a short vector again and again within
            a row), `halves` (rotary table: rows of a position), `pairs` or `adjacent` (rotary table
            expanded to the lanes of a head: partners half a rotation apart, or side by side).
        lanes: of a row.
        width: elements of a vector, or of a head.
        turning: elements of a head that turn (rotary).
        sine: whether the table is of sines: lanes that subtract get them negated.
        fraction: fraction bits of a rotary table.
    """

    parameter: str
    kind: str
    lanes: int
    width: int = 0
    turning: int = 0
    sine: bool = False
    fraction: int = ROTARY_FRAC

    @property
    def position_rows(self) -> int:
        """Rows of one position of a rotary table."""
        if self.kind == "halves":
            return self.turning // 2 // self.lanes
        return -(-self.turning // self.lanes)

    def rows(self, values: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.int64]:
        """The rows [rows, lanes] of a parameter's integers ([n], or [positions, turning / 2])."""
        values = np.asarray(values, np.int64)
        if self.kind in ("plain", "halves"):
            flat = values.reshape(-1)
            return np.pad(flat, (0, -flat.size % self.lanes)).reshape(-1, self.lanes)
        if self.kind == "repeated":
            return np.tile(values.reshape(-1), self.lanes // self.width)[None]
        count, half = values.shape[0], self.turning // 2
        # What does not turn is multiplied by one.
        still = 0 if self.sine else 1 << self.fraction
        first = -values if self.sine else values
        period = min(self.width, self.lanes)
        head = np.full((count, max(period, self.position_rows * self.lanes)), still, np.int64)
        if self.kind == "adjacent":
            head[:, 0 : 2 * half : 2], head[:, 1 : 2 * half : 2] = first, values
        else:
            head[:, :half], head[:, half : 2 * half] = first, values
        if period < self.lanes:
            head = np.tile(head[:, :period], (1, self.lanes // period))
        return head.reshape(-1, self.lanes)


@dataclass(frozen=True)
class Places:
    """Where the chip keeps what is no value: first rows.

    Attributes:
        constants: of each of `constant_rows`.
        heads: of each probabilities buffer, its first entry in the file of scales and totals.
        value_scales: of each cache with scales of its tokens in the value scale memory.
        score_rows: rows of a head in score and probability memory.
    """

    constants: Mapping[ConstantRows, int] = field(default_factory=dict)
    heads: Mapping[str, int] = field(default_factory=dict)
    value_scales: Mapping[str, int] = field(default_factory=dict)
    score_rows: int = 1


def constant_rows(
    program: Content, instruction: Content, instance: Mapping[str, str]
) -> dict[str, ConstantRows]:
    """The constants that an instruction reads, by role: `gamma`, `beta`, `cos`, `sin`.

    Raises:
        UserError: a shape that the unit does not take.
    """
    lanes = program["machine"]["vector_lanes"]
    names = {role: instance[slot] for role, slot in instruction["uses"].items()}
    arguments = instruction["arguments"]
    match instruction["opcode"]:
        case "rms_norm" | "layer_norm":
            groups = arguments.get("groups", 1)
            width = _size(program, instruction["reads"][0]) // groups
            own = program["parameters"][names["gamma"]]["dims"][-1] != width
            kind = "repeated" if width < lanes and groups > 1 and not own else "plain"
            return {
                role: ConstantRows(names[role], kind, lanes, width)
                for role in ("gamma", "beta")
                if role in names
            }
        case "rotary":
            width = _size(program, instruction["reads"][0]) // arguments["heads"]
            turning = arguments["rotary_dim"]
            kind = _rotary_kind(lanes, width, turning, bool(arguments.get("interleaved")))
            if kind is None:
                raise _unfit(
                    instruction,
                    f"heads of {width} elements, of which {turning} turn, do not fit "
                    f"{lanes} vector lanes",
                    "half of the turning elements must be a multiple of the lanes, or a power of "
                    "two below them",
                )
            return {
                r: ConstantRows(
                    names[r],
                    kind,
                    lanes,
                    width,
                    turning,
                    kind != "halves" and r == "sin",
                    program["parameters"][names[r]]["exponent"],
                )
                for r in _ANGLES
            }
        case _:
            return {}


_ANGLES = ("cos", "sin")


def _rotary_kind(lanes: int, width: int, turning: int, interleaved: bool) -> str | None:
    if width % lanes and lanes % width:
        return None
    if interleaved:
        return "adjacent"
    half = turning // 2
    if half % lanes == 0:
        return "halves"
    return "pairs" if half & (half - 1) == 0 and turning <= lanes else None


def misfits(program: Content) -> list[str]:
    """Shapes of a program that the vector unit does not take: a line each, with the first node.

    Args:
        program: the content of program.json.
    """
    found: dict[str, list[UserError]] = {}
    for error in shape_refusals(program):
        found.setdefault(error.what, []).append(error)
    return [
        f"node '{errors[0].node}' and {len(errors) - 1} more: {what}"
        if len(errors) > 1
        else f"node '{errors[0].node}': {what}"
        for what, errors in found.items()
    ]


def shape_refusals(program: Content) -> list[UserError]:
    """Instructions whose shapes the vector unit does not take."""
    return attempted(
        *[
            partial(constant_rows, program, one, block["instances"][0])
            for block in program["blocks"]
            for one in block["instructions"]
            if one["queue"] == "vector"
        ]
    )


def encode(
    program: Content, instruction: Content, instance: Mapping[str, str], places: Places
) -> dict[str, int]:
    """The descriptor of an instruction instance: a number for each of `FIELDS`.

    Args:
        program: the content of program.json.
        instruction: one of a block's instructions, of the vector queue.
        instance: what the block's slots are bound to.
        places: where the chip keeps constants, scores and scales.

    Raises:
        UserError: a shape that the unit does not take; names the ONNX node.
    """
    values = dict.fromkeys(FIELDS, 0)
    values |= {"groups": 1, "elements": 1, "shared": 1, "second_mantissa": 1}
    values |= {"largest_shift": 24}
    values |= _Encoder(program, instruction, instance, places).fields()
    # A product is shifted by no more than changes it.
    values["second_shift"] = min(max(values["second_shift"], -127), 127)
    return FIELDS.checked(values, instruction["opcode"], _node(instruction))


def operations(program: Content) -> frozenset[str]:
    """The members of `OPERATIONS` that a program uses."""
    return frozenset(_operation(one) for one in _vector_instructions(program))


def gate_tables(program: Content) -> frozenset[str]:
    """The members of `GATE_TABLES` that a program uses."""
    formulas = (_formula(one) for one in _vector_instructions(program))
    return frozenset(one.table for one in formulas if one is not None and one.table is not None)


def formats(program: Content) -> frozenset[str]:
    """The formats that a program's vector instructions write."""
    buffers = program["buffers"]
    return frozenset(
        buffers[one["writes"][0]]["type"]["format"]
        for one in _vector_instructions(program)
        if one["opcode"] in ("quantize", "softmax")
    )


def rotary_fraction(program: Content) -> int:
    """Fraction bits of a program's tables of cosines and sines, which are alike."""
    for block in program["blocks"]:
        for one in block["instructions"]:
            if one["opcode"] == "rotary":
                table = block["instances"][0][one["uses"]["cos"]]
                return program["parameters"][table]["exponent"]
    return ROTARY_FRAC


def _vector_instructions(program: Content) -> Iterable[Content]:
    for block in program["blocks"]:
        for one in block["instructions"]:
            if one["queue"] == "vector":
                yield one


def _operation(instruction: Content) -> str:
    match instruction["opcode"]:
        case "copy":
            return "scale"
        case "quantize" if "scale_of" in instruction["uses"]:
            return "quantize_static"
        case opcode:
            formula = _formula(instruction)
            return opcode if formula is None else formula.family


def _formula(instruction: Content) -> Elementwise | None:
    """That of an elementwise operator; `copy` has none."""
    return ELEMENTWISE.get(instruction["arguments"].get("kind", instruction["opcode"]))


def _size(program: Content, buffer: str) -> int:
    return program["buffers"][buffer]["type"]["size"]


def _unfit(instruction: Content, what: str, hint: str | None = None) -> UserError:
    return UserError(what, node=_node(instruction), op_type=instruction["opcode"], hint=hint)


def _node(instruction: Content) -> str | None:
    """The first ONNX node that an instruction stands for."""
    return next((name for names in instruction["onnx"] for name in names), None)


def content_of(program: Program) -> dict[str, Any]:
    """What is read here of a program, in the form of program.json."""
    return {
        "machine": program.machine.to_dict(),
        "parameters": {
            name: {"dims": list(one.dims), "bits": one.bits, "exponent": one.exponent}
            for name, one in program.parameters.items()
        },
        "caches": {
            name: {
                "capacity": one.capacity,
                "heads": one.heads,
                "width": one.width,
                "format": one.format,
                **{
                    key: [real.mantissa, real.exponent]
                    for key in ("static_scale", "static_inverse")
                    if (real := getattr(one, key)) is not None
                },
            }
            for name, one in program.caches.items()
        },
        "buffers": {
            name: {"row": one.row, "element": one.element, "type": dict(one.type)}
            for name, one in program.buffers.items()
        },
        "blocks": [
            {
                "name": block.name,
                "sampled": block.sampled,
                "instances": [dict(one) for one in block.instances],
                "instructions": [
                    {
                        "opcode": one.opcode,
                        "queue": one.queue,
                        "reads": list(one.reads),
                        "writes": list(one.writes),
                        "uses": dict(one.uses),
                        "arguments": dict(one.arguments),
                        "onnx": one.onnx,
                    }
                    for one in block.instructions
                ],
            }
            for block in program.blocks
        ],
    }


@dataclass(frozen=True)
class _Encoder:
    program: Content
    instruction: Content
    instance: Mapping[str, str]
    places: Places

    @property
    def lanes(self) -> int:
        return self.program["machine"]["vector_lanes"]

    @property
    def arguments(self) -> Content:
        return self.instruction["arguments"]

    def fields(self) -> dict[str, int]:
        operation = _operation(self.instruction)
        values = {"operation": OPERATIONS.index(operation)}
        if operation == "softmax":
            return values | self.softmax()
        values["read0"] = values["read1"] = self.row(self.instruction["reads"][0])
        if operation != "sample":
            values["write"] = self.row(self.instruction["writes"][0])
        match operation:
            case "rms_norm" | "layer_norm":
                return values | self.norm(operation == "layer_norm")
            case "quantize" | "quantize_static":
                return values | self.quantize(operation == "quantize_static")
            case "rotary":
                return values | self.rotary()
            case _:
                return values | self.whole() | self.elementwise()

    # Buffers

    def type_of(self, buffer: str) -> Content:
        return self.program["buffers"][buffer]["type"]

    def row(self, buffer: str) -> int:
        place = self.program["buffers"][buffer]
        if place["element"]:
            raise _unfit(
                self.instruction,
                f"a value begins inside a row of the vector memory (element {place['element']} "
                f"of {self.lanes})",
                f"parts of a vector must begin at a multiple of {self.lanes} elements",
            )
        return place["row"]

    @property
    def fraction(self) -> int:
        return self.type_of(self.instruction["reads"][0])["fraction"]

    @property
    def result_fraction(self) -> int:
        return self.type_of(self.instruction["writes"][0])["fraction"]

    def constant(self, argument: str) -> tuple[int, int]:
        mantissa, exponent = self.arguments[argument]
        return mantissa, exponent

    # Groups

    def whole(self) -> dict[str, int]:
        return self.grouped(1, _size(self.program, self.instruction["reads"][0]))

    def grouped(self, groups: int, width: int) -> dict[str, int]:
        lanes = self.lanes
        if groups > 1 and width % lanes and lanes % width:
            raise _unfit(
                self.instruction,
                f"{groups} groups of {width} elements do not fit {lanes} vector lanes",
                "a group must be a multiple of the lanes, or divide them",
            )
        beats = -(-width // lanes)
        return {
            "groups": groups,
            "beats": beats,
            "lanes": width - (beats - 1) * lanes,
            "group_words": width if groups > 1 else 0,
        }

    # Operations

    def elementwise(self) -> dict[str, int]:
        one = self.instruction
        formula = _formula(one)
        if formula is None:
            return {}
        fractions = [self.type_of(name)["fraction"] for name in one["reads"]]
        reals = {name: Real(*v) for name, v in self.arguments.items() if name != "kind"}
        c = formula.constants(fractions, self.result_fraction, reals)
        values = {
            "first_mantissa": c.first,
            "first_shift": min(max(c.first_shift, -127), 127),
            "second_mantissa": c.second,
            "second_shift": c.second_shift,
        }
        if formula.operands == 2:
            values["read1"] = self.row(one["reads"][1])
        if formula.table is not None:
            values |= {"fraction": c.places, "gate_table": GATE_TABLES.index(formula.table)}
        return values

    def constant_fields(self, roles: tuple[str, str]) -> dict[str, int]:
        used = constant_rows(self.program, self.instruction, self.instance)
        return {
            f"constant{i}": self.places.constants[used[role]]
            for i, role in enumerate(roles)
            if role in used
        }

    def norm(self, centred: bool) -> dict[str, int]:
        groups = self.arguments.get("groups", 1)
        width = _size(self.program, self.instruction["reads"][0]) // groups
        if width > NORM_WIDTH:
            raise _unfit(self.instruction, f"norms take up to {NORM_WIDTH} elements, not {width}")
        gamma = self.program["parameters"][self.instance[self.instruction["uses"]["gamma"]]]
        eps = Real(*self.constant("eps"))
        constants = norm_constants(eps, width, self.fraction, centred)
        return {
            **self.grouped(groups, width),
            **self.constant_fields(("gamma", "beta")),
            "constant_restart": int(gamma["dims"][-1] == width),
            "offset": int("beta" in self.instruction["uses"]),
            "elements": width if centred else 1,
            "first_mantissa": constants.epsilon.mantissa,
            "first_shift": constants.epsilon.exponent,
            "largest_shift": constants.largest_shift,
            "second_shift": UNIT_FRAC + gamma["exponent"] - self.result_fraction,
        }

    def quantize(self, static: bool) -> dict[str, int]:
        kind = self.type_of(self.instruction["writes"][0])
        fmt = FORMATS[kind["format"]]
        values = self.grouped(kind["groups"], kind["width"])
        values |= {"number_format": FORMAT_CODES[fmt.name], "fraction": self.fraction}
        # E4M3 takes its argument with 8 fraction bits.
        finer = 8 if fmt.name == "fp8" else 0
        if not static:
            return values | {"second_shift": 47 - fmt.limit.bit_length() - finer}
        cache = self.program["caches"][self.instance[self.instruction["uses"]["scale_of"]]]
        mantissa, exponent = cache["static_inverse"]
        return values | {
            "second_mantissa": mantissa,
            "second_shift": exponent + self.fraction - finer,
        }

    def rotary(self) -> dict[str, int]:
        size, lanes = _size(self.program, self.instruction["reads"][0]), self.lanes
        heads, turning = self.arguments["heads"], self.arguments["rotary_dim"]
        width = size // heads
        used = constant_rows(self.program, self.instruction, self.instance)["cos"]
        if width < lanes:
            # Whole rows are the groups: each holds heads that turn alike.
            rows = -(-size // lanes)
            values = {"groups": rows, "beats": 1, "group_words": lanes}
            values["lanes"] = size - (rows - 1) * lanes
        else:
            values = self.grouped(heads, width)
        return {
            **values,
            **self.constant_fields(("cos", "sin")),
            "constant_restart": 1,
            "exchange": {"halves": 0, "pairs": turning // 2, "adjacent": 1}[used.kind],
            "half_rows": turning // 2 // lanes if used.kind == "halves" else 0,
            "turning_rows": -(-turning // lanes),
            "position_rows": used.position_rows,
            "second_shift": used.fraction,
        }

    def softmax(self) -> dict[str, int]:
        scores, probabilities = self.instruction["reads"][0], self.instruction["writes"][0]
        heads = self.type_of(scores)["heads"]
        fmt = FORMATS[self.type_of(probabilities)["format"]]
        name = self.instance[self.instruction["uses"]["values"]]
        cache = self.program["caches"][name]
        values = {
            "read0": self.row(scores),
            "write": self.row(probabilities),
            "constant1": self.places.heads[probabilities],
            "groups": heads,
            "group_words": self.places.score_rows * self.lanes,
            "number_format": FORMAT_CODES[fmt.name],
            "second_shift": 47 - fmt.limit.bit_length(),
            "window": self.arguments["window"],
            "shared": heads // cache["heads"],
        }
        if "static_scale" in cache:
            scale = Scale.of(Real(*cache["static_scale"]))
            return values | {
                "static_scale": 1,
                "first_mantissa": int(scale.mantissa),
                "first_shift": int(scale.exponent),
            }
        return values | {
            "constant0": self.places.value_scales[name],
            "scale_stride": -(-cache["capacity"] // self.lanes),
        }
