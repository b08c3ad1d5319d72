"""Adapters for tests: a compiled model with slots, and PEFT folders that fit it."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from intaglio.backend.program.program import load_program

WritePeft = Callable[..., Path]
RANK = 4


@pytest.fixture(scope="session")
def slotted(model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with slots of rank 4 at every site; not to be changed."""
    from intaglio.backend.compile import compile_model
    from intaglio.backend.stages import Options

    out = tmp_path_factory.mktemp("slotted") / "out"
    return compile_model(
        model("llama"), out, Options("roma-mini", context=64, adapter_rank=RANK)
    ).folder


@pytest.fixture(scope="session")
def program_of(
    model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """The program of a model for roma-mini with a context of 32, by name; not to be changed."""
    from intaglio.backend.compile import compile_model
    from intaglio.backend.stages import Options

    folder = tmp_path_factory.mktemp("programs")
    options = Options("roma-mini", context=32, emit="program")
    return cache(lambda name: compile_model(model(name), folder / name, options).folder)


def peft_tensors(
    out: Path,
    *,
    rank: int = RANK,
    roles: tuple[str, ...] = ("q_proj", "v_proj", "down_proj"),
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """Random A and B, as PEFT names them, for sites of a compiled model."""
    random = np.random.default_rng(seed)
    tensors: dict[str, np.ndarray] = {}
    for name, site in load_program(out).sites.items():
        _, layer, role = name.split(".")
        if role not in roles:
            continue
        part = "mlp" if role in ("gate_proj", "up_proj", "down_proj") else "self_attn"
        module = f"base_model.model.model.layers.{layer}.{part}.{role}"
        a = random.normal(size=(rank, site.columns)) / np.sqrt(site.columns)
        b = random.normal(size=(site.rows, rank)) * 0.1
        tensors[f"{module}.lora_A.weight"] = a.astype(np.float32)
        tensors[f"{module}.lora_B.weight"] = b.astype(np.float32)
    return tensors


@pytest.fixture
def write_peft(tmp_path: Path) -> WritePeft:
    """Writes tensors and a configuration as a PEFT folder."""
    written = 0

    def write(tensors: dict[str, Any], metadata: dict[str, str] | None = None, **config: Any):
        nonlocal written
        folder = tmp_path / f"peft{written}"
        written += 1
        folder.mkdir()
        save_file(tensors, folder / "adapter_model.safetensors", metadata)
        targets = sorted({name.split(".")[-3] for name in tensors})
        content = {
            "peft_type": "LORA",
            "r": RANK,
            "lora_alpha": 2 * RANK,
            "target_modules": targets,
            "bias": "none",
            "use_dora": False,
            "modules_to_save": None,
            **config,
        }
        (folder / "adapter_config.json").write_text(json.dumps(content))
        return folder

    return write


@pytest.fixture
def tensors(slotted: Path) -> Callable[..., dict[str, np.ndarray]]:
    """`peft_tensors` for the model with slots."""
    return lambda **options: peft_tensors(slotted, **options)
