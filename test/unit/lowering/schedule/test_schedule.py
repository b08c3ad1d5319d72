"""Programs: the right values in the right buffers, every conflict waited for."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp, SymbolRefAttr
from xdsl.ir import Block, Operation, SSAValue
from xdsl.rewriter import InsertPoint, Rewriter
from xdsl.utils.exceptions import PassFailedException

from intaglio.dialects import formula, rom, timeline
from intaglio.dialects.errors import DoesNotFit
from intaglio.dialects.fabric import MachineOp, memories
from intaglio.dialects.isa.queues import reductions_of
from intaglio.dialects.isa.touched import Memories, Touched, may_read_peak, passes_of, touched
from intaglio.dialects.isa.touched import size_of as size_of_beats
from intaglio.dialects.isa.values import Quantized
from intaglio.dialects.isa.vector import Quantize
from intaglio.dialects.machine import Machine
from intaglio.dialects.memories import size_of
from intaglio.dialects.program import InstructionOp, ProgramOp, spans, value_of
from intaglio.lowering.place.place import FabricPlace
from intaglio.lowering.schedule.schedule import ProgramSchedule

Term = Any
"""What a value is: a name, or (operation, arguments...)."""

RELAXED = settings(
    max_examples=15,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def scheduled(module: ModuleOp) -> ProgramOp:
    """Places and schedules a legalised module."""
    FabricPlace().apply(Context(), module)
    module.verify()
    ProgramSchedule().apply(Context(), module)
    module.verify()
    return program_of(module)


def program_of(module: ModuleOp) -> ProgramOp:
    (program,) = [op for op in module.ops if isinstance(op, ProgramOp)]
    return program


def name(symbol: object) -> str:
    assert isinstance(symbol, SymbolRefAttr)
    return symbol.root_reference.data


# --- what the operators mean --------------------------------------------------------------------


@dataclass
class Meaning:
    """Runs operators on terms; slots are bound by the scopes around them."""

    caches: dict[str, Term] = field(default_factory=dict)

    def step(self, module: ModuleOp) -> tuple[Term, Term]:
        """Terms of logits and next token."""
        (step,) = [op for op in module.ops if isinstance(op, rom.StepOp)]
        values: dict[SSAValue, Term] = {step.body.block.args[0]: "token"}
        self.block(step.body.block, values, {})
        emit = step.body.block.last_op
        assert isinstance(emit, rom.EmitOp)
        return values[emit.logits], values[emit.token]

    def block(self, block: Block, values: dict[SSAValue, Term], slots: dict[str, str]) -> None:
        for op in block.ops:
            if isinstance(op, rom.RepeatOp):
                carried = [values[v] for v in op.inputs]
                body = op.body().body.block
                end = body.last_op
                assert isinstance(end, rom.YieldOp)
                for instance in op.instances:
                    inner = dict(zip(body.args[1:], carried, strict=True))
                    self.block(body, inner, {s: name(b) for s, b in instance.data.items()})
                    carried = [inner[v] for v in end.values]
                values.update(zip(op.outputs, carried, strict=True))
            elif isinstance(op, rom.OperatorOp):
                self.operator(op, values, slots)

    def operator(self, op: Operation, values: dict[SSAValue, Term], slots: dict[str, str]) -> None:
        def bound(symbol: SymbolRefAttr) -> str:
            return slots.get(name(symbol), name(symbol))

        used = tuple(
            sorted(bound(v) for v in op.properties.values() if isinstance(v, SymbolRefAttr))
        )
        match op:
            case rom.AppendOp():
                cache = bound(op.cache)
                self.caches[cache] = ("append", values[op.input], self.caches.get(cache))
                return
            case rom.SliceOp():
                source = values[op.input]
                first, size = op.offset.value.data, rom.vector_size(op.output.type)
                whole = rom.vector_size(op.input.type)
                if isinstance(source, tuple) and source[0] == "slice":
                    source, first = source[1], source[2] + first
                elif size == whole:
                    values[op.output] = source
                    return
                values[op.output] = ("slice", source, first, size)
                return
            case rom.DotOp():
                values[op.output] = values[op.input]
                return
            case rom.RequantizeOp():
                residual = [] if op.residual is None else [values[op.residual]]
                term = ("matvec", (values[op.input], *residual), used)
            case rom.QueryKeyOp() | rom.SoftmaxOp() | rom.WeightedSumOp():
                symbol = op.keys if isinstance(op, rom.QueryKeyOp) else op.values
                seen = self.caches.get(bound(symbol)) if not isinstance(op, rom.SoftmaxOp) else None
                term = (op.name[4:], (values[op.operands[0]],), used, seen)
            case _:
                read = [values[v] for v in op.operands if v in values]
                term = (op.name[4:], tuple(read), used)
        values[op.results[0]] = term


# --- what the program does ----------------------------------------------------------------------


def places(program: ProgramOp) -> dict[str, tuple[int, int]]:
    """The elements of each buffer, of all memories one after the other."""
    module = program.parent_op()
    assert isinstance(module, ModuleOp)
    return spans(module, program.buffers)


@dataclass(frozen=True)
class Beaten:
    """A beat of an instruction instance, and what it touches.

    Attributes:
        whose: the instruction instance: block, instance, and its number there.
        bound: what the block's slots are bound to.
        op: the beat.
        found: what it touches.
        scale_for: the instruction whose scale leaves with its reductions.
        size: how much the instruction has of what beats count.
        reads_peak: whether the largest magnitude of what it reads is one that others left.
    """

    whose: tuple[int, int, int]
    bound: dict[str, str]
    op: InstructionOp
    found: Touched[str]
    scale_for: tuple[int, int, int]
    size: int
    reads_peak: bool


def beats(program: ProgramOp) -> Iterator[Beaten]:
    """Every beat of every instance, in program order."""
    module = program.parent_op()
    assert isinstance(module, ModuleOp)
    heads = {
        op.sym_name.data: op.type.heads.data
        for op in module.ops
        if isinstance(op, rom.CacheOp) and isinstance(op.type, rom.KVType)
    }
    kinds = {op.sym_name.data: value_of(op.type) for op in program.buffers}
    lanes = memories(module)["vectors"].lanes
    capacity = int(program.positions.get_values()[-1]) + 1
    for number, block in enumerate(program.blocks):
        for instance, slots in enumerate(block.instances):
            bound = {s: name(b) for s, b in slots.data.items()}

            def heads_of(slot: str, bound: dict[str, str] = bound) -> int:
                return heads[bound[slot]]

            chip = Memories(lanes, capacity, heads_of)
            begun = {
                op.part.of_instruction
                for op in block.instructions
                if op.pace is not None and not op.part.number
            }
            readers = [
                op
                for op in block.instructions
                if op.part.number == 1
                and op.part.of_instruction not in begun
                and may_read_peak(op.does, kinds.__getitem__)
            ]
            quantizes = {
                (op.part.entry, does.input): (does, op.part.of_instruction)
                for op in readers
                if isinstance(does := op.does, Quantize)
            }
            for op in block.instructions:
                beat = op.part
                after, scale_for = None, beat.of_instruction
                if beat.peak and (key := (beat.peak - 1, op.does.writes[0])) in quantizes:
                    after, scale_for = quantizes[key]
                found = touched(op.does, beat, kinds.__getitem__, chip, after)
                size = size_of_beats(op.does, kinds.__getitem__, heads_of)
                yield Beaten(
                    (number, instance, beat.of_instruction),
                    bound,
                    op,
                    found,
                    (number, instance, scale_for),
                    size,
                    op in readers,
                )


@dataclass
class Replay:
    """Runs a program's beats, in program order, on a memory of elements.

    The beats of an instruction must agree on what they read, and do all of it.
    """

    program: ProgramOp
    memory: dict[int, tuple[Term, int]] = field(default_factory=dict)
    """For each element: the term it belongs to and which element of it."""
    sizes: dict[Term, int] = field(default_factory=dict)
    caches: dict[tuple[str, int], Term] = field(default_factory=dict)
    """By cache and head."""
    entries: dict[int, tuple[Any, int]] = field(default_factory=dict)
    """Whose reductions the entries have, and of which pass; of a peak the term, and 0."""
    reducing: dict[str, tuple[tuple[int, int, int], int]] = field(default_factory=dict)
    """By queue: the pass over a group that has begun and not ended."""
    scales: dict[int, tuple[int, int, int]] = field(default_factory=dict)
    """By the first element of each group: who wrote its scale."""
    scaled: dict[Term, tuple[int, int, int]] = field(default_factory=dict)
    """Quantised values with a scale of their own, and who made them."""
    terms: dict[tuple[int, int, int], Term] = field(default_factory=dict)
    """What instruction instances compute."""
    done: dict[tuple[tuple[int, int, int], int], set[int]] = field(default_factory=dict)
    """What of each pass of an instruction instance is done."""
    lengths: dict[tuple[int, int, int], tuple[int, int]] = field(default_factory=dict)
    """Of each instruction instance: passes, and what a pass counts."""

    def __post_init__(self) -> None:
        module = self.program.parent_op()
        assert isinstance(module, ModuleOp)
        self.lanes = memories(module)["vectors"].lanes
        self.kinds = {op.sym_name.data: value_of(op.type) for op in self.program.buffers}
        self.places = {
            name: (first, last - first) for name, (first, last) in places(self.program).items()
        }

    def run(self) -> tuple[Term, Term]:
        """Terms of logits and next token."""
        whole = {name: (0, size) for name, (_, size) in self.places.items()}
        self.write("token", whole["token"], "token")
        for one in beats(self.program):
            self.execute(one)
        assert not self.reducing
        for whose, (passes, size) in self.lengths.items():
            for number in range(passes):
                assert self.done[whose, number] == set(range(size))
        logits, token = name(self.program.logits), name(self.program.token)
        return self.read(logits, whole[logits]), self.read(token, whole[token])

    def write(self, buffer: str, part: tuple[int, int], term: Term) -> None:
        first, size = self.places[buffer]
        self.sizes[term] = size
        assert 0 <= part[0] < part[1] <= size
        for i in range(*part):
            self.memory[first + i] = (term, i)

    def read(self, buffer: str, part: tuple[int, int]) -> Term:
        first, size = self.places[buffer]
        assert 0 <= part[0] < part[1] <= size
        kind = self.kinds[buffer]
        wanted = list(range(*part))
        if isinstance(kind, Quantized):
            # Behind the elements of a group lies nothing.
            row = -(-kind.width // self.lanes) * self.lanes
            wanted = [i for i in wanted if i % row < kind.width]
        found = [self.memory[first + i] for i in wanted]
        (term,) = {one for one, _ in found}
        (offset,) = {there - i for i, (_, there) in zip(wanted, found, strict=True)}
        if term in self.scaled:
            assert {self.scales[at] for at in self.groups(buffer, part)} == {self.scaled[term]}
        return term if size == self.sizes[term] else ("slice", term, offset, size)

    def groups(self, buffer: str, part: tuple[int, int]) -> list[int]:
        """Where the groups of a part of a quantised value begin."""
        kind = self.kinds[buffer]
        assert isinstance(kind, Quantized)
        row = -(-kind.width // self.lanes) * self.lanes
        return [self.places[buffer][0] + i for i in range(*part, row)]

    def execute(self, one: Beaten) -> None:
        op, beat, found = one.op, one.op.part, one.found
        passes = passes_of(op.does)
        first, count = beat.of(one.size)
        done = self.done.setdefault((one.whose, beat.number), set())
        part = set(range(first, first + count))
        assert done.isdisjoint(part)
        done |= part
        self.lengths[one.whose] = passes, one.size
        if one.reads_peak:
            self.done[one.whose, 0] = set(range(one.size))
        # The beat of the last part stands for the instruction where beats do not matter.
        assert beat.ends == (beat.number == passes - 1 and first + count == one.size)
        self.reduce(one, passes)
        uses = {role: one.bound[name(slot)] for role, slot in op.uses.data.items()}
        read = tuple(self.read(b, found.reads[b]) for b in op.does.reads if b in found.reads)
        used = tuple(sorted(uses.values()))
        term: Term
        match op.opcode.data:
            case "append":
                (heads,) = found.written_caches.values()
                for head in range(*heads):
                    cache = uses["cache"], head
                    self.caches[cache] = ("append", read[0], self.caches.get(cache))
                return
            case "copy":
                (term,) = read
            case "query_key" | "weighted_sum" as opcode:
                (heads,) = found.read_caches.values()
                cache = uses["keys" if opcode == "query_key" else "values"]
                (seen,) = {self.caches.get((cache, head)) for head in range(*heads)}
                term = (opcode, read, used, seen)
            case "softmax" if not beat.number:
                # It goes over the scales of the values alone.
                assert not read and not found.writes and found.read_caches
                return
            case "softmax":
                (scores,) = read
                if beat.number == 1:
                    # Products take the place of the scores.
                    ((buffer, part),) = found.writes.items()
                    self.write(buffer, part, ("products", scores))
                    return
                if beat.number == 2:
                    assert scores[0] == "products"
                    scores = scores[1]
                term = ("softmax", (scores,), used, None)
            case opcode:
                term = (opcode, read, used)
        assert self.terms.setdefault(one.whose, term) == term
        if isinstance(op.does, Quantize) and passes > 1:
            self.scaled[term] = one.whose
        written = set(op.does.writes) if beat.number == passes - 1 else set[str]()
        for buffer, part in found.writes.items():
            if buffer in written:
                self.write(buffer, part, term)
            else:
                # Scales leave with the reductions.
                assert isinstance(self.kinds[buffer], Quantized) and found.leaves != (0, 0)
                self.scales |= dict.fromkeys(self.groups(buffer, part), one.scale_for)
        assert written <= set(found.writes)
        if beat.peak:
            self.entries |= dict.fromkeys(range(*found.leaves), (term, 0))

    def reduce(self, one: Beaten, passes: int) -> None:
        """Reductions are used by whom they are left for; a group's rows have the adders alone."""
        beat, found = one.op.part, one.found
        queue, mine = one.op.queue.data, (one.whose, beat.number)
        of: Any = one.whose
        if one.reads_peak:
            (buffer,) = one.op.does.reads
            of = self.read(buffer, found.reads[buffer])
        for entry in range(*found.uses):
            assert self.entries[entry] == (of, beat.number - 1)
        if not beat.peak:
            self.entries |= dict.fromkeys(range(*found.leaves), mine)
        if beat.peak or (queue == "vector" and beat.number < passes - 1):
            assert self.reducing.pop(queue, mine) == mine
            if found.leaves == (0, 0):
                self.reducing[queue] = mine
        else:
            assert found.leaves == (0, 0)


def assert_conflicts_are_waited_for(program: ProgramOp, machine: Machine) -> None:
    """What shares an element or a cache's head with something earlier comes after it, if one
    writes: starts when that has finished; where both are of a queue that takes and leaves things in
    order, and the later one does not read, when that has started. Reductions are there before they
    are used, and results of a queue come in order."""
    where = places(program)
    last = int(program.positions.get_values()[-1])
    positions = sorted({0, 1, last // 2, last})
    spans = list(timeline.simulate([b.timing for b in program.blocks], machine.issue, positions))
    never = np.full(len(positions), -1)
    written: dict[Any, dict[str, np.ndarray]] = {}
    seen: dict[Any, dict[str, np.ndarray]] = {}
    left: dict[int, np.ndarray] = {}
    ends: dict[str, np.ndarray] = {}

    def cells(one: Beaten, parts: Mapping[str, tuple[int, int]]) -> list[Any]:
        return [where[b][0] + i for b, part in parts.items() for i in range(*part)]

    def heads(one: Beaten, parts: Mapping[str, tuple[int, int]]) -> list[Any]:
        return [(one.bound[slot], head) for slot, part in parts.items() for head in range(*part)]

    for one, span in zip(beats(program), spans, strict=True):
        op, found, queue = one.op, one.found, one.op.queue.data
        flows = op.pace is not None
        reads = cells(one, found.reads) + heads(one, found.read_caches)
        writes = cells(one, found.writes) + heads(one, found.written_caches)
        if machine.shared_arrays and queue in ("matrix", "attention"):
            writes.append("adders")
        for cell in reads:
            for finish in written.get(cell, {}).values():
                assert (finish <= span.start).all(), (op.opcode.data, cell)
        for cell in writes:
            for other, finish in seen.get(cell, {}).items():
                if other != queue or not flows:
                    assert (finish <= span.start).all(), (op.opcode.data, cell)
        for entry in range(*found.uses):
            assert (left[entry] <= span.start).all(), op.opcode.data
        for counter, end in ((queue, span.finish), (reductions_of(queue), span.left)):
            if end is not None and flows:
                assert (ends.get(counter, never) < end).all(), (op.opcode.data, counter)
                ends[counter] = end
        if span.left is not None:
            left |= dict.fromkeys(range(*found.leaves), span.left)
        for kept, those in ((seen, [*reads, *writes]), (written, writes)):
            for cell in those:
                of = kept.setdefault(cell, {})
                of[queue] = np.maximum(of.get(queue, never), span.finish)


# --- properties ---------------------------------------------------------------------------------


def formulas(program: ProgramOp) -> set[str]:
    """All that is said of how long instructions take."""
    return {
        one.data
        for block in program.blocks
        for op in block.instructions
        for one in (op.duration, op.pace, op.reduces)
        if one is not None
    }


RANKS = st.sampled_from([0, 0, 3])
"""Of adapter slots; 0 is none."""


def tight(compiled: Callable[[Machine], ModuleOp], machine: Machine) -> Machine:
    """A machine with the least vector memory that the program fits in: places are used again."""
    size, found = 1, None
    # Where scales of caches alone take more, they are refused first.
    while found is None:
        with pytest.raises(DoesNotFit) as raised:
            scheduled(compiled(replace(machine, vector_sram_bytes=size)))
        found = re.search(r"the program needs (\d+)", said := str(raised.value))
        if found is None:
            scales = re.search(r"hold \d+ bytes, scales .* take (\d+)", said)
            assert scales is not None and int(scales[1]) > size, said
            size = int(scales[1])
    return replace(machine, vector_sram_bytes=int(found[1]))


@RELAXED
@given(data=st.data())
def test_the_program_computes_what_the_operators_mean(
    data: st.DataObject, integers: Any, decoders: Any, machines: Any
) -> None:
    model, rank = data.draw(decoders), data.draw(RANKS)
    if rank:
        # Terms are trees: each slot doubles the paths to what it reads.
        model = replace(model, layers=min(model.layers, 2))

    def compiled(machine: Machine) -> ModuleOp:
        return integers(model, machine, rank, ("v_proj", "down_proj"))

    machine = data.draw(machines)
    module = compiled(tight(compiled, machine) if data.draw(st.booleans()) else machine)
    meaning = Meaning()
    wanted = meaning.step(module)
    replay = Replay(scheduled(module))
    assert replay.run() == wanted
    for (cache, _), term in replay.caches.items():
        assert term == meaning.caches[cache]
    assert {cache for cache, _ in replay.caches} == set(meaning.caches)


@RELAXED
@given(data=st.data())
def test_every_conflict_is_waited_for(
    data: st.DataObject, integers: Any, decoders: Any, machines: Any
) -> None:
    machine, model, rank = data.draw(machines), data.draw(decoders), data.draw(RANKS)
    machine = replace(machine, shared_arrays=data.draw(st.integers(0, 1)))

    def compiled(machine: Machine) -> ModuleOp:
        return integers(model, machine, rank)

    if data.draw(st.booleans()):
        machine = tight(compiled, machine)
    program = scheduled(compiled(machine))
    assert_conflicts_are_waited_for(program, machine)


def test_places_used_again_cost_no_cycle_where_waits_allow_them(
    integers: Any, decoder: Any, mini: Machine
) -> None:
    """The least memory that this program fits in is the one that it takes where there is more."""

    def compiled(machine: Machine) -> ModuleOp:
        return integers(decoder, machine, 3)

    def cycles(machine: Machine) -> int:
        program = scheduled(compiled(machine))
        return max(max(op.finish.get_values()) for b in program.blocks for op in b.instructions)

    assert cycles(mini) == cycles(tight(compiled, mini))


@RELAXED
@given(data=st.data())
def test_buffers_lie_in_the_vector_memory(
    data: st.DataObject, integers: Any, decoders: Any, machines: Any
) -> None:
    machine = data.draw(machines)
    program = scheduled(integers(data.draw(decoders), machine, data.draw(RANKS)))
    module = program.parent_op()
    assert isinstance(module, ModuleOp)
    chip = memories(module)
    assert size_of(chip.values()) <= machine.vector_sram_bytes
    where = places(program)
    for buffer in program.buffers:
        first, last = where[buffer.sym_name.data]
        assert 0 <= first < last
        if buffer.memory is not None:
            row, element = buffer.place
            one = chip[buffer.memory.root_reference.data]
            assert row * one.lanes + element + last - first <= one.rows * one.lanes


@RELAXED
@given(data=st.data())
def test_durations_grow_with_the_position(
    data: st.DataObject, integers: Any, decoders: Any, machines: Any
) -> None:
    model = replace(data.draw(decoders), window=0)
    program = scheduled(integers(model, data.draw(machines)))
    tokens = np.arange(1, model.capacity + 1)
    for text in formulas(program):
        cycles = np.broadcast_to(formula.parse(text)(tokens=tokens, rank=0), tokens.shape)
        assert cycles[0] >= 1
        assert (np.diff(cycles) >= 0).all()


@RELAXED
@given(data=st.data())
def test_a_window_bounds_durations(
    data: st.DataObject, integers: Any, decoders: Any, machines: Any
) -> None:
    model = replace(data.draw(decoders), window=7, capacity=200)
    machine = data.draw(machines)
    program = scheduled(integers(model, machine))
    bound = 7 + 2 * max(machine.tiles, machine.vector_lanes)
    for text in formulas(program):
        cycles = formula.parse(text)
        later = cycles(tokens=np.arange(bound, 200), rank=0)
        assert np.max(later) <= cycles(tokens=bound, rank=0) * 2


def test_start_and_finish_are_stated_for_each_instance_and_position(
    integers: Any, decoder: Any, mini: Machine
) -> None:
    program = scheduled(integers(decoder, mini))
    assert program.positions.get_values() == (0, decoder.capacity - 1)
    blocks = list(program.blocks)
    spans = timeline.simulate([b.timing for b in blocks], mini.issue, [0, decoder.capacity - 1])
    stated: dict[int, tuple[list[int], list[int]]] = {}
    for span in spans:
        op = list(blocks[span.block].instructions)[span.instruction]
        starts, finishes = stated.setdefault(id(op), ([], []))
        starts.extend(span.start.tolist())
        finishes.extend(span.finish.tolist())
    for block in blocks:
        for op in block.instructions:
            assert op.start is not None and op.finish is not None
            assert (list(op.start.get_values()), list(op.finish.get_values())) == stated[id(op)]


def test_outlining_changes_no_cycle_but_copies(
    integers: Any, decoder: Any, mini: Machine, work: Any
) -> None:
    """Blocks are cut differently, and so may passes be; the same instructions take their queues for
    the same cycles, and what they leave is there as long after that. A quantisation needs no first
    pass where the largest magnitude is left in its own block."""
    found = []
    for outline in (True, False):
        program = scheduled(integers(replace(decoder, outline=outline), mini))
        whole: dict[tuple[int, int, int], list[InstructionOp]] = {}
        for one in beats(program):
            whole.setdefault(one.whose, []).append(one.op)
        opcodes = [
            (opcode, [one for one in work(ops, decoder.capacity) if one[0] or opcode != "quantize"])
            for ops in whole.values()
            for opcode in (ops[0].opcode.data,)
            if opcode != "copy"
        ]
        found.append(sorted(opcodes))
    assert found[0] == found[1]


def test_the_head_runs_only_when_a_token_is_wanted(
    integers: Any, decoder: Any, mini: Machine
) -> None:
    program = scheduled(integers(decoder, mini))
    sampled = [block for block in program.blocks if block.sampled is not None]
    assert sampled == list(program.blocks)[-1:]
    numbers = {op.part.of_instruction: op.opcode.data for op in sampled[0].instructions}
    assert [numbers[n] for n in sorted(numbers)] == ["quantize", "matvec", "sample"]
    begun = dict.fromkeys(op.opcode.data for op in sampled[0].instructions)
    assert list(begun) == ["quantize", "matvec", "sample"]


def test_names_of_onnx_nodes_reach_the_program(integers: Any, decoder: Any, mini: Machine) -> None:
    program = scheduled(integers(decoder, mini))
    for block in program.blocks:
        for op in block.instructions:
            if op.opcode.data != "copy":
                assert len(op.onnx) == len(block.instances)
                assert all(len(one) for one in op.onnx)


@pytest.mark.parametrize(
    ("size", "what"),
    [(512, r"scales of cached keys and values take 1536"), (1536, r"the program needs \d+")],
)
def test_a_vector_memory_too_small(
    integers: Any, decoder: Any, mini: Machine, size: int, what: str
) -> None:
    module = integers(decoder, replace(mini, vector_sram_bytes=size))
    with pytest.raises(DoesNotFit, match=f"hold {size} bytes, {what}"):
        scheduled(module)


# --- carried values -----------------------------------------------------------------------------

CARRIED = """
rom.parameter @e : !rom.tensor<[16, 8], fixed16> {{key = "e", exponent = 14 : i64}}
rom.layer @l {{
^bb0(%p: index, %a: !rom.fixed<8, 16>, %b: !rom.fixed<8, 16>):
  %c = rom.{op} {{{kind}onnx = [["m0"], ["m1"]]}} : {types} -> !rom.fixed<8, 16>
  rom.yield {given} : !rom.fixed<8, 16>, !rom.fixed<8, 16>
}}
rom.step @decode context 8 {{
^bb0(%token: i32, %position: index):
  %x = rom.embed %token of @e {{onnx = [["e"]]}} : !rom.fixed<8, 16>
  %y = rom.activate %x {{kind = "relu", onnx = [["f"]]}} : !rom.fixed<8, 16> -> !rom.fixed<8, 16>
  %r, %s = rom.repeat @l at %position ({initial}) instances [{{}}, {{}}]
    : (!rom.fixed<8, 16>, !rom.fixed<8, 16>) -> !rom.fixed<8, 16>, !rom.fixed<8, 16>
  %z = rom.add %r, {last} {{onnx = [["a"]]}}
    : !rom.fixed<8, 16>, !rom.fixed<8, 16> -> !rom.fixed<8, 16>
  %next = rom.sample %z {{onnx = [["h"]]}} : !rom.fixed<8, 16>
  rom.emit %z, %next : !rom.fixed<8, 16>
}}
"""
TWO = "!rom.fixed<8, 16>, !rom.fixed<8, 16>"


@pytest.mark.parametrize("initial", ["%x, %y", "%x, %x", "%y, %x"])
@pytest.mark.parametrize("last", ["%s", "%x"])
@pytest.mark.parametrize(
    ("op", "types", "given"),
    [
        ("mul %a, %b", TWO, "%c, %b"),
        ("mul %a, %b", TWO, "%a, %c"),
        ("activate %b", "!rom.fixed<8, 16>", "%b, %c"),
        ("mul %a, %b", TWO, "%b, %c"),
    ],
)
def test_values_carried_from_layer_to_layer(
    from_text: Callable[[str], ModuleOp],
    mini: Machine,
    initial: str,
    last: str,
    op: str,
    types: str,
    given: str,
) -> None:
    assert_carried(from_text, mini, initial, last, op, types, given)


@pytest.mark.parametrize("given", ["%c, %c", "%b, %a", "%c, %a"])
def test_carried_values_that_depend_on_each_other(
    from_text: Callable[[str], ModuleOp], mini: Machine, given: str
) -> None:
    with pytest.raises(PassFailedException, match="yields a value in another's place"):
        assert_carried(from_text, mini, "%x, %y", "%s", "mul %a, %b", TWO, given)


def assert_carried(
    from_text: Callable[[str], ModuleOp],
    mini: Machine,
    initial: str,
    last: str,
    op: str,
    types: str,
    given: str,
) -> None:
    kind = 'kind = "relu", ' if op.startswith("activate") else ""
    text = CARRIED.format(op=op, kind=kind, types=types, given=given, initial=initial, last=last)
    module = from_text(text)
    Rewriter.insert_op(MachineOp(mini), InsertPoint.at_start(module.body.block))
    wanted = Meaning().step(module)
    program = scheduled(module)
    assert Replay(program).run() == wanted
    assert_conflicts_are_waited_for(program, mini)
