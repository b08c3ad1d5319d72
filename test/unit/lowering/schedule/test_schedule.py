"""Programs: the right values in the right buffers, every conflict waited for."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp, SymbolRefAttr
from xdsl.ir import Block, Operation, SSAValue
from xdsl.rewriter import InsertPoint, Rewriter
from xdsl.utils.exceptions import PassFailedException

from intaglio.dialects import formula, rom, timeline
from intaglio.dialects.errors import DoesNotFit
from intaglio.dialects.fabric import MachineOp, memories
from intaglio.dialects.machine import Machine
from intaglio.dialects.memories import size_of
from intaglio.dialects.program import BlockOp, InstructionOp, ProgramOp, spans
from intaglio.lowering.place.place import FabricPlace
from intaglio.lowering.schedule.schedule import ProgramSchedule

Term = Any
"""What a value is: a name, or (operation, arguments...)."""

RELAXED = settings(
    max_examples=15,
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


@dataclass
class Replay:
    """Runs a program's instructions, in program order, on a memory of elements."""

    program: ProgramOp
    memory: dict[int, tuple[Term, int]] = field(default_factory=dict)
    """For each element: the term it belongs to and which element of it."""
    sizes: dict[Term, int] = field(default_factory=dict)
    caches: dict[str, Term] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.places = {
            name: (first, last - first) for name, (first, last) in places(self.program).items()
        }

    def run(self) -> tuple[Term, Term]:
        """Terms of logits and next token."""
        self.write("token", "token")
        for _, bound, op in instances(self.program):
            self.execute(op, bound)
        return self.read(name(self.program.logits)), self.read(name(self.program.token))

    def write(self, buffer: str, term: Term) -> None:
        first, size = self.places[buffer]
        self.sizes[term] = size
        for i in range(size):
            self.memory[first + i] = (term, i)

    def read(self, buffer: str) -> Term:
        first, size = self.places[buffer]
        found = [self.memory[first + i] for i in range(size)]
        (term,) = {one for one, _ in found}
        offset = found[0][1]
        assert [i for _, i in found] == list(range(offset, offset + size)), buffer
        return term if size == self.sizes[term] else ("slice", term, offset, size)

    def execute(self, op: InstructionOp, bound: dict[str, str]) -> None:
        uses = {role: bound[name(slot)] for role, slot in op.uses.data.items()}
        read = tuple(self.read(name(b)) for b in op.reads)
        used = tuple(sorted(uses.values()))
        term: Term
        match op.opcode.data:
            case "append":
                cache = uses["cache"]
                self.caches[cache] = ("append", read[0], self.caches.get(cache))
                return
            case "copy":
                (term,) = read
            case "query_key":
                term = ("query_key", read, used, self.caches.get(uses["keys"]))
            case "softmax":
                term = ("softmax", read, used, None)
            case "weighted_sum":
                term = ("weighted_sum", read, used, self.caches.get(uses["values"]))
            case opcode:
                term = (opcode, read, used)
        for buffer in op.writes:
            self.write(name(buffer), term)


Instance = tuple[BlockOp, dict[str, str], InstructionOp]


def instances(program: ProgramOp) -> Iterator[Instance]:
    """Every instruction instance with what its block's slots are bound to."""
    for block in program.blocks:
        for instance in block.instances:
            for op in block.instructions:
                yield block, {s: name(b) for s, b in instance.data.items()}, op


def assert_conflicts_are_waited_for(program: ProgramOp, issue: int) -> None:
    """What shares a byte or a cache with something earlier starts after it, if one writes."""
    where = places(program)
    last = int(program.positions.get_values()[-1])
    positions = sorted({0, 1, last // 2, last})
    spans = list(timeline.simulate([b.timing for b in program.blocks], issue, positions))
    written: dict[Any, np.ndarray] = {}
    touched: dict[Any, np.ndarray] = {}
    never = np.full(len(positions), -1)

    def bytes_of(buffers: Any) -> list[Any]:
        return [i for b in buffers for i in range(*where[name(b)])]

    for (_, bound, op), span in zip(instances(program), spans, strict=True):
        uses = {role: bound[name(slot)] for role, slot in op.uses.data.items()}
        reads = bytes_of(op.reads) + [uses[r] for r in ("keys", "values") if r in uses]
        writes = bytes_of(op.writes) + [uses[r] for r in ("cache",) if r in uses]
        for cell in reads:
            assert (written.get(cell, never) < span.start).all(), (op.opcode.data, cell)
        for cell in writes:
            assert (touched.get(cell, never) < span.start).all(), (op.opcode.data, cell)
        for cell in reads:
            touched[cell] = np.maximum(touched.get(cell, never), span.finish)
        for cell in writes:
            written[cell] = span.finish
            touched[cell] = np.maximum(touched.get(cell, never), span.finish)


# --- properties ---------------------------------------------------------------------------------

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
    assert replay.caches == meaning.caches


@RELAXED
@given(data=st.data())
def test_every_conflict_is_waited_for(
    data: st.DataObject, integers: Any, decoders: Any, machines: Any
) -> None:
    machine, model, rank = data.draw(machines), data.draw(decoders), data.draw(RANKS)

    def compiled(machine: Machine) -> ModuleOp:
        return integers(model, machine, rank)

    if data.draw(st.booleans()):
        machine = tight(compiled, machine)
    program = scheduled(compiled(machine))
    assert_conflicts_are_waited_for(program, machine.issue)


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
    for _, _, op in instances(program):
        cycles = np.broadcast_to(
            formula.parse(op.duration.data)(tokens=tokens, rank=0), tokens.shape
        )
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
    for _, _, op in instances(program):
        cycles = formula.parse(op.duration.data)
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


def test_outlining_changes_no_cycle_but_copies(integers: Any, decoder: Any, mini: Machine) -> None:
    """Blocks are cut differently; the same instructions run for the same cycles."""
    opcodes = []
    for outline in (True, False):
        program = scheduled(integers(replace(decoder, outline=outline), mini))
        opcodes.append(
            sorted(
                (op.opcode.data, op.duration.data)
                for _, _, op in instances(program)
                if op.opcode.data != "copy"
            )
        )
    assert opcodes[0] == opcodes[1]


def test_the_head_runs_only_when_a_token_is_wanted(
    integers: Any, decoder: Any, mini: Machine
) -> None:
    program = scheduled(integers(decoder, mini))
    sampled = [block for block in program.blocks if block.sampled is not None]
    assert sampled == list(program.blocks)[-1:]
    assert [op.opcode.data for op in sampled[0].instructions] == ["quantize", "matvec", "sample"]


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
    assert_conflicts_are_waited_for(program, mini.issue)
