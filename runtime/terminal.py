"""What commands write to the terminal: results to standard output, all else to standard error."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

from intaglio.backend.output.output import json_text
from intaglio.dialects.errors import UserError, printable
from intaglio.dialects.json_file import JSON


def warn(text: str) -> None:
    """Says something that does not end the command."""
    say(f"warning: {text}\n")


def say(text: str) -> None:
    """Writes to standard error, if there is any."""
    stream: TextIO | None = sys.stderr
    if stream is not None:
        with suppress(OSError, ValueError):
            stream.write(printable(text))
            stream.flush()


def write(text: str) -> None:
    """Writes a text as it is.

    Raises:
        UserError: standard output is closed, or takes nothing.
    """
    stream: TextIO | None = sys.stdout
    if stream is None or stream.closed:
        raise UserError("standard output is closed")
    try:
        stream.write(text)
        stream.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        forget_output()
        raise UserError(f"standard output cannot be written: {error.strerror}") from error
    except UnicodeEncodeError:
        encoding = stream.encoding
        stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        stream.flush()


def write_line(text: str) -> None:
    """Writes a line of a report; what names hold cannot move the cursor."""
    write(printable(text) + "\n")


def forget_output() -> None:
    """Nothing more can be written: Python would complain again when it flushes at exit."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def write_json(content: JSON) -> None:
    """Writes the result of a command as JSON."""
    write(json_text(content))


@contextmanager
def progress_line() -> Iterator[Callable[[str], None]]:
    """Shows the step at hand in one line of a terminal, and nothing elsewhere."""
    stream: TextIO | None = sys.stderr
    if stream is None or not stream.isatty():
        yield lambda message: None
        return
    start = time.monotonic()

    def show(message: str) -> None:
        width = shutil.get_terminal_size().columns - 1
        line = f"{time.monotonic() - start:6.1f} s  {message}"
        sys.stderr.write(f"\r\x1b[K{printable(line)[:width]}")
        sys.stderr.flush()

    try:
        yield show
    finally:
        sys.stderr.write("\r\x1b[K")
        sys.stderr.flush()
