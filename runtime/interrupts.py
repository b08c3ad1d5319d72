"""Signals that end a command: they clean up as Ctrl-C does, and compiled code does not lose them.

Python raises `KeyboardInterrupt` wherever it happens to be. In a function that compiled code calls
there is nobody to raise it to, and it would be lost.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_ENDING = (signal.SIGTERM, signal.SIGHUP)
_HELD = (signal.SIGINT, *_ENDING)


class Stopped(KeyboardInterrupt):
    """A signal other than Ctrl-C's asked the process to end.

    Attributes:
        signal: its number.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.signal = number


@contextmanager
def stopping() -> Iterator[None]:
    """Signals that would end the process at once raise `Stopped` instead."""
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for one in _ENDING:
            # Who starts a command with nohup wants it to go on.
            if signal.getsignal(one) is signal.SIG_DFL:
                before[one] = signal.signal(one, _stop)
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


def _stop(number: int, frame: FrameType | None) -> None:
    raise Stopped(number)


@contextmanager
def held_back() -> Iterator[None]:
    """Signals that come meanwhile are raised at the end, not inside."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = {
        one: signal.signal(one, lambda number, frame: came.append(number))
        for one in _HELD
        if callable(signal.getsignal(one))
    }
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
        for number in came[:1]:
            signal.raise_signal(number)
