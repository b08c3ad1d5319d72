"""`intaglio sweep`: what it does with its options, and what is printed and written."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from intaglio.backend.output.whole import whole_file, write_text
from intaglio.backend.stages import Options
from intaglio.dialects.errors import UserError, printable
from intaglio.runtime.sweep.rows import Found, Row
from intaglio.runtime.terminal import progress_line, say, warn, write, write_json, write_line

if TYPE_CHECKING:
    from intaglio.runtime.sweep.points import Point
    from intaglio.runtime.sweep.sweep import Say, Sweep


def run(args: argparse.Namespace, options: Options, positions: Sequence[int]) -> int:
    """Runs a sweep.

    Args:
        args: the command's.
        options: what holds at all points.
        positions: to state; none: the first and the last.

    Returns:
        The exit code: 1 where points could not be evaluated.
    """
    from intaglio.runtime.sweep.engines import engine_for
    from intaglio.runtime.sweep.front import check_objective, front, objectives_of
    from intaglio.runtime.sweep.models import Models
    from intaglio.runtime.sweep.points import Asked, grid_size
    from intaglio.runtime.sweep.record import Record
    from intaglio.runtime.sweep.sweep import Progress, Sweep, fitting

    for name in args.objectives:
        check_objective(name)
    if args.prompt < 0 or args.windows < 1:
        raise UserError("--prompt and --windows are numbers of tokens and of windows")
    asked = Asked(tuple(positions), args.prompt, args.text, args.windows if args.text else 1)
    vary, points = _points(args, options)
    models = Models(Path(args.model), weights_count=asked.text is not None)
    total = len(points) if points is not None else grid_size(vary) if not args.search else None
    with (
        Record(Path(args.record), resume=args.resume) as record,
        _shown() as show,
        engine_for(models, asked, scheduler=args.scheduler, workers=args.workers) as engine,
    ):
        what = "a search" if total is None else f"{total:,} points"
        say(f"{args.model} for {options.target}: {what} {engine.told}\n")
        progress = Progress(total, show, lambda line: say(f"{line}\n"))
        sweep = Sweep(models, options, asked, record, engine, progress)
        rows = _rows(sweep, args, vary, points)
    fit = fitting(rows)
    objectives = objectives_of(fit, args.objectives)
    best = front(fit, objectives)
    _write_files(args, options, rows, fit, best, objectives)
    failed = [row for row in rows if "error" in row]
    if args.json:
        write_json(
            {
                "schema": 1,
                "objectives": objectives,
                "points": rows,
                "front": [fit[number]["key"] for number in best],
            }
        )
    else:
        _print(rows, fit, best, objectives)
    for row in failed[:3]:
        shown = ", ".join(f"{key}={value}" for key, value in row["point"].items())
        warn(f"{shown} could not be evaluated: {row['error']}")
    return 1 if failed else 0


def _points(
    args: argparse.Namespace, options: Options
) -> tuple[dict[str, tuple[str, ...]], list[Point] | None]:
    """What is varied; and the points, or None where they are a grid's.

    Raises:
        UserError: neither or both are given, or the target has no such setting.
    """
    from intaglio.runtime.sweep.points import check_keys, parse_vary, read_points
    from intaglio.runtime.sweep.search import check_installed

    if bool(args.vary) == bool(args.points):
        raise UserError(
            "a sweep needs --vary or --points, and not both",
            hint="for example --vary l_unit.lanes=16,32,64 --vary kv=int8,half8",
        )
    if args.search is not None:
        if args.points or args.search < 1:
            raise UserError("--search N chooses N points of a grid that --vary gives")
        check_installed()
    if args.points:
        points = read_points(Path(args.points))
        used: dict[str, tuple[str, ...]] = {}
        for point in points:
            for key, value in point:
                used[key] = tuple(dict.fromkeys((*used.get(key, ()), value)))
        check_keys(used, options)
        return used, points
    vary = parse_vary(args.vary)
    check_keys(vary, options)
    return vary, None


def _rows(
    sweep: Sweep,
    args: argparse.Namespace,
    vary: Mapping[str, Sequence[str]],
    points: list[Point] | None,
) -> list[Found]:
    """The rows of all points, evaluated or from the record."""
    from intaglio.runtime.sweep.front import objectives_of
    from intaglio.runtime.sweep.points import grid
    from intaglio.runtime.sweep.search import search
    from intaglio.runtime.sweep.sweep import fitting

    if not args.search:
        return sweep.rows(grid(vary) if points is None else points)
    middle = tuple((key, values[len(values) // 2]) for key, values in vary.items())
    objectives = objectives_of(fitting(sweep.rows([middle])), args.objectives)
    if not objectives:
        first = sweep.rows([middle])[0]
        raise UserError(
            f"the search begins in the middle, which does not fit: {first.get('reason')}",
            hint="give values of which the middle ones fit, or sweep the grid without --search",
        )
    found = search(vary, objectives, args.search, args.seed, sweep.rows)
    return sweep.rows(found)


@contextmanager
def _shown() -> Iterator[Say | None]:
    """The line of a terminal, or None where there is none."""
    with progress_line() as show:
        yield show if sys.stderr is not None and sys.stderr.isatty() else None


def _write_files(
    args: argparse.Namespace,
    options: Options,
    rows: Sequence[Row],
    fit: Sequence[Row],
    best: Sequence[int],
    objectives: Sequence[str],
) -> None:
    from intaglio.runtime.sweep.tables import csv_text, parquet_bytes

    keys = {fit[number]["key"] for number in best}
    if args.csv:
        with whole_file(Path(args.csv)) as partial:
            write_text(partial, csv_text(rows, keys))
    if args.parquet:
        content = parquet_bytes(rows, keys)
        with whole_file(Path(args.parquet)) as partial:
            partial.write_bytes(content)
    if args.html:
        from intaglio.runtime.sweep.page import page_html

        title = f"{Path(args.model).parent.name or args.model} for {options.target}"
        with whole_file(Path(args.html)) as partial:
            write_text(partial, page_html(title, options, rows, objectives))


def _print(
    rows: Sequence[Row],
    fit: Sequence[Row],
    best: Sequence[int],
    objectives: Sequence[str],
) -> None:
    from intaglio.runtime.reports.text import WIDTH, table_text
    from intaglio.runtime.sweep.tables import caveats, front_table, misfits, summary

    write_line(summary(rows))
    if best:
        width = max(WIDTH, shutil.get_terminal_size().columns)
        write(printable(table_text(front_table(fit, best, objectives), width)))
    for reason, count in misfits(rows):
        write_line(f"does not fit, {count:,} times: {reason}")
    for line in caveats(rows):
        write_line(f"note: {line}")
