"""Chips that several tests of the backend look at."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from intaglio.backend.compile import compile_model
from intaglio.backend.program.program import Program, load_program
from intaglio.backend.stages import Options

CHIPS = (
    ("llama", "roma-mini", 4),
    ("ternary", "tom-mini", 0),
    ("ternary", "bitrom-mini", 0),
    ("qwen35", "roma-mini", 0),
)


@pytest.fixture(scope="session", params=CHIPS, ids=lambda param: param[1])
def compiled_chip(
    request: pytest.FixtureRequest,
    model: Callable[[str], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Program, Path]:
    """A program and its output folder, of each structure; not to be changed."""
    name, target, rank = request.param
    out = tmp_path_factory.mktemp("chip") / "out"
    compile_model(model(name), out, Options(target, context=40, adapter_rank=rank, emit="program"))
    return load_program(out), out
