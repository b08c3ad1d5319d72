"""The matrix array against `semantics`, in the arc simulation: every result and every cycle."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from intaglio.backend.hw.matrix import EXPONENT_BITS, build_matrix
from intaglio.backend.hw.matrix_plan import (
    MatrixConfig,
    configure,
    encode,
    l_unit_images,
    matrix_uses,
    shape_of,
)
from intaglio.backend.hw.signal import Design, Write
from intaglio.backend.image_files import Images
from intaglio.backend.program import (
    Block,
    Buffer,
    Instruction,
    Parameter,
    Program,
    load_program,
)
from intaglio.dialects import formula, semantics, timeline
from intaglio.dialects.codes import FORMATS, Matrix, pack
from intaglio.dialects.errors import UserError
from intaglio.dialects.fixed_point import Saturations, Scale
from intaglio.dialects.machine import Machine
from intaglio.dialects.tiling import Piece
from intaglio.lowering import durations
from intaglio.runtime.arc import ArcModel

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
        piece = Piece(0, parameter.dims[0], 0, machine.tiles, split, self.words, self.scales)
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
            Parameter(
                name,
                name,
                "rom.tensor",
                (rows, columns),
                f"int{bits}",
                bits,
                group,
                matrix.exponent,
                zero,
            ),
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
        uses, reads = (
            {"weights": weights},
            [
                self._buffer(
                    f"q{weights}",
                    columns,
                    kind="quantized",
                    groups=1,
                    width=columns,
                    format=machine.activations,
                )
            ],
        )
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
        self,
        opcode: str,
        reads: list[str],
        write: str,
        uses: dict[str, str],
        arguments: dict[str, Any],
        taken: formula.Formula,
    ) -> None:
        issue = timeline.Issue("matrix", {}, taken)
        self.instructions.append(
            Instruction(
                opcode, "matrix", tuple(reads), (write,), uses, arguments, [], issue, [], []
            )
        )

    @property
    def program(self) -> Program:
        names = {n: n for one in self.instructions for n in one.uses.values()}
        block = Block("all", False, [names], self.instructions)
        return Program(
            self.machine, "test", 1, self.parameters, {}, self.buffers, [block], [], "", ""
        )

    def constant_rows(self) -> dict[str, int]:
        """The biases one after the other."""
        rows: dict[str, int] = {}
        for name, bias in self.biases.items():
            rows[name] = self.constants
            self.constants += -(-len(bias) // self.machine.vector_lanes)
        return rows


class Compiled(Model):
    """The matrix instructions of a compiled model."""

    def __init__(self, folder: Path) -> None:
        self._program = program = load_program(folder)
        super().__init__(program.machine, np.random.default_rng(1))
        images = Images(program, folder)
        self.parameters, self.buffers = dict(program.parameters), dict(program.buffers)
        for use in matrix_uses(program):
            for role, slot in use.instruction.uses.items():
                name = use.instance[slot]
                if role == "bias":
                    self.biases[name] = images.dense(name).astype(np.int64)
                elif self.parameters[name].code.startswith("fixed"):
                    self.tables[name] = np.asarray(images.dense(name)).astype(np.int16)
                else:
                    self.matrices[name] = images.matrix(name)

    @property
    def program(self) -> Program:
        return self._program


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
    reads = (
        [out["residual_address"]]
        if "residual_address" in out
        else [m.constant(0, write.address.width)]
    )
    (residual,) = m.ram("vmem", config.vector_rows, 32 * lanes, reads, [write], lanes)
    if "residual_data" in wires:
        wires["residual_data"].assign(residual)
    for p in range(config.ports):
        data = m.rom(
            f"qmem{p}", config.vector_rows, config.code_bits * lanes, out[f"input{p}_address"]
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


def _run(model: Model) -> None:
    """Compiles the array for a model, runs every instruction, compares with `semantics`."""
    machine, rng = model.machine, model.rng
    lanes = machine.vector_lanes
    program, at = model.program, model.constant_rows()
    depth = None if isinstance(model, Compiled) else model.rows
    config = configure(program, at, vector_depth=depth, constant_depth=model.constants)
    run = ArcModel(_top(config), "top", opt=0)
    for image in l_unit_images(program, _Images(model), config):
        where = f"matrix/tile{image.tile}/l_unit{image.l_unit}"
        run.memory(f"{where}/codes")[:] = image.codes
        run.memory(f"{where}/scales")[:] = image.scales
    # What lies beside a vector must not matter.
    for p in range(config.ports):
        qmem = run.memory(f"qmem{p}")
        _fill(
            qmem,
            0,
            rng.integers(0, 256, (len(qmem), config.code_bits // 8 * lanes)).astype(np.uint8),
        )
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
        named = {role: instance[slot] for role, slot in instruction.uses.items()}
        parameter = model.parameters[named.get("table") or named["weights"]]
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
            bias = model.biases[named["bias"]] if "bias" in named else None
            expected = _product(model, run, instruction, parameter, bias, counter)
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
        seen = run.get("count")
        assert seen == counted, (seen, counted)
        # Nothing else is written: neither other rows nor lanes beyond the vector's end.
        last, used = divmod(len(expected), lanes)
        mine = slice(written.address // (4 * lanes), written.address // (4 * lanes) + last)
        after = vmem.copy()
        after[mine] = before[mine]
        if used:
            _tail(after, before, mine.stop, used)
        np.testing.assert_array_equal(after, before)
        # The next instruction may start right away.
        if wait := int(rng.integers(0, 3)):
            idle = run.run(wait)
            assert not idle.outputs["write"].any()
            assert not idle.outputs["done"].any()


def _tail(after: npt.NDArray[Any], before: npt.NDArray[Any], row: int, used: int) -> None:
    a, b = (
        np.ascontiguousarray(x[row : row + 1]).view(np.uint8).reshape(-1) for x in (after, before)
    )
    a[: 4 * used] = b[: 4 * used]
    after[row : row + 1] = a.view(after.dtype).reshape(after[row : row + 1].shape)


def _product(
    model: Model,
    run: ArcModel,
    instruction: Any,
    parameter: Parameter,
    bias: Ints | None,
    counter: Saturations,
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
        _fill(run.memory(f"qmem{p}"), row, _rows(codes, lanes, FORMATS[fmt].bits))
    y = semantics.dot(codes, matrix, fmt)
    # So that most results fit, some do not.
    spread = int(np.abs(y).max()).bit_length()
    mantissa, exponent = (
        int(rng.integers(1 << 23, 1 << 24)),
        spread + 24 + 16 - 31 - matrix.exponent,
    )
    exponent += int(rng.integers(-1, 4))
    run.memory("scales")[row] = mantissa | ((exponent & ((1 << EXPONENT_BITS) - 1)) << 24)
    residual = None
    if len(instruction.reads) > 1:
        residual = rng.integers(-(1 << 31), 1 << 31, rows)
        first = model.buffers[instruction.reads[1]].address // (4 * lanes)
        _fill(run.memory("vmem"), first, _rows(residual, lanes, 32))
    return semantics.requantize(
        y,
        Scale(np.array(mantissa), np.array(exponent)),
        matrix.exponent,
        instruction.arguments["pre_shift"],
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
    assert {"bias", "residual", "embed", "split", "pre_shift"}.isdisjoint(dict(config.fields))
    design = Design()
    ports = {port.name for port in build_matrix(design, config).ports}
    assert {"token", "bias_data", "residual_data"}.isdisjoint(ports)
    assert "word" not in {port.name for port in design.modules["matrix_unit"].ports}
    _run(model)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tiles": 6}, "power of two for tiles"),
        ({"results_per_cycle": 8}, "as many results a cycle as vector lanes"),
        ({"vector_lanes": 8, "results_per_cycle": 8}, "lanes of an L-Unit"),
        ({"mac_pipeline": 1}, "latency mac_pipeline"),
        ({"requantise": 1}, "latency requantise"),
    ],
)
def test_machines_without_hardware(change: dict[str, Any], message: str) -> None:
    model = _model(replace(MINI, **change))
    model.product(model.matrix(40, 64, 2, 64, 1, 4), bias=False, residual=False)
    with pytest.raises(UserError, match=message):
        configure(model.program)


@pytest.mark.parametrize(
    ("pieces", "group", "message"),
    [
        ([Piece(0, 20, 0, 8, 4, 0, 0), Piece(20, 20, 0, 8, 4, 9, 9)], 64, "cut into 2 pieces"),
        ([Piece(0, 40, 0, 4, 4, 0, 0)], 64, "all tiles"),
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
