"""The threads that run a kernel together, and the memory that they work in."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

LINE = 64
"""Bytes of a cache line."""

_buffer: Callable[[Any], ctypes.c_char] = ctypes.c_char.from_buffer
_addressof = ctypes.addressof


def address(operand: np.ndarray) -> int:
    """Of an array's first element."""
    try:
        # Several times faster than `ctypes.data`.
        return _addressof(_buffer(operand))
    except (TypeError, ValueError, BufferError):
        # Read-only or empty.
        return operand.ctypes.data


class _Scratch(threading.local):
    """A thread's buffer for activations, kept because fresh pages cost more than small products.

    It begins on a cache line, so that no vector load straddles two.
    """

    def __init__(self) -> None:
        self._allocate(1 << 16)

    def _allocate(self, nbytes: int) -> None:
        raw = np.empty(nbytes + LINE - 1, np.int8)
        start = -address(raw) % LINE
        self.area = raw[start : start + nbytes]
        self.address = address(self.area)

    def take(self, nbytes: int) -> tuple[npt.NDArray[np.int8], int]:
        """At least that many bytes, and their address; overwritten by the thread's next call."""
        if nbytes > self.area.nbytes:
            self._allocate(nbytes)
        return self.area, self.address


SCRATCH = _Scratch()


class _Pool:
    """Threads that run one kernel together with the caller; they share its row counter.

    Waking a bare lock costs a few microseconds, an executor's queue and future some tens.
    """

    def __init__(self) -> None:
        self.size = max(1, os.cpu_count() or 1)
        self._busy = threading.Lock()
        self._workers: list[tuple[threading.Lock, threading.Lock]] = []
        self._function: Callable[[int], None] | None = None
        self._argument = 0

    def forget(self) -> None:
        """Goes back to no threads."""
        self._busy = threading.Lock()
        self._workers = []

    def run(self, function: Callable[[int], None], argument: int, threads: int) -> None:
        """Calls `function(argument)` on this many threads and waits for all of them.

        A second caller finds the workers taken and computes alone; the result is the same.
        """
        if threads <= 1 or not self._busy.acquire(blocking=False):
            function(argument)
            return
        try:
            while len(self._workers) < threads - 1:
                self._start()
            self._function, self._argument = function, argument
            helpers = self._workers[: threads - 1]
            for go, _ in helpers:
                go.release()
            function(argument)
            for go, finished in helpers:
                # A worker the system has not woken yet is not needed any more: all rows are taken.
                if not go.acquire(blocking=False):
                    finished.acquire()
        finally:
            self._busy.release()

    def _start(self) -> None:
        go, finished = threading.Lock(), threading.Lock()
        go.acquire()
        finished.acquire()
        self._workers.append((go, finished))

        def work() -> None:
            while True:
                go.acquire()
                if self._function is not None:
                    self._function(self._argument)
                finished.release()

        threading.Thread(target=work, name="intaglio-kernel", daemon=True).start()


POOL = _Pool()

# A forked child has none of its parent's threads; waiting for them would never end.
os.register_at_fork(after_in_child=POOL.forget)
