"""The record of a sweep: a file of JSON lines to which each finished point adds one.

A line is written whole and at once, so that whatever ends a sweep loses no finished point; a last
line that is torn all the same is dropped when the file is opened again. Two sweeps on one file are
kept apart by a lock.
"""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path

from intaglio.dialects.errors import UserError
from intaglio.runtime.sweep.rows import Found, Row

SCHEMA = 1


class Record:
    """Rows by the keys of their points, in the order in which they were finished."""

    def __init__(self, path: Path, *, resume: bool) -> None:
        """Opens or makes the file.

        Args:
            path: the file.
            resume: go on with what is there.

        Raises:
            UserError: another sweep writes the file, it has rows and is not to be resumed, or it is
                no record of a sweep.
        """
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a+b")
        except OSError as error:
            raise UserError(f"cannot be written: {error.strerror}", file=str(path)) from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.close()
            raise UserError(
                "another sweep writes this file", file=str(path), hint="give another one with -o"
            ) from error
        try:
            self.rows = self._stored()
            if self.rows and not resume:
                raise UserError(
                    f"has {len(self.rows):,} rows of a sweep already",
                    file=str(path),
                    hint="--resume goes on with it; or give another file with -o",
                )
        except BaseException:
            self._file.close()
            raise

    def _stored(self) -> dict[str, Found]:
        """The rows of whole lines; what follows the last of them is cut off."""
        self._file.seek(0)
        raw = self._file.read()
        whole = raw[: raw.rfind(b"\n") + 1]
        rows: dict[str, Found] = {}
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                row = json.loads(line)
                rows[row["key"]] = row
                is_row = row["schema"] == SCHEMA
            except (ValueError, KeyError, TypeError):
                is_row = False
            if not is_row:
                raise UserError(
                    f"line {number} is no row of a sweep",
                    file=str(self.path),
                    hint="give another file with -o",
                )
        if whole != raw:
            os.ftruncate(self._file.fileno(), len(whole))
        return rows

    def add(self, row: Row) -> None:
        """Adds a row, which has its point's `key`."""
        self.rows[row["key"]] = dict(row)
        line = json.dumps({"schema": SCHEMA, **row}).encode() + b"\n"
        # One write to a file that is open for appending.
        self._file.write(line)
        self._file.flush()

    def close(self) -> None:
        """Lets go of the file."""
        self._file.close()

    def __enter__(self) -> Record:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()
