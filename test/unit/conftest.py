"""Tiny ONNX models and their compiled forms, made once for a test session."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import cache
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

MAKE_MODELS = Path(__file__).parents[1] / "models" / "make_models.py"
Named = Callable[[str], Path]


@pytest.fixture(scope="session", autouse=True)
def state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is kept of verified folders is kept for the tests alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Named:
    """The .onnx file of a model of test/models/make_models.py, by name; not to be changed."""
    spec = spec_from_file_location("make_models", MAKE_MODELS)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    folder = tmp_path_factory.mktemp("models")
    return cache(lambda name: module.make_model(name, folder / name))


@pytest.fixture(scope="session")
def compiled(model: Named, tmp_path_factory: pytest.TempPathFactory) -> Named:
    """The output folder of a model compiled for roma-mini, by name; not to be changed."""
    from intaglio.backend.compile import compile_model
    from intaglio.backend.stages import Options

    folder = tmp_path_factory.mktemp("compiled")

    def make(name: str) -> Path:
        return compile_model(model(name), folder / name, Options("roma-mini")).folder

    return cache(make)
