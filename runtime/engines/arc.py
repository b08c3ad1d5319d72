"""Hardware in process: CIRCT's arc model, compiled by llvmlite. No C++ compiler, no files.

`ArcModel(text, top)` takes hw, comb and seq IR and gives a running `Model`. Compiled code is kept
in the process and, with `cache=True`, on disk (`runtime/engines/code_cache.py`), by the hash of
what it was made of.
"""

from __future__ import annotations

import ctypes
import hashlib
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from intaglio.backend import circt
from intaglio.backend.circt import StateLayout, StatePort
from intaglio.dialects.errors import CompilerBug
from intaglio.runtime.engines.code_cache import kept
from intaglio.runtime.engines.running import Model, ModelPort, Recorder, element_type
from intaglio.runtime.engines.vcd import PERIOD, Signal, VCDWriter, check_waveform

TRACED_DEPTH = 32
"""A waveform shows memories of up to so many words, as Verilator's do."""

CACHE_VERSION = 2
"""Changes when the compiled code's interface does."""
_CODE, _LAYOUT = "model.o", "layout.json"


@dataclass(frozen=True, eq=False)
class ArcProgram:
    """A compiled model, shared by its instances."""

    layout: StateLayout
    run: int
    sample: int
    initial: int
    engine: Any


_programs: dict[str, ArcProgram] = {}
_lock = threading.Lock()


def compile_arc(text: str, top: str, opt: int = 1, cache: bool = False) -> ArcProgram:
    """The compiled model of a module of a design.

    Args:
        text: hw, comb and seq IR.
        top: the module.
        opt: LLVM's optimisation level; 0 compiles big flat logic in a tenth of the time.
        cache: look for the code on disk, and leave it there.

    Raises:
        CompilerBug: CIRCT or LLVM refused the hardware.
    """
    import llvmlite
    import llvmlite.binding as llvm

    parts = (text, top, opt, CACHE_VERSION, circt.version(), llvmlite.__version__)
    cpu = llvm.get_host_cpu_name()
    key = hashlib.sha256(repr((*parts, cpu)).encode()).hexdigest()
    with _lock:
        if key not in _programs:
            _programs[key] = _load(*_build(text, top, opt, key, cache))
        return _programs[key]


def _build(text: str, top: str, opt: int, key: str, cache: bool) -> tuple[bytes, StateLayout]:
    """Object code and layout, from the cache or new."""

    def make(folder: Path) -> None:
        llvm_ir, layout = circt.to_llvm(text, top)
        (folder / _CODE).write_bytes(_compile(llvm_ir + _driver(layout), opt))
        (folder / _LAYOUT).write_text(layout.to_json())

    entry = kept("arc", key, make, cache)
    layout = StateLayout.from_json((entry / _LAYOUT).read_text())
    return (entry / _CODE).read_bytes(), layout


def _machine(opt: int) -> Any:
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return llvm.Target.from_default_triple().create_target_machine(
        opt=opt,
        jit=True,
        cpu=llvm.get_host_cpu_name(),
        features=llvm.get_host_cpu_features().flatten(),
    )


def _compile(llvm_ir: str, opt: int) -> bytes:
    import llvmlite.binding as llvm

    machine = _machine(opt)
    try:
        module = llvm.parse_assembly(llvm_ir)
        module.verify()
    except RuntimeError as error:
        raise CompilerBug(f"LLVM does not take the arc model: {error}") from error
    if opt:
        options = llvm.create_pipeline_tuning_options(speed_level=opt)
        # Loops are few and long already; unrolling and vectorising only cost time here.
        options.loop_unrolling = options.loop_vectorization = options.slp_vectorization = False
        builder = llvm.create_pass_builder(machine, options)
        builder.getModulePassManager().run(module, builder)
    return machine.emit_object(module)


def _load(code: bytes, layout: StateLayout) -> ArcProgram:
    import llvmlite.binding as llvm

    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), _machine(1))
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    engine.run_static_constructors()
    initial = engine.get_function_address(f"{layout.top}_initial") if layout.initial else 0
    run, sample = (engine.get_function_address(name) for name in ("model_run", "model_sample"))
    return ArcProgram(layout, run, sample, initial, engine)


def _port_code(layout: StateLayout) -> tuple[list[str], list[str], dict[bool, int]]:
    """LLVM IR that copies the inputs into a state, the outputs out of it; words of each row."""
    apply: list[str] = []
    sample: list[str] = []
    place, clock = {False: 0, True: 0}, _clock(layout)
    for number, port in enumerate(layout.ports):
        if port is clock:
            continue
        row = "out" if port.output else "in"
        words = -(-port.width // 64)
        here, place[port.output] = place[port.output], place[port.output] + words
        if port.offset is None:
            # An input that nothing reads has no place in the state; an output always has one.
            continue
        name = f"{row}{number}"
        wide, narrow = f"i{64 * words}", f"i{port.width}"
        lines = sample if port.output else apply
        lines += [
            f"%{name}h = getelementptr i64, ptr %{row}, i64 {here}",
            f"%{name}s = getelementptr i8, ptr %state, i64 {port.offset}",
        ]
        source, target = ("s", "h") if port.output else ("h", "s")
        from_, to = (narrow, wide) if port.output else (wide, narrow)
        lines.append(f"%{name}v = load {from_}, ptr %{name}{source}, align 1")
        value = f"%{name}v"
        if from_ != to:
            change = "zext" if port.output else "trunc"
            lines.append(f"%{name}w = {change} {from_} {value} to {to}")
            value = f"%{name}w"
        lines.append(f"store {to} {value}, ptr %{name}{target}, align 1")
    return apply, sample, place


def _clock(layout: StateLayout) -> StatePort | None:
    return next((p for p in layout.ports if p.name == "clk" and not p.output), None)


def _driver(layout: StateLayout) -> str:
    """The two functions of `Model`, as LLVM IR."""
    eval_ = f"call void @{layout.top}_eval(ptr %state)"
    clock = _clock(layout)

    def settled(level: int) -> str:
        """The logic with the clock at a level; without a clock no edge changes it."""
        if clock is None or clock.offset is None:
            return "" if level and clock is None else eval_
        return (
            f"%clk{level} = getelementptr i8, ptr %state, i64 {clock.offset}\n"
            f"store i1 {level}, ptr %clk{level}\n{eval_}"
        )

    apply, sample, words = _port_code(layout)
    low, high = settled(0), settled(1)
    newline = "\n"
    return f"""
define internal void @model_apply(ptr %state, ptr %in) alwaysinline {{
{newline.join(apply)}
ret void
}}
define internal void @model_read(ptr %state, ptr %out) alwaysinline {{
{newline.join(sample)}
ret void
}}
define void @model_sample(ptr %state, ptr %in, ptr %out) {{
call void @model_apply(ptr %state, ptr %in)
{low}
call void @model_read(ptr %state, ptr %out)
ret void
}}
{_run_function(words[False], words[True], low, high)}"""


def _run_function(inputs: int, outputs: int, low: str, high: str) -> str:
    """The loop over cycles, as LLVM IR.

    Args:
        inputs: words of a row of inputs.
        outputs: words of a row of outputs.
        low: settles the logic with the clock low: a cycle up to its edge.
        high: the edge.
    """
    return f"""\
define void @model_run(ptr %state, ptr %inputs, i64 %rows, i64 %cycles, ptr %outputs, ptr %at,
                       i64 %samples, i64 %watch, i64 %stop, ptr %done, i64 %first.traced,
                       i64 %last.traced, ptr %observe) {{
entry:
  %local = alloca [{max(1, outputs)} x i64]
  %last = sub i64 %rows, 1
  %any = icmp sgt i64 %cycles, 0
  br i1 %any, label %cycle, label %end
cycle:
  %t = phi i64 [ 0, %entry ], [ %t.next, %again ]
  %count = phi i64 [ 0, %entry ], [ %count.next, %again ]
  %fresh = icmp sle i64 %t, %last
  br i1 %fresh, label %apply, label %settle
apply:
  %at.in = mul i64 %t, {inputs}
  %in = getelementptr i64, ptr %inputs, i64 %at.in
  call void @model_apply(ptr %state, ptr %in)
  br label %settle
settle:
  {low}
  %room = icmp slt i64 %count, %samples
  %at.out = mul i64 %count, {outputs}
  %out.row = getelementptr i64, ptr %outputs, i64 %at.out
  %out = select i1 %room, ptr %out.row, ptr %local
  call void @model_read(ptr %state, ptr %out)
  %begun = icmp sge i64 %t, %first.traced
  %on = icmp sle i64 %t, %last.traced
  %traced = and i1 %begun, %on
  br i1 %traced, label %show, label %shown
show:
  call void %observe(i64 %t)
  br label %shown
shown:
  %watched = icmp sge i64 %watch, 0
  br i1 %watched, label %look, label %decide
look:
  %watch.at = getelementptr i64, ptr %out, i64 %watch
  %watch.value = load i64, ptr %watch.at
  %watch.on = icmp ne i64 %watch.value, 0
  br label %decide
decide:
  %wanted = phi i1 [ true, %shown ], [ %watch.on, %look ]
  %take = and i1 %wanted, %room
  br i1 %take, label %keep, label %edge
keep:
  %at.here = getelementptr i64, ptr %at, i64 %count
  store i64 %t, ptr %at.here
  br label %edge
edge:
  %taken = zext i1 %take to i64
  %count.next = add i64 %count, %taken
  %stops = icmp sge i64 %stop, 0
  br i1 %stops, label %ask, label %rise
ask:
  %stop.at = getelementptr i64, ptr %out, i64 %stop
  %stop.value = load i64, ptr %stop.at
  %stop.on = icmp ne i64 %stop.value, 0
  br label %rise
rise:
  %halt = phi i1 [ false, %edge ], [ %stop.on, %ask ]
  {high}
  %t.next = add i64 %t, 1
  %over = icmp sge i64 %t.next, %cycles
  %limited = icmp sgt i64 %samples, 0
  %filled = icmp sge i64 %count.next, %samples
  %full = and i1 %limited, %filled
  %end.a = or i1 %halt, %over
  %end.b = or i1 %end.a, %full
  br i1 %end.b, label %end, label %again
again:
  br label %cycle
end:
  %t.end = phi i64 [ 0, %entry ], [ %t.next, %rise ]
  %count.end = phi i64 [ 0, %entry ], [ %count.next, %rise ]
  store i64 %t.end, ptr %done
  %done.count = getelementptr i64, ptr %done, i64 1
  store i64 %count.end, ptr %done.count
  ret void
}}
"""


class ArcModel(Model):
    """A running instance of a module; see `runtime.engines.running.Model`.

    Args:
        text: hw, comb and seq IR.
        top: the module to run.
        opt: LLVM's optimisation level.
        cache: keep the compiled code on disk.
    """

    def __init__(self, text: str, top: str, *, opt: int = 1, cache: bool = False) -> None:
        self._program = program = compile_arc(text, top, opt, cache)
        self.layout = program.layout
        # Whole cache lines, so that no word straddles two.
        raw = np.zeros(program.layout.size + 128, np.uint8)
        start = -raw.ctypes.data % 64
        self._bytes = raw[start : start + program.layout.size + 64]
        address = self._bytes.ctypes.data
        ports = [
            ModelPort(port.name, port.output, port.width)
            for port in program.layout.ports
            if port.output or port.name != "clk"
        ]
        super().__init__(ports, address, program.run, program.sample)
        if program.initial:
            ctypes.CFUNCTYPE(None, ctypes.c_void_p)(program.initial)(address)

    @property
    def memories(self) -> list[str]:
        """See `Model.memories`."""
        return list(self.layout.memories)

    def memory(self, name: str) -> npt.NDArray[np.unsignedinteger]:
        """See `Model.memory`."""
        if name not in self.layout.memories:
            known = ", ".join(self.layout.memories) or "none"
            raise CompilerBug(f"no memory {name}; there are {known}")
        place = self.layout.memories[name]
        end = place.offset + place.depth * place.stride
        rows = self._bytes[place.offset : end].reshape(place.depth, place.stride)
        kind = element_type(place.width)
        if kind is None:
            return rows[:, : -(-place.width // 8)]
        return rows.view(kind)[:, 0]

    @property
    def registers(self) -> list[str]:
        """Hierarchical names of the registers."""
        return list(self.layout.registers)

    def register(self, name: str) -> int:
        """See `Model.register`."""
        if name not in self.layout.registers:
            raise CompilerBug(f"no register {name} in {self.layout.top}")
        offset, width = self.layout.registers[name]
        content = self._bytes[offset : offset + -(-width // 8)].tobytes()
        return int.from_bytes(content, "little") & ((1 << width) - 1)

    def set_register(self, name: str, value: int) -> None:
        """Gives a register, by its hierarchical name, another value (unsigned) from now on."""
        if name not in self.layout.registers:
            raise CompilerBug(f"no register {name} in {self.layout.top}")
        offset, width = self.layout.registers[name]
        if not 0 <= value < 1 << width:
            raise CompilerBug(f"{value} does not fit the {width} bits of {name}")
        size = -(-width // 8)
        self._bytes[offset : offset + size] = np.frombuffer(
            value.to_bytes(size, "little"), np.uint8
        )

    def _record(self, path: Path, form: str) -> Recorder:
        check_waveform(form, "rtl")
        return _Recorder(path, self.layout, self._bytes)

    def close(self) -> None:
        """See `Model.close`; the state is memory of this process."""
        self.trace_end()


class _Recorder:
    """Ports, registers and small memories of a state, cycle by cycle.

    An input that nothing reads has no place in the state, and is not in the waveform.
    """

    def __init__(self, path: Path, layout: StateLayout, state: npt.NDArray[np.uint8]) -> None:
        places: dict[str, tuple[int, int]] = dict(layout.registers)
        for name, memory in layout.memories.items():
            if memory.depth <= TRACED_DEPTH:
                for i in range(memory.depth):
                    place = memory.offset + i * memory.stride
                    places[f"{name}/Memory[{i}]"] = place, memory.width
        for port in layout.ports:
            if port.offset is not None:
                places[port.name] = port.offset, port.width
        places.pop("clk", None)
        names: dict[tuple[int, int], list[str]] = {}
        for name, place in places.items():
            names.setdefault(place, []).append(name)
        # What lies in one 64-bit word first: a signal's number is that of its word below.
        spots = sorted(names, key=lambda spot: (not _in_word(*spot), spot))
        signals = [Signal(tuple(names[spot]), spot[1]) for spot in spots]
        self._clock = len(signals)
        self._writer = VCDWriter(path, layout.top, [*signals, Signal(("clk",), 1)])
        self._state = state
        self._words = state[: len(state) // 8 * 8].view("<u8")
        parts: list[tuple[int, int, int, int]] = []
        self._narrow = 0
        for number, (offset, width) in enumerate(spots):
            if _in_word(offset, width):
                parts.append((offset // 8, offset % 8 * 8, (1 << width) - 1, number))
                self._narrow += 1
            else:
                last = (offset + -(-width // 8) - 1) // 8
                parts += [(word, 0, (1 << 64) - 1, number) for word in range(offset // 8, last + 1)]
        self._word = np.array([word for word, _, _, _ in parts], np.int64)
        self._shift = np.array([shift for _, shift, _, _ in parts], np.uint64)
        self._mask = np.array([mask for _, _, mask, _ in parts], np.uint64)
        self._number = [number for _, _, _, number in parts]
        self._spots = spots
        self._last: npt.NDArray[np.uint64] | None = None

    def record(self, cycle: int) -> None:
        """See `Recorder.record`."""
        now = self._words[self._word] >> self._shift & self._mask
        changed = np.arange(len(now)) if self._last is None else np.flatnonzero(now != self._last)
        self._last = now
        split = int(np.searchsorted(changed, self._narrow))
        values = list(zip(changed[:split].tolist(), now[changed[:split]].tolist(), strict=True))
        for part in changed[split:].tolist():
            number = self._number[part]
            values.append((number, self._wide(*self._spots[number])))
        self._writer.change(PERIOD * cycle, [(self._clock, 1), *values])
        self._writer.change(PERIOD * cycle + PERIOD // 2, [(self._clock, 0)])

    def _wide(self, offset: int, width: int) -> int:
        content = self._state[offset : offset + -(-width // 8)].tobytes()
        return int.from_bytes(content, "little") & ((1 << width) - 1)

    def close(self) -> None:
        """See `Recorder.close`."""
        self._writer.close()


def _in_word(offset: int, width: int) -> bool:
    """Whether a value lies in one 64-bit word of the state."""
    return offset % 8 * 8 + width <= 64
