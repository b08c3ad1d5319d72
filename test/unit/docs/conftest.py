"""What the commands of the pages find: a folder for each page, with models, texts and a chip."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from small_chip import SMALL

ROOT = Path(__file__).parents[3]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--renew", action="store_true", help="write into the pages what commands print and draw now"
    )


@pytest.fixture(scope="session")
def renew(request: pytest.FixtureRequest) -> bool:
    """Whether pages are brought up to date where they differ."""
    return bool(request.config.getoption("--renew", default=False))


@pytest.fixture(scope="session")
def chip(model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output folder with hardware, for pages that begin with one; not to be changed."""
    from intaglio.backend.compile import compile_model
    from intaglio.backend.stages import Options
    from intaglio.runtime.expected_tokens import expected_tokens

    options = Options("roma-mini", SMALL, context=128, emit="sv")
    out = tmp_path_factory.mktemp("pages") / "OUT"
    return compile_model(model("llama"), out, options, expected=expected_tokens).folder


@pytest.fixture(scope="session")
def commands() -> Iterator[None]:
    """`intaglio` and the others are those of this Python."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
        yield


@pytest.fixture
def desk(tmp_path: Path, commands: None) -> Path:
    """A folder with what the pages name: `model.onnx`, texts, a PEFT folder, the examples.

    Model and adapters are those of the demo. What commands write beside them stays here.
    """
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    demo = ROOT / "examples" / "demo"
    for name in ("model.onnx", "model.onnx.data", "genai_config.json"):
        shutil.copy(demo / "model" / name, tmp_path)
    text = (demo / "held_out.txt").read_text()
    for name in ("book.txt", "text.txt"):
        (tmp_path / name).write_text(text[:300])
    shutil.copytree(demo / "adapters" / "devil", tmp_path / "path" / "to" / "peft_folder")
    return tmp_path
