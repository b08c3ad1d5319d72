"""Waveforms: which file an engine can write, and a writer of Value Change Dumps.

The format is that of IEEE 1364-2005, section 18. The same values give the same bytes: there is no
date in the header. A clock cycle takes `PERIOD` ns, so that a time is ten times its cycle: at
`PERIOD * cycle` the clock rises and all signals take the values that they have in that cycle.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from intaglio.backend.output.whole import naming
from intaglio.dialects.errors import CompilerBug, UserError

PERIOD = 10
"""Units of time in a clock cycle; the clock falls in its middle."""

FORMATS = {"rtl": ("vcd",), "verilator": ("vcd", "fst")}
"""What each engine writes."""


def waveform_format(path: Path, engine: str) -> str:
    """`vcd` or `fst`, by the file's name.

    Raises:
        UserError: the engine does not write such files.
    """
    found = path.suffix.removeprefix(".").lower()
    check_waveform(found, engine, path.name)
    return found


def check_waveform(form: str, engine: str, name: str = "") -> None:
    """Whether an engine writes waveforms of a format.

    Raises:
        UserError: it does not.
    """
    if form in FORMATS[engine]:
        return
    able = [one for one, formats in FORMATS.items() if form in formats]
    raise UserError(
        f"the {engine} engine cannot write the waveform {name or f'*.{form}'}",
        hint=f"it writes {' and '.join(f'.{one}' for one in FORMATS[engine])}"
        + "".join(f"; the {one} engine writes .{form}" for one in able),
    )


def cycle_range(text: str) -> tuple[int, int | None]:
    """The first and the last cycle of `FROM:TO`; either may be missing.

    Raises:
        UserError: it is not a range of cycles.
    """
    first, colon, last = text.partition(":")
    numbers = [first or "0", last or "0"]
    if colon and all(number.isdecimal() for number in numbers):
        start, end = map(int, numbers)
        if not last or start <= end:
            return start, end if last else None
    raise UserError(
        f"{text} is not a range of cycles", hint="write FROM:TO, FROM: or :TO; TO is included"
    )


@dataclass(frozen=True)
class Signal:
    """Something with a value: all its names (`unit/part/name`) and its width in bits."""

    names: tuple[str, ...]
    width: int


class VCDWriter:
    """Writes one file.

    Args:
        path: of the file.
        top: the scope that holds everything.
        signals: known by their place in this sequence from here on.

    Raises:
        UserError: the file cannot be written.
    """

    def __init__(self, path: Path, top: str, signals: Sequence[Signal]) -> None:
        self._last: list[int | None] = [None] * len(signals)
        codes = [_code(number) for number in range(len(signals))]
        # A vector's value ends with a space, a bit's does not.
        self._ends = [
            f" {code}\n" if signal.width > 1 else f"{code}\n"
            for code, signal in zip(codes, signals, strict=True)
        ]
        self._wide = [signal.width > 1 for signal in signals]
        self._time: int | None = None
        try:
            self._file = path.open("w", encoding="ascii", newline="\n")
        except OSError as error:
            raise UserError(f"cannot write the waveform {path}: {error.strerror}") from error
        self._path = path
        lines = ["$version Intaglio $end", "$timescale 1ns $end"]
        scope: list[str] = []
        variables = sorted(
            ([top, *name.split("/")], signal.width, code)
            for signal, code in zip(signals, codes, strict=True)
            for name in signal.names
        )
        # A scope's own signals stand before its inner scopes.
        variables.sort(key=lambda one: [(1, part) for part in one[0][:-1]] + [(0, one[0][-1])])
        for (*path_, name), width, code in variables:
            common = 0
            while common < min(len(scope), len(path_)) and scope[common] == path_[common]:
                common += 1
            lines += ["$upscope $end"] * (len(scope) - common)
            lines += [f"$scope module {part} $end" for part in path_[common:]]
            scope = path_
            bits = f" [{width - 1}:0]" if width > 1 else ""
            lines.append(f"$var wire {width} {code} {name}{bits} $end")
        lines += ["$upscope $end"] * len(scope)
        lines.append("$enddefinitions $end")
        self._file.write("\n".join(lines) + "\n")

    def change(self, time: int, values: Iterable[tuple[int, int]]) -> None:
        """Writes those values (signal, unsigned value) that are not what they were.

        Args:
            time: in ns; never less than before.
            values: of signals; those that never had one are undefined (x).
        """
        last, ends, wide = self._last, self._ends, self._wide
        lines: list[str] = []
        for number, value in values:
            if last[number] != value:
                last[number] = value
                lines.append(
                    f"b{value:b}{ends[number]}" if wide[number] else f"{value}{ends[number]}"
                )
        if not lines:
            return
        if self._time is not None and time < self._time:
            raise CompilerBug(f"a waveform went back from {self._time} to {time}")
        if self._time is None:
            lines = ["$dumpvars\n", *lines, "$end\n"]
        if time != self._time:
            lines.insert(0, f"#{time}\n")
        self._time = time
        with naming(self._path):
            self._file.write("".join(lines))

    def close(self) -> None:
        """Ends the file."""
        with naming(self._path):
            self._file.close()


def _code(number: int) -> str:
    """A short name of printable characters."""
    code = ""
    while True:
        number, digit = divmod(number, 94)
        code += chr(33 + digit)
        if not number:
            return code
        number -= 1
