"""The attention unit against the semantics, bit for bit, and against the durations, to the cycle.

A bench gives the unit the memories that it has outside: ROMs for what it reads, which the test
fills, RAMs for what it writes. Instructions of two attentions, cut at random, go through it one
behind the other.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, NamedTuple

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
from intaglio.dialects.errors import UserError
from intaglio.dialects.fixed_point import Real, Saturations, Scale, multiply
from intaglio.dialects.formats import FORMATS
from intaglio.dialects.formula import constant
from intaglio.dialects.h_units import CacheShape
from intaglio.dialects.isa import values
from intaglio.dialects.isa.attention import QueryKey, WeightedSum
from intaglio.dialects.isa.beat import Beat
from intaglio.dialects.isa.cache import Append
from intaglio.dialects.isa.instruction import Instruction as Does
from intaglio.dialects.machine import Machine
from intaglio.dialects.memories import memory_of
from intaglio.lowering.place.sram import place_caches
from intaglio.lowering.schedule import durations
from intaglio.runtime.engines.arc import ArcModel

MINI = load_target("roma-mini").with_options(["activations=int8", "kv=int8"]).machine()
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
    # Scores of several heads leave together: as many as share a KV head, and fewer; of three heads
    # in two beats, or in one that would hold four; next to rows of several beats.
    Case("together", geometry(4, 16, 16), 8, 2, 32, 37),
    Case("two_together", geometry(8, 16, 16, query_parallel=4), 3, 1, 16, 35, window=10),
    Case("three_together", geometry(4, 8, 32, results_per_cycle=16, kv_port_bytes=8, **FAST), 3, 1,
         16, 26, cap=True, factor=1500),
    Case("wide_together", geometry(2, 16, 32, results_per_cycle=8, query_parallel=3, **SLOW), 10, 2,
         16, 21, window=4, static=True),
    Case("external_together", geometry(4, 16, 16, kv_port_bytes=8, kv_on_die=8, external_bytes=16,
         external_latency=9, activations="int16"), 4, 2, 16, 27),
    # Sums of several heads leave together: all of a row, some that end in the next row, beside
    # halves of one; two words of one; of several KV heads, faster than scales are found.
    Case("sums_together", geometry(4, 8, 32, kv_port_bytes=8, query_parallel=4), 8, 2, 8, 23),
    Case("sums_over_rows", geometry(4, 8, 32, kv_port_bytes=8, query_parallel=4), 6, 2, 16, 23,
         window=6),
    Case("words_together", geometry(4, 8, 64, kv_port_bytes=8, query_parallel=4,
         results_per_cycle=32, **FAST), 8, 2, 32, 23, factor=1500),
    Case("sums_before_scales", geometry(4, 16, 64, kv_port_bytes=8, query_parallel=4,
         table_lookup=23), 12, 3, 16, 23),
    # External memory: rows wider than an H-Unit's word and faster than the array; as wide; much
    # narrower, also than the KV port.
    Case("external", geometry(4, 8, 8, kv_port_bytes=4, kv_on_die=8, external_bytes=16,
         external_latency=23), 4, 2, 16, 29),
    Case("external_window", geometry(4, 16, 8, kv_port_bytes=16, kv_on_die=4, external_bytes=16,
         external_latency=1, **WIDE, **FAST), 3, 1, 32, 30, window=9),
    Case("external_narrow", geometry(8, 16, 16, kv_port_bytes=16, kv_on_die=16, external_bytes=4,
         external_latency=40, results_per_cycle=4, kv="fp8"), 4, 2, 32, 45, static=True),
    Case("external_slow_network", geometry(2, 16, 8, kv_port_bytes=8, kv_on_die=2,
         external_bytes=32, external_latency=1, **SLOW), 2, 2, 16, 23, window=11),
]  # fmt: skip


@dataclass(frozen=True)
class Attention:
    """One of a case's attentions; its buffers' and caches' names end with `name`."""

    name: str
    heads: int
    kv_heads: int
    width: int
    window: int
    static: bool
    cap: bool
    kv: str

    @property
    def shared(self) -> int:
        return self.heads // self.kv_heads

    @property
    def vector_bytes(self) -> int:
        return self.width * FORMATS[self.kv].bits // 8 + (0 if self.static else 4)


def attentions_of(case: Case) -> list[Attention]:
    """That of the case, and one that differs from it in whatever it can."""
    machine = case.machine
    first = Attention("", case.heads, case.kv_heads, case.width, case.window, case.static,
                      case.cap, machine.kv)  # fmt: skip
    kv = "int8" if machine.kv == "fp8" else "fp8"
    return [
        first,
        Attention("2", 3 if first.shared > 1 else 6, 3, max(8, case.width // 2),
                  0 if case.window else 5, not case.static, not case.cap, kv),
    ]  # fmt: skip


KINDS = 4
"""Instructions of an attention: append of keys and of values, `query_key`, `weighted_sum`."""


def program_of(case: Case) -> Program:
    machine = case.machine
    static = Real.of(1 / 60), Real.of(60)
    attentions = attentions_of(case)
    shapes = {
        name + one.name: CacheShape(
            machine, case.capacity, one.kv_heads, one.width, one.kv, one.static
        )
        for one in reversed(attentions)
        for name in "vk"
    }
    places, chip = place_caches(shapes, machine)
    caches = {
        name + one.name: Cache(
            name + one.name, case.capacity, one.kv_heads, one.width, one.kv,
            *places[name + one.name], *(static if one.static else (None, None)),
        )
        for one in attentions
        for name in "kv"
    }  # fmt: skip
    buffers: dict[str, Buffer] = {}
    found: list[Does[str]] = []
    row = 3
    for one in attentions:
        token_rows = -(-case.capacity // machine.vector_lanes)
        vector_rows = -(-one.width // machine.vector_lanes)
        size = one.heads * one.width
        for name, rows, kind in (
            ("q", one.heads * vector_rows,
             values.Quantized(one.heads, one.width, machine.activations)),
            ("kq", one.kv_heads * vector_rows, values.Quantized(one.kv_heads, one.width, one.kv)),
            ("vq", one.kv_heads * vector_rows, values.Quantized(one.kv_heads, one.width, one.kv)),
            ("scores", one.heads * token_rows, values.Scores(one.heads, 16)),
            ("p", one.heads * token_rows, values.Probabilities(one.heads, machine.probabilities)),
            ("y", -(-size // machine.vector_lanes), values.Fixed(size, case.fraction)),
        ):  # fmt: skip
            named = name + one.name
            buffers[named] = Buffer(named, kind, memory_of(kind), row)
            row += rows + 1
        dot_bits = semantics.query_key_bits(one.width, machine.activations, one.kv)
        sum_bits = semantics.weighted_sum_bits(case.capacity, machine.probabilities, one.kv)
        inverse, cap, log2e = (Real.of(value) for value in (1 / 3.0, 3.0, 1.4427))
        found += [
            Append(input="kq" + one.name, cache="k" + one.name),
            Append(input="vq" + one.name, cache="v" + one.name),
            QueryKey(
                query="q" + one.name,
                output="scores" + one.name,
                keys="k" + one.name,
                score_scale=Real.of(case.factor),
                pre_shift=semantics.pre_shift(dot_bits),
                window=one.window,
                **{"cap": cap, "cap_inverse": inverse, "log2e": log2e} if one.cap else {},
            ),
            WeightedSum(
                probabilities="p" + one.name,
                output="y" + one.name,
                values="v" + one.name,
                pre_shift=semantics.pre_shift(sum_bits),
                window=one.window,
            ),
        ]
    assert row < ROWS
    instructions = [
        Instruction(does, [], timeline.Issue(does.queue, {}, constant(1)), [], []) for does in found
    ]
    return Program(
        machine=machine,
        name=case.name,
        vocabulary=1,
        parameters={},
        caches=caches,
        memories=chip,
        buffers=buffers,
        blocks=[Block("layer", False, [{}], instructions)],
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
    together = range(model.together)
    users = ["append", *(f"query_scale{i}" for i in together)]
    read = m.ram("quantised_scales", ROWS, 64, [fit(f"{u}_group") for u in users], [])
    for user, data in zip(users, read, strict=True):
        wires[f"{user}_mantissa"].assign(data[:24])
        wires[f"{user}_exponent"].assign(data[24:34].as_signed())
    (scale,) = m.ram("head_scale", ROWS, 64, [fit("head_row")], [])
    (total,) = m.ram("head_totals", ROWS, 64, [fit("head_row")], [])
    wires["head_mantissa"].assign(scale[:24])
    wires["head_exponent"].assign(scale[24:34].as_signed())
    wires["head_total"].assign(total[:40])
    writers = (("scores", [f"score{i}" for i in together]), ("results", model.results))
    for name, users in writers:
        writes = [
            Write(fit(f"{user}_row"), *(out[f"{user}_{port}"] for port in ("data", "enable",
                  "lanes")))
            for user in users
        ]  # fmt: skip
        m.ram(name, ROWS, 32 * lanes, [], writes, parts=lanes)
    writes = [
        Write(fit(f"largest{i}_row"), *(out[f"largest{i}_{port}"] for port in ("data", "enable")))
        for i in together
    ]
    m.ram("largest", ROWS, 32, [], writes)
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
    for queue in ("attention", "append"):
        for name in ("done", "ready"):
            m.output(f"{queue}_{name}", out[f"{queue}_{name}"])
    m.output("value_scale_data", out["value_scale_data"])
    m.output("saturated", saturations)
    m.output("unused", cat(*[out[name] for name in rows]).any())
    return design.text()


class Fed(NamedTuple):
    """A beat that is to be given to the unit: the instruction's number, and the beat."""

    number: int
    beat: Beat


class Bench:
    def __init__(self, case: Case) -> None:
        self.case = case
        self.program = program_of(case)
        self.attentions = attentions_of(case)
        self.model = AttentionModel(self.program)
        self.chip = ArcModel(bench(self.model), "bench", opt=0)
        self.lanes = case.machine.vector_lanes
        self.row = {name: self.program.row_of(name) for name in self.program.buffers}
        self.rng = np.random.default_rng(len(case.name))
        self.chip.set("rst", 1)
        self.chip.step()
        self.chip.set("rst", 0)

    def instruction(self, number: int) -> Instruction:
        return self.program.blocks[0].instructions[number]

    def cut(self, *numbers: int) -> list[Fed]:
        """Beats of instructions, each cut at random, in an order of instructions that is random."""
        rng = self.rng
        found: list[list[Fed]] = []
        for number in numbers:
            heads = self.attentions[number // KINDS].kv_heads
            cuts = {0, heads, *rng.integers(0, heads + 1, rng.integers(0, 3)).tolist()}
            beats = [Beat(0, low, high - low) for low, high in pairwise(sorted(cuts))]
            found.append([Fed(number, beat) for beat in rng.permutation(np.array(beats)).tolist()])
        order = rng.permutation([i for i, beats in enumerate(found) for _ in beats])
        return [found[i].pop(0) for i in order]

    def taken(self, fed: Fed, position: int) -> tuple[int, int]:
        """Cycles until the next beat may start, and until the result is there."""
        one, machine = self.attentions[fed.number // KINDS], self.case.machine
        _, count = fed.beat.of(one.kv_heads)
        does = self.instruction(fed.number).does
        if isinstance(does, Append):
            pair = durations.append_beat(machine, one.vector_bytes, count=count)
        else:
            over = isinstance(does, QueryKey)
            function = durations.query_key_beat if over else durations.weighted_sum_beat
            floor = max(durations.score_drain(machine, one.shared) for one in self.attentions)
            pair = function(
                machine, one.heads, one.kv_heads, one.width, one.window, one.kv,
                count=count, floor=floor,
            )  # fmt: skip
        pace, duration = (int(f(tokens=position + 1, rank=0)) for f in pair)
        return pace, duration

    def run(self, position: int, *queues: list[Fed]) -> None:
        """Gives beats to the unit, those of a queue as soon as it takes them, or a little later.

        The beats of several queues go side by side.
        """
        rng, chip = self.rng, self.chip
        for queue in ("attention", "append"):
            chip.set(f"{queue}_position", position)
        chip.step(int(rng.integers(0, 3)))
        length = 1
        starts: dict[str, list[tuple[int, dict[str, int]]]] = {}
        ends: dict[str, list[int]] = {}
        taken: dict[str, list[tuple[int, int]]] = {}
        for beats in queues:
            gaps, now = int(rng.integers(0, 2)), 0
            for fed in beats:
                one = self.instruction(fed.number)
                unit = one.queue.replace("kv", "append")
                if gaps:
                    now += int(rng.integers(0, 6)) * int(rng.integers(0, 2))
                fields = attention.encode(self.model, replace(one, beat=fed.beat), {})
                pace, duration = self.taken(fed, position)
                starts.setdefault(unit, []).append((now, fields))
                ends.setdefault(unit, []).append(now + duration)
                taken.setdefault(unit, []).append((now, now + pace))
                length = max(length, now + duration + 1)
                now += pace
        inputs: dict[str, npt.NDArray[np.int64]] = {}
        for unit, given in starts.items():
            inputs[f"{unit}_start"] = np.zeros(length, np.int64)
            for name in given[0][1]:
                # Fields hold in the cycle of the start only.
                port = f"{unit}_{name}"
                inputs[port] = rng.integers(0, 1 << chip.ports[port].width, length)
            for cycle, fields in given:
                inputs[f"{unit}_start"][cycle] = 1
                for name, value in fields.items():
                    inputs[f"{unit}_{name}"][cycle] = value
        trace = chip.run(length, {name: one.tolist() for name, one in inputs.items()})
        for unit in starts:
            done = np.flatnonzero(trace.outputs[f"{unit}_done"]).tolist()
            assert done == [end - 1 for end in ends[unit]], (unit, position)
            ready = np.ones(length, np.int64)
            for start, free in taken[unit]:
                ready[start + 1 : free] = 0
            np.testing.assert_array_equal(trace.outputs[f"{unit}_ready"], ready)
        # The largest scores come after the scores.
        chip.step(durations.peak(self.case.machine, quantized=False))

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

    def words(self, memory: str) -> npt.NDArray[np.int64]:
        """Words [rows, lanes] of a memory."""
        raw = kv.word_bytes(np.ascontiguousarray(self.chip.memory(memory)), 4 * self.lanes)
        return np.ascontiguousarray(raw).view(np.int32).astype(np.int64)

    def largest(self) -> npt.NDArray[np.int64]:
        """The file of the scores' largest."""
        return self.chip.memory("largest").view(np.int32).astype(np.int64)

    def of(self, words: npt.NDArray[np.int64], name: str, groups: int) -> npt.NDArray[np.int64]:
        """The groups of a buffer, each in rows of its own: a view [groups, elements] of `words`."""
        size = self.case.capacity if groups else 0
        rows = -(-size // self.lanes) * groups or len(words)
        return words[self.row[name] :][:rows].reshape(max(1, groups), -1)

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
    near = {4, 5, 0, 1, case.window - 1, case.window, case.window + 1, units - 1, units, units + 1}
    near |= {inside - 1, inside, inside + units, case.window + inside, case.window + inside - 1}
    return {p for p in near | {2 * units, last - 1, last, last // 2} if 0 <= p <= last}


@dataclass
class Cached:
    """What a cache should hold."""

    codes: npt.NDArray[np.int64]
    scale: Scale

    @staticmethod
    def of(cache: Cache) -> Cached:
        shape = cache.heads, cache.capacity
        zeros = (np.zeros(shape, np.int64) for _ in range(2))
        return Cached(np.zeros((*shape, cache.width), np.int64), Scale(*zeros))


class Checked:
    """An attention on a bench: its operands, and what must come of them."""

    def __init__(self, bench: Bench, number: int) -> None:
        self.bench, self.case = bench, bench.case
        self.one, self.first = bench.attentions[number], KINDS * number
        caches = bench.program.caches
        self.caches = {name: Cached.of(caches[name + self.one.name]) for name in "kv"}
        self.static = caches["k" + self.one.name].static_scale

    def append(self, position: int) -> None:
        """New vectors to append."""
        bench, one = self.bench, self.one
        for name, cached in self.caches.items():
            vector = random_quantized(bench.rng, one.kv_heads, one.width, one.kv)
            cached.codes[:, position] = vector.codes
            cached.scale.mantissa[:, position] = vector.scale.mantissa
            cached.scale.exponent[:, position] = vector.scale.exponent
            bench.fill(f"{name}q{one.name}", vector.codes, "quantised")
            bench.fill_scales(f"{name}q{one.name}", vector.scale, "quantised_scales")

    def scales(self, name: str, seen: slice) -> Scale:
        if self.static is not None:
            return Scale.of(self.static)
        scale = self.caches[name].scale
        return Scale(scale.mantissa[:, seen], scale.exponent[:, seen])

    def attend(
        self,
        position: int,
        scores: npt.NDArray[np.int64],
        largest: npt.NDArray[np.int64],
        results: npt.NDArray[np.int64],
    ) -> tuple[int, int]:
        """New query and probabilities; puts into copies of the memories what must come of them.

        Returns:
            How many places saturate in the scores, and in the sums.
        """
        bench, case, one = self.bench, self.case, self.one
        rng, machine, name = bench.rng, case.machine, one.name
        first = max(0, position - one.window + 1) if one.window else 0
        seen = slice(first, position + 1)
        query = random_quantized(rng, one.heads, one.width, machine.activations)
        bench.fill("q" + name, query.codes, "quantised")
        bench.fill_scales("q" + name, query.scale, "quantised_scales")
        does = bench.instruction(self.first + 2).does
        assert isinstance(does, QueryKey)
        counters = Saturations(), Saturations()
        keys, values_ = (self.caches[which].codes[:, seen] for which in "kv")
        dots = semantics.query_key(query.codes, keys, machine.activations, one.kv)
        found = semantics.score_scale(
            dots, query.scale, self.scales("k", seen), does.score_scale, does.pre_shift,
            counters[0],
        )  # fmt: skip
        if does.softcap is not None:
            inverse, cap, log2e = does.softcap
            for operator, reals in (("softcap", (inverse, cap)), ("scale", (log2e,))):
                found = semantics.operator(operator, found, given=reals, saturations=counters[0])
        bench.of(scores, "scores" + name, one.heads)[:, seen] = found
        largest[bench.row["scores" + name] :][: one.heads] = found.max(axis=1)

        # Codes beyond the tokens that count are garbage, and must not.
        p, total = semantics.softmax(found, self.scales("v", seen), machine.probabilities)
        garbage = rng.integers(0, 256, (one.heads, case.capacity))
        garbage[:, seen] = p.codes
        bench.fill("p" + name, garbage, "probabilities")
        bench.fill_scales("p" + name, p.scale, "head_scale")
        row = bench.row["p" + name]
        bench.chip.memory("head_totals")[row : row + one.heads] = total
        does = bench.instruction(self.first + 3).does
        assert isinstance(does, WeightedSum)
        sums = semantics.weighted_sum(p.codes, values_, machine.probabilities, one.kv)
        y = semantics.requantize(
            sums.reshape(-1),
            multiply(p.scale, semantics.reciprocal_scale(total)),
            0,
            does.pre_shift,
            case.fraction,
            saturations=counters[1],
        )
        bench.of(results, "y" + name, 0)[0, : len(y)] = y
        return counters[0].count, counters[1].count


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_attention(case: Case) -> None:
    bench = Bench(case)
    rng, machine = bench.rng, case.machine
    both = [Checked(bench, number) for number in range(len(bench.attentions))]
    keys, values_, scores, sums = (tuple(one.first + kind for one in both) for kind in range(KINDS))
    saturated = 0
    for unit in range(machine.h_units):
        memory = bench.unit_memory(f"h_unit{unit}/kv")
        memory[:] = rng.integers(0, 256, memory.shape)
    for position in range(case.capacity):
        for one in both:
            one.append(position)
        if position not in checked_positions(case):
            bench.run(position, bench.cut(*keys, *values_))
            continue
        bench.run(position, bench.cut(*keys))
        wanted = {name: bench.words(name) for name in ("scores", "results")}
        largest = bench.largest()
        counts = [
            one.attend(position, wanted["scores"], largest, wanted["results"]) for one in both
        ]
        # Values of this token arrive while its scores are computed.
        bench.run(position, bench.cut(*values_), bench.cut(*scores))
        saturated += sum(count for count, _ in counts)
        np.testing.assert_array_equal(bench.words("scores"), wanted["scores"])
        np.testing.assert_array_equal(bench.largest(), largest)
        assert bench.chip.get("saturated") == saturated
        bench.run(position, bench.cut(*sums, *scores))
        saturated += sum(map(sum, counts))
        for name, words in wanted.items():
            np.testing.assert_array_equal(bench.words(name), words)
        np.testing.assert_array_equal(bench.largest(), largest)
        assert bench.chip.get("saturated") == saturated
    assert (saturated > 0) == (case.factor > 0.1)
    for one in both:
        for name, cached in one.caches.items():
            external = bench.chip.memory("external/memory") if bench.model.external else None
            place = bench.model.kv[name + one.one.name]
            stored, scale = kv.read_cache(bench.unit_memory, machine, place, external)
            np.testing.assert_array_equal(stored, cached.codes)
            assert (scale is None) == (one.static is not None)
            if scale is not None:
                np.testing.assert_array_equal(scale.mantissa, cached.scale.mantissa)
                np.testing.assert_array_equal(scale.exponent, cached.scale.exponent)
    # The port for softmax: the scales of a row of tokens.
    (one,) = (one for one in both if one.static is None)
    place, scale = bench.model.kv["v" + one.one.name], one.caches["v"].scale
    row = place.scale_row + place.scale_rows * (place.cache.heads - 1)
    bench.chip.set("value_scale_row", row)
    bench.chip.step()
    data = bench.chip.get("value_scale_data")
    for lane in range(min(machine.vector_lanes, case.capacity)):
        word = data >> (32 * lane) & 0xFFFFFFFF
        assert word & 0xFFFFFF == scale.mantissa[-1, lane]
        assert word >> 24 == scale.exponent[-1, lane] & 0xFF


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
