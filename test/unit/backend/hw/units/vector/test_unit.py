"""The vector unit, run by arc, against `dialects.semantics` and `lowering.schedule.durations`."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from intaglio.backend import circt
from intaglio.backend.hw.units.vector import encode as vector_encode
from intaglio.backend.hw.units.vector.constants import constant_forms
from intaglio.backend.hw.units.vector.encode import (
    FIELDS,
    GATE_TABLES,
    PLAIN,
    OfBlocks,
    Places,
    encode,
    fields_of,
)
from intaglio.backend.hw.units.vector.operations import OPERATIONS, PASSES
from intaglio.backend.hw.units.vector.shape import VectorShape, machine_refusals
from intaglio.backend.hw.units.vector.unit import build_vector
from intaglio.backend.hw.wires.signal import Design, ModuleBuilder, Write, cat
from intaglio.backend.program.types import Buffer, Cache, Instruction, Parameter, Program
from intaglio.backend.target.target import load_target
from intaglio.dialects import formats as number_formats
from intaglio.dialects import semantics, timeline
from intaglio.dialects.errors import UserError
from intaglio.dialects.fixed_point import Real, Saturations, Scale
from intaglio.dialects.formula import Formula, constant
from intaglio.dialects.formulas.blocks import integer_fraction
from intaglio.dialects.formulas.elementwise import ACTIVATIONS, ELEMENTWISE
from intaglio.dialects.isa import beat as isa_beat
from intaglio.dialects.isa import touched
from intaglio.dialects.isa import values as kinds
from intaglio.dialects.isa.instruction import Instruction as Does
from intaglio.dialects.isa.queues import VECTOR
from intaglio.dialects.isa.registry import instruction_of
from intaglio.dialects.isa.vector import Quantize, QuantizeHeads, Rotary, Route, Softmax
from intaglio.dialects.machine import Machine
from intaglio.dialects.memories import CODES, STEP_BITS, VECTORS, memory_of
from intaglio.dialects.number_ranges import ranges_text
from intaglio.lowering.schedule import durations
from intaglio.runtime.engines.arc import ArcModel

Ints = npt.NDArray[np.int64]

ROWS = 256
"""Rows of each memory."""
HEAD_ROWS = 4
"""Of the widest head with an exponent of its own."""
POSITIONS = 64
ENTRIES = 128
"""Of the files of groups."""
EXPERTS, CHOSEN = 40, 6
"""At most."""
EXTREME = (1 << 31) - 1
FORMATS = ("int8", "int16", "uint8", "uint16", "fp8")


@dataclass(frozen=True)
class Geometry:
    """Lanes and the latencies that the unit has."""

    lanes: int
    pipeline: int = 4
    reduce: int = 3
    lookup: int = 4
    sample: int = 2
    rotary: int = 14
    """Fraction bits of cosines and sines."""

    @property
    def machine(self) -> Machine:
        return dataclasses.replace(
            load_target("roma-mini").machine(),
            vector_lanes=self.lanes,
            activations="half8",
            block=min(self.lanes, 16),
            vector_pipeline=self.pipeline,
            vector_reduce=self.reduce,
            table_lookup=self.lookup,
            sample=self.sample,
        )


GEOMETRIES = (
    Geometry(16),
    Geometry(8, 3, 1, 1, 1),
    Geometry(8, 9, 6, 7, 5, rotary=12),
    Geometry(32, rotary=9),
)
geometries = pytest.mark.parametrize(
    "geometry", GEOMETRIES, ids=lambda g: f"{g.lanes}x{g.pipeline}"
)


EVERYTHING = (OPERATIONS, GATE_TABLES, FORMATS)
LLAMA = (
    ("rms_norm", "quantize", "rotary", "gate", "mul", "softmax", "sample"),
    ("sigmoid",),
    ("int8", "uint8"),
)
Parts = tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]


def shape_of(parts: Parts, rotary: int = 14) -> VectorShape:
    operations, tables, formats = parts
    return VectorShape(
        frozenset(operations),
        frozenset(tables),
        formats,
        entries=ENTRIES,
        positions=POSITIONS,
        rows=ROWS,
        constant_rows=ROWS,
        score_rows=ROWS,
        score_heads=ROWS,
        probability_rows=ROWS,
        scale_rows=ROWS,
        scales=ROWS,
        rotary_fraction=rotary,
        experts=EXPERTS if "route" in operations else 0,
        chosen=CHOSEN if "route" in operations else 0,
        routing_rows=ROWS,
        head_rows=HEAD_ROWS if "quantize_heads" in operations else 0,
    )


def bench(
    machine: Machine, parts: Parts = EVERYTHING, rotary: int = 14, blocks: OfBlocks = PLAIN
) -> Design:
    """The unit with its memories around it."""
    design = Design()
    shape = dataclasses.replace(shape_of(parts, rotary), blocks=blocks)
    unit = build_vector(design, machine, shape)
    m = design.module("bench")
    ports = {port.name: port for port in unit.ports}
    given = {
        name: m.input(name, port.width, port.signed)
        for name, port in ports.items()
        if not port.output
        and not port.name.endswith("_data")
        and name not in ("clk", "rst", "routing_share")
    }
    data = {
        name: m.wire(name, port.width)
        for name, port in ports.items()
        if not port.output and (port.name.endswith("_data") or name == "routing_share")
    }
    out = m.instance("unit", unit, {**given, **data})
    words = 32 * machine.vector_lanes
    write = Write(
        out["vector_write_address"],
        out["vector_write_data"],
        out["vector_write_enable"],
        out["vector_write_mask"],
    )
    reads = [out["vector0_address"], out["vector1_address"]]
    lanes = machine.vector_lanes
    for i, read in enumerate(m.ram("vector_memory", ROWS, words, reads, [write], lanes)):
        data[f"vector{i}_data"].assign(read)
    for name in ("constant0", "constant1", "value_scale"):
        data[f"{name}_data"].assign(m.rom(f"{name}_memory", ROWS, words, out[f"{name}_address"]))
    write = Write(out["score_write_address"], out["score_write_data"], out["score_write_enable"])
    (read,) = m.ram("score_memory", ROWS, words, [out["score_address"]], [write])
    data["score_data"].assign(read)
    data["largest_data"].assign(m.rom("largest_memory", ROWS, 32, out["largest_address"]))
    for name, *ports_ in (("code", "code", "head_code"), ("probability", "probability")):
        writes = [
            Write(*(out[f"{port}_write_{part}"] for part in ("address", "data", "enable")))
            for port in ports_
            if f"{port}_write_enable" in out
        ]
        _memory(m, f"{name}_memory", 16 * machine.vector_lanes, *writes)
    if "routing_share" in data:
        routing = cat(out["routing_write_share"], out["routing_write_number"])
        write = Write(out["routing_write_address"], routing, out["routing_write_enable"])
        (read,) = m.ram("routings", ROWS, 37, [out["routing_address"]], [write])
        data["routing_share"].assign(read[12:])
    scale = cat(out["scale_exponent"], out["scale_mantissa"])
    writes = [Write(out["scale_address"], scale, out["scale_enable"])]
    if "head_scale_enable" in out:
        own = cat(out["head_scale_exponent"], out["head_scale_mantissa"])
        writes.append(Write(out["head_scale_address"], own, out["head_scale_enable"]))
    _memory(m, "scales", 34, *writes)
    if "norm_scale_enable" in out:
        enable = out["norm_scale_enable"]
        _memory(m, "norm_scales", 34, Write(out["scale_address"], scale, enable))
    if "step_write_enable" in out:
        blocks = machine.vector_lanes // machine.block
        write = Write(*(out[f"step_write_{part}"] for part in ("address", "data", "enable")))
        _memory(m, "step_memory", STEP_BITS * blocks, write)
    head = cat(out["scale_total"], scale.extend(64))
    enable = out["probability_scale_enable"]
    _memory(m, "heads", 104, Write(out["scale_address"], head, enable))
    for name in ("ready", "done", "reduced", "saturated", "token", "token_valid"):
        m.output(name, out[name])
    return design


def _memory(m: ModuleBuilder, name: str, width: int, *writes: Write) -> None:
    (read,) = m.ram(name, ROWS, width, [writes[0].address], writes)
    # A memory that nothing reads would not be built.
    m.output(f"{name}_unused", read)


Fed = tuple[int, dict[str, int]]
"""A descriptor, and the cycle in which it is given."""


@dataclass
class Unit:
    """A running vector unit, and buffers for it."""

    machine: Machine
    model: ArcModel
    rotary: int = 14
    blocks: OfBlocks = PLAIN
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(5))
    sampled: list[int] = field(default_factory=list)
    """Cycles in which a token was told, since the last instructions began."""
    ends: list[int] = field(default_factory=list)
    """Finishes of the beats."""
    position: int = 0
    entry: int = 0
    """Of the next instruction in the files of groups."""
    constants: int = 3
    """First row of the next instruction's."""

    @property
    def lanes(self) -> int:
        return self.machine.vector_lanes

    def memory(self, name: str, kind: str) -> npt.NDArray[Any]:
        """A memory as rows of lanes."""
        return self.model.memory(name).view(kind).reshape(ROWS, -1)

    def run(self, *args: Any, **kwargs: Any) -> int:
        """Runs an instruction (`made`) alone; returns how many places saturated."""
        self.position = kwargs.get("position", 0)
        now, beats = 0, list[Fed]()
        for number, own in enumerate(self.made(*args, **kwargs)):
            if number:
                now += self.reducing
            for fields in own:
                beats.append((now, fields))
                now += self.rows_of(fields)
        return self.feed(beats)

    def made(
        self,
        opcode: str,
        reads: Mapping[str, tuple[int, Any, int]],
        write: tuple[int, kinds.Value],
        duration: Formula | None = None,
        *,
        arguments: Mapping[str, Any] | None = None,
        constants: Mapping[str, tuple[Ints, int]] | None = None,
        position: int = 0,
        caches: Mapping[str, Cache] | None = None,
        uses: Mapping[str, str] | None = None,
        places: Places | None = None,
    ) -> list[list[dict[str, int]]]:
        """The descriptors of an instruction, pass after pass, each cut at random.

        Args:
            opcode: of the instruction.
            reads: buffers: first row, values, fraction bits; of a routing the number of experts.
            write: first row and type of the result.
            duration: what it must take.
            arguments: of the instruction.
            constants: parameters by role: values and exponent.
            position: of the token.
            caches: by name.
            uses: caches by role.
            places: of scores and scales.
        """
        constants = constants or {}
        buffers: dict[str, Buffer] = {}
        for name, (row, values, fraction) in reads.items():
            if isinstance(values, semantics.Routing):
                routing = kinds.Routing(len(values.experts), fraction)
                words = values.shares << 12 | values.experts
                self.model.memory("routings")[row : row + len(words)] = words
                buffers[name] = Buffer(name, routing, memory_of(routing), row)
                continue
            kind: kinds.Value = kinds.Fixed(len(values), fraction)
            if opcode == "softmax":
                kind = kinds.Scores(len(values), fraction)
            else:
                flat = self.memory("vector_memory", "<i4").reshape(-1)
                flat[row * self.lanes : row * self.lanes + len(values)] = values
            buffers[name] = Buffer(name, kind, memory_of(kind), row)
        buffers["out"] = Buffer("out", write[1], memory_of(write[1]), write[0])
        roles = {**{role: role for role in constants}, **(uses or {})}
        does = instruction_of(opcode, VECTOR, list(reads), ["out"], roles, arguments or {})
        instruction = Instruction(
            does, [["the_node"]], timeline.Issue(VECTOR, {}, duration or constant(1)), [], []
        )
        program = program_of(
            self.machine,
            buffers,
            {
                role: Parameter(role, role, "rom.tensor", values.shape, "fixed16", 16, 0, exponent)
                for role, (values, exponent) in constants.items()
            },
            caches or {},
        )
        first, parameters = self.constants, dict(program.parameters)
        for number, (one, form) in enumerate(constant_forms(program, instruction, {})):
            values, exponent = constants[one.name]
            content = form.rows(values, self.lanes, len(values), exponent)
            own = *parameters[one.name].constants, (form, first)
            parameters[one.name] = dataclasses.replace(one, constants=own)
            port = "constant1" if number else "constant0"
            self.memory(f"{port}_memory", "<i4")[first : first + len(content)] = content
            first += len(content)
        self.constants = first if self.entry else 3
        program = dataclasses.replace(program, parameters=parameters)
        places = dataclasses.replace(places or Places(), blocks=self.blocks)
        entry = self.entry
        return [
            [
                encode(program, dataclasses.replace(instruction, beat=beat), {}, places)
                for beat in own
            ]
            for own in self.beats(program, instruction, entry)
        ]

    def beats(self, program: Program, one: Instruction, entry: int) -> list[list[isa_beat.Beat]]:
        """The passes of an instruction, cut at random."""
        passes, counted, unit, size = passes_of(program, one)
        found: list[list[isa_beat.Beat]] = []
        for number in range(passes):
            cuts = {0, counted, *self.rng.integers(0, counted, self.rng.integers(0, 4)).tolist()}
            if isinstance(one.does, Softmax):
                # The heads that share a key-value head stay together.
                cuts = {cut // 2 * 2 for cut in cuts}
            found.append(
                [
                    isa_beat.Beat(
                        number, first * unit, min(size, last * unit) - first * unit, entry
                    )
                    for first, last in itertools.pairwise(sorted(cuts))
                ]
            )
        return found

    @property
    def reducing(self) -> int:
        """Cycles from the last row of a pass to what it reduces."""
        machine = self.machine
        looking = max(machine.table_lookup, machine.sample)
        return machine.vector_pipeline + machine.vector_reduce + looking

    def rows_of(self, fields: Mapping[str, int]) -> int:
        """Cycles in which a beat's rows go."""
        operation = PASSES[fields["operation"]][0]
        if operation != "softmax":
            waits = self.machine.block_exponent if operation == "quantize_blocks" else 0
            waits += fields["rows"] - 1 if operation == "quantize_heads" else 0
            return fields["groups"] * fields["rows"] + waits
        first = max(0, self.position + 1 - fields["window"]) if fields["window"] else 0
        return fields["groups"] * (self.position // self.lanes - first // self.lanes + 1)

    def finish_of(self, fields: Mapping[str, int]) -> int:
        """Cycles to the result of a beat."""
        if PASSES[fields["operation"]][0] != "route":
            return self.rows_of(fields) + self.machine.vector_pipeline
        sizes, every = (fields["rows"], fields["groups"]), bool(fields["offset"])
        return int(durations.route(self.machine, *sizes, every=every)(tokens=1, rank=0))

    def feed(self, beats: list[Fed]) -> int:
        """Gives descriptors to the unit in certain cycles; returns how many places saturated.

        Each must end when it should, and the unit be ready for it.
        """
        rng, machine = self.rng, self.machine
        ends = [start + self.finish_of(fields) for start, fields in beats]
        left = self.reducing - machine.vector_pipeline
        routes = [PASSES[fields["operation"]][0] == "route" for _, fields in beats]
        reduced = [e if alone else e + left for e, alone in zip(ends, routes, strict=True)]
        length = ends[-1] + left + 1
        inputs: dict[str, Any] = {"start": np.zeros(length, np.int64)}
        inputs["position"] = rng.integers(0, POSITIONS, length)
        for one in fields_of(self.blocks).fields:
            low = -(1 << one.width - 1) if one.signed else 0
            # The descriptor is there in the first cycle only.
            inputs[one.name] = rng.integers(low, low + (1 << one.width), length)
        for start, fields in beats:
            inputs["start"][start] = 1
            inputs["position"][start] = self.position
            for name, value in fields.items():
                inputs[name][start] = value
        self.model.step(int(rng.integers(1, 4)))
        trace = self.model.run(length, {name: one.tolist() for name, one in inputs.items()})
        assert all(trace.outputs["ready"][start] for start, _ in beats)
        assert np.flatnonzero(trace.outputs["done"]).tolist() == [end - 1 for end in ends]
        assert np.flatnonzero(trace.outputs["reduced"]).tolist() == [e - 1 for e in reduced]
        self.sampled = np.flatnonzero(trace.outputs["token_valid"]).tolist()
        self.ends = ends
        return int(trace.outputs["saturated"].sum())

    def fixed(self, row: int, size: int) -> Ints:
        """A vector of the vector memory."""
        flat = self.memory("vector_memory", "<i4").reshape(-1)[row * self.lanes :]
        return flat[:size].astype(np.int64)

    def codes(self, row: int, groups: int, width: int, fmt: str, name: str = "code") -> Ints:
        """Codes [groups * width] of groups that begin in rows of their own."""
        kind = "<u2" if fmt.startswith("u") else "<i2"
        rows = -(-width // self.lanes)
        part = self.memory(f"{name}_memory", kind)[row : row + groups * rows]
        return part.reshape(groups, -1)[:, :width].reshape(-1).astype(np.int64)

    def scales(self, first: int, count: int, file: str = "scales") -> Scale:
        """Entries of a file of scales."""
        words = self.model.memory(file)[first : first + count].astype(np.int64)
        return Scale(words & 0xFFFFFF, ((words >> 24) << 54) >> 54)

    def heads(self, first: int, count: int) -> tuple[Scale, Ints]:
        """Entries of the heads' file: scales and totals."""
        rows = self.model.memory("heads")[first : first + count]
        words = [int.from_bytes(row.tobytes(), "little") for row in rows]
        part = np.array([word & ((1 << 34) - 1) for word in words], np.int64)
        totals = np.array([word >> 64 for word in words], np.int64)
        return Scale(part & 0xFFFFFF, ((part >> 24) << 54) >> 54), totals

    def values(self, size: int, spread: int = 31) -> Ints:
        """Random elements of all sizes up to `spread` bits, now and then zeros or extremes."""
        rng = self.rng
        limit = (1 << spread) - 1
        x = rng.integers(-limit, limit, size, endpoint=True) >> rng.integers(0, spread + 1, size)
        choice = rng.random(size)
        x = np.where(choice < 0.04, rng.choice([-limit - 1, -limit, limit], size), x)
        return np.where((choice > 0.04) & (choice < 0.08), 0, x)


@functools.cache
def built(geometry: Geometry, parts: Parts = EVERYTHING) -> tuple[Machine, ArcModel]:
    machine = geometry.machine
    return machine, ArcModel(bench(machine, parts, geometry.rotary).text(), "bench", opt=0)


@pytest.fixture
def unit(geometry: Geometry) -> Unit:
    return running(*built(geometry), geometry.rotary)


def running(machine: Machine, model: ArcModel, rotary: int = 14) -> Unit:
    model.set("start", 0)
    model.set("rst", 1)
    model.step(2)
    model.set("rst", 0)
    return Unit(machine, model, rotary)


def passes_of(program: Program, one: Instruction) -> tuple[int, int, int, int]:
    """Passes of an instruction, into how many parts it may be cut, and how much of what its beats
    count each part and the whole have."""
    does, lanes = one.does, program.machine.vector_lanes
    kind = {name: value.type for name, value in program.buffers.items()}.__getitem__
    heads = {name: cache.heads for name, cache in program.caches.items()}.__getitem__
    size, groups = touched.size_of(does, kind, heads), touched.groups_of(does, kind)
    unit = size // groups if groups > 1 else lanes
    if isinstance(does, Rotary) and size // does.heads >= lanes:
        unit = size // does.heads
    if isinstance(does, Softmax):
        unit = 1
    if isinstance(does, Route) or (isinstance(does, QuantizeHeads) and groups == 1):
        unit = size
    return touched.passes_of(does), -(-size // unit), unit, size


def fixed_type(size: int, fraction: int = 16) -> kinds.Fixed:
    return kinds.Fixed(size, fraction)


def quantized_type(groups: int, width: int, fmt: str) -> kinds.Quantized:
    return kinds.Quantized(groups, width, fmt)


def program_of(
    machine: Machine,
    buffers: Mapping[str, Buffer],
    parameters: Mapping[str, Parameter] | None = None,
    caches: Mapping[str, Cache] | None = None,
) -> Program:
    return Program(
        machine=machine,
        name="vector",
        vocabulary=1,
        parameters=parameters or {},
        caches=caches or {},
        buffers=buffers,
        blocks=[],
        positions=[],
        logits="",
        token="",
    )


def shapes(lanes: int) -> list[tuple[int, int]]:
    """Groups and widths."""
    return [(1, 5), (1, 3 * lanes + 3), (1, 4 * lanes), (3, 2 * lanes), (5, lanes // 2), (3, 4)]


SPREADS = (31, 31, 24, 8, 0)


@geometries
@pytest.mark.parametrize("fmt", ["int8", "int16", "fp8"])
def test_quantize(unit: Unit, fmt: str) -> None:
    for groups, width in shapes(unit.lanes):
        for spread in SPREADS:
            x, frac = unit.values(groups * width, spread), int(unit.rng.integers(10, 22))
            if groups == 3:
                x[:width] = 0
            duration = durations.quantize(unit.machine, len(x), groups, static=False)
            kind = quantized_type(groups, width, fmt)
            assert unit.run("quantize", {"x": (7, x, frac)}, (40, kind), duration) == 0
            expected = semantics.quantize(x, fmt, frac, groups)
            assert np.array_equal(unit.codes(40, groups, width, fmt), expected.codes)
            scale = unit.scales(40, groups)
            assert np.array_equal(scale.mantissa, expected.scale.mantissa)
            assert np.array_equal(scale.exponent, expected.scale.exponent)


@geometries
@pytest.mark.parametrize("fmt", ["int8", "int16", "fp8"])
def test_quantize_static(unit: Unit, fmt: str) -> None:
    saturated = 0
    for groups, width in shapes(unit.lanes):
        for spread in SPREADS:
            x, frac = unit.values(groups * width, spread), 16
            inverse = Real.of(2.0 ** unit.rng.uniform(-4, 20 if fmt == "fp8" else 9))
            if spread == 24 and fmt == "fp8":
                # Between 448 and its successor, which E4M3 does not have: rounding, then clipping.
                inverse = Real.of(256)
                x = unit.rng.integers(460 << 17, 468 << 17, len(x)) * unit.rng.choice([-1, 1])
            cache = Cache(
                "cache",
                POSITIONS,
                groups,
                width,
                fmt,
                0,
                static_scale=Real(1, 0),
                static_inverse=inverse,
            )
            duration = durations.quantize(unit.machine, len(x), groups, static=True)
            kind = quantized_type(groups, width, fmt)
            count = unit.run(
                "quantize",
                {"x": (7, x, frac)},
                (40, kind),
                duration,
                caches={"cache": cache},
                uses={"scale_of": "cache"},
            )
            counter = Saturations()
            expected = semantics.quantize_static(x, fmt, inverse, frac, counter)
            assert np.array_equal(unit.codes(40, groups, width, fmt), expected)
            assert count == counter.count
            saturated += count
    assert saturated


def block_values(unit: Unit, size: int, low: int) -> Ints:
    """Elements of all sizes, each block of one: ties, and where steps change, among them."""
    rng, block = unit.rng, unit.machine.block
    blocks = -(-size // block)
    bits = rng.integers(0, 32, (blocks, 1))
    x = rng.integers(-(1 << 31), 1 << 31, (blocks, block)) >> (31 - bits)
    at = rng.integers(0, 24, (blocks, 1))
    ties = (rng.integers(-127, 128, (blocks, block)) * 2 + 1 << at) >> 1
    edges = np.where(rng.random((blocks, block)) < 0.3, (765 << at) // 8, 3 << at)
    edges += rng.integers(-1, 2, edges.shape)
    kind = rng.integers(0, 6, (blocks, 1))
    x = np.choose(kind, [x, x, ties, edges, -edges, 0 * x])
    x[rng.random(x.shape) < 0.02] = rng.choice([(1 << low + 22) - 1, 1 << low + 22, -EXTREME - 1])
    return x.reshape(-1)[:size].clip(-EXTREME - 1, EXTREME)


def integers_of_blocks(unit: Unit, row: int, size: int, fmt: str) -> Ints:
    """What codes stand for, by the steps beside them."""
    machine, lanes = unit.machine, unit.lanes
    # Shorter codes have signs in front.
    codes = unit.codes(row, 1, size, "int16")
    rows = -(-size // lanes)
    words = unit.model.memory("step_memory")[row : row + rows].astype(np.int64).reshape(rows)
    per_row = lanes // machine.block
    steps = (words[:, None] >> np.arange(per_row) * STEP_BITS & 31).reshape(-1)
    steps = np.repeat(steps, machine.block)[:size]
    if number_formats.FORMATS[fmt].steps > 1:
        codes = codes * (4 - (steps >> 4))
    return codes << (steps & 15)


@functools.cache
def built_blocks(geometry: Geometry, fmt: str, block: int, cycles: int) -> tuple[Machine, ArcModel]:
    machine = dataclasses.replace(
        geometry.machine, activations=fmt, block=block, block_exponent=cycles
    )
    parts = (("quantize_blocks", "rms_scale", *LLAMA[0]), LLAMA[1], LLAMA[2])
    told = OfBlocks(formats=(fmt,))
    return machine, ArcModel(bench(machine, parts, geometry.rotary, told).text(), "bench", opt=0)


@pytest.mark.parametrize(
    ("geometry", "fmt", "block", "cycles"),
    [
        (GEOMETRIES[0], "half8", 16, 2),
        (GEOMETRIES[0], "half8", 8, 1),
        (GEOMETRIES[1], "mxint8", 8, 3),
        (GEOMETRIES[3], "mxint8", 32, 4),
        (GEOMETRIES[3], "half8", 16, 5),
    ],
)
def test_quantize_blocks(geometry: Geometry, fmt: str, block: int, cycles: int) -> None:
    """Codes, steps and saturations, in the cycles that the timeline says."""
    machine, model = built_blocks(geometry, fmt, block, cycles)
    unit, saturated = running(machine, model, geometry.rotary), 0
    for words in (1, 2, 4, 7):
        for low in (0, 4, 24):
            # The last block may be shorter.
            size, frac = words * max(block, unit.lanes // 2), int(unit.rng.integers(10, 22))
            size -= int(unit.rng.integers(0, min(size, 2 * block)))
            fraction = integer_fraction(frac, low, number_formats.FORMATS[fmt].steps)
            x = block_values(unit, size, low)
            before = unit.fixed(60, 8 * unit.lanes)
            kind = kinds.Blocks(size, fmt, block, fraction)
            duration = durations.blocks_pass(machine, size).duration
            count = unit.run("quantize_blocks", {"x": (7, x, frac)}, (40, kind), duration)
            counter = Saturations()
            expected = semantics.quantize_blocks(x, fmt, block, frac, fraction, counter)
            assert np.array_equal(integers_of_blocks(unit, 40, size, fmt), expected.codes)
            assert count == counter.count
            assert np.array_equal(unit.fixed(60, len(before)), before), "wrote to the vectors"
            saturated += count
    assert saturated


HALVES, BOTH = ("half8",), ("mxint8", "half8")


@pytest.mark.parametrize(
    ("geometry", "block", "cycles", "told"),
    [
        (GEOMETRIES[0], 16, 2, OfBlocks(1, HALVES)),
        (GEOMETRIES[0], 4, 1, OfBlocks(40, HALVES)),
        (GEOMETRIES[1], 8, 3, OfBlocks(2, HALVES)),
        (GEOMETRIES[3], 16, 5, OfBlocks(1, BOTH)),
        (GEOMETRIES[2], 4, 2, OfBlocks(0, BOTH)),
        (GEOMETRIES[3], 8, 4, OfBlocks(30, BOTH)),
    ],
)
def test_quantize_blocks_of_several_kinds(
    geometry: Geometry, block: int, cycles: int, told: OfBlocks
) -> None:
    """Wide blocks beside others, all or any of a beat; both kinds of steps in one unit."""
    machine = dataclasses.replace(
        geometry.machine, activations="half8", block=block, block_exponent=cycles
    )
    parts = (("quantize_blocks", *LLAMA[0]), LLAMA[1], LLAMA[2])
    text = bench(machine, parts, geometry.rotary, told).text()
    unit = running(machine, ArcModel(text, "bench", opt=0), geometry.rotary)
    unit.blocks, rng = told, unit.rng
    counted = 0
    for number in range(12):
        fmt = "mxint8" if told.both and number % 2 else "half8"
        low, frac = (0, 4, 24)[number % 3], int(rng.integers(10, 22))
        blocks = int(rng.integers(1, 1 + (told.wide if told.wide > 1 else 5)))
        size = blocks * block - int(rng.integers(0, block))
        part = rng.random() if told.wide > 1 else rng.integers(0, 2)
        wide = np.flatnonzero(rng.random(blocks) < part).tolist() if told.wide else []
        fraction = integer_fraction(frac, low, number_formats.FORMATS[fmt].steps)
        x = block_values(unit, size, low)
        # Codes of 16 bits in the middle of two.
        ties = (rng.integers(-32767, 32768, size) * 2 + 1 << rng.integers(0, 12)) >> 1
        x = np.where(rng.random(size) < 0.2, ties.clip(-EXTREME, EXTREME), x)
        x[: not low] = EXTREME
        kind = kinds.Blocks(size, fmt, block, fraction, ranges_text(wide))
        duration = durations.blocks_pass(machine, size).duration
        count = unit.run("quantize_blocks", {"x": (7, x, frac)}, (40, kind), duration)
        counter = Saturations()
        expected = semantics.quantize_blocks(x, fmt, block, frac, fraction, counter, wide)
        assert np.array_equal(integers_of_blocks(unit, 40, size, fmt), expected.codes)
        assert count == counter.count
        counted += count
    assert counted


def equal_heads(unit: Unit, row: int, x: Ints, frac: int, groups: int) -> None:
    """Codes and scales are those of the semantics."""
    expected = semantics.quantize_heads(x, "half8", frac, groups)
    found = unit.codes(row, groups, len(x) // groups, "half8")
    assert np.array_equal(found, expected.codes)
    scale = unit.scales(row, groups)
    assert np.array_equal(scale.mantissa, expected.scale.mantissa)
    assert np.array_equal(scale.exponent, expected.scale.exponent)


@geometries
def test_quantize_heads(unit: Unit) -> None:
    """Codes and scales of heads of any width, when what a pass reduces is there."""
    lanes, rng = unit.lanes, unit.rng
    for groups, width in (
        (1, 3),
        (1, lanes),
        (1, HEAD_ROWS * lanes - 3),
        (6, lanes // 2),
        (5, lanes),
        (3, 2 * lanes),
        (2, HEAD_ROWS * lanes),
    ):
        for spread in (*SPREADS, 0):
            x, frac = unit.values(groups * width, spread), int(rng.integers(8, 31))
            before = unit.fixed(160, 8 * lanes)
            kind = quantized_type(groups, width, "half8")
            duration = durations.heads_pass(unit.machine, groups * width, width).duration
            reads = {"x": (7, x, frac)}
            assert unit.run("quantize_heads", reads, (100, kind), duration) == 0
            equal_heads(unit, 100, x, frac, groups)
            assert np.array_equal(unit.fixed(160, len(before)), before), "wrote to the vectors"


@geometries
def test_heads_and_others_follow_each_other(unit: Unit) -> None:
    """Passes behind those of heads begin as soon as their rows are taken, in any order."""
    lanes, rng = unit.lanes, unit.rng
    for _ in range(6):
        widths = [(4, lanes // 2), (3, lanes), (2, 2 * lanes), (2, HEAD_ROWS * lanes), (1, lanes)]
        heads = [(*one, unit.values(one[0] * one[1]), int(rng.integers(8, 31))) for one in widths]
        a, b = unit.values(4 * lanes), unit.values(4 * lanes)
        queues: list[list[dict[str, int]]] = []
        unit.entry = 0
        for number, (groups, width, x, frac) in enumerate(heads):
            kind = quantized_type(groups, width, "half8")
            (own,) = unit.made(
                "quantize_heads", {"x": (8 * number, x, frac)}, (60 + 8 * number, kind)
            )
            queues.append(own)
        (own,) = unit.made("mul", {"a": (40, a, 16), "b": (44, b, 16)}, (50, fixed_type(4 * lanes)))
        queues.append(own)
        now, fed = 0, list[Fed]()
        while left := [queue for queue in queues if queue]:
            fields = left[int(rng.integers(len(left)))].pop(0)
            fed.append((now, fields))
            now += unit.rows_of(fields) + int(rng.integers(0, 8) == 0)
        _ = unit.feed(fed)
        for number, (groups, _, x, frac) in enumerate(heads):
            equal_heads(unit, 60 + 8 * number, x, frac, groups)
        constants = ELEMENTWISE["mul"].constants([16, 16], 16, {})
        product = semantics.elementwise(ELEMENTWISE["mul"], [a, b], constants)
        assert np.array_equal(unit.fixed(50, 4 * lanes), product)


@geometries
@pytest.mark.parametrize("eps", [0.0, 1e-5, 3e3])
def test_rms_scale(unit: Unit, eps: float) -> None:
    """The factor alone goes to its memory, when what the pass reduces is there."""
    rng = unit.rng
    for width in (5, unit.lanes, 3 * unit.lanes + 3, 8 * unit.lanes):
        for spread in SPREADS:
            x, frac, row = unit.values(width, spread), int(rng.integers(8, 20)), 33
            x = np.full_like(x, -EXTREME - 1) if spread == 31 and rng.integers(2) else x
            before, others = unit.fixed(60, width), unit.model.memory("scales").copy()
            real = Real.of(eps)
            count = unit.run(
                "rms_scale",
                {"x": (7, x, frac)},
                (row, kinds.Scale()),
                durations.vector_pass(unit.machine, width, 1, width).duration,
                arguments={"eps": [real.mantissa, real.exponent]},
            )
            unit.model.step()
            expected = semantics.rms_scale(x, real, frac)
            found = unit.scales(row, 1, "norm_scales")
            assert np.array_equal(found.mantissa, expected.mantissa)
            assert np.array_equal(found.exponent, expected.exponent)
            assert np.array_equal(unit.fixed(60, width), before), "wrote to the vectors"
            assert np.array_equal(unit.model.memory("scales"), others), "wrote other scales"
            assert count == 0


@geometries
@pytest.mark.parametrize("eps", [0.0, 1e-5, 1e-12])
def test_rms_norm(unit: Unit, eps: float) -> None:
    rng = unit.rng
    for groups, width in shapes(unit.lanes):
        for spread in SPREADS:
            x = unit.values(groups * width, spread)
            if groups == 5:
                x[width : 2 * width] = 0
            own = bool(rng.integers(2)) and groups > 1
            gamma = rng.integers(-32768, 32767, groups * width if own else width)
            frac, into, exponent = int(rng.integers(12, 20)), 16, int(rng.integers(3, 15))
            before = unit.fixed(60, groups * width + 3 * unit.lanes)
            real = Real.of(eps)
            count = unit.run(
                "rms_norm",
                {"x": (7, x, frac)},
                (60, fixed_type(len(x), into)),
                durations.norm(unit.machine, len(x), groups, centred=False),
                arguments={"eps": [real.mantissa, real.exponent], "groups": groups},
                constants={"gamma": (gamma, exponent)},
            )
            counter = Saturations()
            expected = semantics.norm(x, gamma, exponent, real, frac, into, groups, counter)
            after = unit.fixed(60, len(before))
            assert np.array_equal(after[: len(x)], expected)
            assert np.array_equal(after[len(x) :], before[len(x) :]), "wrote beyond the vector"
            assert count == counter.count


@geometries
@pytest.mark.parametrize("eps", [0.0, 1e-5])
def test_layer_norm(unit: Unit, eps: float) -> None:
    rng = unit.rng
    for width in (5, unit.lanes, 3 * unit.lanes + 3, 8 * unit.lanes):
        for spread in SPREADS:
            x = unit.values(width, spread)
            gamma = rng.integers(-32768, 32767, width)
            beta = unit.values(width) if rng.integers(3) else None
            frac, exponent = int(rng.integers(12, 20)), int(rng.integers(3, 15))
            constants = {"gamma": (gamma, exponent)}
            if beta is not None:
                constants["beta"] = (beta, 0)
            real = Real.of(eps)
            count = unit.run(
                "layer_norm",
                {"x": (7, x, frac)},
                (60, fixed_type(width)),
                durations.norm(unit.machine, width, 1, centred=True),
                arguments={"eps": [real.mantissa, real.exponent]},
                constants=constants,
            )
            counter = Saturations()
            expected = semantics.norm(
                x, gamma, exponent, real, frac, saturations=counter, centred=True, beta=beta
            )
            assert np.array_equal(unit.fixed(60, width), expected)
            assert count == counter.count


@geometries
def test_rotary(unit: Unit) -> None:
    lanes, rng = unit.lanes, unit.rng
    cases = [
        (3, 2 * lanes, 2 * lanes, False),
        (2, 3 * lanes, 2 * lanes, False),
        (2, 2 * lanes, lanes, False),
        (3, lanes, lanes, False),
        (3, lanes, lanes // 2, False),
        (5, lanes // 2, lanes // 2, False),
        (5, lanes // 2, lanes // 4, False),
        (1, 2 * lanes, 4, False),
        (3, 2 * lanes, 2 * lanes, True),
        (3, 2 * lanes, lanes + 6, True),
        (3, lanes // 2, lanes // 4, True),
    ]
    saturated = 0
    for heads, width, turning, interleaved in cases:
        for spread in (31, 31, 20):
            size = heads * width
            x = unit.values(size, spread)
            angles = rng.uniform(0, 6.3, (8, turning // 2))
            scale, frac = 1.9 * 2.0**14, unit.rotary
            cos, sin = (np.rint(f(angles) * scale).astype(np.int64) for f in (np.cos, np.sin))
            position = int(rng.integers(8))
            arguments: dict[str, Any] = {"heads": heads, "rotary_dim": turning}
            if interleaved:
                arguments["interleaved"] = True
            count = unit.run(
                "rotary",
                {"x": (7, x, 16)},
                (60, fixed_type(size)),
                durations.vector(unit.machine, size),
                arguments=arguments,
                constants={"cos": (cos, frac), "sin": (sin, frac)},
                position=position,
            )
            counter = Saturations()
            expected = semantics.rotary(
                x, cos[position], sin[position], heads, interleaved, counter, frac
            )
            assert np.array_equal(unit.fixed(60, size), expected), (heads, width, turning)
            assert count == counter.count
            saturated += count
    assert saturated


@geometries
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_elementwise(unit: Unit, name: str) -> None:
    """The lane, folded by hand, against the formula of each elementwise operator."""
    rng, formula = unit.rng, ELEMENTWISE[name]
    for size in (3, 8 * unit.lanes, 5 * unit.lanes + 1):
        for spread in (31, 31, 21, 19, 10):
            operands = [unit.values(size, spread) for _ in range(formula.operands)]
            *fractions, into = (int(f) for f in rng.integers(12, 21, formula.operands + 1))
            bound = float(rng.choice([30, 50, 5000]))
            factor = Real.of(float(rng.normal() * 10.0 ** rng.integers(-12, 15)))
            low, high = (Real.of(float(one)) for one in sorted(rng.normal(size=2) * bound))
            reals = {"factor": factor, "inverse": Real.of(1 / bound), "cap": Real.of(bound)}
            reals |= {"low": low, "high": high if rng.integers(2) else Real.of(2.0**31)}
            names = {"scale": ("factor",), "softcap": ("inverse", "cap"), "clip": ("low", "high")}
            given = names.get(name, ())
            arguments: dict[str, Any] = {
                one: [reals[one].mantissa, reals[one].exponent] for one in given
            }
            if name in ACTIVATIONS:
                arguments["kind"] = name
            places = zip((7, 30), operands, fractions, strict=False)
            # Now and then in place.
            row = int(rng.choice([7, 60]))
            count = unit.run(
                "activate" if name in ACTIVATIONS else name,
                {f"x{i}": one for i, one in enumerate(places)},
                (row, fixed_type(size, into)),
                durations.vector(unit.machine, size),
                arguments=arguments,
            )
            counter = Saturations()
            constants = formula.constants(fractions, into, [reals[one] for one in given])
            expected = semantics.elementwise(formula, operands, constants, counter)
            assert np.array_equal(unit.fixed(row, size), expected)
            assert count == counter.count


@geometries
def test_copy(unit: Unit) -> None:
    size = 5 * unit.lanes + 1
    x, kind = unit.values(size), fixed_type(size)
    duration = durations.vector(unit.machine, size)
    assert unit.run("copy", {"x": (7, x, 16)}, (60, kind), duration) == 0
    assert np.array_equal(unit.fixed(60, size), x)


@geometries
def test_sample(unit: Unit) -> None:
    for size in (1, 3, 8 * unit.lanes, 5 * unit.lanes + 1):
        for spread in (31, 3, 0):
            x = unit.values(size, spread)
            if spread == 0:
                x[:] = -EXTREME - 1
            kind = kinds.Token()
            unit.run("sample", {"x": (7, x, 16)}, (0, kind), durations.sample(unit.machine, size))
            assert unit.model.get("token") == semantics.argmax(x)
            told = unit.ends[-1] + unit.machine.vector_reduce + unit.machine.sample
            assert unit.sampled == [told]


@geometries
@pytest.mark.parametrize("fmt", ["uint8", "uint16"])
@pytest.mark.parametrize("window", [0, 9])
@pytest.mark.parametrize("static", [False, True])
def test_softmax(unit: Unit, fmt: str, window: int, static: bool) -> None:
    rng, lanes = unit.rng, unit.lanes
    rows = -(-POSITIONS // lanes)
    heads, kv_heads = 4, 2
    names = Places(
        heads={"x": 20, "out": 9},
        value_scales={"v": 4},
        score_rows=rows,
    )
    for position in (0, 1, lanes - 1, lanes, 37, POSITIONS - 1):
        for spread in (31, 22, 17, 0):
            first = max(0, position + 1 - window) if window else 0
            count = position + 1 - first
            scores = unit.values(heads * POSITIONS, spread).reshape(heads, POSITIONS)
            if spread == 17:
                scores[:] = rng.integers(-(20 << 16), 20 << 16, scores.shape)
            mantissa = rng.integers(1 << 23, 1 << 24, (kv_heads, POSITIONS))
            mantissa[rng.random(mantissa.shape) < 0.1] = 0
            if spread == 0:
                mantissa[0] = 0
            exponent = rng.integers(14, 60, mantissa.shape)
            memory = unit.memory("score_memory", "<i4")[2 : 2 + heads * rows]
            memory.reshape(heads, -1)[:, :POSITIONS] = scores
            largest = unit.memory("largest_memory", "<i4")[20 : 20 + heads, 0]
            largest[:] = scores[:, first : position + 1].max(axis=1)
            memory = unit.memory("value_scale_memory", "<u4")[4 : 4 + kv_heads * rows]
            memory.reshape(kv_heads, -1)[:, :POSITIONS] = mantissa | exponent << 24
            cache = Cache("v", POSITIONS, kv_heads, 1, "int8", 0)
            where = slice(first, position + 1)
            scale = Scale(mantissa[:, where], exponent[:, where])
            if static:
                real = Real.of(0.037)
                cache = dataclasses.replace(cache, static_scale=real)
                scale = Scale.of(real)
            saturated = unit.run(
                "softmax",
                {"x": (2, scores, 16)},
                (5, kinds.Probabilities(heads, fmt)),
                durations.softmax(unit.machine, heads, window),
                arguments={"window": window},
                position=position,
                caches={"v": cache},
                uses={"values": "v"},
                places=names,
            )
            assert saturated == 0
            expected, total = semantics.softmax(scores[:, where], scale, fmt)
            codes = unit.codes(5, heads, rows * lanes, fmt, "probability").reshape(heads, -1)
            assert np.array_equal(codes[:, where], expected.codes.reshape(heads, count))
            found, totals = unit.heads(9, heads)
            assert np.array_equal(found.mantissa, expected.scale.mantissa)
            assert np.array_equal(found.exponent, expected.scale.exponent)
            assert np.array_equal(totals, total)
            # Tokens that are not attended count as 0 in the rows that were.
            touched = np.arange(rows * lanes) // lanes
            inside = (touched >= first // lanes) & (touched <= position // lanes)
            seen = (np.arange(rows * lanes) >= first) & (np.arange(rows * lanes) <= position)
            assert not codes[:, inside & ~seen].any()


@geometries
def test_passes_of_several_instructions_go_through_together(unit: Unit) -> None:
    """Passes in any order, each as early as what it needs of its own instruction is there."""
    lanes, rng, unit.position = unit.lanes, unit.rng, int(unit.rng.integers(POSITIONS))
    for _ in range(12):
        width, real = 3 * lanes, Real.of(1e-5)
        x = [unit.values(width) for _ in range(5)]
        gamma = rng.integers(-32768, 32767, width)
        angles = rng.uniform(0, 6.3, (POSITIONS, lanes // 2))
        tables = {
            name: (np.rint(f(angles) * 1.9 * 2.0**14).astype(np.int64), unit.rotary)
            for name, f in (("cos", np.cos), ("sin", np.sin))
        }
        fixed, code = fixed_type(width), quantized_type(3, lanes, "int8")
        instructions = [
            ("quantize", {"x": (4, x[0], 16)}, (10, code), {}),
            ("quantize", {"x": (8, x[1], 16)}, (20, quantized_type(1, width, "int16")), {}),
            (
                "rms_norm",
                {"x": (12, x[2], 16)},
                (130, fixed),
                {
                    "arguments": {"eps": [real.mantissa, real.exponent], "groups": 1},
                    "constants": {"gamma": (gamma, 9)},
                },
            ),
            ("mul", {"x0": (16, x[3], 16), "x1": (20, x[4], 16)}, (140, fixed), {}),
            (
                "rotary",
                {"x": (24, x[0], 16)},
                (150, fixed),
                {
                    "arguments": {"heads": 3, "rotary_dim": lanes},
                    "constants": tables,
                    "position": unit.position,
                },
            ),
            (
                "layer_norm",
                {"x": (28, x[1], 16)},
                (160, fixed),
                {
                    "arguments": {"eps": [real.mantissa, real.exponent]},
                    "constants": {"gamma": (gamma, 9)},
                },
            ),
            ("sample", {"x": (32, x[2], 16)}, (0, kinds.Token()), {}),
        ]
        queues: list[list[list[dict[str, int]]]] = []
        unit.entry, unit.constants = 0, 3
        for opcode, reads, write, more in instructions:
            queues.append(unit.made(opcode, reads, write, **more))
            unit.entry += 4
        ready = [0] * len(queues)
        now, fed = 0, list[Fed]()
        while any(queues):
            left = [i for i, queue in enumerate(queues) if queue]
            chosen = int(rng.choice(left))
            now = max(now, ready[chosen])
            for fields in queues[chosen].pop(0):
                fed.append((now, fields))
                now += unit.rows_of(fields)
            ready[chosen] = now + unit.reducing
        counter = Saturations()
        _ = unit.feed(fed)
        for values, row, groups, width_, fmt in (
            (x[0], 10, 3, lanes, "int8"),
            (x[1], 20, 1, width, "int16"),
        ):
            expected = semantics.quantize(values, fmt, 16, groups)
            assert np.array_equal(unit.codes(row, groups, width_, fmt), expected.codes)
            scale = unit.scales(row, groups)
            assert np.array_equal(scale.mantissa, expected.scale.mantissa)
            assert np.array_equal(scale.exponent, expected.scale.exponent)
        assert np.array_equal(unit.fixed(130, width), semantics.norm(x[2], gamma, 9, real))
        constants = ELEMENTWISE["mul"].constants([16, 16], 16, {})
        product = semantics.elementwise(ELEMENTWISE["mul"], [x[3], x[4]], constants, counter)
        assert np.array_equal(unit.fixed(140, width), product)
        cos, sin = (tables[name][0][unit.position] for name in ("cos", "sin"))
        turned = semantics.rotary(x[0], cos, sin, 3, False, counter, unit.rotary)
        assert np.array_equal(unit.fixed(150, width), turned)
        centred = semantics.norm(x[1], gamma, 9, real, centred=True)
        assert np.array_equal(unit.fixed(160, width), centred)
        assert unit.model.get("token") == semantics.argmax(x[2])


@geometries
def test_long_vectors(unit: Unit) -> None:
    size, real = 100 * unit.lanes - 3, Real.of(1e-6)
    x, gamma = unit.values(size), unit.rng.integers(-32768, 32767, size)
    x[: size // 2] = EXTREME
    arguments = {"eps": [real.mantissa, real.exponent]}
    for opcode, centred in (("rms_norm", False), ("layer_norm", True)):
        unit.run(
            opcode,
            {"x": (7, x, 16)},
            (120, fixed_type(size)),
            durations.norm(unit.machine, size, 1, centred=centred),
            arguments=arguments if centred else {**arguments, "groups": 1},
            constants={"gamma": (gamma, 9)},
        )
        if centred:
            expected = semantics.norm(x, gamma, 9, real, centred=True)
        else:
            expected = semantics.norm(x, gamma, 9, real)
        assert np.array_equal(unit.fixed(120, size), expected)
    duration = durations.quantize(unit.machine, size, 1, static=False)
    unit.run("quantize", {"x": (7, x, 16)}, (120, quantized_type(1, size, "int8")), duration)
    assert np.array_equal(unit.codes(120, 1, size, "int8"), semantics.quantize(x, "int8").codes)


def test_only_what_a_llama_needs() -> None:
    unit = running(*built(Geometry(8), LLAMA))
    test_quantize(unit, "int8")
    test_rms_norm(unit, 1e-5)
    test_rotary(unit)
    test_elementwise(unit, "silu")
    test_softmax(unit, "uint8", 0, False)
    test_sample(unit)


@pytest.mark.parametrize(
    "parts",
    [
        (("sample",), (), ()),
        (("layer_norm",), (), ()),
        (("softmax",), (), ("uint8",)),
        (("quantize_static",), (), ("fp8",)),
        (("softcap", "add"), ("tanh",), ()),
        (("relu2", "scale"), (), ()),
    ],
)
def test_parts_of_the_unit(parts: Parts) -> None:
    design = Design()
    build_vector(design, Geometry(4).machine, shape_of(parts))
    circt.verify(design.text())


def test_machines_that_cannot_be_built() -> None:
    machine = Geometry(16).machine
    assert not machine_refusals(machine)
    found = machine_refusals(dataclasses.replace(machine, vector_pipeline=2, vector_lanes=24))
    assert [one.what for one in found] == [
        "the vector unit takes 2 to 1024 lanes, a power of two, not 24",
        "latency.vector_pipeline is 2, the vector unit needs at least 3",
    ]


def test_refusals() -> None:
    lanes = 16
    program = program_of(
        Geometry(lanes).machine,
        {
            "x": Buffer("x", fixed_type(120), VECTORS),
            "y": Buffer("y", fixed_type(120), VECTORS, 0, 2),
            "q": Buffer("q", quantized_type(5, 24, "int8"), CODES),
        },
    )

    def said(does: Does[str]) -> str:
        issue = timeline.Issue(VECTOR, {}, constant(1))
        one = Instruction(does, [["the_node"]], issue, [], [])
        with pytest.raises(UserError) as caught:
            encode(program, one, {}, Places())
        assert caught.value.node == "the_node"
        return caught.value.what

    assert "5 groups of 24 elements do not fit 16" in said(Quantize(input="x", output="q"))
    assert "begins inside a row" in said(Quantize(input="y", output="q"))
    turn = Rotary(input="x", output="x", cos="cos", sin="sin", heads=5, rotary_dim=24)
    assert "heads of 24 elements, of which 24 turn" in said(turn)


@geometries
@pytest.mark.parametrize("every", [False, True], ids=["chosen", "every"])
@pytest.mark.parametrize("lowest", [False, True], ids=["last", "first"])
def test_route(unit: Unit, lowest: bool, every: bool) -> None:
    """Any number of experts and of chosen ones, logits of all sizes, many of them equal."""
    rng = unit.rng
    for experts, chosen in ((1, 1), (2, 1), (8, 2), (8, 6), (6, 6), (33, 5), (40, 1), (40, 6)):
        for spread in (31, 24, 18, 2, 0):
            x, frac = unit.values(experts, spread), int(rng.integers(1, 32))
            row = int(rng.integers(0, ROWS - CHOSEN))
            arguments = {"lowest": lowest, "over_all": every}
            kind = kinds.Routing(chosen, experts)
            reads = {"x": (7, x, frac)}
            ((fields,),) = unit.made("route", reads, (row, kind), arguments=arguments)
            assert unit.feed([(0, fields)]) == 0
            words = unit.model.memory("routings")[row : row + chosen].astype(np.int64)
            expected = semantics.route(x, chosen, frac, lowest=lowest, every=every)
            assert (words & 0xFFF).tolist() == expected.experts.tolist()
            assert (words >> 12).tolist() == expected.shares.tolist()


@geometries
@pytest.mark.parametrize("plus", [False, True])
def test_weigh(unit: Unit, plus: bool) -> None:
    """Shares of all sizes, beside one another in the memory; 1 is a little more than 2**24."""
    rng = unit.rng
    for size in (5, unit.lanes, 3 * unit.lanes + 3):
        for spread in SPREADS:
            x, more = unit.values(size, spread), unit.values(size)
            shares = rng.integers(0, (1 << 24) + 9, CHOSEN) >> rng.integers(0, 25, CHOSEN)
            shares[0] = (1 << 24) + 8
            routing = semantics.Routing(rng.integers(0, EXPERTS, CHOSEN), shares)
            frac, out, which = (int(rng.integers(*ends)) for ends in ((8, 24), (8, 24), (0, 6)))
            reads = {"x": (7, x, frac), "routing": (90, routing, EXPERTS)}
            reads |= {"r": (20, more, out)} if plus else {}
            counted = Saturations()
            expected = semantics.weigh(x, shares[which], frac, out, more if plus else None, counted)
            kind = fixed_type(size, out)
            arguments = {"expert": which}
            found = unit.run("weigh", reads, (40, kind), arguments=arguments)
            assert np.array_equal(unit.fixed(40, size), expected)
            assert found == counted.count


def test_fields_fit_the_lists() -> None:
    assert len(OPERATIONS) <= 1 << FIELDS["operation"]
    assert len(GATE_TABLES) <= 1 << FIELDS["gate_table"]
    assert max(vector_encode.FORMAT_CODES.values()) < 1 << FIELDS["number_format"]
