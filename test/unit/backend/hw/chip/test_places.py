"""Each parameter, cache, adapter and value lies in the hardware where the module says.

Places are read from the text of the module, as a person would read them; bytes are looked up in the
contents of the hardware's memories, in the words of the load port, and in descriptors, by the rules
of docs/dialects/fabric.md and docs/hardware.md. `bench/places.py` does the same for more chips.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from xdsl.context import Context
from xdsl.dialects.builtin import Builtin, ModuleOp, SymbolRefAttr
from xdsl.parser import Parser

from intaglio.backend.compile import compile_model
from intaglio.backend.hw.chip.contents import rom_words
from intaglio.backend.hw.chip.layout import Layout, layout_of
from intaglio.backend.hw.units.adapter.layout import AdapterPlaces
from intaglio.backend.hw.units.matrix.plan import FIELDS as MATRIX_FIELDS
from intaglio.backend.hw.units.matrix.plan import l_unit_images
from intaglio.backend.images.adapter import SiteImage, encode_site
from intaglio.backend.images.read import Images
from intaglio.backend.program.program import Program, load_program
from intaglio.backend.program.types import Instruction
from intaglio.backend.stages import Options
from intaglio.dialects import fabric, hazards, rom
from intaglio.dialects.fabric import FABRIC, ConstantOp, EngraveOp, ReserveOp
from intaglio.dialects.isa.matrix import Matvec
from intaglio.dialects.isa.values import Quantized
from intaglio.dialects.isa.vector import Quantize, QuantizeBlocks, QuantizeHeads
from intaglio.dialects.program import PROGRAM, BlockOp, BufferOp, ProgramOp
from intaglio.dialects.rom import ROM

CASES = {
    "llama on roma-mini": ("llama", Options("roma-mini", adapter_rank=4, resident_adapters=2)),
    "qwen on hc1-mini": ("qwen", Options("hc1-mini", adapter_rank=3)),
    "phi on roma-mini": ("phi", Options("roma-mini", ("h_unit.load_bytes=8",), adapter_rank=3)),
    "hqq4 on hc1-mini": ("hqq4", Options("hc1-mini")),
    "ternary on tom-mini": ("ternary", Options("tom-mini", adapter_rank=2)),
    "ternary_tied on bitrom-mini": ("ternary_tied", Options("bitrom-mini", adapter_rank=2)),
}
"""Of them phi has matrices that begin at another H-Unit, and bitrom-mini external memory."""
SAMPLES = 40
"""Weights of a matrix that are looked up, beside its first and its last."""


@dataclass(frozen=True)
class Compiled:
    """A chip as text and as contents."""

    module: ModuleOp
    program: Program
    layout: Layout
    images: Images

    @staticmethod
    def of(out: Path, text: str | None = None) -> Compiled:
        context = Context()
        for dialect in (Builtin, ROM, FABRIC, PROGRAM):
            context.load_dialect(dialect)
        text = (out / "ir" / "program.mlir").read_text() if text is None else text
        module = Parser(context, text).parse_module()
        program = load_program(out)
        return Compiled(module, program, layout_of(program), Images(program, out))

    @cached_property
    def roms(self) -> dict[str, Any]:
        """Contents of the hardware's memories, by path; those of ROM that is logic too."""
        found = dict(rom_words(self.layout, self.images))
        if self.layout.matrix.logic:
            for one in l_unit_images(self.program, self.images, self.layout.matrix):
                path = f"matrix/tile{one.tile}/l_unit{one.l_unit}"
                found |= {f"{path}/codes": one.codes, f"{path}/scales": one.scales}
        return found

    def placed(self, kind: type) -> Iterator[Any]:
        return (op for op in self.module.ops if isinstance(op, kind))

    @cached_property
    def parameters(self) -> dict[str, rom.ParameterOp]:
        return {op.sym_name.data: op for op in self.placed(rom.ParameterOp)}


def name_of(symbol: SymbolRefAttr) -> str:
    return symbol.root_reference.data


def bits_at(words: Any, row: int, first: int, count: int) -> int:
    """`count` bits of a memory's word, from bit `first` on."""
    word = words[row]
    number = int.from_bytes(bytes(word), "little") if np.ndim(word) else int(word)
    return number >> first & (1 << count) - 1


def signed(number: int, bits: int) -> int:
    return number - (number >> bits - 1 << bits)


# --- what is engraved ---------------------------------------------------------------------------


def check_matrices(chip: Compiled, rng: np.random.Generator) -> int:
    """Code words and group scales, by the formula of docs/dialects/fabric.md."""
    machine, found = chip.program.machine, 0
    for op in chip.placed(EngraveOp):
        name = name_of(op.buffer)
        parameter = chip.program.parameters[name]
        shape = fabric.matrix_shape(chip.parameters[name].type)
        dense = parameter.codes is not None and not parameter.group and parameter.scales is None
        matrix = None if dense else chip.images.matrix(name)
        planes, group = shape.planes(machine), max(1, parameter.group)
        for piece in (attr.piece for attr in op.pieces):
            rows = rng.integers(piece.rows, size=SAMPLES)
            columns = rng.integers(shape.columns, size=SAMPLES)
            last = piece.rows - 1, shape.columns - 1
            words, split = piece.words(shape, machine), piece.split
            in_tile = machine.l_units // split
            in_step = piece.tiles * in_tile
            for n, k in [(0, 0), last, *zip(rows.tolist(), columns.tolist(), strict=True)]:
                step, rest = divmod(n, in_step)
                tile, slot = piece.first_tile + rest // in_tile, rest % in_tile
                if run := piece.run:
                    turn, rest = divmod(k // machine.lanes, split * run)
                    part, word = divmod(rest, run)
                    begins, step = (turn * split + part) * run, turn * piece.steps(machine) + step
                else:
                    part, word = divmod(k // machine.lanes, words)
                    begins = part * words
                path = f"matrix/tile{tile}/l_unit{slot * split + part}"
                at = piece.base + (step * (run or words) + word) * planes
                lane = k % machine.lanes
                digits = [
                    bits_at(chip.roms[f"{path}/codes"], at + p, lane * bits, bits)
                    for p in range(planes)
                    for bits in (machine.plane_bits,)
                ]
                row = piece.first_row + n
                if matrix is None:
                    wanted = int(chip.images.dense(name)[row, k])
                else:
                    wanted = int(matrix.unpack(np.array([row]))[0, k])
                if machine.cell == "ternary":
                    wanted -= (parameter.zero or 0) if matrix is not None else 0
                    assert all(one in (0, 1, 2) for one in digits)
                    weights = [(one == 1) - (one == 2) for one in digits]
                    value = sum(weight * 3**p for p, weight in enumerate(weights))
                else:
                    value = sum(one << machine.plane_bits * p for p, one in enumerate(digits))
                    value &= (1 << shape.bits) - 1
                    wanted &= (1 << shape.bits) - 1
                assert value == wanted, (name, row, k)
                found += 1
                if matrix is None or not (groups := piece.run_groups(shape, machine)):
                    continue
                first = begins // shape.words_per_group(machine)
                at = piece.scale_base + step * groups + k // group - first
                scale = bits_at(chip.roms[f"{path}/scales"], at, 0, 16)
                assert scale == int(matrix.scales[row, k // group]) & 0xFFFF, (name, row, k)
    return found


def check_constants(chip: Compiled) -> int:
    """Every number of every vector and table, in each of its forms."""
    lanes, words, found = chip.program.machine.vector_lanes, chip.roms["constants"], 0
    rom_ = np.ascontiguousarray(words).view("<i4").reshape(len(words), lanes)
    for op in chip.placed(ConstantOp):
        name, row = name_of(op.buffer), op.row.value.data
        values = np.asarray(chip.images.dense(name), np.int64)
        kind = "plain" if op.form is None else op.form.data
        period = 0 if op.period is None else op.period.value.data
        if kind in ("plain", "halves"):
            if kind == "halves":
                values = values[: chip.program.capacity]
            flat = values.reshape(-1)
            rows = -(-len(flat) // lanes)
            part = rom_[row : row + rows].reshape(-1)
            assert np.array_equal(part[: len(flat)], flat) and not part[len(flat) :].any()
        elif kind == "repeated":
            assert all(
                rom_[row, lane] == values.reshape(-1)[lane % period] for lane in range(lanes)
            )
        else:
            half = values.shape[1]
            rows = -(-2 * half // lanes)
            one = 1 << chip.program.parameters[name].exponent
            for position in range(min(len(values), chip.program.capacity)):
                part = rom_[row + position * rows :][:rows].reshape(-1)
                for lane, number in enumerate(part.tolist()):
                    at = lane % period if period < lanes else lane
                    angle, second = (at % half, at >= half)
                    if kind == "adjacent":
                        angle, second = at // 2, at % 2 == 1
                    still = 0 if op.negated is not None else one
                    wanted = int(values[position, angle]) if at < 2 * half else still
                    negative = op.negated is not None and not second and at < 2 * half
                    assert number == (-wanted if negative else wanted), (name, position, lane)
        found += 1
    return found


# --- what changes -------------------------------------------------------------------------------


def loaded(
    places: AdapterPlaces, sites: Mapping[str, SiteImage], resident: int
) -> tuple[np.ndarray, np.ndarray]:
    """What the load port leaves: bits [H-Unit, word, bits] and scales [H-Unit, place]."""
    machine, stream = places.machine, places.load_stream(sites, resident)
    word_bits = places.element_bits * machine.attention_lanes
    codes = np.zeros((machine.h_units, places.depth, word_bits), np.uint8)
    scales = np.zeros((machine.h_units, places.scale_depth), np.int16)
    width = 8 * machine.load_bytes
    parts = 1
    while parts * width < word_bits:
        parts *= 2
    units, scale_units = (
        min(machine.h_units, 1 << max(1, width // bits).bit_length() - 1)
        for bits in (word_bits, 16)
    )
    for address, data in zip(stream.addresses.tolist(), stream.data, strict=True):
        kind, low = address >> places.address_bits - 2, address & (1 << places.address_bits - 2) - 1
        bits = np.unpackbits(np.ascontiguousarray(data).view(np.uint8), bitorder="little")
        if kind == 0:
            rest, part = divmod(low, parts)
            word, group = divmod(rest, machine.h_units // units)
            size = word_bits // parts
            for unit in range(units):
                own = bits[unit * word_bits :][:size]
                codes[group * units + unit, word, part * size : (part + 1) * size] = own
        elif kind == 1:
            place, group = divmod(low, machine.h_units // scale_units)
            numbers = np.packbits(bits[: 16 * scale_units], bitorder="little").view("<i2")
            scales[group * scale_units : (group + 1) * scale_units, place] = numbers
    return codes, scales


def check_adapters(chip: Compiled, rng: np.random.Generator) -> int:
    """Every element and scale of a random adapter, of each resident."""
    if chip.layout.adapters is None:
        return 0
    machine, program, places = chip.program.machine, chip.program, chip.layout.adapters.places
    reserved = {name_of(op.buffer): op for op in chip.placed(ReserveOp)}
    stated = {op.memory.data: op for op in chip.placed(fabric.MemoryOp)}
    sites = {
        name: encode_site(
            rng.normal(size=(site.rank, site.columns)),
            rng.normal(size=(site.rows, site.rank)),
            program.parameters[site.a].code,
        )
        for name, site in program.sites.items()
    }
    found, bits, lanes = 0, places.element_bits, machine.attention_lanes
    for resident in range(program.residents):
        codes, scales = loaded(places, sites, resident)
        for name, image in sites.items():
            site = program.sites[name]
            for buffer, matrix in ((site.a, image.a), (site.b, image.b)):
                op = reserved[buffer]
                assert name_of(op.memory) == "adapters"
                further = [
                    resident * (0 if one.resident is None else one.resident.value.data)
                    for one in (stated["adapters"], stated["adapter_scales"])
                ]
                whole = chip.parameters[buffer].type.dims[1]
                words, first = -(-whole // lanes), 0 if op.unit is None else op.unit.value.data
                elements = matrix.codes if matrix.code == "fp8" else matrix.weights
                for n, row in enumerate(elements.astype(np.int64)):
                    block, unit = n // machine.h_units, first + n % machine.h_units
                    at = op.row.value.data + further[0] + block * words
                    own = codes[unit, at : at + words].reshape(words * lanes, bits)
                    wanted = row[:, None] >> np.arange(bits) & 1
                    assert np.array_equal(own[: len(row)], wanted), (buffer, n)
                    place = 0 if op.scale is None else op.scale.value.data
                    assert scales[unit, place + further[1] + block] == matrix.scales[n], (buffer, n)
                found += 1
    return found


def further(
    program: Program, one: Instruction, parts: Mapping[str, hazards.Bytes], name: str
) -> int:
    """Rows from a value's first one to the beat's; vectors and products have fields of
    their own for that."""
    lanes = program.machine.vector_lanes
    if one.queue in ("attention", "kv"):
        return parts.get(name, (0, 0))[0] // lanes
    if isinstance(one.does, QuantizeBlocks):
        return one.beat.first // lanes
    if not isinstance(one.does, Quantize | QuantizeHeads):
        return 0
    kind = program.value(one.does.output, Quantized)
    if kind.groups == 1:
        return one.beat.first // lanes
    return one.beat.first // kind.width * -(-kind.width // lanes)


def check_descriptors(chip: Compiled) -> tuple[int, int]:
    """The rows of values, caches, adapters and constants that units are told; how many of the
    buffers and of the caches were met."""
    (program,) = (op for op in chip.module.ops if isinstance(op, ProgramOp))
    block_of = {op.sym_name.data: op for op in program.body.block.ops if isinstance(op, BlockOp)}
    buffers = {op.sym_name.data: op for op in program.body.block.ops if isinstance(op, BufferOp)}
    reserved = {name_of(op.buffer): op for op in chip.placed(ReserveOp)}
    constants: dict[str, list[int]] = {}
    for op in chip.placed(ConstantOp):
        constants.setdefault(name_of(op.buffer), []).append(op.row.value.data)
    met: set[str] = set()
    caches: set[str] = set()
    for (_, queue), encoded in chip.layout.encoded.items():
        for one in encoded.descriptors:
            block, instance, number = one.at
            instruction = list(block_of[block].instructions)[number]
            bound = block_of[block].instances.data[instance].data
            fields = {key: int(v) for key, v in one.numbers.items() if not isinstance(v, str)}
            if queue == "matrix":
                # A field that is 0 everywhere has no wires.
                fields = dict.fromkeys(MATRIX_FIELDS, 0) | fields

            blocks = [one.name for one in chip.program.blocks]
            parts = chip.program.accesses[blocks.index(block)][number].parts
            beat = chip.program.blocks[blocks.index(block)].instructions[number]

            def row(symbol: SymbolRefAttr) -> int | None:
                op = buffers[name_of(symbol)]
                met.add(name_of(symbol))
                if op.row is None or op.memory is None:
                    return None
                return op.row.value.data

            uses = {
                role: name_of(bound[name_of(slot)])
                for role, slot in instruction.uses.data.items()
                if name_of(slot) in bound
            }
            adapter = queue == "attention" and fields.get("adapter")
            names = (
                {
                    "matrix": (("input_row", "residual_row"), "output_row"),
                    "vector": (("read0", "read1"), "write"),
                    "attention": (("source",), "target"),
                    "kv": (("source",), ""),
                }[queue]
                if queue != "power"
                else ((), "")
            )
            if adapter:
                names = ("adapter_source", "adapter_residual_row"), "adapter_target"
            if isinstance(beat.does, Matvec) and beat.does.norm is not None:
                names = ("input_row", "norm_row", "residual_row"), "output_row"
            for field, symbol in zip(names[0], instruction.reads, strict=False):
                if (wanted := row(symbol)) is not None:
                    if queue != "vector":
                        wanted += further(chip.program, beat, parts, name_of(symbol))
                    assert fields[field] == wanted, (queue, one.at, field)
            for symbol in instruction.writes:
                if (wanted := row(symbol)) is not None:
                    wanted += further(chip.program, beat, parts, name_of(symbol))
                    assert fields[names[1]] == wanted, (queue, one.at, names[1])
            for role, buffer in uses.items():
                op = reserved.get(buffer)
                slot = name_of(instruction.uses.data[role])
                head = parts.get(slot, (0, 0))[0]
                scale = 0 if op is None or op.scale is None else op.scale.value.data
                if op is not None and adapter:
                    assert fields["adapter_word"] == op.row.value.data
                    assert fields["adapter_scale"] == scale
                elif op is not None and queue in ("attention", "kv"):
                    caches.add(buffer)
                    word = op.row.value.data + head * fields["vector_words"]
                    assert fields["word"] == word, (queue, one.at)
                    at = scale + head * fields["scale_stride"]
                    assert fields["scale_row"] == at, (queue, one.at)
                    if op.external is not None:
                        beats = head * fields["block_beats"]
                        assert fields["external"] == op.external.value.data + beats
                elif op is not None and queue == "vector" and not fields["static_scale"]:
                    if instruction.opcode.data == "softmax":
                        assert fields["constant0"] == scale + head * fields["scale_stride"], one.at
                elif role in ("gamma", "cos"):
                    assert fields["constant0"] in constants[buffer], one.at
                elif role in ("beta", "sin"):
                    assert fields["constant1"] in constants[buffer], one.at
                elif role == "bias":
                    assert fields["bias_row"] in constants[buffer], one.at
    return len(met), len(caches)


def check_places(out: Path, seed: int = 0, text: str | None = None) -> dict[str, int]:
    """All of it for a compiled folder; how much was looked up, by kind.

    Args:
        out: the folder.
        seed: of the weights that are looked up.
        text: another text of the module.

    Raises:
        AssertionError: something lies elsewhere.
    """
    chip, rng = Compiled.of(out, text), np.random.default_rng(seed)
    values, caches = check_descriptors(chip)
    return {
        "weights": check_matrices(chip, rng),
        "constants": check_constants(chip),
        "adapters": check_adapters(chip, rng),
        "values": values,
        "caches": caches,
    }


@pytest.mark.parametrize("name", CASES)
def test_each_lies_where_the_module_says(
    name: str, model: Callable[[str], Path], tmp_path: Path
) -> None:
    file, options = CASES[name]
    options = Options(**{**vars(options), "context": 24, "emit": "program"})
    out = compile_model(model(file), tmp_path / "out", options).folder
    found = check_places(out)
    program = load_program(out)
    stored = [one.store for one in program.parameters.values() if not one.is_slot]
    matrices = [one for one in program.parameters.values() if one.pieces]
    assert found["weights"] == (SAMPLES + 2) * sum(len(one.pieces) for one in matrices)
    assert found["constants"] >= len(stored) - len(matrices)
    slots = sum(one.is_slot for one in program.parameters.values())
    assert found["adapters"] == slots * program.residents
    assert found["caches"] == len(program.caches) and found["values"] == len(program.buffers)


MOVED = {
    "matrix": r"(fabric\.engrave @\w*qkv\w* in \[#fabric\.piece<.*?, at )(\d+)",
    "scales": r"(fabric\.engrave @\w*qkv\w* in \[#fabric\.piece<.*?, at \d+, )(\d+)",
    "constant": r"(fabric\.constant @\w+layernorm\w* in @constants at )(\d+)",
    "cache": r"(fabric\.reserve @\S+ in @kv at )(\d+)",
    "scales of a cache": r"(fabric\.reserve @\S+ in @kv at \d+ {scale = )(\d+)",
    "adapter": r"(fabric\.reserve @\S+_B in @adapters at )(\d+)",
    "scales of an adapter": r"(fabric\.reserve @\S+_B in @adapters at \d+ {scale = )(\d+)",
    "value": r"(program\.buffer @\w+ in @vectors at )([1-9]\d*)",
    "codes": r"(program\.buffer @\w+ in @codes at )([1-9]\d*)",
}


@pytest.fixture(scope="module")
def llama(model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("moved") / "out"
    options = Options("roma-mini", context=24, adapter_rank=4, emit="program")
    return compile_model(model("llama"), out, options).folder


@pytest.mark.parametrize("what", MOVED)
def test_a_place_that_is_stated_otherwise_is_seen(what: str, llama: Path) -> None:
    """The hardware is as it was, and the text says a row more."""
    text = (llama / "ir" / "program.mlir").read_text()
    moved, count = re.subn(MOVED[what], lambda m: f"{m[1]}{int(m[2]) + 1}", text, count=1)
    assert count == 1
    with pytest.raises(AssertionError):
        check_places(llama, text=moved)
