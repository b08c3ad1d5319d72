"""The matrix array against `semantics`, in the arc simulation: every result and every cycle."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from intaglio.backend.hw.matrix import CODE_BITS, EXPONENT_BITS, build_matrix
from intaglio.backend.hw.matrix_plan import (
    MatrixConfig,
    configure,
    encode,
    l_unit_images,
    matrix_uses,
    shape_of,
)
from intaglio.backend.hw.signal import Design, Write, cat
from intaglio.dialects import formula, semantics, timeline
from intaglio.dialects.codes import FORMATS, Matrix, pack
from intaglio.dialects.errors import UserError
from intaglio.dialects.fixed_point import Saturations, Scale
from intaglio.dialects.machine import Machine
from intaglio.dialects.tiling import Piece
from intaglio.lowering import durations
from intaglio.runtime.arc import ArcModel
from intaglio.runtime.program import Block, Buffer, Instruction, Parameter, Program

Ints = npt.NDArray[np.int64]

MINI = Machine(
    name="mini",
    clock_hz=1,
    tiles=8,
    l_units=4,
    lanes=16,
    plane_bits=2,
    pass_bits=8,
    rom_bits=1 << 20,
    attention_lanes=16,
    query_parallel=1,
    sram_bytes=1 << 20,
    kv_port_bytes=16,
    vector_lanes=16,
    vector_sram_bytes=1 << 20,
    results_per_cycle=16,
    weights=("int2", "int4", "int8"),
    activations="int8",
    kv="int8",
    probabilities="uint8",
    embedding="int16",
    fraction_bits=16,
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
)


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
    words: int = 3
    scales: int = 1
    rows: int = 2
    constants: int = 1

    def _place(self, parameter: Parameter, split: int) -> Parameter:
        machine = self.machine
        piece = Piece(
            0, parameter.dims[0], 0, machine.tiles, split, self.words, self.scales
        )
        shape = shape_of(parameter)
        self.words += piece.code_words(shape, machine)
        self.scales += piece.scale_words(shape, machine)
        self.parameters[parameter.name] = replace(parameter, pieces=(piece,))
        return self.parameters[parameter.name]

    def _buffer(self, name: str, elements: int, **type_: Any) -> str:
        rows = -(-elements // self.machine.vector_lanes)
        width = 4 * self.machine.vector_lanes
        self.buffers[name] = Buffer(name, self.rows * width, rows * width, type_)
        self.rows += rows
        return name

    def matrix(
        self, rows: int, columns: int, bits: int, group: int, zero: int | None, split: int
    ) -> str:
        """A random matrix, scales of both signs."""
        rng, name = self.rng, f"w{len(self.parameters)}"
        groups = -(-columns // group)
        zeros: Any = zero
        if zero is None:
            zeros = rng.integers(0, 1 << bits, (rows, groups)).astype(np.uint8)
        matrix = Matrix(
            pack(rng.integers(0, 1 << bits, (rows, columns)), bits),
            bits,
            columns,
            group,
            zeros,
            rng.integers(-(1 << 15), 1 << 15, (rows, groups)).astype(np.int16),
            int(rng.integers(18, 26)),
        )
        self.matrices[name] = matrix
        self._place(
            Parameter(name, name, "rom.tensor", (rows, columns), f"int{bits}", bits, group,
                      matrix.exponent, zero),
            split,
        )
        return name

    def table(self, rows: int, columns: int, split: int) -> str:
        """A random dense table."""
        name = f"t{len(self.parameters)}"
        self.tables[name] = self.rng.integers(-(1 << 15), 1 << 15, (rows, columns)).astype(np.int16)
        self._place(
            Parameter(name, name, "rom.tensor", (rows, columns), "fixed16", 16, 0, 20), split
        )
        return name

    def product(self, weights: str, bias: bool, residual: bool, slack: int = 0) -> None:
        """An instruction for a matrix."""
        machine, parameter = self.machine, self.parameters[weights]
        rows, columns = parameter.dims
        uses, reads = {"weights": weights}, [
            self._buffer(
                f"q{weights}", columns, kind="quantized", groups=1, width=columns,
                format=machine.activations,
            )
        ]
        if bias:
            uses["bias"] = f"b{weights}"
            self.biases[f"b{weights}"] = self.rng.integers(-(1 << 31), 1 << 31, rows)
        if residual:
            reads.append(self._buffer(f"r{weights}", rows, kind="fixed", size=rows, fraction=16))
        y = self._buffer(f"y{weights}", rows, kind="fixed", size=rows, fraction=16)
        bits = semantics.accumulator_bits(parameter.bits, columns, machine.activations)
        taken = durations.product(machine, shape_of(parameter), parameter.pieces)
        self._add("matvec", reads, y, uses, {"pre_shift": semantics.pre_shift(bits)}, taken + slack)

    def embed(self, table: str) -> None:
        """An instruction that reads a row of a table or matrix."""
        parameter = self.parameters[table]
        columns = parameter.dims[1]
        x = self._buffer(f"x{table}", columns, kind="fixed", size=columns, fraction=16)
        taken = durations.embed(self.machine, shape_of(parameter))
        self._add("embed", ["token"], x, {"table": table}, {}, taken)

    def _add(
        self, opcode: str, reads: list[str], write: str, uses: dict[str, str],
        arguments: dict[str, Any], taken: formula.Formula,
    ) -> None:
        issue = timeline.Issue("matrix", {}, taken)
        self.instructions.append(
            Instruction(opcode, "matrix", tuple(reads), (write,), uses, arguments, [], issue, [], [])
        )

    @property
    def program(self) -> Program:
        names = {n: n for one in self.instructions for n in one.uses.values()}
        block = Block("all", False, [names], self.instructions)
        return Program(
            self.machine, "test", 1, self.parameters, {}, self.buffers, [block], [], "", ""
        )

    def dense(self, name: str) -> npt.NDArray[np.int16]:
        """As `Images.dense`."""
        return self.tables[name]

    def constant_rows(self) -> dict[str, int]:
        """The biases one after the other."""
        rows: dict[str, int] = {}
        for name, bias in self.biases.items():
            rows[name] = self.constants
            self.constants += -(-len(bias) // self.machine.vector_lanes)
        return rows


class _Images:
    def __init__(self, model: Model) -> None:
        self.model = model

    def matrix(self, name: str) -> Matrix:
        return self.model.matrices[name]

    def dense(self, name: str) -> npt.NDArray[np.int16]:
        return self.model.tables[name]


def _top(config: MatrixConfig) -> str:
    """The array with its memories, and a register that counts saturations."""
    design = Design()
    array = build_matrix(design, config)
    array.finish()
    lanes = config.machine.vector_lanes
    m = design.module("top")
    inputs: dict[str, Any] = {}
    wires: dict[str, Any] = {}
    for port in array.ports:
        if port.clock or port.output or port.name == "rst":
            continue
        if port.name.endswith("_data") or port.name in ("scale_mantissa", "scale_exponent"):
            wires[port.name] = m.wire(f"{port.name}_wire", port.width, port.signed)
            inputs[port.name] = wires[port.name]
        else:
            inputs[port.name] = m.input(port.name, port.width)
    out = m.instance("matrix", array, inputs)
    write = Write(out["write_address"], out["write_data"], out["write_enable"], out["write_mask"])
    reads = [out["residual_address"]] if "residual_address" in out else [m.constant(0, write.address.width)]
    (residual,) = m.ram("vmem", config.vector_rows, 32 * lanes, reads, [write], lanes)
    if "residual_data" in wires:
        wires["residual_data"].assign(residual)
    for p in range(config.ports):
        data = m.rom(
            f"qmem{p}", config.vector_rows, CODE_BITS * lanes, out[f"input{p}_address"]
        )
        wires[f"input{p}_data"].assign(data)
    scale = m.rom("scales", config.vector_rows, 24 + EXPONENT_BITS, out["scale_address"])
    wires["scale_mantissa"].assign(scale[:24])
    wires["scale_exponent"].assign(scale[24:].as_signed())
    if "bias_address" in out:
        data = m.rom("constants", config.constant_rows, 32 * lanes, out["bias_address"])
        wires["bias_data"].assign(data)
    count = m.register("count", 32)
    count.drive((count + out["saturations"]).truncate(32))
    m.output("done", out["done"])
    m.output("count", count)
    m.output("write", out["write_enable"])
    return design.text()


def _rows(values: npt.ArrayLike, lanes: int, bits: int) -> npt.NDArray[np.uint8]:
    """A vector as rows of a memory, uint8 [rows, bytes]."""
    dtype = {16: "<i2", 32: "<i4"}[bits]
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


def _run(model: Model) -> None:
    """Compiles the array for a model, runs every instruction, compares with `semantics`."""
    machine, rng = model.machine, model.rng
    lanes = machine.vector_lanes
    program, at = model.program, model.constant_rows()
    config = configure(program, at, vector_depth=model.rows, constant_depth=model.constants)
    run = ArcModel(_top(config), "top")
    for image in l_unit_images(program, _Images(model), config):
        where = f"matrix/tile{image.tile}/l_unit{image.l_unit}"
        run.memory(f"{where}/codes")[:] = image.codes
        run.memory(f"{where}/scales")[:] = image.scales
    # What lies beside a vector must not matter.
    for p in range(config.ports):
        qmem = run.memory(f"qmem{p}")
        _fill(qmem, 0, rng.integers(0, 256, (len(qmem), 2 * lanes)).astype(np.uint8))
    vmem = run.memory("vmem")
    _fill(vmem, 0, rng.integers(0, 256, (len(vmem), 4 * lanes)).astype(np.uint8))
    for name, row in at.items():
        _fill(run.memory("constants"), row, _rows(model.biases[name], lanes, 32))
    run.set("rst", 1)
    run.step(2)
    run.set("rst", 0)
    counted = 0
    for instruction, instance in matrix_uses(program):
        fields = encode(program, instruction, instance, config, at)
        parameter = model.parameters[next(iter(instruction.uses.values()))]
        counter = Saturations()
        written = program.buffers[instruction.writes[0]]
        if instruction.opcode == "embed":
            token = int(rng.integers(0, parameter.dims[0]))
            run.set("token", token)
            if parameter.name in model.tables:
                row = model.tables[parameter.name][token].astype(np.int64)
            else:
                row = model.matrices[parameter.name].values(np.array([token]))[0]
            expected = semantics.embed(row, parameter.exponent, 16, saturations=counter)
        else:
            expected = _product(model, run, instruction, parameter, at, counter)
        before = vmem.copy()
        for name, value in fields.items():
            run.set(name, value)
        run.set("start", 1)
        taken = instruction.issue.duration(tokens=1, rank=0)
        first = run.run(1)
        run.set("start", 0)
        for name, bits in config.fields:
            # The descriptor is valid in the cycle of `start` alone.
            run.set(name, int(rng.integers(0, 1 << min(bits, 30))))
        if "token" in run.ports:
            run.set("token", 0)
        rest = run.run(int(taken) + 50, stop="done")
        assert first.outputs["done"][0] == 0
        assert first.cycles + rest.cycles == taken, (instruction, parameter)
        found = _read(vmem, written.address // (4 * lanes), len(expected), lanes)
        np.testing.assert_array_equal(found, expected, err_msg=f"{instruction} {parameter}")
        assert (rest.outputs["write"][-1] == 1).all()
        counted += counter.count
        assert run.get("count") == counted
        # Nothing else is written: neither other rows nor lanes beyond the vector's end.
        last, used = divmod(len(expected), lanes)
        mine = slice(written.address // (4 * lanes), written.address // (4 * lanes) + last)
        after = vmem.copy()
        after[mine] = before[mine]
        if used:
            _tail(after, before, mine.stop, used)
        np.testing.assert_array_equal(after, before)
        idle = run.run(3)
        assert not idle.outputs["write"].any()
        assert not idle.outputs["done"].any()


def _tail(after: npt.NDArray[Any], before: npt.NDArray[Any], row: int, used: int) -> None:
    a, b = (np.ascontiguousarray(x[row : row + 1]).view(np.uint8).reshape(-1) for x in (after, before))
    a[: 4 * used] = b[: 4 * used]
    after[row : row + 1] = a.view(after.dtype).reshape(after[row : row + 1].shape)


def _product(
    model: Model, run: ArcModel, instruction: Any, parameter: Parameter,
    at: dict[str, int], counter: Saturations,
) -> Ints:
    """Writes the operands of a `matvec`; what it has to give."""
    machine, rng, lanes = model.machine, model.rng, model.machine.vector_lanes
    fmt, (rows, columns) = machine.activations, parameter.dims
    matrix = model.matrices[parameter.name]
    if fmt == "fp8":
        codes = rng.integers(0, 254, columns)
        codes[codes == 127] = 126
    else:
        codes = rng.integers(FORMATS[fmt].low, FORMATS[fmt].high + 1, columns)
        codes[: columns // 8] = FORMATS[fmt].low
    row = model.buffers[instruction.reads[0]].address // (4 * lanes)
    for p in range(len([n for n in run.memories if n.startswith("qmem")])):
        _fill(run.memory(f"qmem{p}"), row, _rows(codes, lanes, 16))
    y = semantics.dot(codes, matrix, fmt)
    # So that most results fit, some do not.
    spread = int(np.abs(y).max()).bit_length()
    mantissa, exponent = int(rng.integers(1 << 23, 1 << 24)), spread + 24 + 16 - 31 - matrix.exponent
    exponent += int(rng.integers(-1, 4))
    run.memory("scales")[row] = mantissa | ((exponent & ((1 << EXPONENT_BITS) - 1)) << 24)
    bias = residual = None
    if "bias" in instruction.uses:
        bias = model.biases[instruction.uses["bias"]]
    if len(instruction.reads) > 1:
        residual = rng.integers(-(1 << 31), 1 << 31, rows)
        first = model.buffers[instruction.reads[1]].address // (4 * lanes)
        _fill(run.memory("vmem"), first, _rows(residual, lanes, 32))
    return semantics.requantize(
        y, Scale(np.array(mantissa), np.array(exponent)), matrix.exponent,
        instruction.arguments["pre_shift"], 16, bias, residual, counter,
    )


def _model(machine: Machine, seed: int = 0) -> Model:
    return Model(machine, np.random.default_rng(seed))


def test_products_of_every_kind() -> None:
    """Codes, groups, zero points, splits, ragged rows and columns on the small target's array."""
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
        (70, 33, 4, 32, None, 4),
    ]
    for i, case in enumerate(cases):
        model.product(model.matrix(*case), bias=i % 2 == 1, residual=i % 3 == 1)
    table = model.table(50, 40, 2)
    coded = model.matrix(64, 200, 4, 32, None, 4)
    plain = model.matrix(200, 72, 2, 1000, 1, 1)
    for name in (table, coded, plain, table, coded, plain):
        if f"x{name}" not in model.buffers:
            model.embed(name)
    model.product(coded, bias=False, residual=False)
    _run(model)
