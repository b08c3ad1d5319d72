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
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from intaglio.backend import circt
from intaglio.backend.emit_hardware import emit_hardware, hardware_text, logic_size, source_files
from intaglio.backend.hw.chip.chip import TOP
from intaglio.backend.hw.chip.contents import rom_words
from intaglio.backend.hw.chip.layout import layout_of, layout_with
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
from intaglio.dialects.isa.attention import OverTokens, QueryKey
from intaglio.dialects.isa.queues import LEAVES, reductions_of
from intaglio.dialects.isa.recurrence import LinearAttention
from intaglio.dialects.isa.touched import passes_of
from intaglio.dialects.isa.vector import (
    Delay,
    Quantize,
    QuantizeHeads,
    RMSScale,
    Sample,
    SoftmaxPlaces,
)
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
from intaglio.runtime.engines.simulator import Context, Probabilities, Simulator, Store
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


@dataclass(frozen=True)
class Difference:
    """The first thing in which hardware and simulator differ.

    Attributes:
        where: the instruction, or what was compared after the token.
        what: cycle or value.
        expected: by the simulator or timeline.
        seen: on the hardware.
        step: the instruction, if it is one.
        is_cycle: whether it is a cycle that differs, and not a value.
    """

    where: str
    what: str
    expected: str
    seen: str
    step: Step | None = None
    is_cycle: bool = False

    def __str__(self) -> str:
        return f"{self.where}: {self.what} is {self.seen}, should be {self.expected}"


@dataclass
class Comparison:
    """What `compare_token` found.

    Attributes:
        instructions: whose start and finish were compared.
        values: numbers that were compared.
        difference: the first one, or None.
        token: what follows, by the simulator; None if not wanted.
    """

    instructions: int = 0
    values: int = 0
    difference: Difference | None = None
    token: int | None = None

    @property
    def equal(self) -> bool:
        """Whether there is no difference."""
        return self.difference is None


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


# Comparison


FACTOR_WRITTEN = 2
"""Cycles from a norm's reduction to its factor in the memory; products read it later."""


@dataclass
class _Check:
    """Compares, and remembers the first difference."""

    result: Comparison = field(default_factory=Comparison)

    def value(
        self, where: str, what: str, expected: object, seen: object, step: Step | None
    ) -> bool:
        """Whether two arrays are equal."""
        want, got = np.asarray(expected, np.int64), np.asarray(seen, np.int64)
        self.result.values += want.size
        if want.shape == got.shape and (want == got).all():
            return True
        if want.shape != got.shape:
            self.differ(where, f"the shape of {what}", want.shape, got.shape, step)
            return False
        wrong = np.argwhere(want != got)
        index = tuple(wrong[0].tolist())
        place = f"{what}{list(index)}" if index else what
        more = f" ({len(wrong)} of {want.size} differ)"
        self.differ(where, place, want[index], f"{got[index]}{more}", step)
        return False

    def differ(
        self, where: str, what: str, expected: object, seen: object, step: Step | None
    ) -> None:
        if self.result.difference is None:
            self.result.difference = Difference(where, what, str(expected), str(seen), step)


def compare_token(
    simulator: Simulator,
    chip: RTLChip,
    token: int,
    position: int,
    sample: bool = True,
    *,
    caches: bool = True,
    change: Change | None = None,
    disturb: Callable[[], None] = lambda: None,
) -> Comparison:
    """Runs a token on simulator and hardware and compares everything that the two say.

    Args:
        simulator: has run the same tokens as `chip`.
        chip: the hardware.
        token: id.
        position: of the token.
        sample: whether its successor is wanted.
        caches: compare the whole content of the caches afterwards.
        change: what instructions wrote is compared, then replaced by what this gives, on both sides
            and before anybody reads it.
        disturb: called when the hardware has accepted the token.
    """
    check = _Check()
    saturations = simulator.saturations, chip.saturations
    steps = chip.schedule(position, sample)
    wanted = _values(simulator, token, position, sample, change)
    chip.accept(token, position, sample)
    disturb()
    moments = [(_there(step), step, False) for step in steps]
    # The largest scores come after the scores.
    moments += [
        (step.reduction.finish, step, True)
        for step in steps
        if isinstance(step.instruction.does, QueryKey) and step.reduction is not None
    ]
    # Factors of norms are looked up behind their rows.
    moments += [
        (step.reduction.finish + FACTOR_WRITTEN, step, True)
        for step in steps
        if isinstance(step.instruction.does, RMSScale)
        and step.reduction is not None
        and step.touches.writes
    ]
    for cycle, step, largest in sorted(moments, key=lambda one: one[0]):
        chip.advance(cycle)
        value, other = wanted[_whole(step)]
        if largest and isinstance(value, Scale):
            seen_now = chip.read(step.instruction.writes[0])
            assert isinstance(seen_now, Scale)
            _compare_scale(check, str(step), value, seen_now, step, slice(None))
            if other is not None:
                given = Scale(*(np.asarray(part).reshape(-1)[:1] for part in other))
                chip.write(step.instruction.writes[0], given)
            if check.result.difference is not None:
                break
            continue
        part = _part(chip, step)
        if part is None:
            continue
        if largest:
            _compare_largest(check, chip, step, value, part)
        else:
            _compare_value(check, chip, step, value, part, position)
        if other is not None:
            name, first = step.instruction.writes[0], _first_seen(step.instruction, position)
            one = _first_token(other) if isinstance(other, Quantized) else other[0]
            if largest:
                chip.write_largest(name, np.asarray(one), part)
            else:
                chip.write(name, one, first, part)
        if check.result.difference is not None:
            break
    end = max(step.end for step in steps)
    # Two more cycles show what finishes too late.
    chip.advance(end + 3)
    seen = {(event.queue, event.sequence): event for event in chip.events}
    first_cycle: Difference | None = None
    when = None
    for step in sorted(steps, key=lambda one: one.event.start):
        event = seen.get((step.event.queue, step.event.sequence))
        check.result.instructions += 1
        pairs = [("start", event, step.event), ("finish", event, step.event)]
        if step.reduction is not None:
            left = seen.get((step.reduction.queue, step.event.sequence))
            pairs.append(("finish", left, step.reduction))
        for kind, found_event, wanted_event in pairs:
            want = getattr(wanted_event, kind)
            got = getattr(found_event, kind) if found_event is not None else "never"
            if want != got and first_cycle is None:
                first_cycle = Difference(
                    str(step), f"the {kind} cycle", str(want), str(got), step, is_cycle=True
                )
                when = step.event.start
    found = check.result.difference
    if first_cycle is not None and when is not None:
        at = found.step.event.finish if found is not None and found.step is not None else None
        if at is None or when < at:
            check.result.difference = first_cycle
    if check.result.difference is None:
        _compare_end(check, simulator, chip, steps, sample, saturations, caches)
    if sample:
        result, _ = next(
            wanted[_whole(one)]
            for one in reversed(steps)
            if isinstance(one.instruction.does, Sample)
        )
        check.result.token = int(np.asarray(result).reshape(-1)[0])
    return check.result


def _there(step: Step) -> int:
    """The cycle from which on what a beat writes can be compared."""
    if step.reduction is not None:
        # Codes of heads are there with the reductions; sums of bytes at places are looked up.
        if isinstance(step.instruction.does, QuantizeHeads):
            return step.reduction.finish
        if isinstance(step.instruction.does, SoftmaxPlaces):
            return step.reduction.finish + FACTOR_WRITTEN
    return step.event.finish


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


Change = Callable[[Instruction, Any], Any]
"""Another value for what an instruction gave, of the same shape; None: it stays."""


def _first_token(value: Quantized) -> Quantized:
    scale = Scale(np.asarray(value.scale.mantissa)[0], np.asarray(value.scale.exponent)[0])
    return Quantized(value.codes[0], scale, value.format)


def _first_seen(one: Instruction, position: int) -> int:
    """The first cached token that an instruction of a token sees."""
    return one.does.first(position) if isinstance(one.does, OverTokens) else 0


_Whole = tuple[int, int, int, str]


def _whole(step: Step) -> _Whole:
    """The instruction instance that a step is a beat of."""
    one = step.instruction
    return step.block, step.instance, one.beat.of_instruction, one.opcode


def _part(chip: RTLChip, step: Step) -> tuple[int, int] | None:
    """Which groups, heads or elements of its result a beat writes; None: it writes none of it."""
    one = step.instruction
    # A norm's factor comes later than its rows.
    if not one.writes or isinstance(one.does, Sample | RMSScale):
        return None
    # What keeps something for the next token gives its result in the first pass.
    keeps = isinstance(one.does, Delay | LinearAttention)
    if one.beat.number < passes_of(one.does) - 1 and not keeps:
        return None
    name = one.writes[0]
    if name not in step.touches.writes:
        return None
    kind, lanes = chip.program.buffers[name].type, chip.layout.lanes
    match kind:
        case values.Fixed(size=whole):
            each = 1
        case values.Quantized(groups=1, width=whole) | values.Blocks(elements=whole):
            each = 1
        case values.Quantized(groups=whole, width=width):
            each = -(-width // lanes) * lanes
        case values.Scores(heads=whole) | values.Probabilities(heads=whole):
            each = chip.program.rows_of_head * lanes
        case values.Routing(chosen=whole):
            each = lanes
        case _:
            return None
    first, last = step.touches.parts.get(name, (0, whole * each))
    return first // each, min(whole, -(-last // each))


def _values(
    simulator: Simulator, token: int, position: int, sample: bool, change: Change | None
) -> dict[_Whole, tuple[Any, Any]]:
    """What each instruction of a token gives, and what it is changed to; appends give None."""
    found: dict[_Whole, tuple[Any, Any]] = {}
    context = Context(np.array([token], np.int64), position)
    context.values.update(dict.fromkeys(simulator.program.accepted, context.tokens))
    for number, (block, instances) in enumerate(simulator._steps):
        if block.sampled and not sample:
            continue
        for instance, actions in enumerate(instances):
            for one, action in zip(block.whole, actions, strict=True):
                result = action(context)
                other = change(one, result) if change is not None else None
                for name in one.writes:
                    context.values[name] = result if other is None else other
                key = number, instance, one.beat.of_instruction, one.opcode
                found[key] = result, other
    return found


def _compare_value(
    check: _Check, chip: RTLChip, step: Step, value: Any, part: tuple[int, int], position: int
) -> None:
    one, where = step.instruction, str(step)
    (name,) = one.writes
    seen = chip.read(name, _first_seen(one, position), position)
    mine = slice(*part)
    match value, seen:
        case Quantized(), Quantized() if isinstance(chip.program.buffers[name].type, values.Blocks):
            check.value(where, "code", value.codes[0][mine], seen.codes[mine], step)
        case Quantized(), Quantized():
            kind = chip.program.value(name, values.Quantized)
            codes = [each.reshape(kind.groups, -1) for each in (value.codes[0], seen.codes)]
            want, got = (each[mine] if kind.groups > 1 else each[:, mine] for each in codes)
            check.value(where, "code", want, got, step)
            if not (isinstance(one.does, Quantize) and one.does.scale_of is not None):
                groups = mine if kind.groups > 1 else slice(None)
                _compare_scale(check, where, value.scale, seen.scale, step, groups)
        case Probabilities(), Probabilities():
            check.value(
                where, "code", value.quantized.codes[0][mine], seen.quantized.codes[mine], step
            )
            _compare_scale(check, where, value.quantized.scale, seen.quantized.scale, step, mine)
            check.value(where, "sum", value.total[0][mine], seen.total[mine], step)
        case Routing(), Routing():
            check.value(where, "expert number", value.experts[0], seen.experts, step)
            check.value(where, "share", value.shares[0], seen.shares, step)
        case _:
            check.value(where, "element", np.asarray(value)[0][mine], np.asarray(seen)[mine], step)


def _compare_largest(
    check: _Check, chip: RTLChip, step: Step, value: Any, part: tuple[int, int]
) -> None:
    (name,) = step.instruction.writes
    mine = slice(*part)
    want = np.asarray(value)[0][mine].max(axis=1)
    check.value(str(step), "largest score", want, chip.largest(name)[mine], step)


def _compare_scale(
    check: _Check, where: str, want: Scale, seen: Scale, step: Step, groups: slice
) -> None:
    shape = seen.mantissa.shape
    mantissa = np.asarray(want.mantissa)[0].reshape(shape)[groups]
    check.value(where, "scale mantissa", mantissa, seen.mantissa[groups], step)
    # A scale of 0 has any exponent.
    for_exponent = mantissa != 0
    exponent = np.asarray(want.exponent)[0].reshape(shape)[groups]
    check.value(
        where,
        "scale exponent",
        np.where(for_exponent, exponent, 0),
        np.where(for_exponent, seen.exponent[groups], 0),
        step,
    )


def _compare_end(
    check: _Check,
    simulator: Simulator,
    chip: RTLChip,
    steps: Sequence[Step],
    sample: bool,
    before: tuple[int, int],
    caches: bool,
) -> None:
    where = "after the token"
    counts = simulator.saturations - before[0], chip.saturations - before[1]
    check.value(where, "the number of saturations", *counts, None)
    check.value(where, "token_ready", 1, chip.model.get("token_ready"), None)
    if sample:
        where = "the sampled token"
        logits, token = chip.result()
        check.value(where, "next_token", np.argmax(logits), token, None)
        out = next(one.out for one in reversed(steps) if one.out is not None)
        check.value(where, "the cycle of next_token", out, chip.out, None)
    if caches:
        seen = chip.stores
        tokens = chip.position
        for name, state in simulator.states.items():
            check.value(f"state {name}", "element", state, chip.state(name), None)
        for name, state in simulator.matrices.items():
            other = chip.matrices(name)
            check.value(f"state {name}", "mantissa", state.mantissas, other.mantissas, None)
            check.value(f"state {name}", "exponent", state.exponents, other.exponents, None)
        for name, store in simulator.stores.items():
            other = seen[name]
            check.value(
                f"cache {name}", "code", store.codes[:, :tokens], other.codes[:, :tokens], None
            )
            if store.cache.static_scale is None:
                for part in ("mantissa", "exponent"):
                    want = getattr(store.scale, part)[:, :tokens]
                    got = getattr(other.scale, part)[:, :tokens]
                    check.value(f"cache {name}", f"scale {part}", want, got, None)
