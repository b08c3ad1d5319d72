"""Scripts of bench/ as modules."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Imports a script of bench/ by name, as the other scripts do."""
    monkeypatch.syspath_prepend(Path(__file__).parents[3] / "bench")
    return import_module
