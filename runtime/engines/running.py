"""A piece of hardware that runs: what both hardware simulations have in common.

Time goes in clock cycles. In each cycle the inputs are applied, the logic settles, the outputs are
sampled, and then the clock rises: registers and memories take their next values. So the outputs of
a cycle are what a register outside the module would see at that cycle's end.
"""

from __future__ import annotations

import atexit
import ctypes
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from intaglio.backend.output.whole import whole_file
from intaglio.dialects.errors import CompilerBug, UserError
from intaglio.runtime.interrupts import held_back

Words = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class ModelPort:
    """A port but the clock: its name, direction, and width in bits."""

    name: str
    output: bool
    width: int

    @property
    def words(self) -> int:
        """64-bit words that hold a value."""
        return -(-self.width // 64)


class Trace(NamedTuple):
    """What `Model.run` saw.

    Attributes:
        cycles: how many cycles were run.
        at: int64 [n], the cycles (counted since the model began) of the samples.
        outputs: for each output its n samples: uint64 [n], or [n, words] for more than 64 bits
            (low word first).
    """

    cycles: int
    at: npt.NDArray[np.int64]
    outputs: Mapping[str, Words]


class Recorder(Protocol):
    """Writes a waveform."""

    def record(self, cycle: int) -> None:
        """Writes the values of the cycle that has just settled."""
        ...

    def close(self) -> None:
        """Completes the file."""
        ...


class Model(ABC):
    """A running hardware module. Inputs keep their values until they are set again.

    It is made around two compiled functions. ``run(state, inputs, rows, cycles, outputs, at,
    samples, watch, stop, done, first, last, observe)`` does what `run` says: a row of `inputs` or
    `outputs` holds all ports of that direction in order, 64 bits a word; `watch` and `stop` are
    numbers of words in an output row (-1: none); ``done[0]`` and ``done[1]`` receive cycles and
    samples; ``observe(t)`` is called in the cycles `first` to `last` of this run when they have
    settled. ``sample(state, inputs, outputs)`` applies one row, settles, and reads one.
    """

    def __init__(
        self, ports: Sequence[ModelPort], state: int, run_address: int, sample_address: int
    ) -> None:
        self.ports: Mapping[str, ModelPort] = {port.name: port for port in ports}
        self.cycle = 0
        """Cycles run so far."""
        self._state = state
        pointer, count = ctypes.c_void_p, ctypes.c_int64
        self._run = ctypes.CFUNCTYPE(
            None,
            *(pointer, pointer, count, count, pointer, pointer, count, count, count, pointer),
            *(count, count, pointer),
        )(run_address)
        self._sample = ctypes.CFUNCTYPE(None, pointer, pointer, pointer)(sample_address)
        self._places: dict[str, int] = {}
        sizes = {False: 0, True: 0}
        for port in ports:
            self._places[port.name] = sizes[port.output]
            sizes[port.output] += port.words
        self._inputs = np.zeros(max(1, sizes[False]), np.uint64)
        self._outputs = np.zeros(max(1, sizes[True]), np.uint64)
        self._recorder: Recorder | None = None
        self._waveform: ExitStack | None = None
        self._traced = (0, -1)
        self._observe: Any = None
        self._failure: Exception | None = None

    def set(self, name: str, value: int) -> None:
        """Gives an input a value; negative numbers in two's complement."""
        port = self._port(name, False)
        place, value = self._places[name], int(value)
        if not -(1 << (port.width - 1)) <= value < 1 << port.width:
            raise CompilerBug(f"{value} does not fit the {port.width} bits of {name}")
        value &= (1 << port.width) - 1
        for i in range(port.words):
            self._inputs[place + i] = value >> (64 * i) & _WORD

    def get(self, name: str) -> int:
        """An output's value (unsigned) now: for the inputs as they are, before the next edge."""
        port = self._port(name, True)
        self._sample(self._state, self._inputs.ctypes.data, self._outputs.ctypes.data)
        place = self._places[name]
        words = self._outputs[place : place + port.words].tolist()
        return sum(word << (64 * i) for i, word in enumerate(words))

    def step(self, cycles: int = 1) -> None:
        """Runs cycles with the inputs as they are."""
        done = np.zeros(2, np.int64)
        self._call(self._inputs[None], cycles, None, None, 0, -1, -1, done)
        self.cycle += cycles

    def run(
        self,
        cycles: int,
        inputs: Mapping[str, npt.ArrayLike] | None = None,
        watch: str | None = None,
        stop: str | None = None,
        samples: int | None = None,
    ) -> Trace:
        """Runs cycles in a compiled loop and samples the outputs.

        Args:
            cycles: how many, at most.
            inputs: for some inputs their values, one a cycle (the last one stays): integers [n],
                or uint64 [n, words]; all of one length.
            watch: take a sample only in cycles in which this output is not 0.
            stop: end with the first cycle in which this output is not 0 (its edge included).
            samples: end when so many are taken (default: `cycles`).
        """
        rows = self._rows(inputs or {})
        capacity = cycles if samples is None else min(samples, cycles)
        outputs = np.empty((capacity, len(self._outputs)), np.uint64)
        at = np.empty(capacity, np.int64)
        done = np.zeros(2, np.int64)
        watched, stopping = (
            -1 if port is None else self._places[self._narrow(port)] for port in (watch, stop)
        )
        self._call(rows, cycles, outputs, at, capacity, watched, stopping, done)
        count, taken = done.tolist()
        at = at[:taken] + self.cycle
        self.cycle += count
        if count:
            self._inputs[:] = rows[min(count, len(rows)) - 1]
        seen: dict[str, Words] = {}
        for name, port in self.ports.items():
            if port.output:
                place = self._places[name]
                words = outputs[:taken, place : place + port.words]
                seen[name] = words[:, 0] if port.words == 1 else words
        return Trace(count, at, seen)

    def trace(self, path: Path, first: int = 0, last: int | None = None) -> None:
        """Writes the waveform of cycles to come into a file.

        The file is there, whole, when the last of them has been run, at `trace_end` or at `close`;
        until then an earlier one stays. See `runtime.engines.vcd` for its times.

        Args:
            path: its suffix is the format.
            first: the first cycle, counted as `cycle` is.
            last: and the last one; None: all that are run.

        Raises:
            UserError: the file cannot be written, or the cycles are over.
        """
        self.trace_end()
        last = _FOREVER if last is None else last
        if not max(0, first, self.cycle) <= last:
            raise UserError(
                f"no cycle of {first} to {last} is to come: {self.cycle} have been run",
                hint="cycles count from 0, and the first is not after the last",
            )
        with ExitStack() as stack:
            partial = stack.enter_context(whole_file(path))
            self._recorder = self._record(partial, path.suffix.removeprefix(".").lower())
            self._waveform = stack.pop_all()
        self._traced = first, last
        self._observe = ctypes.CFUNCTYPE(None, ctypes.c_int64)(self._settled)
        # However the script ends, the file is complete.
        atexit.register(self.trace_end)

    def trace_end(self, keep: bool = True) -> None:
        """Completes the file of `trace`, if one is open; or forgets what was written of it."""
        # The callback refers to the model: without it the model is freed at once.
        recorder, self._recorder, self._observe = self._recorder, None, None
        stack, self._waveform = self._waveform, None
        if recorder is None or stack is None:
            return
        atexit.unregister(self.trace_end)
        with suppress(_Forgotten), stack:
            recorder.close()
            if not keep:
                raise _Forgotten

    @property
    @abstractmethod
    def memories(self) -> Sequence[str]:
        """Hierarchical names of the memories, `unit/part/memory`."""

    @abstractmethod
    def memory(self, name: str) -> npt.NDArray[np.unsignedinteger]:
        """A view of a memory's content; writing to it writes the memory.

        Returns:
            An unsigned array [depth] for words up to 64 bits, else uint8 [depth, bytes]. Bits
            above a word's width must stay 0.
        """

    @abstractmethod
    def register(self, name: str) -> int:
        """The value (unsigned) of a register by its hierarchical name."""

    @abstractmethod
    def close(self) -> None:
        """Frees what the model holds."""

    @abstractmethod
    def _record(self, path: Path, form: str) -> Recorder:
        """The engine's writer of waveforms, of files of this name in this format."""

    def _settled(self, t: int) -> None:
        # Nothing may be raised through the compiled loop.
        if self._recorder is not None and self._failure is None:
            try:
                self._recorder.record(self.cycle + t)
            except Exception as error:
                self._failure = error

    def _call(
        self,
        rows: Words,
        cycles: int,
        outputs: Words | None,
        at: npt.NDArray[np.int64] | None,
        samples: int,
        watch: int,
        stop: int,
        done: npt.NDArray[np.int64],
    ) -> None:
        arguments = (
            self._state,
            rows.ctypes.data,
            len(rows),
            cycles,
            None if outputs is None else outputs.ctypes.data,
            None if at is None else at.ctypes.data,
            samples,
            watch,
            stop,
            done.ctypes.data,
        )
        if self._observe is None:
            self._run(*arguments, 0, -1, None)
            return
        # Nothing that is raised inside `_settled` would come out of the compiled loop.
        with held_back():
            self._run(*arguments, *(bound - self.cycle for bound in self._traced), self._observe)
        failure, self._failure = self._failure, None
        if failure is not None:
            self.trace_end(keep=False)
            raise failure
        if self._observe and self.cycle + int(done[0]) > self._traced[1]:
            self.trace_end()

    def _rows(self, inputs: Mapping[str, npt.ArrayLike]) -> Words:
        arrays = {name: np.asarray(values) for name, values in inputs.items()}
        lengths = {len(values) for values in arrays.values()}
        if len(lengths) > 1 or 0 in lengths:
            raise CompilerBug("inputs of a run have one length, at least 1")
        rows = np.tile(self._inputs, (lengths.pop() if lengths else 1, 1))
        for name, values in arrays.items():
            port, place = self._port(name, False), self._places[name]
            if values.ndim == 1 and port.words > 1:
                # Sign-extended upwards, so that narrow numbers may drive wide ports.
                rows[:, place] = values.astype(np.uint64)
                upper = np.where(values < 0, _WORD, 0).astype(np.uint64)
                rows[:, place + 1 : place + port.words] = upper[:, None]
            else:
                words = values.astype(np.uint64).reshape(len(values), port.words)
                rows[:, place : place + port.words] = words
            if rest := port.width % 64:
                rows[:, place + port.words - 1] &= np.uint64((1 << rest) - 1)
        return rows

    def _port(self, name: str, output: bool) -> ModelPort:
        port = self.ports.get(name)
        if port is None or port.output != output:
            kind = "output" if output else "input"
            names = ", ".join(p.name for p in self.ports.values() if p.output == output)
            raise CompilerBug(f"no {kind} {name}; there are {names}")
        return port

    def _narrow(self, name: str) -> str:
        if self._port(name, True).words > 1:
            raise CompilerBug(f"output {name} is too wide to be watched")
        return name


class _Forgotten(Exception):
    """What was written of a waveform is not wanted."""


_WORD = (1 << 64) - 1
_FOREVER = 1 << 62


def signed(values: npt.NDArray[np.unsignedinteger], width: int) -> npt.NDArray[np.int64]:
    """Samples of a port of up to 64 bits as two's complement."""
    places = np.uint64(64 - width)
    return (values.astype(np.uint64) << places).view(np.int64) >> np.int64(64 - width)


def element_type(width: int) -> np.dtype | None:
    """The unsigned type that holds a memory word; None beyond 64 bits."""
    for bits in (8, 16, 32, 64):
        if width <= bits:
            return np.dtype(f"u{bits // 8}")
    return None
