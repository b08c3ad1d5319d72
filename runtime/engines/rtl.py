"""The chip's hardware as an engine: runs tokens as the simulator does, and counts cycles.

`RTLChip` fills the memories of a running model of the module `chip` (`runtime/engines/arc.py` on
the CIRCT IR, or `runtime/engines/verilator.py` on the SystemVerilog), feeds tokens and collects the
event port. `compare_token` runs a token on it and on the simulator, and compares every value in the
cycle in which it can first be read, every start and finish, logits, token, saturations and KV
contents.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from intaglio.backend import circt
from intaglio.backend.emit_hardware import emit_hardware, hardware_text, logic_size, source_files
from intaglio.backend.hw.chip.chip import TOP
from intaglio.backend.hw.chip.contents import rom_words
from intaglio.backend.hw.chip.layout import heads_of, layout_of, layout_with
from intaglio.backend.hw.chip.sequencer import counters
from intaglio.backend.hw.units.attention.kv import read_cache, word_bytes, write_cache, write_words
from intaglio.backend.images.adapter import AdapterImage
from intaglio.backend.images.read import Images
from intaglio.backend.output.hardware_files import IR, VERILOG
from intaglio.backend.output.output import MANIFEST, sha256_of
from intaglio.backend.output.verified import OutputFiles
from intaglio.backend.output.whole import check_writable, write_text
from intaglio.backend.program.program import PROGRAM, Instruction, Program, load_program
from intaglio.dialects.errors import CompilerBug, UserError
from intaglio.dialects.fixed_point import SCALE_BITS, Scale
from intaglio.dialects.formats import EXPONENTS, FORMATS, PLACES
from intaglio.dialects.formulas import blocks
from intaglio.dialects.formulas.arrays import Arrays
from intaglio.dialects.h_units import STATE_SCALES, STATES
from intaglio.dialects.hazards import Access
from intaglio.dialects.isa import values
from intaglio.dialects.isa.queues import LEAVES, reductions_of
from intaglio.dialects.memories import (
    BLOCK_STEPS,
    CODE_SCALES,
    CODES,
    EXPERT_BITS,
    EXPONENT_BITS,
    HEADS,
    LARGEST,
    NORM_SCALES,
    PROBABILITIES,
    ROUTINGS,
    SCORES,
    STEP_BITS,
    VECTORS,
)
from intaglio.dialects.semantics import Matrices, Quantized, Routing, unit_scale
from intaglio.dialects.tiling import WIDE
from intaglio.runtime.adapters.slots import Residents, Switch, check_fits, ranks_of
from intaglio.runtime.engines.code_cache import kept
from intaglio.runtime.engines.names import HARDWARE_ENGINES
from intaglio.runtime.engines.running import Model, Trace
from intaglio.runtime.engines.simulator import Probabilities, Store
from intaglio.runtime.engines.vcd import waveform_format
from intaglio.runtime.expected_tokens import expected_tokens
from intaglio.runtime.reports.timing import spans

Ints = npt.NDArray[np.int64]
LARGE_TABLES = 128 << 10
"""Bytes of ROM that is logic above which the verilator engine has tables as arrays: 32 kB are read
as case statements in seconds, 480 kB not in minutes."""
_SCALE_BYTES = -(-(SCALE_BITS + EXPONENT_BITS) // 8)


@dataclass(frozen=True, order=True)
class Event:
    """An instruction of a token on the hardware: cycles counted from the token's acceptance."""

    queue: str
    sequence: int
    start: int
    finish: int


@dataclass(frozen=True)
class Step:
    """An instruction instance of a token, as the timeline has it.

    Attributes:
        event: its start and finish.
        block, instance, instruction: what it is.
        touches: what it reads and writes.
        end: when all of it is there.
        out: when a token that it chooses is at the port; None: it chooses none.
        reduction: its reduction, if it leaves one: the finish is the cycle in which it is there.
    """

    event: Event
    block: int
    instance: int
    instruction: Instruction
    touches: Access
    end: int
    out: int | None = None
    reduction: Event | None = None

    @property
    def nodes(self) -> str:
        """The ONNX nodes that it stands for."""
        every = self.instruction.onnx
        return ", ".join(every[self.instance] if self.instance < len(every) else ()) or "-"

    def __str__(self) -> str:
        event, one = self.event, self.instruction
        return f"{one.opcode} (queue {event.queue}, number {event.sequence}, node {self.nodes})"


class RTLChip:
    """Runs a program on its hardware; the interface is that of the simulator.

    Args:
        program: what `load_program` gave.
        folder: the output folder with the images.
        engine: `rtl` or `verilator`.
        cache: keep compiled models on disk.
        opt: level of optimisation of the rtl engine: 0 builds sooner and runs slower.
        text: the IR to run instead of the program's own, with the same memories.
        handed_out: the verilator engine runs the SystemVerilog that is handed out, the files of the
            folder where it has them, as it does with a waveform. Otherwise it runs SystemVerilog
            of the same IR that is made to be fast.
        trace: a waveform file; it is there when its last cycle has been run, or at `close`.
        trace_cycles: its first and its last cycle (None: to the end), both included. Cycle 0 is
            that of the reset when the chip is made; `began` tells where on this clock a token is,
            and later resets do not set it back.

    Raises:
        UserError: the program needs what the hardware does not have, or the engine a package or
            compiler that is missing; or the engine cannot write such a waveform.
    """

    def __init__(
        self,
        program: Program,
        folder: Path,
        engine: str = "rtl",
        *,
        cache: bool = True,
        opt: int = 1,
        text: str | None = None,
        handed_out: bool = False,
        trace: Path | None = None,
        trace_cycles: tuple[int, int | None] = (0, None),
    ) -> None:
        if engine not in HARDWARE_ENGINES:
            raise UserError(
                f"no engine {engine}", hint=f"engines are {', '.join(HARDWARE_ENGINES)}"
            )
        circt.check_installed()
        waveform = waveform_format(trace, engine) if trace is not None else ""
        if trace is not None:
            # What is wrong with the file is said before minutes of work.
            check_writable(trace)
        self.program = program
        self.engine = engine
        self.vocabulary = program.vocabulary
        self.capacity = program.capacity
        self.fraction_bits = program.fraction(program.logits)
        self.layout = layout_of(program)
        self.model = _model(
            program, Path(folder), engine, cache, opt, text, waveform, handed_out or bool(waveform)
        )
        self.events: list[Event] = []
        """Of the last token, by finish."""
        self.position = 0
        """Tokens since the last reset."""
        self.resets = 0
        """How often it was reset: by it whoever began a sequence knows that it is still there."""
        self._next: int | None = None
        self.out: int | None = None
        """The cycle in which the last token's successor was there, from its acceptance; None: it
        was not."""
        self._began = 0
        self._open: dict[tuple[str, int], int] = {}
        self._adapter: AdapterImage | None = None
        self._residents = Residents(program)
        self.fill(program, Images(program, Path(folder)), Path(folder))
        self.model.set("next_ready", 1)
        if trace is not None:
            self.model.trace(trace, *trace_cycles)
        self.reset()

    def fill(self, program: Program, images: Images, folder: Path) -> None:
        """Writes the contents of all ROMs, the descriptors of instructions included.

        Args:
            program: the chip's, or one that differs from it in exponents and constants only.
            images: its tensors.
            folder: where it is from.

        Raises:
            UserError: a memory has another shape than its content.
        """
        layout = self.layout
        if program is not self.program:
            buffers = layout.program.buffers
            layout = layout_with(layout, replace(program, buffers=buffers))
        for path, words in rom_words(layout, images):
            if path in self._memories:
                memory = self.model.memory(path)
                if len(words) > len(memory) or words.shape[1:] != memory.shape[1:]:
                    raise UserError(
                        f"the memory {path} of its hardware has another shape",
                        file=str(folder),
                        hint="another version wrote this folder; compile the model again",
                    )
                memory[: len(words)] = words

    @property
    def contexts(self) -> int:
        """Of the chip."""
        return self.program.machine.contexts

    def in_context(self, number: int) -> RTLChip:
        """The same chip, whose buffers are read where a context has them."""
        if not number:
            return self
        program, view = self.layout.contexts[number].program, copy(self)
        places = replace(self.layout.places, heads=heads_of(program))
        view.layout = replace(self.layout, program=program, places=places)
        return view

    @cached_property
    def _memories(self) -> frozenset[str]:
        return frozenset(self.model.memories)

    def reset(self) -> None:
        """Forgets all tokens and saturations, in the middle of a token too."""
        self.model.set("token_valid", 0)
        self.model.set("rst", 1)
        self.model.step(1)
        self.model.set("rst", 0)
        self.position = 0
        self.resets += 1
        self.events = []
        self._open = {}
        if (switch := self._residents.after_reset()) is not None:
            # What is in the slots stays, but reset switches it off.
            self._load(switch)

    def load_adapter(self, image: AdapterImage | None) -> int:
        """Makes an adapter the active one through the load port, between two tokens.

        Args:
            image: the adapter; None switches adapters off. One that is resident is not loaded.

        Returns:
            Cycles that it took.

        Raises:
            UserError: the adapter does not fit the slots.
        """
        if image is not None:
            check_fits(self.program, image)
        if "load_ready" in self.model.ports and not self.model.get("load_ready"):
            raise CompilerBug("the hardware takes no adapter: a token is being worked on")
        self._adapter = image
        return self._load(self._residents.use(image))

    def forget_adapters(self) -> None:
        """What is in the slots counts for nothing: whatever comes next is loaded."""
        self._residents = Residents(self.program)
        self._adapter = None

    def _load(self, switch: Switch) -> int:
        if "load_valid" not in self.model.ports:
            return 0
        assert self.layout.adapters is not None
        places = self.layout.adapters.places
        if switch.is_load:
            sites = {} if switch.image is None else switch.image.sites
            stream = places.load_stream(sites, switch.resident or 0)
        else:
            stream = places.switch_stream(switch.resident)
        count, size = stream.data.shape
        words = np.zeros((count, -(-size // 8) * 8), np.uint8)
        words[:, :size] = stream.data
        inputs: dict[str, npt.ArrayLike] = {
            "load_valid": np.ones(count, np.int64),
            "load_address": stream.addresses,
            "load_data": words.view("<u8"),
        }
        began = self.model.cycle
        self.model.run(count, inputs, "event_any", None, count)
        self.model.set("load_valid", 0)
        return self.model.cycle - began

    @property
    def ranks(self) -> dict[str, int]:
        """The active adapter's ranks, by site."""
        return ranks_of(self._adapter)

    @property
    def began(self) -> int:
        """The cycle in which the last token was accepted, on the clock of the waveform."""
        return self._began

    @property
    def saturations(self) -> int:
        """Values that did not fit since the last reset."""
        return self.model.get("saturations")

    def close(self) -> None:
        """Frees the model."""
        self.model.close()

    # Tokens

    def step(self, token: int, position: int, sample: bool = True) -> tuple[Ints, int] | None:
        """One token; the logits [V] and the next token when `sample`, else None.

        Raises:
            UserError: a token id out of range, or a position that is neither 0 nor the next one.
        """
        self.accept(token, position, sample)
        limit = 2 * self.period(position, sample) + 1000
        self._collect(self.model.run(limit, None, "event_any", "token_ready", self._samples))
        if not self.model.get("token_ready"):
            raise CompilerBug(f"the hardware is not ready after {limit} cycles: {self._hanging()}")
        return self.result() if sample else None

    def accept(self, token: int, position: int, sample: bool) -> None:
        """Hands in a token, and runs cycle 0.

        Raises:
            UserError: a token id out of range, or a position that is neither 0 nor the next one.
        """
        if not 0 <= token < self.vocabulary:
            raise UserError(
                f"token id {token} is out of range",
                hint=f"ids of this model go from 0 to {self.vocabulary - 1}",
            )
        if position not in (0, self.position) or position >= self.capacity:
            raise UserError(
                f"the hardware is at position {self.position} of {self.capacity}, it cannot take a "
                f"token for position {position}",
                hint="positions follow one another, or begin again at 0",
            )
        model = self.model
        if not model.get("token_ready"):
            # A cycle after reset it is.
            model.step(1)
        for name, value in (
            ("token", token),
            ("sample", int(sample)),
            ("restart", int(position == 0)),
            *((("restart_position", 0), ("in_flight", 1)) if self.contexts > 1 else ()),
            ("token_valid", 1),
        ):
            model.set(name, value)
        if not model.get("token_ready"):
            raise CompilerBug("the hardware takes no token")
        self._began, self.events, self._open = model.cycle, [], {}
        self._next = self.out = None
        model.step(1)
        model.set("token_valid", 0)
        self.position = position + 1

    def jump(self, position: int) -> None:
        """Makes the next token that of a position, whose predecessors the caches hold already.

        Raises:
            CompilerBug: the engine is not `rtl`, whose registers alone can be written.
        """
        from intaglio.runtime.engines.arc import ArcModel

        if not isinstance(self.model, ArcModel):
            raise CompilerBug(f"the engine {self.engine} has no registers to write")
        self.model.set_register("token_port/next_position", position)
        self.position = position

    def power_up(self, rng: np.random.Generator) -> None:
        """Leaves all registers with anything in them, as power does, and resets.

        Raises:
            CompilerBug: the engine is not `rtl`, whose registers alone can be written.
        """
        from intaglio.runtime.engines.arc import ArcModel

        if not isinstance(self.model, ArcModel):
            raise CompilerBug(f"the engine {self.engine} has no registers to write")
        for name in self.model.registers:
            _, width = self.model.layout.registers[name]
            value = int.from_bytes(rng.bytes(-(-width // 8)), "little")
            self.model.set_register(name, value & ((1 << width) - 1))
        self.reset()

    def advance(self, cycle: int) -> None:
        """Runs until a cycle of the token is next, counted from its acceptance."""
        count = cycle - (self.model.cycle - self._began)
        if count > 0:
            self._collect(self.model.run(count, None, "event_any", None, count))

    def result(self) -> tuple[Ints, int]:
        """Logits [V] and the next token of the last token, when it was to be sampled."""
        if self._next is None:
            raise CompilerBug("the hardware gave no next token")
        logits = self.read(self.program.logits)
        assert isinstance(logits, np.ndarray)
        return logits[: self.vocabulary], self._next

    def period(self, position: int, sample: bool) -> int:
        """Cycles of a token by the timeline."""
        return max(step.end for step in self.schedule(position, sample))

    def schedule(self, position: int, sample: bool) -> list[Step]:
        """The instruction instances of a token in program order."""
        counts = dict.fromkeys(self.layout.queues, 0)
        steps: list[Step] = []
        for span, block in spans(self.program, [position], sample, self.ranks):
            instruction = self.program.blocks[block].instructions[span.instruction]
            queue = instruction.queue
            start = int(span.start[0])
            event = Event(queue, counts[queue], start, int(span.finish[0]))
            left = None
            if span.left is not None:
                left = Event(reductions_of(queue), counts[queue], start, int(span.left[0]))
            counts[queue] += 1
            touches = self.program.accesses[block][span.instruction]
            end, out = int(span.end[0]), None if span.out is None else int(span.out[0])
            steps.append(Step(event, block, span.instance, instruction, touches, end, out, left))
        return steps

    @property
    def _samples(self) -> int:
        return 3 * sum(len(queue.entries) for queue in self.layout.queues.values()) + 16

    def _collect(self, trace: Trace) -> None:
        out = trace.outputs
        cycles = trace.at - self._began
        counted = counters(self.layout.queues)
        found = [
            (int(cycles[i]), kind, name, int(out[f"event_{name}_{number}"][i]))
            for name in counted
            for kind, number in (("start", "started"), ("finish", "ended"))
            if f"event_{name}_{kind}" in out
            for i in np.flatnonzero(out[f"event_{name}_{kind}"]).tolist()
        ]
        # "finish" sorts before "start".
        for cycle, kind, queue, number in sorted(found):
            if kind == "start":
                self._open[queue, number] = cycle
                if LEAVES.get(queue) in counted:
                    self._open[LEAVES[queue], number] = cycle
            else:
                start = self._open.pop((queue, number), -1)
                self.events.append(Event(queue, number, start, cycle))
        for i in np.flatnonzero(out["next_valid"]).tolist():
            self._next = int(out["next_token"][i])
            self.out = int(cycles[i]) if self.out is None else self.out

    def _hanging(self) -> str:
        done = dict.fromkeys(counters(self.layout.queues), 0)
        for event in self.events:
            done[event.queue] += 1
        return ", ".join(
            (
                f"{count} {queue.replace('_', ' ')} are there"
                if queue in LEAVES.values()
                else f"{queue} has finished {count} beats"
            )
            + (" and holds one" if any(name == queue for name, _ in self._open) else "")
            for queue, count in done.items()
        )

    # Memories

    def memory(self, name: str) -> npt.NDArray[np.unsignedinteger]:
        """The content of a memory of the chip, as `runtime.engines.running.Model` gives it."""
        return self.model.memory(name)

    def _lanes(
        self, memory: str, first: int, rows: int, bits: int
    ) -> npt.NDArray[np.unsignedinteger]:
        """Rows of a memory of lanes: [rows, W], signed."""
        lanes = self.layout.lanes
        content = word_bytes(self.memory(memory)[first : first + rows], bits // 8 * lanes)
        return np.ascontiguousarray(content).view(f"<i{bits // 8}").reshape(rows, lanes)

    def _numbers(self, memory: str, first: int, count: int) -> list[int]:
        """Words of a file."""
        content = self.memory(memory)[first : first + count]
        if content.ndim == 1:
            return [int(word) for word in content]
        return [int.from_bytes(word.tobytes(), "little") for word in content]

    def _scales(self, memory: str, first: int, count: int) -> tuple[Scale, Ints]:
        """Scales of a file, and the totals behind them."""
        numbers = self._numbers(memory, first, count)
        half, above = 1 << (EXPONENT_BITS - 1), SCALE_BITS + EXPONENT_BITS
        mantissa = np.array([n & ((1 << SCALE_BITS) - 1) for n in numbers], np.int64)
        exponents = [((n >> SCALE_BITS) + half) % (2 * half) - half for n in numbers]
        totals = np.array([n >> above for n in numbers], np.int64)
        return Scale(mantissa, np.array(exponents, np.int64)), totals

    def read(
        self, buffer: str, first: int = 0, last: int = 0
    ) -> Ints | Quantized | Scale | Probabilities | Routing:
        """The value of a buffer now, as the simulator has it for one token, without its first axis.

        Args:
            buffer: its name.
            first: of scores and probabilities, the first cached token.
            last: and the last one.
        """
        kind = self.program.buffers[buffer].type
        row, lanes = self.layout.row_of(buffer), self.layout.lanes
        match kind:
            case values.Fixed(size=size):
                rows = self._lanes(VECTORS, row, -(-size // lanes), 32)
                return rows.reshape(-1)[:size].astype(np.int64)
            case values.Quantized(groups=groups, width=width):
                beats = -(-width // lanes)
                rows = self._lanes(CODES, row, groups * beats, 16)
                codes = _codes(rows.reshape(groups, -1)[:, :width], kind.format)
                scale, _ = self._scales(CODE_SCALES, row, groups)
                return Quantized(codes.reshape(-1), scale, kind.format)
            case values.Blocks():
                return self._blocks(kind, row)
            case values.Scale():
                return self._scales(NORM_SCALES, row, 1)[0]
            case values.Scores(heads=heads):
                rows = self._lanes(SCORES, row, heads * self.layout.places.score_rows, 32)
                return rows.reshape(heads, -1)[:, first : last + 1].astype(np.int64)
            case values.Probabilities(heads=heads):
                rows = self._lanes(PROBABILITIES, row, heads * self.layout.places.score_rows, 16)
                words = rows.reshape(heads, -1)[:, first : last + 1]
                codes = _codes(words, kind.format)
                if kind.format == "places8":
                    # Above the byte there is the number of its place.
                    codes = codes << np.array(PLACES)[words.astype(np.int64) >> 8]
                scale, total = self._scales(HEADS, self.layout.places.heads[buffer], heads)
                return Probabilities(Quantized(codes, scale, kind.format), total, first)
            case values.Routing(chosen=chosen):
                words = self._numbers(ROUTINGS, row, chosen)
                experts = [word & ((1 << EXPERT_BITS) - 1) for word in words]
                shares = [word >> EXPERT_BITS for word in words]
                return Routing(np.array(experts, np.int64), np.array(shares, np.int64))
            case _:
                raise CompilerBug(f"buffer {buffer} of kind {kind.kind} is in no memory")

    def _blocks(self, kind: values.Blocks, row: int) -> Quantized:
        """The integers that the codes of a vector stand for."""
        lanes, steps = self.layout.lanes, FORMATS[kind.format].steps
        depth = -(-kind.size // lanes)
        # Beside wide blocks the others' codes have signs in front too.
        fmt = WIDE.name if kind.wide else kind.format
        codes = _codes(self._lanes(CODES, row, depth, 16), fmt).reshape(-1, kind.block)
        words = [
            word >> STEP_BITS * i & ((1 << STEP_BITS) - 1)
            for word in self._numbers(BLOCK_STEPS, row, depth)
            for i in range(lanes // kind.block)
        ]
        of = np.array(words, np.int64)[:, None]
        block = blocks.Block(of & (EXPONENTS - 1), of >> blocks.EXPONENT_BITS)
        integers = blocks.integer(Arrays(), codes, block, steps).reshape(-1)[: kind.size]
        return Quantized(integers, unit_scale(integers.shape, kind.fraction), kind.format)

    def state(self, name: str) -> Ints:
        """What a state holds now."""
        one, lanes = self.program.states[name], self.layout.lanes
        rows = self._lanes(VECTORS, one.row, -(-one.size // lanes), 32)
        return rows.reshape(-1)[: one.size].astype(np.int64)

    def matrices(self, name: str) -> Matrices:
        """What a state of linear attention holds now."""
        one = self.program.matrices[name]
        shape = one.shape(self.program.machine)
        machine, rows = self.program.machine, slice(one.row, one.row + shape.rows)
        size = shape.words * machine.attention_lanes
        words = [
            word_bytes(self.memory(f"recurrence/{STATES}{unit}")[rows], machine.attention_lanes)
            for unit in range(shape.words * shape.together)
        ]
        vectors = np.concatenate(words, axis=1).view("<i2")
        vectors = vectors.reshape(one.heads, -1, size // 2)
        mantissas = vectors[:, : one.key_width, : one.value_width].astype(np.int64)
        scales = word_bytes(self.memory(f"recurrence/{STATE_SCALES}"), 4).view("<u4").reshape(-1)
        half = 1 << (EXPONENT_BITS - 1)
        exponents = scales[one.scale : one.scale + one.heads].astype(np.int64)
        return Matrices(mantissas, (exponents + half) % (2 * half) - half)

    def write_state(self, name: str, value: Ints) -> None:
        """Gives a state a value, as `state` gives it."""
        one, lanes = self.program.states[name], self.layout.lanes
        rows = np.zeros((-(-one.size // lanes), lanes), "<i4")
        rows.reshape(-1)[: one.size] = value
        write_words(self.memory(VECTORS), one.row, rows.view(np.uint8))

    def write_matrices(self, name: str, value: Matrices) -> None:
        """Gives a state of linear attention a value, as `matrices` gives it."""
        one, machine = self.program.matrices[name], self.program.machine
        shape = one.shape(machine)
        size = shape.words * machine.attention_lanes
        vectors = np.zeros((one.heads, shape.head_rows * shape.together, size // 2), "<i2")
        vectors[:, : one.key_width, : one.value_width] = value.mantissas
        units = vectors.view(np.uint8).reshape(shape.rows, -1, machine.attention_lanes)
        for unit in range(units.shape[1]):
            memory = self.memory(f"recurrence/{STATES}{unit}")
            write_words(memory, one.row, np.ascontiguousarray(units[:, unit]))
        largest = np.abs(value.mantissas).max(axis=(1, 2))
        scales = largest << EXPONENT_BITS | value.exponents & ((1 << EXPONENT_BITS) - 1)
        content = scales.astype("<u4").view(np.uint8).reshape(one.heads, -1)
        write_words(self.memory(f"recurrence/{STATE_SCALES}"), one.scale, content)

    def largest(self, buffer: str) -> Ints:
        """The largest of each head's scores, as they were written: [heads]."""
        first = self.layout.places.heads[buffer]
        heads = self.program.value(buffer, values.Scores).heads
        words = self.memory(LARGEST)[first : first + heads]
        return words.view("<i4").reshape(heads).astype(np.int64)

    def write(
        self,
        buffer: str,
        value: Ints | Quantized | Scale,
        first: int = 0,
        part: tuple[int, int] | None = None,
    ) -> None:
        """Gives a buffer of numbers, scores, codes or a factor a value, as `read` gives it.

        Args:
            buffer: its name.
            value: [N], or [heads, T] of scores.
            first: of scores, the first cached token.
            part: only these elements, groups or heads, from one to before another.
        """
        if isinstance(value, Scale):
            self._write_scales(NORM_SCALES, self.layout.row_of(buffer), value)
            return
        if part is not None:
            value = _mixed(self.read(buffer, first, first + value_tokens(value) - 1), value, part)
        row, lanes = self.layout.row_of(buffer), self.layout.lanes
        if isinstance(value, Quantized):
            coded = self.program.value(buffer, values.Quantized)
            groups, width = coded.groups, coded.width
            rows = self._lanes(CODES, row, groups * -(-width // lanes), 16).copy()
            rows.reshape(groups, -1)[:, :width] = value.codes.reshape(groups, width)
            content = rows.astype("<i2").view(np.uint8).reshape(len(rows), -1)
            write_words(self.memory(CODES), row, content)
            self._write_scales(CODE_SCALES, row, value.scale)
            return
        kind = self.program.buffers[buffer].type
        if isinstance(kind, values.Fixed):
            memory, depth, heads = VECTORS, -(-kind.size // lanes), 1
        else:
            memory, heads = SCORES, self.program.value(buffer, values.Scores).heads
            depth = self.layout.places.score_rows
        rows = self._lanes(memory, row, heads * depth, 32).copy()
        rows.reshape(heads, -1)[:, first : first + value.shape[-1]] = value
        content = rows.astype("<i4").view(np.uint8).reshape(len(rows), -1)
        write_words(self.memory(memory), row, content)

    def _write_scales(self, memory: str, row: int, value: Scale) -> None:
        """Gives a file's rows from one on their scales."""
        exponent = np.asarray(value.exponent) & ((1 << EXPONENT_BITS) - 1)
        words = (np.asarray(value.mantissa) | exponent << SCALE_BITS).astype("<u8")
        scales = words.view(np.uint8).reshape(-1, 8)
        write_words(self.memory(memory), row, scales[:, :_SCALE_BYTES])

    def write_largest(self, buffer: str, scores: Ints, part: tuple[int, int]) -> None:
        """Gives some heads the largest of other scores.

        Args:
            buffer: of scores.
            scores: [heads, T].
            part: from one head to before another.
        """
        begin, end = part
        largest = scores[begin:end].max(axis=1).astype("<i4").view(np.uint8)
        entry = self.layout.places.heads[buffer] + begin
        write_words(self.memory(LARGEST), entry, largest.reshape(end - begin, -1))

    @property
    def _external(self) -> npt.NDArray[np.unsignedinteger] | None:
        path = "external_kv/memory"
        return self.memory(path) if path in self._memories else None

    def write_store(self, store: Store) -> None:
        """Gives a cache the content of one of the simulator's."""
        attention = self.layout.attention
        assert attention is not None
        write_cache(
            lambda part: self.memory(f"attention/{part}"),
            self.program.machine,
            attention.kv.places[store.cache.name],
            store.codes,
            None if store.cache.static_scale is not None else store.scale,
            self._external,
        )

    @property
    def stores(self) -> Mapping[str, Store]:
        """The content of the caches; beyond the tokens so far it means nothing."""
        found: dict[str, Store] = {}
        external, attention = self._external, self.layout.attention
        for name, place in () if attention is None else attention.kv.places.items():
            codes, scale = read_cache(
                lambda part: self.memory(f"attention/{part}"), self.program.machine, place, external
            )
            if scale is None:
                assert place.cache.static_scale is not None
                scale = Scale.of(place.cache.static_scale)
            found[name] = Store(place.cache, codes, scale)
        return found


def _codes(words: npt.NDArray[np.unsignedinteger], fmt: str) -> Ints:
    """Codes of 16 bits as the simulator has them: signed, or from 0 for unsigned formats."""
    bits = FORMATS[fmt].bits
    codes = words.astype(np.int64) & ((1 << bits) - 1)
    if FORMATS[fmt].low < 0 and fmt != "fp8":
        codes = (codes ^ (1 << (bits - 1))) - (1 << (bits - 1))
    return codes


def write_hardware(
    folder: Path, stage: str = "sv", *, banks: Collection[tuple[int, int, int]] | None = None
) -> list[str]:
    """Writes the hardware of a compiled model into its output folder; see `emit_hardware`.

    The manifest, where there is one, names the files from then on.

    Args:
        folder: the output folder.
        stage: `hw` or `sv`.
        banks: of a chip whose ROM is logic, the banks that are written, as (tile, L-Unit, bank).
    """
    program = load_program(folder)
    images = Images(program, folder)
    expected = partial(expected_tokens, program, folder)
    names = emit_hardware(program, images, folder, stage, expected=expected, banks=banks)
    if (folder / MANIFEST).exists():
        OutputFiles(folder).add(names)
    return names


def _model(
    program: Program,
    folder: Path,
    engine: str,
    cache: bool,
    opt: int,
    text: str | None,
    waveform: str,
    handed_out: bool,
) -> Model:
    emitted = text is None
    if text is None:
        text = _text(program, folder, cache)
    if engine == "rtl":
        from intaglio.runtime.engines.arc import ArcModel

        return ArcModel(text, TOP, opt=opt, cache=cache)
    from intaglio.runtime.engines.verilator import VerilatorModel, compiler, verilator_root

    compiler()
    verilator_root()
    options = circt.VERILOG_OPTIONS
    if not handed_out:
        many = logic_size(layout_of(program)) > LARGE_TABLES
        options = circt.LARGE_TABLE_OPTIONS if many else circt.FAST_OPTIONS
    verilog = _verilog(text, folder if emitted and handed_out else None, options, cache)
    return VerilatorModel(verilog, TOP, waveform=waveform)


def _text(program: Program, folder: Path, cache: bool) -> str:
    """The IR: what was emitted, what is kept from before, or new."""
    if (emitted := _emitted(folder, (IR,))) is not None:
        return emitted
    parts = [(folder / PROGRAM).read_bytes(), *(file.read_bytes() for file in source_files())]
    return _kept("mlir", parts, lambda: hardware_text(program, Images(program, folder)), cache)


def _verilog(text: str, folder: Path | None, options: str, cache: bool) -> str:
    """The SystemVerilog: what was emitted, what is kept from before, or new."""
    if folder is not None and (emitted := _emitted(folder, VERILOG)) is not None:
        return emitted
    made_by = [circt.version().encode(), *(file.read_bytes() for file in source_files())]
    parts = [text.encode(), options.encode(), *made_by]
    return _kept("sv", parts, lambda: circt.to_verilog(text, options=options), cache)


def _emitted(folder: Path, names: Sequence[str]) -> str | None:
    """Emitted files, if they are of the folder's program as it is."""
    if not all((folder / name).is_file() for name in names):
        return None
    texts = [(folder / name).read_text() for name in names]
    digest = sha256_of(folder / PROGRAM)
    # Their first lines say what they were made from.
    return "\n".join(texts) if all(digest in text[:1000] for text in texts) else None


def _kept(end: str, parts: Iterable[bytes], make: Callable[[], str], cache: bool) -> str:
    """A text from the cache folder by the hash of what it is made from, or made and put there."""
    if not cache:
        return make()
    digest = hashlib.sha256()
    for part in parts:
        digest.update(hashlib.sha256(part).digest())
    name = f"chip.{end}"
    entry = kept(
        "hw", f"{digest.hexdigest()}-{end}", lambda folder: write_text(folder / name, make())
    )
    return (entry / name).read_text()


def value_tokens(value: Ints | Quantized) -> int:
    """Tokens of scores; 1 for other values."""
    return value.shape[-1] if isinstance(value, np.ndarray) and value.ndim > 1 else 1


def _mixed(now: Any, value: Ints | Quantized, part: tuple[int, int]) -> Ints | Quantized:
    """What a buffer holds, with a part of another value."""
    mine = slice(*part)
    if not isinstance(value, Quantized):
        content = np.array(now)
        content[mine] = value[mine]
        return content
    assert isinstance(now, Quantized)
    groups = value.scale.mantissa.reshape(-1).shape[0]
    codes = now.codes.reshape(groups, -1).copy()
    mantissa, exponent = (
        np.array(one).reshape(-1) for one in (now.scale.mantissa, now.scale.exponent)
    )
    own = slice(None) if groups == 1 else mine
    others = value.codes.reshape(groups, -1)
    if groups == 1:
        codes[:, mine] = others[:, mine]
    else:
        codes[mine] = others[mine]
    if groups > 1 or part[1] == codes.shape[1]:
        # The scale of the only group is compared with each part of the codes, read with the last.
        mantissa[own] = np.asarray(value.scale.mantissa).reshape(-1)[own]
        exponent[own] = np.asarray(value.scale.exponent).reshape(-1)[own]
    return Quantized(codes.reshape(-1), Scale(mantissa, exponent), value.format)
