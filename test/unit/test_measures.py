"""How far types and functions may let go: measures that hold for all of the source."""

from __future__ import annotations

import ast
import re
import tomllib
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDERS = ("dialects", "lowering", "backend", "runtime", "intaglio")

ANY = 4.0
"""Names of `Any`, per 1,000 lines."""
SWITCHED_OFF = 0.3
"""Checks of types and lint that a comment switches off, per 1,000 lines."""
LENGTH = 100
"""Lines of a function, without its docstring."""
TABLES = [("lowering/onnx/operators/table.py", "supported_operators")]
"""Functions that are a table: one entry after the other, no matter how many."""

_OFF = re.compile(r"#\s*(?:pyright: ignore|type: ignore|noqa)")
_Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass
class Measured:
    """All of the source, looked at once.

    Attributes:
        lines: that are neither blank nor a comment.
        anys: names of `Any`.
        off: places where a check is switched off.
        casts: files that import `typing.cast`.
        long: functions longer than `LENGTH`, by file and name.
    """

    lines: int = 0
    anys: int = 0
    off: list[str] = field(default_factory=list[str])
    casts: list[str] = field(default_factory=list[str])
    long: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])


@cache
def measured() -> Measured:
    of = Measured()
    for path in [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]:
        name, text = path.relative_to(ROOT).as_posix(), path.read_text()
        for number, line in enumerate(map(str.strip, text.splitlines()), 1):
            of.lines += bool(line) and not line.startswith("#")
            if _OFF.search(line):
                of.off.append(f"{name}:{number}")
        for node in ast.walk(ast.parse(text)):
            match node:
                case ast.FunctionDef() | ast.AsyncFunctionDef() if length(node) > LENGTH:
                    of.long.append((name, node.name))
                case ast.Name(id="Any"):
                    of.anys += 1
                case ast.ImportFrom(module="typing") if "cast" in {one.name for one in node.names}:
                    of.casts.append(name)
    return of


def length(function: _Function) -> int:
    """Lines of a function from `def` on, without its docstring."""
    lines = (function.end_lineno or 0) - function.lineno + 1
    match function.body[0]:
        case ast.Expr(ast.Constant(str())) as said:
            return lines - ((said.end_lineno or 0) - said.lineno + 1)
        case _:
            return lines


def test_any_is_rare():
    assert 1000 * measured().anys / measured().lines < ANY


def test_checks_are_hardly_ever_switched_off():
    assert 1000 * len(measured().off) / measured().lines <= SWITCHED_OFF, measured().off


def test_no_cast_claims_a_type():
    assert measured().casts == []


def test_functions_are_short():
    assert measured().long == TABLES


def test_types_are_strict_up_to_the_backend():
    checked = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["basedpyright"]
    assert checked["strict"] == ["dialects", "lowering", "backend"]
    assert set(checked["include"]) == set(FOLDERS)


def test_docstrings_do_not_count():
    text = 'def one(\n    a,\n):\n    """Says\n    more."""\n    return a\n'
    said, silent = (ast.parse(one).body[0] for one in (text, "def one():\n    return 1\n"))
    assert isinstance(said, ast.FunctionDef) and isinstance(silent, ast.FunctionDef)
    assert (length(said), length(silent)) == (4, 2)
