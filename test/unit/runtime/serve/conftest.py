"""A server in a process of its own, with a chat template and two adapters."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import openai
import pytest

from intaglio.backend.compile import Options, compile_model
from intaglio.runtime.chip import Chip, load

DEMO = Path(__file__).parents[4] / "examples" / "demo"
TEMPLATE = (
    "{% for m in messages %}{% if m.role not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('no ' + m.role) }}{% endif %}{{ m.role[0] }}:{{ m.content }};{% endfor %}"
    "{% if add_generation_prompt %}{{ open | default('a:') }}{% endif %}"
)
CONTEXT = 160


@dataclass
class Server:
    """A running server.

    Attributes:
        chip: the same output folder, in this process.
        url: where it listens.
    """

    chip: Chip
    url: str
    process: subprocess.Popen[str]

    def client(self, **options: object) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, **options)

    def stop(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """Exit code, and what it said since it began to serve."""
        self.process.send_signal(number)
        _, said = self.process.communicate(timeout=30)
        return self.process.returncode, said


Serve = Callable[..., AbstractContextManager[Server]]


@pytest.fixture(scope="session")
def chatting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo with a chat template and its adapters; not to be changed."""
    folder = tmp_path_factory.mktemp("chatting")
    shutil.copytree(DEMO / "model", folder / "model")
    (folder / "model" / "chat_template.jinja").write_text(TEMPLATE)
    options = Options(
        "roma-mini", context=CONTEXT, adapter_rank=16, resident_adapters=2, emit="program"
    )
    out = compile_model(folder / "model" / "model.onnx", folder / "out", options).folder
    adapters = load(out).adapters
    for name in ("devil", "python"):
        adapters.add(name, DEMO / "adapters" / name)
    return out


@contextmanager
def serving(out: Path, *options: str) -> Iterator[Server]:
    """A server until the end of the block."""
    command = [sys.executable, "-m", "intaglio.runtime.cli", "serve", str(out), "--port", "0"]
    process = subprocess.Popen(
        [*command, *options], stderr=subprocess.PIPE, text=True, env=dict(os.environ)
    )
    assert process.stderr is not None
    try:
        said = ""
        while not (found := re.search(r"on (http://\S+)/v1", line := process.stderr.readline())):
            said += line
            assert line, said
        yield Server(load(out), found[1], process)
    finally:
        if process.poll() is None:
            process.kill()
        process.stderr.close()
        process.wait()


@pytest.fixture(scope="session")
def server(chatting: Path) -> Iterator[Server]:
    """One that all tests share."""
    with serving(chatting, "--users", "3", "--name", "base", "--max-body", "20000") as started:
        yield started


@pytest.fixture(scope="session")
def serve() -> Serve:
    """Starts a server of an output folder with options, for a block."""
    return serving
