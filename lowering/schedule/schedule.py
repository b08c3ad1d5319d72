"""`program-schedule`: from placed operators to instructions with buffers, waits and cycles.

The step is cut into blocks (`lowering/schedule/blocks.py`), whose operators become instructions
(`lowering/schedule/selection.py`); their values get places in the vector units' memories
(`lowering/place/vector_memory.py`). What an instruction must wait for follows from the places that
it shares with instructions of other queues (`lowering/schedule/waits.py`), and from the power of
the ROM that it reads (`lowering/schedule/power.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from xdsl.context import Context
from xdsl.dialects.builtin import I64, BytesAttr, DenseArrayBase, ModuleOp, i64
from xdsl.passes import ModulePass
from xdsl.rewriter import InsertPoint, Rewriter
from xdsl.utils.exceptions import PassFailedException

from intaglio.dialects import rom, timeline
from intaglio.dialects.errors import DoesNotFit, UserError, Way
from intaglio.dialects.fabric import MemoryOp, machine_of
from intaglio.dialects.isa.matrix import Product
from intaglio.dialects.isa.queues import PEAKS, POWER
from intaglio.dialects.machine import Machine
from intaglio.dialects.memories import Memory
from intaglio.dialects.program import BlockOp, BufferOp, InstructionOp, ProgramOp
from intaglio.lowering.buffers import context, matrices_of, name_of, state_sizes
from intaglio.lowering.order import check_before, check_legalised
from intaglio.lowering.place.search import largest
from intaglio.lowering.place.sram import need_of
from intaglio.lowering.place.vector_memory import VectorMemory
from intaglio.lowering.schedule import power
from intaglio.lowering.schedule.beats import Beats
from intaglio.lowering.schedule.blocks import BlockCutter
from intaglio.lowering.schedule.draft import DraftBlock
from intaglio.lowering.schedule.peaks import peaks_of
from intaglio.lowering.schedule.waits import waits


@dataclass(frozen=True)
class ProgramSchedule(ModulePass):
    """Replaces the step and its layers by a program."""

    name = "program-schedule"

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        machine = machine_of(op)
        check_before(self.name, op, self.name)
        check_legalised(op)
        steps = [found for found in op.ops if isinstance(found, rom.StepOp)]
        if len(steps) != 1:
            raise PassFailedException(f"expected one rom.step, found {len(steps)}")
        program, chip = _schedule(op, steps[0], machine)
        layers = [found for found in op.ops if isinstance(found, rom.LayerOp)]
        Rewriter.insert_op(
            [MemoryOp(name, one) for name, one in chip.items()], InsertPoint.before(steps[0])
        )
        Rewriter.replace_op(steps[0], program, [])
        for layer in layers:
            Rewriter.erase_op(layer)
        if machine.contexts > 1:
            _check_contexts(op, program, machine)
        annotate(program, machine)
        _check_retention(program, machine)


def _check_contexts(module: ModuleOp, program: ProgramOp, machine: Machine) -> None:
    """What the program needs there is for several tokens in flight.

    Raises:
        UserError: it is not.
    """
    without = {
        "states, which tokens take one after the other": bool(
            state_sizes(module) or matrices_of(module)
        ),
        "power gating": any(
            one.queue.data == POWER for block in program.blocks for one in block.instructions
        ),
        "adapters": bool(_largest_ranks(program)),
        "keys and values in external memory": 0 < machine.kv_on_die < context(module),
        "adders that attention shares with matrices": bool(machine.shared_arrays),
        "largest magnitudes that are taken while values are written (formats without an exponent "
        "a block)": any(
            one.part.peak and one.queue.data in PEAKS
            for block in program.blocks
            for one in block.instructions
        ),
    }
    if found := [what for what, there in without.items() if there]:
        raise UserError(
            f"{machine.contexts} tokens in flight are not possible with {', '.join(found)}",
            hint="compile with --in-flight 1",
        )


def annotate(program: ProgramOp, machine: Machine) -> None:
    """States start and finish of every instruction instance at the program's positions."""
    timing = [block.timing for block in program.blocks]
    found = timeline.tables(timing, machine.issue, program.positions.get_values())
    for block, (starts, finishes) in zip(program.blocks, found, strict=True):
        for one, start, finish in zip(block.instructions, starts, finishes, strict=True):
            one.start, one.finish = _integers(start), _integers(finish)


def _integers(values: npt.NDArray[np.int64]) -> DenseArrayBase[I64]:
    """Integers as an attribute: `DenseArrayBase.from_list` takes them one by one."""
    return DenseArrayBase(i64, BytesAttr(values.astype("<i8").tobytes()))


def _check_retention(program: ProgramOp, machine: Machine) -> None:
    """Every on-die key and value is read, and so refreshed, before it is lost.

    Each token reads all of them, so the time of the slowest token is what counts; the last position
    has the most to read, and the largest adapter the most to multiply.

    Raises:
        DoesNotFit: a token takes longer than a cell holds its value.
    """
    if not machine.retention_cycles:
        return
    last = int(program.positions.get_values()[-1])
    ranks = _largest_ranks(program)
    timing = [block.timing for block in program.blocks]

    def cycles(position: int, ranks: timeline.Ranks = ranks) -> int:
        spans = timeline.simulate(timing, machine.issue, position, ranks)
        return max(int(span.finish[0]) for span in spans)

    taken = cycles(last)
    if taken <= machine.retention_cycles:
        return
    first = cycles(0)
    ways: list[Way] = []
    at = f"at position {last}"
    if first <= machine.retention_cycles:
        # A later token takes no less time, and a context ends with the slowest.
        context = 1 + largest(lambda n: cycles(n) <= machine.retention_cycles, last - 1)
        ways.append(Way(context=context))
    elif last:
        at += f" and {1e3 * first / machine.clock_hz:.3g} ms at position 0"
    if ranks:

        def holds(rank: int) -> bool:
            smaller = {at: min(rank, one) for at, one in ranks.items()}
            return cycles(last, smaller) <= machine.retention_cycles

        if rank := largest(holds, max(ranks.values()) - 1):
            ways.append(Way(rank=rank))
        elif cycles(last, {}) <= machine.retention_cycles:
            ways.append(Way(rank=0))
    held, needed = (n / machine.clock_hz for n in (machine.retention_cycles, taken))
    ways += [
        Way(settings=(f"clock.frequency_hz={_rounded_up(taken / held)}",)),
        Way(settings=(f"external.retention_us={_rounded_up(1e6 * needed)}",)),
    ]
    raise DoesNotFit(
        f"a token takes {1e3 * needed:.3g} ms {at}; the on-die cells of {machine.name} hold keys "
        f"and values for {1e3 * held:.3g} ms without being read",
        of="the time",
        ways=ways,
    )


def _rounded_up(number: float) -> int:
    """A number in four digits, not below it."""
    step = 10 ** max(0, len(str(int(number))) - 4)
    return (int(number) // step + 1) * step


def _largest_ranks(program: ProgramOp) -> timeline.Ranks:
    """The ranks that the slots are made for, at every instruction instance that has one."""
    module = program.parent_op()
    assert isinstance(module, ModuleOp)
    ranks: dict[str, int] = {}
    for site in module.ops:
        if isinstance(site, rom.SiteOp):
            type_ = rom.resolve(site, site.a).type
            assert isinstance(type_, rom.AdapterType)
            ranks |= dict.fromkeys((name_of(site.a), name_of(site.b)), type_.dims[0])
    found: dict[tuple[int, int, int], int] = {}
    for number, block in enumerate(program.blocks):
        for index, one in enumerate(block.instructions):
            does = one.does
            if isinstance(does, Product):
                for instance, bound in enumerate(block.bindings):
                    if rank := ranks.get(bound[does.weights]):
                        found[number, instance, index] = rank
    return found


def _schedule(
    module: ModuleOp, step: rom.StepOp, machine: Machine
) -> tuple[ProgramOp, dict[str, Memory]]:
    """The program of a step, and the memories that the chip has for its values."""
    capacity = context(module)
    need = need_of(module, machine)
    states = state_sizes(module)
    reserved = sum(-(-size // machine.vector_lanes) for size in states.values())
    memory = VectorMemory(machine, capacity, lambda tokens: need.at(tokens).scales, reserved)
    cutter = BlockCutter(module, machine, memory)
    blocks = list(cutter.blocks(step))
    heads = {
        op.sym_name.data: op.type.heads.data
        for op in module.ops
        if isinstance(op, rom.CacheOp) and isinstance(op.type, rom.KVType)
    }
    heads |= {name: one.heads.data for name, one in matrices_of(module).items()}
    peaks = peaks_of(blocks, memory, machine)
    beats = Beats(machine, memory, cutter.rows_at_once, heads, peaks, states)
    for number, block in enumerate(blocks):
        beats.cut(block, number)

    def timing(blocks: Sequence[DraftBlock]) -> list[timeline.Block]:
        return [
            timeline.Block(
                block.name,
                [
                    draft.issue(needed)
                    for draft, needed in zip(block.drafts, block_waits, strict=True)
                ],
                len(block.instances),
            )
            for block, block_waits in zip(blocks, waits(blocks, memory, machine), strict=True)
        ]

    memory.allocate(blocks, step, timing)
    if domains := power.domains_of(module):
        power.switch(blocks, domains, machine, timing)
    emit = step.body.block.last_op
    assert isinstance(emit, rom.EmitOp)
    ops: list[BufferOp | BlockOp] = [*memory.buffers()]
    for block, block_waits in zip(blocks, waits(blocks, memory, machine), strict=True):
        instructions = [
            InstructionOp(
                draft.does.with_values(memory.name),
                needed,
                draft.times.duration,
                draft.onnx,
                pace=draft.times.pace,
                reduces=draft.times.reduces,
                beat=draft.beat,
            )
            for draft, needed in zip(block.drafts, block_waits, strict=True)
        ]
        ops.append(BlockOp(block.name, block.instances, instructions, block.sampled))
    program = ProgramOp(
        step.sym_name.data,
        sorted({0, capacity - 1}),
        memory.name(emit.logits),
        memory.name(emit.token),
        ops,
    )
    return program, memory.memories()
