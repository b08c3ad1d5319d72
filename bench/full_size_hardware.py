"""The hardware of a full-size chip: what it takes to write, and parts of it in simulation.

    python bench/full_size_hardware.py
                        write a Llama-3.2-3B shape in int4, compile it for roma, and do all parts
    python bench/full_size_hardware.py --out OUT --part tiles --tiles 4 --seed 1
                        take a compiled folder; simulate 4 random tiles beside tile 0
    python bench/full_size_hardware.py --chip tom --banks 12 --seed 1
                        write a BitNet-2B shape, compile it for tom, and write its hardware: all
                        banks as instances, the logic of 12 random ones of each kind
    python bench/full_size_hardware.py --chip hc1 --set activations=half8
                        words of two blocks: two layers of a Llama-3-8B shape

Part `emit` writes the IR, SystemVerilog and ROM contents of the whole chip (`emit_hardware`) in a
process of its own, and reports seconds, operations, bytes and peak memory over the process tree
(file-backed pages apart).

Part `tiles` simulates one module `matrix_unit` (64 L-Units with their ROMs) in the arc engine,
filled with the ROM contents of a tile. Every engraved matrix of the model is multiplied with a
random vector: the words that the broadcast network brings go in cycle by cycle, and the results of
the tile's rows are compared with `semantics.dot`, bit for bit. Then rows of the embedding table
that lie on the tile are read, and their words compared. Tile 0 is always simulated; the others are
drawn by the seed, and so are the vectors. At the end a bit of a ROM is flipped: it has to be found.

Part `array` simulates the module `matrix`, its control and all requantisers, with one random tile
of the 256: table read, layer 0, a random layer and the head, from descriptors to the vector memory,
in numbers and cycles.

`tom` has ROM of logic: a random sample of banks is written, half of them as truth tables and half
as the compiler's shared gates, and the other parts do not apply. `bench/rom_density.py --part full
--prove` has Yosys prove the two forms equal for banks of the same sample.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from bank_sample import Place, banks_by_kind, drawn
from decoder_model import BITNET_2B, LLAMA_3_2_3B, LLAMA_3_8B, write_decoder
from measured import compile_command, measured

from intaglio.backend.hw.chip.layout import Layout, bias_rows, layout_of
from intaglio.backend.hw.units.matrix.array import build_matrix
from intaglio.backend.hw.units.matrix.plan import (
    MatrixConfig,
    Use,
    encode,
    matrix_uses,
    tensor,
    tile_images,
)
from intaglio.backend.hw.units.matrix.tile import build_matrix_unit
from intaglio.backend.hw.wires.signal import Design
from intaglio.backend.images.read import Images
from intaglio.backend.program.program import Parameter, Program, load_program
from intaglio.dialects import semantics
from intaglio.dialects.codes import Matrix, decode
from intaglio.dialects.fixed_point import Saturations, Scale
from intaglio.dialects.formats import FORMATS
from intaglio.dialects.isa.matrix import Embed, Matvec
from intaglio.dialects.isa.values import Blocks, Coded, Fixed
from intaglio.dialects.machine import Machine
from intaglio.dialects.memories import STEP_BITS
from intaglio.dialects.tiling import Reads
from intaglio.runtime.engines.arc import ArcModel
from intaglio.runtime.engines.running import signed

Ints = npt.NDArray[np.int64]
LIMIT = 1.5e9
"""Bytes of anonymous and shared memory that writing the hardware may take."""


# The whole chip as files


def emit(out: Path, banks: int, seed: int) -> None:
    """Writes the hardware of a compiled folder, and what it took as JSON.

    Args:
        out: the folder.
        banks: of each kind whose logic is written, where ROM is logic.
        seed: they are drawn with.
    """
    from intaglio.backend.emit_hardware import emit_hardware

    program = load_program(out)
    sample: list[Place] | None = None
    shared: list[Place] | None = None
    if program.machine.rom == "logic":
        chosen = drawn(banks_by_kind(program), banks, seed).values()
        sample = [place for places in chosen for place in places]
        shared = sample[::2]
    begun = [("layout", time.perf_counter())]
    names = emit_hardware(
        program,
        Images(program, out),
        out,
        progress=lambda message: begun.append((message, time.perf_counter())),
        banks=sample,
        shared=shared,
    )
    begun.append(("", time.perf_counter()))
    seconds = {name: round(end - start, 1) for (name, start), (_, end) in pairwise(begun)}
    sizes = {name: (out / name).stat().st_size for name in names}
    (out / "hw" / "emitted.json").write_text(json.dumps({"seconds": seconds, "bytes": sizes}))


def operations(ir: Path) -> Counter[str]:
    """Operations of each module of the IR: one stands on each line of the text."""
    count: Counter[str] = Counter()
    module = ""
    with ir.open() as lines:
        for line in lines:
            text = line.strip()
            if text.startswith("hw.module"):
                module = text.split("@", 1)[1].split("(", 1)[0]
            if module and text and not text.startswith(("}", "//")):
                count[module] += 1
    return count


def report_emission(out: Path, banks: int, seed: int) -> None:
    """Writes the hardware in another process and says what it took."""
    command = [sys.executable, __file__, "--out", str(out), "--part", "emit-here"]
    command += ["--banks", str(banks), "--seed", str(seed)]
    cost = measured(command)
    emitted: dict[str, dict[str, float]] = json.loads((out / "hw" / "emitted.json").read_text())
    steps = ", ".join(f"{name} {value} s" for name, value in emitted["seconds"].items())
    print(f"hardware of the whole chip: {cost.seconds:.0f} s ({steps})")
    verdict = "within" if cost.anonymous < LIMIT else "ABOVE"
    print(
        f"  peak {cost.anonymous / 1e6:.0f} MB anonymous and shared, "
        f"{verdict} {LIMIT / 1e6:.0f} MB; {cost.file_backed / 1e6:.0f} MB file-backed"
    )
    for name, size in emitted["bytes"].items():
        print(f"  {name}: {size / 1e6:.1f} MB")
    count = operations(out / "hw" / "chip.mlir")
    largest = ", ".join(f"{name} {number:,}" for name, number in count.most_common(8))
    print(f"  {count.total():,} operations in {len(count)} modules: {largest}")


# One tile


@dataclass
class Tile:
    """A simulated `matrix_unit`: drives it as `build_matrix` does, and compares.

    Attributes:
        program: the program.
        images: its tensors.
        config: of the array.
        model: the running module.
        number: of the tile in its ROMs.
        cycles: run so far for products.
        results: row results compared so far.
        macs: weights that these rows have.
        words: words of table rows compared so far.
        wrong: what differed.
    """

    program: Program
    images: Images
    config: MatrixConfig
    model: ArcModel
    number: int = 0
    cycles: int = 0
    results: int = 0
    macs: int = 0
    words: int = 0
    wrong: list[str] = field(default_factory=list)
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def load(self, number: int) -> None:
        """Fills the ROMs with the contents of a tile."""
        self.number = number
        for image in tile_images(self.program, self.images, self.config, number):
            path = f"l_unit{image.l_unit}"
            self.model.memory(f"{path}/codes")[:] = image.codes
            self.model.memory(f"{path}/scales")[:] = image.scales

    def rows(self, parameter: Parameter) -> Ints:
        """The rows of a matrix that lie on the tile, by step and slot; -1 where there is none."""
        (piece,) = parameter.pieces
        machine = self.config.machine
        slots = piece.rows_per_tile(machine)
        first = piece.rows_per_step(machine) * np.arange(piece.steps(machine))[:, None]
        found = first + self.number * slots + np.arange(slots)
        return np.where(found < parameter.dims[0], found, -1)

    def _run(self, inputs: Mapping[str, npt.NDArray[Any]]) -> Mapping[str, npt.NDArray[Any]]:
        wanted = {name: value for name, value in inputs.items() if name in self.model.ports}
        count = len(next(iter(wanted.values())))
        return self.model.run(count, wanted).outputs

    def product(self, parameter: Parameter, codes: npt.NDArray[np.integer[Any]]) -> bool:
        """Multiplies a matrix with a vector of codes; whether all rows of the tile are right."""
        config, machine = self.config, self.config.machine
        (piece,) = parameter.pieces
        shape = parameter.rom_shape
        words, planes, passes = piece.words(shape, machine), shape.planes(machine), config.passes
        lanes, split = machine.lanes, piece.split
        used = words * planes * passes
        step_cycles = piece.step_cycles(shape, machine, Reads(passes))
        steps = piece.steps(machine)

        # Slot i: which step, word, plane and part; of a step the rest is idle.
        step, place = np.divmod(np.arange(steps * step_cycles), step_cycles)
        active = place < used
        place = np.minimum(place, used - 1)
        word, plane, part = place // (planes * passes), place // passes % planes, place % passes
        end = np.arange(steps * step_cycles) % step_cycles == step_cycles - 1

        # What slice s gets: word `s * words + word` of the padded vector, in parts.
        x = np.zeros(split * words * lanes, np.int64)
        x[: len(codes)] = np.asarray(decode(codes, machine.activations))
        bits = config.pass_bits
        last = passes - 1
        parts = [(x >> bits * a) & ((1 << bits) - 1) for a in range(last)] + [x >> bits * last]
        by_slice = np.stack(parts).reshape(passes, split, words, lanes)
        # What the parts stand for: times the steps of their blocks, where they have some.
        steps_of, multiplied, sums = None, codes, by_slice
        if config.steps:
            steps_of, factors = drawn_steps(self.rng, len(x), machine)
            multiplied = codes * factors[: len(codes)]
            if config.word_blocks > 1:
                sums = by_slice * factors.reshape(1, split, words, lanes)
        per_group = shape.words_per_group(machine)
        single = shape.group >= shape.columns

        read, late = machine.rom_read, machine.mac_pipeline
        total = len(step) + late + 4 + config.tile_beats

        def at(cycle: int, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
            """The values from a cycle on, 0 before and after."""
            shifted = np.zeros((total, *values.shape[1:]), values.dtype)
            shifted[cycle : cycle + len(values)] = values
            return shifted

        address = piece.base + (step * words + word) * planes + plane
        inputs: dict[str, npt.NDArray[Any]] = {
            "code_address": at(0, address),
            "first": at(read, (plane == 0).astype(np.int64)),
            "zero": np.full(total, parameter.zero or 0),
            "split": np.full(total, config.splits.index(split)),
            "plane": at(late - 1, plane),
            "part": at(late - 1, part),
            "valid": at(read, active.astype(np.int64)),
            "clear": at(late - 1, (place == 0).astype(np.int64)),
            "capture": at(late, end.astype(np.int64)),
        }
        groups = piece.slice_groups(shape, machine)
        for port in range(config.ports):
            s = port % split
            group = 0 if single else (s * words + word) // per_group - s * words // per_group
            inputs[f"scale_address{port}"] = at(0, piece.scale_base + step * groups + group)
            sent = by_slice[part, s, word]
            inputs[f"x{port}"] = at(read, _bus(sent, config.part_bits))
            inputs[f"xsum{port}"] = at(read, sums[part, s, word].sum(axis=-1))
            if steps_of is not None:
                cycle = read if config.word_blocks > 1 else late - 2
                # A word's own steps, or those of the block that it is part of.
                of_word = steps_of.reshape(split * words, -1)[s * words + word]
                count = config.word_blocks
                of_word = of_word[:, :: of_word.shape[1] // count]
                inputs[f"steps{port}"] = at(cycle, _bus(of_word, STEP_BITS))
        for beat in range(config.tile_beats):
            # A step's captured results stay until the next step's end.
            assert config.tile_beats <= step_cycles
            inputs["deliver"] = inputs.get("deliver", 0) | at(late + 1 + beat, end.astype(int))
            inputs["beat"] = inputs.get("beat", 0) | at(late + 1 + beat, beat * end)
        outputs = self._run(inputs)
        self.cycles += total

        rows = self.rows(parameter)
        known = rows[rows >= 0]
        matrix = self.images.matrix(parameter.name)
        expected = np.zeros(rows.shape, np.int64)
        expected[rows >= 0] = semantics.dot(
            multiplied, _rows_of(matrix, known), machine.activations
        )
        width = config.accumulator_bits
        ready = np.flatnonzero(end) + late + 2
        slots = rows.shape[1]
        seen = np.empty_like(expected)
        for slot in range(slots):
            beat, lane = divmod(slot, config.tile_lanes)
            seen[:, slot] = signed(outputs[f"result{lane}"][ready + beat], width)
        self.results += len(known)
        self.macs += len(known) * parameter.dims[1]
        right = (seen == expected)[rows >= 0]
        if not right.all():
            row = int(known[np.flatnonzero(~right)[0]])
            wrong = int((~right).sum())
            self.wrong.append(
                f"tile {self.number}, {parameter.name}: {wrong} of {right.size} rows differ, "
                f"the first is row {row}"
            )
        return bool(right.all())

    def notices_flipped_bit(self, parameter: Parameter, rng: np.random.Generator) -> bool:
        """Whether a product comes out wrong when a bit of a code is; restores it."""
        (piece,) = parameter.pieces
        machine, shape = self.config.machine, parameter.rom_shape
        depth = piece.code_words(shape, machine)
        memory = self.model.memory(f"l_unit{rng.integers(machine.l_units)}/codes")
        bytes_ = memory.view(np.uint8).reshape(len(memory), -1)
        place = piece.base + int(rng.integers(depth)), int(rng.integers(self.config.word_bits // 8))
        bytes_[place] ^= 1
        low, high = FORMATS[machine.activations].low, FORMATS[machine.activations].high
        codes = rng.integers(low, high + 1, parameter.dims[1])
        right = self.product(parameter, np.where(codes == 0, 1, codes))
        if not right:
            self.wrong.pop()
        bytes_[place] ^= 1
        return not right and self.product(parameter, codes)

    def fetch(self, table: Parameter, row: int) -> bool:
        """Reads a row of the embedding table; whether its words are right."""
        machine = self.config.machine
        (piece,) = table.pieces
        shape = table.rom_shape
        words, planes = piece.words(shape, machine), shape.planes(machine)
        tile, first_unit, step = piece.place_of(row, machine)
        assert tile == self.number
        slice_, place = np.divmod(np.arange(shape.words_per_row(machine) * planes), words * planes)
        read, count = machine.rom_read, len(place)
        total = count + read + 2

        def at(cycle: int, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
            shifted = np.zeros(total, np.int64)
            shifted[cycle : cycle + count] = values
            return shifted

        inputs = {
            "code_address": at(0, piece.base + step * words * planes + place),
            "fetch": at(read, np.ones(count, np.int64)),
            "unit": at(read, first_unit + slice_),
        }
        outputs = self._run(inputs)["word"]
        seen = outputs.reshape(total, -1)[read + 1 : read + 1 + count]
        bits = machine.plane_bits
        mask = (1 << bits) - 1
        codes = np.zeros(shape.words_per_row(machine) * machine.lanes, np.int64)
        if shape.scale_bits:
            codes[: shape.columns] = self.images.matrix(table.name).unpack(np.array([row]))[0]
        else:
            codes[: shape.columns] = self.images.dense(table.name)[row]
        of_plane = codes.reshape(-1, 1, machine.lanes) >> bits * np.arange(planes)[:, None] & mask
        expected = _bus(of_plane.reshape(-1, machine.lanes), bits)
        self.words += count
        if (seen == expected).all():
            return True
        self.wrong.append(f"tile {self.number}, row {row} of {table.name}: words differ")
        return False


def drawn_steps(rng: np.random.Generator, elements: int, machine: Machine) -> tuple[Ints, Ints]:
    """Exponents and steps of blocks: for each element the bits, and what its code is times."""
    blocks = -(-elements // machine.block)
    exponents, halves = rng.integers(0, 16, blocks), np.zeros(blocks, np.int64)
    steps = FORMATS[machine.activations].steps
    if steps > 1:
        halves = rng.integers(0, 2, blocks)
    factors = (steps - halves) << exponents
    each = [np.repeat(one, machine.block) for one in (exponents | halves << 4, factors)]
    return each[0][:elements], each[1][:elements]


def _bus(values: Ints, bits: int) -> npt.NDArray[np.uint64]:
    """Numbers [n, lanes] side by side, lane 0 lowest: uint64 [n, words]."""
    places = (values[..., None] >> np.arange(bits)) & 1
    flat = places.reshape(len(values), -1).astype(np.uint8)
    packed = np.packbits(flat, axis=1, bitorder="little")
    size = -(-packed.shape[1] // 8) * 8
    padded = np.zeros((len(values), size), np.uint8)
    padded[:, : packed.shape[1]] = packed
    return padded.view("<u8")


def _rows_of(matrix: Matrix, rows: Ints) -> Matrix:
    zero = matrix.zero if isinstance(matrix.zero, int) else matrix.zero[rows]
    offsets = None if matrix.offsets is None else matrix.offsets[rows]
    return replace(
        matrix, codes=matrix.codes[rows], scales=matrix.scales[rows], zero=zero, offsets=offsets
    )


def simulate_tiles(out: Path, count: int, seed: int) -> bool:
    """Simulates tile 0 and some random ones; whether all results are right."""
    program = load_program(out)
    images = Images(program, out)
    config = layout_of(program).matrix
    machine = config.machine
    rng = np.random.default_rng(seed)
    others = 1 + rng.choice(machine.tiles - 1, count, replace=False)
    chosen = [0, *sorted(int(tile) for tile in others)]

    begun = time.perf_counter()
    design = Design()
    build_matrix_unit(design, config).finish()
    text = design.text()
    built = time.perf_counter()
    model = ArcModel(text, "matrix_unit", cache=False)
    print(
        f"module matrix_unit: {machine.l_units} L-Units of {machine.lanes} lanes, ROM of each "
        f"{config.code_words:,} x {config.word_bits} and {config.scale_words:,} x "
        f"{config.scale_bits} bits; IR in {built - begun:.1f} s, "
        f"arc model in {time.perf_counter() - built:.1f} s"
    )

    products: dict[str, Parameter] = {}
    tables: dict[str, Parameter] = {}
    for use in matrix_uses(program):
        name = tensor(use)
        found = tables if isinstance(use.does, Embed) else products
        found[name] = program.parameters[name]
    print(
        f"sample: seed {seed}, tiles {', '.join(map(str, chosen))}; on each all {len(products)} "
        f"matrices with a random vector, and 16 random rows of {', '.join(tables) or 'no table'}"
    )
    tile = Tile(program, images, config, model)
    fmt = FORMATS[machine.activations]
    for number in chosen:
        start = time.perf_counter()
        tile.load(number)
        loaded = time.perf_counter()
        before = (tile.cycles, tile.results, tile.macs, tile.words, len(tile.wrong))
        for parameter in products.values():
            codes = rng.integers(fmt.low, fmt.high + 1, parameter.dims[1])
            tile.product(parameter, codes)
        for table in tables.values():
            rows = tile.rows(table)
            for row in rng.choice(rows[rows >= 0], 16, replace=False):
                tile.fetch(table, int(row))
        after = (tile.cycles, tile.results, tile.macs, tile.words, len(tile.wrong))
        cycles, results, macs, words, wrong = (b - a for a, b in zip(before, after, strict=True))
        seconds = time.perf_counter() - loaded
        verdict = "EQUAL" if not wrong else f"{wrong} DIFFER"
        print(
            f"  tile {number}: contents in {loaded - start:.1f} s; {results:,} row results "
            f"({macs / 1e6:.1f} million weights), {words:,} table words, {cycles:,} cycles in "
            f"{seconds:.1f} s: {verdict}",
            flush=True,
        )
    for line in tile.wrong[:20]:
        print(f"  {line}")
    found = tile.notices_flipped_bit(next(iter(products.values())), rng)
    print(f"  a flipped ROM bit on the last tile: {'found' if found else 'NOT FOUND'}")
    print(
        f"{tile.results:,} row results and {tile.words:,} table words of {len(chosen)} tiles: "
        + ("all equal to semantics.dot and the table" if not tile.wrong else "NOT all equal")
    )
    return found and not tile.wrong


# The array with one tile


@dataclass
class Array:
    """A simulated `matrix` array that has one tile: feed, control and requantisers with it.

    The memories around it are played: a first run with random data shows the addresses, a second
    one gets what lies there a cycle later. Control does not depend on data.

    Attributes:
        layout: of the program.
        images: its tensors.
        model: the running module.
        tile: its number.
        rng: draws the operands.
        cycles: run so far, of the second runs.
        wrong: what differed.
    """

    layout: Layout
    images: Images
    model: ArcModel
    tile: int
    rng: np.random.Generator
    cycles: int = 0
    wrong: list[str] = field(default_factory=list)

    def execute(self, use: Use) -> bool:
        """Runs a beat; whether it ends in its cycle and writes the right numbers."""
        program, config, rng = self.layout.program, self.layout.matrix, self.rng
        instruction, instance = use
        lanes = program.machine.vector_lanes
        fields = encode(program, instruction, instance, config, bias_rows(program))
        duration = int(instruction.issue.duration(tokens=1, rank=0))
        inputs: dict[str, npt.NDArray[Any]] = {}
        for name, value in {**fields, "start": 1}.items():
            # The descriptor is valid in the cycle of `start` alone.
            inputs[name] = np.zeros(duration, np.int64)
            inputs[name][0] = value
        counter = Saturations()
        memories: dict[str, tuple[int, npt.NDArray[np.uint8]]] = {}
        parameter = program.parameters[tensor(use)]
        written = program.buffers[instruction.writes[0]].type
        assert isinstance(written, Fixed)
        if isinstance(use.does, Embed):
            token = int(rng.choice(_rows_on(parameter, config, self.tile)))
            inputs["token"] = np.zeros(duration, np.int64)
            inputs["token"][0] = token
            row = self.images.matrix(parameter.name).values(np.array([token]))[0]
            expected = semantics.embed(
                row, parameter.exponent, written.fraction, saturations=counter
            )
            begin, end = 0, len(expected)
        else:
            begin, elements = instruction.beat.of(parameter.dims[0])
            end = begin + elements
            expected = self._operands(
                use, parameter, inputs, memories, written.fraction, slice(begin, end), counter
            )
        addresses = self.model.run(duration, inputs).outputs
        for port, (first, rows) in memories.items():
            at = addresses[f"{port}_address"].astype(np.int64) - first
            data = rng.integers(0, 256, (duration, rows.shape[1])).astype(np.uint8)
            there = np.flatnonzero((at[:-1] >= 0) & (at[:-1] < len(rows)))
            data[there + 1] = rows[at[there]]
            inputs[f"{port}_data"] = data.view("<u8")
        outputs = self.model.run(duration, inputs).outputs
        self.cycles += duration

        done = np.flatnonzero(outputs["done"]).tolist()
        first = self.layout.row_of(instruction.writes[0])
        found = np.zeros((-(-end // lanes), lanes), np.int64)
        count = np.zeros_like(found)
        for cycle in np.flatnonzero(outputs["write_enable"]):
            mask = outputs["write_mask"][cycle].view(np.uint8)
            written = np.unpackbits(mask, bitorder="little").astype(bool)
            where = int(outputs["write_address"][cycle]) - first
            found[where, written] = outputs["write_data"][cycle].view("<i4")[written]
            count[where] += written
        ours = np.arange(count.size)
        problems = [
            *(["the cycle of its end"] if done != [duration - 1] else []),
            *(["numbers"] if (found.reshape(-1)[begin:end] != expected).any() else []),
            *(
                ["places written"]
                if (count.reshape(-1) != ((begin <= ours) & (ours < end))).any()
                else []
            ),
            *(["saturations"] if int(outputs["saturations"].sum()) != counter.count else []),
        ]
        self.wrong += [f"{instruction.opcode} of {parameter.name}: {one}" for one in problems]
        return not problems

    def _operands(
        self,
        use: Use,
        parameter: Parameter,
        inputs: dict[str, npt.NDArray[Any]],
        memories: dict[str, tuple[int, npt.NDArray[np.uint8]]],
        fraction: int,
        part: slice,
        counter: Saturations,
    ) -> Ints:
        """Random operands of a `matvec`; what a part of it gives when the other tiles deliver 0."""
        program, config, rng = self.layout.program, self.layout.matrix, self.rng
        duration = len(inputs["start"])
        machine, instruction, does = program.machine, use.instruction, use.instruction.does
        assert isinstance(does, Matvec)
        rows, columns = parameter.dims
        fmt = FORMATS[machine.activations]
        codes = rng.integers(fmt.low, fmt.high + 1, columns)
        content = _memory_rows(codes, f"<i{fmt.bits // 8}", machine.vector_lanes)
        first = self.layout.row_of(instruction.reads[0])
        memories |= {f"input{port}": (first, content) for port in range(config.input_ports)}
        multiplied = codes
        if config.steps:
            lanes = machine.vector_lanes
            steps, factors = drawn_steps(rng, -(-columns // lanes) * lanes, machine)
            multiplied = codes * factors[:columns]
            rows_of = _bus(steps.reshape(-1, lanes)[:, :: machine.block], STEP_BITS)
            content = rows_of.view(np.uint8).reshape(len(rows_of), -1)
            memories |= {f"steps{port}": (first, content) for port in range(config.step_ports)}
        mine = _rows_on(parameter, config, self.tile)
        matrix = self.images.matrix(parameter.name)
        y = np.zeros(rows, np.int64)
        y[mine] = semantics.dot(multiplied, _rows_of(matrix, mine), machine.activations)
        # So that most results fit, some do not.
        mantissa = int(rng.integers(1 << 23, 1 << 24))
        exponent = int(np.abs(y).max()).bit_length() + 24 + fraction - 31 - matrix.exponent
        exponent += int(rng.integers(-1, 4))
        kind = program.value(does.input, Coded)
        unit = kind.fraction if isinstance(kind, Blocks) else 0
        name = "scale" if does.norm is None else "norm"
        if isinstance(kind, Blocks) and does.norm is None:
            mantissa, exponent = 1 << 23, 23 + unit
        inputs[f"{name}_mantissa"] = np.full(duration, mantissa)
        inputs[f"{name}_exponent"] = np.full(duration, exponent - unit)
        residual = None
        if does.residual is not None:
            residual = rng.integers(-(1 << 31), 1 << 31, rows)
            place = self.layout.row_of(does.residual)
            memories["residual"] = place, _memory_rows(residual, "<i4", machine.vector_lanes)
        return semantics.requantize(
            y[part],
            Scale(np.array(mantissa), np.array(exponent)),
            matrix.exponent,
            does.pre_shift,
            fraction,
            None,
            None if residual is None else residual[part],
            counter,
        )


def _memory_rows(values: Ints, dtype: str, lanes: int) -> npt.NDArray[np.uint8]:
    """A vector as rows of a memory, in bytes."""
    full = np.zeros(-(-len(values) // lanes) * lanes, dtype)
    full[: len(values)] = values.astype(dtype)
    return full.reshape(-1, lanes).view(np.uint8)


def _rows_on(parameter: Parameter, config: MatrixConfig, tile: int) -> Ints:
    """The rows of a matrix that lie on a tile."""
    (piece,) = parameter.pieces
    machine = config.machine
    slots = piece.rows_per_tile(machine)
    first = piece.rows_per_step(machine) * np.arange(piece.steps(machine))[:, None]
    rows = (first + tile * slots + np.arange(slots)).reshape(-1)
    return rows[rows < parameter.dims[0]]


def simulate_array(out: Path, seed: int) -> bool:
    """Simulates instructions on an array with one random tile; whether all is right."""
    program = load_program(out)
    images = Images(program, out)
    layout = layout_of(program)
    rng = np.random.default_rng(seed)
    tile = int(rng.integers(program.machine.tiles))
    begun = time.perf_counter()
    design = Design()
    build_matrix(design, layout.matrix, tiles=[tile])
    text = design.text()
    built = time.perf_counter()
    model = ArcModel(text, "matrix", opt=0)
    print(
        f"module matrix with tile {tile} alone, {program.machine.vector_lanes} requantisers: IR in "
        f"{built - begun:.1f} s, arc model in {time.perf_counter() - built:.1f} s"
    )
    for image in tile_images(program, images, layout.matrix, tile):
        path = f"tile{tile}/l_unit{image.l_unit}"
        model.memory(f"{path}/codes")[:] = image.codes
        model.memory(f"{path}/scales")[:] = image.scales
    model.set("rst", 1)
    model.step(2)
    model.set("rst", 0)
    array = Array(layout, images, model, tile, rng)
    layers = max(len(block.instances) for block in program.blocks)
    layer = int(rng.integers(1, layers))
    sample = [
        Use(instruction, block.instances[instance])
        for block in program.blocks
        for instance in ((0,) if len(block.instances) == 1 else (0, layer))
        for instruction in block.instructions
        if isinstance(instruction.does, Embed | Matvec)
    ]
    start = time.perf_counter()
    right = [array.execute(use) for use in sample]
    beats = Counter(tensor(use) for use in sample)
    names = ", ".join(f"{name} ({beats[name]} beats)" for name in beats)
    print(f"  sample: seed {seed}, layers 0 and {layer}: {names}")
    for line in array.wrong[:20]:
        print(f"  differs: {line}")
    print(
        f"  {sum(right)} of {len(sample)} beats equal semantics, requantised and with "
        f"residual, and end in their cycle; {array.cycles:,} cycles in "
        f"{time.perf_counter() - start:.1f} s"
    )
    return all(right)


SHAPES = {
    "roma": replace(LLAMA_3_2_3B, bits=4, block=128),
    "tom": BITNET_2B,
    "hc1": replace(LLAMA_3_8B, layers=2, vocabulary=16384, block=128, tied=True),
}
"""What is compiled for a chip."""


def prepare(work: Path, chip: str, settings: Sequence[str] = ()) -> Path:
    """The compiled folder, made when it is not there."""
    name = "_".join(("out", *settings))
    model, out = work / chip / "model" / "model.onnx", work / chip / name
    if not model.is_file():
        print(f"writing {model}")
        write_decoder(model.parent, SHAPES[chip])
    if not (out / "program.json").is_file():
        subprocess.run(compile_command(model, out, chip, 1024, settings), check=True)
    return out


def main() -> None:
    """Runs what the arguments ask for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="a compiled folder")
    parser.add_argument("--chip", choices=tuple(SHAPES), default="roma", help="without --out")
    parser.add_argument("--set", action="append", default=[], help="of the compile")
    parser.add_argument("--work", type=Path, default=Path("build/full_size_hardware"))
    parser.add_argument(
        "--part", choices=("emit", "tiles", "array", "all", "emit-here"), default="all"
    )
    parser.add_argument("--tiles", type=int, default=6, help="random tiles beside tile 0")
    parser.add_argument(
        "--banks", type=int, default=12, help="of each kind, where ROM is logic: those written"
    )
    parser.add_argument("--seed", type=int, default=2026)
    arguments = parser.parse_args()
    out = arguments.out or prepare(arguments.work, arguments.chip, arguments.set)
    if arguments.part == "emit-here":
        emit(out, arguments.banks, arguments.seed)
        return
    if arguments.part in ("emit", "all"):
        report_emission(out, arguments.banks, arguments.seed)
    if load_program(out).machine.rom == "logic":
        return
    right = True
    if arguments.part in ("tiles", "all"):
        right &= simulate_tiles(out, arguments.tiles, arguments.seed)
    if arguments.part in ("array", "all"):
        right &= simulate_array(out, arguments.seed)
    if not right:
        sys.exit(1)


if __name__ == "__main__":
    main()
