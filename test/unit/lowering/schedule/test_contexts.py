"""What has no contexts yet is refused where several tokens are to be in flight."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from intaglio.backend.compile import compile_model
from intaglio.backend.stages import Options
from intaglio.dialects.errors import UserError


@pytest.mark.parametrize(
    ("target", "name", "settings", "rank", "what"),
    [
        ("roma-mini", "lfm2", (), 0, "states, which tokens take one after the other"),
        ("roma-mini", "qwen35", (), 0, "states, which tokens take one after the other"),
        ("roma-mini", "llama", (), 4, "adapters"),
        ("roma-mini", "llama", ("activations=int8", "kv=int8"), 0, "largest magnitudes"),
        ("bitrom-mini", "ternary", (), 0, "keys and values in external memory"),
    ],
)
def test_refused(
    target: str,
    name: str,
    settings: tuple[str, ...],
    rank: int,
    what: str,
    model: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    settings = (*settings, "policy.in_flight=2")
    options = Options(target, settings, context=16, emit="program", adapter_rank=rank)
    with pytest.raises(UserError) as error:
        compile_model(model(name), tmp_path / "out", options)
    assert "2 tokens in flight are not possible with" in error.value.what
    assert what in error.value.what
    assert error.value.hint == "compile with --in-flight 1"
