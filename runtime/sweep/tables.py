"""A sweep's rows as text, CSV and Parquet."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from importlib import import_module

from intaglio.dialects.errors import UserError
from intaglio.runtime.adapters.budget import Table
from intaglio.runtime.reports.tables import amount_text
from intaglio.runtime.reports.wording import counted
from intaglio.runtime.sweep.evaluate import title_of
from intaglio.runtime.sweep.rows import Found, Module, Row

MOST = 24
"""Rows of the front that are printed."""
_SHARES = ("rom_share", "sram_share", "vector_memory_share", "reached")
_NUMBERS = re.compile(r"\d[\d,.]*")


def value_text(name: str, value: float | None) -> str:
    """A figure as people read it."""
    if value is None:
        return ""
    return f"{value:.1%}" if name.partition("@")[0] in _SHARES else amount_text(value)


def columns_of(rows: Sequence[Row]) -> tuple[list[str], list[str]]:
    """What is varied in some rows, and the names of their figures."""
    varied = dict.fromkeys(key for row in rows for key in row["point"])
    figures = dict.fromkeys(name for row in rows for name in row.get("figures", {}))
    return list(varied), list(figures)


def front_table(rows: Sequence[Row], front: Sequence[int], objectives: Sequence[str]) -> Table:
    """The rows on the front.

    Args:
        rows: of points that fit.
        front: numbers of rows.
        objectives: what they are judged by.
    """
    varied, figures = columns_of([rows[number] for number in front])
    shown = [*objectives, *(one for one in figures if one not in objectives and _worth(one))]
    table = [
        (
            *(row["point"].get(key, "") for key in varied),
            *(value_text(name, row["figures"].get(name)) for name in shown),
        )
        for row in (rows[number] for number in front[:MOST])
    ]
    more = len(front) - MOST
    note = f"and {more:,} more: see the record" if more > 0 else ""
    title = f"Front: no point is better in all of {', '.join(map(title_of, objectives))}"
    return title, (*varied, *map(title_of, shown)), table, note


def _worth(name: str) -> bool:
    """Whether a figure stands in the table of a terminal without being asked for."""
    return name.partition("@")[0] in ("rom_share", "sram_share", "first_token_ms")


def misfits(rows: Sequence[Row]) -> Iterator[tuple[str, int]]:
    """Why points do not fit, most first: reasons that differ in nothing but numbers as one."""
    kinds: Counter[str] = Counter()
    first: dict[str, str] = {}
    for row in rows:
        if row.get("reason") is not None:
            kind = _NUMBERS.sub("", row["reason"])
            kinds[kind] += 1
            first.setdefault(kind, row["reason"])
    for kind, count in kinds.most_common():
        yield first[kind], count


def summary(rows: Sequence[Row]) -> str:
    """How many points there are, and how many of them fit."""
    fit = sum(row.get("fits", False) for row in rows)
    failed = sum("error" in row for row in rows)
    text = f"{counted(len(rows), 'point')}, {fit:,} of them fit"
    return f"{text}; {failed:,} could not be evaluated" if failed else text


def caveats(rows: Sequence[Row]) -> Iterator[str]:
    """What the figures of points do not follow."""
    area = dict.fromkeys(
        setting.partition("=")[0] for row in rows for setting in row.get("not_followed", ())
    )
    if area:
        yield f"the area does not follow {', '.join(area)}: see docs/targets.md"
    if any(row.get("no_energy") for row in rows):
        yield "of some points no energy is stated: the target's figure does not follow them"
    by = dict.fromkeys(row.get("energy_by") for row in rows if row.get("fits"))
    if len(by) > 1:
        kinds = ", ".join(str(one) for one in by if one)
        yield f"energies are not of one kind ({kinds}), and should not be compared"


def flat(rows: Sequence[Row], front: set[str]) -> Iterator[Found]:
    """Rows with a column for each thing varied and each figure; absent ones are None.

    Args:
        rows: of the record.
        front: keys of those on the front.
    """
    varied, figures = columns_of(rows)
    for row in rows:
        yield {
            "key": row["key"],
            **{key: row["point"].get(key) for key in varied},
            "fits": row.get("fits", False),
            "front": row["key"] in front,
            **{name: row.get("figures", {}).get(name) for name in figures},
            "reason": row.get("reason"),
            "error": row.get("error"),
        }


def csv_text(rows: Sequence[Row], front: set[str]) -> str:
    """The same as CSV."""
    table = list(flat(rows, front))
    text = io.StringIO()
    writer = csv.DictWriter(text, list(table[0]) if table else ["key"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    return text.getvalue()


def parquet_bytes(rows: Sequence[Row], front: set[str]) -> bytes:
    """The same as Parquet.

    Raises:
        UserError: what writes it is not installed.
    """
    try:
        pyarrow: Module = import_module("pyarrow")
        parquet: Module = import_module("pyarrow.parquet")
    except ImportError as error:
        raise UserError(
            "--parquet needs pyarrow, which is not installed", hint="pip install pyarrow"
        ) from error
    sink = pyarrow.BufferOutputStream()
    parquet.write_table(
        pyarrow.Table.from_pylist(list(flat(rows, front))), sink, compression="zstd"
    )
    return sink.getvalue().to_pybytes()
