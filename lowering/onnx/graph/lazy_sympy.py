"""onnx_ir without sympy, until that is wanted.

onnx_ir adds and multiplies symbolic dimensions with sympy, which the import never asks for, and
imports it first of all: a fifth of what a small compile takes.
"""

from __future__ import annotations

import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import LazyLoader
from types import ModuleType

LATER = frozenset({"sympy", "onnx_ir._symbolic_shapes"})
"""Sympy, and who uses it as it is imported."""


class _Later(MetaPathFinder):
    """Finds these modules such that they are loaded when something of them is first used."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in LATER:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = LazyLoader(spec.loader)
        return spec


@contextmanager
def without_sympy() -> Generator[None]:
    """Within, an import of onnx_ir leaves sympy to its first use; it is the same module then.

    Where an onnx_ir uses it earlier, it is loaded earlier.
    """
    finder = _Later()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
