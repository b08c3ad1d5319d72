"""The adapter unit against the semantics, bit for bit, and against the durations, to the cycle."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest

from intaglio.backend import circt
from intaglio.backend.hw.units.adapter import sizes as adapter_model
from intaglio.backend.hw.units.adapter import unit as adapter
from intaglio.backend.hw.units.adapter.layout import LoadStream, places_of, products
from intaglio.backend.hw.units.adapter.sizes import AdapterModel
from intaglio.backend.hw.units.attention.kv import word_bytes
from intaglio.backend.hw.wires.signal import Design, Signal, Write
from intaglio.backend.program.program import (
    Block,
    Buffer,
    Cache,
    Instruction,
    Parameter,
    Program,
    Site,
)
from intaglio.backend.target.target import load_target
from intaglio.dialects import semantics, timeline
from intaglio.dialects.codes import SLOT_BITS, AdapterMatrix, Matrix, e4m3_encode, pack
from intaglio.dialects.errors import CompilerBug, UserError
from intaglio.dialects.fixed_point import Real, Saturations, Scale
from intaglio.dialects.formats import FORMATS
from intaglio.dialects.formula import Formula
from intaglio.dialects.formula import constant as constant_cycles
from intaglio.dialects.isa.adapter import AdapterMatvec
from intaglio.dialects.isa.attention import QueryKey
from intaglio.dialects.isa.values import Blocks, Fixed, Quantized
from intaglio.dialects.isa.values import Scale as Factor
from intaglio.dialects.machine import Machine
from intaglio.dialects.memories import CODES, NORM_SCALES, STEP_BITS, VECTORS
from intaglio.dialects.tiling import MatrixShape
from intaglio.lowering.place.sram import place_matrices
from intaglio.lowering.schedule import durations
from intaglio.runtime.engines.arc import ArcModel
from intaglio.runtime.engines.running import Model
from intaglio.runtime.engines.verilator import VerilatorModel, compiler, verilator_root

MINI = load_target("roma-mini").with_options(["activations=int8", "kv=int8"]).machine()
FAST = {"broadcast": 2, "attention_pipeline": 2, "reduce": 1, "requantise": 1}
SLOW = {"broadcast": 7, "attention_pipeline": 9, "reduce": 6, "requantise": 8}
Ints = npt.NDArray[np.int64]
ROWS, FACTOR_ROW = 256, 5


def geometry(h_units: int, attention_lanes: int, vector_lanes: int, **more: Any) -> Machine:
    given = {"results_per_cycle": vector_lanes, "kv_port_bytes": attention_lanes, **more}
    return replace(
        MINI,
        h_units=h_units,
        attention_lanes=attention_lanes,
        vector_lanes=vector_lanes,
        **given,
    )


@dataclass(frozen=True)
class Case:
    """Slots of two sites, and what is loaded into them."""

    name: str
    machine: Machine
    rank: int
    columns: int
    rows: int
    ranks: tuple[int, ...]
    fraction: int = 16
    normed: bool = False
    """Whether results of the first matrix are times the factor of a norm."""

    def kind(self, size: int) -> Quantized | Blocks:
        """What a vector that is multiplied is; the unit of blocks so that most results fit."""
        machine, fmt = self.machine, self.machine.activations
        if not machine.has_blocks:
            return Quantized(1, size, fmt)
        bits = semantics.slot_bits(machine.adapter, size, fmt)
        exponent = 14 if machine.adapter == "fp8" else 8
        return Blocks(size, fmt, machine.block, bits - 40 + self.fraction - exponent)


CASES = [
    Case("mini", MINI, 16, 64, 64, (16, 0, 5, 8)),
    Case("few_lanes", geometry(4, 8, 16, adapter="int8", load_bytes=4, **FAST), 12, 40, 36,
         (12, 1, 9), 12),
    Case("int6", geometry(16, 16, 8, adapter="int6", results_per_cycle=4, activations="int16",
         load_bytes=32, tiles=10, **SLOW), 20, 33, 50, (3, 20)),
    Case("ternary", geometry(16, 8, 32, adapter="ternary", activations="fp8", load_bytes=16), 8,
         72, 96, (8, 4, 1)),
    Case("one_unit", geometry(1, 32, 8, adapter="fp8", load_bytes=8, results_per_cycle=2), 4, 48,
         24, (4, 2)),
    # Matrices of fewer rows than H-Units: the second begins inside a beat, at another beat, behind
    # a group of the load port.
    Case("turned", geometry(16, 8, 16, load_bytes=4), 3, 40, 36, (3, 1)),
    Case("other_beat", geometry(16, 8, 8, results_per_cycle=4, load_bytes=4, **SLOW), 3, 24, 40,
         (2, 3)),
    Case("groups", geometry(32, 4, 32, load_bytes=8, adapter="int8"), 5, 40, 70, (5, 2), 12),
    # Scales of several matrices' H-Units in a word of the load port.
    Case("scales", geometry(16, 8, 16, load_bytes=16), 3, 40, 36, (3, 1)),
]  # fmt: skip
BLOCKED = [
    # A block of a word, of two, words of two and of four blocks, over rows; sums of up to 70 bits.
    Case("a word", geometry(8, 8, 16, activations="half8", block=8), 12, 75, 36, (12, 0, 5), 16,
         True),
    Case("two words", geometry(4, 8, 32, activations="mxint8", block=16, adapter="int8", **FAST),
         9, 72, 20, (9, 2)),
    Case("two blocks", geometry(8, 16, 16, activations="half8", block=8, adapter="int6", **SLOW),
         16, 51, 40, (16, 7), 12, True),
    Case("four blocks", geometry(16, 16, 8, activations="half8", block=4, load_bytes=16), 20, 51,
         50, (20, 3), 16, True),
    Case("ternary blocks", geometry(8, 8, 8, activations="half8", block=8, adapter="ternary"), 8,
         33, 24, (8, 1)),
]  # fmt: skip


class Setting(NamedTuple):
    """A program and what is in its images."""

    program: Program
    contents: dict[str, Matrix]

    def matrix(self, name: str) -> Matrix:
        return self.contents[name]


def fixed(name: str, row: int, size: int, machine: Machine, fraction: int = 16) -> Buffer:
    return Buffer(name, Fixed(size, fraction), VECTORS, row)


def quantized(name: str, row: int, width: int, case: Case) -> Buffer:
    return Buffer(name, case.kind(width), CODES, row)


def product(
    weights: str,
    read: str,
    write: str,
    residual: str | None,
    shift: int,
    duration: Formula,
    norm: str | None = None,
) -> Instruction:
    issue = timeline.Issue("attention", {}, duration)
    does = AdapterMatvec(
        input=read, residual=residual, output=write, weights=weights, pre_shift=shift, norm=norm,
        normed=norm is not None,
    )  # fmt: skip
    return Instruction(does, [], issue, [], [])


def program_of(machine: Machine, **parts: Any) -> Program:
    return Program(
        machine=machine, name="adapters", vocabulary=1, caches={}, positions=[], logits="y",
        token="y", domains={}, **parts,
    )  # fmt: skip


def setting(case: Case) -> Setting:
    """Two sites, in the two instances of a block."""
    machine, code = case.machine, case.machine.adapter
    parameters: dict[str, Parameter] = {}
    sites: dict[str, Site] = {}
    for i in range(2):
        dims = {f"a{i}": (case.rank, case.columns), f"b{i}": (case.rows, case.rank)}
        for name, shape in dims.items():
            parameters[name] = Parameter(name, name, "rom.adapter", shape, code, SLOT_BITS[code])
        site = f"layers.{i}.q_proj"
        sites[site] = Site(
            site, f"a{i}", f"b{i}", case.rows, case.columns, case.rank, "w", 0, ["q"]
        )
    buffers = [
        quantized("x", 3, case.columns, case),
        quantized("uq", 40, case.rank, case),
        Buffer("factor", Factor(), NORM_SCALES, FACTOR_ROW),
        fixed("u", 7, case.rank, machine, case.fraction),
        fixed("base", 60, case.rows, machine, case.fraction),
        fixed("y", 110, case.rows, machine, case.fraction),
    ]

    def one(first: bool) -> Instruction:
        slot, (rows, columns) = ("a", parameters["a0"].dims)
        if not first:
            slot, (rows, columns) = ("b", parameters["b0"].dims)
        bits = semantics.slot_bits(code, columns, machine.activations)
        shape = MatrixShape.of((rows, columns), code, SLOT_BITS[code], 0, zeros=False)
        duration = durations.slot_product(machine, shape, first=first)
        shift = semantics.pre_shift(bits)
        if first:
            norm = "factor" if case.normed else None
            return product(slot, "x", "u", None, shift, duration, norm)
        return product(slot, "uq", "y", "base", shift, duration)

    instances = [{"a": f"a{i}", "b": f"b{i}"} for i in range(2)]
    block = Block("layer", False, instances, [one(True), one(False)])
    program = program_of(
        machine, parameters=parameters, sites=sites, buffers={b.name: b for b in buffers},
        blocks=[block],
    )  # fmt: skip
    return Setting(program, {})


def bench(model: AdapterModel) -> str:
    """The unit with memories around it."""
    design = Design()
    unit = adapter.adapter_unit(design, model)
    m = design.module("bench")
    lanes = model.machine.vector_lanes
    given: dict[str, Signal] = {}
    wires: dict[str, Any] = {}
    for port in unit.ports:
        if port.output or port.name in ("clk", "rst"):
            continue
        if port.name.startswith(("input", "steps", "norm", "residual_data")):
            given[port.name] = wires[port.name] = m.wire(port.name, port.width, port.signed)
        else:
            given[port.name] = m.input(port.name, port.width, port.signed)
    out = m.instance("adapter", unit, given)

    def fit(name: str) -> Signal:
        return out[name].truncate(8)

    rows = [name for name in out if name.startswith("input") and name.endswith("_row")]
    read = m.ram("quantised", ROWS, 16 * lanes, [fit(n) for n in rows], [])
    for name, data in zip(rows, read, strict=True):
        wires[name.replace("_row", "_data")].assign(data)
    rows = [name for name in out if name.startswith("steps") and name.endswith("_row")]
    if rows:
        size = lanes // model.machine.block * STEP_BITS
        for name, data in zip(rows, m.ram("steps", ROWS, size, [fit(n) for n in rows], []),
                              strict=True):  # fmt: skip
            wires[name.replace("_row", "_data")].assign(data)
    if "norm_row" in out:
        (factor,) = m.ram("factors", ROWS, 64, [fit("norm_row")], [])
        wires["norm_mantissa"].assign(factor[:24])
        wires["norm_exponent"].assign(factor[24:34].as_signed())
    (scale,) = m.ram("scale", ROWS, 64, [fit("input_group")], [])
    wires["input_mantissa"].assign(scale[:24])
    wires["input_exponent"].assign(scale[24:34].as_signed())
    write = Write(fit("result_row"), out["result_data"], out["result_enable"], out["result_lanes"])
    (data,) = m.ram("vectors", ROWS, 32 * lanes, [fit("residual_row")], [write], parts=lanes)
    wires["residual_data"].assign(data)
    saturations = m.register("saturations", 32)
    saturations.drive((saturations + out["saturations"]).truncate(32))
    m.output("done", out["done"])
    m.output("ready", out["ready"])
    m.output("saturated", saturations)
    return design.text()


def placed(program: Program) -> Program:
    """The program with the places that a compile gives its adapters."""
    machine = program.machine
    shapes = {name: program.parameters[name].shape(machine) for name in products(program)}
    found = place_matrices(shapes, machine, program.residents)
    parameters = {
        name: replace(one, row=at.word, scale=at.scale, unit=at.unit)
        if (at := found.places.get(name)) is not None
        else one
        for name, one in program.parameters.items()
    }
    return replace(program, parameters=parameters, memories=found.memories)


class Bench:
    def __init__(self, found: Setting, engine: str = "rtl") -> None:
        self.program = placed(found.program)
        places = places_of(self.program)
        assert places is not None
        self.places = places
        self.model = AdapterModel(self.program, places)
        text = bench(self.model)
        self.chip: Model
        if engine == "rtl":
            self.chip = ArcModel(text, "bench", opt=0)
        else:
            self.chip = VerilatorModel(circt.to_verilog(text), "bench")
        self.lanes = self.program.machine.vector_lanes
        self.reset()
        rng = np.random.default_rng(3)
        for unit in range(self.program.machine.h_units):
            for name in ("codes", "scales"):
                memory = self.chip.memory(f"adapter/h_unit{unit}/{name}")
                if memory.ndim == 1:
                    bits = places.word_bits if name == "codes" else 16
                    memory[:] = rng.integers(0, 1 << min(bits, 62), memory.shape)
                else:
                    memory[:] = rng.integers(0, 256, memory.shape)
        for unit, words, scales in places.contents(found):
            for name, content in (("codes", words), ("scales", scales)):
                memory = self.chip.memory(f"adapter/h_unit{unit}/{name}")
                if name == "codes" and not found.contents:
                    continue
                if memory.ndim == 1 and content.ndim == 2:
                    size = memory.itemsize
                    full = np.zeros((len(content), size), np.uint8)
                    full[:, : content.shape[1]] = content
                    content = full.view(memory.dtype)[:, 0]
                memory[: len(content)] = content

    def reset(self) -> None:
        self.chip.set("rst", 1)
        self.chip.step()
        self.chip.set("rst", 0)

    def load(self, stream: LoadStream) -> None:
        for address, data in zip(stream.addresses, stream.data, strict=True):
            self.chip.set("load_enable", 1)
            self.chip.set("load_address", int(address))
            self.chip.set("load_data", int.from_bytes(data.tobytes(), "little"))
            self.chip.step()
        self.chip.set("load_enable", 0)

    def row(self, name: str) -> int:
        return self.program.buffers[name].row

    def fill(self, name: str, q: semantics.Quantized) -> None:
        """A quantised vector; what lies beyond is garbage."""
        rows = -(-len(q.codes) // self.lanes)
        full = np.random.default_rng(rows).integers(0, 1 << 16, rows * self.lanes)
        codes = q.codes
        if FORMATS[q.format].by_block:
            codes = self.fill_steps(name, q)
        full[: len(codes)] = codes
        words = self.chip.memory("quantised")[self.row(name) : self.row(name) + rows]
        image = full.astype(np.uint16).reshape(rows, self.lanes)
        words[:] = image.view(words.dtype).reshape(words.shape)
        scale = int(q.scale.mantissa[0]) | (int(q.scale.exponent[0]) & 1023) << 24
        self.chip.memory("scale")[self.row(name)] = scale

    def fill_steps(self, name: str, q: semantics.Quantized) -> Ints:
        """Exponents and steps with which codes stand for integers; the codes."""
        block, form = self.program.machine.block, FORMATS[q.format]
        whole = semantics.whole_blocks(q.codes, block).reshape(-1, block)
        codes, steps = whole.copy(), np.zeros(len(whole), np.int64)
        for number, integers in enumerate(whole):
            exponent, half, code = next(
                (exponent, half, integers // step)
                for exponent in range(15, -1, -1)
                for half in range(2 if form.steps > 1 else 1)
                for step in ((form.steps - half) << exponent,)
                if not (integers % step).any() and np.abs(integers // step).max() <= form.high
            )
            codes[number], steps[number] = code, exponent | half << 4
        per_row = self.lanes // block
        words = np.zeros((-(-len(steps) // per_row), per_row), np.int64)
        words.reshape(-1)[: len(steps)] = steps
        packed = (words << np.arange(per_row) * STEP_BITS).sum(-1)
        memory = self.chip.memory("steps")
        row = self.row(name)
        memory[row : row + len(packed)] = packed.reshape(-1, *memory.shape[1:])
        return codes.reshape(-1)[: len(q.codes)]

    def normed(self, x: semantics.Quantized, rng: np.random.Generator) -> semantics.Quantized:
        """A vector of the first product, with a factor of its norm where it has one."""
        does = self.program.blocks[0].instructions[0].does
        if not isinstance(does, AdapterMatvec) or does.norm is None:
            return x
        mantissa, exponent = int(rng.integers(1 << 23, 1 << 24)), int(rng.integers(22, 26))
        self.chip.memory("factors")[FACTOR_ROW] = mantissa | (exponent & 1023) << 24
        return semantics.with_norm(x, Scale(np.array([mantissa]), np.array([exponent])))

    def vector(self, name: str, value: Ints | None = None) -> Ints:
        """A fixed-point vector, after it was written if a value is given."""
        size = self.program.buffers[name].type.size
        rows = -(-size // self.lanes)
        words = self.chip.memory("vectors")[self.row(name) : self.row(name) + rows]
        raw = np.ascontiguousarray(word_bytes(np.ascontiguousarray(words), 4 * self.lanes))
        full = raw.view(np.int32).reshape(-1).copy()
        if value is not None:
            full[:size] = value
            words[:] = full.view(words.dtype).reshape(words.shape)
        return full[:size].astype(np.int64)

    def run(self, instruction: int, instance: int, rank: int = 0) -> None:
        """Executes an instruction; it takes as long as its formula says."""
        block = self.program.blocks[0]
        one = block.instructions[instruction]
        fields = adapter_model.encode(self.model, one, block.instances[instance])
        self.chip.step()
        inputs = {
            # Fields hold in the cycle of the start only.
            name: [value, (1 << self.chip.ports[name].width) - 1]
            for name, value in fields.items()
        }
        cycles = int(one.issue.duration(rank=rank))
        trace = self.chip.run(cycles, {**inputs, "start": [1, 0]})
        assert np.flatnonzero(trace.outputs["done"]).tolist() == [cycles - 1]


def random_matrix(rng: np.random.Generator, code: str, rows: int, columns: int) -> AdapterMatrix:
    if code == "fp8":
        t = rng.integers(-(448 << 17), 448 << 17, (rows, columns)) >> rng.integers(
            0, 16, (rows, columns)
        )
        codes = e4m3_encode(t, 8)
    else:
        codes = rng.integers(0, 3 if code == "ternary" else 1 << SLOT_BITS[code], (rows, columns))
    scales = rng.integers(-(1 << 15), 1 << 15, rows).astype(np.int16)
    # The largest and least there are.
    scales[0] = -(1 << 15)
    # Some results saturate, most do not.
    low = 14 if code == "fp8" else 8
    return AdapterMatrix(code, codes.astype(np.uint8), scales, int(rng.integers(low, low + 4)))


class Image(NamedTuple):
    rank: int
    a: AdapterMatrix
    b: AdapterMatrix


def image_of(rng: np.random.Generator, case: Case, rank: int) -> Image:
    code = case.machine.adapter
    a = random_matrix(rng, code, rank, case.columns)
    return Image(rank, a, random_matrix(rng, code, case.rows, rank))


def vector_of(
    rng: np.random.Generator, case: Case, size: int, alive: int | None = None
) -> semantics.Quantized:
    """A vector whose elements from `alive` on are 0; of blocks of any exponents and steps."""
    kind, fmt = case.kind(size), case.machine.activations
    if isinstance(kind, Quantized):
        if alive is None:
            return semantics.quantize(rng.integers(-(1 << 18), 1 << 18, size), fmt)
        x = np.zeros(size, np.int64)
        x[:alive] = rng.integers(-(1 << 20), 1 << 20, alive)
        return semantics.quantize(x, fmt, case.fraction)
    form, count = FORMATS[fmt], -(-size // kind.block)
    halves = rng.integers(0, 2, count) * (form.steps > 1)
    steps = (form.steps - halves) << rng.integers(0, 16, count)
    codes = rng.integers(form.low, form.high + 1, size)
    codes[:3] = form.high
    codes[alive:] = 0
    integers = codes * np.repeat(steps, kind.block)[:size]
    return semantics.Quantized(integers, semantics.unit_scale((size,), kind.fraction), fmt)


def result_of(
    x: semantics.Quantized, matrix: AdapterMatrix | Matrix, shift: int, frac: int, **more: Any
) -> Ints:
    """A product, requantised."""
    floor = semantics.slot_floor(shift) if isinstance(matrix, AdapterMatrix) else 0
    y = semantics.dot(x.codes[: matrix.columns], matrix, x.format, floor)
    return semantics.requantize(y, x.scale, matrix.exponent - floor, shift - floor, frac, **more)


def check_slots(case: Case, engine: str = "rtl") -> None:
    rng = np.random.default_rng(len(case.name))
    bench = Bench(setting(case), engine)
    machine = case.machine
    frac, code = case.fraction, machine.adapter
    counter = Saturations()
    # Before anything is loaded ranks are 0.
    loaded: dict[str, Image] = {}
    for rank in (None, *case.ranks, None):
        if rank is not None:
            # The second site has another rank, every other time none.
            ranks = {"layers.0.q_proj": rank, "layers.1.q_proj": case.rank - rank}
            loaded = {
                name: Image(r, random_matrix(rng, code, r, case.columns),
                            random_matrix(rng, code, case.rows, r))
                for name, r in ranks.items() if r
            }  # fmt: skip
            stream = bench.places.load_stream(loaded)
            assert len(stream) == bench.places.load_cycles(ranks)
            assert stream.data.shape == (len(stream), machine.load_bytes)
            assert len(set(stream.addresses.tolist())) == len(stream)
            bench.load(stream)
        elif loaded:
            loaded = {}
            stream = bench.places.load_stream({})
            assert len(stream) == bench.places.load_cycles({}) == 2
            bench.load(stream)
        for instance in range(2):
            image = loaded.get(f"layers.{instance}.q_proj")
            rank_here = image.rank if image else 0
            x = vector_of(rng, case, case.columns)
            bench.fill("x", x)
            x = bench.normed(x, rng)
            garbage = rng.integers(-(1 << 31), 1 << 31, case.rank)
            bench.vector("u", garbage)
            bench.run(0, instance, rank_here)
            u = np.zeros(case.rank, np.int64)
            if image:
                shift = bench.program.blocks[0].instructions[0].does.pre_shift
                u[:rank_here] = result_of(x, image.a, shift, frac, saturations=counter)
            np.testing.assert_array_equal(bench.vector("u"), u)

            # The next product takes a vector of its own: rows beyond the rank are 0.
            uq = vector_of(rng, case, case.rank, rank_here)
            bench.fill("uq", uq)
            base = rng.integers(-(1 << 31), 1 << 31, case.rows)
            bench.vector("base", base)
            bench.run(1, instance, rank_here)
            y = base
            if image:
                shift = bench.program.blocks[0].instructions[1].does.pre_shift
                y = result_of(uq, image.b, shift, frac, residual=base, saturations=counter)
            np.testing.assert_array_equal(bench.vector("y"), y)
            assert bench.chip.get("saturated") == counter.count
    assert counter.count > 0
    bench.chip.close()


def test_matrices_of_few_rows_lie_on_different_units() -> None:
    """So the cases before do what they say."""
    units = {
        case.name: {one.unit for one in placed(setting(case).program).parameters.values()}
        for case in CASES[-4:]
    }
    assert units == {"turned": {0, 4}, "other_beat": {0, 4}, "groups": {0, 8}, "scales": {0, 4}}


@pytest.mark.parametrize("case", [*CASES, *BLOCKED], ids=lambda case: case.name)
def test_slots(case: Case) -> None:
    check_slots(case)


def skip_without_verilator() -> None:
    try:
        compiler()
        verilator_root()
    except UserError as error:
        pytest.skip(str(error))


def test_verilator() -> None:
    skip_without_verilator()
    check_slots(CASES[1], "verilator")


def with_constant(found: Setting, case: Case, matrix: Matrix, shift: int) -> Setting:
    """The same with an adapter of the graph between the slots of the two sites."""
    program, machine = found.program, case.machine
    shape = MatrixShape.of((matrix.rows, matrix.columns), "int4", 4, matrix.group, zeros=False)
    parameter = Parameter("w", "lora", "rom.adapter", (matrix.rows, matrix.columns), "int4", 4,
                          matrix.group, matrix.exponent, 8)  # fmt: skip
    target = fixed("z", 200, matrix.rows, machine)
    one = product("w", "x", "z", None, shift, durations.adapter_product(machine, shape))
    block = program.blocks[0]
    program = replace(
        program,
        parameters={**program.parameters, "w": parameter},
        buffers={**program.buffers, "z": target},
        blocks=[replace(block, instructions=[*block.instructions, one])],
    )
    return Setting(program, {"w": matrix})


def constant_of(rng: np.random.Generator, case: Case) -> tuple[Matrix, int]:
    """An adapter of a graph, and the shift of its sums."""
    rows, group = 19, 2 * case.machine.attention_lanes
    groups = -(-case.columns // group)
    matrix = Matrix(
        pack(rng.integers(0, 16, (rows, case.columns)), 4), 4, case.columns, group, 8,
        rng.integers(-(1 << 15), 1 << 15, (rows, groups)).astype(np.int16), 23,
    )  # fmt: skip
    bits = semantics.accumulator_bits(4, case.columns, case.machine.activations)
    return matrix, semantics.pre_shift(bits)


def check_residents(case: Case, residents: int, engine: str = "rtl") -> None:
    """Loaded and switched to in any order, each is itself; adapters of the graph are in none."""
    frac = case.fraction
    rng = np.random.default_rng(residents)
    constant, constant_shift = constant_of(rng, case)
    plain = with_constant(setting(case), case, constant, constant_shift)
    found = Setting(replace(plain.program, residents=residents), plain.contents)
    bench = Bench(found, engine)
    places, block = bench.places, bench.program.blocks[0]
    alone = places_of(placed(plain.program))
    assert alone is not None
    assert places.depth == alone.depth + (residents - 1) * places.slot_words
    ports = bench.chip.ports
    held: dict[int, dict[str, Image]] = {}
    active: int | None = None

    def check(instance: int) -> None:
        images = {} if active is None else held[active]
        image = images.get(f"layers.{instance}.q_proj")
        rank = image.rank if image else 0
        x = vector_of(rng, case, case.columns)
        bench.fill("x", x)
        normed = bench.normed(x, rng)
        bench.run(0, instance, rank)
        u = np.zeros(case.rank, np.int64)
        if image:
            shift = block.instructions[0].does.pre_shift
            u[:rank] = result_of(normed, image.a, shift, frac)
        np.testing.assert_array_equal(bench.vector("u"), u)
        bench.run(2, instance)
        z = result_of(x, constant, constant_shift, 16)
        np.testing.assert_array_equal(bench.vector("z"), z)
        uq = vector_of(rng, case, case.rank, rank)
        bench.fill("uq", uq)
        base = rng.integers(-(1 << 31), 1 << 31, case.rows)
        bench.vector("base", base)
        bench.run(1, instance, rank)
        y = base
        if image:
            shift = block.instructions[1].does.pre_shift
            y = result_of(uq, image.b, shift, frac, residual=base)
        np.testing.assert_array_equal(bench.vector("y"), y)

    check(0)
    for turn in range(24):
        choice = rng.integers(5)
        if choice < 2 or not held:
            # Every resident is filled in the end, and some are replaced.
            active = turn % residents
            ranks = [int(rank) for rank in rng.integers(0, case.rank + 1, 2)]
            ranks[turn % 2] = ranks[turn % 2] or case.rank
            names = {f"layers.{i}.q_proj": rank for i, rank in enumerate(ranks)}
            held[active] = {name: image_of(rng, case, r) for name, r in names.items() if r}
            stream = places.load_stream(held[active], active)
            assert len(stream) == places.load_cycles(names)
            assert len(set(stream.addresses.tolist())) == len(stream)
            assert stream.addresses.max() < 1 << ports["load_address"].width
            bench.load(stream)
        elif choice == 2:
            active = None
            bench.load(places.switch_stream(None))
        elif choice == 3:
            # What was loaded stays.
            active = None
            bench.reset()
        else:
            active = int(rng.choice(list(held)))
            stream = places.switch_stream(active)
            assert len(stream) == 1
            bench.load(stream)
        check(int(rng.integers(2)))
    assert len(held) == residents
    assert len(places.load_stream({})) == places.load_cycles({}) == 1
    for wrong in (-1, residents + 1):
        with pytest.raises(CompilerBug):
            places.switch_stream(wrong)
    with pytest.raises(CompilerBug):
        places.load_stream({}, residents)
    bench.chip.close()


def with_scores(found: Setting, case: Case, shared: int) -> Setting:
    """The same with an attention in the queue, of so many query heads for a KV head."""
    program, machine = found.program, case.machine
    query = Buffer("q", Quantized(shared, 32, machine.activations), CODES, 200)
    does = QueryKey(
        query="q", output="scores", keys="k", score_scale=Real.of(1), pre_shift=0, window=0
    )
    issue = timeline.Issue("attention", {}, constant_cycles(1))
    block = Block("attention", False, [{}], [Instruction(does, [], issue, [], [])])
    program = replace(
        program,
        caches={"k": Cache("k", 9, 1, 32, machine.kv, 0, None, None)},
        buffers={**program.buffers, "q": query},
        blocks=[*program.blocks, block],
    )
    return found._replace(program=program)


OUTPUTS = 10
"""Products that follow one another; each has a result of its own."""


@pytest.mark.parametrize("shared", [0, 7])
@pytest.mark.parametrize("case", [*CASES, *BLOCKED], ids=lambda case: case.name)
def test_products_one_behind_the_other(case: Case, shared: int) -> None:
    """Of all kinds, in any order, each as soon as the unit takes it or a little later."""
    machine, frac = case.machine, case.fraction
    rng = np.random.default_rng(shared + len(case.name))
    constant, constant_shift = constant_of(rng, case)
    found = with_constant(setting(case), case, constant, constant_shift)
    if shared:
        found = with_scores(found, case, shared)
    program, row = found.program, 128
    buffers = dict(program.buffers)
    kinds = "uyz"
    for number in range(OUTPUTS):
        size = max(buffers[kind].type.size for kind in kinds)
        for kind in kinds:
            buffers[f"{kind}{number}"] = replace(buffers[kind], name=f"{kind}{number}", row=row)
        row += -(-size // machine.vector_lanes)
    assert row <= ROWS
    bench = Bench(found._replace(program=replace(program, buffers=buffers)))
    floor = durations.score_drain(machine, shared) if shared else 0
    a, b = (
        MatrixShape.of(dims, machine.adapter, SLOT_BITS[machine.adapter], 0, zeros=False)
        for dims in ((case.rank, case.columns), (case.rows, case.rank))
    )
    c = MatrixShape.of((constant.rows, case.columns), "int4", 4, constant.group, zeros=False)
    beats = [
        durations.slot_beat(machine, a, first=True, floor=floor),
        durations.slot_beat(machine, b, first=False, floor=floor),
        durations.adapter_beat(machine, c, floor=floor),
    ]
    for rank in (case.ranks[0], 1, 0, case.ranks[-1]):
        ranks = rank, case.rank - rank
        names = [f"layers.{instance}.q_proj" for instance in range(2)]
        images = {name: image_of(rng, case, r) for name, r in zip(names, ranks, strict=True) if r}
        bench.load(bench.places.load_stream(images))
        bench.chip.step()
        counter = Saturations()
        before = bench.chip.get("saturated")
        vectors = {name: vector_of(rng, case, size)
                   for name, size in (("x", case.columns), ("uq", case.rank))}  # fmt: skip
        for name, vector in vectors.items():
            bench.fill(name, vector)
        normed = bench.normed(vectors["x"], rng)
        base = rng.integers(-(1 << 31), 1 << 31, case.rows)
        bench.vector("base", base)
        memory = bench.chip.memory("vectors")
        memory[128:] = rng.integers(0, 1 << 8, memory[128:].shape)
        wanted = {}
        now, fed, ends, free = 0, list[tuple[int, dict[str, int]]](), list[int](), list[int]()
        gaps = int(rng.integers(0, 2))
        for number in range(OUTPUTS):
            kind, instance = int(rng.integers(3)), int(rng.integers(2))
            image, r = images.get(names[instance]), ranks[instance]
            one = bench.program.blocks[0].instructions[kind]
            output, shift = f"{kinds[kind]}{number}", one.does.pre_shift
            one = replace(one, does=replace(one.does, output=output))
            if kind == 2:
                y = result_of(vectors["x"], constant, constant_shift, 16, saturations=counter)
            elif kind == 1 and image:
                y = result_of(
                    vectors["uq"], image.b, shift, frac, residual=base, saturations=counter
                )
            elif kind == 1:
                y = base
            else:
                y = np.zeros(case.rank, np.int64)
                if image:
                    y[:r] = result_of(normed, image.a, shift, frac, saturations=counter)
            wanted[output] = y
            now += gaps * int(rng.integers(0, 5)) * int(rng.integers(0, 2))
            instances = bench.program.blocks[0].instances
            fed.append((now, adapter_model.encode(bench.model, one, instances[instance])))
            pace, duration = (int(formula(rank=r)) for formula in beats[kind])
            ends.append(now + duration)
            now += pace
            free.append(now)
        length = ends[-1] + 1
        inputs = {"start": np.zeros(length, np.int64)}
        for name in fed[0][1]:
            # Fields hold in the cycle of the start only.
            inputs[name] = rng.integers(0, 1 << bench.chip.ports[name].width, length)
        for cycle, fields in fed:
            inputs["start"][cycle] = 1
            for name, value in fields.items():
                inputs[name][cycle] = value
        expected = memory.copy()
        trace = bench.chip.run(length, {name: one.tolist() for name, one in inputs.items()})
        assert np.flatnonzero(trace.outputs["done"]).tolist() == [end - 1 for end in ends]
        ready = np.ones(length, np.int64)
        for (start, _), end in zip(fed, free, strict=True):
            ready[start + 1 : end] = 0
        np.testing.assert_array_equal(trace.outputs["ready"], ready)
        found_now = memory.copy()
        memory[:] = expected
        for name, y in wanted.items():
            bench.vector(name, y)
        # Nothing else is written.
        np.testing.assert_array_equal(found_now, memory)
        assert bench.chip.get("saturated") - before == counter.count
    bench.chip.close()


@pytest.mark.parametrize(
    ("case", "residents"), [(CASES[0], 2), (CASES[1], 3), (CASES[3], 4), (BLOCKED[3], 2)]
)
def test_residents(case: Case, residents: int) -> None:
    check_residents(case, residents)


def test_residents_on_verilator() -> None:
    skip_without_verilator()
    check_residents(CASES[1], 3, "verilator")


def test_one_resident_has_no_register() -> None:
    program = placed(setting(CASES[1]).program)
    one = places_of(program)
    assert one is not None
    text = bench(AdapterModel(program, one))
    assert "active" not in text
    with pytest.raises(CompilerBug):
        one.switch_stream(0)
    other = placed(replace(program, residents=2))
    several = places_of(other)
    assert several is not None and "active" in bench(AdapterModel(other, several))


def test_reset_switches_adapters_off() -> None:
    case = CASES[1]
    rng = np.random.default_rng(1)
    bench = Bench(setting(case))
    code = case.machine.adapter
    image = Image(3, random_matrix(rng, code, 3, case.columns),
                  random_matrix(rng, code, case.rows, 3))  # fmt: skip
    bench.load(bench.places.load_stream({"layers.1.q_proj": image}))
    bench.fill("x", vector_of(rng, case, case.columns))
    bench.run(0, 1, rank=3)
    assert bench.vector("u").any()
    bench.reset()
    bench.run(0, 1, rank=0)
    assert not bench.vector("u").any()


CONSTANT = [
    (geometry(8, 16, 16), "int4", 4, 32, 8, 70),
    (geometry(4, 8, 8, activations="int16", **SLOW), "int4", 4, 16, None, 45),
    (geometry(16, 8, 8, results_per_cycle=4, **FAST), "int8", 8, 128, 128, 33),
    (geometry(2, 4, 16, activations="fp8"), "ternary", 2, 8, 1, 20),
    (geometry(8, 16, 16, activations="half8", block=8), "int4", 4, 32, None, 75),
    (geometry(8, 8, 16, activations="mxint8", block=16), "int8", 8, 16, 128, 51),
]


@pytest.mark.parametrize(
    ("machine", "code", "bits", "group", "zero", "columns"), CONSTANT, ids=lambda v: str(v)[:8]
)
def test_adapters_of_the_graph(
    machine: Machine, code: str, bits: int, group: int, zero: int | None, columns: int
) -> None:
    """Group scales and zero points; all rows and columns, whatever the ranks are."""
    rng = np.random.default_rng(columns)
    rows, groups = 21, -(-columns // group)
    codes = rng.integers(0, 3 if code == "ternary" else 1 << bits, (rows, columns))
    zeros = zero if zero is not None else rng.integers(0, 1 << bits, (rows, groups))
    matrix = Matrix(
        pack(codes, bits), bits, columns, group,
        zeros if isinstance(zeros, int) else zeros.astype(np.uint8),
        rng.integers(-(1 << 15), 1 << 15, (rows, groups)).astype(np.int16), 23,
    )  # fmt: skip
    parameter = Parameter("w", "lora", "rom.adapter", (rows, columns), code, bits, group, 23, zero)
    shape = MatrixShape.of((rows, columns), code, bits, group, zeros=zero is None)
    fmt = machine.activations
    shift = semantics.pre_shift(semantics.accumulator_bits(bits, columns, fmt))
    case = Case("", machine, 1, columns, rows, ())
    buffers = [quantized("x", 3, columns, case), fixed("y", 9, rows, machine)]
    one = product("w", "x", "y", None, shift, durations.adapter_product(machine, shape))
    program = program_of(
        machine, parameters={"w": parameter}, sites={}, blocks=[Block("b", False, [{}], [one])],
        buffers={b.name: b for b in buffers},
    )  # fmt: skip
    bench = Bench(Setting(program, {"w": matrix}))
    for _ in range(3):
        x = vector_of(rng, case, columns)
        bench.fill("x", x)
        bench.run(0, 0)
        y = result_of(x, matrix, shift, 16)
        np.testing.assert_array_equal(bench.vector("y"), y)


def test_refusals() -> None:
    case = CASES[0]
    found = placed(setting(case).program)
    places = places_of(found)
    assert places is not None
    rng = np.random.default_rng(0)
    a, b = random_matrix(rng, "fp8", 17, 64), random_matrix(rng, "fp8", 64, 17)
    with pytest.raises(UserError, match="up to"):
        places.load_stream({"layers.0.q_proj": Image(17, a, b)})
    with pytest.raises(UserError, match=r"layers\.9"):
        places.load_stream({"layers.9.q_proj": Image(17, a, b)})
    for change, named in (
        ({"load_bytes": 3}, "load_bytes"),
        ({"load_bytes": 2}, "load_bytes"),
    ):
        with pytest.raises(UserError, match=named):
            places_of(replace(found, machine=replace(found.machine, **change)))
    one = found.blocks[0].instructions[0]
    one = replace(one, does=replace(one.does, bias="c"))
    with pytest.raises(UserError, match="bias"):
        adapter_model.encode(AdapterModel(found, places), one, found.blocks[0].instances[0])
    buffers = {**found.buffers, "u": replace(found.buffers["u"], element=4)}
    moved = AdapterModel(replace(found, buffers=buffers), places)
    one = found.blocks[0].instructions[0]
    with pytest.raises(UserError, match="a multiple of 16"):
        adapter_model.encode(moved, one, found.blocks[0].instances[0])
    assert places_of(replace(found, blocks=[])) is None
    with pytest.raises(UserError, match="does not fit the 2 bits of 'adapter_target'"):
        adapter_model.encode(AdapterModel(found, places, 2), one, found.blocks[0].instances[0])
    assert FORMATS["int8"].bits == 8
