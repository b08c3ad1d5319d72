"""The attention unit against the semantics, bit for bit, and against the durations, to the cycle.

A bench gives the unit the memories that it has outside: ROMs for what it reads, which the test
fills, RAMs for what it writes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from intaglio.backend.hw.units.attention import kv
from intaglio.backend.hw.units.attention import unit as attention
from intaglio.backend.hw.units.attention.sizes import AttentionModel
from intaglio.backend.hw.wires.signal import Design, Signal, Write, cat
from intaglio.backend.program.program import Block, Buffer, Cache, Instruction, Program
from intaglio.backend.target.target import load_target
from intaglio.dialects import semantics, timeline
from intaglio.dialects.codes import FORMATS
from intaglio.dialects.errors import UserError
from intaglio.dialects.fixed_point import Real, Saturations, Scale, multiply
from intaglio.dialects.formula import Formula
from intaglio.dialects.h_units import CacheShape
from intaglio.dialects.isa import values
from intaglio.dialects.isa.attention import QueryKey, WeightedSum
from intaglio.dialects.isa.cache import Append
from intaglio.dialects.isa.instruction import Instruction as Does
from intaglio.dialects.machine import Machine
from intaglio.dialects.memories import memory_of
from intaglio.lowering.place.sram import place_caches
from intaglio.lowering.schedule import durations
from intaglio.runtime.engines.arc import ArcModel

MINI = load_target("roma-mini").machine()
WIDE = {"activations": "int16", "kv": "int16", "probabilities": "uint16"}
FAST = {"broadcast": 2, "attention_pipeline": 2, "reduce": 1, "requantise": 1, "table_lookup": 1}
SLOW = {
    "broadcast": 9,
    "attention_pipeline": 11,
    "reduce": 12,
    "requantise": 10,
    "table_lookup": 9,
    "kv_write": 4,
}


@dataclass(frozen=True)
class Case:
    """An attention of a model, on a machine."""

    name: str
    machine: Machine
    heads: int
    kv_heads: int
    width: int
    capacity: int
    window: int = 0
    static: bool = False
    cap: bool = False
    fraction: int = 16
    factor: float = 2e-3


def geometry(h_units: int, attention_lanes: int, vector_lanes: int, **more: Any) -> Machine:
    given = {"results_per_cycle": vector_lanes, **more}
    return replace(
        MINI,
        h_units=h_units,
        attention_lanes=attention_lanes,
        vector_lanes=vector_lanes,
        **given,
    )


CASES = [
    Case("mini", MINI, 4, 2, 32, 40),
    Case("mqa_window", geometry(4, 32, 16, **FAST), 3, 1, 16, 21, window=6, factor=1500),
    Case("wide_tiles", geometry(8, 8, 4, kv_port_bytes=4, **WIDE), 2, 2, 16, 27),
    Case("fp8_cap", geometry(4, 8, 8, kv_port_bytes=4, activations="fp8", kv="fp8"), 4, 2, 16, 19,
         static=True, cap=True),
    Case("int16_kv_window", geometry(2, 8, 32, kv_port_bytes=8, kv="int16", **SLOW), 3, 1, 32, 13,
         window=3, fraction=12),
    Case("int16_query", geometry(4, 32, 8, query_parallel=1, kv_port_bytes=8, activations="int16",
         probabilities="uint16"), 4, 2, 16, 40, window=9, static=True),
    Case("more_h_units", geometry(16, 16, 16, tiles=10, l_units=16, results_per_cycle=4), 4, 2,
         32, 41),
    Case("fewer_h_units", geometry(4, 8, 32, tiles=32, results_per_cycle=2, kv_port_bytes=8), 3, 1,
         16, 23, window=7),
    # External memory: rows wider than an H-Unit's word and faster than the array; as wide; much
    # narrower, also than the KV port.
    Case("external", geometry(4, 8, 8, kv_port_bytes=4, kv_on_die=8, external_bytes=16,
         external_latency=23), 4, 2, 16, 29),
    Case("external_window", geometry(4, 16, 8, kv_port_bytes=16, kv_on_die=4, external_bytes=16,
         external_latency=1, **WIDE, **FAST), 3, 1, 32, 30, window=9),
    Case("external_narrow", geometry(8, 16, 16, kv_port_bytes=16, kv_on_die=16, external_bytes=4,
         external_latency=40, results_per_cycle=4, kv="fp8"), 4, 2, 32, 45, static=True),
]  # fmt: skip


def program_of(case: Case) -> Program:
    machine = case.machine
    static = (Real.of(1 / 60), Real.of(60)) if case.static else (None, None)
    shape_of = CacheShape(
        machine, case.capacity, case.kv_heads, case.width, machine.kv, case.static
    )
    places, chip = place_caches({"v": shape_of, "k": shape_of}, machine)
    caches = {
        name: Cache(
            name, case.capacity, case.kv_heads, case.width, machine.kv, *places[name], *static
        )
        for name in ("k", "v")
    }

    def quantized(groups: int, fmt: str) -> values.Quantized:
        return values.Quantized(groups, case.width, fmt)

    def buffer(name: str, first_row: int, kind: values.Value) -> Buffer:
        return Buffer(name, kind, memory_of(kind), first_row)

    buffers = [
        buffer("q", 3, quantized(case.heads, machine.activations)),
        buffer("kq", 1 + 200, quantized(case.kv_heads, machine.kv)),
        buffer("vq", 300, quantized(case.kv_heads, machine.kv)),
        buffer("scores", 5, values.Scores(case.heads, 16)),
        buffer("p", 9, values.Probabilities(case.heads, machine.probabilities)),
        buffer("y", 2, values.Fixed(case.heads * case.width, case.fraction)),
    ]
    shape = (machine, case.heads, case.kv_heads, case.width, case.window, machine.kv)
    dot_bits = semantics.query_key_bits(case.width, machine.activations, machine.kv)
    sum_bits = semantics.weighted_sum_bits(case.capacity, machine.probabilities, machine.kv)
    inverse, cap, log2e = (Real.of(value) for value in (1 / 3.0, 3.0, 1.4427))
    scores = QueryKey(
        query="q",
        output="scores",
        keys="keys_slot",
        score_scale=Real.of(case.factor),
        pre_shift=semantics.pre_shift(dot_bits),
        window=case.window,
        **{"cap": cap, "cap_inverse": inverse, "log2e": log2e} if case.cap else {},
    )
    sums = WeightedSum(
        probabilities="p",
        output="y",
        values="values_slot",
        pre_shift=semantics.pre_shift(sum_bits),
        window=case.window,
    )
    bytes_ = case.width * FORMATS[machine.kv].bits // 8 + (0 if case.static else 4)

    append = durations.append(machine, case.kv_heads, bytes_)
    found: list[tuple[Does[str], Formula]] = [
        (Append(input="kq", cache="keys_slot"), append),
        (Append(input="vq", cache="values_slot"), append),
        (scores, durations.query_key(*shape)),
        (sums, durations.weighted_sum(*shape)),
    ]
    instructions = [
        Instruction(does, [], timeline.Issue(does.queue, {}, duration), [], [])
        for does, duration in found
    ]
    block = Block("layer", False, [{"keys_slot": "k", "values_slot": "v"}], instructions)
    return Program(
        machine=machine,
        name=case.name,
        vocabulary=1,
        parameters={},
        caches=caches,
        memories=chip,
        buffers={b.name: b for b in buffers},
        blocks=[block],
        positions=[],
        domains={},
        sites={},
        logits="y",
        token="y",
    )


ROWS = 512


def bench(model: AttentionModel) -> str:
    """The unit with memories around it: ROMs for what it reads, RAMs for what it writes."""
    design = Design()
    unit = attention.attention_unit(design, model)
    m = design.module("bench")
    lanes = model.machine.vector_lanes
    given: dict[str, Signal] = {}
    wires: dict[str, Any] = {}
    for port in unit.ports:
        if port.output or port.name in ("clk", "rst"):
            continue
        memory = port.name.endswith(("_data", "_mantissa", "_exponent", "_total"))
        if memory and not port.name.startswith("attention_"):
            given[port.name] = wires[port.name] = m.wire(port.name, port.width, port.signed)
        else:
            given[port.name] = m.input(port.name, port.width, port.signed)
    out = m.instance("attention", unit, given)

    def fit(name: str) -> Signal:
        return out[name].truncate(9)

    rows = [name for name in out if name.endswith("_row")]
    for memory, users in (("quantised", ("query", "append")), ("probabilities", ("probability",))):
        names = [n for n in rows if n.rstrip("_row").rstrip("0123456789") in users]
        names = [n for n in names if n[: -len("_row")][-1].isdigit()]
        read = m.ram(memory, ROWS, 16 * lanes, [fit(n) for n in names], [])
        for name, data in zip(names, read, strict=True):
            wires[name[: -len("_row")] + "_data"].assign(data)
    users = ("query", "append")
    read = m.ram("quantised_scales", ROWS, 64, [fit(f"{u}_group") for u in users], [])
    for user, data in zip(users, read, strict=True):
        wires[f"{user}_mantissa"].assign(data[:24])
        wires[f"{user}_exponent"].assign(data[24:34].as_signed())
    (scale,) = m.ram("head_scale", ROWS, 64, [fit("head_row")], [])
    (total,) = m.ram("head_totals", ROWS, 64, [fit("head_row")], [])
    wires["head_mantissa"].assign(scale[:24])
    wires["head_exponent"].assign(scale[24:34].as_signed())
    wires["head_total"].assign(total[:40])
    for name, user in (("scores", "score"), ("results", "result")):
        write = Write(fit(f"{user}_row"), out[f"{user}_data"], out[f"{user}_enable"],
                      out[f"{user}_lanes"])  # fmt: skip
        m.ram(name, ROWS, 32 * lanes, [], [write], parts=lanes)
    if model.external:
        module = kv.external_kv(design, model.machine, model.kv.external_depth)
        inputs = {
            port.name: out[f"external_{port.name}"]
            for port in module.ports
            if not port.output and port.name not in ("clk", "rst")
        }
        wires["external_read_data"].assign(m.instance("external", module, inputs)["read_data"])
    saturations = m.register("saturations", 32)
    saturations.drive((saturations + out["saturations"]).truncate(32))
    m.output("attention_done", out["attention_done"])
    m.output("append_done", out["append_done"])
    m.output("value_scale_data", out["value_scale_data"])
    m.output("saturated", saturations)
    m.output("unused", cat(*[out[name] for name in rows]).any())
    return design.text()


class Bench:
    def __init__(self, case: Case) -> None:
        self.case = case
        self.program = program_of(case)
        self.model = AttentionModel(self.program)
        self.chip = ArcModel(bench(self.model), "bench", opt=0)
        self.lanes = case.machine.vector_lanes
        self.row = {name: self.program.row_of(name) for name in self.program.buffers}
        self.chip.set("rst", 1)
        self.chip.step()
        self.chip.set("rst", 0)

    def instruction(self, number: int) -> tuple[Instruction, dict[str, int]]:
        block = self.program.blocks[0]
        one = block.instructions[number]
        return one, attention.encode(self.model, one, block.instances[0])

    def run(self, position: int, *numbers: int) -> None:
        """Executes instructions that start together; each takes as long as its formula says."""
        self.chip.set("position", position)
        # A start comes at the earliest in the second cycle after the last instruction.
        self.chip.step()
        inputs: dict[str, list[int]] = {}
        expected: dict[str, int] = {}
        for number in numbers:
            one, fields = self.instruction(number)
            unit = one.queue.replace("kv", "append")
            expected[f"{unit}_done"] = int(one.issue.duration(tokens=position + 1, rank=0))
            inputs[f"{unit}_start"] = [1, 0]
            for name, value in fields.items():
                # Fields hold in the cycle of the start only.
                port = f"{unit}_{name}"
                inputs[port] = [value, (1 << self.chip.ports[port].width) - 1]
        trace = self.chip.run(max(expected.values()), inputs)
        for done, cycles in expected.items():
            assert np.flatnonzero(trace.outputs[done]).tolist() == [cycles - 1], (done, position)

    def fill(self, name: str, codes: npt.NDArray[np.int64], memory: str) -> None:
        """Codes [groups, n] to the rows of a buffer; what lies beyond is garbage."""
        groups, n = codes.shape
        rows = -(-n // self.lanes)
        full = np.random.default_rng(n).integers(0, 1 << 16, (groups, rows * self.lanes))
        full[:, :n] = codes
        image = full.astype(np.uint16).reshape(groups * rows, self.lanes)
        words = self.chip.memory(memory)[self.row[name] : self.row[name] + groups * rows]
        words[:] = image.view(words.dtype).reshape(words.shape)

    def fill_scales(self, name: str, scale: Scale, memory: str) -> None:
        word = scale.mantissa.reshape(-1) | ((scale.exponent.reshape(-1) & 1023) << 24)
        self.chip.memory(memory)[self.row[name] : self.row[name] + len(word)] = word

    def words(self, memory: str, name: str, groups: int, n: int) -> npt.NDArray[np.int64]:
        """Words [groups, n] of a buffer whose groups begin in rows of their own."""
        rows = -(-n // self.lanes)
        raw = self.chip.memory(memory)[self.row[name] :][: groups * rows]
        raw = kv.word_bytes(np.ascontiguousarray(raw), 4 * self.lanes)
        return raw.view(np.int32).reshape(groups, -1)[:, :n].astype(np.int64)

    def unit_memory(self, name: str) -> npt.NDArray[Any]:
        return self.chip.memory(f"attention/{name}")


def random_quantized(
    rng: np.random.Generator, groups: int, width: int, fmt: str, spread: int = 3
) -> semantics.Quantized:
    x = rng.integers(-(1 << 16), 1 << 16, (groups, width)) << rng.integers(0, spread, (groups, 1))
    flat = semantics.quantize(x.reshape(-1), fmt, 16, groups)
    return semantics.Quantized(flat.codes.reshape(groups, width), flat.scale, fmt)


def checked_positions(case: Case) -> set[int]:
    units, last = case.machine.h_units, case.capacity - 1
    inside = case.machine.kv_on_die
    near = {0, 1, case.window - 1, case.window, case.window + 1, units - 1, units, units + 1}
    near |= {inside - 1, inside, inside + units, case.window + inside, case.window + inside - 1}
    return {p for p in near | {2 * units, last - 1, last, last // 2} if 0 <= p <= last}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_attention(case: Case) -> None:
    bench = Bench(case)
    rng = np.random.default_rng(len(case.name))
    machine = case.machine
    shape = case.kv_heads, case.capacity, case.width
    k_codes, v_codes = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    k_scale, v_scale = (
        Scale(np.zeros(shape[:2], np.int64), np.zeros(shape[:2], np.int64)) for _ in range(2)
    )
    static = bench.program.caches["k"].static_scale
    counter = Saturations()
    for unit in range(machine.h_units):
        memory = bench.unit_memory(f"h_unit{unit}/kv")
        memory[:] = rng.integers(0, 256, memory.shape)
    for position in range(case.capacity):
        for number, name, codes, scale in (
            (0, "kq", k_codes, k_scale), (1, "vq", v_codes, v_scale)
        ):  # fmt: skip
            vector = random_quantized(rng, case.kv_heads, case.width, machine.kv)
            codes[:, position] = vector.codes
            scale.mantissa[:, position] = vector.scale.mantissa
            scale.exponent[:, position] = vector.scale.exponent
            bench.fill(name, vector.codes, "quantised")
            bench.fill_scales(name, vector.scale, "quantised_scales")
            if number == 0 or position not in checked_positions(case):
                bench.run(position, number)
        if position not in checked_positions(case):
            continue
        first = max(0, position - case.window + 1) if case.window else 0
        seen = slice(first, position + 1)

        def scales(scale: Scale, seen: slice = seen) -> Scale:
            if static is not None:
                return Scale.of(static)
            return Scale(scale.mantissa[:, seen], scale.exponent[:, seen])

        # Scores
        query = random_quantized(rng, case.heads, case.width, machine.activations)
        bench.fill("q", query.codes, "quantised")
        bench.fill_scales("q", query.scale, "quantised_scales")
        before = bench.words("scores", "scores", case.heads, case.capacity)
        # The values of this token arrive while its scores are computed.
        bench.run(position, 1, 2)
        does = bench.instruction(2)[0].does
        assert isinstance(does, QueryKey)
        dots = semantics.query_key(query.codes, k_codes[:, seen], machine.activations, machine.kv)
        factor = does.score_scale
        scores = semantics.score_scale(
            dots, query.scale, scales(k_scale), factor, does.pre_shift, counter
        )
        if does.softcap is not None:
            inverse, cap, log2e = does.softcap
            for name, reals in (("softcap", (inverse, cap)), ("scale", (log2e,))):
                scores = semantics.operator(name, scores, given=reals, saturations=counter)
        before[:, seen] = scores
        after = bench.words("scores", "scores", case.heads, case.capacity)
        np.testing.assert_array_equal(after, before)

        # Weighted sums: codes beyond the tokens that count are garbage, and must not.
        p, total = semantics.softmax(scores, scales(v_scale), machine.probabilities)
        garbage = rng.integers(0, 256, (case.heads, case.capacity))
        garbage[:, seen] = p.codes
        bench.fill("p", garbage, "probabilities")
        bench.fill_scales("p", p.scale, "head_scale")
        row = bench.row["p"]
        bench.chip.memory("head_totals")[row : row + case.heads] = total
        bench.run(position, 3)
        does = bench.instruction(3)[0].does
        assert isinstance(does, WeightedSum)
        sums = semantics.weighted_sum(p.codes, v_codes[:, seen], machine.probabilities, machine.kv)
        y = semantics.requantize(
            sums.reshape(-1),
            multiply(p.scale, semantics.reciprocal_scale(total)),
            0,
            does.pre_shift,
            case.fraction,
            saturations=counter,
        )
        found = bench.words("results", "y", 1, case.heads * case.width)[0]
        np.testing.assert_array_equal(found, y)
        assert bench.chip.get("saturated") == counter.count
    assert (counter.count > 0) == (case.factor > 0.1)
    for name, codes, scale in (("k", k_codes, k_scale), ("v", v_codes, v_scale)):
        external = bench.chip.memory("external/memory") if bench.model.external else None
        place = bench.model.kv[name]
        stored, stored_scale = kv.read_cache(bench.unit_memory, machine, place, external)
        np.testing.assert_array_equal(stored, codes)
        if static is not None:
            assert stored_scale is None
        else:
            assert stored_scale is not None
            np.testing.assert_array_equal(stored_scale.mantissa, scale.mantissa)
            np.testing.assert_array_equal(stored_scale.exponent, scale.exponent)
    if static is None:
        # The port for softmax: the scales of a row of tokens.
        place = bench.model.kv["v"]
        bench.chip.set("value_scale_row", place.scale_row + place.scale_rows * (case.kv_heads - 1))
        bench.chip.step()
        data = bench.chip.get("value_scale_data")
        for lane in range(min(machine.vector_lanes, case.capacity)):
            word = data >> (32 * lane) & 0xFFFFFFFF
            assert word & 0xFFFFFF == v_scale.mantissa[-1, lane]
            assert word >> 24 == v_scale.exponent[-1, lane] & 0xFF


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"broadcast": 1}, "broadcast"),
        ({"attention_pipeline": 1}, "attention_pipeline"),
        ({"h_units": 6}, "power of two"),
        ({"multiplier_bits": 16}, r"h_unit\.multiplier_bits is 16; the hardware multiplies bytes"),
        ({"results_per_cycle": 32}, "results_per_cycle"),
        ({"kv_port_bytes": 32}, "kv_port_bytes"),
        ({"kv": "int4"}, "int4"),
    ],
)
def test_machine_that_cannot_be_built(change: dict[str, Any], named: str) -> None:
    case = replace(CASES[0], machine=replace(MINI, **change))
    with pytest.raises(UserError, match=named):
        model = AttentionModel(program_of(case))
        attention.attention_unit(Design(), model)


@pytest.mark.parametrize(
    ("buffer", "number"), [("kq", 0), ("vq", 1), ("q", 2), ("scores", 2), ("p", 3), ("y", 3)]
)
def test_values_begin_in_a_row(buffer: str, number: int) -> None:
    """Of every operand and result; what would be rounded down is refused."""
    program = program_of(CASES[0])
    block = program.blocks[0]
    moved = replace(program.buffers[buffer], element=4)
    other = replace(program, buffers={**program.buffers, buffer: moved})
    one = replace(block.instructions[number], onnx=[["the_node"]])
    lanes = program.machine.vector_lanes
    with pytest.raises(UserError, match=rf"inside a row .*\(element 4 of {lanes}\)") as caught:
        attention.encode(AttentionModel(other), one, block.instances[0])
    assert caught.value.node == "the_node"
    attention.encode(AttentionModel(program), one, block.instances[0])
