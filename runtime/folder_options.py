"""Options of the commands that take an output folder, and what each of them does."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from intaglio.dialects.errors import UserError
from intaglio.runtime.engines.names import HARDWARE_ENGINES
from intaglio.runtime.terminal import say

if TYPE_CHECKING:
    from intaglio.runtime.chip import Chip


def folder_arguments(parser: argparse.ArgumentParser) -> None:
    """The output folder, and what is to be thought of its files."""
    parser.add_argument("out", metavar="OUT", help="output folder of a compile")
    parser.add_argument(
        "--trust-edited",
        action="store_true",
        help="go on with files of OUT that are not what the compile wrote, and name them",
    )
    parser.add_argument(
        "--verify", action="store_true", help="hash all files of OUT again, not only changed ones"
    )


def loaded(args: argparse.Namespace) -> Chip:
    """The output folder, opened."""
    from intaglio.runtime.chip import load

    return load(args.out, trust_edited=args.trust_edited, verify=args.verify)


def adapter_argument(parser: argparse.ArgumentParser) -> None:
    """The adapter that is active for the command."""
    parser.add_argument("--adapter", metavar="NAME", help="with this adapter; see adapter list")


def trace_arguments(parser: argparse.ArgumentParser) -> None:
    """The waveform of a hardware engine; see `traced`."""
    parser.add_argument(
        "--trace", metavar="FILE.vcd", help="write a waveform (rtl; verilator also .fst)"
    )
    parser.add_argument(
        "--trace-cycles", metavar="FROM:TO", help="trace only these cycles, counted from the reset"
    )


@contextmanager
def traced(args: argparse.Namespace, chip: Chip) -> Iterator[None]:
    """Writes the waveform that is asked for, or nothing of it where the command fails."""
    if args.trace is None:
        if args.trace_cycles is not None:
            raise UserError("--trace-cycles: only with --trace")
        yield
        return
    chip.trace(args.engine, args.trace, args.trace_cycles or ":")
    try:
        yield
    except BaseException:
        chip.trace_end(args.engine, keep=False)
        raise
    chip.trace_end(args.engine)


def announce(args: argparse.Namespace, chip: Chip, tokens: int) -> None:
    """Says how much work the simulation of hardware is, before it begins.

    Raises:
        UserError: there is no hardware for the program.
    """
    if args.engine in HARDWARE_ENGINES:
        from intaglio.backend.hw.chip.layout import refusals
        from intaglio.backend.hw.units.refusals import refuse
        from intaglio.runtime.engines.hardware_work import work_lines

        refuse(refusals(chip.program))
        for line in work_lines(chip, args.engine, tokens):
            say(f"{line}\n")


def token_ids(text: str) -> list[int]:
    """The ids of `--prompt-ids`.

    Raises:
        UserError: it is no list of integers.
    """
    try:
        return [int(part) for part in text.split(",")] if text.strip() else []
    except ValueError:
        raise UserError(
            f"--prompt-ids {text}: not a list of token ids", hint="for example --prompt-ids 1,2,3"
        ) from None
