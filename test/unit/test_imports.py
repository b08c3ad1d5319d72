"""Imports run one way: dialects <- lowering <- backend <- runtime, and never in a circle."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ORDER = ("dialects", "lowering", "backend", "runtime", "intaglio")
"""Folders, each of which imports those before it only. The public face comes last."""


@cache
def modules() -> dict[str, Path]:
    """Files by module name."""
    found: dict[str, Path] = {}
    for folder in ORDER:
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(node: ast.AST) -> Iterator[str]:
    """Modules of the project that a statement imports."""
    names: list[str] = []
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, "imports are absolute"
        inner = [f"{node.module}.{alias.name}" for alias in node.names]
        known = [name for name in inner if name.removeprefix("intaglio.") in modules()]
        names = known or [str(node.module)]
    for name in names:
        if name.split(".")[0] == "intaglio":
            yield name if name in modules() else name.removeprefix("intaglio.")


@cache
def imports() -> dict[str, set[str]]:
    """For each module, those it imports, in functions and for types too."""
    return {
        name: {other for node in ast.walk(ast.parse(path.read_text())) for other in imported(node)}
        for name, path in modules().items()
    }


def circle(graph: Mapping[str, set[str]]) -> list[str]:
    """Modules that import each other in a circle, or nothing."""
    done: set[str] = set()

    def visit(name: str, path: list[str]) -> list[str]:
        if name in path:
            return path[path.index(name) :]
        if name in done:
            return []
        for other in sorted(graph.get(name, ())):
            if found := visit(other, [*path, name]):
                return found
        done.add(name)
        return []

    return next((found for name in sorted(graph) if (found := visit(name, []))), [])


def test_all_modules_are_found():
    assert all(any(name.startswith(f"{folder}.") for name in modules()) for folder in ORDER[:-1])
    assert {other for those in imports().values() for other in those} <= modules().keys()


@pytest.mark.parametrize("folder", ORDER)
def test_imports_run_one_way(folder):
    allowed = ORDER[: ORDER.index(folder) + 1]
    wrong = [
        f"{name} imports {other}"
        for name, those in imports().items()
        for other in those
        if name.split(".")[0] == folder and other.split(".")[0] not in allowed
    ]
    assert not wrong


def test_no_module_imports_itself_in_a_circle():
    assert not circle(imports())


def test_wheels_have_every_folder():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {path.parent for name in ORDER for path in (ROOT / name).rglob("__init__.py")}
    found = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    assert {name.removeprefix("intaglio.") for name in listed} == found


def test_a_walk_over_packages_in_a_checkout_ends():
    """`intaglio/` lies in the folder that its path names, so it finds itself there: once."""
    walk = "print(*(one.name for one in pkgutil.walk_packages(intaglio.__path__, 'intaglio.')))"
    command = [sys.executable, "-c", f"import intaglio, pkgutil; {walk}"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, timeout=60)
    names = set(found.stdout.decode().split())
    assert {"intaglio.dialects.program", "intaglio.runtime.cli", "intaglio.universe"} <= names
    assert not any(name.startswith("intaglio.intaglio.intaglio") for name in names)


def test_a_circle_is_found():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c"]
    assert circle({"a": {"b", "c"}, "b": {"c"}}) == []
