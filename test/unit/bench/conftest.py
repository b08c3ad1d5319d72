"""Scripts of bench/ as modules."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from types import ModuleType

import pytest


@pytest.fixture
def script() -> Callable[[str], ModuleType]:
    """Imports a script of bench/ by name, as the other scripts do."""
    return import_module
